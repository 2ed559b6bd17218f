package run

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
)

// TestTests holds what help and pages say of the tests.
func TestTests(t *testing.T) {
	t.Parallel()
	for _, o := range []*dyetracev1.ProbeOptions{nil, {Loss: true}, {Loss: true, MaxLoss: MinLoss}, {MaxLoss: MaxLoss}, {Continuous: true}} {
		if err := testOf(o).Validate(); err != nil {
			t.Errorf("%v: %v", o, err)
		}
	}
	// As the command line's help and docs/loss.md have it.
	for _, tt := range []struct {
		rate       float64
		none, most int
		average    float64
	}{{0.01, 521, 3600, 1030}, {0.05, 102, 720, 204}, {0.2, 24, 180, 49}} {
		p := testOf(&dyetracev1.ProbeOptions{Loss: true, MaxLoss: tt.rate})
		if p.Decide(tt.none-1, 0) != sequential.More || p.Decide(tt.none, 0) != sequential.Within || p.Max != tt.most {
			t.Errorf("%g: not %d probes where nothing is lost, or not %d at the most: %+v", tt.rate, tt.none, tt.most, p)
		}
		if got := follow(p, tt.rate, false).probes; math.Abs(got-tt.average) > tt.average/100 {
			t.Errorf("%g: %.1f probes on average, docs/loss.md has %g", tt.rate, got, tt.average)
		}
	}
	if p := testOf(nil); p.Decide(23, 1) != sequential.More || p.Decide(24, 1) != sequential.Within || p.Max != 90 {
		t.Errorf("%+v does not take 24 probes where one is lost, or not 90 at the most", p)
	}
}

// end is how a test ends on a path that always loses the same share, exactly.
type end struct{ above, within, open, probes float64 }

// follow goes all ways that a test can take, by how many were lost: from its first probe, or from one that was lost.
func follow(p sequential.Plan, rate float64, looked bool) (e end) {
	alive := map[int]float64{0: 1}
	if looked {
		alive, e.probes = map[int]float64{1: 1}, 1
	}
	for n := int(e.probes) + 1; len(alive) > 0; n++ {
		next := map[int]float64{}
		for lost, share := range alive {
			e.probes += share
			for more, w := range []float64{share * (1 - rate), share * rate} {
				switch p.Decide(n, lost+more) {
				case sequential.Above:
					e.above += w
				case sequential.Within:
					e.within += w
				case sequential.Open:
					e.open += w
				default:
					next[lost+more] += w
				}
			}
		}
		alive = next
	}
	return e
}

// TestTestRates holds what is said of how often tests are wrong against what they do exactly. What ends open is
// called healthy, as what is within.
func TestTestRates(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name          string
		measured      bool
		rate          float64
		accuse, spare float64 // at the most, of those that lose what is allowed, and what is too much
	}{
		{"a plain check", false, quickLoss, 1e-7, 0.1},
		{"a plain check that allows less", false, someLoss, 1e-7, 0.1},
		{"a plain check that allows hardly any", false, MinLoss, 1e-7, 0.1},
		{"a plain check that allows much", false, MaxLoss, 1e-7, 0.1},
		{"measured", true, someLoss, 1e-6, 0.01},
		{"measured, 5 %", true, 0.05, 1e-6, 0.01},
		{"measured, 20 %", true, 0.2, 1e-6, 0.01},
		{"measured, the least", true, MinLoss, 1e-6, 0.01},
		{"measured, the most", true, MaxLoss, 1e-6, 0.01},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := testOf(&dyetracev1.ProbeOptions{Loss: tt.measured, MaxLoss: tt.rate})
			good, bad := follow(p, p.P0, false), follow(p, p.P1, !tt.measured)
			if good.above > tt.accuse {
				t.Errorf("of those that lose %g, %.3g are accused", p.P0, good.above)
			}
			if spared := bad.within + bad.open; spared > tt.spare {
				t.Errorf("of those that lose %g, %.4g are called healthy: %.4g within, %.4g open", p.P1, spared, bad.within, bad.open)
			}
			if worse := follow(p, p.P1+(1-p.P1)/20, !tt.measured); worse.within+worse.open > bad.within+bad.open {
				t.Errorf("what loses more than %g is called healthy more often: %+v", p.P1, worse)
			}
		})
	}
}

