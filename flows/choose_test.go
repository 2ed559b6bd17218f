package flows

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/stain"
	gocmp "github.com/google/go-cmp/cmp"
)

// What of reg10 (or what else is said) a foreign flow takes from the mark, by every
// carrier: the mark that is left to choose says which bits are read.
func TestChooseMark(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, flow string
		want       string // mark, the first that is left
	}{
		{"nothing is read", "priority=0 actions=NORMAL", "reg10[31]"},
		// Matches.
		{"matched whole", "reg10=0x1 actions=drop", "reg15[31]"},
		{"matched by bit", "reg10=0/0x80000000 actions=drop", "reg10[30]"},
		{"matched by bits", "reg10=0x5/0xff000000 actions=drop", "reg10[23]"},
		{"matched below", "reg10=0x5/0xff actions=drop", "reg10[31]"},
		{"matched under a mask that cannot be read", "reg10=0x5/what actions=drop", "reg15[31]"},
		{"matched as half of xreg5", "xreg5=0x1 actions=drop", "reg15[31]"},
		{"matched in the upper half of xreg5, which is reg10", "xreg5=0/0x8000000000000000 actions=drop", "reg10[30]"},
		{"matched in the lower half of xreg5, which is reg11", "xreg5=0/0xffffffff actions=drop", "reg10[31]"},
		{"matched in xxreg2, whose third is reg10", "xxreg2=0/0x8000000000000000 actions=drop", "reg10[30]"},
		{"metadata is no concern", "metadata=0x1,pkt_mark=0x80000000 actions=load:0x1->OXM_OF_METADATA[]", "reg10[31]"},
		// Reads by actions.
		{"moved from", "actions=move:NXM_NX_REG10[31]->NXM_OF_VLAN_TCI[12]", "reg10[30]"},
		{"moved from, by another name", "actions=move:reg10[24..31]->tun_id[0..7]", "reg10[23]"},
		{"moved from whole", "actions=move:NXM_NX_REG10[]->NXM_NX_PKT_MARK[]", "reg15[31]"},
		{"moved from, in a write", "actions=write_actions(move:NXM_NX_REG10[31]->NXM_OF_VLAN_TCI[12])", "reg10[30]"},
		{"moved from, in ct", "ip actions=ct(commit,zone=5,exec(move:NXM_NX_REG10[]->NXM_NX_CT_MARK[]))", "reg15[31]"},
		{"moved from, deep in clones", "actions=clone(clone(move:NXM_NX_REG10[31]->NXM_NX_REG0[0],output:1))", "reg10[30]"},
		{"learned from", "actions=learn(table=5,NXM_OF_ETH_SRC[],load:NXM_NX_REG10[30..31]->NXM_NX_REG0[0..1])", "reg10[29]"},
		{"learned match", "actions=learn(table=5,NXM_NX_REG10[31])", "reg10[30]"},
		{"learned write counts as read", "actions=learn(table=5,load:0x1->NXM_NX_REG10[31])", "reg10[30]"},
		{"learned output", "actions=learn(table=5,output:NXM_NX_REG10[])", "reg15[31]"},
		{"output", "actions=output:NXM_NX_REG10[16..31]", "reg10[15]"},
		{"output by another name", "actions=output(port=reg10,max_len=64)", "reg15[31]"},
		{"zone", "ip actions=ct(table=5,zone=NXM_NX_REG10[16..31])", "reg10[15]"},
		{"pushed", "actions=push:NXM_NX_REG10[31]", "reg10[30]"},
		{"pushed whole in xxreg2", "actions=push:NXM_NX_XXREG2[]", "reg15[31]"},
		{"multipath", "actions=multipath(symmetric_l4,1024,modulo_n,4,0,NXM_NX_REG10[28..31])", "reg10[27]"},
		{"bundle_load", "actions=bundle_load(eth_src,0,hrw,ofport,NXM_NX_REG10[],slaves:4,8)", "reg15[31]"},
		{"check_pkt_larger", "actions=check_pkt_larger(1500)->NXM_NX_REG10[31]", "reg10[30]"},
		{"an action that nobody knows", "actions=teleport(mars,NXM_NX_REG10[31])", "reg10[30]"},
		{"a write that is none", "actions=load:NXM_NX_REG10[31]", "reg10[30]"},
		{"a field that nobody knows", "actions=teleport(reg10[a..b])", "reg15[31]"},
		{"bits that there are not", "actions=output:NXM_NX_REG10[16..40]", "reg15[31]"},
		// Writes.
		{"loaded", "actions=load:0x1->NXM_NX_REG10[31]", "reg10[30]"},
		{"loaded whole", "actions=load:0x1->NXM_NX_REG10[]", "reg15[31]"},
		{"set", "actions=set_field:0x1->reg10", "reg15[31]"},
		{"set in xreg5", "actions=set_field:0x1->xreg5", "reg15[31]"},
		{"moved to", "actions=move:NXM_OF_IN_PORT[]->NXM_NX_REG10[16..31]", "reg10[15]"},
		{"popped", "actions=pop:NXM_NX_REG10[]", "reg15[31]"},
	}
	for _, tt := range tests {
		p, err := Choose(Bridge{Flows: mustParse(t, tt.flow)}, nil)
		if err != nil || p.Mark.String() != tt.want {
			t.Errorf("%s: %s: mark %v, %v; want %s", tt.name, tt.flow, p.Mark, err, tt.want)
		}
	}
}

