package stain

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// KeySize is the size of a Key in bytes.
const KeySize = 16

// Key is the secret of one run: bytes 0..7 key the permutation of tokens, bytes
// 8..15 the tags of addresses. A fresh random one for each run keeps the tokens
// of one run from being understood in another.
type Key [KeySize]byte

// speckRounds is the number of rounds of Speck32/64 (Beaulieu et al., "The
// Simon and Speck Families of Lightweight Block Ciphers", table 4.1).
const speckRounds = 22

// Tokens turns the index of a probe into its token and back, without a table.
// A token is the index encrypted as one block of Speck32/64, the one published
// block cipher with blocks as large as a sequence number. Tokens neither collide
// nor show their order; one who does not know the key and guesses hits an index
// of the run with probability total/2³². Safe for concurrent use.
type Tokens struct {
	round [speckRounds]uint16
	total uint32
}

// NewTokens returns the tokens of a run of total probes, with indexes 0 to total-1.
func NewTokens(k Key, total uint32) *Tokens {
	t := &Tokens{total: total}
	// The paper writes key words as (l2, l1, l0, k0), the least significant last;
	// its byte order is little-endian.
	key := binary.LittleEndian.Uint16(k[0:])
	l := [3]uint16{
		binary.LittleEndian.Uint16(k[2:]),
		binary.LittleEndian.Uint16(k[4:]),
		binary.LittleEndian.Uint16(k[6:]),
	}
	for i := range t.round {
		t.round[i] = key
		l[i%3], key = speckRound(l[i%3], key, uint16(i))
	}
	return t
}

// At returns the token of a probe. Where index is not below the run's total, it
// returns a token that Index refuses.
func (t *Tokens) At(index uint32) uint32 {
	x, y := uint16(index>>16), uint16(index)
	for _, k := range &t.round {
		x, y = speckRound(x, y, k)
	}
	return uint32(x)<<16 | uint32(y)
}

// Index returns the index of the probe that has this token, and whether the run
// has such a probe.
func (t *Tokens) Index(token uint32) (index uint32, ok bool) {
	x, y := uint16(token>>16), uint16(token)
	for i := len(t.round) - 1; i >= 0; i-- {
		y = bits.RotateLeft16(x^y, -2)
		x = bits.RotateLeft16((x^t.round[i])-y, 7)
	}
	index = uint32(x)<<16 | uint32(y)
	return index, index < t.total
}

// speckRound is the round function for 16-bit words (α = 7, β = 2). It serves
// the key schedule too, with the round's number for a key.
func speckRound(x, y, k uint16) (uint16, uint16) {
	x = bits.RotateLeft16(x, -7) + y ^ k
	y = bits.RotateLeft16(y, 2) ^ x
	return x, y
}

// AddrTag condenses the two addresses of a packet, in their order, into 64 bits,
// so that a sample need not carry 32 bytes to be compared with the plan: FNV-1a
// (draft-eastlake-fnv) over the last 8 bytes of the key, then src and dst as 16
// bytes each. An IPv4 address and its IPv4-mapped form have one tag, and the
// invalid Addr that of ::. It guards against mix-ups, not against one who can
// choose addresses to collide: such a one still has to guess the token.
func AddrTag(k Key, src, dst netip.Addr) uint64 {
	const offsetBasis = 0xcbf29ce484222325
	h := fnv1a(offsetBasis, k[8:])
	a := src.As16()
	h = fnv1a(h, a[:])
	a = dst.As16()
	return fnv1a(h, a[:])
}

func fnv1a(h uint64, b []byte) uint64 {
	const prime = 0x100000001b3
	for _, c := range b {
		h = (h ^ uint64(c)) * prime
	}
	return h
}
