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
	Settle(ctx context.Context) error
	Trace(ctx context.Context, bridge string, req ovs.TraceRequest) (ovs.Trace, error)
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
	read    time.Time // when all of the bridge's flows were last read
	ports   []flows.Port

	// state is what others may know; replaced as a whole.
	state atomic.Pointer[bridgeState]
	port  atomic.Pointer[packetio.Port]
	lost  atomic.Uint64 // by us: full queue, cap
	ring  atomic.Uint64 // by rings of dye ports closed since

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
	absent string // why there is no to-instance point; empty if there is
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

// gather is the samples of one bridge that one receive loop has not sent yet.
type gather struct {
	bridge  *bridge
	batches []*batch
}

// How often all flows of a bridge are read again to see whether the mark and
// the table are still free. Reading 10,000 flows takes ovs-ofctl about 0.1 s,
// so this costs a large bridge about one percent of a core; a foreign flow that
// sits in our hook's place is seen at every audit.
const rereadEvery = 10 * time.Second

func newBridge(name string, sw Switch, taps *taps, st stain.Stain, lease time.Duration, log *slog.Logger) *bridge {
	b := &bridge{name: name, sw: sw, taps: taps, stain: st, lease: lease, log: log.With("bridge", name)}
	b.gather.bridge = b
	b.state.Store(&bridgeState{hook: dyetracev1.HookState_HOOK_STATE_ABSENT, reason: "not installed yet"})
	return b
}

// reconcile brings the bridge to the state that we want and says what it found.
// It is safe to call at any time, from anywhere, as often as one likes.
func (b *bridge) reconcile(ctx context.Context, found dataplane.Bridge, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := *b.state.Load()
	next := old
	// Asked under the lock: one who armed a port and then called us finds it armed.
	changed, err := b.sync(ctx, found, armsOf(found, b.armed(b.name, now)), now)
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
		errors.Is(err, flows.ErrShadowed) || errors.Is(err, flows.ErrForeign)
}

// sync does the work of reconcile; changed says that the hook was not as it
// should have been, or has changed in more than its arms. Caller holds mu.
func (b *bridge) sync(ctx context.Context, found dataplane.Bridge, want arms, now time.Time) (changed bool, err error) {
	dye, err := b.sw.EnsureDyePort(ctx, b.name)
	if err != nil {
		return false, fmt.Errorf("dye port: %w", err)
	}
	if dye != b.dye {
		b.closePort()
		b.dye, b.read = dye, time.Time{}
		changed = true
	}
	if b.port.Load() == nil {
		if err := b.openPort(); err != nil {
			return true, err
		}
		changed = true
	}
	ports := flowPorts(found, dye.OFPort)
	was, wanted := b.hook, b.want
	reread := now.Sub(b.read) >= rereadEvery || !slices.Equal(ports, b.ports) || !want.equal(b.arms)
	var have []flows.Flow
	if reread {
		have, err = b.sw.DumpFlows(ctx, b.name)
	} else {
		have, err = b.sw.DumpOurs(ctx, b.name)
	}
	if err != nil {
		return changed, fmt.Errorf("reading flows: %w", err)
	}
	if reread {
		groups, err := b.sw.DumpGroups(ctx, b.name)
		if err != nil {
			return changed, fmt.Errorf("reading groups: %w", err)
		}
		if err := b.choose(have, groups, ports, want); err != nil {
			return changed, err
		}
		b.read, b.ports, b.arms = now, ports, want
	}
	add, del, err := flows.Diff(have, b.want)
	if err != nil {
		return changed, err
	}
	if len(add)+len(del) > 0 {
		if err := b.sw.Apply(ctx, b.name, add, del); err != nil {
			return true, fmt.Errorf("installing %d flows: %w", len(add), err)
		}
		if len(add) == len(b.want) {
			b.renewed = now // else the leases of the others run on
		}
		// Bundles are atomic: what was there all along is not touched by other answers.
		changed = changed || wanted == nil || !installed(have, wanted) || !rearmed(was, b.hook)
	}
	if now.Sub(b.renewed) >= b.lease/3 {
		if err := b.sw.Renew(ctx, b.name, b.want); err != nil {
			return changed, fmt.Errorf("renewing the lease: %w", err)
		}
		b.renewed = now
	}
	return changed, nil
}

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
// what we want of it.
func (b *bridge) choose(have []flows.Flow, groups []string, ports []flows.Port, want arms) error {
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

// openPort starts to read the dye port. Caller holds mu.
func (b *bridge) openPort() error {
	port, err := packetio.Open(b.dye.Name, packetio.Options{})
	if err != nil {
		return fmt.Errorf("dye port: %w", err)
	}
	b.port.Store(port)
	b.receivers.Go(func() { b.receive(port) })
	return nil
}

// receive hands copies to the sink until the port is closed.
func (b *bridge) receive(port *packetio.Port) {
	for {
		err := port.Receive(func(frame []byte, atNs int64) { b.sink(b, frame, atNs) })
		b.done(b)
		switch {
		case err == nil:
		case errors.Is(err, packetio.ErrClosed):
			return
		default:
			// The device went away or is down: reconcile opens it again.
			b.log.Warn("reading the dye port", "err", err)
			b.mu.Lock()
			if b.port.Load() == port {
				b.dropPort(port)
			}
			b.mu.Unlock()
			return
		}
	}
}

// closePort ends reading and waits for the reader. Caller holds mu.
func (b *bridge) closePort() {
	port := b.port.Load()
	if port == nil {
		return
	}
	b.dropPort(port)
	// The reader takes mu when a read fails, so let it have it.
	b.mu.Unlock()
	b.receivers.Wait()
	b.mu.Lock()
}

func (b *bridge) dropPort(port *packetio.Port) {
	_, dropped := port.Stats()
	b.ring.Add(dropped)
	b.port.Store(nil)
	if err := port.Close(); err != nil {
		b.log.Warn("closing the dye port", "err", err)
	}
}

// lostSamples counts the samples of this bridge's dye port that were lost on our side.
func (b *bridge) lostSamples() uint64 {
	n := b.lost.Load() + b.ring.Load()
	if port := b.port.Load(); port != nil {
		_, dropped := port.Stats()
		n += dropped
	}
	return n
}

// window is what we can attest of the hook by the last audit.
func (b *bridge) window() *dyetracev1.HookWindow {
	s := b.state.Load()
	return &dyetracev1.HookWindow{
		Bridge: b.name,
		Live:   s.hook == dyetracev1.HookState_HOOK_STATE_LIVE,
		Reason: s.reason,
		Epoch:  s.epoch,
		Lost:   b.lostSamples() + b.taps.lostSamples(),
	}
}

// remove takes our flows and our port off the bridge.
func (b *bridge) remove(ctx context.Context) error {
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
	return errors.Join(errs...)
}

// close ends reading but leaves the bridge as it is.
func (b *bridge) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closePort()
	b.taps.leave(b)
}
