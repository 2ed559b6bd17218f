package run

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// town plays the agents of a site for any number of runs at a time, as cast does for one.
type town struct {
	mu    sync.Mutex
	paths map[string]*plan.Path // by addresses
	snap  *inventory.Snapshot
	gone  map[string]bool
	// lost says that a point does not see a probe of a pair ("i0 i1").
	lost func(pair string, p *plan.Path, point int) bool
	// lose, where it is not nil, is asked once about each probe, by its number of those of its pair: it is lost
	// on its way to the other host.
	lose  func(pair string, scheme stain.Scheme, n int) bool
	count map[string]int
	// refuse says that no probe of a scheme can be sent.
	refuse func(stain.Scheme) bool
	// refresh is what has hosts tell how they are; nil is that the book is right.
	refresh func()
	// auto has schemes be chosen; else all goes by tcp.
	auto bool
	// late is how long samples take, unready how long agents take until they are ready, and to answer to an audit.
	late, unready time.Duration
	audited       int // hosts, for a patrol
	// slow is how long probes of a pair and their answers take; all that are sent with one take as long.
	slow map[string]time.Duration
	// passes says that flows send on what is lost: into the right tunnel. Else they drop it on a bridge.
	passes bool
	drops  string // br-tun where that is empty
	// delivers says that flows hand what is lost to this port.
	delivers string
	armed    int // answers to Arm
	runs     []*visit
	// underlay answers exchanges; nil leaves them without an answer.
	underlay func(host string, m *dyetracev1.ProbeUnderlay) *dyetracev1.UnderlayReport
	// network is what streams between hosts meet; nil has none.
	network *simNetwork
	begun   int
	sent    int
}

// visit is one run, as the agents of the town know it.
type visit struct {
	t      *town
	spec   fleet.Spec
	wake   chan struct{}
	events []fleet.Event
	ids    uint64
	fates  map[uint32]int
}

func newTown(t testing.TB, snap *inventory.Snapshot) *town {
	t.Helper()
	w := &town{snap: snap, paths: map[string]*plan.Path{}, gone: map[string]bool{}, count: map[string]int{}}
	_, paths := pathsOf(t, snap, allPairs)
	for i := range paths {
		w.paths[paths[i].Src.String()+" "+paths[i].Dst.String()] = &paths[i]
	}
	return w
}

func (w *town) Snapshot() *inventory.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snap
}
func (w *town) Refresh(context.Context, []string) {
	w.mu.Lock()
	refresh := w.refresh
	w.mu.Unlock()
	if refresh != nil {
		refresh()
	}
}
func (w *town) Begin(fleet.Spec) *fleet.Assignment { panic("runs of a town begin otherwise") }
func (w *town) Stream(int) *fleet.Streaming        { panic("streams of a town are its network's") }
func (w *town) change(f func(w *town))             { w.mu.Lock(); defer w.mu.Unlock(); f(w) }
func (v *visit) windows() []*dyetracev1.HookWindow {
	return []*dyetracev1.HookWindow{{Bridge: "br-int", Live: true, Epoch: 1}, {Bridge: "br-tun", Live: true, Epoch: 1}}
}

func (w *town) begin(s fleet.Spec) agents {
	v := &visit{t: w, spec: s, wake: make(chan struct{}, 1), fates: map[uint32]int{}}
	w.mu.Lock()
	w.begun++
	w.runs = append(w.runs, v)
	w.mu.Unlock()
	for h, name := range s.Hosts {
		w.mu.Lock()
		gone, unready := w.gone[name], w.unready
		w.mu.Unlock()
		switch {
		case gone:
			v.put(h, fleet.Gone{Reason: "not connected"})
		case unready > 0:
			time.AfterFunc(unready, func() { v.put(h, &dyetracev1.Ready{Windows: v.windows()}) })
		default:
			v.put(h, &dyetracev1.Ready{Windows: v.windows()})
		}
	}
	return v
}

// leave has the agent of a host go, as all runs see it.
func (w *town) leave(host string, snap *inventory.Snapshot) {
	w.mu.Lock()
	w.gone[host], w.snap = true, snap
	runs := slices.Clone(w.runs)
	w.mu.Unlock()
	for _, v := range runs {
		if h := slices.Index(v.spec.Hosts, host); h >= 0 {
			v.put(h, fleet.Gone{Reason: "no heartbeat for 3s"})
		}
	}
}

