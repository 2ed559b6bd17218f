package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/plan"
)

// Errors that a caller may want to tell apart.
var (
	// ErrScope says that a scope cannot be resolved; the text names the field.
	ErrScope = errors.New("scope cannot be checked")
	// ErrBusy says that as many runs are under way as may be, or that a run is too large.
	ErrBusy = errors.New("limit reached")
	// ErrEnded says that a run is not under way.
	ErrEnded = errors.New("run is not under way")
	// ErrClosing says that the controller is shutting down.
	ErrClosing = errors.New("the controller is shutting down")
)

// Store keeps runs. What a call acknowledges must survive the process. A result given twice is
// kept as first given.
type Store interface {
	CreateRun(ctx context.Context, scope *dyetracev1.Scope, opts *dyetracev1.ProbeOptions, now time.Time, timeout time.Duration, plan []*dyetracev1.PairResult) (*dyetracev1.Run, error)
	ResumeRun(ctx context.Context, id string) (*dyetracev1.Run, time.Duration, error)
	PutResults(ctx context.Context, id string, seq []uint32, results []*dyetracev1.PairResult) error
	// PutTransitions is PutResults for verdicts that take the place of those before, and are kept
	// as transitions too, the last of them. Transitions returns at most limit, the oldest first.
	PutTransitions(ctx context.Context, id string, seq []uint32, results []*dyetracev1.PairResult) error
	Transitions(ctx context.Context, id string, limit int) ([]*dyetracev1.PairResult, error)
	FinishRun(ctx context.Context, id string, state dyetracev1.RunState, findings []*dyetracev1.Finding, now time.Time) error
	Run(ctx context.Context, id string) (*dyetracev1.Run, error)
	Runs(ctx context.Context, before string, limit int) ([]*dyetracev1.Run, error)
	Pairs(ctx context.Context, id string) ([]*dyetracev1.PairResult, error)
}

// Fleet is how the agents are reached.
type Fleet interface {
	Begin(fleet.Spec) *fleet.Assignment
	// Refresh returns when the book has the state of these hosts as it is now, or ctx is done.
	Refresh(ctx context.Context, hosts []string)
	// Stream begins to have hosts send each other streams, each at most so many datagrams a second.
	Stream(budget int) *fleet.Streaming
}

// refreshTimeout is how long planning waits for agents to tell what is on their hosts. One that
// takes longer is planned for as it was known last.
const refreshTimeout = time.Second

// Book is who is where.
type Book interface {
	Snapshot() *inventory.Snapshot
}

