package verdict

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// TestFlooded: of all ways out, the one to the receiver counts; an agent that tells one only is believed.
func TestFlooded(t *testing.T) {
	t.Parallel()
	const (
		crossing = "blue-1 blue-3" // 8 points: hv1 0 1, hv3 2 3, answer hv3 4 5, hv1 6 7
		local    = "blue-1 blue-2" // 2 points on hv1
	)
	gre := func(host string, key uint32) Exit {
		return Exit{Port: "gre-" + host, Remote: vteps[host], TunnelID: key}
	}
	port := func(name string) Exit { return Exit{Port: name} }
	// flooded is what an agent tells that takes the first exit for the packet's.
	flooded := func(point int, exits ...Exit) *Explanation {
		x := &Explanation{Point: point, Outcome: Delivered, Port: exits[0].Port, Exits: exits}
		if e := exits[0]; e.Remote != "" {
			x.Outcome, x.TunnelRemote, x.TunnelID, x.Reason = Tunnelled, e.Remote, e.TunnelID, e.Reason
		}
		return x
	}
	const right = "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to hv3 (10.1.2.3, key 1001) as it should, where it does not come in: lost in the underlay, or at hv3's end of the tunnel; UDP between the two could not be tried: the agent of hv1 knows no underlay probes"
	const silent = "silent guest-silent | hv1/br-int from-instance → hv1/br-int from-instance | hv1 | delivered to tap-b2 of hv1, but blue-2 does not answer"
	arp := gre("hv3", 1001)
	arp.Reason = "neighbor cache miss for 10.1.2.3 on bridge br-phy, sending ARP request"
	tests := []struct {
		name, pair string
		net        []func(hosts)
		routes     routes
		seen       string
		explain    *Explanation
		want       string
	}{
		{name: "to another host first", pair: crossing, seen: "01", explain: flooded(1, gre("hv4", 1001), gre("hv3", 1001), gre("hv2", 1001)), want: right},
		{name: "to ports here first", pair: crossing, seen: "01", explain: flooded(1, port("tap-b2"), gre("hv4", 1001), gre("hv3", 1001)), want: right},
		{name: "to all but the right host", pair: crossing, seen: "01", explain: flooded(1, gre("hv4", 1001), port("tap-b2"), gre("hv2", 1001)),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to 10.1.2.4 (hv4), and to 10.1.1.2, but blue-3 is on hv3 (10.1.2.3): stale or wrong tunnel"},
		{name: "by two tunnels, of which one has the wrong key", pair: crossing, seen: "01", explain: flooded(1, gre("hv3", 7), gre("hv3", 1001)), want: right},
		{name: "by one tunnel, with the wrong key", pair: crossing, seen: "01", explain: flooded(1, gre("hv2", 1001), gre("hv3", 7)),
			want: "faulty vni | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to hv3 (10.1.2.3) with tunnel key 7, but the key of network blue is 1001"},
		{name: "the next hop does not answer", pair: crossing, seen: "01", explain: flooded(1, gre("hv2", 1001), arp),
			want: right + "; hv1's switch says: neighbor cache miss for 10.1.2.3 on bridge br-phy, sending ARP request"},
		{name: "to the inventory's host, and where routes have it", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv2"}, seen: "01",
			explain: flooded(1, gre("hv3", 1001), gre("hv2", 1001)),
			want:    "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to 10.1.1.2 (hv2), as EVPN says (10.1.1.2 (hv2) since 10:42:03, 5m ago), but the inventory says that blue-3 is on hv3 (10.1.2.3): it is out of date, or a route was not withdrawn"},
		{name: "to the inventory's host, and here, where routes have it", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv1"}, seen: "01",
			explain: flooded(1, gre("hv3", 1001), port("tap-x")),
			want:    "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel; the inventory says that blue-3 is on hv3 (10.1.2.3), but EVPN says 10.1.1.1 (hv1) since 10:42:03, 5m ago; its flows deliver it to tap-x of hv1"},

		{name: "to a silent guest, and into tunnels", pair: local, seen: "0", explain: flooded(0, gre("hv3", 1001), port("br-int"), gre("hv2", 1001), port("tap-b2")), want: silent},
		{name: "to a silent guest, among other ports", pair: local, seen: "0", explain: flooded(0, port("br-int"), port("tap-b2")), want: silent},
		{name: "into tunnels, and to another's port", pair: local, seen: "0", explain: flooded(0, gre("hv3", 1001), port("tap-x")),
			want: "faulty stale-vtep | hv1/br-int from-instance → hv1/br-int from-instance | hv1 | hv1 sends it into tunnel gre-hv3 (to 10.1.2.3), but blue-2 is here, at tap-b2"},
		{name: "to other ports", pair: local, seen: "0", explain: flooded(0, port("tap-x"), port("br-int")),
			want: "faulty misdirected | hv1/br-int from-instance → hv1/br-int from-instance | hv1 | hv1 delivers it to tap-x, but blue-2 is at tap-b2"},
		{name: "one way only, from an agent that tells no more", pair: local, seen: "0",
			explain: &Explanation{Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001},
			want:    "faulty stale-vtep | hv1/br-int from-instance → hv1/br-int from-instance | hv1 | hv1 sends it into tunnel gre-hv3 (to 10.1.2.3), but blue-2 is here, at tap-b2"},
		{name: "several ports, from an agent that tells no more", pair: local, seen: "0", explain: &Explanation{Outcome: Delivered, Port: "br-int,tap-b2"}, want: silent},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := pathOf(t, lab(t, tt.net...), tt.pair)
			if tt.routes != nil {
				p = pathBy(t, lab(t, tt.net...), tt.pair, tt.routes.options())
			}
			told := *tt.explain
			r := Judge(Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, tt.seen)}, Explanation: tt.explain})
			if got := show(&r); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if d := cmp.Diff(told, *tt.explain); d != "" {
				t.Errorf("the evidence was changed:\n%s", d)
			}
		})
	}
}

