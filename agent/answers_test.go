package agent

import (
	"net"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// listenOnStain has the guest that is probed listen on the stain's port.
func listenOnStain(t *testing.T, h *host) {
	t.Helper()
	inNamespace(t, h.guests[1].ns, func() error {
		l, err := net.Listen("tcp", ":11")
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
}

// answered says that a point of a kind has seen the answer to a probe.
func (h *host) answered(index uint32, kind dyetracev1.PointKind) bool {
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

// TestArmedAnswersAreSeen has a guest with an open port: Linux does not reflect the ToS
// in its SYN|ACK, so nobody sees the answer leave it until its port is armed.
func TestArmedAnswersAreSeen(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	listenOnStain(t, h)
	h.begin(1, 2, time.Minute)
	h.inject(1, tcp, false, 0, 1)
	h.await("the answer at the prober's tap, which does not ask for the ToS", func() bool { return h.answered(0, toInstance) })
	if said := h.arm(&dyetracev1.Arm{Run: 1, Answers: []*dyetracev1.PortRef{h.port(1)}}); said != "" {
		t.Fatal(said)
	}
	h.inject(1, tcp, false, 1, 2)
	h.await("the answer at the port that is armed", func() bool {
		return h.answered(1, dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE) && h.answered(1, toInstance)
	})
	if h.answered(0, dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE) {
		t.Error("the answer was seen before its port was armed: arming shows nothing")
	}
}

// TestArmingCountsNothing has answers pass that nobody expects, and their port be armed at once: what the hook counts is what it
// copied, though the datapath tells only now and then what has passed.
func TestArmingCountsNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	listenOnStain(t, h)
	audit := func(after bool) *dyetracev1.HookWindow {
		return windowOf(h.a.hooks.audit(t.Context(), after), h.bridge)
	}
	const probes = 6 // the last after the others, whose first is passed by the switch's main thread, and is counted at once
	h.begin(1, probes, deadline)
	before := audit(false)
	for index := range uint32(probes) {
		if index == probes-1 {
			if said := h.arm(&dyetracev1.Arm{Run: 1, Answers: []*dyetracev1.PortRef{h.port(1)}}); said != "" {
				t.Fatal(said)
			}
		}
		h.inject(1, tcp, false, index, index+1)
		h.await("the answer at the prober's tap", func() bool { return h.answered(index, toInstance) })
	}
	var least, most int64
	h.await("nothing to come by", func() bool {
		least, most = unread(t, before, audit(true), dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE)
		return least == most
	})
	if least > 0 {
		t.Errorf("%d copies were counted that never were made", least)
	}
}
