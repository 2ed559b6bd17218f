package run

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

var (
	simWorlds = flag.Int("sim.worlds", 40, "simulate that many clouds for each number of faults, and under faults of ours")
	simSeed   = flag.Uint64("sim.seed", 1, "of the first simulated cloud")
	simPairs  = flag.Int("sim.pairs", 4_000, "simulate that many healthy pairs for each share of loss")
)

// simScore is what became of the pairs of some clouds.
type simScore struct {
	clouds, failing, detected, segment, cause int
	healthy, alarms, unsure, wrong            int
}

func (s *simScore) add(o *simScore) {
	s.clouds, s.failing, s.detected, s.segment, s.cause = s.clouds+o.clouds, s.failing+o.failing, s.detected+o.detected, s.segment+o.segment, s.cause+o.cause
	s.healthy, s.alarms, s.unsure, s.wrong = s.healthy+o.healthy, s.alarms+o.alarms, s.unsure+o.unsure, s.wrong+o.wrong
}

func (s *simScore) String() string {
	share := func(n int) string { return fmt.Sprintf("%7.3f%%", 100*float64(n)/float64(max(s.failing, 1))) }
	return fmt.Sprintf("%6d %8d %s %s %s %8d %6d %7d %5d", s.clouds, s.failing, share(s.detected), share(s.segment), share(s.cause), s.healthy, s.alarms, s.unsure, s.wrong)
}

// simResult is one cloud, judged.
type simResult struct {
	by     map[string]*simScore // by kind of fault, of the pairs that it kills
	own    []string             // kinds of faults of ours
	sum    simScore
	lossy  map[string]*simLossy // by kind of what loses some packets
	missed []simMiss
}

// simLossy is pairs of which some probes are lost by chance, in a plain check.
type simLossy struct {
	pairs, told, unknown int
	want                 float64 // how many are to be told, by the rates of the test; NaN where nobody knows
}

func (l *simLossy) add(o *simLossy) {
	l.pairs, l.told, l.unknown, l.want = l.pairs+o.pairs, l.told+o.told, l.unknown+o.unknown, l.want+o.want
}

// simMiss is a verdict that is not what the truth says, nor unknown where that may be.
type simMiss struct {
	what, kind, said string // the sort of miss, the fault that is behind it, and the verdict with its cause
	example          string
}

// summed tells of all misses, summed by sort, fault and verdict, with an example of each.
func summed(missed []simMiss) string {
	count, example := map[string]int{}, map[string]string{}
	for _, m := range missed {
		key := fmt.Sprintf("%s: %s: said %s", m.what, m.kind, m.said)
		if count[key]++; example[key] == "" || m.example < example[key] {
			example[key] = m.example
		}
	}
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(count)) {
		fmt.Fprintf(&b, "%6d × %s\n         such as %s\n", count[key], key, example[key])
	}
	return b.String()
}

// simOptions are how the n-th cloud is probed.
func simOptions(random *rand.Rand, c *simCloud) options {
	o := options{test: testOf(nil), scheme: []stain.Scheme{0, stain.TCP, stain.ICMP}[random.IntN(3)]}
	o.mtu = slices.ContainsFunc(c.faults, func(f *simFault) bool { return f.large != nil })
	if o.scheme == 0 && slices.ContainsFunc(c.faults, func(f *simFault) bool { return strings.HasSuffix(f.kind, "tcp") }) {
		o.scheme = stain.TCP // of what one scheme meets and the other does not, auto says several true things
	}
	if o.plan.Version = inventory.IPv4; random.IntN(3) == 0 {
		o.plan.Version = inventory.IPv6
	}
	o.plan.NoTouch = random.IntN(5) == 0
	c.six, c.noTouch = o.plan.Version == inventory.IPv6, o.plan.NoTouch
	for h := range c.shown {
		c.shown[h] = c.shown[h] || c.noTouch && random.IntN(4) > 0 // where it is not, nothing can be sent
	}
	return o
}

