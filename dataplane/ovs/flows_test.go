package ovs

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

// foreign is a pipeline with actions that a reader of dumps may not know.
const foreign = `
cookie=0x1111222233334444,table=0,priority=100,in_port=1 actions=load:0x5->NXM_NX_REG5[],resubmit(,60)
cookie=0x1111222233334444,table=0,priority=2,arp actions=NORMAL
table=10,priority=1 actions=learn(table=20,hard_timeout=300,priority=1,cookie=0x1,NXM_OF_VLAN_TCI[0..11],NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],load:0->NXM_OF_VLAN_TCI[],output:NXM_OF_IN_PORT[]),output:1
table=60,priority=90,ip,reg5=0x5 actions=ct(table=72,zone=NXM_NX_REG6[0..15])
table=72,ct_state=+new-est,ip actions=ct(commit,zone=NXM_NX_REG6[0..15],exec(load:0x1->NXM_NX_CT_MARK[])),group:1
table=72,ct_state=+inv+trk,ip actions=drop
table=94,priority=1 actions=conjunction(7,1/2)
`

// addFlows adds flows as another controller would.
func addFlows(t testing.TB, bridge, text string) {
	t.Helper()
	file := t.TempDir() + "/flows"
	writeFile(t, file, text)
	ofctl(t, "--bundle", "add-flows", bridge, file)
}

func addForeign(t testing.TB, bridge string) {
	t.Helper()
	ofctl(t, "add-group", bridge, "group_id=1,type=select,bucket=actions=load:0x1->NXM_NX_REG3[],output:1,bucket=actions=drop")
	addFlows(t, bridge, foreign)
}

var (
	statistics = regexp.MustCompile(`(duration|n_packets|n_bytes|idle_age|hard_age)=[^,]*, `)
	header     = regexp.MustCompile(`(?m)^\w+ reply.*\n`)
)

// dumpForeign returns what ovs-ofctl prints of all flows and groups that are not ours,
// but for statistics.
func dumpForeign(t testing.TB, bridge string) string {
	t.Helper()
	var kept []string
	for line := range strings.Lines(ofctl(t, "dump-flows", bridge) + ofctl(t, "dump-groups", bridge)) {
		line = statistics.ReplaceAllString(line, "")
		if !strings.Contains(line, "cookie=0x44796554") && !header.MatchString(line) {
			kept = append(kept, line)
		}
	}
	slices.Sort(kept)
	return strings.Join(kept, "")
}

// hookFor reads a bridge and returns the flows of its hook.
func hookFor(t testing.TB, s *Switch, bridge string, lease uint16) ([]flows.Flow, DyePort) {
	t.Helper()
	port, err := s.EnsureDyePort(t.Context(), bridge)
	if err != nil {
		t.Fatal(err)
	}
	awaitPort(t, s, bridge, port.Name, hasOFPort)
	have, err := s.DumpFlows(t.Context(), bridge)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := s.DumpGroups(t.Context(), bridge)
	if err != nil {
		t.Fatal(err)
	}
	found, _ := s.Snapshot().Bridge(bridge)
	b := flows.Bridge{Name: bridge, Flows: have, Groups: groups, Dye: port.OFPort, Stain: stain.Default()}
	for _, p := range found.Ports {
		b.Ports = append(b.Ports, flows.Port{Name: p.Name, OFPort: p.OFPort, Role: p.Role})
	}
	place, err := flows.Choose(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := flows.Hook{Place: place, Stain: b.Stain, Dye: b.Dye, Ports: b.Ports, Lease: lease}
	return h.Flows(), port
}

// install puts a hook on a bridge.
func install(t testing.TB, s *Switch, bridge string) ([]flows.Flow, DyePort) {
	t.Helper()
	hook, port := hookFor(t, s, bridge, 0)
	if err := s.Apply(t.Context(), bridge, hook, nil); err != nil {
		t.Fatal(err)
	}
	return hook, port
}

func dumpOurs(t testing.TB, s *Switch, bridge string) []flows.Flow {
	t.Helper()
	ours, err := s.DumpOurs(t.Context(), bridge)
	if err != nil {
		t.Fatal(err)
	}
	return ours
}

// TestApply installs and removes a hook on bridges restricted to each version of
// OpenFlow that has bundles; what is not ours stays byte for byte.
func TestApply(t *testing.T) {
	t.Parallel()
	for _, protocols := range []string{"[]", "OpenFlow13", "OpenFlow14", "OpenFlow15", "OpenFlow10,OpenFlow13", "OpenFlow13,OpenFlow15"} {
		t.Run(protocols, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			bridge := addBridge(t)
			addForeign(t, bridge)
			vsctl(t, "set", "bridge", bridge, "protocols="+protocols)
			before := dumpForeign(t, bridge)
			hook, _ := install(t, s, bridge)
			if add, del, err := flows.Diff(dumpOurs(t, s, bridge), hook); len(add)+len(del) > 0 || err != nil {
				t.Errorf("the hook is not as it was written: + %s- %s %v", flows.Format(add), flows.Format(del), err)
			}
			if diff := cmp.Diff(before, dumpForeign(t, bridge)); diff != "" {
				t.Errorf("foreign flows after Apply (-before +now):\n%s", diff)
			}
			all, err := s.DumpFlows(t.Context(), bridge)
			if err != nil || len(all) != len(hook)+8 {
				t.Errorf("DumpFlows = %d flows, %v; want %d", len(all), err, len(hook)+8)
			}
			for range 2 {
				if err := s.Apply(t.Context(), bridge, nil, hook); err != nil {
					t.Fatal(err)
				}
				if ours := dumpOurs(t, s, bridge); len(ours) != 0 {
					t.Errorf("left of ours: %s", flows.Format(ours))
				}
			}
			if err := s.RemoveDyePort(t.Context(), bridge); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, dumpForeign(t, bridge)); diff != "" {
				t.Errorf("foreign flows after removal (-before +now):\n%s", diff)
			}
		})
	}
}

