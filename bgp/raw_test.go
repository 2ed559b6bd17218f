package bgp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/bgp/rib"
)

// raw is a scripted peer: for what no real one does.
type raw struct {
	t *testing.T
	net.Conn
	kinds []byte // of messages received
}

// dialRaw connects from a peer's address to a speaker.
func dialRaw(t *testing.T, from, to string) *raw {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), Timeout: patience}
	c, err := d.Dial("tcp", net.JoinHostPort(to, "179"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &raw{t: t, Conn: c}
}

// openBody is an OPEN of router 10.97.0.1, with capabilities as they come.
func openBody(as uint16, hold uint16, caps ...byte) []byte {
	b := []byte{4, byte(as >> 8), byte(as), byte(hold >> 8), byte(hold), 10, 97, 0, 1, 0}
	if len(caps) > 0 {
		b[9] = byte(2 + len(caps))
		b = append(append(b, 2, byte(len(caps))), caps...)
	}
	return b
}

var (
	capEVPN  = []byte{1, 4, 0, 25, 0, 70}
	cap65001 = []byte{65, 4, 0, 0, 0xfd, 0xe9}
)

func (r *raw) send(kind byte, body []byte) { r.Write(appendMessage(nil, kind, body)) }

// next returns the next message; kind 0 at the end.
func (r *raw) next() (kind byte, body []byte) {
	h := make([]byte, headerLen)
	if _, err := io.ReadFull(r, h); err != nil {
		return 0, nil
	}
	body = make([]byte, binary.BigEndian.Uint16(h[16:])-headerLen)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil
	}
	r.kinds = append(r.kinds, h[18])
	return h[18], body
}

// until reads up to a message of a kind, and returns its body.
func (r *raw) until(kind byte) []byte {
	r.t.Helper()
	for {
		k, body := r.next()
		if k == kind {
			return body
		}
		if k == 0 {
			r.t.Fatalf("connection ended before a message of type %d, after %v", kind, r.kinds)
		}
	}
}

// establish goes through the handshake.
func (r *raw) establish(caps ...byte) {
	r.t.Helper()
	r.send(typeOpen, openBody(65001, 90, caps...))
	r.until(typeOpen)
	r.until(typeKeepalive)
	r.send(typeKeepalive, nil)
}

// evpnUpdate has one type-3 route.
var evpnUpdate = func() []byte {
	nlri := []byte{3, 17, 0, 1, 10, 0, 0, 1, 0, 100, 0, 0, 0, 0, 32, 10, 0, 0, 1}
	mp := append([]byte{0, 25, 70, 4, 10, 0, 0, 1, 0}, nlri...)
	attrs := append([]byte{0x40, 1, 1, 0, 0x40, 2, 0, 0x80, 14, byte(len(mp))}, mp...)
	return append([]byte{0, 0, 0, byte(len(attrs))}, attrs...)
}()

func TestHostile(t *testing.T) {
	full := slices.Concat(capEVPN, cap65001)
	header := func(n int, kind byte) []byte {
		return append(slices.Clone(marker), byte(n>>8), byte(n), kind)
	}
	tests := []struct {
		name string
		up   bool // after the session is established
		sent []byte
		want []byte // NOTIFICATION: code, subcode, data
	}{
		{"marker", false, append(make([]byte, 16), 0, 19, 4), []byte{1, 1}},
		{"length 18", false, header(18, 4), []byte{1, 2, 0, 18}},
		{"length 4097", true, header(4097, 2), []byte{1, 2, 0x10, 1}},
		{"long keepalive", true, append(header(20, 4), 0), []byte{1, 2, 0, 20}},
		{"short UPDATE", true, append(header(22, 2), 0, 0, 0), []byte{1, 2, 0, 22}},
		{"unknown type", true, header(19, 9), []byte{1, 3}},
		{"route refresh before OPEN", false, appendMessage(nil, typeRefresh, []byte{0, 25, 0, 70}), []byte{1, 3}},
		{"UPDATE before OPEN", false, appendMessage(nil, typeUpdate, evpnUpdate), []byte{5, 1}},
		{"second OPEN", true, appendMessage(nil, typeOpen, openBody(65001, 90, full...)), []byte{5, 3}},
		{"version 3", false, appendMessage(nil, typeOpen, append([]byte{3}, openBody(65001, 90, full...)[1:]...)), []byte{2, 1, 0, 4}},
		{"AS", false, appendMessage(nil, typeOpen, openBody(65002, 90, full...)), []byte{2, 2}},
		{"hold time 0", false, appendMessage(nil, typeOpen, openBody(65001, 0, full...)), []byte{2, 6}},
		{"hold time 2", false, appendMessage(nil, typeOpen, openBody(65001, 2, full...)), []byte{2, 6}},
		{"no family", false, appendMessage(nil, typeOpen, openBody(65001, 90, cap65001...)), []byte{2, 7, 1, 4, 0, 25, 0, 70}},
		{"other family", false, appendMessage(nil, typeOpen, openBody(65001, 90, append([]byte{1, 4, 0, 1, 0, 1}, cap65001...)...)), []byte{2, 7, 1, 4, 0, 25, 0, 70}},
		{"capability longer than its parameter", false, appendMessage(nil, typeOpen, openBody(65001, 90, 1, 255, 0)), []byte{2, 0}},
		{"parameters longer than the OPEN", false, appendMessage(nil, typeOpen, append(openBody(65001, 90)[:9], 255)), []byte{2, 0}},
		{"truncated UPDATE", true, appendMessage(nil, typeUpdate, []byte{0, 0, 0, 200, 0x80}), []byte{3, 1}},
		{"truncated route", true, appendMessage(nil, typeUpdate, evpnUpdate[:len(evpnUpdate)-4]), []byte{3, 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ours, peer := place(t)
			w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true})
			r := dialRaw(t, peer(1), ours)
			if tt.up {
				r.establish(full...)
				w.established(peer(1))
			}
			r.Write(tt.sent)
			if got := r.until(typeNotification); !slices.Equal(got, tt.want) {
				t.Errorf("NOTIFICATION % x, want % x", got, tt.want)
			}
			if k, _ := r.next(); k != 0 {
				t.Errorf("message of type %d after a NOTIFICATION", k)
			}
			r.Close()
			w.fails(peer(1), " ")
			w.routes(peer(1), 0)
			// And the peer may come back, reformed.
			eventually(t, "a session after all", func() bool {
				r = dialRaw(t, peer(1), ours)
				r.send(typeOpen, openBody(65001, 90, full...))
				k, _ := r.next()
				return k == typeOpen
			})
			r.until(typeKeepalive)
			r.send(typeKeepalive, nil)
			r.send(typeUpdate, evpnUpdate)
			w.routes(peer(1), 1)
		})
	}
}

