package lab

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the golden truths in testdata")

// TestTruth compares what each break declares, at its default target, with a file that people
// can read: TestBreaks shows with real packets that it is so.
func TestTruth(t *testing.T) {
	const file = "testdata/truth.txtar"
	l := embedded(t, DefaultName)
	want, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := &txtar.Archive{Comment: want.Comment}
	for _, k := range BreakKinds() {
		truth, err := l.TruthOf(k.Name, "")
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		for _, f := range truth.Fates {
			line(t, &text, f)
		}
		for _, r := range truth.Unseen {
			text.WriteString("unseen ")
			line(t, &text, r)
		}
		got.Files = append(got.Files, txtar.File{Name: k.Name + " " + k.Default + " " + truth.Causes[0], Data: text.Bytes()})
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
	for _, p := range l.spec.Pairs() {
		if p.Src.Name != "blue-1" || p.Dst.Name != "blue-3" {
			continue
		}
		for n, want := range map[int]Point{ // the first missing point with the n last breaks
			1: {"hv3", "br-tun", ToTunnel, Answer},
			2: {"hv1", "br-tun", ToTunnel, Request},
			3: {"hv1", "br-tun", ToTunnel, Request},
		} {
			if o := probe(p, list[len(list)-n:]); o.missing == nil || *o.missing != want {
				t.Errorf("with %d breaks: first missing %v, want %v", n, o.missing, want)
			}
		}
		if o := probe(p, list[:1]); o.missing == nil || *o.missing != (Point{"hv3", "br-int", FromInstance, Answer}) {
			t.Errorf("with the firewall: first missing %v", o.missing)
		}
		if o := probe(p, nil); o.failed {
			t.Errorf("with nothing broken: %+v", o)
		}
	}
}
