package tap

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/dyetrace/dyetrace/stain"
)

// What the program returns for all that is not withheld: see sampler.c.
const next = 0xffffffff

// run feeds a frame to the program, attached to nothing (BPF_PROG_TEST_RUN).
func run(t testing.TB, s *Sampler, frame []byte) (verdict uint32) {
	t.Helper()
	out := make([]byte, len(frame)+256)
	o := ebpf.RunOptions{Data: frame, DataOut: out}
	verdict, err := s.objects.ToInstance.Run(&o)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(o.DataOut, frame) {
		t.Errorf("changed the frame:\n%x to\n%x", frame, o.DataOut)
	}
	return verdict
}

// feed is run without an opinion of what comes of it. The error is the kernel's, which
// refuses frames that are too short for a test run.
func feed(s *Sampler, frame []byte) error {
	_, err := s.objects.ToInstance.Run(&ebpf.RunOptions{Data: frame})
	return err
}

var sameAddr = cmpopts.EquateComparable(netip.Addr{})

// TestStained has each packet that a probe brings about seen as what it is. The one
// device of a test run is lo, with index 1.
func TestStained(t *testing.T) {
	t.Parallel()
	const tos, token = 23 << 2, 0x89abcdef
	syn := layers.TCP{SrcPort: 11, DstPort: 11, Seq: token, SYN: true}
	rstAck := layers.TCP{SrcPort: 11, DstPort: 11, Ack: token + 1, RST: true, ACK: true}
	synAck := layers.TCP{SrcPort: 11, DstPort: 11, Seq: 7, Ack: token + 1, SYN: true, ACK: true}
	options := syn
	options.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}}
	ecn := syn
	ecn.ECE, ecn.CWR = true, true
	at := func(seq, ack uint32, flags uint8) Seen {
		return Seen{IfIndex: 1, Scheme: stain.TCP, Src: src, Dst: dst, TTL: 63, Seq: seq, Ack: ack, Flags: flags}
	}
	echoAt := func(kind uint8) Seen {
		return Seen{IfIndex: 1, Scheme: stain.ICMP, Src: src, Dst: dst, TTL: 63, Seq: token, Flags: kind}
	}
	six := func(s Seen) Seen {
		s.Src, s.Dst = src6, dst6
		return s
	}
	tests := []struct {
		name         string
		frame        []byte
		want         Seen
		reply, close bool
	}{
		{name: "probe", frame: probe(t, token), want: at(token, 0, 0x02)},
		{name: "withdrawn", frame: withdrawal(t, token), want: at(token+1, 0, 0x04), close: true},
		{name: "answer", frame: segment{src: src, dst: dst, tos: tos, ttl: 63, tcp: rstAck}.frame(t), want: at(0, token+1, 0x14), reply: true},
		{name: "answer of an open port", frame: segment{src: src, dst: dst, ttl: 63, tcp: synAck}.frame(t), want: at(7, token+1, 0x12), reply: true},
		{name: "tagged", frame: segment{src: src, dst: dst, tos: tos, ttl: 63, tcp: syn, vlan: true}.frame(t), want: at(token, 0, 0x02)},
		{name: "ECN", frame: segment{src: src, dst: dst, tos: tos | 3, ttl: 63, tcp: ecn}.frame(t), want: at(token, 0, 0xc2)},
		{name: "options and data", frame: segment{src: src, dst: dst, tos: tos, ttl: 63, tcp: options, data: 100}.frame(t), want: at(token, 0, 0x02)},
		{name: "IPv6 probe", frame: segment{src: src6, dst: dst6, tos: tos, ttl: 63, tcp: syn}.frame(t), want: six(at(token, 0, 0x02))},
		{name: "IPv6 answer, tagged", frame: segment{src: src6, dst: dst6, tos: tos, ttl: 63, tcp: rstAck, vlan: true}.frame(t), want: six(at(0, token+1, 0x14)), reply: true},
		{name: "answer of a guest that clears the ToS", frame: segment{src: src, dst: dst, ttl: 63, tcp: rstAck}.frame(t), want: at(0, token+1, 0x14), reply: true},
		{name: "IPv6 answer, another class", frame: segment{src: src6, dst: dst6, tos: 0xb8, ttl: 63, tcp: rstAck}.frame(t), want: six(at(0, token+1, 0x14)), reply: true},
		{name: "echo", frame: echo(t, token), want: echoAt(8)},
		{name: "echo, tagged, ECN, with data", frame: segment{src: src, dst: dst, tos: tos | 2, ttl: 63, vlan: true, echo: &echoed{token: token}, data: 56}.frame(t), want: echoAt(8)},
		{name: "echo reply", frame: segment{src: src, dst: dst, tos: tos, ttl: 63, echo: &echoed{token: token, reply: true}}.frame(t), want: echoAt(0), reply: true},
		{name: "IPv6 echo", frame: segment{src: src6, dst: dst6, tos: tos, ttl: 63, echo: &echoed{token: token}}.frame(t), want: six(echoAt(128))},
		{name: "IPv6 echo reply", frame: segment{src: src6, dst: dst6, tos: tos, ttl: 63, echo: &echoed{token: token, reply: true}, data: 8}.frame(t), want: six(echoAt(129)), reply: true},
	}
	s := sampler(t, "", Options{})
	for _, tt := range tests {
		before := now(t)
		if verdict := run(t, s, tt.frame); verdict != next {
			t.Errorf("%s: verdict %d, want next", tt.name, int32(verdict))
		}
		got := receive(t, s, 1)
		if len(got) != 1 {
			t.Fatalf("%s: seen %d times", tt.name, len(got))
		}
		if got[0].At < before || got[0].At > now(t) {
			t.Errorf("%s: at %d, ran between %d and %d", tt.name, got[0].At, before, now(t))
		}
		if diff := cmp.Diff(tt.want, got[0], sameAddr, cmpopts.IgnoreFields(Seen{}, "At")); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", tt.name, diff)
		}
		want := stain.Copy{Kind: stain.ToInstance, Scheme: tt.want.Scheme, Src: tt.want.Src, Dst: tt.want.Dst, TTL: 63, Token: token, Reply: tt.reply, Close: tt.close}
		if want.Scheme == stain.TCP {
			want.Flags = tt.want.Flags
		}
		if diff := cmp.Diff(want, got[0].Copy(), sameAddr); diff != "" {
			t.Errorf("%s: as a copy (-want +got):\n%s", tt.name, diff)
		}
	}
	wantStats(t, s, Stats{Received: uint64(len(tests))})
}

