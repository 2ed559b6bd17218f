package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// segmentLoss is what all that passes a part of ways loses there together.
type segmentLoss struct {
	Segment     string   `json:"segment"`
	Host        string   `json:"host"`
	Low         float64  `json:"low"`
	High        float64  `json:"high"`
	Underlay    bool     `json:"underlay"`
	SourcePorts []uint32 `json:"source_ports"`
}

// losses are those of a run under way.
func (p *patrol) losses() []segmentLoss {
	p.t.Helper()
	var run struct {
		Losses []segmentLoss `json:"losses"`
	}
	r := p.lab.dyetrace("run", p.run, "-o", "json") // the exit code is the verdict's
	if err := json.Unmarshal([]byte(r.stdout), &run); err != nil {
		p.t.Fatalf("run: %v\n%s", err, r.stderr)
	}
	return run.Losses
}

// TestLossIsNamed follows one run of all pairs, in which the underlay begins to lose a few packets of what one
// host sends another: all pairs that use the tunnel are told, in the right segment and direction, and no other; the
// second time agents are started anew before, whose streams begin anew, by other source ports. Then one of two
// equal-cost paths does: no pair need be faulty by that, and it is told what it is.
func TestLossIsNamed(t *testing.T) { // not beside others: two labs that are watched all the time take more than two processors, and lose packets
	l := up(t)
	p := l.follow("check", "--all", "--continuous")
	p.until("healthy", 58)
	for i, target := range []string{"hv2:hv4:5", "hv3:hv1:1"} {
		if i == 1 {
			p.restartAgents("hv1", "hv3")
		}
		l.must("lab", "break", "underlay-loss", target)
		var tr truth
		if err := json.Unmarshal([]byte(l.must("lab", "truth", "-o", "json")), &tr); err != nil {
			t.Fatal(err)
		}
		lossy := 0
		for _, f := range tr.Losses {
			lossy += len(f.Src) * len(f.Dst)
		}
		if lossy == 0 {
			t.Fatalf("%s loses what no pair sends", target)
		}
		for _, q := range p.until("faulty", lossy).Pairs {
			if q.Verdict != "faulty" {
				continue
			}
			i := slices.IndexFunc(tr.Losses, func(f lossFate) bool { return slices.Contains(f.Src, q.Src) && slices.Contains(f.Dst, q.Dst) })
			if i < 0 {
				t.Errorf("%s: %v, which does not pass there", target, q)
				continue
			}
			checkFate(t, withoutSamples(q), tr.Losses[i].fate)
			from, to, _ := strings.Cut(target, ":")
			to, _, _ = strings.Cut(to, ":")
			named := regexp.MustCompile(fmt.Sprintf(`^the underlay loses .* %% .* UDP packets from %s \(10\.255\..*\) to %s \(10\.255\..*\)$`, from, to))
			if q.CauseKind != "loss" || q.Host != from || q.Loss == nil || !q.Loss.Underlay || q.Loss.Low <= q.Loss.Allowed || !named.MatchString(q.Cause) {
				t.Errorf("%s: %v, %+v", target, q, q.Loss)
			}
		}
		l.must("lab", "heal", "underlay-loss")
		p.until("healthy", 58)
	}

	l.must("lab", "break", "underlay-member", "hv1")
	for _, spine := range []string{"spine1", "spine2"} {
		table := l.dyetrace("lab", "exec", spine, "--", "nft", "list", "table", "netdev", "lab-member-hv1")
		if table.code == 0 {
			rules := regexp.MustCompile(`counter packets \d+ bytes \d+ drop`).ReplaceAllString(table.stdout, "numgen random mod 100 < 8 drop")
			l.node(spine, "sh", "-c", fmt.Sprintf("nft delete table netdev lab-member-hv1 && printf %%s '%s' | nft -f -", rules))
		}
	}
	var losses []segmentLoss
	eventually(t, "one of two paths named", 60*time.Second, func() bool {
		losses = p.losses()
		return slices.ContainsFunc(losses, func(s segmentLoss) bool { return len(s.SourcePorts) > 0 })
	})
	for _, s := range losses {
		if len(s.SourcePorts) == 0 {
			continue
		}
		if !s.Underlay || len(s.SourcePorts) > 15 || !regexp.MustCompile(`^hv[12]/.* → hv[34]/`).MatchString(s.Segment) {
			t.Errorf("%+v (want some source ports from the rack of hv1 to the other)", s)
		}
	}
}

