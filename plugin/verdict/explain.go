package verdict

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// Outcome is the fate of an explained packet on the host that explains it; the numbers are
// the contract's.
type Outcome uint8

// Outcomes.
const (
	Delivered Outcome = iota + 1
	Tunnelled
	Dropped
)

// Explanation is what the flows of a host do with a packet (Explanation of the contract).
type Explanation struct {
	// Point is NeedExplain.Point of the question. It is about the packet as it came to that point's host; of what was
	// seen last elsewhere, or in the other direction, it tells nothing.
	Point int
	// Error says why there is none; the rest is empty then.
	Error   string
	Outcome Outcome
	// Port it leaves by (Delivered; several are separated by commas), or the tunnel port (Tunnelled).
	Port         string
	TunnelRemote string
	TunnelID     uint32
	// Exits are all ways out (Delivered, Tunnelled), of which the above is one: a switch may flood. Empty
	// where the agent does not tell them.
	Exits []Exit
	// Reason is what the switch says of its refusal (Dropped), or of the tunnel (Tunnelled); may be empty.
	Reason string
	// Flow that decided (Dropped); nil where none matched and nothing more is known.
	Flow    *Flow
	Command string
	// Unnamed says why it is not known what OVN has the flow for; LogicalCommand shows what OVN's
	// logical network does with the packet. Both may be empty.
	Unnamed, LogicalCommand string
}

// Exit is one way by which a packet leaves its host. Remote and TunnelID are a tunnel's, and Remote is empty
// where that is none; Reason is what the switch says of it.
type Exit struct {
	Port, Remote string
	TunnelID     uint32
	Reason       string
}

// Flow is one flow of a bridge.
type Flow struct {
	Bridge   string
	Table    uint32
	Priority uint32
	Match    string
	Actions  string
	Cookie   uint64
	// Owner is whose it is; Stage, Logical and ACL are of a flow of OVN's, nil or empty where not known.
	Owner   dyetracev1.FlowOwner
	Stage   string
	Logical *dyetracev1.LogicalFlow
	ACL     *dyetracev1.AccessList
}

func (f *Flow) String() string {
	match := f.Match
	if match == "" {
		match = "any packet"
	}
	return fmt.Sprintf("%s table %d, priority %d, %s (%s)", f.Bridge, f.Table, f.Priority, match, f.whose())
}

// whose says whose the flow is, and of OVN's what for.
func (f *Flow) whose() string {
	cookie := fmt.Sprintf("cookie %#x", f.Cookie)
	switch {
	case f.ACL != nil && f.Logical != nil:
		return fmt.Sprintf("%s, OVN's %s of %s: %s", cookie, f.Stage, f.Logical.GetDatapath(), f.rule())
	case f.Logical != nil:
		return fmt.Sprintf("%s, OVN's %s of %s: %s", cookie, f.Stage, f.Logical.GetDatapath(), f.Logical.GetMatch())
	}
	if name := ownerNames[f.Owner]; name != "" {
		return name + ", " + cookie
	}
	return cookie
}

// logical says that the flow may be made of a logical flow of OVN's, which has a cookie and, since it
// is for a datapath, matches that. What ends a table by itself is none.
func (f *Flow) logical() bool {
	return f.Owner == dyetracev1.FlowOwner_FLOW_OWNER_OVN && f.Cookie != 0 && strings.Contains(f.Match, "metadata=")
}

// rule describes the ACL that the flow was made from.
func (f *Flow) rule() string {
	text := "ACL"
	if f.ACL.GetName() != "" {
		text += fmt.Sprintf(" %q", f.ACL.GetName())
	}
	if f.ACL.GetHint() != "" {
		text += " " + f.ACL.GetHint()
	}
	return fmt.Sprintf("%s, %s, %s", text, f.ACL.GetDirection(), f.Logical.GetMatch())
}

var ownerNames = map[dyetracev1.FlowOwner]string{
	dyetracev1.FlowOwner_FLOW_OWNER_DYETRACE: "Dyetrace's own",
	dyetracev1.FlowOwner_FLOW_OWNER_OVN:      "OVN's",
	dyetracev1.FlowOwner_FLOW_OWNER_NEUTRON:  "Neutron's",
	dyetracev1.FlowOwner_FLOW_OWNER_ANTREA:   "Antrea's",
}

