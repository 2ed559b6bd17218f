package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/internal/leak"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
	"github.com/dyetrace/dyetrace/stain"
)

func TestMain(m *testing.M) { leak.Main(m) }

// site returns a world of n instances of one network over four hosts, each with a bridge for
// instances and one for tunnels.
func site(t testing.TB, n int) *inventory.Snapshot { return siteOf(t, n, nil) }

// siteOf is a site whose hosts are changed.
func siteOf(t testing.TB, n int, change func(*inventory.Host)) *inventory.Snapshot {
	t.Helper()
	var b strings.Builder
	b.WriteString("networks:\n  - {name: blue, cidr: 10.0.0.0/16}\nhosts: [{name: hv1, rack: r1}, {name: hv2, rack: r1}]\ninstances:\n")
	for i := range n {
		fmt.Fprintf(&b, "  - {name: i%d, network: blue, ip: 10.0.%d.%d, mac: \"fa:16:3e:00:%02x:%02x\", host: hv%d, port: tap%d}\n",
			i, 1+i/200, 1+i%200, i>>8, i&255, 1+i%4, i)
	}
	f, err := inventory.Parse("inventory.yaml", []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	var hosts []inventory.Host
	for h := 1; h <= 4; h++ {
		host := inventory.Host{Name: fmt.Sprintf("hv%d", h), Connected: true, Bridges: []*dyetracev1.Bridge{
			{
				Name: "br-int", State: dyetracev1.HookState_HOOK_STATE_LIVE, UplinkBridge: "br-tun",
				Kinds: []dyetracev1.PointKind{dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE, dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL},
			}, {
				Name: "br-tun", State: dyetracev1.HookState_HOOK_STATE_LIVE,
				Kinds:   []dyetracev1.PointKind{dyetracev1.PointKind_POINT_KIND_TO_TUNNEL, dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL},
				Tunnels: []*dyetracev1.Tunnel{{Port: "gre0", Ofport: 5, Type: "gre", RemoteIp: "flow", LocalIp: fmt.Sprintf("10.1.0.%d", h)}},
			},
		}}
		for i := range n {
			if 1+i%4 == h {
				host.Endpoints = append(host.Endpoints, &dyetracev1.Endpoint{Bridge: "br-int", Port: fmt.Sprintf("tap%d", i), Ofport: uint32(10 + i)})
			}
		}
		if change != nil {
			change(&host)
		}
		hosts = append(hosts, host)
	}
	return inventory.NewSnapshot(f, hosts...)
}

// pathsOf returns all pairs of a site and their paths.
func pathsOf(t testing.TB, snap *inventory.Snapshot, scope plan.Scope) ([]plan.Pair, []plan.Path) {
	t.Helper()
	return pathsBy(t, snap, scope, plan.Options{})
}

func pathsBy(t testing.TB, snap *inventory.Snapshot, scope plan.Scope, o plan.Options) ([]plan.Pair, []plan.Path) {
	t.Helper()
	pairs, err := plan.Pairs(snap, scope, o)
	if err != nil {
		t.Fatal(err)
	}
	paths := make([]plan.Path, len(pairs))
	for i, p := range pairs {
		if paths[i], err = plan.Of(snap, p, o); err != nil {
			t.Fatal(err)
		}
	}
	return pairs, paths
}

var allPairs = plan.Scope{Kind: plan.All}

// cast plays the agents of a run, in memory and in no time: what all see of a probe comes as its
// path says, unless lost says otherwise. Between processes, agents are played in package plugin.
type cast struct {
	paths  []plan.Path
	layout layout
	ps     []*plan.Path
	tracks []track
	spec   fleet.Spec
	wake   chan struct{}
	// lost says that a point of a pair's path does not see a probe; nil is none.
	lost func(shot) bool
	// leaves is the OpenFlow port by which a guest gets a probe; nil is its own.
	leaves func(shot) uint32
	// mute are hosts that do not answer: "ready hv1", "injected hv1", "finished hv1", "explain hv1",
	// "armed hv1". refuses are hosts, or ports of hosts ("hv1 tap0"), about which an Arm is answered
	// with an error. absent are ports that cannot inject, since they are gone.
	mute, refuses, absent map[string]bool
	fragile               bool // nothing is sent by tcp
	// explain is what all hosts say of a packet; nil is a drop by some flow.
	explain *dyetracev1.Explanation
	// plays are the agents that a run gets instead of the cast itself.
	plays   agents
	metrics *metrics
	quiet   bool                     // writes no log
	asks    *dyetracev1.ProbeOptions // of loss
	drops   bool                     // agents drop samples of their own
	// underlay is what a host says when it is asked for an exchange; nil is nothing.
	underlay func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport
	// exchange is how long one takes.
	exchange time.Duration

	mu       sync.Mutex
	began    time.Time
	events   []fleet.Event
	at       []time.Time // of injections
	log      []string    // what agents were asked for, and when
	armed    map[string]bool
	ids      uint64
	withhold map[uint64]withheld  // by Arm.id
	withheld map[string]time.Time // "hv1 7": probe 7 at hv1; since when
	extra    map[uint32]int       // tracks of probes beyond hardAttempts of each
	sent     map[int]int          // by track
	nth      map[uint32]int       // which of its track such a probe is
	finished []string
	asked    int // explanations and exchanges
	explored []exploration
}

// exploration is an exchange that a host was asked for.
type exploration struct {
	host string
	ask  *dyetracev1.ProbeUnderlay
}

// withheld is what an Arm asks to withhold, and when: known to be so once it is answered.
type withheld struct {
	since time.Time
	what  []string
}

// shot is a probe at a point.
type shot struct {
	pair, attempt, point int
	scheme               stain.Scheme
	back                 bool // of no-touch
	armed                bool // the destination's port has a port-only hook
}

func newCast(paths []plan.Path) *cast { return newCastOf(paths, byTCP) }

var byTCP = options{scheme: stain.TCP}

func newCastOf(paths []plan.Path, o options) *cast {
	c := &cast{
		paths: paths, wake: make(chan struct{}, 1), mute: map[string]bool{}, refuses: map[string]bool{}, absent: map[string]bool{},
		armed: map[string]bool{}, withhold: map[uint64]withheld{}, withheld: map[string]time.Time{},
		extra: map[uint32]int{}, sent: map[int]int{}, nth: map[uint32]int{}, metrics: newMetrics(nil),
	}
	c.layout, c.ps, c.tracks = o.layout(paths)
	return c
}

func (c *cast) begin(s fleet.Spec) agents {
	c.mu.Lock()
	c.spec, c.began = s, time.Now()
	c.mu.Unlock()
	for h, name := range s.Hosts {
		if !c.mute["ready "+name] {
			c.put(h, &dyetracev1.Ready{Windows: c.windows()})
		}
	}
	if c.plays != nil {
		return c.plays
	}
	return c
}

// host returns the number of a host, for others than the run's goroutine.
func (c *cast) host(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Index(c.spec.Hosts, name)
}

func (c *cast) windows() []*dyetracev1.HookWindow {
	return []*dyetracev1.HookWindow{{Bridge: "br-int", Live: true, Epoch: 1}, {Bridge: "br-tun", Live: true, Epoch: 1}}
}

func (c *cast) put(host int, m any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, fleet.Event{Host: host, Message: m})
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// note writes into the log what agents were asked for. Caller holds mu.
func (c *cast) note(format string, args ...any) {
	if c.quiet {
		return
	}
	c.log = append(c.log, fmt.Sprintf("%v ", time.Since(c.began))+fmt.Sprintf(format, args...))
}

func (c *cast) Inject(host int, m *dyetracev1.Inject) {
	left, now := &dyetracev1.Injected{}, time.Now()
	c.mu.Lock()
	for i, number := range m.Index {
		c.at = append(c.at, now)
		c.know(number, m, i)
		s := c.shot(number, 0)
		way := ""
		if s.back {
			way = " back"
		}
		c.note("%d %s%s", s.pair, s.scheme, way)
		if dyetracev1.Scheme(s.scheme) != m.Scheme {
			panic(fmt.Sprintf("probe %d goes as %v", number, m.Scheme))
		}
		c.untouched(number, now.Add(time.Duration(m.SettleMs)*time.Millisecond))
		if port := m.Ports[m.Port[i]].Port; c.absent[port] {
			left.Failures = append(left.Failures, &dyetracev1.InjectFailure{Index: number, Reason: "no such port", PortAbsent: true})
			continue
		}
		if c.fragile && s.scheme == stain.TCP {
			left.Failures = append(left.Failures, &dyetracev1.InjectFailure{Index: number, Reason: "the switch would not survive it"})
			continue
		}
		left.Index, left.AtNs = append(left.Index, number), append(left.AtNs, 0)
	}
	c.mu.Unlock()
	if c.mute["injected "+c.spec.Hosts[host]] {
		return
	}
	c.put(host, left)
	for h, s := range c.see(left.Index) {
		if len(s.Index) > 0 {
			c.put(h, s)
		}
	}
}

func (c *cast) Withdraw(_ int, m *dyetracev1.Withdraw) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, number := range m.Index {
		s := c.shot(number, 0)
		c.note("%d %s withdrawn", s.pair, s.scheme)
	}
}

