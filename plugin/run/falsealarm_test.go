package run

import (
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/sequential"
)

// alarmRate is how often a plain check calls a pair anything but healthy that loses this share of its
// probes by chance: exactly, by the distribution over the number lost, probe by probe.
func alarmRate(loss float64) float64 {
	p := testOf(nil)
	alarms := 0.0
	alive := map[int]float64{1: loss} // after one probe, by how many were lost; one that arrives ends it
	for n := 1; len(alive) > 0; n++ {
		next := map[int]float64{}
		for lost, w := range alive {
			d := sequential.More
			switch {
			case lost == n && n == hardAttempts:
				d = sequential.Above
			case lost < n:
				d = p.Decide(n, lost)
			}
			switch d {
			case sequential.Above:
				alarms += w
			case sequential.More:
				next[lost] += w * (1 - loss)
				next[lost+1] += w * loss
			}
		}
		alive = next
	}
	return alarms
}

// TestFalseAlarmRate: of a million healthy pairs, at most one is called anything else, whether their
// paths lose 0.1 % or 1 % of all packets by chance, and whether that is of probes or each way.
func TestFalseAlarmRate(t *testing.T) {
	t.Parallel()
	for _, loss := range []float64{0.001, 0.01} {
		ways := 1 - (1-loss)*(1-loss)
		for _, of := range []float64{loss, ways} {
			if rate := alarmRate(of); rate > 1e-6 || rate <= 0 {
				t.Errorf("of pairs that lose %g %% of their probes, %g are not healthy", 100*of, rate)
			} else {
				t.Logf("%g %%: %.2g false alarms in a million pairs", 100*of, 1e6*rate)
			}
		}
	}
}

// TestFalseAlarms has real runs meet chance that is a great deal worse, so that alarms are many, and
// compares how many there are with what alarmRate computes: its rule is the one that runs go by.
func TestFalseAlarms(t *testing.T) {
	t.Parallel()
	for _, loss := range []float64{0.1, 0.2, 0.5} {
		rng := rand.New(rand.NewPCG(2026, uint64(1000*loss)))
		runs, alarms := 60, 0
		if testing.Short() {
			runs = 10
		}
		pairs, paths := pathsOf(t, site(t, 8), allPairs)
		for range runs {
			synctest.Test(t, func(t *testing.T) {
				c := newCast(paths)
				c.quiet = true
				type probe struct{ pair, attempt int }
				lost := map[probe]bool{} // in the tunnel, or in the switch of those of one host
				c.lost = func(s shot) bool {
					if p := (probe{s.pair, s.attempt}); s.point == 0 {
						lost[p] = rng.Float64() < loss
					}
					return s.point > 0 && lost[probe{s.pair, s.attempt}]
				}
				c.explain = &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_DROPPED, Flow: &dyetracev1.FlowRef{Bridge: "br-int", Table: 60}}
				cfg := testConfig
				cfg.PerInstanceRate, cfg.PerInstanceBurst = 1000, 1000
				got, _, whole := play(t.Context(), cfg, c, pairs, 5*time.Minute)
				if !whole || len(got) != len(pairs) {
					t.Fatalf("%d of %d pairs, whole %t", len(got), len(pairs), whole)
				}
				for _, r := range got {
					if r.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
						alarms++
					}
				}
			})
		}
		n := float64(runs * len(pairs))
		want := alarmRate(loss)
		// Five standard deviations: chance once in two million.
		if sigma := math.Sqrt(want * (1 - want) / n); math.Abs(float64(alarms)/n-want) > 5*sigma {
			t.Errorf("%g %%: %d of %g pairs are not healthy, want a share of %g", 100*loss, alarms, n, want)
		}
	}
}
