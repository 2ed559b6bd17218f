package overlay

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Bridges and patch ports of a hypervisor, named as Neutron names them.
const (
	Integration = "br-int"
	Tunnel      = "br-tun"
	PatchTun    = "patch-tun" // on br-int
	PatchInt    = "patch-int" // on br-tun
)

// Ports holds the OpenFlow port numbers that a host's Open vSwitch gave.
type Ports struct {
	PatchTun int            // on br-int
	PatchInt int            // on br-tun
	Taps     map[string]int // on br-int, by instance
	Tunnels  map[string]int // on br-tun, by TunnelName
}

// LearnedTimeout is the hard timeout of what br-tun learns, in seconds: Neutron's value.
const LearnedTimeout = 300

// host is a specification seen from one of its hosts.
type host struct {
	*Spec
	name  string
	ports Ports
	vlans map[string]uint16
	head  string
	flows []line
}

// line is a flow as text, with what it is sorted by.
type line struct {
	table, priority int
	text            string
}

// IntegrationFlows returns the flows of a host's br-int, one a line, as ovs-ofctl(8)
// add-flows takes them. The host must be one of the specification's, and ports hold all of
// its instances.
func (s *Spec) IntegrationFlows(name string, ports Ports) string {
	h := s.from(name, Integration, ports)
	h.switching()
	for _, i := range s.On(name) {
		h.entrance(i)
		h.egress(i)
		h.ingress(i)
	}
	h.securityGroup()
	h.common()
	h.forwarding()
	h.router()
	return h.text()
}

// TunnelFlows returns the flows of a host's br-tun, in the form of IntegrationFlows. ports
// must hold all of the host's Tunnels.
func (s *Spec) TunnelFlows(name string, ports Ports) string {
	h := s.from(name, Tunnel, ports)
	h.classify()
	h.routedOut()
	h.fromTunnels()
	h.unicast()
	h.answerNeighbours()
	h.flood()
	return h.text()
}

func (s *Spec) from(name, bridge string, ports Ports) *host {
	return &host{
		Spec: s, name: name, ports: ports, vlans: s.LocalVLANs(name),
		head: fmt.Sprintf("cookie=%#x,", Cookie(name, bridge)),
	}
}

// text returns the flows as ovs-ofctl dumps them: by table, the highest priority first.
func (h *host) text() string {
	slices.SortStableFunc(h.flows, func(a, b line) int {
		return cmp.Or(cmp.Compare(a.table, b.table), cmp.Compare(b.priority, a.priority))
	})
	var b strings.Builder
	for _, f := range h.flows {
		b.WriteString(f.text)
		b.WriteByte('\n')
	}
	return b.String()
}

// add adds a flow. The match may be empty, else it ends in a comma.
func (h *host) add(table, priority int, match, actions string, args ...any) {
	text := fmt.Sprintf("%stable=%d,priority=%d,%sactions=%s", h.head, table, priority, match, fmt.Sprintf(actions, args...))
	h.flows = append(h.flows, line{table, priority, text})
}

// local returns the networks that have a VLAN on this host, in the specification's order.
func (h *host) local() []Network {
	return slices.DeleteFunc(slices.Clone(h.Networks), func(n Network) bool { return h.vlans[n.Name] == 0 })
}

// protocol is how flows name a version and what is above it.
type protocol struct {
	version      Version
	ip, src, dst string
	above        []string // what security groups let in
	conjunctions uint32   // the first of its two conjunction ids, counted from a VLAN's first
}

var protocols = []protocol{
	{V4, "ip", "nw_src", "nw_dst", []string{"tcp", "udp", "icmp"}, 0},
	{V6, "ipv6", "ipv6_src", "ipv6_dst", []string{"tcp6", "udp6", "icmp6"}, 2},
}

// protocolsOf returns what a network carries.
func protocolsOf(n Network) []protocol {
	return slices.DeleteFunc(slices.Clone(protocols), func(p protocol) bool { return !n.Has(p.version) })
}

// networkOf returns the network of an instance of the specification.
func (h *host) networkOf(i Instance) Network {
	n, _ := h.Network(i.Network)
	return n
}

func (h *host) others() []Host {
	return slices.DeleteFunc(slices.Clone(h.Hosts), func(o Host) bool { return o.Name == h.name })
}

