package infer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// rackCloud has racks with two hosts or more, and instances on each.
func rackCloud(r *rand.Rand, hosts int) *cloud {
	c := newCloud(r, hosts, hosts+r.IntN(hosts), 1+r.IntN(3))
	for h := range hosts {
		c.ends[h].Host = fmt.Sprintf("hv%d", h)
	}
	c.racks = map[string]string{}
	for h := range hosts {
		c.racks[fmt.Sprintf("hv%d", h)] = fmt.Sprintf("rack%d", h%(hosts/2))
	}
	var all []Result
	for _, s := range c.ends {
		all = append(all, Result{Src: s, Dst: c.ends[0]})
	}
	c.fabric = newFabric(&table{results: all}, c.racks)
	return c
}

// rackFault breaks a rack, the way between two, or, if racks are known by name, all of one.
func (c *cloud) rackFault(r *rand.Rand, named bool) fault {
	a, b := c.rack(c.ends[r.IntN(len(c.ends))].Host), c.rack(c.ends[r.IntN(len(c.ends))].Host)
	way := []Way{Both, In, Out}[r.IntN(3)]
	if named && r.IntN(4) == 0 {
		return fault{Component{Kind: RackSwitch, Rack: a}, Between}
	}
	if r.IntN(3) > 0 || a == b || !c.fabric.faces(a, b) {
		return fault{Component{Kind: RackOf, Way: way, Rack: a}, Between}
	}
	if way == In {
		way = Out
	}
	if way == Both && b.rank < a.rank {
		a, b = b, a
	}
	return fault{Component{Kind: Racks, Way: way, Rack: a, PeerRack: b}, Between}
}

// TestRacksSimulated: a rack is at fault, and up to two other things, and of some pairs nothing is known.
func TestRacksSimulated(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		further, unknown  int // unknown of 100 pairs
		named             bool
		share, wrong, few float64 // of the faults of racks that are named, of clouds in which a rack is blamed wrongly, with no more findings than faults
	}{
		{0, 0, false, 1, 0, 1}, {0, 0, true, 1, 0, 1}, {0, 30, false, .9, 0, .9}, {0, 30, true, .98, 0, .98},
		{1, 0, false, .85, 0, .85}, {2, 0, true, .88, 0, .85}, {2, 0, false, .75, 0, .85}, {2, 30, false, .7, 0, .8}, {2, 30, true, .8, 0, .8},
	} {
		t.Run(fmt.Sprintf("%d further, %d%% unknown, named %v", tt.further, tt.unknown, tt.named), func(t *testing.T) {
			t.Parallel()
			const clouds = 100
			named, broken, wrong, few := 0, 0, 0, 0
			for seed := range uint64(clouds) {
				r := rand.New(rand.NewPCG(seed, 3))
				c := rackCloud(r, 4+r.IntN(7))
				rack := c.rackFault(r, tt.named)
				c.broken = []fault{rack}
				for range tt.further {
					c.broken = append(c.broken, c.breakable(r))
				}
				results := slices.DeleteFunc(c.results(r), func(Result) bool { return r.IntN(100) < tt.unknown })
				var names map[string]string
				if tt.named {
					names = c.racks
				}
				found, _ := Of(results, names)
				check(t, results, found)
				if t.Failed() {
					t.Fatalf("seed %d, broken %v", seed, c.broken)
				}
				if len(found) <= len(c.broken) {
					few++
				}
				if i := slices.IndexFunc(found, func(f Finding) bool { return f.Component.Rack != nil && !c.ofRack(results, f) }); i >= 0 {
					wrong++
					t.Logf("seed %d: %s broken, wrongly found %s", seed, c.words(), words(found))
				}
				if !c.showsWide(rack, results) {
					continue
				}
				broken++
				all := newTable(results, names)
				if slices.ContainsFunc(found, func(x Finding) bool { return equivalent(all, rack.c, x) }) {
					named++
				} else {
					t.Logf("seed %d: %s broken, not found: %s", seed, c.words(), words(found))
				}
			}
			t.Logf("%d of %d racks named, %d of %d clouds with one blamed wrongly, %d with no more findings than faults", named, broken, wrong, clouds, few)
			if float64(named) < tt.share*float64(broken) || float64(wrong) > tt.wrong*clouds || float64(few) < tt.few*clouds {
				t.Errorf("want %v of racks named, %v blamed wrongly, %v with no more findings than faults", tt.share, tt.wrong, tt.few)
			}
		})
	}
}

