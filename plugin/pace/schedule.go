package pace

import (
	"cmp"
	"slices"

	"github.com/dyetrace/dyetrace/plugin/plan"
)

// Schedule is the order in which a patrol goes round its pairs. It is that of a tournament in which each plays each other at home and away: among
// instances that all reach all, as many pairs as there can be have the same slot; an instance is source and destination by
// turns, since one that has fallen silent shows only as the latter, and it is so in three slots at the least; and but for those of the
// first slot, the opposite of a pair comes half a round after it, since either probe passes most of what the other passes. (It
// is the circle method, as de Werra oriented it: Geography, games and graphs, 1980.)
type Schedule struct {
	Order     []uint32 // pairs, who is next first
	Facing    []int    // by pair: the opposite one, which has the same wire; -1 for none
	Src, Dst  []int    // by pair: its source and destination, of so many
	Instances int
}

// NewSchedule returns that of pairs.
func NewSchedule(pairs []plan.Pair) Schedule {
	names, league := leagues(pairs)
	s := Schedule{make([]uint32, len(pairs)), facingOf(pairs), make([]int, len(pairs)), make([]int, len(pairs)), len(names)}
	at := make([]int, len(pairs))
	for i := range pairs {
		src, dst := names[pairs[i].Src.Ref()], names[pairs[i].Dst.Ref()]
		s.Order[i], s.Src[i], s.Dst[i], at[i] = uint32(i), src.id, dst.id, slotOf(src.number, dst.number, league[src.league])
	}
	slices.SortStableFunc(s.Order, func(a, b uint32) int { return cmp.Compare(at[a], at[b]) })
	return s
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