// A connection that ends within a message ends the session and no more.
func TestCutOff(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true})
	r := dialRaw(t, peer(1), ours)
	r.establish(slices.Concat(capEVPN, cap65001)...)
	r.send(typeUpdate, evpnUpdate)
	w.routes(peer(1), 1)
	r.Write(appendMessage(nil, typeUpdate, evpnUpdate)[:30])
	r.Close()
	w.fails(peer(1), "connection")
	w.routes(peer(1), 0)
}

// A panic in the table ends one session, and is counted; others go on.
func TestPanic(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true}, Peer{Address: peer(2), AS: 65001, Passive: true})
	caps := slices.Concat(capEVPN, cap65001)
	a, b := dialRaw(t, peer(1), ours), dialRaw(t, peer(2), ours)
	a.establish(caps...)
	b.establish(caps...)
	b.send(typeUpdate, evpnUpdate)
	w.routes(peer(2), 1)
	w.lib.of(peer(1)).mu.Lock()
	w.lib.of(peer(1)).update = func([]byte) error { panic("table on fire") }
	w.lib.of(peer(1)).mu.Unlock()
	a.send(typeUpdate, evpnUpdate)
	if got := a.until(typeNotification); !slices.Equal(got, []byte{6, 8}) {
		t.Errorf("NOTIFICATION % x, want Cease, Out of Resources", got)
	}
	w.fails(peer(1), "table on fire")
	if n := w.status(peer(1)).Panics; n != 1 {
		t.Errorf("%d panics counted, want 1", n)
	}
	if !w.lib.of(peer(1)).heard("down graceful=false") {
		t.Error("routes were not taken back")
	}
	if s := w.status(peer(2)); s.State != Established || s.Flaps != 0 || s.Routes != 1 {
		t.Errorf("the other peer: %+v", s)
	}
}

// Why we turned a peer away is to be read until it is heard again, though it lets connections fail
// meanwhile.
func TestReasonStays(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	lib := &library{}
	lib.of(peer(1)).update = func([]byte) error { return fmt.Errorf("1 route too many: %w", rib.ErrLimit) }
	w := speakWith(t, lib, ours, 65000, Peer{Address: peer(1), AS: 65001}) // nobody listens there
	caps := slices.Concat(capEVPN, cap65001)
	r := dialRaw(t, peer(1), ours)
	r.establish(caps...)
	r.send(typeUpdate, evpnUpdate)
	if got := r.until(typeNotification); !slices.Equal(got, []byte{6, 1}) {
		t.Errorf("NOTIFICATION % x, want Cease, Maximum Number of Prefixes Reached", got)
	}
	r.Close()
	eventually(t, "an end", func() bool { return w.status(peer(1)).Flaps == 1 })
	before := w.status(peer(1)).Failures
	eventually(t, "three attempts in vain", func() bool { return w.status(peer(1)).Failures >= before+3 })
	if got := fmt.Sprint(w.status(peer(1)).LastError); !strings.Contains(got, "1 route too many: prefix limit; since then: cannot connect") ||
		strings.Count(got, "since then") != 1 {
		t.Errorf("last error: %s", got)
	}
	// What ends a session after that one is told by itself.
	b := lib.of(peer(1))
	b.mu.Lock()
	b.update = nil
	b.mu.Unlock()
	r = dialRaw(t, peer(1), ours)
	r.establish(caps...)
	w.established(peer(1))
	r.Close()
	eventually(t, "another end", func() bool { return w.status(peer(1)).Flaps == 2 })
	if got := w.status(peer(1)).LastError; errors.Is(got, rib.ErrLimit) {
		t.Errorf("last error of a session that found no limit: %v", got)
	}
}

