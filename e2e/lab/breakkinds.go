package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// breakKinds are the ways to break a lab. dies is the truth, and is what a reader should check
// against the rest of the entry.
var breakKinds = slices.Concat(lossKinds, []BreakKind{
	{
		Name: "tunnel-remote", Form: "HOST:HOST:ENCAP", Default: "hv1:hv3:gre", Cause: CauseTunnel,
		Help: "the first host's tunnel port to the second has a wrong remote address",
		// Both ways: the port is also what would recognise packets from there.
		dies:  func(t target, l leg) segment { return diesIf(t.between(l) && t.encapOf(l) == t.encap, onWire) },
		apply: func(_ workshop, t target) []step { return setRemote(t, unusedAddress(t.hosts[1].VTEP)) },
		heal:  func(_ workshop, t target) []step { return setRemote(t, t.hosts[1].VTEP.Addr()) },
		changed: func(_ workshop, t target) Change {
			return Change{Host: t.host(), Port: overlay.TunnelName(t.encap, t.hosts[1])}
		},
	},
	{
		Name: "drop-flow", Form: "SRC:DST", Default: "blue-1:blue-3", Cause: CauseFlow,
		Help: "a flow on the source's br-int drops what it sends to the destination",
		dies: func(t target, l leg) segment { return diesIf(l.from == t.src() && l.to == t.dst(), inSwitch) },
		at:   onIntegration(func(t target) string { return t.src().Host }),
		edit: func(t target, p overlay.Ports, flows []flow) []flow {
			return append(flows, drops(t.dst(), 60, 110, fmt.Sprintf("in_port=%d", p.Taps[t.src().Name]))...)
		},
	},
	{
		Name: "flow-shadowed", Form: "HOST:NETWORK", Default: "hv3:blue", Cause: CauseFlow,
		Help: "on the host's br-tun a broader flow of higher priority stands over those that send to the network's instances, and drops",
		dies: func(t target, l leg) segment {
			return diesIf(t.sends(l) && l.to.Network == t.network().Name, onWire)
		},
		at: onTunnel,
		edit: func(t target, _ overlay.Ports, flows []flow) []flow {
			vlan := t.spec.LocalVLANs(t.host())[t.network().Name]
			return append(flows, flow{"0x0", 20, 50, fmt.Sprintf("dl_vlan=%d", vlan), "drop"})
		},
	},
	{
		Name: "flow-misdirected", Form: "INSTANCE", Default: "blue-2", Cause: CauseMisdirected,
		Help:    "the flows of the instance's br-int hand what is for it to another guest's tap",
		dies:    func(t target, l leg) segment { return diesIf(l.to == t.instance(), atDelivery) },
		at:      onIntegration(func(t target) string { return t.instance().Host }),
		edit:    misdirect,
		changed: func(_ workshop, t target) Change { return Change{Instead: besides(t).Name} },
	},
	{
		Name: "drop-tun", Form: "HOST:NETWORK", Default: "hv3:green", Cause: CauseFlow,
		Help: "a flow on the host's br-tun drops what its tunnels bring of the network",
		dies: func(t target, l leg) segment {
			return diesIf(t.receives(l) && l.to.Network == t.network().Name, atIngress)
		},
		at: onTunnel,
		edit: func(t target, _ overlay.Ports, flows []flow) []flow {
			n := t.network()
			return append(flows, flow{"0x0", overlay.IngressTable(n), 10, fmt.Sprintf("tun_id=%#x", n.Segmentation), "drop"})
		},
	},
	{
		Name: "wrong-vni", Form: "HOST:NETWORK", Default: "hv4:green", Cause: CauseTunnel,
		Help: "the host's br-tun has a wrong segmentation id for the network",
		dies: func(t target, l leg) segment {
			return diesIf((t.sends(l) || t.receives(l)) && l.to.Network == t.network().Name, atIngress)
		},
		at: onTunnel, edit: wrongVNI,
	},
	{
		Name: "one-way", Form: "SRC:DST", Default: "blue-2:green-4", Cause: CauseFlow,
		Help: "a flow on the destination's br-int drops its answers to the source",
		dies: func(t target, l leg) segment {
			return diesIf(l.answer && l.from == t.dst() && l.to == t.src(), inSwitch)
		},
		at: onIntegration(func(t target) string { return t.dst().Host }),
		edit: func(t target, p overlay.Ports, flows []flow) []flow {
			return append(flows, drops(t.src(), 94, 30, fmt.Sprintf("ct_state=+rpl+trk,reg5=%#x", p.Taps[t.dst().Name]))...)
		},
	},
	{
		Name: "guest-down", Form: "INSTANCE", Default: "blue-3", Cause: CauseGuest, anywhere: true,
		Help:  "the guest's interface is down",
		dies:  toGuest,
		apply: func(_ workshop, t target) []step { return []step{guestIP(t, "link set eth0 down\n")} },
		heal: func(_ workshop, t target) []step {
			n, _ := t.spec.Network(t.instance().Network)
			return []step{guestIP(t, guestAddresses(n, t.instance(), "eth0")+guestNeighbours(t.spec, n, "eth0"))} // IPv6 addresses and routes went with the link
		},
		changed: atTap,
	},
	{
		Name: "guest-firewall", Form: "INSTANCE", Default: "green-2", Cause: CauseGuest, anywhere: true,
		Help: "the guest's own firewall drops all IPv4 and IPv6 without a word, neighbour discovery apart",
		dies: toGuest,
		apply: func(_ workshop, t target) []step {
			// ARP is no matter of this firewall; what does its work in IPv6 must not be either.
			return []step{nft(t.instance().Name, "inet", "lab-firewall", "type filter hook input priority 0\n"+
				" icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n drop")}
		},
		heal: func(_ workshop, t target) []step {
			return []step{nft(t.instance().Name, "inet", "lab-firewall", "")}
		},
		changed: atTap,
	},
	{
		Name: "duplicate-mac", Form: "INSTANCE:INSTANCE", Default: "blue-3:blue-4", Cause: CauseGuest,
		Help: "the first guest has taken the MAC of the second: it takes no frame that is for its own, and none that it sends leaves its switch",
		dies: toGuest,
		apply: func(_ workshop, t target) []step {
			return []step{guestIP(t, "link set eth0 address "+t.instances[1].MAC.String()+"\n")}
		},
		heal: func(_ workshop, t target) []step {
			// With the address all neighbours were forgotten (neigh_changeaddr of net/core/neighbour.c).
			n, _ := t.spec.Network(t.instance().Network)
			return []step{guestIP(t, "link set eth0 address "+t.instance().MAC.String()+"\n"+guestNeighbours(t.spec, n, "eth0"))}
		},
		changed: atTap,
	},
	{
		Name: "tap-off", Form: "INSTANCE", Default: "green-3", Cause: CausePort,
		Help: "the instance's tap is taken off br-int",
		dies: func(t target, l leg) segment {
			if l.from == t.instance() {
				return atEntry
			}
			return diesIf(l.to == t.instance(), atDelivery)
		},
		apply: func(_ workshop, t target) []step {
			return []step{vsctl(t.instance().Host, "--if-exists", "del-port", overlay.Integration, t.instance().Tap())}
		},
		heal:    replugTap,
		changed: atTap,
	},
	{
		Name: "patch-gone", Form: "HOST", Default: "hv4", Cause: CausePort,
		Help: "br-int's patch port to br-tun is gone",
		dies: func(t target, l leg) segment {
			if t.sends(l) {
				return inSwitch
			}
			return diesIf(t.receives(l), atIngress)
		},
		apply: func(_ workshop, t target) []step {
			return []step{vsctl(t.host(), "--if-exists", "del-port", overlay.Integration, overlay.PatchTun)}
		},
		heal: func(w workshop, t target) []step {
			tx := newTransaction()
			tx.patch(overlay.Integration, overlay.PatchTun, overlay.PatchInt)
			return samePort(t.host(), overlay.PatchTun, w.ports(t.host()).PatchTun, tx)
		},
		changed: func(_ workshop, t target) Change { return Change{Host: t.host(), Port: overlay.PatchTun} },
	},
	{
		Name: "underlay-down", Form: "HOST", Default: "hv2", Cause: CauseUnderlay, anywhere: true,
		Help:  "the host's uplink is down",
		dies:  func(t target, l leg) segment { return diesIf(t.sends(l) || t.receives(l), onWire) },
		apply: func(_ workshop, t target) []step { return []step{setUplink(t, "down")} },
		heal:  func(_ workshop, t target) []step { return []step{setUplink(t, "up")} },
	},
	{
		Name: "underlay-acl", Form: "HOST:HOST", Default: "hv1:hv4", Cause: CauseUnderlay, anywhere: true,
		Help: "the first host's leaf drops what its VTEP sends to the second's",
		dies: func(t target, l leg) segment { return diesIf(t.oneWay(l), onWire) },
		apply: func(w workshop, t target) []step {
			leaf, port := w.peer(t.host(), t.hosts[0].Uplink)
			return []step{nft(leaf, "netdev", aclName(t), fmt.Sprintf("type filter hook ingress device %s priority 0\n ip saddr %s ip daddr %s drop",
				port, t.hosts[0].VTEP.Addr(), t.hosts[1].VTEP.Addr()))}
		},
		heal: func(w workshop, t target) []step {
			leaf, _ := w.peer(t.host(), t.hosts[0].Uplink)
			return []step{nft(leaf, "netdev", aclName(t), "")}
		},
	},
	{
		Name: "rack-down", Form: "HOST", Default: "hv1", Cause: CauseUnderlay, anywhere: true,
		Help: "the leaf of the host's rack passes nothing to other racks, nor from them; within the rack all is well",
		dies: func(t target, l leg) segment {
			return diesIf(t.leavesRack(l) || t.leavesRack(leg{from: l.to, to: l.from}), onWire)
		},
		apply: func(w workshop, t target) []step { return isolate(w, t, true) },
		heal:  func(w workshop, t target) []step { return isolate(w, t, false) },
	},
	{
		Name: "underlay-protocol", Form: "HOST:HOST:ENCAP", Default: "hv1:hv3:gre", Cause: CauseProtocol,
		Help: "the first host's leaf drops its tunnel packets to the second, of that encapsulation; all else passes",
		dies: func(t target, l leg) segment { return diesIf(t.oneWay(l) && t.encapOf(l) == t.encap, onWire) },
		apply: func(w workshop, t target) []step {
			match := map[string]string{overlay.GRE: "ip protocol gre", overlay.VXLAN: "udp dport 4789"}[t.encap]
			return leafDrops(w, t, "lab-protocol-"+t.encap, match)
		},
		heal: func(w workshop, t target) []step { return leafDrops(w, t, "lab-protocol-"+t.encap, "") },
	},
	{
		Name: "underlay-mtu", Form: "HOST:HOST", Default: "hv1:hv4", Cause: CauseMTU,
		Help:  "the first host's leaf drops what its VTEP sends to the second's and is larger than 1400 bytes, without a word",
		dies:  func(target, leg) segment { return unharmed },
		large: func(t target, l leg) bool { return t.oneWay(l) },
		apply: func(w workshop, t target) []step { return leafDrops(w, t, "lab-mtu", "ip length > 1400") },
		heal:  func(w workshop, t target) []step { return leafDrops(w, t, "lab-mtu", "") },
	},
	{
		Name: "underlay-member", Form: "HOST", Default: "hv1", Cause: CauseMember, twoWays: true,
		Help:  "one of the two ways from the host's rack to others is a black hole; what goes by it is told by addresses, protocol and ports",
		dies:  func(target, leg) segment { return unharmed },
		maybe: func(t target, l leg) bool { return t.leavesRack(l) },
		// Not ARP: what goes the other way would not find the leaf any more, a while later.
		apply: func(w workshop, t target) []step { return spineDrops(w, t, "meta protocol ip counter drop") },
		heal:  func(w workshop, t target) []step { return spineDrops(w, t, "") },
	},
	{
		Name: "security-rule", Form: "INSTANCE", Default: "blue-4", Cause: CausePolicy,
		Help: "the security rules that let others reach the instance are gone",
		dies: func(t target, l leg) segment { return diesIf(t.request(l), atDelivery) },
		at:   onIntegration(func(t target) string { return t.instance().Host }), forgets: true,
		edit: func(t target, p overlay.Ports, flows []flow) []flow {
			return slices.DeleteFunc(flows, rulesOf(t, p))
		},
	},
	{
		Name: "security-rule-port", Form: "INSTANCE", Default: "green-1", Cause: CausePolicy,
		Help: "the security rules that let others reach the instance by TCP are gone; those for ping are there",
		dies: func(t target, l leg) segment { return diesIf(t.request(l) && l.Scheme == TCP, atDelivery) },
		at:   onIntegration(func(t target) string { return t.instance().Host }), forgets: true,
		edit: func(t target, p overlay.Ports, flows []flow) []flow {
			rule := rulesOf(t, p)
			return slices.DeleteFunc(flows, func(f flow) bool { return rule(f) && (f.names("tcp") || f.names("tcp6")) })
		},
	},
	{
		Name: "stale-vtep", Form: "HOST:INSTANCE", Default: "hv1:blue-3", Cause: CauseStale,
		Help: "the host's flow for the instance points to a hypervisor where it is not",
		dies: func(t target, l leg) segment { return diesIf(t.sends(l) && l.to == t.instance(), onWire) },
		at:   onTunnel, edit: staleVTEP,
	},
	{
		Name: "route-gone", Form: "HOST:NETWORK", Default: "hv3:green", Cause: CauseFlow,
		Help: "the host's distributed router has lost its flows to the network",
		dies: func(t target, l leg) segment {
			n := t.network().Name
			return diesIf(l.from.Host == t.host() && l.from.Network != n && l.to.Network == n, inSwitch)
		},
		at: onIntegration(target.host), needsRouter: true,
		edit: func(t target, _ overlay.Ports, flows []flow) []flow {
			return slices.DeleteFunc(flows, func(f flow) bool {
				ip, err := netip.ParseAddr(f.field("nw_dst") + f.field("ipv6_dst")) // a flow has one
				return f.Table == 95 && err == nil && t.network().CIDR.Contains(ip)
			})
		},
	},
	{
		Name: "learned-blackhole", Form: "HOST:INSTANCE", Default: "hv4:blue-1", Cause: CauseStale,
		Help: "an entry such as br-tun learns, but above the controller's, points to a hypervisor where the instance is not",
		dies: func(t target, l leg) segment { return diesIf(t.sends(l) && l.to == t.instance(), onWire) },
		at:   onTunnel,
		edit: func(t target, p overlay.Ports, flows []flow) []flow {
			i := t.instance()
			n, _ := t.spec.Network(i.Network)
			return append(flows, flow{
				Cookie: fmt.Sprintf("%#x", overlay.Cookie(t.host(), overlay.Tunnel)), Table: 20, Priority: 3,
				Match:   fmt.Sprintf("vlan_tci=%#04x/0x0fff,dl_dst=%s", t.spec.LocalVLANs(t.host())[n.Name], i.MAC),
				Actions: fmt.Sprintf("load:0->NXM_OF_VLAN_TCI[],load:%#x->NXM_NX_TUN_ID[],output:%d", n.Segmentation, p.Tunnels[wrongTunnel(t)]),
			})
		},
	},
	{
		Name: "guest-drops-tcp", Form: "INSTANCE", Default: "green-4", Cause: CauseGuest, anywhere: true,
		Help: "the guest's own firewall drops what would open TCP port 11 without a word; ping is answered",
		dies: func(t target, l leg) segment { return diesIf(t.request(l) && l.Scheme == TCP, withinGuest) },
		apply: func(_ workshop, t target) []step {
			// Not resets that come to this port: a probe of the guest's own has it at both ends.
			return []step{nft(t.instance().Name, "inet", "lab-drops-tcp", fmt.Sprintf(
				"type filter hook input priority 0\n tcp dport %d tcp flags & (syn | ack) == syn drop", ProbedPort))}
		},
		heal: func(_ workshop, t target) []step {
			return []step{nft(t.instance().Name, "inet", "lab-drops-tcp", "")}
		},
		changed: atTap,
	},
	{
		Name: "tos-cleared", Form: "INSTANCE", Default: "blue-2", Cause: CauseNone, anywhere: true,
		Help: "the guest sends everything with ToS, or traffic class, 0; nothing is lost",
		dies: func(target, leg) segment { return unharmed },
		apply: func(_ workshop, t target) []step {
			return []step{nft(t.instance().Name, "inet", "lab-tos", "type filter hook output priority mangle\n"+
				" ip dscp set cs0\n ip ecn set not-ect\n ip6 dscp set cs0\n ip6 ecn set not-ect")}
		},
		heal: func(_ workshop, t target) []step { return []step{nft(t.instance().Name, "inet", "lab-tos", "")} },
	},
	{
		Name: "port-open", Form: "INSTANCE", Default: "green-2", Cause: CauseNone, anywhere: true,
		Help:  "something listens on the guest's TCP port 11; nothing is lost",
		dies:  func(target, leg) segment { return unharmed },
		apply: func(_ workshop, t target) []step { return []step{listener(t, listenOpen)} },
		heal:  func(_ workshop, t target) []step { return []step{listener(t, listenClose)} },
	},
	{
		Name: "moved-withheld", Form: "INSTANCE:HOST", Default: "web-1:hv2", Topology: "evpn", Cause: CauseStale,
		Help: "the instance moved to the host; the old route of it was not withdrawn and no new one told, and all but these two hosts go by it",
		// Its old host knows that it left, has no route to it, and floods what is for it.
		dies: func(t target, l leg) segment {
			return diesIf(l.crosses() && l.to.Name == t.instance().Name && l.from.Host != t.instance().Host, onWire)
		},
		moves:   true,
		follows: func(t target, host string) bool { return host == t.host() || host == t.instance().Host },
	},
	{
		Name: "moved-stale-tunnel", Form: "INSTANCE:HOST:HOST", Default: "web-1:hv2:hv3", Topology: "evpn", Cause: CauseStale,
		Help: "the instance moved to the first host, and routes tell of it; the second one's flows still point to where it was",
		dies: func(t target, l leg) segment {
			return diesIf(l.to.Name == t.instance().Name && l.from.Host == t.other(), onWire)
		},
		moves: true, tells: true,
		follows: func(t target, host string) bool { return host != t.other() },
	},
})

