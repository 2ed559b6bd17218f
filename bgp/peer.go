package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/dyetrace/dyetrace/bgp/rib"
)

// waits of a peer between connections.
type waits struct {
	// least and most are bounds of the wait after a failure, which doubles. A speaker that
	// restarts is back in a second or a minute; a SYN a minute to one that is gone costs nothing.
	least, most time.Duration
	// hold is how long a peer is not heard after we ended its session for what it sent: it would
	// send the same again, and a full table of it.
	hold time.Duration
	// stale is how long routes of a restarted peer stay without an End-of-RIB (the
	// Selection_Deferral_Timer's counterpart in RFC 4724, section 4.2); FRR's stalepath-time.
	stale time.Duration
	// quiet is after how long without an UPDATE a peer that promises no End-of-RIB has told all:
	// twice MinRouteAdvertisementIntervalTimer (RFC 4271, section 10).
	quiet time.Duration
}

const holdOff = time.Minute

var defaultWaits = waits{least: time.Second, most: time.Minute, hold: holdOff, stale: 360 * time.Second, quiet: time.Minute}

// peer keeps a session with one peer, from configured to removed.
type peer struct {
	routerID netip.Addr
	waits    waits
	log      *slog.Logger
	feed     Feed
	inbound  chan net.Conn // prepared, of the peer's address
	options  chan rib.PeerOptions
	asks     chan chan<- error // for routes again
	cancel   context.CancelCauseFunc
	ended    chan struct{}

	cfg Peer // of the session; what feeds are told may have changed since
	// want and told are what Speaker knows: the configuration now, and what the feed was told last.
	want Peer
	told rib.PeerOptions

	feedMu sync.Mutex // feed's methods are called one at a time

	mu      sync.Mutex
	status  Status
	reason  error    // why the last session ended, if one side said so; until the next is established
	parked  net.Conn // came in while one that we dialed waits for its OPEN
	opening *session // has not seen its OPEN yet
}

func newPeer(s *Speaker, cfg Peer, o rib.PeerOptions) *peer {
	p := &peer{
		routerID: s.routerID, waits: s.waits, log: s.log.With("peer", cfg.Address),
		feed: s.learn(cfg.Address, o), cfg: cfg, want: cfg, told: o,
		inbound: make(chan net.Conn, 1), options: make(chan rib.PeerOptions, 1), asks: make(chan chan<- error),
		ended: make(chan struct{}),
	}
	p.status = Status{Address: cfg.Address, AS: uint32(cfg.AS), LocalAS: uint32(cfg.LocalAS), State: Idle, Since: time.Now()}
	return p
}

// loop is what run knows between its events.
type loop struct {
	*peer
	ctx     context.Context
	current *session
	seen    bool // that current was established
	dialing chan dialed
	undial  context.CancelFunc
	retry   *time.Timer // runs while there is nothing to wait for but time
	sweep   *time.Timer // runs while routes are stale
	settle  *time.Timer // runs while a peer without End-of-RIB may not have told all
	delay   time.Duration
	deaf    bool // until retry
}

type dialed struct {
	conn net.Conn
	err  error
}

// run keeps the session until ctx ends, whose cause the peer is told. Routes are gone with it.
func (p *peer) run(ctx context.Context) {
	defer func() {
		close(p.ended)
		p.drain(ceaseShutdown) // what was handed over since; from here on nothing is
	}()
	l := &loop{peer: p, ctx: ctx, retry: stopped(), sweep: stopped(), settle: stopped(), delay: p.waits.least}
	defer l.close()
	l.dial()
	for l.step() {
	}
}

// stopped returns a timer that does not run.
func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func (l *loop) step() bool {
	var up, done chan struct{}
	if l.current != nil {
		done = l.current.done
		if !l.seen {
			up = l.current.up
		}
	}
	select {
	case <-l.ctx.Done():
		return false
	case c := <-l.inbound:
		l.incoming(c)
	case d := <-l.dialing:
		l.dialed(d)
	case <-l.retry.C:
		l.deaf = false
		l.dial()
	case <-l.sweep.C:
		l.restarting(time.Time{})
		l.feedSweep()
	case <-up:
		l.up()
	case <-done:
		l.over()
	case <-l.settle.C:
		l.quiet()
	case o := <-l.options:
		l.setOptions(o)
	case ask := <-l.asks:
		ask <- l.refresh()
	}
	return true
}

// dial begins to, unless the peer does it, or did.
func (l *loop) dial() {
	if l.current != nil || l.dialing != nil {
		return
	}
	if l.cfg.Passive {
		l.setState(Active)
		return
	}
	l.setState(Connect)
	ctx, cancel := context.WithCancel(l.ctx)
	result := make(chan dialed, 1)
	l.undial, l.dialing = cancel, result
	go func() {
		c, err := dial(ctx, l.cfg)
		result <- dialed{c, err}
	}()
}

func (l *loop) dialed(d dialed) {
	l.undial()
	l.dialing = nil
	if d.err != nil {
		l.failed(fmt.Errorf("cannot connect: %w", d.err))
		l.wait(false)
		return
	}
	l.begin(d.conn, true)
}

