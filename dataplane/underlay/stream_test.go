package underlay

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// path is a network between two ends of a stream, and the other end, by a clock of its own. It keeps the
// order of what goes by one source port, unless it is told not to.
type path struct {
	chance      *rand.Rand
	there, back float64 // shares lost by chance
	// silent is when nothing passes; fault is one of ours, while it lasts.
	silent, fault func(time.Duration) bool
	kind          string
	delay         func() time.Duration

	each      func(*stream) // is called after each question
	heard     heardStream
	overflows uint32
	own       uint32
	under     []answer
	truth     Count
	ours      uint32
}

type answer struct {
	at     time.Duration
	serial uint32
	st     Standing
}

var epoch0 = time.Unix(1_700_000_000, 0)

// run sends n questions, one each gap, and returns what the stream counted.
func (p *path) run(n int, gap time.Duration) (*stream, Count) {
	s := newStream(streamPorts)
	p.heard = heardStream{epoch: 1}
	now := time.Duration(0)
	deliver := func() {
		for len(p.under) > 0 {
			first := 0
			for i := range p.under {
				if p.under[i].at < p.under[first].at {
					first = i
				}
			}
			if p.under[first].at > now {
				return
			}
			a := p.under[first]
			p.under = append(p.under[:first], p.under[first+1:]...)
			s.heard(a.serial)
			s.answered(a.serial, &a.st, func() uint32 { return p.own })
		}
	}
	for range n {
		s.quiet.tick(now)
		p.question(s.head, now)
		s.sent(epoch0.Add(now))
		now += gap
		s.quiet.tick(now)
		deliver()
		s.expire(epoch0.Add(now))
		if p.each != nil {
			p.each(s)
		}
	}
	now += 10 * giveUp
	deliver()
	s.expire(epoch0.Add(now))
	s.endRun()
	var all Count
	for _, c := range s.counts {
		all.Passed, all.Back, all.There, all.Unclear = all.Passed+c.Passed, all.Back+c.Back, all.There+c.There, all.Unclear+c.Unclear
	}
	return s, all
}

func (p *path) question(serial uint32, now time.Duration) {
	faulty := p.fault != nil && p.fault(now)
	out := p.silent != nil && p.silent(now)
	if out || p.chance.Float64() < p.there {
		p.truth.There++
		return
	}
	if faulty {
		p.ours++
		switch p.kind {
		case "responder overflows":
			p.overflows++
			return
		case "responder restarts":
			p.heard = heardStream{epoch: p.heard.epoch + 1, head: serial}
			return
		case "answers withheld":
			p.heard.note(serial)
			p.heard.withheld++
			return
		case "asking socket overflows":
			p.heard.note(serial)
			p.own++
			return
		}
	}
	p.heard.note(serial)
	if p.chance.Float64() < p.back {
		p.truth.Back++
		return
	}
	p.truth.Passed++
	delay := time.Millisecond
	if p.delay != nil {
		delay = p.delay()
	}
	p.under = append(p.under, answer{now + delay, serial, Standing{Epoch: p.heard.epoch, Overflows: p.overflows, Withheld: p.heard.withheld, Known: p.heard.known(serial), Seen: p.heard.before(serial)}})
}

// What is lost by chance is counted as that, in its direction, at any pace; nothing is counted twice.
func TestStreamCounts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := &path{
			chance: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)),
			there:  rapid.SampledFrom([]float64{0, 0.001, 0.01, 0.05, 0.2}).Draw(t, "there"),
			back:   rapid.SampledFrom([]float64{0, 0.001, 0.01, 0.05, 0.2}).Draw(t, "back"),
		}
		const n = 3000
		gap := rapid.SampledFrom([]time.Duration{time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond}).Draw(t, "gap")
		_, got := p.run(n, gap)
		if got.Passed+got.Back+got.There+got.Unclear != n {
			t.Fatalf("%+v adds up to other than %d", got, n)
		}
		if got.Passed != p.truth.Passed {
			t.Fatalf("%d passed, in truth %d", got.Passed, p.truth.Passed)
		}
		if got.There > p.truth.There || got.Back > p.truth.Back {
			t.Fatalf("counted %+v, in truth %+v", got, p.truth)
		}
		// Left out: four and more in a row, what was lost before the first answer and after the last,
		// and what no answer told of in time.
		missing := p.truth.There + p.truth.Back - got.There - got.Back
		if p.there+p.back <= 0.06 && missing > 12+n/200 {
			t.Fatalf("%d of what was lost is not counted: %+v, in truth %+v", missing, got, p.truth)
		}
	})
}

