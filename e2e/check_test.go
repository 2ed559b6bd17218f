package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// racks is what the default lab holds, written down here by hand: instance,
// network, host. Blue and green are joined by a router, red is not.
var racks = []struct{ name, network, host string }{
	{"blue-1", "blue", "hv1"}, {"blue-2", "blue", "hv1"}, {"blue-3", "blue", "hv3"}, {"blue-4", "blue", "hv4"},
	{"green-1", "green", "hv1"}, {"green-2", "green", "hv2"}, {"green-3", "green", "hv3"}, {"green-4", "green", "hv4"},
	{"red-1", "red", "hv2"}, {"red-2", "red", "hv3"},
}

// joined tells whether there is a path between two networks of the default lab.
func joined(a, b string) bool { return a == b || (a != "red" && b != "red") }

// wantPath is the path of a healthy pair, as HOST/BRIDGE KIND.
func wantPath(src, dst string) []string {
	half := func(a, b string) []string {
		if a == b {
			return []string{a + "/br-int from-instance", b + "/br-int to-instance"}
		}
		return []string{a + "/br-int from-instance", a + "/br-tun to-tunnel",
			b + "/br-tun from-tunnel", b + "/br-int from-tunnel", b + "/br-int to-instance"}
	}
	return append(half(src, dst), half(dst, src)...)
}

// checkHealthy wants c to hold all 58 pairs, each healthy and whole.
func checkHealthy(t *testing.T, c check) {
	t.Helper()
	if c.Verdict != "healthy" || c.Counts["healthy"] != 58 || len(c.Pairs) != 58 {
		t.Errorf("verdict %s, counts %v, %d pairs (want healthy, 58)", c.Verdict, c.Counts, len(c.Pairs))
	}
	got := make(map[string]pair)
	for _, p := range c.Pairs {
		got[p.Src+" → "+p.Dst] = p
	}
	for _, src := range racks {
		for _, dst := range racks {
			if src.name == dst.name || !joined(src.network, dst.network) {
				continue
			}
			p, ok := got[src.name+" → "+dst.name]
			if !ok {
				t.Errorf("%s → %s: not checked", src.name, dst.name)
				continue
			}
			checkWhole(t, p, wantPath(src.host, dst.host), src.network != dst.network)
		}
	}
}

// slack is by how many nanoseconds two sockets of one agent may disagree on the time.
const slack = 100_000

// checkWhole wants every sample of a pair, once, in order, with the right TTL.
func checkWhole(t *testing.T, p pair, want []string, routed bool) {
	t.Helper()
	var path []string
	arrived := make(map[string]int64) // by host: when the way there ended
	for i, s := range p.Samples {
		path = append(path, fmt.Sprintf("%s/%s %s", s.Host, s.Bridge, s.Kind))
		if !s.Seen {
			t.Errorf("%v: %s not seen", p, path[i])
		}
		if s.Direction == "forward" {
			arrived[s.Host] = max(arrived[s.Host], s.At)
		} else if s.At < arrived[s.Host]-slack {
			t.Errorf("%v: the answer was seen at %s at %d ns, before the probe at %d ns", p, path[i], s.At, arrived[s.Host])
		}
		if s.At < 0 {
			t.Errorf("%v: %s seen at %d ns", p, path[i], s.At)
		}
		ttl := 64
		if routed && i > 0 && s.Bridge+s.Kind != "br-intfrom-instance" {
			ttl = 63 // the source's host routes, whichever way the packet goes
		}
		if s.TTL != ttl {
			t.Errorf("%v: %s saw TTL %d (want %d)", p, path[i], s.TTL, ttl)
		}
	}
	if p.Verdict != "healthy" || p.Segment != nil || p.Duplicates != 0 || p.RTT <= 0 {
		t.Errorf("%v: %d duplicates, rtt %d ns (want healthy, no segment, none, more than 0)", p, p.Duplicates, p.RTT)
	}
	if !slices.Equal(path, want) {
		t.Errorf("%v: path\n%s\nwant\n%s", p, strings.Join(path, "\n"), strings.Join(want, "\n"))
	}
}

func TestAllPairsTwentyTimes(t *testing.T) {
	t.Parallel()
	l := up(t)
	for range 20 {
		checkHealthy(t, l.check(0, "--all"))
		if t.Failed() {
			return
		}
	}
	t.Run("scopes", func(t *testing.T) { testScopes(t, l.with(t)) })
	t.Run("refusals", func(t *testing.T) { testRefusals(t, l.with(t)) })
	t.Run("history", func(t *testing.T) { testHistory(t, l.with(t)) })
}

// testScopes counts the pairs that each scope holds.
func testScopes(t *testing.T, l *lab) {
	for _, tt := range []struct {
		args  []string
		pairs int
	}{
		{[]string{"blue-1", "green-4"}, 1},
		{[]string{"blue/blue-1", "blue/10.0.1.14"}, 1},
		{[]string{"red/10.0.1.11", "red-2"}, 1},
		{[]string{"--network", "red"}, 2},
		{[]string{"--network", "blue"}, 4*3 + 2*4*4},
		{[]string{"--host", "hv4"}, 2*(2*6) + 2},
	} {
		c := l.check(0, tt.args...)
		if len(c.Pairs) != tt.pairs || c.Counts["healthy"] != tt.pairs {
			t.Errorf("check %v: %d pairs, %v (want %d healthy)", tt.args, len(c.Pairs), c.Counts, tt.pairs)
		}
	}
}

