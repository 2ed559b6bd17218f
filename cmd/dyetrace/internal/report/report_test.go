package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

var update = flag.Bool("update", false, "rewrite the expected parts of testdata")

// TestCheck has one file a case: a GetRunResponse as the controller sends it, and what people
// and scripts get of it.
func TestCheck(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			testCheck(t, file)
		})
	}
}

func testCheck(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var res dyetracev1.GetRunResponse
	if err := protojson.Unmarshal(archive.Files[0].Data, &res); err != nil {
		t.Fatalf("%s: %s: %v", file, archive.Files[0].Name, err)
	}
	check := NewCheck(res.Run, res.Pairs)
	rewrite := txtar.Archive{Comment: archive.Comment, Files: archive.Files[:1]}
	for _, f := range archive.Files[1:] {
		got := render(t, check, f.Name)
		rewrite.Files = append(rewrite.Files, txtar.File{Name: f.Name, Data: got})
		if diff := cmp.Diff(string(f.Data), string(got)); diff != "" && !*update {
			t.Errorf("%s (-want +got):\n%s", f.Name, diff)
		}
	}
	if len(rewrite.Files) < 2 {
		t.Fatalf("%s: nothing expected", file)
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(&rewrite), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func render(t *testing.T, check Check, name string) []byte {
	var buf bytes.Buffer
	var err error
	switch name {
	case "text":
		err = check.Text(&buf, TextOptions{Paths: DefaultPaths})
	case "text --paths 0":
		err = check.Text(&buf, TextOptions{})
	case "text -v":
		err = check.Text(&buf, TextOptions{Verbose: true})
	case "text, colours":
		err = check.Text(&buf, TextOptions{Paths: DefaultPaths, Color: true})
	case "json":
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		err = enc.Encode(check)
	default:
		t.Fatalf("part %q is unknown", name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Every value of the contract's enums has a word of its own: a new one that was forgotten would
// print as a number.
func TestWords(t *testing.T) {
	t.Parallel()
	check := func(kind string, names map[int32]string, word func(int32) string) {
		seen := make(map[string]bool)
		for v := range names {
			w := word(v)
			if w == "" && v != 0 || seen[w] {
				t.Errorf("%s %d: word %q", kind, v, w)
			}
			seen[w] = true
		}
	}
	check("verdict", dyetracev1.Verdict_name, func(v int32) string { return Verdict(dyetracev1.Verdict(v)) })
	check("state", dyetracev1.RunState_name, func(v int32) string { return State(dyetracev1.RunState(v)) })
	check("kind", dyetracev1.PointKind_name, func(v int32) string { return Kind(dyetracev1.PointKind(v)) })
	check("cause", dyetracev1.CauseKind_name, func(v int32) string { return CauseKind(dyetracev1.CauseKind(v)) })
	check("finding", dyetracev1.FindingKind_name, func(v int32) string { return FindingKind(dyetracev1.FindingKind(v)) })
	check("hook", dyetracev1.HookState_name, func(v int32) string { return Hook(dyetracev1.HookState(v)) })
	check("scheme", dyetracev1.Scheme_name, func(v int32) string { return Scheme(dyetracev1.Scheme(v), "") })
	check("IP version", dyetracev1.IPVersion_name, func(v int32) string { return IPVersion(dyetracev1.IPVersion(v)) })
	check("decision", dyetracev1.LossDecision_name, func(v int32) string { return LossDecision(dyetracev1.LossDecision(v)) })
	check("latency", dyetracev1.LatencyKind_name, func(v int32) string { return LatencyKind(dyetracev1.LatencyKind(v)) })
	check("direction", dyetracev1.Direction_name, func(v int32) string { return Direction(dyetracev1.Direction(v)) })
	if w := Verdict(dyetracev1.Verdict_VERDICT_HEALTHY); w != "healthy" {
		t.Errorf("healthy is %q", w)
	}
	if w := Kind(dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE); w != "from-instance" {
		t.Errorf("from-instance is %q", w)
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for ns, want := range map[int64]string{
		0: "0", 999: "999 ns", 1500: "2 µs", 87_000: "87 µs", 1_234_567: "1.23 ms",
		250_000_000: "250 ms", 1_500_000_000: "1.5 s", -3000: "-3 µs",
	} {
		if got := duration(ns); got != want {
			t.Errorf("%d ns: %q; want %q", ns, got, want)
		}
	}
}

// TestChanges lists what changed in a continuous run below how it stands; of many, the last.
func TestChanges(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.Local)
	pair := func(n int, verdict, before, cause string) Pair {
		since := at.Add(time.Duration(n) * time.Second)
		return Pair{PairRef: PairRef{"blue-1", "blue", "blue-3", "blue"}, Verdict: verdict, Before: before, Cause: cause, Since: &since}
	}
	c := Check{Transitions: []Pair{pair(0, "healthy", "", ""), pair(1, "faulty", "healthy", "dropped"), pair(2, "healthy", "faulty", "")}}
	var buf bytes.Buffer
	if err := c.Text(&buf, TextOptions{}); err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(buf.String(), "\n")
	want := `
what changed:
2026-03-01 12:00:01.000  ✗ blue/blue-1 → blue/blue-3  faulty  was healthy
    cause:   dropped
2026-03-01 12:00:02.000  ✓ blue/blue-1 → blue/blue-3  healthy  was faulty
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for n := range 30 {
		c.Transitions = append(c.Transitions, pair(3+n, "healthy", "unknown", ""))
	}
	for _, tt := range []struct {
		options TextOptions
		lines   int
		word    string
	}{{TextOptions{}, shownChanges, "the last 20 changes (-v lists 12 more):"}, {TextOptions{Verbose: true}, 32, "what changed:"}} {
		buf.Reset()
		if err := c.Text(&buf, tt.options); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(buf.String(), " was "); n != tt.lines || !strings.Contains(buf.String(), tt.word) {
			t.Errorf("%+v: %d changes listed (want %d, and %q):\n%s", tt.options, n, tt.lines, tt.word, &buf)
		}
	}
}

// TestShow says where a command is to be typed, if that is not the host to look at.
func TestShow(t *testing.T) {
	t.Parallel()
	p := Pair{Host: "hv3"}
	for _, tt := range []struct{ command, host, want string }{
		{"", "", ""},
		{"dyetrace underlay hv1 hv3", "", "dyetrace underlay hv1 hv3"},
		{"ovs-appctl version", "hv3", "ovs-appctl version"},
		{"ovs-appctl version", "hv1", "ovs-appctl version  # on hv1"},
	} {
		if got := p.show(tt.command, tt.host); got != tt.want {
			t.Errorf("%q on %q: %q, want %q", tt.command, tt.host, got, tt.want)
		}
	}
}
