package verdict

import (
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
		name    string
		scheme  stain.Scheme
		lost    []int // where each was seen last
		more    int   // arrived
		blind   bool
		verdict Verdict
		cause   string
		passed  bool
	}{
		{name: "in the tunnel", scheme: stain.TCP, lost: []int{1, 1, 1, 1}, more: 10, verdict: Faulty,
			cause: "loses 27 % (7.8-55 %, 95 %) of 15 probes between hv1/br-tun to-tunnel and hv2/br-tun from-tunnel"},
		{name: "in a switch, by tcp", scheme: stain.TCP, lost: []int{2, 2, 2, 2}, more: 10, verdict: Faulty, passed: true,
			cause: "between hv2/br-tun from-tunnel and hv2/br-int from-tunnel"},
		{name: "in a switch, by icmp", scheme: stain.ICMP, lost: []int{2, 2, 2, 2}, more: 10, verdict: Faulty},
		{name: "in several places", scheme: stain.ICMP, lost: []int{1, 2, 1, 2, 1}, more: 10, verdict: Faulty, cause: "2 of the 5 elsewhere"},
		{name: "by the guest", scheme: stain.ICMP, lost: []int{4, 4, 4, 4}, more: 10, verdict: Silent, cause: "does not answer 27 %"},
		{name: "little", scheme: stain.ICMP, lost: []int{1}, more: 100, verdict: Healthy, cause: "less than 10 %"},
		{name: "too few", scheme: stain.ICMP, lost: []int{1}, more: 20, verdict: Healthy, cause: "too few to tell"},
		{name: "we could not see", scheme: stain.ICMP, lost: []int{1, 1, 1, 1}, more: 10, blind: true, verdict: Healthy, cause: "4 of 15 probes could not be followed"},
		{name: "none", scheme: stain.ICMP, more: 100, verdict: Healthy},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := way(t)
			e := Evidence{Path: p, Scheme: tt.scheme, Test: test, Arrived: tt.more, Attempts: []Attempt{upTo(arrived)}, Hooks: map[Place]Window{}}
			for _, last := range tt.lost {
				e.Attempts = append(e.Attempts, upTo(last))
			}
			for _, pt := range p.Points {
				w := live(0)
				if tt.blind && pt.Host == "hv2" || tt.blind && pt.Direction == plan.Reply {
					w = live(3)
				}
				e.Hooks[Place{pt.Host, pt.Bridge}] = w
			}
			r := Judge(e)
			if r.Verdict != tt.verdict || !strings.Contains(r.Cause, tt.cause) || r.Passed != tt.passed {
				t.Errorf("%v, passed %t: %s; want %v, %t: %s", r.Verdict, r.Passed, r.Cause, tt.verdict, tt.passed, tt.cause)
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
