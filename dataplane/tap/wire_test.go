package tap

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/dataplane/packetio"
	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/stain"
)

// What makes the test binary another process than a test's.
const (
	// holdEnv: it attaches and waits to be killed. The value is a mode and a device.
	holdEnv = "DYETRACE_TEST_HOLD"
	// askEnv: it gives up being root, and prints what Supported returns.
	askEnv = "DYETRACE_TEST_ASK"
)

func TestMain(m *testing.M) {
	switch what := os.Getenv(holdEnv); {
	case what != "":
		fmt.Println(holdForever(what))
	case os.Getenv(askEnv) != "":
		err := syscall.Setuid(65534)
		if err == nil {
			err = Supported()
		}
		fmt.Printf("unsupported %v: %v\n", errors.Is(err, ErrUnsupported), err)
	default:
		os.Exit(sandbox.Run(m))
	}
}

// holdForever returns only if it fails.
func holdForever(what string) error {
	mode, ifname, _ := strings.Cut(what, " ")
	s, err := Open(Options{})
	if err != nil {
		return err
	}
	s.tcx = mode == "tcx"
	if err := s.Attach(ifname); err != nil {
		return err
	}
	fmt.Println("attached")
	select {}
}

// killHolder starts such a process, and kills it once it has attached.
func killHolder(t *testing.T, mode, ifname string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holdEnv+"="+mode+" "+ifname)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	if kill := cmd.Process.Kill(); kill != nil {
		t.Error(kill)
	}
	if wait := cmd.Wait(); wait == nil {
		t.Error("it was not killed")
	}
	if err != nil || said != "attached\n" {
		t.Fatalf("it said %q, %v", said, err)
	}
}

// modes are the ways to attach.
var modes = []string{"tcx", "clsact"}

// sampler opens a Sampler that attaches in this way. The zero Options will do.
func sampler(t testing.TB, mode string, o Options) *Sampler {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if mode == "tcx" && !s.tcx {
		t.Skip("this kernel has no tcx (Linux 6.6)")
	}
	s.tcx = mode == "tcx"
	return s
}

func attach(t testing.TB, s *Sampler, ifname string) {
	t.Helper()
	if err := s.Attach(ifname); err != nil {
		t.Fatal(err)
	}
}

// receive returns what the ring holds, at least n, or fails the test after ten
// seconds.
func receive(t testing.TB, s *Sampler, n int) []Seen {
	t.Helper()
	watchdog := time.AfterFunc(10*time.Second, func() { s.Close() })
	defer watchdog.Stop()
	var all []Seen
	for len(all) < n {
		if err := s.Receive(func(seen Seen) { all = append(all, seen) }); err != nil {
			t.Fatalf("after %d of %d: %v", len(all), n, err)
		}
	}
	return all
}

func wantStats(t testing.TB, s *Sampler, want Stats) {
	t.Helper()
	if got, err := s.Stats(); err != nil || got != want {
		t.Errorf("Stats = %+v, %v; want %+v", got, err, want)
	}
}

// wire is a device and what its guest gets.
type wire struct {
	name  string
	index int
	fd    int // sends as the switch does
	guest func(d time.Duration) ([]byte, error)
}

var devices atomic.Uint32

func newName(kind string) string { return fmt.Sprintf("%s%d", kind, devices.Add(1)) }

// quiet keeps the kernel from sending IPv6 of its own on devices made from now on.
func quiet(t testing.TB) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// bigMTU lets frames of more than a page through, whose buffers have fragments.
const bigMTU = 9000

func up(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.LinkSetMTU(l, bigMTU), netlink.LinkSetUp(l)); err != nil {
		t.Fatal(err)
	}
	return l
}

// addVeth makes a pair of devices that are up.
func addVeth(t testing.TB) (name, peer string) {
	t.Helper()
	quiet(t)
	name, peer = newName("sw"), newName("gu")
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.TxQLen = name, 1000
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deleteLink(t, name) })
	up(t, name)
	up(t, peer)
	return name, peer
}

func deleteLink(t testing.TB, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return
	}
	if err := errors.Join(err, netlink.LinkDel(l)); err != nil {
		t.Error(err)
	}
}

