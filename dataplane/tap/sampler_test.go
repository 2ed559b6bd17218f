package tap

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/stain"
)

// user is a frame that is none of ours.
func user(t testing.TB, n uint32, data int) []byte {
	t.Helper()
	tcp := layers.TCP{SrcPort: 40000, DstPort: 443, Seq: n, ACK: true, PSH: true}
	return segment{src: src, dst: dst, ttl: 63, tcp: tcp, data: data}.frame(t)
}

func TestSupported(t *testing.T) {
	t.Parallel()
	if err := Supported(); err != nil {
		t.Error(err)
	}
}

// TestSupportedCannotTell asks without the capabilities to ask.
func TestSupportedCannotTell(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), askEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "unsupported false: tap: ") || !strings.Contains(string(out), "not permitted") {
		t.Errorf("Supported, asked by nobody: %v, %s", err, out)
	}
}

// TestUnsupported has the kernel's no of package ebpf told from all else.
func TestUnsupported(t *testing.T) {
	t.Parallel()
	if err := explain(fmt.Errorf("map type: %w", ebpf.ErrNotSupported)); !errors.Is(err, ErrUnsupported) || !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("a kernel that cannot: %v", err)
	}
	if err := explain(unix.EPERM); errors.Is(err, ErrUnsupported) {
		t.Errorf("one that does not say: %v", err)
	}
}

// TestDelivery sends stained and other packets through real devices: the guest gets
// all as they were, and what is stained is seen once.
func TestDelivery(t *testing.T) {
	t.Parallel()
	for kind, device := range map[string]func(testing.TB) *wire{"veth": newVeth, "tap": newTap} {
		for _, mode := range modes {
			t.Run(kind+"/"+mode, func(t *testing.T) {
				t.Parallel()
				w := device(t)
				s := sampler(t, mode, Options{})
				for range 3 {
					attach(t, s, w.name) // once is enough, and twice not too often
				}
				frames := [][]byte{user(t, 1, 0), probe(t, 1), user(t, 2, 1400), probe(t, 2), user(t, 3, 10), probe(t, 3)}
				before := now(t)
				wantFrames(t, w.arrivals(t, frames...), frames...)
				got := receive(t, s, 3)
				wantStats(t, s, Stats{Received: 3})
				for i, seen := range got {
					want := Seen{Device: w.name, IfIndex: w.index, Scheme: stain.TCP, Src: src, Dst: dst, TTL: 63, Seq: uint32(i) + 1, Flags: 0x02}
					if diff := gocmp.Diff(want, seen, sameAddr, cmpopts.IgnoreFields(Seen{}, "At")); diff != "" {
						t.Errorf("(-want +got):\n%s", diff)
					}
					if seen.At < before || seen.At > now(t) || i > 0 && seen.At < got[i-1].At {
						t.Errorf("sample %d: at %d, began at %d", i, seen.At, before)
					}
				}

				if err := s.Detach(w.name); err != nil {
					t.Fatal(err)
				}
				wantFrames(t, w.arrivals(t, probe(t, 4)), probe(t, 4))
				wantStats(t, s, Stats{Received: 3})
				if err := s.Detach(w.name); err != nil {
					t.Errorf("detaching again: %v", err)
				}
				wantNothingLeft(t, w)
			})
		}
	}
}

// wantNothingLeft wants no program or qdisc of ours on a device.
func wantNothingLeft(t testing.TB, w *wire) {
	t.Helper()
	if n := attachedTCX(t, w); n != 0 {
		t.Errorf("%d programs are attached", n)
	}
	if out := sandbox.Command(t, "tc", "qdisc", "show", "dev", w.name); strings.Contains(out, "clsact") {
		t.Errorf("left: %s", out)
	}
}

func attachedTCX(t testing.TB, w *wire) int {
	t.Helper()
	result, err := link.QueryPrograms(link.QueryOptions{Target: w.index, Attach: ebpf.AttachTCXEgress})
	switch {
	case errors.Is(err, ebpf.ErrNotSupported):
		return 0
	case err != nil:
		t.Fatal(err)
	}
	return len(result.Programs)
}

