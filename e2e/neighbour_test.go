package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// daemon returns the pid, as the node counts, of the node's dyetrace VERB; "" if
// none runs.
func (l *lab) daemon(node, verb string) string {
	l.t.Helper()
	out := l.node(node, "sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline 2>/dev/null | sed "s|^|${p#/proc/} |"; echo; done`)
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) >= 4 && strings.HasSuffix(f[1], "dyetrace") && f[2] == verb && f[3] == "--config" {
			return f[0]
		}
	}
	return ""
}

// stop ends a daemon of a node by a signal and waits until it is gone.
func (l *lab) stop(node, verb, signal string) {
	l.t.Helper()
	pid := l.daemon(node, verb)
	if pid == "" {
		l.t.Fatalf("%s: no dyetrace %s runs", node, verb)
	}
	l.node(node, "kill", "-"+signal, pid)
	eventually(l.t, node+": end of dyetrace "+verb, 15*time.Second, func() bool { return l.daemon(node, verb) == "" })
}

// run starts a daemon of a node; it ends with the test.
func (l *lab) daemonise(node, verb, config string) {
	l.t.Helper()
	log, err := os.OpenFile(filepath.Join(stateDir(l.name), "log", node+"-"+verb+"-again.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, binary, "lab", "exec", "--lab", l.name, node, "--", "dyetrace", verb, "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
		log.Close()
	})
}

func (l *lab) configFile(node string) string { return filepath.Join(stateDir(l.name), node+".yaml") }

var runSection = regexp.MustCompile(`(?m)^run:.*\n(?:[ \t].*\n)*`)

// configWith returns a copy of the controller's configuration with one line more.
func (l *lab) configWith(line string) string {
	l.t.Helper()
	text, err := os.ReadFile(l.configFile("controller"))
	if err != nil {
		l.t.Fatal(err)
	}
	// A key twice is an error, and on slow machines the lab has set some of the section already.
	if key, _, _ := strings.Cut(line, " "); key == "run:" {
		text = runSection.ReplaceAll(text, nil)
	}
	return l.file("controller-with.yaml", append(text, "\n"+line+"\n"...), 0o600)
}

// file writes a file that all nodes of the lab see, and returns its path. Of the host's files there
// are no others that they do, whatever they are made of.
func (l *lab) file(name string, content []byte, mode os.FileMode) string {
	l.t.Helper()
	path := filepath.Join(stateDir(l.name), name)
	if err := os.WriteFile(path, content, mode); err != nil {
		l.t.Fatal(err)
	}
	return path
}

// self puts this very test binary where nodes see it, and returns its path.
func (l *lab) self() string {
	l.t.Helper()
	path := filepath.Join(stateDir(l.name), "e2e.test")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	own, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	content, err := os.ReadFile(own)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.file("e2e.test", content, 0o755)
}

// ready waits until every host has an agent with live hooks.
func (l *lab) ready() {
	l.t.Helper()
	l.must("status", "--wait", patient(30*time.Second).String())
}

var ourCookie = regexp.MustCompile(`cookie=0x44796554[0-9a-f]{8},`)

// bridgeState returns what is on a host's bridges: flows that are not ours, without
// counters, and the database's ports; and how many flows are ours.
func (l *lab) bridgeState(host string) (foreign string, ours int) {
	l.t.Helper()
	var b strings.Builder
	for _, bridge := range []string{"br-int", "br-tun", "br-phy"} {
		for line := range strings.Lines(l.node(host, "ovs-ofctl", "--no-stats", "--no-names", "--sort", "dump-flows", bridge)) {
			switch {
			case ourCookie.MatchString(line):
				ours++
			case !strings.Contains(line, "hard_timeout"): // learn()ed flows come and go
				b.WriteString(line)
			}
		}
		for _, what := range []string{"dump-groups", "dump-meters"} {
			out := l.node(host, "ovs-ofctl", "-O", "OpenFlow15", what, bridge)
			b.WriteString(regexp.MustCompile(`\(xid=[^)]*\)`).ReplaceAllString(out, ""))
		}
		b.WriteString(l.node(host, "ovs-vsctl", "list-ports", bridge))
		b.WriteString(l.node(host, "ovs-vsctl", "get-fail-mode", bridge))
		b.WriteString(l.node(host, "ovs-vsctl", "get-controller", bridge))
	}
	return b.String(), ours
}

var dyePort = regexp.MustCompile(`(?m)^dye-.*\n`)

