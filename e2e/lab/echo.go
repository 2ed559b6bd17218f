package lab

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// Echo is what became of pinging one pair.
type Echo struct {
	overlay.Pair
	Answered bool
	RTT      time.Duration // of the first answer
	TTL      int           // of the request, as it arrived, or its hop limit; guests send 64
	At       []string      // the instances at which the request arrived, wherever it was meant to go
}

// echoEvery is the time between two requests of a pair that has no answer yet: many times the
// round trip (measured: 1 ms with all pairs at once), few requests until a patience of seconds.
const echoEvery = 100 * time.Millisecond

// Echo sends echo requests of ICMP, or ICMPv6, for all pairs at once, from the guests themselves,
// and returns when each is answered, else when patience is at its end. The pairs may be any two
// instances that have an address of the version. That a guest cannot even send counts as no
// answer.
func (l *Lab) Echo(ctx context.Context, v overlay.Version, pairs []overlay.Pair, patience time.Duration) ([]Echo, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	for _, p := range pairs {
		for _, i := range []overlay.Instance{p.Src, p.Dst} {
			if !i.IP.Of(v).IsValid() {
				return nil, fmt.Errorf("echo: %s has no IPv%d address", i.Name, v)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	x := &exchange{version: v, done: cancel, conns: make(map[string]*net.IPConn), sent: make([]time.Time, len(pairs))}
	if _, err := rand.Read(x.nonce[:]); err != nil {
		return nil, fmt.Errorf("echo: %w", err)
	}
	defer x.close()
	for _, p := range pairs {
		x.echoes = append(x.echoes, Echo{Pair: p})
		for _, i := range []overlay.Instance{p.Src, p.Dst} {
			if err := l.openGuest(x, i); err != nil {
				return nil, fmt.Errorf("echo: %s: %w", i.Name, err)
			}
		}
	}
	var readers sync.WaitGroup
	for name, conn := range x.conns {
		readers.Go(func() { x.read(name, conn) })
	}
	stop := context.AfterFunc(ctx, func() {
		for _, conn := range x.conns {
			conn.SetReadDeadline(time.Unix(1, 0))
		}
	})
	defer stop()
	x.send(ctx)
	readers.Wait()
	if err := context.Cause(ctx); errors.Is(err, context.DeadlineExceeded) || x.complete() {
		return x.echoes, nil
	}
	return x.echoes, ctx.Err()
}

// exchange is one call of Echo under way.
type exchange struct {
	version overlay.Version
	done    func()
	nonce   [8]byte
	conns   map[string]*net.IPConn // by instance

	mu     sync.Mutex
	echoes []Echo
	sent   []time.Time // the first request of each
	whole  int         // those of which request and answer were seen
}

func (x *exchange) close() {
	for _, conn := range x.conns {
		conn.Close()
	}
}

func (x *exchange) complete() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.whole == len(x.echoes)
}

// openGuest opens a raw ICMP socket inside of an instance's network namespace.
func (l *Lab) openGuest(x *exchange, i overlay.Instance) error {
	if x.conns[i.Name] != nil {
		return nil
	}
	conn, err := l.rawSocket(i, func() (int, error) { return icmpSocket(x.version) })
	if err == nil {
		x.conns[i.Name] = conn
	}
	return err
}

// rawSocket has make open a raw socket inside of an instance's network namespace. A socket stays
// where it was made.
func (l *Lab) rawSocket(i overlay.Instance, make func() (fd int, err error)) (*net.IPConn, error) {
	space, err := l.guestNamespace(i)
	if err != nil {
		return nil, err
	}
	defer space.Close()
	fd := -1
	err = inNamespace(int(space.Fd()), func() (err error) {
		fd, err = make()
		return err
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), i.Name)
	defer f.Close()
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.IPConn), nil
}

// guestNamespace opens an instance's network namespace.
func (l *Lab) guestNamespace(i overlay.Instance) (*os.File, error) {
	where, file := i.Host, "root/run/netns/"+i.Name
	if l.Overlay().Bare(i) {
		where, file = i.Name, "ns/net"
	}
	node, err := l.node(where)
	if err != nil {
		return nil, err
	}
	return os.Open(filepath.Join("/proc", fmt.Sprint(node.PID), file))
}

// icmpSocket opens a raw socket for ICMP, or for ICMPv6 with the hop limit of what it receives
// (RFC 3542, section 6.3).
func icmpSocket(v overlay.Version) (fd int, err error) {
	const kind = unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	if v == overlay.V4 {
		return unix.Socket(unix.AF_INET, kind, unix.IPPROTO_ICMP)
	}
	fd, err = unix.Socket(unix.AF_INET6, kind, unix.IPPROTO_ICMPV6)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
	}
	return fd, err
}

