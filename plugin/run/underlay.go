package run

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

const (
	// exchangeWithin is how long an agent may take for an exchange: some 350 ms if nothing is answered, 0.8 s if it is a second one, a second or more
	// where it looks for a size, and those before it in its queue. Its answer is waited for until exchangeTimeout.
	exchangeWithin, exchangeTimeout = 3 * time.Second, 4 * time.Second
	// busyTries is how often a host is asked that has no room for an exchange; again after exchangeAgain.
	busyTries = 4
	// recallTimeout is how long one may take to say what it has seen.
	recallTimeout = time.Second
	// exchangeWindow bounds the exchanges that a run has under way at one host, whether it sends or
	// answers: more would be lost by each other.
	exchangeWindow = 2
	// exchangeAgain is after how long an exchange that lost much is repeated (verdict.Again). With what a recall waits,
	// the second begins a second after the last packet of the first: as long as ovs-vswitchd stands still when its
	// database restarts (ovsdb/ovsdb-cs.c reconnects after one).
	exchangeAgain = 500 * time.Millisecond
	// againPorts is from how many ports at the most such an exchange is sent: as many packets as the first, in twice as many rounds, which
	// take half a second where some are lost. A way that drops what comes too fast for it, as a busy switch does, must not
	// seem to lose as much of everything. One of eight equal ways, if it loses all, is missed by 16 ports in a tenth of cases.
	againPorts = 16
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
	late   time.Time // when nothing that was sent can be late any more
	report *dyetracev1.UnderlayReport
	recall *dyetracev1.UnderlayReport
	first  *verdict.Underlay // that lost much, and was repeated
	busy   int               // answers that the host has no room for it
	brief  bool              // for large packets, by fewer source ports
	shared bool              // the host that answers had another of this run meanwhile
	alone  bool              // repeated without any other there

	untried *verdict.Underlay // in which no large packet was sent, and that was repeated

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

func (h heldPair) unhealthy() bool { return h.result.Verdict != verdict.Healthy }

// exchangeKey tells exchanges apart.
type exchangeKey struct {
	from, to  string
	src, dst  netip.Addr
	tos       string // options:tos of the tunnel port
	fragments inventory.Told
	large     int
	brief     bool // by fewer source ports
}

// keyOf is that of an exchange that is needed: the same for tunnels that make the same of packets.
func keyOf(n *verdict.NeedUnderlay, brief bool) exchangeKey {
	k := exchangeKey{n.From, n.To, n.Src, n.Dst, n.By.ToS, n.By.Fragments, n.Large, brief}
	if k.large == 0 {
		k.fragments = inventory.NotTold // of what is small nothing need be
	}
	return k
}

// mtuCheck are the exchanges that pairs between two hosts wait for.
type mtuCheck []*exchange

// made returns the exchange that there is for what is needed; nil for none.
func (x *execution) made(n *verdict.NeedUnderlay, brief bool) *exchange {
	if e := x.exchanges[keyOf(n, brief)]; e != nil {
		return e
	}
	// Where no small packet passes nothing is to be learned of large ones.
	small := *n
	small.Large = 0
	if e := x.exchanges[keyOf(&small, false)]; e != nil && e.echo && !brief && (e.step != done || x.noWay(e)) {
		return e
	}
	return nil
}

// exchangeFor returns the exchange that is needed, and begins it if there is none.
func (x *execution) exchangeFor(n *verdict.NeedUnderlay, brief bool) *exchange {
	if e := x.made(n, brief); e != nil {
		return e
	}
	e := &exchange{
		need: *n, ask: n.Proto(rand.Uint64()|1, x.tos),
		from: slices.Index(x.ledger.hosts, n.From), to: slices.Index(x.ledger.hosts, n.To),
	}
	if brief {
		e.brief, e.ask.SourcePorts = true, mtuPorts
	}
	x.exchanges[keyOf(n, brief)] = e
	x.exploring = append(x.exploring, e)
	return e
}

// checkMTUs begins an exchange for each two hosts that pairs lie between, and for each sort of tunnel that joins them: one
// tells of both ways.
func (x *execution) checkMTUs() {
	type ends struct {
		from, to string
		mtu      int
	}
	x.mtu = make([]mtuCheck, len(x.pairs))
	begun := map[[2]string][]*exchange{}
	known := map[ends]mtuCheck{}
	for pair := range x.pairs {
		from, _ := x.layout.group(pair, 0)
		p := x.ledger.path(from)
		// Two pairs of the same hosts may have other MTUs: what is larger does for both only if it passes.
		key := ends{p.From.Host, p.To.Host, min(p.From.MTU, p.To.MTU)}
		if _, is := known[key]; !is {
			known[key] = x.checkMTU(p, begun)
		}
		x.mtu[pair] = known[key]
	}
}

// checkMTU returns the exchanges that a pair needs, and begins those that there are not between its hosts yet.
func (x *execution) checkMTU(p *plan.Path, begun map[[2]string][]*exchange) (all mtuCheck) {
	hosts := hostPair(p.From.Host, p.To.Host)
	for _, n := range verdict.NeedMTU(p) {
		i := slices.IndexFunc(begun[hosts], func(e *exchange) bool {
			_, ok := e.need.Covers(n)
			return ok
		})
		if i < 0 {
			begun[hosts] = append(begun[hosts], x.exchangeFor(n, true))
			i = len(begun[hosts]) - 1
		}
		if e := begun[hosts][i]; !slices.Contains(all, e) {
			all = append(all, e)
		}
	}
	return all
}

// explore does what is due of exchanges, and returns when it wants to be called again.
func (x *execution) explore(now time.Time) (wake time.Time) {
	wake = x.hard
	kept := map[int]bool{} // hosts of which an exchange waits to have one for itself
	rest, before, asking := x.exploring[:0], len(x.exploring), len(x.asking)
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
		case e.step == queued && x.hasRoom(e, kept):
			x.share(e)
			x.busy(e, 1)
			x.metrics.exchanges.Inc()
			e.began, e.ask.WithinMs = now, uint32(exchangeWithin.Milliseconds())
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
	if len(begun) > 0 || len(x.asking) > asking {
		wake = now // flows are asked what has become of a packet that was seen further meanwhile
	}
	return wake
}

// hasRoom says that an exchange may begin. kept are hosts where others wait that came before, and grow by its own.
func (x *execution) hasRoom(e *exchange, kept map[int]bool) bool {
	switch {
	case kept[e.from] || kept[e.to] || x.host[e.from].exchanges >= e.window():
		return false
	case e.alone && x.host[e.to].exchanges > 0:
		kept[e.to] = true
		return false
	}
	return e.to < 0 || x.host[e.to].exchanges < e.window()
}

// share notes of an exchange that is about to begin, and of those under way, where they bring packets to one host.
func (x *execution) share(e *exchange) {
	e.shared = false
	if e.to < 0 {
		return
	}
	for _, o := range x.exploring {
		if o.step != sending || o == e {
			continue
		}
		e.shared = e.shared || o.to == e.to || o.from == e.to // answers come to the one that asks
		o.shared = o.shared || o.to == e.to || e.from == o.to
	}
}

// window is how many a host may take part in for another to begin.
func (e *exchange) window() int {
	if e.echo {
		return echoWindow
	}
	return exchangeWindow
}

// busy counts an exchange at both of its hosts. One that is to be alone counts where it goes as all that may be there.
func (x *execution) busy(e *exchange, n int) {
	x.host[e.from].exchanges += n
	if e.alone {
		n *= echoWindow
	}
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
		case m.GetBusy() && e.busy+1 < busyTries:
			e.busy++
			e.step, e.until = pausing, now.Add(exchangeAgain)
			return
		case m.GetError() != "" || verdict.Whole(m, len(e.ask.Sizes)):
			e.report = m
			x.explored(e, "", now)
			return
		}
		e.report, e.told = m, now
		if late := x.patience - time.Duration(e.ask.GetWaitMs())*time.Millisecond; late > 0 {
			e.step, e.late = settlingDown, now.Add(late) // so long ago was its last packet, at the least
			e.until = e.late
			if since, is := x.options.between.hushed(e.need.From, e.need.To); is {
				hushed := latest(since.Add(x.patience), e.late.Add(verdict.AfterHush(x.patience)-x.patience))
				e.until = earliest(e.until, hushed)
			}
			return
		}
		x.recallOf(e, now)
	case settlingDown:
		if _, is := x.options.between.hushed(e.need.From, e.need.To); !is && now.Before(e.late) {
			e.until = e.late // there are answers again
			return
		}
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
	if e.untried != nil && e.result.Error != "" {
		e.result = e.untried // what was known before
	}
	switch {
	case e.first != nil:
		e.result = verdict.Again(e.first, e.result)
	case e.brief && e.untried == nil && e.result.Untried() && !slices.ContainsFunc(e.held, heldPair.unhealthy):
		e.untried = e.result
		x.exchangeAnew(e, e.ask.SourcePorts, now)
		return
	case e.result.Rife(), e.shared && !e.echo && e.result.Drowned(now.Sub(e.began)):
		e.alone = e.shared && !e.echo
		e.first = e.result
		x.exchangeAnew(e, min(e.ask.SourcePorts, againPorts), now)
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
		x.emitWithMTU(h.pair, h.result)
	}
}

