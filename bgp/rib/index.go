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
type index struct {
	slab *slab.Slab
	dir  atomic.Pointer[directory]
}

type directory struct {
	buckets []atomic.Pointer[bucket] // 1<<depth
	depth   uint8
}

const (
	bucketLen  = 256
	bucketFull = 192 // beyond 3/4, walks for what is not there get long: 8 slots are looked at, at 5/6 20
	maxDepth   = 20  // a directory of 8 MiB, 100M records; hashes are seeded, so nobody can aim at a bucket
)

// A slot is a hash and, below it, a record's number; 0 is an empty one.
type slot uint64

func newSlot(hash, id uint32) slot { return slot(hash)<<32 | slot(id) }

func (s slot) hash() uint32 { return uint32(s >> 32) }
func (s slot) id() uint32   { return uint32(s) }

type bucket struct {
	version atomic.Uint64 // odd while slots move
	n       uint16
	depth   uint8
	_       [48]byte // so that eight slots are a cache line
	slots   [bucketLen]uint64
}

func newBucket(s *slab.Slab, depth uint8) *bucket {
	b := (*bucket)(s.Get(unsafe.Sizeof(bucket{})))
	clear(unsafe.Slice((*byte)(unsafe.Pointer(b)), unsafe.Sizeof(bucket{})))
	b.depth = depth
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

// gap is where the walk for a record ended that is not there: a place for it, until the index changes.
type gap struct {
	b *bucket
	i uint32
}

// find returns the record with this hash for which same holds; 0 if there is none, and where it could
// be put. It is for who writes.
func (x *index) find(hash uint32, same func(id uint32) bool) (id uint32, at gap) {
	b := x.bucket(hash)
	if b == nil {
		return 0, gap{}
	}
	for i := hash % bucketLen; ; i = (i + 1) % bucketLen {
		switch s := slot(b.slots[i]); {
		case s == 0:
			return 0, gap{b, i}
		case s.hash() == hash && same(s.id()):
			return s.id(), gap{}
		}
	}
}

// has tells whether there is a record with this hash, while others may write: it may be wrong.
func (x *index) has(hash uint32) bool {
	b := x.bucket(hash)
	if b == nil {
		return false
	}
	for i, n := hash%bucketLen, 0; n < bucketLen; i, n = (i+1)%bucketLen, n+1 {
		switch s := slot(atomic.LoadUint64(&b.slots[i])); {
		case s == 0:
			return false
		case s.hash() == hash:
			return true
		}
	}
	return false
}

// touch reads what find will read first, while others may write.
func (x *index) touch(hashes []uint32) (sum uint32) {
	d := x.dir.Load()
	if d == nil {
		return 0
	}
	for _, hash := range hashes {
		b := d.at(hash)
		sum += uint32(b.version.Load()) + slot(atomic.LoadUint64(&b.slots[hash%bucketLen])).id()
	}
	return sum
}

// search is find for who reads, where same is true of one record at most, and always. While a bucket
// changes, what is there is found or missed; so a miss counts only if nothing changed meanwhile.
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
			if s.hash() == hash && same(s.id()) {
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
	if at.b == nil || at.b.n >= bucketFull {
		return x.add(hash, id)
	}
	at.b.set(at.i, newSlot(hash, id))
	at.b.n++
	return true
}

// add puts in a record; false: there is no room for it.
func (x *index) add(hash, id uint32) bool {
	if x.dir.Load() == nil {
		d := &directory{buckets: make([]atomic.Pointer[bucket], 1)}
		d.buckets[0].Store(newBucket(x.slab, 0))
		x.dir.Store(d)
	}
	b := x.bucket(hash)
	for b.n >= bucketFull && x.split(hash) {
		b = x.bucket(hash)
	}
	if b.n == bucketLen-1 { // one stays empty, or a walk would not end
		return false
	}
	b.put(newSlot(hash, id)) // into an empty one: nothing moves
	return true
}

func (b *bucket) set(i uint32, s slot) { atomic.StoreUint64(&b.slots[i], uint64(s)) }

func (b *bucket) put(s slot) {
	i := s.hash() % bucketLen
	for b.slots[i] != 0 {
		i = (i + 1) % bucketLen
	}
	b.set(i, s)
	b.n++
}

// remove takes out a record that is there.
func (x *index) remove(hash, id uint32) {
	b := x.bucket(hash)
	b.version.Add(1)
	defer b.version.Add(1)
	i := hash % bucketLen
	for slot(b.slots[i]) != newSlot(hash, id) {
		i = (i + 1) % bucketLen
	}
	// Those behind move up, unless it would take them before where their walk begins.
	for j := (i + 1) % bucketLen; b.slots[j] != 0; j = (j + 1) % bucketLen {
		home := slot(b.slots[j]).hash() % bucketLen
		if (j-home)%bucketLen >= (j-i)%bucketLen {
			b.set(i, slot(b.slots[j]))
			i = j
		}
	}
	b.set(i, 0)
	b.n--
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
	b.version.Add(1)
	defer b.version.Add(1)
	b.depth++
	// Which half a slot goes to is as good as random: an index, not a branch, tells.
	var halves [2][bucketLen]uint64
	var n [2]uint16
	for _, s := range b.slots {
		if s == 0 {
			continue
		}
		side := uint32(s>>(64-b.depth)) & 1
		half := &halves[side]
		i := slot(s).hash() % bucketLen
		for half[i] != 0 {
			i = (i + 1) % bucketLen
		}
		half[i] = s
		n[side]++
	}
	twin := newBucket(x.slab, b.depth)
	twin.slots, twin.n = halves[1], n[1]
	for i := first + span/2; i < first+span; i++ {
		d.buckets[i].Store(twin)
	}
	for i, s := range &halves[0] {
		if s != b.slots[i] {
			b.set(uint32(i), slot(s))
		}
	}
	b.n = n[0]
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
