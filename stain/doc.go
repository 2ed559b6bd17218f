// Package stain says what a stained packet is: the marks that a probe carries,
// the token in it, the frames that carry probes in and samples out.
// It never sends or receives anything, keeps no state, and knows no switch; it
// imports the standard library only.
//
// A Stain is the marks of all schemes at once: a ToS, and a port number for those
// that have ports. A Scheme is how one probe bears them. Whoever looks for the
// stain looks for every scheme in both IP versions; the packet says which it is.
//
// # The probe
//
// Scheme tcp is a TCP SYN without options, with the stain's ToS and source port =
// destination port = the stain's port. Over IPv4 it has 40 bytes:
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------+-------+---------------+-------------------------------+
//	|   4   |   5   |   Stain.TOS   |              40               |
//	+-------+-------+---------------+-----+-------------------------+
//	|               0               |0 1 0|            0            |  ID 0, DF
//	+---------------+---------------+-----+-------------------------+
//	|   Probe.TTL   |    6 (TCP)    |        header checksum        |
//	+---------------+---------------+-------------------------------+
//	|                           Probe.Src                           |
//	+---------------------------------------------------------------+
//	|                           Probe.Dst                           |
//	+-------------------------------+-------------------------------+
//	|          Stain.Port           |          Stain.Port           |
//	+-------------------------------+-------------------------------+
//	|                     Probe.Token (sequence)                    |
//	+---------------------------------------------------------------+
//	|                               0                               |
//	+-------+-----------------------+-------------------------------+
//	|   5   |       0       S Y N   |             64240             |  window
//	+-------+-----------------------+-------------------------------+
//	|           checksum            |               0               |
//	+-------------------------------+-------------------------------+
//
// Over IPv6 it has 60, with the same TCP header behind
//
//	+-------+---------------+-------+-------------------------------+
//	|   6   |   Stain.TOS   |                   0                   |  flow label 0
//	+-------+---------------+-------+---------------+---------------+
//	|              20               |    6 (TCP)    |   Probe.TTL   |
//	+-------------------------------+---------------+---------------+
//	|                     Probe.Src, 128 bits                       |
//	+---------------------------------------------------------------+
//	|                     Probe.Dst, 128 bits                       |
//	+---------------------------------------------------------------+
//
// Scheme icmp is an echo request with the stain's ToS, behind IP headers that are
// the same but for protocol (1, over IPv6 58) and length (16 bytes behind them):
//
//	+---------------+---------------+-------------------------------+
//	|  8, v6: 128   |       0       |           checksum            |
//	+---------------+---------------+-------------------------------+
//	|     Probe.Token, 31..16       |      Probe.Token, 15..0       |  identifier, sequence
//	+-------------------------------+-------------------------------+
//	|                    "dyetrace", 8 bytes                        |
//	+---------------------------------------------------------------+
//
// What is the same in every probe has its reasons:
//   - Don't Fragment is set, as hosts set it on a SYN of their own, and so the
//     datagram is atomic (RFC 6864, section 4): its ID means nothing to anyone
//     and is 0. A constant keeps the header's sum a constant, too.
//   - The window is what Linux offers first on Ethernet (44 segments of 1460
//     bytes): firewalls have no rule against it, as some have against 0 or 1024.
//   - No options: the headers stay at fixed offsets. No peer needs one, since no
//     byte of data is ever sent; connection tracking takes such a SYN as +new.
//     Nor are there IPv6 extension headers, which many networks drop (RFC 7872).
//   - The flow label is 0, as of a host that sets none (RFC 6437, section 3).
//     Whoever spreads flows over paths goes by addresses and ports then, which are
//     those of the guest's answer too; its label is the guest's choice.
//   - The data of an echo say where it is from to whoever captures one. With none
//     at all, it would look like a scanner's, for which intrusion detection has rules.
//   - The frame is not padded to the 60 bytes of Ethernet: where it enters the
//     bridge there is no wire, and where there is one, the NIC pads.
//
// The guest that has the address answers from its kernel: RST|ACK where the
// port is closed, SYN|ACK where it is open. Both acknowledge sequence number
// token+1 (RFC 9293, section 3.10.7), so the answer carries the token too. A
// RST of Linux has the ToS that it was asked with, over IPv4 as over IPv6, a
// SYN|ACK has not (measured, the RST with Linux 6.18). An echo reply has what the
// request had: identifier, sequence number, data, and from Linux the ToS, too. For
// guests that clear the ToS, the hook at their port sets it again (package flows).
//
// # Withdrawing a probe
//
// A probe that nobody answered leaves half-open connections in the connection
// tracking of every switch that it passed. Each would take the answer to the next
// probe between the two for a forgery, since that acknowledges another sequence
// number, and drop it (measured with the userspace conntrack of Open vSwitch 3.1:
// +inv until the entry's 30 s are over). So the sender withdraws it as a host
// gives a connection up: the same segment with RST for SYN and sequence number
// token+1 (Probe.Close). Guests ignore it (RFC 9293, section 3.10.7.1). An echo
// request leaves nothing that the next one could clash with.
//
// To withdraw a probe whose answer is but late has that dropped as well: a SYN-ACK is
// +inv after the RST, and any answer after the next SYN (measured with the same). So
// it is for the controller to say when, once it has waited long enough.
//
// # Into the bridge
//
// A probe enters by the dye port, behind one MPLS label that names the port
// which it shall seem to have come in by; the hook pops it (package flows):
//
//	Ethernet, type 0x8847 | MPLS: label = ofport, TC, S 1, TTL 64 | IP | TCP or ICMP
//
// TC is the payload's ethertype: 0 IPv4, 1 IPv6. The source bears the bit of a group
// (53:… for 52:…) until the hook takes it off: where somebody has just deleted the hook,
// the frame meets the bridge's own flows, and no switch learns a group's address as that of a port.
//
// # Out of the bridge
//
// A copy comes back by the dye port. The hook writes what only the switch knows
// over its MAC addresses:
//
//	          byte 0   1        2        3        4        5
//	         +--------+-+------+--------+--------+--------+--------+
//	eth_dst  |   06   |M| Kind | TunID 15..0     |  InPort         |
//	         +--------+--------+--------+--------+--------+--------+
//	eth_src  |   02   | 23..16 |  TunSrc (outer IPv4 source)       |
//	         +--------+--------+--------+--------+--------+--------+
//
// 06 and 02 are locally administered unicast addresses (IEEE 802, section 8.4)
// that no vendor owns. M is the hook's MARK as it was when the copy was made
// (CopyMark): clear in the copy of an echo request whose reply the hook did not expect
// yet (Copy.NoReply), set in all others. TunID is the tunnel's
// key, 24 bits as in VXLAN, Geneve and NVGRE; the upper bits of a longer key (GRE
// has 32) are lost. TunSrc and TunID are 0 where the packet came by no tunnel. All
// else in the copy is the packet as it was when it entered the bridge.
package stain
