package e2e

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

var (
	benchFor  = flag.Duration("faultbench", 0, "run the fault bench for about that long; 0 is a smoke test of it")
	benchSeed = flag.Uint64("seed", 0, "of the fault bench; 0 is another one each time")
	benchJSON = flag.String("faultbench-json", "", "write what the fault bench found to this file as well")
	benchIn   = flag.String("faultbench-phases", "racks,continuous,ovn,ovn-continuous,evpn", "of the fault bench, only these phases, separated by commas")
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
	{"racks", .36, (*bench).racks},
	{"continuous", .42, (*bench).continuous},
	{"ovn", .13, (*bench).ovn},
	{"ovn-continuous", .06, (*bench).ovnContinuous},
	{"evpn", .03, (*bench).evpn},
}

// TestFaultBench breaks labs, one, two and three ways at once and at random, and holds every verdict
// against what the breaks declare of themselves; and that, first, against packets of the guests. It counts and
// names what is not right, and fails for a wrong verdict under a fault of ours, for guests that meet something else than
// the lab declares, and for a target that is missed. `make faultbench`.
func TestFaultBench(t *testing.T) {
	t.Parallel()
	seed := *benchSeed
	switch {
	case *benchFor == 0:
		seed = 1 // a test is the same each time
	case seed == 0:
		seed = uint64(time.Now().UnixNano())
	}
	b := &bench{t: t, random: rand.New(rand.NewPCG(seed, 0)), report: newBenchReport(seed), begun: time.Now()}
	if *benchFor == 0 {
		b.smoke()
		b.write()
	} else {
		b.run()
	}
	t.Log(b.report)
	for _, m := range b.report.Wrong {
		t.Errorf("wrong, under a fault of ours: %v", m)
	}
	for _, pair := range b.report.Lab {
		t.Errorf("guests meet what the lab does not declare: %s", pair)
	}
	for _, what := range b.report.short() {
		if *benchFor > 0 || !strings.HasSuffix(what, neverCame) { // which one case may do on a machine with much to do
			t.Errorf("target: %s", what)
		}
	}
	if *benchFor > 0 && *benchOnly == "" {
		for _, what := range b.report.unproven(strings.Split(*benchIn, ",")) {
			t.Errorf("not shown: %s", what)
		}
	}
}

// write sums up what was found so far, and writes it to the file that is asked for.
func (b *bench) write() {
	b.report.Seconds = time.Since(b.begun).Seconds()
	if err := b.report.write(*benchJSON); err != nil {
		b.t.Error(err)
	}
}

const neverCame = "it never came while a check was under way"

// Least of what a share is taken of: failing pairs. With fewer, one alone would miss a target.
const enough = 200

// short are the targets that were missed.
func (r *benchReport) short() (missed []string) {
	say := func(form string, args ...any) { missed = append(missed, fmt.Sprintf(form, args...)) }
	for _, name := range slices.Sorted(maps.Keys(r.Sums)) {
		s := r.Sums[name]
		if s.Alarms > 0 {
			say("%s: %d false alarms, of %d healthy pairs; want none", name, s.Alarms, s.Healthy)
		}
		share := func(what string, n int, want float64) {
			if got := 100 * float64(n) / float64(s.Failing); s.Failing >= enough && got < want {
				say("%s: %s right of %.2f %%, of %d failing pairs; want %g %%", name, what, got, s.Failing, want)
			}
		}
		switch name {
		case underOwn:
			continue // what cannot be seen is unknown
		case "1 at once", inContinuous:
			share("segment", s.Segment, 99.5)
		default:
			share("segment", s.Segment, 98)
		}
		share("cause", s.Cause, 97)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Own)) {
		if r.Own[name].Cases == 0 {
			say("%s: %s", name, neverCame)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Continuous)) {
		if s := r.Continuous[name]; s.Alarms > 0 {
			say("in a continuous run, %s: %d false alarms, of %d healthy pairs; want none", name, s.Alarms, s.Healthy)
		}
	}
	for _, h := range slices.Concat(r.Hard, r.Lossy) {
		if h.Told == "" {
			say("in a continuous run, %s: not named", h.Case)
		}
	}
	late := func(what string, all []hardFault, least int, want time.Duration) {
		if ms := quantileOf(all, .99); len(all) >= least && (ms < 0 || ms > 1e3*want.Seconds()) {
			say("in a continuous run, %s: named after %s; want a p99 of %v", what, soon(all, func(hardFault) bool { return true }), want)
		}
	}
	late("hard faults", r.Hard, enoughTimes, hardTarget)
	late("losses of 1 %", r.Lossy, 1, lossTarget)
	return missed
}

