package run

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/plugin/verdict"
	"github.com/dyetrace/dyetrace/stain"
)

// A little loss shows in no pair's probes for minutes, and soon in those of all pairs that share the
// lossy part of their way. So a continuous run has a guard for each part: the probes of all pairs
// that pass it are its trials.

// guardPlan is the test of all guards. With an alpha of 10⁻⁸ a guard, on a path that loses just what is
// allowed, 0.1 %, raises a false alarm every 3·10¹⁰ probes on average (sequential.TestGuardRunLength), which at
// 500 a second is two years. A share of P1 = 1 % is found after 1,300 probes on average: in 5 s, where 260 a
// second pass.
func guardPlan(test sequential.Plan) sequential.Plan {
	test.Alpha = 1e-8
	return test
}

// pool is a part of ways, and what the probes that pass it say of its loss.
type pool struct {
	name  string // in words, after "between" or "of"
	guard sequential.Guard
	since time.Time // of the alarm
	pairs map[int]bool
	// from and to are the ends of a segment, host is what has none: all that leaves a host by
	// tunnels, or comes in.
	from, to *plan.Expected
	host     string
	// blames says that the pairs which pass are faulty while the alarm is raised: they all pass the
	// very part. What passes a host as a whole is only reported.
	blames bool
	// where most of the probes of a pair were lost, for its own pool, and how many in each place
	lostFrom, lostTo *plan.Expected
	places           map[place]int
	// net is what the agents' streams show, where that and no pair's probe is what the guard sees.
	net *crossing
}

// pools are those of a run, by what they are.
type pools struct {
	plan  sequential.Plan
	byKey map[string]*pool
}

func newPools(test sequential.Plan) *pools {
	return &pools{plan: guardPlan(test), byKey: map[string]*pool{}}
}

// step is a part of one pair's way, and the pools that it is a part of.
type step struct {
	from, to int // points of the path
	pools    []*pool
	// net is that of the underlay, where it crosses it; pairs' probes are no trials of that.
	net *pool
}

// steps returns those of a pair's path; the pools are made where they are new. What lies between the
// last point before the guest and its answer is the guest's, and in none.
func (ps *pools) steps(pair int, p *plan.Path) []step {
	var steps []step
	last := -1
	for i := range p.Points {
		if p.Points[i].Absent != "" {
			continue
		}
		if last >= 0 && p.Points[last].Direction == p.Points[i].Direction {
			s := step{from: last, to: i, pools: ps.of(pair, p, &p.Points[last], &p.Points[i])}
			if p.Points[last].Host != p.Points[i].Host {
				s.net = ps.net(pair, &p.Points[last], &p.Points[i])
			}
			steps = append(steps, s)
		}
		last = i
	}
	return steps
}

func (ps *pools) of(pair int, p *plan.Path, from, to *plan.Expected) []*pool {
	if from.Host == to.Host {
		key := fmt.Sprintf("%s/%s %d %s %d", from.Host, from.Bridge, from.Kind, to.Bridge, to.Kind)
		if to.Kind == stain.ToInstance { // each instance has a port of its own, which all pairs with it share
			end := &p.To
			if to.Direction == plan.Reply {
				end = &p.From
			}
			key = fmt.Sprintf("%s %s", key, end.Port)
		}
		return []*pool{ps.get(key, pair, func() *pool { return &pool{from: from, to: to, blames: true} })}
	}
	return []*pool{
		ps.get("tunnel "+from.Host+" "+to.Host, pair, func() *pool { return &pool{from: from, to: to, blames: true} }),
		ps.get("out "+from.Host, pair, func() *pool { return &pool{host: from.Host, name: "what leaves " + from.Host} }),
		ps.get("in "+to.Host, pair, func() *pool { return &pool{host: to.Host, name: "what comes to " + to.Host} }),
	}
}

func (ps *pools) get(key string, pair int, fresh func() *pool) *pool {
	p := ps.byKey[key]
	if p == nil {
		p = fresh()
		p.pairs = map[int]bool{}
		if p.from != nil {
			p.name = fmt.Sprintf("%s and %s", p.from, p.to)
		}
		ps.byKey[key] = p
	}
	p.pairs[pair] = true
	return p
}

// own is the pool of one pair: all its probes, wherever they were lost.
func (ps *pools) own(pair int) *pool {
	return ps.get(ownKey(pair), pair, func() *pool { return &pool{blames: true} })
}

func ownKey(pair int) string { return fmt.Sprintf("pair %d", pair) }

