// Package rib keeps what BGP peers say of where addresses are: MAC or IP address → VTEP. It
// chooses no path, teaches nobody, does no I/O and reads no clock: `now` is an argument.
//
// Each peer has a Feed, which takes the bodies of its UPDATEs. Readers take a Snapshot of the
// Table: it never changes, and reading it neither waits for a feed nor makes one wait.
//
// # Who is asked of what
//
// A Network is what an address is looked up in: a VNI, or a route target. A route is in
//
//   - the VNIs that Options.Networks has for its route targets and its route distinguisher, if there
//     are any; else
//   - the VNI in its label, where its encapsulation has VNIs (EVPN only); else
//   - the VNI in its Ethernet tag, if that is not 0; else
//   - each of its route targets, 16 at most: an MPLS label means something to its VTEP only.
//
// The IP address of a MAC route with a second label is in that VNI, too (RFC 9135, 9136).
//
// # Where an address is
//
// All routes for one address in one network are weighed together, whichever peer, RD or next
// hop they have. Sticky ones go before all others, then the highest MAC mobility sequence wins
// (RFC 7432, 7.7 and 7.8; plain order, 4294967295 the highest). All that are left are the
// answer: several VTEPs at the same rank are ECMP, or a duplicate address; it is not for this
// package to say which.
//
// A MAC route that is on an Ethernet segment says nothing without Ethernet A-D routes per ES for that
// (RFC 7432, 9.2.2). With them the address is at the route's VTEP, if that is on the segment, and at
// all that are on it and have a route per EVI for the network (8.4), or, without a VNI, for a route target
// of its own. On a single-active segment it is at
// the route's VTEP alone; if that has left, at the one that is left, if there is but one.
//
// An IP prefix that goes by a gateway's address (RFC 9136, 3.2) is where the MAC routes of highest rank for
// that address are, in the same network; without any it is a claim, as below, and so it is with more than 256
// routes for the gateway.
//
// An answer is Present, Absent or Unknown. It is Unknown rather than Absent where
//
//   - no peer that carries the family is up, or one that is up has not sent its End-of-RIB,
//     or hit its prefix limit: the route may be yet to come;
//   - there is a route whose content was refused: a next hop outside of what the peer may
//     name, an UPDATE treated as withdrawn (RFC 7606). Such a route is kept as a bare claim
//     until the peer withdraws or mends it; no address is ever taken from it;
//   - all VTEPs of its routes have left its segment, or more than 256 routes are for that;
//   - more than 8192 routes are for the same address (a MAC is at one place or a few).
//
// Routes outside of a peer's route target list are not kept: for their networks, Absent says
// no more than that we did not look.
//
// # Memory
//
// Routes, addresses and their links are fixed-size records in pages, which lie outside of the
// collector's heap (package slab); what routes share is kept once. Hash tables grow a bucket at a time.
//
// A snapshot shares all pages with the table. The first change to a page that one sees copies it (some
// 4 KiB), so a snapshot costs as much as changes while it is held; it goes when the collector finds
// that nobody holds it. Its index is that of the table, which keeps entries for as long as a snapshot may
// look for them. Records that are given up are used again; pages are kept. So memory follows the most
// routes there ever were at a time.
//
//	NLRI ─▶ byRoute ──▶ route ──▶ path (next hop, sequence, …; shared)
//	                      │ └──▶ another peer's of the same NLRI
//	                      │ ▲
//	                      ▼ │ link, one for each network and address
//	address ─▶ byPlace ─▶ place (the answer, since when, history)
package rib
