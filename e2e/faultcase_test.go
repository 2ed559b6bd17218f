package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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
	// measured is what share of lost packets, per mille, the check was asked to find of each pair; 0 is that
	// one packet of a pair that arrives is enough.
	measured float64
	// dark are pairs, "SRC DST", whose packets certainly go by what may take some only; nil where nobody looked.
	dark map[string]bool
	// told is what a continuous run told of a pair since the break, and when; nil for a check.
	told func(pair) string
}

// run breaks the lab, checks all pairs, and heals it. It returns nil if a fault of ours came when the run
// was over: then only what is wrong was counted.
func (c benchCase) run(b *bench, l *lab) *score {
	defer c.heal(l)
	for _, k := range c.breaks {
		l.must(append([]string{"lab", "break"}, k.args()...)...)
		l.awaitLinks(k.Name, 1)
	}
	j := c.judging(b, l)
	began := time.Now()
	got, mid := c.check(b, l)
	j.score.took = append(j.score.took, time.Since(began))
	if c.own != nil {
		j.try(l) // our hooks may not harm what guests send, whatever befalls them
	}
	j.members(l)
	j.all(got)
	if len(c.breaks) == 1 && c.own == nil && c.breaks[0].Cause == "loss" {
		j.measure(l)
	}
	if c.own != nil && c.own.breaks != nil {
		c.afterwards(b, l, j)
	}
	if !mid {
		b.report.Early = append(b.report.Early, c.String())
		return nil
	}
	return j.score
}

func (j *judging) all(c check) {
	j.run = c.Run
	for _, p := range c.Pairs {
		j.judge(p)
	}
}

// check checks all pairs, and has the fault of ours come while that is under way: the pace of b.under holds the
// run open. mid says that it was so before and after.
func (c benchCase) check(b *bench, l *lab) (got check, mid bool) {
	before := l.newest()
	done := make(chan result, 1)
	go func() { done <- l.dyetrace(append([]string{"check", "-o", "json", "--all"}, c.args()...)...) }()
	mid = true
	if c.own != nil {
		mid = l.underWay(before)
		time.Sleep(c.delay) // a part of the case, not a wait for something
		mid = mid && len(done) == 0
		c.own.do(l)
		mid = mid && (c.own.resumes || len(done) == 0)
	}
	r := <-done
	switch {
	case c.own == nil || !c.own.resumes:
	case r.code == 4:
		return c.resume(l), mid
	default:
		mid = false
	}
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		b.t.Fatalf("%s: check: exit %d, %v\n%s", c, r.code, err, r.stderr)
	}
	return got, mid
}

// underWay waits until a run that is newer than another has verdicts, and says whether it lacks some.
func (l *lab) underWay(than string) (running bool) {
	eventually(l.t, "a run with verdicts", 20*time.Second, func() bool {
		var runs []struct {
			Run, State string
			Total      int
			Counts     map[string]int
		}
		if err := json.Unmarshal([]byte(l.must("runs", "-o", "json")), &runs); err != nil {
			l.t.Fatal(err)
		}
		if len(runs) == 0 || runs[0].Run == than {
			return false
		}
		judged := 0
		for _, n := range runs[0].Counts {
			judged += n
		}
		running = runs[0].State == "running"
		return !running || judged > 0
	})
	return running
}

// afterwards checks all pairs again, when a fault of ours that the network felt is over: nothing excuses any more.
func (c benchCase) afterwards(b *bench, l *lab, first *judging) {
	c.own.undo(l)
	l.allReady()
	c.own = nil
	j := *first
	j.c = c
	got, _ := c.check(b, l)
	j.run, first.run = got.Run, got.Run
	for _, p := range got.Pairs {
		j.judge(p)
		switch f := j.tr.fateOf(p); {
		case p.Verdict == "unknown" && f == nil && !j.tr.unseen(p):
			first.wrong(p, "not healthy when it was over", "healthy")
		case p.Verdict == "healthy" && f != nil:
			first.wrong(p, "not detected when it was over", f.Outcome)
		}
	}
}

