package run

import (
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"

	"github.com/dyetrace/dyetrace/plugin/pace"
)

// Where a stream between two hosts that was answered has no answer any more, something is broken, or about to be
// over: nothing is said of what, nor which of the two ways. So all pairs that pass between the two hosts, either
// way, are examined at once, and the verdict is the examination's. When there are answers again those that are not
// healthy are.

const (
	// signsWithin is how long the first sign waits for others, so that one examination takes what one fault breaks:
	// agents look every 5 ms what came, each at times of its own.
	signsWithin = 10 * time.Millisecond
	// A link that comes and goes has its pairs examined for it no more often than every firstGap after the first
	// time, then twice that, and so on up to lastGap; and begins anew after it gave no sign for signless. The patrol goes
	// on meanwhile.
	firstGap, lastGap = 2 * time.Second, 30 * time.Second
	signless          = time.Minute
)

// silence is whether a stream between two hosts is answered.
type silence struct {
	from, to string
	silent   bool
	since    time.Time // the first question that is not answered
	told     time.Time
	// owed says that pairs are to be examined for it; heeded that they were, since when it is silent.
	owed, heeded bool
	last         time.Time // when pairs were examined for it last
	gap          time.Duration
	ended        time.Time // the last that was heeded
}

// due is when its pairs may be examined.
func (s *silence) due() time.Time {
	at := s.told.Add(signsWithin)
	if next := s.last.Add(s.gap); next.After(at) {
		return next
	}
	return at
}

// hears takes in whether there are answers now; ends says that a silence is over for which pairs were examined.
func (s *silence) hears(n *fleet.StreamCount, now time.Time) (begins, ends bool) {
	switch silent := n.Silent > 0; {
	case silent && !s.silent:
		if now.Sub(s.told) > signless {
			s.gap = 0
		}
		s.silent, s.owed, s.heeded = true, true, false
		s.since, s.told = now.Add(-n.SilentFor), now
		return true, false
	case !silent && s.silent:
		s.silent, s.owed = false, false
		if s.heeded {
			s.ended = now
		}
		return false, s.heeded
	}
	return false, false
}

// heed takes in that its pairs are examined.
func (s *silence) heed(now time.Time) {
	s.owed, s.heeded, s.last = false, true, now
	s.gap = min(max(firstGap, 2*s.gap), lastGap)
}

// hears takes in whether a stream is answered.
func (c *continuous) hears(t *fleet.StreamTarget, n *fleet.StreamCount, now time.Time) {
	key := [2]string{t.From, t.To}
	s := c.streaming.silences[key]
	if s == nil {
		if n.Silent == 0 {
			return
		}
		s = &silence{from: t.From, to: t.To}
		c.streaming.silences[key] = s
	}
	was := s.silent
	begins, ends := s.hears(n, now)
	switch {
	case begins:
		c.ways.hush(s.from, s.to, s.since)
	case was && !s.silent:
		c.ways.hush(s.from, s.to, time.Time{})
	}
	switch {
	case begins:
		c.log.Info("no answers between two hosts", "from", s.from, "to", s.to, "in_a_row", n.Silent, "for", n.SilentFor)
		c.streaming.owed = append(c.streaming.owed, s)
	case ends:
		c.log.Info("answers again between two hosts", "from", s.from, "to", s.to, "after", now.Sub(s.since))
		c.suspectBetween(s, now, now, func(p *standing) bool {
			return p.base != nil && p.base.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY
		})
	}
}

// forgetSilences forgets what was of streams that are no more.
func (c *continuous) forgetSilences() {
	for key, s := range c.streaming.silences {
		if !slices.ContainsFunc(c.streaming.targets, func(t fleet.StreamTarget) bool { return t.From == s.from && t.To == s.to }) {
			s.owed = false
			c.ways.hush(s.from, s.to, time.Time{})
			delete(c.streaming.silences, key)
		}
	}
}

// eased says that there are answers again between the hosts of a pair, since a time when there were none.
func (c *continuous) eased(i int, since time.Time) bool {
	path := c.paths[i]
	if path == nil {
		return false
	}
	for _, key := range [][2]string{{path.From.Host, path.To.Host}, {path.To.Host, path.From.Host}} {
		if s := c.streaming.silences[key]; s != nil && !s.silent && s.ended.After(since) {
			return true
		}
	}
	return false
}

// heedSilences has pairs be examined for streams that are not answered, and returns when there may be more to do.
func (c *continuous) heedSilences(now time.Time) (wake time.Time) {
	wake = now.Add(time.Hour)
	owed := c.streaming.owed[:0]
	for _, s := range c.streaming.owed {
		switch at := s.due(); {
		case !s.owed:
			c.r.metrics.silences.WithLabelValues("over").Inc()
		case at.After(now):
			wake = earliest(wake, at)
			owed = append(owed, s)
		default:
			c.r.metrics.silences.WithLabelValues("examined").Inc()
			s.heed(now)
			c.signed = true
			c.suspectBetween(s, s.since, now, func(p *standing) bool {
				examined := p.exam != 0 && c.exams[p.exam].began.After(s.since) // for what a patrol met
				return !examined && c.arrives(p.base)
			})
		}
	}
	clear(c.streaming.owed[len(owed):])
	c.streaming.owed = owed
	return wake
}

// suspectBetween has pairs that pass between two hosts be examined, so many at once as their instances may be probed for
// now; the others are next in the round.
func (c *continuous) suspectBetween(s *silence, since, now time.Time, of func(*standing) bool) {
	most := max(1, int(pace.PatrolShare*float64(c.r.cfg.PerInstanceBurst)))
	taken, begun, rest := map[*pace.Bucket]int{}, 0, map[int]int{}
	for _, n := range c.round.order { // in the order of their turns
		i := int(n)
		if path := c.paths[i]; path == nil || !slices.Contains([]string{s.from, s.to}, path.From.Host) ||
			!slices.Contains([]string{s.from, s.to}, path.To.Host) || path.From.Host == path.To.Host || !of(&c.pairs[i]) {
			continue
		}
		l := &c.lanes[i]
		if begun >= maxHurried || taken[l.Src] >= most || taken[l.Dst] >= most {
			rest[i] = certain
			continue
		}
		taken[l.Src]++
		taken[l.Dst]++
		begun++
		c.suspect(i, since)
		if c.arrives(c.pairs[i].base) {
			c.giveUp(i, now) // one that began before, and tests how much is lost
		}
	}
	c.hurry(rest)
}