// words has what is broken.
func (c *cloud) words() string {
	var all []string
	for _, f := range c.broken {
		all = append(all, f.c.String())
	}
	return strings.Join(all, "; ")
}

// showsWide says that a fault is why several hosts fail to reach several.
func (c *cloud) showsWide(f fault, results []Result) bool {
	from, to := map[string]bool{}, map[string]bool{}
	for _, r := range results {
		if l := (&table{results: []Result{r}}).lostLeg(0); r.First != 0 {
			if _, by := c.lose(l); by == f.c {
				from[l.from.Host], to[l.to.Host] = true, true
			}
		}
	}
	return len(from) > 1 && len(to) > 1
}

// ofRack says that a rack's fault is the reason of what a finding explains, of some of it at least.
func (c *cloud) ofRack(results []Result, f Finding) bool {
	n := 0
	for _, i := range f.Results {
		if _, by := c.lose((&table{results: results}).lostLeg(i)); by.Rack != nil {
			n++
		}
	}
	return n > 0
}

// TestPassedAcross: what passes the border of a rack clears it, whatever else is known.
func TestPassedAcross(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 5))
		c := rackCloud(r, 4+r.IntN(5))
		c.broken = []fault{c.rackFault(r, seed%2 == 0)}
		results := c.results(r)
		for range 3 {
			i := r.IntN(len(results))
			results[i] = Result{Src: results[i].Src, Dst: results[i].Dst}
			for _, names := range []map[string]string{nil, c.racks} {
				found, _ := Of(results, names)
				check(t, results, found)
			}
			if t.Failed() {
				t.Fatalf("seed %d: %v is broken, but %s → %s passed", seed, c.broken, results[i].Src.Instance, results[i].Dst.Instance)
			}
		}
	}
}

// matrix has an instance on each host. Rows are senders, columns receivers: + passes, - is lost between
// hosts, . is not known; as probes would tell if nothing were ever lost of answers.
func matrix(text string) []Result {
	rows := strings.Fields(text)
	var all []Result
	for i, row := range rows {
		host, cells, _ := strings.Cut(row, ":")
		for k, cell := range cells {
			peer, _, _ := strings.Cut(rows[k], ":")
			s, d := End{"i" + host, host, "blue"}, End{"i" + peer, peer, "blue"}
			back := rows[k][strings.Index(rows[k], ":")+1:][i]
			switch {
			case i == k || cell == '.':
			case cell == '-':
				all = append(all, Result{Src: s, Dst: d, First: Between, Last: Between})
			case back == '-':
				all = append(all, Result{Src: s, Dst: d, Answer: true, First: Between, Last: Between})
			default:
				all = append(all, Result{Src: s, Dst: d})
			}
		}
	}
	return all
}

