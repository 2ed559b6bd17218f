package underlay

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

const (
	// answersPerSecond bounds the answers of a host, over all who ask: a hundred exchanges of a
	// hundred datagrams. One costs some 6 µs of a processor here.
	answersPerSecond = 10_000
	// remembered bounds the sessions that can be recalled, and serials those of one: 1 MB together.
	remembered = 1024
	serials    = 8192
	// heardFrom bounds the hosts that a responder keeps in mind.
	heardFrom = 4096
	// receiveBuffer holds some thousand large datagrams: what hosts that ask at the same time send
	// while this one has other work.
	receiveBuffer = 4 << 20
)

// Counters of a responder, since its start.
type Counters struct {
	// Answered questions; Refused as not authentic, or no questions; Limited by the rate;
	// Failed to be sent back.
	Answered, Refused, Limited, Failed uint64
}

// Responder answers at addresses of this host. Its methods may be called from many goroutines.
type Responder struct {
	port uint16
	log  *slog.Logger
	pace *rate.Limiter

	answered, refused, limited, failed atomic.Uint64

	mu        sync.Mutex
	key       *Key // nil: nobody is answered
	listeners map[netip.Addr]*listener
	problems  map[netip.Addr]error
	sessions  map[uint64]*session
	order     []uint64 // of sessions, a ring once it is full
	next      int
	streams   heardStreams
	heard     map[netip.Addr]map[netip.Addr]time.Time // by own address, by whom
}

// session is what a responder has seen of an exchange.
type session struct {
	seen    []byte // bitmap of serials
	limited uint32
}

// listener answers at one address.
type listener struct {
	at   netip.AddrPort
	fd   int
	wake int // an eventfd(2): it is to end
	done chan struct{}

	mu      sync.Mutex
	ask     int             // an eventfd(2): somebody waits until all is read; -1 once it has ended
	waiting []chan struct{} // who
	drops   uint32          // datagrams that the socket had no room for, as far as that was noticed
	dropped time.Time       // when the last of them were noticed
}

// stop ends it, but does not wait for that.
func (l *listener) stop() { _, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

func (l *listener) close() {
	l.empty()
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = yields(l.fd, true)
	unix.Close(l.fd)
	unix.Close(l.wake)
	unix.Close(l.ask)
	l.ask = -1
}

// empty tells who waits for it that nothing is left unread.
func (l *listener) empty() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.waiting {
		close(c)
	}
	l.waiting = nil
	_, _ = unix.Read(l.ask, make([]byte, 8))
}

// await returns what is closed once all has been read that is there now, and whether the socket had no room for
// datagrams within the time of an exchange that ends now.
func (l *listener) await(now time.Time) (read <-chan struct{}, full bool) {
	c := make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ask < 0 {
		close(c)
		return c, false
	}
	l.waiting = append(l.waiting, c)
	_, _ = unix.Write(l.ask, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	l.notice(overflowed(l.fd), now)
	return c, l.drops > 0 && now.Sub(l.dropped) < MaxExchange
}

// lost notes how many datagrams the socket had had no room for as one came that was read now.
func (l *listener) lost(drops uint32, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notice(drops, now)
}

// notice takes in a count of drops, which may be older than one that is known. Caller holds mu.
func (l *listener) notice(drops uint32, now time.Time) {
	if int32(drops-l.drops) > 0 {
		l.drops, l.dropped = drops, now
	}
}

// NewResponder returns a responder for a port that listens nowhere.
func NewResponder(port uint16, log *slog.Logger) *Responder {
	return &Responder{
		port: port, log: log, pace: rate.NewLimiter(answersPerSecond, answersPerSecond),
		listeners: map[netip.Addr]*listener{}, problems: map[netip.Addr]error{},
		sessions: map[uint64]*session{}, heard: map[netip.Addr]map[netip.Addr]time.Time{},
	}
}

// Port is where it answers.
func (r *Responder) Port() uint16 { return r.port }

// SetKey has questions answered that were made with this key, and no others.
func (r *Responder) SetKey(key Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.key = &key
}

// Listen has it answer at these addresses of this host and no others. Those where it cannot are
// tried again by the next call.
func (r *Responder) Listen(at []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var gone []*listener
	for a, l := range r.listeners {
		if !slices.Contains(at, a) {
			gone = append(gone, l)
			delete(r.listeners, a)
		}
	}
	clear(r.problems)
	for _, a := range at {
		if r.listeners[a] != nil {
			continue
		}
		l, err := listen(netip.AddrPortFrom(a, r.port))
		if err != nil {
			r.problems[a] = err
			continue
		}
		r.listeners[a] = l
		go func() {
			defer close(l.done)
			defer l.close()
			r.serve(l)
		}()
	}
	for _, l := range gone {
		l.stop()
	}
}

// Close ends all that Listen began, and waits until its addresses are free.
func (r *Responder) Close() {
	r.mu.Lock()
	var all []*listener
	for a, l := range r.listeners {
		all = append(all, l)
		delete(r.listeners, a)
	}
	r.mu.Unlock()
	for _, l := range all {
		l.stop()
	}
	for _, l := range all {
		<-l.done
	}
}

// Addresses are those where it answers, in ascending order, and problems says why not at others.
func (r *Responder) Addresses() (at []netip.Addr, problems []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a := range r.listeners {
		at = append(at, a)
	}
	slices.SortFunc(at, netip.Addr.Compare)
	var bad []netip.Addr
	for a := range r.problems {
		bad = append(bad, a)
	}
	slices.SortFunc(bad, netip.Addr.Compare)
	for _, a := range bad {
		problems = append(problems, r.problems[a])
	}
	return at, problems
}

// Problem says why it does not answer at an address; nil if it does.
func (r *Responder) Problem(at netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.listeners[at] != nil && r.key == nil:
		return errors.New("no controller has given this host a key for underlay probes yet")
	case r.listeners[at] != nil:
		return nil
	case r.problems[at] != nil:
		return r.problems[at]
	}
	return fmt.Errorf("%s is no tunnel address of this host", at)
}

