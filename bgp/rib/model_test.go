package rib

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
	"pgregory.net/rapid"
)

// model is the table as one would write it who has all the time and memory there is.
type model struct {
	peers [2]modelPeer
	now   int
	stays map[modelPlace][]Stay // the last one may be open
}

type modelPeer struct {
	up     bool
	synced map[wire.Family]bool
	routes map[modelKey]modelRoute
	stale  map[modelKey]bool
}

type modelKey struct {
	kind   wire.Kind
	rd     uint64
	tag    uint32
	mac    stain.MAC
	prefix netip.Prefix
	esi    wire.ESI // kind 1
}

type modelRoute struct {
	via     netip.Addr
	hop     netip.Addr
	rts     []wire.RouteTarget
	esi     wire.ESI // kind 2
	tag     uint32
	single  bool
	seq     uint32
	sticky  bool
	refused bool
	hops    []netip.Addr // in claims: by whom it is reached
	nets    []Network    // of its MAC or prefix
	l3      Network      // of its IP address besides; 0: none
}

type modelPlace struct {
	net    Network
	mac    stain.MAC
	prefix netip.Prefix
}

var (
	modelMACs = []stain.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}, {2, 0, 0, 0, 0, 3}}
	modelIPs  = []netip.Addr{{}, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("2001:db8::1")}
	modelNets = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.1/32"),
		netip.MustParsePrefix("2001:db8::/33"), netip.MustParsePrefix("::/0"),
	}
	modelHops = []netip.Addr{
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8:f::1"),
		netip.MustParseAddr("198.51.100.9"), // the first peer may not name it
	}
	modelESIs     = []wire.ESI{{}, {1, 1}, {1, 2}, maxESI}
	modelRTs      = []wire.RouteTarget{rt("64512:1"), rt("192.0.2.9:2"), rt("4200000000:3"), rt("64512:999")}
	modelNetworks = map[wire.RouteTarget]uint32{modelRTs[2]: 300}
	modelOptions  = [2]PeerOptions{
		{NextHops: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:f::/48")}},
		{RTs: modelRTs[:3], Default: wire.EncapMPLSGRE},
	}
	modelFamilies = []wire.Family{wire.EVPN, wire.VPNv4, wire.VPNv6}
)

// announcement is what is drawn for one UPDATE.
type announcement struct {
	key    modelKey
	hop    netip.Addr
	seq    uint32
	sticky bool
	encap  wire.Encap // 0: none is named
	rts    []wire.RouteTarget
	label  uint32
	l3     uint32 // 0: no second label
	esi    wire.ESI
	single bool
	via    netip.Addr // the gateway of a prefix; zero: none
}

func drawKey(t *rapid.T) modelKey {
	k := modelKey{kind: rapid.SampledFrom([]wire.Kind{1, 1, 1, 2, 2, 2, 2, 3, 5, 128}).Draw(t, "kind"), rd: rapid.Uint64Range(1, 2).Draw(t, "rd")}
	if k.kind != wire.KindVPN {
		k.tag = rapid.SampledFrom([]uint32{0, 0, 7}).Draw(t, "tag")
	}
	switch k.kind {
	case wire.KindSegment:
		k.esi = rapid.SampledFrom(modelESIs[1:3]).Draw(t, "segment")
		if rapid.Bool().Draw(t, "per ES") {
			k.tag = wire.MaxTag
		}
	case wire.KindMAC:
		k.mac = rapid.SampledFrom(modelMACs).Draw(t, "mac")
		if ip := rapid.SampledFrom(modelIPs).Draw(t, "ip"); ip.IsValid() {
			k.prefix = netip.PrefixFrom(ip, ip.BitLen())
		}
	case wire.KindMulticast:
		ip := rapid.SampledFrom(modelHops).Draw(t, "originator")
		k.prefix = netip.PrefixFrom(ip, ip.BitLen())
	default:
		k.prefix = rapid.SampledFrom(modelNets).Draw(t, "prefix")
	}
	return k
}

