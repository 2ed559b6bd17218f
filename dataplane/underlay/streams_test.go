package underlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// streaming is streams from host a to host b, and what they told.
type streaming struct {
	w       world
	streams *Streams

	mu    sync.Mutex
	ports map[uint16]*Count
	all   Count
	last  StreamReport
	signs []StreamReport // that it is silent, and that it is not
}

func (w world) stream(rate float64, at ...netip.Addr) *streaming {
	w.t.Helper()
	s := &streaming{w: w, streams: NewStreams(10_000), ports: map[uint16]*Count{}}
	var targets []Target
	for _, dst := range at {
		targets = append(targets, Target{Dst: dst, Port: testPort, ToS: 0xb8, Size: max(128, MinStreamSize(dst)), Rate: rate, Suspect: MaxStreamRate})
	}
	w.as("a", func() {
		if err := s.streams.Set(testKey, 1, targets, 1000); err != nil {
			w.t.Fatal(err)
		}
	})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.streams.Run(ctx, s.take) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	return s
}

func (s *streaming) take(r StreamReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = r
	if n := len(s.signs); r.Silent > 0 && (n == 0 || s.signs[n-1].Silent == 0) || r.Silent == 0 && n > 0 && s.signs[n-1].Silent > 0 {
		s.signs = append(s.signs, r)
	}
	for i, c := range r.Counts {
		p := s.ports[r.SourcePorts[i]]
		if p == nil {
			p = &Count{}
			s.ports[r.SourcePorts[i]] = p
		}
		for _, to := range []*Count{p, &s.all} {
			to.Passed, to.Back, to.There, to.Unclear = to.Passed+c.Passed, to.Back+c.Back, to.There+c.There, to.Unclear+c.Unclear
		}
	}
}

func (s *streaming) sum() Count {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

// until waits for what was told.
func (s *streaming) until(what string, is func(Count) bool) Count {
	s.w.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		c := s.sum()
		if is(c) {
			return c
		}
		if time.Now().After(deadline) {
			s.w.t.Fatalf("%s: not told: %+v, %+v", what, c, s.streams.Counters())
		}
		time.Sleep(5 * time.Millisecond) // between looks
	}
}

