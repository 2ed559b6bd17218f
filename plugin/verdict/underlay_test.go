package verdict

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
)

// echoes has hosts answer underlay probes, and instances of 1450 bytes.
func echoes(hosts map[string]*inventory.Host) {
	for name, h := range hosts {
		h.Underlay = &dyetracev1.UnderlayEcho{Port: 7443}
		for _, b := range h.Bridges {
			for _, t := range b.Tunnels {
				if a := t.GetLocalIp(); !slices.Contains(h.Underlay.Addresses, a) {
					h.Underlay.Addresses = append(h.Underlay.Addresses, a)
				}
			}
		}
		h.MTUs = slices.Repeat([]uint32{1450}, len(h.Endpoints))
		hosts[name] = h
	}
}

// network is what lies between two hosts, as the simulator knows it.
type network struct {
	// ways there and back; of those that are dead nothing comes out.
	ways              int
	deadThere         []bool
	deadBack          []bool
	most, mostBack    int     // largest packet that passes there, and back
	loss              float64 // of single packets, each way
	firewall          bool    // at the other host: nobody gets in by our port
	responder, recall bool    // it answers; its agent can be asked
	tells             bool    // a router says that there is no way
	heard             time.Duration
	asker             time.Duration // the same of the host that asks, where nothing of this exchange came
	recalled          time.Duration // how long after the report
	fragments         bool
	silent            time.Duration // the stream between the two hosts
}

func open() network {
	return network{ways: 1, deadThere: []bool{false}, deadBack: []bool{false}, most: 9000, mostBack: 9000,
		responder: true, recall: true, heard: time.Minute}
}

// exchange plays both agents. Which way a source port goes is drawn.
func (n network) exchange(need *NeedUnderlay, seed int64) *Underlay {
	r := rand.New(rand.NewSource(seed))
	q := need.Proto(7, 0)
	ports, sizes := int(q.SourcePorts), len(q.Sizes)
	m := &dyetracev1.UnderlayReport{SrcIp: "10.1.1.1", DstIp: need.Dst.String(), MayFragment: n.fragments,
		Sent: make([]uint32, ports*sizes), Answered: make([]uint32, ports*sizes), RttNs: make([]uint64, ports*sizes)}
	recall := &dyetracev1.UnderlayReport{Listening: n.responder, Seen: make([]byte, 1024)}
	if !n.responder {
		recall.Problem = "address already in use"
	}
	if n.heard > 0 && !n.firewall {
		recall.FromOthersNs = uint64(n.heard)
	}
	recall.FromAskerNs = uint64(n.asker)
	there, back := make([]int, ports), make([]int, ports)
	for p := range ports {
		m.SourcePorts = append(m.SourcePorts, uint32(40000+p))
		there[p], back[p] = r.Intn(n.ways), r.Intn(n.ways)
	}
	for repeat := range int(q.Repeats) {
		for p := range ports {
			for s, bytes := range q.Sizes {
				i := p*sizes + s
				if s > 0 && m.Answered[i] > 0 {
					continue
				}
				m.Sent[i]++
				if n.deadThere[there[p]] || int(bytes) > n.most || n.firewall || !n.responder || r.Float64() < n.loss {
					continue
				}
				serial := (repeat*ports+p)*sizes + s
				recall.Seen[serial/8] |= 1 << (serial % 8)
				if n.deadBack[back[p]] || int(bytes) > n.mostBack || r.Float64() < n.loss {
					continue
				}
				m.Answered[i]++
				m.RttNs[i] = 200_000
			}
		}
	}
	if n.tells && !slices.Contains(n.deadThere, false) {
		m.Errors = append(m.Errors, &dyetracev1.UnderlayError{From: "10.1.1.254", Type: 3, Code: 1, Text: "host unreachable", Count: 9})
	}
	if !n.recall {
		recall = nil
	}
	u := UnderlayFromProto(need, q, m, recall, n.recalled)
	u.Silent = n.silent
	return u
}

