package run

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// firstAfter plays a continuous run of a town that breaks, and returns how long after the first probe that was lost
// the first change of a verdict was told, and all pairs of which one was.
func firstAfter(t *testing.T, w *town, broken func(pair string, p *plan.Path, point int) bool, want dyetracev1.Verdict, during func()) (first time.Duration, pairs map[string]bool) {
	t.Helper()
	const broke, long = 20 * time.Second, 40 * time.Second
	cfg := testConfig
	cfg.PerInstanceBurst = 20
	all, _, _ := watchTown(t, w, cfg, &dyetracev1.ProbeOptions{}, long, func() {
		time.Sleep(broke)
		w.change(func(w *town) { w.lost = broken })
		if during != nil {
			during()
		}
	})
	pairs = map[string]bool{}
	for _, a := range all {
		if a.at <= broke {
			continue
		}
		name := a.r.GetSrc().GetName() + " " + a.r.GetDst().GetName()
		if a.r.GetVerdict() != want {
			t.Errorf("%v: %s is %v: %s", a.at, name, a.r.GetVerdict(), a.r.GetCause())
		}
		if pairs[name] = true; first == 0 {
			first = a.at - a.r.GetSince().AsTime().Sub(time.Now().Add(-long))
		}
	}
	return first, pairs
}

// A guest that falls silent is told of once the first examination has been patient: what would show an answer without the
// stain's ToS is in place before its first probe, as the patrol's was delivered and not answered. Where no probe has told
// so before, since something else made the pairs suspect, it is in place before the second, and no pair is told to be unknown.
// That all was slow once is no matter when it has been quick eight times since.
func TestContinuousGuestFallsSilent(t *testing.T) {
	t.Parallel()
	for _, of := range []struct{ moved, wasSlow bool }{{}, {moved: true}, {wasSlow: true}} {
		moved := of.moved
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, site(t, 8))
			w.auto, w.delivers = true, "tap1"
			if of.wasSlow {
				w.slow = map[string]time.Duration{}
				for i := range 8 {
					w.slow[fmt.Sprintf("i%d i1", i)] = 200 * time.Millisecond
				}
				time.AfterFunc(5*time.Second, func() { w.change(func(w *town) { w.slow = nil }) })
			}
			broken := func(pair string, p *plan.Path, point int) bool {
				return strings.HasSuffix(pair, " i1") && p.Points[point].Direction == plan.Reply
			}
			before, least := 0, 500*time.Millisecond // of a patience of 750, where it is known how long probes take; all three begin at one time
			most := least + 2*minSettle
			if moved { // they may take another way, which may be a slow one; and are silent twice
				least = 750 * time.Millisecond
				most = 2*least + 2*minSettle + 3*examSettle
			}
			first, pairs := firstAfter(t, w, broken, dyetracev1.Verdict_VERDICT_SILENT, func() {
				w.change(func(w *town) {
					if before = w.armed; moved {
						w.snap = portsMoved(t, 8, "hv2")
					}
				})
			})
			if len(pairs) != 7 {
				t.Errorf("%+v: told of %v; want all 7 that go to i1", of, pairs)
			}
			if first <= least || first > most {
				t.Errorf("%+v: told %v after the first probe that was lost; want more than a patience of %v, and at most %v", of, first, least, most)
			}
			if before != 0 || w.armed == 0 {
				t.Errorf("%+v: %d times was a host asked for what shows answers before the guest was silent, and %d times in all", of, before, w.armed)
			}
		})
	}
}

// TestLeaves has a test of how much a pair loses leave tokens to others, but for what follows a lost probe.
func TestLeaves(t *testing.T) {
	t.Parallel()
	pairs, paths := pathsOf(t, site(t, 2), plan.Scope{Kind: plan.OnePair, Src: "i0", Dst: "i1"})
	c := newCastOf(paths, options{scheme: stain.TCP})
	o := c.options()
	o.prior = map[uint32]*prior{}
	x := newExecution(&testConfig, pace.New(10, 20), c.metrics, slog.New(slog.DiscardHandler), pairs, c.paths, []uint32{100}, o, stain.Key{1}, time.Minute, time.Now(), c.begin)
	for n, tt := range []struct {
		arrives bool
		leaves  float64 // of the next one
	}{{false, 0}, {true, 4}, {true, 4}, {false, 0}, {false, 0}, {true, 4}} {
		number, ok := x.ledger.another(0)
		if !ok {
			t.Fatal("no room")
		}
		x.ledger.begin(0)
		x.ledger.ask(number)
		x.ledger.leave(number)
		if tt.arrives {
			for host, m := range c.see([]uint32{number}) {
				for i := range m.Index {
					x.ledger.see(host, x.ledger.bridges[m.Bridges[m.Bridge[i]]], m, i)
				}
			}
		}
		x.ledger.look(number)
		if next, _ := x.ledger.another(0); x.leaves(next) != tt.leaves {
			t.Errorf("after probe %d, which arrives: %t, the next one leaves %g tokens, want %g", n, tt.arrives, x.leaves(next), tt.leaves)
		}
	}
	x.release(time.Now())
}

