package run

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
	"github.com/dyetrace/dyetrace/stain"
)

const (
	// tick is how often probes are looked at that the pace held back. An instance gets a token
	// every 50 ms by default.
	tick = 20 * time.Millisecond
	// pickEvery bounds how often a long queue is gone through.
	pickEvery = time.Millisecond
	// injectBatch bounds the probes in one Inject: some 70 kB.
	injectBatch = 1024
	// explainWindow bounds the explanations that a run has outstanding at one host. ovs-vswitchd
	// traces in its main thread, one at a time, where it also installs flows; agents take 64.
	explainWindow = 4
)

// agents is the run as its agents know it: a fleet.Assignment.
type agents interface {
	Inject(host int, m *dyetracev1.Inject)
	Withdraw(host int, m *dyetracev1.Withdraw)
	Arm(host int, m *dyetracev1.Arm) (id uint64)
	Audit(host int, patient bool)
	Finish(host int)
	Explain(host int, m *dyetracev1.Explain) (id uint64)
	ProbeUnderlay(host int, m *dyetracev1.ProbeUnderlay) (id uint64)
	Wake() <-chan struct{}
	Events(buf []fleet.Event) []fleet.Event
	Close()
}

// reserve is what a run keeps of its time for closing and explaining; a quarter of it if that is less.
func reserve(answers time.Duration) time.Duration { return 2 * answers / 5 }

type stage uint8

const (
	preparing stage = iota
	probing
	closing
	explaining
	over
)

// stageTimes is how long each stage took.
type stageTimes [over]time.Duration

// list names them, for a log.
func (s stageTimes) list() (args []any) {
	for i, d := range s {
		args = append(args, stage(i).String(), d)
	}
	return args
}

// execution is one run under way. One goroutine uses it.
type execution struct {
	log    *slog.Logger
	settle time.Duration
	// answers is how long an agent may take to answer.
	answers time.Duration
	// patience is how long a packet may be late: see patience.go. 0 is no longer than settle.
	patience time.Duration
	pace     *pace.Pace
	metrics  *metrics

	pairs   []plan.Pair
	lanes   []pace.Lane
	seq     []uint32 // of each pair, in the run's plan
	layout  layout
	options options
	ledger  *ledger
	agents  agents

	stage    stage
	begun    time.Time
	since    time.Time  // when the stage began
	took     stageTimes // by stages that are over
	soft     time.Time  // no more probes from here on
	hard     time.Time  // no more waiting
	judged   []bool
	open     int // pairs not judged
	progress []progress
	results  []*verdict.Result // by track, of those that were judged
	scratch  []verdict.Track   // of the pair that is concluded
	queue    []uint32
	again    []uint32             // what goes before queue: pairs that have had a probe
	settling []settle             // in the order of their deadlines
	inflight int                  // probes asked for, without a word that they left
	silentAt map[*pace.Bucket]int // pairs of an instance, see admit
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
	waiting []waiting           // pairs, for audits of their own hosts
	// foreseen are explanations asked for before it was known that a track's probes are lost, and
	// foreseeing those that were not answered, by Explain.id.
	foreseen   map[int]*foresight
	foreseeing map[uint64]*foresight
	backlog    []int             // tracks to be asked about in advance, when a host has answered others
	held       []uint32          // probes that may have something tried beside them: see fellows.go
	flocks     map[[2]string]int // pairs by the hosts that they go from and to; nil before it was asked for
	echoed     int               // news of silence that was heeded: ways.news

	tos       uint8 // the stain's
	exchanges map[exchangeKey]*exchange
	exploring []*exchange          // those that are not done
	owing     map[uint64]*exchange // by ProbeUnderlay.id
	mtu       []mtuCheck           // by pair; nil where nobody asked, or it was not begun

	out batch // judged, not yet handed to the writer

	// patrol, if any, takes what would be judged: probes go on, and no pair is concluded.
	patrol *patrol
}

// hostState is what the run knows of an agent.
type hostState struct {
	ready, finished, gone bool
	// refused says that it has refused an Arm, mute that it left the last one without an answer:
	// it is asked for nothing more until it is heard.
	refused, mute bool
	asked         int // explanations outstanding
	audits        int // answers to Audit
	auditing      bool
	auditAsked    time.Time
	watched       time.Time // until when its hooks were attested: when the last answer was asked for
	exchanges     int       // underlay probes that it takes part in
}

