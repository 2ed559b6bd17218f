package verdict

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// loss is a packet that was seen at from, and provably not at to.
type loss struct {
	from, to int
	last     *plan.Expected // Points[from]
	next     *plan.Expected // Points[to]
	// guest says that the guest lies between; answers that to is where its answer should first
	// have been seen.
	guest, answers bool
	// hands says that the receiving instance's port lies between.
	hands bool
	// sender and receiver of what was lost; name is the receiving instance's.
	sender, receiver *plan.End
	name             string
	mayBeRemembered  bool         // see Result
	bySilence        bool         // see Result
	x                *Explanation // of where it was seen last, without error; nil if none

	asks *NeedUnderlay // what would tell more
	u    *Underlay     // what told
}

// finding is what a rule makes of a loss.
type finding struct {
	verdict Verdict
	host    string
	kind    CauseKind
	cause   string
	to      int // narrows the segment; 0 leaves it
}

// lost judges a probe that was seen up to one point and provably not at a later one, to.
func (j *judgement) lost(to int) Result {
	l := j.loss(to)
	r := Result{}
	j.replay(&r, l.from)
	f := j.find(&l)
	r.Verdict, r.Host, r.Kind, r.MayBeRemembered, r.bySilence = f.verdict, f.host, f.kind, l.mayBeRemembered, l.bySilence
	r.Segment = j.segment(l.from, l.to)
	if f.to > l.from && f.to < l.to {
		r.Segment = j.segment(l.from, f.to)
	}
	if l.x != nil && l.x.Outcome == Dropped {
		r.Flow = l.x.Flow
	}
	if _, wrong := j.wrongKey(&l); wrong && r.Verdict == Faulty {
		r.Host, r.Kind = l.sender.Host, CauseVNI // the sender set the key
	} else if j.t.looped && r.Verdict == Faulty {
		r.Kind = CauseLoop
	}
	r.Need = j.need(&l)
	r.NeedUnderlay, r.Underlay = l.asks, l.u
	r.Cause = strings.Join(append([]string{f.cause}, j.lossNotes(&l)...), "; ")
	return r
}

// gap says that the host which saw it last lacks the port that joins its bridges, which lies on the
// way that was lost; empty if that is not so.
func (j *judgement) gap(l *loss) string {
	switch {
	case l.sender.Host == l.receiver.Host:
	case l.last.Host == l.sender.Host && l.last.Bridge == l.sender.Bridge:
		return l.sender.Gap
	case l.last.Host == l.receiver.Host && l.last.Bridge != l.receiver.Bridge:
		return l.receiver.Gap
	}
	return ""
}

// wrongKey is the tunnel key under which the packet came to the point that saw it last, if the
// network that it travels in has another.
func (j *judgement) wrongKey(l *loss) (key uint32, wrong bool) {
	s, _ := j.t.sample(l.from)
	return s.TunID, s.TunID != 0 && l.last.TunID != 0 && s.TunID != l.last.TunID
}

// loss is what was seen last, and is missing at to.
func (j *judgement) loss(to int) loss {
	p := j.Path
	l := loss{from: j.t.last, to: to}
	l.last, l.next = &p.Points[l.from], &p.Points[l.to]
	l.guest = l.last.Direction == plan.Forward && l.next.Direction == plan.Reply
	l.answers = l.guest && l.next.Kind == stain.FromInstance && l.next.Host == p.To.Host
	l.sender, l.receiver = j.ends(l.last.Direction)
	l.name = p.Pair.Dst.Name
	if l.last.Direction == plan.Reply {
		l.name = p.Pair.Src.Name
	}
	l.hands = l.guest || l.next.Kind == stain.ToInstance && l.next.Host == l.receiver.Host
	x := j.explained(l.from)
	if x != nil && x.Error == "" && l.last.Kind != stain.ToInstance && !j.refuted(x, l.from) &&
		(x.Outcome == Delivered || j.astray(&l).none()) {
		l.x = j.toward(x, &l)
	}
	return l
}

// astray says that the packet left for an instance by another port than the one that lies within
// the loss; none if it was not seen so. Flows that now drop it, or send it elsewhere, are not what
// it met then.
func (j *judgement) astray(l *loss) doubt {
	for i := l.from + 1; i <= l.to; i++ {
		if why := j.beside(j.t.Attempt, i); !why.none() {
			return why
		}
	}
	return doubt{}
}

