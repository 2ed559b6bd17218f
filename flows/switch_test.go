package flows

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// vswitch is a private Open vSwitch: its own ovsdb-server and ovs-vswitchd, all
// files in one temporary directory, ports that exist in memory only (the dummy
// datapath that Open vSwitch has for its own tests). It needs no privilege. A test
// has one to itself: bridges of one ovs-vswitchd are not independent (to delete one
// drops the megaflows of all, and what they have learned of the same addresses).
type vswitch struct {
	dir     string
	cancel  context.CancelFunc
	daemons []*exec.Cmd
	bridges atomic.Int32
}

// newSwitch starts a switch, which ends with the test. Where Open vSwitch is not
// installed the test fails: it could be.
func newSwitch(t testing.TB) *vswitch {
	t.Helper()
	sw, err := startSwitch()
	if err != nil {
		t.Fatalf("start Open vSwitch (Debian: apt install openvswitch-switch): %v", err)
	}
	t.Cleanup(func() {
		if err := sw.stop(); err != nil {
			t.Errorf("stop Open vSwitch: %v", err)
		}
	})
	return sw
}

// patience bounds every wait of these tests. Nothing takes as long: it is there
// for a test to fail rather than hang.
const patience = time.Minute

func startSwitch() (*vswitch, error) {
	dir, err := os.MkdirTemp("", "flows-ovs-") // short: paths of sockets have 107 bytes
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	sw := &vswitch{dir: dir, cancel: cancel}
	if err := sw.start(ctx); err != nil {
		return nil, errors.Join(err, sw.stop())
	}
	return sw, nil
}

func (sw *vswitch) start(ctx context.Context) error {
	schema := "/usr/share/openvswitch/vswitch.ovsschema"
	if _, err := sw.run("ovsdb-tool", "create", sw.path("conf.db"), schema); err != nil {
		return err
	}
	if err := sw.daemon(ctx, "ovsdb-server", sw.path("conf.db"), "--remote=p"+sw.db()); err != nil {
		return err
	}
	// A client that comes too early tries again only after a second.
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(sw.path("db.sock")); err == nil {
			break
		} else if time.Now().After(deadline) {
			return fmt.Errorf("ovsdb-server does not listen: %w", err)
		}
	}
	if _, err := sw.run("ovs-vsctl", "--retry", "--timeout=60", "--db="+sw.db(), "--no-wait", "init"); err != nil {
		return err
	}
	if err := sw.daemon(ctx, "ovs-vswitchd", sw.db(), "--enable-dummy=override", "--disable-system", "--disable-system-route"); err != nil {
		return err
	}
	// Ready once it has answered the database (--timeout bounds the wait). Megaflows
	// stay: by default they go after 10 s without a packet, and at once if they had
	// few packets and the machine is slow (ovs-vswitchd.conf.db(5)).
	_, err := sw.run("ovs-vsctl", "--timeout=60", "--db="+sw.db(), "set", "Open_vSwitch", ".",
		"other_config:max-idle=600000", "other_config:min-revalidate-pps=0")
	return err
}

func (sw *vswitch) path(name string) string { return filepath.Join(sw.dir, name) }
func (sw *vswitch) db() string              { return "unix:" + sw.path("db.sock") }

// daemon starts a daemon in the foreground, which ends with us whatever happens.
func (sw *vswitch) daemon(ctx context.Context, name string, args ...string) error {
	args = append(args, "--unixctl="+sw.path(name+".ctl"), "--log-file="+sw.path(name+".log"), "-vconsole:off")
	cmd := sw.command(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	sw.daemons = append(sw.daemons, cmd)
	return nil
}

func (sw *vswitch) stop() error {
	sw.cancel()
	for _, cmd := range sw.daemons {
		if err := cmd.Wait(); errors.Is(err, exec.ErrWaitDelay) {
			return fmt.Errorf("%s: %w", cmd.Path, err)
		}
	}
	return os.RemoveAll(sw.dir)
}

func (sw *vswitch) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+sw.dir, "OVS_DBDIR="+sw.dir, "OVS_LOGDIR="+sw.dir, "OVS_SYSCONFDIR="+sw.dir,
		"PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if cmd.Err != nil { // not in PATH: Debian has the daemons in /usr/sbin
		if _, err := os.Stat("/usr/sbin/" + name); err == nil {
			cmd.Path, cmd.Err = "/usr/sbin/"+name, nil
		}
	}
	return cmd
}