// track returns whose a probe is.
func (c *cast) track(number uint32) int {
	if int(number) < hardAttempts*len(c.tracks) {
		return int(number) % len(c.tracks)
	}
	return c.extra[number]
}

// know notes by its addresses whose the i-th probe of m is. Caller holds mu.
func (c *cast) know(number uint32, m *dyetracev1.Inject, i int) {
	if int(number) >= hardAttempts*len(c.tracks) {
		c.extra[number] = slices.IndexFunc(c.tracks, func(t track) bool {
			src, dst := c.ps[t.path].Src.As16(), c.ps[t.path].Dst.As16()
			return dyetracev1.Scheme(t.scheme) == m.Scheme && string(src[:]) == string(m.SrcIp[16*i:16*i+16]) && string(dst[:]) == string(m.DstIp[16*i:16*i+16])
		})
	}
	t := c.track(number)
	c.nth[number] = c.sent[t]
	c.sent[t]++
}

// untouched panics if a guest may see a probe of no-touch, or what withdraws it at end.
func (c *cast) untouched(number uint32, end time.Time) {
	if c.layout.ways == 1 {
		return
	}
	for _, name := range c.ps[c.tracks[c.track(number)].path].Hosts() {
		since, withheld := c.withheld[fmt.Sprintf("%s %d", name, number)]
		if !withheld || end.Sub(since) > withholdFor {
			panic(fmt.Sprintf("probe %d is not withheld at %s", number, name))
		}
	}
}

