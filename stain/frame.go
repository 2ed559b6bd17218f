package stain

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Probe is what differs between the probes of a run.
type Probe struct {
	Scheme         Scheme
	SrcMAC, DstMAC MAC
	// Src and Dst are both IPv4 or both IPv6 addresses, without a zone; the
	// IPv4-mapped form is IPv4.
	Src, Dst netip.Addr
	// TTL is the one that it starts with; over IPv6 the hop limit.
	TTL uint8
	// Token is the sequence number, or the identifier (upper half) and sequence
	// number of an echo; see Tokens.
	Token uint32
	// Close makes it the RST that withdraws an unanswered probe of this token; see
	// the package documentation. Scheme tcp only.
	Close bool
}

func (p Probe) message() message {
	if p.Close {
		return withdrawal
	}
	return question
}

// message is which of the packets that a probe gives rise to.
type message uint8

const (
	question   message = iota // the probe
	withdrawal                // its end, where nobody answered
	answer                    // the guest's
)

// MaxFrame is the size in bytes that no frame of ours exceeds, of any scheme.
const MaxFrame = 128

// Flags of TCP, of byte 13 of its header (RFC 9293, section 3.1).
const (
	FlagFIN = 0x01
	FlagSYN = 0x02
	FlagRST = 0x04
	FlagACK = 0x10
)

// Sizes of headers in bytes, and the numbers in them.
const (
	ethLen   = 14
	vlanLen  = 4
	mplsLen  = 4
	ipv4Len  = 20
	ipv6Len  = 40
	tcpLen   = 20
	tcpFlags = 13 // its place in the header
	icmpLen  = 8  // of an echo, without data
	echoLen  = icmpLen + 8

	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
	typeVLAN = 0x8100 // IEEE 802.1Q, C-tag
	typeQinQ = 0x88a8 // IEEE 802.1ad, S-tag
	typeMPLS = 0x8847 // RFC 5332

	ipv4VersionIHL   = 0x45
	ipv4DontFragment = 0x4000
	ipv4FragmentBits = 0x3fff // More Fragments and the offset
	ipv6Version      = 6

	protoICMP   = 1
	protoTCP    = 6
	protoICMPv6 = 58

	tcpOffset = tcpLen / 4 << 12
	tcpWindow = 64240 // see the package documentation

	// Types of messages (RFC 792, and RFC 4443, section 4), code 0.
	echoReply     = 0
	echoRequest   = 8
	echoRequestV6 = 128
	echoReplyV6   = 129

	echoData = 0x6479657472616365 // "dyetrace"

	mplsTC     = 1 << 9 // the lowest bit of the traffic class: the payload is IPv6
	mplsBottom = 1 << 8
	mplsTTL    = 64 // nobody counts it down: the label lives for one hop
)

// Sums of the words that no probe changes, for RFC 1071's checksums.
const (
	ipv4Sum = ipv4VersionIHL<<8 + ipv4DontFragment
	tcpSum  = protoTCP + tcpLen + tcpOffset + tcpWindow // pseudo-header included
	echoSum = echoData>>48 + echoData>>32&0xffff + echoData>>16&0xffff + echoData&0xffff
)

// OpenFlow port numbers (OpenFlow 1.0, ofp_port).
const (
	portMax   = 0xff00 // OFPP_MAX
	portLocal = 0xfffe // OFPP_LOCAL
)

// groupBit is the least significant bit of a MAC address's first octet: a group's (IEEE 802, I/G).
// None is the source of a frame, and no bridge learns one.
const groupBit = 1

