package run

import (
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/verdict"
	"github.com/dyetrace/dyetrace/stain"
)

// A packet that was not seen yet may be lost, or late: on a slow way, or to a slow guest. What is done about
// one that is lost (withdraw it, send another one by tcp) has connection tracking drop the answer of one that
// is late (measured: a SYN-ACK after the RST, and any answer after the next SYN, are +inv). So:
//
//   - A probe by tcp is left alone for [Config.Patience] after it was seen last, or less where that is enough to tell (steady and
//     swift of package verdict), or until something of the pair has arrived, which tells how long packets take; or until flows, ports
//     or tunnels say why it is lost, which no slow way is.
//   - Meanwhile icmp is tried beside it, where nobody asked for either: an echo disturbs nothing. One that
//     dies where the probe by tcp died is a witness, and counts with it.
//   - Where nothing but silence speaks for a fault, the hooks must have been watched for as long after a probe
//     was seen last (verdict.Evidence.Patience). One that takes longer from one point to the next is lost, as
//     far as we can tell.

// slower is how many times as long as the slowest that arrived one is waited for.
const slower = 4

// patience is Patience as it is used: 0 is that nothing is waited for beyond Settle.
func (c *Config) patience() time.Duration {
	if c.Patience <= c.Settle {
		return 0
	}
	return c.Patience
}

// tcp says that a probe is a connection until it is answered or withdrawn.
func (x *execution) tcp(number uint32) bool {
	return x.ledger.tracks[x.ledger.of(number)].scheme == stain.TCP
}

// alone says that a probe goes by itself between its pair's instances. An echo may go beside others, but not
// in no-touch, where one of the other direction would have to be withheld at the same ports.
func (x *execution) alone(number uint32) bool { return x.tcp(number) || x.layout.ways > 1 }

// holds is where it is noted that a probe is under way, or where it would be: a pair has one that goes alone, and two beside it.
func (x *execution) holds(number uint32) *uint32 {
	p := &x.progress[x.pairOf(number)]
	switch first := p.holds[1]; {
	case x.alone(number):
		return &p.holds[0]
	case first == number+1, first == 0 && p.holds[2] != number+1:
		return &p.holds[1]
	}
	return &p.holds[2]
}

// lane is what a probe needs of the pace.
func (x *execution) lane(number uint32) pace.Lane {
	l := x.lanes[x.pairOf(number)]
	if !x.alone(number) {
		l = l.Beside()
	}
	return l
}

// withdrawAfter is when an agent withdraws what it was not told to: well before it has settled here, and one
// in the other direction may follow. Two that cross half-open block each other in connection tracking, whose
// ends then drop what would withdraw them. Where there is patience the agent is told, and this is for want of it.
func (x *execution) withdrawAfter() time.Duration {
	switch {
	case x.patience == 0:
		return x.settle / 2
	case x.patrol != nil:
		return x.patience
	}
	return x.patience + x.settle
}

// patienceFor is how long a packet of a pair may be late.
func (x *execution) patienceFor(pair int) time.Duration {
	trip := x.progress[pair].trip
	if x.patience == 0 || trip == 0 {
		return x.patience
	}
	return min(max(slower*trip, x.settle), max(x.patience, 2*trip))
}

// settleOf is how long after it left a probe is looked at.
func (x *execution) settleOf(number uint32) time.Duration {
	if x.patrol != nil {
		return x.patrol.settle(x.pairOf(number))
	}
	return x.settle
}

// waitUntil is when a probe that has left, or could not, is given up.
func (x *execution) waitUntil(number uint32) time.Time {
	p := &x.ledger.probes[number]
	pair := x.pairOf(number)
	switch {
	case x.patience == 0, x.patrol != nil, p.state != left:
	case x.progress[pair].trip > 0:
		return x.begun.Add(p.sent + x.patienceFor(pair))
	case x.tcp(number):
		if late := x.lateness(x.ledger.of(number)); late > 0 {
			return x.begun.Add(p.heard + late)
		}
	}
	return x.begun.Add(p.sent + x.settle)
}

// explainedAway says that it is known why probes of a track are lost: it is no matter of time.
func (x *execution) explainedAway(track int) bool { return x.lateness(track) == 0 }

// lateness is how long a probe of a track may be late after it was seen last, by what is known so far; 0 is that something else than time
// is why it does not arrive.
func (x *execution) lateness(track int) time.Duration {
	most := x.patience
	if most == 0 {
		most = time.Hour // nobody waits, and what is not seen may be late as well
	}
	e := x.guess(track, x.begun) // however long others were silent, this one may be late
	if f := x.foreseen[track]; f != nil {
		e.Explanation = f.explanation // where there is none, ports may say so
	}
	e.Patience = most
	switch r := x.judgeSoFar(e); {
	case r.Wait > 0:
		return r.Wait
	case r.Verdict == verdict.Unknown || r.Verdict == verdict.Healthy:
		return most
	}
	return 0
}

