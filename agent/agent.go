package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/api/dyetrace/v1/dyetracev1connect"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/pki"
)

// cleanupTimeout bounds the removal of hooks at the end. systemd's default is
// 90 s until SIGKILL; what is left after that ages out by its lease.
const cleanupTimeout = 10 * time.Second

// Agent is one host's agent.
type Agent struct {
	cfg         Config
	version     string
	protocol    uint32
	incarnation []byte
	started     int64 // CLOCK_MONOTONIC, ns

	sw      Switch
	hooks   *hooks
	runs    runTable
	open    *openProbes
	outbox  *outbox
	client  dyetracev1connect.AgentServiceClient
	pace    *rate.Limiter // probes, over all runs
	cap     *rate.Limiter // samples
	traces  chan struct{}
	names   chan struct{}
	echo    *echo
	log     *slog.Logger
	metrics *metrics

	injectedCount atomic.Uint64
	sampleCount   atomic.Uint64
	rejectedCount atomic.Uint64
}

// New prepares an agent: it reads certificates and connects to the host's
// Open vSwitch, but changes nothing yet. reg may be nil.
func New(ctx context.Context, cfg Config, version string, reg prometheus.Registerer, log *slog.Logger) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	tlsConfig, err := pki.ClientTLS(cfg.TLS, cfg.ServerName)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	sw, err := ovs.Open(ctx, ovs.Options{DB: cfg.OVSDB, RunDir: cfg.OVSRunDir, Log: log})
	if err != nil {
		return nil, fmt.Errorf("open vswitch: %w", err)
	}
	a := assemble(cfg, version, sw, reg, log)
	transport := &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true, DisableCompression: true,
		// A controller host that vanished without a word is noticed by this.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second}}
	a.client = newClient(&http.Client{Transport: transport}, cfg.Controller)
	return a, nil
}

func newClient(c *http.Client, controller string) dyetracev1connect.AgentServiceClient {
	return dyetracev1connect.NewAgentServiceClient(c, strings.TrimSuffix(controller, "/"), connect.WithReadMaxBytes(maxMessage))
}

// assemble puts an agent together that has no way to a controller.
func assemble(cfg Config, version string, sw Switch, reg prometheus.Registerer, log *slog.Logger) *Agent {
	a := &Agent{
		cfg: cfg, version: version, protocol: Protocol, incarnation: make([]byte, 16), started: monotonic(),
		sw: sw, outbox: newOutbox(),
		pace:   rate.NewLimiter(rate.Limit(cfg.Rate), max(injectBatch, cfg.Rate/100)),
		cap:    rate.NewLimiter(rate.Limit(cfg.SampleRate), cfg.SampleRate),
		traces: make(chan struct{}, parallelTraces), names: make(chan struct{}, parallelNames),
		log: log.With("host", cfg.Host),
	}
	_, _ = rand.Read(a.incarnation) // never fails: crypto/rand
	a.open = newOpenProbes(a.log)
	a.hooks = newHooks(sw, cfg.Bridges, cfg.Lease, a.log)
	a.hooks.answers = a.runs.answers
	a.hooks.tell = func(m *dyetracev1.Changes) {
		a.outbox.offer(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Changes{Changes: m}})
	}
	a.echo = newEcho(cfg.UnderlayPort, cfg.UnderlayRate, a.log)
	a.metrics = newMetrics(reg, a.hooks, a.echo)
	collect := newCollector(a)
	a.hooks.sink, a.hooks.done = collect.copy, func(b *bridge) { collect.flush(&b.gather) }
	a.hooks.taps.sink, a.hooks.taps.done = collect.take, collect.flush
	return a
}

// Run keeps hooks and session until ctx ends, then takes hooks and dye ports
// off the host. It returns nil where ctx ended it, and an error that wraps
// ErrRejected where the controller refused the agent for good.
func (a *Agent) Run(ctx context.Context) error {
	swctx, stopSwitch := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSwitch()
	swDone := make(chan error, 1)
	go func() { swDone <- a.sw.Run(swctx) }()

	a.hooks.note()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.hooks.run(gctx) })
	g.Go(func() error { return a.dial(gctx) })
	g.Go(func() error { return a.echo.streams.Run(gctx, a.streamed) })
	err := g.Wait()

	// The switch must still be reachable for the clean-up.
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	a.open.close()
	a.echo.close()
	if rerr := a.hooks.remove(cleanup); rerr != nil {
		a.log.Error("hooks left behind; they age out by their lease", "lease", a.cfg.Lease, "err", rerr)
		err = errors.Join(err, rerr)
	}
	stopSwitch()
	return errors.Join(err, <-swDone)
}

// now is the agent's clock: nanoseconds since its start.
func (a *Agent) now() int64 { return monotonic() - a.started }

// monotonic reads the clock that packet timestamps are on.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("clock_gettime(2) of CLOCK_MONOTONIC: " + err.Error()) // cannot fail on Linux
	}
	return ts.Nano()
}

func (a *Agent) counters() *dyetracev1.AgentCounters {
	c := &dyetracev1.AgentCounters{
		Injected: a.injectedCount.Load(),
		Samples:  a.sampleCount.Load(),
		Rejected: a.rejectedCount.Load(),
	}
	c.Lost = a.hooks.taps.lostSamples()
	a.echo.count(c)
	for _, b := range a.hooks.all() {
		c.Lost += b.lostSamples()
		s := b.state.Load()
		c.HookRepairs += s.gaps
		c.HookWipes += s.wipes
		c.Unread += b.counts.missing.Load()
	}
	return c
}
