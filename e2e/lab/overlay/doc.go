// Package overlay is the lab's stand-in for a cloud's network controller: it turns a
// specification of hosts, networks and instances into the OpenFlow flows of a Neutron-like
// pipeline. It touches no bridge, and none of its flows knows anything of Dyetrace.
//
// The pipeline follows Neutron's Open vSwitch agent with its Open vSwitch firewall and
// distributed routing (neutron, plugins/ml2/drivers/openvswitch/agent), table numbers
// included:
//
//	br-int   0 local switching     1 routed frames from other hosts
//	        60 by port or MAC     71 anti-spoofing   72 rules, out   73 accepted, or to a neighbour
//	        81 in, base           82 rules, in       91/92 accepted  93 dropped   94 forwarding
//	        95 distributed router 96 after the router    97 answers to neighbour discovery
//	br-tun   0 by port             1 router's MAC to the host's      2 unicast or not
//	         3 GRE key to VLAN     4 VNI to VLAN      9 routed frames are not learned from
//	        10 learn, hand over   20 unicast          21 neighbours answered
//	        22 flood              23 answers to neighbour discovery
//
// Tables 95 and 96 stand in for Neutron's router namespaces: routing is done by flows, on the
// host of the sender. Flows also answer neighbour discovery, for gateways (94) and for instances
// on other hosts (br-tun's 21), where Neutron has a router's kernel and a flood; tables 97 and 23
// are its second half. An instance asks and answers in the name of its own addresses alone, the
// link-local one of its MAC included; addresses are given, so nobody looks for duplicates.
// Networks have the flows of the versions that they carry, and no others.
//
// Registers, as in Neutron: reg5 is the OpenFlow port of the instance that a packet comes
// from (71–73) or goes to (81, 82); reg6 is the host's local VLAN of its network. The zone of
// a connection is that VLAN.
//
// # OVN
//
// Where a specification has OVN, that is the network controller, and this package computes no flows:
// Northbound describes the same overlay to it.
package overlay
