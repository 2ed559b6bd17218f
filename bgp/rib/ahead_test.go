package rib

import (
	"net/netip"
	"testing"

	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

// What a peer may tell, and which network a route target is, count when an UPDATE is taken in, not when it
// was read.
func TestChangedSinceRead(t *testing.T) {
	t.Parallel()
	red, blue := rt("64512:100"), rt("64512:200")
	mac := stain.MAC{2, 0, 0, 0, 0, 1}
	route := reach(wire.EVPN, hopOf(1), macRoute(1, 0, mac, netip.Addr{}, 0x000640)) // VNI 1600, or label 100
	for _, tt := range []struct {
		name       string
		was, is    PeerOptions
		mapped     bool // red is VNI 7 since
		n          Network
		want       State
		routes     int
		deniedThen uint64
	}{
		{name: "nothing changed", n: VNI(1600), want: Present, routes: 1},
		{name: "target let in", was: PeerOptions{RTs: []wire.RouteTarget{blue}}, is: PeerOptions{RTs: []wire.RouteTarget{red}}, n: VNI(1600), want: Present, routes: 1},
		{name: "target no more let in", was: PeerOptions{RTs: []wire.RouteTarget{red}}, is: PeerOptions{RTs: []wire.RouteTarget{blue}}, n: VNI(1600), deniedThen: 1},
		{name: "next hop let in", was: PeerOptions{NextHops: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, n: VNI(1600), want: Present, routes: 1},
		{name: "next hop no more let in", is: PeerOptions{NextHops: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, n: VNI(1600), routes: 1},
		{name: "another encapsulation", is: PeerOptions{Default: wire.EncapMPLS}, n: Target(red), want: Present, routes: 1},
		{name: "and not the one before", is: PeerOptions{Default: wire.EncapMPLS}, n: VNI(1600), routes: 1},
		{name: "another network", mapped: true, n: VNI(7), want: Present, routes: 1},
		{name: "and not the one before", mapped: true, n: VNI(1600), routes: 1},
		{name: "fewer routes", is: PeerOptions{MaxRoutes: 1}, n: VNI(1600), want: Present, routes: 1},
	} {
		table := New(Options{})
		f := table.Peer("rr1", tt.was)
		f.Up(at(1), false)
		var a Ahead
		f.Read(&a, update(route, communities(rtBytes(red))))
		f.SetOptions(tt.is, at(2))
		if tt.mapped {
			table.SetNetworks(Networks{Targets: map[wire.RouteTarget]uint32{red: 7}}, at(2))
		}
		if err := f.Take(&a, at(3)); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if l := table.Snapshot().MACIn(tt.n, mac); l.State != tt.want || f.Routes() != tt.routes || f.Stats().Denied != tt.deniedThen {
			t.Errorf("%s: %+v with %d routes, %+v; want %v with %d", tt.name, l, f.Routes(), f.Stats(), tt.want, tt.routes)
		}
	}
}

// An Ahead is used again and again: nothing of an UPDATE before is left in it.
func TestAheadAgain(t *testing.T) {
	t.Parallel()
	mac := func(i byte) []byte {
		return reach(wire.EVPN, hopOf(1), macRoute(1, 0, stain.MAC{2, 0, 0, 0, 0, i}, netip.Addr{}, 100))
	}
	targets := communities(rtBytes(rt("64512:100")))
	f := New(Options{}).Peer("rr1", PeerOptions{RTs: []wire.RouteTarget{rt("64512:100")}})
	f.Up(at(1), false)
	var a Ahead
	for i, tt := range []struct {
		name   string
		body   []byte
		fails  bool
		routes int
	}{
		{"one", update(mac(1), targets), false, 1},
		{"another, of another target", update(mac(2), communities(rtBytes(rt("64512:200")))), false, 1},
		{"End-of-RIB", endOfRIB(wire.EVPN), false, 1},
		{"nonsense", []byte{0, 0, 0, 200}, true, 1},
		{"the first is withdrawn", update(unreach(wire.EVPN, macRoute(1, 0, stain.MAC{2, 0, 0, 0, 0, 1}, netip.Addr{}, 0))), false, 0},
		{"nothing", []byte{0, 0, 0, 0}, false, 0},
		{"one, again", update(mac(1), targets), false, 1},
	} {
		f.Read(&a, tt.body)
		if err := f.Take(&a, at(i+2)); (err != nil) != tt.fails || f.Routes() != tt.routes {
			t.Errorf("%s: %d routes (%v), want %d", tt.name, f.Routes(), err, tt.routes)
		}
	}
}
