package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

// auditEvery is how long a hook that somebody removed may stay unnoticed where the
// bridge cannot be watched and nobody uses it: every run audits before and after, and
// repairs what it finds. An audit takes turns of ovs-vswitchd's main thread, which on the userspace
// datapath also forwards: when each still started an ovs-ofctl besides, one a second cost a saturated
// two-core lab some percent of its throughput.
const auditEvery = 5 * time.Second

// auditTimeout bounds what is asked of one bridge, which takes a second where there are 50,000 flows:
// a switch that hangs must not hold up others' audits for long.
const auditTimeout = 10 * time.Second

// hooks keeps the hooks of all the host's bridges.
type hooks struct {
	sw    Switch
	taps  *taps
	only  []string
	lease time.Duration
	log   *slog.Logger
	sink  func(b *bridge, frame []byte, atNs int64)
	done  func(b *bridge)
	// tell tells the controller of changes of a bridge's flows.
	tell func(*dyetracev1.Changes)
	// answers is runTable.answers.
	answers func(bridge string, now time.Time) []string

	changed chan struct{} // capacity 1: the state changed since it was last read
	poked   chan struct{} // capacity 1: a bridge was disturbed
	counter counter

	mu      sync.Mutex
	stain   *stain.Stain // nil until a controller told
	bridges map[string]*bridge
	// epochs are those of bridges that were let go: one that comes back by the same name begins
	// a new one, or a run could take it for the one of before.
	epochs   map[string]uint64
	reported map[string]string // last state logged or sent, by bridge
	left     map[string]leftover
	// leftoverWait is that constant, but in tests.
	leftoverWait time.Duration
}

func newHooks(sw Switch, only []string, lease time.Duration, log *slog.Logger) *hooks {
	return &hooks{
		sw: sw, taps: newTaps(log), only: only, lease: lease, log: log,
		tell:     func(*dyetracev1.Changes) {},
		answers:  func(string, time.Time) []string { return nil },
		changed:  make(chan struct{}, 1),
		poked:    make(chan struct{}, 1),
		bridges:  make(map[string]*bridge),
		epochs:   make(map[string]uint64),
		reported: make(map[string]string),

		leftoverWait: leftoverWait,
	}
}

// setStain says what to hook. Another stain than before replaces all hooks.
func (h *hooks) setStain(ctx context.Context, st stain.Stain) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stain != nil && *h.stain == st {
		return nil
	}
	var errs []error
	for _, b := range h.bridges {
		errs = append(errs, b.remove(ctx))
		h.forget(b)
	}
	h.stain = &st
	h.taps.open(st)
	return errors.Join(errs...)
}

// run reconciles on every change of the switch and at every audit, until ctx ends.
func (h *hooks) run(ctx context.Context) error {
	tick := time.NewTicker(auditEvery)
	defer tick.Stop()
	for {
		switched := false
		select {
		case <-ctx.Done():
			return nil
		case <-h.sw.Changed():
			switched = true
		case <-h.poked:
		case <-tick.C:
		}
		h.reconcile(ctx)
		h.sweep(ctx)
		if switched {
			h.wake() // ports came or went, maybe; the hooks are as they were
		}
	}
}

// poke has run reconcile soon.
func (h *hooks) poke() {
	select {
	case h.poked <- struct{}{}:
	default:
	}
}

// reconcile brings all bridges to the wanted state, at once.
func (h *hooks) reconcile(ctx context.Context) { h.look(ctx, false) }

// look is reconcile; with attest, it looks at every hook even where nothing tells of a
// change.
func (h *hooks) look(ctx context.Context, attest bool) {
	asked := time.Now()
	var wg sync.WaitGroup
	for _, b := range h.follow(ctx, h.sw.Snapshot()) {
		wg.Go(func() { b.look(ctx, asked, attest) })
	}
	wg.Wait()
	h.notify()
}

// notify wakes whoever reports our state if there is anything new in it.
func (h *hooks) notify() {
	h.mu.Lock()
	defer h.mu.Unlock()
	fresh := make(map[string]string, len(h.bridges))
	for name, b := range h.bridges {
		s := *b.state.Load()
		fresh[name] = fmt.Sprintf("%v %v %v %v %v %v %v %v %v", s.hook, s.reason, s.epoch, s.dye, s.kinds, s.absent, s.unsampled, s.wipes, b.watched.Load() != nil)
	}
	if len(fresh) == len(h.reported) {
		same := true
		for name, s := range fresh {
			same = same && h.reported[name] == s
		}
		if same {
			return
		}
	}
	h.reported = fresh
	h.wake()
}