// see returns what each host sees of probes.
func (c *cast) see(numbers []uint32) []*dyetracev1.Samples {
	all := make([]*dyetracev1.Samples, len(c.spec.Hosts))
	for h := range all {
		all[h] = &dyetracev1.Samples{Bridges: []string{"br-int", "br-tun"}}
	}
	for _, number := range numbers {
		p := c.ps[c.tracks[c.track(number)].path]
		for k, pt := range p.Points {
			at := c.shot(number, k)
			if c.lost != nil && c.lost(at) {
				continue
			}
			s := all[slices.Index(c.spec.Hosts, pt.Host)]
			src, dst := p.Src, p.Dst
			if pt.Direction == plan.Reply {
				src, dst = dst, src
			}
			s.Index = append(s.Index, number)
			s.Bridge = append(s.Bridge, uint32(slices.Index(s.Bridges, pt.Bridge)))
			s.Kind = append(s.Kind, dyetracev1.PointKind(pt.Kind))
			s.AtNs = append(s.AtNs, uint64(1000*(k+1)))
			s.AddrTag = append(s.AddrTag, stain.AddrTag(c.spec.Key, src, dst))
			s.Ttl = append(s.Ttl, uint32(pt.TTL))
			port := uint32(7)
			if pt.Kind == stain.ToInstance && c.leaves != nil {
				port = c.leaves(at)
			} else if pt.Kind == stain.ToInstance {
				port = pt.OFPort
			}
			s.InPort = append(s.InPort, port)
			s.TunSrc = append(s.TunSrc, 0)
			s.TunId = append(s.TunId, 0)
			s.Reply = append(s.Reply, pt.Direction == plan.Reply)
			s.NoReply = append(s.NoReply, false)
			s.Scheme = append(s.Scheme, dyetracev1.Scheme(at.scheme))
			s.TcpFlags = append(s.TcpFlags, flagsOf(at.scheme, pt.Direction == plan.Reply))
		}
	}
	return all
}

// flagsOf are the flags of TCP that a sample of a probe or its answer has.
func flagsOf(scheme stain.Scheme, answer bool) uint32 {
	switch {
	case scheme != stain.TCP:
		return 0
	case answer:
		return stain.FlagRST | stain.FlagACK
	}
	return stain.FlagSYN
}

// attempt returns which probe of its track one is.
func (c *cast) attempt(number uint32) int {
	if n, sent := c.nth[number]; sent {
		return n
	}
	return int(number) / len(c.tracks)
}

// shot returns which probe a number is, at a point.
func (c *cast) shot(number uint32, point int) shot {
	i := c.track(number)
	p := c.ps[c.tracks[i].path]
	return shot{
		pair: c.layout.pair(i), attempt: c.attempt(number), point: point,
		scheme: c.tracks[i].scheme, back: c.layout.ways == 2 && i%2 == 1, armed: c.armed[p.To.Host+" "+p.To.Port],
	}
}

func (c *cast) Arm(host int, m *dyetracev1.Arm) uint64 {
	name := c.spec.Hosts[host]
	refused := c.refuses[name]
	c.mu.Lock()
	c.ids++
	answer := &dyetracev1.Armed{Id: c.ids}
	var words []string
	for _, p := range m.Answers {
		refused = refused || c.refuses[name+" "+p.Port]
		words = append(words, "answers "+p.Port)
	}
	for _, p := range m.WithholdAt {
		refused = refused || c.refuses[name+" "+p.Port]
		words = append(words, "withholds at "+p.Port)
	}
	for _, bridge := range m.Expect {
		words = append(words, "expects on "+bridge)
	}
	if len(m.Withhold) > 0 && len(m.WithholdAt) == 0 {
		words = append(words, "withholds")
	}
	c.note("%s %s", name, strings.Join(words, ", "))
	for _, p := range m.Answers {
		c.armed[name+" "+p.Port] = c.armed[name+" "+p.Port] || !refused && !c.mute["armed "+name]
	}
	kept := withheld{since: time.Now()}
	for _, number := range m.Withhold {
		kept.what = append(kept.what, fmt.Sprintf("%s %d", name, number))
	}
	c.withhold[answer.Id] = kept
	c.mu.Unlock()
	if refused {
		answer.Error = "no room"
	}
	if !c.mute["armed "+name] {
		c.put(host, answer)
	}
	return answer.Id
}

func (c *cast) Audit(host int, _ bool) {
	if !c.mute["audited "+c.spec.Hosts[host]] {
		c.put(host, &dyetracev1.Audited{Windows: c.windows()})
	}
}

