package bench

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
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
// by a table, without a session, from one peer and from several that tell the same. ns/route is processor time of all threads.
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
	told, undone := bodies(announce), bodies(withdraw)
	newTable := func(peers int) (all []*rib.Feed) {
		t := rib.New(rib.Options{})
		for i := range peers {
			peer := t.Peer(fmt.Sprint("rr", i), options)
			peer.Up(time.Now(), false)
			all = append(all, peer)
		}
		return all
	}
	for _, n := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("table×%d", n), func(b *testing.B) {
			var learn stages
			for b.Loop() {
				peers := newTable(n)
				learn.fill(b, peers, told)
				for _, p := range peers {
					if p.Routes() != f.routes() {
						b.Fatal(p.Routes())
					}
				}
			}
			learn.report(b, n*f.routes(), "learn")
		})
		b.Run(fmt.Sprintf("churn×%d", n), func(b *testing.B) {
			var learn, withdraw, again stages
			peers := newTable(n)
			learn.fill(b, peers, told)
			for b.Loop() {
				withdraw.fill(b, peers, undone)
				again.fill(b, peers, told)
			}
			withdraw.report(b, n*f.routes(), "withdraw")
			again.report(b, n*f.routes(), "again")
		})
	}
}

// stages is processor time of UPDATEs that are read, and taken in. A session does both at a time.
type stages struct{ read, take time.Duration }

// fill does one after the other, in bursts as those of a session; peers take turns.
func (s *stages) fill(b *testing.B, peers []*rib.Feed, bodies [][]byte) {
	var burst [16]rib.Ahead
	now := time.Now()
	for some := range slices.Chunk(bodies, len(burst)) {
		for _, peer := range peers {
			t0 := processor(b)
			for i, m := range some {
				peer.Read(&burst[i], m)
			}
			t1 := processor(b)
			for i := range some {
				if err := peer.Take(&burst[i], now); err != nil {
					b.Fatal(err)
				}
			}
			s.read, s.take = s.read+t1-t0, s.take+processor(b)-t1
		}
	}
}

func (s *stages) report(b *testing.B, routes int, what string) {
	n := float64(b.N * routes)
	b.ReportMetric(float64(s.read.Nanoseconds())/n, what+"-read-cpu-ns/route")
	b.ReportMetric(float64(s.take.Nanoseconds())/n, what+"-take-cpu-ns/route")
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