// stopDialing waits for a dial under way to end, and forgets what came of it.
func (l *loop) stopDialing() {
	if l.dialing == nil {
		return
	}
	l.undial()
	if d := <-l.dialing; d.conn != nil {
		d.conn.Close()
	}
	l.dialing = nil
}

func (l *loop) begin(c net.Conn, dialed bool) {
	l.retry.Stop()
	l.mu.Lock() // so that its OPEN cannot be seen before we expect it
	defer l.mu.Unlock()
	s := startSession(l.peer, c, dialed)
	l.opening, l.current, l.seen = s, s, false
}

// wait lets time pass before the next attempt: three quarters to all of it, so that speakers do not
// march in step (RFC 4271, section 10).
func (l *loop) wait(hold bool) {
	d := l.delay
	l.delay = min(2*l.delay, l.waits.most)
	if hold {
		d, l.deaf = l.waits.hold, true
	}
	if l.cfg.Passive && !hold {
		l.setState(Active)
		return
	}
	l.setState(Idle)
	l.retry.Reset(d - rand.N(d/4+1))
}

// incoming takes a connection of the peer in, or resolves that there is one already.
func (l *loop) incoming(c net.Conn) {
	cur := l.current
	switch {
	case l.deaf:
		turnAway(c, ceaseRejected)
	case cur == nil:
		l.stopDialing()
		l.begin(c, false)
	case cur.wasEstablished():
		// RFC 4724, section 5: a peer that can restart has done so, and the old connection is
		// dead. Of another one the old connection stays (RFC 4271, section 6.8).
		if cur.graceful() == 0 && !cur.restarts() {
			turnAway(c, ceaseCollision)
			return
		}
		l.replace(c, errReplaced)
	case cur.dialed && l.park(cur, c):
	case cur.dialed && l.dominates(cur):
		turnAway(c, ceaseCollision)
	default:
		// Either the peer has the say, or it opened both, and knows nothing of the older one.
		cur.conn.notify(cease(ceaseCollision))
		l.replace(c, errCollision)
	}
}

func (l *loop) replace(c net.Conn, cause error) {
	l.current.conn.end(cause)
	<-l.current.done
	l.account()
	l.begin(c, false)
}

// park keeps a connection until the OPEN on the one that we dialed tells the peer's router ID, which
// decides (RFC 4271, section 6.8); false if it is known already.
func (p *peer) park(cur *session, c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opening != cur {
		return false
	}
	if p.parked != nil {
		p.parked.Close() // the peer gave it up, or it would not have opened another
	}
	p.parked = c
	return true
}

// survives is asked when s knows the peer's router ID: does it stay, beside one that came in?
func (p *peer) survives(s *session, id netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opening == s {
		p.opening = nil
	}
	if p.parked == nil {
		return true
	}
	if !p.outranks(id) {
		return false
	}
	turnAway(p.parked, ceaseCollision)
	p.parked = nil
	return true
}

// outranks tells whether connections that we dialed stay (RFC 4271, section 6.8; RFC 6286, 2.3).
func (p *peer) outranks(id netip.Addr) bool {
	if c := p.routerID.Compare(id); c != 0 {
		return c > 0
	}
	return p.cfg.LocalAS > p.cfg.AS
}

func (l *loop) dominates(s *session) bool {
	s.conn.mu.Lock()
	id := s.conn.opened.id
	s.conn.mu.Unlock()
	return l.outranks(netip.AddrFrom4([4]byte{byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}))
}

// turnAway closes a connection on which nothing was said.
func turnAway(c net.Conn, subcode uint8) {
	c.SetWriteDeadline(time.Now().Add(farewell))
	c.Write(appendMessage(nil, typeNotification, []byte{6, subcode}))
	c.Close()
}

// up is called once the session is established.
func (l *loop) up() {
	l.seen = true
	l.sweep.Stop()
	l.mu.Lock()
	until := l.status.Restarting
	l.mu.Unlock()
	if !until.IsZero() {
		l.sweep.Reset(time.Until(until))
	}
	l.settle.Reset(l.waits.quiet)
	l.log.Info("session established")
}

// quiet tells the feed that a peer which promised no End-of-RIB was quiet for long enough. For
// families that the peer does not have, nobody can say so.
func (l *loop) quiet() {
	s := l.current
	if s == nil || !s.wasEstablished() || s.promises() {
		return
	}
	l.mu.Lock()
	last, whole := l.status.LastUpdate, len(l.status.Missing) == 0
	l.mu.Unlock()
	if d := time.Since(last); d < l.waits.quiet {
		l.settle.Reset(l.waits.quiet - d)
		return
	}
	if whole {
		l.feedSettle()
	}
}

// over is called once the session and all of it has ended.
func (l *loop) over() {
	hold := l.account()
	l.mu.Lock()
	next := l.parked
	l.parked = nil
	l.mu.Unlock()
	if next != nil && !hold {
		l.begin(next, false)
		return
	}
	if next != nil {
		turnAway(next, ceaseRejected)
	}
	l.wait(hold)
}

