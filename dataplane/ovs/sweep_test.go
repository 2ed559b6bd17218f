package ovs

import (
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
			for s.sweeps.AllowN(time.Now(), 100) {
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

// BenchmarkSettle is how long it takes, beside what ovs-vswitchd's own rhythm makes of it.
func BenchmarkSettle(b *testing.B) {
	s := open(b)
	bridge := addBridge(b)
	install(b, s, bridge)
	b.Run("out-of-turn", func(b *testing.B) {
		for b.Loop() {
			s.sweeps = newSweeps()
			if err := s.Settle(b.Context(), bridge); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("in-turn", func(b *testing.B) {
		for b.Loop() {
			for range 2 {
				sandbox.Command(b, "ovs-appctl", "revalidator/wait")
			}
		}
	})
}
