package run

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

const (
	// exchangeTimeout is how long an agent may take for an exchange: some 350 ms if nothing is answered,
	// a second where it looks for a size, and those before it in its queue.
	exchangeTimeout = 4 * time.Second
	// recallTimeout is how long one may take to say what it has seen.
	recallTimeout = time.Second
	// exchangeWindow bounds the exchanges that a run has under way at one host, whether it sends or
	// answers: more would be lost by each other.
	exchangeWindow = 2
	// exchangeAgain is after how long an exchange that lost much is repeated (verdict.Again). With what a recall waits,
	// the second begins a second after the last packet of the first: as long as ovs-vswitchd stands still when its
	// database restarts (ovsdb/ovsdb-cs.c reconnects after one).
	exchangeAgain = 500 * time.Millisecond
	// mtuPorts is how many source ports try large packets where nothing is known to be lost: fewer
	// than where a loss is looked into, since all hosts are tried.
	mtuPorts = 8
)

// exchange is what is asked about the network between two hosts, once for all pairs of a run.
type exchange struct {
	need   verdict.NeedUnderlay
	ask    *dyetracev1.ProbeUnderlay
	step   exchangeStep
	from   int // host that sends
	to     int // host that answers, -1 where the run has no agent of it
	host   int // host whose answer is due
	until  time.Time
	began  time.Time // when the host that sends was asked to
	told   time.Time // when it said what came of it
	asked  time.Time // when the other one was asked
	report *dyetracev1.UnderlayReport
	recall *dyetracev1.UnderlayReport
	first  *verdict.Underlay // that lost much, and was repeated

	result    *verdict.Underlay // once it is done
	questions []question        // tracks that wait for it
	held      []heldPair        // pairs that do
	echo      bool              // begun for a sign of silence, by small packets only
}

type exchangeStep uint8

const (
	queued exchangeStep = iota
	sending
	settlingDown // for what may be late, before the other host is asked what came
	recalling
	pausing // before it is repeated
	done
)

// heldPair is a pair that is concluded but for the exchange between its hosts.
type heldPair struct {
	pair   int
	result verdict.Result
}

// exchangeKey tells exchanges apart.
type exchangeKey struct {
	from, to string
	dst      netip.Addr
	large    int
	brief    bool // by fewer source ports
}

// mtuCheck is the exchange that a pair waits for, or why there is none; neither where none is needed.
type mtuCheck struct {
	exchange *exchange
	why      string
}

// exchangeFor returns the exchange that is needed, and begins it if there is none.
func (x *execution) exchangeFor(n *verdict.NeedUnderlay, brief bool) *exchange {
	key := exchangeKey{n.From, n.To, n.Dst, n.Large, brief}
	if e := x.exchanges[key]; e != nil {
		return e
	}
	// Where no small packet passes nothing is to be learned of large ones.
	if e := x.exchanges[exchangeKey{n.From, n.To, n.Dst, 0, false}]; e != nil && e.echo && !brief && (e.step != done || x.noWay(e)) {
		return e
	}
	e := &exchange{
		need: *n, ask: n.Proto(rand.Uint64()|1, x.tos),
		from: slices.Index(x.ledger.hosts, n.From), to: slices.Index(x.ledger.hosts, n.To),
	}
	if brief {
		e.ask.SourcePorts = mtuPorts
	}
	x.exchanges[key] = e
	x.exploring = append(x.exploring, e)
	return e
}

// checkMTUs begins an exchange for each two hosts that pairs lie between: one tells of both ways.
func (x *execution) checkMTUs() {
	x.mtu = make([]mtuCheck, len(x.pairs))
	type hosts [2]string
	begun := map[hosts]*exchange{}
	for pair := range x.pairs {
		from, _ := x.layout.group(pair, 0)
		p := x.ledger.path(from)
		n, why := verdict.NeedMTU(p)
		if n == nil {
			x.mtu[pair].why = why
			continue
		}
		// Two pairs of the same hosts may have other MTUs: what is larger does for both only if it passes.
		e := begun[hosts{n.To, n.From}]
		if e == nil || e.need.Large != n.Large {
			e = x.exchangeFor(n, true)
			begun[hosts{n.From, n.To}] = e
		}
		x.mtu[pair].exchange = e
	}
}

