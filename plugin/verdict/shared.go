package verdict

import (
	"fmt"
	"net/netip"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/stain"
)

// Shared is too much loss, found by all that pass a part of the way together, in a continuous run: by the probes of the pairs
// that do, or by packets that agents exchange there.
type Shared struct {
	// Probes, and how many of them were lost.
	Probes, Lost int
	// Pairs are those whose probes they are; 1 is that they are the pair's own.
	Pairs int
	// Test says what share is allowed, and what is too much.
	Test sequential.Plan
	// From and To are the points of the pair's way between which it is; nil where that is not known.
	From, To *plan.Expected
	// Under is what lies under the tunnels from one host to another, if packets of their agents tell of it; else nil.
	Under *Ends
}

// Ends are two hosts, and the addresses of their tunnels if they are known.
type Ends struct {
	From, To string
	Src, Dst netip.Addr
}

// Judge is the verdict on a pair that passes it and is healthy otherwise: base is what is said of it else.
func (s *Shared) Judge(base *dyetracev1.PairResult) *dyetracev1.PairResult {
	segment := SegmentBetween(s.From, s.To)
	i := sequential.Loss(s.Probes, s.Lost)
	r := &dyetracev1.PairResult{
		Src: base.Src, Dst: base.Dst, Verdict: dyetracev1.Verdict_VERDICT_FAULTY, Segment: segment, RttNs: base.RttNs,
		Samples: base.Samples, Probes: base.Probes, Scheme: base.Scheme, SchemeReason: base.SchemeReason, SrcIp: base.SrcIp, DstIp: base.DstIp,
		NoTouch: base.NoTouch, CauseKind: dyetracev1.CauseKind_CAUSE_KIND_LOSS,
		Loss: &dyetracev1.PairLoss{
			Probes: uint32(s.Probes), Lost: uint32(s.Lost), Low: i.Low, High: i.High, Underlay: s.Under != nil,
			Decision: dyetracev1.LossDecision_LOSS_DECISION_ABOVE, Allowed: s.Test.P0, TooMuch: s.Test.P1, Segment: segment,
		},
	}
	if s.From != nil {
		r.Host = s.From.Host
	}
	r.Command = lossCommand(base, s.Test)
	share := rate(s.Lost, s.Probes, i)
	name := base.GetDst().GetName()
	switch {
	case s.Under != nil:
		r.Command = underlayCommand(s.Under.From, s.Under.To, s.Under.Src, s.Under.Dst)
		r.Cause = fmt.Sprintf("the underlay loses %s of %d UDP packets from %s to %s", share, s.Probes, end(s.Under.From, s.Under.Src), end(s.Under.To, s.Under.Dst))
	case s.guest() && s.From.Kind == stain.ToInstance && s.To.Kind == stain.FromInstance && s.From.Host == s.To.Host:
		r.Verdict, r.CauseKind = dyetracev1.Verdict_VERDICT_SILENT, dyetracev1.CauseKind_CAUSE_KIND_GUEST_SILENT
		r.Cause = fmt.Sprintf("%s does not answer %s of %d probes that were delivered to it", name, share, s.Probes)
	case s.guest():
		r.Verdict = dyetracev1.Verdict_VERDICT_UNKNOWN
		r.Cause = fmt.Sprintf("loses %s of %d probes between %s and %s, by the network or by %s itself", share, s.Probes, s.From, s.To, name)
	default:
		r.Cause = fmt.Sprintf("loses %s of %d probes", share, s.Probes)
		if s.Pairs > 1 {
			r.Cause += fmt.Sprintf(" of %d pairs", s.Pairs)
		}
		if s.From != nil {
			r.Cause += fmt.Sprintf(" between %s and %s", s.From, s.To)
		}
	}
	return r
}

// guest says that the guest lies between.
func (s *Shared) guest() bool {
	return s.From != nil && s.To != nil && s.From.Direction == plan.Forward && s.To.Direction == plan.Reply
}

// end words a tunnel's end.
func end(host string, a netip.Addr) string {
	if !a.IsValid() {
		return host
	}
	return fmt.Sprintf("%s (%s)", host, a)
}

// rate words what is lost of so many: "4.1 % (2.9-5.8 %, 95 %)".
func rate(lost, of int, i sequential.Interval) string {
	return fmt.Sprintf("%s %% (%s-%s %%, 95 %%)", Percent(float64(lost)/float64(max(1, of))), Percent(i.Low), Percent(i.High))
}

// SegmentBetween is the contract's segment between two points; nil if either is not known.
func SegmentBetween(from, to *plan.Expected) *dyetracev1.Segment {
	if from == nil || to == nil {
		return nil
	}
	return (&Segment{From: from, To: *to}).proto()
}
