package run

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
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
// underlay does, those of one direction within a second, and the opposite ones, whose wire they have, within two; no other is
// told of; and when it is up again all are healthy as soon. Agents that tell of no silence have it take longer.
func TestContinuousSilence(t *testing.T) {
	t.Parallel()
	there := func(r *dyetracev1.InstanceRef) bool { return r.Name == "i1" || r.Name == "i5" } // on hv2
	for _, scheme := range []dyetracev1.Scheme{dyetracev1.Scheme_SCHEME_UNSPECIFIED, dyetracev1.Scheme_SCHEME_TCP} {
		last := map[bool]time.Duration{}
		for _, tells := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, streamable(t, 8))
				w.network, w.passes, w.auto = newSimNetwork(), true, scheme == 0
				cfg := testConfig
				cfg.PerInstanceBurst = 20
				const broke, healed = 20 * time.Second, 40 * time.Second
				start := time.Now()
				all, f, c := watchTown(t, w, cfg, &dyetracev1.ProbeOptions{}, 60*time.Second, func() {
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
					case named[pair] == 0:
						named[pair] = a.at - broke
					}
				}
				// Two instances there, six elsewhere, both directions.
				if len(named) != 24 || len(healthy) != 24 {
					t.Fatalf("signs %t: %d pairs are named, %d are healthy again, want 24", tells, len(named), len(healthy))
				}
				took, heal := slices.Sorted(maps.Values(named)), slices.Max(slices.Collect(maps.Values(healthy)))
				t.Logf("%v, signs %t: named after %v, half %v, all %v; healthy after %v; %d examinations", scheme, tells, took[0], took[11], took[23], heal, c.begun)
				if last[tells] = took[23]; tells && (took[11] > time.Second || took[23] > 2*time.Second || heal > time.Second) {
					t.Errorf("named after %v, healthy after %v", took, heal)
				}
				if p := f.since(0); p.run.Counts.Healthy != 56 {
					t.Errorf("at the end: %v", p.run.Counts)
				}
			})
		}
		if last[true] >= last[false] {
			t.Errorf("all are named after %v with signs, after %v without", last[true], last[false])
		}
	}
}

// unheard has no host have heard any other before.
func unheard(of func(string, *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport) func(string, *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
	return func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
		r := of(host, m)
		r.FromOthersNs = 0
		return r
	}
}

// TestContinuousSilenceOnce has a patrol meet a fault before streams tell of it: the pair is examined once, and not again for
// the sign, so that one that is healed as soon as it is named is not held up. Whether others were heard before or not, it is the underlay: the stream was answered.
func TestContinuousSilenceOnce(t *testing.T) {
	t.Parallel()
	for phase := range 10 {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, streamable(t, 2))
			w.network, w.passes, w.auto = newSimNetwork(), true, true
			begun := 0
			all, _, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 40*time.Second, func() {
				time.Sleep(20*time.Second + time.Duration(phase)*10*time.Millisecond)
				w.change(func(w *town) {
					w.lost, w.underlay = uplinkDown("hv2")
					if phase%2 == 1 {
						w.underlay = unheard(w.underlay)
					}
					begun = w.begun
				})
				w.network.hush("hv2", true)
				time.Sleep(8 * time.Second) // they are examined again after 10
				w.change(func(w *town) { begun = w.begun - begun })
			})
			if len(all) != 4 || all[2].r.GetVerdict() != faulty || all[3].r.GetVerdict() != faulty {
				t.Fatalf("phase %d: told %v", phase, all)
			}
			for _, a := range all[2:] {
				if k := a.r.GetCauseKind(); k != dyetracev1.CauseKind_CAUSE_KIND_UNDERLAY {
					t.Errorf("phase %d: %v: %s; want the underlay", phase, k, a.r.GetCause())
				}
			}
			if begun > 2 {
				t.Errorf("phase %d: %d examinations of two pairs", phase, begun)
			}
		})
	}
}

// TestContinuousSilenceOfTested has a link go down while it is tested how much a pair loses that passes it: what was lost before is no matter
// any more, and the pair is named with the others.
func TestContinuousSilenceOfTested(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, streamable(t, 8))
		w.network, w.passes, w.auto = newSimNetwork(), true, true
		const tested, broke = 18 * time.Second, 20 * time.Second
		began := time.Now()
		w.lose = func(pair string, _ stain.Scheme, _ int) bool {
			at := time.Since(began)
			return pair == "i0 i1" && at > tested && at < tested+450*time.Millisecond
		}
		all, _, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 30*time.Second, func() {
			time.Sleep(broke)
			w.change(func(w *town) { w.lost, w.underlay = uplinkDown("hv2") })
			w.network.hush("hv2", true)
		})
		named := time.Duration(0)
		for _, a := range all {
			if a.r.Src.Name == "i0" && a.r.Dst.Name == "i1" && a.r.CauseKind == dyetracev1.CauseKind_CAUSE_KIND_UNDERLAY && named == 0 {
				named = a.at - broke
			}
		}
		if named <= 0 || named > 2*time.Second { // one patience, or two if it is the opposite pair that has the wire
			t.Errorf("named after %v, want 2s at the most", named)
		}
	})
}