// settle is a probe that has left, and when its samples should all be in.
type settle struct {
	number uint32
	at     time.Time
	late   bool // that was so before, and it was given more time
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
	again   int // how often the track was asked about before
	// explanation is the answer, where the track waits for an underlay probe as well.
	explanation *verdict.Explanation
}

// batch is verdicts on their way to the store.
type batch struct {
	seq     []uint32
	results []*dyetracev1.PairResult
}

// newExecution begins a run: begin announces it to the agents of the hosts that it names.
func newExecution(cfg *Config, p *pace.Pace, m *metrics, log *slog.Logger, pairs []plan.Pair, paths []plan.Path, seq []uint32,
	o options, key stain.Key, timeout time.Duration, now time.Time, begin func(fleet.Spec) agents) *execution {
	lay, ps, tracks := o.layout(paths)
	x := &execution{
		log: log, settle: cfg.Settle, answers: cfg.AnswerTimeout, patience: cfg.patience(), pace: p, metrics: m, begun: now,
		pairs: pairs, seq: seq, layout: lay, options: o, ledger: newLedger(key, ps, tracks, o.room(len(tracks))),
		since: now, soft: now.Add(timeout - min(reserve(cfg.AnswerTimeout), timeout/4)), hard: now.Add(timeout),
		judged: make([]bool, len(pairs)), open: len(pairs),
		progress: make([]progress, len(pairs)), results: make([]*verdict.Result, len(tracks)),
		arms: map[uint64]arming{}, waits: map[uint32]int{}, silentAt: map[*pace.Bucket]int{},
		gone: map[string]string{}, hooks: map[verdict.Place]verdict.Window{}, pending: map[uint64]question{},
		foreseen: map[int]*foresight{}, foreseeing: map[uint64]*foresight{},
		tos: cfg.ToS, exchanges: map[exchangeKey]*exchange{}, owing: map[uint64]*exchange{},
	}
	x.host = make([]hostState, len(x.ledger.hosts))
	x.lanes = p.Join(pairs, now)
	x.agents = begin(fleet.Spec{
		Hosts: x.ledger.hosts, Key: key, Total: uint32(hardAttempts*len(tracks) + o.room(len(tracks))),
		Expires: timeout + cfg.AnswerTimeout,
	})
	if o.patrol {
		return x // whoever patrols says what is sent
	}
	for _, pair := range x.order() {
		if x.blocked(pair) { // nothing will be learned of it
			x.judgePair(pair)
			continue
		}
		x.start(pair, 0)
		if _, hushed := x.hushed(pair); (hushed || x.prior(pair) != nil) && !x.abreast(pair) && x.mayBeside(pair) {
			x.beside(pair)
			if p := x.prior(pair); p != nil && p.unheard && !hushed {
				x.queue = append(x.queue, x.echoAgain(pair)) // each is waited for as long, so at one time
			}
		}
		x.remind(pair)
	}
	return x
}

// release gives back what the run holds; wires only once the agents have withdrawn what is still
// open on them, which they do whether the run is over or not.
func (x *execution) release(now time.Time) {
	until := map[uint32]time.Time{}
	for _, s := range x.settling {
		until[s.number] = s.at
	}
	for pair := range x.pairs {
		for _, held := range x.progress[pair].holds {
			if held == 0 {
				continue
			}
			number := held - 1
			if at, known := until[number]; x.patience > 0 {
				x.giveUp(number, now)
			} else if x.waits[number] == 0 && x.ledger.open(number) && x.tcp(number) {
				if !known {
					at = now.Add(x.settle)
				}
				x.pace.Keep(x.lanes[pair], at)
			}
			x.free(number)
		}
	}
	x.agents.Close()
	x.pace.Leave(x.lanes, now)
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
	x.echo()
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
			return earliest(earliest(wake, x.explore(now)), x.hard)
		}
	}
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (x *execution) enter(s stage, now time.Time) {
	x.log.Debug("run enters stage", "stage", s, "open", x.open, "after", now.Sub(x.since))
	x.took[x.stage] = now.Sub(x.since)
	x.stage, x.since = s, now
	if s == probing && x.layout.mtu && x.patrol == nil {
		x.checkMTUs()
	}
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
	wake = earliest(x.since.Add(x.answers), x.soft)
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