func TestRacks(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, matrix, racks, want string
	}{
		{"cut off", "r1:++--- r2:++--- o1:--+++ o2:--+++ o3:--+++", "", "the rack of r1, r2 (12)"},
		{"cut off, with its name", "r1:++--- r2:++--- o1:--+++ o2:--+++ o3:--+++", "r1=A r2=A o1=B o2=B o3=B",
			"rack A (r1, r2) (12), or rack B (o1, o2, o3)"},
		{"the larger part has the name", "r1:++--- r2:++--- o1:--+++ o2:--+++ o3:--+++", "o1=B o2=B o3=B r1=C r2=D",
			"rack B (o1, o2, o3) (12), or the rack of r1, r2"},
		{"two halves", "r1:++-- r2:++-- o1:--++ o2:--++", "", "the rack of o1, o2 (8), or the rack of r1, r2"},
		{"what comes to it", "r1:+++++ r2:+++++ o1:--+++ o2:--+++ o3:--+++", "", "what other hosts send to the rack of r1, r2 (12)"},
		{"what leaves it", "r1:++--- r2:++--- o1:+++++ o2:+++++ o3:+++++", "", "what the rack of r1, r2 sends to other hosts (12)"},
		{"not known of one another", "r1:+.--- r2:.+--- o1:--+++ o2:--+++ o3:--+++", "", "network blue on r1 (6), or host r1; network blue on r2 (6), or host r2"},
		{"not known of one another, of one rack", "r1:+.--- r2:.+--- o1:--+++ o2:--+++ o3:--+++", "r1=A r2=A", "rack A (r1, r2) (12), or the switch of rack A (r1, r2)"},
		{"known one way", "r1:++--- r2:.+--- o1:--+++ o2:--+++ o3:--+++", "", "the rack of r1, r2 (12)"},
		{"some of what crosses is not known", "r1:++-.- r2:++.-- o1:.-+++ o2:-.+++ o3:--+++", "", "the rack of r1, r2 (8)"},
		{"one passes", "r1:+++-- r2:++--- o1:--+++ o2:--+++ o3:--+++", "", "what passes between the rack of o2, o3 and the rack of r1, r2 (8); what other hosts send to the rack of r1, r2 (3); ir2 → io1 (1)"},
		{"two hosts that fail alike", "r1:+---- r2:-+--- o1:--+++ o2:--+++ o3:--+++", "", "network blue on r1 (8), or host r1; network blue on r2 (6), or host r2"},
		{"two hosts that fail alike, of one rack", "r1:+---- r2:-+--- o1:--+++ o2:--+++ o3:--+++", "r1=A r2=A", "the switch of rack A (r1, r2) (14)"},
		{"two hosts that fail alike one way, of one rack", "r1:++--- r2:-+--- o1:--+++ o2:--+++ o3:--+++", "r1=A r2=A", "rack A (r1, r2) (12); ir2 → ir1 (2), or ir1, as r2 sends to it, or what is sent to ir1, or the tunnel r2 → r1 for network blue"},
		{"two hosts that fail, of one rack, each in its own way", "r1:+---- r2:-++++ o1:--+++ o2:--+++ o3:--+++", "r1=A r2=A",
			"network blue on r1 (8), or host r1; what is sent to ir2 (6), or what of network blue is sent to r2, or what other hosts send to r2"},
		{"one host", "r1:+---- r2:-++++ o1:-++++ o2:-++++ o3:-++++", "r1=A r2=A", "network blue on r1 (8), or host r1"},
		{"no host is reached", "r1:+---- r2:-+--- o1:--+-- o2:---+- o3:----+", "r1=A r2=A", "network blue between hosts (20), or all tunnels"},
		{"racks lose each other", "a1:++--++ a2:++--++ b1:--++++ b2:--++++ c1:++++++ c2:++++++", "",
			"what passes between the rack of a1, a2 and the rack of b1, b2 (8)"},
		{"racks lose each other, one way", "a1:++--++ a2:++--++ b1:++++++ b2:++++++ c1:++++++ c2:++++++", "a1=A a2=A b1=B b2=B",
			"what rack A (a1, a2) sends to rack B (b1, b2) (8)"},
		{"racks lose each other, some is not known", "a1:++-.++ a2:++.-++ b1:--++++ b2:.-++++ c1:++++++ c2:++++++", "",
			"what passes between the rack of a1, a2 and the rack of b1, b2 (5)"},
		{"two racks", "a1:++---- a2:++---- b1:--++-- b2:--++-- c1:----++ c2:----++", "", "the rack of a1, a2 (16); the rack of b1, b2 (8), or the rack of c1, c2"},
	}
	for _, tt := range tests {
		racks := map[string]string{}
		for _, text := range strings.Fields(tt.racks) {
			host, rack, _ := strings.Cut(text, "=")
			racks[host] = rack
		}
		results := matrix(tt.matrix)
		found, rest := Of(results, racks)
		check(t, results, found)
		if got := told(found); got != tt.want || rest != nil {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// grid has one instance on each of some hosts, the first of which are in a rack that is cut off.
func grid(hosts, rack int) []Result {
	var all []Result
	for i := range hosts {
		for k := range hosts {
			if i == k {
				continue
			}
			r := Result{Src: End{fmt.Sprint("i", i), fmt.Sprint("hv", i), "blue"}, Dst: End{fmt.Sprint("i", k), fmt.Sprint("hv", k), "blue"}}
			if i < rack != (k < rack) {
				r.First, r.Last = Between, Between
			}
			all = append(all, r)
		}
	}
	return all
}

// TestLargeRack: as many tunnels as a rack has to others are one finding.
func TestLargeRack(t *testing.T) {
	t.Parallel()
	found, rest := Of(grid(100, 20), nil)
	if got, want := told(found), "the rack of hv0, hv1, hv10 and 17 more (3200)"; got != want || rest != nil {
		t.Errorf("got %s, and %d left over; want %s", got, len(rest), want)
	}
}

// BenchmarkRacks: all hosts to all others, a fifth of them cut off, or as many pairs of hosts by chance; to
// be compared with BenchmarkOf.
func BenchmarkRacks(b *testing.B) {
	for _, hosts := range []int{100, 300} {
		cut := grid(hosts, hosts/5)
		chance := slices.Clone(cut)
		r := rand.New(rand.NewPCG(1, 2))
		for i := range chance {
			chance[i].First, chance[i].Last = 0, 0
			if r.IntN(100) < 1 {
				chance[i].First, chance[i].Last = Between, Between
			}
		}
		for name, results := range map[string][]Result{"cut": cut, "chance": chance} {
			b.Run(fmt.Sprintf("%s/%d", name, len(results)), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					Of(results, nil)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(results)), "ns/pair")
			})
		}
	}
}

