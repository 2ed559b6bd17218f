package agent

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

const (
	tcp        = dyetracev1.Scheme_SCHEME_TCP
	icmp       = dyetracev1.Scheme_SCHEME_ICMP
	toInstance = dyetracev1.PointKind_POINT_KIND_TO_INSTANCE
)

// TestNoTouch sends probes at a guest that must not see any: a capture in the guest's
// namespace has none of them, nor what withdraws them, and to-instance has all.
func TestNoTouch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		scheme  dyetracev1.Scheme
		ipv6    bool
		probes  uint32
		packets uint64 // a probe, withdrawal included
	}{
		{name: "tcp over IPv4", scheme: tcp, probes: 10_000, packets: 2},
		{name: "tcp over IPv6", scheme: tcp, ipv6: true, probes: 500, packets: 2},
		{name: "icmp over IPv4", scheme: icmp, probes: 500, packets: 1},
		{name: "icmp over IPv6", scheme: icmp, ipv6: true, probes: 500, packets: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			h.begin(1, tt.probes+1, time.Minute)
			frames := h.capture()
			dst := h.guests[1].ip
			if tt.ipv6 {
				dst = h.guests[1].ip6
			}
			before := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge)
			index, column := columns(dst, 0, tt.probes)
			if said := h.arm(&dyetracev1.Arm{
				Run: 1, Withhold: index, WithholdDst: column, WithholdMs: 60_000, WithholdAt: []*dyetracev1.PortRef{h.port(1)},
			}); said != "" {
				t.Fatal(said)
			}
			h.inject(1, tt.scheme, tt.ipv6, 0, tt.probes)
			h.await("all probes at to-instance, and their withdrawal", func() bool {
				n, _ := h.seen(1, toInstance, tt.scheme)
				stats, err := h.a.hooks.taps.sampler.Stats()
				return err == nil && n == int(tt.probes) && stats.Withheld >= uint64(tt.probes)*tt.packets && h.settled()
			})
			// One that nobody withholds comes after all of them.
			h.inject(1, tt.scheme, tt.ipv6, tt.probes, tt.probes+1)
			want := h.a.runs.get(1).tokens.At(tt.probes)
			h.wantFirst(frames, want)

			if n, samples := h.seen(1, toInstance, tt.scheme); samples != n {
				t.Errorf("%d samples of %d probes", samples, n)
			}
			if stats, err := h.a.hooks.taps.sampler.Stats(); err != nil || stats.Withheld != uint64(tt.probes)*tt.packets {
				t.Errorf("withheld %d packets, %v; want %d of %d probes", stats.Withheld, err, uint64(tt.probes)*tt.packets, tt.probes)
			}
			after := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge)
			if !after.Live || after.Epoch != before.Epoch || after.Lost != before.Lost {
				t.Errorf("the hook was %v, is %v", before, after)
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			if len(h.failed) > 0 {
				t.Errorf("not sent: %s", h.failed[0])
			}
		})
	}
}

// settled tells whether no probe is left to be withdrawn.
func (h *host) settled() bool {
	h.a.open.mu.Lock()
	defer h.a.open.mu.Unlock()
	return len(h.a.open.probes) == 0
}

// wantFirst wants the first stained packet of a capture to be of this token.
func (h *host) wantFirst(frames <-chan []byte, want uint32) {
	h.t.Helper()
	timeout := time.After(deadline)
	for {
		select {
		case f := <-frames:
			token, ok := stainedToken(f)
			if !ok {
				continue // ARP, neighbour discovery, the guest's own
			}
			if token != want {
				h.t.Errorf("the guest saw %x, which was withheld", f)
			}
			return
		case <-timeout:
			h.t.Fatal("the guest did not see the probe that was not withheld")
		}
	}
}

