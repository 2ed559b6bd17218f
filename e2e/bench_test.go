package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkUserThroughput measures one TCP stream between two guests on different
// hosts with hooks on all bridges and without, in turns in the same lab, and
// reports the ratio of the medians.
func BenchmarkUserThroughput(b *testing.B) {
	const rounds, seconds = 5, "2"
	l := up(b)
	var hooked, bare []float64
	server := l.iperfServer("blue-3")
	defer server()
	stream := func() float64 {
		var report struct {
			End struct {
				SumReceived struct {
					BitsPerSecond float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			} `json:"end"`
		}
		out := l.node("blue-1", "iperf3", "-c", "10.0.1.13", "-t", seconds, "-J")
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			b.Fatal(err)
		}
		return report.End.SumReceived.BitsPerSecond
	}
	measure := func() float64 {
		stream() // a daemon that starts or ends, and the switch's caches after it, are not what is measured
		return stream()
	}
	for range rounds {
		hooked = append(hooked, measure())
		l.stop("hv1", "agent", "TERM")
		l.stop("hv3", "agent", "TERM")
		bare = append(bare, measure())
		l.daemonise("hv1", "agent", l.configFile("hv1"))
		l.daemonise("hv3", "agent", l.configFile("hv3"))
		l.ready()
	}
	b.ReportMetric(median(hooked)/1e6, "Mbit/s-hooked")
	b.ReportMetric(median(bare)/1e6, "Mbit/s-bare")
	b.ReportMetric(median(hooked)/median(bare), "hooked/bare")
	b.ReportMetric(slices.Max(bare)/slices.Min(bare), "bare-max/min")
	b.ReportMetric(0, "ns/op") // one operation is a whole measurement: its time says nothing
}

// cpuSeconds returns what all processes of the machine that belong to labs have
// spent, by ovs-vswitchd, agent and serve (the controller), children included.
func cpuSeconds(b *testing.B) map[string]float64 {
	b.Helper()
	const ticks = 100 // USER_HZ, proc(5)
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	spent := make(map[string]float64)
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		cmdline, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err != nil {
			continue
		}
		argv := strings.Split(string(cmdline), "\x00")
		name := filepath.Base(argv[0])
		if name == "dyetrace" && len(argv) > 1 {
			name = argv[1]
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, f := range fields[11:15] { // utime, stime, cutime, cstime
			n, err := strconv.Atoi(f)
			if err != nil {
				b.Fatalf("%s: %v", path, err)
			}
			spent[name] += float64(n) / ticks
		}
	}
	return spent
}

func (l *lab) iperfServer(guest string) (stop func()) {
	l.node(guest, "iperf3", "-s", "-D", "-I", "/tmp/iperf3.pid")
	eventually(l.t, "iperf3 server", 5*time.Second, func() bool {
		return l.dyetrace("lab", "exec", guest, "--", "sh", "-c", "ss -Hltn sport = :5201 | grep -q .").code == 0
	})
	return func() { l.node(guest, "sh", "-c", `kill $(tr -d '\0' </tmp/iperf3.pid)`) }
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

// BenchmarkAllPairs measures `check --all` in the default lab, from the command to
// the last verdict.
func BenchmarkAllPairs(b *testing.B) {
	l := up(b)
	var took, rtt []float64
	for b.Loop() {
		begin := time.Now()
		c := l.check(0, "--all")
		took = append(took, time.Since(begin).Seconds())
		for _, p := range c.Pairs {
			rtt = append(rtt, float64(p.RTT)/1e3)
		}
	}
	b.ReportMetric(median(took)*1e3, "ms/58-pairs")
	b.ReportMetric(median(rtt), "µs-rtt-median")
}

// BenchmarkTenThousandPairs runs 104 instances against each other, 10,712 ordered
// pairs, end to end: planned, probed, judged, stored. First with the controller's
// default pace, which is what bounds it then, and then with a pace out of the way.
func BenchmarkTenThousandPairs(b *testing.B) {
	const pairs = 104 * 103
	l := up(b, "--topology", "scale")
	measure := func(b *testing.B, warm bool, limit string) {
		l := l.with(b)
		if warm { // ARP, and the switches' caches
			l.check(0, "--all")
		}
		var took []float64
		before, began := cpuSeconds(b), time.Now()
		for b.Loop() {
			begin := time.Now()
			if c := l.check(0, "--all"); c.Counts["healthy"] != pairs {
				b.Fatalf("%v of %d pairs", c.Counts, pairs)
			}
			took = append(took, time.Since(begin).Seconds())
		}
		b.ReportMetric(median(took), "s/10712-pairs")
		b.ReportMetric(pairs/median(took), "pairs/s")
		b.ReportMetric(0, "ns/op")
		spent, wall := 0.0, time.Since(began).Seconds()*float64(runtime.NumCPU())
		for _, name := range []string{"ovs-vswitchd", "agent", "serve"} {
			share := (cpuSeconds(b)[name] - before[name]) / wall
			spent += share
			b.ReportMetric(100*share, "cpu%-"+name)
		}
		switch {
		case limit != "":
			b.Log("limited by " + limit)
		case spent > 0.7:
			b.Logf("limited by the processors: %.0f %% of %d cores go to switches, agents and controller", 100*spent, runtime.NumCPU())
		default:
			b.Logf("limited by waiting: switches, agents and controller take %.0f %% of %d cores", 100*spent, runtime.NumCPU())
		}
	}
	b.Run("pace=20", func(b *testing.B) {
		measure(b, false, "run.per_instance_rate: 206 probes of each instance, 20 at once and 20 a second")
	})
	b.Run("pace=none", func(b *testing.B) {
		l := l.with(b)
		l.stop("controller", "serve", "TERM")
		l.daemonise("controller", "serve", l.configWith("run: {per_instance_rate: 100000, per_instance_burst: 100000}"))
		l.ready()
		measure(b, true, "")
	})
}
