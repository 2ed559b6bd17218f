package verdict

import (
	"fmt"
	"net/netip"

	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// byWhom asks who answered, if no sample of the destination's host says that it did. A later
// sample proves every earlier hop only while there is one way; a stale tunnel may lead to an
// old copy of the instance, which answers. The outer source address of the answer tells. doubtful
// is true where r, and not healthy, is the verdict.
func (j *judgement) byWhom() (r Result, doubtful bool) {
	to := &j.Path.To
	if to.Host == j.Path.From.Host {
		return Result{}, false
	}
	var provable doubt // why what is missing there proves nothing; the last reason
	proof := false
	for i := range j.Path.Points {
		if j.Path.Points[i].Host != to.Host {
			continue
		}
		if _, seen := j.t.sample(i); seen {
			return Result{}, false
		}
		provable = j.unproven(j.t, i)
		proof = proof || provable.none()
	}
	by, stray := j.impostor()
	src, owner := j.answeredFrom()
	switch {
	case stray:
		return j.answeredBy(by.String(), whereto{host: by.Host}, true), true
	case owner != "" && owner != to.Host:
		return j.answeredBy(fmt.Sprintf("%s (tunnel from %s)", owner, src), whereto{src, owner}, proof), true
	case src.IsValid() && (owner != "" || !proof):
		return Result{}, false
	case proof:
		return j.doubtful(CauseInventory, fmt.Sprintf("answered, but not by way of %s, where %s should be", to.Host, j.Path.Pair.Dst.Name)), true
	}
	cause := fmt.Sprintf("answered, but nothing shows that it was %s of %s", j.Path.Pair.Dst.Name, to.Host)
	provable = firstDoubt(j.unplacedEnd(to), provable, doubt{kind: CauseUnseen})
	return j.doubtful(provable.kind, cause+provable.because()), true
}

// impostor is where an answer was seen leaving an instance that is not the destination.
func (j *judgement) impostor() (Sighting, bool) {
	for _, s := range j.t.Stray {
		if s.Direction == plan.Reply && s.Kind == stain.FromInstance && s.Host != j.Path.To.Host {
			return s, true
		}
	}
	return Sighting{}, false
}

// answeredFrom is the outer source address of the answer as it came in, and whose it is; zero
// where it came by no tunnel, or was not seen there, and empty where nobody's that we know.
func (j *judgement) answeredFrom() (src netip.Addr, owner string) {
	for i := range j.Path.Points {
		if s, seen := j.t.sample(i); seen && j.Path.Points[i].Direction == plan.Reply && s.TunSrc.IsValid() {
			return s.TunSrc, j.Path.VTEPs[s.TunSrc]
		}
	}
	return netip.Addr{}, ""
}

// answeredBy judges an answer that came from somewhere else. It is the network's fault only if
// the destination is where we think, and certainly did not answer itself: a router in between,
// say, tunnels anew what it passes on.
func (j *judgement) answeredBy(by string, at whereto, sure bool) Result {
	to, dst := &j.Path.To, j.Path.Pair.Dst.Name
	if to.Absent != "" || to.Blind != "" || !sure {
		why := firstOf(to.Absent, to.Blind, "nothing of "+to.Host+" could be seen")
		kind := CauseUnseen
		if to.Absent != "" || to.Blind != "" {
			kind = CauseInventory
		}
		return j.doubtful(kind, fmt.Sprintf("answered from %s, and whether that is %s is not known: %s", by, dst, why))
	}
	if told(to) {
		cause, wrong := j.weigh("answered from "+by, at, to, dst)
		r := j.doubtful(CauseInventory, cause)
		if wrong {
			r.Verdict, r.Kind, r.Cause = Faulty, CauseStaleVTEP, staleVTEP+cause
		}
		return r
	}
	r := j.doubtful(CauseImpostor, fmt.Sprintf("answered from %s, but %s is on %s: stale tunnel, or its address is used twice", by, dst, to.Host))
	r.Verdict = Faulty
	return r
}

// doubtful is an unknown between the source's and the destination's host.
func (j *judgement) doubtful(kind CauseKind, cause string) Result {
	from, first := j.crossing()
	return Result{Verdict: Unknown, Segment: j.segment(from, first), Host: j.Path.From.Host, Cause: cause, Kind: kind}
}

// crossing returns the last point before and the first point on the destination's host, or the
// last of the probe and the first of the answer if it has none.
func (j *judgement) crossing() (from, to int) {
	for i := range j.Path.Points {
		if p := &j.Path.Points[i]; p.Host == j.Path.To.Host || p.Direction == plan.Reply {
			return i - 1, i
		}
	}
	return -1, j.goal
}
