package verdict

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/verdict/infer"
)

// Infer says what the pairs of a run that are not healthy have in common, what explains most first.
// Pairs that lose some of their probes are explained by themselves, after those that lose all. nil
// entries, and pairs without verdict, count for nothing. racks has those of hosts, as far as they are
// known.
func Infer(results []*dyetracev1.PairResult, racks map[string]string) []*dyetracev1.Finding {
	v := view{results: results, plain: plainNames(results), racks: racks}
	return append(v.findings(hard), v.findings(soft)...)
}

// view is what is inferred from.
type view struct {
	results []*dyetracev1.PairResult
	plain   map[string]string // by network/name: the name, where one instance only has it
	racks   map[string]string // by host
}

// kinds are those of components in the contract, where no number ever changes.
var kinds = map[infer.Kind]dyetracev1.FindingKind{
	infer.Flow:          dyetracev1.FindingKind_FINDING_KIND_FLOW,
	infer.Rules:         dyetracev1.FindingKind_FINDING_KIND_SECURITY_RULES,
	infer.GuestOf:       dyetracev1.FindingKind_FINDING_KIND_GUEST,
	infer.Path:          dyetracev1.FindingKind_FINDING_KIND_PATH,
	infer.Reach:         dyetracev1.FindingKind_FINDING_KIND_REACH,
	infer.Port:          dyetracev1.FindingKind_FINDING_KIND_PORT,
	infer.Route:         dyetracev1.FindingKind_FINDING_KIND_ROUTE,
	infer.TunnelNetwork: dyetracev1.FindingKind_FINDING_KIND_TUNNEL_NETWORK,
	infer.Tunnel:        dyetracev1.FindingKind_FINDING_KIND_TUNNEL,
	infer.HostNetwork:   dyetracev1.FindingKind_FINDING_KIND_HOST_NETWORK,
	infer.Switch:        dyetracev1.FindingKind_FINDING_KIND_SWITCH,
	infer.Host:          dyetracev1.FindingKind_FINDING_KIND_HOST,
	infer.RackOf:        dyetracev1.FindingKind_FINDING_KIND_RACK,
	infer.Racks:         dyetracev1.FindingKind_FINDING_KIND_RACKS,
	infer.RackSwitch:    dyetracev1.FindingKind_FINDING_KIND_RACK_SWITCH,
	infer.Network:       dyetracev1.FindingKind_FINDING_KIND_NETWORK,
	infer.Underlay:      dyetracev1.FindingKind_FINDING_KIND_UNDERLAY,
	infer.Pair:          dyetracev1.FindingKind_FINDING_KIND_PAIR,
}

// hard takes pairs that lose all, soft those that lose some. keep is false for what speaks of
// neither; a result of the other sort that passed something is weak.
func hard(r *dyetracev1.PairResult) (lost, weak, keep bool) {
	return !Partial(r) && bad(r), false, !Partial(r)
}

// enough is how many probes show a loss of 5 % in 19 of 20 cases: ln 0.05 / ln 0.95.
const enough = 59

func soft(r *dyetracev1.PairResult) (lost, weak, keep bool) {
	if Partial(r) {
		return true, false, true
	}
	return false, r.GetProbes() < enough, !bad(r)
}

// Partial says that a pair loses more than it may, and passes some: as the cause of its verdict says, or, where that is the
// guest's who does not answer all, what was tested. Whose fault it is may be unknown.
func Partial(r *dyetracev1.PairResult) bool {
	switch {
	case r.GetVerdict() == dyetracev1.Verdict_VERDICT_HEALTHY:
		return false
	case r.GetCauseKind() == dyetracev1.CauseKind_CAUSE_KIND_GUEST_SILENT:
		l := r.GetLoss()
		return l.GetDecision() == dyetracev1.LossDecision_LOSS_DECISION_ABOVE && l.GetLost() < l.GetProbes()
	}
	return r.GetCauseKind() == dyetracev1.CauseKind_CAUSE_KIND_LOSS
}