// refuted says that the packet was seen beyond the bridge that is said to drop it: the flows have
// changed since, or know what the explanation does not.
func (j *judgement) refuted(x *Explanation, from int) bool {
	if x.Outcome != Dropped || x.Flow == nil || j.Path.Points[from].Bridge == x.Flow.Bridge {
		return false
	}
	for i := j.t.entry(); i < from; i++ {
		if j.Path.Points[i].Bridge == x.Flow.Bridge {
			return true
		}
	}
	return false
}

// need asks for an explanation if there is none yet and somebody could give one.
func (j *judgement) need(l *loss) *NeedExplain {
	if j.explained(l.from) != nil {
		return nil
	}
	if _, gone := j.Gone[l.last.Host]; gone {
		return nil
	}
	if l.last.Kind == stain.ToInstance {
		return nil // it was seen on its way to the guest: no flow is left to be asked
	}
	q := j.question(j.t)
	if q == nil {
		return nil
	}
	q.Decides = (l.guest || j.rules(l) || j.maybeElsewhere(l)) && !l.noPort()
	return q
}

// rules says that the packet may have been lost on a bridge that has security rules.
func (j *judgement) rules(l *loss) bool {
	bridge := j.instancesBridge(l.last.Host)
	for i := l.from; i < l.to; i++ {
		if p := &j.Path.Points[i]; p.Host == l.last.Host && p.Bridge == bridge {
			return true
		}
	}
	return false
}

// noPort says that what lacks is the port of the instance on the host that saw the packet last.
func (l *loss) noPort() bool {
	return l.hands && l.receiver.Absent != "" && l.last.Host == l.receiver.Host
}

// port is the first point on what was lost that a packet passes at the receiving instance's port, to it or from it.
func (j *judgement) port(l *loss) int {
	for i := l.from + 1; i < l.to; i++ {
		pt := &j.Path.Points[i]
		if pt.Host == l.receiver.Host && (pt.Kind == stain.ToInstance || pt.Kind == stain.FromInstance) {
			return i
		}
	}
	return l.to
}

// find applies the rules, the strongest evidence first.
func (j *judgement) find(l *loss) finding {
	switch {
	case l.guest && l.last.Kind == stain.ToInstance && l.answers:
		return j.unanswered(l, "seen leaving by its port")
	case l.noPort():
		kind, cause := j.portMissing(l)
		return finding{Faulty, l.last.Host, kind, cause, j.port(l)} // attested or not, it is not there
	case l.x != nil && l.x.Outcome == Dropped:
		return j.dropped(l)
	case l.receiver.LinkDown && l.last.Host == l.receiver.Host && (l.answers || l.hands && !l.guest):
		return j.unanswered(l, "") // before what else the flows say: nothing leaves by a port that is down
	case !l.guest && j.maybeElsewhere(l):
		return j.elsewhere(l)
	case !l.guest:
		return j.between(l)
	case l.x != nil && l.x.Outcome == Delivered:
		return j.delivered(l)
	case l.x != nil && l.x.Outcome == Tunnelled:
		return j.tunnelled(l)
	}
	return j.undecided(l)
}

func (j *judgement) undecided(l *loss) finding {
	why, kind := j.unexplained(l), CauseUnexplained
	if l.last.Kind == stain.ToInstance {
		why = fmt.Sprintf("it left for %s, and whether that answered was not seen", l.name)
	}
	if _, gone := j.Gone[l.last.Host]; gone && l.last.Kind != stain.ToInstance {
		why, kind = "its agent cannot be asked what the flows do with it", CauseAgent
	}
	reasons := j.blinds(l.from+1, l.to)
	if l.receiver.Absent != "" {
		reasons = append(reasons, doubt{CausePort, l.receiver.Absent})
	}
	if len(reasons) > 0 {
		why += "; " + few(reasons)
		if l.last.Kind == stain.ToInstance {
			kind = reasons[0].kind
		}
	}
	cause := fmt.Sprintf("lost after %s, by the network or by %s itself: %s", l.last, j.Path.Pair.Dst.Name, why)
	return finding{Unknown, l.last.Host, kind, cause, 0}
}

