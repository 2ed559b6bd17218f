package run

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// crossed is a pool of the underlay from hv1 to hv2.
func crossedPool() (*pools, *pool) {
	ps := newPools(testOf(&dyetracev1.ProbeOptions{Continuous: true}))
	from := &plan.Expected{Host: "hv1", Bridge: "br-tun", Kind: stain.ToTunnel}
	to := &plan.Expected{Host: "hv2", Bridge: "br-tun", Kind: stain.FromTunnel}
	return ps, ps.net(0, from, to)
}

// lossy makes trials of sixteen ports, n of each, of which those lose that share which loses says.
func lossy(rng *rand.Rand, n int, rate func(port int) float64) []trial {
	var all []trial
	for port := range 16 {
		t := trial{port: uint16(40000 + port), probes: n}
		for range n {
			if rng.Float64() < rate(port) {
				t.lost++
			}
		}
		all = append(all, t)
	}
	return all
}

// What all ports lose is known to be lost everywhere, what some lose on a member; and when it is over
// that is known, too.
func TestCrossingExtent(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		rate := rapid.SampledFrom([]float64{0.01, 0.02, 0.05, 0.2}).Draw(t, "rate")
		members := rapid.SampledFrom([]int{1, 2, 4}).Draw(t, "members")
		bad := func(port int) float64 {
			if port*members/16 == 0 {
				return min(1, rate*float64(members))
			}
			return 0
		}
		want := everywhere
		if members > 1 {
			want = member
		}
		ps, p := crossedPool()
		now := time.Unix(1e9, 0)
		var was []extent
		for range 200 { // a tenth of a second each
			now = now.Add(100 * time.Millisecond)
			ps.crossed("hv1", "hv2", p.net.src, p.net.dst, lossy(rng, 6, bad), now)
			was = append(was, p.net.extent)
		}
		// Just at what is too much the alarm is cleared now and then (Plan.Beta).
		if !slices.Contains(was, want) || was[len(was)-1] != want && rate > 0.01 {
			t.Fatalf("%d members, one loses %g: extents %v, want %v", members, rate*float64(members), was, want)
		}
		if probes, lost, ports := p.figures(); was[len(was)-1] == want && (lost == 0 || probes <= lost || (len(ports) > 0) != (members > 1) || len(ports) > 16/members) {
			t.Fatalf("%d of %d by ports %v", lost, probes, ports)
		}
		for i := 0; p.net.extent != nowhere; i++ {
			if i > 50 && members == 1 || i > 500 {
				t.Fatalf("after %d00 ms without a loss: %+v, %+v", i, p.guard, p.net)
			}
			now = now.Add(100 * time.Millisecond)
			ps.crossed("hv1", "hv2", p.net.src, p.net.dst, lossy(rng, 6, func(int) float64 { return 0 }), now)
		}
	})
}

// An agent that is started anew sends from other ports: what those lose is told as before, all of them or some,
// however often that happens, and in the middle of a loss.
func TestCrossingRestarts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		members := rapid.SampledFrom([]int{1, 2}).Draw(t, "members")
		restarts := rapid.IntRange(1, 6).Draw(t, "restarts")
		amid := rapid.Bool().Draw(t, "amid a loss")
		ps, p := crossedPool()
		now := time.Unix(1e9, 0)
		rounds := func(n, restart int, rate func(port int) float64) {
			for range n {
				now = now.Add(100 * time.Millisecond)
				trials := lossy(rng, 6, rate)
				for i := range trials {
					trials[i].port += uint16(100 * restart)
				}
				ps.crossed("hv1", "hv2", p.net.src, p.net.dst, trials, now)
			}
		}
		bad := func(port int) float64 {
			if port*members/16 == 0 {
				return 0.03 * float64(members)
			}
			return 0
		}
		for restart := range restarts {
			if amid {
				rounds(10, restart, bad)
			} else {
				rounds(20, restart, func(int) float64 { return 0 })
			}
		}
		rounds(100, restarts, bad)
		want := everywhere
		if members > 1 {
			want = member
		}
		if p.net.extent != want || len(p.net.ports) != 16 {
			t.Fatalf("extent %v by %d ports, want %v by 16: %+v", p.net.extent, len(p.net.ports), want, p.net.ports)
		}
		if _, _, ports := p.figures(); len(ports) > 0 && slices.Min(ports) < uint32(40000+100*restarts) {
			t.Fatalf("ports %v are told of, which are used no more", ports)
		}
	})
}

