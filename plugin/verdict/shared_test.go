package verdict

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
)

// TestShared: what is said of a pair by all that pass a part of its way.
func TestShared(t *testing.T) {
	t.Parallel()
	p := way(t) // hv1 0 1, hv2 2 3 and 4 as delivered, answer hv2 5 6, hv1 7 8 and 9 as delivered
	at := func(i int) *plan.Expected { return &p.Points[i] }
	under := &Ends{From: "hv1", To: "hv2", Src: netip.MustParseAddr("10.1.1.1"), Dst: netip.MustParseAddr("10.1.1.2")}
	tests := []struct {
		name string
		s    Shared
		want string // verdict, kind, segment, host, cause
	}{
		{"of many pairs", Shared{Probes: 1000, Lost: 40, Pairs: 6, From: at(1), To: at(2)},
			"faulty loss | hv1/br-tun → hv2/br-tun forward | hv1 | loses 4 % (2.9-5.4 %, 95 %) of 1000 probes of 6 pairs between hv1/br-tun to-tunnel and hv2/br-tun from-tunnel"},
		{"of one pair", Shared{Probes: 30, Lost: 10, Pairs: 1, From: at(2), To: at(3)},
			"faulty loss | hv2/br-tun → hv2/br-int forward | hv2 | loses 33 % (17-53 %, 95 %) of 30 probes between hv2/br-tun from-tunnel and hv2/br-int from-tunnel"},
		{"on the way back", Shared{Probes: 30, Lost: 10, Pairs: 2, From: at(6), To: at(7)},
			"faulty loss | hv2/br-tun → hv1/br-tun reply | hv2 | loses 33 % (17-53 %, 95 %) of 30 probes of 2 pairs between hv2/br-tun to-tunnel and hv1/br-tun from-tunnel"},
		{"nobody knows where", Shared{Probes: 30, Lost: 10, Pairs: 1}, "faulty loss | - |  | loses 33 % (17-53 %, 95 %) of 30 probes"},
		{"by the guest", Shared{Probes: 30, Lost: 10, Pairs: 1, From: at(4), To: at(5)},
			"silent guest-silent | hv2/br-int → hv2/br-int forward | hv2 | b does not answer 33 % (17-53 %, 95 %) of 30 probes that were delivered to it"},
		{"by the guest or before it", Shared{Probes: 30, Lost: 10, Pairs: 1, From: at(3), To: at(5)},
			"unknown loss | hv2/br-int → hv2/br-int forward | hv2 | loses 33 % (17-53 %, 95 %) of 30 probes between hv2/br-int from-tunnel and hv2/br-int from-instance, by the network or by b itself"},
		{"by the guest or behind it", Shared{Probes: 30, Lost: 10, Pairs: 1, From: at(4), To: at(7)},
			"unknown loss | hv2/br-int → hv1/br-tun forward | hv2 | loses 33 % (17-53 %, 95 %) of 30 probes between hv2/br-int to-instance and hv1/br-tun from-tunnel, by the network or by b itself"},
		{"under the tunnels", Shared{Probes: 2000, Lost: 3, Pairs: 6, From: at(1), To: at(2), Under: under},
			"faulty loss | hv1/br-tun → hv2/br-tun forward | hv1 | the underlay loses 0.15 % (0.031-0.44 %, 95 %) of 2000 UDP packets from hv1 (10.1.1.1) to hv2 (10.1.1.2)"},
		{"under the tunnels, addresses unknown", Shared{Probes: 100, Lost: 3, From: at(1), To: at(2), Under: &Ends{From: "hv1", To: "hv2"}},
			"faulty loss | hv1/br-tun → hv2/br-tun forward | hv1 | the underlay loses 3 % (0.62-8.5 %, 95 %) of 100 UDP packets from hv1 to hv2"},
		{"of nothing", Shared{From: at(1), To: at(2)}, "faulty loss | hv1/br-tun → hv2/br-tun forward | hv1 | loses 0 % (0-100 %, 95 %) of 0 probes between hv1/br-tun to-tunnel and hv2/br-tun from-tunnel"},
	}
	base := &dyetracev1.PairResult{
		Src: &dyetracev1.InstanceRef{Name: "a", Network: "net"}, Dst: &dyetracev1.InstanceRef{Name: "b", Network: "net"}, Verdict: dyetracev1.Verdict_VERDICT_HEALTHY, RttNs: 7, Probes: 1,
		Scheme: dyetracev1.Scheme_SCHEME_ICMP, SchemeReason: "asked for", SrcIp: "10.0.1.1", DstIp: "10.0.1.2", NoTouch: true, Cause: "odd",
	}
	before := proto.Clone(base)
	for _, tt := range tests {
		tt.s.Test = sequential.Plan{P0: 0.001, P1: 0.01}
		r := tt.s.Judge(base)
		segment := "-"
		if s := r.GetSegment(); s != nil {
			segment = fmt.Sprintf("%s/%s → %s/%s %s", s.From.Host, s.From.Bridge, s.To.Host, s.To.Bridge, plan.Direction(s.Direction))
		}
		word := func(s, prefix string) string {
			return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(s, prefix)), "_", "-")
		}
		got := fmt.Sprintf("%s %s | %s | %s | %s", word(r.Verdict.String(), "VERDICT_"), word(r.CauseKind.String(), "CAUSE_KIND_"), segment, r.Host, r.Cause)
		if got != tt.want {
			t.Errorf("%s\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
		l := r.GetLoss()
		if int(l.GetProbes()) != tt.s.Probes || int(l.GetLost()) != tt.s.Lost || l.GetAllowed() != 0.001 || l.GetTooMuch() != 0.01 || l.GetUnderlay() != (tt.s.Under != nil) ||
			l.GetDecision() != dyetracev1.LossDecision_LOSS_DECISION_ABOVE || !proto.Equal(l.GetSegment(), r.GetSegment()) {
			t.Errorf("%s: %v", tt.name, l)
		}
		shown := "dyetrace check net/a net/b --scheme icmp --no-touch --loss --max-loss 1"
		if u := tt.s.Under; u != nil && u.Src.IsValid() {
			shown = "dyetrace underlay hv1 hv2 --src-ip 10.1.1.1 --dst-ip 10.1.1.2"
		} else if u != nil {
			shown = "dyetrace underlay hv1 hv2"
		}
		if r.Command != shown || r.CommandHost != "" {
			t.Errorf("%s: shown by %q on %q, want %q", tt.name, r.Command, r.CommandHost, shown)
		}
		if r.GetDst().GetName() != "b" || r.RttNs != 7 || r.Scheme != base.Scheme || r.SrcIp != base.SrcIp || !r.NoTouch || !proto.Equal(base, before) {
			t.Errorf("%s: of %v came %v", tt.name, base, r)
		}
	}
}