// measure has losses measured of each pair, as fast as it goes: where a share is lost that is twice what
// is asked for, or more, it must be found, as of those that lose that very share 99 in 100 are. A rate is no share:
// among packets of guests that are more than it, one pair at least must be told.
func (j *judging) measure(l *lab) {
	ask, rate := 5.0, false // percent
	for _, lost := range j.tr.Losses {
		if rate = lost.PerMille == 0; !rate {
			ask = min(ask, float64(lost.PerMille)/20)
		}
	}
	how := append([]string{"check", "-o", "json", "--loss", "--max-loss", fmt.Sprint(ask)}, j.c.args()...)
	check := func(scope ...string) (got check) {
		r := l.dyetrace(append(slices.Clone(how), scope...)...)
		if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
			j.b.t.Fatalf("%s: check --loss: exit %d, %v\n%s", j.c, r.code, err, r.stderr)
		}
		return got
	}
	j.measured = ask * 10
	if !rate {
		l.paced(fastPace)
		j.all(check("--all"))
		l.paced(ownPace)
		return
	}
	defer l.tool("blue-1", "chatting", "chat", "10.0.1.14")() // it is on the host that gets no more than the rate
	j.score.Failing++
	for _, lost := range j.tr.Losses[:min(3, len(j.tr.Losses))] {
		got := check(lost.Src[0], lost.Dst[0])
		j.all(got)
		if slices.ContainsFunc(got.Pairs, func(p pair) bool { return p.Verdict == "faulty" && p.CauseKind == "loss" && lost.holds(p) }) {
			j.score.Detected, j.score.Segment, j.score.Cause = j.score.Detected+1, j.score.Segment+1, j.score.Cause+1
			return
		}
	}
	j.miss(pair{Src: j.tr.Losses[0].Src[0], Dst: j.tr.Losses[0].Dst[0], Verdict: "not told of"}, "not detected", "loss of one pair at least")
}

// members finds out which pairs' packets go by the way that is a black hole: one pair after the other is
// checked, and the switch counts what it drops.
func (j *judging) members(l *lab) {
	if len(j.c.breaks) != 1 || j.c.own != nil || j.c.breaks[0].Cause != "underlay-member" {
		return
	}
	j.dark = map[string]bool{}
	count := func() (n int) {
		for _, spine := range []string{"spine1", "spine2"} {
			out := l.dyetrace("lab", "exec", spine, "--", "nft", "list", "ruleset").stdout
			for _, m := range memberDrops.FindAllStringSubmatch(out, -1) {
				dropped, _ := strconv.Atoi(m[1]) // digits
				n += dropped
			}
		}
		return n
	}
	for _, f := range j.tr.Maybe {
		for _, src := range f.Src {
			for _, dst := range f.Dst {
				before := count()
				r := l.dyetrace(append([]string{"check", "-o", "json", src, dst}, j.c.args()...)...)
				var got check
				if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
					j.b.t.Fatalf("%s: check: exit %d, %v\n%s", j.c, r.code, err, r.stderr)
				}
				j.dark[src+" "+dst] = count() > before
				j.all(got)
			}
		}
	}
}

var memberDrops = regexp.MustCompile(`counter packets (\d+) bytes \d+ drop`)

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
	for _, k := range c.breaks {
		l.awaitLinks(k.Name, 0)
	}
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
		j.try(l)
	}
	return j
}

