package bench

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/stain"
)

// bodies cuts messages into the bodies of UPDATEs.
func bodies(messages []byte) (all [][]byte) {
	for len(messages) > 0 {
		n := binary.BigEndian.Uint16(messages[16:])
		all = append(all, messages[19:n])
		messages = messages[n:]
	}
	return all
}

// processor is what this process has used.
func processor(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLimits tells what of the time that learning takes is spent on what: a million routes are read
// from a socket and cut into messages; decoded; put into a map of Go's, by their keys alone; and learned
// by a table, without a session. ns/route is processor time of all threads.
func BenchmarkLimits(b *testing.B) {
	f := fabric{5000, 100}
	announce, withdraw := f.announce(), f.withdraw()
	measure := func(name string, do func(b *testing.B)) {
		b.Run(name, func(b *testing.B) {
			var used time.Duration
			for b.Loop() {
				before := processor(b)
				do(b)
				used += processor(b) - before
			}
			b.ReportMetric(float64(used.Nanoseconds())/float64(b.N*f.routes()), "cpu-ns/route")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*f.routes()), "ns/route")
		})
	}
	measure("socket", func(b *testing.B) { readAll(b, announce) })
	measure("decode", func(b *testing.B) {
		if n := decodeAll(b, announce, func(*wire.Route) {}); n != f.routes() {
			b.Fatalf("%d routes", n)
		}
	})
	type key struct {
		rd   wire.RD
		mac  stain.MAC
		bits uint8
		addr [16]byte
		tag  uint32
	}
	measure("map", func(b *testing.B) {
		m := make(map[key]uint32)
		decodeAll(b, announce, func(r *wire.Route) {
			m[key{r.RD, r.MAC, r.Bits, r.Addr, r.Tag}] = r.Label
		})
		if len(m) != f.routes() {
			b.Fatalf("%d routes", len(m))
		}
	})
	options := rib.PeerOptions{MaxRoutes: 2 * f.routes()}
	for i := range f.vteps {
		options.NextHops = append(options.NextHops, netip.PrefixFrom(f.vtep(i), 32))
	}
	for i := range vnis {
		options.RTs = append(options.RTs, wire.RouteTarget(target(uint32(10000+i))))
	}
	fill := func(b *testing.B, peer *rib.Feed, messages [][]byte) {
		now := time.Now()
		for _, m := range messages {
			if err := peer.Update(m, now); err != nil {
				b.Fatal(err)
			}
		}
	}
	told, undone := bodies(announce), bodies(withdraw)
	measure("table", func(b *testing.B) {
		peer := rib.New(rib.Options{}).Peer("rr", options)
		peer.Up(time.Now(), false)
		fill(b, peer, told)
		if peer.Routes() != f.routes() {
			b.Fatal(peer.Routes())
		}
	})
	peer := rib.New(rib.Options{}).Peer("rr", options)
	peer.Up(time.Now(), false)
	fill(b, peer, told)
	b.Run("churn", func(b *testing.B) {
		var gone, back, t0, t1, t2 time.Duration
		for b.Loop() {
			t0 = processor(b)
			fill(b, peer, undone)
			t1 = processor(b)
			fill(b, peer, told)
			t2 = processor(b)
			gone, back = gone+t1-t0, back+t2-t1
		}
		n := float64(b.N * f.routes())
		b.ReportMetric(float64(gone.Nanoseconds())/n, "withdraw-cpu-ns/route")
		b.ReportMetric(float64(back.Nanoseconds())/n, "again-cpu-ns/route")
	})
}

func decodeAll(b *testing.B, messages []byte, do func(*wire.Route)) (n int) {
	var u wire.Update
	var r wire.Route
	for len(messages) > 0 {
		size := binary.BigEndian.Uint16(messages[16:])
		if err := u.Parse(messages[19:size]); err != nil {
			b.Fatal(err)
		}
		for rest, ok := u.Reach.Next(u.Reach.NLRI, &r); ok; rest, ok = u.Reach.Next(rest, &r) {
			do(&r)
			n++
		}
		messages = messages[size:]
	}
	return n
}

// readAll sends messages over loopback, and takes them in as whole messages.
func readAll(b *testing.B, messages []byte) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	sent := make(chan error, 1)
	go func() {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			_, err = c.Write(messages)
			c.Close()
		}
		sent <- err
	}()
	c, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var n int
	buf := make([]byte, 64<<10)
	for {
		m, err := c.Read(buf)
		n += m
		if err == io.EOF {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := <-sent; err != nil || n != len(messages) {
		b.Fatalf("%d bytes of %d: %v", n, len(messages), err)
	}
}
