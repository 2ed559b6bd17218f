package rib

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/bgp/slab"
	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

// flock is MACs that one UPDATE tells, and one takes back: whoever looks sees all or none.
type flock struct{ first, n int }

func (f flock) mac(i int) stain.MAC { return stain.MACFromUint64(0x02<<40 | uint64(f.first+i)) }

func (f flock) routes(hop int, label uint32) (all [][]byte) {
	for i := range f.n {
		all = append(all, macRoute(uint64(1<<48|hop), 0, f.mac(i), netip.Addr{}, label))
	}
	return all
}

func (f flock) here(hop int, seq uint32) []byte {
	return update(reach(wire.EVPN, hopOf(hop), f.routes(hop, 100)...), communities(encap(wire.EncapVXLAN), mobility(seq, false)))
}

func (f flock) gone(hop int) []byte { return update(unreach(wire.EVPN, f.routes(hop, 0)...)) }

// sight is where a snapshot has all MACs of a flock; the error says that it has some elsewhere.
func (f flock) sight(s *Snapshot) (string, error) {
	var first string
	for i := range f.n {
		l := s.MAC(100, f.mac(i))
		is := fmt.Sprint(l.State, l.Seq)
		for _, v := range l.VTEPs {
			is += " " + v.Addr.String()
		}
		if i == 0 {
			first = is
		} else if is != first {
			return "", fmt.Errorf("MAC %d: %s, MAC 0: %s", i, is, first)
		}
	}
	return first, nil
}

// A snapshot stays what it is for as long as it is held, while pages are copied and given out anew,
// places go and their numbers come again, and the index that it shares moves entries and splits.
func TestHeldSnapshots(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 20
	}
	table := New(Options{History: 4}) // so few that places are forgotten
	table.slab.Poison = true
	peer := table.Peer("rr1", PeerOptions{})
	peer.Up(start, false)
	if err := peer.Update(update(unreach(wire.EVPN)), start); err != nil { // End-of-RIB
		t.Fatal(err)
	}
	flocks := []flock{{0, 40}, {1000, 40}, {2000, 40}}
	var end atomic.Bool
	var looks atomic.Int64
	var wg sync.WaitGroup
	for reader := range 3 {
		wg.Go(func() {
			f := flocks[reader]
			for !end.Load() {
				s := table.Snapshot()
				before, err := f.sight(s)
				for range 20 {
					var again string
					if err == nil {
						again, err = f.sight(s)
					}
					if err == nil && again != before {
						err = fmt.Errorf("%s, and %s before", again, before)
					}
				}
				if err != nil {
					t.Errorf("reader %d: %v", reader, err)
					return
				}
				looks.Add(1)
				if reader == 0 {
					runtime.GC()
				}
			}
		})
	}
	crowd := flock{10_000, 90}
	for i := range rounds {
		now := at(i)
		for j, f := range flocks {
			play(t, peer, [][]byte{f.here(2*j+i%2, uint32(2*i)), f.gone(2*j + i%2)}, now)
			play(t, peer, [][]byte{f.here(2*j+i%2, uint32(2*i+1)), f.here(2*j+(i+1)%2, uint32(2*i+2)), f.gone(2*j + i%2), f.gone(2*j + (i+1)%2)}, now)
		}
		// A crowd that comes and goes makes buckets split and entries move.
		for j := range 20 {
			crowd.first = 10_000 + 1000*(i%7) + 90*j
			if i%2 == 0 {
				play(t, peer, [][]byte{crowd.here(9, 0)}, now)
			} else {
				crowd.first -= 1000
				play(t, peer, [][]byte{crowd.gone(9)}, now)
			}
		}
	}
	end.Store(true)
	wg.Wait()
	t.Logf("%d snapshots looked at, %d held at the end", looks.Load(), len(table.lives))
	if looks.Load() < 10 {
		t.Errorf("%d snapshots looked at, which proves nothing", looks.Load())
	}
	wantReclaimed(t, table)
}

