package infer

import "fmt"

// Place is where on its way a packet was lost.
type Place uint8

// Places, in the order of the way. On one host there is no tunnel: after Source comes Delivery.
const (
	Entry       Place = iota + 1 // the sender's port
	Source                       // the switch of the sender's host
	Between                      // from there to the receiver's host
	Destination                  // the switch of the receiver's host, as it comes in
	Delivery                     // from there to the receiver's port
	Guest                        // the receiving guest
)

// Kind of component; of those that explain the same, the first is named.
type Kind uint8

// Kinds.
const (
	// Flow drops what meets it.
	Flow Kind = iota + 1
	// Rules are the security rules of an instance, for what it receives or sends.
	Rules
	// GuestOf is the guest itself.
	GuestOf
	// Path is what one instance sends to another.
	Path
	// Reach is what a host sends to one instance.
	Reach
	// Port is that of an instance.
	Port
	// Route is what a host's router sends into a network.
	Route
	// TunnelNetwork is what of one network passes between two hosts.
	TunnelNetwork
	// Tunnel is all that passes between two hosts.
	Tunnel
	// HostNetwork is what of one network passes between a host and others.
	HostNetwork
	// Switch is that of a host, whatever passes it.
	Switch
	// Host is all that passes between a host and others.
	Host
	// RackOf is all that passes between the hosts of a rack and others.
	RackOf
	// Racks is all that passes between two racks.
	Racks
	// RackSwitch is all that passes between the hosts of a rack and any other, within the rack too.
	RackSwitch
	// Network is all of one network between hosts.
	Network
	// Underlay is all that passes between hosts.
	Underlay
	// Pair is that of source and destination: nothing else explains it.
	Pair
)

// Way of the packets that a component passes.
type Way uint8

// Ways. In is what comes to it, or to Host from Peer, or to Rack from PeerRack; Out the other way.
const (
	Both Way = iota
	In
	Out
)

// Component is a part of the network, as far as packets of some sort pass it. Which fields are set
// depends on the kind.
type Component struct {
	Kind       Kind
	Way        Way
	Host, Peer string
	Network    string
	// Instance and Other are as the caller names them.
	Instance, Other string
	// Flow is as the caller names it.
	Flow string
	// Rack and PeerRack are the same only within what one call returns.
	Rack, PeerRack *Rack
}

// String names it for people.
func (c Component) String() string {
	to := map[Way]string{In: "to ", Out: "from "}[c.Way]
	switch c.Kind {
	case Flow:
		return c.Flow
	case Rules:
		return "the security rules for what is sent " + to + c.Instance
	case GuestOf:
		return "the guest of " + c.Instance
	case Path:
		return c.Instance + " → " + c.Other
	case Reach:
		return fmt.Sprintf("%s, as %s sends to it", c.Instance, c.Host)
	case Port:
		if to == "" {
			return "instance " + c.Instance
		}
		return "what is sent " + to + c.Instance
	case Route:
		return fmt.Sprintf("the router on %s, to network %s", c.Host, c.Network)
	case TunnelNetwork:
		return fmt.Sprintf("the tunnel %s for network %s", c.tunnel(), c.Network)
	case Tunnel:
		return "the tunnel " + c.tunnel()
	case HostNetwork:
		if to == "" {
			return fmt.Sprintf("network %s on %s", c.Network, c.Host)
		}
		return fmt.Sprintf("what of network %s is sent %s%s", c.Network, to, c.Host)
	case Switch:
		return "the switch of " + c.Host + map[Way]string{In: ", for what it receives", Out: ", for what its instances send"}[c.Way]
	case Host:
		return fmt.Sprintf(map[Way]string{Both: "host %s", In: "what other hosts send to %s", Out: "what %s sends to other hosts"}[c.Way], c.Host)
	case RackOf:
		return fmt.Sprintf(map[Way]string{Both: "%s", In: "what other hosts send to %s", Out: "what %s sends to other hosts"}[c.Way], c.Rack)
	case Racks:
		return fmt.Sprintf(map[Way]string{Both: "what passes between %s and %s", Out: "what %s sends to %s"}[c.Way], c.Rack, c.PeerRack)
	case RackSwitch:
		return "the switch of " + c.Rack.String()
	case Network:
		return "network " + c.Network + " between hosts"
	case Underlay:
		return "all tunnels"
	case Pair:
		return c.Instance + " → " + c.Other
	}
	return "nothing"
}

