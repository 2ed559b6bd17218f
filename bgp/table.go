package bgp

import (
	"errors"
	"fmt"
	"time"

	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/bgp/wire"
)

// LearnInto has peers fill a table, where each is known by its address.
func LearnInto(t *rib.Table) Learn {
	return func(peer string, o FeedOptions) Feed {
		f := tableFeed{t.Peer(peer, o.rib())}
		// A peer whose session was configured anew has its feed still, with the options of before.
		// The session is yet to come, so there is nobody to ask for anything.
		f.Feed.SetOptions(o.rib(), time.Now())
		return f
	}
}

// tableFeed is a table's feed, with the errors and options of this package.
type tableFeed struct{ *rib.Feed }

func (f tableFeed) Update(body []byte, now time.Time) error {
	err := f.Feed.Update(body, now)
	for _, x := range []struct{ theirs, ours error }{
		{rib.ErrWithdraw, ErrWithdraw}, {rib.ErrReset, ErrReset}, {rib.ErrLimit, ErrLimit},
	} {
		if errors.Is(err, x.theirs) {
			return fmt.Errorf("%w: %w", x.ours, err)
		}
	}
	return err
}

func (f tableFeed) SetOptions(o FeedOptions, now time.Time) (refresh bool) {
	return f.Feed.SetOptions(o.rib(), now)
}

func (o FeedOptions) rib() rib.PeerOptions {
	p := rib.PeerOptions{MaxRoutes: o.MaxRoutes, NextHops: o.NextHops, Default: wire.Encap(o.Encapsulation)}
	for _, f := range o.Families {
		p.Families = append(p.Families, wire.Family(f))
	}
	for _, rt := range o.RTs {
		p.RTs = append(p.RTs, wire.RouteTarget(rt))
	}
	return p
}
