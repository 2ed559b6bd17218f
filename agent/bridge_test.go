package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/flows"
)

// What a hook is told of a bridge's ports: not which are instances', so that a tap which
// comes or goes is no reason to read the bridge anew, but that there are any.
func TestFlowPorts(t *testing.T) {
	t.Parallel()
	const dye = 9
	tap := dataplane.Port{Name: "tap1", OFPort: 7, Role: flows.Instance}
	found := dataplane.Bridge{Ports: []dataplane.Port{
		{Name: "dye", OFPort: dye, Dye: true}, {Name: "none", Role: flows.Tunnel}, {Name: "pending", Role: flows.Instance},
		{Name: "vx", OFPort: 5, Role: flows.Tunnel}, {Name: "down", OFPort: 3, Role: flows.Downlink},
	}}
	rest := []flows.Port{{Name: "down", OFPort: 3, Role: flows.Downlink}, {Name: "vx", OFPort: 5, Role: flows.Tunnel}}
	if got := flowPorts(found, dye); !slices.Equal(got, rest) {
		t.Errorf("without instances: %v, want %v", got, rest)
	}
	found.Ports = append(found.Ports, tap)
	want := append([]flows.Port{{Role: flows.Instance}}, rest...)
	if got := flowPorts(found, dye); !slices.Equal(got, want) {
		t.Errorf("with an instance: %v, want %v", got, want)
	}
	found.Ports = append(found.Ports, dataplane.Port{Name: "tap2", OFPort: 8, Role: flows.Instance})
	if got := flowPorts(found, dye); !slices.Equal(got, want) {
		t.Errorf("with another: %v, want %v", got, want)
	}
}

// reads counts how often the flows of a real switch are read, and has them not read in time.
type reads struct {
	Switch
	n    atomic.Int32
	all  atomic.Int32 // of those, of all flows
	slow atomic.Bool
	was  atomic.Pointer[[]flows.Flow] // what the next reading has, whatever there is by then

	// What becomes of the next reading of all flows, of the next wait for the datapath, and of watches; nil is nothing.
	dumping, settling atomic.Pointer[func() error]
	blind             atomic.Bool
}

// mishap is what is to go wrong at once, and not again.
func mishap(p *atomic.Pointer[func() error]) error {
	if f := p.Swap(nil); f != nil {
		return (*f)()
	}
	return nil
}

func (r *reads) Settle(ctx context.Context, bridge string) error {
	if err := mishap(&r.settling); err != nil {
		return err
	}
	return r.Switch.Settle(ctx, bridge)
}

func (r *reads) Watch(ctx context.Context, bridge string) (*ovs.Watch, error) {
	if r.blind.Load() {
		return nil, errTest
	}
	return r.Switch.Watch(ctx, bridge)
}

func (r *reads) DumpFlows(ctx context.Context, bridge string) ([]flows.Flow, error) {
	r.n.Add(1)
	r.all.Add(1)
	if err := mishap(&r.dumping); err != nil {
		return nil, err
	}
	return r.Switch.DumpFlows(ctx, bridge)
}

func (r *reads) DumpOurs(ctx context.Context, bridge string) ([]flows.Flow, error) {
	r.n.Add(1)
	if r.slow.Load() {
		return nil, fmt.Errorf("ovs-ofctl: %w", context.DeadlineExceeded)
	}
	if was := r.was.Swap(nil); was != nil {
		return *was, nil
	}
	return r.Switch.DumpOurs(ctx, bridge)
}

// readBy has the host's bridge read by one.
func (h *host) readBy() (*bridge, *reads) {
	b := h.a.hooks.get(h.bridge)
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &reads{Switch: b.sw}
	b.sw = r
	b.disturbed.Or(0) // the watch, which takes no lock, is told of r by that
	return b, r
}

// whileWatched has something done while one watch goes on, and done again if the switch ended that meanwhile: then all flows are
// read, beside our own, for another reason.
func (h *host) whileWatched(do func()) {
	h.t.Helper()
	b := h.hooked()
	h.await("a watch that goes on", func() bool {
		w := b.watched.Load()
		if w == nil {
			return false
		}
		h.attest() // that it has begun is reason as well
		do()
		return w.Barrier(h.t.Context()) == nil && b.watched.Load() == w
	})
}

