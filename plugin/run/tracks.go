package run

import (
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/plugin/verdict"
	"github.com/dyetrace/dyetrace/stain"
)

// options say how the pairs of a run are probed.
type options struct {
	// scheme is the one that was asked for; 0 is auto.
	scheme stain.Scheme
	plan   plan.Options
	// test decides what share of probes may be lost; measure says that all pairs are tested, and
	// not only those whose first probe is lost.
	test    sequential.Plan
	measure bool
	// prior is what a patrol met just before, by seq: pairs of which it lost a probe.
	prior map[uint32]*prior
	// trips are how long probes of pairs took of late, by seq, where that is known.
	trips map[uint32]time.Duration
	// least is how many probes of a pair must arrive in a row for it to be healthy, by seq, where that is not one.
	least map[uint32]int
	// patrol says that probes are sent for ever, and for nobody's verdict.
	patrol bool
	// mtu has large packets tried between hosts as well.
	mtu bool
	// between is what is known between hosts, of a continuous run; else nil.
	between *ways
}

// optionsFromProto reads a request's options, which are valid; nil is the zero value.
func optionsFromProto(m *dyetracev1.ProbeOptions) options {
	return options{
		scheme: stain.Scheme(m.GetScheme()),
		plan:   plan.Options{Version: inventory.IPVersion(m.GetIpVersion()), NoTouch: m.GetNoTouch()},
		test:   testOf(m), measure: m.GetLoss(),
		mtu: m.GetMtu(),
	}
}

// examines says that they are those of an examination, which knows what was met before, if anything was.
func (o options) examines() bool { return o.prior != nil }

// ways returns how many paths a pair has.
func (o options) ways() int {
	if o.plan.NoTouch {
		return 2
	}
	return 1
}

// schemes returns those to try, in that order. A later one is tried on pairs that all before it
// did not get through on.
func (o options) schemes() []stain.Scheme {
	if o.scheme == 0 {
		return []stain.Scheme{stain.TCP, stain.ICMP}
	}
	return []stain.Scheme{o.scheme}
}

// layout says which tracks are whose. Those of a pair are in a row: by scheme, and in no-touch the
// way there before the way back.
type layout struct {
	asked   stain.Scheme
	schemes int
	ways    int // paths of a pair
	mtu     bool
}

// layout returns the tracks of pairs that have these paths, and the paths that they take.
func (o options) layout(paths []plan.Path) (l layout, ps []*plan.Path, tracks []track) {
	schemes := o.schemes()
	l = layout{asked: o.scheme, mtu: o.mtu, schemes: len(schemes), ways: o.ways()}
	ps = make([]*plan.Path, 0, len(paths)*l.ways)
	tracks = make([]track, 0, len(paths)*l.ways*l.schemes)
	for i := range paths {
		first := int32(len(ps))
		ps = append(ps, &paths[i])
		if o.plan.NoTouch {
			ps = append(ps, paths[i].Back)
		}
		for _, s := range schemes {
			for path := first; path < int32(len(ps)); path++ {
				tracks = append(tracks, track{path, s})
			}
		}
	}
	return l, ps, tracks
}

// pair returns whose a track is.
func (l layout) pair(track int) int { return track / (l.schemes * l.ways) }

// scheme returns which of the run's schemes a track has.
func (l layout) scheme(track int) int { return track / l.ways % l.schemes }

// bit tells a track from the others of its pair.
func (l layout) bit(track int) uint8 { return 1 << (track % (l.schemes * l.ways)) }

// group returns the tracks of a pair by one of the run's schemes.
func (l layout) group(pair, scheme int) (from, to int) {
	from = (pair*l.schemes + scheme) * l.ways
	return from, from + l.ways
}

// progress is how far a pair has come.
type progress struct {
	// holds is one more than the probe under way that goes alone, for which the lane's wire is held, and one
	// more than those beside it, of which there are two at the most; 0 is none.
	holds [3]uint32
	// trip is the longest that a probe took which arrived.
	trip time.Duration
	// beside says that its second scheme was begun while the first goes on.
	beside bool
	// scheme is which of the run's schemes it is at.
	scheme uint8
	// over are the tracks that take no further probe, healthy those that are so beyond doubt.
	over, healthy uint8
	// lossy says that a test found one that loses too much.
	lossy bool
	// questions are those that are not answered.
	questions uint8
	// attested says that the hosts on its ways have attested their hooks since its last probe.
	attested bool
	// begun says that a probe of it was sent, silent that it counts among those of its instances: see admit.
	begun, silent bool
	// released says that its second scheme is held back no longer: see fellows.go.
	released bool
}

func (x *execution) pairOf(number uint32) int { return x.layout.pair(x.ledger.of(number)) }

