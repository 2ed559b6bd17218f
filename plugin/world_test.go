package plugin

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/api/dyetrace/v1/dyetracev1connect"
	"github.com/dyetrace/dyetrace/pki"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// world is a controller with everything real around it but the switches: TLS, HTTP/2, SQLite, and
// agents that speak the protocol over the wire. What the agents see of a probe is computed from its
// path; faults say what they do not.
type world struct {
	t     testing.TB
	dir   string
	cfg   Config
	ca    *pki.CA
	files map[string]pki.Files // certificates by ROLE/NAME
	snap  *inventory.Snapshot  // what the agents go by
	// probing is how runs of this world probe; in no-touch, hosts sample what they deliver, and a
	// probe that leaves without being withheld on all its way fails the test.
	probing plan.Options

	controller *Controller // the one that was started last

	mu     sync.Mutex
	addr   string
	agents map[string]*scripted
	// rules are asked, in order, about each sighting before it is reported.
	rules []rule
	// injects counts probes by pair.
	injects map[string]int
}

// sighting is a probe at one point of its path.
type sighting struct {
	pair    plan.Pair
	attempt int // from 0
	point   plan.Expected
	index   int // of the point
}

// rule says what becomes of a sighting.
type rule func(sighting) fate

type fate uint8

const (
	seen   fate = iota
	unseen      // the agent misses it
	gone        // the packet died before: neither this point nor a later one sees it
	twice
)

// newWorld starts a controller with the lab's inventory: blue and green, four instances each, on
// one router, and red's two, on four hosts.
func newWorld(t testing.TB, change func(*Config)) *world {
	t.Helper()
	return newWorldOf(t, labInventory(), plan.Options{}, change)
}

