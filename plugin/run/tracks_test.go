package run

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/pace"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// probed is the scope of one pair.
func probed(src, dst string) plan.Scope {
	return plan.Scope{Kind: plan.OnePair, Src: src, Dst: dst}
}

// shownSite is a site whose hosts sample what they deliver, but not at those ports.
func shownSite(t testing.TB, n int, unsampled ...string) *inventory.Snapshot {
	t.Helper()
	return siteOf(t, n, func(h *inventory.Host) {
		b := h.Bridges[0]
		b.Kinds = append(b.Kinds, dyetracev1.PointKind_POINT_KIND_TO_INSTANCE)
		for _, e := range h.Endpoints {
			if slices.Contains(unsampled, e.Port) {
				e.Unsampled = "vhost-user"
			}
		}
	})
}

var (
	auto        = options{}
	byICMP      = options{scheme: stain.ICMP}
	untouched   = options{plan: plan.Options{NoTouch: true}}
	tcpNoTouch  = options{scheme: stain.TCP, plan: plan.Options{NoTouch: true}}
	icmpNoTouch = options{scheme: stain.ICMP, plan: plan.Options{NoTouch: true}}
)

// said draws a result: verdict, scheme and why it, probes.
func said(r *dyetracev1.PairResult) string {
	verdict := strings.ToLower(strings.TrimPrefix(r.GetVerdict().String(), "VERDICT_"))
	scheme := "none"
	if r.GetScheme() != 0 {
		scheme = stain.Scheme(r.GetScheme()).String()
	}
	return fmt.Sprintf("%s by %s (%s), %d probes", verdict, scheme, r.GetSchemeReason(), r.GetProbes())
}

// points of the way between instances of two hosts in a site, there and back
const (
	leftHost  = 1 // seen leaving the source's host
	atGuest   = 3 // the last before the guest, if what is delivered is not sampled
	answered  = 4
	lastOfAll = 7
)

func delivered(port string) *dyetracev1.Explanation {
	return &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_DELIVERED, Port: port}
}

