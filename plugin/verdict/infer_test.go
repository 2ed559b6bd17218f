package verdict

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/verdict/infer"
)

// TestLocated: at which places of the way a verdict has the packet lost.
func TestLocated(t *testing.T) {
	t.Parallel()
	const (
		crossing = "blue-1 blue-3" // hv1 0 1, hv3 2 3, answer hv3 4 5, hv1 6 7
		shown    = "blue-1 blue-4" // hv1 0 1, hv4 2 and 3 as delivered, answer hv4 4, hv1 5 6
		local    = "blue-1 blue-2" // 2 points on hv1
	)
	tests := []struct {
		pair, probe string
		explain     *Explanation
		want        string // first, last, answer
	}{
		{crossing, "01234567", nil, "0 0 false"},
		{crossing, "absent", nil, "1 1 false"},
		{crossing, "0", nil, "0 0 false"}, // by a rule, maybe
		{crossing, "0", &Explanation{Point: 0, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001}, "2 2 false"},
		{crossing, "01", nil, "3 3 false"},
		{crossing, "01", &Explanation{Point: 1, Outcome: Dropped, Flow: flow("br-tun", 20, 2, "dl_vlan=1")}, "2 3 false"},
		{crossing, "01", &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001}, "3 3 false"},
		{crossing, "012", nil, "4 4 false"},
		{crossing, "0123", &Explanation{Point: 3, Outcome: Dropped, Flow: flow("br-int", 60, 90, "ip")}, "5 5 false"},
		{crossing, "0123", &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"}, "6 6 false"},
		{crossing, "01234", &Explanation{Point: 4, Outcome: Tunnelled, Port: "gre-hv1", TunnelRemote: "10.1.1.1", TunnelID: 1001}, "2 2 true"},
		{crossing, "012345", nil, "3 3 true"},
		{crossing, "0123456", nil, "4 4 true"},
		{shown, "012", &Explanation{Point: 2, Outcome: Delivered, Port: "tap-b4"}, "5 5 false"},
		{shown, "0123", nil, "6 6 false"},
		{local, "0", &Explanation{Point: 0, Outcome: Dropped, Flow: flow("br-int", 60, 90, "ip")}, "2 5 false"},
	}
	for _, tt := range tests {
		p := pathOf(t, lab(t), tt.pair)
		r := Judge(Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, tt.probe)}, Explanation: tt.explain})
		x, ok := located(r.Proto(p.Pair))
		if got := fmt.Sprintf("%d %d %v", x.First, x.Last, x.Answer); !ok || got != tt.want {
			t.Errorf("%s, seen at %s: %s, %v; want %s (%s)", tt.pair, tt.probe, got, ok, tt.want, show(&r))
		}
		if x.Src.Host != p.From.Host || x.Dst.Host != p.To.Host {
			t.Errorf("%s: from %s to %s", tt.pair, x.Src.Host, x.Dst.Host)
		}
	}
}

// pairOf is the result on a pair of the lab whose one probe was seen so.
func pairOf(t *testing.T, pair, seen string, x *Explanation) *dyetracev1.PairResult {
	t.Helper()
	p := pathOf(t, lab(t), pair)
	r := Judge(Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, seen)}, Explanation: x})
	r.Probes = max(r.Probes, enough)
	return r.Proto(p.Pair)
}

// ofHosts is the result on a pair of an instance of one host and one of another.
func ofHosts(t *testing.T, from, to, seen string) *dyetracev1.PairResult {
	t.Helper()
	r := pairOf(t, "blue-1 blue-3", seen, nil)
	rename := strings.NewReplacer("hv1", from, "hv3", to)
	points := []*dyetracev1.Point{r.GetSegment().GetFrom(), r.GetSegment().GetTo()}
	for _, s := range r.GetSamples() {
		points = append(points, s.GetPoint())
	}
	for _, p := range points {
		if p != nil {
			p.Host = rename.Replace(p.Host)
		}
	}
	r.Src, r.Dst, r.Host = &dyetracev1.InstanceRef{Network: "blue", Name: "of-" + from}, &dyetracev1.InstanceRef{Network: "blue", Name: "of-" + to}, rename.Replace(r.Host)
	return r
}