// TestContinuousSilenceOfUDP has a firewall stop what agents exchange, and no tunnel: streams are silent, and exchanges say
// that nothing passes. Of what is sent each way most lose two probes in a row by chance, and one passes: it is witness that
// the others were not lost there for a reason.
func TestContinuousSilenceOfUDP(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, streamable(t, 8))
		w.network, w.passes, w.auto = newSimNetwork(), true, true
		w.underlay = underlayOf(everything)
		lost := 0
		all, _, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 30*time.Second, func() {
			time.Sleep(10 * time.Second)
			began := time.Now()
			w.change(func(w *town) {
				sent := map[string]int{}
				w.lose = func(pair string, _ stain.Scheme, _ int) bool {
					if since := time.Since(began); since < 40*time.Millisecond || since > 5*time.Second || !strings.ContainsAny(pair, "15") || !strings.ContainsAny(pair, "4567") {
						return false // i0 to i3 between themselves: one each way
					}
					if sent[pair]++; sent[pair] > 2 {
						return false
					}
					lost++
					return true
				}
			})
			w.network.hush("hv2", true)
			time.Sleep(10 * time.Second)
			w.network.hush("hv2", false)
		})
		for _, a := range all[56:] {
			t.Errorf("%v: %s → %s: %v: %s", a.at, a.r.Src.Name, a.r.Dst.Name, a.r.Verdict, a.r.Cause)
		}
		if c.begun < 2 || lost < 12 {
			t.Errorf("%d examinations, %d probes lost", c.begun, lost)
		}
	})
}

// TestWays follows probes of pairs on their way: how many died, whose, and that one which passes takes that back.
func TestWays(t *testing.T) {
	_, paths := pathsOf(t, streamable(t, 8), plan.Scope{Kind: plan.OnePair, Src: "i0", Dst: "i1"})
	p := &paths[0]
	first := func(host string, d plan.Direction) int {
		return slices.IndexFunc(p.Points, func(e plan.Expected) bool { return e.Host == host && e.Direction == d && e.Absent == "" })
	}
	there, back := first("hv2", plan.Forward), first("hv1", plan.Reply)
	if there < 1 || back <= there {
		t.Fatalf("points %v", p.Points)
	}
	before := func(k int) int {
		for k--; k >= 0 && p.Points[k].Absent != ""; k-- {
		}
		return k
	}
	w, by, t0 := newWays(), &pace.Party{}, time.Unix(1e9, 0)
	saw := func(number uint32, seen int, after time.Duration) {
		w.saw(p, seen, true, deadProbe{by, number}, death{seq: number / 10, sent: t0.Add(after)})
	}
	want := func(what, from, to string, since time.Duration, probes, pairs int) {
		t.Helper()
		if n, m := w.witnesses(from, to, t0.Add(since), 9); n != probes || m != pairs {
			t.Errorf("%s: from %s to %s %d probes of %d pairs died, want %d of %d", what, from, to, n, m, probes, pairs)
		}
	}
	saw(0, before(before(there)), 1)
	want("died before", "hv1", "hv2", 0, 0, 0)
	saw(10, before(there), 1)
	saw(11, before(there), 2)
	saw(20, before(there), 3)
	saw(90, before(there), 3)
	want("died there", "hv1", "hv2", 0, 3, 2)
	want("of late", "hv1", "hv2", 2, 1, 1)
	want("the other way", "hv2", "hv1", 0, 0, 0)
	saw(30, before(back), 4)
	want("answers died", "hv2", "hv1", 0, 1, 1)
	want("one passed", "hv1", "hv2", 0, 0, 0)
	saw(40, before(there), 5)
	saw(50, before(there), 6)
	want("since it passed", "hv1", "hv2", 4, 2, 2)
	saw(50, there, 6)
	want("it was late", "hv1", "hv2", 4, 0, 0)
	saw(60, before(there), keepDeaths+10)
	want("long ago", "hv1", "hv2", 6, 1, 1)
	if n := len(w.of[[2]string{"hv1", "hv2"}].died); n != 1 {
		t.Errorf("%d deaths are known after %v", n, keepDeaths)
	}
	var none *ways
	if _, is := none.hushed("hv1", "hv2"); is || none.news() != 0 {
		t.Error("a run that is not continuous knows of silence")
	}
}

// TestContinuousSilencePasses has an uplink be down for some hundred milliseconds, as a switch that is started anew: streams say so,
// and all probes of a first round are lost, and what else is sent. It is over before anybody can be accused.
func TestContinuousSilencePasses(t *testing.T) {
	t.Parallel()
	for _, down := range []time.Duration{150 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, streamable(t, 8))
			w.network, w.passes = newSimNetwork(), true
			cfg := testConfig
			cfg.PerInstanceBurst = 20
			all, _, c := watchTown(t, w, cfg, &dyetracev1.ProbeOptions{}, 30*time.Second, func() {
				time.Sleep(20 * time.Second)
				began := time.Now()
				w.change(func(w *town) { w.lost, w.underlay = uplinkDown("hv2") })
				w.network.hush("hv2", true)
				time.Sleep(time.Until(began.Add(down)))
				w.change(func(w *town) { w.lost = nil })
				time.Sleep(10 * time.Millisecond)
				w.network.hush("hv2", false)
			})
			for _, a := range all[56:] {
				t.Errorf("down for %v: %v: %s → %s: %v: %s", down, a.at, a.r.Src.Name, a.r.Dst.Name, a.r.Verdict, a.r.Cause)
			}
			if c.begun < 2 {
				t.Errorf("down for %v: %d examinations", down, c.begun)
			}
		})
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

