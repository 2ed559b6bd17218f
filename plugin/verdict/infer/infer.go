package infer

import (
	"cmp"
	"slices"
)

// End is one end of a pair.
type End struct {
	// Instance must be unique among all networks.
	Instance, Host, Network string
}

// Result is what became of a pair's probe.
type Result struct {
	Src, Dst End
	// First and Last say where it was lost: at one of the places from First to Last. 0 if the answer
	// came back. Answer says that it was the answer that was lost.
	First, Last Place
	Answer      bool
	// Weak: that it came back says little, as of a few probes where some are lost by chance. Such a
	// result clears nothing.
	Weak bool
	// Denied: by a security rule.
	Denied bool
	// Flow dropped it, as a name; empty where not known.
	Flow string
	// Host to look at first, by the verdict; may be empty.
	Host string
}

// Finding is one thing that explains some failures.
type Finding struct {
	Component Component
	// Results are the numbers of those that it explains, and nothing before it did.
	Results []int
	// Passed counts the results, whatever they say, of packets that should pass it.
	Passed int
	// Alternatives explain exactly the same, and are as good.
	Alternatives []Component
}

// most bounds the findings; the smallest are left out.
const most = 100

// maxAlternatives bounds those of a finding, so that somebody reads them.
const maxAlternatives = 3

// Of returns what explains the results that are lost, what explains most first, and those that nothing
// explains any more as there are too many findings. racks has those of hosts by name, as far as they
// are known.
func Of(results []Result, racks map[string]string) (findings []Finding, rest []int) {
	if !slices.ContainsFunc(results, func(r Result) bool { return r.First != 0 }) {
		return nil, nil
	}
	t := newTable(results, racks)
	var found []Finding
	for len(found) < most {
		best := t.best()
		if best < 0 {
			break
		}
		found = append(found, t.take(best))
	}
	found = t.drop(found)
	for i := range results {
		if results[i].First != 0 && !t.done[i] {
			rest = append(rest, i)
		}
	}
	return found, rest
}

// suspect is a component that some lost packet met where it was lost.
type suspect struct {
	c       Component
	results []int // that it would explain, ascending
	open    int   // of these, not explained yet
	passed  int
	cleared bool
	here    int // of the open ones, on the host to look at first
}

type table struct {
	results  []Result
	suspects []suspect
	of       [][]int // suspects of each result
	done     []bool
	index    map[Component]int
	fabric   *fabric
	room     []passage // of those looked at
}

func newTable(results []Result, racks map[string]string) *table {
	t := &table{results: results, of: make([][]int, len(results)), done: make([]bool, len(results)), index: map[Component]int{}}
	t.fabric = newFabric(t, racks)
	for i := range results {
		if results[i].First == 0 {
			continue
		}
		l := t.lostLeg(i)
		t.room = t.fabric.passages(l, l.passages(t.room[:0]))
		for _, p := range t.room {
			if p.at(&results[i]) {
				t.accuse(i, p.c)
			}
		}
		if f := results[i].Flow; f != "" {
			t.accuse(i, Component{Kind: Flow, Host: results[i].Host, Flow: f})
		}
		t.accuse(i, Component{Kind: Pair, Instance: results[i].Src.Instance, Other: results[i].Dst.Instance})
	}
	for i := range results {
		t.travels(i, t.walk)
	}
	for s := range t.suspects {
		t.suspects[s].cleared = t.suspects[s].cleared || !t.fabric.broad(t, &t.suspects[s])
	}
	slices.SortStableFunc(t.suspects, func(a, b suspect) int { return compare(a.c, b.c) }) // whatever the order of results
	for s := range t.suspects {
		t.index[t.suspects[s].c] = s
		for _, i := range t.suspects[s].results {
			t.of[i] = append(t.of[i], s)
		}
	}
	return t
}

// lostLeg is the way on which a result's packet was lost.
func (t *table) lostLeg(i int) leg {
	r := &t.results[i]
	if r.Answer {
		return leg{r.Dst, r.Src, true}
	}
	return leg{r.Src, r.Dst, false}
}

// at says that the component may have lost the packet.
func (p passage) at(r *Result) bool {
	switch p.c.Kind {
	case Rules:
		if !r.Denied {
			return false
		}
	case Switch, Host, Network, Underlay, HostNetwork, Tunnel, TunnelNetwork, Route, RackOf, Racks, RackSwitch:
		if r.Denied {
			return false // a rule is an instance's
		}
	}
	return p.first <= r.Last && r.First <= p.last
}

func (t *table) accuse(i int, c Component) {
	s, known := t.index[c]
	if !known {
		s = len(t.suspects)
		t.index[c] = s
		t.suspects = append(t.suspects, suspect{c: c})
	}
	q := &t.suspects[s]
	if n := len(q.results); n > 0 && q.results[n-1] == i {
		return
	}
	q.results = append(q.results, i)
	q.open++
	if t.points(i, c) {
		q.here++
	}
}

// points says that a component is on the host that the verdict on a result points to.
func (t *table) points(i int, c Component) bool {
	h := t.results[i].Host
	return h != "" && c.Host == h && (c.Peer == "" || c.Way == Out)
}

// travels tells of a result's packets up to which place they came.
func (t *table) travels(i int, tell func(l leg, upTo Place, weak bool)) {
	r := &t.results[i]
	there := leg{r.Src, r.Dst, false}
	back := leg{r.Dst, r.Src, true}
	switch {
	case r.First == 0:
		tell(there, Guest+1, r.Weak)
		tell(back, Guest, r.Weak)
	case r.Answer:
		tell(there, Guest+1, false)
		tell(back, r.First, false)
	default:
		tell(there, r.First, false)
	}
}