// cutOff: nothing passes between r1 or r2 and the three others.
func cutOff(t *testing.T) (all []*dyetracev1.PairResult) {
	t.Helper()
	rack := map[string]int{"r1": 1, "r2": 1, "o1": 2, "o2": 2, "o3": 2}
	hosts := slices.Sorted(maps.Keys(rack))
	for _, from := range hosts {
		for _, to := range hosts {
			switch {
			case from == to:
			case rack[from] == rack[to]:
				all = append(all, ofHosts(t, from, to, "01234567"))
			default:
				all = append(all, ofHosts(t, from, to, "01"))
			}
		}
	}
	return all
}

// TestKinds: each kind of component has one of its own in the contract.
func TestKinds(t *testing.T) {
	t.Parallel()
	seen := map[dyetracev1.FindingKind]infer.Kind{}
	for k := infer.Flow; k <= infer.Pair; k++ {
		if other, taken := seen[kinds[k]]; kinds[k] == 0 || taken {
			t.Errorf("kind %d is %s, as is %d", k, kinds[k], other)
		}
		seen[kinds[k]] = k
	}
}

// TestRest: pairs that no finding has, as there are too many of these, are told of.
func TestRest(t *testing.T) {
	t.Parallel()
	var all []*dyetracev1.PairResult
	for n := range 103 {
		r := pairOf(t, "blue-1 blue-3", "012", nil)
		r.Src, r.Dst = &dyetracev1.InstanceRef{Network: "blue", Name: fmt.Sprint("s", n)}, &dyetracev1.InstanceRef{Network: "blue", Name: fmt.Sprint("d", n)}
		all = append(all, r)
	}
	r := pairOf(t, "blue-1 blue-3", "01234567", nil)
	found := Infer(append(all, r), nil)
	last := found[len(found)-1]
	if want := "under no finding, as there are too many: 3 pairs fail"; len(found) != 101 || last.GetKind() != dyetracev1.FindingKind_FINDING_KIND_REST || last.GetSummary() != want || len(last.GetPairs()) != 3 {
		t.Errorf("%d findings, the last is %v; want 101, %s", len(found), last, want)
	}
}