// Config is what runs have in common.
type Config struct {
	// Timeout bounds a run whose caller does not say; what the pace makes it take at the least
	// is added.
	Timeout time.Duration
	// Settle is how long after a probe left its samples are waited for before more is done about it.
	Settle time.Duration
	// Patience is how long a packet may take from one point to the next before its absence alone is a
	// fault, and how long a probe by tcp is waited for before it is withdrawn. 0, and what is less than
	// Settle, is Settle.
	Patience time.Duration
	// AnswerTimeout is how long an agent may take to answer Prepare, Finish, Arm or Explain.
	AnswerTimeout time.Duration
	// PerInstanceRate bounds the probes that an instance takes part in, per second over all
	// runs, after a burst of so many.
	PerInstanceRate  float64
	PerInstanceBurst int
	// ToS of probes: underlay probes bear what a tunnel makes of it.
	ToS uint8
	// UnderlayRate is how many datagrams a second a host may send others for continuous runs, in all; 0
	// is none.
	UnderlayRate int
	// MaxActive bounds the runs at one time, MaxPairs the pairs of one.
	MaxActive, MaxPairs int

	Store Store
	Fleet Fleet
	Book  Book
	// Routes returns what the fabric's routes say now, of which one run is planned; nil, and nil
	// returned, where nobody is asked.
	Routes func() plan.Routes
	Log    *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Runner executes runs, many at a time. Its methods may be called from many goroutines.
type Runner struct {
	cfg     Config
	pace    *pace.Pace
	metrics *metrics
	begin   func(fleet.Spec) agents
	stream  func() streams // nil: switched off

	ctx  context.Context // of the runs
	stop context.CancelCauseFunc
	wg   sync.WaitGroup

	// launching is held to read from before a run is in the store as running until it is active:
	// who holds it to write finds each run either active or ended.
	launching sync.RWMutex

	mu     sync.Mutex
	closed bool
	begun  int // places among the active runs that are taken in advance
	active map[string]*activeRun
}

// activeRun is a run under way, as others may touch it.
type activeRun struct {
	feed *feed
	end  context.CancelCauseFunc
	over chan struct{} // closed when it is out of active
}

// Why a run ended before its end.
var (
	errCancelled   = errors.New("cancelled")
	errInterrupted = errors.New("interrupted")
)

// New returns a runner. Run must be called for it to end well.
func New(cfg Config) *Runner {
	r := &Runner{
		cfg: cfg, pace: pace.New(cfg.PerInstanceRate, float64(cfg.PerInstanceBurst)),
		metrics: newMetrics(cfg.Metrics), active: map[string]*activeRun{},
		begin: func(s fleet.Spec) agents { return cfg.Fleet.Begin(s) },
	}
	if cfg.UnderlayRate > 0 {
		r.stream = func() streams { return cfg.Fleet.Stream(cfg.UnderlayRate) }
	}
	r.ctx, r.stop = context.WithCancelCause(context.Background())
	return r
}

// Run waits until ctx is done, interrupts all runs, and returns when the last of them has ended.
// Interrupted runs can be resumed.
func (r *Runner) Run(ctx context.Context) error {
	<-ctx.Done()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.stop(errInterrupted)
	r.wg.Wait()
	return nil
}

// Start plans a scope and begins to execute it. opts are kept with the run; nil is all found out.
// timeout 0 is the configured one. The error wraps [ErrScope], [ErrBusy], [ErrClosing], or is the
// store's.
func (r *Runner) Start(ctx context.Context, scope *dyetracev1.Scope, opts *dyetracev1.ProbeOptions, timeout time.Duration) (*dyetracev1.Run, error) {
	snap := r.cfg.Book.Snapshot()
	s, err := plan.ScopeFromProto(scope)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrScope, err)
	}
	o := optionsFromProto(opts)
	pairs, err := plan.Pairs(snap, s, o.plan)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrScope, err)
	}
	if len(pairs) > r.cfg.MaxPairs {
		return nil, fmt.Errorf("%w: %d pairs in one run (at most %d: choose a network or a host, or raise run.max_pairs)", ErrBusy, len(pairs), r.cfg.MaxPairs)
	}
	if n := len(pairs) * o.ways() * o.test.Max; o.measure && n > maxExtra {
		return nil, fmt.Errorf("%w: to measure the loss of %d pairs may take %d probes (at most %d: choose a network or a host, or a larger options.max_loss)",
			ErrBusy, len(pairs), n, maxExtra)
	}
	if timeout == 0 && !opts.GetContinuous() {
		timeout = r.cfg.Timeout + r.pace.Needs(pairs, o.each())
	}
	if err := r.reserve(); err != nil {
		return nil, err
	}
	planned := make([]*dyetracev1.PairResult, len(pairs))
	seq := make([]uint32, len(pairs))
	for i := range pairs {
		planned[i] = &dyetracev1.PairResult{Src: refOf(pairs[i].Src), Dst: refOf(pairs[i].Dst)}
		seq[i] = uint32(i)
	}
	r.launching.RLock()
	defer r.launching.RUnlock()
	run, err := r.cfg.Store.CreateRun(ctx, scope, opts, time.Now(), timeout, planned)
	if err != nil {
		r.giveUp()
		return nil, err
	}
	return r.launch(run, nil, job{
		pairs: pairs, seq: seq, options: o, timeout: timeout, continuous: opts.GetContinuous(), rate: opts.GetRate(),
	}), nil
}

