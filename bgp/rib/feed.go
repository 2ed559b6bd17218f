package rib

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dyetrace/dyetrace/bgp/wire"
)

// PeerOptions are what a peer may tell us.
type PeerOptions struct {
	// Families are those that the session carries. Empty: EVPN alone.
	Families []wire.Family
	// RTs are the route targets of which a route needs one to be kept. Empty: none is needed.
	RTs []wire.RouteTarget
	// MaxRoutes is how many routes are kept at most. 0: no limit.
	MaxRoutes int
	// NextHops holds the VTEPs that the peer may name. Empty: any unicast address.
	NextHops []netip.Prefix
	// Default is the encapsulation of routes that name none. 0: that of the table.
	Default wire.Encap
}

// Stats of a Feed: what is there now, and counts since the feed was made.
type Stats struct {
	Routes  int // kept now, stale and refused ones included
	Stale   int // kept now, of before the peer restarted
	Updates uint64
	Learned uint64 // routes announced and kept
	Removed uint64 // routes withdrawn that were there
	Denied  uint64 // routes without a route target of the list
	Refused uint64 // routes kept as a bare claim
	Bad     uint64 // UPDATEs that Update returned ErrReset or ErrWithdraw for
}

// Feed takes in what one peer says. Calls are taken one after the other, in the order made.
type Feed struct {
	t    *Table
	name string
	id   uint16

	// serial is held by all that changes routes of this peer. Long work lets go of t.mu now
	// and then; none of our own may come in between.
	serial sync.Mutex
	kept   atomic.Int64 // routes, as of when t.mu was last let go

	opts atomic.Pointer[options] // written with both serial and t.mu held

	// Guarded by t.mu.
	closed bool
	routes int
	stale  int
	stats  Stats

	ahead Ahead // of Update; guarded by serial
}

// options are PeerOptions, ready to be asked. They do not change.
type options struct {
	PeerOptions
	hops prefixes // NextHops
}

// Peer returns the feed of a peer. A name that is there already gets its feed back, with the
// options that it has. It panics on the 65536th peer.
func (t *Table) Peer(name string, o PeerOptions) *Feed {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.feeds[name]; f != nil {
		return f
	}
	id := slices.IndexFunc(t.peers, func(p peer) bool { return p.name == "" })
	if id < 0 {
		if len(t.peers) > math.MaxUint16 {
			panic("rib: more than 65536 peers")
		}
		id = len(t.peers)
		t.peers = append(t.peers, peer{})
	}
	f := &Feed{t: t, name: name, id: uint16(id)}
	t.peers[id] = peer{name: name}
	f.take(o)
	t.feeds[name] = f
	t.changed()
	return f
}

// take sets options that are the feed's own copy.
func (f *Feed) take(o PeerOptions) {
	o.RTs, o.NextHops, o.Families = slices.Clone(o.RTs), slices.Clone(o.NextHops), slices.Clone(o.Families)
	slices.Sort(o.RTs)
	if len(o.Families) == 0 {
		o.Families = []wire.Family{wire.EVPN}
	}
	if o.Default == 0 {
		o.Default = f.t.opts.Default
	}
	f.opts.Store(&options{o, newPrefixes(o.NextHops)})
	p := &f.t.peers[f.id]
	p.families, p.filtered = 0, len(o.RTs) > 0
	for _, fam := range o.Families {
		p.families |= bit(fam)
	}
}

// SetOptions changes what the peer may tell, also of the routes that are there: those without
// a route target of the new list are removed. It returns whether routes that we did not keep
// may now be wanted, so that the peer should be asked for all of them again (RFC 2918).
func (f *Feed) SetOptions(o PeerOptions, now time.Time) (refresh bool) {
	f.serial.Lock()
	defer f.serial.Unlock()
	f.t.mu.Lock()
	was := f.opts.Load()
	f.take(o)
	is := f.opts.Load()
	f.t.changed()
	f.t.mu.Unlock()
	f.each(now, func(id uint32, r *route) {
		targets := *f.t.targets.vals.at(f.t.paths.vals.at(r.path).targets)
		if r.flags&flagClaim == 0 && !is.wanted([]byte(targets)) {
			f.t.drop(f, id)
			return
		}
		flags := r.flags &^ flagHop
		if hop := f.t.paths.vals.at(r.path).hop; hop != 0 && !is.credible(*f.t.hops.vals.at(hop)) {
			flags |= flagHop
		}
		if flags != r.flags {
			f.t.routes.edit(id, &f.t.memory).flags = flags
			f.t.touch(r)
		}
	})
	narrower := len(was.RTs) == 0 || len(is.RTs) > 0 && !slices.ContainsFunc(is.RTs, func(rt wire.RouteTarget) bool {
		_, had := slices.BinarySearch(was.RTs, rt)
		return !had
	})
	return !narrower || was.Default != is.Default || was.MaxRoutes > 0 && (is.MaxRoutes == 0 || is.MaxRoutes > was.MaxRoutes)
}

