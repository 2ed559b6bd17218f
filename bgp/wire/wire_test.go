package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/stain"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func routesOf(r *Routes) (all []Route) {
	var one Route
	for rest, ok := r.Next(r.NLRI, &one); ok; rest, ok = r.Next(rest, &one) {
		all = append(all, one)
	}
	return all
}

func addr16(s string) (a [16]byte) {
	copy(a[:], netip.MustParseAddr(s).AsSlice())
	return a
}

// body is an UPDATE with these attributes: 0000 and their length come before them.
func body(tb testing.TB, attrs string) []byte {
	v := unhex(tb, attrs)
	return append([]byte{0, 0, byte(len(v) >> 8), byte(len(v))}, v...)
}

// sized is the bytes behind a length of one byte.
func sized(s string) string {
	n := len(strings.Join(strings.Fields(s), "")) / 2
	return hex.EncodeToString([]byte{byte(n)}) + " " + s + " "
}

const (
	rd1     = "0001 0a000001 0064 " // 10.0.0.1:100
	noESI   = "00000000000000000000 "
	esi1    = "00112233445566778899 "
	mac1    = "02000000ab01 "
	hop1    = "c0000201 "
	evpnHop = "0019 46 04 " + hop1 + "00 "
	vpn4Hop = "0001 80 0c 0000000000000000" + hop1 + "00 "
)

var segment1 = ESI{0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99}

func addrOf(e ESI) (a [16]byte) {
	copy(a[:], e[:])
	return a
}

