package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// breakKind is one way to break the lab, as `lab break -o json` lists them.
type breakKind struct {
	Name  string `json:"kind"`
	Cause string `json:"cause"`
}

// truth is what a break declares of itself: which probes die, and where. It comes
// from the lab, which knows nothing of how Dyetrace finds out.
type truth struct {
	Causes []string `json:"causes"`
	Fates  []fate   `json:"fates"`
	Unseen []struct {
		Src []string `json:"src"`
		Dst []string `json:"dst"`
	} `json:"unseen"`
}

type fate struct {
	Src          []string `json:"src"`
	Dst          []string `json:"dst"`
	LastSeen     *point   `json:"last_seen"`
	FirstMissing point    `json:"first_missing"`
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

// verdicts are what a break's cause makes of a pair.
var verdicts = map[string]string{
	"flow": "faulty", "tunnel": "faulty", "stale-vtep": "faulty", "underlay": "faulty", "port": "faulty",
	"policy": "policy", "guest": "silent",
}

func TestEveryBreakIsNamed(t *testing.T) {
	t.Parallel()
	l := up(t)
	var kinds []breakKind
	if err := json.Unmarshal([]byte(l.must("lab", "break", "-o", "json")), &kinds); err != nil {
		t.Fatal(err)
	}
	if len(kinds) < 8 {
		t.Fatalf("the lab offers %d kinds of break (want at least 8)", len(kinds))
	}
	for _, kind := range kinds {
		t.Run(kind.Name, func(t *testing.T) {
			l := l.with(t)
			defer func() {
				l.must("lab", "heal", kind.Name)
				checkHealthy(t, l.check(0, "--all"))
			}()
			var done struct {
				Truth truth `json:"truth"`
			}
			if err := json.Unmarshal([]byte(l.must("lab", "break", kind.Name, "-o", "json")), &done); err != nil {
				t.Fatal(err)
			}
			tr := done.Truth
			if kind.Cause == "none" {
				if len(tr.Fates)+len(tr.Unseen) > 0 {
					t.Errorf("%s has no cause, but declares %+v", kind.Name, tr)
				}
				checkHealthy(t, l.check(0, "--all"))
				return
			}
			if len(tr.Fates) == 0 {
				t.Fatalf("%s declares no pair that fails where a sampling point could tell", kind.Name)
			}
			want, ok := verdicts[kind.Cause]
			if !ok {
				t.Fatalf("%s has cause %q, of which this test knows nothing", kind.Name, kind.Cause)
			}
			c := l.check(1, "--all")
			checkTruth(t, c, tr, want, kind.Cause == "guest")
			for _, p := range c.Pairs {
				// No sampling point lies between the last switch and the guest, but that
				// a port has no link can be known.
				if kind.Name == "guest-down" && tr.unseen(p) && p.Verdict != "silent" {
					t.Errorf("%v (want silent: the source's link is down)", p)
				}
			}
		})
	}
}

// checkTruth holds the verdict on every pair against what the break declared.
func checkTruth(t *testing.T, c check, tr truth, verdict string, delivered bool) {
	t.Helper()
	failing := 0
	for _, p := range c.Pairs {
		i := slices.IndexFunc(tr.Fates, func(f fate) bool { return slices.Contains(f.Src, p.Src) && slices.Contains(f.Dst, p.Dst) })
		if i < 0 {
			switch {
			case p.Verdict == "healthy":
			case !tr.unseen(p):
				t.Errorf("%v; this pair is not broken", p)
			case p.Segment == nil || !strings.HasSuffix(*p.Segment, "to-instance"):
				// The lab knows of no point at the taps.
				t.Errorf("%v (want the last segment, to the source's tap)", p)
			}
			continue
		}
		failing++
		checkFate(t, p, tr.Fates[i].atTap(delivered), verdict)
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

func (tr truth) unseen(p pair) bool {
	for _, u := range tr.Unseen {
		if slices.Contains(u.Src, p.Src) && slices.Contains(u.Dst, p.Dst) {
			return true
		}
	}
	return false
}

// checkFate wants the pair to have failed in the right segment.
func checkFate(t *testing.T, p pair, f fate, verdict string) {
	t.Helper()
	if p.Verdict != verdict {
		t.Errorf("%v (want %s)", p, verdict)
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
