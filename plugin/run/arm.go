package run

import (
	"fmt"
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
	"github.com/dyetrace/dyetrace/stain"
)

// withholdFor is how long a probe is kept from guests, from when it was asked for. It covers an
// agent that takes all its time to answer, and the time until the probe is withdrawn.
const withholdFor = 30 * time.Second

// arming is an Arm that was not answered yet.
type arming struct {
	host    int
	numbers []uint32
	since   time.Time
}

// wantsArms says whether something must be in place before a probe is sent: in no-touch that it is
// kept from guests; and where the probe before it, of a patrol it may be, was delivered and not seen to be answered,
// or not all the way back, or the guest's link is down, so that none will be, that an answer is seen which does not bear the ToS.
func (x *execution) wantsArms(number uint32) bool {
	track := x.ledger.of(number)
	path := x.ledger.path(track)
	if path.NoTouch {
		return true
	}
	p := x.prior(x.layout.pair(track))
	return armable(path) && (p != nil && p.unheard || path.To.LinkDown || x.unheard(number))
}

// unheard says that the answer to a probe before this one may have been there, and not been known.
func (x *execution) unheard(number uint32) bool {
	track := x.ledger.of(number)
	path := x.ledger.path(track)
	heard := true
	x.ledger.each(track, func(before uint32) {
		if before == number || !heard {
			return
		}
		at := x.ledger.attempt(before)
		heard = !at.Armed && !verdict.Unanswered(path, &at) && !verdict.Unrecognised(path, &at)
	})
	return !heard
}

// maybeHeard says that a probe was delivered, and that an answer without the ToS would have passed unseen: however many
// others are lost, this one is no evidence, and the next one can be.
func (x *execution) maybeHeard(number uint32) bool {
	path, at := x.ledger.path(x.ledger.of(number)), x.ledger.attempt(number)
	return armable(path) && !at.Armed && verdict.Unanswered(path, &at)
}

// armable says that the destination's port is known: its host is asked for no other, since an agent
// puts in place all that it is asked for at once, or nothing.
func armable(p *plan.Path) bool { return p.To.Absent == "" && p.To.Blind == "" }

// lacking returns why a probe of a path cannot be sent for the rest of the run: a host is gone that
// would send it, or that would keep it from guests. Empty if it can.
func (x *execution) lacking(p *plan.Path, entry int) string {
	if x.host[entry].gone {
		return x.gone[x.ledger.hosts[entry]]
	}
	if p.NoTouch {
		for _, name := range p.Hosts() {
			if x.host[slices.Index(x.ledger.hosts, name)].gone {
				return unkept(name, x.gone[name])
			}
		}
	}
	return ""
}

// unkept words that a probe was not sent because a host cannot see to it that no guest gets it.
func unkept(host, why string) string {
	return fmt.Sprintf("%s cannot keep it from the guest: %s", host, why)
}

// unasked is the reason where an agent has left an Arm without an answer before.
func (x *execution) unasked() string {
	return fmt.Sprintf("its agent gave no answer within %v", x.answers)
}

// armPlace tells the Arms of one round apart: one for each host; and where that has refused one, for
// each port, so that a port which is not there keeps none but its own probes from being sent.
type armPlace struct {
	host         int
	bridge, port string
}

// armRound collects what is asked for at one time.
type armRound struct {
	x     *execution
	asks  map[armPlace]*dyetracev1.Arm
	whose map[armPlace][]uint32
	order []armPlace
}

// of returns the Arm that a probe waits for at a host, about a port of its.
func (r *armRound) of(host int, at *plan.End, number uint32) *dyetracev1.Arm {
	place := armPlace{host: host}
	if r.x.host[host].refused {
		place.bridge, place.port = at.Bridge, at.Port
	}
	if r.asks[place] == nil {
		r.asks[place] = &dyetracev1.Arm{}
		r.order = append(r.order, place)
	}
	r.whose[place] = append(r.whose[place], number)
	r.x.waits[number]++
	return r.asks[place]
}

