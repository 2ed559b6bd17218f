package verdict

import (
	"testing"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// TestUndelivered: an answer to what provably was not delivered is somebody else's, and proves nothing of
// the destination; one to what may have been delivered is the destination's.
func TestUndelivered(t *testing.T) {
	t.Parallel()
	reject := &Flow{
		Bridge: "br-int", Table: 44, Priority: 2002, Match: "tcp,reg15=0x2,metadata=0x1", Actions: "controller(userdata=00.00)", Cookie: 0xac1,
		Owner: dyetracev1.FlowOwner_FLOW_OWNER_OVN, Stage: "ls_out_acl",
		Logical: &dyetracev1.LogicalFlow{Datapath: "blue", Match: "outport == \"blue-4\" && tcp"}, ACL: &dyetracev1.AccessList{Name: "no-tcp", Direction: "to-lport"},
	}
	explained := func(o Outcome, f *Flow, port string) *Explanation {
		return &Explanation{Point: 2, Outcome: o, Flow: f, Port: port}
	}
	const undelivered = "hv4/br-int from-tunnel → hv4/br-int to-instance"
	for _, tt := range []struct {
		name    string
		seen    string // 0 1 on hv1, 2 on hv4 and 3 as it leaves for the guest; the answer 4 on hv4, 5 6 on hv1
		impair  []func(*Evidence)
		explain *Explanation
		verdict Verdict
		kind    CauseKind
		segment string
		decides bool // something is asked, and the verdict hangs on it
	}{
		{name: "seen everywhere", seen: "0123456", verdict: Healthy},
		{name: "answered, and not delivered", seen: "01256", verdict: Unknown, kind: CauseImpostor, segment: "hv1/br-tun to-tunnel → hv4/br-int from-tunnel", decides: true},
		{name: "the answer left the destination's own port", seen: "012456", verdict: Healthy, kind: CauseSamples},
		{name: "whether it was delivered was not attested", seen: "01256", impair: []func(*Evidence){windowed("hv4", "br-int", notAfter)}, verdict: Healthy, kind: CauseSamples},
		{name: "samples were lost there", seen: "01256", impair: []func(*Evidence){windowed("hv4", "br-int", lossy)}, verdict: Healthy, kind: CauseSamples},
		{name: "a rule rejects it", seen: "01256", explain: explained(Dropped, reject, ""), verdict: PolicyDrop, kind: CauseSecurityRule, segment: undelivered},
		{name: "no rule does", seen: "01256", explain: explained(Delivered, nil, "tap-b4"), verdict: Unknown, kind: CauseImpostor},
		{name: "a flow drops it that is no rule", seen: "01256", explain: explained(Dropped, flow("br-int", 25, 50, "ip"), ""), verdict: Unknown, kind: CauseImpostor},
		{name: "not answered at all", seen: "012", verdict: Unknown, kind: CauseUnexplained, segment: undelivered, decides: true},
	} {
		p := pathOf(t, lab(t), "blue-1 blue-4")
		e := Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, tt.seen)}, Explanation: tt.explain}
		for _, f := range tt.impair {
			f(&e)
		}
		r := Judge(e)
		decides := r.Need != nil && r.Need.Decides
		if r.Verdict != tt.verdict || r.Kind != tt.kind || decides != tt.decides || tt.segment != "" && (r.Segment == nil || r.Segment.String() != tt.segment) {
			t.Errorf("%s: %s", tt.name, show(&r))
		}
		seen := 0
		for _, s := range r.Samples {
			if s.Seen {
				seen++
			}
		}
		if seen != len(tt.seen) {
			t.Errorf("%s: %d samples are shown, %d were taken", tt.name, seen, len(tt.seen))
		}
	}
}

// An answer that nothing but the tap of the source's guest saw, since it bears no ToS, may be a rule's: it proves
// nothing where the sample of the delivery may be missing for a fault of ours.
func TestUndeliveredBare(t *testing.T) {
	t.Parallel()
	p := pathOf(t, lab(t, taps), "blue-1 blue-4")
	reject := &Explanation{Point: 2, Outcome: Dropped, Flow: &Flow{Bridge: "br-int", Table: 44, Match: "tcp", Actions: "controller(userdata=00.00)",
		Owner: dyetracev1.FlowOwner_FLOW_OWNER_OVN, Stage: "ls_out_acl", ACL: &dyetracev1.AccessList{Name: "no-tcp", Direction: "to-lport"}}}
	for _, tt := range []struct {
		name    string
		seen    string // 3 as it leaves for the guest, 4 its answer as it comes, 7 at the source's tap
		impair  func(*Evidence)
		explain *Explanation
		verdict Verdict
		kind    CauseKind
	}{
		{name: "delivered", seen: "01237", verdict: Healthy, kind: CauseSamples},
		{name: "delivered, other samples were lost", seen: "01237", impair: windowed("hv4", "br-int", lossy), verdict: Healthy, kind: CauseUnseen},
		{name: "samples were lost", seen: "0127", impair: windowed("hv4", "br-int", lossy), verdict: Unknown, kind: CauseImpostor},
		{name: "not attested, and a rule rejects it by now", seen: "0127", impair: windowed("hv4", "br-int", notAfter), explain: reject, verdict: Unknown, kind: CauseImpostor},
		{name: "not delivered", seen: "0127", verdict: Unknown, kind: CauseImpostor},
		{name: "a rule rejects it", seen: "0127", explain: reject, verdict: PolicyDrop, kind: CauseSecurityRule},
		{name: "samples were lost, and it bears the ToS", seen: "012567", impair: windowed("hv4", "br-int", lossy), verdict: Healthy, kind: CauseSamples},
	} {
		e := Evidence{Path: p, Hooks: live(p), Attempts: []Attempt{probe(t, p, tt.seen)}, Explanation: tt.explain}
		if tt.impair != nil {
			tt.impair(&e)
		}
		if r := Judge(e); r.Verdict != tt.verdict || r.Kind != tt.kind {
			t.Errorf("%s: %s (want %v, %v)", tt.name, show(&r), tt.verdict, tt.kind)
		}
	}
}
