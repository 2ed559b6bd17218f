package bench

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

const (
	localAS = 65000
	// patience is far more than anything here takes.
	patience = 3 * time.Minute
	// handshakes are waited for so long: bgpd takes a second to listen.
	handshakes = 30 * time.Second
)

// sender speaks just enough BGP to push messages that were made before.
type sender struct {
	conn net.Conn
	mu   sync.Mutex // a message is written whole
	done chan struct{}
	// updates takes the bodies of UPDATEs; nil: nobody wants them.
	updates chan []byte
}

// dial goes through the handshake with a speaker that waits for us. updates may be nil.
func dial(t *testing.T, from, to string, updates chan []byte) *sender {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), Timeout: patience}
	var err error
	for deadline := time.Now().Add(handshakes); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var s *sender
		if s, err = handshake(d, to, updates); err == nil {
			t.Cleanup(s.close)
			return s
		}
	}
	t.Fatalf("no session from %s: %v", from, err)
	return nil
}

func handshake(d net.Dialer, to string, updates chan []byte) (*sender, error) {
	c, err := d.Dial("tcp", net.JoinHostPort(to, "179"))
	if err != nil {
		return nil, err
	}
	id := d.LocalAddr.(*net.TCPAddr).IP.To4()
	open := append([]byte{4, localAS >> 8, localAS & 0xff, 0, 180}, id...)
	caps := []byte{
		1, 4, 0, 25, 0, 70, // EVPN
		65, 4, 0, 0, localAS >> 8, localAS & 0xff,
		64, 2, 0, 0, // graceful restart: an End-of-RIB will come
	}
	open = append(open, byte(2+len(caps)), 2, byte(len(caps)))
	c.SetDeadline(time.Now().Add(5 * time.Second))
	c.Write(message(1, append(open, caps...)))
	for _, want := range []byte{1, 4} { // OPEN, KEEPALIVE
		kind, body, err := next(c)
		if err == nil && kind != want {
			err = fmt.Errorf("message of type %d (want %d): %x", kind, want, body)
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		c.Write(message(4, nil))
	}
	c.SetDeadline(time.Time{})
	s := &sender{conn: c, done: make(chan struct{}), updates: updates}
	go s.read()
	return s, nil
}

func next(r io.Reader) (kind byte, body []byte, err error) {
	h := make([]byte, 19)
	if _, err := io.ReadFull(r, h); err != nil {
		return 0, nil, err
	}
	body = make([]byte, binary.BigEndian.Uint16(h[16:])-19)
	_, err = io.ReadFull(r, body)
	return h[18], body, err
}

// read takes what comes, and answers each KEEPALIVE with one.
func (s *sender) read() {
	defer close(s.done)
	for {
		kind, body, err := next(s.conn)
		if err != nil {
			return
		}
		if kind == 2 && s.updates != nil {
			s.updates <- body
		}
		if kind == 4 {
			s.mu.Lock()
			s.conn.Write(message(4, nil))
			s.mu.Unlock()
		}
	}
}

func (s *sender) close() {
	s.conn.Close()
	<-s.done
}

// push writes messages.
func (s *sender) push(messages []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.conn.Write(messages)
	return err
}
