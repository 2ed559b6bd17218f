package flows

import (
	"errors"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseDump(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, dump, err string
		want            []Flow
	}{
		{name: "nothing"},
		{name: "header only", dump: "NXST_FLOW reply (xid=0x4):\n"},
		{
			name: "OpenFlow 1.0",
			dump: "NXST_FLOW reply (xid=0x4):\n cookie=0x4479655400000100, duration=0.023s, table=3, n_packets=7, n_bytes=420, " +
				"idle_timeout=9, hard_timeout=60, idle_age=0, hard_age=1, priority=65535,mpls,in_port=9 actions=drop\n",
			want: []Flow{{Table: 3, Priority: 65535, Match: "mpls,in_port=9", Actions: "drop", Cookie: Cookie | 0x100, HardTimeout: 60, Packets: 7}},
		},
		{
			name: "OpenFlow 1.5, flags, no priority, no match",
			dump: "OFPST_FLOW reply (OF1.5) (xid=0x2):\n" +
				" cookie=0x0, duration=0.044s, table=1, n_packets=0, n_bytes=0, idle_timeout=300, send_flow_rem idle_age=0, in_port=3 actions=drop\n" +
				" cookie=0x0, duration=0.055s, table=1, n_packets=0, n_bytes=0, send_flow_rem reset_counts no_packet_counts priority=5,ip actions=drop\n" +
				" cookie=0x0, duration=0.024s, table=2, n_packets=0, n_bytes=0, send_flow_rem check_overlap importance=5, idle_age=0, actions=drop\n" +
				" cookie=0x0, duration=0.012s, table=2, n_packets=0, n_bytes=0, send_flow_rem check_overlap actions=drop\n",
			want: []Flow{
				{Table: 1, Priority: 32768, Match: "in_port=3", Actions: "drop"},
				{Table: 1, Priority: 5, Match: "ip", Actions: "drop"},
				{Table: 2, Priority: 32768, Actions: "drop"},
				{Table: 2, Priority: 32768, Actions: "drop"},
			},
		},
		{
			name: "no statistics",
			dump: " cookie=0x1, priority=5,ip actions=learn(table=5,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[]),NORMAL\n actions=NORMAL\n",
			want: []Flow{
				{Priority: 5, Match: "ip", Actions: "learn(table=5,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[]),NORMAL", Cookie: 1},
				{Priority: 32768, Actions: "NORMAL"},
			},
		},
		{
			name: "commas in a value",
			dump: `priority=1,packet_type=(0,0x800),in_port="a,b" actions=drop`,
			want: []Flow{{Priority: 1, Match: `packet_type=(0,0x800),in_port="a,b"`, Actions: "drop"}},
		},
		{
			name: "actions that nobody knows",
			dump: "table=1,priority=1 actions=teleport(mars,actions=drop),~!",
			want: []Flow{{Table: 1, Priority: 1, Actions: "teleport(mars,actions=drop),~!"}},
		},
		{name: "table by name", dump: "\n table=ingress, priority=1 actions=drop", err: `line 2: "table=ingress"`},
		{name: "table too high", dump: "table=256 actions=drop", err: `"table=256": want at most 255`},
		{name: "priority too high", dump: "priority=65536 actions=drop", err: `"priority=65536": want at most 65535`},
		{name: "cookie", dump: "cookie=DyeT, actions=drop", err: `"cookie=DyeT"`},
		{name: "empty field", dump: "priority=1,,ip actions=drop", err: `"": want a name`},
		{name: "no actions", dump: "cookie=0x1, priority=5,ip\n", err: "line 1: no actions"},
		{name: "not a flow", dump: "table=253,actions=drop", err: "no actions"},
		{name: "not of a dump", dump: "ovs-ofctl: br0 is not a bridge", err: "no actions"},
		{name: "empty actions", dump: "priority=5,ip actions=", err: "empty actions"},
	}
	for _, tt := range tests {
		got, err := ParseDump(tt.dump)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.err)
		}
		if diff := gocmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.name, diff)
		}
	}
}

func TestFlowRoundTrip(t *testing.T) {
	t.Parallel()
	item := rapid.StringMatching(`[a-z_]{1,9}(=[0-9a-fx:./]{1,9})?`)
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOf(rapid.Custom(func(t *rapid.T) Flow {
			match := rapid.SliceOfN(item, 0, 4).Draw(t, "match")
			return Flow{
				Table: rapid.Uint8().Draw(t, "table"), Priority: rapid.Uint16().Draw(t, "priority"),
				Match: strings.Join(match, ","), Actions: rapid.StringMatching(`[a-z:(),]{1,20}`).Draw(t, "actions"),
				Cookie: rapid.Uint64().Draw(t, "cookie"), HardTimeout: rapid.Uint16().Draw(t, "timeout"),
				Packets: rapid.Uint64().Draw(t, "packets"),
			}
		})).Draw(t, "flows")
		got, err := ParseDump(Format(want))
		if err != nil || len(got) != len(want) {
			t.Fatalf("ParseDump = %v, %v; want %v", got, err, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("ParseDump = %v, want %v", got[i], want[i])
			}
		}
	})
}

