package run

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/stain"
)

// simPlace is a bridge.
type simPlace struct {
	host   int
	bridge string
}

// simOwn is a fault of ours, from a time after the run began to another.
type simOwn struct {
	kind       string
	host       int
	bridge     string // where it is of one; empty is all of the host's
	from, to   time.Duration
	share      float64
	delay      time.Duration
	noticed    bool // by the agent
	breaksHost bool // packets through the host are lost meanwhile, in truth
	times      int  // that hooks are taken away, evenly from one time to the other; 0 is not at all
}

func (o *simOwn) during(at time.Duration) bool { return at >= o.from && at < o.to }

// at says whether it strikes a bridge.
func (o *simOwn) at(p simPlace) bool {
	return o.host == p.host && (o.bridge == "" || o.bridge == p.bridge)
}

// away says whether the hook is away, and gone how often it was taken away or put back until then.
func (o *simOwn) away(at time.Duration) (away bool, gone uint64) {
	each := (o.to - o.from) / time.Duration(max(1, o.times))
	for n := range o.times {
		from := o.from + time.Duration(n)*each
		to := from + each/2
		if o.times == 1 {
			to = o.to
		}
		away = away || at >= from && at < to
		if at >= from {
			gone++
		}
		if at >= to {
			gone++
		}
	}
	return away, gone
}

// simAgents are the agents of a simulated cloud: they answer the controller as the contract has it.
type simAgents struct {
	c      *simCloud
	chance *rand.Rand
	// lateChance is for datagrams that are late.
	lateChance *rand.Rand
	own        []*simOwn
	spec       fleet.Spec
	hosts      []int // of the spec's
	wake       chan struct{}
	began      time.Time

	mu      *sync.Mutex // the cloud's: packets of one run are under way while the agents of the next one send
	events  []fleet.Event
	closed  bool
	id      uint64
	armed   map[string]bool
	counted map[simPlace]map[stain.Kind]uint64
	read    map[simPlace]map[stain.Kind]uint64
	lost    map[simPlace]uint64
	epoch   map[simPlace]uint64
	passed  map[uint64]*dyetracev1.UnderlayReport // by session, what came to the other host
	probes  int
	conns   map[[2]string]uint32 // by instances: the last probe by tcp between them
	ended   map[uint32]bool      // withdrawn
	// withheld are probes that no guest of a host will see, touched those that one did which was to see none.
	withheld map[int]map[uint32]bool
	touched  []uint32
}

func newSimAgents(c *simCloud, chance *rand.Rand, own []*simOwn) *simAgents {
	return &simAgents{
		c: c, mu: c.mu, chance: chance, lateChance: rand.New(rand.NewPCG(1, 2)), own: own, wake: make(chan struct{}, 1), armed: map[string]bool{},
		counted: map[simPlace]map[stain.Kind]uint64{}, read: map[simPlace]map[stain.Kind]uint64{},
		lost: map[simPlace]uint64{}, epoch: map[simPlace]uint64{}, passed: map[uint64]*dyetracev1.UnderlayReport{},
		conns: map[[2]string]uint32{}, ended: map[uint32]bool{}, withheld: map[int]map[uint32]bool{},
	}
}

func (a *simAgents) begin(s fleet.Spec) agents {
	a.spec, a.began = s, time.Now()
	for _, name := range s.Hosts {
		a.hosts = append(a.hosts, int(name[2]-'1'))
	}
	for i, h := range a.hosts {
		a.put(i, &dyetracev1.Ready{Windows: a.windows(h)})
		for _, o := range a.own {
			if o.host == h && o.kind == "agent killed" {
				time.AfterFunc(o.from, func() { a.put(i, fleet.Gone{Reason: "its connection broke"}) })
			}
			if o.host == h && (o.kind == "agent stopped" || o.kind == "agent cut off") {
				time.AfterFunc(o.from+3*time.Second, func() { a.put(i, fleet.Gone{Reason: "no heartbeat for 3s"}) })
			}
		}
	}
	return a
}

func (a *simAgents) since() time.Duration { return time.Since(a.began) }

// put has the controller hear something.
func (a *simAgents) put(host int, m any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tell(host, m)
}

