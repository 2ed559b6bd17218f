package ovs

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/internal/sandbox"
)

// TestOpenFlowMessages has ovs-ofctl read what we say, in every version.
func TestOpenFlowMessages(t *testing.T) {
	for version := uint8(ofVersionLeast); version <= ofVersionMost; version++ {
		m := appendDeleteNowhere(nil, version)
		got := sandbox.Command(t, "ovs-ofctl", "ofp-print", hex.EncodeToString(m))
		want := fmt.Sprintf("OFPT_FLOW_MOD (OF1.%d) (xid=0x2): DEL_STRICT priority=1,in_port=LOCAL,dl_type=0xffff cookie:%#x/0xffffffffffffffff", version-1, flows.Cookie)
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
		got = sandbox.Command(t, "ovs-ofctl", "ofp-print", hex.EncodeToString(appendDumpOurs(nil, version)))
		want = fmt.Sprintf("OFPST_FLOW request (OF1.%d) (xid=0x1):", version-1)
		if strings.TrimSpace(got) != want {
			t.Errorf("%s, want %s", got, want)
		}
		got = sandbox.Command(t, "ovs-ofctl", "ofp-print", hex.EncodeToString(appendDumpGroups(nil, version)))
		want = fmt.Sprintf("OFPST_GROUP_DESC request (OF1.%d) (xid=0x1):", version-1)
		if !strings.HasPrefix(got, want) || strings.Contains(got, "group_id") && !strings.Contains(got, "group_id=ALL") {
			t.Errorf("%s, want %s of all groups", got, want)
		}
	}
	if got := sandbox.Command(t, "ovs-ofctl", "ofp-print", hex.EncodeToString(appendHello(nil))); !strings.Contains(got, "version bitmap: 0x04, 0x05, 0x06") {
		t.Errorf("hello: %s", got)
	}
}

// TestDeleteNowhere asks bridges that are restricted to some versions; none loses a flow, and Settle returns
// whatever they speak.
func TestDeleteNowhere(t *testing.T) {
	t.Parallel()
	s := open(t)
	for protocols, err := range map[string]error{
		"OpenFlow10": errOtherOpenFlow, "OpenFlow11": errOtherOpenFlow, "OpenFlow10,OpenFlow12": errOtherOpenFlow,
		"OpenFlow13": nil, "OpenFlow14": nil, "OpenFlow15": nil, "OpenFlow10,OpenFlow14": nil,
	} {
		t.Run(protocols, func(t *testing.T) {
			bridge := addBridge(t)
			install(t, s, bridge)
			sandbox.Command(t, "ovs-ofctl", "add-flow", bridge, "table=0,priority=1,in_port=LOCAL,dl_type=0xffff,actions=drop")
			sandbox.Command(t, "ovs-vsctl", "set", "Bridge", bridge, "protocols="+protocols)
			ours, foreign := len(dumpOurs(t, s, bridge)), dumpForeign(t, bridge)
			if got := s.deleteNowhere(t.Context(), bridge); !errors.Is(got, err) {
				t.Errorf("%v, want %v", got, err)
			}
			if err := s.Settle(t.Context(), bridge); err != nil {
				t.Error(err)
			}
			if n := len(dumpOurs(t, s, bridge)); n != ours || ours == 0 || dumpForeign(t, bridge) != foreign {
				t.Errorf("%d flows of ours, were %d; others:\n%s\nwere\n%s", n, ours, dumpForeign(t, bridge), foreign)
			}
		})
	}
	if err := s.deleteNowhere(t.Context(), "nobody"); err == nil || errors.Is(err, errOtherOpenFlow) {
		t.Errorf("a bridge that is not there: %v", err)
	}
}

func TestCommonVersion(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		hello string
		want  uint8
		err   string
	}{
		{hello: "0600000800000001", want: 6}, {hello: "0400000800000001", want: 4}, {hello: "ff00000800000001", err: errOtherOpenFlow.Error()},
		{hello: "0100000800000001", err: errOtherOpenFlow.Error()}, {hello: "0000000800000001", err: errOtherOpenFlow.Error()},
		{hello: "0600001000000001" + "0001000800000012", want: 4}, // 1.0 and 1.3
		{hello: "0600001000000001" + "000100080000007e", want: 6},
		{hello: "0600001000000001" + "0001000800000002", err: errOtherOpenFlow.Error()},
		{hello: "0600001800000001" + "0007000600000000" + "0001000800000020", want: 5}, // after one that is not known
		{hello: "0600001000000001" + "0001000000000020", err: "element of 0 bytes"},
		{hello: "0600001000000001" + "0001000900000020", err: "element of 9 bytes"},
	} {
		b, err := hex.DecodeString(tt.hello)
		if err != nil {
			t.Fatal(err)
		}
		got, err := commonVersion(b)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %d, %v; want %d, %s", tt.hello, got, err, tt.want, tt.err)
		}
	}
}

// FuzzOpenFlow reads what a switch may say: a message is as long as it says, or there is an error.
func FuzzOpenFlow(f *testing.F) {
	f.Add(appendHello(nil))
	f.Add(appendDeleteNowhere(nil, 4))
	f.Add([]byte{6, 0, 0, 7, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, m, err := readOpenFlow(bytes.NewReader(b))
		if err != nil {
			return
		}
		if kind != m[1] || !bytes.HasPrefix(b, m) || len(m) != int(binary.BigEndian.Uint16(m[2:])) {
			t.Errorf("%x is read of %x", m, b)
		}
		if v, err := commonVersion(m); (err == nil) != (v >= ofVersionLeast && v <= ofVersionMost) {
			t.Errorf("version %d, %v of %x", v, err, m)
		}
	})
}
