package run

import (
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// Where a stream between two hosts is silent, an examination of the pairs between them has an exchange of UDP packets
// be made both ways at once, and not only when a probe is lost and explained. If nothing passes one way, and the probes of
// several pairs died on that very way and none of any passed it since, they are witnesses of each other, as echoes are of
// what tcp lost: a pair needs one probe of its own to be lost there, and no three, for which its instances had to wait.
// What is concluded is by as many lost probes as where a patrol lost one before. For a pair to be accused wrongly, its own must be lost by
// chance while something stops all UDP packets there and the probes of other pairs, and not its.

const (
	// echoWindow bounds the exchanges of small packets that a run has under way at one host after a sign: if nothing is answered,
	// 36 packets each, so that not even all that come to one host fill the queue of a switch that stands still (28 kB of
	// 212,992; dataplane/underlay, knocks).
	echoWindow = 6
	// echoRepeats is how often they are sent from each source port: that nothing passes the stream tells for as long as it
	// is silent, and the exchange which way it is; two rounds are no burst, and over 60 ms sooner than four are.
	echoRepeats = 2
	// heldFor is for how much of its patience a probe's echo is held back until others have died.
	heldFor = 2.0 / 3
	// crossingTime is how long after the first question that was not answered a probe was sent at the least for its arrival to
	// say that packets pass: before, it may have been sooner than the fault.
	crossingTime = 20 * time.Millisecond
)

func (x *execution) pathOf(pair int) *plan.Path {
	first, _ := x.layout.group(pair, 0)
	return x.ledger.path(first)
}

// hushed says that the stream between the hosts of a pair is silent, and since when.
func (x *execution) hushed(pair int) (since time.Time, is bool) {
	if x.options.between == nil || x.patrol != nil || x.layout.ways > 1 {
		return since, false
	}
	p := x.pathOf(pair)
	return x.options.between.hushed(p.From.Host, p.To.Host)
}

// witness has it known how far a probe was seen.
func (x *execution) witness(number uint32, dead bool) {
	w := x.options.between
	if w == nil || x.layout.ways > 1 {
		return
	}
	p := &x.ledger.probes[number]
	if p.state != left || p.forgotten || dead && x.patrol != nil { // what is late on patrol is not seen
		return
	}
	p.witness = p.witness || dead
	w.saw(x.ledger.path(x.ledger.of(number)), x.seenUpTo(number), dead, deadProbe{x.lanes[x.pairOf(number)].By, number},
		death{x.seq[x.pairOf(number)], x.begun.Add(p.sent)})
}

// echo begins the exchanges between hosts whose stream is silent.
func (x *execution) echo() {
	n := x.options.between.news()
	if n == x.echoed || x.patrol != nil || x.stage > probing {
		return
	}
	x.echoed = n
	for pair := range x.pairs {
		if _, is := x.hushed(pair); x.judged[pair] || !is {
			continue
		}
		p := x.pathOf(pair)
		for _, ends := range [][2]*plan.End{{&p.From, &p.To}, {&p.To, &p.From}} {
			if n, _ := verdict.NeedSmall(ends[0], ends[1]); n != nil && x.exchangeOf(n.From, n.To) == nil {
				e := x.exchangeFor(n, false)
				e.echo, e.ask.Repeats = true, echoRepeats
			}
		}
	}
}

// exchangeOf is the exchange from one host to another, that tells most; nil for none.
func (x *execution) exchangeOf(from, to string) (best *exchange) {
	for _, e := range x.exchanges {
		if e.need.From == from && e.need.To == to && (best == nil || x.noWay(e)) {
			best = e
		}
	}
	return best
}

// noWay says that an exchange has shown that nothing passes; of one that was begun for a sign, as long as that stands: what lasted
// for a moment is over.
func (x *execution) noWay(e *exchange) bool {
	if e.echo {
		if _, is := x.options.between.hushed(e.need.From, e.need.To); !is {
			return false
		}
	}
	return e.step == done && e.result.NoWay()
}

// diedBetween are the hosts between which the probes of a track died; ok is false where it was not between two.
func (x *execution) diedBetween(track int) (from, to string, ok bool) {
	at, any := x.diedAt(track)
	if !any || at < 0 {
		return "", "", false
	}
	p := x.ledger.path(track)
	for k := at + 1; k < len(p.Points); k++ {
		if p.Points[k].Absent == "" {
			return p.Points[at].Host, p.Points[k].Host, p.Points[k].Host != p.Points[at].Host
		}
	}
	return "", "", false
}

// fellows counts the probes of other pairs that died on the way between two hosts where a track's did, and where the exchange
// shows that nothing else passes either, or is not over where that need not be sure; 0 where one has passed.
func (x *execution) fellows(track int, sure bool) int {
	pair := x.layout.pair(track)
	since, is := x.hushed(pair)
	if !is {
		return 0
	}
	from, to, ok := x.diedBetween(track)
	if !ok {
		return 0
	}
	if e := x.exchangeOf(from, to); e == nil || !x.noWay(e) && (sure || e.step == done) {
		return 0
	}
	probes, _ := x.options.between.witnesses(from, to, since.Add(crossingTime), x.seq[pair])
	return probes
}

// swept says that with the probes of other pairs as many are lost as are enough where something else than chance is known to be
// behind it: the stream is silent, and the verdict waits for the exchange.
func (x *execution) swept(track int) bool {
	n := x.fellows(track, false)
	return n > 0 && x.ledger.attempts(track)+x.witnesses(track)+n >= fewAttempts
}

// abreast says that a pair has fellows enough, if all are lost that are sent its way: it takes one probe, mostly.
func (x *execution) abreast(pair int) bool {
	if _, is := x.hushed(pair); !is {
		return false
	}
	if x.flocks == nil {
		x.flocks = map[[2]string]int{}
		for other := range x.pairs {
			p := x.pathOf(other)
			x.flocks[[2]string{p.From.Host, p.To.Host}]++
		}
	}
	p := x.pathOf(pair)
	return x.flocks[[2]string{p.From.Host, p.To.Host}] >= fewAttempts
}

// holdBack says that a second scheme is not begun beside a probe of a track as yet, since others will be witnesses.
func (x *execution) holdBack(track int) bool {
	pair := x.layout.pair(track)
	if _, is := x.hushed(pair); !is || x.progress[pair].released {
		return false
	}
	from, to, ok := x.diedBetween(track)
	if !ok {
		return false
	}
	e := x.exchangeOf(from, to)
	return e != nil && (e.step != done || x.noWay(e)) && (x.abreast(pair) || x.swept(track))
}

// unhold begins beside probes what was held back, where it turns out to be needed, and returns when to look again.
func (x *execution) unhold(now time.Time) (wake time.Time) {
	wake = x.hard
	var due []uint32
	x.held = slices.DeleteFunc(x.held, func(number uint32) bool {
		track := x.ledger.of(number)
		pair := x.layout.pair(track)
		if x.judged[pair] || x.arrived(track) || x.ledger.probes[number].looked {
			return true
		}
		at := x.begun.Add(x.ledger.probes[number].sent + time.Duration(heldFor*float64(x.patience)))
		switch late := !now.Before(at); {
		case late && !x.swept(track):
			x.progress[pair].released = true
		case x.holdBack(track):
			if !late {
				wake = earliest(wake, at)
			}
			return false
		}
		due = append(due, number)
		return true
	})
	for _, number := range due { // which may hold it back again
		x.tryBeside(number)
	}
	return wake
}

// order is in which order pairs begin. Of two opposite ones one waits for the other's wire; so between hosts whose stream
// is silent all go the same way at first, and are witnesses of each other.
func (x *execution) order() []int {
	order := make([]int, len(x.pairs))
	for i := range order {
		order[i] = i
	}
	if x.options.between.news() == 0 {
		return order
	}
	back := func(pair int) int {
		if p := x.pathOf(pair); p.From.Host > p.To.Host {
			if _, is := x.hushed(pair); is {
				return 1
			}
		}
		return 0
	}
	slices.SortStableFunc(order, func(a, b int) int { return back(a) - back(b) })
	return order
}