// explore does what is due of exchanges, and returns when it wants to be called again.
func (x *execution) explore(now time.Time) (wake time.Time) {
	wake = x.hard
	rest, before := x.exploring[:0], len(x.exploring)
	for _, e := range x.exploring {
		if e.step == pausing && !now.Before(e.until) {
			e.step = queued
		}
		switch {
		case e.step == done:
			continue
		case !now.Before(x.hard):
			x.explored(e, "the run's time was up", now)
			continue
		case e.step == queued && (e.from < 0 || x.host[e.from].gone):
			x.explored(e, fmt.Sprintf("no agent of %s is connected", e.need.From), now)
			continue
		case e.step == queued && x.host[e.from].exchanges < e.window() && (e.to < 0 || x.host[e.to].exchanges < e.window()):
			x.busy(e, 1)
			x.metrics.exchanges.Inc()
			e.began = now
			x.request(e, sending, e.from, e.ask, exchangeTimeout, now)
		case e.step != queued && !now.Before(e.until):
			x.proceed(e, nil, now)
		}
		if e.step != done {
			rest = append(rest, e)
			if e.step != queued {
				wake = earliest(wake, e.until)
			}
		}
	}
	begun := slices.Clone(x.exploring[before:]) // by what was learned of others
	clear(x.exploring[len(rest):])
	x.exploring = append(rest, begun...)
	if len(begun) > 0 {
		wake = now
	}
	return wake
}

// window is how many a host may take part in for another to begin.
func (e *exchange) window() int {
	if e.echo {
		return echoWindow
	}
	return exchangeWindow
}

// busy counts an exchange at both of its hosts.
func (x *execution) busy(e *exchange, n int) {
	x.host[e.from].exchanges += n
	if e.to >= 0 {
		x.host[e.to].exchanges += n
	}
}

func (x *execution) request(e *exchange, s exchangeStep, host int, m *dyetracev1.ProbeUnderlay, timeout time.Duration, now time.Time) {
	e.step, e.host, e.until = s, host, now.Add(timeout)
	x.owing[x.agents.ProbeUnderlay(host, m)] = e
}

// reported takes in what an agent says of an exchange.
func (x *execution) reported(m *dyetracev1.UnderlayReport, now time.Time) {
	if e := x.owing[m.GetId()]; e != nil && e.step != done {
		delete(x.owing, m.GetId())
		x.proceed(e, m, now)
	}
}

// deserted ends what a host that is gone still owed.
func (x *execution) deserted(host int, now time.Time) {
	for _, e := range slices.Clone(x.exploring) {
		if (e.step == sending || e.step == recalling) && e.host == host {
			x.proceed(e, nil, now)
		}
	}
}

// proceed goes on with an exchange after an answer; nil is that none came.
func (x *execution) proceed(e *exchange, m *dyetracev1.UnderlayReport, now time.Time) {
	for id, o := range x.owing {
		if o == e {
			delete(x.owing, id)
		}
	}
	switch e.step {
	case sending:
		x.busy(e, -1)
		switch {
		case m == nil:
			x.explored(e, fmt.Sprintf("the agent of %s did not answer", e.need.From), now)
			return
		case m.GetError() != "" || verdict.Whole(m, len(e.ask.Sizes)):
			e.report = m
			x.explored(e, "", now)
			return
		}
		e.report, e.told = m, now
		if late := x.patience - time.Duration(e.ask.GetWaitMs())*time.Millisecond; late > 0 {
			e.step, e.until = settlingDown, now.Add(late) // so long ago was its last packet, at the least
			return
		}
		x.recallOf(e, now)
	case settlingDown:
		x.recallOf(e, now)
	case recalling:
		e.recall = m
		x.explored(e, "", now)
	}
}

// recallOf asks the other host what of the exchange it has seen.
func (x *execution) recallOf(e *exchange, now time.Time) {
	if e.to < 0 || x.host[e.to].gone {
		x.explored(e, "", now)
		return
	}
	e.asked = now
	src, _ := netip.ParseAddr(e.report.GetSrcIp())
	x.request(e, recalling, e.to, verdict.RecallProto(&e.need, e.ask.Session, src), recallTimeout, now)
}

