package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/dyetrace/dyetrace/stain"
)

// Kind is what a route is about.
type Kind uint8

// The kinds, EVPN's by their route types.
const (
	KindSegment   Kind = 1   // a VTEP is on an Ethernet segment: Ethernet A-D, per ES or per EVI
	KindMAC       Kind = 2   // a MAC, with an IP address or without
	KindMulticast Kind = 3   // a VTEP takes part in a network
	KindPrefix    Kind = 5   // an IP prefix
	KindVPN       Kind = 128 // an IP prefix, of family VPNv4 or VPNv6
)

// String returns the kind in words.
func (k Kind) String() string {
	switch k {
	case KindSegment:
		return "segment"
	case KindMAC:
		return "mac"
	case KindMulticast:
		return "multicast"
	case KindPrefix:
		return "prefix"
	case KindVPN:
		return "vpn"
	}
	return fmt.Sprintf("type %d", uint8(k))
}

// ESI is an Ethernet segment identifier; zero: the route's host is on no segment.
type ESI [10]byte

// MaxTag is the Ethernet tag of a KindSegment route that is about the segment as a whole (MAX-ET; RFC
// 7432, 8.2.1); with any other it is about one network on it (8.4.1).
const MaxTag = 1<<32 - 1

// String returns the bytes as routers print them, 00:11:….
func (e ESI) String() string {
	b := make([]byte, 0, 29)
	for i, v := range e {
		if i > 0 {
			b = append(b, ':')
		}
		b = fmt.Appendf(b, "%02x", v)
	}
	return string(b)
}

// RD is a route distinguisher (RFC 4364, 4.2), its first byte uppermost.
type RD uint64

// String returns 64512:100, 192.0.2.1:100 or, with an AS of 4 octets, 4200000000:100; an RD
// of a type that no RFC knows in hexadecimal.
func (rd RD) String() string {
	switch rd >> 48 {
	case 0, 1, 2:
		return (RouteTarget(rd>>48)<<56 | 2<<48 | RouteTarget(rd)&(1<<48-1)).String()
	}
	return fmt.Sprintf("%#016x", uint64(rd))
}

// Route is one route as it is on the wire.
type Route struct {
	Kind    Kind
	V6      bool  // of Addr
	Bits    uint8 // prefix length of Addr; KindMAC: 0 (no address), 32 or 128
	RD      RD
	Tag     uint32 // Ethernet tag
	MAC     stain.MAC
	Addr    [16]byte // IPv4 in the first 4; bits behind Bits are 0; KindSegment: the ESI, which tells routes apart
	Label   uint32   // 24 bits as sent; see Encaps.Label
	Label2  uint32   // likewise, of the IP network; see HasL3
	HasL3   bool     // KindMAC: there is a second label
	Gateway [16]byte // KindPrefix: the route goes by this address, laid out as Addr; zero: by the next hop (RFC 9136, 3.2)
	ESI     ESI
}

// Prefix returns Addr and Bits; invalid if the route has no address.
func (r *Route) Prefix() netip.Prefix {
	switch {
	case r.V6:
		return netip.PrefixFrom(netip.AddrFrom16(r.Addr), int(r.Bits))
	case r.Kind == KindMAC && r.Bits == 0 || r.Kind == KindSegment:
		return netip.Prefix{}
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(r.Addr[:4])), int(r.Bits))
}

// check walks all routes, and counts them. The error wraps ErrReset.
func (r *Routes) check(withdrawn bool) error {
	r.Count = 0
	for b := r.NLRI; len(b) > 0; {
		var n int
		var reason string
		if r.Family == EVPN {
			n, reason = checkEVPN(b, withdrawn)
		} else {
			n, reason = checkVPN(b, r.Family == VPNv6)
		}
		if reason != "" {
			return fmt.Errorf("%s, byte %d of routes: %s: %w", r.Family, len(r.NLRI)-len(b), reason, ErrReset)
		}
		if r.Family != EVPN || learnedType(b[0]) {
			r.Count++
		}
		b = b[n:]
	}
	return nil
}

func learnedType(t byte) bool { return t == 1 || t == 2 || t == 3 || t == 5 }

// checkEVPN returns the length of the first route with its two bytes in front, or what is
// wrong with it. Types that are not learned may hold anything.
func checkEVPN(b []byte, withdrawn bool) (int, string) {
	if len(b) < 2 {
		return 0, "one byte left, want type and length"
	}
	n := int(b[1])
	if n > len(b)-2 {
		return 0, "route ends behind the attribute"
	}
	v := b[2 : 2+n]
	switch b[0] {
	case 1:
		// Who withdraws may leave out the label.
		if n != 25 && !(n == 22 && withdrawn) {
			return 0, "type 1 of other than 25 bytes"
		}
	case 2:
		if n < 30 {
			return 0, "type 2 below 30 bytes"
		}
		if v[22] != 48 {
			return 0, "type 2 whose MAC has not 48 bits"
		}
		if v[29] != 0 && v[29] != 32 && v[29] != 128 {
			return 0, "type 2 whose IP address has not 0, 32 or 128 bits"
		}
		// RFC 7432, 7.2: one label or two. Who withdraws may leave them out.
		labels := n - 30 - int(v[29]/8)
		if labels != 3 && labels != 6 && !(labels == 0 && withdrawn) {
			return 0, "type 2 with neither one label nor two"
		}
	case 3:
		if n != 17 && n != 29 {
			return 0, "type 3 of neither 17 nor 29 bytes"
		}
		if int(v[12])/8+13 != n || v[12]%8 != 0 {
			return 0, "type 3 whose IP address has not the bits that it says"
		}
	case 5:
		if n != 34 && n != 58 {
			return 0, "type 5 of neither 34 nor 58 bytes"
		}
		if n == 34 && v[22] > 32 || v[22] > 128 {
			return 0, "type 5 whose prefix is longer than an address"
		}
	}
	return 2 + n, ""
}