// TestScheme: which schemes are tried on a pair, in which order, when, and what comes of it.
func TestScheme(t *testing.T) {
	t.Parallel()
	tcpAfter := func(point int) func(*cast) {
		return func(c *cast) { c.lost = func(s shot) bool { return s.scheme == stain.TCP && s.point > point } }
	}
	after := func(point int) func(*cast) {
		return func(c *cast) { c.lost = func(s shot) bool { return s.point > point } }
	}
	four := []string{"0s 0 tcp", "250ms hv2 answers tap1", "250ms 0 tcp", "500ms hv2 answers tap1", "500ms 0 tcp", "750ms hv2 answers tap1", "750ms 0 tcp"}
	lostFour := []string{"0s 0 tcp", "250ms 0 tcp", "500ms 0 tcp", "750ms 0 tcp"}
	tests := []struct {
		name    string
		options options
		cast    []func(*cast)
		log     []string
		took    time.Duration
		said    string
		cause   string // part of it
	}{
		{
			name: "auto, tcp is answered", options: auto,
			log: []string{"0s 0 tcp"}, said: "healthy by tcp (tcp is answered), 1 probes",
		}, {
			name: "auto, the guest drops tcp", options: auto, cast: []func(*cast){tcpAfter(atGuest), func(c *cast) { c.explain = delivered("tap1") }},
			log: append(slices.Clone(four), "1s 0 icmp"), took: 1250 * time.Millisecond,
			said: "healthy by icmp (tcp is delivered but not answered, icmp echo is), 5 probes",
		}, {
			name: "auto, the guest drops all", options: auto, cast: []func(*cast){after(atGuest), func(c *cast) { c.explain = delivered("tap1") }},
			log: append(slices.Clone(four), "1s 0 icmp", "1.25s hv2 expects on br-int", "1.25s 0 icmp"), took: 1500 * time.Millisecond,
			said: "silent by tcp (tcp is delivered, and icmp echo does no better), 6 probes",
		}, {
			name: "auto, tcp cannot be sent, and all is lost", options: auto, cast: []func(*cast){after(0), func(c *cast) { c.fragile = true }},
			log:  []string{"0s 0 tcp", "250ms 0 tcp", "500ms 0 tcp", "750ms 0 icmp", "1s 0 icmp", "1.25s 0 icmp"}, // three, as flows say why
			took: 1500 * time.Millisecond, said: "faulty by icmp (tcp could not be judged: hv1 could not inject: the switch would not survive it), 6 probes",
		}, {
			name: "auto, denied by a security rule", options: auto, cast: []func(*cast){tcpAfter(atGuest), func(c *cast) {
				c.explain = &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_DROPPED, Flow: &dyetracev1.FlowRef{Bridge: "br-int", Table: 82}}
			}},
			log: []string{"0s 0 tcp", "250ms hv2 answers tap1", "250ms 0 tcp", "500ms hv2 answers tap1", "500ms 0 tcp", "750ms 0 icmp"}, took: time.Second,
			said: "policy by tcp (tcp shows the rule), 4 probes", cause: "icmp echo passes",
		}, {
			name: "auto, tcp is lost on the way", options: auto, cast: []func(*cast){tcpAfter(leftHost)},
			log: append(slices.Clone(lostFour), "1s 0 icmp"), took: 1250 * time.Millisecond,
			said: "faulty by tcp (tcp shows the fault), 5 probes", cause: "icmp echo passes",
		}, {
			name: "auto, all is lost on the way", options: auto, cast: []func(*cast){after(leftHost)},
			log: append(slices.Clone(lostFour), "1s 0 icmp", "1.25s 0 icmp"), took: 1500 * time.Millisecond,
			said: "faulty by tcp (tcp shows the fault), 6 probes", cause: "icmp echo is lost there too",
		}, {
			name: "auto, one probe is lost on the way", options: auto,
			cast: []func(*cast){func(c *cast) { c.lost = func(s shot) bool { return s.attempt == 0 && s.point > leftHost } }},
			log:  append(slices.Clone(lostFour[:2]), "…"), took: 1560 * time.Millisecond,
			said: "healthy by tcp (tcp is answered), 24 probes", cause: "loses 0 % (0-15 %, 95 %) of 23 probes, besides the first that was lost between hv1/br-tun to-tunnel and hv2/br-tun from-tunnel, less than 20 %",
		}, {
			name: "auto, the port is gone", options: auto, cast: []func(*cast){func(c *cast) { c.absent["tap0"] = true }},
			log: lostFour[:1], took: 250 * time.Millisecond,
			said: "faulty by none (tcp shows the fault), 1 probes", cause: "tap0 is not on br-int of hv1",
		}, {
			name: "tcp, the guest drops it", options: byTCP, cast: []func(*cast){tcpAfter(atGuest), func(c *cast) { c.explain = delivered("tap1") }},
			log: four, took: time.Second, said: "silent by tcp (), 4 probes",
		}, {
			name: "auto, whether tcp is answered nobody sees, and icmp is lost", options: auto, cast: []func(*cast){func(c *cast) {
				c.refuses["hv2"] = true
				c.lost = func(s shot) bool {
					return s.point > atGuest || s.scheme == stain.ICMP && s.point > leftHost
				}
				c.explain = &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_TUNNELLED, Port: "gre0", TunnelRemote: "10.1.0.2"}
			}},
			log:  append(slices.Clone(four), "1s 0 icmp", "1.25s 0 icmp", "1.5s 0 icmp", "1.75s 0 icmp"), // as many as prove it by themselves
			took: 2 * time.Second, said: "faulty by icmp (tcp could not be judged: seen up to hv2/br-int from-tunnel), 8 probes",
		}, {
			name: "icmp is answered", options: byICMP, log: []string{"0s 0 icmp"}, said: "healthy by icmp (), 1 probes",
		}, {
			name: "icmp, the guest drops it", options: byICMP, cast: []func(*cast){after(atGuest), func(c *cast) { c.explain = delivered("tap1") }},
			log:  []string{"0s 0 icmp", "250ms hv2 expects on br-int", "250ms 0 icmp", "500ms hv2 expects on br-int", "500ms 0 icmp", "750ms hv2 expects on br-int", "750ms 0 icmp"},
			took: time.Second, said: "silent by icmp (), 4 probes",
		}, {
			name: "icmp, the port is gone", options: byICMP, cast: []func(*cast){func(c *cast) { c.absent["tap0"] = true }},
			log: []string{"0s 0 icmp"}, took: 250 * time.Millisecond, said: "faulty by none (), 1 probes",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				pairs, paths := pathsBy(t, site(t, 2), probed("i0", "i1"), tt.options.plan)
				c := newCastOf(paths, tt.options)
				for _, f := range tt.cast {
					f(c)
				}
				got, took, whole := play(t.Context(), testConfig, c, pairs, 30*time.Second)
				if !logged(c.log, tt.log) {
					t.Errorf("asked for\n%q, want\n%q", c.log, tt.log)
				}
				r := got[100]
				if s := said(r); s != tt.said || !strings.Contains(r.GetCause(), tt.cause) {
					t.Errorf("%s: %s; want %s: %s", s, r.GetCause(), tt.said, tt.cause)
				}
				if took != tt.took || !whole {
					t.Errorf("took %v, want %v; whole %t", took, tt.took, whole)
				}
			})
		})
	}
}

