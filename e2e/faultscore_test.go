package e2e

import (
	"cmp"
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

	Fleeting int `json:"told_meanwhile"` // in continuous runs: verdicts that were not so, of pairs that fail, for a while

	// Median and P99 are of checks: how long all of it took; in continuous runs how long after a break each pair was named: -1 is never.
	Median  float64 `json:"median_ms"`
	P99     float64 `json:"p99_ms"`
	First   float64 `json:"first_median_ms,omitempty"` // in continuous runs: until one pair was named
	FirstP9 float64 `json:"first_p99_ms,omitempty"`

	took, first []time.Duration
	never       int // pairs that were not named in time
}

func (s *score) add(o *score) {
	s.Cases, s.Failing, s.Detected = s.Cases+o.Cases, s.Failing+o.Failing, s.Detected+o.Detected
	s.Segment, s.Cause = s.Segment+o.Segment, s.Cause+o.Cause
	s.Healthy, s.Alarms, s.Unsure, s.Wrong = s.Healthy+o.Healthy, s.Alarms+o.Alarms, s.Unsure+o.Unsure, s.Wrong+o.Wrong
	s.Fleeting, s.never = s.Fleeting+o.Fleeting, s.never+o.never
	s.took, s.first = append(s.took, o.took...), append(s.first, o.first...)
}

// quantile is in milliseconds, by the nearest rank, with so many that never were; 0 of nothing, -1 of those.
func quantile(of []time.Duration, never int, q float64) float64 {
	if len(of)+never == 0 {
		return 0
	}
	slices.Sort(of)
	rank := max(1, int(math.Ceil(q*float64(len(of)+never))))
	if rank > len(of) {
		return -1
	}
	return float64(of[rank-1].Microseconds()) / 1e3
}

func (s *score) sum() {
	s.Median, s.P99 = quantile(s.took, s.never, .5), quantile(s.took, s.never, .99)
	s.First, s.FirstP9 = quantile(s.first, 0, .5), quantile(s.first, 0, .99)
}

// scoreHead ends in what times are of: checks, or until pairs were named.
const scoreHead = "cases failing detected segment   cause  healthy alarms unknown wrong  %s median ms, p99 ms"

func (s *score) String() string {
	share := func(n int) string {
		if s.Failing == 0 {
			return "      -"
		}
		return fmt.Sprintf("%6.2f%%", 100*float64(n)/float64(s.Failing))
	}
	text := fmt.Sprintf("%5d %7d  %s %s %s  %7d %6d %7d %5d %10.0f %9.0f", s.Cases, s.Failing, share(s.Detected), share(s.Segment),
		share(s.Cause), s.Healthy, s.Alarms, s.Unsure, s.Wrong, s.Median, s.P99)
	if s.never > 0 {
		text += fmt.Sprintf("   %d never named", s.never)
	}
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
	Lossy      []hardFault       `json:"losses"`         // of 1 %, in a continuous run
	Fleeting   []missed          `json:"told_meanwhile"` // verdicts of pairs that fail which were not so, and did not last
	Missed     []missed          `json:"missed"`
	Wrong      []missed          `json:"wrong"` // of these, under faults of ours
	// Lab are pairs that fared otherwise than the lab declared; they were not judged.
	Lab  []string `json:"truth_refuted"`
	Left []string `json:"left_out"` // for want of time
	// Early are cases whose check was over before the fault of ours had come; they were not counted.
	Early   []string `json:"over_before"`
	Seconds float64  `json:"seconds"`
}

// hardFault is one that kills all packets of some pairs, in a continuous run.
type hardFault struct {
	Case string `json:"case"`
	// After is what was done before, and was over.
	After string `json:"after"`
	// Told is the kind of cause that the first of its pairs was named with; empty where none was in time.
	Told string `json:"told"`
	// First is how long after the break that was.
	First time.Duration `json:"first_ns"`
	// At is when it was broken.
	At time.Time `json:"at"`
}

// bySilence are the kinds of cause of which nothing tells but that packets are not seen: they are waited for.
var bySilence = []string{"switch", "between-hosts", "underlay", "underlay-member", "entrypoint", "guest-silent"}

// quantileOf is how soon that share of faults was named, in milliseconds: by the nearest rank, of all, and what was not
// named counts as the longest, -1.
func quantileOf(all []hardFault, q float64) float64 {
	var took []time.Duration
	for _, h := range all {
		if h.Told != "" {
			took = append(took, h.First)
		}
	}
	return quantile(took, len(all)-len(took), q)
}

// soon is how soon some faults were named.
func soon(all []hardFault, of func(hardFault) bool) string {
	all = slices.DeleteFunc(slices.Clone(all), func(h hardFault) bool { return !of(h) })
	if len(all) == 0 {
		return "none"
	}
	at := func(q float64) string {
		if ms := quantileOf(all, q); ms >= 0 {
			return fmt.Sprintf("%.0f", ms)
		}
		return "not named"
	}
	return fmt.Sprintf("median %s, p99 %s, max %s ms of %d", at(.5), at(.99), at(1), len(all))
}

