package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// benchCase is what the bench does to a lab at once: breaks of the lab's, and maybe one thing done to
// Dyetrace itself, by which no packet is lost.
type benchCase struct {
	breaks []benchBreak
	own    *ownFault
	delay  time.Duration // of own, after the check began
	probes traffic
}

func (c benchCase) String() string {
	var names []string
	if c.own != nil {
		names = append(names, "own: "+c.own.name)
	}
	for _, k := range c.breaks {
		names = append(names, k.Name)
	}
	return strings.Join(names, " + ")
}

// judging holds verdicts of one case against its truth.
type judging struct {
	b     *bench
	c     benchCase
	run   string
	tr    truth
	alone []truth // what each break does by itself
	score *score
	// refuted are pairs, "SRC DST", of which guests say otherwise than the lab.
	refuted map[string]bool
	// told is what a continuous run told of a pair since the break, and when; nil for a check.
	told func(pair) string
}

// run breaks the lab, checks all pairs, and heals it.
func (c benchCase) run(b *bench, l *lab) *score {
	defer c.heal(l)
	for _, k := range c.breaks {
		l.must(append([]string{"lab", "break"}, k.args()...)...)
	}
	j := c.judging(b, l)
	args := append(c.args(), "--all")
	began := time.Now()
	done := make(chan result, 1)
	go func() { done <- l.dyetrace(append([]string{"check", "-o", "json"}, args...)...) }()
	if c.own != nil {
		time.Sleep(c.delay) // a part of the case, not a wait for something
		c.own.do(l)
	}
	r := <-done
	j.score.took = append(j.score.took, time.Since(began))
	var got check
	if r.code == 4 && c.own != nil && c.own.resumes {
		got = c.resume(l)
	} else if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		b.t.Fatalf("%s: check: exit %d, %v\n%s", c, r.code, err, r.stderr)
	}
	j.run = got.Run
	for _, p := range got.Pairs {
		j.judge(p)
	}
	return j.score
}

// resume has a run whose controller ended go on with the next one.
func (c benchCase) resume(l *lab) check {
	c.own.undo(l)
	l.allReady()
	id := l.newest()
	l.dyetrace("run", id, "--resume", "-o", "json")
	return l.readRun(id)
}

// heal undoes all, and waits until Dyetrace can see again.
func (c benchCase) heal(l *lab) {
	if c.own != nil {
		c.own.undo(l)
	}
	l.must("lab", "heal", "all")
	l.allReady()
}

// allReady waits until every agent of the lab has all its hooks. A switch has none, and is never ready.
func (l *lab) allReady() {
	l.t.Helper()
	agents, err := filepath.Glob(filepath.Join(stateDir(l.name), "hv*.yaml"))
	if err != nil || len(agents) == 0 {
		l.t.Fatalf("no agent's configuration: %v", err)
	}
	eventually(l.t, "all agents with all hooks", 60*time.Second, func() bool {
		var status struct {
			Ready int `json:"hosts_ready"`
		}
		// It exits with an error for as long as a host is missing.
		err := json.Unmarshal([]byte(l.dyetrace("status", "-o", "json").stdout), &status)
		return err == nil && status.Ready == len(agents)
	})
}

// args say how to probe.
func (c benchCase) args() []string {
	args := []string{"--scheme", c.probes.scheme, "--ip", c.probes.ip}
	if slices.ContainsFunc(c.breaks, func(k benchBreak) bool { return k.Cause == "path-mtu" }) {
		args = append(args, "--mtu")
	}
	return args
}

// judging reads the truth, and has the guests try it.
func (c benchCase) judging(b *bench, l *lab) *judging {
	j := &judging{b: b, c: c, score: &score{Cases: 1}, refuted: map[string]bool{}}
	how := []string{"--scheme", c.probes.scheme, "--ip", c.probes.ip, "-o", "json"}
	read := func(into any, args ...string) {
		r := l.dyetrace(append(append([]string{"lab", "truth"}, args...), how...)...)
		if err := json.Unmarshal([]byte(r.stdout), into); err != nil {
			b.t.Fatalf("%s: lab truth: exit %d, %v\n%s", c, r.code, err, r.stderr)
		}
	}
	read(&j.tr)
	for _, k := range c.breaks {
		var tr truth
		read(&tr, k.args()...)
		j.alone = append(j.alone, tr)
	}
	if len(c.breaks) > 0 {
		var wrong []struct {
			Src, Dst string
			Answered bool
		}
		read(&wrong, "--try")
		for _, w := range wrong {
			j.refuted[w.Src+" "+w.Dst] = true
			b.report.Lab = append(b.report.Lab, fmt.Sprintf("%s, %v: %s → %s answered: %t", c, c.probes, w.Src, w.Dst, w.Answered))
		}
	}
	return j
}

// fateOf is what becomes of a pair.
func (tr truth) fateOf(p pair) *fate {
	i := slices.IndexFunc(tr.Fates, func(f fate) bool { return slices.Contains(f.Src, p.Src) && slices.Contains(f.Dst, p.Dst) })
	if i < 0 {
		return nil
	}
	return &tr.Fates[i]
}

func (f *fate) same(o *fate) bool {
	return o != nil && f.FirstMissing == o.FirstMissing && (f.LastSeen == nil) == (o.LastSeen == nil) && (f.LastSeen == nil || *f.LastSeen == *o.LastSeen)
}

