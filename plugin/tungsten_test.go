package plugin

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/internal/teacher"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// TestTungstenFabric: what a control node says byte by byte is in the table, in the answers, and in
// what plans get to see, by the VNI that its route targets are mapped to.
func TestTungstenFabric(t *testing.T) {
	t.Parallel()
	addr := fmt.Sprintf("127.%d.%d.77", 128+os.Getpid()>>8&63, os.Getpid()&255)
	port := teacher.StartTungsten(t, addr)
	w := newWorld(t, func(c *Config) {
		c.BGP = &bgp.Config{
			RouterID: "10.0.0.9", AS: 64512, Networks: []bgp.Network{{VNI: 101, RTs: []string{"64512:8000001"}}},
			Peers: []bgp.Peer{{Address: addr, Port: port, AS: 64512, Families: []string{"evpn", "vpnv4"}}},
		}
	})
	w.start()
	eventually(t, "three routes", func() bool { return w.controller.table.Snapshot().Len() == 3 })
	if p := w.controller.speaker.Peers()[0]; p.Withdrawn != 0 || p.Flaps != 0 || p.Updates != 3 {
		t.Errorf("the session: %+v", p)
	}
	r := w.controller.routes()
	for what, tt := range map[string]struct {
		got  plan.Learned
		vtep string
		seq  uint32
	}{
		"MAC by label":     {r.MAC(101, blue1), "10.1.0.1", 5},
		"its address":      {r.IP(101, netip.MustParseAddr("10.0.1.11")), "10.1.0.1", 5},
		"inet-vpn address": {r.IP(101, netip.MustParseAddr("10.0.1.12")), "10.1.0.2", 0},
		"MAC by VNI":       {r.MAC(102, stain.MAC{0xfa, 0x16, 0x3e, 0, 1, 0x99}), "10.1.0.3", 0},
	} {
		if tt.got.State != plan.Present || !slices.Equal(tt.got.VTEPs, []netip.Addr{netip.MustParseAddr(tt.vtep)}) || tt.got.Sequence != tt.seq {
			t.Errorf("%s: %+v, want %s", what, tt.got, tt.vtep)
		}
	}
	res, err := w.user().ListRoutes(t.Context(), connect.NewRequest(&dyetracev1.ListRoutesRequest{Vni: 101}))
	if err != nil {
		t.Fatal(err)
	}
	var labels []uint32
	for _, route := range res.Msg.Routes {
		labels = append(labels, route.GetLabel())
	}
	slices.Sort(labels)
	if res.Msg.Total != 2 || !slices.Equal(labels, []uint32{17, 18}) {
		t.Errorf("routes of VNI 101: labels %v, %v", labels, res.Msg)
	}
	// Without the mapping they are in no VNI, and with another one in that.
	w.controller.table.SetNetworks(bgp.Config{Networks: []bgp.Network{{VNI: 103, RTs: []string{"64512:8000001"}}}}.Mapping(nil), time.Now())
	r = w.controller.routes()
	if a, b := r.MAC(101, blue1), r.MAC(103, blue1); a.State == plan.Present || b.State != plan.Present {
		t.Errorf("mapped anew: %v in 101, %v in 103", a.State, b.State)
	}
}

// TestNetworksByName: what bgp.networks has by the name of a network goes where the inventory has its VNI,
// now, and not where it was.
func TestNetworksByName(t *testing.T) {
	t.Parallel()
	addr := fmt.Sprintf("127.%d.%d.78", 128+os.Getpid()>>8&63, os.Getpid()&255)
	port := teacher.StartTungsten(t, addr)
	w := newWorld(t, func(c *Config) {
		c.BGP = &bgp.Config{
			RouterID: "10.0.0.9", AS: 64512, Networks: []bgp.Network{{Name: "blue", RTs: []string{"64512:8000001"}}, {Name: "nowhere", RTs: []string{"64512:2"}}},
			Peers: []bgp.Peer{{Address: addr, Port: port, AS: 64512, Families: []string{"evpn", "vpnv4"}}},
		}
	})
	w.start()
	text := labInventory()
	const blue = ", segmentation_id: 101"
	for _, tt := range []struct {
		name, now string
		vni       uint32 // 0: it is looked up nowhere
	}{
		{"as it was at the start", blue, 101},
		{"another VNI", ", segmentation_id: 150", 150},
		{"none", "", 0},
		{"and back", blue, 101},
	} {
		inv := strings.Replace(text, blue, tt.now, 1)
		if tt.now != blue && inv == text {
			t.Fatalf("no %q in\n%s", blue, text)
		}
		if err := os.WriteFile(w.cfg.Inventory[0], []byte(inv), 0o600); err != nil {
			t.Fatal(err)
		}
		w.controller.reloadInventory()
		eventually(t, tt.name, func() bool {
			r := w.controller.routes()
			for _, vni := range []uint32{101, 150} {
				if (r.MAC(vni, blue1).State == plan.Present) != (vni == tt.vni) {
					return false
				}
			}
			return true
		})
	}
}
