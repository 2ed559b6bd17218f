package run

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// brief writes those of some kinds: "rtt 3: 10ms 20ms 20ms".
func brief(all []*dyetracev1.Latency, kinds ...dyetracev1.LatencyKind) string {
	var words []string
	for _, l := range all {
		if slices.Contains(kinds, l.Kind) {
			words = append(words, fmt.Sprintf("%s %d: %v %v %v", strings.ToLower(strings.TrimPrefix(l.Kind.String(), "LATENCY_KIND_")), l.Samples,
				time.Duration(l.P50Ns).Round(time.Millisecond), time.Duration(l.P99Ns).Round(time.Millisecond), time.Duration(l.MaxNs)))
		}
	}
	return strings.Join(words, ", ")
}

// TestLatencies keeps those of a pair; figures are right within 1 %.
func TestLatencies(t *testing.T) {
	t.Parallel()
	_, paths := pathsOf(t, site(t, 2), allPairs)
	legs := len(verdict.Legs(&paths[0]))
	all := func(d time.Duration) []time.Duration { return slices.Repeat([]time.Duration{d}, legs) }
	type probe struct {
		at   time.Duration
		path *plan.Path
		took time.Duration // of each leg
	}
	const ms = time.Millisecond
	moved := paths[0]
	moved.Points = moved.Points[1:]
	again := paths[0]
	many := func(n int, from, every time.Duration) (probes []probe) {
		for i := range n {
			probes = append(probes, probe{from + time.Duration(i)*every, &paths[0], time.Duration(i+1) * ms})
		}
		return probes
	}
	for _, tt := range []struct {
		name   string
		probes []probe
		now    time.Duration
		want   string
	}{
		{name: "none"},
		{name: "one", probes: []probe{{0, &paths[0], ms}}, want: "rtt 1: 1ms 1ms 1ms, guest 1: 1ms 1ms 1ms"},
		{name: "some", probes: many(100, time.Hour, time.Second), now: 61 * time.Minute, want: "rtt 100: 50ms 99ms 100ms, guest 100: 50ms 99ms 100ms"},
		{name: "the same way, planned anew", probes: []probe{{0, &paths[0], ms}, {time.Second, &again, ms}}, now: time.Second, want: "rtt 2: 1ms 1ms 1ms, guest 2: 1ms 1ms 1ms"},
		{name: "another way", probes: []probe{{0, &paths[0], ms}, {time.Second, &moved, 2 * ms}}, now: time.Second, want: "rtt 1: 2ms 2ms 2ms, guest 1: 2ms 2ms 2ms"},
		{name: "no longer than ten minutes", probes: many(100, 0, time.Second), now: 660 * time.Second, want: "rtt 40: 79ms 100ms 100ms, guest 40: 79ms 100ms 100ms"},
		{name: "all old", probes: many(100, 0, time.Second), now: time.Hour},
		{name: "old ones make room", probes: append(many(3, 0, time.Second), many(2, time.Hour, time.Second)...), now: time.Hour, want: "rtt 2: 1ms 2ms 2ms, guest 2: 1ms 2ms 2ms"},
		{name: "weeks", probes: append(many(100, 0, time.Second), many(600, 600*time.Hour, time.Second)...), now: 600*time.Hour + 10*time.Minute,
			want: "rtt 600: 297ms 599ms 600ms, guest 600: 297ms 599ms 600ms"},
		{name: "too many", probes: many(1500, 0, 100*ms), now: 150 * time.Second, want: "rtt 1000: 1.007s 1.5s 1.5s, guest 1000: 1.007s 1.5s 1.5s"},
	} {
		var l latencies
		for _, p := range tt.probes {
			l.add(p.path, all(p.took)[:len(verdict.Legs(p.path))], p.at)
		}
		if got := brief(l.shown(tt.now), dyetracev1.LatencyKind_LATENCY_KIND_RTT, dyetracev1.LatencyKind_LATENCY_KIND_GUEST); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
	var l latencies
	took := all(ms)
	took[0] = -1
	l.add(&paths[0], took, 0)
	if got := brief(l.shown(0), dyetracev1.LatencyKind_LATENCY_KIND_RTT, dyetracev1.LatencyKind_LATENCY_KIND_GUEST); got != "guest 1: 1ms 1ms 1ms" {
		t.Errorf("round trip not seen: %s", got)
	}
}

// TestLatenciesKeepAll compares them with a list of all, where probes come in bursts and pauses.
func TestLatenciesKeepAll(t *testing.T) {
	t.Parallel()
	_, paths := pathsOf(t, site(t, 2), allPairs)
	legs := len(verdict.Legs(&paths[0]))
	random := rand.New(rand.NewPCG(7, 7))
	var l latencies
	var at []time.Duration
	now := time.Duration(0)
	for i := range 20_000 {
		gap := time.Duration(random.IntN(1000)) * time.Millisecond
		if random.IntN(300) == 0 {
			gap = time.Duration(random.IntN(900)) * time.Second
		}
		now = (now + gap).Truncate(time.Second) // as finely as they are kept
		l.add(&paths[0], slices.Repeat([]time.Duration{now}, legs), now)
		if at = append(at, now); i%20 != 0 {
			continue
		}
		last := at[max(0, len(at)-latencyProbes):]
		young := slices.IndexFunc(last, func(d time.Duration) bool { return now-d <= latencyAge })
		if got := l.shown(now)[0]; got.Samples != uint64(len(last)-young) || time.Duration(got.MaxNs).Round(time.Second) != now {
			t.Fatalf("after %v: %d samples, longest %v; want %d, %v", now, got.Samples, time.Duration(got.MaxNs), len(last)-young, now)
		}
		if len(l.at) > latencyProbes || cap(l.took) > 2*legs*latencyProbes {
			t.Fatalf("%d are kept, with room for %d figures", len(l.at), cap(l.took))
		}
	}
}

// TestContinuousLatencies reads a run of which one pair becomes slow, and long after that quick again.
func TestContinuousLatencies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 3))
		f := newFeed(&dyetracev1.Run{Counts: &dyetracev1.Counts{}}, nil)
		f.continuous()
		read := func() map[string]string {
			got := map[string]string{}
			results := f.since(0).results
			f.latest(results)
			for _, r := range results {
				n := len(r.Latencies)
				if n < 7 || r.Latencies[0].Samples < 300 || r.Latencies[0].Samples > latencyProbes {
					t.Errorf("%s: %d parts: %v", pairKey(r), n, r.Latencies)
				}
				l := r.Latencies[0]
				l.Samples = 0
				got[r.Src.Name+" "+r.Dst.Name] = brief([]*dyetracev1.Latency{l}, dyetracev1.LatencyKind_LATENCY_KIND_RTT)
			}
			return got
		}
		var before, slow, after map[string]string
		all, _ := watchTownIn(t, w, f, testConfig, &dyetracev1.ProbeOptions{Rate: 3}, 40*time.Minute, func() {
			time.Sleep(10 * time.Minute)
			before = read()
			w.change(func(w *town) { w.slow = map[string]time.Duration{"i0 i1": 100 * time.Millisecond} })
			time.Sleep(9 * time.Minute)
			slow = read()
			w.change(func(w *town) { w.slow = nil })
			time.Sleep(11 * time.Minute)
			after = read()
		})
		quick := map[string]string{}
		for _, a := range all {
			quick[a.r.Src.Name+" "+a.r.Dst.Name] = "rtt 0: 1ms 1ms 700µs"
			if len(a.r.Latencies) > 0 && a.at > time.Second {
				t.Errorf("told with latencies: %v", a.r)
			}
		}
		if len(before) != 6 || fmt.Sprint(before) != fmt.Sprint(quick) || fmt.Sprint(after) != fmt.Sprint(quick) {
			t.Errorf("before %v, after %v", before, after)
		}
		if got := slow["i0 i1"]; got != "rtt 0: 88ms 88ms 87.5ms" {
			t.Errorf("while it is slow: %v", slow)
		}
	})
}