func TestParseGolden(t *testing.T) {
	t.Parallel()
	rd := RD(0x00010a0000010064)
	mac := stain.MAC{2, 0, 0, 0, 0xab, 1}
	tests := []struct {
		name, attrs    string
		reach, unreach []Route
		hop            string
		want           Attributes
		rts            string
	}{
		{
			name: "a MAC behind ORIGIN and AS_PATH",
			attrs: "40010100 40020602010000fe0a" +
				"90 0e 002c" + evpnHop + "02 21" + rd1 + noESI + "00000000 30" + mac1 + "00 000064" +
				"c0 10 10 0002fc0000000064 030c000000000008",
			reach: []Route{{Kind: KindMAC, RD: rd, MAC: mac, Label: 100}},
			hop:   "192.0.2.1", want: Attributes{Encaps: 1 << EncapVXLAN}, rts: "64512:100",
		},
		{
			name: "MAC and IPv4 with both labels, mobility, router's MAC",
			attrs: "80 0e" + sized(evpnHop+"02"+sized(rd1+"00112233445566778899 00000007 30"+mac1+"20 0a000009 000064 001388")) +
				"c0 10" + sized("0102c00002090002 0202fa56ea000003 030c000000000008 0600010000000005 06030200000000ff"),
			reach: []Route{{
				Kind: KindMAC, RD: rd, Tag: 7, MAC: mac, Bits: 32, Addr: addr16("10.0.0.9"), Label: 100, Label2: 5000, HasL3: true,
				ESI: segment1,
			}},
			hop:  "192.0.2.1",
			want: Attributes{Encaps: 1 << EncapVXLAN, Mobility: true, Sticky: true, Seq: 5, RouterMAC: stain.MAC{2, 0, 0, 0, 0, 255}},
			rts:  "192.0.2.9:2 4200000000:3",
		},
		{
			name: "Tungsten Fabric: E-Tree, its old tunnel types, communities that nobody knows",
			attrs: "80 0e" + sized(evpnHop+"02"+sized(rd1+noESI+"0000000f 30"+mac1+"80 20010db8000000000000000000000001 000191")) +
				"c0 10" + sized("0002fc00007a1201 0605010000000000 030c000000009089 030c00000000000b 030d000000000000 8071fc0000000011 0601010000001230"),
			reach: []Route{{Kind: KindMAC, RD: rd, Tag: 15, MAC: mac, Bits: 128, V6: true, Addr: addr16("2001:db8::1"), Label: 0x191}},
			hop:   "192.0.2.1",
			want:  Attributes{Encaps: 1<<EncapMPLSUDP | 1<<EncapMPLSGRE, Leaf: true, Gateway: true, Single: true, ESILabel: 0x1230},
			rts:   "64512:8000001",
		},
		{
			name: "Ethernet A-D per ES of a single-active segment, and per EVI",
			attrs: "80 0e" + sized(evpnHop+"01"+sized(rd1+esi1+"ffffffff 000000")+"01"+sized(rd1+esi1+"00000007 000064")) +
				"c0 10" + sized("0002fc0000000064 030c000000000008 0601010000001230"),
			reach: []Route{
				{Kind: KindSegment, RD: rd, Tag: MaxTag, ESI: segment1, Addr: addrOf(segment1)},
				{Kind: KindSegment, RD: rd, Tag: 7, ESI: segment1, Addr: addrOf(segment1), Label: 100},
			},
			hop: "192.0.2.1", want: Attributes{Encaps: 1 << EncapVXLAN, Single: true, ESILabel: 0x1230}, rts: "64512:100",
		},
		{
			name:  "a segment's withdrawal, with its label and without",
			attrs: "80 0f" + sized("0019 46 01"+sized(rd1+esi1+"ffffffff 000000")+"01"+sized(rd1+esi1+"00000007")),
			unreach: []Route{
				{Kind: KindSegment, RD: rd, Tag: MaxTag, ESI: segment1, Addr: addrOf(segment1)},
				{Kind: KindSegment, RD: rd, Tag: 7, ESI: segment1, Addr: addrOf(segment1)},
			},
		},
		{
			name: "types 4 and 6 beside types 3 and 5; next hop IPv6",
			attrs: "80 0e" + sized("0019 46 10 20010db8000f00000000000000000001 00"+
				"04 03 010203"+
				"03"+sized(rd1+"00000000 20"+hop1)+
				"06"+sized(rd1+"00000000 000000000000 0000")+
				"05"+sized(rd1+noESI+"00000000 15 0a01ffff 00000000 001388")) +
				"c0 16" + sized("00 06 000064"+hop1),
			reach: []Route{
				{Kind: KindMulticast, RD: rd, Bits: 32, Addr: addr16("192.0.2.1")},
				{Kind: KindPrefix, RD: rd, Bits: 21, Addr: addr16("10.1.248.0"), Label: 5000},
			},
			hop: "2001:db8:f::1", want: Attributes{HasPMSI: true, PMSILabel: 100},
		},
		{
			name: "label 0 and no attributes in a withdrawal, or no label",
			attrs: "80 0f" + sized("0019 46 02"+sized(rd1+noESI+"00000000 30"+mac1+"00 000000")+
				"02"+sized(rd1+noESI+"00000001 30"+mac1+"00")),
			unreach: []Route{{Kind: KindMAC, RD: rd, MAC: mac}, {Kind: KindMAC, RD: rd, Tag: 1, MAC: mac}},
		},
		{
			name:  "VPN-IPv4, a label without bottom of stack, bits behind the prefix",
			attrs: "80 0e" + sized(vpn4Hop+"6c 000190"+rd1+"0a01ff"),
			reach: []Route{{Kind: KindVPN, RD: rd, Bits: 20, Addr: addr16("10.1.240.0"), Label: 0x190}},
			hop:   "192.0.2.1",
		},
		{
			name:  "VPN-IPv6, next hop mapped, the whole space",
			attrs: "80 0e" + sized("0002 80 18 0000000000000000 00000000000000000000ffff"+hop1+"00 58 000191"+rd1),
			reach: []Route{{Kind: KindVPN, RD: rd, V6: true, Label: 0x191}},
			hop:   "192.0.2.1",
		},
		{name: "a family that is not learned", attrs: "80 0e 0e 0001 85 00 00 0701180a0000038106"},
		{name: "a withdrawal of such a family", attrs: "80 0f 0c 0001 85 0701180a0000038106"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var u Update
			if err := u.Parse(body(t, tt.attrs)); err != nil || u.Malformed != nil {
				t.Fatalf("Parse: %v, %v", err, u.Malformed)
			}
			if got := routesOf(&u.Reach); !slices.Equal(got, tt.reach) || u.Reach.Count != len(tt.reach) {
				t.Errorf("reach: %d, %+v; want %+v", u.Reach.Count, got, tt.reach)
			}
			if got := routesOf(&u.Unreach); !slices.Equal(got, tt.unreach) || u.Unreach.Count != len(tt.unreach) {
				t.Errorf("unreach: %d, %+v; want %+v", u.Unreach.Count, got, tt.unreach)
			}
			var rts []string
			for _, rt := range u.Attributes.AppendRouteTargets(nil) {
				rts = append(rts, rt.String())
				if back, err := ParseRouteTarget(rt.String()); back != rt || err != nil {
					t.Errorf("route target %v read back: %v, %v", rt, back, err)
				}
			}
			u.Attributes.communities = nil
			if !sameAttributes(u.Attributes, tt.want) || strings.Join(rts, " ") != tt.rts {
				t.Errorf("attributes %+v, %v; want %+v, %s", u.Attributes, rts, tt.want, tt.rts)
			}
			if tt.hop != "" && u.NextHop != netip.MustParseAddr(tt.hop) {
				t.Errorf("next hop %v, want %s", u.NextHop, tt.hop)
			}
		})
	}
}

