package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/dataplane/packetio"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

// Switch is what an agent needs of the host's switch; *ovs.Switch is one.
type Switch interface {
	Run(ctx context.Context) error
	Snapshot() dataplane.Snapshot
	Changed() <-chan struct{}
	Sync(ctx context.Context) error
	EnsureDyePort(ctx context.Context, bridge string) (ovs.DyePort, error)
	RemoveDyePort(ctx context.Context, bridge string) error
	DumpFlows(ctx context.Context, bridge string) ([]flows.Flow, error)
	DumpOurs(ctx context.Context, bridge string) ([]flows.Flow, error)
	DumpGroups(ctx context.Context, bridge string) ([]string, error)
	Apply(ctx context.Context, bridge string, add, del []flows.Flow) error
	Renew(ctx context.Context, bridge string, ours []flows.Flow) error
	Settle(ctx context.Context, bridge string) error
	Watch(ctx context.Context, bridge string) (*ovs.Watch, error)
	Trace(ctx context.Context, bridge string, req ovs.TraceRequest) (ovs.Trace, error)
	GeneveOption(ctx context.Context, bridge string, to stain.MAC, datapath uint32) (uint32, error)
}

// bridge is one hooked bridge: its hook as we want it, what the last audit
// found, and the dye port that carries probes in and samples out.
type bridge struct {
	name  string
	sw    Switch
	taps  *taps
	log   *slog.Logger
	stain stain.Stain
	lease time.Duration

	// sink takes every copy that the dye port carried; done is called when the
	// ring has no more for now. Both are called by the receive loop alone.
	sink func(b *bridge, frame []byte, atNs int64)
	done func(b *bridge)
	// poke has the reconciler look at disturbed bridges.
	poke func()
	// armed returns the names of the ports whose answers are to be known by their ports
	// alone, and echoes if replies to those are to be expected.
	armed func(bridge string, now time.Time) []string

	// mu orders audits, repairs and removal of this bridge's hook.
	mu      sync.Mutex
	hook    flows.Hook
	arms    arms // that hook has
	want    []flows.Flow
	dye     ovs.DyePort
	renewed time.Time
	read    time.Time     // when all of the bridge's flows were last read
	nat     atomic.Bool   // flows.CommitsNAT, of what was read
	reading time.Duration // how long that took
	audited time.Time     // when our own were
	ports   []flows.Port
	fight   fight
	switchd string // under which the hook was installed
	// unsettled: flows were added, and the datapath may not do as they say yet.
	unsettled bool

	// What the watch of the bridge's flows and the reconciler share.
	watched      atomic.Pointer[ovs.Watch]   // nil while there is none
	guard        atomic.Pointer[flows.Guard] // of the hook that is there; nil while there is none
	disturbed    atomic.Uint32               // disturbances
	told         atomic.Uint64               // changes
	news         news                        // of them, for the controller
	stopWatching context.CancelFunc
	watcher      sync.WaitGroup

	// state is what others may know; replaced as a whole.
	state  atomic.Pointer[bridgeState]
	port   atomic.Pointer[packetio.Port]
	lost   atomic.Uint64 // by us: full queue, cap
	ring   atomic.Uint64 // by rings of dye ports closed since
	counts counts

	// gather has the samples of the dye port since the last flush; its receive loop's alone.
	gather gather

	receivers sync.WaitGroup
}

// bridgeState is the outcome of the last reconciliation.
type bridgeState struct {
	hook   dyetracev1.HookState
	reason string
	epoch  uint64
	gaps   uint64
	dye    ovs.DyePort
	table  uint8
	mark   string
	kinds  []dyetracev1.PointKind
	wipes  uint64
	held   time.Duration // the pause that the hook is in, if it is left alone
	absent string        // why there is no to-instance point; empty if there is
	arms
	// unsampled are the ports where there is none all the same, each with the reason.
	unsampled map[string]string
}

