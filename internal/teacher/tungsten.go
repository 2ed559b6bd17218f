package teacher

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// StartTungsten has a control node of Tungsten Fabric listen on an address, for one session until the
// test ends, and returns its port. Its AS is 64512; it teaches three routes.
func StartTungsten(t testing.TB, addr string) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- controlNode(l) }()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return l.Addr().(*net.TCPAddr).Port
}

// Communities as a control node of Tungsten Fabric puts them on its routes, byte for byte as in its source
// (tf-controller, src/bgp: extended-community/*.cc, origin-vn, security_group, tunnel_encap).
const (
	TungstenTarget = "0002 fc00 007a1201" // 64512:8000001
	tfOther        = "0002 fc00 007a1209" // 64512:8000009, which nobody maps
	tfGRE          = "030c 0000 0000 0002"
	tfUDP          = "030c 0000 0000 000d"
	tfNative       = "030c 0000 0000 0010" // NATIVE of tunnel_encap_type.h, beside others: the last resort
	tfOldUDP       = "030c 0000 0000 9089" // 37001 of Contrail releases from before IANA had a number
	tfOldVXLAN     = "030c 0000 0000 908a" // 37002
	tfGroup        = "8004 fc00 007a1202"  // security group
	tfOrigin       = "8071 fc00 00000004"  // origin virtual network
	tfLeaf         = "0605 0100 00000000"
	tfMobility     = "0600 0000 00000005"
)

// TungstenOthers are all other communities that its source has: none says where an address is.
var TungstenOthers = []string{
	"8204 0000fc00 0002",  // security group, AS of 4 octets
	"8271 0000fc00 0004",  // origin virtual network likewise
	"8084 fc00 00000007",  // tag
	"8284 0000fc00 0007",  // tag likewise
	"8085 fc00 00000001",  // sub-cluster
	"8285 0000fc00 0001",  // sub-cluster likewise
	"03aa f800 8000 0000", // load balance: five fields of the hash, source bias
	"0609 0001 00000000",  // multicast flags: IGMP proxy
	"0602 001122334455",   // ES import
	"0601 00 0000 000010", // ESI label, all-active
	"c000 00000003 0000",  // local sequence number; not transitive, so it should not come here
	"0009 fc00 00000000",  // source AS
	"010b 0a010001 0000",  // VRF route import
	"0003 fc00 00000001",  // site of origin
	"0202 0000fc00 0001",  // route target with an AS of 4 octets, which nobody maps
}

// tungstenUpdates are UPDATEs in hexadecimal: a type-2 route with an MPLS label (the lowest bit is the
// stack's bottom), an inet-vpn route, and a type-2 route with a VNI.
var tungstenUpdates = []string{
	TungstenUpdate("0019 46 04 0a010001 00"+
		"02 25 00010a0100010005 00000000000000000000 00000000 30 fa163e000111 20 0a00010b 000111",
		append([]string{TungstenTarget, tfGroup, tfOrigin, tfGRE, tfUDP, tfNative, tfOldUDP, tfMobility, tfLeaf}, TungstenOthers...)...),
	TungstenUpdate("0001 80 0c 0000000000000000 0a010002 00"+
		"78 000121 00010a0100020006 0a00010c",
		TungstenTarget, tfGroup, tfOrigin, tfGRE, tfUDP, tfOldUDP),
	TungstenUpdate("0019 46 04 0a010003 00"+
		"02 21 00010a0100030007 00000000000000000000 00000066 30 fa163e000199 00 000066",
		tfOther, tfGroup, tfOrigin, tfOldVXLAN),
}

// TungstenUpdate is the body of an UPDATE with MP_REACH_NLRI and communities.
func TungstenUpdate(reach string, communities ...string) string {
	unspaced := func(s string) string { return strings.ReplaceAll(s, " ", "") }
	reach, all := unspaced(reach), unspaced(strings.Join(communities, ""))
	attrs := "400101 00" + "400200" + "400504 00000064" +
		fmt.Sprintf("900e%04x", len(reach)/2) + reach + fmt.Sprintf("c010%02x", len(all)/2) + all
	attrs = unspaced(attrs)
	return fmt.Sprintf("0000%04x", len(attrs)/2) + attrs
}

// controlNode takes one connection, and says what a control node says: an OPEN without four-octet AS
// numbers, which are off by default, its routes, and KEEPALIVEs for an answer.
func controlNode(l net.Listener) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	send := func(kind byte, body string) {
		b, _ := hex.DecodeString(body)
		m := append(bytes.Repeat([]byte{0xff}, 16), 0, 0, kind)
		binary.BigEndian.PutUint16(m[16:], uint16(19+len(b)))
		c.Write(append(m, b...))
	}
	// Version 4, AS 64512, 90 s, 10.1.0.9; families inet-vpn and EVPN.
	send(1, "04fc00005a0a010009"+"10"+"020e"+"010400010080"+"010400190046"+"0200")
	for {
		h := make([]byte, 19)
		if _, err := io.ReadFull(c, h); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(h[16:]))-19); err != nil {
			return err
		}
		switch h[18] {
		case 1:
			send(4, "")
			for _, u := range tungstenUpdates {
				send(2, u)
			}
		case 3:
			return nil
		case 4:
			send(4, "")
		}
	}
}
