package stain

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Copy is a stained packet as one sampling point saw it.
type Copy struct {
	Kind   Kind
	Scheme Scheme
	// InPort is the OpenFlow port by which it came in.
	InPort uint16
	// TunSrc is the outer IPv4 source address and TunID the low 24 bits of the
	// key where it came by a tunnel; else both are zero.
	TunSrc [4]byte
	TunID  uint32
	// Src, Dst and TTL (over IPv6 the hop limit) as they were when it entered the
	// bridge: both addresses IPv4 or both IPv6, none IPv4-mapped.
	Src, Dst netip.Addr
	TTL      uint8
	// Token is the probe's, also in the guest's answer.
	Token uint32
	// Reply tells the guest's answer from the probe.
	Reply bool
	// Flags are those of its TCP header as it entered the bridge (byte 13), 0 in scheme icmp.
	Flags uint8
	// Close tells the RST that withdraws a probe from the probe; never with Reply,
	// nor in scheme icmp.
	Close bool
	// NoReply says that the switch did not have the flow that would stain the reply to
	// this echo request: that no reply is seen then proves nothing. So it is where hooks
	// do not expect replies, with the first request of a pair, which that flow is made
	// for, and with all where there is no room left (package flows).
	NoReply bool
}

// MACs of a copy; drawn in the package documentation.
const (
	CopyDst  = 0x06 // byte 0 of eth_dst
	CopySrc  = 0x02 // byte 0 of eth_src
	CopyMark = 0x80 // bit of byte 1 of eth_dst: MARK, clear where NoReply
)

// What ParseCopy refuses. Errors are one of these or wrap one; none is made at
// run time, so that a flood of forged frames costs no garbage.
var (
	// ErrShort says that the frame, or a length in it, ends before the headers do.
	ErrShort = errors.New("stain: frame too short")
	// ErrNotCopy says that the MAC addresses are not those that a hook writes.
	ErrNotCopy = errors.New("stain: not a copy made by a hook")
	// ErrNotStained says that the headers do not carry the stain: a copy made by
	// the hook of another stain, or a packet that bears the marks but is neither
	// a probe nor the answer to one.
	ErrNotStained = errors.New("stain: not stained")
)

var (
	errKind     = fmt.Errorf("%w: unknown kind of sampling point", ErrNotCopy)
	errNotIP    = fmt.Errorf("%w: neither IPv4 nor IPv6", ErrNotStained)
	errProtocol = fmt.Errorf("%w: neither TCP nor the ICMP of its IP version, or behind an extension header", ErrNotStained)
	errTOS      = fmt.Errorf("%w: other ToS", ErrNotStained)
	errMapped   = fmt.Errorf("%w: IPv4-mapped address in an IPv6 header", ErrNotStained)
	errPorts    = fmt.Errorf("%w: other ports", ErrNotStained)
	errFragment = fmt.Errorf("%w: fragment", ErrNotStained)
	errType     = fmt.Errorf("%w: neither echo request nor echo reply", ErrNotStained)
	errFlags    = fmt.Errorf("%w: neither SYN, RST, RST|ACK nor SYN|ACK", ErrNotStained)
)

// ParseCopy decodes a frame received on the dye port into c, by offsets and
// without allocating. Where it fails c is unchanged.
//
// One VLAN tag is skipped (hooks strip it, but not every kernel path hands the
// frame over as the switch sent it). IPv4 and TCP options, data, padding, ECN
// bits, the flow label and any other TCP flag than FIN, SYN, RST and ACK are
// ignored, and so are the data of an echo; checksums are not verified, since a
// virtual NIC may leave them to be filled in later. No packet with an IPv6
// extension header is a probe, nor an answer to one: it is ErrNotStained.
func (s Stain) ParseCopy(frame []byte, c *Copy) error {
	if len(frame) < ethLen {
		return ErrShort
	}
	if frame[0] != CopyDst || frame[6] != CopySrc {
		return ErrNotCopy
	}
	kind := Kind(frame[1] &^ CopyMark)
	if !kind.valid() {
		return errKind
	}
	etherType, ip := binary.BigEndian.Uint16(frame[12:]), frame[ethLen:]
	if etherType == typeVLAN || etherType == typeQinQ {
		if len(ip) < vlanLen {
			return ErrShort
		}
		etherType, ip = binary.BigEndian.Uint16(ip[2:]), ip[vlanLen:]
	}
	var p packet
	if err := p.parse(etherType, ip); err != nil {
		return err
	}
	scheme, token, m, err := s.parsePayload(&p)
	if err != nil {
		return err
	}
	var flags uint8
	if scheme == TCP {
		flags = p.payload[tcpFlags]
	}
	*c = Copy{
		Kind:    kind,
		Scheme:  scheme,
		InPort:  binary.BigEndian.Uint16(frame[4:]),
		TunSrc:  [4]byte(frame[8:12]),
		TunID:   uint32(frame[7])<<16 | uint32(frame[2])<<8 | uint32(frame[3]),
		Src:     p.src,
		Dst:     p.dst,
		TTL:     p.ttl,
		Token:   token,
		Reply:   m == answer,
		Flags:   flags,
		Close:   m == withdrawal,
		NoReply: frame[1]&CopyMark == 0,
	}
	return nil
}

// packet is an IP packet, not a fragment, and the whole of it.
type packet struct {
	tos, ttl, proto uint8
	src, dst        netip.Addr
	payload         []byte
}

