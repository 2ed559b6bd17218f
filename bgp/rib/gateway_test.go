package rib

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

// A prefix that goes by a gateway is where the gateway's MAC route is, whichever came first, and follows it.
func TestGateway(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	f := table.Peer("rr1", PeerOptions{})
	f.Up(start, false)
	step := 0
	inside := map[string]netip.Addr{"v4": netip.MustParseAddr("10.9.0.1"), "v6": netip.MustParseAddr("2001:db8:9::1")}
	prefixes := map[string]netip.Prefix{"v4": netip.MustParsePrefix("10.9.0.0/16"), "v6": netip.MustParsePrefix("2001:db8:9::/48")}
	gateways := map[string]netip.Addr{"v4": netip.MustParseAddr("10.0.0.1"), "v6": netip.MustParseAddr("2001:db8::1")}
	l3 := communities(rtBytes(rt("64512:5000")), encap(wire.EncapVXLAN))
	for v, gw := range gateways {
		say := func(name string, want State, hops []netip.Addr, attrs ...[]byte) {
			t.Helper()
			step++
			if err := f.Update(update(attrs...), at(step)); err != nil {
				t.Fatal(err)
			}
			if l := table.Snapshot().IP(VNI(5000), inside[v]); l.State != want || !slices.Equal(addrsOf(l), hops) {
				t.Errorf("%s, %s: %+v; want %v at %v", v, name, l, want, hops)
			}
		}
		mac := func(rd uint64, seq uint32, hop int, labels ...uint32) [][]byte {
			m := macRoute(rd, 0, stain.MAC{2, 0, 0, 0, 0, 1}, gw, labels...)
			return [][]byte{reach(wire.EVPN, hopOf(hop), m), communities(rtBytes(rt("64512:5000")), encap(wire.EncapVXLAN), mobility(seq, false))}
		}
		gone := func(rd uint64) []byte {
			return unreach(wire.EVPN, macRoute(rd, 0, stain.MAC{2, 0, 0, 0, 0, 1}, gw, 0))
		}
		at := func(hops ...int) (all []netip.Addr) {
			for _, n := range hops {
				all = append(all, hopOf(n))
			}
			return all
		}
		route := gatewayRoute(1, 0, prefixes[v], gw, 5000)
		say("gateway unknown", Unknown, nil, reach(wire.EVPN, hopOf(9), route), l3)
		say("in another network", Unknown, nil, mac(1, 0, 1, 100)...)
		say("there", Present, at(1), mac(1, 0, 1, 100, 5000)...)
		if l := table.Snapshot().IP(VNI(5000), inside[v]); l.Prefix != prefixes[v] || l.VTEPs[0].Label != 100 || l.VTEPs[0].L3Label != 5000 {
			t.Errorf("%s: %+v; want the MAC route's labels", v, l)
		}
		say("twice", Present, at(1, 2), mac(2, 0, 2, 100, 5000)...)
		say("moved", Present, at(3), mac(3, 1, 3, 100, 5000)...)
		say("and back", Present, at(1, 2), gone(3))
		say("gone", Present, at(2), gone(1))
		say("gone everywhere", Unknown, nil, gone(2))
		host := prefixRoute(7, 0, netip.PrefixFrom(gw, gw.BitLen()), 5000)
		say("known by a prefix alone", Unknown, nil, reach(wire.EVPN, hopOf(4), host), l3)
		say("and by a MAC route", Present, at(1), mac(1, 0, 1, 100, 5000)...)
		say("no gateway any more", Present, at(9), reach(wire.EVPN, hopOf(9), prefixRoute(1, 0, prefixes[v], 5000)), l3)
		say("a gateway, again", Present, at(1), reach(wire.EVPN, hopOf(9), route), l3)
		onSegment := slices.Clone(route)
		onSegment[2+8] = 1
		say("a gateway and a segment", Unknown, nil, reach(wire.EVPN, hopOf(9), onSegment), l3)
		say("and without one", Present, at(1), reach(wire.EVPN, hopOf(9), route), l3)
		var ended []netip.Addr
		for _, stay := range table.HistoryIP(VNI(5000), prefixes[v]) {
			ended = append(ended, stay.VTEPs...)
		}
		if want := at(1, 1, 2, 3, 1, 2, 2, 1, 9, 1, 1); !slices.Equal(ended, want) {
			t.Errorf("%s: history %v, want %v", v, ended, want)
		}
		say("withdrawn", Unknown, nil, unreach(wire.EVPN, gatewayRoute(1, 0, prefixes[v], gw, 0)))
	}
	if table.leading != 0 {
		t.Errorf("%d gateways are left", table.leading)
	}
}

// More prefixes than are weighed at once follow their gateway.
func TestGatewayOfMany(t *testing.T) {
	t.Parallel()
	table, say := leading(t)
	gw := netip.MustParseAddr("10.0.0.1")
	const n = 2*eachLen + 100
	prefix := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 24)
	}
	var many [][]byte
	for i := range n {
		many = append(many, gatewayRoute(1, 0, prefix(i), gw, 5000))
	}
	say(9, many...)
	for hop := 1; hop <= 2; hop++ {
		say(hop, macRoute(1, 0, stain.MAC{2, 0, 0, 0, 0, 1}, gw, 100, 5000))
		s := table.Snapshot()
		for i := range n {
			if l := s.IP(VNI(5000), prefix(i).Addr()); !slices.Equal(addrsOf(l), []netip.Addr{hopOf(hop)}) {
				t.Fatalf("%v: %+v; want %v", prefix(i), l, hopOf(hop))
			}
			if stays := table.HistoryIP(VNI(5000), prefix(i)); len(stays) != hop || !slices.Equal(stays[hop-1].VTEPs, []netip.Addr{hopOf(hop)}) {
				t.Fatalf("history of %v: %v", prefix(i), stays)
			}
		}
	}
}

// leading returns a table, and what tells it routes.
func leading(t *testing.T) (*Table, func(hop int, routes ...[]byte)) {
	table := New(Options{})
	f := table.Peer("rr1", PeerOptions{})
	f.Up(start, false)
	attrs := communities(rtBytes(rt("64512:5000")), encap(wire.EncapVXLAN))
	return table, func(hop int, routes ...[]byte) {
		t.Helper()
		for some := range slices.Chunk(routes, 50) {
			if err := f.Update(update(reach(wire.EVPN, hopOf(hop), some...), attrs), start); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Two addresses that go by each other come to an end, by however many routes; and so many for a gateway are
// too many to be looked at.
func TestGatewayCircle(t *testing.T) {
	t.Parallel()
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for _, n := range []int{10, eachLen + 100} {
		table, say := leading(t)
		for i, gw := range []netip.Addr{a, b} {
			say(1+i, macRoute(1, 0, stain.MAC{2, 0, 0, 0, 0, byte(i)}, gw, 100, 5000))
		}
		var circle [][]byte
		for i := range n {
			rd := uint64(i)
			circle = append(circle, gatewayRoute(rd, 0, netip.PrefixFrom(a, 32), b, 5000), gatewayRoute(rd, 0, netip.PrefixFrom(b, 32), a, 5000))
		}
		say(9, circle...)
		want := []netip.Addr{hopOf(1), hopOf(2)} // by its own route, and by the other's
		if n > maxOnSegment {
			want = want[:1] // by its own
		}
		if l := table.Snapshot().IP(VNI(5000), a); !slices.Equal(addrsOf(l), want) {
			t.Errorf("%d routes: %+v; want %v", n, l, want)
		}
	}
}