// TestApplyRefused covers what leaves a bridge as it was.
func TestApplyRefused(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	addForeign(t, bridge)
	good := flows.Flow{Table: 200, Priority: 1, Match: "in_port=1", Actions: "drop", Cookie: flows.Cookie}
	foreigner := flows.Flow{Table: 72, Priority: 32768, Match: "ct_state=+inv+trk,ip", Actions: "drop"}
	change := func(f func(*flows.Flow)) flows.Flow { bad := good; f(&bad); return bad }
	tests := []struct {
		name     string
		bridge   string
		add, del []flows.Flow
		want     string
	}{
		{"no such field", bridge, []flows.Flow{good, change(func(f *flows.Flow) { f.Match = "no_such_field=1" })}, nil, "no_such_field"},
		// The text is right, the switch refuses it: the good one goes back.
		{"no such group", bridge, []flows.Flow{good, change(func(f *flows.Flow) { f.Priority, f.Actions = 2, "group:4711" })}, nil, "OFPBAC_BAD_OUT_GROUP"},
		{"not ours", bridge, []flows.Flow{good, foreigner}, nil, "cookie 0x0 is not ours"},
		{"no bridge", "nosuchbridge", []flows.Flow{good}, nil, "nosuchbridge"},
	}
	before := dumpForeign(t, bridge)
	for _, tt := range tests {
		if err := s.Apply(t.Context(), tt.bridge, tt.add, tt.del); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Apply = %v, want %s", tt.name, err, tt.want)
		}
		if ours := dumpOurs(t, s, bridge); len(ours) != 0 {
			t.Errorf("%s: left half done: %s", tt.name, flows.Format(ours))
		}
	}
	// Deleting what is not ours is no error, and does nothing.
	if err := s.Apply(t.Context(), bridge, nil, []flows.Flow{foreigner}); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, dumpForeign(t, bridge)); diff != "" {
		t.Errorf("foreign flows (-before +now):\n%s", diff)
	}
	if _, err := s.DumpFlows(t.Context(), "nosuchbridge"); err == nil || !strings.Contains(err.Error(), "nosuchbridge") {
		t.Errorf("DumpFlows of no bridge = %v", err)
	}
}

// TestNoBundles is a bridge restricted to versions without bundles: the error says so.
func TestNoBundles(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	vsctl(t, "set", "bridge", bridge, "protocols=OpenFlow10,OpenFlow12")
	await(t, s, "protocols", func(snap dataplane.Snapshot) bool {
		b, _ := snap.Bridge(bridge)
		return slices.Equal(b.Protocols, []string{"OpenFlow10", "OpenFlow12"})
	})
	err := s.Apply(t.Context(), bridge, []flows.Flow{{Table: 200, Actions: "drop", Cookie: flows.Cookie}}, nil)
	if err == nil || !strings.Contains(err.Error(), "want OpenFlow13 or later") {
		t.Errorf("Apply = %v, want that it wants OpenFlow13", err)
	}
}

// TestRenew keeps a hook beyond its lease, with its counters, and then lets it go;
// what has gone is not made again.
func TestRenew(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	addForeign(t, bridge)
	const lease = 6 // seconds
	hook, _ := hookFor(t, s, bridge, lease)
	if err := s.Apply(t.Context(), bridge, hook, nil); err != nil {
		t.Fatal(err)
	}
	ofctl(t, "packet-out", bridge, "in_port=LOCAL,packet="+stainedPacket(t)+",actions=TABLE")
	for start := time.Now(); time.Since(start) < 2*lease*time.Second; time.Sleep(lease * time.Second / 4) {
		if err := s.Renew(t.Context(), bridge, hook); err != nil {
			t.Fatal(err)
		}
		if add, _, err := flows.Diff(dumpOurs(t, s, bridge), hook); len(add) > 0 || err != nil {
			t.Fatalf("after %v: gone: %s%v", time.Since(start), flows.Format(add), err)
		}
	}
	if ours := dumpOurs(t, s, bridge); !slices.ContainsFunc(ours, func(f flows.Flow) bool { return f.Packets == 1 }) {
		t.Errorf("the packet is not in any counter:\n%s", flows.Format(ours))
	}
	poll(t, "the lease to end", func() bool { return len(dumpOurs(t, s, bridge)) == 0 })
	before := dumpForeign(t, bridge)
	if err := s.Renew(t.Context(), bridge, hook); err != nil {
		t.Error(err)
	}
	if ours := dumpOurs(t, s, bridge); len(ours) != 0 {
		t.Errorf("Renew made again: %s", flows.Format(ours))
	}
	if diff := cmp.Diff(before, dumpForeign(t, bridge)); diff != "" {
		t.Errorf("foreign flows (-before +now):\n%s", diff)
	}
}

