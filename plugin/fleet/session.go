package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/stain"
)

// Why a session ended; the run's users read it.
var (
	errSilent  = errors.New("no heartbeat")
	errFull    = errors.New("does not read what it is sent")
	errLeft    = errors.New("disconnected")
	errClosing = errors.New("the controller is shutting down")
	errNone    = errors.New("not connected")
)

// session is one agent, connected.
type session struct {
	fleet      *Fleet
	host       string
	version    string
	ovsVersion string
	queue      chan *dyetracev1.SessionResponse
	end        context.CancelCauseFunc // the first cause stands

	lastSeen atomic.Int64 // Unix nanoseconds
	counters atomic.Pointer[dyetracev1.AgentCounters]

	mu       sync.Mutex
	ended    error // why; nil while the session lives
	runs     map[uint64]member
	explains map[uint64]uint64        // Explain.id or ProbeUnderlay.id to the run that asked
	reports  map[uint64]reportWait    // by ProbeUnderlay.id, those of no run
	fresh    map[uint64]chan struct{} // by Refresh.id, closed by the answer
	past     [pastRuns]uint64         // runs that are over, a ring
	pastNext int
}

// pastRuns is how many runs a session remembers after their end: what still comes for them is
// late, and no sign of an agent out of its mind.
const pastRuns = 64

// member is a session's part in a run.
type member struct {
	run  *Assignment
	host int // index in the run's hosts
}

func (s *session) agent(connected bool) Agent {
	return Agent{
		Host: s.host, Connected: connected, LastSeen: time.Unix(0, s.lastSeen.Load()),
		Version: s.version, OVSVersion: s.ovsVersion, Counters: s.counters.Load(),
	}
}

// stream is the controller's side of a session, as connect provides it.
type stream interface {
	Receive() (*dyetracev1.SessionRequest, error)
	Send(*dyetracev1.SessionResponse) error
}

// serve is the life of one session.
func (f *Fleet) serve(ctx context.Context, st stream) error {
	host, ok := agentOf(ctx)
	if !ok {
		return connect.NewError(connect.CodeUnauthenticated, errors.New("no agent's certificate"))
	}
	dl := deadlinesOf(ctx)
	hello, err := greet(st, dl)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("agent of %s: %w", host, err))
	}
	if reject := check(host, hello); reject != nil {
		f.metrics.refused.Inc()
		f.log.Warn("agent refused", "host", host, "reason", reject.GetReason())
		return st.Send(&dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Reject{Reject: reject}})
	}

	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s := &session{
		fleet: f, host: host, version: hello.GetVersion(), ovsVersion: hello.GetOvsVersion(),
		queue: make(chan *dyetracev1.SessionResponse, queueLength),
		end:   end, runs: map[uint64]member{}, explains: map[uint64]uint64{}, reports: map[uint64]reportWait{}, fresh: map[uint64]chan struct{}{},
	}
	s.lastSeen.Store(time.Now().UnixNano())
	s.queue <- &dyetracev1.SessionResponse{Message: &dyetracev1.SessionResponse_Welcome{Welcome: f.welcome()}}
	f.admit(s)
	f.log.Info("agent connected", "host", host, "version", s.version, "ovs", s.ovsVersion)

	var wg sync.WaitGroup
	wg.Go(func() { s.write(ctx, st, dl) })
	stop := context.AfterFunc(ctx, dl.stopReading)
	err = s.read(st, dl)
	end(err)
	// The writer may wait for an agent that does not read; and so may the last word below.
	late := time.AfterFunc(farewell, dl.stopWriting)
	wg.Wait()
	late.Stop()
	stop()
	dl.write(farewell)

	why := context.Cause(ctx)
	if errors.Is(why, context.Canceled) { // the connection is gone
		why = errLeft
	}
	f.leave(s)
	s.detach(why)
	f.metrics.ended.WithLabelValues(reasonLabel(why)).Inc()
	f.log.Info("agent gone", "host", host, "reason", why)
	if errors.Is(why, errLeft) {
		return nil
	}
	return connect.NewError(connect.CodeUnavailable, why)
}

// greet waits for the agent's Hello.
func greet(st stream, dl *deadlines) (*dyetracev1.Hello, error) {
	dl.read(helloTimeout)
	m, err := st.Receive()
	if err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	h, ok := m.GetMessage().(*dyetracev1.SessionRequest_Hello)
	if !ok {
		return nil, fmt.Errorf("hello: %T came first, want a hello", m.GetMessage())
	}
	return h.Hello, nil
}

