package ovs

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/packetio"
	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/stain"
)

// stage is one hooked bridge with two guests whose kernels answer, and its dye port.
type stage struct {
	a, b   guest
	inA    uint16 // OpenFlow numbers of the guests' taps
	inB    uint16
	port   *packetio.Port
	tokens *stain.Tokens
	on     *Switch
	bridge string
}

func newStage(t testing.TB, total uint32) stage {
	t.Helper()
	s := open(t)
	bridge := addBridge(t)
	st := stage{
		on: s, bridge: bridge,
		a:      addGuest(t, bridge, "fa:16:3e:00:00:01", "10.0.0.1"),
		b:      addGuest(t, bridge, "fa:16:3e:00:00:02", "10.0.0.2"),
		tokens: stain.NewTokens(stain.Key{1, 2, 3}, total),
	}
	for _, g := range []guest{st.a, st.b} {
		// A checksum that veth leaves to the hardware is never filled in by the
		// userspace datapath.
		sandbox.Command(t, "ip", "netns", "exec", g.ns, "ethtool", "-K", "eth0", "tx", "off")
	}
	up := func(p dataplane.Port) bool { return p.OFPort != 0 && p.LinkState == "up" }
	st.inA = awaitPort(t, s, bridge, st.a.tap, up).OFPort
	st.inB = awaitPort(t, s, bridge, st.b.tap, up).OFPort
	_, dye := install(t, s, bridge)
	awaitPort(t, s, bridge, dye.Name, up)
	port, err := packetio.Open(dye.Name, packetio.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := port.Close(); err != nil {
			t.Error(err)
		}
	})
	st.port = port
	// The answer needs A's MAC address, and asking for it is not what is measured.
	sandbox.Command(t, "ip", "-n", st.b.ns, "neigh", "replace", st.a.ip, "lladdr", st.a.mac, "dev", "eth0", "nud", "permanent")
	return st
}