// Up tells that a session with the peer stands. kept: the peer says that it kept its
// forwarding state (RFC 4724, 4.2), so that what it said before holds until its End-of-RIB
// or Sweep, marked stale; else it is forgotten.
func (f *Feed) Up(now time.Time, kept bool) {
	f.serial.Lock()
	defer f.serial.Unlock()
	if kept {
		f.outdate(now)
	} else {
		f.purge(now)
	}
	f.state(func(p *peer) { p.up, p.synced, p.limited = true, 0, false })
}

// Down tells that the session is no more. graceful: what the peer said is kept, marked stale,
// until Up or Sweep; what was stale already goes (RFC 4724, 4.2). Else all of it is forgotten.
func (f *Feed) Down(now time.Time, graceful bool) {
	f.serial.Lock()
	defer f.serial.Unlock()
	f.state(func(p *peer) { p.up, p.synced = false, 0 })
	if !graceful {
		f.purge(now)
		return
	}
	f.sweep(now, 0)
	f.outdate(now)
}

// Sweep forgets what is stale: the peer had its time.
func (f *Feed) Sweep(now time.Time) {
	f.serial.Lock()
	defer f.serial.Unlock()
	f.sweep(now, 0)
}

// Settle takes the peer for synced in all its families. It is for the session to call, after
// a quiet time that it finds long enough, where the peer does not promise an End-of-RIB: only
// who speaks graceful restart must send one (RFC 4724, 2).
func (f *Feed) Settle(now time.Time) {
	f.serial.Lock()
	defer f.serial.Unlock()
	f.sweep(now, 0)
	f.state(func(p *peer) {
		if p.up && !p.limited {
			p.synced = p.families
		}
	})
}

// Close forgets the peer and all that it said. The feed takes nothing more.
func (f *Feed) Close(now time.Time) {
	f.Down(now, false)
	f.serial.Lock()
	defer f.serial.Unlock()
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if f.closed {
		return
	}
	f.closed = true
	delete(f.t.feeds, f.name)
	f.t.peers[f.id] = peer{}
	f.t.changed()
}

// Synced tells whether the peer is up and has told all its routes of the family.
func (f *Feed) Synced(fam wire.Family) bool {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	return !f.closed && f.t.peers[f.id].synced.has(fam)
}

// Stats returns the feed's counts.
func (f *Feed) Stats() Stats {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	s := f.stats
	s.Routes, s.Stale = f.routes, f.stale
	return s
}

// Routes returns how many routes of the peer are kept, stale and refused ones included.
func (f *Feed) Routes() int { return int(f.kept.Load()) }

func (f *Feed) state(change func(*peer)) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if !f.closed {
		change(&f.t.peers[f.id])
		f.t.changed()
	}
}

// outdate marks all routes stale; those that are already go.
func (f *Feed) outdate(now time.Time) {
	if f.stale == f.routes {
		return
	}
	f.sweep(now, 0)
	f.state(func(p *peer) {
		p.gen++
		f.stale = f.routes
	})
}

// purge removes all.
func (f *Feed) purge(now time.Time) {
	f.each(now, func(id uint32, _ *route) { f.t.drop(f, id) })
}

// sweep removes what is stale, of one family or (0) of all.
func (f *Feed) sweep(now time.Time, fam wire.Family) {
	if f.stale == 0 { // written under serial only
		return
	}
	f.each(now, func(id uint32, r *route) {
		if r.gen != f.t.peers[f.id].gen && (fam == 0 || r.family() == fam) {
			f.t.drop(f, id)
		}
	})
}

// each has do look at all routes of the peer. Other feeds and readers get in between.
func (f *Feed) each(now time.Time, do func(id uint32, r *route)) {
	f.t.each(now, func(id uint32, r *route) {
		if r.peer == f.id {
			do(id, r)
			f.kept.Store(int64(f.routes))
		}
	})
}

// Update is Read and Take in one.
func (f *Feed) Update(body []byte, now time.Time) error {
	f.serial.Lock()
	defer f.serial.Unlock()
	f.Read(&f.ahead, body)
	return f.takeIn(&f.ahead, now)
}

// Take takes in an UPDATE that Read has read. The error wraps ErrReset, ErrWithdraw or ErrLimit.
func (f *Feed) Take(a *Ahead, now time.Time) error {
	f.serial.Lock()
	defer f.serial.Unlock()
	return f.takeIn(a, now)
}

func (f *Feed) takeIn(a *Ahead, now time.Time) error {
	a.ready(f)
	rest, err := f.apply(a, now)
	if rest {
		f.t.turnRest(now)
	}
	if fam := a.update.EndOfRIB; fam != 0 && err == nil {
		f.sweep(now, fam)
		f.state(func(p *peer) {
			if p.up && !p.limited {
				p.synced |= bit(fam) & p.families
			}
		})
	}
	if err != nil {
		return fmt.Errorf("update of peer %s: %w", f.name, err)
	}
	return nil
}

