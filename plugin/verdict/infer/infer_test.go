package infer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// cloud is a simulated one: every instance to every other of a joined network, with broken components.
type cloud struct {
	ends   []End
	broken []fault
	racks  map[string]string // of hosts
	fabric *fabric           // as everybody knows it
}

// fault is a component that loses everything at one place.
type fault struct {
	c     Component
	place Place
}

// newCloud has a few hosts in racks, each with instances in some networks.
func newCloud(r *rand.Rand, hosts, instances, networks int) *cloud {
	c := &cloud{racks: map[string]string{}}
	for i := range instances {
		c.ends = append(c.ends, End{fmt.Sprintf("i%d", i), fmt.Sprintf("hv%d", r.IntN(hosts)), fmt.Sprintf("net%d", r.IntN(networks))})
	}
	racks := 2 + r.IntN(3)
	for h := range hosts {
		c.racks[fmt.Sprintf("hv%d", h)] = fmt.Sprintf("rack%d", h%racks)
	}
	var all []Result
	for _, s := range c.ends {
		all = append(all, Result{Src: s, Dst: c.ends[0]})
	}
	c.fabric = newFabric(&table{results: all}, c.racks)
	return c
}

// rack is that of a host.
func (c *cloud) rack(host string) *Rack { return c.fabric.of[c.fabric.number[host]][0] }

// passages are all that a packet passes.
func (c *cloud) passages(l leg) []passage { return c.fabric.passages(l, l.passages(nil)) }

// breakable draws a fault that some packet of the cloud meets.
func (c *cloud) breakable(r *rand.Rand) fault {
	for {
		s, d := c.ends[r.IntN(len(c.ends))], c.ends[r.IntN(len(c.ends))]
		if s == d {
			continue
		}
		ps := c.passages(leg{s, d, false})
		p := ps[r.IntN(len(ps))]
		place := p.first + Place(r.IntN(int(p.last-p.first)+1))
		if (place == Between || place == Destination) && s.Host == d.Host || p.c.Kind == Underlay || p.c.Kind == RackSwitch {
			continue
		}
		return fault{p.c, place}
	}
}

// lose returns the first place where a packet is lost, 0 if nowhere.
func (c *cloud) lose(l leg) (at Place, by Component) {
	for _, p := range c.passages(l) {
		for _, f := range c.broken {
			if f.c != p.c {
				continue
			}
			place := f.place
			if place < p.first || p.last < place {
				place = p.first // a thing of several places is broken at all of them
			}
			if l.from.Host == l.to.Host && (place == Between || place == Destination) {
				place = Delivery
			}
			if at == 0 || place < at {
				at, by = place, f.c
			}
		}
	}
	return at, by
}