// TestAnswers has guests whose answers do not bear the stain's ToS: an attempt for which their ports
// were armed shows them.
// logged compares what agents were asked for; "…" at the end of want is any number of probes more.
func logged(got, want []string) bool {
	if n := len(want) - 1; n >= 0 && want[n] == "…" {
		if len(got) < n || slices.ContainsFunc(got[n:], func(s string) bool { return !strings.HasSuffix(s, " tcp") }) {
			return false
		}
		got, want = got[:n], want[:n]
	}
	return slices.Equal(got, want)
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	bare := func(c *cast) { c.lost = func(s shot) bool { return s.point > atGuest && !s.armed } }
	silent := func(c *cast) {
		c.lost = func(s shot) bool { return s.point > atGuest }
		c.explain = delivered("tap1")
	}
	late := func(host string, id uint64, at time.Duration) func(*cast) {
		return func(c *cast) {
			time.AfterFunc(at, func() { c.put(c.host(host), &dyetracev1.Armed{Id: id}) })
		}
	}
	goes := func(host string, at time.Duration) func(*cast) {
		return func(c *cast) {
			time.AfterFunc(at, func() { c.put(c.host(host), fleet.Gone{Reason: "no heartbeat for 3s"}) })
		}
	}
	mute := func(c *cast) { c.mute["armed hv2"] = true }
	to1 := []string{"i0 i1"}
	tests := []struct {
		name    string
		pairs   []string
		change  func(*inventory.Host)
		cast    []func(*cast)
		timeout time.Duration // 30 s if zero
		log     []string
		took    time.Duration
		said    []string
		cause   string // part of the first pair's
	}{
		{
			name: "the armed attempt shows the answer", pairs: to1, cast: []func(*cast){bare},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1", "250ms 0 tcp"},
			took: 250 * time.Millisecond, said: []string{"healthy by tcp (), 2 probes"},
		}, {
			name: "the answer was not recognised all the way", pairs: to1,
			cast: []func(*cast){func(c *cast) {
				c.lost = func(s shot) bool { return s.point > atGuest && s.point < lastOfAll && !s.armed }
			}},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1", "250ms 0 tcp"},
			took: 500 * time.Millisecond, said: []string{"healthy by tcp (), 2 probes"},
		}, {
			name: "the answer was not recognised all the way, nor is it when armed", pairs: to1,
			cast: []func(*cast){func(c *cast) {
				c.lost = func(s shot) bool { return s.point > atGuest && s.point < lastOfAll }
			}},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1", "250ms 0 tcp"},
			took: 500 * time.Millisecond, said: []string{"healthy by tcp (), 2 probes"}, cause: "without a sample",
		}, {
			name: "the answer was recognised, and the second attempt is lost", pairs: to1,
			cast: []func(*cast){func(c *cast) {
				c.lost = func(s shot) bool {
					return s.attempt == 0 && s.point > atGuest && s.point < lastOfAll || s.attempt == 1 && s.point > leftHost
				}
			}},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1", "250ms 0 tcp", "500ms hv2 answers tap1", "500ms 0 tcp", "501ms hv2 answers tap1", "501ms 0 tcp", "…"},
			took: 1709 * time.Millisecond, said: []string{"healthy by tcp (), 24 probes"}, cause: "loses 0 % (0-15 %, 95 %) of 23 probes, besides the first that was lost between",
		}, {
			name: "an armed attempt is lost on the way: the next one is armed, too", pairs: to1,
			cast: []func(*cast){func(c *cast) {
				c.lost = func(s shot) bool {
					return s.attempt == 0 && s.point > atGuest || s.attempt == 1 && s.point > leftHost
				}
			}},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1", "250ms 0 tcp", "500ms hv2 answers tap1", "500ms 0 tcp", "501ms hv2 answers tap1", "501ms 0 tcp", "…"},
			took: 1810 * time.Millisecond, said: []string{"healthy by tcp (), 25 probes"},
		}, {
			name: "once per host and round", pairs: []string{"i0 i1", "i2 i1", "i0 i5", "i2 i3"}, cast: []func(*cast){bare},
			log: []string{
				"0s 0 tcp", "0s 2 tcp", "0s 1 tcp", "0s 3 tcp",
				"250ms hv2 answers tap1, answers tap5", "250ms hv4 answers tap3",
				"250ms 0 tcp", "250ms 2 tcp", "250ms 1 tcp", "250ms 3 tcp",
			},
			took: 250 * time.Millisecond,
			said: []string{"healthy by tcp (), 2 probes", "healthy by tcp (), 2 probes", "healthy by tcp (), 2 probes", "healthy by tcp (), 2 probes"},
		}, {
			name: "not armed: what is not seen proves nothing", pairs: to1, cast: []func(*cast){silent, func(c *cast) { c.refuses["hv2"] = true }},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1", "250ms 0 tcp", "500ms hv2 answers tap1", "500ms 0 tcp", "750ms hv2 answers tap1", "750ms 0 tcp"},
			took: time.Second, said: []string{"unknown by tcp (), 4 probes"}, cause: "without the stain's ToS",
		}, {
			name: "one port that is refused keeps no other from being armed", pairs: []string{"i0 i1", "i0 i5"},
			cast: []func(*cast){bare, func(c *cast) { c.refuses["hv2 tap1"] = true }},
			log: []string{
				"0s 0 tcp", "0s 1 tcp",
				"250ms hv2 answers tap1, answers tap5", "250ms 0 tcp", "250ms 1 tcp",
				"500ms hv2 answers tap1", "500ms hv2 answers tap5", "500ms 0 tcp", "500ms 1 tcp",
				"750ms hv2 answers tap1", "750ms 0 tcp",
			},
			took: time.Second, said: []string{"unknown by tcp (), 4 probes", "healthy by tcp (), 3 probes"},
		}, {
			name: "no answer: unarmed, and not asked again", pairs: to1, cast: []func(*cast){silent, mute},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1", "5.25s 0 tcp", "5.5s 0 tcp", "5.75s 0 tcp"},
			took: 6 * time.Second, said: []string{"unknown by tcp (), 4 probes"}, cause: "without the stain's ToS",
		}, {
			name: "a late answer: asked again", pairs: to1, cast: []func(*cast){silent, mute, late("hv2", 1, 5400*time.Millisecond), late("hv2", 2, 6*time.Second), late("hv2", 3, 7*time.Second)},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1", "5.25s 0 tcp", "5.5s hv2 answers tap1", "6s 0 tcp", "6.25s hv2 answers tap1", "7s 0 tcp"},
			took: 7250 * time.Millisecond, said: []string{"silent by tcp (), 4 probes"},
		}, {
			name: "somebody else answers", pairs: to1, cast: []func(*cast){silent, mute, late("hv1", 1, time.Second)},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1", "5.25s 0 tcp", "5.5s 0 tcp", "5.75s 0 tcp"},
			took: 6 * time.Second, said: []string{"unknown by tcp (), 4 probes"},
		}, {
			name: "the host goes while it arms", pairs: to1, cast: []func(*cast){silent, mute, goes("hv2", time.Second)},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1", "1s 0 tcp", "1.25s 0 tcp", "1.5s 0 tcp"},
			took: 1750 * time.Millisecond, said: []string{"unknown by tcp (), 4 probes"}, cause: "no heartbeat",
		}, {
			name: "the source's host goes meanwhile", pairs: to1, cast: []func(*cast){silent, mute, goes("hv1", time.Second), late("hv2", 1, 2*time.Second)},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1"},
			took: time.Second, said: []string{"unknown by tcp (), 2 probes"}, cause: "no heartbeat",
		}, {
			name: "time is up meanwhile", pairs: to1, timeout: 4 * time.Second, cast: []func(*cast){silent, mute, late("hv2", 1, 3500*time.Millisecond)},
			log:  []string{"0s 0 tcp", "250ms hv2 answers tap1"},
			took: 3 * time.Second, said: []string{"unknown by tcp (), 2 probes"},
		}, {
			name: "a port that is not there is not armed", pairs: []string{"i0 i1", "i0 i5"}, cast: []func(*cast){bare},
			change: func(h *inventory.Host) {
				h.Endpoints = slices.DeleteFunc(h.Endpoints, func(e *dyetracev1.Endpoint) bool { return e.Port == "tap1" })
			},
			log: []string{
				"0s 0 tcp", "0s 1 tcp", "250ms hv2 answers tap5", "250ms 0 tcp", "250ms 1 tcp", "500ms 0 tcp",
			},
			took: 750 * time.Millisecond, said: []string{"faulty by tcp (), 3 probes", "healthy by tcp (), 2 probes"}, cause: "tap1 is not on br-int of hv2",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				snap := siteOf(t, 8, tt.change)
				var pairs []plan.Pair
				var paths []plan.Path
				for _, name := range tt.pairs {
					src, dst, _ := strings.Cut(name, " ")
					p, w := pathsOf(t, snap, probed(src, dst))
					pairs, paths = append(pairs, p...), append(paths, w...)
				}
				c := newCastOf(paths, byTCP)
				for _, f := range tt.cast {
					f(c)
				}
				if tt.timeout == 0 {
					tt.timeout = 30 * time.Second
				}
				got, took, whole := play(t.Context(), testConfig, c, pairs, tt.timeout)
				if !logged(c.log, tt.log) {
					t.Errorf("asked for\n%q, want\n%q", c.log, tt.log)
				}
				for i, want := range tt.said {
					if s := said(got[uint32(100+i)]); s != want {
						t.Errorf("%s: %s: %s; want %s", tt.pairs[i], s, got[uint32(100+i)].GetCause(), want)
					}
				}
				if r := got[100]; !strings.Contains(r.GetCause(), tt.cause) {
					t.Errorf("cause %q, want %q in it", r.GetCause(), tt.cause)
				}
				if took != tt.took || !whole {
					t.Errorf("took %v, want %v; whole %t", took, tt.took, whole)
				}
			})
		})
	}
}