// newWorldOf starts a controller with an inventory of the lab's hosts.
func newWorldOf(t testing.TB, instances string, probing plan.Options, change func(*Config)) *world {
	t.Helper()
	w := &world{t: t, probing: probing, dir: t.TempDir(), files: map[string]pki.Files{}, agents: map[string]*scripted{}, injects: map[string]int{}}
	ca, err := pki.CreateCA(filepath.Join(w.dir, "pki"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w.ca = ca
	inv := filepath.Join(w.dir, "inventory.yaml")
	if err := os.WriteFile(inv, []byte(instances), 0o600); err != nil {
		t.Fatal(err)
	}
	w.cfg = DefaultConfig()
	w.cfg.Listen = "127.0.0.1:0"
	w.cfg.TLS = w.cert(pki.RoleController, "controller")
	w.cfg.Store = filepath.Join(w.dir, "runs.db")
	w.cfg.Inventory = []string{inv}
	w.cfg.Version = "test"
	w.cfg.Run.PerInstanceRate, w.cfg.Run.PerInstanceBurst = 1000, 1000
	if change != nil {
		change(&w.cfg)
	}
	f, err := inventory.Load(inv)
	if err != nil {
		t.Fatal(err)
	}
	var hosts []inventory.Host
	for _, name := range labHosts {
		s := w.hostState(name, f)
		hosts = append(hosts, inventory.Host{Name: name, Connected: true, Bridges: s.Bridges, Endpoints: s.Endpoints})
	}
	w.snap = inventory.NewSnapshot(f, hosts...)
	return w
}

// unhurried has runs wait for what is late on a busy machine, and not probe again: the probes of a pair can be counted.
func unhurried(c *Config) { c.Run.Settle, c.Run.Patience = 2*time.Second, 6*time.Second }

var labHosts = []string{"hv1", "hv2", "hv3", "hv4"}

func labInventory() string {
	var b strings.Builder
	b.WriteString("networks:\n")
	for i, n := range []string{"blue", "green", "red"} {
		fmt.Fprintf(&b, "  - {name: %s, cidr: 10.0.%d.0/24, segmentation_id: %d", n, i%2+1, 101+i)
		if n != "red" {
			fmt.Fprintf(&b, ", router: r1, gateway: {ip: 10.0.%d.1, mac: \"fa:16:3e:00:0%d:01\"}", i+1, i+1)
		}
		b.WriteString("}\n")
	}
	b.WriteString("instances:\n")
	instance := func(network string, i, subnet int, host string) {
		fmt.Fprintf(&b, "  - {name: %s-%d, network: %s, ip: 10.0.%d.1%d, mac: \"fa:16:3e:00:0%d:1%d\", host: %s, port: tap-%s-%d}\n",
			network, i, network, subnet, i, subnet, i, host, network, i)
	}
	for i, host := range labHosts {
		instance("blue", i+1, 1, host)
		instance("green", i+1, 2, host)
	}
	instance("red", 1, 1, "hv1")
	instance("red", 2, 1, "hv3")
	return b.String()
}

func (w *world) hostState(host string, f inventory.File) *dyetracev1.HostState {
	kinds := func(k ...dyetracev1.PointKind) []dyetracev1.PointKind { return k }
	s := &dyetracev1.HostState{Bridges: []*dyetracev1.Bridge{
		{
			Name: "br-int", State: dyetracev1.HookState_HOOK_STATE_LIVE, UplinkBridge: "br-tun",
			Kinds: kinds(dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE, dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL),
		}, {
			Name: "br-tun", State: dyetracev1.HookState_HOOK_STATE_LIVE,
			Kinds:   kinds(dyetracev1.PointKind_POINT_KIND_TO_TUNNEL, dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL),
			Tunnels: []*dyetracev1.Tunnel{{Port: "gre0", Ofport: 5, Type: "gre", RemoteIp: "flow", LocalIp: "10.1.0." + host[2:]}},
		},
	}}
	if w.probing.NoTouch {
		s.Bridges[0].Kinds = append(s.Bridges[0].Kinds, dyetracev1.PointKind_POINT_KIND_TO_INSTANCE)
	}
	for i, in := range f.Instances {
		if in.Host == host {
			s.Endpoints = append(s.Endpoints, &dyetracev1.Endpoint{Bridge: "br-int", Port: in.Port, Ofport: uint32(10 + i), Mac: in.MAC.String(), LinkState: "up"})
		}
	}
	return s
}

func (w *world) cert(role, name string) pki.Files {
	w.t.Helper()
	key := role + "/" + name
	if f, ok := w.files[key]; ok {
		return f
	}
	r := pki.Request{Role: role, Name: name}
	if role == pki.RoleController {
		r.SANs = []string{"127.0.0.1"}
	}
	f, err := w.ca.Issue(r, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	w.files[key] = f
	return f
}

// start runs the controller; what it returns stops it, and waits. The test's end does that too.
func (w *world) start() (stop func()) {
	w.t.Helper()
	c, err := New(w.t.Context(), w.cfg, testLog(w.t))
	if err != nil {
		w.t.Fatal(err)
	}
	w.addr, w.controller = c.Addr().String(), c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("controller: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// testWriter is the log of a test.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

func (w *world) http(f pki.Files) *http.Client {
	w.t.Helper()
	config, err := pki.ClientTLS(f, "127.0.0.1")
	if err != nil {
		w.t.Fatal(err)
	}
	return w.httpTLS(config)
}

func (w *world) httpTLS(config *tls.Config) *http.Client {
	tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// user returns a client of the users' API.
func (w *world) user() dyetracev1connect.ControllerServiceClient {
	w.t.Helper()
	return dyetracev1connect.NewControllerServiceClient(w.http(w.cert(pki.RoleUser, "ann")), "https://"+w.addr)
}

// scripted is an agent that does what the protocol asks of it, and what the rules say.
type scripted struct {
	w       *world
	host    string
	hello   *dyetracev1.Hello
	silent  bool // no heartbeats
	cancel  context.CancelFunc
	done    chan struct{}
	welcome chan *dyetracev1.Welcome
	end     error // of the session; valid after done
	state   *dyetracev1.HostState

	mu      sync.Mutex
	st      *connect.BidiStreamForClient[dyetracev1.SessionRequest, dyetracev1.SessionResponse]
	keys    map[uint64]stain.Key
	windows []*dyetracev1.HookWindow
	// withheld are the probes that no guest of this host may see, to whom they are, and until when.
	withheld map[probeKey]withheld

	// What to do instead of answering; nil is to answer.
	onPrepare func(*dyetracev1.Prepare) bool
	onInject  func(*dyetracev1.Inject) bool
	onFinish  func(*dyetracev1.Finish) bool
	onArm     func(*dyetracev1.Arm) bool
	onExplain func(*dyetracev1.Explain) *dyetracev1.Explanation
}

// probeKey is a probe of a run.
type probeKey struct {
	run   uint64
	index uint32
}

type withheld struct {
	dst   netip.Addr
	until time.Time
}

// agent returns an agent that has not dialled yet.
func (w *world) agent(host string) *scripted {
	return &scripted{
		w: w, host: host,
		hello:   &dyetracev1.Hello{Protocol: 1, Host: host, Version: "test", OvsVersion: "3.1.0"},
		done:    make(chan struct{}),
		welcome: make(chan *dyetracev1.Welcome, 1),
		keys:    map[uint64]stain.Key{}, withheld: map[probeKey]withheld{},
		windows: []*dyetracev1.HookWindow{{Bridge: "br-int", Live: true, Epoch: 1}, {Bridge: "br-tun", Live: true, Epoch: 1}},
	}
}

// agents4 connects the agents of all hosts, and waits until the controller counts them as ready.
func (w *world) agents4() {
	w.t.Helper()
	for _, host := range labHosts {
		w.agent(host).dial(w.cert(pki.RoleAgent, host))
	}
	w.ready(4)
}

// ready waits until the controller counts so many hosts as ready.
func (w *world) ready(n uint32) {
	w.t.Helper()
	user := w.user()
	eventually(w.t, fmt.Sprintf("%d hosts ready", n), func() bool {
		s, err := user.GetStatus(w.t.Context(), connect.NewRequest(&dyetracev1.GetStatusRequest{}))
		return err == nil && s.Msg.HostsReady == n
	})
}

// eventually polls until so is true.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !so(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so after 15 s: %s", what)
		}
	}
}

// await returns what comes by a channel, or fails the test after a minute.
func await[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(time.Minute):
		t.Fatalf("waited a minute for %s", what)
	}
	return v
}

// dial runs the agent's session.
func (a *scripted) dial(cert pki.Files) {
	a.w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	client := dyetracev1connect.NewAgentServiceClient(a.w.http(cert), "https://"+a.w.addr)
	a.w.mu.Lock()
	a.w.agents[a.host] = a
	a.w.mu.Unlock()
	go func() {
		defer close(a.done)
		defer cancel()
		a.end = a.session(ctx, client)
	}()
	a.w.t.Cleanup(func() {
		cancel()
		<-a.done
	})
}

func (a *scripted) session(ctx context.Context, client dyetracev1connect.AgentServiceClient) error {
	st := client.Session(ctx)
	defer st.CloseResponse()
	// net/http looks at the context of a stream only once the request's body has ended.
	defer context.AfterFunc(ctx, func() { st.CloseRequest() })()
	a.mu.Lock()
	a.st = st
	a.mu.Unlock()
	a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Hello{Hello: a.hello}})
	m, err := st.Receive()
	if err != nil {
		return err
	}
	switch m := m.Message.(type) {
	case *dyetracev1.SessionResponse_Reject:
		return &rejected{m.Reject}
	case *dyetracev1.SessionResponse_Welcome:
		a.welcome <- m.Welcome
		var wg sync.WaitGroup
		defer wg.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		wg.Go(func() { a.beat(ctx, time.Duration(m.Welcome.HeartbeatMs)*time.Millisecond) })
	default:
		return fmt.Errorf("controller says %T first", m)
	}
	f, err := inventory.Load(a.w.cfg.Inventory...)
	if err != nil {
		return err
	}
	a.state = a.w.hostState(a.host, f)
	a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_State{State: a.state}})
	for {
		m, err := st.Receive()
		if err != nil {
			return err
		}
		a.obey(m)
	}
}

