package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// patrol is a continuous run that is followed as somebody with a pipe would.
type patrol struct {
	t     testing.TB
	lab   *lab
	run   string
	ended chan result // what it said on stderr, and its exit code, once

	mu   sync.Mutex
	told []pair
	at   []time.Time // when each was read
}

// follow starts a command that streams verdicts, such as `check --continuous`, and returns when its run is
// under way. The command ends with the test.
func (l *lab) follow(args ...string) *patrol {
	l.t.Helper()
	before := l.newest()
	p := &patrol{t: l.t, lab: l, ended: make(chan result, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	args = append(slices.Insert(slices.Clone(args), 1, "--lab", l.name), "-o", "json")
	cmd := exec.CommandContext(ctx, binary, args...)
	var errb strings.Builder
	cmd.Stderr = &errb
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		p.read(bufio.NewReader(out))
		_ = cmd.Wait() // the exit code says it
		p.ended <- result{stderr: errb.String(), code: cmd.ProcessState.ExitCode()}
	}()
	l.t.Cleanup(func() { cancel(); <-read })
	if args[0] == "check" {
		eventually(l.t, "the run's beginning", 20*time.Second, func() bool { p.run = l.newest(); return p.run != before })
	}
	return p
}

// newest is the id of the lab's last run.
func (l *lab) newest() string {
	l.t.Helper()
	var runs []struct {
		Run string `json:"run"`
	}
	if err := json.Unmarshal([]byte(l.must("runs", "-o", "json")), &runs); err != nil {
		l.t.Fatal(err)
	}
	if len(runs) == 0 {
		return ""
	}
	return runs[0].Run
}

func (p *patrol) read(r *bufio.Reader) {
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var told pair
		if err := json.Unmarshal(line, &told); err != nil {
			p.t.Errorf("not an object on a line: %v: %s", err, line)
			return
		}
		p.mu.Lock()
		p.told, p.at = append(p.told, told), append(p.at, time.Now())
		p.mu.Unlock()
	}
}

// all are the verdicts told so far, in the order in which they were.
func (p *patrol) all() []pair {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.told)
}

// standing is the last verdict told on each pair.
func (p *patrol) standing() check {
	last := map[string]pair{}
	for _, told := range p.all() {
		last[told.Src+" → "+told.Dst] = told
	}
	c := check{Counts: map[string]int{}}
	for _, told := range last {
		c.Pairs = append(c.Pairs, told)
		c.Counts[told.Verdict]++
	}
	return c
}

// until waits until so many pairs have a verdict, and all others are healthy.
func (p *patrol) until(verdict string, pairs int) check {
	p.t.Helper()
	var c check
	defer func() {
		if p.t.Failed() {
			p.t.Logf("stand %v, want %d %s and the others healthy", c.Counts, pairs, verdict)
			for _, q := range c.Pairs {
				if q.Verdict != "healthy" {
					p.t.Logf("%v, since %s, was %s", q, q.Since, q.Before)
				}
			}
		}
	}()
	eventually(p.t, fmt.Sprintf("%d %s pairs, the others healthy", pairs, verdict), 2*time.Minute, func() bool {
		c = p.standing()
		if verdict != "healthy" && c.Counts["healthy"] != 58-pairs {
			return false
		}
		return len(c.Pairs) == 58 && c.Counts[verdict] == pairs
	})
	return c
}

// broken breaks the lab, and wants it named as the lab does.
func (p *patrol) broken(kind, cause string) {
	p.t.Helper()
	before := len(p.all())
	p.lab.must("lab", "break", kind)
	var tr truth
	if err := json.Unmarshal([]byte(p.lab.must("lab", "truth", "-o", "json")), &tr); err != nil {
		p.t.Fatal(err)
	}
	pairs := 0
	for _, f := range tr.Fates {
		pairs += len(f.Src) * len(f.Dst)
	}
	p.until("faulty", pairs)
	// Where all processors are busy, a verdict may come before an explanation: the next one has it.
	var wrong []string
	defer func() {
		if p.t.Failed() {
			p.t.Logf("%s:\n%s", kind, strings.Join(wrong, "\n"))
		}
	}()
	eventually(p.t, kind+" named as the lab does", 2*time.Minute, func() bool {
		wrong = untold(p.standing(), p.all()[before:], tr, cause)
		return len(wrong) == 0
	})
}

