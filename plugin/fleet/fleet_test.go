package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/internal/leak"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/stain"
)

func TestMain(m *testing.M) { leak.Main(m) }

// pipe is a session's stream without a network, for what cannot be brought about with one, and for
// what takes its time. Over TLS and HTTP/2 sessions are tested in package plugin.
type pipe struct {
	up          chan *dyetracev1.SessionRequest
	down        chan *dyetracev1.SessionResponse
	read, write *deadline
}

func newPipe() *pipe {
	return &pipe{
		make(chan *dyetracev1.SessionRequest), make(chan *dyetracev1.SessionResponse),
		&deadline{expired: make(chan struct{})}, &deadline{expired: make(chan struct{})},
	}
}

// deadline closes expired at a time that can be moved until then.
type deadline struct {
	mu      sync.Mutex
	timer   *time.Timer
	expired chan struct{}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		return
	}
	if d.timer = nil; !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() { close(d.expired) })
	}
}

func (p *pipe) SetReadDeadline(t time.Time) error  { p.read.set(t); return nil }
func (p *pipe) SetWriteDeadline(t time.Time) error { p.write.set(t); return nil }

func (p *pipe) Receive() (*dyetracev1.SessionRequest, error) {
	select {
	case m, ok := <-p.up:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-p.read.expired:
		return nil, os.ErrDeadlineExceeded
	}
}

func (p *pipe) Send(m *dyetracev1.SessionResponse) error {
	select {
	case p.down <- m:
		return nil
	case <-p.write.expired:
		return errors.New("stream was reset")
	}
}

// serve is the handler of a request whose stream is p.
func (p *pipe) serve(ctx context.Context, f *Fleet, host string) error {
	d := &deadlines{rc: p}
	defer p.write.set(time.Time{}) // as the server does after the handler
	return f.serve(context.WithValue(WithAgent(ctx, host), deadlinesKey{}, d), p)
}

func newFleet() (*Fleet, *prometheus.Registry) {
	r := prometheus.NewRegistry()
	return New(Config{
		Stain: stain.Default(), Heartbeat: time.Second, Version: "test", Book: inventory.NewBook(),
		Log: slog.New(slog.DiscardHandler), Metrics: r,
	}), r
}

// values returns all counters and gauges, labelled ones as name{value}.
func values(t *testing.T, r *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "{" + l.GetValue() + "}"
			}
			all[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all
}

// dial begins a session and returns its agent's side, after Welcome, and how it ended.
func dial(t *testing.T, f *Fleet, host string) (*pipe, <-chan error) {
	t.Helper()
	p := newPipe()
	done := make(chan error, 1)
	go func() { done <- p.serve(t.Context(), f, host) }()
	p.up <- &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Hello{Hello: &dyetracev1.Hello{Protocol: Protocol, Host: host}}}
	if m := <-p.down; m.GetWelcome() == nil {
		t.Fatalf("%s: %v came first, want a welcome", host, m)
	}
	return p, done
}

func samples(run uint64, n int) *dyetracev1.Samples {
	m := &dyetracev1.Samples{Run: run, Bridges: []string{"br-int"}}
	m.Index, m.Bridge, m.Kind = make([]uint32, n), make([]uint32, n), make([]dyetracev1.PointKind, n)
	m.AtNs, m.AddrTag, m.Ttl, m.InPort = make([]uint64, n), make([]uint64, n), make([]uint32, n), make([]uint32, n)
	m.TunSrc, m.TunId, m.Reply = make([]uint32, n), make([]uint32, n), make([]bool, n)
	m.NoReply, m.Scheme, m.TcpFlags = make([]bool, n), make([]dyetracev1.Scheme, n), make([]uint32, n)
	for i := range m.Kind {
		m.Kind[i], m.Scheme[i] = dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE, dyetracev1.Scheme_SCHEME_TCP
	}
	return m
}

