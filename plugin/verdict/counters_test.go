package verdict

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/dyetrace/dyetrace/stain"
)

// TestUnread: what two readings of a hook's counters say of a sample that is missing.
func TestUnread(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name          string
		before, after Count
		want          string // in the doubt; empty for none
	}{
		{"idle", Count{100, 90, 90}, Count{100, 90, 90}, ""},
		{"all read", Count{100, 90, 90}, Count{150, 140, 140}, ""},
		{"one got lost", Count{100, 90, 90}, Count{150, 139, 139}, "never came to the agent: 1"},
		{"all got lost", Count{100, 90, 90}, Count{150, 90, 90}, "never came to the agent: 50"},
		{"an agent that read more than this hook has counted so far", Count{5, 1000, 1000}, Count{8, 1003, 1003}, ""},
		{"and lost one since", Count{5, 1000, 1000}, Count{8, 1002, 1002}, "never came to the agent: 1"},
		{"credited to other flows", Count{100, 90, 90}, Count{150, 145, 145}, ""},
		{"as many as may be under way", Count{100, 90, 90}, Count{150, 396, 396}, ""},
		{"forged", Count{100, 90, 90}, Count{150, 397, 397}, "that came to the agent and no hook made: 257"},
		{"forged, and that is not known", Count{100, 90, 90}, Count{150, 390, 397}, ""},
		{"some under way", Count{100, 90, 90}, Count{150, 130, 145}, ""},
		{"some under way before", Count{100, 85, 95}, Count{150, 140, 140}, ""},
		{"lost more than can be under way", Count{100, 90, 92}, Count{150, 120, 135}, "never came to the agent: 5"},
		{"a flood", Count{100, 90, 90}, Count{9000, 8000, 9500}, "too many copies (1500)"},
		{"a flood, and lost in it", Count{100, 90, 90}, Count{90000, 8000, 9500}, "never came to the agent: 80490"},
	} {
		w := Window{
			Before: &Audit{Live: true, Counts: map[stain.Kind]Count{stain.FromTunnel: tt.before, stain.ToTunnel: {7, 7, 7}}},
			After:  &Audit{Live: true, Counts: map[stain.Kind]Count{stain.FromTunnel: tt.after, stain.ToTunnel: {9, 9, 9}}},
		}
		d := w.unread("hv1/br-int")
		if d.none() != (tt.want == "") || !strings.Contains(d.why, tt.want) || !d.none() && (d.kind != CauseSamples || !strings.HasPrefix(d.why, "hv1/br-int from-tunnel: ")) {
			t.Errorf("%s: %+v, want %q", tt.name, d, tt.want)
		}
	}
}

// TestUncounted: readings that are not there. What a switch never tells is not asked; what it should
// have told, and did not, may hide a loss.
func TestUncounted(t *testing.T) {
	t.Parallel()
	counts := map[stain.Kind]Count{stain.FromTunnel: {100, 90, 90}}
	for _, tt := range []struct {
		name          string
		before, after Audit
		want          string
	}{
		{"never", Audit{}, Audit{}, ""},
		{"both", Audit{Counts: counts}, Audit{Counts: counts}, ""},
		{"first after the probe", Audit{}, Audit{Counts: counts}, ""},
		{"not after the probe", Audit{Counts: counts}, Audit{}, "were not read after the probe"},
		{"said why not before", Audit{Uncounted: "a timeout"}, Audit{Counts: counts}, "could not be read: a timeout"},
		{"said why not after", Audit{Counts: counts}, Audit{Uncounted: "a timeout"}, "could not be read: a timeout"},
		{"said so of both", Audit{Uncounted: "a timeout"}, Audit{Uncounted: "a timeout"}, "could not be read: a timeout"},
	} {
		d := Window{Before: &tt.before, After: &tt.after}.unread("hv1/br-int")
		if d.none() != (tt.want == "") || !strings.Contains(d.why, tt.want) || !d.none() && d.kind != CauseSamples {
			t.Errorf("%s: %+v, want %q", tt.name, d, tt.want)
		}
	}
}

// TestUnreadHolds draws what passes a point and what gets lost on its way to the agent, and readings
// of the counters in the midst of it: a loss that began before the second reading and is over by
// then is never overlooked but among what is under way, and none is made up.
func TestUnreadHolds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var made, read, lost uint64
		step := func(name string, loses bool) {
			n := rapid.Uint64Range(0, 200).Draw(t, name)
			l := uint64(0)
			if loses {
				l = rapid.Uint64Range(0, n).Draw(t, name+" lost")
			}
			made, read, lost = made+n, read+n-l, lost+l
		}
		reading := func(name string) Count {
			c := Count{ReadMin: read}
			step(name+" early", false)
			c.Counted = made
			step(name+" late", false)
			c.ReadMax = read
			return c
		}
		step("ever", true)
		before := reading("before")
		was := lost
		step("meanwhile", rapid.Bool().Draw(t, "loses"))
		after := reading("after")
		why := unread(before, after)
		between := (before.ReadMax - before.ReadMin) + (after.ReadMax - after.ReadMin)
		switch n := lost - was; {
		case n == 0 && between == 0 && why != "":
			t.Fatalf("nothing was lost, all was still, and it says %q", why)
		case n > between && !strings.Contains(why, "never came"):
			t.Fatalf("%d were lost, more than %d under way, and it says %+v", n, between, why)
		case n > 0 && between == 0 && why == "":
			t.Fatalf("%d were lost, all was still, and nobody noticed", n)
		case n == 0 && strings.Contains(why, "never came"):
			t.Fatalf("nothing was lost, and it says %q", why)
		}
	})
}