// untold is checkTruth for verdicts that stand, whichever of the pair's probes they are from: what they do not say that they should. told
// are all since the break.
func untold(c check, told []pair, tr truth, cause string) (wrong []string) {
	changed := map[string]bool{} // from healthy, be it by way of another verdict
	for _, p := range told {
		changed[p.Src+" "+p.Dst] = changed[p.Src+" "+p.Dst] || p.Before == "healthy"
	}
	for _, f := range tr.Fates {
		for _, p := range c.Pairs {
			if !slices.Contains(f.Src, p.Src) || !slices.Contains(f.Dst, p.Dst) {
				continue
			}
			want := fmt.Sprintf("%s → %s", f.LastSeen, f.FirstMissing)
			if p.Verdict != f.Outcome || p.Segment == nil || *p.Segment != want || !slices.Contains(kindsOf[cause], p.CauseKind) {
				wrong = append(wrong, fmt.Sprintf("%v (want %s, segment %s, a cause of kind %v)", p, f.Outcome, want, kindsOf[cause]))
			}
			if !changed[p.Src+" "+p.Dst] || p.Changes == 0 || p.Since == "" {
				wrong = append(wrong, fmt.Sprintf("%v: was %q, change %d, since %q (want a change from healthy)", p, p.Before, p.Changes, p.Since))
			}
		}
	}
	return wrong
}

// TestContinuous follows one run through a break, an agent's death and the controller's.
func TestContinuous(t *testing.T) { // not beside others: two labs that are watched all the time take more than two processors, and lose packets
	l := up(t)
	p := l.follow("check", "--all", "--continuous")
	p.until("healthy", 58)
	p.testLatencies(l)
	p.broken("stale-vtep", "stale-vtep")
	l.must("lab", "heal", "stale-vtep")
	p.until("healthy", 58)
	// Whatever it told besides accused nobody, unless the lab's switches lost packets for want of a processor.
	lost := []string{"loss", "between-hosts", "underlay", "underlay-member"}
	if patient(1) != 1 {
		lost = append(lost, "entrypoint", "switch", "guest-silent")
	}
	for _, told := range p.all() {
		if told.Verdict != "healthy" && told.Verdict != "unknown" && !slices.Contains(lost, told.CauseKind) && told.Dst != "blue-3" && told.Src != "blue-3" {
			t.Errorf("%v; this pair was not broken", told)
		}
	}

	l.stop("hv4", "agent", "KILL") // where it is the destination, the answer proves all of the way
	p.until("unknown", 14)
	eventually(t, "the agent as the cause", 2*time.Minute, func() bool {
		return !slices.ContainsFunc(p.standing().Pairs, func(q pair) bool { return q.Verdict == "unknown" && q.CauseKind != "agent" })
	})
	l.daemonise("hv4", "agent", l.configFile("hv4"))
	p.until("healthy", 58)
	t.Run("resumed", func(t *testing.T) { p.testResumed(t, l.with(t)) })
}

// testLatencies reads how long packets took, by part of their way, once every pair was probed on the patrol's way round.
func (p *patrol) testLatencies(l *lab) {
	p.t.Helper()
	var c check
	eventually(p.t, "a probe of each pair", time.Minute, func() bool {
		c = l.readRun(p.run)
		return !slices.ContainsFunc(c.Pairs, func(q pair) bool { return len(untimed(q)) > 0 }) // of the first probe a sample may be late
	})
	for _, q := range c.Pairs {
		timed(p.t, q)
	}
}

