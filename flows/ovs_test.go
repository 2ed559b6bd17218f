package flows

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/stain"
)

// hooked returns a bridge with instances on ports 1 and 2, one more on VLAN 100
// on port 3, its dye port 9, foreign flows, and the hook for them.
func hooked(t *testing.T, foreign string) (bridge, Hook) {
	t.Helper()
	br := newSwitch(t).newBridge(t)
	br.addPort(t, "tap1", 1)
	br.addPort(t, "tap2", 2)
	br.addPort(t, "tap3", 3)
	br.addPort(t, "dye", 9)
	br.sw.vsctl(t, "set", "Port", br.port("tap3"), "tag=100")
	br.sw.must(t, "ovs-ofctl", "mod-port", br.name, br.port("dye"), "no-flood")
	return br, br.hook(t, foreign, 9, Port{"tap1", 1, Instance}, Port{"tap2", 2, Instance}, Port{"local", portLocal, Other})
}

// hook adds foreign flows to a bridge, and the hook that Choose finds for them.
func (br bridge) hook(t *testing.T, foreign string, dye uint16, ports ...Port) Hook {
	t.Helper()
	flows, err := ParseDump(foreign)
	if err != nil {
		t.Fatal(err)
	}
	br.addForeign(t, flows, nil)
	h := Hook{Stain: stain.Default(), Dye: dye, Ports: ports, Expect: true, Lease: 3600}
	b := Bridge{Name: br.name, Flows: br.dump(t, "OpenFlow13"), Ports: ports, Dye: dye, Stain: h.Stain}
	if h.Place, err = Choose(b, nil); err != nil {
		t.Fatal(err)
	}
	br.bundle(t, h.Flows(), Flow.AddLine)
	return h
}

func probe(token uint32) stain.Probe {
	return stain.Probe{
		Scheme: stain.TCP,
		SrcMAC: stain.MAC{0x52, 0x54, 0, 0, 0, 1}, DstMAC: stain.MAC{0x52, 0x54, 0, 0, 0, 2},
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), TTL: 64, Token: token,
	}
}

func probe6(token uint32) stain.Probe {
	p := probe(token)
	p.Src, p.Dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	return p
}

// echoing makes probes of scheme icmp of those of scheme tcp.
func echoing(probe func(token uint32) stain.Probe) func(token uint32) stain.Probe {
	return func(token uint32) stain.Probe {
		p := probe(token)
		p.Scheme = stain.ICMP
		return p
	}
}

// eachVersion runs a test with the probes of each IP version, on switches of its
// own.
func eachVersion(t *testing.T, test func(t *testing.T, probe func(token uint32) stain.Probe)) {
	t.Helper()
	for name, probe := range map[string]func(uint32) stain.Probe{"IPv4": probe, "IPv6": probe6} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, probe)
		})
	}
}

