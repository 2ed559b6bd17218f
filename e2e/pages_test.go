package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what commands print into the pages of docs/labs")

// prompt begins a command of a page; what it prints follows it, or, where nothing follows, is of no
// matter.
const prompt = "# bin/dyetrace "

// TestPages types what the pages of docs/labs say, on a lab of their topology, and compares what is
// printed with what they show; times and numbers of runs may differ.
func TestPages(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../docs/labs/*.md")
	if err != nil || len(pages) < 5 {
		t.Fatalf("%d pages in docs/labs: %v", len(pages), err)
	}
	for _, page := range pages {
		t.Run(strings.TrimSuffix(filepath.Base(page), ".md"), func(t *testing.T) { testPage(t, page) })
	}
}

func testPage(t *testing.T, page string) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var l *lab
	var made bytes.Buffer // the page, with what was printed
	fenced, skip := false, false
	typed := 0
	all := strings.SplitAfter(string(text), "\n")
	for i, line := range all {
		command, isCommand := strings.CutPrefix(strings.TrimSuffix(line, "\n"), prompt)
		switch {
		case strings.HasPrefix(line, "```"):
			fenced, skip = !fenced && strings.HasPrefix(line, "```console"), false
		case fenced && strings.HasPrefix(line, "# "):
			skip = false
		}
		if !skip {
			made.WriteString(line)
		}
		if !fenced || !isCommand {
			continue
		}
		typed++
		args := strings.Fields(command)
		switch {
		case strings.HasPrefix(command, "lab up"):
			l = up(t, topologyOf(args)...)
			continue
		case strings.HasPrefix(command, "lab down"):
			continue // the test does
		case l == nil:
			t.Fatalf("%s: %q comes before lab up", page, line)
		}
		r := l.dyetrace(args...)
		if !slices.Contains([]int{0, 1, 4}, r.code) { // a verdict, whatever it is
			t.Fatalf("%s: %s: exit %d\n%s%s", page, command, r.code, r.stdout, r.stderr)
		}
		if next := all[i+1]; !strings.HasPrefix(next, "# ") && !strings.HasPrefix(next, "```") {
			made.WriteString(trailing.ReplaceAllString(strings.TrimRight(r.stdout, "\n")+"\n", "\n"))
			skip = true
		}
	}
	if typed < 2 && filepath.Base(page) != "README.md" {
		t.Errorf("%s: %d commands", page, typed)
	}
	if *update {
		if err := os.WriteFile(page, made.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, got := strings.Split(timeless(string(text)), "\n"), strings.Split(timeless(made.String()), "\n")
	for i := range max(len(want), len(got)) {
		w, g := fmt.Sprint(append(want, make([]string, len(got))...)[i]), fmt.Sprint(append(got, make([]string, len(want))...)[i])
		if w != g {
			t.Errorf("%s:%d: says %q; was printed: %q (-update writes it)", page, i+1, w, g)
		}
	}
}

// topologyOf leaves of the arguments of lab up what this test does not say by itself.
func topologyOf(args []string) []string {
	if i := slices.Index(args, "--topology"); i >= 0 {
		return args[i : i+2]
	}
	return nil
}

var (
	durations = regexp.MustCompile(`\b[0-9.]+ ?(ns|µs|ms|s|m[0-9]+s)\b`)
	clocks    = regexp.MustCompile(`\b\d\d:\d\d:\d\d\b`)
	runs      = regexp.MustCompile(`\(run [0-9a-z]+, `)
	zeros     = regexp.MustCompile(`(?m)^( +✓ .*) 0\b`)
	spaces    = regexp.MustCompile(` +`)
	rules     = regexp.MustCompile(`─+`)
	trailing  = regexp.MustCompile(` +\n`)
	// Labs of containers get what subnet is free.
	management = regexp.MustCompile(`\b172\.20\.\d+\.`)
	// Open vSwitch numbers the ports of one transaction as it comes.
	ports = regexp.MustCompile(`\bin_port=\d+`)
	// OVN's rows get a UUID when they are made; flows' cookies are made from them.
	rows = regexp.MustCompile(`\b(cookie[ =]0x|ACL "[^"]*" )[0-9a-f]+`)
)

// timeless returns a text without what differs from run to run.
func timeless(text string) string {
	text = zeros.ReplaceAllString(text, "$1 TIME")
	text = durations.ReplaceAllString(text, "TIME")
	text = clocks.ReplaceAllString(text, "TIME")
	text = management.ReplaceAllString(text, "172.20.20.")
	text = ports.ReplaceAllString(text, "in_port=PORT")
	text = rows.ReplaceAllString(text, "${1}ROW")
	text = runs.ReplaceAllString(text, "(run ID, ")
	return spaces.ReplaceAllString(rules.ReplaceAllString(text, "─"), " ")
}