type rejected struct{ *dyetracev1.Reject }

func (r *rejected) Error() string { return r.Reason }

func (a *scripted) beat(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for seq := uint64(1); ; seq++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if !a.silent {
				a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Heartbeat{Heartbeat: &dyetracev1.Heartbeat{
					Sequence: seq, Counters: &dyetracev1.AgentCounters{Injected: seq},
				}}})
			}
		}
	}
}

// say sends; that the session is over is for Receive to find.
func (a *scripted) say(m *dyetracev1.SessionRequest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.st != nil {
		_ = a.st.Send(m)
	}
}

func (a *scripted) obey(m *dyetracev1.SessionResponse) {
	switch m := m.Message.(type) {
	case *dyetracev1.SessionResponse_Prepare:
		if a.onPrepare == nil || a.onPrepare(m.Prepare) {
			a.mu.Lock()
			a.keys[m.Prepare.Run] = stain.Key(m.Prepare.Key)
			a.mu.Unlock()
			a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Ready{Ready: &dyetracev1.Ready{Run: m.Prepare.Run, Windows: a.windows}}})
		}
	case *dyetracev1.SessionResponse_Inject:
		if a.onInject == nil || a.onInject(m.Inject) {
			a.inject(m.Inject)
		}
	case *dyetracev1.SessionResponse_Finish:
		if a.onFinish == nil || a.onFinish(m.Finish) {
			a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Finished{Finished: &dyetracev1.Finished{Run: m.Finish.Run, Windows: a.windows}}})
		}
	case *dyetracev1.SessionResponse_Arm:
		if a.onArm == nil || a.onArm(m.Arm) {
			a.arm(m.Arm)
		}
	case *dyetracev1.SessionResponse_Refresh:
		a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_State{State: a.state}})
		a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Refreshed{Refreshed: &dyetracev1.Refreshed{Id: m.Refresh.Id}}})
	case *dyetracev1.SessionResponse_Explain:
		x := &dyetracev1.Explanation{Error: "nobody taught me"}
		if a.onExplain != nil {
			x = a.onExplain(m.Explain)
		}
		x.Id = m.Explain.Id
		a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Explanation{Explanation: x}})
	}
}

