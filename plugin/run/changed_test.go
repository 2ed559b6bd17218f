package run

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// How much a flow's match concerns a pair that goes from hv1 to hv2 and back: by how many of its fields it names that
// pair, and not at all if one names somebody else.
func TestConcerns(t *testing.T) {
	t.Parallel()
	_, paths := pathsOf(t, site(t, 3), plan.Scope{Kind: plan.OnePair, Src: "i0", Dst: "i1"})
	p := &paths[0]
	ports := portsOf([]*plan.Path{p})
	ports[endKey{"hv1", "br-int", 99}] = true // somebody else's
	keyed := *p
	keyed.Points = append([]plan.Expected(nil), p.Points...)
	for i := range keyed.Points {
		keyed.Points[i].TunID = 1002
	}
	for _, tt := range []struct {
		match, host string
		names       bool
		want        int // two for each field that names the pair, and one more where it is not by its answer alone
	}{
		{"", "hv1", false, 0},
		{"ip", "hv1", false, 0},
		{"dl_vlan=3", "hv1", false, 0},
		{"dl_dst=fa:16:3e:00:00:01", "hv1", true, 3},
		{"dl_src=fa:16:3e:00:00:01", "hv1", true, 2}, // its answer
		{"dl_dst=fa:16:3e:00:00:02", "hv1", true, 0},
		{"dl_dst=01:00:00:00:00:00/01:00:00:00:00:00", "hv1", false, 0},
		{"ip,nw_src=10.0.1.1,nw_dst=10.0.1.2", "hv1", true, 5},
		{"ip,nw_src=10.0.1.2,nw_dst=10.0.1.1", "hv1", true, 4}, // its answer
		{"ip,nw_src=10.0.1.1,nw_dst=10.0.1.3", "hv1", true, 0},
		{"ip,nw_src=10.0.1.1,nw_dst=10.0.1.1", "hv1", true, 0},
		{"ip,nw_dst=10.0.0.0/16", "hv1", true, 2}, // either
		{"in_port=10", "hv1", true, 3},
		{"in_port=11", "hv2", true, 2}, // its answer
		{"in_port=10,nw_dst=10.0.1.1", "hv1", true, 0},
		{"in_port=99,dl_dst=fa:16:3e:00:00:01", "hv1", true, 0},
		{"in_port=5", "hv1", true, shared}, // a port that all share
		{"tun_id=0x3ea", "hv2", true, 2},
		{"tun_id=0x3eb", "hv2", true, 0},
		{"tun_id=0x3ea/0xffff", "hv2", false, 0},
		{"tun_id=0x3ea,dl_dst=fa:16:3e:00:00:01", "hv2", true, 5},
		{"tun_id=0x3ea", "hv3", true, 0},
		{"ct_state=+new-est,ip,reg5=0xa,reg6=0x1", "hv1", false, 2}, // it may be its port, and anything
		{"ip,reg1=0xb", "hv2", false, 2},
		{"ip,reg1=0xa", "hv2", false, 0},
		{"ip,reg5=0xa/0xff", "hv1", false, 0},
		{"ip,reg7=0xa", "hv1", false, 0},
	} {
		m := readMatch(tt.match)
		if m.names() != tt.names {
			t.Errorf("%s: names somebody: %t, want %t", tt.match, m.names(), tt.names)
		}
		if got := m.concerns(&keyed, tt.host, "br-int", ports); got != tt.want {
			t.Errorf("%s at %s: concerns it by %d, want %d", tt.match, tt.host, got, tt.want)
		}
	}
	if m := readMatch("tun_id=0x3eb"); m.concerns(p, "hv2", "br-int", ports) != 2 {
		t.Error("a tunnel's key may be that of a network whose key is not known, and concerns it not")
	}
}

// tell has the agent of a host tell of flows that others changed.
func (w *town) tell(host string, matches ...string) {
	w.mu.Lock()
	runs := slices.Clone(w.runs)
	w.mu.Unlock()
	for _, v := range runs {
		if h := slices.Index(v.spec.Hosts, host); h >= 0 {
			v.put(h, &dyetracev1.Changes{Bridge: "br-tun", Matches: matches})
		}
	}
}

