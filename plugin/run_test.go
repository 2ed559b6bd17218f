package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/pki"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

const labPairs = 58

func TestRunHealthy(t *testing.T) {
	t.Parallel()
	// The pace that users get: the lab's run need not wait for it.
	w := newWorld(t, func(c *Config) { c.Run = DefaultConfig().Run; unhurried(c) })
	w.start()
	w.agents4()
	got := w.check(all(), 0)
	if got.last.GetState() != dyetracev1.RunState_RUN_STATE_DONE || got.last.Verdict != dyetracev1.Verdict_VERDICT_HEALTHY ||
		got.last.Counts.Healthy != labPairs || got.last.Total != labPairs || len(got.pairs) != labPairs {
		t.Errorf("run = %v with %d pairs", got.last, len(got.pairs))
	}
	probes := make(map[string]int) // by instance
	for name, p := range got.pairs {
		probes[p.Src.Network+"/"+p.Src.Name]++
		probes[p.Dst.Network+"/"+p.Dst.Name]++
		if p.Cause != "" || p.Probes != 1 || p.Segment != nil || p.RttNs <= 0 {
			t.Errorf("%s: %v", name, p)
		}
		for _, s := range p.Samples {
			if !s.Seen {
				t.Errorf("%s: %v not seen", name, s.Point)
			}
		}
	}
	for instance, n := range probes {
		if n > w.cfg.Run.PerInstanceBurst {
			t.Errorf("%s has %d probes, which is more than a burst", instance, n)
		}
	}
	if p := got.pairs["blue/blue-1 → green/green-2"]; len(p.GetSamples()) != 8 || p.Samples[1].Ttl != 63 {
		t.Errorf("routed pair: %v", p)
	}
	if p := got.pairs["blue/blue-1 → green/green-1"]; len(p.GetSamples()) != 2 {
		t.Errorf("pair on one host: %v", p)
	}
}

// at returns a rule for one pair, by name, and one point of its path.
func at(pair string, index int, f fate) rule {
	return func(s sighting) fate {
		if s.pair.String() == pair && s.index == index {
			return f
		}
		return seen
	}
}

