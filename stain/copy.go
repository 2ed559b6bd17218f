package stain

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Copy is a stained packet as one sampling point saw it.
type Copy struct {
	Kind Kind
	// InPort is the OpenFlow port by which it came in.
	InPort uint16
	// TunSrc is the outer IPv4 source address and TunID the low 24 bits of the
	// key where it came by a tunnel; else both are zero.
	TunSrc [4]byte
	TunID  uint32
	// Src, Dst and TTL as they were when it entered the bridge; IPv4.
	Src, Dst netip.Addr
	TTL      uint8
	// Token is the probe's, also in the guest's answer.
	Token uint32
	// Reply tells the guest's answer from the probe.
	Reply bool
	// Close tells the RST that withdraws a probe from the probe; never with Reply.
	Close bool
}

// MACs of a copy; drawn in the package documentation.
const (
	CopyDst = 0x06 // byte 0 of eth_dst
	CopySrc = 0x02 // byte 0 of eth_src
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
	errNotIPv4  = fmt.Errorf("%w: not IPv4", ErrNotStained)
	errNotTCP   = fmt.Errorf("%w: not TCP", ErrNotStained)
	errTOS      = fmt.Errorf("%w: other ToS", ErrNotStained)
	errPorts    = fmt.Errorf("%w: other ports", ErrNotStained)
	errFragment = fmt.Errorf("%w: fragment", ErrNotStained)
	errFlags    = fmt.Errorf("%w: neither SYN, RST, RST|ACK nor SYN|ACK", ErrNotStained)
)

// ParseCopy decodes a frame received on the dye port into c, by offsets and
// without allocating. Where it fails c is unchanged.
//
// One VLAN tag is skipped (hooks strip it, but not every kernel path hands the
// frame over as the switch sent it). IPv4 and TCP options, data, padding, ECN
// bits and any other TCP flag than FIN, SYN, RST and ACK are ignored; checksums
// are not verified, since a virtual NIC may leave them to be filled in later.
// Scheme tcp and IPv4 only: for another scheme every frame is ErrNotStained.
func (s Stain) ParseCopy(frame []byte, c *Copy) error {
	if len(frame) < ethLen {
		return ErrShort
	}
	if frame[0] != CopyDst || frame[6] != CopySrc {
		return ErrNotCopy
	}
	if !Kind(frame[1]).valid() {
		return errKind
	}
	etherType, ip := binary.BigEndian.Uint16(frame[12:]), frame[ethLen:]
	if etherType == typeVLAN || etherType == typeQinQ {
		if len(ip) < vlanLen {
			return ErrShort
		}
		etherType, ip = binary.BigEndian.Uint16(ip[2:]), ip[vlanLen:]
	}
	if etherType != typeIPv4 {
		return errNotIPv4
	}
	tcp, err := s.stainedTCP(ip)
	if err != nil {
		return err
	}
	seq, ack := binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:])
	token, reply, closing := seq, false, false
	switch tcp[13] & (flagFIN | flagSYN | flagRST | flagACK) {
	case flagSYN:
	case flagRST:
		token, closing = seq-1, true
	case flagRST | flagACK, flagSYN | flagACK:
		token, reply = ack-1, true
	default:
		return errFlags
	}
	*c = Copy{
		Kind:   Kind(frame[1]),
		InPort: binary.BigEndian.Uint16(frame[4:]),
		TunSrc: [4]byte(frame[8:12]),
		TunID:  uint32(frame[7])<<16 | uint32(frame[2])<<8 | uint32(frame[3]),
		Src:    netip.AddrFrom4([4]byte(ip[12:16])),
		Dst:    netip.AddrFrom4([4]byte(ip[16:20])),
		TTL:    ip[8],
		Token:  token,
		Reply:  reply,
		Close:  closing,
	}
	return nil
}

// stainedTCP returns the TCP segment in an IPv4 packet, at least a header of it,
// if it bears the stain.
func (s Stain) stainedTCP(ip []byte) ([]byte, error) {
	if len(ip) < ipv4Len {
		return nil, ErrShort
	}
	if ip[0]>>4 != 4 {
		return nil, errNotIPv4
	}
	header, total := int(ip[0]&0x0f)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if header < ipv4Len || total < header+tcpLen || total > len(ip) {
		return nil, ErrShort
	}
	if s.Scheme != TCP || ip[9] != protoTCP {
		return nil, errNotTCP
	}
	if (ip[1]^s.TOS)&0xfc != 0 { // as the hook: nw_tos has no ECN, ovs-fields(7)
		return nil, errTOS
	}
	if binary.BigEndian.Uint16(ip[6:])&ipv4FragmentBits != 0 {
		return nil, errFragment
	}
	tcp := ip[header:total]
	if offset := int(tcp[12]>>4) * 4; offset < tcpLen || offset > len(tcp) {
		return nil, ErrShort
	}
	if binary.BigEndian.Uint16(tcp) != s.Port || binary.BigEndian.Uint16(tcp[2:]) != s.Port {
		return nil, errPorts
	}
	return tcp, nil
}

// AppendCopy appends the frame that a hook would send for c, as ParseCopy reads
// it: the reference that the flows of a hook are tested against, and a source of
// samples where there is no switch. An answer is a RST|ACK. The bits of TunID
// above 24 are left out. On error b is returned as it was.
func (s Stain) AppendCopy(b []byte, c Copy) ([]byte, error) {
	src, dst := c.Src.Unmap(), c.Dst.Unmap()
	switch {
	case s.Scheme != TCP:
		return b, fmt.Errorf("stain: scheme %v: %w", s.Scheme, ErrUnsupported)
	case !c.Kind.valid():
		return b, fmt.Errorf("stain: %v: want a kind of sampling point", c.Kind)
	case !src.Is4() || !dst.Is4():
		return b, fmt.Errorf("stain: addresses %v and %v: %w, want IPv4", c.Src, c.Dst, ErrUnsupported)
	}
	ethDst := MAC{CopyDst, byte(c.Kind), byte(c.TunID >> 8), byte(c.TunID), byte(c.InPort >> 8), byte(c.InPort)}
	ethSrc := MAC{CopySrc, byte(c.TunID >> 16), c.TunSrc[0], c.TunSrc[1], c.TunSrc[2], c.TunSrc[3]}
	b = appendEthernet(b, ethDst, ethSrc, typeIPv4)
	if c.Reply {
		return s.appendTCP(b, src.As4(), dst.As4(), c.TTL, 0, c.Token+1, flagRST|flagACK), nil
	}
	seq, flags := Probe{Token: c.Token, Close: c.Close}.segment()
	return s.appendTCP(b, src.As4(), dst.As4(), c.TTL, seq, 0, flags), nil
}
