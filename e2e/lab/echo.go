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
	TTL      int           // of the request, as it arrived; guests send 64
	At       []string      // the instances at which the request arrived, wherever it was meant to go
}

// echoEvery is the time between two requests of a pair that has no answer yet: many times the
// round trip (measured: 1 ms with all pairs at once), few requests until a patience of seconds.
const echoEvery = 100 * time.Millisecond

// Echo sends ICMP echo requests for all pairs at once, from the guests themselves, and returns
// when each is answered, else when patience is at its end. The pairs may be any two instances.
// That a guest cannot even send counts as no answer.
func (l *Lab) Echo(ctx context.Context, pairs []overlay.Pair, patience time.Duration) ([]Echo, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	x := &exchange{done: cancel, conns: make(map[string]*net.IPConn), sent: make([]time.Time, len(pairs))}
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
	done  func()
	nonce [8]byte
	conns map[string]*net.IPConn // by instance

	mu      sync.Mutex
	echoes  []Echo
	sent    []time.Time // the first request of each
	answers int
}

func (x *exchange) close() {
	for _, conn := range x.conns {
		conn.Close()
	}
}

func (x *exchange) complete() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.answers == len(x.echoes)
}

// openGuest opens a raw ICMP socket inside of an instance's network namespace.
func (l *Lab) openGuest(x *exchange, i overlay.Instance) error {
	if x.conns[i.Name] != nil {
		return nil
	}
	node, err := l.node(i.Host)
	if err != nil {
		return err
	}
	space, err := os.Open(filepath.Join("/proc", fmt.Sprint(node.PID), "root/run/netns", i.Name))
	if err != nil {
		return err
	}
	defer space.Close()
	fd, err := socketIn(int(space.Fd()))
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), i.Name)
	defer f.Close()
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return err
	}
	x.conns[i.Name] = conn.(*net.IPConn)
	return nil
}

// socketIn opens a raw ICMP socket in a network namespace. A socket stays where it was made.
func socketIn(space int) (fd int, err error) {
	err = inNamespace(space, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
		return err
	})
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
				_, _ = x.conns[p.Src.Name].WriteTo(x.request(i, seq), &net.IPAddr{IP: p.Dst.IP.AsSlice()})
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ICMP message types (RFC 792).
const (
	echoReply   = 0
	echoRequest = 8
)

// request builds an echo request (RFC 792): the nonce of this exchange and the number of the
// pair are its data.
func (x *exchange) request(pair int, seq uint16) []byte {
	b := []byte{echoRequest, 0, 0, 0}
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
	buf := make([]byte, 2048)
	for {
		n, _, _, _, err := conn.ReadMsgIP(buf, nil)
		if err != nil {
			return
		}
		x.note(instance, buf[:n], time.Now())
	}
}

// note takes an IPv4 packet, header included. What is not of this exchange is ignored.
func (x *exchange) note(instance string, packet []byte, now time.Time) {
	if len(packet) < 20 || len(packet) < int(packet[0]&0xf)*4+18 {
		return
	}
	icmp := packet[int(packet[0]&0xf)*4:]
	pair := int(binary.BigEndian.Uint16(icmp[16:]))
	x.mu.Lock()
	defer x.mu.Unlock()
	if [8]byte(icmp[8:16]) != x.nonce || pair >= len(x.echoes) {
		return
	}
	switch e := &x.echoes[pair]; {
	case icmp[0] == echoRequest:
		e.TTL = int(packet[8])
		if !slices.Contains(e.At, instance) {
			e.At = append(e.At, instance)
		}
	case icmp[0] == echoReply && instance == e.Src.Name && !e.Answered:
		e.Answered, e.RTT = true, now.Sub(x.sent[pair])
		if x.answers++; x.answers == len(x.echoes) {
			x.done()
		}
	}
}