// TestRefused: what the switch says of its refusal is told, and tells a flow that drops from one whose port
// or tunnel does not take what it sends there, or from none at all.
func TestRefused(t *testing.T) {
	t.Parallel()
	const (
		crossing = "blue-1 blue-3"
		out      = "hv1/br-int from-instance → hv1/br-tun to-tunnel | hv1 | hv1: "
		away     = "hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1: "
		in       = "hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | hv3: "
	)
	acts := func(f *Flow, actions string) *Flow { f.Actions = actions; return f }
	tests := []struct {
		name, seen, reason string
		flow               *Flow
		want               string
	}{
		{"no route to the tunnel's end", "01", "native tunnel routing failed", acts(flow("br-tun", 20, 2, "dl_vlan=1"), `set_field:0x3e9->tun_id,output:"gre-hv3"`),
			"faulty tunnel | " + away + "dropped by br-tun table 20, priority 2, dl_vlan=1 (cookie 0xc0ffee): native tunnel routing failed"},
		{"a port is gone", "0", "Nonexistent output port", acts(flow("br-int", 60, 2, "dl_vlan=1"), "output:9"),
			"faulty port | " + out + "dropped by br-int table 60, priority 2, dl_vlan=1 (cookie 0xc0ffee): Nonexistent output port"},
		{"back to where it came from", "0", "skipping output to input port", acts(flow("br-int", 60, 2, "dl_vlan=1"), "output:tap-b1"),
			"faulty flow | " + out + "dropped by br-int table 60, priority 2, dl_vlan=1 (cookie 0xc0ffee): skipping output to input port"},
		{"a drop, whatever is said", "0", "Nonexistent output port", flow("br-int", 60, 2, "dl_vlan=1"),
			"faulty flow | " + out + "dropped by br-int table 60, priority 2, dl_vlan=1 (cookie 0xc0ffee): Nonexistent output port"},
		{"no flow", "0", "table 60 of br-int: no match", &Flow{Bridge: "br-int", Table: 60, Actions: "drop"},
			"faulty flow | " + out + "dropped in table 60 of br-int, which has no flow for it"},
		{"nothing known", "0", "handed to the controller", nil, "faulty flow | " + out + "dropped after hv1/br-int from-instance: handed to the controller"},

		// In the tables of security rules.
		{"denied going out", "0", "", acts(flow("br-int", 72, 40, "ct_state=-est,reg5=0x1"), "resubmit(,93)"),
			"policy security-rule | " + out + "denied by a security rule: br-int table 72, priority 40, ct_state=-est,reg5=0x1 (cookie 0xc0ffee)"},
		{"denied, established", "0", "", acts(flow("br-int", 72, 40, "ct_state=+est,ip,reg5=0x1"), "ct(commit,zone=NXM_NX_REG6[0..15],exec(load:0x1->NXM_NX_CT_MARK[]))"),
			"policy security-rule | " + out + "denied by a security rule: br-int table 72, priority 40, ct_state=+est,ip,reg5=0x1 (cookie 0xc0ffee)"},
		{"spoofed", "0", "", acts(flow("br-int", 71, 10, `reg5=0x1,in_port="tap-b1"`), "ct_clear,resubmit(,93)"),
			"faulty flow | " + out + `dropped by br-int table 71, priority 10, reg5=0x1,in_port="tap-b1" (cookie 0xc0ffee)`},
		{"no rules at all", "0123", "table 82 of br-int: no match", &Flow{Bridge: "br-int", Table: 82, Actions: "drop"},
			"faulty flow | " + in + "dropped in table 82 of br-int, which has no flow for it"},
		{"accepted, and the port is gone", "0123", "Nonexistent output port", acts(flow("br-int", 82, 50, "ct_state=+est-rel+rpl,reg5=0x5"), "output:5"),
			"faulty port | " + in + "dropped by br-int table 82, priority 50, ct_state=+est-rel+rpl,reg5=0x5 (cookie 0xc0ffee): Nonexistent output port"},
		{"accepted, from an agent that does not say why", "0123", "", acts(flow("br-int", 82, 50, "ct_state=+est-rel+rpl,reg5=0x5"), "output:5"),
			"faulty flow | " + in + "dropped by br-int table 82, priority 50, ct_state=+est-rel+rpl,reg5=0x5 (cookie 0xc0ffee)"},
	}
	for _, tt := range tests {
		p := pathOf(t, lab(t), crossing)
		x := &Explanation{Point: len(tt.seen) - 1, Outcome: Dropped, Flow: tt.flow, Reason: tt.reason}
		r := Judge(Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, tt.seen)}, Explanation: x})
		if got := show(&r); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// TestExitsFromProto: all that an agent tells of ways out and of reasons comes over.
func TestExitsFromProto(t *testing.T) {
	t.Parallel()
	got := ExplanationFromProto(&dyetracev1.Explanation{
		Outcome: dyetracev1.Outcome_OUTCOME_TUNNELLED, Port: "gre-a", TunnelRemote: "10.1.1.1", TunnelId: 7, Reason: "neighbor cache miss",
		Exits: []*dyetracev1.Exit{{Port: "gre-a", TunnelRemote: "10.1.1.1", TunnelId: 7, Reason: "neighbor cache miss"}, {Port: "tap-b"}},
	}, 3)
	want := &Explanation{
		Point: 3, Outcome: Tunnelled, Port: "gre-a", TunnelRemote: "10.1.1.1", TunnelID: 7, Reason: "neighbor cache miss",
		Exits: []Exit{{"gre-a", "10.1.1.1", 7, "neighbor cache miss"}, {Port: "tap-b"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