// TestArmRefuses wants nothing put in place where not all can be.
func TestArmRefuses(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.begin(1, 1<<17, time.Minute)
	vsctl(t, "add-port", h.bridge, "dhcp", "--", "set", "interface", "dhcp", "type=internal", "external_ids:iface-id=dhcp")
	t.Cleanup(func() { vsctl(t, "--if-exists", "del-port", h.bridge, "dhcp") })
	h.await("the port", func() bool {
		found, _ := h.a.sw.Snapshot().Bridge(h.bridge)
		p, _ := found.Port("dhcp")
		return p.OFPort != 0
	})
	dst := h.guests[1].ip
	good := func() *dyetracev1.Arm {
		index, column := columns(dst, 0, 3)
		return &dyetracev1.Arm{
			Run: 1, Answers: []*dyetracev1.PortRef{h.port(1)},
			Withhold: index, WithholdDst: column, WithholdMs: 1000, WithholdAt: []*dyetracev1.PortRef{h.port(1)},
		}
	}
	for _, tt := range []struct {
		spoil func(*dyetracev1.Arm)
		want  string
	}{
		{func(r *dyetracev1.Arm) { r.Run = 7 }, "run 7 is not known"},
		{func(r *dyetracev1.Arm) { r.WithholdDst = r.WithholdDst[:47] }, "withhold_dst: 47 bytes for 3 probes (want 48)"},
		{func(r *dyetracev1.Arm) { r.WithholdDst = append(r.WithholdDst[:32], make([]byte, 16)...) }, "withhold_dst[2]: ::"},
		{func(r *dyetracev1.Arm) { r.Withhold = make([]uint32, maxInject+1) }, "withhold: 65537 probes"},
		{func(r *dyetracev1.Arm) { r.Withhold[1] = 1 << 17 }, "withhold[1]: 131072 is no probe of run 1"},
		{func(r *dyetracev1.Arm) { r.WithholdMs = 0 }, "withhold_ms: 0 (want 1 to 3600000)"},
		{func(r *dyetracev1.Arm) { r.WithholdMs = 3_600_001 }, "withhold_ms: 3600001"},
		{func(r *dyetracev1.Arm) { r.Answers[0].Port = "tap-x" }, "answers[0]: port tap-x is not on bridge"},
		{func(r *dyetracev1.Arm) { r.Answers[0].Bridge = "br-x" }, "answers[0]: bridge br-x is not on host hv1"},
		{func(r *dyetracev1.Arm) { r.Answers[0].Port = h.bridge }, "is no instance's"},
		{func(r *dyetracev1.Arm) { r.Expect = []string{h.bridge, "br-x"} }, "expect[1]: bridge br-x is not on host hv1"},
		{func(r *dyetracev1.Arm) { r.WithholdAt[0].Port = "tap-x" }, "withhold_at[0]: port tap-x is not on bridge"},
		{func(r *dyetracev1.Arm) { r.WithholdAt[0].Port = "dhcp" }, "withhold_at[0]: to-instance is not sampled at port dhcp"},
		{func(r *dyetracev1.Arm) { r.WithholdAt[0].Port = "dhcp" }, "a port of type internal"},
	} {
		r := good()
		tt.spoil(r)
		if said := h.arm(r); !strings.Contains(said, tt.want) {
			t.Errorf("Armed: %q, want %q", said, tt.want)
		}
		h.wantArmed(0, 0)
	}
	if said := h.arm(good()); said != "" {
		t.Error(said)
	}
	h.wantArmed(1, 3)
	h.wantMetrics(map[string]float64{
		"dyetrace_agent_armed_ports": 1, "dyetrace_agent_withheld_probes": 3, "dyetrace_agent_arms_refused_total": 14,
	})

	h.a.hooks.taps.close()
	r := good()
	r.WithholdAt = nil
	if said := h.arm(r); !strings.Contains(said, "withhold: to-instance is not sampled: "+noSampler) {
		t.Errorf("without a sampler: %q", said)
	}
	h.wantArmed(1, 0) // of the request before
}

// wantArmed wants so many armed ports on the bridge, and so many probes withheld.
func (h *host) wantArmed(ports, probes int) {
	h.t.Helper()
	if n := h.a.hooks.countAnswers(); n != ports {
		h.t.Errorf("%d ports armed, want %d", n, ports)
	}
	if n := h.a.hooks.taps.countWithheld(); n != probes {
		h.t.Errorf("%d probes withheld, want %d", n, probes)
	}
}