// told has findings with what explains the same.
func told(found []Finding) string {
	var all []string
	for _, f := range found {
		text := fmt.Sprintf("%s (%d)", f.Component, len(f.Results))
		for _, a := range f.Alternatives {
			text += ", or " + a.String()
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// TestRest: what is left over is told.
func TestRest(t *testing.T) {
	t.Parallel()
	var results []Result
	for n := range most + 7 { // each pair for itself, as its hosts reach each other
		s, d := End{fmt.Sprintf("s%d", n), "hvA", "blue"}, End{fmt.Sprintf("d%d", n), "hvB", "blue"}
		results = append(results, Result{Src: s, Dst: d, First: Between, Last: Between})
	}
	results = append(results, Result{Src: End{"s", "hvA", "blue"}, Dst: End{"d", "hvB", "blue"}})
	found, rest := Of(results, nil)
	if len(found) != most || len(rest) != 7 {
		t.Errorf("%d findings, %d left over; want %d, 7", len(found), len(rest), most)
	}
}

// TestNoRack: where no rack is at fault none is blamed, but where what is explains the same, and is told of
// so. Of several faults in sparse results, a rack may explain two.
func TestNoRack(t *testing.T) {
	t.Parallel()
	const clouds = 100
	for faults, most := range map[int]int{1: 0, 2: 1, 3: 1} {
		for _, unknown := range []int{0, 30, 60} {
			blamed := 0
			for seed := range uint64(clouds) {
				r := rand.New(rand.NewPCG(seed, uint64(unknown+faults)))
				c := rackCloud(r, 4+r.IntN(7))
				for len(c.broken) < faults {
					if f := c.breakable(r); f.c.Rack == nil {
						c.broken = append(c.broken, f)
					}
				}
				results := slices.DeleteFunc(c.results(r), func(Result) bool { return r.IntN(100) < unknown })
				found, _ := Of(results, map[uint64]map[string]string{0: nil, 1: c.racks}[seed%2])
				check(t, results, found)
				for _, f := range found {
					told := slices.ContainsFunc(f.Alternatives, func(a Component) bool { return slices.ContainsFunc(c.broken, func(b fault) bool { return b.c == a }) })
					if f.Component.Rack != nil && !told {
						blamed++
						t.Logf("%d unknown, seed %d: %s broken, found %s", unknown, seed, c.words(), words(found))
					}
				}
			}
			if blamed > most {
				t.Errorf("%d faults, %d%% unknown: a rack is blamed in %d of %d clouds; want %d at most", faults, unknown, blamed, clouds, most)
			}
		}
	}
}