func TestUnderlay(t *testing.T) {
	t.Parallel()
	const (
		segment = " | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | "
		right   = "hv1 sends it to hv3 (10.1.2.3, key 1001) as it should"
		either  = right + ", where it does not come in: lost in the underlay, or at hv3's end of the tunnel"
		route   = "UDP from 10.1.1.1 to 10.1.2.3"
	)
	half := func(n *network) { n.ways, n.deadThere, n.deadBack = 2, []bool{false, true}, []bool{false, false} }
	tests := []struct {
		name   string
		change func(*network)
		hosts  func(hosts)
		want   string
	}{
		{name: "passes", want: "faulty entrypoint" + segment + "hv3 | " + right + ": 128 packets of 32 source ports pass by " + route +
			", so the packet is lost at hv3's end of the tunnel, or the network drops GRE"},
		{name: "nothing there", change: func(n *network) { n.deadThere[0] = true },
			want: "faulty underlay" + segment + "hv1 | " + right + ": lost in the underlay: none of 128 packets arrives by " + route + " either; the last ones to come there did so 1 min ago"},
		{name: "nothing there, and a router says so", change: func(n *network) { n.deadThere[0], n.tells, n.heard = true, true, 0 },
			want: "faulty underlay" + segment + "hv1 | " + right + ": lost in the underlay: none of 128 packets arrives by " + route + " either; 10.1.1.254 says: host unreachable"},
		{name: "nothing there, and nobody was heard", change: func(n *network) { n.deadThere[0], n.heard = true, time.Hour },
			want: "faulty between-hosts" + segment + "hv1 | " + either + ": none of 128 packets arrives by " + route + ", port 7443, either; but nor have any others of late, so that a firewall may drop them"},
		{name: "nothing there, nobody was heard, and a stream went silent", change: func(n *network) { n.deadThere[0], n.heard, n.silent = true, 0, 2*time.Second },
			want: "faulty underlay" + segment + "hv1 | " + right + ": lost in the underlay: none of 128 packets arrives by " + route + " either; those that the two hosts exchange all the time were answered until 2s ago"},
		{name: "a stream went silent, and packets pass", change: func(n *network) { n.silent = time.Second }, want: "faulty entrypoint" + segment + "hv3 | " + right + ": 128 packets of 32 source ports pass by " + route +
			", so the packet is lost at hv3's end of the tunnel, or the network drops GRE"},
		{name: "a firewall that minds our port", change: func(n *network) { n.firewall = true },
			want: "faulty between-hosts" + segment + "hv1 | " + either + ": none of 128 packets arrives by " + route + ", port 7443, either; but nor have any others of late, so that a firewall may drop them"},
		{name: "nothing back", change: func(n *network) { n.deadBack[0] = true }, want: "faulty entrypoint" + segment + "hv3 | " + right + ": 128 packets of 32 source ports pass by " + route +
			", so the packet is lost at hv3's end of the tunnel, or the network drops GRE"},
		{name: "nothing answered, nobody to be asked", change: func(n *network) { n.deadBack[0], n.recall = true, false },
			want: "faulty between-hosts" + segment + "hv1 | " + either + "; UDP between the two told nothing: none of 128 packets by " + route + " was answered, and hv3 could not be asked whether any came"},
		{name: "responder not there", change: func(n *network) { n.responder = false },
			want: "unknown agent" + segment + "hv3 | " + either + "; UDP between the two told nothing: the agent of hv3 did not answer: address already in use"},
		{name: "one of two ways", change: half,
			want: "faulty underlay-member" + segment + "hv1 | " + right + ": lost on one of several ways through the underlay: of 32 source ports, 22 lose everything by " + route + ", and the others nothing"},
		{name: "large ones lost as well", change: func(n *network) { n.most = 1400 }, want: "faulty entrypoint" + segment + "hv3 | " + right + ": 128 packets of 32 source ports pass by " + route +
			", so the packet is lost at hv3's end of the tunnel, or the network drops GRE; besides, packets of 1492 bytes from 10.1.1.1 to 10.1.2.3 are lost, while 128 bytes pass"},
		{name: "much lost", change: func(n *network) { n.loss = 0.5 },
			want: "faulty loss" + segment + "hv1 | " + right + ": the underlay loses much: 57 of 128 packets are lost by " + route + " too"},
		{name: "nothing there, but others meanwhile", change: func(n *network) { n.deadThere[0], n.asker = true, 200*time.Millisecond },
			want: "faulty loss" + segment + "hv1 | " + right + ": the underlay loses much: none of 128 packets arrives by " + route + ", though others from hv1 did so meanwhile"},
		{name: "nothing there, and others before", change: func(n *network) { n.deadThere[0], n.asker = true, 300*time.Millisecond },
			want: "faulty underlay" + segment + "hv1 | " + right + ": lost in the underlay: none of 128 packets arrives by " + route + " either; the last ones to come there did so 1 min ago"},
		{name: "nothing there, but others while it was waited for", change: func(n *network) {
			n.deadThere[0], n.asker, n.recalled = true, 740*time.Millisecond, 450*time.Millisecond
		}, want: "faulty loss" + segment + "hv1 | " + right + ": the underlay loses much: none of 128 packets arrives by " + route + ", though others from hv1 did so meanwhile"},
		{name: "much lost, nobody to be asked", change: func(n *network) { n.loss, n.recall = 0.5, false },
			want: "unknown agent" + segment + "hv3 | " + either + "; UDP between the two told nothing: 96 of 128 packets by " + route + " were not answered, and hv3 could not be asked how many came"},
		{name: "switched off", hosts: func(h hosts) { h["hv3"].Underlay = &dyetracev1.UnderlayEcho{} },
			want: "faulty between-hosts" + segment + "hv1 | " + either + "; UDP between the two could not be tried: underlay probes are switched off on hv3"},
		{name: "not bound", hosts: func(h hosts) {
			h["hv3"].Underlay = &dyetracev1.UnderlayEcho{Port: 7443, Problems: []string{"bind to UDP 10.1.2.3:7443: address already in use"}}
		}, want: "faulty between-hosts" + segment + "hv1 | " + either + "; UDP between the two could not be tried: the agent of hv3 does not answer underlay probes at 10.1.2.3 (bind to UDP 10.1.2.3:7443: address already in use)"},
		{name: "an old agent", hosts: func(h hosts) { h["hv3"].Underlay = nil },
			want: "faulty between-hosts" + segment + "hv1 | " + either + "; UDP between the two could not be tried: the agent of hv3 knows no underlay probes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			change := []func(hosts){func(h hosts) { echoes(h) }}
			if tt.hosts != nil {
				change = append(change, tt.hosts)
			}
			p := pathOf(t, lab(t, change...), "blue-1 blue-3")
			e := Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, "01")},
				Explanation: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001}}
			r := Judge(e)
			if tt.hosts == nil {
				src, dst := netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("10.1.2.3")
				want := NeedUnderlay{From: "hv1", To: "hv3", Src: src, Dst: dst, Port: 7443, Small: 128, Large: 1492,
					By: inventory.Tunnel{Bridge: "br-tun", Port: "gre-hv3", OFPort: 12, Type: "gre", Local: src, Remote: dst}}
				if r.NeedUnderlay == nil || *r.NeedUnderlay != want {
					t.Fatalf("NeedUnderlay = %+v, want %+v", r.NeedUnderlay, want)
				}
				n := open()
				if tt.change != nil {
					tt.change(&n)
				}
				e.Underlay = n.exchange(r.NeedUnderlay, 1)
				r = Judge(e)
			}
			if got := show(&r); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if r.NeedUnderlay != nil || (r.Underlay == nil) != (tt.hosts != nil) {
				t.Errorf("asks for %+v; shows %+v", r.NeedUnderlay, r.Underlay)
			}
		})
	}
}

