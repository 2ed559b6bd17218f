package run

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/stain"
)

// A cloud is simulated packet by packet, so that what is said of it can be held against what is so, ten
// thousand times. It knows of ports, bridges, tunnels, wires and guests, and of faults as what they do to
// a packet at one stage of its way; of plans, points that are expected and verdicts it knows nothing. It
// shares the contract's messages with the code under test, and no judgement.

const simHosts = 4

// simGuest is an instance.
type simGuest struct {
	name   string
	net    int // 0 is blue, over GRE, 1 is green, over VXLAN
	host   int
	ofport uint32
	ip     netip.Addr
	ip6    netip.Addr
	mac    stain.MAC
}

func (g *simGuest) port() string { return "tap-" + g.name }

var (
	simNets  = []string{"blue", "green"}
	simEncap = []string{"gre", "vxlan"}
	simKeys  = []uint32{1001, 1002}
)

// simRack is the rack of a host: there are two, with two hosts each.
func simRack(h int) int { return h / 2 }

const simMTU = 1450

func simHost(h int) string     { return fmt.Sprintf("hv%d", h+1) }
func simVTEP(h int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 0, byte(h + 1)}) }

// simPatch, simTunnel are OpenFlow ports: of a patch port, and of the tunnel to a host.
const simPatch = 1

func simTunnel(h, net int) uint32 { return uint32(100 + 10*net + h) }

// simBursts has each wire between two hosts be dark for a time of the mean length, and then fine for one that makes
// the share right; both are exponential (Gilbert's model).
type simBursts struct {
	length time.Duration
	share  float64
	wires  map[[2]int]*simWire
}

type simWire struct {
	dark  bool
	until time.Time
}

func (b *simBursts) lost(wire [2]int, chance *rand.Rand, now time.Time) bool {
	if b == nil {
		return false
	}
	w := b.wires[wire]
	if w == nil {
		w = &simWire{dark: chance.Float64() >= b.share, until: now} // the other one begins now
		b.wires[wire] = w
	}
	for !now.Before(w.until) {
		w.dark = !w.dark
		mean := float64(b.length)
		if !w.dark {
			mean *= (1 - b.share) / b.share
		}
		w.until = w.until.Add(time.Duration(chance.ExpFloat64() * mean))
	}
	return w.dark
}

// simStage is a part of a packet's way.
type simStage uint8

const (
	stageEntry    simStage = iota // the sender's port
	stageOut                      // br-int of the sender
	stagePatchOut                 // from there to br-tun
	stageTunnel                   // br-tun of the sender
	stageWire                     // the network between the hosts
	stageEnd                      // the receiver's end of the tunnel
	stageIn                       // br-tun of the receiver
	stagePatchIn                  // from there to br-int
	stageDelivery                 // br-int of the receiver
	stageGuest
)

// simPacket is one leg of a probe.
type simPacket struct {
	from, to *simGuest
	answer   bool
	scheme   stain.Scheme
	copies   int // that are sent, 0 is one
}

// simSighting is a packet that comes to a place where a hook could see it.
type simSighting struct {
	host   int
	bridge string
	kind   stain.Kind
	inPort uint32
	tunSrc netip.Addr
	tunID  uint32
	stray  bool // beside its way
	answer bool
	copies int // that come by
}

// place draws it as a verdict's segment does.
func (s simSighting) place() string {
	way := "there"
	if s.answer {
		way = "back"
	}
	return fmt.Sprintf("%s/%s %v %s", simHost(s.host), s.bridge, s.kind, way)
}

// simTrip is what became of a packet.
type simTrip struct {
	seen  []simSighting
	fault *simFault // that killed it; nil where it arrived, or chance did
	lost  bool      // by chance
	at    simStage  // where it died
	// copies are those that arrived.
	copies int
}

func (t *simTrip) arrived() bool { return t.fault == nil && !t.lost }