// simulate runs one cloud.
func simulate(t *testing.T, seed uint64, faults, own int) (r simResult) {
	random := rand.New(rand.NewPCG(seed, uint64(faults)+uint64(max(0, own-1))<<8))
	c := newSimCloud(random, 5+random.IntN(3))
	for _, g := range c.guests {
		c.open[g.name] = random.IntN(12) == 0
	}
	c.breakBy(faults, random)
	ours := drawOwn(random, own, c)
	o := simOptions(random, c)
	pairs, paths := pathsBy(t, c.snapshot(t), allPairs, o.plan)
	got := c.resumed(t, random, ours, o, pairs, paths)
	r.by, r.lossy = map[string]*simScore{}, map[string]*simLossy{}
	r.sum.clouds = 1
	for _, f := range ours {
		r.own = append(r.own, f.kind)
	}
	for i, p := range pairs {
		from, to := c.named(p.Src.Name), c.named(p.Dst.Name)
		j := simJudging{c: c, own: ours, scheme: max(o.scheme, stain.TCP), from: from, to: to, got: got[uint32(i)], mtu: o.mtu, seed: seed}
		j.judge(&r)
	}
	if faults == 1 {
		s := r.by[c.faults[0].kind]
		if s == nil {
			s = &simScore{clouds: 1}
			r.by[c.faults[0].kind] = s
		}
		s.healthy, s.alarms, s.unsure = r.sum.healthy, r.sum.alarms, r.sum.unsure
	}
	return r
}

// resumed plays a run, and another one of what is left where the controller dies meanwhile.
func (c *simCloud) resumed(t *testing.T, random *rand.Rand, ours []*simOwn, o options, pairs []plan.Pair, paths []plan.Path) map[uint32]*dyetracev1.PairResult {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for _, f := range ours {
		if f.kind == "controller killed" {
			time.AfterFunc(max(0, f.from), stop)
		}
	}
	a := newSimAgents(c, random, ours)
	got := a.playUntil(ctx, o, pairs, paths)
	touched := len(a.touched)
	if ctx.Err() != nil && len(got) < len(pairs) {
		var rest []int
		for i := range pairs {
			if got[uint32(i)] == nil {
				rest = append(rest, i)
			}
		}
		var left []plan.Pair
		var ways []plan.Path
		for _, i := range rest {
			left, ways = append(left, pairs[i]), append(ways, paths[i])
		}
		time.Sleep(testConfig.Settle) // as long as a controller takes to start, and more than agents take to withdraw what it sent
		b := newSimAgents(c, random, ours)
		for i, r := range b.play(o, left, ways) {
			got[uint32(rest[i])] = r
		}
		touched += len(b.touched)
	}
	if touched > 0 {
		t.Errorf("%d probes reached guests that were to see none", touched)
	}
	return got
}

func (c *simCloud) named(name string) *simGuest {
	return c.guests[slices.IndexFunc(c.guests, func(g *simGuest) bool { return g.name == name })]
}

// play executes a run with these agents.
func (a *simAgents) play(o options, pairs []plan.Pair, paths []plan.Path) map[uint32]*dyetracev1.PairResult {
	return a.playUntil(context.Background(), o, pairs, paths)
}

func (a *simAgents) playUntil(ctx context.Context, o options, pairs []plan.Pair, paths []plan.Path) map[uint32]*dyetracev1.PairResult {
	cfg := testConfig
	cfg.Patience = 750 * time.Millisecond
	seq := make([]uint32, len(pairs))
	for i := range seq {
		seq[i] = uint32(i)
	}
	p := pace.New(cfg.PerInstanceRate, float64(cfg.PerInstanceBurst))
	timeout := max(10*time.Minute, p.Needs(pairs, o.each())) // as a run has: a test that is cut short is another one
	x := newExecution(&cfg, p, newMetrics(nil), slog.New(slog.DiscardHandler), pairs, paths, seq, o, stain.Key{1}, timeout, time.Now(), a.begin)
	in := make(chan batch)
	got := map[uint32]*dyetracev1.PairResult{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := range in {
			for i, s := range b.seq {
				got[s] = b.results[i]
			}
		}
	}()
	x.run(ctx, in, nil)
	<-done
	x.release(time.Now())
	return got
}

// simJudging holds the verdict on one pair against the truth.
type simJudging struct {
	c        *simCloud
	own      []*simOwn
	scheme   stain.Scheme
	from, to *simGuest
	got      *dyetracev1.PairResult
	mtu      bool
	seed     uint64
}