func mustPacket(t *testing.T, p stain.Probe) []byte {
	t.Helper()
	b, err := stain.Default().AppendPacket(nil, p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// copyOf is the copy that a sampling point must make of probe p.
func copyOf(t *testing.T, p stain.Probe, c stain.Copy) []byte {
	t.Helper()
	c.Scheme, c.Src, c.Dst, c.TTL, c.Token = p.Scheme, p.Src, p.Dst, p.TTL, p.Token
	b, err := stain.Default().AppendCopy(nil, c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tagged(frame []byte, vid uint16) []byte {
	return slices.Insert(slices.Clone(frame), 12, 0x81, 0x00, byte(vid>>8), byte(vid))
}

// settle sends a last frame, a broadcast that is not stained, in by one port, and
// waits until it has left by another: the datapath takes frames in order, so all
// that came before it has been dealt with.
func (br bridge) settle(t *testing.T, in, out string) {
	t.Helper()
	last := mustPacket(t, probe(0))
	copy(last, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	last[15], last[24], last[25] = 0, 0, 0x5c // ToS 0, so no stain
	br.receive(t, in, last)
	eventually(t, "last frame", func() bool {
		frames := br.sent(t, out)
		return len(frames) > 0 && bytes.Equal(frames[len(frames)-1][:6], last[:6])
	})
}

func (br bridge) expectSent(t *testing.T, port string, want ...[]byte) {
	t.Helper()
	got := slices.DeleteFunc(br.sent(t, port), func(f []byte) bool { return bytes.Equal(f[:6], bytes.Repeat([]byte{0xff}, 6)) })
	if len(got) != len(want) {
		t.Errorf("%s: %d frames, want %d: %x", port, len(got), len(want), got)
		return
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("%s: frame %d is\n%x, want\n%x", port, i, got[i], want[i])
		}
	}
}

const normal = "priority=0 actions=NORMAL"

// A stained packet that an instance sends is copied once, and goes on through the
// bridge as it was, once.
func TestStainedPacketPasses(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, probe func(uint32) stain.Probe) {
		br, _ := hooked(t, normal)
		frame := mustPacket(t, probe(1))
		br.receive(t, "tap1", frame)
		br.settle(t, "tap1", "tap2")
		br.expectSent(t, "tap2", frame)
		br.expectSent(t, "tap1")
		br.expectSent(t, "dye", copyOf(t, probe(1), stain.Copy{Kind: stain.FromInstance, InPort: 1}))
		for _, f := range br.dump(t, "OpenFlow13") {
			// The probe and settle's last frame.
			if !f.Ours() && f.Packets != 2 {
				t.Errorf("%v: want 2 packets", f)
			}
		}
	})
}

// The guest's answer is sampled as the probe is; ParseCopy knows it for what it is.
func TestReplyIsSampled(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, probe func(uint32) stain.Probe) {
		br, _ := hooked(t, normal)
		c := stain.Copy{Kind: stain.FromInstance, InPort: 2, Reply: true}
		reply := copyOf(t, probe(77), c)
		copy(reply, []byte{0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2}) // as the guest sends it
		br.receive(t, "tap2", reply)
		br.settle(t, "tap2", "tap1")
		br.expectSent(t, "tap1", reply)
		br.expectSent(t, "dye", copyOf(t, probe(77), c))
		frames := br.sent(t, "dye")
		if len(frames) == 0 {
			t.Fatal("no copy")
		}
		var got stain.Copy
		if err := stain.Default().ParseCopy(frames[0], &got); err != nil || !got.Reply || got.Token != 77 || got.InPort != 2 {
			t.Errorf("ParseCopy = %+v, %v", got, err)
		}
	})
}

// A frame that we write to the dye port enters as if the instance had sent it:
// it is sampled, learned from, and delivered, without its label.
func TestInjectedFrameEnters(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, probe func(uint32) stain.Probe) {
		br, _ := hooked(t, normal)
		for token, ofport := range []uint16{1, 2} {
			p := probe(uint32(token))
			p.SrcMAC[5], p.DstMAC[5] = byte(ofport), byte(3-ofport)
			frame, err := stain.Default().AppendFrame(nil, ofport, p)
			if err != nil {
				t.Fatal(err)
			}
			br.receive(t, "dye", frame)
		}
		br.settle(t, "tap1", "tap2")
		first, second := probe(0), probe(1)
		second.SrcMAC, second.DstMAC = first.DstMAC, first.SrcMAC
		br.expectSent(t, "tap2", mustPacket(t, first))
		br.expectSent(t, "tap1", mustPacket(t, second))
		br.expectSent(t, "dye", copyOf(t, first, stain.Copy{Kind: stain.FromInstance, InPort: 1}),
			copyOf(t, second, stain.Copy{Kind: stain.FromInstance, InPort: 2}))
		fdb := br.sw.appctl(t, "fdb/show", br.name)
		for _, entry := range []string{` 1 +0 +52:54:00:00:00:01`, ` 2 +0 +52:54:00:00:00:02`} {
			if !regexp.MustCompile(entry).MatchString(fdb) {
				t.Errorf("%q not in what the bridge has learned:\n%s", entry, fdb)
			}
		}
	})
}

// A frame of ours that meets no hook, since somebody has just deleted it, does not teach the bridge
// that the instance is at the dye port.
func TestInjectedFrameTeachesNothing(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, probe func(uint32) stain.Probe) {
		br, _ := hooked(t, normal)
		var frames [][]byte
		for token, ofport := range []uint16{1, 2} {
			p := probe(uint32(token))
			p.SrcMAC[5] = byte(0x70 + ofport) // sends nothing else
			frame, err := stain.Default().AppendFrame(nil, ofport, p)
			if err != nil {
				t.Fatal(err)
			}
			frames = append(frames, frame)
		}
		br.sw.must(t, "ovs-ofctl", "del-flows", br.name, fmt.Sprintf("cookie=%#x/%#x", Cookie, CookieMask))
		br.receive(t, "dye", frames...)
		br.settle(t, "tap1", "tap2")
		if fdb := br.sw.appctl(t, "fdb/show", br.name); strings.Contains(fdb, " 9 ") {
			t.Errorf("the bridge has learned from the dye port:\n%s", fdb)
		}
	})
}

