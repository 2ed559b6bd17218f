package run

import (
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/plugin/verdict"
	"github.com/dyetrace/dyetrace/stain"
)

// maxOdd bounds the duplicates, and the sightings off the way, that are kept of one probe: enough
// to recognise a loop or a flood, not enough to be harmed by one.
const maxOdd = 8

// ledger is what is known of the probes of a run: which left, and where they were seen. It is
// columns, not a tree, since a run may have 100,000 pairs of ten points.
//
// The probe number attempt·tracks + track is the attempt-th of a track, up to [hardAttempts] of each.
// Tests of loss take more: those are numbered as they come, see extra. What arrived of them is
// counted and forgotten, so that a long test takes no more memory than a short one.
//
// Times are those since the run began, by the controller's clock, and given to it.
type ledger struct {
	tracks []track
	paths  []*plan.Path
	hosts  []string // that take part; events name them by their place here

	bridges map[string]int32 // bridges by name, on whatever host
	points  []point          // of all paths, in a row
	first   []uint32         // first[i] to first[i+1] are the points of path i
	there   []uint64         // address tag of a probe on path i,
	back    []uint64         // and of its answer

	probes   []probe
	slots    []slot                        // of the probes that were asked for, a path's points each
	spare    map[int][]uint32              // by number of points: slots of probes that are forgotten
	extra    []int32                       // tracks of the probes beyond hardAttempts of each
	room     int                           // for so many of them
	tests    map[int]*test                 // by track, of those that are tested for loss
	failures map[uint32]string             // by probe: why it did not leave
	doubles  map[uint32][]verdict.Sample   // by probe: second and later samples of a point
	strays   map[uint32][]verdict.Sighting // by probe: samples off the way
	// timed, of a patrol, is told how long the legs of a probe that arrived took, negative where that is not known; nil
	// has tests count them.
	timed  func(track int, took []time.Duration)
	timing []time.Duration
}

// track is one way to probe a pair: along a path, by a scheme.
type track struct {
	path   int32
	scheme stain.Scheme
}

// point is plan.Expected as it is looked for.
type point struct {
	host, bridge int32
	kind         stain.Kind
	direction    plan.Direction
	absent       bool
	ofport       uint32 // see plan.Expected
}

type probeState uint8

const (
	unsent probeState = iota
	asked             // the agent was told to
	left              // and says that it did
	failed            // or that it could not
)

type probe struct {
	sent       time.Duration // when the agent said that it left
	heard      time.Duration // when it was last heard of: that, or another point that has seen it
	slot       uint32        // of its first point
	missing    uint8         // points that exist and have not seen it
	state      probeState
	portAbsent bool
	armed      bool // a port-only hook shows the destination's answers
	looked     bool // what follows it is decided
	forgotten  bool // it arrived, is counted, and has no slots any more
	cut        bool // the run's time was up before it had settled: it proves no loss
	withdrawn  bool // the agent was told to
	witness    bool // where it died is known to others: see ways
}

// test is a track that is tested for loss.
type test struct {
	asked   int      // probes asked for
	arrived int      // of them forgotten
	kept    []uint32 // of the extra ones: not forgotten
	last    uint32   // probe asked for
	from    uint32   // probes before do not count, see turn
	came    uint32   // one more than the last probe that arrived, and is forgotten; 0 is none
	legs    []verdict.Latency
}

// slot is one sample, or none.
type slot struct {
	atNs   uint64
	tunSrc uint32
	tunID  uint32
	inPort uint32
	ttl    uint8
	flags  uint8 // of TCP, 0 where they are not known
	seen   bool
	// noReply: see verdict.Sample.
	noReply bool
}

// fate is what became of a sample.
type fate uint8

const (
	used      fate = iota
	completed      // used, and the last of its probe
	doubled
	stray
	forged // of a probe that was not sent, of another scheme, or with other addresses
	spent  // of a probe that arrived and was forgotten
)

