package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// breakKind is one way to break the lab, as `lab break -o json` lists them.
type breakKind struct {
	Name     string `json:"kind"`
	Cause    string `json:"cause"`
	Topology string `json:"topology"` // that has its default target
}

// truth is what a break declares of itself: which probes die, and where. It comes
// from the lab, which knows nothing of how Dyetrace finds out.
type truth struct {
	Scheme string     `json:"scheme"`
	IP     int        `json:"ip"`
	Causes []string   `json:"causes"`
	Fates  []fate     `json:"fates"`
	Unseen []reach    `json:"unseen"`
	Maybe  []fate     `json:"maybe"`
	Large  []fate     `json:"large"`
	Losses []lossFate `json:"losses"`
	// Changes are what each break did, in the order of Causes.
	Changes []change `json:"changes"`
}

// change is what a break did to the lab.
type change struct {
	Host    string        `json:"host"`
	Bridge  string        `json:"bridge"`
	Port    string        `json:"port"`
	Flows   []changedFlow `json:"flows"`
	Gone    []changedFlow `json:"gone"`
	Instead string        `json:"instead"`
}

type changedFlow struct {
	Table    int    `json:"table"`
	Priority int    `json:"priority"`
	Match    string `json:"match"`
}

// lossFate is a fate that some probes of its pairs have.
type lossFate struct {
	fate
	PerMille int `json:"per_mille"`
}

// reach is a set of pairs: each source with each destination.
type reach struct {
	Src []string `json:"src"`
	Dst []string `json:"dst"`
}

func holds(reaches []reach, p pair) bool {
	return slices.ContainsFunc(reaches, func(r reach) bool { return slices.Contains(r.Src, p.Src) && slices.Contains(r.Dst, p.Dst) })
}

// fatesOf are those of a pair, which may have one for each way.
func fatesOf(fates []fate, p pair) (of []fate) {
	for _, f := range fates {
		if slices.Contains(f.Src, p.Src) && slices.Contains(f.Dst, p.Dst) {
			of = append(of, f)
		}
	}
	return of
}

type fate struct {
	Src          []string `json:"src"`
	Dst          []string `json:"dst"`
	LastSeen     *point   `json:"last_seen"`
	FirstMissing point    `json:"first_missing"`
	Outcome      string   `json:"outcome"`
}

type point struct {
	Host   string `json:"host"`
	Bridge string `json:"bridge"`
	Kind   string `json:"kind"`
	Way    string `json:"way"`
}

func (p point) String() string { return fmt.Sprintf("%s/%s %s", p.Host, p.Bridge, p.Kind) }

// directions are the names that a check has for the lab's ways.
var directions = map[string]string{"request": "forward", "answer": "reply"}

// TestEveryBreakIsNamed breaks labs in every way that there is. It takes several labs, since it is
// the pace of probes at an instance that it waits for.
func TestEveryBreakIsNamed(t *testing.T) {
	t.Parallel()
	const labs = 4
	l := up(t, "--bare", "--topology", "six") // the kinds are the same everywhere
	var kinds []breakKind
	if err := json.Unmarshal([]byte(l.must("lab", "break", "-o", "json")), &kinds); err != nil {
		t.Fatal(err)
	}
	kinds = slices.DeleteFunc(kinds, func(k breakKind) bool {
		return k.Topology != "racks" || slices.Contains(bySome, k.Cause)
	})
	if len(kinds) < 21 {
		t.Fatalf("the lab offers %d kinds of break (want at least 21)", len(kinds))
	}
	for part := range labs {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			l := up(t)
			for i := part; i < len(kinds); i += labs {
				t.Run(kinds[i].Name, func(t *testing.T) { testBreak(t, l.with(t), kinds[i]) })
			}
		})
	}
}

func testBreak(t *testing.T, l *lab, kind breakKind) {
	defer func() {
		l.must("lab", "heal", kind.Name)
		l.awaitLinks(kind.Name, 0)
		checkHealthy(t, l.check(0, "--all"))
	}()
	if strings.HasPrefix(kind.Cause, "underlay") {
		tryUnderlay(t, l, "hv1", "hv2", "hv3", "hv4") // that nothing on a host keeps packets out is known where it was seen of late
	}
	l.must("lab", "break", kind.Name)
	l.awaitLinks(kind.Name, 1)
	probes := allTraffic
	if !slices.Contains(bySort, kind.Cause) {
		probes = []traffic{allTraffic[0], allTraffic[3]} // what it does to one it does to all
	}
	for _, p := range probes {
		t.Run(p.scheme+p.ip, func(t *testing.T) { testTruth(t, l.with(t), kind, p) })
	}
}

