package underlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// streamPorts is how many source ports all streams from one address have in common.
	streamPorts = 16
	// streamTick is how often it is looked what came while an answer is waited for, and what is due of streams under
	// suspicion. The others send what is due every restTick, all of them at the same time: what a packet costs is waking those
	// that it passes, Open vSwitch's userspace datapath above all. Of 200 a second four go then, from as many source ports, so
	// that a moment in which nothing passes takes no more than these, which is one event (outage), and half of what is
	// silence (silentAfter); of a slower stream two or three, which are as many losses.
	streamTick = 5 * time.Millisecond
	restTick   = 4 * streamTick
	// tickBurst bounds what one stream sends at once, and lag what it makes up for: a host that stood still sends less, not more.
	tickBurst = 16
	lag       = 50 * time.Millisecond
	// reportEvery is how often losses are told of. What passed without any is told of once it is
	// reportTrials questions, and after reportAtMost.
	reportEvery  = 100 * time.Millisecond
	reportTrials = 40
	reportAtMost = time.Second
	// maxTargets bounds the streams of a host: each takes 35 kB.
	maxTargets = 4096
	// troubledRate is the most that a stream sends a second where much is lost.
	troubledRate = 10
)

// Target is where a stream goes.
type Target struct {
	// Src is an address of this host; the zero Addr is what the kernel would use.
	Src, Dst netip.Addr
	// Port where the responder is.
	Port uint16
	ToS  uint8
	// Size of whole IP packets; StreamSize and what IP and UDP take at the least.
	Size int
	// Rate is how many are sent a second, Suspect how many for a while after one was lost.
	Rate, Suspect float64
}

// MinStreamSize is of the smallest packet that a stream to dst may have, bytes of IP packet.
func MinStreamSize(dst netip.Addr) int { return headers(dst) + StreamSize }

// Weight is as how many packets one of so many bytes counts where a rate is bounded: one for each 1,500 begun.
func Weight(size int) float64 { return float64((size + 1499) / 1500) }

// MaxStreamRate bounds the rates of one stream, questions a second.
const MaxStreamRate = 2000

// Validate says what is wrong, by the names of the contract's fields.
func (t *Target) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch {
	case !t.Dst.IsValid():
		bad("dst_ip: missing")
	case t.Src.IsValid() && t.Src.Is4() != t.Dst.Is4():
		bad("src_ip: %s and dst_ip %s are not of one IP version", t.Src, t.Dst)
	}
	if t.Port == 0 {
		bad("port: 0, want that of the other agent's responder")
	}
	if least := MinStreamSize(t.Dst); t.Size < least || t.Size > 9000 {
		bad("size: %d, want %d to 9000", t.Size, least)
	}
	if !(t.Rate > 0 && t.Rate <= MaxStreamRate) {
		bad("rate_milli: %g a second, want more than 0 and at most %d", t.Rate, MaxStreamRate)
	}
	if !(t.Suspect >= t.Rate && t.Suspect <= MaxStreamRate) {
		bad("suspect_rate_milli: %g a second, want at least the rate (%g) and at most %d", t.Suspect, t.Rate, MaxStreamRate)
	}
	return errors.Join(errs...)
}

// StreamReport is what became of questions to one target since the last report.
type StreamReport struct {
	// Target is its number among those of Set.
	Set    uint64
	Target int
	// Src is the address that was used, SourcePorts the ports; Counts are by source port.
	Src         netip.Addr
	SourcePorts []uint16
	Counts      []Count
	// Overtaken answers came after their question had been counted as lost.
	Overtaken uint32
	// Silent is how many questions in a row, the last ones, are not answered, where answers used to come and are
	// overdue, and SilentFor how long ago the first of them was sent. It is told at once, and so is that
	// there are answers again, by 0.
	Silent    int
	SilentFor time.Duration
}

// StreamCounters are what streams did since their start.
type StreamCounters struct {
	// Sent questions; Refused by this host, Unclear of those that were counted, Overtaken as in StreamReport.
	Sent, Refused, Unclear, Overtaken uint64
	// Silences is how often a stream that was answered had no answer any more.
	Silences uint64
}

// Streams are those that this host sends. Its methods may be called from many goroutines.
type Streams struct {
	start time.Time
	most  float64 // packets a second, by their weight

	mu       sync.Mutex
	looked   time.Time     // when it was looked last what came
	rests    time.Time     // when streams send next that are not under suspicion
	clock    time.Duration // of silence
	key      Key
	codec    *Codec
	set      uint64
	extra    float64 // questions a second at the pace of suspicion, of all streams together
	asked    float64 // the targets' rates together, by weight
	live     []*liveStream
	groups   map[groupKey]*group
	counters StreamCounters
	changed  chan struct{} // has room for one
	in, out  []byte
	batch    []came
	poll     []unix.PollFd
}