// TestSlowSwitch: a hook that could not be read in time is not attested, but was there all the time, if it was.
func TestSlowSwitch(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	_, sw := h.readBy()
	before := h.attest()
	for _, wiped := range []bool{false, true} {
		sw.slow.Store(true)
		if w := h.attest(); w.Live || !strings.Contains(w.Reason, "ovs-ofctl: context deadline exceeded") {
			t.Errorf("attested %v by a switch that did not answer", w)
		}
		if wiped {
			h.ofctl("del-flows", h.bridge)
		}
		sw.slow.Store(false)
		after := h.attest()
		if !before.Live || !after.Live || after.Epoch == before.Epoch == wiped {
			t.Errorf("wiped meanwhile: %t: attested %v before and %v after", wiped, before, after)
		}
	}
}

// TestOvertaken: a hook that was read before it went, while the watch was asked what it knows, is not attested by that reading.
func TestOvertaken(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	b, sw := h.readBy()
	h.await("the watch", func() bool { return b.watched.Load() != nil })
	before := h.attest()
	for _, gone := range []bool{false, true} {
		was, err := sw.Switch.DumpOurs(t.Context(), h.bridge)
		if err != nil || len(was) == 0 {
			t.Fatalf("%d flows of ours, %v", len(was), err)
		}
		if gone {
			h.ofctl("--strict", "del-flows", h.bridge, fmt.Sprintf("table=%d,priority=%d", was[len(was)-1].Table, was[len(was)-1].Priority))
		}
		sw.was.Store(&was)
		after := h.attest()
		if !before.Live || !after.Live || after.Epoch == before.Epoch == gone {
			t.Errorf("a flow went: %t: attested %v before and %v after", gone, before, after)
		}
		if now, err := sw.Switch.DumpOurs(t.Context(), h.bridge); err != nil || len(now) != len(was) {
			t.Errorf("a flow went: %t: %d flows of ours, %v; want %d", gone, len(now), err, len(was))
		}
	}
}

// TestLookForAll: of those who asked before a look began, none looks again; who asks later does; and nobody brings
// back the hook of a bridge that was left meanwhile.
func TestLookForAll(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	b, counted := h.readBy()
	for want := range int32(3) {
		var n int32
		h.whileWatched(func() {
			counted.n.Store(0)
			asked := time.Now()
			for range 1 + want {
				b.look(t.Context(), asked, true)
				b.look(t.Context(), asked, false)
			}
			n = counted.n.Load()
		})
		if n != 1 {
			t.Errorf("flows were read %d times for %d who asked at one time (want once)", n, 2+2*want)
		}
	}
	asked := time.Now()
	if err := h.a.hooks.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.look(t.Context(), asked, true)
	if ours, err := counted.DumpOurs(t.Context(), h.bridge); err != nil || len(ours) > 0 {
		t.Errorf("%d flows of ours on a bridge that was left, %v", len(ours), err)
	}
}

// TestDoubtIsKept: a flow that the watch told of and that may be in the hook's way is looked for until it was, whatever becomes of the
// first who does.
func TestDoubtIsKept(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	b, sw := h.readBy()
	h.await("the watch", func() bool { return b.watched.Load() != nil })
	const shadow = "table=0,priority=65535,tcp"
	for _, tt := range []struct {
		name string
		err  error
	}{
		{"cancelled", context.Canceled},
		{"out of time", context.DeadlineExceeded},
		{"failed", errTest},
	} {
		if w := h.attest(); !w.Live {
			t.Fatalf("%s: attested %v at the beginning", tt.name, w)
		}
		h.ofctl("add-flow", h.bridge, shadow+",actions=NORMAL")
		ctx, cancel := context.WithCancel(t.Context())
		reading := false
		fail := func() error {
			if reading = true; errors.Is(tt.err, context.Canceled) {
				cancel()
			}
			return tt.err
		}
		sw.dumping.Store(&fail)
		h.a.hooks.look(ctx, true)
		cancel()
		if !reading {
			t.Errorf("%s: not all flows were read: the test tests nothing", tt.name)
		}
		h.a.hooks.look(t.Context(), false) // nobody is to be told anything
		if w := h.attest(); w.Live || !strings.Contains(w.Reason, flows.ErrShadowed.Error()) {
			t.Errorf("%s: attested %v with a flow in the way", tt.name, w)
		}
		h.ofctl("--strict", "del-flows", h.bridge, shadow)
	}
}

