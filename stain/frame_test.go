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

func TestStainValidate(t *testing.T) {
	t.Parallel()
	if err := Default().Validate(); err != nil {
		t.Errorf("Default: %v", err)
	}
	tests := []struct {
		stain Stain
		want  string
	}{
		{Stain{}, "tos 0"},
		{Stain{0x5d, 11}, "tos 0x5d"},
		{Stain{0, 11}, "tos 0"},
		{Stain{0x5c, 0}, "port 0"},
	}
	for _, tt := range tests {
		if err := tt.stain.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want an error with %q", tt.stain, err, tt.want)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for k, want := range []string{"unclassified", "from-instance", "from-tunnel", "to-instance", "to-tunnel", "kind(5)"} {
		if got := Kind(k).String(); got != want {
			t.Errorf("Kind(%d) = %s, want %s", k, got, want)
		}
	}
	for s, want := range []string{"scheme(0)", "tcp", "icmp", "scheme(3)"} {
		if got := Scheme(s).String(); got != want {
			t.Errorf("Scheme(%d) = %s, want %s", s, got, want)
		}
	}
}

// goodProbe is a probe that nothing is wrong with.
func goodProbe() Probe {
	return Probe{
		Scheme: TCP,
		SrcMAC: MAC{0x52, 0x54, 0, 0, 0, 1}, DstMAC: MAC{0x52, 0x54, 0, 0, 0, 2},
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"),
		TTL: 64, Token: 0xdeadbeef,
	}
}

// The checksums by hand: the words of the IPv4 header add to 0xd98d, and
// ^0xd98d = 0x2672; those of the pseudo-header and the TCP header add to 0x2fcc1,
// and ^(0xfcc1+2) = 0x033c. Linux took a frame like it, and sent goldenReply.
const goldenFrame = "" +
	"525400000002" + "535400000001" + "8847" + // Ethernet
	"00005140" + // label 5, TC 0, S, TTL 64
	"455c0028" + "00004000" + "40062672" + "0a000001" + "0a000002" +
	"000b000b" + "deadbeef" + "00000000" + "5002faf0" + "033c0000"

func goodProbe6() Probe {
	p := goodProbe()
	p.Src, p.Dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	return p
}

// The words of the pseudo-header and the TCP header add to 0x4e2c1, and
// ^(0xe2c1+4) = 0x1d3a. Linux 6.18 took it, and sent goldenReply6.
const goldenFrame6 = "" +
	"525400000002" + "535400000001" + "8847" + // Ethernet
	"00005340" + // label 5, TC 1, S, TTL 64
	"65c00000" + "00140640" + "fd000000000000000000000000000001" + "fd000000000000000000000000000002" +
	"000b000b" + "deadbeef" + "00000000" + "5002faf0" + "1d3a0000"

// echo makes a probe of scheme icmp of one of scheme tcp.
func echo(p Probe) Probe {
	p.Scheme = ICMP
	return p
}

// The words of the ICMP message add to 0x3454f, and ^(0x454f+3) = 0xbaad; those of
// the ICMPv6 message and its pseudo-header to 0x5b79c, and ^(0xb79c+5) = 0x485e.
// Linux 6.18 answered with goldenEchoReply and goldenEchoReply6.
const (
	goldenEcho = "" +
		"525400000002" + "535400000001" + "8847" + "00005140" +
		"455c0024" + "00004000" + "4001267b" + "0a000001" + "0a000002" +
		"0800baad" + "deadbeef" + "6479657472616365"
	goldenEcho6 = "" +
		"525400000002" + "535400000001" + "8847" + "00005340" +
		"65c00000" + "00103a40" + "fd000000000000000000000000000001" + "fd000000000000000000000000000002" +
		"8000485e" + "deadbeef" + "6479657472616365"
)

