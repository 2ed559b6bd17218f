// Package bgp is a BGP speaker that learns where addresses are, from EVPN and VPN routes of its
// peers. It never teaches: it originates and forwards no route.
//
// # What it says
//
// OPEN, KEEPALIVE, NOTIFICATION, ROUTE-REFRESH, and one End-of-RIB a family, for which peers that
// restart gracefully wait (RFC 4724, section 4.1). There is no code that builds an UPDATE with a
// route, and a [conn], through which every octet to a peer goes, refuses any that is no
// End-of-RIB: a fault here, or in a library, ends a session and does not draw traffic.
//
// # Who does what
//
//	Speaker     listens; one peer for each that is configured
//	└ peer      dials, takes connections in, waits after failures, keeps the time of restarts
//	  └ session one connection: corebgp's state machine (OPEN, hold time, keepalives, framing)
//	    └ conn  reads whole messages, and notes why a session ends
//	      └ Feed  takes the UPDATEs: the table's
//
// A session has a state machine of its own, made for one connection. So what corebgp does between
// connections is done by peer instead: corebgp cannot be told its waits (60 s to 300 s after a hold
// timer expired), nor to take the new connection of a peer that restarted (RFC 4724, section 5),
// and drops peers that lack four-octet AS numbers, as Tungsten Fabric's do by default.
//
// # Faults
//
// A peer can at worst lose its own session. What its UPDATEs do to the table's code, a panic
// included, ends the session, takes its routes back and is counted; it does not reach other peers.
// A peer whose session we ended for what it sent is not heard again for [holdOff].
package bgp
