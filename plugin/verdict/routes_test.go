package verdict

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// routes say of the lab's instances, by name, "hv2", an address, several of them joined by "+", "no"
// (absent), "?" (not known) or "" (not asked); "by prefix" or "stale" after that.
type routes map[string]string

var routesNow = time.Date(2026, 3, 1, 10, 47, 3, 0, time.UTC)

func (r routes) MAC(vni uint32, mac stain.MAC) plan.Learned {
	return learned(r[labNames()[mac]])
}

// labNames are the lab's instances by their MAC addresses.
var labNames = sync.OnceValue(func() map[stain.MAC]string {
	file, err := inventory.Parse("instances.yml", []byte(instances))
	if err != nil {
		panic(err)
	}
	names := map[stain.MAC]string{}
	for _, in := range file.Instances {
		names[in.MAC] = in.Name
	}
	return names
})

func (routes) IP(uint32, netip.Addr) plan.Learned { return plan.Learned{} }

func learned(text string) plan.Learned {
	switch text {
	case "":
		return plan.Learned{}
	case "no":
		return plan.Learned{State: plan.Absent}
	case "?":
		return plan.Learned{State: plan.NotKnown}
	}
	l := plan.Learned{State: plan.Present, Since: routesNow.Add(-5 * time.Minute)}
	text, l.Stale = strings.CutSuffix(text, " stale")
	if host, ok := strings.CutSuffix(text, " by prefix"); ok {
		text, l.Prefix = host, netip.MustParsePrefix("10.0.0.0/16")
	}
	for at := range strings.SplitSeq(text, "+") {
		if host, ok := vteps[at]; ok {
			at = host
		}
		l.VTEPs = append(l.VTEPs, netip.MustParseAddr(at))
	}
	return l
}

func (r routes) options() plan.Options { return plan.Options{Routes: r, Now: routesNow} }

// noAgent has no agent on a host, none that ever was.
func noAgent(host string) func(hosts) {
	return func(all hosts) { *all[host] = inventory.Host{Name: host + " of old"} }
}

// cameFrom has what was seen at a point come in by a tunnel from that address.
func cameFrom(point int, vtep string) func(*Evidence) {
	return func(e *Evidence) {
		for _, a := range e.Attempts {
			for i := range a.Seen {
				if s := &a.Seen[i]; s.Point == point {
					s.TunSrc = netip.MustParseAddr(vtep)
				}
			}
		}
	}
}

// twin has a host report a second port with an instance's MAC address.
func twin(host, mac string) func(hosts) {
	return func(all hosts) {
		h := all[host]
		h.Endpoints = append(h.Endpoints, &dyetracev1.Endpoint{Bridge: "br-int", Port: "tap-twin", Ofport: 77, Mac: mac, LinkState: "up"})
	}
}