func newVeth(t testing.TB) *wire {
	t.Helper()
	name, peer := addVeth(t)
	port, err := packetio.Open(peer, packetio.Options{Filter: []bpf.Instruction{bpf.RetConstant{Val: 1 << 18}}, BlockBytes: 1 << 18})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { port.Close() })
	var queue [][]byte
	return newWire(t, name, func(d time.Duration) ([]byte, error) {
		watchdog := time.AfterFunc(d, func() { port.Close() })
		defer watchdog.Stop()
		for len(queue) == 0 {
			if err := port.Receive(func(f []byte, _ int64) { queue = append(queue, bytes.Clone(f)) }); err != nil {
				return nil, err
			}
		}
		f := queue[0]
		queue = queue[1:]
		return f, nil
	})
}

func newTap(t testing.TB) *wire {
	t.Helper()
	quiet(t)
	name := newName("tap")
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	up(t, name)
	b := make([]byte, 1<<16)
	return newWire(t, name, func(d time.Duration) ([]byte, error) {
		if err := f.SetReadDeadline(time.Now().Add(d)); err != nil {
			return nil, err
		}
		n, err := f.Read(b)
		return bytes.Clone(b[:n]), err
	})
}

func newWire(t testing.TB, name string, guest func(time.Duration) ([]byte, error)) *wire {
	t.Helper()
	fd, index := socket(t, name)
	return &wire{name, index, fd, guest}
}

// socket returns a packet socket that sends through the device's whole egress.
func socket(t testing.TB, name string) (fd, ifindex int) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	return fd, l.Attrs().Index
}

func (w *wire) send(t testing.TB, frames ...[]byte) {
	t.Helper()
	for _, f := range frames {
		if n, err := unix.Write(w.fd, f); err != nil || n != len(f) {
			t.Fatalf("%s: sending %d bytes: %d, %v", w.name, len(f), n, err)
		}
	}
}

// sendTogether sends frames with one sendmmsg(2), and wants it to take them all.
func (w *wire) sendTogether(t testing.TB, frames ...[]byte) {
	t.Helper()
	messages := make([]struct {
		header unix.Msghdr
		len    uint32
	}, len(frames))
	for i, f := range frames {
		messages[i].header.Iov = &unix.Iovec{Base: &f[0], Len: uint64(len(f))}
		messages[i].header.SetIovlen(1)
	}
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(w.fd),
		uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), 0, 0, 0)
	if errno != 0 || int(n) != len(frames) {
		t.Fatalf("%s: of %d frames %d left: %v", w.name, len(frames), int(n), errno)
	}
}

// arrivals sends frames, and one last that is like no other, and returns what the
// guest got before that.
func (w *wire) arrivals(t testing.TB, frames ...[]byte) [][]byte {
	t.Helper()
	last := append(bytes.Repeat([]byte{2}, 12), 0x88, 0xb5, 'e', 'n', 'd') // IEEE 802: local experimental
	w.send(t, append(frames, last)...)
	for deadline, got := time.Now().Add(10*time.Second), [][]byte(nil); ; {
		f, err := w.guest(time.Until(deadline))
		if err != nil {
			t.Fatalf("%s: the guest got %d frames and then %v", w.name, len(got), err)
		}
		if bytes.HasPrefix(f, last) {
			return got
		}
		got = append(got, f)
	}
}

func wantFrames(t testing.TB, got [][]byte, want ...[]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("the guest got %d frames, want %d", len(got), len(want))
		return
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("the guest got as frame %d\n%x, want\n%x", i, got[i], want[i])
		}
	}
}

var (
	srcMAC, dstMAC = stain.MAC{0xfa, 0x16, 0x3e, 0, 0, 1}, stain.MAC{0xfa, 0x16, 0x3e, 0, 0, 2}
	src, dst       = netip.MustParseAddr("10.0.1.11"), netip.MustParseAddr("10.0.1.12")
	src6, dst6     = netip.MustParseAddr("fd00:1::11"), netip.MustParseAddr("fe80::12")
)

// probe returns the frame of a probe as package stain has it.
func probe(t testing.TB, token uint32) []byte {
	t.Helper()
	return packet(t, stain.Probe{Scheme: stain.TCP, Src: src, Dst: dst, TTL: 63, Token: token})
}

