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
func (m Mark) set() string { return "load:0x1->" + m.reference() }

// reference is the mark as it stands in actions.
func (m Mark) reference() string {
	return fmt.Sprintf("NXM_NX_%s[%d]", strings.ToUpper(m.Field), m.Bit)
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
	enterPriority  = 65535 // before all that the bridge has
	guardPriority  = 65534
	dyeingPriority = 65533 // behind enter: what bears the stain needs no dyeing
	dyePriority    = 300
	strayPriority  = 250
	portPriority   = 200
	restPriority   = 100
)

// Bounds of what a hook adds while it works.
const (
	// MaxExpected is how many flows that expect an echo's reply a bridge has at most.
	// Each is a pair that was probed within expectSeconds while Hook.Expect was set: at 20 probes a second to or
	// from one instance, room for 3 of them without pause that never meet the same twice in that time. And what tenants who forge
	// stained echoes can fill is small beside the 200,000 megaflows that Open vSwitch
	// allows itself (flow-limit, ovs-vswitchd.conf.db(5)).
	MaxExpected = 1024
	// MaxAnswers is how many ports have flows for answers without the stain's ToS, four
	// each: more instances than that on one host need not be probed anew at once.
	MaxAnswers = 64

	// expectSeconds outlives a megaflow that nothing uses, which Open vSwitch drops after
	// 10 s (max-idle, ovs-vswitchd.conf.db(5)): a request that meets a cached megaflow
	// renews what it learned only when the revalidator sees to it, every 0.5 s.
	expectSeconds  = 15
	expectPriority = 1
)

// part is the part that a flow has in a hook, bits 8 to 15 of its cookie.
type part uint8

const (
	inject part = iota + 1
	guard
	enter
	point
	blind
	expect
	dyeing
	learned
	stray
)

func (p part) cookie(k stain.Kind) uint64 { return Cookie | uint64(p)<<8 | uint64(k) }

// Place is what a hook takes up on a bridge, as Choose finds it.
type Place struct {
	// Table has the sampling points, Reply the replies that are expected; the latter is
	// used on bridges that have instances.
	Table, Reply uint8
	Mark         Mark
}

// Hook is what the flows of one bridge's hook are made of.
type Hook struct {
	Place
	Stain stain.Stain
	// Dye is the OpenFlow number of the dye port.
	Dye uint16
	// Ports of the bridge. Those of role Instance need no flow, so that a tap which
	// comes later is hooked already; on a bridge that has a Downlink, one of them (its
	// OFPort may be 0) says that there are instances too.
	Ports []Port
	// Answers are the ports of instances whose answers over TCP do not bear the stain's
	// ToS: those from the stain's port to the stain's port are given it. Of more than
	// MaxAnswers, the lowest count; who asks for more must say so.
	Answers []uint16
	// Expect has the replies to echoes expected, so that those that do not bear the
	// stain's ToS are given it; see the package documentation for what it costs.
	Expect bool
	// Lease is the hard timeout of every flow in seconds, for the hook to go away
	// with the agent that should renew it; 0 is none.
	Lease uint16
}

