package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Priorities of access control lists, as Neutron has them: what no rule of a group lets pass, the
// group of all ports drops.
const (
	aclDrop  = 1001
	aclAllow = 1002
)

// dropGroup is the port group of all instances.
const dropGroup = "neutron_pg_drop"

// Northbound returns the commands of ovn-nbctl(8), to be given at once, that describe the overlay to
// OVN as Neutron would: a logical switch for each network, with the segmentation id as its tunnel
// key, a logical port named by its UUID for each instance, with port security; a distributed logical
// router; and access control lists by which only members of the same group reach an instance. Who
// can reach each other is a group.
func (s *Spec) Northbound() [][]string {
	var all [][]string
	add := func(command ...string) { all = append(all, command) }
	routers := make(map[string]bool)
	for _, n := range s.Networks {
		add("ls-add", n.Name)
		add("set", "Logical_Switch", n.Name, fmt.Sprintf("other_config:requested-tnl-key=%d", n.Segmentation))
		if n.Router == "" {
			continue
		}
		if !routers[n.Router] {
			routers[n.Router] = true
			add("lr-add", n.Router)
		}
		all = append(all, n.RouterPort()...)
	}
	groups := make(map[string][]string)
	var everyone []string
	for _, i := range s.Instances {
		n, _ := s.Network(i.Network)
		all = append(all, s.LogicalPort(i)...)
		groups[n.Group()] = append(groups[n.Group()], i.PortID())
		everyone = append(everyone, i.PortID())
	}
	add(append([]string{"pg-add", dropGroup}, everyone...)...)
	for direction, port := range directions() {
		add("--type=port-group", "acl-add", dropGroup, direction, fmt.Sprint(aclDrop),
			fmt.Sprintf("%s == @%s && ip", port, dropGroup), "drop")
	}
	for _, n := range s.Networks {
		group := n.Group()
		if groups[group] == nil {
			continue
		}
		add(append([]string{"pg-add", group}, groups[group]...)...)
		groups[group] = nil
		for _, ip := range []string{"ip4", "ip6"} {
			allow := func(direction, match string) {
				add("--type=port-group", "acl-add", group, direction, fmt.Sprint(aclAllow), match, "allow-related")
			}
			allow("from-lport", fmt.Sprintf("inport == @%s && %s", group, ip))
			allow("to-lport", fmt.Sprintf("outport == @%[1]s && %[2]s && %[2]s.src == $%[1]s_%[2]s", group, ip))
		}
	}
	return all
}

// directions yields OVN's names of both directions of access control lists, each with its port's.
func directions() func(yield func(direction, port string) bool) {
	return func(yield func(string, string) bool) {
		_ = yield("from-lport", "inport") && yield("to-lport", "outport")
	}
}

// LogicalPort returns the commands that make the instance's logical port, but for its groups. They
// may be given twice.
func (s *Spec) LogicalPort(i Instance) [][]string {
	return [][]string{
		{"--may-exist", "lsp-add", i.Network, i.PortID()},
		{"lsp-set-addresses", i.PortID(), i.LogicalAddresses()},
		{"lsp-set-port-security", i.PortID(), i.PortSecurity()},
		{"lsp-set-options", i.PortID(), fmt.Sprintf("requested-tnl-key=%d", s.PortKey(i))},
	}
}

// firstPortKey leaves room for the ports of routers, which count from 1.
const firstPortKey = 101

// PortKey returns the tunnel key of the instance's logical port.
func (s *Spec) PortKey(i Instance) int {
	return firstPortKey + slices.IndexFunc(s.Instances, func(o Instance) bool { return o.Name == i.Name })
}

// Groups returns the names of the port groups that the instance's logical port is in.
func (s *Spec) Groups(i Instance) []string {
	n, _ := s.Network(i.Network)
	return []string{dropGroup, n.Group()}
}

// RouterPort returns the commands that join the network to its router. They may be given twice.
func (n Network) RouterPort() [][]string {
	port, peer := n.RouterPortNames()
	var prefixes []string
	for _, v := range Versions() {
		if n.Has(v) {
			prefixes = append(prefixes, netip.PrefixFrom(n.Gateway.IP.Of(v), n.CIDR.Of(v).Bits()).String())
		}
	}
	return [][]string{
		append([]string{"--may-exist", "lrp-add", n.Router, port, n.Gateway.MAC.String()}, prefixes...),
		{"--may-exist", "lsp-add", n.Name, peer},
		{"lsp-set-type", peer, "router"},
		{"lsp-set-addresses", peer, "router"},
		{"lsp-set-options", peer, "router-port=" + port},
	}
}

// RouterPortNames returns the names of the router's port to the network, and of the network's to it.
func (n Network) RouterPortNames() (port, peer string) {
	return n.Router + "-" + n.Name, n.Name + "-" + n.Router
}

// Group returns the name of the port group of the network's instances.
func (n Network) Group() string {
	if n.Router != "" {
		return "pg_" + n.Router
	}
	return "pg_" + n.Name
}

// LogicalAddresses returns the addresses of the instance's logical port. OVN answers for them, and
// has them in the set of its group.
func (i Instance) LogicalAddresses() string {
	return strings.Join(append([]string{i.MAC.String()}, texts(append(i.Addresses(V4), i.Addresses(V6)...))...), " ")
}

// PortSecurity returns the addresses that the instance may send from. OVN adds the link-local one.
func (i Instance) PortSecurity() string {
	return strings.Join(append([]string{i.MAC.String()}, texts(i.IP.All())...), " ")
}

func texts(addrs []netip.Addr) []string {
	var all []string
	for _, a := range addrs {
		all = append(all, a.String())
	}
	return all
}
