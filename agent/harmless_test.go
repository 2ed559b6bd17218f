package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/stain"
)

// furnish gives the bridge some of everything that another controller may have there: flows, with
// connection tracking in a zone of its own, a group, a meter, a mirror, a controller, a fail mode,
// settings; and a connection between its guests, which the returned function ends.
func (h *host) furnish() (zone uint32) {
	t, br := h.t, h.bridge
	t.Helper()
	zone = 1000 + number.Add(1)
	vsctl(t, "set-fail-mode", br, "secure", "--", "set-controller", br, fmt.Sprint("tcp:127.0.0.1:", zone),
		"--", "br-set-external-id", br, "owner", "somebody", "--", "set", "bridge", br, "other_config:mac-table-size=4096",
		"--", "--id=@p", "get", "port", h.guests[0].tap, "--", "--id=@m", "create", "mirror", "name=m-"+br, "select-src-port=@p", "output-vlan=4000",
		"--", "set", "bridge", br, "mirrors=@m")
	h.ofctl("add-group", br, "group_id=1,type=all,bucket=actions=output:1")
	sandbox.Command(t, "ovs-ofctl", "-O", "OpenFlow15", "add-meter", br, "meter=1,pktps,bands=type=drop,rate=1000000")
	h.ofctl("add-flow", br, fmt.Sprintf("cookie=0x11,priority=10,ip,actions=ct(commit,zone=%d),NORMAL", zone))
	h.ofctl("add-flow", br, "cookie=0x12,priority=0,actions=NORMAL")
	var l net.Listener
	var c net.Conn
	sandbox.Within(t, h.guests[1].ns, func() (err error) {
		l, err = net.Listen("tcp4", h.guests[1].ip.String()+":80")
		return err
	})
	t.Cleanup(func() { l.Close() })
	sandbox.Within(t, h.guests[0].ns, func() (err error) {
		c, err = net.DialTimeout("tcp4", l.Addr().String(), deadline)
		return err
	})
	t.Cleanup(func() { c.Close() })
	h.await("the connection, tracked", func() bool { return strings.Contains(h.tracked(zone), "state=ESTABLISHED") })
	return zone
}

// tracked are the tenants' connections in a zone; probes have port 11, or none.
func (h *host) tracked(zone uint32) string {
	h.t.Helper()
	var b strings.Builder
	for line := range strings.Lines(sandbox.Command(h.t, "ovs-appctl", "dpctl/dump-conntrack")) {
		if strings.Contains(line, fmt.Sprintf("zone=%d,", zone)) && strings.HasPrefix(line, "tcp") && !strings.Contains(line, "sport=11,dport=11") {
			b.WriteString(line)
		}
	}
	return b.String()
}

var age = regexp.MustCompile(`(?m)\s+\d+$`)

// belongings is all of the bridge that is not ours.
func (h *host) belongings(zone uint32) string {
	h.t.Helper()
	var b strings.Builder
	b.WriteString(h.foreign())
	for _, what := range []string{"dump-groups", "dump-meters"} {
		out := sandbox.Command(h.t, "ovs-ofctl", "-O", "OpenFlow15", what, h.bridge)
		b.WriteString(regexp.MustCompile(`\(xid=[^)]*\)`).ReplaceAllString(out, ""))
	}
	dye := ovs.DyePortName(h.bridge)
	for _, port := range strings.Fields(vsctl(h.t, "list-ports", h.bridge)) {
		if port != dye {
			fmt.Fprintln(&b, vsctl(h.t, "--columns=name,tag,trunks,external_ids,other_config", "list", "port", port))
			fmt.Fprintln(&b, vsctl(h.t, "--columns=name,type,ofport,options,external_ids,other_config,ingress_policing_rate", "list", "interface", port))
		}
	}
	fmt.Fprintln(&b, vsctl(h.t, "--columns=name,controller,fail_mode,mirrors,netflow,sflow,ipfix,flow_tables,protocols,external_ids,other_config", "list", "bridge", h.bridge))
	fmt.Fprintln(&b, vsctl(h.t, "--columns=target,external_ids", "find", "controller", fmt.Sprintf(`target="tcp:127.0.0.1:%d"`, zone)))
	fmt.Fprintln(&b, vsctl(h.t, "--columns=name,select_src_port,select_dst_port,output_vlan", "list", "mirror", "m-"+h.bridge))
	fmt.Fprintln(&b, vsctl(h.t, "get", "Open_vSwitch", ".", "external_ids"), vsctl(h.t, "get", "Open_vSwitch", ".", "other_config"))
	// By when they were last seen is how the switch sorts them.
	var learned []string
	for line := range strings.Lines(age.ReplaceAllString(sandbox.Command(h.t, "ovs-appctl", "fdb/show", h.bridge), "")) {
		if !strings.Contains(line, "LOCAL") {
			learned = append(learned, line)
		}
	}
	slices.Sort(learned)
	b.WriteString(strings.Join(learned, ""))
	b.WriteString(h.tracked(zone))
	return b.String()
}

func (h *host) same(when, want string, zone uint32) {
	h.t.Helper()
	if got := h.belongings(zone); got != want {
		h.t.Errorf("%s, what is not ours is\n%s\nwas\n%s", when, got, want)
	}
}