// portsMoved is a site where the instances' ports on some hosts have other numbers: all their pairs are suspect.
func portsMoved(t *testing.T, n int, hosts ...string) *inventory.Snapshot {
	return siteOf(t, n, func(h *inventory.Host) {
		if slices.Contains(hosts, h.Name) {
			for _, e := range h.Endpoints {
				e.Ofport += 100
			}
		}
	})
}

// Where a fault has many pairs of the same instances, the first ones that are examined have all the probes that prove
// it, before others have any.
func TestContinuousManyAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 16))
		w.auto, w.passes = true, true
		between := func(p *plan.Path) bool { return strings.Contains("hv1 hv2 hv1", p.From.Host+" "+p.To.Host) }
		broken := func(_ string, p *plan.Path, point int) bool { return between(p) && p.Points[point].Host != p.From.Host }
		first, pairs := firstAfter(t, w, broken, dyetracev1.Verdict_VERDICT_FAULTY, func() {
			w.change(func(w *town) { w.snap = portsMoved(t, 16, "hv1", "hv2") })
		})
		if len(pairs) != 2*4*4 {
			t.Errorf("told of %d pairs: %v; want the 32 between hv1 and hv2", len(pairs), pairs)
		}
		if most := 750*time.Millisecond + 2*minSettle + 4*examSettle; first > most {
			t.Errorf("told %v after the first probe that was lost; want at most %v", first, most)
		}
	})
}

// Hosts that take long to be ready, and to answer to an audit, are not asked for more all the time: the examinations of
// what becomes suspect meanwhile are one, once it is known how long they take.
func TestContinuousSpares(t *testing.T) {
	t.Parallel()
	const long = 40 * time.Second
	begun := func(t *testing.T, unready time.Duration) (examinations, audits int) {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, site(t, 8))
			w.unready = unready
			chance := rand.New(rand.NewPCG(1, 1))
			w.lose = func(string, stain.Scheme, int) bool { return chance.IntN(10) == 0 }
			_, _, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, long, func() {})
			examinations, audits = int(c.begun), w.audited
		})
		return examinations, audits
	}
	const unready, hosts = 4 * time.Second, 4
	quick, often := begun(t, 0)
	slow, seldom := begun(t, unready)
	if most := int(long/unready) + maxExams; slow > most || quick < 2*most {
		t.Errorf("%d examinations in %v where agents take %v to be ready, want at most %d, and where they are at once %d, want more than twice that", slow, long, unready, most, quick)
	}
	if most := hosts * (2 + int(long/(auditTimes*unready))); seldom > most || often < 2*most {
		t.Errorf("%d audits in %v where each takes %v, want at most %d, and where they take no time %d, want more than twice that", seldom, long, unready, most, often)
	}
}

// A pair that is known to be on a slow way, among many that are not, is not examined whenever it is probed.
func TestContinuousSlowPair(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 8))
		w.slow = map[string]time.Duration{"i0 i1": 190 * time.Millisecond}
		all, _, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, time.Minute, func() {})
		for _, a := range all {
			if a.r.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
				t.Errorf("%v: %s → %s: %v: %s", a.at, a.r.GetSrc().GetName(), a.r.GetDst().GetName(), a.r.GetVerdict(), a.r.GetCause())
			}
		}
		// One for its first probe, and those for what is late with it.
		if c.begun > 5 || w.count["i0 i1"] < 30 {
			t.Errorf("%d examinations, want that of the beginning and hardly another; the pair was probed %d times, want 30 and more", c.begun, w.count["i0 i1"])
		}
	})
}

// A guest whose link goes down is told of as soon as probes have settled: that is not silence, which may be lateness.
func TestContinuousLinkDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 8))
		w.auto, w.delivers = true, "tap1"
		broken := func(pair string, p *plan.Path, point int) bool {
			return strings.HasSuffix(pair, " i1") && p.Points[point].Direction == plan.Reply
		}
		first, pairs := firstAfter(t, w, broken, dyetracev1.Verdict_VERDICT_SILENT, func() {
			w.change(func(w *town) {
				w.snap = siteOf(t, 8, func(h *inventory.Host) {
					for _, e := range h.Endpoints {
						if e.Port == "tap1" {
							e.LinkState = "down"
						}
					}
				})
			})
		})
		if len(pairs) != 14 || first > 6*examSettle {
			t.Errorf("told of %v, the first %v after; want all 14 that i1 has, and the first within %v", pairs, first, 6*examSettle)
		}
	})
}
