package verdict

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// Verdict on a pair; the numbers are the contract's.
type Verdict uint8

// Verdicts.
const (
	Healthy Verdict = iota + 1
	Faulty
	// Silent: delivered, the guest did not answer.
	Silent
	// Policy drop: a security rule's.
	PolicyDrop
	// Unknown: we could not see well enough.
	Unknown
)

func (v Verdict) String() string {
	switch v {
	case Healthy:
		return "healthy"
	case Faulty:
		return "faulty"
	case Silent:
		return "silent"
	case PolicyDrop:
		return "policy"
	case Unknown:
		return "unknown"
	}
	return "none"
}

// Segment lies between the last point that saw the packet and the first that did not.
type Segment struct {
	// From is nil where the packet never entered; the contract leaves it out then.
	From *plan.Expected
	To   plan.Expected
}

func (s Segment) String() string {
	if s.From == nil {
		return "before " + s.To.String()
	}
	return s.From.String() + " → " + s.To.String()
}

// Result is the verdict on one pair.
type Result struct {
	Verdict Verdict
	// Segment is nil for Healthy, and where the packet cannot be placed at all.
	Segment *Segment
	// Host to look at first; empty for Healthy.
	Host string
	// Cause is one line for a person. For Healthy it is empty, or notes what was odd.
	Cause string
	// Kind is of what sort the cause is; 0 only where there is none.
	Kind CauseKind
	// RTTNs is from the first sample on the source's host to the last, 0 where either is missing.
	RTTNs int64
	// Samples are of the attempt that was judged.
	Samples []Aligned
	// Probes spent, the judged one included.
	Probes int
	// Loss is what the test of it says; nil where there was none. Latencies are of all that
	// arrived.
	Loss      *Loss
	Latencies []Latency
	// Duplicates are the samples of the judged probe beyond the first at each point.
	Duplicates int
	// Flow that dropped it, where known, and Command that shows what is wrong, wherever something is. CommandHost is where to
	// type it; empty for one of dyetrace's own.
	Flow                 *Flow
	Command, CommandHost string
	// Trace shows what the flows of TraceHost do with the packet, where Command shows another thing.
	Trace, TraceHost string
	// LogicalCommand shows what OVN's logical network does with it; empty where there is none.
	LogicalCommand string
	// Scant says that it may be chance, had it to stand alone: see Evidence.Explains.
	Scant bool
	// bySilence says that it would be another but for samples that are missing, whatever its kind.
	bySilence bool
	// MayBeRemembered says that it may be lost for what connection tracking remembers of an earlier probe, where all probes of its
	// scheme are one connection: in a switch whose flows pass it now, were not asked, or drop it as one of no connection; or in a
	// guest that listens.
	MayBeRemembered bool
	// Need is what to ask, and then to judge again with the answer; nil where nothing would help.
	Need *NeedExplain
	// NeedUnderlay likewise, once the explanation is there: what the network between the two hosts
	// does with packets that are no tunnel's.
	NeedUnderlay *NeedUnderlay
	// Underlay is what that showed, where the cause speaks of it.
	Underlay *Underlay

	// Scheme is how the probes were stained that this is from, 0 where none was sent;
	// SchemeReason why that one, empty where it was asked for or there is but one track.
	Scheme       stain.Scheme
	SchemeReason string
	// Wait is how much longer the hooks must be watched before the probe that was judged is no longer
	// merely late (Evidence.Patience); 0 where waiting would change nothing.
	Wait time.Duration

	// Src and Dst are the addresses of the pair that were probed, NoTouch that no guest was to
	// see a probe.
	Src, Dst netip.Addr
	NoTouch  bool
}

// judgement is one call of Judge.
type judgement struct {
	Evidence
	goal   int // the last point that can see
	trails []trail
	t      *trail // the attempt that is judged
	// spoken says of which ends, source and destination, the cause tells what routes say.
	spoken [2]bool
}

