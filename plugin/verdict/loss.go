package verdict

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/stain"
)

// Loss is what the sequential test makes of the probes of a pair of which some arrived.
type Loss struct {
	Test sequential.Plan
	// Probes that count, and those of them that were provably lost. What did not arrive and may
	// have passed a point that could not see counts neither way.
	Probes, Lost int
	// Began are the first ones, which were lost, by which the test began. They count for Decision and Segment
	// only: a rate of which they were a part would be that of pairs whose first probe is lost.
	Began int
	// Unclear are the injected probes that count neither way.
	Unclear  int
	Interval sequential.Interval
	// Decision is never More: what was not decided is Open.
	Decision sequential.Decision
	// Segment is where most were lost, nil if none was; Elsewhere are those lost in others.
	Segment   *Segment
	Elsewhere int

	from, to int // of Segment, in the path
	// wait is for how much longer the hooks must be watched before it is known whether too much is lost: what may be late is unclear,
	// and would decide if it were not; 0 where it would not.
	wait time.Duration
}

// lossOf counts the attempts by what became of them; nil where there was no test, or nothing to
// count.
func (j *judgement) lossOf() *Loss {
	if j.Test == nil {
		return nil
	}
	l := &Loss{Test: *j.Test, Probes: j.Arrived}
	type place struct{ from, to int }
	at := map[place]int{}
	var most place
	first := !j.Measured
	late, wait := 0, time.Duration(0)
	for i := range j.trails {
		t := &j.trails[i]
		switch {
		case j.arrived(t):
			l.Probes++
		case t.last >= 0 && t.next >= 0 && t.Quiet < j.Patience:
			l.Unclear++
			late, wait = late+1, max(wait, j.Patience-t.Quiet)
		case t.last >= 0 && t.next >= 0:
			l.Probes++
			l.Lost++
			if first {
				l.Began++
			}
			p := place{t.last, t.next}
			if at[p]++; at[p] > at[most] || at[p] == at[most] && (p.from < most.from || p.from == most.from && p.to < most.to) {
				most = p
			}
		case t.Injected:
			l.Unclear++
		}
		if t.Injected && !askedAnew(j.Path, t.Attempt) {
			first = false
		}
	}
	if l.Probes == l.Lost { // nothing arrived: that is no share
		return nil
	}
	if l.Lost > 0 {
		l.from, l.to = most.from, most.to
		l.Segment, l.Elsewhere = j.segment(most.from, most.to), l.Lost-at[most]
	}
	if l.Decision = l.Test.Decide(l.Probes, l.Lost); l.Decision == sequential.More {
		l.Decision = sequential.Open
	}
	if l.Decision != sequential.Above && l.Test.Decide(l.Probes+late, l.Lost+late) == sequential.Above {
		l.wait = wait
	}
	l.Probes, l.Lost = l.Probes-l.Began, l.Lost-l.Began
	l.Interval = sequential.Loss(l.Probes, l.Lost)
	return l
}

// askedAnew says of an attempt that it begins no test, and ends none: what its answer lacked another, armed, is to show.
func askedAnew(p *plan.Path, a *Attempt) bool {
	return !a.Armed && (Unanswered(p, a) || Unrecognised(p, a))
}

// LostAt returns between which points of its path the first attempt was lost; not proven where
// what is missing proves nothing.
func LostAt(e Evidence) (last, next int, proven bool) {
	t := e.trail(&e.Attempts[0])
	return t.last, t.next, t.last >= 0 && t.next >= 0
}

// rate words the loss: "4.1 % (2.9-5.8 %, 95 %) of 350 probes".
func (l *Loss) rate() string {
	return fmt.Sprintf("%s of %d probes", rate(l.Lost, l.Probes, l.Interval), l.Probes)
}

// all are those that were lost, the first included.
func (l *Loss) all() int { return l.Lost + l.Began }

// besides words the probes by which the test began.
func (l *Loss) besides() string {
	switch l.Began {
	case 0:
		return ""
	case 1:
		return ", besides the first that was lost"
	}
	return fmt.Sprintf(", besides the first %d that were lost", l.Began)
}

