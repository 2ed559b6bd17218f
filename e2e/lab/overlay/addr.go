package overlay

import (
	"fmt"
	"net/netip"

	"go.yaml.in/yaml/v3"
)

// Version is a version of the Internet Protocol.
type Version int

// The versions that there are.
const (
	V4 Version = 4
	V6 Version = 6
)

// Versions returns both versions, the older one first.
func Versions() []Version { return []Version{V4, V6} }

// Addrs are addresses, at most one of each version: the zero Addr where there is none. In YAML
// it is one address, or a list.
type Addrs struct{ V4, V6 netip.Addr }

// Of returns the address of a version, the zero Addr if there is none.
func (a Addrs) Of(v Version) netip.Addr {
	if v == V6 {
		return a.V6
	}
	return a.V4
}

// All returns the addresses that there are.
func (a Addrs) All() []netip.Addr {
	var all []netip.Addr
	for _, v := range Versions() {
		if ip := a.Of(v); ip.IsValid() {
			all = append(all, ip)
		}
	}
	return all
}

// MarshalYAML returns the one address, or a list.
func (a Addrs) MarshalYAML() (any, error) { return oneOrList(a.All()), nil }

// UnmarshalYAML reads one address or a list.
func (a *Addrs) UnmarshalYAML(n *yaml.Node) error {
	list, err := readOneOrList[netip.Addr](n)
	if err != nil {
		return err
	}
	for _, ip := range list {
		at := &a.V4
		if ip.Is6() {
			at = &a.V6
		}
		switch {
		case ip.Zone() != "" || ip.Is4In6():
			return fmt.Errorf("line %d: %s: want an IPv4 or an IPv6 address, with no zone", n.Line, ip)
		case at.IsValid():
			return fmt.Errorf("line %d: %s: want at most one address of each version", n.Line, ip)
		}
		*at = ip
	}
	return nil
}

// Prefixes are prefixes, at most one of each version: the zero Prefix where there is none. In
// YAML it is one prefix, or a list.
type Prefixes struct{ V4, V6 netip.Prefix }

// Of returns the prefix of a version, the zero Prefix if there is none.
func (p Prefixes) Of(v Version) netip.Prefix {
	if v == V6 {
		return p.V6
	}
	return p.V4
}

// All returns the prefixes that there are.
func (p Prefixes) All() []netip.Prefix {
	var all []netip.Prefix
	for _, v := range Versions() {
		if prefix := p.Of(v); prefix.IsValid() {
			all = append(all, prefix)
		}
	}
	return all
}

// Contains reports whether one of the prefixes contains the address.
func (p Prefixes) Contains(a netip.Addr) bool { return p.V4.Contains(a) || p.V6.Contains(a) }

// MarshalYAML returns the one prefix, or a list.
func (p Prefixes) MarshalYAML() (any, error) { return oneOrList(p.All()), nil }

// UnmarshalYAML reads one prefix or a list.
func (p *Prefixes) UnmarshalYAML(n *yaml.Node) error {
	list, err := readOneOrList[netip.Prefix](n)
	if err != nil {
		return err
	}
	for _, prefix := range list {
		at := &p.V4
		if prefix.Addr().Is6() {
			at = &p.V6
		}
		if at.IsValid() {
			return fmt.Errorf("line %d: %s: want at most one prefix of each version", n.Line, prefix)
		}
		*at = prefix
	}
	return nil
}

func oneOrList[T any](list []T) any {
	if len(list) == 1 {
		return list[0]
	}
	return list
}

func readOneOrList[T any](n *yaml.Node) ([]T, error) {
	if n.Kind == yaml.SequenceNode {
		var list []T
		return list, n.Decode(&list)
	}
	var one T
	err := n.Decode(&one)
	return []T{one}, err
}

// LinkLocal returns the IPv6 address that an interface has on its link by its MAC alone: its
// modified EUI-64 (RFC 4291, appendix A) behind fe80::/64 (section 2.5.6).
func (m MAC) LinkLocal() netip.Addr {
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80,
		8: m[0] ^ 0x02, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5],
	})
}
