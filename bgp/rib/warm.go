package rib

import "github.com/dyetrace/dyetrace/bgp/wire"

// To find something among a million records is to wait for memory, longer than all else that a
// route asks for. Waits for addresses that are known beforehand overlap in the processor; so what
// the routes of an UPDATE will look at is read first, in loops that do nothing else. To withdraw a
// million routes and to learn them again takes 1.0 s with that and 4.0 s without, to move them
// 1.0 s and 3.0 s. Nothing depends on what is read: a warm-up that misses something costs time only.

// warmth is scratch space of these loops. In sink they leave what they read, so that no compiler
// leaves them out.
type warmth struct {
	hashes []uint32 // of the UPDATE's routes, in order
	around []uint32 // of places
	ids    []uint32
	keys   []placeKey
	sink   uint32
}

// touch reads what find and own will read first.
func (x *index) touch(hashes []uint32) (sum uint32) {
	d := x.dir.Load()
	if d == nil {
		return 0
	}
	for _, hash := range hashes {
		b := d.at(hash)
		sum += uint32(b.n) + slot(b.slots[hash%bucketLen]).id()
	}
	return sum
}

// hash notes the hashes of routes, and reads ahead what they lead to.
func (f *Feed) hash(routes *wire.Routes) {
	t, h := f.t, &f.t.warm
	h.hashes = h.hashes[:0]
	var w wire.Route
	for rest, ok := routes.Next(routes.NLRI, &w); ok; rest, ok = routes.Next(rest, &w) {
		h.hashes = append(h.hashes, t.routeHash(&w, f.id))
	}
	h.sink += t.byRoute.touch(h.hashes)
}

// warmAnnounced reads ahead for routes that are not there: the places that they will be linked to.
func (f *Feed) warmAnnounced(routes *wire.Routes, p path) {
	t, h := f.t, &f.t.warm
	h.around = h.around[:0]
	var w wire.Route
	i := 0
	for rest, ok := routes.Next(routes.NLRI, &w); ok; rest, ok = routes.Next(rest, &w) {
		if t.findRoute(h.hashes[i], &w, f.id) == 0 {
			p.label2, p.esi = w.Label2, w.ESI
			r := newRoute(f, &w, 0)
			h.keys, _ = t.keys(h.keys[:0], &r, &p)
			for j := range h.keys {
				h.around = append(h.around, t.placeHash(&h.keys[j]))
			}
		}
		i++
	}
	h.sink += t.byPlace.touch(h.around)
}

// warmWithdrawn reads ahead for routes that are there: themselves, their links and places.
func (f *Feed) warmWithdrawn(routes *wire.Routes) {
	t, h := f.t, &f.t.warm
	h.ids = h.ids[:0]
	var w wire.Route
	i := 0
	for rest, ok := routes.Next(routes.NLRI, &w); ok; rest, ok = routes.Next(rest, &w) {
		if id := t.findRoute(h.hashes[i], &w, f.id); id != 0 {
			if links := t.routes.at(id).links; links != 0 { // none, if it belongs to no network that we know
				h.ids = append(h.ids, links)
			}
		}
		i++
	}
	for j, n := range h.ids {
		h.ids[j] = t.links.at(n).place
	}
	for _, id := range h.ids {
		h.sink += t.places.at(id).count
	}
}

// warmPast reads ahead for the next n stays that will be forgotten, and the places with them.
func (t *Table) warmPast(n int) {
	past, h := &t.past, &t.warm
	h.around = h.around[:0]
	for i := range uint64(min(n, len(past.ring))) {
		j := (past.next + i) % past.size
		if j >= uint64(len(past.ring)) {
			break
		}
		if p := t.places.at(past.ring[j].place); p.links == 0 {
			k := p.key()
			h.around = append(h.around, t.placeHash(&k))
		}
	}
	h.sink += t.byPlace.touch(h.around)
}