// One path of many that loses 1 % is a thousandth of all: its ports tell.
func TestCrossingMember(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(4, 4))
	ps, p := crossedPool()
	now := time.Unix(1e9, 0)
	for i := 0; p.net.extent == nowhere; i++ {
		if i > 3000 {
			t.Fatal("not known after 288,000 datagrams")
		}
		now = now.Add(100 * time.Millisecond)
		ps.crossed("hv1", "hv2", p.net.src, p.net.dst, lossy(rng, 6, func(port int) float64 {
			if port < 2 {
				return 0.01
			}
			return 0
		}), now)
	}
	if _, _, ports := p.figures(); p.net.extent != member || p.blaming() || len(ports) == 0 || slices.Max(ports) > 40001 {
		t.Errorf("extent %v by ports %v, blames pairs: %v", p.net.extent, ports, p.blaming())
	}
}

// A million datagrams at what is allowed raise no alarm, nor do more at half of it.
func TestCrossingQuiet(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(6, 6))
	for _, rate := range []float64{0.0005, 0.001} {
		ps, p := crossedPool()
		now := time.Unix(1e9, 0)
		for range 20_000 {
			now = now.Add(100 * time.Millisecond)
			if changed := ps.crossed("hv1", "hv2", p.net.src, p.net.dst, lossy(rng, 6, func(int) float64 { return rate }), now); changed != nil {
				t.Fatalf("at %g: %+v, %+v", rate, p.guard, p.net)
			}
		}
	}
}

// An alarm of which nothing is heard any more is none.
func TestCrossingForgets(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(8, 8))
	ps, p := crossedPool()
	now := time.Unix(1e9, 0)
	for p.net.extent != everywhere {
		ps.crossed("hv1", "hv2", p.net.src, p.net.dst, lossy(rng, 6, func(int) float64 { return 0.1 }), now)
	}
	if p.forget(now.Add(staleAfter-1)) || !p.blaming() {
		t.Error("forgotten too soon")
	}
	if !p.forget(now.Add(staleAfter)) || p.raised() || p.forget(now.Add(2*staleAfter)) {
		t.Error("not forgotten, or twice")
	}
	if ps.crossed("hv1", "hv9", p.net.src, p.net.dst, nil, now) != nil {
		t.Error("a crossing of no pair changes")
	}
}

// simNetwork plays the agents that send streams: at their pace, by what they lose.
type simNetwork struct {
	mu      sync.Mutex
	rng     *rand.Rand
	lose    func(from, to string, port int) float64
	targets []fleet.StreamTarget
	sets    int
	counts  []fleet.StreamCount
	wake    chan struct{}
	closed  bool
	over    chan struct{}
	silent  map[[2]string]time.Time // by who asks and who answers: since when there are no answers
}

func newSimNetwork() *simNetwork {
	return &simNetwork{rng: rand.New(rand.NewPCG(2, 2)), wake: make(chan struct{}, 1), over: make(chan struct{}), lose: func(string, string, int) float64 { return 0 }}
}

func (n *simNetwork) Set(targets []fleet.StreamTarget) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.targets = slices.Clone(targets)
	n.sets++
	if n.sets == 1 {
		go n.run()
	}
}

func (n *simNetwork) run() {
	defer close(n.over)
	for {
		time.Sleep(100 * time.Millisecond)
		n.mu.Lock()
		if n.closed {
			n.mu.Unlock()
			return
		}
		for i, t := range n.targets {
			c := fleet.StreamCount{Target: i, Src: t.Src}
			if since, is := n.silent[[2]string{t.From, t.To}]; is {
				c.Silent, c.SilentFor = int(time.Since(since)/(5*time.Millisecond))+1, time.Since(since)
				n.counts = append(n.counts, c)
				continue
			}
			for port := range 16 {
				p := fleet.PortCount{Port: uint16(40000 + port)}
				for range 6 {
					switch {
					case n.rng.Float64() < n.lose(t.From, t.To, port):
						p.There++
					case n.rng.Float64() < n.lose(t.To, t.From, port):
						p.Back++
					default:
						p.Passed++
					}
				}
				c.Ports = append(c.Ports, p)
			}
			n.counts = append(n.counts, c)
		}
		n.mu.Unlock()
		select {
		case n.wake <- struct{}{}:
		default:
		}
	}
}

func (n *simNetwork) Take() []fleet.StreamCount {
	n.mu.Lock()
	defer n.mu.Unlock()
	counts := n.counts
	n.counts = nil
	return counts
}

func (n *simNetwork) Wake() <-chan struct{} { return n.wake }

func (n *simNetwork) Close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	<-n.over
}

func (n *simNetwork) change(lose func(from, to string, port int) float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lose = lose
}

