package ovs

import (
	"slices"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/stain"
)

// TestSettleCounts has the flows' counters hold all that passed before Settle was called, whether sweeps
// may be had out of turn or not; no flow is touched for that, and none of a watch's is told.
func TestSettleCounts(t *testing.T) {
	const probes = 200
	st := newStage(t, 10*probes)
	s, bridge := st.on, st.bridge
	w := watch(t, s, bridge)
	w.take(t)
	before := dumpForeign(t, bridge)
	sent := 0
	for _, turn := range []string{"out of turn", "out of turn", "in turn", "out of turn"} {
		if turn == "in turn" {
			for s.sweeps.share.AllowN(time.Now(), 100) {
			}
		}
		frames := make([][]byte, probes)
		for i := range frames {
			frames[i] = st.frame(t, uint32(sent+i))
		}
		st.send(t, frames)
		sent += probes
		answers := 0
		st.read(t, func(c sample) bool {
			if c.Reply && c.Kind == stain.FromInstance {
				answers++
			}
			return answers == probes
		})
		if err := s.Settle(t.Context(), bridge); err != nil {
			t.Fatalf("%s: %v", turn, err)
		}
		if n := flows.Counted(dumpOurs(t, s, bridge))[stain.FromInstance]; n != uint64(2*sent) {
			t.Errorf("%s: %d packets are counted of %d that have passed", turn, n, 2*sent)
		}
	}
	if told := w.take(t); len(told) > 0 {
		t.Errorf("flows were changed: %v", told)
	}
	if after := dumpForeign(t, bridge); after != before {
		t.Errorf("foreign flows are\n%s\nwere\n%s", after, before)
	}
}

// A sweep is had out of turn for who counts while few were of late, for who has changed flows whatever was;
// not where the last took so long that another would have megaflows dropped.
func TestSweepsOutOfTurn(t *testing.T) {
	t.Parallel()
	const every, ms, many = 500 * time.Millisecond, time.Millisecond, 1000
	now := time.Unix(1e9, 0)
	for _, tt := range []struct {
		last           time.Duration
		counts, urgent int
	}{
		{2 * ms, sweepBurst / 2, many}, {50 * ms, sweepBurst / 50, many}, {51 * ms, 0, many}, {125 * ms, 0, many}, {126 * ms, 0, 0},
	} {
		s := newSweeps()
		had := func(p pace, now time.Time) (n int) {
			for n < many && s.may(p, now, tt.last, every) {
				n++
			}
			return n
		}
		if n := had(0, now); n != tt.counts {
			t.Errorf("sweeps of %v: %d for who counts (want %d)", tt.last, n, tt.counts)
		}
		if n := had(patient, now); n != 0 {
			t.Errorf("sweeps of %v: %d for who has patience", tt.last, n)
		}
		if n := had(urgent, now); n != tt.urgent {
			t.Errorf("sweeps of %v: then %d for who has changed flows (want %d)", tt.last, n, tt.urgent)
		}
		if n := had(0, now); n != 0 {
			t.Errorf("sweeps of %v: then %d for who counts", tt.last, n)
		}
		paid := now.Add((2*sweepBurst + 200) * time.Second / sweepShare) // what was owed, and all there may be
		if n := had(0, paid); n != tt.counts {
			t.Errorf("sweeps of %v: %d for who counts, after a while (want %d)", tt.last, n, tt.counts)
		}
	}
	for config, want := range map[string]time.Duration{"": every, "1000": 1000 * ms, "100": 100 * ms, "99": 100 * ms, "soon": every, "-1": every} {
		if got := sweepEvery(config); got != want {
			t.Errorf("max-revalidator %q: %v (want %v)", config, got, want)
		}
	}
}

// BenchmarkSettle is how long it takes, beside what ovs-vswitchd's own rhythm makes of it.
func BenchmarkSettle(b *testing.B) {
	// Two sweeps begin no sooner one after the other (udpif_revalidator of ofproto-dpif-upcall.c).
	const apart = 5 * time.Millisecond
	s := open(b)
	bridge := addBridge(b)
	install(b, s, bridge)
	b.Run("out-of-turn", func(b *testing.B) {
		var took []time.Duration
		for b.Loop() {
			time.Sleep(apart)
			s.sweeps = newSweeps()
			begun := time.Now()
			if err := s.Settle(b.Context(), bridge); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(begun))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2])/1e6, "p50-ms")
		b.ReportMetric(float64(took[len(took)*9/10])/1e6, "p90-ms")
		b.ReportMetric(float64(took[len(took)/2])/float64(apart), "sweeps-apart")
		b.ReportMetric(0, "ns/op")
	})
	b.Run("in-turn", func(b *testing.B) {
		for b.Loop() {
			for range 2 {
				sandbox.Command(b, "ovs-appctl", "revalidator/wait")
			}
		}
	})
}