// AppendFrame appends the frame that makes probe p enter a bridge as if it came
// in by port ofport: Ethernet, one MPLS label, IPv4 or IPv6, TCP or ICMP. Its source
// is a group's address until the hook takes that bit off, so that a frame which meets
// no hook teaches nobody where the instance is. It validates p but not s. On error b is returned as it was; the error names the
// field of p, and wraps ErrUnsupported for a scheme that there is not.
func (s Stain) AppendFrame(b []byte, ofport uint16, p Probe) ([]byte, error) {
	if ofport == 0 || ofport >= portMax && ofport != portLocal {
		return b, fmt.Errorf("stain: ofport %d: want 1 to %d, or %d (LOCAL)", ofport, portMax-1, portLocal)
	}
	src, dst, err := s.check(p)
	if err != nil {
		return b, err
	}
	label := uint32(ofport)<<12 | mplsBottom | mplsTTL
	if src.Is6() {
		label |= mplsTC
	}
	from := p.SrcMAC
	from[0] |= groupBit
	b = appendEthernet(b, p.DstMAC, from, typeMPLS)
	b = binary.BigEndian.AppendUint32(b, label)
	return s.appendPacket(b, p.Scheme, src, dst, p.TTL, p.Token, p.message()), nil
}

// AppendPacket appends what AppendFrame does, without the MPLS label and that bit: the frame
// as the instance itself would have sent it.
func (s Stain) AppendPacket(b []byte, p Probe) ([]byte, error) {
	src, dst, err := s.check(p)
	if err != nil {
		return b, err
	}
	b = appendEthernet(b, p.DstMAC, p.SrcMAC, etherType(src))
	return s.appendPacket(b, p.Scheme, src, dst, p.TTL, p.Token, p.message()), nil
}

// check refuses what must not be sent in an instance's name: a frame to a group
// would be flooded, one with a wrong source would teach switches wrong things.
// The addresses that it returns are of one IP version, none is IPv4-mapped.
func (s Stain) check(p Probe) (src, dst netip.Addr, err error) {
	if !p.Scheme.valid() {
		return src, dst, fmt.Errorf("stain: scheme %v: %w, want tcp or icmp", p.Scheme, ErrUnsupported)
	}
	if src, err = hostAddr(p.Src); err != nil {
		return src, dst, fmt.Errorf("stain: source address: %w", err)
	}
	if dst, err = hostAddr(p.Dst); err != nil {
		return src, dst, fmt.Errorf("stain: destination address: %w", err)
	}
	switch {
	case src.Is4() != dst.Is4():
		err = fmt.Errorf("stain: destination address %v: other IP version than source %v", dst, src)
	case src == dst:
		err = fmt.Errorf("stain: destination address %v: same as source", dst)
	case !p.SrcMAC.unicast():
		err = fmt.Errorf("stain: source MAC %v: want that of one instance", p.SrcMAC)
	case !p.DstMAC.unicast():
		err = fmt.Errorf("stain: destination MAC %v: want that of one instance or gateway", p.DstMAC)
	case p.TTL == 0:
		err = errors.New("stain: ttl 0: want 1 to 255")
	case p.Close && p.Scheme != TCP:
		err = fmt.Errorf("stain: close: scheme %v has nothing to withdraw", p.Scheme)
	}
	return src, dst, err
}

func hostAddr(a netip.Addr) (netip.Addr, error) {
	a = a.Unmap()
	switch {
	case !a.IsValid():
		return a, errors.New("missing")
	case a.Zone() != "":
		return a, fmt.Errorf("%v: zone, want the address alone", a)
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, fmt.Errorf("%v: want that of one host", a)
	}
	return a, nil
}

func etherType(a netip.Addr) uint16 {
	if a.Is4() {
		return typeIPv4
	}
	return typeIPv6
}

func appendEthernet(b []byte, dst, src MAC, etherType uint16) []byte {
	b = append(b, dst[:]...)
	b = append(b, src[:]...)
	return binary.BigEndian.AppendUint16(b, etherType)
}

// appendPacket appends an IP packet of a probe. src and dst are of one version.
func (s Stain) appendPacket(b []byte, scheme Scheme, src, dst netip.Addr, ttl uint8, token uint32, m message) []byte {
	proto, size := uint8(protoTCP), uint16(tcpLen)
	if scheme == ICMP {
		proto, size = icmpOf(src), echoLen
	}
	var addrs uint32
	if src.Is4() {
		b, addrs = s.appendIPv4(b, src.As4(), dst.As4(), ttl, proto, size)
	} else {
		b, addrs = s.appendIPv6(b, src.As16(), dst.As16(), ttl, proto, size)
	}
	if scheme == ICMP {
		return appendEcho(b, addrs, proto, token, m)
	}
	return s.appendTCP(b, addrs, token, m)
}