// Percent writes a share in percent, rounded to two digits, and never with an exponent; Percent of cmd/dyetrace/internal/report does
// the same.
func Percent(share float64) string {
	rounded, _ := strconv.ParseFloat(strconv.FormatFloat(100*share, 'e', 1, 64), 64)
	return strconv.FormatFloat(rounded, 'f', -1, 64)
}

// partial judges a pair that loses more than is allowed, though r is what one that arrives would
// be; false where it does not.
func (j *judgement) partial(r Result) (Result, bool) {
	l := r.Loss
	if l == nil || l.Decision != sequential.Above || r.Verdict != Healthy {
		return r, false
	}
	from, to := &j.Path.Points[l.from], &j.Path.Points[l.to]
	r.Verdict, r.Segment, r.Host, r.Kind = Faulty, l.Segment, from.Host, CauseLoss
	r.Cause = fmt.Sprintf("loses %s between %s and %s", l.rate(), from, to) + l.besides()
	guest := from.Direction == plan.Forward && to.Direction == plan.Reply
	switch {
	case guest && from.Kind == stain.ToInstance && to.Kind == stain.FromInstance && to.Host == j.Path.To.Host:
		r.Verdict, r.Kind = Silent, CauseGuestSilent
		r.Cause = fmt.Sprintf("%s does not answer %s that were delivered to it", j.Path.Pair.Dst.Name, l.rate()) + l.besides()
		r.MayBeRemembered = j.opened()
	case guest:
		r.Verdict = Unknown
		r.Cause += fmt.Sprintf(", by the network or by %s itself", j.Path.Pair.Dst.Name)
	case from.Host == to.Host && j.scheme() == stain.TCP:
		r.MayBeRemembered = true // most of them pass
	}
	if l.Elsewhere > 0 {
		r.Cause += fmt.Sprintf("; %d of the %d elsewhere", l.Elsewhere, l.all())
	}
	if l.Unclear > 0 {
		r.Cause += fmt.Sprintf("; %d more could not be followed", l.Unclear)
	}
	return r, true
}

// opened says that an answer accepted the connection, SYN|ACK. A guest that listens keeps it half-open until the RST
// comes that fits, and gives a SYN of another sequence number a bare ACK meanwhile, and twice a second at the most (RFC 9293,
// section 3.10.7.4; tcp_check_req in net/ipv4/tcp_minisocks.c): one RST that is lost, and probes after it look unanswered.
func (j *judgement) opened() bool {
	return slices.ContainsFunc(j.trails, func(t trail) bool {
		return slices.ContainsFunc(t.Seen, func(s Sample) bool { return s.Flags&0x3f == stain.FlagSYN|stain.FlagACK })
	})
}

// note says of a pair that is healthy what its losses mean; empty if there were none.
func (l *Loss) note() string {
	if l == nil || l.all() == 0 {
		return ""
	}
	note := fmt.Sprintf("loses %s between %s and %s%s, ", l.rate(), l.Segment.From, l.Segment.To, l.besides())
	if l.Lost == 0 {
		note = fmt.Sprintf("loses %s%s between %s and %s, ", l.rate(), l.besides(), l.Segment.From, l.Segment.To)
	}
	if l.Decision == sequential.Within {
		note += fmt.Sprintf("less than %s %%", Percent(l.Test.P1))
	} else {
		note += fmt.Sprintf("too few to tell whether that is more than %s %%", Percent(l.Test.P0))
	}
	if l.Unclear > 0 {
		note += fmt.Sprintf("; %d more could not be followed", l.Unclear)
	}
	return note
}

// Proto returns the loss as users get it; nil for none.
func (l *Loss) Proto() *dyetracev1.PairLoss {
	if l == nil {
		return nil
	}
	return &dyetracev1.PairLoss{
		Probes: uint32(l.Probes), Lost: uint32(l.Lost), Low: l.Interval.Low, High: l.Interval.High,
		Decision: decisions[l.Decision], Allowed: l.Test.P0, TooMuch: l.Test.P1, Segment: l.Segment.proto(),
	}
}

var decisions = map[sequential.Decision]dyetracev1.LossDecision{
	sequential.Within: dyetracev1.LossDecision_LOSS_DECISION_WITHIN,
	sequential.Above:  dyetracev1.LossDecision_LOSS_DECISION_ABOVE,
	sequential.Open:   dyetracev1.LossDecision_LOSS_DECISION_OPEN,
}