// simCloud is hosts, guests and faults.
type simCloud struct {
	// mu guards what packets under way change, of whichever run: random, and what faults and bursts remember.
	mu     *sync.Mutex
	random *rand.Rand
	guests []*simGuest
	faults []*simFault
	// loss is the share of packets that any wire loses, 0 in a tidy network.
	loss float64
	// shown says which hosts see what they deliver.
	shown [simHosts]bool
	// gone are points that faults left no hook at.
	gone func(h int, bridge string, kind stain.Kind) bool
	// bursts are when wires lose all, nil is never.
	bursts *simBursts
	// late is how long a packet takes from one host to another, 0 is no time at all, and lateGuest how long a
	// guest takes to answer; both nil is that nothing takes long.
	late      func(from, to int) time.Duration
	lateGuest func(g *simGuest) time.Duration
	// mute are guests that clear the ToS of what they answer, open those that take connections at the probed port: no ToS
	// is reflected in what they say to that, and it is said again if the sender says nothing to it.
	mute, open map[string]bool
	// six says that probes go over IPv6, noTouch that no guest gets one.
	six, noTouch bool
}

// addr is the address at which a guest is probed.
func (c *simCloud) addr(g *simGuest) netip.Addr {
	if c.six {
		return g.ip6
	}
	return g.ip
}

// reflects says that a guest's answers bear the ToS of the question.
func (c *simCloud) reflects(g *simGuest, scheme stain.Scheme) bool {
	return !c.mute[g.name] && !(scheme == stain.TCP && c.open[g.name])
}

// leg sends a packet on its way. chance is nil where nothing is left to it.
func (c *simCloud) leg(p *simPacket, chance *rand.Rand) (t simTrip) {
	t.copies = max(p.copies, 1)
	see := func(h int, bridge string, kind stain.Kind, inPort uint32, stray bool) *simSighting {
		if c.gone != nil && c.gone(h, bridge, kind) {
			return &simSighting{}
		}
		t.seen = append(t.seen, simSighting{host: h, bridge: bridge, kind: kind, inPort: inPort, stray: stray, answer: p.answer, copies: t.copies})
		return &t.seen[len(t.seen)-1]
	}
	die := func(s simStage) bool {
		for _, f := range c.faults {
			if f.dies != nil && f.dies(p, s) {
				t.fault, t.at = f, s
				return true
			}
		}
		return false
	}
	h, g := p.from.host, p.to.host
	if die(stageEntry) {
		return t
	}
	see(h, "br-int", stain.FromInstance, p.from.ofport, false)
	if die(stageOut) {
		return t
	}
	if f, other := c.keeps(p); f != nil {
		if c.shown[h] {
			see(h, "br-int", stain.ToInstance, other.ofport, true)
		}
		t.fault, t.at = f, stageOut
		return t
	}
	to, by := c.sent(p)
	if h != to {
		if die(stagePatchOut) {
			return t
		}
		see(h, "br-tun", stain.ToTunnel, simPatch, h == g)
		if die(stageTunnel) {
			return t
		}
		key := simKeys[p.to.net]
		for _, f := range c.faults {
			if f.key != nil {
				if k, ok := f.key(p, h); ok {
					key = k
				}
			}
		}
		if to < 0 {
			t.fault, t.at = by, stageWire
			return t
		}
		wired := &simPacket{p.from, &simGuest{name: p.to.name, host: to, net: p.to.net}, p.answer, p.scheme, p.copies}
		if to == g {
			wired = p
		}
		for _, f := range c.faults {
			if f.dies != nil && f.dies(wired, stageWire) {
				t.fault, t.at = f, stageWire
				if by != nil {
					t.fault = by
				}
				return t
			}
			if chance != nil && f.loses != nil && f.loses(h, to) && f.drops(chance) {
				t.lost, t.at = true, stageWire
				return t
			}
		}
		if chance != nil && (c.loss > 0 && chance.Float64() < c.loss || c.bursts.lost([2]int{h, to}, chance, time.Now())) {
			t.lost, t.at = true, stageWire
			return t
		}
		for _, f := range c.faults {
			if f.dies != nil && f.dies(wired, stageEnd) {
				t.fault, t.at = f, stageEnd
				if by != nil {
					t.fault = by
				}
				return t
			}
		}
		for _, f := range c.faults {
			if f.twice != nil && f.twice(h, to) {
				t.copies *= 2
			}
		}
		s := see(to, "br-tun", stain.FromTunnel, simTunnel(h, p.to.net), by != nil)
		s.tunSrc, s.tunID = simVTEP(h), key
		if by != nil {
			see(to, "br-int", stain.FromTunnel, simPatch, true)
			t.fault, t.at = by, stageWire // where it should have come in, it never did
			return t
		}
		for _, f := range c.faults {
			if f.key == nil {
				continue
			}
			if k, ok := f.key(p, g); (ok && k != key) || (!ok && key != simKeys[p.to.net]) {
				t.fault, t.at = f, stageIn
				return t
			}
		}
		if die(stageIn) || die(stagePatchIn) {
			return t
		}
		see(g, "br-int", stain.FromTunnel, simPatch, false)
	}
	if die(stageDelivery) {
		return t
	}
	for _, f := range c.faults {
		if f.hands == nil {
			continue
		}
		if other := f.hands(p); other != nil {
			if c.shown[g] {
				see(g, "br-int", stain.ToInstance, other.ofport, true)
			}
			t.fault, t.at = f, stageDelivery
			return t
		}
	}
	if c.shown[g] {
		see(g, "br-int", stain.ToInstance, p.to.ofport, false)
	}
	die(stageGuest)
	return t
}

