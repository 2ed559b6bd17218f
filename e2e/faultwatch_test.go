package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// nameWithin is how long the bench waits in a continuous run until a fault is named of all its pairs;
	// a loss of 1 % may take longer: on average 1,300 packets are needed, and in one of 100 cases 3,000.
	nameWithin, lossWithin = 12 * time.Second, 15 * time.Second
	// settleWithin is how long it waits until all pairs are healthy again.
	settleWithin = 60 * time.Second
)

// owns is how many faults of ours a round has after the first, which has all.
const owns = 4

// continuous follows one run of all pairs through rounds of all kinds of break, among faults of ours: how soon is each named?
func (b *bench) continuous(until time.Time) {
	if time.Now().After(until) {
		b.report.Left = append(b.report.Left, "continuous runs")
		return
	}
	l := up(b.t)
	var breaks, ours []benchCase
	for _, k := range b.kinds("racks") {
		if k.Cause == "path-mtu" {
			continue // a continuous run does not look for it unless asked
		}
		breaks = append(breaks, benchCase{breaks: []benchBreak{k}, probes: chosen(l, k)})
		if k.Name == "underlay-loss" {
			for _, k.target = range []string{"hv2:hv4:1", "hv3:hv1:1", "hv1:hv2:1", "hv4:hv3:2"} {
				breaks = append(breaks, benchCase{breaks: []benchBreak{k}, probes: allTraffic[0]})
			}
		}
	}
	for i := range ownFaults {
		if !ownFaults[i].resumes {
			ours = append(ours, benchCase{own: &ownFaults[i], probes: allTraffic[0]})
		}
	}
	b.rounds(l, 58, until, func(round int) []benchCase {
		b.random.Shuffle(len(ours), func(i, j int) { ours[i], ours[j] = ours[j], ours[i] })
		if round == 0 {
			return slices.Concat(breaks, ours)
		}
		return slices.Concat(breaks, ours[:owns])
	})
}

// ovnContinuous does the same where the network controller is OVN, without faults of ours.
func (b *bench) ovnContinuous(until time.Time) {
	if time.Now().After(until) {
		b.report.Left = append(b.report.Left, "continuous runs with OVN")
		return
	}
	l := up(b.t, "--topology", "ovn")
	var breaks []benchCase
	for _, k := range ovnKinds() {
		if !slices.Contains(ovnAlone, k.Name) {
			breaks = append(breaks, benchCase{breaks: []benchBreak{k}, probes: chosen(l, k)})
		}
	}
	b.rounds(l, ovnPairs, until, func(int) []benchCase { return slices.Clone(breaks) })
}

// rounds has one run of all pairs of a lab go through cases, each round in an order of its own, until time is up.
func (b *bench) rounds(l *lab, pairs int, until time.Time, cases func(round int) []benchCase) {
	p := l.follow("check", "--all", "--continuous", "--ip", "4") // by tcp, and where that does not arrive by icmp: as everybody has it
	p.healthy(pairs)
	for round, after := 0, ""; round == 0 || time.Now().Before(until); round++ {
		all, tried := cases(round), 0
		b.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, c := range all {
			name := "continuous: " + c.String()
			switch {
			case !strings.Contains(name, *benchOnly):
			case time.Now().Before(until):
				s := c.watch(b, l, p, after)
				tally(b.report.Continuous, c.watchName(), s)
				if c.own == nil {
					tally(b.report.Sums, inContinuous, s)
				}
				after = c.watchName()
				tried++
			case round == 0:
				b.report.Left = append(b.report.Left, name)
			}
		}
		if tried == 0 {
			return // nothing is wanted
		}
	}
}

// chosen are the probes by which a run that chooses the scheme for itself judges a lab with this break: those by tcp, or
// where only a guest is silent to them, those by icmp if all of these are answered.
func chosen(l *lab, k benchBreak) traffic {
	var by [2]truth
	for i := range by {
		args := append([]string{"lab", "truth"}, k.args()...)
		if err := json.Unmarshal([]byte(l.must(append(args, "--scheme", allTraffic[i].scheme, "--ip", allTraffic[i].ip, "-o", "json")...)), &by[i]); err != nil {
			l.t.Fatal(err)
		}
	}
	loud := slices.ContainsFunc(by[0].Fates, func(f fate) bool { return f.Outcome != "silent" })
	if loud || len(by[0].Fates) == 0 || len(by[1].Fates) > 0 {
		return allTraffic[0]
	}
	return allTraffic[1]
}

