package dataplane

import (
	"slices"
	"time"

	"github.com/dyetrace/dyetrace/flows"
)

// Snapshot is what was known of a host's switch at one moment. It is not changed
// once it was handed out.
type Snapshot struct {
	// OVSVersion as the database has it, such as "3.1.0"; empty if it has none.
	OVSVersion string
	// Switchd is another string for every process of ovs-vswitchd: flows, and the
	// settings of OpenFlow ports, do not outlive one. Empty while none runs.
	Switchd string
	// Database is another number for every connection to the database, once the snapshot is by that. ovs-vswitchd,
	// which loses its own with ours, stands still until it has the database's lock again, a second at the least
	// (bridge_run of vswitchd/bridge.c): it answers nobody, and the userspace datapath passes no packet on.
	Database uint64
	// Waiting tells that ovs-vswitchd is told to wait until all flows are restored
	// (other_config:flow-restore-wait, ovs-vswitchd.conf.db(5)): until then it passes packets
	// on by what the datapath remembers, if it has not started anew, and by no flow.
	Waiting bool
	// SweepEvery is how far apart sweeps over what the datapath remembers begin if nothing changes
	// (other_config:max-revalidator, ovs-vswitchd.conf.db(5)).
	SweepEvery time.Duration
	// Managed tells that a cloud's controller is configured which marks the ports of
	// instances, even if there is none now.
	Managed bool
	// Southbound is where OVN's southbound database is, where ovn-controller has the host in hand.
	Southbound Southbound
	// Bridges in ascending order of their names.
	Bridges []Bridge
}

// Southbound is how ovn-controller reaches OVN's southbound database (ovn-controller(8)). Address is
// ovn-remote, empty where OVN is not there; the rest is of the table SSL of Open vSwitch's database.
type Southbound struct {
	Address, Key, Cert, CA string
}

// Bridge is one bridge.
type Bridge struct {
	Name string
	// DatapathType is "system" or "netdev".
	DatapathType string
	// Protocols are the versions of OpenFlow that it is restricted to, such as
	// "OpenFlow13"; none is all that the switch has.
	Protocols []string
	// Ports in ascending order of their names; an interface each, where a bond has
	// several.
	Ports []Port
	// Mirrors in ascending order of their names, those that have an output.
	Mirrors []Mirror
}

// Mirror copies packets of a bridge (ovs-vswitchd.conf.db(5), Mirror), whatever becomes of them.
type Mirror struct {
	Name string
	// Ports are the names of the interfaces of the port that the copies go to; none where they go to VLAN.
	Ports []string
	VLAN  int
}

// Port is one port of a bridge.
type Port struct {
	// Name of the interface.
	Name string
	// ID is the database's for the interface: a port that was deleted and added
	// again by the same name has another one.
	ID string
	// OFPort is its OpenFlow number, 1 to 65279, or 65534 for the bridge's local
	// port; 0 where it has none, or none yet.
	OFPort uint16
	// Error says why Open vSwitch could not open it; empty where it could.
	Error string
	// Type is empty for a device of the kernel; else "internal", "patch", "gre",
	// "vxlan", "geneve" and so on (ovs-vswitchd.conf.db(5), Interface: type).
	Type string
	// Peer is the name of a patch port's other end, and PeerBridge the bridge that
	// has it, if there is one.
	Peer, PeerBridge string
	// RemoteIP and LocalIP are a tunnel's options; "flow" where flows choose. LocalIP is by
	// the kernel's routes where there is no such option.
	RemoteIP, LocalIP string
	// ToS is a tunnel's options:tos: a number, "inherit", or empty, which is 0.
	ToS string
	// Fragments tells that a tunnel's packets may be fragmented on the way (options:df_default=false).
	Fragments bool
	// MTU in bytes of IP packet, 0 where Open vSwitch has none.
	MTU int
	// MAC and IfaceID are external_ids:attached-mac (or attached_mac) and external_ids:iface-id,
	// by which a cloud's controller says whose port it is.
	MAC, IfaceID string
	// LinkState is "up", "down", or empty where Open vSwitch has none.
	LinkState string
	// Dye tells that it is a dye port: of ours, or left by one of us.
	Dye bool
	// Role as Classify found it.
	Role flows.Role
}

// tunnelTypes are the types of interfaces that are tunnel ends
// (ovs-vswitchd.conf.db(5), Open vSwitch 3.1).
var tunnelTypes = []string{"gre", "ip6gre", "vxlan", "geneve", "stt", "lisp", "erspan", "ip6erspan", "gtpu", "bareudp", "srv6"}

// IsTunnel tells whether the port is a tunnel's end.
func (p Port) IsTunnel() bool { return slices.Contains(tunnelTypes, p.Type) }

// Port returns the port of that name.
func (b Bridge) Port(name string) (Port, bool) {
	return find(b.Ports, func(p Port) bool { return p.Name == name })
}

// ByOFPort returns the port of that OpenFlow number, which is not 0.
func (b Bridge) ByOFPort(n uint16) (Port, bool) {
	return find(b.Ports, func(p Port) bool { return n != 0 && p.OFPort == n })
}

// Mirrored tells whether a mirror of the bridge sends its copies to the port of that name.
func (b Bridge) Mirrored(port string) bool {
	return slices.ContainsFunc(b.Mirrors, func(m Mirror) bool { return slices.Contains(m.Ports, port) })
}

// Speaks tells whether the bridge takes that version of OpenFlow, such as
// "OpenFlow13", which the switch has.
func (b Bridge) Speaks(version string) bool {
	return len(b.Protocols) == 0 || slices.Contains(b.Protocols, version)
}

// UplinkBridge returns the name of the neighbour through which the instances of
// this bridge reach the tunnels; empty where the tunnels are on this one, or
// there are none.
func (b Bridge) UplinkBridge() string {
	if slices.ContainsFunc(b.Ports, Port.IsTunnel) {
		return ""
	}
	up, _ := find(b.Ports, func(p Port) bool { return p.Role == flows.Uplink })
	return up.PeerBridge
}

// Bridge returns the bridge of that name.
func (s Snapshot) Bridge(name string) (Bridge, bool) {
	return find(s.Bridges, func(b Bridge) bool { return b.Name == name })
}

func find[T any](list []T, is func(T) bool) (T, bool) {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i], true
	}
	var none T
	return none, false
}
