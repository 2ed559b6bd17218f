package rib

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

type told struct {
	peer string
	body []byte
}

type agreeing struct {
	told  []told
	look  netip.Addr
	hops  []int
	state State
}

// prefix is the one that is looked up.
func (c agreeing) prefix() netip.Prefix {
	if c.look == netip.MustParseAddr("10.9.0.1") {
		return netip.MustParsePrefix("10.9.0.0/16")
	}
	return netip.PrefixFrom(c.look, 32)
}

// A route that looks like what is known of its address, and yet makes it another when it comes, or is left.
func TestAgrees(t *testing.T) {
	t.Parallel()
	gw, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	host := netip.PrefixFrom(gw, 32)
	mac := macRoute(1, 0, stain.MAC{2, 0, 0, 0, 0, 1}, gw, 100, 5000)
	elsewhere := macRoute(1, 0, stain.MAC{2, 0, 0, 0, 0, 2}, other, 100, 5000)
	l3 := communities(rtBytes(rt("64512:5000")), encap(wire.EncapVXLAN))
	from := func(hop int, routes ...[]byte) []byte {
		return update(reach(wire.EVPN, hopOf(hop), routes...), l3)
	}
	gone := func(route []byte) []byte { return update(unreach(wire.EVPN, route)) }
	esi := wire.ESI{0, 1, 2, 3}
	for name, c := range map[string]agreeing{
		"a prefix is no gateway's MAC route": {[]told{
			{"a", from(1, mac)}, {"a", from(1, prefixRoute(7, 0, host, 5000))},
			{"a", from(9, gatewayRoute(1, 0, netip.MustParsePrefix("10.9.0.0/16"), gw, 5000))},
			{"a", gone(mac)},
		}, netip.MustParseAddr("10.9.0.1"), nil, Unknown},
		"the next hop of who goes by a gateway": {[]told{
			{"a", from(2, elsewhere)}, {"a", from(1, prefixRoute(7, 0, host, 5000))},
			{"a", from(1, gatewayRoute(1, 0, host, other, 5000))},
		}, gw, []int{1, 2}, Present},
		"and of that alone": {[]told{
			{"a", from(2, elsewhere)}, {"a", from(1, prefixRoute(7, 0, host, 5000))},
			{"a", from(1, gatewayRoute(1, 0, host, other, 5000))}, {"a", gone(prefixRoute(7, 0, host, 5000))},
		}, gw, []int{2}, Present},
		"what another peer must not say": {[]told{
			{"a", from(1, mac)}, {"strict", from(1, mac)}, {"a", gone(mac)},
		}, gw, nil, Unknown},
		"what this one must not say": {[]told{
			{"a", from(1, mac)}, {"strict", from(1, mac)}, {"strict", gone(mac)},
		}, gw, []int{1}, Present},
		"one on a segment that nobody is on": {[]told{
			{"a", from(1, mac)},
			{"b", from(1, macOnSegment(1, 0, stain.MAC{2, 0, 0, 0, 0, 1}, esi, gw, 100, 5000))}, {"a", gone(mac)},
		}, gw, nil, Unknown},
		"one of two that agree": {[]told{
			{"a", from(1, mac)}, {"b", from(1, mac)}, {"a", gone(mac)},
		}, gw, []int{1}, Present},
		"both": {[]told{
			{"a", from(1, mac)}, {"b", from(1, mac)}, {"b", gone(mac)}, {"a", gone(mac)},
		}, gw, nil, Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := New(Options{})
			feeds := map[string]*Feed{
				"a": table.Peer("a", PeerOptions{}), "b": table.Peer("b", PeerOptions{}),
				"strict": table.Peer("strict", PeerOptions{NextHops: []netip.Prefix{netip.PrefixFrom(hopOf(9), 32)}}),
			}
			for _, f := range feeds {
				f.Up(start, false)
			}
			for i, say := range c.told {
				if err := feeds[say.peer].Update(say.body, at(i)); err != nil {
					t.Fatal(err)
				}
			}
			var want []netip.Addr
			for _, h := range c.hops {
				want = append(want, hopOf(h))
			}
			if l := table.Snapshot().IP(VNI(5000), c.look); l.State != c.state || !slices.Equal(addrsOf(l), want) {
				t.Errorf("%+v; want %v at %v", l, c.state, want)
			}
			var now []netip.Addr // by what is remembered; a lookup weighs for itself
			for _, stay := range table.HistoryIP(VNI(5000), c.prefix()) {
				if stay.To.IsZero() {
					now = stay.VTEPs
				}
			}
			if !slices.Equal(now, want) {
				t.Errorf("in the history it is at %v, want %v", now, want)
			}
		})
	}
}

// One NLRI of many peers is one entry of the index, whoever of them comes and goes.
func TestPeersOfOneRoute(t *testing.T) {
	t.Parallel()
	const n = 600 // more than a bucket holds
	table := New(Options{})
	route := macRoute(1, 0, stain.MAC{2, 0, 0, 0, 0, 1}, netip.Addr{}, 100)
	l2 := communities(rtBytes(rt("64512:100")), encap(wire.EncapVXLAN))
	var feeds []*Feed
	for i := range n {
		f := table.Peer(string(rune('a'+i)), PeerOptions{})
		f.Up(start, false)
		feeds = append(feeds, f)
		for range 2 {
			if err := f.Update(update(reach(wire.EVPN, hopOf(1+i%3), route), l2), start); err != nil {
				t.Fatal(err)
			}
		}
	}
	look := func(peers int, hops ...int) {
		t.Helper()
		s := table.Snapshot()
		var want []netip.Addr
		for _, h := range hops {
			want = append(want, hopOf(h))
		}
		var names int
		l := s.MAC(100, stain.MAC{2, 0, 0, 0, 0, 1})
		for _, v := range l.VTEPs {
			names += len(v.Peers)
		}
		if s.Len() != peers || names != peers || !slices.Equal(addrsOf(l), want) {
			t.Errorf("%d routes of %d peers, at %v; want %d, at %v", s.Len(), names, addrsOf(l), peers, want)
		}
	}
	look(n, 1, 2, 3)
	entries := 0
	for i := range table.byRoute.dir.Load().buckets {
		entries += int(table.byRoute.dir.Load().buckets[i].Load().n)
	}
	if entries != 1 {
		t.Errorf("%d entries in the index, want 1", entries)
	}
	for i, f := range feeds { // the oldest, the newest, and between them
		if i%3 != 1 {
			if err := f.Update(update(unreach(wire.EVPN, route, route)), start); err != nil {
				t.Fatal(err)
			}
		}
	}
	look(n/3, 2)
	for _, f := range feeds {
		f.Down(start, false)
	}
	if s := table.Snapshot(); s.Len() != 0 || table.byRoute.dir.Load().buckets[0].Load().n != 0 {
		t.Errorf("%d routes are left", s.Len())
	}
}
