package infer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Rack is a set of hosts that share their way to all others: one that the caller named, or one that
// the results show.
type Rack struct {
	// Name is the caller's; empty where the results show it.
	Name string
	// Hosts are those that results are about, sorted.
	Hosts []string

	has    []bool // by number of host
	border bool   // all that crosses it may be at fault as such, and not only what passes to some other rack
	rank   int    // in order of compareRacks, from 1
}

// String names a rack for people.
func (k *Rack) String() string {
	hosts := strings.Join(k.Hosts, ", ")
	if shown := 4; len(k.Hosts) > shown {
		hosts = fmt.Sprintf("%s and %d more", strings.Join(k.Hosts[:shown-1], ", "), len(k.Hosts)-shown+1)
	}
	if k.Name == "" {
		return "the rack of " + hosts
	}
	return "rack " + k.Name + " (" + hosts + ")"
}

// order is the rank, 0 of none.
func (k *Rack) order() int {
	if k == nil {
		return 0
	}
	return k.rank
}

// edges are ordered pairs of hosts, by the first.
type edges [][]int

func newEdges(hosts int, list [][2]int) edges {
	e := make(edges, hosts)
	for _, x := range list {
		e[x[0]] = append(e[x[0]], x[1])
	}
	for h := range e {
		slices.Sort(e[h])
		e[h] = slices.Compact(e[h])
	}
	return e
}

// without leaves out those of o.
func (e edges) without(o edges) edges {
	left := make(edges, len(e))
	for h := range e {
		for _, to := range e[h] {
			if _, there := slices.BinarySearch(o[h], to); !there {
				left[h] = append(left[h], to)
			}
		}
	}
	return left
}

func (e edges) reversed() edges {
	back := make(edges, len(e))
	for h := range e {
		for _, to := range e[h] {
			back[to] = append(back[to], h)
		}
	}
	return back
}

// joined has an edge where either has one.
func (e edges) joined(o edges) edges {
	both := make(edges, len(e))
	for h := range e {
		both[h] = slices.Concat(e[h], o[h])
	}
	return both
}

// groups are the strongly connected components of what is within, by Tarjan's algorithm: hosts that
// reach each other, over others of the group if need be. Each is sorted.
func (e edges) groups(within []int) [][]int {
	var all [][]int
	var stack []int
	met, low := make([]int, len(e)), make([]int, len(e)) // when it was met, and the first met that it reaches; 0: not yet
	inside := members(len(e), within)
	n := 0
	var visit func(h int)
	visit = func(h int) {
		n++
		met[h], low[h] = n, n
		stack = append(stack, h)
		for _, to := range e[h] {
			switch {
			case !inside[to]:
			case met[to] == 0:
				visit(to)
				low[h] = min(low[h], low[to])
			default:
				low[h] = min(low[h], met[to])
			}
		}
		if low[h] != met[h] {
			return
		}
		at := slices.Index(stack, h)
		group := slices.Clone(stack[at:])
		stack = stack[:at]
		for _, m := range group {
			inside[m] = false // who reaches it is of another group
		}
		slices.Sort(group)
		all = append(all, group)
	}
	for _, h := range within {
		if met[h] == 0 {
			visit(h)
		}
	}
	return all
}

func members(hosts int, set []int) []bool {
	in := make([]bool, hosts)
	for _, h := range set {
		in[h] = true
	}
	return in
}

// fabric is what results show of the ways between hosts, and the racks that may be at fault.
type fabric struct {
	hosts  []string
	number map[string]int
	// What passed from one host to another, and what did not though something was sent; to is by
	// sender, from by receiver. linked is what passed either way.
	passedTo, passedFrom, lostTo, lostFrom, linked edges

	racks map[string]*Rack  // by their hosts
	of    [][]*Rack         // by host
	apart map[[2]*Rack]bool // those between which nothing passes, though others may be reached
}

// newFabric reads results; named has the racks of hosts, as far as the caller knows.
func newFabric(t *table, named map[string]string) *fabric {
	f := &fabric{number: map[string]int{}, racks: map[string]*Rack{}, apart: map[[2]*Rack]bool{}}
	for i := range t.results {
		f.number[t.results[i].Src.Host], f.number[t.results[i].Dst.Host] = 0, 0
	}
	for h := range f.number {
		f.hosts = append(f.hosts, h)
	}
	slices.Sort(f.hosts)
	for n, h := range f.hosts {
		f.number[h] = n
	}
	f.of = make([][]*Rack, len(f.hosts))
	if len(f.hosts) < 3 {
		return f
	}
	f.read(t)
	f.name(named)
	f.borders()
	f.cuts()
	f.order()
	return f
}

