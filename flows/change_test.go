package flows

import (
	"path/filepath"
	"strings"
	"testing"
)

// Lines as ovs-ofctl 3.1.0 prints them; dataplane/ovs reads them from a real one.
func TestParseChange(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		line string
		ok   bool
		want Change
		bad  bool
	}{
		{line: "OFPST_FLOW_MONITOR reply (OF1.5) (xid=0x0):"},
		{line: "OFPT_BARRIER_REPLY (OF1.5) (xid=0x5):"},
		{line: ""},
		{line: " event=PAUSED"},
		{line: " event=ABBREV xid=0x1"},
		{line: " event=ADDED table=5 hard_timeout=2 cookie=0x4479655400000100 tcp,reg10=0x5 actions=set_field:0x80000000/0x80000000->reg10,resubmit(,7)", ok: true,
			want: Change{Added, Flow{Table: 5, HardTimeout: 2, Cookie: 0x4479655400000100, Match: "tcp,reg10=0x5",
				Actions: "set_field:0x80000000/0x80000000->reg10,resubmit(,7)"}}},
		{line: " event=DELETED reason=delete table=0 cookie=0 actions=NORMAL", ok: true,
			want: Change{Deleted, Flow{Actions: "NORMAL"}}},
		{line: " event=DELETED reason=hard_timeout table=7 cookie=0x1 in_port=3,dl_vlan=1 actions=drop", ok: true,
			want: Change{Deleted, Flow{Table: 7, Cookie: 1, Match: "in_port=3,dl_vlan=1", Actions: "drop"}}},
		{line: " event=MODIFIED table=0 cookie=0x7 idle_timeout=9 in_port=3", ok: true,
			want: Change{Modified, Flow{Cookie: 7, Match: "in_port=3"}}},
		{line: " event=RENAMED table=0 cookie=0x7", bad: true},
		{line: " event=ADDED table=999 cookie=0x7 actions=drop", bad: true},
	} {
		got, ok, err := ParseChange(tt.line)
		if ok != tt.ok || got != tt.want || (err != nil) != tt.bad {
			t.Errorf("ParseChange(%q) = %+v, %v, %v; want %+v, %v", tt.line, got, ok, err, tt.want, tt.ok)
		}
	}
}

// Whatever comes by, no change of our flows is overlooked: what is read of a line says so itself.
func FuzzParseChange(f *testing.F) {
	f.Add(" event=DELETED reason=delete table=0 cookie=0x4479655400000100 tcp actions=drop")
	f.Add(" event=ADDED table=5 cookie=0 actions=NORMAL")
	f.Fuzz(func(t *testing.T, line string) {
		c, ok, err := ParseChange(line)
		if told := strings.HasPrefix(strings.TrimSpace(line), "event="); (ok || err != nil) && !told {
			t.Errorf("%q: %+v, %v, but it tells of no event", line, c, err)
		}
		if ok && (c.Event == 0 || err != nil || c.Flow.Priority != 0) {
			t.Errorf("%q: %+v, %v", line, c, err)
		}
	})
}

// TestGuard has every pipeline in testdata that a hook must move for come flow by flow: some
// change must be told to be in its way, as grave as it is.
func TestGuard(t *testing.T) {
	t.Parallel()
	carriers := 0
	for _, g := range loadGoldens(t) {
		if !strings.HasPrefix(filepath.Base(g.file), "carrier-") {
			continue
		}
		carriers++
		h, _, err := g.hook()
		if err != nil {
			t.Fatalf("%s: %v", g.file, err)
		}
		if h.Place == *g.keep {
			t.Errorf("%s: the hook stays at %v, though somebody carries its mark off", g.file, h.Place)
		}
		before, after := h, h
		before.Place = *g.keep
		worst := Harmless
		for _, f := range g.bridge.Flows {
			worst = max(worst, before.Guard().Judge(Change{Event: Added, Flow: f}))
			if d := after.Guard().Judge(Change{Event: Modified, Flow: f}); d >= Taken {
				t.Errorf("%s: %v is %v to the hook where it has moved to", g.file, f, d)
			}
		}
		if worst != Taken {
			t.Errorf("%s: the worst of its flows is %v to the hook at %v, want taken", g.file, worst, before.Place)
		}
	}
	if carriers == 0 {
		t.Fatal("no testdata/carrier-*.txtar")
	}
}