// TestNotStained changes a probe in one place each; nobody sees or counts it then.
func TestNotStained(t *testing.T) {
	t.Parallel()
	s := sampler(t, "", Options{})
	const tos = 23 << 2
	syn := layers.TCP{SrcPort: 11, DstPort: 11, Seq: 1, SYN: true}
	with := func(i int, v byte) []byte {
		f := probe(t, 1)
		f[i] = v
		return f
	}
	six := func(i int, v byte) []byte {
		f := segment{src: src6, dst: dst6, tos: tos, ttl: 63, tcp: syn}.frame(t)
		f[i] = v
		return f
	}
	echoed4 := func(i int, v byte) []byte {
		f := echo(t, 1)
		f[i] = v
		return f
	}
	echoed6 := func(i int, v byte) []byte {
		f := segment{src: src6, dst: dst6, tos: tos, ttl: 63, echo: &echoed{token: 1}, data: 8}.frame(t)
		f[i] = v
		return f
	}
	tests := []struct {
		name  string
		frame []byte
	}{
		{"ARP", with(13, 0x06)},
		{"other ToS", with(15, 24<<2)},
		{"UDP", with(23, 17)},
		{"version 5", with(14, 0x55)},
		{"header of 16 bytes", with(14, 0x44)},
		{"header beyond the packet", with(14, 0x4f)},
		{"more fragments", with(20, 0x20)},
		{"fragment", with(21, 1)},
		{"total length of 39", with(17, 39)},
		{"total length beyond the frame", with(17, 41)},
		{"other source port", with(35, 12)},
		{"other destination port", with(37, 12)},
		{"TCP header of 16 bytes", with(46, 0x40)},
		{"TCP header beyond the packet", with(46, 0x60)},
		{"FIN", with(47, 0x01)},
		{"ACK", with(47, 0x10)},
		{"SYN|FIN", with(47, 0x03)},
		{"SYN|RST", with(47, 0x06)},
		{"no flags", with(47, 0)},
		{"two tags", append(append(bytes.Clone(with(0, dstMAC[0])[:12]), 0x81, 0, 0, 1, 0x81, 0, 0, 2), probe(t, 1)[12:]...)},
		{"cut in the TCP header", probe(t, 1)[:50]},
		{"IPv6, other class", six(15, 0)},
		{"IPv6, hop-by-hop options", six(20, 0)},
		{"IPv6, version 4", six(14, 0x45)},
		{"IPv6, payload beyond the frame", six(19, 21)},
		{"IPv6, payload of 19", six(19, 19)},
		{"IPv6, other port", six(55, 12)},
		{"IPv6, source IPv4-mapped", segment{src: netip.AddrFrom16(src.As16()), dst: dst6, tos: tos, ttl: 63, tcp: syn}.frame(t)},
		{"IPv6, destination IPv4-mapped", segment{src: src6, dst: netip.AddrFrom16(dst.As16()), tos: tos, ttl: 63, echo: &echoed{}}.frame(t)},
		{"echo, other ToS", echoed4(15, 24<<2)},
		{"echo, fragment", echoed4(21, 1)},
		{"ICMPv6 over IPv4", echoed4(23, 58)},
		{"destination unreachable", echoed4(34, 3)},
		{"ICMPv6's type over IPv4", echoed4(34, 128)},
		{"echo with a code", echoed4(35, 1)},
		{"echo of 7 bytes", echoed4(17, 27)},
		{"echo reply, other ToS", segment{src: src, dst: dst, ttl: 63, echo: &echoed{reply: true}}.frame(t)},
		{"IPv6 echo reply, other class", segment{src: src6, dst: dst6, ttl: 63, echo: &echoed{reply: true}}.frame(t)},
		{"ICMP over IPv6", echoed6(20, 1)},
		{"neighbour solicitation", echoed6(54, 135)},
		{"ICMP's type over IPv6", echoed6(54, 8)},
		{"IPv6 echo with a code", echoed6(55, 1)},
		{"IPv6 echo of 7 bytes", echoed6(19, 7)},
	}
	for _, tt := range tests {
		if verdict := run(t, s, tt.frame); verdict != next {
			t.Errorf("%s: verdict %d, want next", tt.name, int32(verdict))
		}
		if got, err := s.Stats(); err != nil || got != (Stats{}) {
			t.Fatalf("%s: counted: %+v, %v", tt.name, got, err)
		}
	}
}

