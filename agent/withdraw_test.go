package agent

import (
	"log/slog"
	"math"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// TestWithdraw has the controller withdraw probes that nobody answers, long before their time is up: those that
// it names, once each, and no other.
func TestWithdraw(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.guests[1].ip = netip.MustParseAddr("192.0.2.1") // at the guest's MAC, and nobody's address there
	h.begin(1, 3, time.Minute)
	frames := h.capture()
	req := h.injection(1, tcp, false, 0, 3)
	req.SettleMs = 60_000
	h.a.inject(t.Context(), req)
	next := func() (index uint32, rst bool) {
		for end := time.After(deadline); ; {
			select {
			case f := <-frames:
				token, ok := stainedToken(f)
				if !ok {
					continue // ARP, neighbour discovery, the guest's own
				}
				index, known := h.a.runs.get(1).tokens.Index(token)
				if !known {
					t.Fatalf("%x is no probe", f)
				}
				const flags = 14 + 20 + 13
				return index, f[flags]&4 != 0
			case <-end:
				t.Fatal("the guest saw nothing more")
			}
		}
	}
	for want := range uint32(3) {
		if index, rst := next(); index != want || rst {
			t.Fatalf("probe %d, RST %t, came first; want the SYN of %d", index, rst, want)
		}
	}
	h.a.open.end(1, []uint32{1})
	h.a.open.end(1, []uint32{1, 7}) // again, and one that never was
	h.a.open.end(2, []uint32{0})    // of another run
	h.a.open.end(1, []uint32{2, 0})
	for _, want := range []uint32{1, 2, 0} {
		if index, rst := next(); index != want || !rst {
			t.Errorf("probe %d, RST %t, came; want %d withdrawn", index, rst, want)
		}
	}
	if !h.settled() {
		t.Error("a probe that was withdrawn is open still")
	}
}

// What is kept of probes that left is bounded in time, and in number whether they are answered or not.
func TestOpenIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOpenProbes(slog.New(slog.DiscardHandler))
		b := &bridge{}
		open := func() (probes, timers, timed int) {
			o.mu.Lock()
			defer o.mu.Unlock()
			return len(o.probes), len(o.timers), o.timed
		}
		batch := func(run uint64) []openProbe {
			list := make([]openProbe, maxOpen/4)
			for i := range list {
				list[i] = openProbe{run: run, index: uint32(i), bridge: b}
			}
			return list
		}
		for run := range uint64(4) {
			if err := o.add(batch(run), math.MaxUint32*time.Millisecond); err != nil {
				t.Fatalf("batch %d: %v", run, err)
			}
		}
		for i := range uint32(maxOpen / 4) {
			o.answered(0, i, b)
		}
		err := o.add([]openProbe{{run: 9, bridge: b}}, time.Second)
		if probes, _, _ := open(); err == nil || probes != 3*maxOpen/4 {
			t.Errorf("one more than %d: %v; %d are open", maxOpen, err, probes)
		}
		time.Sleep(maxSettle)
		synctest.Wait()
		if probes, timers, timed := open(); probes != 0 || timers != 0 || timed != 0 {
			t.Errorf("%d probes are open after %v, %d timers for %d", probes, maxSettle, timers, timed)
		}
		if err := o.add(batch(5), time.Second); err != nil {
			t.Errorf("when there is room again: %v", err)
		}
		o.close()
	})
}