// TestWholeWay: of an answer that bears no ToS the way is shown once the port is armed.
func TestWholeWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pairs, paths := pathsOf(t, site(t, 2), probed("i0", "i1"))
		c := newCastOf(paths, auto)
		c.lost = func(s shot) bool { return s.point > atGuest && s.point < lastOfAll && !s.armed }
		got, _, _ := play(t.Context(), testConfig, c, pairs, 30*time.Second)
		r := got[100]
		if s := said(r); s != "healthy by tcp (tcp is answered), 2 probes" || r.Cause != "" {
			t.Errorf("%s: %s", s, r.Cause)
		}
		for _, s := range r.Samples {
			if !s.Seen {
				t.Errorf("%v was not seen", s.Point)
			}
		}
		if len(r.Samples) != lastOfAll+1 {
			t.Errorf("%d samples", len(r.Samples))
		}
	})
}

// TestNoTouch: no guest may see a probe. The cast panics if one is sent that is not withheld.
func TestNoTouch(t *testing.T) {
	t.Parallel()
	mute := func(host string) func(*cast) { return func(c *cast) { c.mute["armed "+host] = true } }
	refuses := func(what string) func(*cast) { return func(c *cast) { c.refuses[what] = true } }
	late := func(host string, id uint64, at time.Duration) func(*cast) {
		return func(c *cast) {
			time.AfterFunc(at, func() { c.put(c.host(host), &dyetracev1.Armed{Id: id}) })
		}
	}
	goes := func(host string, at time.Duration) func(*cast) {
		return func(c *cast) {
			time.AfterFunc(at, func() { c.put(c.host(host), fleet.Gone{Reason: "no heartbeat for 3s"}) })
		}
	}
	lost := func(of func(shot) bool) func(*cast) { return func(c *cast) { c.lost = of } }
	there := []string{"hv1 withholds", "hv2 withholds at tap1"}
	back := []string{"hv2 withholds", "hv1 withholds at tap0"}
	at := func(at string, words ...string) []string {
		out := make([]string, len(words))
		for i, w := range words {
			out[i] = at + " " + w
		}
		return out
	}
	arms := func(when string, lists ...[]string) []string { return at(when, slices.Concat(lists...)...) }
	tests := []struct {
		name      string
		options   options
		unsampled []string
		cast      []func(*cast)
		timeout   time.Duration // 30 s if zero
		log       []string
		took      time.Duration
		said      string
		cause     string // part of it
		segment   string // its end, and the direction
	}{
		{
			// The way there is a connection until it is withdrawn.
			name: "tcp, both ways", options: tcpNoTouch,
			log:  slices.Concat(arms("0s", there, []string{"0 tcp"}), arms("250ms", back, []string{"0 tcp back"})),
			took: 250 * time.Millisecond, said: "healthy by tcp (), 2 probes",
		}, {
			name: "icmp, both ways", options: icmpNoTouch,
			log:  slices.Concat(arms("0s", there, []string{"0 icmp"}), arms("1ms", back, []string{"0 icmp back"})),
			took: pickEvery, said: "healthy by icmp (), 2 probes",
		}, {
			name: "auto, both ways", options: untouched,
			log:  slices.Concat(arms("0s", there, []string{"0 tcp"}), arms("250ms", back, []string{"0 tcp back"})),
			took: 250 * time.Millisecond, said: "healthy by tcp (tcp passes both ways), 2 probes",
		}, {
			name: "way back lost", options: tcpNoTouch, cast: []func(*cast){lost(func(s shot) bool { return s.back && s.point > leftHost })},
			log: slices.Concat(arms("0s", there, []string{"0 tcp"}), arms("250ms", back, []string{"0 tcp back"}),
				arms("500ms", back, []string{"0 tcp back"}), arms("750ms", back, []string{"0 tcp back"}), arms("1s", back, []string{"0 tcp back"})),
			took: 1250 * time.Millisecond, said: "faulty by tcp (), 5 probes", cause: "way back: ", segment: "hv1/br-tun REPLY",
		}, {
			name: "way there lost", options: tcpNoTouch, cast: []func(*cast){lost(func(s shot) bool { return !s.back && s.point > leftHost })},
			log: slices.Concat(arms("0s", there, []string{"0 tcp"}), arms("250ms", back, []string{"0 tcp back"}),
				arms("500ms", there, []string{"0 tcp"}), arms("750ms", there, []string{"0 tcp"}), arms("1s", there, []string{"0 tcp"})),
			took: 1250 * time.Millisecond, said: "faulty by tcp (), 5 probes", segment: "hv2/br-tun FORWARD",
		}, {
			name: "auto, tcp is lost on the way back", options: untouched,
			cast: []func(*cast){lost(func(s shot) bool { return s.back && s.scheme == stain.TCP && s.point > leftHost })},
			log: slices.Concat(arms("0s", there, []string{"0 tcp"}), arms("250ms", back, []string{"0 tcp back"}),
				arms("500ms", back, []string{"0 tcp back"}), arms("750ms", back, []string{"0 tcp back"}),
				arms("1s", back, []string{"0 tcp back"}), arms("1.25s", there, []string{"0 icmp"}), arms("1.251s", back, []string{"0 icmp back"})),
			took: 1501 * time.Millisecond, said: "faulty by tcp (tcp shows the fault), 7 probes", cause: "icmp echo passes", segment: "hv1/br-tun REPLY",
		}, {
			name: "not sampled at the destination: nothing is sent", options: untouched, unsampled: []string{"tap1"},
			said: "unknown by none (icmp echo was not tried), 0 probes", cause: "to-instance is not sampled at tap1 of hv2: vhost-user",
		}, {
			name: "not sampled at the source: nothing is sent", options: untouched, unsampled: []string{"tap0"},
			said: "unknown by none (icmp echo was not tried), 0 probes", cause: "to-instance is not sampled at tap0 of hv1: vhost-user",
		}, {
			name: "refused: nothing is sent", options: icmpNoTouch, cast: []func(*cast){refuses("hv2")},
			log: slices.Concat(arms("0s", there), arms("250ms", back), arms("500ms", there), arms("750ms", back),
				arms("1s", there), arms("1.25s", back)),
			took: 1500 * time.Millisecond, said: "unknown by none (), 6 probes", cause: "hv2 cannot keep it from the guest: no room",
		}, {
			name: "refused at one port: what does not go there is sent", options: icmpNoTouch, cast: []func(*cast){refuses("hv2 tap1")},
			log:  slices.Concat(arms("0s", there), arms("250ms", back, []string{"0 icmp back"}), arms("251ms", there), arms("501ms", there)),
			took: 751 * time.Millisecond, said: "unknown by icmp (), 4 probes", cause: "hv2 cannot keep it from the guest: no room",
		}, {
			name: "no answer: nothing is sent, nor asked again", options: untouched, cast: []func(*cast){mute("hv2")},
			log:  arms("0s", there),
			took: 7500 * time.Millisecond, said: "unknown by none (neither tcp nor icmp echo tells), 10 probes", cause: "hv2 cannot keep it from the guest: its agent gave no answer within 5s",
		}, {
			// The other host may have stopped to withhold it by then.
			name: "an answer much later: nothing is sent", options: icmpNoTouch, timeout: time.Minute, cast: []func(*cast){mute("hv2"), late("hv2", 2, 40*time.Second)},
			log:  arms("0s", there),
			took: 6500 * time.Millisecond, said: "unknown by none (), 6 probes", cause: "its agent gave no answer within 5s",
		}, {
			name: "gone while it arms: nothing is sent", options: untouched, cast: []func(*cast){mute("hv2"), goes("hv2", time.Second)},
			log:  arms("0s", there),
			took: 1251 * time.Millisecond, said: "unknown by none (icmp echo was not tried), 3 probes", cause: "hv2 cannot keep it from the guest: no heartbeat for 3s",
		}, {
			name: "time is up while it arms: nothing is sent", options: icmpNoTouch, timeout: 4 * time.Second, cast: []func(*cast){mute("hv2"), late("hv2", 2, 3500*time.Millisecond)},
			log:  arms("0s", there),
			took: 3 * time.Second, said: "unknown by none (), 2 probes", cause: "hv2 had not said that it is ready for the probe when the run's time was up",
		}, {
			name: "delivered by another port", options: icmpNoTouch, cast: []func(*cast){func(c *cast) {
				c.leaves = func(s shot) uint32 {
					if s.back {
						return 10
					}
					return 99
				}
			}},
			log: slices.Concat(arms("0s", there, []string{"0 icmp"}), arms("250ms", back, []string{"0 icmp back"}),
				arms("251ms", there, []string{"0 icmp"}), arms("501ms", there, []string{"0 icmp"}), arms("751ms", there, []string{"0 icmp"})),
			took: 1001 * time.Millisecond, said: "unknown by icmp (), 5 probes", cause: "it left by OpenFlow port 99, not by 11",
		}, {
			name: "the port is gone: no icmp", options: untouched, cast: []func(*cast){func(c *cast) { c.absent["tap0"] = true }, lost(func(s shot) bool { return s.point > leftHost })},
			log: slices.Concat(arms("0s", there, []string{"0 tcp"}), arms("250ms", back, []string{"0 tcp back"}),
				arms("500ms", back, []string{"0 tcp back"}), arms("750ms", back, []string{"0 tcp back"}), arms("1s", back, []string{"0 tcp back"})),
			took: 1250 * time.Millisecond, said: "faulty by tcp (tcp shows the fault), 5 probes", cause: "tap0 is not on br-int of hv1",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				pairs, paths := pathsBy(t, shownSite(t, 2, tt.unsampled...), probed("i0", "i1"), tt.options.plan)
				c := newCastOf(paths, tt.options)
				for _, f := range tt.cast {
					f(c)
				}
				if tt.timeout == 0 {
					tt.timeout = 30 * time.Second
				}
				got, took, whole := play(t.Context(), testConfig, c, pairs, tt.timeout)
				if !slices.Equal(c.log, tt.log) {
					t.Errorf("asked for\n%q, want\n%q", c.log, tt.log)
				}
				r := got[100]
				if s := said(r); s != tt.said || !strings.Contains(r.GetCause(), tt.cause) {
					t.Errorf("%s: %s; want %s: %s", s, r.GetCause(), tt.said, tt.cause)
				}
				to := r.GetSegment().GetTo()
				end := fmt.Sprintf("%s/%s %s", to.GetHost(), to.GetBridge(), strings.TrimPrefix(r.GetSegment().GetDirection().String(), "DIRECTION_"))
				if tt.segment != "" && end != tt.segment {
					t.Errorf("segment ends at %s, want %s", end, tt.segment)
				}
				if !r.GetNoTouch() || took != tt.took || !whole {
					t.Errorf("took %v, want %v; whole %t, no touch %t", took, tt.took, whole, r.GetNoTouch())
				}
			})
		})
	}
}

