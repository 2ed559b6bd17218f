package stain

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

func goodCopy() Copy {
	return Copy{
		Kind: FromTunnel, Scheme: TCP, InPort: 0x1234, TunSrc: [4]byte{172, 16, 0, 9}, TunID: 0xabcdef,
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), TTL: 63, Token: 0xdeadbeef,
		Flags: FlagSYN,
	}
}

// echoCopy makes a copy of scheme icmp of one of scheme tcp.
func echoCopy(c Copy) Copy {
	c.Scheme, c.Flags = ICMP, 0
	return c
}

const goldenCopy = "" +
	"0682cdef1234" + "02abac100009" + "0800" +
	"455c0028" + "00004000" + "3f062772" + "0a000001" + "0a000002" +
	"000b000b" + "deadbeef" + "00000000" + "5002faf0" + "033c0000"

// goldenReply is what a Linux guest answered to the probe of goldenFrame (RST|ACK,
// window 0), captured, checksums and all, with the MAC addresses of a copy.
const goldenReply = "" +
	"068100000007" + "020000000000" + "0800" +
	"455c0028" + "00004000" + "40062672" + "0a000002" + "0a000001" +
	"000b000b" + "00000000" + "deadbef0" + "50140000" + "fe190000"

func goodCopy6() Copy {
	c := goodCopy()
	c.Src, c.Dst = goodProbe6().Src, goodProbe6().Dst
	return c
}

const goldenCopy6 = "" +
	"0682cdef1234" + "02abac100009" + "86dd" +
	"65c00000" + "0014063f" + "fd000000000000000000000000000001" + "fd000000000000000000000000000002" +
	"000b000b" + "deadbeef" + "00000000" + "5002faf0" + "1d3a0000"

// goldenReply6 answered goldenFrame6, as goldenReply did goldenFrame: a flow label
// of the guest's choice, and the traffic class that it was asked with.
const goldenReply6 = "" +
	"068100000007" + "020000000000" + "86dd" +
	"65c697d8" + "00140640" + "fd000000000000000000000000000002" + "fd000000000000000000000000000001" +
	"000b000b" + "00000000" + "deadbef0" + "50140000" + "fa1e0000"

const (
	goldenEchoCopy = "" +
		"0682cdef1234" + "02abac100009" + "0800" +
		"455c0024" + "00004000" + "3f01277b" + "0a000001" + "0a000002" +
		"0800baad" + "deadbeef" + "6479657472616365"
	goldenEchoCopy6 = "" +
		"0682cdef1234" + "02abac100009" + "86dd" +
		"65c00000" + "00103a3f" + "fd000000000000000000000000000001" + "fd000000000000000000000000000002" +
		"8000485e" + "deadbeef" + "6479657472616365"
	// What a Linux guest sent back for goldenEcho and goldenEcho6, as goldenReply.
	goldenEchoReply = "" +
		"068100000007" + "020000000000" + "0800" +
		"455c0024" + "c12e0000" + "4001a54c" + "0a000002" + "0a000001" +
		"0000c2ad" + "deadbeef" + "6479657472616365"
	goldenEchoReply6 = "" +
		"068100000007" + "020000000000" + "86dd" +
		"65c2c241" + "00103a40" + "fd000000000000000000000000000002" + "fd000000000000000000000000000001" +
		"8100475e" + "deadbeef" + "6479657472616365"
)

