package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/bpf"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/dataplane/packetio"
	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/stain"
)

// The tests that need a switch share one ovsdb-server and one ovs-vswitchd with the
// netdev datapath, in a sandbox; each has a bridge and an agent of its own.
func TestMain(m *testing.M) {
	if os.Getenv(victimBridge) != "" {
		if err := victim(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(sandbox.Run(m))
}

// deadline is how long anything may take that a test waits for.
const deadline = 20 * time.Second

const stateDir = "/run/ovs-test" // empty at the start, like all of the sandbox's /run

// startSwitch starts the shared switch; the sandbox's end is its own.
var startSwitch = sync.OnceValue(func() error {
	for _, dir := range []string{stateDir, ovs.DefaultRunDir, "/run/netns"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	db := "unix:" + ovs.DefaultRunDir + "/db.sock"
	schema, server, switchd, libraries := "/usr/share/openvswitch/vswitch.ovsschema", "ovsdb-server", "ovs-vswitchd", ""
	if root := os.Getenv(oldSwitch); root != "" {
		schema, server, switchd = root+schema, root+"/usr/sbin/ovsdb-server", root+"/usr/lib/openvswitch-switch/ovs-vswitchd"
		libraries = root + "/lib/x86_64-linux-gnu"
	}
	program := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		if libraries != "" && strings.HasPrefix(name, "/") {
			cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+libraries)
		}
		return cmd
	}
	version, err := sandbox.Version(program(switchd, "--version"))
	if err != nil {
		return fmt.Errorf("%w (Debian: apt install openvswitch-switch)", err)
	}
	for _, command := range [][]string{
		{"ovsdb-tool", "create", stateDir + "/conf.db", schema},
		{server, stateDir + "/conf.db", "--remote=p" + db, "--pidfile", "--detach", "--log-file=" + stateDir + "/ovsdb.log"},
		{"ovs-vsctl", "--no-wait", "init", "--", "set", "Open_vSwitch", ".", "ovs_version=" + version},
		{switchd, db, "--pidfile", "--detach", "--log-file=" + stateDir + "/vswitchd.log", "--enable-dummy"},
	} {
		if out, err := program(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", command[0], err, out)
		}
	}
	return nil
})

// host is an agent that keeps one bridge with two guests, and what it says. There is
// no controller: tests ask in its place.
type host struct {
	t      testing.TB
	a      *Agent
	bridge string
	guests [2]guest
	reg    *prometheus.Registry

	mu      sync.Mutex
	samples []*dyetracev1.Samples
	armed   map[uint64]string // errors, by id
	failed  []string          // injections
}

// guest is a network namespace with one device, the other end of a tap on the bridge.
type guest struct {
	ns, tap string
	mac     stain.MAC
	ip, ip6 netip.Addr
}

var number atomic.Uint32

// newHost returns a host whose hook is live.
func newHost(t testing.TB) *host { return prepareHost(t).install() }

// prepareHost returns a host whose agent has done nothing yet.
func prepareHost(t testing.TB) *host {
	t.Helper()
	if err := startSwitch(); err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, bridge: fmt.Sprintf("b%d", number.Add(1)), armed: make(map[uint64]string)}
	vsctl(t, "add-br", h.bridge, "--", "set", "bridge", h.bridge, "datapath_type=netdev")
	t.Cleanup(func() { vsctl(t, "del-br", h.bridge) })
	for i := range h.guests {
		h.guests[i] = h.addGuest(byte(i + 1))
	}
	sw, err := ovs.Open(t.Context(), ovs.Options{Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Host, cfg.Bridges = "hv1", []string{h.bridge}
	h.reg = prometheus.NewRegistry()
	h.a = assemble(cfg, "test", sw, h.reg, testLog(t))
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := sw.Run(ctx); err != nil {
			t.Errorf("switch: %v", err)
		}
	})
	parts.Go(func() { h.listen(ctx) })
	t.Cleanup(func() {
		h.a.open.close()
		if err := h.a.hooks.remove(context.Background()); err != nil {
			t.Error(err)
		}
		cancel()
		parts.Wait()
	})
	h.a.outbox.open.Store(true)
	return h
}

