package run

import (
	"context"
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// examine begins an examination of all pairs that are suspect, or were not looked at for long.
func (c *continuous) examine(ctx context.Context, now time.Time) {
	if !c.mayExamine(now) {
		return
	}
	var due []int
	met, trips, least := map[uint32]*prior{}, map[uint32]time.Duration{}, map[uint32]int{}
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
		switch {
		case p.met != nil:
			met[uint32(i)] = p.met
		case p.base.GetVerdict() == dyetracev1.Verdict_VERDICT_SILENT:
			met[uint32(i)] = &prior{scheme: stain.Scheme(p.base.GetScheme()), unheard: true} // as the last examination found
		}
		if c.arrives(p.base) { // else it is long ago
			trips[uint32(i)] = c.roundTrip(i)
		}
		if n := leastOf(p.base); n > 1 {
			least[uint32(i)] = n
		}
		p.exam, p.suspect, p.met, p.renewed = c.begun+1, false, nil, false
		due = append(due, i)
	}
	if len(due) == 0 {
		return
	}
	c.begun++
	number := c.begun
	ctx, stop := context.WithCancel(ctx)
	c.exams[number], c.beganAt, c.signed = &underExam{began: now, stop: stop, open: len(due)}, now, false
	c.r.metrics.exams.Inc()
	cfg := c.r.cfg
	cfg.Settle = c.settleOf(due)
	o := c.job.options
	o.measure, o.prior, o.trips, o.least, o.test = false, met, trips, least, testOf(&dyetracev1.ProbeOptions{})
	c.wg.Go(func() { c.exam(ctx, &cfg, number, due, o, longest) })
}

// mayExamine says that another examination may begin: not before agents could be ready for the last one, by what they
// took before, but for a sign of silence. Hosts that have more to do than they can have all the more by each that is begun.
func (c *continuous) mayExamine(now time.Time) bool {
	if now.Sub(c.beganAt) < c.getting && !c.signed {
		return false
	}
	short := 0
	for _, e := range c.exams {
		if now.Sub(e.began) < longExam {
			short++
		}
	}
	return short == 0 || short < maxExams && len(c.exams) < mostExams
}

// underExam is an examination that is under way.
type underExam struct {
	began time.Time
	stop  context.CancelFunc
	open  int // pairs of which it has said nothing yet, and is still to
}

// outdate has a pair be examined since what it was judged by is not what is there.
func (c *continuous) outdate(i int, now time.Time) {
	c.suspect(i, now)
	c.giveUp(i, now)
}

// giveUp ends the examination of a pair that is suspect by something that came since. It judges by what was before,
// too, and may test for long what was lost then; so another takes its place, once a second at the most, and that one ends if all
// its pairs are such.
func (c *continuous) giveUp(i int, now time.Time) {
	p := &c.pairs[i]
	if p.exam == 0 || now.Sub(p.outdated) < outdateEvery {
		return
	}
	p.outdated = now
	if e := c.exams[p.exam]; e.open == 1 {
		e.stop()
	} else {
		e.open--
	}
	p.exam = 0
}

// examination is an execution that examines pairs as they were known when it began.
type examination struct {
	x     *execution
	paths []plan.Path
	seq   []uint32
	in    chan batch
	stop  context.CancelFunc
}

// begin begins to examine the pairs of a job.
func (c *continuous) begin(ctx context.Context, cfg *Config, j job, snap *inventory.Snapshot) *examination {
	pairs, paths, seq := c.r.paths(&j, snap)
	timeout := cfg.Timeout + c.r.pace.Needs(pairs, j.options.each())
	e := &examination{paths: paths, seq: seq, in: make(chan batch)}
	e.x = newExecution(cfg, c.r.pace, c.r.metrics, c.log, pairs, paths, seq, j.options, newKey(), timeout, time.Now(), c.r.begin)
	e.x.out.seq = append(e.x.out.seq, j.lost.seq...)
	e.x.out.results = append(e.x.out.results, j.lost.results...)
	ctx, e.stop = context.WithCancel(ctx)
	go e.x.run(ctx, e.in, nil)
	return e
}

// fits says that it would have begun in the same way with the inventory as it is now.
func (e *examination) fits(r *Runner, j job, snap *inventory.Snapshot) bool {
	_, paths, seq := r.paths(&j, snap)
	return slices.Equal(seq, e.seq) && slices.EqualFunc(paths, e.paths, func(a, b plan.Path) bool { return samePath(&a, &b) && sameWay(&a, &b) })
}

// end waits until it is over, which it is when in is closed, and gives back what it holds.
func (e *examination) end() {
	e.stop()
	for range e.in {
	}
	e.x.release(time.Now())
}