// read notes between which hosts packets passed, and between which they were lost.
func (f *fabric) read(t *table) {
	var passed, lost [][2]int
	for i := range t.results {
		r := &t.results[i]
		if r.Src.Host == r.Dst.Host {
			continue
		}
		t.travels(i, func(l leg, upTo Place, weak bool) {
			if upTo > Between && !weak {
				passed = append(passed, [2]int{f.number[l.from.Host], f.number[l.to.Host]})
			}
		})
		if l := t.lostLeg(i); r.First != 0 && r.First <= Between && Between <= r.Last && !r.Denied {
			lost = append(lost, [2]int{f.number[l.from.Host], f.number[l.to.Host]})
		}
	}
	f.passedTo = newEdges(len(f.hosts), passed)
	f.passedFrom = f.passedTo.reversed()
	f.linked = f.passedTo.joined(f.passedFrom)
	f.lostTo = newEdges(len(f.hosts), lost).without(f.passedTo)
	f.lostFrom = f.lostTo.reversed()
}

// name makes the racks that the caller knows.
func (f *fabric) name(named map[string]string) {
	by := map[string][]int{}
	for n, h := range f.hosts {
		if k := named[h]; k != "" {
			by[k] = append(by[k], n)
		}
	}
	for name, set := range by {
		if len(set) > 1 {
			k := f.rack(set)
			k.Name, k.border = name, f.well(set, k.has)
		}
	}
}

// well says that something passes within a set, or that nothing is known to fail there: else what fails
// is not its border.
func (f *fabric) well(set []int, in []bool) bool {
	within := func(e edges) bool {
		return slices.ContainsFunc(set, func(h int) bool { return slices.ContainsFunc(e[h], func(to int) bool { return in[to] }) })
	}
	return within(f.passedTo) || !within(f.lostTo)
}

// rack returns the one of these hosts, which are sorted.
func (f *fabric) rack(set []int) *Rack {
	hosts := make([]string, len(set))
	for i, h := range set {
		hosts[i] = f.hosts[h]
	}
	key := strings.Join(hosts, "\n")
	k := f.racks[key]
	if k == nil {
		k = &Rack{Hosts: hosts, has: members(len(f.hosts), set)}
		f.racks[key] = k
		for _, h := range set {
			f.of[h] = append(f.of[h], k)
		}
	}
	return k
}

// borders finds the sets that are linked, and whose border nothing passes one way at least. Of such a
// set and all others, the smaller is a rack, if it is linked; of two halves both are.
func (f *fabric) borders() {
	all := make([]int, len(f.hosts))
	for h := range all {
		all[h] = h
	}
	for _, e := range []edges{f.passedTo, f.linked} {
		for _, set := range e.groups(all) {
			if len(set) < 2 || len(all)-len(set) < 2 {
				continue
			}
			in := members(len(all), set)
			if leaves(f.passedTo, set, in) && leaves(f.passedFrom, set, in) {
				continue
			}
			if 2*len(set) < len(all) {
				f.rack(set).border = true
				continue
			}
			rest := slices.DeleteFunc(slices.Clone(all), func(h int) bool { return in[h] })
			if len(f.linked.groups(rest)) > 1 {
				continue
			}
			f.rack(rest).border = true
			if len(set) == len(rest) {
				f.rack(set).border = true
			}
		}
	}
}

// leaves says that an edge leads out of a set.
func leaves(e edges, set []int, in []bool) bool {
	for _, h := range set {
		if slices.ContainsFunc(e[h], func(to int) bool { return !in[to] }) {
			return true
		}
	}
	return false
}