func TestRunFaults(t *testing.T) {
	t.Parallel()
	const pair = "blue/blue-1 → blue/blue-2"
	drop := func(*dyetracev1.Explain) *dyetracev1.Explanation {
		return &dyetracev1.Explanation{
			Outcome: dyetracev1.Outcome_OUTCOME_DROPPED,
			Flow:    &dyetracev1.FlowRef{Bridge: "br-int", Table: 60, Priority: 90, Match: "ip,nw_dst=10.0.1.12"},
			Command: "ovs-appctl ofproto/trace …",
		}
	}
	deliver := func(*dyetracev1.Explain) *dyetracev1.Explanation {
		return &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_DELIVERED, Port: "tap-blue-2"}
	}
	tests := []struct {
		name    string
		rule    rule
		explain func(*dyetracev1.Explain) *dyetracev1.Explanation // of all agents
		agents  func(map[string]*scripted)
		verdict dyetracev1.Verdict
		probes  uint32
		cause   dyetracev1.CauseKind
		segment string // kinds, from → to
		// arrives: some of its probes do, so that more are sent if one is late.
		arrives bool
	}{
		{
			name: "lost in the tunnel", rule: at(pair, 2, gone),
			verdict: dyetracev1.Verdict_VERDICT_FAULTY, probes: 6, cause: dyetracev1.CauseKind_CAUSE_KIND_BETWEEN_HOSTS, segment: "hv1/br-tun to-tunnel → hv2/br-tun from-tunnel",
		},
		{
			name: "dropped before the guest", rule: at(pair, 4, gone), explain: drop,
			verdict: dyetracev1.Verdict_VERDICT_FAULTY, probes: 5, cause: dyetracev1.CauseKind_CAUSE_KIND_FLOW, segment: "hv2/br-int from-tunnel → hv2/br-int from-instance",
		},
		{
			name: "guest does not answer", rule: at(pair, 4, gone), explain: deliver,
			verdict: dyetracev1.Verdict_VERDICT_SILENT, probes: 6, cause: dyetracev1.CauseKind_CAUSE_KIND_GUEST_SILENT,
		},
		{
			name: "nobody explains", rule: at(pair, 4, gone),
			verdict: dyetracev1.Verdict_VERDICT_UNKNOWN, probes: 8, cause: dyetracev1.CauseKind_CAUSE_KIND_UNEXPLAINED,
		},
		{
			name: "one sample missed", rule: at(pair, 3, unseen), arrives: true,
			verdict: dyetracev1.Verdict_VERDICT_HEALTHY, probes: 1, cause: dyetracev1.CauseKind_CAUSE_KIND_SAMPLES,
		},
		{
			name: "first probe lost", arrives: true,
			rule: func(s sighting) fate {
				if s.pair.String() == pair && s.attempt == 0 && s.index == 5 {
					return gone
				}
				return seen
			},
			verdict: dyetracev1.Verdict_VERDICT_HEALTHY, probes: 24, cause: dyetracev1.CauseKind_CAUSE_KIND_LOSS,
		},
		{
			name: "hook gone meanwhile", rule: at(pair, 2, gone),
			agents: func(all map[string]*scripted) {
				a := all["hv2"]
				a.onFinish = func(*dyetracev1.Finish) bool {
					a.windows = []*dyetracev1.HookWindow{{Bridge: "br-int", Live: true, Epoch: 2}, {Bridge: "br-tun", Live: true, Epoch: 2}}
					return true
				}
				all["hv1"].windows = []*dyetracev1.HookWindow{{Bridge: "br-int", Reason: "wiped"}, {Bridge: "br-tun", Reason: "wiped"}}
			},
			verdict: dyetracev1.Verdict_VERDICT_UNKNOWN, probes: 6, cause: dyetracev1.CauseKind_CAUSE_KIND_HOOK,
		},
		{
			name: "port absent", arrives: true, // what it is answered
			agents: func(all map[string]*scripted) {
				a := all["hv1"]
				a.onInject = func(m *dyetracev1.Inject) bool {
					failed := &dyetracev1.Injected{Run: m.Run}
					for _, i := range m.Index {
						failed.Failures = append(failed.Failures, &dyetracev1.InjectFailure{Index: i, Reason: "no such port", PortAbsent: true})
					}
					a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Injected{Injected: failed}})
					return false
				}
			},
			verdict: dyetracev1.Verdict_VERDICT_FAULTY, probes: 1, cause: dyetracev1.CauseKind_CAUSE_KIND_PORT,
		},
		{
			name: "seen twice", rule: at(pair, 2, twice), arrives: true,
			verdict: dyetracev1.Verdict_VERDICT_HEALTHY, probes: 1, cause: dyetracev1.CauseKind_CAUSE_KIND_DUPLICATE,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(c *Config) {
				if tt.arrives {
					unhurried(c)
				}
				c.Run.Patience = 0
			})
			w.start()
			if tt.rule != nil {
				w.rule(tt.rule)
			}
			all := map[string]*scripted{}
			for _, host := range labHosts {
				all[host] = w.agent(host)
				all[host].onExplain = tt.explain
			}
			if tt.agents != nil {
				tt.agents(all)
			}
			for host, a := range all {
				a.dial(w.cert(pki.RoleAgent, host))
			}
			w.ready(4)
			got := w.check(onePair("blue-1", "blue-2"), 20*time.Second)
			p := got.pairs[pair]
			if p == nil {
				t.Fatalf("no verdict: %v", got.last)
			}
			t.Logf("%v: %s", p.Verdict, p.Cause)
			if p.Verdict != tt.verdict || p.Probes != tt.probes || p.CauseKind != tt.cause {
				t.Errorf("%v, %d probes, %v: %s; want %v, %d, %v", p.Verdict, p.Probes, p.CauseKind, p.Cause, tt.verdict, tt.probes, tt.cause)
			}
			if s := segmentOf(p); tt.segment != "" && s != tt.segment {
				t.Errorf("segment = %q, want %q", s, tt.segment)
			}
			if got.last.Verdict != tt.verdict {
				t.Errorf("run's verdict = %v", got.last.Verdict)
			}
		})
	}
}

