package underlay

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

var (
	testKey = Key{0: 1, 1: 2, 31: 3}
	vtepA   = netip.MustParseAddrPort("10.255.1.11:40001")
	vtepB   = netip.MustParseAddrPort("10.255.2.13:7464")
)

// The tag was computed with Python's hmac. Agents of two versions must understand each other.
func TestGolden(t *testing.T) {
	d := Datagram{Kind: Answer, ToS: 0xb8, TTL: 61, Session: 0x0102030405060708, Serial: 77, Length: 52, SentNs: 1_000_000_007}
	const want = "64797501" + "02b83d00" + "0102030405060708" + "0000004d" + "0034" + "0000" + "000000003b9aca07" +
		"ab7a4753d7416e5a68b0cc38b95fc86a" + "00000000"
	got := NewCodec(testKey).Append(nil, d, vtepA, vtepB)
	if text := hex.EncodeToString(got); text != want {
		t.Errorf("Append = %s\nwant     %s", text, want)
	}
	back, err := NewCodec(testKey).Parse(got, vtepA, vtepB)
	if err != nil || back != d {
		t.Errorf("Parse = %+v, %v, want %+v", back, err, d)
	}
}

// naive encodes by the drawing in the package's documentation, field by field.
func naive(key Key, d Datagram, src, dst netip.AddrPort) []byte {
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.BigEndian, v) }
	b.WriteString("dyu\x01")
	put([]uint8{uint8(d.Kind), d.ToS, d.TTL, 0})
	put(d.Session)
	put(d.Serial)
	put([]uint16{uint16(d.Length), 0})
	put(d.SentNs)
	mac := hmac.New(sha256.New, key[:])
	mac.Write(b.Bytes())
	var standing bytes.Buffer
	if d.Kind >= StreamQuestion {
		s := d.Standing
		_ = binary.Write(&standing, binary.BigEndian, []uint32{s.Epoch, s.Overflows, s.Withheld, s.Known})
		_ = binary.Write(&standing, binary.BigEndian, s.Seen[:])
	}
	mac.Write(standing.Bytes())
	for _, a := range []netip.Addr{src.Addr(), dst.Addr()} {
		ip := a.As16()
		mac.Write(ip[:])
	}
	_ = binary.Write(mac, binary.BigEndian, []uint16{src.Port(), dst.Port()})
	b.Write(mac.Sum(nil)[:16])
	b.Write(standing.Bytes())
	for b.Len() < d.Length {
		b.WriteByte(0)
	}
	return b.Bytes()
}

func drawDatagram(t *rapid.T) Datagram {
	d := Datagram{
		Kind:    rapid.SampledFrom([]Kind{Question, Answer, StreamQuestion, StreamAnswer}).Draw(t, "kind"),
		ToS:     rapid.Uint8().Draw(t, "tos"),
		TTL:     rapid.Uint8().Draw(t, "ttl"),
		Session: rapid.Uint64().Draw(t, "session"),
		Serial:  rapid.Uint32().Draw(t, "serial"),
		SentNs:  rapid.Int64().Draw(t, "sent"),
	}
	d.Length = rapid.IntRange(d.Kind.least(), 9000).Draw(t, "length")
	if d.Kind == StreamAnswer {
		seen := rapid.SliceOfN(rapid.Uint64(), 4, 4).Draw(t, "seen")
		d.Standing = Standing{rapid.Uint32().Draw(t, "epoch"), rapid.Uint32().Draw(t, "overflows"), rapid.Uint32().Draw(t, "withheld"), rapid.Uint32Range(0, seenBits).Draw(t, "known"), [4]uint64(seen)}
	}
	return d
}

func drawAddr(t *rapid.T, label string) netip.AddrPort {
	var a netip.Addr
	if rapid.Bool().Draw(t, label+" is IPv6") {
		a = netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label))).Unmap()
	} else {
		a = netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, label)))
	}
	return netip.AddrPortFrom(a, rapid.Uint16().Draw(t, label+" port"))
}

func TestCodec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, src, dst := drawDatagram(t), drawAddr(t, "src"), drawAddr(t, "dst")
		c := NewCodec(testKey)
		b := c.Append([]byte("before"), d, src, dst)[len("before"):]
		if want := naive(testKey, d, src, dst); !bytes.Equal(b, want) {
			t.Fatalf("Append = %x\nwant     %x", b, want)
		}
		if back, err := c.Parse(b, src, dst); err != nil || back != d {
			t.Fatalf("Parse = %+v, %v", back, err)
		}
		// Whatever changes on the way, or claims to come from elsewhere, is not taken.
		forged := bytes.Clone(b)
		forged[rapid.IntRange(0, d.Kind.least()-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if back, err := c.Parse(forged, src, dst); err == nil {
			t.Fatalf("Parse of a changed datagram = %+v", back)
		}
		if other := drawAddr(t, "other"); other != src {
			if _, err := c.Parse(b, other, dst); !errors.Is(err, ErrForged) {
				t.Fatalf("Parse from another source: %v, want %v", err, ErrForged)
			}
		}
		if _, err := c.Parse(b[:len(b)-1], src, dst); err == nil {
			t.Fatal("Parse takes a datagram that was cut off")
		}
		if _, err := NewCodec(Key{9}).Parse(b, src, dst); !errors.Is(err, ErrForged) {
			t.Fatalf("Parse with another key: %v, want %v", err, ErrForged)
		}
	})
}

// What Parse takes is what Append makes; and it takes nothing that was not made with the key.
func FuzzParse(f *testing.F) {
	f.Add(NewCodec(testKey).Append(nil, Datagram{Kind: Question, Session: 5, Length: 60}, vtepA, vtepB))
	f.Add(naive(testKey, Datagram{Kind: 3, Session: 5, Length: 48}, vtepA, vtepB))
	f.Add(NewCodec(testKey).Append(nil, Datagram{Kind: StreamAnswer, Session: 5, Length: StreamSize, Standing: Standing{1, 2, 3, 200, [4]uint64{4, 5, 6, 7}}}, vtepA, vtepB))
	f.Add([]byte("dyu\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := NewCodec(testKey)
		d, err := c.Parse(b, vtepA, vtepB)
		switch {
		case err == nil:
			again := c.Append(nil, d, vtepA, vtepB)
			if n := d.Kind.least(); !bytes.Equal(again[:n], b[:n]) || len(again) != len(b) {
				t.Errorf("Parse(%x) = %+v, which is %x", b, d, again)
			}
		case !errors.Is(err, ErrForeign) && !errors.Is(err, ErrForged):
			t.Errorf("Parse(%x): %v, want one of the package's errors", b, err)
		}
	})
}

func TestNoAllocations(t *testing.T) {
	c := NewCodec(testKey)
	b := make([]byte, 0, 2000)
	n := testing.AllocsPerRun(100, func() {
		for _, k := range []Kind{Question, StreamAnswer} {
			b = c.Append(b[:0], Datagram{Kind: k, Session: 1, Length: 1400}, vtepA, vtepB)
			if _, err := c.Parse(b, vtepA, vtepB); err != nil {
				t.Fatal(err)
			}
		}
	})
	if n > 0 {
		t.Errorf("%v allocations for a datagram made and read, want none", n)
	}
}