// unexplained says why there is no explanation that counts.
func (j *judgement) unexplained(l *loss) string {
	switch x := j.explained(l.from); {
	case x == nil:
		return "what its flows do with it was not explained" + because(j.unaskable(l))
	case x.Error != "":
		return "what its flows do with it could not be explained: " + x.Error
	case !j.astray(l).none():
		return "what its flows, asked afterwards, do with it is not what they did"
	default:
		return fmt.Sprintf("its flows, asked afterwards, drop it before (%s), so they know more than was asked, or have changed", x.Flow)
	}
}

func (j *judgement) unanswered(l *loss, how string) finding {
	port := firstOf(l.receiver.Port, "its port")
	kind, cause := CauseGuestSilent, fmt.Sprintf("delivered to %s of %s, but %s does not answer", port, l.receiver.Host, l.name)
	if j.scheme() == stain.ICMP {
		cause += " the echo request"
	}
	switch {
	case l.receiver.LinkDown:
		kind, cause = CauseGuestDown, off(l.receiver, l.name)
	case how != "":
		cause += " (" + how + ")"
	}
	return finding{Silent, l.receiver.Host, kind, cause, 0}
}

// dropped: the flows of the host that saw it last drop this packet.
func (j *judgement) dropped(l *loss) finding {
	f := finding{verdict: Faulty, host: l.last.Host, kind: CauseFlow}
	if j.gap(l) != "" && (l.x.Flow == nil || l.x.Flow.Actions != "drop") {
		f.kind = CausePort // the flows send it to a port that is not there
	}
	if kind := l.x.refused(); kind != 0 {
		f.kind = kind
	}
	if l.x.Flow == nil {
		f.cause = fmt.Sprintf("%s: dropped after %s", f.host, l.last)
		if l.x.Reason != "" {
			f.cause += ": " + l.x.Reason
		}
		if j.gap(l) != "" {
			f.to = l.from + 1 // the next bridge is what it could not get to
		}
		return f
	}
	f.to = j.after(l, l.x.Flow.Bridge)
	if f.to > l.to {
		// It provably did not come as far as the bridge that drops it now.
		f = j.between(l)
		f.cause += fmt.Sprintf("; further on, %s drops it now", l.x.Flow)
		return f
	}
	f.cause = fmt.Sprintf("%s: dropped %s", f.host, l.x.by())
	l.mayBeRemembered = strings.Contains(l.x.Flow.Match, "+inv") || strings.Contains(l.x.Flow.Logical.GetMatch(), "ct.inv") // of no connection, as far as what remembers an earlier one can tell
	switch {
	case !l.x.unmatched() && Policy(l.x.Flow, j.instancesBridge(l.last.Host)):
		f.verdict, f.kind = PolicyDrop, CauseSecurityRule
		f.cause = fmt.Sprintf("%s: denied by a security rule: %s", f.host, l.x.Flow)
		if l.x.Unnamed != "" { // its actions alone told
			f.cause += fmt.Sprintf("; which one is not known: %s", l.x.Unnamed)
		}
	case l.x.Unnamed != "" && l.x.Flow.logical():
		// It may be an ACL's: policy, or a fault, is not for us to guess.
		f.verdict, f.kind = Unknown, CauseUnexplained
		f.cause += fmt.Sprintf("; whether that is a rule or a fault is not known: %s", l.x.Unnamed)
	}
	if key := j.unmapped(l); key != 0 {
		f.kind = CauseVNI
		f.cause += fmt.Sprintf("; no flow there takes key %d of network %s", key, j.network(l))
	}
	return f
}

// unmapped is the key under which a packet came out of a tunnel, as it should, to a bridge that has
// no flow for it: it went by the last resort of a later table, of a bridge that serves tunnels only.
// 0 if that is not so.
func (j *judgement) unmapped(l *loss) uint32 {
	s, _ := j.t.sample(l.from)
	f := l.x.Flow
	if l.last.Host != l.receiver.Host || l.last.Bridge == l.receiver.Bridge || f.Bridge != l.last.Bridge ||
		f.Match != "" || f.Priority != 0 || f.Table == 0 || f.Actions != "drop" || s.TunID != l.last.TunID {
		return 0
	}
	return s.TunID
}

// instancesBridge is where the pair's instances are attached on a host; empty if none is there.
func (j *judgement) instancesBridge(host string) string {
	switch host {
	case j.Path.From.Host:
		return j.Path.From.Bridge
	case j.Path.To.Host:
		return j.Path.To.Bridge
	}
	return ""
}

