package verdict

import (
	"strings"
	"testing"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// beside gives each host a second tunnel to each other one, of that type.
func beside(typ string) func(hosts) {
	return func(h hosts) {
		for _, host := range h {
			for _, b := range host.Bridges {
				for _, t := range b.Tunnels {
					b.Tunnels = append(b.Tunnels, &dyetracev1.Tunnel{Port: strings.Replace(t.Port, "gre", typ, 1), Ofport: t.Ofport + 20,
						Type: typ, LocalIp: t.LocalIp, RemoteIp: t.RemoteIp})
				}
			}
		}
	}
}

// fragmented says of tunnels of a host whether their packets may be fragmented.
func fragmented(host, typ string, may bool) func(hosts) {
	return func(h hosts) {
		for _, b := range h[host].Bridges {
			for _, t := range b.Tunnels {
				if t.Type == typ {
					t.MayFragment = &may
				}
			}
		}
	}
}

// samplesBy are those of a probe that came in by tunnels of these types, there and back; "" is that this was not seen.
func samplesBy(p *plan.Path, there, back string) []Aligned {
	var all []Aligned
	for _, pt := range p.Points {
		a := Aligned{Expected: pt, Seen: true}
		end, other, typ := &p.To, &p.From, there
		if pt.Direction == plan.Reply {
			end, other, typ = &p.From, &p.To, back
		}
		if pt.Kind == stain.FromTunnel && pt.Host == end.Host && pt.Bridge == "br-tun" {
			a.Seen = typ != ""
			a.Sample = Sample{InPort: named(end.Tunnels, typ+"-"+other.Host).OFPort, TunSrc: other.VTEPs[0]}
		}
		all = append(all, a)
	}
	return all
}

// largeOn plays the exchanges that a pair needs besides those that were tried, by a network from hv1 to hv3; either way does
// where either is true.
func largeOn(n network, needs []*NeedUnderlay, either bool, tried []TriedMTU) []TriedMTU {
	for _, need := range needs {
		covered := false
		for _, t := range tried {
			reply, ok := t.Need.Covers(need)
			covered = covered || ok && (!reply || either)
		}
		if covered {
			continue
		}
		way := n
		if need.From == "hv3" {
			way.most, way.mostBack = n.mostBack, n.most
		}
		way.fragments = need.By.Fragments == inventory.Yes || n.fragments
		u := way.exchange(need, 1)
		u.Src = need.Src // which it takes for that of hv1
		tried = append(tried, TriedMTU{need, u})
	}
	return tried
}

func TestWithMTU(t *testing.T) {
	t.Parallel()
	const (
		route  = "packets of 1492 bytes from 10.1.1.1 to 10.1.2.3 are lost, while 128 bytes pass"
		larger = "packets of 1500 bytes from 10.1.1.1 to 10.1.2.3 are lost, while 128 bytes pass"
		back   = "packets of 1492 bytes from 10.1.2.3 to 10.1.1.1 are lost, while 128 bytes pass"
		there  = " | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | path MTU: "
		backto = " | hv3/br-tun to-tunnel → hv1/br-tun from-tunnel | hv3 | path MTU: "
		unsure = "unknown unseen | - | hv1 | small packets pass both ways; whether large ones do "
	)
	vxlan := []func(hosts){beside("vxlan")}
	half, none := []bool{false, true}, []bool{false, false}
	faulty := func(r *Result) { r.Verdict, r.Host, r.Cause = Faulty, "hv9", "a flow" }
	tests := []struct {
		name, pair  string
		hosts       []func(hosts)
		change      func(*network)
		there, back string // tunnels
		result      func(*Result)
		want        string
	}{
		{name: "passes", there: "gre", back: "gre", want: "healthy | - |  | "},
		{name: "lost there", there: "gre", back: "gre", change: func(n *network) { n.most = 1400 }, want: "faulty path-mtu" + there + route},
		{name: "lost back", there: "gre", back: "gre", change: func(n *network) { n.mostBack = 1400 }, want: "faulty path-mtu" + backto + back},
		{name: "lost there, the other pair", pair: "blue-3 blue-1", there: "gre", back: "gre", change: func(n *network) { n.most = 1400 },
			want: "faulty path-mtu" + there + route},
		{name: "a note stays", there: "gre", back: "gre", change: func(n *network) { n.most = 1400 }, result: func(r *Result) { r.Cause = "1 of 2 probes lost" },
			want: "faulty path-mtu" + there + route + "; 1 of 2 probes lost"},
		{name: "nothing is known", there: "gre", back: "gre", change: func(n *network) { n.firewall = true },
			want: unsure + "is not known: none of 128 packets arrives by UDP from 10.1.1.1 to 10.1.2.3, port 7443, either; but nor have any others of late, " +
				"so that a firewall may drop them"},
		{name: "fragments, by an agent that tells of one tunnel", there: "gre", back: "gre", change: func(n *network) { n.most, n.fragments = 1400, true },
			want: "healthy | - |  | "},
		{name: "faulty already", there: "gre", back: "gre", change: func(n *network) { n.most = 1400 }, result: faulty,
			want: "faulty | - | hv9 | a flow; besides, " + route},

		{name: "passes, beside a way that loses all", there: "gre", back: "gre", change: func(n *network) { n.ways, n.deadThere, n.deadBack = 2, half, none },
			want: unsure + "is not known: of 32 source ports, 22 lose everything by UDP from 10.1.1.1 to 10.1.2.3, and the others nothing"},
		{name: "lost there, beside a way that loses all, and nobody told what came", there: "gre", back: "gre",
			change: func(n *network) { n.ways, n.deadThere, n.deadBack, n.most, n.recall = 2, half, none, 1400, false },
			want:   unsure + "is not known: 88 of 128 packets by UDP from 10.1.1.1 to 10.1.2.3 were not answered, and hv3 could not be asked how many came"},
		{name: "lost there, beside a way that loses all", there: "gre", back: "gre",
			change: func(n *network) { n.ways, n.deadThere, n.deadBack, n.most = 2, half, none, 1400 }, want: "faulty path-mtu" + there + route},
		{name: "lost back, beside a way that loses all", there: "gre", back: "gre",
			change: func(n *network) { n.ways, n.deadThere, n.deadBack, n.mostBack = 2, none, half, 1400 }, want: "faulty path-mtu" + backto + back},
		{name: "lost there, and much of what is small is lost by chance", there: "gre", back: "gre", change: func(n *network) { n.most, n.loss = 1400, 0.2 },
			want: unsure + "is not known: 28 of 128 packets are lost by UDP from 10.1.1.1 to 10.1.2.3 too"},

		{name: "of two tunnels, the larger", hosts: vxlan, there: "vxlan", back: "vxlan", change: func(n *network) { n.most = 1495 },
			want: "faulty path-mtu" + there + larger},
		{name: "of two tunnels, the smaller", hosts: vxlan, there: "gre", back: "gre", change: func(n *network) { n.most = 1495 }, want: "healthy | - |  | "},
		{name: "another back", hosts: vxlan, there: "vxlan", back: "gre", change: func(n *network) { n.mostBack = 1495 }, want: "healthy | - |  | "},
		{name: "another back, which is lost", hosts: vxlan, there: "vxlan", back: "gre", change: func(n *network) { n.mostBack = 1491 },
			want: "faulty path-mtu" + backto + back},
		{name: "another back, of which nothing was answered", hosts: vxlan, there: "gre", back: "vxlan", change: func(n *network) { n.most = 1495 },
			want: "healthy | - |  | "},
		{name: "another back, of which nothing was answered, and lost too", hosts: vxlan, there: "gre", back: "vxlan",
			change: func(n *network) { n.most, n.mostBack = 1495, 1495 },
			want:   "faulty path-mtu" + backto + strings.Replace(back, "1492", "1500", 1)},
		{name: "one of two tunnels", hosts: vxlan, change: func(n *network) { n.most = 1495 },
			want: unsure + "is not known: which tunnel of hv1 it takes was not seen, and by vxlan-hv3 " + larger + ", by another they pass"},
		{name: "one of two tunnels, lost by both", hosts: vxlan, change: func(n *network) { n.most = 1400 }, want: "faulty path-mtu" + there + route},
		{name: "one of two tunnels, passing by both", hosts: vxlan, want: "healthy | - |  | "},
		{name: "one of two tunnels, faulty already", hosts: vxlan, change: func(n *network) { n.most = 1495 }, result: faulty, want: "faulty | - | hv9 | a flow"},
		{name: "a tunnel whose size is not known", hosts: []func(hosts){beside("stt")}, there: "stt", back: "stt",
			want: unsure + "could not be tried: how much STT adds to a packet, by stt-hv3 of hv1, is not known"},
		{name: "beside a tunnel whose size is not known", hosts: []func(hosts){beside("stt")}, there: "gre", back: "gre", want: "healthy | - |  | "},

		{name: "whole packets, and the other tunnel's may be fragmented", hosts: []func(hosts){beside("vxlan"), fragmented("hv1", "gre", true), fragmented("hv1", "vxlan", false)},
			there: "vxlan", back: "vxlan", change: func(n *network) { n.most = 1400 }, want: "faulty path-mtu" + there + larger},
		{name: "fragments, and the other tunnel's are whole", hosts: []func(hosts){beside("vxlan"), fragmented("hv1", "gre", true), fragmented("hv1", "vxlan", false)},
			there: "gre", back: "gre", change: func(n *network) { n.most = 1400 }, want: "healthy | - |  | "},
		{name: "fragments there, whole back", hosts: []func(hosts){fragmented("hv1", "gre", true), fragmented("hv3", "gre", false)},
			there: "gre", back: "gre", change: func(n *network) { n.mostBack = 1400 }, want: "faulty path-mtu" + backto + back},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			pair := firstOf(tt.pair, "blue-1 blue-3")
			p := pathOf(t, lab(t, append(tt.hosts, func(h hosts) { echoes(h) })...), pair)
			n := open()
			if tt.change != nil {
				tt.change(&n)
			}
			r := Result{Verdict: Healthy, Samples: samplesBy(p, tt.there, tt.back)}
			if tt.result != nil {
				tt.result(&r)
			}
			// Another pair of the hosts began the exchanges.
			tried := largeOn(n, NeedMTU(pathOf(t, lab(t, append(tt.hosts, func(h hosts) { echoes(h) })...), "blue-1 blue-3")), true, nil)
			tried = largeOn(n, MoreMTU(r, p, tried), false, tried)
			r = WithMTU(r, p, tried)
			if got := show(&r); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if r.Kind == CausePathMTU && r.Underlay == nil {
				t.Error("the exchange is not shown")
			}
		})
	}
}