// TestShort sends every beginning of a packet that would be stained if it were whole.
func TestShort(t *testing.T) {
	t.Parallel()
	w := newTap(t)
	s := sampler(t, "tcx", Options{})
	attach(t, s, w.name)
	syn := layers.TCP{SrcPort: 11, DstPort: 11, SYN: true}
	for _, whole := range [][]byte{
		segment{src: src, dst: dst, tos: 23 << 2, tcp: syn, vlan: true}.frame(t)[:14+4+20+20], // not its padding
		segment{src: src6, dst: dst6, tos: 23 << 2, tcp: syn}.frame(t),
		segment{src: src, dst: dst, tos: 23 << 2, echo: &echoed{}}.frame(t)[:14+20+8],
		segment{src: src6, dst: dst6, tos: 23 << 2, echo: &echoed{}}.frame(t),
	} {
		var short [][]byte
		for n := 14; n < len(whole); n++ {
			short = append(short, whole[:n])
		}
		wantFrames(t, w.arrivals(t, short...), short...)
		wantStats(t, s, Stats{})
	}
}

// TestFragmentedBuffer sends frames of more than a page, of which only the Ethernet
// header lies in the linear part of the socket buffer.
func TestFragmentedBuffer(t *testing.T) {
	t.Parallel()
	w := newVeth(t)
	s := sampler(t, "tcx", Options{})
	attach(t, s, w.name)
	if err := unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		t.Fatal(err)
	}
	syn := layers.TCP{SrcPort: 11, DstPort: 11, Seq: 5, SYN: true}
	frames := [][]byte{
		segment{src: src, dst: dst, tos: 23 << 2, ttl: 63, tcp: syn, data: 8000}.frame(t),
		user(t, 1, 8000),
		segment{src: src6, dst: dst6, tos: 23 << 2, ttl: 63, tcp: syn, data: 8000}.frame(t),
		segment{src: src6, dst: dst6, tos: 23 << 2, ttl: 63, echo: &echoed{token: 6}, data: 8000}.frame(t),
	}
	var sent [][]byte
	for _, f := range frames {
		sent = append(sent, append(make([]byte, 10), f...)) // struct virtio_net_hdr, all zero
	}
	w.send(t, sent...)
	for i, f := range frames {
		got, err := w.guest(10 * time.Second)
		if err != nil || !bytes.Equal(got, f) {
			t.Errorf("frame %d: %d bytes, %v; want the %d that were sent", i, len(got), err, len(f))
		}
	}
	if got := receive(t, s, 3); got[0].Seq != 5 || got[0].Dst != dst || got[1].Seq != 5 || got[1].Dst != dst6 || got[2].Seq != 6 {
		t.Errorf("seen %+v", got)
	}
	wantStats(t, s, Stats{Received: 3})
}

