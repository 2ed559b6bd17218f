package rib

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

// fabric is a number of VTEPs with 200 MACs each, half of them in one VNI and half in
// another, as FRR tells them: one UPDATE for all routes of equal attributes.
type fabric struct{ vteps int }

const perVTEP, perUpdate = 200, 100

func (f fabric) routes() int { return f.vteps * perVTEP }

func (f fabric) mac(i int) stain.MAC { return stain.MACFromUint64(0x02_00_00_00_00_00 | uint64(i)) }

func (f fabric) vni(i int) uint32 { return uint32(10000 + i/perUpdate%64) }

func hopOf(vtep int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(vtep >> 8), byte(vtep)}) }

// feed returns the UPDATEs that put MAC i at VTEP i/200+shift with this sequence.
func (f fabric) feed(shift int, seq uint32) (bodies [][]byte) {
	for first := 0; first < f.routes(); first += perUpdate {
		vtep := (first/perVTEP + shift) % f.vteps
		bodies = append(bodies, update(f.reach(first, vtep), f.communities(first, seq)))
	}
	return bodies
}

func (f fabric) nlri(first, vtep int, label uint32) [][]byte {
	rd := 1<<48 | uint64(0x0a010000+vtep)<<16 | uint64(f.vni(first)&0xffff)
	var routes [][]byte
	for i := range perUpdate {
		routes = append(routes, macRoute(rd, 0, f.mac(first+i), netip.Addr{}, label))
	}
	return routes
}

func (f fabric) reach(first, vtep int) []byte {
	return reach(wire.EVPN, hopOf(vtep), f.nlri(first, vtep, f.vni(first))...)
}

func (f fabric) communities(first int, seq uint32) []byte {
	c := [][]byte{community(0x0002, 64512<<32|uint64(f.vni(first))), encap(wire.EncapVXLAN)}
	if seq > 0 {
		c = append(c, mobility(seq, false))
	}
	return communities(c...)
}

// withdrawal is feed's, undone as FRR does: labels 0, no attributes.
func (f fabric) withdrawal(shift int) (bodies [][]byte) {
	for first := 0; first < f.routes(); first += perUpdate {
		vtep := (first/perVTEP + shift) % f.vteps
		bodies = append(bodies, update(unreach(wire.EVPN, f.nlri(first, vtep, 0)...)))
	}
	return bodies
}