// lossKinds are those that lose some packets and pass the others, by chance or by their number; and one
// that loses none but sends some twice. All of it happens on the port of the rack's switch where a
// hypervisor is attached.
var lossKinds = []BreakKind{
	{
		Name: "underlay-loss", Form: "HOST:HOST:PERCENT", Default: "hv2:hv4:5", Cause: CauseLoss,
		Help:  "the first host's leaf drops, at random, that percentage of what its VTEP sends to the second's",
		loses: func(t target, l leg) segment { return diesIf(t.oneWay(l), onWire) },
		apply: func(w workshop, t target) []step {
			leaf, port := w.peer(t.host(), t.hosts[0].Uplink)
			// 32 bits of the kernel's generator for each packet; numgen's "random" is uniform below mod.
			return []step{nft(leaf, "netdev", lossName(t), fmt.Sprintf(
				"type filter hook ingress device %s priority 1\n ip saddr %s ip daddr %s numgen random mod 1000 < %d drop",
				port, t.hosts[0].VTEP.Addr(), t.hosts[1].VTEP.Addr(), t.perMille))}
		},
		heal: func(w workshop, t target) []step {
			leaf, _ := w.peer(t.host(), t.hosts[0].Uplink)
			return []step{nft(leaf, "netdev", lossName(t), "")}
		},
	},
	{
		Name: "rate-limit", Form: "HOST", Default: "hv4", Cause: CauseLoss,
		Help:  "the leaf passes 64 kbit/s to the host, and drops what is more than a few packets ahead",
		loses: func(t target, l leg) segment { return diesIf(t.receives(l), onWire) },
		apply: func(w workshop, t target) []step {
			leaf, port := w.peer(t.host(), t.hosts[0].Uplink)
			return []step{{where: leaf, argv: []string{"tc", "qdisc", "replace", "dev", port, "root", "tbf",
				"rate", "64kbit", "burst", "2000", "limit", "2000"}}} // bytes; ten probes or so each
		},
		heal: func(w workshop, t target) []step {
			leaf, port := w.peer(t.host(), t.hosts[0].Uplink)
			return []step{{where: leaf, argv: []string{"sh", "-c", "tc qdisc del dev " + port + " root 2>/dev/null || true"}}}
		},
	},
	{
		Name: "underlay-twice", Form: "HOST:HOST", Default: "hv2:hv3", Cause: CauseTwice,
		Help: "the first host's leaf sends twice what its VTEP sends to the second's; nothing is lost",
		dies: func(target, leg) segment { return unharmed },
		apply: func(w workshop, t target) []step {
			leaf, port := w.peer(t.host(), t.hosts[0].Uplink)
			// The copy goes to the other host's port, if that is of this leaf, else it comes in as the first did.
			copied := "ingress mirror dev rack"
			if leaf2, port2 := w.peer(t.other(), t.hosts[1].Uplink); leaf2 == leaf {
				copied = "egress mirror dev " + port2
			}
			return []step{{where: leaf, argv: []string{"sh", "-e", "-c", fmt.Sprintf("tc qdisc replace dev %[1]s clsact\n"+
				"tc filter replace dev %[1]s ingress pref 7 protocol ip u32 match ip src %[2]s match ip dst %[3]s action mirred %[4]s",
				port, t.hosts[0].VTEP.Addr(), t.hosts[1].VTEP.Addr(), copied)}}}
		},
		heal: func(w workshop, t target) []step {
			leaf, port := w.peer(t.host(), t.hosts[0].Uplink)
			return []step{{where: leaf, argv: []string{"sh", "-c", "tc qdisc del dev " + port + " clsact 2>/dev/null || true"}}}
		},
	},
}

