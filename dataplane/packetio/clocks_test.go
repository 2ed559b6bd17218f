package packetio

import (
	"math/rand/v2"
	"testing"
	"time"
)

// machine is one whose clocks are known: CLOCK_REALTIME is ahead by ahead. Reading one takes 100 ns, and now
// and then the reader loses its processor.
type machine struct {
	now, ahead int64
	busy       float64 // how often it does
	*rand.Rand
}

func (m *machine) tick() int64 {
	m.now += 100
	if m.Float64() < m.busy {
		m.now += m.Int64N(int64(10 * time.Millisecond))
	}
	return m.now
}

func (m *machine) clocks() (before, real, after int64) {
	return m.tick(), m.tick() + m.ahead, m.tick()
}

func TestOffset(t *testing.T) {
	t.Parallel()
	for _, busy := range []float64{0, 0.1, 0.9} {
		m := &machine{ahead: 1_700_000_000_000_000_000, busy: busy, Rand: rand.New(rand.NewPCG(1, 2))}
		var o offset
		best := int64(1 << 62) // that one reading alone could have been wrong by
		clocks := func() (int64, int64, int64) {
			before, real, after := m.clocks()
			best = min(best, after-before)
			return before, real, after
		}
		for look := range 1000 {
			if look == 500 { // all looks before this one have been to no avail
				m.ahead -= int64(time.Second)
				o.between(clocks)
				best = int64(1 << 62)
				for o.between(clocks); o.most-o.least > 200; {
					o.between(clocks)
				}
			}
			got := o.between(clocks)
			if off := max(got-m.ahead, m.ahead-got); off > best/2 {
				t.Fatalf("busy %v, look %d: wrong by %d ns, where one reading of %d ns is at hand", busy, look, off, best)
			}
		}
	}
}

// TestOffsetOfDisturbedFirstReading wants the first answer to be as good as any, where the very first reading,
// which nothing can be compared with, is the one that took long.
func TestOffsetOfDisturbedFirstReading(t *testing.T) {
	t.Parallel()
	m := &machine{ahead: 5, Rand: rand.New(rand.NewPCG(7, 8))}
	n := 0
	disturbed := func() (before, real, after int64) {
		if before, real, after = m.clocks(); n == 0 {
			m.now += 430_000
			after += 430_000
		}
		n++
		return before, real, after
	}
	var o offset
	if got := o.between(disturbed); max(got-m.ahead, m.ahead-got) > 100 {
		t.Errorf("%d (want %d): wrong by half of the first reading", got, m.ahead)
	}
}

// TestOffsetIsSteady wants frames of one time to be given one time, whoever is disturbed between them: the
// order of what two sockets saw hangs on that.
func TestOffsetIsSteady(t *testing.T) {
	t.Parallel()
	m := &machine{ahead: 5, Rand: rand.New(rand.NewPCG(3, 4))}
	var o offset
	first := o.between(m.clocks)
	m.busy = 1
	for range 1000 {
		if got := o.between(m.clocks); got != first {
			t.Fatalf("%d, and %d after the reader was disturbed", first, got)
		}
	}
}

// TestOffsetOfClockThatGoesBack has the processors of a machine disagree on the time for a while.
func TestOffsetOfClockThatGoesBack(t *testing.T) {
	t.Parallel()
	m := &machine{ahead: 5, Rand: rand.New(rand.NewPCG(5, 6))}
	n := 0
	back := func() (before, real, after int64) {
		before, real, after = m.clocks()
		if n++; n%9 != 0 {
			after = before - 1000
		}
		return before, real, after
	}
	var o offset
	for range 100 {
		if got := o.between(back); max(got-m.ahead, m.ahead-got) > 100 {
			t.Fatalf("%d (want %d)", got, m.ahead)
		}
	}
}
