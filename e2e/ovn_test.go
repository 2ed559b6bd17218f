package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
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
	{"underlay-down", "hv2", []string{"underlay"}, nil},
	{"underlay-acl", "hv1:hv3", []string{"underlay"}, nil},
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
	if slices.Contains(b.causes, "underlay") {
		tryUnderlay(t, l, "hv1", "hv2", "hv3") // that nothing on a host keeps packets out is known where it was seen of late
	}
	l.must(args...)
	l.awaitLinks(b.kind, 1)
	defer func() {
		l.must("lab", "heal", b.kind)
		l.awaitLinks(b.kind, 0)
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
		checkTruth(t, c, tr, delivered(b.kind), false)
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

// TestOVNLives has OVN do what it does by itself and what operators have it do. Hooks come back, runs
// meanwhile are never wrong, and OVN's own state stays as it is.
func TestOVNLives(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn")
	before := l.ovnState("hv1")
	for _, tt := range []struct {
		name string
		do   func()
	}{
		{"recompute", func() { l.node("hv1", "ovn-appctl", "-t", "ovn-controller", "recompute") }},
		{"ovn-controller restarted", func() {
			l.must("lab", "break", "ovn-stopped", "hv1")
			l.must("lab", "heal", "ovn-stopped")
		}},
		{"OpenFlow connection anew", func() { l.node("hv1", "ovs-ofctl", "del-flows", "br-int") }},
		{"southbound reconnect", func() {
			// Which addresses a lab of containers has depends on what others there are.
			remote := strings.TrimSpace(l.node("hv1", "ovs-vsctl", "get", "Open_vSwitch", ".", "external_ids:ovn-remote"))
			nobody := strings.Replace(remote, ":6642", ":1", 1)
			if nobody == remote {
				t.Fatalf("ovn-remote is %s (want port 6642)", remote)
			}
			l.node("hv1", "ovs-vsctl", "set", "Open_vSwitch", ".", "external_ids:ovn-remote="+nobody)
			l.node("hv1", "ovs-vsctl", "set", "Open_vSwitch", ".", "external_ids:ovn-remote="+remote)
		}},
		{"logical changes", func() {
			for i := range 5 {
				name := fmt.Sprintf("other-%d", i)
				l.node("central", "ovn-nbctl", "ls-add", name, "--", "lsp-add", name, "port-of-"+name, "--",
					"acl-add", "front", "from-lport", fmt.Sprint(1500+i), "udp && ip.ttl == 3", "drop")
				l.neverWrong()
			}
			for i := range 5 {
				l.node("central", "ovn-nbctl", "ls-del", fmt.Sprintf("other-%d", i), "--",
					"acl-del", "front", "from-lport", fmt.Sprint(1500+i), "udp && ip.ttl == 3")
			}
			l.node("central", "ovn-nbctl", "--timeout=30", "--wait=hv", "sync")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := l.with(t)
			tt.do()
			if tt.name == "OpenFlow connection anew" {
				// OVN does not look at its flows again by itself.
				l.must("lab", "break", "ovn-stopped", "hv1")
				l.must("lab", "heal", "ovn-stopped")
			}
			l.neverWrong()
			eventually(t, tt.name+": all pairs healthy again", time.Minute, l.allSeen)
			checkOVNHealthy(t, l.check(0, "--all"))
		})
	}
	if after := l.ovnState("hv1"); after != before {
		t.Errorf("OVN's state on hv1 has changed:\n%s\nbefore:\n%s", after, before)
	}
	l.stop("hv1", "agent", "TERM")
	if ours := strings.Count(l.node("hv1", "ovs-ofctl", "--no-stats", "dump-flows", "br-int"), "cookie=0x44796554"); ours != 0 {
		t.Errorf("the agent left %d flows on hv1", ours)
	}
	if after := l.ovnState("hv1"); after != before {
		t.Errorf("OVN's state on hv1 has changed since the agent ended:\n%s\nbefore:\n%s", after, before)
	}
}

// ovnState is what OVN has on a host, ours aside: flows, groups, meters, ports, settings, and what
// br-int has learned, which is nothing.
func (l *lab) ovnState(host string) string {
	l.t.Helper()
	var b strings.Builder
	for _, kind := range []string{"dump-flows --no-stats", "dump-groups", "dump-meters"} {
		verb, option, _ := strings.Cut(kind, " ")
		argv := []string{"ovs-ofctl", "-O", "OpenFlow15"}
		if option != "" {
			argv = append(argv, option)
		}
		var lines []string
		for line := range strings.Lines(l.node(host, append(argv, verb, "br-int")...)) {
			if !strings.Contains(line, "cookie=0x44796554") && !strings.Contains(line, "xid=") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, "\n") + "\n")
	}
	b.WriteString(l.node(host, "ovs-appctl", "fdb/show", "br-int"))
	b.WriteString(dyePort.ReplaceAllString(l.node(host, "ovs-vsctl", "list-ports", "br-int"), ""))
	b.WriteString(l.node(host, "ovs-vsctl", "get", "Open_vSwitch", ".", "external_ids"))
	b.WriteString(l.node(host, "ovs-vsctl", "--columns=external_ids,fail_mode,controller,mirrors", "list", "Bridge", "br-int"))
	return nbCfg.ReplaceAllString(b.String(), "")
}