// Where every bit is written or read, one that is only written is taken; where all
// are read, none.
func TestChooseMarkWritten(t *testing.T) {
	t.Parallel()
	clear, read := "actions=", "actions="
	for i := range registers {
		clear += fmt.Sprintf("load:0->NXM_NX_REG%d[],", i)
		read += fmt.Sprintf("output:NXM_NX_REG%d[],", i)
	}
	if p, err := Choose(Bridge{Flows: mustParse(t, clear+"drop")}, nil); err != nil || p.Mark != (Mark{"reg10", 31}) {
		t.Errorf("all are cleared: mark %v, %v; want reg10[31]", p.Mark, err)
	}
	if p, err := Choose(Bridge{Name: "br7", Flows: mustParse(t, read+"drop")}, nil); !errors.Is(err, ErrNoMark) || !strings.Contains(err.Error(), "br7") {
		t.Errorf("all are read: mark %v, %v; want ErrNoMark on br7", p.Mark, err)
	}
	last := strings.Replace(read, "output:NXM_NX_REG0[],", "output:NXM_NX_REG0[1..31],", 1)
	if p, err := Choose(Bridge{Flows: mustParse(t, last+"drop")}, nil); err != nil || p.Mark != (Mark{"reg0", 0}) {
		t.Errorf("one bit is left: mark %v, %v; want reg0[0]", p.Mark, err)
	}
}

func TestChooseGroups(t *testing.T) {
	t.Parallel()
	flows := mustParse(t, "ip actions=resubmit(,5)\ntable=5,ip actions=write_actions(group:1)")
	if _, err := Choose(Bridge{Flows: flows}, nil); !errors.Is(err, ErrNoMark) || !strings.Contains(err.Error(), "groups were not read") {
		t.Errorf("groups not read: %v, want ErrNoMark", err)
	}
	tests := []struct{ group, mark string }{
		{"group_id=1,type=all,bucket=bucket_id:0,actions=output:1", "reg10[31]"},
		{"group_id=1,type=all,bucket=bucket_id:0,actions=output:1,bucket=bucket_id:1,actions=output:NXM_NX_REG10[16..31]", "reg10[15]"},
		{"group_id=1,type=select,selection_method=hash,fields(ip_dst,reg10),bucket=actions=drop", "reg15[31]"},
		{"group_id=1,type=select,bucket=weight:5,actions=load:0x1->NXM_NX_REG10[31]", "reg10[30]"},
	}
	for _, tt := range tests {
		if p, err := Choose(Bridge{Flows: flows, Groups: []string{tt.group}}, nil); err != nil || p.Mark.String() != tt.mark {
			t.Errorf("%s: mark %v, %v; want %s", tt.group, p.Mark, err, tt.mark)
		}
	}
	uses := "group_id=1,type=all,bucket=actions=resubmit(,253),bucket=actions=ct(table=252)"
	if p, err := Choose(Bridge{Flows: flows, Groups: []string{uses}}, nil); err != nil || p.Table != 251 || p.Reply != 250 {
		t.Errorf("%s: tables %d and %d, %v; want 251 and 250", uses, p.Table, p.Reply, err)
	}
}