func (h *host) wantMetrics(want map[string]float64) {
	h.t.Helper()
	families, err := h.reg.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		if _, ok := want[f.GetName()]; ok {
			got[f.GetName()] = f.Metric[0].GetGauge().GetValue() + f.Metric[0].GetCounter().GetValue()
		}
	}
	if !maps.Equal(got, want) {
		h.t.Errorf("metrics %v, want %v", got, want)
	}
}

// TestArmFull fills the table of withheld probes.
func TestArmFull(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.begin(1, maxInject, time.Minute)
	request := func(to byte, n uint32, ms uint32) *dyetracev1.Arm {
		index, column := columns(netip.AddrFrom4([4]byte{10, 0, 1, to}), 0, n)
		return &dyetracev1.Arm{Run: 1, Answers: []*dyetracev1.PortRef{h.port(1)}, Withhold: index, WithholdDst: column, WithholdMs: ms}
	}
	for to := range byte(maxWithheld / maxInject) {
		if said := h.arm(request(to, maxInject, 3_600_000)); said != "" {
			t.Fatal(said)
		}
	}
	h.wantArmed(1, maxWithheld)
	if said := h.arm(request(200, 2, 1000)); !strings.Contains(said, "no room for more withheld probes") {
		t.Errorf("one too many: %q", said)
	}
	h.wantArmed(1, maxWithheld)
	// Renewed, they need no room; once over, they make some.
	if said := h.arm(request(0, 2, 1)); said != "" {
		t.Error(said)
	}
	h.await("room", func() bool { return h.arm(request(200, 2, 1000)) == "" })
	h.wantArmed(1, maxWithheld)
}

// TestWithheldUntilTheEnd wants a run's end to give its probes up, later.
func TestWithheldUntilTheEnd(t *testing.T) {
	t.Parallel()
	taps := newTaps(testLog(t))
	taps.open(stain.Default())
	defer taps.close()
	runs := runTable{}
	for _, run := range []uint64{1, 2} {
		if err := runs.add(prepare(run, 4), time.Now()); err != nil {
			t.Fatal(err)
		}
		index, column := columns(netip.MustParseAddr("10.0.0.2"), 0, 4)
		probes, err := withheldProbes(runs.get(run), &dyetracev1.Arm{Withhold: index, WithholdDst: column})
		if err != nil {
			t.Fatal(err)
		}
		if err := taps.withhold(run, 1000, time.Minute, probes); err != nil {
			t.Fatal(err)
		}
	}
	second := int64(time.Second)
	taps.finish(1, 2000)
	for _, tt := range []struct {
		now  int64
		want int
	}{{2000, 8}, {9 * second, 8}, {11 * second, 4}, {59 * second, 4}, {61 * second, 0}} {
		taps.mu.Lock()
		taps.lapse(tt.now, 0)
		taps.mu.Unlock()
		if n := taps.countWithheld(); n != tt.want {
			t.Errorf("%v after the start %d are withheld, want %d", time.Duration(tt.now), n, tt.want)
		}
	}
}

// TestArmExpect has a bridge expect the replies to echoes, for as long as a run wants it.
func TestArmExpect(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	b := h.a.hooks.get(h.bridge)
	before := b.state.Load()
	want := func(when string, expect bool) {
		t.Helper()
		s := b.state.Load()
		have, err := h.a.sw.DumpOurs(t.Context(), h.bridge)
		hook := b.hook
		hook.Expect = expect
		if s.expect != expect || err != nil || !installed(have, hook.Flows()) {
			t.Errorf("%s: expects %v, the switch has %v, %v (want %v)", when, s.expect, have, err, expect)
		}
		if s.epoch != before.epoch || s.gaps != before.gaps {
			t.Errorf("%s: epoch %d, %d gaps; were %d, %d", when, s.epoch, s.gaps, before.epoch, before.gaps)
		}
	}
	h.begin(1, 1, time.Minute)
	want("at first", false)
	if said := h.arm(&dyetracev1.Arm{Run: 1, Expect: []string{h.bridge}}); said != "" {
		t.Fatal(said)
	}
	want("armed", true)
	h.a.finish(t.Context(), 1)
	want("after the run", false)
}