func segmentOf(p *dyetracev1.PairResult) string {
	word := func(pt *dyetracev1.Point) string {
		return pt.GetHost() + "/" + pt.GetBridge() + " " + stain.Kind(pt.GetKind()).String()
	}
	if p.Segment == nil {
		return ""
	}
	return word(p.Segment.From) + " → " + word(p.Segment.To)
}

// TestDisconnect has an agent go in mid-run: what it should have seen is unknown, what did not
// need it is healthy.
func TestDisconnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Run.Settle, c.Run.Patience = 50*time.Millisecond, 0 })
	w.start()
	for _, host := range labHosts {
		a := w.agent(host)
		if host == "hv2" {
			a.onInject = func(*dyetracev1.Inject) bool {
				a.cancel()
				return false
			}
			// Nor is anything that others send through it seen.
			w.rule(func(s sighting) fate {
				if s.point.Host == "hv2" {
					return unseen
				}
				return seen
			})
		}
		a.dial(w.cert(pki.RoleAgent, host))
	}
	w.ready(4)
	w.rule(func(s sighting) fate { // and nothing gets through it
		if s.pair.Dst.Host == "hv2" && s.index >= 2 {
			return gone
		}
		return seen
	})
	got := w.check(all(), 20*time.Second)
	if got.last.State != dyetracev1.RunState_RUN_STATE_DONE || len(got.pairs) != labPairs {
		t.Fatalf("run = %v, %d verdicts", got.last, len(got.pairs))
	}
	for name, p := range got.pairs {
		want := dyetracev1.Verdict_VERDICT_HEALTHY
		if strings.HasSuffix(p.Src.Name, "-2") && p.Src.Network != "red" || strings.HasSuffix(p.Dst.Name, "-2") && p.Dst.Network != "red" {
			want = dyetracev1.Verdict_VERDICT_UNKNOWN
		}
		if p.Verdict != want {
			t.Errorf("%s: %v (%s), want %v", name, p.Verdict, p.Cause, want)
		}
	}
}

// TestTimeout has agents that never answer one thing or another: the run ends in time, and knows
// nothing.
func TestTimeout(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*scripted){
		"prepare": func(a *scripted) { a.onPrepare = func(*dyetracev1.Prepare) bool { return false } },
		"inject":  func(a *scripted) { a.onInject = func(*dyetracev1.Inject) bool { return false } },
		"finish":  func(a *scripted) { a.onFinish = func(*dyetracev1.Finish) bool { return false } },
	}
	for name, deaf := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const giveUp = time.Minute // what a run with time would wait
			w := newWorld(t, func(c *Config) {
				c.Run.Settle, c.Run.Patience, c.Run.AnswerTimeout = 20*time.Millisecond, 0, giveUp
			})
			w.start()
			// Something is wrong, so that all of this is needed for a verdict.
			w.rule(at("blue/blue-1 → blue/blue-2", 2, gone))
			for _, host := range labHosts {
				a := w.agent(host)
				deaf(a)
				a.dial(w.cert(pki.RoleAgent, host))
			}
			w.ready(4)
			began := time.Now()
			got := w.check(onePair("blue-1", "blue-2"), time.Second)
			if took := time.Since(began); took >= giveUp {
				t.Errorf("took %v with a timeout of 1s", took)
			}
			for pair, p := range got.pairs {
				t.Logf("%s: %s", pair, p.Cause)
			}
			if c := got.last.Counts; c.Unknown != 1 || got.last.State != dyetracev1.RunState_RUN_STATE_DONE {
				t.Errorf("run = %v, want one unknown", got.last)
			}
		})
	}
}