// arm asks for what probes need, and returns those that have it, or go without.
func (x *execution) arm(numbers []uint32, now time.Time) (ready []uint32) {
	if len(numbers) == 0 {
		return nil
	}
	round := &armRound{x: x, asks: map[armPlace]*dyetracev1.Arm{}, whose: map[armPlace][]uint32{}}
	for _, number := range numbers {
		p := x.ledger.path(x.ledger.of(number))
		if p.NoTouch {
			x.withhold(round, p, number, now)
			continue
		}
		if x.ledger.armedBefore(number) { // until the run ends
			x.ledger.probes[number].armed = true
			ready = append(ready, number)
			continue
		}
		host := slices.Index(x.ledger.hosts, p.To.Host)
		if host < 0 || x.host[host].gone || x.host[host].mute {
			ready = append(ready, number)
			continue
		}
		m := round.of(host, &p.To, number)
		if x.ledger.tracks[x.ledger.of(number)].scheme == stain.TCP {
			m.Answers = withPort(m.Answers, &p.To)
		} else if !slices.Contains(m.Expect, p.To.Bridge) {
			m.Expect = append(m.Expect, p.To.Bridge)
		}
	}
	for _, place := range round.order {
		x.arms[x.agents.Arm(place.host, round.asks[place])] = arming{place.host, round.whose[place], now}
	}
	return ready
}

// withhold asks all hosts on a path to keep a probe from their guests. If one cannot be asked it
// is not sent.
func (x *execution) withhold(round *armRound, p *plan.Path, number uint32, now time.Time) {
	hosts := p.Hosts()
	for _, name := range hosts {
		if x.host[slices.Index(x.ledger.hosts, name)].mute {
			x.fail(number, unkept(name, x.unasked()), false, now)
			return
		}
	}
	dst := p.Dst.As16()
	for _, name := range hosts {
		at := &p.From
		if name == p.To.Host {
			at = &p.To
		}
		m := round.of(slices.Index(x.ledger.hosts, name), at, number)
		m.Withhold = append(m.Withhold, number)
		m.WithholdDst = append(m.WithholdDst, dst[:]...)
		m.WithholdMs = uint32(withholdFor / time.Millisecond)
		if name == p.To.Host {
			m.WithholdAt = withPort(m.WithholdAt, &p.To)
		}
	}
}

// withPort adds the port of an end to ports, unless it is among them.
func withPort(ports []*dyetracev1.PortRef, end *plan.End) []*dyetracev1.PortRef {
	for _, p := range ports {
		if p.Bridge == end.Bridge && p.Port == end.Port {
			return ports
		}
	}
	return append(ports, &dyetracev1.PortRef{Bridge: end.Bridge, Port: end.Port})
}

// armed takes in an answer to Arm, and sends the probes that wait for nothing else. What could not
// be kept from guests is not sent; what only makes answers visible is done without. An answer that
// comes late is none: what was put in place may have ended by then.
func (x *execution) armed(host int, m *dyetracev1.Armed, now time.Time) {
	h := &x.host[host]
	a, known := x.arms[m.GetId()]
	if !known || a.host != host {
		h.mute = false // late, but it answers
		return
	}
	if now.Before(a.since.Add(x.answers)) {
		h.refused = h.refused || m.GetError() != ""
		x.settleArm(m.GetId(), m.GetError(), now)
		return
	}
	x.settleArm(m.GetId(), x.unasked(), now)
}

// settleArm ends an Arm; why is empty if all that it asked for is in place.
func (x *execution) settleArm(id uint64, why string, now time.Time) {
	a := x.arms[id]
	delete(x.arms, id)
	name, label := x.ledger.hosts[a.host], "in_place"
	if why != "" {
		label = "refused"
		x.log.Warn("agent does not arm", "host", name, "probes", len(a.numbers), "err", why)
	}
	x.metrics.arms.WithLabelValues(label).Inc()
	var ready []uint32
	for _, number := range a.numbers {
		p := &x.ledger.probes[number]
		noTouch := x.ledger.path(x.ledger.of(number)).NoTouch
		switch {
		case why == "":
			p.armed = !noTouch
		case noTouch:
			x.fail(number, unkept(name, why), false, now)
		}
		if x.waits[number]--; x.waits[number] > 0 {
			continue
		}
		delete(x.waits, number)
		if p.state == asked {
			ready = append(ready, number)
		}
	}
	x.launch(ready, now)
}

// armLate gives up on agents that do not answer Arm, and returns when the next one will be late.
func (x *execution) armLate(now time.Time) (wake time.Time) {
	wake = x.hard
	for id, a := range x.arms {
		if at := a.since.Add(x.answers); now.Before(at) {
			wake = earliest(wake, at)
			continue
		}
		x.host[a.host].mute = true
		x.settleArm(id, x.unasked(), now)
	}
	return wake
}
