package stain

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// The vector of "The Simon and Speck Families of Lightweight Block Ciphers",
// appendix C: Speck32/64, key 1918 1110 0908 0100, 6574 694c → a868 42f2.
func TestTokensSpeck(t *testing.T) {
	t.Parallel()
	key := Key{0x00, 0x01, 0x08, 0x09, 0x10, 0x11, 0x18, 0x19, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	tokens := NewTokens(key, 0xffffffff)
	if got := tokens.At(0x6574694c); got != 0xa86842f2 {
		t.Errorf("At(0x6574694c) = %#x, want 0xa86842f2", got)
	}
	if got, ok := tokens.Index(0xa86842f2); got != 0x6574694c || !ok {
		t.Errorf("Index(0xa86842f2) = %#x, %v, want 0x6574694c, true", got, ok)
	}
}

func drawKey(t *rapid.T) Key {
	return Key(rapid.SliceOfN(rapid.Byte(), KeySize, KeySize).Draw(t, "key"))
}

func TestTokensRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		key, total := drawKey(t), rapid.Uint32().Draw(t, "total")
		index := rapid.Uint32().Draw(t, "index")
		tokens := NewTokens(key, total)
		got, ok := tokens.Index(tokens.At(index))
		if got != index || ok != (index < total) {
			t.Fatalf("Index(At(%d)) = %d, %v of %d", index, got, ok, total)
		}
	})
}

// A forged token is taken with probability total/2³²: of 65536 indexes spread
// over all tokens, one in 2¹⁶ tokens decodes. 2²⁰ guesses give 16 on average;
// 64 would be chance once in 10¹⁷ runs.
func TestTokensForgery(t *testing.T) {
	t.Parallel()
	tokens := NewTokens(Key{1, 2, 3, 4, 5, 6, 7, 8}, 1<<16)
	hits := 0
	for guess := range uint32(1 << 20) {
		if _, ok := tokens.Index(guess); ok {
			hits++
		}
	}
	if hits > 64 {
		t.Errorf("%d of 2^20 guesses were taken, want about 16", hits)
	}
}

// Two runs have nothing in common: a token of one is nothing in the other.
func TestTokensOfAnotherRun(t *testing.T) {
	t.Parallel()
	const total = 10_000
	a, b := NewTokens(Key{1}, total), NewTokens(Key{2}, total)
	for i := range uint32(total) {
		if index, ok := b.Index(a.At(i)); ok && index == i {
			t.Errorf("token of probe %d is the same in both runs", i)
		}
	}
}

func TestAddrTag(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		key := drawKey(t)
		src := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "src")))
		dst := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "dst")))
		h := fnv.New64a()
		h.Write(key[8:])
		s, d := src.As16(), dst.As16()
		h.Write(s[:])
		h.Write(d[:])
		if got, want := AddrTag(key, src, dst), h.Sum64(); got != want {
			t.Fatalf("AddrTag = %#x, hash/fnv says %#x", got, want)
		}
	})
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	mapped := netip.MustParseAddr("::ffff:10.0.0.1")
	key := Key{15: 7}
	if AddrTag(key, a, b) == AddrTag(key, b, a) {
		t.Error("AddrTag does not tell source from destination")
	}
	if AddrTag(key, a, b) == AddrTag(Key{}, a, b) {
		t.Error("AddrTag does not depend on the last byte of the key")
	}
	if AddrTag(key, a, b) != AddrTag(key, mapped, b) {
		t.Error("AddrTag tells an address from its IPv4-mapped form")
	}
}

func BenchmarkTokens(b *testing.B) {
	tokens := NewTokens(Key{1, 2, 3}, 1<<31)
	b.Run("At", func(b *testing.B) {
		var i, sum uint32
		for b.Loop() {
			sum += tokens.At(i)
			i++
		}
		sink = sum
	})
	b.Run("Index", func(b *testing.B) {
		var i, sum uint32
		for b.Loop() {
			index, _ := tokens.Index(i)
			sum += index
			i++
		}
		sink = sum
	})
}

func BenchmarkAddrTag(b *testing.B) {
	var raw [4]byte
	dst := netip.MustParseAddr("10.0.0.2")
	var i uint32
	for b.Loop() {
		binary.BigEndian.PutUint32(raw[:], i)
		sink += uint32(AddrTag(Key{}, netip.AddrFrom4(raw), dst))
		i++
	}
}

// sink keeps the compiler from dropping what a benchmark computes.
var sink uint32
