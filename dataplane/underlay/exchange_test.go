package underlay

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// arrived counts source ports by what the responder has seen of their smallest size.
func arrived(e Exchange, seen []byte, size int) (some, none int) {
	for p := range e.SourcePorts {
		came := false
		for repeat := range e.Repeats {
			s := e.Serial(repeat, p, size)
			came = came || int(s/8) < len(seen) && seen[s/8]&(1<<(s%8)) != 0
		}
		if came {
			some++
		} else {
			none++
		}
	}
	return some, none
}

func TestExchange(t *testing.T) {
	for _, v := range []struct {
		name     string
		src, dst netip.Addr
		match    string // packets from a to b
		back     string
		large    string // more than 1400 bytes of IP packet
		narrow   int    // what a 1400 byte link lets pass
	}{
		{"IPv4", hostA, hostB, "ip daddr 10.9.0.2", "ip saddr 10.9.0.2", "ip daddr 10.9.0.2 ip length > 1400", 1400},
		{"IPv6", hostA6, hostB6, "ip6 daddr fd00:9::2", "ip6 saddr fd00:9::2", "ip6 daddr fd00:9::2 ip6 length > 1360", 1400},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			t.Run("whole", func(t *testing.T) {
				w := w.sub(t)
				b := w.responder()
				e, r := w.probe(v.dst, nil)
				for size := range e.Sizes {
					if all, _ := answered(e, r, size); all != e.SourcePorts {
						t.Errorf("%d of %d source ports whole at %d bytes", all, e.SourcePorts, e.Sizes[size])
					}
				}
				if r.ToSSeen != e.ToS || r.Src != v.src || len(r.Refusals) > 0 || r.Passes != 0 {
					t.Errorf("report %+v, want ToS %#x, source %s, nothing refused, no search", r, e.ToS, v.src)
				}
				if c := r.Cells[0]; c.RTT <= 0 || c.RTT > e.Wait {
					t.Errorf("RTT %v", c.RTT)
				}
				m := b.Recall(e.Session, v.src, v.dst, time.Now())
				if some, none := arrived(e, m.Seen, 0); none > 0 || some != e.SourcePorts || m.FromOthers >= 0 || m.FromAsker >= 0 {
					t.Errorf("recalled: %d source ports came, %d did not; others %v, of the asker %v", some, none, m.FromOthers, m.FromAsker)
				}
				if m = b.Recall(e.Session, netip.MustParseAddr("192.0.2.1"), v.dst, time.Now()); m.FromOthers < 0 {
					t.Error("to another asker, the first is none of the others")
				}
				if m = b.Recall(e.Session+1, v.src, v.dst, time.Now()); m.Seen != nil || m.FromOthers < 0 || m.FromAsker < 0 {
					t.Error("to another session, of which nothing came, this one is no other")
				}
			})
			t.Run("nothing there", func(t *testing.T) {
				w := w.sub(t)
				b := w.responder()
				w.drop("r", v.match)
				w.drop("s", v.match)
				e, r := w.probe(v.dst, nil)
				if _, none := answered(e, r, 0); none != e.SourcePorts {
					t.Errorf("%d of %d source ports lost", none, e.SourcePorts)
				}
				if m := b.Recall(e.Session, v.src, v.dst, time.Now()); m.Seen != nil || m.FromOthers >= 0 || m.FromAsker >= 0 {
					t.Errorf("recalled %x, others %v, of the asker %v, want nothing", m.Seen, m.FromOthers, m.FromAsker)
				}
				// It may be a switch that stands still, whose queues are others', too.
				if want := e.SourcePorts + knocks*(e.Repeats-1); r.Sent != want {
					t.Errorf("%d packets sent to where nothing is answered, want %d", r.Sent, want)
				}
			})
			t.Run("answered late", func(t *testing.T) {
				w := w.sub(t)
				w.responder()
				w.in("b", "nft", "add table inet late")
				t.Cleanup(func() { w.in("b", "nft", "delete table inet late") })
				w.in("b", "nft", "add chain inet late output { type filter hook output priority 0; }")
				// All but those to the last round of what goes out while nothing is answered.
				w.in("b", "nft", "add rule inet late output udp sport 7443 quota until "+fmt.Sprint((32+2*knocks)*128)+" bytes drop")
				e, r := w.probe(v.dst, func(e *Exchange) { e.Wait = maxWait })
				for port := range e.SourcePorts {
					small, large := r.Cells[2*port], r.Cells[2*port+1]
					if small.Sent != e.Repeats || small.Answered == 0 || large.Answered == 0 {
						t.Errorf("source port %d: %d of %d small ones answered, %d of %d large ones; want %d small ones sent, and both answered", port, small.Answered, small.Sent, large.Answered, large.Sent, e.Repeats)
					}
				}
			})
			t.Run("nothing back", func(t *testing.T) {
				w := w.sub(t)
				b := w.responder()
				w.drop("r", v.back)
				w.drop("s", v.back)
				e, r := w.probe(v.dst, nil)
				if _, none := answered(e, r, 0); none != e.SourcePorts {
					t.Errorf("%d of %d source ports lost", none, e.SourcePorts)
				}
				m := b.Recall(e.Session, v.src, v.dst, time.Now())
				if some, _ := arrived(e, m.Seen, 0); some != e.SourcePorts {
					t.Errorf("%d of %d source ports came there", some, e.SourcePorts)
				}
			})
			t.Run("one way of two", func(t *testing.T) {
				w := w.sub(t)
				b := w.responder()
				w.drop("s", v.match)
				e, r := w.probe(v.dst, nil)
				all, none := answered(e, r, 0)
				// Each port goes by either: 32 of them on one side once in 2^31 runs.
				if all+none != e.SourcePorts || all == 0 || none == 0 {
					t.Errorf("%d source ports whole, %d lost of %d", all, none, e.SourcePorts)
				}
				m := b.Recall(e.Session, v.src, v.dst, time.Now())
				if some, lost := arrived(e, m.Seen, 0); some != all || lost != none {
					t.Errorf("%d source ports came there, %d did not; %d were answered", some, lost, all)
				}
			})
			t.Run("large lost in silence", func(t *testing.T) {
				w := w.sub(t)
				w.responder()
				w.drop("r", v.large)
				w.drop("s", v.large)
				e, r := w.probe(v.dst, nil)
				all, _ := answered(e, r, 0)
				_, none := answered(e, r, 1)
				if all != e.SourcePorts || none != e.SourcePorts || r.Passes != 1400 || len(r.Refusals) > 0 {
					t.Errorf("%d whole, %d lost when large, %d bytes pass, refused %v; want 1400 bytes", all, none, r.Passes, r.Refusals)
				}
			})
			t.Run("a stall during the search", func(t *testing.T) {
				w := w.sub(t)
				w.responder()
				for _, router := range []string{"r", "s"} {
					w.drop(router, v.large)
					// All that the first ladder sends of these sizes: 1078, 1183, 1289 and 1394, three times.
					w.in(router, "nft", "add rule inet test forward meta length 1000-1400 quota until 14900 bytes drop")
				}
				if _, r := w.probe(v.dst, nil); r.Passes != 1400 {
					t.Errorf("%d bytes pass, want 1400", r.Passes)
				}
			})
			t.Run("nothing told by size", func(t *testing.T) {
				w := w.sub(t)
				w.responder()
				for _, router := range []string{"r", "s"} {
					w.drop(router, v.large)
					// Each passes by itself, and most of them do not as a rung is sent.
					for _, rule := range []string{"limit rate 40/second burst 1 packets accept", "drop"} {
						w.in(router, "nft", "add rule inet test forward udp dport 7443 meta length 200-1400 "+rule)
					}
				}
				e, r := w.probe(v.dst, nil)
				rounds := 2 * e.SourcePorts * e.Repeats
				// A search takes four steps at the most, and another to make sure.
				if most := rounds + searches*(4*rungs+1)*rungRepeats; r.Sent > most {
					t.Errorf("%d packets sent, want %d at the most", r.Sent, most)
				}
			})
			t.Run("large passes alone", func(t *testing.T) {
				w := w.sub(t)
				w.responder()
				for _, router := range []string{"r", "s"} {
					w.drop(router, v.large+" quota until 6100 bytes") // the four of the rounds
				}
				_, r := w.probe(v.dst, func(e *Exchange) { e.SourcePorts = 1 })
				if large := r.Cells[1]; large.Sent != 5 || large.Answered != 1 || large.RTT <= 0 || r.Passes != 0 {
					t.Errorf("large ones %+v, %d bytes pass; want the fifth answered, and no search", large, r.Passes)
				}
			})
			t.Run("by the port that loses nothing", func(t *testing.T) {
				w := w.sub(t)
				w.responder()
				for _, router := range []string{"r", "s"} {
					w.drop(router, v.large)
				}
				w.in("s", "nft", "insert rule inet test forward udp dport 7443 numgen inc mod 16 > 0 drop")
				if e, r := w.probe(v.dst, nil); r.Passes != 1400 {
					all, _ := answered(e, r, 0)
					t.Errorf("%d bytes pass, want 1400; %d source ports lose nothing", r.Passes, all)
				}
			})
			t.Run("narrow link that tells", func(t *testing.T) {
				w := w.sub(t)
				w.responder()
				w.narrow("r", "tob")
				w.narrow("s", "tob")
				e, r := w.probe(v.dst, nil)
				_, none := answered(e, r, 1)
				if none != e.SourcePorts || r.Passes != v.narrow {
					t.Errorf("%d lost when large, %d bytes pass, want all and %d", none, r.Passes, v.narrow)
				}
				// An error of IPv4 or IPv6 from a router, about the size that was sent.
				i := slices.IndexFunc(r.Refusals, func(x Refusal) bool { return x.MTU == v.narrow && x.Size == 1500 })
				if i < 0 || !r.Refusals[i].From.IsValid() || r.Refusals[i].From == v.src {
					t.Errorf("refused %+v, want a router that names %d", r.Refusals, v.narrow)
				}
			})
			t.Run("narrow link of one's own", func(t *testing.T) {
				w := w.sub(t)
				w.responder()
				w.narrow("a", "tor")
				w.narrow("a", "tos")
				_, r := w.probe(v.dst, nil)
				i := slices.IndexFunc(r.Refusals, func(x Refusal) bool { return x.Errno == unix.EMSGSIZE && x.MTU == 1400 })
				if i < 0 || r.Passes != 1400 {
					t.Errorf("refused %+v, %d bytes pass, want EMSGSIZE and 1400", r.Refusals, r.Passes)
				}
			})
			t.Run("nobody there", func(t *testing.T) {
				w := w.sub(t) // without a responder: port unreachable
				e, r := w.probe(v.dst, nil)
				i := slices.IndexFunc(r.Refusals, func(x Refusal) bool { return x.From == v.dst && x.String() == "port unreachable" })
				if _, none := answered(e, r, 0); none != e.SourcePorts || i < 0 {
					t.Errorf("%d lost, refused %+v, want port unreachable by %s", none, r.Refusals, v.dst)
				}
			})
			t.Run("host gone", func(t *testing.T) {
				w := w.sub(t)
				w.ip("r", "route del "+v.dst.String())
				w.ip("s", "route del "+v.dst.String())
				_, r := w.probe(v.dst, nil)
				if len(r.Refusals) == 0 || !strings.Contains(r.Refusals[0].String()+" ", "unreachable ") && r.Refusals[0].String() != "no route" {
					t.Errorf("refused %+v, want a router to say that there is no route", r.Refusals)
				}
			})
		})
	}
}

