package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// up raises a bare lab for one test.
func up(t *testing.T, name string) *Lab { return upAs(t, name, DefaultName) }

// upAs is up for a topology.
func upAs(t *testing.T, name, topology string) *Lab {
	t.Helper()
	l, err := Up(t.Context(), Options{Name: name, Topology: topology, Bare: true, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		checkNothingLeft(t, l.Dir())
	})
	return l
}

// checkNothingLeft looks for what a lab could leave on the host.
func checkNothingLeft(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state directory: %v, want it gone", err)
	}
	for _, pid := range processesOf(t, dir) {
		text, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		t.Errorf("process %s is left: %q", pid, strings.ReplaceAll(string(text), "\x00", " "))
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Errorf("mounts below %s are left:\n%s", dir, mounts)
	}
}

// processesOf returns the processes that see a lab's state directory mounted: those in its
// nodes, whatever they are.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, e := range entries {
		mounts, err := os.ReadFile(filepath.Join("/proc", e.Name(), "mounts"))
		if err == nil && strings.Contains(string(mounts), dir+" ") {
			pids = append(pids, e.Name())
		}
	}
	return pids
}

// hostNetwork describes what of the host's network a lab could disturb.
func hostNetwork(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, file := range []string{"/proc/net/dev", "/proc/net/route"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			name, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
			if rest == "" {
				name = line // a route
			}
			fmt.Fprintln(&b, strings.TrimSpace(name))
		}
	}
	names, _ := filepath.Glob("/run/netns/*")
	fmt.Fprintln(&b, names)
	return b.String()
}

// allPairs returns all ordered pairs of instances, also those that must not reach each other.
func allPairs(s *overlay.Spec) []overlay.Pair {
	var pairs []overlay.Pair
	for _, a := range s.Instances {
		for _, b := range s.Instances {
			if a.Name != b.Name {
				pairs = append(pairs, overlay.Pair{Src: a, Dst: b})
			}
		}
	}
	return pairs
}

func TestUp(t *testing.T) {
	before := hostNetwork(t)
	l := up(t, "up")
	t.Logf("a bare lab was up after %v", l.Took().Round(10*time.Millisecond))
	if limit := 2 * time.Minute; l.Took() > limit {
		t.Errorf("it took %v, want less than %v even on a busy machine", l.Took(), limit)
	}
	if diff := cmp.Diff(before, hostNetwork(t)); diff != "" {
		t.Errorf("the host's network changed (-before +after):\n%s", diff)
	}
	if _, err := Up(t.Context(), Options{Name: "up", Bare: true}); !errors.Is(err, ErrExists) {
		t.Errorf("Up of a lab that is up: %v, want %v", err, ErrExists)
	}
	t.Run("pairs", func(t *testing.T) { testPairs(t, l) })
	t.Run("isolation", func(t *testing.T) { testIsolation(t, l, 32) })
	t.Run("tcp", func(t *testing.T) { testTCP(t, l) })
	t.Run("flows", func(t *testing.T) { testFlowsAccepted(t, l) })
	t.Run("golden", func(t *testing.T) { testGolden(t, l) })
	t.Run("learning", func(t *testing.T) { testLearning(t, l) })
	t.Run("addresses", func(t *testing.T) { testAddresses(t, l) })
	t.Run("quiet", func(t *testing.T) { testQuiet(t, l) })
	t.Run("exec", func(t *testing.T) { testExec(t, l) })
	t.Run("inventory", func(t *testing.T) { testInventory(t, l) })
}

// testPairs checks that the pairs of the design, and no others, are there, and that routers
// cost one of the TTL.
func testPairs(t *testing.T, l *Lab) {
	pairs := l.Overlay().Pairs()
	routed, red := 0, 0
	for _, p := range pairs {
		if p.Routed() {
			routed++
		}
		if p.Src.Network == "red" {
			red++
		}
	}
	if len(pairs) != 58 || routed != 32 || red != 2 {
		t.Fatalf("%d pairs, %d routed, %d red, want 58, 32 and 2", len(pairs), routed, red)
	}
	for _, v := range overlay.Versions() {
		if n := len(l.Overlay().PairsOver(v)); n != len(pairs) {
			t.Errorf("%d pairs over IPv%d, want all %d", n, v, len(pairs))
		}
		checkPairs(t, l, v)
	}
}

