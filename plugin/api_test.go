package plugin

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/api/dyetrace/v1/dyetracev1connect"
	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/internal/teacher"
	"github.com/dyetrace/dyetrace/pki"
	"github.com/dyetrace/dyetrace/plugin/internal/leak"
	"github.com/dyetrace/dyetrace/plugin/store"
)

func TestMain(m *testing.M) {
	teacher.Main()
	leak.Main(m)
}

func TestRoles(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	status := func(client *http.Client) error {
		_, err := dyetracev1connect.NewControllerServiceClient(client, "https://"+w.addr).
			GetStatus(t.Context(), connect.NewRequest(&dyetracev1.GetStatusRequest{}))
		return err
	}
	agentCert, userCert := w.cert(pki.RoleAgent, "hv1"), w.cert(pki.RoleUser, "ann")

	if err := status(w.http(userCert)); err != nil {
		t.Errorf("user: %v", err)
	}
	err := status(w.http(agentCert))
	if connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "certificate is for agent hv1; want one for a user") {
		t.Errorf("an agent calls the users' API: %v", err)
	}
	// The same over gRPC, whose errors travel otherwise.
	_, err = dyetracev1connect.NewControllerServiceClient(w.http(agentCert), "https://"+w.addr, connect.WithGRPC()).
		GetStatus(t.Context(), connect.NewRequest(&dyetracev1.GetStatusRequest{}))
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("an agent calls the users' API over gRPC: %v", err)
	}
	a := w.agent("hv1")
	a.dial(userCert)
	<-a.done
	if connect.CodeOf(a.end) != connect.CodePermissionDenied {
		t.Errorf("a user speaks as an agent: %v", a.end)
	}

	config, err := pki.ClientTLS(userCert, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	if err := status(w.httpTLS(config)); err == nil {
		t.Error("a client without a certificate was answered")
	}
	other := newWorld(t, nil) // with a CA of its own
	config, err = pki.ClientTLS(pki.Files{CA: userCert.CA, Cert: other.cert(pki.RoleUser, "eve").Cert, Key: other.cert(pki.RoleUser, "eve").Key}, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := status(w.httpTLS(config)); err == nil {
		t.Error("a client of another CA was answered")
	}
	// Plain JSON over HTTP/1.1, as curl has it.
	config, err = pki.ClientTLS(userCert, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	config.NextProtos = []string{"http/1.1"}
	tr := &http.Transport{TLSClientConfig: config}
	t.Cleanup(tr.CloseIdleConnections)
	res, err := (&http.Client{Transport: tr}).Post("https://"+w.addr+"/dyetrace.v1.ControllerService/GetStatus", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil || !strings.Contains(string(body), `"version":"test"`) {
		t.Errorf("JSON: %s, %v", body, err)
	}
}

func TestHello(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	tests := []struct {
		name   string
		hello  *dyetracev1.Hello
		reason []string
	}{
		{"another host", &dyetracev1.Hello{Protocol: 1, Host: "hv1"}, []string{"certificate is for hv2, agent says hv1"}},
		{"newer protocol", &dyetracev1.Hello{Protocol: 7, Host: "hv2"}, []string{"protocol 7", "up to 1"}},
		{"no protocol", &dyetracev1.Hello{Host: "hv2"}, []string{"hello.protocol"}},
	}
	for _, tt := range tests {
		a := w.agent("hv2")
		a.hello = tt.hello
		a.dial(w.cert(pki.RoleAgent, "hv2"))
		<-a.done
		var r *rejected
		if !errors.As(a.end, &r) || !r.Permanent {
			t.Errorf("%s: %v, want a permanent rejection", tt.name, a.end)
			continue
		}
		for _, part := range tt.reason {
			if !strings.Contains(r.Reason, part) {
				t.Errorf("%s: reason %q does not say %q", tt.name, r.Reason, part)
			}
		}
	}
	a := w.agent("hv2")
	a.dial(w.cert(pki.RoleAgent, "hv2"))
	if welcome := <-a.welcome; welcome.HeartbeatMs != 1000 || welcome.Stain.GetTos() != 0x5c || welcome.Stain.Port != 11 || welcome.Version != "test" {
		t.Errorf("welcome = %v", welcome)
	}
}

// TestSessions has agents that fall silent, and come again while they are still there.
func TestSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	user := w.user()
	host := func(name string) *dyetracev1.Host {
		res, err := user.ListHosts(t.Context(), connect.NewRequest(&dyetracev1.ListHostsRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range res.Msg.Hosts {
			if h.Name == name {
				return h
			}
		}
		return nil
	}

	silent := w.agent("hv1")
	silent.silent = true
	silent.dial(w.cert(pki.RoleAgent, "hv1"))
	<-silent.done
	if connect.CodeOf(silent.end) != connect.CodeUnavailable {
		t.Errorf("the session of a silent agent ended with %v", silent.end)
	}
	if h := host("hv1"); h.Connected || len(h.Bridges) != 2 {
		t.Errorf("after silence: %v; want it disconnected, its last word kept", h)
	}

	first := w.agent("hv2")
	first.dial(w.cert(pki.RoleAgent, "hv2"))
	eventually(t, "hv2 has counters", func() bool { return host("hv2").GetCounters().GetInjected() > 0 })
	second := w.agent("hv2")
	second.hello.Version = "newer"
	second.dial(w.cert(pki.RoleAgent, "hv2"))
	<-first.done
	if first.end == nil || !strings.Contains(first.end.Error(), "replaced") {
		t.Errorf("the session that was replaced ended with %v", first.end)
	}
	eventually(t, "hv2 is the newer agent", func() bool {
		h := host("hv2")
		return h.GetConnected() && h.GetVersion() == "newer" && len(h.GetEndpoints()) == 2
	})
	if h := host("hv3"); h == nil || h.Connected || !h.Expected || h.LastSeen != nil {
		t.Errorf("a host without an agent: %v", h)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	user := w.user()
	status := func() *dyetracev1.GetStatusResponse {
		res, err := user.GetStatus(t.Context(), connect.NewRequest(&dyetracev1.GetStatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg
	}
	s := status()
	if s.HostsExpected != 4 || s.HostsReady != 0 || s.Instances != 10 || s.Pairs != labPairs || len(s.Problems) != 4 {
		t.Errorf("before any agent: %v", s)
	}
	w.agents4()
	if s := status(); s.HostsReady != 4 || len(s.Problems) != 0 {
		t.Errorf("all agents there: %v", s)
	}
	hv1 := w.agents["hv1"]
	hv1.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_State{State: &dyetracev1.HostState{
		Bridges: []*dyetracev1.Bridge{{Name: "br-int", State: dyetracev1.HookState_HOOK_STATE_REFUSED, Reason: "no free mark"}},
	}}})
	w.ready(3)
	s = status()
	text := strings.Join(s.Problems, "\n")
	for _, want := range []string{"hv1/br-int: hook refused: no free mark", "blue/blue-1", "green/green-1", "red/red-1"} {
		if !strings.Contains(text, want) {
			t.Errorf("problems do not tell of %s:\n%s", want, text)
		}
	}
	if len(s.Problems) != 4 {
		t.Errorf("problems:\n%s", text)
	}
	list, err := user.ListInstances(t.Context(), connect.NewRequest(&dyetracev1.ListInstancesRequest{Network: "red"}))
	if err != nil || len(list.Msg.Instances) != 2 || list.Msg.Instances[0].Endpoint != nil || list.Msg.Instances[1].Endpoint.GetPort() != "tap-red-2" {
		t.Errorf("instances of red: %v, %v", list, err)
	}
}

// TestOptions wants to hear again, with the run, how it was asked to probe.
func TestOptions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	w.agents4()
	user := w.user()
	want := &dyetracev1.ProbeOptions{Scheme: dyetracev1.Scheme_SCHEME_TCP, IpVersion: dyetracev1.IPVersion_IP_VERSION_4}
	started, err := user.StartRun(t.Context(), connect.NewRequest(&dyetracev1.StartRunRequest{Scope: onePair("blue-1", "blue-2"), Options: want}))
	if err != nil {
		t.Fatal(err)
	}
	got, err := user.GetRun(t.Context(), connect.NewRequest(&dyetracev1.GetRunRequest{Id: started.Msg.GetRun().GetId()}))
	if err != nil {
		t.Fatal(err)
	}
	for what, r := range map[string]*dyetracev1.Run{"StartRun": started.Msg.GetRun(), "GetRun": got.Msg.GetRun()} {
		if !proto.Equal(r.GetOptions(), want) {
			t.Errorf("%s: options %v, want %v", what, r.GetOptions(), want)
		}
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Run.MaxPairs = 57 })
	w.start()
	w.agents4()
	user, ctx := w.user(), t.Context()
	start := func(s *dyetracev1.Scope, timeout uint32) error {
		return second(user.StartRun(ctx, connect.NewRequest(&dyetracev1.StartRunRequest{Scope: s, TimeoutMs: timeout})))
	}
	probe := func(o *dyetracev1.ProbeOptions) error {
		return second(user.StartRun(ctx, connect.NewRequest(&dyetracev1.StartRunRequest{Scope: onePair("blue-1", "blue-2"), Options: o})))
	}
	tests := []struct {
		name string
		err  error
		code connect.Code
		says []string
	}{
		{"unknown scheme", probe(&dyetracev1.ProbeOptions{Scheme: 3}), connect.CodeInvalidArgument, []string{"options.scheme: 3", "SCHEME_TCP, SCHEME_ICMP, or 0"}},
		{"loss, continuously", probe(&dyetracev1.ProbeOptions{Loss: true, Continuous: true}), connect.CodeInvalidArgument, []string{"options.loss"}},
		{"continuous, no touch", probe(&dyetracev1.ProbeOptions{NoTouch: true, Continuous: true}), connect.CodeInvalidArgument, []string{"options.no_touch"}},
		{"a rate of nothing", probe(&dyetracev1.ProbeOptions{Rate: 5}), connect.CodeInvalidArgument, []string{"options.rate: 5"}},
		{"all may be lost", probe(&dyetracev1.ProbeOptions{MaxLoss: 1}), connect.CodeInvalidArgument, []string{"options.max_loss: 1", "0.001 to 0.9"}},
		{"unknown IP version", probe(&dyetracev1.ProbeOptions{IpVersion: 5}), connect.CodeInvalidArgument, []string{"options.ip_version: 5", "IP_VERSION_4, IP_VERSION_6, or 0"}},
		{"no scope", start(nil, 0), connect.CodeInvalidArgument, []string{"scope"}},
		{"unknown instance", start(onePair("blue-1", "blue-9"), 0), connect.CodeInvalidArgument, []string{"scope.pair.dst", "blue-9"}},
		{"itself", start(onePair("blue-1", "blue/10.0.1.11"), 0), connect.CodeInvalidArgument, []string{"scope.pair.dst", "itself"}},
		{"ambiguous address", start(onePair("10.0.1.11", "blue-2"), 0), connect.CodeInvalidArgument, []string{"scope.pair.src", "blue/blue-1", "red/red-1"}},
		{"no path", start(onePair("blue-1", "red-1"), 0), connect.CodeInvalidArgument, []string{"no path"}},
		{"unknown network", start(&dyetracev1.Scope{Scope: &dyetracev1.Scope_Network{Network: "mauve"}}, 0), connect.CodeInvalidArgument, []string{"scope.network", "mauve"}},
		{"unknown host", start(&dyetracev1.Scope{Scope: &dyetracev1.Scope_Host{Host: "hv9"}}, 0), connect.CodeInvalidArgument, []string{"scope.host", "hv9"}},
		{"too long", start(onePair("blue-1", "blue-2"), 90_000_000), connect.CodeInvalidArgument, []string{"timeout_ms", "86400000"}},
		{"too many pairs", start(all(), 0), connect.CodeResourceExhausted, []string{"58", "57", "run.max_pairs"}},
		{"no id", second(user.GetRun(ctx, connect.NewRequest(&dyetracev1.GetRunRequest{}))), connect.CodeInvalidArgument, []string{"id"}},
		{"unknown run", second(user.GetRun(ctx, connect.NewRequest(&dyetracev1.GetRunRequest{Id: "abc"}))), connect.CodeNotFound, []string{"abc"}},
		{"resume unknown run", second(user.ResumeRun(ctx, connect.NewRequest(&dyetracev1.ResumeRunRequest{Id: "abc"}))), connect.CodeNotFound, nil},
		{"cancel unknown run", second(user.CancelRun(ctx, connect.NewRequest(&dyetracev1.CancelRunRequest{Id: "abc"}))), connect.CodeNotFound, nil},
		{"too many runs", second(user.ListRuns(ctx, connect.NewRequest(&dyetracev1.ListRunsRequest{Limit: 1001}))), connect.CodeInvalidArgument, []string{"limit", "1000"}},
		{"instances of nowhere", second(user.ListInstances(ctx, connect.NewRequest(&dyetracev1.ListInstancesRequest{Network: "mauve"}))), connect.CodeNotFound, []string{"mauve"}},
	}
	for _, tt := range tests {
		if connect.CodeOf(tt.err) != tt.code {
			t.Errorf("%s: %v, want %v", tt.name, tt.err, tt.code)
			continue
		}
		for _, part := range tt.says {
			if !strings.Contains(tt.err.Error(), part) {
				t.Errorf("%s: %q does not say %q", tt.name, tt.err, part)
			}
		}
	}
	if _, err := w.watch(ctx, user, "abc", nil); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("watching an unknown run: %v", err)
	}
}

func TestBusy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) {
		c.Run.MaxActive, c.Run.PerInstanceRate, c.Run.PerInstanceBurst = 1, 0.001, 1
	})
	w.start()
	w.agents4()
	user := w.user()
	res, err := user.StartRun(t.Context(), connect.NewRequest(&dyetracev1.StartRunRequest{Scope: all()}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = user.StartRun(t.Context(), connect.NewRequest(&dyetracev1.StartRunRequest{Scope: all()}))
	if connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(err.Error(), "run.max_active") {
		t.Errorf("a second run: %v", err)
	}
	if _, err := user.CancelRun(t.Context(), connect.NewRequest(&dyetracev1.CancelRunRequest{Id: res.Msg.Run.Id})); err != nil {
		t.Error(err)
	}
	got := w.check(onePair("red-1", "red-2"), 300*time.Millisecond) // there is room again
	runs, err := user.ListRuns(t.Context(), connect.NewRequest(&dyetracev1.ListRunsRequest{}))
	if err != nil || len(runs.Msg.Runs) != 2 || runs.Msg.Runs[0].Id != got.last.GetId() {
		t.Errorf("runs = %v, %v", runs, err)
	}
}

// TestHostile has an agent that says all that it should not; others must not suffer.
func TestHostile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Metrics = "127.0.0.1:0" })
	w.start()
	bad := w.agent("hv4")
	bad.onPrepare = func(p *dyetracev1.Prepare) bool {
		column := &dyetracev1.Samples{
			Run: p.Run, Bridges: []string{"br-int"}, Index: []uint32{0}, Bridge: []uint32{0},
			Kind: []dyetracev1.PointKind{1}, AtNs: []uint64{1}, AddrTag: []uint64{1}, Ttl: []uint32{64},
			InPort: []uint32{1}, TunSrc: []uint32{0}, TunId: []uint32{0}, Reply: []bool{false},
			NoReply: []bool{false}, Scheme: []dyetracev1.Scheme{1},
		}
		say := func(change func(*dyetracev1.Samples)) {
			m := &dyetracev1.Samples{
				Run: column.Run, Bridges: column.Bridges, Index: []uint32{0}, Bridge: []uint32{0},
				Kind: []dyetracev1.PointKind{1}, AtNs: column.AtNs, AddrTag: column.AddrTag, Ttl: column.Ttl,
				InPort: column.InPort, TunSrc: column.TunSrc, TunId: column.TunId, Reply: column.Reply,
				NoReply: column.NoReply, Scheme: column.Scheme,
			}
			change(m)
			bad.say(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Samples{Samples: m}})
		}
		for range 100 {
			say(func(*dyetracev1.Samples) {}) // well-formed, but forged
			say(func(m *dyetracev1.Samples) { m.Index[0] = p.Total })
			say(func(m *dyetracev1.Samples) { m.Run++ })
			say(func(m *dyetracev1.Samples) { m.Ttl = nil })
			say(func(m *dyetracev1.Samples) { m.Bridge[0] = 9 })
			say(func(m *dyetracev1.Samples) { m.Kind[0] = 77 })
			say(func(m *dyetracev1.Samples) { m.Index = nil })
		}
		for _, m := range []*dyetracev1.SessionRequest{
			{Message: &dyetracev1.SessionRequest_Ready{Ready: &dyetracev1.Ready{Run: p.Run + 5}}},
			{Message: &dyetracev1.SessionRequest_Finished{Finished: &dyetracev1.Finished{Run: p.Run}}},
			{Message: &dyetracev1.SessionRequest_Explanation{Explanation: &dyetracev1.Explanation{Id: 12345}}},
			{Message: &dyetracev1.SessionRequest_Injected{Injected: &dyetracev1.Injected{Run: p.Run, Index: []uint32{0}, AtNs: []uint64{1}}}},
			{Message: &dyetracev1.SessionRequest_Hello{Hello: &dyetracev1.Hello{Host: "hv1"}}},
			{},
		} {
			bad.say(m)
		}
		return true
	}
	for _, host := range labHosts {
		a := bad
		if host != "hv4" {
			a = w.agent(host)
		}
		a.dial(w.cert(pki.RoleAgent, host))
	}
	w.ready(4)
	got := w.check(all(), 0)
	if got.last.Counts.Healthy != labPairs {
		t.Errorf("run beside a hostile agent: %v", got.last)
	}
	if bad.end != nil {
		t.Errorf("the hostile agent was thrown out: %v", bad.end)
	}
}