// TestWatchEnded: what happened when a watch had ended is looked for by the next who attests.
func TestWatchEnded(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	b, sw := h.readBy()
	h.await("the watch", func() bool { return b.watched.Load() != nil })
	if w := h.attest(); !w.Live {
		t.Fatalf("attested %v at the beginning", w)
	}
	sw.blind.Store(true)
	h.await("the end of the watch", func() bool {
		w := b.watched.Load()
		if w != nil {
			w.Stop()
		}
		return w == nil && disturbances(b.disturbed.Load()).has(flows.Doubtful)
	})
	h.ofctl("add-flow", h.bridge, "table=0,priority=65535,tcp,actions=NORMAL")
	if w := h.attest(); w.Live || !strings.Contains(w.Reason, flows.ErrShadowed.Error()) {
		t.Errorf("attested %v with a flow in the way", w)
	}
}

// TestWatchEndedUntold: a watch that ended before it told of what it saw, and before anybody knows, vouches for nothing.
func TestWatchEndedUntold(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	b, _ := h.readBy()
	const shadow = "table=0,priority=65535,tcp"
	h.await("a watch that ends in the middle", func() bool {
		watch := b.watched.Load()
		if watch == nil {
			return false
		}
		if w := h.attest(); !w.Live {
			t.Fatalf("attested %v at the beginning", w)
		}
		told := b.told.Load()
		b.news.mu.Lock() // it tells the news first
		defer b.news.mu.Unlock()
		h.ofctl("add-flow", h.bridge, shadow+",actions=NORMAL")
		h.await("a change that is being told", func() bool { return b.told.Load() > told || b.watched.Load() != watch })
		if b.watched.Load() != watch { // the switch ended it
			h.ofctl("--strict", "del-flows", h.bridge, shadow)
			return false
		}
		watch.Stop()
		if w := h.attest(); w.Live || !strings.Contains(w.Reason, flows.ErrShadowed.Error()) {
			t.Errorf("attested %v with a flow in the way", w)
		}
		return true
	})
}

// TestRepairOfOneWhoLeft: a hook that was put back counts from nought, though who put it back was told to stop before it was live.
func TestRepairOfOneWhoLeft(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	_, sw := h.readBy()
	before, was := h.attest(), h.state()
	h.ofctl("del-flows", h.bridge, "cookie=0x4479655400000000/0xffffffff00000000")
	ctx, cancel := context.WithCancel(t.Context())
	stop := func() error { cancel(); return context.Canceled }
	sw.settling.Store(&stop)
	h.a.hooks.look(ctx, true)
	if n, want := len(h.ours()), len(h.hooked().want); n != want || sw.settling.Load() != nil {
		t.Fatalf("%d flows are back (want %d): the test tests nothing", n, want)
	}
	if s := h.state(); s.epoch != was.epoch+1 || s.gaps != was.gaps+1 || s.hook != was.hook {
		t.Errorf("put back, and told to stop: %v; it was %v", s, was)
	}
	if after := h.attest(); !before.Live || !after.Live || after.Epoch == before.Epoch {
		t.Errorf("attested %v before and %v after", before, after)
	}
}

// TestNoLongerHooked: a bridge that was let go is attested not to be live, until it is hooked again.
func TestNoLongerHooked(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	before := h.attest()
	configure := func(bridge string) {
		h.a.hooks.mu.Lock()
		defer h.a.hooks.mu.Unlock()
		h.a.hooks.only = []string{bridge}
	}
	configure("another")
	want := fmt.Sprintf("%v", &dyetracev1.HookWindow{Bridge: h.bridge, Reason: "no longer hooked", Epoch: before.Epoch})
	if all := h.a.hooks.audit(t.Context(), true); len(all) != 1 || all[0].String() != want {
		t.Errorf("let go, and attested %v, want %v", all, want)
	}
	configure(h.bridge)
	if all := h.a.hooks.audit(t.Context(), true); len(all) != 1 || !all[0].Live || all[0].Epoch <= before.Epoch {
		t.Errorf("hooked again, and attested %v; it was %v", all, before)
	}
}
