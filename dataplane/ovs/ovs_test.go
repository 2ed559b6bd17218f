package ovs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/internal/sandbox"
)

// The tests share one ovsdb-server and one ovs-vswitchd with the netdev datapath, at
// their default paths in a sandbox; every test has bridges of its own. Those that
// restart a daemon are not parallel.
func TestMain(m *testing.M) { os.Exit(sandbox.Run(m)) }

// deadline is how long anything may take that a test waits for.
const deadline = 20 * time.Second

// daemon is a program that the tests start and kill.
type daemon struct {
	name string
	args []string
	cmd  *exec.Cmd
}

var (
	dbServer = daemon{name: "ovsdb-server", args: []string{stateDir + "/conf.db", "--remote=punix:" + DefaultRunDir + "/db.sock", "--pidfile", "--log-file=" + stateDir + "/ovsdb.log"}}
	vswitchd = daemon{name: "ovs-vswitchd", args: []string{"unix:" + DefaultRunDir + "/db.sock", "--pidfile", "--log-file=" + stateDir + "/vswitchd.log"}}
	starting sync.Mutex
	running  bool
)

const stateDir = "/run/ovs-test" // empty at the start, like all of the sandbox's /run

func (d *daemon) start(t testing.TB) {
	t.Helper()
	d.cmd = exec.Command(d.name, d.args...)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		t.Fatalf("%v (Debian: apt install openvswitch-switch)", err)
	}
}

// kill kills the daemon as a crash would, and waits until it is gone.
func (d *daemon) kill(t testing.TB) {
	t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	d.cmd.Wait() // its error is that it was killed
}

// startSwitch starts the shared switch, once.
func startSwitch(t testing.TB) {
	t.Helper()
	starting.Lock()
	defer starting.Unlock()
	if running {
		return
	}
	for _, dir := range []string{stateDir, DefaultRunDir, "/run/netns"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sandbox.Command(t, "ovsdb-tool", "create", stateDir+"/conf.db", "/usr/share/openvswitch/vswitch.ovsschema")
	dbServer.start(t)
	poll(t, "ovsdb-server's socket", func() bool { _, err := os.Stat(DefaultRunDir + "/db.sock"); return err == nil })
	version, err := sandbox.Version(exec.Command("ovs-vswitchd", "--version"))
	if err != nil {
		t.Fatal(err)
	}
	// As Open vSwitch's own start script does; ovs-vswitchd does not say it itself.
	sandbox.Command(t, "ovs-vsctl", "--no-wait", "init", "--", "set", "Open_vSwitch", ".", "ovs_version="+version)
	vswitchd.start(t)
	running = true
}

// poll waits for what has no event to wait for.
func poll(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			log, _ := os.ReadFile(stateDir + "/vswitchd.log")
			t.Fatalf("waited %v for %s; ovs-vswitchd said:\n%s", deadline, what, tail(string(log), 15))
		}
	}
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func vsctl(t testing.TB, args ...string) string {
	t.Helper()
	startSwitch(t)
	return strings.TrimSpace(sandbox.Command(t, "ovs-vsctl", append([]string{"--timeout=20"}, args...)...))
}

func ofctl(t testing.TB, args ...string) string {
	t.Helper()
	return sandbox.Command(t, "ovs-ofctl", append([]string{"-O", openFlowVersions}, args...)...)
}

var number atomic.Uint32

// addBridge adds a bridge with a name of its own and deletes it after the test.
func addBridge(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("b%d", number.Add(1))
	addBridges(t, name)
	return name
}

func addBridges(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		vsctl(t, "add-br", name, "--", "set", "bridge", name, "datapath_type=netdev")
		t.Cleanup(func() { vsctl(t, "--if-exists", "del-br", name) })
	}
}

// guest is a network namespace with one device, the other end of a tap on a bridge.
type guest struct{ ns, tap, mac, ip string }

