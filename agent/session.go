package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/stain"
)

// Protocol is the version of the agents' contract that this program speaks.
const Protocol = 1

// ErrRejected says that the controller refused this agent for good: dialling
// again cannot help until somebody changes something.
var ErrRejected = errors.New("rejected by the controller")

const (
	// Full jitter: a uniformly random wait below a bound that doubles from
	// minBackoff to maxBackoff. A controller restart that cuts off 2,000 agents
	// then sees them spread over 15 s.
	minBackoff = 250 * time.Millisecond
	maxBackoff = 15 * time.Second
	// A queue of 256 messages of up to 512 samples holds over a second of what
	// a dye port can carry.
	queueLength = 256
	// A controller that does not welcome an agent for this long is not there.
	welcomeTimeout = 10 * time.Second
)

// stream is the agent's side of a session, as connect provides it.
type stream interface {
	Send(*dyetracev1.SessionRequest) error
	Receive() (*dyetracev1.SessionResponse, error)
}

// outbox is the bounded queue of what the agent says. It outlives sessions:
// between them, everything put into it is dropped.
type outbox struct {
	queue chan *dyetracev1.SessionRequest
	open  atomic.Bool
}

func newOutbox() *outbox {
	return &outbox{queue: make(chan *dyetracev1.SessionRequest, queueLength)}
}

// offer queues a message if there is room, and reports whether there was.
func (o *outbox) offer(m *dyetracev1.SessionRequest) bool {
	if !o.open.Load() {
		return false
	}
	select {
	case o.queue <- m:
		return true
	default:
		return false
	}
}

// put queues a message, waiting for room until ctx ends.
func (o *outbox) put(ctx context.Context, m *dyetracev1.SessionRequest) error {
	select {
	case o.queue <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (o *outbox) drain() {
	for {
		select {
		case <-o.queue:
		default:
			return
		}
	}
}

// dial keeps a session with the controller until ctx ends, or the controller
// rejects this agent for good.
func (a *Agent) dial(ctx context.Context) error {
	bound := minBackoff
	for {
		welcomed, err := a.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrRejected) {
			return err
		}
		if welcomed {
			bound = minBackoff
		}
		wait := rand.N(bound)
		bound = min(2*bound, maxBackoff)
		a.metrics.reconnects.Inc()
		a.log.Warn("no session with the controller", "controller", a.cfg.Controller, "err", err, "again_in", wait.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// session runs one session; welcomed says whether it got as far as Welcome.
func (a *Agent) session(ctx context.Context) (welcomed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	st := a.client.Session(ctx)
	// net/http heeds a cancelled context on such a stream only once the request's
	// body has ended: without this, Receive would wait for the controller to give up.
	stop := context.AfterFunc(ctx, func() { _ = st.CloseRequest() })
	defer stop()
	defer closeStream(st)

	greeting := time.AfterFunc(welcomeTimeout, func() {
		cancel(fmt.Errorf("no welcome from the controller within %v", welcomeTimeout))
	})
	welcome, err := a.greet(st)
	if !greeting.Stop() && context.Cause(ctx) != nil {
		return false, context.Cause(ctx)
	}
	if err != nil {
		return false, err
	}
	if err := a.hooks.setStain(ctx, stainOf(welcome.Stain)); err != nil {
		a.log.Warn("replacing hooks of another stain", "err", err)
	}
	a.echo.setKey(welcome.UnderlayKey)
	a.log.Info("session with the controller", "controller", a.cfg.Controller, "version", welcome.Version)
	a.outbox.drain()
	a.runs.clear()
	a.outbox.open.Store(true)
	a.metrics.connected.Set(1)
	defer func() {
		a.outbox.open.Store(false)
		a.metrics.connected.Set(0)
		a.runs.clear()
		a.stream(nil)
	}()

	// Whichever ends first ends the others: cancelling ctx resets the stream,
	// which wakes a Send or Receive that waits on a dead peer.
	var g errgroup.Group
	for _, part := range []func() error{
		func() error { return a.write(ctx, st) },
		func() error { return a.report(ctx, time.Duration(welcome.HeartbeatMs)*time.Millisecond) },
		func() error { return a.read(ctx, st) },
	} {
		g.Go(func() error {
			err := part()
			cancel(err)
			return err
		})
	}
	if err := g.Wait(); context.Cause(ctx) == nil || errors.Is(err, ErrRejected) {
		return true, err
	}
	return true, context.Cause(ctx)
}

func closeStream(st *connect.BidiStreamForClient[dyetracev1.SessionRequest, dyetracev1.SessionResponse]) {
	// The stream's own failure was reported by Send or Receive; what closing
	// adds to it says nothing new.
	_ = st.CloseRequest()
	_ = st.CloseResponse()
}

// greet says Hello and returns the controller's Welcome.
func (a *Agent) greet(st stream) (*dyetracev1.Welcome, error) {
	err := st.Send(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Hello{Hello: &dyetracev1.Hello{
		Protocol: a.protocol, Host: a.cfg.Host, Version: a.version,
		OvsVersion: a.sw.Snapshot().OVSVersion, Incarnation: a.incarnation,
	}}})
	if err != nil {
		// The reason of a failed Send is with Receive (connect's documentation of Send).
		if _, rerr := st.Receive(); rerr != nil {
			err = rerr
		}
		return nil, fmt.Errorf("hello: %w", err)
	}
	m, err := st.Receive()
	if err != nil {
		return nil, fmt.Errorf("welcome: %w", err)
	}
	switch m := m.Message.(type) {
	case *dyetracev1.SessionResponse_Welcome:
		if m.Welcome.Stain == nil {
			return nil, errors.New("welcome: no stain in it")
		}
		if err := stainOf(m.Welcome.Stain).Validate(); err != nil {
			return nil, fmt.Errorf("welcome: %w", err)
		}
		return m.Welcome, nil
	case *dyetracev1.SessionResponse_Reject:
		if m.Reject.Permanent {
			return nil, fmt.Errorf("%w: %s", ErrRejected, m.Reject.Reason)
		}
		return nil, fmt.Errorf("not now: %s", m.Reject.Reason)
	}
	return nil, fmt.Errorf("welcome: the controller said %T instead", m.Message)
}

func stainOf(s *dyetracev1.Stain) stain.Stain {
	return stain.Stain{TOS: uint8(s.GetTos()), Port: uint16(s.GetPort())}
}

// write sends what is queued.
func (a *Agent) write(ctx context.Context, st stream) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-a.outbox.queue:
			if err := st.Send(m); err != nil {
				return fmt.Errorf("sending: %w", err)
			}
		}
	}
}

