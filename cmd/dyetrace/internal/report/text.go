package report

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// DefaultPaths is how many failed pairs are drawn as paths unless something else is asked for:
// some two screens. A broken host fails dozens of pairs in the same way.
const DefaultPaths = 12

// TextOptions say how to write for a terminal.
type TextOptions struct {
	// Color allows colours.
	Color bool
	// Verbose lists healthy pairs too, and draws every path.
	Verbose bool
	// Paths is how many failed pairs are drawn as paths; the others are counted by segment.
	Paths int
}

// Text writes a check for people: a summary, then each pair that is not healthy as its path.
func (c Check) Text(w io.Writer, o TextOptions) error {
	t := &text{w: bufio.NewWriter(w), o: o, ambiguous: c.ambiguous(), mixed: len(c.schemes()) > 1}
	t.summary(c)
	t.findings(c)
	t.losing(c.Run)
	healthy, failed := c.split()
	switch {
	case len(c.Pairs) == 1 && len(healthy) == 1:
		// Who asks for one pair wants to see its way.
		t.headline(healthy[0], "")
		t.path(healthy[0])
		t.measured(healthy[0])
	case o.Verbose || c.Options.Loss: // who asks for figures wants to see them
		for _, p := range healthy {
			t.headline(p, strings.TrimSpace(t.scheme(p)+spaced(p.line())))
		}
	}
	drawn := len(failed)
	if !o.Verbose {
		drawn = min(drawn, o.Paths)
	}
	for _, p := range failed[:drawn] {
		t.printf("\n")
		t.headline(p, "")
		t.path(p)
		t.facts(p)
		t.measured(p)
	}
	t.folded(failed[drawn:])
	t.changes(c.Transitions)
	return t.w.Flush()
}

// folded counts pairs that have no room of their own, by verdict and segment.
func (t *text) folded(rest []Pair) {
	if len(rest) == 0 {
		return
	}
	t.printf("\n%d not drawn (-v draws all paths):\n", len(rest))
	type key struct{ verdict, scheme, segment string }
	pairs := make(map[key][]string)
	var keys []key
	for _, p := range rest {
		k := key{verdict: p.Verdict}
		if t.mixed {
			k.scheme = p.by()
		}
		if p.Segment != nil {
			k.segment = *p.Segment
		}
		if pairs[k] == nil {
			keys = append(keys, k)
		}
		pairs[k] = append(pairs[k], t.name(p.Src, p.SrcNetwork)+" → "+t.name(p.Dst, p.DstNetwork))
	}
	for _, k := range keys {
		t.printf("  %s%s  %s\n", t.paint(verdictColor(k.verdict), fmt.Sprintf("%d %s", len(pairs[k]), k.verdict)),
			spaced(k.scheme), k.segment)
		// Names of three tell what kind of pairs they are.
		names := pairs[k]
		if len(names) > 3 {
			names = append(names[:3:3], "…")
		}
		t.printf("    %s\n", strings.Join(names, ", "))
	}
}

// split separates healthy pairs from the others, worst first.
func (c Check) split() (healthy, failed []Pair) {
	for _, p := range c.Pairs {
		if p.Verdict == "healthy" {
			healthy = append(healthy, p)
		} else {
			failed = append(failed, p)
		}
	}
	severity := []string{"faulty", "silent", "policy", "unknown"}
	slices.SortStableFunc(failed, func(a, b Pair) int {
		return slices.Index(severity, a.Verdict) - slices.Index(severity, b.Verdict)
	})
	return healthy, failed
}

// ambiguous returns the names that instances of several networks bear in this check.
func (c Check) ambiguous() map[string]bool {
	network := make(map[string]string)
	twice := make(map[string]bool)
	note := func(name, net string) {
		if was, ok := network[name]; ok && was != net {
			twice[name] = true
		}
		network[name] = net
	}
	for _, p := range c.Pairs {
		note(p.Src, p.SrcNetwork)
		note(p.Dst, p.DstNetwork)
	}
	return twice
}

// schemes returns how many pairs were judged by each scheme. Pairs that no probe was sent for have
// none.
func (c Check) schemes() map[string]int {
	n := make(map[string]int)
	for _, p := range c.Pairs {
		if p.Scheme != "" {
			n[p.Scheme]++
		}
	}
	return n
}

// by names the scheme of a pair; empty where no probe was sent.
func (p Pair) by() string {
	if p.Scheme == "" {
		return ""
	}
	return "by " + p.Scheme
}

