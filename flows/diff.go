package flows

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// ErrForeign says that another controller's flow sits where one of ours belongs.
var ErrForeign = errors.New("held by a foreign flow")

// key is what makes two flows one: a bridge holds no two flows with the same.
type key struct {
	table    uint8
	priority uint16
	match    string // canonical
}

func (f Flow) key() key { return key{f.Table, f.Priority, canonicalMatch(f.Match)} }

// same tells whether f, found on a bridge, does all that want, of the same key,
// shall do. Counters do not matter, nor how the actions are spelled.
func (f Flow) same(want Flow) bool {
	return f.Cookie == want.Cookie && f.HardTimeout == want.HardTimeout &&
		(f.Actions == want.Actions || canonicalActions(f.Actions) == canonicalActions(want.Actions))
}

// Diff returns what turns a bridge that holds have into one that holds want. Two
// flows are one if table, priority and match agree (ovs-ofctl(8), --strict), in
// whatever order and spelling the fields of the match are. add has, in the order
// of want, those that are missing or differ: adding replaces in place, so there
// is no gap for a probe to fall into. del has what is in have, has our cookie,
// and is not wanted; but a flow that our flows have learned stays as long as a wanted
// flow learns into its table. The error wraps ErrForeign if a foreign flow is in the way
// of want; foreign flows are nothing else to Diff.
func Diff(have, want []Flow) (add, del []Flow, err error) {
	type rank struct {
		table    uint8
		priority uint16
	}
	wanted, ranks := make(map[key]bool, len(want)), make(map[rank]bool, len(want))
	for _, f := range want {
		k := f.key()
		if wanted[k] {
			return nil, nil, fmt.Errorf("wanted twice: %v", f)
		}
		wanted[k], ranks[rank{f.Table, f.Priority}] = true, true
	}
	var learns [256]bool
	for _, f := range want {
		if t := learnsInto(f.Actions); t != 0 {
			learns[t] = true
		}
	}
	held := make(map[key]Flow, len(want))
	for _, f := range have {
		if !f.Ours() && !ranks[rank{f.Table, f.Priority}] {
			continue // spares the match of nearly all flows of a large bridge
		}
		if k := f.key(); wanted[k] {
			held[k] = f
		} else if f.Ours() && !(f.Cookie == learned.cookie(0) && learns[f.Table]) {
			del = append(del, f)
		}
	}
	for _, f := range want {
		switch old, ok := held[f.key()]; {
		case ok && !old.Ours():
			return nil, nil, fmt.Errorf("table %d, priority %d, %s: %w: %v", f.Table, f.Priority, f.Match, ErrForeign, old)
		case !ok || !old.same(f):
			add = append(add, f)
		}
	}
	slices.SortStableFunc(del, func(a, b Flow) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), -cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Match, b.Match))
	})
	return add, del, nil
}
