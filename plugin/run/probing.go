package run

import (
	"fmt"
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// probe sends what may be sent and looks at what has settled, until nothing is left to wait for.
func (x *execution) probe(now time.Time) (wake time.Time) {
	wake = x.soft
	if !now.Before(x.soft) {
		x.hold(fmt.Sprintf("its turn had not come when the run's time was up (an instance takes part in at most %g probes a second)", x.pace.Rate()))
		x.enter(closing, now)
		return wake
	}
	x.settled(now)
	wake = earliest(wake, x.unhold(now))
	x.inject(now)
	wake = earliest(wake, x.armLate(now)) // after inject, which arms
	switch {
	case x.open == 0, len(x.queue)+len(x.again) == 0 && len(x.settling) == 0 && x.inflight == 0 && !x.awaits(now):
		if until, later := x.dueLater(now); later {
			wake = earliest(wake, until)
			break
		}
		x.enter(closing, now)
		return wake
	case len(x.queue)+len(x.again) > 0 && x.freed:
		wake = earliest(wake, x.picked.Add(pickEvery))
	case len(x.queue)+len(x.again) > 0:
		wake = earliest(wake, x.picked.Add(tick))
	}
	if len(x.settling) > 0 {
		wake = earliest(wake, x.settling[0].at)
	}
	return earliest(earliest(wake, x.askAudits(now)), x.explainAll(now))
}

// inject sends the queued probes that the pace lets go, those of each host together.
func (x *execution) inject(now time.Time) {
	if len(x.queue)+len(x.again) == 0 || now.Sub(x.picked) < pickEvery {
		return
	}
	x.picked, x.freed = now, false
	if len(x.again) > 0 { // what is begun is ended, before more is begun
		x.queue, x.again = append(x.again, x.queue...), nil
	}
	x.queue = slices.DeleteFunc(x.queue, func(number uint32) bool { return x.judged[x.pairOf(number)] })
	queue, later := x.admit(x.queue, now)
	ready, rest := x.pace.Pick(queue, x.lane, x.leaves, now)
	x.queue = append(rest, later...)
	x.admitted(ready)
	go_ := ready[:0]
	var needy []uint32
	for _, number := range ready {
		host := x.entry(number)
		x.ledger.ask(number)
		*x.holds(number) = number + 1
		if why := x.lacking(x.ledger.path(x.ledger.of(number)), host); why != "" {
			x.ledger.fail(number, why, false)
			x.free(number)
			x.patrol.failed(number)
			continue
		}
		x.inflight++
		if x.wantsArms(number) {
			needy = append(needy, number)
		} else {
			go_ = append(go_, number)
		}
	}
	x.launch(append(go_, x.arm(needy, now)...), now)
}

// launch has the agents send probes, those of each host together.
func (x *execution) launch(numbers []uint32, now time.Time) {
	type key struct {
		host   int
		scheme stain.Scheme
	}
	type request struct {
		m     *dyetracev1.Inject
		ports map[plan.Inject]uint32
	}
	requests := map[key]*request{}
	var order []key // what is asked first is sent first
	for _, number := range numbers {
		x.patrol.launched(number, now)
		k := key{x.entry(number), x.ledger.tracks[x.ledger.of(number)].scheme}
		r := requests[k]
		if r == nil {
			r = &request{
				m:     &dyetracev1.Inject{Scheme: dyetracev1.Scheme(k.scheme), SettleMs: uint32(x.withdrawAfter() / time.Millisecond)},
				ports: map[plan.Inject]uint32{},
			}
			requests[k] = r
			order = append(order, k)
		}
		x.ledger.appendProbe(r.m, r.ports, number)
		x.metrics.probes[k.scheme].Inc()
		if len(r.m.Index) == injectBatch {
			x.agents.Inject(k.host, r.m)
			delete(requests, k)
		}
	}
	for _, k := range order {
		if r := requests[k]; r != nil {
			x.agents.Inject(k.host, r.m)
			delete(requests, k)
		}
	}
}

// entry returns the host where a probe enters: that of the first point of its path.
func (x *execution) entry(number uint32) int {
	from, _ := x.ledger.span(x.ledger.of(number))
	return int(x.ledger.points[from].host)
}

// free lets the next probe between a pair's instances go, of whichever run, if this one is what
// it waits for.
func (x *execution) free(number uint32) {
	if held := x.holds(number); *held == number+1 {
		*held, x.freed = 0, true
		x.pace.Free(x.lane(number))
	}
}

// settled looks at the probes whose samples should be in by now. Those that may be late are given more
// time, once.
func (x *execution) settled(now time.Time) {
	for len(x.settling) > 0 && !x.settling[0].at.After(now) {
		s := x.settling[0]
		x.settling = x.settling[1:]
		judged := x.judged[x.pairOf(s.number)]
		if !s.late && !x.ledger.arrived(s.number) {
			x.witness(s.number, true)
		}
		// A patrol waits for none longer, though it may have learned to since.
		if end := x.waitUntil(s.number); end.After(now) && !judged && x.patrol == nil && !x.ledger.arrived(s.number) {
			x.await(settle{s.number, end, true})
			if !s.late {
				x.tryBeside(s.number)
			}
			continue
		}
		x.giveUp(s.number, now)
		x.free(s.number)
		if !judged {
			x.next(x.ledger.of(s.number), s.number)
		}
	}
}

// await has a probe be looked at when its time has come.
func (x *execution) await(s settle) {
	i := len(x.settling)
	for i > 0 && x.settling[i-1].at.After(s.at) {
		i--
	}
	x.settling = slices.Insert(x.settling, i, s)
}

// arrived says whether any probe of a track did.
func (x *execution) arrived(track int) (any bool) {
	if t := x.ledger.tests[track]; t != nil && t.arrived > 0 {
		return true
	}
	x.ledger.each(track, func(number uint32) { any = any || x.ledger.arrived(number) })
	return any
}

// hold stops probing before all was probed: what is queued was not sent, and what is on its way
// is waited for no longer.
func (x *execution) hold(why string) {
	for _, number := range append(x.again, x.queue...) {
		if x.ledger.attempts(x.ledger.of(number)) == 0 {
			x.ledger.ask(number)
			x.ledger.fail(number, why, false)
		}
	}
	for _, a := range x.arms { // asked for, but not sent, nor will it be
		name := x.ledger.hosts[a.host]
		for _, number := range a.numbers {
			x.ledger.fail(number, fmt.Sprintf("%s had not said that it is ready for the probe when the run's time was up", name), false)
		}
	}
	for _, s := range x.settling {
		x.ledger.probes[s.number].cut = x.ledger.tests[x.ledger.of(s.number)] != nil && x.arrived(x.ledger.of(s.number))
	}
	x.queue, x.again, x.settling = nil, nil, nil
	x.arms, x.waits = map[uint64]arming{}, map[uint32]int{}
}