// watchName tells losses by their rate, and topologies.
func (c benchCase) watchName() string {
	name := c.String()
	if c.own == nil && c.breaks[0].Topology != "racks" {
		name = c.breaks[0].Topology + ": " + name
	}
	if c.own == nil && c.breaks[0].target != "" {
		name += " " + c.breaks[0].target
	}
	return name
}

// watch breaks the lab, waits until the run has named it, heals, and waits until all is well again. after is what was done before.
func (c benchCase) watch(b *bench, l *lab, p *patrol, after string) *score {
	p.goesOn()
	from := len(p.all())
	var broken struct {
		At time.Time `json:"at"`
	}
	broken.At = time.Now()
	for _, k := range c.breaks {
		if err := json.Unmarshal([]byte(l.must(append(append([]string{"lab", "break"}, k.args()...), "-o", "json")...)), &broken); err != nil {
			b.t.Fatal(err)
		}
	}
	j := c.judging(b, l)
	j.run = p.run
	j.told = func(q pair) string { return p.history(q, from, broken.At) }
	if c.own != nil {
		c.own.do(l)
	}
	named, by := c.await(j, p, from, broken.At)
	h := hardFault{Case: c.watchName(), After: after, Told: by, At: broken.At}
	if by != "" {
		h.First = slices.Min(named)
	}
	switch {
	case c.own != nil:
	case len(j.tr.Losses) > 0:
		if j.tr.Losses[0].PerMille == 10 {
			b.report.Lossy = append(b.report.Lossy, h)
		}
	case len(j.tr.Fates) > 0:
		b.report.Hard = append(b.report.Hard, h)
		j.score.never += j.failingPairs() - len(named)
	}
	standing := map[string]pair{}
	for _, q := range p.standing().Pairs {
		standing[q.Src+" "+q.Dst] = q
		if c.own == nil {
			j.judge(q)
		}
	}
	healing := len(p.all())
	for i, q := range p.all()[from:healing] {
		switch last := standing[q.Src+" "+q.Dst]; {
		case c.own != nil:
			j.judge(q) // whatever it told, not only what it told last
		case last.Changes > q.Changes:
			j.meanwhile(q, p.toldAt(from+i).Sub(broken.At))
		}
	}
	j.score.took = append(j.score.took, named...)
	j.loss(len(named) > 0)
	if len(named) > 0 {
		j.score.first = append(j.score.first, slices.Min(named))
	}
	c.heal(l)
	if !p.settles(settleWithin) {
		for _, q := range p.standing().Pairs {
			if q.Verdict != "healthy" {
				j.miss(q, "not told to be healed", "healthy")
			}
		}
		p.healthy(len(p.standing().Pairs))
	}
	p.goesOn()
	for i, q := range p.all()[healing:] {
		switch {
		case c.own != nil:
			j.judge(q)
		case !j.fails(q):
			j.meanwhile(q, p.toldAt(healing+i).Sub(broken.At))
		}
	}
	return j.score
}

// goesOn ends the test if the run has ended, or is not followed any more: what is told of nothing would be right.
func (p *patrol) goesOn() {
	select {
	case r := <-p.ended:
		p.t.Fatalf("run %s ended, or what it tells cannot be read: exit %d\n%s", p.run, r.code, r.stderr)
	default:
	}
}

// fails says that a pair may fail by what the lab is broken in.
func (j *judging) fails(q pair) bool {
	return j.tr.fateOf(q) != nil || j.lossy(q) || fatesOf(j.tr.Maybe, q) != nil || fatesOf(j.tr.Large, q) != nil
}

// failingPairs is how many certainly fail.
func (j *judging) failingPairs() (n int) {
	for _, f := range j.tr.Fates {
		n += len(f.Src) * len(f.Dst)
	}
	return n
}

// meanwhile judges what was told of a pair while the lab was broken, and is maybe not what stands in the end.
func (j *judging) meanwhile(q pair, since time.Duration) {
	told := slices.Contains([]string{"faulty", "silent", "policy"}, q.Verdict)
	switch {
	case !told || since < 0 || j.refuted[q.Src+" "+q.Dst] || j.tr.fateOf(q) == nil && j.tr.unseen(q):
	case !j.fails(q):
		j.score.Alarms++
		j.miss(q, fmt.Sprintf("false alarm after %v", since.Round(time.Millisecond)), "healthy")
	case j.tr.fateOf(q) != nil && !j.names(q):
		j.score.Fleeting++
		j.b.report.Fleeting = append(j.b.report.Fleeting, j.missed(q, fmt.Sprintf("told after %v", since.Round(time.Millisecond)), "what is so"))
	}
}