// TestLoss has one pair lose some of its probes in the tunnel, or elsewhere.
func TestLoss(t *testing.T) {
	t.Parallel()
	every := func(n int, at int) func(*cast) {
		return func(c *cast) { c.lost = func(s shot) bool { return s.attempt%n == 0 && s.point > at } }
	}
	loss := &dyetracev1.ProbeOptions{Loss: true}
	tests := []struct {
		name    string
		asks    *dyetracev1.ProbeOptions
		options options
		cast    []func(*cast)
		timeout time.Duration
		verdict dyetracev1.Verdict
		cause   string
		probes  uint32
		counted string
	}{
		{
			name: "nothing", asks: loss, options: byTCP, verdict: dyetracev1.Verdict_VERDICT_HEALTHY,
			probes: 521, counted: "0 of 521, within",
		}, {
			name: "half, a plain check", options: byTCP, cast: []func(*cast){every(2, leftHost)}, verdict: dyetracev1.Verdict_VERDICT_FAULTY,
			cause:  "loses 50 % (23-77 %, 95 %) of 14 probes between hv1/br-tun to-tunnel and hv2/br-tun from-tunnel, besides the first that was lost",
			probes: 15, counted: "7 of 14, above",
		}, {
			name: "one in thirty", asks: loss, options: byTCP, cast: []func(*cast){every(30, leftHost)}, verdict: dyetracev1.Verdict_VERDICT_FAULTY,
			cause:  "between hv1/br-tun to-tunnel and hv2/br-tun from-tunnel",
			probes: 181, counted: "7 of 181, above",
		}, {
			name: "one in fifty, of which less is allowed", asks: &dyetracev1.ProbeOptions{Loss: true, MaxLoss: 0.2}, options: byTCP,
			cast: []func(*cast){every(50, leftHost)}, verdict: dyetracev1.Verdict_VERDICT_HEALTHY, cause: "from-tunnel, less than 20 %",
			probes: 36, counted: "1 of 36, within",
		}, {
			name: "in a switch, by tcp", asks: loss, options: byTCP, cast: []func(*cast){every(10, 0)}, verdict: dyetracev1.Verdict_VERDICT_UNKNOWN,
			cause: "icmp would tell", probes: 61, counted: "7 of 61, above",
		}, {
			name: "in a switch, by tcp and icmp", asks: loss, options: auto, cast: []func(*cast){every(10, 0)}, verdict: dyetracev1.Verdict_VERDICT_FAULTY,
			cause: "icmp echo is lost there too", probes: 122, counted: "7 of 61, above",
		}, {
			name: "by the guest", asks: loss, options: byTCP, cast: []func(*cast){every(10, atGuest)}, verdict: dyetracev1.Verdict_VERDICT_UNKNOWN,
			cause: "by the network or by i1 itself", probes: 71, counted: "7 of 70, above",
		}, {
			name: "no time to tell", asks: loss, options: byTCP, timeout: 8 * time.Second, verdict: dyetracev1.Verdict_VERDICT_HEALTHY,
			cast: []func(*cast){every(40, leftHost)}, cause: "too few to tell whether that is more than 0.1 %", probes: 68, counted: "2 of 68, open",
		}, {
			name: "samples of ours were lost", asks: loss, options: byTCP, verdict: dyetracev1.Verdict_VERDICT_HEALTHY,
			cast:  []func(*cast){every(30, leftHost), func(c *cast) { c.drops = true }},
			cause: "7 of 181 probes could not be followed", probes: 181, counted: "0 of 174, open",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				pairs, paths := pathsBy(t, site(t, 2), probed("i0", "i1"), plan.Options{})
				c := newCastOf(paths, tt.options)
				c.asks = tt.asks
				for _, f := range tt.cast {
					f(c)
				}
				if tt.timeout == 0 {
					tt.timeout = 10 * time.Minute
				}
				got, _, whole := play(t.Context(), testConfig, c, pairs, tt.timeout)
				r := got[100]
				l := r.GetLoss()
				counted := fmt.Sprintf("%d of %d, %s", l.GetLost(), l.GetProbes(), strings.ToLower(strings.TrimPrefix(l.GetDecision().String(), "LOSS_DECISION_")))
				if !whole || r.GetVerdict() != tt.verdict || !strings.Contains(r.GetCause(), tt.cause) {
					t.Errorf("%v: %s; want %v: %s", r.GetVerdict(), r.GetCause(), tt.verdict, tt.cause)
				}
				if r.GetProbes() != tt.probes || counted != tt.counted {
					t.Errorf("%d probes, %s lost; want %d, %s", r.GetProbes(), counted, tt.probes, tt.counted)
				}
				if tt.asks.GetLoss() && (len(r.Latencies) != 7 || r.Latencies[0].Kind != dyetracev1.LatencyKind_LATENCY_KIND_RTT || r.Latencies[0].P50Ns == 0) {
					t.Errorf("latencies %v, want the round trip, five parts on hosts and the tunnel", r.Latencies)
				}
			})
		})
	}
}

