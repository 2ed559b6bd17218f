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
		return Seen{IfIndex: 1, Src: src, Dst: dst, TTL: 63, Seq: seq, Ack: ack, Flags: flags}
	}
	at6 := func(seq, ack uint32, flags uint8) Seen {
		s := at(seq, ack, flags)
		s.Src, s.Dst = src6, dst6
		return s
	}
	closing := packet(t, stain.Probe{SrcMAC: srcMAC, DstMAC: dstMAC, Src: src, Dst: dst, TTL: 63, Token: token, Close: true})
	tests := []struct {
		name         string
		frame        []byte
		want         Seen
		reply, close bool
	}{
		{name: "probe", frame: probe(t, token), want: at(token, 0, 0x02)},
		{name: "withdrawn", frame: closing, want: at(token+1, 0, 0x04), close: true},
		{name: "answer", frame: segment{src: src, dst: dst, tos: tos, ttl: 63, tcp: rstAck}.frame(t), want: at(0, token+1, 0x14), reply: true},
		{name: "answer of an open port", frame: segment{src: src, dst: dst, ttl: 63, tcp: synAck}.frame(t), want: at(7, token+1, 0x12), reply: true},
		{name: "tagged", frame: segment{src: src, dst: dst, tos: tos, ttl: 63, tcp: syn, vlan: true}.frame(t), want: at(token, 0, 0x02)},
		{name: "ECN", frame: segment{src: src, dst: dst, tos: tos | 3, ttl: 63, tcp: ecn}.frame(t), want: at(token, 0, 0xc2)},
		{name: "options and data", frame: segment{src: src, dst: dst, tos: tos, ttl: 63, tcp: options, data: 100}.frame(t), want: at(token, 0, 0x02)},
		{name: "IPv6 probe", frame: segment{src: src6, dst: dst6, tos: tos, ttl: 63, tcp: syn}.frame(t), want: at6(token, 0, 0x02)},
		{name: "IPv6 answer, tagged", frame: segment{src: src6, dst: dst6, tos: tos, ttl: 63, tcp: rstAck, vlan: true}.frame(t), want: at6(0, token+1, 0x14), reply: true},
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
		want := stain.Copy{Kind: stain.ToInstance, Src: tt.want.Src, Dst: tt.want.Dst, TTL: 63, Token: token, Reply: tt.reply, Close: tt.close}
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

// TestAgainstStain compares the program with stain.ParseCopy on 20,000 probes with
// changed bytes and lengths.
func TestAgainstStain(t *testing.T) {
	t.Parallel()
	s := sampler(t, "", Options{})
	r := rand.New(rand.NewPCG(11, 23))
	bases := [][]byte{
		probe(t, 77),
		segment{src: src, dst: dst, tos: 23 << 2, ttl: 1, vlan: true, tcp: layers.TCP{SrcPort: 11, DstPort: 11, Ack: 9, RST: true, ACK: true}}.frame(t),
		segment{src: src, dst: dst, tos: 23 << 2, ttl: 1, tcp: layers.TCP{SrcPort: 11, DstPort: 11, SYN: true}, data: 30}.frame(t),
	}
	stained := 0
	for range 20_000 {
		frame := bytes.Clone(bases[r.IntN(len(bases))])
		for range r.IntN(3) {
			// Not the MACs, which ParseCopy reads and the program does not.
			i := 12 + r.IntN(min(len(frame), 60)-12)
			frame[i] = [...]byte{byte(r.Uint32()), frame[i] ^ 1<<r.IntN(8), 0, 0x45, 0x81}[r.IntN(5)]
		}
		if r.IntN(4) == 0 { // a test run wants a whole IP header; TestShort has the rest
			frame = frame[:54+r.IntN(len(frame)-53)]
		}
		copied := bytes.Clone(frame)
		copied[0], copied[1], copied[6] = stain.CopyDst, byte(stain.ToInstance), stain.CopySrc
		want := stain.Copy{}
		err := stain.Default().ParseCopy(copied, &want)
		if errors.Is(err, stain.ErrNotStained) && isSynAck(copied) {
			// The one thing that the tap takes and a hook does not.
			copied[tosAt(copied)] = 23 << 2
			err = stain.Default().ParseCopy(copied, &want)
		}
		before, _ := s.Stats()
		run(t, s, frame)
		after, statErr := s.Stats()
		if statErr != nil {
			t.Fatal(statErr)
		}
		if seen := after != before; seen != (err == nil) {
			t.Fatalf("%x: seen: %v; ParseCopy: %v", frame, seen, err)
		}
		if err != nil {
			continue
		}
		stained++
		got := receive(t, s, 1)[0].Copy()
		want.InPort, want.TunSrc, want.TunID = 0, [4]byte{}, 0 // from the MACs
		if diff := cmp.Diff(want, got, sameAddr); diff != "" {
			t.Fatalf("%x: (-stain +tap):\n%s", frame, diff)
		}
	}
	t.Logf("%d of 20,000 stained", stained)
	if stained < 2000 || stained > 18000 {
		t.Errorf("%d of 20,000 stained: the changes are not what they should be", stained)
	}
}

func tosAt(frame []byte) int {
	if frame[12] == 0x81 && frame[13] == 0 || frame[12] == 0x88 && frame[13] == 0xa8 {
		return 19
	}
	return 15
}

func isSynAck(frame []byte) bool {
	ip := tosAt(frame) - 1
	if len(frame) <= ip {
		return false
	}
	flags := ip + int(frame[ip]&0x0f)*4 + 13
	return flags < len(frame) && frame[flags]&0x17 == 0x12
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