// switching: tables 0 and 1, and what in table 60 is nobody's in particular.
func (h *host) switching() {
	h.add(0, 65535, "dl_vlan=4095,", "drop")
	for _, o := range h.others() {
		h.add(0, 4, fmt.Sprintf("in_port=%d,dl_src=%s,", h.ports.PatchTun, RouterMAC(o.Name)), "resubmit(,1)")
	}
	h.add(0, 0, "", "resubmit(,60)")
	for _, i := range h.On(h.name) {
		if n, _ := h.Network(i.Network); n.Gateway != nil {
			h.add(1, 20, fmt.Sprintf("dl_vlan=%d,dl_dst=%s,", h.vlans[i.Network], i.MAC),
				"mod_dl_src:%s,resubmit(,60)", n.Gateway.MAC)
		}
	}
	h.add(1, 1, "", "drop")
	h.add(60, 0, "", "NORMAL")
}

// entrance: table 60, where a packet gets its registers.
func (h *host) entrance(i Instance) {
	port, vlan := h.ports.Taps[i.Name], h.vlans[i.Network]
	h.add(60, 100, fmt.Sprintf("in_port=%d,", port),
		"load:%#x->NXM_NX_REG5[],load:%#x->NXM_NX_REG6[],resubmit(,71)", port, vlan)
	h.add(60, 90, fmt.Sprintf("dl_vlan=%d,dl_dst=%s,", vlan, i.MAC),
		"load:%#x->NXM_NX_REG5[],load:%#x->NXM_NX_REG6[],strip_vlan,resubmit(,81)", port, vlan)
}

// ICMPv6 message types (RFC 4443, RFC 2710 and RFC 4861).
const (
	mldQuery              = 130
	routerSolicitation    = 133
	routerAdvertisement   = 134
	neighbourSolicitation = 135
	neighbourAnswer       = 136
)

// egress: tables 71 to 73, what an instance may send.
func (h *host) egress(i Instance) {
	port, vlan := h.ports.Taps[i.Name], h.vlans[i.Network]
	reg := fmt.Sprintf("reg5=%#x,", port)
	self := fmt.Sprintf("reg5=%#x,in_port=%d,dl_src=%s,", port, port, i.MAC)
	h.add(73, 100, fmt.Sprintf("reg6=%#x,dl_dst=%s,", vlan, i.MAC), "load:%#x->NXM_NX_REG5[],resubmit(,81)", port)
	for _, p := range protocolsOf(h.networkOf(i)) {
		if p.version == V4 {
			h.add(71, 95, fmt.Sprintf("arp,%sarp_spa=%s,", self, i.IP.V4), "resubmit(,94)")
			h.add(71, 80, fmt.Sprintf("udp,%sdl_dst=ff:ff:ff:ff:ff:ff,tp_src=68,tp_dst=67,", self), "resubmit(,73)")
			h.add(71, 70, fmt.Sprintf("udp,reg5=%#x,in_port=%d,tp_src=67,tp_dst=68,", port, port), "resubmit(,93)")
		} else {
			h.discovery(i, self)
		}
		for _, ip := range i.Addresses(p.version) {
			h.add(71, 65, fmt.Sprintf("%s,%s%s=%s,", p.ip, self, p.src, ip), "ct(table=72,zone=NXM_NX_REG6[0..15])")
		}
		h.add(72, 77, fmt.Sprintf("ct_state=+est-rel-rpl,%s,%s", p.ip, reg), "resubmit(,73)")
		h.add(72, 77, fmt.Sprintf("ct_state=+new-est,%s,%s", p.ip, reg), "resubmit(,73)")
		h.add(73, 90, fmt.Sprintf("ct_state=+new-est,%s,%s", p.ip, reg), "ct(commit,zone=NXM_NX_REG6[0..15]),resubmit(,91)")
	}
	h.add(71, 10, "ct_state=-trk,"+reg, "resubmit(,93)")
	h.stateful(72, i, "resubmit(,94)")
	h.add(73, 80, reg, "resubmit(,94)")
}

