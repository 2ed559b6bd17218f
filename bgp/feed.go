package bgp

import (
	"errors"
	"net/netip"
	"time"
)

// Errors of [Feed.Update], by what they ask for (RFC 7606, section 2).
var (
	// ErrWithdraw says that an UPDATE was malformed and its routes were taken for withdrawn.
	// The session goes on.
	ErrWithdraw = errors.New("routes of a malformed UPDATE taken for withdrawn")
	// ErrReset says that nobody can tell any more which routes a peer means.
	ErrReset = errors.New("UPDATE beyond repair")
	// ErrLimit says that a peer has more routes than it may.
	ErrLimit = errors.New("more routes than allowed")
)

// FeedOptions say which routes of a peer are learned.
type FeedOptions struct {
	// Families that the peer is asked for: AFI<<8 | SAFI.
	Families []uint32
	// RTs are route targets, as extended communities in network order (RFC 4360), of which a
	// route needs one. Empty: any.
	RTs []uint64
	// MaxRoutes before a peer is dropped.
	MaxRoutes int
	// NextHops that a route may have. Empty: any.
	NextHops []netip.Prefix
	// Encapsulation of routes that do not tell theirs: a tunnel type of RFC 9012, section 4.1.
	Encapsulation uint16
}

// Feed is where the UPDATEs of one peer go. Its methods are called one at a time.
type Feed interface {
	// Up says that a session begins. kept says that the peer went on forwarding by what it
	// said before: stale routes stay until it said all again. Else they are gone now.
	Up(now time.Time, kept bool)
	// Update takes the body of an UPDATE, without the header, to keep. Errors wrap
	// [ErrWithdraw], [ErrReset] or [ErrLimit]; any other is taken for ErrReset.
	Update(body []byte, now time.Time) error
	// Down says that the session ended. graceful: routes are stale rather than gone.
	Down(now time.Time, graceful bool)
	// Sweep says that stale routes were waited for long enough.
	Sweep(now time.Time)
	// Settle says that the peer, which promised no End-of-RIB, was quiet for long enough to
	// be taken for one that told all.
	Settle(now time.Time)
	// SetOptions changes what is learned, and returns whether the peer is to be asked for
	// routes that were not learned before.
	SetOptions(o FeedOptions, now time.Time) (refresh bool)
	// Close forgets a peer that is configured no more.
	Close(now time.Time)
	// Routes is how many there are, stale ones included.
	Routes() int
}

// Learn returns the feed of a peer; the same one whenever it is asked for the same name.
type Learn func(peer string, o FeedOptions) Feed
