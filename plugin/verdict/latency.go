package verdict

import (
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
)

// LegKind says what the latency of a leg is; the numbers are the contract's.
type LegKind uint8

// Kinds of legs.
const (
	// RTT is from the first point to the last on the source's host.
	RTT LegKind = iota + 1
	// Switch is between two neighbouring points of one host, in one direction.
	Switch
	// Guest is from the last point before the guest to the first that sees its answer.
	Guest
	// Tunnel is between the hosts, there and back together: each end's time by its own clock.
	Tunnel
)

// Leg is a part of a path whose latency can be measured without comparing two hosts' clocks.
type Leg struct {
	Kind LegKind
	// From and To are points of the path. Of a Tunnel they are the last one on the source's host
	// and the first on the destination's; back and home are their likes of the answer.
	From, To   int
	back, home int
}

// Legs returns the legs of a path, the whole first and then in its order. Points that are absent
// end none.
func Legs(p *plan.Path) []Leg {
	var points []int
	for i := range p.Points {
		if p.Points[i].Absent == "" {
			points = append(points, i)
		}
	}
	if len(points) < 2 {
		return nil
	}
	var legs []Leg
	first, last := points[0], points[len(points)-1]
	if p.Points[first].Host == p.Points[last].Host && p.Points[last].Direction == plan.Reply {
		legs = append(legs, Leg{Kind: RTT, From: first, To: last})
	}
	tunnel := -1
	for k, i := range points[:len(points)-1] {
		next := points[k+1]
		a, b := &p.Points[i], &p.Points[next]
		switch {
		case a.Host != b.Host && a.Direction == plan.Forward && b.Direction == plan.Forward && tunnel < 0:
			tunnel = len(legs)
			legs = append(legs, Leg{Kind: Tunnel, From: i, To: next, back: -1})
		case a.Host != b.Host && a.Direction == plan.Reply && tunnel >= 0 &&
			a.Host == p.Points[legs[tunnel].To].Host && b.Host == p.Points[legs[tunnel].From].Host:
			legs[tunnel].back, legs[tunnel].home = i, next
		case a.Host != b.Host:
		case a.Direction != b.Direction:
			legs = append(legs, Leg{Kind: Guest, From: i, To: next})
		default:
			legs = append(legs, Leg{Kind: Switch, From: i, To: next})
		}
	}
	if tunnel >= 0 && legs[tunnel].back < 0 {
		legs = append(legs[:tunnel], legs[tunnel+1:]...) // one way: two clocks
	}
	return legs
}

// Of returns what a probe took for a leg; false where one of its ends did not see it. at tells when
// a point saw it, nanoseconds by the clock of its host.
func (l *Leg) Of(at func(point int) (ns int64, seen bool)) (time.Duration, bool) {
	span := func(from, to int) (int64, bool) {
		a, seenA := at(from)
		b, seenB := at(to)
		return b - a, seenA && seenB
	}
	if l.Kind != Tunnel {
		d, ok := span(l.From, l.To)
		return time.Duration(d), ok
	}
	there, ok := span(l.From, l.home)
	away, ok2 := span(l.To, l.back)
	return time.Duration(there - away), ok && ok2
}

// Latency is what probes took for a leg.
type Latency struct {
	Leg    Leg
	Digest *sequential.Digest
	// from and to are the ends, set in results.
	from, to *plan.Expected
}

// shown returns the latencies of a path that were measured, for a result.
func shown(p *plan.Path, measured []Latency) []Latency {
	var some []Latency
	for _, m := range measured {
		if m.Digest.Count() > 0 {
			m.from, m.to = &p.Points[m.Leg.From], &p.Points[m.Leg.To]
			some = append(some, m)
		}
	}
	return some
}

// LatenciesProto returns the latencies of a path that were measured, as users get them.
func LatenciesProto(p *plan.Path, measured []Latency) (all []*dyetracev1.Latency) {
	some := shown(p, measured)
	for i := range some {
		all = append(all, some[i].proto())
	}
	return all
}

func (l *Latency) proto() *dyetracev1.Latency {
	return &dyetracev1.Latency{
		Kind: dyetracev1.LatencyKind(l.Leg.Kind), From: point(l.from), To: point(l.to),
		Direction: dyetracev1.Direction(l.from.Direction), Samples: l.Digest.Count(),
		P50Ns: int64(l.Digest.Quantile(0.5)), P90Ns: int64(l.Digest.Quantile(0.9)),
		P99Ns: int64(l.Digest.Quantile(0.99)), MaxNs: int64(l.Digest.Max()),
	}
}
