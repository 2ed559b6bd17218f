package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/internal/sandbox"
)

// keep has the agent keep its hooks as it does beside a session, until the test ends.
func (h *host) keep() *host {
	ctx, cancel := context.WithCancel(context.Background())
	var keeper sync.WaitGroup
	keeper.Go(func() {
		if err := h.a.hooks.run(ctx); err != nil {
			h.t.Errorf("hooks: %v", err)
		}
	})
	h.t.Cleanup(func() {
		cancel()
		keeper.Wait()
	})
	h.await("a watch of the bridge", func() bool { return h.hooked().watched.Load() != nil })
	return h
}

func (h *host) hooked() *bridge { return h.a.hooks.get(h.bridge) }

func (h *host) state() bridgeState { return *h.hooked().state.Load() }

func (h *host) ofctl(args ...string) string {
	h.t.Helper()
	return sandbox.Command(h.t, "ovs-ofctl", append([]string{"-O", "OpenFlow10,OpenFlow13,OpenFlow15"}, args...)...)
}

// ours are the flows of the hook, as the bridge has them.
func (h *host) ours() []flows.Flow {
	h.t.Helper()
	have, err := h.a.sw.DumpOurs(h.t.Context(), h.bridge)
	if err != nil {
		h.t.Fatal(err)
	}
	return have
}

