package run

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// feed is what may be shown of a run under way: a log of verdicts that only grows, from which any
// number of watchers read, each from its own place. That of a continuous run forgets what is old: who
// was to read that still is told so, and gets the current verdict on every pair instead.
type feed struct {
	mu      sync.Mutex
	run     *dyetracev1.Run
	results []*dyetracev1.PairResult // shared; nobody changes one that is here
	base    int                      // verdicts forgotten before those
	// current are the verdicts that stand, by pair; nil where each falls once.
	current map[string]*dyetracev1.PairResult
	times   *latencyBook // of a continuous run under way
	ended   bool
	found   int           // how often findings changed
	news    atomic.Bool   // verdicts, since what they have in common was looked at
	changed chan struct{} // closed at the next change
}

// keptVerdicts is how many a feed of a continuous run keeps for watchers that are behind, besides
// one of each pair: some MB.
const keptVerdicts = 4096

func newFeed(run *dyetracev1.Run, results []*dyetracev1.PairResult) *feed {
	return &feed{run: run, results: results, changed: make(chan struct{})}
}

// add shows verdicts. They are in the store already.
func (f *feed) add(results []*dyetracev1.PairResult) {
	f.change(func() {
		f.results = append(f.results, results...)
		for _, r := range results {
			count(f.run.Counts, r.GetVerdict(), 1)
		}
		f.run.Verdict = worst(f.run.Counts)
	})
}

// continuous has verdicts replace those that they follow. It is called before anybody watches.
func (f *feed) continuous() {
	f.current = map[string]*dyetracev1.PairResult{}
	for _, r := range f.results {
		f.current[pairKey(r)] = r
	}
}

// time shows, to who reads a continuous run, how long its probes take.
func (f *feed) time(b *latencyBook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.times = b
}

// latest has verdicts of a continuous run under way say how long probes take.
func (f *feed) latest(results []*dyetracev1.PairResult) {
	f.mu.Lock()
	times := f.times
	f.mu.Unlock()
	if times != nil {
		times.fill(results)
	}
}

func pairKey(r *dyetracev1.PairResult) string {
	return r.GetSrc().GetNetwork() + "/" + r.GetSrc().GetName() + " " + r.GetDst().GetNetwork() + "/" + r.GetDst().GetName()
}

// replace shows verdicts that take the place of those before, which are in the store already.
func (f *feed) replace(results []*dyetracev1.PairResult) {
	f.change(func() {
		for _, r := range results {
			key := pairKey(r)
			if old := f.current[key]; old != nil {
				count(f.run.Counts, old.GetVerdict(), -1)
			}
			f.current[key] = r
			count(f.run.Counts, r.GetVerdict(), 1)
		}
		f.results = append(f.results, results...)
		if most := keptVerdicts + len(f.current); len(f.results) > 2*most {
			n := len(f.results) - most
			f.results, f.base = slices.Clone(f.results[n:]), f.base+n
		}
		f.run.Verdict = worst(f.run.Counts)
	})
}

// figures shows what a continuous run has measured besides verdicts. Watchers are told when something else
// loses than before; for figures alone nobody is woken.
func (f *feed) figures(probes uint64, losses []*dyetracev1.SegmentLoss) {
	f.mu.Lock()
	same := slices.EqualFunc(f.run.Losses, losses, func(a, b *dyetracev1.SegmentLoss) bool {
		return a.GetHost() == b.GetHost() && proto.Equal(a.GetSegment(), b.GetSegment()) && a.GetUnderlay() == b.GetUnderlay() &&
			(len(a.GetSourcePorts()) > 0) == (len(b.GetSourcePorts()) > 0)
	})
	f.run.Probes, f.run.Losses = probes, losses
	f.mu.Unlock()
	if !same {
		f.change(func() { f.found++ })
	}
}

// infer shows what the verdicts that stand have in common, if that is news.
func (f *feed) infer(findings []*dyetracev1.Finding) {
	f.mu.Lock()
	same := slices.EqualFunc(f.run.Findings, findings, func(a, b *dyetracev1.Finding) bool { return proto.Equal(a, b) })
	f.mu.Unlock()
	if !same {
		f.change(func() { f.run.Findings, f.found = findings, f.found+1 })
	}
}

