package run

import (
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// How long a patrol's probes took of late, by part of their way, is kept of each pair of a continuous run for whoever reads the
// run. Of a run that goes on for weeks that is what it is like now, and not what it was like a week ago; and as single figures it
// takes less than digests would, since most pairs of a large run have few probes in the time.

const (
	// latencyAge is how old a probe may be, and latencyProbes how many are kept of a pair. A probe takes 4 bytes, and 4 for each part of its
	// way: of ten parts that is 44 KB a pair, and a quarter more while it grows. The pace bounds it, too: an instance takes part in 12,000
	// probes in the time by default, of which each has two, so that it is 264 KB an instance.
	latencyAge    = 10 * time.Minute
	latencyProbes = 1000
)

// latencies are how long the probes of one pair took of late. The run's goroutine adds to them, and whoever reads the run reads them.
type latencies struct {
	mu   sync.Mutex
	path *plan.Path
	legs []verdict.Leg
	// at is when each probe was told of, in seconds since the run began; took has a row of legs for each, and -1 for one whose ends did not
	// both see it. Both are rings of which the oldest is next.
	at   []uint32
	took []float32
	next int
}

// add takes in a probe that took a path, and of which each leg took so long; negative is that it is not known.
func (l *latencies) add(path *plan.Path, took []time.Duration, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if path != l.path {
		if !samePoints(path, l.path) { // of another way
			l.legs, l.at, l.took, l.next = verdict.Legs(path), nil, nil, 0
		}
		l.path = path
	}
	n, row := len(l.at), len(l.legs)
	if n < latencyProbes && (n == 0 || !l.aged(l.next, now)) {
		if l.next > 0 { // not full, and the oldest is not the first
			l.at = append(append(make([]uint32, 0, n+n/4+1), l.at[l.next:]...), l.at[:l.next]...)
			l.took = append(append(make([]float32, 0, (n+n/4+1)*row), l.took[l.next*row:]...), l.took[:l.next*row]...)
			l.next = 0
		}
		l.at, l.took = append(l.at, 0), append(l.took, make([]float32, row)...)
		l.set(n, took, now)
		return
	}
	l.set(l.next, took, now)
	l.next = (l.next + 1) % n
}

func (l *latencies) set(i int, took []time.Duration, now time.Duration) {
	l.at[i] = uint32(now / time.Second)
	for k, d := range took {
		l.took[i*len(l.legs)+k] = float32(d)
	}
}

// aged says that a probe is too old to be told of.
func (l *latencies) aged(i int, now time.Duration) bool {
	return now-time.Duration(l.at[i])*time.Second > latencyAge
}

// shown are the latencies of late as users get them, none where there was no probe.
func (l *latencies) shown(now time.Duration) []*dyetracev1.Latency {
	l.mu.Lock()
	path, measured := l.path, make([]verdict.Latency, len(l.legs))
	for k := range measured {
		measured[k] = verdict.Latency{Leg: l.legs[k], Digest: &sequential.Digest{}}
	}
	for i := range l.at {
		if l.aged(i, now) {
			continue
		}
		for k, d := range l.took[i*len(l.legs) : (i+1)*len(l.legs)] {
			if d >= 0 {
				measured[k].Digest.Add(time.Duration(d))
			}
		}
	}
	l.mu.Unlock()
	return verdict.LatenciesProto(path, measured)
}

// latencyBook has those of all pairs of a continuous run.
type latencyBook struct {
	began time.Time
	pairs []latencies
	by    map[string]*latencies // by pair, as a feed knows it
}

func newLatencyBook(pairs []plan.Pair, now time.Time) *latencyBook {
	b := &latencyBook{began: now, pairs: make([]latencies, len(pairs)), by: make(map[string]*latencies, len(pairs))}
	for i := range pairs {
		b.by[pairKey(&dyetracev1.PairResult{Src: refOf(pairs[i].Src), Dst: refOf(pairs[i].Dst)})] = &b.pairs[i]
	}
	return b
}

// follow takes in all that a patrol's ledger knows of, whose pairs are these of the run.
func (b *latencyBook) follow(x *execution, pairs []int) {
	x.ledger.timed = func(track int, took []time.Duration) {
		b.pairs[pairs[x.layout.pair(track)]].add(x.ledger.path(track), took, time.Since(b.began))
	}
}

// fill has verdicts of a run that goes on say how long probes took of late. Those of the feed are left as they are: who has those was
// told when they fell.
func (b *latencyBook) fill(results []*dyetracev1.PairResult) {
	now := time.Since(b.began)
	for i, r := range results {
		var late []*dyetracev1.Latency
		if l := b.by[pairKey(r)]; l != nil {
			late = l.shown(now)
		}
		if len(late)+len(r.GetLatencies()) > 0 {
			r = proto.CloneOf(r)
			r.Latencies = late
			results[i] = r
		}
	}
}