// TestWithhold wants the guest not to see what belongs to a withheld probe, and to see
// all else.
func TestWithhold(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newTap(t)
			s := sampler(t, mode, Options{})
			attach(t, s, w.name)
			const token = 0xffffffff // whose successor is 0
			elsewhere := packet(t, stain.Probe{Scheme: stain.TCP, Src: dst, Dst: src, TTL: 63, Token: token})
			rstAck := layers.TCP{SrcPort: 11, DstPort: 11, Ack: 0, RST: true, ACK: true}
			drop := [][]byte{
				probe(t, token), withdrawal(t, token), segment{src: dst, dst: src, ttl: 63, tcp: rstAck}.frame(t),
				echo(t, token), segment{src: dst, dst: src, tos: 23 << 2, ttl: 63, echo: &echoed{token: token, reply: true}}.frame(t),
			}
			p := Probe{Token: token, Dst: dst}

			if err := s.Withhold(now(t)+int64(time.Hour), p, Probe{Token: 8, Dst: dst6}); err != nil {
				t.Fatal(err)
			}
			pass := [][]byte{
				user(t, token, 10), probe(t, 1), elsewhere, probe(t, 8), echo(t, token-1), // and a reply from elsewhere:
				segment{src: src, dst: dst, tos: 23 << 2, ttl: 63, echo: &echoed{token: token, reply: true}}.frame(t),
			}
			wantFrames(t, w.arrivals(t, append(slices.Clone(pass), drop...)...), pass...)
			var withheld []bool
			for _, seen := range receive(t, s, 10) {
				withheld = append(withheld, seen.Withheld)
			}
			if want := []bool{false, false, false, false, false, true, true, true, true, true}; !slices.Equal(withheld, want) {
				t.Errorf("withheld: %v, want %v", withheld, want)
			}
			wantStats(t, s, Stats{Received: 10, Withheld: 5})

			// The lease is over: it passes, although nobody released it.
			if err := s.Withhold(now(t), p); err != nil {
				t.Fatal(err)
			}
			wantFrames(t, w.arrivals(t, probe(t, token)), probe(t, token))
			// A lease renewed, then given up, then given up again.
			if err := s.Withhold(now(t)+int64(time.Hour), p); err != nil {
				t.Fatal(err)
			}
			wantFrames(t, w.arrivals(t, probe(t, token)))
			if err := errors.Join(s.Release(p), s.Release(p)); err != nil {
				t.Fatal(err)
			}
			wantFrames(t, w.arrivals(t, probe(t, token)), probe(t, token))
			wantStats(t, s, Stats{Received: 13, Withheld: 6})
		})
	}
}

// TestWithholdInBatch sends withheld probes between user traffic with one system call,
// as Open vSwitch does: that must not fail in the middle, or users lose packets.
func TestWithholdInBatch(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newTap(t)
			s := sampler(t, mode, Options{})
			attach(t, s, w.name)
			if err := s.Withhold(now(t)+int64(time.Hour), Probe{1, dst}); err != nil {
				t.Fatal(err)
			}
			frames := [][]byte{probe(t, 1), user(t, 1, 5), probe(t, 1), probe(t, 1), user(t, 2, 5)}
			w.sendTogether(t, frames...)
			wantFrames(t, w.arrivals(t), frames[1], frames[4])
			wantStats(t, s, Stats{Received: 3, Withheld: 3})
		})
	}
}

func TestWithholdRefuses(t *testing.T) {
	t.Parallel()
	s := sampler(t, "", Options{Withheld: 2})
	hour := now(t) + int64(time.Hour)
	err := s.Withhold(hour, Probe{1, dst}, Probe{2, dst}, Probe{3, dst})
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "probe 3 of 3") {
		t.Errorf("three where two fit: %v", err)
	}
	if err := errors.Join(s.Release(Probe{1, dst}), s.Withhold(hour, Probe{3, dst})); err != nil {
		t.Errorf("in the place of another: %v", err)
	}
	if err := s.Withhold(hour, Probe{Token: 4}); err == nil || !strings.Contains(err.Error(), "address") {
		t.Errorf("without an address: %v", err)
	}
}

// TestOverflow fills a ring of one page that nobody reads.
func TestOverflow(t *testing.T) {
	t.Parallel()
	w := newTap(t)
	s := sampler(t, "tcx", Options{RingBytes: os.Getpagesize()})
	attach(t, s, w.name)
	if err := s.Withhold(now(t)+int64(time.Hour), Probe{999, dst}); err != nil {
		t.Fatal(err)
	}
	const sent = 1000
	fit := os.Getpagesize() / 64 // 56 bytes and the ring's own 8
	var pass [][]byte
	for i := range sent - 1 {
		pass = append(pass, probe(t, uint32(i)))
	}
	// In parts, for the queue of a tap is no longer than that.
	for part := range slices.Chunk(pass, 300) {
		wantFrames(t, w.arrivals(t, part...), part...)
	}
	wantFrames(t, w.arrivals(t, probe(t, 999))) // although it has no room
	got, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if got.Received+got.Lost != sent || got.Lost == 0 || got.Withheld != 1 || int(got.Received) < fit-2 || int(got.Received) > fit {
		t.Errorf("Stats = %+v, want some %d received, the rest of %d lost", got, fit, sent)
	}
	for i, seen := range receive(t, s, int(got.Received)) {
		if seen.Seq != uint32(i) {
			t.Fatalf("sample %d is of probe %d", i, seen.Seq)
		}
	}
	// There is room again.
	w.arrivals(t, probe(t, 7))
	if seen := receive(t, s, 1); seen[0].Seq != 7 {
		t.Errorf("seen %+v", seen)
	}
}

