package e2e

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// equip makes what a controller and agents of a bare lab read: nothing runs yet.
func (l *lab) equip(hosts ...string) {
	l.t.Helper()
	address, _, _ := strings.Cut(strings.Fields(l.node("controller", "ip", "-br", "-4", "addr", "show", "dev", "eth0"))[2], "/")
	dir := stateDir(l.name)
	pki := func(args ...string) {
		l.t.Helper()
		if r := l.dyetrace(append(append([]string{"pki"}, args...), "--dir", dir+"/pki")...); r.code != 0 {
			l.t.Fatalf("pki %v: %s", args, r.stderr)
		}
	}
	tls := func(name string) string {
		return fmt.Sprintf("tls: {ca: %[1]s/pki/ca.crt, cert: %[1]s/pki/%[2]s.crt, key: %[1]s/pki/%[2]s.key}\n", dir, name)
	}
	pki("init")
	pki("issue", "--role", "controller", "--name", "controller", "--san", address)
	pki("issue", "--role", "user", "--name", "lab")
	l.file("controller.yaml", []byte(fmt.Sprintf("listen: %[2]s:7443\nsocket: %[1]s/api.sock\nstore: %[1]s/controller.db\ninventory: [%[1]s/instances.yaml]\n"+
		"run: {per_instance_rate: 400, per_instance_burst: 400}\n", dir, address)+tls("controller")), 0o600)
	l.file("context.yaml", []byte(fmt.Sprintf("server: unix://%s/api.sock\nserver_name: controller\n", dir)+tls("lab")), 0o600)
	for _, h := range hosts {
		pki("issue", "--role", "agent", "--name", h)
		l.file(h+".yaml", []byte(fmt.Sprintf("host: %s\ncontroller: https://%s\n", h, net.JoinHostPort(address, "7443"))+tls(h)), 0o600)
	}
}

// killedAt starts the host's agent and has it killed as it is about to make the so manieth change of
// its host; it returns what that was, "" if there is none within some seconds.
func (l *lab) killedAt(host string, step int) string {
	l.t.Helper()
	const script = `
dir=$(mktemp -d); mkfifo $dir/said
dyetrace agent --log-level debug --config "$0" 2>$dir/said & agent=$!
(sleep 20; kill -9 $agent) 2>/dev/null & late=$!
n=0
while read -r line; do case $line in
*'changing the host'*)
	n=$((n+1))
	[ $n = "$1" ] || continue
	kill -9 $agent; echo "$line"; break;;
esac; done <$dir/said
kill $late 2>/dev/null; kill -9 $agent 2>/dev/null; wait 2>/dev/null
rm -r $dir`
	return strings.TrimSpace(l.node(host, "sh", "-c", script, l.configFile(host), strconv.Itoa(step)))
}

// ourFlows counts the flows of ours on a host's br-int.
func (l *lab) ourFlows(host string) int {
	l.t.Helper()
	return strings.Count(l.node(host, "ovs-ofctl", "--no-stats", "dump-flows", "br-int", "cookie=0x4479655400000000/0xffffffff00000000"), "cookie=")
}

// TestOVNUntouched: what is OVN's on its hypervisors is byte for byte what it was before an agent first
// came: with hooks, after over 10,000 probes, after an agent was killed at every step by which it
// changes its host, and after all have left.
func TestOVNUntouched(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn", "--bare")
	hosts := []string{"hv1", "hv2", "hv3"}
	l.equip(hosts...)
	before := make(map[string]string)
	for _, h := range hosts {
		before[h] = l.ovnState(h)
		if l.ourFlows(h) != 0 || strings.Count(before[h], "cookie=") < 100 {
			t.Fatalf("before anything was done, %s has %d flows of ours, and of OVN's\n%s", h, l.ourFlows(h), before[h])
		}
	}
	same := func(when string, hosts ...string) {
		t.Helper()
		for _, h := range hosts {
			if now := l.ovnState(h); now != before[h] {
				t.Errorf("%s, OVN's state on %s is\n%s\nwas\n%s", when, h, now, before[h])
			}
		}
	}
	l.daemonise("controller", "serve", l.configFile("controller"))
	agent := func(h string) { l.daemonise(h, "agent", l.configFile(h)) }
	agent("hv2")
	agent("hv3")
	var steps []string
	for what := "?"; what != ""; {
		what = l.killedAt("hv1", len(steps)+1)
		same(fmt.Sprintf("an agent killed at step %d, %s", len(steps)+1, what), "hv1")
		if _, step, said := strings.Cut(what, "what="); said {
			steps = append(steps, step)
		}
		// The next one takes over what is left.
		agent("hv1")
		l.ready()
		l.stop("hv1", "agent", "TERM")
		same(fmt.Sprintf("killed at %q, and the next has come and gone", what), "hv1")
		if n := l.ourFlows("hv1"); n != 0 || strings.Contains(l.node("hv1", "ovs-vsctl", "list-ports", "br-int"), "dye") {
			t.Errorf("killed at %q, and the next has come and gone: %d flows of ours are left", what, n)
		}
	}
	// The port, four things about its device, no-flood, flows.
	if t.Logf("killed at %q", steps); len(steps) < 7 {
		t.Errorf("killed at %q: the test has lost sight of some", steps)
	}
	agent("hv1")
	l.ready()
	same("with hooks", hosts...)
	probes := 0
	for _, p := range l.check(anyCode, "--all", "--loss", "--timeout", "100s").Pairs { // what they say is for other tests
		probes += p.Probes
	}
	if probes < 10_000 {
		t.Errorf("%d probes (want 10,000)", probes)
	}
	same(fmt.Sprintf("after %d probes", probes), hosts...)
	for _, h := range hosts {
		l.stop(h, "agent", "TERM")
		if n := l.ourFlows(h); n != 0 {
			t.Errorf("%s: %d flows of ours are left", h, n)
		}
	}
	same("after all agents left", hosts...)
}

