package plan

import (
	"net/netip"
	"time"

	"github.com/dyetrace/dyetrace/stain"
)

// Routes is what the fabric's routing protocol says of where instances are, at one time. It is
// nil where nobody is asked.
type Routes interface {
	// MAC says where a MAC address is in the network of a VNI.
	MAC(vni uint32, mac stain.MAC) Learned
	// IP says where an address is in the network of a VNI, by a route for it alone: a prefix
	// that holds other addresses too says where their router is, not where an instance is.
	IP(vni uint32, addr netip.Addr) Learned
}

// Learned is what routes say of one address.
type Learned struct {
	State LearnedState
	// VTEPs are of Present: one or more, in a fixed order. Shared, never changed.
	VTEPs []netip.Addr
	// Since is when they became the answer.
	Since time.Time
	// Sequence is of MAC mobility (RFC 7432, section 7.7).
	Sequence uint32
	// Sticky says that the MAC shall not move, Stale that all who said so restarted and have not
	// said it again (RFC 4724, section 4.2).
	Sticky, Stale bool
}

// LearnedState is what can be said at all.
type LearnedState uint8

// States.
const (
	// NotAsked: no speaker is configured, or the network has no segmentation_id.
	NotAsked LearnedState = iota
	// Present: it is at Learned.VTEPs.
	Present
	// Absent: all peers told all that they know, and it was not among it.
	Absent
	// NotKnown: peers have not told all yet, or a route for it was refused.
	NotKnown
)

func (s LearnedState) String() string {
	switch s {
	case NotAsked:
		return "not asked"
	case Present:
		return "present"
	case Absent:
		return "absent"
	}
	return "not known"
}
