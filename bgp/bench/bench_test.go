package bench

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/dyetrace/dyetrace/internal/sandbox"
)

// learner is a speaker in a process of its own, that waits for peers.
type learner interface {
	pid() int
	// wait returns the clock when that many routes are in the table, of all peers together.
	wait(n int) int64
	// read begins lookups, one after another; stop tells how many there were.
	read() (stop func() (lookups, found int))
}

// scale is what one line of the table is measured with.
type scale struct {
	fabric fabric
	peers  int
	rounds int
	churns int // all withdrawn and learned again, in the first round of each
}

// measure is what one round comes to.
type measure struct {
	learn, withdraw, again time.Duration
	cpu                    time.Duration // of learn
	peak, atEnd            float64       // most MB that were resident, after learn and after all
	lookups                float64       // a second, while all is withdrawn and learned once more
	slower                 time.Duration // what learning takes then
	rss                    []float64     // MB after each churn
}

const mega = 1e6

// TestAgainstFRR gives ours and bgpd the same routes. Without -full it holds the measuring upright.
func TestAgainstFRR(t *testing.T) {
	scales := []scale{{fabric{500, 4}, 2, 1, 2}}
	if *full {
		scales = []scale{
			{fabric{5000, 10}, 1, 3, *churns}, {fabric{5000, 10}, 2, 3, 0},
			{fabric{5000, 100}, 1, 1, *churns}, {fabric{5000, 100}, 2, 1, 0},
		}
	}
	furnish(t)
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "routes × peers\t\tlearn\twithdraw\tlearn again\tlearn, read\tlookups/s\tCPU\tpeak RSS\tat end\t\n")
	for _, s := range scales {
		compare(t, w, s)
	}
	w.Flush()
	if *full {
		fmt.Printf("%s\nMedians. learn: first UPDATE sent to last route in the table. learn, read: likewise, with a reader; lookups/s: its own.\n"+
			"CPU, peak RSS: of the learner, learn alone; at end: most RSS of any round, when all was withdrawn and learned 2 times more, or %d times (×1).\n", table.Bytes(), 2+*churns)
	}
}

func compare(t *testing.T, w *tabwriter.Writer, s scale) {
	kinds := []struct {
		name  string
		start func(*testing.T, string, []string, fabric) learner
	}{{"dyetrace", startDyetrace}, {"bgpd", startFRR}}
	announce, withdraw := s.fabric.announce(), s.fabric.withdraw()
	name := fmt.Sprintf("%dk×%d", s.fabric.routes()/1000, s.peers)
	all := make([][]measure, len(kinds))
	for round := range s.rounds {
		for i, k := range kinds {
			t.Run(fmt.Sprintf("%s/%s/%d", name, k.name, round), func(t *testing.T) {
				churns := s.churns
				if round > 0 {
					churns = 0
				}
				all[i] = append(all[i], run(t, k.start, s, churns, announce, withdraw))
			})
		}
	}
	if len(all[0]) < s.rounds || len(all[1]) < s.rounds {
		return // failed, or not chosen by -run
	}
	var rows [2][]float64
	for i, k := range kinds {
		rows[i] = medians(all[i])
		line(w, name, k.name, rows[i])
	}
	fmt.Fprint(w, "\tratio\t")
	for j := range rows[0] {
		fmt.Fprintf(w, "%.2f\t", rows[0][j]/rows[1][j])
	}
	fmt.Fprint(w, "\n")
	flat(t, name, all[0][0].rss)
}

func line(w *tabwriter.Writer, name, kind string, v []float64) {
	fmt.Fprintf(w, "%s\t%s\t%.3f s\t%.3f s\t%.3f s\t%.3f s\t%.0f\t%.2f s\t%.0f MB\t%.0f MB\t\n",
		name, kind, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7])
}