// hush has all streams with a host be answered no more, of which their agents tell after they noticed, or again.
func (n *simNetwork) hush(host string, silent bool) {
	began := time.Now()
	if silent {
		time.Sleep(55 * time.Millisecond)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.silent == nil {
		n.silent = map[[2]string]time.Time{}
	}
	for i, t := range n.targets {
		if t.From != host && t.To != host {
			continue
		}
		key := [2]string{t.From, t.To}
		c := fleet.StreamCount{Target: i, Src: t.Src}
		if delete(n.silent, key); silent {
			n.silent[key] = began
			c.Silent, c.SilentFor = 11, time.Since(began)
		}
		n.counts = append(n.counts, c)
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// streamable is a site whose hosts know streams.
func streamable(t testing.TB, n int) *inventory.Snapshot {
	return siteOf(t, n, func(h *inventory.Host) {
		h.Underlay = &dyetracev1.UnderlayEcho{Port: 7443, Addresses: []string{h.Bridges[1].Tunnels[0].LocalIp}, Streams: true}
	})
}

// TestStreamTargets has one stream for each two hosts, to an address where it is answered.
func TestStreamTargets(t *testing.T) {
	t.Parallel()
	pathsOn := func(snap *inventory.Snapshot) []*plan.Path {
		_, paths := pathsOf(t, snap, allPairs)
		var all []*plan.Path
		for i := range paths {
			all = append(all, &paths[i])
		}
		return append(all, nil)
	}
	targets := streamTargets(pathsOn(streamable(t, 8)), 0x5c)
	asks := map[string]int{}
	for _, x := range targets {
		asks[x.From]++
		if "10.1.0."+x.To[2:] != x.Dst.String() || "10.1.0."+x.From[2:] != x.Src.String() || x.Port != 7443 || x.ToS != 0x5c || x.Size != 128 || x.Tunnel != "gre0" {
			t.Errorf("%+v", x)
		}
	}
	if len(targets) != 6 || len(asks) < 2 {
		t.Errorf("%d streams between four hosts, sent by %v", len(targets), asks)
	}
	old := siteOf(t, 8, func(h *inventory.Host) {
		h.Underlay = &dyetracev1.UnderlayEcho{Port: 7443, Addresses: []string{h.Bridges[1].Tunnels[0].LocalIp}, Streams: h.Name != "hv2"}
	})
	for _, x := range streamTargets(pathsOn(old), 0) {
		if x.From == "hv2" || x.To == "hv2" {
			t.Errorf("%+v, though hv2's agent knows no streams", x)
		}
	}
	if got := streamTargets(pathsOn(site(t, 8)), 0); len(got) != 0 {
		t.Errorf("%v between hosts that answer nothing", got)
	}
}

// TestContinuousUnderlay has one way between two hosts lose 1 %: all pairs that use it are told, in that
// direction of theirs, within five seconds, and no other; and when it is over. Instances take no part in it.
func TestContinuousUnderlay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, streamable(t, 8))
		w.network = newSimNetwork()
		const broke, healed = 10 * time.Second, 20 * time.Second
		all, f, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 40*time.Second, func() {
			time.Sleep(broke)
			w.network.change(func(from, to string, _ int) float64 {
				if from == "hv2" && to == "hv4" {
					return 0.01
				}
				return 0
			})
			time.Sleep(healed - broke)
			w.network.change(func(string, string, int) float64 { return 0 })
		})
		faulty, ended := 0, 0
		for _, a := range all[56:] {
			switch {
			case a.r.Verdict == dyetracev1.Verdict_VERDICT_HEALTHY && a.at > healed:
				ended++
				continue
			case a.at < broke || a.at > broke+5*time.Second:
				t.Errorf("told at %v, broken at %v: %v", a.at, broke, a.r.Cause)
			}
			faulty++
			s, l := a.r.Segment, a.r.Loss
			there := slices.Contains([]string{"i1", "i5"}, a.r.Src.Name) // those on hv2
			if s.GetFrom().GetHost() != "hv2" || s.GetTo().GetHost() != "hv4" || a.r.CauseKind != dyetracev1.CauseKind_CAUSE_KIND_LOSS || a.r.Host != "hv2" ||
				!strings.HasPrefix(a.r.Cause, "the underlay loses ") || !strings.HasSuffix(a.r.Cause, "from hv2 (10.1.0.2) to hv4 (10.1.0.4)") ||
				(s.Direction == dyetracev1.Direction_DIRECTION_FORWARD) != there {
				t.Errorf("%s → %s: %v: %s; %v", a.r.Src.Name, a.r.Dst.Name, a.r.Verdict, a.r.Cause, s)
			}
			if !l.GetUnderlay() || l.Low > 0.01 || l.High < 0.01 || l.Probes < 200 {
				t.Errorf("%v", l)
			}
		}
		// Two instances on either host, both orders.
		if faulty != 8 || ended != 8 {
			t.Errorf("%d pairs lose, %d are healthy again, want the 8 between hv2 and hv4", faulty, ended)
		}
		if n := w.network.sets; n != 1 || !w.network.closed {
			t.Errorf("streams were set %d times, ended: %v", n, w.network.closed)
		}
		if l := c.losses(); len(l) != 0 || len(f.since(0).run.Losses) != 0 {
			t.Errorf("losses at the end: %v", l)
		}
	})
}

