package run

import (
	"hash/fnv"
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// streams are what the agents send each other for a run (fleet.Streaming).
type streams interface {
	Set([]fleet.StreamTarget)
	Take() []fleet.StreamCount
	Wake() <-chan struct{}
	Close()
}

// streaming is a continuous run's part in them. No instance takes part, so no instance's pace binds them.
type streaming struct {
	streams streams // nil: switched off
	targets []fleet.StreamTarget
	errors  map[string]string // by target, logged
	checked time.Time

	silences map[[2]string]*silence // by the hosts that ask and answer
	owed     []*silence             // for which pairs are to be examined
}

// streamTargets returns a stream for each two hosts that pairs lie between: one tells of both ways. Which of
// the two sends is drawn by their names, so that a host sends to half of the others.
func streamTargets(paths []*plan.Path, tos uint8) (targets []fleet.StreamTarget) {
	known := map[[2]string]bool{}
	for _, p := range paths {
		if p == nil || p.From.Host == p.To.Host {
			continue
		}
		a, b := &p.From, &p.To
		if a.Host > b.Host {
			a, b = b, a
		}
		key := [2]string{a.Host, b.Host}
		if known[key] {
			continue
		}
		known[key] = true
		h := fnv.New32a()
		_, _ = h.Write([]byte(a.Host + " " + b.Host)) // never fails
		if h.Sum32()&1 == 1 {
			a, b = b, a
		}
		n, _ := verdict.NeedStream(a, b)
		if n == nil {
			n, _ = verdict.NeedStream(b, a)
		}
		if n != nil {
			targets = append(targets, fleet.StreamTarget{From: n.From, To: n.To, Src: n.Src, Dst: n.Dst, Port: n.Port, ToS: tos, Size: n.Small, Tunnel: n.By.Port})
		}
	}
	return targets
}

// stream has streams between the hosts of the pairs as they are now.
func (c *continuous) stream() {
	s := &c.streaming
	if s.streams == nil {
		return
	}
	if targets := streamTargets(c.paths, c.r.cfg.ToS); !slices.Equal(targets, s.targets) {
		s.targets = targets
		s.streams.Set(targets)
		c.forgetSilences()
	}
}

func (s *streaming) wake() <-chan struct{} {
	if s.streams == nil {
		return nil
	}
	return s.streams.Wake()
}

// streamed takes in what became of datagrams.
func (c *continuous) streamed(now time.Time) {
	s := &c.streaming
	for _, n := range s.streams.Take() {
		if n.Target >= len(s.targets) {
			continue
		}
		t := &s.targets[n.Target]
		if n.Error != "" {
			if key := t.From + " " + t.To; s.errors[key] != n.Error {
				s.errors[key] = n.Error
				c.log.Warn("no stream of underlay probes: a little loss there is found by pairs' own probes", "from", t.From, "to", t.To, "err", n.Error)
			}
			continue
		}
		c.hears(t, &n, now)
		var there, back []trial
		for _, p := range n.Ports {
			came := p.Passed + p.Back
			there = append(there, trial{p.Port, came + p.There, p.There})
			back = append(back, trial{p.Port, came, p.Back})
			c.r.metrics.streamed(p)
		}
		for _, changed := range [][]*pool{c.pools.crossed(t.From, t.To, n.Src, t.Dst, there, now), c.pools.crossed(t.To, t.From, t.Dst, n.Src, back, now)} {
			for _, p := range changed {
				if p.host == "" && p.net.extent == nowhere {
					c.pools.over(p, func(pair int) []step { return c.pairs[pair].steps })
				}
			}
			c.crossed(changed, now)
		}
	}
}

// crossed tells pairs that are concerned by what is known of parts of the underlay now.
func (c *continuous) crossed(changed []*pool, now time.Time) {
	for _, p := range changed {
		probes, lost, ports := p.figures()
		c.log.Info("loss", "of", p.name, "raised", p.raised(), "packets", probes, "lost", lost, "source_ports", ports)
		for i := range p.pairs {
			c.tell(i, now)
		}
		c.shown = time.Time{} // what loses is shown by the next step
	}
}

// forgetStreams ends alarms of which nothing is heard any more.
func (c *continuous) forgetStreams(now time.Time) {
	if now.Sub(c.streaming.checked) < time.Second {
		return
	}
	c.streaming.checked = now
	for _, p := range c.pools.byKey {
		if p.forget(now) {
			c.crossed([]*pool{p}, now)
		}
	}
}
