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
// kept from guests; and where the probe before it was delivered and not seen to be answered, or not all
// the way back, that an answer is seen which does not bear the ToS.
func (x *execution) wantsArms(number uint32) bool {
	track := x.ledger.of(number)
	if x.ledger.path(track).NoTouch {
		return true
	}
	return x.unheard(number)
}

// unheard says that the answer to a probe before this one may have been there, and not been known.
func (x *execution) unheard(number uint32) bool {
	track := x.ledger.of(number)
	path := x.ledger.path(track)
	for ; number != x.ledger.number(track, 0); number -= uint32(len(x.ledger.tracks)) {
		before := x.ledger.attempt(number - uint32(len(x.ledger.tracks)))
		if before.Armed || verdict.Unanswered(path, &before) || verdict.Unrecognised(path, &before) {
			return true
		}
	}
	return false
}

// arm asks for what probes need, and returns those that have it, or go without.
func (x *execution) arm(numbers []uint32, now time.Time) (ready []uint32) {
	asks := make([]*dyetracev1.Arm, len(x.host))
	whose := make([][]uint32, len(x.host))
	of := func(host int, number uint32) *dyetracev1.Arm {
		if asks[host] == nil {
			asks[host] = &dyetracev1.Arm{}
		}
		whose[host] = append(whose[host], number)
		x.waits[number]++
		return asks[host]
	}
	for _, number := range numbers {
		p := x.ledger.path(x.ledger.of(number))
		if p.NoTouch {
			x.withhold(of, p, number, now)
			continue
		}
		host := slices.Index(x.ledger.hosts, p.To.Host)
		if host < 0 || x.host[host].gone {
			ready = append(ready, number)
			continue
		}
		m := of(host, number)
		if x.ledger.tracks[x.ledger.of(number)].scheme == stain.TCP {
			m.Answers = withPort(m.Answers, &p.To)
		} else if !slices.Contains(m.Expect, p.To.Bridge) {
			m.Expect = append(m.Expect, p.To.Bridge)
		}
	}
	for host, m := range asks {
		if m != nil {
			x.arms[x.agents.Arm(host, m)] = arming{host, whose[host], now}
		}
	}
	return ready
}

// withhold asks all hosts on a path to keep a probe from their guests. If one cannot be asked it
// is not sent.
func (x *execution) withhold(of func(host int, number uint32) *dyetracev1.Arm, p *plan.Path, number uint32, now time.Time) {
	for _, name := range p.Hosts() {
		if host := slices.Index(x.ledger.hosts, name); x.host[host].gone {
			x.fail(number, x.gone[name], false, now)
			return
		}
	}
	dst := p.Dst.As16()
	for _, name := range p.Hosts() {
		m := of(slices.Index(x.ledger.hosts, name), number)
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
// be kept from guests is not sent; what only makes answers visible is done without.
func (x *execution) armed(host int, m *dyetracev1.Armed, now time.Time) {
	a, known := x.arms[m.GetId()]
	if !known || a.host != host {
		return
	}
	delete(x.arms, m.GetId())
	label := "in_place"
	if m.GetError() != "" {
		label = "refused"
	}
	x.metrics.arms.WithLabelValues(label).Inc()
	var ready []uint32
	for _, number := range a.numbers {
		p := &x.ledger.probes[number]
		noTouch := x.ledger.path(x.ledger.of(number)).NoTouch
		switch {
		case m.GetError() == "":
			p.armed = !noTouch
		case noTouch:
			x.fail(number, fmt.Sprintf("%s cannot keep it from the guest: %s", x.ledger.hosts[host], m.GetError()), false, now)
		default:
			x.log.Warn("answers without the stain's ToS are not seen", "host", x.ledger.hosts[host], "err", m.GetError())
		}
		if x.waits[number]--; x.waits[number] > 0 {
			continue
		}
		delete(x.waits, number)
		if p.state == asked {
			ready = append(ready, number)
		}
	}
	x.launch(ready)
}

// armLate gives up on agents that do not answer Arm, and returns when the next one will be late.
func (x *execution) armLate(now time.Time) (wake time.Time) {
	wake = x.hard
	for id, a := range x.arms {
		if at := a.since.Add(answerTimeout); now.Before(at) {
			wake = earliest(wake, at)
			continue
		}
		x.armed(a.host, &dyetracev1.Armed{Id: id, Error: fmt.Sprintf("no answer within %v", answerTimeout)}, now)
	}
	return wake
}
