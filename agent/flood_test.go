package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/dataplane/packetio"
	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/stain"
)

// A million copies that are no samples of a run under way, forged, replayed, of a run that is over,
// and of one that is not this agent's, are rejected and counted, each one; but for as many as a
// guess is right, which are for the controller to reject (plugin/run: addresses, point).
func TestForgedSamples(t *testing.T) {
	t.Parallel()
	h := prepareHost(t)
	const each, total = 250_000, 1000
	h.begin(1, total, deadline)
	h.begin(2, total, deadline)
	over := h.a.runs.get(2).tokens
	h.a.runs.remove(2)
	stranger := stain.NewTokens(stain.Key{9, 9, 9}, total)
	random := rand.New(rand.NewPCG(1, 2))
	b := newBridge(h.bridge, h.a.sw, h.a.hooks.taps, stain.Default(), minLease, 0, testLog(t))
	collect := newCollector(h.a)
	frame, err := stain.Default().AppendCopy(nil, stain.Copy{
		Kind: stain.FromInstance, Scheme: stain.TCP, InPort: 1, Src: h.guests[0].ip, Dst: h.guests[1].ip, TTL: 64,
	})
	if err != nil {
		t.Fatal(err)
	}
	const sequence = 14 + 20 + 4 // the token's place in a copy over TCP and IPv4
	for _, token := range []func(i uint32) uint32{
		func(uint32) uint32 { return random.Uint32() },
		func(uint32) uint32 { return 0x5eed },
		func(i uint32) uint32 { return over.At(i % total) },
		func(i uint32) uint32 { return stranger.At(i % total) },
	} {
		for i := range uint32(each) {
			binary.BigEndian.PutUint32(frame[sequence:], token(i))
			collect.copy(b, frame, monotonic())
		}
	}
	samples, rejected := h.a.sampleCount.Load(), h.a.rejectedCount.Load()
	if samples+rejected != 4*each || samples > 8 { // a guess is right once in 2³²/total
		t.Errorf("of %d copies, %d were rejected and %d taken for samples", 4*each, rejected, samples)
	}
}

// A guest that sends stained packets as fast as they get through loses none of its own, and takes
// no verdict of others with it: of each probe meanwhile the sample is there, or the agent says
// that some got lost.
func TestFlood(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	flood := newFlood(t, h)
	out, in := flood.sockets(t, h)
	const probes = 200
	h.begin(1, probes, 10*deadline)
	before := windowOf(h.a.hooks.audit(t.Context(), false), h.bridge)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := uint32(0); i < probes; i += 10 {
			h.inject(1, dyetracev1.Scheme_SCHEME_ICMP, true, i, i+10)
		}
	}()
	begun, sent := time.Now(), 0
	for probing := true; probing || time.Since(begun) < 2*time.Second; {
		select {
		case <-done:
			probing = false
		default:
		}
		flood.pass(t, out, in, 128)
		sent += 128
	}
	took := time.Since(begun)
	after := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge)
	h.heard()
	const kind = dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE
	n, _ := h.seen(1, kind, dyetracev1.Scheme_SCHEME_ICMP)
	least, _ := unread(t, before, after, kind)
	t.Logf("%d stained packets of a tenant's in %v, %d rejected; of %d probes %d were seen; lost %d, unread at least %d",
		sent, took, h.a.rejectedCount.Load(), probes, n, after.Lost-before.Lost, least)
	h.mu.Lock()
	failed := len(h.failed)
	h.mu.Unlock()
	if n+failed < probes && after.Lost == before.Lost && least <= 0 {
		t.Errorf("%d samples of probes are missing, and nobody knows why", probes-failed-n)
	}
	if got := h.a.rejectedCount.Load(); got == 0 {
		t.Error("no copy of the flood was rejected: the test tests nothing")
	}
}