// newLedger returns the ledger of probes that take these paths, by these tracks, with room for so
// many beyond hardAttempts of each.
func newLedger(key stain.Key, paths []*plan.Path, tracks []track, room int) *ledger {
	n := len(paths)
	l := &ledger{
		tracks: tracks, paths: paths, bridges: map[string]int32{},
		first: make([]uint32, n+1), there: make([]uint64, n), back: make([]uint64, n),
		probes: make([]probe, hardAttempts*len(tracks)),
		spare:  map[int][]uint32{}, room: room, tests: map[int]*test{},
		failures: map[uint32]string{}, doubles: map[uint32][]verdict.Sample{}, strays: map[uint32][]verdict.Sighting{},
	}
	hosts := map[string]int32{}
	for i, p := range paths {
		l.there[i] = stain.AddrTag(key, p.Src, p.Dst)
		l.back[i] = stain.AddrTag(key, p.Dst, p.Src)
		for _, e := range p.Points {
			h, known := hosts[e.Host]
			if !known {
				h = int32(len(l.hosts))
				hosts[e.Host] = h
				l.hosts = append(l.hosts, e.Host)
			}
			b, known := l.bridges[e.Bridge]
			if !known {
				b = int32(len(l.bridges))
				l.bridges[e.Bridge] = b
			}
			l.points = append(l.points, point{h, b, e.Kind, e.Direction, e.Absent != "", e.OFPort})
		}
		l.first[i+1] = uint32(len(l.points))
	}
	l.slots = make([]slot, 0, len(l.points))
	return l
}

// knows says that there is a probe of that number. Agents know how many there may be, which is more than
// there are as yet.
func (l *ledger) knows(probe uint32) bool { return int64(probe) < int64(len(l.probes)) }

// of returns the track that a probe belongs to, which must be known.
func (l *ledger) of(probe uint32) int {
	if hard := uint32(hardAttempts * len(l.tracks)); probe >= hard {
		return int(l.extra[probe-hard])
	}
	return int(probe) % len(l.tracks)
}

// path returns the path of a track.
func (l *ledger) path(track int) *plan.Path { return l.paths[l.tracks[track].path] }

// span returns where the points of a track's path begin and end.
func (l *ledger) span(track int) (from, to int) {
	path := l.tracks[track].path
	return int(l.first[path]), int(l.first[path+1])
}

// number returns the probe that is the attempt-th of a track, counting from 0.
func (l *ledger) number(track, attempt int) uint32 { return uint32(attempt*len(l.tracks) + track) }

// attempts returns how many probes of a track were asked for.
func (l *ledger) attempts(track int) int {
	if t := l.tests[track]; t != nil {
		return t.asked
	}
	n := 0
	for n < hardAttempts && l.probes[l.number(track, n)].state != unsent {
		n++
	}
	return n
}

// last returns the probe of a track that was asked for last, of which there must be one.
func (l *ledger) last(track int) uint32 {
	if t := l.tests[track]; t != nil {
		return t.last
	}
	return l.number(track, l.attempts(track)-1)
}

// begin has a track be tested for loss, from its first probe on or from any later one.
func (l *ledger) begin(track int) *test {
	t := l.tests[track]
	if t == nil {
		t = &test{asked: l.attempts(track)}
		if t.asked > 0 {
			t.last = l.number(track, t.asked-1)
		}
		for _, leg := range verdict.Legs(l.path(track)) {
			t.legs = append(t.legs, verdict.Latency{Leg: leg, Digest: &sequential.Digest{}})
		}
		l.tests[track] = t
	}
	return t
}

// another returns the probe of a track that comes after those that were asked for; false if there
// is no room for it.
func (l *ledger) another(track int) (number uint32, ok bool) {
	if n := l.attempts(track); n < hardAttempts {
		return l.number(track, n), true
	}
	return l.fresh(track)
}

// fresh returns a probe of a track with a number of its own; false if there is no room for it.
func (l *ledger) fresh(track int) (number uint32, ok bool) {
	if len(l.extra) == l.room {
		return 0, false
	}
	number = uint32(hardAttempts*len(l.tracks) + len(l.extra))
	l.extra = append(l.extra, int32(track))
	l.probes = append(l.probes, probe{})
	return number, true
}

