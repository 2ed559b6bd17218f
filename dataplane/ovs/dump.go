package ovs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/dyetrace/dyetrace/flows"
)

// Each run has the flows of every hook read three times, and more often the more there is to find out. A start of
// ovs-ofctl for each is 5 ms of a processor, and 20 to 40 ms of anybody's time where many wait for one: we ask by
// ourselves. But to know all that Open vSwitch has of matches and actions is ovs-ofctl's business, and
// text of its is what flows are compared by. So a flow that is not known as the switch says it is spelled by
// ovs-ofctl, once; from then on it is known by its bytes, which say the same each time but for the statistics:
//
//	1.3, 1.4   length 16 │ table 8 │ 0 8 │ duration 64 │ priority 16 │ timeouts 2×16 │ flags 16 │ importance 16 │ 0 16 │
//	           cookie 64 │ packets 64 │ bytes 64 │ match │ instructions
//	1.5        length 16 │ 0 16 │ table 8 │ 0 8 │ priority 16 │ timeouts 2×16 │ flags 16 │ importance 16 │ cookie 64 │
//	           match │ statistics │ instructions
//
// A match says its own length, without padding, in its second 16 bits, and so do the statistics of 1.5, which are
// fields of their own (Switch Specification 1.5.1, 7.2.4: class 16, field 7, reserved 1, length 8, value).
const (
	ofMultipart     = ofHeader + 8 // type 16, flags 16, padding
	ofMultipartFlow = 1
	ofMultipartDesc = 7 // of groups

	ofFlow13, ofFlow15 = 48, 24 // up to the match
)

// appendDumpOurs appends a request for all flows with our cookie.
func appendDumpOurs(b []byte, version uint8) []byte {
	const (
		allTables = 0xff
		any32     = 0xffffffff // port and group
		length    = ofMultipart + 32 + 8
	)
	be := binary.BigEndian
	b = append(b, version, ofMultipartRequest, 0, length, 0, 0, 0, 1)
	b = append(b, 0, ofMultipartFlow, 0, 0, 0, 0, 0, 0)
	b = append(b, allTables, 0, 0, 0)
	b = be.AppendUint32(b, any32)
	b = be.AppendUint32(b, any32)
	b = append(b, 0, 0, 0, 0)
	b = be.AppendUint64(b, flows.Cookie)
	b = be.AppendUint64(b, flows.CookieMask)
	return append(b, 0, 1, 0, 4, 0, 0, 0, 0) // a match of no fields
}

// appendDumpGroups appends a request for all groups.
func appendDumpGroups(b []byte, version uint8) []byte {
	const allGroups = 0xfffffffc
	length := uint8(ofMultipart)
	if version >= ofVersionMost {
		length += 8
	}
	b = append(b, version, ofMultipartRequest, 0, length, 0, 0, 0, 1)
	b = append(b, 0, ofMultipartDesc, 0, 0, 0, 0, 0, 0)
	if version >= ofVersionMost {
		b = binary.BigEndian.AppendUint32(b, allGroups)
		b = append(b, 0, 0, 0, 0)
	}
	return b
}

// hasNoGroups tells whether a bridge says that it has none, as most do.
func (s *Switch) hasNoGroups(ctx context.Context, bridge string) (bool, error) {
	replies, err := s.askOpenFlow(ctx, bridge, func(version uint8) []byte { return appendDumpGroups(nil, version) })
	if err != nil || len(replies) != 1 {
		return false, err
	}
	m := replies[0]
	if m[1] != ofMultipartReply || len(m) < ofMultipart || binary.BigEndian.Uint16(m[ofHeader:]) != ofMultipartDesc {
		return false, fmt.Errorf("OpenFlow: %x for groups", m)
	}
	return len(m) == ofMultipart && m[ofHeader+3]&1 == 0, nil // no more to come
}

// statedFlow is a flow as a switch states it.
type statedFlow struct {
	// is has all but the statistics.
	is      string
	packets uint64
}

// parseFlowReply reads a part of what a switch answers; more says that another follows. The error says that it
// is no such answer, of which ovs-ofctl may make something still.
func parseFlowReply(m []byte) (list []statedFlow, more bool, err error) {
	be := binary.BigEndian
	if len(m) < ofMultipart || m[1] != ofMultipartReply || be.Uint16(m[ofHeader:]) != ofMultipartFlow {
		return nil, false, fmt.Errorf("OpenFlow: %x for flows", m[:min(len(m), ofMultipart)])
	}
	for version, rest := m[0], m[ofMultipart:]; len(rest) > 0; {
		n := 0
		if len(rest) >= 2 {
			n = int(be.Uint16(rest))
		}
		if n < ofFlow15 || n > len(rest) {
			return nil, false, fmt.Errorf("OpenFlow: a flow of %d bytes in %d", n, len(rest))
		}
		f, ok := parseStated(version, rest[:n])
		if !ok {
			return nil, false, fmt.Errorf("OpenFlow: flow %x", rest[:n])
		}
		list, rest = append(list, f), rest[n:]
	}
	return list, m[ofHeader+3]&1 == 1, nil
}

