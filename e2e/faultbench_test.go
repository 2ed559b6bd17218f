package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	benchFor  = flag.Duration("faultbench", 0, "run the fault bench for about that long; 0 is a smoke test of it")
	benchSeed = flag.Uint64("seed", 0, "of the fault bench; 0 is another one each time")
	benchJSON = flag.String("faultbench-json", "", "write what the fault bench found to this file as well")
	benchIn   = flag.String("faultbench-phases", "racks,continuous,ovn,evpn", "of the fault bench, only these phases, separated by commas")
	benchOnly = flag.String("faultbench-only", "", "of the fault bench, only cases whose name contains this")
)

// bench is the fault bench under way.
type bench struct {
	t      *testing.T
	random *rand.Rand
	report *benchReport
	begun  time.Time
}

// phase is a part of the bench.
type phase struct {
	name  string
	share float64
	run   func(b *bench, until time.Time)
}

// phases of the bench, in their order, and the share of its time in which each begins further cases.
// Where not all fit, the bench says what it left out.
var phases = []phase{
	{"racks", .5, (*bench).racks},
	{"continuous", .25, (*bench).continuous},
	{"ovn", .20, (*bench).ovn},
	{"evpn", .05, (*bench).evpn},
}

// TestFaultBench breaks labs, one, two and three ways at once and at random, and holds every verdict
// against what the breaks declare of themselves; and that, first, against packets of the guests. It fails
// for wrong verdicts under faults of ours only: the rest it counts and names. `make faultbench`.
func TestFaultBench(t *testing.T) {
	t.Parallel()
	seed := *benchSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	b := &bench{t: t, random: rand.New(rand.NewPCG(seed, 0)), report: newBenchReport(seed), begun: time.Now()}
	if *benchFor == 0 {
		b.smoke()
	} else {
		b.run()
	}
	b.report.Seconds = time.Since(b.begun).Seconds()
	if err := b.report.write(*benchJSON); err != nil {
		t.Error(err)
	}
	t.Log(b.report)
	for _, m := range b.report.Wrong {
		t.Errorf("wrong, under a fault of ours: %v", m)
	}
}

// run goes through the phases that are wanted.
func (b *bench) run() {
	wanted, shares := strings.Split(*benchIn, ","), 0.0
	for _, name := range wanted {
		i := slices.IndexFunc(phases, func(p phase) bool { return p.name == name })
		if i < 0 {
			b.t.Fatalf("-faultbench-phases: %q is none", name)
		}
		shares += phases[i].share
	}
	until := b.begun
	for i, p := range phases {
		if slices.Contains(wanted, p.name) {
			b.random = rand.New(rand.NewPCG(b.report.Seed, uint64(i))) // whatever phases there are besides
			until = until.Add(time.Duration(p.share / shares * float64(*benchFor)))
			p.run(b, until)
		}
	}
}

// smoke is one fault of ours, and two breaks at once.
func (b *bench) smoke() {
	l := up(b.t)
	kinds := b.kinds("racks")
	b.try(l, benchCase{own: &ownFaults[0], probes: allTraffic[0]})
	b.try(l, b.draw(kinds, 2))
}

// racks has each kind alone, each fault of ours alone and with a break, and then as many of two and
// three breaks as there is time for.
func (b *bench) racks(until time.Time) {
	l := up(b.t)
	kinds := b.kinds("racks")
	cases := b.alone(kinds)
	for i := range ownFaults {
		cases = append(cases, benchCase{own: &ownFaults[i], probes: b.traffic(), delay: b.delay()})
		with := b.draw(b.lasting(kinds), 1)
		with.own, with.delay = &ownFaults[i], b.delay()
		cases = append(cases, with)
	}
	b.all(l, cases, until)
	b.together(l, kinds, until)
}