// Counters are what it has done so far.
func (r *Responder) Counters() Counters {
	return Counters{r.answered.Load(), r.refused.Load(), r.limited.Load(), r.failed.Load()}
}

// Recall is what a responder has seen of a session.
type Recall struct {
	// Seen has bit serial%8 of byte serial/8 set for each question that came.
	Seen []byte
	// Limited questions were not answered because of the rate.
	Limited uint32
	// FromOthers is how long ago packets of other sessions came to that address; negative for never.
	// Those of the host that asked count only where nothing of this session came.
	FromOthers time.Duration
	// FromAsker is the same of the host that asked, where nothing of this session came; else negative.
	FromAsker time.Duration
}

// CaughtUp returns once all is read that came to an address of this host before it was called: what is unread as yet
// would be taken for what never came. The error says that this took too long, or that datagrams found no room within
// the last MaxExchange, whoever asks: whose they were is not known. It is nil where nobody listens, which Problem tells.
func (r *Responder) CaughtUp(at netip.Addr, within time.Duration) error {
	r.mu.Lock()
	l := r.listeners[at]
	r.mu.Unlock()
	if l == nil {
		return nil
	}
	late := time.NewTimer(within)
	defer late.Stop()
	read, full := l.await(time.Now())
	select {
	case <-read:
	case <-late.C:
		return fmt.Errorf("what came to %s is not all read after %v: this host is too busy to tell", at, within)
	}
	if full {
		return fmt.Errorf("datagrams that came to %s within %v found no room: this host is too busy to tell", at, MaxExchange)
	}
	return nil
}

// Recall tells of a session of questions from asker to the address at of this host.
func (r *Responder) Recall(id uint64, asker, at netip.Addr, now time.Time) Recall {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := Recall{FromOthers: -1, FromAsker: -1}
	if s := r.sessions[id]; s != nil {
		m.Seen, m.Limited = slices.Clone(s.seen), s.limited
	}
	for from, when := range r.heard[at] {
		if age := now.Sub(when); (from != asker || m.Seen == nil) && (m.FromOthers < 0 || age < m.FromOthers) {
			m.FromOthers = max(age, 0)
		}
		if from == asker && m.Seen == nil {
			m.FromAsker = max(now.Sub(when), 0)
		}
	}
	return m
}

