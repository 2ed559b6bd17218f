package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// party is a fleet of hosts that answer underlay probes, each with a session whose agent is played.
func party(t *testing.T, n int, answer func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport) *Fleet {
	t.Helper()
	f := New(Config{Log: slog.New(slog.DiscardHandler)})
	for i := range n {
		s := &session{fleet: f, host: fmt.Sprintf("hv%d", i+1), queue: make(chan *dyetracev1.SessionResponse, queueLength),
			end: func(error) {}, reports: map[uint64]reportWait{}, explains: map[uint64]uint64{}}
		f.hosts[s.host] = &host{name: s.host, session: s, known: acquaintance{
			echo: &dyetracev1.UnderlayEcho{Port: 7443, Addresses: []string{fmt.Sprintf("10.0.0.%d", i+1)}}}}
		go func() {
			for m := range s.queue {
				q := m.GetProbeUnderlay()
				if r := answer(s.host, q); r != nil {
					r.Id = q.GetId()
					s.take(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_UnderlayReport{UnderlayReport: r}})
				}
			}
		}()
		t.Cleanup(func() { close(s.queue) })
	}
	return f
}

func TestProbeUnderlay(t *testing.T) {
	f := party(t, 2, func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
		if host == "hv2" {
			return nil
		}
		return &dyetracev1.UnderlayReport{Passes: m.GetSizes()[0]}
	})
	r, err := f.ProbeUnderlay(t.Context(), "hv1", &dyetracev1.ProbeUnderlay{Sizes: []uint32{99}})
	if err != nil || r.GetPasses() != 99 {
		t.Errorf("%v, %v", r, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := f.ProbeUnderlay(ctx, "hv2", &dyetracev1.ProbeUnderlay{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that does not answer: %v", err)
	}
	if _, err := f.ProbeUnderlay(t.Context(), "hv3", &dyetracev1.ProbeUnderlay{}); !errors.Is(err, errNone) {
		t.Errorf("one that is not there: %v", err)
	}
	if len(f.hosts["hv2"].session.reports) != 0 {
		t.Error("an answer is waited for that nobody wants any more")
	}
	f.hosts["hv1"].session.detach(errLeft)
	if _, err := f.ProbeUnderlay(t.Context(), "hv1", &dyetracev1.ProbeUnderlay{}); !errors.Is(err, errLeft) {
		t.Errorf("one that has left: %v", err)
	}
}

// Each host is tried by another one, in its turn; one that nobody reaches becomes a problem.
func TestAcquaint(t *testing.T) {
	f := party(t, 4, func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
		answered := uint32(1)
		if m.GetDstIp()[15] == 3 { // hv3's
			answered = 0
		}
		return &dyetracev1.UnderlayReport{Answered: []uint32{0, answered}}
	})
	now := time.Now()
	for round := range unreached {
		visits := f.due(now.Add(time.Duration(round) * acquaintEvery))
		if len(visits) != 4 {
			t.Fatalf("round %d: %d hosts are due, want all", round, len(visits))
		}
		for _, v := range visits {
			if v.from == v.to || v.port != 7443 || "10.0.0."+v.to[2:] != v.at.String() {
				t.Errorf("visit %+v", v)
			}
			f.visit(t.Context(), v)
		}
		if again := f.due(now.Add(time.Duration(round)*acquaintEvery + time.Second)); len(again) != 0 {
			t.Errorf("round %d: %v are due again", round, again)
		}
		for _, h := range f.hosts {
			h.known.tried = now.Add(time.Duration(round) * acquaintEvery)
		}
	}
	if p := f.Problems(); len(p) != 1 || !strings.HasPrefix(p[0], "hv3: UDP port 7443 of its tunnel addresses (10.0.0.3) is not reached, by hv") {
		t.Errorf("problems %q", p)
	}
	f.hosts["hv1"].known.echo.Problems = []string{"bind to UDP 10.0.0.9:7443: cannot assign requested address"}
	if p := f.Problems(); len(p) != 2 || !strings.Contains(p[0], "hv1: does not answer underlay probes: bind") {
		t.Errorf("problems %q", p)
	}
	if got := (&Fleet{hosts: map[string]*host{"hv1": f.hosts["hv1"]}}).due(now.Add(time.Hour)); got != nil {
		t.Errorf("a host that is alone tries %v", got)
	}
}

// The key is as the contract has it, and another one in each process.
func TestUnderlayKey(t *testing.T) {
	a, b := New(Config{Log: slog.New(slog.DiscardHandler)}), New(Config{Log: slog.New(slog.DiscardHandler)})
	if k := a.welcome().GetUnderlayKey(); len(k) != underlayKeySize || string(k) == string(b.welcome().GetUnderlayKey()) {
		t.Errorf("keys %x, %x", k, b.welcome().GetUnderlayKey())
	}
}