// after returns the point that follows a bridge of the host which saw the packet last: there
// it should have been seen next, had that bridge not dropped it. 0 if the bridge is not on the way.
func (j *judgement) after(l *loss, bridge string) int {
	for i := l.from; i+1 < len(j.Path.Points); i++ {
		p := &j.Path.Points[i]
		if p.Host != l.last.Host || p.Direction != l.last.Direction {
			break
		}
		if p.Bridge == bridge {
			return i + 1
		}
	}
	return 0
}

// delivered: the flows hand it to a port of the host that saw it last; the guest lies in the segment.
func (j *judgement) delivered(l *loss) finding {
	switch {
	case l.last.Host != l.receiver.Host, !l.answers, l.receiver.Port == "", l.receiver.Blind != "":
		reasons := j.blinds(l.from+1, l.to)
		if d := j.unplacedEnd(l.receiver); !d.none() {
			reasons = append(reasons, d)
		}
		cause := fmt.Sprintf("lost after %s; its flows deliver it to %s, which tells too little", l.last, l.x.Port)
		return finding{Unknown, l.last.Host, sortOf(reasons, CauseUnseen), cause + because(few(reasons)), 0}
	case l.x.to(l.receiver.Port) && !j.astray(l).none():
		return j.undecided(l) // delivered now, but then?
	case l.x.to(l.receiver.Port):
		return j.unanswered(l, "")
	}
	return finding{Faulty, l.last.Host, CauseMisdirected, fmt.Sprintf("%s delivers it to %s, but %s is at %s",
		l.last.Host, l.x.Port, l.name, l.receiver.Port), 0}
}

// tunnelled: the flows send it into a tunnel; the guest lies in the segment.
func (j *judgement) tunnelled(l *loss) finding {
	here := l.last.Host == l.receiver.Host
	if !here || j.routed(j.whereto(l.x.TunnelRemote), l.receiver) {
		if f, ok := j.astrayBy(l); ok {
			if j.owner(l.x.TunnelRemote) == "" {
				f.verdict, f.to, f.kind = Unknown, 0, sortOf(j.blinds(l.from+1, l.to), CauseUnseen)
				f.cause += "; what becomes of it there is not known" + because(few(j.blinds(l.from+1, l.to)))
			}
			return f
		}
	}
	switch owner := j.owner(l.x.TunnelRemote); {
	case here && l.answers:
		return j.sentAway(l)
	case owner != "" && owner != l.receiver.Host:
		return finding{Faulty, l.last.Host, leads(owner), j.wrongTunnel(l, owner), j.landing(l)}
	}
	cause := fmt.Sprintf("lost after %s; its flows send it into tunnel %s (to %s), and what became of it there is not known",
		l.last, l.x.Port, l.x.TunnelRemote)
	reasons := j.blinds(l.from+1, l.to)
	return finding{Unknown, l.last.Host, sortOf(reasons, CauseUnseen), cause + because(few(reasons)), 0}
}

// sentAway: the flows of the receiving instance's host send it into a tunnel.
func (j *judgement) sentAway(l *loss) finding {
	return finding{Faulty, l.last.Host, leads(j.owner(l.x.TunnelRemote)), fmt.Sprintf("%s sends it into tunnel %s (to %s), but %s is here, at %s",
		l.last.Host, l.x.Port, l.x.TunnelRemote, l.name, firstOf(l.receiver.Port, l.receiver.Bridge)), 0}
}

// sortOf is that of the first reason, or of none.
func sortOf(reasons []doubt, none CauseKind) CauseKind {
	if len(reasons) == 0 {
		return none
	}
	return reasons[0].kind
}

// leads is the sort of a tunnel that leads to another host than it should: to one that we know, where
// the instance may have been, or to nobody.
func leads(owner string) CauseKind {
	if owner == "" {
		return CauseTunnel
	}
	return CauseStaleVTEP
}

// owner is the host whose tunnel address this is; empty where not known.
func (j *judgement) owner(remote string) string {
	a, err := netip.ParseAddr(remote)
	if err != nil {
		return ""
	}
	return j.Path.VTEPs[a]
}

// landing is the first point of the segment on another host than the last seen; 0 if none.
func (j *judgement) landing(l *loss) int {
	for i := l.from + 1; i <= l.to; i++ {
		if j.Path.Points[i].Host != l.last.Host {
			return i
		}
	}
	return 0
}

