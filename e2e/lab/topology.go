package lab

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// topologies holds the labs that come with the binary, one directory each.
//
//go:embed topologies
var topologies embed.FS

// defaultMTU is that of containerlab's links.
const defaultMTU = 9500

// Topology is the part of a containerlab file that this package understands
// (https://containerlab.dev/manual/topo-def-file/). Any other key is an error, so that no file
// means one thing here and another there.
type Topology struct {
	Name string `yaml:"name"`
	Mgmt Mgmt   `yaml:"mgmt"`
	Body struct {
		Nodes map[string]NodeSpec `yaml:"nodes"`
		Links []LinkSpec          `yaml:"links"`
	} `yaml:"topology"`
}

// Mgmt is the management network: every node's eth0.
type Mgmt struct {
	Network string       `yaml:"network"`
	Subnet  netip.Prefix `yaml:"ipv4-subnet"`
}

// NodeSpec is one node of a topology.
type NodeSpec struct {
	Kind   string            `yaml:"kind"`
	Image  string            `yaml:"image"` // for containerlab; a namespace runs on the host's files
	MgmtIP netip.Addr        `yaml:"mgmt-ipv4"`
	Binds  []string          `yaml:"binds"` // SOURCE:TARGET[:ro]; a relative source is beside the file
	Env    map[string]string `yaml:"env"`
	Labels map[string]string `yaml:"labels"`
	Exec   []string          `yaml:"exec"` // run in order, without a shell, once the links are there

	// Sysctls are not for topology files to give: every node has the same.
	Sysctls map[string]string `yaml:"sysctls,omitempty"`
}

// LinkSpec joins two interfaces, each NODE:INTERFACE.
type LinkSpec struct {
	Endpoints []string `yaml:"endpoints"`
	MTU       int      `yaml:"mtu"` // containerlab's 9500 if zero
}