// wake has whoever reports our state look at it.
func (h *hooks) wake() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// follow adds bridges that are to be hooked and drops those that are gone.
func (h *hooks) follow(ctx context.Context, snap dataplane.Snapshot) []*bridge {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stain == nil {
		return nil
	}
	want := h.wanted(snap)
	for name, b := range h.bridges {
		if slices.Contains(want, name) {
			continue
		}
		if _, there := snap.Bridge(name); there {
			if err := b.remove(ctx); err != nil {
				h.log.Warn("leaving a bridge that is no longer ours to hook", "err", err)
			}
		} else {
			b.close() // the bridge is gone, and all that was ours with it
		}
		h.forget(b)
	}
	var all []*bridge
	for _, name := range want {
		b := h.bridges[name]
		if b == nil {
			b = newBridge(name, h.sw, h.taps, *h.stain, h.lease, h.epochs[name], h.log)
			b.sink, b.done, b.armed, b.poke = h.sink, h.done, h.answers, h.poke
			b.news.bridge, b.news.tell = name, h.tell
			b.startWatch()
			h.bridges[name] = b
		}
		all = append(all, b)
	}
	return all
}

// wanted returns the names of the bridges that are to be hooked.
func (h *hooks) wanted(snap dataplane.Snapshot) []string {
	want := dataplane.Hookable(snap)
	if len(h.only) == 0 {
		return want
	}
	return slices.DeleteFunc(want, func(n string) bool { return !slices.Contains(h.only, n) })
}

// forget drops a bridge that is no longer kept. Caller holds mu.
func (h *hooks) forget(b *bridge) {
	h.epochs[b.name] = b.state.Load().epoch
	delete(h.bridges, b.name)
}

// currentStain is what the hooks recognise; the zero Stain before a controller told.
func (h *hooks) currentStain() stain.Stain {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stain == nil {
		return stain.Stain{}
	}
	return *h.stain
}

// get returns a hooked bridge, or nil.
func (h *hooks) get(name string) *bridge {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.bridges[name]
}

// live returns a bridge whose hook was live when it was last looked at, with what was found
// then. The error says of what host, and why it is not.
func (h *hooks) live(name, host string) (*bridge, *bridgeState, error) {
	b := h.get(name)
	if b == nil {
		return nil, nil, fmt.Errorf("bridge %s of host %s has no hook", name, host)
	}
	s := b.state.Load()
	if s.hook != dyetracev1.HookState_HOOK_STATE_LIVE {
		return nil, nil, fmt.Errorf("the hook on bridge %s of host %s is not live: %s", name, host, s.reason)
	}
	return b, s, nil
}

func (h *hooks) all() []*bridge {
	all, _ := h.known()
	return all
}

// known returns all bridges that are hooked, sorted, and the epochs of those that were and are no longer.
func (h *hooks) known() (all []*bridge, left map[string]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all = slices.SortedFunc(maps.Values(h.bridges), func(a, b *bridge) int { return strings.Compare(a.name, b.name) })
	left = maps.Clone(h.epochs)
	maps.DeleteFunc(left, func(name string, _ uint64) bool { return h.bridges[name] != nil })
	return all, left
}

// countAnswers counts the armed ports of all bridges.
func (h *hooks) countAnswers() int {
	n := 0
	for _, b := range h.all() {
		n += len(b.state.Load().answers)
	}
	return n
}