func TestChooseTable(t *testing.T) {
	t.Parallel()
	all := ""
	for i := firstTable; i <= lastTable; i++ {
		all += fmt.Sprintf("table=%d actions=drop\n", i)
	}
	tests := []struct {
		name, flows string
		want, reply uint8
		err         error
	}{
		{"none is used", "actions=NORMAL", 253, 252, nil},
		{"has a flow", "table=253 actions=drop", 252, 251, nil},
		{"second has a flow", "table=252 actions=drop", 253, 251, nil},
		{"resubmit", "actions=resubmit(,253),resubmit(NXM_OF_IN_PORT[],252)", 251, 250, nil},
		{"resubmit with ct", "actions=resubmit(1,253,ct)", 252, 251, nil},
		{"goto", "actions=goto_table:253", 252, 251, nil},
		{"ct", "ip actions=ct(commit,zone=5,table=253)", 252, 251, nil},
		{"learned into", "actions=learn(idle_timeout=3,table=253,NXM_OF_ETH_SRC[])", 252, 251, nil},
		{"learned into, below", "actions=learn(table=252,hard_timeout=9,delete_learned,limit=5,result_dst=NXM_NX_REG1[0],NXM_OF_ETH_SRC[])", 253, 251, nil},
		{"deep in clones", "actions=clone(clone(resubmit(,253)))", 252, 251, nil},
		{"of an action that nobody knows", "actions=teleport(mars,table=253)", 252, 251, nil},
		{"not a table", "actions=output:253,resubmit(253,)", 253, 252, nil},
		{"all are used", all, 0, 0, ErrNoTable},
		{"all but one", strings.Replace(all, "table=217", "table=199", 1), 0, 0, ErrNoTable},
		{"all but two", strings.NewReplacer("table=217", "table=199", "table=203", "table=199").Replace(all), 217, 203, nil},
	}
	for _, tt := range tests {
		p, err := Choose(Bridge{Flows: mustParse(t, tt.flows)}, nil)
		if p.Table != tt.want || p.Reply != tt.reply || !errors.Is(err, tt.err) {
			t.Errorf("%s: tables %d and %d, %v; want %d and %d, %v", tt.name, p.Table, p.Reply, err, tt.want, tt.reply, tt.err)
		}
	}
}

