package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"pgregory.net/rapid"

	"github.com/dyetrace/dyetrace/stain"
)

// errOracle says that GoBGP cannot be asked: it panics on some UPDATEs.
var errOracle = errors.New("the oracle panicked")

// ask has GoBGP parse a body.
func ask(body []byte) (u *bgp.BGPUpdate, err error) {
	defer func() {
		if r := recover(); r != nil {
			u, err = nil, fmt.Errorf("%w: %v", errOracle, r)
		}
	}()
	m, err := bgp.ParseBGPBody(&bgp.BGPHeader{Type: bgp.BGP_MSG_UPDATE, Len: uint16(19 + len(body))}, body)
	if err != nil {
		return nil, err
	}
	return m.Body.(*bgp.BGPUpdate), nil
}

// theirs turns what GoBGP says of a route of type 1, 2, 3 or 5 into ours.
func theirs(nlri bgp.AddrPrefixInterface) (Route, bool) {
	e, ok := nlri.(*bgp.EVPNNLRI)
	if !ok {
		return Route{}, false
	}
	rd := func(d bgp.RouteDistinguisherInterface) RD {
		b, _ := d.Serialize()
		return RD(binary.BigEndian.Uint64(b))
	}
	esi := func(s bgp.EthernetSegmentIdentifier) (e ESI) {
		b, _ := s.Serialize()
		copy(e[:], b)
		return e
	}
	r := Route{Kind: Kind(e.RouteType)}
	fill := func(ip net.IP, bits uint8) {
		r.Bits = bits
		if v4 := ip.To4(); v4 != nil && !r.V6 {
			ip = v4
		}
		copy(r.Addr[:], ip)
		mask(&r.Addr, bits)
	}
	switch v := e.RouteTypeData.(type) {
	case *bgp.EVPNEthernetAutoDiscoveryRoute:
		r.RD, r.ESI, r.Tag, r.Label = rd(v.RD), esi(v.ESI), v.ETag, v.Label
		copy(r.Addr[:], r.ESI[:])
	case *bgp.EVPNMacIPAdvertisementRoute:
		r.RD, r.ESI, r.Tag, r.MAC = rd(v.RD), esi(v.ESI), v.ETag, stain.MAC(v.MacAddress)
		r.V6 = v.IPAddressLength == 128
		fill(v.IPAddress, v.IPAddressLength)
		if len(v.Labels) > 0 {
			r.Label = v.Labels[0]
		}
		if len(v.Labels) > 1 {
			r.Label2, r.HasL3 = v.Labels[1], true
		}
	case *bgp.EVPNMulticastEthernetTagRoute:
		r.RD, r.Tag, r.V6 = rd(v.RD), v.ETag, v.IPAddressLength == 128
		fill(v.IPAddress, v.IPAddressLength)
	case *bgp.EVPNIPPrefixRoute:
		r.RD, r.ESI, r.Tag, r.Label = rd(v.RD), esi(v.ESI), v.ETag, v.Label
		r.V6 = e.Length == 58
		if gw := v.GWIPAddress.To4(); gw != nil && !r.V6 {
			copy(r.Gateway[:], gw)
		} else {
			copy(r.Gateway[:], v.GWIPAddress)
		}
		fill(v.IPPrefix, v.IPPrefixLength)
	default:
		return Route{}, false
	}
	return r, true
}

// compare wants both to say the same of what both take.
func compare(t interface{ Fatalf(string, ...any) }, body []byte) (compared int) {
	var u Update
	if err := u.Parse(body); err != nil || u.Malformed != nil {
		return 0
	}
	them, err := ask(body)
	if err != nil {
		return 0
	}
	for _, attr := range them.PathAttributes {
		var list []bgp.AddrPrefixInterface
		var ours []Route
		switch a := attr.(type) {
		case *bgp.PathAttributeMpReachNLRI:
			if u.Reach.Family != EVPN {
				continue
			}
			list, ours = a.Value, routesOf(&u.Reach)
		case *bgp.PathAttributeMpUnreachNLRI:
			if u.Unreach.Family != EVPN {
				continue
			}
			list, ours = a.Value, routesOf(&u.Unreach)
		}
		for _, n := range list {
			want, ok := theirs(n)
			if !ok {
				continue
			}
			if len(ours) > 0 && ours[0].RD>>48 > 2 {
				ours[0].RD &= 0xffff << 48 // of an RD of unknown type they keep no more
			}
			if len(ours) == 0 || ours[0] != want {
				t.Fatalf("ours %+v\ntheirs %+v\nof %x", ours, want, body)
			}
			ours = ours[1:]
			compared++
		}
		if len(ours) > 0 && len(list) > 0 {
			t.Fatalf("more of ours: %+v\nof %x", ours, body)
		}
	}
	return compared
}