// armedBefore says of a probe of a long test that what it needs is in place, since it was for one of
// the first of its track.
func (l *ledger) armedBefore(number uint32) bool {
	if number < uint32(hardAttempts*len(l.tracks)) {
		return false
	}
	for a := range hardAttempts {
		if l.probes[l.number(l.of(number), a)].armed {
			return true
		}
	}
	return false
}

// each calls f with the probes of a track that were asked for and are not forgotten, in order.
func (l *ledger) each(track int, f func(number uint32)) {
	t := l.tests[track]
	for a := range min(l.attempts(track), hardAttempts) {
		// A patrol asks for none of these.
		if number := l.number(track, a); l.probes[number].state != unsent && (t == nil || number >= t.from) {
			f(number)
		}
	}
	if t != nil {
		for _, number := range t.kept {
			f(number)
		}
	}
}

// lostLast counts the probes of a tested track that were lost since the last one that arrived, which are those from a number on.
func (l *ledger) lostLast(track int) (from uint32, lost int) {
	t := l.tests[track]
	from = max(t.from, t.came)
	l.each(track, func(number uint32) {
		if number < from {
			return
		}
		if l.arrived(number) {
			from, lost = number+1, 0
		} else if p := &l.probes[number]; p.looked && p.state == left {
			lost++
		}
	})
	return from, lost
}

// turn has what came of a tested track until its last probe that arrived count no more, if it is certain that
// all have been lost since, and so many: it is broken now, whatever it was. The numbers of a track's probes
// grow.
func (l *ledger) turn(track int, arrived, lost, most int) (turned bool) {
	t := l.tests[track]
	if t == nil || arrived == 0 {
		return false
	}
	from, last := l.lostLast(track)
	if last < most || !sequential.Turned(arrived, lost, last) {
		return false
	}
	for _, number := range slices.Clone(t.kept) {
		if number < from {
			l.forget(number)
		}
	}
	t.from, t.arrived = from, 0
	for i := range t.legs {
		t.legs[i].Digest = &sequential.Digest{}
	}
	return true
}

// ask marks a probe as asked for: from now on it may be seen.
func (l *ledger) ask(number uint32) {
	track := l.of(number)
	from, to := l.span(track)
	p := &l.probes[number]
	p.state = asked
	if free := l.spare[to-from]; len(free) > 0 {
		p.slot = free[len(free)-1]
		l.spare[to-from] = free[:len(free)-1]
		clear(l.slots[p.slot : int(p.slot)+to-from])
	} else {
		p.slot = uint32(len(l.slots))
		l.slots = append(l.slots, make([]slot, to-from)...)
	}
	for _, pt := range l.points[from:to] {
		if !pt.absent {
			p.missing++
		}
	}
	if t := l.tests[track]; t != nil {
		t.asked++
		t.last = number
		if number >= uint32(hardAttempts*len(l.tracks)) {
			t.kept = append(t.kept, number)
		}
	}
}

// look notes that what follows a probe of a tested track is decided: its latencies are counted, and
// if it is an extra one that arrived it is forgotten.
func (l *ledger) look(number uint32) {
	p, track := &l.probes[number], l.of(number)
	p.looked = true
	t := l.tests[track]
	if t == nil || !l.arrived(number) {
		return
	}
	l.time(number)
	if number < uint32(hardAttempts*len(l.tracks)) {
		return
	}
	t.arrived++
	t.came = number + 1
	l.forget(number)
}

// time counts how long the legs of a tested probe took, or tells it.
func (l *ledger) time(number uint32) {
	p, track := &l.probes[number], l.of(number)
	at := func(point int) (int64, bool) {
		s := &l.slots[int(p.slot)+point]
		return int64(s.atNs), s.seen
	}
	took := l.timing[:0]
	for i, m := range l.tests[track].legs {
		d, ok := m.Leg.Of(at)
		switch {
		case l.timed == nil && ok:
			l.tests[track].legs[i].Digest.Add(d)
		case ok:
			took = append(took, max(d, 0))
		default:
			took = append(took, -1)
		}
	}
	if l.timing = took; l.timed != nil {
		l.timed(track, took)
	}
}

