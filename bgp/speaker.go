package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options are what a speaker is made with, beside its configuration.
type Options struct {
	// Learn gives each peer its feed.
	Learn Learn
	// VTEPs are the next hops that "known" means, until [Speaker.SetVTEPs].
	VTEPs []netip.Prefix
	// Log may be nil.
	Log *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Speaker has sessions with all configured peers. Its methods may be called from many goroutines.
type Speaker struct {
	as       int64
	listenOn string
	routerID netip.Addr
	learn    Learn
	log      *slog.Logger
	waits    waits
	ready    chan struct{}
	refused  prometheus.Counter

	mu       sync.Mutex
	listener *net.TCPListener
	peers    map[netip.Addr]*peer
	order    []netip.Addr // of configuration
	vteps    []netip.Prefix
	ctx      context.Context // of Run; nil before, and after
	wg       sync.WaitGroup
}

// New returns a speaker that has not begun. Errors are those of [Config.Validate].
func New(c Config, o Options) (*Speaker, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Speaker{
		as: c.AS, listenOn: c.Listen, routerID: netip.MustParseAddr(c.RouterID), learn: o.Learn,
		log: o.Log, waits: defaultWaits, ready: make(chan struct{}),
		peers: map[netip.Addr]*peer{}, vteps: slices.Clone(o.VTEPs),
	}
	s.refused = newMetrics(o.Metrics, s.Peers)
	s.set(c.Peers)
	return s, nil
}

// Listen opens the address that the configuration has, if it has one, so that who starts a speaker
// knows at once whether it can. Run does it otherwise, and Run or Close must follow.
func (s *Speaker) Listen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listenOn == "" || s.listener != nil {
		return nil
	}
	l, err := listen(ctx, s.listenOn)
	if err != nil {
		return fmt.Errorf("bgp.listen: %w", err)
	}
	s.listener = l
	return nil
}

// Close gives up what Listen opened. It is for a speaker that will not run; after Run there is
// nothing to close.
func (s *Speaker) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return nil
	}
	err := s.listener.Close()
	s.listener = nil
	return err
}

// Relisten listens on another address, or (empty) on none, from here on. Sessions go on. With an
// error all is as before.
func (s *Speaker) Relisten(addr string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if addr == s.listenOn {
		return nil
	}
	var l *net.TCPListener
	if s.ctx != nil && addr != "" {
		var err error
		l, err = listen(s.ctx, addr)
		if errors.Is(err, syscall.EADDRINUSE) && s.listener != nil {
			return s.swap(addr)
		}
		if err != nil {
			return fmt.Errorf("bgp.listen: %w", err)
		}
	}
	if s.listener != nil {
		s.listener.Close() // its accept ends
	}
	s.listenOn, s.listener = addr, l
	return s.serve()
}

// swap is Relisten for an address that somebody has: we ourselves, if all addresses of a port become
// one, or the other way round. For a moment nobody listens; peers that are refused come again.
func (s *Speaker) swap(addr string) error {
	s.listener.Close()
	l, err := listen(s.ctx, addr)
	if err == nil {
		s.listenOn, s.listener = addr, l
		return s.serve()
	}
	err = fmt.Errorf("bgp.listen: %w", err)
	back, failed := listen(s.ctx, s.listenOn)
	if failed != nil {
		s.listener = nil
		return errors.Join(err, fmt.Errorf("nor on %s any more: %w", s.listenOn, failed))
	}
	s.listener = back
	return errors.Join(err, s.serve())
}

// serve tells the listener, if there is one, the keys of all peers, and takes connections in.
func (s *Speaker) serve() error {
	if s.listener == nil || s.ctx == nil {
		return nil
	}
	var errs []error
	for _, addr := range s.order {
		errs = append(errs, s.setKey(addr, s.peers[addr].cfg.MD5))
	}
	ctx, l := s.ctx, s.listener
	s.wg.Go(func() { s.accept(ctx, l) })
	return errors.Join(errs...)
}

// Run listens and keeps sessions until ctx ends, tells peers so, and returns when all that it started
// has ended. The error says why it cannot listen. A speaker runs once.
func (s *Speaker) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errStopped)
	if err := s.Listen(ctx); err != nil {
		return err
	}
	defer s.Close()
	if err := s.start(ctx); err != nil {
		cancel(errStopped)
		s.wg.Wait()
		return err
	}
	close(s.ready)
	<-ctx.Done()
	cancel(errStopped)
	s.mu.Lock()
	s.ctx = nil // from here on Reconfigure starts nothing
	if s.listener != nil {
		s.listener.Close() // ends accept
		s.listener = nil
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

func (s *Speaker) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx = ctx
	err := s.serve()
	for _, addr := range s.order {
		s.launch(s.peers[addr])
	}
	return err
}

// launch starts a peer, if the speaker runs.
func (s *Speaker) launch(p *peer) {
	if s.ctx == nil {
		return
	}
	ctx, cancel := context.WithCancelCause(s.ctx)
	p.cancel = cancel
	s.wg.Go(func() { p.run(ctx) })
}

// Ready is closed when the speaker listens.
func (s *Speaker) Ready() <-chan struct{} { return s.ready }

