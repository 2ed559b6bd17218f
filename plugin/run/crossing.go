package run

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
)

const (
	// enoughLost is how many datagrams must have been lost until it is said whether all source ports lose or
	// some only. That is told by how many lose none. Where all lose alike, some 5 of 16 lose none of the first
	// 18; where one of two equal paths loses it is 7 to 9 mostly. No more than are expected on average is
	// everywhere; farther from that than manySigmas is a member (once in 3,000 otherwise); in between more
	// losses are waited for. That one of two paths is taken for all of them at first comes in some
	// hundredths of cases: where few of the ports go the other way.
	enoughLost = 18
	manySigmas = 3.5
	// staleAfter is how long an alarm of a crossing stands of which nothing is heard any more.
	staleAfter = 10 * time.Second
)

// extent says how much of a crossing loses.
type extent uint8

const (
	// nowhere: no loss is known.
	nowhere extent = iota
	// somewhere: there is a loss, and too few were lost yet to tell where.
	somewhere
	// everywhere: datagrams from all source ports are lost.
	everywhere
	// member: only those from some ports are. One of several equal-cost paths loses; which of them a pair's
	// packets take nobody knows, so no pair is blamed.
	member
)

// crossing is the network under the tunnels from one host to another, as the agents' streams show it. It is
// pure: no I/O, no clock.
type crossing struct {
	from, to string
	src, dst netip.Addr
	// ports are the trials of the pool's guard, by source port.
	ports  []portTrials
	extent extent
	heard  time.Time
}

// portTrials are those of one source port, and its own guard: a loss on one of many paths is too little of
// all to be seen otherwise.
type portTrials struct {
	port         uint16
	probes, lost int
	guard        sequential.Guard
}

func (x *crossing) port(number uint16) *portTrials {
	i := slices.IndexFunc(x.ports, func(p portTrials) bool { return p.port == number })
	if i < 0 {
		i = len(x.ports)
		x.ports = append(x.ports, portTrials{port: number})
	}
	return &x.ports[i]
}

// use forgets source ports that are used no more: those of an agent that was started anew are others, and one
// from which nothing is sent loses nothing for ever, as if it went by a way that is sound.
func (x *crossing) use(trials []trial) {
	before := len(x.ports)
	x.ports = slices.DeleteFunc(x.ports, func(p portTrials) bool {
		return !slices.ContainsFunc(trials, func(t trial) bool { return t.port == p.port })
	})
	if len(x.ports) < before && x.extent == member {
		x.extent = somewhere // which of the new ones lose is to be seen
	}
}

// trial is what one source port's datagrams were on one way: sent, and lost of these.
type trial struct {
	port         uint16
	probes, lost int
}

// feedNet takes in trials of all ports that are used, which were made at the same time, and says whether the
// extent has changed.
func (p *pool) feedNet(plan sequential.Plan, trials []trial, now time.Time) (changed bool) {
	x := p.net
	x.heard = now
	before := x.extent
	probes, lost := 0, 0
	if p.host == "" && len(trials) > 0 {
		x.use(trials)
	}
	for _, t := range trials {
		probes, lost = probes+t.probes, lost+t.lost
		if p.host != "" {
			continue // ports of many hosts tell of no path
		}
		at := x.port(t.port)
		at.probes, at.lost = at.probes+t.probes, at.lost+t.lost
		at.guard.AddMany(plan, t.probes, t.lost)
	}
	want, alarmed := p.guard.Probes+probes, p.guard.Alarm
	p.guard.AddMany(plan, probes, lost)
	switch {
	case alarmed && !p.guard.Alarm: // it is over; a port by itself would take as many times longer to say so as there are ports
		x.ports = nil
	case p.guard.Probes == 0: // no suspicion is left
		for i := range x.ports {
			x.ports[i].probes, x.ports[i].lost = 0, 0
		}
	case p.guard.Probes < want: // it lets what it has counted fade; who has lost some keeps one at the least
		for i := range x.ports {
			x.ports[i].probes, x.ports[i].lost = (x.ports[i].probes+1)/2, (x.ports[i].lost+1)/2
		}
	}
	switch {
	case p.host == "":
		x.extent = x.extentBy(p.guard.Alarm)
	case p.guard.Alarm:
		x.extent = everywhere
	default:
		x.extent = nowhere
	}
	if x.extent != before && before == nowhere {
		p.since = now
	}
	return x.extent != before
}