func TestLossOfSome(t *testing.T) {
	t.Parallel()
	loss := func(lost, of uint32, d dyetracev1.LossDecision) *dyetracev1.PairLoss {
		return &dyetracev1.PairLoss{Lost: lost, Probes: of, Decision: d}
	}
	const above, open = dyetracev1.LossDecision_LOSS_DECISION_ABOVE, dyetracev1.LossDecision_LOSS_DECISION_OPEN
	for _, tt := range []struct {
		name string
		r    *dyetracev1.PairResult
		want bool
	}{
		{"faulty, by loss", &dyetracev1.PairResult{Verdict: dyetracev1.Verdict_VERDICT_FAULTY, CauseKind: dyetracev1.CauseKind_CAUSE_KIND_LOSS}, true},
		{"a guest that answers some", &dyetracev1.PairResult{Verdict: dyetracev1.Verdict_VERDICT_SILENT, CauseKind: dyetracev1.CauseKind_CAUSE_KIND_GUEST_SILENT, Loss: loss(7, 90, above)}, true},
		{"a guest that answers none", &dyetracev1.PairResult{Verdict: dyetracev1.Verdict_VERDICT_SILENT, CauseKind: dyetracev1.CauseKind_CAUSE_KIND_GUEST_SILENT}, false},
		{"by the guest or not", &dyetracev1.PairResult{Verdict: dyetracev1.Verdict_VERDICT_UNKNOWN, CauseKind: dyetracev1.CauseKind_CAUSE_KIND_LOSS}, true},
		{"a guest that is off by now", &dyetracev1.PairResult{Verdict: dyetracev1.Verdict_VERDICT_SILENT, CauseKind: dyetracev1.CauseKind_CAUSE_KIND_GUEST_DOWN, Loss: loss(7, 90, above)}, false},
		{"all are lost", &dyetracev1.PairResult{Verdict: dyetracev1.Verdict_VERDICT_FAULTY, CauseKind: dyetracev1.CauseKind_CAUSE_KIND_FLOW, Loss: loss(9, 9, above)}, false},
		{"healthy, a note", &dyetracev1.PairResult{Verdict: dyetracev1.Verdict_VERDICT_HEALTHY, CauseKind: dyetracev1.CauseKind_CAUSE_KIND_LOSS, Loss: loss(1, 90, open)}, false},
	} {
		if got := Partial(tt.r); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

func TestInfer(t *testing.T) {
	t.Parallel()
	drop := &Explanation{Point: 0, Outcome: Dropped, Flow: flow("br-int", 60, 90, "ip,nw_dst=10.0.1.0/24")}
	lossy := func(r *dyetracev1.PairResult) *dyetracev1.PairResult {
		r.CauseKind = dyetracev1.CauseKind(CauseLoss)
		return r
	}
	unknown := &dyetracev1.PairResult{Src: &dyetracev1.InstanceRef{Name: "blue-1", Network: "blue"}, Dst: &dyetracev1.InstanceRef{Name: "blue-3", Network: "blue"},
		Verdict: dyetracev1.Verdict_VERDICT_UNKNOWN, Cause: "agent gone", CauseKind: dyetracev1.CauseKind_CAUSE_KIND_AGENT}
	tests := []struct {
		name    string
		results []*dyetracev1.PairResult
		racks   map[string]string
		want    string
	}{
		{"none", nil, nil, ""},
		{"healthy, unknown, none yet", []*dyetracev1.PairResult{pairOf(t, "blue-1 blue-3", "01234567", nil), unknown, {}, nil}, nil, ""},
		{"a flow", []*dyetracev1.PairResult{pairOf(t, "blue-1 blue-3", "0", drop), pairOf(t, "blue-2 blue-3", "0", drop)}, nil,
			"FLOW: hv1: br-int table 60, priority 90, ip,nw_dst=10.0.1.0/24 (cookie 0xc0ffee): 2 pairs fail"},
		{"a tunnel", []*dyetracev1.PairResult{
			pairOf(t, "blue-1 blue-3", "01", nil), pairOf(t, "blue-2 green-3", "01", nil), pairOf(t, "blue-3 blue-1", "012345", nil),
			pairOf(t, "blue-1 blue-4", "0123456", nil), pairOf(t, "blue-4 blue-3", "0123456", nil), pairOf(t, "green-3 blue-4", "0123456", nil),
		}, nil, "TUNNEL: the tunnel hv1 → hv3: 3 pairs fail"},
		{"a rack", cutOff(t), nil, "RACK: the rack of r1, r2: 12 pairs fail"},
		{"a rack that has a name", cutOff(t), map[string]string{"r1": "leaf-1", "r2": "leaf-1"}, "RACK: rack leaf-1 (r1, r2): 12 pairs fail"},
		{"one that loses all, one that loses some", []*dyetracev1.PairResult{pairOf(t, "blue-1 blue-3", "0123", &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"}), lossy(pairOf(t, "blue-2 blue-4", "01", nil))}, nil,
			"GUEST: the guest of blue-3: 1 pair fails; PATH: blue-2 → blue-4: 1 pair loses packets"},
	}
	for _, tt := range tests {
		var got []string
		for _, f := range Infer(tt.results, tt.racks) {
			got = append(got, strings.TrimPrefix(f.GetKind().String(), "FINDING_KIND_")+": "+f.GetSummary())
		}
		if s := strings.Join(got, "; "); s != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, s, tt.want)
		}
	}
}