// judgeSoFar judges with the exchange that is needed, if that is over.
func (x *execution) judgeSoFar(e verdict.Evidence) verdict.Result {
	r := verdict.Judge(e)
	if n := r.NeedUnderlay; n != nil {
		if made := x.made(n, false); made != nil && made.step == done {
			e.Underlay = made.result
			r = verdict.Judge(e)
		}
	}
	return r
}

// tryBeside begins what can be done about a probe that may be late without disturbing it.
func (x *execution) tryBeside(number uint32) {
	track := x.ledger.of(number)
	if x.ledger.probes[number].state != left {
		return
	}
	x.foresee(track)
	if x.layout.schemes > 1 && x.holdBack(track) {
		x.held = append(x.held, number)
		return
	}
	if pair := x.layout.pair(track); x.mayBeside(pair) && !x.arrived(track) {
		x.beside(pair)
	}
}

// mayBeside says that a pair's second scheme can be begun while its first goes on.
func (x *execution) mayBeside(pair int) bool {
	return x.patience > 0 && x.layout.ways == 1 && x.layout.schemes > 1 && x.progress[pair].scheme == 0
}

// beside begins it.
func (x *execution) beside(pair int) {
	x.progress[pair].beside = true
	x.start(pair, 1)
}

// echoAgain is the second probe of the scheme beside.
func (x *execution) echoAgain(pair int) uint32 {
	track, _ := x.layout.group(pair, 1)
	return x.ledger.number(track, 1)
}

// repeat queues a further probe of a pair. Where there is patience it goes before what others begin with: one
// fault that is named soon is worth more than all that are named at the end.
func (x *execution) repeat(number uint32) {
	if x.patience > 0 {
		x.again = append(x.again, number)
		return
	}
	x.queue = append(x.queue, number)
}

// hurry looks anew at how long probes of a pair are waited for.
func (x *execution) hurry(pair int) {
	for _, s := range slices.Clone(x.settling) {
		if s.late && x.pairOf(s.number) == pair {
			x.settling = slices.DeleteFunc(x.settling, func(o settle) bool { return o.number == s.number })
			s.at = x.waitUntil(s.number)
			x.await(s)
		}
	}
	for i := range x.waiting {
		if w := &x.waiting[i]; w.pair == pair && w.audits == nil {
			w.until = x.due(pair, time.Now())
		}
	}
}

// giveUp has a probe withdrawn that is a connection still.
func (x *execution) giveUp(number uint32, now time.Time) {
	p := &x.ledger.probes[number]
	switch {
	case x.patience == 0 || p.withdrawn || !x.tcp(number) || p.forgotten:
	case !x.ledger.open(number) || x.waits[number] > 0:
	case x.ledger.arrived(number) && !x.halfOpen(x.ledger.of(number)):
	default:
		p.withdrawn = true
		x.agents.Withdraw(x.entry(number), &dyetracev1.Withdraw{Index: []uint32{number}})
		x.pace.Keep(x.lane(number), now.Add(x.settleOf(number)/2))
	}
}

// leaveOff gives up what is under way of a pair that is concluded.
func (x *execution) leaveOff(pair int) {
	held := x.progress[pair].holds[0]
	if held == 0 || x.patience == 0 || x.patrol != nil || x.ledger.probes[held-1].state != left {
		return
	}
	x.giveUp(held-1, time.Now())
	x.free(held - 1)
}

// came takes in that a probe has arrived.
func (x *execution) came(number uint32, now time.Time) {
	p := &x.ledger.probes[number]
	if x.halfOpen(x.ledger.of(number)) {
		if x.patience == 0 {
			return // until the agent has withdrawn it by itself
		}
		x.giveUp(number, now)
	}
	x.free(number)
	if x.patience == 0 || x.patrol != nil || p.state != left {
		return
	}
	pair, trip := x.pairOf(number), p.heard-p.sent
	if x.tcp(number) && trip > x.settle {
		x.pace.Keep(x.lane(number), now.Add(trip)) // what the source's guest says to it takes as long
	}
	if g := &x.progress[pair]; trip > g.trip {
		g.trip = trip
		x.hurry(pair)
	}
}

// mayArrive says that a probe may yet arrive, as others took as long.
func (x *execution) mayArrive(number uint32, now time.Time) bool {
	p := &x.ledger.probes[number]
	trip := x.progress[x.pairOf(number)].trip
	if trip == 0 || x.patience == 0 || p.withdrawn || !x.ledger.open(number) || x.ledger.arrived(number) {
		return false
	}
	return p.state == asked || now.Sub(x.begun)-p.sent < 2*trip
}

// score is the ledger's, but for what may arrive yet.
func (x *execution) score(track int) (arrived, lost int) {
	arrived, lost = x.ledger.score(track)
	if lost == 0 || x.progress[x.layout.pair(track)].trip == 0 {
		return arrived, lost
	}
	now := time.Now()
	x.ledger.each(track, func(number uint32) {
		if x.ledger.probes[number].looked && x.mayArrive(number, now) {
			lost = max(0, lost-1)
		}
	})
	return arrived, lost
}