// TestContinuousChangeNames breaks pairs one after the other, each by a flow that names only whom it is for, so that it may be
// about six pairs. Whichever of these it is, a probe of it is lost at once, however many were sent of late: its instances owe for that. Four go
// before their time, the others as the pace lets them.
func TestContinuousChangeNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 12))
		broken, at := "", map[string]time.Time{}
		w.lose = func(pair string, _ stain.Scheme, _ int) bool { return pair == broken }
		cfg := testConfig
		cfg.PerInstanceBurst = 20
		pairs := []string{"i0 i5", "i4 i5", "i8 i5", "i5 i0", "i5 i4", "i5 i8"}
		all, _, _ := watchTown(t, w, cfg, &dyetracev1.ProbeOptions{}, 50*time.Second, func() {
			for _, pair := range pairs {
				time.Sleep(8 * time.Second)
				at[pair] = time.Now()
				w.change(func(*town) { broken = pair })
				w.tell("hv1", "ip,nw_dst=10.0.1.6")
			}
		})
		met := map[string]time.Duration{}
		for _, a := range all[132:] {
			if pair := a.r.GetSrc().GetName() + " " + a.r.GetDst().GetName(); a.r.GetVerdict() == faulty {
				met[pair] = a.r.GetSince().AsTime().Sub(at[pair])
			}
		}
		for _, pair := range pairs {
			if took, told := met[pair]; !told || took > 210*time.Millisecond {
				t.Errorf("%s: told of %t; a probe of it was lost %v after the change (want 210ms at most)", pair, told, took)
			}
		}
		if len(met) != len(pairs) {
			t.Errorf("told of %v; want %v", met, pairs)
		}
	})
}

// TestContinuousChangesInSteps has flows change twice, so that a pair is lost elsewhere after it was named: that is told some seconds
// after, and not when pairs that are not healthy are examined anyway.
func TestContinuousChangesInSteps(t *testing.T) {
	t.Parallel()
	for _, between := range []time.Duration{500 * time.Millisecond, 3 * time.Second} { // while it is examined, and after
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, site(t, 12))
			const broke = 8 * time.Second
			all, _, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 20*time.Second, func() {
				lostFrom := func(hop int) {
					w.change(func(w *town) {
						w.lost = func(pair string, _ *plan.Path, point int) bool { return pair == "i0 i5" && point >= hop }
					})
					w.tell("hv1", "ip,nw_src=10.0.1.1,nw_dst=10.0.1.6")
				}
				time.Sleep(broke)
				lostFrom(2)
				time.Sleep(between)
				lostFrom(1)
			})
			var where []string
			at := time.Duration(0)
			for _, a := range all[132:] {
				if a.r.GetSrc().GetName() == "i0" && a.r.GetDst().GetName() == "i5" {
					where, at = append(where, fmt.Sprint(a.r.GetSegment().GetFrom().GetKind())), a.at-broke-between
				}
			}
			if want := []string{"POINT_KIND_TO_TUNNEL", "POINT_KIND_FROM_INSTANCE"}; !slices.Equal(where, want) || at > renewAfter+3*time.Second {
				t.Errorf("changed again after %v: lost after %v, the last told %v later; want %v, within %v", between, where, at, want, renewAfter+3*time.Second)
			}
		})
	}
}

// TestContinuousChangeOfTested breaks a pair by a flow that names it while it is tested how much it loses, which it lost before: that test
// is given up, since no patrol looks at the pair as long as it goes on.
func TestContinuousChangeOfTested(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 8))
		const tested, broke = 16 * time.Second, 20 * time.Second
		began := time.Now()
		w.lose = func(pair string, _ stain.Scheme, n int) bool {
			at := time.Since(began)
			return pair == "i0 i1" && (at > broke || at > tested && at < tested+300*time.Millisecond || at > tested && n%4 == 0)
		}
		cfg := testConfig
		cfg.PerInstanceBurst = 20
		all, _, _ := watchTown(t, w, cfg, &dyetracev1.ProbeOptions{}, 30*time.Second, func() {
			time.Sleep(broke)
			w.tell("hv1", "ip,nw_src=10.0.1.1,nw_dst=10.0.1.2")
		})
		named := time.Duration(0)
		for _, a := range all {
			if a.r.Src.Name == "i0" && a.r.Dst.Name == "i1" && a.r.CauseKind == dyetracev1.CauseKind_CAUSE_KIND_FLOW && named == 0 {
				named = a.at - broke
			}
		}
		if named <= 0 || named > time.Second {
			t.Errorf("named after %v, want 1s at the most", named)
		}
	})
}

// TestContinuousBrokenWhileTested breaks an instance whose pairs lost a share before, and no change says so. Those that are told to lose much, by what was
// lost before and since, are told to be broken when a patrol has lost some in a row, and not when they would be examined anyway.
func TestContinuousBrokenWhileTested(t *testing.T) {
	t.Parallel()
	const tested, broke = 16 * time.Second, 18 * time.Second
	lossy := 0
	for seed := range uint64(6) {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, site(t, 8))
			began, random := time.Now(), rand.New(rand.NewPCG(seed, 2))
			w.lose = func(pair string, _ stain.Scheme, _ int) bool {
				at := time.Since(began)
				return strings.Contains(pair, "i1") && (at > broke || at > tested && random.IntN(10) < 7)
			}
			cfg := testConfig
			cfg.PerInstanceBurst = 20
			all, _, _ := watchTown(t, w, cfg, &dyetracev1.ProbeOptions{}, 60*time.Second, func() {})
			named := map[string]time.Duration{}
			for _, a := range all {
				pair := a.r.Src.Name + " " + a.r.Dst.Name
				if a.at > broke && a.r.CauseKind == dyetracev1.CauseKind_CAUSE_KIND_LOSS {
					lossy++
				}
				if a.r.CauseKind == dyetracev1.CauseKind_CAUSE_KIND_FLOW && named[pair] == 0 {
					named[pair] = a.at - broke
				}
			}
			if last := slices.Max(slices.Collect(maps.Values(named))); len(named) != 12 || last > 15*time.Second {
				t.Errorf("seed %d: %d pairs are named, the last after %v; want all 12 of i1 and other hosts within 15s", seed, len(named), last)
			}
		})
	}
	if lossy == 0 {
		t.Error("none was told to lose a share: not the case that this is about")
	}
}

