package rib

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

// What peers send is built here by hand, byte for byte, so that it can be wrong, too.

var start = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }

func community(kind uint16, value uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(kind)<<48|value&(1<<48-1))
}

func rt(s string) wire.RouteTarget {
	rt, err := wire.ParseRouteTarget(s)
	if err != nil {
		panic(err)
	}
	return rt
}

func rtBytes(rt wire.RouteTarget) []byte { return binary.BigEndian.AppendUint64(nil, uint64(rt)) }

func encap(e wire.Encap) []byte { return community(0x030c, uint64(e)) }

func mobility(seq uint32, sticky bool) []byte {
	v := uint64(seq)
	if sticky {
		v |= 1 << 40
	}
	return community(0x0600, v)
}

func uint24(v uint32) []byte { return []byte{byte(v >> 16), byte(v >> 8), byte(v)} }

func typed(t byte, parts ...[]byte) []byte {
	v := cat(parts...)
	return append([]byte{t, byte(len(v))}, v...)
}

func cat(parts ...[]byte) []byte {
	var v []byte
	for _, p := range parts {
		v = append(v, p...)
	}
	return v
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// macRoute is type 2; an invalid ip is none, and as many labels as are given.
func macRoute(rd uint64, tag uint32, mac stain.MAC, ip netip.Addr, labels ...uint32) []byte {
	return macOnSegment(rd, tag, mac, wire.ESI{}, ip, labels...)
}

func macOnSegment(rd uint64, tag uint32, mac stain.MAC, esi wire.ESI, ip netip.Addr, labels ...uint32) []byte {
	var l []byte
	for _, v := range labels {
		l = append(l, uint24(v)...)
	}
	return typed(2, u64(rd), esi[:], u32(tag), []byte{48}, mac[:], []byte{byte(ip.BitLen())}, ip.AsSlice(), l)
}

// segmentRoute is type 1: with wire.MaxTag per ES, else per EVI.
func segmentRoute(rd uint64, tag uint32, esi wire.ESI, label uint32) []byte {
	return typed(1, u64(rd), esi[:], u32(tag), uint24(label))
}

func multicastRoute(rd uint64, tag uint32, ip netip.Addr) []byte {
	return typed(3, u64(rd), u32(tag), []byte{byte(ip.BitLen())}, ip.AsSlice())
}

func prefixRoute(rd uint64, tag uint32, p netip.Prefix, label uint32) []byte {
	a := p.Addr().AsSlice()
	return typed(5, u64(rd), make([]byte, 10), u32(tag), []byte{byte(p.Bits())}, a, make([]byte, len(a)), uint24(label))
}

func gatewayRoute(rd uint64, tag uint32, p netip.Prefix, gateway netip.Addr, label uint32) []byte {
	return typed(5, u64(rd), make([]byte, 10), u32(tag), []byte{byte(p.Bits())}, p.Addr().AsSlice(), gateway.AsSlice(), uint24(label))
}

func vpnRoute(rd uint64, p netip.Prefix, label uint32) []byte {
	return cat([]byte{byte(88 + p.Bits())}, uint24(label), u64(rd), p.Addr().AsSlice()[:(p.Bits()+7)/8])
}

func attribute(flags, code byte, v []byte) []byte {
	return cat([]byte{flags | 0x10, code, byte(len(v) >> 8), byte(len(v))}, v)
}

func familyBytes(f wire.Family) []byte { return []byte{byte(f >> 16), byte(f >> 8), byte(f)} }

func reach(f wire.Family, hop netip.Addr, routes ...[]byte) []byte {
	h := hop.AsSlice()
	if f != wire.EVPN {
		h = append(make([]byte, 8), h...)
	}
	return attribute(0x80, 14, cat(familyBytes(f), []byte{byte(len(h))}, h, []byte{0}, cat(routes...)))
}

func unreach(f wire.Family, routes ...[]byte) []byte {
	return attribute(0x80, 15, cat(familyBytes(f), cat(routes...)))
}

func communities(c ...[]byte) []byte { return attribute(0xc0, 16, cat(c...)) }

func pmsi(label uint32) []byte {
	return attribute(0xc0, 22, cat([]byte{0, 6}, uint24(label), []byte{192, 0, 2, 1}))
}

// update is the body with these attributes.
func update(attrs ...[]byte) []byte {
	v := cat(attrs...)
	return cat([]byte{0, 0, byte(len(v) >> 8), byte(len(v))}, v)
}

func endOfRIB(f wire.Family) []byte { return update(unreach(f)) }