// Faults of ours are no loss, whatever the network loses besides is.
func TestStreamFaultsOfOurs(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"responder overflows", "responder restarts", "answers withheld", "asking socket overflows"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				chance := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
				period := time.Duration(rapid.IntRange(50, 2000).Draw(t, "period")) * time.Millisecond
				lasts := time.Duration(rapid.IntRange(1, 300).Draw(t, "lasts")) * time.Millisecond
				share := rapid.Float64Range(0.05, 1).Draw(t, "share")
				p := &path{chance: chance, kind: kind, fault: func(now time.Duration) bool {
					return now%period < lasts && chance.Float64() < share
				}}
				_, got := p.run(3000, time.Duration(rapid.IntRange(1, 10).Draw(t, "gap"))*time.Millisecond)
				if got.There+got.Back != 0 || got.Unclear != p.ours {
					t.Fatalf("%+v: %d were lost by us, none by the network", got, p.ours)
				}
			})
		})
	}
}

// A path that is down for a while, or an end that stands still and drops what comes, is one event.
func TestStreamOutage(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		lasts := time.Duration(rapid.IntRange(8, 1500).Draw(t, "lasts")) * time.Millisecond
		p := &path{chance: rand.New(rand.NewPCG(1, 1)), silent: func(now time.Duration) bool {
			return now >= time.Second && now < time.Second+lasts
		}}
		_, got := p.run(4000, 2*time.Millisecond)
		if got.There+got.Back > 1 || got.There+got.Back+got.Unclear != p.truth.There {
			t.Fatalf("%+v after an outage of %v", got, lasts)
		}
	})
}

// Packets that stand in a queue for long, or that others overtake, are not lost; what overtakes by more
// than was thought has the stream wait longer.
func TestStreamDelays(t *testing.T) {
	t.Parallel()
	t.Run("a stall", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			chance := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
			p := &path{chance: chance}
			until := time.Duration(0)
			now := time.Duration(0)
			p.delay = func() time.Duration { // in order: a queue
				now += time.Millisecond
				if chance.IntN(300) == 0 {
					until = max(until, now+time.Duration(chance.IntN(900))*time.Millisecond)
				}
				return max(until-now, 0) + time.Millisecond
			}
			if _, got := p.run(3000, time.Millisecond); got.There+got.Back > 0 {
				t.Fatalf("%+v of packets that all came", got)
			}
		})
	})
	t.Run("overtaken", func(t *testing.T) {
		t.Parallel()
		chance := rand.New(rand.NewPCG(3, 1))
		p := &path{chance: chance, delay: func() time.Duration {
			if chance.IntN(10) == 0 {
				return 150 * time.Millisecond
			}
			return time.Millisecond
		}}
		s, got := p.run(20_000, time.Millisecond)
		if got.Back > 40 || s.settle < 80*time.Millisecond || s.overtook == 0 {
			t.Errorf("%+v, waits %v: of packets that were all answered, a tenth late", got, s.settle)
		}
	})
	t.Run("overtaken once", func(t *testing.T) {
		t.Parallel()
		// A path that gets 600 ms longer for a second, and is short again: then it loses as others do.
		for _, gap := range []time.Duration{time.Millisecond, 5 * time.Millisecond} {
			now := time.Duration(0)
			p := &path{chance: rand.New(rand.NewPCG(5, 1))}
			p.delay = func() time.Duration {
				now += gap
				if now > 2*time.Second && now < 3*time.Second || now > 5*time.Second && now < 6*time.Second {
					return 600 * time.Millisecond
				}
				return time.Millisecond
			}
			s, got := p.run(30_000, gap)
			if got.There+got.Back > 4 {
				t.Errorf("%+v of packets that all came", got)
			}
			if s.disorder > 0 {
				t.Errorf("waits %v, still claims nothing for %d", s.settle, s.disorder)
			}
			p.there, p.truth = 0.01, Count{}
			if _, got := p.run(10_000, gap); got.There < 60 {
				t.Errorf("%+v afterwards, where one in a hundred is lost", got)
			}
		}
	})
}

