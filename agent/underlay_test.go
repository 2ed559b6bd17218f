package agent

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/underlay"
)

func TestTunnelEnds(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr
	snap := dataplane.Snapshot{Bridges: []dataplane.Bridge{{Name: "br-tun", Ports: []dataplane.Port{
		{Name: "patch", Type: "patch"},
		{Name: "gre-2", Type: "gre", LocalIP: "10.0.0.1", RemoteIP: "10.0.0.2", ToS: "inherit"},
		{Name: "vx-2", Type: "vxlan", LocalIP: "10.0.0.1", RemoteIP: "10.0.0.2", ToS: "0xb8"},
		{Name: "vx-3", Type: "vxlan", LocalIP: "10.0.0.1", RemoteIP: "10.0.0.3", ToS: "184", Fragments: true},
		{Name: "gnv", Type: "geneve", LocalIP: "fd00::1", RemoteIP: "flow", ToS: "what"},
	}}}}
	e := &echo{tunnels: endsOf(snap)}
	if len(e.tunnels) != 4 {
		t.Fatalf("%d tunnels, want 4", len(e.tunnels))
	}
	if got, want := localEnds(e.tunnels), []netip.Addr{addr("10.0.0.1"), addr("fd00::1")}; !slices.Equal(got, want) {
		t.Errorf("local ends %v, want %v", got, want)
	}
	for _, tt := range []struct {
		dst       string
		src       string
		tos       uint8 // of an inner 0x5f
		fragments bool
	}{
		{"10.0.0.2", "10.0.0.1", 0x5c, false},
		{"10.0.0.3", "10.0.0.1", 184, true},
		{"fd00::9", "fd00::1", 0, false},
		{"10.0.0.9", "invalid IP", 0, false},
	} {
		got, err := e.tunnel("", netip.Addr{}, addr(tt.dst))
		if err != nil {
			t.Error(err)
		}
		if got.local.String() != tt.src || got.outer(0x5f) != tt.tos || got.fragments != tt.fragments {
			t.Errorf("tunnel to %s: %+v with ToS %#x, want from %s with %#x", tt.dst, got, got.outer(0x5f), tt.src, tt.tos)
		}
	}
	// One that is named is that one, or none.
	for _, tt := range []struct {
		port, src, dst string
		want           string
		err            string
	}{
		{"gre-2", "10.0.0.1", "10.0.0.2", "inherit", ""},
		{"vx-2", "10.0.0.1", "10.0.0.2", "0xb8", ""},
		{"vx-2", "", "10.0.0.2", "0xb8", ""},
		{"vx-2", "10.0.0.7", "10.0.0.2", "", "no tunnel port vx-2 leads to 10.0.0.2 (any more)"},
		{"vx-2", "10.0.0.1", "10.0.0.3", "", "no tunnel port vx-2 leads to 10.0.0.3 (any more)"},
		{"gnv", "fd00::1", "fd00::9", "what", ""},
		{"gnv", "", "10.0.0.2", "", "no tunnel port gnv leads to 10.0.0.2 (any more)"},
		{"vx-9", "10.0.0.1", "10.0.0.2", "", "no tunnel port vx-9 leads to 10.0.0.2 (any more)"},
	} {
		var src netip.Addr
		if tt.src != "" {
			src = addr(tt.src)
		}
		got, err := e.tunnel(tt.port, src, addr(tt.dst))
		said := ""
		if err != nil {
			said = err.Error()
		}
		if got.tos != tt.want || said != tt.err {
			t.Errorf("tunnel %s from %s to %s: options:tos %q, %q; want %q, %q", tt.port, tt.src, tt.dst, got.tos, said, tt.want, tt.err)
		}
	}
	// A port that names no address of its own ends where the kernel would send from.
	ends := endsOf(dataplane.Snapshot{Bridges: []dataplane.Bridge{{Ports: []dataplane.Port{{Type: "gre", RemoteIP: "127.0.0.9"}}}}})
	if got := localEnds(ends); len(got) != 1 || !got[0].IsLoopback() {
		t.Errorf("local ends %v, want loopback's", got)
	}
}

// TestUnderlayAnswered has exchanges that cannot be made in time: each is answered, and one that could not even begin as busy.
func TestUnderlayAnswered(t *testing.T) {
	t.Parallel()
	a := &Agent{cfg: Config{Host: "hv1"}, log: slog.New(slog.DiscardHandler), outbox: newOutbox(), echo: newEcho(7443, 10_000, slog.New(slog.DiscardHandler))}
	t.Cleanup(a.echo.close)
	a.echo.setKey(make([]byte, underlay.KeySize))
	dst := netip.MustParseAddr("127.0.0.1").As16()
	ask := &dyetracev1.ProbeUnderlay{Session: 1, DstIp: dst[:], Port: 9, Sizes: []uint32{128}, SourcePorts: 1, Repeats: 1, WaitMs: 5000, WithinMs: 20}
	answer := func() *dyetracev1.UnderlayReport {
		ask.Id++
		a.probeUnderlay(t.Context(), ask)
		select {
		case m := <-a.outbox.queue:
			if r := m.GetUnderlayReport(); r.GetId() == ask.Id {
				return r
			}
		default:
		}
		t.Fatal("no answer")
		return nil
	}
	for range 20 {
		if r := answer(); !strings.Contains(r.Error, "deadline") || r.Busy {
			t.Fatalf("an exchange that takes longer: %v", r)
		}
	}
	for range parallelUnderlay {
		a.echo.slots <- struct{}{}
	}
	ask.WithinMs = 2000 // half of which is waited for: it is not over when that is
	if r := answer(); !strings.Contains(r.Error, "on hv1: 4 are being made, none of which ended within 1s") || !r.Busy {
		t.Fatalf("behind others: %v", r)
	}
}
