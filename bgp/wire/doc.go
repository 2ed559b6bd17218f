// Package wire decodes the body of a BGP UPDATE: EVPN and VPN routes, and those path
// attributes that say where a route's address is. It encodes nothing, does no I/O, and
// never panics, whatever a peer sends; it allocates only where it refuses something.
//
// # What is read
//
//	family               routes                       skipped, no error
//	EVPN (25/70)         types 1, 2, 3, 5             all other types (RFC 7606, 5.4)
//	VPN-IPv4 (1/128)     all
//	VPN-IPv6 (2/128)     all
//	any other                                         all
//
//	attribute            what of it
//	MP_REACH_NLRI        next hop, routes             RFC 4760, RFC 8950 (IPv6 next hops)
//	MP_UNREACH_NLRI      routes; none: End-of-RIB     RFC 4760, RFC 4724
//	PMSI_TUNNEL          label                        RFC 6514, RFC 8365, 9
//	EXTENDED COMMUNITIES
//	  0x?002 and 0x0202  route target                 RFC 4360, RFC 5668
//	  0x030c             encapsulation                RFC 9012, 4.1
//	  0x030d             default gateway              RFC 7432, 7.8
//	  0x0600             MAC mobility                 RFC 7432, 7.7
//	  0x0601             ESI label                    RFC 7432, 7.5
//	  0x0603             router's MAC                 RFC 9135, 8.1
//	  0x0605             E-Tree                       RFC 8317, 6.1
//	  any other          nothing, and it drops no route
//
// Attributes that a path is chosen by (ORIGIN, AS_PATH, LOCAL_PREF, …) are stepped over
// unread: who does not choose needs neither them nor their presence. ADD-PATH (RFC 7911)
// must not be negotiated.
//
// # A route on the wire
//
//	type 1  1 | length | RD 8 | ESI 10 | tag 4 | label 3
//	type 2  2 | length | RD 8 | ESI 10 | tag 4 | 48 | MAC 6 | 0, 32 or 128 | IP 0, 4 or 16 | label 3 [| label 3]
//	type 3  3 | length | RD 8 | tag 4 | 32 or 128 | IP 4 or 16
//	type 5  5 | length | RD 8 | ESI 10 | tag 4 | prefix length | IP 4 or 16 | gateway 4 or 16 | label 3
//	VPN     bits | label 3 | RD 8 | as many bytes of the prefix as bits has
//
// A label is 24 bits whose meaning hangs on the encapsulation (RFC 8365, 5.1.3): a VNI, or
// an MPLS label in the upper 20. Encaps.Label says which. In a withdrawal labels, ESI and
// gateway mean nothing, and FRR leaves them 0: RD, tag, MAC and IP alone tell a route
// (of type 1: RD, ESI and tag; RFC 7432, 7.1).
//
// # Errors
//
// They are those of RFC 7606. One that wraps ErrReset means that the routes cannot all be
// told: nothing of the UPDATE may be used. Update.Malformed, which wraps ErrWithdraw, means
// that all routes can be told, and that what the UPDATE says of them cannot be trusted.
package wire
