package lab

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// wiring makes links. All of it happens inside the nodes: a veth is born in the two namespaces
// that it joins, and the host's own network never sees it.
type wiring struct {
	spaces  map[string]netns.NsHandle
	handles map[string]*netlink.Handle
}

func (l *Lab) openWiring() (*wiring, error) {
	w := &wiring{spaces: make(map[string]netns.NsHandle), handles: make(map[string]*netlink.Handle)}
	for _, name := range append(l.topology.Nodes(), hubName) {
		p, err := l.node(name)
		if err != nil {
			w.Close()
			return nil, err
		}
		space, err := netns.GetFromPid(p.PID)
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("%s: network namespace: %w", name, err)
		}
		w.spaces[name] = space
		handle, err := netlink.NewHandleAt(space, unix.NETLINK_ROUTE)
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("%s: netlink: %w", name, err)
		}
		w.handles[name] = handle
	}
	return w, nil
}

// Close closes what the wiring holds open; the links stay.
func (w *wiring) Close() {
	for _, h := range w.handles {
		h.Close()
	}
	for _, s := range w.spaces {
		s.Close()
	}
}

// wire makes the management network and all links of the topology.
func (l *Lab) wire() error {
	w, err := l.openWiring()
	if err != nil {
		return err
	}
	defer w.Close()
	subnet := l.topology.Mgmt.Subnet
	if err := w.hub(subnet); err != nil {
		return fmt.Errorf("management network: %w", err)
	}
	for i, name := range l.topology.Nodes() {
		if err := w.manage(i, name, netip.PrefixFrom(l.topology.Body.Nodes[name].MgmtIP, subnet.Bits())); err != nil {
			return fmt.Errorf("%s: eth0: %w", name, err)
		}
	}
	for _, link := range l.topology.Body.Links {
		if err := w.link(link); err != nil {
			return fmt.Errorf("link %s: %w", strings.Join(link.Endpoints, " to "), err)
		}
	}
	return nil
}

const mgmtBridge = "mgmt"

func (w *wiring) hub(subnet netip.Prefix) error {
	h := w.handles[hubName]
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: mgmtBridge}}); err != nil {
		return err
	}
	return w.up(hubName, mgmtBridge, netip.PrefixFrom(gatewayOf(subnet), subnet.Bits()))
}

// manage gives a node its eth0, as Docker would: address and default route. Its loopback comes
// up on the way.
func (w *wiring) manage(index int, node string, addr netip.Prefix) error {
	port := fmt.Sprintf("node%d", index)
	if err := w.veth(hubName, port, node, "eth0", 1500); err != nil {
		return err
	}
	hub := w.handles[hubName]
	bridge, err := hub.LinkByName(mgmtBridge)
	if err != nil {
		return err
	}
	end, err := hub.LinkByName(port)
	if err != nil {
		return err
	}
	if err := hub.LinkSetMaster(end, bridge); err != nil {
		return err
	}
	for _, step := range []struct {
		node, link string
		addr       netip.Prefix
	}{{hubName, port, netip.Prefix{}}, {node, "lo", netip.Prefix{}}, {node, "eth0", addr}} {
		if err := w.up(step.node, step.link, step.addr); err != nil {
			return err
		}
	}
	return w.handles[node].RouteAdd(&netlink.Route{Gw: net.IP(gatewayOf(addr).AsSlice())})
}

func (w *wiring) link(l LinkSpec) error {
	nodeA, ifaceA, _ := strings.Cut(l.Endpoints[0], ":")
	nodeB, ifaceB, _ := strings.Cut(l.Endpoints[1], ":")
	if err := w.veth(nodeA, ifaceA, nodeB, ifaceB, l.MTU); err != nil {
		return err
	}
	if err := w.up(nodeA, ifaceA, netip.Prefix{}); err != nil {
		return err
	}
	return w.up(nodeB, ifaceB, netip.Prefix{})
}

// veth makes a pair of interfaces, each straight in its node.
func (w *wiring) veth(nodeA, ifaceA, nodeB, ifaceB string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = ifaceA, mtu
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerMTU, pair.PeerNamespace = ifaceB, uint32(mtu), netlink.NsFd(w.spaces[nodeB])
	return w.handles[nodeA].LinkAdd(pair)
}

// up brings an interface up; addr may be the zero Prefix.
func (w *wiring) up(node, iface string, addr netip.Prefix) error {
	h := w.handles[node]
	link, err := h.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("%s: %w", iface, err)
	}
	if addr.IsValid() {
		ip := &net.IPNet{IP: net.IP(addr.Addr().AsSlice()), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
			return fmt.Errorf("%s: %s: %w", iface, addr, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s: up: %w", iface, err)
	}
	return nil
}
