package bgp

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/internal/teacher"
)

// A prefix that a GoBGP tells with a gateway's address is where that address is by the MAC route with two
// labels, and follows it. (A bgpd 8.4 that reflects it leaves the gateway out.)
func TestGateway(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	g := startGoBGP(t, peer(1), peer(1), 65000)
	prefix := netip.MustParsePrefix("10.9.0.0/16")
	gateway := netip.MustParseAddr("10.0.0.7")
	g.Tell(teacher.Prefix{RD: "10.1.0.9", VNI: 5000, Prefix: prefix, Gateway: gateway, NextHop: "10.1.0.9"}.Path(t))
	g.peer(ours, 65000, nil)
	table := rib.New(rib.Options{})
	speakInto(t, LearnInto(table), ours, 65000, Peer{Address: peer(1), AS: 65000})
	eventually(t, "the prefix", func() bool { return table.Snapshot().Len() == 1 })
	at := func() (rib.State, []netip.Addr) {
		l := table.Snapshot().IP(rib.VNI(5000), prefix.Addr())
		var vteps []netip.Addr
		for _, v := range l.VTEPs {
			vteps = append(vteps, v.Addr)
		}
		return l.State, vteps
	}
	if state, vteps := at(); state != rib.Unknown {
		t.Errorf("%v at %v before its gateway is known", state, vteps)
	}
	for i, vtep := range []string{"10.1.0.1", "10.1.0.2"} {
		g.Tell(teacher.MAC{RD: vtep, VNI: 100, L3VNI: 5000, MAC: "02:00:00:00:00:07", IP: gateway.String(), NextHop: vtep, Sequence: uint32(i)}.Path(t))
		eventually(t, "the prefix at "+vtep, func() bool {
			state, vteps := at()
			return state == rib.Present && slices.Equal(vteps, []netip.Addr{netip.MustParseAddr(vtep)})
		})
	}
}
