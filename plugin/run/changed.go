package run

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// Most faults have somebody's hand in them: a flow that came or went, a tunnel with another address, a
// route. The pairs that such a change may concern are next in a patrol's round; how fast they are probed
// remains the pace's to say. Nothing else follows from it: many changes a second are as good as none.

const (
	// vagueEvery bounds how often all pairs of a host are next, for a change that names none of them:
	// else the pairs of other hosts would never be where one's flows change all the time.
	vagueEvery = time.Second
	// maxHurried bounds the pairs that are next by one change: more than their instances may be probed
	// for in some seconds.
	maxHurried = 256
	// owed is how many probes of an instance a patrol sends at once for changes that name it, before their time:
	// what it owes by that is not sent later, so its round pauses there for 0.4 s at the default pace. The pace of
	// all runs holds for them as for all.
	owed = 4
	// certain is how much a change concerns a pair of which it is known that its way is another one; a
	// flow's match concerns it the more, the more fields name it.
	certain = 100
)

// changed takes in that others changed flows of a bridge.
func (c *continuous) changed(host string, m *dyetracev1.Changes) {
	now := time.Now()
	about := map[int]int{}
	var terms []matched
	for _, text := range m.GetMatches() {
		terms = append(terms, readMatch(text))
	}
	vague := m.GetMore() || slices.ContainsFunc(terms, func(t matched) bool { return !t.names() })
	if vague && now.Sub(c.vague[host]) < vagueEvery {
		vague = false
	}
	if vague {
		c.vague[host] = now
	}
	for i, p := range c.paths {
		if p == nil || p.From.Host != host && p.To.Host != host {
			continue
		}
		if vague {
			about[i] = 0
		}
		for k := range terms {
			if terms[k].names() {
				if n := terms[k].concerns(p, host, m.GetBridge(), c.ports); n > 0 {
					about[i] = max(about[i], n)
				}
			}
		}
	}
	c.hurry(about)
}

// hurry has pairs be next in the round, those first that are concerned most; and those that are named as soon as may be.
func (c *continuous) hurry(about map[int]int) {
	if len(about) == 0 {
		return
	}
	c.r.metrics.hurried.Inc()
	var next, rest []uint32
	for _, n := range c.round.order {
		if sure, is := about[int(n)]; is {
			next = append(next, n)
			c.pairs[n].hurried = c.pairs[n].hurried || sure > 0
		} else {
			rest = append(rest, n)
		}
	}
	slices.SortStableFunc(next, func(a, b uint32) int { return cmp.Compare(about[int(b)], about[int(a)]) })
	if len(next) > maxHurried {
		rest = append(slices.Clone(next[maxHurried:]), rest...)
		next = next[:maxHurried]
	}
	c.round.order = slices.Concat(next, rest)
}

// endKey is a port of a bridge where an instance is.
type endKey struct {
	host, bridge string
	ofport       uint32
}

// portsOf returns the ports of all instances.
func portsOf(paths []*plan.Path) map[endKey]bool {
	ports := map[endKey]bool{}
	for _, p := range paths {
		if p == nil {
			continue
		}
		for _, e := range []*plan.End{&p.From, &p.To} {
			if e.OFPort != 0 {
				ports[endKey{e.Host, e.Bridge, e.OFPort}] = true
			}
		}
	}
	return ports
}

// matched is what a flow's match says of whom it is about.
type matched struct {
	macs   []stain.MAC
	ips    []netip.Prefix
	inPort uint32
	tunID  uint64
}

// names says that it is about some packets, and not about all.
func (t *matched) names() bool {
	return len(t.macs) > 0 || len(t.ips) > 0 || t.inPort != 0 || t.tunID != 0
}

// readMatch reads the fields of a match that name instances. What it cannot read is left out: then it is
// about more than it might be.
func readMatch(text string) (t matched) {
	for field := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch name {
		case "dl_src", "dl_dst", "arp_sha", "arp_tha", "nd_sll", "nd_tll":
			if mac, err := stain.ParseMAC(value); err == nil && mac[0]&1 == 0 { // without mask, and no broadcast
				t.macs = append(t.macs, mac)
			}
		case "nw_src", "nw_dst", "ipv6_src", "ipv6_dst", "arp_spa", "arp_tpa", "nd_target":
			if p, err := netip.ParsePrefix(value); err == nil {
				t.ips = append(t.ips, p)
			} else if a, err := netip.ParseAddr(value); err == nil {
				t.ips = append(t.ips, netip.PrefixFrom(a, a.BitLen()))
			}
		case "in_port":
			if n, err := strconv.ParseUint(value, 10, 32); err == nil {
				t.inPort = uint32(n)
			}
		case "tun_id":
			if n, err := strconv.ParseUint(value, 0, 64); err == nil { // without mask
				t.tunID = n
			}
		}
	}
	return t
}

// concerns returns how many of its fields name an end of a pair, as a packet of theirs passes a bridge of a
// host; 0 if one names somebody else. Which of the two sends is not looked at: an answer goes the other way.
func (t *matched) concerns(p *plan.Path, host, bridge string, ports map[endKey]bool) (n int) {
	for _, mac := range t.macs {
		if mac != p.SrcMAC && mac != p.DstMAC && !slices.ContainsFunc(p.Points, func(e plan.Expected) bool { return e.SrcMAC == mac || e.DstMAC == mac }) {
			return 0
		}
		n++
	}
	for _, ip := range t.ips {
		if !ip.Contains(p.Src) && !ip.Contains(p.Dst) {
			return 0
		}
		n++
	}
	if t.tunID != 0 {
		// A network whose key the inventory does not tell may have any.
		if !slices.ContainsFunc(p.Points, func(e plan.Expected) bool {
			return e.Host == host && (uint64(e.TunID) == t.tunID || e.TunID == 0)
		}) {
			return 0
		}
		n++
	}
	if t.inPort != 0 && ports[endKey{host, bridge, t.inPort}] {
		at := func(e *plan.End) bool { return e.Host == host && e.Bridge == bridge && e.OFPort == t.inPort }
		if !at(&p.From) && !at(&p.To) {
			return 0
		}
		n++
	}
	if n == 0 && t.inPort != 0 {
		n = 1 // a port that many share: all that passes there
	}
	return n
}

// sameWay says that nothing was changed that may lead a pair's packets another way, though they are probed
// and judged as before.
func sameWay(a, b *plan.Path) bool {
	end := func(a, b *plan.End) bool {
		return slices.EqualFunc(a.Tunnels, b.Tunnels, func(x, y inventory.Tunnel) bool { return x == y }) &&
			a.Learned.State == b.Learned.State && slices.Equal(a.Learned.VTEPs, b.Learned.VTEPs) && a.MTU == b.MTU
	}
	return end(&a.From, &b.From) && end(&a.To, &b.To)
}