func lossName(t target) string { return "lab-loss-" + t.host() + "-" + t.other() }

func onIntegration(host func(target) string) func(target) (string, string) {
	return func(t target) (string, string) { return host(t), overlay.Integration }
}

func onTunnel(t target) (string, string) { return t.host(), overlay.Tunnel }

// drops returns flows that drop what matches and is for an instance, whatever its version.
func drops(to overlay.Instance, table, priority int, match string) []flow {
	var flows []flow
	for _, v := range overlay.Versions() {
		protocol := map[overlay.Version]string{overlay.V4: "ip,%s,nw_dst=%s", overlay.V6: "ipv6,%s,ipv6_dst=%s"}[v]
		for _, ip := range to.Addresses(v) {
			flows = append(flows, flow{"0x0", table, priority, fmt.Sprintf(protocol, match, ip), "drop"})
		}
	}
	return flows
}

// toGuest: whatever is on its way to the instance dies there.
func toGuest(t target, l leg) segment { return diesIf(l.to == t.instance(), withinGuest) }

// rulesOf tells the flows that are the instance's security rules: what it lets in, whoever sends it.
func rulesOf(t target, p overlay.Ports) func(flow) bool {
	port := fmt.Sprintf("%#x", p.Taps[t.instance().Name])
	return func(f flow) bool {
		return f.Table == 82 && strings.HasPrefix(f.Actions, "conjunction") && f.field("reg5") == port
	}
}

