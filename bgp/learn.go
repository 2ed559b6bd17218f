package bgp

import (
	"errors"
	"runtime/debug"
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/bgp/rib"
)

// What a peer tells its feed, one call at a time.

func (p *peer) feedUp(kept bool) {
	p.feedMu.Lock()
	defer p.feedMu.Unlock()
	now := time.Now()
	p.feed.Up(now, kept)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reason = nil
	switch {
	case p.status.Restarting.IsZero():
	case kept: // what was said before stays until the End-of-RIB, or for so long
		p.status.Restarting = now.Add(p.waits.stale)
	default:
		p.status.Restarting = time.Time{}
	}
}

func (p *peer) feedUpdate(a *rib.Ahead) error {
	now := time.Now()
	err := p.feedTake(a, now)
	f, all := parseEndOfRIB(a.Body)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.Updates++
	p.status.LastUpdate = now
	if errors.Is(err, rib.ErrWithdraw) {
		p.status.Withdrawn++
		p.status.LastError, p.status.LastErrorAt = err, now
	}
	if all {
		p.tookAll(f)
	}
	return err
}

// tookAll notes an End-of-RIB. The caller holds mu.
func (p *peer) tookAll(f family) {
	name := f.String()
	if slices.Contains(p.status.EndOfRIB, name) {
		return
	}
	p.status.EndOfRIB = append(slices.Clone(p.status.EndOfRIB), name)
	if len(p.status.EndOfRIB) >= len(p.status.Families) {
		p.status.Restarting = time.Time{} // the feed has swept by itself
	}
}

func (p *peer) feedTake(a *rib.Ahead, now time.Time) error {
	p.feedMu.Lock()
	defer p.feedMu.Unlock()
	return p.feed.Take(a, now)
}

// feedDown ends a session. For so long, its routes may outlive it; the status says so by the time that
// anybody hears of it.
func (p *peer) feedDown(spared time.Duration) {
	p.feedMu.Lock()
	defer p.feedMu.Unlock()
	now := time.Now()
	var until time.Time
	if spared > 0 {
		until = now.Add(spared)
	}
	p.restarting(until)
	p.feed.Down(now, spared > 0)
}

func (p *peer) feedSweep() {
	p.guard(func() { p.feed.Sweep(time.Now()) })
}

func (p *peer) feedSettle() {
	p.guard(func() { p.feed.Settle(time.Now()) })
}

func (p *peer) feedSetOptions(o rib.PeerOptions) (refresh bool) {
	p.guard(func() { refresh = p.feed.SetOptions(o, time.Now()) })
	return refresh
}

// feedGone drops stale routes too, of a peer that nobody waits for any more; for good, if it was
// removed.
func (p *peer) feedGone(removed bool) {
	p.guard(func() {
		if p.feed.Down(time.Now(), false); removed {
			p.feed.Close(time.Now())
		}
	})
}

func (p *peer) feedRoutes() (n int) {
	p.guard(func() { n = p.feed.Routes() })
	return n
}

// guard calls the feed outside of a session, where a panic can end nothing but the call.
func (p *peer) guard(f func()) {
	defer func() {
		if r := recover(); r != nil {
			p.panicked(r, debug.Stack())
		}
	}()
	p.feedMu.Lock()
	defer p.feedMu.Unlock()
	f()
}
