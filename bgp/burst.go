package bgp

import (
	"net"

	"github.com/dyetrace/dyetrace/bgp/rib"
)

// UPDATEs come in bursts: a full feed is thousands of them without a gap. What reads the connection
// decodes those that are there already, and hands them over together; meanwhile the burst before is
// taken in by the table. So a peer's feed keeps two processors busy, and what it costs to wake the
// other one is shared by a burst.
//
//	socket ─▶ conn: frame, Feed.Read ─▶ stand-in ─▶ corebgp's state machine ─▶ session: Feed.Take
//	              ▲                 └─▶ full (burst) ─────────────────────────────▲    │
//	              └──────────────────── free (burst) ◀─────────────────────────────────┘
//
// corebgp sees one UPDATE for each burst, a stand-in, so that order, hold timer and the end of a session
// are its own. There are two bursts. With both underway nothing is read, TCP holds the peer up, and the
// hold timer begins anew with each that was taken in: it measures what the peer says, not how long we
// take. What a peer said in whole before it closed is taken in; what we have not taken in when we
// end a session is forgotten.
type burst struct {
	room    [burstRoom]byte // bodies
	used    int
	updates [burstLen]rib.Ahead
	n       int
	broken  bool // a fault of ours ended it
}

const (
	// burstRoom is how much a read takes from the socket; see newConn. A burst of routes is then some
	// 2,000, which is half a millisecond of a table's time.
	burstRoom = 64 << 10
	// burstLen bounds what UPDATEs without routes can cost.
	burstLen = 64
	// bursts are in the making and underway. A third gained nothing.
	bursts = 2
)

// standIn is the UPDATE that corebgp sees in place of a burst.
var standIn = appendMessage(nil, typeUpdate, []byte{0, 0, 0, 0})

// pipe is where bursts go to and fro. Neither of its channels is ever full.
type pipe struct {
	free, full chan *burst
	made       int
	// read decodes an UPDATE; false: it could not, for a fault of ours.
	read func(a *rib.Ahead, body []byte) bool
}

func newPipe(read func(a *rib.Ahead, body []byte) bool) *pipe {
	return &pipe{free: make(chan *burst, bursts), full: make(chan *burst, bursts), read: read}
}

// next returns an empty burst, once there is one.
func (p *pipe) next(closed <-chan struct{}) (*burst, error) {
	select {
	case b := <-p.free:
		b.used, b.n, b.broken = 0, 0, false
		return b, nil
	default:
	}
	if p.made < bursts {
		p.made++
		return new(burst), nil
	}
	select {
	case b := <-p.free:
		b.used, b.n, b.broken = 0, 0, false
		return b, nil
	case <-closed:
		return nil, net.ErrClosed
	}
}

// fits tells whether a burst has room for another body.
func (b *burst) fits(body int) bool { return !b.broken && b.n < burstLen && b.used+body <= burstRoom }

func (p *pipe) add(b *burst, body []byte) {
	at := b.room[b.used : b.used+len(body) : b.used+len(body)]
	copy(at, body)
	b.used += len(body)
	if !p.read(&b.updates[b.n], at) {
		b.broken = true
		return
	}
	b.n++
}

// burst makes the UPDATE at hand, and all that are behind it in the buffer, a burst.
func (c *conn) burst(body []byte) error {
	b, err := c.pipe.next(c.closed)
	if err != nil {
		return err
	}
	c.pipe.add(b, body)
	for {
		n := c.buffered()
		if n == 0 || !b.fits(n-headerLen) {
			break
		}
		m, _ := c.r.Peek(n)
		c.pipe.add(b, m[headerLen:])
		c.r.Discard(n)
	}
	c.pipe.full <- b
	return nil
}

// buffered returns how long the next message is, if it is a whole UPDATE that was read already.
func (c *conn) buffered() int {
	if c.r.Buffered() < headerLen {
		return 0
	}
	h, _ := c.r.Peek(headerLen)
	n, bad := checkHeader(h)
	if bad != nil || h[18] != typeUpdate || c.r.Buffered() < n {
		return 0
	}
	return n
}
