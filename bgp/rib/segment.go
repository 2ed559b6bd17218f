package rib

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/bgp/wire"
)

// A MAC that is on an Ethernet segment is behind several VTEPs, and often taught by one of them. Who
// is on the segment, they say by Ethernet A-D routes (RFC 7432): per ES, which hold for all that is on
// it, and whose withdrawal takes it all away at once (8.2), and per EVI, for one network on it (8.4).
// MAC routes are linked to a place of their segment, so that what comes and goes there finds them.

// maxOnSegment is how many routes per ES, or per EVI, are looked at, each time a MAC on the segment
// changes. A segment has two VTEPs, or four. Beyond, its MACs are not known.
const maxOnSegment = 256

// on returns the segment that a MAC route is on; false: none, or one whose A-D routes do not
// matter: 0 and MAX-ESI are reserved (RFC 7432, 5; 9.2.2).
func (p *path) on(r *route) (esi wire.ESI, ok bool) { return p.esi, onSegment(r.kind, &p.esi) }

func onSegment(kind wire.Kind, esi *wire.ESI) bool {
	return kind == wire.KindMAC && *esi != wire.ESI{} && *esi != maxESI
}

var maxESI = wire.ESI{255, 255, 255, 255, 255, 255, 255, 255, 255, 255}

// segmentKey is the place of a segment's A-D routes per ES, membersKey that of the MACs on it.
func segmentKey(esi wire.ESI) (k placeKey) {
	k.kind = placeSegment
	copy(k.addr[:], esi[:])
	return k
}

func membersKey(esi wire.ESI) placeKey {
	k := segmentKey(esi)
	k.kind = placeMembers
	return k
}

// partKey is the place of A-D routes per EVI: of a segment in a network, by Ethernet tag.
func partKey(n Network, esi wire.ESI, tag uint32) placeKey {
	k := segmentKey(esi)
	k.kind, k.net = placePart, n
	binary.BigEndian.PutUint32(k.addr[len(esi):], tag)
	return k
}

// segmentKeys appends the places of an A-D route.
func segmentKeys(to []placeKey, nets []Network, r *wire.Route) []placeKey {
	if r.Tag == wire.MaxTag {
		return append(to, segmentKey(r.ESI))
	}
	for _, n := range nets {
		to = append(to, partKey(n, r.ESI, r.Tag))
	}
	return to
}

// around is who is on a segment, as far as it matters to a network.
type around struct {
	known  bool     // there are not too many to look at
	single bool     // single-active: one VTEP at a time has the MACs (RFC 7432, 7.5)
	hops   []uint32 // of those on the segment; sorted
	parts  []uint32 // routes per EVI of those, in the order of links
}

// around looks at the A-D routes of a segment, for a MAC route with these route targets. Those that were
// refused are none. If VTEPs do not agree on single-active, it is: nobody shall be named who does not
// forward.
//
// A route per EVI that names no VNI is in the networks of its route targets, which tell the EVI: FRR 8.4,
// as a route reflector, passes them on with label 0.
func (v *view) around(paths *pages[path], n Network, esi wire.ESI, tag uint32, targets string) (a around) {
	k := segmentKey(esi)
	a.known = v.visit(&k, func(r *route) {
		way := paths.at(r.path)
		a.single = a.single || way.flags&pathSingle != 0
		a.hops = append(a.hops, way.hop)
	})
	slices.Sort(a.hops)
	a.hops = slices.Compact(a.hops)
	if len(a.hops) == 0 {
		return a
	}
	a.addParts(v, paths, partKey(n, esi, tag))
	for list := targets; n < firstTarget && list != ""; list = list[8:] {
		a.addParts(v, paths, partKey(Target(target(list)), esi, tag))
	}
	return a
}

// addParts adds the routes of a place that are of VTEPs on the segment.
func (a *around) addParts(v *view, paths *pages[path], k placeKey) {
	known := v.visitIDs(&k, func(id uint32, r *route) {
		if _, on := slices.BinarySearch(a.hops, paths.at(r.path).hop); on {
			a.parts = append(a.parts, id)
		}
	})
	a.known = a.known && known
}

