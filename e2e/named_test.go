package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkNamed measures how long a continuous run of one pair takes to name a break of its way, from
// before the command that breaks it, and to tell that it is healed; in rounds of the patrol, too. It takes 20
// breaks, or as many as -benchtime 100x says, and logs how long each took, and what examinations did meanwhile.
// Flows of hv1 that drop it say so; what the underlay swallows is only silent, and waited for.
func BenchmarkNamed(b *testing.B) {
	b.Run("flow", func(b *testing.B) { benchNamed(b, "flow", "hv1", "br-int", "ip,nw_dst=10.0.1.13") })           // what is for blue-3
	b.Run("underlay", func(b *testing.B) { benchNamed(b, "underlay", "hv3", "br-phy", "ip,nw_src=10.255.1.11") }) // what hv1 sends
	b.Run("together", func(b *testing.B) { benchNamedTogether(b) })
	b.Run("together-by-tcp", func(b *testing.B) { benchNamedTogether(b, "--scheme", "tcp", "--ip", "4") })
}

// streamsSlow is for how long agents' streams go slowly after they were silent, so that they would be silent for a second and more before
// they tell again. How long breaks of a link that has been up are to be named is what is measured.
const streamsSlow = 4 * time.Second

// benchNamed is BenchmarkNamed for breaks of one cause: a flow of a bridge that drops.
func benchNamed(b *testing.B, cause, host, bridge, match string) {
	breaks := max(20, b.N)
	dropped := "table=0,priority=60000," + match
	l := up(b)
	p := l.follow("check", "blue-1", "blue-3", "--continuous")
	last := func() pair {
		if all := p.all(); len(all) > 0 {
			return all[len(all)-1]
		}
		return pair{}
	}
	until := func(verdict string, since time.Time) float64 {
		eventually(b, verdict, 45*time.Second, func() bool { return last().Verdict == verdict })
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.at[len(p.at)-1].Sub(since).Seconds()
	}
	until("healthy", time.Now())
	const round = 0.05 // seconds: the lab's run.per_instance_rate is 20 a second
	var named, told []float64
	flows := func(argv ...string) {
		l.node(host, append([]string{"ovs-ofctl"}, argv...)...)
	}
	for range breaks {
		// Not `lab break`, which takes longer to compare flows than the run to name it.
		begin := time.Now()
		flows("add-flow", bridge, dropped+",actions=drop")
		named = append(named, until("faulty", begin))
		if got := last(); got.CauseKind != cause {
			b.Errorf("%s: %s; want %s", got.CauseKind, got.Cause, cause)
		}
		begin = time.Now()
		flows("--strict", "del-flows", bridge, dropped)
		told = append(told, until("healthy", begin))
		if cause == "underlay" {
			time.Sleep(streamsSlow)
		}
	}
	b.Logf("seconds\n%sexaminations, by stage\n%s", kindTable(map[string][]float64{"named": named}, map[string][]float64{"named": told}), stageTable(l.log("controller-serve")))
	for _, m := range []struct {
		name string
		took []float64
	}{{"named", named}, {"healed", told}} {
		slices.Sort(m.took)
		most := at(m.took, .99) // of 20, that is the longest
		b.ReportMetric(median(m.took)*1e3, "ms-"+m.name+"-median")
		b.ReportMetric(most*1e3, "ms-"+m.name+"-p99")
		b.ReportMetric(median(m.took)/round, m.name+"-median/round")
		b.ReportMetric(most/round, m.name+"-p99/round")
	}
	b.ReportMetric(0, "ns/op")
}