// Of all else that comes in by the dye port, nothing goes anywhere: not what the
// host's kernel may say there, not a stained packet without a label, nor one whose
// label stands for no ethertype.
func TestDyePortIsSealed(t *testing.T) {
	t.Parallel()
	br, _ := hooked(t, normal)
	frame := mustPacket(t, probe(1))
	broadcast := slices.Clone(frame)
	copy(broadcast, bytes.Repeat([]byte{0xff}, 6))
	arp := slices.Clone(broadcast)
	binary.BigEndian.PutUint16(arp[12:], 0x0806)
	unknown, err := stain.Default().AppendFrame(nil, 1, probe6(2))
	if err != nil {
		t.Fatal(err)
	}
	unknown[16] = unknown[16]&0xf0 | 2<<1 | 1 // TC 2, S
	br.receive(t, "dye", frame, mustPacket(t, probe6(1)), tagged(frame, 5), broadcast, arp, unknown)
	br.settle(t, "tap1", "tap2")
	br.expectSent(t, "tap1")
	br.expectSent(t, "tap2")
	br.expectSent(t, "dye")
	if fdb := br.sw.appctl(t, "fdb/show", br.name); strings.Contains(fdb, " 9 ") {
		t.Errorf("the bridge learns from the dye port:\n%s", fdb)
	}
}

// Broadcasts, and unicasts whose port is not known, are flooded past the dye port.
func TestFloodSparesDyePort(t *testing.T) {
	t.Parallel()
	br, _ := hooked(t, normal)
	unknown := mustPacket(t, probe(1))
	unknown[15] = 0 // not stained
	br.receive(t, "tap1", unknown)
	br.settle(t, "tap1", "tap2") // a broadcast
	br.expectSent(t, "tap2", unknown)
	if n := len(br.sent(t, "tap2")); n != 2 {
		t.Errorf("%d frames at tap2, want 2", n)
	}
	if frames := br.sent(t, "dye"); len(frames) > 0 {
		t.Errorf("flooded to the dye port: %x", frames)
	}
}

// A tag stays on the packet, and is not on the copy; a packet from an access port
// gets its tag as ever.
func TestTaggedPacket(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, probe func(uint32) stain.Probe) {
		br, _ := hooked(t, normal)
		trunk, access := mustPacket(t, probe(1)), mustPacket(t, probe(2))
		br.receive(t, "tap1", tagged(trunk, 100))
		br.receive(t, "tap3", access)
		br.settle(t, "tap1", "tap2")
		br.expectSent(t, "tap2", tagged(trunk, 100), tagged(access, 100))
		br.expectSent(t, "tap3", trunk)
		br.expectSent(t, "dye", copyOf(t, probe(1), stain.Copy{Kind: stain.FromInstance, InPort: 1}),
			copyOf(t, probe(2), stain.Copy{Kind: stain.FromInstance, InPort: 3}))
	})
}

// pipeline reads its own registers, goes to tables both ways, tracks connections
// and drops what it does not know: a hook must change nothing of that.
const pipeline = `
 priority=100,in_port=1 actions=load:0x1->NXM_NX_REG10[0..7],load:0x7->NXM_NX_REG6[],resubmit(,10)
 priority=100,in_port=2 actions=load:0x2->NXM_NX_REG10[0..7],load:0x7->NXM_NX_REG6[],goto_table:10
 priority=0 actions=drop
 table=10, priority=10,arp actions=FLOOD
 table=10, priority=10,ip,ct_state=-trk actions=ct(table=11,zone=NXM_NX_REG6[0..15])
 table=10, priority=10,ipv6,ct_state=-trk actions=ct(table=11,zone=NXM_NX_REG6[0..15])
 table=11, priority=10,ip,ct_state=+new-inv+trk,reg10=0x1/0xff,nw_dst=10.0.0.2 actions=dec_ttl,set_field:52:54:00:00:00:99->eth_src,ct(commit,zone=NXM_NX_REG6[0..15]),output:2
 table=11, priority=10,ip,ct_state=-new+rpl-inv+trk,reg10=0x2/0xff actions=output:1
 table=11, priority=10,ipv6,ct_state=+new-inv+trk,reg10=0x1/0xff,ipv6_dst=fd00::2 actions=dec_ttl,set_field:52:54:00:00:00:99->eth_src,ct(commit,zone=NXM_NX_REG6[0..15]),output:2
 table=11, priority=10,ipv6,ct_state=-new+rpl-inv+trk,reg10=0x2/0xff actions=output:1
 table=11, priority=0 actions=drop
`

