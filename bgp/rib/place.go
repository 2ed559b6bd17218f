package rib

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/bgp/wire"
)

// place is one address in one network, and where it is by all that is known. It fills a cache line.
type place struct {
	net    Network
	addr   [16]byte
	since  int64  // Unix ns: of the answer
	past   uint64 // number of its newest stay that ended, 0: none
	links  uint32 // the first
	count  uint32
	answer uint32 // held; see Table.hold
	seq    uint32
	hash   uint32 // of the key
	kind   placeKind
	bits   uint8
	flags  placeFlags
}

func newPlace(k *placeKey, hash uint32) place {
	return place{net: k.net, addr: k.addr, kind: k.kind, bits: k.bits, hash: hash}
}

func (p *place) key() placeKey { return placeKey{net: p.net, addr: p.addr, kind: p.kind, bits: p.bits} }

type placeKey struct {
	net  Network
	addr [16]byte // a MAC in the first 6
	kind placeKind
	bits uint8
}

type placeKind uint8

const (
	placeMAC     placeKind = iota + 1
	place4                 // an IPv4 prefix
	place6                 // an IPv6 prefix
	placeFlood             // VTEPs that take part: a list, with no answer to weigh, as all below
	placeSegment           // those on an Ethernet segment
	placePart              // those on it that are in a network
	placeMembers           // MAC routes of it
	placeLead              // prefixes that go by a gateway's address, in whichever network
)

type placeFlags uint8

const (
	placeDirty   placeFlags = 1 << iota
	placeClaimed            // there is a route that was refused
	placeCrowded            // there are too many to weigh
	placeSticky
)

func (v *view) placeHash(k *placeKey) uint32 {
	return v.seed.hash(uint64(k.net), uint64(k.kind)<<8|uint64(k.bits),
		binary.BigEndian.Uint64(k.addr[:]), binary.BigEndian.Uint64(k.addr[8:]))
}

func (p *place) is(k *placeKey) bool {
	return p.addr == k.addr && p.net == k.net && p.kind == k.kind && p.bits == k.bits
}

func (t *Table) findPlace(hash uint32, k *placeKey) (id uint32, at gap) {
	return t.byPlace.find(hash, func(id uint32) bool { return t.places.at(id).is(k) })
}

// attach puts a route in all places where it belongs.
func (t *Table) attach(id uint32) {
	var buf [maxKeys]placeKey
	keys, cut := t.keys(buf[:0], t.routes.at(id))
	for i := range keys {
		t.link(id, &keys[i], t.placeHash(&keys[i]))
	}
	if cut {
		t.routes.edit(id, &t.memory).flags |= flagCut
		t.cut++
	}
}

func (t *Table) link(routeID uint32, k *placeKey, hash uint32) {
	id, gap := t.findPlace(hash, k)
	if id == 0 {
		fresh, p := t.places.add(&t.memory)
		if !t.byPlace.addAt(gap, hash, fresh) {
			t.places.release(fresh)
			t.full = true
			return
		}
		id, *p = fresh, newPlace(k, hash)
		t.countLength(k.kind, k.bits, 1)
	}
	p := t.places.edit(id, &t.memory)
	n, l := t.links.add(&t.memory)
	r := t.routes.edit(routeID, &t.memory)
	*l = link{route: routeID, place: id, next: p.links, more: r.links}
	if p.links != 0 {
		t.links.edit(p.links, &t.memory).prev = n
	}
	p.links, r.links = n, n
	p.count++
	if p.count > maxClaims || !t.agrees(p, r) {
		t.mark(id, p)
	}
}

