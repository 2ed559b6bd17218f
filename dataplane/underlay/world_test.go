package underlay

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/internal/sandbox"
)

func TestMain(m *testing.M) { os.Exit(sandbox.Run(m)) }

// Addresses of the two hosts of a world, which is routed: each has them on its loopback.
var (
	hostA  = netip.MustParseAddr("10.9.0.1")
	hostB  = netip.MustParseAddr("10.9.0.2")
	hostA6 = netip.MustParseAddr("fd00:9::1")
	hostB6 = netip.MustParseAddr("fd00:9::2")
)

var worlds atomic.Uint32

// world is two hosts, a and b, with two routers between, r and s, and equal ways by both. Which way
// a packet goes is told by addresses and ports (fib_multipath_hash_policy 1).
type world struct {
	t  testing.TB
	id string
}

func newWorld(t testing.TB) world {
	t.Helper()
	w := world{t, fmt.Sprintf("w%d", worlds.Add(1))}
	for _, n := range []string{"a", "b", "r", "s"} {
		w.host("ip", "netns", "add", w.ns(n))
		t.Cleanup(func() { w.host("ip", "netns", "del", w.ns(n)) })
		w.ip(n, "link set lo up")
		for _, sysctl := range []string{"net.ipv4.fib_multipath_hash_policy=1", "net.ipv6.fib_multipath_hash_policy=1",
			"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.accept_dad=0",
			"net.ipv4.icmp_ratelimit=0", "net.ipv4.icmp_msgs_per_sec=100000", "net.ipv6.icmp.ratelimit=0"} {
			w.in(n, "sysctl", "-q", "-w", sysctl)
		}
	}
	for i, router := range []string{"r", "s"} {
		for k, end := range []string{"a", "b"} {
			net := fmt.Sprintf("10.9.%d.", 10+i*2+k)
			net6 := fmt.Sprintf("fd00:9:%d::", 10+i*2+k)
			w.host("ip", "link", "add", "to"+end, "netns", w.ns(router), "type", "veth", "peer", "name", "to"+router, "netns", w.ns(end))
			for n, dev := range map[string]string{router: "to" + end, end: "to" + router} {
				last := map[bool]string{true: "1", false: "2"}[n == router]
				w.ip(n, "addr add "+net+last+"/24 dev "+dev)
				w.ip(n, "addr add "+net6+last+"/64 dev "+dev+" nodad")
				w.ip(n, "link set "+dev+" up")
			}
			other := map[string]string{"a": "1", "b": "2"}[end]
			w.ip(router, "route add 10.9.0."+other+" via "+net+"2")
			w.ip(router, "route add fd00:9::"+other+" via "+net6+"2")
		}
	}
	for end, x := range map[string]struct {
		own, other string
		k          int
	}{"a": {"1", "2", 0}, "b": {"2", "1", 1}} {
		w.ip(end, "addr add 10.9.0."+x.own+"/32 dev lo")
		w.ip(end, "addr add fd00:9::"+x.own+"/128 dev lo nodad")
		w.ip(end, fmt.Sprintf("route add 10.9.0.%s src 10.9.0.%s nexthop via 10.9.%d.1 nexthop via 10.9.%d.1", x.other, x.own, 10+x.k, 12+x.k))
		w.ip(end, fmt.Sprintf("route add fd00:9::%s src fd00:9::%s nexthop via fd00:9:%d::1 nexthop via fd00:9:%d::1", x.other, x.own, 10+x.k, 12+x.k))
	}
	// Until the devices have link-local addresses neighbours cannot be asked for.
	for i, router := range []string{"r", "s"} {
		for k, end := range []string{"a", "b"} {
			net := fmt.Sprintf("fd00:9:%d::", 10+i*2+k)
			w.in(end, "ping", "-q", "-c1", "-i0.1", "-w10", "-I", fmt.Sprintf("fd00:9::%d", k+1), net+"1")
			w.in(router, "ping", "-q", "-c1", "-i0.1", "-w10", fmt.Sprintf("fd00:9::%d", k+1))
		}
	}
	return w
}

func (w world) ns(node string) string { return w.id + node }

func (w world) host(argv ...string) {
	w.t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

func (w world) in(node string, argv ...string) {
	w.t.Helper()
	w.host(append([]string{"ip", "netns", "exec", w.ns(node)}, argv...)...)
}

func (w world) ip(node, command string) {
	w.t.Helper()
	w.host(append([]string{"ip", "-n", w.ns(node)}, strings.Fields(command)...)...)
}

// drop has a router drop what it would forward and matches.
func (w world) drop(router, match string) {
	w.t.Helper()
	w.in(router, "nft", "add table inet test")
	w.in(router, "nft", "add chain inet test forward { type filter hook forward priority 0; }")
	w.in(router, "nft", "add rule inet test forward "+match+" drop")
	w.t.Cleanup(func() { w.in(router, "nft", "delete table inet test") })
}

// narrow makes a link let pass 1400 bytes.
func (w world) narrow(node, dev string) {
	w.t.Helper()
	w.ip(node, "link set "+dev+" mtu 1400")
	w.t.Cleanup(func() { w.ip(node, "link set "+dev+" mtu 1500") })
}

// sub is the world in a subtest, which leaves it as it was.
func (w world) sub(t testing.TB) world { return world{t, w.id} }

// as runs f on a thread in a node's network.
func (w world) as(node string, f func()) {
	w.t.Helper()
	sandbox.Within(w.t, w.ns(node), func() error { f(); return nil })
}

const testPort = 7443

// responder answers at both addresses of host b.
func (w world) responder() *Responder {
	w.t.Helper()
	r := NewResponder(testPort, slog.New(slog.DiscardHandler))
	w.t.Cleanup(r.Close)
	r.SetKey(testKey)
	w.as("b", func() { r.Listen([]netip.Addr{hostB, hostB6}) })
	if at, problems := r.Addresses(); len(at) != 2 {
		w.t.Fatalf("listens at %v: %v", at, problems)
	}
	return r
}

// probe makes an exchange from a to b; dst chooses the IP version.
func (w world) probe(dst netip.Addr, change func(*Exchange)) (Exchange, Report) {
	w.t.Helper()
	e := Exchange{Dst: dst, Port: testPort, ToS: 0xb8, Sizes: []int{128, 1500}, SourcePorts: 32, Repeats: 4,
		Wait: time.Second, FindMTU: true, Session: rand.Uint64()}
	if change != nil {
		change(&e)
	}
	var r Report
	var err error
	w.as("a", func() { r, err = Probe(context.Background(), testKey, e) })
	if err != nil {
		w.t.Fatal(err)
	}
	return e, r
}

// answered counts source ports: those where all of a size came back, and those where nothing did.
func answered(e Exchange, r Report, size int) (all, none int) {
	for p := range e.SourcePorts {
		switch c := r.Cells[p*len(e.Sizes)+size]; {
		case c.Answered == 0:
			none++
		case c.Answered == c.Sent:
			all++
		}
	}
	return all, none
}