func (c *cast) Finish(host int) {
	c.mu.Lock()
	c.finished = append(c.finished, c.spec.Hosts[host])
	c.mu.Unlock()
	if !c.mute["finished "+c.spec.Hosts[host]] {
		windows := c.windows()
		for _, w := range windows {
			if c.drops {
				w.Lost = 9
			}
		}
		c.put(host, &dyetracev1.Finished{Windows: windows})
	}
}

func (c *cast) ProbeUnderlay(host int, m *dyetracev1.ProbeUnderlay) uint64 {
	c.mu.Lock()
	c.asked++
	id := uint64(c.asked)
	name := c.spec.Hosts[host]
	c.explored = append(c.explored, exploration{name, m})
	answer := c.underlay
	c.mu.Unlock()
	if answer == nil || c.mute["underlay "+name] {
		return id
	}
	r := answer(name, m)
	r.Id = id
	if c.exchange > 0 && !m.GetRecall() {
		time.AfterFunc(c.exchange, func() { c.put(host, r) })
	} else {
		c.put(host, r)
	}
	return id
}

func (c *cast) Explain(host int, _ *dyetracev1.Explain) uint64 {
	id := c.number()
	c.explained(host, id)
	return id
}

// number is that of an explanation, or an exchange.
func (c *cast) number() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	return uint64(c.asked)
}

// explained answers what becomes of a packet.
func (c *cast) explained(host int, id uint64) {
	if !c.mute["explain "+c.spec.Hosts[host]] {
		x := &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_DROPPED, Flow: &dyetracev1.FlowRef{Bridge: "br-int", Table: 60}}
		if c.explain != nil {
			x = proto.CloneOf(c.explain)
		}
		x.Id = id
		c.put(host, x)
	}
}

func (c *cast) Wake() <-chan struct{} { return c.wake }
func (c *cast) Close()                {}

func (c *cast) Events(buf []fleet.Event) []fleet.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	events := c.events
	c.events = buf[:0]
	for i := range events { // nothing may be sent before the run is told
		if m, ok := events[i].Message.(*dyetracev1.Armed); ok && m.Error == "" {
			for _, what := range c.withhold[m.Id].what {
				c.withheld[what] = c.withhold[m.Id].since
			}
		}
	}
	return events
}

// options returns those that the cast was made with.
func (c *cast) options() options {
	return options{
		scheme: c.layout.asked, plan: plan.Options{NoTouch: c.layout.ways == 2}, test: testOf(c.asks), measure: c.asks.GetLoss(), mtu: c.layout.mtu,
	}
}

const answerTimeout = 5 * time.Second

var testConfig = Config{Settle: 250 * time.Millisecond, AnswerTimeout: answerTimeout, PerInstanceRate: 10, PerInstanceBurst: 10}

// play executes a run with a cast, and returns the verdicts and how long it took.
func play(ctx context.Context, cfg Config, c *cast, pairs []plan.Pair, timeout time.Duration) (map[uint32]*dyetracev1.PairResult, time.Duration, bool) {
	return playOn(ctx, cfg, pace.New(cfg.PerInstanceRate, float64(cfg.PerInstanceBurst)), c, pairs, timeout)
}

// playOn is play for runs that keep pace with others.
func playOn(ctx context.Context, cfg Config, p *pace.Pace, c *cast, pairs []plan.Pair, timeout time.Duration) (map[uint32]*dyetracev1.PairResult, time.Duration, bool) {
	seq := make([]uint32, len(pairs))
	for i := range seq {
		seq[i] = uint32(100 + i)
	}
	began := time.Now()
	x := newExecution(&cfg, p, c.metrics, slog.New(slog.DiscardHandler),
		pairs, c.paths, seq, c.options(), stain.Key{1}, timeout, began, c.begin)
	in := make(chan batch)
	got := map[uint32]*dyetracev1.PairResult{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := range in {
			for i, s := range b.seq {
				if got[s] != nil {
					panic(fmt.Sprintf("pair %d was judged twice", s))
				}
				got[s] = b.results[i]
			}
		}
	}()
	whole := x.run(ctx, in, nil)
	took := time.Since(began)
	<-done
	x.release(time.Now())
	return got, took, whole
}

func countsOf(results map[uint32]*dyetracev1.PairResult) string {
	var c dyetracev1.Counts
	for _, r := range results {
		count(&c, r.Verdict, 1)
	}
	return fmt.Sprintf("healthy %d faulty %d silent %d policy %d unknown %d", c.Healthy, c.Faulty, c.Silent, c.Policy, c.Unknown)
}