// TestBuiltIsSeen has every packet that package stain can build seen as what it is.
func TestBuiltIsSeen(t *testing.T) {
	t.Parallel()
	s := sampler(t, "", Options{})
	rapid.Check(t, func(t *rapid.T) {
		addr := rapid.Map(rapid.SliceOfN(rapid.Byte(), 4, 4), func(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) })
		if rapid.Bool().Draw(t, "ipv6") {
			addr = rapid.Map(rapid.SliceOfN(rapid.Byte(), 16, 16), func(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) })
		}
		want := stain.Copy{
			Kind:   stain.ToInstance,
			Scheme: rapid.SampledFrom([]stain.Scheme{stain.TCP, stain.ICMP}).Draw(t, "scheme"),
			Src:    addr.Draw(t, "src"), Dst: addr.Draw(t, "dst"),
			TTL: rapid.Byte().Draw(t, "ttl"), Token: rapid.Uint32().Draw(t, "token"), Reply: rapid.Bool().Draw(t, "reply"),
		}
		if want.Src.Is4In6() || want.Dst.Is4In6() {
			t.Skip("no address of a packet")
		}
		want.Close = want.Scheme == stain.TCP && !want.Reply && rapid.Bool().Draw(t, "close")
		switch {
		case want.Scheme != stain.TCP:
		case want.Reply:
			want.Flags = 0x14
		case want.Close:
			want.Flags = 0x04
		default:
			want.Flags = 0x02
		}
		frame, err := stain.Default().AppendCopy(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		copy(frame, append(dstMAC[:], srcMAC[:]...))
		if err := feed(s, frame); err != nil {
			t.Fatal(err)
		}
		var got stain.Copy
		if err := s.Receive(func(seen Seen) { got = seen.Copy() }); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, sameAddr); diff != "" {
			t.Fatalf("%x: (-stain +tap):\n%s", frame, diff)
		}
	})
}