func TestParseCopyGolden(t *testing.T) {
	t.Parallel()
	reply := Copy{Kind: FromInstance, Scheme: TCP, InPort: 7, Src: goodCopy().Dst, Dst: goodCopy().Src, TTL: 64, Token: 0xdeadbeef, Reply: true, Flags: FlagRST | FlagACK}
	reply6 := reply
	reply6.Src, reply6.Dst = goodCopy6().Dst, goodCopy6().Src
	noReply := echoCopy(goodCopy())
	noReply.NoReply = true
	for _, tt := range []struct {
		name, frame string
		want        Copy
	}{
		{"probe from a tunnel", goldenCopy, goodCopy()},
		{"answer of a guest", goldenReply, reply},
		{"IPv6 probe from a tunnel", goldenCopy6, goodCopy6()},
		{"IPv6 answer of a guest", goldenReply6, reply6},
		{"echo request from a tunnel", goldenEchoCopy, echoCopy(goodCopy())},
		{"echo reply of a guest", goldenEchoReply, echoCopy(reply)},
		{"ICMPv6 echo request from a tunnel", goldenEchoCopy6, echoCopy(goodCopy6())},
		{"echo request whose reply will not be seen", strings.Replace(goldenEchoCopy, "0682", "0602", 1), noReply},
		{"ICMPv6 echo reply of a guest", goldenEchoReply6, echoCopy(reply6)},
	} {
		var got Copy
		if err := Default().ParseCopy(unhexAll(t, tt.frame), &got); err != nil || got != tt.want {
			t.Errorf("%s: ParseCopy = %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
		if tt.want.Reply {
			continue // as a guest spells it, not as we do
		}
		frame, err := Default().AppendCopy(nil, tt.want)
		if err != nil || hex.EncodeToString(frame) != tt.frame {
			t.Errorf("%s: AppendCopy = %x, %v; want %s", tt.name, frame, err, tt.frame)
		}
	}
}

func unhexAll(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Offsets in an untagged frame.
const (
	atType  = 12
	atIP    = 14
	atTCP   = 34
	atFlags = 47
	atTCP6  = 54 // over IPv6
)

// Ways to spoil a frame.
func put16(at int, v uint16) func([]byte) []byte {
	return func(b []byte) []byte { binary.BigEndian.PutUint16(b[at:], v); return b }
}

func put(at int, v byte) func([]byte) []byte {
	return func(b []byte) []byte { b[at] = v; return b }
}

func tag(tpid uint16) func([]byte) []byte {
	return func(b []byte) []byte {
		return slices.Insert(b, atType, byte(tpid>>8), byte(tpid), 0x00, 0x64)
	}
}

func TestParseCopy(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func([]byte) []byte
		want   error
	}{
		{"as it is", func(b []byte) []byte { return b }, nil},
		{"padded to 60 bytes", func(b []byte) []byte { return append(b, make([]byte, 6)...) }, nil},
		{"VLAN tag", tag(0x8100), nil},
		{"service tag", tag(0x88a8), nil},
		{"congestion experienced", put(atIP+1, 0x5f), nil},
		{"ECE and CWR", put(atFlags, 0xc2), nil},
		{"checksums not filled in", func(b []byte) []byte { b[atIP+10] ^= 1; b[atTCP+16] ^= 1; return b }, nil},
		{"two tags", func(b []byte) []byte { return tag(0x8100)(tag(0x8100)(b)) }, ErrNotStained},
		{"empty", func(b []byte) []byte { return nil }, ErrShort},
		{"half a tag", func(b []byte) []byte { return tag(0x8100)(b)[:16] }, ErrShort},
		{"no IP header", func(b []byte) []byte { return b[:atIP+19] }, ErrShort},
		{"cut in the TCP header", func(b []byte) []byte { return b[:len(b)-1] }, ErrShort},
		{"total length of an IP header", put16(atIP+2, 20), ErrShort},
		{"total length beyond the frame", put16(atIP+2, 41), ErrShort},
		{"IHL 4", put(atIP, 0x44), ErrShort},
		{"IHL beyond the packet", put(atIP, 0x46), ErrShort},
		{"data offset 4", put(atTCP+12, 0x40), ErrShort},
		{"data offset beyond the packet", put(atTCP+12, 0x60), ErrShort},
		{"not to us", put(0, 0x52), ErrNotCopy},
		{"not from us", put(6, 0x52), ErrNotCopy},
		{"kind 0", put(1, 0), ErrNotCopy},
		{"kind 5", put(1, 5), ErrNotCopy},
		{"kind 0, marked", put(1, 0x80), ErrNotCopy},
		{"kind 5, marked", put(1, 0x85), ErrNotCopy},
		{"a kind with another bit", put(1, 0xc2), ErrNotCopy},
		{"ARP", put16(atType, 0x0806), ErrNotStained},
		{"IP version 6", put(atIP, 0x65), ErrNotStained},
		{"IPv4 called IPv6", func(b []byte) []byte { return put16(atType, 0x86dd)(append(b, make([]byte, 20)...)) }, ErrNotStained},
		{"UDP", put(atIP+9, 17), ErrNotStained},
		{"other ToS", put(atIP+1, 0x60), ErrNotStained},
		{"first fragment", put16(atIP+6, 0x2000), ErrNotStained},
		{"later fragment", put16(atIP+6, 1), ErrNotStained},
		{"other source port", put16(atTCP, 12), ErrNotStained},
		{"other destination port", put16(atTCP+2, 12), ErrNotStained},
		{"no flags", put(atFlags, 0), ErrNotStained},
		{"SYN and RST", put(atFlags, 0x06), ErrNotStained},
		{"ACK alone", put(atFlags, 0x10), ErrNotStained},
		{"SYN and FIN", put(atFlags, 0x03), ErrNotStained},
		{"SYN, RST and ACK", put(atFlags, 0x16), ErrNotStained},
	}
	for _, tt := range tests {
		frame := tt.change(unhexAll(t, goldenCopy))
		got, want := Copy{Token: 1}, Copy{Token: 1} // unchanged on error
		if tt.want == nil {
			want = goodCopy()
		}
		if tt.name == "ECE and CWR" {
			want.Flags |= 0xc0
		}
		if err := Default().ParseCopy(frame, &got); !errors.Is(err, tt.want) || got != want {
			t.Errorf("%s: ParseCopy = %+v, %v; want %+v, %v", tt.name, got, err, want, tt.want)
		}
	}
}

// extended puts an extension header before the TCP header of a frame over IPv6.
func extended(next byte, header ...byte) func([]byte) []byte {
	return func(b []byte) []byte {
		header = slices.Clone(header)
		header[0] = b[atIP+6]
		b[atIP+6], b[atIP+5] = next, b[atIP+5]+byte(len(header))
		return slices.Insert(b, atTCP6, header...)
	}
}

func TestParseCopyIPv6(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func([]byte) []byte
		want   error
	}{
		{"as it is", func(b []byte) []byte { return b }, nil},
		{"VLAN tag", tag(0x8100), nil},
		{"trailing bytes", func(b []byte) []byte { return append(b, 1, 2, 3) }, nil},
		{"congestion experienced", put(atIP+1, 0xf0), nil},
		{"flow label", func(b []byte) []byte { b[atIP+1] |= 0x0f; b[atIP+2], b[atIP+3] = 0xff, 0xff; return b }, nil},
		{"checksum not filled in", put(atTCP6+16, 0), nil},
		{"no IP header", func(b []byte) []byte { return b[:atTCP6-1] }, ErrShort},
		{"cut in the TCP header", func(b []byte) []byte { return b[:len(b)-1] }, ErrShort},
		{"no payload", put16(atIP+4, 0), ErrShort},
		{"payload beyond the frame", put16(atIP+4, 21), ErrShort},
		{"payload of most of a TCP header", put16(atIP+4, 19), ErrShort},
		{"data offset beyond the packet", put(atTCP6+12, 0x60), ErrShort},
		{"IP version 4", put(atIP, 0x45), ErrNotStained},
		{"IPv6 called IPv4", put16(atType, 0x0800), ErrNotStained},
		{"UDP", put(atIP+6, 17), ErrNotStained},
		{"other traffic class", put(atIP+1, 0x80), ErrNotStained},
		{"other traffic class, upper bits", put(atIP, 0x66), ErrNotStained},
		{"mapped source", func(b []byte) []byte { copy(b[atIP+8:], mapped); return b }, ErrNotStained},
		{"mapped destination", func(b []byte) []byte { copy(b[atIP+24:], mapped); return b }, ErrNotStained},
		{"hop-by-hop options", extended(0, 0, 0, 1, 4, 0, 0, 0, 0), ErrNotStained},
		{"destination options", extended(60, 0, 0, 1, 4, 0, 0, 0, 0), ErrNotStained},
		{"routing", extended(43, 0, 0, 4, 0, 0, 0, 0, 0), ErrNotStained},
		{"atomic fragment", extended(44, 0, 0, 0, 0, 0, 0, 0, 0), ErrNotStained},
		{"first fragment", extended(44, 0, 0, 0, 1, 0, 0, 0, 0), ErrNotStained},
		{"later fragment", extended(44, 0, 0, 1, 0, 0, 0, 0, 0), ErrNotStained},
		{"authentication", extended(51, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1), ErrNotStained},
		{"no next header", put(atIP+6, 59), ErrNotStained},
		{"other source port", put16(atTCP6, 12), ErrNotStained},
		{"no flags", put(atTCP6+13, 0), ErrNotStained},
	}
	for _, tt := range tests {
		frame := tt.change(unhexAll(t, goldenCopy6))
		got, want := Copy{Token: 1}, Copy{Token: 1} // unchanged on error
		if tt.want == nil {
			want = goodCopy6()
		}
		if err := Default().ParseCopy(frame, &got); !errors.Is(err, tt.want) || got != want {
			t.Errorf("%s: ParseCopy = %+v, %v; want %+v, %v", tt.name, got, err, want, tt.want)
		}
	}
}

func TestParseCopyEcho(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, frame string
		change      func([]byte) []byte
		want        error
	}{
		{"VLAN tag", goldenEchoCopy, tag(0x8100), nil},
		{"congestion experienced", goldenEchoCopy, put(atIP+1, 0x5f), nil},
		{"no data", goldenEchoCopy, put16(atIP+2, 28), nil},
		{"other data, checksum not filled in", goldenEchoCopy6, func(b []byte) []byte { return put(atTCP6+9, 0)(put16(atTCP6+2, 0)(b)) }, nil},
		{"cut in the ICMP header", goldenEchoCopy, put16(atIP+2, 27), ErrShort},
		{"cut in the ICMPv6 header", goldenEchoCopy6, put16(atIP+4, 7), ErrShort},
		{"other ToS", goldenEchoCopy, put(atIP+1, 0x60), ErrNotStained},
		{"unreachable", goldenEchoCopy, put(atTCP, 3), ErrNotStained},
		{"code", goldenEchoCopy, put(atTCP+1, 1), ErrNotStained},
		{"type of ICMPv6", goldenEchoCopy, put(atTCP, 128), ErrNotStained},
		{"type of ICMP", goldenEchoCopy6, put(atTCP6, 8), ErrNotStained},
		{"ICMPv6 over IPv4", goldenEchoCopy, put(atIP+9, 58), ErrNotStained},
		{"ICMP over IPv6", goldenEchoCopy6, put(atIP+6, 1), ErrNotStained},
		{"neighbour solicitation", goldenEchoCopy6, put(atTCP6, 135), ErrNotStained},
		{"hop-by-hop options", goldenEchoCopy6, extended(0, 0, 0, 1, 4, 0, 0, 0, 0), ErrNotStained},
	}
	for _, tt := range tests {
		frame := tt.change(unhexAll(t, tt.frame))
		got, want := Copy{Token: 1}, Copy{Token: 1} // unchanged on error
		switch {
		case tt.want == nil && tt.frame == goldenEchoCopy:
			want = echoCopy(goodCopy())
		case tt.want == nil:
			want = echoCopy(goodCopy6())
		}
		if err := Default().ParseCopy(frame, &got); !errors.Is(err, tt.want) || got != want {
			t.Errorf("%s: ParseCopy = %+v, %v; want %+v, %v", tt.name, got, err, want, tt.want)
		}
	}
}

