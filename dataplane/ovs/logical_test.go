package ovs

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

// TestKeyGiven reads which logical port OVN's flows give a packet for.
func TestKeyGiven(t *testing.T) {
	t.Parallel()
	const match = "metadata=0x3e9,dl_dst=fa:16:3e:00:01:0e"
	lookup := flows.Flow{Cookie: 0x858fbeff, Table: 33, Priority: 50, Match: match, Actions: "load:0x68->NXM_NX_REG15[],resubmit(,37)"}
	with := func(match, actions string) flows.Flow {
		return flows.Flow{Cookie: 1, Table: 33, Match: match, Actions: actions}
	}
	security := with("reg15=0x68,"+match, "load:0x1->NXM_NX_REG10[12]")
	for _, tt := range []struct {
		name string
		list []flows.Flow
		want uint32
	}{
		{"none", nil, 0},
		{"OVN 23.03", []flows.Flow{security, lookup}, 0x68},
		{"as Open vSwitch writes it for OVN of other versions", []flows.Flow{with(match, "set_field:0x68->reg15,resubmit(,42)")}, 0x68},
		{"twice the same", []flows.Flow{lookup, with(match, "set_field:0x68->reg15")}, 0x68},
		{"two keys", []flows.Flow{lookup, with(match, "set_field:0x69->reg15")}, 0},
		{"by the port that it is for", []flows.Flow{security, with("reg15=0x1,"+match, "load:0x68->NXM_NX_REG15[]")}, 0},
		{"by the port that it comes from", []flows.Flow{with("reg14=0x1,"+match, "load:0x68->NXM_NX_REG15[]")}, 0},
		{"a part of the register", []flows.Flow{with(match, "load:0x68->NXM_NX_REG15[0..3]")}, 0},
		{"another register", []flows.Flow{with(match, "load:0x68->NXM_NX_REG14[],set_field:0x2->reg1")}, 0},
		{"ours", []flows.Flow{{Cookie: flows.Cookie | 1, Match: match, Actions: "set_field:0x68->reg15"}}, 0},
	} {
		if key, ok := keyGiven(tt.list); key != tt.want && ok || ok != (tt.want != 0) {
			t.Errorf("%s: %#x, %v (want %#x)", tt.name, key, ok, tt.want)
		}
	}
}

