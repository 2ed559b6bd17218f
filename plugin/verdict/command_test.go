package verdict

import (
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/stain"
)

// unshown says that a verdict lacks the command that shows it, or has one that shows nothing; empty if it does not.
func unshown(r *Result) string {
	bad := r.Verdict == Faulty || r.Verdict == Silent || r.Verdict == PolicyDrop
	own := strings.HasPrefix(r.Command, "dyetrace ")
	switch {
	case bad && r.Command == "":
		return "no command shows it"
	case r.Verdict == Healthy && r.Command != "":
		return "healthy, and a command shows it"
	case r.Command != "" && own != (r.CommandHost == ""):
		return "a command of a host, and not which"
	case (r.Trace == "") != (r.TraceHost == ""):
		return "a trace, and not of which host"
	}
	return ""
}

// TestCommand has all that may be wrong be shown by a command, where it is to be typed.
func TestCommand(t *testing.T) {
	t.Parallel()
	const trace, central = "ovs-appctl ofproto/trace br-int 'in_port=1'", "ovn-trace front 'inport==\"1\"'"
	explain := func(x Explanation) *Explanation {
		x.Command, x.LogicalCommand = trace, central
		return &x
	}
	tunnelled := func() *Explanation {
		return explain(Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001})
	}
	halfway := func(n *network) { n.ways, n.deadThere, n.deadBack = 2, []bool{false, true}, []bool{false, false} }
	lossy := sequential.Plan{P0: 0.02, P1: 0.2, Alpha: 1e-3, Beta: 1e-2, Max: 400}
	finely := sequential.Plan{P0: 0.00125, P1: 0.0125, Alpha: 1e-3, Beta: 1e-2, Max: 6000}
	const (
		crossing = "blue-1 blue-3"
		local    = "blue-1 blue-2"
		underlay = "dyetrace underlay hv1 hv3 --src-ip 10.1.1.1 --dst-ip 10.1.2.3 --tunnel gre-hv3 --size 1492"
		again    = "dyetrace check blue/blue-1 blue/blue-3 --scheme tcp"
	)
	tests := []struct {
		name, pair string
		scheme     stain.Scheme
		net        []func(hosts)
		probes     []string
		impair     func(*Evidence)
		explain    *Explanation
		network    func(*network)
		want       string // kind: command, host; trace, host; logical command
	}{
		{name: "a flow drops it", pair: crossing, probes: []string{"0"}, explain: explain(Explanation{Outcome: Dropped, Flow: flow("br-int", 60, 90, "ip")}),
			want: "faulty flow: " + trace + " on hv1; " + central},
		{name: "delivered to another's port", pair: "blue-1 blue-4", probes: []string{"012 @hv4:to"},
			explain: explain(Explanation{Point: 2, Outcome: Delivered, Port: "tap-x"}), want: "faulty misdirected: " + trace + " on hv4; " + central},
		{name: "answered, and by whom is not known", pair: "blue-1 blue-4", probes: []string{"01256"},
			explain: explain(Explanation{Point: 2, Outcome: Delivered, Port: "tap-b4"}), want: "unknown impostor: " + trace + " on hv4; " + central},
		{name: "answered, and a flow drops it", pair: "blue-1 blue-4", probes: []string{"01256"},
			explain: explain(Explanation{Point: 2, Outcome: Dropped, Flow: flow("br-int", 25, 50, "ip")}), want: "unknown impostor: " + trace + " on hv4; " + central},
		{name: "the underlay delivers nothing", pair: crossing, probes: []string{"01"}, explain: tunnelled(), network: func(n *network) { n.deadThere[0] = true },
			want: "faulty underlay: " + underlay + "; " + trace + " on hv1; " + central},
		{name: "one of its ways does not", pair: crossing, probes: []string{"01"}, explain: tunnelled(), network: halfway,
			want: "faulty underlay-member: " + underlay + "; " + trace + " on hv1; " + central},
		{name: "it does, and the tunnel's end does not take it", pair: crossing, probes: []string{"01"}, explain: tunnelled(), network: func(*network) {},
			want: "faulty entrypoint: " + underlay + "; " + trace + " on hv1; " + central},
		{name: "it loses much", pair: crossing, probes: []string{"01"}, explain: tunnelled(), network: func(n *network) { n.loss = .5 },
			want: "faulty loss: " + underlay + "; " + trace + " on hv1; " + central},
		{name: "what it does was not told", pair: crossing, probes: []string{"01"}, explain: tunnelled(), network: func(n *network) { n.responder = false },
			want: "unknown agent: " + trace + " on hv1; " + central},
		{name: "lost between hosts, without explanation", pair: crossing, probes: []string{"01"}, want: "faulty between-hosts: dyetrace underlay hv1 hv3"},
		{name: "no tunnel at the other host", pair: crossing, net: []func(hosts){remote("hv3", "gre-hv1", "10.1.9.9")}, probes: []string{"01"},
			explain: tunnelled(), network: func(*network) {}, want: "faulty tunnel: " + trace + " on hv1; " + central},
		{name: "no tunnel at the other host, without explanation", pair: crossing, net: []func(hosts){remote("hv3", "gre-hv1", "10.1.9.9")}, probes: []string{"01"},
			want: "faulty tunnel: ovs-vsctl --columns=name,type,options list Interface on hv3"},
		{name: "no port at the source", pair: crossing, net: []func(hosts){unplug("hv1", "tap-b1")},
			want: `faulty port: ovs-vsctl --columns=name,ofport,error find Interface 'name="tap-b1"' on hv1`},
		{name: "none any more", pair: crossing, probes: []string{"absent"},
			want: `faulty port: ovs-vsctl --columns=name,ofport,error find Interface 'name="tap-b1"' on hv1`},
		{name: "no patch port", pair: crossing, net: []func(hosts){noPatch("hv1")}, probes: []string{"0"},
			want: "faulty port: ovs-vsctl --columns=name,options find Interface type=patch on hv1"},
		{name: "the guest is silent", pair: "blue-1 blue-4", probes: []string{"0123"},
			want: "silent guest-silent: tcpdump -nei tap-b4 host 10.0.1.11 and host 10.0.1.14 and tcp on hv4"},
		{name: "the guest is silent, by icmp", pair: "blue-1 blue-4", scheme: stain.ICMP, probes: []string{"0123"},
			want: "silent guest-silent: tcpdump -nei tap-b4 host 10.0.1.11 and host 10.0.1.14 and icmp on hv4"},
		{name: "the guest is silent, by its flows", pair: crossing, probes: []string{"0123"}, explain: explain(Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"}),
			want: "silent guest-silent: " + trace + " on hv3; " + central},
		{name: "the guest is off", pair: local, net: []func(hosts){linkDown("hv1", "tap-b1")}, probes: []string{"01"},
			want: "silent guest-down: ovs-vsctl --columns=name,admin_state,link_state list Interface tap-b1 on hv1"},
		{name: "another answers", pair: crossing, probes: []string{"0167 @hv4:fwd @hv4:reply"}, want: "faulty impostor: " + again},
		{name: "some are lost", pair: crossing, probes: []string{"01", "01", "01", "01", "01", "01", "01", "01234567"},
			impair: func(e *Evidence) { e.Test, e.Measured = &lossy, true }, want: "faulty loss: " + again + " --loss --max-loss 20"},
		{name: "some are lost, of which less was asked for", pair: crossing, probes: []string{"01", "01", "01", "01", "01", "01", "01", "01234567"},
			impair: func(e *Evidence) { e.Test, e.Measured = &finely, true }, want: "faulty loss: " + again + " --loss --max-loss 1.25"},
		{name: "healthy", pair: crossing, probes: []string{"01234567"}, want: "healthy: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := pathOf(t, lab(t, append(tt.net, func(h hosts) { echoes(h) })...), tt.pair)
			e := Evidence{Path: p, Scheme: tt.scheme, Hooks: live(p), Explanation: tt.explain}
			for _, text := range tt.probes {
				e.Attempts = append(e.Attempts, probe(t, p, text))
			}
			if tt.impair != nil {
				tt.impair(&e)
			}
			r := Judge(e)
			if tt.network != nil && r.NeedUnderlay != nil {
				n := open()
				tt.network(&n)
				e.Underlay = n.exchange(r.NeedUnderlay, 1)
				r = Judge(e)
			}
			got := r.Verdict.String()
			if r.Kind != 0 {
				got += " " + r.Kind.String()
			}
			got += ": " + r.Command
			if r.CommandHost != "" {
				got += " on " + r.CommandHost
			}
			if r.Trace != "" {
				got += "; " + r.Trace + " on " + r.TraceHost
			}
			if r.LogicalCommand != "" {
				got += "; " + r.LogicalCommand
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s\n%s", got, tt.want, show(&r))
			}
			if why := unshown(&r); why != "" {
				t.Error(why)
			}
			if m := r.Proto(p.Pair); m.Command != r.Command || m.CommandHost != r.CommandHost || m.TraceCommand != r.Trace || m.TraceHost != r.TraceHost {
				t.Errorf("users get %v", m)
			}
		})
	}
}

