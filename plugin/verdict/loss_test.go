package verdict

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/stain"
)

// way is a path between two hosts of two bridges each, with delivery seen.
func way(t *testing.T) *plan.Path {
	t.Helper()
	at := func(host, bridge string, kind stain.Kind, d plan.Direction) plan.Expected {
		return plan.Expected{Host: host, Bridge: bridge, Kind: kind, Direction: d, TTL: 64}
	}
	return &plan.Path{
		From: plan.End{Host: "hv1", Bridge: "br-int", Port: "tap1"}, To: plan.End{Host: "hv2", Bridge: "br-int", Port: "tap2"},
		Points: []plan.Expected{
			at("hv1", "br-int", stain.FromInstance, plan.Forward), at("hv1", "br-tun", stain.ToTunnel, plan.Forward),
			at("hv2", "br-tun", stain.FromTunnel, plan.Forward), at("hv2", "br-int", stain.FromTunnel, plan.Forward),
			at("hv2", "br-int", stain.ToInstance, plan.Forward), at("hv2", "br-int", stain.FromInstance, plan.Reply),
			at("hv2", "br-tun", stain.ToTunnel, plan.Reply), at("hv1", "br-tun", stain.FromTunnel, plan.Reply),
			at("hv1", "br-int", stain.FromTunnel, plan.Reply), at("hv1", "br-int", stain.ToInstance, plan.Reply),
		},
	}
}

// TestLegs has two hosts whose clocks have nothing in common.
func TestLegs(t *testing.T) {
	t.Parallel()
	p := way(t)
	at := []int64{1000, 1010, 77_000, 77_020, 77_050, 77_350, 77_390, 2000, 2050, 2060}
	seen := func(i int) (int64, bool) { return at[i], true }
	got := map[LegKind][]time.Duration{}
	for _, l := range Legs(p) {
		d, ok := l.Of(seen)
		if !ok {
			t.Errorf("%+v: not seen", l)
		}
		got[l.Kind] = append(got[l.Kind], d)
		if _, ok := l.Of(func(i int) (int64, bool) { return at[i], i != l.From }); ok {
			t.Errorf("%+v has a latency though its first end did not see it", l)
		}
	}
	want := map[LegKind][]time.Duration{RTT: {1060}, Switch: {10, 20, 30, 40, 50, 10}, Guest: {300}, Tunnel: {990 - 390}}
	for kind, ds := range want {
		if len(got[kind]) != len(ds) {
			t.Errorf("kind %d: %v, want %v", kind, got[kind], ds)
			continue
		}
		for i := range ds {
			if got[kind][i] != ds[i] {
				t.Errorf("kind %d: %v, want %v", kind, got[kind], ds)
			}
		}
	}
	// In no-touch nobody answers: no two clocks are compared.
	p.Points = p.Points[:5]
	for _, l := range Legs(p) {
		if l.Kind != Switch {
			t.Errorf("one way: %+v", l)
		}
	}
}