// report tells the controller of the host's state when it changes, and that we live.
func (a *Agent) report(ctx context.Context, every time.Duration) error {
	if every <= 0 {
		every = time.Second
	}
	beat := time.NewTicker(every)
	defer beat.Stop()
	var last *dyetracev1.HostState
	var seq uint64
	a.hooks.reconcile(ctx)
	for {
		if state := a.state(); last == nil || !proto.Equal(state, last) {
			last = state
			err := a.outbox.put(ctx, &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_State{State: state}})
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.hooks.changed:
			continue
		case <-beat.C:
		}
		seq++
		err := a.outbox.put(ctx, &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Heartbeat{
			Heartbeat: &dyetracev1.Heartbeat{Sequence: seq, Counters: a.counters()},
		}})
		if err != nil {
			return err
		}
	}
}

// read answers the controller until the stream ends. Requests that take long
// run beside it, each bounded in number, so that none waits for another's.
func (a *Agent) read(ctx context.Context, st stream) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lanes := newLanes(a.log)
	for {
		m, err := st.Receive()
		if err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
		switch m := m.Message.(type) {
		case *dyetracev1.SessionResponse_Prepare:
			if err := a.runs.add(m.Prepare, time.Now()); err != nil {
				a.log.Warn("run refused", "err", err)
				continue // no Ready: the controller sees that this host takes no part
			}
			if !lanes.prepare.try(&wg, 1, func() { a.ready(ctx, m.Prepare.Run) }) {
				a.runs.remove(m.Prepare.Run)
				lanes.unanswered("prepare")
			}
		case *dyetracev1.SessionResponse_Inject:
			if !lanes.inject.try(&wg, held(m.Inject, m.Inject.Ports), func() { a.inject(ctx, m.Inject) }) {
				a.refuseInject(ctx, m.Inject, errBusy)
			}
		case *dyetracev1.SessionResponse_Withdraw:
			a.open.end(m.Withdraw.Run, m.Withdraw.Index) // not beside it: what follows counts on it
		case *dyetracev1.SessionResponse_Arm:
			if !lanes.arm.try(&wg, held(m.Arm, m.Arm.Answers, m.Arm.WithholdAt), func() { a.arm(ctx, m.Arm) }) {
				a.sayArmed(ctx, m.Arm, errBusy)
			}
		case *dyetracev1.SessionResponse_Audit:
			if !lanes.audit.try(&wg, 1, func() { a.attest(ctx, m.Audit) }) {
				lanes.unanswered("audit")
			}
		case *dyetracev1.SessionResponse_Finish:
			if !lanes.finish.try(&wg, 1, func() { a.finish(ctx, m.Finish.Run) }) {
				a.end(m.Finish.Run)
				lanes.unanswered("finish")
			}
		case *dyetracev1.SessionResponse_Refresh:
			if !lanes.refresh.try(&wg, 1, func() { a.refresh(ctx, m.Refresh.Id) }) {
				lanes.unanswered("refresh")
			}
		case *dyetracev1.SessionResponse_Explain:
			if !lanes.explain.try(&wg, 1, func() { a.explain(ctx, m.Explain) }) {
				a.say(ctx, explanationError(m.Explain.Id, fmt.Errorf("%d explanations are under way on this host, no more are taken", maxExplain)))
			}
		case *dyetracev1.SessionResponse_ProbeUnderlay:
			if !lanes.explore.try(&wg, 1, func() { a.probeUnderlay(ctx, m.ProbeUnderlay) }) {
				a.say(ctx, underlayError(m.ProbeUnderlay.Id, fmt.Errorf("%d underlay probes are under way on this host, no more are taken: %w", maxUnderlay, errUnderlayBusy)))
			}
		case *dyetracev1.SessionResponse_StreamUnderlay:
			for _, m := range a.stream(m.StreamUnderlay) {
				a.say(ctx, &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_UnderlayCounts{UnderlayCounts: m}})
			}
		case *dyetracev1.SessionResponse_Reject:
			if m.Reject.Permanent {
				return fmt.Errorf("%w: %s", ErrRejected, m.Reject.Reason)
			}
			return fmt.Errorf("session ended by the controller: %s", m.Reject.Reason)
		default:
			// A newer controller may say what we do not know; it must not
			// count on it, since Hello told it our version.
			a.log.Debug("message not understood", "type", fmt.Sprintf("%T", m))
		}
	}
}

