package run

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
	"github.com/dyetrace/dyetrace/stain"
)

const (
	// answerTimeout is how long an agent may take to answer Prepare, Finish or Explain. An audit
	// of a bridge with 50,000 flows takes a second; five are an agent that is not well, and one
	// of them must not hold up a run for long.
	answerTimeout = 5 * time.Second
	// tick is how often probes are looked at that the pace held back. An instance gets a token
	// every 100 ms by default.
	tick = 20 * time.Millisecond
	// pickEvery bounds how often a long queue is gone through.
	pickEvery = time.Millisecond
	// injectBatch bounds the probes in one Inject: some 70 kB.
	injectBatch = 1024
	// explainWindow bounds the explanations that a run has outstanding at one host. ovs-vswitchd
	// traces in its main thread, one at a time, where it also installs flows; agents take 64.
	explainWindow = 4
	// maxReserve is what a run keeps of its time for closing and explaining; a quarter of it if
	// that is less.
	maxReserve = 2 * time.Second
)

// agents is the run as its agents know it: a fleet.Assignment.
type agents interface {
	Inject(host int, m *dyetracev1.Inject)
	Arm(host int, m *dyetracev1.Arm) (id uint64)
	Finish(host int)
	Explain(host int, m *dyetracev1.Explain) (id uint64)
	Wake() <-chan struct{}
	Events(buf []fleet.Event) []fleet.Event
	Close()
}

type stage uint8

const (
	preparing stage = iota
	probing
	closing
	explaining
	over
)

// execution is one run under way. One goroutine uses it.
type execution struct {
	log    *slog.Logger
	settle time.Duration
	// withdraw is when the agent gives an unanswered probe up: well before it has settled here, and
	// one in the other direction may follow. Two that cross half-open block each other in connection
	// tracking, whose ends then drop what would withdraw them.
	withdraw time.Duration
	pace     *pace
	metrics  *metrics

	pairs  []plan.Pair
	lanes  []lane
	seq    []uint32 // of each pair, in the run's plan
	layout layout
	ledger *ledger
	agents agents

	stage    stage
	since    time.Time // when the stage began
	soft     time.Time // no more probes from here on
	hard     time.Time // no more waiting
	judged   []bool
	open     int // pairs not judged
	progress []progress
	results  []*verdict.Result // by track, of those that were judged
	scratch  []verdict.Track   // of the pair that is concluded
	queue    []uint32
	settling []settle // in the order of their deadlines
	inflight int      // probes asked for, without a word that they left
	arms     map[uint64]arming
	waits    map[uint32]int // by probe: answers to Arm that it waits for
	picked   time.Time
	freed    bool // a wire, since then

	host []hostState
	gone map[string]string // by host: why samples of it may be missing
	// hooks are the audits, complete once the stage is explaining.
	hooks   map[verdict.Place]verdict.Window
	asking  []question          // still to be asked
	pending map[uint64]question // asked, by Explain.id

	out batch // judged, not yet handed to the writer
}

// hostState is what the run knows of an agent.
type hostState struct {
	ready, finished, gone bool
	// refused says that it has refused an Arm, mute that it left the last one without an answer:
	// it is asked for nothing more until it is heard.
	refused, mute bool
	asked         int // explanations outstanding
}

// settle is a probe that has left, and when its samples should all be in.
type settle struct {
	number uint32
	at     time.Time
}

// question is what is asked about a track whose pair waits.
type question struct {
	track   int
	host    int
	point   int
	first   verdict.Result // the verdict if there is no answer
	ask     *dyetracev1.Explain
	since   time.Time
	decides bool
}

// batch is verdicts on their way to the store.
type batch struct {
	seq     []uint32
	results []*dyetracev1.PairResult
}

