package agent

import (
	"os"
	"slices"
	"strings"
	"testing"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/stain"
)

// oldSwitch is where an Open vSwitch 2.5 lies (e2e/debian/old), for the daemons to be that one's.
const oldSwitch = "DYETRACE_OLD_SWITCH"

// Beside a switch that is too old there is no hook, and the reason names what it lacks: bundles, the flows that
// it does not take, or an option that its tools do not have. What is there stays.
func TestTooOld(t *testing.T) {
	old := os.Getenv(oldSwitch)
	if old == "" {
		t.Skip("beside this Open vSwitch there is nothing to refuse; make test-ovs SUITE=xenial runs it beside 2.5")
	}
	h := prepareHost(t)
	before := h.foreign()
	refused := func(why string, names, not []string) {
		t.Helper()
		var s bridgeState
		h.await("a refusal for "+why, func() bool {
			h.a.hooks.reconcile(t.Context())
			s = h.state()
			return s.hook == dyetracev1.HookState_HOOK_STATE_REFUSED && strings.Contains(s.reason, names[0])
		})
		t.Log(s.reason)
		for _, name := range append(names, "not supported by this switch", h.bridge) {
			if !strings.Contains(s.reason, name) {
				t.Errorf("%s: the reason is %q, without %q", why, s.reason, name)
			}
		}
		for _, name := range not {
			if strings.Contains(s.reason, name) {
				t.Errorf("%s: the reason is %q, with %q", why, s.reason, name)
			}
		}
	}
	if err := h.a.hooks.setStain(t.Context(), stain.Default()); err != nil {
		t.Fatal(err)
	}
	h.await("the bridge", func() bool { h.a.hooks.reconcile(t.Context()); return h.hooked() != nil })
	refused("bundles", []string{"bundles", "OFPBRC_BAD_"}, nil)
	at := h.hooked().refusal.at
	h.a.hooks.look(t.Context(), true)
	if now := h.hooked().refusal.at; now != at {
		t.Error("what was refused was tried again, and nothing had changed")
	}

	vsctl(t, "set", "bridge", h.bridge, "protocols=OpenFlow10,OpenFlow13,OpenFlow14")
	h.await("the protocols", func() bool {
		b, _ := h.a.sw.Snapshot().Bridge(h.bridge)
		return b.Speaks("OpenFlow14") && slices.Contains(b.Protocols, "OpenFlow14")
	})
	refused("flows", []string{"clone("}, []string{"mpls_tc=0"}) // which it takes

	path := os.Getenv("PATH")
	t.Setenv("LD_LIBRARY_PATH", old+"/lib/x86_64-linux-gnu")
	t.Setenv("PATH", old+"/usr/bin:"+path)
	vsctl(t, "set", "bridge", h.bridge, "protocols=OpenFlow10,OpenFlow13") // or it would not be tried
	refused("tools", []string{"--no-names", "ovs-ofctl"}, nil)
	t.Setenv("PATH", path)
	if now := h.foreign(); now != before || len(h.ours()) > 0 {
		t.Errorf("there are flows\n%swere\n%s; ours: %v", now, before, h.ours())
	}
}