// TestRegained has somebody take the program off a port, and an Arm put it back: what left by the
// port meanwhile was not sampled, so no audit may attest that it was.
func TestRegained(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.begin(1, 2, time.Minute)
	before := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge)
	device, err := net.InterfaceByName(h.guests[1].tap)
	if err != nil {
		t.Fatal(err)
	}
	programs := func() *link.QueryResult {
		r, err := link.QueryPrograms(link.QueryOptions{Target: device.Index, Attach: ebpf.AttachTCXEgress})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	id, ok := programs().Programs[0].LinkID()
	if !ok {
		t.Fatal("the program is not attached by a link")
	}
	ours, err := link.NewFromID(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := ours.Detach(); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	if n := len(programs().Programs); n != 0 {
		t.Fatalf("%d programs are left on the port", n)
	}
	index, column := columns(h.guests[1].ip, 0, 1)
	if said := h.arm(&dyetracev1.Arm{
		Run: 1, Withhold: index, WithholdDst: column, WithholdMs: 1000, WithholdAt: []*dyetracev1.PortRef{h.port(1)},
	}); said != "" {
		t.Fatal(said)
	}
	if n := len(programs().Programs); n != 1 {
		t.Errorf("%d programs on the port after Armed (want 1)", n)
	}
	after := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge)
	if !after.Live || after.Epoch <= before.Epoch {
		t.Errorf("window %v, after %v (want a higher epoch)", after, before)
	}
	if again := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge); again.Epoch != after.Epoch {
		t.Errorf("epoch %d rose to %d by itself", after.Epoch, again.Epoch)
	}
}

// TestArmAnswers follows the ports that runs want armed.
func TestArmAnswers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	b := h.a.hooks.get(h.bridge)
	before := b.state.Load()
	ofport := func(i int) uint16 {
		found, _ := h.a.sw.Snapshot().Bridge(h.bridge)
		p, _ := found.Port(h.guests[i].tap)
		return p.OFPort
	}
	arm := func(run uint64, i int) {
		t.Helper()
		if said := h.arm(&dyetracev1.Arm{Run: run, Answers: []*dyetracev1.PortRef{h.port(i)}}); said != "" {
			t.Fatal(said)
		}
	}
	want := func(when string, ports ...uint16) {
		t.Helper()
		slices.Sort(ports)
		s := b.state.Load()
		if !slices.Equal(s.answers, ports) {
			t.Errorf("%s: armed %v, want %v", when, s.answers, ports)
		}
		have, err := h.a.sw.DumpOurs(t.Context(), h.bridge)
		hook := b.hook
		hook.Answers = ports
		if err != nil || !installed(have, hook.Flows()) {
			t.Errorf("%s: the switch has %v, %v; want %v", when, have, err, hook.Flows())
		}
		if s.epoch != before.epoch || s.gaps != before.gaps {
			t.Errorf("%s: epoch %d, %d gaps; were %d, %d", when, s.epoch, s.gaps, before.epoch, before.gaps)
		}
	}
	for run := range uint64(2) {
		h.begin(run, 1, time.Minute)
	}
	want("at first")
	arm(0, 0)
	want("one", ofport(0))
	arm(1, 0)
	arm(1, 1)
	want("two", ofport(0), ofport(1))
	h.a.finish(t.Context(), 0)
	want("after one run", ofport(0), ofport(1))
	h.a.finish(t.Context(), 1)
	want("after both runs")

	// A run that nobody finishes; it must not be over before it is armed.
	h.begin(2, 1, 5*time.Second)
	arm(2, 0)
	h.await("its expiry", func() bool {
		h.a.hooks.reconcile(t.Context())
		return len(b.state.Load().answers) == 0
	})
	want("after a run expired")

	// The port goes, and comes back by another number.
	h.begin(3, 1, time.Minute)
	arm(3, 1)
	old := ofport(1)
	vsctl(t, "del-port", h.bridge, h.guests[1].tap)
	h.await("the port's end", func() bool { return ofport(1) == 0 })
	vsctl(t, "add-port", h.bridge, h.guests[1].tap, "--", "set", "interface", h.guests[1].tap, "ofport_request=77", "external_ids:iface-id=back")
	h.await("its return", func() bool { return ofport(1) == 77 })
	h.a.hooks.reconcile(t.Context())
	if s := b.state.Load(); old == 77 || !slices.Equal(s.answers, []uint16{77}) {
		t.Errorf("armed %v, want 77, which was %d", s.answers, old)
	}
}