// inNamespace runs do on a thread in a network namespace, which ends with it.
func inNamespace(space int, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot be thrown away, and would stay in the namespace, as would
			// /proc/self/net for the whole process. Hold it here, and have another do it.
			err := inNamespace(space, do)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err := unix.Setns(space, unix.CLONE_NEWNET)
		if err != nil {
			err = fmt.Errorf("setns: %w", err)
		} else {
			err = do()
		}
		done <- err // still locked: the runtime throws the thread away
	}()
	return <-done
}

// send sends requests until ctx ends.
func (x *exchange) send(ctx context.Context) {
	tick := time.NewTicker(echoEvery)
	defer tick.Stop()
	for seq := uint16(1); ; seq++ {
		for i := range x.echoes {
			x.mu.Lock()
			p, answered := x.echoes[i].Pair, x.echoes[i].Answered
			if x.sent[i].IsZero() {
				x.sent[i] = time.Now()
			}
			x.mu.Unlock()
			if !answered {
				// An error is a request that did not leave, and is never answered.
				_, _ = x.conns[p.Src.Name].WriteTo(x.request(i, seq), &net.IPAddr{IP: p.Dst.IP.Of(x.version).AsSlice()})
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// echoTypes returns the message types of echoes (RFC 792; RFC 4443, sections 4.1 and 4.2).
func echoTypes(v overlay.Version) (request, reply byte) {
	if v == overlay.V6 {
		return 128, 129
	}
	return 8, 0
}

// request builds an echo request, which is the same in both versions: the nonce of this exchange
// and the number of the pair are its data. The kernel puts its own checksum into those of ICMPv6
// (RFC 3542, section 3.1).
func (x *exchange) request(pair int, seq uint16) []byte {
	kind, _ := echoTypes(x.version)
	b := []byte{kind, 0, 0, 0}
	// Not the pair's number alone: conntrack would take one exchange's echoes for the last one's.
	b = binary.BigEndian.AppendUint16(b, uint16(pair)+binary.BigEndian.Uint16(x.nonce[:]))
	b = binary.BigEndian.AppendUint16(b, seq)
	b = append(b, x.nonce[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(pair))
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// checksum returns the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum + sum>>16)
}

// read notes what arrives at an instance until its socket is told to stop.
func (x *exchange) read(instance string, conn *net.IPConn) {
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for {
		n, oobn, _, _, err := conn.ReadMsgIP(buf, oob)
		if err != nil {
			return
		}
		ttl, message := 0, buf[:n]
		if x.version == overlay.V4 {
			ttl, message = cutHeader(message)
		} else {
			ttl = controlValue(oob[:oobn], unix.IPV6_HOPLIMIT)
		}
		x.note(instance, ttl, message, time.Now())
	}
}

// cutHeader returns the TTL of an IPv4 packet and what it carries, nothing if it is cut short.
func cutHeader(packet []byte) (ttl int, message []byte) {
	if len(packet) < 20 || len(packet) < int(packet[0]&0xf)*4 {
		return 0, nil
	}
	return int(packet[8]), packet[int(packet[0]&0xf)*4:]
}

// controlValue returns the number of a kind among the control messages of an IPv6 packet, 0 if it
// is not there.
func controlValue(oob []byte, kind int32) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == kind && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

// note takes a message that came with a TTL. What is not of this exchange is ignored.
func (x *exchange) note(instance string, ttl int, icmp []byte, now time.Time) {
	if len(icmp) < 18 {
		return
	}
	request, reply := echoTypes(x.version)
	pair := int(binary.BigEndian.Uint16(icmp[16:]))
	x.mu.Lock()
	defer x.mu.Unlock()
	if [8]byte(icmp[8:16]) != x.nonce || pair >= len(x.echoes) {
		return
	}
	e := &x.echoes[pair]
	// The answer may be read before the request, which another goroutine reads.
	before := e.Answered && len(e.At) > 0
	switch {
	case icmp[0] == request:
		e.TTL = ttl
		if !slices.Contains(e.At, instance) {
			e.At = append(e.At, instance)
		}
	case icmp[0] == reply && instance == e.Src.Name && !e.Answered:
		e.Answered, e.RTT = true, now.Sub(x.sent[pair])
	}
	if !before && e.Answered && len(e.At) > 0 {
		if x.whole++; x.whole == len(x.echoes) {
			x.done()
		}
	}
}