// arms are what runs want of a hook besides the hook.
type arms struct {
	// answers are the ports that are armed: their instances' TCP answers are known by
	// their ports alone.
	answers []uint16
	// expect has replies to echoes expected that do not bear the ToS.
	expect bool
}

func (a arms) equal(o arms) bool { return a.expect == o.expect && slices.Equal(a.answers, o.answers) }

// How often the flows of a bridge that is not watched are all read again, to see whether
// the mark and the table are still free. Reading 10,000 flows takes ovs-ofctl about 0.1 s,
// so this costs a large bridge about one percent of a core; a foreign flow that sits in
// our hook's place is seen at every audit.
const rereadEvery = 10 * time.Second

// Of a bridge that is watched, all is read again when the watch tells of a change that may
// matter, and for that which no watch tells of: a group's buckets, which may read the mark.
const rereadWatched = time.Minute

// Reading again for doubts alone takes at most one part in so many of the time.
const rereadShare = 20

// auditWatched is how often the hook of a bridge that is watched is audited while nobody
// asks: its lease is renewed about as often, and nothing tells us if that was of no use.
const auditWatched = 20 * time.Second

func newBridge(name string, sw Switch, taps *taps, st stain.Stain, lease time.Duration, epoch uint64, log *slog.Logger) *bridge {
	b := &bridge{name: name, sw: sw, taps: taps, stain: st, lease: lease, log: log.With("bridge", name), poke: func() {}}
	b.gather.bridge = b
	b.state.Store(&bridgeState{hook: dyetracev1.HookState_HOOK_STATE_ABSENT, reason: "not installed yet", epoch: epoch})
	return b
}

// reconcile brings the bridge to the state that we want and says what it found.
// It is safe to call at any time, from anywhere, as often as one likes. Where nothing
// tells of a change it only looks if attest is true: somebody is to be told that the
// hook is live.
func (b *bridge) reconcile(ctx context.Context, found dataplane.Bridge, attest bool, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := *b.state.Load()
	next := old
	// Asked under the lock: one who armed a port and then called us finds it armed.
	changed, err := b.sync(ctx, found, armsOf(found, b.armed(b.name, now)), attest, now)
	tapped := false // to-instance is not where it was, so its absences prove nothing
	if err == nil {
		tapped, next.absent, next.unsampled = b.taps.keep(b, found, now)
		tapped = tapped || next.absent != old.absent || !maps.Equal(next.unsampled, old.unsampled)
	}
	switch {
	case err == nil:
		next.hook, next.reason = dyetracev1.HookState_HOOK_STATE_LIVE, ""
		next.arms = b.arms
		next.dye, next.table, next.mark, next.kinds = b.dye, b.hook.Table, b.hook.Mark.String(), kindsOf(b.hook, next.absent == "")
	case ctx.Err() != nil:
		return // we were told to stop, which says nothing about the bridge
	case refused(err):
		next.hook, next.reason = dyetracev1.HookState_HOOK_STATE_REFUSED, err.Error()
	default:
		next.hook, next.reason = dyetracev1.HookState_HOOK_STATE_ABSENT, err.Error()
	}
	next.wipes, next.held = b.fight.total, 0
	if held := (*heldError)(nil); errors.As(err, &held) {
		next.held = held.pause
	}
	gap := changed || (old.hook == dyetracev1.HookState_HOOK_STATE_LIVE && err != nil)
	if gap || tapped {
		next.epoch++
	}
	if gap && old.hook == dyetracev1.HookState_HOOK_STATE_LIVE {
		next.gaps++
	}
	if err != nil && next.reason != old.reason {
		b.log.Warn("hook is not live", "state", next.hook, "reason", next.reason)
	}
	if err == nil && changed {
		b.log.Info("hook installed", "table", b.hook.Table, "mark", b.hook.Mark, "dye", b.dye.Name, "epoch", next.epoch)
	}
	b.state.Store(&next)
}

