package run

import (
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

const (
	// patrolProbes is how many probes one patrol sends at the most; the next one has another key, so
	// that no number, and with it no token, comes twice. At 500 probes a second that is 8 minutes.
	patrolProbes = 1 << 18
	// patrolAge is how long a patrol lasts at the most, if it does not run out of numbers.
	patrolAge = 10 * time.Minute
	// auditGap bounds how often a host is asked for an audit because probes were lost: each is a turn
	// of its switch's main thread. auditTimes of what the last one took, if that is longer: where a host has more
	// to do than it can, and probes are late by that, audits must not be most of it.
	auditGap   = 200 * time.Millisecond
	auditTimes = 4
	// auditPeriod is how often hosts are asked though nothing was lost, so that there is an audit not
	// long before any probe: what happened to a hook in between makes probes count for nothing.
	auditPeriod = 5 * time.Second
	// audits are kept of each host; a probe is lost settle after it left, and auditGap later at the
	// most its host is asked.
	keptAudits = 8
)

// patrol goes round the pairs with an execution that concludes nothing: probes are sent as they are
// asked for, and what became of each is told. One goroutine uses it, that of its [continuous].
type patrol struct {
	x    *execution
	told func(meeting)
	// cares says whether it must be known of a pair's probe that did not arrive in time if it was lost; nil
	// is always.
	cares func(pair int) bool
	// waits is how long a probe of a pair is waited for, where agents leave it alone for so long.
	waits func(pair int) time.Duration
	// changed is told that others changed flows of a bridge of a host; may be nil.
	changed func(host string, m *dyetracev1.Changes)
	born    time.Time
	// audits of each host, the oldest first; asked is when a host was asked last, asking that it has not
	// answered, and lasted how long it took the last time.
	audits [][]attestation
	asked  []time.Time
	asking []bool
	lasted []time.Duration
	lost   []lostProbe
	// paths are those of all pairs of the run, nil where there is none; index is which of those the
	// pairs of this patrol are.
	paths  []*plan.Path
	index  []int
	buf    []fleet.Event
	sentAt map[uint32]time.Time // when the agent was told to, of probes under way
}

// attestation is what one audit of a host said, by bridge.
type attestation struct {
	asked, at time.Time
	windows   map[string]*verdict.Audit
}

// meeting is what became of a probe.
type meeting struct {
	pair    int
	outcome outcome
	sent    time.Time
	// last and next are the points of its path between which it was lost, -1 where that is not known.
	last, next int
	// waited is how long one that was lost was waited for before it was withdrawn.
	waited time.Duration
	// rtt is the round trip of one that arrived, 0 where it was not seen.
	rtt time.Duration
	// took is how long it was from when it was known to have left until the last that was seen of one that arrived was: it is waited
	// for from then on.
	took time.Duration
	// late: it was told of as missed before.
	late bool
	// prior is what an examination should know of one that was missed.
	prior *prior
}

type outcome uint8

const (
	// met: it arrived.
	met outcome = iota
	// missed: it did not in time. Later it is told which of met, lost and unclear it was.
	missed
	unable // to send it
	lost
	unclear
)

// lostProbe did not arrive in time; whether it was lost is known when the hosts of its path have
// attested their hooks since.
type lostProbe struct {
	track   int
	number  uint32
	sent    time.Time
	settled time.Time
	waited  time.Duration
}

// newPatrol begins one over an execution that was made with options.patrol.
func newPatrol(x *execution, now time.Time, told func(meeting)) *patrol {
	p := &patrol{x: x, told: told, born: now, sentAt: map[uint32]time.Time{}}
	p.audits = make([][]attestation, len(x.ledger.hosts))
	p.asked, p.asking = make([]time.Time, len(x.ledger.hosts)), make([]bool, len(x.ledger.hosts))
	p.lasted = make([]time.Duration, len(x.ledger.hosts))
	for i := range p.asked {
		p.asked[i] = now
	}
	x.patrol = p
	return p
}

// send has a probe of a pair's track go as soon as the pace lets it; false if this patrol has no
// numbers left.
func (p *patrol) send(track int) bool {
	p.x.ledger.begin(track)
	number, ok := p.x.ledger.fresh(track)
	if ok {
		p.x.queue = append(p.x.queue, number)
	}
	return ok
}

// launched takes in that an agent is told to send a probe: one that is lost is so since then.
func (p *patrol) launched(number uint32, now time.Time) {
	if p != nil {
		p.sentAt[number] = now
	}
}

// settle is how long a probe of a pair is waited for: one on a slow way longer than others, though no longer than
// its agent leaves it alone.
func (p *patrol) settle(pair int) time.Duration {
	if p.waits == nil || p.x.patience == 0 {
		return p.x.settle
	}
	return min(p.waits(pair), p.x.patience)
}

// spentOut says that the next patrol should begin.
func (p *patrol) spentOut(now time.Time) bool {
	return now.Sub(p.born) > patrolAge || len(p.x.ledger.extra) > patrolProbes*9/10
}

// step does what is due, and returns when it wants to be called again.
func (p *patrol) step(now time.Time) (wake time.Time) {
	x := p.x
	switch x.stage {
	case preparing:
		return x.prepare(now)
	case probing:
	default:
		return now.Add(time.Hour)
	}
	x.settled(now)
	x.inject(now)
	wake = earliest(now.Add(auditPeriod), x.armLate(now))
	if len(x.queue) > 0 {
		wake = earliest(wake, x.picked.Add(pickEvery))
	}
	if len(x.settling) > 0 {
		wake = earliest(wake, x.settling[0].at)
	}
	return earliest(wake, p.audit(now))
}

// take takes in what agents said.
func (p *patrol) take() {
	now := time.Now()
	p.buf = p.x.agents.Events(p.buf)
	for i := range p.buf {
		p.x.take(&p.buf[i], now)
		p.buf[i].Message = nil
	}
}

// misses says that a host is there which this patrol knows as gone.
func (p *patrol) misses(snap *inventory.Snapshot) bool {
	for i := range p.x.host {
		if h, known := snap.Host(p.x.ledger.hosts[i]); p.x.host[i].gone && known && h.Connected {
			return true
		}
	}
	return false
}

// local returns which of the patrol's pairs one of the run is.
func (p *patrol) local(pair int) (int, bool) {
	i := slices.Index(p.index, pair)
	return i, i >= 0
}

// ready says that probes may be sent.
func (p *patrol) ready() bool { return p.x.stage == probing }

// end tells the agents that it is over.
func (p *patrol) end(now time.Time) {
	p.x.finishAgents()
	p.x.stage = over
	p.x.release(now)
}

// met takes in that a probe arrived, has settled, or did not leave.
func (p *patrol) met(track int, number uint32) {
	x := p.x
	probe := &x.ledger.probes[number]
	if probe.looked {
		return
	}
	now := time.Now()
	sent, was := p.sentAt[number]
	if !was {
		sent = now // it never was
	}
	delete(p.sentAt, number)
	m := meeting{pair: x.layout.pair(track), sent: sent, last: -1, next: -1}
	switch {
	case x.ledger.arrived(number):
		m.outcome, m.rtt = met, x.ledger.rtt(number)
		if probe.state == left { // and not known before that it had
			m.took = probe.heard - probe.sent
		}
		x.ledger.look(number)
	case probe.state == left:
		probe.looked = true
		m.outcome, m.prior = missed, p.prior(track, number)
		if p.cares == nil || p.cares(m.pair) {
			p.lost = append(p.lost, lostProbe{track, number, m.sent, now, now.Sub(x.begun) - probe.sent})
		} else {
			x.ledger.forget(number)
		}
	default:
		probe.looked = true
		x.ledger.forget(number)
		m.outcome = unable
	}
	p.told(m)
}

// prior is what there is to know of a probe that was missed: what should be asked about it is judged as if the
// hooks were as they were attested last.
func (p *patrol) prior(track int, number uint32) *prior {
	x, hooks := p.x, map[verdict.Place]verdict.Window{}
	for place, w := range x.hooks {
		if w.After == nil {
			w.After = w.Before
		}
		hooks[place] = verdict.Window{Before: w.After, After: w.After}
	}
	path, at := x.ledger.path(track), x.ledger.attempt(number)
	r := verdict.Judge(verdict.Evidence{Path: path, Scheme: x.ledger.tracks[track].scheme, Attempts: []verdict.Attempt{at}, Hooks: hooks, Gone: x.gone})
	return &prior{x.ledger.tracks[track].scheme, r.Need, verdict.Unanswered(path, &at)}
}

// changes takes in what others changed of a host's flows.
func (p *patrol) changes(host string, m *dyetracev1.Changes) {
	if p != nil && p.changed != nil {
		p.changed(host, m)
	}
}

// failed takes in that a probe did not leave, and never will.
func (p *patrol) failed(number uint32) {
	if p != nil {
		p.met(p.x.ledger.of(number), number)
	}
}

// audit asks the hosts for audits that are due, and returns when the next one is.
func (p *patrol) audit(now time.Time) (wake time.Time) {
	x := p.x
	wake = now.Add(auditPeriod)
	due := make([]bool, len(x.host))
	for _, l := range p.lost {
		for _, host := range p.hostsOf(l.track) {
			if a := p.audits[host]; len(a) == 0 || a[len(a)-1].asked.Before(l.settled) {
				due[host] = true
			}
		}
	}
	for host := range x.host {
		gap := max(auditGap, auditTimes*p.lasted[host])
		switch at := p.asked[host].Add(max(auditPeriod, gap)); {
		case x.host[host].gone:
			continue
		case p.asking[host] && now.Sub(p.asked[host]) < x.answers:
			// One at a time: answers do not say which question they are to. What needs another one is due then.
			wake = earliest(wake, p.asked[host].Add(x.answers))
			continue
		case due[host] && now.Sub(p.asked[host]) < gap:
			wake = earliest(wake, p.asked[host].Add(gap))
			continue
		case !due[host] && now.Before(at):
			wake = earliest(wake, at)
			continue
		}
		if p.asking[host] {
			p.lasted[host] = x.answers // and no word yet
		}
		p.asked[host], p.asking[host] = now, true
		x.agents.Audit(host, true)
	}
	return wake
}

func (p *patrol) hostsOf(track int) []int {
	var hosts []int
	from, to := p.x.ledger.span(track)
	for _, pt := range p.x.ledger.points[from:to] {
		if !slices.Contains(hosts, int(pt.host)) {
			hosts = append(hosts, int(pt.host))
		}
	}
	return hosts
}

// attested takes in an audit of a host, and looks at the lost probes that waited for it. The first comes unasked.
func (p *patrol) attested(host int, first bool, now time.Time) {
	if p == nil {
		return
	}
	x := p.x
	asked := p.born
	if !first {
		asked, p.asking[host], p.lasted[host] = p.asked[host], false, now.Sub(p.asked[host])
	}
	a := attestation{asked: asked, at: now, windows: map[string]*verdict.Audit{}}
	for place, w := range x.hooks {
		if place.Host != x.ledger.hosts[host] {
			continue
		}
		if a.windows[place.Bridge] = w.After; first {
			a.windows[place.Bridge] = w.Before
		}
	}
	p.audits[host] = append(p.audits[host], a)
	if n := len(p.audits[host]); n > keptAudits {
		p.audits[host] = slices.Delete(p.audits[host], 0, n-keptAudits)
	}
	p.lost = slices.DeleteFunc(p.lost, func(l lostProbe) bool { return p.settled(l, now) })
}

// settled says what became of a probe that did not arrive; false if that must wait.
func (p *patrol) settled(l lostProbe, now time.Time) bool {
	x := p.x
	m := meeting{pair: x.layout.pair(l.track), sent: l.sent, waited: l.waited, outcome: unclear, last: -1, next: -1, late: true}
	hooks := map[verdict.Place]verdict.Window{}
	for _, host := range p.hostsOf(l.track) {
		if !p.windows(host, l, hooks) {
			if x.host[host].gone || now.Sub(l.settled) > x.answers {
				continue // it will not come
			}
			return false
		}
	}
	at := x.ledger.attempt(l.number)
	if x.ledger.arrived(l.number) { // late, since its sample was
		m.outcome = met
		x.ledger.time(l.number)
	} else {
		e := verdict.Evidence{Path: x.ledger.path(l.track), Scheme: x.ledger.tracks[l.track].scheme, Attempts: []verdict.Attempt{at}, Hooks: hooks, Gone: x.gone}
		if last, next, proven := verdict.LostAt(e); proven {
			m.outcome, m.last, m.next = lost, last, next
		}
	}
	x.ledger.forget(l.number)
	p.told(m)
	return true
}

// windows sets what a host attested before and after a probe; false if it has attested nothing
// since.
func (p *patrol) windows(host int, l lostProbe, into map[verdict.Place]verdict.Window) bool {
	var before, after *attestation
	for i := range p.audits[host] {
		a := &p.audits[host][i]
		if !a.at.After(l.sent) {
			before = a
		}
		if after == nil && !a.asked.Before(l.settled) {
			after = a
		}
	}
	if after == nil {
		return false
	}
	for bridge, w := range after.windows {
		win := verdict.Window{After: w}
		if before != nil {
			win.Before = before.windows[bridge]
		}
		into[verdict.Place{Host: p.x.ledger.hosts[host], Bridge: bridge}] = win
	}
	return true
}

// trackOf returns the track of a pair by a scheme of the contract; the first where it has none.
func (p *patrol) trackOf(pair int, scheme dyetracev1.Scheme) int {
	first, _ := p.x.layout.group(pair, 0)
	for s := range p.x.layout.schemes {
		if t, _ := p.x.layout.group(pair, s); dyetracev1.Scheme(p.x.ledger.tracks[t].scheme) == scheme {
			return t
		}
	}
	return first
}
