package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pressly/goose/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

var (
	start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	scope = &dyetracev1.Scope{Scope: &dyetracev1.Scope_Network{Network: "blue"}}
	// options has a value for every field, none of them the zero one.
	options = &dyetracev1.ProbeOptions{
		Scheme: dyetracev1.Scheme_SCHEME_ICMP, IpVersion: dyetracev1.IPVersion_IP_VERSION_6, NoTouch: true,
	}
)

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// plan returns n pairs without verdicts.
func plan(n int) []*dyetracev1.PairResult {
	pairs := make([]*dyetracev1.PairResult, n)
	for i := range pairs {
		pairs[i] = &dyetracev1.PairResult{
			Src: &dyetracev1.InstanceRef{Network: "blue", Name: fmt.Sprintf("blue-%d", i)},
			Dst: &dyetracev1.InstanceRef{Network: "green", Name: fmt.Sprintf("green-%d", i)},
		}
	}
	return pairs
}

// judged returns p with a verdict, as a run would have it.
func judged(p *dyetracev1.PairResult, v dyetracev1.Verdict) *dyetracev1.PairResult {
	p = proto.CloneOf(p)
	p.Verdict = v
	p.Probes = 1
	for i := range 8 {
		p.Samples = append(p.Samples, &dyetracev1.Sample{
			Point: &dyetracev1.Point{Host: "hv1", Bridge: "br-int", Kind: dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE},
			Seen:  true, AtNs: int64(i) * 40_000, Ttl: 64,
		})
	}
	if v == dyetracev1.Verdict_VERDICT_FAULTY {
		p.Cause = "hv2: dropped by br-int table 60"
		p.Host = "hv2"
	}
	return p
}

