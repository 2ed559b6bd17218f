package lab

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

var update = flag.Bool("update", false, "rewrite the golden truths in testdata")

// TestTruth compares what each break declares, at its default target, with a file that people
// can read: TestBreaks shows with real packets that it is so.
func TestTruth(t *testing.T) {
	const file = "testdata/truth.txtar"
	want, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := &txtar.Archive{Comment: want.Comment}
	for _, k := range BreakKinds() {
		l := embedded(t, k.Topology)
		truth, err := l.TruthOf(TCP4, k.Name, "")
		if err != nil {
			t.Fatal(err)
		}
		text := truthText(t, truth)
		got.Files = append(got.Files, txtar.File{Name: k.Name + " " + k.Default + " " + truth.Causes[0], Data: text})
		for _, traffic := range allTraffic()[1:] {
			other, err := l.TruthOf(traffic, k.Name, "")
			if err != nil {
				t.Fatal(err)
			}
			if same := truthText(t, other); !bytes.Equal(same, text) {
				got.Files = append(got.Files, txtar.File{Name: k.Name + " for " + traffic.String(), Data: same})
			}
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(txtar.Format(want)), string(txtar.Format(got))); diff != "" {
		t.Errorf("truth (-want +got, -update rewrites):\n%s", diff)
	}
}

// truthText returns a line for each fate, and each reach that none explains.
func truthText(t *testing.T, truth Truth) []byte {
	t.Helper()
	var text bytes.Buffer
	for _, f := range truth.Fates {
		line(t, &text, f)
	}
	for _, r := range truth.Unseen {
		text.WriteString("unseen ")
		line(t, &text, r)
	}
	for _, l := range truth.Losses {
		text.WriteString("loss ")
		line(t, &text, l)
	}
	for _, r := range truth.Maybe {
		text.WriteString("maybe ")
		line(t, &text, r)
	}
	for _, r := range truth.Large {
		text.WriteString("large ")
		line(t, &text, r)
	}
	return text.Bytes()
}

// allTraffic returns probes of all sorts, the default first.
func allTraffic() []Traffic {
	var all []Traffic
	for _, v := range overlay.Versions() {
		for _, s := range Schemes() {
			all = append(all, Traffic{s, v})
		}
	}
	return all
}

func line(t *testing.T, b *bytes.Buffer, v any) {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	b.Write(append(text, '\n'))
}

// TestTruthTogether checks that of several breaks the one that comes first on the way decides.
func TestTruthTogether(t *testing.T) {
	l := embedded(t, DefaultName)
	list, err := l.breakages([]Broken{{"guest-firewall", "blue-3"}, {"drop-flow", "blue-1:blue-3"}, {"one-way", "blue-1:blue-3"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range l.Overlay().Pairs() {
		if p.Src.Name != "blue-1" || p.Dst.Name != "blue-3" {
			continue
		}
		for n, want := range map[int]Point{ // the first missing point with the n last breaks
			1: {"hv3", "br-tun", ToTunnel, Answer},
			2: {"hv1", "br-tun", ToTunnel, Request},
			3: {"hv1", "br-tun", ToTunnel, Request},
		} {
			if o := probe(l.Overlay(), TCP4, p, list[len(list)-n:]); o.missing == nil || *o.missing != want {
				t.Errorf("with %d breaks: first missing %v, want %v", n, o.missing, want)
			}
		}
		if o := probe(l.Overlay(), TCP4, p, list[:1]); o.missing == nil || *o.missing != (Point{"hv3", "br-int", FromInstance, Answer}) {
			t.Errorf("with the firewall: first missing %v", o.missing)
		}
		if o := probe(l.Overlay(), TCP4, p, nil); o.outcome != Healthy {
			t.Errorf("with nothing broken: %+v", o)
		}
	}
}

// TestOutcomes checks what a probe comes to by scheme, and that of two breaks at a guest the
// switch's counts.
func TestOutcomes(t *testing.T) {
	l := embedded(t, DefaultName)
	for _, tt := range []struct {
		broken    []Broken
		tcp, icmp string
	}{
		{nil, Healthy, Healthy},
		{[]Broken{{"tos-cleared", "green-1"}, {"port-open", "green-1"}}, Healthy, Healthy},
		{[]Broken{{"guest-drops-tcp", "green-1"}}, Silent, Healthy},
		{[]Broken{{"security-rule-port", "green-1"}}, Policy, Healthy},
		{[]Broken{{"guest-drops-tcp", "green-1"}, {"security-rule-port", "green-1"}}, Policy, Healthy},
		{[]Broken{{"guest-firewall", "green-1"}, {"security-rule-port", "green-1"}}, Policy, Silent},
		{[]Broken{{"guest-down", "green-1"}, {"security-rule", "green-1"}}, Policy, Policy},
		{[]Broken{{"drop-flow", "blue-4:green-1"}, {"guest-drops-tcp", "green-1"}}, Faulty, Faulty},
	} {
		list, err := l.breakages(tt.broken)
		if err != nil {
			t.Fatal(err)
		}
		for _, traffic := range allTraffic() {
			want := tt.tcp
			if traffic.Scheme == ICMP {
				want = tt.icmp
			}
			truth := truthOf(l.Overlay(), traffic, list)
			if got := truth.outcome("blue-4", "green-1"); got != want {
				t.Errorf("%v: %v comes to %s, want %s", tt.broken, traffic, got, want)
			}
		}
	}
}

// outcome returns what a probe of a pair comes to.
func (t Truth) outcome(src, dst string) string {
	for _, f := range t.Fates {
		if slices.Contains(f.Src, src) && slices.Contains(f.Dst, dst) {
			return f.Outcome
		}
	}
	return Healthy
}
