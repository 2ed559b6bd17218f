package agent

import (
	"net"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// TestArmedAnswersAreSeen has a guest with an open port: Linux does not reflect the ToS
// in its SYN|ACK, so nobody sees the answer leave it until its port is armed.
func TestArmedAnswersAreSeen(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	inNamespace(t, h.guests[1].ns, func() error {
		l, err := net.Listen("tcp", ":11")
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	h.begin(1, 2, time.Minute)
	answered := func(index uint32, kind dyetracev1.PointKind) bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, m := range h.samples {
			for i := range m.Index {
				if m.Index[i] == index && m.Kind[i] == kind && m.Reply[i] {
					return true
				}
			}
		}
		return false
	}
	h.inject(1, tcp, false, 0, 1)
	h.await("the answer at the prober's tap, which does not ask for the ToS", func() bool { return answered(0, toInstance) })
	if said := h.arm(&dyetracev1.Arm{Run: 1, Answers: []*dyetracev1.PortRef{h.port(1)}}); said != "" {
		t.Fatal(said)
	}
	h.inject(1, tcp, false, 1, 2)
	h.await("the answer at the port that is armed", func() bool {
		return answered(1, dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE) && answered(1, toInstance)
	})
	if answered(0, dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE) {
		t.Error("the answer was seen before its port was armed: arming shows nothing")
	}
}

// TestArmingCountsNothing has answers pass that nobody expects, and arms their port at once, time and again: what is counted
// by the hook is what was copied, of before and of after, though the datapath tells what passed only now and then.
func TestArmingCountsNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	inNamespace(t, h.guests[1].ns, func() error {
		l, err := net.Listen("tcp", ":11")
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	const rounds, probes = 5, 8
	audit := func(after bool) *dyetracev1.HookWindow {
		return windowOf(h.a.hooks.audit(t.Context(), after), h.bridge)
	}
	h.begin(1, 2*rounds*probes, deadline)
	before := audit(false)
	for round := range uint32(rounds) {
		run := uint64(2 + round)
		h.begin(run, 2*rounds*probes, deadline)
		for armed := range uint32(2) {
			if armed > 0 {
				if said := h.arm(&dyetracev1.Arm{Run: run, Answers: []*dyetracev1.PortRef{h.port(1)}}); said != "" {
					t.Fatal(said)
				}
			}
			h.inject(run, tcp, false, armed*probes, (armed+1)*probes)
			h.await("the probes", func() bool { n, _ := h.seen(run, toInstance, tcp); return n == int(armed+1)*probes })
		}
		h.a.finish(t.Context(), run) // with which the port is armed no more
	}
	var least, most int64
	h.await("nothing to come by", func() bool {
		least, most = unread(t, before, audit(true), dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE)
		return least == most
	})
	if least != 0 {
		t.Errorf("%d copies were counted that never were made", least)
	}
}
