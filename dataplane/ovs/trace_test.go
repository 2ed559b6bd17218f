package ovs

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/stain"
)

var update = flag.Bool("update", false, "rewrite testdata/trace from what this machine's Open vSwitch prints")

func writeFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mac(text string) stain.MAC {
	m, err := stain.ParseMAC(text)
	if err != nil {
		panic(err)
	}
	return m
}

// stainedPacket returns a probe from 10.0.0.1 to 10.0.0.2 in hexadecimal.
func stainedPacket(t testing.TB) string { t.Helper(); return stainedBy(t, stain.TCP) }

func stainedBy(t testing.TB, scheme stain.Scheme) string {
	t.Helper()
	frame, err := stain.Default().AppendPacket(nil, stain.Probe{
		Scheme: scheme,
		SrcMAC: mac("fa:16:3e:00:00:01"), DstMAC: mac("fa:16:3e:00:00:02"),
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), TTL: 64,
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(frame)
}

// The pipelines of the traced host, Neutron-like: br-int with the instances, br-tun
// with the tunnels, br-phy with the underlay.
const (
	traceInt = `
cookie=0xaaaa000000000001,table=0,priority=100,in_port=2 actions=load:0x2->NXM_NX_REG5[],resubmit(,60)
cookie=0xaaaa000000000001,table=0,priority=100,in_port=3 actions=load:0x3->NXM_NX_REG5[],resubmit(,60)
cookie=0xaaaa000000000001,table=0,priority=90,in_port=1 actions=resubmit(,81)
cookie=0xaaaa000000000001,table=0,priority=0 actions=drop
cookie=0xaaaa000000000001,table=60,priority=100,ip actions=ct(table=72,zone=5)
cookie=0xaaaa000000000001,table=60,priority=100,ipv6 actions=ct(table=72,zone=5)
cookie=0xaaaa000000000001,table=72,priority=99,ct_state=+new+trk,ip,nw_dst=10.0.0.9 actions=drop
cookie=0xaaaa000000000001,table=72,priority=99,ct_state=+new+trk,tcp,nw_dst=10.0.0.10,tp_dst=11 actions=drop
cookie=0xaaaa000000000001,table=72,priority=99,ct_state=+new+trk,icmp,nw_dst=10.0.0.11,icmp_type=8 actions=drop
cookie=0xaaaa000000000001,table=72,priority=99,ct_state=+new+trk,tcp6,ipv6_dst=fd00::10,tp_dst=11 actions=drop
cookie=0xaaaa000000000001,table=72,priority=99,ct_state=+new+trk,icmp6,ipv6_dst=fd00::11,icmp_type=128,icmp_code=0 actions=drop
cookie=0xaaaa000000000001,table=72,priority=99,ct_state=+est+trk,icmp,nw_dst=10.0.0.12,icmp_type=0 actions=drop
cookie=0xaaaa000000000001,table=72,priority=99,ct_state=+est+trk,icmp6,ipv6_dst=fd00::12,icmp_type=129,icmp_code=0 actions=drop
cookie=0xaaaa000000000001,table=72,priority=90,ct_state=+est+trk,ip actions=resubmit(,94)
cookie=0xaaaa000000000001,table=72,priority=90,ct_state=+est+trk,ipv6 actions=resubmit(,94)
cookie=0xaaaa000000000001,table=72,priority=80,ct_state=+new+trk,ip actions=ct(commit,zone=5),resubmit(,94)
cookie=0xaaaa000000000001,table=72,priority=80,ct_state=+new+trk,ipv6 actions=ct(commit,zone=5),resubmit(,94)
cookie=0xaaaa000000000001,table=81,priority=100,ip actions=ct(table=82,zone=5)
cookie=0xaaaa000000000001,table=81,priority=100,ipv6 actions=ct(table=82,zone=5)
cookie=0xaaaa000000000001,table=82,priority=90,ct_state=+new+trk,ip,nw_src=10.0.0.66 actions=drop
cookie=0xaaaa000000000001,table=82,priority=90,ct_state=+new+trk,icmp6,ipv6_src=fd00::66 actions=drop
cookie=0xaaaa000000000001,table=82,priority=80,ip,dl_dst=fa:16:3e:00:00:02 actions=output:3
cookie=0xaaaa000000000001,table=82,priority=80,ipv6,dl_dst=fa:16:3e:00:00:02 actions=output:3
cookie=0xaaaa000000000001,table=82,priority=80,ip,dl_dst=fa:16:3e:00:00:03 actions=output:9
cookie=0xaaaa000000000001,table=82,priority=80,ip,dl_dst=fa:16:3e:00:00:04 actions=NORMAL
cookie=0xaaaa000000000001,table=94,priority=100,ip,nw_dst=10.0.0.2 actions=output:3
cookie=0xaaaa000000000001,table=94,priority=100,ip,nw_dst=10.0.0.64/26 actions=output:1
cookie=0xaaaa000000000001,table=94,priority=100,ip,nw_dst=10.0.0.8/29 actions=output:3
cookie=0xaaaa000000000001,table=94,priority=100,ipv6,ipv6_dst=fd00::/124 actions=output:3
cookie=0xaaaa000000000001,table=94,priority=100,ipv6,ipv6_dst=fd00::10/124 actions=output:3
cookie=0xaaaa000000000001,table=94,priority=100,ipv6,ipv6_dst=fd00::40/122 actions=output:1
cookie=0xaaaa000000000001,table=94,priority=100,ip,nw_dst=10.0.0.5 actions=output:2
cookie=0xaaaa000000000001,table=94,priority=100,ip,nw_dst=10.0.0.6 actions=NORMAL
cookie=0xaaaa000000000001,table=94,priority=100,ip,nw_dst=10.0.0.7 actions=resubmit(,95),resubmit(,96)
cookie=0xaaaa000000000001,table=94,priority=110,ip,nw_dst=10.0.0.8 actions=controller
cookie=0xaaaa000000000001,table=94,priority=110,ip,nw_dst=10.0.0.73 actions=NORMAL
cookie=0xaaaa000000000001,table=95,priority=1 actions=note:01.02
`
	traceTun = `
cookie=0xbbbb000000000001,table=0,priority=1,in_port=1 actions=resubmit(,20)
cookie=0xbbbb000000000001,table=0,priority=1,in_port=2 actions=resubmit(,4)
cookie=0xbbbb000000000001,table=0,priority=1,in_port=3 actions=resubmit(,4)
cookie=0xbbbb000000000001,table=0,priority=0 actions=drop
cookie=0xbbbb000000000001,table=4,priority=1,tun_id=0x3e9 actions=mod_vlan_vid:5,resubmit(,10)
cookie=0xbbbb000000000001,table=4,priority=0 actions=drop
cookie=0xbbbb000000000001,table=10,priority=1 actions=learn(table=20,hard_timeout=300,priority=1,cookie=0xbbbb000000000001,NXM_OF_VLAN_TCI[0..11],NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],load:0->NXM_OF_VLAN_TCI[],load:NXM_NX_TUN_ID[]->NXM_NX_TUN_ID[],output:NXM_OF_IN_PORT[]),output:1
cookie=0xbbbb000000000001,table=20,priority=2,ip,nw_dst=10.0.0.65 actions=load:0x3e9->NXM_NX_TUN_ID[],output:2
cookie=0xbbbb000000000001,table=20,priority=2,ipv6,ipv6_dst=fd00::41 actions=load:0x3e9->NXM_NX_TUN_ID[],output:2
cookie=0xbbbb000000000001,table=20,priority=2,ip,nw_dst=10.0.0.67 actions=set_field:0x3ea->tun_id,output:3
cookie=0xbbbb000000000001,table=20,priority=2,ip,nw_dst=10.0.0.68 actions=load:0x3eb->NXM_NX_TUN_ID[],load:0xc0000202->NXM_NX_TUN_IPV4_DST[],output:4
cookie=0xbbbb000000000001,table=20,priority=2,ip,nw_dst=10.0.0.69 actions=load:0x3e9->NXM_NX_TUN_ID[],output:5
cookie=0xbbbb000000000001,table=20,priority=2,ip,nw_dst=10.0.0.70 actions=set_field:0x3e9->tun_id,output:6
cookie=0xbbbb000000000001,table=20,priority=2,ip,nw_dst=10.0.0.71 actions=load:0x3ea->NXM_NX_TUN_ID[],output:2,output:3
cookie=0xbbbb000000000001,table=20,priority=2,ip,nw_dst=10.0.0.72/31 actions=load:0x3e9->NXM_NX_TUN_ID[],output:5,output:2
cookie=0xbbbb000000000001,table=20,priority=2,ip,nw_dst=10.0.0.74 actions=set_field:0x3e9->tun_id,output:6,resubmit(,22)
cookie=0xbbbb000000000001,table=20,priority=0 actions=resubmit(,22)
cookie=0xbbbb000000000001,table=22,priority=0 actions=drop
`
)

// traceHost builds the host above, hooks it, and returns its switch.
func traceHost(t *testing.T) *Switch {
	s := open(t)
	addBridges(t, "br-int", "br-tun", "br-phy")
	vsctl(t, "add-port", "br-int", "patch-tun", "--", "set", "interface", "patch-tun", "type=patch", "options:peer=patch-int", "ofport_request=1")
	vsctl(t, "add-port", "br-tun", "patch-int", "--", "set", "interface", "patch-int", "type=patch", "options:peer=patch-tun", "ofport_request=1")
	for i, name := range []string{"tap-a", "tap-b"} {
		sandbox.Command(t, "ip", "link", "add", name, "type", "veth", "peer", "name", name+"-g")
		t.Cleanup(func() { sandbox.Command(t, "ip", "link", "del", name) })
		vsctl(t, "add-port", "br-int", name, "tag=5", "--", "set", "interface", name, fmt.Sprintf("ofport_request=%d", i+2), "external_ids:iface-id="+name)
	}
	for i, tunnel := range [][]string{
		{"gre-2", "gre", "192.0.2.2"}, {"vxlan-2", "vxlan", "192.0.2.2"}, {"gnv", "geneve", "flow"},
		{"gre-9", "gre", "192.0.2.9"}, {"gre-far", "gre", "203.0.113.1"},
	} {
		vsctl(t, "add-port", "br-tun", tunnel[0], "--", "set", "interface", tunnel[0], "type="+tunnel[1],
			"options:remote_ip="+tunnel[2], "options:local_ip=192.0.2.1", "options:key=flow", fmt.Sprintf("ofport_request=%d", i+2))
	}
	sandbox.Command(t, "ip", "link", "add", "nic", "type", "veth", "peer", "name", "nic-far")
	t.Cleanup(func() { sandbox.Command(t, "ip", "link", "del", "nic") })
	for _, name := range []string{"nic", "nic-far", "tap-a", "tap-a-g", "tap-b", "tap-b-g"} {
		// Nobody may send, and so teach the bridge something, while we look.
		writeFile(t, "/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", "1")
		sandbox.Command(t, "ip", "link", "set", name, "up")
	}
	vsctl(t, "add-port", "br-phy", "nic")
	sandbox.Command(t, "ip", "link", "set", "br-phy", "up", "address", "02:00:00:00:00:01")
	sandbox.Command(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "br-phy")
	poll(t, "the route", func() bool {
		return strings.Contains(sandbox.Command(t, "ovs-appctl", "ovs/route/show"), "192.0.2.0/24 dev br-phy")
	})
	sandbox.Command(t, "ovs-appctl", "tnl/neigh/set", "br-phy", "192.0.2.2", "02:00:00:00:00:02")
	for bridge, text := range map[string]string{"br-int": traceInt, "br-tun": traceTun} {
		ofctl(t, "del-flows", bridge)
		addFlows(t, bridge, text)
	}
	for _, tap := range []string{"tap-a", "tap-b"} {
		awaitPort(t, s, "br-int", tap, func(p dataplane.Port) bool { return p.OFPort != 0 && p.LinkState == "up" })
	}
	awaitPort(t, s, "br-tun", "gre-far", hasOFPort)
	for _, bridge := range []string{"br-int", "br-tun"} {
		_, dye := install(t, s, bridge)
		awaitPort(t, s, bridge, dye.Name, func(p dataplane.Port) bool { return p.LinkState == "up" })
	}
	return s
}

// traceCase is one packet on the host above.
type traceCase struct {
	name, bridge string
	in           uint16
	dst, dstMAC  string
	src          string
	tunID        uint32
	bare         bool // the tunnel's addresses are not known
	reply        bool
	icmp         bool
	flags        uint8
	again        bool // one like it is in testdata
	want         string
}

var traceCases = []traceCase{
	{name: "same-host", bridge: "br-int", in: 2, dst: "10.0.0.2", want: "delivered tap-b"},
	{name: "security-rule", bridge: "br-int", in: 2, dst: "10.0.0.9",
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=99,ct_state=+new+trk,ip,nw_dst=10.0.0.9 actions=drop"},
	{name: "reply-passes-the-rule", bridge: "br-int", in: 2, dst: "10.0.0.2", reply: true, want: "delivered tap-b"},
	{name: "table-miss", bridge: "br-int", in: 2, dst: "10.0.0.4",
		want: "dropped by br-int: cookie=0x0, table=94, priority=0 actions=drop: table 94 of br-int: no match"},
	{name: "no-port-for-the-mac", bridge: "br-int", in: 2, dst: "10.0.0.5",
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=94, priority=100,ip,nw_dst=10.0.0.5 actions=output:\"tap-a\": skipping output to input port"},
	{name: "side-branch", bridge: "br-int", in: 2, dst: "10.0.0.7",
		want: "dropped by br-int: cookie=0x0, table=96, priority=0 actions=drop: table 96 of br-int: no match"},
	{name: "controller", bridge: "br-int", in: 2, dst: "10.0.0.8",
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=94, priority=110,ip,nw_dst=10.0.0.8 actions=CONTROLLER:65535: handed to the controller"},
	{name: "flooded-by-normal", bridge: "br-int", in: 2, dst: "10.0.0.6",
		want: "delivered tap-b of br-int,tap-b"},
	{name: "gre", bridge: "br-int", in: 2, dst: "10.0.0.65", want: "tunnelled gre-2 to 192.0.2.2 key 1001"},
	{name: "vxlan", bridge: "br-int", in: 2, dst: "10.0.0.67", want: "tunnelled vxlan-2 to 192.0.2.2 key 1002"},
	{name: "geneve-by-flow", bridge: "br-int", in: 2, dst: "10.0.0.68", want: "tunnelled gnv to 192.0.2.2 key 1003"},
	{name: "two-tunnels", bridge: "br-int", in: 2, dst: "10.0.0.71", want: "tunnelled gre-2 to 192.0.2.2 key 1002 of gre-2 to 192.0.2.2 key 1002,vxlan-2 to 192.0.2.2 key 1002"},
	{name: "flooded-to-two-hosts", bridge: "br-int", in: 2, dst: "10.0.0.72",
		want: "tunnelled gre-9 to 192.0.2.9 key 1001 of gre-9 to 192.0.2.9 key 1001,gre-2 to 192.0.2.2 key 1001: neighbor cache miss for 192.0.2.9 on bridge br-phy, sending ARP request"},
	{name: "flooded-here-and-to-two-hosts", bridge: "br-int", in: 2, dst: "10.0.0.73",
		want: "tunnelled gre-9 to 192.0.2.9 key 1001 of gre-9 to 192.0.2.9 key 1001,br-int,gre-2 to 192.0.2.2 key 1001,tap-b: neighbor cache miss for 192.0.2.9 on bridge br-phy, sending ARP request"},
	{name: "no-route-and-on", bridge: "br-int", in: 2, dst: "10.0.0.74",
		want: "dropped by br-tun: cookie=0xbbbb000000000001, table=20, priority=2,ip,nw_dst=10.0.0.74 actions=set_field:0x3e9->tun_id,output:\"gre-far\",resubmit(,22): native tunnel routing failed"},
	{name: "next-hop-unknown", bridge: "br-int", in: 2, dst: "10.0.0.69",
		want: "tunnelled gre-9 to 192.0.2.9 key 1001: neighbor cache miss for 192.0.2.9 on bridge br-phy, sending ARP request"},
	{name: "no-route-to-the-tunnel", bridge: "br-int", in: 2, dst: "10.0.0.70",
		want: "dropped by br-tun: cookie=0xbbbb000000000001, table=20, priority=2,ip,nw_dst=10.0.0.70 actions=set_field:0x3e9->tun_id,output:\"gre-far\": native tunnel routing failed"},
	{name: "no-tunnel", bridge: "br-int", in: 2, dst: "10.0.0.100",
		want: "dropped by br-tun: cookie=0xbbbb000000000001, table=22, priority=0 actions=drop"},
	{name: "from-patch", bridge: "br-tun", in: 1, dst: "10.0.0.65", want: "tunnelled gre-2 to 192.0.2.2 key 1001"},
	{name: "ingress", bridge: "br-tun", in: 2, dst: "10.0.0.2", tunID: 1001, want: "delivered tap-b"},
	{name: "ingress-by-key-alone", bridge: "br-tun", in: 2, dst: "10.0.0.2", tunID: 1001, bare: true, want: "delivered tap-b"},
	{name: "ingress-wrong-key", bridge: "br-tun", in: 2, dst: "10.0.0.2", tunID: 4711,
		want: "dropped by br-tun: cookie=0xbbbb000000000001, table=4, priority=0 actions=drop"},
	{name: "ingress-security-rule", bridge: "br-tun", in: 2, dst: "10.0.0.2", src: "10.0.0.66", tunID: 1001,
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=82, priority=90,ct_state=+new+trk,ip,nw_src=10.0.0.66 actions=drop"},
	{name: "ingress-port-gone", bridge: "br-tun", in: 2, dst: "10.0.0.3", dstMAC: "fa:16:3e:00:00:03", tunID: 1001,
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=82, priority=80,ip,dl_dst=fa:16:3e:00:00:03 actions=output:9: Nonexistent output port"},
	{name: "ingress-flooded-by-normal", bridge: "br-tun", in: 2, dst: "10.0.0.4", dstMAC: "fa:16:3e:00:00:04", tunID: 1001,
		want: "delivered tap-a of br-int,tap-a,tap-b"},
	{name: "no-such-port", bridge: "br-int", in: 77, dst: "10.0.0.2",
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=0, priority=0 actions=drop"},

	{name: "tcp-rule-tcp", bridge: "br-int", in: 2, dst: "10.0.0.10",
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=99,ct_state=+new+trk,tcp,nw_dst=10.0.0.10,tp_dst=11 actions=drop"},
	{name: "tcp-rule-icmp", bridge: "br-int", in: 2, dst: "10.0.0.10", icmp: true, want: "delivered tap-b"},
	{name: "icmp-rule-tcp", bridge: "br-int", in: 2, dst: "10.0.0.11", want: "delivered tap-b"},
	{name: "icmp-rule-icmp", bridge: "br-int", in: 2, dst: "10.0.0.11", icmp: true,
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=99,ct_state=+new+trk,icmp,nw_dst=10.0.0.11,icmp_type=8 actions=drop"},
	{name: "icmp-rule-icmp-reply", bridge: "br-int", in: 2, dst: "10.0.0.11", icmp: true, reply: true, want: "delivered tap-b"},
	{name: "icmp-reply-rule", bridge: "br-int", in: 2, dst: "10.0.0.12", icmp: true, reply: true,
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=99,ct_state=+est+trk,icmp,nw_dst=10.0.0.12,icmp_type=0 actions=drop"},
	{name: "icmp-tunnelled", bridge: "br-int", in: 2, dst: "10.0.0.65", icmp: true, want: "tunnelled gre-2 to 192.0.2.2 key 1001"},
	{name: "icmp-ingress", bridge: "br-tun", in: 2, dst: "10.0.0.2", tunID: 1001, icmp: true, want: "delivered tap-b"},
	{name: "v6-tcp", bridge: "br-int", in: 2, src: "fd00::1", dst: "fd00::2", want: "delivered tap-b"},
	{name: "v6-tcp-reply", bridge: "br-int", in: 2, src: "fd00::1", dst: "fd00::10", reply: true, want: "delivered tap-b"},
	{name: "v6-tcp-rule-tcp", bridge: "br-int", in: 2, src: "fd00::1", dst: "fd00::10",
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=99,ct_state=+new+trk,tcp6,ipv6_dst=fd00::10,tp_dst=11 actions=drop"},
	{name: "v6-tcp-rule-icmp", bridge: "br-int", in: 2, src: "fd00::1", dst: "fd00::10", icmp: true, want: "delivered tap-b"},
	{name: "v6-icmp-rule-tcp", bridge: "br-int", in: 2, src: "fd00::1", dst: "fd00::11", want: "delivered tap-b"},
	{name: "v6-icmp-rule-icmp", bridge: "br-int", in: 2, src: "fd00::1", dst: "fd00::11", icmp: true,
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=99,ct_state=+new+trk,icmp6,ipv6_dst=fd00::11,icmp_type=128,icmp_code=0 actions=drop"},
	{name: "v6-icmp-rule-icmp-reply", bridge: "br-int", in: 2, src: "fd00::1", dst: "fd00::11", icmp: true, reply: true, want: "delivered tap-b"},
	{name: "v6-icmp-reply-rule", bridge: "br-int", in: 2, src: "fd00::1", dst: "fd00::12", icmp: true, reply: true,
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=99,ct_state=+est+trk,icmp6,ipv6_dst=fd00::12,icmp_type=129,icmp_code=0 actions=drop"},
	{name: "v6-tcp-tunnelled", bridge: "br-int", in: 2, src: "fd00::1", dst: "fd00::41", want: "tunnelled gre-2 to 192.0.2.2 key 1001"},
	{name: "v6-icmp-tunnelled", bridge: "br-int", in: 2, src: "fd00::1", dst: "fd00::41", icmp: true, want: "tunnelled gre-2 to 192.0.2.2 key 1001"},
	{name: "v6-tcp-ingress", bridge: "br-tun", in: 2, src: "fd00::66", dst: "fd00::2", tunID: 1001, want: "delivered tap-b"},
	{name: "v6-icmp-ingress", bridge: "br-tun", in: 2, src: "fd00::66", dst: "fd00::2", tunID: 1001, icmp: true,
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=82, priority=90,ct_state=+new+trk,icmp6,ipv6_src=fd00::66 actions=drop"},
	{name: "v6-table-miss", bridge: "br-int", in: 2, src: "fd00::1", dst: "fd00::1:0",
		want: "dropped by br-int: cookie=0x0, table=94, priority=0 actions=drop: table 94 of br-int: no match"},
}

func (c traceCase) request() TraceRequest {
	r := TraceRequest{
		InPort: c.in, SrcMAC: mac("fa:16:3e:00:00:01"), DstMAC: mac("fa:16:3e:00:00:02"),
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr(c.dst), TTL: 64,
		TunID: c.tunID, Reply: c.reply, Scheme: stain.TCP, Flags: c.flags, Stain: stain.Default(),
	}
	if c.icmp {
		r.Scheme = stain.ICMP
	}
	if c.dstMAC != "" {
		r.DstMAC = mac(c.dstMAC)
	}
	if c.src != "" {
		r.Src = netip.MustParseAddr(c.src)
	}
	if c.tunID != 0 && !c.bare {
		r.TunSrc, r.TunDst = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.1")
	}
	return r
}

// format returns an outcome in one line.
func format(tr Trace) string {
	var s string
	switch tr.Outcome {
	case Delivered:
		s = "delivered " + tr.Port
	case Tunnelled:
		s = fmt.Sprintf("tunnelled %s to %s key %d", tr.Port, tr.TunnelRemote, tr.TunnelID)
	case Dropped:
		s = fmt.Sprintf("dropped by %s: %v", tr.Flow.Bridge, tr.Flow.Flow)
	}
	for i, e := range tr.Exits {
		switch sep := ","; {
		case len(tr.Exits) == 1:
		default:
			if i == 0 {
				sep = " of "
			}
			s += sep + e.Port
			if e.Remote != "" {
				s += fmt.Sprintf(" to %s key %d", e.Remote, e.TunnelID)
			}
		}
	}
	if tr.Reason != "" {
		s += ": " + tr.Reason
	}
	return s
}

// learned is how many MAC addresses a bridge knows, and has ever learned.
var learned = regexp.MustCompile(`(?m)^  (Current|Total number of learned).*$`)

// is2 says that it is an Open vSwitch of before 3.0: that of 2.15 lacks what others have.
func is2(s *Switch) bool { return strings.HasPrefix(s.Snapshot().OVSVersion, "2.") }

// TestTrace asks real Open vSwitch, on a hooked host. With -update it writes what was
// printed to testdata/trace, for TestReadTrace.
func TestTrace(t *testing.T) {
	s := traceHost(t)
	state := func() string {
		return ofctl(t, "dump-flows", "br-int", "table=82") + dumpForeign(t, "br-tun") + strings.Join(learned.FindAllString(sandbox.Command(t, "ovs-appctl", "fdb/stats-show", "br-int"), -1), "")
	}
	before := statistics.ReplaceAllString(state(), "")
	counted := func() (n uint64) {
		for _, bridge := range []string{"br-int", "br-tun"} {
			for _, f := range dumpOurs(t, s, bridge) {
				n += f.Packets
			}
		}
		return n
	}
	packets := counted()
	for _, c := range traceCases {
		checkTrace(t, s, c)
	}
	if after := statistics.ReplaceAllString(state(), ""); after != before {
		t.Errorf("tracing changed something (-before +after):\n%s", cmp.Diff(before, after))
	}
	if n := counted(); n != packets {
		t.Errorf("tracing was counted: %d packets of our flows, were %d", n, packets)
	}
}

// TestTraceFlags has flows go by what sort of an answer it is.
func TestTraceFlags(t *testing.T) {
	s := traceHost(t)
	for _, ip := range []string{"tcp,nw_dst=10.0.0.13", "tcp6,ipv6_dst=fd00::13"} {
		addFlows(t, "br-int", "cookie=0xaaaa000000000001,table=72,priority=99,ct_state=+est+trk,tcp_flags=+syn+ack,"+ip+" actions=drop\n")
	}
	dropped := func(ip string) string {
		return "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=99,ct_state=+est+trk," + ip + ",tcp_flags=+syn+ack actions=drop"
	}
	for _, c := range []traceCase{
		{name: "SYN|ACK", flags: 0x12, dst: "10.0.0.13", want: dropped("tcp,nw_dst=10.0.0.13")},
		{name: "with CWR", flags: 0x92, dst: "10.0.0.13", want: dropped("tcp,nw_dst=10.0.0.13")},
		{name: "RST|ACK", flags: 0x14, dst: "10.0.0.13", want: "delivered tap-b"},
		{name: "not known", dst: "10.0.0.13", want: "delivered tap-b"},
		{name: "SYN|ACK over IPv6", flags: 0x12, src: "fd00::1", dst: "fd00::13", want: dropped("tcp6,ipv6_dst=fd00::13")},
		{name: "RST|ACK over IPv6", flags: 0x14, src: "fd00::1", dst: "fd00::13", want: "delivered tap-b"},
	} {
		c.bridge, c.in, c.reply, c.again = "br-int", 2, true, true
		checkTrace(t, s, c)
	}
}

// checkTrace traces one packet, and writes down what was printed where that is asked for.
func checkTrace(t *testing.T, s *Switch, c traceCase) {
	t.Helper()
	if c.reply {
		connect(t, c.request())
	}
	tr, err := s.Trace(t.Context(), c.bridge, c.request())
	if errors.Is(err, ErrUnsupported) && is2(s) {
		t.Skip(err)
	}
	sandbox.Command(t, "ovs-appctl", "dpctl/flush-conntrack")
	if err != nil {
		t.Errorf("%s: %v", c.name, err)
		return
	}
	text := sandbox.Command(t, "sh", "-c", tr.Command)
	if got := format(tr); got != c.want {
		t.Errorf("%s:\ngot  %s\nwant %s\n%s", c.name, got, c.want, text)
	}
	if *update && !c.again {
		writeTrace(t, c, s.Snapshot(), text)
	}
}

// The firewall of a newer Neutron agent: what it denies it sends to table 93, what it delivers also to
// table 92, so that both may be logged there.
const traceNeutron = `
cookie=0xaaaa000000000001,table=0,priority=100,in_port=2 actions=load:0x2->NXM_NX_REG5[],load:0x5->NXM_NX_REG6[],resubmit(,71)
cookie=0xaaaa000000000001,table=0,priority=90,in_port=1 actions=load:0x3->NXM_NX_REG5[],load:0x5->NXM_NX_REG6[],resubmit(,81)
cookie=0xaaaa000000000001,table=0,priority=0 actions=drop
cookie=0xaaaa000000000001,table=71,priority=65,ip,reg5=0x2,in_port=2,nw_src=10.0.0.1 actions=ct(table=72,zone=NXM_NX_REG6[0..15])
cookie=0xaaaa000000000001,table=71,priority=10,reg5=0x2,in_port=2 actions=ct_clear,resubmit(,93)
cookie=0xaaaa000000000001,table=71,priority=0 actions=drop
cookie=0xaaaa000000000001,table=72,priority=77,ct_state=+new-est,tcp,reg5=0x2,nw_dst=10.0.0.2/31 actions=resubmit(,73)
cookie=0xaaaa000000000001,table=72,priority=40,ct_state=-est,reg5=0x2 actions=resubmit(,93)
cookie=0xaaaa000000000001,table=72,priority=40,ct_state=+est,ip,reg5=0x2 actions=ct(commit,zone=NXM_NX_REG6[0..15],exec(load:0x1->NXM_NX_CT_MARK[]))
cookie=0xaaaa000000000001,table=72,priority=0 actions=drop
cookie=0xaaaa000000000001,table=73,priority=100,ip,dl_dst=fa:16:3e:00:00:02 actions=load:0x3->NXM_NX_REG5[],resubmit(,81)
cookie=0xaaaa000000000001,table=73,priority=100,ip,dl_dst=fa:16:3e:00:00:09 actions=load:0x9->NXM_NX_REG5[],resubmit(,81)
cookie=0xaaaa000000000001,table=73,priority=100,ip,dl_dst=fa:16:3e:00:00:08 actions=load:0x8->NXM_NX_REG5[],resubmit(,81)
cookie=0xaaaa000000000001,table=81,priority=100,ct_state=-trk,ip actions=ct(table=82,zone=NXM_NX_REG6[0..15])
cookie=0xaaaa000000000001,table=81,priority=100,ct_state=+trk,reg5=0x3 actions=resubmit(,82)
cookie=0xaaaa000000000001,table=81,priority=100,ct_state=+trk,reg5=0x9 actions=resubmit(,82)
cookie=0xaaaa000000000001,table=81,priority=100,ct_state=+trk,reg5=0x8 actions=resubmit(,82)
cookie=0xaaaa000000000001,table=81,priority=0 actions=drop
cookie=0xaaaa000000000001,table=82,priority=77,ct_state=+new-est,tcp,reg5=0x3,nw_src=10.0.0.1 actions=ct(commit,zone=NXM_NX_REG6[0..15]),output:3,resubmit(,92)
cookie=0xaaaa000000000001,table=82,priority=77,ct_state=+new-est,tcp,reg5=0x9,nw_src=10.0.0.1 actions=ct(commit,zone=NXM_NX_REG6[0..15]),output:9,resubmit(,92)
cookie=0xaaaa000000000001,table=82,priority=50,ct_state=+est-rel+rpl,reg5=0x3 actions=output:9
cookie=0xaaaa000000000001,table=82,priority=40,ct_state=-est,reg5=0x3 actions=resubmit(,93)
cookie=0xaaaa000000000001,table=92,priority=0 actions=drop
cookie=0xaaaa000000000001,table=93,priority=0 actions=drop
`

var neutronCases = []traceCase{
	{name: "neutron-accepted", bridge: "br-int", in: 2, dst: "10.0.0.2", want: "delivered tap-b"},
	{name: "neutron-denied-egress", bridge: "br-int", in: 2, dst: "10.0.0.9",
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=40,ct_state=-est,reg5=0x2 actions=resubmit(,93)"},
	{name: "neutron-denied-established", bridge: "br-int", in: 2, dst: "10.0.0.9", reply: true,
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=40,ct_state=+est,ip,reg5=0x2 actions=ct(commit,zone=NXM_NX_REG6[0..15],exec(set_field:0x1->ct_mark))"},
	{name: "neutron-denied-ingress", bridge: "br-tun", in: 2, dst: "10.0.0.2", src: "10.0.0.66", tunID: 1001,
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=82, priority=40,ct_state=-est,reg5=0x3 actions=resubmit(,93)"},
	{name: "neutron-spoofed", bridge: "br-int", in: 2, src: "10.0.0.66", dst: "10.0.0.2",
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=71, priority=10,reg5=0x2,in_port=\"tap-a\" actions=ct_clear,resubmit(,93)"},
	{name: "neutron-port-gone", bridge: "br-int", in: 2, dst: "10.0.0.2", dstMAC: "fa:16:3e:00:00:09",
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=82, priority=77,ct_state=+new-est,tcp,reg5=0x9,nw_src=10.0.0.1 actions=ct(commit,zone=NXM_NX_REG6[0..15]),output:9,resubmit(,92): Nonexistent output port"},
	{name: "neutron-port-gone-for-answers", bridge: "br-tun", in: 2, dst: "10.0.0.2", tunID: 1001, reply: true,
		want: "dropped by br-int: cookie=0xaaaa000000000001, table=82, priority=50,ct_state=+est-rel+rpl,reg5=0x3 actions=output:9: Nonexistent output port"},
	{name: "neutron-no-rules", bridge: "br-int", in: 2, dst: "10.0.0.2", dstMAC: "fa:16:3e:00:00:08",
		want: "dropped by br-int: cookie=0x0, table=82, priority=0 actions=drop: table 82 of br-int: no match"},
}

// TestTraceNeutron has the flow named that decided, not the table where what was decided ends.
func TestTraceNeutron(t *testing.T) {
	s := traceHost(t)
	ofctl(t, "del-flows", "br-int", "cookie=0xaaaa000000000001/-1")
	addFlows(t, "br-int", traceNeutron)
	for _, c := range neutronCases {
		checkTrace(t, s, c)
	}
}

// mirrorTo has copied to a port, or flooded in a VLAN, what goes out of another port of a bridge, or all
// that comes to the bridge and leaves it.
func mirrorTo(t testing.TB, s *Switch, bridge, from, port string, vlan int) {
	t.Helper()
	var args []string
	create := []string{"--id=@m", "create", "mirror", "name=span"}
	if from == "" {
		create = append(create, "select-all=true")
	} else {
		args = append(args, "--id=@from", "get", "port", from, "--")
		create = append(create, "select-dst-port=@from")
	}
	if port == "" {
		create = append(create, fmt.Sprint("output-vlan=", vlan))
	} else {
		args = append(args, "--id=@to", "get", "port", port, "--")
		create = append(create, "output-port=@to")
	}
	args = append(append(args, create...), "--", "set", "bridge", bridge, "mirrors=@m")
	vsctl(t, args...)
	await(t, s, "a mirror", func(snap dataplane.Snapshot) bool { b, _ := snap.Bridge(bridge); return len(b.Mirrors) == 1 })
	t.Cleanup(func() { unmirror(t, s, bridge) })
}

func unmirror(t testing.TB, s *Switch, bridge string) {
	t.Helper()
	vsctl(t, "clear", "bridge", bridge, "mirrors")
	await(t, s, "no mirror", func(snap dataplane.Snapshot) bool { b, _ := snap.Bridge(bridge); return len(b.Mirrors) == 0 })
}

// TestTraceMirrored has what mirrors copy taken for no way that the packet goes.
func TestTraceMirrored(t *testing.T) {
	s := traceHost(t)
	sandbox.Command(t, "ip", "link", "add", "span0", "type", "veth", "peer", "name", "span0-g")
	t.Cleanup(func() { sandbox.Command(t, "ip", "link", "del", "span0") })
	sandbox.Command(t, "ip", "link", "set", "span0", "up")
	vsctl(t, "add-port", "br-int", "span0")
	for name, options := range map[string][]string{"span-gre": {"type=gre", "options:key=77"}, "span-ers": {"type=erspan", "options:key=7", "options:erspan_ver=1", "options:erspan_idx=1"}} {
		vsctl(t, append([]string{"add-port", "br-int", name, "--", "set", "interface", name, "options:remote_ip=192.0.2.50"}, options...)...)
		awaitPort(t, s, "br-int", name, hasOFPort)
	}
	vsctl(t, "add-port", "br-int", "span-far", "--", "set", "interface", "span-far", "type=gre", "options:remote_ip=203.0.113.50")
	awaitPort(t, s, "br-int", "span-far", hasOFPort)
	vsctl(t, "add-port", "br-int", "span-p", "--", "set", "interface", "span-p", "type=patch", "options:peer=span-q",
		"--", "add-port", "br-phy", "span-q", "--", "set", "interface", "span-q", "type=patch", "options:peer=span-p")
	awaitPort(t, s, "br-int", "span-p", hasOFPort)
	const rule = "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=99,ct_state=+new+trk,ip,nw_dst=10.0.0.9 actions=drop"
	addFlows(t, "br-int", "table=94,priority=110,ip,nw_dst=10.0.0.75 actions=output:1,output:3\n")
	addFlows(t, "br-tun", "table=20,priority=3,ip,nw_dst=10.0.0.75 actions=load:0x3e9->NXM_NX_TUN_ID[],output:5,output:2\n")
	const flooded = "tunnelled gre-9 to 192.0.2.9 key 1001 of gre-9 to 192.0.2.9 key 1001,gre-2 to 192.0.2.2 key 1001,tap-b: neighbor cache miss for 192.0.2.9 on bridge br-phy, sending ARP request"
	const noTunnel = "dropped by br-tun: cookie=0xbbbb000000000001, table=22, priority=0 actions=drop"
	for _, known := range []bool{true, false} { // the collector's MAC address
		if known {
			sandbox.Command(t, "ovs-appctl", "tnl/neigh/set", "br-phy", "192.0.2.50", "02:00:00:00:00:50")
		} else {
			sandbox.Command(t, "ovs-appctl", "tnl/neigh/flush")
			sandbox.Command(t, "ovs-appctl", "tnl/neigh/set", "br-phy", "192.0.2.2", "02:00:00:00:00:02")
		}
		for _, port := range []string{"span0", "span-gre", "span-ers", "span-far"} {
			for _, from := range []string{"", "tap-b"} {
				mirrorTo(t, s, "br-int", from, port, 0)
				for _, c := range []traceCase{
					{name: "same-host", dst: "10.0.0.2", want: "delivered tap-b"},
					{name: "rule", dst: "10.0.0.9", want: rule},
					{name: "tunnelled", dst: "10.0.0.65", want: "tunnelled gre-2 to 192.0.2.2 key 1001"},
					{name: "dropped-beyond", dst: "10.0.0.100", want: noTunnel},
					{name: "flooded", dst: "10.0.0.75", want: flooded},
				} {
					c.name, c.bridge, c.in = "mirrored-to-"+port+"-"+c.name, "br-int", 2
					if from != "" {
						c.name += "-from-" + from
					}
					c.again = !known || port == "span-far" || from != "" && (port != "span-gre" || c.dst != "10.0.0.75")
					checkTrace(t, s, c)
				}
				unmirror(t, s, "br-int")
			}
		}
	}
	// Of a bridge that has the tunnel's packets only, mirrors copy those.
	mirrorTo(t, s, "br-phy", "", "", 100)
	checkTrace(t, s, traceCase{name: "mirrored-beneath", bridge: "br-int", in: 2, dst: "10.0.0.65", again: true, want: "tunnelled gre-2 to 192.0.2.2 key 1001"})
	unmirror(t, s, "br-phy")
	addFlows(t, "br-int", "table=94,priority=200,ip,nw_dst=10.0.0.2 actions=output:span0\n")
	for _, tt := range []struct {
		name, port string
		vlan       int
		want       string
	}{
		{"a flow sends there, too", "span0", 0, `mirror "span" of br-int sends copies by span0, where flows send packets, too`},
		{"to another bridge", "span-p", 0, `mirror "span" of br-int sends copies to another bridge by span-p`},
		{"in a VLAN", "", 100, `mirror "span" of br-int floods copies in VLAN 100`},
	} {
		mirrorTo(t, s, "br-int", "", tt.port, tt.vlan)
		tr, err := s.Trace(t.Context(), "br-int", traceCase{bridge: "br-int", in: 2, dst: "10.0.0.2"}.request())
		if errors.Is(err, ErrUnsupported) && is2(s) {
			t.Skip(err)
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Trace = %s, %v; want %s", tt.name, format(tr), err, tt.want)
		}
		unmirror(t, s, "br-int")
	}
}

// connect has connection tracking know the connection, in the zone of the host above, that a packet answers.
func connect(t testing.TB, r TraceRequest) {
	t.Helper()
	frame, err := r.Stain.AppendPacket(nil, stain.Probe{Scheme: r.Scheme, SrcMAC: r.DstMAC, DstMAC: r.SrcMAC, Src: r.Dst, Dst: r.Src, TTL: 64, Token: 7})
	if err != nil {
		t.Fatal(err)
	}
	ofctl(t, "packet-out", "br-int", fmt.Sprintf("in_port=3 packet=%x actions=ct(commit,zone=5)", frame))
}

// TestTraceConnections has the flow named that the packet met, by the state that it has: one that is taken
// for part of a connection would have passed, or been dropped elsewhere.
func TestTraceConnections(t *testing.T) {
	s := traceHost(t)
	addFlows(t, "br-int", "cookie=0xaaaa000000000001,table=72,priority=110,ct_state=+inv+trk actions=drop\n"+
		"cookie=0xaaaa000000000001,table=72,priority=105,ct_state=+rpl+trk,ip,nw_dst=10.0.0.13 actions=drop\n"+
		"cookie=0xaaaa000000000001,table=72,priority=105,ct_state=+est-rpl+trk,ip,nw_dst=10.0.0.13 actions=output:3\n")
	const invalid = "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=110,ct_state=+inv+trk actions=drop"
	const replies = "dropped by br-int: cookie=0xaaaa000000000001, table=72, priority=105,ct_state=+rpl+trk,ip,nw_dst=10.0.0.13 actions=drop"
	for _, tt := range []struct {
		name, src, dst string
		icmp, reply    bool
		connect        func(r TraceRequest) // nil for none
		want           string
	}{
		{name: "an answer", dst: "10.0.0.2", reply: true, connect: func(r TraceRequest) { connect(t, r) }, want: "delivered tap-b"},
		{name: "an answer to nothing", dst: "10.0.0.2", reply: true, want: invalid},
		{name: "an answer over IPv6 to nothing", src: "fd00::1", dst: "fd00::2", reply: true, want: invalid},
		{name: "an echo's answer", dst: "10.0.0.2", icmp: true, reply: true, connect: func(r TraceRequest) { connect(t, r) }, want: "delivered tap-b"},
		{name: "an echo's answer to nothing", dst: "10.0.0.2", icmp: true, reply: true, want: invalid},
		{name: "an answer that is dropped as such", dst: "10.0.0.13", reply: true, want: replies},
		{name: "a first packet", dst: "10.0.0.2", want: "delivered tap-b"},
		{name: "a first packet, beside what another left half-open", dst: "10.0.0.13",
			connect: func(r TraceRequest) { connect(t, r) }, want: "delivered tap-b"},
		{name: "a first echo, beside another the other way", dst: "10.0.0.13", icmp: true,
			connect: func(r TraceRequest) { connect(t, r) }, want: "delivered tap-b"},
		{name: "of another zone", dst: "10.0.0.13", connect: func(r TraceRequest) {
			frame, err := r.Stain.AppendPacket(nil, stain.Probe{Scheme: r.Scheme, SrcMAC: r.DstMAC, DstMAC: r.SrcMAC, Src: r.Dst, Dst: r.Src, TTL: 64, Token: 7})
			if err != nil {
				t.Fatal(err)
			}
			ofctl(t, "packet-out", "br-int", fmt.Sprintf("in_port=3 packet=%x actions=ct(commit,zone=6)", frame))
		}, want: "delivered tap-b"},
	} {
		c := traceCase{bridge: "br-int", in: 2, src: tt.src, dst: tt.dst, reply: tt.reply, icmp: tt.icmp}
		r := c.request()
		sandbox.Command(t, "ovs-appctl", "dpctl/flush-conntrack")
		if tt.connect != nil {
			tt.connect(r)
		}
		tr, err := s.Trace(t.Context(), "br-int", r)
		if errors.Is(err, ErrUnsupported) && is2(s) {
			t.Skip(err)
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := format(tr); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s\n%s", tt.name, got, tt.want, sandbox.Command(t, "ovs-appctl", "dpctl/dump-conntrack"))
		}
		again, err := readTrace(sandbox.Command(t, "sh", "-c", tr.Command), s.Snapshot(), "br-int", 2)
		if err != nil || format(again) != tt.want {
			t.Errorf("%s: the command shows %s, %v", tt.name, format(again), err)
		}
	}
}

func TestTraceRefused(t *testing.T) {
	t.Parallel()
	s := open(t)
	good := traceCases[0].request()
	tests := []struct {
		name, bridge string
		change       func(*TraceRequest)
		want         string
	}{
		{"no bridge", "nosuchbridge", func(*TraceRequest) {}, "nosuchbridge: unknown bridge"},
		{"no port", "b0", func(r *TraceRequest) { r.InPort = 0 }, "in_port 0: want the OpenFlow number of a port"},
		{"two versions", "b0", func(r *TraceRequest) { r.Dst = netip.MustParseAddr("2001:db8::1") }, "want two of one IP version"},
		{"no address", "b0", func(r *TraceRequest) { r.Dst = netip.Addr{} }, "want two of one IP version"},
		{"no scheme", "b0", func(r *TraceRequest) { r.Scheme = 0 }, "scheme(0): not supported, want tcp or icmp"},
	}
	for _, tt := range tests {
		r := good
		tt.change(&r)
		_, err := s.Trace(t.Context(), tt.bridge, r)
		if errors.Is(err, ErrUnsupported) && is2(s) {
			continue // before it looks for a bridge
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Trace = %v, want %s", tt.name, err, tt.want)
		}
	}
	elsewhere, err := Open(t.Context(), Options{DB: DefaultDB, RunDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.first.close()
	if _, err := elsewhere.Trace(t.Context(), "b0", good); err == nil || !strings.Contains(err.Error(), "ovs-vswitchd is not running") {
		t.Errorf("without ovs-vswitchd: Trace = %v", err)
	}
}

func writeTrace(t *testing.T, c traceCase, snap dataplane.Snapshot, text string) {
	t.Helper()
	snap.Switchd = ""
	for i := range snap.Bridges {
		for j := range snap.Bridges[i].Ports {
			snap.Bridges[i].Ports[j].ID = ""
		}
	}
	facts, err := json.MarshalIndent(snap, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("testdata/trace", 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, "testdata/trace/"+c.name+".txtar", string(txtar.Format(&txtar.Archive{
		Comment: []byte("Printed by Open vSwitch " + snap.OVSVersion + "; go test -run TestTrace -update writes it again.\n"),
		Files: []txtar.File{
			{Name: "enters", Data: fmt.Appendf(nil, "%s %d\n", c.bridge, c.in)},
			{Name: "trace", Data: []byte(text)},
			{Name: "outcome", Data: []byte(c.want + "\n")},
			{Name: "snapshot", Data: append(facts, '\n')},
		},
	})))
}

// TestReadTrace reads what was once printed, so that it is read the same way where
// there is another version of Open vSwitch, or none.
func TestReadTrace(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("testdata/trace/*.txtar")
	if cases := len(traceCases) + len(neutronCases); err != nil || len(names) < cases {
		t.Fatalf("%d files in testdata/trace, %v; want one for each of %d cases", len(names), err, cases)
	}
	for _, name := range names {
		files := readArchive(t, name)
		var (
			bridge string
			in     uint16
			snap   dataplane.Snapshot
		)
		if _, err := fmt.Sscan(files["enters"], &bridge, &in); err != nil {
			t.Fatalf("%s: enters: %v", name, err)
		}
		if err := json.Unmarshal([]byte(files["snapshot"]), &snap); err != nil {
			t.Fatalf("%s: snapshot: %v", name, err)
		}
		tr, err := readTrace(files["trace"], snap, bridge, in)
		if got, want := format(tr), strings.TrimSpace(files["outcome"]); err != nil || got != want {
			t.Errorf("%s:\ngot  %s, %v\nwant %s", name, got, err, want)
		}
	}
}

func readArchive(t testing.TB, name string) map[string]string {
	t.Helper()
	a, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, f := range a.Files {
		files[f.Name] = string(f.Data)
	}
	return files
}

// TestReadKernelTrace has the datapath actions of the system datapath, which need a
// kernel module to be printed (odp-util.c, format_odp_action).
func TestReadKernelTrace(t *testing.T) {
	t.Parallel()
	snap := dataplane.Snapshot{Bridges: []dataplane.Bridge{{Name: "br-int", Ports: []dataplane.Port{
		{Name: "tap-a", OFPort: 2, IfaceID: "a"}, {Name: "ovn-b", OFPort: 3, Type: "geneve", RemoteIP: "192.0.2.2"},
		{Name: "gre-c", OFPort: 4, Type: "gre", RemoteIP: "192.0.2.3"}, {Name: "dye-br-int", OFPort: 9, Type: "internal", Dye: true},
	}}}}
	dataplane.Classify(&snap)
	tree := "bridge(\"br-int\")\n----------------\n 0. ip, priority 5\n    output:%s\n     -> output to kernel tunnel\n\nDatapath actions: %s\n"
	tests := []struct{ output, actions, want string }{
		{`"ovn-b"`, "dye-br-int,set(tunnel(tun_id=0x7,dst=192.0.2.2,ttl=64,tp_dst=6081,geneve({class=0x102,type=0x80,len=4,0x10002}),flags(df|csum|key))),genev_sys_6081",
			"tunnelled ovn-b to 192.0.2.2 key 7"},
		{`"gre-c"`, "set(tunnel(tun_id=0x3e9,src=192.0.2.1,dst=192.0.2.3,ttl=64,flags(df|key))),gre_sys", "tunnelled gre-c to 192.0.2.3 key 1001"},
		// By NORMAL: the tree names no port.
		{"LOCAL", "set(tunnel(dst=192.0.2.3,ttl=64,flags(df|key))),gre_sys", "tunnelled gre-c to 192.0.2.3 key 0"},
		{`"tap-a"`, "ct_clear,check_pkt_len(size=1500,gt(userspace(pid=1,slow_path(action))),le(push_vlan(vid=5,pcp=0),tap-a))", "delivered tap-a"},
		{`"tap-a"`, "sample(sample=50.0%,actions(tap-a)),dye-br-int", "delivered tap-a"},
	}
	for _, tt := range tests {
		tr, err := readTrace(fmt.Sprintf(tree, tt.output, tt.actions), snap, "br-int", 2)
		if got := format(tr); err != nil || got != tt.want {
			t.Errorf("%s: got %s, %v; want %s", tt.actions, got, err, tt.want)
		}
	}
}

// TestBefore has what a packet met on a bridge before the flow that dropped it there: with a cookie, and not ours.
func TestBefore(t *testing.T) {
	t.Parallel()
	const text = `bridge("br-int")
----------------
 0. in_port=tap-a, priority 100, cookie 0x1
    resubmit(,8)
 8. metadata=0x7, priority 50, cookie 0x2
    ct(table=17,zone=5)
    drop
     -> A clone of the packet is forked to recirculate. The forked pipeline will be resumed at table 17.

Final flow: unchanged
Datapath actions: ct(zone=5),recirc(0x1)

===============================================================================
recirc(0x1) - resume conntrack with default ct_state=trk|new
===============================================================================

bridge("br-int")
----------------
    thaw
        Resuming from table 17
17. ct_state=+new+trk,ip,metadata=0x7, priority 2000, cookie 0x3
    set_field:0x20000/0x20000->reg8
    resubmit(,18)
18. priority 0
    resubmit(,19)
19. reg8=0x20000/0x20000,metadata=0x7, priority 1000, cookie 0x4
    drop

Final flow: unchanged
Datapath actions: drop
`
	tr, err := readTrace(text, dataplane.Snapshot{}, "br-int", 2)
	if err != nil || tr.Outcome != Dropped || tr.Flow.Flow.Cookie != 4 {
		t.Fatalf("%+v, %v", tr, err)
	}
	got := ""
	for _, f := range tr.Before {
		got += fmt.Sprintf("%d:%d:%#x ", f.Table, f.Priority, f.Cookie)
	}
	if want := "0:100:0x1 8:50:0x2 17:2000:0x3 "; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzReadTrace asserts what every outcome must have, whatever the text.
func FuzzReadTrace(f *testing.F) {
	names, err := filepath.Glob("testdata/trace/*.txtar")
	if err != nil || len(names) == 0 {
		f.Fatalf("no seeds in testdata/trace: %v", err)
	}
	for _, name := range names {
		f.Add(readArchive(f, name)["trace"])
	}
	f.Fuzz(func(t *testing.T, text string) {
		tr, err := readTrace(text, dataplane.Snapshot{}, "br-int", 2)
		switch {
		case err != nil:
			if !cmp.Equal(tr, Trace{}) {
				t.Errorf("with an error: %+v", tr)
			}
		case tr.Outcome == Dropped && (tr.Flow.Bridge == "" && !strings.Contains(text, `bridge("")`) || len(tr.Ports) > 0),
			tr.Outcome == Tunnelled && tr.TunnelRemote == "",
			tr.Outcome == Delivered && tr.TunnelRemote != "",
			tr.Outcome != Dropped && len(tr.Ports) == 0:
			t.Errorf("%+v", tr)
		case tr.Outcome == 0:
			t.Error("no outcome and no error")
		}
	})
}

// TestCommand has a shell read the line that is shown.
func TestCommand(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "switch's own $run")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "ovs-vswitchd.pid"), "4711\n")
	socket := filepath.Join(dir, "ovs-vswitchd.4711.ctl")
	for _, tt := range []struct {
		name, dir  string
		args, want []string
		line       string // where it can be said
	}{
		{"as usual", DefaultRunDir, []string{"ofproto/trace", "--names", "br-int", "in_port=2,tcp", "--ct-next", "trk,est,rpl"}, nil,
			"ovs-appctl ofproto/trace --names br-int 'in_port=2,tcp' --ct-next 'trk,est,rpl'"},
		{"a bridge of any name", DefaultRunDir, []string{"ofproto/trace", "br int;reboot", "it's $HOME `x` \"y\" *", ""}, nil, ""},
		{"another directory", dir, []string{"ofproto/trace", "br&0"}, []string{"-t", socket, "ofproto/trace", "br&0"}, ""},
	} {
		line := (&Switch{opts: Options{RunDir: tt.dir}}).command(tt.args)
		if tt.want == nil {
			tt.want = tt.args
		}
		got := sandbox.Command(t, "sh", "-c", `show() { for a; do printf '%s\n' "$a"; done; }; show`+strings.TrimPrefix(line, "ovs-appctl"))
		if got != strings.Join(tt.want, "\n")+"\n" || tt.line != "" && line != tt.line {
			t.Errorf("%s: %s\nis read as %q\nwant %q", tt.name, line, got, tt.want)
		}
	}
}
