package rib

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dyetrace/dyetrace/stain"
)

// Stay says where an address was for a time.
type Stay struct {
	VTEPs  []netip.Addr // by address
	Seq    uint32       // MAC mobility
	Sticky bool
	From   time.Time
	To     time.Time // zero: it is there still
}

// past is the stays that ended, the newest in place of the oldest.
type past struct {
	ring []stay
	size uint64
	next uint64    // number of the next one less 1; numbers start at 1
	lost time.Time // when the newest of those forgotten ended
}

type stay struct {
	since, until int64
	prev         uint64 // of the same place
	place        uint32
	answer       uint32 // held
	seq          uint32
	sticky       bool
}

// remember puts the answer of p, which ends now, into the past.
func (t *Table) remember(id uint32, p *place, sticky bool, now time.Time) {
	h := &t.past
	if h.size == 0 {
		return
	}
	i := h.next % h.size
	if i == uint64(len(h.ring)) {
		h.ring = append(h.ring, stay{})
	} else {
		t.expire(id, &h.ring[i])
	}
	h.next++
	h.ring[i] = stay{
		since: p.since, until: now.UnixNano(), prev: p.past, place: id, answer: p.answer, seq: p.seq,
		sticky: sticky,
	}
	if p.answer&ofSet != 0 {
		t.sets.refs[p.answer&^ofSet]++
	} else {
		t.hops.refs[p.answer]++
	}
	p.past = h.next
}

// expire forgets a stay, and the place with it that had no other; but not the place busy,
// which is being written to.
func (t *Table) expire(busy uint32, s *stay) {
	h := &t.past
	h.lost = time.Unix(0, s.until)
	t.release(s.answer)
	p := t.places.edit(s.place, &t.memory)
	if p.past != h.next-h.size+1 {
		return // a newer one is there
	}
	p.past = 0
	if s.place != busy && p.flags&placeDirty == 0 {
		t.forget(s.place, p)
	}
}

// History returns where a MAC was in a network of a VNI, the oldest stay first; with gaps
// where it was nowhere. See HistoryIP and HistoryFrom.
func (t *Table) History(vni uint32, mac stain.MAC) []Stay {
	k := placeKey{net: VNI(vni), kind: placeMAC}
	copy(k.addr[:], mac[:])
	return t.history(&k)
}

// HistoryIP is History of exactly this prefix in any network.
func (t *Table) HistoryIP(n Network, prefix netip.Prefix) []Stay {
	k := prefixKey(n, prefix)
	return t.history(&k)
}

// HistoryFrom returns the time from which on all stays are remembered; those that ended by
// then are not, or not all. Zero: none was forgotten.
func (t *Table) HistoryFrom() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.past.lost
}

func (t *Table) history(k *placeKey) []Stay {
	t.mu.Lock()
	defer t.mu.Unlock()
	id, _ := t.findPlace(t.placeHash(k), k)
	if id == 0 {
		return nil
	}
	var stays []Stay
	p, h := t.places.at(id), &t.past
	if p.answer != 0 {
		stays = append(stays, Stay{
			VTEPs: t.addrs(p.answer), Seq: p.seq, Sticky: p.flags&placeSticky != 0, From: time.Unix(0, p.since),
		})
	}
	for n := p.past; n != 0 && n+h.size > h.next; {
		s := &h.ring[(n-1)%h.size]
		stays = append(stays, Stay{
			VTEPs: t.addrs(s.answer), Seq: s.seq, Sticky: s.sticky, From: time.Unix(0, s.since), To: time.Unix(0, s.until),
		})
		n = s.prev
	}
	slices.Reverse(stays)
	return stays
}

// Change says that an address is elsewhere from now on, or there with another sequence.
type Change struct {
	At       time.Time
	Network  Network
	MAC      stain.MAC    // zero if Prefix is valid
	Prefix   netip.Prefix // invalid if the address is a MAC
	From, To []netip.Addr // by address; empty: nowhere
	Seq      uint32
}

// Watch is a reader of changes. One that does not keep up misses some, and holds up nobody.
type Watch struct {
	// C brings changes in the order in which they came about. Close closes it.
	C       <-chan Change
	c       chan Change
	dropped atomic.Uint64
	t       *Table
}

// Watch returns a reader of all changes from now on, of which up to buffer wait for it.
func (t *Table) Watch(buffer int) *Watch {
	c := make(chan Change, buffer)
	w := &Watch{C: c, c: c, t: t}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watches[w] = struct{}{}
	return w
}

// Dropped returns how many changes found the buffer full.
func (w *Watch) Dropped() uint64 { return w.dropped.Load() }

// Close ends the watch; twice is fine.
func (w *Watch) Close() {
	w.t.mu.Lock()
	defer w.t.mu.Unlock()
	if _, open := w.t.watches[w]; open {
		delete(w.t.watches, w)
		close(w.c)
	}
}

func (t *Table) tell(p *place, answer, seq uint32, now time.Time) {
	if len(t.watches) == 0 {
		return
	}
	c := Change{At: now, Network: p.net, From: t.addrs(p.answer), To: t.addrs(answer), Seq: seq}
	if p.kind == placeMAC {
		c.MAC = stain.MAC(p.addr[:6])
	} else {
		k := p.key()
		c.Prefix = k.prefix()
	}
	for w := range t.watches {
		select {
		case w.c <- c:
		default:
			w.dropped.Add(1)
		}
	}
}

func (k *placeKey) prefix() netip.Prefix {
	if k.kind == place4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(k.addr[:4])), int(k.bits))
	}
	return netip.PrefixFrom(netip.AddrFrom16(k.addr), int(k.bits))
}

func prefixKey(n Network, prefix netip.Prefix) placeKey {
	prefix = prefix.Masked()
	k := placeKey{net: n, kind: place6, bits: uint8(prefix.Bits())}
	if prefix.Addr().Is4() {
		a := prefix.Addr().As4()
		k.kind = place4
		copy(k.addr[:], a[:])
		return k
	}
	k.addr = prefix.Addr().As16()
	return k
}