func (p *pipe) say(t *testing.T, m any) {
	t.Helper()
	r := &dyetracev1.SessionRequest{}
	switch m := m.(type) {
	case *dyetracev1.Ready:
		r.Message = &dyetracev1.SessionRequest_Ready{Ready: m}
	case *dyetracev1.Samples:
		r.Message = &dyetracev1.SessionRequest_Samples{Samples: m}
	case *dyetracev1.Armed:
		r.Message = &dyetracev1.SessionRequest_Armed{Armed: m}
	case *dyetracev1.Injected:
		r.Message = &dyetracev1.SessionRequest_Injected{Injected: m}
	case *dyetracev1.Finished:
		r.Message = &dyetracev1.SessionRequest_Finished{Finished: m}
	case *dyetracev1.Explanation:
		r.Message = &dyetracev1.SessionRequest_Explanation{Explanation: m}
	default:
		t.Fatalf("%T", m)
	}
	p.up <- r
}

// words are the events that came, as words.
func words(a *Assignment) string {
	synctest.Wait()
	var w []string
	for _, e := range a.Events(nil) {
		name := strings.TrimPrefix(fmt.Sprintf("%T", e.Message), "*dyetracev1.")
		switch m := e.Message.(type) {
		case Gone:
			name = "gone: " + m.Reason
		case Lost:
			name = fmt.Sprintf("lost %d", m.Samples)
		}
		w = append(w, fmt.Sprintf("%s %s", a.spec.Hosts[e.Host], name))
	}
	return strings.Join(w, "; ")
}

func TestAssignment(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, registry := newFleet()
		p, done := dial(t, f, "hv1")
		a := f.Begin(Spec{Hosts: []string{"hv1", "hv2"}, Total: 4, Expires: time.Minute})
		prepare := (<-p.down).GetPrepare()
		if prepare.GetRun() != a.number || prepare.GetTotal() != 4 || prepare.GetExpiresMs() != 60_000 || len(prepare.GetKey()) != stain.KeySize {
			t.Errorf("prepare = %v", prepare)
		}
		run := a.number
		expect := func(step, want string) {
			t.Helper()
			if got := words(a); got != want {
				t.Errorf("%s: %q, want %q", step, got, want)
			}
		}
		expect("a host that is not there", "hv2 gone: not connected")

		p.say(t, &dyetracev1.Ready{Run: run})
		p.say(t, &dyetracev1.Ready{Run: run})
		expect("ready twice", "hv1 Ready")
		injected := &dyetracev1.Injected{Run: run, Index: []uint32{1, 2}, AtNs: []uint64{1, 2}}
		p.say(t, injected)
		expect("injected what nobody asked for", "")
		a.Inject(0, &dyetracev1.Inject{Index: []uint32{1, 2}})
		if m := (<-p.down).GetInject(); m.GetRun() != run {
			t.Errorf("inject = %v", m)
		}
		p.say(t, &dyetracev1.Injected{Run: run, Index: []uint32{1, 2}, AtNs: []uint64{1}})
		p.say(t, &dyetracev1.Injected{Run: run, Index: []uint32{4}, AtNs: []uint64{1}})
		p.say(t, &dyetracev1.Injected{Run: run, Failures: []*dyetracev1.InjectFailure{{Index: 4}}})
		p.say(t, &dyetracev1.Injected{Run: run})
		expect("injected, malformed", "")
		p.say(t, injected)
		p.say(t, injected)
		expect("injected twice", "hv1 Injected")

		p.say(t, samples(run, 3))
		p.say(t, samples(run+1, 3))
		expect("samples", "hv1 Samples")
		p.say(t, samples(run, maxQueued))
		p.say(t, samples(run, 1))
		expect("more samples than there is room", fmt.Sprintf("hv1 Samples; hv1 lost %d", maxQueued))

		id := a.Explain(0, &dyetracev1.Explain{})
		if m := (<-p.down).GetExplain(); m.GetId() != id {
			t.Errorf("explain = %v, want id %d", m, id)
		}
		p.say(t, &dyetracev1.Explanation{Id: id + 1})
		p.say(t, &dyetracev1.Explanation{Id: id})
		p.say(t, &dyetracev1.Explanation{Id: id})
		expect("explained twice", "hv1 Explanation")

		p.say(t, &dyetracev1.Finished{Run: run})
		expect("finished by itself", "")
		a.Finish(0)
		<-p.down
		p.say(t, &dyetracev1.Finished{Run: run})
		p.say(t, samples(run, 1))
		expect("samples after the end", "hv1 Finished")

		b := f.Begin(Spec{Hosts: []string{"hv1"}, Total: 1})
		<-p.down
		a.Close()
		p.say(t, samples(run, 1))
		close(p.up)
		if err := <-done; err != nil {
			t.Errorf("a session that ends well: %v", err)
		}
		if got := words(b); got != "hv1 gone: disconnected" {
			t.Errorf("the run that was under way: %q", got)
		}
		expect("the run that was over", "")
		got := values(t, registry)
		for name, want := range map[string]float64{
			"dyetrace_fleet_agents":                       0,
			"dyetrace_fleet_sessions_total":               1,
			"dyetrace_fleet_sessions_ended_total{left}":   1,
			"dyetrace_fleet_samples_total":                3 + maxQueued + 1 + 1,
			"dyetrace_fleet_samples_rejected_total{run}":  3,
			"dyetrace_fleet_samples_rejected_total{late}": 1,
			"dyetrace_fleet_samples_dropped_total":        maxQueued + 1,
			"dyetrace_fleet_messages_unasked_total":       10,
		} {
			if got[name] != want {
				t.Errorf("%s = %v, want %v", name, got[name], want)
			}
		}
	})
}