func (v *visit) put(host int, m any) {
	v.t.mu.Lock()
	defer v.t.mu.Unlock()
	v.events = append(v.events, fleet.Event{Host: host, Message: m})
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

func (v *visit) Inject(host int, m *dyetracev1.Inject) {
	v.t.mu.Lock()
	left := &dyetracev1.Injected{}
	all := make([]*dyetracev1.Samples, len(v.spec.Hosts))
	for h := range all {
		all[h] = &dyetracev1.Samples{Bridges: []string{"br-int", "br-tun"}}
	}
	for i, number := range m.Index {
		if v.fates[number]++; v.fates[number] > 1 || number >= v.spec.Total {
			panic(fmt.Sprintf("number %d comes twice, or is none", number))
		}
		if v.t.refuse != nil && v.t.refuse(stain.Scheme(m.Scheme)) {
			left.Failures = append(left.Failures, &dyetracev1.InjectFailure{Index: number, Reason: "no buffer space available"})
			continue
		}
		v.t.sent++
		left.Index, left.AtNs = append(left.Index, number), append(left.AtNs, 0)
		p := v.t.paths[addr(m.SrcIp, i)+" "+addr(m.DstIp, i)]
		pair := p.Pair.Src.Name + " " + p.Pair.Dst.Name
		v.t.count[pair]++
		lost := v.t.lose != nil && v.t.lose(pair, stain.Scheme(m.Scheme), v.t.count[pair])
		for k, pt := range p.Points {
			if v.t.lost != nil && v.t.lost(pair, p, k) || lost && pt.Host != p.From.Host {
				break
			}
			if v.t.gone[pt.Host] {
				continue
			}
			s := all[slices.Index(v.spec.Hosts, pt.Host)]
			src, dst := p.Src, p.Dst
			if pt.Direction == plan.Reply {
				src, dst = dst, src
			}
			s.Index = append(s.Index, number)
			s.Bridge = append(s.Bridge, uint32(slices.Index(s.Bridges, pt.Bridge)))
			s.Kind = append(s.Kind, dyetracev1.PointKind(pt.Kind))
			s.AtNs = append(s.AtNs, uint64(max(100*time.Microsecond, v.t.slow[pair]/time.Duration(len(p.Points)))*time.Duration(k+1)))
			s.AddrTag = append(s.AddrTag, stain.AddrTag(v.spec.Key, src, dst))
			s.Ttl, s.InPort, s.TunSrc, s.TunId = append(s.Ttl, uint32(pt.TTL)), append(s.InPort, 7), append(s.TunSrc, 0), append(s.TunId, 0)
			s.Reply = append(s.Reply, pt.Direction == plan.Reply)
			s.NoReply, s.Scheme = append(s.NoReply, false), append(s.Scheme, m.Scheme)
			s.TcpFlags = append(s.TcpFlags, flagsOf(stain.Scheme(m.Scheme), pt.Direction == plan.Reply))
		}
	}
	late := v.t.late
	for i := range m.Index {
		p := v.t.paths[addr(m.SrcIp, i)+" "+addr(m.DstIp, i)]
		late = max(late, v.t.slow[p.Pair.Src.Name+" "+p.Pair.Dst.Name])
	}
	v.t.mu.Unlock()
	v.put(host, left)
	for h, s := range all {
		switch {
		case len(s.Index) == 0:
		case late > 0:
			time.AfterFunc(late, func() { v.put(h, s) })
		default:
			v.put(h, s)
		}
	}
}

func (v *visit) Withdraw(int, *dyetracev1.Withdraw) {}

func addr(column []byte, i int) string {
	return netip.AddrFrom16([16]byte(column[16*i : 16*i+16])).Unmap().String()
}

func (v *visit) Arm(host int, _ *dyetracev1.Arm) uint64 {
	v.ids++
	v.t.change(func(w *town) { w.armed++ })
	v.put(host, &dyetracev1.Armed{Id: v.ids})
	return v.ids
}
func (v *visit) Audit(host int, patient bool) {
	v.t.mu.Lock()
	defer v.t.mu.Unlock()
	if patient {
		v.t.audited++
	}
	time.AfterFunc(v.t.unready, func() { v.put(host, &dyetracev1.Audited{Windows: v.windows()}) })
}
func (v *visit) Finish(host int) { v.put(host, &dyetracev1.Finished{Windows: v.windows()}) }
func (v *visit) Explain(host int, m *dyetracev1.Explain) uint64 {
	v.ids++
	switch {
	case v.t.delivers != "":
		e := delivered(v.t.delivers)
		e.Id = v.ids
		v.put(host, e)
		return v.ids
	case v.t.passes: // to the host of whom it is for
		dst := netip.AddrFrom16([16]byte(m.GetDstIp())).Unmap()
		remote := ""
		for _, p := range v.t.paths {
			if p.Dst == dst {
				remote = "10.1.0." + p.To.Host[2:]
			}
		}
		v.put(host, &dyetracev1.Explanation{Id: v.ids, Outcome: dyetracev1.Outcome_OUTCOME_TUNNELLED, Port: "gre0", TunnelRemote: remote})
		return v.ids
	}
	v.put(host, &dyetracev1.Explanation{
		Id: v.ids, Outcome: dyetracev1.Outcome_OUTCOME_DROPPED,
		Flow: &dyetracev1.FlowRef{Bridge: cmp.Or(v.t.drops, "br-tun"), Table: 60, Match: "ip"},
	})
	return v.ids
}
func (v *visit) ProbeUnderlay(host int, m *dyetracev1.ProbeUnderlay) uint64 {
	v.ids++
	v.t.mu.Lock()
	answer := v.t.underlay
	v.t.mu.Unlock()
	if answer != nil {
		r := answer(v.spec.Hosts[host], m)
		r.Id = v.ids
		v.put(host, r)
	}
	return v.ids
}

func (v *visit) Wake() <-chan struct{} { return v.wake }
func (v *visit) Close()                {}
func (v *visit) Events(buf []fleet.Event) []fleet.Event {
	v.t.mu.Lock()
	defer v.t.mu.Unlock()
	events := v.events
	v.events = buf[:0]
	return events
}

// told is one verdict of a continuous run, and when it was told.
type told struct {
	at time.Duration
	r  *dyetracev1.PairResult
}

// watchTown plays a continuous run for so long, and returns all that it told.
func watchTown(t *testing.T, w *town, cfg Config, opts *dyetracev1.ProbeOptions, long time.Duration, during func()) (all []told, f *feed, c *continuous) {
	t.Helper()
	f = newFeed(&dyetracev1.Run{Counts: &dyetracev1.Counts{}}, nil)
	f.continuous()
	all, c = watchTownIn(t, w, f, cfg, opts, long, during)
	return all, f, c
}

// watchTownIn is watchTown with a feed that somebody else watches, too.
func watchTownIn(t *testing.T, w *town, f *feed, cfg Config, opts *dyetracev1.ProbeOptions, long time.Duration, during func()) (all []told, c *continuous) {
	t.Helper()
	if cfg.Patience == 0 {
		cfg.Patience = 750 * time.Millisecond
	}
	cfg.Fleet, cfg.Book, cfg.Log, cfg.Timeout = w, w, slog.New(slog.DiscardHandler), 30*time.Second
	r := New(cfg)
	r.begin = w.begin
	if w.network != nil {
		r.stream = func() streams { return w.network }
	}
	pairs, _ := pathsOf(t, w.snap, allPairs)
	opts.Continuous, opts.Scheme = true, dyetracev1.Scheme_SCHEME_TCP
	if w.auto {
		opts.Scheme = dyetracev1.Scheme_SCHEME_UNSPECIFIED
	}
	j := job{pairs: pairs, options: optionsFromProto(opts), continuous: true, rate: opts.GetRate()}
	for i := range pairs {
		j.seq = append(j.seq, uint32(i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	began := time.Now()
	in, done := make(chan batch), make(chan struct{})
	go func() {
		defer close(done)
		for b := range in {
			for _, p := range b.results {
				all = append(all, told{time.Since(began), p})
			}
			f.replace(b.results)
			f.news.Store(true)
		}
	}()
	c = newContinuous(r, j, cfg.Log, f, began)
	go during()
	c.run(ctx, in, nil)
	<-done
	r.pace.Leave(nil, time.Now().Add(time.Minute)) // what is half-open is kept for a while
	if n := r.pace.Held(); n != 0 {
		t.Errorf("%d things are left of a run that is over", n)
	}
	return all, c
}

// TestContinuous breaks one pair of twelve for a while, in a site where all is well.
func TestContinuous(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 4))
		broken := func(pair string, p *plan.Path, point int) bool {
			return pair == "i0 i1" && p.Points[point].Direction == plan.Forward && p.Points[point].Host == "hv2"
		}
		const broke, healed = 20 * time.Second, 30 * time.Second
		all, f, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, time.Minute, func() {
			time.Sleep(broke)
			w.change(func(w *town) { w.lost = broken })
			time.Sleep(healed - broke)
			w.change(func(w *town) { w.lost = nil })
		})
		if len(all) != 12+2 {
			t.Fatalf("%d verdicts, want 12 and two changes: %v", len(all), all)
		}
		fault, heal := all[12], all[13]
		if fault.r.Verdict != dyetracev1.Verdict_VERDICT_FAULTY || fault.r.Before != dyetracev1.Verdict_VERDICT_HEALTHY ||
			fault.r.Changes != 1 || !strings.Contains(fault.r.Cause, "table 60") || fault.at < broke || fault.at > broke+time.Second {
			t.Errorf("%v after the fault: %v", fault.at-broke, fault.r)
		}
		if since := fault.r.Since.AsTime().Sub(time.Now().Add(-time.Minute)); since < broke || since > fault.at {
			t.Errorf("since %v, told at %v", since, fault.at)
		}
		if heal.r.Verdict != dyetracev1.Verdict_VERDICT_HEALTHY || heal.r.Changes != 2 || heal.at < healed || heal.at > healed+time.Second {
			t.Errorf("%v after it was healed: %v", heal.at-healed, heal.r)
		}
		if p := f.since(0); p.run.Counts.Healthy != 12 || p.run.Counts.Faulty != 0 || len(p.results) != 12 || p.run.Probes == 0 {
			t.Errorf("at the end: %v, %d results", p.run, len(p.results))
		}
		// 4 instances, 10 probes a second each, two instances a probe.
		if most := 60*20 + 40; w.sent > most || w.sent < most/2 {
			t.Errorf("%d probes in a minute, want no more than %d and not much less", w.sent, most)
		}
	})
}

