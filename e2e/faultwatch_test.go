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

// continuous follows one run of all pairs through each kind of break, and through faults of ours: how soon
// is each named?
func (b *bench) continuous(until time.Time) {
	if time.Now().After(until) {
		b.report.Left = append(b.report.Left, "continuous runs")
		return
	}
	l := up(b.t)
	var cases []benchCase
	for _, k := range b.kinds("racks") {
		if k.Cause == "path-mtu" {
			continue // a continuous run does not look for it unless asked
		}
		cases = append(cases, benchCase{breaks: []benchBreak{k}, probes: chosen(l, k)})
		if k.Name == "underlay-loss" {
			for _, k.target = range []string{"hv2:hv4:1", "hv3:hv1:1", "hv1:hv2:1", "hv4:hv3:2"} {
				cases = append(cases, benchCase{breaks: []benchBreak{k}, probes: allTraffic[0]})
			}
		}
	}
	for i := range ownFaults {
		if !ownFaults[i].resumes {
			cases = append(cases, benchCase{own: &ownFaults[i], probes: allTraffic[0]})
		}
	}
	b.random.Shuffle(len(cases), func(i, j int) { cases[i], cases[j] = cases[j], cases[i] })
	p := l.follow("check", "--all", "--continuous", "--ip", "4") // by tcp, and where that does not arrive by icmp: as everybody has it
	p.until("healthy", 58)
	for _, c := range cases {
		name := "continuous: " + c.String()
		switch {
		case !strings.Contains(name, *benchOnly):
		case time.Now().After(until):
			b.report.Left = append(b.report.Left, name)
		default:
			tally(b.report.Continuous, c.watchName(), c.watch(b, l, p))
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

// watchName tells losses by their rate.
func (c benchCase) watchName() string {
	name := c.String()
	if c.own == nil && c.breaks[0].target != "" {
		name += " " + c.breaks[0].target
	}
	return name
}

// watch breaks the lab, waits until the run has named it, heals, and waits until all is well again.
func (c benchCase) watch(b *bench, l *lab, p *patrol) *score {
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
	if c.own == nil && len(j.tr.Losses) == 0 && len(j.tr.Fates) > 0 {
		h := hardFault{Case: c.watchName(), Told: by}
		if by != "" {
			h.First = slices.Min(named)
		}
		b.report.Hard = append(b.report.Hard, h)
	}
	last := map[string]pair{}
	for _, q := range p.all()[from:] {
		last[q.Src+" "+q.Dst] = q
		if c.own != nil {
			j.judge(q) // whatever it told, not only what it told last
		}
	}
	for _, q := range p.standing().Pairs {
		if c.own == nil {
			j.judge(q)
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
		p.until("healthy", 58)
	}
	return j.score
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

// loss counts a loss of a known share as one thing that fails: it is all pairs together that tell of it.
func (j *judging) loss(named bool) {
	i := slices.IndexFunc(j.tr.Losses, func(l lossFate) bool { return l.PerMille > 0 })
	if i < 0 {
		return
	}
	j.score.Failing++
	if named {
		j.score.Detected, j.score.Segment, j.score.Cause = j.score.Detected+1, j.score.Segment+1, j.score.Cause+1
		return
	}
	l := j.tr.Losses[i]
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
	failing := 0
	for _, f := range j.tr.Fates {
		failing += len(f.Src) * len(f.Dst)
	}
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
		return p.Segment != nil && strings.HasSuffix(*p.Segment, "→ "+at.FirstMissing.String()) && slices.Contains(j.ends(p, f)[p.Verdict], p.CauseKind)
	}
	return j.lossy(p) && p.Verdict == "faulty" && p.CauseKind == "loss" && p.Segment != nil && strings.HasSuffix(*p.Segment, "from-tunnel")
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