// agrees tells whether a route says just what the answer of a place is, so that the answer is the same with
// it and without it, as long as another one that agrees is there. It is false where that is not obvious.
func (t *Table) agrees(p *place, r *route) bool {
	if p.flags&placeDirty != 0 || p.kind > place6 || p.answer == 0 || r.flags&flagsRefused != 0 || t.leading > 0 {
		return false
	}
	way, rank := t.paths.vals.at(r.path), uint64(p.seq)
	if p.flags&placeSticky != 0 {
		rank |= 1 << 32
	}
	return p.answer == way.hop && way.rank() == rank && way.gateway == 0 && way.esi == wire.ESI{}
}

func (t *Table) countLength(kind placeKind, bits uint8, by uint32) {
	switch kind {
	case place4:
		t.v4[bits] += by
	case place6:
		t.v6[bits] += by
	case placeLead:
		t.leading += by
	}
}

// detach takes a route out of all places.
func (t *Table) detach(routeID uint32) {
	r := t.routes.edit(routeID, &t.memory)
	for n := r.links; n != 0; {
		l := *t.links.at(n)
		p := t.places.edit(l.place, &t.memory)
		agrees := t.agrees(p, r)
		if l.prev != 0 {
			t.links.edit(l.prev, &t.memory).next = l.next
		} else {
			p.links = l.next
		}
		if l.next != 0 {
			t.links.edit(l.next, &t.memory).prev = l.prev
		}
		p.count--
		if !agrees || p.links == 0 || !t.agrees(p, t.routes.at(t.links.at(p.links).route)) {
			t.mark(l.place, p)
		}
		t.links.release(n)
		n = l.more
	}
	r.links = 0
	if r.flags&flagCut != 0 {
		r.flags &^= flagCut
		t.cut--
	}
}

// touch has the answer of all places of a route weighed again.
func (t *Table) touch(r *route) {
	for n := r.links; n != 0; n = t.links.at(n).more {
		id := t.links.at(n).place
		t.mark(id, t.places.edit(id, &t.memory))
	}
}

func (t *Table) mark(id uint32, p *place) {
	if p.flags&placeDirty == 0 {
		p.flags |= placeDirty
		t.dirty = append(t.dirty, id)
	}
}

// settle weighs what changed, once for all changes of an UPDATE: a route that it withdraws
// and another that it brings are one move.
func (t *Table) settle(now time.Time) {
	if len(t.dirty) == 0 {
		return
	}
	t.turnSegments()
	t.turnGateways()
	t.weighDirty(now)
}

// weighDirty is settle for places on which no other hangs.
func (t *Table) weighDirty(now time.Time) {
	t.warmPast(len(t.dirty))
	for _, id := range t.dirty {
		p := t.places.edit(id, &t.memory)
		p.flags &^= placeDirty
		if p.kind <= place6 {
			t.weigh(id, p, now)
		}
		t.forget(id, p)
	}
	t.dirty = t.dirty[:0]
	if cap(t.dirty) > 1<<16 { // the end of a great session should not stay with us
		t.dirty = nil
	}
}

// forget frees a place that nothing is left of.
func (t *Table) forget(id uint32, p *place) {
	if p.links != 0 || p.past != 0 {
		return
	}
	t.lose(newSlot(p.hash, id))
	t.countLength(p.kind, p.bits, ^uint32(0))
	*p = place{}
	t.places.release(id)
}

func (t *Table) weigh(id uint32, p *place, now time.Time) {
	hops, rank, claimed := t.best(p)
	seq, was := uint32(rank), p.flags
	p.flags &^= placeClaimed | placeCrowded | placeSticky
	if claimed {
		p.flags |= placeClaimed
	}
	if p.count > maxClaims {
		p.flags |= placeCrowded
	}
	if rank>>32 != 0 {
		p.flags |= placeSticky
	}
	answer := t.hold(hops)
	if answer == p.answer && seq == p.seq && (p.flags^was)&placeSticky == 0 {
		t.release(answer)
		return
	}
	t.tell(p, answer, seq, now)
	if p.answer != 0 {
		t.remember(id, p, was&placeSticky != 0, now)
	}
	t.release(p.answer)
	p.answer, p.seq, p.since = answer, seq, now.UnixNano()
}

