package agent

import (
	"fmt"
	"time"
)

// fight decides when a hook that somebody else keeps deleting is put back. A controller that starts
// deletes it once or twice, and it should be back at once. One that deletes it time and again would
// go on doing so, and the two of us would cost the switch a revalidation of all its megaflows each
// time, for samples that prove nothing. The zero value has no wipes behind it.
type fight struct {
	wipes []time.Time // the last ones, oldest first
	total uint64
	pause time.Duration // after the last wipe; 0: none
	until time.Time
}

const (
	// So many wipes in a row are put back at once: what ovn-controller does at its start, and a
	// restart of the switch's own, come to two or three.
	fightPatience = 3
	// The first pause is that of a tool which comes every 5 s; each wipe more doubles it.
	fightPause     = 5 * time.Second
	fightPauseMost = time.Minute
	// After so long without a wipe, those before it are forgotten: twice the longest pause, or the
	// same tool would be new after each.
	fightMemory = 2 * fightPauseMost
)

// wiped takes in that the hook was deleted.
func (f *fight) wiped(now time.Time) {
	f.total++
	if n := len(f.wipes); n > 0 && now.Sub(f.wipes[n-1]) > fightMemory {
		f.wipes, f.pause = nil, 0
	}
	f.wipes = append(f.wipes, now)
	if len(f.wipes) <= fightPatience {
		return
	}
	f.pause = min(max(fightPause, 2*f.pause), fightPauseMost)
	f.until = now.Add(f.pause)
	f.wipes = f.wipes[max(0, len(f.wipes)-16):] // for the message, and no more
}

// held is for how much longer the hook is left alone.
func (f *fight) held(now time.Time) time.Duration { return max(0, f.until.Sub(now)) }

// heldError says that a hook is left alone.
type heldError struct {
	wipes int
	over  time.Duration
	pause time.Duration
}

func (e *heldError) Error() string {
	return fmt.Sprintf("somebody else deletes or overrules it (%d times in %v); left alone for %v so as not to fight",
		e.wipes, e.over, e.pause)
}

// err says why the hook is left alone, the same for the whole of a pause; nil if it is not.
func (f *fight) err(now time.Time) error {
	if f.held(now) == 0 {
		return nil
	}
	last := f.wipes[len(f.wipes)-1]
	return &heldError{len(f.wipes), last.Sub(f.wipes[0]).Round(time.Second), f.pause}
}