// watched has a guard of 0.1 % against 1 % watch what a stream counts, as a controller's does (package sequential), and says how high its score
// gets, in alarms.
func (p *path) watched() (most *float64) {
	const alarm, loss, pass = 18.42, 2.3026, 0.00905 // ln of the odds
	score, passed, lost := 0.0, uint32(0), uint32(0)
	most = new(float64)
	p.each = func(s *stream) {
		came, l := uint32(0), uint32(0)
		for _, c := range s.counts {
			came, l = came+c.Passed, l+c.There+c.Back
		}
		if came-passed >= 20 || l > lost {
			score = max(0, score+loss*float64(l-lost)-pass*float64(came-passed))
			passed, lost, *most = came, l, max(*most, score/alarm)
		}
	}
	return most
}

// What is overtaken again and again, by more than a stream waits for, is not taken for a loss that raises a guard, a few at a time or many,
// as when a way becomes shorter time and again; and what is lost after that is found.
func TestStreamOvertakenOften(t *testing.T) {
	t.Parallel()
	for _, late := range []int{3, 40, 60} {
		for _, every := range []int{150, 210, 300, 400, 900, 1500} {
			for _, gap := range []time.Duration{time.Millisecond, 5 * time.Millisecond} {
				sent, quiet := 0, 0.0
				p := &path{chance: rand.New(rand.NewPCG(uint64(every), 1))}
				most := p.watched()
				until, now := time.Duration(0), time.Duration(0) // what is late comes in order, when the way is short again
				p.delay = func() time.Duration {
					now += gap
					if sent++; sent > 22_000 {
						p.there = 0.05
					} else if quiet = *most; sent <= 20_000 && sent%every < late {
						until = max(until, now+300*time.Millisecond)
						return until - now
					}
					return time.Millisecond
				}
				p.run(24_000, gap)
				if quiet >= 1 {
					t.Errorf("%d of %d overtaken, %v apart: an alarm", late, every, gap)
				}
				if *most < 1 {
					t.Errorf("%d of %d overtaken, %v apart: no alarm for one in twenty that is lost afterwards", late, every, gap)
				}
			}
		}
	}
}

// One of two ways becomes shorter, and with it a half of the source ports: nothing was lost.
func TestStreamOneWayShorter(t *testing.T) {
	t.Parallel()
	for _, gap := range []time.Duration{time.Millisecond, 5 * time.Millisecond} {
		for _, mask := range []int{1, 2, 4, 8} { // which ports, by a bit of their number
			sent := -1
			p := &path{chance: rand.New(rand.NewPCG(1, 1))}
			most := p.watched()
			p.delay = func() time.Duration {
				if sent++; sent&mask != 0 && time.Duration(sent)*gap%(10*time.Second) < 5*time.Second {
					return 200 * time.Millisecond
				}
				return time.Millisecond
			}
			if _, got := p.run(30_000, gap); *most >= 1 {
				t.Errorf("ports by bit %d, %v apart: an alarm, as %+v", mask, gap, got)
			}
		}
	}
}

// A way that loses all is found by the source ports that take it, though they are next to each other.
func TestStreamDeadPorts(t *testing.T) {
	t.Parallel()
	for _, dead := range [][]int{{3, 4, 5, 6}, {0, 1, 2, 3, 4, 5, 6, 7}, {1, 2, 3, 4, 5, 9, 12}} {
		s, heard := newStream(streamPorts), heardStream{epoch: 1}
		for k := range uint32(4000) {
			s.sent(epoch0.Add(time.Duration(k) * time.Millisecond))
			if !slices.Contains(dead, s.port(k)) {
				heard.note(k)
				s.answered(k, &Standing{Epoch: 1, Known: heard.known(k), Seen: heard.before(k)}, func() uint32 { return 0 })
			}
		}
		lost := 0
		for port, c := range s.counts {
			switch {
			case !slices.Contains(dead, port) && (c.There > 0 || c.Back > 0 || c.Passed < 200):
				t.Errorf("of %v, port %d: %+v, whose way is sound", dead, port, c)
			case c.There > 100:
				lost++
			}
		}
		if lost < 3 {
			t.Errorf("of %v, %d ports have losses: %+v", dead, lost, s.counts)
		}
	}
}