// TestTiming has runs whose every step takes its time, and no time at all passes besides: a second
// look at the queue comes pickEvery after the first, since of two opposite pairs one waits.
func TestTiming(t *testing.T) {
	t.Parallel()
	first := func(s shot) bool { return s.pair == 0 && s.attempt == 0 && s.point > 2 }
	always := func(s shot) bool { return s.pair == 0 && s.point > 2 }
	tests := []struct {
		name    string
		n       int // instances
		config  func(*Config)
		cast    func(*cast)
		timeout time.Duration
		counts  string
		unknown dyetracev1.CauseKind // why, where it is said
		took    time.Duration
		probes  int
	}{
		{
			name: "all well", n: 4, timeout: 30 * time.Second,
			counts: "healthy 12 faulty 0 silent 0 policy 0 unknown 0", took: pickEvery, probes: 12,
		}, {
			// 9 instances, 16 probes each, a burst of 10 and 10 a second.
			name: "paced", n: 9, timeout: 30 * time.Second,
			counts: "healthy 72 faulty 0 silent 0 policy 0 unknown 0", took: 600*time.Millisecond + pickEvery, probes: 72,
		}, {
			name: "first probe lost", n: 4, timeout: 30 * time.Second, cast: func(c *cast) { c.lost = first },
			counts: "healthy 12 faulty 0 silent 0 policy 0 unknown 0",
			// The test takes 23 more that arrive: what is left of the burst, and ten a second.
			took: 1908 * time.Millisecond, probes: 35,
		}, {
			name: "all four lost", n: 4, timeout: 30 * time.Second, cast: func(c *cast) { c.lost = always },
			counts: "healthy 11 faulty 1 silent 0 policy 0 unknown 0", took: time.Second + pickEvery, probes: 15,
		}, {
			name: "one agent never ready", n: 4, timeout: 30 * time.Second, cast: func(c *cast) { c.mute["ready hv2"] = true },
			counts: "healthy 12 faulty 0 silent 0 policy 0 unknown 0", took: answerTimeout + pickEvery, probes: 12,
		}, {
			name: "one agent never ready, and no time", n: 4, timeout: 2 * time.Second, cast: func(c *cast) { c.mute["ready hv2"] = true },
			counts: "healthy 0 faulty 0 silent 0 policy 0 unknown 12", took: 1500 * time.Millisecond, probes: 0,
		}, {
			// Nor do those go who would probe in the other direction: its probes may be under way.
			name: "one agent never says that it injected", n: 4, timeout: 8 * time.Second, cast: func(c *cast) { c.mute["injected hv1"] = true },
			counts: "healthy 6 faulty 0 silent 0 policy 0 unknown 6", took: 6 * time.Second, probes: 9,
		}, {
			name: "one agent never finishes", n: 4, timeout: 30 * time.Second,
			cast:   func(c *cast) { c.lost = always; c.mute["finished hv2"], c.mute["explain hv2"] = true, true },
			counts: "healthy 11 faulty 0 silent 0 policy 0 unknown 1", took: time.Second + pickEvery + 2*answerTimeout, probes: 15,
		}, {
			name: "nobody finishes, and nobody needs it", n: 4, timeout: 30 * time.Second,
			cast: func(c *cast) {
				for h := 1; h <= 4; h++ {
					c.mute[fmt.Sprintf("finished hv%d", h)] = true
				}
			},
			counts: "healthy 12 faulty 0 silent 0 policy 0 unknown 0", took: pickEvery, probes: 12,
		}, {
			// Point 3 is the last before the guest; who saw the probe there is asked, in vain.
			name: "nobody explains", n: 4, timeout: 30 * time.Second,
			cast: func(c *cast) {
				c.lost = func(s shot) bool { return s.pair == 0 && s.point > 3 }
				c.mute["explain hv2"] = true
			},
			counts: "healthy 11 faulty 0 silent 0 policy 0 unknown 1", took: time.Second + pickEvery + answerTimeout, probes: 15,
		}, {
			name: "a guest that drops", n: 4, timeout: 30 * time.Second,
			cast: func(c *cast) {
				c.lost = func(s shot) bool { return s.pair == 0 && s.point > 3 }
			},
			counts: "healthy 11 faulty 1 silent 0 policy 0 unknown 0", took: 750*time.Millisecond + pickEvery, probes: 14, // flows say why
		}, {
			name: "no time for the pace", n: 4, timeout: 400 * time.Millisecond,
			config: func(c *Config) { c.PerInstanceRate, c.PerInstanceBurst = 0.001, 1 },
			counts: "healthy 2 faulty 0 silent 0 policy 0 unknown 10", took: 300 * time.Millisecond, probes: 2,
			unknown: dyetracev1.CauseKind_CAUSE_KIND_INJECTION, // they were not sent
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				pairs, paths := pathsOf(t, site(t, tt.n), allPairs)
				cfg := testConfig
				if tt.config != nil {
					tt.config(&cfg)
				}
				c := newCast(paths)
				if tt.cast != nil {
					tt.cast(c)
				}
				got, took, whole := play(t.Context(), cfg, c, pairs, tt.timeout)
				if !whole || len(got) != len(pairs) {
					t.Errorf("whole %t, %d verdicts on %d pairs", whole, len(got), len(pairs))
				}
				if counts := countsOf(got); counts != tt.counts {
					t.Errorf("%s, want %s", counts, tt.counts)
				}
				for seq, r := range got {
					if want := tt.unknown; want != 0 && r.Verdict == dyetracev1.Verdict_VERDICT_UNKNOWN && r.CauseKind != want {
						t.Errorf("pair %d: %v: %s; want %v", seq, r.CauseKind, r.Cause, want)
					}
				}
				if took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if len(c.at) != tt.probes {
					t.Errorf("%d probes, want %d", len(c.at), tt.probes)
				}
				if len(c.finished) != 4 {
					t.Errorf("told to finish: %q, want all four, once", c.finished)
				}
			})
		})
	}
}