// TestNoTouchMany has many pairs in no-touch, some of which cannot be.
func TestNoTouchMany(t *testing.T) {
	t.Parallel()
	for _, o := range []options{untouched, tcpNoTouch, icmpNoTouch} {
		synctest.Test(t, func(t *testing.T) {
			pairs, paths := pathsBy(t, shownSite(t, 9, "tap4"), allPairs, o.plan)
			c := newCastOf(paths, o)
			cfg := testConfig
			cfg.PerInstanceRate, cfg.PerInstanceBurst = 1000, 1000
			got, took, whole := play(t.Context(), cfg, c, pairs, time.Minute)
			if counts := countsOf(got); counts != "healthy 56 faulty 0 silent 0 policy 0 unknown 16" || !whole {
				t.Errorf("%s, whole %t", counts, whole)
			}
			if len(c.at) != 2*56 {
				t.Errorf("%d probes, want two for each of 56 pairs", len(c.at))
			}
			for _, word := range c.log {
				if strings.Contains(word, "tap4") {
					t.Errorf("asked for: %s, though nothing is sent there", word)
				}
			}
			// There and back, of the pair and of the opposite one, all on one wire.
			if o.scheme != stain.ICMP && took != 750*time.Millisecond {
				t.Errorf("took %v, want three times the settling", took)
			}
		})
	}
}

