package tap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/stain"
)

// Seen is one stained packet on its way to a guest.
type Seen struct {
	// At is when, in nanoseconds of CLOCK_MONOTONIC.
	At int64
	// Device is the name of the device, as Attach knew it last, and IfIndex its
	// index. Device is empty if it was detached since.
	Device  string
	IfIndex int
	Scheme  stain.Scheme
	// Src, Dst and TTL (hop limit) as the guest gets them.
	Src, Dst netip.Addr
	TTL      uint8
	// Seq, Ack and Flags (byte 13) of the TCP header. Of an echo, Seq is identifier
	// and sequence number, Ack 0, and Flags its type (RFC 792; RFC 4443, section 4).
	Seq, Ack uint32
	Flags    uint8
	// Withheld tells that it was dropped: the guest did not get it.
	Withheld bool
}

// Types of messages of ICMP and ICMPv6 that tell the packets of a probe apart.
const (
	echoReply   = 0
	echoReplyV6 = 129
)

// Copy returns what a hook's copy of the packet would say: its kind is to-instance,
// and there is no in-port or tunnel.
func (s Seen) Copy() stain.Copy {
	c := stain.Copy{Kind: stain.ToInstance, Scheme: s.Scheme, Src: s.Src, Dst: s.Dst, TTL: s.TTL, Token: s.Seq}
	if s.Scheme == stain.TCP {
		c.Flags = s.Flags
	}
	switch {
	case s.Scheme == stain.ICMP:
		c.Reply = s.Flags == echoReply || s.Flags == echoReplyV6
	case s.Flags&stain.FlagACK != 0:
		c.Token, c.Reply = s.Ack-1, true
	case s.Flags&stain.FlagRST != 0:
		c.Token, c.Close = s.Seq-1, true
	}
	return c
}

// digestSize is that of struct digest in sampler.c.
const digestSize = int(unsafe.Sizeof(tapDigest{}))

// parse decodes a record of the ring. The bytes are this machine's own struct.
func (s *Seen) parse(b []byte) bool {
	if len(b) != digestSize {
		return false
	}
	var d tapDigest // for the offsets only
	src, dst := [16]byte(b[unsafe.Offsetof(d.Src):]), [16]byte(b[unsafe.Offsetof(d.Dst):])
	*s = Seen{
		At:       int64(binary.NativeEndian.Uint64(b[unsafe.Offsetof(d.At):])),
		IfIndex:  int(binary.NativeEndian.Uint32(b[unsafe.Offsetof(d.Ifindex):])),
		Scheme:   stain.Scheme(b[unsafe.Offsetof(d.Scheme)]),
		Src:      netip.AddrFrom16(src).Unmap(), // no stained IPv6 packet has such ones
		Dst:      netip.AddrFrom16(dst).Unmap(),
		TTL:      b[unsafe.Offsetof(d.Ttl)],
		Seq:      binary.NativeEndian.Uint32(b[unsafe.Offsetof(d.Seq):]),
		Ack:      binary.NativeEndian.Uint32(b[unsafe.Offsetof(d.Ack):]),
		Flags:    b[unsafe.Offsetof(d.Flags)],
		Withheld: b[unsafe.Offsetof(d.Withheld)] != 0,
	}
	return true
}

// maxReceive bounds what one Receive reads: where packets come as fast as they are read, the ring is
// never empty, and whoever counts, sends and paces would not come to it. 512 are a batch of an agent's samples.
const maxReceive = 512

// Receive blocks until a stained packet was seen, or Close. It calls fn for what the ring
// holds, 512 of them at the most, in the order in which they came there, and returns nil. (Where two
// processors send at one time, At can be out of order by the time that the program
// takes.) fn must not call Close. It returns ErrClosed after Close, and allocates
// nothing.
func (s *Sampler) Receive(fn func(Seen)) error {
	s.rx.Lock()
	defer s.rx.Unlock()
	for n := 0; n == 0 || n < maxReceive && s.record.Remaining > 0; n++ {
		switch err := s.reader.ReadInto(&s.record); {
		case errors.Is(err, os.ErrClosed):
			return ErrClosed
		case err != nil:
			return fmt.Errorf("tap: receiving: %w", err)
		}
		var seen Seen
		if !seen.parse(s.record.RawSample) {
			return fmt.Errorf("tap: receiving: a record of %d bytes, want %d", len(s.record.RawSample), digestSize)
		}
		seen.Device = (*s.names.Load())[seen.IfIndex]
		fn(seen)
	}
	return nil
}

// Probe names a probe that its guest must not see, by its token and the address that
// it is sent to.
type Probe struct {
	Token uint32
	Dst   netip.Addr
}

// Withhold has these probes, what withdraws them, and answers to them dropped, on all
// devices, until the given time in nanoseconds of CLOCK_MONOTONIC: a lease, so that
// no failure of ours drops anything for longer. Withholding a probe again renews it.
// The error is ErrFull if there is no room: then some of them may not be withheld, so
// none may be sent. To make room, Release; a lease's end does not.
func (s *Sampler) Withhold(until int64, probes ...Probe) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return fmt.Errorf("tap: withholding: %w", ErrClosed)
	}
	for i, p := range probes {
		key, err := p.key()
		if err == nil {
			err = s.objects.Withheld.Update(&key, uint64(max(until, 0)), ebpf.UpdateAny)
		}
		if errors.Is(err, unix.E2BIG) {
			err = fmt.Errorf("%w (%d)", ErrFull, s.objects.Withheld.MaxEntries())
		}
		if err != nil {
			return fmt.Errorf("tap: withholding probe %d of %d: %w", i+1, len(probes), err)
		}
	}
	return nil
}

// Release ends Withhold for these probes. That one is not withheld is no error.
func (s *Sampler) Release(probes ...Probe) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return nil // and all are released
	}
	for i, p := range probes {
		key, err := p.key()
		if err == nil {
			err = s.objects.Withheld.Delete(&key)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("tap: releasing probe %d of %d: %w", i+1, len(probes), err)
		}
	}
	return nil
}

func (p Probe) key() (tapProbe, error) {
	if !p.Dst.IsValid() {
		return tapProbe{}, errors.New("destination address missing")
	}
	return tapProbe{Token: p.Token, Dst: p.Dst.As16()}, nil
}