func (j *simJudging) judge(r *simResult) {
	for _, o := range j.own {
		if o.breaksHost && (j.from.host == o.host || j.to.host == o.host) {
			return // the network did lose packets
		}
	}
	trs := j.c.truths(j.from, j.to, j.scheme)
	v := j.got.GetVerdict()
	if j.c.noTouch && !(j.c.shown[j.from.host] && j.c.shown[j.to.host]) && v == dyetracev1.Verdict_VERDICT_UNKNOWN {
		return // nothing can be sent
	}
	unseen := slices.ContainsFunc(trs, func(tr simTruth) bool { return tr.unseen })
	trs = slices.DeleteFunc(trs, func(tr simTruth) bool { return tr.unseen || tr.fault == nil })
	lossy := j.c.loses(j.from, j.to)
	large := j.mtu && len(trs) == 0 && j.large()
	switch {
	case large && v == dyetracev1.Verdict_VERDICT_UNKNOWN && slices.ContainsFunc(lossy, func(f *simFault) bool { return f.share == 0 }):
		j.lossy(r, lossy) // whether large packets pass cannot be tried where few may
	case len(trs) > 0:
		j.failing(r, trs, trs[0].fault.kind, lossy)
	case unseen:
		j.unseen(r, lossy)
	case large:
		j.failing(r, []simTruth{{causes: map[dyetracev1.Verdict][]dyetracev1.CauseKind{faulty: {kindMTU}}}}, "path MTU", lossy)
	case len(lossy) > 0:
		j.lossy(r, lossy)
	default:
		r.sum.healthy++
		switch {
		case v == dyetracev1.Verdict_VERDICT_HEALTHY:
		case v == dyetracev1.Verdict_VERDICT_UNKNOWN:
			r.sum.unsure++
			j.miss(r, "unknown, though healthy", "-", simTruth{})
		default:
			r.sum.alarms++
			if len(j.own) > 0 {
				r.sum.wrong++
			}
			j.miss(r, "false alarm", "-", simTruth{})
		}
	}
}

// unseen judges a pair that fails where nobody can see it, on the way of its answer to the guest: healthy is as true as that.
func (j *simJudging) unseen(r *simResult, lossy []*simFault) {
	v := j.got.GetVerdict()
	if v == dyetracev1.Verdict_VERDICT_HEALTHY || v == dyetracev1.Verdict_VERDICT_UNKNOWN ||
		j.got.GetSegment().GetTo().GetKind() == dyetracev1.PointKind_POINT_KIND_TO_INSTANCE || v == faulty && j.onTheWay(lossy) ||
		j.mtu && j.large() && j.got.GetCauseKind() == kindMTU {
		return
	}
	if r.sum.alarms++; len(j.own) > 0 {
		r.sum.wrong++
	}
	j.miss(r, "unseen, another verdict", "-", simTruth{})
}

// miss notes a verdict.
func (j *simJudging) miss(r *simResult, what, kind string, tr simTruth) {
	ours := ""
	for _, o := range j.own {
		ours += ", " + o.kind
	}
	how := j.scheme.String()
	if j.c.six {
		how += " over IPv6"
	}
	if j.c.noTouch {
		how += ", no touch"
	}
	if len(j.own) > 0 {
		what = "under a fault of ours, " + what
	}
	said := fmt.Sprintf("%v, %v", j.got.GetVerdict(), j.got.GetCauseKind())
	r.missed = append(r.missed, simMiss{what: what, kind: kind, said: said, example: fmt.Sprintf("seed %d, %d faults%s: %s → %s by %s: killed after %s, before %s: said %s: %s",
		j.seed, len(j.c.faults), ours, j.from.name, j.to.name, how, tr.after, tr.before, j.segment(), j.got.GetCause())})
}

// failing judges a pair that certainly fails, for one of these reasons.
func (j *simJudging) failing(r *simResult, trs []simTruth, kind string, lossy []*simFault) {
	s := &simScore{failing: 1}
	if r.by[kind] == nil {
		r.by[kind] = &simScore{clouds: 1}
	}
	defer func() { r.by[kind].add(s); r.sum.add(s) }()
	v := j.got.GetVerdict()
	unsure := v == dyetracev1.Verdict_VERDICT_UNKNOWN
	right, segment, cause := false, false, false
	for _, tr := range trs {
		causes, outcome := tr.causes[v]
		right = right || outcome
		segment = segment || outcome && (tr.fault == nil && strings.Contains(j.segment(), "to-tunnel") || tr.fault != nil && j.right(tr))
		cause = cause || slices.Contains(causes, j.got.GetCauseKind())
	}
	if v == faulty && j.onTheWay(slices.DeleteFunc(slices.Clone(lossy), func(f *simFault) bool { return f.share > 0 && f.share < quickLoss })) {
		right, segment, cause = true, true, true // all of its probes may have been lost before they came as far
	}
	switch {
	case trs[0].fault == nil && v == dyetracev1.Verdict_VERDICT_HEALTHY, len(j.own) > 0 && (v == dyetracev1.Verdict_VERDICT_HEALTHY || !unsure && !right):
		s.wrong++
		j.miss(r, "wrong", kind, trs[0])
		return
	case v == dyetracev1.Verdict_VERDICT_HEALTHY || unsure:
		j.miss(r, "not detected, "+strings.ToLower(strings.TrimPrefix(v.String(), "VERDICT_")), kind, trs[0])
		return
	}
	s.detected = 1
	if segment {
		s.segment = 1
	} else {
		j.miss(r, "segment", kind, trs[0])
	}
	if cause {
		s.cause = 1
	} else {
		j.miss(r, "cause", kind, trs[0])
	}
}

