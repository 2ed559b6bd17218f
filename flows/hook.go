package flows

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/dyetrace/dyetrace/stain"
)

// Mark is one bit of a register, by which a packet that was hooked is known.
type Mark struct {
	// Field is "reg0" to "reg15".
	Field string
	// Bit is 0 to 31, from the least significant.
	Bit uint8
}

// String returns the mark as ovs-fields(7) writes it, such as "reg10[31]".
func (m Mark) String() string {
	if m == (Mark{}) {
		return ""
	}
	return fmt.Sprintf("%s[%d]", m.Field, m.Bit)
}

// valid tells whether m is a bit that can be a mark.
func (m Mark) valid() bool {
	r, ok := parseRegister(m.Field)
	return ok && r.words == 1 && r.name() == m.Field && m.Bit < 32
}

// clear is the match of packets without the mark.
func (m Mark) clear() string { return fmt.Sprintf("%s=0/%#x", m.Field, uint32(1)<<m.Bit) }

// set is the action that marks.
func (m Mark) set() string {
	return fmt.Sprintf("load:0x1->NXM_NX_%s[%d]", strings.ToUpper(m.Field), m.Bit)
}

// Role is what a port of a bridge is to probes.
type Role uint8

const (
	// Other is a port by which no probe should come: nothing is sampled there.
	Other Role = iota
	// Instance is an instance's port. A hook takes any port that it has not been
	// told of for one.
	Instance
	// Tunnel is a tunnel's port.
	Tunnel
	// Downlink is a patch port to the bridge that has the instances.
	Downlink
	// Uplink is a patch port to the bridge that has the tunnels.
	Uplink
)

var roleNames = [...]string{"other", "instance", "tunnel", "downlink", "uplink"}