func (x *crossing) extentBy(alarm bool) extent {
	lost, quiet, alone := 0, 0, false
	for i := range x.ports {
		p := &x.ports[i]
		lost += p.lost
		if p.lost == 0 {
			quiet++
		}
		alone = alone || p.guard.Alarm
	}
	mean, sigma := quietPorts(len(x.ports), lost)
	switch {
	case !alarm && alone:
		return member
	case !alarm:
		return nowhere
	case lost >= enoughLost && float64(quiet) <= math.Ceil(mean):
		return everywhere
	case lost >= enoughLost && float64(quiet) > mean+manySigmas*sigma:
		return member
	case x.extent == nowhere:
		return somewhere
	}
	return x.extent
}

// quietPorts is how many of n source ports lose nothing, on average and with which deviation, where all lose
// alike and so many datagrams were lost (W. Feller, An Introduction to Probability Theory, I, IV.2: occupancy).
func quietPorts(n, lost int) (mean, sigma float64) {
	if n < 2 {
		return 0, 0
	}
	p := float64(n)
	mean = p * math.Pow(1-1/p, float64(lost))
	both := p * (p - 1) * math.Pow(1-2/p, float64(lost))
	return mean, math.Sqrt(max(0, both+mean-mean*mean))
}

// figures are what is lost: of all ports, or where some only lose, of those, which are named then.
func (p *pool) figures() (probes, lost int, ports []uint32) {
	if p.net == nil || p.net.extent != member {
		return p.guard.Probes, p.guard.Lost, nil
	}
	for i := range p.net.ports {
		// One whose guard is alarmed has counted by itself, since before the pool had no suspicion.
		t := &p.net.ports[i]
		n, l := t.probes, t.lost
		if t.guard.Alarm {
			n, l = max(n, t.guard.Probes), max(l, t.guard.Lost)
		}
		if l > 0 && (t.guard.Alarm || p.guard.Alarm) {
			probes, lost, ports = probes+n, lost+l, append(ports, uint32(t.port))
		}
	}
	slices.Sort(ports)
	return probes, lost, ports
}

// forget ends an alarm of which nothing is heard any more; false if there is none.
func (p *pool) forget(now time.Time) bool {
	if p.net == nil || p.net.extent == nowhere || now.Sub(p.net.heard) < staleAfter {
		return false
	}
	p.guard, p.net.ports, p.net.extent = sequential.Guard{}, nil, nowhere
	return true
}

// raised says that it is known to lose too much, blaming that the pairs which pass are faulty by that.
func (p *pool) raised() bool {
	if p.net != nil {
		return p.net.extent == everywhere || p.net.extent == member
	}
	return p.guard.Alarm
}

func (p *pool) blaming() bool {
	if p.net != nil {
		return p.blames && p.net.extent == everywhere
	}
	return p.blames && p.guard.Alarm
}

// net is the pool of what lies under the tunnels from one host to another.
func (ps *pools) net(pair int, from, to *plan.Expected) *pool {
	p := ps.get("net "+from.Host+" "+to.Host, pair, func() *pool {
		return &pool{from: from, to: to, blames: true, net: &crossing{from: from.Host, to: to.Host}}
	})
	p.name = fmt.Sprintf("the underlay from %s to %s", from.Host, to.Host)
	return p
}

// crossed takes in what became of a stream's datagrams from one host to another. Changed are the pools of
// which is known now that they lose, or not.
func (ps *pools) crossed(from, to string, src, dst netip.Addr, trials []trial, now time.Time) (changed []*pool) {
	for _, way := range []struct{ key, host string }{{"net " + from + " " + to, ""}, {"net out " + from, from}, {"net in " + to, to}} {
		p := ps.byKey[way.key]
		if p == nil {
			if way.host == "" {
				return nil // no pair passes there any more
			}
			p = &pool{host: way.host, name: "the underlay at " + way.host, pairs: map[int]bool{}, net: &crossing{from: from, to: to}}
			ps.byKey[way.key] = p
		}
		if way.host == "" {
			p.net.src, p.net.dst = src, dst
		}
		if p.feedNet(ps.plan, trials, now) {
			changed = append(changed, p)
		}
	}
	return changed
}