func TestGuardJudges(t *testing.T) {
	t.Parallel()
	h := Hook{
		Place: Place{Table: 253, Reply: 252, Mark: Mark{"reg10", 31}}, Dye: 9, Expect: true,
		Ports: []Port{{"tap1", 1, Instance}, {"vx", 2, Tunnel}},
	}
	h.Stain.TOS, h.Stain.Port = 92, 11
	g := h.Guard()
	for _, f := range h.Flows() {
		f.Priority = 0 // as told
		for e, want := range map[Event]Disturbance{Added: Harmless, Modified: Harmless, Deleted: Wiped} {
			if d := g.Judge(Change{e, f}); d != want {
				t.Errorf("event %d of %v: %v, want %v", e, f, d, want)
			}
		}
	}
	for _, tt := range []struct {
		line string
		want Disturbance
	}{
		{"event=DELETED reason=delete table=0 cookie=0x4479655400000700 tcp,in_port=1 actions=drop", Harmless}, // was disarmed
		{"event=DELETED reason=idle table=252 cookie=0x4479655400000800 ip,nw_src=10.0.0.1 actions=drop", Harmless},
		{"event=DELETED reason=delete table=9 cookie=0x1 reg10=0x80000000/0x80000000 actions=drop", Harmless},
		{"event=ADDED table=9 cookie=0x1 reg10=0/0x80000000 actions=drop", Taken},
		{"event=ADDED table=9 cookie=0x1 reg10=0/0x40000000 actions=drop", Harmless},
		{"event=MODIFIED table=253 cookie=0x1 in_port=2 actions=drop", Taken}, // in the place of ours, maybe
		{"event=ADDED table=9 cookie=0x1 actions=resubmit(,252)", Taken},
		{"event=ADDED table=9 cookie=0x1 actions=group:1", Doubtful},
		{"event=ADDED table=0 cookie=0x1 actions=NORMAL", Doubtful},
		{"event=ADDED table=0 cookie=0x1 arp,in_port=1 actions=NORMAL", Harmless},
		{"event=ADDED table=0 cookie=0x1 in_port=9 actions=NORMAL", Doubtful},
		{"event=ADDED table=0 cookie=0x1 udp,in_port=1 actions=NORMAL", Harmless},
		{"event=ADDED table=0 cookie=0x1 tcp,in_port=1,nw_tos=0,tp_src=11,tp_dst=11,tcp_flags=+syn+ack actions=NORMAL", Doubtful}, // if that port's are armed
		{"event=ADDED table=0 cookie=0x1 tcp,in_port=1,nw_tos=0,tp_dst=12 actions=NORMAL", Harmless},
	} {
		c, ok, err := ParseChange(tt.line)
		if !ok || err != nil {
			t.Fatalf("%q: %v", tt.line, err)
		}
		if d := g.Judge(c); d != tt.want {
			t.Errorf("%s: %v, want %v", tt.line, d, tt.want)
		}
	}
}

func BenchmarkJudge(b *testing.B) {
	h := Hook{Place: Place{Table: 253, Reply: 252, Mark: Mark{"reg10", 31}}, Dye: 9, Ports: []Port{{"tap1", 1, Instance}}}
	g := h.Guard()
	const line = " event=ADDED table=15 cookie=0x5e11a006 ip,reg0=0x1/0x1,metadata=0x1 actions=ct(table=16,zone=NXM_NX_REG13[0..15])"
	b.ReportAllocs()
	for b.Loop() {
		c, _, err := ParseChange(line)
		if err != nil || g.Judge(c) != Harmless {
			b.Fatal(c, err)
		}
	}
}
