package rib

import (
	"slices"
	"unsafe"
)

// pageLen is the records in a page. A change after a snapshot copies a page, so it should be
// small; a snapshot copies the list of pages, so there should be few.
const pageLen = 64

type page[T any] [pageLen]T

// pages is an array of records with numbers from 1 on: 0 is none.
type pages[T any] struct {
	dir  []*page[T]
	born []uint64 // epochs of pages; of the table only, as is all below
	next uint32   // the lowest number never given out
	free []uint32 // numbers given back
	// pointers says that records have some, so that their pages must be on the collector's heap.
	pointers bool
}

func (p *pages[T]) at(id uint32) *T { return &p.dir[id/pageLen][id%pageLen] }

// edit returns the record for writing, in a page that no snapshot sees.
func (p *pages[T]) edit(id uint32, m *memory) *T {
	if i := id / pageLen; p.born[i] != m.epoch {
		p.own(i, m)
	}
	return &p.dir[id/pageLen][id%pageLen]
}

// own makes a page one that no snapshot sees.
func (p *pages[T]) own(i uint32, m *memory) {
	if m.seen(p.born[i]) {
		old := p.dir[i]
		p.dir[i] = p.fresh(m)
		*p.dir[i] = *old
		if !p.pointers {
			m.retire(unsafe.Pointer(old), unsafe.Sizeof(*old), p.born[i])
		}
	}
	p.born[i] = m.epoch
}

func (p *pages[T]) fresh(m *memory) *page[T] {
	if p.pointers {
		return new(page[T])
	}
	return (*page[T])(m.slab.Get(unsafe.Sizeof(page[T]{})))
}

// add returns a number and its record for writing, which may hold anything.
func (p *pages[T]) add(m *memory) (uint32, *T) {
	if n := len(p.free); n > 0 {
		id := p.free[n-1]
		p.free = p.free[:n-1]
		return id, p.edit(id, m)
	}
	id := max(p.next, 1)
	if int(id/pageLen) == len(p.dir) {
		p.dir, p.born = append(p.dir, p.fresh(m)), append(p.born, m.epoch)
	}
	p.next = id + 1
	return id, p.edit(id, m)
}

func (p *pages[T]) release(id uint32) { p.free = append(p.free, id) }

func (p *pages[T]) share() pages[T] { return pages[T]{dir: slices.Clone(p.dir), next: p.next} }

// interned gives equal values one number, for as long as anybody holds it.
type interned[K comparable] struct {
	vals pages[K]
	ids  map[K]uint32
	refs []uint32 // by number
}

// hold returns the number of k, held once more; fresh tells whether it is new.
func (in *interned[K]) hold(k K, m *memory) (id uint32, fresh bool) {
	if id, ok := in.ids[k]; ok {
		in.refs[id]++
		return id, false
	}
	in.vals.pointers = true // or may have
	id, v := in.vals.add(m)
	*v = k
	if in.ids == nil {
		in.ids = make(map[K]uint32)
	}
	in.ids[k] = id
	if int(id) >= len(in.refs) {
		in.refs = append(in.refs, make([]uint32, int(id)+1-len(in.refs))...)
	}
	in.refs[id] = 1
	return id, true
}

// drop gives one hold back; last tells that it was the last, and that k means nothing now.
func (in *interned[K]) drop(id uint32) (k K, last bool) {
	in.refs[id]--
	if in.refs[id] > 0 {
		return k, false
	}
	k = *in.vals.at(id)
	delete(in.ids, k)
	in.vals.release(id)
	return k, true
}