// TestOverhead knows OVN's tunnels, whose Geneve has an option, by the names of their ports.
func TestOverhead(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		typ, port string
		want      int
	}{
		{"gre", "gre-hv3", 22},
		{"ip6gre", "gre-hv3", 22},
		{"vxlan", "vxlan-hv3", 30},
		{"vxlan", "ovn-hv3-0", 30},
		{"geneve", "geneve-hv3", 30},
		{"geneve", "ovn-hv3-0", 38},
		{"geneve", "ovn-a1b2c3-1f", 38},
		{"geneve", "ovn2-a1b2c-0", 38}, // the second ovn-controller of a host
		{"geneve", "ovn-b-x", 30},
		{"geneve", "ovs-hv3-0", 30},
		{"stt", "ovn-hv3-0", 0},
		{"", "", 0},
	} {
		if got := overhead(inventory.Tunnel{Type: tt.typ, Port: tt.port}); got != tt.want {
			t.Errorf("%s by %s: %d bytes, want %d", tt.typ, tt.port, got, tt.want)
		}
	}
}

// TestBetweenHosts has a person ask for an exchange like the packets of a tunnel.
func TestBetweenHosts(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t, beside("vxlan"), func(h hosts) { echoes(h) }), "blue-1 blue-3")
	none := netip.Addr{}
	for _, tt := range []struct {
		tunnel   string
		src, dst netip.Addr
		want     string
	}{
		{"", none, none, "10.1.1.1 to 10.1.2.3, 1500 bytes, like vxlan-hv3"},
		{"gre-hv3", none, none, "10.1.1.1 to 10.1.2.3, 1492 bytes, like gre-hv3"},
		{"vxlan-hv3", none, netip.MustParseAddr("10.1.2.3"), "10.1.1.1 to 10.1.2.3, 1500 bytes, like vxlan-hv3"},
		{"vxlan-hv2", none, netip.MustParseAddr("10.1.2.3"), "hv1 has no tunnel port vxlan-hv2 to 10.1.2.3"},
		{"vxlan-hv2", none, none, "the agent of hv3 does not answer underlay probes at 10.1.1.2"},
		{"gnv", none, none, "hv1 has no tunnel port gnv to 10.1.2.3"},
		{"", netip.MustParseAddr("10.1.1.9"), none, "10.1.1.9 to 10.1.2.3, 0 bytes, like "},
	} {
		got := ""
		n, why := BetweenHosts(&p.From, &p.To, tt.src, tt.dst, tt.tunnel)
		if got = why; n != nil {
			got = fmt.Sprintf("%s to %s, %d bytes, like %s", n.Src, n.Dst, n.Large, n.By.Port)
			if m := n.Proto(1, 0); m.Tunnel != n.By.Port {
				t.Errorf("asks for %v", m)
			}
		}
		if got != tt.want {
			t.Errorf("%q from %s to %s:\ngot  %s\nwant %s", tt.tunnel, tt.src, tt.dst, got, tt.want)
		}
	}
}