// sameAttributes leaves out the raw communities.
func sameAttributes(a, b Attributes) bool {
	return a.Encaps == b.Encaps && a.Seq == b.Seq && a.Mobility == b.Mobility && a.Sticky == b.Sticky && a.Gateway == b.Gateway &&
		a.Leaf == b.Leaf && a.RouterMAC == b.RouterMAC && a.ESILabel == b.ESILabel && a.Single == b.Single &&
		a.PMSILabel == b.PMSILabel && a.HasPMSI == b.HasPMSI
}

func TestEndOfRIB(t *testing.T) {
	t.Parallel()
	tests := []struct {
		attrs string
		want  Family
	}{
		{"", IPv4Unicast},
		{"80 0f 03 0019 46", EVPN},
		{"90 0f 0003 0001 80", VPNv4},
		{"80 0f 03 0002 80", VPNv6},
		{"40 01 01 00 80 0f 03 0019 46", 0}, // another attribute
		{"80 0f" + sized("0019 46 02"+sized(rd1+noESI+"00000001 30"+mac1+"00")), 0},
	}
	for _, tt := range tests {
		var u Update
		if err := u.Parse(body(t, tt.attrs)); u.EndOfRIB != tt.want || err != nil {
			t.Errorf("%s: end of RIB of %v, %v; want %v", tt.attrs, u.EndOfRIB, err, tt.want)
		}
	}
}

// What cannot be located resets; what can, and is unsound, is treated as withdrawn.
func TestParseErrors(t *testing.T) {
	t.Parallel()
	reach := func(routes string) string { return "80 0e" + sized(evpnHop+routes) }
	type2 := func(rest string) string { return reach("02" + sized(rd1+noESI+"00000000"+rest)) }
	good := type2("30" + mac1 + "00 000064")
	tests := []struct {
		name, attrs, says string
		kind              error
	}{
		{"communities of 7 bytes", good + "c0 10 07 0002fc00000000", "multiple of 8", ErrWithdraw},
		{"communities of none", good + "c0 10 00", "multiple of 8", ErrWithdraw},
		{"communities not transitive", good + "80 10 08 0002fc0000000064", "flags", ErrWithdraw},
		{"mp_reach transitive", "c0" + good[2:], "flags", ErrWithdraw},
		{"pmsi short", good + "c0 16 04 00060000", "pmsi tunnel", ErrWithdraw},
		{"attribute behind the end", good + "c0 10 10 0002fc0000000064", "ends behind", ErrWithdraw},
		{"two bytes behind", good + "c0 10", "ends behind", ErrWithdraw},
		{"routes behind the end", "80 0f 03 0019 46 80 0e 2c 0019", "attribute 14", ErrReset},
		{"broken before any routes", "c0 10 10 0002fc0000000064", "no routes before", ErrReset},
		{"twice", good + good, "twice", ErrReset},
		{"mp_reach empty", "80 0e 00", "want 5", ErrReset},
		{"mp_unreach short", "80 0f 02 0019", "want 3", ErrReset},
		{"next hop of 5", "80 0e" + sized("0019 46 05 c000020101 00"), "next hop of 5", ErrReset},
		{"next hop behind the end", "80 0e" + sized("0019 46 ff c0 00"), "next hop of 255", ErrReset},
		{"route behind the end", reach("02 ff" + rd1), "behind the attribute", ErrReset},
		{"half a header", reach("02"), "one byte left", ErrReset},
		{"type 1 of 24", reach("01" + sized(rd1+esi1+"00000007 0000")), "other than 25", ErrReset},
		{"type 1 without label", reach("01" + sized(rd1+esi1+"00000007")), "other than 25", ErrReset},
		{"type 2 truncated", type2("30 0200"), "below 30", ErrReset},
		{"type 2, MAC of 40 bits", type2("28" + mac1 + "00 000064"), "48 bits", ErrReset},
		{"type 2, IP of 33 bits", type2("30" + mac1 + "21 000064"), "0, 32 or 128", ErrReset},
		{"type 2, IP missing", type2("30" + mac1 + "20 000064"), "one label", ErrReset},
		{"type 2 without label", type2("30" + mac1 + "00"), "one label", ErrReset},
		{"type 3, no address", reach("03" + sized(rd1+"00000000 00")), "17 nor 29", ErrReset},
		{"type 3, 128 bits in 4 bytes", reach("03" + sized(rd1+"00000000 80"+hop1)), "bits that it says", ErrReset},
		{"type 5, /33", reach("05" + sized(rd1+noESI+"00000000 21 0a010000 00000000 001388")), "longer", ErrReset},
		{"type 5 of 35", reach("05" + sized(rd1+noESI+"00000000 18 0a010000 00000000 00138800")), "34 nor 58", ErrReset},
		{"VPN, /33", "80 0e" + sized(vpn4Hop+"79 000191"+rd1+"0a01010180"), "beyond label", ErrReset},
		{"VPN, no RD", "80 0e" + sized(vpn4Hop+"18 000191"), "beyond label", ErrReset},
	}
	for _, tt := range tests {
		var u Update
		got := u.Parse(body(t, tt.attrs))
		if tt.kind == ErrWithdraw {
			if got != nil || u.Reach.Count != 1 {
				t.Errorf("%s: %d routes, %v; want one to withdraw", tt.name, u.Reach.Count, got)
			}
			got = u.Malformed
		}
		if !errors.Is(got, tt.kind) || !strings.Contains(got.Error(), tt.says) {
			t.Errorf("%s: %v; want one with %q", tt.name, got, tt.says)
		}
	}
	for _, whole := range []string{"", "000000", "0001 0000", "ffff 0000", "0000 0001", "0000 ffff 00"} {
		if err := new(Update).Parse(unhex(t, whole)); !errors.Is(err, ErrReset) {
			t.Errorf("body %q: %v", whole, err)
		}
	}
}

