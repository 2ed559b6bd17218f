package bgp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/jwhited/corebgp"

	"github.com/dyetrace/dyetrace/bgp/rib"
)

// Why a session of ours ends, other than by what the connection says.
var (
	errReplaced  = errors.New("the peer opened a new connection")
	errCollision = errors.New("the other one of two connections stays")
	errStopped   = errors.New("speaker stopped")
	errRemoved   = errors.New("peer removed from the configuration")
	errChanged   = errors.New("configuration of the peer changed")
	errPanic     = errors.New("a fault of ours in the table")
)

// session is one connection to a peer, from OPEN to its end. corebgp runs it, with a server made
// for it alone.
type session struct {
	p      *peer
	conn   *conn
	dialed bool

	// up is closed when the session is established, done after its feed is down.
	up, done chan struct{}

	beat time.Duration // of keepalives, once it is established

	mu          sync.Mutex
	offer       offer
	common      []family
	established bool
	failed      error // what the feed or the OPEN was refused for
	hold        bool  // the peer is not to be heard for a while
}

// one is a listener that has one connection, and ends with it.
type one struct {
	conn *conn
	next chan *conn
	stop chan struct{}
	once sync.Once
}

func (l *one) Accept() (net.Conn, error) {
	select {
	case c := <-l.next:
		return c, nil
	case <-l.conn.closed:
	case <-l.stop:
	}
	return nil, net.ErrClosed
}

func (l *one) Close() error   { l.once.Do(func() { close(l.stop) }); return nil }
func (l *one) Addr() net.Addr { return l.conn.LocalAddr() }

// startSession begins one on a connection. done closes when all that it started has ended.
func startSession(p *peer, c net.Conn, dialed bool) *session {
	s := &session{p: p, dialed: dialed, up: make(chan struct{}), done: make(chan struct{})}
	s.conn = newConn(c, p.cfg.addr(), newPipe(func(a *rib.Ahead, body []byte) bool {
		return s.guard(func() { p.feed.Read(a, body) })
	}))
	go func() {
		defer close(s.done)
		defer s.conn.Close()
		if err := s.serve(); err != nil {
			s.conn.end(err)
		}
	}()
	return s
}

func (s *session) serve() error {
	cfg := s.p.cfg
	server, err := corebgp.NewServer(s.p.routerID)
	if err != nil {
		return err
	}
	err = server.AddPeer(corebgp.PeerConfig{
		RemoteAddress: cfg.addr(), LocalAS: uint32(cfg.LocalAS), RemoteAS: uint32(cfg.AS),
	}, s, corebgp.WithPassive(), corebgp.WithHoldTime(uint16(cfg.HoldTime/time.Second)))
	if err != nil {
		return err
	}
	l := &one{conn: s.conn, next: make(chan *conn, 1), stop: make(chan struct{})}
	l.next <- s.conn
	server.Serve([]net.Listener{l}) // always an error: that the connection is closed
	return nil
}

// stop ends the session for a reason of ours, and waits for its end.
func (s *session) stop(cause error, subcode uint8) {
	s.conn.notify(cease(subcode))
	s.conn.end(cause)
	<-s.done
}

// Subcodes of Cease (RFC 4486).
const (
	ceaseMaxPrefixes = 1
	ceaseShutdown    = 2
	ceaseRemoved     = 3
	ceaseRejected    = 5
	ceaseChanged     = 6
	ceaseCollision   = 7
	ceaseResources   = 8
)

func cease(subcode uint8) *corebgp.Notification {
	return &corebgp.Notification{Code: 6, Subcode: subcode}
}

// GetCapabilities is corebgp's question for our OPEN.
func (s *session) GetCapabilities(corebgp.PeerConfig) []corebgp.Capability {
	s.p.setState(OpenSent)
	return capabilities(s.p.cfg.families())
}

// OnOpenMessage judges an OPEN that corebgp found in order.
func (s *session) OnOpenMessage(_ corebgp.PeerConfig, id netip.Addr, caps []corebgp.Capability) *corebgp.Notification {
	o := parseOffer(caps)
	s.conn.mu.Lock()
	theirs := s.conn.opened
	s.conn.mu.Unlock()
	o.fourAS = theirs.fourAS // corebgp saw one in any case
	if theirs.holdTime == 0 {
		// RFC 4271, section 6.2, lets us choose. Without keepalives a dead peer's routes would
		// never go; and corebgp v0.8.1 has no timer then, and does not survive its absence.
		s.refuse(errors.New("the peer wants no keepalives (want a hold time of at least 3 s)"), false)
		return &corebgp.Notification{Code: 2, Subcode: 6}
	}
	var common []family
	var want []byte
	for _, f := range s.p.cfg.families() {
		if slices.Contains(o.families, f) {
			common = append(common, f)
		}
		want = append(want, capMultiprotocol, 4, byte(f.afi>>8), byte(f.afi), 0, f.safi)
	}
	s.mu.Lock()
	s.offer, s.common = o, common
	s.mu.Unlock()
	// A third of the hold time, as RFC 4271 suggests (section 4.4).
	s.beat = s.p.opened(id, theirs, o, common) / 3
	if len(common) == 0 {
		s.refuse(fmt.Errorf("the peer offers %v (want one of %v)", o.families, s.p.cfg.families()), false)
		return &corebgp.Notification{Code: 2, Subcode: 7, Data: want}
	}
	if !s.p.survives(s, id) {
		s.refuse(errCollision, false)
		return cease(ceaseCollision)
	}
	s.p.setState(OpenConfirm)
	return nil
}