// results probes all pairs, in a random order.
func (c *cloud) results(r *rand.Rand) []Result {
	var all []Result
	for _, s := range c.ends {
		for _, d := range c.ends {
			if s == d {
				continue
			}
			res := Result{Src: s, Dst: d}
			at, by := c.lose(leg{s, d, false})
			if at == 0 {
				if at, by = c.lose(leg{d, s, true}); at == Guest {
					at = 0 // nobody sees what the source's guest does
				}
				res.Answer = at != 0
			}
			res.First, res.Last = at, at
			res.Denied = by.Kind == Rules
			if s.Host == d.Host && (at == Source || at == Delivery) {
				res.First, res.Last = Source, Delivery // one segment
			}
			all = append(all, res)
		}
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// check holds findings against the results that they are from.
func check(t *testing.T, results []Result, found []Finding) {
	t.Helper()
	explained := make([]int, len(results))
	for n, f := range found {
		if len(f.Results) == 0 {
			t.Errorf("%s explains nothing", f.Component)
		}
		if n > 0 && len(f.Results) > len(found[n-1].Results) {
			t.Errorf("%s explains more than the one before it", f.Component)
		}
		for _, i := range f.Results {
			explained[i]++
			if results[i].First == 0 {
				t.Errorf("%s explains a pair that is healthy", f.Component)
			}
		}
	}
	contradicted(t, results, found)
	for i := range results {
		if want := min(int(results[i].First), 1); explained[i] != want && len(found) < most {
			t.Errorf("%v is explained %d times; want %d", results[i], explained[i], want)
		}
	}
}

// contradicted wants no healthy pair to have passed what is blamed.
func contradicted(t *testing.T, results []Result, found []Finding) {
	t.Helper()
	by := map[Component]*Result{}
	var crossed []leg
	for i := range results {
		r := &results[i]
		if r.First != 0 || r.Weak {
			continue
		}
		for _, l := range []leg{{r.Src, r.Dst, false}, {r.Dst, r.Src, true}} {
			crossed = append(crossed, l)
			for _, p := range l.passages(nil) {
				if !l.answer || p.last < Guest { // whether the source's guest takes the answer is not seen
					by[p.c] = r
				}
			}
		}
	}
	for _, f := range found {
		for _, c := range append(slices.Clone(f.Alternatives), f.Component) {
			if r := by[c]; r != nil {
				t.Fatalf("%s is blamed, but %s → %s passed it", c, r.Src.Instance, r.Dst.Instance)
			}
			if i := slices.IndexFunc(crossed, func(l leg) bool { return crosses(c, l) }); i >= 0 {
				t.Fatalf("%s is blamed, but from %s to %s something passed", c, crossed[i].from.Host, crossed[i].to.Host)
			}
		}
		for _, i := range f.Results {
			l := (&table{results: results}).lostLeg(i)
			if f.Component.Rack != nil && !crosses(f.Component, l) {
				t.Fatalf("%s is blamed for %s → %s", f.Component, l.from.Host, l.to.Host)
			}
		}
	}
}

// crosses says that a packet crosses the border of a rack, the way that is blamed.
func crosses(c Component, l leg) bool {
	if c.Rack == nil {
		return false
	}
	from, to := slices.Contains(c.Rack.Hosts, l.from.Host), slices.Contains(c.Rack.Hosts, l.to.Host)
	if c.Kind == RackSwitch {
		return l.from.Host != l.to.Host && (from || to)
	}
	out, in := from && !to, to && !from
	if c.Kind == Racks {
		out = from && slices.Contains(c.PeerRack.Hosts, l.to.Host)
		in = to && slices.Contains(c.PeerRack.Hosts, l.from.Host)
	}
	return out && c.Way != In || in && c.Way != Out
}

func TestSimulated(t *testing.T) {
	t.Parallel()
	for _, faults := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(faults), func(t *testing.T) {
			t.Parallel()
			const clouds = 200
			named, broken, tooMany := 0, 0, 0
			for seed := range uint64(clouds) {
				r := rand.New(rand.NewPCG(seed, uint64(faults)))
				c := newCloud(r, 2+r.IntN(4), 4+r.IntN(9), 1+r.IntN(3))
				for range faults {
					c.broken = append(c.broken, c.breakable(r))
				}
				results := c.results(r)
				names := c.racks
				if seed%2 == 0 {
					names = nil
				}
				found, _ := Of(results, names)
				check(t, results, found)
				if t.Failed() {
					t.Fatalf("seed %d, broken %v", seed, c.broken)
				}
				if len(found) > faults {
					tooMany++
					if faults == 1 {
						t.Fatalf("seed %d: %v is broken, found %s", seed, c.broken, words(found))
					}
				}
				all := newTable(results, names)
				for _, f := range c.broken {
					if !c.shows(f, results) {
						continue
					}
					broken++
					if slices.ContainsFunc(found, func(x Finding) bool { return equivalent(all, f.c, x) }) {
						named++
					}
				}
			}
			t.Logf("%d of %d faults that show are named, or one that explains the same; %d of %d clouds with more findings than faults", named, broken, tooMany, clouds)
			if share := float64(named) / float64(broken); share < map[int]float64{1: 1, 2: .97, 3: .93}[faults] {
				t.Errorf("%.3f of the faults are named", share)
			}
		})
	}
}

// shows says that a fault is the reason of some failure.
func (c *cloud) shows(f fault, results []Result) bool {
	for i := range results {
		r := &results[i]
		if r.First == 0 {
			continue
		}
		l := leg{r.Src, r.Dst, false}
		if r.Answer {
			l = leg{r.Dst, r.Src, true}
		}
		if _, by := c.lose(l); by == f.c {
			return true
		}
	}
	return false
}

// equivalent says that a finding names a component, or one that explains all that it explains.
func equivalent(t *table, c Component, f Finding) bool {
	var want []int
	if c.Rack != nil {
		for i := range t.results {
			if l := t.lostLeg(i); t.results[i].First == Between && crosses(c, l) {
				want = append(want, i)
			}
		}
	} else if s, ok := t.index[c]; ok {
		want = t.suspects[s].results
	}
	if len(want) == 0 {
		return false
	}
	if f.Component == c || slices.Contains(f.Alternatives, c) {
		return true
	}
	have := slices.IndexFunc(t.suspects, func(s suspect) bool { return alike(s.c, f.Component) })
	for _, i := range want {
		if !slices.Contains(t.suspects[have].results, i) {
			return false
		}
	}
	return true
}

// alike says that two components, of two calls, are the same.
func alike(a, b Component) bool {
	same := func(a, b *Rack) bool { return (a == nil) == (b == nil) && (a == nil || slices.Equal(a.Hosts, b.Hosts)) }
	if !same(a.Rack, b.Rack) || !same(a.PeerRack, b.PeerRack) {
		return false
	}
	a.Rack, a.PeerRack, b.Rack, b.PeerRack = nil, nil, nil, nil
	return a == b
}