// TestRoutes: what a packet's way, the inventory and routes say together.
func TestRoutes(t *testing.T) {
	t.Parallel()
	const (
		crossing = "blue-1 blue-3" // 8 points: hv1 0 1, hv3 2 3, answer hv3 4 5, hv1 6 7
		shown    = "blue-1 blue-4" // hv1 0 1, hv4 2 and 3 as delivered, answer hv4 4, hv1 5 6
	)
	to := func(point int, remote string) *Explanation {
		return &Explanation{Point: point, Outcome: Tunnelled, Port: "gre-x", TunnelRemote: remote, TunnelID: 1001}
	}
	tests := []struct {
		name    string
		pair    string
		scheme  stain.Scheme
		noTouch bool
		net     []func(hosts)
		routes  routes
		probes  []string
		impair  []func(*Evidence)
		explain *Explanation
		want    string
	}{
		// An explained tunnel.
		{name: "stale tunnel", pair: crossing, routes: routes{"blue-3": "hv3"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.1.2 (hv2), but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.3 (hv3) since 10:42:03, 5m ago"},
		{name: "stale tunnel to nowhere", pair: crossing, routes: routes{"blue-3": "hv3"}, probes: []string{"01"}, explain: to(1, "10.9.9.9"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.9.9.9 (no host's tunnel address that we know), but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.3 (hv3) since 10:42:03, 5m ago"},
		{name: "stale tunnel, seen there", pair: crossing, routes: routes{"blue-3": "hv3 stale"}, probes: []string{"01 @hv4:fwd"}, explain: to(1, "10.1.2.4"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.2.4 (hv4), but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.3 (hv3) since 10:42:03, 5m ago, not confirmed since its peer restarted; seen at hv4/br-int from-tunnel, which does not have blue-3"},
		{name: "stale tunnel of the answer", pair: crossing, routes: routes{"blue-1": "hv1"}, probes: []string{"012345"}, explain: to(5, "10.1.2.4"),
			want: "faulty stale-vtep | hv3/br-tun to-tunnel → hv1/br-tun from-tunnel | hv3 | stale VTEP: hv3 sends it to 10.1.2.4 (hv4), but blue-1 is on hv1 (10.1.1.1), and EVPN says 10.1.1.1 (hv1) since 10:42:03, 5m ago"},
		{name: "stale route", pair: crossing, routes: routes{"blue-3": "hv2"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.1.2 (hv2), as EVPN still says (10.1.1.2 (hv2) since 10:42:03, 5m ago), but blue-3 is on hv3 (10.1.2.3), whose agent reports tap-b3: the route is stale"},
		{name: "an old route is left over", pair: crossing, routes: routes{"blue-3": "hv2+hv3"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.1.2 (hv2), as EVPN still says (10.1.1.2 (hv2) and 10.1.2.3 (hv3) since 10:42:03, 5m ago), but blue-3 is on hv3 (10.1.2.3), whose agent reports tap-b3: the route is stale"},
		{name: "stale inventory or route", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv2"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to 10.1.1.2 (hv2), as EVPN says (10.1.1.2 (hv2) since 10:42:03, 5m ago), but the inventory says that blue-3 is on hv3 (10.1.2.3): it is out of date, or a route was not withdrawn"},
		{name: "stale inventory or route, a port on both hosts", pair: crossing, net: []func(hosts){twin("hv2", "fa:16:3e:00:01:13")}, routes: routes{"blue-3": "hv2"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to 10.1.1.2 (hv2), as EVPN says (10.1.1.2 (hv2) since 10:42:03, 5m ago), but the inventory says that blue-3 is on hv3 (10.1.2.3): it is out of date, or a route was not withdrawn"},
		{name: "stale tunnel, a port on both hosts", pair: crossing, net: []func(hosts){twin("hv2", "fa:16:3e:00:01:13")}, routes: routes{"blue-3": "hv3"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.1.2 (hv2), but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.3 (hv3) since 10:42:03, 5m ago"},
		{name: "three places", pair: crossing, routes: routes{"blue-3": "hv4"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.1.2 (hv2), but the inventory says that blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.4 (hv4) since 10:42:03, 5m ago"},
		{name: "no route", pair: crossing, routes: routes{"blue-3": "no"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.1.2 (hv2), but blue-3 is on hv3 (10.1.2.3); EVPN has no route for it"},
		{name: "inventory and tunnel are of old", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv2"}, probes: []string{"01"}, explain: to(1, "10.1.2.3"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.2.3 (hv3), where the inventory has blue-3, but EVPN says 10.1.1.2 (hv2) since 10:42:03, 5m ago; nor does it come in at hv3/br-tun from-tunnel"},
		{name: "routes alone know better, and it may be late", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv2"}, probes: []string{"01"},
			impair: []func(*Evidence){quiet(100 * time.Millisecond)}, explain: to(1, "10.1.2.3"),
			want: "unknown unseen | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.2.3 (hv3), where the inventory has blue-3, but EVPN says 10.1.1.2 (hv2) since 10:42:03, 5m ago; nor does it come in at hv3/br-tun from-tunnel; or it is late: it was watched for 100ms after it was seen last, and 750ms is what it may take"},
		{name: "underlay, and routes are wrong", pair: crossing, routes: routes{"blue-3": "hv2"}, probes: []string{"01"}, explain: to(1, "10.1.2.3"),
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to hv3 (10.1.2.3, key 1001) as it should, where it does not come in: lost in the underlay, or at hv3's end of the tunnel; UDP between the two could not be tried: the agent of hv1 knows no underlay probes; blue-3: inventory says hv3 (10.1.2.3), EVPN says 10.1.1.2 (hv2) since 10:42:03, 5m ago"},
		{name: "underlay", pair: crossing, routes: routes{"blue-1": "hv1", "blue-3": "hv3"}, probes: []string{"01"}, explain: to(1, "10.1.2.3"),
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to hv3 (10.1.2.3, key 1001) as it should, where it does not come in: lost in the underlay, or at hv3's end of the tunnel; UDP between the two could not be tried: the agent of hv1 knows no underlay probes"},
		{name: "destination blind, stale tunnel", pair: crossing, routes: routes{"blue-3": "hv3"}, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: to(1, "10.1.1.2"),
			want: "unknown agent | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv3 | stale VTEP: asked afterwards, hv1 sends it to 10.1.1.2 (hv2), but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.3 (hv3) since 10:42:03, 5m ago; seen up to hv1/br-tun to-tunnel; beyond, we could not see: hv3: its agent was cut off at 10:42"},
		{name: "destination blind and not confirmed, tunnel as routes say", pair: crossing, net: []func(hosts){disconnected("hv3")}, routes: routes{"blue-3": "hv2"}, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: to(1, "10.1.1.2"),
			want: "unknown agent | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv3 | seen up to hv1/br-tun to-tunnel; beyond, we could not see: hv3: its agent was cut off at 10:42; asked afterwards, hv1 sends it to 10.1.1.2 (hv2), as EVPN says (10.1.1.2 (hv2) since 10:42:03, 5m ago), but the inventory says that blue-3 is on hv3 (10.1.2.3): it is out of date, or a route was not withdrawn"},
		{name: "destination blind, tunnel to nowhere", pair: crossing, routes: routes{"blue-3": "hv3"}, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: to(1, "10.9.9.9"),
			want: "unknown agent | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv3 | stale VTEP: asked afterwards, hv1 sends it to 10.9.9.9 (no host's tunnel address that we know), but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.3 (hv3) since 10:42:03, 5m ago; seen up to hv1/br-tun to-tunnel; beyond, we could not see: hv3: its agent was cut off at 10:42"},
		{name: "no agent, tunnel as routes say", pair: crossing, net: []func(hosts){noAgent("hv3")}, routes: routes{"blue-3": "10.9.9.9"}, probes: []string{"01"}, explain: to(1, "10.9.9.9"),
			want: "unknown unseen | hv1/br-tun to-tunnel → hv1/br-tun from-tunnel | hv1 | seen up to hv1/br-tun to-tunnel; beyond, we could not see: hv3/: no point from-instance; no agent has reported host hv3; asked afterwards, hv1 sends it to 10.9.9.9, and so EVPN says: 10.9.9.9 since 10:42:03, 5m ago"},
		{name: "no agent, tunnel elsewhere", pair: crossing, net: []func(hosts){noAgent("hv3")}, routes: routes{"blue-3": "10.9.9.9"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "unknown unseen | hv1/br-tun to-tunnel → hv1/br-tun from-tunnel | hv1 | stale VTEP: asked afterwards, hv1 sends it to 10.1.1.2 (hv2), but blue-3 is on hv3, and EVPN says 10.9.9.9 since 10:42:03, 5m ago; seen up to hv1/br-tun to-tunnel; beyond, we could not see: hv3/: no point from-instance; no agent has reported host hv3"},
		{name: "no agent, maybe answered, tunnel as routes say", pair: crossing, net: []func(hosts){noAgent("hv3")}, routes: routes{"blue-3": "10.9.9.9"}, probes: []string{"bare 01"}, explain: to(1, "10.9.9.9"),
			want: "unknown unseen | hv1/br-tun to-tunnel → hv1/br-tun from-tunnel | hv1 | seen up to hv1/br-tun to-tunnel; beyond, we could not see: an answer without the stain's ToS would have passed unseen; no agent has reported host hv3; asked afterwards, hv1 sends it to 10.9.9.9, and so EVPN says: 10.9.9.9 since 10:42:03, 5m ago"},
		{name: "no agent, maybe answered, tunnel elsewhere", pair: crossing, net: []func(hosts){noAgent("hv3")}, routes: routes{"blue-3": "10.9.9.9"}, probes: []string{"bare 01"}, explain: to(1, "10.1.1.2"),
			want: "unknown unseen | hv1/br-tun to-tunnel → hv1/br-tun from-tunnel | hv1 | stale VTEP: asked afterwards, hv1 sends it to 10.1.1.2 (hv2), but blue-3 is on hv3, and EVPN says 10.9.9.9 since 10:42:03, 5m ago; seen up to hv1/br-tun to-tunnel; beyond, we could not see: an answer without the stain's ToS would have passed unseen; no agent has reported host hv3"},

		// Routes for more than the one address.
		{name: "prefix, underlay", pair: crossing, routes: routes{"blue-3": "hv3 by prefix"}, probes: []string{"01"}, explain: to(1, "10.1.2.3"),
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to hv3 (10.1.2.3, key 1001) as it should, where it does not come in: lost in the underlay, or at hv3's end of the tunnel; UDP between the two could not be tried: the agent of hv1 knows no underlay probes"},
		{name: "prefix, stale tunnel", pair: crossing, routes: routes{"blue-3": "hv3 by prefix"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.1.2 (hv2), but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.0.0.0/16 at 10.1.2.3 (hv3) since 10:42:03, 5m ago"},
		{name: "prefix of a router, to the router", pair: crossing, routes: routes{"blue-3": "hv2 by prefix"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.1.2 (hv2), as EVPN says of its prefix (10.0.0.0/16 at 10.1.1.2 (hv2) since 10:42:03, 5m ago), but blue-3 is on hv3 (10.1.2.3), whose agent reports tap-b3: it has no route of its own"},
		{name: "prefix of a router, to the router, not confirmed", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv2 by prefix"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to 10.1.1.2 (hv2), as EVPN says (10.0.0.0/16 at 10.1.1.2 (hv2) since 10:42:03, 5m ago), but the inventory says that blue-3 is on hv3 (10.1.2.3): it is out of date, or that is a router on the way"},
		{name: "prefix of a router, to the host", pair: crossing, routes: routes{"blue-1": "hv1", "blue-3": "hv2 by prefix"}, probes: []string{"01"}, explain: to(1, "10.1.2.3"),
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to hv3 (10.1.2.3, key 1001) as it should, where it does not come in: lost in the underlay, or at hv3's end of the tunnel; UDP between the two could not be tried: the agent of hv1 knows no underlay probes; blue-3: inventory says hv3 (10.1.2.3), EVPN says 10.0.0.0/16 at 10.1.1.2 (hv2) since 10:42:03, 5m ago"},
		{name: "prefix of a router, to the host, not confirmed", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv2 by prefix"}, probes: []string{"01"}, explain: to(1, "10.1.2.3"),
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to hv3 (10.1.2.3, key 1001) as it should, where it does not come in: lost in the underlay, or at hv3's end of the tunnel; UDP between the two could not be tried: the agent of hv1 knows no underlay probes"},
		{name: "prefix of a router, delivered", pair: crossing, routes: routes{"blue-3": "hv2 by prefix"}, probes: []string{"01234567"},
			want: "healthy | - |  | "},
		{name: "prefix of a router, answered by the router", pair: crossing, routes: routes{"blue-3": "10.9.9.9 by prefix"}, probes: []string{"01234567"}, impair: []func(*Evidence){cameFrom(6, "10.9.9.9")},
			want: "healthy | - |  | "},
		{name: "prefix of a router without an agent, to the router", scheme: stain.ICMP, pair: crossing, net: []func(hosts){noAgent("hv3")}, routes: routes{"blue-3": "10.9.9.9 by prefix"}, probes: []string{"01"}, explain: to(1, "10.9.9.9"),
			want: "unknown unseen | hv1/br-tun to-tunnel → hv1/br-int from-tunnel | hv1 | lost after hv1/br-tun to-tunnel; its flows send it into tunnel gre-x (to 10.9.9.9), and what became of it there is not known (hv3/ did not show the request, so a reply without the stain's ToS would have passed unseen)"},

		// Nobody sees the destination, and the source's bridge would have known the reply.
		{name: "icmp: destination blind, stale tunnel", scheme: stain.ICMP, pair: crossing, routes: routes{"blue-3": "hv3"}, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: to(1, "10.1.1.2"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.1.2 (hv2), but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.3 (hv3) since 10:42:03, 5m ago"},
		{name: "icmp: destination blind, stale route", scheme: stain.ICMP, pair: crossing, routes: routes{"blue-3": "hv2"}, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: to(1, "10.1.1.2"),
			want: "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to 10.1.1.2 (hv2), as EVPN says (10.1.1.2 (hv2) since 10:42:03, 5m ago), but the inventory says that blue-3 is on hv3 (10.1.2.3): it is out of date, or a route was not withdrawn"},
		{name: "icmp: destination not confirmed, tunnel as routes say", scheme: stain.ICMP, pair: crossing, net: []func(hosts){disconnected("hv3")}, routes: routes{"blue-3": "hv2"}, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: to(1, "10.1.1.2"),
			want: "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | hv1 sends it to 10.1.1.2 (hv2), as EVPN says (10.1.1.2 (hv2) since 10:42:03, 5m ago), but the inventory says that blue-3 is on hv3 (10.1.2.3): it is out of date, or a route was not withdrawn"},
		{name: "icmp: destination blind, tunnel to nowhere", scheme: stain.ICMP, pair: crossing, routes: routes{"blue-3": "hv3"}, probes: []string{"01"}, impair: []func(*Evidence){gone("hv3")}, explain: to(1, "10.9.9.9"),
			want: "unknown agent | hv1/br-tun to-tunnel → hv1/br-int from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.9.9.9 (no host's tunnel address that we know), but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.3 (hv3) since 10:42:03, 5m ago; what becomes of it there is not known (hv3: its agent was cut off at 10:42; hv3/br-int did not show the request, so a reply without the stain's ToS would have passed unseen)"},
		{name: "icmp: no agent, tunnel as routes say", scheme: stain.ICMP, pair: crossing, net: []func(hosts){noAgent("hv3")}, routes: routes{"blue-3": "10.9.9.9"}, probes: []string{"01"}, explain: to(1, "10.9.9.9"),
			want: "unknown unseen | hv1/br-tun to-tunnel → hv1/br-int from-tunnel | hv1 | lost after hv1/br-tun to-tunnel; its flows send it into tunnel gre-x (to 10.9.9.9), and what became of it there is not known (hv3/ did not show the request, so a reply without the stain's ToS would have passed unseen)"},
		{name: "icmp: no agent, stale tunnel", scheme: stain.ICMP, pair: crossing, net: []func(hosts){noAgent("hv3")}, routes: routes{"blue-3": "10.9.9.9"}, probes: []string{"01"}, explain: to(1, "10.1.1.2"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv1/br-int from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.1.2 (hv2), but blue-3 is on hv3, and EVPN says 10.9.9.9 since 10:42:03, 5m ago"},
		{name: "sent on from where it is said to be, as routes say", pair: crossing, net: []func(hosts){twin("hv2", "fa:16:3e:00:01:13")}, routes: routes{"blue-3": "hv2"}, probes: []string{"0123"}, explain: to(3, "10.1.1.2"),
			want: "unknown inventory | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | hv3 sends it to 10.1.1.2 (hv2), as EVPN says (10.1.1.2 (hv2) since 10:42:03, 5m ago), but the inventory says that blue-3 is on hv3 (10.1.2.3): it is out of date, or a route was not withdrawn"},
		{name: "sent on from where it is, as a stale route says", pair: crossing, routes: routes{"blue-3": "hv2"}, probes: []string{"0123"}, explain: to(3, "10.1.1.2"),
			want: "faulty stale-vtep | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | stale VTEP: hv3 sends it to 10.1.1.2 (hv2), as EVPN still says (10.1.1.2 (hv2) since 10:42:03, 5m ago), but blue-3 is on hv3 (10.1.2.3), whose agent reports tap-b3: the route is stale"},

		// Not explained, or not into a tunnel.
		{name: "not explained, maybe elsewhere", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv2"}, probes: []string{"01"},
			want: "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel; the inventory says that blue-3 is on hv3 (10.1.2.3), but EVPN says 10.1.1.2 (hv2) since 10:42:03, 5m ago | ask hv1/br-int!"},
		{name: "not explained", pair: crossing, routes: routes{"blue-3": "hv2"}, probes: []string{"01"},
			want: "faulty between-hosts | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | no sample after hv1/br-tun to-tunnel: lost in the tunnel hv1 → hv3 (10.1.1.1 → 10.1.2.3); blue-3: inventory says hv3 (10.1.2.3), EVPN says 10.1.1.2 (hv2) since 10:42:03, 5m ago | ask hv1/br-int"},
		{name: "delivered here, where routes have it", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv1"}, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Delivered, Port: "tap-x"},
			want: "unknown inventory | hv1/br-int from-instance → hv1/br-tun to-tunnel | hv1 | no sample after hv1/br-int from-instance; the inventory says that blue-3 is on hv3 (10.1.2.3), but EVPN says 10.1.1.1 (hv1) since 10:42:03, 5m ago; its flows deliver it to tap-x of hv1"},
		{name: "dropped here, where routes have it", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv1"}, probes: []string{"0"}, explain: &Explanation{Point: 0, Outcome: Dropped, Flow: flow("br-int", 60, 90, "ip")},
			want: "faulty flow | hv1/br-int from-instance → hv1/br-tun to-tunnel | hv1 | hv1: dropped by br-int table 60, priority 90, ip (cookie 0xc0ffee); blue-3: inventory says hv3 (10.1.2.3), EVPN says 10.1.1.1 (hv1) since 10:42:03, 5m ago"},
		{name: "no port there, as routes say", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv2"}, probes: []string{"0123"},
			want: "faulty stale-vtep | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | stale VTEP: hv1 sent it to hv3 (10.1.2.3), but tap-b3 is not on br-int of hv3, and EVPN says 10.1.1.2 (hv2) since 10:42:03, 5m ago | ask hv3/br-tun"},
		{name: "no port there, but a route", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv3"}, probes: []string{"0123"},
			want: "faulty port | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | tap-b3 is not on br-int of hv3 | ask hv3/br-tun"},
		{name: "silent, and routes are wrong", pair: crossing, routes: routes{"blue-3": "hv2"}, probes: []string{"0123"}, explain: &Explanation{Point: 3, Outcome: Delivered, Port: "tap-b3"},
			want: "silent guest-silent | hv3/br-int from-tunnel → hv3/br-int from-instance | hv3 | delivered to tap-b3 of hv3, but blue-3 does not answer; blue-3: inventory says hv3 (10.1.2.3), EVPN says 10.1.1.2 (hv2) since 10:42:03, 5m ago"},
		{name: "source's agent not connected, and routes have it elsewhere", pair: crossing, net: []func(hosts){disconnected("hv1")}, routes: routes{"blue-1": "hv2"},
			want: "unknown agent | - | hv1 | the agent of hv1 is not connected; blue-1: inventory says hv1 (10.1.1.1), EVPN says 10.1.1.2 (hv2) since 10:42:03, 5m ago"},

		// Answered, but by whom?
		{name: "impostor", pair: crossing, routes: routes{"blue-3": "hv3"}, probes: []string{"0167 @hv4:fwd @hv4:reply"},
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: answered from hv4/br-int from-instance, but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.3 (hv3) since 10:42:03, 5m ago"},
		{name: "impostor, told by the tunnel", pair: crossing, routes: routes{"blue-3": "hv3"}, probes: []string{"0167"}, impair: []func(*Evidence){answerFrom("10.1.1.2")},
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: answered from hv2 (tunnel from 10.1.1.2), but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.3 (hv3) since 10:42:03, 5m ago"},
		{name: "impostor, to whom a stale route leads", pair: crossing, routes: routes{"blue-3": "hv2"}, probes: []string{"0167"}, impair: []func(*Evidence){answerFrom("10.1.1.2")},
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | stale VTEP: answered from hv2 (tunnel from 10.1.1.2), as EVPN still says (10.1.1.2 (hv2) since 10:42:03, 5m ago), but blue-3 is on hv3 (10.1.2.3), whose agent reports tap-b3: the route is stale"},
		{name: "impostor or not, a port on both hosts", pair: crossing, net: []func(hosts){twin("hv2", "fa:16:3e:00:01:13")}, routes: routes{"blue-3": "hv2"}, probes: []string{"0167"}, impair: []func(*Evidence){answerFrom("10.1.1.2")},
			want: "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | answered from hv2 (tunnel from 10.1.1.2), as EVPN says (10.1.1.2 (hv2) since 10:42:03, 5m ago), but the inventory says that blue-3 is on hv3 (10.1.2.3): it is out of date, or a route was not withdrawn"},
		{name: "impostor or not, and the inventory may be wrong", pair: crossing, net: []func(hosts){unplug("hv3", "tap-b3")}, routes: routes{"blue-3": "hv4"}, probes: []string{"0167 @hv4:reply"},
			want: "unknown inventory | hv1/br-tun to-tunnel → hv3/br-tun from-tunnel | hv1 | answered from hv4/br-int from-instance, and whether that is blue-3 is not known: tap-b3 is not on br-int of hv3; blue-3: inventory says hv3 (10.1.2.3), EVPN says 10.1.2.4 (hv4) since 10:42:03, 5m ago"},
		{name: "answered from an address that nobody knows", pair: crossing, routes: routes{"blue-3": "hv3"}, probes: []string{"0167"}, impair: []func(*Evidence){answerFrom("10.9.9.9"), gone("hv3")},
			want: "healthy stale-vtep | - |  | passed 4 points without a sample, hv3/br-tun from-tunnel first; the answer came by a tunnel from 10.9.9.9, but blue-3 is on hv3 (10.1.2.3), and EVPN says 10.1.2.3 (hv3) since 10:42:03, 5m ago"},
		{name: "answered from an address that routes know", pair: crossing, net: []func(hosts){noAgent("hv3")}, routes: routes{"blue-3": "10.9.9.9"}, probes: []string{"0123"}, impair: []func(*Evidence){cameFrom(2, "10.9.9.9")},
			want: "healthy | - |  | "},

		// Healthy all the same.
		{name: "healthy", pair: crossing, routes: routes{"blue-1": "hv1", "blue-3": "hv3"}, probes: []string{"01234567"},
			want: "healthy | - |  | "},
		{name: "healthy, no agent, answered from elsewhere than routes say", pair: crossing, net: []func(hosts){noAgent("hv3")}, routes: routes{"blue-3": "10.9.9.8"}, probes: []string{"0123"}, impair: []func(*Evidence){cameFrom(2, "10.9.9.9")},
			want: "healthy stale-vtep | - |  | the answer came by a tunnel from 10.9.9.9, but blue-3 is on hv3, and EVPN says 10.9.9.8 since 10:42:03, 5m ago"},
		{name: "healthy, not known", pair: crossing, routes: routes{"blue-1": "?", "blue-3": "?"}, probes: []string{"01234567"},
			want: "healthy | - |  | "},
		{name: "healthy, routes are wrong", pair: crossing, routes: routes{"blue-1": "hv1", "blue-3": "hv2"}, probes: []string{"01234567"},
			want: "healthy inventory | - |  | blue-3: inventory says hv3 (10.1.2.3), EVPN says 10.1.1.2 (hv2) since 10:42:03, 5m ago"},
		{name: "healthy, routes of both are wrong", pair: crossing, routes: routes{"blue-1": "hv2", "blue-3": "hv1"}, probes: []string{"01234567"},
			want: "healthy inventory | - |  | blue-1: inventory says hv1 (10.1.1.1), EVPN says 10.1.1.2 (hv2) since 10:42:03, 5m ago; blue-3: inventory says hv3 (10.1.2.3), EVPN says 10.1.1.1 (hv1) since 10:42:03, 5m ago"},
		{name: "healthy, one has no route", pair: crossing, routes: routes{"blue-1": "hv1", "blue-3": "no"}, probes: []string{"01234567"},
			want: "healthy inventory | - |  | blue-3: inventory says hv3 (10.1.2.3), EVPN has no route for it"},
		{name: "healthy, neither has", pair: crossing, routes: routes{"blue-1": "no", "blue-3": "no"}, probes: []string{"01234567"},
			want: "healthy | - |  | "},
		{name: "no touch: healthy, routes are wrong", noTouch: true, pair: shown, routes: routes{"blue-1": "hv2", "blue-4": "hv2"}, probes: []string{"0123"},
			want: "healthy inventory | - |  | blue-4: inventory says hv4 (10.1.2.4), EVPN says 10.1.1.2 (hv2) since 10:42:03, 5m ago"},
		{name: "no touch: stale tunnel", noTouch: true, pair: shown, routes: routes{"blue-4": "hv4"}, probes: []string{"01"}, explain: to(1, "10.1.2.3"),
			want: "faulty stale-vtep | hv1/br-tun to-tunnel → hv4/br-int from-tunnel | hv1 | stale VTEP: hv1 sends it to 10.1.2.3 (hv3), but blue-4 is on hv4 (10.1.2.4), and EVPN says 10.1.2.4 (hv4) since 10:42:03, 5m ago"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := pathBy(t, lab(t, tt.net...), tt.pair, tt.routes.options())
			if tt.noTouch {
				p = noTouch(p)
			}
			e := Evidence{Path: p, Scheme: tt.scheme, Hooks: live(p), Explanation: tt.explain}
			for _, text := range tt.probes {
				e.Attempts = append(e.Attempts, probe(t, p, text))
			}
			for _, impair := range tt.impair {
				impair(&e)
			}
			r := Judge(e)
			if got := show(&r); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if again := Judge(e); !reflect.DeepEqual(r, again) {
				t.Errorf("judged again: %+v\nfirst: %+v", again, r)
			}
		})
	}
}

// drawRoutes says of both ends, each by itself, what is right or anything else.
func drawRoutes(t *rapid.T, pair string) routes {
	r := routes{}
	for name := range strings.FieldsSeq(pair) {
		home := map[string]string{"blue-3": "hv3", "green-3": "hv3", "blue-4": "hv4"}[name]
		home = firstOf(home, "hv1")
		r[name] = rapid.SampledFrom([]string{
			"", "?", "no", home, home, home + " stale", "hv2", "hv2 stale", "hv1", "hv3", "10.9.9.9", home + "+hv2", home + "+10.9.9.9",
			"hv2 by prefix", "10.9.9.9 by prefix", home + " by prefix",
		}).Draw(t, "routes to "+name)
	}
	return r
}

// checkRoutes holds a result against what it is without routes. They may tell a person what to
// look at; of verdicts they may only put in doubt a fault that rests on the inventory's file.
func (w *world) checkRoutes(t *rapid.T, r *Result) {
	bare := *w.path
	quiet, doubt := true, false
	for i, end := range []*plan.End{&bare.From, &bare.To} {
		told := [...]*plan.End{&w.path.From, &w.path.To}[i]
		_, gone := w.evidence.Gone[end.Host]
		quiet = quiet && told.Learned.State != plan.Present && told.Learned.State != plan.Absent
		doubt = doubt || (!told.Confirmed || gone) && told.Contradicted(w.path.VTEPs)
		end.Learned, end.Disagree = plan.Learned{}, ""
	}
	e := w.evidence
	e.Path = &bare
	was := Judge(e)
	switch {
	case quiet:
		if !reflect.DeepEqual(*r, was) {
			t.Fatalf("routes that do not tell made\n%s\nof\n%s", show(r), show(&was))
		}
	case doubt && (was.Verdict == Faulty || was.Verdict == Unknown && (was.Wait > 0 || was.Kind == CauseInjection)) && r.Verdict == Unknown:
		// A fault, or what would be one but that it may be late, or chance.
	case r.Verdict != was.Verdict || r.Host != was.Host || !reflect.DeepEqual(r.Segment, was.Segment) ||
		!reflect.DeepEqual(r.Samples, was.Samples) || r.Flow != was.Flow:
		t.Fatalf("routes made\n%s\nof\n%s", show(r), show(&was))
	case strings.HasPrefix(r.Cause, staleVTEP) && r.Verdict == Healthy:
		t.Fatalf("a healthy pair with a stale VTEP: %s", show(r))
	}
}

// TestMoved has the instance move, and only routes know: whatever becomes of the probe there, what
// the inventory's file says is no proof of a fault.
func TestMoved(t *testing.T) {
	t.Parallel()
	verdicts := map[Verdict]int{}
	for range 20 {
		rapid.Check(t, func(rt *rapid.T) {
			w := buildMoved(rt, t)
			w.run(rt, t)
			r := Judge(w.evidence)
			if r.Need != nil {
				w.evidence.Explanation = w.explain(rt, r.Need)
				r = Judge(w.evidence)
			}
			lost := slices.ContainsFunc(w.truths, func(tr truth) bool { return tr.fate == byNet })
			if r.Verdict != Unknown && !(lost && r.Verdict == Faulty) {
				rt.Fatalf("%s\ntruth %v, explained %+v", show(&r), w.truths, w.evidence.Explanation)
			}
			verdicts[r.Verdict]++
			w.checkRoutes(rt, &r)
		})
	}
	if verdicts[Unknown] == 0 && !t.Failed() {
		t.Errorf("verdicts: %v: the simulator has gone blunt", verdicts)
	}
	t.Logf("verdicts: %v", verdicts)
}

// buildMoved is a world in which blue-3, which the file has on hv3, is on hv2, and all tunnels and
// routes are right about it. On hv3 there is no port of it, or a port on either, or no agent to ask.
func buildMoved(t *rapid.T, tb testing.TB) *world {
	w := &world{scheme: rapid.SampledFrom([]stain.Scheme{stain.TCP, stain.ICMP}).Draw(t, "scheme"), clears: rapid.Bool().Draw(t, "clears"),
		lossy: map[Place]bool{}, quietly: map[Place]bool{}, unread: map[Place]map[stain.Kind]uint64{}, gaps: map[Place][]int{}, late: map[Place]bool{}, goneFrom: map[string]int{}, crossing: -1}
	left := rapid.SampledFrom([]string{"no port", "a port on both", "no agent"}).Draw(t, "left behind")
	change := map[string]func(hosts){"no port": unplug("hv3", "tap-b3"), "a port on both": twin("hv2", "fa:16:3e:00:01:13"), "no agent": disconnected("hv3")}[left]
	if left == "no agent" {
		w.goneFrom["hv3"] = 0
	}
	at := rapid.SampledFrom([]string{"hv2", "hv2 stale"}).Draw(t, "routes to blue-3")
	told := routes{"blue-1": "hv1", "blue-3": at}
	w.path = cachedPath(tb, "blue-1 blue-3", "moved, "+left, told, change)
	w.impaired = true
	w.cut, w.blurred = maps.Clone(w.goneFrom), true
	w.measure()
	w.hard, w.at = rapid.SampledFrom([]fate{astray, answered}).Draw(t, "there"), w.crossing
	return w
}
