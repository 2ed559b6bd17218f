package overlay

import (
	"cmp"
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
// must hold a tunnel of each encapsulation to every other host.
func (s *Spec) TunnelFlows(name string, ports Ports) string {
	h := s.from(name, Tunnel, ports)
	h.classify()
	h.routedOut()
	h.fromTunnels()
	h.unicast()
	h.answerARP()
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

// egress: tables 71 to 73, what an instance may send.
func (h *host) egress(i Instance) {
	port, vlan := h.ports.Taps[i.Name], h.vlans[i.Network]
	reg := fmt.Sprintf("reg5=%#x,", port)
	self := fmt.Sprintf("reg5=%#x,in_port=%d,dl_src=%s,", port, port, i.MAC)
	h.add(71, 95, fmt.Sprintf("arp,%sarp_spa=%s,", self, i.IP), "resubmit(,94)")
	h.add(71, 80, fmt.Sprintf("udp,%sdl_dst=ff:ff:ff:ff:ff:ff,tp_src=68,tp_dst=67,", self), "resubmit(,73)")
	h.add(71, 70, fmt.Sprintf("udp,reg5=%#x,in_port=%d,tp_src=67,tp_dst=68,", port, port), "resubmit(,93)")
	h.add(71, 65, fmt.Sprintf("ip,%snw_src=%s,", self, i.IP), "ct(table=72,zone=NXM_NX_REG6[0..15])")
	h.add(71, 10, "ct_state=-trk,"+reg, "resubmit(,93)")

	h.add(72, 77, "ct_state=+est-rel-rpl,ip,"+reg, "resubmit(,73)")
	h.add(72, 77, "ct_state=+new-est,ip,"+reg, "resubmit(,73)")
	h.stateful(72, reg, vlan, "resubmit(,94)")

	h.add(73, 100, fmt.Sprintf("reg6=%#x,dl_dst=%s,", vlan, i.MAC), "load:%#x->NXM_NX_REG5[],resubmit(,81)", port)
	h.add(73, 90, "ct_state=+new-est,ip,"+reg, "ct(commit,zone=NXM_NX_REG6[0..15]),resubmit(,91)")
	h.add(73, 80, reg, "resubmit(,94)")
}

// ingress: tables 81 and 82, what an instance may receive, apart from the group's members.
func (h *host) ingress(i Instance) {
	port, vlan := h.ports.Taps[i.Name], h.vlans[i.Network]
	reg := fmt.Sprintf("reg5=%#x,", port)
	h.add(81, 100, "arp,"+reg, "output:%d", port)
	h.add(81, 90, "ct_state=-trk,ip,"+reg, "ct(table=82,zone=NXM_NX_REG6[0..15])")
	h.add(81, 80, "ct_state=+trk,"+reg, "resubmit(,82)")

	est, new := conjunctions(vlan)
	for _, proto := range []string{"tcp", "udp", "icmp"} {
		h.add(82, 70, fmt.Sprintf("ct_state=+est-rel-rpl,%s,%s", proto, reg), "conjunction(%d,2/2)", est)
		h.add(82, 70, fmt.Sprintf("ct_state=+new-est,%s,%s", proto, reg), "conjunction(%d,2/2)", new)
	}
	h.add(82, 70, fmt.Sprintf("conj_id=%d,ct_state=+est-rel-rpl,ip,%s", est, reg), "output:%d", port)
	h.add(82, 70, fmt.Sprintf("conj_id=%d,ct_state=+new-est,ip,%s", new, reg),
		"ct(commit,zone=NXM_NX_REG6[0..15]),output:%d,resubmit(,92)", port)
	h.stateful(82, reg, vlan, fmt.Sprintf("output:%d", port))
}

// stateful: what tables 72 and 82 have in common. Answers of accepted connections pass; a
// connection that no rule accepts any longer is marked, and then blocked both ways.
func (h *host) stateful(table int, reg string, vlan uint16, accept string) {
	h.add(table, 50, "ct_state=+inv+trk,"+reg, "resubmit(,93)")
	h.add(table, 50, "ct_mark=0x1,"+reg, "resubmit(,93)")
	zone := fmt.Sprintf("ct_zone=%d,ct_mark=0,%s", vlan, reg)
	h.add(table, 50, "ct_state=+est-rel+rpl,"+zone, "%s", accept)
	h.add(table, 50, "ct_state=-new-est+rel-inv,"+zone, "%s", accept)
	h.add(table, 40, "ct_state=-est,"+reg, "resubmit(,93)")
	h.add(table, 40, "ct_state=+est,ip,"+reg, "ct(commit,zone=NXM_NX_REG6[0..15],exec(load:0x1->NXM_NX_CT_MARK[]))")
}

// conjunctions returns the two conjunction ids of a VLAN's security group: for packets of
// established connections, and for the first of a new one. Neutron, too, uses neighbours.
func conjunctions(vlan uint16) (est, new uint32) { return uint32(vlan) * 8, uint32(vlan)*8 + 1 }

// securityGroup: table 82, the members that every instance of a network accepts: those of the
// same and of the routed networks.
func (h *host) securityGroup() {
	for _, n := range h.local() {
		if !slices.ContainsFunc(h.On(h.name), func(i Instance) bool { return i.Network == n.Name }) {
			continue
		}
		vlan := h.vlans[n.Name]
		est, new := conjunctions(vlan)
		for _, i := range h.Instances {
			if !h.Joined(i.Network, n.Name) {
				continue
			}
			member := fmt.Sprintf("ip,reg6=%#x,nw_src=%s,", vlan, i.IP)
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

// forwarding: table 94, where accepted packets go, and the answer to ARP for a gateway.
func (h *host) forwarding() {
	for _, n := range h.local() {
		vlan := h.vlans[n.Name]
		reg := fmt.Sprintf("reg6=%#x,", vlan)
		if g := n.Gateway; g != nil {
			h.add(94, 20, fmt.Sprintf("arp,%sarp_op=1,arp_tpa=%s,", reg, g.IP), "%s,in_port", arpAnswer(g.MAC, g.IP))
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
			h.add(95, 10, fmt.Sprintf("ip,reg6=%#x,dl_dst=%s,nw_dst=%s,", h.vlans[from.Name], from.Gateway.MAC, i.IP),
				"dec_ttl,mod_dl_src:%s,mod_dl_dst:%s,load:%#x->NXM_NX_REG6[],ct_clear,resubmit(,96)",
				to.Gateway.MAC, i.MAC, h.vlans[to.Name])
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
	for _, o := range h.others() {
		h.add(0, 1, fmt.Sprintf("in_port=%d,", h.ports.Tunnels[TunnelName(GRE, o)]), "resubmit(,3)")
		h.add(0, 1, fmt.Sprintf("in_port=%d,", h.ports.Tunnels[TunnelName(VXLAN, o)]), "resubmit(,4)")
	}
	h.add(0, 0, "", "drop")
	h.add(2, 1, "arp,dl_dst=ff:ff:ff:ff:ff:ff,", "resubmit(,21)")
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
		h.add(1, 3, fmt.Sprintf("arp,%sarp_tpa=%s,", vlan, n.Gateway.IP), "drop")
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
func IngressTable(n Network) int {
	if n.Encap == GRE {
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
			at, _ := h.Host(i.Host)
			h.add(20, 2, fmt.Sprintf("dl_vlan=%d,dl_dst=%s,", vlan, i.MAC), "strip_vlan,load:%#x->NXM_NX_TUN_ID[],output:%d",
				n.Segmentation, h.ports.Tunnels[TunnelName(n.Encap, at)])
		}
	}
	h.add(20, 0, "", "resubmit(,22)")
}

// answerARP: br-tun's table 21. ARP for an instance elsewhere is answered here.
func (h *host) answerARP() {
	for _, i := range h.Instances {
		if vlan := h.vlans[i.Network]; vlan != 0 && i.Host != h.name {
			h.add(21, 1, fmt.Sprintf("arp,dl_vlan=%d,arp_op=1,arp_tpa=%s,", vlan, i.IP), "%s,in_port", arpAnswer(i.MAC, i.IP))
		}
	}
	h.add(21, 0, "", "resubmit(,22)")
}

// flood: br-tun's table 22, to every host that has the network.
func (h *host) flood() {
	for _, n := range h.local() {
		var out strings.Builder
		for _, o := range h.others() {
			if h.LocalVLANs(o.Name)[n.Name] != 0 {
				fmt.Fprintf(&out, ",output:%d", h.ports.Tunnels[TunnelName(n.Encap, o)])
			}
		}
		if out.Len() > 0 {
			h.add(22, 1, fmt.Sprintf("dl_vlan=%d,", h.vlans[n.Name]), "strip_vlan,load:%#x->NXM_NX_TUN_ID[]%s",
				n.Segmentation, out.String())
		}
	}
	h.add(22, 0, "", "drop")
}

// arpAnswer returns the actions that turn a request into the answer of (mac, ip).
func arpAnswer(mac MAC, ip netip.Addr) string {
	m, a := hex.EncodeToString(mac[:]), ip.As4()
	return fmt.Sprintf("move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],mod_dl_src:%s,load:0x2->NXM_OF_ARP_OP[],"+
		"move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[],move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[],"+
		"load:0x%s->NXM_NX_ARP_SHA[],load:0x%x->NXM_OF_ARP_SPA[]", mac, m, a[:])
}