func drawAnnouncement(t *rapid.T) announcement {
	a := announcement{
		key:    drawKey(t),
		hop:    rapid.SampledFrom(modelHops).Draw(t, "hop"),
		seq:    rapid.SampledFrom([]uint32{0, 0, 1, 2, 1<<32 - 1}).Draw(t, "seq"),
		sticky: rapid.IntRange(0, 5).Draw(t, "sticky") == 0,
		encap:  rapid.SampledFrom([]wire.Encap{0, wire.EncapVXLAN, wire.EncapVXLAN, wire.EncapMPLSGRE}).Draw(t, "encap"),
		rts:    rapid.SliceOfNDistinct(rapid.SampledFrom(modelRTs), 0, 3, rapid.ID).Draw(t, "rts"),
		label:  rapid.SampledFrom([]uint32{0, 100, 100, 200}).Draw(t, "label"),
		l3:     rapid.SampledFrom([]uint32{0, 0, 5000}).Draw(t, "l3"),
		esi:    rapid.SampledFrom([]wire.ESI{modelESIs[0], modelESIs[0], modelESIs[1], modelESIs[1], modelESIs[2], modelESIs[3]}).Draw(t, "esi"),
		single: rapid.IntRange(0, 3).Draw(t, "single") == 0,
	}
	if a.key.kind == wire.KindPrefix {
		if via := rapid.SampledFrom(modelIPs).Draw(t, "via"); via.IsValid() && via.Is4() == a.key.prefix.Addr().Is4() {
			a.via = via
		}
	}
	return a
}

func (k modelKey) family() wire.Family {
	switch {
	case k.kind != wire.KindVPN:
		return wire.EVPN
	case k.prefix.Addr().Is6():
		return wire.VPNv6
	}
	return wire.VPNv4
}

func (k modelKey) nlri(esi wire.ESI, labels ...uint32) []byte {
	switch k.kind {
	case wire.KindSegment:
		return segmentRoute(k.rd, k.tag, k.esi, labels[0])
	case wire.KindMAC:
		return macOnSegment(k.rd, k.tag, k.mac, esi, k.prefix.Addr(), labels...)
	case wire.KindMulticast:
		return multicastRoute(k.rd, k.tag, k.prefix.Addr())
	case wire.KindPrefix:
		return prefixRoute(k.rd, k.tag, k.prefix, labels[0])
	}
	return vpnRoute(k.rd, k.prefix, labels[0])
}

func (a announcement) attributes() [][]byte {
	c := [][]byte{mobility(a.seq, a.sticky), community(0x0605, 1<<40), community(0x8071, 17), community(0x4fff, 3)}
	if a.single {
		c = append(c, community(0x0601, 1<<40))
	}
	for _, rt := range a.rts {
		c = append(c, rtBytes(rt))
	}
	if a.encap != 0 {
		c = append(c, encap(a.encap))
	}
	labels := []uint32{a.label}
	if a.l3 != 0 {
		labels = append(labels, a.l3)
	}
	nlri := a.key.nlri(a.esi, labels...)
	if a.via.IsValid() {
		nlri = gatewayRoute(a.key.rd, a.key.tag, a.key.prefix, a.via, a.label)
	}
	return [][]byte{reach(a.key.family(), a.hop, nlri), communities(c...), pmsi(a.label)}
}

func (m *model) announce(peer int, a announcement) {
	p, o := &m.peers[peer], modelOptions[peer]
	delete(p.routes, a.key)
	delete(p.stale, a.key)
	if len(o.RTs) > 0 && !slices.ContainsFunc(a.rts, func(rt wire.RouteTarget) bool { return slices.Contains(o.RTs, rt) }) {
		return
	}
	vxlan := a.encap == wire.EncapVXLAN || a.encap == 0 && o.Default == 0
	r := modelRoute{via: a.via, hop: a.hop, rts: a.rts, esi: a.esi, tag: a.key.tag, single: a.single, seq: a.seq, sticky: a.sticky, refused: peer == 0 && a.hop == modelHops[3]}
	switch {
	case a.key.kind == wire.KindSegment && a.key.tag == wire.MaxTag:
	case slices.Contains(a.rts, modelRTs[2]):
		r.nets = []Network{VNI(300)}
	case a.key.kind != wire.KindVPN && vxlan && a.label != 0:
		r.nets = []Network{VNI(a.label)}
	case a.key.kind != wire.KindVPN && a.key.tag != 0:
		r.nets = []Network{VNI(a.key.tag)}
	default:
		for _, rt := range a.rts {
			r.nets = append(r.nets, Target(rt))
		}
	}
	if a.key.kind == wire.KindMAC && a.key.prefix.IsValid() && vxlan {
		r.l3 = VNI(a.l3)
	}
	p.routes[a.key] = r
}

