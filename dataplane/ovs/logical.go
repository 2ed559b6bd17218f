package ovs

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

// OVN's Geneve option names the logical ports by which a packet came to the datapath and leaves it
// (ovn-architecture(7), Tunnel Encapsulations). The receiving host delivers by the second alone.
//
//	 31 30          16 15           0
//	+--+--------------+--------------+
//	| 0| ingress port |  egress port |
//	+--+--------------+--------------+

// ErrNoKey says that no flow of the host tells which logical port a packet is for that came by Geneve to OVN: what
// becomes of it hangs on that.
var ErrNoKey = errors.New("no flow of this host tells the key of the logical port that it is for")

// GeneveOption returns OVN's option of a packet for a local instance, as far as it can be told: the egress port's half.
// That is the key by which OVN's last flow outputs to the port that has the MAC, in the datapath whose tunnel key the
// packet has; where no port is marked with it, or its last flow is not there, the key that OVN's flows give packets for
// the MAC. It is 0 where the packet bears no such option: it comes by no Geneve tunnel, or the host is not OVN's. The
// error wraps ErrNoKey where it bears one, and which is not known.
func (s *Switch) GeneveOption(ctx context.Context, bridge string, req TraceRequest) (uint32, error) {
	snap := s.Snapshot()
	b, _ := snap.Bridge(bridge)
	in, _ := b.ByOFPort(req.InPort)
	if snap.Southbound.Address == "" || in.Type != "geneve" {
		return 0, nil
	}
	if req.TunID == 0 {
		return 0, fmt.Errorf("it came by %s, with a key that is not known: %w", in.Name, ErrNoKey)
	}
	for _, port := range portsOf(b, req.DstMAC) {
		out, err := s.dump(ctx, bridge, fmt.Sprintf("out_port=%d", port.OFPort))
		if err != nil {
			return 0, err
		}
		for _, f := range out {
			if f.Ours() || matched(f.Match, "metadata") != uint64(req.TunID) {
				continue
			}
			if key := matched(f.Match, "reg15"); key != 0 {
				return uint32(key), nil
			}
		}
	}
	there, err := s.dump(ctx, bridge, fmt.Sprintf("metadata=%#x,dl_dst=%v", req.TunID, req.DstMAC))
	if err != nil {
		return 0, err
	}
	if key, ok := keyGiven(there); ok {
		return key, nil
	}
	return 0, fmt.Errorf("%v in OVN's datapath %d: %w", req.DstMAC, req.TunID, ErrNoKey)
}

// egressKey is how OVN's flows say which logical port a packet is for (ls_in_l2_lkup), as Open vSwitch writes it.
var egressKey = regexp.MustCompile(`\b(?:load:(0x[0-9a-f]+|\d+)->NXM_NX_REG15\[\]|set_field:(0x[0-9a-f]+|\d+)->reg15)(?:,|$)`)

// keyGiven returns the key that flows give a packet; ok is false where they give none, or several. Those that go by the
// port that the packet is for, or comes from, find no port for a MAC.
func keyGiven(list []flows.Flow) (key uint32, ok bool) {
	for _, f := range list {
		if f.Ours() || matched(f.Match, "reg15") != 0 || matched(f.Match, "reg14") != 0 {
			continue
		}
		for _, m := range egressKey.FindAllStringSubmatch(f.Actions, -1) {
			k := parseKey(m[1] + m[2])
			if k == 0 || ok && k != key {
				return 0, false
			}
			key, ok = k, true
		}
	}
	return key, ok
}

// portsOf returns the ports that are marked with a MAC; tenants may use one twice.
func portsOf(b dataplane.Bridge, mac stain.MAC) []dataplane.Port {
	var ports []dataplane.Port
	for _, p := range b.Ports {
		if m, err := stain.ParseMAC(p.MAC); err == nil && m == mac && p.OFPort != 0 {
			ports = append(ports, p)
		}
	}
	return ports
}

// matched returns the value that a match wants of a field as a whole; 0 if it wants none.
func matched(match, field string) uint64 {
	for part := range strings.SplitSeq(match, ",") {
		if value, ok := strings.CutPrefix(part, field+"="); ok {
			n, _ := strconv.ParseUint(value, 0, 64)
			return n
		}
	}
	return 0
}

// LogicalCommand returns the command by which OVN's central node shows what its logical network does with the packet,
// entering by a logical port, with the states of connections that a trace met here. On the host that the trace has it sent to
// there is one more to meet, where an ACL is.
func (r TraceRequest) LogicalCommand(port string, t Trace) string {
	states := t.States
	if t.Outcome == Tunnelled {
		states = append(slices.Clone(states), r.assumed())
	}
	var b strings.Builder
	b.WriteString("ovn-trace")
	for _, state := range states {
		// It is tracked without being told, and established if nothing is told (ovn-trace(8), --ct).
		b.WriteString(" --ct=" + strings.TrimPrefix(state, "trk,"))
	}
	return b.String() + " " + quote(r.logical(port))
}

// logical returns the packet as ovn-trace(8) has it (ovn-sb(5), Logical_Flow: match), entering by a
// logical port; ovn-trace finds the datapath by that.
func (r TraceRequest) logical(port string) string {
	ip, l4 := "ip4", ""
	if r.Src.Unmap().Is6() {
		ip = "ip6"
	}
	switch {
	case r.Scheme == stain.TCP:
		l4 = fmt.Sprintf("tcp && tcp.src == %[1]d && tcp.dst == %[1]d && tcp.flags == %#[2]x", r.Stain.Port, r.flags())
	case ip == "ip6":
		l4 = fmt.Sprintf("icmp6.type == %d", map[bool]int{false: 128, true: 129}[r.Reply])
	default:
		l4 = fmt.Sprintf("icmp4.type == %d", map[bool]int{false: 8, true: 0}[r.Reply])
	}
	return fmt.Sprintf(`inport == "%s" && eth.src == %v && eth.dst == %v && %[4]s.src == %[5]v && %[4]s.dst == %[6]v && ip.ttl == %[7]d && %[8]s`,
		port, r.SrcMAC, r.DstMAC, ip, r.Src.Unmap(), r.Dst.Unmap(), r.TTL, l4)
}
