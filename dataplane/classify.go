package dataplane

import (
	"slices"

	"github.com/dyetrace/dyetrace/flows"
)

// Hookable returns the names of the bridges that probes pass: those with a port of
// any role but flows.Other. A bridge to the outside (br-ex, br-phy) is none.
func Hookable(s Snapshot) []string {
	var names []string
	for _, b := range s.Bridges {
		if slices.ContainsFunc(b.Ports, func(p Port) bool { return p.Role != flows.Other }) {
			names = append(names, b.Name)
		}
	}
	return names
}

// Classify sets Role and PeerBridge of every port of s, in place. What it reads of
// a port is Name, Type, Peer, MAC, IfaceID and Dye; of s, also Managed.
//
// A port is an instance's if a cloud's controller marked it as one. Where no port
// of the host is marked, nor would be (home-grown clouds), it is any device of the
// kernel on a bridge that has tunnels, or that is joined to one that has; and if
// there is no tunnel at all, on any bridge.
//
// A patch port is an uplink if it leads to tunnels, a downlink if it leads to
// instances; where it leads to both, a bridge with instances of its own looks
// for tunnels behind it and any other one for instances. The ports of a bridge
// that is on no way between an instance and a tunnel are all other ones.
func Classify(s *Snapshot) {
	g := newGraph(s)
	for _, n := range g.nodes {
		onTheWay := g.onTheWay(n)
		for i := range n.Ports {
			p := &n.Ports[i]
			p.PeerBridge, p.Role = "", flows.Other
			if peer := g.peer(*p); peer != nil {
				p.PeerBridge = peer.Name
			}
			if onTheWay {
				p.Role = g.role(n, *p)
			}
		}
	}
}

// graph is the bridges of a host, joined by patch ports.
type graph struct {
	nodes   map[string]*node  // by the name of the bridge
	home    map[string]string // bridge of each port
	marked  bool              // ports of instances are marked
	tunnels bool              // some port is a tunnel
}

// node is what a bridge has of its own.
type node struct {
	*Bridge
	tunnels   bool
	beside    bool // a patch port joins it to a bridge with tunnels
	instances bool
}

func newGraph(s *Snapshot) graph {
	g := graph{nodes: make(map[string]*node), home: make(map[string]string), marked: s.Managed}
	for i := range s.Bridges {
		n := &node{Bridge: &s.Bridges[i]}
		g.nodes[n.Name] = n
		for _, p := range n.Ports {
			g.home[p.Name] = n.Name
			g.marked = g.marked || p.marked()
			n.tunnels = n.tunnels || p.IsTunnel()
		}
		g.tunnels = g.tunnels || n.tunnels
	}
	for _, n := range g.nodes {
		n.beside = slices.ContainsFunc(n.Ports, func(p Port) bool {
			peer := g.peer(p)
			return peer != nil && peer.tunnels
		})
	}
	for _, n := range g.nodes {
		n.instances = slices.ContainsFunc(n.Ports, func(p Port) bool { return g.instance(n, p) })
	}
	return g
}

// marked tells whether a cloud's controller says that an instance is behind p.
// Such a port may be internal (a DHCP server's, in Neutron), but no patch port:
// OVN marks those to physical networks with an iface-id of another sense.
func (p Port) marked() bool {
	return (p.MAC != "" || p.IfaceID != "") && p.Type != "patch" && !p.IsTunnel() && !p.Dye
}

// plain tells whether p is a device that an instance, or a cable, may be behind.
func (p Port) plain() bool {
	return p.Type != "internal" && p.Type != "patch" && !p.IsTunnel()
}

// peer returns the bridge at the other end of a patch port, if that end agrees that
// it is; else nil.
func (g graph) peer(p Port) *node {
	n := g.nodes[g.home[p.Peer]]
	if p.Type != "patch" || n == nil {
		return nil
	}
	if other, _ := n.Port(p.Peer); other.Type != "patch" || other.Peer != p.Name {
		return nil
	}
	return n
}

// instance tells whether p, of bridge n, is an instance's port.
func (g graph) instance(n *node, p Port) bool {
	if g.marked {
		return p.marked()
	}
	return p.plain() && (n.tunnels || n.beside || !g.tunnels)
}

// onTheWay tells whether n can lie between an instance and a tunnel: it has either,
// or patch ports towards both. So that a host whose last instance just left is
// still seen, it also does if it has nothing but patch ports, one of them to a
// bridge that has tunnels and no instance.
func (g graph) onTheWay(n *node) bool {
	if n.tunnels || n.instances {
		return true
	}
	var up, down, waiting bool
	for _, p := range n.Ports {
		toTunnels, toInstances := g.reach(n, p)
		up = up || toTunnels && !toInstances
		down = down || toInstances && !toTunnels
		peer := g.peer(p)
		waiting = waiting || peer != nil && peer.tunnels && !peer.instances
	}
	return up && down || waiting && !slices.ContainsFunc(n.Ports, Port.plain)
}

func (g graph) role(n *node, p Port) flows.Role {
	if p.IsTunnel() {
		return flows.Tunnel
	}
	if g.instance(n, p) {
		return flows.Instance
	}
	switch toTunnels, toInstances := g.reach(n, p); {
	case toTunnels && (!toInstances || n.instances):
		if n.tunnels { // tunnels on both sides: what is behind p is not ours to reach
			return flows.Other
		}
		return flows.Uplink
	case toInstances && (n.tunnels || !n.instances):
		return flows.Downlink
	}
	// A bridge with tunnels takes even what has no instance yet for its downlink,
	// for the same reason as onTheWay.
	if peer := g.peer(p); n.tunnels && !n.instances && peer != nil && g.onTheWay(peer) {
		return flows.Downlink
	}
	return flows.Other
}

// reach tells what can be reached by leaving n through patch port p, and never
// through n again.
func (g graph) reach(n *node, p Port) (tunnels, instances bool) {
	seen := map[*node]bool{nil: true, n: true}
	for next := []*node{g.peer(p)}; len(next) > 0; next = next[1:] {
		at := next[0]
		if seen[at] {
			continue
		}
		seen[at] = true
		tunnels = tunnels || at.tunnels
		instances = instances || at.instances
		for _, q := range at.Ports {
			next = append(next, g.peer(q))
		}
	}
	return tunnels, instances
}
