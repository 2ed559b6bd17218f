package run

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// explorable is a site whose hosts answer underlay probes, at every tunnel address.
func explorable(t testing.TB, n int) *inventory.Snapshot {
	t.Helper()
	return siteOf(t, n, func(h *inventory.Host) {
		h.Underlay = &dyetracev1.UnderlayEcho{Port: 7443, Addresses: []string{h.Bridges[1].Tunnels[0].LocalIp}}
		for range h.Endpoints {
			h.MTUs = append(h.MTUs, 1450)
		}
	})
}

// underlayOf answers for all hosts: lost says which sizes never come.
func underlayOf(lost func(bytes uint32) bool) func(string, *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
	return func(_ string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
		if m.GetRecall() {
			return &dyetracev1.UnderlayReport{Listening: true, FromOthersNs: uint64(time.Second)}
		}
		r := &dyetracev1.UnderlayReport{SrcIp: "10.1.0.1"}
		for p := range m.GetSourcePorts() {
			r.SourcePorts = append(r.SourcePorts, 40000+p)
			for _, bytes := range m.GetSizes() {
				answered := m.GetRepeats()
				if lost(bytes) {
					answered = 0
				}
				r.Sent, r.Answered, r.RttNs = append(r.Sent, m.GetRepeats()), append(r.Answered, answered), append(r.RttNs, 1000)
			}
		}
		return r
	}
}

// halved has the first n exchanges lose half of their packets.
func halved(n int) func(string, *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
	passes := underlayOf(func(uint32) bool { return false })
	return func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
		r := passes(host, m)
		if !m.GetRecall() {
			for i := range r.Answered {
				if n > 0 {
					r.Answered[i] /= 2
				}
			}
			n--
		}
		return r
	}
}

// busy has a host find no room for the first n exchanges that it is asked for, and the others lose everything.
func busy(n int) func(string, *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
	silent := underlayOf(everything)
	return func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
		if n--; n >= 0 {
			return &dyetracev1.UnderlayReport{Error: "no room", Busy: true}
		}
		return silent(host, m)
	}
}

// late has small packets come there so long after they were sent, and no answer in time.
func late(by time.Duration) func(string, *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
	silent := underlayOf(everything)
	var sent time.Time
	return func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
		r := silent(host, m)
		switch {
		case !m.GetRecall():
			sent = time.Now().Add(-time.Duration(m.GetWaitMs()) * time.Millisecond)
		case time.Since(sent) >= by:
			r.Seen = bytes.Repeat([]byte{0xff}, 64)
		}
		return r
	}
}

// deaf has the first n exchanges between two hosts bring small packets there, and have no answer in time, so that no large ones are sent.
func deaf(n int) func(string, *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
	passes := underlayOf(func(uint32) bool { return false })
	asked := map[string]int{}
	return func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
		r := passes(host, m)
		if m.GetRecall() {
			r.Seen = bytes.Repeat([]byte{0xff}, 64)
			return r
		}
		key := host + string(m.GetDstIp())
		if asked[key]++; asked[key] <= n {
			clear(r.Answered)
			for i := range r.Sent {
				if i%len(m.GetSizes()) > 0 {
					r.Sent[i] = 0
				}
			}
		}
		return r
	}
}

// barred has a host have no way to the other: nothing is sent.
func barred(_ string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
	r := underlayOf(everything)("", m)
	clear(r.Sent)
	r.Errors = []*dyetracev1.UnderlayError{{Text: "network is unreachable", Size: 128, Count: 1}}
	return r
}

func everything(uint32) bool { return true }
func large(n uint32) bool    { return n > 1400 }

// between returns the pairs from one host to another, and their paths.
func between(t testing.TB, snap *inventory.Snapshot, from, to string) (pairs []plan.Pair, paths []plan.Path) {
	t.Helper()
	all, ways := pathsOf(t, snap, allPairs)
	for i := range all {
		if all[i].Src.Host == from && all[i].Dst.Host == to {
			pairs, paths = append(pairs, all[i]), append(paths, ways[i])
		}
	}
	return pairs, paths
}

