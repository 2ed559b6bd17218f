package rib

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

var (
	mac1 = stain.MAC{2, 0, 0, 0, 0, 1}
	hopA = netip.MustParseAddr("192.0.2.1")
	hopB = netip.MustParseAddr("192.0.2.2")
)

// rr is a table with one peer that is up and synced.
func rr(o PeerOptions) (*Table, *Feed) {
	t := New(Options{})
	f := t.Peer("rr1", o)
	f.Up(start, false)
	f.Settle(start)
	return t, f
}

func mustUpdate(t testing.TB, f *Feed, second int, attrs ...[]byte) {
	t.Helper()
	if err := f.Update(update(attrs...), at(second)); err != nil {
		t.Fatal(err)
	}
}

func tell(hop netip.Addr, rd uint64, c ...[]byte) [][]byte {
	return [][]byte{reach(wire.EVPN, hop, macRoute(rd, 0, mac1, netip.Addr{}, 100)), communities(append(c, encap(wire.EncapVXLAN))...)}
}

func wantAt(t testing.TB, l Lookup, state State, hops ...netip.Addr) {
	t.Helper()
	if l.State != state || !slices.Equal(addrsOf(l), hops) {
		t.Errorf("%v at %v; want %v at %v", l.State, addrsOf(l), state, hops)
	}
}

// Nothing that is refused moves a MAC, and what may hide a route makes no Absent.
func TestRefused(t *testing.T) {
	t.Parallel()
	known := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	top := mobility(1<<32-1, true)
	bad := attribute(0xc0, 16, []byte{0, 2, 0})
	tests := []struct {
		name  string
		attrs [][]byte
		err   error
	}{
		{"next hop of no VTEP", tell(netip.MustParseAddr("198.51.100.1"), 9, top), nil},
		{"next hop 0.0.0.0", tell(netip.MustParseAddr("0.0.0.0"), 9, top), nil},
		{"next hop multicast", tell(netip.MustParseAddr("ff02::1"), 9, top), nil},
		{"communities broken", [][]byte{tell(hopB, 9)[0], bad}, ErrWithdraw},
		{"attribute behind the end", [][]byte{tell(hopB, 9)[0], {0xc0, 16, 200, 0}}, ErrWithdraw},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			table, f := rr(PeerOptions{NextHops: known})
			wantAt(t, table.Snapshot().MAC(100, mac1), Absent)
			if err := f.Update(update(tt.attrs...), at(1)); !errors.Is(err, tt.err) {
				t.Fatalf("Update: %v, want %v", err, tt.err)
			}
			wantAt(t, table.Snapshot().MAC(100, mac1), Unknown)
			mustUpdate(t, f, 2, tell(hopA, 1)...)
			wantAt(t, table.Snapshot().MAC(100, mac1), Present, hopA)
			mustUpdate(t, f, 3, unreach(wire.EVPN, macRoute(1, 0, mac1, netip.Addr{}, 0)))
			wantAt(t, table.Snapshot().MAC(100, mac1), Unknown)
			mustUpdate(t, f, 4, unreach(wire.EVPN, macRoute(9, 0, mac1, netip.Addr{}, 0)))
			wantAt(t, table.Snapshot().MAC(100, mac1), Absent)
		})
	}
}

// A route that cannot be located changes nothing, not even by those before it.
func TestResetTakesNothingIn(t *testing.T) {
	t.Parallel()
	table, f := rr(PeerOptions{})
	mustUpdate(t, f, 1, tell(hopA, 1)...)
	good := macRoute(1, 0, mac1, netip.Addr{}, 100)
	for _, broken := range [][]byte{good[:30], typed(2, good[2:27]), {2}, {2, 255, 0}} {
		err := f.Update(update(unreach(wire.EVPN, good), reach(wire.EVPN, hopB, good, broken)), at(2))
		if !errors.Is(err, ErrReset) {
			t.Errorf("%x: %v", broken, err)
		}
	}
	wantAt(t, table.Snapshot().MAC(100, mac1), Present, hopA)
}