// benchNamedTogether is BenchmarkNamed for what many pairs share: of all 58, those of a host whose uplink goes down, the
// next host's each time; and how long it takes until the first and until all of them are named, from when it is down, and until all are
// healthy, from before the command that heals it.
func benchNamedTogether(b *testing.B, args ...string) {
	breaks := max(8, b.N)
	l := up(b)
	p := l.follow(append([]string{"check", "--all", "--continuous"}, args...)...)
	p.until("healthy", 58)
	var first, all, healed []float64
	for i := range breaks {
		one, last, heal := p.namedTogether("underlay-down", fmt.Sprintf("hv%d", 1+i%4), "underlay")
		first, all, healed = append(first, one), append(all, last), append(healed, heal)
		time.Sleep(streamsSlow)
	}
	b.Logf("seconds\n%sexaminations, by stage\n%s", kindTable(map[string][]float64{"first": first}, map[string][]float64{"first": all}, map[string][]float64{"first": healed}), stageTable(l.log("controller-serve")))
	for name, took := range map[string][]float64{"first": first, "all": all, "healed": healed} {
		b.ReportMetric(median(took)*1e3, "ms-"+name+"-median")
		b.ReportMetric(slices.Max(took)*1e3, "ms-"+name+"-max")
	}
	b.ReportMetric(0, "ns/op")
}

// namedTogether breaks the lab in one way, waits until all pairs that fail are named by a kind of cause, and heals it.
func (p *patrol) namedTogether(kind, target, cause string) (first, all, healed float64) {
	p.t.Helper()
	p.mu.Lock()
	from := len(p.told)
	p.mu.Unlock()
	var broken struct {
		At time.Time `json:"at"`
	}
	if err := json.Unmarshal([]byte(p.lab.must("lab", "break", kind, target, "-o", "json")), &broken); err != nil {
		p.t.Fatal(err)
	}
	var tr truth
	if err := json.Unmarshal([]byte(p.lab.must("lab", "truth", "-o", "json")), &tr); err != nil {
		p.t.Fatal(err)
	}
	left := map[string]bool{}
	for _, f := range tr.Fates {
		for _, src := range f.Src {
			for _, dst := range f.Dst {
				left[src+" "+dst] = true
			}
		}
	}
	if len(left) < 12 {
		p.t.Fatalf("%s %s: %d pairs fail", kind, target, len(left))
	}
	eventually(p.t, kind+" "+target+" to be named", 60*time.Second, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for ; from < len(p.told); from++ {
			q := p.told[from]
			if !left[q.Src+" "+q.Dst] || q.CauseKind != cause {
				continue
			}
			delete(left, q.Src+" "+q.Dst)
			if all = p.at[from].Sub(broken.At).Seconds(); first == 0 {
				first = all
			}
		}
		return len(left) == 0
	})
	begin := time.Now()
	p.lab.must("lab", "heal", kind)
	p.until("healthy", 58)
	p.mu.Lock()
	defer p.mu.Unlock()
	return first, all, p.at[len(p.at)-1].Sub(begin).Seconds()
}

// BenchmarkNamedKinds has a continuous run of all pairs meet all kinds of break that kill packets, and
// measures how long it takes from before the command that breaks the lab, and from its end, until the first
// pair is told with a cause of the right kind, and until all pairs are that the truth has failing. -benchtime
// 5x takes each kind five times. Besides, by stage, how long examinations took that found something.
func BenchmarkNamedKinds(b *testing.B) {
	l := up(b)
	var kinds []breakKind
	if err := json.Unmarshal([]byte(l.must("lab", "break", "-o", "json")), &kinds); err != nil {
		b.Fatal(err)
	}
	kinds = slices.DeleteFunc(kinds, func(k breakKind) bool {
		return k.Topology != "racks" || slices.Contains(bySome, k.Cause) || k.Cause == "underlay-member" || len(failing(l, k.Name)) == 0
	})
	if len(kinds) < 16 {
		b.Fatalf("%d kinds of break (want at least 16)", len(kinds))
	}
	p := l.follow("check", "--all", "--continuous")
	p.until("healthy", 58)
	from, after, all := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for b.Loop() {
		for _, k := range kinds {
			begin, end, first, whole := p.named(k)
			from[k.Name] = append(from[k.Name], first.Sub(begin).Seconds())
			after[k.Name] = append(after[k.Name], first.Sub(end).Seconds())
			all[k.Name] = append(all[k.Name], whole.Sub(begin).Seconds())
		}
	}
	b.Logf("seconds               from the command's begin           from its end                      to all pairs\n%s", kindTable(from, after, all))
	b.Logf("examinations that found something, by stage\n%s", stageTable(l.log("controller-serve")))
	for _, m := range []struct {
		name string
		took map[string][]float64
	}{{"named", from}, {"named-after", after}, {"all-pairs", all}} {
		took := slices.Sorted(each(m.took))
		b.ReportMetric(median(took)*1e3, "ms-"+m.name+"-median")
		b.ReportMetric(at(took, .99)*1e3, "ms-"+m.name+"-p99")
	}
	b.ReportMetric(0, "ns/op")
}

