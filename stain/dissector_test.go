package stain

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// dissected is a frame of ours, and what tshark must say of it.
type dissected struct {
	what      string
	frame     []byte
	protocols string
	want      map[string]string // by field
}

// fields of tshark that are compared; those that a frame lacks must be empty.
var fields = []string{
	"frame.protocols", "frame.len", "_ws.malformed", "eth.src", "eth.dst", "eth.trailer",
	"mpls.label", "mpls.exp", "mpls.bottom", "mpls.ttl",
	"ip.src", "ip.dst", "ip.ttl", "ip.dsfield", "ip.checksum.status", "ip.flags.df",
	"ipv6.src", "ipv6.dst", "ipv6.hlim", "ipv6.tclass", "ipv6.flow",
	"tcp.srcport", "tcp.dstport", "tcp.seq_raw", "tcp.ack_raw", "tcp.flags", "tcp.checksum.status", "tcp.len",
	"icmp.type", "icmp.code", "icmp.ident", "icmp.seq", "icmp.checksum.status",
	"icmpv6.type", "icmpv6.code", "icmpv6.echo.identifier", "icmpv6.echo.sequence_number", "icmpv6.checksum.status", "data.data",
}

// severity is that of the gravest remark that tshark has on a frame.
const (
	severity    = "_ws.expert.severity"
	severeError = 0x800000 // PI_ERROR in epan/proto.h
)

const checksumGood = "1" // proto_checksum_enum_e in epan/proto.h