// Within what time a continuous run is to name what broke.
const hardTarget, lossTarget = time.Second, 5 * time.Second

// Least of what a p99 is taken of; of fewer it is the maximum.
const enoughTimes = 100

// inContinuous is the sum of breaks in continuous runs, one at a time.
const inContinuous = "1 at once, in a continuous run"

// unproven are the targets of which the phases that ran tell nothing, since too little was tried.
func (r *benchReport) unproven(phases []string) (what []string) {
	for _, left := range r.Left {
		what = append(what, left+": left out for want of time")
	}
	least := func(ran bool, have, want int, of string) {
		if ran && have < want {
			what = append(what, fmt.Sprintf("%s: %d, want %d at least", of, have, want))
		}
	}
	failing := func(sum string) int {
		if s := r.Sums[sum]; s != nil {
			return s.Failing
		}
		return 0
	}
	racks, ovn, evpn := slices.Contains(phases, "racks"), slices.Contains(phases, "ovn"), slices.Contains(phases, "evpn")
	for _, sum := range []string{"1 at once", "2 at once", "3 at once"} {
		least(racks || ovn, failing(sum), enough, sum+": failing pairs")
	}
	continuous := slices.Contains(phases, "continuous")
	least(continuous, failing(inContinuous), enough, inContinuous+": failing pairs")
	least(continuous, len(r.Hard), enoughTimes, "hard faults in continuous runs, for a p99")
	least(racks && ovn && evpn, len(r.Kinds), leastKinds, "kinds of break alone")
	return what
}

// leastKinds is how many kinds of break the bench has at least.
const leastKinds = 30

// TestTargets holds what is said of targets against sums that are known.
func TestTargets(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, of string
		s        score
		want     string
	}{
		{"all is well", "1 at once", score{Cases: 20, Failing: 400, Detected: 400, Segment: 398, Cause: 388, Healthy: 500}, ""},
		{"segment", "1 at once", score{Cases: 20, Failing: 400, Detected: 400, Segment: 397, Cause: 400}, "1 at once: segment right of 99.25 %, of 400 failing pairs; want 99.5 %"},
		{"of three", "3 at once", score{Cases: 20, Failing: 400, Segment: 392, Cause: 400}, ""},
		{"of three, less", "3 at once", score{Cases: 20, Failing: 400, Segment: 391, Cause: 400}, "3 at once: segment right of 97.75 %, of 400 failing pairs; want 98 %"},
		{"cause", "2 at once", score{Cases: 20, Failing: 400, Segment: 400, Cause: 387}, "2 at once: cause right of 96.75 %, of 400 failing pairs; want 97 %"},
		{"too few to say", "3 at once", score{Cases: 1, Failing: 199, Segment: 100}, ""},
		{"an alarm", "2 at once", score{Cases: 1, Healthy: 50, Alarms: 1}, "2 at once: 1 false alarms, of 50 healthy pairs; want none"},
		{"unknown under a fault of ours", underOwn, score{Cases: 20, Failing: 400, Segment: 100, Cause: 100}, ""},
		{"an alarm there", underOwn, score{Cases: 20, Healthy: 400, Alarms: 2}, underOwn + ": 2 false alarms, of 400 healthy pairs; want none"},
	} {
		r := newBenchReport(1)
		tally(r.Sums, tt.of, &tt.s)
		if got := strings.Join(r.short(), "; "); got != tt.want {
			t.Errorf("%s: %q (want %q)", tt.name, got, tt.want)
		}
	}
	timed := func(n, late int, by time.Duration) (all []hardFault) {
		for i := range n {
			h := hardFault{Case: "a", Told: "flow", First: by / 2}
			if i < late {
				h.First = by + time.Millisecond
			}
			all = append(all, h)
		}
		return all
	}
	for _, tt := range []struct {
		name        string
		hard, lossy []hardFault
		want        string
	}{
		{"in time, but for one of 150", timed(150, 1, hardTarget), timed(10, 0, lossTarget), ""},
		{"two of 150 are late", timed(150, 2, hardTarget), nil, "in a continuous run, hard faults: named after median 500, p99 1001, max 1001 ms of 150; want a p99 of 1s"},
		{"too few to say", timed(99, 50, hardTarget), nil, ""},
		{"a loss is late", nil, timed(10, 1, lossTarget), "in a continuous run, losses of 1 %: named after median 2500, p99 5001, max 5001 ms of 10; want a p99 of 5s"},
	} {
		r := newBenchReport(1)
		r.Hard, r.Lossy = tt.hard, tt.lossy
		if got := strings.Join(r.short(), "; "); got != tt.want {
			t.Errorf("%s: %q (want %q)", tt.name, got, tt.want)
		}
	}
	r := newBenchReport(1)
	r.Own["agent stopped"] = &score{}
	if got := r.short(); len(got) != 1 || !strings.Contains(got[0], "agent stopped") {
		t.Errorf("a fault that never came in time: %q", got)
	}
}