// foreign is all of the bridge's flows that are not ours, without counters.
func (h *host) foreign() string {
	h.t.Helper()
	var b strings.Builder
	for line := range strings.Lines(h.ofctl("--no-stats", "--no-names", "--sort", "dump-flows", h.bridge)) {
		if !strings.Contains(line, "cookie=0x44796554") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// restored waits until the hook is live again after a gap that came after epoch.
func (h *host) restored(epoch uint64) bridgeState {
	h.t.Helper()
	h.await("the hook, restored", func() bool {
		s := h.state()
		return s.epoch > epoch && s.hook == dyetracev1.HookState_HOOK_STATE_LIVE
	})
	return h.state()
}

// attest is what the agent says of the hook before or after a run.
func (h *host) attest() *dyetracev1.HookWindow {
	h.t.Helper()
	w := windowOf(h.a.hooks.audit(h.t.Context(), true), h.bridge)
	if w == nil {
		h.t.Fatal("no window")
	}
	return w
}

// A hook that another deletes, whole or in part, is back although nobody asks, and the gap is
// known: a run that went on meanwhile finds another epoch. What else is on the bridge stays.
func TestWipedHookIsBack(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	want := h.ours()
	for _, wipe := range [][]string{
		{"del-flows", h.bridge},                                 // as ovn-controller does
		{"del-flows", h.bridge, "cookie=0x4479655400000300/-1"}, // as Neutron does in its tables
		{"del-flows", h.bridge, fmt.Sprintf("table=%d", want[len(want)-1].Table)},
	} {
		before := h.attest()
		was := h.state()
		h.ofctl(wipe...)
		now := h.restored(was.epoch)
		after := h.attest()
		if !before.Live || !after.Live || after.Epoch == before.Epoch {
			t.Errorf("%v: attested %v before and %v after", wipe, before, after)
		}
		if now.gaps != was.gaps+1 || now.wipes != was.wipes+1 {
			t.Errorf("%v: %d gaps and %d wipes, want one more than %d and %d", wipe, now.gaps, now.wipes, was.gaps, was.wipes)
		}
		if got := h.ours(); len(got) != len(want) {
			t.Errorf("%v: %d flows are back, want %d", wipe, len(got), len(want))
		}
		h.hooked().mu.Lock()
		h.hooked().fight = fight{total: now.wipes} // three in a row are too many for what comes next
		h.hooked().mu.Unlock()
		if strings.Contains(wipe[len(wipe)-1], h.bridge) {
			if got := h.foreign(); got != "" {
				t.Errorf("all was deleted, and there is %s", got)
			}
			h.ofctl("add-flow", h.bridge, "priority=0,actions=NORMAL")
		} else if got := h.foreign(); got != " priority=0 actions=NORMAL\n" {
			t.Errorf("%v: foreign flows are now\n%s", wipe, got)
		}
	}
	// An unwatched gap is known as well: what was deleted and put back between two looks.
	before := h.attest()
	h.ofctl("add-flow", h.bridge, "table=9,reg1=5,actions=drop")
	if after := h.attest(); after.Epoch != before.Epoch {
		t.Errorf("a flow that is none of our business started epoch %d", after.Epoch)
	}
	ours := h.ours()
	h.ofctl("del-flows", h.bridge, "cookie=0x44796554ffffffff/0xffffffff00000000")
	if err := h.a.sw.Apply(t.Context(), h.bridge, ours, nil); err != nil {
		t.Fatal(err)
	}
	if after := h.attest(); after.Epoch == before.Epoch {
		t.Error("the hook was away for a moment, and nobody knows")
	}
}

// A tool that deletes whatever it does not know is not fought: the hook is put back a few times,
// then left alone, with nothing of it on the bridge, and we say so. After a while we try again.
func TestNoFight(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	b := h.hooked()
	for range fightPatience {
		epoch := h.state().epoch
		h.ofctl("del-flows", h.bridge)
		h.restored(epoch)
	}
	h.ofctl("del-flows", h.bridge, "table=0") // half of it stays
	h.await("peace", func() bool { return h.state().held > 0 })
	s := h.state()
	if s.hook != dyetracev1.HookState_HOOK_STATE_ABSENT || !strings.Contains(s.reason, "4 times") || !strings.Contains(s.reason, "so as not to fight") {
		t.Errorf("left alone: %v, %q", s.hook, s.reason)
	}
	if left := h.ours(); len(left) > 0 {
		t.Errorf("left alone, but for %v", left)
	}
	if w := h.attest(); w.Live || w.Reason != s.reason {
		t.Errorf("attested %v", w)
	}
	found, _ := h.a.sw.Snapshot().Bridge(h.bridge)
	if m := bridgeMessage(b, found); m.HeldMs != uint32(fightPause/time.Millisecond) || m.Wipes != fightPatience+1 || !m.Watched {
		t.Errorf("the controller is told %v", m)
	}
	for name, want := range map[string]float64{"hook_wipes_total": fightPatience + 1, "hooks_held": 1, "bridges_watched": 1} {
		if got := h.metric(name); got != want {
			t.Errorf("dyetrace_agent_%s is %v, want %v", name, got, want)
		}
	}
	// The pause is over, so to say.
	b.mu.Lock()
	b.fight.until = time.Now()
	b.mu.Unlock()
	b.poke()
	h.restored(s.epoch)
	if got := h.metric("hooks_held"); got != 0 {
		t.Errorf("the hook is back, and dyetrace_agent_hooks_held is %v", got)
	}
}

func (h *host) metric(name string) float64 {
	h.t.Helper()
	all, err := h.reg.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == "dyetrace_agent_"+name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	h.t.Fatalf("no metric dyetrace_agent_%s", name)
	return 0
}

// When another controller begins to read the bit that is the mark, or to use one of the hook's
// tables, ours move, in one bundle with which they come; the epoch tells who was on the way.
func TestMarkMoves(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	for i, flow := range []string{
		"table=7,reg10=0x80000000/0x80000000,actions=drop",
		"table=7,in_port=1,actions=move:NXM_NX_REG10[16..31]->NXM_NX_PKT_MARK[0..15]",
		"table=7,actions=learn(table=20,NXM_NX_REG10[],NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],output:NXM_OF_IN_PORT[])",
		"table=7,udp,actions=resubmit(,253)",
	} {
		was, before := h.state(), h.attest()
		h.ofctl("add-flow", h.bridge, flow)
		// Whoever asks now must not be told that all is as it was, whether we know yet or not.
		if after := h.attest(); after.Epoch == before.Epoch && after.Live {
			t.Errorf("%s: attested live in epoch %d before and after", flow, after.Epoch)
		}
		now := h.restored(was.epoch)
		if i < 3 && now.mark == was.mark || i == 3 && now.table == was.table {
			t.Errorf("%s: the hook is still in table %d with mark %s", flow, now.table, now.mark)
		}
		h.hooked().mu.Lock()
		h.hooked().fight = fight{}
		h.hooked().mu.Unlock()
	}
	if !strings.Contains(h.foreign(), "reg10=0x80000000/0x80000000") {
		t.Errorf("foreign flows are now\n%s", h.foreign())
	}
	// A move leaves no flow of the hook as it was before behind.
	want := h.hooked().want
	if add, del, err := flows.Diff(h.ours(), want); err != nil || len(add)+len(del) > 0 {
		t.Errorf("the bridge lacks %v and has %v, %v", add, del, err)
	}
}

// Where no bit or no table is free, or a foreign flow sits in our place, the hook goes, whatever it
// was before, and the reason is told; with the reason goes the refusal.
func TestRefusals(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	var all []string
	for r := range 16 {
		all = append(all, fmt.Sprintf("push:NXM_NX_REG%d[],pop:NXM_OF_VLAN_TCI[]", r))
	}
	var tables []string
	for n := 200; n < 254; n++ {
		tables = append(tables, fmt.Sprintf("resubmit(,%d)", n))
	}
	for _, tt := range []struct{ name, match, actions, reason string }{
		{"no mark", "table=7", strings.Join(all, ","), flows.ErrNoMark.Error()},
		{"no table", "table=7", strings.Join(tables, ","), flows.ErrNoTable.Error()},
		{"shadowed", "table=0,priority=65535,tcp", "NORMAL", flows.ErrShadowed.Error()},
		{"in our place", fmt.Sprintf("table=0,priority=65534,in_port=%d", h.hooked().dye.OFPort), "drop", flows.ErrShadowed.Error()},
	} {
		epoch := h.state().epoch
		h.ofctl("add-flow", h.bridge, "cookie=0x7,"+tt.match+",actions="+tt.actions)
		h.await(tt.name, func() bool { return h.state().hook == dyetracev1.HookState_HOOK_STATE_REFUSED })
		if s := h.state(); !strings.Contains(s.reason, tt.reason) || !strings.Contains(s.reason, h.bridge) || s.epoch == epoch {
			t.Errorf("%s: refused with %q, epoch %d", tt.name, s.reason, s.epoch)
		}
		if left := h.ours(); len(left) > 0 {
			t.Errorf("%s: refused, and left %v", tt.name, left)
		}
		if !strings.Contains(h.foreign(), "cookie=0x7,") {
			t.Errorf("%s: refused, and the flow that is in the way is gone:\n%s", tt.name, h.foreign())
		}
		epoch = h.state().epoch
		h.ofctl("--strict", "del-flows", h.bridge, tt.match)
		h.a.hooks.reconcile(t.Context())
		h.restored(epoch - 1)
		h.hooked().mu.Lock()
		h.hooked().fight = fight{}
		h.hooked().mu.Unlock()
	}
}

// BenchmarkGap measures how long a hook is not attested after somebody deleted it (wiped), or took
// its mark (taken): ns/op is the mean, p99-ms what a hundredth exceeds (nearest rank), max-ms the longest.
// Beside a bridge of 1, or 10,000 flows, on a switch whose datapath remembers next to nothing; and where it
// remembers 10,000 flows (remembered: that many are left) and takes its time for a sweep.
func BenchmarkGap(b *testing.B) {
	wipe := func(h *host) { h.ofctl("del-flows", h.bridge, "cookie=0x4479655400000000/0xffffffff00000000") }
	take := func(h *host) { h.ofctl("add-flow", h.bridge, "table=8,"+readsMark(b, h.state().mark)+",actions=drop") }
	for _, bb := range []struct {
		name              string
		flows, remembered int
		what              func(*host)
	}{
		{"wiped", 1, 0, wipe},
		{"wiped", 10_000, 0, wipe},
		{"wiped", 1, 10_000, wipe},
		{"taken", 1, 0, take},
		{"taken", 10_000, 0, take},
		{"taken", 1, 10_000, take},
	} {
		b.Run(fmt.Sprintf("%s/flows=%d/remembered=%d", bb.name, bb.flows, bb.remembered), func(b *testing.B) {
			benchGap(b, bb.flows, bb.remembered, bb.what)
		})
	}
}

// readsMark is a match that reads a hook's mark.
func readsMark(t testing.TB, mark string) string {
	t.Helper()
	var register, bit int
	if _, err := fmt.Sscanf(mark, "reg%d[%d]", &register, &bit); err != nil {
		t.Fatalf("mark %s: %v", mark, err)
	}
	return fmt.Sprintf("reg%d=0/%#x", register, 1<<bit)
}

func benchGap(b *testing.B, n, remembered int, what func(*host)) {
	h := newHost(b).keep()
	if remembered > 0 {
		vsctl(b, "set", "Open_vSwitch", ".", "other_config:max-idle=3600000")
		defer vsctl(b, "remove", "Open_vSwitch", ".", "other_config", "max-idle")
		f := newFlood(b, h)
		out, in := f.sockets(b, h)
		f.remember(h, out, in, remembered)
	}
	var text strings.Builder
	for i := range n {
		fmt.Fprintf(&text, "flow add table=9,priority=5,ip,nw_dst=10.%d.%d.%d,actions=drop\n", i>>16, i>>8&255, i&255)
	}
	pipe(b, text.String(), "ovs-ofctl", "bundle", h.bridge, "-")
	var gaps []time.Duration
	for b.Loop() {
		h.hooked().mu.Lock()
		h.hooked().fight = fight{}
		h.hooked().mu.Unlock()
		epoch := h.state().epoch
		what(h)
		begun := time.Now()
		for s := h.state(); s.epoch == epoch || s.hook != dyetracev1.HookState_HOOK_STATE_LIVE; s = h.state() {
			time.Sleep(100 * time.Microsecond)
		}
		gaps = append(gaps, time.Since(begun))
	}
	slices.Sort(gaps)
	b.ReportMetric(float64(gaps[len(gaps)/2])/1e6, "p50-ms")
	b.ReportMetric(float64(gaps[(len(gaps)*99+99)/100-1])/1e6, "p99-ms")
	b.ReportMetric(float64(gaps[len(gaps)-1])/1e6, "max-ms")
	if remembered > 0 {
		b.ReportMetric(float64(rememberedFlows(b)), "remembered")
	}
}