func (sw *vswitch) run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var stderr bytes.Buffer
	cmd := sw.command(ctx, name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

func (sw *vswitch) must(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := sw.run(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (sw *vswitch) vsctl(t testing.TB, args ...string) string {
	t.Helper()
	return sw.must(t, "ovs-vsctl", append([]string{"--timeout=60", "--db=" + sw.db()}, args...)...)
}

func (sw *vswitch) appctl(t testing.TB, args ...string) string {
	t.Helper()
	return sw.must(t, "ovs-appctl", append([]string{"-t", sw.path("ovs-vswitchd.ctl")}, args...)...)
}

type bridge struct {
	sw   *vswitch
	name string
}

// newBridge adds a bridge without flows.
func (sw *vswitch) newBridge(t testing.TB) bridge {
	t.Helper()
	br := bridge{sw, fmt.Sprintf("br%d", sw.bridges.Add(1))}
	// secure: no NORMAL flow but that of the test.
	sw.vsctl(t, "add-br", br.name, "--", "set-fail-mode", br.name, "secure")
	return br
}

// addPort adds a port with an OpenFlow number. Its name is name and the bridge's;
// packets that leave by a port of type dummy go to a file that sent reads.
func (br bridge) addPort(t testing.TB, name string, ofport uint16, settings ...string) {
	t.Helper()
	p := br.port(name)
	args := []string{"add-port", br.name, p, "--", "set", "Interface", p, fmt.Sprintf("ofport_request=%d", ofport)}
	if len(settings) == 0 {
		settings = []string{"type=dummy", "options:tx_pcap=" + br.sw.path(p+".pcap")}
	}
	br.sw.vsctl(t, append(args, settings...)...)
	if got := strings.TrimSpace(br.sw.vsctl(t, "get", "Interface", p, "ofport")); got != fmt.Sprint(ofport) {
		t.Fatalf("%s: ofport %s, want %d", p, got, ofport)
	}
}

func (br bridge) port(name string) string { return br.name + "-" + name }

// dummyQueue is how many frames a port of type dummy takes at once without losing
// any (it holds 100; NETDEV_DUMMY_MAX_QUEUE in lib/netdev-dummy.c).
const dummyQueue = 100

// receive makes frames come in by a port, at most dummyQueue of them.
func (br bridge) receive(t testing.TB, port string, frames ...[]byte) {
	t.Helper()
	args := []string{"netdev-dummy/receive", br.port(port)}
	for _, f := range frames {
		args = append(args, hex.EncodeToString(f))
	}
	br.sw.appctl(t, args...)
}

// sent returns the frames that have left by a port.
func (br bridge) sent(t testing.TB, port string) [][]byte {
	t.Helper()
	b, err := os.ReadFile(br.sw.path(br.port(port) + ".pcap"))
	if err != nil {
		t.Fatal(err)
	}
	var frames [][]byte
	for b = b[min(24, len(b)):]; len(b) >= 16; { // file header, then packet headers
		size := int(binary.NativeEndian.Uint32(b[8:]))
		if len(b) < 16+size {
			break // being written
		}
		frames = append(frames, b[16:16+size])
		b = b[16+size:]
	}
	return frames
}

// eventually polls until done, or fails the test.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// addForeign adds flows, and groups, as another controller would.
func (br bridge) addForeign(t testing.TB, flows []Flow, groups []string) {
	t.Helper()
	for _, g := range groups {
		br.sw.must(t, "ovs-ofctl", "-O", "OpenFlow15", "add-group", br.name, strings.TrimSpace(g))
	}
	br.bundle(t, flows, Flow.AddLine)
}

// bundle applies a line for each flow in one atomic bundle.
func (br bridge) bundle(t testing.TB, flows []Flow, line func(Flow) string) {
	t.Helper()
	if out, err := br.tryBundle(t, flows, line); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func (br bridge) tryBundle(t testing.TB, flows []Flow, line func(Flow) string) (string, error) {
	t.Helper()
	var text strings.Builder
	for _, f := range flows {
		text.WriteString(line(f) + "\n")
	}
	file := filepath.Join(t.TempDir(), "bundle")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return br.sw.run("ovs-ofctl", "bundle", br.name, file)
}

// dump returns the bridge's flows, in a version of OpenFlow.
func (br bridge) dump(t testing.TB, version string) []Flow {
	t.Helper()
	flows, err := ParseDump(br.sw.must(t, "ovs-ofctl", "-O", version, "--no-names", "dump-flows", br.name))
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

// trace returns what ofproto/trace says of a packet: the megaflow and the datapath
// actions, of every recirculation.
func (br bridge) trace(t testing.TB, packet string) (megaflow, actions string) {
	t.Helper()
	out := br.sw.appctl(t, "ofproto/trace", br.name, packet)
	for line := range strings.Lines(out) {
		if s, ok := strings.CutPrefix(line, "Megaflow: "); ok {
			megaflow += s
		}
		if s, ok := strings.CutPrefix(line, "Datapath actions: "); ok {
			actions += s
		}
	}
	if megaflow == "" || actions == "" {
		t.Fatalf("trace of %s:\n%s", packet, out)
	}
	return megaflow, actions
}
