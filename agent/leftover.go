package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/dataplane/packetio"
	"github.com/dyetrace/dyetrace/dataplane/tap"
	"github.com/dyetrace/dyetrace/stain"
)

// leftoverWait is for how long nobody may read a dye port that is not ours to use, until it is removed: longer than another agent
// of this host takes from making one to reading it.
const leftoverWait = 20 * time.Second

// leftover is a dye port that was there when this agent began, and that nobody read: that of an agent that was killed.
type leftover struct {
	id    string // of the interface, which another one that is made by the same name does not have
	since time.Time
}

// note takes note of what agents before this one left. Until a bridge is hooked, that stays as it is: a controller may be away. It is
// removed from bridges that are not to be hooked, and from all others at the end.
func (h *hooks) note() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	h.left = make(map[string]leftover)
	for _, b := range h.sw.Snapshot().Bridges {
		if p, ok := idleDye(b); ok {
			h.left[b.Name] = leftover{p.ID, now}
		}
	}
}

// idleDye returns the dye port of a bridge, if it has one that nobody reads. Where that is not known somebody does.
func idleDye(b dataplane.Bridge) (dataplane.Port, bool) {
	p, ok := b.Port(ovs.DyePortName(b.Name))
	if !ok || !p.Dye {
		return p, false
	}
	read, err := packetio.Bound(p.Name)
	return p, err == nil && !read
}

// leftovers returns the bridges of which what was left is still there, and forgets the others: they are hooked, or gone, or another
// agent has come. Caller holds mu.
func (h *hooks) leftovers(snap dataplane.Snapshot) (bridges []dataplane.Bridge) {
	for name, l := range h.left {
		b, _ := snap.Bridge(name)
		if p, idle := idleDye(b); h.bridges[name] != nil || !idle || p.ID != l.id {
			delete(h.left, name)
			continue
		}
		bridges = append(bridges, b)
	}
	return bridges
}

// sweep removes what was left on bridges that are not to be hooked.
func (h *hooks) sweep(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.left) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	snap, now := h.sw.Snapshot(), time.Now()
	wanted := h.wanted(snap)
	for _, b := range h.leftovers(snap) {
		l := h.left[b.Name]
		if slices.Contains(wanted, b.Name) || now.Sub(l.since) < h.leftoverWait {
			continue
		}
		if err := h.discard(ctx, b); err != nil {
			h.log.Warn("removing what an agent before this one left", "err", err)
			h.left[b.Name] = leftover{l.id, now}
			continue
		}
		h.log.Info("removed what an agent before this one left", "bridge", b.Name)
		delete(h.left, b.Name)
	}
}

// discard takes off a bridge what an agent left there. Caller holds mu.
func (h *hooks) discard(ctx context.Context, found dataplane.Bridge) error {
	var errs []error
	for _, p := range found.Ports {
		if p.Type != "" {
			continue // none has a program of ours
		}
		if err := tap.RemoveLeftovers(p.Name); err != nil {
			errs = append(errs, fmt.Errorf("bridge %s: %w", found.Name, err))
		}
	}
	b := newBridge(found.Name, h.sw, newTaps(h.log), stain.Stain{}, h.lease, 0, h.log)
	return errors.Join(append(errs, b.remove(ctx))...)
}