// check returns why an agent with that certificate may not have a session; nil if it may.
func check(host string, h *dyetracev1.Hello) *dyetracev1.Reject {
	switch {
	case h.GetHost() != host:
		return &dyetracev1.Reject{Permanent: true, Reason: fmt.Sprintf(
			"certificate is for %s, agent says %s: give the agent the certificate of its host, or set its host to %s", host, h.GetHost(), host)}
	case h.GetProtocol() > Protocol:
		return &dyetracev1.Reject{Permanent: true, Reason: fmt.Sprintf(
			"agent speaks protocol %d, this controller up to %d: update the controller first", h.GetProtocol(), Protocol)}
	case h.GetProtocol() == 0:
		return &dyetracev1.Reject{Permanent: true, Reason: fmt.Sprintf(
			"hello.protocol: 0, want 1 to %d", Protocol)}
	}
	return nil
}

func (f *Fleet) welcome() *dyetracev1.Welcome {
	return &dyetracev1.Welcome{
		Stain:       StainProto(f.cfg.Stain),
		HeartbeatMs: uint32(f.cfg.Heartbeat.Milliseconds()),
		Version:     f.cfg.Version,
		UnderlayKey: f.underlayKey[:],
	}
}

// StainProto returns a stain as the contract has it.
func StainProto(s stain.Stain) *dyetracev1.Stain {
	return &dyetracev1.Stain{Tos: uint32(s.TOS), Port: uint32(s.Port)}
}

// write sends what is queued until ctx ends.
func (s *session) write(ctx context.Context, st stream, dl *deadlines) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-s.queue:
			began := time.Now()
			dl.write(sendTimeout)
			err := st.Send(m)
			dl.write(0)
			switch {
			case err != nil && time.Since(began) >= sendTimeout:
				s.end(fmt.Errorf("%w for %v", errFull, sendTimeout))
				return
			case err != nil:
				s.end(fmt.Errorf("%w: sending: %w", errLeft, err))
				return
			}
		}
	}
}

// read takes in what the agent says until the stream ends; the error is why, never nil.
func (s *session) read(st stream, dl *deadlines) error {
	patience := missedBeats * s.fleet.cfg.Heartbeat
	var renewed time.Time
	for {
		// A deadline costs a message to the connection's goroutine, so it is not renewed for
		// each of thousands of messages a second.
		slack := s.fleet.cfg.Heartbeat / 4
		if now := time.Now(); now.Sub(renewed) > slack {
			dl.read(patience + slack)
			renewed = now
		}
		m, err := st.Receive()
		switch {
		case errors.Is(err, io.EOF):
			return errLeft
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("%w for %v", errSilent, patience)
		case err != nil:
			return fmt.Errorf("%w: %w", errLeft, err)
		}
		s.lastSeen.Store(time.Now().UnixNano())
		s.take(m)
	}
}

// take takes in one message.
func (s *session) take(m *dyetracev1.SessionRequest) {
	switch m := m.GetMessage().(type) {
	case *dyetracev1.SessionRequest_State:
		s.fleet.setState(s, m.State)
	case *dyetracev1.SessionRequest_Heartbeat:
		s.counters.Store(m.Heartbeat.GetCounters())
	case *dyetracev1.SessionRequest_Samples:
		s.takeSamples(m.Samples)
	case *dyetracev1.SessionRequest_Ready:
		s.answer(m.Ready.GetRun(), m.Ready)
	case *dyetracev1.SessionRequest_Armed:
		s.answer(m.Armed.GetRun(), m.Armed)
	case *dyetracev1.SessionRequest_Audited:
		s.answer(m.Audited.GetRun(), m.Audited)
	case *dyetracev1.SessionRequest_Changes:
		s.spread(m.Changes)
	case *dyetracev1.SessionRequest_Injected:
		s.answer(m.Injected.GetRun(), m.Injected)
	case *dyetracev1.SessionRequest_Finished:
		s.answer(m.Finished.GetRun(), m.Finished)
	case *dyetracev1.SessionRequest_Refreshed:
		s.refreshed(m.Refreshed.GetId())
	case *dyetracev1.SessionRequest_Explanation:
		s.answer(s.explained(m.Explanation.GetId()), m.Explanation)
	case *dyetracev1.SessionRequest_UnderlayReport:
		if !s.reported(m.UnderlayReport) {
			s.answer(s.explained(m.UnderlayReport.GetId()), m.UnderlayReport)
		}
	case *dyetracev1.SessionRequest_UnderlayCounts:
		if !s.fleet.streams.counted(s.host, m.UnderlayCounts) {
			s.fleet.metrics.unasked.Inc()
		}
	default: // a second Hello, or what a later contract has
		s.fleet.metrics.unasked.Inc()
	}
}

// answer hands an answer to the run that asked; one that nobody asked for is dropped.
func (s *session) answer(run uint64, m any) {
	part, ok := s.member(run)
	if !ok && s.over(run) || ok && part.run.answer(part.host, m) {
		return
	}
	s.fleet.metrics.unasked.Inc()
}

// over says whether a run has ended not long ago.
func (s *session) over(run uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return run != 0 && slices.Contains(s.past[:], run)
}

