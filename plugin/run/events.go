package run

import (
	"fmt"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// take takes in one event.
func (x *execution) take(e *fleet.Event, now time.Time) {
	h := &x.host[e.Host]
	name := x.ledger.hosts[e.Host]
	switch m := e.Message.(type) {
	case *dyetracev1.Ready:
		h.ready = true
		x.audit(name, m.GetWindows(), func(w *verdict.Window, a *verdict.Audit) { w.Before = a })
		x.patrol.attested(e.Host, true, now)
	case *dyetracev1.Audited:
		x.auditAfter(name, m.GetWindows())
		x.patrol.attested(e.Host, false, now)
		h.audits, h.auditing, h.watched = h.audits+1, false, h.auditAsked
		x.judgeAttested()
	case *dyetracev1.Armed:
		x.armed(e.Host, m, now)
	case *dyetracev1.Injected:
		x.injected(e.Host, m, now)
	case *dyetracev1.Samples:
		x.samples(e.Host, m, now)
	case *dyetracev1.Finished:
		h.finished, h.watched = true, x.since
		x.auditAfter(name, m.GetWindows())
	case *dyetracev1.Explanation:
		x.explained(m)
	case *dyetracev1.Changes:
		x.patrol.changes(name, m)
	case *dyetracev1.UnderlayReport:
		x.reported(m, now)
	case fleet.Gone:
		h.gone = true
		x.gone[name] = m.Reason
		x.drop(e.Host, m.Reason, now)
	case fleet.Lost:
		x.gone[name] = fmt.Sprintf("the controller lost %d samples of it", m.Samples)
	}
}

// auditAfter takes in what a host attests after probes. A bridge of which it says nothing has no hook any more, whatever it said before.
func (x *execution) auditAfter(host string, windows []*dyetracev1.HookWindow) {
	for place, w := range x.hooks {
		if place.Host == host {
			w.After = nil
			x.hooks[place] = w
		}
	}
	x.audit(host, windows, func(w *verdict.Window, a *verdict.Audit) { w.After = a })
}

func (x *execution) audit(host string, windows []*dyetracev1.HookWindow, set func(*verdict.Window, *verdict.Audit)) {
	for _, m := range windows {
		place := verdict.Place{Host: host, Bridge: m.GetBridge()}
		w := x.hooks[place]
		set(&w, verdict.AuditFromProto(m))
		x.hooks[place] = w
	}
}

// injected takes in which probes left. Only the host that was asked can say so.
func (x *execution) injected(host int, m *dyetracev1.Injected, now time.Time) {
	for _, number := range m.GetIndex() {
		if x.ledger.knows(number) && x.entry(number) == host && x.ledger.leave(number) {
			x.inflight--
			p := &x.ledger.probes[number]
			p.sent = now.Sub(x.begun)
			p.heard = max(p.heard, p.sent)
			x.await(settle{number: number, at: now.Add(x.settleOf(number))})
		}
	}
	for _, f := range m.GetFailures() {
		if number := f.GetIndex(); x.ledger.knows(number) && x.entry(number) == host {
			x.fail(number, f.GetReason(), f.GetPortAbsent(), now)
		}
	}
}

// fail records that a probe did not leave. It is looked at when it would have settled: what kept
// it may be over by then.
func (x *execution) fail(number uint32, why string, portAbsent bool, now time.Time) {
	if x.ledger.fail(number, why, portAbsent) {
		x.inflight--
		p := &x.ledger.probes[number]
		p.sent = now.Sub(x.begun)
		x.await(settle{number: number, at: now.Add(x.settle)})
	}
}

// drop records that a host is gone: what it was asked to send will not be heard of.
func (x *execution) drop(host int, why string, now time.Time) {
	for number := range uint32(len(x.ledger.probes)) {
		if x.ledger.probes[number].state == asked && x.entry(number) == host {
			x.ledger.fail(number, why, false)
			x.free(number)
			x.inflight--
			x.patrol.failed(number)
		}
	}
	for id, a := range x.arms {
		if a.host == host {
			x.settleArm(id, why, now)
		}
	}
	for id, q := range x.pending {
		if q.host == host {
			delete(x.pending, id)
			x.answer(q.track, q.first)
		}
	}
	x.deserted(host, now)
}

// samples takes in columns of samples. A track whose points have all seen its first probe is
// healthy at once: nothing that could still come would change it.
func (x *execution) samples(host int, m *dyetracev1.Samples, now time.Time) {
	bridges := make([]int32, len(m.Bridges))
	for i, name := range m.Bridges {
		b, known := x.ledger.bridges[name]
		if !known {
			b = -1
		}
		bridges[i] = b
	}
	var fates [spent + 1]int
	late := 0
	for i, number := range m.Index {
		if !x.ledger.knows(number) { // a token of nobody's may be that of a probe which is yet to be sent
			fates[forged]++
			continue
		}
		track, pair := x.ledger.of(number), x.pairOf(number)
		if x.judged[pair] {
			late++
			continue
		}
		before := x.ledger.arrived(number)
		f := x.ledger.see(host, bridges[m.Bridge[i]], m, i)
		fates[f]++
		if f == spent {
			continue
		}
		if f <= completed {
			x.ledger.probes[number].heard = now.Sub(x.begun)
		}
		if !before && x.ledger.arrived(number) {
			x.loud(pair)
			x.came(number, now)
			x.witness(number, false)
		} else if x.ledger.probes[number].witness {
			x.witness(number, true) // late, but further
		}
		switch {
		case f != completed:
		case x.ledger.tests[track] != nil && !x.ledger.probes[number].looked:
			x.next(track, number)
		case x.layout.scheme(track) == 0 && x.patrol == nil: // which concludes nothing
			x.relieved(pair, track)
		}
	}
	x.metrics.count(fates, late)
}

// evidence is what is known of a track, hooks included once they mean something.
func (x *execution) evidence(track int) verdict.Evidence {
	return x.evidenceUntil(track, x.watched(x.layout.pair(track)))
}

// evidenceUntil is evidence if the hooks were watched until then.
func (x *execution) evidenceUntil(track int, until time.Time) verdict.Evidence {
	e := x.ledger.evidence(track)
	e.Gone, e.Enough, e.Patience = x.gone, x.enough(track), x.patienceFor(x.layout.pair(track))
	e.Explains = x.explains(track)
	e.Trip = x.options.trips[x.seq[x.layout.pair(track)]]
	x.quiet(track, &e, until)
	if x.ledger.tests[track] != nil {
		e.Test, e.Measured = &x.options.test, x.options.measure
	}
	if x.stage >= explaining || x.progress[x.layout.pair(track)].attested {
		e.Hooks = x.hooks
	}
	return e
}

// conclude ends a pair with the verdict on its tracks.
func (x *execution) conclude(pair int) {
	if x.judged[pair] {
		return
	}
	x.scratch = x.scratch[:0]
	from, to := x.tried(pair)
	for track := from; track < to; track++ {
		if x.results[track] == nil { // of what was tried beside, and is not needed
			r := verdict.Judge(x.evidence(track))
			x.results[track] = &r
		}
		x.scratch = append(x.scratch, verdict.Track{Path: x.ledger.path(track), Scheme: x.ledger.tracks[track].scheme, Result: *x.results[track]})
		x.results[track] = nil
	}
	r := verdict.Combine(x.scratch, x.layout.asked)
	x.judged[pair] = true
	x.loud(pair)
	x.leaveOff(pair)
	x.emitWithMTU(pair, r)
}

// emit hands the verdict on a pair to the writer.
func (x *execution) emit(pair int, r verdict.Result) {
	x.open--
	x.out.seq = append(x.out.seq, x.seq[pair])
	x.out.results = append(x.out.results, r.Proto(x.pairs[pair]))
}