// TestCommandOfMTU tries the size that is lost, by the tunnel that the pair takes.
func TestCommandOfMTU(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t, beside("vxlan"), func(h hosts) { echoes(h) }), "blue-1 blue-3")
	n := open()
	n.most = 1495
	for typ, want := range map[string]string{
		"vxlan": "dyetrace underlay hv1 hv3 --src-ip 10.1.1.1 --dst-ip 10.1.2.3 --tunnel vxlan-hv3 --size 1500", "gre": "",
	} {
		r := WithMTU(Result{Verdict: Healthy, Samples: samplesBy(p, typ, typ)}, p, largeOn(n, NeedMTU(p), true, nil))
		if why := unshown(&r); r.Command != want || why != "" {
			t.Errorf("by %s: %q, %s; want %q", typ, r.Command, why, want)
		}
	}
}

// TestQuote has names with more than letters and digits be one word to a shell.
func TestQuote(t *testing.T) {
	t.Parallel()
	u := Underlay{From: "hv 1", To: "hv3", Tunnel: "it's"}
	if got, want := u.command(), `dyetrace underlay 'hv 1' hv3 --tunnel 'it'\''s'`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	p := pathOf(t, lab(t, unplug("hv3", "tap-b3")), "blue-1 blue-3")
	p.To.Port = ""
	j := judgement{Evidence: Evidence{Path: p}}
	if got, want := j.lookForPort("hv3"), `ovs-vsctl --columns=name,external_ids find Interface 'external_ids:attached-mac="fa:16:3e:00:01:13"'`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