func TestAppendFrameGolden(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, want string
		probe      Probe
	}{
		{"tcp", goldenFrame, goodProbe()},
		{"tcp over IPv6", goldenFrame6, goodProbe6()},
		{"icmp", goldenEcho, echo(goodProbe())},
		{"icmp over IPv6", goldenEcho6, echo(goodProbe6())},
	} {
		got, err := Default().AppendFrame([]byte("before"), 5, tt.probe)
		if err != nil {
			t.Fatal(err)
		}
		if text := hex.EncodeToString(got[len("before"):]); text != tt.want || string(got[:6]) != "before" {
			t.Errorf("%s: AppendFrame =\n%s, want\n%s", tt.name, text, tt.want)
		}
		if len(got) > MaxFrame {
			t.Errorf("%s: %d bytes, more than MaxFrame", tt.name, len(got))
		}
	}
}

func TestAppendFrameRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, want string
		change     func(ofport *uint16, p *Probe)
		is         error
	}{
		{"ofport 0", "ofport 0", func(n *uint16, _ *Probe) { *n = 0 }, nil},
		{"reserved ofport", "ofport 65280", func(n *uint16, _ *Probe) { *n = 0xff00 }, nil},
		{"controller's ofport", "ofport 65533", func(n *uint16, _ *Probe) { *n = 0xfffd }, nil},
		{"scheme", "scheme(0)", func(_ *uint16, p *Probe) { p.Scheme = 0 }, ErrUnsupported},
		{"unknown scheme", "scheme(3)", func(_ *uint16, p *Probe) { p.Scheme = 3 }, ErrUnsupported},
		{"no source", "source address: missing", func(_ *uint16, p *Probe) { p.Src = netip.Addr{} }, nil},
		{"IPv4 to IPv6", "destination address fd00::2: other IP version", func(_ *uint16, p *Probe) { p.Dst = goodProbe6().Dst }, nil},
		{"IPv6 to IPv4", "destination address 10.0.0.2: other IP version", func(_ *uint16, p *Probe) { p.Src = goodProbe6().Src }, nil},
		{"unspecified IPv6", "source address: ::", func(_ *uint16, p *Probe) { p.Src = netip.IPv6Unspecified() }, nil},
		{"IPv6 multicast", "destination address: ff02::1", func(_ *uint16, p *Probe) { p.Dst = netip.IPv6LinkLocalAllNodes() }, nil},
		{"zone", "source address: fe80::1%eth0: zone", func(_ *uint16, p *Probe) { p.Src = netip.MustParseAddr("fe80::1%eth0") }, nil},
		{"unspecified", "source address: 0.0.0.0", func(_ *uint16, p *Probe) { p.Src = netip.IPv4Unspecified() }, nil},
		{"multicast", "destination address: 224.0.0.1", func(_ *uint16, p *Probe) { p.Dst = netip.MustParseAddr("224.0.0.1") }, nil},
		{"broadcast", "destination address: 255.255.255.255", func(_ *uint16, p *Probe) { p.Dst = netip.MustParseAddr("255.255.255.255") }, nil},
		{"to itself", "same as source", func(_ *uint16, p *Probe) { p.Dst = p.Src }, nil},
		{"no source MAC", "source MAC 00:", func(_ *uint16, p *Probe) { p.SrcMAC = MAC{} }, nil},
		{"group as source", "source MAC 01:", func(_ *uint16, p *Probe) { p.SrcMAC = MAC{1} }, nil},
		{"to all", "destination MAC ff:", func(_ *uint16, p *Probe) { p.DstMAC = MACFromUint64(1<<48 - 1) }, nil},
		{"close an echo", "close: scheme icmp", func(_ *uint16, p *Probe) { p.Scheme, p.Close = ICMP, true }, nil},
		{"ttl", "ttl 0", func(_ *uint16, p *Probe) { p.TTL = 0 }, nil},
	}
	for _, tt := range tests {
		s, ofport, p := Default(), uint16(5), goodProbe()
		tt.change(&ofport, &p)
		b, err := s.AppendFrame([]byte("b"), ofport, p)
		if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) || string(b) != "b" {
			t.Errorf("%s: AppendFrame = %q, %v; want an error with %q", tt.name, b, err, tt.want)
		}
		if strings.Contains(tt.name, "ofport") {
			continue
		}
		if b, err := s.AppendPacket([]byte("b"), p); err == nil || string(b) != "b" {
			t.Errorf("%s: AppendPacket = %q, %v", tt.name, b, err)
		}
	}
	for _, ofport := range []uint16{1, portMax - 1, portLocal} {
		if _, err := Default().AppendFrame(nil, ofport, goodProbe()); err != nil {
			t.Errorf("ofport %d: %v", ofport, err)
		}
	}
}

