package underlay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"slices"
)

const (
	// KeySize is of the key that a controller hands out: that of HMAC-SHA-256's output, beyond which
	// there is nothing to gain (RFC 2104, section 3).
	KeySize = 32
	// HeaderSize is the least payload of a datagram.
	HeaderSize = signed + tagSize

	signed  = 32 // bytes of the header that come before the tag
	tagSize = 16 // half of the hash, as RFC 2104, section 5 has it at the least
	// standingSize is what datagrams of a stream have behind the header, StreamSize their least payload.
	standingSize = 48
	StreamSize   = HeaderSize + standingSize
	// maxPayload is what a UDP datagram over IPv4 holds (65,535 - 20 - 8).
	maxPayload = 65507
)

// Errors of Parse: which of them it is tells a stranger from somebody with another key.
var (
	// ErrForeign says that a datagram is none of this protocol.
	ErrForeign = errors.New("not an underlay probe")
	// ErrForged says that a datagram is not authentic: made with another key, or for other
	// addresses.
	ErrForged = errors.New("not authentic")
)

// Kind of a datagram.
type Kind uint8

// Kinds.
const (
	Question Kind = iota + 1
	Answer
	// StreamQuestion and StreamAnswer are of a stream: its serial numbers rise by one from question to
	// question, and an answer tells how the responder stands with those before.
	StreamQuestion
	StreamAnswer
)

func (k Kind) streams() bool { return k == StreamQuestion || k == StreamAnswer }

// seenBits is how many questions an answer tells of.
const seenBits = 256

// Standing is how a responder stands with a stream as it answers a question of it.
type Standing struct {
	// Epoch is another one where the responder knows nothing of what was before: it, its socket or
	// what it remembers of the stream is new.
	Epoch uint32
	// Overflows are datagrams, whosever, that its socket had no room for (SO_RXQ_OVFL of socket(7)).
	Overflows uint32
	// Withheld are answers of this stream that it did not send: by its rate, or since it could not.
	Withheld uint32
	// Known is of how many questions Seen tells, and Seen has bit i%64 of word i/64 set if the question
	// came that was sent i+1 before this one.
	Known uint32
	Seen  [seenBits / 64]uint64
}

// Datagram is what a datagram says.
type Datagram struct {
	Kind Kind
	// ToS and TTL of the question as it came; 0 in a question.
	ToS, TTL uint8
	Session  uint64
	Serial   uint32
	// Length of the payload, bytes: HeaderSize or more.
	Length int
	// SentNs is by the prober's clock, nanoseconds.
	SentNs int64
	// Standing is of a StreamAnswer; zero in others.
	Standing Standing
}

// Key authenticates datagrams.
type Key [KeySize]byte

// Codec writes and reads datagrams under one key. One goroutine uses it.
type Codec struct {
	mac hash.Hash
	sum [sha256.Size]byte
	in  [signed + standingSize + 2*16 + 2*2]byte
}

// NewCodec returns a codec for a key.
func NewCodec(key Key) *Codec { return &Codec{mac: hmac.New(sha256.New, key[:])} }

// least is the least payload of a kind.
func (k Kind) least() int {
	if k.streams() {
		return StreamSize
	}
	return HeaderSize
}

// Append appends a datagram from src to dst to b. Length must be from HeaderSize, or StreamSize for
// those of a stream, to what a UDP datagram holds.
func (c *Codec) Append(b []byte, d Datagram, src, dst netip.AddrPort) []byte {
	least := d.Kind.least()
	if d.Length < least || d.Length > maxPayload {
		panic(fmt.Sprintf("underlay: length of a datagram: %d, want %d to %d", d.Length, least, maxPayload))
	}
	start := len(b)
	b = append(b, 'd', 'y', 'u', 1, byte(d.Kind), d.ToS, d.TTL, 0)
	b = binary.BigEndian.AppendUint64(b, d.Session)
	b = binary.BigEndian.AppendUint32(b, d.Serial)
	b = binary.BigEndian.AppendUint16(b, uint16(d.Length))
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(d.SentNs))
	var standing []byte
	if d.Kind.streams() {
		b = slices.Grow(b, tagSize+standingSize)
		standing = d.Standing.append(b[start+HeaderSize : start+HeaderSize : cap(b)])
	}
	b = append(b, c.tag(b[start:start+signed], standing, src, dst)...)
	b = b[:len(b)+len(standing)]
	end := start + d.Length
	b = slices.Grow(b, end-len(b))[:end]
	clear(b[start+least:])
	return b
}