// keeps says that the sender's switch hands a packet to a port of its own, whose it is not.
func (c *simCloud) keeps(p *simPacket) (by *simFault, other *simGuest) {
	for _, f := range c.faults {
		if f.keeps != nil {
			if other := f.keeps(p); other != nil {
				return f, other
			}
		}
	}
	return nil, nil
}

// sent is the host that a packet is sent to, -1 for none, and by which fault if that is not the receiver's.
func (c *simCloud) sent(p *simPacket) (to int, by *simFault) {
	for _, f := range c.faults {
		if f.sends != nil {
			if to, ok := f.sends(p); ok {
				return to, f
			}
		}
	}
	return p.to.host, nil
}

// probe sends a request, and its answer if the guest gets it and gives one.
func (c *simCloud) probe(from, to *simGuest, scheme stain.Scheme, chance *rand.Rand) (there, back simTrip, answered bool) {
	there = c.leg(&simPacket{from: from, to: to, scheme: scheme}, chance)
	if !there.arrived() || c.noTouch {
		return there, back, false
	}
	return there, c.leg(&simPacket{from: to, to: from, answer: true, scheme: scheme, copies: there.copies}, chance), true
}

// way are the points that a probe passes where nothing is broken.
func (c *simCloud) way(from, to *simGuest, scheme stain.Scheme) []string {
	whole := *c
	whole.faults = nil
	there, back, _ := whole.probe(from, to, scheme, nil)
	var all []string
	for _, s := range append(there.seen, back.seen...) {
		all = append(all, s.place())
	}
	return all
}

// simTruth is what becomes of probes of a pair, chance apart.
type simTruth struct {
	fault *simFault // that kills them; nil for none
	// causes are those of all faults that alone would kill them there, by outcome: within a segment nobody
	// knows which comes first.
	causes map[dyetracev1.Verdict][]dyetracev1.CauseKind
	// after and before are the points between which they die.
	after, before string
	unseen        bool // no point is left that could tell
	back          bool // it is the way back of a pair that is probed both ways
}

