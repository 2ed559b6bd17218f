package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

// counts holds what a bridge's hook counted against what was read of its dye port.
type counts struct {
	// read are the copies that came out, by kind, whatever they were; the receive loop's to add.
	read [8]atomic.Uint64
	// missing is the sum of what is known to have got lost on the way.
	missing atomic.Uint64
	last    atomic.Pointer[counted] // nil before the first
	// known is the last reading by which it is known how many got lost, and are not on their way: one that was still, or see
	// lost. missed is one by which as many may have, if the next one misses them too. The counter's to use.
	known, missed *counted
}

// counted is one reading of the counters.
type counted struct {
	epoch  uint64
	begun  uint64 // which reading it was, of all: counter.begun
	points map[stain.Kind]pointCount
}

type pointCount struct{ counted, readMin, readMax uint64 }

// still says that nothing came by while the counters were read: the difference is exact.
func (c *counted) still() bool {
	for _, p := range c.points {
		if p.readMin != p.readMax {
			return false
		}
	}
	return true
}

// close says that so little came by that a lost queue would show all the same. Where probes come all the
// time, no reading is ever still.
func (c *counted) close() bool {
	for _, p := range c.points {
		if p.readMax-p.readMin > countSlack {
			return false
		}
	}
	return true
}

// of returns how many copies were made that were not read, or any number away from it that stays
// the same for an epoch.
func (p pointCount) of() int64 { return int64(p.counted - p.readMax) }

// tally counts copies that one receive loop has read and not handed on yet.
type tally [8]uint64

// saw counts a copy; what cannot be one is none. That it bears the stain is the hook's to say, which takes more for
// stained than is a sample: packets with extension headers, say.
func (t *tally) saw(frame []byte) {
	if len(frame) < 2 {
		return
	}
	if kind := frame[1] &^ stain.CopyMark; int(kind) < len(t) {
		t[kind]++
	}
}

// add counts copies as read, once what they say is on its way to the controller: an audit that finds
// all of them read speaks after them.
func (c *counts) add(t *tally) {
	for k := range t {
		if t[k] > 0 {
			c.read[k].Add(t[k])
		}
	}
	clear(t[:])
}

func (c *counts) of(k stain.Kind) uint64 { return c.read[k&7].Load() }

// message is the last reading of an epoch, if it began after another; nil where there is none.
func (c *counts) message(epoch, after uint64) (list []*dyetracev1.PointCount) {
	last := c.last.Load()
	if last == nil || last.epoch != epoch || last.begun <= after {
		return nil
	}
	for _, k := range slices.Sorted(maps.Keys(last.points)) {
		p := last.points[k]
		list = append(list, &dyetracev1.PointCount{
			Kind: dyetracev1.PointKind(k), Counted: p.counted, ReadMin: p.readMin, ReadMax: p.readMax,
		})
	}
	return list
}

const (
	// The counters are read again if many copies came by meanwhile, so often at most, and not if
	// somebody waits: each reading takes up to a second where sweeps are not to be had out of turn, the
	// controller waits 5 s for an audit, and on a busy bridge there is always something on its way. The
	// bounds say how much.
	countTries = 3
	// countSlack of two readings together is half of what the controller lets be on its way
	// (package verdict, underWay): what gets lost is a queue of 1,000.
	countSlack = 64
	// What was counted has left the switch; it is in the ring, which hands it over within 4 ms
	// (packetio.Options.RetireTimeout), or on its way there. Where it is known how many got lost before, and more are
	// missing, they are waited for longer: mostly it is this process that has not had its turn.
	countPatience = 20 * time.Millisecond
	countArrival  = 15 * time.Millisecond // what has come by then an awake reader has read before countPatience is over
	countLateness = 250 * time.Millisecond
	countLook     = time.Millisecond
	// ringPatience is how long what is in a dye port's ring is waited for. A full one is read in less, as fast as that may be
	// (readBudget); a host that needs longer could not hold up its heartbeats either.
	ringPatience = time.Second
)

// errLate fails a reading of which it cannot be told what got lost.
var errLate = fmt.Errorf("copies that have come are not read after %v", ringPatience)

// counter reads the counters of all bridges, for all who ask.
type counter struct {
	mu      sync.Mutex
	begun   atomic.Uint64
	done    atomic.Uint64 // the last of all bridges that did not fail, but for copies that came late
	some    atomic.Uint64 // likewise, of all bridges or of those that had no good one
	waiting atomic.Int64

	hasty     atomic.Int64 // who waits and has no patience
	hurry     sync.Mutex
	interrupt context.CancelCauseFunc // ends a patient reading; nil while there is none
}