// fellBack says in parentheses why auto did not stay with tcp, which it tries first; empty if it did.
func (p Pair) fellBack() string {
	if p.SchemeReason == "" || p.Scheme == Scheme(dyetracev1.Scheme_SCHEME_TCP, "") {
		return ""
	}
	return "(" + p.SchemeReason + ")"
}

// way is the heading of a pair's path: what was sent from where to where, and why so.
func (p Pair) way() string {
	var words []string
	if p.SrcIP != "" && p.DstIP != "" {
		words = append(words, p.SrcIP+" → "+p.DstIP)
	}
	for _, more := range []string{p.by(), p.fellBack()} {
		if more != "" {
			words = append(words, more)
		}
	}
	return strings.Join(words, " ")
}

// spaced puts a space before words, if there are any.
func spaced(words string) string {
	if words == "" {
		return ""
	}
	return " " + words
}

// text writes; bufio.Writer keeps the first error for Flush.
type text struct {
	w         *bufio.Writer
	o         TextOptions
	ambiguous map[string]bool
	// mixed: not all pairs have the same scheme, so that it is worth a word.
	mixed bool
}

func (t *text) printf(format string, args ...any) { fmt.Fprintf(t.w, format, args...) }

// Colours by ECMA-48, SGR.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (t *text) paint(color, s string) string {
	if !t.o.Color {
		return s
	}
	return "\x1b[" + color + "m" + s + "\x1b[0m"
}

func verdictColor(verdict string) string {
	switch verdict {
	case "healthy":
		return green
	case "faulty", "silent":
		return red
	}
	return yellow
}

func (t *text) summary(c Check) {
	var counts []string
	for _, x := range []struct {
		n       uint32
		verdict string
	}{
		{c.Counts.Healthy, "healthy"}, {c.Counts.Faulty, "faulty"}, {c.Counts.Silent, "silent"},
		{c.Counts.Policy, "policy"}, {c.Counts.Unknown, "unknown"},
	} {
		if x.n > 0 {
			counts = append(counts, t.paint(verdictColor(x.verdict), fmt.Sprintf("%d %s", x.n, x.verdict)))
		}
	}
	if open := c.Total - min(c.Total, c.Counts.Judged()); open > 0 {
		counts = append(counts, t.paint(yellow, fmt.Sprintf("%d without verdict", open)))
	}
	took := ""
	if c.Started != nil && c.Ended != nil {
		took = " in " + duration(c.Ended.Sub(*c.Started).Nanoseconds())
	}
	noun := "pairs"
	if c.Total == 1 {
		noun = "pair"
	}
	t.printf("%s%s: %s", t.paint(bold, fmt.Sprintf("%d %s", c.Total, noun)), took, strings.Join(counts, ", "))
	if n := c.schemes(); t.mixed {
		var by []string
		for _, scheme := range slices.Backward(slices.Sorted(maps.Keys(n))) { // tcp, which is tried first, first
			by = append(by, fmt.Sprintf("%d by %s", n[scheme], scheme))
		}
		t.printf("; %s", strings.Join(by, ", "))
	}
	about := fmt.Sprintf("run %s, %s", c.Run.Run, c.State)
	if options := c.Options.String(); options != "" {
		about += ", " + options
	}
	t.printf("  %s\n", t.paint(dim, "("+about+")"))
}

// scheme says how a pair that is not drawn was judged, where that is worth a word.
func (t *text) scheme(p Pair) string {
	if !t.mixed {
		return ""
	}
	return p.by() + spaced(p.fellBack())
}

// name writes an instance as one would have to type it.
func (t *text) name(name, network string) string {
	if t.ambiguous[name] {
		return network + "/" + name
	}
	return name
}

// headline writes a pair and its verdict, and then more, if any.
func (t *text) headline(p Pair, more string) {
	mark := "✗"
	switch p.Verdict {
	case "healthy":
		mark = "✓"
	case "unknown", "pending":
		mark = "?"
	}
	color := verdictColor(p.Verdict)
	t.printf("%s %s → %s  %s", t.paint(color, mark), t.paint(bold, t.name(p.Src, p.SrcNetwork)),
		t.paint(bold, t.name(p.Dst, p.DstNetwork)), t.paint(color, p.Verdict))
	if p.Verdict == "healthy" && p.RTT > 0 {
		t.printf("  %s", duration(p.RTT))
	}
	if more != "" {
		t.printf("  %s", t.paint(dim, more))
	}
	t.printf("\n")
}

