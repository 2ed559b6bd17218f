package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/report"
)

// progressEvery keeps a run of thousands of pairs from spending its time on writing to a
// terminal; 20 a second look smooth.
const progressEvery = 50 * time.Millisecond

// progress is one line on a terminal that is overwritten in place. It changes no terminal mode,
// so that there is nothing to restore whichever way the program ends.
type progress struct {
	w      io.Writer // nil: not a terminal
	begun  time.Time
	last   time.Time
	counts map[string]int
	judged int
}

// newProgress shows progress only where both answers and errors go to a terminal.
func newProgress(cmd *cobra.Command) *progress {
	p := &progress{begun: time.Now(), counts: make(map[string]int)}
	if isTerminal(cmd.OutOrStdout()) && isTerminal(cmd.ErrOrStderr()) {
		p.w = cmd.ErrOrStderr()
	}
	return p
}

func (p *progress) add(v dyetracev1.Verdict) {
	p.counts[report.Verdict(v)]++
	p.judged++
}

// remove takes back a verdict that another takes the place of.
func (p *progress) remove(v dyetracev1.Verdict) {
	p.counts[report.Verdict(v)]--
	p.judged--
}

func (p *progress) show(total uint32) {
	now := time.Now()
	if p.w == nil || now.Sub(p.last) < progressEvery {
		return
	}
	p.last = now
	var b strings.Builder
	fmt.Fprintf(&b, "%d/%d pairs, %.1f s", p.judged, total, now.Sub(p.begun).Seconds())
	for _, verdict := range []string{"healthy", "faulty", "silent", "policy", "unknown"} {
		if n := p.counts[verdict]; n > 0 {
			fmt.Fprintf(&b, ", %d %s", n, verdict)
		}
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", &b)
}

// line shows a line of the caller's own.
func (p *progress) line(s string) {
	if now := time.Now(); p.w != nil && now.Sub(p.last) >= progressEvery {
		p.last = now
		fmt.Fprintf(p.w, "\r\x1b[K%s", s)
	}
}

// end clears the line.
func (p *progress) end() {
	if p.w != nil && !p.last.IsZero() {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
