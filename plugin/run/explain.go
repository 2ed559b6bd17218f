package run

import (
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// mostAgain is how often a track is asked about anew, since what was seen last of it is elsewhere by the time of the answer.
const mostAgain = 2

// close waits for the second audits, if any pair does; the agents were told to finish.
func (x *execution) close(now time.Time) (wake time.Time) {
	wake = x.since.Add(x.answers)
	switch {
	case x.open == 0:
		x.enter(over, now)
	case x.all(func(h *hostState) bool { return h.finished }) || !now.Before(earliest(wake, x.hard)):
		x.enter(explaining, now)
		x.judge()
	}
	return wake
}

// judge judges all that waits. What a verdict wants explained stays open.
func (x *execution) judge() {
	for pair := range x.pairs {
		if p := &x.progress[pair]; !x.judged[pair] && p.questions == 0 {
			p.attested = true
			x.judgePair(pair)
		}
	}
	// If time is short, what decides comes before what only embellishes.
	slices.SortStableFunc(x.asking, func(a, b question) int {
		switch {
		case a.decides == b.decides:
			return 0
		case a.decides:
			return -1
		}
		return 1
	})
}

// judgePair judges the tracks of a pair. It is concluded when there is nothing to ask about them.
func (x *execution) judgePair(pair int) {
	p := &x.progress[pair]
	from, to := x.tried(pair)
	var asked []question
	if x.stage == probing && x.patience > 0 {
		// It may be loud yet while the hooks are attested, or have been attested for another pair: so by what they attest.
		if wait := x.silent(pair, x.evidence); wait > 0 && x.prolong(pair, wait, time.Now()) {
			return
		}
	}
	for track := from; track < to; track++ {
		if p.healthy&x.layout.bit(track) != 0 {
			continue
		}
		r := verdict.Judge(x.evidence(track))
		x.results[track] = &r
		if q, ok := x.question(track, r); ok {
			p.questions++
			asked = append(asked, q)
		}
	}
	if p.questions == 0 {
		x.conclude(pair)
	}
	for _, q := range asked {
		x.inquire(q)
	}
}

// question is what a verdict on a track wants explained; ok is false if that is nothing, or nobody can be asked, or it
// would only embellish a note.
func (x *execution) question(track int, r verdict.Result) (q question, ok bool) {
	if r.Need == nil || x.layout.scheme(track) > 0 && !r.Need.Decides && !x.foresees(track, *r.Need) {
		return question{}, false
	}
	host := slices.Index(x.ledger.hosts, r.Need.Host)
	if host < 0 || x.host[host].gone {
		return question{}, false
	}
	return question{track: track, host: host, point: r.Need.Point, first: r, ask: r.Need.Proto(0), decides: r.Need.Decides}, true
}

// asksAgain says that the answer to a question is of no use any more, and another was put: what was seen last is elsewhere by
// now.
func (x *execution) asksAgain(q *question, r verdict.Result) bool {
	next, ok := x.question(q.track, r)
	if !ok || q.again == mostAgain {
		return false
	}
	next.again = q.again + 1
	x.inquire(next)
	return true
}

// answer ends a question about a track: r is the verdict on it.
func (x *execution) answer(track int, r verdict.Result) {
	pair := x.layout.pair(track)
	x.results[track] = &r
	if x.progress[pair].questions--; x.progress[pair].questions == 0 {
		x.conclude(pair)
	}
}

// explain asks until all is answered or time is up.
func (x *execution) explain(now time.Time) (wake time.Time) {
	wake = earliest(x.explainAll(now), x.explore(now))
	if x.open == 0 {
		x.enter(over, now)
	}
	return wake
}

// explainAll asks what there is to ask, a few questions at a time for each host.
func (x *execution) explainAll(now time.Time) (wake time.Time) {
	wake = x.hard
	x.forgetLate(now)
	for id, q := range x.pending {
		if at := q.since.Add(x.answers); now.Before(at) {
			wake = earliest(wake, at)
			continue
		}
		delete(x.pending, id)
		delete(x.foreseeing, id)
		x.host[q.host].asked--
		x.answer(q.track, q.first)
	}
	if !now.Before(x.hard) {
		for _, q := range x.pending {
			x.answer(q.track, q.first)
		}
		for _, q := range x.asking {
			x.answer(q.track, q.first)
		}
		x.asking, x.pending = nil, map[uint64]question{}
	}
	held, n := x.asking[:0:0], len(x.asking)
	for _, q := range x.asking[:n] {
		h := &x.host[q.host]
		switch {
		case h.gone:
			x.answer(q.track, q.first)
		case h.asked >= explainWindow:
			held = append(held, q)
		default:
			h.asked++
			q.since = now
			x.metrics.explanations.Inc()
			x.pending[x.explanationOf(q.host, q.ask)] = q
			wake = earliest(wake, now.Add(x.answers))
		}
	}
	x.asking = append(held, x.asking[n:]...)
	return wake
}

// explanationOf asks a host, and returns the number that its answer will have.
func (x *execution) explanationOf(host int, m *dyetracev1.Explain) (id uint64) {
	m.WithinMs = uint32(x.answers.Milliseconds())
	return x.agents.Explain(host, m)
}

// explained takes in an answer.
func (x *execution) explained(m *dyetracev1.Explanation) {
	if f, ok := x.foreseeing[m.GetId()]; ok {
		x.foretold(f, m)
		return
	}
	q, ok := x.pending[m.GetId()]
	if !ok {
		return // too late
	}
	delete(x.pending, m.GetId())
	x.host[q.host].asked--
	q.explanation = verdict.ExplanationFromProto(m, q.point)
	x.told(q, x.judgeWith(&q, nil))
}

// told ends a question by a verdict, unless that wants to know more of the network between two hosts.
func (x *execution) told(q question, r verdict.Result) {
	if x.asksAgain(&q, r) {
		return
	}
	if r.NeedUnderlay == nil {
		x.answer(q.track, r)
		return
	}
	if e := x.exchangeFor(r.NeedUnderlay, false); e.step != done {
		e.questions = append(e.questions, q)
	} else {
		x.settleBy(q, e)
	}
}
