package rib

import (
	"github.com/dyetrace/dyetrace/bgp/wire"
)

// To find something among a million records is to wait for memory, longer than all else that a
// route asks for. Waits for addresses that are known beforehand overlap in the processor; so what
// the routes of an UPDATE will look at is read first, in loops that do nothing else. To withdraw a
// million routes and to learn them again takes 1.0 s with that and 4.0 s without, to move them
// 1.0 s and 3.0 s. Nothing depends on what is read: a warm-up that misses something costs time only.
//
// All else that changes nothing is done before the table is locked, by whoever reads ahead: to decode, to
// hash, and to tell in which places routes belong.

// batch is the routes of one UPDATE that are announced, or withdrawn.
type batch struct {
	routes  []wire.Route
	hashes  []uint32
	homes   homes
	keys    []placeKey // by route
	around  []uint32   // their hashes
	ends    []uint32   // where the keys of each route end; it has none where they are not known
	known   bool       // keys, around and ends are of the routes
	targets [2 * maxTargets]Network

	// Of the table, as it is when they are taken in.
	newest []uint32 // routes of the same NLRI, see Table.findRoute
	gaps   []gap    // where the index has them, or would
	ids    []uint32 // the peer's own
	linked []uint32 // places of those that are
	sink   uint32   // what was read, so that no compiler leaves it out
}

func (b *batch) clear() { b.routes, b.hashes, b.known = b.routes[:0], b.hashes[:0], false }

// read decodes routes into an empty batch.
func (b *batch) read(f *Feed, routes *wire.Routes) {
	if routes.Count == 0 {
		return
	}
	for rest := routes.NLRI; ; {
		n := len(b.routes)
		if n == cap(b.routes) {
			b.routes = append(b.routes, wire.Route{})
		}
		b.routes = b.routes[:n+1]
		var ok bool
		if rest, ok = routes.Next(rest, &b.routes[n]); !ok {
			b.routes = b.routes[:n]
			return
		}
		b.hashes = append(b.hashes, f.t.routeHash(&b.routes[n]))
	}
}

// place tells in which places the routes belong. encaps is as in path.
func (b *batch) place(t *Table, list []byte, encaps wire.Encaps) {
	b.homes.of(t.mapping.Load(), list, b.targets[:0])
	b.ends, b.keys, b.around = b.ends[:0], b.keys[:0], b.around[:0]
	for i := range b.routes {
		if keys, cut := b.homes.keys(b.keys, &b.routes[i], encaps); !cut {
			for j := len(b.keys); j < len(keys); j++ {
				b.around = append(b.around, t.placeHash(&keys[j]))
			}
			b.keys = keys
		}
		b.ends = append(b.ends, uint32(len(b.keys)))
	}
	b.known = true
}

// touch reads ahead where the indexes have routes and places.
func (b *batch) touch(t *Table) {
	b.sink += t.byRoute.touch(b.hashes)
	if b.known {
		b.sink += t.byPlace.touch(b.around)
	}
}

// keysOf returns in which places route i belongs, with their hashes; none: that is not known.
func (b *batch) keysOf(t *Table, i int) ([]placeKey, []uint32) {
	if !b.known || b.homes.mapping != t.mapping.Load() {
		return nil, nil
	}
	first, end := b.span(i)
	return b.keys[first:end], b.around[first:end]
}

func (b *batch) span(i int) (first, end uint32) {
	if i > 0 {
		first = b.ends[i-1]
	}
	return first, b.ends[i]
}

// warm finds routes that are there, and reads ahead for these: themselves, their links and places.
func (b *batch) warm(t *Table, peer uint16) {
	b.newest, b.ids, b.gaps, b.linked = b.newest[:0], b.ids[:0], b.gaps[:0], b.linked[:0]
	for i := range b.routes {
		newest, at := t.findRoute(b.hashes[i], &b.routes[i])
		id := t.ofPeer(newest, peer)
		b.newest, b.ids, b.gaps = append(b.newest, newest), append(b.ids, id), append(b.gaps, at)
		if id != 0 {
			if links := t.routes.at(id).links; links != 0 { // none, if it belongs to no network that we know
				b.linked = append(b.linked, links)
			}
		}
	}
	for j, n := range b.linked {
		b.linked[j] = t.links.at(n).place
	}
	for _, id := range b.linked {
		b.sink += t.places.at(id).count
	}
}

// warmPast reads ahead for the next n stays that will be forgotten, and the places with them.
func (t *Table) warmPast(n int) {
	past := &t.past
	if uint64(len(past.ring)) < past.size {
		return // there is room yet
	}
	t.hashes = t.hashes[:0]
	for i := range uint64(min(n, len(past.ring))) {
		if p := t.places.at(past.ring[(past.next+i)%past.size].place); p.links == 0 {
			t.hashes = append(t.hashes, p.hash)
		}
	}
	t.sink += t.byPlace.touch(t.hashes)
}