// Unanswered says that an attempt was seen at the last point before the guest that exists, and
// no answer to it anywhere, though the bridge of the destination sees answers: the guest may have
// answered without the stain's ToS. Another attempt that is Armed will tell.
func Unanswered(p *plan.Path, a *Attempt) bool {
	if p.NoTouch {
		return false
	}
	end, sees := -1, false
	for i := range p.Points {
		switch pt := &p.Points[i]; {
		case pt.Absent != "":
		case pt.Direction == plan.Forward:
			end = i
		case pt.Kind == stain.FromInstance && pt.Host == p.To.Host && pt.Bridge == p.To.Bridge:
			sees = true
		}
	}
	delivered := false
	for i := range a.Seen {
		pt := a.Seen[i].Point
		if pt < 0 || pt >= len(p.Points) {
			continue
		}
		if p.Points[pt].Direction == plan.Reply {
			return false
		}
		delivered = delivered || pt == end
	}
	return delivered && sees
}

// Unrecognised says that an attempt arrived, but that points on the way back did not know the
// answer, as one without the stain's ToS. Another attempt that is Armed will show the whole way.
func Unrecognised(p *plan.Path, a *Attempt) bool {
	end := goal(p)
	if p.NoTouch || a.Armed || end < 0 {
		return false
	}
	seen := make([]bool, len(p.Points))
	for i := range a.Seen {
		if pt := a.Seen[i].Point; pt >= 0 && pt < len(seen) {
			seen[pt] = true
		}
	}
	some := false
	for i := range end {
		if pt := &p.Points[i]; pt.Direction == plan.Reply && pt.Absent == "" {
			if seen[i] {
				return false
			}
			some = true
		}
	}
	return seen[end] && some
}

// Judge returns the verdict that the evidence carries.
func Judge(e Evidence) Result {
	j := judgement{Evidence: e, goal: goal(e.Path), trails: make([]trail, len(e.Attempts))}
	for i := range e.Attempts {
		j.trails[i] = e.trail(&e.Attempts[i])
	}
	j.t = j.pick()
	r := j.judge()
	j.doubt(&r)
	if (r.Need != nil || r.NeedUnderlay != nil) && r.Wait == 0 && r.Verdict != Healthy {
		r.Wait = j.wait() // what flows do not speak of may be late, and what other packets may yet explain
	}
	if notes := j.asides(); len(notes) > 0 {
		r.Cause, r.Kind = join(append([]string{r.Cause}, notes...)...), cmp.Or(r.Kind, CauseInventory)
	}
	r.Probes, r.Latencies = len(e.Attempts)+e.Arrived, shown(e.Path, e.Latencies)
	r.Src, r.Dst, r.NoTouch = e.Path.Src, e.Path.Dst, e.Path.NoTouch
	for i := range e.Attempts {
		if a := &e.Attempts[i]; a.Injected || len(a.Seen) > 0 {
			r.Scheme = e.scheme()
		}
	}
	if j.t != nil {
		r.Samples, r.Duplicates = align(e.Path, j.t), j.t.extra
	} else {
		r.Samples = align(e.Path, &trail{at: make([]int, len(e.Path.Points))})
	}
	j.show(&r)
	return r
}

// doubt makes a loss unknown that may be chance: nothing speaks for a fault but that probes were not
// seen, and there were too few of them, since no more could be sent.
func (j *judgement) doubt(r *Result) {
	if r.Verdict != Faulty && r.Verdict != Silent {
		return
	}
	j.late(r)
	switch {
	case r.Kind == CauseBetweenHosts, r.Kind == CauseEntrypoint, r.Kind == CauseSwitch, r.Kind == CauseGuestSilent, r.bySilence:
	default:
		return // flows, ports, tunnels or other packets say so, too
	}
	lost := 0
	for i := range j.trails {
		if t := &j.trails[i]; t.last >= 0 && t.next >= 0 {
			lost++
		}
	}
	switch {
	case lost >= j.Enough:
		return
	case j.Explains:
		r.Scant = true
		return
	}
	r.Verdict, r.Kind = Unknown, CauseInjection
	r.Cause = join(r.Cause, fmt.Sprintf("that may be chance: of %d probes, %d that are known to be lost are too few", len(j.trails), lost))
	if r.Need != nil {
		r.Need.Decides = true
	}
}

