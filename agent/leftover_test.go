package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/internal/sandbox"
)

// killed has an agent install its hook on the host's bridge, in a process of its own that is killed then.
func (h *host) killed() {
	h.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	const repair = 9 // a step of the victim's after the hook was live
	cmd.Env = append(os.Environ(), victimBridge+"="+h.bridge, fmt.Sprint(victimStep, "=", repair))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
		h.t.Fatalf("it was not killed: %v\n%s", err, out)
	}
	if len(h.ours()) == 0 || !h.dyed() {
		h.t.Fatalf("killed before %s, and left %d flows: the test tests nothing", out, len(h.ours()))
	}
}

// filtered leaves a filter at the first guest's port, as an agent does that is killed on a kernel without tcx.
func (h *host) filtered() {
	h.t.Helper()
	link, err := netlink.LinkByName(h.guests[0].tap)
	if err != nil {
		h.t.Fatal(err)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	defer program.Close()
	sandbox.Command(h.t, "tc", "qdisc", "add", "dev", h.guests[0].tap, "clsact")
	if err := netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Priority: 0xffff, Protocol: unix.ETH_P_ALL,
		},
		Fd: program.FD(), Name: "dyetrace/to-instance", DirectAction: true,
	}); err != nil {
		h.t.Fatal(err)
	}
}

// filters are those at the first guest's port.
func (h *host) filters() string {
	h.t.Helper()
	return sandbox.Command(h.t, "tc", "filter", "show", "dev", h.guests[0].tap, "egress")
}

// dyed tells whether the database has a dye port of the bridge, or there is a device of it.
func (h *host) dyed() bool {
	h.t.Helper()
	name := ovs.DyePortName(h.bridge)
	_, err := netlink.LinkByName(name)
	return err == nil || strings.Contains(vsctl(h.t, "list-ports", h.bridge), name)
}

// live has the agent do as Run does, without a controller, until the returned function is called.
func (h *host) live() (end func()) {
	h.t.Helper()
	if err := h.a.sw.Sync(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.a.hooks.note()
	ctx, cancel := context.WithCancel(h.t.Context())
	var keeper sync.WaitGroup
	keeper.Go(func() { _ = h.a.hooks.run(ctx) })
	return sync.OnceFunc(func() {
		cancel()
		keeper.Wait()
		if err := h.a.hooks.remove(h.t.Context()); err != nil {
			h.t.Error(err)
		}
	})
}

// What an agent left that was killed, the next one takes off: at its end, though no controller told it to hook the bridge, and while it
// runs from a bridge that it is not to hook. (Not parallel, nor are those below: an agent looks at all bridges.)
func TestLeftBehind(t *testing.T) {
	for _, tt := range []struct {
		name   string
		only   string
		change func(h *host)
		runs   bool // it is gone while the agent runs
	}{
		{"the controller is away", "", (*host).filtered, false},
		{"another bridge is to be hooked", "another", (*host).filtered, true},
		{"nothing is there to hook", "", func(h *host) {
			for _, g := range h.guests {
				vsctl(t, "del-port", h.bridge, g.tap)
			}
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := prepareHost(t)
			h.killed()
			tt.change(h)
			if tt.only != "" {
				h.a.hooks.only = []string{tt.only}
			}
			h.a.hooks.leftoverWait = 200 * time.Millisecond
			end := h.live()
			defer end()
			if tt.runs {
				h.await("the end of what was left", func() bool { h.a.hooks.poke(); return !h.dyed() })
			} else {
				for range 50 {
					h.a.hooks.poke()
					time.Sleep(10 * time.Millisecond)
				}
				if !h.dyed() {
					t.Error("the dye port of a bridge that is to be hooked has gone while nobody knows what with")
				}
			}
			end()
			if left := h.ours(); len(left) > 0 || h.dyed() || h.filters() != "" {
				t.Errorf("left: a dye port %t, flows %v, and filters %s", h.dyed(), left, h.filters())
			}
		})
	}
}

// What is not ours an agent leaves alone, and what another agent of the host uses, be it that the two began at once.
func TestNotLeftBehind(t *testing.T) {
	h := prepareHost(t)
	for _, tt := range []struct {
		name  string
		early bool // the other agent began before
	}{{"an agent that was there", true}, {"one that takes over what was left", false}} {
		t.Run(tt.name, func(t *testing.T) {
			other := prepareHost(t)
			own := "dye-not-" + other.bridge
			vsctl(t, "add-port", other.bridge, own, "--", "set", "interface", own, "type=internal")
			if tt.early {
				other.install()
			} else {
				other.killed()
			}
			wait := func(d time.Duration) {
				h.a.hooks.mu.Lock()
				defer h.a.hooks.mu.Unlock()
				h.a.hooks.leftoverWait = d
			}
			wait(time.Minute) // more than it takes to take it over
			end := h.live()
			defer end()
			other.install()
			wait(200 * time.Millisecond)
			before := other.attest()
			for range 50 {
				h.a.hooks.poke()
				time.Sleep(10 * time.Millisecond)
			}
			end()
			if after := other.attest(); !before.Live || !after.Live || after.Epoch != before.Epoch {
				t.Errorf("attested %v before and %v after", before, after)
			}
			if got := vsctl(t, "port-to-br", own); got != other.bridge {
				t.Errorf("the port of somebody else is on %q", got)
			}
		})
	}
}

// A port that has the name of a dye port and not our mark is nobody's leftover.
func TestForeignDyePort(t *testing.T) {
	h := prepareHost(t)
	name := ovs.DyePortName(h.bridge)
	vsctl(t, "add-port", h.bridge, name, "--", "set", "interface", name, "type=internal")
	h.live()()
	if got := vsctl(t, "port-to-br", name); got != h.bridge {
		t.Errorf("the foreign port is on %q", got)
	}
	if len(h.a.hooks.left) > 0 {
		t.Errorf("taken for left: %v", h.a.hooks.left)
	}
}