// TestUnproven holds what a bench does not show against what it tried.
func TestUnproven(t *testing.T) {
	t.Parallel()
	all := strings.Split(*benchIn, ",")
	r := newBenchReport(1)
	if got := r.unproven(all); len(got) != 6 {
		t.Errorf("nothing was tried, and shown is all but %q", got)
	}
	if got := r.unproven([]string{"evpn"}); len(got) != 0 {
		t.Errorf("one phase: %q", got)
	}
	for _, sum := range []string{"1 at once", "2 at once", "3 at once", inContinuous} {
		r.Sums[sum] = &score{Failing: enough}
	}
	for i := range leastKinds {
		r.Kinds[fmt.Sprint(i)] = &score{Cases: 1}
	}
	r.Hard = make([]hardFault, enoughTimes)
	if got := r.unproven(all); len(got) != 0 {
		t.Errorf("enough was tried: %q", got)
	}
	r.Left = append(r.Left, "EVPN")
	if got := strings.Join(r.unproven(all), "; "); got != "EVPN: left out for want of time" {
		t.Errorf("a phase was left out: %q", got)
	}
}

// underOwn is the sum of cases with a fault of ours.
const underOwn = "under faults of ours"

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
			until = until.Add(time.Duration(p.share / shares * float64(*benchFor)))
			// A test of its own: its lab is down before the next one's is up, and what ends it does not end the others.
			b.t.Run(p.name, func(t *testing.T) {
				defer b.write()
				p.run(&bench{
					t: t, report: b.report, begun: b.begun,
					random: rand.New(rand.NewPCG(b.report.Seed, uint64(i))), // whatever phases there are besides
				}, until)
			})
		}
	}
}

// smoke is two breaks at once, and one fault of ours.
func (b *bench) smoke() {
	l := up(b.t)
	b.try(l, b.draw(b.kinds("racks"), 2))
	b.under(l, []benchCase{{own: &ownFaults[0], probes: allTraffic[0]}}, time.Now().Add(time.Minute))
}

// TestLimitedUnderlay has a host get no more than a rate, and one of two ways to it be dark besides: what agents try between
// hosts then is lost for the most part, and yet tells what it is.
func TestLimitedUnderlay(t *testing.T) {
	t.Parallel()
	b := &bench{t: t, report: newBenchReport(1)}
	l, c := up(t), benchCase{probes: traffic{"icmp", "4"}}
	for _, k := range b.kinds("racks") {
		if slices.Contains([]string{"flow-shadowed", "rate-limit", "underlay-member"}, k.Name) {
			c.breaks = append(c.breaks, k)
		}
	}
	tryUnderlay(t, l, "hv1", "hv2", "hv3", "hv4")
	b.try(l, c)
	for _, m := range b.report.Missed {
		t.Error(m)
	}
}