// TestSlowAgent has an agent that does not read: its session ends, and nobody waits for it.
func TestSlowAgent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet()
		slow, slowDone := dial(t, f, "slow")
		slow.up <- &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_State{State: &dyetracev1.HostState{}}}
		quick, quickDone := dial(t, f, "quick")
		got := make(chan int)
		go func() {
			n := 0
			for range quick.down {
				if n++; n == 1000 {
					got <- n
				}
			}
		}()
		a := f.Begin(Spec{Hosts: []string{"slow", "quick"}, Total: 1})
		for range 999 {
			a.Finish(0)
			a.Finish(1)
			synctest.Wait()
		}
		<-got
		err := <-slowDone
		if !errors.Is(err, errFull) {
			t.Errorf("the slow agent's session ended with %v", err)
		}
		if w := words(a); w != "slow gone: does not read what it is sent: 256 messages wait" {
			t.Errorf("events = %q", w)
		}
		if h, ok := f.cfg.Book.(*inventory.Book).Snapshot().Host("slow"); !ok || h.Connected {
			t.Errorf("the book has %v, %t", h, ok)
		}
		close(quick.up)
		<-quickDone
		close(quick.down)
	})
}

// TestRefresh has one agent that answers, one that never does, and one that goes.
func TestRefresh(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet()
		hosts := []string{"answers", "silent", "goes", "absent"}
		pipes := map[string]*pipe{}
		var ends []<-chan error
		for _, host := range hosts[:3] {
			p, done := dial(t, f, host)
			pipes[host], ends = p, append(ends, done)
		}
		const patience = 500 * time.Millisecond
		began := time.Now()
		done := make(chan time.Duration)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			f.Refresh(ctx, hosts)
			done <- time.Since(began)
		}()
		asked := map[string]uint64{}
		for _, host := range hosts[:3] {
			asked[host] = (<-pipes[host].down).GetRefresh().GetId()
		}
		pipes["answers"].up <- &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Refreshed{
			Refreshed: &dyetracev1.Refreshed{Id: asked["answers"]},
		}}
		close(pipes["goes"].up)
		if took := <-done; took != patience {
			t.Errorf("took %v, want %v, for the silent one", took, patience)
		}
		if s := f.hosts["silent"].session; len(s.fresh) != 0 {
			t.Errorf("%d answers are still waited for", len(s.fresh))
		}
		close(pipes["answers"].up)
		close(pipes["silent"].up)
		for _, end := range ends {
			<-end
		}
	})
}