// toldAt is when a change was told.
func (p *patrol) toldAt(i int) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[i]
}

// history is what was told of a pair, and how long after the break.
func (p *patrol) history(of pair, from int, since time.Time) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var lines []string
	for i := from; i < len(p.told); i++ {
		if q := p.told[i]; q.Src == of.Src && q.Dst == of.Dst {
			lines = append(lines, fmt.Sprintf("%+.3f s %s %s", p.at[i].Sub(since).Seconds(), q.Verdict, q.CauseKind))
		}
	}
	if lines == nil {
		return fmt.Sprintf("nothing until %+.3f s", time.Since(since).Seconds())
	}
	return fmt.Sprintf("%s, by %+.3f s", strings.Join(lines, ", "), time.Since(since).Seconds())
}

// loss counts a loss as one thing that fails: it is all pairs together that tell of it.
func (j *judging) loss(named bool) {
	if len(j.tr.Losses) == 0 {
		return
	}
	j.score.Failing++
	if named {
		j.score.Detected, j.score.Segment, j.score.Cause = j.score.Detected+1, j.score.Segment+1, j.score.Cause+1
		return
	}
	l := j.tr.Losses[0]
	j.miss(pair{Src: l.Src[0], Dst: l.Dst[0], Verdict: "not told of"}, "not named within "+lossWithin.String(), fmt.Sprintf("loss of %g %%", float64(l.PerMille)/10))
}

// await waits until all pairs that fail are told to, by a verdict, segment and cause that are right, and
// returns how long after the break each was; those that were not in time are none of them. Of a loss it
// waits for one. by is the kind of cause that the first was named with.
func (c benchCase) await(j *judging, p *patrol, from int, since time.Time) (named []time.Duration, by string) {
	within := nameWithin
	lossy := len(j.tr.Losses) > 0
	if lossy {
		within = lossWithin
	}
	if c.own != nil || len(j.tr.Fates) == 0 && !lossy {
		within = 4 * time.Second // in which nothing should happen
	}
	failing := j.failingPairs()
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		named = named[:0]
		seen := map[string]bool{}
		p.mu.Lock()
		told, at := slices.Clone(p.told[from:]), slices.Clone(p.at[from:])
		p.mu.Unlock()
		for i, q := range told {
			key := q.Src + " " + q.Dst
			if !seen[key] && j.names(q) {
				seen[key] = true
				if len(named) == 0 {
					by = q.CauseKind
				}
				named = append(named, at[i].Sub(since))
			}
		}
		if lossy && len(named) > 0 || failing > 0 && len(named) >= failing {
			return named, by
		}
		time.Sleep(20 * time.Millisecond) // between looks
	}
	return named, by
}

// names says that what is told of a pair is all that is true of it.
func (j *judging) names(p pair) bool {
	if f := j.tr.fateOf(p); f != nil {
		at := f.atTap(p.Verdict == "silent")
		return p.Segment != nil && strings.HasSuffix(*p.Segment, "→ "+at.FirstMissing.String()) &&
			slices.ContainsFunc(j.culprits(p, f)[p.Verdict], func(i int) bool { return j.c.breaks[i].blamed(p, at, j.alone[i].Changes[0]) == "" })
	}
	return p.Verdict == "faulty" && p.CauseKind == "loss" && slices.ContainsFunc(j.losses(p), func(f fate) bool { return f.holds(p) })
}

// healthy waits until so many pairs, which are all that there are, are healthy.
func (p *patrol) healthy(pairs int) {
	p.t.Helper()
	var c check
	defer func() {
		for _, q := range c.Pairs {
			if p.t.Failed() && q.Verdict != "healthy" {
				p.t.Logf("%v; told: %s", q, p.history(q, 0, p.toldAt(0)))
			}
		}
	}()
	eventually(p.t, fmt.Sprintf("%d healthy pairs", pairs), 45*time.Second, func() bool {
		c = p.standing()
		return len(c.Pairs) == pairs && c.Counts["healthy"] == pairs
	})
}

// settles waits until all pairs are told to be healthy.
func (p *patrol) settles(within time.Duration) bool {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		if c := p.standing(); c.Counts["healthy"] == len(c.Pairs) {
			return true
		}
		time.Sleep(20 * time.Millisecond) // between looks
	}
	return false
}
