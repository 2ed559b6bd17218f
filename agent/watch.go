package agent

import (
	"context"
	"errors"
	"time"

	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/flows"
)

// How often a watch that ended is begun again: soon, since while ovs-vswitchd starts the hook is
// away and nothing else tells when it can be put back; each try costs a start of ovs-ofctl. A
// switch that cannot be watched at all may be replaced by one that can.
const (
	watchAgain     = 50 * time.Millisecond
	watchAgainMost = time.Second
	watchNeverMind = 5 * time.Minute
)

// startWatch has the bridge's flows watched until stopWatch.
func (b *bridge) startWatch() {
	ctx, cancel := context.WithCancel(context.Background())
	b.stopWatching = cancel
	b.watcher.Go(func() { b.watch(ctx) })
}

// stopWatch ends the watch, and waits for its end. Calling it again does nothing.
func (b *bridge) stopWatch() {
	if b.stopWatching != nil {
		b.stopWatching()
	}
	b.watcher.Wait()
}

// watch keeps a flow monitor on the bridge until ctx ends. Whatever it tells only sets flags and
// wakes the reconciler: that one waits for barriers of this one's.
func (b *bridge) watch(ctx context.Context) {
	pause, said := watchAgain, ""
	for ctx.Err() == nil {
		w, err := b.sw.Watch(ctx, b.name)
		if err == nil {
			b.watched.Store(w)
			b.disturb(flows.Doubtful) // what happened before was not told
			pause, said = watchAgain, ""
			err = w.Follow(b.change, func() { b.disturb(flows.Doubtful) })
			b.watched.Store(nil)
			b.disturb(flows.Doubtful)
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, ovs.ErrUnwatched) {
			pause = watchNeverMind
		}
		if err.Error() != said {
			said = err.Error()
			b.log.Info("the bridge's flows are not watched; audits see to the hook", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, watchAgainMost)
	}
}

// change takes in one change of the bridge's flows.
func (b *bridge) change(c flows.Change) {
	if !c.Flow.Ours() {
		b.told.Add(1)
		b.news.add(c.Flow.Match)
	}
	// Without a hook there is nothing to disturb; whether there is room for one now is for
	// audits to see.
	if g := b.guard.Load(); g != nil {
		b.disturb(g.Judge(c))
	}
}

// disturbances is a set of flows.Disturbance.
type disturbances uint32

func (s disturbances) has(d flows.Disturbance) bool { return s>>d&1 == 1 }

// disturb has the reconciler look at the bridge, unless it was woken for that already.
func (b *bridge) disturb(d flows.Disturbance) {
	if d == flows.Harmless {
		return
	}
	if bit := uint32(1) << d; b.disturbed.Or(bit)&bit == 0 {
		b.poke()
	}
}

// settled takes what the watch has told of up to now, and tells whether there is a watch. Of one that ended meanwhile it
// is not known what it would have told.
func (b *bridge) settled(ctx context.Context) (d disturbances, watched bool) {
	if w := b.watched.Load(); w != nil {
		if watched = w.Barrier(ctx) == nil; !watched {
			d = 1 << flows.Doubtful
		}
	}
	return d | disturbances(b.disturbed.Swap(0)), watched
}