// named is how soon hard faults were named, in lines.
func named(hard, lossy []hardFault) string {
	ovn := func(h hardFault) bool { return strings.HasPrefix(h.Case, "ovn: ") }
	racks := func(h hardFault) bool { return !ovn(h) }
	silent := func(h hardFault) bool { return racks(h) && slices.Contains(bySilence, h.Told) }
	var b strings.Builder
	for _, l := range []struct {
		what string
		all  []hardFault
		of   func(hardFault) bool
	}{
		{"hard faults, first pair", hard, racks},
		{"- told by flows, ports and tunnels", hard, func(h hardFault) bool { return racks(h) && h.Told != "" && !silent(h) }},
		{"- by silence", hard, silent},
		{"- right after a fault of ours", hard, func(h hardFault) bool { return racks(h) && strings.HasPrefix(h.After, "own: ") }},
		{"with OVN", hard, ovn},
		{"losses of 1 %", lossy, racks},
	} {
		fmt.Fprintf(&b, "%s: %s\n", l.what, soon(l.all, l.of))
	}
	for _, h := range slices.Concat(hard, lossy) {
		if h.Told == "" || h.First > hardTarget && !slices.Contains(lossy, h) || h.First > lossTarget {
			fmt.Fprintf(&b, "  later: %s, %s, %v after the break at %s; before it %s\n", h.Case, cmp.Or(h.Told, "not named"), h.First.Round(time.Millisecond),
				h.At.Format("15:04:05.000"), cmp.Or(h.After, "nothing"))
		}
	}
	return b.String()
}

// TestNamed holds the lines against times whose ranks are known.
func TestNamed(t *testing.T) {
	t.Parallel()
	var all []hardFault
	for i := range 100 {
		all = append(all, hardFault{Case: "a", Told: "flow", First: time.Duration(100-i) * time.Millisecond})
	}
	all = append(all, hardFault{Case: "b", Told: "underlay", First: 2 * time.Second, After: "own: c"}, hardFault{Case: "ovn: a", Told: "flow", First: time.Millisecond})
	lossy := []hardFault{{Case: "loss", Told: "loss", First: 4 * time.Second}, {Case: "loss", Told: "loss", First: 6 * time.Second}}
	want := `hard faults, first pair: median 51, p99 100, max 2000 ms of 101
- told by flows, ports and tunnels: median 50, p99 99, max 100 ms of 100
- by silence: median 2000, p99 2000, max 2000 ms of 1
- right after a fault of ours: median 2000, p99 2000, max 2000 ms of 1
with OVN: median 1, p99 1, max 1 ms of 1
losses of 1 %: median 4000, p99 6000, max 6000 ms of 2
  later: b, underlay, 2s after the break at 00:00:00.000; before it own: c
  later: loss, loss, 6s after the break at 00:00:00.000; before it nothing
`
	if got := named(all, lossy); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	all = append(all, hardFault{Case: "c"}, hardFault{Case: "d"})
	if got := named(all, nil); !strings.HasPrefix(got, "hard faults, first pair: median 52, p99 not named, max not named ms of 103\n") || !strings.Contains(got, "later: c, not named, 0s") {
		t.Errorf("with two that were not named: %s", got)
	}
	if got := named(nil, nil); !strings.HasPrefix(got, "hard faults, first pair: none\n") {
		t.Error(got)
	}
}

func newBenchReport(seed uint64) *benchReport {
	return &benchReport{
		Seed: seed, Kinds: map[string]*score{}, Sums: map[string]*score{}, Own: map[string]*score{}, Continuous: map[string]*score{},
		Fleeting: []missed{}, Missed: []missed{}, Wrong: []missed{}, Lab: []string{}, Left: []string{}, Early: []string{},
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
		title, times string
		of           map[string]*score
	}{{"alone", "check", r.Kinds}, {"faults of ours", "check", r.Own}, {"in a continuous run", "named", r.Continuous}, {"in sum", "check", r.Sums}} {
		fmt.Fprintf(&b, "%-46s %s\n", table.title, fmt.Sprintf(scoreHead, table.times))
		for _, name := range slices.Sorted(maps.Keys(table.of)) {
			fmt.Fprintf(&b, "  %-44s %s\n", name, table.of[name])
		}
	}
	if len(r.Hard)+len(r.Lossy) > 0 {
		fmt.Fprint(&b, named(r.Hard, r.Lossy))
	}
	fmt.Fprintln(&b, "targets: segment 99.5 % alone, 98 % of three; cause 97 %; under faults of ours nothing wrong; no alarms;\n"+
		"         in a continuous run a p99 of 1000 ms until a hard fault is named, 5000 for a loss of 1 %")
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
	var fleeting []string
	for _, m := range r.Fleeting {
		fleeting = append(fleeting, m.String())
	}
	list("told for a while, in continuous runs, of pairs that fail, and not so", fleeting)
	list("pairs that fared otherwise than the lab declared", r.Lab)
	list("checks that were over before the fault of ours had come", r.Early)
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
