package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// evpnTopology is the one with routes.
const evpnTopology = "evpn"

// TestEVPN raises the lab with FRR, and asks each daemon what it knows.
func TestEVPN(t *testing.T) {
	t.Parallel()
	before := frrFiles(t)
	l := upAs(t, "evpn", evpnTopology)
	t.Logf("up after %v", l.Took())
	t.Run("pairs", func(t *testing.T) {
		for _, v := range overlay.Versions() {
			if n := len(l.Overlay().PairsOver(v)); n != 56 {
				t.Errorf("%d pairs over IPv%d, want 56", n, v)
			}
			checkPairs(t, l, v)
		}
	})
	t.Run("tcp", func(t *testing.T) { testTCP(t, l) })
	t.Run("flows", func(t *testing.T) { testFlowsAccepted(t, l) })
	t.Run("routes", func(t *testing.T) { testRoutes(t, l) })
	t.Run("ends", func(t *testing.T) { testEnds(t, l) })
	t.Run("sessions", func(t *testing.T) { testSessions(t, l) })
	t.Run("withdrawn", func(t *testing.T) { testWithdrawn(t, l) })
	t.Run("moves", func(t *testing.T) { testMoves(t, l) })
	t.Run("truth", func(t *testing.T) { testBreaksWithSwitch(t, l) })
	if diff := cmp.Diff(before, frrFiles(t)); diff != "" {
		t.Errorf("FRR's files on the host changed (-before +after):\n%s", diff)
	}
}

// frrFiles describes what FRR's daemons would write on a host where they run as a service. Where
// its crash logs go is not looked at: tests of other packages run bgpd there.
func frrFiles(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range []string{"/run/frr", "/etc/frr", "/var/log/frr"} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&b, dir, e.Name(), info.Size(), info.ModTime())
		}
	}
	return b.String()
}

// testRoutes checks that each spine has the type-2 routes of every instance, by MAC and by both
// addresses, from its own tunnel end, and no others; they are best and neither sticky nor moved.
func testRoutes(t *testing.T, l *Lab) {
	testRoutesOf(t, l, l.base)
	for _, spine := range []string{"spine1", "spine2"} {
		out := vtysh(t, l, spine, "show bgp l2vpn evpn")
		for _, bad := range []string{"sticky", "MM:"} {
			if strings.Contains(out, bad) {
				t.Errorf("%s: %q in\n%s", spine, bad, out)
			}
		}
	}
}

// testRoutesOf checks that both spines have what would be told of an overlay, and no more.
func testRoutesOf(t *testing.T, l *Lab, s *overlay.Spec) {
	t.Helper()
	want := make(map[place][]netip.Addr)
	for _, i := range s.Instances {
		end, ok := s.End(i.Host)
		if !ok {
			t.Fatalf("%s is nowhere", i.Name)
		}
		for _, ip := range []netip.Addr{{}, i.IP.V4, i.IP.V6} {
			want[place{i.MAC.String(), ip}] = []netip.Addr{end.VTEP.Addr()}
		}
	}
	if len(want) != 24 {
		t.Fatalf("%d places, want 24", len(want))
	}
	for _, spine := range []string{"spine1", "spine2"} {
		got, err := l.routesOf(t.Context(), spine)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmp.AllowUnexported(place{})); diff != "" {
			t.Errorf("%s: type-2 routes (-want +got):\n%s", spine, diff)
		}
	}
}