func listen(at netip.AddrPort) (*listener, error) {
	fd, err := open(at, append(common(at.Addr()), option{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR"},
		option{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1, "SO_RXQ_OVFL"}))
	if err != nil {
		return nil, err
	}
	if err := yields(fd, false); err != nil {
		unix.Close(fd)
		return nil, err
	}
	roomy(fd)
	if at.Port() == 0 {
		if at, err = localOf(fd); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	ask, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		unix.Close(wake)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &listener{at: at, fd: fd, wake: wake, ask: ask, done: make(chan struct{})}, nil
}

// roomy has a socket hold much. The first needs CAP_NET_ADMIN, the second is bounded by
// net.core.rmem_max; neither must succeed.
func roomy(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
}

// yields has the address of a socket free for another listener, or no longer. A socket that was closed
// may live on for some milliseconds in a child of this process, from fork(2) until execve(2) has closed
// what is O_CLOEXEC; its address is then free only if both have SO_REUSEADDR (udp_v4_get_port of
// net/ipv4/udp.c), which one that answers must not have: two agents would share an address unseen.
func yields(fd int, yes bool) error {
	value := 0
	if yes {
		value = 1
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, value); err != nil {
		return fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	return nil
}

// serve answers until it is stopped.
func (r *Responder) serve(l *listener) {
	var codec *Codec
	var key *Key
	buf, oob := make([]byte, 65536), make([]byte, 256)
	out := make([]byte, 0, 65536)
	poll := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}, {Fd: int32(l.wake), Events: unix.POLLIN}, {Fd: int32(l.ask), Events: unix.POLLIN}}
	for {
		switch _, err := unix.Poll(poll, -1); {
		case err != nil:
			continue
		case poll[1].Revents != 0:
			return
		case poll[0].Revents == 0:
			l.empty()
			continue
		}
		n, oobn, _, from, err := unix.Recvmsg(l.fd, buf, oob, 0)
		if err != nil {
			continue // woken for nothing, or told of a datagram that was sent before
		}
		full := overflows(oob[:oobn])
		if full > 0 {
			l.lost(full, time.Now())
		}
		src := addrPort(from)
		r.mu.Lock()
		if k := r.key; k != key && k != nil {
			key, codec = k, NewCodec(*k)
		}
		r.mu.Unlock()
		if codec == nil {
			r.refused.Add(1)
			continue
		}
		d, err := codec.Parse(buf[:n], src, l.at)
		if err != nil || d.Kind != Question && d.Kind != StreamQuestion {
			r.refused.Add(1)
			continue
		}
		tos, ttl := marks(oob[:oobn])
		streams := d.Kind == StreamQuestion
		switch allowed := r.hear(l, src.Addr()); {
		case streams && !r.stand(l, &d, full, allowed),
			!streams && !r.note(d, allowed):
			continue
		}
		d.Kind++ // the answer
		d.ToS, d.TTL = tos, ttl
		out = codec.Append(out[:0], d, l.at, src)
		if err := unix.Sendmsg(l.fd, out, withToS(l.at.Addr(), tos), from, unix.MSG_DONTWAIT); err != nil {
			r.failed.Add(1)
			if streams {
				r.withhold(d.Session)
			}
			r.log.Debug("underlay answer not sent", "to", src, "bytes", len(out), "err", err)
			continue
		}
		r.answered.Add(1)
	}
}

// hear remembers who asked, and says whether the rate lets it be answered.
func (r *Responder) hear(l *listener, from netip.Addr) (allowed bool) {
	now := time.Now()
	allowed = r.pace.AllowN(now, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listeners[from] == nil { // one's own questions show nothing of what the network may do
		by := r.heard[l.at.Addr()]
		if by == nil {
			by = map[netip.Addr]time.Time{}
			r.heard[l.at.Addr()] = by
		}
		if _, known := by[from]; known || len(by) < heardFrom {
			by[from] = now
		}
	}
	if !allowed {
		r.limited.Add(1)
	}
	return allowed
}

// note remembers a question, and says whether it is to be answered.
func (r *Responder) note(d Datagram, allowed bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[d.Session]
	if s == nil {
		s = &session{}
		if len(r.order) < remembered {
			r.order = append(r.order, d.Session)
		} else {
			delete(r.sessions, r.order[r.next])
			r.order[r.next] = d.Session
			r.next = (r.next + 1) % remembered
		}
		r.sessions[d.Session] = s
	}
	if i := int(d.Serial / 8); d.Serial < serials {
		if i >= len(s.seen) {
			s.seen = append(s.seen, make([]byte, i+1-len(s.seen))...)
		}
		s.seen[i] |= 1 << (d.Serial % 8)
	}
	if !allowed {
		s.limited++
	}
	return allowed
}