// arm withholds what it is asked to, if the ports are there.
func (a *scripted) arm(m *dyetracev1.Arm) {
	armed := &dyetracev1.Armed{Run: m.Run, Id: m.Id}
	for _, p := range slices.Concat(m.Answers, m.WithholdAt) {
		if !slices.ContainsFunc(a.state.Endpoints, func(e *dyetracev1.Endpoint) bool { return e.Bridge == p.Bridge && e.Port == p.Port }) {
			armed.Error = fmt.Sprintf("%s is not on %s", p.Port, p.Bridge)
		}
	}
	if armed.Error == "" {
		a.mu.Lock()
		for i, index := range m.Withhold {
			a.withheld[probeKey{m.Run, index}] = withheld{
				netip.AddrFrom16([16]byte(m.WithholdDst[16*i : 16*i+16])).Unmap(),
				time.Now().Add(time.Duration(m.WithholdMs) * time.Millisecond),
			}
		}
		a.mu.Unlock()
	}
	a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Armed{Armed: armed}})
}

// touches says which guest would see a probe that leaves now, where none may; empty if none would.
func (w *world) touches(pair plan.Pair, key probeKey, dst netip.Addr) string {
	path, err := plan.Of(w.snap, pair, w.probing)
	if err != nil {
		return err.Error()
	}
	if !w.probing.NoTouch {
		return ""
	}
	for _, host := range path.Hosts() {
		w.mu.Lock()
		a := w.agents[host]
		w.mu.Unlock()
		a.mu.Lock()
		kept := a.withheld[key]
		a.mu.Unlock()
		if kept.dst != dst || time.Now().After(kept.until) {
			return fmt.Sprintf("probe %d of %v is not withheld at %s", key.index, pair, host)
		}
	}
	return ""
}