func addGuest(t testing.TB, bridge, mac, ip string) guest {
	t.Helper()
	n := number.Add(1)
	g := guest{ns: fmt.Sprintf("g%d", n), tap: fmt.Sprintf("tap%d", n), mac: mac, ip: ip}
	ipcmd := func(args ...string) { t.Helper(); sandbox.Command(t, "ip", args...) }
	ipcmd("netns", "add", g.ns)
	t.Cleanup(func() { ipcmd("netns", "del", g.ns) })
	ipcmd("link", "add", g.tap, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", g.ns)
	// Nobody says a word unasked, neither the guest nor the kernel behind the tap.
	ipcmd("netns", "exec", g.ns, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
	writeFile(t, "/proc/sys/net/ipv6/conf/"+g.tap+"/disable_ipv6", "1")
	ipcmd("-n", g.ns, "link", "set", "lo", "up")
	ipcmd("-n", g.ns, "addr", "add", ip+"/24", "dev", "eth0")
	ipcmd("-n", g.ns, "link", "set", "eth0", "up")
	ipcmd("link", "set", g.tap, "up")
	vsctl(t, "add-port", bridge, g.tap, "--", "set", "interface", g.tap,
		"external_ids:iface-id=port-"+g.tap, `external_ids:attached-mac="`+mac+`"`)
	return g
}

// open opens the switch and runs it until the end of the test.
func open(t testing.TB) *Switch {
	t.Helper()
	startSwitch(t)
	ctx, cancel := context.WithCancel(context.Background())
	s, err := Open(ctx, Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run = %v, want nil", err)
			}
		case <-time.After(deadline):
			buf := make([]byte, 1<<20)
			t.Errorf("Run did not return:\n%s", buf[:runtime.Stack(buf, true)])
		}
	})
	return s
}

// await waits, on Changed, for a snapshot.
func await(t testing.TB, s *Switch, what string, done func(dataplane.Snapshot) bool) dataplane.Snapshot {
	t.Helper()
	timeout := time.After(deadline)
	for {
		if snap := s.Snapshot(); done(snap) {
			return snap
		}
		select {
		case <-s.Changed():
		case <-timeout:
			t.Fatalf("waited %v for %s; have %+v", deadline, what, s.Snapshot())
		}
	}
}

func awaitPort(t testing.TB, s *Switch, bridge, port string, done func(dataplane.Port) bool) dataplane.Port {
	t.Helper()
	var p dataplane.Port
	await(t, s, "port "+port, func(snap dataplane.Snapshot) bool {
		b, _ := snap.Bridge(bridge)
		var ok bool
		p, ok = b.Port(port)
		return ok && done(p)
	})
	return p
}