// TestGeneveOption asks a real switch, with flows as OVN's, whose ports are marked with MACs by one controller or another,
// or not. It is not parallel: it changes what all bridges' ports are taken for.
func TestGeneveOption(t *testing.T) {
	s := open(t)
	bridge := addBridge(t)
	marked, kubernetes, bare := addGuest(t, bridge, "fa:16:3e:00:00:01", "10.0.0.1"), addGuest(t, bridge, "fa:16:3e:00:00:02", "10.0.0.2"),
		addGuest(t, bridge, "fa:16:3e:00:00:03", "10.0.0.3")
	vsctl(t, "remove", "interface", kubernetes.tap, "external_ids", "attached-mac",
		"--", "set", "interface", kubernetes.tap, `external_ids:attached_mac="`+kubernetes.mac+`"`,
		"--", "remove", "interface", bare.tap, "external_ids", "attached-mac")
	tunnel, vxlan := "gn-"+bridge, "vx-"+bridge
	vsctl(t, "add-port", bridge, tunnel, "--", "set", "interface", tunnel, "type=geneve", "options:remote_ip=192.0.2.2", "options:key=flow",
		"--", "add-port", bridge, vxlan, "--", "set", "interface", vxlan, "type=vxlan", "options:remote_ip=192.0.2.3", "options:key=flow")
	port := func(name string) uint16 { return awaitPort(t, s, bridge, name, hasOFPort).OFPort }
	awaitPort(t, s, bridge, kubernetes.tap, func(p dataplane.Port) bool { return p.MAC == kubernetes.mac })
	awaitPort(t, s, bridge, bare.tap, func(p dataplane.Port) bool { return p.MAC == "" && p.IfaceID != "" })
	for _, flow := range []string{
		"table=65,priority=100,reg15=0x65,metadata=0x7,actions=output:" + marked.tap,
		"table=65,priority=100,reg15=0x66,metadata=0x7,actions=output:" + kubernetes.tap,
		"table=65,priority=100,reg15=0x67,metadata=0x7,actions=output:" + bare.tap,
		"table=33,priority=50,metadata=0x7,dl_dst=" + bare.mac + ",actions=set_field:0x67->reg15,resubmit(,37)",
		"table=33,priority=50,metadata=0x8,dl_dst=" + bare.mac + ",actions=set_field:0x99->reg15,resubmit(,37)",
	} {
		ofctl(t, "add-flow", bridge, flow)
	}
	ask := func(in, mac string, key uint32) (uint32, error) {
		m, err := stain.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		return s.GeneveOption(t.Context(), bridge, TraceRequest{InPort: port(in), DstMAC: m, TunID: key,
			TunSrc: netip.MustParseAddr("192.0.2.2"), TunDst: netip.MustParseAddr("192.0.2.1")})
	}
	if key, err := ask(tunnel, bare.mac, 7); key != 0 || err != nil {
		t.Errorf("where OVN is not: %#x, %v (want none)", key, err)
	}
	vsctl(t, "set", "open_vswitch", ".", "external_ids:ovn-remote=tcp:192.0.2.1:6642")
	t.Cleanup(func() { vsctl(t, "remove", "open_vswitch", ".", "external_ids", "ovn-remote") })
	await(t, s, "OVN", func(snap dataplane.Snapshot) bool { return snap.Southbound.Address != "" })
	for _, tt := range []struct {
		name, in, mac string
		tunID, want   uint32
		unknown       string
	}{
		{"marked by attached-mac", tunnel, marked.mac, 7, 0x65, ""},
		{"marked by attached_mac", tunnel, kubernetes.mac, 7, 0x66, ""},
		{"not marked", tunnel, bare.mac, 7, 0x67, ""},
		{"not marked, of another datapath", tunnel, bare.mac, 8, 0x99, ""},
		{"not marked, of a datapath without flows", tunnel, bare.mac, 9, 0, "datapath 9"},
		{"nobody's", tunnel, "fa:16:3e:00:00:09", 7, 0, "fa:16:3e:00:00:09"},
		{"of no key", tunnel, marked.mac, 0, 0, tunnel},
		{"by VXLAN", vxlan, bare.mac, 9, 0, ""},
		{"by no tunnel", bare.tap, marked.mac, 0, 0, ""},
	} {
		key, err := ask(tt.in, tt.mac, tt.tunID)
		if key != tt.want || errors.Is(err, ErrNoKey) != (tt.unknown != "") || err != nil && !strings.Contains(err.Error(), tt.unknown) {
			t.Errorf("%s: %#x, %v (want %#x, %s)", tt.name, key, err, tt.want, tt.unknown)
		}
	}
}

// TestLogicalCommand tells ovn-trace the states of connections that a trace met.
func TestLogicalCommand(t *testing.T) {
	t.Parallel()
	request := TraceRequest{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), TTL: 64, Scheme: stain.TCP, Stain: stain.Stain{Port: 11}}
	answer := request
	answer.Reply = true
	open := answer
	open.Flags = 0x12
	const eth = `inport == "p" && eth.src == 00:00:00:00:00:00 && eth.dst == 00:00:00:00:00:00 && ip4.src == 10.0.0.1 && ip4.dst == 10.0.0.2 && ip.ttl == 64 && ` +
		`tcp && tcp.src == 11 && tcp.dst == 11 && tcp.flags == `
	for _, tt := range []struct {
		r    TraceRequest
		t    Trace
		want string
	}{
		{request, Trace{Outcome: Dropped}, "ovn-trace '" + eth + "0x2'"},
		{request, Trace{Outcome: Dropped, States: []string{ctNew}}, "ovn-trace --ct=new '" + eth + "0x2'"},
		{request, Trace{Outcome: Delivered, States: []string{ctNew, ctEst}}, "ovn-trace --ct=new --ct=est '" + eth + "0x2'"},
		{request, Trace{Outcome: Tunnelled, States: []string{ctNew}}, "ovn-trace --ct=new --ct=new '" + eth + "0x2'"},
		{answer, Trace{Outcome: Tunnelled, States: []string{ctReply}}, "ovn-trace --ct=est,rpl --ct=est,rpl '" + eth + "0x14'"},
		{answer, Trace{Outcome: Dropped, States: []string{ctNobody}}, "ovn-trace --ct=inv '" + eth + "0x14'"},
		{open, Trace{Outcome: Dropped, States: []string{ctReply}}, "ovn-trace --ct=est,rpl '" + eth + "0x12'"},
	} {
		if got := tt.r.LogicalCommand("p", tt.t); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}