// NeedExplain asks for an explanation: what do the flows of Host do with this packet as it
// enters Bridge? Fields are those of Explain in the contract.
type NeedExplain struct {
	// Point is the index in Path.Points of the last point seen, to be echoed in Explanation.Point.
	Point int
	// Decides is true where the verdict hangs on the answer; otherwise it only refines the cause.
	Decides bool

	Host, Bridge string
	// Port is empty where InPort is known.
	Port           string
	InPort         uint32
	SrcMAC, DstMAC stain.MAC
	Src, Dst       netip.Addr
	TTL            uint8
	// TunID, TunSrc and TunDst are zero where it enters by no tunnel.
	TunID          uint32
	TunSrc, TunDst netip.Addr
	Reply          bool
	Scheme         stain.Scheme
	// Flags are those of TCP as they were seen last, 0 where they are not known.
	Flags uint8
}

// question asks about the packet on the host that saw it last, as it was seen when it came to
// that host. There, and not on the last bridge, because between bridges of a host a packet
// bears what no sample tells, such as the VLAN tag that Neutron's bridges have for a network.
// What came in by a tunnel, and was never seen to, cannot be asked about: nil.
func (j *judgement) question(t *trail) *NeedExplain {
	p := j.Path
	entry := t.entry()
	at := &p.Points[entry]
	sender, receiver := j.ends(at.Direction)
	s, seen := j.arrival(t, entry)
	if !seen && (at.Kind != stain.FromInstance || sender.Port == "") {
		return nil
	}
	q := &NeedExplain{
		Point: t.last, Host: at.Host, Bridge: at.Bridge, InPort: s.InPort,
		SrcMAC: at.SrcMAC, DstMAC: at.DstMAC, Src: p.Src, Dst: p.Dst, TTL: s.TTL,
		Reply: at.Direction == plan.Reply, Scheme: j.scheme(),
	}
	if q.Reply {
		q.Src, q.Dst = p.Dst, p.Src
	}
	last, _ := t.sample(t.last)
	q.Flags = last.Flags
	if q.InPort == 0 && at.Kind == stain.FromInstance {
		q.Port = sender.Port
	}
	if q.TTL == 0 {
		q.TTL = at.TTL
	}
	if s.TunSrc.IsValid() {
		q.TunSrc, q.TunID, q.TunDst = s.TunSrc, s.TunID, local(receiver, at.Bridge, s.InPort)
	} else if t, ok := tunnelAt(receiver, at.Bridge, s.InPort); ok && at.Kind == stain.FromTunnel {
		q.TunSrc, q.TunDst, q.TunID = ends6(t, sender, receiver, s.TunID)
	}
	return q
}

// tunnelAt is the tunnel whose port on a bridge has an OpenFlow number.
func tunnelAt(end *plan.End, bridge string, ofport uint32) (inventory.Tunnel, bool) {
	for _, t := range end.Tunnels {
		if t.Bridge == bridge && t.OFPort == ofport {
			return t, true
		}
	}
	return inventory.Tunnel{}, false
}

// ends6 are the outer addresses of a packet that came in by a tunnel, and its key, where the copy had no
// room for them: those of IPv6 are not in it. They are the tunnel's own, or the only ones that the two
// hosts have.
func ends6(t inventory.Tunnel, sender, receiver *plan.End, key uint32) (src, dst netip.Addr, id uint32) {
	src, dst = t.Remote, t.Local
	only := func(end *plan.End) (a netip.Addr) {
		for _, v := range end.VTEPs {
			switch {
			case !v.Is6():
			case a.IsValid():
				return netip.Addr{} // which of them
			default:
				a = v
			}
		}
		return a
	}
	if !src.IsValid() {
		src = only(sender)
	}
	if !dst.IsValid() {
		dst = only(receiver)
	}
	if !src.Is6() || !dst.Is6() {
		return netip.Addr{}, netip.Addr{}, key // which of them it is, no flow need ask; the key it may
	}
	return src, dst, key
}

// entry returns the point by which the packet came to the host that saw it last, in that direction,
// whether it was seen there or not.
func (t *trail) entry() int { return t.entryOf(t.last) }

// entryOf returns the point by which a packet came to the host of a point, in its direction.
func (t *trail) entryOf(point int) int {
	entry, last := point, &t.points[point]
	for entry > 0 && t.points[entry-1].Host == last.Host && t.points[entry-1].Direction == last.Direction {
		entry--
	}
	return entry
}

// arrival is how the packet came to a host, by the point where it does so. Where its own sample was lost it
// is that of another attempt: they all go the same way.
func (j *judgement) arrival(t *trail, entry int) (Sample, bool) {
	if s, seen := t.sample(entry); seen {
		return s, true
	}
	for i := range j.trails {
		if s, seen := j.trails[i].sample(entry); seen {
			return s, true
		}
	}
	return Sample{}, false
}