func (j *judgement) wrongTunnel(l *loss, owner string) string {
	whose := "no host's tunnel address that we know"
	if owner != "" {
		whose = owner
	}
	return fmt.Sprintf("%s sends it to %s (%s)%s, but %s is on %s%s: stale or wrong tunnel",
		l.last.Host, l.x.TunnelRemote, whose, l.x.others(), l.name, l.receiver.Host, addresses(l.receiver.VTEPs))
}

func addresses(vteps []netip.Addr) string {
	if len(vteps) == 0 {
		return ""
	}
	texts := make([]string, len(vteps))
	for i, a := range vteps {
		texts[i] = a.String()
	}
	return " (" + strings.Join(texts, ", ") + ")"
}

// between: lost by the network, whatever the flows say now; they only tell what to look at.
func (j *judgement) between(l *loss) finding {
	f := finding{verdict: Faulty, host: l.last.Host, kind: CauseSwitch}
	crosses := l.next.Host != l.last.Host
	switch {
	case l.x != nil && l.x.Outcome == Tunnelled && crosses:
		f = j.inTunnel(l)
	case l.x != nil && l.x.Outcome == Tunnelled && l.last.Host == l.receiver.Host:
		f = j.sentAway(l)
	case l.x != nil && l.x.Outcome == Tunnelled:
		f = j.passes(l, fmt.Sprintf("send it into tunnel %s (to %s)", l.x.Port, l.x.TunnelRemote))
	case l.x != nil && l.x.Outcome == Delivered && l.last.Host != l.receiver.Host:
		f.kind = CauseMisdirected
		f.cause = fmt.Sprintf("%s delivers it to its own port %s, but %s is on %s", l.last.Host, l.x.Port, l.name, l.receiver.Host)
	case l.x != nil && l.x.Outcome == Delivered:
		f = j.passes(l, "deliver it to "+l.x.Port)
	case crosses:
		f.host, f.kind, f.cause = j.unexplainedTunnel(l)
	default:
		f.cause = fmt.Sprintf("no sample after %s: lost on %s before %s", l.last, l.last.Host, l.goal())
	}
	unexplained := l.x == nil && f.kind != CausePort && f.kind != CauseTunnel
	if unexplained {
		l.mayBeRemembered = l.last.Kind != stain.ToTunnel // nobody said that flows drop it
	}
	switch {
	case unexplained && j.rules(l):
		f.verdict, f.kind = Unknown, CauseUnexplained
		f.cause += "; whether by a fault or by a security rule is not known: " + j.unexplained(l)
	case unexplained && j.explained(l.from) != nil:
		f.cause += "; " + j.unexplained(l)
	}
	if !l.narrow() && f.to == 0 {
		f.cause += because(few(j.blinds(l.from+1, l.to)))
	}
	return f
}

// passes: a switch lost it, though its flows pass it now.
func (j *judgement) passes(l *loss, now string) finding {
	l.mayBeRemembered = true
	return finding{verdict: Faulty, host: l.last.Host, kind: CauseSwitch,
		cause: fmt.Sprintf("no sample after %s: lost on %s before %s, though its flows now %s", l.last, l.last.Host, l.goal(), now)}
}

// goal is what it did not come to, on the host that saw it last.
func (l *loss) goal() string {
	if l.next.Kind == stain.ToInstance {
		return firstOf(l.receiver.Port, "the port of "+l.name)
	}
	return l.next.Bridge
}

func (j *judgement) unexplainedTunnel(l *loss) (host string, kind CauseKind, cause string) {
	route := fmt.Sprintf("in the tunnel %s → %s", l.last.Host, l.next.Host)
	if s, r := l.sender.VTEPs, l.receiver.VTEPs; len(s) == 1 && len(r) == 1 {
		route += fmt.Sprintf(" (%s → %s)", s[0], r[0])
	}
	if !l.narrow() {
		route = fmt.Sprintf("%s or beside it, none at %s either", route, l.next)
	}
	cause = fmt.Sprintf("no sample after %s: lost %s", l.last, route)
	if missing := noTunnel(l, ""); missing != "" {
		return l.receiver.Host, CauseTunnel, cause + "; " + missing
	}
	if j.gap(l) != "" {
		return l.last.Host, CausePort, cause
	}
	return l.last.Host, CauseBetweenHosts, cause
}

