package verdict

import (
	"fmt"
	"net/netip"

	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// Evidence is all that is known of one pair in one run.
type Evidence struct {
	Path *plan.Path
	// Attempts are the probes spent on the pair, in the order of their injection.
	Attempts []Attempt
	// Hooks are the audits of the bridges' hooks around the run; a bridge that is not there was
	// not audited. May be shared between pairs, and nil while only presence counts.
	Hooks map[Place]Window
	// Gone are the hosts whose agent was not connected at some time during the run, each with
	// the reason in words. May be shared between pairs.
	Gone map[string]string
	// Explanation answers Result.Need of an earlier judgement on the same attempts; nil where
	// none was asked for or came.
	Explanation *Explanation
}

// Place is a bridge of a host.
type Place struct {
	Host, Bridge string
}

// Window is what the agent attested of a hook before and after; nil where it attested nothing.
type Window struct {
	Before, After *Audit
}

// Audit is what an agent attests of a hook at one time (HookWindow of the contract).
type Audit struct {
	Live   bool
	Reason string
	Epoch  uint64
	Lost   uint64
}

// Attempt is one probe.
type Attempt struct {
	// Injected is true once the agent said that the probe left.
	Injected bool
	// Failure is why it did not leave; empty otherwise.
	Failure string
	// PortAbsent says that it did not leave because the port is not on the bridge.
	PortAbsent bool
	// Seen are samples at points of the path, in any order. Of several at one point the first
	// counts, the others are duplicates.
	Seen []Sample
	// Stray are sightings of the probe or its answer elsewhere.
	Stray []Sighting
}

// Sample is a sighting at a point of the path.
type Sample struct {
	// Point is the index in Path.Points.
	Point int
	// AtNs is by the clock of the agent that saw it, nanoseconds.
	AtNs int64
	TTL  uint8
	// InPort is the OpenFlow port that it came in by.
	InPort uint32
	// TunSrc and TunID are outer source address and tunnel key; zero where it came by no tunnel.
	TunSrc netip.Addr
	TunID  uint32
}

// Sighting is a sample at a point that is not on the path.
type Sighting struct {
	Host, Bridge string
	Kind         stain.Kind
	Direction    plan.Direction
}

func (s Sighting) String() string { return s.Host + "/" + s.Bridge + " " + s.Kind.String() }

// blind says why a missing sample of point i proves nothing; empty if it is proof.
func (e *Evidence) blind(i int) string {
	p := &e.Path.Points[i]
	where := p.Host + "/" + p.Bridge
	if p.Absent != "" {
		return where + ": " + p.Absent
	}
	if why, gone := e.Gone[p.Host]; gone {
		if why == "" {
			why = "its agent was not connected all the time"
		}
		return p.Host + ": " + why
	}
	w := e.Hooks[Place{p.Host, p.Bridge}]
	switch {
	case w.Before == nil:
		return where + ": hook not audited before the probe"
	case !w.Before.Live:
		return where + ": hook not live before the probe" + because(w.Before.Reason)
	case w.After == nil:
		return where + ": hook not audited after the probe"
	case !w.After.Live:
		return where + ": hook not live after the probe" + because(w.After.Reason)
	case w.Before.Epoch != w.After.Epoch:
		return where + ": hook installed anew meanwhile"
	case w.Before.Lost != w.After.Lost:
		return fmt.Sprintf("%s: agent lost %d samples meanwhile", where, w.After.Lost-w.Before.Lost)
	}
	return ""
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// trail is one attempt, read.
type trail struct {
	*Attempt
	points []plan.Expected
	// at[i] is one more than the index in Seen of point i's first sample; 0 is not seen.
	at []int
	// last is the last point seen, -1 if none; next the first after it whose absence is
	// proof, -1 if none.
	last, next int
	// doubled is the first point seen more than once, -1 if none; looped says that the copies
	// differ in TTL: the packet itself came by again.
	doubled int
	// extra counts the samples beyond the first at each point.
	extra  int
	looped bool
}

func (t *trail) sample(point int) (Sample, bool) {
	if point < 0 || t.at[point] == 0 {
		return Sample{}, false
	}
	return t.Seen[t.at[point]-1], true
}

func (e *Evidence) trail(a *Attempt) trail {
	t := trail{Attempt: a, points: e.Path.Points, at: make([]int, len(e.Path.Points)), last: -1, next: -1, doubled: -1}
	for i, s := range a.Seen {
		if s.Point < 0 || s.Point >= len(t.at) {
			continue // not of this path: the caller's mistake must not become a verdict
		}
		if first, seen := t.sample(s.Point); seen {
			t.extra++
			if t.doubled < 0 || s.Point < t.doubled {
				t.doubled = s.Point
			}
			t.looped = t.looped || first.TTL != s.TTL
			if s.AtNs >= first.AtNs {
				continue
			}
		}
		t.at[s.Point] = i + 1
		t.last = max(t.last, s.Point)
	}
	for i := t.last + 1; i < len(t.at) && t.last >= 0; i++ {
		if e.blind(i) == "" {
			t.next = i
			break
		}
	}
	return t
}
