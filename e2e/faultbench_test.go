package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	benchFor  = flag.Duration("faultbench", 0, "run the fault bench for about that long; 0 is a smoke test of it")
	benchSeed = flag.Uint64("seed", 0, "of the fault bench; 0 is another one each time")
)

// case is what the bench does to a lab at once: breaks of the lab's, or one thing done to Dyetrace
// itself, of which the truth is that no packet is lost by it.
type benchCase struct {
	breaks []breakKind
	own    *ownFault
}

func (c benchCase) String() string {
	if c.own != nil {
		return "own: " + c.own.name
	}
	var names []string
	for _, k := range c.breaks {
		names = append(names, k.Name)
	}
	return strings.Join(names, " + ")
}

// ownFault is a fault of ours: verdicts may be unknown, and never wrong.
type ownFault struct {
	name string
	do   func(l *lab)
	undo func(l *lab)
}

// ownFaults are done to hv3 and its agent, by nothing but the tools of its operating system.
var ownFaults = []ownFault{
	{"all flows replaced by the controller's", func(l *lab) {
		for _, br := range []string{"br-int", "br-tun"} {
			l.node("hv3", "ovs-ofctl", "--bundle", "replace-flows", br, "/run/dyetrace-lab/"+br+".flows")
		}
	}, func(*lab) {}},
	{"agent stopped", func(l *lab) { l.node("hv3", "pkill", "-STOP", "-f", "^dyetrace agent") },
		func(l *lab) { l.node("hv3", "pkill", "-CONT", "-f", "^dyetrace agent") }},
	{"dye port down", func(l *lab) { l.node("hv3", "ip", "link", "set", "dye-br-int", "down") },
		func(l *lab) { l.node("hv3", "ip", "link", "set", "dye-br-int", "up") }},
	{"dye port of the tunnels down", func(l *lab) { l.node("hv3", "ip", "link", "set", "dye-br-tun", "down") },
		func(l *lab) { l.node("hv3", "ip", "link", "set", "dye-br-tun", "up") }},
}

// score is what became of the cases of one sort.
type score struct {
	cases, pairs, detected, segment, cause int // pairs that the truth has failing
	healthy, alarms, unsure                int // the others: faulty though they are not; unknown
	took                                   []time.Duration
	missed                                 []string
}

func (s *score) add(o *score) {
	s.cases, s.pairs, s.detected = s.cases+o.cases, s.pairs+o.pairs, s.detected+o.detected
	s.segment, s.cause = s.segment+o.segment, s.cause+o.cause
	s.healthy, s.alarms, s.unsure = s.healthy+o.healthy, s.alarms+o.alarms, s.unsure+o.unsure
	s.took, s.missed = append(s.took, o.took...), append(s.missed, o.missed...)
}

func (s *score) String() string {
	share := func(n, of int) string {
		if of == 0 {
			return "      -"
		}
		return fmt.Sprintf("%6.2f%%", 100*float64(n)/float64(of))
	}
	slices.Sort(s.took)
	at := func(q float64) time.Duration { return s.took[int(q*float64(len(s.took)-1))].Round(time.Millisecond) }
	return fmt.Sprintf("%5d %6d  %s %s %s  %7d %6d %6d  %8v %8v", s.cases, s.pairs, share(s.detected, s.pairs), share(s.segment, s.pairs),
		share(s.cause, s.pairs), s.healthy, s.alarms, s.unsure, at(.5), at(.99))
}

const scoreHead = "cases failing detected segment   cause  healthy alarms unsure    median      p99"

// TestFaultBench breaks a lab, one, two and three ways at once and at random, and holds every verdict
// against what the breaks declare of themselves. It fails for wrong verdicts under faults of ours only:
// the rest it counts and names. `make faultbench`.
func TestFaultBench(t *testing.T) {
	t.Parallel()
	seed := *benchSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	l := up(t)
	var kinds []breakKind
	if err := json.Unmarshal([]byte(l.must("lab", "break", "-o", "json")), &kinds); err != nil {
		t.Fatal(err)
	}
	kinds = slices.DeleteFunc(kinds, func(k breakKind) bool { return k.Topology != "racks" })
	cases := benchCases(rand.New(rand.NewPCG(seed, 0)), kinds)
	if *benchFor == 0 {
		cases = []benchCase{{own: &ownFaults[0]}, cases[len(cases)-1]}
	}
	byKind, bySize := map[string]*score{}, map[string]*score{}
	begun := time.Now()
	for _, c := range cases {
		if *benchFor > 0 && time.Since(begun) > *benchFor {
			break
		}
		s := c.run(l)
		size := fmt.Sprintf("%d at once", len(c.breaks))
		if c.own != nil {
			size = "faults of ours"
			if s.alarms > 0 {
				t.Errorf("%s: %d pairs are called faulty that are not", c, s.alarms)
			}
		}
		if len(c.breaks) < 2 {
			tally(byKind, c.String(), s)
		}
		tally(bySize, size, s)
	}
	t.Logf("seed %d\n%s", seed, report(byKind, bySize))
}

