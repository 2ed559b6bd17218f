package ovs

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

// allForms is a hook that has flows of every form there is.
func allForms(lease uint16) []flows.Flow {
	h := flows.Hook{
		Place: flows.Place{Table: 200, Reply: 201, Mark: flows.Mark{Field: "reg10", Bit: 31}},
		Stain: stain.Default(), Dye: 40, Answers: []uint16{7, 8}, Expect: true, Lease: lease,
	}
	for n, role := range []flows.Role{flows.Other, flows.Instance, flows.Tunnel, flows.Downlink, flows.Uplink} {
		h.Ports = append(h.Ports, flows.Port{OFPort: uint16(n + 1), Role: role})
	}
	h.Ports = append(h.Ports, flows.Port{OFPort: 65534, Role: flows.Other})
	list := h.Flows()
	h.Expect = false
	for _, f := range h.Flows() { // where replies are not expected, a request's flow does something else
		if !slices.ContainsFunc(list, func(g flows.Flow) bool {
			return g.Table == f.Table && g.Priority == f.Priority && g.Match == f.Match && g.Actions == f.Actions
		}) {
			f.Table++
			list = append(list, f)
		}
	}
	return list
}

// TestDumpOurs has the same flows said by the switch and by ovs-ofctl, in every version of OpenFlow: a hook of all forms,
// what it has learned, its counters. What was said once is known without a start of ovs-ofctl. It is not parallel:
// it takes away the PATH.
func TestDumpOurs(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	for _, protocols := range []string{"[]", "OpenFlow13", "OpenFlow14", "OpenFlow15", "OpenFlow10,OpenFlow13", "OpenFlow10,OpenFlow12"} {
		t.Run(protocols, func(t *testing.T) {
			bridge := addBridge(t)
			addForeign(t, bridge)
			hook := allForms(600)
			if err := s.Apply(ctx, bridge, hook, nil); err != nil {
				t.Fatal(err)
			}
			vsctl(t, "set", "bridge", bridge, "protocols="+protocols)
			same := func() (list []flows.Flow) {
				t.Helper()
				want, err := s.dumpOurs(ctx, bridge)
				if err != nil {
					t.Fatal(err)
				}
				list = dumpOurs(t, s, bridge)
				if diff := cmp.Diff(want, list); diff != "" || len(list) < len(hook) {
					t.Fatalf("%d flows of %d (-ovs-ofctl +ours):\n%s", len(list), len(hook), diff)
				}
				return list
			}
			if list := same(); slices.ContainsFunc(list, func(f flows.Flow) bool { return f.Packets > 0 }) {
				t.Errorf("packets before there were any: %s", flows.Format(list))
			}
			for _, p := range []string{stainedPacket(t), stainedBy(t, stain.ICMP)} {
				ofctl(t, "packet-out", bridge, "in_port=7,packet="+p+",actions=TABLE")
			}
			learned := false
			for _, f := range same() {
				learned = learned || f.Table == 201 && f.Match != ""
			}
			if !learned {
				t.Error("the hook has learned nothing")
			}
			ofctl(t, "packet-out", bridge, "in_port=7,packet="+stainedPacket(t)+",actions=TABLE")
			want := same()
			if protocols == "OpenFlow10,OpenFlow12" {
				return
			}
			t.Setenv("PATH", "")
			if diff := cmp.Diff(want, dumpOurs(t, s, bridge)); diff != "" {
				t.Errorf("without ovs-ofctl (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDumpOursManyParts has so many flows that a switch says them in several messages.
func TestDumpOursManyParts(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	var b strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&b, "cookie=%#x,table=9,priority=%d,ip,nw_dst=10.0.%d.%d,actions=drop\n", flows.Cookie, i, i>>8, i&255)
	}
	addFlows(t, bridge, b.String())
	want, err := s.dumpOurs(t.Context(), bridge)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if diff := cmp.Diff(want, dumpOurs(t, s, bridge)); diff != "" || len(want) != 3000 {
			t.Errorf("%d flows (-ovs-ofctl +ours):\n%s", len(want), diff)
		}
	}
	replies, err := s.askOpenFlow(t.Context(), bridge, func(version uint8) []byte { return appendDumpOurs(nil, version) })
	if err != nil || len(replies) < 2 {
		t.Errorf("%d messages (%v): the test tests nothing", len(replies), err)
	}
}

// TestDumpOursOfAnother: by a connection of before, nothing is said of the bridge of before, whether it is the bridge
// that is another one or the switch; and one that stood still, once it goes on, says how it is then. It is
// not parallel: the others need the switch.
func TestDumpOursOfAnother(t *testing.T) {
	s := open(t)
	bridge := addBridge(t)
	ours := func(want int, what string) {
		t.Helper()
		if list := dumpOurs(t, s, bridge); len(list) != want {
			t.Errorf("%s: %d flows, want %d:\n%s", what, len(list), want, flows.Format(list))
		}
	}
	hook := allForms(0)
	apply := func() {
		t.Helper()
		if err := s.Apply(t.Context(), bridge, hook, nil); err != nil {
			t.Fatal(err)
		}
		ours(len(hook), "a hook")
	}
	apply()
	vsctl(t, "del-br", bridge)
	vsctl(t, "add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev")
	ours(0, "another bridge")
	apply()

	stop := func(sig syscall.Signal) {
		if err := vswitchd.cmd.Process.Signal(sig); err != nil {
			t.Error(err)
		}
	}
	stop(syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	_, err := s.DumpOurs(ctx, bridge)
	cancel()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a switch that stands still: %v, want that time is up", err)
	}
	gone := exec.Command("ovs-ofctl", "del-flows", bridge, fmt.Sprintf("cookie=%#x/%#x", flows.Cookie, flows.CookieMask))
	if err := gone.Start(); err != nil {
		t.Fatal(err)
	}
	stop(syscall.SIGCONT)
	if err := gone.Wait(); err != nil {
		t.Fatal(err)
	}
	ours(0, "a switch that goes on")
	apply()

	vswitchd.kill(t)
	if list, err := s.DumpOurs(t.Context(), bridge); err == nil || !strings.Contains(err.Error(), bridge) {
		t.Errorf("no switch: %d flows, %v", len(list), err)
	}
	vswitchd.start(t)
	poll(t, "the bridge", func() bool { return exec.Command("ovs-ofctl", "show", bridge).Run() == nil })
	ours(0, "another switch")
	apply()
}

// goldenReplies are of Open vSwitch 3.1: two flows each, of which the first has had a packet.
var goldenReplies = []string{
	"041300c0000000010001000000000000" +
		"00500000000000000121eac0800000000000000000000000447965540000020100000000000000010000000000000036" +
		"0001001b80000a020800800014010600011508000000008000000000000000000060c800000000000121eac0012c0000003c0000000000004479655400000401" +
		"000000000000000000000000000000000001001280000004000000" +
		"0180000a0288470000000000000004001800000000ffff001000002320000efff800000000",
	"051300c0000000010001000000000000" +
		"005000000000000002625a0080000000000000000000000044796554000002010000000000000001000000000000003600" +
		"01001b80000a020800800014010600011508000000008000000000000000000060c8000000000002625a00012c0000003c0000000000004479655400000401" +
		"000000000000000000000000000000000001001280000004000000" +
		"0180000a0288470000000000000004001800000000ffff001000002320000efff800000000",
	"06130108000000010001000000000000" +
		"0078000000008000000000000000000044796554000002010001002380000a020800800014010680010b10000000000000000080000000000000000000000000" +
		"000000348002000800000000015ef3c080020208000000000000000080020808000000000000000180020a0800000000000000360000000000800000c800012c" +
		"0000003c00000000447965540000040100010012800000040000000180000a028847000000000000000000348002000800000000015ef3c08002020800000000" +
		"0000000080020808000000000000000080020a080000000000000000000000000004001800000000ffff001000002320000efff800000000",
}

// TestFlowReply takes apart what a switch answered once: which flow had how many packets, and nothing of how old it is in
// what it is known by.
func TestFlowReply(t *testing.T) {
	t.Parallel()
	for _, text := range goldenReplies {
		m, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		list, more, err := parseFlowReply(m)
		if err != nil || more || len(list) != 2 || list[0].packets != 1 || list[1].packets != 0 {
			t.Fatalf("%+v, %v of %s", list, err, text)
		}
		older := bytes.Clone(m)
		age := map[byte]int{4: 4, 5: 4, 6: 24 + 40 + 4 + 4}[m[0]] // of the first flow, in seconds
		older[ofMultipart+age+3]++
		if again, _, err := parseFlowReply(older); err != nil || !slices.Equal(again, list) {
			t.Errorf("a second later: %+v, %v; was %+v", again, err, list)
		}
		for i := ofMultipart; i < len(m); i++ {
			if short, _, err := parseFlowReply(m[:i]); err == nil && len(short) != min(1, i-ofMultipart) {
				t.Errorf("%d bytes of %d: %d flows", i, len(m), len(short))
			}
		}
	}
	for _, bad := range []string{"", "041300100000000100010000000000", "04130010000000010002000000000000", "04130014000000010001000000000000" + "00000000", "0413001200000001000100000000000000ff"} {
		m, err := hex.DecodeString(bad)
		if err != nil {
			t.Fatal(err)
		}
		if list, _, err := parseFlowReply(m); err == nil {
			t.Errorf("%s: %+v, want an error", bad, list)
		}
	}
}

// FuzzFlowReply: what we take apart, ovs-ofctl counts as many flows in, with as many packets each. What only it or only we
// refuse has no flows that are known.
func FuzzFlowReply(f *testing.F) {
	for _, text := range goldenReplies {
		b, err := hex.DecodeString(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= ofHeader && len(b) <= 0xffff {
			b = bytes.Clone(b)
			b[2], b[3] = byte(len(b)>>8), byte(len(b)) // which readOpenFlow sees to
		}
		list, _, err := parseFlowReply(b)
		if err != nil {
			return
		}
		cmd := exec.Command("ovs-ofctl", "ofp-parse", "-")
		cmd.Stdin = bytes.NewReader(b)
		out, err := cmd.Output()
		if err != nil {
			return
		}
		want, err := flows.ParseDump(string(out))
		if err != nil || len(want) != len(list) {
			return // and Switch.spell has ovs-ofctl ask
		}
		for i, f := range want {
			if f.Packets != list[i].packets {
				t.Errorf("%d packets, ovs-ofctl prints %v, of %x", list[i].packets, f, b)
			}
		}
	})
}

// BenchmarkDumpOurs is how long it takes to read a hook's flows, beside a start of ovs-ofctl that does, and beside the least
// that a switch can be asked by OpenFlow.
func BenchmarkDumpOurs(b *testing.B) {
	s := open(b)
	bridge := addBridge(b)
	if err := s.Apply(b.Context(), bridge, allForms(0), nil); err != nil {
		b.Fatal(err)
	}
	took := make(map[string]time.Duration)
	timed := func(what string, f func() error) {
		begun := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		took[what] += time.Since(begun)
	}
	for b.Loop() {
		timed("ours", func() error { _, err := s.DumpOurs(b.Context(), bridge); return err })
		timed("ovs-ofctl", func() error { _, err := s.dumpOurs(b.Context(), bridge); return err })
		timed("barrier", func() error {
			_, err := s.askOpenFlow(b.Context(), bridge, func(uint8) []byte { return nil })
			return err
		})
	}
	for what, d := range took {
		b.ReportMetric(float64(d.Microseconds())/float64(b.N), what+"-µs/op")
	}
	b.ReportMetric(float64(took["ours"])/float64(took["ovs-ofctl"]), "ours/ovs-ofctl")
	b.ReportMetric(float64(took["ours"])/float64(took["barrier"]), "ours/barrier")
}
