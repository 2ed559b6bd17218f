package sequential

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// outcome is what a test does on a path, exactly.
type outcome struct {
	above, within, open, probes float64
}

// exact follows all ways that a test can take on a path that loses the share p: the distribution
// over the number lost, probe by probe.
func exact(p Plan, rate float64) outcome {
	var o outcome
	alive := []float64{1} // by how many were lost
	for n := 1; n <= p.Max && len(alive) > 0; n++ {
		next := make([]float64, len(alive)+1)
		for lost, w := range alive {
			if w == 0 {
				continue
			}
			o.probes += w
			for k, share := range []float64{1 - rate, rate} {
				switch p.Decide(n, lost+k) {
				case Above:
					o.above += w * share
				case Within:
					o.within += w * share
				case Open:
					o.open += w * share
				default:
					next[lost+k] += w * share
				}
			}
		}
		alive = next
	}
	return o
}

func drawPlan(t *rapid.T) Plan {
	p0 := rapid.Float64Range(0.001, 0.05).Draw(t, "p0")
	return Plan{
		P0: p0, P1: min(p0*rapid.Float64Range(3, 20).Draw(t, "ratio"), 0.9),
		Alpha: math.Pow(10, -rapid.Float64Range(1, 8).Draw(t, "alpha")), Beta: math.Pow(10, -rapid.Float64Range(1, 3).Draw(t, "beta")),
		Max: rapid.IntRange(1, 300).Draw(t, "max"),
	}
}

// TestErrorRates holds Wald's bounds against the exact outcome, and the exact one against chance.
func TestErrorRates(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := drawPlan(t)
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		good, bad := exact(p, p.P0), exact(p, p.P1)
		for _, o := range []outcome{good, bad} {
			if sum := o.above + o.within + o.open; math.Abs(sum-1) > 1e-9 || o.probes > float64(p.Max)+1e-6 {
				t.Fatalf("%+v: %+v adds up to %g", p, o, sum)
			}
		}
		if good.above > p.Alpha/(1-p.Beta) || bad.within > p.Beta/(1-p.Alpha) {
			t.Fatalf("%+v: called above at p0 in %g of cases, within at p1 in %g", p, good.above, bad.within)
		}
		// What loses less than P0 is called Above less often still.
		if better := exact(p, p.P0/2); better.above > good.above*(1+1e-9) {
			t.Fatalf("%+v: above in %g at p0, in %g at half of it", p, good.above, better.above)
		}
	})
}

// TestErrorRatesBySimulation draws probes, and looks after each.
func TestErrorRatesBySimulation(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(5, 5))
	for _, p := range []Plan{
		{P0: 0.01, P1: 0.2, Alpha: 0.02, Beta: 0.1, Max: 64},
		{P0: 0.001, P1: 0.01, Alpha: 0.05, Beta: 0.05, Max: 2000},
	} {
		const runs = 20_000
		for _, rate := range []float64{p.P0, p.P1} {
			want := exact(p, rate)
			var above, probes float64
			for range runs {
				lost := 0
				for n := 1; ; n++ {
					if rng.Float64() < rate {
						lost++
					}
					d := p.Decide(n, lost)
					if d == More {
						continue
					}
					if d == Above {
						above++
					}
					probes += float64(n)
					break
				}
			}
			sigma := math.Sqrt(want.above*(1-want.above)/runs) + 1e-9
			if got := above / runs; math.Abs(got-want.above) > 5*sigma {
				t.Errorf("%+v at %g: above in %g of runs, computed %g", p, rate, got, want.above)
			}
			if got := probes / runs; math.Abs(got-want.probes) > 0.05*want.probes {
				t.Errorf("%+v at %g: %g probes, computed %g", p, rate, got, want.probes)
			}
			if e := p.Expected(rate); e < 0.5*want.probes || e > 2*want.probes {
				t.Errorf("%+v at %g: Expected = %g, computed %g", p, rate, e, want.probes)
			}
		}
	}
}