// nbCfg is when ovn-controller started, how far it has come, and when.
var nbCfg = regexp.MustCompile(`ovn-(nb-cfg|nb-cfg-ts|startup-ts)="\d+"`)

// TestOVNReject has a rule reject what another would drop: ovn-controller then answers in the
// destination's name, which must not pass for its own answer.
func TestOVNReject(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn")
	tap := l.node("hv3", "sh", "-c", "ovs-vsctl --bare --columns=external_ids find Interface 'external_ids:attached-mac=\"fa:16:3e:00:01:0e\"'")
	_, id, _ := strings.Cut(tap, "iface-id=")
	id, _, _ = strings.Cut(strings.Trim(id, `"`), " ")
	match := fmt.Sprintf("outport == %q && ip", strings.Trim(id, `"`))
	l.node("central", "ovn-nbctl", "--timeout=30", "--wait=hv", "acl-add", "front", "to-lport", "2000", match, "reject")
	for _, p := range allTraffic {
		for _, pair := range l.check(1, "--all", "--scheme", p.scheme, "--ip", p.ip).Pairs {
			if want := map[bool]string{true: "policy", false: "healthy"}[pair.Dst == "front-4"]; pair.Verdict != want {
				t.Errorf("%v, by %v (want %s)", pair, p, want)
			}
		}
	}
	for _, pair := range l.check(1, "--all").Pairs {
		if want := map[bool]string{true: "policy", false: "healthy"}[pair.Dst == "front-4"]; pair.Verdict != want {
			t.Errorf("%v (want %s)", pair, want)
		}
	}
}

// TestOVNStale has ACLs deleted while a host's ovn-controller does not run, so that their flows go on dropping: these are
// OVN's still, and no rule's any more. Of one that is logged, its flow tells what it was.
func TestOVNStale(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn")
	for _, tt := range []struct {
		acl, verdict string
		code         int
	}{{"acl-drop", "policy", 1}, {"acl-drop-tcp", "unknown", 3}} {
		l.must("lab", "break", tt.acl, "front-4")
		l.must("lab", "break", "ovn-stopped", "hv3")
		args := []string{"front-1", "front-4", "--scheme", "tcp"}
		for _, p := range l.check(1, args...).Pairs {
			if p.Verdict != "policy" {
				t.Errorf("%s: %v (want policy)", tt.acl, p)
			}
		}
		l.node("central", "ovn-nbctl", "--timeout=30", "--wait=sb", "acl-del", "front", "to-lport")
		for _, p := range l.check(tt.code, args...).Pairs {
			if f := p.Flow; p.Verdict != tt.verdict || f == nil || f.Owner != "ovn" || !strings.Contains(p.Cause, "no row of it any more: ovn-controller here is behind") {
				t.Errorf("%s: %v, flow %+v (want %s, with OVN's flow that is stale)", tt.acl, p, f, tt.verdict)
			}
		}
		l.must("lab", "heal", "ovn-stopped")
		l.must("lab", "heal", tt.acl)
		eventually(t, "the flow to go", 20*time.Second, func() bool { return l.dyetrace("check", "front-1", "front-4").code == 0 })
	}
}