// TestContinuousExplained breaks a pair, once where flows drop what is lost, and once where they do not. What
// flows drop is named while something that is only silent is still waited for; both are proven by as many
// probes that were lost.
func TestContinuousExplained(t *testing.T) {
	t.Parallel()
	for _, passes := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, site(t, 4))
			w.auto, w.passes = true, passes
			const broke = 20 * time.Second
			all, _, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 30*time.Second, func() {
				time.Sleep(broke)
				w.change(func(w *town) { w.lose = func(pair string, _ stain.Scheme, _ int) bool { return pair == "i0 i1" } })
			})
			if len(all) != 12+1 || all[12].r.GetVerdict() != faulty || all[12].r.GetSrc().GetName() != "i0" || all[12].r.GetDst().GetName() != "i1" {
				t.Fatalf("flows pass it: %t: told of %v; want 12 pairs, and i0 → i1 faulty", passes, all)
			}
			r := all[12].r
			took := all[12].at - r.GetSince().AsTime().Sub(time.Now().Add(-30*time.Second))
			if early := took < c.r.cfg.Patience; early == passes {
				t.Errorf("flows pass it: %t: named %v after the first probe that was lost, by a patience of %v: %s", passes, took, c.r.cfg.Patience, r.GetCause())
			}
			if r.GetProbes() != fewAttempts || !strings.Contains(r.GetCause(), "icmp echo is lost there too") {
				t.Errorf("flows pass it: %t: %d probes, want %d, an echo among them: %s", passes, r.GetProbes(), fewAttempts, r.GetCause())
			}
		})
	}
}

