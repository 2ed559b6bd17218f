package packetio

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/stain"
)

func TestMain(m *testing.M) { os.Exit(sandbox.Run(m)) }

var pairs atomic.Uint32

// veth makes a pair of devices, joined, up, and silent, and returns their names.
func veth(t testing.TB) (a, b string) {
	t.Helper()
	n := pairs.Add(1)
	a, b = fmt.Sprintf("va%d", n), fmt.Sprintf("vb%d", n)
	// Before the devices are up, or IPv6 sends its own first.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.TxQLen = a, 1000
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: b}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			t.Error(err)
		}
	})
	for _, name := range []string{a, b} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

func open(t testing.TB, name string, o Options) *Port {
	t.Helper()
	p, err := Open(name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// copyFrame returns a copy as a hook makes it, with n in it.
func copyFrame(t testing.TB, n uint32) []byte {
	t.Helper()
	frame, err := stain.Default().AppendCopy(nil, stain.Copy{
		Kind: stain.FromTunnel, Scheme: stain.TCP, InPort: 7, TunSrc: [4]byte{192, 0, 2, 1}, TunID: 1001,
		Src: netip.MustParseAddr("10.0.1.11"), Dst: netip.MustParseAddr("10.0.1.12"), TTL: 64, Token: n,
	})
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func copyFrames(t testing.TB, n int) [][]byte {
	frames := make([][]byte, n)
	for i := range frames {
		frames[i] = copyFrame(t, uint32(i))
	}
	return frames
}

func sendAll(t testing.TB, p *Port, frames [][]byte) {
	t.Helper()
	if n, err := p.Send(frames); err != nil || n != len(frames) {
		t.Fatalf("Send = %d, %v; want %d", n, err, len(frames))
	}
}

// receive reads n frames, or fails the test after ten seconds.
func receive(t testing.TB, p *Port, n int) (frames [][]byte, at []int64) {
	t.Helper()
	// Close is what ends Receive; a Port that does not deliver fails the test so.
	watchdog := time.AfterFunc(10*time.Second, func() { p.Close() })
	defer watchdog.Stop()
	for len(frames) < n {
		err := p.Receive(func(frame []byte, ns int64) {
			frames, at = append(frames, bytes.Clone(frame)), append(at, ns)
		})
		if err != nil {
			t.Fatalf("after %d frames of %d: %v", len(frames), n, err)
		}
	}
	return frames, at
}

// came waits until so many frames have come to a port: veth hands them over in another context.
func came(t testing.TB, p *Port, n int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		received, dropped := p.Stats()
		switch {
		case received+dropped >= uint64(n):
			return
		case time.Now().After(end):
			t.Fatalf("%d frames were received and %d dropped after ten seconds, of %d", received, dropped, n)
		}
	}
}

func TestFramesArriveAsTheyWereSent(t *testing.T) {
	t.Parallel()
	a, b := veth(t)
	from, to := open(t, a, Options{}), open(t, b, Options{})
	sent := copyFrames(t, 5*batch+3)
	sent[7] = append(sent[7], bytes.Repeat([]byte{0xa5}, 1200)...) // of another length, too
	before := clock(unix.CLOCK_MONOTONIC)
	sendAll(t, from, sent)
	got, at := receive(t, to, len(sent))
	after := clock(unix.CLOCK_MONOTONIC)
	if len(got) != len(sent) {
		t.Fatalf("received %d frames, sent %d", len(got), len(sent))
	}
	// The two clocks are read one after the other; no more than a microsecond may
	// lie between.
	const slack = int64(time.Microsecond)
	for i := range sent {
		if !bytes.Equal(got[i], sent[i]) {
			t.Fatalf("frame %d: got %x, sent %x", i, got[i], sent[i])
		}
		if at[i] < before-slack || at[i] > after+slack || i > 0 && at[i] < at[i-1]-slack {
			t.Errorf("frame %d: at %d, sent between %d and %d, previous at %d", i, at[i], before, after, at[max(0, i-1)])
		}
	}
	if received, dropped := to.Stats(); received != uint64(len(sent)) || dropped != 0 {
		t.Errorf("Stats = %d, %d; want %d, 0", received, dropped, len(sent))
	}
}

// TestFilter sends what is not a copy between copies: only these arrive, and only
// these are counted.
func TestFilter(t *testing.T) {
	t.Parallel()
	a, b := veth(t)
	from, to := open(t, a, Options{}), open(t, b, Options{})
	change := func(i int, v byte) []byte {
		f := copyFrame(t, 0)
		f[i] = v
		return f
	}
	broadcast := append(bytes.Repeat([]byte{0xff}, 6), copyFrame(t, 0)[6:]...)
	packet, err := stain.Default().AppendPacket(nil, stain.Probe{
		Scheme: stain.TCP,
		SrcMAC: stain.MAC{0xfa, 0x16, 0x3e, 0, 0, 1}, DstMAC: stain.MAC{0xfa, 0x16, 0x3e, 0, 0, 2},
		Src: netip.MustParseAddr("10.0.1.11"), Dst: netip.MustParseAddr("10.0.1.12"), TTL: 64,
	})
	if err != nil {
		t.Fatal(err)
	}
	sendAll(t, from, [][]byte{
		copyFrame(t, 1), change(0, 0x04), change(6, 0x06), broadcast, packet, bytes.Repeat([]byte{0}, 14), copyFrame(t, 2),
	})
	got, _ := receive(t, to, 2)
	if len(got) != 2 || !bytes.Equal(got[0], copyFrame(t, 1)) || !bytes.Equal(got[1], copyFrame(t, 2)) {
		t.Errorf("got %x", got)
	}
	if received, _ := to.Stats(); received != 2 {
		t.Errorf("%d frames passed the filter, want 2", received)
	}
}

// TestOwnFramesAreNotReceived has both ends send: neither reads what it sent itself,
// whether by Send or by another program that goes through the queueing discipline.
func TestOwnFramesAreNotReceived(t *testing.T) {
	t.Parallel()
	a, b := veth(t)
	pa, pb := open(t, a, Options{}), open(t, b, Options{})
	link, err := netlink.LinkByName(a)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, copyFrame(t, 1), 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	sendAll(t, pa, [][]byte{copyFrame(t, 2)})
	sendAll(t, pb, [][]byte{copyFrame(t, 3)})
	if got, _ := receive(t, pb, 2); !bytes.Equal(got[0], copyFrame(t, 1)) || !bytes.Equal(got[1], copyFrame(t, 2)) {
		t.Errorf("b got %x", got)
	}
	if got, _ := receive(t, pa, 1); len(got) != 1 || !bytes.Equal(got[0], copyFrame(t, 3)) {
		t.Errorf("a got %x, want what b sent and nothing else", got)
	}
	if received, _ := pa.Stats(); received != 1 {
		t.Errorf("a received %d frames, want 1", received)
	}
}

// TestDropsAreCounted overflows a small ring: what arrived is what was counted as
// received, and the rest is what was counted as dropped.
func TestDropsAreCounted(t *testing.T) {
	t.Parallel()
	a, b := veth(t)
	from, to := open(t, a, Options{}), open(t, b, Options{BlockBytes: os.Getpagesize(), Blocks: 2})
	const sent = 1000
	frames := copyFrames(t, sent)
	for n := batch; len(frames) > 0; n += batch { // not all at once: see TestCloseUnderLoad
		some := min(batch, len(frames))
		sendAll(t, from, frames[:some])
		frames = frames[some:]
		came(t, to, min(n, sent))
	}
	received, dropped := to.Stats()
	if received == 0 || dropped == 0 || received+dropped != sent {
		t.Fatalf("received %d, dropped %d of %d", received, dropped, sent)
	}
	got, _ := receive(t, to, int(received))
	for i, f := range got {
		if !bytes.Equal(f, copyFrame(t, uint32(i))) {
			t.Fatalf("frame %d is not the one sent: the newest should be dropped, not the oldest", i)
		}
	}
	// The ring is good again.
	sendAll(t, from, [][]byte{copyFrame(t, 5000)})
	if got, _ := receive(t, to, 1); !bytes.Equal(got[0], copyFrame(t, 5000)) {
		t.Errorf("after the overflow: got %x", got[0])
	}
	if err := to.Close(); err != nil {
		t.Error(err)
	}
	if r, d := to.Stats(); r != received+1 || d != dropped {
		t.Errorf("Stats after Close = %d, %d; want %d, %d", r, d, received+1, dropped)
	}
}

func TestCloseWakesReceive(t *testing.T) {
	t.Parallel()
	_, b := veth(t)
	p := open(t, b, Options{})
	done := make(chan error)
	go func() { done <- p.Receive(func([]byte, int64) {}) }()
	// Whether Receive is already asleep or not even called must not matter; both
	// happen, over many runs of the test.
	runtime.Gosched()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, ErrClosed) {
			t.Errorf("Receive = %v, want ErrClosed", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Receive still blocks after Close")
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	if _, err := p.Send(copyFrames(t, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("Send after Close = %v, want ErrClosed", err)
	}
	if err := p.Receive(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Receive after Close = %v, want ErrClosed", err)
	}
}

// TestDone: a frame is done with when its reader comes for the next one, and not while it is in the ring or at work on it.
func TestDone(t *testing.T) {
	t.Parallel()
	a, b := veth(t)
	from, to := open(t, a, Options{}), open(t, b, Options{})
	sendAll(t, from, copyFrames(t, 3))
	came(t, to, 3)
	state := func(when string, want uint64) {
		t.Helper()
		if received, _ := to.Stats(); received != 3 || to.Done() != want {
			t.Errorf("%s: %d of %d frames are done with, want %d of 3", when, to.Done(), received, want)
		}
	}
	state("in the ring", 0)
	for got := uint64(0); got < 3; {
		before := got
		if err := to.Receive(func([]byte, int64) {
			got++
			state("at work", before)
		}); err != nil {
			t.Fatal(err)
		}
		state("handed over", before)
	}
	var reader sync.WaitGroup
	reader.Go(func() { to.Receive(nil) })
	for end := time.Now().Add(10 * time.Second); to.Done() < 3 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	state("the next one is waited for", 3)
	to.Close()
	reader.Wait()
}

// TestCloseUnderLoad closes while both directions work. It is not parallel: it sends as fast as it can, and what the kernel has
// not handed over yet is bounded for all devices together (net.core.netdev_max_backlog, 1000 frames a processor).
func TestCloseUnderLoad(t *testing.T) {
	a, b := veth(t)
	from, to := open(t, a, Options{}), open(t, b, Options{})
	frames := copyFrames(t, batch)
	var works sync.WaitGroup
	var got atomic.Uint64
	works.Go(func() {
		for {
			if _, err := from.Send(frames); errors.Is(err, ErrClosed) {
				return
			}
		}
	})
	works.Go(func() {
		for !errors.Is(to.Receive(func([]byte, int64) { got.Add(1) }), ErrClosed) {
		}
	})
	for end := time.Now().Add(30 * time.Second); got.Load() < 1000; runtime.Gosched() {
		if time.Now().After(end) {
			t.Errorf("%d frames were received in half a minute, of many", got.Load())
			break
		}
	}
	if err := errors.Join(to.Close(), from.Close()); err != nil {
		t.Error(err)
	}
	works.Wait()
	if received, _ := to.Stats(); received < got.Load() {
		t.Errorf("handed over %d frames, counted %d", got.Load(), received)
	}
}

func TestDeviceGoesDownAndAway(t *testing.T) {
	t.Parallel()
	a, b := veth(t)
	from, to := open(t, a, Options{}), open(t, b, Options{})
	link, err := netlink.LinkByName(b)
	if err != nil {
		t.Fatal(err)
	}
	sendAll(t, from, copyFrames(t, 3))
	came(t, to, 3)
	watchdog := time.AfterFunc(30*time.Second, func() { to.Close() }) // then Receive fails by another error
	defer watchdog.Stop()
	if err := netlink.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	// Both come, in whatever order: the error, and what was received before.
	down, frames := false, 0
	for !down || frames < 3 {
		if err := to.Receive(func([]byte, int64) { frames++ }); errors.Is(err, unix.ENETDOWN) {
			down = true
		} else if err != nil {
			t.Fatalf("Receive on a device that went down = %v, want ENETDOWN", err)
		}
	}
	if _, err := to.Send(copyFrames(t, 1)); !errors.Is(err, unix.ENETDOWN) {
		t.Errorf("Send on a device that is down = %v, want ENETDOWN", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	failed := func() error {
		for {
			if err := to.Receive(func([]byte, int64) {}); err != nil {
				return err
			}
		}
	}()
	if !errors.Is(failed, unix.ENETDOWN) {
		t.Errorf("Receive on a device that went away = %v, want ENETDOWN", failed)
	}
	if _, err := to.Send(copyFrames(t, 1)); !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENETDOWN) {
		t.Errorf("Send on a device that went away = %v, want ENXIO", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	_, b := veth(t)
	tests := []struct {
		name   string
		device string
		o      Options
		want   string
	}{
		{"no device", "nothing0", Options{}, "packetio: nothing0: route ip+net: no such network interface"},
		{"block", b, Options{BlockBytes: 5000}, "packetio: " + b + ": option BlockBytes 5000: want a power of two, at least 4096"},
		{"blocks", b, Options{Blocks: 1}, "packetio: " + b + ": option Blocks 1: want at least 2"},
		{"timeout", b, Options{RetireTimeout: time.Microsecond}, "packetio: " + b + ": option RetireTimeout 1µs: want 1ms to 1m"},
		{"filter", b, Options{Filter: []bpf.Instruction{bpf.LoadAbsolute{Off: 0, Size: 1}}}, "packetio: " + b + ": receiving: filter: invalid argument"},
	}
	for _, tt := range tests {
		p, err := Open(tt.device, tt.o)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s: Open = %v, want %s", tt.name, err, tt.want)
		}
		if err == nil {
			p.Close()
		}
	}
}

func TestSendRefusesAnEmptyFrame(t *testing.T) {
	t.Parallel()
	a, b := veth(t)
	from, to := open(t, a, Options{}), open(t, b, Options{})
	if n, err := from.Send([][]byte{copyFrame(t, 1), nil, copyFrame(t, 2)}); n != 1 || !errors.Is(err, unix.EINVAL) {
		t.Errorf("Send = %d, %v; want 1, EINVAL", n, err)
	}
	if got, _ := receive(t, to, 1); !bytes.Equal(got[0], copyFrame(t, 1)) {
		t.Errorf("got %x", got)
	}
}

// TestNothingLeaks is not parallel: it counts what the whole process has.
func TestNothingLeaks(t *testing.T) {
	a, b := veth(t)
	cycle := func() {
		from, err := Open(a, Options{})
		if err != nil {
			t.Fatal(err)
		}
		to, err := Open(b, Options{})
		if err != nil {
			t.Fatal(err)
		}
		sendAll(t, from, copyFrames(t, 10))
		receive(t, to, 10)
		if err := errors.Join(from.Close(), to.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(b, Options{Filter: []bpf.Instruction{bpf.LoadAbsolute{}}}); err == nil {
			t.Fatal("a bad filter was taken")
		}
	}
	count := func() (fds, maps, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), bytes.Count(text, []byte("socket:[")), runtime.NumGoroutine()
	}
	cycle()
	fds, maps, goroutines := count()
	for range 20 {
		cycle()
	}
	if f, m, g := count(); f > fds || m > maps || g > goroutines {
		t.Errorf("after 20 cycles: %d descriptors (were %d), %d rings (%d), %d goroutines (%d)", f, fds, m, maps, g, goroutines)
	}
}

// TestFilterAgainstOracle runs the filter in Go's own virtual machine.
func TestFilterAgainstOracle(t *testing.T) {
	t.Parallel()
	// The machine has no packet types; what is left must agree with gopacket.
	vm, err := bpf.NewVM(CopyFilter()[2:])
	if err != nil {
		t.Fatal(err)
	}
	for _, frame := range [][]byte{copyFrame(t, 1), make([]byte, 60), {6, 1, 0, 0, 0, 0, 3, 0}, {6}, nil} {
		n, err := vm.Run(frame)
		if err != nil {
			t.Fatal(err)
		}
		want := false
		if eth, ok := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default).LinkLayer().(*layers.Ethernet); ok {
			want = eth.DstMAC[0] == stain.CopyDst && eth.SrcMAC[0] == stain.CopySrc
		}
		if (n > 0) != want {
			t.Errorf("%x: let in %d bytes, want in: %v", frame, n, want)
		}
	}
}

// TestLatency asserts that a lone frame does not wait for its block to fill.
func TestLatency(t *testing.T) {
	t.Parallel()
	a, b := veth(t)
	from, to := open(t, a, Options{}), open(t, b, Options{})
	best := time.Hour
	for i := range 20 {
		start := time.Now()
		sendAll(t, from, [][]byte{copyFrame(t, uint32(i))})
		receive(t, to, 1)
		best = min(best, time.Since(start))
	}
	t.Logf("best of 20: %v from Send to fn", best)
	if limit := 20 * time.Millisecond; best > limit {
		t.Errorf("a lone frame takes %v, want at most %v", best, limit)
	}
}

func BenchmarkSend(b *testing.B) {
	for _, n := range []int{1, batch} {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			a, _ := veth(b)
			p := open(b, a, Options{})
			frames := copyFrames(b, n)
			b.ReportAllocs()
			b.ResetTimer()
			for sent := 0; sent < b.N; sent += n {
				sendAll(b, p, frames)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
		})
	}
}

// BenchmarkReceive has one core send and the other receive, as fast as they can, and
// reports what is received and what of it is lost. decode adds what an agent does.
func BenchmarkReceive(b *testing.B) {
	for _, decode := range []bool{false, true} {
		b.Run(fmt.Sprintf("decode=%v", decode), func(b *testing.B) {
			x, y := veth(b)
			from, to := open(b, x, Options{}), open(b, y, Options{})
			frames := copyFrames(b, batch)
			s, c, handed := stain.Default(), stain.Copy{}, 0
			var sender sync.WaitGroup
			var stop atomic.Bool
			b.ReportAllocs()
			b.ResetTimer()
			sender.Go(func() {
				for !stop.Load() {
					if _, err := from.Send(frames); err != nil {
						b.Error(err)
						return
					}
				}
			})
			for handed < b.N {
				err := to.Receive(func(frame []byte, _ int64) {
					if decode && s.ParseCopy(frame, &c) != nil {
						b.Error("not a copy")
					}
					handed++
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			stop.Store(true)
			sender.Wait()
			received, dropped := to.Stats()
			b.ReportMetric(float64(handed)/b.Elapsed().Seconds(), "frames/s")
			b.ReportMetric(100*float64(dropped)/float64(received+dropped), "%lost")
		})
	}
}

// TestBound: who has a device open is known, as is that nobody has.
func TestBound(t *testing.T) {
	t.Parallel()
	a, b := veth(t)
	want := func(when, name string, want bool) {
		t.Helper()
		if got, err := Bound(name); got != want || err != nil {
			t.Errorf("%s: Bound(%s) = %t, %v; want %t", when, name, got, err, want)
		}
	}
	want("nobody has it", a, false)
	p, err := Open(a, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want("open", a, true)
	want("the other one is", b, false)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	want("closed", a, false)
	want("no device", "nosuchdevice", false)
}