// A guest that has seen a probe, and sends it again as fast as it gets through, makes few samples of it,
// and takes none from others.
func TestReplay(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	f := newFlood(t, h)
	out, in := f.sockets(t, h)
	const probes, replayed = 100, 50_000
	h.begin(1, probes+1, 10*deadline)
	token := h.a.runs.get(1).tokens.At(probes)
	f.token = func() uint32 { return token }
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := uint32(0); i < probes; i += 10 {
			h.inject(1, dyetracev1.Scheme_SCHEME_ICMP, true, i, i+10)
		}
	}()
	before := windowOf(h.a.hooks.audit(t.Context(), false), h.bridge)
	begun := time.Now()
	for sent := 0; sent < replayed; sent += 128 {
		f.pass(t, out, in, 128)
	}
	<-done
	seconds := int(time.Since(begun)/time.Second) + 2
	for _, kind := range []dyetracev1.PointKind{dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE, dyetracev1.PointKind_POINT_KIND_TO_INSTANCE} {
		h.await(fmt.Sprintf("all probes, at %v", kind), func() bool {
			n, _ := h.seen(1, kind, dyetracev1.Scheme_SCHEME_ICMP)
			now := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge)
			h.mu.Lock()
			defer h.mu.Unlock()
			return n+len(h.failed) == probes || now.Lost > before.Lost // which is known, and no fault of the network's
		})
		_, samples := h.seen(1, kind, dyetracev1.Scheme_SCHEME_TCP)
		// Probes take its place among those seen last at most once each.
		if most := maxRepeats * (seconds + probes); samples < maxRepeats || samples > most {
			t.Errorf("%v: %d samples of a packet that came %d times in %d s (want %d to %d)", kind, samples, replayed, seconds, maxRepeats, most)
		}
	}
	if rejected := h.a.rejectedCount.Load(); rejected < replayed {
		t.Errorf("%d were rejected, of %d at two points", rejected, replayed)
	}
}

// Guests that are sent stained packets faster than the agent may read them take no more than half a processor of it, and what was
// read is sent.
func TestFloodAtTap(t *testing.T) {
	t.Parallel()
	h := newHost(t).keep()
	for run := range uint64(maxRuns) {
		h.begin(run+1, 1000, 10*deadline)
	}
	flooding := newFlood(t, h).tap(t, h)
	sampler := h.a.hooks.taps.sampler
	begun, handed, cost := time.Now(), h.a.hooks.taps.handed.Load(), time.Duration(copyCost+runCost*maxRuns)
	// A machine that has other things to do takes longer to read some.
	read, took := time.Duration(0), time.Duration(0)
	for took < time.Second || read < 4*batchSize && took < deadline {
		flooding()
		read, took = time.Duration(h.a.hooks.taps.handed.Load()-handed), time.Since(begun)
	}
	stats, err := sampler.Stats()
	t.Logf("%d of %d were read in %v, %d had no room: %v", read, stats.Received, took, stats.Lost, err)
	// The burst, what was being read when the time was up, and some.
	if most := took*6/10 + readBurst + batchSize*cost; read*cost > most {
		t.Errorf("%d were read in %v, which takes %v; want %v at the most", read, took, read*cost, most)
	}
	if stats.Lost > 0 && read < 4*batchSize {
		t.Errorf("%d are on their way to the controller after %v, while the ring was full", read, took)
	}
}

// tap returns what sends the flood once to the second guest, as the switch does.
func (f *flood) tap(t testing.TB, h *host) func() {
	t.Helper()
	dev, err := net.InterfaceByName(h.guests[1].tap)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: dev.Index}); err != nil {
		t.Fatal(err)
	}
	return func() {
		for _, frame := range f.frames {
			binary.BigEndian.PutUint32(frame[14+20+4:], f.token())
			_, _ = unix.Write(fd, frame) // a queue that is full has it dropped
		}
	}
}

// flood makes stained packets with tokens of no run, as from the first guest to the second.
type flood struct {
	frames [][]byte
	token  func() uint32
}

func newFlood(t testing.TB, h *host) *flood {
	t.Helper()
	f := &flood{token: rand.New(rand.NewPCG(3, 4)).Uint32}
	for range 128 {
		frame, err := stain.Default().AppendPacket(nil, stain.Probe{
			Scheme: stain.TCP, SrcMAC: h.guests[0].mac, DstMAC: h.guests[1].mac, Src: h.guests[0].ip, Dst: h.guests[1].ip, TTL: 64,
		})
		if err != nil {
			t.Fatal(err)
		}
		f.frames = append(f.frames, frame)
	}
	return f
}

