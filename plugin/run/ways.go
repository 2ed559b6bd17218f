package run

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/plan"
)

// ways is what the probes of a continuous run's examinations and patrol showed of the network from one host to
// another, and where streams are silent. Its methods may be called from many goroutines; a nil one knows nothing.
type ways struct {
	any     atomic.Bool // silent has some
	mu      sync.Mutex
	silent  map[[2]string]time.Time // by hostPair: since when
	changes int                     // of silent
	of      map[[2]string]*way      // from, to
}

// way is from one host to another.
type way struct {
	passed time.Time // when the last probe was sent that passed
	died   map[deadProbe]death
}

// deadProbe is a probe of an examination.
type deadProbe struct {
	by     *pace.Party
	number uint32
}

type death struct {
	seq  uint32 // of its pair
	sent time.Time
}

// keepDeaths is how long it is known that a probe died: an examination is over by then.
const keepDeaths = 10 * time.Second

func newWays() *ways {
	return &ways{silent: map[[2]string]time.Time{}, of: map[[2]string]*way{}}
}

// hostPair is two hosts, in no order.
func hostPair(a, b string) [2]string { return [2]string{min(a, b), max(a, b)} }

// hush takes in that a stream between two hosts is silent, since then, or answered: the zero Time.
func (w *ways) hush(a, b string, since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changes++
	if w.silent[hostPair(a, b)] = since; since.IsZero() {
		delete(w.silent, hostPair(a, b))
	}
	w.any.Store(len(w.silent) > 0)
}

// hushed says since when the stream between two hosts is silent.
func (w *ways) hushed(a, b string) (since time.Time, is bool) {
	if w == nil || !w.any.Load() {
		return since, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	since, is = w.silent[hostPair(a, b)]
	return since, is
}

// news counts how often hush was called.
func (w *ways) news() int {
	if w == nil {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changes
}

func (w *ways) way(from, to string) *way {
	key := [2]string{from, to}
	if w.of[key] == nil {
		w.of[key] = &way{died: map[deadProbe]death{}}
	}
	return w.of[key]
}

// saw takes in up to which point of its path a probe was seen; dead says that it should have been seen further by now. What
// is seen later takes its place.
func (w *ways) saw(p *plan.Path, seen int, dead bool, probe deadProbe, d death) {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := -1
	for k := range p.Points {
		if p.Points[k].Absent != "" {
			continue
		}
		if last >= 0 && p.Points[last].Host != p.Points[k].Host {
			way := w.way(p.Points[last].Host, p.Points[k].Host)
			switch {
			case k <= seen:
				delete(way.died, probe)
				if d.sent.After(way.passed) {
					way.passed = d.sent
				}
			case dead && last == seen:
				for o, at := range way.died {
					if d.sent.Sub(at.sent) > keepDeaths {
						delete(way.died, o)
					}
				}
				way.died[probe] = d
			}
		}
		last = k
	}
}

// witnesses counts the probes of other pairs that died on the way from one host to another since then, and of how many pairs they
// are; 0 if any has passed there since.
func (w *ways) witnesses(from, to string, since time.Time, seq uint32) (probes, pairs int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	way := w.of[[2]string{from, to}]
	if way == nil || way.passed.After(since) {
		return 0, 0
	}
	others := map[uint32]bool{}
	for _, d := range way.died {
		if d.seq != seq && d.sent.After(since) {
			probes++
			others[d.seq] = true
		}
	}
	return probes, len(others)
}