func (a *simAgents) tell(host int, m any) {
	if a.closed {
		return
	}
	if s, is := m.(*dyetracev1.Samples); is {
		for _, o := range a.own {
			if o.host == a.hosts[host] && o.kind == "controller drops samples" && o.during(a.since()) && a.chance.Float64() < o.share {
				m = fleet.Lost{Samples: len(s.Index)}
			}
		}
	}
	a.events = append(a.events, fleet.Event{Host: host, Message: m})
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// later has the controller hear something of a host when that host's agent gets to say it.
func (a *simAgents) later(host int, m any) {
	at := a.since() + time.Millisecond
	for _, o := range a.own {
		if o.host != a.hosts[host] {
			continue
		}
		switch {
		case (o.kind == "agent killed" || o.kind == "agent stopped") && at >= o.from:
			return
		case (o.kind == "agent stalls" || o.kind == "agent starved") && o.during(at):
			at = o.to
		case o.kind == "agent slow":
			at += o.delay
		}
	}
	time.AfterFunc(at-a.since(), func() { a.put(host, m) })
}

// asked has an agent do what it is asked for: now, when it goes on, or never.
func (a *simAgents) asked(host int, do func()) {
	at, wait := a.since(), time.Duration(0)
	for _, o := range a.own {
		if o.host != a.hosts[host] {
			continue
		}
		switch {
		case (o.kind == "agent killed" || o.kind == "agent stopped" || o.kind == "agent cut off") && at >= o.from:
			return
		case (o.kind == "agent stalls" || o.kind == "agent starved") && o.during(at):
			wait = max(wait, o.to-at)
		}
	}
	if wait == 0 {
		do()
		return
	}
	time.AfterFunc(wait, do)
}

// number is one for a question.
func (a *simAgents) number() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.id++
	return a.id
}

// hooked says that a bridge's hook is there at a time; epochs count how often it was not.
func (a *simAgents) hooked(p simPlace, at time.Duration) bool {
	return !slices.ContainsFunc(a.own, func(o *simOwn) bool {
		away, _ := o.away(at)
		return away && o.at(p)
	})
}

func (a *simAgents) epochOf(p simPlace, at time.Duration) uint64 {
	e := uint64(1)
	for _, o := range a.own {
		if o.at(p) {
			_, gone := o.away(at)
			e += gone
		}
		if o.kind == "dye port down" && o.noticed && o.at(p) {
			if at >= o.from {
				e++
			}
			if at >= o.to {
				e++
			}
		}
	}
	return e
}

// dyeDown says that a bridge's dye port is down: what is written to it is refused, and copies for it are lost.
func (a *simAgents) dyeDown(p simPlace, at time.Duration) (down, noticed bool) {
	for _, o := range a.own {
		if o.kind == "dye port down" && o.at(p) && o.during(at) {
			return true, o.noticed
		}
	}
	return false, false
}

// windows are audits of a host's hooks.
func (a *simAgents) windows(h int) []*dyetracev1.HookWindow {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.since()
	var all []*dyetracev1.HookWindow
	for _, bridge := range []string{"br-int", "br-tun"} {
		p := simPlace{h, bridge}
		w := &dyetracev1.HookWindow{Bridge: bridge, Live: a.hooked(p, at), Epoch: a.epochOf(p, at), Lost: a.lost[p]}
		if !w.Live {
			w.Reason = "wiped"
		}
		if down, noticed := a.dyeDown(p, at); down && noticed {
			w.Live, w.Reason = false, "its dye port is down"
		}
		for _, k := range []stain.Kind{stain.FromInstance, stain.FromTunnel, stain.ToTunnel} {
			// The counters stand some copies behind or before what was read, and by a number that means nothing.
			w.Counts = append(w.Counts, &dyetracev1.PointCount{Kind: dyetracev1.PointKind(k), Counted: 1000 + a.counted[p][k], ReadMin: 40 + a.read[p][k], ReadMax: 40 + a.read[p][k]})
		}
		all = append(all, w)
	}
	return all
}

func (a *simAgents) guest(ip []byte) *simGuest {
	var b [16]byte
	copy(b[:], ip)
	addr := netip.AddrFrom16(b).Unmap()
	i := slices.IndexFunc(a.c.guests, func(g *simGuest) bool { return a.c.addr(g) == addr })
	if i < 0 {
		panic("no guest has " + addr.String())
	}
	return a.c.guests[i]
}