// BenchmarkOVNWipe measures how long a hook beside OVN's flows is away that somebody deleted, by asking
// the switch; an agent leaves the hook alone after three times, so it is a new one then.
func BenchmarkOVNWipe(b *testing.B) {
	l := up(b, "--topology", "ovn")
	const script = `
ours=cookie=0x4479655400000000/0xffffffff00000000
count() { ovs-ofctl dump-flows br-int $ours | grep -c cookie=; }
want=$(count)
ovs-ofctl del-flows br-int $ours
begun=$(date +%s%N)
until [ "$(count)" = "$want" ]; do [ $(($(date +%s%N) - begun)) -lt 20000000000 ] || exit 1; done
echo $(($(date +%s%N) - begun))`
	hosts := []string{"hv1", "hv2", "hv3"}
	var gaps []float64
	wipe := func(host string) {
		ns, err := strconv.ParseFloat(strings.TrimSpace(l.node(host, "sh", "-c", script)), 64)
		if err != nil {
			b.Fatal(err)
		}
		gaps = append(gaps, ns/1e6)
	}
	for i := 0; b.Loop(); i++ {
		wipe(hosts[i%3])
		if i%9 == 8 {
			for _, h := range hosts {
				l.stop(h, "agent", "KILL")
				l.daemonise(h, "agent", l.configFile(h))
			}
			eventually(b, "hooks of new agents", time.Minute, func() bool { return l.dyetrace("status", "--wait", patient(30*time.Second).String()).code == 0 })
		}
	}
	slices.Sort(gaps)
	b.ReportMetric(gaps[len(gaps)/2], "p50-ms")
	b.ReportMetric(gaps[(len(gaps)*99+99)/100-1], "p99-ms")
	b.ReportMetric(gaps[len(gaps)-1], "max-ms")
	b.ReportMetric(0, "ns/op")
}

// TestOVNNamesLate has the southbound database stand still for longer than a second while a check explains what an ACL
// drops: its name is waited for, without which nobody knows whether it is a rule or a fault.
func TestOVNNamesLate(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn")
	l.must("lab", "break", "acl-drop")
	signal := func(name string) {
		if r := l.dyetrace("lab", "exec", "central", "--", "sh", "-c", "kill -"+name+" $(cat /run/ovn/ovnsb_db.pid)"); r.code != 0 {
			t.Errorf("kill -%s: %s", name, r.stderr)
		}
	}
	signal("STOP")
	ended := make(chan struct{})
	time.AfterFunc(2*time.Second, func() { // a part of the case: the answer is due after five seconds
		defer close(ended)
		signal("CONT")
	})
	t.Cleanup(func() { <-ended }) // before the lab is taken down
	c := l.check(1, "--all")
	<-ended
	dropped := 0
	for _, p := range c.Pairs {
		switch {
		case p.Verdict == "healthy":
		case p.Verdict != "policy" || p.CauseKind != "security-rule" || !strings.Contains(p.Cause, "ls_out_acl"):
			t.Errorf("%v (want it denied by a rule of stage ls_out_acl)", p)
		default:
			dropped++
		}
	}
	if dropped == 0 {
		t.Error("no pair is denied")
	}
}
