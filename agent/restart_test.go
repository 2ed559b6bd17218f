package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/dataplane/packetio"
	"github.com/dyetrace/dyetrace/internal/sandbox"
)

// killDaemon kills one of Open vSwitch's daemons as a crash would, waits until it is gone, and
// returns what starts it again. Tests that do it are not parallel: all others share the switch.
func killDaemon(t testing.TB, name string) (start func()) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(ovs.DefaultRunDir, name+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	running := true
	start = func() {
		if running {
			return
		}
		running = true
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	(&host{t: t}).await("the end of "+name, func() bool {
		// A zombie of the sandbox's first process, which reaps none, is gone enough, once the last
		// of its other threads let go of what it held.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		return err != nil || strings.Contains(string(stat), ") Z ") && len(threads) <= 1
	})
	running = false
	t.Cleanup(start)
	return start
}

// probed sends probes of a run, from the index on, and waits until each was seen on its way and on
// its arrival.
func (h *host) probed(run uint64, from, to uint32) {
	h.t.Helper()
	if err := h.a.sw.Sync(h.t.Context()); err != nil { // ports may have other numbers by now
		h.t.Fatal(err)
	}
	h.await("a port to send by", func() bool { return h.hooked() != nil && h.hooked().port.Load() != nil })
	next, want := from, 0
	for _, kind := range []dyetracev1.PointKind{dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE, dyetracev1.PointKind_POINT_KIND_TO_INSTANCE} {
		n, _ := h.seen(run, kind, dyetracev1.Scheme_SCHEME_ICMP)
		want = n + int(to-from)
		if next == from {
			h.inject(run, dyetracev1.Scheme_SCHEME_ICMP, false, from, to)
			next = to
			want = int(to)
		}
		h.await(fmt.Sprintf("probes at %v", kind), func() bool {
			n, _ := h.seen(run, kind, dyetracev1.Scheme_SCHEME_ICMP)
			return n >= min(want, int(to))
		})
	}
}

// dye is the dye port that the hook was installed for.
func (h *host) dye() ovs.DyePort {
	b := h.hooked()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dye
}

// dyeID is the database's for the dye port, empty while there is none.
func (h *host) dyeID() string {
	found, _ := h.a.sw.Snapshot().Bridge(h.bridge)
	port, _ := found.Port(ovs.DyePortName(h.bridge))
	return port.ID
}

// TestRestarts has everything restarted, renumbered, deleted and made anew that a hook depends on.
// Each time the hook is back, probes are seen again, and who was on the way knows of the gap.
func TestRestarts(t *testing.T) {
	h := newHost(t).keep()
	h.begin(1, 10_000, 10*deadline)
	var sent uint32
	probed := func() { h.probed(1, sent, sent+20); sent += 20 }
	probed()
	setting := func(args ...string) { vsctl(t, append([]string{"--no-wait"}, args...)...) }
	for _, tt := range []struct {
		name string
		// gap: those who were on the way must know.
		gap  bool
		what func()
	}{
		{"ovsdb-server restarted", true, func() { killDaemon(t, "ovsdb-server")() }},
		{"ovs-vswitchd killed and restarted", true, func() { killDaemon(t, "ovs-vswitchd")() }},
		{"ovs-vswitchd restarted, flows to be restored first", true, func() {
			setting("set", "Open_vSwitch", ".", "other_config:flow-restore-wait=true")
			killDaemon(t, "ovs-vswitchd")()
			h.await("a hook that is known not to be live", func() bool {
				s := h.state()
				return s.hook == dyetracev1.HookState_HOOK_STATE_ABSENT && strings.Contains(s.reason, "flow-restore-wait")
			})
			if w := h.attest(); w.Live {
				t.Errorf("attested live while no flow counts: %v", w)
			}
			setting("remove", "Open_vSwitch", ".", "other_config", "flow-restore-wait")
		}},
		{"the dye port renumbered", true, func() { setting("set", "interface", h.hooked().dye.Name, "ofport_request=777") }},
		// It is made again at once; if ovs-vswitchd gets to see both in one, it has been there all the time.
		{"the dye port deleted by hand", false, func() {
			old := h.dyeID()
			vsctl(t, "del-port", ovs.DyePortName(h.bridge))
			h.await("another dye port", func() bool { id := h.dyeID(); return id != "" && id != old })
		}},
		{"an instance's port renumbered", false, func() { vsctl(t, "set", "interface", h.guests[0].tap, "ofport_request=778") }},
		{"the bridge deleted and made anew", true, func() {
			vsctl(t, "del-br", h.bridge)
			h.await("no hook", func() bool { return h.hooked() == nil })
			args := []string{"add-br", h.bridge, "--", "set", "bridge", h.bridge, "datapath_type=netdev"}
			for _, g := range h.guests {
				args = append(args, "--", "add-port", h.bridge, g.tap, "--", "set", "interface", g.tap,
					"external_ids:iface-id=port-"+g.tap, `external_ids:attached-mac="`+g.mac.String()+`"`)
			}
			vsctl(t, args...)
		}},
	} {
		before, dye := h.attest(), h.dye()
		tt.what()
		h.await(tt.name+": the hook, live", func() bool {
			b := h.hooked()
			if b == nil || b.watched.Load() == nil || !h.tapped(0) || !h.tapped(1) {
				return false
			}
			s := b.state.Load()
			return s.hook == dyetracev1.HookState_HOOK_STATE_LIVE && (!tt.gap || s.epoch > before.Epoch)
		})
		after := h.attest()
		if !after.Live || (tt.gap || h.dye() != dye) && after.Epoch == before.Epoch {
			t.Errorf("%s: attested %v before and %v after", tt.name, before, after)
		}
		probed()
		if n := len(h.ours()); n != len(h.hooked().want) {
			t.Errorf("%s: %d flows of ours, want %d", tt.name, n, len(h.hooked().want))
		}
	}
}

// While a dye port is made anew others may look at the bridge, too: each finds all of it as it was, or as it is.
func TestDyePortUnderAudits(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	ctx, stop := context.WithCancel(t.Context())
	var auditors sync.WaitGroup
	for range 4 {
		auditors.Go(func() {
			for ctx.Err() == nil {
				h.a.hooks.audit(ctx, false)
			}
		})
	}
	for range 10 {
		old := h.dyeID()
		vsctl(t, "del-port", ovs.DyePortName(h.bridge))
		h.await("another dye port", func() bool { id := h.dyeID(); return id != "" && id != old && h.hooked().port.Load() != nil })
	}
	stop()
	auditors.Wait()
	if w := h.attest(); !w.Live {
		t.Errorf("attested %v", w)
	}
}

// A hook is not live before the datapath does as it says: until a sweep has come by, what it remembers
// of stained packets from before sends them past the hook. (Not parallel: sweeps are the whole switch's.)
func TestLiveOnceSettled(t *testing.T) {
	h := newHost(t)
	f := newFlood(t, h)
	out, in := f.sockets(t, h)
	const unseen, seen, probes = 1, 2, 64
	h.begin(unseen, probes, 10*deadline)
	h.begin(seen, probes, 10*deadline)
	if err := h.a.sw.Apply(t.Context(), h.bridge, nil, h.ours()); err != nil { // somebody else
		t.Fatal(err)
	}
	if err := h.a.sw.Settle(t.Context(), h.bridge); err != nil {
		t.Fatal(err)
	}
	f.pass(t, out, in, probes) // which the datapath remembers
	if out, err := exec.Command("ovs-appctl", "revalidator/pause").CombinedOutput(); err != nil {
		if strings.Contains(string(out), "not a valid command") {
			t.Skip("this Open vSwitch has no revalidator/pause (3.1 has)")
		}
		t.Fatalf("revalidator/pause: %v\n%s", err, out)
	}
	resume := sync.OnceFunc(func() { sandbox.Command(t, "ovs-appctl", "revalidator/resume") })
	defer resume()
	look := func(attest bool) (all bool) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		h.a.hooks.look(ctx, attest)
		cancel()
		have, want := len(h.ours()), len(h.hooked().want)
		if s := h.state(); s.hook == dyetracev1.HookState_HOOK_STATE_LIVE {
			t.Errorf("%d flows (want %d), and the datapath has not seen them: hook %v", have, want, s.hook)
		}
		return have == want && want > 0
	}
	h.await("all flows", func() bool { return look(true) })
	for _, attest := range []bool{true, false} {
		if !look(attest) {
			t.Errorf("attest %t: not all flows are there any more", attest)
		}
	}
	f.token = h.tokens(unseen)
	f.pass(t, out, in, probes)
	resume()
	h.a.hooks.look(t.Context(), true)
	if s := h.state(); s.hook != dyetracev1.HookState_HOOK_STATE_LIVE {
		t.Errorf("the datapath has seen all flows, and the hook is %v: %s", s.hook, s.reason)
	}
	f.token = h.tokens(seen)
	f.pass(t, out, in, probes)
	const kind, scheme = dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE, dyetracev1.Scheme_SCHEME_TCP
	h.await("all packets", func() bool { n, _ := h.seen(seen, kind, scheme); return n == probes })
	if n, _ := h.seen(unseen, kind, scheme); n > 0 {
		t.Errorf("%d of %d packets were seen by flows that the datapath had not seen: the test tests nothing", n, probes)
	}
}