// mapped is ::ffff:10.0.0.1, the last four bytes of which may be any.
var mapped = netip.MustParseAddr("::ffff:10.0.0.1").AsSlice()

// IPv4 options (a route that records itself) and a SYN-ACK's TCP options move
// the fields that are read.
func TestParseCopyOptions(t *testing.T) {
	t.Parallel()
	s, want := Default(), goodCopy()
	want.Reply, want.Flags = true, FlagSYN|FlagACK
	var parts []gopacket.SerializableLayer
	for _, part := range wantTCP(s, want.Src, want.Dst, want.TTL, layers.TCP{
		Ack: want.Token + 1, SYN: true, ACK: true,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}},
	}) {
		if ip, ok := part.(*layers.IPv4); ok {
			ip.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: []byte{4, 0, 0, 0, 0}}}
		}
		parts = append(parts, part)
	}
	dst, src := MAC(unhexAll(t, goldenCopy[:12])), MAC(unhexAll(t, goldenCopy[12:24]))
	frame := append(ethernet(dst, src, layers.EthernetTypeIPv4), serialize(t, parts...)...)
	var got Copy
	if err := s.ParseCopy(frame, &got); err != nil || got != want {
		t.Errorf("ParseCopy = %+v, %v; want %+v", got, err, want)
	}
}