// TestCancelArming ends a run while agents arm.
func TestCancelArming(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pairs, paths := pathsBy(t, shownSite(t, 2), probed("i0", "i1"), untouched.plan)
		c := newCastOf(paths, untouched)
		c.mute["armed hv1"] = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p := pace.New(10, 10)
		got, took, whole := playOn(ctx, testConfig, p, c, pairs, time.Minute)
		if whole || len(got) != 0 || took != time.Second || len(c.finished) != 2 || len(c.at) != 0 {
			t.Errorf("whole %t, %d verdicts in %v, told %q, %d probes", whole, len(got), took, c.finished, len(c.at))
		}
		if n := p.Held(); n != 0 { // nothing was sent
			t.Errorf("%d things are left", n)
		}
	})
}

// TestArmedTooLate has an answer wait, as in a process that was stopped for a while, until what is
// withheld may have ended: the probe is not sent.
func TestArmedTooLate(t *testing.T) {
	t.Parallel()
	pairs, paths := pathsBy(t, shownSite(t, 2), probed("i0", "i1"), icmpNoTouch.plan)
	for _, tt := range []struct {
		after time.Duration
		sent  int
	}{{answerTimeout - 1, 1}, {answerTimeout, 0}, {withholdFor + time.Second, 0}} {
		c := newCastOf(paths, icmpNoTouch)
		c.mute["armed hv1"], c.mute["armed hv2"] = true, true
		now := time.Now()
		x := newExecution(&testConfig, pace.New(10, 10), c.metrics, slog.New(slog.DiscardHandler),
			pairs, paths, []uint32{0}, icmpNoTouch, stain.Key{1}, time.Hour, now, c.begin)
		for _, e := range c.Events(nil) { // all are ready
			x.take(&e, now)
		}
		x.step(now)
		for host := range c.spec.Hosts {
			c.put(host, &dyetracev1.Armed{Id: uint64(1 + host)})
		}
		for _, e := range c.Events(nil) {
			x.take(&e, now.Add(tt.after))
		}
		if len(c.at) != tt.sent {
			t.Errorf("an answer after %v: %d probes were sent, want %d", tt.after, len(c.at), tt.sent)
		}
	}
}