// besides is another instance of the target's host, the first.
func besides(t target) overlay.Instance {
	for _, i := range t.spec.On(t.instance().Host) {
		if i != t.instance() {
			return i
		}
	}
	return overlay.Instance{}
}

// misdirect has the flows that deliver IP to an instance deliver it to another of its host: table 82
// what comes from elsewhere, table 94 answers of its own host. ARP from elsewhere reaches it still.
func misdirect(t target, p overlay.Ports, flows []flow) []flow {
	own, other := p.Taps[t.instance().Name], p.Taps[besides(t).Name]
	for n, f := range flows {
		if f.Table == 82 || f.Table == 94 {
			actions := strings.Split(f.Actions, ",")
			for i, a := range actions {
				if a == fmt.Sprintf("output:%d", own) {
					actions[i] = fmt.Sprintf("output:%d", other)
				}
			}
			flows[n].Actions = strings.Join(actions, ",")
		}
	}
	return flows
}

func setRemote(t target, remote netip.Addr) []step {
	return []step{vsctl(t.host(), "set", "Interface", overlay.TunnelName(t.encap, t.hosts[1]), "options:remote_ip="+remote.String())}
}

// unusedAddress returns the last host address of a rack's subnet, where no VTEP is.
func unusedAddress(vtep netip.Prefix) netip.Addr {
	a := vtep.Masked().Addr().As4()
	for bit := vtep.Bits(); bit < 31; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a)
}