// claims returns the routes for one address; place has a MAC or a prefix.
func (m *model) claims(place modelPlace) []modelRoute { return m.claimsOf(place, 0) }

// claimsOf is claims of one kind of route, or (0) of all.
func (m *model) claimsOf(place modelPlace, kind wire.Kind) (claims []modelRoute) {
	for i := range m.peers {
		for k, r := range m.peers[i].routes {
			if kind != 0 && k.kind != kind {
				continue
			}
			in := slices.Contains(r.nets, place.net)
			byMAC := k.kind == wire.KindMAC && place.mac != stain.MAC{} && k.mac == place.mac
			byIP := k.kind != wire.KindMulticast && k.kind != wire.KindSegment && place.prefix.IsValid() && k.prefix == place.prefix
			if byMAC && in || byIP && (in || r.l3 != 0 && r.l3 == place.net) {
				if k.kind == wire.KindMAC && r.esi != modelESIs[0] && r.esi != maxESI {
					r.hops = m.behind(r, place.net)
				} else {
					r.hops = []netip.Addr{r.hop}
				}
				if r.via.IsValid() {
					m.lead(&r, place.net)
				}
				claims = append(claims, r)
			}
		}
	}
	return claims
}

// lead says where a prefix is that goes by a gateway: where the MAC routes for that are.
func (m *model) lead(r *modelRoute, n Network) {
	macs := m.claimsOf(modelPlace{net: n, prefix: netip.PrefixFrom(r.via, r.via.BitLen())}, wire.KindMAC)
	macs = slices.DeleteFunc(macs, func(c modelRoute) bool { return c.refused })
	r.refused = r.refused || len(macs) == 0
	r.hops, _, _ = best(macs)
}

// behind says by whom a MAC on a segment is reached in a network.
func (m *model) behind(r modelRoute, n Network) (hops []netip.Addr) {
	on, in, single := map[netip.Addr]bool{}, map[netip.Addr]bool{}, false
	for i := range m.peers {
		for k, ad := range m.peers[i].routes {
			switch {
			case k.kind != wire.KindSegment || k.esi != r.esi || ad.refused:
			case k.tag == wire.MaxTag:
				on[ad.hop], single = true, single || ad.single
			case k.tag == r.tag && (slices.Contains(ad.nets, n) || n < firstTarget && slices.ContainsFunc(r.rts, func(rt wire.RouteTarget) bool {
				return slices.Contains(ad.nets, Target(rt)) // one that names no VNI
			})):
				in[ad.hop] = true
			}
		}
	}
	maps.DeleteFunc(in, func(hop netip.Addr, _ bool) bool { return !on[hop] })
	if on[r.hop] {
		hops = append(hops, r.hop)
	}
	if !single || !on[r.hop] && len(in) == 1 {
		hops = slices.AppendSeq(hops, maps.Keys(in))
	}
	return hops
}

