package pace

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
)

// players are all ordered pairs of so many instances, in an order at random.
func players(network string, n int) (pairs []plan.Pair) {
	for src := range n {
		for dst := range n {
			if src != dst {
				pairs = append(pairs, plan.Pair{Src: inventory.Instance{Network: network, Name: fmt.Sprintf("i%03d", src)}, Dst: inventory.Instance{Network: network, Name: fmt.Sprintf("i%03d", dst)}})
			}
		}
	}
	rand.Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
	return pairs
}

// TestSchedule: as many at a time as there can be, and each is destination again and again.
func TestSchedule(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 3, 4, 5, 8, 13, 14, 50, 51} {
		pairs := players("net", n)
		s := NewSchedule(pairs)
		names, _ := leagues(pairs)
		slots := 2 * rounds(n)
		of := func(k int) int { return slotOf(names[pairs[k].Src.Ref()].number, names[pairs[k].Dst.Ref()].number, n) }
		at, busy := map[string][]int{}, map[int]map[string]bool{}
		for _, k := range s.Order {
			slot := of(int(k))
			if busy[slot] == nil {
				busy[slot] = map[string]bool{}
			}
			src, dst := pairs[k].Src.Ref(), pairs[k].Dst.Ref()
			if busy[slot][src] || busy[slot][dst] {
				t.Fatalf("%d instances: %s → %s in slot %d, where one of them has a turn already", n, src, dst, slot)
			}
			busy[slot][src], busy[slot][dst] = true, true
			at[dst] = append(at[dst], slot)
			if apart := (of(s.Facing[k]) - slot + slots) % slots; n > 3 && slot%rounds(n) > 0 && slot != slots-1 && min(apart, slots-apart) != slots/2-1 {
				t.Errorf("%d instances: the opposite of slot %d comes %d of %d slots after it", n, slot, apart, slots)
			}
		}
		if len(busy) != slots {
			t.Errorf("%d instances: turns in %d slots, want %d", n, len(busy), slots)
		}
		for dst, in := range at {
			for i := range in {
				if gap := (in[(i+1)%len(in)]-in[i]+slots-1)%slots + 1; gap > 3 {
					t.Errorf("%d instances: %s is destination in slot %d, and not for %d", n, dst, in[i], gap)
				}
			}
		}
	}
}