// walk follows a packet that came up to a place. Weak ones are counted only.
func (t *table) walk(l leg, upTo Place, weak bool) {
	t.room = t.fabric.passages(l, l.passages(t.room[:0]))
	for _, p := range t.room {
		s, known := t.index[p.c]
		if !known {
			continue
		}
		q := &t.suspects[s]
		if p.first <= upTo {
			q.passed++
		}
		if p.last < upTo && !weak {
			q.cleared = true
		}
	}
}

// best is the suspect that explains most of what is not explained; -1 if all is.
func (t *table) best() int {
	best := -1
	for s := range t.suspects {
		q := &t.suspects[s]
		if q.open == 0 || q.cleared {
			continue
		}
		if best < 0 || t.better(q, &t.suspects[best]) {
			best = s
		}
	}
	return best
}

// better: q comes after o in the order of components.
func (t *table) better(q, o *suspect) bool {
	if d := cmp.Compare(q.open, o.open); d != 0 {
		return d > 0
	}
	// One failure has nothing in common with others; what was found to drop packets needs no pointing.
	if q.open == 1 || q.c.Kind == Flow || o.c.Kind == Flow || q.c.Kind == Pair || o.c.Kind == Pair {
		return q.c.Kind < o.c.Kind
	}
	if d := cmp.Compare(q.here, o.here); d != 0 {
		return d > 0
	}
	return q.c.Kind < o.c.Kind
}

// take takes a suspect for found: what it explains is explained.
func (t *table) take(s int) Finding {
	q := &t.suspects[s]
	f := Finding{Component: q.c, Passed: max(q.passed, len(q.results))}
	for _, i := range q.results {
		if !t.done[i] {
			f.Results = append(f.Results, i)
		}
	}
	f.Alternatives = t.alternatives(s, f.Results)
	for _, i := range f.Results {
		t.done[i] = true
		for _, o := range t.of[i] {
			t.suspects[o].open--
			if t.points(i, t.suspects[o].c) {
				t.suspects[o].here--
			}
		}
	}
	return f
}

// alternatives are other suspects that explain the same results. One pair's are too many to tell, and
// a flow that drops is a fact.
func (t *table) alternatives(s int, results []int) []Component {
	q := &t.suspects[s]
	if q.c.Kind == Flow || q.c.Kind == Pair || len(results) < 2 {
		return nil
	}
	var others []Component
	for _, o := range t.of[results[0]] {
		p := &t.suspects[o]
		if o != s && !p.cleared && p.open == q.open && p.c.Kind != Pair && t.all(o, results) {
			others = append(others, p.c)
		}
	}
	slices.SortFunc(others, compare)
	kept := []Component{q.c}
	for _, o := range others {
		// Who reads that it fails one way knows that the other may, too.
		if !slices.ContainsFunc(kept, func(k Component) bool { return k.Kind == o.Kind && k.Way != Both && o.Way == Both }) {
			kept = append(kept, o)
		}
	}
	return kept[1:min(len(kept), maxAlternatives+1)]
}

// all says that a suspect explains all of these results.
func (t *table) all(s int, results []int) bool {
	for _, i := range results {
		if !slices.Contains(t.of[i], s) {
			return false
		}
	}
	return true
}

// drop leaves out what later findings explain as well: greed may take one too many.
func (t *table) drop(found []Finding) []Finding {
	explained := make([]int, len(t.results))
	covers := make([][]int, len(found))
	for f := range found {
		covers[f] = t.suspects[t.index[found[f].Component]].results
		for _, i := range covers[f] {
			explained[i]++
		}
	}
	var kept []Finding
	for f := range found {
		needless := !slices.ContainsFunc(covers[f], func(i int) bool { return explained[i] < 2 })
		if !needless {
			kept = append(kept, found[f])
			continue
		}
		for _, i := range covers[f] {
			explained[i]--
		}
	}
	return t.rehome(kept, found)
}

// rehome gives the results of findings that were left out to those that explain them.
func (t *table) rehome(kept, found []Finding) []Finding {
	if len(kept) == len(found) {
		return kept
	}
	home := make([]bool, len(t.results))
	for k := range kept {
		kept[k].Results = nil
		for _, i := range t.suspects[t.index[kept[k].Component]].results {
			if !home[i] {
				home[i] = true
				kept[k].Results = append(kept[k].Results, i)
			}
		}
	}
	slices.SortStableFunc(kept, func(a, b Finding) int { return cmp.Compare(len(b.Results), len(a.Results)) })
	return kept
}

// width orders ways: one of them is narrower than both.
func (w Way) width() int { return [...]int{In: 0, Out: 1, Both: 2}[w] }

// compare orders components, those first that are named first of several that explain the same.
func compare(a, b Component) int {
	if a.Kind != b.Kind {
		return cmp.Compare(a.Kind, b.Kind)
	}
	if a.Rack != b.Rack || a.PeerRack != b.PeerRack {
		return cmp.Or(cmp.Compare(a.Rack.order(), b.Rack.order()), cmp.Compare(a.PeerRack.order(), b.PeerRack.order()))
	}
	for _, names := range [...][2]string{{a.Host, b.Host}, {a.Peer, b.Peer}, {a.Network, b.Network}, {a.Instance, b.Instance}, {a.Other, b.Other}, {a.Flow, b.Flow}} {
		if names[0] != names[1] {
			return cmp.Compare(names[0], names[1])
		}
	}
	return cmp.Compare(a.Way.width(), b.Way.width())
}