// A probe that a wrong tunnel port may explain, or the network that is yet to be tried, is waited for until both are known: if
// it is the network, nothing but silence says so.
func TestUnderlayIsWaitedFor(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t, func(h hosts) { echoes(h) }, remote("hv3", "gre-hv1", "10.1.9.9")), "blue-1 blue-3")
	e := Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, "01")}, Patience: 750 * time.Millisecond,
		Explanation: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001}}
	r := Judge(e)
	if r.Kind != CauseTunnel || r.NeedUnderlay == nil || r.Wait != e.Patience {
		t.Fatalf("before the network is tried: %s, asks for %+v, waits %v; want the tunnel, an exchange, and to wait %v", show(&r), r.NeedUnderlay, r.Wait, e.Patience)
	}
	need := r.NeedUnderlay
	n := open()
	e.Underlay = n.exchange(need, 1)
	if r := Judge(e); r.Kind != CauseTunnel || r.Wait != 0 {
		t.Errorf("the network passes packets: %s, waits %v; want the tunnel, and not to wait", show(&r), r.Wait)
	}
	n.deadThere[0] = true
	e.Underlay = n.exchange(need, 1)
	if r := Judge(e); r.Verdict != Unknown || r.Wait != e.Patience {
		t.Errorf("it does not: %s, waits %v; want it unknown as yet, and to wait %v", show(&r), r.Wait, e.Patience)
	}
}

