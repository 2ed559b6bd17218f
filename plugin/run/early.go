package run

import (
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/verdict"
	"github.com/dyetrace/dyetrace/stain"
)

// A pair whose probes are over need not wait for the others': its own hosts attest their hooks, and it is
// judged. And what will have to be known of it, if it is lost, is asked as soon as its first probe is:
// the explanation, and the exchange between the hosts that may follow, take no longer than the probes
// that prove the loss.

// waiting is a pair whose probes are over, while other pairs' are not.
type waiting struct {
	pair int
	// audits is how many of its hosts' answers to Audit must have come, by host; nil before they were
	// asked for.
	audits map[int]int
	// until is when they are asked at the earliest: see due.
	until time.Time
	// late says that one has not come in time: the end of probing asks in another way.
	late bool
}

// foresight is an explanation that was asked for in advance.
type foresight struct {
	track       int
	need        verdict.NeedExplain
	id          uint64
	since       time.Time
	explanation *verdict.Explanation // nil before it came
}

// prior is what is known of a pair just before it is examined: a patrol lost a probe of it, or it was silent before.
type prior struct {
	scheme stain.Scheme
	need   *verdict.NeedExplain // what to ask about it; nil for nothing
	// unheard says that it was delivered, and no answer known: see wantsArms.
	unheard bool
}

// prior is what is known of a pair, nil for nothing.
func (x *execution) prior(pair int) *prior { return x.options.prior[x.seq[pair]] }

// remind asks about the probe that a patrol lost, while others are not even sent.
func (x *execution) remind(pair int) {
	first, _ := x.layout.group(pair, 0)
	if p := x.prior(pair); p != nil && p.need != nil && p.scheme == x.ledger.tracks[first].scheme {
		x.ask(first, *p.need)
	}
}

// awaits says that pairs wait for audits that were asked for, or for what is asked about them.
func (x *execution) awaits(now time.Time) bool {
	return slices.ContainsFunc(x.waiting, func(w waiting) bool {
		return !x.judged[w.pair] && !w.late && (w.audits != nil || w.until.After(now))
	})
}

// hostsOf returns the hosts on the ways of a pair.
func (x *execution) hostsOf(pair int) (hosts []int) {
	from, to := x.tried(pair)
	for track := from; track < to; track++ {
		first, end := x.ledger.span(track)
		for _, pt := range x.ledger.points[first:end] {
			if !slices.Contains(hosts, int(pt.host)) {
				hosts = append(hosts, int(pt.host))
			}
		}
	}
	return hosts
}

// askAudits asks the hosts of pairs that wait, while probes of others go on, and returns when it wants to
// be called again. Where none go on, the end of probing asks all hosts.
func (x *execution) askAudits(now time.Time) (wake time.Time) {
	wake = x.hard
	x.waiting = slices.DeleteFunc(x.waiting, func(w waiting) bool { return x.judged[w.pair] })
	for i := range x.waiting {
		w := &x.waiting[i]
		if w.until.After(now) {
			wake = earliest(wake, w.until)
			continue
		}
		if w.audits == nil {
			w.audits = x.auditsFor(w.pair)
		}
		for host, n := range w.audits {
			h := &x.host[host]
			if w.late || h.gone || h.audits >= n {
				continue
			}
			if !h.auditing {
				h.auditing, h.auditAsked = true, now
				x.agents.Audit(host, false)
			}
			at := h.auditAsked.Add(x.answers)
			w.late = !now.Before(at)
			wake = earliest(wake, at)
		}
	}
	return wake
}

// auditsFor returns which answers of its hosts a pair waits for whose probes are over now: one that is
// under way was asked for too early.
func (x *execution) auditsFor(pair int) map[int]int {
	audits := map[int]int{}
	for _, host := range x.hostsOf(pair) {
		h := &x.host[host]
		audits[host] = h.audits + 1
		if h.auditing {
			audits[host]++
		}
	}
	return audits
}

// judgeAttested judges the pairs whose hosts have all attested.
func (x *execution) judgeAttested() {
	for _, w := range slices.Clone(x.waiting) {
		p := &x.progress[w.pair]
		if w.audits == nil || w.late || p.attested || x.judged[w.pair] {
			continue
		}
		whole := true
		for host, n := range w.audits {
			whole = whole && (x.host[host].gone || x.host[host].audits >= n)
		}
		if whole {
			p.attested = true
			x.judgePair(w.pair)
		}
	}
}

// foresee asks what the flows do with the packet of a track whose probe was lost, before it is known
// whether it is one of many.
func (x *execution) foresee(track int) {
	r := verdict.Judge(x.guess(track, time.Now()))
	if r.Need == nil || x.layout.scheme(track) > 0 && !r.Need.Decides {
		return
	}
	switch f := x.foreseen[track]; {
	case f == nil, !x.foresees(track, *r.Need) && x.prior(x.layout.pair(track)) != nil: // it was lost elsewhere on patrol
		x.ask(track, *r.Need)
	case f.explanation != nil:
		x.testify(f)
		x.follow(f)
	}
}