func hasOFPort(p dataplane.Port) bool { return p.OFPort != 0 }

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir := t.TempDir()
	tests := []struct {
		name string
		o    Options
		want string
	}{
		{"relative", Options{RunDir: "run"}, `ovs: RunDir "run": want an absolute path`},
		{"scheme", Options{DB: "/run/db.sock"}, `ovs: DB "/run/db.sock": want unix:PATH or tcp:HOST:PORT`},
		{"nobody there", Options{RunDir: dir}, "unix:" + dir + "/db.sock"},
	}
	for _, tt := range tests {
		if _, err := Open(ctx, tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Open = %v, want %s", tt.name, err, tt.want)
		}
	}
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	s := open(t)
	inner, outer := addBridge(t), addBridge(t)
	pi, po := "p"+inner, "p"+outer
	vsctl(t, "add-port", inner, pi, "--", "set", "interface", pi, "type=patch", "options:peer="+po,
		"--", "add-port", outer, po, "--", "set", "interface", po, "type=patch", "options:peer="+pi)
	tun := "t" + outer
	vsctl(t, "add-port", outer, tun, "--", "set", "interface", tun, "type=vxlan",
		"options:remote_ip=192.0.2.2", "options:local_ip=192.0.2.1", "options:key=flow")
	g := addGuest(t, inner, "fa:16:3e:00:00:01", "10.0.0.1")
	snap := await(t, s, "all ports", func(snap dataplane.Snapshot) bool {
		n := 0
		for _, name := range []string{inner, outer} {
			b, _ := snap.Bridge(name)
			for _, p := range b.Ports {
				if p.OFPort != 0 && (p.Name != g.tap || p.LinkState == "up") {
					n++
				}
			}
		}
		return n == 6
	})
	if snap.OVSVersion == "" || snap.Switchd == "" {
		t.Errorf("OVSVersion %q, Switchd %q: want both", snap.OVSVersion, snap.Switchd)
	}
	b, _ := snap.Bridge(inner)
	if b.DatapathType != "netdev" || b.UplinkBridge() != outer {
		t.Errorf("%s: datapath %q, uplink %q; want netdev, %s", inner, b.DatapathType, b.UplinkBridge(), outer)
	}
	tap, _ := b.Port(g.tap)
	want := dataplane.Port{
		Name: g.tap, ID: tap.ID, OFPort: 2, MAC: "fa:16:3e:00:00:01", IfaceID: "port-" + g.tap,
		LinkState: "up", MTU: tap.MTU, Role: tap.Role,
	}
	if tap != want || tap.Role.String() != "instance" || tap.ID == "" {
		t.Errorf("got %+v\nwant %+v, an instance", tap, want)
	}
	b, _ = snap.Bridge(outer)
	if tap.MTU != 1500 {
		t.Errorf("MTU %d, want 1500", tap.MTU)
	}
	if p, _ := b.Port(tun); !p.IsTunnel() || p.RemoteIP != "192.0.2.2" || p.LocalIP != "192.0.2.1" || p.Role.String() != "tunnel" {
		t.Errorf("tunnel: %+v", p)
	}
	if p, _ := b.Port(po); p.Peer != pi || p.PeerBridge != inner || p.Role.String() != "downlink" {
		t.Errorf("patch port: %+v", p)
	}
	if p, _ := b.Port(outer); p.OFPort != 65534 || p.Role.String() != "other" {
		t.Errorf("local port: %+v", p)
	}
}

