package underlay

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// line is a stream whose asking host looks what came and sends as Streams does, and what becomes of its questions.
type line struct {
	s     *stream
	rate  float64
	now   time.Duration
	clock time.Duration
	// trip is how long an answer takes, negative for never; stalls is for how long the asking host stands still now.
	trip   func(now time.Duration) time.Duration
	stalls func(now time.Duration) time.Duration
	bars   func(now time.Duration) bool // it has no way

	slows bool // where much is lost

	due   time.Duration
	rests time.Duration
	heard heardStream
	under []answer
	told  []sign
}

// sign is that a stream went silent, or was answered again.
type sign struct {
	at     time.Duration
	silent bool
	row    int
	since  time.Duration
}

func newLine(rate float64, trip func(time.Duration) time.Duration) *line {
	return &line{s: newStream(streamPorts), rate: rate, trip: trip, heard: heardStream{epoch: 1}}
}

// until plays until then.
func (l *line) until(end time.Duration) {
	for l.now < end {
		step := streamTick
		if !l.s.hurries(l.rate) {
			step = max(l.rests-l.now, 0)
		}
		if l.stalls != nil {
			step += l.stalls(l.now)
		}
		l.now += step
		l.clock += min(step, maxStep)
		l.s.quiet.tick(l.clock)
		before := l.s.quiet.silent
		rest := l.under[:0]
		for _, u := range l.under {
			if u.at <= l.now {
				l.s.heard(u.serial)
				l.s.answered(u.serial, &u.st, func() uint32 { return 0 })
			} else {
				rest = append(rest, u)
			}
		}
		l.under = rest
		l.s.expire(epoch0.Add(l.now))
		l.s.listen()
		if is := l.s.quiet.silent; is != before {
			row, since := l.s.silentNow()
			l.told = append(l.told, sign{l.now, is, row, since.Sub(epoch0)})
		}
		l.due = max(l.due, l.now-lag)
		rested := l.now >= l.rests
		if rested {
			l.rests = l.now + restTick
		}
		rate := l.rate
		if l.slows && l.s.troubled(epoch0.Add(l.now)) {
			rate = min(rate, troubledRate)
		}
		for ; l.due <= l.now && (rested || l.s.fast(l.rate)); l.due += time.Duration(float64(time.Second) / rate) {
			if l.bars != nil && l.bars(l.now) {
				l.s.refused()
				continue
			}
			if d := l.trip(l.now); d >= 0 {
				k := l.s.head
				l.heard.note(k)
				l.under = append(l.under, answer{l.now + d, k, Standing{Epoch: 1, Known: l.heard.known(k), Seen: l.heard.before(k)}})
			}
			l.s.sent(epoch0.Add(l.now))
		}
	}
}

func after(broke time.Duration, trip time.Duration) func(time.Duration) time.Duration {
	return func(now time.Duration) time.Duration {
		if now >= broke {
			return -1
		}
		return trip
	}
}

// Silence is told once, after eight questions and thirty milliseconds beyond what answers take; at a lower rate when
// those eight were sent. So is the first answer after it.
func TestSilence(t *testing.T) {
	t.Parallel()
	const broke = 30 * time.Second
	for _, tt := range []struct {
		name  string
		rate  float64
		trip  time.Duration
		after time.Duration // from the first question that is lost
	}{
		{"200 a second", 200, time.Millisecond, silentFor + streamTick + overdue},
		{"a slow way", 200, 300 * time.Millisecond, silentFor + 300*time.Millisecond + overdue},
		{"1000 a second", 1000, time.Millisecond, silentFor + streamTick + overdue},
		{"10 a second", 10, time.Millisecond, 700*time.Millisecond + streamTick + overdue},
		{"2 a second", 2, time.Millisecond, 3500*time.Millisecond + streamTick + overdue},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLine(tt.rate, after(broke, tt.trip))
			l.until(broke + 10*time.Second)
			if len(l.told) != 1 || !l.told[0].silent {
				t.Fatalf("told %+v, want once that it is silent", l.told)
			}
			got := l.told[0]
			if took := got.at - got.since; took < tt.after || took > tt.after+2*streamTick || got.row < silentAfter || got.since < broke {
				t.Errorf("told after %v, of %d questions since %v; want after %v", took, got.row, got.since, tt.after)
			}
			l.trip = func(time.Duration) time.Duration { return tt.trip }
			l.until(l.now + tt.trip + 2*time.Second)
			if len(l.told) != 2 || l.told[1].silent || l.told[1].row != 0 {
				t.Errorf("answered again: told %+v", l.told)
			}
		})
	}
}