func TestMobility(t *testing.T) {
	t.Parallel()
	table, f := rr(PeerOptions{})
	w := table.Watch(1)
	steps := []struct {
		hop    netip.Addr
		rd     uint64
		seq    uint32
		sticky bool
		want   []netip.Addr
	}{
		{hopA, 1, 0, false, []netip.Addr{hopA}},
		{hopB, 2, 0, false, []netip.Addr{hopA, hopB}},   // ECMP, or twice the same MAC
		{hopB, 2, 1 << 31, false, []netip.Addr{hopB}},   // plain order: no half of a circle
		{hopA, 1, 1<<32 - 1, false, []netip.Addr{hopA}}, //
		{hopB, 2, 0, false, []netip.Addr{hopA}},         // 0 does not follow 2³²−1
		{hopB, 2, 0, true, []netip.Addr{hopB}},          // sticky goes before all
		{hopA, 3, 7, true, []netip.Addr{hopA}},          //
		{hopA, 4, 7, true, []netip.Addr{hopA}},          // several RDs, one VTEP
	}
	for i, s := range steps {
		mustUpdate(t, f, i+1, tell(s.hop, s.rd, mobility(s.seq, s.sticky))...)
		wantAt(t, table.Snapshot().MAC(100, mac1), Present, s.want...)
	}
	l := table.Snapshot().MAC(100, mac1)
	if len(l.VTEPs) != 1 || !slices.Equal(l.VTEPs[0].RDs, []wire.RD{3, 4}) || !l.Sticky || l.Seq != 7 || !l.Since.Equal(at(7)) {
		t.Errorf("%+v", l)
	}
	if c := <-w.C; c.MAC != mac1 || c.Network != VNI(100) || len(c.From) != 0 || !slices.Equal(c.To, []netip.Addr{hopA}) || !c.At.Equal(at(1)) {
		t.Errorf("first change %+v", c)
	}
	if n := w.Dropped(); n != 5 { // seven changes, one in the buffer, one step of no change
		t.Errorf("%d changes dropped", n)
	}
	w.Close()
	w.Close()
	if _, open := <-w.C; open {
		t.Error("open after Close")
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	table, f := rr(PeerOptions{MaxRoutes: 1})
	mustUpdate(t, f, 1, tell(hopA, 1)...)
	if err := f.Update(update(tell(hopB, 2)...), at(2)); !errors.Is(err, ErrLimit) {
		t.Fatalf("second route: %v", err)
	}
	other := stain.MAC{2, 0, 0, 0, 0, 2}
	wantAt(t, table.Snapshot().MAC(100, mac1), Present, hopA)
	wantAt(t, table.Snapshot().MAC(100, other), Unknown)
	f.Settle(at(3))
	wantAt(t, table.Snapshot().MAC(100, other), Unknown)
	f.Down(at(4), false)
	f.Up(at(5), false)
	f.Settle(at(6))
	wantAt(t, table.Snapshot().MAC(100, mac1), Absent)
}

// Whoever tells more routes for one MAC than can be weighed gets no answer, and costs no more
// than their number; when they are gone, answers are back.
func TestCrowd(t *testing.T) {
	t.Parallel()
	table, f := rr(PeerOptions{})
	const n = maxClaims + 100
	for i := 0; i < n; i += 50 {
		var routes [][]byte
		for j := range 50 {
			routes = append(routes, macRoute(uint64(i+j+1), 0, mac1, netip.Addr{}, 100))
		}
		mustUpdate(t, f, 1, reach(wire.EVPN, hopA, routes...))
		if i+50 == maxClaims/50*50 {
			wantAt(t, table.Snapshot().MAC(100, mac1), Present, hopA)
		}
	}
	wantAt(t, table.Snapshot().MAC(100, mac1), Unknown)
	for i := range n - 1 {
		mustUpdate(t, f, 2, unreach(wire.EVPN, macRoute(uint64(i+1), 0, mac1, netip.Addr{}, 0)))
	}
	wantAt(t, table.Snapshot().MAC(100, mac1), Present, hopA)
}

// More route targets than a route is put in: who asks by target gets no Absent.
func TestManyTargets(t *testing.T) {
	t.Parallel()
	table, f := rr(PeerOptions{Families: []wire.Family{wire.VPNv4}})
	var c [][]byte
	for i := range uint64(maxTargets + 4) {
		c = append(c, rtBytes(wire.RouteTarget(0x0002<<48|64512<<32|i)))
	}
	p := netip.MustParsePrefix("10.0.0.1/32")
	mustUpdate(t, f, 1, reach(wire.VPNv4, hopA, vpnRoute(1, p, 0x191)), communities(c...))
	s := table.Snapshot()
	l := s.IP(Target(rt("64512:15")), p.Addr())
	wantAt(t, l, Present, hopA)
	if l.VTEPs[0].Label != 0x19 || l.Prefix != p {
		t.Errorf("%+v", l)
	}
	wantAt(t, s.IP(Target(rt("64512:16")), p.Addr()), Unknown)
	wantAt(t, s.IP(VNI(5), p.Addr()), Absent)
	mustUpdate(t, f, 2, unreach(wire.VPNv4, vpnRoute(1, p, 0)))
	wantAt(t, table.Snapshot().IP(Target(rt("64512:16")), p.Addr()), Absent)
}

func TestSetOptions(t *testing.T) {
	t.Parallel()
	one, two := rt("64512:1"), rt("64512:2")
	table, f := rr(PeerOptions{})
	mustUpdate(t, f, 1, tell(hopA, 1, rtBytes(one))...)
	for i, s := range []struct {
		o       PeerOptions
		refresh bool
		state   State
	}{
		{PeerOptions{RTs: []wire.RouteTarget{one, two}}, false, Present},
		{PeerOptions{RTs: []wire.RouteTarget{one}, NextHops: []netip.Prefix{netip.PrefixFrom(hopB, 32)}}, false, Unknown},
		{PeerOptions{RTs: []wire.RouteTarget{one}}, false, Present},
		{PeerOptions{RTs: []wire.RouteTarget{two}}, true, Absent},
		{PeerOptions{RTs: []wire.RouteTarget{two}, Default: wire.EncapMPLS}, true, Absent},
		{PeerOptions{}, true, Absent},
	} {
		if got := f.SetOptions(s.o, at(2+i)); got != s.refresh {
			t.Errorf("step %d: refresh %v, want %v", i, got, s.refresh)
		}
		if l := table.Snapshot().MAC(100, mac1); l.State != s.state {
			t.Errorf("step %d: %v, want %v", i, l.State, s.state)
		}
	}
}

// Readers and feeds at once: each snapshot has all routes of an UPDATE or none of them.
func TestSnapshotWhileFed(t *testing.T) {
	t.Parallel()
	table := New(Options{})
	f := fabric{vteps: 20}
	done := make(chan error, 2)
	for i := range 2 {
		peer := table.Peer(fmt.Sprint(i), f.options())
		peer.Up(start, false)
		go func() {
			for round := range 20 {
				for _, bodies := range [][][]byte{f.feed(i, uint32(round)), f.withdrawal(i)} {
					for _, b := range bodies {
						if err := peer.Update(b, at(round)); err != nil {
							done <- err
							return
						}
					}
				}
			}
			done <- nil
		}()
	}
	for running := 2; running > 0; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running--
		default:
		}
		if n := table.Snapshot().Len(); n%perUpdate != 0 {
			t.Fatalf("%d routes, no multiple of %d", n, perUpdate)
		}
	}
	if n := table.Snapshot().Len(); n != 0 {
		t.Errorf("%d routes left", n)
	}
}