func TestSync(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	for i := range 50 {
		id := fmt.Sprint(i)
		vsctl(t, "--no-wait", "set", "interface", bridge, "external_ids:iface-id="+id)
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		b, _ := s.Snapshot().Bridge(bridge)
		if p, _ := b.Port(bridge); p.IfaceID != id {
			t.Fatalf("after Sync: iface-id %q, want %q", p.IfaceID, id)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Sync(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Sync of a cancelled context = %v", err)
	}
}

// TestManaged is not parallel: it changes what all bridges' ports are taken for.
func TestManaged(t *testing.T) {
	s := open(t)
	bridge := addBridge(t)
	sandbox.Command(t, "ip", "link", "add", "plain", "type", "veth", "peer", "name", "plain-far")
	t.Cleanup(func() { sandbox.Command(t, "ip", "link", "del", "plain") })
	vsctl(t, "add-port", bridge, "plain")
	awaitPort(t, s, bridge, "plain", func(p dataplane.Port) bool { return p.Role == flows.Instance })
	vsctl(t, "set", "open_vswitch", ".", "external_ids:ovn-remote=tcp:192.0.2.1:6642")
	awaitPort(t, s, bridge, "plain", func(p dataplane.Port) bool { return p.Role == flows.Other })
	vsctl(t, "remove", "open_vswitch", ".", "external_ids", "ovn-remote")
	awaitPort(t, s, bridge, "plain", func(p dataplane.Port) bool { return p.Role == flows.Instance })
}

// TestRenumbered has a port come back with another number: Changed says so.
func TestRenumbered(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	g := addGuest(t, bridge, "fa:16:3e:00:00:01", "10.0.0.1")
	old := awaitPort(t, s, bridge, g.tap, hasOFPort)
	vsctl(t, "del-port", bridge, g.tap, "--", "--id=@i", "create", "interface", "name="+g.tap, "ofport_request=77",
		"--", "--id=@p", "create", "port", "name="+g.tap, "interfaces=@i", "--", "add", "bridge", bridge, "ports", "@p")
	now := awaitPort(t, s, bridge, g.tap, func(p dataplane.Port) bool { return p.OFPort == 77 })
	if now.ID == old.ID {
		t.Errorf("the interface has still ID %s", now.ID)
	}
	vsctl(t, "add-port", bridge, "nosuchdev")
	p := awaitPort(t, s, bridge, "nosuchdev", func(p dataplane.Port) bool { return p.Error != "" })
	if p.OFPort != 0 {
		t.Errorf("a port without a device has number %d, want 0", p.OFPort)
	}
}

// TestDatabaseRestarts is not parallel: all others need the database.
func TestDatabaseRestarts(t *testing.T) {
	s := open(t)
	bridge := addBridge(t)
	await(t, s, bridge, func(snap dataplane.Snapshot) bool { _, ok := snap.Bridge(bridge); return ok })
	for _, round := range []string{"one", "two"} {
		dbServer.kill(t)
		if _, ok := s.Snapshot().Bridge(bridge); !ok {
			t.Error("the last snapshot went with the database")
		}
		dbServer.start(t)
		poll(t, "ovsdb-server", func() bool { return exec.Command("ovs-vsctl", "--timeout=1", "show").Run() == nil })
		vsctl(t, "--no-wait", "set", "interface", bridge, "external_ids:iface-id="+round)
		awaitPort(t, s, bridge, bridge, func(p dataplane.Port) bool { return p.IfaceID == round })
	}
	if _, err := s.EnsureDyePort(t.Context(), bridge); err != nil {
		t.Errorf("after the database came back: %v", err)
	}
}

// TestSwitchRestarts kills ovs-vswitchd: Changed tells of another one, and the dye
// port, whose flags went with it (the device, a persistent TAP, did not), is made
// ready again. While there is none, a dye port can be removed, device and all.
func TestSwitchRestarts(t *testing.T) {
	s := open(t)
	bridge := addBridge(t)
	gone := addBridge(t)
	for _, name := range []string{bridge, gone} {
		if _, err := s.EnsureDyePort(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	old := await(t, s, "a switch", func(snap dataplane.Snapshot) bool { return snap.Switchd != "" })
	vswitchd.kill(t)
	await(t, s, "no switch", func(snap dataplane.Snapshot) bool { return snap.Switchd == "" })
	if err := s.RemoveDyePort(t.Context(), gone); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName(DyePortName(gone)); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("device of a removed dye port: %v, want that it is gone", err)
	}
	vswitchd.start(t)
	await(t, s, "another switch", func(snap dataplane.Snapshot) bool { return snap.Switchd != "" && snap.Switchd != old.Switchd })
	poll(t, "the dye port's device", func() bool { _, err := s.EnsureDyePort(t.Context(), bridge); return err == nil })
	after, err := s.EnsureDyePort(t.Context(), bridge)
	if err != nil {
		t.Fatal(err)
	}
	wantNoFlood(t, bridge, after.Name)
}

// wantNoFlood fails the test if a port is not no-flood.
func wantNoFlood(t testing.TB, bridge, port string) {
	t.Helper()
	// OpenFlow 1.0 is the only version that has the flag.
	if show := sandbox.Command(t, "ovs-ofctl", "-O", "OpenFlow10", "show", bridge); !strings.Contains(portOf(show, port), "NO_FLOOD") {
		t.Errorf("%s is not no-flood:\n%s", port, show)
	}
}

// portOf returns what ovs-ofctl show prints of one port.
func portOf(show, name string) string {
	_, rest, _ := strings.Cut(show, "("+name+")")
	text, _, _ := strings.Cut(rest, "speed:")
	return text
}

// TestRunLeavesNothing is not parallel: it counts goroutines and descriptors.
func TestRunLeavesNothing(t *testing.T) {
	startSwitch(t)
	count := func() (int, int) {
		fds, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(fds)
	}
	cycle := func() {
		ctx, cancel := context.WithCancel(context.Background())
		s, err := Open(ctx, Options{})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	}
	cycle()
	goroutines, fds := count()
	for range 5 {
		cycle()
	}
	poll(t, "goroutines to end", func() bool {
		g, f := count()
		return g <= goroutines && f <= fds
	})
}