func tally(all map[string]*score, name string, s *score) {
	if all[name] == nil {
		all[name] = &score{}
	}
	all[name].add(s)
}

func report(byKind, bySize map[string]*score) string {
	var b strings.Builder
	var missed []string
	for _, table := range []map[string]*score{byKind, bySize} {
		fmt.Fprintf(&b, "%-40s %s\n", "", scoreHead)
		for _, name := range slices.Sorted(maps.Keys(table)) {
			fmt.Fprintf(&b, "%-40s %s\n", name, table[name])
		}
	}
	for _, s := range bySize {
		missed = append(missed, s.missed...)
	}
	slices.Sort(missed)
	fmt.Fprintf(&b, "targets: segment 99.5 %% alone, 98 %% of three; cause 97 %%; no alarms\nmissed (%d):\n%s\n", len(missed), strings.Join(missed, "\n"))
	return b.String()
}

// benchCases are all kinds alone and all faults of ours, then two and three kinds at once, drawn until
// time is up. Kinds that lose some only are for a measurement of loss, and not among them.
func benchCases(r *rand.Rand, kinds []breakKind) []benchCase {
	kinds = slices.DeleteFunc(slices.Clone(kinds), func(k breakKind) bool {
		// Whom a dead way of several takes, no truth tells.
		return slices.Contains(bySome, k.Cause) || k.Cause == "underlay-member"
	})
	var cases []benchCase
	for _, k := range kinds {
		cases = append(cases, benchCase{breaks: []breakKind{k}})
	}
	for i := range ownFaults {
		cases = append(cases, benchCase{own: &ownFaults[i]})
	}
	for n := range 400 {
		c := benchCase{}
		for _, i := range r.Perm(len(kinds))[:2+n%2] {
			c.breaks = append(c.breaks, kinds[i])
		}
		cases = append(cases, c)
	}
	return cases
}

// run breaks the lab, checks all pairs, and heals it.
func (c benchCase) run(l *lab) *score {
	defer func() {
		if c.own != nil {
			c.own.undo(l)
		}
		l.must("lab", "heal", "all")
		l.must("status", "--wait", "30s")
	}()
	causes := map[string][]string{} // by pair: what the breaks that fail it, each alone, call the cause
	for _, k := range c.breaks {
		l.must("lab", "break", k.Name)
		for _, p := range declared(l, k.Name) {
			causes[p] = append(causes[p], kindsOf[k.Cause]...)
		}
	}
	if c.own != nil {
		c.own.do(l)
	}
	var tr truth
	args := []string{"--scheme", "tcp", "--ip", "4"}
	if err := json.Unmarshal([]byte(l.must(append([]string{"lab", "truth", "-o", "json"}, args...)...)), &tr); err != nil {
		l.t.Fatal(err)
	}
	began := time.Now()
	var got check
	r := l.dyetrace(append([]string{"check", "--all", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		l.t.Fatalf("check: %v\n%s", err, r.stderr)
	}
	s := &score{cases: 1, took: []time.Duration{time.Since(began)}}
	for _, p := range got.Pairs {
		s.judge(c, p, tr, causes[p.Src+" "+p.Dst])
	}
	return s
}

// declared are the pairs that a break alone fails.
func declared(l *lab, kind string) (pairs []string) {
	var tr truth
	if err := json.Unmarshal([]byte(l.must("lab", "truth", kind, "-o", "json")), &tr); err != nil {
		l.t.Fatal(err)
	}
	for _, f := range tr.Fates {
		for _, src := range f.Src {
			for _, dst := range f.Dst {
				pairs = append(pairs, src+" "+dst)
			}
		}
	}
	return pairs
}

// judge holds one verdict against the truth.
func (s *score) judge(c benchCase, p pair, tr truth, causes []string) {
	i := slices.IndexFunc(tr.Fates, func(f fate) bool { return slices.Contains(f.Src, p.Src) && slices.Contains(f.Dst, p.Dst) })
	miss := func(format string, args ...any) {
		s.missed = append(s.missed, fmt.Sprintf("%s: %s: %v", c, fmt.Sprintf(format, args...), p))
	}
	switch {
	case i < 0 && tr.unseen(p): // nobody sees it, but for a link that is down
		return
	case i < 0:
		s.healthy++
		switch p.Verdict {
		case "healthy":
		case "unknown":
			s.unsure++
		default:
			s.alarms++
			miss("false alarm")
		}
		return
	}
	f := tr.Fates[i]
	s.pairs++
	if p.Verdict == "healthy" || p.Verdict == "unknown" {
		miss("not detected")
		return
	}
	s.detected++
	if f = f.atTap(f.Outcome == "silent"); p.Segment != nil && strings.HasSuffix(*p.Segment, "→ "+f.FirstMissing.String()) &&
		(f.LastSeen == nil || strings.HasPrefix(*p.Segment, f.LastSeen.String())) && p.Verdict == f.Outcome {
		s.segment++
	} else {
		miss("not %s, or not at %s", f.Outcome, f.FirstMissing)
	}
	if slices.Contains(causes, p.CauseKind) {
		s.cause++
	} else {
		miss("cause is not one of %v", causes)
	}
}