// TestWatch has watchers come at the beginning, in the middle and after the end; each must get
// every verdict once.
func TestWatch(t *testing.T) {
	t.Parallel()
	// Six a second for each instance: the run takes some two seconds.
	w := newWorld(t, func(c *Config) { c.Run.PerInstanceRate, c.Run.PerInstanceBurst = 6, 2 })
	w.start()
	w.agents4()
	user := w.user()
	res, err := user.StartRun(t.Context(), connect.NewRequest(&dyetracev1.StartRunRequest{Scope: all()}))
	if err != nil {
		t.Fatal(err)
	}
	id := res.Msg.Run.Id
	type outcome struct {
		*watched
		err error
	}
	results := make(chan outcome)
	begin := func() {
		go func() {
			got, err := w.watch(t.Context(), w.user(), id, nil)
			results <- outcome{got, err}
		}()
	}
	begin()
	// One that leaves in the middle, and tells the next to begin.
	got, err := w.watch(t.Context(), user, id, func(g *watched) bool { return len(g.pairs) >= 10 })
	if !errors.Is(err, errStop) || got.first.State != dyetracev1.RunState_RUN_STATE_RUNNING {
		t.Fatalf("run was over before it could be watched: %v, %v", got.last, err)
	}
	begin()
	begin()
	for range 3 {
		r := <-results
		if r.err != nil || len(r.pairs) != labPairs || r.last.GetCounts().GetHealthy() != labPairs {
			t.Errorf("watcher got %d verdicts, %v, %v", len(r.pairs), r.last, r.err)
		}
	}
	late, err := w.watch(t.Context(), user, id[:8], nil)
	if err != nil || len(late.pairs) != labPairs || late.first.State != dyetracev1.RunState_RUN_STATE_DONE {
		t.Errorf("after the end: %d verdicts, %v, %v", len(late.pairs), late.first, err)
	}
	run, err := user.GetRun(t.Context(), connect.NewRequest(&dyetracev1.GetRunRequest{Id: id}))
	if err != nil || len(run.Msg.Pairs) != labPairs {
		t.Fatalf("GetRun: %d pairs, %v", len(run.Msg.GetPairs()), err)
	}
	if diff := cmp.Diff(late.last, run.Msg.Run, protocmp.Transform()); diff != "" {
		t.Errorf("WatchRun and GetRun differ (-watched +got):\n%s", diff)
	}
	for _, p := range run.Msg.Pairs {
		if diff := cmp.Diff(late.pairs[nameOf(p)], p, protocmp.Transform()); diff != "" {
			t.Errorf("%s: WatchRun and GetRun differ:\n%s", nameOf(p), diff)
		}
	}
}