// testRefusals wants each bad input refused by exit code 2, with an error that
// names what is wrong and what would be right.
func testRefusals(t *testing.T, l *lab) {
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"unknown instance", []string{"check", "blue-1", "blue-9"}, []string{"dst", "blue-9"}},
		{"same instance", []string{"check", "blue-1", "blue-1"}, []string{"blue-1", "dst"}},
		{"ambiguous address", []string{"check", "10.0.1.11", "blue-4"}, []string{"src", "10.0.1.11", "blue", "red"}},
		{"no path", []string{"check", "blue-1", "red-2"}, []string{"blue", "red"}},
		{"unknown network", []string{"check", "--network", "pink"}, []string{"network", "pink"}},
		{"unknown host", []string{"check", "--host", "hv9"}, []string{"host", "hv9"}},
		{"two scopes", []string{"check", "--all", "--host", "hv1"}, []string{"--all", "--host"}},
		{"no scope", []string{"check"}, []string{"--all"}},
		{"one instance", []string{"check", "blue-1"}, []string{"DST"}},
		{"bad timeout", []string{"check", "--all", "--timeout", "soon"}, []string{"timeout", "soon"}},
		{"bad output", []string{"check", "--all", "-o", "xml"}, []string{"xml", "json"}},
		{"unknown run", []string{"run", "nosuchrun"}, []string{"nosuchrun"}},
		{"unknown verb", []string{"chekc"}, []string{"chekc"}},
	} {
		r := l.dyetrace(tt.args...)
		if r.code != 2 {
			t.Errorf("%s: dyetrace %s: exit %d (want 2)\n%s", tt.name, strings.Join(tt.args, " "), r.code, r.stderr)
		}
		for _, w := range tt.want {
			if !strings.Contains(r.stderr, w) {
				t.Errorf("%s: error does not name %q: %s", tt.name, w, r.stderr)
			}
		}
		if r.stdout != "" {
			t.Errorf("%s: printed on stdout: %s", tt.name, r.stdout)
		}
	}
}

// testHistory reads runs back.
func testHistory(t *testing.T, l *lab) {
	c := l.check(0, "red-1", "red-2")
	var again check
	if err := json.Unmarshal([]byte(l.must("run", c.Run, "-o", "json")), &again); err != nil {
		t.Fatal(err)
	}
	if again.Run != c.Run || again.Verdict != "healthy" || len(again.Pairs) != 1 || len(again.Pairs[0].Samples) != 10 {
		t.Errorf("run %s, read back: %+v", c.Run, again)
	}
	if runs := l.must("runs"); !strings.Contains(runs, c.Run) {
		t.Errorf("runs: %s is not listed:\n%s", c.Run, runs)
	}
	for _, verb := range []string{"hosts", "instances", "hooks", "status"} {
		for _, format := range []string{"table", "json", "yaml"} {
			out := l.must(verb, "-o", format)
			if format == "json" && !json.Valid([]byte(out)) {
				t.Errorf("%s -o json: not JSON:\n%s", verb, out)
			}
			if verb != "status" && !strings.Contains(out, "hv3") {
				t.Errorf("%s -o %s: hv3 is not in it:\n%s", verb, format, out)
			}
		}
	}
}

// TestBadConfig starts daemons on files that cannot be right: exit 2, naming the key.
func TestBadConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := &lab{t: t, name: "none"}
	files := map[string]string{
		"yaml.yml":  "host: [",
		"key.yml":   "hots: hv1\n",
		"port.yml":  "host: hv1\ncontroller: https://127.0.0.1:0\ntls: {ca: a, cert: b, key: c}\n",
		"notls.yml": "host: hv1\ncontroller: https://127.0.0.1:7443\n",
		"lease.yml": "host: hv1\ncontroller: https://127.0.0.1:7443\nlease: 1ms\ntls: {ca: a, cert: b, key: c}\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"agent", "--config", filepath.Join(dir, "yaml.yml")}, "yaml.yml"},
		{[]string{"agent", "--config", filepath.Join(dir, "key.yml")}, "hots"},
		{[]string{"agent", "--config", filepath.Join(dir, "port.yml")}, "port 1 to 65535"},
		{[]string{"agent", "--config", filepath.Join(dir, "notls.yml")}, "tls"},
		{[]string{"agent", "--config", filepath.Join(dir, "lease.yml")}, "lease"},
		{[]string{"agent", "--config", filepath.Join(dir, "absent.yml")}, "absent.yml"},
		{[]string{"serve", "--config", filepath.Join(dir, "yaml.yml")}, "yaml.yml"},
		{[]string{"serve", "--config", filepath.Join(dir, "key.yml")}, "hots"},
	} {
		r := l.dyetrace(tt.args...)
		if r.code != 2 || !strings.Contains(r.stderr, tt.want) {
			t.Errorf("dyetrace %s: exit %d (want 2, naming %q)\n%s", strings.Join(tt.args, " "), r.code, tt.want, r.stderr)
		}
	}
}
