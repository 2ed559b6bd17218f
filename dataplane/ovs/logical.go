package ovs

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/stain"
)

// OVN's Geneve option names the logical ports by which a packet came to the datapath and leaves it
// (ovn-architecture(7), Tunnel Encapsulations). The receiving host delivers by the second alone.
//
//	 31 30          16 15           0
//	+--+--------------+--------------+
//	| 0| ingress port |  egress port |
//	+--+--------------+--------------+

// GeneveOption returns OVN's option of a packet for a local instance, as far as it can be told: the
// egress port's half. That is the key by which OVN's last flow outputs to the port that has the MAC,
// in the datapath whose tunnel key the packet has. 0 where there is no such flow, as where the host is
// not OVN's.
func (s *Switch) GeneveOption(ctx context.Context, bridge string, to stain.MAC, datapath uint32) (uint32, error) {
	snap := s.Snapshot()
	b, ok := snap.Bridge(bridge)
	if !ok || snap.Southbound.Address == "" || datapath == 0 {
		return 0, nil
	}
	for _, port := range portsOf(b, to) {
		out, err := s.dump(ctx, bridge, fmt.Sprintf("out_port=%d", port.OFPort))
		if err != nil {
			return 0, err
		}
		for _, f := range out {
			if f.Ours() || matched(f.Match, "metadata") != uint64(datapath) {
				continue
			}
			if key := matched(f.Match, "reg15"); key != 0 {
				return uint32(key), nil
			}
		}
	}
	return 0, nil
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

// Logical returns the packet as ovn-trace(8) has it (ovn-sb(5), Logical_Flow: match), entering by a
// logical port; ovn-trace finds the datapath by that.
func (r TraceRequest) Logical(port string) string {
	ip, l4 := "ip4", ""
	if r.Src.Unmap().Is6() {
		ip = "ip6"
	}
	switch {
	case r.Scheme == stain.TCP && r.Reply:
		l4 = fmt.Sprintf("tcp && tcp.src == %[1]d && tcp.dst == %[1]d && tcp.flags == 0x14", r.Stain.Port)
	case r.Scheme == stain.TCP:
		l4 = fmt.Sprintf("tcp && tcp.src == %[1]d && tcp.dst == %[1]d && tcp.flags == 2", r.Stain.Port)
	case ip == "ip6":
		l4 = fmt.Sprintf("icmp6.type == %d", map[bool]int{false: 128, true: 129}[r.Reply])
	default:
		l4 = fmt.Sprintf("icmp4.type == %d", map[bool]int{false: 8, true: 0}[r.Reply])
	}
	return fmt.Sprintf(`inport == "%s" && eth.src == %v && eth.dst == %v && %[4]s.src == %[5]v && %[4]s.dst == %[6]v && ip.ttl == %[7]d && %[8]s`,
		port, r.SrcMAC, r.DstMAC, ip, r.Src.Unmap(), r.Dst.Unmap(), r.TTL, l4)
}