// TestStreams loses packets in routers, and looks what the two ends tell of it.
func TestStreams(t *testing.T) {
	for _, v := range []struct {
		name        string
		dst         netip.Addr
		there, back string
	}{
		{"IPv4", hostB, "ip daddr 10.9.0.2 udp dport 7443", "ip saddr 10.9.0.2 udp sport 7443"},
		{"IPv6", hostB6, "ip6 daddr fd00:9::2 udp dport 7443", "ip6 saddr fd00:9::2 udp sport 7443"},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.responder()
			t.Run("whole", func(t *testing.T) {
				s := w.sub(t).stream(1000, v.dst)
				if c := s.until("2000 that passed", func(c Count) bool { return c.Passed >= 2000 }); c.There+c.Back > 0 {
					t.Errorf("%+v where nothing is lost", c)
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				if len(s.ports) != streamPorts || s.last.Set != 1 || s.last.Src.Is4() != v.dst.Is4() {
					t.Errorf("%d source ports, report %+v", len(s.ports), s.last)
				}
			})
			t.Run("there", func(t *testing.T) {
				w := w.sub(t)
				w.drop("r", v.there+" numgen inc mod 20 == 7")
				w.drop("s", v.there+" numgen inc mod 20 == 3")
				s := w.stream(200, v.dst)
				c := s.until("50 lost", func(c Count) bool { return c.There >= 50 })
				if c.Back > 0 || c.Passed < 15*c.There || c.Passed > 25*c.There {
					t.Errorf("%+v where one in twenty is lost on the way there", c)
				}
				if s.sent() < 800 {
					t.Errorf("%d sent: no more than at the pace of a stream that loses nothing", s.sent())
				}
			})
			t.Run("back", func(t *testing.T) {
				w := w.sub(t)
				w.drop("r", v.back+" numgen inc mod 20 == 7")
				w.drop("s", v.back+" numgen inc mod 20 == 3")
				c := w.stream(200, v.dst).until("50 lost", func(c Count) bool { return c.Back >= 50 })
				if c.There > 0 || c.Passed < 15*c.Back || c.Passed > 25*c.Back {
					t.Errorf("%+v where one in twenty is lost on the way back", c)
				}
			})
			t.Run("one of two ways", func(t *testing.T) {
				w := w.sub(t)
				w.drop("s", v.there+" numgen inc mod 10 == 3")
				s := w.stream(1000, v.dst)
				s.until("100 lost", func(c Count) bool { return c.There >= 100 })
				lossy, whole := 0, 0
				s.mu.Lock()
				defer s.mu.Unlock()
				for port, c := range s.ports {
					switch {
					case c.There == 0:
						whole++
					case c.There*20 > c.Passed: // a tenth, of some hundred
						lossy++
					default:
						t.Errorf("source port %d: %+v, want nothing or a tenth lost", port, *c)
					}
				}
				if lossy == 0 || whole == 0 {
					t.Errorf("%d source ports lose, %d do not", lossy, whole)
				}
			})
			t.Run("nothing there", func(t *testing.T) {
				w := w.sub(t)
				s := w.stream(200, v.dst)
				s.until("some that passed", func(c Count) bool { return c.Passed > 0 })
				sent := s.sent()
				w.drop("r", v.there) // what is lost before the other way is down too, others tell of
				w.drop("s", v.there)
				between := uint32(s.sent() - sent)
				before := s.sum()
				c := s.until("some that are unclear", func(c Count) bool { return c.Unclear > 100 })
				if c.There+c.Back > 1+between || c.Passed < before.Passed {
					t.Errorf("%+v where nothing passes: one event, and no rate (%d were sent when one of two ways was down)", c, between)
				}
			})
			t.Run("silence", func(t *testing.T) {
				w := w.sub(t)
				s := w.stream(200, v.dst)
				told, passed := -1, uint32(0) // a host that stands still is a silence too
				s.until("some that passed, and no silence", func(c Count) bool {
					if n := s.told(); n != told || n%2 == 1 {
						told, passed = n, c.Passed
					}
					return c.Passed > passed+100
				})
				began := time.Now()
				w.drop("r", v.back) // which of the two ways it is nobody knows from that
				w.drop("s", v.back)
				first := s.sign(told + 1)
				if first.Silent < silentAfter || first.SilentFor < silentFor || first.SilentFor > time.Since(began)+time.Second || first.Set != 1 || len(first.Counts) != streamPorts {
					t.Errorf("told %+v, %v after answers were dropped", first, time.Since(began))
				}
				s.until("what is repeated, and counted", func(c Count) bool { return c.Unclear+c.Back > 100 })
				for _, router := range []string{"r", "s"} {
					w.in(router, "nft", "flush", "chain", "inet", "test", "forward")
				}
				if again := s.sign(told + 2); again.Silent != 0 || again.SilentFor != 0 {
					t.Errorf("told %+v when it is answered again", again)
				}
				s.until("as many silences as are counted", func(Count) bool { return s.streams.Counters().Silences == uint64(s.told()+1)/2 })
			})
		})
	}
}

// told is how many signs there were. Odd is that it is silent.
func (s *streaming) told() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.signs)
}

// sign waits for the n-th sign.
func (s *streaming) sign(n int) (r StreamReport) {
	s.w.t.Helper()
	s.until("a sign", func(Count) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.signs) < n {
			return false
		}
		r = s.signs[n-1]
		return true
	})
	return r
}

func (s *streaming) sent() uint64 { return s.streams.Counters().Sent }

