package ovs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/stain"
)

// TestTraceAnswers has answers go through connection tracking, and then asks what became of them. By the kernel
// where it has Open vSwitch's datapath, as the machine of e2e/kernel does.
func TestTraceAnswers(t *testing.T) {
	const (
		delivered = "delivered ask-"
		invalid   = "dropped by ans-%s: cookie=0x0, table=72, priority=110,ct_state=+inv+trk actions=drop"
	)
	for _, datapath := range []string{"netdev", "system"} {
		t.Run(datapath, func(t *testing.T) {
			s := open(t)
			bridge, asks, answers := "ans-"+datapath, "ask-"+datapath, "say-"+datapath
			vsctl(t, "add-br", bridge, "--", "set", "bridge", bridge, "datapath_type="+datapath)
			t.Cleanup(func() { vsctl(t, "del-br", bridge) })
			if out, err := exec.Command("ovs-appctl", "dpctl/dump-dps").CombinedOutput(); datapath == "system" && !strings.Contains(string(out), "system@") {
				t.Skipf("the kernel has no datapath of Open vSwitch's: %s%v", out, err)
			}
			for i, port := range []string{answers, asks} {
				vsctl(t, "add-port", bridge, port, "--", "set", "interface", port, "type=internal", fmt.Sprintf("ofport_request=%d", i+2))
				awaitPort(t, s, bridge, port, hasOFPort)
			}
			ofctl(t, "del-flows", bridge)
			addFlows(t, bridge, "table=0,ip actions=ct(table=72,zone=5)\n"+
				"table=72,priority=110,ct_state=+inv+trk actions=drop\n"+
				"table=72,priority=90,ct_state=+est+trk,in_port=2 actions=output:3\n"+
				"table=72,priority=80,ct_state=+new+trk,in_port=3,ip actions=ct(commit,zone=5),output:2\n")
			send := func(in int, frame []byte) {
				ofctl(t, "packet-out", bridge, fmt.Sprintf("in_port=%d packet=%x actions=resubmit(,0)", in, frame))
			}
			expect := func(what string, r TraceRequest, want string) {
				t.Helper()
				tr, err := s.Trace(t.Context(), bridge, r)
				if errors.Is(err, ErrUnsupported) && is2(s) {
					t.Skip(err)
				}
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if strings.Contains(want, "%s") {
					want = fmt.Sprintf(want, datapath)
				} else {
					want += datapath
				}
				if taken := slices.Equal(tr.States, []string{ctNobody}); taken != (tr.Outcome == Dropped) {
					t.Errorf("%s: told states %q", what, tr.States)
				}
				again, err := readTrace(sandbox.Command(t, "sh", "-c", tr.Command), s.Snapshot(), bridge, 2)
				if got := format(tr); got != want || err != nil || format(again) != want {
					t.Errorf("%s:\ngot  %s, by its command %s, %v\nwant %s\n%s%s", what, got, format(again), err, want,
						sandbox.Command(t, "ovs-appctl", "dpctl/dump-conntrack"), ofctl(t, "dump-flows", bridge))
				}
			}
			known := s.connections(t.Context())
			if !known.listed || known.kernel != (datapath == "system") {
				t.Errorf("connections: %+v", known)
			}

			tcp := func(dst string) TraceRequest { return traceCase{in: 2, dst: dst, reply: true}.request() }
			echo := func(dst string) TraceRequest { return traceCase{in: 2, dst: dst, reply: true, icmp: true}.request() }
			ask := func(r TraceRequest) []byte {
				frame, err := r.Stain.AppendPacket(nil, stain.Probe{Scheme: r.Scheme, SrcMAC: r.DstMAC, DstMAC: r.SrcMAC, Src: r.Dst, Dst: r.Src, TTL: 64, Token: 7})
				if err != nil {
					t.Fatal(err)
				}
				return frame
			}
			// The kernel forgets the first by its answer, and nothing was ever invalid.
			send(3, ask(tcp("10.0.0.2")))
			send(2, reset(ask(tcp("10.0.0.2")), 1))
			expect("an answer", tcp("10.0.0.2"), delivered)
			send(3, ask(echo("10.0.0.3")))
			expect("an echo's answer", echo("10.0.0.3"), delivered)
			expect("an echo's answer to nothing", echo("10.0.0.4"), invalid)

			send(2, reset(ask(tcp("10.0.0.5")), 1))
			expect("an answer to nothing", tcp("10.0.0.5"), invalid)
			if datapath == "system" { // the other takes whatever acknowledges what
				send(3, ask(tcp("10.0.0.6")))
				send(2, reset(ask(tcp("10.0.0.6")), 999))
				expect("an answer that acknowledges what was not sent", tcp("10.0.0.6"), invalid)
			}
		})
	}
}

// reset is the RST by which a host without a listener answers a SYN over IPv4; it acknowledges so much more.
func reset(syn []byte, more uint32) []byte {
	const ethernet, ip = 14, 20
	be := binary.BigEndian
	b := append([]byte(nil), syn[:ethernet+ip+20]...)
	copy(b[0:6], syn[6:12])
	copy(b[6:12], syn[0:6])
	copy(b[ethernet+12:], syn[ethernet+16:ethernet+20])
	copy(b[ethernet+16:], syn[ethernet+12:ethernet+16])
	be.PutUint16(b[ethernet+2:], ip+20)
	be.PutUint16(b[ethernet+10:], 0)
	be.PutUint16(b[ethernet+10:], sum(b[ethernet:ethernet+ip], 0))
	t := b[ethernet+ip:]
	be.PutUint32(t[8:], be.Uint32(t[4:])+more)
	be.PutUint32(t[4:], 0)
	t[12], t[13] = 5<<4, 0x14 // RST, ACK
	be.PutUint16(t[16:], 0)
	be.PutUint16(t[16:], sum(append(append([]byte(nil), b[ethernet+12:ethernet+20]...), t...), 6+20))
	return b
}

// sum is the Internet's checksum (RFC 1071) of an even number of bytes.
func sum(b []byte, s uint32) uint16 {
	for ; len(b) > 0; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// TestReset holds a packet that the tests make against itself.
func TestReset(t *testing.T) {
	t.Parallel()
	syn, err := stain.Default().AppendPacket(nil, stain.Probe{Scheme: stain.TCP, SrcMAC: mac("fa:16:3e:00:00:01"), DstMAC: mac("fa:16:3e:00:00:02"),
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), TTL: 64, Token: 7})
	if err != nil {
		t.Fatal(err)
	}
	b := reset(syn, 1)
	if sum(b[14:34], 0) != 0 || sum(append(append([]byte(nil), b[26:34]...), b[34:]...), 26) != 0 {
		t.Errorf("checksums of %x", b)
	}
}