// TestContinuousRefreshed has a port go of which hosts tell only when they are asked, which takes as long as an
// examination: nothing is told that was judged without knowing.
func TestContinuousRefreshed(t *testing.T) {
	t.Parallel()
	for _, late := range []time.Duration{50 * time.Millisecond, 900 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, site(t, 4))
			without := siteOf(t, 4, func(h *inventory.Host) {
				h.Endpoints = slices.DeleteFunc(h.Endpoints, func(e *dyetracev1.Endpoint) bool { return e.Port == "tap1" })
			})
			all, _, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 30*time.Second, func() {
				time.Sleep(20 * time.Second)
				w.change(func(w *town) {
					w.lost = func(pair string, p *plan.Path, point int) bool {
						return strings.HasSuffix(pair, " i1") && p.Points[point].Direction == plan.Reply
					}
					w.drops = "br-int"
					w.refresh = func() {
						time.Sleep(late)
						w.change(func(w *town) { w.snap = without })
					}
				})
			})
			accused := map[string]bool{}
			for _, a := range all[12:] {
				if a.r.GetDst().GetName() == "i1" && a.r.GetCauseKind() == dyetracev1.CauseKind_CAUSE_KIND_PORT {
					accused[a.r.GetSrc().GetName()] = true
				} else if a.r.GetDst().GetName() == "i1" || a.r.GetVerdict() == faulty && a.r.GetSrc().GetName() != "i1" {
					t.Errorf("hosts told after %v: %v: %s → %s: %v: %s", late, a.at, a.r.GetSrc().GetName(), a.r.GetDst().GetName(), a.r.GetVerdict(), a.r.GetCause())
				}
			}
			if len(accused) != 3 {
				t.Errorf("hosts told after %v: the port is missed by %v, want three", late, accused)
			}
		})
	}
}

