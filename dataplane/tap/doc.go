// Package tap sees stained packets as they leave the switch for a guest: the
// sampling point to-instance, by eBPF on taps and veths. It never changes a packet,
// drops none but probes that it was told to withhold, and decides nothing of what a
// sample means.
//
// # Where
//
// One program (sampler.c) sits at the egress of every device that Attach was called
// for, behind the programs of others that are there by then:
//
//	switch ──▶ [others' tc programs] ──▶ [to_instance] ──▶ qdisc ──▶ tap/veth ──▶ guest
//	                                          │  └▶ withheld: dropped
//	                                          └▶ digest ─▶ ring ──▶ Receive(fn)
//
// Attached by tcx (Linux 6.6), the program goes with the process: the kernel takes it
// off when the last descriptor is closed, after kill -9 too. Where tcx is missing it
// is a filter of the device's clsact qdisc. That stays after kill -9, with a ring
// that nobody reads: it passes everything on, and what it withheld ends with the
// lease (Withhold). The next Attach of the device replaces it, Detach removes it; a
// clsact qdisc that is left empty is without effect.
//
// A frame passes there if the switch hands it to the kernel: the kernel datapath of
// Open vSwitch does, its userspace datapath does on ports of type system (a packet
// socket). It does not on a port that the switch itself opened as a tap (type
// internal or tap: the frame is written to the descriptor, which is the device's
// ingress), nor on AF_XDP, DPDK and vhost-user ports, nor does what is sent with
// PACKET_QDISC_BYPASS. There the sampling point is to be declared absent. (Measured
// with Open vSwitch 3.1, userspace datapath: veth and tap of type system are seen,
// type internal is not.)
//
// # What
//
// Stained is what package stain says it is, of all schemes, in IPv4 and IPv6, and no
// fragment: TCP with both ports, ToS without ECN, and SYN or RST; an echo request or
// reply, of the ICMP of its IP version, with that ToS. A TCP answer, SYN|ACK or
// RST|ACK between the two ports, counts whatever its ToS: Linux does not reflect the
// ToS in the former, others in neither. Hooks cannot afford that for all ports, but
// here is no flow cache to suffer. One VLAN tag in the frame is skipped. Checksums are
// not looked at. An IPv6 packet with extension headers, or with an IPv4-mapped
// address, is not stained.
//
// # No-touch
//
// Probes that the guest must not see are told by token and destination address, not
// by a switch for the whole host: other runs go on, with answers, at the same time.
// The tokens of runs are independent, so two may coincide; with the address, that
// needs two runs that probe one guest at one time, and then happens with probability
// 2⁻³² a pair of probes. A withheld probe is sampled like any other, and so marked.
// Each is withheld for a limited time only. The token withholds what belongs to the
// probe too: the RST that withdraws it, and an answer to it, be it a segment or an echo
// reply, whoever made that up.
//
// # Losses
//
// The ring is shared by all devices. A digest that finds no room in it is lost and
// counted, and what was to be withheld is withheld all the same.
//
// # Cost
//
// Measured on Linux 6.18, one core: the program takes 15 ns of a user's packet and
// 100 ns of a stained one. A veth that sends frames of 1,400 bytes one by one, 2.4 µs
// each, keeps 0.97 of its throughput with tcx and 0.93 with clsact. A lone sample is
// in fn 10 µs after the frame was sent; reading a full ring takes 43 ns a sample and
// allocates nothing.
//
// # Needs
//
// Linux 5.8 (the ring), CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, or CAP_SYS_ADMIN. The program is
// compiled ahead, for both byte orders, and committed: see generate.sh.
//
// # Goroutines
//
// The package starts none. All methods may be called from any goroutine at any time,
// Receive from one at a time. Open, Attach and Detach work in the network namespace
// of the calling thread; it must be the same for all.
package tap

//go:generate ./generate.sh
