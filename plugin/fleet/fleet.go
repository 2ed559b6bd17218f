package fleet

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/api/dyetrace/v1/dyetracev1connect"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/stain"
)

// Protocol is the newest version of the agents' contract that this controller speaks.
const Protocol = 1

const (
	// queueLength bounds the messages that wait for one agent. A run has one Prepare, one
	// Finish, an Inject per tick and a few Explains outstanding at once: 256 messages are some
	// tens of runs at the same time, or an agent that does not read.
	queueLength = 256
	// maxMessage bounds what one message of an agent may take, in bytes. The largest is the
	// state of a host: 2,000 endpoints are some 300 kB.
	maxMessage = 4 << 20
	// missedBeats is after how many heartbeats of silence an agent is gone.
	missedBeats = 3
	// helloTimeout is how long a new stream may stay silent.
	helloTimeout = 10 * time.Second
	// sendTimeout is how long an agent may leave what we send unread, once the windows of
	// HTTP/2 are full.
	sendTimeout = 10 * time.Second
	// farewell is how long an agent may take to read why its session ends.
	farewell = time.Second
)

// Book is where the fleet writes what agents tell of their hosts.
type Book interface {
	SetHost(inventory.Host)
	DropHost(name string)
}

// Config is what a fleet has in common.
type Config struct {
	Stain stain.Stain
	// Heartbeat is how often agents say that they live.
	Heartbeat time.Duration
	// Version of the controller's program.
	Version string
	Book    Book
	Log     *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Fleet is all agents. Its methods may be called from many goroutines.
type Fleet struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	mu          sync.Mutex
	closed      bool
	hosts       map[string]*host
	nextRun     uint64
	nextExplain uint64
	streams     streams

	// underlayKey authenticates the datagrams that agents exchange: fresh in each process, so what
	// was recorded before is worth nothing.
	underlayKey [underlayKeySize]byte
}

// host is what is known of one agent; it outlives sessions.
type host struct {
	name    string
	session *session // nil while there is none
	known   acquaintance
	last    Agent // as of the end of the last session
}

// Agent is one agent as the fleet knows it.
type Agent struct {
	Host      string
	Connected bool
	// LastSeen is when the last message came.
	LastSeen time.Time
	// Version of the agent's program, OVSVersion of Open vSwitch.
	Version, OVSVersion string
	// Counters are those of the last heartbeat; nil before the first.
	Counters *dyetracev1.AgentCounters
}

// New returns a fleet without agents.
func New(cfg Config) *Fleet {
	f := &Fleet{
		cfg:   cfg,
		log:   cfg.Log,
		hosts: map[string]*host{},
		// An agent may outlive the controller, and remember a run of the last one for a
		// while. Runs are told apart by key too; this only keeps the counters clean.
		nextRun: rand.Uint64()>>1 + 1,
	}
	_, _ = crand.Read(f.underlayKey[:]) // never fails: crypto/rand
	f.metrics = newMetrics(cfg.Metrics, f.queued)
	return f
}

// Handler returns the agents' service, and the path that it wants to be served under. Requests
// must have passed [WithAgent].
func (f *Fleet) Handler() (path string, h http.Handler) {
	path, h = dyetracev1connect.NewAgentServiceHandler(service{f}, connect.WithReadMaxBytes(maxMessage))
	return path, withDeadlines(h)
}

// service keeps the RPC's method out of Fleet's own.
type service struct{ fleet *Fleet }

func (s service) Session(ctx context.Context, stream *connect.BidiStream[dyetracev1.SessionRequest, dyetracev1.SessionResponse]) error {
	return s.fleet.serve(ctx, stream)
}

type agentKey struct{}

// WithAgent vouches for the agent behind a request: it has shown to be the agent of this host.
func WithAgent(ctx context.Context, host string) context.Context {
	return context.WithValue(ctx, agentKey{}, host)
}

func agentOf(ctx context.Context) (string, bool) {
	host, ok := ctx.Value(agentKey{}).(string)
	return host, ok
}

// Agents returns all agents that ever had a session, by host.
func (f *Fleet) Agents() []Agent {
	f.mu.Lock()
	defer f.mu.Unlock()
	agents := make([]Agent, 0, len(f.hosts))
	for _, h := range f.hosts {
		if h.session != nil {
			agents = append(agents, h.session.agent(true))
		} else {
			agents = append(agents, h.last)
		}
	}
	slices.SortFunc(agents, func(a, b Agent) int { return cmp.Compare(a.Host, b.Host) })
	return agents
}

// queued is the length of the longest send queue.
func (f *Fleet) queued() float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	longest := 0
	for _, h := range f.hosts {
		if h.session != nil {
			longest = max(longest, len(h.session.queue))
		}
	}
	return float64(longest)
}

// errReplaced ends a session when the same host says Hello again.
var errReplaced = errors.New("replaced by a new session of the same host")

// Close ends all sessions, and lets none begin. It does not wait for them: the server that
// serves the handler does.
func (f *Fleet) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, h := range f.hosts {
		if h.session != nil {
			h.session.end(errClosing)
		}
	}
}

// admit makes s the session of its host.
func (f *Fleet) admit(s *session) {
	f.mu.Lock()
	if f.closed {
		s.end(errClosing)
	}
	h := f.hosts[s.host]
	if h == nil {
		h = &host{name: s.host}
		f.hosts[s.host] = h
	}
	old := h.session
	h.session = s
	f.mu.Unlock()

	f.streams.resend(f, s.host)
	f.metrics.sessions.Inc()
	if old != nil {
		old.end(errReplaced)
		return // as many agents as before
	}
	f.metrics.agents.Inc()
}

// leave forgets s, unless another session has taken its place.
func (f *Fleet) leave(s *session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[s.host]
	if h.session != s {
		return
	}
	h.session, h.known = nil, acquaintance{}
	h.last = s.agent(false)
	f.metrics.agents.Dec()
	f.cfg.Book.DropHost(s.host)
}

// setState takes in what the agent of s says of its host. The lock keeps the last word of a
// session that was replaced from overtaking the first of its successor.
func (f *Fleet) setState(s *session, state *dyetracev1.HostState) {
	if f.noteState(s, state) {
		f.streams.bounded(f, s.host)
	}
}

// noteState is setState but for what follows; false where another session has taken the place of s.
func (f *Fleet) noteState(s *session, state *dyetracev1.HostState) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hosts[s.host].session != s {
		return false
	}
	h := f.hosts[s.host]
	if !slices.Equal(h.known.echo.GetAddresses(), state.GetUnderlay().GetAddresses()) || h.known.echo.GetPort() != state.GetUnderlay().GetPort() {
		h.known = acquaintance{}
	}
	h.known.echo = state.GetUnderlay()
	f.cfg.Book.SetHost(inventory.Host{
		Name: s.host, Connected: true, Bridges: state.GetBridges(), Endpoints: state.GetEndpoints(),
		Underlay: state.GetUnderlay(), MTUs: state.GetEndpointMtu(),
	})
	return true
}