// TestExplainWindow has many pairs to be explained by one host: a few at a time.
func TestExplainWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pairs, paths := pathsOf(t, site(t, 12), allPairs)
		c := newCast(paths)
		toHV2 := 0
		for i := range pairs {
			if pairs[i].Dst.Host == "hv2" {
				toHV2++
			}
		}
		c.lost = func(s shot) bool {
			return pairs[s.pair].Dst.Host == "hv2" && paths[s.pair].Points[s.point].Direction == plan.Reply
		}
		c.mute["explain hv2"] = true
		cfg := testConfig
		cfg.PerInstanceRate, cfg.PerInstanceBurst = 1000, 1000
		const all = 12250 * time.Millisecond
		got, took, _ := play(t.Context(), cfg, c, pairs, all)
		// The time left after four attempts is 11.25 s: in rounds of 5 s, of which none is
		// answered, three windows are asked.
		if c.asked != 3*explainWindow {
			t.Errorf("%d explanations were asked for, want %d", c.asked, 3*explainWindow)
		}
		if took != all {
			t.Errorf("took %v, want all its time", took)
		}
		unknown := 0
		for _, r := range got {
			if r.Verdict == dyetracev1.Verdict_VERDICT_UNKNOWN {
				unknown++
			}
		}
		if unknown != toHV2 {
			t.Errorf("%d unknown, want the %d to hv2", unknown, toHV2)
		}
	})
}

// tardy are agents of which the first that is asked what becomes of a packet takes longer than the probes do, and by then
// the first probes of all turn out to have come further.
type tardy struct {
	*cast
	asked bool
}

func (a *tardy) Explain(host int, m *dyetracev1.Explain) uint64 {
	if a.asked {
		return a.cast.Explain(host, m)
	}
	a.asked = true
	id := a.number()
	time.AfterFunc(900*time.Millisecond, func() {
		a.mu.Lock()
		a.lost = func(s shot) bool { return s.point > 2 }
		first := make([]uint32, len(a.tracks))
		for i := range first {
			first[i] = uint32(i)
		}
		a.mu.Unlock()
		for h, s := range a.see(first) {
			if h != host {
				a.put(h, s)
			}
		}
		a.explained(host, id)
	})
	return id
}

// TestExplainedTooEarly has a probe be seen on another host while the first is asked what becomes of it: who is
// asked next says why it is lost.
func TestExplainedTooEarly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pairs, paths := between(t, explorable(t, 2), "hv1", "hv2")
		c := newCast(paths)
		c.lost = func(s shot) bool { return s.point > 1 }
		c.plays = &tardy{cast: c}
		c.explain = &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_DROPPED, Flow: &dyetracev1.FlowRef{Bridge: "br-tun", Table: 60}}
		results, _, _ := play(t.Context(), testConfig, c, pairs, time.Minute)
		if len(results) == 0 {
			t.Fatal("no results")
		}
		for _, r := range results {
			if r.GetCauseKind() != dyetracev1.CauseKind_CAUSE_KIND_FLOW || r.GetHost() != "hv2" {
				t.Errorf("%v at %s, %v: %s; want a flow of hv2", r.GetVerdict(), r.GetHost(), r.GetCauseKind(), r.GetCause())
			}
		}
	})
}

// TestNobodySaw has one probe of a pair be lost, as may be by chance, and others be seen by nobody, not even where they began: they do not
// bear it out.
func TestNobodySaw(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pairs, paths := between(t, explorable(t, 2), "hv1", "hv2")
		c := newCast(paths)
		c.lost = func(s shot) bool { return s.attempt > 0 || s.point > 1 }
		c.explain = &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_TUNNELLED, Port: "gre0", TunnelRemote: "10.1.0.2"}
		c.underlay = underlayOf(func(uint32) bool { return false })
		results, _, _ := play(t.Context(), testConfig, c, pairs, time.Minute)
		if len(results) == 0 {
			t.Fatal("no results")
		}
		for _, r := range results {
			if r.GetVerdict() != dyetracev1.Verdict_VERDICT_UNKNOWN || r.GetProbes() < hardAttempts {
				t.Errorf("%v after %d probes: %s; want unknown after %d and more", r.GetVerdict(), r.GetProbes(), r.GetCause(), hardAttempts)
			}
		}
	})
}

// TestInterrupt ends a run in its middle: what was judged is handed over, agents are told.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pairs, paths := pathsOf(t, site(t, 4), allPairs)
		c := newCast(paths)
		cfg := testConfig
		cfg.PerInstanceRate, cfg.PerInstanceBurst = 1, 1
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		got, took, whole := play(ctx, cfg, c, pairs, time.Minute)
		// Two of four instances' pairs at once, and again every second.
		if whole || len(got) != 6 || took != 2500*time.Millisecond || len(c.finished) != 4 {
			t.Errorf("whole %t, %d verdicts in %v, told %q", whole, len(got), took, c.finished)
		}
	})
}