// discovery: what table 71 lets an instance say of IPv6 itself. It may ask for others in its own
// name, and answer for itself; it may be neither a router nor a DHCP server.
func (h *host) discovery(i Instance, self string) {
	for _, ip := range i.Addresses(V6) {
		for _, kind := range []int{mldQuery, routerSolicitation} {
			h.add(71, 95, fmt.Sprintf("icmp6,%sipv6_src=%s,icmpv6_type=%d,", self, ip, kind), "resubmit(,94)")
		}
		h.add(71, 95, fmt.Sprintf("icmp6,%sipv6_src=%s,icmpv6_type=%d,nd_sll=%s,", self, ip, neighbourSolicitation, i.MAC), "resubmit(,94)")
		h.add(71, 95, fmt.Sprintf("icmp6,%sicmpv6_type=%d,nd_target=%s,", self, neighbourAnswer, ip), "resubmit(,94)")
	}
	port := h.ports.Taps[i.Name]
	h.add(71, 80, fmt.Sprintf("udp6,%stp_src=546,tp_dst=547,", self), "resubmit(,73)")
	h.add(71, 70, fmt.Sprintf("udp6,reg5=%#x,in_port=%d,tp_src=547,tp_dst=546,", port, port), "resubmit(,93)")
	h.add(71, 70, fmt.Sprintf("icmp6,reg5=%#x,in_port=%d,icmpv6_type=%d,", port, port, routerAdvertisement), "resubmit(,93)")
}

// ingress: tables 81 and 82, what an instance may receive, apart from the group's members.
func (h *host) ingress(i Instance) {
	port, vlan := h.ports.Taps[i.Name], h.vlans[i.Network]
	reg := fmt.Sprintf("reg5=%#x,", port)
	for _, p := range protocolsOf(h.networkOf(i)) {
		if p.version == V4 {
			h.add(81, 100, "arp,"+reg, "output:%d", port)
		} else {
			for _, kind := range []int{mldQuery, neighbourSolicitation, neighbourAnswer} {
				h.add(81, 100, fmt.Sprintf("icmp6,%sicmpv6_type=%d,", reg, kind), "output:%d", port)
			}
		}
		h.add(81, 90, fmt.Sprintf("ct_state=-trk,%s,%s", p.ip, reg), "ct(table=82,zone=NXM_NX_REG6[0..15])")

		est, new := p.conjunctionsOf(vlan)
		for _, proto := range p.above {
			h.add(82, 70, fmt.Sprintf("ct_state=+est-rel-rpl,%s,%s", proto, reg), "conjunction(%d,2/2)", est)
			h.add(82, 70, fmt.Sprintf("ct_state=+new-est,%s,%s", proto, reg), "conjunction(%d,2/2)", new)
		}
		h.add(82, 70, fmt.Sprintf("conj_id=%d,ct_state=+est-rel-rpl,%s,%s", est, p.ip, reg), "output:%d", port)
		h.add(82, 70, fmt.Sprintf("conj_id=%d,ct_state=+new-est,%s,%s", new, p.ip, reg),
			"ct(commit,zone=NXM_NX_REG6[0..15]),output:%d,resubmit(,92)", port)
	}
	h.add(81, 80, "ct_state=+trk,"+reg, "resubmit(,82)")
	h.stateful(82, i, fmt.Sprintf("output:%d", port))
}

// stateful: what tables 72 and 82 have in common. Answers of accepted connections pass; a
// connection that no rule accepts any longer is marked, and then blocked both ways.
func (h *host) stateful(table int, i Instance, accept string) {
	reg := fmt.Sprintf("reg5=%#x,", h.ports.Taps[i.Name])
	h.add(table, 50, "ct_state=+inv+trk,"+reg, "resubmit(,93)")
	h.add(table, 50, "ct_mark=0x1,"+reg, "resubmit(,93)")
	zone := fmt.Sprintf("ct_zone=%d,ct_mark=0,%s", h.vlans[i.Network], reg)
	h.add(table, 50, "ct_state=+est-rel+rpl,"+zone, "%s", accept)
	h.add(table, 50, "ct_state=-new-est+rel-inv,"+zone, "%s", accept)
	h.add(table, 40, "ct_state=-est,"+reg, "resubmit(,93)")
	for _, p := range protocolsOf(h.networkOf(i)) {
		h.add(table, 40, fmt.Sprintf("ct_state=+est,%s,%s", p.ip, reg), "ct(commit,zone=NXM_NX_REG6[0..15],exec(load:0x1->NXM_NX_CT_MARK[]))")
	}
}

// conjunctionsOf returns the two conjunction ids of a VLAN's security group: for packets of
// established connections, and for the first of a new one. Neutron, too, uses neighbours, and
// others for the other version.
func (p protocol) conjunctionsOf(vlan uint16) (est, new uint32) {
	first := uint32(vlan)*8 + p.conjunctions
	return first, first + 1
}

// securityGroup: table 82, the members that every instance of a network accepts: those of the
// same and of the routed networks.
func (h *host) securityGroup() {
	for _, n := range h.local() {
		if !slices.ContainsFunc(h.On(h.name), func(i Instance) bool { return i.Network == n.Name }) {
			continue
		}
		for _, p := range protocolsOf(n) {
			h.members(n, p)
		}
	}
}