// newExecution begins a run: begin announces it to the agents of the hosts that it names.
func newExecution(cfg *Config, p *pace, m *metrics, log *slog.Logger, pairs []plan.Pair, paths []plan.Path, seq []uint32,
	o options, key stain.Key, timeout time.Duration, now time.Time, begin func(fleet.Spec) agents) *execution {
	lay, ps, tracks := o.layout(paths)
	x := &execution{
		log: log, settle: cfg.Settle, withdraw: cfg.Settle / 2, pace: p, metrics: m,
		pairs: pairs, seq: seq, layout: lay, ledger: newLedger(key, ps, tracks),
		since: now, soft: now.Add(timeout - min(maxReserve, timeout/4)), hard: now.Add(timeout),
		judged: make([]bool, len(pairs)), open: len(pairs),
		progress: make([]progress, len(pairs)), results: make([]*verdict.Result, len(tracks)),
		arms: map[uint64]arming{}, waits: map[uint32]int{},
		gone: map[string]string{}, hooks: map[verdict.Place]verdict.Window{}, pending: map[uint64]question{},
	}
	x.host = make([]hostState, len(x.ledger.hosts))
	x.lanes = p.join(pairs, now)
	x.agents = begin(fleet.Spec{
		Hosts: x.ledger.hosts, Key: key, Total: uint32(maxAttempts * len(tracks)),
		Expires: timeout + answerTimeout,
	})
	for pair := range pairs {
		if x.blocked(pair) { // nothing will be learned of it
			x.judgePair(pair)
			continue
		}
		x.start(pair, 0)
	}
	return x
}

// release gives back what the run holds; wires only once the agents have withdrawn what is still
// open on them, which they do whether the run is over or not.
func (x *execution) release(now time.Time) {
	x.agents.Close()
	until := map[uint32]time.Time{}
	for _, s := range x.settling {
		if x.progress[x.pairOf(s.number)].holds == s.number+1 {
			until[s.number] = s.at
		}
	}
	for pair := range x.pairs {
		p := &x.progress[pair]
		if p.holds == 0 {
			continue
		}
		number := p.holds - 1
		if x.waits[number] == 0 && x.ledger.open(number) {
			at, known := until[number]
			if !known {
				at = now.Add(x.settle)
			}
			x.pace.keep(x.lanes[pair], at)
		}
		x.free(number)
	}
	x.pace.leave(x.lanes, now)
}

// free lets the next probe between a pair's instances go, of whichever run, if this one is what
// it waits for.
func (x *execution) free(number uint32) {
	pair := x.pairOf(number)
	if p := &x.progress[pair]; p.holds == number+1 {
		p.holds, x.freed = 0, true
		x.pace.free(x.lanes[pair])
	}
}

// run executes to the end, or until ctx is done or the writer gives up; whole says that it was the
// end. Results go to in, which is closed then.
func (x *execution) run(ctx context.Context, in chan<- batch, gaveUp <-chan struct{}) (whole bool) {
	defer close(in)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var events []fleet.Event
	for {
		now := time.Now()
		wake := x.step(now)
		if x.stage == over && len(x.out.seq) == 0 {
			return true
		}
		timer.Reset(wake.Sub(now))
		var to chan<- batch
		if len(x.out.seq) > 0 {
			to = in
		}
		select {
		case <-ctx.Done():
			x.abandon(in, gaveUp)
			return x.open == 0
		case <-gaveUp:
			x.finishAgents()
			return false
		case to <- x.out:
			x.out = batch{}
		case <-x.agents.Wake():
			events = x.agents.Events(events)
			now := time.Now()
			for i := range events {
				x.take(&events[i], now)
				events[i].Message = nil
			}
		case <-timer.C:
		}
	}
}

// abandon ends a run in the middle: what was judged is kept.
func (x *execution) abandon(in chan<- batch, gaveUp <-chan struct{}) {
	x.finishAgents()
	if len(x.out.seq) > 0 {
		select {
		case in <- x.out:
		case <-gaveUp:
		}
	}
}

// finishAgents tells the agents that the run is over, unless they know.
func (x *execution) finishAgents() {
	if x.stage >= closing {
		return
	}
	for i := range x.host {
		x.agents.Finish(i)
	}
}