// TestContinuousChance loses the first probes of a pair, while its host always says that flows drop them: nobody
// is accused unless a patrol's probe and fewAttempts after it are lost in a row.
func TestContinuousChance(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		lost   func(scheme stain.Scheme, n int) bool // n-th probe from the patrol's on
		faulty bool
	}{
		{"the patrol's", func(_ stain.Scheme, n int) bool { return n <= 1 }, false},
		{"and one by tcp", func(s stain.Scheme, n int) bool { return n <= 2 && s == stain.TCP }, false},
		{"and an echo", func(_ stain.Scheme, n int) bool { return n <= 3 }, false},
		{"by tcp two", func(s stain.Scheme, n int) bool { return n <= 4 && s == stain.TCP }, false},
		{"three after it", func(_ stain.Scheme, n int) bool { return n <= 4 }, true},
		{"by tcp all", func(s stain.Scheme, n int) bool { return n <= 30 && s == stain.TCP }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, site(t, 4))
				w.auto = true
				first := 0
				all, _, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 30*time.Second, func() {
					time.Sleep(20 * time.Second)
					w.change(func(w *town) {
						first = w.count["i0 i1"]
						w.lose = func(pair string, s stain.Scheme, n int) bool { return pair == "i0 i1" && tt.lost(s, n-first) }
					})
				})
				accused := slices.ContainsFunc(all, func(a told) bool { return a.r.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY })
				if accused != tt.faulty || w.count["i0 i1"] < first+5 {
					t.Errorf("accused: %t, want %t; %d probes since: %v", accused, tt.faulty, w.count["i0 i1"]-first, all[12:])
				}
			})
		})
	}
}

// TestContinuousByEcho has no probe by tcp be sent at first, so that all is healthy by icmp, and breaks tcp alone then, which echoes do not show: tcp
// is tried again when that may be over, and it is named.
func TestContinuousByEcho(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 2))
		w.auto, w.refuse = true, func(s stain.Scheme) bool { return s == stain.TCP }
		const broke = 20 * time.Second
		all, _, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 2*time.Minute, func() {
			time.Sleep(broke)
			w.change(func(w *town) {
				w.refuse = nil
				w.lose = func(_ string, s stain.Scheme, _ int) bool { return s == stain.TCP }
			})
		})
		if len(all) != 4 {
			t.Fatalf("told %v; want two pairs, and that they are faulty", all)
		}
		for _, a := range all[:2] {
			if a.r.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY || a.r.GetScheme() != dyetracev1.Scheme_SCHEME_ICMP {
				t.Errorf("%v by %v: %s; want it healthy by icmp: not the case that this is about", a.r.GetVerdict(), a.r.GetScheme(), a.r.GetSchemeReason())
			}
		}
		for _, a := range all[2:] {
			if a.r.GetVerdict() != faulty || a.r.GetScheme() != dyetracev1.Scheme_SCHEME_TCP || a.at < broke || a.at > forgottenAfter+2*recheckAfter {
				t.Errorf("%v: %v by %v: %s", a.at, a.r.GetVerdict(), a.r.GetScheme(), a.r.GetCause())
			}
		}
	})
}

// TestByTCPAgain has a pair be healthy by icmp only for long, as one is whose guest does not answer tcp: it is examined ever less often.
func TestByTCPAgain(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0) // a multiple of recheckAfter since the beginning of time
	for _, tt := range []struct{ since, lasted, want time.Duration }{
		{0, 0, forgottenAfter}, {forgottenAfter / 4, 0, forgottenAfter}, {time.Minute, 0, 2 * time.Minute}, {3 * time.Minute, 0, 6 * time.Minute},
		{time.Hour, 0, untriedAtMost}, {0, 10 * time.Second, forgottenAfter}, {0, time.Minute, recheckTimes * time.Minute}, {time.Hour, time.Hour, recheckTimes * time.Hour},
	} {
		p := &standing{echoes: now.Add(-tt.since), lasted: tt.lasted}
		if got := p.byTCPAgain(now).Sub(now); got != tt.want+recheckAfter {
			t.Errorf("by icmp only for %v, the last time examined for %v: again in %v, want %v", tt.since, tt.lasted, got, tt.want+recheckAfter)
		}
	}
}

// TestContinuousForged has agents see packets, and say of probes that they left, which are yet to be sent:
// what somebody's guess decodes to, of the many numbers that a patrol may use.
func TestContinuousForged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 4))
		all, _, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 30*time.Second, func() {
			time.Sleep(10 * time.Second)
			w.mu.Lock()
			runs := slices.Clone(w.runs)
			w.mu.Unlock()
			for _, v := range runs {
				last := v.spec.Total - 1
				for h := range v.spec.Hosts {
					v.put(h, &dyetracev1.Samples{
						Bridges: []string{"br-int"}, Index: []uint32{last}, Bridge: []uint32{0}, Kind: []dyetracev1.PointKind{1}, AtNs: []uint64{1},
						AddrTag: []uint64{7}, Ttl: []uint32{64}, InPort: []uint32{7}, TunSrc: []uint32{0}, TunId: []uint32{0},
						Reply: []bool{false}, NoReply: []bool{false}, Scheme: []dyetracev1.Scheme{1},
					})
					v.put(h, &dyetracev1.Injected{Index: []uint32{last}, AtNs: []uint64{1}, Failures: []*dyetracev1.InjectFailure{{Index: last, Reason: "a guess"}}})
				}
			}
		})
		if len(all) != 12 || c.probes < 300 {
			t.Errorf("%d verdicts and %d probes, want the first verdict on 12 pairs and probes until the end", len(all), c.probes)
		}
	})
}