// rtt returns the round trip of a tested probe, 0 where its ends were not seen.
func (l *ledger) rtt(number uint32) time.Duration {
	p := &l.probes[number]
	legs := l.tests[l.of(number)].legs
	if len(legs) == 0 || legs[0].Leg.Kind != verdict.RTT {
		return 0
	}
	d, _ := legs[0].Leg.Of(func(point int) (int64, bool) {
		s := &l.slots[int(p.slot)+point]
		return int64(s.atNs), s.seen
	})
	return max(d, 0)
}

// forget gives back what is kept of a probe of a test, but that it was.
func (l *ledger) forget(number uint32) {
	p, track := &l.probes[number], l.of(number)
	t := l.tests[track]
	from, to := l.span(track)
	l.spare[to-from] = append(l.spare[to-from], p.slot)
	p.forgotten = true
	delete(l.failures, number)
	t.kept = slices.DeleteFunc(t.kept, func(n uint32) bool { return n == number })
	delete(l.doubles, number)
	delete(l.strays, number)
}

// score returns how many probes of a track arrived, and how many left and have not, of those about
// which it is decided what follows. One whose answer may have been there, and not been known, is
// neither.
func (l *ledger) score(track int) (arrived, lost int) {
	if t := l.tests[track]; t != nil {
		arrived = t.arrived
	}
	l.each(track, func(number uint32) {
		switch p := &l.probes[number]; {
		case l.arrived(number):
			arrived++
		case p.looked && p.state == left:
			if at := l.attempt(number); at.Armed || !verdict.Unanswered(l.path(track), &at) {
				lost++
			}
		}
	})
	return arrived, lost
}

// leave records that a probe left; false if it was not on its way.
func (l *ledger) leave(number uint32) bool {
	p := &l.probes[number]
	if p.state != asked {
		return false
	}
	p.state = left
	return true
}

// open says that a probe may have left.
func (l *ledger) open(number uint32) bool {
	state := l.probes[number].state
	return state == asked || state == left
}

// fail records that a probe did not leave; false if it was not on its way.
func (l *ledger) fail(number uint32, why string, portAbsent bool) bool {
	p := &l.probes[number]
	if p.state != asked {
		return false
	}
	if why == "" {
		why = "the agent gives no reason"
	}
	p.state, p.portAbsent = failed, portAbsent
	l.failures[number] = why
	return true
}

// see records the i-th sample of m, which the agent of a host sent; bridge is the bridge's number
// in l.bridges, -1 if no path has it.
func (l *ledger) see(host int, bridge int32, m *dyetracev1.Samples, i int) fate {
	number := m.Index[i]
	if int(number) >= len(l.probes) {
		return forged
	}
	p := &l.probes[number]
	if p.forgotten {
		return spent
	}
	t := l.tracks[l.of(number)]
	direction, tag := plan.Forward, l.there[t.path]
	if m.Reply[i] {
		direction, tag = plan.Reply, l.back[t.path]
	}
	if p.state == unsent || m.AddrTag[i] != tag || stain.Scheme(m.Scheme[i]) != t.scheme {
		return forged
	}
	want := point{host: int32(host), bridge: bridge, kind: stain.Kind(m.Kind[i]), direction: direction}
	for k, pt := range l.points[l.first[t.path]:l.first[t.path+1]] {
		absent, ofport := pt.absent, pt.ofport
		if pt.absent, pt.ofport = false, 0; pt != want || ofport != 0 && m.InPort[i] != ofport {
			continue
		}
		s := slot{
			atNs: m.AtNs[i], tunSrc: m.TunSrc[i], tunID: m.TunId[i], inPort: m.InPort[i],
			ttl: uint8(min(m.Ttl[i], 255)), seen: true, noReply: m.NoReply[i],
		}
		if len(m.TcpFlags) > 0 {
			s.flags = uint8(m.TcpFlags[i])
		}
		at := &l.slots[int(p.slot)+k]
		if at.seen {
			if d := l.doubles[number]; len(d) < maxOdd {
				l.doubles[number] = append(d, s.sample(k))
			}
			return doubled
		}
		*at = s
		if absent {
			return used
		}
		if p.missing--; p.missing == 0 {
			return completed
		}
		return used
	}
	if s := l.strays[number]; len(s) < maxOdd {
		l.strays[number] = append(s, verdict.Sighting{
			Host: l.hosts[host], Bridge: m.Bridges[m.Bridge[i]], Kind: want.kind, Direction: direction, InPort: m.InPort[i],
		})
	}
	return stray
}

