package rib

import (
	"cmp"
	"iter"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/bgp/slab"
	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

// State is what is known of an address.
type State uint8

// The states. The zero State says least.
const (
	Unknown State = iota // we cannot tell; the package's comment says when
	Absent               // all peers told all that they know, and it is nowhere
	Present
)

// String returns the state in lower case.
func (s State) String() string { return [...]string{"unknown", "absent", "present"}[s] }

// Lookup is where an address is.
type Lookup struct {
	State   State
	VTEPs   []VTEP       // Present: one or more, by address; else none
	Since   time.Time    // Present: since when these VTEPs, with this sequence
	Seq     uint32       // MAC mobility
	Sticky  bool         // the MAC shall not move
	Gateway bool         // of a default gateway: several VTEPs may have it
	Stale   bool         // no fresh route says so
	Prefix  netip.Prefix // Snapshot.IP: the longest that matched; else invalid
}

// VTEP is one place where an address is, as routes of equal content tell it.
type VTEP struct {
	Addr      netip.Addr
	Encaps    wire.Encaps
	Label     uint32 // VNI or MPLS label, as Encaps has it
	L3Label   uint32 // likewise, of the IP network; 0: none
	ESI       wire.ESI
	RouterMAC stain.MAC
	Leaf      bool // E-Tree leaf
	Single    bool // the Ethernet segment is single-active
	Stale     bool // all its routes are stale
	Since     time.Time
	RDs       []wire.RD // sorted
	Peers     []string  // sorted
}

// Snapshot is the table at one time. Its methods may be called by any number of readers.
//
// Its pages are written to anew once the collector finds that nobody holds it. So each method that
// reads one says at its end that the snapshot is held still.
type Snapshot struct {
	view
	slab    *slab.Slab // of the pages
	paths   pages[path]
	hops    pages[netip.Addr]
	targets pages[string]
	version uint64
}

// Snapshot returns the table as it is now. It is the same one as before if nothing changed;
// else it waits for what a feed is at, one UPDATE or 4096 routes of a peer that left, and
// costs some 0.1 ms with 1M routes, and a copy of each page that changes while it is held: take
// one for a batch of lookups.
func (t *Table) Snapshot() *Snapshot {
	if s := t.snap.Load(); s != nil && s.version == t.now.Load() {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.snap.Load(); s != nil && s.version == t.now.Load() {
		return s
	}
	s := &Snapshot{version: t.now.Load(), slab: t.slab}
	s.view = t.view
	s.routes, s.links, s.places = t.routes.share(), t.links.share(), t.places.share()
	s.peers = slices.Clone(t.peers)
	s.paths, s.hops, s.targets = t.paths.vals.share(), t.hops.vals.share(), t.targets.vals.share()
	t.share(s)
	t.snap.Store(s)
	return s
}

// Complete tells whether a peer is up, and every one that is has told all that it knows.
func (t *Table) Complete() bool { return t.Snapshot().Complete() }

// Complete is Table.Complete as of the snapshot.
func (s *Snapshot) Complete() bool {
	return s.complete(bit(wire.EVPN) | bit(wire.VPNv4) | bit(wire.VPNv6))
}

// Whole tells whether an address that is Absent is taught by nobody: every peer that there is,
// and not only those that are up, has told all that it knows, and none has a list of route
// targets, outside of which nothing is kept.
func (s *Snapshot) Whole() bool {
	any := false
	for i := range s.peers {
		p := &s.peers[i]
		if p.name == "" {
			continue
		}
		any = true
		if !p.up || p.limited || p.filtered || p.families&^p.synced != 0 {
			return false
		}
	}
	return any && !s.full
}

// complete looks at these families only: somebody up must carry one of them.
func (v *view) complete(of familySet) bool {
	any := false
	for i := range v.peers {
		p := &v.peers[i]
		if !p.up || p.families&of == 0 {
			continue
		}
		any = true
		if p.limited || p.families&of&^p.synced != 0 {
			return false
		}
	}
	return any && !v.full
}

// MAC returns where a MAC is in the network of a VNI. VNI 0 is none, so nothing is in it.
func (s *Snapshot) MAC(vni uint32, mac stain.MAC) Lookup { return s.MACIn(VNI(vni), mac) }

// MACIn is MAC in any network.
func (s *Snapshot) MACIn(n Network, mac stain.MAC) Lookup {
	defer runtime.KeepAlive(s)
	k := placeKey{net: n, kind: placeMAC}
	copy(k.addr[:], mac[:])
	if p := s.find(&k); p != nil {
		return s.lookup(p)
	}
	return s.missing(n, bit(wire.EVPN))
}

// IP returns where an address is in a network, by the longest prefix that holds it.
func (s *Snapshot) IP(n Network, addr netip.Addr) Lookup {
	defer runtime.KeepAlive(s)
	addr = addr.Unmap()
	families, lengths := bit(wire.EVPN)|bit(wire.VPNv4), s.v4[:]
	switch {
	case !addr.IsValid():
		return Lookup{}
	case addr.Is6():
		families, lengths = bit(wire.EVPN)|bit(wire.VPNv6), s.v6[:]
	}
	for bits := len(lengths) - 1; bits >= 0; bits-- {
		if lengths[bits] == 0 {
			continue
		}
		k := prefixKey(n, netip.PrefixFrom(addr.WithZone(""), bits))
		if p := s.find(&k); p != nil {
			l := s.lookup(p)
			l.Prefix = k.prefix()
			return l
		}
	}
	return s.missing(n, families)
}

// find returns a place that routes are for; nil: there is none.
func (v *view) find(k *placeKey) *place {
	id := v.byPlace.search(v.placeHash(k), func(id uint32) bool { return id < v.places.next && v.places.at(id).is(k) })
	if id == 0 || v.places.at(id).links == 0 {
		return nil
	}
	return v.places.at(id)
}

func (s *Snapshot) missing(n Network, families familySet) Lookup {
	if n == 0 || !s.complete(families) || s.cut > 0 && n >= firstTarget {
		return Lookup{}
	}
	return Lookup{State: Absent}
}

// firstTarget is below all route targets and above all VNIs.
const firstTarget Network = 1 << 49

func (s *Snapshot) lookup(p *place) Lookup {
	if p.answer == 0 || p.flags&placeCrowded != 0 {
		return Lookup{}
	}
	l := Lookup{
		State: Present, Since: time.Unix(0, p.since), Seq: p.seq, Sticky: p.flags&placeSticky != 0, Stale: true,
	}
	rank := uint64(p.seq)
	if l.Sticky {
		rank |= 1 << 32
	}
	var aliases []uint32
	for n := p.links; n != 0; {
		at := s.links.at(n)
		n = at.next
		r := s.routes.at(at.route)
		way := s.paths.at(r.path)
		if r.flags&flagsRefused != 0 || way.rank() != rank {
			continue
		}
		if way.gateway == 0 {
			l.Gateway = l.Gateway || way.flags&pathGateway != 0
			l.Stale = l.Stale && s.stale(r)
			l.VTEPs, aliases = s.addPlaces(l.VTEPs, aliases, p.net, r)
			continue
		}
		for _, id := range s.leads(&s.paths, p.net, *s.hops.at(way.gateway)) {
			mac := s.routes.at(id)
			l.Stale = l.Stale && (s.stale(r) || s.stale(mac))
			l.VTEPs, aliases = s.addPlaces(l.VTEPs, aliases, p.net, mac)
		}
	}
	l.VTEPs = s.addAliases(l.VTEPs, aliases)
	if len(l.VTEPs) == 0 {
		return Lookup{} // all have left its segment, and it was not weighed since
	}
	if len(l.VTEPs) > 1 {
		slices.SortStableFunc(l.VTEPs, func(a, b VTEP) int {
			return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Label, b.Label), cmp.Compare(a.RDs[0], b.RDs[0]))
		})
	}
	return l
}