// A test ends: at any count that was not decided before, and at Max in any case.
func TestTerminates(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := drawPlan(t)
		lost := rapid.IntRange(0, p.Max).Draw(t, "lost")
		if d := p.Decide(p.Max, lost); d == More {
			t.Fatalf("%+v: %d of %d lost wants more", p, lost, p.Max)
		}
		// One more lost never speaks for the path.
		n := rapid.IntRange(lost+1, p.Max+1).Draw(t, "n")
		if a, b := p.Decide(n, lost), p.Decide(n, lost+1); a == Above && b != Above || b == Within && a != Within {
			t.Fatalf("%+v: %d of %d is %v, %d is %v", p, lost, n, a, lost+1, b)
		}
	})
}

func TestAllLost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		p0, alpha float64
		want      int
	}{{0.01, 1e-6, 3}, {0.01, 1e-7, 4}, {0.01, 1e-8, 4}, {0.001, 1e-6, 2}, {0.1, 1e-3, 3}, {0.5, 0.9, 1}} {
		if got := AllLost(tt.p0, tt.alpha); got != tt.want {
			t.Errorf("AllLost(%g, %g) = %d, want %d", tt.p0, tt.alpha, got, tt.want)
		}
	}
}

// A path that loses the same share all the time is hardly ever said to have turned, one that turned is soon.
func TestTurned(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ arrived, lost, last int }{{20, 1, 6}, {10, 10, 29}, {20, 0, 4}, {100, 1, 4}, {3, 0, 36}} {
		if Turned(tt.arrived, tt.lost+tt.last-1, tt.last-1) || !Turned(tt.arrived, tt.lost+tt.last, tt.last) {
			t.Errorf("after %d that arrived and %d that were lost it is not the %dth lost in a row that tells", tt.arrived, tt.lost, tt.last)
		}
	}
	for _, c := range [][3]int{{0, 9, 9}, {9, 9, 0}, {20, 3, 9}} {
		if Turned(c[0], c[1], c[2]) {
			t.Errorf("%d arrived, %d lost, %d of these last: turned", c[0], c[1], c[2])
		}
	}
	const paths, probes = 20_000, 150
	rng := rand.New(rand.NewPCG(3, 3))
	for _, rate := range []float64{0.02, 0.1, 0.3, 0.5, 0.8} {
		turned := 0
		for range paths {
			arrived, lost, last := 0, 0, 0
			for range probes {
				if last++; rng.Float64() < rate {
					lost++
				} else {
					arrived, last = arrived+1, 0
				}
				if Turned(arrived, lost, last) {
					turned++
					break
				}
			}
		}
		if turned > 2*paths/turnedOdds {
			t.Errorf("%d of %d paths that lose %g are said to have turned", turned, paths, rate)
		}
	}
}

// TestGuard has alarms no more often than promised, as soon as computed, and cleared again.
func TestGuard(t *testing.T) {
	t.Parallel()
	p := Plan{P0: 0.01, P1: 0.1, Alpha: 1e-3, Beta: 0.01, Max: 1}
	rng := rand.New(rand.NewPCG(1, 2))
	// Count probes from the start, not from the last suspicion.
	count := func(rate float64, runs int) float64 {
		total := 0
		for range runs {
			var g Guard
			for {
				total++
				if g.Add(p, rng.Float64() < rate) {
					break
				}
			}
		}
		return float64(total) / float64(runs)
	}
	if got := count(p.P0, 60); got < 1/p.Alpha {
		t.Errorf("an alarm every %g probes at p0, promised at least %g", got, 1/p.Alpha)
	}
	if got := count(p.P1, 400); got > 200 {
		t.Errorf("an alarm after %g probes at p1", got)
	}
	var g Guard
	for !g.Add(p, true) {
	}
	if !g.Alarm || g.Lost != g.Probes || g.Lost > 4 {
		t.Errorf("all lost: %+v", g)
	}
	n := 0
	for ; g.Alarm; n++ {
		g.Add(p, false)
	}
	if n > 100 || g.Probes != 0 {
		t.Errorf("cleared after %d probes that arrived: %+v", n, g)
	}
	// On a path that still loses too much an alarm stands, mostly; and its figures are those of late.
	stood := 0
	for range 20 {
		g = Guard{Alarm: true}
		for ; g.Alarm && stood < 20/clearing; stood++ {
			g.Add(p, rng.Float64() < p.P1)
			if g.Lost > fadeAt {
				t.Fatalf("figures of %d lost probes", g.Lost)
			}
		}
	}
	if stood < 20/clearing {
		t.Errorf("20 alarms stood for %d probes together at p1, promised %g", stood, 20/clearing)
	}
}