// racks has each kind alone, each fault of ours alone and with breaks, and then as many of two and
// three breaks as there is time for.
func (b *bench) racks(until time.Time) {
	l := up(b.t)
	kinds := b.kinds("racks")
	b.all(l, b.alone(kinds), until)
	b.under(l, b.owns(b.lasting(kinds), func(ownFault) bool { return true }), mostOf(until))
	b.together(l, kinds, until)
}

// ovn does the same where the network controller is OVN, with those faults of ours that can be had there.
func (b *bench) ovn(until time.Time) {
	if time.Now().After(until) {
		b.report.Left = append(b.report.Left, "OVN")
		return
	}
	l := up(b.t, "--topology", "ovn")
	b.all(l, b.alone(ovnKinds()), until)
	kinds := slices.DeleteFunc(ovnKinds(), func(k benchBreak) bool { return slices.Contains(ovnAlone, k.Name) })
	b.under(l, b.owns(kinds, func(f ownFault) bool { return f.ovn }), mostOf(until))
	b.together(l, kinds, until)
}

// mostOf leaves a quarter of the time until then to what comes after, which is as many cases as there is time for.
func mostOf(until time.Time) time.Time { return time.Now().Add(time.Until(until) * 3 / 4) }

// ovnAlone are those after which OVN does not do everywhere what it is told: they go with no other.
var ovnAlone = []string{"ovn-stopped", "chassis-stale"}

func ovnKinds() (kinds []benchBreak) {
	for _, o := range ovnBreaks {
		kinds = append(kinds, benchBreak{breakKind{Name: o.kind, Topology: "ovn"}, o.target, o.causes, o.stages})
	}
	return kinds
}

// owns has each fault of ours alone, with one break, and with two.
func (b *bench) owns(kinds []benchBreak, wanted func(ownFault) bool) (cases []benchCase) {
	for n := range 3 {
		for i := range ownFaults {
			if wanted(ownFaults[i]) {
				c := b.draw(kinds, n)
				c.own, c.delay = &ownFaults[i], b.delay()
				cases = append(cases, c)
			}
		}
	}
	return cases
}

// under tries cases with faults of ours, at a pace that holds their checks open.
func (b *bench) under(l *lab, cases []benchCase, until time.Time) {
	cases = slices.DeleteFunc(cases, func(c benchCase) bool { return !strings.Contains(c.String(), *benchOnly) })
	if len(cases) == 0 {
		return
	}
	l.paced(slowPace)
	b.all(l, cases, until)
	l.paced(ownPace)
}

// pace is how fast a lab's controller probes: at slowPace a check of all pairs takes some seconds, at fastPace losses
// are measured in some.
type pace struct{ rate, burst int }

var slowPace, fastPace, ownPace = pace{2, 1}, pace{200, 200}, pace{}

// pacing are the configurations that labs' controllers run by, where not the lab's own.
var pacing = map[string]string{}

// paced starts the controller anew with a pace. What else the lab's own configuration says stays: on slow machines that is much.
func (l *lab) paced(p pace) {
	delete(pacing, l.name)
	if p != ownPace {
		text, err := os.ReadFile(l.configFile("controller"))
		var config map[string]any
		if err == nil {
			err = yaml.Unmarshal(text, &config)
		}
		if err != nil {
			l.t.Fatal(err)
		}
		run, _ := config["run"].(map[string]any)
		if run == nil {
			run = map[string]any{}
		}
		run["per_instance_rate"], run["per_instance_burst"] = p.rate, p.burst
		config["run"] = run
		if text, err = yaml.Marshal(config); err != nil {
			l.t.Fatal(err)
		}
		pacing[l.name] = l.file("controller-paced.yaml", text, 0o600)
	}
	l.stop("controller", "serve", "KILL")
	l.startController()
	l.allReady()
}

func (l *lab) startController() {
	l.daemonise("controller", "serve", cmp.Or(pacing[l.name], l.configFile("controller")))
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
	case s == nil:
		tally(b.report.Own, c.own.name, &score{})
		return
	case c.own != nil:
		size = underOwn
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
	stages []string // of OVN's pipeline, one of which drops; nil where none need be named
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
			all = append(all, benchBreak{k, "", k.kinds(), nil})
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
