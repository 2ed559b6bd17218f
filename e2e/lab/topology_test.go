package lab

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// goodTopology is a topology with nothing wrong; tests of refusals replace a part of it.
const goodTopology = `
name: pair
mgmt: {network: pair, ipv4-subnet: 172.20.20.0/24}
topology:
  nodes:
    a: {kind: linux, image: x, mgmt-ipv4: 172.20.20.2, binds: ["f:/run/f:ro"], exec: ["ip link"]}
    b: {kind: linux, image: x, mgmt-ipv4: 172.20.20.3, env: {K: v}, labels: {k: v}}
  links:
    - endpoints: ["a:eth1", "b:eth1"]
`

func TestParseTopology(t *testing.T) {
	tests := []struct{ old, new, want string }{
		{"", "", ""},
		{"name: pair", "name: Pair", `name: "Pair": want 1 to 32`},
		{"172.20.20.0/24", "2001:db8::/64", "mgmt: ipv4-subnet: 2001:db8::/64: want an IPv4 prefix"},
		{"kind: linux, image: x, mgmt-ipv4: 172.20.20.3", "kind: ceos, image: x, mgmt-ipv4: 172.20.20.3", `nodes: b: kind: "ceos": want linux`},
		{"172.20.20.3", "172.20.21.3", "nodes: b: mgmt-ipv4: want an address inside 172.20.20.0/24"},
		{"172.20.20.3", "172.20.20.2", "nodes: b: mgmt-ipv4: 172.20.20.2 is taken by a"},
		{"172.20.20.3", "172.20.20.1", "nodes: b: mgmt-ipv4: 172.20.20.1 is taken by the gateway"},
		{"f:/run/f:ro", "f:/usr/f", `binds: "f:/usr/f": want a target below /run`},
		{"f:/run/f:ro", "f:/run/../usr/f", "want a target below /run"},
		{"f:/run/f:ro", "f", `binds: "f": want SOURCE:TARGET`},
		{"f:/run/f:ro", "f:/run/f:z", `option "z": want ro or rw`},
		{"ip link", "sh -c 'ip link'", "want a command with neither quotes nor backslashes"},
		{`"b:eth1"`, `"c:eth1"`, `links: c:eth1: there is no node "c"`},
		{`"b:eth1"`, `"a:eth1"`, "links: a:eth1: is there twice"},
		{`"b:eth1"`, `"b:eth0"`, "links: b:eth0: want NODE:INTERFACE, and not eth0"},
		{`, "b:eth1"`, "", "want two endpoints"},
		{`["a:eth1", "b:eth1"]`, `["a:eth1", "b:eth1"], mtu: 100`, "did not find expected"},
		{"    - endpoints:", "    - mtu: 100\n      endpoints:", "mtu: 100: want 576 to 65535"},
		{"kind: linux, image: x, mgmt-ipv4: 172.20.20.3", "kind: linux, cpu: 1, mgmt-ipv4: 172.20.20.3", "field cpu not found"},
		{"topology:\n  nodes:\n    a:", "topology:\n  kinds: {}\n  nodes:\n    a:", "field kinds not found"},
	}
	for _, tt := range tests {
		if !strings.Contains(goodTopology, tt.old) {
			t.Errorf("%q is not in the topology", tt.old)
		}
		top, err := ParseTopology([]byte(strings.Replace(goodTopology, tt.old, tt.new, 1)))
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("ParseTopology: %v", err)
		case tt.want == "" && top.Body.Links[0].MTU != 9500:
			t.Errorf("mtu %d, want containerlab's 9500", top.Body.Links[0].MTU)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%q for %q: %v, want %q", tt.new, tt.old, err, tt.want)
		}
	}
}