// What ParseDump reads, Format prints so that it reads the same again.
func FuzzParseDump(f *testing.F) {
	for _, g := range loadGoldens(f) {
		f.Add(g.section("flows"))
	}
	f.Add(" cookie=0x1, duration=1s, table=0, send_flow_rem priority=5,ip,in_port=\"a,b\" actions=drop")
	f.Add("a( actions=drop\na) actions=x,(\n")
	f.Fuzz(func(t *testing.T, dump string) {
		flows, err := ParseDump(dump)
		if err != nil {
			return
		}
		again, err := ParseDump(Format(flows))
		if diff := gocmp.Diff(flows, again); diff != "" || err != nil {
			t.Fatalf("%v (-first +second)\n%s", err, diff)
		}
	})
}

func TestFlowLines(t *testing.T) {
	t.Parallel()
	f := Flow{Table: 253, Priority: 200, Match: "in_port=3", Actions: "drop", Cookie: Cookie | 0x500, HardTimeout: 60}
	all := Flow{Priority: 1, Actions: "NORMAL", Cookie: Cookie}
	for _, tt := range []struct{ got, want string }{
		{f.AddLine(), "flow add cookie=0x4479655400000500,hard_timeout=60,table=253,priority=200,in_port=3,actions=drop"},
		{f.DeleteLine(), "flow delete_strict cookie=0x4479655400000000/0xffffffff00000000,table=253,priority=200,in_port=3"},
		{f.RenewLine(), "flow modify_strict cookie=0x4479655400000500/-1,table=253,priority=200,in_port=3,actions=drop"},
		{f.String(), "cookie=0x4479655400000500, table=253, hard_timeout=60, priority=200,in_port=3 actions=drop"},
		{all.AddLine(), "flow add cookie=0x4479655400000000,table=0,priority=1,actions=NORMAL"},
		{all.DeleteLine(), "flow delete_strict cookie=0x4479655400000000/0xffffffff00000000,table=0,priority=1"},
	} {
		if tt.got != tt.want {
			t.Errorf("got  %s\nwant %s", tt.got, tt.want)
		}
	}
}