// truths are what becomes of probes of a pair: of both ways where no guest is touched, else of one there and back. Each
// that fails is a reason to say so.
func (c *simCloud) truths(from, to *simGuest, scheme stain.Scheme) []simTruth {
	there := c.truth(from, to, scheme)
	if !c.noTouch {
		return []simTruth{there}
	}
	back := c.truth(to, from, scheme)
	back.back = true
	all := []simTruth{there, back.turned()}
	for _, f := range c.faults {
		// Where a port is missing nothing is sent, and what would be lost short of it nobody sees.
		if f.port != nil && (f.port == from || f.port == to) {
			alone := *c
			alone.faults, alone.gone = []*simFault{f}, nil
			there, back := alone.truth(from, to, scheme), alone.truth(to, from, scheme).turned()
			there.back, back.back = false, true
			all = append(all, there, back)
		}
	}
	return all
}

// turned draws the points of the way back of a pair that is probed both ways.
func (tr simTruth) turned() simTruth {
	turn := func(place string) string { return strings.Replace(place, " there", " back", 1) }
	tr.after, tr.before = turn(tr.after), turn(tr.before)
	return tr
}

func (c *simCloud) truth(from, to *simGuest, scheme stain.Scheme) simTruth {
	tr := c.where(from, to, scheme)
	tr.causes = map[dyetracev1.Verdict][]dyetracev1.CauseKind{}
	for _, f := range c.faults {
		alone := *c
		alone.faults = []*simFault{f}
		a := alone.where(from, to, scheme)
		// Of a port that is down, flows need not be asked whether they would have dropped a packet before.
		down := f.off != nil && a.fault != nil && strings.Contains(tr.before, "to-instance")
		if f == tr.fault || a.fault != nil && a.after == tr.after && a.before == tr.before || down {
			tr.causes[f.outcome] = append(tr.causes[f.outcome], f.causes...)
		}
	}
	return tr
}

// off is the fault by which the link of a guest's port is down.
func (c *simCloud) off(g *simGuest) *simFault {
	for _, f := range c.faults {
		if f.off == g {
			return f
		}
	}
	return nil
}

// where is the truth but for its causes.
func (c *simCloud) where(from, to *simGuest, scheme stain.Scheme) (tr simTruth) {
	if c.noTouch { // else nothing is sent, and points are named all the same
		all := *c
		all.shown = [simHosts]bool{true, true, true, true}
		c = &all
	}
	there, back, answered := c.probe(from, to, scheme, nil)
	if answered {
		tr.fault = back.fault
	} else {
		tr.fault = there.fault
	}
	if tr.fault == nil {
		return tr
	}
	passed := 0
	for _, s := range append(there.seen, back.seen...) {
		if !s.stray {
			passed++
		}
	}
	way := c.way(from, to, scheme)
	switch {
	case passed == len(way) && c.noTouch && there.at == stageGuest:
		if tr.fault = c.off(to); tr.fault == nil {
			return simTruth{} // it was delivered, and whether a guest would answer nobody asked
		}
		passed-- // it was seen to leave by a port that is down
	case passed == len(way):
		tr.unseen = true
		return tr
	}
	if passed > 0 {
		tr.after = way[passed-1]
	}
	tr.before = way[passed]
	return tr
}

// loses are the faults that have some of a pair's probes be lost by chance, or of the answers.
func (c *simCloud) loses(from, to *simGuest) (by []*simFault) {
	for _, f := range c.faults {
		if f.loses != nil && from.host != to.host && (f.loses(from.host, to.host) || f.loses(to.host, from.host)) {
			by = append(by, f)
		}
	}
	return by
}