// stainedFrames are some of each scheme and IP version, probes and answers.
func stainedFrames(t testing.TB) [][]byte {
	t.Helper()
	const tos = 23 << 2
	rstAck := layers.TCP{SrcPort: 11, DstPort: 11, Ack: 9, RST: true, ACK: true}
	syn := layers.TCP{SrcPort: 11, DstPort: 11, SYN: true}
	return [][]byte{
		probe(t, 77),
		segment{src: src, dst: dst, tos: tos, ttl: 1, vlan: true, tcp: rstAck}.frame(t),
		segment{src: src, dst: dst, tos: tos, ttl: 1, tcp: syn, data: 30}.frame(t),
		segment{src: src6, dst: dst6, tos: tos, ttl: 1, tcp: syn}.frame(t),
		segment{src: src6, dst: dst6, ttl: 1, tcp: rstAck}.frame(t),
		echo(t, 77),
		segment{src: src, dst: dst, tos: tos, ttl: 1, vlan: true, echo: &echoed{token: 7, reply: true}}.frame(t),
		segment{src: src6, dst: dst6, tos: tos, ttl: 1, echo: &echoed{token: 7}, data: 8}.frame(t),
		segment{src: src6, dst: dst6, tos: tos, ttl: 1, vlan: true, echo: &echoed{token: 7, reply: true}}.frame(t),
	}
}

// TestAgainstStain compares the program with stain.ParseCopy on 20,000 stained frames
// with changed bytes and lengths.
func TestAgainstStain(t *testing.T) {
	t.Parallel()
	s := sampler(t, "", Options{})
	r := rand.New(rand.NewPCG(11, 23))
	bases := stainedFrames(t)
	stained := 0
	for range 20_000 {
		frame := bytes.Clone(bases[r.IntN(len(bases))])
		for range r.IntN(3) {
			// Not the MACs, which ParseCopy reads and the program does not.
			i := 12 + r.IntN(min(len(frame), 80)-12)
			frame[i] = [...]byte{byte(r.Uint32()), frame[i] ^ 1<<r.IntN(8), 0, 0x45, 0x81}[r.IntN(5)]
		}
		if r.IntN(4) == 0 {
			frame = frame[:14+r.IntN(len(frame)-13)]
		}
		if compare(t, s, frame) {
			stained++
		}
	}
	t.Logf("%d of 20,000 stained", stained)
	if stained < 2000 || stained > 18000 {
		t.Errorf("%d of 20,000 stained: the changes are not what they should be", stained)
	}
}

func FuzzAgainstStain(f *testing.F) {
	for _, frame := range stainedFrames(f) {
		f.Add(frame)
	}
	s := sampler(f, "", Options{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 2000 {
			t.Skip("no frame of Ethernet")
		}
		compare(t, s, frame)
	})
}

// compare wants the program to see a frame as stain.ParseCopy does, and tells whether
// it did. The MACs are not compared, nor what a test run does not take.
func compare(t *testing.T, s *Sampler, frame []byte) (stained bool) {
	t.Helper()
	copied := bytes.Clone(frame)
	copied[0], copied[1], copied[6] = stain.CopyDst, byte(stain.ToInstance)|stain.CopyMark, stain.CopySrc
	want := stain.Copy{}
	err := stain.Default().ParseCopy(copied, &want)
	if errors.Is(err, stain.ErrNotStained) && restain(copied) {
		// The one thing that the tap takes and a hook does not.
		err = stain.Default().ParseCopy(copied, &want)
	}
	before, _ := s.Stats()
	if feed(s, frame) != nil {
		return false // a test run wants a whole IP header; TestShort has the rest
	}
	after, statErr := s.Stats()
	if statErr != nil {
		t.Fatal(statErr)
	}
	if seen := after != before; seen != (err == nil) {
		t.Fatalf("%x: seen: %v; ParseCopy: %v", frame, seen, err)
	}
	if err != nil {
		return false
	}
	got := receive(t, s, 1)[0].Copy()
	want.InPort, want.TunSrc, want.TunID = 0, [4]byte{}, 0 // from the MACs
	if diff := cmp.Diff(want, got, sameAddr); diff != "" {
		t.Fatalf("%x: (-stain +tap):\n%s", frame, diff)
	}
	return true
}

