package run

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// looker is a cast that has a look at a run whenever the run asks for probes.
type looker struct {
	*cast
	look func()
}

func (c looker) Inject(host int, m *dyetracev1.Inject) {
	c.look()
	c.cast.Inject(host, m)
}

// Until when a silent pair is watched does not hang on how long it takes to find that out: whoever looks with a
// time of some milliseconds ago comes to the same.
func TestDueIsSteady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig
		cfg.Patience = 2 * time.Second
		pairs, paths := pathsOf(t, site(t, 2), plan.Scope{Kind: plan.OnePair, Src: "i0", Dst: "i1"})
		c := newCastOf(paths, options{scheme: stain.ICMP})
		c.lost = func(s shot) bool { return paths[0].Points[s.point].Direction == plan.Reply }
		c.explain = delivered(paths[0].To.Port)
		var x *execution
		looks := 0
		c.plays = looker{c, func() {
			now := time.Now()
			due := x.due(0, now)
			if !due.After(now) {
				return // nothing was sent yet
			}
			looks++
			for _, ago := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
				if early := x.due(0, now.Add(-ago)); !early.Equal(due) {
					t.Errorf("due in %v, and by the time of %v ago %v before", due.Sub(now), ago, due.Sub(early))
				}
			}
		}}
		x = newExecution(&cfg, pace.New(10, 10), c.metrics, slog.New(slog.DiscardHandler),
			pairs, c.paths, []uint32{100}, c.options(), stain.Key{1}, time.Minute, time.Now(), c.begin)
		in := make(chan batch, 1)
		x.run(t.Context(), in, nil)
		if r := (<-in).results[0]; r.Verdict != dyetracev1.Verdict_VERDICT_SILENT {
			t.Errorf("%v (want silent)", r)
		}
		if looks == 0 {
			t.Error("never was a pair due later")
		}
		x.release(time.Now())
	})
}