// tokens are those of a run's probes, one after the other.
func (h *host) tokens(run uint64) func() uint32 {
	tokens, next := h.a.runs.get(run).tokens, uint32(0)
	return func() uint32 { next++; return tokens.At(next - 1) }
}

// remember has the datapath remember so many flows more, of packets that the first guest sends.
func (f *flood) remember(h *host, out, in *packetio.Port, n int) {
	t := h.t
	t.Helper()
	h.ofctl("add-flow", h.bridge, "priority=7,udp,actions=move:NXM_OF_IP_DST[]->NXM_NX_REG3[]") // so that each address is one
	sandbox.Command(t, "ovs-appctl", "upcall/set-flow-limit", "200000")                         // it grows by itself, but slowly
	var frames [][]byte
	for i := range n {
		frame := slices.Concat(h.guests[1].mac[:], h.guests[0].mac[:], []byte{
			0x08, 0x00, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 18, byte(i >> 8), byte(i),
		}, make([]byte, 26))
		frames = append(frames, frame)
	}
	for some := range slices.Chunk(frames, 128) {
		if _, err := out.Send(some); err != nil {
			t.Fatal(err)
		}
		f.pass(t, out, in, 1) // and so had all before it
	}
	if got := rememberedFlows(t); got < n {
		t.Fatalf("the datapath remembers %d flows (want %d)", got, n)
	}
}