// explained is the explanation of what becomes of a packet where it was seen last, at a point; nil if there is none. A sample that came
// after the question was put may be of a later point of the same host.
func (j *judgement) explained(from int) *Explanation {
	x := j.Explanation
	if x == nil || x.Point < 0 || x.Point >= len(j.Path.Points) || j.t.entryOf(x.Point) != j.t.entryOf(from) {
		return nil
	}
	return x
}

// unaskable says why nobody can be asked what the flows do with the packet, since it is not known how it came
// to the host that saw it last; empty if it is.
func (j *judgement) unaskable(l *loss) string {
	if l.last.Kind == stain.ToInstance || j.question(j.t) != nil {
		return ""
	}
	entry := j.t.entry()
	at := &j.Path.Points[entry]
	return firstOf(j.blind(entry).why, fmt.Sprintf("%s/%s did not see it come in", at.Host, at.Bridge))
}

// ends returns who sends and who receives in a direction.
func (e *Evidence) ends(d plan.Direction) (sender, receiver *plan.End) {
	if d == plan.Reply {
		return &e.Path.To, &e.Path.From
	}
	return &e.Path.From, &e.Path.To
}

// local is the tunnel's own address: of the port that it came in by, else of the host if it
// has one only.
func local(end *plan.End, bridge string, ofport uint32) netip.Addr {
	for _, t := range end.Tunnels {
		if t.Bridge == bridge && t.OFPort == ofport && t.Local.IsValid() {
			return t.Local
		}
	}
	if len(end.VTEPs) == 1 {
		return end.VTEPs[0]
	}
	return netip.Addr{}
}

// to says whether the packet was delivered to that port, maybe among others (a flood).
func (x *Explanation) to(port string) bool {
	for p := range strings.SplitSeq(x.Port, ",") {
		if strings.TrimSpace(p) == port && port != "" {
			return true
		}
	}
	return false
}

// toward is the explanation as it is about the receiver of what was lost: of several ways out, as where a
// switch floods, the one that leads there. Only where none does is it the one that the agent chose, and
// wrong.
func (j *judgement) toward(x *Explanation, l *loss) *Explanation {
	if len(x.Exits) < 2 || x.Outcome == Dropped {
		return x
	}
	r := *x
	var ports []string
	for _, e := range x.Exits {
		if e.Remote == "" {
			ports = append(ports, e.Port)
		}
	}
	here := l.last.Host == l.receiver.Host
	there := here && (l.receiver.Port == "" || slices.Contains(ports, l.receiver.Port)) ||
		!here && j.displaced(l.receiver) && l.receiver.Learned.On(l.last.Host, j.Path.VTEPs)
	if there && len(ports) > 0 {
		r.Outcome, r.Port, r.TunnelRemote, r.TunnelID, r.Reason = Delivered, strings.Join(ports, ","), "", 0, ""
	} else if e, ok := j.tunnel(x, l); ok && !here {
		r.Outcome, r.Port, r.TunnelRemote, r.TunnelID, r.Reason = Tunnelled, e.Port, e.Remote, e.TunnelID, e.Reason
	}
	return &r
}

// tunnel is the exit that leads to the receiver; of several the one whose other end takes it. Where routes
// alone have it elsewhere than the inventory, what did not come in at the inventory's host may have come
// in there.
func (j *judgement) tunnel(x *Explanation, l *loss) (best Exit, ok bool) {
	rank := 0
	key := j.key(l)
	byRoutes := !l.guest && j.displaced(l.receiver)
	for _, e := range x.Exits {
		w := j.whereto(e.Remote)
		listed, routed := w.listed(l.receiver), j.routed(w, l.receiver)
		if !w.addr.IsValid() || !listed && !routed {
			continue
		}
		n := 1
		if byRoutes && routed || !byRoutes && listed {
			n += 4
		}
		if key == 0 || e.TunnelID == 0 || e.TunnelID == key {
			n += 2
		}
		if noTunnel(l, named(l.sender.Tunnels, e.Port).Type) == "" {
			n++
		}
		if n > rank {
			rank, best = n, e
		}
	}
	return best, rank > 0
}