// errHurry ends a reading that takes its time, since somebody has none.
var errHurry = errors.New("somebody waits for the next one")

// count reads the counters of all hooks, once the switch has brought them up to date. Without all, it is
// done only where there is no good reading of this epoch, and else nobody is waited for. Whoever asks
// while another reads waits for the next reading, and shares it with all that do; a reading that takes
// its time (ovs.Patient) makes way for one that does not.
func (h *hooks) count(ctx context.Context, all bool) error {
	if !all && len(h.uncounted(false)) == 0 {
		return nil
	}
	asked := h.counter.begun.Load()
	for {
		err := h.read(ctx, all, asked)
		if !errors.Is(err, errHurry) {
			return err
		}
		time.Sleep(countLook) // whoever is in a hurry comes first
	}
}

// read makes one reading, or waits for one that began after another.
func (h *hooks) read(ctx context.Context, all bool, asked uint64) error {
	c := &h.counter
	patient := ovs.IsPatient(ctx)
	if !patient {
		c.hasty.Add(1)
		defer c.hasty.Add(-1)
		c.hurry.Lock()
		if c.interrupt != nil {
			c.interrupt(errHurry)
		}
		c.hurry.Unlock()
	}
	c.waiting.Add(1)
	c.mu.Lock()
	c.waiting.Add(-1)
	defer c.mu.Unlock()
	switch {
	case c.done.Load() > asked || !all && c.some.Load() > asked:
		return nil // begun after we asked, and over
	case patient && c.hasty.Load() > 0:
		return errHurry
	case patient:
		patience, interrupt := context.WithCancelCause(ctx)
		defer interrupt(nil)
		c.interruptible(interrupt)
		defer c.interruptible(nil)
		ctx = patience
	}
	number := c.begun.Add(1)
	err := h.readAll(ctx, all)
	if err == nil || errors.Is(err, errLate) { // who reads once more would wait as long
		c.some.Store(number)
		if all {
			c.done.Store(number)
		}
	}
	return err
}

func (c *counter) interruptible(interrupt context.CancelCauseFunc) {
	c.hurry.Lock()
	defer c.hurry.Unlock()
	c.interrupt = interrupt
}

// readAll reads until readings are good.
func (h *hooks) readAll(ctx context.Context, all bool) error {
	for try := range countTries {
		todo := h.uncounted(all)
		if len(todo) == 0 || try > 0 && h.counter.waiting.Load() > 0 {
			return nil
		}
		if err := h.countAll(ctx, todo); err != nil {
			return err
		}
		all = false
	}
	return nil
}

// uncounted returns the bridges that have a hook and no good reading of its counters in this epoch.
func (h *hooks) uncounted(all bool) (todo []*bridge) {
	for _, b := range h.all() {
		s, last := b.state.Load(), b.counts.last.Load()
		if s.hook == dyetracev1.HookState_HOOK_STATE_LIVE && (all || last == nil || last.epoch != s.epoch || !last.close()) {
			todo = append(todo, b)
		}
	}
	return todo
}

func (h *hooks) countAll(ctx context.Context, todo []*bridge) error {
	// What is in a ring has passed already: of an epoch's first reading, by which all others go, it need not stay open
	// whether it was counted. Others do not wait for it.
	var drained sync.WaitGroup
	for _, b := range todo {
		if last := b.counts.last.Load(); last == nil || last.epoch != b.state.Load().epoch {
			drained.Go(func() { b.drain(ctx) })
		}
	}
	drained.Wait()
	before := make([]counted, len(todo))
	for i, b := range todo {
		before[i] = b.beginCount()
		before[i].begun = h.counter.begun.Load()
	}
	if err := h.sw.Settle(ctx, todo[0].name); err != nil {
		return err
	}
	errs := make(chan error, len(todo))
	for i, b := range todo {
		go func() { errs <- b.count(ctx, before[i]) }()
	}
	var failed error
	for range todo {
		if err := <-errs; err != nil && (failed == nil || errors.Is(failed, errLate)) {
			failed = err
		}
	}
	return failed
}

// beginCount begins a reading: what was read up to now.
func (b *bridge) beginCount() counted {
	c := counted{epoch: b.state.Load().epoch, points: make(map[stain.Kind]pointCount)}
	for _, k := range []stain.Kind{stain.FromInstance, stain.FromTunnel, stain.ToTunnel} {
		c.points[k] = pointCount{readMin: b.counts.of(k)}
	}
	return c
}