// rememberedFlows counts those that the datapath remembers of flood.remember.
func rememberedFlows(t testing.TB) int {
	t.Helper()
	return strings.Count(sandbox.Command(t, "ovs-appctl", "dpctl/dump-flows"), "dst=198.18.")
}

// A switch that has two datapaths tells of neither's sweeps: hooks go and come, and are armed, as anywhere, and
// are attested without their counters. (Not parallel: all others would be told as little.)
func TestTwoDatapaths(t *testing.T) {
	h := newHost(t).keep()
	other := h.bridge + "-dummy"
	vsctl(t, "add-br", other, "--", "set", "bridge", other, "datapath_type=dummy")
	defer vsctl(t, "del-br", other)
	before := h.attest()
	epoch := h.state().epoch
	h.ofctl("del-flows", h.bridge, "cookie=0x4479655400000000/0xffffffff00000000")
	h.restored(epoch)
	h.begin(1, 1, 10*deadline)
	if said := h.arm(&dyetracev1.Arm{Run: 1, Answers: []*dyetracev1.PortRef{h.port(0)}}); said != "" {
		t.Errorf("armed: %s", said)
	}
	after := h.attest()
	if !before.Live || !after.Live || after.Epoch != before.Epoch+1 || len(after.Counts) > 0 || after.Uncounted != "" {
		t.Errorf("attested %v before, %v after", before, after)
	}
}

// Of the packets that come once a hook is live again it misses none, however many have gone by while it
// was away: wiped, or moved since its mark was taken.
func TestLiveHookMissesNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	f := newFlood(t, h)
	out, in := f.sockets(t, h)
	f.remember(h, out, in, 2000)
	const gaps, run, probes = 20, 1, 16
	h.begin(run, gaps*probes, 10*deadline)
	strange, token := f.token, h.tokens(run)
	for i := range gaps {
		was := h.state()
		h.hooked().mu.Lock()
		h.hooked().fight = fight{}
		h.hooked().mu.Unlock()
		if i%2 == 0 {
			h.ofctl("del-flows", h.bridge, "cookie=0x4479655400000000/0xffffffff00000000")
		} else {
			h.ofctl("add-flow", h.bridge, "table=8,"+readsMark(t, was.mark)+",actions=drop")
		}
		f.token = strange
		live := func() bool {
			s := h.state()
			return s.epoch > was.epoch && s.hook == dyetracev1.HookState_HOOK_STATE_LIVE
		}
		for end := time.Now().Add(deadline); !live(); f.pass(t, out, in, probes) {
			if time.Now().After(end) {
				t.Fatalf("waited %v for the hook: %v", deadline, h.state())
			}
		}
		f.token = token
		f.pass(t, out, in, probes)
	}
	h.await("all packets that came while it was live", func() bool {
		n, _ := h.seen(run, dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE, dyetracev1.Scheme_SCHEME_TCP)
		return n == gaps*probes
	})
}