// Silence says that for a cause of this sort nothing speaks but that packets were not seen: probes, or
// those that hosts exchange by UDP. What flows, ports and tunnels say is another thing.
func Silence(k CauseKind) bool {
	switch k {
	case CauseSwitch, CauseBetweenHosts, CauseUnderlay, CauseUnderlayMember, CauseEntrypoint, CauseGuestSilent, CauseLoss:
		return true
	}
	return false
}

// late makes a loss unknown that may be a packet which takes long: on a slow way, and to a slow guest, all
// are as absent as if they were lost, for as long as they take.
func (j *judgement) late(r *Result) {
	patience := j.patience(r)
	r.Wait = j.waitFor(patience)
	if r.Kind == CauseUnderlay && j.Hushed > 0 {
		r.Wait = max(min(r.Wait, patience-j.Hushed), j.waitFor(AfterHush(patience)))
	}
	if r.Wait == 0 || !Silence(r.Kind) && !r.bySilence {
		r.Wait = 0
		return
	}
	r.Verdict, r.Kind = Unknown, CauseUnseen
	r.Cause = join(r.Cause, fmt.Sprintf("or it is late: it was watched for %v after it was seen last, and %v is what it may take",
		(patience-r.Wait).Round(time.Millisecond), patience))
}

const (
	// swift is what share of Patience is enough where other packets passed between the same hosts meanwhile, there and back, and
	// trips how many times as long as they took, if that is more: none that is late by the network is later than they by much.
	swift, trips = 1.0 / 3, 4
	// steady is what share is enough for a guest that answered until a moment ago, as far as is known in a fraction of that, and is on the same
	// host as who watches it: it is half a second by default. What stands still for longer is said to be silent. A network may be slower
	// from one moment to the next, by another way. So where nothing passes between two hosts, and others have been waited for for
	// all of Patience that they exchange all the time, hushed of it must have passed for what was sent after the first of those.
	steady, hushed = 2.0 / 3, 0.9
)

// AfterHush is how long a packet must have been waited for where others between the same hosts, which are exchanged all the time, have
// been for all of patience.
func AfterHush(patience time.Duration) time.Duration {
	return time.Duration(hushed * float64(patience))
}

// patience is how long the packet may be late of which this is the verdict.
func (j *judgement) patience(r *Result) time.Duration {
	share, trip := 1.0, time.Duration(0)
	switch r.Kind {
	case CauseEntrypoint:
		if trip = r.Underlay.trip(); trip > 0 {
			share = swift
		}
	case CauseGuestSilent:
		if trip = j.Trip; trip > 0 {
			share = steady
		}
	}
	return min(j.Patience, max(time.Duration(share*float64(j.Patience)), trips*trip))
}

func (j *judgement) wait() time.Duration { return j.waitFor(j.Patience) }

// waitFor is for how much longer probes may be late, if each may be so late: the one that is judged, and all others that were not seen to
// arrive, since they are counted as lost with it.
func (j *judgement) waitFor(patience time.Duration) (most time.Duration) {
	if j.t == nil || j.arrived(j.t) {
		return 0
	}
	for i := range j.trails {
		if t := &j.trails[i]; t.last >= 0 && !j.arrived(t) {
			most = max(most, patience-t.Quiet)
		}
	}
	return max(most, patience-j.t.Quiet, 0)
}

// goal is the last point that exists, if seeing the packet there proves the way there and
// back: it must be the answer's, on the source's host. In no-touch it is where the packet leaves
// for the destination's guest. -1 if there is none such.
func goal(p *plan.Path) int {
	for i := len(p.Points) - 1; i >= 0; i-- {
		pt := &p.Points[i]
		if p.NoTouch {
			if pt.Absent == "" && pt.Kind == stain.ToInstance && pt.Host == p.To.Host {
				return i
			}
			return -1
		}
		if pt.Absent == "" {
			if pt.Direction == plan.Reply && pt.Host == p.From.Host {
				return i
			}
			return -1
		}
	}
	return -1
}