// TestDumpGroups has groups told in every version of OpenFlow; where there are none, the switch says so by itself.
func TestDumpGroups(t *testing.T) {
	t.Parallel()
	s := open(t)
	for _, protocols := range []string{"[]", "OpenFlow13", "OpenFlow14", "OpenFlow15", "OpenFlow10,OpenFlow12"} {
		t.Run(protocols, func(t *testing.T) {
			bridge := addBridge(t)
			vsctl(t, "set", "bridge", bridge, "protocols="+protocols)
			if groups, err := s.DumpGroups(t.Context(), bridge); err != nil || groups == nil || len(groups) != 0 {
				t.Errorf("DumpGroups = %#v, %v; want none, but not nil", groups, err)
			}
			if none, err := s.hasNoGroups(t.Context(), bridge); protocols != "OpenFlow10,OpenFlow12" && (!none || err != nil) {
				t.Errorf("no groups: %v, %v", none, err)
			}
			vsctl(t, "clear", "bridge", bridge, "protocols")
			addForeign(t, bridge)
			vsctl(t, "set", "bridge", bridge, "protocols="+protocols)
			groups, err := s.DumpGroups(t.Context(), bridge)
			if err != nil || len(groups) != 1 || !strings.Contains(groups[0], "reg3") && !strings.Contains(groups[0], "REG3") {
				t.Errorf("DumpGroups = %q, %v; want the one with reg3", groups, err)
			}
		})
	}
}

// TestStainedPacketMeetsTheHookOnce counts what a packet that enters by a tap does to
// the counters: the hook takes it once, and the bridge's own flow once.
func TestStainedPacketMeetsTheHookOnce(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	ofctl(t, "del-flows", bridge)
	addFlows(t, bridge, "table=0,priority=100,tcp actions=drop\n")
	install(t, s, bridge)
	ofctl(t, "packet-out", bridge, "in_port=LOCAL,packet="+stainedPacket(t)+",actions=TABLE")
	poll(t, "the packet", func() bool {
		all, err := s.DumpFlows(t.Context(), bridge)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(all, func(f flows.Flow) bool { return !f.Ours() && f.Packets > 0 })
	})
	counts := map[string]uint64{}
	all, err := s.DumpFlows(t.Context(), bridge)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.Packets > 0 {
			counts[f.Match] = f.Packets
		}
	}
	for match, n := range counts {
		if n != 1 {
			t.Errorf("%q matched %d packets, want 1", match, n)
		}
	}
	if len(counts) != 3 {
		t.Errorf("flows that matched: %v, want the hook's two and the foreign one", counts)
	}
}

// What a switch does not take is named, flow by flow, and nothing of the rest stays. (An action that
// no Open vSwitch has stands for one that an old one lacks.)
func TestUnsupported(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	ours, _ := hookFor(t, s, bridge, 0)
	ours[2].Actions = "frobnicate(1)," + ours[2].Actions
	err := s.Apply(t.Context(), bridge, ours, nil)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "frobnicate") || strings.Contains(err.Error(), ours[0].Actions) {
		t.Errorf("Apply = %v, want an error that names the flow with frobnicate and no other", err)
	}
	if have := dumpOurs(t, s, bridge); len(have) > 0 {
		t.Errorf("refused, and there is %v", have)
	}
	vsctl(t, "set", "bridge", bridge, "protocols=OpenFlow10,OpenFlow12")
	awaitProtocols := func() bool { b, _ := s.Snapshot().Bridge(bridge); return len(b.Protocols) == 2 }
	poll(t, "the protocols", awaitProtocols)
	ours, _ = hookFor(t, s, bridge, 0)
	if err := s.Apply(t.Context(), bridge, ours, nil); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "OpenFlow13") {
		t.Errorf("Apply = %v, want an error that asks for OpenFlow13", err)
	}
	vsctl(t, "del-br", bridge)
	if err := s.Apply(t.Context(), bridge, ours, nil); err == nil || errors.Is(err, ErrUnsupported) {
		t.Errorf("Apply to no bridge = %v, want another error", err)
	}
}