// TestContinuousInfers has all that hv1 sends to hv2 be lost for a while, or all that leaves their rack or
// comes there: a watcher is told what the pairs have in common, after their verdicts, and when they have
// nothing in common any more.
func TestContinuousInfers(t *testing.T) {
	t.Parallel()
	inRack := func(host string) bool { return host == "hv1" || host == "hv2" }
	for _, tt := range []struct {
		want string
		lost func(from, to string) bool
	}{
		{"the tunnel hv1 → hv2 for network blue: 8 pairs fail of 8", func(from, to string) bool { return from == "hv1" && to == "hv2" }},
		{"rack r1 (hv1, hv2): 32 pairs fail of 32", func(from, to string) bool { return inRack(from) != inRack(to) }},
	} {
		t.Run(tt.want, func(t *testing.T) {
			t.Parallel()
			testContinuousInfers(t, tt.want, tt.lost)
		})
	}
}

func testContinuousInfers(t *testing.T, want string, lost func(from, to string) bool) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 8))
		w.passes = true
		f := newFeed(&dyetracev1.Run{Counts: &dyetracev1.Counts{}, State: dyetracev1.RunState_RUN_STATE_RUNNING}, nil)
		f.continuous()
		var said []string
		faulty := 0
		ctx, stop := context.WithCancel(t.Context())
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			_ = f.watch(ctx, func(m *dyetracev1.WatchRunResponse) error {
				if p := m.GetPair(); p != nil && p.Verdict == dyetracev1.Verdict_VERDICT_FAULTY {
					faulty++
				}
				if r := m.GetRun(); r != nil {
					text := fmt.Sprintf("%d findings", len(r.Findings))
					if len(r.Findings) == 1 {
						text = fmt.Sprintf("%s of %d", r.Findings[0].Summary, faulty)
					}
					said = append(said, text)
				}
				return nil
			})
		}()
		watchTownIn(t, w, f, testConfig, &dyetracev1.ProbeOptions{}, 2*time.Minute, func() {
			time.Sleep(20 * time.Second)
			w.change(func(w *town) {
				w.lost = func(_ string, p *plan.Path, point int) bool {
					return point > 0 && lost(p.Points[point-1].Host, p.Points[point].Host)
				}
			})
			time.Sleep(20 * time.Second)
			w.change(func(w *town) { w.lost = nil })
		})
		stop()
		<-watched
		if n := len(said); n < 3 || said[0] != "0 findings" || !slices.Contains(said, want) || said[n-1] != "0 findings" {
			t.Errorf("told %q, want nothing, in the end %q, and nothing again", said, want)
		}
	})
}

// TestContinuousAgentGone has an agent go, and come back.
func TestContinuousAgentGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		whole := site(t, 4)
		w := newTown(t, whole)
		without := siteOf(t, 4, func(h *inventory.Host) { h.Connected = h.Name != "hv2" })
		all, f, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, time.Minute, func() {
			time.Sleep(10 * time.Second)
			w.leave("hv2", without)
			time.Sleep(20 * time.Second)
			w.change(func(w *town) { delete(w.gone, "hv2"); w.snap = siteOf(t, 4, nil) })
		})
		counts := map[string]int{}
		for _, a := range all[12:] {
			counts[strings.ToLower(strings.TrimPrefix(a.r.Verdict.String(), "VERDICT_"))]++
			touches := a.r.Src.Name == "i1" || a.r.Dst.Name == "i1"
			if !touches || a.r.Verdict == dyetracev1.Verdict_VERDICT_FAULTY {
				t.Errorf("%s → %s is %v: %s", a.r.Src.Name, a.r.Dst.Name, a.r.Verdict, a.r.Cause)
			}
			if a.r.Verdict == dyetracev1.Verdict_VERDICT_UNKNOWN && (a.at < 10*time.Second || a.at > 12*time.Second) ||
				a.r.Verdict == dyetracev1.Verdict_VERDICT_HEALTHY && (a.at < 30*time.Second || a.at > 32*time.Second) {
				t.Errorf("%v at %v", a.r.Verdict, a.at)
			}
		}
		if counts["unknown"] != 6 || counts["healthy"] != 6 || len(counts) != 2 {
			t.Errorf("changes %v, want six pairs unknown and healthy again", counts)
		}
		if p := f.since(0); p.run.Counts.Healthy != 12 {
			t.Errorf("at the end: %v", p.run.Counts)
		}
	})
}

