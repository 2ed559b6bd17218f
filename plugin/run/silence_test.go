package run

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/plan"
)

// uplinkDown has all be lost that goes to a host from another, or comes from it; what agents exchange by UDP, too.
func uplinkDown(host string) (func(string, *plan.Path, int) bool, func(string, *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport) {
	return func(_ string, p *plan.Path, point int) bool {
		if point == 0 {
			return false
		}
		a, b := p.Points[point-1].Host, p.Points[point].Host
		return a != b && (a == host || b == host)
	}, underlayOf(everything)
}

// TestContinuousSilence has a host's uplink go down, and streams say so: all pairs with it are named, for what the
// underlay does, sooner than a patrol's round could; no other is told of; and when it is up again all are healthy as soon. An
// agent that tells of no silence has it take longer.
func TestContinuousSilence(t *testing.T) {
	t.Parallel()
	first := map[bool]time.Duration{}
	there := func(r *dyetracev1.InstanceRef) bool { return r.Name == "i1" || r.Name == "i5" } // on hv2
	for _, tells := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, streamable(t, 8))
			w.network, w.passes, w.auto = newSimNetwork(), true, true
			const broke, healed = 20 * time.Second, 40 * time.Second
			start := time.Now()
			all, f, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 60*time.Second, func() {
				time.Sleep(broke)
				w.change(func(w *town) { w.lost, w.underlay = uplinkDown("hv2") })
				if tells {
					w.network.hush("hv2", true)
				}
				time.Sleep(time.Until(start.Add(healed)))
				w.change(func(w *town) { w.lost = nil })
				if tells {
					w.network.hush("hv2", false)
				}
			})
			named, healthy := map[string]time.Duration{}, map[string]time.Duration{}
			for _, a := range all[56:] {
				pair := a.r.Src.Name + " " + a.r.Dst.Name
				switch {
				case a.r.Verdict == dyetracev1.Verdict_VERDICT_HEALTHY:
					healthy[pair] = a.at - healed
				case a.r.CauseKind != dyetracev1.CauseKind_CAUSE_KIND_UNDERLAY || there(a.r.Src) == there(a.r.Dst):
					t.Errorf("signs %t: %v after: %s → %s: %v: %s", tells, a.at-broke, a.r.Src.Name, a.r.Dst.Name, a.r.Verdict, a.r.Cause)
				default:
					named[pair] = a.at - broke
				}
			}
			// Two instances there, six elsewhere, both directions.
			if len(named) != 24 || len(healthy) != 24 {
				t.Fatalf("signs %t: %d pairs are named, %d are healthy again, want 24", tells, len(named), len(healthy))
			}
			least, most, last := time.Hour, time.Duration(0), time.Duration(0)
			for _, d := range named {
				least, most = min(least, d), max(most, d)
			}
			for _, d := range healthy {
				last = max(last, d)
			}
			t.Logf("signs %t: named after %v to %v, healthy after %v; %d examinations", tells, least, most, last, c.begun)
			if first[tells] = least; tells && least > 1300*time.Millisecond {
				t.Errorf("named after %v", least)
			}
			if p := f.since(0); p.run.Counts.Healthy != 56 {
				t.Errorf("at the end: %v", p.run.Counts)
			}
		})
	}
	if first[true] >= first[false] {
		t.Errorf("named after %v with a sign, after %v without", first[true], first[false])
	}
}

// TestContinuousSilenceFlaps has a stream be silent and answered in turns for a minute, while nothing is lost: it accuses
// nobody, and keeps examinations busy less and less.
func TestContinuousSilenceFlaps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, streamable(t, 8))
		w.network = newSimNetwork()
		start := time.Now()
		const calm, until = 20 * time.Second, 80 * time.Second
		all, f, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, until+10*time.Second, func() {
			time.Sleep(calm)
			for time.Since(start) < until {
				w.network.hush("hv2", true)
				time.Sleep(100 * time.Millisecond)
				w.network.hush("hv2", false)
				time.Sleep(45 * time.Millisecond)
			}
		})
		for _, a := range all[56:] {
			t.Errorf("%v: %s → %s: %v: %s", a.at, a.r.Src.Name, a.r.Dst.Name, a.r.Verdict, a.r.Cause)
		}
		if p := f.since(0); p.run.Counts.Healthy != 56 {
			t.Errorf("at the end: %v", p.run.Counts)
		}
		// After 0, 2, 6, 14, 30 and 60 s, and when each is over; one besides for the beginning.
		if c.begun < 6 || c.begun > 1+2*6 {
			t.Errorf("%d examinations in a minute with 300 signs from each of three streams", c.begun)
		}
	})
}

