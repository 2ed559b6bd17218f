package run

import (
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/plan"
)

// A patrol goes round its pairs by a schedule of package pace.
//
// Pairs that are examined, or go before their turns, put that out of order for good: who went is last. Then it is the opposite of a pair
// that goes in its turn, where its source has not been destination for longer than the other one.

// leanSlots is after how many slots an instance is probed that has less than half of its burst left: so it gains more than it spends.
const leanSlots = 4

// round is whose turn it is.
type round struct {
	order   []uint32    // pairs, who is next first
	facing  []int       // by pair: the opposite one, which has the same wire; -1 for none
	src     []int       // by pair: its source, among the instances
	dst     []int       // and its destination
	asked   []time.Time // of instances: when one was destination last
	probed  []time.Time // when it was either
	swapped []bool      // of pairs: the opposite one went in its last turn
	slot    time.Duration
}

// newRound has the turns of pairs of which an instance has one in each slot.
func newRound(pairs []plan.Pair, slot time.Duration) round {
	s := pace.NewSchedule(pairs)
	return round{order: s.Order, facing: s.Facing, src: s.Src, dst: s.Dst, asked: make([]time.Time, s.Instances), probed: make([]time.Time, s.Instances),
		swapped: make([]bool, len(pairs)), slot: slot}
}

// swaps says that the opposite pair should go in the turn of one: by more than a slot, and not twice in a row, so that by this none waits for
// more than a round and a half.
func (r *round) swaps(n uint32) bool {
	o := r.facing[n]
	return o >= 0 && !r.swapped[n] && r.asked[r.dst[n]].Sub(r.asked[r.dst[o]]) > r.slot*3/2
}

// went has pairs that went be last, behind those that could not go, which are first, and the rest. Those that went instead of others were in their places.
func (r *round) went(gone, first, rest []uint32, now time.Time) {
	for _, n := range gone {
		r.asked[r.dst[n]], r.swapped[n] = now, false
		r.probed[r.src[n]], r.probed[r.dst[n]] = now, now
	}
	r.order = slices.Concat(first, rest, gone)
}

// goRound sends the probes whose turn it is. A pair whose turn it is and whose instances lack a token
// keeps others from taking it: else those instances that once went together get theirs at the same
// times, and go together for ever. One of which an instance lacks more, since it was examined, keeps nobody: all have a pair with
// that one. None goes where the opposite pair is examined, or is about to be: that
// would take from the examination what both have in common, the wire and the pace.
func (c *continuous) goRound(now time.Time) {
	r := &c.round
	if !c.patrol.ready() || now.Sub(c.took) < goEvery+time.Duration(len(r.order))*time.Microsecond || len(c.patrol.x.queue) >= pace.MaxFlying {
		return
	}
	c.took = now
	var may, rest []uint32
	burst := float64(c.r.cfg.PerInstanceBurst)
	full, few := max(1, pace.PatrolShare*burst), max(1, testShare*burst)
	// An instance whose tokens its examinations have taken is probed less often until it has them again. Not at all would be wrong: it may fall silent.
	rich := func(instance int) float64 {
		if at := r.probed[instance]; !at.IsZero() && now.Sub(at) > leanSlots*r.slot {
			return few
		}
		return full
	}
	all := c.r.pace.Means(c.shared, func(pair int) (src, dst float64) { return rich(r.src[pair]), rich(r.dst[pair]) }, few, now)
	own := c.own.Means(c.lanes, pace.Alike(1), 1-owed, now)
	taken := map[*pace.Bucket]bool{}
	for at, n := range r.order {
		p, l := &c.pairs[n], &c.lanes[n]
		if c.faces(n, now) || !p.idle() || taken[l.Src] || taken[l.Dst] || all[n].Full { // else all would wait for one host
			rest = append(rest, n)
			continue
		}
		hurried, regular := p.hurried && all[n].Some && own[n].Some, all[n].Rich && own[n].Rich
		if all[n].Nearly && own[n].Nearly || p.hurried && all[n].Almost && own[n].Almost {
			taken[l.Src], taken[l.Dst] = true, true
		}
		switch {
		case hurried, regular && !r.swaps(n):
			may = append(may, n)
		case regular:
			may = append(may, c.swap(at, n, now))
		default:
			rest = append(rest, n)
		}
	}
	go_, held := c.own.Pick(may, func(n uint32) pace.Lane { return c.lanes[n] }, func(n uint32) float64 {
		if c.pairs[n].hurried {
			return -owed
		}
		return 0
	}, now)
	for _, n := range go_ {
		c.own.Free(c.lanes[n])
		p := &c.pairs[n]
		p.flying, p.pressed, p.hurried = c.patrol.send(p.track), p.hurried, false
		c.probes++
	}
	// Who could not go is first the next time.
	r.went(go_, held, rest, now)
}

// idle says that a patrol may probe a pair, as far as that is its own matter.
func (p *standing) idle() bool {
	return p.track >= 0 && !p.flying && p.exam == 0 && !p.suspect && p.base != nil
}

// swap has the opposite of a pair go in its turn, if it may, and the pair in that one's; it returns which goes.
func (c *continuous) swap(at int, n uint32, now time.Time) uint32 {
	r := &c.round
	o := uint32(r.facing[n])
	later := slices.Index(r.order[at:], o)
	if p := &c.pairs[o]; later < 0 || !p.idle() || p.hurried || c.faces(o, now) {
		return n
	}
	r.order[at], r.order[at+later] = o, n
	r.swapped[n] = true
	return o
}

// faces says that the opposite pair of one is examined, or is about to be; but for a test of how much is lost, which may take long.
func (c *continuous) faces(n uint32, now time.Time) bool {
	o := c.round.facing[n]
	if o < 0 {
		return false
	}
	p := &c.pairs[o]
	return p.suspect || p.exam != 0 && now.Sub(c.exams[p.exam].began) < longExam
}