// ask has a host explain a packet of a track, in advance.
func (x *execution) ask(track int, need verdict.NeedExplain) {
	host := slices.Index(x.ledger.hosts, need.Host)
	if host < 0 || x.host[host].gone {
		return
	}
	if x.host[host].asked >= explainWindow {
		if !slices.Contains(x.backlog, track) {
			x.backlog = append(x.backlog, track)
		}
		return
	}
	x.host[host].asked++
	x.metrics.explanations.Inc()
	f := &foresight{track: track, need: need, since: time.Now()}
	f.id = x.explanationOf(host, need.Proto(0))
	x.foreseen[track], x.foreseeing[f.id] = f, f
}

// askOthers asks about tracks for which a host had too much to answer.
func (x *execution) askOthers() {
	backlog := x.backlog
	x.backlog = nil
	for _, track := range backlog {
		if !x.judged[x.layout.pair(track)] && !x.arrived(track) {
			x.foresee(track)
		}
	}
}

// guess is the evidence of a track as it will be if the hooks turn out to be, at a time, as they were when it began.
func (x *execution) guess(track int, at time.Time) verdict.Evidence {
	e := x.evidenceUntil(track, at)
	e.Hooks = make(map[verdict.Place]verdict.Window, len(x.hooks))
	for place, w := range x.hooks {
		e.Hooks[place] = verdict.Window{Before: w.Before, After: w.Before}
	}
	return e
}

// foretold takes in an explanation that was asked for in advance, and does what it makes necessary.
func (x *execution) foretold(f *foresight, m *dyetracev1.Explanation) {
	id, track := m.GetId(), f.track
	delete(x.foreseeing, id)
	x.host[slices.Index(x.ledger.hosts, f.need.Host)].asked--
	defer x.askOthers()
	f.explanation = verdict.ExplanationFromProto(m, f.need.Point)
	if x.foreseen[track] != f {
		return // it was lost elsewhere by now
	}
	if x.patience > 0 {
		defer x.hurry(x.layout.pair(track))
	}
	if q, waited := x.pending[id]; waited {
		delete(x.pending, id)
		x.foreknown(q, f)
		return
	}
	if x.judged[x.layout.pair(track)] || m.GetError() != "" {
		return
	}
	x.testify(f)
	x.follow(f)
}

// follow begins the exchange that an explanation makes necessary.
func (x *execution) follow(f *foresight) {
	e := x.guess(f.track, time.Now())
	e.Explanation = f.explanation
	if r := verdict.Judge(e); r.NeedUnderlay != nil {
		x.exchangeFor(r.NeedUnderlay, false)
	}
}

// testifiers is of how many pairs at most a run asks twice about one that is lost. Of more, what others need comes first: traces are
// made by ovs-vswitchd's main thread, one at a time.
const testifiers = 32

// testify asks, where flows, ports or tunnels say why a probe is lost, or other packets that it is not late, what becomes of the echo beside
// it: if it is the same nobody waits for the echo, and where a patrol lost one before, one probe less by tcp is needed, which each take their time.
func (x *execution) testify(f *foresight) {
	pair := x.layout.pair(f.track)
	beside, _ := x.layout.group(pair, min(1, x.layout.schemes-1))
	says := f.explanation.Outcome == verdict.Dropped || x.lateness(f.track) < x.patience
	if !x.options.examines() && len(x.pairs) > testifiers || !says || !x.progress[pair].beside || beside == f.track || x.foreseen[beside] != nil || x.arrived(f.track) {
		return
	}
	need := f.need
	if need.Scheme = x.ledger.tracks[beside].scheme; need.Scheme != stain.TCP {
		need.Flags = 0
	}
	x.ask(beside, need)
}

// forgetLate gives up on what was asked in advance and is not answered; what waits for it is told so by
// its own time.
func (x *execution) forgetLate(now time.Time) {
	for id, f := range x.foreseeing {
		if _, waited := x.pending[id]; !waited && now.Sub(f.since) >= x.answers {
			delete(x.foreseeing, id)
			x.host[slices.Index(x.ledger.hosts, f.need.Host)].asked--
			f.explanation = &verdict.Explanation{Point: f.need.Point, Error: x.unasked()}
		}
	}
}

// foresees says that it was asked in advance what a track needs to know.
func (x *execution) foresees(track int, need verdict.NeedExplain) bool {
	f := x.foreseen[track]
	return f != nil && sameNeed(f.need, need)
}

// inquire has a question be asked, unless the answer is there or on its way.
func (x *execution) inquire(q question) {
	f := x.foreseen[q.track]
	switch {
	case !x.foresees(q.track, *q.first.Need):
		x.asking = append(x.asking, q)
	case f.explanation == nil:
		q.since = time.Now()
		x.pending[f.id] = q
	default:
		x.foreknown(q, f)
	}
}

// foreknown ends a question by what was asked in advance, if that decides. Else it is asked again: what the
// flows do may have changed since.
func (x *execution) foreknown(q question, f *foresight) {
	q.explanation = f.explanation
	r := x.judgeWith(&q, nil)
	if r.Verdict == verdict.Unknown || r.MayBeRemembered || f.explanation.Error != "" {
		q.explanation = nil
		x.asking = append(x.asking, q)
		return
	}
	x.told(q, r)
}

// sameNeed says that one answer does for both: it is about a packet as it came to a host, however far it was seen there.
func sameNeed(a, b verdict.NeedExplain) bool {
	a.Decides, b.Decides = false, false
	a.Point, b.Point = 0, 0
	return a == b
}
