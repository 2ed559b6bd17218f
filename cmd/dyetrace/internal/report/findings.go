package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// Finding is one thing that explains why pairs are not healthy.
type Finding struct {
	// Kind is, say, flow, guest, tunnel, host or rack; which of the next ten are set depends on it.
	Kind     string        `json:"kind"`
	Summary  string        `json:"summary"`
	Host     string        `json:"host"`
	PeerHost string        `json:"peer_host"`
	Network  string        `json:"network"`
	Instance *InstanceName `json:"instance"`
	Other    *InstanceName `json:"other"`
	Flow     *Flow         `json:"flow"`
	// Rack and PeerRack are names that the inventory has, empty where there is none; Hosts and PeerHosts
	// are the hosts of each.
	Rack      string   `json:"rack"`
	PeerRack  string   `json:"peer_rack"`
	Hosts     []string `json:"hosts"`
	PeerHosts []string `json:"peer_hosts"`
	// Verdict, Cause, CauseKind and Command are those that most of its pairs have.
	Verdict   string `json:"verdict"`
	Cause     string `json:"cause"`
	CauseKind string `json:"cause_kind"`
	Command   string `json:"command"`
	// CommandHost is where to type it.
	CommandHost string `json:"command_host"`
	// Passed counts the packets, of both ways of all pairs judged, that passed it or should have.
	Passed uint32 `json:"passed"`
	// Alternatives explain the same pairs as well.
	Alternatives []string  `json:"alternatives"`
	Pairs        []PairRef `json:"pairs"`
}

// InstanceName names an instance.
type InstanceName struct {
	Name    string `json:"name"`
	Network string `json:"network"`
}

// PairRef names an ordered pair.
type PairRef struct {
	Src        string `json:"src"`
	SrcNetwork string `json:"src_network"`
	Dst        string `json:"dst"`
	DstNetwork string `json:"dst_network"`
}

func newFinding(f *dyetracev1.Finding) Finding {
	v := Finding{
		Kind: FindingKind(f.GetKind()), Summary: f.GetSummary(),
		Host: f.GetHost(), PeerHost: f.GetPeerHost(), Network: f.GetNetwork(),
		Instance: newInstanceName(f.GetInstance()), Other: newInstanceName(f.GetOther()), Flow: newFlow(f.GetFlow()),
		Rack: f.GetRack(), PeerRack: f.GetPeerRack(), Hosts: append([]string{}, f.GetHosts()...), PeerHosts: append([]string{}, f.GetPeerHosts()...),
		Verdict: Verdict(f.GetVerdict()), Cause: f.GetCause(), CauseKind: CauseKind(f.GetCauseKind()), Command: f.GetCommand(), CommandHost: f.GetCommandHost(),
		Passed: f.GetPassed(), Alternatives: append([]string{}, f.GetAlternatives()...), Pairs: []PairRef{},
	}
	for _, p := range f.GetPairs() {
		v.Pairs = append(v.Pairs, newPairRef(p.GetSrc(), p.GetDst()))
	}
	return v
}

func newPairRef(src, dst *dyetracev1.InstanceRef) PairRef {
	return PairRef{src.GetName(), src.GetNetwork(), dst.GetName(), dst.GetNetwork()}
}

func newInstanceName(i *dyetracev1.InstanceRef) *InstanceName {
	if i == nil {
		return nil
	}
	return &InstanceName{i.GetName(), i.GetNetwork()}
}

// maxFindings is how many are printed: who has more of them than fit a screen begins with the first.
const maxFindings = 8

// shared are the findings of more than one pair: one has nothing in common. Nor have those that are
// left over, which are returned for themselves.
func (c Check) shared() (findings, rest []Finding) {
	for _, f := range c.Findings {
		switch {
		case f.Kind == FindingKind(dyetracev1.FindingKind_FINDING_KIND_REST):
			rest = append(rest, f)
		case len(f.Pairs) > 1:
			findings = append(findings, f)
		}
	}
	return findings, rest
}

// InCommon names what pairs have in common, to tell whether it has changed.
func (c Check) InCommon() string {
	var all []string
	some, rest := c.shared()
	for _, f := range append(some, rest...) {
		all = append(all, f.Summary+": "+f.CauseKind)
	}
	return strings.Join(all, "; ")
}

// WriteCommon writes what pairs have in common for people, or that it is nothing any more.
func (c Check) WriteCommon(w io.Writer, color bool) error {
	t := &text{w: bufio.NewWriter(w), o: TextOptions{Color: color}}
	if some, _ := c.shared(); len(some) == 0 {
		t.printf("%s\n", t.paint(dim, "In common: nothing any more"))
	} else {
		t.findings(c)
	}
	return t.w.Flush()
}

// findings writes what pairs have in common.
func (t *text) findings(c Check) {
	some, rest := c.shared()
	if len(some) == 0 {
		return
	}
	t.printf("\n%s\n", t.paint(bold, "In common:"))
	for _, f := range some[:min(len(some), maxFindings)] {
		t.printf("  %s %s\n", t.paint(verdictColor(f.Verdict), "✗"), t.paint(bold, f.Summary))
		for _, a := range f.Alternatives {
			t.printf("    %s\n", t.paint(dim, "or "+a+", which explains the same"))
		}
		t.printf("    %s\n", f.Cause)
		names := make([]string, 0, 4)
		for _, p := range f.Pairs[:min(len(f.Pairs), 3)] {
			names = append(names, t.name(p.Src, p.SrcNetwork)+" → "+t.name(p.Dst, p.DstNetwork))
		}
		if len(f.Pairs) > 3 {
			names = append(names, "…")
		}
		t.printf("    %s\n", t.paint(dim, strings.Join(names, ", ")))
	}
	if more := len(some) - maxFindings; more > 0 {
		t.printf("  %s\n", t.paint(dim, fmt.Sprintf("and %d more (-o json)", more)))
	}
	for _, f := range rest {
		t.printf("  %s\n", t.paint(dim, f.Summary))
	}
}