// lossy judges a pair of which some probes are lost, and others are not: healthy is as true as that it loses some.
func (j *simJudging) lossy(r *simResult, all []*simFault) {
	by := all[0]
	l := &simLossy{pairs: 1}
	pass := (1 - j.c.loss) * (1 - j.c.loss)
	for _, f := range all {
		pass *= 1 - f.share
		if f.share == 0 {
			by = f
		}
	}
	if l.want = alarmRate(1 - pass); by.share == 0 {
		l.want = math.NaN() // it depends on how much is sent
	}
	switch v := j.got.GetVerdict(); {
	case v == dyetracev1.Verdict_VERDICT_HEALTHY:
	case v == dyetracev1.Verdict_VERDICT_UNKNOWN:
		l.unknown = 1
		j.miss(r, "loss by chance, unknown", by.kind, simTruth{})
	case v == faulty && j.onTheWay(all):
		l.told = 1
	default:
		if r.sum.alarms++; len(j.own) > 0 {
			r.sum.wrong++
		}
		j.miss(r, "loss by chance, another verdict", by.kind, simTruth{})
	}
	if len(j.own) == 0 {
		if r.lossy[by.kind] == nil {
			r.lossy[by.kind] = &simLossy{}
		}
		r.lossy[by.kind].add(l)
	}
}

// onTheWay says that the segment is where a fault loses packets by chance, and that the cause is such a loss, or one of all that
// was tried: what is over a rate may be that, or four of four by chance.
func (j *simJudging) onTheWay(lossy []*simFault) bool {
	from, to := j.got.GetSegment().GetFrom().GetHost(), j.got.GetSegment().GetTo().GetHost()
	if from == "" || from == to {
		return false
	}
	return slices.ContainsFunc(lossy, func(f *simFault) bool {
		causes := []dyetracev1.CauseKind{kindLoss}
		switch {
		case f.share == 0:
			causes = append(causes, kindEntrypoint, kindUnderlay, kindMember, kindMTU, kindBetween)
		case f.share >= quickLoss:
			causes = append(causes, kindEntrypoint, kindBetween)
		}
		return f.loses(simHostOf(from), simHostOf(to)) && slices.Contains(causes, j.got.GetCauseKind())
	})
}

func simHostOf(name string) int { return int(name[2] - '1') }

// right says that the segment is that of the truth. What died before it entered has no beginning; and it
// is no less right to name the very point where there is no hook any more.
func (j *simJudging) right(tr simTruth) bool {
	all := *j.c
	all.gone = nil
	exact := all.where(j.from, j.to, j.scheme)
	if tr.back {
		exact = all.where(j.to, j.from, j.scheme).turned()
	}
	said := j.segment()
	return said == tr.after+" → "+tr.before || said == exact.after+" → "+exact.before
}

// segment draws the verdict's, as simSighting.place does.
func (j *simJudging) segment() string {
	s := j.got.GetSegment()
	point := func(p *dyetracev1.Point, way string) string {
		kind := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(p.GetKind().String(), "POINT_KIND_")), "_", "-")
		return fmt.Sprintf("%s/%s %s %s", p.GetHost(), p.GetBridge(), kind, way)
	}
	// The direction is that of the beginning. Where the guest lies between, the end is on the way back.
	from := "there"
	if s.GetDirection() == dyetracev1.Direction_DIRECTION_REPLY {
		from = "back"
	}
	to, kind := from, s.GetTo().GetKind()
	if kind == dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE && s.GetFrom() != nil && s.GetTo().GetHost() == simHost(j.to.host) {
		to = "back"
	}
	if s.GetFrom() == nil {
		return " → " + point(s.GetTo(), to)
	}
	return point(s.GetFrom(), from) + " → " + point(s.GetTo(), to)
}

