package verdict

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/dyetrace/dyetrace/plugin/plan"
)

// staleVTEP begins a cause where a packet went, or was answered from, where the instance is not.
const staleVTEP = "stale VTEP: "

// whereto is where a packet went, or an answer came from.
type whereto struct {
	addr netip.Addr // zero where only the host is known
	host string     // whose it is; empty where nobody's that we know
}

func (j *judgement) whereto(remote string) whereto {
	a, err := netip.ParseAddr(remote)
	if err != nil {
		return whereto{}
	}
	return whereto{a, j.Path.VTEPs[a]}
}

// listed says that the inventory has the instance there.
func (w whereto) listed(end *plan.End) bool {
	return w.host != "" && w.host == end.Host || slices.Contains(end.VTEPs, w.addr)
}

// routed says that routes lead there.
func (j *judgement) routed(w whereto, end *plan.End) bool {
	return w.addr.IsValid() && slices.Contains(end.Learned.VTEPs, w.addr) || end.Learned.On(w.host, j.Path.VTEPs)
}

// told says that routes tell where the instance is, or that it is nowhere.
func told(end *plan.End) bool {
	return end.Learned.State == plan.Present || end.Learned.State == plan.Absent
}

// displaced says that routes lead to another host than the inventory's, and that no agent speaks
// for that: what is missing there may have gone where it should.
func (j *judgement) displaced(end *plan.End) bool {
	return !j.confirmed(end) && end.Contradicted(j.Path.VTEPs)
}

// confirmed says that an agent speaks for the inventory, and that it did all the while.
func (j *judgement) confirmed(end *plan.End) bool {
	_, gone := j.Gone[end.Host]
	return end.Confirmed && !gone
}

// speak notes that a cause tells of routes to the end already.
func (j *judgement) speak(end *plan.End) { j.spoken[j.which(end)] = true }

func (j *judgement) which(end *plan.End) int {
	if end == &j.Path.To {
		return 1
	}
	return 0
}

// weigh words what inventory and routes, which tell, say of a packet for name that went to w: lead
// says that it went there. wrong says that w is; else it may be the inventory that is, or the route.
func (j *judgement) weigh(lead string, w whereto, end *plan.End, name string) (cause string, wrong bool) {
	j.speak(end)
	place, evpn := end.Place(), j.Path.EVPN(end)
	apart := end.Contradicted(j.Path.VTEPs)
	switch {
	case end.Learned.State == plan.Absent:
		return fmt.Sprintf("%s, but %s is on %s; EVPN has no route for it", lead, name, place), true
	case !j.routed(w, end) && apart:
		return fmt.Sprintf("%s, but the inventory says that %s is on %s, and EVPN says %s", lead, name, place, evpn), true
	case !j.routed(w, end):
		return fmt.Sprintf("%s, but %s is on %s, and EVPN says %s", lead, name, place, evpn), true
	case !apart:
		return fmt.Sprintf("%s, and so EVPN says: %s", lead, evpn), false
	case j.confirmed(end) && end.Learned.Prefix.IsValid():
		return fmt.Sprintf("%s, as EVPN says of its prefix (%s), but %s is on %s, whose agent reports %s: it has no route of its own",
			lead, evpn, name, place, firstOf(end.Port, "its port")), true
	case j.confirmed(end):
		return fmt.Sprintf("%s, as EVPN still says (%s), but %s is on %s, whose agent reports %s: the route is stale",
			lead, evpn, name, place, firstOf(end.Port, "its port")), true
	}
	doubt := "a route was not withdrawn"
	if end.Learned.Prefix.IsValid() {
		doubt = "that is a router on the way"
	}
	return fmt.Sprintf("%s, as EVPN says (%s), but the inventory says that %s is on %s: it is out of date, or %s",
		lead, evpn, name, place, doubt), false
}

// sends is the lead of weigh for an explained tunnel.
func (j *judgement) sends(l *loss) string {
	lead := fmt.Sprintf("%s sends it to %s", l.last.Host, l.x.TunnelRemote)
	switch w := j.whereto(l.x.TunnelRemote); {
	case w.host != "":
		lead += fmt.Sprintf(" (%s)", w.host)
	case !j.routed(w, l.receiver):
		lead += " (no host's tunnel address that we know)"
	}
	return lead
}