// refuse notes why a session is about to be ended by us.
func (s *session) refuse(why error, hold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed, s.hold = why, hold
	}
}

// OnEstablished begins to learn.
func (s *session) OnEstablished(_ corebgp.PeerConfig, w corebgp.UpdateMessageWriter) corebgp.UpdateMessageHandler {
	s.mu.Lock()
	s.established = true
	o, common := s.offer, s.common
	s.mu.Unlock()
	_, kept := o.covers(common)
	s.p.setState(Established)
	ok := s.guard(func() { s.p.feedUp(kept) })
	close(s.up)
	if !ok {
		s.conn.notify(cease(ceaseResources))
		s.conn.end(errPanic)
		return nil
	}
	if o.restarts {
		for _, f := range common {
			w.WriteUpdate(endOfRIB(f)) // a failure ends the session by itself
		}
	}
	return func(corebgp.PeerConfig, []byte) *corebgp.Notification { return s.burst() }
}

// burst hands UPDATEs to the table, and returns the NOTIFICATION that they deserve.
func (s *session) burst() *corebgp.Notification {
	b := <-s.conn.pipe.full
	defer func() { s.conn.pipe.free <- b }()
	said := time.Now()
	for i := range b.n {
		if s.conn.over() {
			return nil
		}
		// corebgp says nothing until this is over, and tables may be slow.
		if now := time.Now(); now.Sub(said) > s.beat {
			said = now
			s.conn.Write(appendMessage(nil, typeKeepalive, nil)) // a failure ends the session by itself
		}
		var n *corebgp.Notification
		if !s.guard(func() { n = s.update(&b.updates[i]) }) {
			n = cease(ceaseResources)
		}
		if n != nil {
			return n
		}
	}
	if b.broken {
		return cease(ceaseResources)
	}
	return nil
}

// update hands an UPDATE to the table.
func (s *session) update(a *rib.Ahead) *corebgp.Notification {
	err := s.p.feedUpdate(a)
	switch {
	case err == nil, errors.Is(err, rib.ErrWithdraw):
		return nil
	case errors.Is(err, rib.ErrLimit):
		s.refuse(err, true)
		return cease(ceaseMaxPrefixes)
	}
	s.refuse(err, true)
	return &corebgp.Notification{Code: 3, Subcode: 1}
}

// OnClose ends what OnEstablished began.
func (s *session) OnClose(corebgp.PeerConfig) {
	spared := s.graceful()
	if !s.guard(func() { s.p.feedDown(spared) }) && spared > 0 {
		// Whatever is left of a feed that panicked is not worth to be kept.
		s.guard(func() { s.p.feedDown(0) })
	}
}

// graceful is how long routes may outlive the session; 0 if they may not.
func (s *session) graceful() time.Duration {
	_, silent := s.conn.why()
	s.mu.Lock()
	defer s.mu.Unlock()
	if spared, _ := s.offer.covers(s.common); !spared || !silent || s.failed != nil || !s.established {
		return 0
	}
	return s.offer.restartTime
}

// end says why the session ended, whether one of both sides said so rather than went silent, and
// whether the peer should not be heard for a while.
func (s *session) end() (told, hold bool, err error) {
	s.mu.Lock()
	failed, hold := s.failed, s.hold
	s.mu.Unlock()
	err, silent := s.conn.why()
	if failed != nil {
		return true, hold, failed
	}
	s.conn.mu.Lock()
	o, ok := s.conn.opened, s.conn.hasOpen
	s.conn.mu.Unlock()
	if as := uint32(s.p.cfg.AS); ok && o.as != as {
		return true, false, fmt.Errorf("the peer says that its AS is %d (want %d): %w", o.as, as, err)
	}
	return !silent, false, err
}

// guard runs what is not ours, and turns a panic of it into the end of this session.
func (s *session) guard(f func()) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			s.p.panicked(r, debug.Stack())
			s.refuse(fmt.Errorf("%w: %v", errPanic, r), true)
		}
	}()
	f()
	return true
}
