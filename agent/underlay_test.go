package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/dyetrace/dyetrace/dataplane"
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
		got := e.tunnel(netip.Addr{}, addr(tt.dst))
		if got.local.String() != tt.src || got.outer(0x5f) != tt.tos || got.fragments != tt.fragments {
			t.Errorf("tunnel to %s: %+v with ToS %#x, want from %s with %#x", tt.dst, got, got.outer(0x5f), tt.src, tt.tos)
		}
	}
	// A port that names no address of its own ends where the kernel would send from.
	ends := endsOf(dataplane.Snapshot{Bridges: []dataplane.Bridge{{Ports: []dataplane.Port{{Type: "gre", RemoteIP: "127.0.0.9"}}}}})
	if got := localEnds(ends); len(got) != 1 || !got[0].IsLoopback() {
		t.Errorf("local ends %v, want loopback's", got)
	}
}