// wrongVNI changes a network's segmentation id in all flows of br-tun to one that no network
// has.
func wrongVNI(t target, _ overlay.Ports, flows []flow) []flow {
	n := t.network()
	wrong := n.Segmentation
	for slices.ContainsFunc(t.spec.Networks, func(o overlay.Network) bool { return o.Segmentation == wrong }) {
		wrong = (wrong + 1000) % (1 << 24)
	}
	right := strconv.FormatUint(uint64(n.Segmentation), 16)
	table, vlan := overlay.IngressTable(n), fmt.Sprint(t.spec.LocalVLANs(t.host())[n.Name])
	for i, f := range flows {
		if f.Table == table && f.field("tun_id") == "0x"+right {
			flows[i].Match = strings.Replace(f.Match, "tun_id=0x"+right, fmt.Sprintf("tun_id=%#x", wrong), 1)
		}
		if (f.Table == 20 || f.Table == 22) && f.field("dl_vlan") == vlan {
			flows[i].Actions = strings.Replace(f.Actions, "load:0x"+right+"->", fmt.Sprintf("load:%#x->", wrong), 1)
		}
	}
	return flows
}

func staleVTEP(t target, p overlay.Ports, flows []flow) []flow {
	i := t.instance()
	vlan := fmt.Sprint(t.spec.LocalVLANs(t.host())[i.Network])
	for n, f := range flows {
		if f.Table == 20 && f.Priority == 2 && f.field("dl_vlan") == vlan && f.field("dl_dst") == i.MAC.String() {
			before, _, _ := strings.Cut(f.Actions, "output:")
			flows[n].Actions = fmt.Sprintf("%soutput:%d", before, p.Tunnels[wrongTunnel(t)])
		}
	}
	return flows
}

