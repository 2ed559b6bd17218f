package run

import (
	"context"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

func (r *Runner) find(id string) *activeRun {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.active[id]
}

// look returns the active run that the store knows as run; nil if that has ended.
func (r *Runner) look(run *dyetracev1.Run) *activeRun {
	a := r.find(run.GetId())
	if a == nil && run.GetState() == dyetracev1.RunState_RUN_STATE_RUNNING {
		r.launching.Lock() // it may be on its way
		a = r.find(run.GetId())
		r.launching.Unlock()
	}
	return a
}

// Active returns how many runs are under way.
func (r *Runner) Active() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.active)
}

// Get returns a run and its verdicts so far. id may be the beginning of an id, here and below. The
// error is the store's.
func (r *Runner) Get(ctx context.Context, id string) (*dyetracev1.Run, []*dyetracev1.PairResult, error) {
	run, err := r.cfg.Store.Run(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if a := r.look(run); a != nil {
		p := a.feed.since(0)
		if p.run.GetOptions().GetContinuous() {
			a.feed.latest(p.results)
			p.run.Transitions, err = r.cfg.Store.Transitions(ctx, p.run.GetId(), shownTransitions)
		}
		return p.run, p.results, err
	}
	return r.stored(ctx, run.GetId())
}

// stored returns a run that is not under way.
func (r *Runner) stored(ctx context.Context, id string) (*dyetracev1.Run, []*dyetracev1.PairResult, error) {
	run, err := r.cfg.Store.Run(ctx, id) // again: it may have ended since somebody looked
	if err != nil {
		return nil, nil, err
	}
	planned, err := r.cfg.Store.Pairs(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	results := planned[:0]
	for _, p := range planned {
		if p.GetVerdict() != dyetracev1.Verdict_VERDICT_UNSPECIFIED {
			results = append(results, p)
		}
	}
	run.Verdict = worst(run.GetCounts())
	if run.GetOptions().GetContinuous() {
		run.Transitions, err = r.cfg.Store.Transitions(ctx, run.GetId(), shownTransitions)
	}
	return run, results, err
}

// shownTransitions is how many of the contract's (Run.transitions) are shown.
const shownTransitions = 1000

// List returns at most limit runs older than before, newest first, without their pairs.
func (r *Runner) List(ctx context.Context, before string, limit int) ([]*dyetracev1.Run, error) {
	runs, err := r.cfg.Store.Runs(ctx, before, limit)
	for _, run := range runs {
		run.Verdict = worst(run.GetCounts())
	}
	return runs, err
}

// Watch shows a run as it stands, every verdict once as it falls, those fallen before first, and
// the run again when it has ended. It returns then, or with ctx, or with the first error of show.
func (r *Runner) Watch(ctx context.Context, id string, show func(*dyetracev1.WatchRunResponse) error) error {
	run, err := r.cfg.Store.Run(ctx, id)
	if err != nil {
		return err
	}
	if a := r.look(run); a != nil {
		r.metrics.watchers.Inc()
		defer r.metrics.watchers.Dec()
		return a.feed.watch(ctx, show)
	}
	run, results, err := r.stored(ctx, run.GetId())
	if err != nil {
		return err
	}
	run.Transitions = nil
	f := newFeed(run, results)
	f.end(run.GetState(), run.GetFindings(), run.GetEnded())
	return f.watch(ctx, show)
}
