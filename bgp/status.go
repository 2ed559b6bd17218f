package bgp

import (
	"net/netip"
	"time"
)

// State of a peer (RFC 4271, section 8.2.2).
type State uint8

// States, in the order in which a session goes through them.
const (
	Idle        State = iota // waiting after a failure
	Connect                  // dialing
	Active                   // waiting for the peer to dial
	OpenSent                 // connected
	OpenConfirm              // the OPEN of the peer suits
	Established              // learning
)

func (s State) String() string {
	return [...]string{"Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established"}[s]
}

// Status is what there is to know of a peer.
type Status struct {
	Address     string
	AS, LocalAS uint32
	State       State
	// Since is when State began.
	Since time.Time
	// RouterID of the peer; the zero Addr before its first OPEN, as are the fields of that.
	RouterID netip.Addr
	// HoldTime is the lower one of both sides'.
	HoldTime time.Duration
	// Capabilities of the peer's last OPEN that matter here.
	Capabilities []string
	// Families that both sides have, and those that only we have.
	Families, Missing []string
	// EndOfRIB are the families of which the peer said in this session that it told all.
	// Before, a route that is not there says nothing.
	EndOfRIB []string
	// Restarting says that routes are stale: the peer has until then to say them again.
	Restarting time.Time
	// Updates, of which Withdrawn were malformed and taken for withdraws, since the peer was
	// configured. Flaps are sessions that were established and ended; Failures connections that
	// ended before; Panics faults of ours.
	Updates, Withdrawn, Flaps, Failures, Panics uint64
	// Routes that are learned of the peer, stale ones included.
	Routes int
	// LastUpdate is when the last UPDATE came.
	LastUpdate time.Time
	// LastError is why the last session ended or could not begin, or what was wrong with the last
	// malformed UPDATE; nil before any. Attempts that fail after a side said why it ended a session
	// are told behind that reason, not in place of it.
	LastError   error
	LastErrorAt time.Time
}

// Uptime of the session; 0 without.
func (s Status) Uptime(now time.Time) time.Duration {
	if s.State != Established {
		return 0
	}
	return now.Sub(s.Since)
}
