package e2e

import (
	"strings"
	"testing"
)

// TestJudge holds single verdicts against a truth, and wants each to count as what it is: what the bench says is worth
// no more than how it would say the contrary.
func TestJudge(t *testing.T) {
	t.Parallel()
	at := func(host, bridge, kind, way string) *point { return &point{host, bridge, kind, way} }
	one := func(src, dst string, last *point, missing *point, outcome string) fate {
		return fate{Src: []string{src}, Dst: []string{dst}, LastSeen: last, FirstMissing: *missing, Outcome: outcome}
	}
	wire := one("a", "b", at("hv1", "br-tun", "to-tunnel", "request"), at("hv2", "br-tun", "from-tunnel", "request"), "faulty")
	within := one("a", "b", at("hv1", "br-int", "from-instance", "request"), at("hv1", "br-tun", "to-tunnel", "request"), "faulty")
	segment := func(f fate) *string { s := f.String(); return &s }
	back := "hv2/br-tun to-tunnel → hv1/br-tun from-tunnel"
	flow := changedFlow{60, 110, `ip,in_port="tap1",nw_dst=10.0.0.2`}
	dropped := change{Host: "hv1", Bridge: "br-int", Flows: []changedFlow{flow}}
	gone := change{Host: "hv1", Bridge: "br-int", Gone: []changedFlow{flow}}

	kind := func(name, cause string) benchBreak {
		k := breakKind{Name: name, Cause: cause}
		return benchBreak{breakKind: k, causes: k.kinds()}
	}
	said := func(verdict string, where *string, host, cause string) pair {
		return pair{Src: "a", Dst: "b", Verdict: verdict, Segment: where, Host: host, CauseKind: cause}
	}
	naming := func(p pair, table, priority int, match string) pair {
		p.Flow = &flowRef{Bridge: "br-int", Table: table, Priority: priority, Match: match}
		return p
	}
	unseen := truth{Unseen: []reach{{[]string{"a"}, []string{"b"}}}, Causes: []string{"guest"}, Changes: []change{{Host: "hv1"}}}
	restart := &ownFault{name: "restart", breaks: func(pair) bool { return true }}
	stop := &ownFault{name: "stop"}

	for _, tt := range []struct {
		name  string
		kind  benchBreak
		own   *ownFault
		truth truth
		asked float64
		dark  bool
		p     pair
		want  string // what of failing, detected, segment, cause, healthy, alarms, wrong counts
	}{
		{name: "right", kind: kind("drop-flow", "flow"), truth: truth{Fates: []fate{within}, Changes: []change{dropped}},
			p: naming(said("faulty", segment(within), "hv1", "flow"), 60, 110, "ip,nw_dst=10.0.0.2,in_port=tap1"), want: "failing detected segment cause"},
		{name: "another flow", kind: kind("drop-flow", "flow"), truth: truth{Fates: []fate{within}, Changes: []change{dropped}},
			p: naming(said("faulty", segment(within), "hv1", "flow"), 60, 110, "ip,nw_dst=10.0.0.3,in_port=tap1"), want: "failing detected segment"},
		{name: "another table", kind: kind("drop-flow", "flow"), truth: truth{Fates: []fate{within}, Changes: []change{dropped}},
			p: naming(said("faulty", segment(within), "hv1", "flow"), 0, 110, flow.Match), want: "failing detected segment"},
		{name: "no flow", kind: kind("drop-flow", "flow"), truth: truth{Fates: []fate{within}, Changes: []change{dropped}},
			p: said("faulty", segment(within), "hv1", "flow"), want: "failing detected segment"},
		{name: "another host", kind: kind("drop-flow", "flow"), truth: truth{Fates: []fate{within}, Changes: []change{dropped}},
			p: naming(said("faulty", segment(within), "hv2", "flow"), 60, 110, flow.Match), want: "failing detected segment"},
		{name: "what is left where a flow is gone", kind: kind("route-gone", "flow"), truth: truth{Fates: []fate{within}, Changes: []change{gone}},
			p: naming(said("faulty", segment(within), "hv1", "flow"), 60, 0, ""), want: "failing detected segment cause"},
		{name: "elsewhere than what is gone", kind: kind("route-gone", "flow"), truth: truth{Fates: []fate{within}, Changes: []change{gone}},
			p: naming(said("faulty", segment(within), "hv1", "flow"), 61, 0, ""), want: "failing detected segment"},
		{name: "a wrong key is no tunnel's", kind: kind("wrong-vni", "tunnel"), truth: truth{Fates: []fate{wire}, Changes: []change{{Host: "hv1"}}},
			p: said("faulty", segment(wire), "hv1", "tunnel"), want: "failing detected segment"},
		{name: "misdirected, and the flow blamed", kind: kind("flow-misdirected", "misdirected"),
			truth: truth{Fates: []fate{within}, Changes: []change{{Host: "hv1", Bridge: "br-int", Flows: []changedFlow{flow}, Instead: "c"}}},
			p:     naming(said("faulty", segment(within), "hv1", "flow"), 60, 110, flow.Match), want: "failing detected segment"},
		{name: "to where it came from", kind: kind("flow-misdirected", "misdirected"),
			truth: truth{Fates: []fate{within}, Changes: []change{{Host: "hv1", Bridge: "br-int", Flows: []changedFlow{flow}, Instead: "a"}}},
			p:     naming(said("faulty", segment(within), "hv1", "flow"), 60, 110, flow.Match), want: "failing detected segment cause"},
		{name: "not found", kind: kind("drop-flow", "flow"), truth: truth{Fates: []fate{within}, Changes: []change{dropped}},
			p: said("healthy", nil, "", ""), want: "failing"},

		{name: "a loss need not be told", kind: kind("underlay-loss", "loss"), truth: truth{Losses: []lossFate{{wire, 50}}},
			p: said("healthy", nil, "", ""), want: ""},
		{name: "unless it was asked for", kind: kind("underlay-loss", "loss"), truth: truth{Losses: []lossFate{{wire, 50}}}, asked: 25,
			p: said("healthy", nil, "", ""), want: "failing"},
		{name: "less than was asked for", kind: kind("underlay-loss", "loss"), truth: truth{Losses: []lossFate{{wire, 50}}}, asked: 50,
			p: said("healthy", nil, "", ""), want: ""},
		{name: "there and not back", kind: kind("underlay-loss", "loss"), truth: truth{Losses: []lossFate{{wire, 50}}}, asked: 25,
			p: said("faulty", &back, "hv2", "loss"), want: "failing detected cause"},
		{name: "found", kind: kind("underlay-loss", "loss"), truth: truth{Losses: []lossFate{{wire, 50}}}, asked: 25,
			p: said("faulty", segment(wire), "hv1", "loss"), want: "failing detected segment cause"},
		{name: "found, and a third host blamed", kind: kind("underlay-loss", "loss"), truth: truth{Losses: []lossFate{{wire, 50}}}, asked: 25,
			p: said("faulty", segment(wire), "hv3", "loss"), want: "failing detected segment"},
		{name: "told by chance, of another way", kind: kind("underlay-loss", "loss"), truth: truth{Losses: []lossFate{{wire, 50}}},
			p: said("faulty", &back, "hv2", "loss"), want: "alarms"},
		{name: "told by chance", kind: kind("underlay-loss", "loss"), truth: truth{Losses: []lossFate{{wire, 50}}},
			p: said("faulty", segment(wire), "hv1", "loss"), want: ""},

		{name: "large, there and not back", kind: kind("underlay-mtu", "path-mtu"), truth: truth{Large: []fate{wire}},
			p: said("faulty", &back, "hv2", "path-mtu"), want: "failing detected cause"},
		{name: "by the dark member", kind: kind("underlay-member", "underlay-member"), truth: truth{Maybe: []fate{wire}}, dark: true,
			p: said("healthy", nil, "", ""), want: "failing"},
		{name: "by the other", kind: kind("underlay-member", "underlay-member"), truth: truth{Maybe: []fate{wire}},
			p: said("healthy", nil, "", ""), want: ""},

		{name: "a link that is down", kind: kind("guest-down", "guest"), truth: unseen, p: said("healthy", nil, "", ""), want: "failing"},
		{name: "a link that is down, and told", kind: kind("guest-down", "guest"), truth: unseen,
			p: said("silent", segment(within), "hv1", "guest-down"), want: "failing detected segment cause"},
		{name: "a link that is down, and another told", kind: kind("guest-down", "guest"), truth: unseen,
			p: said("silent", segment(within), "hv2", "guest-down"), want: "failing detected segment"},
		{name: "an answer that nobody could see lost", kind: kind("guest-firewall", "guest"), truth: unseen, p: said("healthy", nil, "", ""), want: ""},
		{name: "an answer that was lost elsewhere", kind: kind("guest-firewall", "guest"), truth: unseen,
			p: said("faulty", segment(wire), "hv1", "underlay"), want: "alarms"},

		{name: "lost while the switch was away", own: restart, p: said("faulty", segment(wire), "hv1", "underlay"), want: ""},
		{name: "the guest blamed for it", own: restart, p: said("silent", segment(within), "hv1", "guest-silent"), want: "wrong"},
		{name: "a rule blamed for it", own: restart, p: said("policy", segment(within), "hv1", "security-rule"), want: "wrong"},
		{name: "flows blamed for it", own: restart, p: said("faulty", segment(within), "hv1", "stale-vtep"), want: "wrong"},
		{name: "a fault of ours taken for one", own: stop, p: said("faulty", segment(wire), "hv1", "underlay"), want: "healthy alarms wrong"},
		{name: "and not", own: stop, p: said("unknown", nil, "hv1", "agent"), want: "healthy"},
	} {
		c := benchCase{own: tt.own}
		if tt.kind.Name != "" {
			c.breaks = []benchBreak{tt.kind}
		}
		j := &judging{b: &bench{report: newBenchReport(1)}, c: c, tr: tt.truth, alone: []truth{tt.truth}, score: &score{}, measured: tt.asked}
		if tt.dark {
			j.dark = map[string]bool{"a b": true}
		}
		j.judge(tt.p)
		var got []string
		for _, count := range []struct {
			name string
			n    int
		}{
			{"failing", j.score.Failing}, {"detected", j.score.Detected}, {"segment", j.score.Segment}, {"cause", j.score.Cause},
			{"healthy", j.score.Healthy}, {"alarms", j.score.Alarms}, {"wrong", j.score.Wrong},
		} {
			if count.n > 0 {
				got = append(got, count.name)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: counts %q (want %q)", tt.name, strings.Join(got, " "), tt.want)
		}
	}
}