// restartAgents kills agents, starts them anew, and waits until all is well again, streams included.
func (p *patrol) restartAgents(hosts ...string) {
	p.t.Helper()
	for _, host := range hosts {
		p.lab.stop(host, "agent", "KILL")
		p.lab.daemonise(host, "agent", p.lab.configFile(host))
	}
	p.lab.allReady()
	p.until("healthy", 58)
}

// BenchmarkLossNamed has a link begin to lose 1 % of what one host sends another, in a continuous run of all
// pairs, and measures how long it takes from before the command that breaks it until the first and the last
// pair is told, and from before it heals until all are healthy; then 5 %; then 1 %, with the agents of both hosts
// killed and started anew before each time. Reported besides: how many pairs were told
// to be faulty that do not pass there, and what the streams of all healthy tunnels lost.
func BenchmarkLossNamed(b *testing.B) {
	const times = 12
	l := up(b)
	p := l.follow("check", "--all", "--continuous")
	p.until("healthy", 58)
	wrong := 0
	for _, c := range []struct {
		percent, after string
		restarts       bool
	}{{percent: "1"}, {percent: "5"}, {percent: "1", after: "-after-restarts", restarts: true}} {
		target := "hv2:hv4:" + c.percent
		var named, whole, healed []float64
		for range times {
			if c.restarts {
				p.restartAgents("hv2", "hv4")
			}
			first, all, heal, others := p.lossNamed(target)
			named, whole, healed = append(named, first), append(whole, all), append(healed, heal)
			wrong += others
		}
		for name, took := range map[string][]float64{"named": named, "all-pairs": whole, "healed": healed} {
			b.ReportMetric(median(took)*1e3, "ms-"+name+"-at-"+c.percent+"%"+c.after+"-median")
			b.ReportMetric(slices.Max(took)*1e3, "ms-"+name+"-at-"+c.percent+"%"+c.after+"-max")
		}
	}
	b.ReportMetric(float64(wrong), "false-alarms")
	b.ReportMetric(0, "ns/op")
}

// lossNamed breaks and heals once, and returns how long it took until the first and the last pair was told, and
// until all were healthy again, in seconds; and of how many others it was told wrongly.
func (p *patrol) lossNamed(target string) (first, all, healed float64, wrong int) {
	p.t.Helper()
	p.mu.Lock()
	from := len(p.told)
	p.mu.Unlock()
	begin := time.Now()
	p.lab.must("lab", "break", "underlay-loss", target)
	var tr truth
	if err := json.Unmarshal([]byte(p.lab.must("lab", "truth", "-o", "json")), &tr); err != nil {
		p.t.Fatal(err)
	}
	lossy := func(q pair) bool {
		return slices.ContainsFunc(tr.Losses, func(f lossFate) bool { return slices.Contains(f.Src, q.Src) && slices.Contains(f.Dst, q.Dst) })
	}
	pairs := 0
	for _, f := range tr.Losses {
		pairs += len(f.Src) * len(f.Dst)
	}
	eventually(p.t, target+" to be named", 60*time.Second, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		seen := map[string]bool{}
		for i, q := range p.told[from:] {
			key := q.Src + " " + q.Dst
			if q.Verdict != "faulty" || q.CauseKind != "loss" || seen[key] || !lossy(q) {
				continue
			}
			seen[key] = true
			all = p.at[from+i].Sub(begin).Seconds()
			if len(seen) == 1 {
				first = all
			}
		}
		return len(seen) == pairs
	})
	begin = time.Now()
	p.lab.must("lab", "heal", "underlay-loss")
	p.until("healthy", 58)
	p.mu.Lock()
	defer p.mu.Unlock()
	healed = p.at[len(p.at)-1].Sub(begin).Seconds()
	for _, q := range p.told[from:] {
		if q.Verdict != "healthy" && !lossy(q) {
			wrong++
			p.t.Logf("%s: told wrongly: %v", target, q)
		}
	}
	return first, all, healed, wrong
}
