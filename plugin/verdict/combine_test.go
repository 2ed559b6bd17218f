package verdict

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// one is a result as a track of that scheme has it; "-" is one that was not run.
func one(t *testing.T, p *plan.Path, scheme stain.Scheme, text string) Track {
	t.Helper()
	name, cause, _ := strings.Cut(text, ":")
	name, scant := strings.CutSuffix(name, ", scant")
	r := Result{Scant: scant, Cause: strings.TrimSpace(cause), Scheme: scheme, Probes: 1, RTTNs: 7, Src: p.Src, Dst: p.Dst, NoTouch: p.NoTouch}
	for v := Healthy; v <= Unknown; v++ {
		if v.String() == name {
			r.Verdict = v
		}
	}
	if r.Verdict == 0 {
		t.Fatalf("no verdict is called %q", name)
	}
	if r.Cause != "" {
		r.Kind = map[Verdict]CauseKind{Healthy: CauseLoss, Faulty: CauseBetweenHosts, Silent: CauseGuestSilent, PolicyDrop: CauseSecurityRule, Unknown: CauseAgent}[r.Verdict]
	}
	if r.Verdict != Healthy {
		r.Probes, r.RTTNs, r.Host = 3, 0, p.Points[1].Host
		r.Segment = &Segment{From: &p.Points[0], To: p.Points[1]}
	}
	return Track{Path: p, Scheme: scheme, Result: r}
}