// others are the remote addresses of the other tunnels that a flooded packet goes into.
func (x *Explanation) others() string {
	var more []string
	for _, e := range x.Exits {
		if e.Remote != "" && e.Remote != x.TunnelRemote && !slices.Contains(more, e.Remote) {
			more = append(more, e.Remote)
		}
	}
	switch n := len(more); {
	case n == 0:
		return ""
	case n > 3:
		return fmt.Sprintf(", and to %d others", n)
	}
	return ", and to " + strings.Join(more, ", ")
}

// unmatched says that a table had no flow for the packet: Flow says in which.
func (x *Explanation) unmatched() bool {
	return x.Flow != nil && strings.HasSuffix(strings.ToLower(x.Reason), "no match")
}

// refused is what the flow sent the packet to, and the switch did not: CauseTunnel, CausePort, or 0 where
// that is not what happened.
func (x *Explanation) refused() CauseKind {
	if x.Flow == nil || !x.Flow.sends() {
		return 0
	}
	switch reason := strings.ToLower(x.Reason); {
	case strings.Contains(reason, "tunnel"):
		return CauseTunnel
	case strings.Contains(reason, "nonexistent output port"), strings.Contains(reason, "no_fwd"), strings.Contains(reason, "forwarding state"):
		return CausePort
	}
	return 0
}

// by describes what dropped the packet.
func (x *Explanation) by() string {
	switch {
	case x.unmatched():
		return fmt.Sprintf("in table %d of %s, which has no flow for it", x.Flow.Table, x.Flow.Bridge)
	case x.Reason != "":
		return fmt.Sprintf("by %s: %s", x.Flow, x.Reason)
	}
	return fmt.Sprintf("by %s", x.Flow)
}

// sends says that a flow's actions send packets to ports: what it does not pass on it does not deny.
func (f *Flow) sends() bool {
	for action := range strings.SplitSeq(f.Actions, ",") {
		switch name, _, _ := strings.Cut(strings.TrimSpace(action), ":"); name {
		case "output", "NORMAL", "FLOOD", "ALL", "IN_PORT", "LOCAL", "enqueue", "group":
			return true
		}
	}
	return false
}

// Tables of the Neutron agent's Open vSwitch firewall where a packet that no rule allows ends
// (neutron/plugins/ml2/drivers/openvswitch/agent/common/constants.py): RULES_EGRESS_TABLE,
// RULES_INGRESS_TABLE, and DROPPED_TRAFFIC_TABLE, where newer agents of Neutron's send it to be
// logged. Tables 71 and 81 are not among them: they stop spoofed addresses, which no rule of the
// tenant's allows or denies. They hand those to table 93, too, which is why our agents name the
// flow that did so; one of an older version names table 93.
const (
	rulesEgress  = 72
	rulesIngress = 82
	dropped      = 93
)

// Policy says whether a flow that dropped a packet is a security rule, on the bridge where
// instances are attached. A security group only ever allows: what it does not allow falls
// through to flows that match no more than the port, its network and the connection's state,
// or nothing at all. A drop that names addresses or ports of the packet is somebody else's,
// though it sits in the same table; and where another controller uses these table numbers, its
// flows do not look like that either.
func Policy(f *Flow, instances string) bool {
	switch {
	case f == nil || f.Bridge != instances || f.sends():
		return false
	case f.Owner == dyetracev1.FlowOwner_FLOW_OWNER_OVN:
		return f.ACL != nil || deniedByLog(f.Actions)
	}
	if f.Table != rulesEgress && f.Table != rulesIngress && f.Table != dropped {
		return false
	}
	for field := range strings.SplitSeq(f.Match, ",") {
		switch name, _, _ := strings.Cut(strings.TrimSpace(field), "="); name {
		case "", "ip", "ipv6", "tcp", "tcp6", "udp", "udp6", "icmp", "icmp6", "in_port",
			"reg5", "reg6", "reg_port", "reg_net", "ct_state", "ct_zone", "ct_mark":
		default:
			return false
		}
	}
	return f.Match != "" || f.Priority == 0
}

// deniedByLog says that a flow of OVN's logs what an ACL denies: such a flow tells by itself, without
// the southbound database. Its actions are a call of ovn-controller with opcode 7, log, and a verdict,
// 1 for drop and 2 for reject (OVN 23.03, lib/actions.h ACTION_OPCODE_LOG, lib/acl-log.h).
func deniedByLog(actions string) bool {
	return strings.Contains(actions, "controller(userdata=00.00.00.07.00.00.00.00.01.") ||
		strings.Contains(actions, "controller(userdata=00.00.00.07.00.00.00.00.02.")
}
