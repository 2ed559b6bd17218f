package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

// TestCountedClose: how much may come by while counters are read for the reading to be good.
func TestCountedClose(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name         string
		meanwhile    [2]uint64 // of two kinds
		still, close bool
	}{
		{"nothing came by", [2]uint64{0, 0}, true, true},
		{"one did", [2]uint64{0, 1}, false, true},
		{"as many as may be", [2]uint64{countSlack, countSlack}, false, true},
		{"one too many of one kind", [2]uint64{0, countSlack + 1}, false, false},
		{"a flood", [2]uint64{1 << 40, 0}, false, false},
	} {
		c := counted{points: map[stain.Kind]pointCount{
			stain.FromInstance: {counted: 5, readMin: 100, readMax: 100 + tt.meanwhile[0]},
			stain.FromTunnel:   {counted: 9, readMin: 7, readMax: 7 + tt.meanwhile[1]},
		}}
		if c.still() != tt.still || c.close() != tt.close {
			t.Errorf("%s: still %t, close %t (want %t, %t)", tt.name, c.still(), c.close(), tt.still, tt.close)
		}
	}
}

// rhythm is a switch that brings its counters up to date when it is let, for who is in a hurry; who is not
// waits until he is interrupted. It has no flows.
type rhythm struct {
	Switch
	let      chan struct{} // nil is at once
	passes   func()        // while counters are waited for
	settled  atomic.Int32
	failures atomic.Int32 // so many are still to come
}

var errTest = errors.New("the switch is not well")

func (r *rhythm) Settle(ctx context.Context, _ string) error {
	if ovs.IsPatient(ctx) {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if r.let != nil {
		<-r.let
	}
	if r.failures.Add(-1) >= 0 {
		return errTest
	}
	r.settled.Add(1)
	if r.passes != nil {
		r.passes()
	}
	return nil
}

func (r *rhythm) DumpOurs(context.Context, string) ([]flows.Flow, error) { return nil, nil }

// counting is the hooks of a host with one bridge.
func counting(r *rhythm) (*hooks, *bridge) {
	h := newHooks(r, nil, time.Minute, slog.New(slog.DiscardHandler))
	b := newBridge("br0", r, h.taps, stain.Default(), time.Minute, 1, h.log)
	b.state.Store(&bridgeState{hook: dyetracev1.HookState_HOOK_STATE_LIVE, epoch: 1})
	h.bridges["br0"] = b
	return h, b
}

// waited returns once so many wait for the next reading.
func waited(h *hooks, n int64) {
	for h.counter.waiting.Load() < n {
		time.Sleep(time.Millisecond)
	}
}

// TestReadAgain: readings are repeated while too much comes by, so often and no oftener, and not if somebody
// waits for the next one.
func TestReadAgain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name                    string
		meanwhile, others, want int
	}{
		{"quiet", 0, 0, 1},
		{"a little", countSlack, 0, 1},
		{"busy", countSlack + 1, 0, countTries},
		// One reading of who came first, then one for both who wait, made by the first of them while
		// the other waits still.
		{"busy, and others wait", countSlack + 1, 2, 2},
	} {
		r := &rhythm{let: make(chan struct{})}
		h, b := counting(r)
		r.passes = func() { b.counts.read[stain.FromInstance].Add(uint64(tt.meanwhile)) }
		done := make(chan error, 3)
		read := func() { done <- h.count(t.Context(), true) }
		go read()
		for h.counter.begun.Load() == 0 { // it waits for the switch
			time.Sleep(time.Millisecond)
		}
		for range tt.others {
			go read()
		}
		waited(h, int64(tt.others))
		close(r.let)
		for range 1 + tt.others {
			if err := <-done; err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
		if n := int(r.settled.Load()); n != tt.want {
			t.Errorf("%s: %d readings, want %d", tt.name, n, tt.want)
		}
	}
}

// TestHurry: a reading that takes its time makes way for one that is waited for, and has what that one read.
func TestHurry(t *testing.T) {
	t.Parallel()
	r := &rhythm{}
	h, _ := counting(r)
	patient := make(chan error, 1)
	go func() { patient <- h.count(ovs.Patient(t.Context()), true) }()
	for h.counter.begun.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := h.count(t.Context(), true); err != nil {
		t.Error(err)
	}
	if err := <-patient; err != nil {
		t.Error(err)
	}
	if n := r.settled.Load(); n != 1 {
		t.Errorf("%d readings were made, want the one", n)
	}
}

