package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

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

// sync does the work of reconcile; changed says that the hook was not as it
// should have been, or has changed in more than its arms. Caller holds mu.
func (b *bridge) sync(ctx context.Context, found dataplane.Bridge, want arms, attest bool, now time.Time) (changed bool, err error) {
	if b.sw.Snapshot().Waiting {
		return false, errWaiting
	}
	if err := b.refusal.err(want, found, b.sw.Snapshot().Switchd, now); err != nil {
		return false, err
	}
	changed, err = b.syncDyePort(ctx)
	if err != nil {
		return changed, err
	}
	if err := b.fight.err(now); err != nil && b.want == nil {
		return false, err
	}
	ports := flowPorts(found, b.dye.OFPort)
	placed := !changed && b.want != nil && slices.Equal(ports, b.ports)
	same := placed && want.equal(b.asked)
	if same && !attest && b.quiet(now) {
		return false, b.renew(ctx, now)
	}
	seen, err := b.inspect(ctx, placed, same, want, attest, now)
	// What passed while the switch was away may have waited, or found no room.
	changed = changed || seen.restarted && found.DatapathType == "netdev"
	if err != nil {
		return changed, err
	}
	if switchd := b.sw.Snapshot().Switchd; seen.touched {
		changed = true
		if switchd == b.switchd { // else the switch lost all flows, which is nobody's will
			b.fight.wiped(now)
		}
		b.switchd = switchd
	}
	if err := b.fight.err(now); err != nil {
		time.AfterFunc(b.fight.held(now), b.poke)
		return true, errors.Join(err, b.clear(ctx, seen.have))
	}
	was := b.hook
	aimed, err := b.aim(ctx, seen.have, ports, want, seen.reread, seen.told)
	changed = changed || aimed
	if err != nil {
		return changed, err
	}
	if !changed && (seen.reread || !same) {
		if err := b.credit(ctx, was); err != nil {
			return changed, err
		}
	}
	return changed, b.install(ctx, seen.have, now)
}

// sighting is what inspect has found.
type sighting struct {
	have   []flows.Flow // all of the bridge's if reread is true, else ours
	reread bool
	told   uint64 // how many changes the watch had told of before these flows were read
	// touched says that flows of ours are gone or altered, or that others had taken their place.
	touched bool
	// restarted says that the switch may have been away since the last look: the connection to its database is another.
	restarted bool
}

// inspect reads the bridge's flows, as many as it takes: placed says that the hook's place is known and still the same, same that the
// arms are to be as they are. Caller holds mu.
func (b *bridge) inspect(ctx context.Context, placed, same bool, want arms, attest bool, now time.Time) (s sighting, err error) {
	// The watch's barrier and the switch take as long as each other. If nothing was told up to the barrier, all that
	// was asked for is true of what is read beside it.
	ours := b.ours(ctx, now)
	disturbed, watched := b.settled(ctx)
	unsettled := disturbed
	defer func() { b.disturbed.Or(uint32(unsettled)) }() // unless what was told is settled, the next look has to
	s.told = b.told.Load()
	db := b.sw.Snapshot().Database
	s.reread = !placed || !same && (!watched || b.shadowed(want)) || disturbed.has(flows.Taken) || b.stale(disturbed, watched, attest || !same, now)
	s.have, err = ours()
	if s.reread || disturbed != 0 {
		s.have, err = b.dump(ctx, s.reread, now)
	}
	if err != nil {
		return s, err
	}
	// What is answered now is so by a switch that runs.
	if db != b.db || db != b.sw.Snapshot().Database {
		s.restarted = true
		b.db = db
	}
	wiped := disturbed.has(flows.Wiped) || b.want != nil && !b.agrees(s.have)
	if wiped && !s.reread && (disturbed.has(flows.Doubtful) || !watched) {
		s.reread = true // another's flow may sit where one of ours was
		if s.have, err = b.dump(ctx, true, now); err != nil {
			return s, err
		}
	}
	s.touched = wiped || disturbed.has(flows.Taken)
	unsettled = 0 // all that it takes was read; if there is no place for the hook now, the next look reads all
	return s, nil
}