func TestArmIsBounded(t *testing.T) {
	t.Parallel()
	var runs runTable
	now := time.Now()
	for run := range uint64(2) {
		if err := runs.add(prepare(run, 1), now); err != nil {
			t.Fatal(err)
		}
	}
	var ports []portKey
	for i := range maxAnswers {
		ports = append(ports, portKey{"br-int", fmt.Sprintf("tap%03d", i)})
	}
	if err := runs.arm(runs.get(0), ports, now); err != nil {
		t.Fatal(err)
	}
	if err := runs.arm(runs.get(1), ports, now); err != nil {
		t.Errorf("the same by another run: %v", err)
	}
	if err := runs.arm(runs.get(0), []portKey{{"br-int", echoes}}, now); err != nil {
		t.Errorf("replies to echoes, which are no port: %v", err)
	}
	runs.disarm(runs.get(0), []portKey{{"br-int", echoes}})
	more := []portKey{{"br-ex", "tap0"}, {"br-int", "more"}}
	if err := runs.arm(runs.get(1), more, now); err == nil || !strings.Contains(err.Error(), "65 ports of bridge br-int") {
		t.Errorf("one too many: %v", err)
	}
	if got := runs.answers("br-ex", now); len(got) != 0 {
		t.Errorf("armed although it was refused: %v", got)
	}
	runs.disarm(runs.get(0), ports)
	if got := runs.answers("br-int", now); len(got) != maxAnswers {
		t.Errorf("%d ports armed (want %d, by the other run)", len(got), maxAnswers)
	}
	if !runs.remove(1) || runs.remove(0) {
		t.Error("run 1 had armed ports, run 0 none")
	}
	if got := runs.answers("br-int", now); len(got) != 0 {
		t.Errorf("armed by nobody: %v", got)
	}
}

// renewals counts how often the leases of a real switch's flows are renewed.
type renewals struct {
	Switch
	n int
}

func (r *renewals) Renew(ctx context.Context, bridge string, ours []flows.Flow) error {
	r.n++
	return r.Switch.Renew(ctx, bridge, ours)
}

// TestRearmingKeepsTheLease changes answers more often than leases are renewed: that
// must not put the renewal of the other flows off.
func TestRearmingKeepsTheLease(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	b := h.a.hooks.get(h.bridge)
	found, _ := h.a.sw.Snapshot().Bridge(h.bridge)
	counted := &renewals{Switch: b.sw}
	b.sw = counted
	start := time.Now()
	const steps = 20
	for i := range steps {
		now := start.Add(time.Duration(i) * b.lease / 4)
		b.armed = func(string, time.Time) []string { return []string{h.guests[i%2].tap} }
		b.mu.Lock()
		b.reconcile(t.Context(), found, true, now)
		b.mu.Unlock()
	}
	// Due after a third of the lease, so at every other step.
	if counted.n < steps/2-1 {
		t.Errorf("renewed %d times in %d quarters of a lease", counted.n, steps)
	}
}