// Flows returns the flows of the hook, in the order of the picture in the package
// documentation. It refuses nothing: Choose and Stain.Validate did.
func (h Hook) Flows() []Flow {
	flows := []Flow{h.inject(0, 0x0800), h.inject(1, 0x86dd)}
	reply := h.replies()
	for i, match := range stained(h.Stain, ","+h.Mark.clear()) {
		if request := i - firstEcho; reply && request >= 0 && request < len(versions) {
			if h.Expect {
				flows = append(flows, h.flow(expect, 0, 0, enterPriority, match, h.expect(versions[request])))
			} else {
				flows = append(flows, h.flow(enter, 0, 0, enterPriority, match, h.unexpected()))
			}
			continue
		}
		flows = append(flows, h.flow(enter, 0, 0, enterPriority, match, h.Mark.set()+h.pass()))
	}
	flows = append(flows, h.flow(guard, 0, 0, guardPriority, inPort(h.Dye), "drop"))
	if reply && h.Expect {
		flows = append(flows, h.dyeReplies()...)
	}
	flows = append(flows, h.dyeAnswers()...)
	flows = append(flows, h.flow(guard, 0, h.Table, dyePriority, inPort(h.Dye), "drop"))
	if reply && h.Expect {
		for _, match := range replies("," + h.Mark.clear()) {
			flows = append(flows, h.flow(stray, 0, h.Table, strayPriority, match, "drop"))
		}
		flows = append(flows, h.flow(stray, 0, h.Reply, 0, "", "drop")) // to be ours in a trace
	}
	ports := slices.SortedFunc(slices.Values(h.Ports), func(a, b Port) int { return cmp.Compare(a.OFPort, b.OFPort) })
	ports = slices.CompactFunc(ports, func(a, b Port) bool { return a.OFPort == b.OFPort })
	for _, p := range ports {
		if !h.enters(p.OFPort) {
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

// enters tells whether packets of the bridge's own come in by a port.
func (h Hook) enters(n uint16) bool {
	return n != 0 && (n < portMax || n == portLocal) && n != h.Dye
}

// pass is what follows the marking of a packet: the copy, then the bridge's own flows.
func (h Hook) pass() string { return fmt.Sprintf(",resubmit(,%d),resubmit(,0)", h.Table) }

// replies tells whether the bridge has instances, so that the replies to echoes have
// to be expected there.
func (h Hook) replies() bool { return slices.Contains(h.Kinds(), stain.FromInstance) }

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

// inject is the flow that lets a probe in whose label has this traffic class; the group bit
// of its source goes (stain.AppendFrame). A
// class that stands for no ethertype has no flow, and so the guard drops it.
func (h Hook) inject(class int, etherType uint16) Flow {
	return h.flow(inject, 0, 0, enterPriority, fmt.Sprintf("mpls,%s,mpls_tc=%d", inPort(h.Dye), class),
		fmt.Sprintf("move:OXM_OF_MPLS_LABEL[0..15]->NXM_OF_IN_PORT[],load:0->NXM_OF_ETH_SRC[40],pop_mpls:0x%04x,resubmit(,0)", etherType))
}

// version is what an echo's flows must know of an IP version.
type version struct {
	etherType, src, dst string
}

// versions are in the order of stained.
var versions = [...]version{
	{"eth_type=0x800", "NXM_OF_IP_SRC[]", "NXM_OF_IP_DST[]"},
	{"eth_type=0x86dd", "NXM_NX_IPV6_SRC[]", "NXM_NX_IPV6_DST[]"},
}

// firstEcho is the index of the first echo request among the matches of stained.
const firstEcho = 2

// expect is what is done with a stained echo request: the reply's flow is looked up,
// with the addresses swapped as the reply has them, and marks the request if it was
// there before; then it is learned, or kept for another while; then, marked or not, the
// request is copied.
func (h Hook) expect(v version) string {
	swap := fmt.Sprintf("push:%[1]s,push:%[2]s,pop:%[1]s,pop:%[2]s", v.src, v.dst)
	learn := fmt.Sprintf("learn(table=%d,idle_timeout=%d,hard_timeout=%d,priority=%d,delete_learned,cookie=%#x,limit=%d,%s,%s=%s,%s=%s,load:%#x->NXM_OF_IP_TOS[],%s)",
		h.Reply, expectSeconds, expectSeconds, expectPriority, learned.cookie(0), MaxExpected,
		v.etherType, v.src, v.dst, v.dst, v.src, h.Stain.TOS, h.Mark.set())
	return fmt.Sprintf("%s,resubmit(,%d),%s,%s,resubmit(,%d),%s,resubmit(,0)", swap, h.Reply, swap, learn, h.Table, h.Mark.set())
}

// unexpected is what is done with a stained echo request where replies are not expected:
// it is copied without MARK, which promises nothing of its reply.
func (h Hook) unexpected() string {
	return fmt.Sprintf("resubmit(,%d),%s,resubmit(,0)", h.Table, h.Mark.set())
}

// dyeReplies returns the flows for echo replies that do not bear the stain: one that
// is expected is given it, and is marked, by a learned flow; any other passes HOOK
// unmarked, where no copy is made of it.
func (h Hook) dyeReplies() (flows []Flow) {
	for _, match := range replies("," + h.Mark.clear()) {
		flows = append(flows, h.flow(dyeing, 0, 0, dyeingPriority, match,
			fmt.Sprintf("resubmit(,%d),resubmit(,%d),%s,resubmit(,0)", h.Reply, h.Table, h.Mark.set())))
	}
	return flows
}

// replies returns the matches of echo replies. Later fragments have neither type nor
// code, which match as 0 (ovs-fields(7)).
func replies(mark string) []string {
	return []string{"icmp" + mark + ",nw_frag=no,icmp_type=0,icmp_code=0", "icmp6" + mark + ",nw_frag=no,icmp_type=129,icmp_code=0"}
}

// dyeAnswers returns the flows that give answers the stain, by port.
func (h Hook) dyeAnswers() (flows []Flow) {
	for _, match := range answers(h.Answers, h.Stain, ","+h.Mark.clear(), h.enters) {
		flows = append(flows, h.flow(dyeing, 0, 0, dyeingPriority, match,
			fmt.Sprintf("load:%#x->NXM_OF_IP_TOS[],%s%s", h.Stain.TOS, h.Mark.set(), h.pass())))
	}
	return flows
}

// answers returns the matches of answers over TCP, a SYN-ACK or a RST-ACK, that come in
// by the given ports. Open vSwitch compares flags before ports (struct flow in its
// flow.h), so other segments are not told apart by their ports.
func answers(ports []uint16, s stain.Stain, mark string, enters func(uint16) bool) (matches []string) {
	ports = slices.Compact(slices.Sorted(slices.Values(ports)))
	ports = slices.DeleteFunc(ports, func(n uint16) bool { return !enters(n) })
	for _, n := range ports[:min(len(ports), MaxAnswers)] {
		matches = append(matches, answersAt(","+inPort(n), s, mark)...)
	}
	return matches
}

// answersAt returns those of answers where at matches; of any port if it is empty.
func answersAt(at string, s stain.Stain, mark string) (matches []string) {
	both := fmt.Sprintf(",tp_src=%d,tp_dst=%d", s.Port, s.Port)
	if s == (stain.Stain{}) {
		both = ""
	}
	for _, proto := range []string{"tcp", "tcp6"} {
		for _, flags := range []string{"+syn+ack", "+rst+ack"} {
			matches = append(matches, proto+mark+at+both+",tcp_flags="+flags)
		}
	}
	return matches
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
		// Requests, then replies that have the ToS already.
		"icmp" + tos + ",icmp_type=8,icmp_code=0", "icmp6" + tos + ",icmp_type=128,icmp_code=0",
		"icmp" + tos + ",icmp_type=0,icmp_code=0", "icmp6" + tos + ",icmp_type=129,icmp_code=0",
	}
}

// copy is the action that sends a copy with kind and the mark in it to the dye port.
// The fields are written low bits first, each from the packet as it came in.
func (h Hook) copy(kind stain.Kind) string {
	return fmt.Sprintf("clone(load:0->NXM_OF_VLAN_TCI[],"+
		"move:NXM_OF_IN_PORT[]->NXM_OF_ETH_DST[0..15],move:NXM_NX_TUN_ID[0..15]->NXM_OF_ETH_DST[16..31],"+
		"load:%#x->NXM_OF_ETH_DST[32..47],move:%s->NXM_OF_ETH_DST[39],"+
		"move:NXM_NX_TUN_IPV4_SRC[]->NXM_OF_ETH_SRC[0..31],move:NXM_NX_TUN_ID[16..23]->NXM_OF_ETH_SRC[32..39],"+
		"load:%#x->NXM_OF_ETH_SRC[40..47],output:%d)",
		stain.CopyDst<<8|uint16(kind), h.Mark.reference(), stain.CopySrc, h.Dye)
}

// Counted returns how many packets the points of a hook that is on a bridge have counted, by
// kind: each stands for a copy. They begin anew with the hook, and go on when its lease is renewed.
func Counted(have []Flow) map[stain.Kind]uint64 {
	counted := make(map[stain.Kind]uint64)
	for _, f := range have {
		if kind := stain.Kind(f.Cookie & 0xff); f.Cookie == point.cookie(kind) {
			counted[kind] += f.Packets
		}
	}
	return counted
}

// Kinds returns the kinds of sampling point that the hook offers, in ascending
// order. A bridge that has patch ports towards instances, and no instance of its
// own, is not one to take samples from instances on.
func (h Hook) Kinds() []stain.Kind { return kinds(h.Ports, h.Dye) }

func kinds(ports []Port, dye uint16) []stain.Kind {
	roles := make(map[Role]bool)
	for _, p := range ports {
		if p.OFPort == 0 || p.OFPort != dye {
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

// Installed returns the place of the hook that is on a bridge, for Choose to keep it
// where an agent finds what another one left; Reply is 0 where there is none. It fails
// if there is no hook, or one of another make.
func Installed(have []Flow) (p Place, ok bool) {
	for _, f := range have {
		switch f.Cookie {
		case enter.cookie(0):
			p.Mark, p.Table = marksAndGoes(f.Actions)
		case expect.cookie(0):
			p.Reply = learnsInto(f.Actions)
		}
	}
	if !usable(p.Reply) {
		p.Reply = 0
	}
	if !usable(p.Table) || p.Mark == (Mark{}) {
		return Place{}, false
	}
	return p, true
}

// marksAndGoes returns the mark that actions set, and the first table that they go to.
func marksAndGoes(actions string) (mark Mark, table uint8) {
	for _, action := range splitList(canonicalActions(actions)) {
		name, args := cutAction(action)
		switch to, ok := strings.CutPrefix(action, "resubmit(,"); {
		case name == "set_field":
			mark = markOf(args)
		case ok && table == 0:
			if n, err := parseUint[uint8](strings.TrimSuffix(to, ")")); err == nil {
				table = n
			}
		}
	}
	return mark, table
}

// learnsInto returns the table that a flow with these actions learns into, 0 if none.
func learnsInto(actions string) uint8 {
	for _, action := range splitList(actions) {
		name, args := cutAction(action)
		if name != "learn" {
			continue
		}
		for _, arg := range splitList(args) {
			if text, ok := strings.CutPrefix(arg, "table="); ok {
				n, _ := parseUint[uint8](text) // 0 if it is none, which no hook has
				return n
			}
		}
	}
	return 0
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