func (h *host) members(n Network, p protocol) {
	vlan := h.vlans[n.Name]
	est, new := p.conjunctionsOf(vlan)
	for _, i := range h.Instances {
		if !h.JoinedOver(p.version, i.Network, n.Name) {
			continue
		}
		for _, ip := range i.Addresses(p.version) {
			if ip.IsLinkLocalUnicast() && i.Network != n.Name {
				continue // no router forwards from it
			}
			member := fmt.Sprintf("%s,reg6=%#x,%s=%s,", p.ip, vlan, p.src, ip)
			h.add(82, 70, "ct_state=+est-rel-rpl,"+member, "conjunction(%d,1/2)", est)
			h.add(82, 70, "ct_state=+new-est,"+member, "conjunction(%d,1/2)", new)
		}
	}
}

// common: the ends of the security tables.
func (h *host) common() {
	for _, table := range []int{71, 72, 73, 81, 82} {
		h.add(table, 0, "", "resubmit(,93)")
	}
	h.add(91, 1, "", "resubmit(,94)")
	for _, table := range []int{92, 93} {
		h.add(table, 0, "", "drop")
	}
}

// forwarding: table 94, where accepted packets go, and the answer to who asks for a gateway.
func (h *host) forwarding() {
	for _, n := range h.local() {
		vlan := h.vlans[n.Name]
		reg := fmt.Sprintf("reg6=%#x,", vlan)
		if g := n.Gateway; g != nil {
			for _, ip := range h.answered(g.IP.All()) {
				h.add(94, 20, asks(reg, ip), "%s", answer(g.MAC, ip, isRouter, finishOnIntegration))
			}
			h.add(94, 15, reg+fmt.Sprintf("dl_dst=%s,", g.MAC), "resubmit(,95)")
		}
		for _, i := range h.On(h.name) {
			if i.Network == n.Name {
				h.add(94, 12, reg+fmt.Sprintf("dl_dst=%s,", i.MAC), "output:%d", h.ports.Taps[i.Name])
			}
		}
		h.add(94, 10, reg+"dl_dst=00:00:00:00:00:00/01:00:00:00:00:00,", "%s", h.toTunnelBridge(vlan))
	}
	h.add(94, 1, "", "NORMAL")
	h.finishAnswer(finishOnIntegration)
}

func (h *host) toTunnelBridge(vlan uint16) string {
	return fmt.Sprintf("mod_vlan_vid:%d,output:%d", vlan, h.ports.PatchTun)
}

// router: tables 95 and 96. The packet leaves its network here, on the sender's host: TTL less
// one, new MACs, no connection (ct_clear), because the other network's zone must see it anew.
func (h *host) router() {
	for _, from := range h.local() {
		if from.Gateway == nil {
			continue
		}
		for _, i := range h.Instances {
			to, _ := h.Network(i.Network)
			if to.Name == from.Name || !h.Joined(to.Name, from.Name) {
				continue
			}
			for _, p := range protocolsOf(from) {
				if !to.Has(p.version) {
					continue
				}
				h.add(95, 10, fmt.Sprintf("%s,reg6=%#x,dl_dst=%s,%s=%s,", p.ip, h.vlans[from.Name], from.Gateway.MAC, p.dst, i.IP.Of(p.version)),
					"dec_ttl,mod_dl_src:%s,mod_dl_dst:%s,load:%#x->NXM_NX_REG6[],ct_clear,resubmit(,96)",
					to.Gateway.MAC, i.MAC, h.vlans[to.Name])
			}
		}
	}
	h.add(95, 0, "", "drop")
	for _, n := range h.local() {
		if n.Gateway == nil {
			continue
		}
		vlan := h.vlans[n.Name]
		for _, i := range h.On(h.name) {
			if i.Network == n.Name {
				h.add(96, 10, fmt.Sprintf("reg6=%#x,dl_dst=%s,", vlan, i.MAC),
					"load:%#x->NXM_NX_REG5[],resubmit(,81)", h.ports.Taps[i.Name])
			}
		}
		h.add(96, 5, fmt.Sprintf("reg6=%#x,", vlan), "%s", h.toTunnelBridge(vlan))
	}
	h.add(96, 0, "", "drop")
}