// TestStreamsFaultsOfOurs has the ends be at fault, and the network not.
func TestStreamsFaultsOfOurs(t *testing.T) {
	t.Parallel()
	t.Run("responder restarts", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		b := w.responder()
		s := w.stream(1000, hostB)
		for range 3 {
			before := s.sum().Passed
			s.until("some that passed", func(c Count) bool { return c.Passed > before+50 })
			sent := s.sent()
			b.Close()
			s.until("some that nobody answers", func(Count) bool {
				c := s.streams.Counters()
				return c.Sent+c.Refused > sent+50
			})
			b = w.responder()
		}
		before := s.sum().Passed
		c := s.until("some that passed", func(c Count) bool { return c.Passed > before+300 })
		if c.There+c.Back > 0 || c.Unclear == 0 {
			t.Errorf("%+v, where the agent there was restarted", c)
		}
	})
	t.Run("responder at its rate", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		b := w.responder()
		b.pace.SetBurst(3)
		b.pace.SetLimit(300)
		s := w.stream(1000, hostB)
		c := s.until("some that are unclear", func(c Count) bool { return c.Unclear > 500 })
		if c.There+c.Back > 0 || b.Counters().Limited == 0 {
			t.Errorf("%+v, %+v, where the agent there did not answer all", c, b.Counters())
		}
	})
	t.Run("responder stands still", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		b := w.responder()
		s := w.stream(250, hostB)
		for range 3 {
			before := s.sum().Passed
			s.until("some that passed", func(c Count) bool { return c.Passed > before+50 })
			b.mu.Lock()
			time.Sleep(700 * time.Millisecond) // the fault itself: all ports have been asked, and none is answered
			b.mu.Unlock()
		}
		before := s.sum().Passed
		c := s.until("some that passed", func(c Count) bool { return c.Passed > before+300 })
		if n := s.streams.Counters().Overtaken; c.There+c.Back > 0 || n > 0 {
			t.Errorf("%+v, %d taken for lost that came, where all came late and in order", c, n)
		}
	})
	t.Run("asker stands still", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.responder()
		s := w.stream(250, hostB)
		s.until("some that passed", func(c Count) bool { return c.Passed > 100 })
		for range 3 {
			before := s.sum().Passed
			s.streams.mu.Lock()
			time.Sleep(700 * time.Millisecond) // the fault itself
			s.streams.mu.Unlock()
			s.until("some that passed", func(c Count) bool { return c.Passed > before+50 })
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, r := range s.signs { // of what the machine does besides there may be one
			if r.SilentFor >= 700*time.Millisecond {
				t.Errorf("%+v, where the asking host stood still", r)
			}
		}
	})
	t.Run("responder goes", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		b := w.responder()
		s := w.stream(250, hostB)
		s.until("some that passed", func(c Count) bool { return c.Passed > 100 })
		b.Close()
		if first := s.sign(1); first.Silent < silentAfter {
			t.Errorf("told %+v when nobody answers any more", first)
		}
		w.responder()
		s.sign(2)
	})
	t.Run("sockets overflow", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		b := w.responder()
		b.mu.Lock()
		for _, l := range b.listeners {
			if err := unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil { // the kernel's least
				t.Fatal(err)
			}
		}
		b.mu.Unlock()
		s := w.stream(1000, hostB)
		s.until("some that passed", func(c Count) bool { return c.Passed > 100 })
		// Somebody floods it, bounded, and by a network that loses nothing.
		var flood int
		w.as("a", func() {
			var err error
			if flood, err = open(netip.AddrPortFrom(hostA, 0), nil); err != nil {
				t.Fatal(err)
			}
		})
		defer unix.Close(flood)
		to, junk := sockaddr(netip.AddrPortFrom(hostB, testPort)), bytes.Repeat([]byte{1}, 1000)
		var c Count
		for i := 0; i < 100_000; i++ {
			_ = unix.Sendto(flood, junk, unix.MSG_DONTWAIT, to)
			if i%100 == 0 {
				if c = s.sum(); c.Unclear > 20 {
					break
				}
				time.Sleep(time.Millisecond) // what is lost in between is what is looked for
			}
		}
		c = s.until("some that are unclear", func(c Count) bool { return c.Unclear > 20 })
		if c.There+c.Back > 0 {
			t.Errorf("%+v, where the socket there had no room", c)
		}
	})
}

