package lab

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// checkTruth pings all pairs, and sends them SYNs as probes are, over each IP version, and
// compares who gets no answer with the truth that the lab declares.
func checkTruth(t *testing.T, l *Lab) {
	t.Helper()
	var checks sync.WaitGroup // they wait more than they work
	defer checks.Wait()
	for _, traffic := range allTraffic() {
		checks.Go(func() {
			wrong, err := l.Try(t.Context(), traffic)
			if err != nil {
				t.Error(err)
			}
			for _, w := range wrong {
				t.Errorf("%v: %s", traffic, w)
			}
		})
	}
}

// snapshot describes what a break could change and a heal must restore: all flows but what
// was learned, all of the switches' configuration, links, addresses, routes, firewalls.
func snapshot(t *testing.T, l *Lab) string {
	t.Helper()
	nodes := l.Topology().Nodes()
	for _, node := range nodes {
		// The kernel notes up to a second late that a link which carries packets has a carrier.
		waitFor(t, "the links of "+node, func() bool {
			out, err := l.Exec(t.Context(), node, "ip", "-br", "link")
			return err == nil && !strings.Contains(string(out), "NO-CARRIER")
		})
	}
	parts := make(map[string]string)
	var mu sync.Mutex
	err := all(t.Context(), nodes, func(ctx context.Context, node string) error {
		out, err := l.Exec(ctx, node, "sh", "-e", "-c", snapshotScript(l, node))
		mu.Lock()
		defer mu.Unlock()
		parts[node] = string(out)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, node := range nodes {
		for section := range strings.SplitSeq(parts[node], "== ") {
			title, body, _ := strings.Cut(section, "\n")
			fmt.Fprintf(&b, "== %s: %s\n%s\n", node, title, normal(body))
		}
	}
	return b.String()
}

// snapshotScript returns commands that show a node's state, each under a title.
func snapshotScript(l *Lab, node string) string {
	commands := []string{"ip -br link", "ip -br addr", "ip route", "ip -6 route", "nft list ruleset", "ss -Hlnt", "tc qdisc"}
	if _, ok := l.Overlay().Host(node); ok {
		for _, i := range l.Overlay().On(node) {
			for _, c := range commands[:6] {
				commands = append(commands, "ip netns exec "+i.Name+" "+c)
			}
		}
		commands = append(commands,
			"ovs-vsctl show", "ovs-vsctl --columns=name,type,options,external_ids,ofport_request list Interface",
			"ovs-vsctl --columns=name,tag list Port")
		if l.Overlay().OVN == nil { // else flows have names of rows, which are others once made anew
			commands = append(commands, "ovs-vsctl --columns=name,ofport list Interface",
				"ovs-ofctl --no-stats dump-flows br-int", "ovs-ofctl --no-stats dump-flows br-tun")
		}
	}
	if o := l.Overlay().OVN; o != nil && o.Central == node {
		for _, table := range []string{"Logical_Switch_Port name,addresses,port_security,options,type,enabled",
			"Logical_Router_Port name,mac,networks", "ACL name,direction,match,action,priority", "Logical_Router_Static_Route ip_prefix,nexthop"} {
			name, columns, _ := strings.Cut(table, " ")
			commands = append(commands, "ovn-nbctl --columns="+columns+" list "+name)
		}
		commands = append(commands, "ovn-sbctl --columns=logical_port,up list Port_Binding", "ovn-sbctl --columns=ip,type list Encap")
	}
	var script strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&script, "echo '== %s'\n%s\n", c, c)
	}
	return script.String()
}

var (
	linkIndex = regexp.MustCompile(`@if\d+`)
	// OVN says when it saw an interface's flows in place.
	installed = regexp.MustCompile(`ovn-installed-ts="\d+"`)
	// A guest that moved away and came back has a new tap, whose own MAC means nothing.
	tapMAC = regexp.MustCompile(`^(tap[0-9a-f]{8}-\S+ \S+) [0-9a-f:]{17} `)
)

