package report

import (
	"bufio"
	"fmt"
	"io"
	"time"
)

// Change writes one change of a continuous run for people, in one line; one more for the cause, and
// the command that shows it.
func (p Pair) Change(w io.Writer, color bool) error {
	t := &text{w: bufio.NewWriter(w), o: TextOptions{Color: color}}
	t.change(p, "15:04:05.000")
	if p.Verdict != "healthy" {
		t.fact("cause", p.Cause)
		t.fact("show it", p.show(p.Command, p.CommandHost))
	}
	return t.w.Flush()
}

// shownChanges is how many of the last changes of a continuous run are listed, unless all are asked
// for: a screen.
const shownChanges = 20

// changes lists what changed in a continuous run, the oldest first. The first verdict on a pair is
// none, unless it was not healthy.
func (t *text) changes(all []Pair) {
	var told []Pair
	for _, p := range all {
		if p.Before != "" || p.Verdict != "healthy" {
			told = append(told, p)
		}
	}
	if len(told) == 0 {
		return
	}
	if n := len(told) - shownChanges; n > 0 && !t.o.Verbose {
		told = told[n:]
		t.printf("\nthe last %d changes (-v lists %d more):\n", len(told), n)
	} else {
		t.printf("\nwhat changed:\n")
	}
	for _, p := range told {
		t.change(p, "2006-01-02 15:04:05.000")
		if p.Verdict != "healthy" {
			t.fact("cause", p.Cause)
		}
	}
}

// change writes a verdict and what it was before, in one line.
func (t *text) change(p Pair, layout string) {
	mark := "✗"
	switch p.Verdict {
	case "healthy":
		mark = "✓"
	case "unknown":
		mark = "?"
	}
	at := ""
	if p.Since != nil {
		at = p.Since.Local().Format(layout) + "  "
	}
	c := verdictColor(p.Verdict)
	t.printf("%s%s %s → %s  %s", t.paint(dim, at), t.paint(c, mark), t.paint(bold, p.SrcNetwork+"/"+p.Src), t.paint(bold, p.DstNetwork+"/"+p.Dst), t.paint(c, p.Verdict))
	if p.Before != "" {
		t.printf("  %s", t.paint(dim, "was "+p.Before))
	}
	t.printf("\n")
}

// Standing writes how the pairs of a continuous run stand, in one line.
func (r Run) Standing(begun time.Time, now time.Time) string {
	s := fmt.Sprintf("%d pairs", r.Total)
	for _, x := range []struct {
		n       uint32
		verdict string
	}{
		{r.Counts.Healthy, "healthy"}, {r.Counts.Faulty, "faulty"}, {r.Counts.Silent, "silent"},
		{r.Counts.Policy, "policy"}, {r.Counts.Unknown, "unknown"},
	} {
		if x.n > 0 {
			s += fmt.Sprintf(", %d %s", x.n, x.verdict)
		}
	}
	return s + fmt.Sprintf(", for %s", now.Sub(begun).Round(time.Second))
}