// count completes a reading that began before the counters were brought up to date.
func (b *bridge) count(ctx context.Context, c counted) error {
	have, err := b.sw.DumpOurs(ctx, b.name)
	if err != nil {
		return fmt.Errorf("counters: %w", err)
	}
	told := flows.Counted(have)
	for k, p := range c.points {
		p.counted = told[k]
		c.points[k] = p
	}
	if err := b.counts.await(&c, b.behind); err != nil {
		return fmt.Errorf("bridge %s: counters: %w", b.name, err)
	}
	if b.state.Load().epoch != c.epoch {
		return nil // the hook is another one by now: what it counts began anew
	}
	b.counts.take(&c)
	return nil
}

// behind returns what tells if some of the copies are still to be read that have come up to now.
func (b *bridge) behind() func() bool {
	port := b.port.Load()
	if port == nil {
		return func() bool { return false }
	}
	received, _ := port.Stats()
	return func() bool { return port.Done() < received && b.port.Load() == port } // with another port begins another epoch
}

// drain returns when all copies are read that have come up to now, or false if that takes too long.
func (b *bridge) drain(ctx context.Context) bool {
	behind := b.behind()
	for end := time.Now().Add(ringPatience); behind(); time.Sleep(countLook) {
		if ctx.Err() != nil || time.Now().After(end) {
			return false
		}
	}
	return true
}

// catchUp returns when all that has come up to now is on its way to the controller. What takes too long counts as lost.
func (b *bridge) catchUp(ctx context.Context) {
	if !b.drain(ctx) {
		b.log.Warn("samples count as lost", "err", errLate)
		b.lost.Add(1)
	}
}

// knownOf is known, if that is of an epoch.
func (s *counts) knownOf(epoch uint64) *counted {
	if s.known == nil || s.known.epoch != epoch {
		return nil
	}
	return s.known
}

// await fills in what was read, once all is that the hook has counted, or after a while: then what is missing is not
// in the ring (behind) any more.
func (s *counts) await(c *counted, behind func() func() bool) error {
	known, patience := s.knownOf(c.epoch), countLateness
	if known == nil {
		patience = countPatience
	}
	var soon *counted
	var late func() bool
	for began := time.Now(); ; time.Sleep(countLook) {
		waited := time.Since(began)
		if late == nil && waited > countArrival {
			late = behind()
		}
		read := late != nil && !late()
		for k, p := range c.points {
			p.readMax = s.of(k)
			c.points[k] = p
		}
		if soon == nil && read && waited > countPatience {
			soon = &counted{epoch: c.epoch, points: maps.Clone(c.points)}
		}
		whole := known != nil && c.whole(known)
		switch {
		case whole || read && waited > patience:
			if known != nil {
				s.lost(soon, whole)
			}
			return nil
		case waited > ringPatience:
			return errLate
		}
	}
}

// lost takes in what was missing at a reading when all that was on its way should have come; nil is nothing. Where others come by all the time,
// these stand for what is missing after a while, and nothing is ever still: so it is known to be lost if it does not come for long, or is missing
// from two readings in a row. Of what came by until then some was not counted, and stands for as much: less is known to be lost than was.
func (s *counts) lost(soon *counted, whole bool) {
	before := s.missed
	s.missed = soon
	switch {
	case soon == nil:
	case !whole:
		s.known = soon
	case before != nil && before.epoch == soon.epoch:
		for k, p := range soon.points {
			if o := before.points[k]; o.of() < p.of() {
				soon.points[k] = o
			}
		}
		s.known = soon
	}
}

// take has a reading be the last one.
func (s *counts) take(c *counted) {
	if before := s.last.Load(); before != nil && before.epoch == c.epoch && before.still() && c.still() {
		s.missing.Add(uint64(max(0, c.missed(before))))
	}
	if c.still() {
		s.known = c
	}
	s.last.Store(c)
}

// whole says that no more copies are missing than at an earlier reading of the same epoch.
func (c *counted) whole(before *counted) bool {
	for k, p := range c.points {
		if p.of() > before.points[k].of() {
			return false
		}
	}
	return true
}

// missed is how many copies got lost since an earlier reading of the same epoch.
func (c *counted) missed(before *counted) (n int64) {
	for k, p := range c.points {
		n += p.of() - before.points[k].of()
	}
	return n
}