func causesOf(results map[uint32]*dyetracev1.PairResult) string {
	seen := map[string]int{}
	for _, r := range results {
		seen[fmt.Sprintf("%s | %s", verdictLabel(r.GetVerdict()), r.GetCause())]++
	}
	return fmt.Sprint(seen)
}

// TestUnderlay has all pairs between two hosts lost in the tunnel: the network between the hosts is
// asked once.
func TestUnderlay(t *testing.T) {
	const right = "hv1 sends it to hv2 (10.1.0.2, key 0) as it should"
	tests := []struct {
		name  string
		cast  func(*cast)
		asked string
		want  string
		most  time.Duration
		doubt bool // the verdict is unknown
	}{
		{name: "lost there", cast: func(c *cast) { c.underlay = underlayOf(everything) }, asked: "hv1 hv2 recalls",
			want: right + ": lost in the underlay: none of 128 packets arrives by UDP from 10.1.0.1 to 10.1.0.2 either; the last ones to come there did so 1s ago"},
		{name: "cannot be sent", cast: func(c *cast) { c.underlay = barred }, asked: "hv1",
			want: right + ": lost in the underlay: UDP from 10.1.0.1 to 10.1.0.2 cannot be sent: the sending host says: network is unreachable"},
		{name: "passes", cast: func(c *cast) { c.underlay = underlayOf(large) }, asked: "hv1 hv2 recalls",
			want: "so the packet is lost at hv2's end of the tunnel, or the network drops GRE"},
		{name: "no answer", cast: func(c *cast) {}, asked: "hv1", want: "UDP between the two told nothing: the agent of hv1 did not answer", most: exchangeTimeout, doubt: true},
		{name: "busy, and later no more", cast: func(c *cast) { c.underlay = busy(2) }, asked: "hv1 hv1 hv1 hv2 recalls",
			want: right + ": lost in the underlay: none of 128 packets arrives by UDP from 10.1.0.1 to 10.1.0.2 either"},
		{name: "busy all the time", cast: func(c *cast) { c.underlay = busy(1000) }, asked: "hv1 hv1 hv1 hv1",
			want: "UDP between the two told nothing: no room", doubt: true},
		{name: "no recall", cast: func(c *cast) { c.underlay = underlayOf(everything); c.mute["underlay hv2"] = true }, asked: "hv1 hv2 recalls",
			want: "UDP between the two told nothing: none of 128 packets by UDP from 10.1.0.1 to 10.1.0.2 was answered, and hv2 could not be asked whether any came", most: recallTimeout},
		{name: "half lost", cast: func(c *cast) { c.underlay = halved(2) }, asked: "hv1 hv2 recalls hv1 hv2 recalls",
			want: right + ": the underlay loses much: 64 of 128 packets are lost by UDP from 10.1.0.1 to 10.1.0.2 too"},
		{name: "half lost for a moment", cast: func(c *cast) { c.underlay = halved(1) }, asked: "hv1 hv2 recalls hv1", doubt: true,
			want: "the underlay lost much for a moment: 64 of 128 packets were lost by UDP from 10.1.0.1 to 10.1.0.2, and of others a moment later 0 of 128"},
		{name: "late", cast: func(c *cast) { c.underlay = late(740 * time.Millisecond) }, asked: "hv1 hv2 recalls",
			want: "so the packet is lost at hv2's end of the tunnel, or the network drops GRE"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pairs, paths := between(t, explorable(t, 16), "hv1", "hv2")
				c := newCast(paths)
				c.lost = func(s shot) bool { return s.point >= 2 } // seen on hv1 only
				c.explain = &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_TUNNELLED, Port: "gre0", TunnelRemote: "10.1.0.2"}
				tt.cast(c)
				cfg, want := testConfig, dyetracev1.Verdict_VERDICT_FAULTY
				cfg.Patience = 750 * time.Millisecond
				if tt.doubt {
					want = dyetracev1.Verdict_VERDICT_UNKNOWN
				}
				results, took, whole := play(t.Context(), cfg, c, pairs, time.Minute)
				if !whole || len(results) != 16 {
					t.Fatalf("%d results, whole %t", len(results), whole)
				}
				for _, r := range results {
					if r.GetVerdict() != want || !strings.Contains(r.GetCause(), tt.want) {
						t.Fatalf("%s %s\nwant %s %s", r.GetVerdict(), r.GetCause(), want, tt.want)
					}
				}
				var asked []string
				for _, e := range c.explored {
					asked = append(asked, e.host)
					if e.ask.GetRecall() {
						asked = append(asked, "recalls")
					}
				}
				if got := strings.Join(asked, " "); got != tt.asked {
					t.Errorf("asked %s, want %s", got, tt.asked)
				}
				if most := tt.most + 10*time.Second; took > most {
					t.Errorf("took %v, want at most %v", took, most)
				}
			})
		})
	}
}

