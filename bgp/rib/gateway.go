package rib

import (
	"net/netip"
	"time"

	"github.com/dyetrace/dyetrace/bgp/wire"
)

// An IP prefix route (type 5) may name a gateway's address in place of its next hop: the overlay index of
// RFC 9136, 3.2. The prefix is where the MAC routes (type 2) for that address are, in the network that the
// prefix is looked up in; without any it is a claim. Such routes are linked to a place of the address, so
// that what comes and goes there finds them. One step leads to the answer: a gateway that itself is but in
// a prefix is none.

// gatewayOf returns the address that a route goes by; invalid: none.
func gatewayOf(w *wire.Route) netip.Addr {
	switch {
	case w.Gateway == [16]byte{}:
		return netip.Addr{}
	case w.V6:
		return netip.AddrFrom16(w.Gateway)
	}
	return netip.AddrFrom4([4]byte(w.Gateway[:4]))
}

// leadKey is the place of the prefixes that go by an address, laid out as in a route.
func leadKey(v6 bool, addr [16]byte) placeKey {
	k := placeKey{kind: placeLead, addr: addr, bits: 32}
	if v6 {
		k.bits = 128
	}
	return k
}

// leads returns the MAC routes of highest rank for a gateway's address in a network; none: it is not known.
// Each time a prefix is weighed, so many as may be for an address are too many to be looked at: a gateway
// has a VTEP or a few.
func (v *view) leads(paths *pages[path], n Network, gateway netip.Addr) (ids []uint32) {
	k := prefixKey(n, netip.PrefixFrom(gateway, gateway.BitLen()))
	p := v.find(&k)
	if p == nil || p.count > maxOnSegment {
		return nil
	}
	var rank uint64
	for l := p.links; l != 0; l = v.links.at(l).next {
		id := v.links.at(l).route
		r := v.routes.at(id)
		if r.kind != wire.KindMAC || r.flags&flagsRefused != 0 {
			continue
		}
		at := paths.at(r.path).rank()
		if len(ids) == 0 || at > rank {
			rank, ids = at, ids[:0]
		}
		if at == rank {
			ids = append(ids, id)
		}
	}
	return ids
}

// turnGateways has prefixes weighed again that go by an address of which a route changed. As in
// turnSegments, eachLen of them are weighed at once, and turnRest weighs the rest. What is weighed for that
// reason turns nothing else, or two addresses that go by each other would never end.
func (t *Table) turnGateways() {
	if t.leading == 0 {
		return
	}
	turned := 0
	for _, id := range t.dirty {
		p := t.places.at(id)
		if !(p.kind == place4 && p.bits == 32 || p.kind == place6 && p.bits == 128) {
			continue
		}
		k := leadKey(p.kind == place6, p.addr)
		net, members := p.net, t.find(&k)
		if members != nil {
			t.lead = t.turnLinks(members.links, net, &turned, t.lead)
		}
	}
}

// hasRest tells whether turnRest has to follow.
func (t *Table) hasRest() bool { return len(t.turning)+len(t.lead) > 0 }

// turnLead weighs some of what turnGateways left; more: there is more. The caller holds t.mu.
func (t *Table) turnLead(now time.Time) (more bool) {
	left := max(0, len(t.lead)-eachLen)
	for _, x := range t.lead[left:] {
		t.touchIn(t.routes.at(x.route), x.net)
	}
	if t.lead = t.lead[:left]; left == 0 {
		t.lead = nil
	}
	if len(t.dirty) > 0 {
		t.weighDirty(now)
		t.changed()
	}
	return t.hasRest()
}
