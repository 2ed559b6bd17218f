package ovs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dyetrace/dyetrace/flows"
)

// watched collects what a watch tells.
type watched struct {
	*Watch
	ended chan error

	mu      sync.Mutex
	changes []flows.Change
	pauses  int
}

func watch(t testing.TB, s *Switch, bridge string) *watched {
	t.Helper()
	w, err := s.Watch(t.Context(), bridge)
	if err != nil {
		t.Fatal(err)
	}
	c := &watched{Watch: w, ended: make(chan error, 1)}
	go func() {
		c.ended <- w.Follow(func(ch flows.Change) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.changes = append(c.changes, ch)
		}, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.pauses++
		})
	}()
	t.Cleanup(func() {
		c.Stop()
		<-c.ended
	})
	return c
}

// take returns what was told since it was last called, up to now.
func (c *watched) take(t testing.TB) []flows.Change {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := c.Barrier(ctx); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.changes
	c.changes = nil
	return all
}

// TestWatch: what others do to a bridge's flows is told, each with cookie, match and actions; and
// so is, by Barrier, that there was no more.
func TestWatch(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	c := watch(t, s, bridge)
	if got := c.take(t); len(got) != 0 {
		t.Errorf("told before anything changed: %v", got)
	}
	const match = "tcp,reg10=0x5,tp_src=11"
	ofctl(t, "add-flow", bridge, "cookie=0x4479655400000100,table=5,priority=7,hard_timeout=60,"+match+",actions=load:1->NXM_NX_REG10[31],resubmit(,7)")
	ofctl(t, "add-flow", bridge, "cookie=0x7,table=5,priority=7,"+match+",actions=drop")
	ofctl(t, "--strict", "del-flows", bridge, "table=5,priority=7,"+match)
	var got []string
	for _, ch := range c.take(t) {
		got = append(got, fmt.Sprintf("%d %d %#x %s", ch.Event, ch.Flow.Table, ch.Flow.Cookie, ch.Flow.Match))
	}
	want := []string{
		fmt.Sprintf("%d 5 0x4479655400000100 %s", flows.Added, match),
		fmt.Sprintf("%d 5 0x7 %s", flows.Added, match),
		fmt.Sprintf("%d 5 0x7 %s", flows.Deleted, match),
	}
	if !slices.Equal(got, want) {
		t.Errorf("told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// The hook itself, installed and renewed: renewing changes nothing, so nothing is told of it.
	ours, _ := install(t, s, bridge)
	if n := len(c.take(t)); n != len(ours) {
		t.Errorf("%d changes were told of a hook of %d flows", n, len(ours))
	}
	if err := s.Renew(t.Context(), bridge, ours); err != nil {
		t.Fatal(err)
	}
	if got := c.take(t); len(got) != 0 {
		t.Errorf("renewing the lease was told: %v", got)
	}
	ofctl(t, "del-flows", bridge)
	gone := 0
	for _, ch := range c.take(t) {
		if ch.Event == flows.Deleted && ch.Flow.Ours() {
			gone++
		}
	}
	if gone != len(ours) {
		t.Errorf("%d ends of our flows were told, want %d", gone, len(ours))
	}
}

// TestWatchPauses: a switch that has more to tell than is taken pauses; that our flows are gone is
// told all the same.
func TestWatchPauses(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	ours, _ := install(t, s, bridge)
	c := watch(t, s, bridge)
	var b strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&b, "flow add cookie=0x1,table=9,priority=1,ip,nw_dst=10.0.%d.%d,actions=drop\n", i>>8, i&255)
	}
	b.WriteString("flow delete\n")
	if _, err := s.ofctl(t.Context(), strings.NewReader(b.String()), "bundle", bridge, "-"); err != nil {
		t.Fatal(err)
	}
	gone := 0
	for _, ch := range c.take(t) {
		if ch.Event == flows.Deleted && ch.Flow.Ours() {
			gone++
		}
	}
	if c.pauses == 0 {
		t.Error("told 40,000 changes without a pause: the test tests nothing")
	}
	if gone != len(ours) {
		t.Errorf("%d ends of our flows were told, want %d", gone, len(ours))
	}
}

// TestWatchEnds: with its bridge, and where there is none it does not begin.
func TestWatchEnds(t *testing.T) {
	t.Parallel()
	s := open(t)
	if _, err := s.Watch(t.Context(), "none"); err == nil || errors.Is(err, ErrUnwatched) {
		t.Errorf("watching a bridge that is not there: %v, want an error that says so", err)
	}
	bridge := addBridge(t)
	c := watch(t, s, bridge)
	vsctl(t, "del-br", bridge)
	err := <-c.ended
	c.ended <- err
	if err == nil {
		t.Error("Follow returned nil")
	}
	if err := c.Barrier(t.Context()); err == nil {
		t.Error("a barrier after the end: nil, want an error")
	}
}

// TestWatchOld: a bridge that is restricted to an old version of OpenFlow is watched by that, or known not to be.
func TestWatchOld(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	for _, version := range []string{"OpenFlow10", "OpenFlow13"} {
		vsctl(t, "set", "bridge", bridge, "protocols="+version)
		if version == "OpenFlow13" && is2(s) { // which has monitors by 1.0 only
			if _, err := s.Watch(t.Context(), bridge); !errors.Is(err, ErrUnwatched) {
				t.Errorf("%s: %v, want an error that says so", version, err)
			}
			continue
		}
		c := watch(t, s, bridge)
		ofctl(t, "del-flows", bridge)
		ofctl(t, "add-flow", bridge, "actions=drop")
		if got := c.take(t); len(got) == 0 {
			t.Errorf("%s: nothing was told", version)
		}
	}
}
