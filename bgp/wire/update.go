package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// The kinds of error of RFC 7606, 2, that a decoder can ask for.
var (
	// ErrReset says that the routes of an UPDATE cannot all be told, so that the session
	// must be reset: what the peer withdrew or changed is not known.
	ErrReset = errors.New("session must be reset")
	// ErrWithdraw says that the routes are known, and nothing sound about them.
	ErrWithdraw = errors.New("treated as withdrawn")
)

// Family is an address family, AFI<<8 | SAFI.
type Family uint32

// The families that are learned from, and the one of End-of-RIB without attributes.
const (
	EVPN        Family = 25<<8 | 70
	VPNv4       Family = 1<<8 | 128
	VPNv6       Family = 2<<8 | 128
	IPv4Unicast Family = 1<<8 | 1
)

// Learned tells whether routes of f are decoded.
func (f Family) Learned() bool { return f == EVPN || f == VPNv4 || f == VPNv6 }

// String returns the name that routers use, or AFI/SAFI.
func (f Family) String() string {
	switch f {
	case EVPN:
		return "l2vpn-evpn"
	case VPNv4:
		return "vpn-ipv4"
	case VPNv6:
		return "vpn-ipv6"
	case IPv4Unicast:
		return "ipv4-unicast"
	}
	return fmt.Sprintf("%d/%d", f>>8, f&0xff)
}

// Routes is the routes of one MP_REACH_NLRI or MP_UNREACH_NLRI, in wire format.
// Family 0: there is no such attribute.
type Routes struct {
	Family Family
	NLRI   []byte
	Count  int // of those that are decoded: skipped types are not counted
}

// Update is one decoded UPDATE. It points into the body that it was parsed from.
type Update struct {
	Reach, Unreach Routes
	NextHop        netip.Addr // of Reach; the global one if there is a link-local one, too
	Attributes     Attributes
	EndOfRIB       Family // 0: this is none
	Malformed      error  // treat as withdrawn what Reach holds; wraps ErrWithdraw
}

const (
	attrPMSITunnel  = 22
	attrMPReach     = 14
	attrMPUnreach   = 15
	attrCommunities = 16

	flagOptional   = 0x80
	flagTransitive = 0x40
	flagExtended   = 0x10
)

// Parse reads the body of an UPDATE, all that is behind the header of 19 bytes. All routes
// of learned families have been checked then: Routes.Next cannot fail on them. IPv4 unicast
// routes in the body's own fields are not read. The error wraps ErrReset.
func (u *Update) Parse(body []byte) error {
	*u = Update{}
	attrs, rest, err := sections(body)
	if err != nil {
		return err
	}
	if len(body) == 4 {
		u.EndOfRIB = IPv4Unicast // RFC 4724, 2
		return nil
	}
	only := true
	var seen [256 / 64]uint64
	for len(attrs) > 0 {
		flags, code, value, next, ok := attribute(attrs)
		if !ok {
			// What is behind cannot be read. RFC 7606, 4, asks for no reset, as routes come
			// first (5.1); but these may be the routes.
			if len(attrs) >= 2 && (attrs[1] == attrMPReach || attrs[1] == attrMPUnreach) {
				return fmt.Errorf("attribute %d: ends behind the attributes: %w", attrs[1], ErrReset)
			}
			u.malformed("attributes: one ends behind them")
			break
		}
		attrs = next
		only = only && code == attrMPUnreach
		if seen[code/64]>>(code%64)&1 == 1 {
			if code == attrMPReach || code == attrMPUnreach {
				return fmt.Errorf("attribute %d: twice: %w", code, ErrReset) // RFC 7606, 3(g)
			}
			continue
		}
		seen[code/64] |= 1 << (code % 64)
		if err := u.attribute(flags, code, value); err != nil {
			return err
		}
	}
	if u.Malformed != nil && u.Reach.Family == 0 && u.Unreach.Family == 0 && len(rest) == 0 {
		return fmt.Errorf("%w; no routes before it: %w", u.Malformed, ErrReset)
	}
	if only && u.Malformed == nil && len(rest) == 0 && u.Unreach.Family != 0 && len(u.Unreach.NLRI) == 0 {
		u.EndOfRIB = u.Unreach.Family
	}
	return nil
}

// sections returns the path attributes and the IPv4 unicast routes of a body.
func sections(body []byte) (attrs, nlri []byte, err error) {
	if len(body) < 4 {
		return nil, nil, fmt.Errorf("body: %d bytes, want 4 at least: %w", len(body), ErrReset)
	}
	withdrawn := int(binary.BigEndian.Uint16(body))
	if withdrawn > len(body)-4 {
		return nil, nil, fmt.Errorf("withdrawn routes: %d bytes of a body of %d: %w", withdrawn, len(body), ErrReset)
	}
	rest := body[2+withdrawn:]
	total := int(binary.BigEndian.Uint16(rest))
	if total > len(rest)-2 {
		return nil, nil, fmt.Errorf("attributes: %d bytes where %d are left: %w", total, len(rest)-2, ErrReset)
	}
	return rest[2 : 2+total], rest[2+total:], nil
}

