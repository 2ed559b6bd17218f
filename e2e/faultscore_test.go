package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// score is what became of cases of one sort.
type score struct {
	Cases    int `json:"cases"`
	Failing  int `json:"failing"` // pairs that the truth has failing; of them
	Detected int `json:"detected"`
	Segment  int `json:"segment_right"`
	Cause    int `json:"cause_right"`
	Healthy  int `json:"healthy"` // the other pairs; of them
	Alarms   int `json:"false_alarms"`
	Unsure   int `json:"unknown"`
	Wrong    int `json:"wrong"` // verdicts under a fault of ours that are neither right nor unknown

	Median  float64 `json:"median_ms"`
	P99     float64 `json:"p99_ms"`
	First   float64 `json:"first_median_ms,omitempty"` // in continuous runs: until one pair was named
	FirstP9 float64 `json:"first_p99_ms,omitempty"`

	took, first []time.Duration
}

func (s *score) add(o *score) {
	s.Cases, s.Failing, s.Detected = s.Cases+o.Cases, s.Failing+o.Failing, s.Detected+o.Detected
	s.Segment, s.Cause = s.Segment+o.Segment, s.Cause+o.Cause
	s.Healthy, s.Alarms, s.Unsure, s.Wrong = s.Healthy+o.Healthy, s.Alarms+o.Alarms, s.Unsure+o.Unsure, s.Wrong+o.Wrong
	s.took, s.first = append(s.took, o.took...), append(s.first, o.first...)
}

// quantile is in milliseconds; 0 of nothing.
func quantile(of []time.Duration, q float64) float64 {
	if len(of) == 0 {
		return 0
	}
	slices.Sort(of)
	return float64(of[int(q*float64(len(of)-1)+.5)].Microseconds()) / 1e3
}

func (s *score) sum() {
	s.Median, s.P99 = quantile(s.took, .5), quantile(s.took, .99)
	s.First, s.FirstP9 = quantile(s.first, .5), quantile(s.first, .99)
}

const scoreHead = "cases failing detected segment   cause  healthy alarms unknown wrong  median ms    p99 ms"

func (s *score) String() string {
	share := func(n int) string {
		if s.Failing == 0 {
			return "      -"
		}
		return fmt.Sprintf("%6.2f%%", 100*float64(n)/float64(s.Failing))
	}
	text := fmt.Sprintf("%5d %7d  %s %s %s  %7d %6d %7d %5d %10.0f %9.0f", s.Cases, s.Failing, share(s.Detected), share(s.Segment),
		share(s.Cause), s.Healthy, s.Alarms, s.Unsure, s.Wrong, s.Median, s.P99)
	if s.first != nil {
		text += fmt.Sprintf("   first %.0f, p99 %.0f", s.First, s.FirstP9)
	}
	return text
}

// missed is one verdict that is not what the truth says.
type missed struct {
	Case   string `json:"case"`
	Run    string `json:"run"`
	Probes string `json:"probes"`
	What   string `json:"what"`
	Want   string `json:"want"`
	Said   string `json:"said"`
	// Told is what a continuous run told of the pair since the break, and how long after.
	Told string `json:"told,omitempty"`
}

func (m missed) String() string {
	text := fmt.Sprintf("%s: %s, run %s, %s: want %s: %s", m.Case, m.What, m.Run, m.Probes, m.Want, m.Said)
	if m.Told != "" {
		text += "; told: " + m.Told
	}
	return text
}

// benchReport is what the bench found out, and the JSON that it writes.
type benchReport struct {
	Seed       uint64            `json:"seed"`
	Kinds      map[string]*score `json:"kinds"`      // alone, by a check of all pairs
	Sums       map[string]*score `json:"sums"`       // by how many at once, and under faults of ours
	Own        map[string]*score `json:"own"`        // by fault of ours
	Continuous map[string]*score `json:"continuous"` // by kind, in a continuous run
	Hard       []hardFault       `json:"hard_faults"`
	Missed     []missed          `json:"missed"`
	Wrong      []missed          `json:"wrong"` // of these, under faults of ours
	// Lab are pairs that fared otherwise than the lab declared; they were not judged.
	Lab     []string `json:"truth_refuted"`
	Left    []string `json:"left_out"` // for want of time
	Seconds float64  `json:"seconds"`
}

// hardFault is one that kills all packets of some pairs, in a continuous run.
type hardFault struct {
	Case string `json:"case"`
	// Told is the kind of cause that the first of its pairs was named with; empty where none was in time.
	Told string `json:"told"`
	// First is how long after the break that was.
	First time.Duration `json:"first_ns"`
}

