package agent

import (
	"errors"
	"io"
	"log/slog"
	"testing"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/stain"
)

// A point whose ring can no longer be read must not stay declared, and its losses
// must show: else every delivery would be taken for a loss.
func TestTapsGiveUpWhenTheRingFails(t *testing.T) {
	taps := newTaps(slog.New(slog.NewTextHandler(io.Discard, nil)))
	b := &bridge{name: "br-int"}
	if _, absent, _ := taps.keep(b, dataplane.Bridge{}); absent == "" {
		t.Error("before a sampler is there, to-instance is declared")
	}
	taps.open(stain.Default())
	defer taps.close()
	if _, absent, _ := taps.keep(b, dataplane.Bridge{}); absent != "" {
		t.Fatalf("no sampler: %s", absent)
	}
	before := taps.lostSamples()
	taps.mu.Lock()
	sampler := taps.sampler
	taps.mu.Unlock()
	taps.fail(sampler, errors.New("ring: bad record"))
	if _, absent, _ := taps.keep(b, dataplane.Bridge{}); absent != "ring: bad record" {
		t.Errorf("absent because of %q (want the ring's error)", absent)
	}
	if after := taps.lostSamples(); after <= before {
		t.Errorf("%d samples lost after the ring failed, %d before (want more)", after, before)
	}
}
