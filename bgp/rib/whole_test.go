package rib

import (
	"testing"

	"github.com/dyetrace/dyetrace/bgp/wire"
)

// Complete passes over a peer that is down; Whole does not.
func TestWhole(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	want := func(what string, complete, whole bool) {
		t.Helper()
		if s := table.Snapshot(); s.Complete() != complete || s.Whole() != whole {
			t.Errorf("%s: complete %v, whole %v; want %v, %v", what, s.Complete(), s.Whole(), complete, whole)
		}
	}
	want("nobody", false, false)
	a, b := table.Peer("a", PeerOptions{}), table.Peer("b", PeerOptions{Families: []wire.Family{wire.EVPN, wire.VPNv4}})
	a.Up(at(1), false)
	want("a has begun", false, false)
	a.Update(endOfRIB(wire.EVPN), at(2))
	want("a told all, b is down", true, false)
	b.Up(at(3), false)
	b.Update(endOfRIB(wire.EVPN), at(3))
	want("b told half", false, false)
	b.Update(endOfRIB(wire.VPNv4), at(4))
	want("both told all", true, true)
	b.SetOptions(PeerOptions{RTs: []wire.RouteTarget{rt("64512:1")}, Families: []wire.Family{wire.EVPN, wire.VPNv4}}, at(5))
	want("b leaves out what it tells", true, false)
	b.Close(at(6))
	want("b is gone", true, true)
	a.Down(at(7), true)
	want("a is down", false, false)
}
