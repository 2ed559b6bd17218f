// Package lab raises a small cloud on one machine: a fabric, hypervisors with Open vSwitch and
// an overlay on it, guests with kernels of their own, and ways to break all of these. It never
// touches the host's network, processes or files outside of its own directory.
//
// A topology is a containerlab file (kind linux only). Each node is a set of namespaces (pid,
// net, mount, uts, ipc) that a small init holds; when the init ends, the kernel ends
// everything in the node, its links included:
//
//	state directory   /run/dyetrace/labs/NAME: state.json, logs, certificates, instances.yaml
//	hub               a hidden node: the bridge of the management network
//	node              own /run, /var/tmp, /etc/openvswitch, /var/lib/openvswitch,
//	                  /var/log/openvswitch, and OVN's; the rest of the file system is the host's
//	instance          a network namespace in its hypervisor's node; bare metal is a node
//
// The overlay itself, flows included, is decided by package overlay and put in place by
// SetUpNode, which runs inside a node and works in a container, too.
//
// # OVN
//
// How the overlay comes to be in place on a hypervisor is its control's doing (hypervisor.go): by
// the flows that package overlay computes, or by OVN. Where it is OVN, one node has the databases and
// ovn-northd, and is told the logical network; each hypervisor runs ovn-controller.
//
// # Routes
//
// Where the overlay has EVPN, its tunnel ends and reflectors run FRR, each in its node. A switch is a
// kernel's bridge with a VXLAN device, where FRR reads what it tells and writes what it hears. A
// hypervisor's Open vSwitch has neither, so a bridge beside it, which carries no packet, holds what
// FRR is to tell of instances; the network controller's flows stand for what it hears.
//
// # Processes
//
// A lab is raised by a binary that answers to "lab init", "lab node" and "lab listen" (see
// Reexec). An init hangs on a pipe to the process that raises the lab until the whole lab
// stands: should that process die before, so does every node.
//
// # Breaks
//
// Breaks are declared in breakkinds.go with the truth about them: which pairs fail, for probes of
// which scheme and IP version, between which sampling points, and what a probe comes to. Some
// harm nothing, and are there because a probe might be misled; some move an instance to another
// hypervisor, and go with no other break. The truth is written down beside the break; nothing of it
// comes from Dyetrace's own plans or verdicts.
package lab