// The copy shows the packet as it entered; connection tracking, rewriting and
// recirculation go on as without a hook. Connection tracking takes the probe for a
// new connection, and the guest's answer for its reply.
func TestPipelineGoesOn(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, probe func(uint32) stain.Probe) {
		br, h := hooked(t, pipeline)
		if h.Mark != (Mark{"reg10", 31}) {
			t.Errorf("mark %v, want reg10[31]: the pipeline reads bits 0 to 7", h.Mark)
		}
		br.receive(t, "tap1", mustPacket(t, probe(1)))
		routed := probe(1)
		routed.TTL, routed.SrcMAC = 63, stain.MAC{0x52, 0x54, 0, 0, 0, 0x99}
		eventually(t, "routed probe", func() bool { return len(br.sent(t, "tap2")) > 0 })
		br.expectSent(t, "tap2", mustPacket(t, routed))

		back := probe(1)
		back.Src, back.Dst = back.Dst, back.Src
		answer := copyOf(t, back, stain.Copy{Kind: stain.FromInstance, InPort: 2, Reply: true})
		reply := slices.Concat(back.SrcMAC[:], back.DstMAC[:], answer[12:])
		br.receive(t, "tap2", reply)
		eventually(t, "reply", func() bool { return len(br.sent(t, "tap1")) > 0 })
		br.expectSent(t, "tap1", reply)
		br.expectSent(t, "dye", copyOf(t, probe(1), stain.Copy{Kind: stain.FromInstance, InPort: 1}), answer)
	})
}

// Two bridges as Neutron has them: each takes a copy of its own, so the mark does
// not come along by the patch port; and both kinds are told apart by the port.
func TestPatchedBridges(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, probe func(uint32) stain.Probe) {
		sw := newSwitch(t)
		brInt, brTun := sw.newBridge(t), sw.newBridge(t)
		brInt.addPort(t, "tap1", 1)
		brInt.addPort(t, "dye", 9)
		brTun.addPort(t, "wire", 1) // stands for a tunnel
		brTun.addPort(t, "dye", 9)
		brInt.addPort(t, "patch", 2, "type=patch", "options:peer="+brTun.port("patch"))
		brTun.addPort(t, "patch", 2, "type=patch", "options:peer="+brInt.port("patch"))
		brInt.hook(t, "in_port=1 actions=output:2\n in_port=2 actions=output:1", 9, Port{"tap1", 1, Instance}, Port{"patch", 2, Uplink})
		brTun.hook(t, "in_port=2 actions=output:1\n in_port=1 actions=output:2", 9, Port{"wire", 1, Tunnel}, Port{"patch", 2, Downlink})

		brInt.receive(t, "tap1", mustPacket(t, probe(1)))
		brTun.receive(t, "wire", mustPacket(t, probe(2)))
		eventually(t, "both ways", func() bool { return len(brTun.sent(t, "wire")) > 0 && len(brInt.sent(t, "tap1")) > 0 })
		brTun.expectSent(t, "wire", mustPacket(t, probe(1)))
		brInt.expectSent(t, "tap1", mustPacket(t, probe(2)))
		brInt.expectSent(t, "dye", copyOf(t, probe(1), stain.Copy{Kind: stain.FromInstance, InPort: 1}),
			copyOf(t, probe(2), stain.Copy{Kind: stain.FromTunnel, InPort: 2}))
		brTun.expectSent(t, "dye", copyOf(t, probe(1), stain.Copy{Kind: stain.ToTunnel, InPort: 2}),
			copyOf(t, probe(2), stain.Copy{Kind: stain.FromTunnel, InPort: 1}))
	})
}

