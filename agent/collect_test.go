package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dyetrace/dyetrace/stain"
)

// Whoever makes the copies, and however many: reading them takes half a processor, by what we reckon
// that it takes, and no time is lost before there are too many.
func TestReadingIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := assemble(DefaultConfig(), "test", nil, prometheus.NewRegistry(), testLog(t))
		for run := range uint64(10) {
			if err := a.runs.add(prepare(run+1, 1000), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		const copies = 1_000_000
		c, g := newCollector(a), &gather{bridge: &bridge{}}
		begun := time.Now()
		for range copies / 400 { // blocks
			for range 400 {
				c.take(g, &stain.Copy{Kind: stain.FromInstance, Token: 1}, int64(time.Since(begun)))
			}
			c.flush(g)
		}
		// 1 µs and 10 times 30 ns each, of which the first 55 ms are free.
		want := time.Duration(1300*copies-readBurst-ownBurst) * time.Second / (readBudget + ownBudget)
		if took := time.Since(begun); took < want-2*time.Millisecond || took > want+2*time.Millisecond {
			t.Errorf("%d copies took %v of waiting (want %v)", copies, took, want)
		}
		begun = time.Now()
		time.Sleep(time.Second)
		for range 120 { // 6 of 20 probes each
			c.take(g, &stain.Copy{Kind: stain.FromInstance, Token: 2}, 0)
		}
		if c.flush(g); time.Since(begun) != time.Second {
			t.Errorf("120 copies took %v", time.Since(begun)-time.Second)
		}
		// Another reader's debts are not waited for by one that reads little.
		g.handled = 1_000_000
		go c.flush(g)
		synctest.Wait()
		begun = time.Now()
		quiet := &gather{bridge: &bridge{}, handled: 1000}
		if c.flush(quiet); time.Since(begun) != 0 {
			t.Errorf("beside a flood, 1000 copies took %v", time.Since(begun))
		}
		quiet.handled = 100_000
		if c.flush(quiet); time.Since(begun) < 100*time.Millisecond {
			t.Errorf("beside a flood, 100,000 copies took %v", time.Since(begun))
		}
	})
}

// A packet that comes too often is no more samples than maxRepeats a second and point; one that
// comes between is not held back for it.
func TestRepeats(t *testing.T) {
	t.Parallel()
	var r repeats
	for second := range int64(3) {
		passed := 0
		for i := range 10_000 {
			at := second*1e9 + int64(i)
			if !r.tooMany(&stain.Copy{Kind: stain.FromInstance, Token: 7, InPort: 1}, at) {
				passed++
			}
			for j, other := range []stain.Copy{
				{Kind: stain.FromInstance, Token: uint32(10_000 + i), InPort: 1},
				{Kind: stain.ToInstance, Token: uint32(10_000 + i), InPort: 1},
				{Kind: stain.FromInstance, Token: uint32(10_000 + i), InPort: 2},
				{Kind: stain.FromInstance, Token: uint32(10_000 + i), InPort: 1, Reply: true},
			} {
				if r.tooMany(&other, at) {
					t.Fatalf("packet %d.%d was held back at its first sight", i, j)
				}
			}
		}
		// Others take its place now and then, and it begins anew.
		if most := maxRepeats * (1 + 10_000*4/len(r)); passed < maxRepeats || passed > most {
			t.Errorf("second %d: %d sights of one packet passed (want %d to %d)", second, passed, maxRepeats, most)
		}
	}
}