// TestGone has a host go, while what it saw is still wanted.
func TestGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pairs, paths := pathsOf(t, site(t, 4), allPairs)
		c := newCast(paths)
		c.mute["injected hv3"] = true // it is on its way out
		c.lost = func(s shot) bool {
			return paths[s.pair].Points[s.point].Host == "hv3" || pairs[s.pair].Dst.Host == "hv3" && paths[s.pair].Points[s.point].Direction == plan.Reply
		}
		time.AfterFunc(100*time.Millisecond, func() {
			c.put(c.host("hv3"), fleet.Gone{Reason: "no heartbeat for 3s"})
		})
		got, took, _ := play(t.Context(), testConfig, c, pairs, 30*time.Second)
		for seq, r := range got {
			pair := pairs[seq-100]
			want := dyetracev1.Verdict_VERDICT_HEALTHY
			if pair.Src.Host == "hv3" || pair.Dst.Host == "hv3" {
				want = dyetracev1.Verdict_VERDICT_UNKNOWN
				if !strings.Contains(r.Cause, "no heartbeat") {
					t.Errorf("%v: cause %q does not tell of the agent", pair, r.Cause)
				}
			}
			if r.Verdict != want {
				t.Errorf("%v: %v (%s), want %v", pair, r.Verdict, r.Cause, want)
			}
		}
		if took > hardAttempts*testConfig.Settle+100*time.Millisecond {
			t.Errorf("took %v; a host that is gone is not waited for", took)
		}
	})
}

// TestUnhooked has a host attest its hooks, and say nothing of one bridge the next time: it is hooked no more, and what was said of it before is over.
// Of other hosts nothing changes.
func TestUnhooked(t *testing.T) {
	t.Parallel()
	pairs, paths := pathsOf(t, site(t, 4), probed("i0", "i1"))
	c := newCast(paths)
	x := newExecution(&testConfig, pace.New(10, 10), c.metrics, slog.New(slog.DiscardHandler), pairs, paths, []uint32{0}, c.options(), stain.Key{1}, time.Hour, time.Now(), c.begin)
	for host, name := range x.ledger.hosts {
		for _, m := range []any{&dyetracev1.Ready{Windows: c.windows()}, &dyetracev1.Audited{Windows: c.windows()}} {
			x.take(&fleet.Event{Host: host, Message: m}, time.Now())
		}
		for _, bridge := range []string{"br-int", "br-tun"} {
			if w := x.hooks[verdict.Place{Host: name, Bridge: bridge}]; w.Before == nil || w.After == nil {
				t.Fatalf("%s/%s: %+v, want it attested before and after", name, bridge, w)
			}
		}
	}
	hv2 := slices.Index(x.ledger.hosts, "hv2")
	for _, m := range []any{&dyetracev1.Audited{Windows: c.windows()[:1]}, &dyetracev1.Finished{Windows: c.windows()[:1]}} {
		x.take(&fleet.Event{Host: hv2, Message: &dyetracev1.Audited{Windows: c.windows()}}, time.Now())
		x.take(&fleet.Event{Host: hv2, Message: m}, time.Now())
		for place, attested := range map[verdict.Place]bool{{Host: "hv2", Bridge: "br-int"}: true, {Host: "hv2", Bridge: "br-tun"}: false, {Host: "hv1", Bridge: "br-tun"}: true} {
			if w := x.hooks[place]; (w.After != nil) != attested {
				t.Errorf("%T: %v: attested after: %t, want %t", m, place, w.After != nil, attested)
			}
		}
	}
	x.release(time.Now())
}

// TestLost has the controller itself drop samples: what they may have been is unknown.
func TestLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pairs, paths := pathsOf(t, site(t, 2), allPairs)
		c := newCast(paths)
		c.lost = func(s shot) bool { return paths[s.pair].Points[s.point].Host == "hv2" || s.point > 3 }
		c.mute["explain hv1"], c.mute["explain hv2"] = true, true
		time.AfterFunc(time.Millisecond, func() { c.put(c.host("hv2"), fleet.Lost{Samples: 9}) })
		got, _, _ := play(t.Context(), testConfig, c, pairs, 30*time.Second)
		for _, r := range got {
			if r.Verdict != dyetracev1.Verdict_VERDICT_UNKNOWN {
				t.Errorf("%v, %s; want unknown", r.Verdict, r.Cause)
			}
		}
	})
}

