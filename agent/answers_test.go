package agent

import (
	"net"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/internal/sandbox"
)

// listenOnStain has the guest that is probed listen on the stain's port.
func listenOnStain(t *testing.T, h *host) {
	t.Helper()
	sandbox.Within(t, h.guests[1].ns, func() error {
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

// TestAnswerIsExplained has flows drop the answers of guests that listen, and nobody else's: what is asked about is the packet that
// was seen. Who does not say what that was is told what becomes of a RST|ACK.
func TestAnswerIsExplained(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	listenOnStain(t, h)
	sandbox.Command(t, "ovs-ofctl", "add-flow", h.bridge, "table=0,priority=100,tcp,tcp_flags=+syn+ack actions=drop")
	h.begin(1, 1, time.Minute)
	if said := h.arm(&dyetracev1.Arm{Run: 1, Answers: []*dyetracev1.PortRef{h.port(1)}}); said != "" {
		t.Fatal(said)
	}
	h.inject(1, tcp, false, 0, 1)
	h.await("the answer at the port that is armed", func() bool { return h.answered(0, dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE) })
	if h.answered(0, toInstance) {
		t.Error("the answer arrived: nothing drops it")
	}
	a, b := h.guests[1], h.guests[0]
	req := &dyetracev1.Explain{
		Bridge: h.bridge, Port: a.tap, SrcMac: a.mac.Uint64(), DstMac: b.mac.Uint64(), SrcIp: as16(a.ip), DstIp: as16(b.ip), Ttl: 64, Reply: true, Scheme: tcp,
		TcpFlags: h.flags(0, dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE),
	}
	for _, tt := range []struct {
		flags   uint32
		outcome dyetracev1.Outcome
		match   string
	}{{req.TcpFlags, dyetracev1.Outcome_OUTCOME_DROPPED, "tcp,tcp_flags=+syn+ack"}, {0, dyetracev1.Outcome_OUTCOME_DELIVERED, ""}} {
		req.TcpFlags = tt.flags
		asked, err := h.a.traceRequest(req)
		if err != nil {
			t.Fatal(err)
		}
		ex, err := h.a.explained(t.Context(), req, asked, time.Now().Add(deadline))
		if err != nil || ex.Outcome != tt.outcome || ex.GetFlow().GetMatch() != tt.match {
			t.Errorf("flags %#x: %v, %v; want %v, %q", tt.flags, ex, err, tt.outcome, tt.match)
		}
	}
}

// flags are those of the answer to a probe as a point of a kind saw it.
func (h *host) flags(index uint32, kind dyetracev1.PointKind) uint32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.samples {
		for i := range m.Index {
			if m.Index[i] == index && m.Kind[i] == kind && m.Reply[i] {
				return m.TcpFlags[i]
			}
		}
	}
	return 0
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