// TestNeverEmpty has a packet come for each that is read: Receive returns nevertheless, and the next one goes on
// where it ended.
func TestNeverEmpty(t *testing.T) {
	t.Parallel()
	const sent = 10 * maxReceive
	s := sampler(t, "", Options{})
	var made, read uint32
	more := func() {
		if err := feed(s, probe(t, made)); err != nil {
			t.Fatal(err)
		}
		made++
	}
	more() // one ahead: what is there when one is read counts, not what comes while it is taken in
	for calls := 0; read < sent; calls++ {
		if made < sent {
			more()
		}
		began := read
		err := s.Receive(func(seen Seen) {
			if seen.Seq != read {
				t.Errorf("probe %d came as number %d", seen.Seq, read)
			}
			read++
			if made < sent {
				more()
			}
		})
		if n := read - began; err != nil || n == 0 || n > maxReceive {
			t.Fatalf("call %d read %d, %v; want 1 to %d", calls, n, err, maxReceive)
		}
	}
}

// TestDeviceComesAndGoes deletes, remakes and renames a device under the program.
func TestDeviceComesAndGoes(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := sampler(t, mode, Options{})
			name, peer := addVeth(t)
			attach(t, s, name)
			deleteLink(t, name)
			if err := s.Attach(name); !errors.As(err, new(netlink.LinkNotFoundError)) {
				t.Errorf("attaching to nothing: %v", err)
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.MTU = name, bigMTU
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}); err != nil {
				t.Fatal(err)
			}
			up(t, peer)
			l := up(t, name)
			attach(t, s, name)
			fd, _ := socket(t, name)
			w := &wire{name: name, fd: fd}
			w.send(t, probe(t, 1))
			if got := receive(t, s, 1); got[0].Device != name || got[0].IfIndex != l.Attrs().Index {
				t.Errorf("seen on %s (%d), want %s (%d)", got[0].Device, got[0].IfIndex, name, l.Attrs().Index)
			}

			renamed := newName("re")
			if err := netlink.LinkSetName(l, renamed); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { deleteLink(t, renamed) })
			attach(t, s, renamed)
			if got := s.Attached(); !slices.Equal(got, []string{renamed}) {
				t.Errorf("attached: %v, want %v", got, renamed)
			}
			w.send(t, probe(t, 2))
			if got := receive(t, s, 1); len(got) != 1 || got[0].Device != renamed || got[0].Seq != 2 {
				t.Errorf("seen %+v, want one on %s", got, renamed)
			}
			wantStats(t, s, Stats{Received: 2})
			deleteLink(t, renamed)
			if err := s.Detach(renamed); err != nil || len(s.Attached()) != 0 {
				t.Errorf("detaching from what is gone: %v, left %v", err, s.Attached())
			}
		})
	}
}

