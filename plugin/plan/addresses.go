package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/dyetrace/dyetrace/plugin/inventory"
)

// Options say how pairs are to be probed. The zero value is IPv4 where it can be, answered by
// the guest.
type Options struct {
	// Version is what to probe over; AnyIP is IPv4 where a pair has it, else IPv6.
	Version inventory.IPVersion
	// NoTouch asks for paths on which no guest sees a probe.
	NoTouch bool
	// Routes are asked where the instances are; nil: nobody is. Now is when that is, for the
	// routes' ages, in the time zone in which to word times.
	Routes Routes
	Now    time.Time
}

func (o Options) check() error {
	switch o.Version {
	case inventory.AnyIP, inventory.IPv4, inventory.IPv6:
		return nil
	}
	return fmt.Errorf("options.ip_version: %d (want 4, 6, or 0 for either)", uint8(o.Version))
}

// families is a set of kinds of address.
type families uint8

const (
	four families = 1 << iota // IPv4
	six                       // IPv6, of the network or beyond
	link                      // IPv6, link-local
)

// familiesOf returns the kinds of address of a version.
func familiesOf(v inventory.IPVersion) families {
	switch v {
	case inventory.IPv4:
		return four
	case inventory.IPv6:
		return six | link
	}
	return four | six | link
}

// reach is by what kinds of address an instance can be met: from its own network, and from
// others of its router. It is comparable, so that instances of one reach can be counted.
type reach struct {
	network   string
	near, far families
}

func reachOf(in inventory.Instance, n inventory.Network, v inventory.IPVersion) reach {
	r := reach{network: in.Network}
	for _, a := range in.IPs {
		switch {
		case a.Is4():
			r.near |= four
		case inventory.LinkLocal(a):
			r.near |= link
		default:
			r.near |= six
		}
	}
	r.near &= familiesOf(v)
	if n.Routes(inventory.IPv4) {
		r.far |= r.near & four
	}
	if n.Routes(inventory.IPv6) {
		r.far |= r.near & six
	}
	return r
}

// meets says whether two instances, whose networks are joined, have addresses between which a
// probe could go.
func (r reach) meets(o reach) bool {
	if r.network == o.network {
		return r.near&o.near != 0
	}
	return r.far&o.far != 0
}

// addresses returns what a pair's probe goes between; ok is false where there is nothing, and
// exactly where their reaches do not meet.
func addresses(p Pair, from, to inventory.Network, v inventory.IPVersion) (src, dst netip.Addr, ok bool) {
	if v == inventory.AnyIP {
		if src, dst, ok = addresses(p, from, to, inventory.IPv4); ok {
			return src, dst, true
		}
		v = inventory.IPv6
	}
	if from.Name == to.Name {
		return neighbours(p, from, v)
	}
	src, dst = outward(p.Src, from, v), outward(p.Dst, to, v)
	return src, dst, src.IsValid() && dst.IsValid()
}

// neighbours returns two addresses of one network. Those of one prefix are best: each guest
// has the other on its link. So it has with link-local ones, but they must be so on both sides
// (RFC 6724, section 5, rule 2). Of two prefixes, it takes what the guests make of it.
func neighbours(p Pair, n inventory.Network, v inventory.IPVersion) (src, dst netip.Addr, ok bool) {
	for _, a := range p.Src.IPs {
		if !v.Is(a) || inventory.LinkLocal(a) {
			continue
		}
		for _, b := range p.Dst.IPs {
			if v.Is(b) && !inventory.LinkLocal(b) && share(n, a, b) {
				return a, b, true
			}
		}
	}
	if v == inventory.IPv6 {
		src, dst = linkLocal(p.Src), linkLocal(p.Dst)
		if src.IsValid() && dst.IsValid() {
			return src, dst, true
		}
	}
	src, dst = p.Src.Addr(v), p.Dst.Addr(v)
	ok = src.IsValid() && dst.IsValid() && !inventory.LinkLocal(src) && !inventory.LinkLocal(dst)
	return src, dst, ok
}

// outward returns the address by which an instance meets other networks: one in the prefix of
// its gateway's, else its first; zero where it has none, or the gateway no address of the version.
func outward(in inventory.Instance, n inventory.Network, v inventory.IPVersion) netip.Addr {
	first := in.Addr(v)
	if inventory.LinkLocal(first) || !n.Routes(v) {
		return netip.Addr{}
	}
	for _, a := range in.IPs {
		for _, g := range n.GatewayIPs {
			if v.Is(a) && v.Is(g) && !inventory.LinkLocal(a) && (inventory.LinkLocal(g) || share(n, a, g)) {
				return a
			}
		}
	}
	return first
}

// share says whether two addresses are of one prefix of the network.
func share(n inventory.Network, a, b netip.Addr) bool {
	for _, c := range n.CIDRs {
		if c.Contains(a) {
			return c.Contains(b)
		}
	}
	return false
}

func linkLocal(in inventory.Instance) netip.Addr {
	for _, a := range in.IPs {
		if inventory.LinkLocal(a) {
			return a
		}
	}
	return netip.Addr{}
}

// refuse words why a pair has no addresses for a probe. end is ".src" or ".dst" where one
// instance is the reason; else the error wraps ErrNoPath.
func refuse(p Pair, from, to inventory.Network, v inventory.IPVersion) (end string, err error) {
	if v == inventory.AnyIP {
		_, no4 := lack(p, from, to, inventory.IPv4)
		_, no6 := lack(p, from, to, inventory.IPv6)
		return "", fmt.Errorf("%w: %s; %s", ErrNoPath, no4, no6)
	}
	end, why := lack(p, from, to, v)
	why = fmt.Sprintf("%s (ip_version %d)", why, uint8(v))
	if end == "" {
		return "", fmt.Errorf("%w: %s", ErrNoPath, why)
	}
	return end, errors.New(why)
}

// lack says what a pair lacks to be probed over IPv4 or IPv6.
func lack(p Pair, from, to inventory.Network, v inventory.IPVersion) (end, why string) {
	ends := [...]struct {
		end string
		in  inventory.Instance
		n   inventory.Network
	}{{".src", p.Src, from}, {".dst", p.Dst, to}}
	for _, e := range ends {
		if !e.in.Addr(v).IsValid() {
			return e.end, fmt.Sprintf("%s has no %s address", e.in.Ref(), v)
		}
	}
	for i, e := range ends {
		switch bare := inventory.LinkLocal(e.in.Addr(v)); {
		case bare && from.Name == to.Name:
			return e.end, fmt.Sprintf("%s has only link-local IPv6 addresses, and %s has none of those", e.in.Ref(), ends[1-i].in.Ref())
		case bare:
			return e.end, fmt.Sprintf("%s has only link-local IPv6 addresses, which are not routed", e.in.Ref())
		}
	}
	for _, e := range ends {
		if !e.n.Routes(v) {
			return "", fmt.Sprintf("the gateway of network %s has no %s address", e.n.Name, v)
		}
	}
	return "", "" // they meet
}
