package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// targetPort is where a SYN goes, as a probe of scheme TCP does. Where from is another port each time
// (sourcePort): what is sent with ports that were used before belongs, to what tracks connections, to the
// connection of then. If that was half open, as one is whose reset a break took, the SYN is invalid until
// it is forgotten (seen: of a guest that had listened, 4 pairs not answered 10 s after all was healed).
const targetPort = ProbedPort

// sourcePort draws a port that is neither reserved nor one that kernels give away
// (net.ipv4.ip_local_port_range).
func sourcePort() uint16 { return uint16(1024 + rand.IntN(32768-1024)) }

// synCheck sends TCP SYNs as probes are, from the guests themselves.
type synCheck struct {
	version  overlay.Version
	mu       sync.Mutex
	index    map[uint32]int // pair by sequence number
	answered []bool
}

// syn sends a SYN of each pair, again and again until all are answered or patience ends, and returns
// which were: by a reset, or a SYN, that acknowledges it.
func (l *Lab) syn(ctx context.Context, v overlay.Version, pairs []overlay.Pair, patience time.Duration) ([]bool, error) {
	x := &synCheck{version: v, index: make(map[uint32]int), answered: make([]bool, len(pairs))}
	conns := make(map[string]*net.IPConn)
	var readers sync.WaitGroup
	defer readers.Wait()
	for _, p := range pairs {
		for _, i := range []overlay.Instance{p.Src, p.Dst} {
			if conns[i.Name] == nil {
				conn, err := rawTCP(l, v, i)
				if err != nil {
					return nil, fmt.Errorf("raw socket in %s: %w", i.Name, err)
				}
				defer conn.Close()
				conns[i.Name] = conn
				readers.Go(func() { x.read(conn) })
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for ctx.Err() == nil && !x.complete() {
		for i, p := range pairs {
			if segment := x.segment(i, p); segment != nil {
				// What does not leave is not answered.
				_, _ = conns[p.Src.Name].WriteTo(segment, &net.IPAddr{IP: p.Dst.IP.Of(v).AsSlice()})
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(echoEvery): // between attempts, as in Echo
		}
	}
	for _, c := range conns {
		c.SetReadDeadline(time.Unix(1, 0))
	}
	readers.Wait()
	return x.answered, nil
}

func rawTCP(l *Lab, v overlay.Version, i overlay.Instance) (*net.IPConn, error) {
	return l.rawSocket(i, func() (int, error) {
		const kind = unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
		if v == overlay.V6 {
			return unix.Socket(unix.AF_INET6, kind, unix.IPPROTO_TCP)
		}
		return unix.Socket(unix.AF_INET, kind, unix.IPPROTO_TCP)
	})
}

func (x *synCheck) complete() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, a := range x.answered {
		if !a {
			return false
		}
	}
	return true
}

// segment builds a SYN (RFC 9293, section 3.1) of a pair, nil for a pair that is answered.
func (x *synCheck) segment(pair int, p overlay.Pair) []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.answered[pair] {
		return nil
	}
	seq := rand.Uint32()
	x.index[seq] = pair
	return synSegment(x.version, p, seq)
}

// synSegment builds a SYN without its IP header.
func synSegment(v overlay.Version, p overlay.Pair, seq uint32) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b[0:], sourcePort())
	binary.BigEndian.PutUint16(b[2:], targetPort)
	binary.BigEndian.PutUint32(b[4:], seq)
	b[12], b[13] = 5<<4, 0x02 // header length, SYN
	binary.BigEndian.PutUint16(b[14:], 64240)
	// The sum is the same for the pseudo-headers of both versions (RFC 8200, section 8.1): the
	// addresses, and two numbers.
	pseudo := append(append(p.Src.IP.Of(v).AsSlice(), p.Dst.IP.Of(v).AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(b)))
	binary.BigEndian.PutUint16(b[16:], checksum(append(pseudo, b...)))
	return b
}

func (x *synCheck) read(conn *net.IPConn) {
	buf := make([]byte, 2048)
	for {
		n, _, _, _, err := conn.ReadMsgIP(buf, nil)
		if err != nil {
			return
		}
		segment := buf[:n]
		if x.version == overlay.V4 {
			_, segment = cutHeader(segment)
		}
		const synFlag, rstFlag, ackFlag = 0x02, 0x04, 0x10
		if len(segment) < 20 || segment[13]&ackFlag == 0 || segment[13]&(synFlag|rstFlag) == 0 {
			continue
		}
		ack := binary.BigEndian.Uint32(segment[8:])
		x.mu.Lock()
		if pair, ok := x.index[ack-1]; ok {
			x.answered[pair] = true
		}
		x.mu.Unlock()
	}
}