// audit looks at every bridge now, and attests. Before a run it is enough to have read the hooks'
// counters once since they last began anew; after one, what the run did must be in them.
func (h *hooks) audit(ctx context.Context, after bool) []*dyetracev1.HookWindow {
	asked := uint64(0) // any reading will do
	if after {
		asked = h.counter.begun.Load()
	}
	var err error
	var counting sync.WaitGroup
	if after { // what the switch is waited for takes as long as looking does
		counting.Go(func() { err = h.count(ctx, true) })
		for _, b := range h.all() {
			counting.Go(func() { b.catchUp(ctx) })
		}
	}
	h.look(ctx, true)
	counting.Wait()
	if !after {
		err = h.count(ctx, false)
	}
	if err != nil && ctx.Err() == nil {
		h.log.Warn("hooks are attested without their counters", "err", err)
	}
	if after {
		h.taps.catchUp(ctx)
	}
	all, left := h.known()
	var windows []*dyetracev1.HookWindow
	for name, epoch := range left {
		windows = append(windows, &dyetracev1.HookWindow{Bridge: name, Reason: "no longer hooked", Epoch: epoch})
	}
	for _, b := range all {
		w := b.window(asked)
		if w.Live && len(w.Counts) == 0 && !errors.Is(err, ovs.ErrUncounted) {
			w.Uncounted = cmp.Or(reason(err), "another reading of them has failed, or the hook is another one by now")
		}
		windows = append(windows, w)
	}
	slices.SortFunc(windows, func(a, b *dyetracev1.HookWindow) int { return strings.Compare(a.Bridge, b.Bridge) })
	return windows
}

func reason(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// state describes the host as it is now.
func (h *hooks) state() *dyetracev1.HostState {
	snap := h.sw.Snapshot()
	state := &dyetracev1.HostState{}
	for _, name := range h.missing(snap) {
		state.Bridges = append(state.Bridges, &dyetracev1.Bridge{
			Name: name, State: dyetracev1.HookState_HOOK_STATE_REFUSED,
			Reason: fmt.Sprintf("bridges: %q is not on this host, or has neither instances nor tunnels", name),
		})
	}
	for _, found := range snap.Bridges {
		b := h.get(found.Name)
		if b == nil {
			continue
		}
		state.Bridges = append(state.Bridges, bridgeMessage(b, found))
		unsampled := b.state.Load().unsampled
		for _, p := range found.Ports {
			if p.Role != flows.Instance {
				continue
			}
			state.Endpoints = append(state.Endpoints, &dyetracev1.Endpoint{
				Bridge: found.Name, Port: p.Name, Ofport: uint32(p.OFPort),
				Mac: p.MAC, IfaceId: p.IfaceID, LinkState: p.LinkState,
				Unsampled: unsampled[p.Name],
			})
		}
	}
	return state
}

// missing lists configured bridges that cannot be hooked because they are not there.
func (h *hooks) missing(snap dataplane.Snapshot) []string {
	hookable := dataplane.Hookable(snap)
	var names []string
	for _, n := range h.only {
		if !slices.Contains(hookable, n) {
			names = append(names, n)
		}
	}
	return names
}

func bridgeMessage(b *bridge, found dataplane.Bridge) *dyetracev1.Bridge {
	s := b.state.Load()
	m := &dyetracev1.Bridge{
		Name: found.Name, DatapathType: found.DatapathType,
		State: s.hook, Reason: s.reason, Kinds: s.kinds,
		UplinkBridge: found.UplinkBridge(),
		DyePort:      s.dye.Name, DyeOfport: uint32(s.dye.OFPort),
		Table: uint32(s.table), Mark: s.mark,
		Epoch: s.epoch, Lost: b.lostSamples() + b.taps.lostSamples(), Gaps: s.gaps,
		Watched: b.watched.Load() != nil, Wipes: s.wipes, HeldMs: uint32(s.held / time.Millisecond),
	}
	if slices.Contains(s.kinds, dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE) && s.absent != "" {
		m.Absent = append(m.Absent, &dyetracev1.AbsentPoint{
			Kind:   dyetracev1.PointKind_POINT_KIND_TO_INSTANCE,
			Reason: s.absent + "; the guest's answer stands in for it",
		})
	}
	for _, p := range found.Ports {
		if p.IsTunnel() {
			m.Tunnels = append(m.Tunnels, &dyetracev1.Tunnel{
				Port: p.Name, Ofport: uint32(p.OFPort), Type: p.Type, RemoteIp: p.RemoteIP, LocalIp: p.LocalIP,
				Tos: p.ToS, MayFragment: proto.Bool(p.Fragments),
			})
		}
	}
	return m
}

// remove takes everything of ours off the host, with what agents before this one left.
func (h *hooks) remove(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	left := h.leftovers(h.sw.Snapshot())
	for _, b := range h.bridges {
		errs = append(errs, b.remove(ctx))
		h.forget(b)
	}
	h.stain = nil
	h.taps.close()
	for _, b := range left {
		errs = append(errs, h.discard(ctx, b))
	}
	return errors.Join(errs...)
}
