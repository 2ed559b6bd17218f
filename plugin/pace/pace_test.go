package pace

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
)

// TestPace has probes take their instances' tokens, and wait for more.
func TestPace(t *testing.T) {
	t.Parallel()
	pairs := players("net", 3) // 6 pairs, each instance in 4
	p := New(10, 2)
	now := time.Unix(1000, 0)
	lanes := p.Join(pairs, now)
	queue := []uint32{0, 1, 2, 3, 4, 5}
	laneOf := func(n uint32) Lane { return lanes[n] }
	sent := map[time.Duration]int{}
	began := now
	for len(queue) > 0 && now.Sub(began) < 10*time.Second {
		var ready []uint32
		ready, queue = p.Pick(queue, laneOf, nil, now)
		sent[now.Sub(began)] += len(ready)
		for _, n := range ready {
			p.Free(lanes[n])
		}
		now = now.Add(50 * time.Millisecond)
	}
	// Each instance is in four pairs and has two tokens: three probes take them all. Each 100 ms
	// there is one more, and a probe needs one of both its instances.
	if sent[0] != 3 || sent[50*time.Millisecond] != 0 || len(queue) > 0 || now.Sub(began) < 200*time.Millisecond {
		t.Errorf("sent %v, %d are left", sent, len(queue))
	}
	if got, want := p.Needs(pairs, 1), 200*time.Millisecond; got != want {
		t.Errorf("needs = %v, want %v", got, want)
	}
	other := p.Join(pairs[:1], now)
	p.Leave(lanes, now)
	if len(p.buckets) != 3 {
		t.Errorf("%d buckets; those that are not full must stay, or a second run would find them so", len(p.buckets))
	}
	p.Leave(other, now.Add(time.Hour))
	if len(p.buckets) != 0 {
		t.Errorf("%d buckets are left", len(p.buckets))
	}
}

// TestPaceLeaves has probes leave tokens to others, and others owe some.
func TestPaceLeaves(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	for _, tt := range []struct {
		leave float64
		want  int // of a burst of 6
		later int // a second after, at 3 a second
	}{{0, 6, 3}, {2, 4, 3}, {6, 0, 0}, {-4, 10, 3}} {
		p := New(3, 6)
		var pairs []plan.Pair
		var queue []uint32
		for i := range 20 {
			pairs = append(pairs, plan.Pair{Src: inventory.Instance{Name: "a", Host: "hv1"}, Dst: inventory.Instance{Name: fmt.Sprint(i), Host: "hv2"}})
			queue = append(queue, uint32(i))
		}
		lanes := p.Join(pairs, now)
		pick := func(now time.Time) (ready []uint32) {
			ready, queue = p.Pick(queue, func(n uint32) Lane { return lanes[n] }, func(uint32) float64 { return tt.leave }, now)
			return ready
		}
		if ready := pick(now); len(ready) != tt.want {
			t.Errorf("%d probes go that leave %g tokens, want %d", len(ready), tt.leave, tt.want)
		}
		if ready := pick(now.Add(time.Second)); len(ready) != tt.later {
			t.Errorf("%d probes go a second after, that leave %g tokens, want %d", len(ready), tt.leave, tt.later)
		}
	}
}

// TestPaceUnderWay bounds what is under way at one time: one probe between two instances, in either
// direction, and so many from one host.
func TestPaceUnderWay(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	p := New(1e6, 1e6)
	there := plan.Pair{Src: inventory.Instance{Name: "a", Host: "hv1"}, Dst: inventory.Instance{Name: "b", Host: "hv2"}}
	back := plan.Pair{Src: there.Dst, Dst: there.Src}
	other := p.Join([]plan.Pair{back}, now) // of another run
	lanes := p.Join([]plan.Pair{there, back}, now)
	laneOf := func(n uint32) Lane { return lanes[n] }
	ready, rest := p.Pick([]uint32{0, 1}, laneOf, nil, now)
	if !slices.Equal(ready, []uint32{0}) || !slices.Equal(rest, []uint32{1}) {
		t.Errorf("opposite pairs: %v may go, %v wait", ready, rest)
	}
	if ready, _ := p.Pick([]uint32{0}, func(uint32) Lane { return other[0] }, nil, now); len(ready) != 0 {
		t.Error("another run's probe goes in the opposite direction")
	}
	p.Free(lanes[0])
	if ready, _ := p.Pick(rest, laneOf, nil, now); len(ready) != 1 {
		t.Error("the opposite pair may not go, though the first is over")
	}
	p.Free(lanes[1])

	var many []plan.Pair
	var queue []uint32
	for i := range MaxFlying + 3 {
		many = append(many, plan.Pair{Src: there.Src, Dst: inventory.Instance{Name: fmt.Sprint(i), Host: "hv2"}})
		queue = append(queue, uint32(i))
	}
	lanes = append(lanes, other...)
	all := p.Join(many, now)
	ready, rest = p.Pick(queue, func(n uint32) Lane { return all[n] }, nil, now)
	if len(ready) != MaxFlying || len(rest) != 3 {
		t.Errorf("%d probes of one host at once, want %d", len(ready), MaxFlying)
	}
	if m := p.Means(append([]Lane{lanes[1]}, all[:1]...), Alike(1), 1, now); m[0].Full || !m[1].Full {
		t.Errorf("%+v; want the window of hv1 alone to be full", m)
	}
	for _, n := range ready {
		p.Free(all[n])
	}
	p.Leave(append(lanes, all...), now.Add(time.Hour))
	if n := len(p.buckets) + len(p.wires) + len(p.hosts); n != 0 {
		t.Errorf("%d things are left of runs that are over", n)
	}
}

// Who waits for a wire has it next, however often another one looks; who looks no more, or leaves, is not waited
// for.
func TestPaceTurns(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	p := New(1e6, 1e6)
	there := plan.Pair{Src: inventory.Instance{Name: "a", Host: "hv1"}, Dst: inventory.Instance{Name: "b", Host: "hv2"}}
	back := plan.Pair{Src: there.Dst, Dst: there.Src}
	var all [3][]Lane
	for i, pair := range []plan.Pair{there, back, there} {
		all[i] = p.Join([]plan.Pair{pair}, now)
	}
	// goes has one look whether it may go, and says so.
	goes := func(i int) bool {
		ready, _ := p.Pick([]uint32{0}, func(uint32) Lane { return all[i][0] }, nil, now)
		return len(ready) > 0
	}
	if !goes(0) || goes(1) || goes(2) {
		t.Fatal("the first may go, and no other")
	}
	for turn := range 6 { // 0 looks all the time
		p.Free(all[turn%3][0])
		next := (turn + 1) % 3
		for i := range 3 {
			if i != next && goes(i) {
				t.Fatalf("turn %d: %d goes, and %d waits for longer", turn, i, next)
			}
		}
		if !goes(next) {
			t.Fatalf("turn %d: %d may not go", turn, next)
		}
		goes(turn % 3) // the last one wants it again
	}
	p.Free(all[0][0])
	now = now.Add(claimFor + 1) // 1 looks no more
	if !goes(2) {
		t.Fatal("waits for one that looks no more")
	}
	goes(1)
	p.Free(all[2][0])
	p.Leave(all[1], now)
	if !goes(0) {
		t.Fatal("waits for one that has left")
	}
}
