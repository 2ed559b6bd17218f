package rib

import (
	"math/rand/v2"
	"testing"

	"github.com/dyetrace/dyetrace/bgp/slab"
)

// An index has what was put in and not taken out, whatever came and went around it: with hashes that are
// alike, so that walks are long, and buckets that fill up with marks of what is gone.
func TestIndex(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		x := newIndex(slab.New())
		have := map[uint32]uint32{} // id → hash
		var ids []uint32
		next := uint32(1)
		find := func(id, hash uint32) (uint32, gap) {
			return x.find(hash, func(at uint32) bool { return at == id })
		}
		grows := true
		for step := range 20_000 {
			if step%2500 == 0 {
				grows = r.IntN(3) > 0
			}
			if put := r.IntN(10) < 7; put == grows || len(ids) == 0 {
				// A few homes in each of some buckets.
				id, hash := next, r.Uint32N(16)<<28|r.Uint32N(8)*uint32(1+r.IntN(5))
				next++
				found, at := find(id, hash)
				if found != 0 || !x.addAt(at, hash, id) {
					t.Fatalf("seed %d, step %d: no room for %d (found %d)", seed, step, id, found)
				}
				have[id] = hash
				ids = append(ids, id)
				if len(ids) > 1200 {
					grows = false
				}
				continue
			}
			i := r.IntN(len(ids))
			id := ids[i]
			ids[i] = ids[len(ids)-1]
			ids = ids[:len(ids)-1]
			x.remove(have[id], id)
			if found, _ := find(id, have[id]); found != 0 {
				t.Fatalf("seed %d, step %d: %d is there still", seed, step, id)
			}
			delete(have, id)
		}
		for id, hash := range have {
			if found, _ := find(id, hash); found != id {
				t.Fatalf("seed %d: found %d, want %d", seed, found, id)
			}
			if found := x.search(hash, func(at uint32) bool { return at == id }); found != id {
				t.Fatalf("seed %d: a reader found %d, want %d", seed, found, id)
			}
		}
		x.count(t, len(have))
	}
}

// count holds what buckets say of themselves against their slots, and wants n entries.
func (x *index) count(t *testing.T, n int) {
	t.Helper()
	var last *bucket
	for i := range x.dir.Load().buckets {
		b := x.dir.Load().buckets[i].Load()
		if b == last {
			continue
		}
		last = b
		var entries, marks int
		for _, s := range b.slots {
			switch {
			case slot(s) == gone:
				marks++
			case s != 0:
				entries++
			}
		}
		if entries != int(b.n) || marks != int(b.marks) || entries+marks == bucketLen {
			t.Errorf("a bucket has %d entries and %d marks, and says %d and %d", entries, marks, b.n, b.marks)
		}
		n -= entries
	}
	if n != 0 {
		t.Errorf("%d entries are missing", n)
	}
}

// A gap is one until another record takes it, or what is around it moves.
func TestGap(t *testing.T) {
	t.Parallel()
	x := newIndex(slab.New())
	never := func(uint32) bool { return false }
	if _, at := x.find(5, never); at.has(0) {
		t.Error("a gap where there is no bucket")
	}
	x.add(5, 1)
	_, at := x.find(5, never)
	if !at.has(0) {
		t.Fatal("no gap")
	}
	x.add(5, 2) // takes it
	if at.has(0) {
		t.Error("still one with a record in it")
	}
	x.remove(5, 1)
	_, at = x.find(5, never)
	if slot(at.b.slots[at.i]) != gone || !at.has(0) {
		t.Errorf("slot %#x, has none: %v; want the mark of what is gone", at.b.slots[at.i], at.has(0))
	}
	hash := func(id uint32) uint32 { return id * 0x9e3779b1 }
	for id := uint32(10); len(x.dir.Load().buckets) == 1; id++ {
		x.add(hash(id), id)
	}
	if at.has(0) {
		t.Error("still one when the bucket was split")
	}
	id, at := x.find(hash(10), func(id uint32) bool { return id == 10 })
	if id != 10 || !at.has(10) {
		t.Fatalf("found %d, has it: %v; want 10", id, at.has(10))
	}
	at.turn(hash(10), 7)
	if id, _ := x.find(hash(10), func(uint32) bool { return true }); id != 7 || at.has(10) || !at.has(7) {
		t.Errorf("found %d where 10 was turned into 7", id)
	}
}
