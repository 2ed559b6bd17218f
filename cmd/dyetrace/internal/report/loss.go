package report

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// Loss is what a pair loses.
type Loss struct {
	// Probes that count, and those of them that were lost.
	Probes uint32 `json:"probes"`
	Lost   uint32 `json:"lost"`
	// Rate is their share, Low and High the ends of its interval, 95 %.
	Rate float64 `json:"rate"`
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	// Decision is within, above or open. Allowed and TooMuch are the shares that were told apart.
	Decision string  `json:"decision"`
	Allowed  float64 `json:"allowed"`
	TooMuch  float64 `json:"too_much"`
	// Segment is where most were lost, in words; nil where none was.
	Segment *string `json:"segment"`
	// Underlay says that the probes are UDP packets of the agents, between the tunnel addresses of two hosts.
	Underlay bool `json:"underlay"`
}

// Latency is how long probes took for a part of their way, nanoseconds.
type Latency struct {
	// Kind is rtt, switch, guest or tunnel.
	Kind      string `json:"kind"`
	From      *Point `json:"from"`
	To        *Point `json:"to"`
	Direction string `json:"direction"`
	Samples   uint64 `json:"samples"`
	P50       int64  `json:"p50_ns"`
	P90       int64  `json:"p90_ns"`
	P99       int64  `json:"p99_ns"`
	Max       int64  `json:"max_ns"`
}

// SegmentLoss is what all pairs that pass a part of their ways lose there together.
type SegmentLoss struct {
	// Segment is in words; empty where Host alone is what they have in common.
	Segment string  `json:"segment"`
	Host    string  `json:"host"`
	Probes  uint64  `json:"probes"`
	Lost    uint64  `json:"lost"`
	Low     float64 `json:"low"`
	High    float64 `json:"high"`
	Pairs   uint32  `json:"pairs"`
	// Underlay is as in Loss. SourcePorts are those that lose where others do not: one of several equal-cost
	// paths loses, and no pair is faulty by that, since nobody knows which take it.
	Underlay    bool       `json:"underlay"`
	SourcePorts []uint32   `json:"source_ports"`
	Since       *time.Time `json:"since"`
}

func newSegmentLoss(l *dyetracev1.SegmentLoss) SegmentLoss {
	v := SegmentLoss{
		Host: l.GetHost(), Probes: l.GetProbes(), Lost: l.GetLost(), Low: l.GetLow(), High: l.GetHigh(),
		Pairs: l.GetPairs(), Since: Time(l.GetSince()), Underlay: l.GetUnderlay(), SourcePorts: append([]uint32{}, l.GetSourcePorts()...),
	}
	if s := l.GetSegment(); s != nil {
		v.Segment = segmentWords(newPoint(s.GetFrom()), newPoint(s.GetTo()))
	}
	return v
}

// tacit are those losses that no pair's verdict tells of: of one of several paths, and of all of a host where
// none of a part of its is known.
func (r Run) tacit() (all []SegmentLoss) {
	for _, l := range r.Losses {
		part := func(o SegmentLoss) bool { return o.Host == "" && o.Underlay == l.Underlay }
		if len(l.SourcePorts) > 0 || l.Host != "" && !slices.ContainsFunc(r.Losses, part) {
			all = append(all, l)
		}
	}
	return all
}

// String writes it in one line.
func (l SegmentLoss) String() string {
	where, what := l.Segment, "probes"
	if l.Host != "" {
		where = "all of " + l.Host
	}
	if l.Underlay {
		where, what = "the underlay, "+where, "UDP packets"
	}
	s := fmt.Sprintf("%s: loses %s %% (%s-%s %%, 95 %%) of %d %s", where, Percent(float64(l.Lost)/float64(max(1, l.Probes))), Percent(l.Low), Percent(l.High), l.Probes, what)
	if n := len(l.SourcePorts); n > 0 {
		s += fmt.Sprintf(" from %d of the source ports, others lose none: one of several equal-cost paths", n)
	}
	return s
}

