// Package flows computes hooks: the flows that recognise stained packets on one
// bridge, and what must be added and deleted for a bridge to have them.
// It reads and changes no bridge (dataplane/ovs does) and does no other I/O.
// Semantics are those of ovs-fields(7), ovs-actions(7) and ovs-ofctl(8), Open
// vSwitch 3.1.
//
// # A hook
//
//	                 table 0                              table HOOK
//	         ┌──────────────────────────┐         ┌───────────────────────┐
//	DYE ───▶ │ 65535 mpls from DYE:     │         │ 300 from DYE: nothing │
//	         │   in_port := label, pop  │──┐      │ 200 by port: a copy,  │
//	         │ 65535 stained, MARK=0:   │◀─┘      │     or none           │
//	any ───▶ │   MARK := 1 ─────────────│────────▶│ 100 else: a copy      │───▶ DYE
//	         │   resubmit ──┐           │◀────────│     (from-instance)   │
//	         │ 65534 DYE:   │  drop     │         └───────────────────────┘
//	         │ the bridge's │own flows ◀┘
//	         └──────────────────────────┘
//
// A stained packet passes table 0 twice: first it is marked and copied, then the
// bridge's own flows treat it as if we were not there, since the hook's match
// wants MARK clear. Registers are zero whenever a packet enters a bridge, also
// from another one by a patch port, so every bridge on the way takes its own
// copy. A packet that comes back to table 0 (a foreign resubmit, ct(table=0))
// still has MARK and is not copied again.
//
// There is an injecting flow for each IP version, by the label's traffic class, and
// a marking flow for each. The match of the latter names ToS (over IPv6 the traffic
// class) and, in scheme tcp, both ports. With ports alone, Open vSwitch would have to
// tell all TCP connections apart by port prefixes: 18 megaflows instead of 3 for
// 2,000 connections, measured. With ToS, its lookup is over before it comes to the
// ports, for all packets but those of the stain's DSCP; megaflows get to see the IP
// protocol and the DSCP, and nothing else.
//
// In scheme icmp, the match names ToS, type and code instead, in a flow for the
// request and one for the reply. So the replies of guests that clear the ToS are
// not seen. Types other than those of an echo, neighbour discovery among them,
// never meet the hook.
//
// A copy is made inside clone(), so nothing of it stays on the packet. Its VLAN
// tag goes, by writing 0 to the whole TCI: strip_vlan is refused in a flow that
// does not match a tag. What the switch knows goes into its MAC addresses, as
// package stain draws them.
//
// # The cookie
//
//	 63                            32 31            16 15     8 7      0
//	+--------------------------------+----------------+--------+--------+
//	|      0x44796554  ("DyeT")      |       0        |  part  |  kind  |
//	+--------------------------------+----------------+--------+--------+
//
// part: 1 inject, 2 guard, 3 enter, 4 point, 5 blind (a port that takes no
// copy). kind: the stain.Kind of a point, else 0. All 32 upper bits are ours, so
// that no flow is ours by chance; and the upper 16 are no small number, since
// Antrea counts its rounds there and deletes what an older round left.
//
// # The mark
//
// MARK is one bit of a register that no foreign flow of the bridge reads: Choose
// looks at every match and every action, bit by bit. What it cannot tell from a
// write counts as a read. That a flow overwrites the bit does no harm: it is
// needed only from the hook's first flow to its second pass, and between them
// there are flows of ours alone. (A pipeline that cleared it and then went back
// to table 0 would have a packet sampled twice, so bits that nobody writes are
// preferred.) pkt_mark, ct_mark and the tunnel's fields leave the bridge with
// the packet; metadata is where controllers keep a packet's datapath, and match
// it whole: neither can hold a mark.
package flows