// addPlaces appends where r says that the address is, and the A-D routes by which it is elsewhere, too.
func (s *Snapshot) addPlaces(to []VTEP, aliases []uint32, n Network, r *route) ([]VTEP, []uint32) {
	way := s.paths.at(r.path)
	esi, ok := way.on(r)
	if !ok {
		return s.addVTEP(to, r, way), aliases
	}
	a := s.around(&s.paths, n, esi, r.tag, *s.targets.at(way.targets))
	self, others := a.behind(&s.paths, &s.view, way.hop)
	if self {
		to = s.addVTEP(to, r, way)
	}
	return to, append(aliases, others...)
}

func (v *view) stale(r *route) bool { return r.gen != v.peers[r.peer].gen }

func (s *Snapshot) vtep(r *route, way *path) VTEP {
	v := VTEP{
		Encaps: way.encaps, ESI: way.esi, RouterMAC: way.routerMAC,
		Leaf: way.flags&pathLeaf != 0, Single: way.flags&pathSingle != 0,
	}
	if way.hop != 0 {
		v.Addr = *s.hops.at(way.hop)
	}
	if r.kind == wire.KindVPN {
		v.Label = r.label >> 4 // a label whatever the tunnel (RFC 4364)
	} else {
		v.Label, v.L3Label = way.encaps.Label(r.label), way.encaps.Label(way.label2)
	}
	return v
}

// addVTEP appends where r says that the address is, or adds r to those that say so.
func (s *Snapshot) addVTEP(to []VTEP, r *route, way *path) []VTEP {
	v := s.vtep(r, way)
	peer := s.peers[r.peer].name
	i := slices.IndexFunc(to, func(w VTEP) bool {
		return w.Addr == v.Addr && w.Label == v.Label && w.L3Label == v.L3Label && w.Encaps == v.Encaps &&
			w.ESI == v.ESI && w.RouterMAC == v.RouterMAC && w.Leaf == v.Leaf && w.Single == v.Single
	})
	since := time.Unix(0, r.at)
	if i < 0 {
		v.Stale, v.Since, v.RDs, v.Peers = s.stale(r), since, []wire.RD{r.rd}, []string{peer}
		return append(to, v)
	}
	w := &to[i]
	w.Stale = w.Stale && s.stale(r)
	if since.Before(w.Since) {
		w.Since = since
	}
	if j, have := slices.BinarySearch(w.RDs, r.rd); !have {
		w.RDs = slices.Insert(w.RDs, j, r.rd)
	}
	if j, have := slices.BinarySearch(w.Peers, peer); !have {
		w.Peers = slices.Insert(w.Peers, j, peer)
	}
	return to
}