func bad(r *dyetracev1.PairResult) bool {
	switch r.GetVerdict() {
	case dyetracev1.Verdict_VERDICT_FAULTY, dyetracev1.Verdict_VERDICT_SILENT, dyetracev1.Verdict_VERDICT_POLICY:
		return true
	}
	return false
}

func (v *view) findings(sort func(*dyetracev1.PairResult) (lost, weak, keep bool)) []*dyetracev1.Finding {
	var in []infer.Result
	var of []*dyetracev1.PairResult
	some := false
	for _, r := range v.results {
		if !bad(r) && r.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
			continue
		}
		lost, weak, keep := sort(r)
		x, placed := located(r)
		if !keep || !placed {
			continue
		}
		if x.Weak = weak; !lost {
			x.First, x.Last, x.Answer, x.Denied, x.Flow = 0, 0, false, false, ""
		}
		some = some || lost
		in, of = append(in, x), append(of, r)
	}
	if !some {
		return nil
	}
	var out []*dyetracev1.Finding
	found, rest := infer.Of(in, v.racks)
	for _, f := range found {
		out = append(out, v.finding(&f, of))
	}
	if len(rest) > 0 {
		out = append(out, restOf(rest, of))
	}
	return out
}

// located reads where a result's packet was lost; ok is false where its ends cannot be told.
func located(r *dyetracev1.PairResult) (x infer.Result, ok bool) {
	x = infer.Result{
		Src:  infer.End{Instance: ref(r.GetSrc()), Network: r.GetSrc().GetNetwork()},
		Dst:  infer.End{Instance: ref(r.GetDst()), Network: r.GetDst().GetNetwork()},
		Host: r.GetHost(), Denied: r.GetVerdict() == dyetracev1.Verdict_VERDICT_POLICY, Flow: flowName(r),
	}
	for _, s := range r.GetSamples() {
		if s.GetDirection() != dyetracev1.Direction_DIRECTION_FORWARD {
			continue
		}
		if x.Src.Host == "" {
			x.Src.Host = s.GetPoint().GetHost()
		}
		x.Dst.Host = s.GetPoint().GetHost()
	}
	x.Answer = r.GetSegment().GetDirection() == dyetracev1.Direction_DIRECTION_REPLY
	if bad(r) {
		if r.GetSegment() == nil {
			return x, false
		}
		from, to := x.Src.Host, x.Dst.Host
		if x.Answer {
			from, to = to, from
		}
		x.First, x.Last = places(r, from, to)
	}
	return x, x.Src.Host != "" && x.Dst.Host != ""
}

// places are those between the ends of a result's segment, on a way from one host to another.
func places(r *dyetracev1.PairResult, from, to string) (first, last infer.Place) {
	seg := r.GetSegment()
	first, last = infer.Entry, infer.Entry
	if seg.GetFrom() != nil {
		first = after(r, seg.GetFrom())
	}
	switch at := seg.GetTo(); {
	case seg.GetFrom().GetHost() == at.GetHost() && at.GetKind() == dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL:
		return infer.Destination, infer.Destination // from bridge to bridge, whether the latter has that point or not
	case r.GetVerdict() == dyetracev1.Verdict_VERDICT_SILENT && r.GetCauseKind() != 0:
		return infer.Guest, infer.Guest
	case at.GetKind() == dyetracev1.PointKind_POINT_KIND_TO_INSTANCE:
		last = infer.Delivery
	case seg.GetFrom() == nil:
	case crosses(r): // the answer is missing: up to the guest, who answers
		last = infer.Delivery
	case at.GetHost() == from && from != to:
		last = infer.Source
	case firstOn(r, at):
		last = infer.Between
	default:
		last = infer.Destination
	}
	// What flows do wrong they do on the sender's host, though the next point is on another.
	if first == infer.Between && !inUnderlay(r.GetCauseKind()) && r.GetHost() == from {
		first = infer.Source
	}
	return first, max(first, last)
}

