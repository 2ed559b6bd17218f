package run

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
)

func TestRecent(t *testing.T) {
	t.Parallel()
	var r recent
	if r.quickest() != 0 || r.slowest() != 0 {
		t.Errorf("of none: quickest %v, slowest %v", r.quickest(), r.slowest())
	}
	for i, c := range []struct{ add, quickest, slowest time.Duration }{
		{5, 5, 5}, {9, 5, 9}, {1, 1, 9}, {2, 1, 9}, {3, 1, 3}, {1, 1, 3}, {1, 1, 3}, {1, 1, 1}, {7, 1, 7}, {7, 1, 7}, {7, 7, 7},
	} {
		r.add(c.add, 3)
		if r.quickest() != c.quickest || r.slowest() != c.slowest {
			t.Errorf("after %d: quickest %d, want %d; slowest %d, want %d", i+1, r.quickest(), c.quickest, r.slowest(), c.slowest)
		}
	}
}

// How long a probe is waited for: by its own pair's way and its own hosts, no longer than they are slow.
func TestWaitFor(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	path := func(from string, port uint32, to string, at uint32) *plan.Path {
		return &plan.Path{From: plan.End{Host: from, OFPort: port}, To: plan.End{Host: to, OFPort: at}}
	}
	// Pairs 0 and 1 are between instances of hosts a and b, 2 between a and c, 3 between d and e.
	c := &continuous{r: &Runner{cfg: Config{Settle: 750 * ms}, metrics: newMetrics(nil)}, trips: newTrips(), pairs: make([]standing, 4),
		paths: []*plan.Path{path("a", 1, "b", 1), path("b", 1, "a", 2), path("a", 1, "c", 1), path("d", 1, "e", 1)}}
	all := []int{0, 1, 2, 3}
	want := func(what string, waits [4]time.Duration, exam time.Duration) {
		t.Helper()
		for i, w := range waits {
			if got := c.waitFor(i); got != w {
				t.Errorf("%s: pair %d is waited for %v, want %v", what, i, got, w)
			}
		}
		if got := c.settleOf(all); got != exam {
			t.Errorf("%s: an examination waits %v, want %v", what, got, exam)
		}
	}
	want("nothing known", [4]time.Duration{750 * ms, 750 * ms, 750 * ms, 750 * ms}, 750*ms)
	times := func(n int, rtt, took time.Duration, pairs ...int) {
		for range n {
			for _, i := range pairs {
				c.trip(i, rtt, took)
			}
		}
	}
	times(40, 1*ms, 3*ms, all...)
	want("quick", [4]time.Duration{25 * ms, 25 * ms, 25 * ms, 25 * ms}, 30*ms)
	times(1, 300*ms, 302*ms, 0)
	times(1, 1*ms, 3*ms, 1, 2)
	want("one took long, and others did not", [4]time.Duration{25 * ms, 25 * ms, 25 * ms, 25 * ms}, 30*ms)
	times(1, 300*ms, 302*ms, 0)
	times(1, 1*ms, 3*ms, 1, 2)
	want("and again", [4]time.Duration{604 * ms, 25 * ms, 25 * ms, 25 * ms}, 100*ms)
	c.pairs[0].pressed = true
	want("a change names it", [4]time.Duration{25 * ms, 25 * ms, 25 * ms, 25 * ms}, 30*ms)
	c.pairs[0].pressed = false
	times(keptTrips, 1*ms, 3*ms, 0)
	want("quick again", [4]time.Duration{25 * ms, 25 * ms, 25 * ms, 25 * ms}, 30*ms)
	times(3, 300*ms, 302*ms, 0, 1)
	want("all between two hosts take long", [4]time.Duration{604 * ms, 604 * ms, 25 * ms, 25 * ms}, 100*ms)
	times(1, 1*ms, 3*ms, 1)
	want("and one does not", [4]time.Duration{604 * ms, 25 * ms, 25 * ms, 25 * ms}, 100*ms)
	times(1, 1*ms, 3*ms, 2)
	want("nor another to the first's instance", [4]time.Duration{25 * ms, 25 * ms, 25 * ms, 25 * ms}, 30*ms)
	times(keptTrips, 1*ms, 3*ms, all...)
	times(1, 1*ms, 51*ms, 2)
	want("a host was busy", [4]time.Duration{102 * ms, 102 * ms, 102 * ms, 25 * ms}, 51*ms)
	times(keptLags/2, 1*ms, 3*ms, 0, 1)
	want("one host is so no more", [4]time.Duration{25 * ms, 25 * ms, 102 * ms, 25 * ms}, 51*ms)
	for _, s := range []struct{ took, wait time.Duration }{{3 * ms, 25 * ms}, {60 * ms, 120 * ms}, {time.Second, 750 * ms}} {
		if times(1, 0, s.took, 3); c.wait() != s.wait {
			t.Errorf("after %v, any probe is waited for %v, want %v", s.took, c.wait(), s.wait)
		}
	}
}

// TestTripsOfAnotherWay: how long probes took is known as long as they pass the same points, though the guest's link goes down, and
// forgotten where they may take another way.
func TestTripsOfAnotherWay(t *testing.T) {
	t.Parallel()
	linkDown := func(h *inventory.Host) {
		for _, e := range h.Endpoints {
			if e.Port == "tap1" {
				e.LinkState = "down"
			}
		}
	}
	for _, tt := range []struct {
		name string
		snap *inventory.Snapshot
		kept bool
	}{{"link down", siteOf(t, 4, linkDown), true}, {"another port", portsMoved(t, 4, "hv2"), false}} {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, site(t, 4))
			w.auto, w.delivers = true, "tap1"
			_, _, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 12*time.Second, func() {
				time.Sleep(10 * time.Second)
				w.change(func(w *town) {
					w.snap = tt.snap
					w.lost = func(pair string, p *plan.Path, point int) bool {
						return strings.HasSuffix(pair, " i1") && p.Points[point].Direction == plan.Reply
					}
				})
			})
			for i, p := range c.job.pairs {
				if kept := c.pairs[i].rtts.last != nil; p.Dst.Name == "i1" && kept != tt.kept {
					t.Errorf("%s: how long probes of %v took is known: %t, want %t", tt.name, p, kept, tt.kept)
				}
			}
		})
	}
}

// TestWaitIsNoReasonToWait: probes that arrive, and of which a host shows nothing, are waited for in vain, and none the longer.
func TestWaitIsNoReasonToWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 4))
		w.late = 5 * time.Millisecond
		_, _, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 30*time.Second, func() {
			time.Sleep(10 * time.Second)
			w.change(func(w *town) { w.gone["hv2"] = true })
		})
		for i := range c.pairs {
			if d := c.waitFor(i); d > minSettle {
				t.Errorf("%v is waited for %v, want %v", c.job.pairs[i], d, minSettle)
			}
		}
	})
}
