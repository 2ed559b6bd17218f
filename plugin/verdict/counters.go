package verdict

import (
	"fmt"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/stain"
)

// Count is what a hook counted at its points of one kind, and what of their copies was read, both
// but for a number that stays the same for an epoch (PointCount of the contract).
type Count struct {
	// Counted holds all that passed up to the moment of ReadMin, and nothing after that of ReadMax.
	Counted uint64
	// ReadMin and ReadMax were read when the counters had not been asked yet, and after.
	ReadMin, ReadMax uint64
}

// missing returns how many copies more were made than read, at least and at most; again but for
// that number.
func (c Count) missing() (least, most int64) {
	return int64(c.Counted - c.ReadMax), int64(c.Counted - c.ReadMin)
}

// underWay is how many copies may be on their way to the agent while counters are asked, without
// the difference meaning anything. A loss on that way is a queue that overflows, and the shortest
// one, the kernel's backlog, takes 1,000 (net.core.netdev_max_backlog): a quarter of it has not.
const underWay = 256

// unread says that the hook's counters speak against taking a missing sample of the bridge for
// loss: copies were made that nobody read, or it cannot be told. None where counters and copies
// agree, and where the switch never has counters: then all that is known is what the agent lost
// by itself. A loss at one kind of points speaks against all of the bridge: what is seen at one
// makes the next one's silence mean something.
func (w Window) unread(where string) doubt {
	for _, a := range []*Audit{w.Before, w.After} {
		if a.Uncounted != "" {
			return doubt{CauseSamples, fmt.Sprintf("%s: the hook's counters could not be read: %s", where, a.Uncounted)}
		}
	}
	if len(w.Before.Counts) > 0 && len(w.After.Counts) == 0 {
		return doubt{CauseSamples, where + ": the hook's counters were not read after the probe"}
	}
	for _, kind := range []stain.Kind{stain.FromInstance, stain.FromTunnel, stain.ToTunnel} {
		before, counted := w.Before.Counts[kind]
		after, again := w.After.Counts[kind]
		if !counted || !again {
			continue
		}
		if why := unread(before, after); why != "" {
			return doubt{CauseSamples, fmt.Sprintf("%s %v: %s", where, kind, why)}
		}
	}
	return doubt{}
}

// unread compares two readings of the counters, the second after the first; empty where they agree.
// Where somewhat more was read than counted they say nothing either: Open vSwitch credits what passed shortly
// before a flow changed to the flows of after the change, so a bridge whose flows somebody edits counts
// too little. Then, as without counters, what the agent knows it lost is all that is known. Where it is much
// more, somebody forges copies, and each may stand for one that got lost.
func unread(before, after Count) string {
	least, most := after.missing()
	leastBefore, mostBefore := before.missing()
	least, most = least-mostBefore, most-leastBefore
	switch {
	case least > 0:
		return fmt.Sprintf("copies counted by the hook that never came to the agent: %d", least)
	case most-least > underWay:
		return fmt.Sprintf("too many copies (%d) came by while counters were read to tell if one got lost", most-least)
	case most < -underWay:
		return fmt.Sprintf("copies that came to the agent and no hook made: %d", -most)
	}
	return ""
}

func countsFromProto(list []*dyetracev1.PointCount) map[stain.Kind]Count {
	if len(list) == 0 {
		return nil
	}
	counts := make(map[stain.Kind]Count, len(list))
	for _, m := range list {
		counts[stain.Kind(m.GetKind())] = Count{m.GetCounted(), m.GetReadMin(), m.GetReadMax()}
	}
	return counts
}