// testResumed kills the controller, and has the run gone on with by the next one.
func (p *patrol) testResumed(t *testing.T, l *lab) {
	before := p.all()
	l.stop("controller", "serve", "KILL")
	if r := <-p.ended; r.code != 4 || !strings.Contains(r.stderr, "dyetrace run "+p.run) {
		t.Errorf("check, its controller killed: exit %d (want 4), and where to go on: %s", r.code, r.stderr)
	}
	l.daemonise("controller", "serve", l.configFile("controller"))
	l.ready()
	c := l.readRun(p.run)
	if c.State != "interrupted" {
		t.Errorf("state %q (want interrupted)", c.State)
	}
	checkKept(t, c, before)

	q := l.follow("run", p.run, "--resume")
	q.run = p.run
	q.until("healthy", 58)
	waiting := make(chan result, 1)
	go func() { waiting <- l.start(t.Context(), "run", p.run, "--wait", "-o", "json") }()
	q.broken("drop-tun", "flow")
	told := append(before, q.changes()...) // until now: what is told from here on need not be in what is read
	checkKept(t, l.readRun(p.run), told)
	text := l.dyetrace("run", p.run, "-v").stdout
	for _, want := range []string{"blue/blue-1 → blue/blue-3  faulty  was ", "blue/blue-1 → blue/blue-3  healthy  was "} {
		if !strings.Contains(text, want) {
			t.Errorf("dyetrace run does not tell %q:\n%s", want, text)
		}
	}
	l.must("lab", "heal", "drop-tun")
	q.until("healthy", 58)
	l.must("run", p.run, "--cancel")
	checkWaited(t, <-waiting)
}

// changes are the verdicts told that were not the first on their pair: those that a run which is gone on
// with tells again came before.
func (p *patrol) changes() []pair {
	return slices.DeleteFunc(p.all(), func(told pair) bool { return told.Before == "" })
}

// checkKept wants all that was told to be in a run's history.
func checkKept(t *testing.T, c check, told []pair) {
	t.Helper()
	key := func(p pair) string { return fmt.Sprint(p.Src, p.Dst, p.Verdict, p.Before, p.Since, p.Changes) }
	kept := map[string]bool{}
	for _, p := range c.Transitions {
		kept[key(p)] = true
	}
	for _, p := range told {
		if !kept[key(p)] {
			t.Errorf("%v: %s since %s was told, and is not among %d transitions", p, p.Verdict, p.Since, len(c.Transitions))
		}
	}
	if len(told) < 58 {
		t.Errorf("only %d verdicts were told", len(told))
	}
}

// checkWaited wants each pair once, as it stood last.
func checkWaited(t *testing.T, r result) {
	t.Helper()
	var c check
	if err := json.Unmarshal([]byte(r.stdout), &c); err != nil {
		t.Fatalf("run --wait: exit %d, output is not one JSON object: %v\n%s", r.code, err, r.stderr)
	}
	if c.State != "cancelled" || len(c.Pairs) != 58 || c.Counts["healthy"] != 58 {
		t.Errorf("run --wait: %s, %d pairs, %v (want cancelled, 58, all healthy)", c.State, len(c.Pairs), c.Counts)
	}
	for _, p := range c.Pairs {
		if p.Verdict != "healthy" {
			t.Errorf("%v: not as it stood at the end", p)
		}
	}
}

// TestContinuousMTU has large packets be lost between two hosts while a run goes on that is to try them, by GRE and
// VXLAN: the pairs between the two are told, and that it is over.
func TestContinuousMTU(t *testing.T) { // not beside others: two labs that are watched all the time take more than two processors, and lose packets
	l := up(t)
	p := l.follow("check", "--all", "--continuous", "--mtu")
	p.until("healthy", 58)
	l.must("lab", "break", "underlay-mtu")
	var tr truth
	if err := json.Unmarshal([]byte(l.must("lab", "truth", "-o", "json")), &tr); err != nil {
		t.Fatal(err)
	}
	hit := 0
	for _, q := range p.standing().Pairs {
		if len(fatesOf(tr.Large, q)) > 0 {
			hit++
		}
	}
	if hit == 0 {
		t.Fatal("the break declares no pair whose large packets are lost")
	}
	p.until("faulty", hit)
	var wrong []pair
	defer func() {
		if t.Failed() {
			t.Logf("path-mtu, or not: %v", wrong)
		}
	}()
	eventually(t, "path-mtu, of those that cross it", 2*time.Minute, func() bool {
		wrong = slices.DeleteFunc(p.standing().Pairs, func(q pair) bool {
			// An exchange may be under way when it breaks, which is by some source ports then.
			named := q.CauseKind == "path-mtu" && (strings.Contains(q.Cause, "1400 bytes pass") || strings.Contains(q.Cause, " source ports"))
			return (q.Verdict == "faulty") == named && named == (len(fatesOf(tr.Large, q)) > 0)
		})
		return len(wrong) == 0
	})
	l.must("lab", "heal", "underlay-mtu")
	p.until("healthy", 58)
}