// serialize has gopacket build what a test expects, checksums included.
func serialize(t rapid.TB, parts ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, parts...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// drawProbe draws any probe that AppendFrame takes.
func drawProbe(t *rapid.T) Probe {
	unicast := rapid.Custom(func(t *rapid.T) MAC { return drawMAC(t, "mac") }).Filter(MAC.unicast)
	addr := drawAddr(t).Filter(func(a netip.Addr) bool { _, err := hostAddr(a); return err == nil })
	p := Probe{
		Scheme: drawScheme(t),
		SrcMAC: unicast.Draw(t, "srcMAC"), DstMAC: unicast.Draw(t, "dstMAC"),
		Src: addr.Draw(t, "src"), TTL: rapid.Uint8Min(1).Draw(t, "ttl"), Token: rapid.Uint32().Draw(t, "token"),
	}
	p.Close = p.Scheme == TCP && rapid.Bool().Draw(t, "close")
	p.Dst = addr.Filter(func(a netip.Addr) bool { return a != p.Src }).Draw(t, "dst")
	return p
}

func addr4(t *rapid.T) netip.Addr {
	return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr4")))
}

func addr6(t *rapid.T) netip.Addr {
	return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr6")))
}

// drawAddr draws an IP version, and returns addresses of it.
func drawAddr(t *rapid.T) *rapid.Generator[netip.Addr] {
	if rapid.Bool().Draw(t, "IPv6") {
		return rapid.Custom(addr6).Filter(func(a netip.Addr) bool { return !a.Is4In6() })
	}
	return rapid.Custom(addr4)
}

func drawStain(t *rapid.T) Stain {
	return Stain{rapid.Uint8Range(1, 63).Draw(t, "dscp") << 2, rapid.Uint16Min(1).Draw(t, "port")}
}

func drawScheme(t *rapid.T) Scheme { return rapid.SampledFrom([]Scheme{TCP, ICMP}).Draw(t, "scheme") }

// wantPacket are the layers of a packet as the package documentation draws them.
func wantPacket(s Stain, scheme Scheme, src, dst netip.Addr, ttl uint8, token uint32, m message) []gopacket.SerializableLayer {
	if scheme == ICMP {
		return wantEcho(s, src, dst, ttl, token, m)
	}
	tcp := layers.TCP{Seq: token, SYN: true}
	switch m {
	case withdrawal:
		tcp = layers.TCP{Seq: token + 1, RST: true}
	case answer:
		tcp = layers.TCP{Ack: token + 1, RST: true, ACK: true}
	}
	return wantTCP(s, src, dst, ttl, tcp)
}

func wantTCP(s Stain, src, dst netip.Addr, ttl uint8, tcp layers.TCP) []gopacket.SerializableLayer {
	ip := wantIP(s, src, dst, ttl, layers.IPProtocolTCP)
	tcp.SrcPort, tcp.DstPort, tcp.Window = layers.TCPPort(s.Port), layers.TCPPort(s.Port), 64240
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		panic(err) // IP is a network layer
	}
	return []gopacket.SerializableLayer{ip, &tcp}
}

func wantEcho(s Stain, src, dst netip.Addr, ttl uint8, token uint32, m message) []gopacket.SerializableLayer {
	id, seq, data := uint16(token>>16), uint16(token), gopacket.Payload("dyetrace")
	if src.Is4() {
		kind := uint8(layers.ICMPv4TypeEchoRequest)
		if m == answer {
			kind = layers.ICMPv4TypeEchoReply
		}
		icmp := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0), Id: id, Seq: seq}
		return []gopacket.SerializableLayer{wantIP(s, src, dst, ttl, layers.IPProtocolICMPv4), icmp, data}
	}
	kind := uint8(layers.ICMPv6TypeEchoRequest)
	if m == answer {
		kind = layers.ICMPv6TypeEchoReply
	}
	ip, icmp := wantIP(s, src, dst, ttl, layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		panic(err) // IP is a network layer
	}
	return []gopacket.SerializableLayer{ip, icmp, &layers.ICMPv6Echo{Identifier: id, SeqNumber: seq}, data}
}