// newSimCloud has some guests on each host.
func newSimCloud(random *rand.Rand, guests int) *simCloud {
	c := &simCloud{mu: &sync.Mutex{}, random: random, mute: map[string]bool{}, open: map[string]bool{}}
	for i := range guests {
		net := i / simHosts % 2
		c.guests = append(c.guests, &simGuest{
			name: fmt.Sprintf("g%d", i), net: net, host: random.IntN(simHosts), ofport: uint32(10 + i),
			ip: netip.AddrFrom4([4]byte{10, 0, byte(net + 1), byte(10 + i)}), ip6: netip.MustParseAddr(fmt.Sprintf("fd00:%d::%x", net+1, 16+i)), mac: stain.MAC{0xfa, 0x16, 0x3e, 0, byte(net), byte(10 + i)},
		})
		c.mute[c.guests[i].name] = random.IntN(8) == 0
	}
	for h := range c.shown {
		c.shown[h] = random.IntN(3) > 0
	}
	if random.IntN(2) == 0 {
		c.loss = 0.001
	}
	return c
}

// snapshot is what the inventory knows: a file, and what agents report of ports and bridges.
func (c *simCloud) snapshot(t testing.TB) *inventory.Snapshot {
	t.Helper()
	var b strings.Builder
	b.WriteString("networks:\n")
	for i, n := range simNets {
		fmt.Fprintf(&b, "  - {name: %s, cidr: [10.0.%d.0/24, \"fd00:%d::/64\"], segmentation_id: %d}\n", n, i+1, i+1, simKeys[i])
	}
	b.WriteString("instances:\n")
	for _, g := range c.guests {
		fmt.Fprintf(&b, "  - {name: %s, network: %s, ip: [%s, %q], mac: %q, host: %s, port: %s}\n", g.name, simNets[g.net], g.ip, g.ip6, g.mac, simHost(g.host), g.port())
	}
	file, err := inventory.Parse("inventory.yaml", []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	var hosts []inventory.Host
	for h := range simHosts {
		hosts = append(hosts, c.reported(h))
	}
	return inventory.NewSnapshot(file, hosts...)
}

// simLargest is how many bytes a tunnel of a network's makes of the largest packets.
func simLargest(net int) int {
	return simMTU + 20 + map[string]int{"gre": 22, "vxlan": 30}[simEncap[net]]
}

// reported is what a host's agent says of itself.
func (c *simCloud) reported(h int) inventory.Host {
	const live = dyetracev1.HookState_HOOK_STATE_LIVE
	brInt := &dyetracev1.Bridge{Name: "br-int", State: live, UplinkBridge: "br-tun", Kinds: []dyetracev1.PointKind{
		dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE, dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL}}
	brTun := &dyetracev1.Bridge{Name: "br-tun", State: live, Kinds: []dyetracev1.PointKind{
		dyetracev1.PointKind_POINT_KIND_TO_TUNNEL, dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL}}
	if c.shown[h] {
		brInt.Kinds = append(brInt.Kinds, dyetracev1.PointKind_POINT_KIND_TO_INSTANCE)
	}
	host := inventory.Host{Name: simHost(h), Connected: true, Bridges: []*dyetracev1.Bridge{brInt, brTun},
		Underlay: &dyetracev1.UnderlayEcho{Port: 7443, Addresses: []string{simVTEP(h).String()}}}
	for o := range simHosts {
		for net := range simNets {
			if o != h {
				brTun.Tunnels = append(brTun.Tunnels, &dyetracev1.Tunnel{Port: fmt.Sprintf("%s-%s", simEncap[net], simHost(o)), Ofport: simTunnel(o, net),
					Type: simEncap[net], LocalIp: simVTEP(h).String(), RemoteIp: simVTEP(o).String()})
			}
		}
	}
	for _, g := range c.guests {
		if g.host == h {
			host.Endpoints = append(host.Endpoints, &dyetracev1.Endpoint{Bridge: "br-int", Port: g.port(), Ofport: g.ofport, Mac: g.mac.String(), LinkState: "up"})
			host.MTUs = append(host.MTUs, simMTU)
		}
	}
	for _, f := range c.faults {
		if f.report != nil {
			f.report(h, &host)
		}
	}
	return host
}