// TestRearmingReadsNothing: on a bridge that is watched, what was read before is enough to expect other answers, unless
// something was told since that may be in their way.
func TestRearmingReadsNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	b, sw := h.readBy()
	h.await("the watch", func() bool { return b.watched.Load() != nil })
	h.attest()
	arm := func(run uint64, guest int, want string, reads int32) {
		t.Helper()
		h.begin(run, 1, time.Minute)
		w := b.watched.Load()
		sw.all.Store(0)
		said := h.arm(&dyetracev1.Arm{Run: run, Answers: []*dyetracev1.PortRef{h.port(guest)}})
		if (said == "") != (want == "") || !strings.Contains(said, want) {
			t.Errorf("run %d, guest %d: said %q, want %q", run, guest, said, want)
		}
		n := sw.all.Load()
		h.a.finish(t.Context(), run)
		after := sw.all.Load()
		if w == nil || w.Barrier(t.Context()) != nil || b.watched.Load() != w {
			// The switch ended it. What was changed before another one is not told, so all is read.
			t.Logf("run %d, guest %d: the watch ended meanwhile; reads are not counted", run, guest)
			h.await("another watch", func() bool { return b.watched.Load() != nil })
			h.attest()
			return
		}
		if n != reads {
			t.Errorf("run %d, guest %d: all flows were read %d times, want %d", run, guest, n, reads)
		}
		if want == "" && after != reads {
			t.Errorf("run %d, guest %d: all flows were read again to disarm it", run, guest)
		}
	}
	arm(1, 0, "", 0)
	arm(2, 1, "", 0)
	snap, _ := h.a.sw.Snapshot().Bridge(h.bridge)
	port, _ := snap.Port(h.guests[1].tap)
	rival := fmt.Sprintf("table=0,priority=65534,tcp,in_port=%d,nw_tos=4,tp_src=11,tp_dst=11,tcp_flags=+syn+ack", port.OFPort)
	before := h.attest()
	h.ofctl("add-flow", h.bridge, rival+",actions=drop")
	arm(3, 0, "", 1)                                                                 // it may be in the way of any
	arm(4, 0, "", 0)                                                                 // and is known since
	arm(5, 1, "cannot be armed: bridge "+h.bridge+": shadowed by a foreign flow", 1) // to be in the way of this one; or it was
	h.ofctl("--strict", "del-flows", h.bridge, rival)
	arm(6, 1, "", 1)
	after := h.attest()
	if !after.Live || after.Epoch != before.Epoch {
		t.Errorf("attested %v before and %v after: the hook was there all the time", before, after)
	}
	// One that comes while a run reckons with the answers is another matter.
	h.begin(7, 1, time.Minute)
	if said := h.arm(&dyetracev1.Arm{Run: 7, Answers: []*dyetracev1.PortRef{h.port(1)}}); said != "" {
		t.Fatal(said)
	}
	h.ofctl("add-flow", h.bridge, rival+",actions=drop")
	if late := h.attest(); !late.Live || late.Epoch == after.Epoch {
		t.Errorf("attested %v before and %v after answers were taken: want another epoch", after, late)
	}
	if again := h.attest(); again.Epoch != after.Epoch+1 {
		t.Errorf("attested %v after %v: the answers were taken once", again, after)
	}
}

// TestSamplerComesBack has the ring fail: to-instance is absent until it is opened
// anew, no loss is proven across that, and what was withheld still is.
func TestSamplerComesBack(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.begin(1, 2, time.Minute)
	index, column := columns(h.guests[1].ip, 0, 1)
	if said := h.arm(&dyetracev1.Arm{Run: 1, Withhold: index, WithholdDst: column, WithholdMs: 60_000, WithholdAt: []*dyetracev1.PortRef{h.port(1)}}); said != "" {
		t.Fatal(said)
	}
	taps, b := h.a.hooks.taps, h.a.hooks.get(h.bridge)
	before := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge)
	taps.fail(taps.sampler, fmt.Errorf("ring: bad record"))
	failed := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge)
	if why := b.state.Load().absent; why != "ring: bad record" || failed.Epoch <= before.Epoch || failed.Lost <= before.Lost {
		t.Errorf("absent because of %q, window %v, was %v", why, failed, before)
	}
	h.await("another sampler", func() bool {
		h.a.hooks.reconcile(t.Context())
		return b.state.Load().absent == ""
	})
	if back := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge); back.Epoch <= failed.Epoch || !back.Live {
		t.Errorf("window %v after the sampler came back, %v before", back, failed)
	}
	frames := h.capture()
	h.inject(1, tcp, false, 0, 1)
	h.await("the probe", func() bool { n, _ := h.seen(1, toInstance, tcp); return n == 1 })
	h.inject(1, tcp, false, 1, 2)
	h.wantFirst(frames, h.a.runs.get(1).tokens.At(1))
}