// runLength is how many probes a guard takes on average from healthy to its alarm, on a path that loses that share:
// of the Markov chain of its score, in steps of a probe that arrives (D. Brook and D. A. Evans, 1972).
func runLength(p Plan, rate float64) float64 {
	lost, arrived := p.steps()
	up, top := int(math.Round(lost/-arrived)), int(math.Ceil(math.Log(1/p.Alpha)/-arrived))
	// From score s it is a[s] + b[s]*x, x being that from 0. Swept until nothing changes.
	a, b := make([]float64, top), make([]float64, top)
	b[0] = 1
	after := func(s int) (float64, float64) {
		if s+up < top {
			return a[s+up], b[s+up]
		}
		return 0, 0
	}
	for changed := 1.0; changed > 1e-15; {
		changed = 0
		for s := 1; s < top; s++ {
			ua, ub := after(s)
			na, nb := 1+(1-rate)*a[s-1]+rate*ua, (1-rate)*b[s-1]+rate*ub
			changed = max(changed, math.Abs(na-a[s])/(1+na)+math.Abs(nb-b[s]))
			a[s], b[s] = na, nb
		}
	}
	ua, ub := after(0)
	return (1 + rate*ua) / (rate - rate*ub)
}

// TestGuardRunLength holds what docs/continuous.md says of how soon a guard's alarm is raised, and how often falsely.
func TestGuardRunLength(t *testing.T) {
	t.Parallel()
	p := Plan{P0: 0.001, P1: 0.01, Alpha: 1e-8, Beta: 0.01, Max: 1}
	for _, tt := range []struct{ rate, low, high float64 }{
		{0.01, 1300, 1320}, {0.05, 178, 184}, {0.001, 3.2e10, 3.4e10}, {0.0005, 6e13, 7e13},
	} {
		if got := runLength(p, tt.rate); got < tt.low || got > tt.high {
			t.Errorf("an alarm after %.4g probes on average at a loss of %g, want %.4g to %.4g", got, tt.rate, tt.low, tt.high)
		}
	}
	// The chain against chance, where that is soon.
	p.Alpha = 1e-3
	rng := rand.New(rand.NewPCG(3, 9))
	const runs = 300
	for _, rate := range []float64{0.002, 0.01, 0.05} {
		total := 0
		for range runs {
			for g := (Guard{}); ; {
				total++
				if g.Add(p, rng.Float64() < rate) {
					break
				}
			}
		}
		if got, want := float64(total)/runs, runLength(p, rate); got < want*0.75 || got > want*1.25 {
			t.Errorf("at %g: %g probes on average, computed %g", rate, got, want)
		}
	}
}

// Many at once raise no alarm that one at a time does not, and find a loss hardly later.
func TestGuardMany(t *testing.T) {
	t.Parallel()
	p := Plan{P0: 0.001, P1: 0.01, Alpha: 1e-10, Beta: 0.01, Max: 1}
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.SampledFrom([]float64{0.0005, 0.001, 0.003, 0.01, 0.05}).Draw(t, "rate")
		batch := rapid.IntRange(1, 120).Draw(t, "batch")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		var one, many Guard
		alarm := -1
		for n := 0; n < 4000 && !many.Alarm; n += batch {
			lost := 0
			for range batch {
				is := rng.Float64() < rate
				if is {
					lost++
				}
				if alarm < 0 && one.Add(p, is) {
					alarm = n
				}
			}
			many.AddMany(p, batch, lost)
			if many.Alarm && alarm < 0 {
				t.Fatalf("after %d probes many at once raise an alarm, one at a time does not", n+batch)
			}
		}
		if alarm >= 0 && alarm < 3000 && rate >= 0.01 && !many.Alarm {
			t.Fatalf("an alarm after %d probes one at a time, none by %d at once", alarm, batch)
		}
	})
}