func (j *simJudging) large() bool {
	return slices.ContainsFunc(j.c.faults, func(f *simFault) bool {
		return f.large != nil && simLargest(j.to.net) > f.most && (f.large(j.from.host, j.to.host) || f.large(j.to.host, j.from.host))
	})
}

// simOwnKinds are faults of ours: those of the labs, and others.
var simOwnKinds = []string{
	"hook wiped", "flows replaced", "flows replaced ten times", "agent killed", "agent stopped", "agent cut off", "agent stalls", "agent starved",
	"agent slow", "dye port down", "dye port deleted", "samples lost", "samples lost unseen", "controller drops samples", "controller killed",
	"no explanations", "no exchanges", "vswitchd restarted", "slow between racks", "slow guest",
}

// drawOwn draws so many faults of ours.
func drawOwn(random *rand.Rand, n int, c *simCloud) (all []*simOwn) {
	for range n {
		o := &simOwn{kind: simOwnKinds[random.IntN(len(simOwnKinds))], host: random.IntN(simHosts), share: random.Float64()}
		o.bridge = []string{"br-int", "br-tun"}[random.IntN(2)]
		o.from = time.Duration(random.IntN(1500)-100) * time.Millisecond
		o.to = o.from + time.Duration(20+random.IntN(1000))*time.Millisecond
		o.delay = time.Duration(random.IntN(800)) * time.Millisecond
		o.noticed = random.IntN(2) == 0
		if (strings.HasPrefix(o.kind, "samples") || o.kind == "dye port down") && random.IntN(2) == 0 {
			o.from, o.to = -time.Second, time.Hour
		}
		switch o.kind {
		case "hook wiped", "dye port deleted":
			o.times = 1
		case "flows replaced", "flows replaced ten times", "vswitchd restarted":
			o.bridge, o.times = "", 1
			if o.kind == "flows replaced ten times" {
				o.times = 10
			}
			o.breaksHost = o.kind == "vswitchd restarted"
		case "agent starved":
			o.bridge = ""
		case "slow between racks":
			late := time.Duration(300+300*random.IntN(2)) * time.Millisecond
			c.late = func(from, to int) time.Duration {
				return late * time.Duration((simRack(from)-simRack(to))*(simRack(from)-simRack(to)))
			}
		case "slow guest":
			sleeps := c.guests[random.IntN(len(c.guests))]
			c.lateGuest = func(g *simGuest) time.Duration {
				if g == sleeps {
					return 200 * time.Millisecond
				}
				return 0
			}
		}
		all = append(all, o)
	}
	return all
}