func (st stage) frame(t testing.TB, index uint32) []byte {
	t.Helper()
	frame, err := stain.Default().AppendFrame(nil, st.inA, stain.Probe{
		Scheme: stain.TCP,
		SrcMAC: mac(st.a.mac), DstMAC: mac(st.b.mac),
		Src: netip.MustParseAddr(st.a.ip), Dst: netip.MustParseAddr(st.b.ip),
		TTL: 64, Token: st.tokens.At(index),
	})
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func (st stage) send(t testing.TB, frames [][]byte) {
	t.Helper()
	if n, err := st.port.Send(frames); err != nil {
		t.Fatalf("sent %d of %d: %v", n, len(frames), err)
	}
}

// sample is a copy and when it arrived.
type sample struct {
	stain.Copy
	index uint32
	at    int64
}

// read calls fn for every sample until it returns true; it fails the test if that
// takes too long.
func (st stage) read(t testing.TB, fn func(sample) (done bool)) {
	t.Helper()
	watchdog := time.AfterFunc(deadline, func() { st.port.Close() })
	defer watchdog.Stop()
	for done := false; !done; {
		err := st.port.Receive(func(frame []byte, at int64) {
			var s sample
			if err := stain.Default().ParseCopy(frame, &s.Copy); err != nil {
				t.Errorf("%x: %v", frame, err)
				return
			}
			index, ok := st.tokens.Index(s.Token)
			if !ok {
				t.Errorf("%+v: no token of ours", s.Copy)
				return
			}
			s.index, s.at = index, at
			done = fn(s) || done
		})
		if errors.Is(err, packetio.ErrClosed) {
			t.Fatalf("waited %v for samples", deadline)
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestProbe is the way of a probe on one host: in by the dye port, through the
// bridge's own flows to a guest, whose kernel answers; out come two samples of each,
// and no third.
func TestProbe(t *testing.T) {
	t.Parallel()
	const probes = 100
	st := newStage(t, probes+1)
	var frames [][]byte
	for i := range uint32(probes) {
		frames = append(frames, st.frame(t, i))
	}
	st.send(t, frames)
	got := make(map[uint32][]sample)
	seen := 0
	st.read(t, func(s sample) bool {
		got[s.index] = append(got[s.index], s)
		seen++
		return seen == 2*probes
	})
	// What comes before the samples of one more probe has come too often.
	st.send(t, [][]byte{st.frame(t, probes)})
	st.read(t, func(s sample) bool {
		got[s.index] = append(got[s.index], s)
		return s.index == probes && s.Reply
	})
	a, b := netip.MustParseAddr(st.a.ip), netip.MustParseAddr(st.b.ip)
	for i := range uint32(probes + 1) {
		token := st.tokens.At(i)
		want := []stain.Copy{
			{Kind: stain.FromInstance, Scheme: stain.TCP, InPort: st.inA, Src: a, Dst: b, TTL: 64, Token: token, Flags: 0x02},
			{Kind: stain.FromInstance, Scheme: stain.TCP, InPort: st.inB, Src: b, Dst: a, TTL: 64, Token: token, Reply: true, Flags: 0x14},
		}
		var copies []stain.Copy
		for _, s := range got[i] {
			copies = append(copies, s.Copy)
		}
		if !slices.Equal(copies, want) {
			t.Errorf("probe %d: got %+v\nwant %+v", i, copies, want)
		} else if got[i][1].at <= got[i][0].at {
			t.Errorf("probe %d: answered at %d, sent at %d", i, got[i][1].at, got[i][0].at)
		}
	}
	if received, dropped := st.port.Stats(); received != 2*(probes+1) || dropped != 0 {
		t.Errorf("%d samples, %d dropped; want %d, 0", received, dropped, 2*(probes+1))
	}
}

// TestDyePortTakesNothingElse sends what is no probe into the dye port: the guests
// get none of it, and nothing comes back.
func TestDyePortTakesNothingElse(t *testing.T) {
	t.Parallel()
	st := newStage(t, 1)
	sent := func() string {
		return sandbox.Command(t, "ip", "-n", st.b.ns, "-s", "link", "show", "eth0")
	}
	before := sent()
	packet, err := stain.Default().AppendPacket(nil, stain.Probe{
		Scheme: stain.TCP,
		SrcMAC: mac(st.a.mac), DstMAC: mac(st.b.mac),
		Src: netip.MustParseAddr(st.a.ip), Dst: netip.MustParseAddr(st.b.ip), TTL: 64,
	})
	if err != nil {
		t.Fatal(err)
	}
	broadcast := append([]byte{255, 255, 255, 255, 255, 255}, packet[6:]...)
	st.send(t, [][]byte{packet, broadcast})
	// A probe behind them: when its answer is here, they were dealt with.
	st.send(t, [][]byte{st.frame(t, 0)})
	n := 0
	st.read(t, func(s sample) bool { n++; return s.Reply })
	if n != 2 {
		t.Errorf("%d samples, want the probe's two", n)
	}
	if count := received(t, before); received(t, sent()) != count+1 {
		t.Errorf("guest B received %d packets, want the probe", received(t, sent())-count)
	}
}

// received returns the number of packets received that ip -s link shows.
func received(t testing.TB, show string) (packets int) {
	t.Helper()
	_, rest, _ := strings.Cut(show, "RX:")
	_, numbers, _ := strings.Cut(rest, "\n")
	var bytes int
	if _, err := fmt.Sscan(numbers, &bytes, &packets); err != nil {
		t.Fatalf("%v in %q", err, show)
	}
	return packets
}

// BenchmarkProbe has one probe at a time on the way: ns/op is from before Send to the
// answer's sample in hand; wire-ns the same by the clock of the ring, without the
// time that a block takes to retire.
func BenchmarkProbe(b *testing.B) {
	st := newStage(b, 1)
	frames := [][]byte{st.frame(b, 0)}
	var wire time.Duration
	b.ResetTimer()
	for b.Loop() {
		var start unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &start); err != nil {
			b.Fatal(err)
		}
		st.send(b, frames)
		st.read(b, func(s sample) bool {
			if s.Reply {
				wire += time.Duration(s.at - start.Nano())
			}
			return s.Reply
		})
	}
	b.ReportMetric(float64(wire.Nanoseconds())/float64(b.N), "wire-ns")
}

// BenchmarkProbes keeps 512 probes on the way through one dye port, on as many cores
// as the switch, the guests and we share.
func BenchmarkProbes(b *testing.B) {
	const window = 512
	st := newStage(b, window)
	var frames [][]byte
	for i := range uint32(window) {
		frames = append(frames, st.frame(b, i))
	}
	samples := 0
	b.ResetTimer()
	for done := 0; done < b.N; done += window {
		n := min(window, b.N-done)
		st.send(b, frames[:n])
		replies := 0
		st.read(b, func(s sample) bool {
			samples++
			if s.Reply {
				replies++
			}
			return replies == n
		})
	}
	b.StopTimer()
	_, dropped := st.port.Stats()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "probes/s")
	b.ReportMetric(float64(samples)/b.Elapsed().Seconds(), "samples/s")
	b.ReportMetric(float64(dropped), "dropped")
}