// TestPoolOwnPlace: a pair's own pool is judged by where most of what it has counted was lost. What the guest may have lost is no fault.
func TestPoolOwnPlace(t *testing.T) {
	t.Parallel()
	_, paths := pathsOf(t, site(t, 6), allPairs)
	pair := slices.IndexFunc(paths, func(p plan.Path) bool { return p.From.Host != p.To.Host })
	path := &paths[pair]
	guest := slices.IndexFunc(path.Points, func(p plan.Expected) bool { return p.Direction == plan.Reply })
	test, now := testOf(&dyetracev1.ProbeOptions{Continuous: true}), time.Unix(1000, 0)
	for _, tt := range []struct {
		name          string
		tunnel, guest int // lost, the latter after the former
		want          dyetracev1.Verdict
	}{
		{"in the tunnel", 40, 0, faulty}, {"by the guest", 0, 40, dyetracev1.Verdict_VERDICT_UNKNOWN}, {"in the tunnel, and once by the guest", 39, 1, faulty},
	} {
		ps := newPools(test)
		steps := ps.steps(pair, path)
		for range tt.tunnel {
			ps.feed(pair, path, steps, true, 1, 2, now)
		}
		for range tt.guest {
			ps.feed(pair, path, steps, true, guest-1, guest, now)
		}
		own := ps.own(pair)
		from, to := own.ends()
		if r := own.verdict(&dyetracev1.PairResult{}, test, from, to); !own.blaming() || r.GetVerdict() != tt.want {
			t.Errorf("%s: blamed %t, %v: %s; want %v", tt.name, own.blaming(), r.GetVerdict(), r.GetCause(), tt.want)
		}
	}
}

// TestPoolsLeave has a pair that loses take another way: what it lost by itself is no longer held against it, and parts of ways that
// nobody passes are forgotten, while those that others pass stay as they were.
func TestPoolsLeave(t *testing.T) {
	t.Parallel()
	_, paths := pathsOf(t, site(t, 6), allPairs)
	ps, now := newPools(testOf(&dyetracev1.ProbeOptions{Continuous: true})), time.Unix(1000, 0)
	steps := make([][]step, len(paths))
	for i := range paths {
		steps[i] = ps.steps(i, &paths[i])
	}
	crosses := func(p *plan.Path, from, to string) bool { return p.From.Host == from && p.To.Host == to }
	var alone, shared int // hv3 and hv4 have one instance each, the others two
	for i := range paths {
		if crosses(&paths[i], "hv3", "hv4") {
			alone = i
		} else if crosses(&paths[i], "hv1", "hv2") {
			shared = i
		}
	}
	if ps.feed(alone, &paths[alone], steps[alone], true, len(paths[alone].Points), len(paths[alone].Points)+1, now); ps.own(alone).guard.Lost > 0 {
		t.Error("what was lost beyond the end of a pair's way is its loss")
	}
	for _, pair := range []int{alone, shared} {
		s := steps[pair][1]
		for range 40 {
			ps.feed(pair, &paths[pair], steps[pair], true, s.from, s.to, now)
		}
		if !ps.own(pair).blaming() {
			t.Fatalf("pair %d: no alarm after 40 that were lost", pair)
		}
		ps.leave(pair, steps[pair])
		if ps.own(pair).blaming() {
			t.Errorf("pair %d has left, and is blamed for what it lost", pair)
		}
	}
	for key, there := range map[string]bool{"tunnel hv3 hv4": true, "net hv3 hv4": true, "tunnel hv1 hv2": true, "out hv3": true} {
		if _, is := ps.byKey[key]; is != there {
			t.Errorf("%s: %t, want %t", key, is, there)
		}
	}
	for i := range paths { // the answers of the opposite pair pass there, too
		if crosses(&paths[i], "hv4", "hv3") {
			ps.leave(i, steps[i])
		}
	}
	for key, there := range map[string]bool{"tunnel hv3 hv4": false, "net hv3 hv4": false, "tunnel hv1 hv2": true, "out hv3": true} {
		if _, is := ps.byKey[key]; is != there {
			t.Errorf("when nobody passes: %s: %t, want %t", key, is, there)
		}
	}
}