// bySilence are the kinds of cause of which nothing tells but that packets are not seen: they are waited for.
var bySilence = []string{"switch", "between-hosts", "underlay", "underlay-member", "entrypoint", "guest-silent"}

// named is, in one line, how soon hard faults were named: a p99 is by the nearest rank, of all, and what was not
// named counts as the longest.
func named(all []hardFault) string {
	line := func(what string, of func(hardFault) bool) string {
		var took []time.Duration
		never := 0
		for _, h := range all {
			switch {
			case !of(h):
			case h.Told == "":
				never++
			default:
				took = append(took, h.First)
			}
		}
		n := len(took) + never
		if n == 0 {
			return what + " none"
		}
		slices.Sort(took)
		at := func(q float64) string {
			if rank := int(math.Ceil(q * float64(n))); rank <= len(took) {
				return fmt.Sprintf("%.0f", took[rank-1].Seconds()*1e3)
			}
			return "not named"
		}
		return fmt.Sprintf("%s median %s, p99 %s ms of %d", what, at(.5), at(.99), n)
	}
	silent := func(h hardFault) bool { return slices.Contains(bySilence, h.Told) }
	return line("hard faults, first pair:", func(hardFault) bool { return true }) + "; " +
		line("told by flows, ports and tunnels:", func(h hardFault) bool { return h.Told != "" && !silent(h) }) + "; " + line("by silence:", silent)
}

// TestNamedLine holds the line against times whose ranks are known.
func TestNamedLine(t *testing.T) {
	t.Parallel()
	var all []hardFault
	for i := range 100 {
		all = append(all, hardFault{Case: "a", Told: "flow", First: time.Duration(100-i) * time.Millisecond})
	}
	all = append(all, hardFault{Case: "b", Told: "underlay", First: 2 * time.Second})
	want := "hard faults, first pair: median 51, p99 100 ms of 101; told by flows, ports and tunnels: median 50, p99 99 ms of 100; by silence: median 2000, p99 2000 ms of 1"
	if got := named(all); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	all = append(all, hardFault{Case: "c"}, hardFault{Case: "d"})
	if got := named(all); !strings.HasPrefix(got, "hard faults, first pair: median 52, p99 not named ms of 103;") {
		t.Errorf("with two that were not named: %s", got)
	}
	if got := named(nil); got != "hard faults, first pair: none; told by flows, ports and tunnels: none; by silence: none" {
		t.Error(got)
	}
}

func newBenchReport(seed uint64) *benchReport {
	return &benchReport{
		Seed: seed, Kinds: map[string]*score{}, Sums: map[string]*score{}, Own: map[string]*score{}, Continuous: map[string]*score{},
		Missed: []missed{}, Wrong: []missed{}, Lab: []string{}, Left: []string{},
	}
}

func tally(all map[string]*score, name string, s *score) {
	if all[name] == nil {
		all[name] = &score{}
	}
	all[name].add(s)
}

// String draws tables, and names all that was missed.
func (r *benchReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, %.0f s\n", r.Seed, r.Seconds)
	for _, table := range []struct {
		title string
		of    map[string]*score
	}{{"alone", r.Kinds}, {"faults of ours", r.Own}, {"in a continuous run", r.Continuous}, {"in sum", r.Sums}} {
		fmt.Fprintf(&b, "%-46s %s\n", table.title, scoreHead)
		for _, name := range slices.Sorted(maps.Keys(table.of)) {
			fmt.Fprintf(&b, "  %-44s %s\n", name, table.of[name])
		}
	}
	if len(r.Hard) > 0 {
		fmt.Fprintln(&b, named(r.Hard))
	}
	fmt.Fprintln(&b, "targets: segment 99.5 % alone, 98 % of three; cause 97 %; under faults of ours nothing wrong; no alarms;\n"+
		"         in a continuous run 1000 ms until a hard fault is named, 5000 for a loss of 1 %")
	list := func(title string, what []string) {
		fmt.Fprintf(&b, "%s (%d)\n", title, len(what))
		for _, w := range what {
			fmt.Fprintf(&b, "  %s\n", w)
		}
	}
	var misses []string
	for _, m := range r.Missed {
		misses = append(misses, m.String())
	}
	list("missed", misses)
	list("pairs that fared otherwise than the lab declared", r.Lab)
	list("left out for want of time", r.Left)
	return b.String()
}

// write sums up, and writes the JSON if there is a file to write to.
func (r *benchReport) write(file string) error {
	for _, table := range []map[string]*score{r.Kinds, r.Sums, r.Own, r.Continuous} {
		for _, s := range table {
			s.sum()
		}
	}
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
