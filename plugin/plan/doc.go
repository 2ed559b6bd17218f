// Package plan turns a scope into ordered pairs, and a pair into the path that its probe
// should take: where it is injected, what it looks like, and every sampling point that should
// see it and its answer. It sends nothing, asks nobody and knows no time.
//
// # A path
//
// A point sees a packet as it enters a bridge, before the bridge's own flows (to-instance
// alone sees it as it leaves). Between hosts that have a bridge for instances and one for
// tunnels, joined by a patch, a probe and its answer pass eight points:
//
//	host A                                   host B
//	instance ─▶ br-int ─▶ br-tun ─ tunnel ─▶ br-tun ─▶ br-int ─▶ instance    forward
//	            0 from-   1 to-              2 from-   3 from-
//	            instance  tunnel             tunnel    tunnel
//
//	instance ◀─ br-int ◀─ br-tun ◀─ tunnel ─ br-tun ◀─ br-int ◀─ instance    reply
//	            7 from-   6 from-            5 to-     4 from-
//	            tunnel    tunnel             tunnel    instance
//
// With tunnels on the instances' bridge itself there are four (0, 3, 4, 7), on one host two
// (0, 4). A bridge without a hook has no points: what happens on it lies between its
// neighbours' points.
//
// In no-touch no guest sees a probe, so none answers: each way is a path of its own that has
// forward points only, the last of which is to-instance at the guest's port, where the probe is
// sampled and dropped. Where that point does not exist the path is blocked.
//
// Routing is taken to be distributed: the bridge where the instance is attached routes, so that
// every later point sees the routed packet (TTL one less, the router's and the receiver's MAC
// addresses, the tunnel key of the receiver's network). IPv6 is routed likewise; its hop limit is
// called TTL here too.
//
// # Addresses
//
// A probe goes between the first addresses of one IP version that source and destination have
// in one prefix of their network; where there are none, in IPv6, between link-local addresses;
// else between their first ones. Between networks it is those in the gateway's prefix, and only
// in versions that the gateways at both ends have an address of. A pair without such addresses
// is no pair in that version.
//
// # Routes
//
// Where [Options] have [Routes], a path says what those tell of its ends ([End.Learned]), and in
// words where that is not what the inventory tells ([Path.Disagree]). Neither changes the path:
// points are where the inventory has the instances. An instance that has no route of its own is a
// disagreement only if the other end of the pair has one, since there are networks that never enter
// EVPN; one whose prefix leads to its host is none.
package plan