func TestLossInterval(t *testing.T) {
	t.Parallel()
	// R 4.2: binom.test(x, n)$conf.int
	for _, tt := range []struct {
		n, k   int
		lo, hi float64
	}{
		{10, 0, 0, 0.3084971}, {10, 10, 0.6915029, 1}, {350, 14, 0.0220365, 0.0662145},
		{20, 1, 0.001265089, 0.2487328}, {1000, 10, 0.004806, 0.018313},
	} {
		i := Loss(tt.n, tt.k)
		if math.Abs(i.Low-tt.lo) > 2e-5 || math.Abs(i.High-tt.hi) > 2e-5 {
			t.Errorf("%d of %d: %g to %g, want %g to %g", tt.k, tt.n, i.Low, i.High, tt.lo, tt.hi)
		}
	}
	if i := Loss(0, 0); i != (Interval{0, 1}) {
		t.Errorf("nothing known: %+v", i)
	}
}

// The interval covers the true rate as often as it says, whatever the rate and the number: summed
// exactly over all outcomes.
func TestLossIntervalCovers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 150).Draw(t, "n")
		p := rapid.Float64Range(0.0005, 0.9995).Draw(t, "p")
		covered := 0.0
		for k := 0; k <= n; k++ {
			i := Loss(n, k)
			if i.Low > i.High || i.Low > float64(k)/float64(n) || i.High < float64(k)/float64(n) {
				t.Fatalf("%d of %d: %+v", k, n, i)
			}
			if i.Low <= p && p <= i.High {
				a, _ := math.Lgamma(float64(n + 1))
				b, _ := math.Lgamma(float64(k + 1))
				c, _ := math.Lgamma(float64(n - k + 1))
				covered += math.Exp(a - b - c + float64(k)*math.Log(p) + float64(n-k)*math.Log1p(-p))
			}
		}
		if covered < Confidence-1e-9 {
			t.Fatalf("of %d probes at %g, %g covered", n, p, covered)
		}
	})
}

// Quantiles are within the stated error of those of the sorted values, and merging is adding.
func TestDigest(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Int64Range(0, int64(time.Minute)), 1, 300).Draw(t, "values")
		var whole, a, b Digest
		for i, v := range values {
			whole.Add(time.Duration(v))
			if i%2 == 0 {
				a.Add(time.Duration(v))
			} else {
				b.Add(time.Duration(v))
			}
		}
		a.Merge(&b)
		slices.Sort(values)
		for _, q := range []float64{0, 0.5, 0.9, 0.99, 1} {
			got := whole.Quantile(q)
			if merged := a.Quantile(q); merged != got {
				t.Fatalf("p%g is %v, merged %v", 100*q, got, merged)
			}
			want := float64(values[max(int(math.Ceil(q*float64(len(values)))), 1)-1])
			if math.Abs(float64(got)-want) > RelativeError*want+1 {
				t.Fatalf("p%g = %v, want %v", 100*q, got, time.Duration(want))
			}
		}
		if whole.Count() != uint64(len(values)) || a.Count() != whole.Count() || whole.Max() != time.Duration(values[len(values)-1]) {
			t.Fatalf("%d values, longest %v", whole.Count(), whole.Max())
		}
	})
	var d Digest
	if d.Quantile(0.5) != 0 {
		t.Error("an empty digest has a median")
	}
	d.Add(-5)
	d.Add(100 * time.Hour)
	if d.Quantile(0.1) > 1 || d.Max() != 100*time.Hour || len(d.counts) > maxBuckets {
		t.Errorf("extremes: %+v, %d buckets", d.Quantile(0.1), len(d.counts))
	}
}

func ExamplePlan_Expected() {
	p := Plan{P0: 0.001, P1: 0.01, Alpha: 1e-6, Beta: 0.01, Max: 3000}
	fmt.Printf("%.0f probes where nothing is lost, %.0f at 1 %%\n", p.Expected(0), p.Expected(0.01))
	// Output: 509 probes where nothing is lost, 968 at 1 %
}