// Where other packets pass between the same hosts a probe is waited for for a third of the time, or four times as long as they took if
// that is more; where they do not, for all of it, or until others have been waited for so long, and two thirds of it.
func TestUnderlayIsQuick(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t, func(h hosts) { echoes(h) }), "blue-1 blue-3")
	for _, tt := range []struct {
		rtt, quiet, wait time.Duration
		dead, unanswered bool
		hushed           time.Duration
	}{
		{rtt: time.Millisecond, wait: 250 * time.Millisecond},
		{rtt: time.Millisecond, quiet: 200 * time.Millisecond, wait: 50 * time.Millisecond},
		{rtt: time.Millisecond, quiet: 250 * time.Millisecond},
		{rtt: 100 * time.Millisecond, quiet: 250 * time.Millisecond, wait: 150 * time.Millisecond},
		{rtt: 300 * time.Millisecond, quiet: 250 * time.Millisecond, wait: 500 * time.Millisecond},
		{dead: true, quiet: 250 * time.Millisecond, wait: 500 * time.Millisecond},
		{dead: true, quiet: 680 * time.Millisecond, hushed: 700 * time.Millisecond, wait: 50 * time.Millisecond},
		{dead: true, quiet: 680 * time.Millisecond, hushed: 750 * time.Millisecond},
		{dead: true, quiet: 250 * time.Millisecond, hushed: 2 * time.Second, wait: 425 * time.Millisecond},
		{dead: true, quiet: 700 * time.Millisecond, hushed: 600 * time.Millisecond, wait: 50 * time.Millisecond},
		{dead: true, quiet: 750 * time.Millisecond, hushed: 600 * time.Millisecond},
		{rtt: time.Millisecond, unanswered: true, quiet: 250 * time.Millisecond, wait: 500 * time.Millisecond}, // yet
	} {
		e := Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, "01")}, Patience: 750 * time.Millisecond,
			Explanation: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001}}
		n := open()
		n.deadThere[0] = tt.dead
		e.Underlay = n.exchange(Judge(e).NeedUnderlay, 1)
		for i := range e.Underlay.Sizes[0].Ports {
			e.Underlay.Sizes[0].Ports[i].RTT = tt.rtt
			if tt.unanswered {
				e.Underlay.Sizes[0].Ports[i].Answered = 0
			}
		}
		e.Attempts[0].Quiet, e.Hushed = tt.quiet, tt.hushed
		r, kind := Judge(e), CauseEntrypoint
		if tt.dead {
			kind = CauseUnderlay
		}
		if r.Wait != tt.wait || (r.Kind == kind) != (tt.wait == 0) || (r.Verdict == Faulty) != (tt.wait == 0) {
			t.Errorf("%+v: %s, waits %v; want to wait %v", tt, show(&r), r.Wait, tt.wait)
		}
	}
}