// spread tells all runs that the host takes part in.
func (s *session) spread(m *dyetracev1.Changes) {
	s.mu.Lock()
	parts := slices.Collect(maps.Values(s.runs))
	s.mu.Unlock()
	for _, part := range parts {
		part.run.changed(part.host, m)
	}
}

func (s *session) takeSamples(m *dyetracev1.Samples) {
	part, ok := s.member(m.GetRun())
	reason := ""
	switch {
	case !ok && s.over(m.GetRun()):
		reason = "late"
	case !ok:
		reason = "run"
	default:
		reason = checkSamples(m, part.run.spec.Total)
	}
	if reason != "" {
		s.fleet.metrics.rejected.WithLabelValues(reason).Add(float64(max(1, len(m.GetIndex()))))
		return
	}
	s.fleet.metrics.samples.Add(float64(len(m.GetIndex())))
	if !part.run.samples(part.host, m) {
		s.fleet.metrics.dropped.Add(float64(len(m.GetIndex())))
	}
}

func (s *session) member(run uint64) (member, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	part, ok := s.runs[run]
	return part, ok
}

// attach makes the session take part in a run; the error is why it cannot.
func (s *session) attach(part member) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return s.ended
	}
	s.runs[part.run.number] = part
	return nil
}

func (s *session) forget(run uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.runs[run]; !ok {
		return
	}
	delete(s.runs, run)
	s.past[s.pastNext%pastRuns] = run
	s.pastNext++
	maps.DeleteFunc(s.explains, func(_, asker uint64) bool { return asker == run })
}

// explain remembers who asks; the answer names only the id.
func (s *session) explain(id, run uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		s.explains[id] = run
	}
}

// explained returns who asked, once; 0, which is no run, for an id that nobody waits for.
func (s *session) explained(id uint64) (run uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	run = s.explains[id]
	delete(s.explains, id)
	return run
}

// detach tells all runs that the session is over.
func (s *session) detach(why error) {
	s.mu.Lock()
	runs, fresh, reports := s.runs, s.fresh, s.reports
	s.runs, s.explains, s.fresh, s.reports, s.ended = nil, nil, nil, nil, why
	s.mu.Unlock()
	for _, w := range reports {
		close(w)
	}
	for _, answered := range fresh {
		close(answered)
	}
	for _, part := range runs {
		part.run.gone(part.host, why)
	}
}

// send queues a message. If there is no room the session ends, and the run learns of it as of
// any other end.
func (s *session) send(m *dyetracev1.SessionResponse) {
	select {
	case s.queue <- m:
	default:
		s.end(fmt.Errorf("%w: %d messages wait", errFull, queueLength))
	}
}

func reasonLabel(why error) string {
	switch {
	case errors.Is(why, errReplaced):
		return "replaced"
	case errors.Is(why, errSilent):
		return "silent"
	case errors.Is(why, errFull):
		return "slow"
	case errors.Is(why, errClosing):
		return "closing"
	}
	return "left"
}

// deadlines bounds how long a stream of HTTP/2 may wait. The response writer must not be
// touched once the handler has returned, which context.AfterFunc cannot know: hence the lock.
type deadlines struct {
	mu   sync.Mutex
	rc   deadliner
	done bool
}

// deadliner is what deadlines need of an http.ResponseController.
type deadliner interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

type deadlinesKey struct{}

func withDeadlines(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := &deadlines{rc: http.NewResponseController(w)}
		defer func() {
			d.mu.Lock()
			d.done = true
			d.mu.Unlock()
		}()
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), deadlinesKey{}, d)))
	})
}

func deadlinesOf(ctx context.Context) *deadlines {
	return ctx.Value(deadlinesKey{}).(*deadlines) // Handler has put it there
}

// read makes Receive fail with os.ErrDeadlineExceeded after that time.
func (d *deadlines) read(after time.Duration) {
	d.set(func(rc deadliner) { _ = rc.SetReadDeadline(time.Now().Add(after)) })
}

// write makes Send fail after that time; 0 is never.
func (d *deadlines) write(after time.Duration) {
	var t time.Time
	if after > 0 {
		t = time.Now().Add(after)
	}
	d.set(func(rc deadliner) { _ = rc.SetWriteDeadline(t) })
}

// stopReading makes a Receive that waits fail now.
func (d *deadlines) stopReading() {
	d.set(func(rc deadliner) { _ = rc.SetReadDeadline(time.Unix(1, 0)) })
}

// stopWriting makes a Send that waits fail now. Nothing more can be said to the agent then.
func (d *deadlines) stopWriting() {
	d.set(func(rc deadliner) { _ = rc.SetWriteDeadline(time.Unix(1, 0)) })
}

// set drops errors: they say that the server has no deadlines, which ours has.
func (d *deadlines) set(f func(deadliner)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.done {
		f(d.rc)
	}
}
