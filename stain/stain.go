package stain

import (
	"errors"
	"fmt"
)

// Scheme is one way to stain a packet. The numbers are those of the protobuf
// contract.
type Scheme uint8

const (
	// TCP stains a SYN by its ToS and by one port number for source and destination.
	TCP Scheme = 1
	// ICMP stains an echo request, of ICMP or ICMPv6, by its ToS.
	ICMP Scheme = 2
)

var schemeNames = [...]string{TCP: "tcp", ICMP: "icmp"}

// String returns the name of the scheme as users write it.
func (s Scheme) String() string {
	if s.valid() {
		return schemeNames[s]
	}
	return fmt.Sprintf("scheme(%d)", uint8(s))
}

// valid tells whether the scheme is one that there is.
func (s Scheme) valid() bool { return s == TCP || s == ICMP }

// Stain is the marks by which a probe is recognised, in every scheme. All agents
// of a fleet use the same ones.
type Stain struct {
	// TOS is the whole byte that RFC 791 calls Type of Service and RFC 8200 Traffic
	// Class: DSCP in the upper six bits, ECN, always 0 here, in the lower two (RFC
	// 3168, section 5).
	TOS uint8
	// Port is the source port and the destination port of scheme tcp. ICMP has no
	// ports: there the ToS alone marks an echo.
	Port uint16
}

// Default returns the stain that is used where nobody chose one: DSCP 23, port 11.
// DSCP 23 is in none of the pools that have recommended values (RFC 2474, section
// 6: xxxx11 is for experiments and local use), and port 11 (systat, RFC 866) has
// been dead for decades.
func Default() Stain { return Stain{TOS: 23 << 2, Port: 11} }

// ErrUnsupported says that a scheme has no frames.
var ErrUnsupported = errors.New("not supported")

// Validate returns an error that names the first field which no hook could be
// built on. A ToS of 0 is refused, not only because all traffic has it: hooks
// match ToS and ports together so that other traffic need not be told apart by
// its ports (see package flows).
func (s Stain) Validate() error {
	switch {
	case s.TOS&0x03 != 0:
		return fmt.Errorf("stain: tos %#02x: ECN bits set, want a multiple of 4", s.TOS)
	case s.TOS == 0:
		return errors.New("stain: tos 0: all traffic has it, want a multiple of 4 from 4 to 252")
	case s.Port == 0:
		return errors.New("stain: port 0: want 1 to 65535")
	}
	return nil
}

// Kind is the kind of a sampling point: which way a packet was going when it
// was seen. The numbers are those of PointKind in the protobuf contract and of
// byte 1 of a copy's eth_dst. The zero Kind is unclassified.
type Kind uint8

const (
	// FromInstance: it came in by an instance's port.
	FromInstance Kind = 1
	// FromTunnel: it came in by a tunnel port, or by a patch port from the
	// tunnels' side.
	FromTunnel Kind = 2
	// ToInstance: it left by an instance's port.
	ToInstance Kind = 3
	// ToTunnel: it came in by a patch port from the instances' side, on its way
	// to a tunnel.
	ToTunnel Kind = 4
)

var kindNames = [...]string{"unclassified", "from-instance", "from-tunnel", "to-instance", "to-tunnel"}

// String returns the name of the kind as it is printed everywhere.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// valid tells whether k is one of the four kinds that a copy can have.
func (k Kind) valid() bool { return FromInstance <= k && k <= ToTunnel }