func TestCombine(t *testing.T) {
	t.Parallel()
	const (
		lost    = "faulty: lost"
		mute    = "silent: no answer"
		denied  = "policy: denied"
		unclear = "unknown: agent gone; more"
	)
	tests := []struct {
		name      string
		tcp, icmp string
		asked     stain.Scheme
		want      string // verdict, scheme, probes, cause, reason
	}{
		{"tcp is enough", "healthy", "-", 0, "healthy | tcp | 1 |  | tcp is answered"},
		{"a note of tcp's", "healthy: 1 of 2 probes lost", "-", 0, "healthy | tcp | 1 | 1 of 2 probes lost | tcp is answered"},
		{"tcp asked for", mute, "-", stain.TCP, "silent | tcp | 3 | no answer | "},
		{"icmp asked for", "-", mute, stain.ICMP, "silent | icmp | 3 | no answer | "},
		{"icmp asked for, both run", "healthy", mute, stain.ICMP, "silent | icmp | 4 | no answer | "},
		{"tcp asked for, both run", mute, "healthy", stain.TCP, "silent | tcp | 4 | no answer | "},
		{"icmp not tried", mute, "-", 0, "silent | tcp | 3 | no answer | icmp echo was not tried"},
		{"icmp not tried, nor needed", lost, "-", 0, "faulty | tcp | 3 | lost | tcp shows the fault"},

		{"ping shows that the guest is there", mute, "healthy", 0, "healthy | icmp | 4 |  | tcp is delivered but not answered, icmp echo is"},
		{"silent to both", mute, mute, 0, "silent | tcp | 6 | no answer; icmp echo is not answered | tcp is delivered, and icmp echo does no better"},
		{"silent, ping denied", mute, denied, 0, "silent | tcp | 6 | no answer; icmp echo is denied by a security rule | tcp is delivered, and icmp echo does no better"},
		{"silent, ping lost", mute, lost, 0, "silent | tcp | 6 | no answer; icmp echo is lost, hv1/br-int from-instance → hv1/br-tun to-tunnel | tcp is delivered, and icmp echo does no better"},
		{"silent, ping unclear", mute, unclear, 0, "silent | tcp | 6 | no answer | tcp is delivered, and icmp echo does no better"},

		{"denied, ping passes", denied, "healthy", 0, "policy | tcp | 4 | denied; icmp echo passes | tcp shows the rule"},
		{"denied, ping too", denied, denied, 0, "policy | tcp | 6 | denied; icmp echo is denied by a security rule | tcp shows the rule"},
		{"lost, ping passes", lost, "healthy", 0, "faulty | tcp | 4 | lost; icmp echo passes | tcp shows the fault"},
		{"lost, ping too", lost, lost, 0, "faulty | tcp | 6 | lost; icmp echo is lost there too | tcp shows the fault"},

		{"unclear, ping passes", unclear, "healthy", 0, "healthy | icmp | 4 |  | tcp could not be judged: agent gone"},
		{"unclear, ping lost", unclear, lost, 0, "faulty | icmp | 6 | lost | tcp could not be judged: agent gone"},
		{"unclear, ping lost, which may be chance", unclear, "faulty, scant: lost", 0, "unknown | tcp | 6 | agent gone; more; icmp echo is lost, hv1/br-int from-instance → hv1/br-tun to-tunnel | neither tcp nor icmp echo tells"},
		{"lost, ping too, which alone may be chance", lost, "faulty, scant: lost", 0, "faulty | tcp | 6 | lost; icmp echo is lost there too | tcp shows the fault"},
		{"unclear, ping not answered", unclear, mute, 0, "unknown | tcp | 6 | agent gone; more; icmp echo is not answered | neither tcp nor icmp echo tells"},
		{"unclear, ping denied", unclear, denied, 0, "unknown | tcp | 6 | agent gone; more; icmp echo is denied by a security rule | neither tcp nor icmp echo tells"},
		{"unclear, ping too", unclear, unclear, 0, "unknown | tcp | 6 | agent gone; more | neither tcp nor icmp echo tells"},
	}
	p := pathOf(t, lab(t), "blue-1 blue-3")
	for _, tt := range tests {
		var tracks []Track
		if tt.tcp != "-" {
			tracks = append(tracks, one(t, p, stain.TCP, tt.tcp))
		}
		if tt.icmp != "-" {
			tracks = append(tracks, one(t, p, stain.ICMP, tt.icmp))
		}
		r := Combine(tracks, tt.asked)
		if got := fmt.Sprintf("%s | %s | %d | %s | %s", r.Verdict, r.Scheme, r.Probes, r.Cause, r.SchemeReason); got != tt.want {
			t.Errorf("%s\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
		if r.Src != p.Src || r.Dst != p.Dst || r.NoTouch {
			t.Errorf("%s: %v to %v, no touch %t", tt.name, r.Src, r.Dst, r.NoTouch)
		}
	}
	if r := Combine(nil, 0); r.Verdict != Unknown || r.Cause == "" || r.Scheme != 0 {
		t.Errorf("of no track: %+v", r)
	}
}

// TestCombineListens has a guest that listens answer some probes by tcp: others may have met what it remembers, so it takes echoes
// that it does not answer either to call it silent.
func TestCombineListens(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t), "blue-1 blue-3")
	for _, tt := range []struct {
		icmp  string
		asked stain.Scheme
		want  Verdict
		kind  CauseKind
	}{
		{"-", stain.TCP, Unknown, CauseConntrack},
		{"-", 0, Unknown, CauseConntrack},
		{"healthy", 0, Healthy, 0},
		{"silent: no answer", 0, Silent, CauseGuestSilent},
		{"policy: denied", 0, Unknown, CauseConntrack},
	} {
		tcp := one(t, p, stain.TCP, "silent: does not answer 88 %")
		tcp.Result.MayBeRemembered = true
		tracks := []Track{tcp}
		if tt.icmp != "-" {
			tracks = append(tracks, one(t, p, stain.ICMP, tt.icmp))
		}
		if r := Combine(tracks, tt.asked); r.Verdict != tt.want || r.Kind != tt.kind {
			t.Errorf("icmp %s, asked for %v: %v %v: %s; want %v %v", tt.icmp, tt.asked, r.Verdict, r.Kind, r.Cause, tt.want, tt.kind)
		}
	}
}