func TestChooseKeeps(t *testing.T) {
	t.Parallel()
	reg3, reg10 := Mark{"reg3", 4}, Mark{"reg10", 31}
	old := Place{210, 220, reg3}
	tests := []struct {
		name, flows string
		keep, want  Place
	}{
		{"still good", "actions=NORMAL", old, old},
		{"written since", "actions=load:0->NXM_NX_REG3[]", old, old},
		{"read since", "reg3=0 actions=drop", old, Place{210, 220, reg10}},
		{"read since, by learn", "actions=learn(table=5,limit=9,result_dst=NXM_NX_REG3[4],NXM_OF_ETH_SRC[])", old, Place{210, 220, reg10}},
		{"table used since", "table=210 actions=drop", old, Place{253, 220, reg3}},
		{"reply table used since", "actions=learn(table=220,NXM_OF_ETH_SRC[])", old, Place{210, 253, reg3}},
		{"ours does not count", "cookie=0x4479655400000401,table=210,reg3=0 actions=output:NXM_NX_REG3[],resubmit(,220)", old, old},
		{"nothing to keep", "actions=NORMAL", Place{}, Place{253, 252, reg10}},
		{"no reply table to keep", "actions=NORMAL", Place{253, 0, reg3}, Place{253, 252, reg3}},
		{"reply table would be the other", "actions=NORMAL", Place{0, 253, reg3}, Place{253, 252, reg3}},
		{"both tables one", "actions=NORMAL", Place{253, 253, reg3}, Place{253, 252, reg3}},
		{"no such table or mark", "actions=NORMAL", Place{254, 199, Mark{"reg3", 32}}, Place{253, 252, reg10}},
		{"not a mark", "actions=NORMAL", Place{7, 8, Mark{"xreg3", 3}}, Place{253, 252, reg10}},
	}
	for _, tt := range tests {
		if p, err := Choose(Bridge{Flows: mustParse(t, tt.flows)}, &tt.keep); p != tt.want || err != nil {
			t.Errorf("%s: Choose = %v, %v; want %v", tt.name, p, err, tt.want)
		}
	}
}

func TestChooseShadowed(t *testing.T) {
	t.Parallel()
	tests := []struct {
		flow string
		want error
	}{
		{"priority=65535 actions=drop", ErrShadowed},
		{"priority=65535,tcp actions=drop", ErrShadowed},
		{"priority=65535,ip,in_port=1 actions=drop", ErrShadowed},
		{"priority=65535,ct_state=+inv+trk actions=drop", ErrShadowed},
		{"priority=65535,tcp,tp_dst=0x8/0xfffc actions=drop", ErrShadowed},
		{"priority=65535,in_port=9 actions=drop", ErrShadowed},
		{"priority=65534,in_port=9 actions=drop", ErrShadowed},
		{"priority=65534 actions=drop", ErrShadowed},
		{"priority=65534,tcp,in_port=1 actions=drop", nil},
		{"priority=65533,in_port=9,tcp actions=drop", nil},
		{"priority=65533 actions=drop", ErrShadowed}, // of replies
		{"priority=65533,icmp,in_port=1 actions=drop", ErrShadowed},
		{"priority=65534,icmp6,icmp_type=129 actions=drop", ErrShadowed},
		{"priority=65535,icmp,in_port=1,nw_tos=88 actions=drop", ErrShadowed},
		{"priority=65535,icmp,in_port=1,nw_tos=88,icmp_type=8 actions=drop", nil},
		{"priority=65533,icmp,icmp_type=8 actions=drop", nil},
		{"priority=65532 actions=drop", nil},
		{"priority=65533,tcp,in_port=5 actions=drop", ErrShadowed}, // of answers
		{"priority=65534,tcp6,tp_src=11 actions=drop", ErrShadowed},
		{"priority=65533,tcp,in_port=4 actions=drop", nil},
		{"priority=65533,tcp,tp_src=12 actions=drop", nil},
		{"priority=65535,tcp,in_port=1,tp_dst=80 actions=drop", nil},
		{"priority=65535,tcp,in_port=1,nw_tos=88 actions=drop", nil},
		{"priority=65535,udp,in_port=1 actions=drop", nil},
		{"priority=65535,arp,in_port=1 actions=drop", nil},
		{"priority=65535,ipv6,in_port=1 actions=drop", ErrShadowed},
		{"priority=65535,tcp6,in_port=1,ipv6_dst=fd00::/8 actions=drop", ErrShadowed},
		{"priority=65535,ipv6,in_port=1,nw_tos=92 actions=drop", ErrShadowed},
		{"priority=65535,tcp6,in_port=1,tp_dst=80 actions=drop", nil},
		{"priority=65535,tcp6,in_port=1,nw_tos=88 actions=drop", nil},
		{"priority=65535,icmp,in_port=1 actions=drop", ErrShadowed},
		{"priority=65535,icmp,in_port=1,icmp_type=0 actions=drop", ErrShadowed},
		{"priority=65535,icmp6,in_port=1,icmpv6_type=128 actions=drop", ErrShadowed},
		{"priority=65535,icmp6,in_port=1,icmp_type=129,icmp_code=0 actions=drop", ErrShadowed},
		{"priority=65535,icmp,in_port=1,icmp_type=3 actions=drop", nil},
		{"priority=65535,icmp6,in_port=1,icmp_type=135 actions=drop", nil},
		{"priority=65535,mpls,in_port=9,mpls_tc=2 actions=drop", ErrShadowed},
		{"priority=65535,dl_vlan=4095 actions=drop", nil}, // Neutron's
		{"priority=65535,dl_vlan=100 actions=drop", ErrShadowed},
		{"table=1,priority=65535 actions=drop", nil},
		{"cookie=0x4479655400000300,priority=65535 actions=drop", nil},
	}
	for _, tt := range tests {
		flows := mustParse(t, tt.flow)
		_, err := Choose(Bridge{Flows: flows, Answers: []uint16{5}, Dye: 9, Stain: stain.Default()}, nil)
		if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), flows[0].String()) {
			t.Errorf("%s: %v, want %v that names the flow", tt.flow, err, tt.want)
		}
	}
	// Where there are no instances, nobody waits for replies that are not stained.
	tunnels := Bridge{Flows: mustParse(t, "priority=65533,icmp,icmp_type=0 actions=drop"), Ports: []Port{{"patch", 1, Downlink}}, Stain: stain.Default()}
	if _, err := Choose(tunnels, nil); err != nil {
		t.Errorf("no instances: %v", err)
	}
	tunnels.Ports = append(tunnels.Ports, Port{Role: Instance})
	if _, err := Choose(tunnels, nil); !errors.Is(err, ErrShadowed) {
		t.Errorf("instances beside a downlink: %v, want ErrShadowed", err)
	}
	// A bridge whose stain is not known yet: any packet of a scheme's is near enough.
	for _, match := range []string{"tcp,tp_dst=80", "tcp6,tp_dst=80", "icmp,icmp_type=3", "icmp6,icmp_type=135"} {
		if _, err := Choose(Bridge{Flows: mustParse(t, "priority=65535,"+match+" actions=drop")}, nil); !errors.Is(err, ErrShadowed) {
			t.Errorf("no stain given, %s: %v, want ErrShadowed", match, err)
		}
	}
}

