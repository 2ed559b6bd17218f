package wire

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"

	"github.com/dyetrace/dyetrace/stain"
)

// Encap is a tunnel type, by its number in IANA's registry (RFC 9012, 13).
type Encap uint8

// The encapsulations that overlays use. The zero Encap says that none is named.
const (
	EncapGRE      Encap = 2
	EncapVXLAN    Encap = 8
	EncapNVGRE    Encap = 9
	EncapMPLS     Encap = 10
	EncapMPLSGRE  Encap = 11
	EncapVXLANGPE Encap = 12
	EncapMPLSUDP  Encap = 13
	EncapBare     Encap = 16 // no tunnel
	EncapGeneve   Encap = 19
)

var encapNames = map[Encap]string{
	EncapGRE: "gre", EncapVXLAN: "vxlan", EncapNVGRE: "nvgre", EncapMPLS: "mpls", EncapMPLSGRE: "mpls-gre",
	EncapVXLANGPE: "vxlan-gpe", EncapMPLSUDP: "mpls-udp", EncapBare: "bare", EncapGeneve: "geneve",
}

// String returns the name in lower case, or the number.
func (e Encap) String() string {
	if name, ok := encapNames[e]; ok {
		return name
	}
	return strconv.Itoa(int(e))
}

// ParseEncap reads what String returns for a known encapsulation.
func ParseEncap(s string) (Encap, error) {
	for e, name := range encapNames {
		if name == s {
			return e, nil
		}
	}
	return 0, fmt.Errorf("encapsulation %q: want gre, vxlan, nvgre, mpls, mpls-gre, vxlan-gpe, mpls-udp, bare or geneve", s)
}

// Encaps is a set of encapsulations: bit n is the one with number n.
type Encaps uint32

const vniEncaps = 1<<EncapVXLAN | 1<<EncapNVGRE | 1<<EncapVXLANGPE | 1<<EncapGeneve

// Has tells whether e is in the set.
func (s Encaps) Has(e Encap) bool { return e < 32 && s>>e&1 == 1 }

// With returns the set with e, which must be below 32.
func (s Encaps) With(e Encap) Encaps { return s | 1<<e }

// Or returns the set as it is to be read, given what holds where a peer names no
// encapsulation: that alone if the set is empty. A set of both kinds, with VNI and with MPLS
// label, which RFC 8365, 6, forbids, is cut down to def's kind.
func (s Encaps) Or(def Encap) Encaps {
	switch {
	case s == 0:
		return Encaps(0).With(def)
	case s&vniEncaps == 0 || s&^vniEncaps == 0:
		return s
	case vniEncaps>>def&1 == 1:
		return s & vniEncaps
	default:
		return s &^ vniEncaps
	}
}

// VNI tells whether labels beside this set are VNIs: 24 bits that all VTEPs agree on. Else
// they are MPLS labels: 20 bits that mean something to one VTEP only.
func (s Encaps) VNI() bool { return s&vniEncaps != 0 }

// Label returns what the 24 bits of a label field say.
func (s Encaps) Label(raw uint32) uint32 {
	if s.VNI() {
		return raw
	}
	return raw >> 4
}

// String returns the names, lowest number first, with a comma between.
func (s Encaps) String() string {
	var names []string
	for rest := uint32(s); rest != 0; rest &= rest - 1 {
		names = append(names, Encap(bits.TrailingZeros32(rest)).String())
	}
	return strings.Join(names, ",")
}

// RouteTarget is a route target extended community, its first byte uppermost: the type in
// bits 63..56 (0: AS of 2 octets, 1: IPv4 address, 2: AS of 4 octets), 2 in bits 55..48. It is
// never below 1<<49. Two of different types are two, even if they print the same number.
type RouteTarget uint64