// narrow says that no other point lies in the segment.
func (l *loss) narrow() bool { return l.to == l.from+1 }

// inTunnel: the sender's flows send it into a tunnel and the receiver's host does not see it.
// Which end is at fault is told by what each end is configured to do. Only a tunnel to another
// host narrows the segment: what goes to the right one may be lost anywhere up to where it is
// provably missing.
func (j *judgement) inTunnel(l *loss) finding {
	sender, receiver := l.last.Host, l.receiver.Host
	remote, err := netip.ParseAddr(l.x.TunnelRemote)
	owner := j.owner(l.x.TunnelRemote)
	right := owner == receiver
	for _, a := range l.receiver.VTEPs {
		right = right || a == remote
	}
	if f, ok := j.astrayBy(l); ok {
		return f
	}
	if f, ok := j.outdated(l); ok {
		return f
	}
	if err == nil && len(l.receiver.VTEPs) > 0 && !right {
		return finding{Faulty, sender, leads(owner), j.wrongTunnel(l, owner), j.landing(l)}
	}
	// Where several things are wrong, what comes first on the way is why it was lost.
	if missing := noTunnel(l, named(l.sender.Tunnels, l.x.Port).Type); missing != "" {
		return j.unless(l, finding{Faulty, receiver, CauseTunnel, missing, 0})
	}
	if key := j.key(l); key != 0 && l.x.TunnelID != 0 && l.x.TunnelID != key {
		return j.unless(l, finding{Faulty, sender, CauseVNI, fmt.Sprintf("%s sends it to %s (%s) with tunnel key %d, but the key of network %s is %d",
			sender, receiver, l.x.TunnelRemote, l.x.TunnelID, j.network(l), key), 0})
	}
	where := fmt.Sprintf("where it does not come in: lost in the underlay, or at %s's end of the tunnel", receiver)
	if !l.narrow() {
		where = fmt.Sprintf("but %s did not see it: lost on the way", l.next)
	}
	return j.inUnderlay(l, fmt.Sprintf("%s, %s", l.goesRight(), where))
}

// unless is what the two ends' configuration says of a loss in the tunnel, unless nothing at all passes
// the underlay: then that is the cause, and the other is said besides.
func (j *judgement) unless(l *loss, f finding) finding {
	u := j.inUnderlay(l, "")
	if l.u != nil {
		if what, _ := l.u.small(); what == noWay {
			u.cause += "; besides, " + f.cause
			return u
		}
		l.u = nil // what it showed is not why
	}
	l.mayBeRemembered = false // it says so whatever is remembered
	return f
}

// key is the tunnel key of the network that the packet travels in once routed; 0 if not known.
func (j *judgement) key(l *loss) uint32 {
	for i := l.from; i <= l.to; i++ {
		if p := &j.Path.Points[i]; p.Direction == l.last.Direction && (p.Kind == stain.FromTunnel || p.Kind == stain.ToTunnel) {
			return p.TunID
		}
	}
	return 0
}

// network is the one that the packet travels in once routed.
func (j *judgement) network(l *loss) string {
	if l.last.Direction == plan.Reply {
		return j.Path.Pair.Src.Network
	}
	return j.Path.Pair.Dst.Network
}

func named(tunnels []inventory.Tunnel, port string) inventory.Tunnel {
	for _, t := range tunnels {
		if t.Port == port {
			return t
		}
	}
	return inventory.Tunnel{}
}

// noTunnel says that the receiving host takes tunnel packets from certain addresses only, and
// the sender's is not among them (ovs-vswitchd.conf.db(5), options:remote_ip). typ bounds it to
// one kind of tunnel; empty is any. Empty if a tunnel port takes it, or we cannot tell.
func noTunnel(l *loss, typ string) string {
	some := false
	for _, t := range l.receiver.Tunnels {
		if typ != "" && t.Type != typ {
			continue
		}
		some = true
		if !t.Remote.IsValid() {
			return "" // remote_ip=flow
		}
		for _, a := range l.sender.VTEPs {
			if t.Remote == a {
				return ""
			}
		}
	}
	if !some || len(l.sender.VTEPs) == 0 {
		return ""
	}
	if typ != "" {
		typ += " "
	}
	return fmt.Sprintf("%s has no %stunnel port from %s%s", l.receiver.Host, typ, l.sender.Host, addresses(l.sender.VTEPs))
}