// A host that stood still, or was kept from running time and again, gives no sign, though answers to what it had asked come
// as long after it runs again as they would have.
func TestSilenceOfOnesOwn(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		chance := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		often := rapid.IntRange(1, 200).Draw(t, "one in")
		most := rapid.IntRange(1, 3000).Draw(t, "for at most")
		idle := time.Duration(0)
		l := newLine(200, nil)
		// All of the host stands still: what was to come meanwhile comes afterwards.
		l.stalls = func(time.Duration) time.Duration {
			if chance.IntN(often) > 0 {
				return 0
			}
			d := time.Duration(chance.IntN(most)) * time.Millisecond
			for i := range l.under {
				l.under[i].at += d
			}
			idle += d
			return d
		}
		l.trip = func(time.Duration) time.Duration { return time.Millisecond }
		l.until(time.Minute)
		if len(l.told) > 0 {
			t.Fatalf("told %+v of a host that stood still for %v", l.told, idle)
		}
	})
}

// What is lost by chance gives no sign, nor do answers that vary, nor a stream that was never answered; and one of two
// equal ways that is down gives none for ever.
func TestNoSilence(t *testing.T) {
	t.Parallel()
	chance := rand.New(rand.NewPCG(7, 1))
	for _, tt := range []struct {
		name string
		most int
		trip func(l *line) time.Duration
	}{
		{"a twentieth lost", 0, func(*line) time.Duration {
			if chance.IntN(20) == 0 {
				return -1
			}
			return time.Millisecond
		}},
		{"slow and varying", 0, func(*line) time.Duration {
			return 50*time.Millisecond + time.Duration(chance.IntN(100))*time.Millisecond
		}},
		{"never answered", 0, func(*line) time.Duration { return -1 }},
		{"one of two ways down", 2, func(l *line) time.Duration { // eight ports in a row
			if l.s.head%streamPorts < streamPorts/2 {
				return -1
			}
			return time.Millisecond
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLine(200, nil)
			l.trip = func(time.Duration) time.Duration { return tt.trip(l) }
			l.until(5 * time.Minute)
			if len(l.told) > tt.most {
				t.Errorf("told %+v", l.told[:min(3, len(l.told))])
			}
		})
	}
}

// A host without a way there asks nothing, and gives a sign all the same.
func TestSilenceWithoutWay(t *testing.T) {
	t.Parallel()
	l := newLine(200, func(time.Duration) time.Duration { return time.Millisecond })
	l.bars = func(now time.Duration) bool { return now > 10*time.Second && now < 20*time.Second }
	l.until(30 * time.Second)
	if len(l.told) != 2 || !l.told[0].silent || l.told[1].silent || l.told[0].row < silentAfter {
		t.Fatalf("told %+v", l.told)
	}
	if took := l.told[0].at - 10*time.Second; took > 60*time.Millisecond || l.told[1].at < 20*time.Second || l.told[1].at > 20*time.Second+20*time.Millisecond {
		t.Errorf("told %v after there is no way, and at %v that there is one", took, l.told[1].at)
	}
}

// A link that comes and goes gives one sign each time; and where it is there for some answers only, after it had twenty.
func TestSilenceFlaps(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		up, down    time.Duration
		least, most int
	}{{500 * time.Millisecond, 500 * time.Millisecond, 59, 61}, {30 * time.Millisecond, 170 * time.Millisecond, 60, 80}} {
		l := newLine(200, func(now time.Duration) time.Duration {
			if now > 5*time.Second && now%(tt.up+tt.down) < tt.down {
				return -1
			}
			return time.Millisecond
		})
		l.until(65 * time.Second)
		signs := 0
		for _, s := range l.told {
			if s.silent {
				signs++
			}
		}
		if signs < tt.least || signs > tt.most {
			t.Errorf("%v up, %v down: %d signs in a minute", tt.up, tt.down, signs)
		}
	}
}