// medians of each column of the table, and the most of the last.
func medians(ms []measure) []float64 {
	var v []float64
	for _, of := range []func(measure) float64{
		func(m measure) float64 { return m.learn.Seconds() }, func(m measure) float64 { return m.withdraw.Seconds() },
		func(m measure) float64 { return m.again.Seconds() }, func(m measure) float64 { return m.slower.Seconds() },
		func(m measure) float64 { return m.lookups }, func(m measure) float64 { return m.cpu.Seconds() },
		func(m measure) float64 { return m.peak }, func(m measure) float64 { return m.atEnd },
	} {
		var all []float64
		for _, m := range ms {
			all = append(all, of(m))
		}
		slices.Sort(all)
		v = append(v, all[len(all)/2])
	}
	// Not every round churns.
	v[len(v)-1] = slices.MaxFunc(ms, func(a, b measure) int { return cmp.Compare(a.atEnd, b.atEnd) }).atEnd
	return v
}

// flat wants the memory of ours to grow no more once the history is full: the second half of the
// churns may add a tenth to the first.
func flat(t *testing.T, name string, rss []float64) {
	if len(rss) < 10 {
		return
	}
	if half := len(rss) / 2; slices.Max(rss[half:]) > 1.1*slices.Max(rss[:half]) {
		t.Errorf("%s: MB after each churn: %.0f; want no growth", name, rss)
	}
}

// run is one round, of a learner that begins empty.
func run(t *testing.T, start func(*testing.T, string, []string, fabric) learner, s scale, churns int, announce, withdraw []byte) (m measure) {
	const addr = "10.99.0.250"
	var peers []string
	for i := range s.peers {
		peers = append(peers, fmt.Sprintf("10.99.0.%d", 1+i))
	}
	l := start(t, addr, peers, s.fabric)
	var senders []*sender
	for _, p := range peers {
		senders = append(senders, dial(t, p, addr, nil))
	}
	routes := s.peers * s.fabric.routes()
	push := func(messages []byte, n int) time.Duration {
		t.Helper()
		return push(t, l, senders, messages, n)
	}
	before := cpu(t, l.pid())
	m.learn = push(announce, routes)
	m.cpu, m.peak = cpu(t, l.pid())-before, memory(t, l.pid(), "VmHWM")
	m.withdraw = push(withdraw, 0)
	m.again = push(announce, routes)
	began := clock()
	stop := l.read()
	push(withdraw, 0)
	m.slower = push(announce, routes)
	took := clock() - began
	lookups, found := stop()
	if found == 0 {
		t.Errorf("none of %d lookups found its host", lookups)
	}
	m.lookups = float64(lookups) / (float64(took) / 1e9)
	for range churns {
		push(withdraw, 0)
		push(announce, routes)
		m.rss = append(m.rss, memory(t, l.pid(), "VmRSS"))
	}
	m.atEnd = memory(t, l.pid(), "VmHWM")
	t.Logf("%+v", m)
	return m
}

// push has all senders send the same, and returns how long it took until n routes were in the table.
func push(t *testing.T, l learner, senders []*sender, messages []byte, n int) time.Duration {
	t.Helper()
	began := clock()
	var wg sync.WaitGroup
	for _, s := range senders {
		wg.Go(func() {
			if err := s.push(messages); err != nil {
				t.Errorf("push: %v", err)
			}
		})
	}
	at := l.wait(n)
	wg.Wait()
	return time.Duration(at - began)
}

// memory of a process in MB, by a field of proc(5)'s status.
func memory(t *testing.T, pid int, field string) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), field+":")
	kb, err := strconv.Atoi(strings.Fields(rest + " ?")[0])
	if err != nil {
		t.Fatalf("%s: %v", field, err)
	}
	return float64(kb) * 1024 / mega
}

// cpu time of a process: utime and stime of proc(5)'s stat, behind the name in parentheses.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks int
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	hz, err := strconv.Atoi(strings.TrimSpace(sandbox.Command(t, "getconf", "CLK_TCK")))
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ticks) * time.Second / time.Duration(hz)
}