// liveStream is a stream to a target.
type liveStream struct {
	Target
	index   int
	session uint64
	group   *group
	stream  *stream
	due     time.Time
	told    time.Time
	upTo    uint32 // the last question of which an answer was taken in
	silent  bool   // it was told to be
}

type groupKey struct {
	src netip.Addr
	tos uint8
}

// group is the sockets of one source address.
type group struct {
	key    groupKey
	fds    []int
	local  []netip.AddrPort
	ports  []uint16
	of     map[uint64]*liveStream // by session
	socket int                    // where its first is in poll
}

// NewStreams returns none. most bounds what all of them send a second, packets by their [Weight]: whoever asks for more
// does not get it.
func NewStreams(most float64) *Streams {
	return &Streams{start: time.Now(), most: most, groups: map[groupKey]*group{}, changed: make(chan struct{}, 1), in: make([]byte, 65536)}
}

// Set has streams sent to these targets and no others, under a key. Those that there are already go on.
// set is what reports name it by. extra is how many questions a second may be sent in all beyond the targets'
// rates; it is cut to what the bound leaves. The error joins a [TargetError] for each target that is not tried, as where the
// rates pass the bound; the others are.
func (s *Streams) Set(key Key, set uint64, targets []Target, extra float64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	old, before := s.groups, map[Target]*liveStream{}
	if key == s.key {
		for _, l := range s.live {
			before[l.where()] = l
		}
	}
	s.set = set
	s.key, s.codec, s.asked, s.groups, s.live = key, NewCodec(key), 0, map[groupKey]*group{}, nil
	var errs []error
	for i := range targets {
		if err := s.add(i, &targets[i], old, before, now); err != nil {
			errs = append(errs, &TargetError{i, err})
		}
	}
	heaviest := 1.0
	for _, l := range s.live {
		heaviest = max(heaviest, Weight(l.Size))
	}
	s.extra = min(extra, (s.most-s.asked)/heaviest)
	for _, g := range old {
		g.close()
	}
	s.batch = slices.DeleteFunc(s.batch, func(c came) bool { return !slices.Contains(s.live, c.stream) })
	s.poll = s.poll[:0]
	for _, g := range s.groups {
		g.socket = len(s.poll)
		for _, fd := range g.fds {
			s.poll = append(s.poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return errors.Join(errs...)
}

// TargetError says why there is no stream to a target, by its number.
type TargetError struct {
	Target int
	Err    error
}

func (e *TargetError) Error() string { return fmt.Sprintf("targets[%d]: %v", e.Target, e.Err) }
func (e *TargetError) Unwrap() error { return e.Err }

// where is a target but for its rates.
func (t Target) where() Target {
	t.Rate, t.Suspect = 0, 0
	return t
}

func (s *Streams) add(i int, t *Target, old map[groupKey]*group, before map[Target]*liveStream, now time.Time) error {
	if err := t.Validate(); err != nil {
		return err
	}
	if len(s.live) >= maxTargets {
		return fmt.Errorf("one of more than %d", maxTargets)
	}
	rate := t.Rate * Weight(t.Size)
	if s.asked+rate > s.most {
		return fmt.Errorf("rate_milli: %g a second, with which this host's streams would send %g, want at most %g (underlay_rate)", rate, s.asked+rate, s.most)
	}
	src := t.Src
	if !src.IsValid() {
		var err error
		if src, err = SourceFor(t.Dst); err != nil {
			return err
		}
	}
	key := groupKey{src, t.ToS}
	g := s.groups[key]
	if g == nil {
		if g = old[key]; g != nil {
			delete(old, key)
		} else {
			var err error
			if g, err = newGroup(key); err != nil {
				return err
			}
		}
		g.of = map[uint64]*liveStream{}
		s.groups[key] = g
	}
	l := before[t.where()]
	delete(before, t.where()) // one that is named twice has two streams
	if l == nil || l.group != g {
		gap := time.Duration(float64(time.Second) / t.Rate)
		l = &liveStream{session: rand.Uint64() | 1, group: g, stream: newStream(streamPorts), due: now.Add(rand.N(gap)), told: now}
	}
	l.Target, l.index, l.silent = *t, i, false // who asks anew is told anew
	s.asked += rate
	g.of[l.session] = l
	s.live = append(s.live, l)
	return nil
}

// newGroup makes a socket for each source port. The kernel chooses the ports: at random, so that they
// spread over the paths (RFC 6056).
func newGroup(key groupKey) (*group, error) {
	g := &group{key: key}
	for range streamPorts {
		fd, err := open(netip.AddrPortFrom(key.src, 0), asking(key.src, key.tos))
		if err != nil {
			g.close()
			return nil, err
		}
		roomy(fd)
		g.fds = append(g.fds, fd)
		at, err := localOf(fd)
		if err != nil {
			g.close()
			return nil, err
		}
		g.local, g.ports = append(g.local, at), append(g.ports, at.Port())
	}
	return g, nil
}

func (g *group) close() {
	for _, fd := range g.fds {
		unix.Close(fd)
	}
}

// own is how many datagrams the sockets had no room for.
func (g *group) own() (n uint32) {
	for _, fd := range g.fds {
		n += overflowed(fd)
	}
	return n
}

// Counters are what streams did so far.
func (s *Streams) Counters() StreamCounters {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counters
}

// Run sends, and reports what became of it, until ctx is done; then no socket is left. report must
// not wait.
func (s *Streams) Run(ctx context.Context, report func(StreamReport)) error {
	defer func() {
		_ = s.Set(Key{}, 0, nil, 0)
	}()
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
			look.Reset(0)
		case <-look.C:
			reports, again := s.step(time.Now())
			for _, r := range reports {
				report(r)
			}
			if !again.IsZero() {
				look.Reset(time.Until(again))
			}
		}
	}
}

// step does what is due, and says when something is again; the zero Time is never.
func (s *Streams) step(now time.Time) (reports []StreamReport, again time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.live) == 0 {
		return nil, again
	}
	s.clock += min(now.Sub(s.looked), maxStep)
	s.looked = now
	for _, l := range s.live {
		l.stream.quiet.tick(s.clock)
	}
	s.receive()
	suspects := 0
	for _, l := range s.live {
		if l.stream.listen() {
			s.counters.Silences++
		}
		if l.stream.suspicious() {
			suspects++
		}
	}
	share := s.extra / float64(max(1, suspects))
	rested := !now.Before(s.rests)
	if rested {
		s.rests = now.Add(restTick)
	}
	again = s.rests
	for _, l := range s.live {
		l.stream.expire(now)
		if rested || l.stream.fast(l.Rate) {
			s.send(l, share, now)
		}
		if r, ok := s.reportOf(l, now); ok {
			reports = append(reports, r)
		}
		if soon := now.Add(streamTick); l.stream.hurries(l.Rate) && soon.Before(again) {
			again = soon
		}
	}
	return reports, again
}

