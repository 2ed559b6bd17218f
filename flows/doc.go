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
//	         │   in_port := label, pop  │──┐      │ 250 echo reply with   │
//	         │ 65535 stained, MARK=0:   │◀─┘      │     MARK=0: nothing   │
//	any ───▶ │   MARK := 1 ─────────────│────────▶│ 200 by port: a copy,  │
//	         │   resubmit ──┐           │◀────────│     or none           │
//	         │ 65534 DYE:   │  drop     │         │ 100 else: a copy      │───▶ DYE
//	         │ 65533 to dye,│  MARK=0 ──│──┐      │     (from-instance)   │
//	         │ the bridge's │own flows ◀┘  │      └───────────────────────┘
//	         └──────────────────────────┘  └─▶ see below
//
// A stained packet passes table 0 twice: first it is marked and copied, then the
// bridge's own flows treat it as if we were not there, since the hook's match
// wants MARK clear. Registers are zero whenever a packet enters a bridge, also
// from another one by a patch port, so every bridge on the way takes its own
// copy. A packet that comes back to table 0 (a foreign resubmit, ct(table=0))
// still has MARK and is not copied again. Every flow of ours in table 0 that takes
// a packet of the bridge ends with MARK := 1, resubmit(,0), whatever HOOK and REPLY
// have or lack just then: no packet is lost in the hook, and none goes round.
//
// There is an injecting flow for each IP version, by the label's traffic class, and
// a marking flow for each. The match of the latter names ToS (over IPv6 the traffic
// class) and, in scheme tcp, both ports. With ports alone, Open vSwitch would have to
// tell all TCP connections apart by port prefixes: 18 megaflows instead of 3 for
// 2,000 connections, measured. With ToS, its lookup is over before it comes to the
// ports, for all packets but those of the stain's DSCP; megaflows get to see the IP
// protocol and the DSCP, and nothing else; and while replies are expected (below), of
// ICMP enough of the type to know an echo reply.
//
// In scheme icmp, the match names ToS, type and code instead, in a flow for the
// request and one for the reply. Types other than those of an echo, neighbour
// discovery among them, never meet the hook.
//
// # Replies without the stain
//
// Linux answers an echo with the ToS that it was asked with; other guests clear it.
// So while Hook.Expect is set, on a bridge that has instances each stained request
// learns a flow that gives its reply the stain, there and for all bridges and taps that
// follow. Every flow learned, and every one that goes, has the revalidator go through
// all megaflows of the bridge, so this is for the guests that need it: without Expect,
// requests promise nothing of their replies, and only replies that bear the stain are
// copied.
//
//	request, stained, MARK=0:                     table REPLY
//	  resubmit(,REPLY), src and dst swapped ───▶  ┌─────────────────────────────┐
//	  learn ───────────────────────────────────▶  │ 1 from dst to src:          │
//	  resubmit(,HOOK)                             │     ToS := stain, MARK := 1 │
//	  MARK := 1, resubmit(,0)                     │ 0 else: nothing             │
//	                                              │                             │
//	echo reply without the stain, MARK=0:         │                             │
//	  resubmit(,REPLY) ────────────────────────▶  └─────────────────────────────┘
//	  resubmit(,HOOK)
//	  MARK := 1, resubmit(,0)
//
// A reply that is not expected comes to HOOK without MARK, where no copy is made of
// it, and goes on untouched. Port, tunnel and all else that the bridge's own flows
// look at stays as it was, but for the DSCP of a reply that is expected.
//
// A megaflow from before a reply was expected, such as one of a tenant's pings, knows
// nothing of it until the revalidator has come by, and the reply is faster. So a
// request looks for its reply's flow before it learns it: the copy's MARK (see
// stain.Copy.NoReply) is set only if the flow was there already when the request's own
// megaflow was made, which the revalidator renews in the same sweep. The first request
// of a pair thus promises nothing, although its reply will mostly be seen; one after
// that, a sweep later and within 15 s, does. Sweeps follow each other by 0.5 s or, when
// flows change, at once; a bridge where one takes more than 1.3 s is made to hold
// fewer megaflows (revalidate in Open vSwitch's ofproto-dpif-upcall.c).
//
// Learned flows go 15 s after the last request of the pair: more than the 10 s after
// which an unused megaflow goes (max-idle), because a request that meets a cached
// megaflow learns only once its statistics are collected, every 0.5 s. Where max-idle
// is set higher, the flow goes first, the request's megaflow is made anew, and promises
// nothing again. They go at once with the flows that learn (delete_learned), but for what a
// sweep that is under way learns again for requests of before, which has its 15 s.
// Until then, replies to echoes of the pair's own, if they come from dst to src, bear
// the stain's DSCP too, and copies of them are made.
//
// There are at most MaxExpected of them. Where there is no room, requests promise
// nothing, and all else is as before. While there is one, echo replies (no other
// packets) that meet the bridge are told apart by address: for the replies to 1,000
// pairs, measured on a bridge that looks at the port alone, 12 megaflows over IPv4
// instead of 1; over IPv6 one for each pair, since Open vSwitch 3.1 keeps prefixes for
// IPv4 only unless told otherwise. With none, and for requests always, 1 as without a
// hook.
//
// # Answers without the stain
//
// Linux reflects the ToS in a RST, not in a SYN-ACK; other guests in neither. For the
// ports in Hook.Answers, flows match answers by ports, give them the stain's DSCP, mark
// and copy them. They name the port that they come in by, so those of other ports pay
// nothing, and flags, which Open vSwitch looks at before ports: 18 megaflows instead
// of 1 for all segments of 2,000 connections by that port, measured, 1 as ever by
// another. At most MaxAnswers ports have them, for as long as the caller wants. After
// they were added, megaflows from before let answers slip for one sweep more: wait for
// it (ovs-appctl revalidator/wait) before the absence of an answer is to prove anything.
//
// # The copy
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
// copy), 6 expect (a request that learns), 7 dyeing, 8 learned, 9 stray (a reply that
// is not expected). kind: the stain.Kind of a point, else 0. All 32 upper bits are ours, so
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
