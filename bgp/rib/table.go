package rib

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dyetrace/dyetrace/bgp/slab"
	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

// What Feed.Update returns wraps one of these, and tells what the session owes the peer.
var (
	// ErrReset asks for a NOTIFICATION and an end of the session: nothing was taken in.
	ErrReset = wire.ErrReset
	// ErrWithdraw asks for nothing (RFC 7606): the routes are kept as claims without content.
	ErrWithdraw = wire.ErrWithdraw
	// ErrLimit asks for a Cease, code 1 (RFC 4486): what came after the limit was dropped.
	ErrLimit = errors.New("prefix limit")
)

// Network is what an address is looked up in: a VNI (or Ethernet tag), or a route target.
type Network uint64

// VNI returns the network of a VNI.
func VNI(vni uint32) Network { return Network(vni) }

// Target returns the network of a route target.
func Target(rt wire.RouteTarget) Network { return Network(rt) }

// String returns "vni 100" or "target 64512:100".
func (n Network) String() string {
	if n <= math.MaxUint32 {
		return fmt.Sprintf("vni %d", uint32(n))
	}
	return "target " + wire.RouteTarget(n).String()
}

// Options of a Table. They hold for its lifetime, but for Networks; see Table.SetNetworks.
type Options struct {
	// History is how many stays that have ended are remembered, of all addresses together;
	// each takes 56 bytes, and its address another 80. 0: 131072; below 0: none.
	History int
	// Default is the encapsulation of routes that name none. 0: VXLAN. (RFC 8365, 5.1.3, has
	// MPLS there; relays in VXLAN fabrics are known to lose the community.)
	Default wire.Encap
	// Networks names networks by VNI. Routes without a VNI need it to be found by one.
	Networks Networks
}

// Networks is in which VNIs routes are that have these route targets, or route distinguishers.
type Networks struct {
	Targets map[wire.RouteTarget]uint32
	RDs     map[wire.RD]uint32
}

const (
	defaultHistory = 1 << 17
	// maxTargets is how many networks a route is put in. A route of 100 bytes could name
	// hundreds, at 100 bytes each.
	maxTargets = 16
	// maxClaims is how many routes for one address are weighed, each time one changes. A
	// default route of each of 5,000 VTEPs fits; 8192 take 0.2 ms.
	maxClaims = 8192
)

// Table is where all that peers say comes together. All methods may be called at any time.
type Table struct {
	opts Options
	snap atomic.Pointer[Snapshot]
	now  atomic.Uint64 // version of what is in the table
	// mapping is Options.Networks as they are now; it is written to with mu held.
	mapping atomic.Pointer[Networks]

	mu      sync.Mutex
	view    // what snapshots share
	byRoute *index
	paths   interned[path]
	hops    interned[netip.Addr]
	targets interned[string]
	sets    interned[string] // answers of several hops, 4 bytes each, sorted
	memory
	dirty   []uint32 // places whose answer must be weighed again
	turning []turn   // routes likewise, after those
	lead    []turn   // and after those; see turnGateways
	leading uint32   // places of kind placeLead
	scratch []uint32
	hashes  []uint32 // likewise
	sink    uint32   // see batch
	past    past
	feeds   map[string]*Feed
	watches map[*Watch]struct{}
}

// view is the table as it is at one time. Interned values are shared by page lists that the
// table brings up to date when a snapshot is taken.
type view struct {
	routes  pages[route]
	links   pages[link]
	places  pages[place]
	byPlace *index
	count   int // of routes
	peers   []peer
	seed    seed
	v4      [33]uint32 // places by prefix length
	v6      [129]uint32
	cut     uint32 // routes that have more route targets than they could be put in
	full    bool   // an address found no room: no answer is complete any more
}

// peer is what readers need of a Feed.
type peer struct {
	name     string // "": nobody's
	gen      uint8  // a route with another one is stale
	up       bool
	limited  bool
	filtered bool // by route targets
	families familySet
	synced   familySet
}

