package ovs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"github.com/dyetrace/dyetrace/flows"
)

// One request is made too often for a start of ovs-ofctl each time, which is as much of a processor as the
// sweep that it is for: it goes by a connection of our own. What it takes is alike in OpenFlow 1.3 to 1.5
// (the Open Networking Foundation's Switch Specifications 1.3.5, 1.4.1 and 1.5.1, section 7):
//
//	version 8 │ type 8 │ length 16 │ transaction 32 │ …
const (
	ofVersionLeast, ofVersionMost = 4, 6 // 1.3 and 1.5

	ofHello, ofError, ofEchoRequest, ofEchoReply = 0, 1, 2, 3
	ofFlowMod, ofBarrierRequest, ofBarrierReply  = 14, 20, 21

	ofHeader = 8
)

// errOtherOpenFlow says that a bridge speaks none of the versions in which we ask.
var errOtherOpenFlow = errors.New("the bridge speaks neither OpenFlow 1.3, 1.4 nor 1.5")

// deleteNowhere has a bridge delete flows of ours that are nowhere, and returns when it has done so.
func (s *Switch) deleteNowhere(ctx context.Context, bridge string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(s.opts.RunDir, bridge+".mgmt"))
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(commandTimeout)) // it cannot fail on a socket that is open
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(appendHello(nil)); err != nil {
		return err
	}
	kind, body, err := readOpenFlow(conn)
	if err != nil {
		return err
	}
	if kind != ofHello {
		return fmt.Errorf("OpenFlow: message %d for a hello", kind)
	}
	version, err := commonVersion(body)
	if err != nil {
		return err
	}
	if _, err := conn.Write(appendDeleteNowhere(nil, version)); err != nil {
		return err
	}
	for {
		kind, body, err := readOpenFlow(conn)
		switch {
		case err != nil:
			return err
		case kind == ofBarrierReply:
			return nil
		case kind == ofError:
			return fmt.Errorf("OpenFlow: error %x", body[ofHeader:])
		case kind == ofEchoRequest:
			body[1] = ofEchoReply
			if _, err := conn.Write(body); err != nil {
				return err
			}
		}
	}
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
// match of a port and an EtherType that no flow of ours has; and a barrier.
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
	b = append(b, 0xff, 0xff, 0, 0, 0, 0, 0, 0)
	return append(b, version, ofBarrierRequest, 0, ofHeader, 0, 0, 0, 3)
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