// TestContinuousLatencies reads a continuous run, of which agents tell how long its probes take: none of that is told with verdicts.
func TestContinuousLatencies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Run.PerInstanceRate = 100 })
	w.start()
	w.agents4()
	user := w.user()
	res, err := user.StartRun(t.Context(), connect.NewRequest(&dyetracev1.StartRunRequest{
		Scope: all(), Options: &dyetracev1.ProbeOptions{Scheme: dyetracev1.Scheme_SCHEME_TCP, Continuous: true},
	}))
	if err != nil {
		t.Fatal(err)
	}
	id := res.Msg.Run.Id
	got, err := w.watch(t.Context(), user, id, func(g *watched) bool { return len(g.pairs) == labPairs })
	if !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	for _, p := range got.pairs {
		if len(p.Latencies) > 0 {
			t.Errorf("%s was told with latencies: %v", nameOf(p), p.Latencies)
		}
	}
	read := func() []*dyetracev1.PairResult {
		run, err := user.GetRun(t.Context(), connect.NewRequest(&dyetracev1.GetRunRequest{Id: id}))
		if err != nil {
			t.Fatal(err)
		}
		return run.Msg.Pairs
	}
	var pairs []*dyetracev1.PairResult
	eventually(t, "two probes of each pair", func() bool {
		pairs = read()
		few := func(l *dyetracev1.Latency) bool { return l.Samples < 2 }
		return !slices.ContainsFunc(pairs, func(p *dyetracev1.PairResult) bool {
			return len(p.Latencies) == 0 || slices.ContainsFunc(p.Latencies, few)
		})
	})
	for _, p := range pairs {
		kinds := map[dyetracev1.LatencyKind]int{}
		for _, l := range p.Latencies {
			kinds[l.Kind]++
			// Agents of this world see a packet 40 µs after it was at the point before, however far away that is.
			if least := l.Kind != dyetracev1.LatencyKind_LATENCY_KIND_TUNNEL; l.P50Ns > l.P99Ns || l.P99Ns > l.MaxNs || least && l.MaxNs < 40_000 || l.Samples < 2 {
				t.Errorf("%s: %v", nameOf(p), l)
			}
		}
		if rtt := p.Latencies[0]; rtt.Kind != dyetracev1.LatencyKind_LATENCY_KIND_RTT || rtt.MaxNs != p.RttNs ||
			kinds[dyetracev1.LatencyKind_LATENCY_KIND_SWITCH] == 0 && kinds[dyetracev1.LatencyKind_LATENCY_KIND_TUNNEL] > 0 || kinds[dyetracev1.LatencyKind_LATENCY_KIND_GUEST] != 1 {
			t.Errorf("%s: %v, want a round trip of %d ns, and its parts", nameOf(p), p.Latencies, p.RttNs)
		}
	}
	if _, err := user.CancelRun(t.Context(), connect.NewRequest(&dyetracev1.CancelRunRequest{Id: id})); err != nil {
		t.Fatal(err)
	}
	for _, p := range read() {
		if len(p.Latencies) > 0 {
			t.Errorf("%s of a run that is over: %v", nameOf(p), p.Latencies)
		}
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Run.PerInstanceRate, c.Run.PerInstanceBurst = 0.001, 1 })
	w.start()
	finished := make(chan uint64, 8)
	for _, host := range labHosts {
		a := w.agent(host)
		a.onFinish = func(m *dyetracev1.Finish) bool {
			finished <- m.Run
			return true
		}
		a.dial(w.cert(pki.RoleAgent, host))
	}
	w.ready(4)
	user := w.user()
	res, err := user.StartRun(t.Context(), connect.NewRequest(&dyetracev1.StartRunRequest{Scope: all()}))
	if err != nil {
		t.Fatal(err)
	}
	id := res.Msg.Run.Id
	var cancelled *dyetracev1.Run
	got, err := w.watch(t.Context(), user, id, func(g *watched) bool {
		if len(g.pairs) == 1 && cancelled == nil {
			res, err := user.CancelRun(t.Context(), connect.NewRequest(&dyetracev1.CancelRunRequest{Id: id}))
			if err != nil {
				t.Error(err)
			}
			cancelled = res.Msg.GetRun()
		}
		return false
	})
	if err != nil || got.last.GetState() != dyetracev1.RunState_RUN_STATE_CANCELLED || cancelled.GetState() != dyetracev1.RunState_RUN_STATE_CANCELLED {
		t.Fatalf("watched %v, %v; cancelled %v", got.last, err, cancelled)
	}
	if n := int(got.last.Counts.Healthy); n != len(got.pairs) || n == labPairs {
		t.Errorf("%d verdicts, counts %v", len(got.pairs), got.last.Counts)
	}
	for range labHosts {
		await(t, "every agent to be told", finished)
	}
	for _, tt := range []struct {
		what string
		err  error
	}{
		{"cancel twice", second(user.CancelRun(t.Context(), connect.NewRequest(&dyetracev1.CancelRunRequest{Id: id})))},
		{"resume", second(user.ResumeRun(t.Context(), connect.NewRequest(&dyetracev1.ResumeRunRequest{Id: id})))},
	} {
		if connect.CodeOf(tt.err) != connect.CodeFailedPrecondition {
			t.Errorf("%s a cancelled run: %v", tt.what, tt.err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestResume stops the controller in mid-run and starts another on the same store.
func TestResume(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Run.PerInstanceRate, c.Run.PerInstanceBurst = 0.001, 1 })
	stop := w.start()
	w.agents4()
	user := w.user()
	res, err := user.StartRun(t.Context(), connect.NewRequest(&dyetracev1.StartRunRequest{Scope: all(), TimeoutMs: 60_000}))
	if err != nil {
		t.Fatal(err)
	}
	id := res.Msg.Run.Id
	stopped := make(chan struct{})
	once := sync.OnceFunc(func() { go func() { stop(); close(stopped) }() })
	before, err := w.watch(t.Context(), user, id, func(g *watched) bool {
		if len(g.pairs) == 3 { // more than once, if the run's end is told next
			once()
		}
		return false
	})
	await(t, "the controller's end", stopped)
	if err != nil || before.last.GetState() != dyetracev1.RunState_RUN_STATE_INTERRUPTED {
		t.Fatalf("watcher of the run that was interrupted: %v, %v", before.last, err)
	}

	w.cfg.Run.PerInstanceRate, w.cfg.Run.PerInstanceBurst = 1000, 1000
	w.start()
	w.agents4()
	user = w.user()
	got, err := w.watch(t.Context(), user, id, nil)
	if err != nil || got.last.State != dyetracev1.RunState_RUN_STATE_INTERRUPTED || len(got.pairs) < len(before.pairs) {
		t.Fatalf("after the restart: %v with %d verdicts, %v; watchers had %d", got.last, len(got.pairs), err, len(before.pairs))
	}
	probed := map[string]int{}
	w.mu.Lock()
	for name, n := range w.injects {
		probed[name] = n
	}
	w.mu.Unlock()

	resumed, err := user.ResumeRun(t.Context(), connect.NewRequest(&dyetracev1.ResumeRunRequest{Id: id}))
	if err != nil || resumed.Msg.Run.State != dyetracev1.RunState_RUN_STATE_RUNNING {
		t.Fatalf("ResumeRun: %v, %v", resumed, err)
	}
	after, err := w.watch(t.Context(), user, id, nil)
	if err != nil || after.last.State != dyetracev1.RunState_RUN_STATE_DONE || len(after.pairs) != labPairs || after.last.Counts.Healthy != labPairs {
		t.Fatalf("after resuming: %v with %d verdicts, %v", after.last, len(after.pairs), err)
	}
	for name, p := range got.pairs {
		if diff := cmp.Diff(p, after.pairs[name], protocmp.Transform()); diff != "" {
			t.Errorf("%s was judged before, and differs now:\n%s", name, diff)
		}
		if w.injects[name] != probed[name] {
			t.Errorf("%s was judged before, and probed again", name)
		}
	}
	if _, err := user.ResumeRun(t.Context(), connect.NewRequest(&dyetracev1.ResumeRunRequest{Id: id})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("resuming twice: %v", err)
	}
}

// dualInventory is four instances of a network with both IP versions, on the lab's hosts, and two of
// one with IPv4 alone.
func dualInventory() string {
	var b strings.Builder
	b.WriteString("networks:\n  - {name: blue, cidr: [10.0.1.0/24, \"fd00:1::/64\"], segmentation_id: 101}\n")
	b.WriteString("  - {name: red, cidr: 10.0.3.0/24, segmentation_id: 103}\ninstances:\n")
	for i, host := range labHosts {
		fmt.Fprintf(&b, "  - {name: blue-%d, network: blue, ip: [10.0.1.1%d, \"fd00:1::1%d\"], mac: \"fa:16:3e:00:01:1%d\", host: %s, port: tap-blue-%d}\n", i, i, i, i, host, i)
	}
	for i, host := range labHosts[:2] {
		fmt.Fprintf(&b, "  - {name: red-%d, network: red, ip: 10.0.3.1%d, mac: \"fa:16:3e:00:03:1%d\", host: %s, port: tap-red-%d}\n", i, i, i, host, i)
	}
	return b.String()
}

const dualPairs = 12 // over IPv6

var (
	untouched = &dyetracev1.ProbeOptions{
		Scheme: dyetracev1.Scheme_SCHEME_ICMP, IpVersion: dyetracev1.IPVersion_IP_VERSION_6, NoTouch: true,
	}
	probingUntouched = plan.Options{Version: inventory.IPv6, NoTouch: true}
)

// checkUntouched checks what is said of a healthy pair in no-touch over IPv6 by icmp.
func checkUntouched(t *testing.T, name string, p *dyetracev1.PairResult) {
	t.Helper()
	if p.Verdict != dyetracev1.Verdict_VERDICT_HEALTHY || p.Cause != "" || p.Probes != 2 || !p.NoTouch ||
		p.Scheme != dyetracev1.Scheme_SCHEME_ICMP || !strings.HasPrefix(p.SrcIp, "fd00:1::1") || !strings.HasPrefix(p.DstIp, "fd00:1::1") {
		t.Errorf("%s: %v", name, p)
	}
	// Out by two bridges, in by two, and to the instance; both ways.
	reply := 0
	for _, s := range p.Samples {
		if s.Direction == dyetracev1.Direction_DIRECTION_REPLY {
			reply++
		}
		if !s.Seen {
			t.Errorf("%s: %v not seen", name, s.Point)
		}
	}
	if len(p.Samples) != 10 || reply != 5 {
		t.Errorf("%s: %d samples, %d of the way back", name, len(p.Samples), reply)
	}
}

// TestResumeOptions stops the controller in the middle of a run that has options, and starts another
// on the same store: what is left is probed as was asked for.
func TestResumeOptions(t *testing.T) {
	t.Parallel()
	w := newWorldOf(t, dualInventory(), probingUntouched, unhurried)
	stop := w.start()
	for _, host := range labHosts {
		a := w.agent(host)
		if host == "hv4" { // what it must withhold waits
			a.onArm = func(*dyetracev1.Arm) bool { return false }
		}
		a.dial(w.cert(pki.RoleAgent, host))
	}
	w.ready(4)
	user := w.user()
	res, err := user.StartRun(t.Context(), connect.NewRequest(&dyetracev1.StartRunRequest{Scope: all(), Options: untouched}))
	if err != nil {
		t.Fatal(err)
	}
	id := res.Msg.Run.Id
	stopped := make(chan struct{})
	before, err := w.watch(t.Context(), user, id, func(g *watched) bool {
		if len(g.pairs) == dualPairs/2 && g.last == nil {
			go func() { stop(); close(stopped) }()
		}
		return false
	})
	await(t, "the controller's end", stopped)
	if err != nil || before.last.GetState() != dyetracev1.RunState_RUN_STATE_INTERRUPTED || len(before.pairs) != dualPairs/2 {
		t.Fatalf("the run that was interrupted: %v with %d verdicts, %v", before.last, len(before.pairs), err)
	}

	w.start()
	w.agents4()
	user = w.user()
	resumed, err := user.ResumeRun(t.Context(), connect.NewRequest(&dyetracev1.ResumeRunRequest{Id: id}))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(untouched, resumed.Msg.Run.Options, protocmp.Transform()); diff != "" {
		t.Errorf("options of the run that was resumed (-asked +got):\n%s", diff)
	}
	after, err := w.watch(t.Context(), user, id, nil)
	if err != nil || after.last.GetState() != dyetracev1.RunState_RUN_STATE_DONE || len(after.pairs) != dualPairs || after.last.Counts.Healthy != dualPairs {
		t.Fatalf("after resuming: %v with %d verdicts, %v", after.last, len(after.pairs), err)
	}
	for name, p := range after.pairs {
		checkUntouched(t, name, p)
		if was := before.pairs[name]; was != nil {
			if diff := cmp.Diff(was, p, protocmp.Transform()); diff != "" {
				t.Errorf("%s was judged before, and differs now:\n%s", name, diff)
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, n := range w.injects {
		if n != 2 { // there for one pair, back for the opposite one
			t.Errorf("%s: %d probes", name, n)
		}
	}
}

// TestRunRefused has one agent that cannot withhold: nothing is sent to or from its guests.
func TestRunRefused(t *testing.T) {
	t.Parallel()
	w := newWorldOf(t, dualInventory(), probingUntouched, unhurried)
	w.start()
	for _, host := range labHosts {
		a := w.agent(host)
		if host == "hv3" {
			a.onArm = func(m *dyetracev1.Arm) bool {
				a.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Armed{Armed: &dyetracev1.Armed{Run: m.Run, Id: m.Id, Error: "to-instance is not sampled"}}})
				return false
			}
		}
		a.dial(w.cert(pki.RoleAgent, host))
	}
	w.ready(4)
	got := w.checkBy(all(), untouched, 20*time.Second)
	if len(got.pairs) != dualPairs || got.last.Counts.Healthy != dualPairs/2 || got.last.Counts.Unknown != dualPairs/2 {
		t.Fatalf("run = %v with %d verdicts", got.last, len(got.pairs))
	}
	for name, p := range got.pairs {
		if p.Src.Name != "blue-2" && p.Dst.Name != "blue-2" {
			checkUntouched(t, name, p)
		} else if p.CauseKind != dyetracev1.CauseKind_CAUSE_KIND_INJECTION {
			t.Errorf("%s: %v, %v: %s", name, p.Verdict, p.CauseKind, p.Cause)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name := range w.injects {
		if strings.Contains(name, "blue-2") {
			t.Errorf("%s was probed", name)
		}
	}
}

// TestManyRuns has several at once, by different scopes.
func TestManyRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	w.agents4()
	scopes := []*dyetracev1.Scope{
		all(),
		onePair("red/red-1", "red/10.0.1.12"),
		{Scope: &dyetracev1.Scope_Network{Network: "red"}},
		{Scope: &dyetracev1.Scope_Host{Host: "hv4"}},
		all(), all(), all(), all(),
	}
	want := []uint32{labPairs, 1, 2, 26, labPairs, labPairs, labPairs, labPairs}
	done := make(chan *watched, len(scopes))
	for _, s := range scopes {
		go func() {
			var got *watched // nil if check fails the test, which ends this goroutine
			defer func() { done <- got }()
			got = w.check(s, 0)
		}()
	}
	var totals []uint32
	for range scopes {
		got := <-done
		if got == nil {
			continue
		}
		if got.last.Counts.Healthy != got.last.Total {
			t.Errorf("%v: %v", got.last.Scope, got.last.Counts)
		}
		totals = append(totals, got.last.Total)
	}
	slices.Sort(totals)
	slices.Sort(want)
	if !slices.Equal(totals, want) {
		t.Errorf("totals = %v, want %v", totals, want)
	}
}

// TestStray has a probe of one pair end at a host that is not on its way.
func TestStray(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Run.Settle, c.Run.Patience = 50*time.Millisecond, 0 })
	w.start()
	w.agents4()
	w.rule(func(s sighting) fate {
		if s.pair.String() != "blue/blue-1 → blue/blue-2" || s.index < 2 {
			return seen
		}
		return gone
	})
	hv4 := w.agents["hv4"]
	hv1 := w.agents["hv1"]
	hv1.onInject = func(m *dyetracev1.Inject) bool {
		for i, index := range m.Index {
			pair, err := w.pairOf("hv1", m.Ports[m.Port[i]].Port, m.DstIp[16*i:16*i+16])
			if err != nil || pair.String() != "blue/blue-1 → blue/blue-2" {
				continue
			}
			s := &dyetracev1.Samples{Run: m.Run, Bridges: []string{"br-tun"}}
			addSample(s, plan.Path{Src: pair.Src.IPs[0], Dst: pair.Dst.IPs[0], Points: []plan.Expected{{Host: "hv4", Bridge: "br-tun", Kind: stain.FromTunnel, Direction: plan.Forward}}}, 0, index, hv1.key(m.Run), m.Scheme)
			hv4.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Samples{Samples: s}})
		}
		return true
	}
	got := w.check(&dyetracev1.Scope{Scope: &dyetracev1.Scope_Network{Network: "blue"}}, 0)
	p := got.pairs["blue/blue-1 → blue/blue-2"]
	if p.GetVerdict() != dyetracev1.Verdict_VERDICT_FAULTY || p.GetCauseKind() != dyetracev1.CauseKind_CAUSE_KIND_BETWEEN_HOSTS || p.GetSegment().GetTo().GetHost() != "hv2" {
		t.Errorf("verdict = %v, %v: %s; want it lost between hosts, before hv2", p.GetVerdict(), p.GetCauseKind(), p.GetCause())
	}
}

func TestWatchContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Run.PerInstanceRate, c.Run.PerInstanceBurst = 0.001, 1 })
	w.start()
	w.agents4()
	user := w.user()
	res, err := user.StartRun(t.Context(), connect.NewRequest(&dyetracev1.StartRunRequest{Scope: all()}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = w.watch(ctx, user, res.Msg.Run.Id, func(*watched) bool {
		cancel()
		return false
	})
	if connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("a watcher who leaves gets %v", err)
	}
}