// checkPairs pings all pairs over a version, and looks where requests arrive, and with what TTL.
func checkPairs(t *testing.T, l *Lab, v overlay.Version) {
	t.Helper()
	echoes, err := l.Echo(t.Context(), v, l.Overlay().PairsOver(v), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range echoes {
		ttl := 64
		if e.Routed() {
			ttl--
		}
		if !e.Answered || e.TTL != ttl || !slices.Equal(e.At, []string{e.Dst.Name}) {
			t.Errorf("%s to %s over IPv%d: answered %v, TTL %d, arrived at %v; want an answer, TTL %d, at it alone",
				e.Src.Name, e.Dst.Name, v, e.Answered, e.TTL, e.At, ttl)
		}
	}
}

// testIsolation checks that nothing of one tenant arrives at another, although the addresses
// are the same.
func testIsolation(t *testing.T, l *Lab, want int) {
	var foreign []overlay.Pair
	for _, p := range allPairs(l.Overlay()) {
		if !l.Overlay().Joined(p.Src.Network, p.Dst.Network) {
			foreign = append(foreign, p)
		}
	}
	if len(foreign) != want {
		t.Fatalf("%d foreign pairs, want %d", len(foreign), want)
	}
	for _, v := range overlay.Versions() {
		checkIsolated(t, l, v, foreign)
	}
}

func checkIsolated(t *testing.T, l *Lab, v overlay.Version, foreign []overlay.Pair) {
	t.Helper()
	arrived := 0
	for patience := 500 * time.Millisecond; arrived == 0 && patience < time.Minute; patience *= 6 {
		echoes, err := l.Echo(t.Context(), v, foreign, patience)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range echoes {
			for _, at := range e.At {
				i, _ := l.Overlay().Instance(at)
				if arrived++; !l.Overlay().Joined(e.Src.Network, i.Network) {
					t.Errorf("%s, sent to %s of %s, arrived at %s of %s", e.Src.Name, e.Dst.IP.Of(v), e.Dst.Network, at, i.Network)
				}
			}
		}
	}
	// blue-1 to the address of red-2 must have reached blue-2, or nothing was tested.
	if arrived == 0 {
		t.Errorf("no request arrived anywhere over IPv%d, although addresses are shared", v)
	}
}

// testTCP opens real connections between all pairs, over each version.
func testTCP(t *testing.T, l *Lab) {
	for _, v := range overlay.Versions() {
		t.Run(fmt.Sprintf("IPv%d", v), func(t *testing.T) {
			t.Parallel()
			for n, p := range l.Overlay().PairsOver(v) {
				checkConnection(t, l, v, p, uint16(1000+n))
			}
		})
	}
}

// checkConnection sends more than one segment, so that some are full.
func checkConnection(t *testing.T, l *Lab, v overlay.Version, p overlay.Pair, port uint16) {
	t.Helper()
	at := netip.AddrPortFrom(p.Dst.IP.Of(v), port)
	listener := listenIn(t, l, p.Dst.Name, at)
	got := make(chan string, 1)
	go func() { got <- listener.serveOnce() }()
	sent := strings.Repeat("0123456789", 1000)
	conn, err := dialIn(l, p.Src.Name, at, 10*time.Second)
	if err != nil {
		listener.close()
		t.Errorf("%s to %s over IPv%d: %v", p.Src.Name, p.Dst.Name, v, err)
		return
	}
	_, err = io.WriteString(conn, sent)
	if err := errors.Join(err, conn.Close()); err != nil {
		t.Errorf("%s to %s over IPv%d: %v", p.Src.Name, p.Dst.Name, v, err)
	}
	if text := <-got; text != sent {
		t.Errorf("%s to %s over IPv%d: received %d bytes, want the %d sent", p.Src.Name, p.Dst.Name, v, len(text), len(sent))
	}
}

// testFlowsAccepted checks that Open vSwitch holds exactly the flows that package overlay
// made, no more, no less, apart from what it learned.
func testFlowsAccepted(t *testing.T, l *Lab) {
	for _, h := range l.Overlay().Hosts {
		for _, br := range []string{overlay.Integration, overlay.Tunnel} {
			if diff := flowDiff(t, l, h.Name, br); diff != "" {
				t.Errorf("%s %s: what Open vSwitch holds (-) differs from what was made (+):\n%s", h.Name, br, diff)
			}
		}
	}
}

// testGolden has Open vSwitch take and give back the golden flows of package overlay, too.
func testGolden(t *testing.T, l *Lab) {
	const bridge = "br-golden"
	files, err := filepath.Glob("overlay/testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in overlay/testdata: %v", err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range archive.Files {
			if part.Name != overlay.Integration && part.Name != overlay.Tunnel {
				continue
			}
			script := fmt.Sprintf("ovs-vsctl add-br %[1]s -- set Bridge %[1]s datapath_type=netdev fail_mode=secure; "+
				"cat >/run/golden; ovs-ofctl --bundle add-flows %[1]s /run/golden; "+
				"ovs-ofctl diff-flows %[1]s /run/golden; ovs-vsctl del-br %[1]s", bridge)
			out, err := l.exec(t.Context(), strings.NewReader(string(part.Data)), "hv4", "sh", "-e", "-c", script)
			if err != nil || len(out) > 0 {
				t.Errorf("%s, %s: %v\n%s", file, part.Name, err, out)
			}
		}
	}
}

// flowDiff compares a bridge with the controller's flows, without learned ones.
func flowDiff(t *testing.T, l *Lab, host, bridge string) string {
	t.Helper()
	// It exits with 2 if they differ; what was learned always does.
	out, err := l.Exec(t.Context(), host, "ovs-ofctl", "diff-flows", bridge, flowsFile(bridge))
	if err != nil && len(out) == 0 {
		t.Fatal(err)
	}
	var diff strings.Builder
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, fmt.Sprintf("hard_timeout=%d", overlay.LearnedTimeout)) {
			diff.WriteString(line)
		}
	}
	return diff.String()
}