// awaitLinks returns when the controller has heard that the links of so many guests are down, where
// that is what a break does: Open vSwitch tells of it a moment after it is so, the later the busier
// the machine.
func (l *lab) awaitLinks(kind string, down int) {
	l.t.Helper()
	if kind != "guest-down" {
		return
	}
	eventually(l.t, fmt.Sprintf("%d links down", down), 20*time.Second, func() bool {
		return strings.Count(l.must("instances", "-o", "json"), `"link_state": "down"`) == down
	})
}

// bySome are the causes that do nothing to most probes, so that one check says little of them.
var bySome = []string{"loss", "twice"}

// bySort are the causes that may treat one sort of probe otherwise than another.
var bySort = []string{"none", "guest", "policy"}

// traffic is a scheme over a version of IP.
type traffic struct{ scheme, ip string }

var allTraffic = []traffic{{"tcp", "4"}, {"icmp", "4"}, {"tcp", "6"}, {"icmp", "6"}}

// testTruth checks all pairs by one kind of probe, and holds the verdicts against what the lab
// declares of such probes.
func testTruth(t *testing.T, l *lab, kind breakKind, probes traffic) {
	args := []string{"--scheme", probes.scheme, "--ip", probes.ip}
	var tr truth
	if err := json.Unmarshal([]byte(l.must(append([]string{"lab", "truth", "-o", "json"}, args...)...)), &tr); err != nil {
		t.Fatal(err)
	}
	if tr.Scheme != probes.scheme || fmt.Sprint(tr.IP) != probes.ip {
		t.Fatalf("asked for the truth on %v, got that on %s over IPv%d", probes, tr.Scheme, tr.IP)
	}
	args = append(args, "--all")
	switch kind.Cause {
	case "path-mtu":
		testLarge(t, l, tr, args)
		return
	case "underlay-member":
		testMember(t, l, tr, args, probes.finds())
		return
	}
	if len(tr.Fates) == 0 {
		if kind.Cause != "none" && !slices.Contains(spared[kind.Name], probes.scheme) {
			t.Fatalf("%s declares no pair that fails where a sampling point could tell", kind.Name)
		}
		if kind.Name == "port-open" && probes.scheme == "tcp" && datapath() == "system" {
			checkRemembered(t, l.check(anyCode, args...), "green-2")
			args = []string{"--scheme", "auto", "--ip", probes.ip, "--all"}
		}
		checkHealthy(t, l.check(0, args...))
		return
	}
	c := l.check(1, args...)
	if datapath() == "system" && slices.ContainsFunc(c.Pairs, func(p pair) bool { return p.CauseKind == "conntrack" }) {
		// By tcp alone the kernel may take a probe for one of the opposite pair's before (docs/schemes.md); later it does not.
		c = l.check(1, args...)
	}
	if strings.HasPrefix(kind.Cause, "underlay") && slices.ContainsFunc(c.Pairs, func(p pair) bool { return p.CauseKind == "between-hosts" }) {
		t.Logf("at first, where an agent that stands still is not waited for: %v", c.Pairs)
		c = l.check(1, args...)
	}
	checkTruth(t, c, tr, delivered(kind.Name), probes.finds())
	checkKinds(t, c, kind.kinds())
	for _, p := range c.Pairs {
		// No sampling point lies between the last switch and the guest, but that
		// a port has no link can be known.
		if kind.Name == "guest-down" && tr.unseen(p) && p.Verdict != "silent" {
			t.Errorf("%v (want silent: the source's link is down)", p)
		}
		if p.Scheme != probes.scheme && p.Probes > 0 && p.Scheme != "" {
			t.Errorf("%v: by %s (want %s, as asked)", p, p.Scheme, probes.scheme)
		}
	}
}

// checkRemembered wants a check by tcp to hold all pairs, each healthy, or from a guest whose port is open
// and unknown: the kernel remembers its SYN-ACK for ten seconds after the probe was withdrawn, and drops its SYNs to
// whom it answered (docs/schemes.md).
func checkRemembered(t *testing.T, c check, guest string) {
	t.Helper()
	if len(c.Pairs) != 58 {
		t.Errorf("%d pairs (want 58)", len(c.Pairs))
	}
	for _, p := range c.Pairs {
		if p.Verdict != "healthy" && (p.Src != guest || p.Verdict != "unknown" || p.CauseKind != "conntrack") {
			t.Errorf("%v (want healthy, or from %s and unknown for conntrack)", p, guest)
		}
	}
}