func (a *simAgents) Inject(host int, m *dyetracev1.Inject) {
	a.asked(host, func() { a.inject(host, m) })
}

func (a *simAgents) inject(host int, m *dyetracev1.Inject) {
	left := &dyetracev1.Injected{}
	all := a.samplesOfAll()
	a.mu.Lock()
	at := a.since()
	for i, number := range m.Index {
		from, to := a.guest(m.SrcIp[16*i:16*i+16]), a.guest(m.DstIp[16*i:16*i+16])
		if down, noticed := a.dyeDown(simPlace{from.host, "br-int"}, at); down {
			why := "dye port: network is down"
			if noticed {
				why = "the hook on bridge br-int is not live: its dye port is down"
			}
			left.Failures = append(left.Failures, &dyetracev1.InjectFailure{Index: number, Reason: why})
			continue
		}
		a.probes++
		left.Index, left.AtNs = append(left.Index, number), append(left.AtNs, uint64(at))
		if !a.hooked(simPlace{from.host, "br-int"}, at) {
			continue // the flow that lets it in is the hook's
		}
		scheme := stain.Scheme(m.Scheme)
		there, back, answered := a.c.probe(from, to, scheme, a.chance)
		if a.brokenFor(from, to, at) {
			there = simTrip{seen: there.seen[:min(1, len(there.seen))]}
			answered = false
		}
		if a.c.noTouch && there.arrived() && !a.withheld[to.host][number] {
			a.touched = append(a.touched, number)
		}
		if a.c.late != nil || a.c.lateGuest != nil {
			a.sampleLate(number, from, to, scheme, there, back, answered)
			continue
		}
		a.sample(all, number, from, to, scheme, there.seen, true)
		if answered {
			// An answer without the ToS is known by its ports where the guest's port was armed (tcp), by the
			// request where it passed the hook (icmp).
			known := a.c.reflects(to, scheme) || scheme == stain.ICMP || a.armed[to.name]
			a.sample(all, number, to, from, scheme, back.seen, known)
			if scheme == stain.TCP && a.c.open[to.name] && !back.arrived() {
				a.again(number, from, to)
			}
		}
	}
	a.mu.Unlock()
	a.later(host, left)
	a.show(all)
}

// again has a guest repeat a SYN-ACK to which nobody said anything.
func (a *simAgents) again(number uint32, from, to *simGuest) {
	time.AfterFunc(time.Second, func() {
		a.mu.Lock()
		all := a.samplesOfAll()
		if !a.ended[number] {
			back := a.c.leg(&simPacket{from: to, to: from, answer: true, scheme: stain.TCP}, a.chance)
			a.sample(all, number, to, from, stain.TCP, back.seen, a.armed[to.name])
		}
		a.mu.Unlock()
		a.show(all)
	})
}

func (a *simAgents) samplesOfAll() []*dyetracev1.Samples {
	all := make([]*dyetracev1.Samples, len(a.hosts))
	for i := range all {
		all[i] = &dyetracev1.Samples{Bridges: []string{"br-int", "br-tun"}}
	}
	return all
}

// show has the controller hear of samples.
func (a *simAgents) show(all []*dyetracev1.Samples) {
	for i, s := range all {
		if len(s.Index) > 0 {
			a.later(i, s)
		}
	}
}