// named breaks the lab in one way, waits until that is named, and heals it. Where a break has pairs that
// nobody can name for what they are, the others are waited for.
func (p *patrol) named(k breakKind) (begin, end, first, whole time.Time) {
	p.t.Helper()
	want := map[string]bool{}
	for _, pair := range failing(p.lab, k.Name) {
		want[pair] = true
	}
	p.mu.Lock()
	told := len(p.told)
	p.mu.Unlock()
	begin = time.Now()
	p.lab.must("lab", "break", k.Name)
	end = time.Now()
	eventually(p.t, k.Name+" to be named", 60*time.Second, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		left := maps.Clone(want)
		first, whole = time.Time{}, time.Time{}
		for i := told; i < len(p.told); i++ {
			q := p.told[i]
			if !left[q.Src+" "+q.Dst] || !slices.Contains(k.kinds(), q.CauseKind) {
				continue
			}
			delete(left, q.Src+" "+q.Dst)
			if whole = p.at[i]; first.IsZero() {
				first = p.at[i]
			}
		}
		return len(left) == 0
	})
	p.lab.must("lab", "heal", k.Name)
	p.until("healthy", 58)
	return begin, end, first, whole
}

func each(m map[string][]float64) func(func(float64) bool) {
	return func(yield func(float64) bool) {
		for _, list := range m {
			for _, v := range list {
				if !yield(v) {
					return
				}
			}
		}
	}
}

// at is a quantile of what is sorted.
func at(sorted []float64, q float64) float64 { return sorted[int(q*float64(len(sorted)-1)+.5)] }

// kindTable has the median, the 90th and the 99th percentile and the most of each kind's times.
func kindTable(columns ...map[string][]float64) string {
	var t strings.Builder
	line := func(name string, lists ...[]float64) {
		fmt.Fprintf(&t, "%-20s", name)
		for _, list := range lists {
			slices.Sort(list)
			fmt.Fprintf(&t, "  %6.3f %6.3f %6.3f %6.3f (%3d)", at(list, .5), at(list, .9), at(list, .99), at(list, 1), len(list))
		}
		t.WriteString("\n")
	}
	for _, name := range slices.Sorted(maps.Keys(columns[0])) {
		var lists [][]float64
		for _, c := range columns {
			lists = append(lists, c[name])
		}
		line(name, lists...)
	}
	var lists [][]float64
	for _, c := range columns {
		lists = append(lists, slices.Collect(each(c)))
	}
	line("all", lists...)
	return t.String()
}

var stageTimes = regexp.MustCompile(`(suspecting|refresh|preparing|probing|closing|explaining)=([0-9.a-zµ]+)`)

// stageTable reads what the controller logs of examinations.
func stageTable(logs string) string {
	times := map[string][]float64{}
	for line := range strings.Lines(logs) {
		if !strings.Contains(line, "msg=examined") {
			continue
		}
		for _, m := range stageTimes.FindAllStringSubmatch(line, -1) {
			if d, err := time.ParseDuration(m[2]); err == nil {
				times[m[1]] = append(times[m[1]], d.Seconds())
			}
		}
	}
	return kindTable(times)
}

// failing are the pairs that a break alone fails, whichever way they are probed: a run that chooses for
// itself calls the others healthy.
func failing(l *lab, kind string) (pairs []string) {
	schemes := []string{"tcp", "icmp"}
	times := map[string]int{}
	for _, scheme := range schemes {
		var tr truth
		if err := json.Unmarshal([]byte(l.must("lab", "truth", kind, "-o", "json", "--scheme", scheme)), &tr); err != nil {
			l.t.Fatal(err)
		}
		for _, f := range tr.Fates {
			for _, src := range f.Src {
				for _, dst := range f.Dst {
					times[src+" "+dst]++
				}
			}
		}
	}
	for p, n := range times {
		if n == len(schemes) {
			pairs = append(pairs, p)
		}
	}
	return pairs
}
