package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// loss is what a test of a pair's loss says.
type loss struct {
	Probes   int     `json:"probes"`
	Lost     int     `json:"lost"`
	Rate     float64 `json:"rate"`
	Low      float64 `json:"low"`
	High     float64 `json:"high"`
	Decision string  `json:"decision"`
	Allowed  float64 `json:"allowed"`
	TooMuch  float64 `json:"too_much"`
	Segment  *string `json:"segment"`
	Underlay bool    `json:"underlay"`
}

type latency struct {
	Kind    string `json:"kind"`
	Samples int    `json:"samples"`
	P50     int64  `json:"p50_ns"`
	P99     int64  `json:"p99_ns"`
	Max     int64  `json:"max_ns"`
}

// TestLossIsMeasured has the underlay lose a quarter of what one host sends another, and measures a pair
// whose requests go that way, one whose answers do, and one that has nothing to do with it.
func TestLossIsMeasured(t *testing.T) {
	t.Parallel()
	const perMille = 250
	l := up(t)
	target := fmt.Sprintf("hv2:hv4:%d", perMille/10)
	l.must("lab", "break", "underlay-loss", target)
	l.loseEvery("hv2", "hv4", 4)
	var tr truth
	if err := json.Unmarshal([]byte(l.must("lab", "truth", "-o", "json")), &tr); err != nil {
		t.Fatal(err)
	}
	// One after the other: what is lost of two that go at one time depends on who goes when.
	for _, way := range [][2]string{{"green-2", "green-4"}, {"blue-4", "green-2"}} {
		p := l.measure(t, 1, way)
		l.checkLoss(t, p, tr, perMille)
	}
	l.measureWhole(t, [2]string{"blue-1", "blue-3"})
	l.must("lab", "heal", "underlay-loss")
	l.measureWhole(t, [2]string{"green-2", "green-4"})
}

// measureWhole wants a pair that loses nothing. Where a switch stood still, and dropped something for that, it is measured again.
func (l *lab) measureWhole(t *testing.T, way [2]string) {
	t.Helper()
	p := l.measure(t, 0, way)
	for try := 1; p.Loss.Lost > 0 && try < 3; try++ {
		p = l.measure(t, 0, way)
	}
	whole(t, p)
}

// loseEvery has a leaf that loses packets by chance lose every so manieth instead: else the rates that are
// right are outside the interval in one of twenty tests, and the first three are lost now and then.
func (l *lab) loseEvery(from, to string, n int) {
	l.t.Helper()
	table := []string{"table", "netdev", fmt.Sprintf("lab-loss-%s-%s", from, to)}
	for _, leaf := range []string{"leaf1", "leaf2"} {
		r := l.dyetrace(append([]string{"lab", "exec", leaf, "--", "nft", "list"}, table...)...)
		if r.code != 0 {
			continue // it is the other one's
		}
		rules := regexp.MustCompile(`numgen random mod \d+ < \d+`).ReplaceAllString(r.stdout, fmt.Sprintf("numgen inc mod %d == %d", n, n-1))
		if rules == r.stdout {
			l.t.Fatalf("%s loses nothing by chance:\n%s", leaf, r.stdout)
		}
		l.node(leaf, "sh", "-c", fmt.Sprintf("nft delete %s && printf %%s '%s' | nft -f -", strings.Join(table, " "), rules))
		return
	}
	l.t.Fatalf("no leaf loses what %s sends to %s", from, to)
}

// measure is `check --loss` of a pair, in seconds.
func (l *lab) measure(t *testing.T, code int, way [2]string) pair {
	t.Helper()
	c := l.check(code, way[0], way[1], "--loss", "--max-loss", "20")
	if len(c.Pairs) != 1 || c.Pairs[0].Loss == nil {
		t.Fatalf("%v: no pair whose loss is measured: %+v", way, c)
	}
	return c.Pairs[0]
}

// checkLoss wants the pair to lose what the lab says that it loses, and where.
func (l *lab) checkLoss(t *testing.T, p pair, tr truth, perMille int) {
	t.Helper()
	for _, lost := range tr.Losses {
		if lost.Src[0] != p.Src || lost.Dst[0] != p.Dst {
			continue
		}
		checkFate(t, withoutSamples(p), lost.fate)
		got, want := p.Loss, float64(perMille)/1000
		if p.CauseKind != "loss" || got.Decision != "above" || got.Segment == nil || *got.Segment != *p.Segment {
			t.Errorf("%v: %+v (want a loss that is too much, in that segment)", p, *got)
		}
		if lost.PerMille != perMille || got.Low > want || got.High < want || got.Low <= got.Allowed {
			t.Errorf("%v: %+v, the lab loses %d ‰ (want an interval with %g, above what is allowed)", p, *got, lost.PerMille, want)
		}
		if got.Rate != float64(got.Lost)/float64(got.Probes) {
			t.Errorf("%v: rate %g of %d lost of %d", p, got.Rate, got.Lost, got.Probes)
		}
		return
	}
	t.Errorf("the lab knows of no loss between %s and %s: %+v", p.Src, p.Dst, tr.Losses)
}

// withoutSamples is the pair without its path, which is that of a probe that arrived.
func withoutSamples(p pair) pair {
	p.Samples = nil
	return p
}

// whole wants a pair that loses nothing, and the times that its packets took.
func whole(t *testing.T, p pair) {
	t.Helper()
	if p.Verdict != "healthy" || p.Loss.Decision != "within" || p.Loss.Lost != 0 || p.Loss.High >= p.Loss.TooMuch || p.Loss.Segment != nil {
		t.Errorf("%v: %+v (want healthy, nothing lost, an interval below what is too much)", p, *p.Loss)
	}
	timed(t, p)
}

// timed wants the times that a pair's packets took, between two hosts those of switches and the tunnel, too.
func timed(t testing.TB, p pair) {
	t.Helper()
	for _, took := range p.Latencies {
		// A switch may hand out the copies of one pass in another order.
		if took.Samples == 0 || took.P50 > took.P99 || took.P99 > took.Max || took.P50 <= 0 && took.Kind != "switch" {
			t.Errorf("%v: %+v", p, took)
		}
	}
	for _, kind := range untimed(p) {
		t.Errorf("%v: no latency of kind %s: %+v", p, kind, p.Latencies)
	}
}

// untimed are the kinds of latencies that are missing.
func untimed(p pair) []string {
	want := []string{"rtt", "guest"}
	if slices.ContainsFunc(p.Samples, func(s sample) bool { return s.Host != p.Samples[0].Host }) {
		want = append(want, "switch", "tunnel")
	}
	return slices.DeleteFunc(want, func(kind string) bool {
		return slices.ContainsFunc(p.Latencies, func(took latency) bool { return took.Kind == kind })
	})
}
