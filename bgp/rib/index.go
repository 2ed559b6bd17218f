package rib

import (
	"math/bits"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"unsafe"

	"github.com/dyetrace/dyetrace/bgp/slab"
)

// index finds records by the hash of their key: extendible hashing. The uppermost bits of a
// hash choose a bucket, the lowest a slot in it. A bucket that is full becomes two, and one
// more bit tells them apart: there is never more than a bucket to move.
//
// One at a time writes, and meanwhile any number may read by [index.search]. A snapshot has no index of
// its own, since each change after it would have to copy a bucket, and changes hit buckets at random:
// it searches that of the table, which keeps what a snapshot may look for until nobody holds it. So
// there may be entries of records that are no more, or are others now, and a record twice.
//
// What is taken out leaves a mark, over which walks go on, so that nothing has to move up: slots move
// only when a bucket is made anew, and what is there is found though others are put in and taken out
// around it.
type index struct {
	slab *slab.Slab
	dir  atomic.Pointer[directory]
	room []bucket // for the next ones: together, they stay in the cache
}

type directory struct {
	buckets []atomic.Pointer[bucket] // 1<<depth
	depth   uint8
}

const (
	bucketLen  = 256
	bucketFull = 192 // beyond 3/4, walks for what is not there get long: 8 slots are looked at, at 5/6 20
	// bucketSparse is how many entries leave so much room that a bucket is rid of its marks rather than
	// split: at least a quarter of its slots are free then.
	bucketSparse = bucketFull * 2 / 3
	maxDepth     = 20 // a directory of 8 MiB, 100M records; hashes are seeded, so nobody can aim at a bucket
	// roomLen is how many buckets are made at a time: a page of memory.
	roomLen = 128
)

// A slot is a hash and, below it, a record's number; 0 is an empty one, gone one that was taken out.
type slot uint64

const gone slot = 1 << 32

func newSlot(hash, id uint32) slot { return slot(hash)<<32 | slot(id) }

func (s slot) hash() uint32 { return uint32(s >> 32) }
func (s slot) id() uint32   { return uint32(s) }

// free tells whether a record can be put there.
func (s slot) free() bool { return s.id() == 0 }

type slots [bucketLen]uint64

type bucket struct {
	version atomic.Uint64 // odd while slots move
	slots   *slots
	n       uint16 // entries
	marks   uint16 // slots that are gone
	depth   uint8
}

func (x *index) newBucket(depth uint8) *bucket {
	if len(x.room) == 0 {
		x.room = make([]bucket, roomLen)
	}
	b := &x.room[0]
	x.room = x.room[1:]
	b.slots, b.depth = (*slots)(x.slab.Get(unsafe.Sizeof(slots{}))), depth
	clear(b.slots[:])
	return b
}

func newIndex(s *slab.Slab) *index { return &index{slab: s} }

func (d *directory) at(hash uint32) *bucket {
	return d.buckets[hash>>1>>(31-d.depth)].Load() // by 32 is by 0, then
}

func (x *index) bucket(hash uint32) *bucket {
	d := x.dir.Load()
	if d == nil {
		return nil
	}
	return d.at(hash)
}

// gap is where a record is that was found, or can be put that was not, as long as nothing moves.
type gap struct {
	b       *bucket
	i       uint32
	version uint64 // of b
}

// has tells whether the record is there still; of 0, that none is, which is for who took nothing out since.
func (g gap) has(id uint32) bool {
	return g.b != nil && slot(g.b.slots[g.i]).id() == id && g.b.version.Load() == g.version
}

// turn puts a record in the place of the one that was found.
func (g gap) turn(hash, id uint32) { atomic.StoreUint64(&g.b.slots[g.i], uint64(newSlot(hash, id))) }

// find returns the record with this hash for which same holds, and where it is; 0 if there is none, and
// where it could be put. It is for who writes.
func (x *index) find(hash uint32, same func(id uint32) bool) (id uint32, at gap) {
	b := x.bucket(hash)
	if b == nil {
		return 0, gap{}
	}
	first := uint32(bucketLen) // that is gone
	for i := hash % bucketLen; ; i = (i + 1) % bucketLen {
		switch s := slot(b.slots[i]); {
		case s == 0:
			if first < bucketLen {
				i = first
			}
			return 0, gap{b, i, b.version.Load()}
		case s == gone:
			if first == bucketLen {
				first = i
			}
		case s.hash() == hash && same(s.id()):
			return s.id(), gap{b, i, b.version.Load()}
		}
	}
}

// touch reads what find will read first, while others may write.
func (x *index) touch(hashes []uint32) (sum uint32) {
	d := x.dir.Load()
	if d == nil {
		return 0
	}
	for _, hash := range hashes {
		sum += slot(atomic.LoadUint64(&d.at(hash).slots[hash%bucketLen])).id()
	}
	return sum
}

// search is find for who reads, where same is true of one record at most, and always. While slots of a
// bucket move, what is there is found or missed; so a miss counts only if nothing moved meanwhile.
func (x *index) search(hash uint32, same func(id uint32) bool) uint32 {
	for {
		b := x.bucket(hash)
		if b == nil {
			return 0
		}
		version := b.version.Load()
		for i, n := hash%bucketLen, 0; n < bucketLen; i, n = (i+1)%bucketLen, n+1 {
			s := slot(atomic.LoadUint64(&b.slots[i]))
			if s == 0 {
				break
			}
			if s.hash() == hash && !s.free() && same(s.id()) {
				return s.id()
			}
		}
		if version%2 == 0 && b.version.Load() == version && x.bucket(hash) == b {
			return 0
		}
		runtime.Gosched()
	}
}

