package ovs

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/dyetrace/dyetrace/dataplane"
)

// fillSources says of each tunnel without a local address which one the host has for it: that which
// the kernel's routes prefer for the remote address. Both datapaths send from it then, that of the
// kernel and the userspace one, which follows the kernel's routes (ovs-vswitchd.conf.db(5),
// options:local_ip). OVN's tunnels are such; where OVN has it that a host's end is elsewhere
// (ovn-encap-ip), this is where it is all the same.
func fillSources(s *dataplane.Snapshot) {
	for _, b := range s.Bridges {
		for i, p := range b.Ports {
			if p.IsTunnel() && p.LocalIP == "" {
				b.Ports[i].LocalIP = sourceTo(p.RemoteIP)
			}
		}
	}
}

// sourceTo returns the address that the host sends from to a remote one; empty where it has no route,
// or where flows choose the remote address.
func sourceTo(remote string) string {
	to, err := netip.ParseAddr(remote)
	if err != nil {
		return ""
	}
	routes, err := netlink.RouteGet(net.IP(to.AsSlice()))
	if err != nil || len(routes) == 0 {
		return ""
	}
	from, ok := netip.AddrFromSlice(routes[0].Src)
	if !ok || from.IsUnspecified() || from.IsLoopback() {
		return ""
	}
	return from.Unmap().String()
}
