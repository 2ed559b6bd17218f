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
// a port is Name, Type, Peer, MAC, IfaceID and Dye.
//
// A port is an instance's if a cloud's controller marked it as one. Where no port
// of the host is marked (home-grown clouds), it is any device of the kernel on a
// bridge that has tunnels, or that is joined to one that has; and if there is
// no tunnel at all, on any bridge.
//
// A patch port is an uplink if it leads to tunnels, a downlink if it leads to
// instances; where it leads to both, a bridge with instances of its own looks
// for tunnels behind it and any other one for instances. The ports of a bridge
// that is on no way between an instance and a tunnel are all other ones.
func Classify(s *Snapshot) {
	g := newGraph(s)
	for i := range s.Bridges {
		b := &s.Bridges[i]
		for j := range b.Ports {
			b.Ports[j].PeerBridge = g.peerBridge(b.Ports[j])
		}
	}
	for i := range s.Bridges {
		b := &s.Bridges[i]
		onTheWay := g.onTheWay(b)
		for j := range b.Ports {
			p := &b.Ports[j]
			p.Role = flows.Other
			if onTheWay {
				p.Role = g.role(b, *p)
			}
		}
	}
}

// graph is the bridges of a host, joined by patch ports.
type graph struct {
	bridges map[string]*Bridge
	home    map[string]string // bridge of each port
	marked  bool              // some port is marked as an instance's
	tunnels bool              // some port is a tunnel
}

func newGraph(s *Snapshot) graph {
	g := graph{bridges: make(map[string]*Bridge), home: make(map[string]string)}
	for i := range s.Bridges {
		b := &s.Bridges[i]
		g.bridges[b.Name] = b
		for _, p := range b.Ports {
			g.home[p.Name] = b.Name
			g.marked = g.marked || p.marked()
			g.tunnels = g.tunnels || p.IsTunnel()
		}
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

// peerBridge returns the bridge at the other end of a patch port, if its other end
// agrees that it is.
func (g graph) peerBridge(p Port) string {
	if p.Type != "patch" {
		return ""
	}
	name, ok := g.home[p.Peer]
	if !ok {
		return ""
	}
	other, _ := g.bridges[name].Port(p.Peer)
	if other.Type != "patch" || other.Peer != p.Name {
		return ""
	}
	return name
}

// instance tells whether p, of bridge b, is an instance's port.
func (g graph) instance(b *Bridge, p Port) bool {
	switch {
	case g.marked:
		return p.marked()
	case !p.plain():
		return false
	case !g.tunnels || b.hasTunnel():
		return true
	}
	return g.besideTunnels(b)
}

func (b *Bridge) hasTunnel() bool { return slices.ContainsFunc(b.Ports, Port.IsTunnel) }

func (g graph) hasInstance(b *Bridge) bool {
	return slices.ContainsFunc(b.Ports, func(p Port) bool { return g.instance(b, p) })
}

// besideTunnels tells whether a patch port joins b to a bridge with tunnels.
func (g graph) besideTunnels(b *Bridge) bool {
	return slices.ContainsFunc(b.Ports, func(p Port) bool {
		peer := g.bridges[g.peerBridge(p)]
		return peer != nil && peer.hasTunnel()
	})
}

// onTheWay tells whether b can lie between an instance and a tunnel: it has either,
// or patch ports towards both. So that a host whose last instance just left is
// still seen, it also does if it has nothing but patch ports, one of them to a
// bridge that has tunnels and no instance.
func (g graph) onTheWay(b *Bridge) bool {
	if b.hasTunnel() || g.hasInstance(b) {
		return true
	}
	var up, down, waiting bool
	for _, p := range b.Ports {
		toTunnels, toInstances := g.reach(b, p)
		up = up || toTunnels && !toInstances
		down = down || toInstances && !toTunnels
		peer := g.bridges[g.peerBridge(p)]
		waiting = waiting || peer != nil && peer.hasTunnel() && !g.hasInstance(peer)
	}
	return up && down || waiting && !slices.ContainsFunc(b.Ports, Port.plain)
}

func (g graph) role(b *Bridge, p Port) flows.Role {
	if p.IsTunnel() {
		return flows.Tunnel
	}
	if g.instance(b, p) {
		return flows.Instance
	}
	switch toTunnels, toInstances := g.reach(b, p); {
	case toTunnels && (!toInstances || g.hasInstance(b)):
		if b.hasTunnel() { // tunnels on both sides: what is behind p is not ours to reach
			return flows.Other
		}
		return flows.Uplink
	case toInstances && (b.hasTunnel() || !g.hasInstance(b)):
		return flows.Downlink
	}
	// A bridge with tunnels takes even what has no instance yet for its downlink,
	// for the same reason as onTheWay.
	peer := g.bridges[g.peerBridge(p)]
	if b.hasTunnel() && !g.hasInstance(b) && peer != nil && g.onTheWay(peer) {
		return flows.Downlink
	}
	return flows.Other
}

// reach tells what can be reached by leaving b through patch port p, and never
// through b again.
func (g graph) reach(b *Bridge, p Port) (tunnels, instances bool) {
	seen := map[string]bool{b.Name: true}
	next := []string{g.peerBridge(p)}
	for len(next) > 0 {
		name := next[0]
		next = next[1:]
		bridge := g.bridges[name]
		if bridge == nil || seen[name] {
			continue
		}
		seen[name] = true
		tunnels = tunnels || bridge.hasTunnel()
		instances = instances || g.hasInstance(bridge)
		for _, q := range bridge.Ports {
			next = append(next, g.peerBridge(q))
		}
	}
	return tunnels, instances
}