// TestContinuousLossStays has a pair lose half of its probes: that is told once, and not taken back by each that arrives; and when it is over it is healthy
// within some rounds.
func TestContinuousLossStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 8))
		const over = 2 * time.Minute
		began, random := time.Now(), rand.New(rand.NewPCG(5, 6))
		w.lose = func(pair string, _ stain.Scheme, _ int) bool {
			return pair == "i0 i1" && time.Since(began) < over && random.IntN(2) == 0
		}
		all, _, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, over+time.Minute, func() {})
		back, healed, healthy := 0, time.Duration(0), false
		for _, a := range all[56:] {
			if a.r.Src.Name != "i0" || a.r.Dst.Name != "i1" {
				continue
			}
			if healthy = a.r.Verdict == dyetracev1.Verdict_VERDICT_HEALTHY; healthy {
				if back++; a.at > over && healed == 0 {
					healed = a.at - over
				}
			}
		}
		if back > 4 || !healthy || healed > 20*time.Second { // it may have been so by chance when it was over
			t.Errorf("healthy %d times, in the end %t, at last %v after it was over; want hardly more than once, and within 20s", back, healthy, healed)
		}
	})
}

// TestContinuousGoesOnBesideTests breaks and heals an instance in the middle of an examination, which then tests how much its
// pairs lose, and spends all that it may be probed, for some time. The round goes on among the others as ever.
func TestContinuousGoesOnBesideTests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 8))
		silent := false
		w.lose = func(pair string, _ stain.Scheme, _ int) bool { return silent && strings.Contains(pair, "i1") }
		cfg := testConfig
		cfg.PerInstanceBurst = 20
		var before, after map[string]int
		watchTown(t, w, cfg, &dyetracev1.ProbeOptions{}, 30*time.Second, func() {
			time.Sleep(20 * time.Second)
			w.change(func(*town) { silent, w.snap = true, portsMoved(t, 8, "hv2") })
			time.Sleep(450 * time.Millisecond)
			w.change(func(*town) { silent, before = false, maps.Clone(w.count) })
			time.Sleep(4 * time.Second)
			w.change(func(*town) { after = maps.Clone(w.count) })
		})
		most := 0 // of a pair that is tested
		for pair := range after {
			n := after[pair] - before[pair]
			if strings.Contains(pair, "i1") {
				most = max(most, n)
			} else if n < 1 {
				t.Errorf("%s was not probed in 4 s; want two times, or once", pair) // 14 pairs of an instance are 1.4 s
			}
		}
		if most < 4 { // more than come round in that time
			t.Errorf("%d probes of a pair in 4 s at the most: no test was made", most)
		}
	})
}

// TestContinuousOutdated has a port go and come back, another one each time, while its pairs are examined for that it has gone. They are
// healthy at once, and not tested for what was lost in between: the examination of what is no longer there is given up.
func TestContinuousOutdated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 8))
		w.auto, w.passes = true, true // silence, which takes a while
		silent := false
		w.lose = func(pair string, _ stain.Scheme, _ int) bool { return silent && strings.Contains(pair, "i1") }
		var before, after map[string]int
		healed, begun := time.Time{}, 0
		all, _, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 30*time.Second, func() {
			time.Sleep(20 * time.Second)
			w.change(func(*town) { silent, w.snap = true, portsMoved(t, 8, "hv2") })
			time.Sleep(300 * time.Millisecond)
			w.change(func(*town) {
				silent, w.snap, before, begun, healed = false, site(t, 8), maps.Clone(w.count), w.begun, time.Now()
			})
			time.Sleep(5 * time.Second)
			w.change(func(*town) { after, begun = maps.Clone(w.count), w.begun-begun })
		})
		for _, a := range all[56:] {
			t.Errorf("%v after it was there again: %s → %s: %v: %s", a.at-20300*time.Millisecond, a.r.GetSrc().GetName(), a.r.GetDst().GetName(), a.r.GetVerdict(), a.r.GetCause())
		}
		for pair := range after {
			// One of the examination, one of the patrol each 1.4 s, and what was under way or waited.
			if n := after[pair] - before[pair]; n > 7 {
				t.Errorf("%s: %d probes in 5 s from %v on: it was tested", pair, n, healed)
			}
		}
		if begun < 2 || len(c.exams) > 0 {
			t.Errorf("%d runs were begun when the port was there again; want a patrol and an examination; and %d examinations go on", begun, len(c.exams))
		}
	})
}
