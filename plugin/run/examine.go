package run

import (
	"context"
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
)

// examine begins an examination of all pairs that are suspect, or were not looked at for long.
func (c *continuous) examine(ctx context.Context, now time.Time) {
	if !c.mayExamine(now) {
		return
	}
	var due []int
	met := map[uint32]*prior{}
	longest := time.Duration(0) // since a first probe that was lost
	for i := range c.pairs {
		p := &c.pairs[i]
		if p.exam != 0 || !p.suspect && (p.again.IsZero() || now.Before(p.again)) {
			continue
		}
		if !p.suspect {
			p.since = now
		} else if p.base.GetVerdict() == dyetracev1.Verdict_VERDICT_HEALTHY {
			c.r.metrics.stages.WithLabelValues("suspecting").Observe(now.Sub(p.since).Seconds())
			longest = max(longest, now.Sub(p.since))
		}
		if p.met != nil {
			met[uint32(i)] = p.met
		}
		p.exam, p.suspect, p.met = c.begun+1, false, nil
		due = append(due, i)
	}
	if len(due) == 0 {
		return
	}
	c.begun++
	number := c.begun
	c.exams[number] = now
	c.r.metrics.exams.Inc()
	cfg := c.r.cfg
	cfg.Settle = c.exact
	c.wg.Go(func() { c.exam(ctx, &cfg, number, due, met, longest) })
}

// mayExamine says that another examination may begin.
func (c *continuous) mayExamine(now time.Time) bool {
	short := 0
	for _, began := range c.exams {
		if now.Sub(began) < longExam {
			short++
		}
	}
	return short < maxExams && len(c.exams) < mostExams
}

// prepare begins the execution of an examination by what is known of the hosts, while they are asked for
// how they are now; if that makes a difference, it begins another one.
func (c *continuous) prepare(ctx context.Context, cfg *Config, j *job) (x *execution, refreshed time.Time) {
	begin := func(pairs []plan.Pair, paths []plan.Path, seq []uint32) *execution {
		timeout := cfg.Timeout + c.r.pace.needs(pairs, j.options.each())
		return newExecution(cfg, c.r.pace, c.r.metrics, c.log, pairs, paths, seq, j.options, newKey(), timeout, time.Now(), c.r.begin)
	}
	known, before := c.r.cfg.Book.Snapshot(), *j
	pairs, paths, seq := c.r.paths(&before, known)
	x = begin(pairs, paths, seq)
	snap := c.r.freshSnapshot(ctx, j.pairs)
	refreshed = time.Now()
	if snap == known {
		*j = before
		return x, refreshed
	}
	pairs, fresh, planned := c.r.paths(j, snap)
	if slices.Equal(seq, planned) && slices.EqualFunc(paths, fresh, func(a, b plan.Path) bool { return samePath(&a, &b) && sameWay(&a, &b) }) {
		return x, refreshed
	}
	x.finishAgents()
	x.release(refreshed)
	return begin(pairs, fresh, planned), refreshed
}

// exam judges pairs as a run would. It is a goroutine of its own, and touches nothing of c but what
// never changes.
func (c *continuous) exam(ctx context.Context, cfg *Config, number uint64, due []int, met map[uint32]*prior, suspecting time.Duration) {
	began := time.Now()
	j := job{options: c.job.options}
	for _, i := range due {
		j.pairs = append(j.pairs, c.job.pairs[i])
		j.seq = append(j.seq, uint32(i)) // of the pairs of the run
	}
	j.options.measure, j.options.prior = false, met
	j.options.test = testOf(&dyetracev1.ProbeOptions{})
	x, refreshed := c.prepare(ctx, cfg, &j)
	x.out.seq = append(x.out.seq, j.lost.seq...)
	x.out.results = append(x.out.results, j.lost.results...)
	in, never := make(chan batch), make(chan struct{})
	passed, found := make(chan struct{}), 0
	go func() {
		defer close(passed)
		for b := range in {
			for _, r := range b.results {
				if r.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
					found++
				}
			}
			c.results <- examined{batch: b, exam: number}
		}
	}()
	x.run(ctx, in, never)
	<-passed
	x.release(time.Now())
	if found > 0 {
		c.log.Info("examined", append([]any{"pairs", len(due), "not_healthy", found, "settle", cfg.Settle, "suspecting", suspecting, "refresh", refreshed.Sub(began)}, x.took.list()...)...)
	}
	c.r.metrics.stages.WithLabelValues("refresh").Observe(refreshed.Sub(began).Seconds())
	for s, d := range x.took {
		c.r.metrics.stages.WithLabelValues(stage(s).String()).Observe(d.Seconds())
	}
	c.results <- examined{done: true, exam: number, pairs: due, took: time.Since(began)}
}

// takeExam takes in what an examination says.
func (c *continuous) takeExam(e examined, now time.Time) {
	for k, seq := range e.seq {
		c.found(int(seq), e.exam, e.results[k], now)
	}
	if !e.done {
		return
	}
	delete(c.exams, e.exam)
	for _, i := range e.pairs {
		p := &c.pairs[i]
		if p.exam == e.exam {
			p.exam = 0
		}
		if p.base.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
			p.again = now.Add(p.recheckIn(e.took))
		}
	}
}

// recheckIn is after how long a pair that is not healthy is examined again, if the last time took so long.
func (p *standing) recheckIn(took time.Duration) time.Duration {
	after := recheckAfter
	if p.unseen > 0 && p.unseen < 4 {
		after = min(after, unseenAfter<<(p.unseen-1))
	}
	return max(after, recheckTimes*took)
}

// found is the verdict of an examination on a pair.
func (c *continuous) found(i int, exam uint64, r *dyetracev1.PairResult, now time.Time) {
	p := &c.pairs[i]
	if p.exam == exam {
		p.exam = 0
	}
	healthy := r.GetVerdict() == dyetracev1.Verdict_VERDICT_HEALTHY
	if healthy && p.base.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
		p.sound = now // what was lost before is no news, and no sign of a little loss
	}
	p.base = r
	if p.unseen++; r.GetVerdict() != dyetracev1.Verdict_VERDICT_UNKNOWN {
		p.unseen = 0
	}
	switch {
	case !healthy:
		p.again = now.Add(p.recheckIn(0))
	case c.job.options.mtu:
		p.again = now.Truncate(largeEvery).Add(largeEvery)
	default:
		p.again = time.Time{}
	}
	c.tell(i, now)
	if p.track >= 0 && r.GetScheme() != 0 && c.patrol != nil {
		if local, ok := c.patrol.local(i); ok {
			p.track = c.patrol.trackOf(local, r.GetScheme())
		}
	}
	// What was lost of a pair that is healthy was chance, or a little loss: the pools will know.
	for _, m := range p.pending {
		if healthy {
			c.count(m, true, now)
		}
	}
	p.pending = p.pending[:0]
}