// exchangeAnew has an exchange be made once more after a while, from so many ports, by as many packets.
func (x *execution) exchangeAnew(e *exchange, ports uint32, now time.Time) {
	e.step, e.until = pausing, now.Add(exchangeAgain)
	e.result, e.report, e.recall = nil, nil, nil
	sent := e.ask.SourcePorts * e.ask.Repeats
	e.ask = e.need.Proto(rand.Uint64()|1, x.tos)
	e.ask.SourcePorts, e.ask.Repeats = ports, sent/ports
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
	if x.asksAgain(&q, r) {
		return
	}
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

// emitWithMTU hands on the verdict on a pair once it is known what large packets did between its hosts.
func (x *execution) emitWithMTU(pair int, r verdict.Result) {
	if x.mtu == nil {
		x.emit(pair, r)
		return
	}
	from, _ := x.layout.group(pair, 0)
	p := x.ledger.path(from)
	var tried []verdict.TriedMTU
	for _, e := range x.mtu[pair] {
		switch {
		case e.step == done:
		case e.untried != nil && r.Verdict != verdict.Healthy: // it does not wait for the other one
			tried = append(tried, verdict.TriedMTU{Need: &e.need, Showed: e.untried})
			continue
		default:
			e.held = append(e.held, heldPair{pair, r})
			return
		}
		tried = append(tried, verdict.TriedMTU{Need: &e.need, Showed: e.result})
	}
	var more mtuCheck
	for _, n := range verdict.MoreMTU(r, p, tried) {
		if e := x.exchangeFor(n, true); !slices.Contains(x.mtu[pair], e) {
			more = append(more, e)
		}
	}
	if len(more) > 0 {
		x.mtu[pair] = slices.Concat(x.mtu[pair], more)
		x.emitWithMTU(pair, r)
		return
	}
	x.emit(pair, verdict.WithMTU(r, p, tried))
}