// What strangers send is counted, and answered with silence.
func TestStrangers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.responder()
	var fd int
	w.as("a", func() {
		var err error
		if fd, err = open(netip.AddrPortFrom(hostA, 0), nil); err != nil {
			t.Fatal(err)
		}
	})
	defer unix.Close(fd)
	me, err := localOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(hostB, testPort)
	question := Datagram{Kind: Question, Session: 7, Serial: 1, Length: 100}
	answer := question
	answer.Kind = Answer
	bad := [][]byte{
		[]byte("hello"),
		NewCodec(Key{1}).Append(nil, question, me, at),
		NewCodec(testKey).Append(nil, answer, me, at),
		NewCodec(testKey).Append(nil, question, netip.AddrPortFrom(hostA, me.Port()+1), at),
	}
	for _, payload := range bad {
		if err := unix.Sendto(fd, payload, 0, sockaddr(at)); err != nil {
			t.Fatal(err)
		}
	}
	// The one that is authentic comes last, so its answer comes first if there is no other.
	if err := unix.Sendto(fd, NewCodec(testKey).Append(nil, question, me, at), 0, sockaddr(at)); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 || err != nil {
		t.Fatalf("no answer: %v", err)
	}
	buf := make([]byte, 1000)
	n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
	if err != nil || n != question.Length {
		t.Fatalf("an answer of %d bytes, %v, want %d", n, err, question.Length)
	}
	if d, err := NewCodec(testKey).Parse(buf[:n], at, me); err != nil || d.Serial != 1 || d.Kind != Answer {
		t.Errorf("answer %+v, %v", d, err)
	}
	if n, _, err = unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT); err == nil {
		t.Errorf("another answer, of %d bytes", n)
	}
	if c := b.Counters(); c.Refused != uint64(len(bad)) || c.Limited != 0 || c.Failed != 0 {
		t.Errorf("counters %+v, want %d refused", c, len(bad))
	}
}