// sampleLate is what becomes of a probe where packets take their time: each part of its way when it gets there.
// Caller holds mu.
func (a *simAgents) sampleLate(number uint32, from, to *simGuest, scheme stain.Scheme, there, back simTrip, answered bool) {
	key := [2]string{min(from.name, to.name), max(from.name, to.name)}
	if scheme == stain.TCP {
		a.conns[key] = number
	}
	part := func(seen []simSighting, host int) (p []simSighting) {
		for _, s := range seen {
			if s.host == host {
				p = append(p, s)
			}
		}
		return p
	}
	at := func(d time.Duration, src, dst *simGuest, answer bool, seen []simSighting) {
		time.AfterFunc(d, func() {
			a.mu.Lock()
			all := a.samplesOfAll()
			// Connection tracking takes no answer to what was withdrawn, or followed by another SYN. Hooks see what
			// it drops before it does.
			if answer && scheme == stain.TCP && (a.ended[number] || a.conns[key] != number) {
				seen = seen[:min(len(seen), 1)]
				a.ended[number] = true
			}
			known := !answer || a.c.reflects(to, scheme) || scheme == stain.ICMP || a.armed[to.name]
			a.sample(all, number, src, dst, scheme, seen, known)
			a.mu.Unlock()
			a.show(all)
		})
	}
	wire := func(f, t int) time.Duration {
		if f == t || a.c.late == nil {
			return 0
		}
		return a.c.late(f, t)
	}
	at(0, from, to, false, part(there.seen, from.host))
	d := wire(from.host, to.host)
	if from.host != to.host {
		at(d, from, to, false, part(there.seen, to.host))
	}
	if !answered {
		return
	}
	if a.c.lateGuest != nil {
		d += a.c.lateGuest(to)
	}
	at(d, to, from, true, part(back.seen, to.host))
	if from.host != to.host {
		at(d+wire(to.host, from.host), to, from, true, part(back.seen, from.host))
	}
}

func (a *simAgents) Withdraw(host int, m *dyetracev1.Withdraw) {
	a.asked(host, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, number := range m.Index {
			a.ended[number] = true
		}
	})
}

// brokenFor says that a fault of ours has the network itself lose packets.
func (a *simAgents) brokenFor(from, to *simGuest, at time.Duration) bool {
	return slices.ContainsFunc(a.own, func(o *simOwn) bool {
		return o.breaksHost && o.during(at) && (from.host == o.host || to.host == o.host)
	})
}

// sample has hooks see a packet, and agents what the hooks copy. Caller holds mu.
func (a *simAgents) sample(all []*dyetracev1.Samples, number uint32, from, to *simGuest, scheme stain.Scheme, seen []simSighting, stained bool) {
	at := a.since()
	for n, s := range seen {
		i := slices.Index(a.hosts, s.host)
		tap := s.kind == stain.ToInstance
		switch {
		case i < 0: // no agent of that host takes part
			continue
		case !stained && !(tap && scheme == stain.TCP): // the program at the port knows tcp by its ports
			continue
		case !tap && !a.hooked(simPlace{s.host, s.bridge}, at):
			continue
		}
		p := simPlace{s.host, s.bridge}
		copies := max(1, s.copies)
		if a.chance.IntN(2000) == 0 {
			copies++
		}
		for range copies {
			if !a.told(p, s.kind) {
				continue
			}
			m := all[i]
			m.Index = append(m.Index, number)
			m.Bridge = append(m.Bridge, uint32(slices.Index(m.Bridges, s.bridge)))
			m.Kind = append(m.Kind, dyetracev1.PointKind(s.kind))
			m.AtNs = append(m.AtNs, uint64(at)+uint64(s.host)*1e12+uint64(20_000*n))
			m.AddrTag = append(m.AddrTag, stain.AddrTag(a.spec.Key, a.c.addr(from), a.c.addr(to)))
			m.Ttl = append(m.Ttl, 64)
			m.InPort = append(m.InPort, s.inPort)
			src := uint32(0)
			if s.tunSrc.IsValid() {
				b := s.tunSrc.As4()
				src = uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
			}
			m.TunSrc, m.TunId = append(m.TunSrc, src), append(m.TunId, s.tunID)
			m.Reply, m.NoReply = append(m.Reply, s.answer), append(m.NoReply, false)
			m.Scheme = append(m.Scheme, dyetracev1.Scheme(scheme))
			m.TcpFlags = append(m.TcpFlags, flagsOf(scheme, s.answer))
		}
	}
}

// told says whether a copy comes to the agent. Caller holds mu.
func (a *simAgents) told(p simPlace, kind stain.Kind) bool {
	if kind != stain.ToInstance {
		if a.counted[p] == nil {
			a.counted[p], a.read[p] = map[stain.Kind]uint64{}, map[stain.Kind]uint64{}
		}
		a.counted[p][kind]++
	}
	for _, o := range a.own {
		switch {
		case !o.at(p) || !o.during(a.since()):
		case o.kind == "dye port down" && kind != stain.ToInstance:
			return false
		case a.chance.Float64() >= o.share:
		case o.kind == "samples lost" || o.kind == "agent starved":
			if kind != stain.ToInstance {
				a.read[p][kind]++
			}
			a.lost[p]++
			return false
		case o.kind == "samples lost unseen" && kind != stain.ToInstance: // the program at the port counts for itself
			return false
		}
	}
	if kind != stain.ToInstance {
		a.read[p][kind]++
	}
	return true
}