// TestMetrics looks at what is exported after a run, and at the health check.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Metrics = "127.0.0.1:0"; unhurried(c) })
	w.start()
	addr := w.controller.scrapes.Addr().String()
	w.agents4()
	w.check(all(), 0)
	get := func(path string) (int, string) {
		res, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	_, text := get("/metrics")
	for _, series := range []string{
		"dyetrace_fleet_agents 4\n",
		"dyetrace_fleet_sessions_total 4\n",
		"dyetrace_fleet_send_queue_length 0\n",
		"dyetrace_fleet_samples_dropped_total 0\n",
		`dyetrace_run_verdicts_total{verdict="healthy"} 58` + "\n",
		`dyetrace_run_runs_total{state="done"} 1` + "\n",
		`dyetrace_run_probes_total{scheme="tcp"} 58` + "\n",
		`dyetrace_run_samples_total{fate="used"}`,
		"dyetrace_run_store_write_seconds_count",
		"go_goroutines",
	} {
		if !strings.Contains(text, series) {
			t.Errorf("/metrics has no %q", series)
		}
	}
	// What the agents say to a run that did not wait for it is late, not unasked for.
	if !strings.Contains(text, "dyetrace_fleet_messages_unasked_total 0\n") {
		t.Error("a healthy run has messages that nobody asked for")
	}
	if code, body := get("/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("/healthz: %d %q", code, body)
	}
	if code, _ := get("/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("/debug/pprof/: %d", code)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestSocket has a user come by the unix socket, and a second controller beside the first.
func TestSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "dyetrace") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "api.sock")
	w := newWorld(t, func(c *Config) { c.Socket = path })
	// What a killed controller leaves behind is no hindrance.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	stop := w.start()
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", fi, err)
	}
	config, err := pki.ClientTLS(w.cert(pki.RoleUser, "ann"), "controller")
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{
		TLSClientConfig: config, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	user := dyetracev1connect.NewControllerServiceClient(&http.Client{Transport: tr}, "https://controller")
	if _, err := user.GetStatus(t.Context(), connect.NewRequest(&dyetracev1.GetStatusRequest{})); err != nil {
		t.Errorf("over the socket: %v", err)
	}

	log := testLog(t)
	if _, err := New(t.Context(), w.cfg, log); !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second controller of the same store: %v", err)
	}
	other := w.cfg
	other.Store += ".other"
	if _, err := New(t.Context(), other, log); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("a second controller on the same socket: %v", err)
	}
	other.Socket, other.Listen = "", w.addr
	if _, err := New(t.Context(), other, log); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second controller on the same port: %v", err)
	}
	other.Listen = "127.0.0.1:0"
	other.BGP = &bgp.Config{RouterID: "10.0.0.9", AS: 64512, Listen: w.addr}
	if _, err := New(t.Context(), other, log); !errors.Is(err, syscall.EADDRINUSE) || !strings.HasPrefix(err.Error(), "bgp.listen: ") {
		t.Errorf("a controller whose port for peers is taken: %v", err)
	}
	stop()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestReload changes the inventory under the controller's feet. SIGHUP goes to the whole test