// checkVPN likewise. One label: several need a capability (RFC 8277, 2.1) that is not
// offered; so its bottom-of-stack bit says nothing (2.2).
func checkVPN(b []byte, v6 bool) (int, string) {
	most := 88 + 32
	if v6 {
		most = 88 + 128
	}
	bits := int(b[0])
	if bits < 88 || bits > most {
		return 0, "prefix length beyond label, RD and address"
	}
	n := 1 + (bits+7)/8
	if n > len(b) {
		return 0, "route ends behind the attribute"
	}
	return n, ""
}

// Next decodes the first route that is of a known kind, and returns what is behind it. It
// returns false when there is none. NLRI must be of Parse, or what Next left of that.
func (r *Routes) Next(nlri []byte, out *Route) (rest []byte, ok bool) {
	if r.Family != EVPN {
		if len(nlri) == 0 || !r.Family.Learned() {
			return nil, false
		}
		return decodeVPN(nlri, r.Family == VPNv6, out), true
	}
	for len(nlri) >= 2 {
		v := nlri[2 : 2+int(nlri[1])]
		rest = nlri[2+len(v):]
		switch nlri[0] {
		case 1:
			decodeSegment(v, out)
			return rest, true
		case 2:
			decodeMAC(v, out)
			return rest, true
		case 3:
			decodeMulticast(v, out)
			return rest, true
		case 5:
			decodePrefix(v, out)
			return rest, true
		}
		nlri = rest
	}
	return nil, false
}

func decodeSegment(v []byte, r *Route) {
	*r = Route{
		Kind: KindSegment,
		RD:   RD(binary.BigEndian.Uint64(v)),
		ESI:  ESI(v[8:18]),
		Tag:  binary.BigEndian.Uint32(v[18:]),
	}
	copy(r.Addr[:], v[8:18])
	if len(v) == 25 {
		r.Label = uint24(v[22:])
	}
}

func decodeMAC(v []byte, r *Route) {
	*r = Route{
		Kind: KindMAC,
		RD:   RD(binary.BigEndian.Uint64(v)),
		ESI:  ESI(v[8:18]),
		Tag:  binary.BigEndian.Uint32(v[18:]),
		MAC:  stain.MAC(v[23:29]),
		Bits: v[29],
		V6:   v[29] == 128,
	}
	n := int(v[29] / 8)
	copy(r.Addr[:], v[30:30+n])
	v = v[30+n:]
	if len(v) >= 3 {
		r.Label = uint24(v)
	}
	if len(v) == 6 {
		r.Label2, r.HasL3 = uint24(v[3:]), true
	}
}

func decodeMulticast(v []byte, r *Route) {
	*r = Route{
		Kind: KindMulticast,
		RD:   RD(binary.BigEndian.Uint64(v)),
		Tag:  binary.BigEndian.Uint32(v[8:]),
		Bits: v[12],
		V6:   v[12] == 128,
	}
	copy(r.Addr[:], v[13:])
}

func decodePrefix(v []byte, r *Route) {
	*r = Route{
		Kind: KindPrefix,
		RD:   RD(binary.BigEndian.Uint64(v)),
		ESI:  ESI(v[8:18]),
		Tag:  binary.BigEndian.Uint32(v[18:]),
		Bits: v[22],
		V6:   len(v) == 58,
	}
	n := 4
	if r.V6 {
		n = 16
	}
	copy(r.Addr[:], v[23:23+n])
	mask(&r.Addr, r.Bits)
	copy(r.Gateway[:], v[23+n:23+2*n])
	r.Label = uint24(v[23+2*n:])
}

func decodeVPN(b []byte, v6 bool, r *Route) (rest []byte) {
	bits := int(b[0])
	n := 1 + (bits+7)/8
	*r = Route{
		Kind:  KindVPN,
		V6:    v6,
		Bits:  uint8(bits - 88),
		Label: uint24(b[1:]),
		RD:    RD(binary.BigEndian.Uint64(b[4:])),
	}
	copy(r.Addr[:], b[12:n])
	mask(&r.Addr, r.Bits)
	return b[n:]
}

// mask clears the bits behind the prefix: peers may send them (RFC 4760, 5), and they tell
// no two routes apart.
func mask(addr *[16]byte, bits uint8) {
	i := int(bits / 8)
	if i < 16 {
		addr[i] &= ^(0xff >> (bits % 8))
		clear(addr[i+1:])
	}
}