// TestWithMTUUntried has no exchange.
func TestWithMTUUntried(t *testing.T) {
	t.Parallel()
	const unsure = "unknown unseen | - | hv1 | small packets pass both ways; whether large ones do could not be tried: "
	for _, tt := range []struct {
		name, pair string
		hosts      func(hosts)
		want       string
	}{
		{"old agents", "blue-1 blue-3", func(hosts) {}, unsure + "the agent of hv1 knows no underlay probes"},
		{"no MTU", "blue-1 blue-3", func(h hosts) { echoes(h); h["hv3"].MTUs = nil }, unsure + "the MTU of the instances' ports is not known"},
		{"no tunnel", "blue-1 blue-3", func(h hosts) { echoes(h); h["hv1"].Bridges[1].Tunnels = nil }, unsure + "no tunnel from hv1 to hv3 is known"},
		{"one host", "blue-1 blue-2", func(h hosts) { echoes(h) }, "healthy | - |  | "},
	} {
		p := pathOf(t, lab(t, tt.hosts), tt.pair)
		if tt.name != "no tunnel" && NeedMTU(p) != nil {
			t.Errorf("%s: exchanges %v", tt.name, NeedMTU(p))
		}
		r := WithMTU(Result{Verdict: Healthy}, p, nil)
		if got := show(&r); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
	p := pathOf(t, lab(t, func(h hosts) { echoes(h) }), "blue-1 blue-3")
	need := NeedMTU(p)[0]
	r := WithMTU(Result{Verdict: Healthy}, p, []TriedMTU{{need, &Underlay{Error: "no agent of hv1 is connected"}}})
	if got, want := show(&r), unsure+"no agent of hv1 is connected"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