func TestRun(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := open(t, filepath.Join(t.TempDir(), "a b?c.db"))
	pairs := plan(200)
	run, err := s.CreateRun(ctx, scope, options, start, 30*time.Second, pairs)
	if err != nil {
		t.Fatal(err)
	}

	a := judged(pairs[7], dyetracev1.Verdict_VERDICT_HEALTHY)
	b := judged(pairs[199], dyetracev1.Verdict_VERDICT_FAULTY)
	if err := s.PutResults(ctx, run.Id, []uint32{7, 199}, []*dyetracev1.PairResult{a, b}); err != nil {
		t.Fatal(err)
	}
	// The second verdict on a pair does not count.
	again := judged(pairs[7], dyetracev1.Verdict_VERDICT_SILENT)
	if err := s.PutResults(ctx, run.Id, []uint32{7}, []*dyetracev1.PairResult{again}); err != nil {
		t.Fatal(err)
	}

	want := slices.Clone(pairs)
	want[7], want[199] = a, b
	got, err := s.Pairs(ctx, run.Id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("Pairs (-want +got):\n%s", diff)
	}

	findings := []*dyetracev1.Finding{{Kind: dyetracev1.FindingKind_FINDING_KIND_TUNNEL, Host: "hv1", PeerHost: "hv3", Passed: 7}}
	if err := s.FinishRun(ctx, run.Id, dyetracev1.RunState_RUN_STATE_DONE, findings, start.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if listed, err := s.Runs(ctx, "", 1); err != nil || len(listed) != 1 || listed[0].Findings != nil {
		t.Errorf("Runs = %v, %v; want it without findings", listed, err)
	}
	stored, err := s.Run(ctx, run.Id)
	if err != nil {
		t.Fatal(err)
	}
	run.State = dyetracev1.RunState_RUN_STATE_DONE
	run.Counts = &dyetracev1.Counts{Healthy: 1, Faulty: 1}
	run.Findings = findings
	if stored.Ended.AsTime() != start.Add(time.Second) {
		t.Errorf("ended = %v", stored.Ended.AsTime())
	}
	stored.Ended = nil
	if diff := cmp.Diff(run, stored, protocmp.Transform()); diff != "" {
		t.Errorf("Run (-want +got):\n%s", diff)
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	pairs := plan(2)
	one := []*dyetracev1.PairResult{judged(pairs[0], dyetracev1.Verdict_VERDICT_HEALTHY)}

	create := func() string {
		run, err := s.CreateRun(ctx, scope, options, start, 7*time.Second, pairs)
		if err != nil {
			t.Fatal(err)
		}
		return run.Id
	}
	check := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}

	check("put into a run that is not there", s.PutResults(ctx, "0000", []uint32{0}, one), ErrNotFound)
	check("finish a run that is not there", s.FinishRun(ctx, "0000", dyetracev1.RunState_RUN_STATE_DONE, nil, start), ErrNotFound)
	_, _, err := s.ResumeRun(ctx, "0000")
	check("resume a run that is not there", err, ErrNotFound)

	id := create()
	_, _, err = s.ResumeRun(ctx, id)
	check("resume a running run", err, ErrState)
	if err := s.PutResults(ctx, id, []uint32{2}, one); err == nil {
		t.Error("a verdict beyond the plan was accepted")
	}
	if err := s.PutResults(ctx, id, []uint32{0, 1}, one); err == nil {
		t.Error("columns of unequal length were accepted")
	}
	// One bad verdict: none of the batch is written.
	if err := s.PutResults(ctx, id, []uint32{0, 1}, []*dyetracev1.PairResult{one[0], pairs[1]}); err == nil {
		t.Error("a result without a verdict was accepted")
	}
	if r, err := s.Run(ctx, id); err != nil || r.Counts.Healthy != 0 {
		t.Errorf("after a refused batch: %v, %v", r, err)
	}
	check("cancel", s.FinishRun(ctx, id, dyetracev1.RunState_RUN_STATE_CANCELLED, nil, start), nil)
	check("put into a cancelled run", s.PutResults(ctx, id, []uint32{0}, one), ErrState)
	check("finish twice", s.FinishRun(ctx, id, dyetracev1.RunState_RUN_STATE_DONE, nil, start), ErrState)

	// A run that its process did not finish can be resumed by the next one, once.
	left := create()
	_, err = Open(ctx, path)
	check("open twice", err, ErrLocked)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	r, err := s.Run(ctx, left)
	if err != nil || r.State != dyetracev1.RunState_RUN_STATE_INTERRUPTED || r.Ended != nil {
		t.Errorf("run left by the last process: %v, %v; want it interrupted, with no end", r, err)
	}
	check("put into an interrupted run", s.PutResults(ctx, left, []uint32{0}, one), ErrState)
	r, timeout, err := s.ResumeRun(ctx, left)
	if err != nil || r.State != dyetracev1.RunState_RUN_STATE_RUNNING || timeout != 7*time.Second {
		t.Errorf("ResumeRun = %v, %v, %v", r, timeout, err)
	}
	if !proto.Equal(r.GetOptions(), options) {
		t.Errorf("a resumed run has the options %v, want %v", r.GetOptions(), options)
	}
	check("put into a resumed run", s.PutResults(ctx, left, []uint32{0}, one), nil)
}

// TestMigrate opens a database of before there were options: its runs have the zero ones, and can
// be gone on with.
func TestMigrate(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "s.db")
	db, err := openDB(path, "_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.UpTo(ctx, 1); err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(ctx, `INSERT INTO runs (id, state, scope, started_ns, timeout_ns, total) VALUES ('old', ?, x'', 1, 1, 0)`,
		dyetracev1.RunState_RUN_STATE_RUNNING)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}

	s := open(t, path)
	run, _, err := s.ResumeRun(ctx, "old")
	if err != nil || run.GetOptions() == nil || !proto.Equal(run.GetOptions(), &dyetracev1.ProbeOptions{}) {
		t.Errorf("a run from before: %v, %v; want zero options", run, err)
	}
	after, err := s.CreateRun(ctx, scope, options, start, time.Second, nil)
	if err != nil {
		t.Fatal(err)
	}
	runs, err := s.Runs(ctx, "", 1)
	if err != nil || len(runs) != 1 {
		t.Fatalf("Runs = %v, %v", runs, err)
	}
	if r, err := s.Run(ctx, after.Id); err != nil || !proto.Equal(r.GetOptions(), options) {
		t.Errorf("a run from after: %v, %v; want options %v", r, err, options)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	var all []string
	for range 5 { // within one millisecond, as far as the store can tell
		run, err := s.CreateRun(ctx, scope, nil, start, time.Second, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, run.Id)
	}
	later, err := s.CreateRun(ctx, scope, nil, start.Add(24*time.Hour), time.Second, nil)
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, later.Id)
	if !slices.IsSorted(all) || len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Fatalf("ids do not rise: %q", all)
	}

	tests := []struct {
		id   string
		want string
		err  error
	}{
		{id: all[2], want: all[2]},
		{id: later.Id[:6], want: later.Id},
		{id: all[0][:3], err: ErrAmbiguous},
		{id: "zzzz", err: ErrNotFound},
		{id: "%", err: ErrNotFound},
		{id: "", err: ErrNotFound},
	}
	for _, tt := range tests {
		run, err := s.Run(ctx, tt.id)
		if !errors.Is(err, tt.err) || run.GetId() != tt.want {
			t.Errorf("Run(%q) = %q, %v; want %q, %v", tt.id, run.GetId(), err, tt.want, tt.err)
		}
	}

	var pages []string
	before := ""
	for {
		runs, err := s.Runs(ctx, before, 4)
		if err != nil {
			t.Fatal(err)
		}
		if len(runs) == 0 {
			break
		}
		for _, r := range runs {
			pages = append(pages, r.Id)
		}
		before = runs[len(runs)-1].Id
	}
	slices.Reverse(pages)
	if !slices.Equal(pages, all) {
		t.Errorf("pages = %q, want %q", pages, all)
	}
}