// pick returns the attempt to judge: of those that arrived, the first that most points saw; else
// the one that shows most; nil if nothing was tried.
func (j *judgement) pick() *trail {
	var best *trail
	for i := range j.trails {
		t := &j.trails[i]
		switch came := j.arrived(t); {
		case best == nil:
			best = t
		case came != j.arrived(best):
			if came {
				best = t
			}
		case came && t.sightings() > best.sightings(), !came && t.shows(best) > 0:
			best = t
		}
	}
	return best
}

// sightings counts the points that saw it.
func (t *trail) sightings() int {
	n := 0
	for _, at := range t.at {
		if at != 0 {
			n++
		}
	}
	return n
}

func (j *judgement) arrived(t *trail) bool { return j.goal >= 0 && t.last >= j.goal }

// shows is positive if t shows more than o: it came further; or as far, and its loss is proven;
// or within less of a segment, as that of one is whose answer would have been seen.
func (t *trail) shows(o *trail) int {
	if d := cmp.Or(cmp.Compare(t.last, o.last), cmp.Compare(t.weight(), o.weight())); d != 0 {
		return d
	}
	if t.next >= 0 && t.next != o.next {
		return cmp.Compare(o.next, t.next)
	}
	if t.Armed && !o.Armed {
		return 1
	}
	return 0
}

// weight orders attempts that came equally far by how much they prove.
func (t *trail) weight() int {
	switch {
	case t.next >= 0 || t.PortAbsent:
		return 2
	case t.Failure != "":
		return 1
	}
	return 0
}

func (j *judgement) judge() Result {
	switch {
	case j.t != nil && j.arrived(j.t) && j.Path.NoTouch:
		return j.handed()
	case j.t != nil && j.arrived(j.t):
		return j.whole()
	case j.Path.Blocked != nil && (j.t == nil || j.t.last < 0):
		return j.blocked()
	case j.t == nil:
		return j.unplaced(CauseInjection, "no probe was sent")
	case j.t.last < 0:
		return j.notEntered()
	}
	if i := j.misdelivered(); i >= 0 {
		return j.delivery(i)
	}
	return j.short()
}

// short judges a probe that did not arrive.
func (j *judgement) short() Result {
	if j.t.next < 0 {
		return j.unseen()
	}
	return j.lost(j.t.next)
}

// whole judges a probe whose answer came back.
func (j *judgement) whole() Result {
	if r, doubtful := j.byWhom(); doubtful {
		return r
	}
	if r, is := j.undelivered(); is {
		return r
	}
	r, notes := j.healthy()
	first, seenFirst := j.t.sample(0)
	last, _ := j.t.sample(j.t.last)
	if seenFirst && j.Path.Points[0].Host == j.Path.From.Host {
		r.RTTNs = last.AtNs - first.AtNs
	}
	if from := &j.Path.From; from.LinkDown {
		// No point is beyond the port (to-instance, where there is one, is before its queue), but
		// nothing leaves by a port that is down.
		r.Verdict, r.Host, r.Kind = Silent, from.Host, CauseGuestDown
		at := j.t.last
		if at > 0 && j.Path.Points[at].Kind == stain.ToInstance {
			at--
		}
		r.Segment = &Segment{From: &j.Path.Points[at], To: plan.Expected{
			Host: from.Host, Bridge: from.Bridge, Kind: stain.ToInstance, Direction: plan.Reply,
		}}
		r.Cause = strings.Join(append([]string{fmt.Sprintf(
			"the answer came back to %s, but the link of %s is down: %s is off, or its interface is",
			from.Host, from.Port, j.Path.Pair.Src.Name)}, notes...), "; ")
	}
	return r
}

// healthy is the verdict that a probe which arrived stands for, unless so many others were lost
// that it is not.
func (j *judgement) healthy() (r Result, notes []string) {
	r = Result{Verdict: Healthy, Loss: j.lossOf()}
	notes, r.Kind = j.notes(r.Loss)
	if r, is := j.partial(r); is {
		return r, nil
	}
	if r.Loss != nil {
		r.Wait = r.Loss.wait
	}
	r.Cause = strings.Join(notes, "; ")
	return r, notes
}