func (f fabric) options() PeerOptions {
	o := PeerOptions{MaxRoutes: 2 * f.routes(), NextHops: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	for vni := range uint32(64) {
		o.RTs = append(o.RTs, wire.RouteTarget(0x0002<<48|64512<<32|uint64(10000+vni)))
	}
	return o
}

func play(tb testing.TB, f *Feed, bodies [][]byte, now time.Time) {
	tb.Helper()
	for _, b := range bodies {
		if err := f.Update(b, now); err != nil {
			tb.Fatal(err)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A route costs a bounded number of bytes, all indexes included, and ten full churns (all MACs
// move, all routes go and come again) leave the table no greater than one did.
func TestMemory(t *testing.T) {
	f := fabric{vteps: 500}
	learn, move := f.feed(0, 0), f.feed(1, 1)
	undo, undoMove := f.withdrawal(0), f.withdrawal(1)
	before := heap()
	table := New(Options{})
	peer := table.Peer("rr1", f.options())
	peer.Up(start, false)
	play(t, peer, learn, start)
	size := func() uint64 {
		reclaim(t, table, 1)
		const both = 2 << 20 // what slabs have of the heap, a MiB each
		return heap() - before + uint64(table.slab.Used()+table.byPlace.slab.Used()) - both
	}
	// 64 route, 64 place, 20 link, twice 8 / 0.42 in the indexes (buckets that were just split
	// are 42 % full): 186, and the paths, which 100 routes share.
	if per := float64(size()) / float64(f.routes()); per > 203 {
		t.Errorf("%.0f bytes a route, want 203 at most", per)
	}
	sizes := make([]uint64, 10)
	for i := range sizes {
		now := at(10 * i)
		play(t, peer, move, now)
		play(t, peer, undo, now.Add(time.Second))
		play(t, peer, undoMove, now.Add(2*time.Second))
		if n := table.Snapshot().Len(); n != 0 {
			t.Fatalf("%d routes after all were withdrawn", n)
		}
		play(t, peer, learn, now.Add(3*time.Second))
		table.Snapshot()
		sizes[i] = size()
	}
	// The first churn brings the history, once and for all, and both routes of a MAC in between.
	if sizes[9] > sizes[1]+sizes[1]/20 {
		t.Errorf("bytes after each churn: %d; want no growth", sizes)
	}
	runtime.KeepAlive(table)
}

func BenchmarkLearn(b *testing.B) {
	for _, vteps := range []int{500, 5000} {
		for _, peers := range []int{1, 2} {
			f := fabric{vteps: vteps}
			b.Run(fmt.Sprintf("routes=%d/peers=%d", f.routes(), peers), func(b *testing.B) {
				bodies := f.feed(0, 0)
				b.ReportAllocs()
				for b.Loop() {
					table := New(Options{})
					for i := range peers {
						peer := table.Peer(fmt.Sprint(i), f.options())
						peer.Up(start, false)
						play(b, peer, bodies, start)
					}
				}
				perRoute(b, peers*f.routes())
			})
		}
	}
}

func perRoute(b *testing.B, n int) {
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "routes/s")
}

func BenchmarkChurn(b *testing.B) {
	f := fabric{vteps: 5000}
	table := New(Options{})
	peer := table.Peer("rr1", f.options())
	peer.Up(start, false)
	learn, undo := f.feed(0, 0), f.withdrawal(0)
	moved, undoMoved := f.feed(1, 1), f.withdrawal(1)
	play(b, peer, learn, start)
	b.Run("refresh", func(b *testing.B) { // all routes again, nothing new
		b.ReportAllocs()
		for b.Loop() {
			play(b, peer, learn, start)
		}
		perRoute(b, f.routes())
	})
	b.Run("move", func(b *testing.B) { // all MACs there and, by a withdrawal, back
		b.ReportAllocs()
		for b.Loop() {
			play(b, peer, moved, start)
			play(b, peer, undoMoved, start)
		}
		perRoute(b, 2*f.routes())
	})
	b.Run("withdraw and learn", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			play(b, peer, undo, start)
			play(b, peer, learn, start)
		}
		perRoute(b, 2*f.routes())
	})
	b.Run("snapshot each 10 ms of it", func(b *testing.B) { // 20k routes
		b.ReportAllocs()
		for b.Loop() {
			for i := range moved {
				if i%200 == 0 {
					table.Snapshot()
				}
				play(b, peer, moved[i:i+1], start)
			}
			play(b, peer, undoMoved, start)
		}
		perRoute(b, 2*f.routes())
	})
}

func BenchmarkSnapshot(b *testing.B) {
	f := fabric{vteps: 5000}
	table := New(Options{})
	peer := table.Peer("rr1", f.options())
	peer.Up(start, false)
	play(b, peer, f.feed(0, 0), start)
	b.Run("take", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			table.now.Add(1) // as if something had changed
			table.Snapshot()
		}
	})
	b.Run("take and update", func(b *testing.B) {
		bodies := [2][][]byte{f.feed(0, 0), f.feed(0, 1)}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			table.Snapshot()
			play(b, peer, bodies[i%2][i%10000:i%10000+1], start)
		}
	})
	b.Run("MAC", func(b *testing.B) {
		s := table.Snapshot()
		b.ReportAllocs()
		n := f.routes()
		for i := 0; b.Loop(); i++ {
			j := i * 7919 % n
			if s.MAC(f.vni(j), f.mac(j)).State != Present {
				b.Fatal(j)
			}
		}
	})
}

// A million routes go and come again while a reader looks up hosts, by a snapshot each 100 ms.
func BenchmarkRead(b *testing.B) {
	f := fabric{vteps: 5000}
	table := New(Options{})
	peer := table.Peer("rr1", f.options())
	peer.Up(start, false)
	learn, undo := f.feed(0, 0), f.withdrawal(0)
	play(b, peer, learn, start)
	var end atomic.Bool
	var lookups int
	var wg sync.WaitGroup
	wg.Go(func() {
		for !end.Load() {
			s := table.Snapshot()
			for until := time.Now().Add(100 * time.Millisecond); time.Now().Before(until); {
				for range 64 {
					i := rand.IntN(f.routes())
					s.MAC(f.vni(i), f.mac(i))
				}
				lookups += 64
			}
		}
	})
	for b.Loop() {
		play(b, peer, undo, start)
		play(b, peer, learn, start)
	}
	end.Store(true)
	wg.Wait()
	perRoute(b, 2*f.routes())
	b.ReportMetric(float64(lookups)/b.Elapsed().Seconds(), "lookups/s")
}