// stain has the packets bear the stain, or the ports of it alone.
func (f *flood) stain(stained bool) {
	const tos, checksum = 14 + 1, 14 + 10
	for _, frame := range f.frames {
		sum := binary.BigEndian.Uint16(frame[checksum:]) + uint16(frame[tos])
		frame[tos] = 0
		if stained {
			frame[tos] = stain.Default().TOS
		}
		binary.BigEndian.PutUint16(frame[checksum:], sum-uint16(frame[tos]))
	}
}

// sockets are by which the first guest sends the flood, and the second receives what comes for it.
func (f *flood) sockets(t testing.TB, h *host) (out, in *packetio.Port) {
	t.Helper()
	a, b := h.guests[0], h.guests[1]
	sandbox.Within(t, a.ns, func() (err error) {
		out, err = packetio.Open("eth0", packetio.Options{})
		return err
	})
	sandbox.Within(t, b.ns, func() (err error) {
		in, err = packetio.Open("eth0", packetio.Options{RetireTimeout: time.Millisecond, Filter: []bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtType},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 5},
			bpf.LoadAbsolute{Off: 30, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(b.ip.AsSlice()), SkipFalse: 3},
			bpf.LoadAbsolute{Off: 23, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_TCP, SkipFalse: 1},
			bpf.RetConstant{Val: 1 << 18},
			bpf.RetConstant{Val: 0},
		}})
		return err
	})
	end := time.AfterFunc(10*deadline, func() { in.Close() }) // if a packet is lost
	t.Cleanup(func() {
		end.Stop()
		in.Close()
		out.Close()
	})
	return out, in
}

// pass sends so many packets, and returns when all have arrived.
func (f *flood) pass(t testing.TB, out, in *packetio.Port, n int) {
	t.Helper()
	for _, frame := range f.frames[:n] {
		binary.BigEndian.PutUint32(frame[14+20+4:], f.token())
	}
	if _, err := out.Send(f.frames[:n]); err != nil {
		t.Fatal(err)
	}
	for got := 0; got < n; {
		if err := in.Receive(func([]byte, int64) { got++ }); err != nil {
			t.Fatalf("of %d packets there came %d: %v", n, got, err)
		}
	}
}

// BenchmarkFlood is what a packet of a tenant's that bears the stain costs beside one that does not,
// when a guest sends as fast as it gets through: agent-ns of the agent's CPU time, switch-x times that
// of ovs-vswitchd; with so many runs under way, each of which a copy is tried against.
func BenchmarkFlood(b *testing.B) {
	for _, runs := range []uint64{1, 32, maxRuns} {
		b.Run(fmt.Sprintf("runs=%d", runs), func(b *testing.B) {
			h := newHost(b).keep()
			for run := range runs {
				h.begin(run+1, 1000, 10*deadline)
			}
			f := newFlood(b, h)
			out, in := f.sockets(b, h)
			spend := func(n int) (agent, vswitchd time.Duration) {
				begun, switchd := cpuOf(b, "self"), cpuOf(b, switchdPID(b))
				for sent := 0; sent < n; sent += 128 {
					f.pass(b, out, in, 128)
				}
				return cpuOf(b, "self") - begun, cpuOf(b, switchdPID(b)) - switchd
			}
			n := max(b.N, 100_000)
			f.stain(false)
			spend(10_000)
			bare, bareSwitch := spend(n)
			f.stain(true)
			spend(10_000)
			b.ResetTimer()
			stained, stainedSwitch := spend(n)
			b.ReportMetric(float64(stained-bare)/float64(n), "agent-ns/packet")
			b.ReportMetric(float64(bareSwitch)/float64(n), "switch-ns/packet")
			b.ReportMetric(float64(stainedSwitch)/float64(bareSwitch), "switch-x")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpuOf is the processor time that a process has had (proc(5), stat, fields 14 and 15).
func cpuOf(t testing.TB, pid string) time.Duration {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ
}

func switchdPID(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(ovs.DefaultRunDir + "/ovs-vswitchd.pid")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
