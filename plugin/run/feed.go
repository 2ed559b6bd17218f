package run

import (
	"context"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// feed is what may be shown of a run under way: a log of verdicts that only grows, from which any
// number of watchers read, each from its own place.
type feed struct {
	mu      sync.Mutex
	run     *dyetracev1.Run
	results []*dyetracev1.PairResult // shared; nobody changes one that is here
	ended   bool
	changed chan struct{} // closed at the next change
}

func newFeed(run *dyetracev1.Run, results []*dyetracev1.PairResult) *feed {
	return &feed{run: run, results: results, changed: make(chan struct{})}
}

// add shows verdicts. They are in the store already.
func (f *feed) add(results []*dyetracev1.PairResult) {
	f.change(func() {
		f.results = append(f.results, results...)
		for _, r := range results {
			count(f.run.Counts, r.GetVerdict())
		}
		f.run.Verdict = worst(f.run.Counts)
	})
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

// since returns the run as it stands, the verdicts after the first n, whether the run is over, and
// a channel that is closed when any of this changes.
func (f *feed) since(n int) (run *dyetracev1.Run, results []*dyetracev1.PairResult, ended bool, changed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return proto.CloneOf(f.run), f.results[n:len(f.results):len(f.results)], f.ended, f.changed
}

// watch shows the run, every verdict once, and the run again when it is over. It ends with the
// run, with ctx, or with the first error of show.
func (f *feed) watch(ctx context.Context, show func(*dyetracev1.WatchRunResponse) error) error {
	n, first := 0, true
	for {
		run, results, ended, changed := f.since(n)
		if first {
			if err := show(runEvent(run)); err != nil {
				return err
			}
			first = false
		}
		for _, r := range results {
			if err := show(pairEvent(r)); err != nil {
				return err
			}
		}
		n += len(results)
		if ended { // since returned all there will ever be
			return show(runEvent(run))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func runEvent(r *dyetracev1.Run) *dyetracev1.WatchRunResponse {
	return &dyetracev1.WatchRunResponse{Event: &dyetracev1.WatchRunResponse_Run{Run: r}}
}

func pairEvent(r *dyetracev1.PairResult) *dyetracev1.WatchRunResponse {
	return &dyetracev1.WatchRunResponse{Event: &dyetracev1.WatchRunResponse_Pair{Pair: r}}
}

func count(c *dyetracev1.Counts, v dyetracev1.Verdict) {
	switch v {
	case dyetracev1.Verdict_VERDICT_HEALTHY:
		c.Healthy++
	case dyetracev1.Verdict_VERDICT_FAULTY:
		c.Faulty++
	case dyetracev1.Verdict_VERDICT_SILENT:
		c.Silent++
	case dyetracev1.Verdict_VERDICT_POLICY:
		c.Policy++
	case dyetracev1.Verdict_VERDICT_UNKNOWN:
		c.Unknown++
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