func (v *view) visit(k *placeKey, do func(*route)) (known bool) {
	return v.visitIDs(k, func(_ uint32, r *route) { do(r) })
}

// visitIDs has do look at the routes of a place that are not refused; false: there are too many.
func (v *view) visitIDs(k *placeKey, do func(id uint32, r *route)) (known bool) {
	p := v.find(k)
	if p == nil {
		return true
	}
	if p.count > maxOnSegment {
		return false
	}
	for n := p.links; n != 0; n = v.links.at(n).next {
		id := v.links.at(n).route
		if r := v.routes.at(id); r.flags&flagsRefused == 0 {
			do(id, r)
		}
	}
	return true
}

// behind says by whom a MAC on the segment is reached that hop teaches: by hop itself, unless it has
// left the segment, and by others, of which the routes per EVI are returned. All-active, these are all;
// single-active, the one that is left when hop has left, if it is one (RFC 7432, 8.4).
func (a *around) behind(paths *pages[path], v *view, hop uint32) (self bool, others []uint32) {
	if !a.known {
		return false, nil
	}
	_, self = slices.BinarySearch(a.hops, hop)
	switch {
	case !a.single:
		return self, a.parts
	case self:
		return true, nil
	}
	for _, id := range a.parts {
		if paths.at(v.routes.at(id).path).hop != paths.at(v.routes.at(a.parts[0]).path).hop {
			return false, nil
		}
	}
	return false, a.parts
}

// turn is a route on a segment that is to be weighed again, in one network or (0) all.
type turn struct {
	route uint32
	net   Network
}

// turnSegments has all MACs on segments weighed again of which an A-D route changed. So that readers and
// other peers get in between, eachLen of them are weighed at once, and turnRest weighs the rest. What
// readers are told of these meanwhile is of the A-D routes that there are; see Snapshot.lookup.
func (t *Table) turnSegments() {
	turned := 0
	for _, id := range t.dirty {
		p := t.places.at(id)
		if p.kind != placeSegment && p.kind != placePart {
			continue
		}
		k := membersKey(wire.ESI(p.addr[:10]))
		net, members := p.net, t.find(&k)
		if net >= firstTarget {
			net = 0 // it may be of what is in a VNI; see around
		}
		if members != nil {
			t.turning = t.turnLinks(members.links, net, &turned, t.turning)
		}
	}
}

// turnLinks has the routes of a list of links weighed again: those that make turned eachLen at the most now,
// the others as rest says, to which it adds them.
func (t *Table) turnLinks(links uint32, net Network, turned *int, rest []turn) []turn {
	for n := links; n != 0; n = t.links.at(n).next {
		id := t.links.at(n).route
		if *turned++; *turned > eachLen {
			rest = append(rest, turn{id, net})
			continue
		}
		t.touchIn(t.routes.at(id), net)
	}
	return rest
}

// turnRest weighs what turnSegments left. A record that is another route's by now is weighed in vain.
func (t *Table) turnRest(now time.Time) {
	for more := true; more; {
		t.mu.Lock()
		if len(t.turning) == 0 {
			more = t.turnLead(now)
			t.mu.Unlock()
			continue
		}
		left := max(0, len(t.turning)-eachLen)
		for _, x := range t.turning[left:] {
			t.touchIn(t.routes.at(x.route), x.net)
		}
		if t.turning = t.turning[:left]; left == 0 {
			t.turning = nil
		}
		if len(t.dirty) > 0 {
			t.settle(now)
			t.changed()
		}
		more = t.hasRest()
		t.mu.Unlock()
	}
}

// touchIn is touch for the places in one network, or (0) all.
func (t *Table) touchIn(r *route, net Network) {
	for n := r.links; n != 0; n = t.links.at(n).more {
		id := t.links.at(n).place
		if p := t.places.at(id); p.kind <= place6 && (net == 0 || p.net == net) && p.flags&placeDirty == 0 {
			t.mark(id, t.places.edit(id, &t.memory))
		}
	}
}