// An AS_PATH of a peer without four-octet AS numbers is none of our business, its routes are
// (Tungsten Fabric's control nodes by default).
func TestTwoOctetAS(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true})
	r := dialRaw(t, peer(1), ours)
	r.establish(capEVPN...)
	r.send(typeUpdate, evpnUpdate)
	w.routes(peer(1), 1)
	if slices.Contains(w.status(peer(1)).Capabilities, "four-octet-as") {
		t.Error("a capability that the peer did not have")
	}
}

// Whatever a peer asks and does, what it hears are the five things that doc.go says.
func TestTeachesNothing(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true, HoldTime: 3 * time.Second},
		Peer{Address: peer(2), AS: 65001, Passive: true})
	other := dialRaw(t, peer(2), ours)
	other.establish(slices.Concat(capEVPN, cap65001)...)
	other.send(typeUpdate, evpnUpdate)
	w.routes(peer(2), 1)
	r := dialRaw(t, peer(1), ours)
	// Graceful restart with EVPN, and route refresh.
	r.establish(slices.Concat(capEVPN, cap65001, []byte{64, 6, 0, 5, 0, 25, 70, 0x80, 2, 0})...)
	r.send(typeRefresh, []byte{0, 25, 0, 70}) // asked, and with no answer
	r.send(typeUpdate, evpnUpdate)
	w.routes(peer(1), 1)
	if err := w.s.Refresh(t.Context(), netip.MustParseAddr(peer(1))); err != nil {
		t.Fatal(err)
	}
	var updates, refreshes, keepalives int
	for k, body := r.next(); k != 0; k, body = r.next() {
		switch k {
		case typeUpdate:
			if updates++; !slices.Equal(body, []byte{0, 0, 0, 6, 0x80, 15, 3, 0, 25, 70}) {
				t.Errorf("UPDATE % x, want an End-of-RIB of EVPN", body)
			}
		case typeRefresh:
			if refreshes++; !slices.Equal(body, []byte{0, 25, 0, 70}) {
				t.Errorf("ROUTE-REFRESH % x, want one of EVPN", body)
			}
		case typeNotification:
			if !slices.Equal(body, []byte{6, 2}) {
				t.Errorf("NOTIFICATION % x, want Cease, Administrative Shutdown", body)
			}
		case typeKeepalive:
			r.send(typeKeepalive, nil) // its hold time is not to end
			if keepalives++; keepalives == 2 {
				go w.stop()
			}
		default:
			t.Errorf("message of type %d", k)
		}
	}
	if updates != 1 || refreshes != 1 {
		t.Errorf("%d End-of-RIBs, %d ROUTE-REFRESHes, want 1 and 1", updates, refreshes)
	}
}

// The last door: nothing passes a conn that could teach.
func TestMayLeave(t *testing.T) {
	eor := endOfRIB(families["evpn"])
	tests := []struct {
		name string
		b    []byte
		ok   bool
	}{
		{"keepalive", appendMessage(nil, typeKeepalive, nil), true},
		{"End-of-RIB", appendMessage(nil, typeUpdate, eor), true},
		{"route", appendMessage(nil, typeUpdate, evpnUpdate), false},
		{"End-of-RIB of IPv4, which is an UPDATE without anything", appendMessage(nil, typeUpdate, []byte{0, 0, 0, 0}), false},
		{"End-of-RIB with a route after it", appendMessage(nil, typeUpdate, append(slices.Clone(eor), 24, 10, 0, 0)), false},
		{"withdraw", appendMessage(nil, typeUpdate, []byte{0, 4, 24, 10, 0, 0, 0, 0}), false},
		{"two messages", append(appendMessage(nil, typeKeepalive, nil), appendMessage(nil, typeUpdate, evpnUpdate)...), false},
		{"half a message", appendMessage(nil, typeUpdate, eor)[:25], false},
		{"unknown type", appendMessage(nil, 6, nil), false},
		{"nothing", nil, false},
	}
	for _, tt := range tests {
		if got := mayLeave(tt.b); got != tt.ok {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.ok)
		}
	}
}

// Connections of strangers, and of peers to another address, are refused and counted.
func TestStranger(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true})
	r := dialRaw(t, peer(2), ours)
	if k, _ := r.next(); k != 0 {
		t.Errorf("a stranger was told a message of type %d", k)
	}
	if s := w.status(peer(1)); s.State != Active || s.Failures != 0 {
		t.Errorf("the peer, after a stranger's visit: %+v", s)
	}
}
