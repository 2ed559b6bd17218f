package run

import (
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// How long probes took of late says how long the next one is waited for. Two things make it up: how long the packet was on
// its way, which is its pair's own matter, and how long it took beside that until it was known here, which is one of the hosts (a busy
// agent, and its way to us). Each is forgotten as soon as some others took less: what is slow is not slow for ever.

const (
	// minSettle is how long a probe is waited for at the least: an agent's ring alone may keep a sample
	// for 4 ms (packetio.Options.RetireTimeout). settleTimes of what slow ones took is what one is waited for if that is longer. A
	// sample that comes later yet is waited for before a probe counts as lost: this only makes an examination begin.
	minSettle   = 25 * time.Millisecond
	settleTimes = 2
	// examSettle is how long an examination waits at the least before it does more about a probe, and at the most
	// mostSettle; tripTimes of the longest round trips (by the clock of one host) in between. What is late
	// beyond is told from what is lost: see patience.go.
	examSettle, mostSettle = 30 * time.Millisecond, 100 * time.Millisecond
	tripTimes              = 2
	// Of so many the slowest counts: of those between two instances, of those of a host, and of all. Those of a host are
	// some seconds' at the default pace, those of a pair some rounds'.
	keptTrips, keptLags, keptTook = 8, 32, 20
)

// recent are the last of some durations.
type recent struct {
	last []time.Duration
	next int
}

// add takes in one, of which so many are kept.
func (r *recent) add(d time.Duration, kept int) {
	if len(r.last) < kept {
		r.last, r.next = append(r.last, d), len(r.last)+1
		return
	}
	r.next = r.next%kept + 1
	r.last[r.next-1] = d
}

// quickest is 0 where there is none.
func (r *recent) quickest() time.Duration {
	if len(r.last) == 0 {
		return 0
	}
	return slices.Min(r.last)
}

// slowest is 0 where there is none.
func (r *recent) slowest() (most time.Duration) {
	for _, d := range r.last {
		most = max(most, d)
	}
	return most
}

// trips is how long the probes of a continuous run took of late.
type trips struct {
	took recent // from sending to knowing, of all
	lags map[string]*recent
}

// add takes in how long a probe between two hosts took, by the clock of its source's host (0 is that this was not seen) and until it
// was known here.
func (t *trips) add(from, to string, rtt, took time.Duration) {
	t.took.add(took, keptTook)
	t.lag(from).add(took-rtt, keptLags)
	if to != from {
		t.lag(to).add(took-rtt, keptLags)
	}
}

func (t *trips) lag(host string) *recent {
	r := t.lags[host]
	if r == nil {
		r = &recent{}
		if t.lags == nil {
			t.lags = map[string]*recent{}
		}
		t.lags[host] = r
	}
	return r
}

// trip takes in how long a probe of a pair took.
func (c *continuous) trip(i int, rtt, took time.Duration) {
	if rtt > 0 {
		c.r.metrics.rtt.Observe(rtt.Seconds())
		c.pairs[i].rtts.add(rtt, keptTrips)
	}
	if p := c.paths[i]; p != nil {
		c.trips.add(p.From.Host, p.To.Host, rtt, took)
	}
}

// usual is how long a probe of a pair may take, by the slowest of late: on its way, and until it is known.
func (c *continuous) usual(i int) (rtt, took time.Duration) {
	p, path := &c.pairs[i], c.paths[i]
	if p.rtts.last == nil || path == nil {
		slow := max(c.trips.took.slowest(), time.Duration(p.base.GetRttNs()))
		return slow, slow
	}
	rtt = p.rtts.slowest()
	if p.pressed {
		// That a change names the pair makes it worth to be looked at sooner, and if it is slow by now, in vain.
		rtt = p.rtts.quickest()
	}
	return rtt, rtt + max(c.trips.lag(path.From.Host).slowest(), c.trips.lag(path.To.Host).slowest())
}

// waitFor is how long a patrol's probe of a pair is waited for.
func (c *continuous) waitFor(i int) time.Duration {
	if c.trips.took.last == nil {
		return c.r.cfg.Settle
	}
	_, took := c.usual(i)
	return max(settleTimes*took, minSettle)
}

// wait is how long one of any pair is, where agents withdraw what does not arrive.
func (c *continuous) wait() time.Duration {
	if c.trips.took.last == nil {
		return c.r.cfg.Settle
	}
	return within(settleTimes*c.trips.took.slowest(), minSettle, c.r.cfg.Settle)
}

// settleOf is how long an examination of pairs waits.
func (c *continuous) settleOf(pairs []int) time.Duration {
	if c.trips.took.last == nil {
		return c.r.cfg.Settle
	}
	slow := time.Duration(0)
	for _, i := range pairs {
		rtt, took := c.usual(i)
		slow = max(slow, took, tripTimes*rtt)
	}
	return within(slow, examSettle, min(mostSettle, c.r.cfg.Settle))
}

// examinedIn takes in what an examination says of how long the probes of a pair take.
func (p *standing) examinedIn(r *dyetracev1.PairResult) {
	if rtt := time.Duration(r.GetRttNs()); rtt > 0 {
		p.rtts.add(rtt, keptTrips)
	}
}

// within is what lies nearest to d between least and most, and most where that is less than least.
func within(d, least, most time.Duration) time.Duration { return min(max(d, least), most) }