// standing are the verdicts that stand in a continuous run, by pair: equal ones have equal things in common.
func (f *feed) standing() (all []*dyetracev1.PairResult) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(f.current)) {
		all = append(all, f.current[key])
	}
	return all
}

// end shows the run as over, with what its verdicts have in common.
func (f *feed) end(state dyetracev1.RunState, findings []*dyetracev1.Finding, ended *timestamppb.Timestamp) {
	f.change(func() { f.run.State, f.run.Findings, f.run.Ended, f.ended = state, findings, ended, true })
}

func (f *feed) change(how func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how()
	close(f.changed)
	f.changed = make(chan struct{})
}

// page is a feed as it stands.
type page struct {
	run     *dyetracev1.Run
	results []*dyetracev1.PairResult
	next    int // verdicts read, these included
	missed  int // of those before: nobody has them any more
	ended   bool
	found   int             // how often findings changed
	changed <-chan struct{} // closed when any of this changes
}

// since returns the run and the verdicts after the first n; of a continuous run those that stand now,
// if n is 0 or was forgotten.
func (f *feed) since(n int) page {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := page{run: proto.CloneOf(f.run), next: f.base + len(f.results), ended: f.ended, found: f.found, changed: f.changed}
	switch {
	case f.current != nil && (n == 0 || n < f.base):
		p.results = slices.AppendSeq(p.results, maps.Values(f.current))
		if n > 0 {
			p.missed = f.base - n
		}
	default:
		n -= f.base
		p.results = f.results[n:len(f.results):len(f.results)]
	}
	return p
}

// watch shows the run, every verdict once, and the run again when it is over, and whenever the verdicts of
// a continuous one have something else in common than before. It ends with the
// run, with ctx, or with the first error of show.
func (f *feed) watch(ctx context.Context, show func(*dyetracev1.WatchRunResponse) error) error {
	n, first, found := 0, true, 0
	for {
		p := f.since(n)
		if first || p.missed > 0 {
			e := runEvent(p.run)
			e.Missed = uint64(p.missed)
			if err := show(e); err != nil {
				return err
			}
			first, found = false, p.found
		}
		for _, r := range p.results {
			if err := show(pairEvent(r)); err != nil {
				return err
			}
		}
		n = p.next
		if p.found != found && !p.ended { // after the verdicts that they speak of
			if err := show(runEvent(p.run)); err != nil {
				return err
			}
		}
		found = p.found
		if p.ended { // since returned all there will ever be
			return show(runEvent(p.run))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.changed:
		}
	}
}

func runEvent(r *dyetracev1.Run) *dyetracev1.WatchRunResponse {
	return &dyetracev1.WatchRunResponse{Event: &dyetracev1.WatchRunResponse_Run{Run: r}}
}

func pairEvent(r *dyetracev1.PairResult) *dyetracev1.WatchRunResponse {
	return &dyetracev1.WatchRunResponse{Event: &dyetracev1.WatchRunResponse_Pair{Pair: r}}
}

// count adds n pairs, or takes them off, with a verdict.
func count(c *dyetracev1.Counts, v dyetracev1.Verdict, n int) {
	if of := verdict.CountOf(c, v); of != nil {
		*of += uint32(n)
	}
}

// worst is the verdict on a run: that on the pair which is worst off, by the order of the
// contract (Run.verdict).
func worst(c *dyetracev1.Counts) dyetracev1.Verdict {
	switch {
	case c.GetFaulty() > 0:
		return dyetracev1.Verdict_VERDICT_FAULTY
	case c.GetSilent() > 0:
		return dyetracev1.Verdict_VERDICT_SILENT
	case c.GetPolicy() > 0:
		return dyetracev1.Verdict_VERDICT_POLICY
	case c.GetUnknown() > 0:
		return dyetracev1.Verdict_VERDICT_UNKNOWN
	case c.GetHealthy() > 0:
		return dyetracev1.Verdict_VERDICT_HEALTHY
	}
	return dyetracev1.Verdict_VERDICT_UNSPECIFIED
}
