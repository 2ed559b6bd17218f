package rib

import (
	"math/bits"
	"math/rand/v2"
	"slices"
)

// index finds records by the hash of their key: extendible hashing. The uppermost bits of a
// hash choose a bucket, the lowest a slot in it. A bucket that is full becomes two, and one
// more bit tells them apart: there is never more than a bucket to move.
type index struct {
	dir   []*bucket
	depth uint8 // len(dir) = 1<<depth
}

const (
	bucketLen  = 256
	bucketFull = 216 // beyond 5/6, walks for what is not there get long
	maxDepth   = 20  // a directory of 8 MiB, 100M records; hashes are seeded, so nobody can aim at a bucket
)

type slot struct{ hash, id uint32 } // id 0: empty

type bucket struct {
	epoch uint64 // see page
	depth uint8
	n     uint16
	slots [bucketLen]slot
}

func (x *index) bucket(hash uint32) *bucket {
	if len(x.dir) == 0 {
		return nil
	}
	return x.dir[hash>>1>>(31-x.depth)] // by 32 is by 0, then
}

// find returns the record with this hash for which same holds, 0 if there is none.
func (x *index) find(hash uint32, same func(id uint32) bool) uint32 {
	b := x.bucket(hash)
	if b == nil {
		return 0
	}
	for i := hash % bucketLen; ; i = (i + 1) % bucketLen {
		switch s := b.slots[i]; {
		case s.id == 0:
			return 0
		case s.hash == hash && same(s.id):
			return s.id
		}
	}
}

// add puts in a record that is not there; false: there is no room for it.
func (x *index) add(hash, id uint32, epoch uint64) bool {
	if len(x.dir) == 0 {
		x.dir = []*bucket{{epoch: epoch}}
	}
	for x.bucket(hash).n >= bucketFull {
		if !x.split(hash, epoch) {
			break
		}
	}
	b := x.own(hash, epoch)
	if b.n == bucketLen-1 { // one stays empty, or a walk would not end
		return false
	}
	b.put(slot{hash, id})
	return true
}

func (b *bucket) put(s slot) {
	i := s.hash % bucketLen
	for b.slots[i].id != 0 {
		i = (i + 1) % bucketLen
	}
	b.slots[i] = s
	b.n++
}

// remove takes out a record that is there.
func (x *index) remove(hash, id uint32, epoch uint64) {
	b := x.own(hash, epoch)
	i := hash % bucketLen
	for b.slots[i].id != id {
		i = (i + 1) % bucketLen
	}
	// Those behind move up, unless it would take them before where their walk begins.
	for j := (i + 1) % bucketLen; b.slots[j].id != 0; j = (j + 1) % bucketLen {
		home := b.slots[j].hash % bucketLen
		if (j-home)%bucketLen >= (j-i)%bucketLen {
			b.slots[i] = b.slots[j]
			i = j
		}
	}
	b.slots[i] = slot{}
	b.n--
}

// own returns the bucket of hash for writing.
func (x *index) own(hash uint32, epoch uint64) *bucket {
	b := x.bucket(hash)
	if b.epoch != epoch {
		c := *b
		c.epoch = epoch
		x.set(hash, &c)
		b = &c
	}
	return b
}

// set makes b the bucket of all hashes that share its depth uppermost bits with hash.
func (x *index) set(hash uint32, b *bucket) {
	first, n := x.span(hash, b.depth)
	for i := range n {
		x.dir[first+i] = b
	}
}

// span returns which entries of the directory belong to a bucket of that depth.
func (x *index) span(hash uint32, depth uint8) (first, n int) {
	n = 1 << (x.depth - depth)
	return int(hash>>1>>(31-x.depth)) &^ (n - 1), n
}

func (x *index) split(hash uint32, epoch uint64) bool {
	b := x.bucket(hash)
	if b.depth == x.depth {
		if x.depth == maxDepth {
			return false
		}
		dir := make([]*bucket, 2*len(x.dir))
		for i := range dir {
			dir[i] = x.dir[i/2]
		}
		x.dir, x.depth = dir, x.depth+1
	}
	var half [2]*bucket
	for i := range half {
		half[i] = &bucket{epoch: epoch, depth: b.depth + 1}
	}
	for _, s := range b.slots {
		if s.id != 0 {
			half[s.hash>>(31-b.depth)&1].put(s)
		}
	}
	first, n := x.span(hash, b.depth)
	for i := range n {
		x.dir[first+i] = half[i/(n/2)]
	}
	return true
}

func (x *index) share() index { return index{dir: slices.Clone(x.dir), depth: x.depth} }

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