// The tunnel's source and key are in the copy's addresses, all 32 and 24 bits. (A
// trace, since the dummy datapath cannot decapsulate without routes; package
// dataplane/ovs sends real tunnelled packets.)
func TestTunnelInCopy(t *testing.T) {
	t.Parallel()
	br := newSwitch(t).newBridge(t)
	br.addPort(t, "dye", 9)
	br.addPort(t, "vx", 5, "type=vxlan", "options:remote_ip=172.16.0.9", "options:key=flow")
	br.addPort(t, "tap1", 1)
	br.hook(t, "in_port=5 actions=output:1", 9, Port{"vx", 5, Tunnel})
	const tunnel = "in_port=5,tun_id=0xabcdef,tun_src=172.16.0.9,tun_dst=172.16.0.1,dl_src=52:54:00:00:00:01,dl_dst=52:54:00:00:00:02,"
	frame := copyOf(t, probe(1), stain.Copy{Kind: stain.FromTunnel, InPort: 5, TunSrc: [4]byte{172, 16, 0, 9}, TunID: 0xabcdef})
	want := fmt.Sprintf("set(eth(src=%v,dst=%v))", stain.MAC(frame[6:12]), stain.MAC(frame[:6]))
	for _, inner := range []string{
		"tcp,nw_src=10.0.0.1,nw_dst=10.0.0.2,nw_tos=92,nw_ttl=64,tp_src=11,tp_dst=11",
		"tcp6,ipv6_src=fd00::1,ipv6_dst=fd00::2,nw_tos=92,nw_ttl=64,tp_src=11,tp_dst=11",
	} {
		if _, actions := br.trace(t, tunnel+inner); !strings.Contains(actions, want) {
			t.Errorf("%s: datapath actions %s, want %s in them", inner, actions, want)
		}
	}
}

// A packet that a foreign flow sends back to table 0 is not copied again.
func TestSecondVisitIsNotCopied(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, probe func(uint32) stain.Probe) {
		br, _ := hooked(t, `
 priority=10,in_port=1,reg3=0 actions=load:0x1->NXM_NX_REG3[0],resubmit(,0)
 priority=10,ip,in_port=1,reg3=0x1 actions=ct(table=0,zone=9)
 priority=10,ipv6,in_port=1,reg3=0x1 actions=ct(table=0,zone=9)
 priority=20,in_port=1,reg3=0x1,ct_state=+trk,ip actions=output:2
 priority=20,in_port=1,reg3=0x1,ct_state=+trk,ipv6 actions=output:2`)
		br.receive(t, "tap1", mustPacket(t, probe(1)))
		eventually(t, "probe", func() bool { return len(br.sent(t, "tap2")) > 0 })
		br.expectSent(t, "tap2", mustPacket(t, probe(1)))
		br.expectSent(t, "dye", copyOf(t, probe(1), stain.Copy{Kind: stain.FromInstance, InPort: 1}))
	})
}

// Packets that are not stained are treated the same with and without the hook, and
// all that megaflows see more of them is the IP protocol and the DSCP, of which a
// host's traffic has few: never a port, never an address.
func TestUnstainedTrafficIsUntouched(t *testing.T) {
	t.Parallel()
	const eth = "in_port=1,dl_src=52:54:00:00:00:01,dl_dst=52:54:00:00:00:02,"
	const ipv4 = "nw_src=10.0.0.1,nw_dst=10.0.0.2,nw_ttl=64,"
	const ipv6 = "ipv6_src=fd00::1,ipv6_dst=fd00::2,nw_ttl=64,"
	packets := []string{
		eth + "tcp," + ipv4 + "tp_src=40000,tp_dst=80",
		eth + "tcp," + ipv4 + "tp_src=11,tp_dst=11",
		eth + "tcp," + ipv4 + "nw_tos=88,tp_src=11,tp_dst=11",
		eth + "udp," + ipv4 + "nw_tos=92,udp_src=11,udp_dst=11",
		eth + "icmp," + ipv4 + "icmp_type=8",
		eth + "arp,arp_op=1,arp_spa=10.0.0.1,arp_tpa=10.0.0.2",
		eth + "tcp6," + ipv6 + "tp_src=40000,tp_dst=80",
		eth + "tcp6," + ipv6 + "tp_src=11,tp_dst=11",
		eth + "tcp6," + ipv6 + "nw_tos=88,tp_src=11,tp_dst=11",
		eth + "udp6," + ipv6 + "nw_tos=92,udp_src=11,udp_dst=11",
		eth + "icmp6," + ipv6 + "icmpv6_type=128",
		eth + "icmp6,ipv6_src=fd00::1,ipv6_dst=ff02::1:ff00:2,nw_ttl=255,icmpv6_type=135,icmpv6_code=0,nd_target=fd00::2",
		eth + "mpls,mpls_label=2,mpls_ttl=64,mpls_bos=1,mpls_tc=0",
	}
	// With its DSCP, other ports and types need a look at those, as little as may be;
	// and of echo replies, type and code are looked at.
	near := []string{
		eth + "tcp," + ipv4 + "nw_tos=92,tp_src=11,tp_dst=12",
		eth + "tcp6," + ipv6 + "nw_tos=92,tp_src=11,tp_dst=12",
		eth + "icmp," + ipv4 + "nw_tos=92,icmp_type=3",
		eth + "icmp6," + ipv6 + "nw_tos=92,icmpv6_type=1",
		eth + "icmp," + ipv4 + "icmp_type=0",
		eth + "icmp6," + ipv6 + "icmpv6_type=129",
	}
	for _, foreign := range []string{normal, pipeline} {
		br, h := hooked(t, foreign)
		untouched(t, br, h, packets, near)
	}
}