// Whatever a peer sends, the table holds what it can count, says nothing of next hops that
// the peer may not name, and is empty when the peer is gone. The input is a chain of UPDATEs,
// each behind its length of two bytes.
func FuzzUpdate(f *testing.F) {
	chain := func(bodies ...[]byte) (all []byte) {
		for _, b := range bodies {
			all = append(append(all, byte(len(b)>>8), byte(len(b))), b...)
		}
		return all
	}
	ip, p4, p6 := netip.MustParseAddr("10.0.0.1"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/33")
	target := rtBytes(rt("64512:1"))
	f.Add(chain(update(tell(hopA, 1, mobility(1<<32-1, true), target, community(0x0605, 1<<40))...), endOfRIB(wire.EVPN)))
	f.Add(chain(
		update(reach(wire.EVPN, hopA, macRoute(1, 0, mac1, ip, 100, 5000), multicastRoute(1, 0, hopA), prefixRoute(1, 0, p6, 5000), typed(6, u64(1))), communities(target), pmsi(100)),
		update(unreach(wire.EVPN, macRoute(1, 0, mac1, ip, 0)), reach(wire.EVPN, hopB, macRoute(2, 0, mac1, ip, 100))),
		update(reach(wire.EVPN, hopB, macRoute(2, 0, mac1, ip, 100)), attribute(0xc0, 16, []byte{1})),
	))
	f.Add(chain(update(reach(wire.VPNv4, hopA, vpnRoute(1, p4, 0x191)), communities(target)), update(reach(wire.VPNv6, netip.MustParseAddr("::1"), vpnRoute(1, p6, 0x191)))))
	f.Add(chain(update(reach(wire.EVPN, hopA, typed(2, u64(1)))), endOfRIB(wire.IPv4Unicast)))
	f.Add(chain(
		update(reach(wire.EVPN, hopA, macOnSegment(1, 0, mac1, rack, ip, 100)), communities(target)),
		update(reach(wire.EVPN, hopB, segmentRoute(2, wire.MaxTag, rack, 0), segmentRoute(2, 0, rack, 100)), communities(target)),
		update(unreach(wire.EVPN, segmentRoute(2, wire.MaxTag, rack, 0))),
	))
	f.Fuzz(func(t *testing.T, in []byte) {
		known := netip.MustParsePrefix("192.0.2.0/24")
		table := New(Options{History: 3})
		peer := table.Peer("p", PeerOptions{Families: modelFamilies, NextHops: []netip.Prefix{known}, MaxRoutes: 100})
		peer.Up(start, false)
		for i := 1; len(in) >= 2; i++ {
			n := min(int(in[0])<<8|int(in[1]), len(in)-2)
			body := in[2 : 2+n]
			in = in[2+n:]
			before := table.Snapshot()
			err := peer.Update(body, at(i))
			if errors.Is(err, ErrReset) && table.Snapshot().Len() != before.Len() {
				t.Fatalf("%v, and %d routes after %d", err, table.Snapshot().Len(), before.Len())
			}
			checkSnapshot(t, table.Snapshot(), known, peer.Stats())
		}
		peer.Close(at(1 << 20))
		if n := table.Snapshot().Len(); n != 0 {
			t.Fatalf("%d routes of nobody", n)
		}
		table.mu.Lock()
		defer table.mu.Unlock()
		if n := len(table.paths.ids); n != 0 {
			t.Fatalf("%d paths of nobody", n)
		}
	})
}

// checkSnapshot wants each sound route to be found in each of its networks.
func checkSnapshot(t *testing.T, s *Snapshot, known netip.Prefix, st Stats) {
	n := 0
	for r := range s.Routes(Filter{}) {
		n++
		for _, net := range r.Networks {
			var l Lookup
			switch {
			case r.Kind == wire.KindMulticast || r.Kind == wire.KindSegment:
				continue // of no address
			case r.Kind == wire.KindMAC && net == VNI(r.L3Label) && net != VNI(r.Label):
				l = s.IP(net, r.Prefix.Addr())
			case r.Kind == wire.KindMAC:
				l = s.MACIn(net, r.MAC)
			default:
				l = s.IP(net, r.Prefix.Addr())
			}
			// Nobody may have said that the segment is there that it is on (RFC 7432, 9.2.2).
			segment := r.Kind == wire.KindMAC && r.ESI != wire.ESI{} && r.ESI != maxESI
			if !r.Refused && l.State != Present && !segment && s.full == false && n < maxClaims {
				t.Fatalf("%+v is %v", r, l.State)
			}
			for _, v := range l.VTEPs {
				if !known.Contains(v.Addr) {
					t.Fatalf("%+v is at %v", r, v.Addr)
				}
			}
		}
	}
	if n != st.Routes || n > 100 {
		t.Fatalf("%d routes, %d counted", n, st.Routes)
	}
}

// A route of no network that we know has no place to be found at. It is withdrawn like others, also
// where it was the only one.
func TestPlacelessWithdrawn(t *testing.T) {
	t.Parallel()
	table, f := rr(PeerOptions{})
	nlri := macRoute(1, 0, mac1, netip.Addr{}, 0)
	mustUpdate(t, f, 1, reach(wire.EVPN, hopA, nlri))
	if n := f.Routes(); n != 1 {
		t.Fatalf("%d routes (want 1)", n)
	}
	mustUpdate(t, f, 2, unreach(wire.EVPN, nlri))
	if n := f.Routes(); n != 0 || table.Snapshot().Len() != 0 {
		t.Errorf("%d routes, %d in the table (want none)", n, table.Snapshot().Len())
	}
}