// process, which other controllers of this package do not mind.
func TestReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	user := w.user()
	instances := func() int {
		res, err := user.ListInstances(t.Context(), connect.NewRequest(&dyetracev1.ListInstancesRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		return len(res.Msg.Instances)
	}
	// A signal that comes when the last controller has gone must not end the process: kill(2) promises
	// that one is delivered before it returns only to a process of one thread.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	hup := func(text string) {
		t.Helper()
		if err := os.WriteFile(w.cfg.Inventory[0], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	all := labInventory()
	less := all[:strings.LastIndex(all, "  - ")]
	eventually(t, "ten instances", func() bool { return instances() == 10 }) // who answers hears signals
	hup(less)
	eventually(t, "nine instances", func() bool { return instances() == 9 })
	hup(all)
	eventually(t, "ten instances", func() bool { return instances() == 10 })
	hup("instances: 3\n")
	hup(less) // had the broken one been taken, there would have been none for a moment
	eventually(t, "nine instances", func() bool {
		n := instances()
		if n != 9 && n != 10 {
			t.Fatalf("a broken file was taken: %d instances", n)
		}
		return n == 9
	})
}

// TestServe has the whole thing refuse to start.
func TestServe(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	broken := filepath.Join(w.dir, "broken.yaml")
	if err := os.WriteFile(broken, []byte("instances:\n  - {name: a}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		change func(*Config)
		says   string
	}{
		{"no CA", func(c *Config) { c.TLS.CA = "/nonexistent" }, "tls.ca"},
		{"an agent's certificate", func(c *Config) { c.TLS = w.cert(pki.RoleAgent, "hv1") }, "want a controller's"},
		{"broken inventory", func(c *Config) { c.Inventory = []string{broken} }, "broken.yaml:2"},
		{"no directory for the store", func(c *Config) { c.Store = "/nonexistent/x.db" }, "/nonexistent/x.db"},
		{"no such address", func(c *Config) { c.Listen = "192.0.2.1:7443" }, "listen"},
	}
	for _, tt := range tests {
		cfg := w.cfg
		tt.change(&cfg)
		err := Serve(t.Context(), cfg, testLog(t))
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want an error that says %q", tt.name, err, tt.says)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Serve(ctx, w.cfg, testLog(t)); err != nil {
		t.Errorf("a cancelled context is an error: %v", err)
	}
}