// ends are the outcomes that a pair's failure may have, and by what names the cause of each may go: of those
// breaks that alone would have it fail in the same segment, since within one nobody knows which comes first; if
// there is none, of all that alone have it fail.
func (j *judging) ends(p pair, f *fate) (all map[string][]string) {
	same, any := map[string][]string{}, map[string][]string{}
	for i, tr := range j.alone {
		if own := tr.fateOf(p); own != nil {
			any[f.Outcome] = append(any[f.Outcome], j.c.breaks[i].causes...)
			if f.same(own) {
				same[own.Outcome] = append(same[own.Outcome], j.c.breaks[i].causes...)
			}
		}
	}
	if len(same) > 0 {
		return same
	}
	return any
}

func (j *judging) miss(p pair, what, want string) {
	j.b.report.Missed = append(j.b.report.Missed, j.missed(p, what, want))
}

func (j *judging) missed(p pair, what, want string) missed {
	m := missed{Case: j.c.String(), Run: j.run, Probes: j.c.probes.scheme + " over IPv" + j.c.probes.ip, What: what, Want: want, Said: p.String()}
	if j.told != nil {
		m.Told = j.told(p)
	}
	return m
}

// wrong notes a verdict that a fault of ours must never lead to.
func (j *judging) wrong(p pair, what, want string) {
	if j.c.own == nil || j.c.own.breaks != nil && j.c.own.breaks(p) {
		return
	}
	j.score.Wrong++
	j.b.report.Wrong = append(j.b.report.Wrong, j.missed(p, what, want))
}

// judge holds one verdict against the truth.
func (j *judging) judge(p pair) {
	f := j.tr.fateOf(p)
	switch {
	case j.refuted[p.Src+" "+p.Dst], f == nil && j.tr.unseen(p):
		return // nobody sees the latter, but for a link that is down
	case j.c.own != nil && j.c.own.breaks != nil && j.c.own.breaks(p):
		return // who knows what the network did meanwhile
	case strings.HasPrefix(p.Src, "metal"): // no agent is there that would send
		if p.Verdict != "unknown" {
			j.score.Healthy++
			j.score.Alarms++
			j.miss(p, "a verdict on what cannot be seen", "unknown")
		}
		return
	case f != nil && holds(j.tr.Maybe, p) && p.CauseKind == "underlay-member":
		j.some(p) // it may not come as far as where the others kill it
	case f != nil:
		j.failing(p, f)
	case holds(j.tr.Large, p) && j.c.own == nil:
		j.large(p)
	case (j.lossy(p) || holds(j.tr.Maybe, p)) && p.Verdict != "healthy":
		j.some(p)
	case j.lossy(p) || holds(j.tr.Maybe, p):
		// Healthy, or it is not known that it is not.
	default:
		j.score.Healthy++
		switch p.Verdict {
		case "healthy":
		case "unknown":
			j.score.Unsure++
		default:
			j.score.Alarms++
			j.miss(p, "false alarm", "healthy")
			j.wrong(p, "false alarm", "healthy")
		}
	}
}

// failing judges a pair that certainly fails.
func (j *judging) failing(p pair, f *fate) {
	j.score.Failing++
	if p.Verdict == "healthy" || p.Verdict == "unknown" {
		if p.Verdict == "healthy" {
			j.wrong(p, "not detected", f.Outcome)
		}
		if j.c.own == nil {
			j.miss(p, "not detected", f.Outcome)
		}
		return
	}
	j.score.Detected++
	ends := j.ends(p, f)
	outcomes := strings.Join(slices.Sorted(maps.Keys(ends)), " or ")
	at := f.atTap(p.Verdict == "silent")
	want := "→ " + at.FirstMissing.String()
	if at.LastSeen != nil {
		want = at.LastSeen.String() + " " + want
	}
	_, right := ends[p.Verdict]
	switch {
	case right && p.Segment != nil && strings.HasSuffix(*p.Segment, want):
		j.score.Segment++
	case j.c.own != nil && right && p.Segment != nil && at.LastSeen != nil && strings.HasPrefix(*p.Segment, at.LastSeen.String()+" →"):
		// It ends later: what lies between could not see.
	default:
		j.miss(p, "not the verdict or the segment", outcomes+", "+want)
	}
	if !right {
		j.wrong(p, "another verdict", outcomes)
	}
	j.cause(p, ends[p.Verdict])
}

func (j *judging) cause(p pair, causes []string) {
	switch {
	case slices.Contains(causes, p.CauseKind):
		j.score.Cause++
	case j.c.own == nil: // else who would tell it may be who failed
		j.miss(p, "not the cause", strings.Join(causes, " or "))
	}
}

// large judges a pair whose large packets are lost between the hosts.
func (j *judging) large(p pair) {
	j.score.Failing++
	if p.Verdict != "faulty" {
		j.miss(p, "not detected", "faulty")
		return
	}
	j.score.Detected++
	j.between(p)
	j.cause(p, []string{"path-mtu"})
}

// between wants the segment of a pair to lie between two hosts.
func (j *judging) between(p pair) {
	if p.Segment != nil && strings.Contains(*p.Segment, "to-tunnel → ") && strings.HasSuffix(*p.Segment, "from-tunnel") {
		j.score.Segment++
	} else {
		j.miss(p, "not the segment", "between two hosts")
	}
}

func (j *judging) lossy(p pair) bool {
	return slices.ContainsFunc(j.tr.Losses, func(l lossFate) bool { return slices.Contains(l.Src, p.Src) && slices.Contains(l.Dst, p.Dst) })
}

// some judges a pair of which nobody knows whether it is hit, or of which some probes are lost, and which
// is said to fail.
func (j *judging) some(p pair) {
	if p.Verdict == "unknown" {
		return
	}
	j.score.Failing++
	j.score.Detected++
	j.between(p)
	var causes []string
	if j.lossy(p) {
		causes = append(causes, "loss")
	}
	if holds(j.tr.Maybe, p) {
		causes = append(causes, "underlay-member")
	}
	j.cause(p, causes)
}