// TestSimulatedFaults breaks simulated clouds in one, two and three ways, and holds every verdict of
// whole runs against the truth: shares as the fault bench counts them in labs, of many more cases.
func TestSimulatedFaults(t *testing.T) {
	t.Parallel()
	kinds, owns, sums := map[string]*simScore{}, map[string]*simScore{}, map[string]*simScore{}
	lossy := map[string]*simLossy{}
	var missed []simMiss
	for _, of := range []struct {
		name        string
		faults, own int
	}{
		{"nothing", 0, 0}, {"1 fault", 1, 0}, {"2 faults", 2, 0}, {"3 faults", 3, 0},
		{"1 of ours", 0, 1}, {"2 of ours", 0, 2}, {"3 of ours", 0, 3},
		{"1 of ours, and 1 fault", 1, 1}, {"1 of ours, and 2 faults", 2, 1}, {"1 of ours, and 3 faults", 3, 1}, {"2 of ours, and 2 faults", 2, 2}, {"3 of ours, and 3 faults", 3, 3},
	} {
		sum := &simScore{}
		sums[of.name] = sum
		for _, r := range simulateAll(t, of.faults, of.own) {
			sum.add(&r.sum)
			missed = append(missed, r.missed...)
			if of.own == 1 {
				addScore(owns, r.own[0], &r.sum)
			}
			for k, l := range r.lossy {
				if lossy[k] == nil {
					lossy[k] = &simLossy{}
				}
				lossy[k].add(l)
			}
			for k, s := range r.by {
				if of.faults == 1 && of.own == 0 {
					addScore(kinds, k, s)
				}
			}
		}
	}
	var b strings.Builder
	for _, table := range []map[string]*simScore{kinds, owns, sums} {
		fmt.Fprintf(&b, "%-40s clouds  failing detected  segment    cause  healthy alarms unknown wrong\n", "")
		for _, name := range slices.Sorted(maps.Keys(table)) {
			fmt.Fprintf(&b, "%-40s %s\n", name, table[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(lossy)) {
		l := lossy[name]
		fmt.Fprintf(&b, "%-40s %d pairs, %d told, %.1f expected, %d unknown\n", name, l.pairs, l.told, l.want, l.unknown)
		// Chance less than once in a million times.
		if !math.IsNaN(l.want) && (poissonTail(l.told, l.want) < 1e-6 || 1-poissonTail(l.told+1, l.want) < 1e-6) {
			t.Errorf("%s: %d of %d pairs are told to lose packets, want %.1f", name, l.told, l.pairs, l.want)
		}
	}
	t.Logf("seeds from %d\n%smissed (%d):\n%s", *simSeed, b.String(), len(missed), summed(missed))
	for name, want := range map[string]float64{"1 fault": .995, "2 faults": .98, "3 faults": .98} {
		s := sums[name]
		if of := float64(s.failing); float64(s.segment) < want*of || float64(s.cause) < .97*of {
			t.Errorf("%s: the segment is right of %d, the cause of %d of %d pairs; want %g %% and 97 %%", name, s.segment, s.cause, s.failing, 100*want)
		}
	}
	for name, s := range sums {
		if s.wrong > 0 || s.alarms > 0 {
			t.Errorf("%s: %d wrong verdicts, %d false alarms", name, s.wrong, s.alarms)
		}
	}
}

func addScore(to map[string]*simScore, name string, s *simScore) {
	if to[name] == nil {
		to[name] = &simScore{}
	}
	to[name].add(s)
}

// poissonTail is how likely n or more are where so many are expected. Of rare events among many that are independent, with
// whatever rates, it is so or less likely for an n above what is expected.
func poissonTail(n int, expected float64) float64 {
	if expected == 0 && n > 0 {
		return 0
	}
	below := 0.0
	for k := range n {
		count, _ := math.Lgamma(float64(k + 1))
		below += math.Exp(float64(k)*math.Log(expected) - expected - count) // the first of many are less than the least float64
	}
	return max(0, 1-below)
}

// TestPoissonTail holds it against the normal distribution, which it comes close to where much is expected: half a unit
// from the middle, and so many standard deviations.
func TestPoissonTail(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		n              int
		expected, want float64
	}{{0, 3, 1}, {0, 0, 1}, {2, 0, 0}, {1, 0.5, 1 - math.Exp(-0.5)}, {3, 1, 1 - 2.5*math.Exp(-1)}, {900, 900, 0.5}, {960, 900, 0.0235}, {870, 900, 0.8451}, {1200, 900, 0}} {
		if got := poissonTail(tt.n, tt.expected); math.Abs(got-tt.want) > 0.01 {
			t.Errorf("%d or more of %g: %.4f, want %.4f", tt.n, tt.expected, got, tt.want)
		}
	}
}

// simulateAll runs all clouds of a sort.
func simulateAll(t *testing.T, faults, own int) []simResult {
	return simulateEach(t, *simWorlds, func(t *testing.T, n int) simResult { return simulate(t, *simSeed+uint64(n), faults, own) })
}

// simulateEach runs n clouds, as many at once as there are processors. One that fails ends the goroutine that runs it, as
// synctest.Test does, and the test when all have ended.
func simulateEach[R any](t *testing.T, n int, run func(t *testing.T, n int) R) []R {
	all := make([]R, n)
	var wg sync.WaitGroup
	var begun, ended atomic.Int64
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := int(begun.Add(1)) - 1; i < n; i = int(begun.Add(1)) - 1 {
				synctest.Test(t, func(t *testing.T) { all[i] = run(t, i) })
				ended.Add(1)
			}
		})
	}
	wg.Wait()
	if m := int(ended.Load()); m < n {
		t.Fatalf("%d of %d clouds failed, or were not begun since others had", n-m, n)
	}
	return all
}

