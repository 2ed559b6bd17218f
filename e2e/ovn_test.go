package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// ovnPairs are the pairs of the lab with OVN over each IP version.
const ovnPairs = 44

// TestOVN checks a lab whose network controller is OVN in every way that there is.
func TestOVN(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn")
	for _, args := range [][]string{
		{"--all"}, {"--all", "--ip", "6"},
		{"--all", "--scheme", "tcp"}, {"--all", "--scheme", "tcp", "--ip", "6"},
		{"--all", "--scheme", "icmp"}, {"--all", "--scheme", "icmp", "--ip", "6"},
		{"--all", "--no-touch"}, {"--all", "--no-touch", "--ip", "6"},
	} {
		checkOVNHealthy(t, l.check(0, args...))
	}
}

// checkOVNHealthy wants every pair to be healthy, and seen at every point.
func checkOVNHealthy(t *testing.T, c check) {
	t.Helper()
	if c.Counts["healthy"] != ovnPairs || len(c.Pairs) != ovnPairs {
		t.Errorf("counts %v, %d pairs (want %d healthy)", c.Counts, len(c.Pairs), ovnPairs)
	}
	for _, p := range c.Pairs {
		if p.Verdict != "healthy" {
			t.Errorf("%v (want healthy)", p)
		}
		if i := slices.IndexFunc(p.Samples, func(s sample) bool { return !s.Seen }); i >= 0 {
			t.Errorf("%v: point %d not seen", p, i)
		}
	}
}

// ovnBreaks are the ways to break the lab with OVN, each with the kinds of cause that its verdicts may
// have, and with the stages of OVN's pipeline of which one drops it.
var ovnBreaks = []struct {
	kind, target string
	causes       []string
	stages       []string
}{
	{"acl-drop", "", []string{"security-rule"}, []string{"ls_out_acl"}},
	{"acl-drop-tcp", "", []string{"security-rule"}, []string{"ls_out_acl"}},
	{"acl-drop-out", "", []string{"security-rule"}, []string{"ls_in_acl"}},
	{"lport-gone", "", []string{"flow"}, nil}, // what it sends itself, no flow of OVN's is for
	{"lport-address", "", []string{"flow"}, []string{"ls_in_apply_port_sec", "ls_out_apply_port_sec"}},
	{"lport-disabled", "", []string{"flow"}, []string{"ls_in_l2_lkup", "ls_in_apply_port_sec"}},
	{"lport-unbound", "", []string{"flow"}, nil},
	{"route-discarded", "", []string{"flow"}, []string{"lr_in_ip_routing"}},
	{"route-missing", "", []string{"flow"}, []string{"lr_in_ip_routing", "ls_in_l2_unknown"}},
	{"encap-wrong", "", []string{"tunnel"}, nil},
	{"chassis-stale", "", []string{"stale-vtep"}, nil},
	{"ovn-stopped", "", nil, nil},
	{"foreign-drop", "", []string{"flow"}, nil},
	{"underlay-down", "hv2", []string{"between-hosts", "underlay"}, nil},
	{"underlay-acl", "hv1:hv3", []string{"between-hosts", "underlay"}, nil},
	{"guest-down", "front-3", []string{"guest-down"}, nil},
	{"guest-firewall", "back-2", []string{"guest-silent"}, nil},
}

// TestOVNBreaks holds verdict, segment and cause against the truth that each break of OVN declares.
func TestOVNBreaks(t *testing.T) {
	t.Parallel()
	const labs = 2
	for part := range labs {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			l := up(t, "--topology", "ovn")
			for i := part; i < len(ovnBreaks); i += labs {
				t.Run(ovnBreaks[i].kind, func(t *testing.T) { testOVNBreak(t, l.with(t), i) })
			}
		})
	}
}

func testOVNBreak(t *testing.T, l *lab, i int) {
	b := ovnBreaks[i]
	args := []string{"lab", "break", b.kind}
	if b.target != "" {
		args = append(args, b.target)
	}
	l.must(args...)
	defer func() {
		l.must("lab", "heal", b.kind)
		checkOVNHealthy(t, l.check(0, "--all"))
	}()
	probes := allTraffic
	if i%2 == 1 { // over both versions, and by both schemes, but not all four
		probes = []traffic{allTraffic[0], allTraffic[3]}
	}
	for _, p := range probes {
		args := []string{"--scheme", p.scheme, "--ip", p.ip}
		var tr truth
		if err := json.Unmarshal([]byte(l.must(append([]string{"lab", "truth", "-o", "json"}, args...)...)), &tr); err != nil {
			t.Fatal(err)
		}
		if len(tr.Fates) == 0 {
			checkOVNHealthy(t, l.check(0, append(args, "--all")...))
			continue
		}
		c := l.check(1, append(args, "--all")...)
		checkTruth(t, c, tr, strings.HasPrefix(b.kind, "guest"))
		checkOVNCauses(t, c, tr, i)
	}
}

// checkOVNCauses wants causes to be of the right kind, and flows of OVN's to have a name.
func checkOVNCauses(t *testing.T, c check, tr truth, i int) {
	t.Helper()
	b := ovnBreaks[i]
	for _, p := range c.Pairs {
		if p.Verdict == "healthy" || tr.unseen(p) {
			continue
		}
		if !slices.Contains(b.causes, p.CauseKind) {
			t.Errorf("%v: cause of kind %q (want one of %q)", p, p.CauseKind, b.causes)
		}
		if p.Command == "" && p.Verdict != "silent" {
			t.Errorf("%v: no command that shows it", p)
		}
		switch f := p.Flow; {
		case b.stages == nil || f == nil:
		case !slices.Contains(b.stages, f.Stage) || f.Owner != "ovn" || f.LogicalFlow == nil || f.LogicalFlow.Datapath == "":
			t.Errorf("%v: flow %+v (want OVN's, of a stage of %q, with its logical flow)", p, *f, b.stages)
		case p.Verdict == "policy" && (f.ACL == nil || f.ACL.Hint == "" || f.ACL.Direction == ""):
			t.Errorf("%v: ACL %+v (want its hint and direction)", p, f.ACL)
		}
		if b.stages != nil && p.Flow == nil {
			t.Errorf("%v: no flow", p)
		}
		if b.kind == "foreign-drop" && (p.Flow == nil || p.Flow.Owner != "") {
			t.Errorf("%v: flow %+v (want it to be nobody's)", p, p.Flow)
		}
	}
}