// try has the guests try the truth, and believes what they say if they say it twice.
func (j *judging) try(l *lab) {
	args := []string{"lab", "truth", "--try", "--scheme", j.c.probes.scheme, "--ip", j.c.probes.ip, "-o", "json"}
	first := map[string]bool{}
	for again := range 2 {
		var wrong []struct {
			Src, Dst string
			Answered bool
		}
		r := l.dyetrace(args...)
		if err := json.Unmarshal([]byte(r.stdout), &wrong); err != nil {
			j.b.t.Fatalf("%s: lab truth --try: exit %d, %v\n%s", j.c, r.code, err, r.stderr)
		}
		for _, w := range wrong {
			key := w.Src + " " + w.Dst
			switch {
			case again == 0:
				first[key] = true
			case first[key] && !j.refuted[key]:
				j.refuted[key] = true
				j.b.report.Lab = append(j.b.report.Lab, fmt.Sprintf("%s, %v: %s → %s answered: %t", j.c, j.c.probes, w.Src, w.Dst, w.Answered))
			}
		}
		if len(first) == 0 {
			return
		}
	}
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

// ends are the outcomes that a pair's failure may have, and by what names the cause of each may go.
func (j *judging) ends(p pair, f *fate) (all map[string][]string) {
	all = map[string][]string{}
	for outcome, culprits := range j.culprits(p, f) {
		for _, i := range culprits {
			all[outcome] = append(all[outcome], j.c.breaks[i].causes...)
		}
	}
	return all
}

// culprits are, by the outcome that a pair's failure may have, those breaks, by number,
// that alone would have it fail in the same segment, since within one nobody knows which comes first; if
// there is none, all that alone have it fail.
func (j *judging) culprits(p pair, f *fate) map[string][]int {
	same, any := map[string][]int{}, map[string][]int{}
	for i, tr := range j.alone {
		if own := tr.fateOf(p); own != nil {
			any[f.Outcome] = append(any[f.Outcome], i)
			if f.same(own) {
				same[own.Outcome] = append(same[own.Outcome], i)
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
	if j.c.own == nil {
		return
	}
	j.score.Wrong++
	j.b.report.Wrong = append(j.b.report.Wrong, j.missed(p, what, want))
}

// judge holds one verdict against the truth.
func (j *judging) judge(p pair) {
	f, key := j.tr.fateOf(p), p.Src+" "+p.Dst
	switch {
	case j.c.own != nil && j.c.own.breaks != nil && j.c.own.breaks(p):
		j.amid(p, f)
	case j.refuted[key]:
	case strings.HasPrefix(p.Src, "metal"): // no agent is there that would send
		if p.Verdict != "unknown" {
			j.score.Healthy++
			j.score.Alarms++
			j.miss(p, "a verdict on what cannot be seen", "unknown")
		}
	case (f != nil || j.tr.unseen(p)) && len(fatesOf(j.tr.Maybe, p)) > 0 && p.CauseKind == "underlay-member":
		j.some(p) // it may not come as far as where the others kill it
	case f == nil && j.tr.unseen(p):
		j.unseen(p)
	case f != nil:
		j.failing(p, f)
	case j.dark[key]:
		j.certain(p, fatesOf(j.tr.Maybe, p), "underlay-member")
	case len(fatesOf(j.tr.Large, p)) > 0 && j.c.own == nil && (p.CauseKind == "loss" && j.lossy(p) || p.CauseKind == "underlay-member" && len(fatesOf(j.tr.Maybe, p)) > 0):
		j.some(p) // small ones are lost as well
	case len(fatesOf(j.tr.Large, p)) > 0 && j.c.own == nil:
		j.certain(p, fatesOf(j.tr.Large, p), "path-mtu")
	case j.losesEnough(p):
		j.certain(p, j.losses(p), "loss")
	case len(j.losses(p)) > 0 || len(fatesOf(j.tr.Maybe, p)) > 0 && j.dark == nil:
		j.some(p)
	default:
		j.whole(p)
	}
}

// whole judges a pair that nothing keeps from passing.
func (j *judging) whole(p pair) {
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

// amid judges a pair whose packets a fault of ours loses, nobody knows which of them: that guests or rules
// did it, or that it went astray, is not true even so.
func (j *judging) amid(p pair, f *fate) {
	var outcomes, causes []string
	if f != nil {
		for outcome, of := range j.ends(p, f) {
			outcomes, causes = append(outcomes, outcome), append(causes, of...)
		}
	}
	if j.tr.unseen(p) {
		outcomes = append(outcomes, "silent")
	}
	otherwise := slices.Contains([]string{"silent", "policy"}, p.Verdict) && !slices.Contains(outcomes, p.Verdict)
	astray := p.Verdict != "unknown" && slices.Contains([]string{"misdirected", "stale-vtep"}, p.CauseKind) && !slices.Contains(causes, p.CauseKind)
	switch {
	case otherwise || astray:
		j.wrong(p, "what a fault of ours does not do", "neither silent, nor policy, nor a cause misdirected or stale-vtep")
	case p.Verdict == "healthy" && f != nil:
		j.wrong(p, "not detected", "unknown, or "+f.Outcome) // it fails before, and after
	}
}

// unseen judges a pair of which the last segment alone fails, the way of the answer to the guest: what may
// be known there is that a port has no link.
func (j *judging) unseen(p pair) {
	host := j.linkDown(p)
	switch {
	case j.c.own == nil && host != "":
		j.score.Failing++
		if p.Verdict != "silent" {
			j.miss(p, "not detected", "silent: the source's link is down")
			return
		}
		j.score.Detected, j.score.Segment = j.score.Detected+1, j.score.Segment+1
		if p.CauseKind == "guest-down" && p.Host == host {
			j.score.Cause++
		} else {
			j.miss(p, "not the cause", "guest-down at "+host)
		}
	case p.Verdict == "healthy", p.Verdict == "unknown", p.Segment != nil && strings.HasSuffix(*p.Segment, "to-instance"):
	default:
		j.score.Alarms++
		j.miss(p, "what is not so", "healthy, or lost in the last segment")
		j.wrong(p, "what is not so", "healthy, or lost in the last segment")
	}
}

// linkDown is the host of a guest whose link is down, so that a pair's answer does not come to it; empty where there is none.
func (j *judging) linkDown(p pair) (host string) {
	for i, k := range j.c.breaks {
		if k.Name == "guest-down" && j.alone[i].unseen(p) {
			return j.alone[i].Changes[0].Host
		}
	}
	return ""
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
	culprits := j.culprits(p, f)
	outcomes := strings.Join(slices.Sorted(maps.Keys(culprits)), " or ")
	at := f.atTap(p.Verdict == "silent")
	_, right := culprits[p.Verdict]
	switch {
	case right && at.holds(p):
		j.score.Segment++
	case j.c.own != nil && right && p.Segment != nil && at.LastSeen != nil && strings.HasPrefix(*p.Segment, at.LastSeen.String()+" →"):
		// It ends later: what lies between could not see.
	default:
		j.miss(p, "not the verdict or the segment", fmt.Sprintf("%s, %v", outcomes, at))
	}
	if !right {
		j.wrong(p, "another verdict", outcomes)
	}
	j.cause(p, at, culprits[p.Verdict])
}

// cause wants what a verdict blames to be what one of these breaks did.
func (j *judging) cause(p pair, at fate, culprits []int) {
	var wants []string
	for _, i := range culprits {
		want := j.c.breaks[i].blamed(p, at, j.alone[i].Changes[0])
		if want == "" {
			j.score.Cause++
			return
		}
		wants = append(wants, want)
	}
	if j.c.own == nil { // else who would tell it may be who failed
		j.miss(p, "not the cause", strings.Join(wants, " or "))
	}
}

// blamed returns what a verdict should have blamed for a pair that this break has fail; empty where that is what it
// did: by kind, by host, and by flow.
func (k benchBreak) blamed(p pair, at fate, c change) (want string) {
	kinds := k.causes
	if c.Instead != "" && p.Src != c.Instead && p.Dst != c.Instead {
		// What is sent to the port where it came in, the switch drops (OpenFlow 1.3, section 5.12): only the guest
		// that gets what is for another has its own packets end so.
		kinds = []string{"misdirected"}
	}
	hosts := []string{c.Host}
	if c.Host == "" {
		hosts = []string{at.FirstMissing.Host}
		if at.LastSeen != nil {
			hosts = append(hosts, at.LastSeen.Host)
		}
	}
	switch {
	case !slices.Contains(kinds, p.CauseKind):
		return strings.Join(kinds, " or ")
	case !slices.Contains(hosts, p.Host):
		return "a cause at " + strings.Join(hosts, " or ")
	case k.stages != nil && (p.Flow == nil || p.Flow.Owner != "ovn" || !slices.Contains(k.stages, p.Flow.Stage)):
		return fmt.Sprintf("a flow of OVN's, of a stage of %q", k.stages)
	case !c.blames(p):
		return fmt.Sprintf("one of the flows %v", append(slices.Clone(c.Flows), c.Gone...))
	}
	return ""
}

// blames says that the flow which a verdict names is one that was changed, or of the table that lacks those which are
// gone, and below these. Who says that a flow did it, or a rule, must name one.
func (c change) blames(p pair) bool {
	switch {
	case c.Bridge == "":
		return true
	case p.Flow == nil:
		return !slices.Contains([]string{"flow", "security-rule"}, p.CauseKind)
	case p.Flow.Bridge != c.Bridge:
		return false
	}
	return slices.ContainsFunc(c.Flows, func(f changedFlow) bool {
		return f.Table == p.Flow.Table && f.Priority == p.Flow.Priority && sameMatch(f.Match, p.Flow.Match)
	}) || slices.ContainsFunc(c.Gone, func(f changedFlow) bool { return f.Table == p.Flow.Table && p.Flow.Priority < f.Priority })
}

// sameMatch compares matches as two programs write them.
func sameMatch(a, b string) bool {
	parts := func(s string) []string {
		return slices.Sorted(slices.Values(strings.Split(strings.ReplaceAll(s, `"`, ""), ",")))
	}
	return slices.Equal(parts(a), parts(b))
}

// certain judges a pair that fails in one of several places, for one sort of cause.
func (j *judging) certain(p pair, at []fate, kind string) {
	j.score.Failing++
	if p.Verdict != "faulty" {
		j.miss(p, "not detected", "faulty, "+kind)
		return
	}
	j.score.Detected++
	if slices.ContainsFunc(at, func(f fate) bool { return f.holds(p) }) {
		j.score.Segment++
	} else {
		j.miss(p, "not the segment", fmt.Sprint(at))
	}
	ends := func(f fate) bool {
		return f.FirstMissing.Host == p.Host || f.LastSeen != nil && f.LastSeen.Host == p.Host
	}
	if p.CauseKind == kind && slices.ContainsFunc(at, ends) {
		j.score.Cause++
	} else {
		j.miss(p, "not the cause", kind+" at an end of where it was lost")
	}
}

// losses are where packets of a pair may be lost.
func (j *judging) losses(p pair) (at []fate) {
	for _, l := range j.tr.Losses {
		at = append(at, fatesOf([]fate{l.fate}, p)...)
	}
	return at
}

func (j *judging) lossy(p pair) bool { return len(j.losses(p)) > 0 }

// losesEnough says that a pair loses so much that the check must find it.
func (j *judging) losesEnough(p pair) bool {
	return j.measured > 0 && slices.ContainsFunc(j.tr.Losses, func(l lossFate) bool {
		return float64(l.PerMille) >= 2*j.measured && len(fatesOf([]fate{l.fate}, p)) > 0
	})
}

// some judges a pair of which nobody knows whether it is hit, or of which some packets are lost: it need not be told,
// and what is told must be so.
func (j *judging) some(p pair) {
	if p.Verdict == "healthy" || p.Verdict == "unknown" {
		return
	}
	lost, may := j.losses(p), fatesOf(j.tr.Maybe, p)
	is := func(kind string, at []fate) bool {
		return p.CauseKind == kind && slices.ContainsFunc(at, func(f fate) bool { return f.holds(p) })
	}
	if p.Verdict != "faulty" || !is("loss", lost) && !is("underlay-member", may) {
		j.score.Alarms++
		want := fmt.Sprintf("healthy, or faulty by loss %v or by underlay-member %v", lost, may)
		j.miss(p, "what is not so", want)
		j.wrong(p, "what is not so", want)
	}
}