// exam judges pairs as a run would. It is a goroutine of its own, and touches nothing of c but what
// never changes. It begins by what is known of the hosts, while they are asked for how they are now: it
// concludes nothing before that is known, and if it makes a difference, begins again.
func (c *continuous) exam(ctx context.Context, cfg *Config, number uint64, due []int, o options, suspecting time.Duration) {
	began := time.Now()
	j := job{options: o}
	for _, i := range due {
		j.pairs = append(j.pairs, c.job.pairs[i])
		j.seq = append(j.seq, uint32(i)) // of the pairs of the run
	}
	known := c.r.cfg.Book.Snapshot()
	fresh := make(chan *inventory.Snapshot, 1)
	go func() { fresh <- c.r.freshSnapshot(ctx, j.pairs) }()
	e := c.begin(ctx, cfg, j, known)
	found, refreshed, held := 0, time.Duration(0), []batch(nil)
	tell := func(b batch) {
		for _, r := range b.results {
			if r.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
				found++
			}
		}
		c.results <- examined{batch: b, exam: number}
	}
	for in := e.in; in != nil || refreshed == 0; {
		select {
		case b, more := <-in:
			switch {
			case !more:
				in = nil
			case refreshed == 0:
				held = append(held, b)
			default:
				tell(b)
			}
		case snap := <-fresh:
			refreshed = max(time.Since(began), 1)
			if snap != known && ctx.Err() == nil && !e.fits(c.r, j, snap) {
				e.end()
				e, held = c.begin(ctx, cfg, j, snap), nil
				in = e.in
			}
			for _, b := range held {
				tell(b)
			}
		}
	}
	e.end()
	if found > 0 {
		c.log.Info("examined", append([]any{"pairs", len(due), "not_healthy", found, "settle", cfg.Settle, "suspecting", suspecting, "refresh", refreshed}, e.x.took.list()...)...)
	}
	c.r.metrics.stages.WithLabelValues("refresh").Observe(refreshed.Seconds())
	for s, d := range e.x.took {
		c.r.metrics.stages.WithLabelValues(stage(s).String()).Observe(d.Seconds())
	}
	c.results <- examined{done: true, exam: number, pairs: due, took: time.Since(began), getting: e.x.took[preparing]}
}

// takeExam takes in what an examination says.
func (c *continuous) takeExam(e examined, now time.Time) {
	for k, seq := range e.seq {
		c.found(int(seq), e.exam, e.results[k], now)
	}
	if !e.done {
		return
	}
	c.exams[e.exam].stop()
	delete(c.exams, e.exam)
	c.getting = e.getting
	for _, i := range e.pairs {
		p := &c.pairs[i]
		if p.exam != e.exam {
			continue // it was told of, and is looked at again by what it took itself, or is outdated
		}
		p.exam = 0
		if p.base.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
			p.recheck(e.took, now)
		}
	}
}

// recheck has a pair that is not healthy be examined again in time: took is how long the last one took, as far as it was about the pair.
func (p *standing) recheck(took time.Duration, now time.Time) {
	if p.again = now.Add(p.recheckIn(took)); p.renewed {
		p.again = earliest(p.again, p.found.Add(max(renewAfter, took)))
	}
}

// recheckIn is after how long a pair that is not healthy is examined again, if the last time took so long.
func (p *standing) recheckIn(took time.Duration) time.Duration {
	if p.unseen > 0 && p.unseen < 4 {
		return max(min(recheckAfter, unseenAfter<<(p.unseen-1)), took)
	}
	return max(recheckAfter, recheckTimes*took)
}

// byTCPAgain is when a pair is examined again that is healthy by icmp only, though tcp was tried: the patrol sends it echoes, and nothing else
// would show a fault of tcp alone. What kept tcp from being judged is over soon, mostly; a guest that does not answer tcp goes on with
// that, and a fleet may have thousands of them. So it is the later the longer it has been so already; and where many wait for each other's
// probes, and are not on patrol meanwhile, that is no more than a fifth of their time. Those that are due in the same recheckAfter are one
// examination: many small ones would keep what is suspect from having one.
func (p *standing) byTCPAgain(now time.Time) time.Time {
	in := max(within(2*now.Sub(p.echoes), forgottenAfter, untriedAtMost), recheckTimes*p.lasted)
	return now.Add(in).Truncate(recheckAfter).Add(recheckAfter)
}

// found is the verdict of an examination on a pair.
func (c *continuous) found(i int, exam uint64, r *dyetracev1.PairResult, now time.Time) {
	p := &c.pairs[i]
	if p.exam != exam {
		return // it is outdated
	}
	p.exam = 0
	under := c.exams[exam]
	under.open--
	healthy := r.GetVerdict() == dyetracev1.Verdict_VERDICT_HEALTHY
	if healthy && p.base.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
		p.sound = now // what was lost before is no news, and no sign of a little loss
	}
	p.base, p.found, p.lasted = r, now, now.Sub(under.began)
	c.examinedIn(i, r)
	if p.unseen++; r.GetVerdict() != dyetracev1.Verdict_VERDICT_UNKNOWN {
		p.unseen = 0
	}
	switch byEcho := healthy && c.job.options.scheme == 0 && r.GetScheme() == dyetracev1.Scheme_SCHEME_ICMP; {
	case !byEcho:
		p.echoes = time.Time{}
	case p.echoes.IsZero():
		p.echoes = now
	}
	switch {
	case !healthy:
		p.recheck(p.lasted, now)
	case c.job.options.mtu:
		p.again = now.Truncate(largeEvery).Add(largeEvery)
	case !p.echoes.IsZero():
		p.again = p.byTCPAgain(now)
	default:
		p.again = time.Time{}
	}
	c.tell(i, now)
	if !healthy && c.eased(i, under.began) {
		c.suspect(i, now) // it was over while it was looked at
	}
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