// TestContinuousLoss has all that hv1 sends to hv2 lose four in a hundred; the pairs that pass there
// are found together, by one alarm, and no others are.
func TestContinuousLoss(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 16))
		rng := rand.New(rand.NewPCG(7, 7))
		w.lost = func(_ string, p *plan.Path, point int) bool {
			pt := &p.Points[point]
			return point > 0 && p.Points[point-1].Host == "hv1" && pt.Host == "hv2" && rng.IntN(25) == 0
		}
		cfg := testConfig
		cfg.PerInstanceRate, cfg.PerInstanceBurst = 400, 400
		began := time.Now()
		all, f, c := watchTown(t, w, cfg, &dyetracev1.ProbeOptions{}, 6*time.Second, func() {})
		faulty, since := map[string]bool{}, map[time.Time]int{}
		for _, a := range all {
			if a.r.Verdict == dyetracev1.Verdict_VERDICT_HEALTHY {
				continue
			}
			if pair := a.r.Src.Name + " " + a.r.Dst.Name; !faulty[pair] {
				faulty[pair] = true
				since[a.r.Since.AsTime()]++
			}
			if s := a.r.Segment; s.GetFrom().GetHost() != "hv1" || s.GetTo().GetHost() != "hv2" || a.r.CauseKind != dyetracev1.CauseKind_CAUSE_KIND_LOSS {
				t.Errorf("%s → %s: %v, %s", a.r.Src.Name, a.r.Dst.Name, a.r.Verdict, a.r.Cause)
			}
		}
		// A pair that is being examined is told of afterwards, and each probe that was lost there has its patience first: by
		// chance that is after the end.
		together := 0
		for at, n := range since {
			if together = max(together, n); n >= 16 && at.Sub(began) > 4*time.Second {
				t.Errorf("%d found after %v", n, at.Sub(began))
			}
		}
		if together < 28 {
			t.Errorf("%d pairs are found together: %v", together, since)
		}
		// Four instances on either host, both orders.
		if len(faulty) > 32 {
			t.Errorf("%d pairs lose, want the 32 between hv1 and hv2", len(faulty))
		}
		tunnel := c.pools.byKey["tunnel hv1 hv2"]
		if !tunnel.guard.Alarm {
			t.Errorf("the tunnel's guard: %+v", tunnel.guard)
		}
		for key, p := range c.pools.byKey {
			if p.guard.Alarm && key != "tunnel hv1 hv2" && !strings.HasPrefix(key, "out ") && !strings.HasPrefix(key, "in ") {
				t.Errorf("%s raises the alarm: %+v", key, p.guard)
			}
		}
		p := f.since(0)
		t.Logf("%d probes; %v", p.run.Probes, p.run.Losses)
	})
}

// TestContinuousSlow has packets take long for a while: nobody is accused. What is lost afterwards is found as ever:
// a probe of the patrol that arrived late ended nothing.
func TestContinuousSlow(t *testing.T) {
	t.Parallel()
	for _, late := range []time.Duration{40 * time.Millisecond, 130 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, site(t, 4))
			const broke = 30 * time.Second
			all, _, _ := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 40*time.Second, func() {
				time.Sleep(5 * time.Second)
				w.change(func(w *town) { w.late = late })
				time.Sleep(15 * time.Second)
				w.change(func(w *town) { w.late = 0 })
				time.Sleep(10 * time.Second)
				w.change(func(w *town) {
					w.lost = func(_ string, p *plan.Path, point int) bool {
						return p.Points[point].Direction == plan.Forward && p.Points[point].Host == "hv2"
					}
				})
			})
			accused := map[string]bool{}
			for _, a := range all {
				if a.r.GetVerdict() != faulty {
					continue
				}
				if a.at < broke {
					t.Errorf("late by %v: %v: %s → %s: %s", late, a.at, a.r.Src.Name, a.r.Dst.Name, a.r.Cause)
				}
				accused[a.r.Src.Name+" "+a.r.Dst.Name] = true
			}
			if !accused["i0 i1"] || !accused["i2 i1"] || !accused["i3 i1"] {
				t.Errorf("late by %v, then lost: told of %v; want all that goes to i1", late, accused)
			}
		})
	}
}