// refused reports whether err is a verdict on the bridge rather than a failure
// to reach it.
func refused(err error) bool {
	return errors.Is(err, flows.ErrNoMark) || errors.Is(err, flows.ErrNoTable) ||
		errors.Is(err, flows.ErrShadowed) || errors.Is(err, flows.ErrForeign) ||
		errors.Is(err, flows.ErrReplaced) || errors.Is(err, ovs.ErrUnsupported)
}

// sync does the work of reconcile; changed says that the hook was not as it
// should have been, or has changed in more than its arms. Caller holds mu.
func (b *bridge) sync(ctx context.Context, found dataplane.Bridge, want arms, attest bool, now time.Time) (changed bool, err error) {
	if b.sw.Snapshot().Waiting {
		return false, errWaiting
	}
	changed, err = b.syncDyePort(ctx)
	if err != nil {
		return changed, err
	}
	if err := b.fight.err(now); err != nil && b.want == nil {
		return false, err
	}
	ports := flowPorts(found, b.dye.OFPort)
	same := !changed && b.want != nil && slices.Equal(ports, b.ports) && want.equal(b.arms)
	if same && !attest && b.quiet(now) {
		return false, b.renew(ctx, now)
	}
	disturbed, watched := b.settled(ctx)
	told := b.told.Load()
	reread := !same || disturbed.has(flows.Taken) || b.stale(disturbed, watched, attest, now)
	have, err := b.dump(ctx, reread, now)
	if err != nil {
		return changed, err
	}
	was, wanted := b.hook, b.want
	wiped := disturbed.has(flows.Wiped) || wanted != nil && !installed(have, wanted)
	if wiped && !reread && (disturbed.has(flows.Doubtful) || !watched) {
		reread = true // another's flow may sit where one of ours was
		if have, err = b.dump(ctx, reread, now); err != nil {
			return changed, err
		}
	}
	if switchd := b.sw.Snapshot().Switchd; wiped || disturbed.has(flows.Taken) {
		changed = true
		if switchd == b.switchd { // else the switch lost all flows, which is nobody's will
			b.fight.wiped(now)
		}
		b.switchd = switchd
	}
	if err := b.fight.err(now); err != nil {
		time.AfterFunc(b.fight.held(now), b.poke)
		return true, errors.Join(err, b.clear(ctx, have))
	}
	if reread {
		if err := b.choose(ctx, have, ports, want); err != nil {
			return changed, errors.Join(err, b.clear(ctx, have))
		}
		b.ports, b.arms = ports, want
	}
	// Bundles are atomic: what was there all along is not touched by other answers.
	changed = changed || wanted == nil || !rearmed(was, b.hook)
	if old := b.guard.Load(); old == nil || !installed(was.Flows(), b.hook.Flows()) {
		b.guard.Store(b.hook.Guard()) // before the watch tells of flows of ours that go
		if (old == nil || was.Place != b.hook.Place) && b.told.Load() != told {
			b.disturb(flows.Doubtful) // what was told since was not judged for this hook
		}
	}
	return changed, b.install(ctx, have, now)
}

// quiet tells whether the hook can be taken to be as it was found: it is watched, and of
// nothing that matters was told. Caller holds mu.
func (b *bridge) quiet(now time.Time) bool {
	return b.watched.Load() != nil && b.disturbed.Load() == 0 && b.fight.held(now) == 0 && now.Sub(b.audited) < auditWatched
}

// stale tells whether all of the bridge's flows are to be read again. A doubt that must
// wait wakes the reconciler when its time has come. Caller holds mu.
func (b *bridge) stale(d disturbances, watched, attest bool, now time.Time) bool {
	since := now.Sub(b.read)
	switch {
	case !watched:
		return since >= rereadEvery
	case !d.has(flows.Doubtful):
		return since >= rereadWatched
	case attest || since >= rereadShare*b.reading:
		return true
	}
	// Not lost: the next one who asks reads, and else the timer sees to it.
	b.disturbed.Or(1 << flows.Doubtful)
	time.AfterFunc(rereadShare*b.reading-since, b.poke)
	return false
}