// TestKilled kills the process that attached.
func TestKilled(t *testing.T) {
	t.Parallel()
	t.Run("tcx", func(t *testing.T) {
		t.Parallel()
		sampler(t, "tcx", Options{}) // or skip
		w := newTap(t)
		killHolder(t, "tcx", w.name)
		// The kernel takes it off after the process is gone, not before.
		for deadline := time.Now().Add(10 * time.Second); attachedTCX(t, w) > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("attached still after ten seconds")
			}
		}
		wantNothingLeft(t, w)
	})
	t.Run("clsact, adopted", func(t *testing.T) {
		t.Parallel()
		w := newTap(t)
		killHolder(t, "clsact", w.name)
		// What is left lets all pass.
		wantFrames(t, w.arrivals(t, probe(t, 1), user(t, 1, 5)), probe(t, 1), user(t, 1, 5))
		s := sampler(t, "clsact", Options{})
		attach(t, s, w.name)
		if n := strings.Count(egress(t, w), filterName); n != 1 {
			t.Errorf("%d filters, want 1", n)
		}
		wantFrames(t, w.arrivals(t, probe(t, 2)), probe(t, 2))
		if got := receive(t, s, 1); len(got) != 1 || got[0].Seq != 2 {
			t.Errorf("seen %+v", got)
		}
	})
	t.Run("clsact, removed", func(t *testing.T) {
		t.Parallel()
		w := newTap(t)
		killHolder(t, "clsact", w.name)
		if !strings.Contains(egress(t, w), filterName) {
			t.Fatal("no filter was left; what is this test about?")
		}
		if err := sampler(t, "tcx", Options{}).Detach(w.name); err != nil {
			t.Fatal(err)
		}
		if out := egress(t, w); out != "" {
			t.Errorf("left: %s", out)
		}
	})
	t.Run("clsact, removed by one who attaches nowhere", func(t *testing.T) {
		t.Parallel()
		w := newTap(t)
		killHolder(t, "clsact", w.name)
		sandbox.Command(t, "tc", "filter", "add", "dev", w.name, "egress", "protocol", "ip", "prio", "7", "u32", "match", "u32", "1", "0xffffffff", "at", "12", "classid", "1:1") // another's
		for _, name := range []string{w.name, w.name, "nosuchdevice"} {
			if err := RemoveLeftovers(name); err != nil {
				t.Error(err)
			}
		}
		if out := egress(t, w); strings.Contains(out, filterName) || !strings.Contains(out, "u32") {
			t.Errorf("there is: %s", out)
		}
	})
}

func egress(t testing.TB, w *wire) string {
	t.Helper()
	return sandbox.Command(t, "tc", "filter", "show", "dev", w.name, "egress")
}

// TestDetachIsDetached has another hold a descriptor of the link, as a child does
// between fork(2) and exec(2).
func TestDetachIsDetached(t *testing.T) {
	t.Parallel()
	w := newTap(t)
	s := sampler(t, "tcx", Options{})
	attach(t, s, w.name)
	info, err := s.attached[w.index].hold.(tcx).Info()
	if err != nil {
		t.Fatal(err)
	}
	other, err := link.NewFromID(info.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := s.Detach(w.name); err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, w)
}

// TestTakenOff has somebody take the program off: the next Attach puts it back.
func TestTakenOff(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newTap(t)
			s := sampler(t, mode, Options{})
			attach(t, s, w.name)
			if mode == "clsact" {
				sandbox.Command(t, "tc", "qdisc", "del", "dev", w.name, "clsact")
			} else if err := s.attached[w.index].hold.(tcx).Detach(); err != nil {
				t.Fatal(err)
			}
			w.arrivals(t, probe(t, 1))
			wantStats(t, s, Stats{})
			attach(t, s, w.name)
			w.arrivals(t, probe(t, 2))
			wantStats(t, s, Stats{Received: 1})
		})
	}
}