// say queues an answer; if the session ends first there is nobody to hear it.
func (a *Agent) say(ctx context.Context, m *dyetracev1.SessionRequest) {
	if err := a.outbox.put(ctx, m); err != nil && ctx.Err() == nil {
		a.log.Warn("answer lost", "err", err)
	}
}

// refresh tells the host's state as it is now.
func (a *Agent) refresh(ctx context.Context, id uint64) {
	if err := a.sw.Sync(ctx); err != nil {
		a.log.Warn("reading the switch anew", "err", err)
	}
	a.hooks.reconcile(ctx)
	a.say(ctx, &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_State{State: a.state()}})
	a.say(ctx, &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Refreshed{Refreshed: &dyetracev1.Refreshed{Id: id}}})
}

func (a *Agent) ready(ctx context.Context, run uint64) {
	a.say(ctx, &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Ready{
		Ready: &dyetracev1.Ready{Run: run, Windows: a.hooks.audit(ctx, false)},
	}})
}

// attest audits the hooks in the middle of a run. What was seen before is queued before.
func (a *Agent) attest(ctx context.Context, m *dyetracev1.Audit) {
	if m.Patient {
		ctx = ovs.Patient(ctx)
	}
	a.say(ctx, &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Audited{
		Audited: &dyetracev1.Audited{Run: m.Run, Windows: a.hooks.audit(ctx, true)},
	}})
}

func (a *Agent) finish(ctx context.Context, run uint64) {
	windows := a.hooks.audit(ctx, true)
	armed := a.end(run)
	a.say(ctx, &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Finished{
		Finished: &dyetracev1.Finished{Run: run, Windows: windows},
	}})
	if armed {
		a.hooks.reconcile(ctx) // else the next audit does it
	}
}

// end forgets a run, and tells whether it had armed ports.
func (a *Agent) end(run uint64) (armed bool) {
	armed = a.runs.remove(run)
	a.hooks.taps.finish(run, monotonic())
	return armed
}