// explored ends an exchange: why is why it could not be made, empty if it was.
func (x *execution) explored(e *exchange, why string, now time.Time) {
	if why != "" || e.report == nil {
		e.result = &verdict.Underlay{From: e.need.From, To: e.need.To, Src: e.need.Src, Dst: e.need.Dst, Port: e.need.Port, Error: why}
	} else {
		e.result = verdict.UnderlayFromProto(&e.need, e.ask, e.report, e.recall, e.asked.Sub(e.told))
	}
	if since, is := x.options.between.hushed(e.need.From, e.need.To); is {
		e.result.Silent = max(0, now.Sub(since))
	}
	switch {
	case e.first != nil:
		e.result = verdict.Again(e.first, e.result)
	case e.result.Rife():
		e.step, e.until = pausing, now.Add(exchangeAgain)
		e.first, e.result, e.report, e.recall = e.result, nil, nil, nil
		ports := e.ask.SourcePorts
		e.ask = e.need.Proto(rand.Uint64()|1, x.tos)
		e.ask.SourcePorts = ports
		return
	}
	e.step = done
	x.hurryBetween(e.need.From, e.need.To)
	questions, held := e.questions, e.held
	e.questions, e.held = nil, nil
	for _, q := range questions {
		if e.echo && why == "" && !x.noWay(e) {
			x.told(q, x.judgeWith(&q, nil)) // more is to be learned
			continue
		}
		x.settleBy(q, e)
	}
	for _, h := range held {
		x.emit(h.pair, x.withMTU(h.pair, h.result))
	}
}

// hurryBetween looks anew at how long probes are waited for that went from one host to another.
func (x *execution) hurryBetween(from, to string) {
	if x.patience == 0 {
		return
	}
	for pair := range x.pairs {
		if p := x.pathOf(pair); !x.judged[pair] && (p.From.Host == from && p.To.Host == to || p.From.Host == to && p.To.Host == from) {
			first, _ := x.layout.group(pair, 0)
			if f := x.foreseen[first]; f != nil && f.explanation != nil && f.explanation.Error == "" {
				x.testify(f)
			}
			x.hurry(pair)
		}
	}
}

// settleBy answers a question by an exchange that is done. Where packets of that passed and the probe's tunnel is accused
// for it, they must have been sent since the probe was: before, there may have been no fault. Else another is made.
func (x *execution) settleBy(q question, e *exchange) {
	r := x.judgeWith(&q, e.result)
	if r.Kind != verdict.CauseEntrypoint || !e.began.Before(x.lostSince(q.track)) {
		x.answer(q.track, r)
		return
	}
	for key, o := range x.exchanges {
		if o == e {
			delete(x.exchanges, key)
		}
	}
	x.told(q, x.judgeWith(&q, nil))
}

// lostSince is when the first probe of a track was sent of those that did not arrive.
func (x *execution) lostSince(track int) (at time.Time) {
	x.ledger.each(track, func(number uint32) {
		p := &x.ledger.probes[number]
		if sent := x.begun.Add(p.sent); p.state == left && !x.ledger.arrived(number) && (at.IsZero() || sent.Before(at)) {
			at = sent
		}
	})
	return at
}

// judgeWith judges a track whose explanation wanted the underlay looked at.
func (x *execution) judgeWith(q *question, u *verdict.Underlay) verdict.Result {
	e := x.evidence(q.track)
	e.Explanation, e.Underlay = q.explanation, u
	return verdict.Judge(e)
}

// withMTU adds what large packets did between a pair's hosts.
func (x *execution) withMTU(pair int, r verdict.Result) verdict.Result {
	from, _ := x.layout.group(pair, 0)
	c := &x.mtu[pair]
	if c.exchange == nil {
		if c.why == "" {
			return r
		}
		return verdict.WithMTU(r, x.ledger.path(from), nil, c.why)
	}
	return verdict.WithMTU(r, x.ledger.path(from), c.exchange.result, "")
}