// tried returns the tracks of a pair that were begun.
func (x *execution) tried(pair int) (from, to int) {
	from, _ = x.layout.group(pair, 0)
	_, to = x.layout.group(pair, int(x.progress[pair].scheme))
	return from, to
}

// blocked says that a pair cannot be probed. In no-touch half a verdict is none: nothing is sent
// then.
func (x *execution) blocked(pair int) bool {
	from, to := x.layout.group(pair, 0)
	for track := from; track < to; track++ {
		if x.ledger.path(track).Blocked != nil {
			return true
		}
	}
	return false
}

// start queues the first probes of a pair by one of the schemes.
func (x *execution) start(pair, scheme int) {
	x.progress[pair].scheme = uint8(scheme)
	from, to := x.layout.group(pair, scheme)
	for track := from; track < to; track++ {
		if x.options.measure || x.options.least[x.seq[pair]] > 1 {
			x.ledger.begin(track)
		}
		x.queue = append(x.queue, x.ledger.number(track, 0))
	}
}

// next decides what follows a probe of a track that arrived or has settled: another one, another
// scheme, or nothing. Then it waits for the end, when both audits of the hooks are there.
func (x *execution) next(track int, number uint32) {
	if x.patrol != nil {
		x.patrol.met(track, number)
		return
	}
	p := &x.progress[x.layout.pair(track)]
	if x.ledger.probes[number].looked || p.over&x.layout.bit(track) != 0 {
		return
	}
	x.ledger.look(number)
	if number != x.ledger.last(track) {
		return
	}
	if x.ledger.probes[number].state == left && !x.ledger.arrived(number) {
		x.foresee(track)
	}
	absent := x.ledger.probes[number].portAbsent
	decision := x.verdictOn(track)
	more := decision == sequential.More
	if x.ledger.attempts(track) == 1 && x.ledger.tracks[track].scheme == stain.TCP && !more {
		at := x.ledger.attempt(number)
		path := x.ledger.path(track)
		more = armable(path) && verdict.Unrecognised(path, &at) // healthy, but the way should be shown
	}
	more = more || !x.arrived(track) && x.ledger.attempts(track) < x.tries(track) && x.maybeHeard(number)
	if more && !absent {
		if another, ok := x.ledger.another(track); ok {
			if slices.Contains(x.queue, another) { // it waits for its turn: see echoAgain
				return
			}
			if !x.arrived(track) || x.ledger.attempts(track) > 1 {
				x.ledger.begin(track)
			}
			x.repeat(another)
			return
		}
	}
	x.finished(track, decision, absent)
}

// finished ends a track, and with the last of its scheme goes on to the next scheme or to none.
func (x *execution) finished(track int, decision sequential.Decision, absent bool) {
	pair := x.layout.pair(track)
	p := &x.progress[pair]
	p.over |= x.layout.bit(track)
	if x.ledger.tests[track] != nil && decision != sequential.Above {
		if _, lost := x.score(track); lost == 0 {
			if r := verdict.Judge(x.evidence(track)); r.Verdict == verdict.Healthy && p.scheme == 0 {
				x.healthy(pair, track, r)
			}
		}
	}
	p.lossy = p.lossy || decision == sequential.Above && x.arrived(track)
	if x.judged[pair] {
		return
	}
	from, to := x.layout.group(pair, 0)
	if !p.beside {
		from, to = x.layout.group(pair, int(p.scheme))
	}
	through := !p.lossy
	for t := from; t < to; t++ {
		if p.over&x.layout.bit(t) == 0 {
			return
		}
		through = through && x.arrived(t)
		absent = absent || x.ledger.probes[x.ledger.last(t)].portAbsent
	}
	if p.beside && !through && p.over&x.layout.bit(to) == 0 {
		return // what goes on beside will tell more
	}
	if !through && !absent && int(p.scheme)+1 < x.layout.schemes && !x.swept(from) {
		x.start(pair, int(p.scheme)+1)
		return
	}
	x.waiting = append(x.waiting, waiting{pair: pair, until: x.due(pair, time.Now())})
}

// halfOpen says that a probe of this track is a connection until the agent withdraws it, though
// it arrived: nobody answers it.
func (x *execution) halfOpen(track int) bool {
	return x.ledger.tracks[track].scheme == stain.TCP && x.ledger.path(track).NoTouch
}

// healthy takes in that a track is so beyond doubt, and with it maybe its pair.
func (x *execution) healthy(pair, track int, r verdict.Result) {
	p := &x.progress[pair]
	p.healthy |= x.layout.bit(track)
	x.results[track] = &r
	from, to := x.layout.group(pair, 0)
	for t := from; t < to; t++ {
		if p.healthy&x.layout.bit(t) == 0 {
			return
		}
	}
	x.conclude(pair)
}
