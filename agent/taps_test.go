package agent

import (
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/stain"
)

// A point whose ring can no longer be read must not stay declared, and its losses
// must show: else every delivery would be taken for a loss.
func TestTapsGiveUpWhenTheRingFails(t *testing.T) {
	taps := newTaps(slog.New(slog.NewTextHandler(io.Discard, nil)))
	b := &bridge{name: "br-int"}
	if _, absent, _ := taps.keep(b, dataplane.Bridge{}, time.Now()); absent == "" {
		t.Error("before a sampler is there, to-instance is declared")
	}
	taps.open(stain.Default())
	defer taps.close()
	if _, absent, _ := taps.keep(b, dataplane.Bridge{}, time.Now()); absent != "" {
		t.Fatalf("no sampler: %s", absent)
	}
	before := taps.lostSamples()
	taps.mu.Lock()
	sampler := taps.sampler
	taps.mu.Unlock()
	taps.fail(sampler, errors.New("ring: bad record"))
	if _, absent, _ := taps.keep(b, dataplane.Bridge{}, time.Now()); absent != "ring: bad record" {
		t.Errorf("absent because of %q (want the ring's error)", absent)
	}
	if after := taps.lostSamples(); after <= before {
		t.Errorf("%d samples lost after the ring failed, %d before (want more)", after, before)
	}
}

// A sampler that keeps failing is opened ever more seldom, but no more seldom than
// once a minute, and after a good minute as at first.
func TestTapsBackOff(t *testing.T) {
	t.Parallel()
	taps := newTaps(slog.New(slog.NewTextHandler(io.Discard, nil)))
	taps.open(stain.Default())
	defer taps.close()
	b := &bridge{name: "br-int"}
	// It waits from some time while it fails.
	fail := func() (least, most time.Duration) {
		before := time.Now()
		taps.fail(taps.sampler, errors.New("ring: bad record"))
		after := time.Now()
		if _, absent, _ := taps.keep(b, dataplane.Bridge{}, taps.again.Add(-1)); absent == "" {
			t.Error("opened again before its time")
		}
		least, most = taps.again.Sub(after), taps.again.Sub(before)
		if _, absent, _ := taps.keep(b, dataplane.Bridge{}, taps.again); absent != "" {
			t.Errorf("not opened again: %s", absent)
		}
		return least, most
	}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		taps.opened = time.Now()
		if least, most := fail(); least > want*time.Second || most < want*time.Second {
			t.Errorf("opened again after %v to %v, want %d s", least, most, want)
		}
	}
	taps.opened = time.Now().Add(-tapRetryMost)
	if least, most := fail(); least > tapRetry || most < tapRetry {
		t.Errorf("opened again after %v to %v, want %v: it had held out for %v", least, most, tapRetry, tapRetryMost)
	}
}