// TestAnyAgents has agents that are mute, refuse, answer late and go at any time: a run ends in its
// time with a verdict on each pair, nothing is left, and whatever could not be seen is not healthy.
func TestAnyAgents(t *testing.T) {
	t.Parallel()
	all := []options{auto, byTCP, byICMP, untouched, tcpNoTouch, icmpNoTouch}
	for seed := range 300 {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(seed), 3))
			o := all[r.IntN(len(all))]
			pairs, paths := pathsBy(t, shownSite(t, 4), allPairs, o.plan)
			c := newCastOf(paths, o)
			timeout := time.Duration(1+r.IntN(20)) * time.Second
			some := func() bool { return r.IntN(6) == 0 }
			for h := 1; h <= 4; h++ {
				host := fmt.Sprintf("hv%d", h)
				for _, what := range []string{"ready", "injected", "armed", "finished", "explain"} {
					c.mute[what+" "+host] = some()
				}
				c.refuses[host], c.refuses[fmt.Sprintf("%s tap%d", host, h-1)] = some(), some()
				c.absent[fmt.Sprintf("tap%d", h-1)] = some()
				at := func() time.Duration { return time.Millisecond + time.Duration(r.Int64N(int64(timeout))) }
				if some() {
					time.AfterFunc(at(), func() { c.put(c.host(host), fleet.Gone{Reason: "no heartbeat for 3s"}) })
				}
				why := ""
				if c.refuses[host] || c.refuses[fmt.Sprintf("%s tap%d", host, h-1)] {
					why = "no"
				}
				for range r.IntN(4) { // late, or of somebody else
					id := uint64(1 + r.IntN(8))
					time.AfterFunc(at(), func() { c.put(c.host(host), &dyetracev1.Armed{Id: id, Error: why}) })
				}
			}
			lossy, seeded := r.IntN(3), r.Uint64()
			c.lost = func(s shot) bool {
				q := rand.New(rand.NewPCG(seeded, uint64(s.pair*1000+s.attempt*100+int(s.scheme)*10+s.point)))
				return q.IntN(40) < lossy || s.pair == 0 && s.point > leftHost
			}
			p := pace.New(10, 10)
			got, took, whole := playOn(t.Context(), testConfig, p, c, pairs, timeout)
			if !whole || len(got) != len(pairs) || took > timeout {
				t.Errorf("seed %d: whole %t, %d verdicts on %d pairs, in %v of %v", seed, whole, len(got), len(pairs), took, timeout)
			}
			if r := got[100]; r.GetVerdict() == dyetracev1.Verdict_VERDICT_HEALTHY {
				t.Errorf("seed %d: healthy, though nothing came to its host: %v", seed, r)
			}
			p.Leave(p.Join(pairs, time.Now()), time.Now().Add(time.Hour))
			if n := p.Held(); n != 0 {
				t.Errorf("seed %d: %d things are left of a run that is over", seed, n)
			}
			time.Sleep(time.Minute) // what was to come later
		})
	}
}