func TestEncaps(t *testing.T) {
	t.Parallel()
	vxlan, gre := Encaps(0).With(EncapVXLAN), Encaps(0).With(EncapMPLSGRE)
	tests := []struct {
		sent Encaps
		def  Encap
		want Encaps
		vni  bool
	}{
		{0, EncapVXLAN, vxlan, true},
		{0, EncapMPLSUDP, Encaps(0).With(EncapMPLSUDP), false},
		{gre, EncapVXLAN, gre, false},
		{vxlan, EncapMPLS, vxlan, true},
		{vxlan | gre, EncapVXLAN, vxlan, true},
		{vxlan | gre, EncapMPLSUDP, gre, false},
	}
	for _, tt := range tests {
		got := tt.sent.Or(tt.def)
		if got != tt.want || got.VNI() != tt.vni {
			t.Errorf("{%v}.Or(%v) = {%v}, VNI %v; want {%v}, %v", tt.sent, tt.def, got, got.VNI(), tt.want, tt.vni)
		}
	}
	if a, b := vxlan.Label(0xabcdef), gre.Label(0x000191); a != 0xabcdef || b != 0x19 {
		t.Errorf("labels %#x, %#x", a, b)
	}
}

func TestParseRouteTargetErrors(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		"64512": "no colon", "64512:x": "number", "a:1": "neither", "2001:db8::1:1": "number", "192.0.2.1:65536": "at most 65535",
		"70000:70000": "at most 65535", "64512:4294967296": "number", "4294967296:1": "neither",
	} {
		if rt, err := ParseRouteTarget(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("ParseRouteTarget(%q) = %v, %v; want an error with %q", text, rt, err, says)
		}
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	b := body(t, "80 0e"+sized(evpnHop+"02"+sized(rd1+noESI+"00000000 30"+mac1+"00 000064"))+"c0 10 10 0002fc0000000064 030c000000000008")
	var u Update
	if n := testing.AllocsPerRun(100, func() {
		if u.Parse(b) != nil || u.Malformed != nil {
			t.Fatal("does not parse")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func benchRoutes(b *testing.B) Routes {
	one := unhex(b, "02"+sized(rd1+noESI+"00000000 30"+mac1+"00 000064"))
	return Routes{Family: EVPN, NLRI: bytes.Repeat(one, 110)} // as many as FRR packs
}

func BenchmarkWalk(b *testing.B) {
	r := benchRoutes(b)
	for b.Loop() {
		if err := r.check(false); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(110*b.N)/b.Elapsed().Seconds()/1e6, "Mroutes/s")
}

func BenchmarkDecode(b *testing.B) {
	r := benchRoutes(b)
	var out Route
	for b.Loop() {
		for rest, ok := r.Next(r.NLRI, &out); ok; rest, ok = r.Next(rest, &out) {
		}
	}
	b.ReportMetric(float64(110*b.N)/b.Elapsed().Seconds()/1e6, "Mroutes/s")
}