// Of the slowest answers only those of late count: after one that took long, silence is told as soon as before when
// that is half a minute ago.
func TestSilenceForgets(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		since time.Duration
		soon  bool
	}{{5 * time.Second, false}, {25 * time.Second, true}} {
		broke := 10*time.Second + tt.since
		l := newLine(200, nil)
		l.trip = func(now time.Duration) time.Duration {
			switch {
			case now >= broke:
				return -1
			case now >= 10*time.Second && now < 10500*time.Millisecond:
				return 10500*time.Millisecond - now // the host stood still
			}
			return time.Millisecond
		}
		l.until(broke + 5*time.Second)
		last := l.told[len(l.told)-1]
		if took := last.at - broke; !last.silent || took < 0 || (took < 100*time.Millisecond) != tt.soon {
			t.Errorf("%v after a host stood still for 500 ms, silence is told after %v", tt.since, took)
		}
	}
}

// That the way was a long one for a while is forgotten when it is a short one again, though what was sent before still comes; what a host stood
// still for meanwhile is not.
func TestSilenceOfAnotherWay(t *testing.T) {
	t.Parallel()
	const slow, quick = 10 * time.Second, 20 * time.Second
	for _, tt := range []struct {
		name  string
		still time.Duration // at 15 s
		since time.Duration // it is quick again
		least time.Duration
		most  time.Duration
	}{
		{"two windows later", 0, 2*window + 100*time.Millisecond, 0, 100 * time.Millisecond},
		{"three seconds later", 0, 3 * time.Second, 0, 100 * time.Millisecond},
		{"and a host stood still", 150 * time.Millisecond, 3 * time.Second, 150 * time.Millisecond, 250 * time.Millisecond},
	} {
		broke := quick + tt.since
		l := newLine(200, func(now time.Duration) time.Duration {
			switch {
			case now >= broke:
				return -1
			case tt.still > 0 && now >= 15*time.Second && now < 15*time.Second+tt.still:
				return 300*time.Millisecond + 15*time.Second + tt.still - now
			case now >= slow && now < quick:
				return 300 * time.Millisecond
			}
			return time.Millisecond
		})
		l.until(broke + 5*time.Second)
		last := l.told[len(l.told)-1]
		if took := last.at - broke; !last.silent || took < tt.least || took > tt.most {
			t.Errorf("%s: told %+v, after %v; want after %v to %v", tt.name, last, took, tt.least, tt.most)
		}
	}
}

// A link that was down for long is listened to as closely as before when it is up again.
func TestSilenceAfterSilence(t *testing.T) {
	t.Parallel()
	for _, down := range []time.Duration{time.Second, 8 * time.Second, time.Minute} {
		up := 10*time.Second + down
		broke := up + time.Second
		l := newLine(200, func(now time.Duration) time.Duration {
			if now >= 10*time.Second && now < up || now >= broke {
				return -1
			}
			return time.Millisecond
		})
		l.slows = true
		l.until(broke + 5*time.Second)
		if last := l.told[len(l.told)-1]; len(l.told) != 3 || !last.silent || last.at-broke > 100*time.Millisecond {
			t.Errorf("after %v: told %+v; want that it is down again within 100ms of %v", down, l.told, broke)
		}
	}
}

// An answer that nobody asked for is none.
func TestSilenceForged(t *testing.T) {
	t.Parallel()
	l := newLine(200, after(10*time.Second, time.Millisecond))
	l.until(12 * time.Second)
	for _, serial := range []uint32{l.s.head, l.s.head + 100, l.s.quiet.next - 1, 0} {
		if l.s.heard(serial); !l.s.quiet.silent {
			t.Errorf("answered by %d, where the next is %d of %d", serial, l.s.quiet.next, l.s.head)
		}
	}
}