// Whatever an exchange shows, what is said of it is true of the network.
func TestUnderlayNeverWrong(t *testing.T) {
	t.Parallel()
	need := &NeedUnderlay{From: "hv1", To: "hv3", Dst: netip.MustParseAddr("10.1.2.3"), Port: 7443, Small: 128, Large: 1492}
	rapid.Check(t, func(t *rapid.T) {
		n := open()
		n.ways = rapid.IntRange(1, 8).Draw(t, "ways")
		n.deadThere = rapid.SliceOfN(rapid.Bool(), n.ways, n.ways).Draw(t, "dead there")
		n.deadBack = rapid.SliceOfN(rapid.Bool(), n.ways, n.ways).Draw(t, "dead back")
		if rapid.Bool().Draw(t, "all there") {
			n.deadThere = make([]bool, n.ways)
		}
		if rapid.Bool().Draw(t, "all back") {
			n.deadBack = make([]bool, n.ways)
		}
		n.most = rapid.SampledFrom([]int{9000, 9000, 1492, 1491, 1400}).Draw(t, "most")
		n.mostBack = rapid.SampledFrom([]int{9000, 9000, 1492, 1491, 1400}).Draw(t, "most back")
		n.loss = rapid.SampledFrom([]float64{0, 0, 0.001, 0.01, 0.05}).Draw(t, "loss")
		n.firewall = rapid.IntRange(0, 4).Draw(t, "firewall") == 0
		n.responder = rapid.IntRange(0, 4).Draw(t, "responder") > 0
		n.recall = rapid.IntRange(0, 4).Draw(t, "recall") > 0
		n.tells = rapid.Bool().Draw(t, "tells")
		n.fragments = rapid.IntRange(0, 4).Draw(t, "fragments") == 0
		n.heard = rapid.SampledFrom([]time.Duration{0, time.Second, 9 * time.Minute, time.Hour}).Draw(t, "heard")
		u := n.exchange(need, rapid.Int64().Draw(t, "seed"))

		noWayThere := !slices.Contains(n.deadThere, false)
		alive := 0
		for _, dead := range n.deadThere {
			if !dead {
				alive++
			}
		}
		what, words := u.small()
		wrong := ""
		switch {
		case what == noWay && 2*alive >= n.ways: // of 32 ports, all may take the dead ways if these are more
			wrong = "no way"
		case what == oneOfSeveral && (noWayThere || !slices.Contains(n.deadThere, true)):
			wrong = "one of several"
		case what == rife && !slices.Contains(n.deadThere, true):
			wrong = "rife loss"
		case what == passable && (noWayThere || n.firewall || !n.responder):
			wrong = "passable"
		case u.Error != "" && what != unclear:
			wrong = "something"
		}
		if wrong != "" {
			t.Fatalf("says %s (%s) of %+v", wrong, words, n)
		}
		if first := n.exchange(need, rapid.Int64().Draw(t, "seed of the first")); first.Rife() {
			a := Again(first, u)
			if a.Rife() && !slices.Contains(n.deadThere, true) {
				t.Fatalf("rife loss, twice, of %+v", n)
			}
			a.Says()
		}
		reply, words, narrow := u.narrow()
		small := n.most < need.Large || n.mostBack < need.Large
		if narrow && (!small || n.fragments || n.recall && (reply && n.mostBack >= need.Large || !reply && n.most >= need.Large)) {
			t.Fatalf("narrow (reply %t): %s, of %+v", reply, words, n)
		}
		if u.large(false, inventory.NotTold).passage == fits && u.large(true, inventory.NotTold).passage == fits && !n.fragments && small {
			t.Fatalf("large packets pass, of %+v", n)
		}
		u.Says() // of whatever there is
		if m := u.Proto(); m.GetDstHost() != "hv3" {
			t.Fatalf("%v", m)
		}
	})
}