// account takes down the account of a session that has ended.
func (l *loop) account() (hold bool) {
	s := l.current
	l.current = nil
	l.settle.Stop()
	told, hold, err := s.end()
	established := s.wasEstablished()
	l.mu.Lock()
	l.opening = nil
	if established {
		l.status.Flaps++
		// A session that was up for longer than it was waited for owes no longer wait.
		if time.Since(l.status.Since) >= l.delay {
			l.delay = l.waits.least
		}
	} else {
		l.status.Failures++
	}
	l.status.EndOfRIB = nil
	l.mu.Unlock()
	l.note(err, told)
	switch d := s.graceful(); {
	case d > 0:
		l.sweep.Reset(d)
	case established:
		l.sweep.Stop()
	}
	l.log.Warn("session ended", "error", err, "established", established)
	return hold
}

// failed notes that there was no connection. It is told to the log once in a row.
func (l *loop) failed(err error) {
	l.mu.Lock()
	was := l.status.LastError
	l.status.Failures++
	l.mu.Unlock()
	if is := l.note(err, false); was == nil || was.Error() != is.Error() {
		l.log.Warn("no session", "error", err)
	}
}

// setOptions changes what is learned, and asks for what was not learned before. A peer that cannot be
// asked has to say all again in a new session.
func (l *loop) setOptions(o rib.PeerOptions) {
	if !l.feedSetOptions(o) || l.current == nil {
		return
	}
	if err := l.refresh(); errors.Is(err, errNoRefresh) {
		l.current.stop(errChanged, ceaseChanged)
	}
}

var (
	errNoRefresh = errors.New("the peer has no route refresh")
	errNoSession = errors.New("no session")
)

// refresh asks for all routes again (RFC 2918).
func (l *loop) refresh() error {
	s := l.current
	if s == nil || !s.wasEstablished() {
		return errNoSession
	}
	s.mu.Lock()
	able, common := s.offer.refresh, s.common
	s.mu.Unlock()
	if !able {
		return errNoRefresh
	}
	for _, f := range common {
		if _, err := s.conn.Write(appendMessage(nil, typeRefresh, refresh(f))); err != nil {
			return fmt.Errorf("ask for %s routes: %w", f, err)
		}
	}
	return nil
}

// close ends all.
func (l *loop) close() {
	l.retry.Stop()
	l.sweep.Stop()
	l.settle.Stop()
	l.stopDialing()
	cause, subcode := context.Cause(l.ctx), uint8(ceaseShutdown)
	switch {
	case errors.Is(cause, errRemoved):
		subcode = ceaseRemoved
	case errors.Is(cause, errChanged):
		subcode = ceaseChanged
	case !errors.Is(cause, errStopped):
		cause = errStopped
	}
	if l.current != nil {
		l.current.stop(cause, subcode)
		l.account()
	}
	if l.parked != nil {
		turnAway(l.parked, subcode)
	}
	l.drain(subcode)
	l.feedGone(errors.Is(cause, errRemoved))
	l.setState(Idle)
}

// drain turns away what came in and was not taken.
func (p *peer) drain(subcode uint8) {
	select {
	case c := <-p.inbound:
		turnAway(c, subcode)
	default:
	}
}

func (s *session) wasEstablished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.established
}

// promises tells whether the peer will say when it told all (RFC 4724, section 4).
func (s *session) promises() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offer.restarts
}

// restarts tells whether the peer said that it can restart any family.
func (s *session) restarts() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.offer.preserved) > 0
}

// State of the peer.
func (p *peer) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status.State
}

func (p *peer) setState(s State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.State != s {
		p.status.State, p.status.Since = s, time.Now()
	}
}

// note takes down why there is no session, and returns what the status says of it. told: one of both
// sides said so. That stays to be read until there is a session again: a peer that is turned away, or
// turned us away, lets connections fail for a while (GoBGP resets them for 30 s), and that they do
// explains nothing.
func (p *peer) note(err error, told bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case told:
		p.reason = err
	case p.reason != nil:
		err = fmt.Errorf("%w; since then: %w", p.reason, err)
	}
	p.status.LastError, p.status.LastErrorAt = err, time.Now()
	return err
}

func (p *peer) restarting(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.Restarting = until
}

// opened notes what the OPEN of the peer says, and returns the hold time.
func (p *peer) opened(id netip.Addr, theirs open, o offer, common []family) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &p.status
	st.RouterID, st.Capabilities = id, o.names()
	st.HoldTime = min(p.cfg.HoldTime, time.Duration(theirs.holdTime)*time.Second)
	st.Families, st.Missing = nil, nil
	for _, f := range p.cfg.families() {
		if slices.Contains(common, f) {
			st.Families = append(st.Families, f.String())
		} else {
			st.Missing = append(st.Missing, f.String())
		}
	}
	return st.HoldTime
}

func (p *peer) panicked(what any, stack []byte) {
	p.mu.Lock()
	p.status.Panics++
	p.mu.Unlock()
	p.log.Error("panic while learning; the session ends", "panic", what, "stack", string(stack))
}