// rate is how many questions a stream sends a second now; share is what it may beyond its own.
func (l *liveStream) rate(share float64, now time.Time) float64 {
	if l.stream.troubled(now) {
		return min(l.Rate, troubledRate)
	}
	if !l.stream.suspicious() {
		return l.Rate
	}
	return min(l.Suspect, l.Rate+min(share, max(0, l.stream.quickest()-l.Rate)))
}

// send sends what is due of a stream.
func (s *Streams) send(l *liveStream, share float64, now time.Time) {
	rate := l.rate(share, now)
	gap := time.Duration(float64(time.Second) / rate)
	if l.due.Sub(now) > gap {
		l.due = now.Add(gap) // it goes faster than when that was set
	}
	if now.Sub(l.due) > lag {
		l.due = now.Add(-lag)
	}
	for range tickBurst {
		if l.due.After(now) {
			return
		}
		l.due = l.due.Add(gap)
		if !s.ask(l, now) {
			return
		}
	}
	if l.due.Before(now) {
		l.due = now
	}
}

// ask sends the next question of a stream. One that this host refuses to send is none.
func (s *Streams) ask(l *liveStream, now time.Time) bool {
	g := l.group
	port := l.stream.port(l.stream.head)
	remote := netip.AddrPortFrom(l.Dst, l.Port)
	s.out = s.codec.Append(s.out[:0], Datagram{
		Kind: StreamQuestion, Session: l.session, Serial: l.stream.head, Length: l.Size - headers(l.Dst), SentNs: now.Sub(s.start).Nanoseconds(),
	}, g.local[port], remote)
	// An error that is waiting is told by the next call, whatever that is (udp(7)).
	var err error
	for range 3 {
		if err = unix.Sendto(g.fds[port], s.out, unix.MSG_DONTWAIT, sockaddr(remote)); err == nil {
			l.stream.sent(now)
			s.counters.Sent++
			return true
		}
		if s.drain(g.fds[port]) == 0 {
			break
		}
	}
	s.counters.Refused++
	if err == unix.ENETUNREACH || err == unix.EHOSTUNREACH || err == unix.ENETDOWN {
		l.stream.refused()
		return true // what else is due is refused as well, and counts (listen)
	}
	return false
}

