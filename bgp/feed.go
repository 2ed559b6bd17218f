package bgp

import (
	"time"

	"github.com/dyetrace/dyetrace/bgp/rib"
)

// Feed is where the UPDATEs of one peer go: a [rib.Feed], or what stands in for one in tests. Its
// methods are called one at a time, but for Read.
type Feed interface {
	// Up says that a session begins. kept says that the peer went on forwarding by what it
	// said before: stale routes stay until it said all again. Else they are gone now.
	Up(now time.Time, kept bool)
	// Read decodes the body of an UPDATE, without the header, ahead of its turn. It is called while
	// other methods are, Take of an earlier UPDATE above all.
	Read(a *rib.Ahead, body []byte)
	// Take takes in what Read has read last into a. Errors wrap [rib.ErrWithdraw], [rib.ErrReset]
	// or [rib.ErrLimit]; any other is taken for ErrReset.
	Take(a *rib.Ahead, now time.Time) error
	// Down says that the session ended. graceful: routes are stale rather than gone.
	Down(now time.Time, graceful bool)
	// Sweep says that stale routes were waited for long enough.
	Sweep(now time.Time)
	// Settle says that the peer, which promised no End-of-RIB, was quiet for long enough to
	// be taken for one that told all.
	Settle(now time.Time)
	// SetOptions changes what is learned, and returns whether the peer is to be asked for
	// routes that were not learned before.
	SetOptions(o rib.PeerOptions, now time.Time) (refresh bool)
	// Close forgets a peer that is configured no more.
	Close(now time.Time)
	// Routes is how many there are, stale ones included.
	Routes() int
}

// Learn returns the feed of a peer; the same one whenever it is asked for the same name.
type Learn func(peer string, o rib.PeerOptions) Feed

// LearnInto has peers fill a table, where each is known by its address.
func LearnInto(t *rib.Table) Learn {
	return func(peer string, o rib.PeerOptions) Feed {
		f := t.Peer(peer, o)
		// A peer whose session was configured anew has its feed still, with the options of before.
		// The session is yet to come, so there is nobody to ask for anything.
		f.SetOptions(o, time.Now())
		return f
	}
}
