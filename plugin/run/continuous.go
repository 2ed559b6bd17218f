package run

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
)

const (
	// maxExams bounds the examinations at one time, but for those that have lasted longExam: they test how
	// much is lost, mostly, which may take a minute, and what breaks meanwhile must not wait for that; of all
	// together there are mostExams. What becomes suspect meanwhile is looked at by the next one, all together.
	maxExams, mostExams = 4, 16
	longExam            = 2 * time.Second
	// recheckAfter is how often a pair that is not healthy is examined though the patrol sees no
	// change; and recheckTimes of what the last examination took, if that is longer.
	recheckAfter = 10 * time.Second
	recheckTimes = 4
	// unseenAfter is how soon one is that could not be told of: what kept us from it, say an agent that was
	// started anew, is over mostly, so it is no matter that others took the last examination long. It is doubled each
	// time, up to recheckAfter.
	unseenAfter = 2 * time.Second
	// forgottenAfter is when a pair is tried by tcp again for the first time that is healthy by icmp only: connection tracking may remember
	// a probe until then. From one time to the next it is never longer than untriedAtMost, unless examinations take long.
	forgottenAfter, untriedAtMost = time.Minute, 16 * time.Minute
	// largeEvery is how often healthy pairs are examined where large packets are to be tried, all at one time: an
	// exchange tells of all pairs of two hosts. No probe of a patrol tells of large ones.
	largeEvery = 30 * time.Second
	// replanEvery bounds how often changes of the inventory are looked at, and replanTimes of what the
	// last planning took, if that is longer: 2 % of the time go into it at the most.
	replanEvery = 20 * time.Millisecond
	replanTimes = 50
	// outdateEvery bounds how often a pair's examination is given up since its way has changed, or a stream has fallen silent: where that is so all
	// the time, some verdict is better than none.
	outdateEvery = time.Second
	// figuresEvery is how often figures are told.
	figuresEvery = 500 * time.Millisecond
	// goEvery is how often the round is gone on with, and a microsecond more for each pair: looking
	// at a pair takes a tenth of that.
	goEvery = 4 * time.Millisecond
)

// continuous is a run without an end: a patrol goes round the pairs; whatever it meets that does not
// fit the verdict on a pair has the pair examined, by an execution of its own, as a run would. One
// goroutine uses it; each examination has one more.
type continuous struct {
	r    *Runner
	log  *slog.Logger
	job  job
	test sequential.Plan

	own    *pace.Pace // of the patrol, besides that of all runs
	lanes  []pace.Lane
	shared []pace.Lane // of the latter
	round  round
	took   time.Time
	vague  map[string]time.Time // by host: when all its pairs were next for a change that names none
	ports  map[endKey]bool      // of instances
	by     map[string][]int     // pairs, by host

	patrol, next *patrol // next is about to take over
	paths        []*plan.Path
	planned      *inventory.Snapshot
	routes       plan.Routes // that paths were planned by
	looked       time.Time   // at the inventory
	planning     time.Duration

	pairs     []standing
	pools     *pools
	streaming streaming
	ways      *ways
	trips     trips
	times     *latencyBook

	exams   map[uint64]*underExam
	begun   uint64        // exams, so far
	beganAt time.Time     // the last of them
	signed  bool          // a sign of silence made pairs suspect since then
	getting time.Duration // how long agents took to be ready for the last that is over
	wg      sync.WaitGroup
	results chan examined
	probes  uint64
	shown   time.Time // figures
	infer   inference
	out     batch
	feed    *feed
}

// examined is what an examination says; done is its last word.
type examined struct {
	batch
	done  bool
	exam  uint64
	pairs []int
	took  time.Duration
	// getting is how long agents took to be ready.
	getting time.Duration
}

// executeContinuous is the life of a continuous run.
func (r *Runner) executeContinuous(ctx context.Context, id string, a *activeRun, j job, log *slog.Logger) {
	began := time.Now()
	log.Info("continuous run begins", "pairs", len(j.pairs), "timeout", j.timeout)
	limit, timedOut := context.WithCancel(ctx)
	defer timedOut()
	if j.timeout > 0 {
		limit, timedOut = context.WithTimeout(ctx, j.timeout)
		defer timedOut()
	}
	in, gaveUp := make(chan batch), make(chan struct{})
	written := make(chan error, 1)
	go func() { written <- r.write(id, a.feed, in, gaveUp) }()
	c := newContinuous(r, j, log, a.feed, began)
	c.run(limit, in, gaveUp)
	err := <-written
	r.finish(id, a.feed, endedAs(ctx, ctx.Err() == nil, err), err, log, began)
}