// classify: br-tun's tables 0 and 2.
func (h *host) classify() {
	h.add(0, 1, fmt.Sprintf("in_port=%d,", h.ports.PatchInt), "resubmit(,1)")
	for _, t := range h.Tunnels(h.name) {
		h.add(0, 1, fmt.Sprintf("in_port=%d,", h.ports.Tunnels[t.Port()]), "resubmit(,%d)", ingressTable(t.Encap))
	}
	h.add(0, 0, "", "drop")
	h.add(2, 1, "arp,dl_dst=ff:ff:ff:ff:ff:ff,", "resubmit(,21)")
	if h.carriesV6() {
		h.add(2, 1, fmt.Sprintf("icmp6,icmpv6_type=%d,", neighbourSolicitation), "resubmit(,21)")
	}
	h.add(2, 0, "dl_dst=00:00:00:00:00:00/01:00:00:00:00:00,", "resubmit(,20)")
	h.add(2, 0, "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00,", "resubmit(,22)")
}

// routedOut: br-tun's table 1. A gateway is everywhere, so nothing for it leaves the host, and
// what it sent bears the host's own router MAC instead.
func (h *host) routedOut() {
	for _, n := range h.local() {
		if n.Gateway == nil {
			continue
		}
		vlan := fmt.Sprintf("dl_vlan=%d,", h.vlans[n.Name])
		if n.Has(V4) {
			h.add(1, 3, fmt.Sprintf("arp,%sarp_tpa=%s,", vlan, n.Gateway.IP.V4), "drop")
		}
		if n.Has(V6) {
			h.add(1, 3, fmt.Sprintf("icmp6,%sicmpv6_type=%d,nd_target=%s,", vlan, neighbourSolicitation, n.Gateway.IP.V6), "drop")
		}
		h.add(1, 2, vlan+fmt.Sprintf("dl_dst=%s,", n.Gateway.MAC), "drop")
		h.add(1, 1, vlan+fmt.Sprintf("dl_src=%s,", n.Gateway.MAC), "mod_dl_src:%s,resubmit(,2)", RouterMAC(h.name))
	}
	h.add(1, 0, "", "resubmit(,2)")
}

// fromTunnels: br-tun's tables 3, 4, 9 and 10.
func (h *host) fromTunnels() {
	for _, n := range h.local() {
		h.add(IngressTable(n), 1, fmt.Sprintf("tun_id=%#x,", n.Segmentation),
			"mod_vlan_vid:%d,resubmit(,9)", h.vlans[n.Name])
	}
	h.add(3, 0, "", "drop")
	h.add(4, 0, "", "drop")
	for _, o := range h.others() {
		h.add(9, 1, fmt.Sprintf("dl_src=%s,", RouterMAC(o.Name)), "output:%d", h.ports.PatchInt)
	}
	h.add(9, 0, "", "resubmit(,10)")
	h.add(10, 1, "", "learn(table=20,hard_timeout=%d,priority=1,cookie=%#x,NXM_OF_VLAN_TCI[0..11],"+
		"NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],load:0->NXM_OF_VLAN_TCI[],load:NXM_NX_TUN_ID[]->NXM_NX_TUN_ID[],"+
		"output:OXM_OF_IN_PORT[]),output:%d", LearnedTimeout, Cookie(h.name, Tunnel), h.ports.PatchInt)
}

// IngressTable returns the number of br-tun's table that takes a network's packets from its tunnels.
func IngressTable(n Network) int { return ingressTable(n.Encap) }

func ingressTable(encap string) int {
	if encap == GRE {
		return 3
	}
	return 4
}

// unicast: br-tun's table 20. The controller knows where every instance is (Neutron's l2pop);
// what is learned has a lower priority and counts where the controller says nothing.
func (h *host) unicast() {
	for _, i := range h.Instances {
		if vlan := h.vlans[i.Network]; vlan != 0 && i.Host != h.name {
			n, _ := h.Network(i.Network)
			at, _ := h.End(i.Host)
			h.add(20, 2, fmt.Sprintf("dl_vlan=%d,dl_dst=%s,", vlan, i.MAC), "strip_vlan,load:%#x->NXM_NX_TUN_ID[],output:%d",
				n.Segmentation, h.ports.Tunnels[TunnelName(n.Encap, at)])
		}
	}
	h.add(20, 0, "", "resubmit(,22)")
}

