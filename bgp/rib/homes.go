package rib

import (
	"encoding/binary"
	"slices"
	"unsafe"

	"github.com/dyetrace/dyetrace/bgp/wire"
)

// homes is in which networks the routes of one UPDATE are, as far as that hangs on what they share.
type homes struct {
	mapping *Networks
	mapped  []Network // by the mapping, of route targets
	targets []Network // the route targets themselves
	cut     bool      // there are more of those than maxTargets
	cutMap  bool
}

// of takes a list of route targets as it is interned. buf has room for 2*maxTargets.
func (h *homes) of(m *Networks, list []byte, buf []Network) {
	*h = homes{mapping: m, mapped: buf[:0:maxTargets], targets: buf[maxTargets : maxTargets : 2*maxTargets]}
	for ; len(list) > 0; list = list[8:] {
		rt := wire.RouteTarget(binary.BigEndian.Uint64(list))
		if vni, ok := m.Targets[rt]; ok {
			h.mapped, h.cutMap = addUpTo(h.mapped, VNI(vni), h.cutMap)
		}
		h.targets, h.cut = addUpTo(h.targets, Target(rt), h.cut)
	}
}

func addUpTo(nets []Network, n Network, cut bool) ([]Network, bool) {
	if slices.Contains(nets, n) {
		return nets, cut
	}
	if len(nets) == maxTargets {
		return nets, true
	}
	return append(nets, n), cut
}

// networks returns the networks that a route is in, maybe in buf; see the package's comment. cut: there
// were more.
func (h *homes) networks(buf *[maxTargets + 1]Network, w *wire.Route, encaps wire.Encaps) (_ []Network, cut bool) {
	if w.Kind == wire.KindSegment && w.Tag == wire.MaxTag {
		return nil, false // its route targets are those of all networks on the segment
	}
	if vni, ok := h.mapping.RDs[w.RD]; ok {
		return addNetwork(append(buf[:0], h.mapped...), VNI(vni)), h.cutMap
	}
	if len(h.mapped) > 0 {
		return h.mapped, h.cutMap
	}
	switch {
	case w.Kind != wire.KindVPN && encaps.VNI() && w.Label != 0:
		buf[0] = VNI(w.Label)
	case w.Kind != wire.KindVPN && w.Tag != 0:
		buf[0] = VNI(w.Tag)
	default:
		return h.targets, h.cut
	}
	return buf[:1], false
}

// keys appends the places where a route belongs. cut: there were more.
func (h *homes) keys(to []placeKey, w *wire.Route, encaps wire.Encaps) (_ []placeKey, cut bool) {
	var buf [maxTargets + 1]Network
	nets, cut := h.networks(&buf, w, encaps)
	ip := placeKey{kind: place4, addr: w.Addr, bits: w.Bits}
	if w.V6 {
		ip.kind = place6
	}
	if w.Kind == wire.KindSegment {
		return segmentKeys(to, nets, w), cut
	}
	if onSegment(w.Kind, &w.ESI) {
		to = append(to, membersKey(w.ESI))
	}
	for _, n := range nets {
		ip.net = n
		switch w.Kind {
		case wire.KindMAC:
			mac := placeKey{kind: placeMAC, net: n}
			copy(mac.addr[:], w.MAC[:])
			to = append(to, mac)
			if w.Bits > 0 {
				to = append(to, ip)
			}
		case wire.KindMulticast:
			to = append(to, placeKey{kind: placeFlood, net: n})
		default:
			to = append(to, ip)
		}
	}
	if w.Gateway != [16]byte{} {
		to = append(to, leadKey(w.V6, w.Gateway))
	}
	ip.net = VNI(w.Label2)
	if w.Kind == wire.KindMAC && w.Bits > 0 && w.HasL3 && w.Label2 != 0 && encaps.VNI() && !slices.Contains(nets, ip.net) {
		to = append(to, ip)
	}
	return to, cut
}

// maxKeys is how many places a route may be in.
const maxKeys = 2*(maxTargets+1) + 2

// keys appends the places where a route that is there belongs. cut: there were more.
func (t *Table) keys(to []placeKey, r *route) (_ []placeKey, cut bool) {
	p := t.paths.vals.at(r.path)
	w := r.wire()
	w.Label, w.Label2, w.HasL3, w.ESI = r.label, p.label2, r.flags&flagL3 != 0, p.esi // of a segment's route, too
	if p.gateway != 0 {
		w.Gateway = t.hops.vals.at(p.gateway).As16()
		if g := *t.hops.vals.at(p.gateway); g.Is4() {
			w.Gateway = [16]byte{}
			copy(w.Gateway[:], g.AsSlice())
		}
	}
	list := *t.targets.vals.at(p.targets)
	var buf [2 * maxTargets]Network
	var h homes
	h.of(t.mapping.Load(), unsafe.Slice(unsafe.StringData(list), len(list)), buf[:0])
	return h.keys(to, &w, p.encaps)
}