// relieved takes in that a probe of a pair's first scheme arrived whole: nothing that could still come would
// change it, unless others of it are known to be lost.
func (x *execution) relieved(pair, track int) {
	p := &x.progress[pair]
	if p.scheme > 0 && !p.beside {
		return
	}
	if arrived, _ := x.score(track); arrived < x.options.least[x.seq[pair]] {
		return
	}
	if x.ledger.attempts(track) > 1 {
		if _, lost := x.score(track); lost > 0 || x.patience == 0 {
			return
		}
	}
	if r := verdict.Judge(x.evidence(track)); r.Verdict == verdict.Healthy {
		x.healthy(pair, track, r)
	}
}

// watched is until when the hooks on the ways of a pair were attested.
func (x *execution) watched(pair int) (at time.Time) {
	for _, host := range x.hostsOf(pair) {
		if h := &x.host[host]; !h.gone && (at.IsZero() || h.watched.Before(at)) {
			at = h.watched
		}
	}
	return at
}

// quiet fills in for how long nothing more was seen of a track's probes, watched until then, and leaves out
// those that may arrive yet.
func (x *execution) quiet(track int, e *verdict.Evidence, until time.Time) {
	if x.patience == 0 {
		return
	}
	now := time.Now()
	if since, is := x.hushed(x.layout.pair(track)); is {
		e.Hushed = max(0, until.Sub(since))
	}
	kept, i := e.Attempts[:0], 0
	x.ledger.each(track, func(number uint32) {
		p := &x.ledger.probes[number]
		if p.cut && !x.ledger.arrived(number) {
			return // the ledger left it out
		}
		at := e.Attempts[i]
		i++
		if x.mayArrive(number, now) {
			return
		}
		at.Quiet = max(0, until.Sub(x.begun)-p.heard)
		kept = append(kept, at)
	})
	e.Attempts = kept
}

// witnesses counts the echoes that died where the probes of a track by tcp did.
func (x *execution) witnesses(track int) (n int) {
	pair := x.layout.pair(track)
	if p := &x.progress[pair]; !p.beside || x.layout.scheme(track) > 0 {
		return 0
	}
	at, ok := x.diedAt(track)
	if !ok {
		return 0
	}
	beside, _ := x.layout.group(pair, 1)
	x.ledger.each(beside, func(number uint32) {
		p := &x.ledger.probes[number]
		if p.looked && p.state == left && !x.ledger.arrived(number) && x.seenUpTo(number) == at {
			n++
		}
	})
	return n
}

// diedAt is the point that saw a probe of a track last, of those that came furthest.
func (x *execution) diedAt(track int) (point int, ok bool) {
	point = -1
	x.ledger.each(track, func(number uint32) {
		if x.ledger.probes[number].state == left {
			point, ok = max(point, x.seenUpTo(number)), true
		}
	})
	return point, ok
}

// seenUpTo is the last point of its path that has seen a probe, -1 if none has.
func (x *execution) seenUpTo(number uint32) int {
	from, to := x.ledger.span(x.ledger.of(number))
	p := &x.ledger.probes[number]
	for k := to - from - 1; k >= 0; k-- {
		if x.ledger.slots[int(p.slot)+k].seen {
			return k
		}
	}
	return -1
}

// due is when the hooks of a pair whose probes are over should be attested: what is only silent until then
// may be late.
func (x *execution) due(pair int, now time.Time) time.Time {
	if x.patience == 0 {
		return now
	}
	// By one reading of the clock: with two, what passes between them would be missing in the end.
	return now.Add(x.silent(pair, func(track int) verdict.Evidence { return x.guess(track, now) }))
}

// silent is for how much longer a pair must be watched of which this is known, or what is foreseen.
func (x *execution) silent(pair int, known func(track int) verdict.Evidence) (wait time.Duration) {
	from, to := x.tried(pair)
	for track := from; track < to; track++ {
		if x.progress[pair].healthy&x.layout.bit(track) != 0 {
			continue
		}
		e := known(track)
		if f := x.foreseen[track]; f != nil && f.explanation != nil && f.explanation.Error == "" {
			e.Explanation = f.explanation
		}
		wait = max(wait, x.judgeSoFar(e).Wait)
	}
	return wait
}

// dueLater says that pairs which wait, when nothing else is left to do, must wait longer, and until when.
func (x *execution) dueLater(now time.Time) (until time.Time, later bool) {
	for i := range x.waiting {
		w := &x.waiting[i]
		if x.judged[w.pair] || w.late {
			continue
		}
		if w.until = x.due(w.pair, now); w.until.After(now) && (!later || w.until.Before(until)) {
			until, later = w.until, true
		}
	}
	return until, later
}

// prolong has a pair wait longer whose hooks were attested too early to tell what is lost from what is late;
// false if there is no time for that.
func (x *execution) prolong(pair int, wait time.Duration, now time.Time) bool {
	if x.stage != probing || !now.Add(wait).Before(x.soft) {
		return false
	}
	x.progress[pair].attested = false
	for i := range x.waiting {
		if w := &x.waiting[i]; w.pair == pair {
			w.audits, w.until = nil, now.Add(wait)
			return true
		}
	}
	x.waiting = append(x.waiting, waiting{pair: pair, until: now.Add(wait)})
	return true
}
