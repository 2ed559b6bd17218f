package plugin

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// learned answers the plan from a table as it was at one time.
type learned struct {
	snap  *rib.Snapshot
	whole bool
}

// routes returns what is learned as of now; nil where no speaker is configured.
func (c *Controller) routes() plan.Routes {
	if c.table == nil {
		return nil
	}
	s := c.table.Snapshot()
	return learned{s, s.Whole()}
}

func (l learned) MAC(vni uint32, mac stain.MAC) plan.Learned {
	if vni == 0 {
		return plan.Learned{}
	}
	return l.answer(l.snap.MAC(vni, mac))
}

// IP takes a prefix that holds more than the address for the answer only if all peers told all:
// what is missing may be a longer one.
func (l learned) IP(vni uint32, addr netip.Addr) plan.Learned {
	if vni == 0 {
		return plan.Learned{}
	}
	found := l.snap.IP(rib.VNI(vni), addr)
	a := l.answer(found)
	switch {
	case a.State != plan.Present || found.Prefix.IsSingleIP():
	case !l.whole:
		return plan.Learned{State: plan.NotKnown}
	default:
		a.Prefix = found.Prefix
	}
	return a
}

// answer takes an absence for one only if nobody is left who may know better.
func (l learned) answer(found rib.Lookup) plan.Learned {
	switch {
	case found.State == rib.Absent && l.whole:
		return plan.Learned{State: plan.Absent}
	case found.State != rib.Present:
		return plan.Learned{State: plan.NotKnown}
	}
	a := plan.Learned{
		State: plan.Present, Since: found.Since, Sequence: found.Seq, Sticky: found.Sticky, Stale: found.Stale,
		VTEPs: make([]netip.Addr, 0, len(found.VTEPs)),
	}
	a.Segment = found.VTEPs[0].ESI != (wire.ESI{}) && !slices.ContainsFunc(found.VTEPs, func(v rib.VTEP) bool {
		return v.ESI != found.VTEPs[0].ESI
	})
	for _, v := range found.VTEPs {
		if n := len(a.VTEPs); n == 0 || a.VTEPs[n-1] != v.Addr { // they come sorted
			a.VTEPs = append(a.VTEPs, v.Addr)
		}
	}
	return a
}

// vtepsEvery bounds how often the speaker is told of VTEPs: each time it looks at all routes of
// the peers concerned, and a fleet that starts tells of thousands within seconds.
const vtepsEvery = time.Second

// mapNetworks has the table know the networks that bgp.networks names, as the inventory has them now.
func (c *Controller) mapNetworks() {
	c.mapping.Lock()
	defer c.mapping.Unlock()
	c.table.SetNetworks(mapping(*c.named.Load(), c.book.Snapshot()), time.Now())
}

func mapping(networks []bgp.Network, s *inventory.Snapshot) rib.Networks {
	return bgp.Config{Networks: networks}.Mapping(func(name string) uint32 {
		n, _ := s.Network(name)
		return n.SegmentationID
	})
}

// follow keeps what next_hops: [known] means what agents report, and what networks by their names mean
// what the inventory has, until ctx is done.
func (c *Controller) follow(ctx context.Context) {
	book, speaker := c.book, c.speaker
	var told []netip.Prefix
	for {
		changed := book.Changed()
		c.mapNetworks()
		if now := vteps(book.Snapshot()); !slices.Equal(now, told) {
			speaker.SetVTEPs(now)
			told = now
			select {
			case <-ctx.Done():
				return
			case <-time.After(vtepsEvery):
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// vteps returns the tunnel addresses of all hosts that agents ever reported, sorted.
func vteps(s *inventory.Snapshot) []netip.Prefix {
	all := make([]netip.Prefix, 0, len(s.VTEPs()))
	for a := range s.VTEPs() {
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return all
}

// reloadPeers reads the configuration again, of which peers alone can change without a restart.
func (c *Controller) reloadPeers() {
	cfg, err := LoadConfig(c.cfg.Path)
	switch {
	case err != nil:
		c.log.Error("peers stay as they were", "err", err)
		return
	case cfg.BGP == nil && c.speaker == nil:
		return
	case cfg.BGP == nil || c.speaker == nil:
		c.log.Error("the group bgp came or went; that needs a restart", "config", c.cfg.Path)
		return
	case cfg.BGP.RouterID != c.cfg.BGP.RouterID || cfg.BGP.AS != c.cfg.BGP.AS:
		c.log.Error("peers stay as they were: another bgp.router_id or bgp.as needs a restart", "config", c.cfg.Path)
		return
	}
	if err := c.speaker.Relisten(cfg.BGP.Listen); err != nil {
		c.log.Error("peers stay as they were", "err", err)
		return
	}
	c.named.Store(&cfg.BGP.Networks)
	c.mapNetworks()
	if err := c.speaker.Reconfigure(cfg.BGP.Peers); err != nil {
		c.log.Error("peers changed, not all as configured", "err", err)
		return
	}
	c.log.Info("peers read again", "peers", len(cfg.BGP.Peers))
}