// addAliases appends those by which the address is reached by their A-D routes alone.
func (s *Snapshot) addAliases(to []VTEP, routes []uint32) []VTEP {
	slices.Sort(routes)
	told := len(to)
	for _, id := range slices.Compact(routes) {
		r := s.routes.at(id)
		way := s.paths.at(r.path)
		hop := *s.hops.at(way.hop)
		if !slices.ContainsFunc(to[:told], func(v VTEP) bool { return v.Addr == hop }) {
			to = s.addVTEP(to, r, way)
		}
	}
	return to
}

// Flood returns the VTEPs that take part in a network by their type-3 routes, by address,
// and what is known: Unknown if some may be missing.
func (s *Snapshot) Flood(n Network) ([]netip.Addr, State) {
	defer runtime.KeepAlive(s)
	state := s.missing(n, bit(wire.EVPN)).State
	p := s.find(&placeKey{net: n, kind: placeFlood})
	if p == nil {
		return nil, state
	}
	if state == Absent {
		state = Present
	}
	var addrs []netip.Addr
	for id := p.links; id != 0; id = s.links.at(id).next {
		r := s.routes.at(s.links.at(id).route)
		if r.flags&flagsRefused != 0 {
			state = Unknown
			continue
		}
		addrs = append(addrs, *s.hops.at(s.paths.at(r.path).hop))
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), state
}

// Filter says which routes are meant: those that fit all that is set.
type Filter struct {
	Peer    string
	Kind    wire.Kind
	Network Network
	MAC     stain.MAC
	IP      netip.Addr // is in the route's prefix
	VTEP    netip.Addr
}

// Route is one route of one peer.
type Route struct {
	Peer     string
	Kind     wire.Kind
	Networks []Network // that it is in
	Tag      uint32
	MAC      stain.MAC    // Kind MAC
	Prefix   netip.Prefix // invalid: a MAC without IP address
	Seq      uint32
	Sticky   bool
	Gateway  bool
	// GatewayIP is the address that a prefix goes by, in place of the next hop (RFC 9136, 3.1); invalid: none.
	GatewayIP netip.Addr
	Targets   []wire.RouteTarget // sorted
	Refused   bool               // kept as a claim only: no answer is of it
	VTEP                         // Peers and RDs have one each
}

// Routes returns all routes that fit, in no order. It walks the table.
func (s *Snapshot) Routes(f Filter) iter.Seq[Route] {
	return func(yield func(Route) bool) {
		defer runtime.KeepAlive(s)
		for id := uint32(1); id < s.routes.next; id++ {
			r := s.routes.at(id)
			if r.kind == 0 || !s.fits(&f, r) {
				continue
			}
			if !yield(s.route(r)) {
				return
			}
		}
	}
}

func (s *Snapshot) fits(f *Filter, r *route) bool {
	if f.Kind != 0 && r.kind != f.Kind || f.MAC != (stain.MAC{}) && r.mac != f.MAC ||
		f.Peer != "" && s.peers[r.peer].name != f.Peer {
		return false
	}
	if f.VTEP.IsValid() {
		if hop := s.paths.at(r.path).hop; hop == 0 || *s.hops.at(hop) != f.VTEP {
			return false
		}
	}
	if f.IP.IsValid() {
		w := r.wire()
		if !w.Prefix().Contains(f.IP) {
			return false
		}
	}
	return f.Network == 0 || slices.Contains(s.networks(r), f.Network)
}

func (s *Snapshot) networks(r *route) []Network {
	var nets []Network
	for n := r.links; n != 0; n = s.links.at(n).more {
		if n := s.places.at(s.links.at(n).place).net; n != 0 {
			nets = addNetwork(nets, n)
		}
	}
	slices.Sort(nets)
	return nets
}

func (s *Snapshot) route(r *route) Route {
	way := s.paths.at(r.path)
	w := r.wire()
	out := Route{
		Peer: s.peers[r.peer].name, Kind: r.kind, Networks: s.networks(r), Tag: r.tag, MAC: r.mac, Prefix: w.Prefix(),
		Seq: way.seq, Sticky: way.flags&pathSticky != 0, Gateway: way.flags&pathGateway != 0,
		Refused: r.flags&flagsRefused != 0, VTEP: s.vtep(r, way),
	}
	if way.gateway != 0 {
		out.GatewayIP = *s.hops.at(way.gateway)
	}
	out.Stale, out.Since, out.RDs, out.Peers = s.stale(r), time.Unix(0, r.at), []wire.RD{r.rd}, []string{out.Peer}
	for list := *s.targets.at(way.targets); list != ""; list = list[8:] {
		out.Targets = append(out.Targets, target(list))
	}
	return out
}

// Len returns how many routes there are, of all peers.
func (s *Snapshot) Len() int { return s.count }