// TestReadInTurns has answers come while sockets are read, one after the other: that to question 90, at the last
// socket, is read before the one to 16 at the first, though it came later, and knows that 16 came there.
func TestReadInTurns(t *testing.T) {
	s := NewStreams(10_000)
	l := &liveStream{group: &group{}, stream: newStream(streamPorts)}
	s.live = []*liveStream{l}
	for i := range 100 {
		l.stream.sent(epoch0.Add(time.Duration(i) * 20 * time.Millisecond))
	}
	read := func(serials ...uint32) {
		before := len(s.batch)
		for _, serial := range serials {
			c := came{stream: l, serial: serial, standing: Standing{Epoch: 1, Known: seenBits}}
			for i := range c.standing.Seen {
				c.standing.Seen[i] = ^uint64(0)
			}
			s.batch = append(s.batch, c)
		}
		s.takeIn(before)
	}
	var most, late []uint32
	for i := range uint32(91) {
		if i%streamPorts == 0 && i > 0 {
			late = append(late, i)
		} else {
			most = append(most, i)
		}
	}
	read(most...)
	read(late...)
	read()
	if total, lost := l.stream.counted(); total != 91 || lost != 0 || l.stream.overtook != 0 {
		t.Errorf("%d of %d counted as lost, %d overtaken, want 0 of 91, 0", lost, total, l.stream.overtook)
	}
}