// untouched compares what becomes of packets with a hook and, once it is removed,
// without; near are those of which megaflows may see more.
func untouched(t *testing.T, br bridge, h Hook, packets, near []string) {
	t.Helper()
	recirculation := regexp.MustCompile(`(recirc_id=|recirc\()0x[0-9a-f]+`)
	allowed := regexp.MustCompile(`nw_tos=\d+,|\b(ip|tcp|udp|icmp|ipv6|tcp6|udp6|icmp6),|,icmp_type=0x[0-9a-f]+/0xf[08cef]`)
	type traced struct{ megaflow, actions string }
	trace := func(packet string) traced {
		megaflow, actions := br.trace(t, packet)
		return traced{recirculation.ReplaceAllString(megaflow, "${1}N"), recirculation.ReplaceAllString(actions, "${1}N")}
	}
	with := make(map[string]traced)
	for _, p := range slices.Concat(packets, near) {
		with[p] = trace(p)
	}
	br.bundle(t, h.Flows(), Flow.DeleteLine)
	for p, with := range with {
		without := trace(p)
		if with.actions != without.actions {
			t.Errorf("%s: actions with hook\n%swithout\n%s", p, with.actions, without.actions)
		}
		got, want := allowed.ReplaceAllString(with.megaflow, ""), allowed.ReplaceAllString(without.megaflow, "")
		if !slices.Contains(near, p) && got != want {
			t.Errorf("%s: megaflow with hook\n%swithout\n%s", p, with.megaflow, without.megaflow)
		}
	}
}

