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

// A pair that breaks while the opposite one is known to be faulty is told of soon: the patrol, which goes on with
// that one, does not keep the wire from the examination.
func TestContinuousFacing(t *testing.T) {
	t.Parallel()
	for _, late := range []time.Duration{0, 60 * time.Millisecond, 240 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, site(t, 2))
			w.passes, w.late = true, late
			const each = 5 * time.Second
			all, _, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 3*each+time.Second, func() {
				for _, broken := range []string{"i0 i1", "i0 i1, i1 i0"} {
					time.Sleep(each)
					w.change(func(w *town) {
						w.lost = func(pair string, p *plan.Path, point int) bool {
							return strings.Contains(broken, pair) && p.Points[point].Host != p.From.Host
						}
					})
				}
			})
			soon := map[string]bool{}
			for _, a := range all {
				if a.r.GetVerdict() == dyetracev1.Verdict_VERDICT_FAULTY {
					t.Logf("late by %v: %v: %s → %s: %s", late, a.at, a.r.Src.Name, a.r.Dst.Name, a.r.Cause)
					soon[a.r.Src.Name] = true
				}
			}
			if len(soon) != 2 {
				t.Errorf("late by %v: told of what %v sends, want both", late, soon)
			}
		})
	}
}

// Examinations that take long, as those do which test how much is lost, have none wait that is due now; and there
// are so many at the most.
func TestMayExamine(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	for _, tt := range []struct {
		short, long int
		may         bool
	}{{0, 0, true}, {maxExams - 1, 0, true}, {maxExams, 0, false}, {0, maxExams, true}, {maxExams, maxExams, false}, {0, mostExams, true}, {1, mostExams - 1, false}, {1, mostExams - 2, true}} {
		c := &continuous{exams: map[uint64]*underExam{}}
		for range tt.short {
			c.exams[uint64(len(c.exams))] = &underExam{began: now.Add(time.Millisecond - longExam)}
		}
		for range tt.long {
			c.exams[uint64(len(c.exams))] = &underExam{began: now.Add(-longExam)}
		}
		if may := c.mayExamine(now); may != tt.may {
			t.Errorf("beside %d that began now and %d that go on: %t, want %t", tt.short, tt.long, may, tt.may)
		}
	}
}

// A pair that is not healthy is examined again when a tunnel of its way has become another one: not only now and
// then.
func TestContinuousMoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 2))
		begun := func() (n int) { w.change(func(w *town) { n = w.begun }); return n }
		var before, unmoved, moved int
		_, _, _ = watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 16*time.Second, func() {
			time.Sleep(5 * time.Second)
			w.change(func(w *town) {
				w.lost = func(pair string, p *plan.Path, point int) bool {
					return pair == "i0 i1" && p.Points[point].Host != p.From.Host
				}
			})
			time.Sleep(5 * time.Second) // told and settled
			before = begun()
			time.Sleep(time.Second)
			unmoved = begun()
			snap := siteOf(t, 2, func(h *inventory.Host) {
				if h.Name == "hv1" {
					h.Bridges[1].Tunnels[0].RemoteIp = "10.1.0.99"
				}
			})
			w.change(func(w *town) { w.snap = snap })
			time.Sleep(time.Second)
			moved = begun()
		})
		if before != unmoved || moved <= unmoved {
			t.Errorf("%d runs of agents begun by then, %d a second later, %d when the tunnel was another one", before, unmoved, moved)
		}
	})
}

func TestRecheckIn(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		unseen     int
		took, want time.Duration
	}{
		{0, time.Second, recheckAfter}, {1, time.Second / 2, unseenAfter}, {2, 0, 2 * unseenAfter}, {3, 0, 4 * unseenAfter},
		{4, 0, recheckAfter}, {1000, 0, recheckAfter},
		// That others were tested for loss for long meanwhile is no reason to wait where it is not known how it is.
		{1, 4 * time.Second, 4 * time.Second}, {3, 4 * time.Second, 4 * unseenAfter}, {0, 4 * time.Second, recheckTimes * 4 * time.Second}, {4, 4 * time.Second, recheckTimes * 4 * time.Second},
	} {
		if got := (&standing{unseen: tt.unseen}).recheckIn(tt.took); got != tt.want {
			t.Errorf("after %d examinations that could not tell, the last of %v: in %v, want %v", tt.unseen, tt.took, got, tt.want)
		}
	}
}

// One pair of an examination is told of soon, and another one is tested for a minute: that is no reason to look at the former later, nor at one
// that was left without a verdict sooner.
func TestRecheckByOwn(t *testing.T) {
	t.Parallel()
	c, _ := standingStill(t, site(t, 4), &dyetracev1.ProbeOptions{})
	began := time.Unix(1e9, 0)
	c.exams[1] = &underExam{began: began, stop: func() {}, open: 3}
	for i := range 3 {
		c.pairs[i].exam, c.pairs[i].suspect = 1, false
	}
	says := func(pair uint32, v dyetracev1.Verdict, after time.Duration) {
		c.takeExam(examined{batch: batch{seq: []uint32{pair}, results: []*dyetracev1.PairResult{{Verdict: v}}}, exam: 1}, began.Add(after))
	}
	const soon, late = time.Second / 2, time.Minute
	says(0, dyetracev1.Verdict_VERDICT_UNKNOWN, soon)
	says(1, faulty, late)
	c.takeExam(examined{done: true, exam: 1, pairs: []int{0, 1, 2}, took: late}, began.Add(late))
	for i, want := range []time.Duration{soon + unseenAfter, late + recheckTimes*late, late + recheckTimes*late} {
		if p := &c.pairs[i]; p.exam != 0 || p.again.Sub(began) != want {
			t.Errorf("pair %d: examination %d, again after %v; want %v", i, p.exam, p.again.Sub(began), want)
		}
	}
}