// after is the place that follows a point.
func after(r *dyetracev1.PairResult, p *dyetracev1.Point) infer.Place {
	switch p.GetKind() {
	case dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE:
		return infer.Source
	case dyetracev1.PointKind_POINT_KIND_TO_TUNNEL:
		if lastOn(r, p) {
			return infer.Between
		}
		return infer.Source
	case dyetracev1.PointKind_POINT_KIND_TO_INSTANCE:
		return infer.Guest
	}
	if lastOn(r, p) {
		return infer.Delivery
	}
	return infer.Destination
}

// crosses says that the guest lies in the segment.
func crosses(r *dyetracev1.PairResult) bool {
	seg, there, back := r.GetSegment(), false, false
	for _, s := range r.GetSamples() {
		forward := s.GetDirection() == dyetracev1.Direction_DIRECTION_FORWARD
		there = there || forward && same(s.GetPoint(), seg.GetFrom()) && s.GetSeen()
		back = back || !forward && same(s.GetPoint(), seg.GetTo())
	}
	return there && back && seg.GetDirection() == dyetracev1.Direction_DIRECTION_FORWARD && !inForward(r, seg.GetTo())
}

// inForward says that the way there has a point that was not seen and is the same as p.
func inForward(r *dyetracev1.PairResult, p *dyetracev1.Point) bool {
	return slices.ContainsFunc(r.GetSamples(), func(s *dyetracev1.Sample) bool {
		return s.GetDirection() == dyetracev1.Direction_DIRECTION_FORWARD && !s.GetSeen() && same(s.GetPoint(), p)
	})
}

func same(a, b *dyetracev1.Point) bool {
	return a.GetHost() == b.GetHost() && a.GetBridge() == b.GetBridge() && a.GetKind() == b.GetKind()
}

// lastOn says that no other bridge of the host follows on the same way, firstOn that none comes before.
func lastOn(r *dyetracev1.PairResult, p *dyetracev1.Point) bool {
	i := along(r, p)
	ss := r.GetSamples()
	return i < 0 || i+1 >= len(ss) || ss[i+1].GetPoint().GetHost() != p.GetHost() || ss[i+1].GetDirection() != ss[i].GetDirection() ||
		ss[i+1].GetPoint().GetKind() == dyetracev1.PointKind_POINT_KIND_TO_INSTANCE
}

func firstOn(r *dyetracev1.PairResult, p *dyetracev1.Point) bool {
	i := along(r, p)
	ss := r.GetSamples()
	return i <= 0 || ss[i-1].GetPoint().GetHost() != p.GetHost() || ss[i-1].GetDirection() != ss[i].GetDirection()
}

// along is where a point of the segment's direction is among the samples, -1 if nowhere.
func along(r *dyetracev1.PairResult, p *dyetracev1.Point) int {
	return slices.IndexFunc(r.GetSamples(), func(s *dyetracev1.Sample) bool {
		return s.GetDirection() == r.GetSegment().GetDirection() && same(s.GetPoint(), p)
	})
}

// inUnderlay says that the sender's flows are known to have done right.
func inUnderlay(k dyetracev1.CauseKind) bool {
	switch CauseKind(k) {
	case CauseBetweenHosts, CauseUnderlay, CauseUnderlayMember, CausePathMTU, CauseEntrypoint, CauseLoss:
		return true
	}
	return false
}

// flowName names the flow that dropped a pair's packet, if it is one that was meant to: what nothing
// else takes ends at a last resort, whatever the reason.
func flowName(r *dyetracev1.PairResult) string {
	f := r.GetFlow()
	if f == nil || f.GetMatch() == "" || f.GetPriority() == 0 || CauseKind(r.GetCauseKind()) != CauseFlow {
		return ""
	}
	name := Flow{Bridge: f.GetBridge(), Table: f.GetTable(), Priority: f.GetPriority(), Match: f.GetMatch(), Cookie: f.GetCookie()}
	return r.GetHost() + ": " + name.String()
}

func ref(i *dyetracev1.InstanceRef) string { return i.GetNetwork() + "/" + i.GetName() }

