package verdict

import (
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// undelivered judges a probe whose answer came back, though it provably did not leave the switch for
// the destination: then it was not the destination that answered. The same goes for one of which this is not
// proven, and whose answer nobody saw leave the destination nor knew by its ToS. A rule that rejects is such (OVN's
// ACLs, for one, have ovn-controller send a RST in the destination's name), and without this its
// answer would prove what it denies. Where the flows say that a rule denies it, that is the verdict;
// else who answered is not known. is false where the answer may well be the destination's.
func (j *judgement) undelivered() (r Result, is bool) {
	at, from := j.handover()
	if at < 0 || from < 0 {
		return Result{}, false
	}
	unproven := j.unproven(j.t, at)
	// What bears the stain's ToS is taken for the destination's then: who rejects makes a packet of its own, without it.
	if !unproven.none() && (j.t.heard >= 0 || j.scheme() != stain.TCP) {
		return Result{}, false
	}
	answered := j.t
	defer func() { j.t = answered }() // what was seen is shown as it was
	lost := *answered
	lost.last, lost.next, lost.mute = from, at, -1
	j.t = &lost
	if !unproven.none() { // what flows say now may be another thing
		r = j.doubtful(CauseImpostor, "answered, but whether "+j.Path.Pair.Dst.Name+" did, or a rule that rejects, is not known: "+unproven.why)
		j.replay(&r, from)
		return r, true
	}
	r = j.lost(at)
	const whose = "; the answer that came is somebody else's, such as of a rule that rejects"
	if r.Verdict == PolicyDrop {
		r.Cause += whose
		return r, true
	}
	need, flow := r.Need, r.Flow
	if need != nil {
		need.Decides = true
	}
	r = j.doubtful(CauseImpostor, "answered, but "+j.Path.Points[at].String()+" did not see it leave for "+j.Path.Pair.Dst.Name+whose)
	r.Need, r.Flow = need, flow
	j.replay(&r, from)
	return r, true
}

// handover is the point where the request leaves for the destination's guest, and the last before it
// that saw it; at is -1 where that point is not there or saw it, or where a point beyond the guest did:
// an answer that leaves the guest is its own.
func (j *judgement) handover() (at, from int) {
	at, from = -1, -1
	for i := range j.Path.Points {
		p := &j.Path.Points[i]
		_, seen := j.t.sample(i)
		switch {
		case p.Direction == plan.Forward && p.Kind == stain.ToInstance && p.Host == j.Path.To.Host:
			if seen || p.Absent != "" {
				return -1, -1
			}
			at = i
		case p.Direction == plan.Forward && seen && at < 0:
			from = i
		case p.Direction == plan.Reply && p.Kind == stain.FromInstance && p.Host == j.Path.To.Host && seen:
			return -1, -1
		}
	}
	return at, from
}