// testLearning checks that br-tun learned remote instances, and never a gateway.
func testLearning(t *testing.T, l *Lab) {
	out, err := l.Exec(t.Context(), "hv1", "ovs-ofctl", "--no-stats", "dump-flows", overlay.Tunnel, "table=20")
	if err != nil {
		t.Fatal(err)
	}
	remote, _ := l.Overlay().Instance("blue-3")
	if learned := "hard_timeout=300, priority=1,vlan_tci=0x0001/0x0fff,dl_dst=" + remote.MAC.String(); !strings.Contains(string(out), learned) {
		t.Errorf("table 20 has no flow with %q:\n%s", learned, out)
	}
	for _, n := range l.Overlay().Networks {
		if n.Gateway != nil && strings.Contains(string(out), n.Gateway.MAC.String()) {
			t.Errorf("table 20 knows the gateway %s:\n%s", n.Gateway.MAC, out)
		}
	}
}

// testQuiet checks that no link of the underlay carries IPv6 of its own accord.
func testQuiet(t *testing.T, l *Lab) {
	for _, node := range l.Topology().Nodes() {
		out, err := l.Exec(t.Context(), node, "ip", "-6", "addr", "show", "scope", "link")
		if err != nil || len(out) > 0 {
			t.Errorf("%s: link-local addresses: %s, %v, want none", node, out, err)
		}
	}
}

// testAddresses checks that guests have the addresses that the overlay gives them, link-local ones
// included, and no others, and that none is tentative.
func testAddresses(t *testing.T, l *Lab) {
	for _, i := range l.Overlay().Instances {
		var want []string
		for _, v := range overlay.Versions() {
			for _, ip := range i.Addresses(v) {
				want = append(want, ip.String())
			}
		}
		out, err := l.Exec(t.Context(), i.Name, "ip", "-o", "addr", "show", "dev", "eth0")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line) // 2: eth0    inet6 fd00:1::11/64 scope global nodad …
			address, _, _ := strings.Cut(fields[3], "/")
			if got = append(got, address); strings.Contains(line, "tentative") {
				t.Errorf("%s: %s is tentative", i.Name, address)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: addresses (-want +got):\n%s", i.Name, diff)
		}
	}
}

func testExec(t *testing.T, l *Lab) {
	for where, want := range map[string]string{"hv2": "hv2", "spine1": "spine1", "blue-3": "hv3"} {
		if out, err := l.Exec(t.Context(), where, "hostname"); err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("hostname in %s: %q, %v, want %q", where, out, err, want)
		}
	}
	if _, err := l.Exec(t.Context(), "hv9", "true"); !errors.Is(err, ErrNoPlace) {
		t.Errorf("in hv9: %v, want %v", err, ErrNoPlace)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd, err := l.Command(ctx, "hv1", "sh", "-c", "echo started; sleep 1000 & wait")
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = cmd.Wait()
	waitFor(t, "the end of a cancelled command's children", func() bool {
		ps, err := l.Exec(t.Context(), "hv1", "ps", "ax")
		return err == nil && !strings.Contains(string(ps), "sleep 1000")
	})
}

