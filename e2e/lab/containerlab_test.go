package lab

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestRenumber moves the management network of every topology, and wants all of it moved and the
// rest as it was.
func TestRenumber(t *testing.T) {
	to := netip.MustParsePrefix("192.168.77.0/24")
	for _, topology := range Topologies() {
		l := &Lab{dir: t.TempDir(), state: &state{Name: topology, Topology: topology}}
		copied := filepath.Join(l.dir, "topology")
		if err := os.CopyFS(copied, os.DirFS(filepath.Join("topologies", topology))); err != nil {
			t.Fatal(err)
		}
		if err := l.load(os.DirFS(copied), topology); err != nil {
			t.Fatal(err)
		}
		before, nodes := l.topology.Mgmt.Subnet, l.topology.Body.Nodes
		if err := l.renumber(before, to); err != nil {
			t.Fatalf("%s: %v", topology, err)
		}
		for name, n := range l.topology.Body.Nodes {
			was := nodes[name]
			if !to.Contains(n.MgmtIP) || n.MgmtIP.As4()[3] != was.MgmtIP.As4()[3] || strings.Join(n.Exec, "\n") != strings.Join(was.Exec, "\n") {
				t.Errorf("%s: %s: %s became %s", topology, name, was.MgmtIP, n.MgmtIP)
			}
		}
		if evpn := l.Overlay().EVPN; evpn != nil {
			for _, r := range evpn.Reflectors {
				if r.Dials.IsValid() && r.Dials != l.topology.Body.Nodes[controllerNode].MgmtIP {
					t.Errorf("%s: %s dials %s, want the controller", topology, r.Name, r.Dials)
				}
			}
		}
		if l.topology.Mgmt.Subnet != to {
			t.Errorf("%s: subnet %s", topology, l.topology.Mgmt.Subnet)
		}
	}
}

func TestMoveAddresses(t *testing.T) {
	for _, tt := range []struct{ from, to, value, want string }{
		{"172.20.20.0/24", "172.20.21.0/24", "172.20.20.31", "172.20.21.31"},
		{"172.20.20.0/24", "172.20.21.0/24", "172.20.20.0/24", "172.20.21.0/24"},
		{"172.20.20.0/24", "172.20.21.0/24", "172.20.22.31", "172.20.22.31"},
		{"172.20.20.0/24", "172.20.21.0/24", "ping 172.20.20.31", "ping 172.20.20.31"},
		{"172.20.0.0/20", "172.20.16.0/20", "172.20.15.7", "172.20.31.7"},
		{"10.0.0.0/8", "11.0.0.0/8", "10.1.2.3", "11.1.2.3"},
		{"10.0.0.16/30", "10.0.0.20/30", "10.0.0.18", "10.0.0.22"},
	} {
		n := yaml.Node{Kind: yaml.ScalarNode, Value: tt.value}
		moveAddresses(&n, netip.MustParsePrefix(tt.from), netip.MustParsePrefix(tt.to))
		if n.Value != tt.want {
			t.Errorf("%s from %s to %s: %s, want %s", tt.value, tt.from, tt.to, n.Value, tt.want)
		}
	}
}

func TestNextSubnet(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"172.20.20.0/24", "172.20.21.0/24"}, {"172.20.255.0/24", "172.21.0.0/24"},
		{"10.0.0.16/30", "10.0.0.20/30"}, {"255.255.255.0/24", "invalid Prefix"},
	} {
		if got := nextSubnet(netip.MustParsePrefix(tt.in)).String(); got != tt.want {
			t.Errorf("behind %s: %s, want %s", tt.in, got, tt.want)
		}
	}
}

// TestDeployment wants containerlab's file to be the topology's, with no more than what a lab adds.
func TestDeployment(t *testing.T) {
	l := &Lab{dir: "/state", binary: "/bin/dyetrace", state: &state{Name: "mine", Topology: "racks"}}
	if err := l.load(os.DirFS("topologies/racks"), "racks"); err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(l.deployment())
	if err != nil {
		t.Fatal(err)
	}
	var d Topology
	if err := yaml.Unmarshal(text, &d); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if d.Name != "mine" || d.Mgmt.Network != "dyetrace-mine" || len(d.Body.Links) != len(l.topology.Body.Links) {
		t.Errorf("name %s, network %s, %d links", d.Name, d.Mgmt.Network, len(d.Body.Links))
	}
	for name, was := range l.topology.Body.Nodes {
		n := d.Body.Nodes[name]
		binds := strings.Join(append(was.Binds, "/bin/dyetrace:/run/dyetrace-lab/bin/dyetrace:ro", "/state:/state"), " ")
		if strings.Join(n.Binds, " ") != binds || n.Labels[labLabel] != "/state" || n.MgmtIP != was.MgmtIP || n.Image != was.Image ||
			strings.Join(n.Exec, "\n") != strings.Join(was.Exec, "\n") || n.Sysctls["net.ipv6.conf.default.accept_ra"] != "0" {
			t.Errorf("%s: %+v, from %+v", name, n, was)
		}
		if was.Sysctls != nil || len(was.Labels) > 0 {
			t.Errorf("%s: the lab's own topology was changed: %+v", name, was)
		}
	}
}

func TestRunnerOf(t *testing.T) {
	for _, tt := range []struct{ env, name, want string }{
		{"", "", Namespaces}, {Containerlab, "", Containerlab}, {Containerlab, Namespaces, Namespaces}, {"", "vm", ""},
	} {
		t.Setenv(RunnerEnv, tt.env)
		r, err := runnerOf(tt.name)
		if (err == nil) != (tt.want != "") || err == nil && r.name() != tt.want {
			t.Errorf("runner %q with $%s=%q: %v, %v, want %q", tt.name, RunnerEnv, tt.env, r, err, tt.want)
		}
	}
}