// TestWireKept has a run end while its last probe is a half-open connection: the next one, in the
// opposite direction, waits until that is withdrawn.
func TestWireKept(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		options options
		cancel  time.Duration // 0 is not at all
		cast    func(*cast)
		first   time.Duration // when the next run sends
	}{
		{name: "no touch", options: tcpNoTouch, first: 500 * time.Millisecond},
		{name: "no touch by icmp", options: icmpNoTouch, first: pickEvery},
		{name: "answered", options: byTCP, first: 0},
		{
			name: "cancelled while the probe is under way", options: byTCP, cancel: 100 * time.Millisecond, first: 250*time.Millisecond + tick/2,
			cast: func(c *cast) { c.lost = func(s shot) bool { return s.point > leftHost } },
		}, {
			name: "cancelled before the agent said that it left", options: byTCP, cancel: 100 * time.Millisecond, first: 350*time.Millisecond + tick/2,
			cast: func(c *cast) { c.mute["injected hv1"] = true },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := pace.New(10, 10)
				snap := shownSite(t, 2)
				began := time.Now()
				pairs, paths := pathsBy(t, snap, probed("i0", "i1"), tt.options.plan)
				c := newCastOf(paths, tt.options)
				if tt.cast != nil {
					tt.cast(c)
				}
				ctx, cancel := t.Context(), context.CancelFunc(func() {})
				if tt.cancel > 0 {
					ctx, cancel = context.WithTimeout(ctx, tt.cancel)
				}
				defer cancel()
				playOn(ctx, testConfig, p, c, pairs, time.Minute)

				pairs, paths = pathsBy(t, snap, probed("i1", "i0"), tt.options.plan)
				next := newCastOf(paths, tt.options)
				got, _, _ := playOn(t.Context(), testConfig, p, next, pairs, time.Minute)
				if counts := countsOf(got); counts != "healthy 1 faulty 0 silent 0 policy 0 unknown 0" {
					t.Errorf("the second run: %s", counts)
				}
				// Who waits for a wire looks every tick.
				if first := next.at[0].Sub(began); first < tt.first-tick || first > tt.first+tick {
					t.Errorf("the second run sent after %v, want %v", first, tt.first)
				}
				p.Leave(p.Join(pairs, time.Now()), time.Now().Add(time.Hour))
				if n := p.Held(); n != 0 {
					t.Errorf("%d things are left of runs that are over", n)
				}
			})
		})
	}
}

// TestLedgerScheme: a sample counts only if it is of the probe's scheme, and at the port of the
// instance.
func TestLedgerScheme(t *testing.T) {
	t.Parallel()
	_, paths := pathsBy(t, shownSite(t, 2), probed("i0", "i1"), untouched.plan)
	c := newCastOf(paths, untouched)
	c.spec = fleet.Spec{Hosts: []string{"hv1", "hv2"}, Key: stain.Key{7}}
	l := newLedger(c.spec.Key, c.ps, c.tracks, 0)
	numbers := []uint32{0, 1, 2, 3} // tcp there and back, icmp there and back
	for _, n := range numbers {
		l.ask(n)
	}
	bridge := func(m *dyetracev1.Samples, i int) int32 { return l.bridges[m.Bridges[m.Bridge[i]]] }
	for host, m := range c.see(numbers) {
		for i := range m.Index {
			was := m.Scheme[i]
			for _, s := range []dyetracev1.Scheme{dyetracev1.Scheme_SCHEME_UNSPECIFIED, dyetracev1.Scheme_SCHEME_TCP, dyetracev1.Scheme_SCHEME_ICMP} {
				if m.Scheme[i] = s; s != was && l.see(host, bridge(m, i), m, i) != forged {
					t.Errorf("probe %d seen as %v counts", m.Index[i], s)
				}
			}
			m.Scheme[i] = was
		}
	}
	seen := 0
	for host, m := range c.see(numbers) {
		for i := range m.Index {
			if m.Kind[i] == dyetracev1.PointKind_POINT_KIND_TO_INSTANCE {
				port := m.InPort[i]
				m.InPort[i] = 99
				if f := l.see(host, bridge(m, i), m, i); f != stray {
					t.Errorf("probe %d leaving by another port: %d", m.Index[i], f)
				}
				m.InPort[i] = port
			}
			if f := l.see(host, bridge(m, i), m, i); f != used && f != completed {
				t.Errorf("sample %d of probe %d: %d", i, m.Index[i], f)
			}
			seen++
		}
	}
	for _, n := range numbers {
		a := l.attempt(n)
		if len(a.Stray) != 1 || a.Stray[0].InPort != 99 || a.Stray[0].Kind != stain.ToInstance || len(a.Seen) != 5 {
			t.Errorf("probe %d: %+v", n, a)
		}
		seen -= len(a.Seen)
	}
	if seen != 0 {
		t.Errorf("%d samples are of no probe", seen)
	}
}

// TestMetrics counts what was sent and armed.
func TestMetrics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		m := newMetrics(registry)
		// A guest that is silent to tcp: 4 probes, three of them armed, and one by icmp.
		pairs, paths := pathsOf(t, site(t, 2), probed("i0", "i1"))
		c := newCastOf(paths, auto)
		c.metrics = m
		c.lost = func(s shot) bool { return s.scheme == stain.TCP && s.point > atGuest }
		play(t.Context(), testConfig, c, pairs, time.Minute)
		// What is refused is not sent: an Arm at each of two hosts, for each of six probes.
		pairs, paths = pathsBy(t, shownSite(t, 2), probed("i0", "i1"), icmpNoTouch.plan)
		c = newCastOf(paths, icmpNoTouch)
		c.metrics = m
		c.refuses["hv2"] = true
		play(t.Context(), testConfig, c, pairs, time.Minute)
		// No answer at all: one Arm at each host, none after that.
		c = newCastOf(paths, icmpNoTouch)
		c.metrics = m
		c.mute["armed hv2"] = true
		play(t.Context(), testConfig, c, pairs, time.Minute)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, v := range f.GetMetric() {
				for _, l := range v.GetLabel() {
					got[f.GetName()+" "+l.GetValue()] = v.GetCounter().GetValue()
				}
			}
		}
		for name, want := range map[string]float64{
			"dyetrace_run_probes_total tcp": 3, "dyetrace_run_probes_total icmp": 1,
			"dyetrace_run_arms_total in_place": 2 + 6 + 1, "dyetrace_run_arms_total refused": 6 + 1,
		} {
			if got[name] != want {
				t.Errorf("%s = %v, want %v", name, got[name], want)
			}
		}
	})
}