// What is not ours on a bridge is byte for byte what it was: with our hook there, after 10,000
// probes, after repairs, and after we left.
func TestBelongings(t *testing.T) {
	t.Parallel()
	h := prepareHost(t)
	zone := h.furnish()
	bare := h.belongings(zone)
	h.install()
	h.same("with the hook", bare, zone)
	const probes = 10_000
	h.begin(1, probes, 10*deadline)
	const kind, scheme = dyetracev1.PointKind_POINT_KIND_TO_INSTANCE, dyetracev1.Scheme_SCHEME_ICMP
	for i := uint32(0); i < probes; i += 500 {
		h.inject(1, scheme, false, i, i+500)
		h.await("probes", func() bool {
			n, _ := h.seen(1, kind, scheme)
			h.mu.Lock()
			defer h.mu.Unlock()
			return n+len(h.failed) >= int(i)+500
		})
	}
	h.same("after 10,000 probes", bare, zone)
	h.ofctl("del-flows", h.bridge, fmt.Sprintf("cookie=%#x/%#x", flows.Cookie, flows.CookieMask))
	if w := h.attest(); !w.Live {
		t.Errorf("not repaired: %v", w)
	}
	h.same("after a repair", bare, zone)
	if err := h.a.hooks.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.same("after removal", bare, zone)
	if left := h.ours(); len(left) > 0 || strings.Contains(vsctl(t, "list-ports", h.bridge), "dye") {
		t.Errorf("removed, and there is %v", left)
	}
}

// The environment of a victim: an agent in a process of its own that kills itself, as kill -9
// would, before one of the steps by which it changes its host.
const (
	victimBridge = "DYETRACE_TEST_VICTIM"
	victimStep   = "DYETRACE_TEST_VICTIM_STEP"
)

// mortal is a log whose process dies when it takes the step of that number, and says which it was.
type mortal struct {
	slog.Handler
	steps *atomic.Int64
	dies  int64
}

func (m mortal) Enabled(context.Context, slog.Level) bool { return true }

func (m mortal) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "changing the host" || m.steps.Add(1) != m.dies {
		return nil
	}
	r.Attrs(func(a slog.Attr) bool { fmt.Print(a, " "); return true })
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// victim installs, repairs, renews and removes a hook, unless it dies before.
func victim() error {
	ctx := context.Background()
	dies, err := strconv.ParseInt(os.Getenv(victimStep), 10, 64)
	if err != nil {
		return err
	}
	sw, err := ovs.Open(ctx, ovs.Options{Log: slog.New(mortal{slog.DiscardHandler, new(atomic.Int64), dies})})
	if err != nil {
		return err
	}
	go func() { _ = sw.Run(ctx) }() // until the process ends
	cfg := DefaultConfig()
	cfg.Host, cfg.Lease, cfg.Bridges = "hv1", minLease, []string{os.Getenv(victimBridge)}
	a := assemble(cfg, "test", sw, prometheus.NewRegistry(), testLog(nil))
	live := func() error {
		a.hooks.look(ctx, true)
		b := a.hooks.get(cfg.Bridges[0])
		if b == nil {
			return errors.New("no bridge")
		}
		s := b.state.Load()
		if s.hook != dyetracev1.HookState_HOOK_STATE_LIVE || s.absent != "" || len(s.unsampled) > 0 {
			return fmt.Errorf("hook %v: %s; to-instance: %s %v", s.hook, s.reason, s.absent, s.unsampled)
		}
		return nil
	}
	if err := a.hooks.setStain(ctx, stain.Default()); err != nil {
		return err
	}
	if err := live(); err != nil {
		return err
	}
	b := a.hooks.get(cfg.Bridges[0])
	for b.watched.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	ours, err := sw.DumpOurs(ctx, b.name)
	if err != nil {
		return err
	}
	if err := sw.Apply(ctx, b.name, nil, ours[:len(ours)/2]); err != nil { // somebody else
		return err
	}
	if err := live(); err != nil {
		return err
	}
	b.mu.Lock()
	b.renewed = time.Time{}
	b.mu.Unlock()
	if err := live(); err != nil {
		return err
	}
	return a.hooks.remove(ctx)
}

// An agent that is killed at whatever step leaves nothing behind that does not go by itself within
// the lease, and that the next agent does not take over; what is not ours stays.
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	h := prepareHost(t)
	zone := h.furnish()
	bare := h.belongings(zone)
	aged := false
	for step, over := 1, false; !over; step++ {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), victimBridge+"="+h.bridge, fmt.Sprint(victimStep, "=", step))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil:
			over = true // there is no such step
			// The port, four things about its device, no-flood, flows, their repair, the lease,
			// flows and the port again.
			if step < 12 {
				t.Errorf("a hook has %d steps: the test has lost sight of some", step-1)
			}
		case !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled():
			t.Fatalf("step %d: %v\n%s", step, err, out)
		}
		what := strings.TrimSpace(string(out))
		h.same("killed before "+what, bare, zone)
		left := h.ours()
		for _, f := range left {
			if f.HardTimeout == 0 || time.Duration(f.HardTimeout)*time.Second > minLease {
				t.Errorf("killed before %s: left for good: %v", what, f)
			}
		}
		if over && len(left) > 0 {
			t.Errorf("ended, and left %v", left)
		}
		if !aged && len(left) > 10 {
			aged = true
			h.await("ours to age out", func() bool { return len(h.ours()) == 0 })
			h.same("aged out", bare, zone)
		}
		h.install() // the next agent
		if n := len(h.ours()); n != len(h.hooked().want) {
			t.Errorf("killed before %s: the next agent has %d flows, want %d", what, n, len(h.hooked().want))
		}
		if err := h.a.hooks.remove(t.Context()); err != nil {
			t.Errorf("killed before %s: %v", what, err)
		}
		h.same("killed before "+what+", and the next agent has come and gone", bare, zone)
		if left := h.ours(); len(left) > 0 {
			t.Errorf("killed before %s: the next agent has come, gone, and left %v", what, left)
		}
	}
	if !aged {
		t.Error("no victim left a hook behind")
	}
}