// wrongTunnel returns the name of the host's tunnel port to the first host that is neither
// itself nor the instance's.
func wrongTunnel(t target) string {
	i := t.instance()
	n, _ := t.spec.Network(i.Network)
	for _, o := range t.spec.Hosts {
		if o.Name != t.host() && o.Name != i.Host {
			return overlay.TunnelName(n.Encap, o)
		}
	}
	return "" // two hosts only: no port, the flow drops
}

// step is a command of a break that is not a flow's.
type step struct {
	where string // node or instance
	stdin string
	argv  []string
}

func vsctl(host string, args ...string) step {
	return step{where: host, argv: append([]string{"ovs-vsctl", "--timeout=30"}, args...)}
}

// guestIP changes links, addresses and routes of the target, which may have no working link.
func guestIP(t target, batch string) step {
	return step{where: t.instance().Name, stdin: batch, argv: []string{"ip", "-batch", "-"}}
}

// listener has the binary open or close the guest's TCP port.
func listener(t target, verb string) step {
	name := t.instance().Name
	return step{where: name, argv: []string{"dyetrace", "lab", "listen", verb, name}}
}

func setUplink(t target, state string) step {
	return step{where: t.host(), argv: []string{"ip", "link", "set", t.hosts[0].Uplink, state}}
}

