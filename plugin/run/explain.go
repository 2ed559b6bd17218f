package run

import (
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// close waits for the second audits, if any pair does; the agents were told to finish.
func (x *execution) close(now time.Time) (wake time.Time) {
	wake = x.since.Add(answerTimeout)
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
		if x.judged[pair] {
			continue
		}
		r := verdict.Judge(x.evidence(pair))
		host := -1
		if r.Need != nil {
			host = slices.Index(x.ledger.hosts, r.Need.Host)
		}
		if host < 0 || x.host[host].gone {
			x.conclude(pair, r)
			continue
		}
		x.asking = append(x.asking, question{
			pair: pair, host: host, point: r.Need.Point, first: r,
			ask: r.Need.Proto(0), decides: r.Need.Decides,
		})
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

// explain asks, a few questions at a time for each host, until all are answered or time is up.
func (x *execution) explain(now time.Time) (wake time.Time) {
	wake = x.hard
	for id, q := range x.pending {
		if at := q.since.Add(answerTimeout); now.Before(at) {
			wake = earliest(wake, at)
			continue
		}
		delete(x.pending, id)
		x.host[q.host].asked--
		x.conclude(q.pair, q.first)
	}
	if !now.Before(x.hard) {
		for _, q := range x.pending {
			x.conclude(q.pair, q.first)
		}
		for _, q := range x.asking {
			x.conclude(q.pair, q.first)
		}
		x.asking, x.pending = nil, nil
	}
	held := x.asking[:0]
	for _, q := range x.asking {
		h := &x.host[q.host]
		switch {
		case h.gone:
			x.conclude(q.pair, q.first)
		case h.asked >= explainWindow:
			held = append(held, q)
		default:
			h.asked++
			q.since = now
			x.metrics.explanations.Inc()
			x.pending[x.agents.Explain(q.host, q.ask)] = q
			wake = earliest(wake, now.Add(answerTimeout))
		}
	}
	x.asking = held
	if x.open == 0 {
		x.enter(over, now)
	}
	return wake
}

// explained takes in an answer.
func (x *execution) explained(m *dyetracev1.Explanation) {
	q, ok := x.pending[m.GetId()]
	if !ok {
		return // too late
	}
	delete(x.pending, m.GetId())
	x.host[q.host].asked--
	e := x.evidence(q.pair)
	e.Explanation = verdict.ExplanationFromProto(m, q.point)
	x.conclude(q.pair, verdict.Judge(e))
}