type familySet uint8

func (s familySet) has(f wire.Family) bool { return s&bit(f) != 0 }

func bit(f wire.Family) familySet {
	switch f {
	case wire.EVPN:
		return 1
	case wire.VPNv4:
		return 2
	case wire.VPNv6:
		return 4
	}
	return 0
}

// route is one route of one peer, by its exact NLRI.
type route struct {
	rd    wire.RD
	addr  [16]byte
	at    int64 // Unix ns: since when it says what it says
	tag   uint32
	path  uint32
	links uint32 // the first
	label uint32 // as sent
	next  uint32 // another peer's of the same NLRI
	mac   stain.MAC
	peer  uint16
	kind  wire.Kind // 0: nobody's record
	bits  uint8
	gen   uint8
	flags routeFlags
}

type routeFlags uint8

const (
	flagV6    routeFlags = 1 << iota
	flagL3               // path.label2 is there
	flagClaim            // content refused for good
	flagHop              // next hop refused by the peer's options
	flagCut              // see view.cut

	flagsRefused = flagClaim | flagHop
	flagsPlace   = flagV6 | flagL3 // those that say where a route belongs
)

func (r *route) family() wire.Family {
	switch {
	case r.kind != wire.KindVPN:
		return wire.EVPN
	case r.flags&flagV6 != 0:
		return wire.VPNv6
	}
	return wire.VPNv4
}

// path is what routes share.
type path struct {
	hop       uint32 // 0: none that we trust
	gateway   uint32 // a number like hop's: the address that a prefix goes by; 0: hop itself
	targets   uint32
	encaps    wire.Encaps // as they are to be read
	seq       uint32
	label2    uint32
	esi       wire.ESI
	routerMAC stain.MAC
	flags     pathFlags
}

type pathFlags uint8

const (
	pathSticky pathFlags = 1 << iota
	pathGateway
	pathLeaf
	pathMobile
	pathSingle
)

// rank orders paths by what makes a MAC's place: sticky before all, then by sequence.
func (p *path) rank() uint64 {
	if p.flags&pathSticky != 0 {
		return 1<<32 | uint64(p.seq)
	}
	return uint64(p.seq)
}

// link puts a route in a place.
type link struct {
	route, place uint32
	next, prev   uint32 // of the same place
	more         uint32 // of the same route
}

// New returns an empty table.
func New(o Options) *Table {
	if o.History == 0 {
		o.History = defaultHistory
	}
	if o.Default == 0 {
		o.Default = wire.EncapVXLAN
	}
	t := &Table{opts: o, feeds: make(map[string]*Feed), watches: make(map[*Watch]struct{})}
	t.seed, t.memory = newSeed(), newMemory()
	slots := slab.NewHuge()
	t.byRoute, t.byPlace = newIndex(slots), newIndex(slots)
	t.found = t.byPlace
	t.mapping.Store(o.Networks.clone())
	t.past.size = uint64(max(o.History, 0))
	return t
}

func (n Networks) clone() *Networks { return &Networks{maps.Clone(n.Targets), maps.Clone(n.RDs)} }

// SetNetworks changes Options.Networks. Routes whose networks change with them are in the new ones
// from now on; what is known of other addresses does not change.
func (t *Table) SetNetworks(networks Networks, now time.Time) {
	t.mu.Lock()
	was := t.mapping.Load()
	same := maps.Equal(was.Targets, networks.Targets) && maps.Equal(was.RDs, networks.RDs)
	if !same {
		t.mapping.Store(networks.clone())
	}
	t.mu.Unlock()
	if same {
		return
	}
	t.each(now, func(id uint32, r *route) {
		t.detach(id)
		t.attach(id)
	})
}

// eachLen is how many records are looked at before others get their turn.
const eachLen = 4096

