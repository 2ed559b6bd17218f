package agent

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/packetio"
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
	a, b := h.guests[0], h.guests[1]
	var out, in *packetio.Port
	inNamespace(t, a.ns, func() (err error) {
		out, err = packetio.Open("eth0", packetio.Options{})
		return err
	})
	defer out.Close()
	inNamespace(t, b.ns, func() (err error) {
		in, err = packetio.Open("eth0", packetio.Options{RetireTimeout: time.Millisecond, Filter: []bpf.Instruction{
			bpf.LoadExtension{Num: bpf.ExtType},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 3},
			bpf.LoadAbsolute{Off: 30, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(b.ip.AsSlice()), SkipFalse: 1},
			bpf.RetConstant{Val: 1 << 18},
			bpf.RetConstant{Val: 0},
		}})
		return err
	})
	defer in.Close()
	defer time.AfterFunc(3*deadline, func() { in.Close() }).Stop() // if one is lost
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
	flood := newFlood(t, h)
	begun, sent := time.Now(), 0
	for probing := true; probing || time.Since(begun) < 2*time.Second; {
		select {
		case <-done:
			probing = false
		default:
		}
		frames := flood.next(128)
		if _, err := out.Send(frames); err != nil {
			t.Fatal(err)
		}
		sent += len(frames)
		for got := 0; got < len(frames); {
			if err := in.Receive(func(f []byte, _ int64) {
				if _, ok := stainedToken(f); ok {
					got++
				}
			}); err != nil {
				t.Fatalf("%d packets were sent, of the last %d there came %d: %v", sent, len(frames), got, err)
			}
		}
	}
	took := time.Since(begun)
	after := windowOf(h.a.hooks.audit(t.Context(), true), h.bridge)
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

// flood makes stained packets with tokens of no run, as from the first guest to the second.
type flood struct {
	frames [][]byte
	random *rand.Rand
}

func newFlood(t testing.TB, h *host) *flood {
	t.Helper()
	f := &flood{random: rand.New(rand.NewPCG(3, 4))}
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

func (f *flood) next(n int) [][]byte {
	for _, frame := range f.frames[:n] {
		binary.BigEndian.PutUint32(frame[14+20+4:], f.random.Uint32())
	}
	return f.frames[:n]
}
