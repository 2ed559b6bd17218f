package ovs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/dyetrace/dyetrace/flows"
)

// Some requests are made too often for a start of ovs-ofctl each time, which is more of a processor than what
// they ask for: they go by connections of our own. What they take is alike in OpenFlow 1.3 to 1.5
// (the Open Networking Foundation's Switch Specifications 1.3.5, 1.4.1 and 1.5.1, section 7):
//
//	version 8 │ type 8 │ length 16 │ transaction 32 │ …
const (
	ofVersionLeast, ofVersionMost = 4, 6 // 1.3 and 1.5

	ofHello, ofError, ofEchoRequest, ofEchoReply    = 0, 1, 2, 3
	ofFlowMod, ofMultipartRequest, ofMultipartReply = 14, 18, 19
	ofBarrierRequest, ofBarrierReply                = 20, 21

	ofHeader = 8
)

// errOtherOpenFlow says that a bridge speaks none of the versions in which we ask.
var errOtherOpenFlow = errors.New("the bridge speaks neither OpenFlow 1.3, 1.4 nor 1.5")

// link is a connection to a bridge, on which both have said hello. One that is made anew for each request costs
// ovs-vswitchd's main loop two turns more. Of itself it says nothing there: asynchronous messages are
// for who has asked for some (ofconn_receives_async_msg of Open vSwitch's connmgr.c).
type link struct {
	conn    net.Conn
	in      *bufio.Reader
	switchd string // that it leads to: Switch.switchd
	version uint8
	last    uint32 // transaction
}

// linksIdle is how many of a bridge are kept: one who looks at its flows, and one who has a sweep begin.
const linksIdle = 2

// bridgesKept has, by bridge, what is kept from one request to the next.
type bridgesKept struct {
	mu      sync.Mutex
	bridges map[string]*bridgeKept
	closed  bool
}

type bridgeKept struct {
	links   []*link               // that nobody uses at the moment
	spelled map[string]flows.Flow // see Switch.spell
}

// of returns what is kept of a bridge. Caller holds mu.
func (k *bridgesKept) of(bridge string) *bridgeKept {
	b := k.bridges[bridge]
	if b == nil {
		b = &bridgeKept{}
		k.bridges[bridge] = b
	}
	return b
}

// link returns one that leads to this ovs-vswitchd, or nil.
func (k *bridgesKept) link(bridge, switchd string) *link {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := k.of(bridge)
	for len(b.links) > 0 {
		l := b.links[len(b.links)-1]
		b.links = b.links[:len(b.links)-1]
		if l.switchd == switchd {
			return l
		}
		l.conn.Close()
	}
	return nil
}

// giveBack keeps a link for the next one who asks.
func (k *bridgesKept) giveBack(bridge string, l *link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := k.of(bridge)
	if k.closed || l.switchd == "" || len(b.links) >= linksIdle {
		l.conn.Close()
		return
	}
	b.links = append(b.links, l)
}

// only forgets all bridges but those that are there.
func (k *bridgesKept) only(there func(bridge string) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, b := range k.bridges {
		if !there(name) {
			b.close()
			delete(k.bridges, name)
		}
	}
}

// close has no link stay open, now and from now on.
func (k *bridgesKept) close() {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.only(func(string) bool { return false })
}

func (b *bridgeKept) close() {
	for _, l := range b.links {
		l.conn.Close()
	}
	b.links = nil
}

// askOpenFlow sends a bridge what request returns, and a barrier, and returns all that the bridge had to say before
// that one's reply.
func (s *Switch) askOpenFlow(ctx context.Context, bridge string, request func(version uint8) []byte) (replies [][]byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	for {
		switchd := s.switchd()
		l := s.kept.link(bridge, switchd)
		old := l != nil
		if !old {
			if l, err = s.dialOpenFlow(ctx, bridge); err != nil {
				return nil, err
			}
			l.switchd = switchd
		}
		inTime := l.within(ctx)
		replies, err = l.ask(request(l.version))
		if inTime() && err == nil {
			s.kept.giveBack(bridge, l)
		} else {
			l.conn.Close() // what is yet to come on it would be taken for an answer to what is asked next
		}
		switch {
		case err == nil:
			return replies, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !old:
			return nil, err
		}
		// Mostly it is that the bridge was made anew. What is asked here changes nothing, so it can be asked again.
	}
}

// within bounds what is done on a link by ctx, up to the call of what it returns, which says whether ctx had
// not ended before.
func (l *link) within(ctx context.Context) (end func() bool) {
	return context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(time.Unix(1, 0)) }) // it cannot fail on a socket that is open
}

// dialOpenFlow connects to a bridge, and says hello.
func (s *Switch) dialOpenFlow(ctx context.Context, bridge string) (_ *link, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(s.opts.RunDir, bridge+".mgmt"))
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn, in: bufio.NewReader(conn)}
	inTime := l.within(ctx)
	err = l.greet()
	switch {
	case !inTime():
		err = context.Cause(ctx)
		fallthrough
	case err != nil:
		conn.Close()
		return nil, err
	}
	return l, nil
}