// TestUnderlayShared has two hosts exchange packets with a third at once, by a way with room for neither: each of them has it for
// itself before it is said what becomes of its packets. Where the third had no others meanwhile nothing is repeated.
func TestUnderlayShared(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		others time.Duration // ago, when what came was asked for
		alone  func(uint32) bool
		most   []int // how many are under way at once, by exchange
		kind   dyetracev1.CauseKind
	}{
		{"others meanwhile, and alone it passes", 100 * time.Millisecond, large, []int{1, 2, 1, 1}, dyetracev1.CauseKind_CAUSE_KIND_UNSEEN},
		{"others meanwhile, and alone nothing does", 100 * time.Millisecond, everything, []int{1, 2, 1, 1}, dyetracev1.CauseKind_CAUSE_KIND_UNDERLAY},
		{"others before", 10 * time.Second, large, []int{1, 2}, dyetracev1.CauseKind_CAUSE_KIND_UNDERLAY},
	} {
		synctest.Test(t, func(t *testing.T) {
			all, ways := pathsOf(t, explorable(t, 16), allPairs)
			var pairs []plan.Pair
			var paths []plan.Path
			for i := range all {
				if all[i].Dst.Host == "hv3" && (all[i].Src.Host == "hv1" || all[i].Src.Host == "hv2") {
					pairs, paths = append(pairs, all[i]), append(paths, ways[i])
				}
			}
			c := newCast(paths)
			c.lost = func(s shot) bool { return s.point >= 2 } // seen on the first host only
			c.explain = &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_TUNNELLED, Port: "gre1", TunnelRemote: "10.1.0.3"}
			c.exchange = 400 * time.Millisecond
			var under atomic.Int32
			var most []int
			c.underlay = func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
				lost := everything
				if !m.GetRecall() {
					if len(most) > 1 {
						lost = tt.alone
					}
					most = append(most, int(under.Add(1)))
					time.AfterFunc(c.exchange-time.Millisecond, func() { under.Add(-1) })
				}
				r := underlayOf(lost)(host, m)
				r.FromOthersNs = uint64(tt.others)
				return r
			}
			cfg := testConfig
			cfg.Patience = 750 * time.Millisecond
			results, _, whole := play(t.Context(), cfg, c, pairs, time.Minute)
			if !whole || len(results) != len(pairs) {
				t.Fatalf("%s: %d results, whole %t", tt.name, len(results), whole)
			}
			for _, r := range results {
				if r.GetCauseKind() != tt.kind {
					t.Fatalf("%s: %s %s: %s; want %s", tt.name, r.GetVerdict(), r.GetCauseKind(), r.GetCause(), tt.kind)
				}
			}
			if !slices.Equal(most, tt.most) {
				t.Errorf("%s: so many exchanges at once: %v, want %v", tt.name, most, tt.most)
			}
		})
	}
}

