package agent

import (
	"sync"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

const (
	// newsGather is how long the first change waits for others: controllers change flows in bundles, and
	// the monitor tells of each by itself.
	newsGather = 5 * time.Millisecond
	// newsEvery bounds how often the controller is told of a bridge: some change hundreds of flows a
	// second all day, and it can look at the pairs concerned no faster than instances may be probed.
	newsEvery = 100 * time.Millisecond
	// maxNews bounds the matches of one message: some 10 kB.
	maxNews = 64
)

// news is what others changed of a bridge's flows, until the controller is told.
type news struct {
	bridge string
	tell   func(*dyetracev1.Changes)

	mu      sync.Mutex
	pending *dyetracev1.Changes
	seen    map[string]bool
	told    time.Time
}

// add takes in a changed flow's match.
func (n *news) add(match string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending == nil {
		n.pending, n.seen = &dyetracev1.Changes{Bridge: n.bridge}, map[string]bool{}
		time.AfterFunc(max(newsGather, newsEvery-time.Since(n.told)), n.flush)
	}
	switch {
	case n.seen[match]:
	case len(n.seen) == maxNews:
		n.pending.More = true
	default:
		n.seen[match] = true
		n.pending.Matches = append(n.pending.Matches, match)
	}
}

func (n *news) flush() {
	n.mu.Lock()
	m := n.pending
	n.pending, n.seen, n.told = nil, nil, time.Now()
	n.mu.Unlock()
	n.tell(m)
}
