package ovs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
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
	// Src and Dst are both IPv4 or both IPv6 addresses; TTL is the hop limit over IPv6.
	Src, Dst netip.Addr
	TTL      uint8
	// TunSrc, TunDst and TunID are the outer addresses, IPv4 or IPv6, and the key where
	// it comes in by a tunnel; else they are zero.
	TunSrc, TunDst netip.Addr
	TunID          uint32
	// Geneve is OVN's option, tun_metadata0; 0 where there is none, or it is not known.
	Geneve uint32
	// Reply asks about the guest's answer (RST, SYN-ACK, echo reply) rather than the probe
	// (SYN, echo request).
	Reply  bool
	Scheme stain.Scheme
	// Flags are byte 13 of its TCP header; 0 is not known: SYN, or RST|ACK of an answer.
	Flags uint8
	Stain stain.Stain
}

// Outcome is the fate of a traced packet on this host. The numbers are those of the
// protobuf contract.
type Outcome uint8

const (
	// Delivered says that it leaves by Port, which is no tunnel.
	Delivered Outcome = 1
	// Tunnelled says that it leaves by tunnel Port to TunnelRemote, with TunnelID.
	Tunnelled Outcome = 2
	// Dropped says that it goes nowhere; Flow is the one that decided.
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
	// came from: a tunnel if it came from an instance, else an instance's. Ports and
	// Exits are all of them. What mirrors copy is none.
	Port  string
	Ports []string
	Exits []Exit
	// TunnelRemote is the outer destination, and TunnelID the key, where the outcome
	// is Tunnelled.
	TunnelRemote string
	TunnelID     uint32
	// Flow is the one that decided, with the names of ports rather than their
	// numbers, where the outcome is Dropped: the last that it met, or one before whose
	// output failed, or which sent it to a table that only ends it. Where the table had
	// none for it, Match is empty, Priority 0, and Reason says so.
	Flow FlowRef
	// Before are the flows with a cookie that it met before Flow on that bridge, in order.
	Before []flows.Flow
	// Reason is why it was dropped, if that was more than the flow's own doing; or what
	// the switch says of Port.
	Reason string
	// States are those that connection tracking was taken to find, in order, as --ct-next has them.
	States []string
	// Command shows the same on the host.
	Command string
}