func TestAgentLeavesNoTrace(t *testing.T) {
	t.Parallel()
	l := up(t)
	_, hooks := l.bridgeState("hv1")
	checkHealthy(t, l.check(0, "--all"))
	var with string
	var ours int
	eventually(t, "nothing but hooks on hv1", time.Minute, func() bool { // flows for answers go after the check
		with, ours = l.bridgeState("hv1")
		return ours == hooks
	})
	if ours == 0 || !dyePort.MatchString(with) {
		t.Fatalf("no hooks on hv1 (%d flows):\n%s", ours, with)
	}
	l.stop("hv1", "agent", "KILL")
	left, still := l.bridgeState("hv1")
	if left != with || still != ours {
		t.Errorf("a killed agent changed its host: %d flows of ours (had %d)\nbefore:\n%s\nafter:\n%s", still, ours, with, left)
	}
	// Hooks without an agent prove nothing.
	c := l.check(4, "blue-1", "blue-2")
	if c.Verdict != "unknown" {
		t.Errorf("the agent is dead, and the verdict is %s", c.Verdict)
	}
	l.daemonise("hv1", "agent", l.configFile("hv1"))
	l.ready()
	checkHealthy(t, l.check(0, "--all"))
	// Where a probe was lost, as on a busy machine, a second look has made flows for answers, which go again.
	var again string
	eventually(t, fmt.Sprintf("as many flows of the next agent's as of the killed one's, %d", ours), time.Minute, func() bool {
		var n int
		again, n = l.bridgeState("hv1")
		return n == ours
	})
	if again != with {
		t.Errorf("the next agent did not adopt the hooks\nbefore:\n%s\nafter:\n%s", with, again)
	}
	l.testRefusedAgents(t)
	l.stop("hv1", "agent", "TERM")
	without, n := l.bridgeState("hv1")
	if n != 0 {
		t.Errorf("%d flows of ours are left", n)
	}
	if want := dyePort.ReplaceAllString(with, ""); without != want {
		t.Errorf("left behind:\n%s\nwant:\n%s", without, want)
	}
}

// testRefusedAgents starts agents that cannot be right: one with another host's
// certificate, and one that is to hook a bridge which is not there.
func (l *lab) testRefusedAgents(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(l.configFile("hv1"))
	if err != nil {
		t.Fatal(err)
	}
	other := l.file("other.yaml", []byte(strings.NewReplacer("hv1.crt", "hv2.crt", "hv1.key", "hv2.key").Replace(string(text))), 0o600)
	r := l.dyetrace("lab", "exec", "hv1", "--", "dyetrace", "agent", "--config", other)
	if r.code == 0 || !strings.Contains(r.stderr, "certificate is for hv2, agent says hv1") {
		t.Errorf("an agent with another host's certificate: exit %d\n%s", r.code, r.stderr)
	}
	l.ready() // the true agent is not disturbed

	l.stop("hv1", "agent", "TERM")
	l.daemonise("hv1", "agent", l.file("nope.yaml", append(text, "\nbridges: [br-int, br-tun, br-nope]\n"...), 0o600))
	eventually(t, "word of a bridge that is not there", time.Minute, func() bool {
		out := l.must("hooks", "-o", "json")
		return strings.Contains(out, "br-nope") && strings.Contains(out, "is not on this host")
	})
}

