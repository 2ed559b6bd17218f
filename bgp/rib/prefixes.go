package rib

import (
	"net/netip"
	"slices"
)

// prefixes is a set that is asked once an UPDATE, and may have the address of each VTEP: walking a
// list of 5,000 takes half as long as all else that an UPDATE of 90 routes asks for.
type prefixes struct {
	have    map[netip.Prefix]struct{}
	lengths [2][]int // of IPv4 and IPv6 prefixes, each once
}

func newPrefixes(list []netip.Prefix) prefixes {
	s := prefixes{have: make(map[netip.Prefix]struct{}, len(list))}
	for _, p := range list {
		if p = p.Masked(); !p.IsValid() {
			continue // contains nothing
		}
		s.have[p] = struct{}{}
		if l := &s.lengths[version(p.Addr())]; !slices.Contains(*l, p.Bits()) {
			*l = append(*l, p.Bits())
		}
	}
	return s
}

// contains tells whether one of the prefixes contains an address without a zone.
func (s *prefixes) contains(a netip.Addr) bool {
	for _, bits := range s.lengths[version(a)] {
		p, _ := a.Prefix(bits)
		if _, ok := s.have[p]; ok {
			return true
		}
	}
	return false
}

func version(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