// apply changes the table. rest: Table.turnRest has to follow.
func (f *Feed) apply(a *Ahead, now time.Time) (rest bool, err error) {
	t, u := f.t, &a.update
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.closed {
		return false, nil
	}
	f.stats.Updates++
	if a.bad != nil || u.Malformed != nil {
		f.stats.Bad++
	}
	if a.bad != nil {
		return false, a.bad
	}
	f.withdraw(&a.gone)
	switch {
	case a.denied:
		f.withdraw(&a.come) // what was there under the same NLRI is replaced by nothing
		f.stats.Denied += uint64(len(a.come.routes))
	case len(a.come.routes) > 0:
		err = f.announce(a, now)
	}
	t.settle(now)
	if u.Reach.Count+u.Unreach.Count > 0 {
		t.changed()
		f.kept.Store(int64(f.routes))
	}
	if err != nil {
		t.peers[f.id].limited, t.peers[f.id].synced = true, 0
		return t.hasRest(), err
	}
	return t.hasRest(), u.Malformed
}

func (f *Feed) withdraw(b *batch) {
	if len(b.routes) == 0 {
		return
	}
	t := f.t
	b.warm(t, f.id)
	for i := range b.routes {
		// The same route may be there twice.
		if id := b.ids[i]; id != 0 && t.is(id, &b.routes[i]) {
			t.remove(f, id, b.hashes[i], b.newest[i], b.gaps[i])
			f.stats.Removed++
		}
	}
}

// announce takes in what an UPDATE brings. The error wraps ErrLimit.
func (f *Feed) announce(a *Ahead, now time.Time) error {
	p, flags := f.path(a)
	var cur pathCursor
	defer func() { f.t.letGo(cur, p) }()
	cur.id = f.t.holdShared(p)
	a.come.warm(f.t, f.id)
	at := now.UnixNano()
	for i := range a.come.routes {
		w := &a.come.routes[i]
		own := flags
		if w.Gateway != [16]byte{} && w.ESI != (wire.ESI{}) {
			own |= flagClaim // RFC 9136, 3.2: it is to be treated as withdrawn
		}
		if w.ESI != cur.esi || w.Label2 != cur.label2 || w.Gateway != cur.gateway {
			f.t.turn(&cur, p, w)
		}
		if !f.t.put(f, &a.come, i, cur.id, own, at) {
			return fmt.Errorf("%d routes are kept, and there is one more: %w", f.routes, ErrLimit)
		}
		f.stats.Learned++
		if own&flagsRefused != 0 {
			f.stats.Refused++
		}
	}
	return nil
}

// pathCursor is the path of the route at hand: what an UPDATE says of all its routes, with
// what the route adds to it. The same holds for most of an UPDATE.
type pathCursor struct {
	id      uint32
	esi     wire.ESI
	label2  uint32
	gateway [16]byte
}

// turn changes the cursor to the path of w.
func (t *Table) turn(c *pathCursor, p path, w *wire.Route) {
	p.esi, p.label2 = w.ESI, w.Label2
	if g := gatewayOf(w); g.IsValid() {
		p.gateway, _ = t.hops.hold(g, &t.memory) // given away with the path
	}
	id := t.holdShared(p)
	t.dropPath(c.id)
	*c = pathCursor{id: id, esi: w.ESI, label2: w.Label2, gateway: w.Gateway}
}

// holdShared is holdPath for a hop and targets that the caller goes on holding.
func (t *Table) holdShared(p path) uint32 {
	if p.hop != 0 {
		t.hops.refs[p.hop]++
	}
	t.targets.refs[p.targets]++
	return t.holdPath(p)
}

func (t *Table) letGo(c pathCursor, p path) {
	t.dropPath(c.id)
	t.dropHop(p.hop)
	t.targets.drop(p.targets)
}

// path returns what an UPDATE says of all its routes, with its hop and targets held, and why the
// content is refused.
func (f *Feed) path(ahead *Ahead) (path, routeFlags) {
	t, u := f.t, &ahead.update
	var p path
	var flags routeFlags
	p.encaps = ahead.encaps()
	p.targets, _ = t.targets.hold(string(ahead.list), &t.memory)
	if u.Malformed != nil {
		return p, flagClaim
	}
	if !unicast(u.NextHop) {
		return p, flagClaim
	}
	p.hop, _ = t.hops.hold(u.NextHop, &t.memory)
	if !ahead.options.credible(u.NextHop) {
		flags = flagHop
	}
	a := &u.Attributes
	p.seq, p.routerMAC = a.Seq, a.RouterMAC
	for _, b := range []struct {
		is   bool
		flag pathFlags
	}{{a.Sticky, pathSticky}, {a.Gateway, pathGateway}, {a.Leaf, pathLeaf}, {a.Mobility, pathMobile}, {a.Single, pathSingle}} {
		if b.is {
			p.flags |= b.flag
		}
	}
	return p, flags
}

// unicast tells whether a VTEP can have the address at all.
func unicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func (o *options) credible(hop netip.Addr) bool {
	return len(o.NextHops) == 0 || o.hops.contains(hop)
}

// wanted tells whether one of the route targets, in the form of an interned list, is let in.
func (o *options) wanted(list []byte) bool {
	if len(o.RTs) == 0 {
		return true
	}
	for ; len(list) > 0; list = list[8:] {
		if _, ok := slices.BinarySearch(o.RTs, wire.RouteTarget(binary.BigEndian.Uint64(list))); ok {
			return true
		}
	}
	return false
}