// TestSimulatedHealthy has many healthy pairs on a network that loses packets by chance, each way: none may be called anything
// else, but for one in a million. How often the rule of runs calls one so is known exactly (alarmRate), and less than that; so few
// are expected that even of some million pairs the share itself is held against the target: none of less than a million, one of less
// than two. How likely that is to fail by chance is logged.
func TestSimulatedHealthy(t *testing.T) {
	t.Parallel()
	for _, loss := range []float64{0.001, 0.01} { // of the packets of each wire
		pairs, unsure, said := 0, 0, []string(nil)
		for n, r := range simulateEach(t, *simPairs/100+1, func(t *testing.T, n int) []*dyetracev1.PairResult {
			random := rand.New(rand.NewPCG(*simSeed+uint64(n), uint64(1e6*loss)))
			c := newSimCloud(random, 16)
			c.loss = loss
			pairs, paths := pathsBy(t, c.snapshot(t), allPairs, plan.Options{})
			got := newSimAgents(c, random, nil).play(options{test: testOf(nil)}, pairs, paths)
			return slices.Collect(maps.Values(got))
		}) {
			for _, p := range r {
				switch p.GetVerdict() {
				case dyetracev1.Verdict_VERDICT_HEALTHY:
				case dyetracev1.Verdict_VERDICT_UNKNOWN:
					unsure++
				default:
					said = append(said, fmt.Sprintf("cloud %d: %s → %s: %v after %d probes: %s", n, p.GetSrc().GetName(), p.GetDst().GetName(), p.GetVerdict(), p.GetProbes(), p.GetCause()))
				}
			}
			pairs += len(r)
		}
		const target = 1e-6
		most := int(target * float64(pairs))
		rate := alarmRate(1 - (1-loss)*(1-loss))
		t.Logf("%g %% each way: %d pairs, %d false alarms, %.3f expected, %d unknown: %s; more than %d are chance once in %.3g times", 100*loss, pairs, len(said),
			rate*float64(pairs), unsure, strings.Join(said, "; "), most, 1/poissonTail(most+1, rate*float64(pairs)))
		if rate > target || len(said) > most {
			t.Errorf("%g %%: %d of %d pairs are not healthy; want one in a million at the most", 100*loss, len(said), pairs)
		}
	}
}

// TestSimulatedBursts has wires lose 1 % of the time all that passes, for 20 or 100 ms on average: probes of a pair
// that are lost go at least as far apart as it takes for that to pass (Config.Settle), so that of many healthy
// pairs none is accused, or one in ten thousand. Chance that lasts longer than that is a fault while it lasts.
func TestSimulatedBursts(t *testing.T) {
	t.Parallel()
	for _, length := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, time.Second} {
		pairs, accused := 0, 0
		for _, n := range simulateEach(t, *simPairs/100+1, func(t *testing.T, n int) [2]int {
			random := rand.New(rand.NewPCG(*simSeed+uint64(n), uint64(length)))
			c := newSimCloud(random, 16)
			c.loss, c.bursts = 0, &simBursts{length: length, share: 0.01, wires: map[[2]int]*simWire{}}
			pairs, paths := pathsBy(t, c.snapshot(t), allPairs, plan.Options{})
			bad := 0
			for _, p := range newSimAgents(c, random, nil).play(options{test: testOf(nil)}, pairs, paths) {
				if v := p.GetVerdict(); v != dyetracev1.Verdict_VERDICT_HEALTHY && v != dyetracev1.Verdict_VERDICT_UNKNOWN {
					bad++
				}
			}
			return [2]int{len(pairs), bad}
		}) {
			pairs, accused = pairs+n[0], accused+n[1]
		}
		t.Logf("bursts of %v: %d of %d pairs are accused", length, accused, pairs)
		if length < testConfig.Settle && accused > 2+pairs/10_000 {
			t.Errorf("bursts of %v: %d of %d pairs are accused", length, accused, pairs)
		}
	}
}