func TestOurs(t *testing.T) {
	t.Parallel()
	for cookie, want := range map[uint64]bool{
		Cookie: true, Cookie | 0xffffffff: true, 0: false, 0x44796554: false, Cookie | 1<<63: false,
		0x1000000000000: false, // a round of Antrea
	} {
		if got := (Flow{Cookie: cookie}).Ours(); got != want {
			t.Errorf("cookie %#x is ours: %v", cookie, got)
		}
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	const (
		foreign = " cookie=0x0, table=0, priority=0 actions=NORMAL\n"
		enter   = " cookie=0x4479655400000300, table=0, hard_timeout=60, priority=65535,tcp,reg10=0/0x80000000,nw_tos=92,tp_src=11,tp_dst=11 actions=load:0x1->NXM_NX_REG10[31],resubmit(,253)\n"
		spelled = " cookie=0x4479655400000300, table=0, n_packets=5, hard_timeout=60, priority=65535,dl_type=0x0800,nw_proto=6,tcp_dst=0xb,tp_src=11,ip_dscp=23,reg10=0x0/0x80000000 actions=set_field:0x80000000/0x80000000->reg10,resubmit(,253)\n"
		older   = " cookie=0x4479655400000300, table=0, hard_timeout=60, priority=65535,tcp,reg10=0/0x80000000,nw_tos=92,tp_src=11,tp_dst=11 actions=load:0x1->NXM_NX_REG10[31],resubmit(,252)\n"
		noLease = " cookie=0x4479655400000300, table=0, priority=65535,tcp,reg10=0/0x80000000,nw_tos=92,tp_src=11,tp_dst=11 actions=load:0x1->NXM_NX_REG10[31],resubmit(,253)\n"
		squat   = " cookie=0x99, table=0, priority=65535,tcp,nw_tos=92,tp_src=11,tp_dst=11,reg10=0/0x80000000 actions=drop\n"
		lower   = " cookie=0x99, table=0, priority=65534,tcp,nw_tos=92,tp_src=11,tp_dst=11,reg10=0/0x80000000 actions=drop\n"
		point   = " cookie=0x4479655400000402, table=253, hard_timeout=60, priority=200,in_port=3 actions=output:9\n"
		learn   = " cookie=0x4479655400000600, table=0, hard_timeout=60, priority=65535,icmp,reg10=0/0x80000000,nw_tos=92,icmp_type=8,icmp_code=0 actions=resubmit(,252),learn(table=252,hard_timeout=15,eth_type=0x800),resubmit(,253)\n"
		told    = " cookie=0x4479655400000800, table=252, n_packets=7, hard_timeout=15, priority=1,ip,nw_src=10.0.0.2,nw_dst=10.0.0.1 actions=load:0x5c->NXM_OF_IP_TOS[],load:0x1->NXM_NX_REG10[31]\n"
		blind   = " cookie=0x4479655400000500, table=253, hard_timeout=60, priority=200,in_port=4 actions=drop\n"
	)
	tests := []struct {
		name, have, want, add, del string
		err                        error
	}{
		{name: "bare bridge", have: foreign, want: enter + point, add: enter + point},
		{name: "as wanted", have: foreign + enter + point, want: enter + point},
		{name: "as wanted, in other words", have: spelled, want: enter},
		{name: "leaving", have: foreign + point + enter, del: enter + point},
		{name: "port gone, port new", have: enter + point, want: enter + blind, add: blind, del: point},
		{name: "another table", have: older, want: enter, add: enter},
		{name: "without a lease", have: noLease, want: enter, add: enter},
		{name: "place taken", have: foreign + squat, want: enter, err: ErrForeign},
		{name: "place of another priority taken", have: lower, want: enter, add: enter},
		{name: "what was learned stays", have: learn + told, want: learn},
		{name: "what was learned goes with the hook", have: learn + told, del: learn + told},
		{name: "learned into another table", have: learn + told, want: strings.ReplaceAll(learn, "252", "251"), add: strings.ReplaceAll(learn, "252", "251"), del: told},
		{name: "learned by whom nobody knows", have: told, want: enter, add: enter, del: told},
		{name: "nothing at all"},
	}
	for _, tt := range tests {
		add, del, err := Diff(mustParse(t, tt.have), mustParse(t, tt.want))
		if !errors.Is(err, tt.err) || Format(add) != tt.add || Format(del) != tt.del {
			t.Errorf("%s: Diff = +%s -%s, %v", tt.name, Format(add), Format(del), err)
		}
	}
	if _, _, err := Diff(nil, mustParse(t, enter+spelled)); err == nil {
		t.Error("the same flow is wanted twice, and Diff says nothing")
	}
}

// Applying a difference gives what is wanted, whatever was there, and leaves
// foreign flows alone.
func TestDiffApplies(t *testing.T) {
	t.Parallel()
	flow := rapid.Custom(func(t *rapid.T) Flow {
		return Flow{
			Table: rapid.Uint8Max(1).Draw(t, "table"), Priority: rapid.Uint16Max(1).Draw(t, "priority"),
			Match:   rapid.SampledFrom([]string{"", "in_port=1", "in_port=2", "tcp,in_port=0x1", "in_port=1,tcp"}).Draw(t, "match"),
			Actions: rapid.SampledFrom([]string{"drop", "NORMAL"}).Draw(t, "actions"),
			Cookie:  rapid.SampledFrom([]uint64{0, Cookie, Cookie | 0x300}).Draw(t, "cookie"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		have := rapid.SliceOfNDistinct(flow, 0, 8, Flow.key).Draw(t, "have")
		want := rapid.SliceOfNDistinct(flow.Filter(Flow.Ours), 0, 8, Flow.key).Draw(t, "want")
		add, del, err := Diff(have, want)
		on := make(map[key]Flow)
		for _, f := range have {
			on[f.key()] = f
		}
		taken := false
		for _, f := range want {
			old, ok := on[f.key()]
			taken = taken || ok && !old.Ours()
		}
		if errors.Is(err, ErrForeign) != taken {
			t.Fatalf("Diff: %v, but a foreign flow is in the way: %v", err, taken)
		}
		if taken {
			return
		}
		for _, f := range del {
			if !f.Ours() {
				t.Fatalf("deletes %v", f)
			}
			delete(on, f.key())
		}
		for _, f := range add {
			on[f.key()] = f
		}
		for _, f := range want {
			if got, ok := on[f.key()]; !ok || !got.same(f) {
				t.Fatalf("%v is wanted, bridge has %v", f, got)
			}
			delete(on, f.key())
		}
		for _, f := range on {
			if f.Ours() {
				t.Fatalf("%v is left", f)
			}
		}
		if foreign := countForeign(have); len(on) != foreign {
			t.Fatalf("%d foreign flows of %d are left", len(on), foreign)
		}
	})
}

func countForeign(flows []Flow) (n int) {
	for _, f := range flows {
		if !f.Ours() {
			n++
		}
	}
	return n
}