func (c Component) tunnel() string {
	if c.Way == Both {
		return c.Host + " ↔ " + c.Peer
	}
	return c.Host + " → " + c.Peer
}

// passage is a component that a packet passes, from its first to its last place on the way.
type passage struct {
	c           Component
	first, last Place
}

// leg is a packet's way from one end to another.
type leg struct {
	from, to End
	answer   bool
}

// passages appends what the packet passes, racks apart, in no order.
func (l leg) passages(ps []passage) []passage {
	s, r := l.from, l.to
	add := func(c Component, first, last Place) { ps = append(ps, passage{c, first, last}) }
	for _, way := range []Way{Both, Out} {
		add(Component{Kind: Port, Way: way, Instance: s.Instance}, Entry, Source)
	}
	for _, way := range []Way{Both, In} {
		add(Component{Kind: Port, Way: way, Instance: r.Instance}, Between, Delivery)
	}
	add(Component{Kind: GuestOf, Instance: r.Instance}, Guest, Guest)
	if l.answer { // whether the guest takes it nobody sees
		add(Component{Kind: Path, Instance: s.Instance, Other: r.Instance}, Entry, Delivery)
	} else { // answers pass where connections do that were let in
		add(Component{Kind: Path, Instance: s.Instance, Other: r.Instance}, Entry, Guest)
		add(Component{Kind: Rules, Way: Out, Instance: s.Instance}, Source, Source)
		add(Component{Kind: Rules, Way: In, Instance: r.Instance}, Delivery, Delivery)
	}
	for _, way := range []Way{Both, Out} {
		add(Component{Kind: Switch, Way: way, Host: s.Host}, Source, Source)
	}
	for _, way := range []Way{Both, In} {
		add(Component{Kind: Switch, Way: way, Host: r.Host}, Destination, Delivery)
	}
	if s.Network != r.Network {
		add(Component{Kind: Route, Host: s.Host, Network: r.Network}, Source, Source)
	}
	if s.Host == r.Host {
		return ps
	}
	add(Component{Kind: Reach, Host: s.Host, Instance: r.Instance}, Source, Between)
	for _, way := range []Way{Both, Out} {
		add(Component{Kind: Host, Way: way, Host: s.Host}, Source, Between)
		add(Component{Kind: HostNetwork, Way: way, Host: s.Host, Network: r.Network}, Source, Destination)
	}
	for _, way := range []Way{Both, In} {
		add(Component{Kind: Host, Way: way, Host: r.Host}, Between, Destination)
		add(Component{Kind: HostNetwork, Way: way, Host: r.Host, Network: r.Network}, Between, Destination)
	}
	a, b := min(s.Host, r.Host), max(s.Host, r.Host)
	add(Component{Kind: Tunnel, Host: a, Peer: b}, Between, Destination)
	add(Component{Kind: Tunnel, Way: Out, Host: s.Host, Peer: r.Host}, Between, Destination)
	add(Component{Kind: TunnelNetwork, Host: a, Peer: b, Network: r.Network}, Between, Destination)
	add(Component{Kind: TunnelNetwork, Way: Out, Host: s.Host, Peer: r.Host, Network: r.Network}, Between, Destination)
	add(Component{Kind: Network, Network: r.Network}, Source, Destination)
	add(Component{Kind: Underlay}, Between, Between)
	return ps
}