// Losing names what is known to lose and no pair's verdict tells of, to tell whether it has changed.
func (r Run) Losing() string {
	var all []string
	for _, l := range r.tacit() {
		all = append(all, fmt.Sprintf("%s %s %v", l.Host, l.Segment, l.Underlay))
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

// WriteLosing writes that for people, or that it is nothing any more.
func (r Run) WriteLosing(w io.Writer, color bool) error {
	t := &text{w: bufio.NewWriter(w), o: TextOptions{Color: color}}
	if r.Losing() == "" {
		t.printf("%s\n", t.paint(dim, "Loss besides: none any more"))
	}
	t.losing(r)
	return t.w.Flush()
}

func (t *text) losing(r Run) {
	if r.Losing() == "" {
		return
	}
	t.printf("\n%s\n", t.paint(bold, "Loss besides:"))
	for _, l := range r.tacit() {
		t.printf("  %s\n", l)
	}
}

func newLoss(l *dyetracev1.PairLoss) *Loss {
	if l == nil {
		return nil
	}
	v := &Loss{
		Probes: l.GetProbes(), Lost: l.GetLost(), Low: l.GetLow(), High: l.GetHigh(),
		Decision: LossDecision(l.GetDecision()), Allowed: l.GetAllowed(), TooMuch: l.GetTooMuch(), Underlay: l.GetUnderlay(),
	}
	if v.Probes > 0 {
		v.Rate = float64(v.Lost) / float64(v.Probes)
	}
	if s := l.GetSegment(); s != nil {
		words := segmentWords(newPoint(s.GetFrom()), newPoint(s.GetTo()))
		v.Segment = &words
	}
	return v
}

func newLatency(l *dyetracev1.Latency) Latency {
	return Latency{
		Kind: LatencyKind(l.GetKind()), From: newPoint(l.GetFrom()), To: newPoint(l.GetTo()), Direction: Direction(l.GetDirection()),
		Samples: l.GetSamples(), P50: l.GetP50Ns(), P90: l.GetP90Ns(), P99: l.GetP99Ns(), Max: l.GetMaxNs(),
	}
}

// LossDecision returns within, above or open.
func LossDecision(d dyetracev1.LossDecision) string { return word(d.String(), "LOSS_DECISION_", "") }

// LatencyKind returns rtt, switch, guest or tunnel.
func LatencyKind(k dyetracev1.LatencyKind) string { return word(k.String(), "LATENCY_KIND_", "") }

// Percent writes a share in percent, without the sign, rounded to two digits, and never with an exponent; Percent of plugin/verdict
// does the same.
func Percent(share float64) string {
	rounded, _ := strconv.ParseFloat(strconv.FormatFloat(100*share, 'e', 1, 64), 64)
	return strconv.FormatFloat(rounded, 'f', -1, 64)
}

// String writes a loss in one line.
func (l *Loss) String() string {
	s := fmt.Sprintf("%s %% (%s-%s %%, 95 %%) of %d probes", Percent(l.Rate), Percent(l.Low), Percent(l.High), l.Probes)
	switch l.Decision {
	case "within":
		return s + fmt.Sprintf(": less than %s %%", Percent(l.TooMuch))
	case "above":
		return s + fmt.Sprintf(": more than %s %%", Percent(l.Allowed))
	}
	return s + fmt.Sprintf(": too few to tell whether it is more than %s %%", Percent(l.Allowed))
}

// rtt returns the latencies of the whole way; false where they were not measured.
func (p Pair) rtt() (Latency, bool) {
	for _, l := range p.Latencies {
		if l.Kind == "rtt" {
			return l, true
		}
	}
	return Latency{}, false
}

// part names what a latency is of.
func (l Latency) part() string {
	switch l.Kind {
	case "rtt":
		return "round trip"
	case "guest":
		return "guest"
	case "tunnel":
		return fmt.Sprintf("between %s and %s, both ways", l.From.Host, l.To.Host)
	}
	return fmt.Sprintf("%s, %s → %s", l.From.Host, l.From.Bridge+" "+l.From.Kind, l.To.Bridge+" "+l.To.Kind)
}

// measured writes what a pair loses and how long it takes.
func (t *text) measured(p Pair) {
	if p.Loss != nil && (p.Verdict == "healthy" || len(p.Latencies) > 0) {
		t.fact("loss", p.Loss.String())
	}
	if len(p.Latencies) == 0 {
		return
	}
	width := 0
	for _, l := range p.Latencies {
		width = max(width, len([]rune(l.part())))
	}
	t.printf("    %s\n", t.paint(dim, fmt.Sprintf("%-*s  %9s  %9s  %9s  %9s", width, "latency", "p50", "p90", "p99", "max")))
	for _, l := range p.Latencies {
		t.printf("    %-*s  %9s  %9s  %9s  %9s\n", width, l.part(), duration(l.P50), duration(l.P90), duration(l.P99), duration(l.Max))
	}
}

// line is what was measured of a healthy pair, in a few words; empty where nothing was.
func (p Pair) line() string {
	l, timed := p.rtt()
	trip := fmt.Sprintf("round trip p50 %s, p99 %s", duration(l.P50), duration(l.P99))
	switch {
	case len(p.Latencies) == 0:
		return ""
	case p.Loss != nil:
		s := fmt.Sprintf("loses %s %% (up to %s %%) of %d", Percent(p.Loss.Rate), Percent(p.Loss.High), p.Loss.Probes)
		if timed {
			s += ", " + trip
		}
		return s
	case timed: // in a continuous run
		return fmt.Sprintf("%s of %d", trip, l.Samples)
	}
	return ""
}
