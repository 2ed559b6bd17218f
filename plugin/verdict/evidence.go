package verdict

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/stain"
)

// Evidence is all that is known of one pair in one run.
type Evidence struct {
	Path *plan.Path
	// Scheme is how the attempts are stained; zero is tcp.
	Scheme stain.Scheme
	// Attempts are the probes spent on the pair, in the order of their injection.
	Attempts []Attempt
	// Arrived are further probes, all of which came back whole. There are none unless one of
	// Attempts did.
	Arrived int
	// Test is the test of loss that the attempts were for; nil if one that arrived was enough.
	Test *sequential.Plan
	// Measured says that the test was asked for. Else it began because the first attempt was lost, which
	// then says nothing of how much is.
	Measured bool
	// Enough is how many probes must be lost before it is no chance where nothing but their absence speaks
	// for a fault; with 0 one is enough.
	Enough int
	// Explains says that the attempts are by a scheme that is tried after another, and say more of what that one has shown: with fewer
	// than Enough they have a verdict still, which is Scant.
	Explains bool
	// Patience is how long a packet may take from one point to the next: where nothing but the absence of
	// samples speaks for a fault, all that may still be on their way is no evidence (Attempt.Quiet). 0 is
	// that all have had their time.
	Patience time.Duration
	// Trip is how long probes of the pair took until a moment ago, by a patrol; 0 is that this is not known.
	Trip time.Duration
	// Hushed is for how long the packets were not answered that the two hosts exchange all the time, until when Quiet was taken; 0 is
	// that they are answered, or that there are none.
	Hushed time.Duration
	// Latencies are of the probes that arrived, for the result.
	Latencies []Latency
	// Hooks are the audits of the bridges' hooks around the run; a bridge that is not there was
	// not audited. May be shared between pairs, and nil while only presence counts.
	Hooks map[Place]Window
	// Gone are the hosts whose agent was not connected at some time during the run, each with
	// the reason in words. May be shared between pairs.
	Gone map[string]string
	// Explanation answers Result.Need of an earlier judgement on the same attempts; nil where
	// none was asked for or came.
	Explanation *Explanation
	// Underlay answers Result.NeedUnderlay of an earlier judgement with the same explanation; nil
	// where none was asked for or came.
	Underlay *Underlay
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
	// Counts are the hook's own counters, by kind of point; empty where they are not known.
	// Uncounted is why, where they should be.
	Counts    map[stain.Kind]Count
	Uncounted string
}

// Attempt is one probe.
type Attempt struct {
	// Injected is true once the agent said that the probe left.
	Injected bool
	// Failure is why it did not leave; empty otherwise.
	Failure string
	// PortAbsent says that it did not leave because the port is not on the bridge.
	PortAbsent bool
	// Armed says that, while it was under way, the bridge of the destination knew the
	// destination's TCP answers by their ports alone, and stained them (Arm.answers of the
	// contract). Otherwise hooks see only answers that bear the stain's ToS.
	Armed bool
	// Quiet is how long its hosts' hooks were still watched, and showed nothing of it, since it left or was
	// seen last.
	Quiet time.Duration
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
	// Flags are those of TCP (byte 13 of its header), 0 where there are none or they are not known.
	Flags uint8
	// InPort is the OpenFlow port that it came in by; at to-instance, that it left by.
	InPort uint32
	// TunSrc and TunID are outer source address and tunnel key; zero where it came by no tunnel.
	TunSrc netip.Addr
	TunID  uint32
	// NoReply is true for an echo request on a bridge that does not promise to know the reply
	// whatever its ToS: not asked to, not yet, or without room (stain.Copy.NoReply).
	NoReply bool
}

// Sighting is a sample at a point that is not on the path.
type Sighting struct {
	Host, Bridge string
	Kind         stain.Kind
	Direction    plan.Direction
	// InPort as in Sample.
	InPort uint32
}

func (s Sighting) String() string { return s.Host + "/" + s.Bridge + " " + s.Kind.String() }

// scheme is how the attempts are stained.
func (e *Evidence) scheme() stain.Scheme {
	if e.Scheme == 0 {
		return stain.TCP
	}
	return e.Scheme
}

// blind says why point i may have missed a stained packet; none if it would have seen it.
func (e *Evidence) blind(i int) doubt {
	p := &e.Path.Points[i]
	if p.Absent != "" {
		return doubt{CauseUnseen, p.Host + "/" + p.Bridge + ": " + p.Absent}
	}
	return e.unattested(p.Host, p.Bridge)
}