// TestConcurrent has several runs write while others read: nobody may see SQLITE_BUSY.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			pairs := plan(50)
			run, err := s.CreateRun(ctx, scope, nil, time.Now(), time.Second, pairs)
			if err != nil {
				t.Error(err)
				return
			}
			for i, p := range pairs {
				r := []*dyetracev1.PairResult{judged(p, dyetracev1.Verdict_VERDICT_HEALTHY)}
				if err := s.PutResults(ctx, run.Id, []uint32{uint32(i)}, r); err != nil {
					t.Error(err)
					return
				}
				// What was acknowledged is seen by the next reader.
				got, err := s.Run(ctx, run.Id)
				if err != nil || int(got.Counts.Healthy) != i+1 {
					t.Errorf("after %d results: %v, %v", i+1, got, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestPermissions(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.db")
	s := open(t, path)
	if _, err := s.CreateRun(t.Context(), scope, nil, start, time.Second, nil); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) < 3 { // database, lock, write-ahead log
		t.Fatalf("files = %q, %v", files, err)
	}
	for _, f := range files {
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", filepath.Base(f), fi.Mode().Perm())
		}
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.db")
	if err := os.WriteFile(garbage, []byte("this is a text file, and longer than a header of SQLite, which has a hundred bytes ............."), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{garbage, filepath.Join(dir, "no", "such", "dir.db")} {
		if s, err := Open(t.Context(), path); err == nil {
			s.Close()
			t.Errorf("Open(%s) succeeded", path)
		}
	}
}

func TestSynchronous(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "s.db"))
	var mode string
	var sync int
	if err := s.write.QueryRow(`PRAGMA journal_mode`).Scan(&mode); err != nil || mode != "wal" {
		t.Errorf("journal_mode = %s, %v", mode, err)
	}
	if err := s.write.QueryRow(`PRAGMA synchronous`).Scan(&sync); err != nil || sync != 2 {
		t.Errorf("synchronous = %d, %v; want 2 (FULL)", sync, err)
	}
}

func TestFormatID(t *testing.T) {
	t.Parallel()
	for v, want := range map[uint64]string{
		0:           "000000000000",
		31:          "00000000000z",
		1<<60 - 1:   "zzzzzzzzzzzz",
		1 << 20:     "000000010000",
		0xffff << 8: "0000000fzzr0",
	} {
		if got := formatID(v); got != want {
			t.Errorf("formatID(%#x) = %s, want %s", v, got, want)
		}
	}
}

func BenchmarkCreateRun(b *testing.B) {
	for _, n := range []int{58, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "s.db"))
			pairs := plan(n)
			for b.Loop() {
				if _, err := s.CreateRun(b.Context(), scope, nil, start, time.Second, pairs); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
		})
	}
}

