// Package dataplane has what an agent needs to know of a host's switch: bridges,
// ports, and the part that each port has in the way of a probe.
// It holds and classifies facts; it never asks a switch (dataplane/ovs does) and
// never touches a packet (dataplane/packetio does).
//
// # Roles
//
// Patch ports join bridges to a graph. Tunnels are at one end of it, instances at
// the other, on one bridge (OVN, Antrea) or on two (Neutron):
//
//	          br-int                             br-tun
//	┌──────────────────────────┐        ┌───────────────────────┐
//	│ tap…           patch-tun ├────────┤ patch-int       gre-… ├──▶ underlay
//	│ instance          uplink │        │ downlink       tunnel │
//	└──────────┬───────────────┘        └───────────────────────┘
//	           │ int-br-ex (other)
//	┌──────────┴───────────────┐
//	│ br-ex, br-phy: no hook   │
//	└──────────────────────────┘
//
// Classify assigns the roles, Hookable lists the bridges that have any but
// other ones.
package dataplane