// TestPartial judges attempts of which some arrived; hooks were attested unless said otherwise.
func TestPartial(t *testing.T) {
	t.Parallel()
	upTo := func(last int) Attempt {
		a := Attempt{Injected: true}
		for i := range last + 1 {
			a.Seen = append(a.Seen, Sample{Point: i, AtNs: int64(i), TTL: 64})
		}
		return a
	}
	live := func(lost uint64) Window {
		return Window{Before: &Audit{Live: true, Epoch: 1}, After: &Audit{Live: true, Epoch: 1, Lost: lost}}
	}
	test := &sequential.Plan{P0: 0.01, P1: 0.1, Alpha: 1e-3, Beta: 0.01, Max: 1000}
	const arrived = 9
	tests := []struct {
		name       string
		scheme     stain.Scheme
		lost       []int // where each was seen last
		more       int   // arrived
		blind      bool
		verdict    Verdict
		cause      string
		remembered bool
		flags      uint8 // of the answer to one that arrived
	}{
		{name: "in the tunnel", scheme: stain.TCP, lost: []int{1, 1, 1, 1}, more: 10, verdict: Faulty,
			cause: "loses 27 % (7.8-55 %, 95 %) of 15 probes between hv1/br-tun to-tunnel and hv2/br-tun from-tunnel"},
		{name: "in a switch, by tcp", scheme: stain.TCP, lost: []int{2, 2, 2, 2}, more: 10, verdict: Faulty, remembered: true,
			cause: "between hv2/br-tun from-tunnel and hv2/br-int from-tunnel"},
		{name: "in a switch, by icmp", scheme: stain.ICMP, lost: []int{2, 2, 2, 2}, more: 10, verdict: Faulty},
		{name: "in several places", scheme: stain.ICMP, lost: []int{1, 2, 1, 2, 1}, more: 10, verdict: Faulty, cause: "2 of the 5 elsewhere"},
		{name: "by the guest", scheme: stain.ICMP, lost: []int{4, 4, 4, 4}, more: 10, verdict: Silent, cause: "does not answer 27 %"},
		{name: "by the guest, whose port is closed", scheme: stain.TCP, lost: []int{4, 4, 4, 4}, more: 10, flags: 0x14, verdict: Silent, cause: "does not answer 27 %"},
		{name: "by the guest, who listens", scheme: stain.TCP, lost: []int{4, 4, 4, 4}, more: 10, flags: 0x12, verdict: Silent, remembered: true, cause: "does not answer 27 %"},
		{name: "little", scheme: stain.ICMP, lost: []int{1}, more: 100, verdict: Healthy, cause: "less than 10 %"},
		{name: "too few", scheme: stain.ICMP, lost: []int{1}, more: 20, verdict: Healthy, cause: "too few to tell"},
		{name: "we could not see", scheme: stain.ICMP, lost: []int{1, 1, 1, 1}, more: 10, blind: true, verdict: Healthy, cause: "4 of 15 probes could not be followed"},
		{name: "none", scheme: stain.ICMP, more: 100, verdict: Healthy},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := way(t)
			e := Evidence{Path: p, Scheme: tt.scheme, Test: test, Measured: true, Arrived: tt.more, Attempts: []Attempt{upTo(arrived)}, Hooks: map[Place]Window{}}
			for _, last := range tt.lost {
				e.Attempts = append(e.Attempts, upTo(last))
			}
			e.Attempts[0].Seen[arrived].Flags = tt.flags
			for i := range e.Attempts {
				e.Attempts[i].Armed = tt.flags != 0 // else what does not answer is not known by tcp
			}
			for _, pt := range p.Points {
				w := live(0)
				if tt.blind && pt.Host == "hv2" || tt.blind && pt.Direction == plan.Reply {
					w = live(3)
				}
				e.Hooks[Place{pt.Host, pt.Bridge}] = w
			}
			r := Judge(e)
			if r.Verdict != tt.verdict || !strings.Contains(r.Cause, tt.cause) || r.MayBeRemembered != tt.remembered {
				t.Errorf("%v, may be remembered %t: %s; want %v, %t: %s", r.Verdict, r.MayBeRemembered, r.Cause, tt.verdict, tt.remembered, tt.cause)
			}
			if r.Probes != 1+len(tt.lost)+tt.more || r.Loss == nil || r.Loss.Lost > len(tt.lost) {
				t.Errorf("%d probes, %+v", r.Probes, r.Loss)
			}
			if m := r.Loss.Proto(); m.GetDecision() == 0 || (m.GetSegment() != nil) != (r.Loss.Lost > 0) {
				t.Errorf("shown as %v", m)
			}
		})
	}
}

// TestLossLate: what may be late is no loss yet, and it is said for how long it must be waited for, if it would decide.
func TestLossLate(t *testing.T) {
	t.Parallel()
	p := way(t)
	upTo := func(last int, quiet time.Duration) Attempt {
		a := Attempt{Injected: true, Quiet: quiet}
		for i := range last + 1 {
			a.Seen = append(a.Seen, Sample{Point: i, AtNs: int64(i), TTL: 64})
		}
		return a
	}
	const patience = 750 * time.Millisecond
	e := Evidence{Path: p, Scheme: stain.ICMP, Measured: true, Arrived: 10, Patience: patience, Hooks: map[Place]Window{},
		Test:     &sequential.Plan{P0: 0.01, P1: 0.1, Alpha: 1e-3, Beta: 0.01, Max: 1000},
		Attempts: []Attempt{upTo(9, 0), upTo(1, time.Second), upTo(1, time.Second), upTo(1, 100*time.Millisecond), upTo(1, 200*time.Millisecond)}}
	for _, pt := range p.Points {
		live := &Audit{Live: true, Epoch: 1}
		e.Hooks[Place{pt.Host, pt.Bridge}] = Window{Before: live, After: live}
	}
	if r := Judge(e); r.Verdict != Healthy || r.Loss.Lost != 2 || r.Loss.Unclear != 2 || r.Wait != 650*time.Millisecond {
		t.Errorf("while two may be late: %v, wait %v: %s", r.Verdict, r.Wait, r.Cause)
	}
	for i := range e.Attempts {
		e.Attempts[i].Quiet += 650 * time.Millisecond
	}
	if r := Judge(e); r.Verdict != Faulty || r.Loss.Lost != 4 || r.Wait != 0 {
		t.Errorf("after that: %v, wait %v: %s", r.Verdict, r.Wait, r.Cause)
	}
	e.Attempts = e.Attempts[:2]
	if r := Judge(e); r.Verdict != Healthy || r.Wait != 0 {
		t.Errorf("where it would not decide: %v, wait %v: %s", r.Verdict, r.Wait, r.Cause)
	}
}

