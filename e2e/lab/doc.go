// Package lab raises a small cloud on one machine: a fabric, hypervisors with Open vSwitch and
// an overlay on it, guests with kernels of their own, and ways to break all of these. It never
// touches the host's network, processes or files outside of its own directory.
//
// A topology is a containerlab file (kind linux only). What its nodes are made of is a runner's
// matter (runner.go); a node has a first process, and when that ends, the kernel ends everything in
// the node, its links included:
//
//	state directory   /run/dyetrace/labs/NAME: state.json, logs, certificates, instances.yaml;
//	                  all nodes see it in its place
//	node              what its topology's exec makes of it
//	instance          a network namespace in its hypervisor's node; bare metal is a node
//
// The overlay itself, flows included, is decided by package overlay and put in place by
// SetUpNode, which runs inside a node, whatever that is made of.
//
// # Runners
//
// Runner namespaces needs nothing but Open vSwitch. A node is a set of namespaces (pid, net, mount,
// uts, ipc) that a small init holds, with a /run, /var/tmp, /etc/openvswitch, /var/lib/openvswitch
// and /var/log/openvswitch, and OVN's, of its own; the rest of its file system is the host's. A hidden node, the
// hub, has the bridge of the management network.
//
// Runner containerlab has the program containerlab deploy the same file on Docker, and destroy it. A
// node is a container of the topology's image. Docker's networks share one space of addresses, so a
// lab whose management subnet is taken gets another (containerlab.go).
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
// stands: should that process die before, so does every node. Containers do not; Down ends them.
//
// # Breaks
//
// Breaks are declared in breakkinds.go with the truth about them: which pairs fail, for probes of
// which scheme and IP version, between which sampling points, and what a probe comes to. Some
// harm nothing, and are there because a probe might be misled; some move an instance to another
// hypervisor, and go with no other break. The truth is written down beside the break; nothing of it
// comes from Dyetrace's own plans or verdicts.
package lab