// TestContinuousQuiet has a thousandth of all packets lost, which is allowed: nothing is told.
func TestContinuousQuiet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 8))
		rng := rand.New(rand.NewPCG(8, 8))
		w.lost = func(string, *plan.Path, int) bool { return rng.IntN(8000) == 0 } // at each of eight points
		cfg := testConfig
		cfg.PerInstanceRate, cfg.PerInstanceBurst = 200, 200
		all, _, c := watchTown(t, w, cfg, &dyetracev1.ProbeOptions{}, time.Minute, func() {})
		for _, a := range all[56:] {
			t.Errorf("%v: %s → %s: %v: %s", a.at, a.r.Src.Name, a.r.Dst.Name, a.r.Verdict, a.r.Cause)
		}
		if c.probes < 20_000 {
			t.Errorf("%d probes: too few to mean something", c.probes)
		}
	})
}

// TestContinuousRife has a hundredth of all probes lost, which is too much, while hosts say of each that is lost
// that flows drop it: nothing is told but that much is lost.
func TestContinuousRife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 8))
		w.auto = true
		rng := rand.New(rand.NewPCG(9, 9))
		lost := 0
		w.lose = func(string, stain.Scheme, int) bool {
			is := rng.IntN(100) == 0
			if is {
				lost++
			}
			return is
		}
		cfg := testConfig
		cfg.PerInstanceRate, cfg.PerInstanceBurst = 200, 200
		all, _, _ := watchTown(t, w, cfg, &dyetracev1.ProbeOptions{}, time.Minute, func() {})
		for _, a := range all {
			if a.r.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY && a.r.GetCauseKind() != dyetracev1.CauseKind_CAUSE_KIND_LOSS {
				t.Errorf("%v: %s → %s: %v: %s", a.at, a.r.Src.Name, a.r.Dst.Name, a.r.Verdict, a.r.Cause)
			}
		}
		if lost < 250 {
			t.Errorf("%d probes were lost: too few to mean something", lost)
		}
	})
}

// TestContinuousRate has a rate that is asked for be kept to.
func TestContinuousRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 4))
		watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{Rate: 2}, time.Minute, func() {})
		if most := 12 + 60*4 + 16; w.sent > most || w.sent < most/2 {
			t.Errorf("%d probes in a minute, want no more than %d", w.sent, most)
		}
	})
}

// TestPatrolsChange has the next patrol take over, with a key of its own, before the numbers of the
// last are used up.
func TestPatrolsChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 2))
		all, _, c := watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 2*patrolAge+time.Minute, func() {})
		if len(all) != 2 {
			t.Errorf("told %d verdicts, want two", len(all))
		}
		keys := map[stain.Key]bool{}
		for _, v := range w.runs {
			keys[v.spec.Key] = true
		}
		if len(keys) != w.begun || w.begun != 1+3 {
			t.Errorf("%d runs of agents with %d keys, want an examination and three patrols", w.begun, len(keys))
		}
		if n := len(c.patrol.x.ledger.slots); n > 100 {
			t.Errorf("%d samples are kept", n)
		}
	})
}

// TestFeedReplaces has watchers of a continuous run that are too slow.
func TestFeedReplaces(t *testing.T) {
	t.Parallel()
	f := newFeed(&dyetracev1.Run{Counts: &dyetracev1.Counts{}}, nil)
	f.continuous()
	pair := func(name string, v dyetracev1.Verdict) *dyetracev1.PairResult {
		return &dyetracev1.PairResult{Src: &dyetracev1.InstanceRef{Name: name}, Dst: &dyetracev1.InstanceRef{}, Verdict: v}
	}
	f.replace([]*dyetracev1.PairResult{pair("a", dyetracev1.Verdict_VERDICT_HEALTHY), pair("b", dyetracev1.Verdict_VERDICT_HEALTHY)})
	first := f.since(0)
	if len(first.results) != 2 || first.next != 2 || first.missed != 0 {
		t.Fatalf("first page: %+v", first)
	}
	f.replace([]*dyetracev1.PairResult{pair("a", dyetracev1.Verdict_VERDICT_FAULTY)})
	if p := f.since(first.next); len(p.results) != 1 || p.run.Counts.Faulty != 1 || p.run.Counts.Healthy != 1 {
		t.Errorf("second page: %+v", p)
	}
	for range 4 * keptVerdicts {
		f.replace([]*dyetracev1.PairResult{pair("b", dyetracev1.Verdict_VERDICT_UNKNOWN)})
	}
	p := f.since(first.next)
	if p.missed == 0 || len(p.results) != 2 || p.next != 3+4*keptVerdicts || len(f.results) > 3*keptVerdicts {
		t.Errorf("a page long after: %d missed, %d results, next %d, %d kept", p.missed, len(p.results), p.next, len(f.results))
	}
	if p.run.Counts.Faulty != 1 || p.run.Counts.Unknown != 1 || p.run.Counts.Healthy != 0 {
		t.Errorf("counts %v", p.run.Counts)
	}
}