// cuts finds two sets each of which passes all within, and between which nothing passes, one way at
// least, though both may reach others. The search begins with what one host misses, the most first.
func (f *fabric) cuts() {
	type start struct {
		misses []int
		back   bool // it is those who do not reach it
	}
	var starts []start
	for h := range f.hosts {
		starts = append(starts, start{f.lostTo[h], false}, start{f.lostFrom[h], true})
	}
	starts = slices.DeleteFunc(starts, func(s start) bool { return len(s.misses) < 2 })
	slices.SortFunc(starts, func(a, b start) int {
		return cmp.Or(cmp.Compare(len(b.misses), len(a.misses)), slices.Compare(a.misses, b.misses), compareBool(a.back, b.back))
	})
	starts = slices.CompactFunc(starts, func(a, b start) bool { return a.back == b.back && slices.Equal(a.misses, b.misses) })
	for _, s := range starts[:min(len(starts), most)] {
		var from, to []int
		if s.back {
			to = missing(f.lostTo, f.passedTo, s.misses)
			from = missing(f.lostFrom, f.passedFrom, to)
		} else {
			from = missing(f.lostFrom, f.passedFrom, s.misses)
			to = missing(f.lostTo, f.passedTo, from)
		}
		from, to = f.largest(from), f.largest(to)
		if len(from) < 2 || len(to) < 2 || len(from)+len(to) == len(f.hosts) || overlap(from, to) {
			continue // of two that are all hosts, either is a rack of its own
		}
		a, b := f.rack(from), f.rack(to)
		f.apart[[2]*Rack{a, b}], f.apart[[2]*Rack{b, a}] = true, true
	}
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func overlap(a, b []int) bool {
	return slices.ContainsFunc(a, func(h int) bool { _, there := slices.BinarySearch(b, h); return there })
}

// missing are the hosts that lost edges lead to from some of the set, and passed ones from none.
func missing(lost, passed edges, set []int) []int {
	out := make([]bool, len(lost))
	for _, h := range set {
		for _, to := range passed[h] {
			out[to] = true
		}
	}
	var all []int
	for _, h := range set {
		for _, to := range lost[h] {
			if !out[to] {
				out[to] = true
				all = append(all, to)
			}
		}
	}
	slices.Sort(all)
	return all
}

// largest is the largest part of a set that passes all within.
func (f *fabric) largest(set []int) []int {
	var best []int
	for _, g := range f.passedTo.groups(set) {
		if len(g) > len(best) || len(g) == len(best) && slices.Compare(g, best) < 0 {
			best = g
		}
	}
	return best
}

// order ranks the racks.
func (f *fabric) order() {
	var all []*Rack
	for _, k := range f.racks {
		all = append(all, k)
	}
	slices.SortFunc(all, compareRacks)
	for n, k := range all {
		k.rank = n + 1
	}
	for h := range f.of {
		slices.SortFunc(f.of[h], compareRacks)
	}
}

// compareRacks orders them: those that have names first, of these, and of others, the smaller.
func compareRacks(a, b *Rack) int {
	return cmp.Or(compareBool(a.Name == "", b.Name == ""), cmp.Compare(len(a.Hosts), len(b.Hosts)), slices.Compare(a.Hosts, b.Hosts))
}

// passages appends the racks that a packet passes.
func (f *fabric) passages(l leg, ps []passage) []passage {
	if len(f.racks) == 0 || l.from.Host == l.to.Host {
		return ps
	}
	s, r := f.number[l.from.Host], f.number[l.to.Host]
	add := func(c Component) { ps = append(ps, passage{c, Between, Between}) }
	for _, k := range f.of[s] {
		if k.Name != "" {
			add(Component{Kind: RackSwitch, Rack: k})
		}
		if k.has[r] {
			continue
		}
		if k.border {
			add(Component{Kind: RackOf, Rack: k})
			add(Component{Kind: RackOf, Way: Out, Rack: k})
		}
		for _, o := range f.of[r] {
			if o.has[s] || !f.faces(k, o) {
				continue
			}
			add(Component{Kind: Racks, Way: Out, Rack: k, PeerRack: o})
			if o.rank < k.rank {
				add(Component{Kind: Racks, Rack: o, PeerRack: k})
			} else {
				add(Component{Kind: Racks, Rack: k, PeerRack: o})
			}
		}
	}
	for _, k := range f.of[r] {
		if k.has[s] {
			continue
		}
		if k.Name != "" {
			add(Component{Kind: RackSwitch, Rack: k})
		}
		if k.border {
			add(Component{Kind: RackOf, Rack: k})
			add(Component{Kind: RackOf, Way: In, Rack: k})
		}
	}
	return ps
}

// faces says that what passes between two racks may be at fault as such.
func (f *fabric) faces(a, b *Rack) bool {
	return a.Name != "" && b.Name != "" && len(a.Hosts)+len(b.Hosts) < len(f.hosts) || f.apart[[2]*Rack{a, b}]
}

// broad says that what a suspect would explain is of two hosts at least on either side of its border;
// for racks with names, less is enough.
func (f *fabric) broad(t *table, q *suspect) bool {
	k := q.c.Rack
	if k == nil || k.Name != "" {
		return true
	}
	in, out := -1, -1
	moreIn, moreOut := false, false
	for _, i := range q.results {
		a, b := f.number[t.results[i].Src.Host], f.number[t.results[i].Dst.Host]
		if !k.has[a] {
			a, b = b, a
		}
		moreIn, moreOut = moreIn || in >= 0 && in != a, moreOut || out >= 0 && out != b
		in, out = a, b
	}
	return moreIn && moreOut
}