// Resume goes on with an interrupted run: pairs that have a verdict keep it. The error wraps
// [ErrBusy], [ErrClosing], or is the store's.
func (r *Runner) Resume(ctx context.Context, id string) (*dyetracev1.Run, error) {
	run, err := r.cfg.Store.Run(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := r.reserve(); err != nil {
		return nil, err
	}
	r.launching.RLock()
	defer r.launching.RUnlock()
	run, timeout, err := r.cfg.Store.ResumeRun(ctx, run.GetId())
	if err != nil {
		r.giveUp()
		return nil, err
	}
	planned, err := r.cfg.Store.Pairs(ctx, run.GetId())
	if err != nil {
		r.giveUp()
		return nil, errors.Join(err, r.cfg.Store.FinishRun(context.WithoutCancel(ctx), run.GetId(), dyetracev1.RunState_RUN_STATE_INTERRUPTED, nil, time.Now()))
	}
	before, j := replan(r.cfg.Book.Snapshot(), planned, run.GetOptions().GetContinuous())
	j.options, j.timeout, j.rate = optionsFromProto(run.GetOptions()), timeout, run.GetOptions().GetRate()
	return r.launch(run, before, j), nil
}

// replan returns the verdicts that a plan has, and what is left to do: all, if it is continuous.
func replan(snap *inventory.Snapshot, planned []*dyetracev1.PairResult, continuous bool) (before []*dyetracev1.PairResult, j job) {
	j.continuous, j.before = continuous, map[uint32]*dyetracev1.PairResult{}
	for i, p := range planned {
		if p.GetVerdict() != dyetracev1.Verdict_VERDICT_UNSPECIFIED {
			before = append(before, p)
			if !continuous {
				continue
			}
			j.before[uint32(i)] = p
		}
		src, serr := snap.Resolve(p.GetSrc().GetNetwork() + "/" + p.GetSrc().GetName())
		dst, derr := snap.Resolve(p.GetDst().GetNetwork() + "/" + p.GetDst().GetName())
		if serr != nil || derr != nil {
			why := serr
			if why == nil {
				why = derr
			}
			j.lost.seq = append(j.lost.seq, uint32(i))
			j.lost.results = append(j.lost.results, unknown(p.GetSrc(), p.GetDst(), why))
			continue
		}
		j.pairs = append(j.pairs, plan.Pair{Src: src, Dst: dst})
		j.seq = append(j.seq, uint32(i))
	}
	return before, j
}

// unknown is the verdict on a pair that cannot even be planned.
func unknown(src, dst *dyetracev1.InstanceRef, why error) *dyetracev1.PairResult {
	return &dyetracev1.PairResult{Src: src, Dst: dst, Verdict: dyetracev1.Verdict_VERDICT_UNKNOWN,
		Cause: why.Error(), CauseKind: dyetracev1.CauseKind_CAUSE_KIND_INVENTORY}
}

func refOf(i inventory.Instance) *dyetracev1.InstanceRef {
	return &dyetracev1.InstanceRef{Name: i.Name, Network: i.Network}
}

// reserve takes a place among the active runs; launch takes it, giveUp gives it back.
func (r *Runner) reserve() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return ErrClosing
	case r.begun+len(r.active) >= r.cfg.MaxActive:
		return fmt.Errorf("%w: %d runs are under way (run.max_active)", ErrBusy, r.cfg.MaxActive)
	}
	r.begun++
	r.wg.Add(1)
	return nil
}

func (r *Runner) giveUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun--
	r.wg.Done()
}

// job is what a run has to do.
type job struct {
	pairs   []plan.Pair
	seq     []uint32 // of each pair, in the plan
	options options
	timeout time.Duration
	lost    batch // verdicts on pairs that cannot be planned
	// continuous: until it is cancelled or timeout has passed, which 0 is never; rate is how many
	// probes a second an instance takes part in, 0 the controller's.
	continuous bool
	rate       float64
	before     map[uint32]*dyetracev1.PairResult // verdicts that stand, by seq
}

// launch makes a run active. before are verdicts that it has already.
func (r *Runner) launch(run *dyetracev1.Run, before []*dyetracev1.PairResult, j job) *dyetracev1.Run {
	run.Verdict = worst(run.GetCounts())
	a := &activeRun{feed: newFeed(run, before), over: make(chan struct{})}
	if j.continuous {
		a.feed.continuous()
	}
	id := run.GetId()
	ctx, end := context.WithCancelCause(r.ctx)
	a.end = end
	shown := a.feed.since(0).run

	r.mu.Lock()
	r.begun--
	r.active[id] = a
	r.mu.Unlock()
	r.metrics.active.Inc()
	go func() {
		defer r.wg.Done()
		defer r.metrics.active.Dec()
		r.execute(ctx, id, a, j)
		end(nil)
		r.mu.Lock()
		delete(r.active, id)
		r.mu.Unlock()
		close(a.over)
	}()
	return shown
}

// Cancel ends a run: pairs without a verdict stay so. It returns the run as it ended. The error
// wraps [ErrEnded], or is the store's.
func (r *Runner) Cancel(ctx context.Context, id string) (*dyetracev1.Run, error) {
	run, err := r.cfg.Store.Run(ctx, id)
	if err != nil {
		return nil, err
	}
	a := r.look(run)
	if a == nil {
		return nil, fmt.Errorf("run %s: %w", run.GetId(), ErrEnded)
	}
	a.end(errCancelled)
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-a.over:
	}
	run = a.feed.since(0).run
	return run, nil
}
