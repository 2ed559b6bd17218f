package flows

import (
	"slices"
	"strings"
)

// Owner is the controller that put a flow on a bridge, as far as its cookie tells.
type Owner uint8

// Owners; the numbers are the contract's.
const (
	OwnerUnknown Owner = iota // nobody that we know: made by hand, or by another program
	OwnerDyetrace
	OwnerOVN
	OwnerNeutron
	OwnerAntrea
)

var ownerNames = [...]string{"unknown", "Dyetrace", "OVN", "Neutron", "Antrea"}

// String returns the owner's name.
func (o Owner) String() string {
	if int(o) < len(ownerNames) {
		return ownerNames[o]
	}
	return "unknown"
}

// OwnerOf says whose a flow is, among all flows of its bridge. ovn says that ovn-controller has the
// host in hand.
//
//   - OVN's cookies are the first 32 bits of a row's UUID in its southbound database (ovn-controller,
//     lflow.c and physical.c), so that any cookie of 32 bits may be one: who can ask the database
//     should. Without a row there is no cookie; of these only what ends a table is taken for OVN's.
//   - Antrea's begin with 16 bits that count its rounds, never 0, and 8 bits of a category (its
//     pkg/agent/openflow/cookie/allocator.go); see antreaCookie. One flow alone does not make Antrea.
//   - Neutron's agent makes up a cookie of 64 bits for each bridge when it starts, and so does its
//     firewall (neutron's OVSCookieBridge); they are known by flows that only it has.
func OwnerOf(f Flow, all []Flow, ovn bool) Owner {
	if o, known := OwnerByCookie(f, ovn); known {
		return o
	}
	switch {
	case antreaCookie(f.Cookie) && antreaHas(all):
		return OwnerAntrea
	case slices.Contains(neutronCookies(all), f.Cookie):
		return OwnerNeutron
	}
	return OwnerUnknown
}

// OwnerByCookie is OwnerOf where that takes no other flow of the bridge than this one; else known is false.
func OwnerByCookie(f Flow, ovn bool) (o Owner, known bool) {
	switch {
	case f.Ours():
		return OwnerDyetrace, true
	case ovn && f.Cookie == 0 && f.Priority == 0 && f.Table != 0:
		return OwnerOVN, true
	case f.Cookie == 0:
		return OwnerUnknown, true
	case ovn && f.Cookie>>32 == 0:
		return OwnerOVN, true
	}
	return OwnerUnknown, false
}

// antreaCookie tells a cookie as Antrea makes them:
//
//	 63           48 47    40 39    32 31                            0
//	+---------------+--------+--------+-------------------------------+
//	| round, not 0  |category|   0    |  object                       |
//	+---------------+--------+--------+-------------------------------+
//
// There were 11 categories in Antrea 2.0; a Neutron cookie, which is random, is such a one once in 4,000.
func antreaCookie(c uint64) bool {
	const categories = 0x10
	return c>>48 != 0 && c>>40&0xff < categories && c>>32&0xff == 0
}

// antreaHas says that nearly all flows of a bridge that have a cookie have one as Antrea's, and one
// round at most has flows besides another: the one that is being replaced.
func antreaHas(all []Flow) bool {
	like, other := 0, 0
	for _, f := range all {
		switch {
		case f.Ours() || f.Cookie == 0:
		case antreaCookie(f.Cookie):
			like++
		default:
			other++
		}
	}
	return like > 1 && like > 9*other
}

// neutronCookies returns the cookies that Neutron's agent has on a bridge: those of flows which it
// has on every bridge of the kind, and nobody else.
func neutronCookies(all []Flow) []uint64 {
	var cookies []uint64
	for _, f := range all {
		if f.Cookie != 0 && !f.Ours() && neutronOwn(f) && !slices.Contains(cookies, f.Cookie) {
			cookies = append(cookies, f.Cookie)
		}
	}
	return cookies
}

func neutronOwn(f Flow) bool {
	switch {
	case f.Table == 0 && f.Priority == 65535: // br-int: dead ports
		return slices.Contains(parseMatch(f.Match), number("dl_vlan", deadVLAN)) && f.Actions == "drop"
	case f.Table == 2: // br-tun: unicast or not
		return strings.Contains(f.Match, "01:00:00:00:00:00") && (strings.Contains(f.Actions, "resubmit(,20)") || strings.Contains(f.Actions, "resubmit(,22)"))
	case f.Table == 71 || f.Table == 81: // br-int, the firewall: what no rule is for
		return f.Priority == 0 && f.Match == "" && strings.Contains(f.Actions, "resubmit(,93)")
	case f.Table == 93:
		return f.Priority == 0 && f.Match == "" && f.Actions == "drop"
	}
	return false
}
