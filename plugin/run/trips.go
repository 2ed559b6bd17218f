package run

import (
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
)

// How long probes took of late says how long the next one is waited for. Two things make it up: how long the packet was on
// its way, which is a matter of its pair, of the two hosts and of the two instances, and how long it took beside that until it was known
// here, which is one of the hosts (a busy agent, and its way to us). Each is forgotten as soon as some others took less: what is slow is
// not slow for ever. A way is known to be quick again by any pair's probe, and so is an instance; for a pair whose next one takes
// long nevertheless its own trips count for a while, and not theirs.

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
	// wary is for how many more these count, whatever is known besides: one would have been waited for too briefly by that.
	wary int
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

// learn is add of one that would have been waited for by what is usual.
func (r *recent) learn(d, usual time.Duration, kept int) {
	r.wary = max(0, r.wary-1)
	if d > enough(usual) && d <= enough(r.slowest()) {
		r.wary = kept
	}
	r.add(d, kept)
}

// enough is how long one is waited for that usually takes so long.
func enough(usual time.Duration) time.Duration { return max(settleTimes*usual, minSettle) }

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
	took recent // from when they had left until they were known, of all
	lags map[string]*recent
	// The last round trip between two hosts, by hostPair, and of an instance.
	ways map[[2]string]time.Duration
	ends map[endKey]time.Duration
}

func newTrips() trips {
	return trips{lags: map[string]*recent{}, ways: map[[2]string]time.Duration{}, ends: map[endKey]time.Duration{}}
}

// add takes in how long a probe took, by the clock of its source's host (0 is that this was not seen) and until it was known here.
func (t *trips) add(p *plan.Path, rtt, took time.Duration) {
	t.took.add(took, keptTook)
	lag := max(0, took-rtt)
	for _, host := range hostsOf(p) {
		t.of(host).add(lag, keptLags)
	}
}

// hostsOf are the hosts of a pair's instances.
func hostsOf(p *plan.Path) []string {
	if p.From.Host == p.To.Host {
		return []string{p.From.Host}
	}
	return []string{p.From.Host, p.To.Host}
}

func (t *trips) of(host string) *recent {
	r := t.lags[host]
	if r == nil {
		r = &recent{}
		t.lags[host] = r
	}
	return r
}

// lag is how long it takes of late until what a host saw is known.
func (t *trips) lag(host string) time.Duration { return t.of(host).slowest() }

// passed takes in a round trip on a way.
func (t *trips) passed(p *plan.Path, rtt time.Duration) {
	t.ways[hostPair(p.From.Host, p.To.Host)] = rtt
	t.ends[endOf(&p.From)], t.ends[endOf(&p.To)] = rtt, rtt
}

// shared is the longest of the last round trips that passed where a pair's do: between the same hosts, and to or from
// either instance.
func (t *trips) shared(p *plan.Path) time.Duration {
	return max(t.ways[hostPair(p.From.Host, p.To.Host)], t.ends[endOf(&p.From)], t.ends[endOf(&p.To)])
}

func endOf(e *plan.End) endKey { return endKey{e.Host, e.Bridge, e.OFPort} }

// trip takes in how long a probe of a pair took.
func (c *continuous) trip(i int, rtt, took time.Duration) {
	if rtt > 0 {
		c.r.metrics.rtt.Observe(rtt.Seconds())
		c.travelled(i, rtt)
	}
	if p := c.paths[i]; p != nil {
		c.trips.add(p, rtt, took)
	}
}

// travelled takes in a round trip of a pair.
func (c *continuous) travelled(i int, rtt time.Duration) {
	p := &c.pairs[i]
	p.rtts.learn(rtt, c.sharedTrip(i), keptTrips)
	if path := c.paths[i]; path != nil {
		c.trips.passed(path, rtt)
	}
}

// sharedTrip is the longest round trip of a pair of late; or what others need between the same hosts and to and from the same instances,
// if that is less: what made it long is over then.
func (c *continuous) sharedTrip(i int) time.Duration {
	slow := c.pairs[i].rtts.slowest()
	if path := c.paths[i]; path != nil && slow > 0 {
		return min(slow, c.trips.shared(path))
	}
	return slow
}

// roundTrip is how long a pair's packets are on their way at the most, there and back, by what is known of late.
func (c *continuous) roundTrip(i int) time.Duration {
	if r := &c.pairs[i].rtts; r.wary > 0 {
		return r.slowest()
	}
	return c.sharedTrip(i)
}

// usual is how long a probe of a pair may take, by the slowest of late: on its way, and until it is known.
func (c *continuous) usual(i int) (rtt, took time.Duration) {
	p, path := &c.pairs[i], c.paths[i]
	if p.rtts.last == nil || path == nil {
		slow := max(c.trips.took.slowest(), time.Duration(p.base.GetRttNs()))
		return slow, slow
	}
	rtt = c.roundTrip(i)
	if p.pressed {
		// That a change names the pair makes it worth to be looked at sooner, and if it is slow by now, in vain.
		rtt = p.rtts.quickest()
	}
	return rtt, rtt + max(c.trips.lag(path.From.Host), c.trips.lag(path.To.Host))
}

// waitFor is how long a patrol's probe of a pair is waited for.
func (c *continuous) waitFor(i int) time.Duration {
	if c.trips.took.last == nil {
		return c.r.cfg.Settle
	}
	_, took := c.usual(i)
	return enough(took)
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
func (c *continuous) examinedIn(i int, r *dyetracev1.PairResult) {
	if rtt := time.Duration(r.GetRttNs()); rtt > 0 {
		c.travelled(i, rtt)
	}
}

// within is what lies nearest to d between least and most, and most where that is less than least.
func within(d, least, most time.Duration) time.Duration { return min(max(d, least), most) }