func TestCombineNoTouch(t *testing.T) {
	t.Parallel()
	snap := lab(t, taps)
	there, back := noTouch(pathOf(t, snap, "blue-1 blue-3")), noTouch(pathOf(t, snap, "blue-3 blue-1"))
	there.Back = back
	const (
		lost  = "faulty: lost"
		seg   = "hv1/br-int from-instance → hv1/br-tun to-tunnel"
		other = "hv3/br-int from-instance → hv3/br-tun to-tunnel"
	)
	tests := []struct {
		name string
		run  []string // tcp there, tcp back, icmp there, icmp back
		want string   // verdict, scheme, probes, direction and segment, host, cause, reason
	}{
		{"both pass", []string{"healthy", "healthy"}, "healthy | tcp | 2 | - |  |  | tcp passes both ways"},
		{"both pass, with notes", []string{"healthy: odd", "healthy: even"}, "healthy | tcp | 2 | - |  | odd; way back: even | tcp passes both ways"},
		{"lost there", []string{lost, "healthy", "healthy", "healthy"}, "faulty | tcp | 6 | forward " + seg + " | hv1 | lost; icmp echo passes | tcp shows the fault"},
		{"lost there, back not run", []string{lost, "-", "healthy", "healthy"}, "faulty | tcp | 5 | forward " + seg + " | hv1 | lost; icmp echo passes | tcp shows the fault"},
		{"lost on the way back", []string{"healthy", lost, "healthy", lost}, "faulty | tcp | 8 | reply " + other + " | hv3 | way back: lost; icmp echo is lost there too | tcp shows the fault"},
		{"lost on both", []string{lost, lost, lost, "-"}, "faulty | tcp | 9 | forward " + seg + " | hv1 | lost; the way back is faulty; icmp echo is lost there too | tcp shows the fault"},
		{"there unclear, back denied", []string{"unknown: blind", "policy: denied", "healthy", "healthy"}, "policy | tcp | 8 | reply " + other + " | hv3 | way back: denied; the way there is unknown; icmp echo passes | tcp shows the rule"},
		{"back unclear", []string{"healthy", "unknown: blind; deaf", "healthy", "healthy"}, "healthy | icmp | 6 | - |  |  | tcp could not be judged: way back: blind"},
		{"back not run", []string{"healthy", "-"}, "unknown | tcp | 1 | - | hv3 | the way back was not probed | icmp echo was not tried"},
	}
	for _, tt := range tests {
		var tracks []Track
		for i, text := range tt.run {
			if text != "-" {
				tracks = append(tracks, one(t, []*plan.Path{there, back}[i%2], []stain.Scheme{stain.TCP, stain.ICMP}[i/2], text))
			}
		}
		r := Combine(tracks, 0)
		segment := "-"
		if r.Segment != nil {
			segment = fmt.Sprintf("%s %s", r.Segment.From.Direction, r.Segment)
		}
		got := fmt.Sprintf("%s | %s | %d | %s | %s | %s | %s", r.Verdict, r.Scheme, r.Probes, segment, r.Host, r.Cause, r.SchemeReason)
		if got != tt.want {
			t.Errorf("%s\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
		if r.Src != there.Src || r.Dst != there.Dst || !r.NoTouch || r.RTTNs != 0 && len(tracks) > 1 {
			t.Errorf("%s: %v to %v, no touch %t, RTT %d", tt.name, r.Src, r.Dst, r.NoTouch, r.RTTNs)
		}
	}
	for _, pt := range back.Points {
		if pt.Direction != plan.Forward {
			t.Fatalf("the path itself was changed: %v", pt)
		}
	}
}

// TestCombineBlocked has pairs of which nothing is sent in no-touch, since one way cannot be: that
// is why, whichever it is.
func TestCombineBlocked(t *testing.T) {
	t.Parallel()
	unsampled := func(host string) func(map[string]*inventory.Host) {
		return func(hosts map[string]*inventory.Host) {
			for _, e := range hosts[host].Endpoints {
				e.Unsampled = "vhost-user"
			}
		}
	}
	const none = "no-touch: to-instance is not sampled at "
	tests := []struct {
		name string
		net  []func(map[string]*inventory.Host)
		want string // verdict, host, cause
	}{
		{"there", []func(map[string]*inventory.Host){unsampled("hv3")}, "unknown | hv1 | " + none + "tap-b3 of hv3: vhost-user"},
		{"back", []func(map[string]*inventory.Host){unsampled("hv1")}, "unknown | hv3 | way back: " + none + "tap-b1 of hv1: vhost-user"},
		{"both", []func(map[string]*inventory.Host){unsampled("hv1"), unsampled("hv3")},
			"unknown | hv1 | " + none + "tap-b3 of hv3: vhost-user; the way back is unknown"},
		{"no port at the destination", []func(map[string]*inventory.Host){unplug("hv3", "tap-b3")},
			"faulty | hv3 | tap-b3 is not on br-int of hv3; the way back is faulty"},
		{"no port at the source", []func(map[string]*inventory.Host){unplug("hv1", "tap-b1")},
			"faulty | hv1 | tap-b1 is not on br-int of hv1; the way back is faulty"},
	}
	for _, tt := range tests {
		snap := lab(t, append([]func(map[string]*inventory.Host){taps}, tt.net...)...)
		pairs, err := plan.Pairs(snap, plan.Scope{Kind: plan.OnePair, Src: "blue-1", Dst: "blue-3"}, plan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		there, err := plan.Of(snap, pairs[0], plan.Options{NoTouch: true})
		if err != nil {
			t.Fatal(err)
		}
		var tracks []Track
		for _, p := range []*plan.Path{&there, there.Back} {
			tracks = append(tracks, Track{Path: p, Scheme: stain.TCP, Result: Judge(Evidence{Path: p})})
		}
		r := Combine(tracks, stain.TCP)
		if got := fmt.Sprintf("%s | %s | %s", r.Verdict, r.Host, r.Cause); got != tt.want {
			t.Errorf("%s\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
		if r.Src != there.Src || r.Dst != there.Dst || !r.NoTouch || r.Probes != 0 {
			t.Errorf("%s: %v to %v, no touch %t, %d probes", tt.name, r.Src, r.Dst, r.NoTouch, r.Probes)
		}
	}
}

// TestCombineSamples: what users get of a no-touch pair over IPv6 whose way back is lost.
func TestCombineSamples(t *testing.T) {
	t.Parallel()
	snap := lab(t, taps)
	var tracks []Track
	for i, pair := range []string{"blue-1 blue-3", "blue-3 blue-1"} {
		p := noTouch(pathOf(t, snap, pair))
		p.Src, p.Dst = netip.MustParseAddr("fd00:1::11"), netip.MustParseAddr("fd00:1::13")
		if i == 1 {
			p.Src, p.Dst = p.Dst, p.Src
		}
		seen := []string{"01234", "01"}[i]
		tracks = append(tracks, Track{p, stain.ICMP, Judge(Evidence{Path: p, Scheme: stain.ICMP, Hooks: live(p), Attempts: []Attempt{probe(t, p, seen)}})})
	}
	r := Combine(tracks, stain.ICMP)
	m := r.Proto(tracks[0].Path.Pair)
	var got []string
	for _, s := range m.GetSamples() {
		got = append(got, fmt.Sprintf("%d %s/%s %d %t", s.GetDirection(), s.GetPoint().GetHost(), s.GetPoint().GetBridge(), s.GetPoint().GetKind(), s.GetSeen()))
	}
	want := []string{
		"1 hv1/br-int 1 true", "1 hv1/br-tun 4 true", "1 hv3/br-tun 2 true", "1 hv3/br-int 2 true", "1 hv3/br-int 3 true",
		"2 hv3/br-int 1 true", "2 hv3/br-tun 4 true", "2 hv1/br-tun 2 false", "2 hv1/br-int 2 false", "2 hv1/br-int 3 false",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("samples: -want +got\n%s", d)
	}
	if m.GetVerdict() != dyetracev1.Verdict_VERDICT_FAULTY || m.GetScheme() != dyetracev1.Scheme_SCHEME_ICMP || m.GetSchemeReason() != "" ||
		m.GetSrcIp() != "fd00:1::11" || m.GetDstIp() != "fd00:1::13" || !m.GetNoTouch() || m.GetRttNs() != 0 || m.GetProbes() != 2 ||
		m.GetSegment().GetDirection() != dyetracev1.Direction_DIRECTION_REPLY || !strings.HasPrefix(m.GetCause(), "way back: no sample after hv3/br-tun to-tunnel") {
		t.Errorf("result = %v", m)
	}
}

// also is the same network probed by another scheme: faults of the network are the same, what
// guests and security rules do with it need not be.
func (w *world) also(t *rapid.T, scheme stain.Scheme) *world {
	o := &world{
		path: w.path, scheme: scheme, clears: rapid.Bool().Draw(t, "clears"), noLink: w.noLink,
		hard: w.hard, at: w.at, guest: w.guest, crossing: w.crossing,
		lossy: map[Place]bool{}, quietly: map[Place]bool{}, unread: map[Place]map[stain.Kind]uint64{}, gaps: map[Place][]int{}, late: map[Place]bool{}, goneFrom: maps.Clone(w.cut), cut: w.cut, impaired: w.blurred, blurred: w.blurred,
	}
	if !w.noLink && (w.hard == byGuest || w.hard == byRule || w.hard == arrived) {
		switch o.hard = rapid.SampledFrom([]fate{arrived, byGuest, byRule}).Draw(t, "to the other scheme"); o.hard {
		case byGuest:
			o.at = w.guest
		case byRule:
			o.at = w.beforeDelivery()
		}
		if w.path.NoTouch && o.hard == byGuest {
			o.hard = arrived
		}
	}
	return o
}

func TestAutoNeverWrong(t *testing.T) {
	t.Parallel()
	combined := map[string]int{}
	for range 30 {
		rapid.Check(t, func(rt *rapid.T) {
			tcp := build(rt, t, how{scheme: stain.TCP})
			icmp := tcp.also(rt, stain.ICMP)
			tracks := []Track{{tcp.path, stain.TCP, judged(rt, t, tcp)}}
			if tracks[0].Result.Verdict != Healthy {
				tracks = append(tracks, Track{icmp.path, stain.ICMP, judged(rt, t, icmp)})
			}
			r := Combine(tracks, 0)
			w := tcp
			if r.Scheme == stain.ICMP {
				w = icmp
			}
			if r.Verdict == Unknown && !tcp.impaired && !tracks[0].Result.MayBeRemembered {
				rt.Fatalf("unknown, though tcp could be seen: %s", show(&r))
			}
			if r.Verdict != Unknown {
				w.check(rt, &r, true)
			}
			answered := slices.ContainsFunc(icmp.truths, func(tr truth) bool { return tr.fate == arrived })
			if r.Verdict == Silent && answered && !icmp.impaired && tracks[1].Result.Kind != CauseLoss {
				rt.Fatalf("%s, though it answers icmp: %v", show(&r), icmp.truths)
			}
			if (r.Verdict == Silent || r.Verdict == PolicyDrop) && slices.ContainsFunc(tcp.truths, func(tr truth) bool { return tr.fate == arrived }) {
				rt.Fatalf("%s, though it answers tcp: %v", show(&r), tcp.truths)
			}
			combined[fmt.Sprintf("%s by %s", r.Verdict, r.Scheme)]++
		})
	}
	for _, want := range []string{"healthy by tcp", "healthy by icmp", "faulty by tcp", "faulty by icmp", "silent by tcp", "policy by tcp", "unknown by tcp"} {
		if combined[want] == 0 && !t.Failed() {
			t.Errorf("no world led to %s: the simulator has gone blunt", want)
		}
	}
	t.Logf("combined: %v", combined)
}

func TestNoTouchNeverWrong(t *testing.T) {
	t.Parallel()
	verdicts := map[Verdict]int{}
	for range 30 {
		rapid.Check(t, func(rt *rapid.T) {
			scheme := rapid.SampledFrom([]stain.Scheme{stain.TCP, stain.ICMP}).Draw(rt, "scheme")
			pair := rapid.SampledFrom([]string{"blue-1 blue-3", "blue-1 green-3", "blue-1 blue-2", "blue-4 blue-1"}).Draw(rt, "pair")
			src, dst, _ := strings.Cut(pair, " ")
			there := buildPair(rt, t, how{scheme: scheme, noTouch: true}, pair)
			back := buildPair(rt, t, how{scheme: scheme, noTouch: true}, dst+" "+src)
			tracks := []Track{{there.path, scheme, judged(rt, t, there)}, {back.path, scheme, judged(rt, t, back)}}
			r := Combine(tracks, scheme)
			verdicts[r.Verdict]++
			if (r.Verdict == Healthy) != (tracks[0].Result.Verdict == Healthy && tracks[1].Result.Verdict == Healthy) {
				rt.Fatalf("%s of %s and %s", show(&r), show(&tracks[0].Result), show(&tracks[1].Result))
			}
			if r.Verdict == Unknown && !r.MayBeRemembered && !there.impaired && !back.impaired {
				rt.Fatalf("unknown, though all could be seen: %s", show(&r))
			}
			if r.Verdict == Healthy || r.Verdict == Unknown {
				return // there is no segment to hold against the truth, or nothing is claimed
			}
			w := there
			if r.Segment.To.Direction == plan.Reply {
				w, r.Segment = back, tracks[1].Result.Segment
			}
			w.check(rt, &r, true)
		})
	}
	for _, v := range []Verdict{Healthy, Faulty, Silent, PolicyDrop, Unknown} {
		if verdicts[v] == 0 && !t.Failed() {
			t.Errorf("no world led to %s: the simulator has gone blunt", v)
		}
	}
	t.Logf("verdicts: %v", verdicts)
}

// A switch that lost tcp, though its flows pass it and echoes get through, may have done so for
// what connection tracking remembers of another probe of ours.
func TestCombinePassed(t *testing.T) {
	t.Parallel()
	lab := lab(t)
	e := Evidence{Path: pathOf(t, lab, "blue-1 blue-3"), Explanation: &Explanation{Point: 0, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001}}
	e.Hooks = live(e.Path)
	for range 3 {
		e.Attempts = append(e.Attempts, probe(t, e.Path, "0"))
	}
	tcp := Judge(e)
	if tcp.Verdict != Faulty || !tcp.MayBeRemembered {
		t.Fatalf("tcp: %v, may be remembered %v: %s (want faulty, though its flows pass it)", tcp.Verdict, tcp.MayBeRemembered, tcp.Cause)
	}
	echo := e
	echo.Scheme, echo.Explanation, echo.Attempts = stain.ICMP, nil, []Attempt{probe(t, e.Path, "01234567")}
	tracks := []Track{{e.Path, stain.TCP, tcp}, {e.Path, stain.ICMP, Judge(echo)}}
	if r := Combine(tracks, 0); r.Verdict != Healthy || r.Scheme != stain.ICMP || !strings.Contains(r.SchemeReason, "though its flows now send it into tunnel gre-hv3") {
		t.Errorf("auto: %v by %v, %q (want healthy by icmp, and why)", r.Verdict, r.Scheme, r.SchemeReason)
	}
	if r := Combine(tracks, stain.TCP); r.Verdict != Unknown || !strings.Contains(r.Cause, "icmp would tell") {
		t.Errorf("tcp alone: %v, %q (want unknown)", r.Verdict, r.Cause)
	}
	echo.Attempts = []Attempt{probe(t, e.Path, "0"), probe(t, e.Path, "0")}
	tracks[1].Result = Judge(echo)
	if r := Combine(tracks, 0); r.Verdict != Faulty {
		t.Errorf("echoes are lost too: %v (want faulty)", r.Verdict)
	}
	for _, v := range []Verdict{Silent, Unknown, PolicyDrop} {
		tracks[1].Result = Result{Verdict: v}
		if r := Combine(tracks, 0); r.Verdict != Unknown || r.Kind != CauseConntrack {
			t.Errorf("echoes are %v: %v by %v (want unknown: they do not tell)", v, r.Verdict, r.Kind)
		}
	}
}

// What is lost by tcp alone as a packet of no connection, or after a switch that does not show whether it left, is nobody's fault by itself.
func TestCombineRemembered(t *testing.T) {
	t.Parallel()
	integrated := func(p *plan.Path) { // all bridges but those of the instances have no hook
		for i := range p.Points {
			if p.Points[i].Kind == stain.ToTunnel {
				p.Points[i].Absent = "br-tun has no hook"
			}
		}
	}
	network := open()
	for _, tt := range []struct {
		name       string
		change     func(*plan.Path)
		x          Explanation
		kind       CauseKind
		remembered bool
	}{
		{"the tunnel's end, by a switch that shows what it sends", nil,
			Explanation{Point: 1, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001}, CauseEntrypoint, false},
		{"the tunnel's end, or a switch", integrated,
			Explanation{Point: 0, Outcome: Tunnelled, Port: "gre-hv3", TunnelRemote: "10.1.2.3", TunnelID: 1001}, CauseEntrypoint, true},
		{"no connection", nil,
			Explanation{Point: 1, Outcome: Dropped, Flow: flow("br-tun", 16, 65532, "ct_state=+inv+trk,metadata=0x3e9")}, CauseFlow, true},
		{"no connection, a rule", nil,
			Explanation{Point: 0, Outcome: Dropped, Flow: flow("br-int", 72, 50, "ct_state=+inv+trk")}, CauseSecurityRule, true},
		{"a rule", nil,
			Explanation{Point: 0, Outcome: Dropped, Flow: flow("br-int", 72, 50, "ct_state=+new-est,reg5=0x2")}, CauseSecurityRule, false},
		{"between bridges, by flows that were not asked", nil,
			Explanation{Point: 2, Error: "the agent gave no answer"}, CauseSwitch, true},
	} {
		p := pathOf(t, lab(t, func(h hosts) { echoes(h) }), "blue-1 blue-3")
		if tt.change != nil {
			tt.change(p)
		}
		e := Evidence{Path: p, Hooks: live(p), Explanation: &tt.x}
		for range 3 {
			e.Attempts = append(e.Attempts, probe(t, p, "012"[:tt.x.Point+1]))
		}
		tcp := Judge(e)
		if tcp.NeedUnderlay != nil {
			e.Underlay = network.exchange(tcp.NeedUnderlay, 1)
			tcp = Judge(e)
		}
		if tcp.Kind != tt.kind || tcp.MayBeRemembered != tt.remembered {
			t.Errorf("%s: %s, may be remembered %t; want %v, %t", tt.name, show(&tcp), tcp.MayBeRemembered, tt.kind, tt.remembered)
		}
		echo := Evidence{Path: p, Hooks: live(p), Scheme: stain.ICMP, Attempts: []Attempt{probe(t, p, "01234567")}}
		r := Combine([]Track{{p, stain.TCP, tcp}, {p, stain.ICMP, Judge(echo)}}, 0)
		if healthy := tt.remembered || tt.kind == CauseEntrypoint; (r.Verdict == Healthy) != healthy || strings.HasPrefix(r.SchemeReason, remembered) != tt.remembered {
			t.Errorf("%s, and icmp echo passes: %v, %q; want it healthy by icmp: %t", tt.name, r.Verdict, r.SchemeReason, tt.remembered)
		}
	}
}