// TestOVNTrace has OVN's central node do what reports say shows the fault there: ovn-trace drops a request by the very row
// that the host drops it by, and has an answer pass which is lost between hosts, though an ACL drops what else is for its
// destination.
func TestOVNTrace(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn")
	for _, tt := range []struct {
		breaks   [][]string
		from, to string
		states   string
		want     func(p pair) string
	}{
		{[][]string{{"acl-drop-out", "front-1"}}, "front-1", "front-4", "--ct=new", droppedBy},
		{[][]string{{"acl-drop", "front-2"}}, "front-1", "front-2", "--ct=new --ct=new", droppedBy}, // of one host
		{[][]string{{"acl-drop", "front-1"}, {"underlay-acl", "hv3:hv1"}}, "front-1", "front-4", "--ct=est,rpl --ct=est,rpl",
			func(p pair) string { return `output to "d74bc6"` }},
		{[][]string{{"underlay-acl", "hv1:hv3"}}, "front-1", "back-3", "--ct=new --ct=new", func(p pair) string { return `output to "9dfb60"` }},
	} {
		for _, b := range tt.breaks {
			l.must(append([]string{"lab", "break"}, b...)...)
		}
		for _, p := range l.check(1, tt.from, tt.to, "--scheme", "tcp").Pairs {
			if !strings.HasPrefix(p.LogicalCommand, "ovn-trace "+tt.states+" 'inport") {
				t.Errorf("%v: %s (want %s)", p, p.LogicalCommand, tt.states)
				continue
			}
			if said := l.node("central", "sh", "-c", p.LogicalCommand); !strings.Contains(said, tt.want(p)) || strings.Contains(said, "output to") == (p.Verdict == "policy") {
				t.Errorf("%v: by %s\n%s\nwant %s", p, p.LogicalCommand, said, tt.want(p))
			}
		}
		for _, b := range tt.breaks {
			l.must("lab", "heal", b[0])
		}
	}
}

// droppedBy is how ovn-trace names the row that a flow was made from.
func droppedBy(p pair) string {
	if p.Flow == nil || p.Flow.LogicalFlow == nil {
		return "a logical flow"
	}
	return "uuid " + p.Flow.LogicalFlow.UUID[:8]
}