// nft makes a table with one chain, or with no rules takes it away. That it is there already,
// or gone, makes no difference.
func nft(where, family, table, rules string) step {
	text := fmt.Sprintf("add table %[1]s %[2]s\ndelete table %[1]s %[2]s\n", family, table)
	if rules != "" {
		text += fmt.Sprintf("table %s %s {\n chain lab {\n %s\n }\n}\n", family, table, rules)
	}
	return step{where: where, stdin: text, argv: []string{"nft", "-f", "-"}}
}

// leafDrops has the first host's leaf drop what its VTEP sends to the second's, and matches; an empty
// match undoes it.
func leafDrops(w workshop, t target, name, match string) []step {
	leaf, port := w.peer(t.host(), t.hosts[0].Uplink)
	rule := ""
	if match != "" {
		rule = fmt.Sprintf("type filter hook ingress device %s priority 0\n ip saddr %s ip daddr %s %s drop",
			port, t.hosts[0].VTEP.Addr(), t.hosts[1].VTEP.Addr(), match)
	}
	return []step{nft(leaf, "netdev", fmt.Sprintf("%s-%s-%s", name, t.host(), t.other()), rule)}
}

// isolate has the leaf of the host's rack drop what comes from other racks or goes there, or no more so.
func isolate(w workshop, t target, on bool) []step {
	leaf, _ := w.peer(t.host(), t.hosts[0].Uplink)
	rules := ""
	if on {
		rack := t.hosts[0].VTEP.Masked()
		rules = fmt.Sprintf("type filter hook forward priority 0\n ip saddr %[1]s ip daddr != %[1]s drop\n ip saddr != %[1]s ip daddr %[1]s drop", rack)
	}
	return []step{nft(leaf, "ip", "lab-rack-"+t.host(), rules)}
}