// What the underlay loses of streams it loses of pairs' probes, too: all is over for them as soon as the streams
// tell that it is, and not after the thousand probes that a guard without streams takes to be sure.
func TestContinuousUnderlayOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, streamable(t, 8))
		w.network = newSimNetwork()
		rng := rand.New(rand.NewPCG(5, 5))
		const broke, healed = 10 * time.Second, 40 * time.Second
		all, f, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, healed+20*time.Second, func() {
			time.Sleep(broke)
			loses := func(from, to string) float64 {
				if from == "hv2" && to == "hv4" {
					return 0.15
				}
				return 0
			}
			w.change(func(w *town) {
				w.lost = func(_ string, p *plan.Path, point int) bool {
					return point > 0 && rng.Float64() < loses(p.Points[point-1].Host, p.Points[point].Host)
				}
			})
			time.Sleep(2 * time.Second) // and the streams lose later: pairs' probes have been counted
			w.network.change(func(from, to string, _ int) float64 { return loses(from, to) })
			time.Sleep(healed - broke - 2*time.Second)
			w.change(func(w *town) { w.lost = nil })
			w.network.change(func(string, string, int) float64 { return 0 })
		})
		lossy := map[string]bool{}
		for _, a := range all[56:] {
			switch {
			case a.r.Verdict == dyetracev1.Verdict_VERDICT_HEALTHY:
			case a.at < healed:
				lossy[a.r.Src.Name+" "+a.r.Dst.Name] = true
			default:
				t.Errorf("%v after it was healed: %s → %s: %s", a.at-healed, a.r.Src.Name, a.r.Dst.Name, a.r.Cause)
			}
		}
		if p := f.since(0); p.run.Counts.Healthy != 56 || len(c.losses()) != 0 {
			t.Errorf("20 s after it was healed: %v, losses %v", p.run.Counts, c.losses())
		}
		if len(lossy) != 8 {
			t.Errorf("a loss of 15 %% is told of %v, want the 8 pairs between hv2 and hv4", lossy)
		}
	})
}

// A path of several that loses blames no pair: which take it nobody knows. It is told of all the same.
func TestContinuousUnderlayMember(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, streamable(t, 8))
		w.network = newSimNetwork()
		w.network.lose = func(from, to string, port int) float64 {
			if from == "hv2" && to == "hv4" && port%4 == 1 {
				return 0.08
			}
			return 0
		}
		all, f, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 20*time.Second, func() {})
		for _, a := range all[56:] {
			t.Errorf("%s → %s: %v: %s", a.r.Src.Name, a.r.Dst.Name, a.r.Verdict, a.r.Cause)
		}
		var found bool
		for _, l := range f.since(0).run.Losses {
			if l.Segment == nil {
				continue // of a whole host
			}
			found = true
			if !l.Underlay || !slices.Equal(l.SourcePorts, []uint32{40001, 40005, 40009, 40013}) || l.Low > 0.08 || l.High < 0.08 || l.Segment.From.Host != "hv2" {
				t.Errorf("%v", l)
			}
		}
		if !found {
			t.Error("nothing is told of what one path in four loses")
		}
	})
}

// What goes to one instance's port is one pool, whoever sends it, and whichever way: requests or answers.
func TestPoolsOfPorts(t *testing.T) {
	t.Parallel()
	snap := siteOf(t, 8, func(h *inventory.Host) {
		h.Bridges[0].Kinds = append(h.Bridges[0].Kinds, dyetracev1.PointKind_POINT_KIND_TO_INSTANCE)
	})
	pairs, paths := pathsOf(t, snap, allPairs)
	ps := newPools(testOf(&dyetracev1.ProbeOptions{Continuous: true}))
	to := map[*pool]map[string]bool{}
	for i := range paths {
		for _, s := range ps.steps(i, &paths[i]) {
			p := &paths[i].Points[s.to]
			if p.Kind != stain.ToInstance {
				continue
			}
			name := pairs[i].Dst.Name
			if p.Direction == plan.Reply {
				name = pairs[i].Src.Name
			}
			if to[s.pools[0]] == nil {
				to[s.pools[0]] = map[string]bool{}
			}
			to[s.pools[0]][name] = true
		}
	}
	if len(to) != 16 { // from the tunnels, and from the other instance on the host
		t.Errorf("%d pools of what goes to 8 instances", len(to))
	}
	for p, names := range to {
		want := 12
		if p.from.Kind == stain.FromInstance {
			want = 2
		}
		if len(names) != 1 || len(p.pairs) != want {
			t.Errorf("%s: of %v, by %d pairs, want one instance and %d", p.name, names, len(p.pairs), want)
		}
	}
}
