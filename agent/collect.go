package agent

import (
	"slices"
	"time"

	"golang.org/x/time/rate"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/stain"
)

// What reading copies may take of a host's processors, whoever makes them: half of one, by what a copy
// takes (some 1 µs to read, and 30 ns for each run that it is tried against; BenchmarkFlood). The
// controller's own probes come nowhere near: 6 copies each of 20,000 a second, with 10 runs under way,
// take 16 %. Beyond it the rings fill, and the kernel counts what it drops, which makes verdicts unknown.
const (
	copyCost = 1000 // ns
	runCost  = 30
	// In ns a second: half of a processor. The burst is what a whole block of a dye port's ring may
	// take, by far.
	readBudget = 500_000_000
	readBurst  = 50_000_000
	// And beyond that, for each list of samples (gather): so much is read without waiting for what others took. The
	// burst is what a block takes, by the dearest reckoning.
	ownBudget = 10_000_000
	ownBurst  = 5_000_000
)

// collector turns copies into batches of samples. Each bridge's receive loop
// works on a list of its own.
type collector struct {
	a      *Agent
	budget *rate.Limiter // of reading, in ns
}

func newCollector(a *Agent) *collector {
	return &collector{a: a, budget: rate.NewLimiter(readBudget, readBurst)}
}

// copy takes one frame that left by a bridge's dye port.
func (c *collector) copy(b *bridge, frame []byte, atNs int64) {
	a := c.a
	var seen stain.Copy
	if err := b.stain.ParseCopy(frame, &seen); err != nil {
		b.gather.handled++
		a.reject()
		return
	}
	c.take(&b.gather, &seen, atNs)
}

// take takes one sighting, at time atNs of CLOCK_MONOTONIC.
func (c *collector) take(g *gather, seen *stain.Copy, atNs int64) {
	a, b := c.a, g.bridge
	g.handled++
	if seen.Close {
		return // a probe being withdrawn, not a sample
	}
	if g.repeats.tooMany(seen, atNs) {
		a.reject()
		return
	}
	known := false
	for _, r := range a.runs.snapshot() {
		index, ok := r.tokens.Index(seen.Token)
		if !ok {
			continue
		}
		known = true
		if seen.Reply && seen.Kind == stain.ToInstance {
			a.open.answered(r.id, index, b)
		}
		if !a.cap.Allow() {
			b.lost.Add(1)
			a.metrics.lost.Inc()
			continue
		}
		c.batch(g, r).add(r, index, seen, atNs-a.started)
		a.sampleCount.Add(1)
		a.metrics.samples.Inc()
	}
	if !known {
		a.reject()
	}
}

func (a *Agent) reject() {
	a.rejectedCount.Add(1)
	a.metrics.rejected.Inc()
}

// batch returns the open batch of a run at a bridge; a full one is sent first.
func (c *collector) batch(g *gather, r *activeRun) *batch {
	i := slices.IndexFunc(g.batches, func(x *batch) bool { return x.run == r.id })
	if i >= 0 && len(g.batches[i].msg.Index) >= batchSize {
		c.send(g.bridge, g.batches[i])
		g.batches = slices.Delete(g.batches, i, i+1)
		i = -1
	}
	if i < 0 {
		g.batches = append(g.batches, newBatch(r.id, g.bridge.name))
		i = len(g.batches) - 1
	}
	return g.batches[i]
}

// flush sends what was gathered, and sleeps if reading took too much of the host. Who reads little does not wait for
// what others took.
func (c *collector) flush(g *gather) {
	for _, x := range g.batches {
		c.send(g.bridge, x)
	}
	g.batches = g.batches[:0]
	cost := g.handled * (copyCost + runCost*len(c.a.runs.snapshot()))
	g.handled = 0
	if g.own == nil {
		g.own = rate.NewLimiter(ownBudget, ownBurst)
	}
	if g.own.AllowN(time.Now(), cost) {
		return
	}
	time.Sleep(c.budget.ReserveN(time.Now(), min(cost, readBurst)).Delay())
}

func (c *collector) send(b *bridge, x *batch) {
	ok := c.a.outbox.offer(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Samples{Samples: x.msg}})
	if !ok {
		b.lost.Add(uint64(len(x.msg.Index)))
		c.a.metrics.lost.Add(float64(len(x.msg.Index)))
	}
}

// gather is the samples of one bridge that one receive loop has not sent yet.
type gather struct {
	bridge  *bridge
	batches []*batch
	handled int           // copies since the last flush
	own     *rate.Limiter // of reading, in ns; nil before the first
	repeats repeats
}

// maxRepeats is how often within a second a packet may be seen at one point, and each time be a
// sample. A probe is seen once, or a few times where something floods it; a guest that has seen one
// can send it again as fast as it likes, and would use up what the host and the controller have for
// the samples of others.
const maxRepeats = 16

// repeats counts, of the packets seen last, how often each was seen. Of two that share a place the
// later one has it, so a packet may be let by that came too often, and none is held back that did not.
type repeats [1024]struct {
	second int64
	token  uint32
	inPort uint16
	point  uint8 // kind, and if it is an answer
	count  uint8
}

// tooMany takes in that a packet was seen, and tells whether that was once too often.
func (r *repeats) tooMany(seen *stain.Copy, atNs int64) bool {
	second, point := atNs/1e9, uint8(seen.Kind)<<1
	if seen.Reply {
		point |= 1
	}
	x := &r[(seen.Token^uint32(seen.InPort)<<16^uint32(point))*2654435761>>22] // Fibonacci hashing
	if x.token != seen.Token || x.inPort != seen.InPort || x.point != point || x.second != second {
		x.second, x.token, x.inPort, x.point, x.count = second, seen.Token, seen.InPort, point, 1
		return false
	}
	if x.count >= maxRepeats {
		return true
	}
	x.count++
	return false
}