func testInventory(t *testing.T, l *Lab) {
	text, err := os.ReadFile(l.InventoryFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"name: blue\n", "- 10.0.1.0/24", "- fd00:1::/64", "- fd00:1::1\n", "mac: fa:16:3e:00:01:01", "router: r1", "segmentation_id: 1001",
		"name: red-2\n", "network: red\n", "- 10.0.1.12", "- fd00:1::12", "- fe80::f816:3eff:fe00:10c", "host: hv3",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("inventory has no %q:\n%s", want, text)
		}
	}
}

// waitFor polls until ok or, after a time that only a hang takes, fails.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestSix raises the lab about IPv6, and uses all of its addresses.
func TestSix(t *testing.T) {
	t.Parallel()
	l := upAs(t, "six", "six")
	v4, v6 := l.Overlay().PairsOver(overlay.V4), l.Overlay().PairsOver(overlay.V6)
	if len(v4) != 2 || len(v6) != 14 || len(l.Overlay().Pairs()) != 14 {
		t.Fatalf("%d pairs over IPv4, %d over IPv6, %d in all; want 2, 14 and 14", len(v4), len(v6), len(l.Overlay().Pairs()))
	}
	for _, v := range overlay.Versions() {
		checkPairs(t, l, v)
	}
	testTCP(t, l)
	testAddresses(t, l)
	testFlowsAccepted(t, l)
	checkTruth(t, l)
	for _, p := range v6 {
		if p.Routed() {
			continue
		}
		scoped := p.Dst.MAC.LinkLocal().WithZone("eth0").String()
		if _, err := l.Exec(t.Context(), p.Src.Name, "ping", "-q", "-c", "1", "-W", "5", scoped); err != nil {
			t.Errorf("%s to %s: %v", p.Src.Name, scoped, err)
		}
	}
	checkNeighbours(t, l)
	testGuests(t, l)
	// A link that goes down takes all IPv6 addresses with it, and gold-2 has no others.
	if _, err := l.Break(t.Context(), "guest-down", "gold-2"); err != nil {
		t.Fatal(err)
	}
	checkTruth(t, l)
	if _, err := l.Heal(t.Context(), "all"); err != nil {
		t.Fatal(err)
	}
	checkTruth(t, l)
	testAddresses(t, l)
}

// checkNeighbours checks that guests know others, and their gateways as routers, by the MACs that
// the overlay gives these.
func checkNeighbours(t *testing.T, l *Lab) {
	t.Helper()
	for _, want := range []struct{ instance, line string }{
		{"amber-1", "fd00:6::12 dev eth0 lladdr fa:16:3e:00:06:0c"},
		{"amber-1", "fd00:6::1 dev eth0 lladdr fa:16:3e:00:06:01 router"},
		{"jade-2", "fd00:7::1 dev eth0 lladdr fa:16:3e:00:07:01 router"},
		{"gold-1", "fe80::f816:3eff:fe00:80c dev eth0 lladdr fa:16:3e:00:08:0c"},
	} {
		out, err := l.Exec(t.Context(), want.instance, "ip", "-6", "neigh")
		if err != nil || !strings.Contains(string(out), want.line) {
			t.Errorf("%s: neighbours %s, %v; want %s", want.instance, out, err, want.line)
		}
	}
}

// TestTwoLabs raises two labs at once, with the same addresses inside, and breaks one.
func TestTwoLabs(t *testing.T) {
	t.Parallel()
	labs := make(chan *Lab, 2)
	for _, name := range []string{"twin-a", "twin-b"} {
		go func() {
			l, err := Up(t.Context(), Options{Name: name, Bare: true})
			if err != nil {
				t.Error(err)
			}
			labs <- l
		}()
	}
	a, b := <-labs, <-labs
	for _, l := range []*Lab{a, b} {
		if l != nil {
			defer l.Down(context.WithoutCancel(t.Context()))
		}
	}
	if a == nil || b == nil {
		t.FailNow()
	}
	if _, err := a.Break(t.Context(), "underlay-down", ""); err != nil {
		t.Fatal(err)
	}
	checkTruth(t, a)
	checkTruth(t, b)
	if err := a.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, a.Dir())
	checkTruth(t, b)
}