// each has do look at all routes. Feeds and readers get in between.
func (t *Table) each(now time.Time, do func(id uint32, r *route)) {
	for first := uint32(1); ; first += eachLen {
		t.mu.Lock()
		end := min(t.routes.next, first+eachLen)
		for id := first; id < end && t.count > 0; id++ {
			if r := t.routes.at(id); r.kind != 0 {
				do(id, r)
			}
		}
		t.settle(now)
		t.changed()
		more, rest := end < t.routes.next && t.count > 0, t.hasRest()
		t.mu.Unlock()
		if rest {
			t.turnRest(now)
		}
		if !more {
			return
		}
	}
}

// changed says that there is something that no snapshot has. The last one goes, unless somebody
// reads it: it would keep alive all pages that are copied from here on.
func (t *Table) changed() {
	t.now.Add(1)
	if t.snap.Load() != nil {
		t.snap.Store(nil)
	}
	t.reclaim()
}

// Peers tell the same routes, most of all those that reflect them. So byRoute has an NLRI once, and it leads
// to the newest of its routes, and that to the others: with a second peer the index grows by nothing.

func (v *view) routeHash(r *wire.Route) uint32 {
	return v.seed.hash(uint64(r.RD),
		r.MAC.Uint64(),
		binary.BigEndian.Uint64(r.Addr[:]),
		binary.BigEndian.Uint64(r.Addr[8:])^uint64(r.Tag)<<32^uint64(r.Kind)<<8^uint64(r.Bits))
}

// findRoute returns the newest route of that NLRI.
func (t *Table) findRoute(hash uint32, r *wire.Route) (newest uint32, at gap) {
	return t.byRoute.find(hash, func(id uint32) bool { return t.is(id, r) })
}

// ofPeer returns a peer's own one of the routes of an NLRI; 0: it has none.
func (t *Table) ofPeer(newest uint32, peer uint16) uint32 {
	id := newest
	for id != 0 && t.routes.at(id).peer != peer {
		id = t.routes.at(id).next
	}
	return id
}

// is tells whether a record is a route of that NLRI.
func (t *Table) is(id uint32, r *wire.Route) bool {
	have := t.routes.at(id)
	return have.mac == r.MAC && have.rd == r.RD && have.addr == r.Addr &&
		have.tag == r.Tag && have.kind == r.Kind && have.bits == r.Bits && (have.flags&flagV6 != 0) == r.V6
}

// wire returns what tells the route from others.
func (r *route) wire() wire.Route {
	return wire.Route{Kind: r.kind, RD: r.rd, Tag: r.tag, MAC: r.mac, Addr: r.addr, Bits: r.bits, V6: r.flags&flagV6 != 0}
}

func newRoute(f *Feed, w *wire.Route, flags routeFlags) route {
	return route{
		rd: w.RD, addr: w.Addr, tag: w.Tag, label: w.Label, mac: w.MAC,
		peer: f.id, kind: w.Kind, bits: w.Bits, flags: flags | flagsOf(w),
	}
}

func flagsOf(w *wire.Route) (flags routeFlags) {
	if w.V6 {
		flags |= flagV6
	}
	if w.HasL3 {
		flags |= flagL3
	}
	return flags
}

// put takes in route i of a batch, that may be there already. It is false if there is no room for it.
func (t *Table) put(f *Feed, b *batch, i int, pathID uint32, flags routeFlags, at int64) bool {
	w, hash := &b.routes[i], b.hashes[i]
	flags |= flagsOf(w)
	newest, gap := b.newest[i], b.gaps[i]
	if !gap.has(newest) { // another route of the UPDATE has come between
		newest, gap = t.findRoute(hash, w)
	}
	if id := t.ofPeer(newest, f.id); id != 0 {
		t.replace(f, id, w, pathID, flags, at)
		return true
	}
	if most := f.opts.Load().MaxRoutes; most > 0 && f.routes >= most {
		return false
	}
	id, r := t.routes.add(&t.memory)
	if newest != 0 {
		gap.turn(hash, id)
	} else if !t.byRoute.addAt(gap, hash, id) {
		t.routes.release(id)
		return false
	}
	*r = newRoute(f, w, flags)
	r.at, r.path, r.gen, r.next = at, pathID, t.peers[f.id].gen, newest
	t.paths.refs[pathID]++
	f.routes++
	t.count++
	keys, hashes := b.keysOf(t, i)
	if len(keys) == 0 {
		t.attach(id)
	}
	for j := range keys {
		t.link(id, &keys[j], hashes[j])
	}
	return true
}