// TestBegan has the first attempt begin the test: it is no part of the rate, but of what is decided.
func TestBegan(t *testing.T) {
	t.Parallel()
	test := &sequential.Plan{P0: 0.02, P1: 0.2, Alpha: 1e-7, Beta: 0.1, Max: 80}
	for _, tt := range []struct {
		name     string
		seen     []int // where each was seen last, with 9 for arrived
		bare     int   // so many first ones were not armed
		more     int
		measured bool
		want     string
	}{
		{name: "chance", seen: []int{1, 9}, more: 22,
			want: "healthy 0/23 within: loses 0 % (0-15 %, 95 %) of 23 probes, besides the first that was lost between hv1/br-tun to-tunnel and hv2/br-tun from-tunnel, less than 20 %"},
		{name: "chance, asked for", seen: []int{1, 9}, more: 22, measured: true,
			want: "healthy 1/24 within: loses 4.2 % (0.11-21 %, 95 %) of 24 probes between hv1/br-tun to-tunnel and hv2/br-tun from-tunnel, less than 20 %"},
		{name: "too much", seen: []int{1, 9, 1, 1, 1, 2, 1, 1, 1}, more: 10,
			want: "faulty 7/18 above: loses 39 % (17-64 %, 95 %) of 18 probes between hv1/br-tun to-tunnel and hv2/br-tun from-tunnel, besides the first that was lost; 1 of the 8 elsewhere"},
		{name: "first asked anew, and then lost", seen: []int{4, 1, 9, 1}, bare: 1, more: 20,
			want: "healthy 1/22 open: loses 4.5 % (0.12-23 %, 95 %) of 22 probes between hv1/br-tun to-tunnel and hv2/br-tun from-tunnel, besides the first 2 that were lost, too few to tell whether that is more than 2 %"},
	} {
		p := way(t)
		e := Evidence{Path: p, Scheme: stain.TCP, Test: test, Measured: tt.measured, Arrived: tt.more, Hooks: live(p)}
		for i, last := range tt.seen {
			e.Attempts = append(e.Attempts, through(last, i >= tt.bare))
		}
		r := Judge(e)
		got := fmt.Sprintf("%s %d/%d %s: %s", r.Verdict, r.Loss.Lost, r.Loss.Probes, strings.ToLower(strings.TrimPrefix(r.Loss.Proto().GetDecision().String(), "LOSS_DECISION_")), r.Cause)
		if got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// TestPercent writes shares of all sizes without an exponent.
func TestPercent(t *testing.T) {
	t.Parallel()
	for share, want := range map[float64]string{
		0: "0", 0.00000012: "0.000012", 0.0001: "0.01", 0.000123: "0.012", 0.001: "0.1", 0.00999: "1", 0.01: "1", 0.04: "4",
		0.0123: "1.2", 0.0996: "10", 0.5: "50", 0.995: "100", 0.999: "100", 1: "100",
	} {
		if got := Percent(share); got != want {
			t.Errorf("%g: %s %%, want %s %%", share, got, want)
		}
	}
}

// through is an attempt that was seen up to a point.
func through(last int, armed bool) Attempt {
	a := Attempt{Injected: true, Armed: armed}
	for i := range last + 1 {
		a.Seen = append(a.Seen, Sample{Point: i, AtNs: int64(i), TTL: 64})
	}
	return a
}

// TestCoverage simulates pairs that are tested because their first probe was lost, as a plain check does: whatever a
// path loses, its interval covers that in 95 % of cases.
func TestCoverage(t *testing.T) {
	t.Parallel()
	const first, pairs = 4, 40_000 // of which all are lost, it is a hard fault
	test := sequential.Plan{P0: 0.02, P1: 0.2, Alpha: 1e-7, Beta: 0.1, Max: 80}
	p, draw := way(t), rand.New(rand.NewPCG(1, 2))
	hooks := live(p)
	bands := map[string]*[2]int{}
	for range pairs {
		rate := math.Pow(10, -4+3.8*draw.Float64())
		e := Evidence{Path: p, Scheme: stain.TCP, Test: &test, Hooks: hooks, Attempts: []Attempt{through(1, true)}}
		arrived, lost := 0, 1
		for (arrived > 0 || lost < first) && (arrived == 0 || test.Decide(arrived+lost, lost) == sequential.More) {
			if draw.Float64() < rate {
				lost++
				e.Attempts = append(e.Attempts, through(1, true))
			} else if arrived++; arrived == 1 {
				e.Attempts = append(e.Attempts, through(9, true))
			} else {
				e.Arrived++
			}
		}
		if arrived == 0 {
			continue
		}
		band := "below 1 %"
		switch {
		case rate >= 0.1:
			band = "from 10 %"
		case rate >= 0.01:
			band = "1 % to 10 %"
		}
		if bands[band] == nil {
			bands[band] = &[2]int{}
		}
		bands[band][0]++
		if l := Judge(e).Loss; l.Interval.Low <= rate && rate <= l.Interval.High {
			bands[band][1]++
		}
	}
	for band, n := range bands {
		share := float64(n[1]) / float64(n[0])
		t.Logf("%s: %.2f %% of %d", band, 100*share, n[0])
		if noise := 3 * math.Sqrt(0.95*0.05/float64(n[0])); share < 0.95-noise {
			t.Errorf("%s: %.2f %% of %d intervals cover the rate", band, 100*share, n[0])
		}
	}
}
