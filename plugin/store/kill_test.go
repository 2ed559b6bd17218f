package store

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// writerEnv makes the test binary the process that is killed: its value is the database.
const writerEnv = "DYETRACE_TEST_STORE_WRITER"

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		if err := writer(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const killPairs = 4096

// writer writes runs until it is killed, every other one as a continuous run writes, and prints what was acknowledged:
// "run ID CONTINUOUS", and "pairs FIRST LAST" for a batch.
func writer(path string) error {
	ctx := context.Background()
	s, err := Open(ctx, path)
	if err != nil {
		return err
	}
	for continuous := rand.IntN(2) == 0; ; continuous = !continuous {
		put := s.PutResults
		if continuous {
			put = s.PutTransitions
		}
		pairs := plan(killPairs)
		run, err := s.CreateRun(ctx, scope, options, time.Now(), time.Minute, pairs)
		if err != nil {
			return err
		}
		fmt.Println("run", run.Id, continuous)
		for at := 0; at < killPairs; {
			n := min(1+rand.IntN(200), killPairs-at)
			seq := make([]uint32, n)
			results := make([]*dyetracev1.PairResult, n)
			for i := range n {
				seq[i] = uint32(at + i)
				results[i] = judged(pairs[at+i], dyetracev1.Verdict_VERDICT_HEALTHY)
			}
			if err := put(ctx, run.Id, seq, results); err != nil {
				return err
			}
			fmt.Println("pairs", at, at+n-1)
			at += n
		}
	}
}

// TestKill kills a writing process at random points of its work, and looks for what it had
// acknowledged.
func TestKill(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.db")
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for range rounds {
		id, continuous, acked := killWriter(t, path, 1+rand.IntN(60), time.Duration(rand.IntN(3000))*time.Microsecond)

		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatalf("after kill -9: %v", err)
		}
		run, err := s.Run(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if run.State != dyetracev1.RunState_RUN_STATE_INTERRUPTED {
			t.Errorf("run is %v, want it interrupted", run.State)
		}
		if !proto.Equal(run.Options, options) {
			t.Errorf("run has options %v, want %v", run.Options, options)
		}
		pairs, err := s.Pairs(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if len(pairs) != killPairs {
			t.Fatalf("plan has %d pairs, want %d", len(pairs), killPairs)
		}
		have := 0
		for i, p := range pairs {
			if p.Verdict == dyetracev1.Verdict_VERDICT_HEALTHY {
				have++
			} else if i < acked {
				t.Fatalf("verdict %d of %d acknowledged ones is gone", i, acked)
			}
		}
		if int(run.Counts.Healthy) != have {
			t.Errorf("run counts %d verdicts, and has %d", run.Counts.Healthy, have)
		}
		changes, err := s.Transitions(t.Context(), id, killPairs)
		if err != nil {
			t.Fatal(err)
		}
		if continuous && len(changes) != have || !continuous && len(changes) > 0 {
			t.Errorf("continuous: %t: run has %d transitions, and %d verdicts", continuous, len(changes), have)
		}
		for i, c := range changes {
			if c.GetSrc().GetName() != pairs[i].GetSrc().GetName() || c.GetDst().GetName() != pairs[i].GetDst().GetName() {
				t.Fatalf("transition %d is of %s → %s, want that of %s → %s", i, c.GetSrc().GetName(), c.GetDst().GetName(), pairs[i].GetSrc().GetName(), pairs[i].GetDst().GetName())
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killWriter starts a writer, kills it some time after the line with the given number, and returns
// the last run that it acknowledged, whether it was a continuous one, and how many of its verdicts.
func killWriter(t *testing.T, path string, lines int, more time.Duration) (id string, continuous bool, acked int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()

	sc := bufio.NewScanner(out)
	for n := 0; sc.Scan(); n++ {
		var first, last int
		if _, err := fmt.Sscanf(sc.Text(), "pairs %d %d", &first, &last); err == nil {
			acked = last + 1
		} else if _, err := fmt.Sscanf(sc.Text(), "run %s %t", &id, &continuous); err == nil {
			acked = 0
		} else {
			t.Fatalf("writer says %q", sc.Text())
		}
		if n == lines {
			// Not to be right, but to kill in the middle of the next write.
			time.AfterFunc(more, func() { cmd.Process.Kill() })
		}
	}
	if id == "" {
		t.Fatal("writer acknowledged nothing")
	}
	return id, continuous, acked
}