// A silence is due once, and again after twice as long each time, and as at first when there was none for a minute.
func TestSilenceDue(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := &silence{from: "hv1", to: "hv2"}
	quiet, loud := &fleet.StreamCount{Silent: 9, SilentFor: 40 * time.Millisecond}, &fleet.StreamCount{}
	if begins, ends := s.hears(loud, now); begins || ends {
		t.Error("answers are a silence, or end one that there was not")
	}
	var gaps []time.Duration
	last := now
	for range 8 {
		begins, ends := s.hears(quiet, now)
		if again, _ := s.hears(quiet, now.Add(time.Second)); !begins || ends || again || !s.since.Equal(now.Add(-40*time.Millisecond)) {
			t.Fatalf("begins %t, ends %t, begins twice %t, since %v", begins, ends, again, s.since)
		}
		at := s.due()
		gaps = append(gaps, at.Sub(last))
		last = at
		s.heed(at)
		if begins, ends := s.hears(loud, at); begins || !ends {
			t.Fatalf("begins %t, ends %t when it is answered", begins, ends)
		}
		now = at.Add(time.Millisecond)
	}
	want := []time.Duration{signsWithin, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, lastGap, lastGap, lastGap}
	for i := range want {
		if gaps[i] != want[i] {
			t.Fatalf("due after %v, want %v", gaps, want)
		}
	}
	s.hears(quiet, now)
	if _, ends := s.hears(loud, now.Add(time.Second)); ends {
		t.Error("one for which nothing was examined ends as if it had been")
	}
	now = now.Add(signless + 2*time.Second)
	if s.hears(quiet, now); s.due().Sub(now) > signsWithin {
		t.Errorf("after a minute without a sign: due after %v", s.due().Sub(now))
	}
}

// TestSuspectBetween has many pairs pass between two hosts: so many are examined at once as their instances have tokens
// for, and the others are next in the round.
func TestSuspectBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		snap := streamable(t, 80)
		w := newTown(t, snap)
		cfg := testConfig
		cfg.Fleet, cfg.Book, cfg.Log = w, w, slog.New(slog.DiscardHandler)
		r := New(cfg)
		pairs, paths := pathsOf(t, snap, allPairs)
		j := job{pairs: pairs, options: optionsFromProto(&dyetracev1.ProbeOptions{Continuous: true}), continuous: true}
		for i := range pairs {
			j.seq = append(j.seq, uint32(i))
		}
		f := newFeed(&dyetracev1.Run{Counts: &dyetracev1.Counts{}}, nil)
		c := newContinuous(r, j, cfg.Log, f, time.Now())
		crossing := 0
		for i := range c.pairs {
			c.paths[i] = &paths[i]
			c.pairs[i].suspect = false
			if a, b := pairs[i].Src.Host, pairs[i].Dst.Host; a != b && (a == "hv1" || a == "hv2") && (b == "hv1" || b == "hv2") {
				crossing++
			}
		}
		c.suspectBetween(&silence{from: "hv2", to: "hv1"}, time.Now(), func(*standing) bool { return true })
		of, all := map[string]int{}, 0
		for i := range c.pairs {
			if c.pairs[i].suspect {
				all++
				of[pairs[i].Src.Name]++
				of[pairs[i].Dst.Name]++
				if a, b := pairs[i].Src.Host, pairs[i].Dst.Host; a == b || a > "hv2" || b > "hv2" {
					t.Errorf("%s → %s is suspect", pairs[i].Src.Name, pairs[i].Dst.Name)
				}
			}
		}
		for name, n := range of {
			if n > cfg.PerInstanceBurst/2 {
				t.Errorf("%d pairs of %s are suspect, by a burst of %d", n, name, cfg.PerInstanceBurst)
			}
		}
		if want := 20 * cfg.PerInstanceBurst / 2; all != want || crossing != 800 {
			t.Errorf("%d of %d pairs are suspect, want %d of 800", all, crossing, want)
		}
		for k, n := range c.round[:maxHurried] {
			if a, b := pairs[n].Src.Host, pairs[n].Dst.Host; a == b || a > "hv2" || b > "hv2" || c.pairs[n].suspect {
				t.Fatalf("number %d in the round is %s → %s, suspect %t", k, pairs[n].Src.Name, pairs[n].Dst.Name, c.pairs[n].suspect)
			}
		}
		r.pace.leave(c.shared, time.Now())
	})
}