// Topologies returns the names of the topologies that come with the binary.
func Topologies() []string {
	entries, err := fs.ReadDir(topologies, "topologies")
	if err != nil {
		panic(err) // embedded: it is there or the binary is broken
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// ParseTopology reads a containerlab file and validates it.
func ParseTopology(text []byte) (*Topology, error) {
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	dec.KnownFields(true)
	t := new(Topology)
	if err := dec.Decode(t); err != nil {
		return nil, fmt.Errorf("topology: %w", err)
	}
	if !t.Mgmt.Subnet.IsValid() {
		t.Mgmt.Subnet = netip.MustParsePrefix("172.20.20.0/24") // containerlab's default
	}
	for i := range t.Body.Links {
		if t.Body.Links[i].MTU == 0 {
			t.Body.Links[i].MTU = defaultMTU
		}
	}
	if err := t.validate(); err != nil {
		return nil, fmt.Errorf("topology %s: %w", t.Name, err)
	}
	return t, nil
}

// Nodes returns the names of the nodes in order.
func (t *Topology) Nodes() []string {
	var names []string
	for name := range t.Body.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (t *Topology) validate() error {
	var errs []error
	if !nameRE.MatchString(t.Name) {
		errs = append(errs, fmt.Errorf("name: %q: want %s", t.Name, nameRule))
	}
	if !t.Mgmt.Subnet.Addr().Is4() || t.Mgmt.Subnet.Bits() > 30 {
		errs = append(errs, fmt.Errorf("mgmt: ipv4-subnet: %s: want an IPv4 prefix of /30 or shorter", t.Mgmt.Subnet))
	}
	if len(t.Body.Nodes) == 0 {
		errs = append(errs, errors.New("topology: nodes: want at least one"))
	}
	addresses := map[netip.Addr]string{gatewayOf(t.Mgmt.Subnet): "the gateway"}
	for _, name := range t.Nodes() {
		n := t.Body.Nodes[name]
		if err := n.validate(name, t.Mgmt.Subnet); err != nil {
			errs = append(errs, fmt.Errorf("topology: nodes: %s: %w", name, err))
		}
		if other, taken := addresses[n.MgmtIP]; taken {
			errs = append(errs, fmt.Errorf("topology: nodes: %s: mgmt-ipv4: %s is taken by %s", name, n.MgmtIP, other))
		}
		addresses[n.MgmtIP] = name
	}
	return errors.Join(append(errs, t.validateLinks()...)...)
}

func (n NodeSpec) validate(name string, subnet netip.Prefix) error {
	switch {
	case !nameRE.MatchString(name):
		return fmt.Errorf("want %s as its name", nameRule)
	case name == hubName:
		return errors.New("the name is taken by the management network")
	case n.Kind != "linux":
		return fmt.Errorf("kind: %q: want linux, the only kind there is", n.Kind)
	case n.Sysctls != nil:
		return errors.New("sysctls: a lab gives them to its nodes; what one needs besides, exec can set")
	case !subnet.Contains(n.MgmtIP):
		return fmt.Errorf("mgmt-ipv4: want an address inside %s", subnet)
	}
	for _, b := range n.Binds {
		if _, err := parseBind(b, "/"); err != nil {
			return fmt.Errorf("binds: %w", err)
		}
	}
	for _, e := range n.Exec {
		if strings.TrimSpace(e) == "" || strings.ContainsAny(e, `"'\`) {
			return fmt.Errorf("exec: %q: want a command with neither quotes nor backslashes", e)
		}
	}
	return nil
}

func (t *Topology) validateLinks() []error {
	var errs []error
	seen := make(map[string]bool)
	for _, l := range t.Body.Links {
		if len(l.Endpoints) != 2 {
			errs = append(errs, fmt.Errorf("topology: links: %v: want two endpoints", l.Endpoints))
		}
		if l.MTU < 576 || l.MTU > 65535 {
			errs = append(errs, fmt.Errorf("topology: links: %v: mtu: %d: want 576 to 65535", l.Endpoints, l.MTU))
		}
		for _, e := range l.Endpoints {
			node, iface, _ := strings.Cut(e, ":")
			switch _, ok := t.Body.Nodes[node]; {
			case !ok:
				errs = append(errs, fmt.Errorf("topology: links: %s: there is no node %q", e, node))
			case iface == "" || len(iface) > 15 || iface == "eth0" || iface == "lo":
				errs = append(errs, fmt.Errorf("topology: links: %s: want NODE:INTERFACE, and not eth0 or lo", e))
			case seen[e]:
				errs = append(errs, fmt.Errorf("topology: links: %s: is there twice", e))
			}
			seen[e] = true
		}
	}
	return errs
}

// gatewayOf returns the first address of a subnet, the hub's in the management network.
func gatewayOf(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// parseBind reads SOURCE:TARGET[:ro]. A relative source is taken from dir.
func parseBind(text, dir string) (bind, error) {
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return bind{}, fmt.Errorf("%q: want SOURCE:TARGET or SOURCE:TARGET:ro", text)
	}
	b := bind{Source: parts[0], Target: path.Clean(parts[1])}
	if len(parts) == 3 && parts[2] != "ro" && parts[2] != "rw" {
		return bind{}, fmt.Errorf("%q: option %q: want ro or rw", text, parts[2])
	}
	b.ReadOnly = len(parts) == 3 && parts[2] == "ro"
	if !underTmpfs(b.Target) {
		return bind{}, fmt.Errorf("%q: want a target below %s: the rest of a node's files are the host's",
			text, strings.Join(tmpfsDirs, ", "))
	}
	if !filepath.IsAbs(b.Source) {
		b.Source = filepath.Join(dir, b.Source)
	}
	return b, nil
}

func underTmpfs(target string) bool {
	return slices.ContainsFunc(tmpfsDirs, func(dir string) bool { return strings.HasPrefix(target, dir+"/") })
}