// inject does what happens when probes are injected: they leave, and all agents on their way see
// them as the rules say.
func (a *scripted) inject(m *dyetracev1.Inject) {
	left := &dyetracev1.Injected{Run: m.Run}
	seen := map[string]*dyetracev1.Samples{}
	for i, index := range m.Index {
		pair, err := a.w.pairOf(a.host, m.Ports[m.Port[i]].Port, m.DstIp[16*i:16*i+16])
		if err != nil {
			left.Failures = append(left.Failures, &dyetracev1.InjectFailure{Index: index, Reason: err.Error()})
			continue
		}
		dst := netip.AddrFrom16([16]byte(m.DstIp[16*i : 16*i+16])).Unmap()
		if why := a.w.touches(pair, probeKey{m.Run, index}, dst); why != "" {
			a.w.t.Error(why)
			left.Failures = append(left.Failures, &dyetracev1.InjectFailure{Index: index, Reason: why})
			continue
		}
		left.Index, left.AtNs = append(left.Index, index), append(left.AtNs, uint64(time.Now().UnixNano()))
		a.w.travel(pair, func(host string) *dyetracev1.Samples {
			if seen[host] == nil {
				seen[host] = &dyetracev1.Samples{Run: m.Run, Bridges: []string{"br-int", "br-tun"}}
			}
			return seen[host]
		}, index, a.key(m.Run), m.Scheme)
	}
	a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Injected{Injected: left}})
	for host, s := range seen {
		a.w.mu.Lock()
		other := a.w.agents[host]
		a.w.mu.Unlock()
		if other != nil {
			other.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Samples{Samples: s}})
		}
	}
}

func (a *scripted) key(run uint64) stain.Key {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keys[run]
}

// pairOf finds whom a probe is from and to.
func (w *world) pairOf(host, port string, dst []byte) (plan.Pair, error) {
	var p plan.Pair
	ip := netip.AddrFrom16([16]byte(dst)).Unmap()
	for _, in := range w.snap.Instances() {
		if in.Host == host && in.Port == port {
			p.Src = in
		}
	}
	for _, in := range w.snap.Instances() {
		if slices.Contains(in.IPs, ip) && plan.Joined(w.snap, p.Src.Network, in.Network) {
			p.Dst = in
		}
	}
	if p.Src.Name == "" || p.Dst.Name == "" {
		return p, fmt.Errorf("no instance at %s/%s, or none that has %s", host, port, ip)
	}
	return p, nil
}

// travel adds what all hosts see of a probe to their samples.
func (w *world) travel(pair plan.Pair, of func(host string) *dyetracev1.Samples, index uint32, key stain.Key, scheme dyetracev1.Scheme) {
	path, err := plan.Of(w.snap, pair, w.probing)
	if err != nil {
		w.t.Errorf("path of %v: %v", pair, err)
		return
	}
	w.mu.Lock()
	attempt := w.injects[pair.String()]
	w.injects[pair.String()]++
	rules := slices.Clone(w.rules)
	w.mu.Unlock()
	for i, pt := range path.Points {
		f := seen
		for _, r := range rules {
			if f = r(sighting{pair, attempt, pt, i}); f != seen {
				break
			}
		}
		switch f {
		case gone:
			return
		case twice:
			addSample(of(pt.Host), path, i, index, key, scheme)
			fallthrough
		case seen:
			addSample(of(pt.Host), path, i, index, key, scheme)
		}
	}
}

