package agent

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
)

// deafen has a device lose all that comes in by it before anybody sees it, as a security agent's XDP
// program may: no ring, queue or cap of ours knows. The returned function ends it.
func deafen(t testing.TB, device string) (hear func()) {
	t.Helper()
	const drop = 1 // XDP_DROP of linux/bpf.h
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, drop), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	dev, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Attrs().Index, Flags: link.XDPGenericMode})
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	hear = func() {
		if !ended {
			ended = true
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(hear)
	return hear
}

// counted is what the windows of a run say of copies of a kind that nobody read: bounds.
func unread(t testing.TB, before, after *dyetracev1.HookWindow, kind dyetracev1.PointKind) (least, most int64) {
	t.Helper()
	if !before.Live || !after.Live || before.Epoch != after.Epoch {
		t.Fatalf("attested %v before, %v after", before, after)
	}
	var found [2]*dyetracev1.PointCount
	for i, w := range []*dyetracev1.HookWindow{before, after} {
		for _, c := range w.Counts {
			if c.Kind == kind {
				found[i] = c
			}
		}
		if found[i] == nil {
			t.Fatalf("no count of %v in %v", kind, w)
		}
	}
	made := int64(found[1].Counted - found[0].Counted)
	return made - int64(found[1].ReadMax-found[0].ReadMin), made - int64(found[1].ReadMin-found[0].ReadMax)
}

// The hook's counters are held against what was read: they agree after any number of probes, also
// of those that belong to no run; and tell how many samples got lost where nothing else does. The
// lease's renewal and arming leave them as they are.
func TestCounters(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	const kind = dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE
	const probes = 300
	audit := func(after bool) *dyetracev1.HookWindow {
		return windowOf(h.a.hooks.audit(t.Context(), after), h.bridge)
	}
	h.begin(1, 10*probes, 10*deadline)
	before := audit(false)
	h.inject(1, dyetracev1.Scheme_SCHEME_TCP, false, 0, probes)
	// Once all probes are seen, some of their answers may be on their way still.
	exact := func(before *dyetracev1.HookWindow) (after *dyetracev1.HookWindow, least, most int64) {
		h.await("nothing to come by", func() bool {
			after = audit(true)
			least, most = unread(t, before, after, kind)
			return least == most
		})
		return after, least, most
	}
	h.await("the probes", func() bool { n, _ := h.seen(1, kind, dyetracev1.Scheme_SCHEME_TCP); return n == probes })
	if _, least, most := exact(before); least != 0 || most != 0 {
		t.Errorf("nothing got lost, and %d to %d copies are missing", least, most)
	}
	h.a.runs.remove(1) // what comes now is nobody's
	h.begin(2, 10*probes, 10*deadline)
	if said := h.arm(&dyetracev1.Arm{Run: 2, Answers: []*dyetracev1.PortRef{h.port(1)}}); said != "" {
		t.Fatal(said)
	}
	b := h.hooked()
	b.mu.Lock()
	b.renewed = b.renewed.Add(-b.lease)
	b.mu.Unlock()
	h.inject(2, dyetracev1.Scheme_SCHEME_ICMP, true, 0, probes)
	h.await("the probes", func() bool { n, _ := h.seen(2, kind, dyetracev1.Scheme_SCHEME_ICMP); return n == probes })
	middle, least, most := exact(before)
	if least != 0 || most != 0 {
		t.Errorf("armed, renewed, and %d to %d copies are missing", least, most)
	}
	hear := deafen(t, b.dye.Name)
	lost := b.lostSamples()
	h.inject(2, dyetracev1.Scheme_SCHEME_ICMP, false, probes, probes+7)
	// The request and its answer come in by instances' ports both.
	h.await("the counters", func() bool { least, _ := unread(t, middle, audit(true), kind); return least == 14 })
	hear()
	if now := b.lostSamples(); now != lost {
		t.Errorf("the agent knows of %d lost samples by itself: the test tests nothing", now-lost)
	}
	if got := h.metric("copies_unread_total"); got != 14 {
		t.Errorf("dyetrace_agent_copies_unread_total is %v, want 14", got)
	}
	// From then on the next run is not held to account for it.
	before = audit(false)
	h.inject(2, dyetracev1.Scheme_SCHEME_ICMP, false, 2*probes, 3*probes)
	h.await("the probes", func() bool { n, _ := h.seen(2, kind, dyetracev1.Scheme_SCHEME_ICMP); return n == 2*probes })
	if _, least, most := exact(before); least != 0 || most != 0 {
		t.Errorf("a loss that was over before, and %d to %d copies are missing", least, most)
	}
	// With the hook, its counters begin anew.
	epoch := h.state().epoch
	h.ofctl("del-flows", h.bridge, "table=253")
	h.restored(epoch)
	if w := audit(false); len(w.Counts) == 0 || w.Epoch == before.Epoch {
		t.Errorf("a new hook is attested as %v", w)
	}
}

// sleep is for how long a reader sleeps that is waited for; after overslept nobody may have waited for it any more.
const sleep, overslept = 150 * time.Millisecond, ringPatience * 8 / 10

// sleepy is a host without a hook yet, and what has its reader of the dye port fall asleep over the next copy, until it is woken.
func sleepy(t *testing.T) (h *host, tire func() (asleep func() bool, wake func())) {
	h = prepareHost(t)
	var night atomic.Pointer[chan struct{}]
	sink := h.a.hooks.sink
	h.a.hooks.sink = func(b *bridge, frame []byte, atNs int64) {
		if n := night.Swap(nil); n != nil {
			<-*n
		}
		sink(b, frame, atNs)
	}
	return h, func() (asleep func() bool, wake func()) {
		n := make(chan struct{})
		wake = sync.OnceFunc(func() { close(n) })
		t.Cleanup(wake)
		night.Store(&n)
		return func() bool { return night.Load() == nil }, wake
	}
}

// TestFirstReadingAwaitsTheRing: copies that lie in the ring at the first reading of an epoch do not stand for as many that
// get lost later.
func TestFirstReadingAwaitsTheRing(t *testing.T) {
	t.Parallel()
	h, tire := sleepy(t)
	h.install().keep()
	const kind = dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE
	const probes = 3
	h.begin(1, 2*probes, 10*deadline)
	var before *dyetracev1.HookWindow
	h.await("a reader that is woken while it is waited for", func() bool {
		asleep, wake := tire()
		h.inject(1, dyetracev1.Scheme_SCHEME_ICMP, false, 0, probes)
		h.await("the copies", asleep)
		began := time.Now()
		time.AfterFunc(sleep, wake)
		before = windowOf(h.a.hooks.audit(t.Context(), false), h.bridge)
		if time.Since(began) < overslept {
			return true
		}
		wake()
		epoch := h.state().epoch // in another one is another first reading
		h.ofctl("del-flows", h.bridge, "table=253")
		h.restored(epoch)
		return false
	})
	h.await("the probes", func() bool { n, _ := h.seen(1, kind, dyetracev1.Scheme_SCHEME_ICMP); return n == probes })
	after := func() (least, most int64) {
		return unread(t, before, windowOf(h.a.hooks.audit(t.Context(), true), h.bridge), kind)
	}
	h.await("nothing to come by", func() bool { least, most := after(); return least == most })
	if least, most := after(); least != 0 || most != 0 {
		t.Errorf("nothing got lost, and %d to %d copies are missing", least, most)
	}
	hear := deafen(t, h.hooked().dye.Name)
	h.inject(1, dyetracev1.Scheme_SCHEME_ICMP, false, probes, 2*probes)
	h.await("the counters", func() bool { least, most := after(); return least == 2*probes && most == 2*probes })
	hear()
}

// uncounting is a switch that never has counters.
type uncounting struct{ Switch }

func (uncounting) Settle(context.Context, string) error { return ovs.ErrUncounted }

// TestAuditAwaitsTheRing: where there are no counters either, a run is not over before its samples, or some are known to be lost.
func TestAuditAwaitsTheRing(t *testing.T) {
	t.Parallel()
	h, tire := sleepy(t)
	h.a.hooks.sw = uncounting{h.a.sw}
	h.install().keep()
	const probes = 3
	h.begin(1, 2*probes, 10*deadline)
	// round says what an audit knows of lost samples, and whether the reader was woken before it was over, and in time.
	round := func(wakes bool) (lost uint64, woken, inTime bool) {
		before := windowOf(h.a.hooks.audit(t.Context(), false), h.bridge)
		if len(before.Counts) > 0 {
			t.Fatalf("counted %v: the test tests nothing", before.Counts)
		}
		asleep, wake := tire()
		h.inject(1, dyetracev1.Scheme_SCHEME_ICMP, false, 0, probes)
		h.await("the copies", asleep)
		began := time.Now()
		var awake atomic.Bool
		if wakes {
			time.AfterFunc(sleep, func() { awake.Store(true); wake() })
		}
		after := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge)
		woken, inTime = awake.Load(), time.Since(began) < overslept
		wake()
		h.await("the reader", func() bool {
			received, _ := h.hooked().port.Load().Stats()
			return received == h.hooked().port.Load().Done()
		})
		return after.Lost - before.Lost, woken, inTime
	}
	for _, wakes := range []bool{true, false} {
		var lost uint64
		var woken bool
		h.await("a reader that is woken while it is waited for, if it is", func() (inTime bool) {
			lost, woken, inTime = round(wakes)
			return inTime || !wakes
		})
		if wakes && (lost != 0 || !woken) || !wakes && lost == 0 {
			t.Errorf("a reader that is woken: %t; the audit was over after that: %t, and knows of %d lost samples", wakes, woken, lost)
		}
	}
}