// TestNeighbours wants other filters and qdiscs to stay as they are, an empty one too.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	empty, w := newTap(t), newTap(t)
	sandbox.Command(t, "tc", "qdisc", "add", "dev", empty.name, "clsact")
	sandbox.Command(t, "tc", "qdisc", "add", "dev", w.name, "clsact")
	sandbox.Command(t, "tc", "filter", "add", "dev", w.name, "egress", "protocol", "ip", "prio", "7", "u32", "match", "u32", "1", "0xffffffff", "at", "12", "classid", "1:1")
	theirs := func() string {
		return sandbox.Command(t, "tc", "qdisc", "show", "dev", empty.name) +
			sandbox.Command(t, "tc", "qdisc", "show", "dev", w.name) + egress(t, w)
	}
	before := theirs()
	for _, mode := range modes {
		s := sampler(t, mode, Options{})
		attach(t, s, empty.name)
		attach(t, s, w.name)
		wantFrames(t, w.arrivals(t, probe(t, 1)), probe(t, 1))
		receive(t, s, 1)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(before, theirs()); diff != "" {
			t.Errorf("%s: (-before +after):\n%s", mode, diff)
		}
	}
	// Where theirs is in our place, we have none.
	sandbox.Command(t, "tc", "filter", "add", "dev", w.name, "egress", "protocol", "ip", "prio", "65535", "u32", "match", "u32", "1", "0xffffffff", "at", "12", "classid", "1:1")
	before = theirs()
	if err := sampler(t, "clsact", Options{}).Attach(w.name); !errors.Is(err, ErrForeign) {
		t.Errorf("Attach = %v, want ErrForeign", err)
	}
	if diff := gocmp.Diff(before, theirs()); diff != "" {
		t.Errorf("refused: (-before +after):\n%s", diff)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, want string
		o          Options
	}{
		{"ring of no power of two", "option RingBytes 5000", Options{RingBytes: 5000}},
		{"ring of less than a page", "option RingBytes 64", Options{RingBytes: 64}},
		{"nothing withheld", "option Withheld -1", Options{Withheld: -1}},
		{"stain without ToS", "option Stain: stain: tos 0", Options{Stain: stain.Stain{Port: 11}}},
	} {
		if _, err := Open(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	s := sampler(t, "", Options{})
	if err := s.Attach("lo"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("Attach to lo: %v, want ErrUnsupported", err)
	}
	if err := s.Detach("no-such-device"); err != nil {
		t.Errorf("Detach from what is not there: %v", err)
	}
}

// TestOtherStain loads the program with another stain.
func TestOtherStain(t *testing.T) {
	t.Parallel()
	other := stain.Stain{TOS: 0xfc, Port: 0xfedc}
	tcp, err := other.AppendPacket(nil, stain.Probe{Scheme: stain.TCP, SrcMAC: srcMAC, DstMAC: dstMAC, Src: src, Dst: dst, TTL: 63, Token: 9})
	if err != nil {
		t.Fatal(err)
	}
	icmp, err := other.AppendPacket(nil, stain.Probe{Scheme: stain.ICMP, SrcMAC: srcMAC, DstMAC: dstMAC, Src: src6, Dst: dst6, TTL: 63, Token: 10})
	if err != nil {
		t.Fatal(err)
	}
	s := sampler(t, "", Options{Stain: other})
	for _, frame := range [][]byte{probe(t, 1), echo(t, 1), tcp, icmp} {
		run(t, s, frame)
	}
	if got := receive(t, s, 2); len(got) != 2 || got[0].Seq != 9 || got[1].Seq != 10 {
		t.Errorf("seen %+v", got)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	w := newTap(t)
	s := sampler(t, "tcx", Options{})
	attach(t, s, w.name)
	w.arrivals(t, probe(t, 1))
	receive(t, s, 1)
	ended := make(chan error)
	go func() { ended <- s.Receive(func(Seen) { t.Error("seen") }) }()
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, ErrClosed) {
			t.Errorf("Receive = %v, want ErrClosed", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Receive did not return")
	}
	if err := s.Receive(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Receive = %v, want ErrClosed", err)
	}
	if err := s.Attach(w.name); !errors.Is(err, ErrClosed) {
		t.Errorf("Attach = %v, want ErrClosed", err)
	}
	if err := s.Withhold(0, Probe{1, dst}); !errors.Is(err, ErrClosed) {
		t.Errorf("Withhold = %v, want ErrClosed", err)
	}
	if err := errors.Join(s.Detach(w.name), s.Release(Probe{1, dst})); err != nil {
		t.Error(err)
	}
	wantStats(t, s, Stats{Received: 1})
	wantNothingLeft(t, w)
}

// TestNothingLeaks is not parallel: it counts what the whole process has.
func TestNothingLeaks(t *testing.T) {
	w := newTap(t)
	cycle := func() {
		for _, mode := range modes {
			s, err := Open(Options{})
			if err != nil {
				t.Fatal(err)
			}
			s.tcx = s.tcx && mode == "tcx"
			attach(t, s, w.name)
			w.arrivals(t, probe(t, 1))
			receive(t, s, 1)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := open(Options{}, func(c *ebpf.CollectionSpec) { c.Programs[tapProgToInstance].Type = ebpf.XDP }); err == nil {
			t.Fatal("a program of the wrong type was taken")
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
		return len(entries), bytes.Count(text, []byte("bpf")), runtime.NumGoroutine()
	}
	cycle()
	fds, maps, goroutines := count()
	for range 10 {
		cycle()
	}
	if f, m, g := count(); f > fds || m > maps || g > goroutines {
		t.Errorf("after 10 cycles: %d descriptors (were %d), %d rings (%d), %d goroutines (%d)", f, fds, m, maps, g, goroutines)
	}
}

// TestAllocations is not parallel: it counts those of the whole process.
func TestAllocations(t *testing.T) {
	w := newTap(t)
	s := sampler(t, "tcx", Options{})
	attach(t, s, w.name)
	frame, n := probe(t, 1), 0
	count := func(seen Seen) {
		if seen.Device == w.name {
			n++
		}
	}
	const runs = 200
	allocs := testing.AllocsPerRun(runs, func() {
		if _, err := unix.Write(w.fd, frame); err != nil {
			t.Fatal(err)
		}
		if err := s.Receive(count); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 || n != runs+1 {
		t.Errorf("%v allocations a sample, %d samples", allocs, n)
	}
}

// BenchmarkUserTraffic sends user traffic through two veths alike, one with the
// program, in turns, and reports how much of the throughput is left with it. With one
// frame a system call and no switch it is the least that a frame can cost otherwise.
// (Measured with the program on neither: 0.997.)
func BenchmarkUserTraffic(b *testing.B) {
	for _, mode := range modes {
		b.Run(mode, func(b *testing.B) {
			var wires [2]*wire
			for i := range wires {
				name, _ := addVeth(b)
				fd, index := socket(b, name)
				wires[i] = &wire{name: name, index: index, fd: fd}
			}
			s := sampler(b, mode, Options{})
			attach(b, s, wires[1].name)
			frame := user(b, 1, 1400)
			const round = 500
			var total [2]time.Duration
			var ratios []float64
			for rest := b.N; rest > 0; rest -= round {
				var took [2]time.Duration
				for turn := range wires {
					i := turn ^ len(ratios)&1 // neither is always the first
					start := time.Now()
					for range round {
						wires[i].send(b, frame)
					}
					took[i] = time.Since(start)
					total[i] += took[i]
				}
				ratios = append(ratios, float64(took[0])/float64(took[1]))
			}
			slices.SortFunc(ratios, cmp.Compare[float64])
			frames := float64(len(ratios) * round)
			b.ReportMetric(ratios[len(ratios)/2], "with/without")
			b.ReportMetric(float64(total[0].Nanoseconds())/frames, "ns/frame-without")
			b.ReportMetric(float64(total[1].Nanoseconds())/frames, "ns/frame-with")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkDelivery sends one probe at a time and waits until fn has it.
func BenchmarkDelivery(b *testing.B) {
	name, _ := addVeth(b)
	fd, _ := socket(b, name)
	w := &wire{name: name, fd: fd}
	s := sampler(b, "tcx", Options{})
	attach(b, s, name)
	frame := probe(b, 1)
	b.ReportAllocs()
	for b.Loop() {
		w.send(b, frame)
		if err := s.Receive(func(Seen) {}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReceive has the program fill the ring and reads it empty, in turns, and
// reports the reader's share.
func BenchmarkReceive(b *testing.B) {
	s := sampler(b, "", Options{})
	frame, n := probe(b, 1), 0
	const round = 10_000
	b.ReportAllocs()
	for b.StopTimer(); n < b.N; b.StopTimer() {
		if _, err := s.objects.ToInstance.Run(&ebpf.RunOptions{Data: frame, Repeat: round}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for want := n + round; n < want; {
			if err := s.Receive(func(Seen) { n++ }); err != nil {
				b.Fatal(err)
			}
		}
	}
}