func (s *slot) sample(point int) verdict.Sample {
	return verdict.Sample{
		Point: point, AtNs: int64(s.atNs), TTL: s.ttl, Flags: s.flags, InPort: s.inPort,
		TunSrc: verdict.Addr4(s.tunSrc), TunID: s.tunID, NoReply: s.noReply,
	}
}

// arrived says whether the last point of a probe's path that exists has seen it, so that nothing
// more need be waited for to call the pair healthy.
func (l *ledger) arrived(number uint32) bool {
	p := &l.probes[number]
	if p.state == unsent || p.forgotten {
		return p.forgotten
	}
	from, to := l.span(l.of(number))
	for k := to - from - 1; k >= 0; k-- {
		if !l.points[from+k].absent {
			return l.slots[int(p.slot)+k].seen
		}
	}
	return false
}

// shown says that a probe was seen anywhere on its way.
func (l *ledger) shown(number uint32) bool {
	p := &l.probes[number]
	if p.state == unsent || p.forgotten {
		return p.forgotten
	}
	from, to := l.span(l.of(number))
	return slices.ContainsFunc(l.slots[int(p.slot):int(p.slot)+to-from], func(s slot) bool { return s.seen })
}

// evidence returns what is known of the attempts of a track. The hooks and who is gone are for the
// caller to add.
func (l *ledger) evidence(track int) verdict.Evidence {
	e := verdict.Evidence{Path: l.path(track), Scheme: l.tracks[track].scheme}
	l.each(track, func(number uint32) {
		if !l.probes[number].cut || l.arrived(number) {
			e.Attempts = append(e.Attempts, l.attempt(number))
		}
	})
	if t := l.tests[track]; t != nil {
		e.Arrived, e.Latencies = t.arrived, t.legs
	}
	return e
}

// attempt returns what is known of a probe that was asked for.
func (l *ledger) attempt(number uint32) verdict.Attempt {
	p := &l.probes[number]
	at := verdict.Attempt{
		Injected: p.state == left, Failure: l.failures[number], PortAbsent: p.portAbsent, Armed: p.armed,
		Stray: l.strays[number],
	}
	from, to := l.span(l.of(number))
	at.Seen = make([]verdict.Sample, 0, to-from+len(l.doubles[number]))
	for k := range to - from {
		if s := &l.slots[int(p.slot)+k]; s.seen {
			at.Seen = append(at.Seen, s.sample(k))
		}
	}
	at.Seen = append(at.Seen, l.doubles[number]...)
	// Whoever saw it knows that it left, though the agent's word may still be on its way.
	at.Injected = at.Injected || len(at.Seen) > 0
	return at
}

// appendProbe adds a probe to what a host is asked to inject; ports holds the numbers of the ports
// that m has already.
func (l *ledger) appendProbe(m *dyetracev1.Inject, ports map[plan.Inject]uint32, number uint32) {
	p := l.path(l.of(number))
	port, known := ports[p.Inject]
	if !known {
		port = uint32(len(m.Ports))
		ports[p.Inject] = port
		m.Ports = append(m.Ports, &dyetracev1.PortRef{Bridge: p.Inject.Bridge, Port: p.Inject.Port})
	}
	m.Index = append(m.Index, number)
	m.Port = append(m.Port, port)
	m.SrcMac = append(m.SrcMac, p.SrcMAC.Uint64())
	m.DstMac = append(m.DstMac, p.DstMAC.Uint64())
	src, dst := p.Src.As16(), p.Dst.As16()
	m.SrcIp = append(m.SrcIp, src[:]...)
	m.DstIp = append(m.DstIp, dst[:]...)
	m.Ttl = append(m.Ttl, p.TTL)
}
