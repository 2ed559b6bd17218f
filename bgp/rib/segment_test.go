package rib

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

var (
	rack  = wire.ESI{0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99}
	guest = stain.MAC{2, 0, 0, 0, 0, 7}
)

// segment is what switches of one rack say, one by one, of VNI 100.
type segment struct {
	t      *testing.T
	table  *Table
	feed   *Feed
	single bool
	steps  int
}

func newSegment(t *testing.T, single bool) *segment {
	s := &segment{t: t, table: New(Options{}), single: single}
	s.feed = s.table.Peer("rr1", PeerOptions{})
	s.feed.Up(start, false)
	return s
}

func (s *segment) say(attrs ...[]byte) {
	s.t.Helper()
	s.steps++
	if err := s.feed.Update(update(attrs...), at(s.steps)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *segment) attributes() []byte {
	c := [][]byte{rtBytes(rt("64512:100")), encap(wire.EncapVXLAN)}
	if s.single {
		c = append(c, community(0x0601, 1<<40))
	}
	return communities(c...)
}

// on and in have a switch say that it is on the segment, and in the network on it.
func (s *segment) on(n int) {
	s.t.Helper()
	s.say(reach(wire.EVPN, hopOf(n), segmentRoute(uint64(n), wire.MaxTag, rack, 0)), s.attributes())
}

func (s *segment) in(n int) {
	s.t.Helper()
	s.say(reach(wire.EVPN, hopOf(n), segmentRoute(uint64(n), 0, rack, 100)), s.attributes())
}

func (s *segment) teach(n int) {
	s.t.Helper()
	s.say(reach(wire.EVPN, hopOf(n), macOnSegment(uint64(n), 0, guest, rack, netip.MustParseAddr("10.0.0.7"), 100)), s.attributes())
}

func (s *segment) leave(n int) {
	s.t.Helper()
	s.say(unreach(wire.EVPN, segmentRoute(uint64(n), wire.MaxTag, rack, 0)))
}

// behind wants the machine, and its address, at these switches; none: not known.
func (s *segment) behind(what string, want ...int) {
	s.t.Helper()
	snap := s.table.Snapshot()
	for _, l := range []Lookup{snap.MAC(100, guest), snap.IP(VNI(100), netip.MustParseAddr("10.0.0.7"))} {
		var hops []netip.Addr
		for _, n := range want {
			hops = append(hops, hopOf(n))
		}
		state := Present
		if len(want) == 0 {
			state = Unknown
		}
		if l.State != state || !slices.Equal(addrsOf(l), hops) {
			s.t.Errorf("%s: %+v; want %v at %v", what, l, state, hops)
		}
	}
}

// A machine on three switches, of which one taught its address (RFC 7432, 8.4), until they leave.
func TestAliasing(t *testing.T) {
	t.Parallel()
	s := newSegment(t, false)
	s.teach(1)
	s.behind("nobody has said that it is on the segment (9.2.2)")
	s.in(1)
	s.in(2)
	s.behind("per EVI alone says nothing (8.4)")
	s.on(1)
	s.behind("taught", 1)
	s.on(2)
	s.on(3)
	s.behind("aliased", 1, 2)
	s.in(3)
	s.behind("aliased by all", 1, 2, 3)
	s.leave(1)
	s.behind("mass withdraw by who taught it (8.2)", 2, 3)
	s.leave(2)
	s.leave(3)
	s.behind("all have left")
	s.on(1)
	s.behind("back", 1)
	if h := s.table.History(100, guest); len(h) != 6 {
		t.Errorf("history: %v", h)
	}
	if n := len(slices.Collect(s.table.Snapshot().Routes(Filter{Kind: wire.KindSegment}))); n != 4 {
		t.Errorf("%d routes of segments, want 4", n)
	}
}

// Single-active, a machine is behind the one that taught it, and then behind the other.
func TestSingleActive(t *testing.T) {
	t.Parallel()
	s := newSegment(t, true)
	for n := 1; n <= 2; n++ {
		s.on(n)
		s.in(n)
	}
	s.teach(1)
	s.behind("taught", 1)
	s.leave(1)
	s.behind("the backup", 2)
	s.on(3)
	s.in(3)
	s.behind("which of two, nobody tells")
	s.teach(3)
	s.behind("taught anew", 3)
}

// Switches that do not agree are taken for single-active, whichever said it last.
func TestSingleActiveByOne(t *testing.T) {
	t.Parallel()
	for _, first := range []bool{true, false} {
		s := newSegment(t, false)
		for n := 1; n <= 2; n++ {
			s.single = (n == 1) == first
			s.on(n)
			s.in(n)
		}
		s.teach(1)
		s.behind("taught", 1)
		s.single = false
		s.on(1)
		s.on(2)
		s.behind("all agree", 1, 2)
	}
}

// A machine that is taught on no segment any more follows its route alone.
func TestOffSegment(t *testing.T) {
	t.Parallel()
	s := newSegment(t, false)
	for n := 1; n <= 2; n++ {
		s.on(n)
		s.in(n)
	}
	plain := func() {
		t.Helper()
		s.say(reach(wire.EVPN, hopOf(1), macRoute(1, 0, guest, netip.MustParseAddr("10.0.0.7"), 100)), s.attributes())
	}
	plain()
	s.behind("not on it yet", 1)
	s.teach(1)
	s.behind("on it", 1, 2)
	s.leave(1)
	s.behind("left", 2)
	s.on(1)
	plain()
	s.behind("off it", 1)
	s.leave(1)
	s.behind("it is nothing to it", 1)
	s.teach(1)
	s.behind("on it again", 2)
	s.on(1)
	s.behind("as at first", 1, 2)
	if h := s.table.History(100, guest); len(h) != 7 {
		t.Errorf("history: %v", h)
	}
}

// An alias has the label that its own route says, and the route's origin.
func TestAliasLabel(t *testing.T) {
	t.Parallel()
	s := newSegment(t, false)
	for n := 1; n <= 2; n++ {
		s.on(n)
		s.in(n)
	}
	s.teach(1)
	v := s.table.Snapshot().MAC(100, guest).VTEPs
	if len(v) != 2 || v[1].Label != 100 || v[1].ESI != rack || !slices.Equal(v[1].RDs, []wire.RD{2}) || !slices.Equal(v[1].Peers, []string{"rr1"}) {
		t.Errorf("%+v", v)
	}
}

// On a segment of more machines than are weighed at once, none is ever said to be where it is not, and all
// are where they are in the end.
func TestGreatSegment(t *testing.T) {
	t.Parallel()
	s := newSegment(t, false)
	for n := 1; n <= 2; n++ {
		s.on(n)
	}
	s.in(2)
	const macs = 2*eachLen + 100
	mac := func(i int) stain.MAC { return stain.MAC{2, 0, 1, byte(i >> 16), byte(i >> 8), byte(i)} }
	for i := range macs {
		s.say(reach(wire.EVPN, hopOf(1), macOnSegment(1, 0, mac(i), rack, netip.Addr{}, 100)), s.attributes())
	}
	where := func(what string, want ...int) (present int) {
		t.Helper()
		snap := s.table.Snapshot()
		var hops []netip.Addr
		for _, n := range want {
			hops = append(hops, hopOf(n))
		}
		for i := range macs {
			switch l := snap.MAC(100, mac(i)); {
			case l.State == Present && slices.Equal(addrsOf(l), hops):
				present++
			case l.State != Unknown:
				t.Fatalf("%s: machine %d: %+v", what, i, l)
			}
		}
		return present
	}
	// halfway stops an UPDATE before all that hangs on it is weighed.
	halfway := func(attrs ...[]byte) {
		t.Helper()
		var a Ahead
		s.feed.Read(&a, update(attrs...))
		s.steps++
		if rest, err := s.feed.apply(&a, at(s.steps)); !rest || err != nil {
			t.Fatalf("nothing is left to be weighed (%v)", err)
		}
	}
	end := func(what string, want ...int) {
		t.Helper()
		s.table.turnRest(at(s.steps))
		if n := where(what, want...); n != macs && len(want) > 0 || n != 0 && len(want) == 0 {
			t.Errorf("%s: %d of %d machines are there", what, n, macs)
		}
	}
	end("at first", 1, 2)
	halfway(unreach(wire.EVPN, segmentRoute(1, wire.MaxTag, rack, 0)))
	where("one has left", 2)
	end("one has left", 2)
	halfway(unreach(wire.EVPN, segmentRoute(2, wire.MaxTag, rack, 0)))
	where("all have left")
	end("all have left")
	halfway(reach(wire.EVPN, hopOf(1), segmentRoute(1, wire.MaxTag, rack, 0)), s.attributes())
	where("back", 1)
	end("back", 1)
	if h := s.table.History(100, mac(macs-1)); len(h) != 3 || !h[2].To.IsZero() {
		t.Errorf("history: %v", h)
	}
}

// BenchmarkMassWithdraw has a switch leave a segment of many machines, and come back.
func BenchmarkMassWithdraw(b *testing.B) {
	for _, macs := range []int{100, 10_000} {
		b.Run(fmt.Sprint(macs, " MACs"), func(b *testing.B) {
			table := New(Options{})
			f := table.Peer("rr1", PeerOptions{})
			f.Up(start, false)
			say := func(attrs ...[]byte) {
				if err := f.Update(update(attrs...), start); err != nil {
					b.Fatal(err)
				}
			}
			attrs := communities(rtBytes(rt("64512:100")), encap(wire.EncapVXLAN))
			for n := 1; n <= 2; n++ {
				say(reach(wire.EVPN, hopOf(n), segmentRoute(uint64(n), wire.MaxTag, rack, 0), segmentRoute(uint64(n), 0, rack, 100)), attrs)
			}
			for i := range macs {
				mac := stain.MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}
				say(reach(wire.EVPN, hopOf(1), macOnSegment(1, 0, mac, rack, netip.Addr{}, 100)), attrs)
			}
			for b.Loop() {
				say(unreach(wire.EVPN, segmentRoute(1, wire.MaxTag, rack, 0)))
				say(reach(wire.EVPN, hopOf(1), segmentRoute(1, wire.MaxTag, rack, 0)), attrs)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(2*macs), "ns/MAC")
		})
	}
}
