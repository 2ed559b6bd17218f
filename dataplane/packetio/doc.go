// Package packetio sends and receives whole frames on one network device, fast.
// It never builds, decodes or changes a frame (stain does), and it sends nothing
// of its own accord. Linux only; semantics: packet(7), and tpacket_v3 in the
// kernel's Documentation/networking/packet_mmap.rst.
//
// # Out
//
// sendmmsg(2) in batches of 64, past the queueing discipline
// (PACKET_QDISC_BYPASS). Where the device's own queue is full, Send waits for a
// moment and then gives up: it says how many frames left, and nothing is queued
// here.
//
// # In
//
// A ring in memory shared with the kernel (TPACKET_V3), which a filter of the
// kernel's guards: only copies made by a hook get in, and none that was sent on
// this machine. The kernel fills a block of the ring and hands it over when it is
// full, or RetireTimeout after its first frame. A frame bears the time at which it
// arrived, not that of its block. A frame that finds no room in the ring is
// dropped and counted; Stats tells. What Stats has counted as received and Done has not is in the ring
// still, or in the hands of who reads it.
//
//	NIC/TAP ──▶ filter ──▶ [block][block][block]… ──▶ Receive(fn) ──▶ fn(frame, at)
//	                └▶ not a copy: never seen, not counted
//
// # Goroutines
//
// The package starts none. Send, Stats, Done and Close may be called from any goroutine
// at any time, Receive from one at a time.
package packetio