// secondUplink is by what a leaf of the default lab reaches its second spine.
const secondUplink = "eth4"

// spineDrops has the second spine treat so what comes from the leaf of the host; an empty rule undoes it.
func spineDrops(w workshop, t target, rule string) []step {
	leaf, _ := w.peer(t.host(), t.hosts[0].Uplink)
	spine, port := w.peer(leaf, secondUplink)
	if rule != "" {
		rule = fmt.Sprintf("type filter hook ingress device %s priority 0\n %s", port, rule)
	}
	return []step{nft(spine, "netdev", "lab-member-"+t.host(), rule)}
}

func aclName(t target) string { return "lab-acl-" + t.host() + "-" + t.other() }

func replugTap(w workshop, t target) []step {
	i := t.instance()
	tx := newTransaction()
	tx.tap(i, t.spec.LocalVLANs(i.Host)[i.Network])
	return samePort(i.Host, i.Tap(), w.ports(i.Host).Taps[i.Name], tx)
}

// samePort runs a transaction that adds a port back, so that it gets the number which the
// flows know. The request goes again afterwards: the number stays, and the database is as it
// was (ovs-vswitchd.conf.db(5), Interface, ofport_request).
func samePort(host, port string, number int, tx *transaction) []step {
	tx.add("set", "Interface", port, fmt.Sprintf("ofport_request=%d", number))
	return []step{
		{where: host, argv: append([]string{"ovs-vsctl"}, tx.args...)},
		vsctl(host, "clear", "Interface", port, "ofport_request"),
	}
}
