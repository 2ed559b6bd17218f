package plugin

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// Communities as a control node of Tungsten Fabric puts them on its routes (its
// src/bgp/extended-community, origin-vn, security_group, tunnel_encap, mac_mobility and etree).
const (
	tfTarget   = "0002 fc00 007a1201" // 64512:8000001
	tfOther    = "0002 fc00 007a1209" // 64512:8000009, which nobody maps
	tfGRE      = "030c 0000 0000 0002"
	tfUDP      = "030c 0000 0000 000d"
	tfOldUDP   = "030c 0000 0000 9089" // 37001, from before IANA had a number
	tfOldVXLAN = "030c 0000 0000 908a" // 37002
	tfGroup    = "8004 fc00 007a1202"  // security group
	tfOrigin   = "8071 fc00 00000004"  // origin virtual network
	tfLeaf     = "0605 0100 00000000"
	tfMobility = "0600 0000 00000005"
)

// tfUpdates are UPDATEs in hexadecimal: a type-2 route with an MPLS label (the lowest bit is the
// stack's bottom), an inet-vpn route, and a type-2 route with a VNI.
var tfUpdates = []string{
	tfUpdate("0019 46 04 0a010001 00"+
		"02 25 00010a0100010005 00000000000000000000 00000000 30 fa163e000111 20 0a00010b 000111",
		tfTarget, tfGroup, tfOrigin, tfGRE, tfUDP, tfOldUDP, tfMobility, tfLeaf),
	tfUpdate("0001 80 0c 0000000000000000 0a010002 00"+
		"78 000121 00010a0100020006 0a00010c",
		tfTarget, tfGroup, tfOrigin, tfGRE, tfUDP, tfOldUDP),
	tfUpdate("0019 46 04 0a010003 00"+
		"02 21 00010a0100030007 00000000000000000000 00000066 30 fa163e000199 00 000066",
		tfOther, tfGroup, tfOrigin, tfOldVXLAN),
}

// tfUpdate is the body of an UPDATE with MP_REACH_NLRI and communities.
func tfUpdate(reach string, communities ...string) string {
	unspaced := func(s string) string { return strings.ReplaceAll(s, " ", "") }
	reach, all := unspaced(reach), unspaced(strings.Join(communities, ""))
	attrs := "400101 00" + "400200" + "400504 00000064" +
		fmt.Sprintf("900e%04x", len(reach)/2) + reach + fmt.Sprintf("c010%02x", len(all)/2) + all
	attrs = unspaced(attrs)
	return fmt.Sprintf("0000%04x", len(attrs)/2) + attrs
}

// controlNode takes one connection, and says what a control node says: an OPEN without four-octet AS
// numbers, which are off by default, its routes, and KEEPALIVEs for an answer.
func controlNode(l net.Listener) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	send := func(kind byte, body string) {
		b, _ := hex.DecodeString(body)
		m := append(bytes.Repeat([]byte{0xff}, 16), 0, 0, kind)
		binary.BigEndian.PutUint16(m[16:], uint16(19+len(b)))
		c.Write(append(m, b...))
	}
	// Version 4, AS 64512, 90 s, 10.1.0.9; families inet-vpn and EVPN.
	send(1, "04fc00005a0a010009"+"10"+"020e"+"010400010080"+"010400190046"+"0200")
	for {
		h := make([]byte, 19)
		if _, err := io.ReadFull(c, h); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(h[16:]))-19); err != nil {
			return err
		}
		switch h[18] {
		case 1:
			send(4, "")
			for _, u := range tfUpdates {
				send(2, u)
			}
		case 3:
			return nil
		case 4:
			send(4, "")
		}
	}
}

// TestTungstenFabric: what a control node says byte by byte is in the table, in the answers, and in
// what plans get to see, by the VNI that its route targets are mapped to.
func TestTungstenFabric(t *testing.T) {
	t.Parallel()
	addr := fmt.Sprintf("127.%d.%d.77", 128+os.Getpid()>>8&63, os.Getpid()&255)
	l, err := net.Listen("tcp", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- controlNode(l) }()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	w := newWorld(t, func(c *Config) {
		c.BGP = &bgp.Config{
			RouterID: "10.0.0.9", AS: 64512, Networks: []bgp.Network{{VNI: 101, RTs: []string{"64512:8000001"}}},
			Peers: []bgp.Peer{{Address: addr, Port: l.Addr().(*net.TCPAddr).Port, AS: 64512, Families: []string{"evpn", "vpnv4"}}},
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
	w.controller.table.SetNetworks(bgp.Config{Networks: []bgp.Network{{VNI: 103, RTs: []string{"64512:8000001"}}}}.Targets(), time.Now())
	r = w.controller.routes()
	if a, b := r.MAC(101, blue1), r.MAC(103, blue1); a.State == plan.Present || b.State != plan.Present {
		t.Errorf("mapped anew: %v in 101, %v in 103", a.State, b.State)
	}
}