// More than the rate allows is not answered, and said so.
func TestLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.responder()
	b.pace.SetBurst(10)
	b.pace.SetLimit(0)
	e, r := w.probe(hostB, func(e *Exchange) { e.Sizes, e.SourcePorts, e.Repeats = []int{128}, 4, 5 })
	got := 0
	for _, c := range r.Cells {
		got += c.Answered
	}
	m := b.Recall(e.Session, hostA, hostB, time.Now())
	if got != 10 || m.Limited != 10 || b.Counters().Limited != 10 {
		t.Errorf("%d answers, %d not for the rate, counters %+v; want 10 and 10", got, m.Limited, b.Counters())
	}
	if some, none := arrived(e, m.Seen, 0); some != 4 || none != 0 {
		t.Errorf("recalled %d source ports, %d not; all came", some, none)
	}
}

// Sessions beyond what is kept push out the oldest.
func TestForgets(t *testing.T) {
	r := NewResponder(testPort, nil)
	for i := range uint64(remembered + 3) {
		r.note(Datagram{Session: i + 1, Serial: 9}, true)
		r.note(Datagram{Session: i + 1, Serial: serials}, true)
	}
	for id, want := range map[uint64]bool{1: false, 3: false, 4: true, remembered + 3: true} {
		if m := r.Recall(id, hostA, hostB, time.Now()); (m.Seen != nil) != want || want && (len(m.Seen) != 2 || m.Seen[1] != 2) {
			t.Errorf("session %d: %x, want it kept: %v", id, m.Seen, want)
		}
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.responder()
	nowhere := netip.MustParseAddr("192.0.2.9")
	w.as("b", func() { b.Listen([]netip.Addr{hostB, nowhere}) })
	if at, problems := b.Addresses(); len(at) != 1 || at[0] != hostB || len(problems) != 1 ||
		!strings.Contains(problems[0].Error(), "192.0.2.9:7443: cannot assign requested address") {
		t.Errorf("listens at %v, problems %v", at, problems)
	}
	if b.Problem(hostB) != nil || b.Problem(nowhere) == nil || b.Problem(hostB6) == nil {
		t.Errorf("problems %v, %v, %v", b.Problem(hostB), b.Problem(nowhere), b.Problem(hostB6))
	}
	other := NewResponder(testPort, nil)
	defer other.Close()
	w.as("b", func() { other.Listen([]netip.Addr{hostB}) })
	if err := other.Problem(hostB); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("two at one address: %v", err)
	}
	b.Close()
	w.as("b", func() { other.Listen([]netip.Addr{hostB}) })
	if err := other.Problem(hostB); err == nil || !strings.Contains(err.Error(), "key") {
		t.Errorf("without a key: %v", err)
	}
}