// install has the agent install its hook.
func (h *host) install() *host {
	t := h.t
	t.Helper()
	if err := h.a.hooks.setStain(t.Context(), stain.Default()); err != nil {
		t.Fatal(err)
	}
	h.await("the hook, and sampling at both guests", func() bool {
		h.a.hooks.reconcile(t.Context())
		b := h.a.hooks.get(h.bridge)
		if b == nil {
			return false
		}
		s := b.state.Load()
		return s.hook == dyetracev1.HookState_HOOK_STATE_LIVE && s.absent == "" && h.tapped(0) && h.tapped(1)
	})
	return h
}

func (h *host) tapped(i int) bool {
	return h.a.hooks.taps.unsampled(portKey{h.bridge, h.guests[i].tap}) == ""
}

func (h *host) addGuest(last byte) guest {
	t, n := h.t, number.Add(1)
	// Addresses of its own: a switch that loses a port forgets on all bridges what it learned of it.
	g := guest{
		ns: fmt.Sprintf("g%d", n), tap: fmt.Sprintf("tap%d", n), mac: stain.MAC{0xfa, 0x16, 0x3e, byte(n >> 8), byte(n), last},
		ip: netip.AddrFrom4([4]byte{10, 0, 0, last}), ip6: netip.AddrFrom16([16]byte{0: 0xfd, 15: last}),
	}
	ip := func(args ...string) { t.Helper(); sandbox.Command(t, "ip", args...) }
	ip("netns", "add", g.ns)
	t.Cleanup(func() { ip("netns", "del", g.ns) })
	ip("link", "add", g.tap, "type", "veth", "peer", "name", "eth0", "address", g.mac.String(), "netns", g.ns)
	ip("netns", "exec", g.ns, "ethtool", "-K", "eth0", "tx", "off") // the userspace datapath fills in no checksum
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+g.tap+"/disable_ipv6", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	ip("-n", g.ns, "addr", "add", g.ip.String()+"/24", "dev", "eth0")
	ip("-n", g.ns, "addr", "add", g.ip6.String()+"/64", "dev", "eth0", "nodad")
	ip("-n", g.ns, "link", "set", "eth0", "up")
	ip("link", "set", g.tap, "up")
	vsctl(t, "add-port", h.bridge, g.tap, "--", "set", "interface", g.tap,
		"external_ids:iface-id=port-"+g.tap, `external_ids:attached-mac="`+g.mac.String()+`"`)
	return g
}

// listen takes what the agent says until ctx ends.
func (h *host) listen(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-h.a.outbox.queue:
			h.mu.Lock()
			switch m := m.Message.(type) {
			case *dyetracev1.SessionRequest_Samples:
				h.samples = append(h.samples, m.Samples)
			case *dyetracev1.SessionRequest_Armed:
				h.armed[m.Armed.Id] = m.Armed.Error
			case *dyetracev1.SessionRequest_Injected:
				for _, f := range m.Injected.Failures {
					h.failed = append(h.failed, f.Reason)
				}
			}
			h.mu.Unlock()
		}
	}
}

// heard returns when listen has taken in all that is on its way to the controller now.
func (h *host) heard() {
	h.t.Helper()
	last := &dyetracev1.Armed{Id: uint64(number.Add(1))}
	h.await("room for one more", func() bool {
		return h.a.outbox.offer(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Armed{Armed: last}})
	})
	h.await("all that was sent", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		_, ok := h.armed[last.Id]
		return ok
	})
}

// await polls for what has no event to wait for.
func (h *host) await(what string, done func() bool) {
	h.t.Helper()
	for end := time.Now().Add(deadline); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("waited %v for %s", deadline, what)
		}
	}
}

// begin prepares a run of so many probes.
func (h *host) begin(run uint64, total uint32, expires time.Duration) {
	h.t.Helper()
	p := prepare(run, total)
	p.ExpiresMs = uint32(expires / time.Millisecond)
	if err := h.a.runs.add(p, time.Now()); err != nil {
		h.t.Fatal(err)
	}
}

// arm asks, and returns the error in the answer.
func (h *host) arm(req *dyetracev1.Arm) string {
	h.t.Helper()
	req.Id = uint64(number.Add(1))
	h.a.arm(h.t.Context(), req)
	var said string
	h.await("Armed", func() (ok bool) {
		h.mu.Lock()
		defer h.mu.Unlock()
		said, ok = h.armed[req.Id]
		return ok
	})
	return said
}