func BenchmarkPutResults(b *testing.B) {
	for _, n := range []int{1, 64, 512} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "s.db"))
			const total = 10_000
			pairs := plan(total)
			for i, p := range pairs {
				pairs[i] = judged(p, dyetracev1.Verdict_VERDICT_HEALTHY)
			}
			seq := make([]uint32, n)
			at, id := total, ""
			for b.Loop() {
				if at+n > total {
					b.StopTimer()
					run, err := s.CreateRun(b.Context(), scope, nil, start, time.Second, pairs)
					if err != nil {
						b.Fatal(err)
					}
					at, id = 0, run.Id
					b.StartTimer()
				}
				for i := range seq {
					seq[i] = uint32(at + i)
				}
				if err := s.PutResults(b.Context(), id, seq, pairs[at:at+n]); err != nil {
					b.Fatal(err)
				}
				at += n
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "results/s")
		})
	}
}

// TestTransitions has verdicts of a continuous run take the place of others, over a restart, and the
// oldest ones forgotten.
func TestTransitions(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dyetrace.db")
	s := open(t, path)
	pairs := plan(3)
	run, err := s.CreateRun(t.Context(), scope, &dyetracev1.ProbeOptions{Continuous: true}, start, 0, pairs)
	if err != nil {
		t.Fatal(err)
	}
	put := func(i int, v dyetracev1.Verdict) *dyetracev1.PairResult {
		t.Helper()
		r := &dyetracev1.PairResult{Src: pairs[i].Src, Dst: pairs[i].Dst, Verdict: v}
		if err := s.PutTransitions(t.Context(), run.Id, []uint32{uint32(i)}, []*dyetracev1.PairResult{r}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	const healthy, faulty = dyetracev1.Verdict_VERDICT_HEALTHY, dyetracev1.Verdict_VERDICT_FAULTY
	put(0, healthy)
	put(1, healthy)
	a := put(0, faulty)
	b := put(0, healthy)
	c := put(1, faulty)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	got, err := s.Run(t.Context(), run.Id)
	if err != nil || got.Counts.Healthy != 1 || got.Counts.Faulty != 1 || got.State != dyetracev1.RunState_RUN_STATE_INTERRUPTED {
		t.Errorf("run %v, %v; want one pair healthy, one faulty, interrupted", got, err)
	}
	all, err := s.Transitions(t.Context(), run.Id, 3)
	if diff := cmp.Diff([]*dyetracev1.PairResult{a, b, c}, all, protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("transitions: %v\n%s", err, diff)
	}
	now, err := s.Pairs(t.Context(), run.Id)
	if err != nil || now[0].Verdict != healthy || now[1].Verdict != faulty || now[2].Verdict != 0 {
		t.Errorf("pairs %v, %v", now, err)
	}
	if err := s.PutTransitions(t.Context(), run.Id, []uint32{0}, []*dyetracev1.PairResult{a}); !errors.Is(err, ErrState) {
		t.Errorf("a run that is not running: %v", err)
	}
	if _, timeout, err := s.ResumeRun(t.Context(), run.Id); err != nil || timeout != 0 {
		t.Errorf("resumed with %v, %v", timeout, err)
	}
	many, seq := make([]*dyetracev1.PairResult, keptTransitions+50), make([]uint32, keptTransitions+50)
	for i := range many {
		many[i] = b
	}
	if err := s.PutTransitions(t.Context(), run.Id, seq, many); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Transitions(t.Context(), run.Id, 2*keptTransitions); err != nil || len(all) != keptTransitions {
		t.Errorf("%d transitions are kept, %v; want %d", len(all), err, keptTransitions)
	}
}