// TestSimulatedLoss measures pairs of which one host's packets to another are lost by chance.
func TestSimulatedLoss(t *testing.T) {
	t.Parallel()
	for _, share := range []float64{0.01, 0.05, 0.2} {
		type counts struct{ lossy, found, segment int }
		var sum counts
		for _, n := range simulateEach(t, max(20, *simWorlds/50), func(t *testing.T, n int) (k counts) {
			random := rand.New(rand.NewPCG(*simSeed+uint64(n), uint64(1e6*share)))
			c := newSimCloud(random, 6)
			c.loss = 0
			a, b, ok := c.pair(true)
			if !ok {
				return k
			}
			c.faults = []*simFault{partial(share, a, b)}
			pairs, paths := pathsBy(t, c.snapshot(t), plan.Scope{Kind: plan.OnePair, Src: a.name, Dst: b.name}, plan.Options{})
			test := testOf(&dyetracev1.ProbeOptions{Loss: true, MaxLoss: share})
			got := newSimAgents(c, random, nil).play(options{test: test, measure: true, scheme: stain.TCP}, pairs, paths)
			j := simJudging{from: a, to: b, got: got[0]}
			want := fmt.Sprintf("%s/br-tun to-tunnel there → %s/br-tun from-tunnel there", simHost(a.host), simHost(b.host))
			k.lossy = 1
			if got[0].GetVerdict() == faulty && got[0].GetCauseKind() == kindLoss {
				k.found++
				if j.segment() == want {
					k.segment++
				}
			}
			return k
		}) {
			sum.lossy, sum.found, sum.segment = sum.lossy+n.lossy, sum.found+n.found, sum.segment+n.segment
		}
		t.Logf("%g %%: of %d pairs %d are found, %d with the right segment", 100*share, sum.lossy, sum.found, sum.segment)
		// One in a hundred is missed by the test's design; four of twenty are chance once in 23,000 times.
		if sum.found < sum.lossy-max(3, sum.lossy/20) || sum.segment < sum.found {
			t.Errorf("%g %%: of %d pairs %d are found, %d with the right segment", 100*share, sum.lossy, sum.found, sum.segment)
		}
	}
}

// TestSimulatedLossOfAll measures all pairs of clouds where one host's packets to another are lost by chance, as many as are too
// many: by the test's rates, one of a hundred that lose some is missed, and of a million others one is accused.
func TestSimulatedLossOfAll(t *testing.T) {
	t.Parallel()
	for _, share := range []float64{0.01, 0.05} {
		type counts struct {
			lossy, found, segment, others int
			said                          []string
		}
		var sum counts
		for _, n := range simulateEach(t, max(10, *simWorlds/100), func(t *testing.T, n int) (k counts) {
			random := rand.New(rand.NewPCG(*simSeed+uint64(n), uint64(1e7*share)))
			c := newSimCloud(random, 5)
			c.loss = 0
			a, b, ok := c.pair(true)
			if !ok {
				return k
			}
			c.faults = []*simFault{partial(share, a, b)}
			o := options{test: testOf(&dyetracev1.ProbeOptions{Loss: true, MaxLoss: share}), measure: true, scheme: []stain.Scheme{stain.TCP, stain.ICMP}[n%2]}
			pairs, paths := pathsBy(t, c.snapshot(t), allPairs, o.plan)
			for i, r := range newSimAgents(c, random, nil).play(o, pairs, paths) {
				from, to := c.named(pairs[i].Src.Name), c.named(pairs[i].Dst.Name)
				j := simJudging{c: c, from: from, to: to, got: r}
				switch lossy := c.loses(from, to); {
				case len(lossy) == 0:
					if k.others++; r.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
						k.said = append(k.said, fmt.Sprintf("cloud %d: %s → %s: %v: %s", n, from.name, to.name, r.GetVerdict(), r.GetCause()))
					}
				default:
					if k.lossy++; r.GetVerdict() == faulty && r.GetCauseKind() == kindLoss {
						k.found++
						if j.onTheWay(lossy) {
							k.segment++
						}
					}
				}
			}
			return k
		}) {
			sum.lossy, sum.found, sum.segment, sum.others = sum.lossy+n.lossy, sum.found+n.found, sum.segment+n.segment, sum.others+n.others
			sum.said = append(sum.said, n.said...)
		}
		missed := sum.lossy - sum.found
		t.Logf("%g %%: of %d pairs %d are found, %d with the right segment; of %d others %d are not healthy", 100*share, sum.lossy, sum.found, sum.segment, sum.others, len(sum.said))
		if poissonTail(missed, 0.01*float64(sum.lossy)) < 1e-4 || sum.segment < sum.found || len(sum.said) > 0 {
			t.Errorf("%g %%: of %d pairs %d are found, %d with the right segment; of %d others these are not healthy: %s", 100*share, sum.lossy, sum.found, sum.segment,
				sum.others, strings.Join(sum.said, "; "))
		}
	}
}