// restain gives a TCP answer the stain's ToS, and tells whether it is one.
func restain(frame []byte) bool {
	ip := frame[14:]
	etherType := frame[12:14]
	if kind := [2]byte(etherType); (kind == [2]byte{0x81, 0} || kind == [2]byte{0x88, 0xa8}) && len(ip) >= 4 {
		etherType, ip = ip[2:4], ip[4:]
	}
	const tos = 23 << 2
	header, proto := 40, 6
	switch {
	case len(ip) < 20:
		return false
	case bytes.Equal(etherType, []byte{0x08, 0x00}):
		header, proto = int(ip[0]&0x0f)*4, 9
		ip[1] = tos
	case bytes.Equal(etherType, []byte{0x86, 0xdd}):
		ip[0], ip[1] = ip[0]&0xf0|tos>>4, ip[1]&0x0f|tos&0x0f<<4
	default:
		return false
	}
	if ip[proto] != 6 || header+13 >= len(ip) {
		return false
	}
	flags := ip[header+13] & 0x17
	return flags == 0x12 || flags == 0x14
}

// TestVerifierLog breaks the program, and wants to be told where.
func TestVerifierLog(t *testing.T) {
	t.Parallel()
	_, err := open(Options{}, func(c *ebpf.CollectionSpec) {
		c.Programs[tapProgToInstance].Instructions = asm.Instructions{asm.Return().WithSymbol("to_instance")}
	})
	if err == nil || !strings.Contains(err.Error(), "R0 !read_ok") || !errors.As(err, new(*ebpf.VerifierError)) {
		t.Errorf("%v: want what the verifier said", err)
	}
}

// TestCommitted wants the committed objects to be compiled from the source beside them.
func TestCommitted(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("sampler.c")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(source)
	for _, name := range []string{"tap_bpfel.o", "tap_bpfeb.o"} {
		object, err := elf.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer object.Close()
		section := object.Section("source_sha256")
		if section == nil {
			t.Fatalf("%s: no hash of its source; go generate ./dataplane/tap", name)
		}
		data, err := section.Data()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(bytes.TrimRight(data, "\x00")), hex.EncodeToString(sum[:]); got != want {
			t.Errorf("%s was compiled from %s, and sampler.c is %s: go generate ./dataplane/tap", name, got, want)
		}
	}
}

// BenchmarkProgram measures the program alone, per packet, in the kernel; "empty" is
// what the measuring costs.
func BenchmarkProgram(b *testing.B) {
	user := layers.TCP{SrcPort: 40000, DstPort: 443, Seq: 1, ACK: true}
	for _, bb := range []struct {
		name   string
		frame  []byte
		change func(*ebpf.CollectionSpec)
	}{
		{"empty", probe(b, 1), func(c *ebpf.CollectionSpec) {
			c.Programs[tapProgToInstance].Instructions = asm.Instructions{
				asm.Mov.Imm(asm.R0, -1).WithSymbol("to_instance"), asm.Return(),
			}
		}},
		{"user=tcp4", segment{src: src, dst: dst, ttl: 63, tcp: user, data: 1400}.frame(b), nil},
		{"user=tcp6", segment{src: src6, dst: dst6, ttl: 63, tcp: user, data: 1400}.frame(b), nil},
		{"user=echo4", segment{src: src, dst: dst, ttl: 63, echo: &echoed{token: 1}, data: 56}.frame(b), nil},
		{"stained", probe(b, 1), nil}, // most of them are lost: nobody reads
	} {
		b.Run(bb.name, func(b *testing.B) {
			s, err := open(Options{}, bb.change)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			b.ResetTimer()
			if _, err := s.objects.ToInstance.Run(&ebpf.RunOptions{Data: bb.frame, Repeat: uint32(b.N)}); err != nil {
				b.Fatal(err)
			}
		})
	}
}