// embedded loads a topology that comes with the binary, without raising it.
func embedded(t *testing.T, name string) *Lab {
	t.Helper()
	files, err := fs.Sub(topologies, "topologies/"+name)
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{state: &state{Name: name}}
	if err := l.load(files, name); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestTopologies checks those that come with the binary: each host of the overlay is a node
// with the uplink that it says, and mounts the overlay where "lab node" looks for it.
func TestTopologies(t *testing.T) {
	if len(Topologies()) == 0 {
		t.Fatal("none comes with the binary")
	}
	for _, name := range Topologies() {
		l := embedded(t, name)
		if l.topology.Name != name {
			t.Errorf("%s: is called %q", name, l.topology.Name)
		}
		w := workshop{topology: l.topology}
		for _, h := range l.Overlay().Hosts {
			node, ok := l.topology.Body.Nodes[h.Name]
			if peer, _ := w.peer(h.Name, h.Uplink); !ok || peer == "" {
				t.Errorf("%s: host %s: no node, or no link at %s", name, h.Name, h.Uplink)
			}
			if len(node.Binds) != 1 || node.Binds[0] != "overlay.yaml:"+OverlayPath+":ro" {
				t.Errorf("%s: host %s: binds %v", name, h.Name, node.Binds)
			}
		}
	}
}

func TestDir(t *testing.T) {
	for _, name := range []string{"", "..", "a/b", "A", "-a", strings.Repeat("a", 33)} {
		if dir, err := Dir(name); err == nil {
			t.Errorf("Dir(%q) = %s, want an error", name, dir)
		}
	}
	if dir, err := Dir("a-1"); err != nil || !strings.HasSuffix(dir, "/a-1") {
		t.Errorf("Dir(a-1) = %s, %v", dir, err)
	}
}

func TestAim(t *testing.T) {
	l := embedded(t, DefaultName)
	for _, k := range BreakKinds() {
		l := embedded(t, k.Topology)
		if _, err := l.TruthOf(TCP4, k.Name, ""); err != nil {
			t.Errorf("default target: %v", err)
		}
	}
	for _, tt := range []struct{ kind, target, want string }{
		{"nope", "", `kind "nope": want one of `},
		{"tap-off", "hv1", `there is no instance "hv1"; want INSTANCE, such as green-3`},
		{"drop-flow", "blue-1", "1 parts; want SRC:DST"},
		{"drop-flow", "blue-1:blue-1", "the two instances are one"},
		{"drop-flow", "blue-1:red-2", "the two do not reach each other anyway"},
		{"underlay-acl", "hv1:hv1", "the two hosts are one"},
		{"tunnel-remote", "hv1:hv2:stt", `there is no encap "stt"`},
		{"route-gone", "hv3:red", "the network has no router"},
		{"drop-tun", "hv1:red", "the host does not have the network"},
		{"stale-vtep", "hv1:blue-1", "the host has no tunnel to the instance"},
		{"stale-vtep", "hv1:red-1", "the host has no tunnel to the instance"},
		{"moved-withheld", "blue-1:hv2", "the lab has no routes that would tell of it"},
	} {
		if _, err := l.TruthOf(TCP4, tt.kind, tt.target); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: %v, want %q", tt.kind, tt.target, err, tt.want)
		}
	}
}

func TestAimMove(t *testing.T) {
	l := embedded(t, evpnTopology)
	for _, tt := range []struct{ kind, target, want string }{
		{"moved-withheld", "web-1:hv1", "the instance is there"},
		{"moved-withheld", "metal-1:hv1", "the instance is bare metal"},
		{"moved-withheld", "web-1:leaf3", `there is no host "leaf3"`},
		{"moved-stale-tunnel", "web-1:hv2", "2 parts; want INSTANCE:HOST:HOST"},
		{"moved-stale-tunnel", "web-1:hv2:hv1", "want a third host"},
		{"moved-stale-tunnel", "web-1:hv2:hv2", "want a third host"},
	} {
		if _, err := l.TruthOf(TCP4, tt.kind, tt.target); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: %v, want %q", tt.kind, tt.target, err, tt.want)
		}
	}
}

// TestFlowText checks that what package overlay writes is understood, part by part.
func TestFlowText(t *testing.T) {
	l := embedded(t, DefaultName)
	ports := overlay.Ports{PatchTun: 1, PatchInt: 1, Taps: map[string]int{}, Tunnels: map[string]int{}}
	for n, i := range l.Overlay().Instances {
		ports.Taps[i.Name] = 2 + n
	}
	for n, h := range l.Overlay().Hosts {
		ports.Tunnels[overlay.TunnelName(overlay.GRE, h)] = 2 + 2*n
		ports.Tunnels[overlay.TunnelName(overlay.VXLAN, h)] = 3 + 2*n
	}
	for _, h := range l.Overlay().Hosts {
		for _, text := range []string{l.Overlay().IntegrationFlows(h.Name, ports), l.Overlay().TunnelFlows(h.Name, ports)} {
			flows, err := parseFlows(text)
			if err != nil {
				t.Fatal(err)
			}
			var back strings.Builder
			seen := make(map[string]bool)
			for _, f := range flows {
				if seen[f.key()] {
					t.Errorf("%s: twice: %s", h.Name, f.key())
				}
				seen[f.key()] = true
				back.WriteString(f.String() + "\n")
			}
			if back.String() != text {
				t.Errorf("%s: flows read and written differ from\n%s", h.Name, text)
			}
		}
	}
	for _, bad := range []string{"", "table=0,priority=1,actions=drop", "cookie=1,table=x,priority=1,actions=drop", "cookie=1,table=0,priority=1"} {
		if f, err := parseFlow(bad); err == nil {
			t.Errorf("parseFlow(%q) = %v, want an error", bad, f)
		}
	}
}

func TestBundle(t *testing.T) {
	a := flow{"0x1", 0, 1, "in_port=1", "drop"}
	b := flow{"0x1", 0, 2, "", "NORMAL"}
	changed := a
	changed.Actions = "output:2"
	for _, tt := range []struct {
		name     string
		from, to []flow
		want     string
	}{
		{"nothing to do", []flow{a, b}, []flow{b, a}, ""},
		{"added", []flow{a}, []flow{a, b}, "flow add cookie=0x1,table=0,priority=2,actions=NORMAL\n"},
		{"removed, and of our cookie only", []flow{a, b}, []flow{b}, "flow delete_strict cookie=0x1/-1,table=0,priority=1,in_port=1\n"},
		{"changed in place", []flow{a}, []flow{changed}, "flow add cookie=0x1,table=0,priority=1,in_port=1,actions=output:2\n"},
	} {
		if got := bundle(tt.from, tt.to); got != tt.want {
			t.Errorf("%s:\n%swant\n%s", tt.name, got, tt.want)
		}
	}
}
