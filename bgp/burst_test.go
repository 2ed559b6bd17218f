package bgp

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/internal/teacher"
)

// macUpdates is messages with n type-2 routes, from number first on, per to an UPDATE. label is what they
// say; withdraw: they take the routes back.
func macUpdates(first, n, per int, label byte, withdraw bool) (all []byte) {
	for i := first; i < first+n; i += per {
		var nlri []byte
		for j := i; j < min(i+per, first+n); j++ {
			nlri = append(nlri, 2, 33, 0, 1, 10, 0, 0, 1, 0, 100)
			nlri = append(nlri, make([]byte, 10+4)...)
			nlri = append(nlri, 48, 2, 0)
			nlri = binary.BigEndian.AppendUint32(nlri, uint32(j))
			nlri = append(nlri, 0, 0, 0, label)
		}
		var attrs []byte
		code, mp := byte(14), append([]byte{0, 25, 70, 4, 10, 0, 0, 1, 0}, nlri...)
		if withdraw {
			code, mp = 15, append([]byte{0, 25, 70}, nlri...)
		} else {
			attrs = []byte{0x40, 1, 1, 0, 0x40, 2, 0}
		}
		attrs = binary.BigEndian.AppendUint16(append(attrs, 0x90, code), uint16(len(mp)))
		attrs = append(attrs, mp...)
		all = append(all, appendMessage(nil, typeUpdate, append(binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(attrs))), attrs...))...)
	}
	return all
}

// What a peer said before it closed the connection is taken in, whole and in order, however slow the
// table is.
func TestSaidBeforeTheEnd(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	lib := &library{}
	b := lib.of(peer(1))
	b.update = func([]byte) error { time.Sleep(time.Millisecond); return nil }
	w := speakWith(t, lib, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true})
	r := dialRaw(t, peer(1), ours)
	// With graceful restart, so that the routes are there still when the session has ended.
	r.establish(slices.Concat(capEVPN, cap65001, []byte{64, 6, 0, 120, 0, 25, 70, 0x80})...)
	const n = 4*burstLen + 7
	all := slices.Concat(macUpdates(0, n, 1, 1, false), macUpdates(0, 5, 1, 0, true), appendMessage(nil, typeUpdate, evpnUpdate)[:40])
	r.Write(all)
	r.Conn.(interface{ CloseWrite() error }).CloseWrite()
	eventually(t, "an end", func() bool { return b.heard("down graceful=true") })
	if got := b.Routes(); got != n-5 {
		t.Errorf("%d routes, want %d", got, n-5)
	}
	if got := w.status(peer(1)).Updates; got != n+5 {
		t.Errorf("%d UPDATEs counted, want %d", got, n+5)
	}
}

// While a table takes nothing in, little is read ahead: the peer is held up. When we end the session,
// what was read ahead is forgotten, and no more of it is taken in.
func TestHeldUp(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	lib := &library{}
	b := lib.of(peer(1))
	release, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.update = func([]byte) error { once.Do(func() { close(held) }); <-release; return nil }
	w := speakWith(t, lib, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true})
	r := dialRaw(t, peer(1), ours)
	r.establish(slices.Concat(capEVPN, cap65001, []byte{64, 2, 0, 0})...) // it will send an End-of-RIB: nobody asks the table before
	r.SetWriteDeadline(time.Now().Add(2 * time.Second))
	feed := macUpdates(0, 80*1000, 80, 1, false)
	sent := 0
	for i := range byte(100) { // 280 MB
		n, err := r.Write(feed)
		if sent += n; errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil || i == 99 {
			t.Fatalf("after %d bytes: %v", sent, err)
		}
	}
	<-held
	go w.stop()
	r.until(typeNotification)
	close(release)
	w.stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.bodies); n != 1 {
		t.Errorf("%d UPDATEs were taken in, want the one that was underway", n)
	}
}