func TestLedger(t *testing.T) {
	t.Parallel()
	pairs, paths := pathsOf(t, site(t, 2), plan.Scope{Kind: plan.OnePair, Src: "i0", Dst: "i1"})
	c := newCast(paths)
	c.spec = fleet.Spec{Hosts: []string{"hv1", "hv2"}, Key: stain.Key{7}}
	l := newLedger(c.spec.Key, c.ps, c.tracks, 0)
	if !slices.Equal(l.hosts, c.spec.Hosts) || len(pairs) != 1 {
		t.Fatalf("hosts = %q", l.hosts)
	}
	const number = 0
	hv1 := c.see([]uint32{number})[0]
	bridge := func(m *dyetracev1.Samples, i int) int32 { return l.bridges[m.Bridges[m.Bridge[i]]] }
	if f := l.see(0, bridge(hv1, 0), hv1, 0); f != forged {
		t.Errorf("a sample of a probe that was not sent: %d", f)
	}
	l.ask(number)
	if l.leave(number+1) || !l.leave(number) || l.leave(number) {
		t.Error("only a probe that was asked for leaves, once")
	}
	wrong := c.see([]uint32{number})[0]
	wrong.AddrTag[0]++
	if f := l.see(0, bridge(wrong, 0), wrong, 0); f != forged {
		t.Errorf("other addresses: %d", f)
	}
	for i := range hv1.Index {
		if f := l.see(0, bridge(hv1, i), hv1, i); f != used {
			t.Errorf("sample %d of hv1: %d", i, f)
		}
	}
	if f := l.see(1, bridge(hv1, 0), hv1, 0); f != stray {
		t.Errorf("a sample of hv1's at hv2: %d", f)
	}
	if f := l.see(1, -1, hv1, 1); f != stray {
		t.Errorf("a sample of an unknown bridge: %d", f)
	}
	for range 2 * maxOdd {
		if f := l.see(0, bridge(hv1, 0), hv1, 0); f != doubled {
			t.Errorf("a second sample: %d", f)
		}
	}
	if !l.arrived(number) {
		t.Error("hv1 has seen the answer, and the probe has not arrived")
	}
	hv2 := c.see([]uint32{number})[1]
	hv2.TcpFlags = nil
	last := len(hv2.Index) - 1
	for i := range hv2.Index {
		want := used
		if i == last {
			want = completed
		}
		if f := l.see(1, bridge(hv2, i), hv2, i); f != want {
			t.Errorf("sample %d of hv2: %d, want %d", i, f, want)
		}
	}
	e := l.evidence(0)
	if len(e.Attempts) != 1 || len(e.Attempts[0].Seen) != 8+maxOdd || len(e.Attempts[0].Stray) != 2 || !e.Attempts[0].Injected {
		t.Errorf("evidence = %+v", e.Attempts)
	}
	for _, s := range e.Attempts[0].Seen { // hv2 tells none
		pt, want := e.Path.Points[s.Point], uint8(0)
		switch {
		case pt.Host == "hv1" && pt.Direction == plan.Reply:
			want = stain.FlagRST | stain.FlagACK
		case pt.Host == "hv1":
			want = stain.FlagSYN
		}
		if s.Flags != want {
			t.Errorf("flags at %s are %#x, want %#x", &pt, s.Flags, want)
		}
	}
	if r := verdict.Judge(e); r.Verdict != verdict.Healthy {
		t.Errorf("verdict = %v, %s", r.Verdict, r.Cause)
	}
}

func TestWorst(t *testing.T) {
	t.Parallel()
	c := &dyetracev1.Counts{}
	for _, step := range []struct {
		n    *uint32
		want dyetracev1.Verdict
	}{
		{new(uint32), dyetracev1.Verdict_VERDICT_UNSPECIFIED},
		{&c.Healthy, dyetracev1.Verdict_VERDICT_HEALTHY},
		{&c.Unknown, dyetracev1.Verdict_VERDICT_UNKNOWN},
		{&c.Policy, dyetracev1.Verdict_VERDICT_POLICY},
		{&c.Silent, dyetracev1.Verdict_VERDICT_SILENT},
		{&c.Faulty, dyetracev1.Verdict_VERDICT_FAULTY},
	} {
		*step.n++
		if got := worst(c); got != step.want {
			t.Errorf("worst(%v) = %v, want %v", c, got, step.want)
		}
	}
}

// TestFeed has watchers of all speeds read while verdicts fall.
func TestFeed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFeed(&dyetracev1.Run{Counts: &dyetracev1.Counts{}}, nil)
		const total = 500
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 40 * time.Millisecond) // they come one after the other
				var hosts []string
				var runs []*dyetracev1.Run
				err := f.watch(t.Context(), func(m *dyetracev1.WatchRunResponse) error {
					time.Sleep(time.Duration(i) * time.Millisecond) // and read ever slower
					if r := m.GetRun(); r != nil {
						runs = append(runs, r)
					} else {
						hosts = append(hosts, m.GetPair().Host)
					}
					return nil
				})
				if err != nil || len(runs) != 2 || runs[1].State != dyetracev1.RunState_RUN_STATE_DONE || runs[1].Counts.Healthy != total {
					t.Errorf("watcher %d: %v, %v", i, runs, err)
				}
				for k, h := range hosts {
					if h != fmt.Sprint(k) {
						t.Errorf("watcher %d got verdict %s as number %d", i, h, k)
						return
					}
				}
				if len(hosts) != total {
					t.Errorf("watcher %d got %d verdicts", i, len(hosts))
				}
			})
		}
		errLeave := errors.New("leave")
		if err := f.watch(t.Context(), func(*dyetracev1.WatchRunResponse) error { return errLeave }); err != errLeave {
			t.Errorf("a watcher who leaves: %v", err)
		}
		for k := range total {
			f.add([]*dyetracev1.PairResult{{Host: fmt.Sprint(k), Verdict: dyetracev1.Verdict_VERDICT_HEALTHY}})
			time.Sleep(time.Millisecond)
		}
		f.end(dyetracev1.RunState_RUN_STATE_DONE, nil, nil)
		wg.Wait()
	})
}
