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

	// Written with both serial and t.mu held, so that one of them suffices to read.
	opts PeerOptions
	hops prefixes // opts.NextHops

	// Guarded by t.mu.
	closed bool
	routes int
	stale  int
	stats  Stats

	// Of the UPDATE at hand, guarded by serial.
	come, gone batch
	rts        []wire.RouteTarget
	list       []byte // route targets as interned
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
	f.opts, f.hops = o, newPrefixes(o.NextHops)
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
	was := f.opts
	f.take(o)
	is := f.opts
	f.t.changed()
	f.t.mu.Unlock()
	f.each(now, func(id uint32, r *route) {
		targets := *f.t.targets.vals.at(f.t.paths.vals.at(r.path).targets)
		if r.flags&flagClaim == 0 && !f.wanted([]byte(targets)) {
			f.t.remove(f, id)
			return
		}
		flags := r.flags &^ flagHop
		if hop := f.t.paths.vals.at(r.path).hop; hop != 0 && !f.credible(*f.t.hops.vals.at(hop)) {
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
	f.each(now, func(id uint32, _ *route) { f.t.remove(f, id) })
}

// sweep removes what is stale, of one family or (0) of all.
func (f *Feed) sweep(now time.Time, fam wire.Family) {
	if f.stale == 0 { // written under serial only
		return
	}
	f.each(now, func(id uint32, r *route) {
		if r.gen != f.t.peers[f.id].gen && (fam == 0 || r.family() == fam) {
			f.t.remove(f, id)
		}
	})
}

// each has do look at all routes of the peer. Other feeds and readers get in between.
func (f *Feed) each(now time.Time, do func(id uint32, r *route)) {
	f.t.each(now, func(id uint32, r *route) {
		if r.peer == f.id {
			do(id, r)
		}
	})
}

// Update takes in the body of an UPDATE (RFC 4271, 4.3), all that is behind the header of 19
// bytes, and keeps none of it. The error wraps ErrReset, ErrWithdraw or ErrLimit.
func (f *Feed) Update(body []byte, now time.Time) error {
	f.serial.Lock()
	defer f.serial.Unlock()
	var u wire.Update
	bad := u.Parse(body)
	denied := bad == nil && f.read(&u)
	rest, err := f.apply(&u, denied, bad, now)
	if rest {
		f.t.turnRest(now)
	}
	if u.EndOfRIB != 0 && err == nil {
		f.sweep(now, u.EndOfRIB)
		f.state(func(p *peer) {
			if p.up && !p.limited {
				p.synced |= bit(u.EndOfRIB) & p.families
			}
		})
	}
	if err != nil {
		return fmt.Errorf("update of peer %s: %w", f.name, err)
	}
	return nil
}

// read is all of an UPDATE that can be done before the table is locked. denied: what it announces has no
// route target of the list.
func (f *Feed) read(u *wire.Update) (denied bool) {
	f.gone.read(f, &u.Unreach)
	f.come.read(f, &u.Reach)
	if u.Reach.Count == 0 {
		return false
	}
	f.listTargets(&u.Attributes)
	if u.Malformed == nil && !f.wanted(f.list) {
		return true
	}
	for i := range f.come.routes {
		if r := &f.come.routes[i]; r.Kind == wire.KindMulticast {
			r.Label = u.Attributes.PMSILabel
		}
	}
	f.come.place(f.t, f.list, f.encaps(u))
	return false
}

func (f *Feed) encaps(u *wire.Update) wire.Encaps { return u.Attributes.Encaps.Or(f.opts.Default) }

// apply changes the table. rest: Table.turnRest has to follow.
func (f *Feed) apply(u *wire.Update, denied bool, bad error, now time.Time) (rest bool, err error) {
	t := f.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.closed {
		return false, nil
	}
	f.stats.Updates++
	if bad != nil || u.Malformed != nil {
		f.stats.Bad++
	}
	if bad != nil {
		return false, bad
	}
	f.withdraw(&f.gone)
	switch {
	case denied:
		f.withdraw(&f.come) // what was there under the same NLRI is replaced by nothing
		f.stats.Denied += uint64(len(f.come.routes))
	case len(f.come.routes) > 0:
		err = f.announce(u, now)
	}
	t.settle(now)
	if u.Reach.Count+u.Unreach.Count > 0 {
		t.changed()
		f.kept.Store(int64(f.routes))
	}
	if err != nil {
		t.peers[f.id].limited, t.peers[f.id].synced = true, 0
		return len(t.turning) > 0, err
	}
	return len(t.turning) > 0, u.Malformed
}

func (f *Feed) withdraw(b *batch) {
	if len(b.routes) == 0 {
		return
	}
	t := f.t
	b.warm(t, f.id)
	for i := range b.routes {
		// The same route may be there twice.
		if id := b.ids[i]; id != 0 && t.is(id, &b.routes[i], f.id) {
			t.removeHashed(f, b.hashes[i], id)
			f.stats.Removed++
		}
	}
}

// announce takes in what u brings. The error wraps ErrLimit.
func (f *Feed) announce(u *wire.Update, now time.Time) error {
	p, flags := f.path(u)
	var cur pathCursor
	defer func() { f.t.letGo(cur, p) }()
	cur.id = f.t.holdShared(p)
	f.come.warm(f.t, f.id)
	at := now.UnixNano()
	for i := range f.come.routes {
		w := &f.come.routes[i]
		own := flags
		if w.Gateway {
			own |= flagClaim
		}
		if w.ESI != cur.esi || w.Label2 != cur.label2 {
			f.t.turn(&cur, p, w)
		}
		if !f.t.put(f, &f.come, i, cur.id, own, at) {
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
	id     uint32
	esi    wire.ESI
	label2 uint32
}

// turn changes the cursor to the path of w.
func (t *Table) turn(c *pathCursor, p path, w *wire.Route) {
	p.esi, p.label2 = w.ESI, w.Label2
	id := t.holdShared(p)
	t.dropPath(c.id)
	*c = pathCursor{id: id, esi: w.ESI, label2: w.Label2}
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

// path returns what u says of all its routes, with its hop and targets held, and why the
// content is refused.
func (f *Feed) path(u *wire.Update) (path, routeFlags) {
	t, a := f.t, &u.Attributes
	var p path
	var flags routeFlags
	p.encaps = f.encaps(u)
	p.targets, _ = t.targets.hold(string(f.list), &t.memory)
	if u.Malformed != nil {
		return p, flagClaim
	}
	if !unicast(u.NextHop) {
		return p, flagClaim
	}
	p.hop, _ = t.hops.hold(u.NextHop, &t.memory)
	if !f.credible(u.NextHop) {
		flags = flagHop
	}
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

func (f *Feed) credible(hop netip.Addr) bool {
	return len(f.opts.NextHops) == 0 || f.hops.contains(hop)
}

// listTargets brings the route targets into the order in which they are interned.
func (f *Feed) listTargets(a *wire.Attributes) {
	f.rts = a.AppendRouteTargets(f.rts[:0])
	slices.Sort(f.rts)
	f.list = f.list[:0]
	for _, rt := range slices.Compact(f.rts) {
		f.list = binary.BigEndian.AppendUint64(f.list, uint64(rt))
	}
}

// wanted tells whether one of the route targets, in the form of an interned list, is let in.
func (f *Feed) wanted(list []byte) bool {
	if len(f.opts.RTs) == 0 {
		return true
	}
	for ; len(list) > 0; list = list[8:] {
		if _, ok := slices.BinarySearch(f.opts.RTs, wire.RouteTarget(binary.BigEndian.Uint64(list))); ok {
			return true
		}
	}
	return false
}