// aim decides what we want of the bridge from its flows, all of them if reread is true; changed says that this is a change in more than its arms,
// or that arms were taken. told is how many changes the watch had told of before these flows were read. Caller holds mu.
func (b *bridge) aim(ctx context.Context, have []flows.Flow, ports []flows.Port, want arms, reread bool, told uint64) (changed bool, err error) {
	was, wanted, armed := b.hook, b.want, b.arms
	again := reread || !want.equal(b.asked)
	if reread {
		if err := b.choose(ctx, have, ports, want); err != nil {
			return false, errors.Join(err, b.clear(ctx, have))
		}
	} else if again {
		b.arm(b.hook, want)
	}
	// Bundles are atomic: what was there all along is not touched by other answers. Who reckons with those that were taken must know.
	taken := slices.ContainsFunc(b.unarmed, func(u unarmed) bool { return slices.Contains(armed.answers, u.port) })
	changed = wanted == nil || taken || again && !rearmed(was, b.hook)
	if old := b.guard.Load(); old == nil || again && !installed(was.Flows(), b.hook.Flows()) {
		b.guard.Store(b.hook.Guard()) // before the watch tells of flows of ours that go
		if (old == nil || was.Place != b.hook.Place) && b.told.Load() != told {
			b.disturb(flows.Doubtful) // what was told since was not judged for this hook
		}
	}
	return changed, nil
}

// credit has what passed be counted before other answers are expected than were. It was not copied for those, and is credited to the
// flows that it passed only if that is done before they change: else to those of after (xlate_push_stats of
// ofproto-dpif-upcall.c). Caller holds mu.
func (b *bridge) credit(ctx context.Context, was flows.Hook) error {
	if installed(was.Flows(), b.hook.Flows()) {
		return nil
	}
	if err := b.sw.Settle(ovs.Urgent(ctx), b.name); err != nil && !errors.Is(err, ovs.ErrUncounted) {
		return err
	}
	return nil
}

// quiet tells whether the hook can be taken to be as it was found, live: it is watched, and of
// nothing that matters was told. Caller holds mu.
func (b *bridge) quiet(now time.Time) bool {
	return b.state.Load().hook == dyetracev1.HookState_HOOK_STATE_LIVE && b.watched.Load() != nil && b.disturbed.Load() == 0 && b.db == b.sw.Snapshot().Database && b.fight.held(now) == 0 && now.Sub(b.audited) < auditWatched
}