func (a *simAgents) Arm(host int, m *dyetracev1.Arm) uint64 {
	id := a.number()
	a.asked(host, func() {
		a.mu.Lock()
		h := a.hosts[host]
		for _, p := range m.Answers {
			a.armed[p.Port[len("tap-"):]] = true
		}
		if a.withheld[h] == nil {
			a.withheld[h] = map[uint32]bool{}
		}
		for _, number := range m.Withhold {
			a.withheld[h][number] = true
		}
		a.mu.Unlock()
		a.later(host, &dyetracev1.Armed{Id: id})
	})
	return id
}

func (a *simAgents) Audit(host int, _ bool) {
	a.asked(host, func() { a.later(host, &dyetracev1.Audited{Windows: a.windows(a.hosts[host])}) })
}

// Finish is answered after all that the agent has seen: what it may still be told is on its way by then.
func (a *simAgents) Finish(host int) {
	a.asked(host, func() {
		time.AfterFunc(2*time.Millisecond, func() {
			a.later(host, &dyetracev1.Finished{Windows: a.windows(a.hosts[host])})
		})
	})
}

func (a *simAgents) ProbeUnderlay(host int, m *dyetracev1.ProbeUnderlay) uint64 {
	id := a.number()
	a.asked(host, func() {
		a.mu.Lock()
		var r *dyetracev1.UnderlayReport
		switch {
		case a.refuses("no exchanges", host):
			r = &dyetracev1.UnderlayReport{Error: "too much to do"}
		case m.GetRecall():
			r = &dyetracev1.UnderlayReport{Listening: true, FromOthersNs: uint64(time.Second)}
			if p := a.passed[m.GetSession()]; p != nil {
				r.Seen = p.Seen
			}
		default:
			r = a.exchange(a.hosts[host], m)
		}
		r.Id = id
		a.mu.Unlock()
		a.later(host, r)
	})
	return id
}

// refuses says that a host can answer no questions of a sort. Caller holds mu.
func (a *simAgents) refuses(kind string, host int) bool {
	return slices.ContainsFunc(a.own, func(o *simOwn) bool {
		return o.kind == kind && o.host == a.hosts[host] && a.chance.Float64() < o.share
	})
}

// exchange sends UDP between two hosts, and back. Caller holds mu.
func (a *simAgents) exchange(h int, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
	dst := netip.AddrFrom16([16]byte(m.GetDstIp())).Unmap().As4()
	g := int(dst[3]) - 1
	r := &dyetracev1.UnderlayReport{SrcIp: simVTEP(h).String(), DstIp: simVTEP(g).String()}
	ports, sizes := int(m.GetSourcePorts()), len(m.GetSizes())
	seen := make([]byte, (ports*sizes*int(m.GetRepeats())+7)/8)
	some := false
	for p := range ports {
		r.SourcePorts = append(r.SourcePorts, uint32(40000+p))
		for s, bytes := range m.GetSizes() {
			var sent, answered uint32
			for n := range m.GetRepeats() {
				if s > 0 && answered > 0 {
					break
				}
				sent++
				if !a.datagram(h, g, p, bytes) {
					continue
				}
				serial := (int(n)*ports+p)*sizes + s
				seen[serial/8] |= 1 << (serial % 8)
				some = true
				if a.datagram(g, h, p, bytes) && a.inTime(h, g, m.GetWaitMs()) {
					answered++
				}
			}
			r.Sent, r.Answered, r.RttNs = append(r.Sent, sent), append(r.Answered, answered), append(r.RttNs, 40_000)
			if answered == 0 {
				r.RttNs[len(r.RttNs)-1] = 0
			}
		}
	}
	if some {
		a.passed[m.GetSession()] = &dyetracev1.UnderlayReport{Seen: seen}
	}
	return r
}