// TestPatrolsProbes has a patrol ask for a probe of a number of its own: that one is the track's, and none of those that a run would begin with.
func TestPatrolsProbes(t *testing.T) {
	t.Parallel()
	_, paths := pathsOf(t, site(t, 2), probed("i0", "i1"))
	c := newCast(paths)
	l := newLedger(c.spec.Key, c.ps, c.tracks, 5000)
	l.begin(0)
	number, ok := l.fresh(0)
	if !ok {
		t.Fatal("no room")
	}
	l.ask(number)
	var all []uint32
	if l.each(0, func(n uint32) { all = append(all, n) }); !slices.Equal(all, []uint32{number}) && len(all) > 0 {
		t.Errorf("probes %v, want %d at the most", all, number)
	}
}

// TestLossMemory has a long test take no more room for samples than a short one.
func TestLossMemory(t *testing.T) {
	t.Parallel()
	_, paths := pathsOf(t, site(t, 2), probed("i0", "i1"))
	c := newCast(paths)
	l := newLedger(c.spec.Key, c.ps, c.tracks, 5000)
	c.spec.Hosts = l.hosts
	l.begin(0)
	for range 5000 {
		number, ok := l.another(0)
		if !ok {
			t.Fatal("no room")
		}
		l.ask(number)
		l.leave(number)
		for host, m := range c.see([]uint32{number}) {
			for i := range m.Index {
				if f := l.see(host, l.bridges[m.Bridges[m.Bridge[i]]], m, i); f != used && f != completed {
					t.Fatalf("probe %d: sample %d is %d", number, i, f)
				}
			}
		}
		l.look(number)
	}
	if arrived, lost := l.score(0); arrived != 5000 || lost != 0 {
		t.Errorf("%d arrived, %d lost", arrived, lost)
	}
	if points := len(paths[0].Points); len(l.slots) > (hardAttempts+1)*points {
		t.Errorf("%d samples are kept of 5000 probes over %d points", len(l.slots), points)
	}
	late := c.see([]uint32{4000})[0]
	if f := l.see(0, l.bridges["br-int"], late, 0); f != spent {
		t.Errorf("a late sample of a probe that is forgotten: %d", f)
	}
}

// TestLossTurns has a path that lost one probe be broken in the middle of the test: what is told is how it is now,
// by the flow, and not a rate of both. Where that comes out by chance, half of all, it is a rate.
func TestLossTurns(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		options options
		at      int // the last point that sees what is lost
		lost    func(attempt int) bool
		cause   string
		kind    dyetracev1.CauseKind
	}{
		{"broken", byTCP, 0, func(n int) bool { return n == 0 || n > 15 }, "table 60", dyetracev1.CauseKind_CAUSE_KIND_FLOW},
		{"broken, by either scheme", auto, 0, func(n int) bool { return n == 0 || n > 15 }, "table 60", dyetracev1.CauseKind_CAUSE_KIND_FLOW},
		{"half, and then five", byTCP, leftHost, func(n int) bool { return n%2 == 0 || n > 9 }, "loses", dyetracev1.CauseKind_CAUSE_KIND_LOSS},
	} {
		synctest.Test(t, func(t *testing.T) {
			pairs, paths := pathsBy(t, site(t, 4), allPairs, plan.Options{})
			c := newCastOf(paths, tt.options)
			c.lost = func(s shot) bool { return s.pair == 0 && s.point > tt.at && tt.lost(s.attempt) }
			got, _, whole := play(t.Context(), testConfig, c, pairs, 10*time.Minute)
			r := got[100]
			if !whole || r.GetVerdict() != dyetracev1.Verdict_VERDICT_FAULTY || r.GetCauseKind() != tt.kind || !strings.Contains(r.GetCause(), tt.cause) {
				t.Errorf("%s: %v, %v: %s after %d probes; want %v: %s", tt.name, r.GetVerdict(), r.GetCauseKind(), r.GetCause(), r.GetProbes(), tt.kind, tt.cause)
			}
			t.Logf("%s: %d probes: %s", tt.name, r.GetProbes(), r.GetCause())
		})
	}
}