// TestStaleCounts: a reading that fails attests nothing, and not what was read before.
func TestStaleCounts(t *testing.T) {
	t.Parallel()
	r := &rhythm{}
	h, b := counting(r)
	asked := h.counter.begun.Load()
	if err := h.count(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if w := b.window(asked); len(w.Counts) == 0 {
		t.Fatalf("read, and attested as %v", w)
	}
	asked = h.counter.begun.Load()
	r.failures.Store(2)
	for range 2 {
		if err := h.count(t.Context(), true); !errors.Is(err, errTest) {
			t.Errorf("a reading that failed: %v", err)
		}
		if w := b.window(asked); len(w.Counts) != 0 {
			t.Errorf("not read again, and attested as %v", w)
		}
	}
	if err := h.count(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if w := b.window(asked); len(w.Counts) == 0 {
		t.Errorf("read again, and attested as %v", w)
	}
}

// TestSomeAreNotAll: a reading of those bridges that had none is not one of all for who asked before it began.
func TestSomeAreNotAll(t *testing.T) {
	t.Parallel()
	r := &rhythm{}
	h, b := counting(r)
	if err := h.count(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	asked := h.counter.begun.Load()
	other := newBridge("br1", r, h.taps, stain.Default(), time.Minute, 1, h.log)
	other.state.Store(&bridgeState{hook: dyetracev1.HookState_HOOK_STATE_LIVE, epoch: 1})
	h.bridges["br1"] = other
	for range 2 { // the second has nothing to do
		if err := h.read(t.Context(), false, asked); err != nil {
			t.Fatal(err)
		}
	}
	if w := b.window(asked); len(w.Counts) != 0 || len(other.window(asked).Counts) == 0 || r.settled.Load() != 2 {
		t.Fatalf("%d readings, and of the bridge that had a good one there is %v: the test tests nothing", r.settled.Load(), w)
	}
	if err := h.read(t.Context(), true, asked); err != nil {
		t.Fatal(err)
	}
	if w := b.window(asked); len(w.Counts) == 0 {
		t.Errorf("all were asked for, and a bridge is attested as %v", w)
	}
}

// TestTally: what no hook can have sent counts as no copy.
func TestTally(t *testing.T) {
	t.Parallel()
	var read tally
	for _, frame := range [][]byte{
		{stain.CopyDst, byte(stain.FromTunnel)}, {stain.CopyDst, byte(stain.FromTunnel) | stain.CopyMark},
		{stain.CopyDst, byte(stain.FromTunnel) | 8}, {stain.CopyDst, byte(stain.FromTunnel) | 0x40 | stain.CopyMark}, {stain.CopyDst}, nil,
	} {
		read.saw(frame)
	}
	if want := (tally{stain.FromTunnel: 2}); read != want {
		t.Errorf("counted %v, want %v", read, want)
	}
}

// TestCountsAreAwaited: copies that are read late are not missing, for as long as it is known how many got lost before; those
// that never come are, after a while.
func TestCountsAreAwaited(t *testing.T) {
	t.Parallel()
	const k = stain.FromInstance
	for _, tt := range []struct {
		name  string
		late  time.Duration // until copies are read; 0 is never
		known bool          // how many got lost before
		want  int64         // copies missing
		took  time.Duration
	}{
		{"at once", countLook / 2, true, 0, countLook},
		{"late", countLateness/2 - countLook/2, true, 0, countLateness / 2},
		{"never", 0, true, 4, countLateness + countLook},
		{"nothing is known yet", countLateness / 2, false, 4, countPatience + countLook},
	} {
		synctest.Test(t, func(t *testing.T) {
			var s counts
			reading := func(n uint64) *counted {
				return newReading(1, k, n, s.of(k))
			}
			s.read[k].Add(100)
			first := reading(107) // 7 got lost long ago
			if tt.known {
				s.await(first, nothing)
				s.take(first)
			}
			second := reading(111)
			if tt.late > 0 {
				time.AfterFunc(tt.late, func() { s.read[k].Add(4) })
			}
			began := time.Now()
			s.await(second, nothing)
			if took := time.Since(began); took != tt.took {
				t.Errorf("%s: waited %v, want %v", tt.name, took, tt.took)
			}
			if missing := second.points[k].of() - 7; missing != tt.want {
				t.Errorf("%s: %d copies are missing, want %d", tt.name, missing, tt.want)
			}
			synctest.Wait()
		})
	}
}

// nothing is a ring that is empty.
func nothing() func() bool { return func() bool { return false } }

// TestTheRingIsAwaited: what is in the dye port's ring is not missing, however long its reader sleeps; where it does for too long, there
// is no reading.
func TestTheRingIsAwaited(t *testing.T) {
	t.Parallel()
	const k = stain.FromInstance
	for _, tt := range []struct {
		name  string
		late  time.Duration // until copies are read; 0 is never
		known bool          // how many got lost before
		want  error
		took  time.Duration
	}{
		{"the first reading", 120*time.Millisecond - countLook/2, false, nil, 120 * time.Millisecond},
		{"one that knows", 120*time.Millisecond - countLook/2, true, nil, 120 * time.Millisecond},
		{"one that knows, and had else been over", countLateness + 50*time.Millisecond - countLook/2, true, nil, countLateness + 50*time.Millisecond},
		{"never", 0, false, errLate, ringPatience + countLook},
		{"never, and it knows", 0, true, errLate, ringPatience + countLook},
	} {
		synctest.Test(t, func(t *testing.T) {
			var s counts
			var empty atomic.Bool
			behind := func() func() bool { return func() bool { return !empty.Load() } }
			s.read[k].Add(100)
			if tt.known {
				first := newReading(1, k, 107, s.of(k))
				if err := s.await(first, nothing); err != nil {
					t.Fatal(err)
				}
				s.take(first)
			}
			second := newReading(1, k, 110, s.of(k))
			if tt.late > 0 {
				time.AfterFunc(tt.late, func() {
					s.read[k].Add(3)
					empty.Store(true)
				})
			}
			began := time.Now()
			err := s.await(second, behind)
			if took := time.Since(began); took != tt.took || !errors.Is(err, tt.want) {
				t.Errorf("%s: waited %v: %v; want %v: %v", tt.name, took, err, tt.took, tt.want)
			}
			if missing := second.points[k].of() - 7; err == nil && missing != 0 {
				t.Errorf("%s: %d copies are missing that were in the ring", tt.name, missing)
			}
			synctest.Wait()
		})
	}
}

// TestLostCopiesAreAwaitedOnce: copies that got lost are waited for twice at the most, though others come by all the time; and what is late
// after that is waited for as before.
func TestLostCopiesAreAwaitedOnce(t *testing.T) {
	t.Parallel()
	const k, lost, each = stain.FromInstance, 7, 15 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		var s counts
		var counted atomic.Uint64
		counted.Store(100)
		s.read[k].Store(100)
		// One comes by every now and then, and is read a moment after it was counted.
		pass := func(late time.Duration) {
			counted.Add(1)
			time.AfterFunc(late, func() { s.read[k].Add(1) })
		}
		reading := func() (took time.Duration, missing int64) {
			c, began := newReading(1, k, counted.Load(), s.of(k)), time.Now()
			s.await(c, nothing)
			s.take(c)
			return time.Since(began), c.points[k].of()
		}
		if reading(); s.known == nil {
			t.Fatal("nothing is known by a reading that was still")
		}
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(each):
					pass(countLook)
				}
			}
		}()
		counted.Add(lost)
		for range 2 {
			if took, _ := reading(); took < lost*each-each {
				t.Errorf("what got lost was waited for %v, until as many others had come by", took)
			}
		}
		for range 5 {
			time.Sleep(each / 2)
			if took, missing := reading(); took > 3*each || missing > lost {
				t.Errorf("afterwards a reading waited %v, and has %d missing; want %v, and %d at most", took, missing, 3*each, lost)
			}
		}
		pass(100 * time.Millisecond)
		if took, missing := reading(); took < 100*time.Millisecond-2*each && missing > lost {
			t.Errorf("what was late was waited for %v, and %d are missing", took, missing)
		}
		close(stop)
		time.Sleep(time.Second)
		reading() // which knew of one less, maybe
		if took, missing := reading(); took > countLook || missing != lost || !s.last.Load().still() {
			t.Errorf("when nothing comes by: waited %v, %d missing; want %d", took, missing, lost)
		}
	})
}

// newReading is one of one kind of points that begins with so many copies read.
func newReading(epoch uint64, k stain.Kind, counts, read uint64) *counted {
	return &counted{epoch: epoch, points: map[stain.Kind]pointCount{k: {counted: counts, readMin: read}}}
}