// Reports that do not fit the question decide nothing.
func TestUnderlayFromProto(t *testing.T) {
	t.Parallel()
	need := &NeedUnderlay{From: "hv1", To: "hv3", Dst: netip.MustParseAddr("10.1.2.3"), Port: 7443, Small: 128}
	q := need.Proto(1, 0)
	good := func() *dyetracev1.UnderlayReport {
		m := &dyetracev1.UnderlayReport{}
		for p := range q.GetSourcePorts() {
			m.SourcePorts = append(m.SourcePorts, p)
			m.Sent, m.Answered, m.RttNs = append(m.Sent, 4), append(m.Answered, 4), append(m.RttNs, 1)
		}
		return m
	}
	if !Whole(good(), 1) {
		t.Error("an exchange that lost nothing is not whole")
	}
	none := good()
	none.Sent, none.Answered = make([]uint32, len(none.Sent)), make([]uint32, len(none.Sent))
	if Whole(none, 1) {
		t.Error("one that sent nothing, and does not say why, is whole")
	}
	none.Errors = []*dyetracev1.UnderlayError{{Text: "network is unreachable", Size: 128, Count: 1}}
	if u := UnderlayFromProto(need, q, none, nil, 0); !Whole(none, 1) || !u.NoWay() {
		t.Errorf("one that could not send is whole: %t, and shows that nothing passes: %t; want both", Whole(none, 1), u.NoWay())
	}
	for name, change := range map[string]func(m, recall *dyetracev1.UnderlayReport){
		"columns":       func(m, _ *dyetracev1.UnderlayReport) { m.Answered = m.Answered[1:] },
		"ports":         func(m, _ *dyetracev1.UnderlayReport) { m.SourcePorts = m.SourcePorts[1:] },
		"an error":      func(m, _ *dyetracev1.UnderlayReport) { m.Error = "no" },
		"not listening": func(_, r *dyetracev1.UnderlayReport) { r.Listening = false },
		"limited":       func(_, r *dyetracev1.UnderlayReport) { r.Limited = 1 },
	} {
		m, recall := good(), &dyetracev1.UnderlayReport{Listening: true}
		change(m, recall)
		if u := UnderlayFromProto(need, q, m, recall, 0); u.Error == "" {
			t.Errorf("%s: no error", name)
		} else if what, _ := u.small(); what != unclear {
			t.Errorf("%s: says %d", name, what)
		}
	}
	if u := UnderlayFromProto(need, q, good(), nil, 0); u.Error != "" || u.Asked || fmt.Sprint(u.forward(0)) != fmt.Sprint(traffic{sent: 128, came: 128, ports: 32, whole: 32}) {
		t.Errorf("%+v", u)
	}
}

// What two exchanges show of which the first lost much.
func TestAgain(t *testing.T) {
	t.Parallel()
	need := &NeedUnderlay{From: "hv1", To: "hv3", Dst: netip.MustParseAddr("10.1.2.3"), Small: 128, Large: 1492}
	lossy := func(share float64) *Underlay {
		n := open()
		n.loss = share
		return n.exchange(need, 7)
	}
	dead, silent := open(), open()
	dead.deadThere[0], silent.responder = true, false
	drowned := dead
	drowned.heard = 300 * time.Millisecond
	for _, tt := range []struct {
		name          string
		first, second *Underlay
		want          underlayFault
		words         string
	}{
		{"passes now", lossy(.5), lossy(0), fleeting, "59 of 128 packets were lost by UDP from 10.1.1.1 to 10.1.2.3, and of others a moment later 0 of 128"},
		{"little lost now", lossy(.5), lossy(.1), fleeting, "a moment later 9 of 128"},
		{"much lost again", lossy(.5), lossy(.4), rife, "51 of 128 packets are lost"},
		{"below the bound now, and above it in sum", lossy(.33), lossy(.24), rife, "68 of 256 packets are lost"},
		{"all lost by now", lossy(.5), dead.exchange(need, 7), noWay, "none of 128 packets arrives"},
		{"told nothing", lossy(.5), silent.exchange(need, 7), unclear, "did not answer"},
		{"drowned, and passes alone", drowned.exchange(need, 7), lossy(0), fleeting, "128 of 128 packets were lost by UDP from 10.1.1.1 to 10.1.2.3, and of others a moment later 0 of 128"},
		{"drowned, and much lost alone", drowned.exchange(need, 7), lossy(.4), rife, "51 of 128 packets are lost"},
		{"drowned, and all lost alone", drowned.exchange(need, 7), dead.exchange(need, 7), noWay, "none of 128 packets arrives"},
	} {
		if !tt.first.Rife() && !tt.first.Drowned(time.Second) {
			t.Fatalf("%s: the first is neither rife nor drowned", tt.name)
		}
		a := Again(tt.first, tt.second)
		if what, words := a.small(); what != tt.want || !strings.Contains(words, tt.words) {
			t.Errorf("%s: %d, %s; want %d, %s", tt.name, what, words, tt.want, tt.words)
		}
		if a == tt.second && tt.want == fleeting || tt.second.Before != nil {
			t.Errorf("%s: the second was changed", tt.name)
		}
	}
}