// inject sends the probes from, from+1, … below to, from the first guest to the second.
func (h *host) inject(run uint64, scheme dyetracev1.Scheme, ipv6 bool, from, to uint32) {
	h.t.Helper()
	h.a.inject(h.t.Context(), h.injection(run, scheme, ipv6, from, to))
}

// injection is what inject asks the agent for.
func (h *host) injection(run uint64, scheme dyetracev1.Scheme, ipv6 bool, from, to uint32) *dyetracev1.Inject {
	a, b := h.guests[0], h.guests[1]
	src, dst := a.ip, b.ip
	if ipv6 {
		src, dst = a.ip6, b.ip6
	}
	req := &dyetracev1.Inject{Run: run, Scheme: scheme, SettleMs: 50, Rate: 2000, Ports: []*dyetracev1.PortRef{h.port(0)}}
	for i := from; i < to; i++ {
		req.Index = append(req.Index, i)
		req.Port = append(req.Port, 0)
		req.SrcMac, req.DstMac = append(req.SrcMac, a.mac.Uint64()), append(req.DstMac, b.mac.Uint64())
		req.SrcIp, req.DstIp = append(req.SrcIp, as16(src)...), append(req.DstIp, as16(dst)...)
		req.Ttl = append(req.Ttl, 64)
	}
	return req
}

func as16(a netip.Addr) []byte { b := a.As16(); return b[:] }

func (h *host) port(i int) *dyetracev1.PortRef {
	return &dyetracev1.PortRef{Bridge: h.bridge, Port: h.guests[i].tap}
}

// seen counts the samples of a run's probes at a kind of point: probes, and in all.
func (h *host) seen(run uint64, kind dyetracev1.PointKind, scheme dyetracev1.Scheme) (probes, samples int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	index := make(map[uint32]bool)
	for _, m := range h.samples {
		for i := range m.Index {
			if m.Run == run && m.Kind[i] == kind && m.Scheme[i] == scheme && !m.Reply[i] {
				index[m.Index[i]] = true
				samples++
			}
		}
	}
	return len(index), samples
}

// capture returns all that comes in at the second guest's device, in its namespace,
// until the test ends.
func (h *host) capture() <-chan []byte {
	t := h.t
	t.Helper()
	var port *packetio.Port
	sandbox.Within(t, h.guests[1].ns, func() (err error) {
		port, err = packetio.Open("eth0", packetio.Options{Filter: []bpf.Instruction{bpf.RetConstant{Val: 1 << 18}}})
		return err
	})
	frames := make(chan []byte, 1<<16)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(frames)
		for port.Receive(func(f []byte, _ int64) { frames <- bytes.Clone(f) }) == nil {
		}
	})
	t.Cleanup(func() {
		if _, dropped := port.Stats(); dropped > 0 {
			t.Errorf("the capture dropped %d frames", dropped)
		}
		port.Close()
		reader.Wait()
	})
	return frames
}

// stainedToken returns the token of a frame that has the marks of a probe, or what withdraws
// one, on its way to a guest.
func stainedToken(frame []byte) (token uint32, ok bool) {
	f := slices.Concat([]byte{stain.CopyDst, byte(stain.ToInstance) | stain.CopyMark, 0, 0, 0, 0, stain.CopySrc, 0, 0, 0, 0, 0}, frame[12:])
	var c stain.Copy
	err := stain.Default().ParseCopy(f, &c)
	return c.Token, err == nil && !c.Reply
}

func vsctl(t testing.TB, args ...string) string {
	t.Helper()
	return strings.TrimSpace(sandbox.Command(t, "ovs-vsctl", append([]string{"--timeout=20"}, args...)...))
}

// pipe runs a program with text for its input.
func pipe(t testing.TB, text, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func testLog(t testing.TB) *slog.Logger {
	if _, measures := t.(*testing.B); measures || t == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func windowOf(windows []*dyetracev1.HookWindow, bridge string) *dyetracev1.HookWindow {
	for _, w := range windows {
		if w.Bridge == bridge {
			return w
		}
	}
	return nil
}

func columns(addr netip.Addr, from, to uint32) (index []uint32, dst []byte) {
	for i := from; i < to; i++ {
		index, dst = append(index, i), append(dst, as16(addr)...)
	}
	return index, dst
}