// BenchmarkStream measures what a datagram of a stream and its answer take of processors, at both ends together: while one is
// under suspicion, and at rest, when those of a stream go four at a time.
func BenchmarkStream(b *testing.B) {
	cpu := func() time.Duration {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	for _, rate := range []float64{MaxStreamRate, 200} {
		b.Run(fmt.Sprintf("%g a second", rate), func(b *testing.B) {
			w := newWorld(b)
			w.responder()
			s := w.stream(rate, hostB)
			s.until("the first", func(c Count) bool { return c.Passed > 0 })
			before, passed := cpu(), s.sum().Passed
			most := passed + uint32(3*rate)
			s.until("those that are measured", func(c Count) bool { return c.Passed >= most })
			b.ReportMetric(float64((cpu()-before).Microseconds())/float64(s.sum().Passed-passed), "µs-cpu/datagram")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// Streams that are set anew go on where they are the same, and no socket is left of others.
func TestStreamsSet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.responder()
	s := w.stream(500, hostB, hostB6)
	s.until("some that passed", func(c Count) bool { return c.Passed > 50 })
	session := func() uint64 {
		s.streams.mu.Lock()
		defer s.streams.mu.Unlock()
		return s.streams.live[0].session
	}
	before := session()
	one := Target{Dst: hostB, Port: testPort, ToS: 0xb8, Size: 128, Rate: 250, Suspect: 1000}
	bad := one
	bad.Size = 20
	var err error
	w.as("a", func() { err = s.streams.Set(testKey, 2, []Target{one, bad}, 0) })
	var te *TargetError
	if !errors.As(err, &te) || te.Target != 1 || !strings.HasPrefix(err.Error(), "targets[1]: size: 20, want 124") {
		t.Errorf("Set: %v, want an error that names target 1 and its size", err)
	}
	if session() != before || len(s.streams.groups) != 1 {
		t.Errorf("the stream that stays began anew, or %d groups of sockets are left", len(s.streams.groups))
	}
	passed := s.sum().Passed
	s.until("more that passed", func(c Count) bool { return c.Passed > passed+50 })
	w.as("a", func() { err = s.streams.Set(Key{1}, 3, []Target{one}, 0) })
	if err != nil || session() == before {
		t.Errorf("with another key: %v, another stream: %v", err, session() != before)
	}
}

// TestStreamsBound asks for streams whose rates pass the host's bound: those that do are not sent, and the error says so; what
// may be sent beyond the rates is cut.
func TestStreamsBound(t *testing.T) {
	local := netip.MustParseAddr("127.0.0.1")
	to := func(n, size int, rate float64) (list []Target) {
		for i := range n {
			list = append(list, Target{Dst: local, Port: uint16(1 + i), Size: size, Rate: rate, Suspect: 1000})
		}
		return list
	}
	for _, tt := range []struct {
		name        string
		most        float64
		targets     []Target
		extra       float64
		live        int
		allowed     float64
		firstFailed string
	}{
		{"within", 1000, to(4, 128, 200), 200, 4, 200, ""},
		{"less for suspicion", 1000, to(4, 128, 200), 500, 4, 200, ""},
		{"the third", 1000, to(3, 128, 400), 500, 2, 200,
			"targets[2]: rate_milli: 400 a second, with which this host's streams would send 1200, want at most 1000 (underlay_rate)"},
		{"large ones", 1000, to(3, 9000, 80), 500, 2, 40. / 6,
			"targets[2]: rate_milli: 480 a second, with which this host's streams would send 1440, want at most 1000 (underlay_rate)"},
		// Half of a budget of 10,000, each rate rounded up to the next thousandth, and as much for suspicion.
		{"all that a controller may ask", 10_000, to(maxTargets, 144, 1.221), 5000, maxTargets, 10_000 - maxTargets*1.221, ""},
		{"a flood", 10_000, to(maxTargets, 128, 1000), 1e6, 10, 0,
			"targets[10]: rate_milli: 1000 a second, with which this host's streams would send 11000, want at most 10000 (underlay_rate)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := NewStreams(tt.most)
			defer func() { _ = s.Set(testKey, 0, nil, 0) }()
			for range 2 { // the second one counts none of the first
				err := s.Set(testKey, 1, tt.targets, tt.extra)
				if got, _, _ := strings.Cut(fmt.Sprint(err), "\n"); err != nil && got != tt.firstFailed || err == nil && tt.firstFailed != "" {
					t.Errorf("Set: %s\nwant %s", got, tt.firstFailed)
				}
				if len(s.live) != tt.live || math.Abs(s.extra-tt.allowed) > 1e-6 {
					t.Errorf("%d streams and %g beyond their rates, want %d and %g", len(s.live), s.extra, tt.live, tt.allowed)
				}
			}
		})
	}
}

// TestStreamsSendNoMore measures what a host sends that is asked for a flood.
func TestStreamsSendNoMore(t *testing.T) {
	t.Parallel()
	const most = 500
	s := NewStreams(most)
	var targets []Target
	for i := range 100 {
		targets = append(targets, Target{Dst: netip.MustParseAddr("127.0.0.1"), Port: uint16(1 + i), Size: 128, Rate: 250, Suspect: 1000})
	}
	began := time.Now()
	if err := s.Set(testKey, 1, targets, 1e6); err == nil {
		t.Error("100 streams of 250 a second are taken")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.Run(ctx, func(StreamReport) {}); err != nil {
		t.Fatal(err)
	}
	c := s.Counters()
	if n, limit := c.Sent+c.Refused, most*time.Since(began).Seconds()+most*lag.Seconds(); n == 0 || float64(n) > limit {
		t.Errorf("%d were sent, want 1 to %g", n, limit)
	}
}

func TestTargetValidate(t *testing.T) {
	good := Target{Dst: hostB, Port: 1, Size: 124, Rate: 1, Suspect: 1000}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for field, change := range map[string]func(*Target){
		"dst_ip":             func(g *Target) { g.Dst = netip.Addr{} },
		"src_ip":             func(g *Target) { g.Src = hostA6 },
		"port":               func(g *Target) { g.Port = 0 },
		"size: 123":          func(g *Target) { g.Size = 123 },
		"rate_milli":         func(g *Target) { g.Rate = 0 },
		"suspect_rate_milli": func(g *Target) { g.Suspect = 0.5 },
	} {
		bad := good
		change(&bad)
		if err := bad.Validate(); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// A responder forgets the streams that it heard first, and then begins them anew.
func TestStandForgets(t *testing.T) {
	r := NewResponder(testPort, nil)
	l := &listener{at: netip.AddrPortFrom(hostB, testPort)}
	ask := func(session uint64) Standing {
		d := Datagram{Session: session, Serial: 5}
		if !r.stand(l, &d, 0, true) {
			t.Fatalf("session %d is not answered", session)
		}
		return d.Standing
	}
	first := ask(1)
	if again := ask(1); again.Epoch != first.Epoch {
		t.Errorf("epoch %d, then %d", first.Epoch, again.Epoch)
	}
	for i := range uint64(maxStreams) {
		ask(i + 2)
	}
	if again := ask(1); again.Epoch == first.Epoch || len(r.streams.by) > maxStreams || slices.Contains(again.Seen[:], ^uint64(0)) {
		t.Errorf("epoch %d again, %d streams known", again.Epoch, len(r.streams.by))
	}
}
