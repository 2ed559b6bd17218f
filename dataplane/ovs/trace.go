package ovs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

// TraceRequest is a packet to ask about: the probe as it is seen on entering a
// bridge, or the guest's answer to it.
type TraceRequest struct {
	// InPort is the OpenFlow port that it comes in by.
	InPort         uint16
	SrcMAC, DstMAC stain.MAC
	// Src and Dst are IPv4 addresses.
	Src, Dst netip.Addr
	TTL      uint8
	// TunSrc, TunDst and TunID are the outer addresses and the key where it comes in
	// by a tunnel; else they are zero.
	TunSrc, TunDst netip.Addr
	TunID          uint32
	// Reply asks about the guest's answer (RST) rather than the probe (SYN).
	Reply  bool
	Scheme stain.Scheme
	Stain  stain.Stain
}

// Outcome is the fate of a traced packet on this host. The numbers are those of the
// protobuf contract.
type Outcome uint8

const (
	// Delivered says that it leaves by Port, which is no tunnel.
	Delivered Outcome = 1
	// Tunnelled says that it leaves by tunnel Port to TunnelRemote, with TunnelID.
	Tunnelled Outcome = 2
	// Dropped says that it goes nowhere; Flow is the last that it met.
	Dropped Outcome = 3
)

var outcomeNames = [...]string{"unknown", "delivered", "tunnelled", "dropped"}

// String returns the name of the outcome.
func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return fmt.Sprintf("outcome(%d)", uint8(o))
}

// Trace is what the flows of a host do with a packet.
type Trace struct {
	Outcome Outcome
	// Port is the one that it leaves by; of several the one that fits best where it
	// came from: a tunnel if it came from an instance, else an instance's. Ports are
	// all of them.
	Port  string
	Ports []string
	// TunnelRemote is the outer destination, and TunnelID the key, where the outcome
	// is Tunnelled.
	TunnelRemote string
	TunnelID     uint32
	// Flow is the last one that it met, with the names of ports rather than their
	// numbers, where the outcome is Dropped. Where the table had none for it, Match
	// is empty, Priority 0, and Reason says so.
	Flow FlowRef
	// Reason is why it was dropped, if that was more than the flow's own doing.
	Reason string
	// Command shows the same on the host.
	Command string
}

// FlowRef is a flow of a bridge.
type FlowRef struct {
	Bridge string
	Flow   flows.Flow
}

// maxRecirculations is how often a traced packet may come back from conntrack with
// the state that we say; Neutron's and OVN's pipelines need 2 to 4.
const maxRecirculations = 8

// Trace asks what the flows of this host do with a packet that enters a bridge, and
// follows it through patch ports, conntrack and tunnels (ofproto/trace of
// ovs-vswitchd(8)). Nothing is sent, learned or counted. Conntrack is not asked: the
// probe is taken for the first packet of a connection, and the answer for one of
// an established connection.
//
// Our own hook is left out of the outcome: a copy to the dye port is no delivery.
func (s *Switch) Trace(ctx context.Context, bridge string, req TraceRequest) (Trace, error) {
	flow, err := req.flow()
	if err != nil {
		return Trace{}, fmt.Errorf("ovs: trace on %s: %w", bridge, err)
	}
	args := []string{"ofproto/trace", "--names", bridge, flow}
	if req.Reply {
		for range maxRecirculations {
			args = append(args, "--ct-next", "trk,est,rpl")
		}
	}
	target, err := s.target()
	if err != nil {
		return Trace{}, fmt.Errorf("ovs: trace on %s: %w", bridge, err)
	}
	out, err := s.run(ctx, nil, "ovs-appctl", append([]string{"-t", target}, args...)...)
	if err != nil {
		return Trace{}, fmt.Errorf("ovs: trace on %s: %w", bridge, err)
	}
	tr, err := readTrace(string(out), s.Snapshot(), bridge, req.InPort)
	if err != nil {
		return Trace{}, fmt.Errorf("ovs: trace on %s: %w", bridge, err)
	}
	tr.Command = s.command(args)
	return tr, nil
}

// flow returns the packet in the syntax of ovs-ofctl(8).
func (r TraceRequest) flow() (string, error) {
	src, dst := r.Src.Unmap(), r.Dst.Unmap()
	switch {
	case r.InPort == 0:
		return "", errors.New("in_port 0: want the OpenFlow number of a port")
	case r.Scheme != stain.TCP:
		return "", fmt.Errorf("scheme %v: %w", r.Scheme, stain.ErrUnsupported)
	case !src.Is4() || !dst.Is4():
		return "", fmt.Errorf("addresses %v and %v: %w, want IPv4", r.Src, r.Dst, stain.ErrUnsupported)
	}
	flags := "syn"
	if r.Reply {
		flags = "rst|ack"
	}
	f := fmt.Sprintf("in_port=%d,tcp,dl_src=%v,dl_dst=%v,nw_src=%v,nw_dst=%v,nw_tos=%d,nw_ttl=%d,tp_src=%d,tp_dst=%d,tcp_flags=%s",
		r.InPort, r.SrcMAC, r.DstMAC, src, dst, r.Stain.TOS, r.TTL, r.Stain.Port, r.Stain.Port, flags)
	if r.TunSrc.IsValid() && !r.TunSrc.IsUnspecified() {
		f += fmt.Sprintf(",tun_src=%v", r.TunSrc.Unmap())
	}
	if r.TunDst.IsValid() && !r.TunDst.IsUnspecified() {
		f += fmt.Sprintf(",tun_dst=%v", r.TunDst.Unmap())
	}
	if r.TunID != 0 {
		f += fmt.Sprintf(",tun_id=%#x", r.TunID)
	}
	return f, nil
}

// target returns the control socket of ovs-vswitchd, which has its process number
// in its name (ovs-appctl(8)).
func (s *Switch) target() (string, error) {
	pid, _, found := strings.Cut(s.switchd(), "@")
	if !found {
		return "", fmt.Errorf("ovs-vswitchd is not running: %s/ovs-vswitchd.pid names no process", s.opts.RunDir)
	}
	return filepath.Join(s.opts.RunDir, "ovs-vswitchd."+pid+".ctl"), nil
}

// command returns a line for a shell. It names the socket only where ovs-appctl
// would not find it.
func (s *Switch) command(args []string) string {
	var b strings.Builder
	b.WriteString("ovs-appctl")
	if s.opts.RunDir != DefaultRunDir {
		b.WriteString(" -t " + s.opts.RunDir + "/ovs-vswitchd.$(cat " + s.opts.RunDir + "/ovs-vswitchd.pid).ctl")
	}
	for _, a := range args {
		if strings.ContainsAny(a, "=|,") {
			a = "'" + a + "'"
		}
		b.WriteString(" " + a)
	}
	return b.String()
}

// unquote takes the quotes off a name that Open vSwitch quoted because it has more
// than letters and digits.
func unquote(name string) string {
	if s, err := strconv.Unquote(name); err == nil {
		return s
	}
	return name
}
