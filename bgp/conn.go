package bgp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/jwhited/corebgp"
)

const (
	// openWait for the first message. RFC 4271 suggests 4 minutes (section 8.2.2), in which a peer
	// whose host died after the handshake could not come back.
	openWait = 30 * time.Second
	// writeWait is how long a peer may not read. It is a lower bound for what RFC 9687 asks for.
	writeWait = 30 * time.Second
	// farewell is how long a peer has to read why we go: closing a socket that holds unread octets
	// resets the connection, and the NOTIFICATION may be lost with it (RFC 1122, section 4.2.2.13).
	farewell = 500 * time.Millisecond
)

// errTeach says that something wanted to send a route.
var errTeach = errors.New("refused to send a message that is none of a listener's")

// conn is a connection to a peer that knows messages: it hands over whole ones, refuses to send what
// could teach a route, and notes why the session ends. corebgp reads and writes it.
type conn struct {
	net.Conn
	peer   netip.AddrPort
	r      *bufio.Reader
	buf    [maxMessage]byte
	rest   []byte // of buf or of a changed OPEN: not handed over yet
	live   bool   // had a KEEPALIVE, so that corebgp waits for no handshake any more
	pipe   *pipe  // for UPDATEs
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex
	opened   open                  // once hasOpen
	hasOpen  bool                  //
	sent     *corebgp.Notification // the first of each
	received *corebgp.Notification
	readErr  error
	cause    error // why we closed, if it was our wish
}

func newConn(c net.Conn, peer netip.Addr, p *pipe) *conn {
	c.SetReadDeadline(time.Now().Add(openWait))
	return &conn{
		Conn: c, peer: netip.AddrPortFrom(peer, defaultPort), pipe: p,
		r: bufio.NewReaderSize(c, burstRoom), closed: make(chan struct{}),
	}
}

// RemoteAddr is the configured address, by which corebgp knows the peer.
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.peer) }

// Read hands over messages, one after another, in as many pieces as b needs.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		if err := c.next(); err != nil {
			c.mu.Lock()
			if c.readErr == nil {
				c.readErr = err
			}
			c.mu.Unlock()
			return 0, err
		}
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// next reads a message into rest. ROUTE-REFRESH is left out: corebgp does not know it, and the answer
// is that there are no routes to tell, so nothing. UPDATEs go another way; see [burst]. Malformed headers
// are answered here, as RFC 4271 wants it: corebgp leaves the faulty length out.
func (c *conn) next() error {
	for {
		if err := c.message(); err != nil || !c.live {
			return err
		}
		switch c.buf[18] {
		case typeRefresh:
			continue
		case typeUpdate:
			body := c.rest[headerLen:]
			c.rest = standIn
			return c.burst(body)
		}
		return nil
	}
}

func (c *conn) message() error {
	if _, err := io.ReadFull(c.r, c.buf[:headerLen]); err != nil {
		return err
	}
	n, bad := checkHeader(c.buf[:headerLen])
	if bad != nil {
		c.notify(bad)
		return errors.New("malformed message header")
	}
	if _, err := io.ReadFull(c.r, c.buf[headerLen:n]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	c.rest = c.buf[:n]
	switch body := c.buf[headerLen:n]; c.buf[18] {
	case typeOpen:
		c.rest = c.takeOpen(body)
	case typeKeepalive:
		c.live = true
	case typeNotification:
		c.mu.Lock()
		if c.received == nil {
			c.received = &corebgp.Notification{Code: body[0], Subcode: body[1], Data: bytes.Clone(body[2:])}
		}
		c.mu.Unlock()
	}
	return nil
}

// takeOpen notes what an OPEN says, and returns the message for corebgp.
func (c *conn) takeOpen(body []byte) []byte {
	c.SetReadDeadline(time.Time{}) // from here on corebgp's hold timer counts
	o, ok := parseOpen(body)
	if !ok {
		return c.rest
	}
	c.mu.Lock()
	c.opened, c.hasOpen = o, true
	c.mu.Unlock()
	if o.fourAS {
		return c.rest
	}
	body, _ = withFourOctetAS(body, o)
	return appendMessage(nil, typeOpen, body)
}

// Write sends a whole message, unless it could teach a route.
func (c *conn) Write(b []byte) (int, error) {
	if !mayLeave(b) {
		c.end(errTeach)
		return 0, errTeach
	}
	if b[18] == typeNotification {
		c.mu.Lock()
		if c.sent == nil {
			c.sent = &corebgp.Notification{Code: b[19], Subcode: b[20], Data: bytes.Clone(b[21:])}
		}
		c.mu.Unlock()
	}
	c.SetWriteDeadline(time.Now().Add(writeWait))
	return c.Conn.Write(b)
}

// mayLeave tells whether b is one whole message that teaches nothing.
func mayLeave(b []byte) bool {
	if len(b) < headerLen {
		return false
	}
	if n, bad := checkHeader(b[:headerLen]); bad != nil || n != len(b) {
		return false
	}
	switch b[18] {
	case typeOpen, typeNotification, typeKeepalive, typeRefresh:
		return true
	case typeUpdate:
		f, ok := parseEndOfRIB(b[headerLen:])
		return ok && bytes.Equal(b[headerLen:], endOfRIB(f))
	}
	return false
}

// notify sends a NOTIFICATION, unless one was sent. That the peer does not get it is no error: the
// connection is about to end anyway.
func (c *conn) notify(n *corebgp.Notification) {
	c.mu.Lock()
	again := c.sent != nil
	c.mu.Unlock()
	if !again {
		c.Write(appendMessage(nil, typeNotification, append([]byte{n.Code, n.Subcode}, n.Data...)))
	}
}

// over tells whether we have ended the session, so that nothing of it counts any more.
func (c *conn) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause != nil || c.sent != nil
}

// end closes the connection for a reason of ours.
func (c *conn) end(cause error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = cause
	}
	c.mu.Unlock()
	c.Close()
}

// Close closes the connection, after a farewell if a NOTIFICATION was sent.
func (c *conn) Close() error {
	var err error
	c.once.Do(func() {
		c.mu.Lock()
		told := c.sent != nil
		c.mu.Unlock()
		if half, ok := c.Conn.(interface{ CloseWrite() error }); told && ok && half.CloseWrite() == nil {
			c.SetReadDeadline(time.Now().Add(farewell))
			io.Copy(io.Discard, c.Conn)
		}
		err = c.Conn.Close()
		close(c.closed)
	})
	return err
}

// why says why the session ended, and whether a graceful restart may be behind it: neither side
// said goodbye (RFC 4724, section 4.2).
func (c *conn) why() (err error, silent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cause != nil:
		return c.cause, errors.Is(c.cause, errReplaced)
	case c.received != nil:
		return fmt.Errorf("received %s", describe(c.received)), false
	case c.sent != nil:
		return fmt.Errorf("sent %s", describe(c.sent)), false
	case errors.Is(c.readErr, io.EOF):
		return errors.New("connection closed by the peer"), true
	case errors.Is(c.readErr, os.ErrDeadlineExceeded) && !c.hasOpen:
		return fmt.Errorf("no OPEN in %v", openWait), false
	case c.readErr != nil:
		return fmt.Errorf("connection lost: %w", c.readErr), true
	}
	return errors.New("connection lost"), true
}