func newContinuous(r *Runner, j job, log *slog.Logger, f *feed, now time.Time) *continuous {
	rate := r.cfg.PerInstanceRate
	if j.rate > 0 {
		rate = min(rate, j.rate)
	}
	c := &continuous{
		r: r, log: log, job: j, test: j.options.test, own: pace.New(rate, 2), feed: f,
		pairs: make([]standing, len(j.pairs)), paths: make([]*plan.Path, len(j.pairs)), pools: newPools(j.options.test),
		results: make(chan examined), vague: map[string]time.Time{}, exams: map[uint64]*underExam{}, ways: newWays(),
		trips: newTrips(), times: newLatencyBook(j.pairs, now),
	}
	c.job.lost, c.job.options.between = batch{}, c.ways
	f.time(c.times)
	if r.stream != nil {
		c.streaming = streaming{streams: r.stream(), errors: map[string]string{}, silences: map[[2]string]*silence{}}
	}
	c.lanes, c.shared = c.own.Join(j.pairs, now), r.pace.Join(j.pairs, now)
	for i := range c.pairs {
		p := &c.pairs[i]
		p.track, p.suspect, p.since = -1, true, now
		p.shown = j.before[j.seq[i]]
	}
	for i, r := range j.lost.results {
		c.out.seq, c.out.results = append(c.out.seq, j.lost.seq[i]), append(c.out.results, r)
	}
	c.round = newRound(j.pairs, time.Duration(float64(time.Second)/rate))
	return c
}

// run goes on until ctx is done or the writer gives up. Results go to in, which is closed then.
func (c *continuous) run(ctx context.Context, in chan<- batch, gaveUp <-chan struct{}) {
	defer close(in)
	exams, stop := context.WithCancel(ctx)
	defer c.end()
	defer stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		wake := c.step(exams, now)
		timer.Reset(wake.Sub(now))
		var to chan<- batch
		if len(c.out.seq) > 0 {
			to = in
		}
		select {
		case <-ctx.Done():
			if len(c.out.seq) > 0 {
				select {
				case in <- c.out:
				case <-gaveUp:
				}
			}
			return
		case <-gaveUp:
			return
		case to <- c.out:
			c.out = batch{}
		case e := <-c.results:
			c.takeExam(e, time.Now())
		case <-wakeOf(c.patrol):
			c.patrol.take()
		case <-wakeOf(c.next):
			c.next.take()
		case <-c.streaming.wake():
			c.streamed(time.Now())
		case <-timer.C:
		}
	}
}

func wakeOf(p *patrol) <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.x.agents.Wake()
}

// end waits for examinations, and gives back what the run holds.
func (c *continuous) end() {
	done := make(chan struct{})
	go func() { c.wg.Wait(); close(done) }()
	for waiting := true; waiting; {
		select {
		case <-c.results:
		case <-done:
			waiting = false
		}
	}
	now := time.Now()
	if c.streaming.streams != nil {
		c.streaming.streams.Close()
	}
	c.r.pace.Leave(c.shared, now)
	for _, p := range []*patrol{c.patrol, c.next} {
		if p != nil {
			p.end(now)
		}
	}
}

// step does what is due at now, and returns when it wants to be called again if nothing happens.
func (c *continuous) step(ctx context.Context, now time.Time) (wake time.Time) {
	wake = now.Add(tick)
	c.follow(now)
	if c.patrol != nil {
		c.patrol.x.settle = c.wait()
		c.goRound(now)
		wake = earliest(wake, c.patrol.step(now))
	}
	if c.next != nil {
		wake = earliest(wake, c.next.step(now))
		if c.next.ready() {
			c.hand(now)
		}
	}
	c.forgetStreams(now)
	wake = earliest(wake, c.heedSilences(now))
	c.examine(ctx, now)
	wake = earliest(wake, c.infer.step(c.feed, c.r.cfg.Book, len(c.exams) == 0, now))
	if now.Sub(c.shown) >= figuresEvery {
		c.shown = now
		c.feed.figures(c.probes, c.losses())
	}
	return wake
}