// answerNeighbours: br-tun's table 21. Who asks for an instance elsewhere is answered here: by
// ARP as Neutron does it, and by neighbour discovery, which Neutron floods.
func (h *host) answerNeighbours() {
	for _, i := range h.Instances {
		vlan := h.vlans[i.Network]
		if vlan == 0 || i.Host == h.name {
			continue
		}
		for _, v := range Versions() {
			for _, ip := range h.answered(i.Addresses(v)) {
				h.add(21, 1, asks(fmt.Sprintf("dl_vlan=%d,", vlan), ip), "%s", answer(i.MAC, ip, isHost, finishOnTunnel))
			}
		}
	}
	h.add(21, 0, "", "resubmit(,22)")
	h.finishAnswer(finishOnTunnel)
}

// flood: br-tun's table 22, to every host that has the network.
func (h *host) flood() {
	for _, n := range h.local() {
		var out strings.Builder
		for _, t := range h.Tunnels(h.name) {
			if t.Encap == n.Encap && h.LocalVLANs(t.Name)[n.Name] != 0 {
				fmt.Fprintf(&out, ",output:%d", h.ports.Tunnels[t.Port()])
			}
		}
		if out.Len() > 0 {
			h.add(22, 1, fmt.Sprintf("dl_vlan=%d,", h.vlans[n.Name]), "strip_vlan,load:%#x->NXM_NX_TUN_ID[]%s",
				n.Segmentation, out.String())
		}
	}
	h.add(22, 0, "", "drop")
}

// Tables of neighbour answers that are half made: see answer.
const (
	finishOnIntegration = 97
	finishOnTunnel      = 23
)

// Flags of a neighbour advertisement (RFC 4861, section 4.4), as nd_reserved has them: it
// answers a question and takes the place of what was known; and whether a router says so.
const (
	isHost   = 0x60000000
	isRouter = 0xe0000000
)

// answered returns those addresses for which a bridge answers.
func (h *host) answered(ips []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(ips), func(ip netip.Addr) bool { return ip.Is6() && !h.Answers(V6) })
}

// asks returns a match, which ends in a comma as in does, of questions for an address.
func asks(in string, ip netip.Addr) string {
	if ip.Is4() {
		return fmt.Sprintf("arp,%sarp_op=1,arp_tpa=%s,", in, ip)
	}
	return fmt.Sprintf("icmp6,%sicmpv6_type=%d,nd_target=%s,", in, neighbourSolicitation, ip)
}

// answer returns the actions that turn a question into the answer of (mac, ip) and send it
// back. A flow that matches solicitations may not write what only advertisements have
// (ovs-actions(7): OFPBAC_MATCH_INCONSISTENT), so a flow in another table has to finish them.
func answer(mac MAC, ip netip.Addr, flags uint32, finish int) string {
	back := fmt.Sprintf("move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],mod_dl_src:%s,", mac)
	if ip.Is4() {
		m, a := hex.EncodeToString(mac[:]), ip.As4()
		return back + fmt.Sprintf("load:0x2->NXM_OF_ARP_OP[],"+
			"move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[],move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[],"+
			"load:0x%s->NXM_NX_ARP_SHA[],load:0x%x->NXM_OF_ARP_SPA[],in_port", m, a[:])
	}
	a := ip.As16()
	const targetOption = 2 // target link-layer address (RFC 4861, section 4.6.1)
	return back + fmt.Sprintf("move:NXM_NX_IPV6_SRC[]->NXM_NX_IPV6_DST[],"+
		"load:%#x->NXM_NX_IPV6_SRC[0..63],load:%#x->NXM_NX_IPV6_SRC[64..127],"+
		"load:%#x->NXM_NX_ICMPV6_TYPE[],load:%#x->ERICOXM_OF_ICMPV6_ND_OPTIONS_TYPE[],"+
		"load:%#x->ERICOXM_OF_ICMPV6_ND_RESERVED[],resubmit(,%d)",
		binary.BigEndian.Uint64(a[8:]), binary.BigEndian.Uint64(a[:8]), neighbourAnswer, targetOption, flags, finish)
}

// finishAnswer adds the second half of neighbour answers: the target's MAC, which is whom the
// frame comes from, in the option that carried the asker's.
func (h *host) finishAnswer(table int) {
	if h.carriesV6() && h.Answers(V6) {
		h.add(table, 1, fmt.Sprintf("icmp6,icmpv6_type=%d,", neighbourAnswer), "move:NXM_OF_ETH_SRC[]->NXM_NX_ND_TLL[],in_port")
		h.add(table, 0, "", "drop")
	}
}

// carriesV6 reports whether one of the host's networks has IPv6.
func (h *host) carriesV6() bool {
	return slices.ContainsFunc(h.local(), func(n Network) bool { return n.Has(V6) })
}