func (s *Standing) append(b []byte) []byte {
	for _, v := range [...]uint32{s.Epoch, s.Overflows, s.Withheld, s.Known} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	for _, w := range s.Seen {
		b = binary.BigEndian.AppendUint64(b, w)
	}
	return b
}

func (s *Standing) parse(b []byte) {
	for i, v := range [...]*uint32{&s.Epoch, &s.Overflows, &s.Withheld, &s.Known} {
		*v = binary.BigEndian.Uint32(b[4*i:])
	}
	for i := range s.Seen {
		s.Seen[i] = binary.BigEndian.Uint64(b[16+8*i:])
	}
}

// Parse reads a payload that went from src to dst. Bytes after the header are not looked at, but
// must be as many as it says. The error wraps ErrForeign or ErrForged.
func (c *Codec) Parse(b []byte, src, dst netip.AddrPort) (Datagram, error) {
	if len(b) < HeaderSize {
		return Datagram{}, fmt.Errorf("%w: %d bytes, want at least %d", ErrForeign, len(b), HeaderSize)
	}
	if b[0] != 'd' || b[1] != 'y' || b[2] != 'u' || b[3] != 1 {
		return Datagram{}, fmt.Errorf("%w: begins with % x", ErrForeign, b[:4])
	}
	var standing []byte
	if Kind(b[4]).streams() {
		if len(b) < StreamSize {
			return Datagram{}, fmt.Errorf("%w: %d bytes of a stream, want at least %d", ErrForeign, len(b), StreamSize)
		}
		standing = b[HeaderSize:StreamSize]
	}
	if !hmac.Equal(b[signed:HeaderSize], c.tag(b[:signed], standing, src, dst)) {
		return Datagram{}, ErrForged
	}
	d := Datagram{
		Kind: Kind(b[4]), ToS: b[5], TTL: b[6],
		Session: binary.BigEndian.Uint64(b[8:]),
		Serial:  binary.BigEndian.Uint32(b[16:]),
		Length:  int(binary.BigEndian.Uint16(b[20:])),
		SentNs:  int64(binary.BigEndian.Uint64(b[24:])),
	}
	switch {
	case d.Kind < Question || d.Kind > StreamAnswer:
		return Datagram{}, fmt.Errorf("%w: kind %d", ErrForeign, d.Kind)
	case d.Length != len(b):
		return Datagram{}, fmt.Errorf("%w: %d bytes, want %d as it says", ErrForeign, len(b), d.Length)
	case b[7] != 0 || b[22] != 0 || b[23] != 0:
		return Datagram{}, fmt.Errorf("%w: bytes that must be 0 are not", ErrForeign)
	}
	if standing != nil {
		if n := binary.BigEndian.Uint32(standing[12:]); n > seenBits {
			return Datagram{}, fmt.Errorf("%w: tells of %d others, want at most %d", ErrForeign, n, seenBits)
		}
		d.Standing.parse(standing)
	}
	return d, nil
}

// tag is good until the next call.
func (c *Codec) tag(header, standing []byte, src, dst netip.AddrPort) []byte {
	n := copy(c.in[:], header)
	n += copy(c.in[n:], standing)
	for _, a := range [...]netip.AddrPort{src, dst} {
		ip := a.Addr().As16()
		n += copy(c.in[n:], ip[:])
	}
	binary.BigEndian.PutUint16(c.in[n:], src.Port())
	binary.BigEndian.PutUint16(c.in[n+2:], dst.Port())
	c.mac.Reset()
	c.mac.Write(c.in[:n+4])
	return c.mac.Sum(c.sum[:0])[:tagSize]
}