// losses are the segments that lose more than is allowed, by all pairs that pass them together.
func (c *continuous) losses() []*dyetracev1.SegmentLoss {
	var all []*dyetracev1.SegmentLoss
	for _, p := range c.pools.byKey {
		if p.raised() {
			all = append(all, p.loss())
		}
	}
	slices.SortFunc(all, func(a, b *dyetracev1.SegmentLoss) int {
		return cmp.Or(a.GetSince().AsTime().Compare(b.GetSince().AsTime()), cmp.Compare(b.GetPairs(), a.GetPairs()),
			cmp.Compare(a.GetHost(), b.GetHost()), cmp.Compare(a.GetSegment().String(), b.GetSegment().String()))
	})
	return all
}

// follow begins another patrol where the last one is spent, or no longer fits the inventory.
func (c *continuous) follow(now time.Time) {
	if c.next != nil || now.Sub(c.looked) < max(replanEvery, replanTimes*c.planning) && c.patrol != nil && !c.patrol.spentOut(now) {
		return
	}
	c.looked = now
	snap := c.r.cfg.Book.Snapshot()
	var routes plan.Routes
	if c.r.cfg.Routes != nil {
		routes = c.r.cfg.Routes()
	}
	if c.patrol != nil && snap == c.planned && routes == c.routes && !c.patrol.spentOut(now) {
		return
	}
	c.planned, c.routes = snap, routes
	j := c.job
	pairs, paths, seq := c.r.paths(&j, snap)
	c.planning = time.Since(now)
	fit := c.patrol != nil && !c.patrol.spentOut(now)
	index := map[uint32]int{}
	for i, s := range c.job.seq {
		index[s] = i
	}
	fresh := make([]*plan.Path, len(c.pairs))
	for i := range paths {
		fresh[index[seq[i]]] = &paths[i]
	}
	if fit && c.patrol.misses(snap) {
		fit = false
	}
	moved := map[int]int{}
	for i := range fresh {
		if fit && !samePath(fresh[i], c.paths[i]) {
			fit = false
		}
		if fresh[i] != nil && c.paths[i] != nil && !sameWay(fresh[i], c.paths[i]) {
			moved[i] = certain
			if p := &c.pairs[i]; p.exam != 0 || p.base.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
				c.suspect(i, now) // the cause is another one, maybe
			}
		}
	}
	c.hurry(moved)
	if fit {
		c.keep(fresh)
		return
	}
	for i := range fresh {
		if c.patrol != nil && !samePath(fresh[i], c.paths[i]) {
			if !samePoints(fresh[i], c.paths[i]) {
				c.pairs[i].rtts = recent{} // those of another way
			}
			c.outdate(i, now)
		}
	}
	o := c.job.options
	o.patrol, o.measure = true, false
	cfg := c.r.cfg
	cfg.Settle = c.wait()
	x := newExecution(&cfg, c.r.pace, c.r.metrics, c.log, pairs, paths, seq, o, newKey(), 2*patrolAge, now, c.r.begin)
	back := make([]int, len(seq))
	for i, s := range seq {
		back[i] = index[s]
	}
	c.times.follow(x, back)
	c.next = newPatrol(x, now, func(m meeting) { m.pair = back[m.pair]; c.told(m) })
	c.next.paths, c.next.index = fresh, back
	c.next.waits = func(pair int) time.Duration { return c.waitFor(back[pair]) }
	c.next.cares = func(pair int) bool {
		return c.pairs[back[pair]].base.GetVerdict() == dyetracev1.Verdict_VERDICT_HEALTHY
	}
}