func TestControllerKilledInMidRun(t *testing.T) {
	t.Parallel()
	l := up(t)
	// One probe per instance and two seconds: a run of 58 pairs takes some 14 s.
	l.stop("controller", "serve", "KILL")
	l.daemonise("controller", "serve", l.configWith("run: {per_instance_rate: 0.5, per_instance_burst: 1}"))
	l.ready()

	ended := make(chan result, 1)
	go func() { ended <- l.dyetrace("check", "--all", "-o", "json") }()
	var before check
	eventually(t, "ten verdicts", 40*time.Second, func() bool {
		var runs []struct {
			Run   string `json:"run"`
			State string `json:"state"`
		}
		if err := json.Unmarshal([]byte(l.must("runs", "-o", "json")), &runs); err != nil {
			t.Fatal(err)
		}
		if len(runs) == 0 {
			return false
		}
		before = l.readRun(runs[0].Run)
		return len(before.Pairs) >= 10
	})
	if len(before.Pairs) >= 58 {
		t.Fatal("the run was over before the controller could be killed")
	}
	l.stop("controller", "serve", "KILL")
	if r := <-ended; r.code != 4 {
		t.Errorf("check, its controller killed: exit %d (want 4)\n%s", r.code, r.stderr)
	}

	l.daemonise("controller", "serve", l.configFile("controller"))
	l.ready()
	after := l.readRun(before.Run)
	if after.State != "interrupted" {
		t.Errorf("state %q (want interrupted)", after.State)
	}
	kept := make(map[string]string)
	for _, p := range after.Pairs {
		kept[p.Src+" → "+p.Dst] = p.Verdict
	}
	for _, p := range before.Pairs {
		if kept[p.Src+" → "+p.Dst] != p.Verdict {
			t.Errorf("%v: was finished, and is lost", p)
		}
	}
	if len(after.Pairs) >= 58 {
		t.Errorf("%d verdicts before the run was resumed", len(after.Pairs))
	}
	r := l.dyetrace("run", before.Run, "--resume", "-o", "json")
	if r.code != 0 {
		t.Fatalf("resume: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	whole := l.readRun(before.Run)
	checkHealthy(t, whole)
	if whole.State != "done" {
		t.Errorf("state %q after resuming (want done)", whole.State)
	}
}

func (l *lab) readRun(id string) check {
	l.t.Helper()
	r := l.dyetrace("run", id, "-o", "json")
	var c check
	if err := json.Unmarshal([]byte(r.stdout), &c); err != nil {
		l.t.Fatalf("run %s: exit %d: %v\n%s%s", id, r.code, err, r.stdout, r.stderr)
	}
	return c
}

// TestUserTrafficPaysNothing: 2,000 TCP connections through the hooked bridges make
// no more megaflows than through the same bridges without hooks.
func TestUserTrafficPaysNothing(t *testing.T) {
	t.Parallel()
	l := up(t)
	l.tool("blue-3", "listening", "listen", "10.0.1.13:8080")
	hooked := l.megaflows(t)
	for _, host := range []string{"hv1", "hv2", "hv3", "hv4"} {
		l.stop(host, "agent", "TERM")
	}
	bare := l.megaflows(t)
	t.Logf("megaflows on hv1 and hv3 for 2,000 connections: %v with hooks, %v without", hooked, bare)
	for i := range hooked {
		if hooked[i] > bare[i] || bare[i] == 0 {
			t.Errorf("%s: %d megaflows with hooks, %d without", []string{"hv1", "hv3"}[i], hooked[i], bare[i])
		}
	}
}

var guestsFlow = regexp.MustCompile(`fa:16:3e|tunnel\(|tnl_pop`)

// megaflows opens 2,000 connections from blue-1 to blue-3 and counts the IPv4 flows
// in the datapaths of their hosts that guests' packets make: those with a guest's MAC,
// those out of a tunnel, and those into one. What is left is what the hosts themselves
// say to each other, the agents' probes of the underlay among it, which comes when it
// comes.
func (l *lab) megaflows(t *testing.T) (n [2]int) {
	t.Helper()
	for _, host := range []string{"hv1", "hv3"} {
		l.node(host, "ovs-appctl", "revalidator/purge")
	}
	stop := l.tool("blue-1", "connected 2000", "dial", "10.0.1.13:8080", "2000")
	defer stop()
	for i, host := range []string{"hv1", "hv3"} {
		for line := range strings.Lines(l.node(host, "ovs-appctl", "dpctl/dump-flows")) {
			if strings.Contains(line, "eth_type(0x0800)") && guestsFlow.MatchString(line) {
				n[i]++
			}
		}
	}
	return n
}

// tool starts this test binary in a guest, waits for what it says, and returns what
// ends it.
func (l *lab) tool(guest, says, role string, args ...string) (stop func()) {
	l.t.Helper()
	argv := append([]string{"lab", "exec", "--lab", l.name, guest, "--", "env", roleEnv + "=" + role, l.self()}, args...)
	cmd := exec.Command(binary, argv...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	ended := false
	stop = func() {
		if !ended {
			ended = true
			in.Close()
			if err := cmd.Wait(); err != nil {
				l.t.Errorf("%s in %s: %v", role, guest, err)
			}
		}
	}
	l.t.Cleanup(stop)
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != says {
		stop()
		l.t.Fatalf("%s in %s said %q (want %q): %v", role, guest, line, says, err)
	}
	return stop
}

// TestSideBySide: two labs with the same inner addresses do not see each other, and
// one survives the end of the other.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	a := up(t)
	t.Run("other", func(t *testing.T) {
		b := up(t)
		checkHealthy(t, b.check(0, "--all"))
		b.must("lab", "break", "underlay-down", "hv3")
		checkHealthy(t, a.with(t).check(0, "--all"))
	})
	checkHealthy(t, a.check(0, "--all"))
	links := hostLinks(t)
	if slices.ContainsFunc(links, func(name string) bool { return strings.Contains(name, "hv1") || strings.HasPrefix(name, "tap") }) {
		t.Errorf("the lab shows on the host: %v", links)
	}
}

func hostLinks(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