// Ports without a number, the dye port itself and duplicates get no flow; the
// order of the ports is of no matter.
func TestHookPorts(t *testing.T) {
	t.Parallel()
	h := Hook{Place: Place{253, 252, Mark{"reg10", 31}}, Stain: stain.Default(), Dye: 9, Expect: true}
	ports := []Port{{"vx", 3, Tunnel}, {"phy", 2, Other}, {"tap", 1, Instance}}
	h.Ports = ports
	want := Format(h.Flows())
	h.Ports = []Port{ports[1], ports[0], {"none", 0, Tunnel}, {"dye", 9, Other}, ports[2], {"none too", 65535, Tunnel}, ports[1]}
	if diff := gocmp.Diff(want, Format(h.Flows())); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if n := strings.Count(want, "table=253, priority=200,"); n != 2 {
		t.Errorf("%d flows for ports, want those of vx and phy:\n%s", n, want)
	}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	for role, want := range map[Role]string{
		Other: "other: unclassified", Instance: "instance: from-instance", Tunnel: "tunnel: from-tunnel",
		Downlink: "downlink: to-tunnel", Uplink: "uplink: from-tunnel", 9: "role(9): unclassified",
	} {
		if got := fmt.Sprintf("%v: %v", role, role.Kind()); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := (Mark{}).String(); got != "" {
		t.Errorf("no mark is %q", got)
	}
}

func TestHookKinds(t *testing.T) {
	t.Parallel()
	tests := []struct {
		ports []Port
		want  string
	}{
		{nil, "[from-instance]"},
		{[]Port{{"tap", 1, Instance}}, "[from-instance]"},
		{[]Port{{"tap", 1, Instance}, {"vx", 2, Tunnel}}, "[from-instance from-tunnel]"},
		{[]Port{{"up", 1, Uplink}, {"phy", 2, Other}}, "[from-instance from-tunnel]"},
		{[]Port{{"down", 1, Downlink}, {"vx", 2, Tunnel}}, "[from-tunnel to-tunnel]"},
		{[]Port{{"down", 1, Downlink}, {"vx", 2, Tunnel}, {"tap", 3, Instance}}, "[from-instance from-tunnel to-tunnel]"},
		{[]Port{{"down", 1, Downlink}, {"", 0, Instance}}, "[from-instance to-tunnel]"},
		{[]Port{{"dye", 9, Instance}, {"down", 1, Downlink}}, "[to-tunnel]"},
	}
	for _, tt := range tests {
		if got := fmt.Sprint(Hook{Dye: 9, Ports: tt.ports}.Kinds()); got != tt.want {
			t.Errorf("%v: kinds %s, want %s", tt.ports, got, tt.want)
		}
	}
}

func TestInstalled(t *testing.T) {
	t.Parallel()
	entry := "cookie=0x4479655400000300,priority=65535,tcp,reg3=0/0x10,nw_tos=92,tp_src=11,tp_dst=11 actions="
	learn := "cookie=0x4479655400000600,priority=65535,icmp,reg3=0/0x10,nw_tos=92,icmp_type=8,icmp_code=0 actions="
	place := Place{Table: 210, Mark: Mark{"reg3", 4}}
	tests := []struct {
		flows string
		want  Place
		ok    bool
	}{
		{"actions=NORMAL", Place{}, false},
		{entry + "load:0x1->NXM_NX_REG3[4],resubmit(,210),resubmit(,0)", place, true},
		{entry + "set_field:0x10/0x10->reg3,resubmit(,210),resubmit(,0)", place, true},
		{entry + "load:0x1->NXM_NX_REG3[4],resubmit(,210),resubmit(,0)\n" + learn + "resubmit(,220),learn(table=220,hard_timeout=15,NXM_OF_ETH_SRC[]),resubmit(,210)",
			Place{210, 220, Mark{"reg3", 4}}, true},
		{learn + "learn(hard_timeout=15,table=0x3),resubmit(,210)\n" + entry + "load:0x1->NXM_NX_REG3[4],resubmit(,210),resubmit(,0)", place, true},
		{learn + "learn(table=220,hard_timeout=15)", Place{}, false},
		{entry + "set_field:0x30/0x30->reg3,resubmit(,210),resubmit(,0)", Place{}, false},
		{entry + "load:0x1->NXM_NX_REG3[4],resubmit(,0)", Place{}, false},
		{entry + "drop", Place{}, false},
	}
	for _, tt := range tests {
		if got, ok := Installed(mustParse(t, "actions=drop\n"+tt.flows)); ok != tt.ok || got != tt.want {
			t.Errorf("%s: Installed = %v, %v; want %v, %v", tt.flows, got, ok, tt.want, tt.ok)
		}
	}
}

// BenchmarkChoose reads a bridge as large as that of a busy OVN hypervisor.
func BenchmarkChoose(b *testing.B) {
	var big Bridge
	for _, g := range loadGoldens(b) {
		if g.bridge.Name != "ovn" {
			continue
		}
		big = g.bridge
		for flows := big.Flows; len(big.Flows) < 50_000; {
			big.Flows = append(big.Flows, flows...)
		}
	}
	for b.Loop() {
		if _, err := Choose(big, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(big.Flows)), "ns/flow")
}

func BenchmarkParseDump(b *testing.B) {
	var dump string
	for _, g := range loadGoldens(b) {
		dump += g.section("flows")
	}
	n := len(mustParse(b, dump))
	for b.Loop() {
		mustParse(b, dump)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/flow")
}
