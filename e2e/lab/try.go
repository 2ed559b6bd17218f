package lab

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

const (
	// lossPatience is how long packets of a pair must stay unanswered to count as lost: several
	// requests, each a hundred times the usual round trip.
	lossPatience = 400 * time.Millisecond
	// healPatience bounds the wait for pairs that must answer.
	healPatience = 10 * time.Second
)

// Mistaken is a pair of which the truth is not what its guests meet.
type Mistaken struct {
	Src      string `json:"src"`
	Dst      string `json:"dst"`
	Answered bool   `json:"answered"`
}

// String returns, say, "blue-1 to blue-3: answered, and declared to fail".
func (m Mistaken) String() string {
	if m.Answered {
		return fmt.Sprintf("%s to %s: answered, and declared to fail", m.Src, m.Dst)
	}
	return fmt.Sprintf("%s to %s: not answered, and declared to pass", m.Src, m.Dst)
}

// Try holds what Truth declares of traffic against packets that the guests themselves send each
// other, and returns where the two differ. Pairs of which some packets are lost must be answered at
// last; those of which nobody knows whether they are hit are not tried.
func (l *Lab) Try(ctx context.Context, traffic Traffic) ([]Mistaken, error) {
	truth, err := l.Truth(traffic)
	if err != nil {
		return nil, err
	}
	var whole, failing []overlay.Pair
	for _, p := range l.Overlay().PairsOver(traffic.IP) {
		switch {
		case truth.Maybes(p.Src.Name, p.Dst.Name):
		case truth.Failing(p.Src.Name, p.Dst.Name):
			failing = append(failing, p)
		default:
			whole = append(whole, p)
		}
	}
	var wrong []Mistaken
	var mu sync.Mutex
	try := func(pairs []overlay.Pair, want bool, patience time.Duration) error {
		answered, err := l.answers(ctx, traffic, pairs, patience)
		mu.Lock()
		defer mu.Unlock()
		for i, p := range pairs {
			if err == nil && answered[i] != want {
				wrong = append(wrong, Mistaken{p.Src.Name, p.Dst.Name, answered[i]})
			}
		}
		return err
	}
	var failed error
	var tried sync.WaitGroup
	tried.Go(func() { failed = try(failing, false, lossPatience) })
	err = try(whole, true, healPatience)
	tried.Wait()
	for _, e := range []error{err, failed} {
		if e != nil {
			return nil, fmt.Errorf("lab %s: try %v: %w", l.state.Name, traffic, e)
		}
	}
	return wrong, nil
}

// answers returns which pairs are answered within patience.
func (l *Lab) answers(ctx context.Context, traffic Traffic, pairs []overlay.Pair, patience time.Duration) ([]bool, error) {
	if traffic.Scheme == TCP {
		return l.syn(ctx, traffic.IP, pairs, patience)
	}
	echoes, err := l.Echo(ctx, traffic.IP, pairs, patience)
	answered := make([]bool, len(pairs))
	for i, e := range echoes {
		answered[i] = e.Answered
	}
	return answered, err
}
