package run

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
	"github.com/dyetrace/dyetrace/stain"
)

// execute is the life of a run.
func (r *Runner) execute(ctx context.Context, id string, a *activeRun, j job) {
	log := r.cfg.Log.With("run", id)
	if j.continuous {
		r.executeContinuous(ctx, id, a, j, log)
		return
	}
	pairs, paths, seq := r.paths(&j, r.freshSnapshot(ctx, j.pairs))
	key := newKey()

	log.Info("run begins", "pairs", len(j.pairs), "timeout", j.timeout)
	began := time.Now()
	x := newExecution(&r.cfg, r.pace, r.metrics, log, pairs, paths, seq, j.options, key, j.timeout, began, r.begin)
	x.out.seq = append(x.out.seq, j.lost.seq...)
	x.out.results = append(x.out.results, j.lost.results...)

	in, gaveUp := make(chan batch), make(chan struct{})
	written := make(chan error, 1)
	go func() { written <- r.write(id, a.feed, in, gaveUp) }()
	whole := x.run(ctx, in, gaveUp)
	err := <-written
	x.release(time.Now())
	r.finish(id, a.feed, endedAs(ctx, whole, err), err, log, began)
}

// endedAs is the state of a run that ended whole or by ctx; err is why it could not be stored, if so.
func endedAs(ctx context.Context, whole bool, err error) dyetracev1.RunState {
	switch {
	case err != nil:
		return dyetracev1.RunState_RUN_STATE_INTERRUPTED
	case whole: // whatever was asked of it in its last moment
		return dyetracev1.RunState_RUN_STATE_DONE
	case errors.Is(context.Cause(ctx), errCancelled):
		return dyetracev1.RunState_RUN_STATE_CANCELLED
	}
	return dyetracev1.RunState_RUN_STATE_INTERRUPTED
}

// paths plans the pairs of a job; what cannot be planned is lost to it.
func (r *Runner) paths(j *job, snap *inventory.Snapshot) (pairs []plan.Pair, paths []plan.Path, seq []uint32) {
	opts := j.options.plan
	opts.Now = time.Now()
	if r.cfg.Routes != nil {
		opts.Routes = r.cfg.Routes()
	}
	pairs, paths, seq = j.pairs[:0:0], make([]plan.Path, 0, len(j.pairs)), j.seq[:0:0]
	for i, p := range j.pairs {
		path, err := plan.Of(snap, p, opts)
		if err != nil {
			j.lost.seq = append(j.lost.seq, j.seq[i])
			j.lost.results = append(j.lost.results, unknown(refOf(p.Src), refOf(p.Dst), err))
			continue
		}
		pairs, paths, seq = append(pairs, p), append(paths, path), append(seq, j.seq[i])
	}
	return pairs, paths, seq
}

func newKey() (key stain.Key) {
	rand.Read(key[:]) // never fails, see crypto/rand
	return key
}

// freshSnapshot returns the book after the hosts of pairs were asked for their state: a port that
// came or went a moment ago must not be judged by what was there before.
func (r *Runner) freshSnapshot(ctx context.Context, pairs []plan.Pair) *inventory.Snapshot {
	seen := map[string]bool{}
	var hosts []string
	for i := range pairs {
		for _, name := range []string{pairs[i].Src.Host, pairs[i].Dst.Host} {
			if !seen[name] {
				seen[name] = true
				hosts = append(hosts, name)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	r.cfg.Fleet.Refresh(ctx, hosts)
	return r.cfg.Book.Snapshot()
}

// write puts verdicts into the store, and then into the feed. If the store fails it closes gaveUp
// and returns why: a verdict that is not on disk is shown to nobody.
func (r *Runner) write(id string, f *feed, in <-chan batch, gaveUp chan<- struct{}) error {
	put, show := r.cfg.Store.PutResults, f.add
	if f.current != nil {
		put, show = r.cfg.Store.PutTransitions, f.replace
	}
	for b := range in {
		began := time.Now()
		// Not the run's context: what was judged when it was cancelled is kept.
		err := put(context.Background(), id, b.seq, b.results)
		if err != nil {
			close(gaveUp)
			return err
		}
		r.metrics.write.Observe(time.Since(began).Seconds())
		for _, p := range b.results {
			r.metrics.verdicts.WithLabelValues(verdictLabel(p.GetVerdict())).Inc()
		}
		show(b.results)
		f.news.Store(true)
	}
	return nil
}

func verdictLabel(v dyetracev1.Verdict) string {
	switch v {
	case dyetracev1.Verdict_VERDICT_HEALTHY:
		return "healthy"
	case dyetracev1.Verdict_VERDICT_FAULTY:
		return "faulty"
	case dyetracev1.Verdict_VERDICT_SILENT:
		return "silent"
	case dyetracev1.Verdict_VERDICT_POLICY:
		return "policy"
	}
	return "unknown"
}

// finish records how a run ended; err is why it could not be stored, if so.
func (r *Runner) finish(id string, f *feed, state dyetracev1.RunState, err error, log *slog.Logger, began time.Time) {
	now := time.Now()
	findings := verdict.Infer(f.since(0).results, r.cfg.Book.Snapshot().Racks())
	if ferr := r.cfg.Store.FinishRun(context.Background(), id, state, findings, now); ferr != nil {
		err = errors.Join(err, ferr)
		state = dyetracev1.RunState_RUN_STATE_INTERRUPTED // as the next start will find it
	}
	f.end(state, findings, timestamppb.New(now))
	label := stateLabel(state)
	r.metrics.runs.WithLabelValues(label).Inc()
	if err != nil {
		log.Error("run cannot be stored, and is interrupted", "err", err)
	}
	run := f.since(0).run
	c := run.GetCounts()
	log.Info("run ends", "state", label, "took", now.Sub(began).Round(time.Millisecond),
		"healthy", c.GetHealthy(), "faulty", c.GetFaulty(), "silent", c.GetSilent(), "policy", c.GetPolicy(), "unknown", c.GetUnknown())
}

func stateLabel(s dyetracev1.RunState) string {
	switch s {
	case dyetracev1.RunState_RUN_STATE_DONE:
		return "done"
	case dyetracev1.RunState_RUN_STATE_CANCELLED:
		return "cancelled"
	}
	return "interrupted"
}