type ipLayer interface {
	gopacket.NetworkLayer
	gopacket.SerializableLayer
}

func wantIP(s Stain, src, dst netip.Addr, ttl uint8, proto layers.IPProtocol) ipLayer {
	if src.Is4() {
		return &layers.IPv4{
			Version: 4, TOS: s.TOS, Flags: layers.IPv4DontFragment, TTL: ttl, Protocol: proto,
			SrcIP: src.AsSlice(), DstIP: dst.AsSlice(),
		}
	}
	return &layers.IPv6{
		Version: 6, TrafficClass: s.TOS, HopLimit: ttl, NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice(),
	}
}

// ethernet returns the header that stands before what serialize returns. (Were it
// a layer among the others, gopacket would pad the frame to 60 bytes.)
func ethernet(dst, src MAC, etherType layers.EthernetType) []byte {
	return binary.BigEndian.AppendUint16(slices.Concat(dst[:], src[:]), uint16(etherType))
}

func TestAppendFrameOracle(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawStain(t)
		p := drawProbe(t)
		ofport := rapid.Uint16Range(1, portMax-1).Draw(t, "ofport")
		packet := wantPacket(s, p.Scheme, p.Src, p.Dst, p.TTL, p.Token, p.message())

		mpls, etherType := &layers.MPLS{Label: uint32(ofport), StackBottom: true, TTL: 64}, layers.EthernetTypeIPv4
		if p.Src.Is6() {
			mpls.TrafficClass, etherType = 1, layers.EthernetTypeIPv6
		}
		group := p.SrcMAC
		group[0] |= 1
		want := append(ethernet(p.DstMAC, group, layers.EthernetTypeMPLSUnicast),
			serialize(t, append([]gopacket.SerializableLayer{mpls}, packet...)...)...)
		if got, err := s.AppendFrame(nil, ofport, p); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("AppendFrame = %x, %v; want %x", got, err, want)
		}
		want = append(ethernet(p.DstMAC, p.SrcMAC, etherType), serialize(t, packet...)...)
		if got, err := s.AppendPacket(nil, p); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("AppendPacket = %x, %v; want %x", got, err, want)
		}
	})
}

// An IPv4-mapped address, as the protobuf contract carries it, is the same probe.
func TestAppendFrameMapped(t *testing.T) {
	t.Parallel()
	p := goodProbe()
	p.Src, p.Dst = netip.AddrFrom16(p.Src.As16()), netip.AddrFrom16(p.Dst.As16())
	if got, err := Default().AppendFrame(nil, 5, p); err != nil || hex.EncodeToString(got) != goldenFrame {
		t.Errorf("AppendFrame = %x, %v; want %s", got, err, goldenFrame)
	}
}

// benchmarks are the kinds of frames that there are.
var benchmarks = []struct {
	name  string
	probe Probe
}{
	{"tcp", goodProbe()}, {"tcp6", goodProbe6()},
	{"icmp", echo(goodProbe())}, {"icmp6", echo(goodProbe6())},
}

func TestAppendFrameAllocates(t *testing.T) {
	b := make([]byte, 0, MaxFrame)
	for _, bb := range benchmarks {
		if n := testing.AllocsPerRun(1000, func() {
			if _, err := Default().AppendFrame(b, 5, bb.probe); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: AppendFrame allocates %v times, want 0", bb.name, n)
		}
	}
}

func BenchmarkAppendFrame(b *testing.B) {
	buf := make([]byte, 0, MaxFrame)
	for _, bb := range benchmarks {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for p := bb.probe; b.Loop(); p.Token++ {
				if _, err := Default().AppendFrame(buf, 5, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
