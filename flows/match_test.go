package flows

import (
	"slices"
	"strings"
	"testing"
)

func TestCanonicalMatch(t *testing.T) {
	t.Parallel()
	same := [][]string{
		{"tcp,tp_src=11,nw_tos=92", "nw_tos=0x5c,tcp,tcp_src=0xb", "ip,nw_proto=6,ip_dscp=23,tp_src=11", "dl_type=0x0800,nw_proto=0x6,tp_src=11/0xffff,nw_tos=95"},
		{"in_port=LOCAL", "in_port=65534", "in_port=0xfffe"},
		{"ip,nw_src=10.1.0.0/16", "ip,nw_src=10.1.2.3/255.255.0.0", "ip_src=10.1.0.0/0xffff0000,dl_type=0x800"},
		{"dl_dst=01:00:00:00:00:00/01:00:00:00:00:00", "eth_dst=FF:FF:ff:ff:ff:ff/01:00:00:00:00:00"},
		{"ipv6,ipv6_dst=fd00::/64", "eth_type=0x86dd,ipv6_dst=fd00::1/64", "ipv6,ipv6_dst=fd00::/ffff:ffff:ffff:ffff::"},
		{"reg10=0/0x80000000", "reg10=0x0/0x80000000", "reg10=0x1/0x80000000"},
		{"", "reg10=0/0", "metadata=5/0,tun_id=0/0x0"},
		{"xxreg0=0x11112222333344445555666677778888/0xffff0000000000000000000000000000", "xxreg0=0x11110000000000000000000000000000/0xffff0000000000000000000000000000"},
		{"mpls,in_port=9", "in_port=9,dl_type=0x8847"},
		{"icmp6,icmpv6_type=128,icmpv6_code=0", "icmp_code=0,icmp_type=128,ipv6,nw_proto=58"},
		{"ct_state=+new+trk,ip", "ip,ct_state=+new+trk"},
		{`in_port="tap1"`, `in_port="tap1"`},
	}
	for i, texts := range same {
		for _, text := range texts {
			if got, want := canonicalMatch(text), canonicalMatch(texts[0]); got != want {
				t.Errorf("%s is %s, want as %s is: %s", text, got, texts[0], want)
			}
			if i > 0 && canonicalMatch(text) == canonicalMatch(same[i-1][0]) {
				t.Errorf("%s is taken for %s", text, same[i-1][0])
			}
		}
	}
}

func TestOverlap(t *testing.T) {
	t.Parallel()
	tests := []struct {
		a, b string
		want bool
	}{
		{"", "tcp", true},
		{"tcp", "ip", true},
		{"tcp", "udp", false},
		{"tcp", "arp", false},
		{"tcp", "tcp6", false},
		{"tcp,tp_dst=80", "tcp,tp_dst=11", false},
		{"tcp,tp_dst=0x8/0xfff8", "tcp,tp_dst=11", true},
		{"tcp,tp_dst=0x10/0xfff0", "tcp,tp_dst=11", false},
		{"ip,nw_tos=92", "tcp,ip_dscp=23", true},
		{"ip,nw_tos=88", "tcp,ip_dscp=23", false},
		{"in_port=1", "in_port=2", false},
		{"in_port=LOCAL", "in_port=65534", true},
		{"ip,nw_src=10.0.0.0/8", "ip,nw_src=10.1.2.0/24", true},
		{"ip,nw_src=10.0.0.0/8", "ip,nw_src=11.1.2.0/24", false},
		{"ct_state=+new", "ct_state=-new", true}, // cannot tell
		{"reg10=0/0x80000000", "reg10=0x80000000/0x80000000", false},
	}
	for _, tt := range tests {
		a, b := parseMatch(tt.a), parseMatch(tt.b)
		if overlap(a, b) != tt.want || overlap(b, a) != tt.want {
			t.Errorf("overlap(%s | %s) = %v and %v, want %v", tt.a, tt.b, overlap(a, b), overlap(b, a), tt.want)
		}
	}
}