// path draws the sampling points of a pair under its addresses and scheme, one a line, and the
// segment where it failed.
func (t *text) path(p Pair) {
	if way := p.way(); way != "" {
		t.printf("    %s\n", t.paint(dim, way))
	}
	if p.NoTouch {
		t.printf("    %s\n", t.paint(dim, "no-touch: no guest sees a probe; the way back is checked by a probe of its own"))
	}
	width := 0
	for _, s := range p.Samples {
		width = max(width, len(s.Point.String()))
	}
	last := lastSeen(p)
	failed := failedAt(p, last)
	direction := "forward"
	for i, s := range p.Samples {
		if i == failed {
			t.printf("    %s\n", t.paint(verdictColor(p.Verdict), "╌╌╌ "+lostWords(p)+" ╌╌╌"))
		}
		if s.Direction == "reply" && direction != "reply" {
			direction = "reply"
			divider := "answer of " + t.name(p.Dst, p.DstNetwork)
			if p.NoTouch {
				divider = "way back, a probe of its own"
			}
			t.printf("    %s\n", t.paint(dim, divider))
		}
		mark, note := t.mark(p, s, i, last.of(s.Direction))
		line := fmt.Sprintf("    %s %-*s  %9s", mark, width, s.Point, note)
		if s.TunSrc != "" {
			line += fmt.Sprintf("  from %s", s.TunSrc)
			if s.TunID != 0 {
				line += fmt.Sprintf(", key %d", s.TunID)
			}
		}
		t.printf("%s\n", strings.TrimRight(line, " "))
	}
}

// passed has the index of the last point that is known to have been passed in each direction, -1
// for none.
type passed struct{ forward, reply int }

func (l passed) of(direction string) int {
	if direction == "reply" {
		return l.reply
	}
	return l.forward
}

// lastSeen returns what the samples of a pair prove. An answer that was seen proves that its
// question arrived; in no-touch each direction has a probe of its own, which says nothing of the
// other.
func lastSeen(p Pair) passed {
	last := passed{-1, -1}
	for i, s := range p.Samples {
		switch {
		case !s.Seen:
		case !p.NoTouch:
			last.forward, last.reply = i, i
		case s.Direction == "reply":
			last.reply = i
		default:
			last.forward = i
		}
	}
	return last
}

// failedAt returns the index of the sample before which the segment's line is drawn: its far end,
// which lies after the last point seen. -1 is none.
func failedAt(p Pair, last passed) int {
	if p.SegmentTo == nil {
		return -1
	}
	for i, s := range p.Samples {
		// Both ends of a pair on one host are the same point; the one that did not see it counts.
		if i <= last.of(s.Direction) || s.Point != *p.SegmentTo {
			continue
		}
		if !p.NoTouch || s.Direction == p.Direction {
			return i
		}
	}
	return -1
}

func lostWords(p Pair) string {
	switch p.Verdict {
	case "silent":
		if p.NoTouch { // nobody was asked for an answer
			return "not taken by the guest"
		}
		return "delivered, no answer"
	case "policy":
		return "denied here"
	case "unknown":
		return "out of sight from here"
	}
	return "lost here"
}

// mark tells seen, missing and unknown apart. A point whose successor saw the packet was passed,
// whether or not its sample arrived.
func (t *text) mark(p Pair, s Sample, i, last int) (mark, note string) {
	switch {
	case s.Seen:
		return t.paint(green, "✓"), duration(s.At)
	case i < last:
		return t.paint(yellow, "?"), "no sample"
	case p.Verdict == "unknown" || p.Verdict == "pending":
		return t.paint(yellow, "?"), ""
	}
	return t.paint(red, "✗"), ""
}

func (t *text) facts(p Pair) {
	if p.Segment != nil {
		t.fact("segment", *p.Segment)
	}
	t.fact("cause", p.Cause)
	t.fact("host", p.Host)
	if p.Flow != nil {
		t.fact("flow", p.Flow.String())
	}
	t.fact("show it", p.show(p.Command, p.CommandHost))
	t.fact("trace", p.show(p.TraceCommand, p.TraceHost))
	t.fact("central", p.LogicalCommand)
}

// show is a command with where to type it, in a comment of the shell's, if that is another host than the one to look at.
func (p Pair) show(command, host string) string {
	if command == "" || host == "" || host == p.Host {
		return command
	}
	return command + "  # on " + host
}

func (t *text) fact(name, value string) {
	if value == "" {
		return
	}
	t.printf("    %s %s\n", t.paint(dim, fmt.Sprintf("%-8s", name+":")), value)
}