func words(found []Finding) string {
	var all []string
	for _, f := range found {
		all = append(all, fmt.Sprintf("%s (%d)", f.Component, len(f.Results)))
	}
	return strings.Join(all, "; ")
}

// TestAnyOrder: the order of the results means nothing.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 7))
		c := newCloud(r, 4, 9, 2)
		for range 3 {
			c.broken = append(c.broken, c.breakable(r))
		}
		one, _ := Of(c.results(r), nil)
		other, _ := Of(c.results(r), nil)
		if words(one) != words(other) {
			t.Fatalf("seed %d: %s\nin another order: %s", seed, words(one), words(other))
		}
	}
}

func end(text string) End {
	var e End
	if n, err := fmt.Sscanf(text, "%s %s %s", &e.Instance, &e.Host, &e.Network); n != 3 || err != nil {
		panic(text)
	}
	return e
}

func TestOf(t *testing.T) {
	t.Parallel()
	a1, a2, b1, b2, c1 := end("a1 hvA blue"), end("a2 hvA blue"), end("b1 hvB blue"), end("b2 hvB blue"), end("c1 hvC blue")
	healthy := func(s, d End) Result { return Result{Src: s, Dst: d} }
	lost := func(s, d End, at Place) Result { return Result{Src: s, Dst: d, First: at, Last: at} }
	tests := []struct {
		name    string
		results []Result
		want    string
	}{
		{"nothing", nil, ""},
		{"all well", []Result{healthy(a1, b1), healthy(b1, a1)}, ""},
		{"one pair", []Result{lost(a1, b1, Between)}, "a1 → b1 (1)"},
		{"a tunnel, one way", []Result{lost(a1, b1, Between), lost(a1, b2, Between), lost(a2, b1, Between), lost(a2, b2, Between), healthy(a1, c1), healthy(c1, b1)},
			"the tunnel hvA → hvB for network blue (4), or the tunnel hvA → hvB"},
		{"a guest", []Result{lost(a1, b1, Guest), lost(a2, b1, Guest), lost(b2, b1, Guest), healthy(a1, b2), healthy(b1, a1)}, "the guest of b1 (3)"},
		{"a flow is a fact", []Result{
			{Src: a1, Dst: b1, First: Destination, Last: Destination, Flow: "hvB br-tun drop", Host: "hvB"},
			{Src: c1, Dst: b2, First: Destination, Last: Destination, Flow: "hvB br-tun drop", Host: "hvB"},
		}, "hvB br-tun drop (2)"},
		{"a rule", []Result{
			{Src: a1, Dst: b1, First: Delivery, Last: Delivery, Denied: true}, {Src: c1, Dst: b1, First: Delivery, Last: Delivery, Denied: true}, healthy(b1, a1),
		}, "the security rules for what is sent to b1 (2)"},
		{"a weak one clears nothing", []Result{lost(a1, b1, Between), lost(a2, b1, Between), {Src: a1, Dst: b2, Weak: true}, healthy(c1, b1), healthy(b1, c1)},
			"b1, as hvA sends to it (2), or the tunnel hvA → hvB for network blue, or the tunnel hvA → hvB, or what of network blue is sent from hvA"},
		{"two faults", []Result{lost(a1, b1, Guest), lost(c1, b1, Guest), lost(a1, b2, Between), lost(a2, b2, Between), healthy(c1, b2), lost(a2, b1, Guest)},
			"the guest of b1 (3); b2, as hvA sends to it (2)"},
	}
	for _, tt := range tests {
		found, _ := Of(tt.results, nil)
		if got := told(found); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// BenchmarkOf: 10,000 pairs of 104 instances on 20 hosts; none, one host, or all of them failed.
func BenchmarkOf(b *testing.B) {
	for name, breaks := range map[string]func(*cloud){
		"healthy": func(*cloud) {},
		"host":    func(c *cloud) { c.broken = []fault{{Component{Kind: Host, Host: "hv3"}, Between}} },
		"rack":    func(c *cloud) { c.broken = []fault{{Component{Kind: RackOf, Rack: c.rack("hv3")}, Between}} },
		"all":     func(c *cloud) { c.broken = []fault{{Component{Kind: Underlay}, Between}} },
		"pairs": func(c *cloud) { // each by itself
			for i := range c.ends {
				for k := range 10 {
					p := Component{Kind: Path, Instance: c.ends[i].Instance, Other: c.ends[(i*7+k*3+1)%len(c.ends)].Instance}
					c.broken = append(c.broken, fault{p, Source})
				}
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 2))
			c := newCloud(r, 20, 104, 3)
			breaks(c)
			results := c.results(r)
			b.ReportAllocs()
			for b.Loop() {
				Of(results, nil)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(results)), "ns/pair")
		})
	}
}
