package wire

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/dyetrace/dyetrace/stain"
)

// What a real VTEP sends, by the commands that stand beside it in testdata/frr.txtar, says what
// these commands say. TestFRRBytes of bgp/bench has FRR send it.
func TestFRR(t *testing.T) {
	t.Parallel()
	const rd, rd4000 = RD(0x00010a6301010064), RD(0x00010a6301010fa0)
	mac := func(last byte) stain.MAC { return stain.MAC{2, 0, 0, 0, 0xab, last} }
	l2 := Route{Kind: KindMAC, RD: rd, MAC: mac(1)}
	v4, v6 := l2, l2
	v4.Bits, v4.Addr = 32, addr16("10.1.0.9")
	v6.Bits, v6.Addr, v6.V6 = 128, addr16("2001:db8:1::9"), true
	multicast := Route{Kind: KindMulticast, RD: rd, Bits: 32, Addr: addr16("10.99.1.1")}
	prefix4 := Route{Kind: KindPrefix, RD: rd4000, Bits: 16, Addr: addr16("10.50.0.0")}
	prefix6 := Route{Kind: KindPrefix, RD: rd4000, Bits: 48, Addr: addr16("2001:db8:50::"), V6: true}
	perEVI := Route{Kind: KindSegment, RD: rd, ESI: ESI{0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99}, Label: 100}
	copy(perEVI.Addr[:], perEVI.ESI[:])
	perEVIGone, perES := perEVI, perEVI
	perEVIGone.Label = 0
	perES.RD, perES.Tag, perES.Label = 0x00010a6301010003, MaxTag, 0
	of := func(r Route, mac stain.MAC, label, label2 uint32) Route {
		r.MAC, r.Label, r.Label2, r.HasL3 = mac, label, label2, label2 != 0
		return r
	}
	vxlan, none, router := Encaps(0).With(EncapVXLAN), stain.MAC{}, stain.MAC{2, 0, 0, 0, 0x40, 0}
	tests := []struct {
		step           string
		reach, unreach []Route
		want           Attributes
		rts            string
		end            Family
	}{
		{"session", []Route{multicast}, nil, Attributes{Encaps: vxlan, HasPMSI: true, PMSILabel: 100}, "65000:100", 0},
		{"session", nil, nil, Attributes{}, "", EVPN},
		{"MAC", []Route{of(l2, mac(1), 100, 0)}, nil, Attributes{Encaps: vxlan}, "65000:100", 0},
		{"sticky MAC", []Route{of(l2, mac(2), 100, 0)}, nil, Attributes{Encaps: vxlan, Mobility: true, Sticky: true}, "65000:100", 0},
		{"MAC and IPv4", []Route{of(v4, mac(1), 100, 4000)}, nil, Attributes{Encaps: vxlan, RouterMAC: router}, "65000:100 65000:4000", 0},
		{"MAC and IPv6", []Route{of(v6, mac(1), 100, 4000)}, nil, Attributes{Encaps: vxlan, RouterMAC: router}, "65000:100 65000:4000", 0},
		{"IPv4 prefix", []Route{of(prefix4, none, 4000, 0)}, nil, Attributes{Encaps: vxlan, RouterMAC: router}, "65000:4000", 0},
		{"IPv6 prefix", []Route{of(prefix6, none, 4000, 0)}, nil, Attributes{Encaps: vxlan, RouterMAC: router}, "65000:4000", 0},
		{"MAC that comes from elsewhere", []Route{of(l2, mac(3), 100, 0)}, nil, Attributes{Encaps: vxlan, Mobility: true, Seq: 5}, "65000:100", 0},
		{"on an Ethernet segment", nil, nil, Attributes{Encaps: vxlan}, "", 0}, // type 4
		{"a network on it", []Route{perEVI}, nil, Attributes{Encaps: vxlan}, "65000:100", 0},
		{"a network on it", []Route{perES}, nil, Attributes{Encaps: vxlan}, "65000:100", 0},
		{"left the segment", nil, []Route{perES, perEVIGone}, Attributes{}, "", 0},
		{"IPv4 prefix gone", nil, []Route{prefix4}, Attributes{}, "", 0},
		{"IPv6 neighbour gone", nil, []Route{v6}, Attributes{}, "", 0},
		{"IPv4 neighbour gone", nil, []Route{v4}, Attributes{}, "", 0},
		{"MAC gone", nil, []Route{l2}, Attributes{}, "", 0},
		{"VNI gone", nil, []Route{of(l2, mac(2), 0, 0), of(l2, mac(3), 0, 0), multicast}, Attributes{}, "", 0},
	}
	bodies := frrBodies(t)
	for _, tt := range tests {
		if len(bodies[tt.step]) == 0 {
			t.Fatalf("%s: no UPDATE, or one too few", tt.step)
		}
		var u Update
		if err := u.Parse(bodies[tt.step][0]); err != nil || u.Malformed != nil || u.EndOfRIB != tt.end {
			t.Errorf("%s: %v, %v, end of RIB of %v", tt.step, err, u.Malformed, u.EndOfRIB)
		}
		bodies[tt.step] = bodies[tt.step][1:]
		if reach, unreach := routesOf(&u.Reach), routesOf(&u.Unreach); !slices.Equal(reach, tt.reach) || !slices.Equal(unreach, tt.unreach) {
			t.Errorf("%s:\ngot  %+v, -%+v\nwant %+v, -%+v", tt.step, reach, unreach, tt.reach, tt.unreach)
		}
		var rts []string
		for _, rt := range u.Attributes.AppendRouteTargets(nil) {
			rts = append(rts, rt.String())
		}
		if !sameAttributes(u.Attributes, tt.want) || strings.Join(rts, " ") != tt.rts {
			t.Errorf("%s: attributes %+v, %v; want %+v, %s", tt.step, u.Attributes, rts, tt.want, tt.rts)
		}
		if len(tt.reach) > 0 && u.NextHop != netip.MustParseAddr("10.99.1.1") {
			t.Errorf("%s: next hop %v", tt.step, u.NextHop)
		}
	}
	for step, rest := range bodies {
		for _, body := range rest {
			t.Errorf("%s: nobody looked at %x", step, body)
		}
	}
}

// frrBodies returns what FRR sends in each step.
func frrBodies(t *testing.T) map[string][][]byte {
	t.Helper()
	file, err := txtar.ParseFile("testdata/frr.txtar")
	if err != nil {
		t.Fatal(err)
	}
	bodies := map[string][][]byte{}
	for _, f := range file.Files {
		if strings.HasSuffix(f.Name, ".conf") {
			continue
		}
		for line := range strings.Lines(string(f.Data)) {
			if line = strings.TrimSpace(line); line == "" || line[0] == '$' || line[0] == '>' {
				continue
			}
			b, err := hex.DecodeString(line)
			if err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
			bodies[f.Name] = append(bodies[f.Name], b)
		}
	}
	return bodies
}
