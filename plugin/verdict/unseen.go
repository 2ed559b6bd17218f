package verdict

import (
	"fmt"
	"strings"

	"github.com/dyetrace/dyetrace/plugin/plan"
)

// unseen judges a probe after whose last sample no absence is proof.
func (j *judgement) unseen() Result {
	last := j.t.last
	r := Result{Verdict: Unknown, Host: j.Path.Points[last].Host}
	if j.t.mute >= 0 {
		if l := j.loss(j.t.mute); l.noPort() {
			return j.lost(j.t.mute) // nobody answers by a port that is not there, with or without ToS
		}
	}
	reasons := j.blinds(last+1, len(j.Path.Points))
	if last+1 < len(j.Path.Points) {
		r.Segment = j.segment(last, last+1)
		r.Host = j.Path.Points[last+1].Host
	}
	if d := j.unplacedEnd(&j.Path.To); !d.none() {
		reasons = append(reasons, d)
	}
	if j.Path.To.LinkDown {
		reasons = append(reasons, doubt{CauseGuestDown, off(&j.Path.To, j.Path.Pair.Dst.Name)})
	}
	if len(reasons) == 0 && j.Path.NoTouch {
		reasons = append(reasons, doubt{CauseUnseen, fmt.Sprintf("nothing of %s sees the delivery", j.Path.To.Host)})
	}
	if len(reasons) == 0 {
		reasons = append(reasons, doubt{CauseUnseen, fmt.Sprintf("no hook of %s sees the answer", j.Path.From.Host)})
	}
	r.Kind = reasons[0].kind
	r.Cause = fmt.Sprintf("seen up to %s; beyond, we could not see: %s", j.Path.Points[last], few(reasons))
	if n := j.earlier(); n != "" {
		r.Cause += "; " + n
	}
	j.hint(&r)
	return r
}

// hint adds what the flows say of a probe that may have been answered unseen. It was not proved
// lost, so that they decide nothing: what they do now is not what they did.
func (j *judgement) hint(r *Result) {
	if j.t.mute < 0 {
		return
	}
	l := j.loss(j.t.mute)
	r.Need = j.need(&l)
	if r.Need != nil {
		r.Need.Decides = false
	}
	j.replay(r, l.from)
	switch {
	case l.x == nil:
	case l.x.Outcome == Dropped && l.x.Flow != nil:
		r.Flow = l.x.Flow
		r.Cause += fmt.Sprintf("; asked afterwards, %s drops it: %s", l.last.Host, l.x.Flow)
	case l.x.Outcome == Tunnelled && told(l.receiver) && l.last.Host != l.receiver.Host:
		if w := j.whereto(l.x.TunnelRemote); !w.listed(l.receiver) {
			cause, wrong := j.weigh("asked afterwards, "+j.sends(&l), w, l.receiver, l.name)
			if wrong {
				r.Cause = join(staleVTEP+cause, r.Cause)
			} else {
				r.Cause = join(r.Cause, cause)
			}
		}
	case l.x.Outcome == Tunnelled && j.owner(l.x.TunnelRemote) != l.receiver.Host && l.last.Host != l.receiver.Host:
		r.Cause += "; asked afterwards, " + j.wrongTunnel(&l, j.owner(l.x.TunnelRemote))
	}
}

// blinds returns why the points from first up to end could not see, each reason once.
func (j *judgement) blinds(first, end int) []doubt {
	var reasons []doubt
next:
	for i := first; i < end; i++ {
		why := j.unproven(j.t, i)
		for _, r := range reasons {
			if r == why {
				continue next
			}
		}
		if !why.none() {
			reasons = append(reasons, why)
		}
	}
	return reasons
}

// unproven says why a missing sample of point i proves nothing; none if it is proof.
func (e *Evidence) unproven(t *trail, i int) doubt {
	if why := firstDoubt(e.blind(i), e.beside(t.Attempt, i)); !why.none() {
		return why
	}
	return e.deaf(t, i)
}

// unplacedEnd says why it cannot be told where an instance is attached; none if it can.
func (j *judgement) unplacedEnd(end *plan.End) doubt {
	if end.Blind == "" {
		return doubt{}
	}
	return doubt{CauseInventory, end.Blind}
}

// few joins reasons, but not so many that nobody reads them.
func few(reasons []doubt) string {
	const most = 3
	texts := words(reasons)
	if len(texts) > most {
		return strings.Join(texts[:most], "; ") + fmt.Sprintf("; and %d more", len(texts)-most)
	}
	return strings.Join(texts, "; ")
}