// TestDrowned has nothing of an exchange come: that may be for the packets of others only where such came meanwhile, and
// nothing else says that the way is dead.
func TestDrowned(t *testing.T) {
	t.Parallel()
	need := &NeedUnderlay{From: "hv1", To: "hv3", Dst: netip.MustParseAddr("10.1.2.3"), Small: 128, Large: 1492}
	for _, tt := range []struct {
		name   string
		change func(*network)
		want   bool
	}{
		{"others meanwhile", func(*network) {}, true},
		{"others before", func(n *network) { n.heard = 2 * time.Second }, false},
		{"never any others", func(n *network) { n.heard = 0 }, false},
		{"a router says so", func(n *network) { n.tells = true }, false},
		{"a stream is silent", func(n *network) { n.silent = time.Second }, false},
		{"some arrives", func(n *network) { n.deadThere[0], n.loss = false, .5 }, false},
		{"nobody to be asked", func(n *network) { n.recall = false }, false},
	} {
		n := open()
		n.deadThere[0], n.heard = true, 500*time.Millisecond
		tt.change(&n)
		if got := n.exchange(need, 7).Drowned(time.Second); got != tt.want {
			t.Errorf("%s: drowned %t, want %t", tt.name, got, tt.want)
		}
	}
}

// TestOwes has an exchange tell nothing for want of the agent that was to make it: what it would have told apart is not known.
func TestOwes(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t, func(h hosts) { echoes(h) }), "blue-1 blue-3")
	e := Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, "01")},
		Explanation: &Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001}}
	need := Judge(e).NeedUnderlay
	e.Underlay = &Underlay{From: need.From, To: need.To, Src: need.Src, Dst: need.Dst, Port: need.Port, Error: "the agent of hv1 did not answer"}
	const want = "unknown agent | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to hv3 (10.1.2.3, key 1001) as it should, where it does not come in: " +
		"lost in the underlay, or at hv3's end of the tunnel; UDP between the two told nothing: the agent of hv1 did not answer"
	if r := Judge(e); show(&r) != want {
		t.Errorf("got  %s\nwant %s", show(&r), want)
	}
}

// TestNarrow: large packets that are lost where a few small ones are, too, are too large. Where a queue takes many of these it takes all of
// those.
func TestNarrow(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		small int // of 128 that come
		want  bool
	}{{128, true}, {116, true}, {114, false}, {90, false}, {0, false}} {
		u := Underlay{From: "hv1", To: "hv3", Asked: true, Sizes: []UnderlaySize{{Bytes: 128}, {Bytes: 1500}}}
		for port := range 32 {
			came := (tt.small*(port+1)/32 - tt.small*port/32)
			u.Sizes[0].Ports = append(u.Sizes[0].Ports, UnderlayPort{SourcePort: uint16(port), Sent: 4, Arrived: came, Answered: came})
			u.Sizes[1].Ports = append(u.Sizes[1].Ports, UnderlayPort{SourcePort: uint16(port), Sent: 4})
		}
		if _, words, ok := u.narrow(); ok != tt.want {
			t.Errorf("%d of 128 small ones come: %t, %q", tt.small, ok, words)
		}
	}
}