// reclaim waits until no more snapshots than n are held.
func reclaim(t *testing.T, table *Table, n int) {
	t.Helper()
	held := 0
	for range 1000 {
		runtime.GC()
		table.mu.Lock()
		table.reclaim()
		held = len(table.lives)
		table.mu.Unlock()
		if held <= n {
			return
		}
		time.Sleep(time.Millisecond) // cleanups have a goroutine of their own
	}
	t.Fatalf("%d snapshots are kept, of which %d are held", held, n)
}

// wantReclaimed wants nothing to be kept for snapshots that nobody holds.
func wantReclaimed(t *testing.T, table *Table) {
	t.Helper()
	table.changed() // the last one is not held for the next who asks
	reclaim(t, table, 0)
	table.mu.Lock()
	defer table.mu.Unlock()
	var entries int
	var last *bucket
	for i := range table.byPlace.dir.Load().buckets {
		if b := table.byPlace.dir.Load().buckets[i].Load(); b != last {
			entries, last = entries+int(b.n), b
		}
	}
	if have := int(table.places.next) - 1 - len(table.places.free); entries != have {
		t.Errorf("%d entries in the index of %d places", entries, have)
	}
}

// Each of several snapshots that are held keeps what it saw when another is given up, whichever.
func TestSnapshotsGivenUp(t *testing.T) {
	const n = 4
	f, calm := flock{0, 80}, flock{50_000, 100}
	sight := func(s *Snapshot) string {
		at, err := f.sight(s)
		calmly, err2 := calm.sight(s)
		return fmt.Sprint(at, " and ", calmly, err, err2)
	}
	for drop := range n {
		table := New(Options{History: -1})
		table.slab.Poison = true
		peer := table.Peer("rr1", PeerOptions{})
		peer.Up(start, false)
		play(t, peer, [][]byte{calm.here(7, 0)}, start)
		var held [n]*Snapshot
		var want [n]string
		for i := range n {
			play(t, peer, [][]byte{f.here(i, uint32(i))}, at(i))
			held[i] = table.Snapshot()
			want[i] = sight(held[i])
			if !strings.Contains(want[i], hopOf(i).String()) {
				t.Fatalf("snapshot %d: %s", i, want[i])
			}
			if i == n-2 { // pages that three snapshots share
				play(t, peer, [][]byte{calm.here(7, 1)}, start)
			}
			play(t, peer, [][]byte{f.gone(i)}, at(i)) // places go, and others of the same numbers come
			play(t, peer, [][]byte{flock{1000 * (i + 1), 80}.here(9, 0)}, at(i))
		}
		for _, i := range []int{drop, (drop + 2) % n} {
			held[i] = nil
			table.changed()
			reclaim(t, table, len(slices.DeleteFunc(slices.Clone(held[:]), func(s *Snapshot) bool { return s == nil })))
			play(t, peer, [][]byte{f.here(8, 8), f.gone(8)}, at(n))
			for j, s := range held {
				if s == nil {
					continue
				}
				if got := sight(s); got != want[j] {
					t.Errorf("%d was given up; snapshot %d: %s; want %s", i, j, got, want[j])
				}
			}
		}
		clear(held[:])
		wantReclaimed(t, table)
	}
}

// Whoever searches finds what is there all the time, though entries around move and buckets split.
func TestSearchMeanwhile(t *testing.T) {
	x := newIndex(slab.New())
	hash := func(id uint32) uint32 { return id * 0x9e3779b1 }
	for id := uint32(1); id <= 100; id++ {
		x.add(hash(id), id)
	}
	var end atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !end.Load() {
				for id := uint32(1); id <= 100; id++ {
					if got := x.search(hash(id), func(have uint32) bool { return have == id }); got != id {
						t.Errorf("entry %d: found %d", id, got)
						return
					}
				}
			}
		})
	}
	for round := range uint32(2000) {
		first := 1000 + round%10*1000
		for id := first; id < first+60; id++ {
			x.add(hash(id), id)
		}
		for id := first; id < first+60; id++ {
			if round < 1900 || id%2 == 0 { // in the end it grows
				x.remove(hash(id), id)
			}
		}
	}
	end.Store(true)
	wg.Wait()
	if n := len(x.dir.Load().buckets); n < 2 {
		t.Error("no bucket was split")
	}
}