// A match has one canonical text, in whatever order its fields are, and that text
// is its own.
func FuzzCanonicalMatch(f *testing.F) {
	for _, g := range loadGoldens(f) {
		for _, flow := range g.bridge.Flows {
			f.Add(flow.Match)
		}
	}
	f.Add("TCP,tcp=,ip_dscp=64,nw_tos=3,reg0=1/0,tp_src=0_1,xxreg0=0x1/0x10000000000000000")
	f.Fuzz(func(t *testing.T, match string) {
		once := canonicalMatch(match)
		if twice := canonicalMatch(once); twice != once {
			t.Fatalf("%q is %q is %q", match, once, twice)
		}
		items := splitList(match)
		slices.Reverse(items)
		reversed := strings.Join(items, ",")
		if !slices.Equal(slices.Sorted(slices.Values(splitList(reversed))), slices.Sorted(slices.Values(items))) {
			return // an item that is not closed swallows what now follows it
		}
		if got := canonicalMatch(reversed); got != once {
			t.Fatalf("%q is %q, %q is %q", match, once, reversed, got)
		}
	})
}

// One spelling of actions, too, and it is its own.
func FuzzCanonicalActions(f *testing.F) {
	for _, g := range loadGoldens(f) {
		for _, flow := range g.bridge.Flows {
			f.Add(flow.Actions)
		}
	}
	f.Add("load:0x1->NXM_NX_REG10[31],clone(load:0->NXM_OF_VLAN_TCI[],load:0x602->NXM_OF_ETH_DST[32..47],output:9),set_field:1/0->reg0")
	f.Fuzz(func(t *testing.T, actions string) {
		once := canonicalActions(actions)
		if twice := canonicalActions(once); twice != once {
			t.Fatalf("%q is %q is %q", actions, once, twice)
		}
	})
}

func TestCanonicalActions(t *testing.T) {
	t.Parallel()
	same := [][]string{
		{"load:0x1->NXM_NX_REG10[31]", "set_field:0x80000000/0x80000000->reg10", "load:1->NXM_NX_REG10[31]"},
		{"clone(load:0->NXM_OF_VLAN_TCI[],output:9)", "clone(set_field:0->vlan_tci,output:9)"},
		{"load:0x602->NXM_OF_ETH_DST[32..47]", "set_field:06:02:00:00:00:00/ff:ff:00:00:00:00->eth_dst"},
		{"load:0x2->NXM_OF_ETH_SRC[40..47]", "set_field:02:00:00:00:00:00/ff:00:00:00:00:00->eth_src"},
		{"load:0x12->NXM_NX_XXREG0[64..95]", "set_field:0x120000000000000000/0xffffffff0000000000000000->xxreg0"},
		{
			"learn(table=252,hard_timeout=15,priority=1,delete_learned,cookie=0x5,limit=9,eth_type=0x800,NXM_OF_IP_SRC[]=NXM_OF_IP_DST[],load:0x5c->NXM_OF_IP_TOS[],load:0x1->NXM_NX_REG10[31])",
			"learn(table=252,priority=1,hard_timeout=15,cookie=0x5,delete_learned,limit=9,NXM_OF_IP_SRC[]=NXM_OF_IP_DST[],dl_type=2048,load:0x5c->NXM_OF_IP_TOS[],load:1->NXM_NX_REG10[31])",
		},
		{"learn(table=252,NXM_OF_IP_SRC[]=NXM_OF_IP_DST[],load:0x1->NXM_NX_REG10[31],load:0x5c->NXM_OF_IP_TOS[])"},
		{"load:0x100->NXM_NX_REG10[0..7]"}, // does not fit, stays as it is
		{"resubmit(,253),resubmit(,0)", "resubmit(,253), resubmit(,0)"},
	}
	for i, texts := range same {
		for _, text := range texts {
			if got, want := canonicalActions(text), canonicalActions(texts[0]); got != want {
				t.Errorf("%s is %s, want as %s is: %s", text, got, texts[0], want)
			}
			if i > 0 && canonicalActions(text) == canonicalActions(same[i-1][0]) {
				t.Errorf("%s is taken for %s", text, same[i-1][0])
			}
		}
	}
}