// best is the answer of the claims: next hops by address; none: no sound claim.
func best(claims []modelRoute) (hops []netip.Addr, seq uint32, sticky bool) {
	claims = slices.DeleteFunc(claims, func(r modelRoute) bool { return r.refused })
	if len(claims) == 0 {
		return nil, 0, false
	}
	order := func(a, b modelRoute) int {
		if a.sticky != b.sticky {
			if a.sticky {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.seq, b.seq)
	}
	top := slices.MaxFunc(claims, order)
	for _, r := range claims {
		if order(r, top) == 0 {
			hops = append(hops, r.hops...)
		}
	}
	slices.SortFunc(hops, netip.Addr.Compare)
	if hops = slices.Compact(hops); len(hops) == 0 {
		return nil, 0, false // all have left the segment
	}
	return hops, top.seq, top.sticky
}

func (m *model) complete(families ...wire.Family) bool {
	up := false
	for i := range m.peers {
		if !m.peers[i].up {
			continue
		}
		up = true
		for _, f := range families {
			if !m.peers[i].synced[f] {
				return false
			}
		}
	}
	return up
}

func (m *model) places() []modelPlace {
	var all []modelPlace
	nets := []Network{VNI(100), VNI(200), VNI(7), VNI(300), VNI(5000)}
	for _, rt := range modelRTs {
		nets = append(nets, Target(rt))
	}
	for _, n := range nets {
		for _, mac := range modelMACs {
			all = append(all, modelPlace{net: n, mac: mac})
		}
		for _, ip := range modelIPs[1:] {
			all = append(all, modelPlace{net: n, prefix: netip.PrefixFrom(ip, ip.BitLen())})
		}
		for _, p := range modelNets {
			all = append(all, modelPlace{net: n, prefix: p})
		}
	}
	slices.SortFunc(all, func(a, b modelPlace) int {
		return cmp.Or(cmp.Compare(a.net, b.net), cmp.Compare(a.mac.Uint64(), b.mac.Uint64()), cmp.Compare(a.prefix.String(), b.prefix.String()))
	})
	return slices.Compact(all)
}

// record brings the stays up to date after a step.
func (m *model) record(now time.Time) {
	for _, place := range m.places() {
		hops, seq, sticky := best(m.claims(place))
		stays := m.stays[place]
		if n := len(stays); n > 0 && stays[n-1].To.IsZero() {
			last := &stays[n-1]
			if slices.Equal(last.VTEPs, hops) && last.Seq == seq && last.Sticky == sticky {
				continue
			}
			last.To = now
		}
		if len(hops) > 0 {
			m.stays[place] = append(stays, Stay{VTEPs: hops, Seq: seq, Sticky: sticky, From: now})
		}
	}
}

type machine struct {
	model
	table *Table
	feeds [2]*Feed
	read  [2][]reading
}

// reading is an UPDATE that was read and is yet to be taken in, and what it does to the model then.
type reading struct {
	a      *Ahead
	change func()
}

// tell has peer i say something. It is read at once, and taken in before, between or after other things.
func (m *machine) tell(t *rapid.T, i int, body []byte, change func()) {
	a := new(Ahead)
	m.feeds[i].Read(a, body)
	m.read[i] = append(m.read[i], reading{a, change})
	m.take(t, i, rapid.IntRange(0, 2).Draw(t, "wait"))
}

// take takes in what peer i said, but for the last ones.
func (m *machine) take(t *rapid.T, i, but int) {
	for len(m.read[i]) > but {
		r := m.read[i][0]
		m.read[i] = m.read[i][1:]
		m.now++
		r.change()
		if err := m.feeds[i].Take(r.a, at(m.now)); err != nil {
			t.Fatalf("% x: %v", r.a.Body, err)
		}
		m.record(at(m.now))
	}
}

func (m *machine) takeAll(t *rapid.T) {
	for i := range m.feeds {
		m.take(t, i, 0)
	}
}

func newMachine(history int) *machine {
	m := &machine{table: New(Options{History: history, Networks: Networks{Targets: modelNetworks}})}
	m.stays = make(map[modelPlace][]Stay)
	for i := range m.feeds {
		o := modelOptions[i]
		o.Families = modelFamilies
		m.feeds[i] = m.table.Peer(fmt.Sprint("peer", i), o)
		m.peers[i] = modelPeer{synced: map[wire.Family]bool{}, routes: map[modelKey]modelRoute{}, stale: map[modelKey]bool{}}
	}
	return m
}

func (p *modelPeer) sweep(fam wire.Family) {
	for k := range p.stale {
		if fam == 0 || k.family() == fam {
			delete(p.routes, k)
			delete(p.stale, k)
		}
	}
}

func (p *modelPeer) withdraw(keys ...modelKey) {
	for _, k := range keys {
		delete(p.routes, k)
		delete(p.stale, k)
	}
}

func (p *modelPeer) outdate() {
	if len(p.stale) < len(p.routes) {
		p.sweep(0)
	}
	for k := range p.routes {
		p.stale[k] = true
	}
}

// step does one thing to both.
func (m *machine) step(t *rapid.T) {
	i := rapid.IntRange(0, 1).Draw(t, "peer")
	p, f := &m.peers[i], m.feeds[i]
	m.now++
	now := at(m.now)
	switch do := rapid.IntRange(0, 19).Draw(t, "step"); {
	case do < 10:
		a := drawAnnouncement(t)
		parts := a.attributes()
		var gone []modelKey
		if do < 3 { // withdraw another one in the same UPDATE
			k := drawKey(t)
			parts = append(parts, unreach(k.family(), k.nlri(wire.ESI{}, 0)))
			gone = append(gone, k)
		}
		m.tell(t, i, update(parts...), func() {
			p.withdraw(gone...)
			m.announce(i, a)
		})
	case do < 14:
		k := drawKey(t)
		m.tell(t, i, update(unreach(k.family(), k.nlri(wire.ESI{}, 0))), func() { p.withdraw(k) })
	case do < 16:
		fam := rapid.SampledFrom(modelFamilies).Draw(t, "family")
		m.tell(t, i, endOfRIB(fam), func() {
			p.sweep(fam)
			p.synced[fam] = p.up
		})
	case do == 16:
		kept := rapid.Bool().Draw(t, "kept")
		p.outdate()
		if !kept {
			p.sweep(0)
		}
		p.up, p.synced = true, map[wire.Family]bool{}
		f.Up(now, kept)
	case do == 17:
		graceful := rapid.Bool().Draw(t, "graceful")
		p.up, p.synced = false, map[wire.Family]bool{}
		if graceful {
			p.sweep(0)
			p.outdate()
		} else {
			clear(p.routes)
			clear(p.stale)
		}
		f.Down(now, graceful)
	case do == 18:
		p.sweep(0)
		f.Sweep(now)
	default:
		p.sweep(0)
		for _, fam := range modelFamilies {
			p.synced[fam] = p.up
		}
		f.Settle(now)
	}
	m.record(now)
}

func addrsOf(l Lookup) []netip.Addr {
	var a []netip.Addr
	for _, v := range l.VTEPs {
		a = append(a, v.Addr)
	}
	return slices.Compact(a)
}

// check compares all that can be asked.
func (m *machine) check(t *rapid.T, s *Snapshot) {
	routes := 0
	for i := range m.peers {
		routes += len(m.peers[i].routes)
		if st := m.feeds[i].Stats(); m.feeds[i].Routes() != st.Routes || st.Routes != len(m.peers[i].routes) || st.Stale != len(m.peers[i].stale) {
			t.Fatalf("peer %d: %+v, want %d routes, %d stale", i, st, len(m.peers[i].routes), len(m.peers[i].stale))
		}
	}
	if n := len(slices.Collect(s.Routes(Filter{}))); n != routes || s.Len() != routes {
		t.Fatalf("%d routes, Len %d, want %d", n, s.Len(), routes)
	}
	if got, want := s.Complete(), m.complete(modelFamilies...); got != want {
		t.Fatalf("Complete = %v, want %v", got, want)
	}
	for _, place := range m.places() {
		if place.mac == (stain.MAC{}) {
			continue
		}
		claims := m.claims(place)
		want := Unknown
		hops, seq, _ := best(slices.Clone(claims))
		switch {
		case len(hops) > 0:
			want = Present
		case len(claims) == 0 && m.complete(wire.EVPN):
			want = Absent
		}
		if got := s.MACIn(place.net, place.mac); got.State != want || !slices.Equal(addrsOf(got), hops) || got.Seq != seq {
			t.Fatalf("MACIn(%v, %v) = %+v; want %v at %v, sequence %d", place.net, place.mac, got, want, hops, seq)
		}
	}
	m.checkIPs(t, s)
}

func (m *machine) checkIPs(t *rapid.T, s *Snapshot) {
	nets := map[Network]bool{}
	for _, place := range m.places() {
		nets[place.net] = true
	}
	for n := range nets {
		for _, ip := range modelIPs[1:] {
			want, families := Unknown, []wire.Family{wire.EVPN, wire.VPNv4}
			if ip.Is6() {
				families[1] = wire.VPNv6
			}
			var hops []netip.Addr
			var claims []modelRoute
			for bits := ip.BitLen(); bits >= 0 && len(claims) == 0; bits-- {
				claims = m.claims(modelPlace{net: n, prefix: netip.PrefixFrom(ip, bits).Masked()})
			}
			none := len(claims) == 0
			hops, _, _ = best(claims)
			switch {
			case len(hops) > 0:
				want = Present
			case none && m.complete(families...):
				want = Absent
			}
			if got := s.IP(n, ip); got.State != want || !slices.Equal(addrsOf(got), hops) {
				t.Fatalf("IP(%v, %v) = %+v; want %v at %v", n, ip, got, want, hops)
			}
		}
	}
}

func (m *machine) history(place modelPlace) []Stay {
	if place.prefix.IsValid() {
		return m.table.HistoryIP(place.net, place.prefix)
	}
	k := placeKey{net: place.net, kind: placeMAC}
	copy(k.addr[:], place.mac[:])
	return m.table.history(&k)
}

func sameStay(a, b Stay) bool {
	return slices.Equal(a.VTEPs, b.VTEPs) && a.Seq == b.Seq && a.Sticky == b.Sticky && a.From.Equal(b.From) && a.To.Equal(b.To)
}

// A table does what the model does, and a snapshot of earlier on still says what was then.
func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(1 << 16)
		steps := rapid.IntRange(1, 60).Draw(t, "steps")
		var then *machine
		var old *Snapshot
		for i := range steps {
			m.step(t)
			if i == steps/2 {
				old = m.table.Snapshot()
				then = &machine{model: m.model.clone(), table: m.table}
			}
			if i%7 == 0 {
				m.check(t, m.table.Snapshot())
			}
		}
		m.takeAll(t)
		m.check(t, m.table.Snapshot())
		then.checkIPs(t, old)
		for _, place := range m.places() {
			if got := m.history(place); !slices.EqualFunc(got, m.stays[place], sameStay) {
				t.Fatalf("history of %+v:\n%v\nwant\n%v", place, got, m.stays[place])
			}
		}
	})
}

