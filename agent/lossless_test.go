package agent

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	udp "golang.org/x/net/ipv4"

	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/stain"
)

// tenants send numbered packets to each other.
type tenants struct {
	out, in  *udp.PacketConn
	sent     int64
	received atomic.Int64  // in their order, none left out
	strays   atomic.Int64  // twice, or out of order
	wake     chan struct{} // capacity 1: some were received
}

// Tenants have so many packets under way at most: what the switch's sockets hold while its one
// thread is at something else, by far (a packet takes some 800 bytes of 208 KiB there). With that,
// whatever is lost was lost by the switch's flows.
const underWay = 128

// newTenants has the second guest receive what the first will send, until the test ends.
func newTenants(h *host) *tenants {
	t, a, b := h.t, h.guests[0], h.guests[1]
	t.Helper()
	p := &tenants{wake: make(chan struct{}, 1)}
	var in, out *net.UDPConn
	sandbox.Within(t, b.ns, func() (err error) {
		in, err = net.ListenUDP("udp4", &net.UDPAddr{IP: b.ip.AsSlice(), Port: 7})
		return err
	})
	sandbox.Within(t, a.ns, func() (err error) {
		out, err = net.DialUDP("udp4", nil, in.LocalAddr().(*net.UDPAddr))
		return err
	})
	p.in, p.out = udp.NewPacketConn(in), udp.NewPacketConn(out)
	var reader sync.WaitGroup
	reader.Go(p.receive)
	t.Cleanup(func() {
		in.Close()
		out.Close()
		reader.Wait()
	})
	return p
}

func messages() []udp.Message {
	m := make([]udp.Message, 32)
	for i := range m {
		m[i].Buffers = [][]byte{make([]byte, 8)}
	}
	return m
}

func (p *tenants) receive() {
	for m := messages(); ; {
		n, err := p.in.ReadBatch(m, 0)
		if err != nil {
			return // closed
		}
		for _, m := range m[:n] {
			if binary.BigEndian.Uint64(m.Buffers[0]) == uint64(p.received.Load()) {
				p.received.Add(1)
			} else {
				p.strays.Add(1)
			}
		}
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// send sends so many packets, and fails the test if one does not arrive.
func (p *tenants) send(t testing.TB, packets int64) {
	t.Helper()
	m := messages()
	for last := p.sent + packets; p.received.Load() < last; {
		if room := min(underWay-(p.sent-p.received.Load()), last-p.sent, int64(len(m))); room > 0 {
			for i := range m[:room] {
				binary.BigEndian.PutUint64(m[i].Buffers[0], uint64(p.sent)+uint64(i))
			}
			n, err := p.out.WriteBatch(m[:room], 0)
			if err != nil {
				t.Fatal(err)
			}
			p.sent += int64(n)
			continue
		}
		select {
		case <-p.wake:
		case <-time.After(deadline):
			t.Fatalf("%d packets were sent, and the first %d received; %d were not the next", p.sent, p.received.Load(), p.strays.Load())
		}
	}
}

// No tenant's packet of a million is lost while hooks come, are repaired and go, time and again;
// nor of those before, with no hook, or the test would be of something else. It is not parallel:
// the switch, which all tests share, has time for nothing else.
func TestNoPacketIsLost(t *testing.T) {
	const packets = 1_000_000
	h := prepareHost(t)
	p := newTenants(h)
	p.send(t, 1) // which asks for the MAC address
	begun := time.Now()
	p.send(t, packets/10)
	bare := time.Since(begun)
	ctx, stop := context.WithCancel(t.Context())
	rounds := make(chan int, 1)
	go func() {
		n := 0
		defer func() { rounds <- n }()
		for ; ctx.Err() == nil; n++ {
			if err := comeAndGo(t.Context(), h); err != nil {
				t.Errorf("round %d: %v", n, err)
				return
			}
		}
	}()
	begun = time.Now()
	p.send(t, packets)
	took := time.Since(begun)
	stop()
	n := <-rounds
	t.Logf("%d packets in %v; then %d in %v, while hooks came, were repaired and went %d times", packets/10, bare, packets, took, n)
	if n == 0 || p.strays.Load() > 0 {
		t.Errorf("hooks came and went %d times; %d packets came twice or out of order", n, p.strays.Load())
	}
}

// comeAndGo installs a hook, has it repaired, and removes it.
func comeAndGo(ctx context.Context, h *host) error {
	if err := h.a.hooks.setStain(ctx, stain.Default()); err != nil {
		return err
	}
	h.a.hooks.look(ctx, true)
	installed, err := h.a.sw.DumpOurs(ctx, h.bridge)
	if err != nil {
		return err
	}
	if err := h.a.sw.Apply(ctx, h.bridge, nil, installed[:len(installed)/2]); err != nil { // somebody else
		return err
	}
	h.a.hooks.look(ctx, true)
	repaired, err := h.a.sw.DumpOurs(ctx, h.bridge)
	if err != nil {
		return err
	}
	if err := h.a.hooks.remove(ctx); err != nil {
		return err
	}
	left, err := h.a.sw.DumpOurs(ctx, h.bridge)
	if err == nil && (len(installed) == 0 || len(repaired) != len(installed) || len(left) > 0) {
		err = fmt.Errorf("%d flows installed, %d after a repair, %d left", len(installed), len(repaired), len(left))
	}
	return err
}