// drain takes in what waits in a socket's error queue, and returns how many that were.
func (s *Streams) drain(fd int) (n int) {
	for n < 64 {
		if _, _, _, _, err := unix.Recvmsg(fd, s.in, nil, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); err != nil {
			return n
		}
		n++
	}
	return n
}

// came is an answer that was read.
type came struct {
	stream   *liveStream
	serial   uint32
	standing Standing
}

// receive reads what waits, and takes in what was read a tick ago: where the other host stood still for a while
// many answers come at a time, and more while sockets are read one after the other, so that what is read
// last would speak for what has just come to the first.
func (s *Streams) receive() {
	before := len(s.batch)
	s.read()
	s.takeIn(before)
}

// takeIn takes in, in the order of their questions, the first n of the answers that were read, and of the others
// those that came before them: all of these have been read since. It keeps the rest.
func (s *Streams) takeIn(n int) {
	for i := range s.batch[:n] {
		if c := &s.batch[i]; int32(c.serial-c.stream.upTo) > 0 {
			c.stream.upTo = c.serial
		}
	}
	slices.SortFunc(s.batch, func(a, b came) int {
		if a.stream != b.stream {
			return cmp.Compare(a.stream.index, b.stream.index)
		}
		return int(int32(a.serial - b.serial))
	})
	rest := s.batch[:0]
	for i := range s.batch {
		c := &s.batch[i]
		if int32(c.serial-c.stream.upTo) > 0 {
			rest = append(rest, *c)
			continue
		}
		c.stream.stream.answered(c.serial, &c.standing, c.stream.group.own)
	}
	s.batch = rest
}

// read reads all that waits at the sockets.
func (s *Streams) read() {
	if n, err := unix.Poll(s.poll, 0); err != nil || n == 0 {
		return
	}
	for _, g := range s.groups {
		for port := range g.fds {
			events := s.poll[g.socket+port].Revents
			if events&unix.POLLERR != 0 {
				s.drain(g.fds[port])
			}
			for events&unix.POLLIN != 0 && s.take(g, port) {
			}
		}
	}
}

// take takes in one answer; false if none waits.
func (s *Streams) take(g *group, port int) bool {
	n, from, err := unix.Recvfrom(g.fds[port], s.in, unix.MSG_DONTWAIT)
	if err != nil {
		return false
	}
	remote := addrPort(from)
	d, err := s.codec.Parse(s.in[:n], remote, g.local[port])
	if err != nil || d.Kind != StreamAnswer {
		return true
	}
	if l := g.of[d.Session]; l != nil && remote == netip.AddrPortFrom(l.Dst, l.Port) && l.stream.port(d.Serial) == port {
		s.batch = append(s.batch, came{stream: l, serial: d.Serial, standing: d.Standing})
		l.stream.heard(d.Serial)
	}
	return true
}

// reportOf is what there is to be told of a stream now.
func (s *Streams) reportOf(l *liveStream, now time.Time) (r StreamReport, due bool) {
	since := now.Sub(l.told)
	silent, from := l.stream.silentNow()
	news := (silent > 0) != l.silent
	if since < reportEvery && !news {
		return r, false
	}
	total, lost := l.stream.counted()
	overtook := l.stream.overtook
	nothing := total == 0 && overtook == 0 && silent == 0
	if !news && (nothing || lost == 0 && total < reportTrials && since < reportAtMost) {
		return r, false
	}
	l.told, l.silent = now, silent > 0
	r = StreamReport{Set: s.set, Target: l.index, Src: l.group.key.src, SourcePorts: l.group.ports,
		Counts: slices.Clone(l.stream.counts), Overtaken: overtook, Silent: silent}
	if !from.IsZero() {
		r.SilentFor = now.Sub(from)
	}
	for _, c := range r.Counts {
		s.counters.Unclear += uint64(c.Unclear)
	}
	s.counters.Overtaken += uint64(overtook)
	clear(l.stream.counts)
	l.stream.overtook = 0
	return r, true
}