// addAt puts in a record that was not found, at the gap; false: there is no room for it.
func (x *index) addAt(at gap, hash, id uint32) bool {
	if at.b == nil || at.b.n+at.b.marks >= bucketFull {
		return x.add(hash, id)
	}
	at.b.put(at.i, newSlot(hash, id))
	return true
}

// add puts in a record; false: there is no room for it.
func (x *index) add(hash, id uint32) bool {
	if x.dir.Load() == nil {
		d := &directory{buckets: make([]atomic.Pointer[bucket], 1)}
		d.buckets[0].Store(x.newBucket(0))
		x.dir.Store(d)
	}
	b := x.bucket(hash)
	for b.n+b.marks >= bucketFull && x.widen(b, hash) {
		b = x.bucket(hash)
	}
	if b.n+b.marks == bucketLen-1 && b.marks > 0 {
		b.tidy()
	}
	if b.n == bucketLen-1 { // one stays empty, or a walk would not end
		return false
	}
	i := hash % bucketLen
	for !slot(b.slots[i]).free() {
		i = (i + 1) % bucketLen
	}
	b.put(i, newSlot(hash, id))
	return true
}

// put puts an entry into a free slot.
func (b *bucket) put(i uint32, s slot) {
	if slot(b.slots[i]) == gone {
		b.marks--
	}
	b.n++
	atomic.StoreUint64(&b.slots[i], uint64(s))
}

// remove takes out a record that is there.
func (x *index) remove(hash, id uint32) {
	b := x.bucket(hash)
	i := hash % bucketLen
	for slot(b.slots[i]) != newSlot(hash, id) {
		i = (i + 1) % bucketLen
	}
	b.n--
	if b.slots[(i+1)%bucketLen] != 0 {
		atomic.StoreUint64(&b.slots[i], uint64(gone))
		b.marks++
		return
	}
	// Walks that come here end here; so do those that come to marks before it.
	atomic.StoreUint64(&b.slots[i], 0)
	for i = (i - 1) % bucketLen; slot(b.slots[i]) == gone; i = (i - 1) % bucketLen {
		atomic.StoreUint64(&b.slots[i], 0)
		b.marks--
	}
}

// widen makes room in a bucket: it is rid of its marks, or becomes two. false: it must not.
func (x *index) widen(b *bucket, hash uint32) bool {
	if b.n > bucketSparse {
		return x.split(hash)
	}
	b.tidy()
	return true
}

// tidy rids a bucket of its marks.
func (b *bucket) tidy() {
	var fresh slots
	for _, s := range b.slots {
		if !slot(s).free() {
			fresh.put(s)
		}
	}
	b.version.Add(1)
	b.set(&fresh)
	b.version.Add(1)
	b.marks = 0
}

func (a *slots) put(s uint64) {
	i := slot(s).hash() % bucketLen
	for a[i] != 0 {
		i = (i + 1) % bucketLen
	}
	a[i] = s
}

// set writes what differs.
func (b *bucket) set(to *slots) {
	for i, s := range to {
		if s != b.slots[i] {
			atomic.StoreUint64(&b.slots[i], s)
		}
	}
}

// span returns which entries of the directory belong to a bucket of that depth.
func (d *directory) span(hash uint32, depth uint8) (first, n int) {
	n = 1 << (d.depth - depth)
	return int(hash>>1>>(31-d.depth)) &^ (n - 1), n
}

// split moves half of a bucket to another one; false: it must not.
func (x *index) split(hash uint32) bool {
	d := x.dir.Load()
	b := d.at(hash)
	if b.depth == d.depth {
		if d.depth == maxDepth {
			return false
		}
		d = d.double()
		x.dir.Store(d)
	}
	first, span := d.span(hash, b.depth)
	b.depth++
	// Which half a slot goes to is as good as random: an index, not a branch, tells.
	var halves [2]slots
	var n [2]uint16
	for _, s := range b.slots {
		if slot(s).free() {
			continue
		}
		side := uint32(s>>(64-b.depth)) & 1
		halves[side].put(s)
		n[side]++
	}
	twin := x.newBucket(b.depth)
	*twin.slots, twin.n = halves[1], n[1]
	b.version.Add(1)
	for i := first + span/2; i < first+span; i++ {
		d.buckets[i].Store(twin)
	}
	b.set(&halves[0])
	b.version.Add(1)
	b.n, b.marks = n[0], 0
	return true
}

func (d *directory) double() *directory {
	twice := &directory{buckets: make([]atomic.Pointer[bucket], 2*len(d.buckets)), depth: d.depth + 1}
	for i := range twice.buckets {
		twice.buckets[i].Store(d.buckets[i/2].Load())
	}
	return twice
}

// seed makes hashes that a peer cannot foresee.
type seed [3]uint64

func newSeed() seed { return seed{rand.Uint64(), rand.Uint64(), rand.Uint64()} }

// hash mixes four words, by multiplying to 128 bits and folding as wyhash does.
func (s *seed) hash(a, b, c, d uint64) uint32 {
	h := fold(a^s[0], b^s[1])
	h = fold(h^c, d^s[2])
	return uint32(fold(h, s[0]|1) >> 32)
}

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