// parseStated reads one flow.
func parseStated(version uint8, b []byte) (f statedFlow, ok bool) {
	be := binary.BigEndian
	if version < ofVersionMost {
		if len(b) < ofFlow13 {
			return f, false
		}
		var is []byte
		is = append(is, version)
		is = append(is, b[2:4]...)
		is = append(is, b[12:32]...)
		return statedFlow{string(append(is, b[ofFlow13:]...)), be.Uint64(b[32:])}, true
	}
	_, match, ok := cutPadded(b[ofFlow15:])
	if !ok {
		return f, false
	}
	stats := b[ofFlow15+match:]
	n, padded, ok := cutPadded(stats)
	if !ok {
		return f, false
	}
	if f.packets, ok = packetsOf(stats[4:n]); !ok {
		return f, false
	}
	var is []byte
	is = append(is, version)
	is = append(is, b[2:ofFlow15+match]...)
	f.is = string(append(is, stats[padded:]...))
	return f, true
}

// cutPadded returns how long it is what b begins with, by its second 16 bits, and with padding to 8 bytes.
func cutPadded(b []byte) (n, padded int, ok bool) {
	if len(b) < 4 {
		return 0, 0, false
	}
	n = int(binary.BigEndian.Uint16(b[2:]))
	padded = (n + 7) / 8 * 8
	return n, padded, n >= 4 && padded <= len(b)
}

// packetsOf finds the number of packets among statistics. Where there is none, it is all ones, as Open vSwitch has
// what it does not know.
func packetsOf(fields []byte) (n uint64, ok bool) {
	const basic, packetCount = 0x8002, 4
	n = 1<<64 - 1
	for len(fields) > 0 {
		if len(fields) < 4 || len(fields) < 4+int(fields[3]) {
			return 0, false
		}
		value := fields[4 : 4+int(fields[3])]
		if binary.BigEndian.Uint16(fields) == basic && fields[2]>>1 == packetCount {
			if len(value) != 8 {
				return 0, false
			}
			n = binary.BigEndian.Uint64(value)
		}
		fields = fields[4+len(value):]
	}
	return n, true
}

// spelled returns a bridge's flows as ovs-ofctl spells them, without counters, by what the switch states: those that
// it had when one was last not known. Nobody changes what is returned.
func (k *bridgesKept) spelled(bridge string) map[string]flows.Flow {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.of(bridge).spelled
}

func (k *bridgesKept) spell(bridge string, known map[string]flows.Flow) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.of(bridge).spelled = known
}

// askOurs asks a bridge for its flows that have our cookie.
func (s *Switch) askOurs(ctx context.Context, bridge string) ([]flows.Flow, error) {
	replies, err := s.askOpenFlow(ctx, bridge, func(version uint8) []byte { return appendDumpOurs(nil, version) })
	if err != nil {
		return nil, err
	}
	var stated []statedFlow
	more := true
	for _, m := range replies {
		var part []statedFlow
		if part, more, err = parseFlowReply(m); err != nil {
			return nil, err
		}
		stated = append(stated, part...)
	}
	if more {
		return nil, fmt.Errorf("OpenFlow: the last of %d answers is missing", len(replies)+1)
	}
	known := s.kept.spelled(bridge)
	list := make([]flows.Flow, len(stated))
	for i, f := range stated {
		flow, ok := known[f.is]
		if !ok {
			return s.spell(ctx, bridge, replies, stated)
		}
		flow.Packets = f.packets
		list[i] = flow
	}
	return list, nil
}

// spell has ovs-ofctl print replies, and keeps what they say.
func (s *Switch) spell(ctx context.Context, bridge string, replies [][]byte, stated []statedFlow) ([]flows.Flow, error) {
	out, err := s.run(ctx, bytes.NewReader(bytes.Join(replies, nil)), "ovs-ofctl", "ofp-parse", "-")
	if err != nil {
		return nil, err
	}
	list, err := flows.ParseDump(string(out))
	if err != nil {
		return nil, err
	}
	if len(list) != len(stated) {
		return nil, fmt.Errorf("OpenFlow: %d flows of which ovs-ofctl prints %d", len(stated), len(list))
	}
	known := make(map[string]flows.Flow, len(list))
	for i, f := range list {
		if f.Packets != stated[i].packets {
			return nil, fmt.Errorf("OpenFlow: %d packets of which ovs-ofctl prints %d: %v", stated[i].packets, f.Packets, f)
		}
		f.Packets = 0
		known[stated[i].is] = f
	}
	s.kept.spell(bridge, known)
	return list, nil
}