// astrayBy judges a tunnel that leads to another place than the inventory's; ok is false where routes
// do not tell, or it is the inventory's. What was lost on the way to the inventory's host is a
// fault only if it was for there.
func (j *judgement) astrayBy(l *loss) (f finding, ok bool) {
	w, end := j.whereto(l.x.TunnelRemote), l.receiver
	apart := end.Contradicted(j.Path.VTEPs)
	switch {
	case !told(end) || !w.addr.IsValid() || w.listed(end):
		return finding{}, false
	case j.routed(w, end) && !apart:
		return finding{}, false // as it should: the inventory does not know the address
	case end.Learned.State == plan.Absent && len(end.VTEPs) == 0 && w.host == "":
		return finding{}, false // nobody says another
	}
	cause, wrong := j.weigh(j.sends(l), w, end, l.name)
	if !wrong {
		return finding{Unknown, l.last.Host, CauseInventory, cause, j.landing(l)}, true
	}
	return finding{Faulty, l.last.Host, CauseStaleVTEP, staleVTEP + cause, j.landing(l)}, true
}

// outdated judges a tunnel that leads to the inventory's host, where the packet did not come in, if
// only routes know better. Wherever the instance is, the packet did not come there: here it was not
// seen, and there it was not sent. So it must have had its time, and more than one be lost. A prefix is too little for that: the
// inventory may be right.
func (j *judgement) outdated(l *loss) (f finding, ok bool) {
	w, end := j.whereto(l.x.TunnelRemote), l.receiver
	if !w.listed(end) || !j.displaced(end) || j.routed(w, end) || end.Learned.Prefix.IsValid() {
		return finding{}, false
	}
	j.speak(end)
	l.bySilence = true
	return finding{Faulty, l.last.Host, CauseStaleVTEP, fmt.Sprintf("%s%s, where the inventory has %s, but EVPN says %s; nor does it come in at %s",
		staleVTEP, j.sends(l), l.name, j.Path.EVPN(end), l.next), 0}, true
}

// maybeElsewhere says that the packet may have gone where it should, though it did not come to
// where the inventory has the instance: routes lead elsewhere, and what the sender's flows do with
// it is not known, or they deliver it on their own host, where routes have it.
func (j *judgement) maybeElsewhere(l *loss) bool {
	if l.last.Host != l.sender.Host || l.receiver.Host == l.sender.Host || !j.displaced(l.receiver) {
		return false
	}
	local := l.receiver.Learned.On(l.last.Host, j.Path.VTEPs)
	switch {
	case l.x == nil:
		return local || l.next.Host != l.last.Host
	case l.x.Outcome == Delivered:
		return local
	}
	return false
}

func (j *judgement) elsewhere(l *loss) finding {
	j.speak(l.receiver)
	cause := fmt.Sprintf("no sample after %s; the inventory says that %s is on %s, but EVPN says %s", l.last, l.name, l.receiver.Place(), j.Path.EVPN(l.receiver))
	if l.x != nil {
		cause += fmt.Sprintf("; its flows deliver it to %s of %s", l.x.Port, l.last.Host)
	}
	return finding{Unknown, l.last.Host, CauseInventory, cause, 0}
}

// portMissing words that it came to a host which has no port for the instance.
func (j *judgement) portMissing(l *loss) (kind CauseKind, cause string) {
	end := l.receiver
	if l.sender.Host == end.Host || !end.Contradicted(j.Path.VTEPs) || end.Learned.Prefix.IsValid() || end.Learned.On(end.Host, j.Path.VTEPs) {
		return CausePort, end.Absent
	}
	j.speak(end)
	return CauseStaleVTEP, fmt.Sprintf("%s%s sent it to %s, but %s, and EVPN says %s", staleVTEP, l.sender.Host, end.Place(), end.Absent, j.Path.EVPN(end))
}

// asides are what is still to be said of routes, whatever the verdict.
func (j *judgement) asides() []string {
	var notes []string
	for i, end := range []*plan.End{&j.Path.From, &j.Path.To} {
		if end.Disagree != "" && !j.spoken[i] && (i == 1 || !j.Path.NoTouch) {
			notes = append(notes, end.Disagree)
		}
	}
	return notes
}

// stranger notes that an answer came by a tunnel from an address which is the destination's by
// neither the inventory nor routes; empty where that is not so, or routes do not tell. Somebody on
// the way may have tunnelled it anew.
func (j *judgement) stranger() string {
	end := &j.Path.To
	src, owner := j.answeredFrom()
	w := whereto{src, owner}
	if !src.IsValid() || end.Host == j.Path.From.Host || end.Learned.State != plan.Present || w.listed(end) || j.routed(w, end) {
		return ""
	}
	j.speak(end)
	return fmt.Sprintf("the answer came by a tunnel from %s, but %s is on %s, and EVPN says %s", src, j.Path.Pair.Dst.Name, end.Place(), j.Path.EVPN(end))
}