// ParseRouteTarget reads "64512:100" (an AS up to 65535 takes 2 octets, above 4),
// "64512L:100" (4 octets whatever its size) and "192.0.2.1:100".
func ParseRouteTarget(s string) (RouteTarget, error) {
	admin, local, ok := strings.Cut(s, ":")
	if !ok {
		return 0, fmt.Errorf("route target %q: no colon, want such as 64512:100", s)
	}
	n, err := strconv.ParseUint(local, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("route target %q: number %q: %w", s, local, err)
	}
	if addr, err := netip.ParseAddr(admin); err == nil && addr.Is4() {
		a := addr.As4()
		return narrow(s, 0x0102<<48|RouteTarget(binary.BigEndian.Uint32(a[:]))<<16, n)
	}
	digits, four := strings.CutSuffix(admin, "L")
	as, err := strconv.ParseUint(digits, 10, 32)
	switch {
	case err != nil:
		return 0, fmt.Errorf("route target %q: %q is neither an AS nor an IPv4 address", s, admin)
	case four || as > 0xffff:
		return narrow(s, 0x0202<<48|RouteTarget(as)<<16, n)
	}
	return 0x0002<<48 | RouteTarget(as)<<32 | RouteTarget(n), nil
}

func narrow(s string, admin RouteTarget, n uint64) (RouteTarget, error) {
	if n > 0xffff {
		return 0, fmt.Errorf("route target %q: number %d, want at most 65535 behind an address or an AS of 4 octets", s, n)
	}
	return admin | RouteTarget(n), nil
}

// String returns what ParseRouteTarget reads.
func (rt RouteTarget) String() string {
	switch rt >> 56 {
	case 0:
		return fmt.Sprintf("%d:%d", uint16(rt>>32), uint32(rt))
	case 1:
		a := uint32(rt >> 16)
		return fmt.Sprintf("%d.%d.%d.%d:%d", byte(a>>24), byte(a>>16), byte(a>>8), byte(a), uint16(rt))
	}
	as := uint32(rt >> 16)
	if as <= 0xffff {
		return fmt.Sprintf("%dL:%d", as, uint16(rt))
	}
	return fmt.Sprintf("%d:%d", as, uint16(rt))
}

// Attributes is what the path attributes of an UPDATE say of all its routes.
type Attributes struct {
	Encaps    Encaps    // as sent; empty: none was named
	Seq       uint32    // MAC mobility; 0 without it. Plain order, no wrapping (RFC 7432, 7.7)
	Mobility  bool      // there is a MAC mobility community
	Sticky    bool      // the MAC shall not move
	Gateway   bool      // the MAC is of a default gateway: several VTEPs may have it
	Leaf      bool      // E-Tree leaf
	RouterMAC stain.MAC // zero: none
	ESILabel  uint32    // 24 bits as sent
	Single    bool      // the Ethernet segment is single-active
	PMSILabel uint32    // 24 bits as sent
	HasPMSI   bool

	communities []byte
}

// AppendRouteTargets appends the route targets in the order sent, as often as sent.
func (a *Attributes) AppendRouteTargets(rts []RouteTarget) []RouteTarget {
	for c := a.communities; len(c) >= 8; c = c[8:] {
		if c[1] == 0x02 && c[0] <= 2 {
			rts = append(rts, RouteTarget(binary.BigEndian.Uint64(c)))
		}
	}
	return rts
}

// What Contrail, which became Tungsten Fabric, sent before IANA had numbers for it; today's
// tunnel_encap_type.h has them no more.
const (
	contrailMPLSUDP = 37001
	contrailVXLAN   = 37002
)

// readCommunities takes len(c), a multiple of 8, for granted.
func (a *Attributes) readCommunities(c []byte) {
	a.communities = c
	for ; len(c) >= 8; c = c[8:] {
		switch uint16(c[0])<<8 | uint16(c[1]) {
		case 0x030c:
			switch n := binary.BigEndian.Uint16(c[6:]); {
			case n == contrailMPLSUDP:
				a.Encaps = a.Encaps.With(EncapMPLSUDP)
			case n == contrailVXLAN:
				a.Encaps = a.Encaps.With(EncapVXLAN)
			case n > 0 && n < 32:
				a.Encaps = a.Encaps.With(Encap(n))
			}
		case 0x030d:
			a.Gateway = true
		case 0x0600:
			// Twice is against the rules; the higher one is the later move.
			a.Mobility = true
			a.Sticky = a.Sticky || c[2]&0x01 != 0
			a.Seq = max(a.Seq, binary.BigEndian.Uint32(c[4:]))
		case 0x0601:
			a.Single = c[2]&0x01 != 0
			a.ESILabel = uint24(c[5:])
		case 0x0603:
			a.RouterMAC = stain.MAC(c[2:8])
		case 0x0605:
			a.Leaf = c[2]&0x01 != 0
		}
	}
}

func uint24(b []byte) uint32 { return uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]) }