// tshark, a dissector that shares nothing with us nor with gopacket, must find
// each frame of every kind well-formed, its checksums right, and in it what we
// put there.
func TestDissector(t *testing.T) {
	t.Parallel()
	const each = 250
	var frames []dissected
	for seed := range each {
		s := rapid.Custom(drawStain).Example(seed)
		p := rapid.Custom(drawProbe).Example(seed)
		c := rapid.Custom(drawCopy).Example(seed)
		frames = append(frames, probeFrames(t, s, p)...)
		frames = append(frames, copyFrame(t, s, c))
	}
	protocols := make(map[string]int)
	for i, got := range tshark(t, frames) {
		f := frames[i]
		protocols[f.protocols]++
		f.want["frame.protocols"], f.want["frame.len"] = f.protocols, fmt.Sprint(len(f.frame))
		for _, field := range fields {
			if got[field] != f.want[field] {
				t.Errorf("%s %x: %s is %q, want %q", f.what, f.frame, field, got[field], f.want[field])
			}
		}
		for text := range strings.SplitSeq(got[severity], ",") {
			if n, err := strconv.ParseUint(text, 10, 32); text != "" && (err != nil || n >= severeError) {
				t.Errorf("%s %x: tshark remarks on it with severity %s (%v)", f.what, f.frame, text, err)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	if t.Logf("%v", protocols); len(protocols) != 8 {
		t.Errorf("frames drawn by protocols are %v, want all eight", protocols)
	}
}

func probeFrames(t *testing.T, s Stain, p Probe) []dissected {
	ofport := uint16(16 + p.Token%(portMax-16)) // what is behind a label below 16, tshark takes for OAM (RFC 3032, section 2.1)
	labelled, errFrame := s.AppendFrame(nil, ofport, p)
	plain, errPacket := s.AppendPacket(nil, p)
	if errFrame != nil || errPacket != nil {
		t.Fatal(errFrame, errPacket)
	}
	a := dissected{"injected", labelled, "eth:ethertype:mpls:" + layer(p.Scheme, p.Src), s.fields(p.Scheme, p.Src, p.Dst, p.TTL, p.Token, p.message())}
	group := p.SrcMAC
	group[0] |= 1
	a.want["eth.src"], a.want["eth.dst"] = group.String(), p.DstMAC.String()
	b := dissected{"packet", plain, "eth:ethertype:" + layer(p.Scheme, p.Src), s.fields(p.Scheme, p.Src, p.Dst, p.TTL, p.Token, p.message())}
	b.want["eth.src"], b.want["eth.dst"] = p.SrcMAC.String(), p.DstMAC.String()
	a.want["mpls.label"], a.want["mpls.exp"], a.want["mpls.bottom"], a.want["mpls.ttl"] = fmt.Sprint(ofport), "0", "1", "64"
	if p.Src.Is6() {
		a.want["mpls.exp"] = "1"
	}
	return []dissected{a, b}
}

func copyFrame(t *testing.T, s Stain, c Copy) dissected {
	frame, err := s.AppendCopy(nil, c)
	if err != nil {
		t.Fatal(err)
	}
	m := Probe{Close: c.Close}.message()
	if c.Reply {
		m = answer
	}
	f := dissected{"copy", frame, "eth:ethertype:" + layer(c.Scheme, c.Src), s.fields(c.Scheme, c.Src, c.Dst, c.TTL, c.Token, m)}
	kind := uint8(c.Kind)
	if !c.NoReply {
		kind += 0x80
	}
	f.want["eth.dst"] = fmt.Sprintf("06:%02x:%02x:%02x:%02x:%02x", kind, c.TunID>>8&0xff, c.TunID&0xff, c.InPort>>8, c.InPort&0xff)
	f.want["eth.src"] = fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", c.TunID>>16, c.TunSrc[0], c.TunSrc[1], c.TunSrc[2], c.TunSrc[3])
	return f
}

func layer(scheme Scheme, a netip.Addr) string {
	switch {
	case a.Is4() && scheme == ICMP:
		return "ip:icmp:data"
	case a.Is4():
		return "ip:tcp"
	case scheme == ICMP:
		return "ipv6:icmpv6:data"
	}
	return "ipv6:tcp"
}

// fields returns what tshark must find in an IP packet of ours.
func (s Stain) fields(scheme Scheme, src, dst netip.Addr, ttl uint8, token uint32, m message) map[string]string {
	tos := fmt.Sprintf("0x%02x", s.TOS)
	want := map[string]string{
		"ipv6.src": src.String(), "ipv6.dst": dst.String(), "ipv6.hlim": fmt.Sprint(ttl),
		"ipv6.tclass": fmt.Sprintf("0x%08x", s.TOS), "ipv6.flow": "0x000000",
	}
	if src.Is4() {
		want = map[string]string{
			"ip.src": src.String(), "ip.dst": dst.String(), "ip.ttl": fmt.Sprint(ttl),
			"ip.dsfield": tos, "ip.flags.df": "1", "ip.checksum.status": checksumGood,
		}
	}
	if scheme == ICMP {
		addEchoFields(want, src, token, m)
	} else {
		s.addTCPFields(want, token, m)
	}
	return want
}

func addEchoFields(want map[string]string, src netip.Addr, token uint32, m message) {
	prefix, id, seq, request, reply := "icmp.", "icmp.ident", "icmp.seq", "8", "0"
	if src.Is6() {
		prefix, id, seq, request, reply = "icmpv6.", "icmpv6.echo.identifier", "icmpv6.echo.sequence_number", "128", "129"
	}
	want[prefix+"type"], want[prefix+"code"], want[prefix+"checksum.status"] = request, "0", checksumGood
	if m == answer {
		want[prefix+"type"] = reply
	}
	want[id] = fmt.Sprint(token >> 16)
	if src.Is6() {
		want[id] = fmt.Sprintf("0x%04x", token>>16)
	}
	want[seq], want["data.data"] = fmt.Sprint(token&0xffff), fmt.Sprintf("%x", "dyetrace")
}

func (s Stain) addTCPFields(want map[string]string, token uint32, m message) {
	seq, ack, flags := token, uint32(0), "0x0002"
	switch m {
	case withdrawal:
		seq, flags = token+1, "0x0004"
	case answer:
		seq, ack, flags = 0, token+1, "0x0014"
	}
	want["tcp.srcport"], want["tcp.dstport"], want["tcp.len"] = fmt.Sprint(s.Port), fmt.Sprint(s.Port), "0"
	want["tcp.seq_raw"], want["tcp.ack_raw"] = fmt.Sprint(seq), fmt.Sprint(ack)
	want["tcp.flags"], want["tcp.checksum.status"] = flags, checksumGood
}

// tshark returns, of each frame, the fields that tshark found.
func tshark(t *testing.T, frames []dissected) []map[string]string {
	t.Helper()
	// Classic pcap: magic, version 2.4, time zone, accuracy, snapshot length, Ethernet.
	pcap := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	pcap = binary.LittleEndian.AppendUint32(pcap, 2|4<<16)
	pcap = append(pcap, make([]byte, 8)...)
	pcap = binary.LittleEndian.AppendUint32(pcap, MaxFrame)
	pcap = binary.LittleEndian.AppendUint32(pcap, 1)
	for _, f := range frames {
		pcap = append(pcap, make([]byte, 8)...) // time
		pcap = binary.LittleEndian.AppendUint32(pcap, uint32(len(f.frame)))
		pcap = binary.LittleEndian.AppendUint32(pcap, uint32(len(f.frame)))
		pcap = append(pcap, f.frame...)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "frames.pcap")
	if err := os.WriteFile(file, pcap, 0o600); err != nil {
		t.Fatal(err)
	}
	columns := append(slices.Clone(fields), severity)
	args := []string{"-n", "-r", file, "-T", "fields", "-E", "separator=;", "-E", "occurrence=a"}
	for _, preference := range []string{"ip.check_checksum:TRUE", "tcp.check_checksum:TRUE", "tcp.analyze_sequence_numbers:FALSE"} {
		args = append(args, "-o", preference)
	}
	for _, field := range columns {
		args = append(args, "-e", field)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "tshark", args...)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir) // no preferences of whoever tests
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark (Debian: apt install tshark): %v\n%s", err, &stderr)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(frames) {
		t.Fatalf("tshark prints %d lines for %d frames", len(lines), len(frames))
	}
	found := make([]map[string]string, len(lines))
	for i, line := range lines {
		values := strings.Split(line, ";")
		if len(values) != len(columns) {
			t.Fatalf("tshark prints %d fields, want %d: %s", len(values), len(columns), line)
		}
		found[i] = make(map[string]string)
		for j, column := range columns {
			found[i][column] = values[j]
		}
	}
	return found
}
