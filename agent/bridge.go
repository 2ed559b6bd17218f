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
	GeneveOption(ctx context.Context, bridge string, req ovs.TraceRequest) (uint32, error)
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
	asked   arms // for hook
	arms    arms // that it has of those
	unarmed []unarmed
	want    []flows.Flow
	agreed  agreed
	dye     ovs.DyePort
	renewed time.Time
	read    time.Time     // when all of the bridge's flows were last read
	nat     atomic.Bool   // flows.CommitsNAT, of what was read
	rivals  []flows.Flow  // flows.Rivals, likewise
	reading time.Duration // how long that took
	audited time.Time     // when our own were
	ports   []flows.Port
	fight   fight
	refusal refusal
	switchd string    // under which the hook was installed
	db      uint64    // dataplane.Snapshot.Database, before its flows were last read
	added   time.Time // when flows were last, until the datapath does as they say
	looked  time.Time // when the last look began after which the hook could be attested
	left    bool      // this one is no longer the bridge's keeper

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
	unarmed []unarmed
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

func newBridge(name string, sw Switch, taps *taps, st stain.Stain, lease time.Duration, epoch uint64, log *slog.Logger) *bridge {
	b := &bridge{name: name, sw: sw, taps: taps, stain: st, lease: lease, log: log.With("bridge", name), poke: func() {}}
	b.gather.bridge = b
	b.state.Store(&bridgeState{hook: dyetracev1.HookState_HOOK_STATE_ABSENT, reason: "not installed yet", epoch: epoch})
	return b
}

// look reconciles the bridge when its turn has come, by what the switch has then. It is safe to call at any time,
// from anywhere, as often as one likes. Of several who wait for their turn one looks for all: whatever began after one
// asked is as good as a look of one's own, and on a busy host the time of each would run out behind the others.
func (b *bridge) look(ctx context.Context, asked time.Time, attest bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left || b.looked.After(asked) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	now := time.Now()
	found, _ := b.sw.Snapshot().Bridge(b.name) // if it is gone, so is the hook
	b.reconcile(ctx, found, attest, now)
	if attest && b.state.Load().hook == dyetracev1.HookState_HOOK_STATE_LIVE {
		b.looked = now
	}
}

// reconcile brings the bridge to the state that we want and says what it found. Where nothing
// tells of a change it only looks if attest is true: somebody is to be told that the
// hook is live. Caller holds mu.
func (b *bridge) reconcile(ctx context.Context, found dataplane.Bridge, attest bool, now time.Time) {
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
		next.arms, next.unarmed = b.arms, b.unarmed
		next.dye, next.table, next.mark, next.kinds = b.dye, b.hook.Table, b.hook.Mark.String(), kindsOf(b.hook, next.absent == "")
	case errors.Is(ctx.Err(), context.Canceled):
		// We were told to stop, which says nothing about the bridge; that time is up does. What was found or done until then stays.
		if changed {
			next = old
			next.epoch, next.gaps = old.after()
			b.state.Store(&next)
		}
		return
	case refused(err):
		next.hook, next.reason = dyetracev1.HookState_HOOK_STATE_REFUSED, err.Error()
	default:
		next.hook, next.reason = dyetracev1.HookState_HOOK_STATE_ABSENT, err.Error()
	}
	next.wipes, next.held = b.fight.total, 0
	if held := (*heldError)(nil); errors.As(err, &held) {
		next.held = held.pause
	}
	// A switch that did not answer in time told nothing: whether the hook was away the next look will see.
	slow := errors.Is(err, context.DeadlineExceeded)
	gap := changed || (old.hook == dyetracev1.HookState_HOOK_STATE_LIVE && err != nil && !slow)
	switch {
	case gap:
		next.epoch, next.gaps = old.after()
	case tapped:
		next.epoch++
	}
	if err != nil && next.reason != old.reason {
		b.log.Warn("hook is not live", "state", next.hook, "reason", next.reason)
	}
	if err == nil && changed {
		b.log.Info("hook installed", "table", b.hook.Table, "mark", b.hook.Mark, "dye", b.dye.Name, "epoch", next.epoch)
	}
	b.state.Store(&next)
}

// after returns epoch and gaps after a gap.
func (s *bridgeState) after() (epoch, gaps uint64) {
	if s.hook == dyetracev1.HookState_HOOK_STATE_LIVE {
		return s.epoch + 1, s.gaps + 1
	}
	return s.epoch + 1, s.gaps
}

// refused reports whether err is a verdict on the bridge rather than a failure
// to reach it.
func refused(err error) bool {
	return errors.Is(err, flows.ErrNoMark) || errors.Is(err, flows.ErrNoTable) ||
		errors.Is(err, flows.ErrShadowed) || errors.Is(err, flows.ErrForeign) ||
		errors.Is(err, flows.ErrReplaced) || errors.Is(err, ovs.ErrUnsupported)
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

// takeOff deletes all flows of ours.
func (b *bridge) takeOff(ctx context.Context) error {
	ours, err := b.sw.DumpOurs(ctx, b.name)
	if err != nil || len(ours) == 0 {
		return err
	}
	return b.sw.Apply(ctx, b.name, nil, ours)
}

// remove takes our flows and our port off the bridge.
func (b *bridge) remove(ctx context.Context) error {
	b.stopWatch()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = true
	b.closePort()
	b.taps.leave(b)
	var errs []error
	err := b.takeOff(ctx)
	if err == nil && b.hook.Expect {
		// A sweep that was under way learns again what requests of before expect.
		if err = b.sw.Settle(ctx, b.name); err == nil || errors.Is(err, ovs.ErrUncounted) {
			err = b.takeOff(ctx)
		}
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
	b.left = true
	b.closePort()
	b.taps.leave(b)
}
