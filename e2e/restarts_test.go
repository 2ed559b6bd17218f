package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// killSwitchd is what "ovs-ctl restart" does, but for the manner of the daemon's end: flows are saved,
// those of hooks among them, and restored before the new one forwards anything.
const killSwitchd = `set -e
/usr/share/openvswitch/scripts/ovs-save save-flows $(ovs-vsctl list-br) >/tmp/restore 2>/tmp/save.log
ovs-vsctl --no-wait set Open_vSwitch . other_config:flow-restore-wait=true
` + killDaemon + `
sh /tmp/restore 2>>/tmp/save.log
ovs-vsctl remove Open_vSwitch . other_config flow-restore-wait`

// killDaemon kills the daemon $0 and starts it again as it was.
const killDaemon = `set -e
pid=$(cat /run/openvswitch/$0.pid)
cp /proc/$pid/cmdline /tmp/$0.cmdline
kill -9 $pid
gone() { [ ! -e /proc/$pid ] || { grep -q '^State:.*Z' /proc/$pid/status && [ "$(ls /proc/$pid/task | wc -l)" -le 1 ]; }; }
until gone; do sleep 0.05; done
xargs -0 </tmp/$0.cmdline >/dev/null env`

// hook is what "dyetrace hooks" says of one bridge.
type hook struct {
	Host   string
	Name   string // the bridge's
	State  string `json:"hook"`
	Reason string
	Gaps   int
	Wipes  int
	HeldMs int `json:"held_ms"`
}

func (l *lab) hook(host, bridge string) hook {
	l.t.Helper()
	var all []hook
	if err := json.Unmarshal([]byte(l.dyetrace("hooks", "-o", "json").stdout), &all); err != nil {
		l.t.Fatal(err)
	}
	for _, h := range all {
		if h.Host == host && h.Name == bridge {
			return h
		}
	}
	l.t.Fatalf("hooks: no bridge %s of host %s in %+v", bridge, host, all)
	return hook{}
}

// TestRestarts has what hooks depend on killed, deleted and renumbered on a host with three bridges.
// Hooks are back, and all pairs healthy; where the network itself was whole, no verdict is wrong meanwhile.
func TestRestarts(t *testing.T) {
	t.Parallel()
	l := up(t)
	for _, tt := range []struct {
		name, bridge string
		// whole: tenants' packets pass all the time.
		whole bool
		argv  []string
		// device is one without which there is no gap if it has been there all the time: the agent makes it again
		// at once, and ovs-vswitchd may get to see both in one.
		device string
	}{
		{"ovsdb-server killed and restarted", "", true, []string{"sh", "-c", killDaemon, "ovsdb-server"}, ""},
		{"ovs-vswitchd killed and restarted, flows restored", "br-tun", false, []string{"sh", "-c", killSwitchd, "ovs-vswitchd"}, ""},
		{"the dye port deleted by hand", "br-tun", true, []string{"ovs-vsctl", "del-port", "dye-br-tun"}, "dye-br-tun"},
		{"the dye port renumbered", "br-int", true, []string{"ovs-vsctl", "set", "interface", "dye-br-int", "ofport_request=777"}, ""},
		{"the hook deleted", "br-int", true, []string{"ovs-ofctl", "del-flows", "br-int", ourCookies}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := l.with(t)
			index := func() string {
				if tt.device == "" {
					return ""
				}
				return l.node("hv1", "cat", "/sys/class/net/"+tt.device+"/ifindex")
			}
			was := index()
			var before hook
			if tt.bridge != "" {
				before = l.hook("hv1", tt.bridge)
			}
			l.node("hv1", tt.argv...)
			if tt.whole {
				l.neverWrong()
			}
			eventually(t, tt.name+": all pairs healthy again", time.Minute, l.allSeen)
			if tt.bridge == "" {
				return
			}
			if after := l.hook("hv1", tt.bridge); after.Gaps <= before.Gaps && (tt.device == "" || index() != was) {
				t.Errorf("%s: of a gap nobody knows: %+v before, %+v after", tt.name, before, after)
			}
		})
	}
}

const ourCookies = "cookie=0x4479655400000000/0xffffffff00000000"

// neverWrong checks all pairs and wants no fault: what falls into a gap is unknown.
func (l *lab) neverWrong() {
	l.t.Helper()
	for _, p := range l.check(anyCode, "--all").Pairs {
		if p.Verdict != "healthy" && p.Verdict != "unknown" {
			l.t.Errorf("%v (want healthy, or unknown)", p)
		}
	}
}

// allSeen checks all pairs, and tells whether all are healthy and seen at every point.
func (l *lab) allSeen() bool {
	l.t.Helper()
	return !slices.ContainsFunc(l.check(anyCode, "--all").Pairs, func(p pair) bool {
		return p.Verdict != "healthy" || slices.ContainsFunc(p.Samples, func(s sample) bool { return !s.Seen })
	})
}

// TestNoFight has a tool on one host that deletes what it does not know every five seconds. It is left
// alone, and everybody told, until it is gone.
func TestNoFight(t *testing.T) {
	t.Parallel()
	l := up(t)
	// Of so many it comes in some pause, however slow this machine is: the last are longer than 20 s.
	const rounds = 8
	tool := make(chan struct{})
	t.Cleanup(func() { <-tool }) // before the lab is taken down
	go func() {
		defer close(tool)
		for i := range rounds {
			if i > 0 {
				select {
				case <-t.Context().Done():
					return
				case <-time.After(5 * time.Second): // the tool's own
				}
			}
			if r := l.dyetrace("lab", "exec", "hv1", "--", "ovs-ofctl", "del-flows", "br-tun", ourCookies); r.code != 0 {
				t.Errorf("del-flows: %s", r.stderr)
			}
		}
	}()
	var h hook
	eventually(t, "a hook that is left alone", time.Minute, func() bool {
		h = l.hook("hv1", "br-tun")
		return h.HeldMs > 0
	})
	if h.State == "live" || !strings.Contains(h.Reason, "so as not to fight") || h.Wipes < 4 {
		t.Errorf("left alone, and told is %+v", h)
	}
	// By now the first pause may be over, and will be followed by a longer one.
	eventually(t, "status says it", time.Minute, func() bool { return strings.Contains(l.dyetrace("status").stdout, "so as not to fight") })
	l.neverWrong()
	<-tool
	if h := l.hook("hv1", "br-tun"); h.Wipes >= rounds {
		t.Errorf("deleted %d times, of %d: nobody let it alone", h.Wipes, rounds)
	}
	// What the controller knows of the hook may be from before the last time.
	eventually(t, "peace", 2*time.Minute, l.allSeen)
	if h := l.hook("hv1", "br-tun"); h.State != "live" {
		t.Errorf("all is seen, and the hook is %+v", h)
	}
}