// echo is probe of scheme icmp.
func echo(t testing.TB, token uint32) []byte {
	t.Helper()
	return packet(t, stain.Probe{Scheme: stain.ICMP, Src: src, Dst: dst, TTL: 63, Token: token})
}

// withdrawal is the frame that ends a probe that nobody answered.
func withdrawal(t testing.TB, token uint32) []byte {
	t.Helper()
	return packet(t, stain.Probe{Scheme: stain.TCP, Src: src, Dst: dst, TTL: 63, Token: token, Close: true})
}

func packet(t testing.TB, p stain.Probe) []byte {
	t.Helper()
	p.SrcMAC, p.DstMAC = srcMAC, dstMAC
	b, err := stain.Default().AppendPacket(nil, p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// segment is a frame that gopacket makes: of TCP, or an echo where that has a token.
type segment struct {
	src, dst netip.Addr
	tos, ttl uint8
	vlan     bool
	tcp      layers.TCP
	echo     *echoed
	data     int // bytes
}

// echoed is an echo request, or the reply to one.
type echoed struct {
	token uint32
	reply bool
	code  uint8
}

func (g segment) frame(t testing.TB) []byte {
	t.Helper()
	g.tcp.Window = 64240
	eth := &layers.Ethernet{SrcMAC: srcMAC[:], DstMAC: dstMAC[:]}
	var ip interface {
		gopacket.SerializableLayer
		gopacket.NetworkLayer
	}
	var kind layers.EthernetType
	payload := []gopacket.SerializableLayer{&g.tcp}
	if g.src.Is4() {
		h := &layers.IPv4{
			Version: 4, TOS: g.tos, TTL: g.ttl, Protocol: layers.IPProtocolTCP, Flags: layers.IPv4DontFragment,
			SrcIP: g.src.AsSlice(), DstIP: g.dst.AsSlice(),
		}
		if g.echo != nil {
			h.Protocol, payload = layers.IPProtocolICMPv4, g.echo.v4()
		}
		kind, ip = layers.EthernetTypeIPv4, h
	} else {
		src, dst := g.src.As16(), g.dst.As16() // an IPv4-mapped address stays what it is
		h := &layers.IPv6{
			Version: 6, TrafficClass: g.tos, FlowLabel: 0xabcde, HopLimit: g.ttl, NextHeader: layers.IPProtocolTCP,
			SrcIP: src[:], DstIP: dst[:],
		}
		if g.echo != nil {
			h.NextHeader, payload = layers.IPProtocolICMPv6, g.echo.v6(t, h)
		}
		kind, ip = layers.EthernetTypeIPv6, h
	}
	if err := g.tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	eth.EthernetType = kind
	list := []gopacket.SerializableLayer{eth}
	if g.vlan {
		eth.EthernetType = layers.EthernetTypeDot1Q
		list = append(list, &layers.Dot1Q{VLANIdentifier: 42, Type: kind})
	}
	buffer := gopacket.NewSerializeBuffer()
	list = append(append(list, ip), payload...)
	list = append(list, gopacket.Payload(bytes.Repeat([]byte{0xa5}, g.data)))
	if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, list...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buffer.Bytes())
}

func (e echoed) v4() []gopacket.SerializableLayer {
	kind := uint8(layers.ICMPv4TypeEchoRequest)
	if e.reply {
		kind = layers.ICMPv4TypeEchoReply
	}
	return []gopacket.SerializableLayer{&layers.ICMPv4{
		TypeCode: layers.CreateICMPv4TypeCode(kind, e.code), Id: uint16(e.token >> 16), Seq: uint16(e.token),
	}}
}

func (e echoed) v6(t testing.TB, ip *layers.IPv6) []gopacket.SerializableLayer {
	t.Helper()
	kind := uint8(layers.ICMPv6TypeEchoRequest)
	if e.reply {
		kind = layers.ICMPv6TypeEchoReply
	}
	header := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, e.code)}
	if err := header.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	return []gopacket.SerializableLayer{header, &layers.ICMPv6Echo{Identifier: uint16(e.token >> 16), SeqNumber: uint16(e.token)}}
}

func now(t testing.TB) int64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return ts.Nano()
}