func (m *model) clone() model {
	c := *m
	for i := range c.peers {
		c.peers[i].synced = maps.Clone(c.peers[i].synced)
		c.peers[i].routes = maps.Clone(c.peers[i].routes)
	}
	return c
}

// With little room for history, what is told is the end of what was, and all that ended
// after HistoryFrom is told. When all peers are gone and the past is, too, nothing is left,
// not even a number that somebody holds.
func TestHistoryBounded(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(rapid.IntRange(-1, 5).Filter(func(n int) bool { return n != 0 }).Draw(t, "room"))
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			m.step(t)
		}
		m.takeAll(t)
		from := m.table.HistoryFrom()
		for _, place := range m.places() {
			got, want := m.history(place), m.stays[place]
			if len(got) > len(want) || !slices.EqualFunc(got, want[len(want)-len(got):], sameStay) {
				t.Fatalf("history of %+v:\n%v\nis no end of\n%v", place, got, want)
			}
			if len(got) < len(want) && m.table.past.size > 0 && want[len(want)-len(got)-1].To.After(from) {
				t.Fatalf("history of %+v:\n%v\nlacks what ended after %v of\n%v", place, got, from, want)
			}
		}
		for i, f := range m.feeds {
			f.Close(at(m.now + 1 + i))
		}
		m.leaks(t)
	})
}

// leaks takes the past away, too, and looks for what is still held.
func (m *machine) leaks(t *rapid.T) {
	tab := m.table
	for i := range tab.past.ring {
		s := tab.past.ring[i]
		tab.release(s.answer)
		p := tab.places.at(s.place)
		if p.past != 0 {
			p.past = 0
			tab.forget(s.place, p)
		}
	}
	left := map[string]int{
		"routes": int(max(tab.routes.next, 1)) - 1 - len(tab.routes.free), "links": int(max(tab.links.next, 1)) - 1 - len(tab.links.free),
		"places": int(max(tab.places.next, 1)) - 1 - len(tab.places.free), "paths": len(tab.paths.ids), "hops": len(tab.hops.ids),
		"targets": len(tab.targets.ids), "sets": len(tab.sets.ids), "cut": int(tab.cut), "dirty": len(tab.dirty), "leads": int(tab.leading) + len(tab.lead),
	}
	for what, n := range left {
		if n != 0 {
			t.Fatalf("%d %s left", n, what)
		}
	}
	if tab.v4 != [33]uint32{} || tab.v6 != [129]uint32{} {
		t.Fatal("prefix lengths left")
	}
}