// What GoBGP builds we read as GoBGP does, attributes included.
func TestOracle(t *testing.T) {
	t.Parallel()
	compared := 0
	rapid.Check(t, func(t *rapid.T) {
		rd := rapid.SampledFrom([]bgp.RouteDistinguisherInterface{
			bgp.NewRouteDistinguisherTwoOctetAS(64512, 70000), bgp.NewRouteDistinguisherIPAddressAS("192.0.2.1", 7),
			bgp.NewRouteDistinguisherFourOctetAS(4200000000, 3),
		}).Draw(t, "rd")
		tag := rapid.Uint32().Draw(t, "tag")
		esi := bgp.EthernetSegmentIdentifier{Type: bgp.ESI_ARBITRARY, Value: rapid.SliceOfN(rapid.Byte(), 9, 9).Draw(t, "esi")}
		labels := rapid.SliceOfN(rapid.Uint32Range(0, 1<<24-1), 1, 2).Draw(t, "labels")
		mac := net.HardwareAddr(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac")).String()
		ip := rapid.SampledFrom([]string{"", "10.0.0.1", "2001:db8::1"}).Draw(t, "ip")
		routes := []bgp.AddrPrefixInterface{
			bgp.NewEVPNEthernetAutoDiscoveryRoute(rd, esi, tag, labels[0]),
			bgp.NewEVPNMacIPAdvertisementRoute(rd, esi, tag, mac, ip, labels),
			bgp.NewEVPNMulticastEthernetTagRoute(rd, tag, "192.0.2.1"),
			bgp.NewEVPNEthernetSegmentRoute(rd, esi, "192.0.2.1"),
			bgp.NewEVPNIPPrefixRoute(rd, esi, tag, 33, "2001:db8:8000::", "::", labels[0]),
			bgp.NewEVPNIPPrefixRoute(rd, esi, tag, 9, "10.128.0.0", "10.0.0.7", labels[0]),
		}
		seq, sticky := rapid.Uint32().Draw(t, "seq"), rapid.Bool().Draw(t, "sticky")
		msg := bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{
			bgp.NewPathAttributeMpReachNLRI("192.0.2.1", routes),
			bgp.NewPathAttributeExtendedCommunities([]bgp.ExtendedCommunityInterface{
				bgp.NewTwoOctetAsSpecificExtended(bgp.EC_SUBTYPE_ROUTE_TARGET, 64512, 100, true),
				bgp.NewEncapExtended(bgp.TUNNEL_TYPE_VXLAN), bgp.NewMacMobilityExtended(seq, sticky),
				bgp.NewRoutersMacExtended("02:00:00:00:00:ff"), bgp.NewDefaultGatewayExtended(), bgp.NewESILabelExtended(77, true),
			}),
		}, nil)
		whole, err := msg.Serialize()
		if err != nil {
			t.Fatal(err)
		}
		compared += compare(t, whole[19:])
		var u Update
		if err := u.Parse(whole[19:]); err != nil || u.Malformed != nil {
			t.Fatalf("Parse: %v, %v", err, u.Malformed)
		}
		want := Attributes{
			Encaps: 1 << EncapVXLAN, Mobility: true, Seq: seq, Sticky: sticky, Gateway: true, Single: true, ESILabel: u.Attributes.ESILabel,
			RouterMAC: stain.MAC{2, 0, 0, 0, 0, 255},
		}
		if rts := u.Attributes.AppendRouteTargets(nil); !sameAttributes(u.Attributes, want) || len(rts) != 1 || rts[0].String() != "64512:100" {
			t.Fatalf("%+v, %v; want %+v", u.Attributes, rts, want)
		}
	})
	if compared == 0 {
		t.Error("nothing was compared")
	}
}

// Where both take an UPDATE, both find the same EVPN routes in it. GoBGP's panics and what it
// refuses beyond that are its own; no UPDATE makes ours panic.
func FuzzOracle(f *testing.F) {
	for _, attrs := range []string{
		"80 0e" + sized(evpnHop+"01"+sized(rd1+esi1+"ffffffff 000000")+"01"+sized(rd1+esi1+"00000000 000064")) + "c0 10 08 0601010000000000",
		"80 0f" + sized("0019 46 01"+sized(rd1+esi1+"ffffffff 000000")),
		"80 0e" + sized(evpnHop+"02"+sized(rd1+noESI+"00000000 30"+mac1+"00 000064")) + "c0 10 10 0002fc0000000064 030c000000000008",
		"80 0f" + sized("0019 46 02"+sized(rd1+noESI+"00000000 30"+mac1+"00 000000")),
		"80 0e" + sized(evpnHop+"05"+sized(rd1+noESI+"00000000 15 0a01ffff 00000000 001388")+"03"+sized(rd1+"00000000 20"+hop1)),
		"80 0e" + sized(evpnHop+"02 19"+rd1+noESI+"00000000 30"), // GoBGP panics
	} {
		f.Add(body(f, attrs))
	}
	f.Fuzz(func(t *testing.T, body []byte) { compare(t, body) })
}