// Exit is one way by which a packet leaves the host. Remote and TunnelID are of a tunnel, Reason is what
// the switch says of it.
type Exit struct {
	Port     string
	Remote   string
	TunnelID uint32
	Reason   string
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
// ovs-vswitchd(8)). Nothing is sent, learned or counted. What connection tracking makes of
// the packet is looked up in its table; where that cannot be listed, the probe is taken for
// the first packet of a connection, and the answer for one of an established connection, or of none
// if a flow that drops those has been met lately.
//
// Our own hook is left out of the outcome: a copy to the dye port is no delivery. The error wraps
// ErrUnsupported where the switch's ofproto/trace has no --names, as that of 2.15.
func (s *Switch) Trace(ctx context.Context, bridge string, req TraceRequest) (Trace, error) {
	flow, err := req.flow()
	if err != nil {
		return Trace{}, fmt.Errorf("ovs: trace on %s: %w", bridge, err)
	}
	walked, err := s.walk(ctx, bridge, flow, &req)
	if err != nil {
		return Trace{}, fmt.Errorf("ovs: trace on %s: %w", bridge, err)
	}
	tr, err := readTrace(walked.text, s.Snapshot(), bridge, req.InPort)
	if err != nil {
		return Trace{}, fmt.Errorf("ovs: trace on %s: %w", bridge, err)
	}
	tr.Command = s.command(traceArgs(bridge, flow, &req, walked.states))
	tr.States = req.met(walked.text, walked.states)
	if tr.Outcome != Dropped {
		if other, ok := s.otherwise(ctx, bridge, flow, &req, &walked); ok {
			return other, nil
		}
	}
	return tr, nil
}

// flow returns the packet in the syntax of ovs-ofctl(8), with the names of fields of
// ovs-fields(7).
func (r TraceRequest) flow() (string, error) {
	src, dst := r.Src.Unmap(), r.Dst.Unmap()
	switch {
	case r.InPort == 0:
		return "", errors.New("in_port 0: want the OpenFlow number of a port")
	case !src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4():
		return "", fmt.Errorf("addresses %v and %v: want two of one IP version", r.Src, r.Dst)
	}
	payload, err := r.payload(src.Is6())
	if err != nil {
		return "", err
	}
	network := "nw"
	if src.Is6() {
		network = "ipv6" // of the addresses only: ToS and TTL have one name for both
	}
	f := fmt.Sprintf("in_port=%d,%s,dl_src=%v,dl_dst=%v,%s_src=%v,%s_dst=%v,nw_tos=%d,nw_ttl=%d",
		r.InPort, payload, r.SrcMAC, r.DstMAC, network, src, network, dst, r.Stain.TOS, r.TTL)
	if r.Geneve != 0 {
		f += fmt.Sprintf(",tun_metadata0=%#x", r.Geneve)
	}
	return f + tunnelField("src", r.TunSrc) + tunnelField("dst", r.TunDst) + tunnelKey(r.TunID), nil
}

// payload returns the protocol of the packet and the fields of its header.
func (r TraceRequest) payload(ipv6 bool) (string, error) {
	switch {
	case r.Scheme == stain.TCP:
		proto := "tcp"
		if ipv6 {
			proto = "tcp6"
		}
		return fmt.Sprintf("%s,tp_src=%d,tp_dst=%d,tcp_flags=%s", proto, r.Stain.Port, r.Stain.Port, flagNames(r.flags())), nil
	case r.Scheme != stain.ICMP:
		return "", fmt.Errorf("scheme %v: %w, want tcp or icmp", r.Scheme, stain.ErrUnsupported)
	case ipv6 && r.Reply:
		return "icmp6,icmpv6_type=129,icmpv6_code=0", nil
	case ipv6:
		return "icmp6,icmpv6_type=128,icmpv6_code=0", nil
	case r.Reply:
		return "icmp,icmp_type=0,icmp_code=0", nil
	}
	return "icmp,icmp_type=8,icmp_code=0", nil
}

// flags are those of the packet's TCP header, assumed where they are not known.
func (r TraceRequest) flags() uint8 {
	switch {
	case r.Flags != 0:
		return r.Flags
	case r.Reply:
		return stain.FlagRST | stain.FlagACK
	}
	return stain.FlagSYN
}

// flagNames returns flags as ovs-fields(7) has them, such as rst|ack.
func flagNames(flags uint8) string {
	var names []string
	for i, name := range []string{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"} {
		if flags>>i&1 == 1 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// tunnelField returns the field of an outer address, if there is one.
func tunnelField(end string, addr netip.Addr) string {
	addr = addr.Unmap()
	switch {
	case !addr.IsValid() || addr.IsUnspecified():
		return ""
	case addr.Is6():
		return fmt.Sprintf(",tun_ipv6_%s=%v", end, addr)
	}
	return fmt.Sprintf(",tun_%s=%v", end, addr)
}

func tunnelKey(id uint32) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf(",tun_id=%#x", id)
}

// command returns a line for a shell. It names the socket only where ovs-appctl
// would not find it.
func (s *Switch) command(args []string) string {
	var b strings.Builder
	b.WriteString("ovs-appctl")
	if dir := s.opts.RunDir; dir != DefaultRunDir {
		b.WriteString(" -t " + quote(dir+"/ovs-vswitchd.") + `"$(cat ` + quote(dir+"/ovs-vswitchd.pid") + `)".ctl`)
	}
	for _, a := range args {
		b.WriteString(" " + quote(a))
	}
	return b.String()
}

// plain is what no shell makes anything else of, nor wants quoted to be read easily.
var plain = regexp.MustCompile(`^[A-Za-z0-9_./:@%+-]+$`)

// quote returns an argument as a shell reads it (POSIX, Shell Command Language, 2.2.2).
func quote(arg string) string {
	if plain.MatchString(arg) {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

// unquote takes the quotes off a name that Open vSwitch quoted because it has more
// than letters and digits.
func unquote(name string) string {
	if s, err := strconv.Unquote(name); err == nil {
		return s
	}
	return name
}