// String returns the name of the role.
func (r Role) String() string {
	if int(r) < len(roleNames) {
		return roleNames[r]
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// Kind returns the kind of the samples of packets that come in by a port of this
// role; the zero Kind where none are taken.
func (r Role) Kind() stain.Kind {
	switch r {
	case Instance:
		return stain.FromInstance
	case Tunnel, Uplink:
		return stain.FromTunnel
	case Downlink:
		return stain.ToTunnel
	}
	return 0
}

// Port is a port of a bridge.
type Port struct {
	Name string
	// OFPort is its OpenFlow number; one that is 0 or beyond OFPP_MAX (but LOCAL)
	// has no flows, since no packet comes in by it.
	OFPort uint16
	Role   Role
}

// OpenFlow port numbers (OpenFlow 1.0, ofp_port).
const (
	portMax   = 0xff00 // OFPP_MAX
	portLocal = 0xfffe // OFPP_LOCAL
)

// Priorities of the hook's flows.
const (
	enterPriority = 65535 // before all that the bridge has
	guardPriority = 65534
	dyePriority   = 300
	portPriority  = 200
	restPriority  = 100
)

// part is the part that a flow has in a hook, bits 8 to 15 of its cookie.
type part uint8

const (
	inject part = iota + 1
	guard
	enter
	point
	blind
)

func (p part) cookie(k stain.Kind) uint64 { return Cookie | uint64(p)<<8 | uint64(k) }

// Hook is what the flows of one bridge's hook are made of.
type Hook struct {
	// Table and Mark as Choose found them.
	Table uint8
	Mark  Mark
	Stain stain.Stain
	// Dye is the OpenFlow number of the dye port.
	Dye uint16
	// Ports of the bridge. Those of role Instance need no flow, so that a tap which
	// comes later is hooked already.
	Ports []Port
	// Answers are ports whose instances' TCP answers are known by their ports alone.
	Answers []uint16
	// Lease is the hard timeout of every flow in seconds, for the hook to go away
	// with the agent that should renew it; 0 is none.
	Lease uint16
}

// Flows returns the flows of the hook, in the order of the picture in the package
// documentation. It refuses nothing: Choose and Stain.Validate did.
func (h Hook) Flows() []Flow {
	flows := []Flow{h.inject(0, 0x0800), h.inject(1, 0x86dd)}
	for _, match := range stained(h.Stain, ","+h.Mark.clear()) {
		flows = append(flows, h.flow(enter, 0, 0, enterPriority, match,
			fmt.Sprintf("%s,resubmit(,%d),resubmit(,0)", h.Mark.set(), h.Table)))
	}
	flows = append(flows,
		h.flow(guard, 0, 0, guardPriority, inPort(h.Dye), "drop"),
		h.flow(guard, 0, h.Table, dyePriority, inPort(h.Dye), "drop"))
	ports := slices.SortedFunc(slices.Values(h.Ports), func(a, b Port) int { return cmp.Compare(a.OFPort, b.OFPort) })
	ports = slices.CompactFunc(ports, func(a, b Port) bool { return a.OFPort == b.OFPort })
	for _, p := range ports {
		if p.OFPort == 0 || p.OFPort >= portMax && p.OFPort != portLocal || p.OFPort == h.Dye {
			continue
		}
		switch kind := p.Role.Kind(); kind {
		case stain.FromInstance:
		case 0:
			flows = append(flows, h.flow(blind, 0, h.Table, portPriority, inPort(p.OFPort), "drop"))
		default:
			flows = append(flows, h.flow(point, kind, h.Table, portPriority, inPort(p.OFPort), h.copy(kind)))
		}
	}
	return append(flows, h.flow(point, stain.FromInstance, h.Table, restPriority, "", h.copy(stain.FromInstance)))
}

func (h Hook) flow(p part, kind stain.Kind, table uint8, priority uint16, match, actions string) Flow {
	return Flow{
		Table: table, Priority: priority, Match: match, Actions: actions,
		Cookie: p.cookie(kind), HardTimeout: h.Lease,
	}
}

func inPort(n uint16) string {
	if n == portLocal {
		return "in_port=LOCAL"
	}
	return fmt.Sprintf("in_port=%d", n)
}

// inject is the flow that lets a probe in whose label has this traffic class. A
// class that stands for no ethertype has no flow, and so the guard drops it.
func (h Hook) inject(class int, etherType uint16) Flow {
	return h.flow(inject, 0, 0, enterPriority, fmt.Sprintf("mpls,%s,mpls_tc=%d", inPort(h.Dye), class),
		fmt.Sprintf("move:OXM_OF_MPLS_LABEL[0..15]->NXM_OF_IN_PORT[],pop_mpls:0x%04x,resubmit(,0)", etherType))
}

// stained returns the matches of stained packets, in each IP version: nw_tos is
// the traffic class over IPv6 (ovs-fields(7)). Of the zero Stain, they are all that
// a stain may ever have. mark is put where Open vSwitch prints registers.
func stained(s stain.Stain, mark string) []string {
	tos := fmt.Sprintf("%s,nw_tos=%d", mark, s.TOS)
	if s == (stain.Stain{}) {
		return []string{"tcp" + mark, "tcp6" + mark, "icmp" + mark, "icmp6" + mark}
	}
	ports := fmt.Sprintf(",tp_src=%d,tp_dst=%d", s.Port, s.Port)
	return []string{
		"tcp" + tos + ports, "tcp6" + tos + ports,
		// Requests, then replies of guests that keep the ToS.
		"icmp" + tos + ",icmp_type=8,icmp_code=0", "icmp6" + tos + ",icmp_type=128,icmp_code=0",
		"icmp" + tos + ",icmp_type=0,icmp_code=0", "icmp6" + tos + ",icmp_type=129,icmp_code=0",
	}
}

// copy is the action that sends a copy with kind in it to the dye port. The
// fields are written low bits first, each from the packet as it came in.
func (h Hook) copy(kind stain.Kind) string {
	return fmt.Sprintf("clone(load:0->NXM_OF_VLAN_TCI[],"+
		"move:NXM_OF_IN_PORT[]->NXM_OF_ETH_DST[0..15],move:NXM_NX_TUN_ID[0..15]->NXM_OF_ETH_DST[16..31],"+
		"load:%#x->NXM_OF_ETH_DST[32..47],"+
		"move:NXM_NX_TUN_IPV4_SRC[]->NXM_OF_ETH_SRC[0..31],move:NXM_NX_TUN_ID[16..23]->NXM_OF_ETH_SRC[32..39],"+
		"load:%#x->NXM_OF_ETH_SRC[40..47],output:%d)",
		stain.CopyDst<<8|stain.CopyMark|uint16(kind), stain.CopySrc, h.Dye)
}

// Kinds returns the kinds of sampling point that the hook offers, in ascending
// order. A bridge that has patch ports towards instances, and no instance of its
// own, is not one to take samples from instances on.
func (h Hook) Kinds() []stain.Kind {
	roles := make(map[Role]bool)
	for _, p := range h.Ports {
		if p.OFPort != h.Dye {
			roles[p.Role] = true
		}
	}
	var kinds []stain.Kind
	if roles[Instance] || !roles[Downlink] {
		kinds = append(kinds, stain.FromInstance)
	}
	if roles[Tunnel] || roles[Uplink] {
		kinds = append(kinds, stain.FromTunnel)
	}
	if roles[Downlink] {
		kinds = append(kinds, stain.ToTunnel)
	}
	return kinds
}

// Installed returns the table and the mark of the hook that is on a bridge, for
// Choose to keep them where an agent finds what another one left. It fails if
// there is none, or one of another make.
func Installed(have []Flow) (Hook, bool) {
	for _, f := range have {
		if f.Cookie != enter.cookie(0) {
			continue
		}
		var h Hook
		for _, action := range splitList(canonicalActions(f.Actions)) {
			name, args := cutAction(action)
			switch table, ok := strings.CutPrefix(action, "resubmit(,"); {
			case name == "set_field":
				h.Mark = markOf(args)
			case ok && h.Table == 0:
				if n, err := parseUint[uint8](strings.TrimSuffix(table, ")")); err == nil {
					h.Table = n
				}
			}
		}
		return h, h.Table >= firstTable && h.Table <= lastTable && h.Mark != Mark{}
	}
	return Hook{}, false
}

// markOf returns the mark that VALUE/MASK->FIELD sets, or the zero Mark.
func markOf(assignment string) Mark {
	text, field, _ := strings.Cut(assignment, "->")
	r, ok := parseRegister(field)
	value, mask, valid := parseMasked(text, 32)
	if !ok || !valid || r.words != 1 || value != mask || bits.OnesCount64(mask.lo) != 1 {
		return Mark{}
	}
	return Mark{Field: field, Bit: uint8(bits.TrailingZeros64(mask.lo))}
}