// standingStill is a continuous run of all pairs that nobody runs.
func standingStill(t *testing.T, snap *inventory.Snapshot, opts *dyetracev1.ProbeOptions) (*continuous, []plan.Path) {
	t.Helper()
	w := newTown(t, snap)
	cfg := testConfig
	cfg.Fleet, cfg.Book, cfg.Log = w, w, slog.New(slog.DiscardHandler)
	pairs, paths := pathsOf(t, snap, allPairs)
	opts.Continuous = true
	j := job{pairs: pairs, options: optionsFromProto(opts), continuous: true}
	for i := range pairs {
		j.seq = append(j.seq, uint32(i))
	}
	return newContinuous(New(cfg), j, cfg.Log, newFeed(&dyetracev1.Run{Counts: &dyetracev1.Counts{}}, nil), time.Now()), paths
}

// TestSilenceOfLarge has a stream fall silent between two hosts of whose pairs it is not known what becomes of large packets: they are examined
// for it as healthy ones are, and what began before is given up. Those that are faulty are not.
func TestSilenceOfLarge(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		base *dyetracev1.PairResult
		want bool
	}{
		{&dyetracev1.PairResult{Verdict: dyetracev1.Verdict_VERDICT_HEALTHY}, true},
		{&dyetracev1.PairResult{Verdict: dyetracev1.Verdict_VERDICT_UNKNOWN, CauseKind: dyetracev1.CauseKind_CAUSE_KIND_UNSEEN, RttNs: 1}, true},
		{&dyetracev1.PairResult{Verdict: faulty, CauseKind: kindMTU, RttNs: 1}, true},
		{&dyetracev1.PairResult{Verdict: dyetracev1.Verdict_VERDICT_UNKNOWN, CauseKind: dyetracev1.CauseKind_CAUSE_KIND_UNSEEN}, false},
		{&dyetracev1.PairResult{Verdict: faulty, CauseKind: dyetracev1.CauseKind_CAUSE_KIND_FLOW}, false},
	} {
		c, paths := standingStill(t, streamable(t, 2), &dyetracev1.ProbeOptions{Mtu: true})
		c.streaming.silences = map[[2]string]*silence{}
		now, stopped := time.Now(), false
		c.exams[1] = &underExam{began: now.Add(-time.Minute), stop: func() { stopped = true }, open: 1}
		for i := range c.pairs {
			c.paths[i], c.pairs[i].suspect, c.pairs[i].base = &paths[i], false, tt.base
		}
		c.pairs[0].exam = 1
		c.hears(&fleet.StreamTarget{From: "hv1", To: "hv2"}, &fleet.StreamCount{Silent: 9, SilentFor: 40 * time.Millisecond}, now)
		c.heedSilences(now.Add(signsWithin))
		for i := range c.pairs {
			if p := &c.pairs[i]; p.suspect != tt.want {
				t.Errorf("%v: pair %d is suspect: %t, want %t", tt.base, i, p.suspect, tt.want)
			}
		}
		if stopped != tt.want {
			t.Errorf("%v: the examination before is given up: %t, want %t", tt.base, stopped, tt.want)
		}
	}
}

// TestSuspectBetween has many pairs pass between two hosts: so many are examined at once as their instances have tokens
// for, and the others are next in the round.
func TestSuspectBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		snap := streamable(t, 80)
		c, paths := standingStill(t, snap, &dyetracev1.ProbeOptions{})
		r, pairs, cfg := c.r, c.job.pairs, testConfig
		crossing := 0
		for i := range c.pairs {
			c.paths[i] = &paths[i]
			c.pairs[i].suspect = false
			if a, b := pairs[i].Src.Host, pairs[i].Dst.Host; a != b && (a == "hv1" || a == "hv2") && (b == "hv1" || b == "hv2") {
				crossing++
			}
		}
		c.suspectBetween(&silence{from: "hv2", to: "hv1"}, time.Now(), time.Now(), func(*standing) bool { return true })
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
		for k, n := range c.round.order[:maxHurried] {
			if a, b := pairs[n].Src.Host, pairs[n].Dst.Host; a == b || a > "hv2" || b > "hv2" || c.pairs[n].suspect {
				t.Fatalf("number %d in the round is %s → %s, suspect %t", k, pairs[n].Src.Name, pairs[n].Dst.Name, c.pairs[n].suspect)
			}
		}
		r.pace.Leave(c.shared, time.Now())
	})
}