// tryUnderlay has each of these hosts try every other one. On a busy machine a packet may be lost.
func tryUnderlay(t *testing.T, l *lab, hosts ...string) {
	t.Helper()
	for _, a := range hosts {
		for _, b := range hosts {
			if a != b {
				if r := l.dyetrace("underlay", a, b); r.code > 1 || !strings.Contains(r.stdout, "there:") {
					t.Errorf("underlay %s %s: exit code %d\n%s%s", a, b, r.code, r.stdout, r.stderr)
				}
			}
		}
	}
}

// testLarge holds against the truth what is said of pairs whose large packets are lost: nothing to who
// does not ask, and their path MTU to who does.
func testLarge(t *testing.T, l *lab, tr truth, args []string) {
	if len(tr.Large) == 0 {
		t.Fatal("the break declares no pair whose large packets are lost")
	}
	checkHealthy(t, l.check(0, args...))
	for _, p := range l.check(1, append(args, "--mtu")...).Pairs {
		switch hit := len(fatesOf(tr.Large, p)) > 0; {
		case !hit && p.Verdict != "healthy":
			t.Errorf("%v; large packets of this pair pass", p)
		case hit && (p.Verdict != "faulty" || p.CauseKind != "path-mtu"):
			t.Errorf("%v (want faulty, by its path MTU)", p)
		case hit && (p.Segment == nil || *p.Segment != "hv1/br-tun to-tunnel → hv4/br-tun from-tunnel" || p.Host != "hv1" ||
			!strings.Contains(p.Cause, "up to 1400 bytes pass")):
			t.Errorf("%v (want it lost between hv1 and hv4, and 1400 bytes to pass)", p)
		}
	}
}