// TestOVNUnmarked has no port marked with a MAC as Neutron marks them: by none, as plain OVN, where the inventory names
// ports, and as OVN-Kubernetes does. What becomes of packets that come by Geneve hangs on the logical port that they are for.
func TestOVNUnmarked(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn")
	file := filepath.Join(stateDir(l.name), "instances.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	macs := map[string]string{} // by the port
	for _, host := range []string{"hv1", "hv2", "hv3"} {
		for _, m := range markedPort.FindAllStringSubmatch(l.node(host, "ovs-vsctl", "--columns=external_ids,name", "list", "Interface"), -1) {
			l.node(host, "ovs-vsctl", "remove", "Interface", m[2], "external_ids", "attached-mac")
			text = []byte(onHost(string(text), host, m[1], m[2]))
			macs[host+" "+m[2]] = m[1]
		}
	}
	if len(macs) != 9 {
		t.Fatalf("marked ports: %v (want 9)", macs)
	}
	l.file("instances.yaml", text, 0o600)
	l.node("controller", "kill", "-HUP", l.daemon("controller", "serve"))
	eventually(t, "the inventory's ports", 20*time.Second, func() bool { return l.dyetrace("check", "--all").code == 0 })
	for _, how := range []string{"no port is marked", "as OVN-Kubernetes marks them"} {
		for _, i := range []int{0, 16} { // an ACL, a guest's firewall
			t.Run(how+"/"+ovnBreaks[i].kind, func(t *testing.T) { testOVNBreak(t, l.with(t), i) })
		}
		for at, mac := range macs {
			host, port, _ := strings.Cut(at, " ")
			l.node(host, "ovs-vsctl", "set", "Interface", port, `external_ids:attached_mac="`+mac+`"`)
		}
		l.file("instances.yaml", portOfFile.ReplaceAll(text, nil), 0o600)
		l.node("controller", "kill", "-HUP", l.daemon("controller", "serve"))
		eventually(t, "the marked ports", 20*time.Second, func() bool { return l.dyetrace("check", "--all").code == 0 })
	}
}

var (
	markedPort = regexp.MustCompile(`attached-mac="([^"]*)".*\nname *: "?([^"\n]*)"?`)
	portOfFile = regexp.MustCompile(`(?m)^ *port: .*\n`)
)

// onHost has the inventory name the port of the instance on a host that has a MAC.
func onHost(inventory, host, mac, port string) string {
	instances := strings.Split(inventory, "    - name: ")
	for i, text := range instances {
		if strings.Contains(text, "mac: "+mac) && strings.Contains(text, "      host: "+host+"\n") {
			instances[i] = strings.Replace(text, "      host: ", "      port: "+port+"\n      host: ", 1)
		}
	}
	return strings.Join(instances, "    - name: ")
}

// TestOVNTranslates has OVN commit connections with a translation, as it does by itself. The userspace
// datapath of Open vSwitch 3.1 would not survive probes by TCP then, and there must be none; the kernel's does.
func TestOVNTranslates(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn")
	// With no agent there, since one learns of it up to 10 s late.
	for _, host := range []string{"hv1", "hv2", "hv3"} {
		l.stop(host, "agent", "TERM")
		l.node(host, "sh", "-c", "ovs-vsctl set Datapath $(ovs-vsctl get Open_vSwitch . datapaths:"+datapath()+") capabilities:ct_zero_snat=true")
		eventually(t, host+": flows that translate", 20*time.Second, func() bool {
			return strings.Contains(l.node(host, "ovs-ofctl", "dump-flows", "br-int"), "nat(src)")
		})
		l.daemonise(host, "agent", l.configFile(host))
	}
	eventually(t, "all agents to be back", time.Minute, func() bool { return l.dyetrace("check", "--all", "--scheme", "icmp").code == 0 })
	for range 3 {
		if datapath() == "system" {
			checkOVNHealthy(t, l.check(0, "--all", "--scheme", "tcp"))
			checkOVNHealthy(t, l.check(0, "--all", "--scheme", "icmp"))
			continue
		}
		for _, p := range l.check(3, "--all", "--scheme", "tcp").Pairs { // nobody could look
			if p.Verdict != "unknown" || !strings.Contains(p.Cause, "icmp is safe") {
				t.Errorf("%v (want unknown, with the reason)", p)
			}
		}
		checkOVNHealthy(t, l.check(0, "--all", "--scheme", "icmp"))
	}
	c := l.check(0, "--all") // by whatever scheme does
	checkOVNHealthy(t, c)
	for _, p := range c.Pairs {
		if datapath() == "system" {
			if p.Scheme != "tcp" {
				t.Errorf("%v: by %s, since %q (want tcp)", p, p.Scheme, p.Reason)
			}
			continue
		}
		if p.Scheme != "icmp" || !strings.Contains(p.Reason, "tcp") {
			t.Errorf("%v: by %s, since %q (want icmp, with the reason)", p, p.Scheme, p.Reason)
		}
	}
	for _, host := range []string{"hv1", "hv2", "hv3"} {
		l.node(host, "ovs-appctl", "version")
	}
}
