package run

import (
	"cmp"
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/plugin/plan"
)

// A patrol goes round its pairs in an order that begins as that of a tournament in which each plays each other at home and away: among
// instances that all reach all, as many pairs as there can be have the same slot; an instance is source and destination by
// turns, since one that has fallen silent shows only as the latter, and it is so in three slots at the least; and but for those of the
// first slot, the opposite of a pair comes half a round after it, since either probe passes most of what the other passes. (The schedule
// is the circle method, as de Werra oriented it: Geography, games and graphs, 1980.)
//
// Pairs that are examined, or go before their turns, put that out of order for good: who went is last. Then it is the opposite of a pair
// that goes in its turn, where its source has not been destination for longer than the other one.

// round is whose turn it is.
type round struct {
	order   []uint32    // pairs, who is next first
	facing  []int       // by pair: the opposite one, which has the same wire; -1 for none
	dst     []int       // by pair: its destination, among the instances
	asked   []time.Time // of instances: when one was destination last
	swapped []bool      // of pairs: the opposite one went in its last turn
	slot    time.Duration
}

// newRound has the turns of pairs of which an instance has one in each slot.
func newRound(pairs []plan.Pair, slot time.Duration) round {
	names, league := leagues(pairs)
	r := round{order: make([]uint32, len(pairs)), facing: facingOf(pairs), dst: make([]int, len(pairs)), asked: make([]time.Time, len(names)), swapped: make([]bool, len(pairs)), slot: slot}
	at := make([]int, len(pairs))
	for i := range pairs {
		src, dst := names[pairs[i].Src.Ref()], names[pairs[i].Dst.Ref()]
		r.order[i], r.dst[i], at[i] = uint32(i), dst.id, slotOf(src.number, dst.number, league[src.league])
	}
	slices.SortStableFunc(r.order, func(a, b uint32) int { return cmp.Compare(at[a], at[b]) })
	return r
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
	}
	r.order = slices.Concat(first, rest, gone)
}

// player is an instance, and its number among those of its league.
type player struct{ id, league, number int }

// leagues are the instances that pairs connect, by their names in order, and how many each has.
func leagues(pairs []plan.Pair) (map[string]player, []int) {
	above := map[string]string{} // of instances: another one of its league, or itself
	top := func(name string) string {
		for above[name] != name {
			above[name] = above[above[name]]
			name = above[name]
		}
		return name
	}
	for i := range pairs {
		src, dst := pairs[i].Src.Ref(), pairs[i].Dst.Ref()
		for _, name := range []string{src, dst} {
			if _, known := above[name]; !known {
				above[name] = name
			}
		}
		above[top(src)] = top(dst)
	}
	var names []string
	for name := range above {
		names = append(names, name)
	}
	slices.Sort(names)
	members, of, size := make(map[string]player, len(names)), map[string]int{}, []int(nil)
	for id, name := range names {
		l, known := of[top(name)]
		if !known {
			l = len(size)
			of[top(name)], size = l, append(size, 0)
		}
		members[name] = player{id, l, size[l]}
		size[l]++
	}
	return members, size
}

// rounds is how many it takes that each of n plays each other once. Where they are odd, one is idle in each.
func rounds(n int) int { return n + n%2 - 1 }

// slotOf is when of n src is home to dst. In round r, members r+k and r-k play each other, counted without the last one, which plays
// against r itself. Who is home is turned from each k to the next, and so for all from one round to the next but for the one whose
// k is 0 between. In the second half all are turned, and it begins with the second round: those of the first would have three
// alike in a row else.
func slotOf(src, dst, n int) int {
	m := rounds(n)
	less, more := min(src, dst), max(src, dst)
	r, home := less, more
	if more < m || n%2 == 1 {
		r = (less + more) * ((m + 1) / 2) % m
		k := (less - r + m) % m
		home = less
		if k > m/2 {
			k, home = m-k, more
		}
		if k%2 == 0 {
			home = less + more - home
		}
	} else if r%2 == 1 {
		home = less
	}
	if home == src {
		return r
	}
	return m + (r+m-1)%m
}

// facingOf returns of each pair which is the opposite one, -1 where there is none.
func facingOf(pairs []plan.Pair) []int {
	type ends [2]string
	place := make(map[ends]int, len(pairs))
	for i := range pairs {
		place[ends{pairs[i].Src.Ref(), pairs[i].Dst.Ref()}] = i
	}
	facing := make([]int, len(pairs))
	for i := range pairs {
		o, known := place[ends{pairs[i].Dst.Ref(), pairs[i].Src.Ref()}]
		if !known {
			o = -1
		}
		facing[i] = o
	}
	return facing
}

// goRound sends the probes whose turn it is. A pair whose turn it is and whose instances lack a token
// keeps others from taking it: else those instances that once went together get theirs at the same
// times, and go together for ever. One of which an instance lacks more, since it was examined, keeps nobody: all have a pair with
// that one. None goes where the opposite pair is examined, or is about to be: that
// would take from the examination what both have in common, the wire and the pace.
func (c *continuous) goRound(now time.Time) {
	r := &c.round
	if !c.patrol.ready() || now.Sub(c.took) < goEvery+time.Duration(len(r.order))*time.Microsecond || len(c.patrol.x.queue) >= maxFlying {
		return
	}
	c.took = now
	var may, rest []uint32
	burst := float64(c.r.cfg.PerInstanceBurst)
	all := c.r.pace.means(c.shared, max(1, patrolShare*burst), max(1, testShare*burst), now)
	own := c.own.means(c.lanes, 1, 1-owed, now)
	taken := map[*bucket]bool{}
	for at, n := range r.order {
		p, l := &c.pairs[n], &c.lanes[n]
		if c.faces(n, now) || !p.idle() || taken[l.src] || taken[l.dst] {
			rest = append(rest, n)
			continue
		}
		hurried, regular := p.hurried && all[n].some && own[n].some, all[n].rich && own[n].rich
		if all[n].nearly && own[n].nearly || p.hurried && all[n].almost && own[n].almost {
			taken[l.src], taken[l.dst] = true, true
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
	go_, held := c.own.pick(may, func(n uint32) lane { return c.lanes[n] }, func(n uint32) float64 {
		if c.pairs[n].hurried {
			return -owed
		}
		return 0
	}, now)
	for _, n := range go_ {
		c.own.free(c.lanes[n])
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