// dump returns the bridge's flows, all or ours. Caller holds mu.
func (b *bridge) dump(ctx context.Context, all bool, now time.Time) (have []flows.Flow, err error) {
	begun := time.Now()
	if all {
		have, err = b.sw.DumpFlows(ctx, b.name)
	} else {
		have, err = b.sw.DumpOurs(ctx, b.name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading flows: %w", err)
	}
	if all {
		b.read, b.reading = now, time.Since(begun)
	}
	b.audited = now
	return have, nil
}

// install makes the bridge, which has the flows have, have those that we want. Caller
// holds mu.
func (b *bridge) install(ctx context.Context, have []flows.Flow, now time.Time) error {
	add, del, err := flows.Diff(have, b.want)
	if err != nil {
		return errors.Join(err, b.clear(ctx, have))
	}
	if len(add)+len(del) > 0 {
		if err := b.sw.Apply(ctx, b.name, add, del); err != nil {
			return fmt.Errorf("installing %d flows: %w", len(add), err)
		}
		if len(add) == len(b.want) {
			b.renewed = now // else the leases of the others run on
		}
		b.switchd = b.sw.Snapshot().Switchd
		if w := b.watched.Load(); w != nil {
			_ = w.Barrier(ctx) // what it has told of is our own doing; if it failed, the watch begins anew
		}
		b.unsettled = b.unsettled || len(add) > 0
	}
	// The datapath may know a way for stained packets from before, and send them past the new flows.
	if b.unsettled {
		if err := b.sw.Settle(ctx, b.name); err != nil {
			return err
		}
		b.unsettled = false
	}
	return b.renew(ctx, now)
}

// renew renews the lease of the flows if it is time. Caller holds mu.
func (b *bridge) renew(ctx context.Context, now time.Time) error {
	if now.Sub(b.renewed) < b.lease/3 {
		return nil
	}
	if err := b.sw.Renew(ctx, b.name, b.want); err != nil {
		return fmt.Errorf("renewing the lease: %w", err)
	}
	b.renewed = now
	return nil
}

// clear takes our flows off a bridge where there is to be no hook for now: half a hook is
// of no use, and one whose mark others read does harm. Caller holds mu.
func (b *bridge) clear(ctx context.Context, have []flows.Flow) error {
	b.guard.Store(nil)
	b.want, b.hook, b.arms = nil, flows.Hook{}, arms{}
	ours := slices.DeleteFunc(slices.Clone(have), func(f flows.Flow) bool { return !f.Ours() })
	if len(ours) == 0 {
		return nil
	}
	if err := b.sw.Apply(ctx, b.name, nil, ours); err != nil {
		return fmt.Errorf("removing %d flows: %w", len(ours), err)
	}
	return nil
}

// errWaiting is why no hook is live while flows are being restored.
var errWaiting = errors.New("flow-restore-wait is set: Open vSwitch forwards by no flow until it is unset")

// rearmed tells whether two hooks differ in their arms only.
func rearmed(was, is flows.Hook) bool {
	was.Answers, was.Expect = is.Answers, is.Expect
	return installed(was.Flows(), is.Flows())
}

// installed tells whether all flows of a hook are there as they should be, and no
// others of ours.
func installed(have, want []flows.Flow) bool {
	add, del, err := flows.Diff(have, want)
	return err == nil && len(add)+len(del) == 0
}

// armsOf returns the OpenFlow numbers of the named ports that are there, in ascending
// order, and whether echoes is among the names.
func armsOf(found dataplane.Bridge, names []string) (a arms) {
	for _, name := range names {
		if name == echoes {
			a.expect = true
		} else if p, ok := found.Port(name); ok && p.Role == flows.Instance && !p.Dye && p.OFPort != 0 {
			a.answers = append(a.answers, p.OFPort)
		}
	}
	slices.Sort(a.answers)
	return a
}

// choose decides on the hook's place from all the flows of the bridge, and sets
// what we want of it. Caller holds mu.
func (b *bridge) choose(ctx context.Context, have []flows.Flow, ports []flows.Port, want arms) error {
	groups, err := b.sw.DumpGroups(ctx, b.name)
	if err != nil {
		return fmt.Errorf("reading groups: %w", err)
	}
	b.nat.Store(flows.CommitsNAT(have))
	var keep *flows.Place
	if b.want != nil {
		keep = &b.hook.Place
	} else if left, ok := flows.Installed(have); ok {
		keep = &left // by an agent before this one
	}
	place, err := flows.Choose(flows.Bridge{
		Name: b.name, Flows: have, Groups: groups, Ports: ports, Dye: b.dye.OFPort, Stain: b.stain, Answers: want.answers,
	}, keep)
	if err != nil {
		return err
	}
	b.hook = flows.Hook{
		Place: place, Stain: b.stain, Dye: b.dye.OFPort, Ports: ports, Answers: want.answers, Expect: want.expect,
		Lease: uint16(b.lease / time.Second),
	}
	b.want = b.hook.Flows()
	return nil
}

// flowPorts returns the ports of a bridge that the hook must know: all but the dye
// port, and but instances, which its default flow covers. That there are any is said
// by one port without a number.
func flowPorts(found dataplane.Bridge, dye uint16) []flows.Port {
	var ports []flows.Port
	instances := false
	for _, p := range found.Ports {
		if p.Dye || p.OFPort == dye || p.OFPort == 0 {
			continue
		}
		if p.Role == flows.Instance {
			instances = true
			continue
		}
		ports = append(ports, flows.Port{Name: p.Name, OFPort: p.OFPort, Role: p.Role})
	}
	if instances {
		ports = append(ports, flows.Port{Role: flows.Instance})
	}
	slices.SortFunc(ports, func(a, b flows.Port) int { return int(a.OFPort) - int(b.OFPort) })
	return ports
}

// kindsOf lists the sampling points that a hook offers, with to-instance where the
// instances' ports are sampled.
func kindsOf(h flows.Hook, delivery bool) []dyetracev1.PointKind {
	var kinds []dyetracev1.PointKind
	for _, k := range h.Kinds() {
		kinds = append(kinds, dyetracev1.PointKind(k))
		if k == stain.FromInstance && delivery {
			kinds = append(kinds, dyetracev1.PointKind_POINT_KIND_TO_INSTANCE)
		}
	}
	return kinds
}

// window is what we can attest of the hook by the last audit, and by a reading of its counters that
// began after another.
func (b *bridge) window(after uint64) *dyetracev1.HookWindow {
	s := b.state.Load()
	return &dyetracev1.HookWindow{
		Bridge: b.name,
		Live:   s.hook == dyetracev1.HookState_HOOK_STATE_LIVE,
		Reason: s.reason,
		Epoch:  s.epoch,
		Lost:   b.lostSamples() + b.taps.lostSamples(),
		Counts: b.counts.message(s.epoch, after),
	}
}

// remove takes our flows and our port off the bridge.
func (b *bridge) remove(ctx context.Context) error {
	b.stopWatch()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closePort()
	b.taps.leave(b)
	var errs []error
	ours, err := b.sw.DumpOurs(ctx, b.name)
	if err == nil && len(ours) > 0 {
		err = b.sw.Apply(ctx, b.name, nil, ours)
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("bridge %s: removing flows: %w", b.name, err))
	}
	if err := b.sw.RemoveDyePort(ctx, b.name); err != nil {
		errs = append(errs, fmt.Errorf("bridge %s: removing the dye port: %w", b.name, err))
	}
	b.dye, b.want = ovs.DyePort{}, nil
	b.guard.Store(nil)
	return errors.Join(errs...)
}

// close ends reading but leaves the bridge as it is.
func (b *bridge) close() {
	b.stopWatch()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closePort()
	b.taps.leave(b)
}