// plainNames are the names of instances, without the network where one only has it.
func plainNames(results []*dyetracev1.PairResult) map[string]string {
	refs := map[string]*dyetracev1.InstanceRef{}
	bearers := map[string]int{}
	for _, r := range results {
		for _, i := range []*dyetracev1.InstanceRef{r.GetSrc(), r.GetDst()} {
			if refs[ref(i)] == nil {
				refs[ref(i)] = i
				bearers[i.GetName()]++
			}
		}
	}
	plain := make(map[string]string, len(refs))
	for full, i := range refs {
		plain[full] = full
		if bearers[i.GetName()] == 1 {
			plain[full] = i.GetName()
		}
	}
	return plain
}

// words names a component for people.
func (v *view) words(c infer.Component) string {
	c.Instance, c.Other = cmp.Or(v.plain[c.Instance], c.Instance), cmp.Or(v.plain[c.Other], c.Other)
	return c.String()
}

// finding words what was inferred from results.
func (v *view) finding(f *infer.Finding, of []*dyetracev1.PairResult) *dyetracev1.Finding {
	c := f.Component
	m := &dyetracev1.Finding{
		Kind: kinds[c.Kind], Host: c.Host, PeerHost: c.Peer, Network: c.Network,
		Instance: unref(c.Instance), Other: unref(c.Other), Passed: uint32(f.Passed),
	}
	m.Rack, m.Hosts = rackOf(c.Rack)
	m.PeerRack, m.PeerHosts = rackOf(c.PeerRack)
	typical := explain(m, f.Results, of)
	if c.Kind == infer.Flow {
		m.Flow = typical.GetFlow()
	}
	for _, a := range f.Alternatives {
		m.Alternatives = append(m.Alternatives, v.words(a))
	}
	m.Summary = fmt.Sprintf("%s: %s", v.words(c), tally(len(f.Results), Partial(typical)))
	return m
}

// explain gives a finding its pairs, and what most of them have as verdict and cause. It returns one of these.
func explain(m *dyetracev1.Finding, results []int, of []*dyetracev1.PairResult) (typical *dyetracev1.PairResult) {
	causes := map[string]int{}
	best := ""
	for _, i := range results {
		r := of[i]
		m.Pairs = append(m.Pairs, &dyetracev1.PairRef{Src: r.GetSrc(), Dst: r.GetDst()})
		causes[r.GetCause()]++
		if n := causes[r.GetCause()]; best == "" || n > causes[best] || n == causes[best] && r.GetCause() < best {
			best = r.GetCause()
		}
	}
	slices.SortFunc(m.Pairs, func(a, b *dyetracev1.PairRef) int {
		return cmp.Or(cmp.Compare(ref(a.GetSrc()), ref(b.GetSrc())), cmp.Compare(ref(a.GetDst()), ref(b.GetDst())))
	})
	for _, i := range results {
		if r := of[i]; r.GetCause() == best {
			m.Cause, m.CauseKind, m.Verdict, m.Command = best, r.GetCauseKind(), r.GetVerdict(), r.GetCommand()
			m.CommandHost = r.GetCommandHost()
			return r
		}
	}
	return nil
}

// restOf has the pairs that no finding explains, as there are too many.
func restOf(rest []int, of []*dyetracev1.PairResult) *dyetracev1.Finding {
	m := &dyetracev1.Finding{Kind: dyetracev1.FindingKind_FINDING_KIND_REST}
	typical := explain(m, rest, of)
	m.Summary = "under no finding, as there are too many: " + tally(len(rest), Partial(typical))
	return m
}

func rackOf(k *infer.Rack) (name string, hosts []string) {
	if k == nil {
		return "", nil
	}
	return k.Name, k.Hosts
}

func tally(pairs int, some bool) string {
	switch {
	case pairs == 1 && some:
		return "1 pair loses packets"
	case pairs == 1:
		return "1 pair fails"
	case some:
		return fmt.Sprintf("%d pairs lose packets", pairs)
	}
	return fmt.Sprintf("%d pairs fail", pairs)
}

func unref(text string) *dyetracev1.InstanceRef {
	network, name, ok := strings.Cut(text, "/")
	if !ok {
		return nil
	}
	return &dyetracev1.InstanceRef{Network: network, Name: name}
}