// A fault of ours that a body brings about while it is read ahead ends the session once all before it is
// taken in.
func TestPanicAhead(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	lib := &library{}
	b := lib.of(peer(1))
	b.read = func(body []byte) {
		if len(body) < 30 {
			panic("decoder on fire")
		}
	}
	w := speakWith(t, lib, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true})
	r := dialRaw(t, peer(1), ours)
	r.establish(slices.Concat(capEVPN, cap65001)...)
	r.Write(slices.Concat(macUpdates(0, 3, 1, 1, false), appendMessage(nil, typeUpdate, []byte{0, 0, 0, 0}), macUpdates(3, 3, 1, 1, false)))
	if got := r.until(typeNotification); !slices.Equal(got, []byte{6, 8}) {
		t.Errorf("NOTIFICATION % x, want Cease, Out of Resources", got)
	}
	w.fails(peer(1), "decoder on fire")
	if s := w.status(peer(1)); s.Panics != 1 || s.Updates != 3 {
		t.Errorf("%d panics, %d UPDATEs; want 1 and 3", s.Panics, s.Updates)
	}
}

// holdTime is the shortest that there is (RFC 4271, section 4.2).
const holdTime = 3 * time.Second

// A full feed that goes on for longer than two hold times, into a table as it is in production: our
// keepalives go out meanwhile, though we hear no moment's silence; and the peer's UPDATEs are enough to
// hear, though it sends no KEEPALIVE.
func TestKeepalivesUnderFeed(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	table := rib.New(rib.Options{})
	w := speakInto(t, LearnInto(table), ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true, HoldTime: shortHold})
	r := dialRaw(t, peer(1), ours)
	r.establish(slices.Concat(capEVPN, cap65001)...)
	w.established(peer(1))
	silence := make(chan struct{})
	var heard int
	go func() {
		defer close(silence)
		for {
			r.SetReadDeadline(time.Now().Add(shortHold)) // as the hold timer of a real speaker
			k, body := r.next()
			if k != typeKeepalive {
				if k == typeNotification {
					t.Logf("NOTIFICATION % x", body)
				}
				return
			}
			heard++
		}
	}()
	const n = 100_000
	rounds := [][]byte{macUpdates(0, n, 80, 1, false), macUpdates(0, n, 80, 2, false), macUpdates(0, n, 80, 0, true)}
	r.SetWriteDeadline(time.Now().Add(patience))
	told := 0
	for began := time.Now(); time.Since(began) < 2*shortHold+time.Second; told += 3 {
		for _, all := range rounds {
			if _, err := r.Write(all); err != nil {
				t.Fatalf("after %d rounds: %v; %v", told, err, w.status(peer(1)).LastError)
			}
		}
	}
	if _, err := r.Write(rounds[1]); err != nil {
		t.Fatal(err)
	}
	f := table.Peer(peer(1), rib.PeerOptions{})
	eventually(t, "all routes", func() bool { return f.Routes() == n && f.Stats().Updates == uint64((told+1)*n/80) })
	select {
	case <-silence:
		t.Errorf("no keepalive in %v, after %d", shortHold, heard)
	default:
	}
	if s := w.status(peer(1)); s.Flaps != 0 || s.State != Established {
		t.Errorf("the session ended under %d rounds of %d routes: %+v", told, n, s)
	}
	r.Close()
	<-silence
	if heard < 2 {
		t.Errorf("%d keepalives in two hold times", heard)
	}
}

// A table that is slow for longer than the hold time, within one burst: the peer, a GoBGP with its timers,
// goes on hearing us.
func TestKeepalivesOfSlowTable(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	const n = 2 * burstLen
	g := startGoBGP(t, peer(1), peer(1), 65000)
	for i := range n {
		p := g.macRoute(i)
		// Of each an UPDATE of its own.
		p.Pattrs = append(p.Pattrs, teacher.Pack(t, &api.MultiExitDiscAttribute{Med: uint32(i)}))
		if _, err := g.AddPath(context.Background(), &api.AddPathRequest{Path: p}); err != nil {
			t.Fatal(err)
		}
	}
	g.peer(ours, 65000, func(p *api.Peer) { p.Timers.Config.HoldTime = 3; p.Timers.Config.KeepaliveInterval = 1 })
	lib := &library{}
	lib.of(peer(1)).update = func([]byte) error { time.Sleep(2 * holdTime / burstLen); return nil }
	w := speakWith(t, lib, ours, 65000, Peer{Address: peer(1), AS: 65000})
	w.routes(peer(1), n)
	s := w.status(peer(1))
	if s.Flaps != 0 {
		t.Errorf("%d flaps under a slow table: %v", s.Flaps, s.LastError)
	}
	if d := time.Since(s.Since); d < 2*s.HoldTime {
		t.Errorf("the feed took %v, which proves nothing for a hold time of %v", d, s.HoldTime)
	}
}