// testMember holds against the truth what is said while one of two ways is a black hole: pairs that it
// does not take are healthy, and it is named for the others.
func testMember(t *testing.T, l *lab, tr truth, args []string, finds bool) {
	if len(tr.Maybe) == 0 {
		t.Fatal("the break declares no pair that may be hit")
	}
	c := l.check(anyCode, args...)
	for _, p := range c.Pairs {
		switch may := fatesOf(tr.Maybe, p); {
		case p.Verdict == "healthy":
		case may == nil:
			t.Errorf("%v; this pair is not broken", p)
		case finds && p.Verdict == "silent" && p.CauseKind == "guest-silent":
		case p.Verdict != "faulty" || p.CauseKind != "underlay-member":
			t.Errorf("%v (want healthy, or faulty by one of several ways)", p)
		case !slices.ContainsFunc(may, func(f fate) bool { return f.holds(p) }):
			t.Errorf("%v (want it lost where %v)", p, may)
		}
	}
	// Whichever pairs it takes, a look at the network shows it: all 32 ports on one side happens once in 2^31.
	r := l.dyetrace("underlay", "hv1", "hv3")
	if r.code != 1 || !strings.Contains(r.stdout, "of 32 source ports") || !strings.Contains(r.stdout, "lose everything") {
		t.Errorf("underlay hv1 hv3: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// spared are the schemes that a break does nothing to.
var spared = map[string][]string{"guest-drops-tcp": {"icmp"}, "security-rule-port": {"icmp"}}

// finds says that guests must find each other by the underlay, as no bridge answers for them
// (overlay.Spec.Answers): one that got a probe may not know whom to answer.
func (tr traffic) finds() bool { return datapath() == "system" && tr.ip == "6" }

// checkTruth holds the verdict on every pair against what the break declared.
func checkTruth(t *testing.T, c check, tr truth, delivered, finds bool) {
	t.Helper()
	failing := 0
	for _, p := range c.Pairs {
		i := slices.IndexFunc(tr.Fates, func(f fate) bool { return slices.Contains(f.Src, p.Src) && slices.Contains(f.Dst, p.Dst) })
		if i < 0 {
			switch {
			case p.Verdict == "healthy":
			case !tr.unseen(p):
				t.Errorf("%v; this pair is not broken", p)
			case finds && p.CauseKind == "guest-silent":
			case p.Segment == nil || !strings.HasSuffix(*p.Segment, "to-instance"):
				// The lab knows of no point at the taps.
				t.Errorf("%v (want the last segment, to the source's tap)", p)
			}
			continue
		}
		failing++
		checkFate(t, p, tr.Fates[i].atTap(delivered))
	}
	declared := 0
	for _, f := range tr.Fates {
		for _, src := range f.Src {
			for _, dst := range f.Dst {
				if src != dst {
					declared++
				}
			}
		}
	}
	if failing != declared {
		t.Errorf("%d pairs of those declared broken were checked (want %d)", failing, declared)
	}
}

// delivered says that what a break kills has been given to the guest. A guest whose interface is down leaves its
// port without carrier, to which the kernel's datapath gives nothing (do_output of net/openvswitch/actions.c).
func delivered(kind string) bool {
	switch kind {
	case "guest-down":
		return datapath() == "netdev"
	case "guest-firewall", "guest-drops-tcp", "duplicate-mac":
		return true
	}
	return false
}

// String is the segment in which it ends, as verdicts have it.
func (f fate) String() string {
	last := "injection"
	if f.LastSeen != nil {
		last = f.LastSeen.String()
	}
	return last + " → " + f.FirstMissing.String()
}

// holds says that a verdict has a pair fail where the fate does.
func (f fate) holds(p pair) bool {
	return p.Segment != nil && *p.Segment == f.String()
}

// atTap puts the sampling point at the destination's tap into a fate that ends
// between the destination's bridge and its answer; the lab knows of none there.
func (f fate) atTap(delivered bool) fate {
	if f.LastSeen == nil || f.LastSeen.Way != "request" || f.FirstMissing.Way != "answer" {
		return f
	}
	tap := point{f.FirstMissing.Host, f.FirstMissing.Bridge, "to-instance", "request"}
	if delivered {
		f.LastSeen = &tap
	} else {
		f.FirstMissing = tap
	}
	return f
}

func (tr truth) unseen(p pair) bool { return holds(tr.Unseen, p) }

// kindsOf are the kinds of cause by which a verdict may call what the lab calls a cause: one each, but for
// what is misdirected, where causeOf says which.
var kindsOf = map[string][]string{
	"flow": {"flow"}, "policy": {"security-rule"}, "tunnel": {"tunnel"}, "stale-vtep": {"stale-vtep"},
	"underlay": {"underlay"}, "underlay-protocol": {"entrypoint"}, "underlay-member": {"underlay-member"}, "path-mtu": {"path-mtu"},
	"port": {"port"}, "misdirected": {"misdirected", "flow"}, "guest": {"guest-silent"},
}

// kindsOfBreak are those of breaks whose cause the lab has a wider word for.
var kindsOfBreak = map[string][]string{"wrong-vni": {"vni"}, "guest-down": {"guest-down"}}

// kinds are the kinds of cause by which verdicts may call this break.
func (k breakKind) kinds() []string {
	if kinds, ok := kindsOfBreak[k.Name]; ok {
		return kinds
	}
	return kindsOf[k.Cause]
}

// checkKinds wants every pair that is not healthy to name the cause.
func checkKinds(t *testing.T, c check, kinds []string) {
	t.Helper()
	for _, p := range c.Pairs {
		if p.Verdict != "healthy" && !slices.Contains(kinds, p.CauseKind) {
			t.Errorf("%v (want a cause of kind %s)", p, strings.Join(kinds, " or "))
		}
		if p.Command == "" && (p.Verdict == "faulty" || p.Verdict == "silent" || p.Verdict == "policy") {
			t.Errorf("%v: no command shows it", p)
		}
	}
}

// checkFate wants the pair to have failed in the right segment.
func checkFate(t *testing.T, p pair, f fate) {
	t.Helper()
	if p.Verdict != f.Outcome {
		t.Errorf("%v (want %s)", p, f.Outcome)
	}
	if p.Segment == nil || p.Cause == "" || p.Host == "" {
		t.Errorf("%v: segment, cause and host must be given", p)
		return
	}
	want := "→ " + f.FirstMissing.String()
	if f.LastSeen == nil {
		want = f.FirstMissing.String()
	} else {
		want = f.LastSeen.String() + " " + want
	}
	if !strings.Contains(*p.Segment, want) {
		t.Errorf("%v (want segment %s)", p, want)
	}
	for _, s := range p.Samples {
		at := point{s.Host, s.Bridge, s.Kind, ""}
		same := func(q *point) bool {
			return q != nil && at.String() == q.String() && s.Direction == directions[q.Way]
		}
		if same(f.LastSeen) && !s.Seen {
			t.Errorf("%v: %v (%s) should have been seen", p, at, s.Direction)
		}
		if same(&f.FirstMissing) && s.Seen {
			t.Errorf("%v: %v (%s) should not have been seen", p, at, s.Direction)
		}
	}
}
