package rib

import (
	"net/netip"
	"testing"

	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

// Route targets that come to mean another VNI take their routes with them; all else stays as it was,
// its history too. As many routes as need several turns.
func TestSetNetworks(t *testing.T) {
	table := New(Options{Networks: Networks{Targets: map[wire.RouteTarget]uint32{rt("64512:1"): 1001, rt("64512:9"): 9}}})
	peer := table.Peer("rr1", PeerOptions{Families: []wire.Family{wire.EVPN, wire.VPNv4}})
	peer.Up(start, false)
	mapped, other := flock{0, 80}, flock{1000, 80}
	ip := netip.MustParseAddr("10.0.0.7")
	play(t, peer, [][]byte{
		update(reach(wire.EVPN, hopOf(1), mapped.routes(1, 17<<4)...), communities(rtBytes(rt("64512:1")), encap(wire.EncapMPLSUDP))),
		update(reach(wire.VPNv4, hopOf(1), vpnRoute(1, netip.PrefixFrom(ip, 32), 17<<4)), communities(rtBytes(rt("64512:1")), encap(wire.EncapMPLSUDP))),
	}, start)
	for i := range 2 * eachLen / 80 {
		other.first = 1000 + 80*i
		play(t, peer, [][]byte{other.here(2, 0)}, start)
	}
	is := func(vni uint32) (n int) {
		s := table.Snapshot()
		for i := range mapped.n {
			if s.MAC(vni, mapped.mac(i)).State == Present {
				n++
			}
		}
		if s.IP(VNI(vni), ip).State == Present {
			n++
		}
		return n
	}
	in := func(vnis ...uint32) (n []int) {
		for _, vni := range vnis {
			n = append(n, is(vni))
		}
		return n
	}
	all := mapped.n + 1
	for i, tt := range []struct {
		networks map[wire.RouteTarget]uint32
		want     [2]int // in VNI 1001 and 1002
	}{
		{nil, [2]int{0, 0}},
		{map[wire.RouteTarget]uint32{rt("64512:1"): 1002}, [2]int{0, all}},
		{map[wire.RouteTarget]uint32{rt("64512:1"): 1002}, [2]int{0, all}},
		{map[wire.RouteTarget]uint32{rt("64512:1"): 1001}, [2]int{all, 0}},
	} {
		table.SetNetworks(Networks{Targets: tt.networks}, at(i+1))
		if got := in(1001, 1002); got[0] != tt.want[0] || got[1] != tt.want[1] {
			t.Errorf("%v: %v, want %v", tt.networks, got, tt.want)
		}
	}
	// Route distinguishers put routes in a VNI, too, beside the route targets.
	for i, tt := range []struct {
		networks Networks
		want     [2]int
	}{
		{Networks{RDs: map[wire.RD]uint32{1: 1002, 1<<48 | 1: 1002}}, [2]int{0, all}},
		{Networks{RDs: map[wire.RD]uint32{1: 1002, 1<<48 | 1: 1002}, Targets: map[wire.RouteTarget]uint32{rt("64512:1"): 1001}}, [2]int{all, all}},
		{Networks{RDs: map[wire.RD]uint32{7: 1002}}, [2]int{0, 0}},
	} {
		table.SetNetworks(tt.networks, at(10+i))
		if got := in(1001, 1002); got[0] != tt.want[0] || got[1] != tt.want[1] {
			t.Errorf("%v: %v, want %v", tt.networks, got, tt.want)
		}
	}
	for _, mac := range []stain.MAC{other.mac(0), other.mac(79)} {
		if h := table.History(100, mac); len(h) != 1 || !h[0].From.Equal(start) {
			t.Errorf("%v, which has no such target: %v", mac, h)
		}
	}
	if h := table.History(1002, mapped.mac(0)); len(h) != 2 || !h[0].From.Equal(at(2)) || !h[0].To.Equal(at(4)) {
		t.Errorf("history in VNI 1002: %v", h)
	}
}