// leave has a pair take another way: what its own probes lost is over, and parts of ways that no pair passes any more are forgotten.
func (ps *pools) leave(pair int, steps []step) {
	delete(ps.byKey, ownKey(pair))
	left := map[*pool]bool{}
	for _, s := range steps {
		for _, p := range append(slices.Clone(s.pools), s.net) {
			if p == nil {
				continue
			}
			if delete(p.pairs, pair); len(p.pairs) == 0 {
				left[p] = true
			}
		}
	}
	if len(left) > 0 {
		maps.DeleteFunc(ps.byKey, func(_ string, p *pool) bool { return left[p] })
	}
}

// feed takes in a probe of a pair: it passed all steps before last; where lost it was lost between
// last and next. What is lost where the underlay is known to lose is that one's, and no trial of anything else:
// it would be held against pairs for minutes after the streams know that it is over. Changed are the pools
// whose alarm was raised or cleared by it.
func (ps *pools) feed(pair int, path *plan.Path, steps []step, isLost bool, last, next int, now time.Time) (changed []*pool) {
	if isLost && next >= len(path.Points) {
		return nil // lost on a longer way, that it had before
	}
	add := func(p *pool, lost bool) {
		if p.guard.Add(ps.plan, lost) {
			p.since = now
			changed = append(changed, p)
		}
	}
	for _, s := range steps {
		switch {
		case !isLost || s.to <= last:
			for _, p := range s.pools {
				add(p, false)
			}
		case s.from == last && s.to == next && s.net != nil && s.net.blaming():
			return changed
		case s.from == last && s.to == next: // else nobody knows in which of several it was
			for _, p := range s.pools {
				add(p, true)
			}
		}
	}
	own := ps.own(pair)
	if isLost {
		own.lostAt(&path.Points[last], &path.Points[next])
	}
	add(own, isLost)
	return changed
}

// place is between two points of a path, however often that is planned anew.
type place struct{ from, to spot }

type spot struct {
	host, bridge string
	kind         stain.Kind
	direction    plan.Direction
}

func placeOf(from, to *plan.Expected) place {
	at := func(p *plan.Expected) spot {
		if p == nil {
			return spot{}
		}
		return spot{p.Host, p.Bridge, p.Kind, p.Direction}
	}
	return place{at(from), at(to)}
}

// lostAt counts where a probe of a pair is lost, in its own pool.
func (p *pool) lostAt(from, to *plan.Expected) {
	if p.guard.Lost == 0 || p.places == nil { // what was before is over
		p.places = map[place]int{}
	}
	at := placeOf(from, to)
	if p.places[at]++; p.places[at] >= p.places[placeOf(p.lostFrom, p.lostTo)] {
		p.lostFrom, p.lostTo = from, to
	}
}

// over takes in that the underlay on a part of ways loses no more: what pairs that pass it lost there is over,
// too, and was maybe counted before it was known whose loss that is.
func (ps *pools) over(net *pool, stepsOf func(pair int) []step) {
	for pair := range net.pairs {
		for _, s := range stepsOf(pair) {
			if s.net != net {
				continue
			}
			for _, p := range s.pools {
				p.guard = sequential.Guard{}
			}
			if own := ps.own(pair); own.guard.Lost > 0 && own.lostFrom != nil && own.lostFrom.Host == net.from.Host && own.lostTo.Host == net.to.Host {
				own.guard = sequential.Guard{}
			}
		}
	}
}

// ends are those of the segment where it loses.
func (p *pool) ends() (from, to *plan.Expected) {
	if p.from == nil {
		return p.lostFrom, p.lostTo
	}
	return p.from, p.to
}

// loss is what the contract says of a pool whose alarm is raised.
func (p *pool) loss() *dyetracev1.SegmentLoss {
	probes, lost, ports := p.figures()
	i := sequential.Loss(probes, lost)
	from, to := p.ends()
	return &dyetracev1.SegmentLoss{
		Segment: verdict.SegmentBetween(from, to), Host: p.host, Probes: uint64(probes), Lost: uint64(lost),
		Low: i.Low, High: i.High, Pairs: uint32(len(p.pairs)), Since: timestamppb.New(p.since),
		Underlay: p.net != nil, SourcePorts: ports,
	}
}

// verdict is that on a healthy pair that passes a pool whose alarm is raised, between these points.
func (p *pool) verdict(base *dyetracev1.PairResult, test sequential.Plan, from, to *plan.Expected) *dyetracev1.PairResult {
	s := verdict.Shared{Pairs: len(p.pairs), Test: test, From: from, To: to}
	s.Probes, s.Lost, _ = p.figures()
	if x := p.net; x != nil {
		s.Under = &verdict.Ends{From: x.from, To: x.to, Src: x.src, Dst: x.dst}
	}
	return s.Judge(base)
}
