package run

import (
	"log/slog"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/store"
)

// BenchmarkVerdicts measures what the controller does for a run of 10,100 pairs: planning, probes
// out, 80,000 samples in as columns, judging, and verdicts on disk, in SQLite. Agents are played in
// memory; that what they see is made up along the way is part of the figure (a twentieth of it).
func BenchmarkVerdicts(b *testing.B) {
	snap := site(b, 101)
	s, err := store.Open(b.Context(), filepath.Join(b.TempDir(), "s.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	// Two, since who watched a run to its end may be faster than its place is free.
	r := New(Config{
		Timeout: time.Minute, Settle: 250 * time.Millisecond, AnswerTimeout: 5 * time.Second, PerInstanceRate: 1e6, PerInstanceBurst: 1e6,
		MaxActive: 2, MaxPairs: 1e6, Store: s, Book: oneBook{snap}, Log: slog.New(slog.DiscardHandler),
		Fleet: fleet.New(fleet.Config{Log: slog.New(slog.DiscardHandler)}), // without agents
	})
	_, paths := pathsOf(b, snap, allPairs)
	r.begin = func(spec fleet.Spec) agents {
		c := newCastOf(paths, options{})
		c.quiet = true
		return c.begin(spec)
	}
	scope := &dyetracev1.Scope{Scope: &dyetracev1.Scope_All{All: true}}

	b.ReportAllocs()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for b.Loop() {
		run, err := r.Start(b.Context(), scope, nil, 0)
		if err != nil {
			b.Fatal(err)
		}
		var last *dyetracev1.Run
		err = r.Watch(b.Context(), run.Id, func(m *dyetracev1.WatchRunResponse) error {
			if m.GetRun() != nil {
				last = m.GetRun()
			}
			return nil
		})
		if err != nil || int(last.Counts.Healthy) != len(paths) {
			b.Fatalf("%v, %v", last, err)
		}
	}
	runtime.ReadMemStats(&after)
	verdicts := float64(b.N * len(paths))
	b.ReportMetric(verdicts/b.Elapsed().Seconds(), "verdicts/s")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/verdicts, "B/verdict")
}

// oneBook is an inventory that does not change.
type oneBook struct{ snap *inventory.Snapshot }

func (b oneBook) Snapshot() *inventory.Snapshot { return b.snap }

// BenchmarkSee measures the path of a sample from its column to its slot.
func BenchmarkSee(b *testing.B) {
	_, paths := pathsOf(b, site(b, 101), allPairs)
	c := newCast(paths)
	l := newLedger(c.spec.Key, c.ps, c.tracks, 0)
	c.spec.Hosts = l.hosts
	numbers := make([]uint32, len(paths))
	for i := range numbers {
		numbers[i] = uint32(i)
		l.ask(uint32(i))
	}
	all := c.see(numbers)
	n := 0
	for b.Loop() {
		for host, m := range all {
			for i := range m.Index {
				l.see(host, l.bridges[m.Bridges[m.Bridge[i]]], m, i)
				n++
			}
		}
		b.StopTimer()
		clear(l.slots)
		for i := range l.probes {
			l.probes[i].missing = 255
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "samples/s")
}