func (l *link) greet() error {
	if _, err := l.conn.Write(appendHello(nil)); err != nil {
		return err
	}
	kind, hello, err := readOpenFlow(l.in)
	if err != nil {
		return err
	}
	if kind != ofHello {
		return fmt.Errorf("OpenFlow: message %d for a hello", kind)
	}
	l.version, err = commonVersion(hello)
	return err
}

// ask sends a request and a barrier, and returns what came before the barrier's reply.
func (l *link) ask(request []byte) (replies [][]byte, err error) {
	l.last++
	request = append(request, l.version, ofBarrierRequest, 0, ofHeader)
	request = binary.BigEndian.AppendUint32(request, l.last)
	if _, err := l.conn.Write(request); err != nil {
		return nil, err
	}
	for {
		kind, m, err := readOpenFlow(l.in)
		switch {
		case err != nil:
			return nil, err
		case kind == ofError:
			return nil, fmt.Errorf("OpenFlow: error %x", m[ofHeader:])
		case kind == ofEchoRequest:
			m[1] = ofEchoReply
			if _, err := l.conn.Write(m); err != nil {
				return nil, err
			}
		case kind == ofBarrierReply:
			if n := binary.BigEndian.Uint32(m[4:]); n != l.last {
				return nil, fmt.Errorf("OpenFlow: reply to barrier %d for that to %d", n, l.last)
			}
			return replies, nil
		default:
			replies = append(replies, m)
		}
	}
}

// deleteNowhere has a bridge delete flows of ours that are nowhere, and returns when it has done so.
func (s *Switch) deleteNowhere(ctx context.Context, bridge string) error {
	_, err := s.askOpenFlow(ctx, bridge, func(version uint8) []byte { return appendDeleteNowhere(nil, version) })
	return err
}

// appendHello appends our hello: the versions that we speak are a bitmap, 1.0 being bit 1.
func appendHello(b []byte) []byte {
	const versionBitmap = 1
	b = append(b, ofVersionMost, ofHello, 0, ofHeader+8, 0, 0, 0, 1)
	b = append(b, 0, versionBitmap, 0, 8)
	return binary.BigEndian.AppendUint32(b, 1<<4|1<<5|1<<6)
}

// commonVersion is the one to go on in after a hello, which may be without a bitmap: then its version is the
// highest of all that its sender speaks.
func commonVersion(hello []byte) (uint8, error) {
	speaks := uint32(1)<<(hello[0]+1) - 1
	for rest := hello[ofHeader:]; len(rest) >= 4; {
		kind, n := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		if n < 4 || n > len(rest) {
			return 0, fmt.Errorf("OpenFlow: hello element of %d bytes in %d", n, len(rest))
		}
		if kind == 1 && n >= 8 {
			speaks = binary.BigEndian.Uint32(rest[4:])
		}
		rest = rest[min(len(rest), (n+7)/8*8):]
	}
	for v := uint8(ofVersionMost); v >= ofVersionLeast; v-- {
		if speaks>>v&1 == 1 {
			return v, nil
		}
	}
	return 0, errOtherOpenFlow
}

// appendDeleteNowhere appends a strict deletion of what is in table 0 with priority 1, our whole cookie, and a
// match of a port and an EtherType that no flow of ours has.
func appendDeleteNowhere(b []byte, version uint8) []byte {
	const (
		deleteStrict   = 4
		any32          = 0xffffffff // buffer, port and group
		inPort, ethTyp = 0x80000004, 0x80000a02
		local          = 0xfffffffe
		length         = ofHeader + 40 + 24
	)
	be := binary.BigEndian
	b = append(b, version, ofFlowMod, 0, length, 0, 0, 0, 2)
	b = be.AppendUint64(b, flows.Cookie)
	b = be.AppendUint64(b, 1<<64-1) // mask
	b = append(b, 0, deleteStrict, 0, 0, 0, 0)
	b = be.AppendUint16(b, 1) // priority
	for range 3 {
		b = be.AppendUint32(b, any32)
	}
	b = append(b, 0, 0, 0, 0)
	b = append(b, 0, 1, 0, 18) // a match of OXM fields, 18 bytes and padding
	b = be.AppendUint32(b, inPort)
	b = be.AppendUint32(b, local)
	b = be.AppendUint32(b, ethTyp)
	return append(b, 0xff, 0xff, 0, 0, 0, 0, 0, 0)
}

// readOpenFlow reads one message, its header included.
func readOpenFlow(r io.Reader) (kind uint8, m []byte, err error) {
	m = make([]byte, ofHeader)
	if _, err := io.ReadFull(r, m); err != nil {
		return 0, nil, fmt.Errorf("OpenFlow: %w", err)
	}
	n := int(binary.BigEndian.Uint16(m[2:]))
	if n < ofHeader {
		return 0, nil, fmt.Errorf("OpenFlow: a message of %d bytes", n)
	}
	m = append(m, make([]byte, n-ofHeader)...)
	if _, err := io.ReadFull(r, m[ofHeader:]); err != nil {
		return 0, nil, fmt.Errorf("OpenFlow: %w", err)
	}
	return m[1], m, nil
}