// stale tells whether all of the bridge's flows are to be read again. A doubt that must
// wait wakes the reconciler when its time has come. Caller holds mu.
func (b *bridge) stale(d disturbances, watched, attest bool, now time.Time) bool {
	since := now.Sub(b.read)
	switch {
	case d.has(flows.Doubtful) && (attest || since >= rereadShare*b.reading):
		return true
	case d.has(flows.Doubtful):
	case !watched:
		return since >= rereadEvery
	default:
		return since >= rereadWatched
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

// ours begins to read our own flows. What it returns waits for them, and is called once. Caller holds mu, both times.
func (b *bridge) ours(ctx context.Context, now time.Time) (wait func() ([]flows.Flow, error)) {
	var have []flows.Flow
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		have, err = b.sw.DumpOurs(ctx, b.name)
	}()
	return func() ([]flows.Flow, error) {
		<-done
		if err != nil {
			return nil, fmt.Errorf("reading flows: %w", err)
		}
		b.audited = now
		return have, nil
	}
}

// install makes the bridge, which has the flows have, have those that we want. Caller
// holds mu.
func (b *bridge) install(ctx context.Context, have []flows.Flow, now time.Time) error {
	var add, del []flows.Flow
	if !b.agrees(have) {
		var err error
		if add, del, err = flows.Diff(have, b.want); err != nil {
			return errors.Join(err, b.clear(ctx, have))
		}
	}
	if len(add)+len(del) > 0 {
		if err := b.sw.Apply(ctx, b.name, add, del); err != nil {
			err = fmt.Errorf("installing %d flows: %w", len(add), err)
			if errors.Is(err, ovs.ErrUnsupported) {
				found, _ := b.sw.Snapshot().Bridge(b.name)
				b.refusal = refusal{err, b.asked, found.Protocols, b.sw.Snapshot().Switchd, now}
			}
			return err
		}
		if len(add) == len(b.want) {
			b.renewed = now // else the leases of the others run on
		}
		b.switchd = b.sw.Snapshot().Switchd
		if w := b.watched.Load(); w != nil {
			_ = w.Barrier(ctx) // what it has told of is our own doing; if it failed, the watch begins anew
			b.toldAgain(ctx)
		}
		if len(add) > 0 {
			b.added = time.Now()
		}
	}
	if err := b.settle(ctx); err != nil {
		return err
	}
	return b.renew(ctx, now)
}

// toldAgain has a wipe that was found by reading, and told afterwards, not be taken for another: all is there that was put
// back. Caller holds mu.
func (b *bridge) toldAgain(ctx context.Context) {
	const wiped = uint32(1) << flows.Wiped
	if b.disturbed.And(^wiped)&wiped == 0 {
		return
	}
	if have, err := b.sw.DumpOurs(ctx, b.name); err != nil || !b.agrees(have) {
		b.disturb(flows.Wiped)
	}
}

// settle returns when flows that were added count: until a sweep has come by, the datapath may know a
// way for stained packets from before, and send them past those flows. Caller holds mu.
func (b *bridge) settle(ctx context.Context) error {
	if b.added.IsZero() {
		return nil
	}
	err := b.sw.Settle(ovs.Urgent(ctx), b.name)
	if errors.Is(err, ovs.ErrUncounted) { // then two of those that come by themselves do
		select {
		case <-time.After(2*b.sw.Snapshot().SweepEvery - time.Since(b.added)):
			err = nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err == nil {
		b.added = time.Time{}
	}
	return err
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

// refusal is that of a switch which does not take the hook's flows. It would tomorrow what it does today, and each try
// has it look at what its datapath remembers.
type refusal struct {
	cause     error
	arms      arms
	protocols []string // of the bridge
	switchd   string
	at        time.Time
}

// err is the refusal's cause while nothing has changed that it depends on, for a while.
func (r refusal) err(want arms, found dataplane.Bridge, switchd string, now time.Time) error {
	if !r.arms.equal(want) || r.switchd != switchd || !slices.Equal(r.protocols, found.Protocols) || now.Sub(r.at) >= rereadWatched {
		return nil
	}
	return r.cause
}

// clear takes our flows off a bridge where there is to be no hook for now: half a hook is
// of no use, and one whose mark others read does harm. Caller holds mu.
func (b *bridge) clear(ctx context.Context, have []flows.Flow) error {
	b.guard.Store(nil)
	b.want, b.hook, b.arms, b.asked, b.unarmed = nil, flows.Hook{}, arms{}, arms{}, nil
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

// agreed are all flows of ours that a bridge had, and that were all that was wanted, in whatever spelling.
type agreed struct{ have, want []flows.Flow }

// agrees tells whether a bridge that has these flows has all that we want, and no others of ours. To compare spellings
// takes 0.3 ms of a processor for a hook of 15 flows; as a rule they are what they were when that was last done. Caller
// holds mu.
func (b *bridge) agrees(have []flows.Flow) bool {
	if slices.EqualFunc(have, b.agreed.have, sameButPackets) && slices.Equal(b.want, b.agreed.want) {
		return true
	}
	if !installed(have, b.want) {
		return false
	}
	if !slices.ContainsFunc(have, func(f flows.Flow) bool { return !f.Ours() }) { // which may be 100,000
		b.agreed = agreed{have, b.want}
	}
	return true
}

func sameButPackets(f, g flows.Flow) bool {
	f.Packets, g.Packets = 0, 0
	return f == g
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
	of := flows.Bridge{Name: b.name, Flows: have, Groups: groups, Ports: ports, Dye: b.dye.OFPort, Stain: b.stain}
	place, err := flows.Choose(of, keep)
	if err != nil {
		return err
	}
	b.rivals, b.ports = flows.Rivals(have), ports
	b.arm(flows.Hook{Place: place, Stain: b.stain, Dye: b.dye.OFPort, Ports: ports, Lease: uint16(b.lease / time.Second)}, want)
	return nil
}

// arm says what we want of the bridge: a hook with arms, but for the answers of ports that foreign flows would take from it, by what was read
// of those last. Caller holds mu.
func (b *bridge) arm(h flows.Hook, want arms) {
	b.asked, b.unarmed = want, nil
	b.arms = arms{expect: want.expect}
	for _, port := range want.answers {
		if err := b.against(h, port); err != nil {
			b.unarmed = append(b.unarmed, unarmed{port, err})
			continue
		}
		b.arms.answers = append(b.arms.answers, port)
	}
	h.Answers, h.Expect = b.arms.answers, b.arms.expect
	b.hook, b.want = h, h.Flows()
}

// unarmed is a port that cannot be armed, and why.
type unarmed struct {
	port uint16
	why  error
}

// against is what is against the answers of ports, by the foreign flows that were read last. Caller holds mu.
func (b *bridge) against(h flows.Hook, ports ...uint16) error {
	return flows.Bridge{Name: b.name, Flows: b.rivals, Ports: h.Ports, Dye: h.Dye, Stain: h.Stain, Answers: ports}.Shadowed()
}

// shadowed says that something is. It may be gone, so all is to be read again before that is said. Caller holds mu.
func (b *bridge) shadowed(want arms) bool { return b.against(b.hook, want.answers...) != nil }

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