// handed judges a probe in no-touch that was seen where it left for the destination's guest.
func (j *judgement) handed() Result {
	r, notes := j.healthy()
	if to := &j.Path.To; to.LinkDown {
		// As in an ordinary probe of which no answer comes: a port that is down delivers nothing.
		r.Verdict, r.Host, r.Kind = Silent, to.Host, CauseGuestDown
		r.Segment = j.segment(j.t.last-1, j.t.last)
		r.Cause = strings.Join(append([]string{off(to, j.Path.Pair.Dst.Name)}, notes...), "; ")
	}
	return r
}

// off words that the link of an instance's port is down.
func off(end *plan.End, name string) string {
	return fmt.Sprintf("link of %s on %s is down: %s is off, or its interface is", firstOf(end.Port, "its port"), end.Host, name)
}

// blocked judges a pair that could not be probed.
func (j *judgement) blocked() Result {
	b := j.Path.Blocked
	switch {
	case !b.Absent() && j.Path.NoTouch && j.Path.To.Absent != "":
		// What keeps the probe from being withheld is what the network lacks.
		return j.portless()
	case !b.Absent():
		return j.unplaced(obstacle(b), b.Reason)
	}
	return Result{Verdict: Faulty, Segment: j.entrance(), Host: j.Path.From.Host, Cause: b.Reason, Kind: CausePort}
}

// portless judges a pair of whose destination it is known, without a probe, that it has no port.
func (j *judgement) portless() Result {
	to := &j.Path.To
	r := Result{Verdict: Faulty, Host: to.Host, Cause: to.Absent, Kind: CausePort, Segment: &Segment{
		To: plan.Expected{Host: to.Host, Bridge: to.Bridge, Kind: stain.ToInstance, Direction: plan.Forward},
	}}
	for i := range j.Path.Points {
		if p := &j.Path.Points[i]; p.Direction == plan.Forward && p.Kind != stain.ToInstance {
			r.Segment.From = p
		}
	}
	return r
}

// entrance is the segment before the first point; nil where there is none.
func (j *judgement) entrance() *Segment {
	if len(j.Path.Points) == 0 {
		return nil
	}
	return j.segment(-1, 0)
}

// unplaced is an unknown about which there is no more to say than why.
func (j *judgement) unplaced(kind CauseKind, cause string) Result {
	return Result{Verdict: Unknown, Host: j.Path.From.Host, Cause: cause, Kind: kind}
}

// notEntered judges a probe that no point of the path saw, not even the first.
func (j *judgement) notEntered() Result {
	in := j.Path.Inject
	r := Result{Verdict: Unknown, Segment: j.entrance(), Host: in.Host, Kind: CauseInjection}
	switch {
	case j.t.PortAbsent:
		r.Verdict, r.Kind = Faulty, CausePort
		r.Cause = fmt.Sprintf("%s is not on %s of %s", firstOf(in.Port, "the port of "+j.Path.Pair.Src.Name), in.Bridge, in.Host)
	case j.t.Failure != "":
		r.Cause = fmt.Sprintf("%s could not inject: %s", in.Host, j.t.Failure)
	case !j.t.Injected:
		r.Cause = fmt.Sprintf("%s did not say that the probe left", in.Host)
		if why, gone := j.Gone[in.Host]; gone {
			r.Cause += because(why)
			r.Kind = CauseAgent
		}
	default:
		r.Cause = fmt.Sprintf("%s injected it, but its own hook on %s did not see it", in.Host, in.Bridge)
		if len(j.Path.Points) > 0 {
			why := firstDoubt(j.blind(0), doubt{kind: CauseInjection})
			r.Cause += why.because()
			r.Kind = why.kind
		}
	}
	return r
}

func (j *judgement) segment(from, to int) *Segment {
	s := &Segment{To: j.Path.Points[to]}
	if from >= 0 {
		s.From = &j.Path.Points[from]
	}
	return s
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}