// step does what is due at now, and returns when it wants to be called again if nothing happens.
func (x *execution) step(now time.Time) (wake time.Time) {
	wake = x.hard
	for {
		before := x.stage
		switch x.stage {
		case preparing:
			wake = x.prepare(now)
		case probing:
			wake = x.probe(now)
		case closing:
			wake = x.close(now)
		case explaining:
			wake = x.explain(now)
		case over:
			return now.Add(time.Hour) // the writer is waited for, for as long as it takes
		}
		if x.stage == before {
			return earliest(wake, x.hard)
		}
	}
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (x *execution) enter(s stage, now time.Time) {
	x.log.Debug("run enters stage", "stage", s, "open", x.open, "after", now.Sub(x.since))
	x.stage, x.since = s, now
	if s == closing {
		for i := range x.host {
			x.agents.Finish(i)
		}
	}
}

func (s stage) String() string {
	return [...]string{"preparing", "probing", "closing", "explaining", "over"}[s]
}

// prepare waits until all agents are ready, or as long as is decent.
func (x *execution) prepare(now time.Time) (wake time.Time) {
	wake = earliest(x.since.Add(answerTimeout), x.soft)
	switch {
	case x.all(func(h *hostState) bool { return h.ready }):
		x.enter(probing, now)
	case !now.Before(x.soft):
		x.hold("agents were not ready when the run's time was up: " + x.late())
		x.enter(closing, now)
	case !now.Before(wake):
		x.log.Warn("run begins without agents that are not ready", "hosts", x.late())
		x.enter(probing, now)
	}
	return wake
}

// late names the hosts that are not ready, not too many.
func (x *execution) late() string {
	const most = 3
	var names []string
	more := 0
	for i := range x.host {
		switch h := &x.host[i]; {
		case h.ready || h.gone:
		case len(names) == most:
			more++
		default:
			names = append(names, x.ledger.hosts[i])
		}
	}
	if more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// all says whether something is so of all hosts that are there.
func (x *execution) all(so func(*hostState) bool) bool {
	for i := range x.host {
		if h := &x.host[i]; !h.gone && !so(h) {
			return false
		}
	}
	return true
}

// probe sends what may be sent and looks at what has settled, until nothing is left to wait for.
func (x *execution) probe(now time.Time) (wake time.Time) {
	wake = x.soft
	if !now.Before(x.soft) {
		x.hold(fmt.Sprintf("its turn had not come when the run's time was up (an instance takes part in at most %g probes a second)", x.pace.rate))
		x.enter(closing, now)
		return wake
	}
	x.settled(now)
	x.inject(now)
	wake = earliest(wake, x.armLate(now)) // after inject, which arms
	switch {
	case x.open == 0, len(x.queue) == 0 && len(x.settling) == 0 && x.inflight == 0:
		x.enter(closing, now)
	case len(x.queue) > 0 && x.freed:
		wake = earliest(wake, x.picked.Add(pickEvery))
	case len(x.queue) > 0:
		wake = earliest(wake, x.picked.Add(tick))
	}
	if len(x.settling) > 0 {
		wake = earliest(wake, x.settling[0].at)
	}
	return wake
}

// inject sends the queued probes that the pace lets go, those of each host together.
func (x *execution) inject(now time.Time) {
	if len(x.queue) == 0 || now.Sub(x.picked) < pickEvery {
		return
	}
	x.picked, x.freed = now, false
	x.queue = slices.DeleteFunc(x.queue, func(number uint32) bool { return x.judged[x.pairOf(number)] })
	var ready []uint32
	ready, x.queue = x.pace.pick(x.queue, func(number uint32) lane { return x.lanes[x.pairOf(number)] }, now)
	go_ := ready[:0]
	var needy []uint32
	for _, number := range ready {
		host := x.entry(number)
		x.ledger.ask(number)
		x.progress[x.pairOf(number)].holds = number + 1
		if why := x.lacking(x.ledger.path(x.ledger.of(number)), host); why != "" {
			x.ledger.fail(number, why, false)
			x.free(number)
			continue
		}
		x.inflight++
		if x.wantsArms(number) {
			needy = append(needy, number)
		} else {
			go_ = append(go_, number)
		}
	}
	x.launch(append(go_, x.arm(needy, now)...))
}

// launch has the agents send probes, those of each host together.
func (x *execution) launch(numbers []uint32) {
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
		k := key{x.entry(number), x.ledger.tracks[x.ledger.of(number)].scheme}
		r := requests[k]
		if r == nil {
			r = &request{
				m:     &dyetracev1.Inject{Scheme: dyetracev1.Scheme(k.scheme), SettleMs: uint32(x.withdraw / time.Millisecond)},
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

// settled looks at the probes whose samples should be in by now.
func (x *execution) settled(now time.Time) {
	n := 0
	for ; n < len(x.settling) && !x.settling[n].at.After(now); n++ {
		number := x.settling[n].number
		x.free(number)
		if track := x.ledger.of(number); !x.judged[x.pairOf(number)] {
			x.next(track, number)
		}
	}
	x.settling = x.settling[n:]
}

// arrived says whether any probe of a track did.
func (x *execution) arrived(track int) bool {
	for a := range x.ledger.attempts(track) {
		if x.ledger.arrived(x.ledger.number(track, a)) {
			return true
		}
	}
	return false
}

// hold stops probing before all was probed: what is queued was not sent, and what is on its way
// is waited for no longer.
func (x *execution) hold(why string) {
	for _, number := range x.queue {
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
	x.queue, x.settling = nil, nil
	x.arms, x.waits = map[uint64]arming{}, map[uint32]int{}
}

// take takes in one event.
func (x *execution) take(e *fleet.Event, now time.Time) {
	h := &x.host[e.Host]
	name := x.ledger.hosts[e.Host]
	switch m := e.Message.(type) {
	case *dyetracev1.Ready:
		h.ready = true
		x.audit(name, m.GetWindows(), func(w *verdict.Window, a *verdict.Audit) { w.Before = a })
	case *dyetracev1.Armed:
		x.armed(e.Host, m, now)
	case *dyetracev1.Injected:
		x.injected(e.Host, m, now)
	case *dyetracev1.Samples:
		x.samples(e.Host, m)
	case *dyetracev1.Finished:
		h.finished = true
		x.audit(name, m.GetWindows(), func(w *verdict.Window, a *verdict.Audit) { w.After = a })
	case *dyetracev1.Explanation:
		x.explained(m)
	case fleet.Gone:
		h.gone = true
		x.gone[name] = m.Reason
		x.drop(e.Host, m.Reason, now)
	case fleet.Lost:
		x.gone[name] = fmt.Sprintf("the controller lost %d samples of it", m.Samples)
	}
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
	at := now.Add(x.settle)
	for _, number := range m.GetIndex() {
		if x.entry(number) == host && x.ledger.leave(number) {
			x.inflight--
			x.settling = append(x.settling, settle{number, at})
		}
	}
	for _, f := range m.GetFailures() {
		if number := f.GetIndex(); x.entry(number) == host {
			x.fail(number, f.GetReason(), f.GetPortAbsent(), now)
		}
	}
}

// fail records that a probe did not leave. It is looked at when it would have settled: what kept
// it may be over by then.
func (x *execution) fail(number uint32, why string, portAbsent bool, now time.Time) {
	if x.ledger.fail(number, why, portAbsent) {
		x.inflight--
		x.settling = append(x.settling, settle{number, now.Add(x.settle)})
	}
}

// drop records that a host is gone: what it was asked to send will not be heard of.
func (x *execution) drop(host int, why string, now time.Time) {
	for number := range uint32(len(x.ledger.probes)) {
		if x.ledger.probes[number].state == asked && x.entry(number) == host {
			x.ledger.fail(number, why, false)
			x.free(number)
			x.inflight--
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
}

// samples takes in columns of samples. A track whose points have all seen its first probe is
// healthy at once: nothing that could still come would change it.
func (x *execution) samples(host int, m *dyetracev1.Samples) {
	bridges := make([]int32, len(m.Bridges))
	for i, name := range m.Bridges {
		b, known := x.ledger.bridges[name]
		if !known {
			b = -1
		}
		bridges[i] = b
	}
	var fates [forged + 1]int
	late := 0
	for i, number := range m.Index {
		track, pair := x.ledger.of(number), x.pairOf(number)
		if x.judged[pair] {
			late++
			continue
		}
		f := x.ledger.see(host, bridges[m.Bridge[i]], m, i)
		fates[f]++
		if x.progress[pair].holds == number+1 && x.ledger.arrived(number) && !x.halfOpen(track) {
			x.free(number)
		}
		if f != completed || x.ledger.attempts(track) > 1 || x.progress[pair].scheme > 0 {
			continue
		}
		if r := verdict.Judge(x.evidence(track)); r.Verdict == verdict.Healthy {
			x.healthy(pair, track, r)
		}
	}
	x.metrics.count(fates, late)
}

// evidence is what is known of a track, hooks included once they mean something.
func (x *execution) evidence(track int) verdict.Evidence {
	e := x.ledger.evidence(track)
	e.Gone = x.gone
	if x.stage >= explaining {
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
		x.scratch = append(x.scratch, verdict.Track{Path: x.ledger.path(track), Scheme: x.ledger.tracks[track].scheme, Result: *x.results[track]})
		x.results[track] = nil
	}
	r := verdict.Combine(x.scratch, x.layout.asked)
	x.judged[pair] = true
	x.open--
	x.out.seq = append(x.out.seq, x.seq[pair])
	x.out.results = append(x.out.results, r.Proto(x.pairs[pair]))
}