func addSample(s *dyetracev1.Samples, path plan.Path, i int, index uint32, key stain.Key, scheme dyetracev1.Scheme) {
	pt := path.Points[i]
	src, dst := path.Src, path.Dst
	if pt.Direction == plan.Reply {
		src, dst = dst, src
	}
	s.Index = append(s.Index, index)
	s.Bridge = append(s.Bridge, uint32(slices.Index(s.Bridges, pt.Bridge)))
	s.Kind = append(s.Kind, dyetracev1.PointKind(pt.Kind))
	s.AtNs = append(s.AtNs, uint64(1_000_000+40_000*i))
	s.AddrTag = append(s.AddrTag, stain.AddrTag(key, src, dst))
	s.Ttl = append(s.Ttl, uint32(pt.TTL))
	port := uint32(7)
	if pt.OFPort != 0 {
		port = pt.OFPort
	}
	s.InPort = append(s.InPort, port)
	s.TunSrc = append(s.TunSrc, 0)
	s.TunId = append(s.TunId, 0)
	s.Reply = append(s.Reply, pt.Direction == plan.Reply)
	s.NoReply = append(s.NoReply, false)
	s.Scheme = append(s.Scheme, scheme)
}

// rule adds a rule.
func (w *world) rule(r rule) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rules = append(w.rules, r)
}

// watched is a run as a watcher saw it.
type watched struct {
	first, last *dyetracev1.Run
	pairs       map[string]*dyetracev1.PairResult
}

var errStop = errors.New("enough")

// watch watches a run to its end, and checks that each verdict comes once. until, if any, stops it
// early.
func (w *world) watch(ctx context.Context, user dyetracev1connect.ControllerServiceClient, id string, until func(*watched) bool) (*watched, error) {
	st, err := user.WatchRun(ctx, connect.NewRequest(&dyetracev1.WatchRunRequest{Id: id}))
	if err != nil {
		return nil, err
	}
	defer st.Close()
	got := &watched{pairs: map[string]*dyetracev1.PairResult{}}
	for st.Receive() {
		switch e := st.Msg().Event.(type) {
		case *dyetracev1.WatchRunResponse_Run:
			if got.first == nil {
				got.first = e.Run
			} else if got.last == nil {
				got.last = e.Run
			} else {
				return got, fmt.Errorf("the run came a third time: %v", e.Run)
			}
		case *dyetracev1.WatchRunResponse_Pair:
			name := nameOf(e.Pair)
			if got.first == nil || got.last != nil {
				return got, fmt.Errorf("verdict on %s came before the run, or after its end", name)
			}
			if _, twice := got.pairs[name]; twice {
				return got, fmt.Errorf("verdict on %s came twice", name)
			}
			got.pairs[name] = e.Pair
		}
		if until != nil && until(got) {
			return got, errStop
		}
	}
	return got, st.Err()
}

func nameOf(p *dyetracev1.PairResult) string {
	return fmt.Sprintf("%s/%s → %s/%s", p.Src.Network, p.Src.Name, p.Dst.Network, p.Dst.Name)
}

func all() *dyetracev1.Scope { return &dyetracev1.Scope{Scope: &dyetracev1.Scope_All{All: true}} }

func onePair(src, dst string) *dyetracev1.Scope {
	return &dyetracev1.Scope{Scope: &dyetracev1.Scope_Pair{Pair: &dyetracev1.PairScope{Src: src, Dst: dst}}}
}

// check starts a run and watches it to its end.
func (w *world) check(scope *dyetracev1.Scope, timeout time.Duration) *watched {
	w.t.Helper()
	return w.checkBy(scope, nil, timeout)
}

// checkBy is check with options.
func (w *world) checkBy(scope *dyetracev1.Scope, opts *dyetracev1.ProbeOptions, timeout time.Duration) *watched {
	w.t.Helper()
	user := w.user()
	res, err := user.StartRun(w.t.Context(), connect.NewRequest(&dyetracev1.StartRunRequest{Scope: scope, Options: opts, TimeoutMs: uint32(timeout.Milliseconds())}))
	if err != nil {
		w.t.Fatal(err)
	}
	got, err := w.watch(w.t.Context(), user, res.Msg.Run.Id, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}