func (p *packet) parse(etherType uint16, ip []byte) error {
	switch etherType {
	case typeIPv4:
		return p.parseIPv4(ip)
	case typeIPv6:
		return p.parseIPv6(ip)
	}
	return errNotIP
}

func (p *packet) parseIPv4(ip []byte) error {
	if len(ip) < ipv4Len {
		return ErrShort
	}
	if ip[0]>>4 != 4 {
		return errNotIP
	}
	header, total := int(ip[0]&0x0f)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if header < ipv4Len || total < header || total > len(ip) {
		return ErrShort
	}
	if binary.BigEndian.Uint16(ip[6:])&ipv4FragmentBits != 0 {
		return errFragment
	}
	p.tos, p.ttl, p.proto = ip[1], ip[8], ip[9]
	p.src, p.dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	p.payload = ip[header:total]
	return nil
}

// parseIPv6 takes the first Next Header for the protocol, so where there is an
// extension header, that is what the packet is taken for.
func (p *packet) parseIPv6(ip []byte) error {
	if len(ip) < ipv6Len {
		return ErrShort
	}
	if ip[0]>>4 != ipv6Version {
		return errNotIP
	}
	total := ipv6Len + int(binary.BigEndian.Uint16(ip[4:]))
	if total > len(ip) {
		return ErrShort
	}
	p.tos, p.ttl, p.proto = ip[0]<<4|ip[1]>>4, ip[7], ip[6]
	p.src, p.dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	if p.src.Is4In6() || p.dst.Is4In6() { // would pass for the IPv4 probe; see AddrTag
		return errMapped
	}
	p.payload = ip[ipv6Len:total]
	return nil
}

// parsePayload returns the scheme of a packet and the token in it, if it bears the
// stain.
func (s Stain) parsePayload(p *packet) (scheme Scheme, token uint32, m message, err error) {
	switch {
	case p.proto != protoTCP && p.proto != icmpOf(p.src):
		return 0, 0, 0, errProtocol
	case (p.tos^s.TOS)&0xfc != 0: // as the hook: nw_tos has no ECN, ovs-fields(7)
		return 0, 0, 0, errTOS
	case p.proto == protoTCP:
		token, m, err = s.parseTCP(p.payload)
		return TCP, token, m, err
	}
	token, m, err = parseEcho(p.proto, p.payload)
	return ICMP, token, m, err
}

func parseEcho(proto uint8, icmp []byte) (token uint32, m message, err error) {
	if len(icmp) < icmpLen {
		return 0, 0, ErrShort
	}
	token = binary.BigEndian.Uint32(icmp[4:])
	request, reply := echoTypes(proto)
	switch code := icmp[1]; {
	case code == 0 && icmp[0] == request:
		return token, question, nil
	case code == 0 && icmp[0] == reply:
		return token, answer, nil
	}
	return 0, 0, errType
}

func (s Stain) parseTCP(tcp []byte) (token uint32, m message, err error) {
	if len(tcp) < tcpLen {
		return 0, 0, ErrShort
	}
	if offset := int(tcp[12]>>4) * 4; offset < tcpLen || offset > len(tcp) {
		return 0, 0, ErrShort
	}
	if binary.BigEndian.Uint16(tcp) != s.Port || binary.BigEndian.Uint16(tcp[2:]) != s.Port {
		return 0, 0, errPorts
	}
	seq, ack := binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:])
	switch tcp[tcpFlags] & (FlagFIN | FlagSYN | FlagRST | FlagACK) {
	case FlagSYN:
		return seq, question, nil
	case FlagRST:
		return seq - 1, withdrawal, nil
	case FlagRST | FlagACK, FlagSYN | FlagACK:
		return ack - 1, answer, nil
	}
	return 0, 0, errFlags
}

// AppendCopy appends the frame that a hook would send for c, as ParseCopy reads
// it: the reference that the flows of a hook are tested against, and a source of
// samples where there is no switch. An answer over TCP is a RST|ACK, whatever Flags
// says. The bits of TunID above 24 are left out. On error b is returned as it was.
func (s Stain) AppendCopy(b []byte, c Copy) ([]byte, error) {
	src, dst := c.Src.Unmap(), c.Dst.Unmap()
	switch {
	case !c.Scheme.valid():
		return b, fmt.Errorf("stain: scheme %v: %w, want tcp or icmp", c.Scheme, ErrUnsupported)
	case !c.Kind.valid():
		return b, fmt.Errorf("stain: %v: want a kind of sampling point", c.Kind)
	case !src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4():
		return b, fmt.Errorf("stain: addresses %v and %v: want two of one IP version", c.Src, c.Dst)
	case c.Close && c.Scheme != TCP:
		return b, fmt.Errorf("stain: close: scheme %v has nothing to withdraw", c.Scheme)
	}
	kind := byte(c.Kind) | CopyMark
	if c.NoReply {
		kind &^= CopyMark
	}
	ethDst := MAC{CopyDst, kind, byte(c.TunID >> 8), byte(c.TunID), byte(c.InPort >> 8), byte(c.InPort)}
	ethSrc := MAC{CopySrc, byte(c.TunID >> 16), c.TunSrc[0], c.TunSrc[1], c.TunSrc[2], c.TunSrc[3]}
	b = appendEthernet(b, ethDst, ethSrc, etherType(src))
	m := Probe{Close: c.Close}.message()
	if c.Reply {
		m = answer
	}
	return s.appendPacket(b, c.Scheme, src, dst, c.TTL, c.Token, m), nil
}