// best returns the next hops, sorted, of the routes of highest rank.
func (t *Table) best(p *place) (hops []uint32, rank uint64, claimed bool) {
	hops = t.scratch[:0]
	some := false
	if p.count > maxClaims {
		return hops, 0, false
	}
	var by uint32       // the gateway of
	var behind []uint32 // what is behind it
	for n := p.links; n != 0; {
		l := t.links.at(n)
		n = l.next
		r := t.routes.at(l.route)
		if r.flags&flagsRefused != 0 {
			claimed = true
			continue
		}
		way := t.paths.vals.at(r.path)
		if way.gateway != 0 {
			if way.gateway != by { // mostly, those for an address go by the same
				by, behind = way.gateway, t.leads(&t.paths.vals, p.net, *t.hops.vals.at(way.gateway))
			}
			if len(behind) == 0 {
				claimed = true
				continue
			}
		}
		at := way.rank()
		if !some || at > rank {
			some, rank, hops = true, at, hops[:0]
		}
		switch {
		case at != rank:
		case way.gateway == 0:
			hops = t.addHops(hops, p.net, r, way)
		default:
			for _, id := range behind {
				mac := t.routes.at(id)
				hops = t.addHops(hops, p.net, mac, t.paths.vals.at(mac.path))
			}
		}
	}
	if len(hops) > 1 {
		slices.Sort(hops)
		hops = slices.Compact(hops)
	}
	t.scratch = hops
	if len(hops) == 0 {
		rank = 0 // of nobody: all have left the segment
	}
	return hops, rank, claimed
}

// addHops appends where a route says that its address is.
func (t *Table) addHops(hops []uint32, n Network, r *route, way *path) []uint32 {
	esi, ok := way.on(r)
	if !ok {
		return append(hops, way.hop)
	}
	a := t.around(&t.paths.vals, n, esi, r.tag, *t.targets.vals.at(way.targets))
	self, others := a.behind(&t.paths.vals, &t.view, way.hop)
	if self {
		hops = append(hops, way.hop)
	}
	for _, id := range others {
		hops = append(hops, t.paths.vals.at(t.routes.at(id).path).hop)
	}
	return hops
}

// ofSet tells an answer of several next hops, a number in t.sets, from one of one next hop,
// which is that hop's own number.
const ofSet = 1 << 31

// hold returns the number of an answer, held once more. 0: nowhere.
func (t *Table) hold(hops []uint32) uint32 {
	switch len(hops) {
	case 0:
		return 0
	case 1:
		t.hops.refs[hops[0]]++
		return hops[0]
	}
	b := make([]byte, 0, 4*len(hops))
	for _, h := range hops {
		b = binary.BigEndian.AppendUint32(b, h)
	}
	id, fresh := t.sets.hold(string(b), &t.memory)
	if fresh {
		for _, h := range hops {
			t.hops.refs[h]++
		}
	}
	return id | ofSet
}

func (t *Table) release(answer uint32) {
	if answer&ofSet == 0 {
		t.dropHop(answer)
		return
	}
	set, last := t.sets.drop(answer &^ ofSet)
	for b := []byte(set); last && len(b) > 0; b = b[4:] {
		t.dropHop(binary.BigEndian.Uint32(b))
	}
}

// addrs returns the next hops of an answer in the order of addresses.
func (t *Table) addrs(answer uint32) []netip.Addr {
	if answer == 0 {
		return nil
	}
	if answer&ofSet == 0 {
		return []netip.Addr{*t.hops.vals.at(answer)}
	}
	set := []byte(*t.sets.vals.at(answer &^ ofSet))
	addrs := make([]netip.Addr, 0, len(set)/4)
	for ; len(set) > 0; set = set[4:] {
		addrs = append(addrs, *t.hops.vals.at(binary.BigEndian.Uint32(set)))
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}