// ovn does the same where the network controller is OVN, without faults of ours.
func (b *bench) ovn(until time.Time) {
	if time.Now().After(until) {
		b.report.Left = append(b.report.Left, "OVN")
		return
	}
	l := up(b.t, "--topology", "ovn")
	var kinds []benchBreak
	for _, o := range ovnBreaks {
		kinds = append(kinds, benchBreak{breakKind{Name: o.kind, Topology: "ovn"}, o.target, o.causes})
	}
	b.all(l, b.alone(kinds), until)
	// Those after which OVN does not do everywhere what it is told go with no other.
	b.together(l, slices.DeleteFunc(kinds, func(k benchBreak) bool { return k.Name == "ovn-stopped" || k.Name == "chassis-stale" }), until)
}

// evpn has instances move; each goes with no other break.
func (b *bench) evpn(until time.Time) {
	if time.Now().After(until) {
		b.report.Left = append(b.report.Left, "EVPN")
		return
	}
	b.all(up(b.t, "--topology", "evpn"), b.alone(b.kinds("evpn")), until)
}

// all tries cases until time is up.
func (b *bench) all(l *lab, cases []benchCase, until time.Time) {
	for _, c := range cases {
		switch {
		case !strings.Contains(c.String(), *benchOnly):
		case time.Now().After(until):
			b.report.Left = append(b.report.Left, c.String())
		default:
			b.try(l, c)
		}
	}
}

// together tries two and three breaks at once, until time is up.
func (b *bench) together(l *lab, kinds []benchBreak, until time.Time) {
	if !strings.Contains(" + ", *benchOnly) {
		return
	}
	for n := 0; time.Now().Before(until); n++ {
		b.try(l, b.draw(kinds, 2+n%2))
	}
}

// try tries one case, and counts.
func (b *bench) try(l *lab, c benchCase) {
	s := c.run(b, l)
	size := fmt.Sprintf("%d at once", len(c.breaks))
	switch {
	case c.own != nil:
		size = "under faults of ours"
		tally(b.report.Own, c.own.name, s)
	case len(c.breaks) == 1:
		tally(b.report.Kinds, c.breaks[0].Topology+": "+c.breaks[0].Name, s)
	}
	tally(b.report.Sums, size, s)
}

func (b *bench) traffic() traffic { return allTraffic[b.random.IntN(len(allTraffic))] }

// delay is for how long a check has run when a fault of ours comes.
func (b *bench) delay() time.Duration { return time.Duration(b.random.IntN(400)) * time.Millisecond }

// benchBreak is a kind of break, where to, and what its causes may be called.
type benchBreak struct {
	breakKind
	target string
	causes []string
}

func (k benchBreak) args() []string {
	if k.target == "" {
		return []string{k.Name}
	}
	return []string{k.Name, k.target}
}

// kinds are those whose default target a topology has.
func (b *bench) kinds(topology string) (all []benchBreak) {
	var kinds []breakKind
	l := &lab{t: b.t, name: "none"} // no lab is asked
	if err := json.Unmarshal([]byte(l.must("lab", "break", "-o", "json")), &kinds); err != nil {
		b.t.Fatal(err)
	}
	for _, k := range kinds {
		if k.Topology == topology {
			all = append(all, benchBreak{k, "", kindsOf[k.Cause]})
		}
	}
	return all
}

// lasting leaves out what loses some only, or nothing.
func (b *bench) lasting(kinds []benchBreak) []benchBreak {
	return slices.DeleteFunc(slices.Clone(kinds), func(k benchBreak) bool {
		return slices.Contains([]string{"none", "loss", "twice", "path-mtu", "underlay-member"}, k.Cause)
	})
}

// alone is a case of each kind, over what it does something to.
func (b *bench) alone(kinds []benchBreak) (cases []benchCase) {
	for _, k := range kinds {
		c := benchCase{breaks: []benchBreak{k}, probes: b.traffic()}
		if slices.Contains(spared[k.Name], c.probes.scheme) || strings.HasSuffix(k.Name, "-tcp") {
			c.probes.scheme = "tcp"
		}
		cases = append(cases, c)
	}
	return cases
}

// draw is a case of n kinds.
func (b *bench) draw(kinds []benchBreak, n int) benchCase {
	c := benchCase{probes: b.traffic()}
	for _, i := range b.random.Perm(len(kinds))[:n] {
		c.breaks = append(c.breaks, kinds[i])
	}
	return c
}