// TestUnderlayBefore has the network between two hosts break after an exchange whose packets passed: a pair whose probes were
// lost since is judged by another exchange, and not as if packets passed while its own did not.
func TestUnderlayBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pairs, paths := between(t, explorable(t, 16), "hv1", "hv2")
		pairs, paths = pairs[:2], paths[:2] // from one instance
		c := newCast(paths)
		c.lost = func(s shot) bool { return s.point >= 2 } // seen on hv1 only
		c.explain = &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_TUNNELLED, Port: "gre0", TunnelRemote: "10.1.0.2"}
		c.underlay = func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport {
			broken := len(c.explored) > 1
			return underlayOf(func(uint32) bool { return broken })(host, m)
		}
		cfg := testConfig
		cfg.PerInstanceRate, cfg.PerInstanceBurst = 0.1, 1 // the second pair is probed after the first one's exchange
		results, _, whole := play(t.Context(), cfg, c, pairs, 5*time.Minute)
		kinds := map[string]dyetracev1.CauseKind{}
		for _, r := range results {
			kinds[r.GetDst().GetName()] = r.GetCauseKind()
		}
		first, second := pairs[0].Dst.Name, pairs[1].Dst.Name
		if !whole || kinds[first] != dyetracev1.CauseKind_CAUSE_KIND_ENTRYPOINT || kinds[second] != dyetracev1.CauseKind_CAUSE_KIND_UNDERLAY {
			t.Errorf("whole %t: causes %v; want the tunnel's end for %s, and the underlay for %s", whole, kinds, first, second)
		}
	})
}

// TestMTU has large packets tried once for each two hosts, whose pairs wait for that.
func TestMTU(t *testing.T) {
	o := options{scheme: byTCP.scheme, mtu: true}
	tests := []struct {
		name  string
		cast  func(*cast)
		asked int // exchanges
		want  string
	}{
		{"passes", func(c *cast) { c.underlay = underlayOf(func(uint32) bool { return false }) }, 6, "map[healthy | :56]"},
		{"lost", func(c *cast) { c.underlay = underlayOf(large) }, 6, "path MTU: packets of 1492 bytes"},
		{"answers that are late, once", func(c *cast) { c.underlay = deaf(1) }, 12, "map[healthy | :56]"},
		{"answers that are late", func(c *cast) { c.underlay = deaf(2) }, 12, "and none was answered in time, so that none of 1492 bytes was sent"},
		{"no answer", func(c *cast) {}, 6, "whether large ones do could not be tried: the agent of"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pairs, paths := pathsOf(t, explorable(t, 8), allPairs)
				c := newCastOf(paths, o)
				tt.cast(c)
				results, _, whole := play(t.Context(), testConfig, c, pairs, time.Minute)
				if got := causesOf(results); !whole || len(results) != 56 || !strings.Contains(got, tt.want) {
					t.Errorf("%d results, whole %t: %s, want %s", len(results), whole, got, tt.want)
				}
				n := 0
				for _, e := range c.explored {
					if !e.ask.GetRecall() {
						n++
					}
				}
				if n != tt.asked {
					t.Errorf("%d exchanges, want %d", n, tt.asked)
				}
			})
		})
	}
}

// TestContinuousMTU has large packets be lost for a while in a run that goes on and is to try them: that is told
// within half a minute, and that it is over soon, though small ones pass all the time. Meanwhile nobody is examined more
// often than others that are not healthy.
func TestContinuousMTU(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		lost    func(bytes uint32) bool
		verdict dyetracev1.Verdict
		cause   string
	}{
		{"large packets lost", large, dyetracev1.Verdict_VERDICT_FAULTY, "path MTU: "},
		{"all lost but those of pairs", everything, dyetracev1.Verdict_VERDICT_UNKNOWN, "whether large ones do is not known"},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, explorable(t, 2))
			w.underlay = underlayOf(func(uint32) bool { return false })
			const broke, healed = 50 * time.Second, 150 * time.Second
			all, _, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{Mtu: true}, healed+30*time.Second, func() {
				time.Sleep(broke)
				w.change(func(w *town) { w.underlay = underlayOf(tt.lost) })
				time.Sleep(healed - broke)
				w.change(func(w *town) { w.underlay = underlayOf(func(uint32) bool { return false }) })
			})
			if len(all) != 6 {
				t.Fatalf("%s: %d verdicts, want two, and two changes of each: %v", tt.name, len(all), all)
			}
			for _, a := range all[2:4] {
				if a.r.Verdict != tt.verdict || !strings.Contains(a.r.Cause, tt.cause) || a.at < broke || a.at > broke+largeEvery+2*time.Second {
					t.Errorf("%s: %v after they are: %v: %s", tt.name, a.at-broke, a.r.Verdict, a.r.Cause)
				}
			}
			for _, a := range all[4:] {
				if a.r.Verdict != dyetracev1.Verdict_VERDICT_HEALTHY || a.at < healed || a.at > healed+recheckAfter+5*time.Second {
					t.Errorf("%s: %v after it is over: %v: %s", tt.name, a.at-healed, a.r.Verdict, a.r.Cause)
				}
			}
			if most := uint64(6 + (healed+30*time.Second)/recheckAfter); c.begun > most {
				t.Errorf("%s: %d examinations, want %d at the most", tt.name, c.begun, most)
			}
		})
	}
}