// TestFreeWhenClosed forks children, which have our sockets until they are other programs.
func TestFreeWhenClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, stop := context.WithCancel(t.Context())
	var children sync.WaitGroup
	for range 4 {
		children.Go(func() {
			for ctx.Err() == nil {
				if err := exec.Command("true").Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 300 {
		w.responder().Close() // fails where the one before is still there
	}
	stop()
	children.Wait()
}

func TestValidate(t *testing.T) {
	good := Exchange{Dst: hostB, Port: 1, Sizes: []int{100}, SourcePorts: 1, Repeats: 1, Wait: time.Second}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for field, change := range map[string]func(*Exchange){
		"dst_ip":       func(e *Exchange) { e.Dst = netip.Addr{} },
		"src_ip":       func(e *Exchange) { e.Src = hostA6 },
		"port":         func(e *Exchange) { e.Port = 0 },
		"sizes: 0":     func(e *Exchange) { e.Sizes = nil },
		"sizes: 75":    func(e *Exchange) { e.Sizes = []int{75} },
		"sizes: 90":    func(e *Exchange) { e.Sizes = []int{100, 90} },
		"sizes: 70000": func(e *Exchange) { e.Sizes = []int{70000} },
		"source_ports": func(e *Exchange) { e.SourcePorts = 129 },
		"repeats":      func(e *Exchange) { e.Repeats = 0 },
		"wait_ms":      func(e *Exchange) { e.Wait = time.Minute },
	} {
		e := good
		change(&e)
		if _, err := Probe(context.Background(), testKey, e); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestProbeEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.as("a", func() {
		_, err := Probe(ctx, testKey, Exchange{Dst: hostB, Port: 1, Sizes: []int{100}, SourcePorts: 1, Repeats: 1, Wait: time.Second})
		if err != context.Canceled {
			t.Errorf("Probe with a context that has ended: %v", err)
		}
	})
}

func BenchmarkDatagram(b *testing.B) {
	c := NewCodec(testKey)
	buf := make([]byte, 0, 2000)
	for b.Loop() {
		buf = c.Append(buf[:0], Datagram{Kind: Question, Session: 1, Length: 1400}, vtepA, vtepB)
		if _, err := c.Parse(buf, vtepA, vtepB); err != nil {
			b.Fatal(err)
		}
	}
}

// What came and is not read yet is not what never came; what found no room may have come.
func TestCaughtUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.responder()
	l := b.listeners[hostB]
	stalled := func(do func()) {
		b.mu.Lock() // it reads one, and stands still
		defer b.mu.Unlock()
		do()
	}
	var e Exchange
	stalled(func() {
		e, _ = w.probe(hostB, nil)
		read, _ := l.await(time.Now())
		select {
		case <-read:
			t.Error("all is read, while it stands still")
		default:
		}
	})
	if err := b.CaughtUp(hostB, time.Minute); err != nil {
		t.Error(err)
	}
	if some, none := arrived(e, b.Recall(e.Session, hostA, hostB, time.Now()).Seen, 0); some != e.SourcePorts || none > 0 {
		t.Errorf("recalled %d source ports, %d not; all came", some, none)
	}
	stalled(func() {
		if err := unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			t.Error(err)
		}
		w.probe(hostB, nil)
	})
	// Two that were under way at the same time must both hear of it: whose questions were dropped nobody knows.
	for range 2 {
		if err := b.CaughtUp(hostB, time.Minute); err == nil || !strings.Contains(err.Error(), "found no room") {
			t.Errorf("%v (want that some found no room)", err)
		}
	}
	l.mu.Lock()
	l.dropped = l.dropped.Add(-MaxExchange)
	l.mu.Unlock()
	if err := b.CaughtUp(hostB, time.Minute); err != nil {
		t.Errorf("nothing was dropped during any exchange that ends now: %v", err)
	}
	w.as("b", func() { b.Listen(nil) })
	if err := b.CaughtUp(hostB, time.Minute); err != nil {
		t.Errorf("nobody listens: %v", err)
	}
	<-l.done
	if read, _ := l.await(time.Now()); read != nil {
		<-read // of one that has ended there is no more to wait for
	}
}

// What found no room is noticed without being asked for, as the next datagram is read.
func TestNoticesDrops(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.responder()
	l := b.listeners[hostB]
	b.mu.Lock() // it reads one, and stands still
	if err := unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		t.Error(err)
	}
	w.probe(hostB, nil)
	b.mu.Unlock()
	roomy(l.fd)
	if e, r := w.probe(hostB, func(e *Exchange) { e.Wait = maxWait }); r.Cells[0].Answered == 0 {
		t.Fatalf("nothing of %d source ports answered, with room again", e.SourcePorts)
	}
	l.mu.Lock()
	noticed := l.drops
	l.mu.Unlock()
	if now := overflowed(l.fd); noticed == 0 || noticed != now {
		t.Errorf("noticed %d drops of %d", noticed, now)
	}
}

// TestPaced holds an exchange back to what the host may send, and ends it where that would take too long.
func TestPaced(t *testing.T) {
	t.Parallel()
	const most, sent = 50, 12
	e := Exchange{Dst: netip.MustParseAddr("127.0.0.1"), Port: 1, Sizes: []int{1600}, SourcePorts: 1, Repeats: sent, Wait: time.Millisecond,
		Pace: rate.NewLimiter(most, 4)} // each of them weighs 2
	began := time.Now()
	r, err := Probe(t.Context(), testKey, e)
	if took, least := time.Since(began), (2*sent-4)*time.Second/most; err != nil || r.Sent != sent || took < least {
		t.Errorf("%d were sent in %v, %v; want %d in %v at the least", r.Sent, took, err, sent, least)
	}
	e.Pace = rate.NewLimiter(0.001, 4)
	ctx, cancel := context.WithTimeout(t.Context(), MaxExchange)
	defer cancel()
	if r, err := Probe(ctx, testKey, e); err == nil || !strings.Contains(err.Error(), "underlay_rate") || r.Sent != 2 {
		t.Errorf("%d were sent, %v; want 2, and an error that names underlay_rate", r.Sent, err)
	}
}

// TestSearchGivenUp has the search for a size find no time: what was found out before is told.
func TestSearchGivenUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.responder()
	for _, router := range []string{"r", "s"} {
		w.drop(router, "ip daddr 10.9.0.2 ip length > 1400")
	}
	e := Exchange{Dst: hostB, Port: testPort, Sizes: []int{128, 1500}, SourcePorts: 1, Repeats: 2, Wait: 100 * time.Millisecond, FindMTU: true, Session: 7}
	e.Pace = rate.NewLimiter(0.001, 2*e.Repeats) // the rounds, and no more
	ctx, cancel := context.WithTimeout(t.Context(), MaxExchange)
	defer cancel()
	w.as("a", func() {
		r, err := Probe(ctx, testKey, e)
		if err != nil || r.Passes != 0 || r.Sent != 2*e.Repeats || r.Cells[0].Answered != e.Repeats || r.Cells[1].Answered != 0 {
			t.Errorf("%+v, %v; want the small ones answered, and no size", r, err)
		}
	})
}

// TestCannotSend has a host without a way to the other, and one without the address that it is to send from: that is told as
// what refuses, of no packet, by as many source ports as were asked for.
func TestCannotSend(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.ip("a", "route del "+hostB.String())
	w.ip("a", "addr del "+hostA6.String()+"/128 dev lo")
	for _, tt := range []struct {
		src, dst netip.Addr
		want     syscall.Errno
	}{{netip.Addr{}, hostB, unix.ENETUNREACH}, {hostA, hostB, unix.ENETUNREACH}, {hostA6, hostB6, unix.EADDRNOTAVAIL}} {
		w.as("a", func() {
			r, err := Probe(t.Context(), testKey, Exchange{Src: tt.src, Dst: tt.dst, Port: testPort, Sizes: []int{128, 1500}, SourcePorts: 3, Repeats: 2, Wait: time.Second, Session: 7})
			if err != nil || r.Sent != 0 || len(r.SourcePorts) != 3 || len(r.Cells) != 6 || len(r.Refusals) != 1 || r.Refusals[0].Errno != tt.want {
				t.Errorf("from %s to %s: %+v, %v; want nothing sent, and %v", tt.src, tt.dst, r, err, tt.want)
			}
		})
	}
}