// icmpOf returns the protocol that ICMP is over the IP version of an address.
func icmpOf(a netip.Addr) uint8 {
	if a.Is4() {
		return protoICMP
	}
	return protoICMPv6
}

// appendIPv4 appends the header of a packet with size bytes behind it, and
// returns the sum of its addresses.
func (s Stain) appendIPv4(b []byte, src, dst [4]byte, ttl, proto uint8, size uint16) ([]byte, uint32) {
	addrs := sum32(binary.BigEndian.Uint32(src[:])) + sum32(binary.BigEndian.Uint32(dst[:]))
	total, ttlProto := ipv4Len+uint32(size), uint32(ttl)<<8|uint32(proto)
	check := fold(ipv4Sum + uint32(s.TOS) + total + ttlProto + addrs)
	b = binary.BigEndian.AppendUint32(b, ipv4VersionIHL<<24|uint32(s.TOS)<<16|total)
	b = binary.BigEndian.AppendUint32(b, ipv4DontFragment)
	b = binary.BigEndian.AppendUint32(b, ttlProto<<16|uint32(check))
	b = append(b, src[:]...)
	return append(b, dst[:]...), addrs
}

// appendIPv6 does as appendIPv4.
func (s Stain) appendIPv6(b []byte, src, dst [16]byte, ttl, proto uint8, size uint16) ([]byte, uint32) {
	b = binary.BigEndian.AppendUint32(b, ipv6Version<<28|uint32(s.TOS)<<20)
	b = binary.BigEndian.AppendUint32(b, uint32(size)<<16|uint32(proto)<<8|uint32(ttl))
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	var addrs uint32
	for i := 0; i < len(src); i += 4 {
		addrs += sum32(binary.BigEndian.Uint32(src[i:])) + sum32(binary.BigEndian.Uint32(dst[i:]))
	}
	return b, addrs
}

// appendTCP appends a segment without data.
func (s Stain) appendTCP(b []byte, addrs, token uint32, m message) []byte {
	seq, ack, flags := token, uint32(0), uint32(FlagSYN)
	switch m { // token+1, since the SYN took one (RFC 9293, section 3.4)
	case withdrawal:
		seq, flags = token+1, FlagRST
	case answer:
		seq, ack, flags = 0, token+1, FlagRST|FlagACK
	}
	ports := uint32(s.Port)<<16 | uint32(s.Port)
	check := fold(tcpSum + addrs + sum32(ports) + sum32(seq) + sum32(ack) + flags)
	b = binary.BigEndian.AppendUint32(b, ports)
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, ack)
	b = binary.BigEndian.AppendUint32(b, (tcpOffset|flags)<<16|tcpWindow)
	return binary.BigEndian.AppendUint32(b, uint32(check)<<16)
}

// appendEcho appends an echo request, or the reply to it.
func appendEcho(b []byte, addrs uint32, proto uint8, token uint32, m message) []byte {
	request, reply := echoTypes(proto)
	kind := uint32(request)
	if m == answer {
		kind = uint32(reply)
	}
	sum := kind<<8 + sum32(token) + echoSum
	if proto == protoICMPv6 { // has a pseudo-header (RFC 4443, section 2.3)
		sum += addrs + protoICMPv6 + echoLen
	}
	b = binary.BigEndian.AppendUint32(b, kind<<24|uint32(fold(sum)))
	b = binary.BigEndian.AppendUint32(b, token)
	return binary.BigEndian.AppendUint64(b, echoData)
}

func echoTypes(proto uint8) (request, reply uint8) {
	if proto == protoICMP {
		return echoRequest, echoReply
	}
	return echoRequestV6, echoReplyV6
}

// sum32 adds the two 16-bit words of v.
func sum32(v uint32) uint32 { return v>>16 + v&0xffff }

// fold returns RFC 1071's checksum of words whose plain sum is given. Two folds
// take every carry of a 32-bit sum in; fewer than 40 words are ever added.
func fold(sum uint32) uint16 {
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum)
}