// unattested says why a hook may not have been there, or not have told; none if it was and has.
func (e *Evidence) unattested(host, bridge string) doubt {
	where := host + "/" + bridge
	if why, gone := e.Gone[host]; gone {
		if why == "" {
			why = "its agent was not connected all the time"
		}
		return doubt{CauseAgent, host + ": " + why}
	}
	w := e.Hooks[Place{host, bridge}]
	switch {
	case w.Before == nil:
		return doubt{CauseHook, where + ": hook not audited before the probe"}
	case !w.Before.Live:
		return doubt{CauseHook, where + ": hook not live before the probe" + because(w.Before.Reason)}
	case w.After == nil:
		return doubt{CauseHook, where + ": hook not audited after the probe"}
	case !w.After.Live:
		return doubt{CauseHook, where + ": hook not live after the probe" + because(w.After.Reason)}
	case w.Before.Epoch != w.After.Epoch:
		return doubt{CauseHook, where + ": hook installed anew meanwhile"}
	case w.Before.Lost != w.After.Lost:
		return doubt{CauseSamples, fmt.Sprintf("%s: agent lost %d samples meanwhile", where, w.After.Lost-w.Before.Lost)}
	}
	return w.unread(where)
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
	// mute is the first point after last, and before next, whose absence would be proof if only
	// the answer had certainly borne the stain; -1 if none.
	mute int
	// heard is the first point that saw the answer and knows answers by their ToS, -1 if none.
	heard int
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
	t := trail{Attempt: a, points: e.Path.Points, at: make([]int, len(e.Path.Points)), last: -1, next: -1, mute: -1, heard: -1, doubled: -1}
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
		if (t.heard < 0 || s.Point < t.heard) && e.byToS(s.Point) {
			t.heard = s.Point
		}
	}
	for i := t.last + 1; i < len(t.at) && t.last >= 0; i++ {
		switch {
		case !e.blind(i).none() || !e.beside(a, i).none():
		case e.deaf(&t, i).none():
			t.next = i
			return t
		case t.mute < 0:
			t.mute = i
		}
	}
	return t
}

// beside says that the packet left for an instance by another port than that of point i. Whether
// that one has taken its place meanwhile, or the switch delivers to the wrong guest, no sample
// tells. None if it was not seen so.
func (e *Evidence) beside(a *Attempt, i int) doubt {
	p := &e.Path.Points[i]
	if p.Kind != stain.ToInstance {
		return doubt{}
	}
	for _, s := range a.Stray {
		if s.Kind == p.Kind && s.Host == p.Host && s.Bridge == p.Bridge && s.Direction == p.Direction {
			return doubt{CauseMisdirected, fmt.Sprintf("%s/%s: it left by OpenFlow port %d, not by %d", p.Host, p.Bridge, s.InPort, p.OFPort)}
		}
	}
	return doubt{}
}

// byToS says that point i is the answer's and knows it by the stain's ToS. At an instance's port
// TCP answers are known by their TCP ports alone: there is no flow cache that would suffer.
func (e *Evidence) byToS(i int) bool {
	p := &e.Path.Points[i]
	return p.Direction == plan.Reply && (p.Kind != stain.ToInstance || e.scheme() == stain.ICMP)
}

// deaf says why the answer may have passed point i without a sample though the point was not
// blind: guests need not reflect the ToS, and somebody must have stained the answer then. None
// where it cannot have passed so.
func (e *Evidence) deaf(t *trail, i int) doubt {
	from, to := &e.Path.From, &e.Path.To
	at := &e.Path.Points[i]
	switch {
	case !e.byToS(i):
		return doubt{}
	case t.heard >= 0 && e.scheme() == stain.TCP:
		return doubt{} // it bore the stain, and only the destination's bridge could have given it
	case t.heard >= 0 && (i > t.heard || e.Path.Points[t.heard].Host != from.Host || e.Path.Points[t.heard].Bridge != from.Bridge):
		return doubt{}
	}
	why := e.unstained(t, to)
	if !why.none() && e.scheme() == stain.ICMP && at.Host == from.Host && at.Bridge == from.Bridge && e.unstained(t, from).none() {
		return doubt{} // the source's bridge saw the request as well, and knows the reply by itself
	}
	return why
}

// unstained says why the bridge of end may have let the answer pass as the guest sent it; none
// if it certainly stained it.
func (e *Evidence) unstained(t *trail, end *plan.End) doubt {
	if e.scheme() == stain.TCP {
		if !t.Armed {
			return doubt{CauseUnseen, "an answer without the stain's ToS would have passed unseen"}
		}
		i, ok := e.Path.Index(end.Host, end.Bridge, stain.FromInstance, plan.Reply)
		if !ok {
			return doubt{CauseUnseen, fmt.Sprintf("%s/%s: no point from-instance", end.Host, end.Bridge)}
		}
		return e.blind(i)
	}
	for i := range e.Path.Points {
		p := &e.Path.Points[i]
		if p.Direction != plan.Forward || p.Kind == stain.ToInstance || p.Host != end.Host || p.Bridge != end.Bridge {
			continue
		}
		if s, seen := t.sample(i); seen && s.NoReply {
			return doubt{CauseUnseen, fmt.Sprintf("the switch of %s did not promise to know a reply without the stain's ToS", end.Host)}
		} else if seen {
			return e.unattested(end.Host, end.Bridge)
		}
	}
	return doubt{CauseUnseen, fmt.Sprintf("%s/%s did not show the request, so a reply without the stain's ToS would have passed unseen", end.Host, end.Bridge)}
}
