package flows

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/dyetrace/dyetrace/stain"
)

// bits128 is a value as wide as the widest field, an IPv6 address or xxreg.
type bits128 struct{ hi, lo uint64 }

func (a bits128) and(b bits128) bits128 { return bits128{a.hi & b.hi, a.lo & b.lo} }
func (a bits128) xor(b bits128) bits128 { return bits128{a.hi ^ b.hi, a.lo ^ b.lo} }
func (a bits128) zero() bool            { return a == bits128{} }

func (a bits128) shl(n uint) bits128 {
	if n >= 64 {
		return bits128{hi: a.lo << (n - 64)}
	}
	return bits128{hi: a.hi<<n | a.lo>>(64-n), lo: a.lo << n}
}

// ones returns a value whose low n bits are set.
func ones(n uint) bits128 {
	if n > 64 {
		return bits128{hi: 1<<(n-64) - 1, lo: ^uint64(0)}
	}
	return bits128{lo: 1<<n - 1}
}

func (a bits128) String() string {
	if a.hi == 0 {
		return fmt.Sprintf("%#x", a.lo)
	}
	return fmt.Sprintf("%#x%016x", a.hi, a.lo)
}

// widths has, in bits, the fields whose values are numbers (addresses included)
// under a bitwise mask. Of others, only the text is known.
var widths = map[string]uint{
	"in_port": 16, "dl_src": 48, "dl_dst": 48, "dl_type": 16, "vlan_tci": 16, "dl_vlan": 12, "dl_vlan_pcp": 3,
	"nw_src": 32, "nw_dst": 32, "nw_proto": 8, "nw_tos": 8, "nw_ecn": 2, "nw_ttl": 8,
	"ipv6_src": 128, "ipv6_dst": 128, "ipv6_label": 20, "nd_target": 128, "nd_sll": 48, "nd_tll": 48,
	"tp_src": 16, "tp_dst": 16, "icmp_type": 8, "icmp_code": 8,
	"arp_op": 16, "arp_spa": 32, "arp_tpa": 32, "arp_sha": 48, "arp_tha": 48,
	"mpls_label": 20, "mpls_tc": 3, "mpls_bos": 1, "mpls_ttl": 8,
	"tun_id": 64, "tun_src": 32, "tun_dst": 32, "metadata": 64,
	"pkt_mark": 32, "skb_priority": 32, "ct_mark": 32, "ct_label": 128, "ct_zone": 16, "recirc_id": 32,
}

// aliases has other spellings of the fields above: those of OpenFlow 1.2 and
// later, and the NXM and OXM names that stand in actions.
var aliases = map[string]string{
	"eth_src": "dl_src", "nxm_of_eth_src": "dl_src", "eth_dst": "dl_dst", "nxm_of_eth_dst": "dl_dst",
	"eth_type": "dl_type", "nxm_of_eth_type": "dl_type", "nxm_of_vlan_tci": "vlan_tci", "nxm_of_in_port": "in_port",
	"ip_src": "nw_src", "nxm_of_ip_src": "nw_src", "ip_dst": "nw_dst", "nxm_of_ip_dst": "nw_dst",
	"ip_proto": "nw_proto", "nxm_of_ip_tos": "nw_tos", "ip_ecn": "nw_ecn", "nxm_nx_ip_ecn": "nw_ecn", "nxm_nx_ip_ttl": "nw_ttl", "ip_ttl": "nw_ttl",
	"ip_frag": "nw_frag", "tcp_src": "tp_src", "udp_src": "tp_src", "sctp_src": "tp_src", "tcp_dst": "tp_dst", "udp_dst": "tp_dst", "sctp_dst": "tp_dst",
	"icmpv6_type": "icmp_type", "icmpv6_code": "icmp_code", // printed as the latter
	"tunnel_id": "tun_id", "nxm_nx_tun_id": "tun_id", "nxm_nx_tun_ipv4_src": "tun_src", "nxm_nx_tun_ipv4_dst": "tun_dst",
	"oxm_of_metadata": "metadata", "nxm_nx_ct_mark": "ct_mark", "nxm_nx_ct_label": "ct_label", "nxm_nx_pkt_mark": "pkt_mark",
}

// protocols has the words that stand for an Ethernet type and maybe an IP
// protocol (ovs-fields(7), "Shorthand").
var protocols = map[string]struct {
	etherType uint16
	ipProto   uint8
}{
	"ip": {0x0800, 0}, "icmp": {0x0800, 1}, "tcp": {0x0800, 6}, "udp": {0x0800, 17}, "sctp": {0x0800, 132},
	"ipv6": {0x86dd, 0}, "icmp6": {0x86dd, 58}, "tcp6": {0x86dd, 6}, "udp6": {0x86dd, 17}, "sctp6": {0x86dd, 132},
	"arp": {0x0806, 0}, "rarp": {0x8035, 0}, "mpls": {0x8847, 0}, "mplsm": {0x8848, 0},
}

// fieldName returns a field's one name, and its width in bits or 0.
func fieldName(name string) (string, uint) {
	name = strings.ToLower(name)
	if a, ok := aliases[name]; ok {
		name = a
	}
	if r, ok := parseRegister(name); ok {
		return r.name(), r.width()
	}
	return name, widths[name]
}