// TestSilence has an agent that speaks in time, and then no more; and one that never says Hello.
func TestSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet()
		p, done := dial(t, f, "hv1")
		var last time.Time
		for range 10 {
			time.Sleep(2900 * time.Millisecond)
			p.up <- &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Heartbeat{Heartbeat: &dyetracev1.Heartbeat{}}}
			last = time.Now()
		}
		if err := <-done; !errors.Is(err, errSilent) {
			t.Errorf("session ended with %v", err)
		}
		if took := time.Since(last); took < 3*time.Second || took > 3250*time.Millisecond {
			t.Errorf("agent was gone %v after its last word, want 3s, and not much more", took)
		}
		began := time.Now()
		mute := newPipe()
		if err := mute.serve(t.Context(), f, "hv2"); err == nil || time.Since(began) != helloTimeout {
			t.Errorf("an agent without a hello: %v after %v, want it after %v", err, time.Since(began), helloTimeout)
		}
	})
}

// TestClose has sessions end with the controller, and none begin after.
func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := newFleet()
		_, done := dial(t, f, "hv1")
		f.Close()
		if err := <-done; !errors.Is(err, errClosing) {
			t.Errorf("session ended with %v", err)
		}
		p := newPipe()
		go func() {
			p.up <- &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Hello{Hello: &dyetracev1.Hello{Protocol: Protocol, Host: "hv2"}}}
		}()
		if err := p.serve(t.Context(), f, "hv2"); !errors.Is(err, errClosing) {
			t.Errorf("a session after the end: %v", err)
		}
	})
}

// TestCheckSamples breaks a good message column by column.
func TestCheckSamples(t *testing.T) {
	t.Parallel()
	if got := checkSamples(samples(1, 2), 1); got != "" {
		t.Fatalf("good samples: %q", got)
	}
	tests := []struct {
		name, want string
		spoil      func(*dyetracev1.Samples)
	}{
		{"no samples", "columns", func(m *dyetracev1.Samples) { *m = dyetracev1.Samples{} }},
		{"bridge", "columns", func(m *dyetracev1.Samples) { m.Bridge = m.Bridge[1:] }},
		{"kind", "columns", func(m *dyetracev1.Samples) { m.Kind = nil }},
		{"at_ns", "columns", func(m *dyetracev1.Samples) { m.AtNs = append(m.AtNs, 1) }},
		{"addr_tag", "columns", func(m *dyetracev1.Samples) { m.AddrTag = nil }},
		{"ttl", "columns", func(m *dyetracev1.Samples) { m.Ttl = nil }},
		{"in_port", "columns", func(m *dyetracev1.Samples) { m.InPort = nil }},
		{"tun_src", "columns", func(m *dyetracev1.Samples) { m.TunSrc = nil }},
		{"tun_id", "columns", func(m *dyetracev1.Samples) { m.TunId = nil }},
		{"reply", "columns", func(m *dyetracev1.Samples) { m.Reply = nil }},
		{"no_reply", "columns", func(m *dyetracev1.Samples) { m.NoReply = nil }},
		{"tcp_flags of an agent that tells none", "", func(m *dyetracev1.Samples) { m.TcpFlags = nil }},
		{"tcp_flags", "columns", func(m *dyetracev1.Samples) { m.TcpFlags = m.TcpFlags[1:] }},
		{"scheme", "columns", func(m *dyetracev1.Samples) { m.Scheme = m.Scheme[:1] }},
		{"no such scheme", "scheme", func(m *dyetracev1.Samples) { m.Scheme[0] = 3 }},
		{"scheme unspecified", "scheme", func(m *dyetracev1.Samples) { m.Scheme[1] = 0 }},
		{"index too large", "index", func(m *dyetracev1.Samples) { m.Index[1] = 1 }},
		{"no such bridge", "bridge", func(m *dyetracev1.Samples) { m.Bridge[0] = 1 }},
		{"no such kind", "kind", func(m *dyetracev1.Samples) { m.Kind[1] = 5 }},
		{"kind unspecified", "kind", func(m *dyetracev1.Samples) { m.Kind[1] = 0 }},
	}
	for _, tt := range tests {
		m := samples(1, 2)
		tt.spoil(m)
		if got := checkSamples(m, 1); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