// attribute cuts off the first attribute; ok is false if it ends behind b.
func attribute(b []byte) (flags, code byte, value, rest []byte, ok bool) {
	if len(b) < 3 {
		return 0, 0, nil, nil, false
	}
	flags, code = b[0], b[1]
	n, head := int(b[2]), 3
	if flags&flagExtended != 0 {
		if len(b) < 4 {
			return 0, 0, nil, nil, false
		}
		n, head = int(binary.BigEndian.Uint16(b[2:])), 4
	}
	if len(b)-head < n {
		return 0, 0, nil, nil, false
	}
	return flags, code, b[head : head+n], b[head+n:], true
}

func (u *Update) attribute(flags, code byte, value []byte) error {
	switch code {
	case attrMPReach:
		u.checkFlags(flags, code, flagOptional)
		return u.reach(value)
	case attrMPUnreach:
		u.checkFlags(flags, code, flagOptional)
		return u.unreach(value)
	case attrCommunities:
		u.checkFlags(flags, code, flagOptional|flagTransitive)
		if len(value) == 0 || len(value)%8 != 0 { // RFC 7606, 7.14
			u.malformed("extended communities: %d bytes, want a multiple of 8", len(value))
			return nil
		}
		u.Attributes.readCommunities(value)
	case attrPMSITunnel:
		u.checkFlags(flags, code, flagOptional|flagTransitive)
		if len(value) < 5 { // RFC 6514, 5
			u.malformed("pmsi tunnel: %d bytes, want 5 at least", len(value))
			return nil
		}
		u.Attributes.HasPMSI, u.Attributes.PMSILabel = true, uint24(value[2:])
	}
	return nil
}

// checkFlags is RFC 7606, 3(c).
func (u *Update) checkFlags(flags, code, want byte) {
	if flags&(flagOptional|flagTransitive) != want {
		u.malformed("attribute %d: flags %#02x, want %#02x", code, flags, want)
	}
}

// malformed keeps the first reason.
func (u *Update) malformed(format string, args ...any) {
	if u.Malformed == nil {
		u.Malformed = fmt.Errorf(format+": %w", append(args, ErrWithdraw)...)
	}
}

// reach reads AFI 2 | SAFI 1 | length 1 | next hop | reserved 1 | routes (RFC 4760, 3).
func (u *Update) reach(b []byte) error {
	if len(b) < 5 {
		return fmt.Errorf("mp_reach: %d bytes, want 5 at least: %w", len(b), ErrReset)
	}
	f, n := family(b), int(b[3])
	if len(b)-5 < n {
		return fmt.Errorf("mp_reach: next hop of %d bytes where %d are left: %w", n, len(b)-5, ErrReset)
	}
	u.Reach.Family = f
	if !f.Learned() {
		return nil
	}
	hop, ok := nextHop(f, b[4:4+n])
	if !ok { // RFC 7606, 7.11
		return fmt.Errorf("mp_reach, %s: next hop of %d bytes: %w", f, n, ErrReset)
	}
	u.NextHop, u.Reach.NLRI = hop, b[5+n:]
	return u.Reach.check(false)
}

func (u *Update) unreach(b []byte) error {
	if len(b) < 3 {
		return fmt.Errorf("mp_unreach: %d bytes, want 3 at least: %w", len(b), ErrReset)
	}
	u.Unreach.Family, u.Unreach.NLRI = family(b), b[3:]
	if !u.Unreach.Family.Learned() {
		return nil
	}
	return u.Unreach.check(true)
}

func family(b []byte) Family { return Family(b[0])<<16 | Family(b[1])<<8 | Family(b[2]) }

// nextHop takes the lengths of RFC 4760, 4364, 4659 and 8950: an address, behind an RD in
// VPN families, a link-local one behind it in IPv6. An IPv4 address does in any family: one
// that is mapped into IPv6, as VPN-IPv6 wants it, says no more.
func nextHop(f Family, b []byte) (netip.Addr, bool) {
	if f != EVPN && (len(b) == 12 || len(b) == 24 || len(b) == 48) {
		b = b[8:]
		if len(b) == 40 {
			b = b[:16]
		}
	}
	switch len(b) {
	case 4:
		return netip.AddrFrom4([4]byte(b)), true
	case 16, 32:
		return netip.AddrFrom16([16]byte(b)).Unmap(), true
	}
	return netip.Addr{}, false
}