// replace gives a route another content, or makes one that is stale fresh.
func (t *Table) replace(f *Feed, id uint32, w *wire.Route, pathID uint32, flags routeFlags, at int64) {
	r := t.routes.at(id)
	gen := t.peers[f.id].gen
	if r.gen != gen {
		f.stale--
	}
	if r.path == pathID && r.label == w.Label && r.flags&^flagCut == flags {
		if r.gen != gen {
			t.routes.edit(id, &t.memory).gen = gen
		}
		return
	}
	r = t.routes.edit(id, &t.memory)
	was, is := t.paths.vals.at(r.path), t.paths.vals.at(pathID)
	moved := was.targets != is.targets || was.encaps.VNI() != is.encaps.VNI() || was.label2 != is.label2 ||
		was.esi != is.esi || was.gateway != is.gateway || r.label != w.Label || r.flags&flagsPlace != flags&flagsPlace
	if moved {
		t.detach(id)
	} else {
		flags |= r.flags & flagCut
	}
	t.paths.refs[pathID]++
	t.dropPath(r.path)
	r.path, r.label, r.flags, r.gen, r.at = pathID, w.Label, flags, gen, at
	if moved {
		t.attach(id)
	} else {
		t.touch(r)
	}
}

// remove forgets a route, of that hash. newest and at are as of findRoute, or as they were.
func (t *Table) remove(f *Feed, id, hash, newest uint32, at gap) {
	t.detach(id)
	r := t.routes.edit(id, &t.memory)
	t.unlist(id, r, hash, newest, at)
	if r.gen != t.peers[f.id].gen {
		f.stale--
	}
	t.dropPath(r.path)
	*r = route{}
	t.routes.release(id)
	f.routes--
	t.count--
}

// drop is remove for who knows no more.
func (t *Table) drop(f *Feed, id uint32) {
	w := t.routes.at(id).wire()
	t.remove(f, id, t.routeHash(&w), 0, gap{})
}

// unlist takes a route from those of its NLRI.
func (t *Table) unlist(id uint32, r *route, hash, newest uint32, at gap) {
	if newest == 0 || !at.has(newest) {
		w := r.wire()
		newest, at = t.findRoute(hash, &w)
	}
	switch {
	case newest != id:
		before := newest
		for t.routes.at(before).next != id {
			before = t.routes.at(before).next
		}
		t.routes.edit(before, &t.memory).next = r.next
	case r.next != 0:
		at.turn(hash, r.next)
	default:
		t.byRoute.remove(hash, id)
	}
}

// holdPath returns the number of p, whose hop, gateway and targets the caller holds and gives away.
func (t *Table) holdPath(p path) uint32 {
	id, fresh := t.paths.hold(p, &t.memory)
	if !fresh {
		t.dropHop(p.hop)
		t.dropHop(p.gateway)
		t.targets.drop(p.targets)
	}
	return id
}

func (t *Table) dropPath(id uint32) {
	if p, last := t.paths.drop(id); last {
		t.dropHop(p.hop)
		t.dropHop(p.gateway)
		t.targets.drop(p.targets)
	}
}

func (t *Table) dropHop(id uint32) {
	if id != 0 {
		t.hops.drop(id)
	}
}

func addNetwork(nets []Network, n Network) []Network {
	for _, have := range nets {
		if have == n {
			return nets
		}
	}
	return append(nets, n)
}

// target returns the first route target of an interned list.
func target(s string) wire.RouteTarget {
	var rt wire.RouteTarget
	for i := range 8 {
		rt = rt<<8 | wire.RouteTarget(s[i])
	}
	return rt
}