// A loss makes a stream suspect until as many arrived as outweigh it.
func TestStreamSuspects(t *testing.T) {
	t.Parallel()
	lose := map[uint32]bool{300: true}
	p := &path{chance: rand.New(rand.NewPCG(1, 1))}
	s := newStream(streamPorts)
	p.heard = heardStream{epoch: 1}
	var first, last uint32
	for k := range uint32(1500) {
		now := epoch0.Add(time.Duration(k) * time.Millisecond)
		s.sent(now)
		if !lose[k] {
			p.heard.note(k)
			s.answered(k, &Standing{Epoch: 1, Known: p.heard.known(k), Seen: p.heard.before(k)}, func() uint32 { return 0 })
		}
		if s.suspect > 0 {
			last = k
			if first == 0 {
				first = k
			}
		}
	}
	if first != 316 || last != 300+calm-1 {
		t.Errorf("under suspicion from question %d to %d of a stream that lost the 300th", first, last)
	}
}

// A loss that lasts is not looked at closely for ever, and the next one is again.
func TestStreamLooksClosely(t *testing.T) {
	t.Parallel()
	s := newStream(streamPorts)
	p := &path{heard: heardStream{epoch: 1}}
	fast := 0
	for k := range uint32(30_000) {
		s.sent(epoch0.Add(time.Duration(k) * time.Millisecond))
		if k < 20_000 && k%100 == 50 || k == 25_000 {
			continue
		}
		p.heard.note(k)
		s.answered(k, &Standing{Epoch: 1, Known: p.heard.known(k), Seen: p.heard.before(k)}, func() uint32 { return 0 })
		if s.suspicious() {
			fast++
		}
		switch {
		case k > closely+100 && k < 24_000 && s.suspicious():
			t.Fatalf("after %d questions that lose one in a hundred it is still looked at closely", k)
		case k == 25_100 && !s.suspicious():
			t.Fatal("one that lost nothing for long is not looked at when it does")
		}
	}
	if most := closely + calm + 50; fast > most || fast < closely {
		t.Errorf("looked at closely for %d questions, want %d and %d", fast, closely, calm)
	}
}

// A stream that loses much, or that nobody answers, is slowed down, and not one that loses some.
func TestStreamTroubled(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		rate float64
		want bool
	}{{0, false}, {0.01, false}, {0.05, false}, {0.5, true}, {1, true}} {
		p := &path{chance: rand.New(rand.NewPCG(5, 1)), there: tt.rate}
		s := newStream(streamPorts)
		p.heard = heardStream{epoch: 1}
		troubled, now := 0, epoch0
		for k := range uint32(4000) {
			now = now.Add(time.Millisecond)
			s.sent(now)
			if p.chance.Float64() >= p.there {
				p.heard.note(k)
				s.answered(k, &Standing{Epoch: 1, Known: p.heard.known(k), Seen: p.heard.before(k)}, func() uint32 { return 0 })
			}
			s.expire(now)
			if s.troubled(now) {
				troubled++
			}
		}
		if is := s.troubled(now); is != tt.want || !tt.want && troubled > 0 {
			t.Errorf("at a loss of %g: troubled %v, after %d of 4000 questions", tt.rate, is, troubled)
		}
	}
}

// Shifting is what it is to a bit by bit one.
func TestShift(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		b := [4]uint64(rapid.SliceOfN(rapid.Uint64(), 4, 4).Draw(t, "bits"))
		n := rapid.Uint32Range(0, 300).Draw(t, "by")
		at := func(b [4]uint64, i int) bool { return i >= 0 && i < seenBits && b[i/64]&(1<<(i%64)) != 0 }
		up, down := shiftUp(b, n), shiftDown(b, n)
		for i := range seenBits {
			if at(up, i) != at(b, i-int(n)) || at(down, i) != at(b, i+int(n)) {
				t.Fatalf("%x by %d: up %x, down %x", b, n, up, down)
			}
		}
	})
}