func drawCopy(t *rapid.T) Copy {
	scheme, reply, addr := drawScheme(t), rapid.Bool().Draw(t, "reply"), drawAddr(t)
	c := Copy{
		Kind: Kind(rapid.Uint8Range(1, 4).Draw(t, "kind")), Scheme: scheme, InPort: rapid.Uint16().Draw(t, "inPort"),
		TunSrc: addr4(t).As4(), TunID: rapid.Uint32Max(1<<24-1).Draw(t, "tunID"),
		Src: addr.Draw(t, "src"), Dst: addr.Draw(t, "dst"), TTL: rapid.Uint8().Draw(t, "ttl"),
		Token: rapid.Uint32().Draw(t, "token"), Reply: reply,
		Close: scheme == TCP && !reply && rapid.Bool().Draw(t, "close"), NoReply: rapid.Bool().Draw(t, "noReply"),
	}
	c.Flags = builtFlags(c)
	return c
}

// builtFlags are those of the packet that AppendCopy makes for a copy.
func builtFlags(c Copy) uint8 {
	switch {
	case c.Scheme != TCP:
		return 0
	case c.Reply:
		return FlagRST | FlagACK
	case c.Close:
		return FlagRST
	}
	return FlagSYN
}

func TestCopyRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawStain(t)
		want := drawCopy(t)
		frame, err := s.AppendCopy(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		m := Probe{Close: want.Close}.message()
		if want.Reply {
			m = answer
		}
		oracle := append(ethernet(MAC(frame[:6]), MAC(frame[6:12]), layers.EthernetType(etherType(want.Src))),
			serialize(t, wantPacket(s, want.Scheme, want.Src, want.Dst, want.TTL, want.Token, m)...)...)
		if !bytes.Equal(frame, oracle) {
			t.Fatalf("AppendCopy = %x, gopacket says %x", frame, oracle)
		}
		var got Copy
		if err := s.ParseCopy(frame, &got); err != nil || got != want {
			t.Fatalf("ParseCopy = %+v, %v; want %+v", got, err, want)
		}
	})
}

func TestAppendCopyRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(c *Copy)
	}{
		{"scheme", func(c *Copy) { c.Scheme = 0 }},
		{"close an echo", func(c *Copy) { c.Scheme, c.Close = ICMP, true }},
		{"no kind", func(c *Copy) { c.Kind = 0 }},
		{"two IP versions", func(c *Copy) { c.Src = goodCopy6().Src }},
		{"no address", func(c *Copy) { c.Dst = netip.Addr{} }},
	}
	for _, tt := range tests {
		c := goodCopy()
		tt.change(&c)
		if b, err := Default().AppendCopy([]byte("b"), c); err == nil || string(b) != "b" {
			t.Errorf("%s: AppendCopy = %q, %v", tt.name, b, err)
		}
	}
}

// What ParseCopy takes, gopacket must decode to the same fields, and the copy
// must encode to a frame that decodes to the same copy.
func FuzzParseCopy(f *testing.F) {
	probe, reply := unhexAll(f, goldenCopy), unhexAll(f, goldenReply)
	f.Add(probe)
	f.Add(reply)
	f.Add(slices.Insert(slices.Clone(probe), atType, 0x81, 0, 0, 5))
	f.Add(probe[:40])
	probe6 := unhexAll(f, goldenCopy6)
	f.Add(probe6)
	f.Add(unhexAll(f, goldenReply6))
	f.Add(extended(0, 0, 0, 1, 4, 0, 0, 0, 0)(slices.Clone(probe6)))
	f.Add(tag(0x88a8)(slices.Clone(probe6)))
	f.Add([]byte{})
	for _, golden := range []string{goldenEchoCopy, goldenEchoReply, goldenEchoCopy6, goldenEchoReply6} {
		f.Add(unhexAll(f, golden))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		s := Default()
		var c Copy
		if s.ParseCopy(frame, &c) != nil {
			if c != (Copy{}) {
				t.Fatalf("failed, but set %+v", c)
			}
			return
		}
		again, err := s.AppendCopy(nil, c)
		if err != nil {
			t.Fatal(err)
		}
		back, built := Copy{}, c
		built.Flags = builtFlags(c)
		if err := s.ParseCopy(again, &back); err != nil || back != built {
			t.Fatalf("%+v comes back as %+v, %v", c, back, err)
		}
		agree(t, s, frame, c)
	})
}