// normal sorts an answer's lines and leaves out what means nothing.
func normal(out string) string {
	var lines []string
	for line := range strings.Lines(out) {
		if !strings.Contains(line, fmt.Sprintf("hard_timeout=%d", overlay.LearnedTimeout)) {
			line = strings.Join(strings.Fields(installed.ReplaceAllString(linkIndex.ReplaceAllString(line, ""), "")), " ")
			lines = append(lines, tapMAC.ReplaceAllString(line, "$1 MAC "))
		}
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// TestBreaks breaks and heals in every way: real pings and the ports' own counters must tell
// what the break declares, and heal must leave no trace.
func TestBreaks(t *testing.T) {
	t.Parallel()
	testBreaks(t, up(t, "breaks"))
}

// kindsFor returns the breaks whose default target a topology has.
func kindsFor(topology string) []BreakKind {
	return slices.DeleteFunc(BreakKinds(), func(k BreakKind) bool { return k.Topology != topology })
}

func testBreaks(t *testing.T, l *Lab) {
	before := snapshot(t, l)
	for _, kind := range kindsFor(l.Topology().Name) {
		t.Run(kind.Name, func(t *testing.T) {
			broken, err := l.Break(t.Context(), kind.Name, "")
			if err != nil {
				t.Fatal(err)
			}
			if broken.Target != kind.Default {
				t.Errorf("broken: %+v, want target %s", broken, kind.Default)
			}
			checkTruth(t, l)
			checkChange(t, l, kind)
			fates, others := 0, 0
			for _, traffic := range allTraffic() {
				truth, err := l.Truth(traffic)
				if err != nil {
					t.Fatal(err)
				}
				fates += len(truth.Fates)
				others += len(truth.Maybe) + len(truth.Large)
				for _, f := range oneOfEach(truth.Fates) {
					checkFate(t, l, traffic, f)
				}
			}
			// Of those, small packets of no pair certainly die.
			partly := slices.Contains([]string{CauseMTU, CauseMember}, kind.Cause)
			harmless := slices.Contains([]string{CauseNone, CauseLoss, CauseTwice}, kind.Cause)
			if (fates == 0) != (harmless || partly) || (others > 0) != partly {
				t.Errorf("it declares %d fates, %d of some packets or nobody knows of whom, and cause %s", fates, others, kind.Cause)
			}
			if healed, err := l.Heal(t.Context(), kind.Name); err != nil || !slices.Equal(healed, []Broken{broken}) {
				t.Fatalf("Heal = %v, %v, want %v", healed, err, broken)
			}
			checkTruth(t, l)
			if diff := cmp.Diff(before, snapshot(t, l)); diff != "" {
				t.Errorf("heal did not restore everything (-before +after):\n%s", diff)
			}
		})
	}
}

// checkChange wants a break to have changed what it says: flows that are new are on the bridge, those that are gone are
// not, and a port that leads to a guest or to another bridge is the host's.
func checkChange(t *testing.T, l *Lab, kind BreakKind) {
	t.Helper()
	truth, err := l.Truth(TCP4)
	if err != nil || len(truth.Changes) != 1 {
		t.Fatalf("Truth = %+v, %v, want one change", truth.Changes, err)
	}
	c := truth.Changes[0]
	if kind.edit != nil && len(c.Flows)+len(c.Gone) == 0 {
		t.Errorf("it changes flows, and says of none")
	}
	for _, list := range []struct {
		flows []ChangedFlow
		there bool
	}{{c.Flows, true}, {c.Gone, false}} {
		for _, f := range list.flows {
			match := strings.Trim(fmt.Sprintf("table=%d,%s", f.Table, f.Match), ",")
			out, err := l.Exec(t.Context(), c.Host, "ovs-ofctl", "--no-stats", "--strict", "dump-flows", c.Bridge, match)
			if err != nil {
				t.Fatal(err)
			}
			if there := regexp.MustCompile(fmt.Sprintf(`\bpriority=%d\b`, f.Priority)).Match(out); there != list.there {
				t.Errorf("%+v of %s on %s: it is there: %t\n%s", f, c.Bridge, c.Host, there, out)
			}
		}
	}
	if c.Port == "" {
		return
	}
	out, err := l.Exec(t.Context(), c.Host, "ovs-vsctl", "--columns=name", "--bare", "list", "Port")
	if err != nil {
		t.Fatal(err)
	}
	if gone := kind.Cause == CausePort; slices.Contains(strings.Fields(string(out)), c.Port) == gone {
		t.Errorf("%s has port %s: %t", c.Host, c.Port, !gone)
	}
}

// oneOfEach returns one of the fates that differ by their hosts only.
func oneOfEach(fates []Fate) []Fate {
	seen := make(map[[2]Point]bool)
	return slices.DeleteFunc(slices.Clone(fates), func(f Fate) bool {
		var key [2]Point
		if f.LastSeen != nil {
			key[0] = *f.LastSeen
		}
		key[1] = f.FirstMissing
		key[0].Host, key[1].Host = "", ""
		defer func() { seen[key] = true }()
		return seen[key]
	})
}

// checkFate sends packets of one pair of the fate, and looks at the counters of the ports by
// which packets come to the points on their way: the last one seen must have counted them,
// the first one missing must not.
func checkFate(t *testing.T, l *Lab, traffic Traffic, f Fate) {
	t.Helper()
	// Many more than what guests say unasked, such as ARP for all neighbours that they know.
	const packets = 40
	src, _ := l.Overlay().Instance(f.Src[0])
	dst, _ := l.Overlay().Instance(f.Dst[0])
	if f.LastSeen == nil {
		return // it cannot be sent, or a switch sends it
	}
	hosts := slices.Compact([]string{f.LastSeen.Host, f.FirstMissing.Host})
	before := counters(t, l, hosts)
	burst(t, l, traffic, overlay.Pair{Src: src, Dst: dst}, packets)
	var after map[string]int
	rose := func(p Point) int {
		n := 0
		for _, port := range portsInto(l, p, src, dst) {
			n += after[p.Host+" "+port] - before[p.Host+" "+port]
		}
		return n
	}
	for end := time.Now().Add(healPatience); ; { // a switch that stands still counts later
		after = counters(t, l, hosts)
		if rose(*f.LastSeen) >= packets/2 || time.Now().After(end) {
			break
		}
	}
	if n := rose(*f.LastSeen); n < packets/2 {
		t.Errorf("%s to %s, %v: %d of %d came to %+v, the last point seen", src.Name, dst.Name, traffic, n, packets, *f.LastSeen)
	}
	if n := rose(f.FirstMissing); n >= packets/2 {
		t.Errorf("%s to %s, %v: %d came to %+v, the first point missing", src.Name, dst.Name, traffic, n, f.FirstMissing)
	}
}

// burst sends packets of one pair, and gives those on the way time to end it.
func burst(t *testing.T, l *Lab, traffic Traffic, p overlay.Pair, packets int) {
	t.Helper()
	if traffic.Scheme == ICMP {
		// That nobody answers is as it should be.
		_, _ = l.Exec(t.Context(), p.Src.Name, "ping", "-q", "-c", fmt.Sprint(packets), "-i", "0.002", "-W", "0.1",
			p.Dst.IP.Of(traffic.IP).String())
		return
	}
	conn, err := rawTCP(l, traffic.IP, p.Src)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range packets {
		// What does not leave is not counted.
		_, _ = conn.WriteTo(synSegment(traffic.IP, p, rand.Uint32()), &net.IPAddr{IP: p.Dst.IP.Of(traffic.IP).AsSlice()})
		time.Sleep(2 * time.Millisecond) // the pace of ping above
	}
	time.Sleep(100 * time.Millisecond) // as ping waits
}

// portsInto returns the ports by which a packet between two instances comes to a point.
func portsInto(l *Lab, p Point, src, dst overlay.Instance) []string {
	from, to := src, dst
	if p.Way == Answer {
		from, to = dst, src
	}
	switch {
	case p.Kind == FromInstance:
		return []string{from.Tap()}
	case p.Kind == ToTunnel:
		return []string{overlay.PatchInt}
	case p.Bridge != l.Overlay().TunnelBridge():
		return []string{overlay.PatchTun}
	case l.Overlay().OVN != nil:
		return []string{"ovn-" + from.Host + "-0"} // of its chassis' name
	}
	sender, _ := l.Overlay().End(from.Host)
	n, _ := l.Overlay().Network(to.Network)
	return []string{overlay.TunnelName(n.Encap, sender)}
}

var counter = regexp.MustCompile(`port +"?([^ "]+)"?: rx pkts=(\d+)`)

// counters returns how many packets came in by every port of some hosts, by "HOST PORT".
func counters(t *testing.T, l *Lab, hosts []string) map[string]int {
	t.Helper()
	counted := make(map[string]int)
	var mu sync.Mutex
	err := all(t.Context(), hosts, func(ctx context.Context, host string) error {
		// Counters of patch and tunnel ports are brought up to date when cached flows go.
		out, err := l.Exec(ctx, host, "sh", "-e", "-c",
			"ovs-appctl revalidator/purge; ovs-ofctl --names dump-ports br-int; ! ovs-vsctl br-exists br-tun || ovs-ofctl --names dump-ports br-tun")
		if err != nil {
			return err
		}
		found := counter.FindAllStringSubmatch(string(out), -1)
		if len(found) == 0 {
			return fmt.Errorf("no counters in %s", out)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, m := range found {
			n, err := strconv.Atoi(m[2])
			if err != nil {
				return err
			}
			counted[host+" "+m[1]] = n
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return counted
}

// TestLossIsByChance counts what comes through, of many that may be lost.
func TestLossIsByChance(t *testing.T) {
	t.Parallel()
	l := up(t, "loss")
	const sent = 2000
	for _, percent := range []float64{1, 5} {
		if _, err := l.Break(t.Context(), "underlay-loss", fmt.Sprintf("hv2:hv4:%g", percent)); err != nil {
			t.Fatal(err)
		}
		mean := sent * percent / 100
		slack := 5 * math.Sqrt(mean*(1-percent/100)) // five standard deviations: one run in two million fails by chance
		lost := pingLoses(t, l, sent)
		for try := 1; lost-mean > slack && try < 3; try++ { // switches that stand still lose some, too
			lost = pingLoses(t, l, sent)
		}
		if math.Abs(lost-mean) > slack {
			t.Errorf("%g %%: %v of %d lost; want %v, give or take %.0f", percent, lost, sent, mean, slack)
		}
		if _, err := l.Heal(t.Context(), "underlay-loss"); err != nil {
			t.Fatal(err)
		}
	}
}

// pingLoses counts the echoes that are not answered, of so many from green-2 to green-4.
func pingLoses(t *testing.T, l *Lab, sent int) float64 {
	t.Helper()
	// It exits with 1 if an answer is missing.
	out, _ := l.Exec(t.Context(), "green-2", "ping", "-q", "-c", fmt.Sprint(sent), "-i", "0.002", "-W", "0.2", "10.0.2.14")
	m := regexp.MustCompile(`(\d+) received`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("ping says %s", out)
	}
	received, _ := strconv.Atoi(string(m[1]))
	return float64(sent - received)
}

// TestBreaksTogether has many breaks in force at once and heals them in a random order.
func TestBreaksTogether(t *testing.T) {
	t.Parallel()
	l := up(t, "together")
	before := snapshot(t, l)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	kinds := kindsFor(DefaultName)
	for range 2 {
		random.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		for _, k := range kinds {
			if _, err := l.Break(t.Context(), k.Name, ""); err != nil {
				t.Fatal(err)
			}
		}
		checkTruth(t, l)
		random.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		t.Logf("all are in force, and are healed: %v", names(kinds))
		for i, k := range kinds {
			if _, err := l.Heal(t.Context(), k.Name); err != nil {
				t.Fatal(err)
			}
			if i == len(kinds)/2 {
				checkTruth(t, l)
			}
		}
		checkTruth(t, l)
		if diff := cmp.Diff(before, snapshot(t, l)); diff != "" {
			t.Fatalf("not everything is restored (-before +after):\n%s", diff)
		}
	}
}

func names(kinds []BreakKind) []string {
	var all []string
	for _, k := range kinds {
		all = append(all, k.Name)
	}
	return all
}

// TestBreakTwice does everything twice, and heals what was never broken.
func TestBreakTwice(t *testing.T) {
	t.Parallel()
	l := up(t, "twice")
	before := snapshot(t, l)
	if healed, err := l.Heal(t.Context(), "all"); err != nil || len(healed) > 0 {
		t.Errorf("Heal of a whole lab = %v, %v", healed, err)
	}
	breakTwice(t, l)
	if diff := cmp.Diff(before, snapshot(t, l)); diff != "" {
		t.Errorf("not everything is restored (-before +after):\n%s", diff)
	}
	// A break under way keeps others out; one that was cancelled leaves nothing.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Break(ctx, "tap-off", ""); err == nil {
		t.Error("a cancelled break succeeded")
	}
	if broken, err := l.Broken(); err != nil || len(broken) > 0 {
		t.Errorf("after a cancelled break: %v, %v", broken, err)
	}
	if diff := cmp.Diff(before, snapshot(t, l)); diff != "" {
		t.Errorf("a cancelled break left (-before +after):\n%s", diff)
	}
}

// breakTwice breaks and heals in every way, each twice.
func breakTwice(t *testing.T, l *Lab) {
	t.Helper()
	for _, k := range kindsFor(l.Topology().Name) {
		b, err := l.breakage(Broken{Kind: k.Name})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := l.Break(t.Context(), k.Name, ""); err != nil {
				t.Errorf("break %s: %v", k.Name, err)
			}
		}
		for range 2 { // by way of what an interrupted command would have left
			if err := l.turn(t.Context(), b, nil, true); err != nil {
				t.Errorf("break %s again: %v", k.Name, err)
			}
		}
		for range 2 {
			if err := l.turn(t.Context(), b, nil, false); err != nil {
				t.Errorf("heal %s: %v", k.Name, err)
			}
		}
		if _, err := l.Heal(t.Context(), k.Name); err != nil {
			t.Errorf("heal %s: %v", k.Name, err)
		}
		if healed, err := l.Heal(t.Context(), k.Name); err != nil || len(healed) > 0 {
			t.Errorf("heal %s again = %v, %v", k.Name, healed, err)
		}
	}
}
