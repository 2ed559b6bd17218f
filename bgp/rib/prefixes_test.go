package rib

import (
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"weak"

	"pgregory.net/rapid"
)

// A set of prefixes says what a walk through the list says.
func TestPrefixes(t *testing.T) {
	t.Parallel()
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		low := rapid.SliceOfN(rapid.Byte(), 2, 2).Draw(t, "low") // few bits, so that some fit
		if rapid.Bool().Draw(t, "v6") {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: low[0], 15: low[1]})
		}
		return netip.AddrFrom4([4]byte{10, 0, low[0], low[1]})
	})
	both := map[bool]int{}
	rapid.Check(t, func(t *rapid.T) {
		var list []netip.Prefix
		for _, a := range rapid.SliceOfN(addr, 0, 20).Draw(t, "of") {
			list = append(list, netip.PrefixFrom(a, rapid.IntRange(-1, a.BitLen()).Draw(t, "bits")))
		}
		s := newPrefixes(list)
		a := addr.Draw(t, "addr")
		want := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
		if got := s.contains(a); got != want {
			t.Fatalf("%v in %v: %v, want %v", a, list, got, want)
		}
		both[want]++
	})
	if both[true] == 0 || both[false] == 0 {
		t.Errorf("drew answers %v, want both", both)
	}
}

// A snapshot that nobody reads any more goes with the next change, and the pages with it that the
// table has copied since.
func TestSnapshotGoes(t *testing.T) {
	t.Parallel()
	f := fabric{vteps: 1}
	table := New(Options{})
	peer := table.Peer("rr1", f.options())
	peer.Up(start, false)
	play(t, peer, f.feed(0, 0), start)
	old := weak.Make(table.Snapshot())
	if table.Snapshot() != old.Value() {
		t.Error("another snapshot of the same")
	}
	play(t, peer, f.feed(0, 1), start)
	runtime.GC()
	if old.Value() != nil {
		t.Error("an old snapshot is kept")
	}
}
