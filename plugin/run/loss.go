package run

import (
	"math"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// Loss that is not total. A pair whose first probe arrives is healthy, and takes no other. One that is
// lost begins a test: if all are lost, the fault is hard; if some arrive, a sequential test decides
// whether the share that is lost is too much.
const (
	// hardAttempts bounds the probes of a track of which none arrives. On a path that loses 1 % of its
	// probes, there or back, four in a row are lost once in 10⁸ pairs; where it loses 1 % each way, once
	// in six millions. Three, sequential.AllLost(0.01, 1e-6), would be a false alarm in every million.
	hardAttempts = 4
	// fewAttempts are enough where something else than chance is known to be behind it: a probe could
	// not be sent, flows, ports or tunnels say why they are lost, or one was lost before, on patrol.
	fewAttempts = 3
	// afterScheme is how many probes a scheme takes that is tried after another: it explains that
	// one's verdict, or takes its place, and needs no proof of a loss.
	afterScheme = 2
	// maxExtra bounds the probes of a run beyond hardAttempts of each track: a sample that nobody
	// sent fits one by chance once in 4,000 guesses, and has to fit its addresses and state as well.
	maxExtra = 1 << 20
	// maxQuick is the share of maxExtra that a run takes which nobody asked to measure loss.
	maxQuick = 1 << 17
)

// Rates that are too much where nobody says otherwise. A plain check has seen one probe lost and
// wants to know soon whether it was chance; who asks for loss wants to know how much.
const (
	quickLoss = 0.2
	someLoss  = 0.01
)

// MinLoss and MaxLoss bound what may be asked for: a test of 0.1 % takes up to 36,000 probes, half an hour
// at the default pace; a share of 90 % is hardly told from a hard fault.
const MinLoss, MaxLoss = 0.001, 0.9

// testOf returns the test that options ask for. A tenth of what is too much is allowed.
//
// What ends open is called healthy, too, so Max is where those that lose too much have hardly any left: reckoned
// exactly (TestTestRates), of pairs that do, those that end within and those that end open are together no more than
// one in a hundred where loss is measured, and of those that the quick one looks at one in ten. Within alone are
// nearly as many as Beta, so that where loss is measured a tenth of that hundredth is left for open.
//
// The quick one takes 23 probes that arrive after a first that was lost, and 90 at the most. The one for 1 % takes
// 521 probes where nothing is lost, 1,030 on average at 1 %, and 3,600 at the most. Its false alarms at 0.1 % are
// below one in a million.
func testOf(o *dyetracev1.ProbeOptions) sequential.Plan {
	if o.GetLoss() || o.GetContinuous() {
		p1 := o.GetMaxLoss()
		if p1 == 0 {
			p1 = someLoss
		}
		return sequential.Plan{P0: p1 / 10, P1: p1, Alpha: 1e-6, Beta: 0.009, Max: int(math.Ceil(36/p1 - 1e-9))}
	}
	p1 := o.GetMaxLoss()
	if p1 == 0 {
		p1 = quickLoss
	}
	return sequential.Plan{P0: p1 / 10, P1: p1, Alpha: 1e-7, Beta: 0.1, Max: int(math.Ceil(18/p1 - 1e-9))}
}

// leastOf is how many probes of a pair must arrive in a row for it to be healthy, which by its last examination lost a share: as many as would
// once in a hundred times if it were the least that it may be. Else one that arrives by chance makes it healthy, and the next one faulty again.
func leastOf(r *dyetracev1.PairResult) int {
	if !verdict.Partial(r) || r.GetLoss() == nil {
		return 1
	}
	low := min(max(r.GetLoss().GetLow(), quickLoss), MaxLoss)
	return int(math.Ceil(math.Log(0.01) / math.Log(1-low)))
}

// proof is how many probes prove a hard fault.
func (x *execution) proof(pair int) int {
	if x.prior(pair) != nil {
		return fewAttempts
	}
	return hardAttempts
}

// tries is how many probes a track may take until one arrives.
func (x *execution) tries(track int) int {
	pair := x.layout.pair(track)
	first, _ := x.layout.group(pair, 0)
	switch {
	case x.progress[pair].beside && x.layout.scheme(track) > 0 && x.explainedAway(first):
		return 1 // flows say the rest
	case x.progress[pair].beside && x.layout.scheme(track) > 0:
		return x.proof(pair) - 1 // witnesses of what tcp lost
	case x.layout.scheme(track) > 0 && (x.explains(track) && x.tells(first) || !x.left(track)):
		return afterScheme
	case x.prior(pair) != nil, x.explainedAway(track):
		return fewAttempts
	}
	tries := hardAttempts
	x.ledger.each(track, func(number uint32) {
		if x.ledger.probes[number].state == failed {
			tries = fewAttempts
		}
	})
	return tries
}

// explains says that a track's scheme is tried after another, and says more of what that one has shown. Where that could not be sent, this one's
// verdict is the pair's, and needs a proof of its own.
func (x *execution) explains(track int) bool {
	from, to := x.layout.group(x.layout.pair(track), 0)
	for t := from; t < to && x.layout.scheme(track) > 0; t++ {
		if x.left(t) {
			return true
		}
	}
	return false
}

// tells says that more will be known of a track than that it is unknown, if nothing changes any more and what is lost is not late: else
// the verdict is by what is tried after it, and needs a proof.
func (x *execution) tells(track int) bool {
	e := x.guess(track, time.Now())
	if f := x.foreseen[track]; f != nil {
		e.Explanation = f.explanation
	}
	e.Patience, e.Enough = 0, 0
	r := verdict.Judge(e)
	return r.Verdict != verdict.Unknown || r.Need != nil && r.Need.Decides // by what flows do, which is asked yet
}

// left says that a probe of a track was sent.
func (x *execution) left(track int) (any bool) {
	x.ledger.each(track, func(number uint32) { any = any || x.ledger.probes[number].state == left })
	return any
}

// enough is how many probes of a track must be known to be lost where nothing else proves a fault; 0 where
// as many were sent as are ever sent, and none arrived. One that nobody saw, not where it began either, may have been lost by us.
func (x *execution) enough(track int) int {
	most, sent := x.proof(x.layout.pair(track)), x.witnesses(track)+x.fellows(track, true)
	x.ledger.each(track, func(number uint32) {
		if x.ledger.probes[number].state == left && x.ledger.shown(number) {
			sent++
		}
	})
	if sent >= most {
		return 0
	}
	return most - 1
}

// room is how many probes beyond hardAttempts of each track a run of so many tracks may take.
func (o options) room(tracks int) int {
	switch {
	case o.patrol:
		return patrolProbes
	case o.measure:
		return min(tracks*o.test.Max, maxExtra)
	}
	return min(tracks*o.test.Max, maxQuick)
}

// each is how many probes a pair takes where nothing is wrong: what the default timeout allows for.
// A test that is not decided then is open.
func (o options) each() int {
	if o.measure {
		return o.ways() * o.test.Max
	}
	return o.ways()
}

// verdictOn says what the test makes of a track by now: sequential.More is that another probe is
// needed. A track of which nothing arrived is not tested for its share, nor is one that has been broken
// meanwhile.
func (x *execution) verdictOn(track int) sequential.Decision {
	arrived, lost := x.score(track)
	test := x.options.test
	// In any place of the test so many in a row are lost where no more is than may be, and it is no false alarm.
	proof := max(hardAttempts, sequential.AllLost(test.P0, test.Alpha/float64(max(1, arrived+lost))))
	if x.ledger.turn(track, arrived, lost, proof) {
		arrived, lost = x.score(track)
	}
	switch {
	case arrived == 0 && x.ledger.attempts(track)+x.witnesses(track) < x.tries(track) && !x.swept(track):
		return sequential.More
	case arrived == 0:
		return sequential.Above
	case lost == 0 && arrived < x.options.least[x.seq[x.layout.pair(track)]]:
		return sequential.More
	case lost == 0 && !x.options.measure:
		return sequential.Within
	}
	return test.Decide(arrived+lost, lost)
}
