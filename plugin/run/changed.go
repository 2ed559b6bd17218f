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
	// what it owes by that is not sent later, so its round pauses there for 0.2 s at the default pace. The pace of
	// all runs holds for them as for all.
	owed = 4
	// renewAfter is how long after an examination there is another one of a pair that is not healthy, where changes name it.
	renewAfter = 2 * time.Second
	// certain is how much a change concerns a pair of which it is known that its way is another one; a
	// flow's match concerns it the more, the more fields name it.
	certain = 100
	// shared is how much one does that matches a port which many share: it is about all that passes there.
	shared = 1
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
	for _, i := range c.by[host] {
		p := c.paths[i]
		if vague {
			about[i] = 0
		}
		for k := range terms {
			if n := terms[k].concerns(p, host, m.GetBridge(), c.ports); n > 0 {
				about[i] = max(about[i], n)
			}
		}
	}
	for i, sure := range about {
		// One that is tested for how much it loses is not probed by the patrol, and would not be for long. Where flows change all the time
		// a test must come to its end nevertheless.
		if p := &c.pairs[i]; sure > shared && p.exam != 0 && now.Sub(c.exams[p.exam].began) >= longExam && now.Sub(p.outdated) >= recheckAfter {
			c.suspect(i, now)
			c.giveUp(i, now)
		} else if sure > shared {
			c.renew(p, now)
		}
	}
	c.hurry(about)
}

// renew has a pair that is not healthy be examined anew, since its cause may be another one by now: a network controller changes its
// flows in steps.
func (c *continuous) renew(p *standing, now time.Time) {
	if p.renewed = true; p.exam == 0 && !p.again.IsZero() && p.base.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
		p.again = earliest(p.again, latest(now, p.found.Add(max(renewAfter, p.lasted))))
	}
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

// byHost are the pairs that have an end on a host.
func byHost(paths []*plan.Path) map[string][]int {
	by := map[string][]int{}
	for i, p := range paths {
		if p == nil {
			continue
		}
		by[p.From.Host] = append(by[p.From.Host], i)
		if p.To.Host != p.From.Host {
			by[p.To.Host] = append(by[p.To.Host], i)
		}
	}
	return by
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
	src, dst instance // of the packets that it matches
	inPort   uint32
	tunID    uint64
	// ports are what is in registers that in some pipelines are OpenFlow ports of the instance which a packet comes from or is for: reg5 in
	// that of Neutron's firewall, reg1 in Antrea's (TargetOFPortField, pkg/agent/openflow/fields.go). In others they may be anything, so
	// nobody is spared for what they are.
	ports []uint32
}

// instance is who sends or gets the packets of a match.
type instance struct {
	macs []stain.MAC
	ips  []netip.Prefix
}

// names says that it is about some packets, and not about all.
func (t *matched) names() bool {
	return len(t.src.macs)+len(t.dst.macs)+len(t.src.ips)+len(t.dst.ips) > 0 || t.inPort != 0 || t.tunID != 0
}

// readMatch reads the fields of a match that name instances. What it cannot read is left out: then it is
// about more than it might be.
func readMatch(text string) (t matched) {
	for field := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch name {
		case "dl_src", "dl_dst", "arp_sha", "arp_tha", "nd_sll", "nd_tll":
			if mac, err := stain.ParseMAC(value); err == nil && mac[0]&1 == 0 { // without mask, and no broadcast
				who := t.end(name, "dl_src", "arp_sha", "nd_sll")
				who.macs = append(who.macs, mac)
			}
		case "nw_src", "nw_dst", "ipv6_src", "ipv6_dst", "arp_spa", "arp_tpa", "nd_target":
			who := t.end(name, "nw_src", "ipv6_src", "arp_spa")
			if p, err := netip.ParsePrefix(value); err == nil {
				who.ips = append(who.ips, p)
			} else if a, err := netip.ParseAddr(value); err == nil {
				who.ips = append(who.ips, netip.PrefixFrom(a, a.BitLen()))
			}
		case "in_port":
			if n, err := strconv.ParseUint(value, 10, 32); err == nil {
				t.inPort = uint32(n)
			}
		case "reg1", "reg5":
			if n, err := strconv.ParseUint(value, 0, 32); err == nil && n > 0 { // without mask
				t.ports = append(t.ports, uint32(n))
			}
		case "tun_id":
			if n, err := strconv.ParseUint(value, 0, 64); err == nil { // without mask
				t.tunID = n
			}
		}
	}
	return t
}

// end is the sender of the packets of a match where the field is one of these, else who gets them.
func (t *matched) end(name string, senders ...string) *instance {
	if slices.Contains(senders, name) {
		return &t.src
	}
	return &t.dst
}

// concerns returns how much it is about a pair, as a packet of theirs passes a bridge of a host: two for each of its fields that names
// one of the two, and one more if what is sent and not only its answer has these, since what becomes of that is known sooner. It is 0 if
// one names somebody else.
func (t *matched) concerns(p *plan.Path, host, bridge string, ports map[endKey]bool) (n int) {
	there, back := t.isSent(p, true), t.isSent(p, false)
	n = max(there, back)
	if n < 0 {
		return 0
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
	at := func(e *plan.End, port uint32) bool { return e.Host == host && e.Bridge == bridge && e.OFPort == port }
	if t.inPort != 0 && ports[endKey{host, bridge, t.inPort}] {
		switch {
		case at(&p.From, t.inPort):
			back = -1
		case at(&p.To, t.inPort):
			there = -1
		}
		if n++; there < 0 && back < 0 || !at(&p.From, t.inPort) && !at(&p.To, t.inPort) {
			return 0
		}
	}
	for _, port := range t.ports {
		if ports[endKey{host, bridge, port}] && (at(&p.From, port) || at(&p.To, port)) {
			n++
		}
	}
	switch {
	case n == 0 && t.inPort != 0:
		return shared
	case n > 0 && there >= 0 && back < 0:
		return 2*n + 1
	}
	return 2 * n
}

// isSent returns how many of its addresses are those of what a pair's source sends to the destination, or (there is false) of the answer; -1 if
// one is not.
func (t *matched) isSent(p *plan.Path, there bool) (n int) {
	srcMAC, srcIP, dstMAC, dstIP, way := p.SrcMAC, p.Src, p.DstMAC, p.Dst, plan.Forward
	if !there {
		srcMAC, srcIP, dstMAC, dstIP, way = dstMAC, dstIP, srcMAC, srcIP, plan.Reply
	}
	other := func(own stain.MAC, routed func(*plan.Expected) stain.MAC) func(stain.MAC) bool {
		return func(mac stain.MAC) bool {
			for k := range p.Points {
				if e := &p.Points[k]; e.Direction == way && routed(e) == mac {
					return false
				}
			}
			return mac != own
		}
	}
	if slices.ContainsFunc(t.src.macs, other(srcMAC, func(e *plan.Expected) stain.MAC { return e.SrcMAC })) ||
		slices.ContainsFunc(t.dst.macs, other(dstMAC, func(e *plan.Expected) stain.MAC { return e.DstMAC })) {
		return -1
	}
	apart := func(ip netip.Addr) func(netip.Prefix) bool {
		return func(p netip.Prefix) bool { return !p.Contains(ip) }
	}
	if slices.ContainsFunc(t.src.ips, apart(srcIP)) || slices.ContainsFunc(t.dst.ips, apart(dstIP)) {
		return -1
	}
	return len(t.src.macs) + len(t.dst.macs) + len(t.src.ips) + len(t.dst.ips)
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