// inTime says that an answer comes while the agent waits for it.
func (a *simAgents) inTime(h, g int, waitMs uint32) bool {
	return a.c.late == nil || a.c.late(h, g)+a.c.late(g, h) < time.Duration(waitMs)*time.Millisecond
}

// datagram says whether one arrives. Caller holds mu.
func (a *simAgents) datagram(from, to, port int, bytes uint32) bool {
	chance := a.chance
	if a.c.late != nil && a.c.late(from, to) > 0 {
		chance = a.lateChance
	}
	for _, f := range a.c.faults {
		switch {
		case f.udp != nil && f.udp(from, to), f.large != nil && int(bytes) > f.most && f.large(from, to):
			return false
		case f.dark != nil && f.dark(from, to) == spine(from, to, port+2):
			return false
		case f.loses != nil && f.loses(from, to) && f.drops(chance):
			return false
		}
	}
	return chance.Float64() >= a.c.loss
}

// Explain has a host say what its flows do with a packet: no chance, no guest, and no other host.
func (a *simAgents) Explain(host int, m *dyetracev1.Explain) uint64 {
	id := a.number()
	a.asked(host, func() {
		a.mu.Lock()
		x := a.trace(a.hosts[host], m)
		if a.refuses("no explanations", host) {
			x = &dyetracev1.Explanation{Error: "ovs-appctl: timeout"}
		}
		x.Id = id
		a.mu.Unlock()
		a.later(host, x)
	})
	return id
}

func (a *simAgents) trace(h int, m *dyetracev1.Explain) *dyetracev1.Explanation {
	p := &simPacket{from: a.guest(m.GetSrcIp()), to: a.guest(m.GetDstIp()), answer: m.GetReply(), scheme: stain.Scheme(max(m.GetScheme(), 1))}
	dropped := func(f *simFault) *dyetracev1.Explanation {
		return &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_DROPPED, Flow: f.flow}
	}
	dies := func(stages ...simStage) *simFault {
		for _, s := range stages {
			for _, f := range a.c.faults {
				if f.dies != nil && f.dies(p, s) {
					return f
				}
			}
		}
		return nil
	}
	leaves := p.from.host == h && (m.GetBridge() == "br-int" || p.to.host != h)
	to, _ := a.c.sent(p)
	if f, _ := a.c.keeps(p); leaves && f != nil {
		if f := dies(stageOut); f != nil {
			return dropped(f)
		}
		return &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_DELIVERED, Port: "tap-other"}
	}
	if leaves && to != h {
		if f := dies(stageOut, stagePatchOut, stageTunnel); f != nil {
			return dropped(f)
		}
		key, remote := simKeys[p.to.net], "10.1.0.254"
		for _, f := range a.c.faults {
			if f.key != nil {
				if k, ok := f.key(p, h); ok {
					key = k
				}
			}
		}
		name := simHost(p.to.host)
		if to >= 0 {
			remote, name = simVTEP(to).String(), simHost(to)
		}
		return &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_TUNNELLED, Port: simEncap[p.to.net] + "-" + name, TunnelRemote: remote, TunnelId: key}
	}
	if m.GetBridge() == "br-tun" {
		for _, f := range a.c.faults {
			if f.key != nil {
				if k, ok := f.key(p, h); (ok && k != m.GetTunId()) || (!ok && m.GetTunId() != simKeys[p.to.net]) {
					return dropped(f)
				}
			}
		}
		if f := dies(stageIn, stagePatchIn); f != nil {
			return dropped(f)
		}
	} else if f := dies(stageOut); f != nil && p.from.host == h {
		return dropped(f)
	}
	if p.to.host != h {
		return &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_DROPPED, Flow: &dyetracev1.FlowRef{Bridge: "br-int", Table: 60, Actions: "NORMAL"}}
	}
	if f := dies(stageDelivery); f != nil {
		return dropped(f)
	}
	port := p.to.port()
	for _, f := range a.c.faults {
		if f.hands != nil && f.hands(p) != nil {
			port = "tap-other"
		}
	}
	return &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_DELIVERED, Port: port}
}

func (a *simAgents) Wake() <-chan struct{} { return a.wake }

func (a *simAgents) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
}

func (a *simAgents) Events(buf []fleet.Event) []fleet.Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	events := a.events
	a.events = buf[:0]
	return events
}