// hand has the next patrol take over.
func (c *continuous) hand(now time.Time) {
	if c.patrol != nil {
		c.patrol.end(now)
	}
	c.patrol, c.next = c.next, nil
	c.patrol.changed = c.changed
	if c.getting == 0 { // no examination is over that would tell
		c.getting = c.patrol.x.took[preparing]
	}
	for i := range c.pairs {
		p := &c.pairs[i]
		if !samePath(c.patrol.paths[i], c.paths[i]) {
			c.pools.leave(i, p.steps)
		}
		// What the last patrol lost, and nobody counted, was lost on the way that there was then.
		p.track, p.flying, p.steps, p.pending = -1, false, nil, nil
	}
	c.paths, c.ports, c.by = c.patrol.paths, portsOf(c.patrol.paths), byHost(c.patrol.paths)
	for local, i := range c.patrol.index {
		if c.patrol.x.blocked(local) {
			continue
		}
		p := &c.pairs[i]
		p.track = c.patrol.trackOf(local, p.base.GetScheme())
		p.steps = c.pools.steps(i, c.patrol.x.ledger.path(p.track))
	}
	c.r.metrics.patrols.Inc()
	c.stream()
}

// keep has the paths of a patrol that goes on be those that were planned now: they are probed in the same
// way, and what differs is looked at by the next planning.
func (c *continuous) keep(fresh []*plan.Path) {
	c.paths = fresh
	c.stream()
}

// told takes in what the patrol met.
func (c *continuous) told(m meeting) {
	now := time.Now()
	p := &c.pairs[m.pair]
	if !m.late {
		p.flying = false
	}
	healthy, arrives := p.base.GetVerdict() == dyetracev1.Verdict_VERDICT_HEALTHY, c.arrives(p.base)
	switch {
	case m.outcome == met && !m.late:
		c.trip(m.pair, m.rtt, m.took)
		p.row = 0
		switch {
		case c.byLarge(p.base): // what is small arrives all the time
		case !healthy:
			c.suspect(m.pair, m.sent) // healed, it seems
		default:
			c.count(m, false, now)
		}
	case arrives && (m.outcome == missed || m.outcome == unable) && p.exam != 0 && c.exams[p.exam].began.After(m.sent):
		// It was under way when the pair began to be examined, for what else is known.
	case arrives && (m.outcome == missed || m.outcome == unable):
		if p.met == nil && !p.suspect {
			p.met = m.prior
		}
		c.suspect(m.pair, m.sent)
	case m.outcome == missed && leastOf(p.base) > 1:
		if p.row++; p.row >= fewAttempts { // it lost a share: all, by now?
			p.row = 0
			c.suspect(m.pair, m.sent)
		}
	case m.outcome == lost && healthy && m.sent.After(p.sound):
		// The examination found it healthy, or is under way: then it is that one's to say.
		if !p.suspect && p.exam == 0 {
			c.count(m, true, now)
		} else {
			c.r.metrics.suspicions.Inc()
			p.pending = append(p.pending, m)
		}
	}
}

// arrives says that of a pair what is small arrives, by its last examination: what a patrol loses is news then.
func (c *continuous) arrives(r *dyetracev1.PairResult) bool {
	return r.GetVerdict() == dyetracev1.Verdict_VERDICT_HEALTHY || c.byLarge(r)
}

// byLarge says that a pair is not healthy by what large packets did, or by what is not known of them.
func (c *continuous) byLarge(r *dyetracev1.PairResult) bool {
	switch r.GetCauseKind() {
	case dyetracev1.CauseKind_CAUSE_KIND_PATH_MTU, dyetracev1.CauseKind_CAUSE_KIND_UNSEEN:
		return c.job.options.mtu && r.GetRttNs() > 0
	}
	return false
}

// count has the pools know of a probe of a healthy pair.
func (c *continuous) count(m meeting, isLost bool, now time.Time) {
	p := &c.pairs[m.pair]
	if p.track < 0 {
		return
	}
	if isLost && 2*p.rtts.slowest() > m.waited {
		return // withdrawn too early, it may be, and the answer was lost by that: it is a slow way
	}
	if isLost {
		c.r.metrics.lost.Inc()
	}
	for _, changed := range c.pools.feed(m.pair, c.paths[m.pair], p.steps, isLost, m.last, m.next, now) {
		c.log.Info("loss", "of", changed.name, "alarm", changed.guard.Alarm, "probes", changed.guard.Probes, "lost", changed.guard.Lost)
		for i := range changed.pairs {
			c.tell(i, now)
		}
	}
}