// TestContinuousUnknownMTU has a pair break of which all that is not known is what becomes of large packets: that is named as soon as of a healthy
// one, and not when it would be examined anyway.
func TestContinuousUnknownMTU(t *testing.T) {
	t.Parallel()
	for _, cut := range []bool{false, true} { // the underlay; else it is a flow
		for _, broke := range []time.Duration{26 * time.Second, 28 * time.Second, 30 * time.Second} { // not examined anyway before 34
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, streamable(t, 2)) // which tells no MTU
				w.network, w.auto, w.passes = newSimNetwork(), true, cut
				all, _, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{Mtu: true}, 40*time.Second, func() {
					time.Sleep(broke)
					if !cut {
						w.change(func(w *town) { w.lose = func(string, stain.Scheme, int) bool { return true } })
						return
					}
					w.change(func(w *town) { w.lost, w.underlay = uplinkDown("hv2") })
					w.network.hush("hv2", true)
				})
				if len(all) != 4 {
					t.Fatalf("told %v; want two pairs, and that they are faulty", all)
				}
				for _, a := range all[:2] {
					if a.r.GetVerdict() != dyetracev1.Verdict_VERDICT_UNKNOWN || !strings.Contains(a.r.GetCause(), "the MTU of the instances' ports is not known") {
						t.Errorf("%v: %s; not the case that this is about", a.r.GetVerdict(), a.r.GetCause())
					}
				}
				want := dyetracev1.CauseKind_CAUSE_KIND_FLOW
				if cut {
					want = dyetracev1.CauseKind_CAUSE_KIND_UNDERLAY
				}
				// The second pair has the first one's wire.
				if first, last := all[2].at-broke, all[3].at-broke; first > time.Second || last > 2*time.Second {
					t.Errorf("underlay cut %t: named after %v and %v, want a second, and two for the opposite pair", cut, first, last)
				}
				for _, a := range all[2:] {
					if a.r.GetVerdict() != faulty || a.r.GetCauseKind() != want {
						t.Errorf("%v: %v %v: %s", a.at, a.r.GetVerdict(), a.r.GetCauseKind(), a.r.GetCause())
					}
				}
			})
		}
	}
}

// TestMTUByTunnel has two hosts with two tunnels between them, of which the network passes the largest packets of one only:
// the pairs of that one are healthy, and those of the other are not, whatever is known of the former.
func TestMTUByTunnel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			c := newSimCloud(random, 12)
			c.loss = 0
			a, b := c.guests[simHosts], c.guests[simHosts+1] // on the larger tunnel's network
			a.host, b.host = 0, 1
			c.faults = []*simFault{{most: 1495, large: func(from, to int) bool { return from == a.host && to == b.host }}}
			o := options{test: testOf(nil), scheme: stain.ICMP, mtu: true}
			pairs, paths := pathsBy(t, c.snapshot(t), allPairs, o.plan)
			got := newSimAgents(c, random, nil).play(o, pairs, paths)
			for i, p := range pairs {
				from, to := c.named(p.Src.Name), c.named(p.Dst.Name)
				large := simEncap[to.net] == "vxlan" && (from.host == a.host && to.host == b.host || from.host == b.host && to.host == a.host)
				want := dyetracev1.Verdict_VERDICT_HEALTHY
				if large {
					want = faulty
				}
				if r := got[uint32(i)]; r.GetVerdict() != want || (r.GetCauseKind() == kindMTU) != large {
					t.Errorf("seed %d: %s, on %s and %s, by %s: %s %s: %s; want %s", seed, p, simHost(from.host), simHost(to.host), simEncap[to.net],
						r.GetVerdict(), r.GetCauseKind(), r.GetCause(), want)
				}
			}
		})
	}
}