// setKey tells the listener the key of a peer; an empty one takes it back.
func (s *Speaker) setKey(addr netip.Addr, key Secret) error {
	if s.listener == nil {
		return nil
	}
	local := s.listener.Addr().(*net.TCPAddr).AddrPort().Addr()
	if local.Is4() && addr.Is6() || local.Is6() && !local.IsUnspecified() && addr.Is4() {
		return nil // no connection of that peer can come in there
	}
	raw, err := s.listener.SyscallConn()
	if err == nil {
		err = setMD5(raw, addr, key)
	}
	if err != nil {
		return fmt.Errorf("peer %s: %w", addr, err)
	}
	return nil
}

// accept hands connections to the peers they come from.
func (s *Speaker) accept(ctx context.Context, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			if why := s.hand(c); why != nil {
				s.refused.Inc()
				s.log.Debug("connection refused", "from", c.RemoteAddr(), "error", why)
				c.Close()
			}
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// Out of descriptors, say: they do not come back by asking at once.
			s.log.Error("cannot accept", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// hand gives a connection to its peer; the error says why nobody wants it.
func (s *Speaker) hand(c *net.TCPConn) error {
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	to := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	s.mu.Lock()
	p := s.peers[from]
	s.mu.Unlock()
	if p == nil {
		return errors.New("no such peer")
	}
	if want := p.cfg.source(); want.IsValid() && want != to {
		return fmt.Errorf("to %s (want %s)", to, want)
	}
	if err := admit(c, p.cfg); err != nil {
		return err
	}
	select {
	case p.inbound <- c:
		select {
		case <-p.ended:
			p.drain(ceaseRemoved)
		default:
		}
		return nil
	default:
		return errors.New("another one waits")
	}
}

// Reconfigure makes peers those that are configured. A session goes on where only what is learned
// changed, or nothing; others end, with a NOTIFICATION that says why. With an error, of
// [Config.Validate] or of the listener, nothing or one peer is as before.
func (s *Speaker) Reconfigure(peers []Peer) error {
	s.mu.Lock()
	on := s.listenOn
	s.mu.Unlock()
	c := Config{RouterID: s.routerID.String(), AS: s.as, Listen: on, Peers: peers}
	if err := c.Validate(); err != nil {
		return err
	}
	return s.set(peers)
}

// set starts, stops and changes peers until they are those of a valid configuration.
func (s *Speaker) set(peers []Peer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	want := map[netip.Addr]Peer{}
	s.order = nil
	for _, cfg := range peers {
		cfg = cfg.withDefaults(s.as)
		want[cfg.addr()] = cfg
		s.order = append(s.order, cfg.addr())
	}
	for addr, p := range s.peers {
		cfg, stays := want[addr]
		switch {
		case !stays:
			errs = append(errs, s.setKey(addr, ""))
			s.remove(addr, errRemoved)
		case !p.cfg.sameSession(cfg):
			s.remove(addr, errChanged)
		default:
			s.tell(p, cfg)
		}
	}
	for _, addr := range s.order {
		if s.peers[addr] == nil {
			p := newPeer(s, want[addr], want[addr].feedOptions(s.vteps))
			s.peers[addr] = p
			errs = append(errs, s.setKey(addr, p.cfg.MD5))
			s.launch(p)
		}
	}
	return errors.Join(errs...)
}

// remove ends a peer and waits for it.
func (s *Speaker) remove(addr netip.Addr, cause error) {
	p := s.peers[addr]
	delete(s.peers, addr)
	if p.cancel != nil {
		p.cancel(cause)
		<-p.ended
	}
}

// tell changes what is learned of a peer, if it changes.
func (s *Speaker) tell(p *peer, cfg Peer) {
	was, is := p.told, cfg.feedOptions(s.vteps)
	if p.want = cfg; reflect.DeepEqual(was, is) {
		return
	}
	p.told = is
	select {
	case <-p.options: // not taken yet, and now out of date
	default:
	}
	p.options <- is
}

// SetVTEPs changes the next hops that "known" means in the configuration of peers, which are asked
// for their routes again if that matters to them.
func (s *Speaker) SetVTEPs(vteps []netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vteps = slices.Clone(vteps)
	for _, p := range s.peers {
		s.tell(p, p.want)
	}
}

// Refresh asks a peer for all of its routes again (RFC 2918).
func (s *Speaker) Refresh(ctx context.Context, addr netip.Addr) error {
	s.mu.Lock()
	p := s.peers[addr.Unmap()]
	s.mu.Unlock()
	if p == nil {
		return fmt.Errorf("peer %s: not configured", addr)
	}
	answer := make(chan error, 1)
	select {
	case p.asks <- answer:
	case <-p.ended:
		return fmt.Errorf("peer %s: %w", addr, errNoSession)
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := <-answer; err != nil {
		return fmt.Errorf("peer %s: %w", addr, err)
	}
	return nil
}

// Peers returns the status of each peer, in the order of configuration.
func (s *Speaker) Peers() []Status {
	s.mu.Lock()
	var peers []*peer
	for _, addr := range s.order {
		if p := s.peers[addr]; p != nil {
			peers = append(peers, p)
		}
	}
	s.mu.Unlock()
	all := make([]Status, 0, len(peers))
	for _, p := range peers {
		p.mu.Lock()
		st := p.status
		p.mu.Unlock()
		st.Routes = p.feedRoutes()
		all = append(all, st)
	}
	return all
}