// agree compares a copy with gopacket's view of its frame. Options are where the
// two may differ: gopacket refuses malformed ones, we skip them unread.
func agree(t *testing.T, s Stain, frame []byte, c Copy) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	if p.ErrorLayer() != nil && hasOptions(c.Scheme, frame) {
		return
	}
	want := Copy{Kind: Kind(frame[1] & 0x7f), NoReply: frame[1] < 0x80, InPort: c.InPort, TunSrc: c.TunSrc, TunID: c.TunID}
	var tos uint8
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		want.Src, _ = netip.AddrFromSlice(ip.SrcIP)
		want.Dst, _ = netip.AddrFromSlice(ip.DstIP)
		want.TTL, tos = ip.TTL, ip.TOS
	case *layers.IPv6:
		want.Src, _ = netip.AddrFromSlice(ip.SrcIP)
		want.Dst, _ = netip.AddrFromSlice(ip.DstIP)
		want.TTL, tos = ip.HopLimit, ip.TrafficClass
	}
	stained := tos&0xfc == s.TOS
	if tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP); ok {
		want.Scheme = TCP
		stained = stained && tcp.SYN != tcp.RST && !tcp.FIN && tcp.SrcPort == 11 && tcp.DstPort == 11
		want.Token, want.Reply, want.Close = tcp.Seq, tcp.ACK, tcp.RST && !tcp.ACK
		want.Flags = tcp.Contents[13]
		switch {
		case want.Reply:
			want.Token = tcp.Ack - 1
		case want.Close:
			want.Token = tcp.Seq - 1
		}
	} else if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		want.Token, want.Reply = uint32(icmp.Id)<<16|uint32(icmp.Seq), icmp.TypeCode.Type() == layers.ICMPv4TypeEchoReply
		want.Scheme = ICMP
		stained = stained && icmp.TypeCode.Code() == 0 &&
			(want.Reply || icmp.TypeCode.Type() == layers.ICMPv4TypeEchoRequest)
	} else if icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
		echo, isEcho := p.Layer(layers.LayerTypeICMPv6Echo).(*layers.ICMPv6Echo)
		want.Scheme = ICMP
		if stained = stained && isEcho && icmp.TypeCode.Code() == 0; isEcho {
			want.Token, want.Reply = uint32(echo.Identifier)<<16|uint32(echo.SeqNumber), icmp.TypeCode.Type() == layers.ICMPv6TypeEchoReply
		}
	} else {
		stained = false
	}
	if c != want || !stained {
		t.Fatalf("%x is %+v, gopacket says %+v (stained: %v): %v", frame, c, want, stained, p)
	}
}

func hasOptions(scheme Scheme, frame []byte) bool {
	etherType, ip := binary.BigEndian.Uint16(frame[atType:]), frame[atIP:]
	if etherType == typeVLAN || etherType == typeQinQ {
		ip = ip[vlanLen:]
	}
	header := ipv6Len
	if ip[0]>>4 == 4 {
		header = int(ip[0]&0x0f) * 4
	}
	return ip[0]>>4 == 4 && header > ipv4Len || scheme == TCP && ip[header+12]>>4 > 5
}

// Decoding must cost no garbage, whether it is a copy or a forgery.
func TestParseCopyAllocates(t *testing.T) {
	tokens, key := NewTokens(Key{1}, 1000), Key{1}
	for _, bb := range benchmarks {
		s, good := Default(), copyOf(t, bb.probe)
		forged := slices.Clone(good)
		forged[atIP+1] ^= 0x40 // ToS, where both versions have it
		var c Copy
		if n := testing.AllocsPerRun(1000, func() {
			if s.ParseCopy(forged, &c) == nil || s.ParseCopy(good, &c) != nil {
				t.Fatal("decoded wrongly")
			}
			index, _ := tokens.Index(c.Token)
			sink += index + uint32(AddrTag(key, c.Src, c.Dst))
		}); n != 0 {
			t.Errorf("%s: decoding allocates %v times, want 0", bb.name, n)
		}
	}
}

// copyOf returns the copy of a probe.
func copyOf(t testing.TB, p Probe) []byte {
	t.Helper()
	frame, err := Default().AppendCopy(nil, Copy{Kind: FromTunnel, Scheme: p.Scheme, Src: p.Src, Dst: p.Dst, TTL: p.TTL, Token: p.Token})
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func BenchmarkParseCopy(b *testing.B) {
	for _, bb := range benchmarks {
		b.Run(bb.name, func(b *testing.B) {
			frame := copyOf(b, bb.probe)
			b.ReportAllocs()
			var c Copy
			for b.Loop() {
				if err := Default().ParseCopy(frame, &c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSample is all that the hot path does with a sample: decode, token to
// index, tag of the addresses.
func BenchmarkSample(b *testing.B) {
	s, frame, key := Default(), unhexAll(b, goldenCopy), Key{1}
	tokens := NewTokens(key, 1<<31)
	b.ReportAllocs()
	var c Copy
	for b.Loop() {
		if err := s.ParseCopy(frame, &c); err != nil {
			b.Fatal(err)
		}
		index, _ := tokens.Index(c.Token)
		sink += index + uint32(AddrTag(key, c.Src, c.Dst))
	}
}