func mustParse(t testing.TB, dump string) []Flow {
	t.Helper()
	flows, err := ParseDump(dump)
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

// What the lines of a bundle do to a flow that is there, gone, or not ours.
func TestBundleLines(t *testing.T) {
	t.Parallel()
	br := newSwitch(t).newBridge(t)
	ours := Flow{Table: 7, Priority: 10, Match: "in_port=1", Actions: "drop", Cookie: point.cookie(stain.FromTunnel), HardTimeout: 3600}
	foreign := Flow{Table: 7, Priority: 10, Match: "in_port=1", Actions: "NORMAL", Cookie: 0x1234}
	for _, tt := range []struct {
		name string
		have []Flow
		line func(Flow) string
		want []Flow
	}{
		{"add", nil, Flow.AddLine, []Flow{ours}},
		{"add again", []Flow{ours}, Flow.AddLine, []Flow{ours}},
		{"delete", []Flow{ours}, Flow.DeleteLine, nil},
		{"delete nothing", nil, Flow.DeleteLine, nil},
		{"delete foreign", []Flow{foreign}, Flow.DeleteLine, []Flow{foreign}},
		{"renew", []Flow{ours}, Flow.RenewLine, []Flow{ours}},
		{"renew nothing", nil, Flow.RenewLine, nil},
		{"renew foreign", []Flow{foreign}, Flow.RenewLine, []Flow{foreign}},
	} {
		br.sw.must(t, "ovs-ofctl", "del-flows", br.name)
		br.bundle(t, tt.have, Flow.AddLine)
		br.bundle(t, []Flow{ours}, tt.line)
		if got := br.dump(t, "OpenFlow13"); Format(got) != Format(tt.want) {
			t.Errorf("%s: bridge has\n%swant\n%s", tt.name, Format(got), Format(tt.want))
		}
	}
}

// Renewing starts the lease anew and keeps the counters.
func TestRenew(t *testing.T) {
	t.Parallel()
	br, h := hooked(t, normal)
	br.receive(t, "tap1", mustPacket(t, probe(1)))
	br.settle(t, "tap1", "tap2")
	dump := func() string {
		return br.sw.must(t, "ovs-ofctl", "dump-flows", br.name, fmt.Sprintf("cookie=%#x/%#x", Cookie, CookieMask))
	}
	old := regexp.MustCompile(`duration=[2-9]\.`)
	eventually(t, "flows two seconds old", func() bool { return old.MatchString(dump()) })
	before := br.dump(t, "OpenFlow13")
	br.bundle(t, h.Flows(), Flow.RenewLine)
	if text := dump(); strings.Count(text, "hard_age=0") != len(h.Flows()) {
		t.Errorf("renewed, want hard_age=0 in each:\n%s", text)
	}
	if after := br.dump(t, "OpenFlow13"); Format(sorted(after)) != Format(sorted(before)) {
		t.Errorf("renewing changed\n%sto\n%s", Format(sorted(before)), Format(sorted(after)))
	}
}

// An atomic bundle with one line that Open vSwitch refuses changes nothing.
func TestBundleIsAtomic(t *testing.T) {
	t.Parallel()
	br, h := hooked(t, normal)
	before := Format(sorted(br.dump(t, "OpenFlow13")))
	bad := []Flow{{Table: 8, Match: "in_port=1", Actions: "drop", Cookie: Cookie}, {Table: 8, Match: "in_port=2", Actions: "goto_table:3", Cookie: Cookie}}
	if out, err := br.tryBundle(t, append(bad, h.Flows()...), Flow.AddLine); err == nil {
		t.Fatalf("accepted: %s", out)
	}
	if after := Format(sorted(br.dump(t, "OpenFlow13"))); after != before {
		t.Errorf("a refused bundle left\n%swant\n%s", after, before)
	}
}

// A hook that table 0 of a golden pipeline would send astray is no hook: on each
// bridge of testdata a stained packet is copied once, whichever port it comes by.
func TestGoldenCopies(t *testing.T) {
	t.Parallel()
	sw := newSwitch(t)
	for _, g := range loadGoldens(t) {
		t.Run(g.bridge.Name, func(t *testing.T) {
			t.Parallel()
			h, _, err := g.hook()
			if err != nil {
				return // refused, as TestGolden expects
			}
			br := sw.newBridge(t)
			for _, p := range g.bridge.Ports {
				if p.OFPort != portLocal {
					br.addPort(t, fmt.Sprint(p.OFPort), p.OFPort)
				}
			}
			dye := fmt.Sprint(h.Dye)
			br.sw.must(t, "ovs-ofctl", "mod-port", br.name, br.port(dye), "no-flood")
			g.putOn(t, br)
			br.bundle(t, h.Flows(), Flow.AddLine)
			var want [][]byte
			for i, p := range g.bridge.Ports {
				if p.OFPort == portLocal || p.OFPort == h.Dye {
					continue
				}
				for _, sent := range []stain.Probe{probe(uint32(i)), probe6(uint32(i)), echoing(probe)(uint32(i)), echoing(probe6)(uint32(i))} {
					for range 2 * i { // a pair of its own, whose first request is promised nothing
						sent.Src = sent.Src.Next()
					}
					noReply := sent.Scheme == stain.ICMP && h.replies()
					br.receive(t, fmt.Sprint(p.OFPort), mustPacket(t, sent))
					if kind := p.Role.Kind(); kind != 0 {
						want = append(want, copyOf(t, sent, stain.Copy{Kind: kind, InPort: p.OFPort, NoReply: noReply}))
					}
				}
			}
			eventually(t, "copies", func() bool { return len(br.sent(t, dye)) >= len(want) })
			if got := br.sent(t, dye); fmt.Sprintf("%x", got) != fmt.Sprintf("%x", want) {
				t.Errorf("%d copies: %x\nwant %d: %x", len(got), got, len(want), want)
			}
		})
	}
}
