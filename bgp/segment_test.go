package bgp

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/internal/teacher"
	"github.com/dyetrace/dyetrace/stain"
)

// TestSegment: a MAC on an Ethernet segment, which GoBGP teaches, or FRR reflects of it, is
// at all switches that are on it (RFC 7432, section 8.4), and at the other one when one has left (8.2).
func TestSegment(t *testing.T) {
	for _, reflected := range []bool{true, false} {
		t.Run(map[bool]string{true: "FRR", false: "GoBGP"}[reflected], func(t *testing.T) {
			t.Parallel()
			ours, peer := place(t)
			esi := [9]byte{0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99}
			mac := stain.MAC{2, 0, 0, 0, 0, 9}
			// FRR without zebra takes a next hop for reachable that is the peer's own address.
			switches := []*gobgpd{startGoBGP(t, peer(2), peer(2), 65000), startGoBGP(t, peer(3), peer(3), 65000)}
			var whole []teacher.Segment
			var hops []netip.Addr
			for _, g := range switches {
				s := teacher.Segment{RD: g.addr, ESI: esi, VNI: 100, NextHop: g.addr}
				g.Tell(s.Path(t))
				s.Whole = true
				g.Tell(s.Path(t))
				whole, hops = append(whole, s), append(hops, netip.MustParseAddr(g.addr))
			}
			g := switches[0]
			g.Tell(teacher.MAC{RD: g.addr, VNI: 100, MAC: mac.String(), IP: "10.0.0.9", NextHop: g.addr, ESI: esi}.Path(t))
			var peers []Peer
			if reflected {
				const client = "neighbor NEIGHBOUR route-reflector-client"
				second := strings.NewReplacer("SWITCH", peer(3), "SELF", peer(1))
				startFRR(t, peer(1), frrConf(peer(1), peer(1), peer(2), ours, 65000, 65000,
					second.Replace("neighbor SWITCH remote-as 65000\n neighbor SWITCH passive\n neighbor SWITCH update-source SELF"),
					second.Replace(client+"\n  neighbor SWITCH activate\n  neighbor SWITCH route-reflector-client")))
				peers = []Peer{{Address: peer(1), AS: 65000, Source: ours}}
			}
			for _, g := range switches {
				if reflected {
					g.peer(peer(1), 65000, nil)
					continue
				}
				g.peer(ours, 65000, teacher.Listens)
				peers = append(peers, Peer{Address: g.addr, AS: 65000, Source: ours})
			}
			table := learnInto(t, ours, peers...)
			is := func(what string, want ...netip.Addr) {
				t.Helper()
				eventually(t, what, func() bool {
					s := table.Snapshot()
					for _, l := range []rib.Lookup{s.MAC(100, mac), s.IP(rib.VNI(100), netip.MustParseAddr("10.0.0.9"))} {
						var at []netip.Addr
						for _, v := range l.VTEPs {
							at = append(at, v.Addr)
							if v.ESI != wire.ESI(append([]byte{0}, esi[:]...)) {
								t.Fatalf("%s: %+v", what, v)
							}
						}
						if l.State != rib.Present || !slices.Equal(at, want) {
							return false
						}
					}
					return true
				})
			}
			is("it is at both switches", hops...)
			if n := len(slices.Collect(table.Snapshot().Routes(rib.Filter{Kind: wire.KindSegment}))); n != 4 {
				t.Errorf("%d routes of segments, want 4", n)
			}
			g.Withdraw(whole[0].Path(t)) // of who taught the MAC
			is("it is at the other one", hops[1])
			g.Tell(whole[0].Path(t))
			is("it is at both again", hops...)
		})
	}
}

// learnInto has a speaker learn into a table until the test ends.
func learnInto(t *testing.T, ours string, peers ...Peer) *rib.Table {
	t.Helper()
	table := rib.New(rib.Options{})
	s, err := New(Config{RouterID: ours, AS: 65000, Listen: net.JoinHostPort(ours, "179"), Peers: peers}, Options{Learn: LearnInto(table)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return table
}
