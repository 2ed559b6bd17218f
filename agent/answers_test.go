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