// register is one of the register fields, which overlap: xreg0 is reg0 and
// reg1, xxreg0 is reg0 to reg3, and the first is in the uppermost bits.
type register struct {
	words int // reg 1, xreg 2, xxreg 4
	n     int
}

const registers = 16

// parseRegister reads the name of a register, NXM and OXM names included, in
// lower case.
func parseRegister(name string) (register, bool) {
	r := register{words: 1}
	digits, ok := "", false
	for _, form := range []struct {
		prefix string
		words  int
	}{{"nxm_nx_reg", 1}, {"reg", 1}, {"oxm_of_pkt_reg", 2}, {"xreg", 2}, {"nxm_nx_xxreg", 4}, {"xxreg", 4}} {
		if digits, ok = strings.CutPrefix(name, form.prefix); ok {
			r.words = form.words
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 8)
	if !ok || err != nil || int(n) >= registers/r.words {
		return register{}, false
	}
	r.n = int(n)
	return r, true
}

func (r register) name() string { return fmt.Sprintf("%sreg%d", strings.Repeat("x", r.words/2), r.n) }
func (r register) width() uint  { return uint(r.words) * 32 }

// parseNumber reads one number or address of any of the ways in which ovs-ofctl
// prints them.
func parseNumber(s string) (bits128, bool) {
	if s == "LOCAL" {
		return bits128{lo: portLocal}, true
	}
	if v, err := strconv.ParseUint(s, 0, 64); err == nil {
		return bits128{lo: v}, true
	}
	if hex, ok := strings.CutPrefix(s, "0x"); ok && len(hex) > 16 && len(hex) <= 32 {
		hi, errHi := strconv.ParseUint(hex[:len(hex)-16], 16, 64)
		lo, errLo := strconv.ParseUint(hex[len(hex)-16:], 16, 64)
		return bits128{hi, lo}, errHi == nil && errLo == nil
	}
	if m, err := stain.ParseMAC(s); err == nil {
		return bits128{lo: m.Uint64()}, true
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		var v bits128
		b := a.AsSlice()
		for _, c := range b {
			v = v.shl(8)
			v.lo |= uint64(c)
		}
		return v, true
	}
	return bits128{}, false
}

// parseMasked reads VALUE or VALUE/MASK of a field width bits wide; for an
// address, MASK may be the length of a prefix. Bits outside the mask are
// cleared. It fails for what does not fit.
func parseMasked(s string, width uint) (value, mask bits128, ok bool) {
	v, m, masked := strings.Cut(s, "/")
	value, ok = parseNumber(v)
	mask = ones(width)
	if masked && ok {
		if n, err := strconv.ParseUint(m, 10, 8); err == nil && strings.ContainsAny(v, ".:") && uint(n) <= width {
			mask = ones(uint(n)).shl(width - uint(n))
		} else {
			mask, ok = parseNumber(m)
		}
	}
	if !ok || !value.outside(width).zero() || !mask.outside(width).zero() {
		return bits128{}, bits128{}, false
	}
	return value.and(mask), mask, true
}

// outside returns the bits of a above the low width ones.
func (a bits128) outside(width uint) bits128 { return a.xor(a.and(ones(width))) }

// reference is a field or a part of it, as it stands in an action: NAME,
// NAME[], NAME[5] or NAME[0..3].
type reference struct {
	name     string
	from, to uint // bits, both included
}

// parseReference reads a reference that is all of s. It fails for fields whose
// width is not known and for bits beyond the width.
func parseReference(s string) (reference, bool) {
	name, rest, ranged := strings.Cut(s, "[")
	name, width := fieldName(name)
	if width == 0 {
		return reference{}, false
	}
	r := reference{name: name, to: width - 1}
	if !ranged || rest == "]" {
		return r, true
	}
	rest, closed := strings.CutSuffix(rest, "]")
	lo, hi, pair := strings.Cut(rest, "..")
	if !pair {
		hi = lo
	}
	from, errFrom := strconv.ParseUint(lo, 10, 8)
	to, errTo := strconv.ParseUint(hi, 10, 8)
	if !closed || errFrom != nil || errTo != nil || from > to || uint(to) >= width {
		return reference{}, false
	}
	r.from, r.to = uint(from), uint(to)
	return r, true
}

// mask returns the bits of the field that r refers to.
func (r reference) mask() bits128 { return ones(r.to - r.from + 1).shl(r.from) }

// bitset says something of each bit of each register.
type bitset [registers]uint32

// add adds the bits of the field called name that are set in mask; of a field
// that is no register, nothing.
func (s *bitset) add(name string, mask bits128) {
	r, ok := parseRegister(name)
	if !ok {
		return
	}
	words := [4]uint32{uint32(mask.lo), uint32(mask.lo >> 32), uint32(mask.hi), uint32(mask.hi >> 32)}
	for i := range r.words {
		s[r.n*r.words+r.words-1-i] |= words[i]
	}
}

func (s *bitset) addReference(text string) bool {
	r, ok := parseReference(text)
	if ok {
		s.add(r.name, r.mask())
	}
	return ok
}

// has tells whether the mark is in the set.
func (s *bitset) has(m Mark) bool {
	r, ok := parseRegister(m.Field)
	return ok && s[r.n]>>m.Bit&1 == 1
}
