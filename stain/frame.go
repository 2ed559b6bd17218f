package stain

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Probe is what differs between the probes of a run.
type Probe struct {
	SrcMAC, DstMAC MAC
	// Src and Dst are IPv4 addresses; the IPv4-mapped form is taken as such.
	Src, Dst netip.Addr
	// TTL is the one that it starts with.
	TTL uint8
	// Token is the sequence number; see Tokens.
	Token uint32
	// Close makes it the RST that withdraws an unanswered probe of this token; see
	// the package documentation.
	Close bool
}

// segment returns sequence number and flags of a probe.
func (p Probe) segment() (seq uint32, flags uint8) {
	if p.Close {
		return p.Token + 1, flagRST // the SYN took one (RFC 9293, section 3.4)
	}
	return p.Token, flagSYN
}

// MaxFrame is the size in bytes that no frame of ours exceeds, of any scheme.
const MaxFrame = 128

// Sizes of headers in bytes, and the numbers in them.
const (
	ethLen  = 14
	vlanLen = 4
	mplsLen = 4
	ipv4Len = 20
	tcpLen  = 20

	typeIPv4 = 0x0800
	typeVLAN = 0x8100 // IEEE 802.1Q, C-tag
	typeQinQ = 0x88a8 // IEEE 802.1ad, S-tag
	typeMPLS = 0x8847 // RFC 5332

	ipv4VersionIHL   = 0x45
	ipv4DontFragment = 0x4000
	ipv4FragmentBits = 0x3fff // More Fragments and the offset
	protoTCP         = 6

	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10

	tcpOffset = tcpLen / 4 << 12
	tcpWindow = 64240 // see the package documentation

	mplsBottom = 1 << 8
	mplsTTL    = 64 // nobody counts it down: the label lives for one hop
)

// Sums of the words that no probe changes, for RFC 1071's checksums.
const (
	ipv4Sum = ipv4VersionIHL<<8 + ipv4Len + tcpLen + ipv4DontFragment + protoTCP
	tcpSum  = protoTCP + tcpLen + tcpOffset + tcpWindow // pseudo-header included
)

// OpenFlow port numbers (OpenFlow 1.0, ofp_port).
const (
	portMax   = 0xff00 // OFPP_MAX
	portLocal = 0xfffe // OFPP_LOCAL
)

// AppendFrame appends the frame that makes probe p enter a bridge as if it came
// in by port ofport: Ethernet, one MPLS label, IPv4, TCP. It validates p but
// not s. On error b is returned as it was; the error is ErrUnsupported for a
// scheme or address family without frames, and else names the field of p.
func (s Stain) AppendFrame(b []byte, ofport uint16, p Probe) ([]byte, error) {
	if ofport == 0 || ofport >= portMax && ofport != portLocal {
		return b, fmt.Errorf("stain: ofport %d: want 1 to %d, or %d (LOCAL)", ofport, portMax-1, portLocal)
	}
	src, dst, err := s.check(p)
	if err != nil {
		return b, err
	}
	b = appendEthernet(b, p.DstMAC, p.SrcMAC, typeMPLS)
	b = binary.BigEndian.AppendUint32(b, uint32(ofport)<<12|mplsBottom|mplsTTL)
	seq, flags := p.segment()
	return s.appendTCP(b, src, dst, p.TTL, seq, 0, flags), nil
}

// AppendPacket appends what AppendFrame does, without the MPLS label: the frame
// as the instance itself would have sent it.
func (s Stain) AppendPacket(b []byte, p Probe) ([]byte, error) {
	src, dst, err := s.check(p)
	if err != nil {
		return b, err
	}
	b = appendEthernet(b, p.DstMAC, p.SrcMAC, typeIPv4)
	seq, flags := p.segment()
	return s.appendTCP(b, src, dst, p.TTL, seq, 0, flags), nil
}

// check refuses what must not be sent in an instance's name: a frame to a group
// would be flooded, one with a wrong source would teach switches wrong things.
func (s Stain) check(p Probe) (src, dst [4]byte, err error) {
	if s.Scheme != TCP {
		return src, dst, fmt.Errorf("stain: scheme %v: %w", s.Scheme, ErrUnsupported)
	}
	if src, err = unicast4(p.Src); err != nil {
		return src, dst, fmt.Errorf("stain: source address: %w", err)
	}
	if dst, err = unicast4(p.Dst); err != nil {
		return src, dst, fmt.Errorf("stain: destination address: %w", err)
	}
	switch {
	case src == dst:
		err = fmt.Errorf("stain: destination address %v: same as source", p.Dst)
	case !p.SrcMAC.unicast():
		err = fmt.Errorf("stain: source MAC %v: want that of one instance", p.SrcMAC)
	case !p.DstMAC.unicast():
		err = fmt.Errorf("stain: destination MAC %v: want that of one instance or gateway", p.DstMAC)
	case p.TTL == 0:
		err = errors.New("stain: ttl 0: want 1 to 255")
	}
	return src, dst, err
}

func unicast4(a netip.Addr) ([4]byte, error) {
	a = a.Unmap()
	switch {
	case !a.IsValid():
		return [4]byte{}, errors.New("missing")
	case a.Is6():
		return [4]byte{}, fmt.Errorf("%v: IPv6: %w", a, ErrUnsupported)
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return [4]byte{}, fmt.Errorf("%v: want that of one host", a)
	}
	return a.As4(), nil
}

func appendEthernet(b []byte, dst, src MAC, etherType uint16) []byte {
	b = append(b, dst[:]...)
	b = append(b, src[:]...)
	return binary.BigEndian.AppendUint16(b, etherType)
}

// appendTCP appends the IPv4 and TCP headers of a stained segment without data.
func (s Stain) appendTCP(b []byte, src, dst [4]byte, ttl uint8, seq, ack uint32, flags uint8) []byte {
	n := len(b)
	b = append(b, make([]byte, ipv4Len+tcpLen)...)
	ip := b[n : n+ipv4Len : n+ipv4Len]
	tcp := b[n+ipv4Len : n+ipv4Len+tcpLen]
	addrs := sum32(binary.BigEndian.Uint32(src[:])) + sum32(binary.BigEndian.Uint32(dst[:]))

	ip[0], ip[1] = ipv4VersionIHL, s.TOS
	binary.BigEndian.PutUint16(ip[2:], ipv4Len+tcpLen)
	binary.BigEndian.PutUint16(ip[6:], ipv4DontFragment)
	ip[8], ip[9] = ttl, protoTCP
	binary.BigEndian.PutUint16(ip[10:], fold(ipv4Sum+addrs+uint32(s.TOS)+uint32(ttl)<<8))
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])

	binary.BigEndian.PutUint16(tcp[0:], s.Port)
	binary.BigEndian.PutUint16(tcp[2:], s.Port)
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	binary.BigEndian.PutUint16(tcp[12:], tcpOffset|uint16(flags))
	binary.BigEndian.PutUint16(tcp[14:], tcpWindow)
	binary.BigEndian.PutUint16(tcp[16:], fold(tcpSum+addrs+2*uint32(s.Port)+sum32(seq)+sum32(ack)+uint32(flags)))
	return b
}

// sum32 adds the two 16-bit words of v.
func sum32(v uint32) uint32 { return v>>16 + v&0xffff }

// fold returns RFC 1071's checksum of words whose plain sum is given. At most 20
// words are ever added, so two folds take every carry in.
func fold(sum uint32) uint16 {
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum)
}