func vtysh(t *testing.T, l *Lab, node, command string) string {
	t.Helper()
	out, err := l.Exec(t.Context(), node, "vtysh", "-c", command)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// testEnds checks that each spine has a type-3 route of every tunnel end.
func testEnds(t *testing.T, l *Lab) {
	for _, spine := range []string{"spine1", "spine2"} {
		out := vtysh(t, l, spine, "show bgp l2vpn evpn route type multicast")
		for _, end := range []string{"10.255.1.11", "10.255.1.12", "10.255.2.13", "10.255.3.1"} {
			if prefix := "[3]:[0]:[32]:[" + end + "]"; strings.Count(out, prefix) != 1 {
				t.Errorf("%s: want one %s in\n%s", spine, prefix, out)
			}
		}
	}
}

// testSessions checks that the spines have a session with each tunnel end, and that the second one
// dials the controller, which a bare lab does not run.
func testSessions(t *testing.T, l *Lab) {
	for spine, want := range map[string][]string{
		"spine1": {"10.255.1.11 Established", "10.255.1.12 Established", "10.255.2.13 Established", "10.255.3.1 Established"},
		"spine2": {"10.255.1.11 Established", "10.255.1.12 Established", "10.255.2.13 Established", "10.255.3.1 Established", "172.20.20.10"},
	} {
		var summary struct {
			Peers map[string]struct{ State string }
		}
		if err := json.Unmarshal([]byte(vtysh(t, l, spine, "show bgp l2vpn evpn summary json")), &summary); err != nil {
			t.Fatal(err)
		}
		var got []string
		for peer, p := range summary.Peers {
			if p.State == "Established" {
				peer += " " + p.State
			}
			got = append(got, peer)
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: peers (-want +got):\n%s", spine, diff)
		}
	}
	section := l.bgp()
	text, err := yaml.Marshal(section)
	if err != nil {
		t.Fatal(err)
	}
	const want = `router_id: 172.20.20.10
as: 65000
listen: 172.20.20.10:179
peers:
    - address: 172.20.20.11
      as: 65000
    - address: 172.20.20.12
      as: 65000
      passive: true
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("the controller's bgp section (-want +got):\n%s", diff)
	}
}

// testWithdrawn checks that what is told comes from the kernel's tables: what goes there, goes on
// the spines.
func testWithdrawn(t *testing.T, l *Lab) {
	for instance, forget := range map[string][]string{
		"metal-1": {"leaf3", "bridge", "fdb", "del", "02:00:00:00:09:15", "dev", "eth3", "master"},
		"web-1":   {"hv1", "bridge", "fdb", "del", "fa:16:3e:00:09:0b", "dev", "taps5010", "master"},
	} {
		i, _ := l.Overlay().Instance(instance)
		if _, err := l.Exec(t.Context(), forget[0], forget[1:]...); err != nil {
			t.Fatal(err)
		}
		for _, spine := range []string{"spine1", "spine2"} {
			waitFor(t, "the withdraw of "+instance, func() bool {
				got, err := l.routesOf(t.Context(), spine)
				return err == nil && got[place{mac: i.MAC.String()}] == nil
			})
		}
	}
	i, _ := l.Overlay().Instance("web-1")
	for _, s := range tellSteps(l.Overlay(), i) {
		if _, err := l.exec(t.Context(), strings.NewReader(s.stdin), s.where, s.argv...); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range overlay.Versions() {
		checkPairs(t, l, v) // metal-1 says something
	}
	if err := l.awaitRoutes(t.Context(), l.Overlay()); err != nil {
		t.Error(err)
	}
	testRoutes(t, l)
}

// testMoves moves instances to and fro, and looks at all that tells where they are.
func testMoves(t *testing.T, l *Lab) {
	testBreaks(t, l)
	breakTwice(t, l)
	testRoutesOf(t, l, l.base)
	for _, tt := range []struct{ kind, target, told, stale string }{
		{"moved-withheld", "web-6:hv1", "hv3", "hv2"},
		{"moved-stale-tunnel", "web-4:hv3:hv1", "hv3", "hv1"},
	} {
		b, err := l.Break(t.Context(), tt.kind, tt.target)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := l.Break(t.Context(), tt.kind, tt.target); err != nil || again != b {
			t.Errorf("the same break again = %v, %v", again, err)
		}
		if _, err := l.Break(t.Context(), "tap-off", "web-2"); !errors.Is(err, ErrBadBreak) {
			t.Errorf("another break meanwhile: %v, want %v", err, ErrBadBreak)
		}
		name, rest, _ := strings.Cut(tt.target, ":")
		host, _, _ := strings.Cut(rest, ":")
		told := l.base.Moved(name, tt.told)
		testRoutesOf(t, l, told)
		checkTruth(t, l)
		checkPlaces(t, l, name, host, tt.stale)
		// Another command sees the same.
		other, err := Open(l.Name())
		if err != nil {
			t.Fatal(err)
		}
		if i, _ := other.Overlay().Instance(name); i.Host != host {
			t.Errorf("%s: %s is on %s, want %s", tt.kind, name, i.Host, host)
		}
		if _, err := other.Heal(t.Context(), "all"); err != nil {
			t.Fatal(err)
		}
		if l, err = Open(l.Name()); err != nil {
			t.Fatal(err)
		}
		testRoutesOf(t, l, l.base)
		checkTruth(t, l)
	}
}

// checkPlaces checks that a moved instance is on its host, there alone, that the inventory says so,
// and that one hypervisor's flow still points to where it was.
func checkPlaces(t *testing.T, l *Lab, name, host, stale string) {
	t.Helper()
	i, _ := l.base.Instance(name)
	for _, h := range l.base.Hosts {
		out, err := l.Exec(t.Context(), h.Name, "sh", "-c", "ip netns; ovs-vsctl list-ports br-int")
		if err != nil {
			t.Fatal(err)
		}
		for _, what := range []string{name, i.Tap()} {
			if strings.Contains(string(out), what) != (h.Name == host) {
				t.Errorf("%s has %q: %v", h.Name, what, h.Name != host)
			}
		}
	}
	text, err := os.ReadFile(l.InventoryFile())
	if err != nil {
		t.Fatal(err)
	}
	_, entry, _ := strings.Cut(string(text), "name: "+name+"\n")
	if _, at, _ := strings.Cut(entry, "host: "); !strings.HasPrefix(at, host+"\n") {
		t.Errorf("the inventory does not say that %s is on %s:\n%s", name, host, text)
	}
	old, _ := l.base.Host(i.Host)
	w, err := l.workshop()
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.Exec(t.Context(), stale, "ovs-ofctl", "--no-stats", "dump-flows", overlay.Tunnel, "table=20,dl_dst="+i.MAC.String())
	port := fmt.Sprintf("output:%d\n", w.ports(stale).Tunnels[overlay.TunnelName(overlay.VXLAN, old)])
	if err != nil || !strings.Contains(string(out), port) {
		t.Errorf("%s: %s, %v; want a flow to %s (%s)", stale, out, err, old.Name, port)
	}
}

// testBreaksWithSwitch has breaks hit pairs of which one end is behind a switch.
func testBreaksWithSwitch(t *testing.T, l *Lab) {
	for _, b := range []Broken{
		{"drop-flow", "web-1:metal-1"}, {"one-way", "metal-1:web-3"}, {"stale-vtep", "hv2:metal-2"}, {"security-rule", "web-5"},
		{"tunnel-remote", "hv1:hv2:vxlan"}, {"underlay-down", "hv3"},
	} {
		t.Run(b.Kind, func(t *testing.T) {
			if _, err := l.Break(t.Context(), b.Kind, b.Target); err != nil {
				t.Fatal(err)
			}
			checkTruth(t, l)
			truth, err := l.Truth(TCP4)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range oneOfEach(truth.Fates) {
				if _, err := l.Overlay().Host(f.FirstMissing.Host); !err {
					t.Errorf("first missing %+v, where there is no sampling point", f.FirstMissing)
				}
			}
			if _, err := l.Heal(t.Context(), "all"); err != nil {
				t.Fatal(err)
			}
			checkTruth(t, l)
		})
	}
}
