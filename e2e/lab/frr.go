package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// FRR's daemons, at Debian's paths. They keep sockets, pids and logs in /run/frr, which is a
// node's own, so that vtysh in a node talks to the node's.
const (
	frrDaemons = "/usr/lib/frr"
	frrRun     = "/run/frr"
	frrConfig  = toolsDir + "/bgpd.conf"
)

// startFRR starts zebra, which deals with the kernel, and bgpd with a configuration.
func startFRR(ctx context.Context, config string) error {
	if err := os.MkdirAll(toolsDir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(frrConfig, []byte(config), 0o644); err != nil {
		return err
	}
	daemon := func(name, config string) []string {
		return []string{filepath.Join(frrDaemons, name), "-d", "-A", "127.0.0.1", "-f", config}
	}
	return runAll(ctx, [][]string{
		{"install", "-d", "-o", "frr", "-g", "frr", frrRun},
		daemon("zebra", os.DevNull),
		daemon("bgpd", frrConfig),
	})
}

// routerConfig begins a bgpd.conf. Nothing but EVPN is ever told.
func routerConfig(s *overlay.Spec, id netip.Addr) *strings.Builder {
	b := new(strings.Builder)
	fmt.Fprintf(b, "log file %s/bgpd.log\nrouter bgp %d\n bgp router-id %s\n no bgp default ipv4-unicast\n", frrRun, s.EVPN.AS, id)
	return b
}

// vtepConfig returns the bgpd.conf of a tunnel end: it tells every reflector what the kernel's
// bridges know, and hears of others.
func vtepConfig(s *overlay.Spec, end overlay.Host) string {
	b := routerConfig(s, end.VTEP.Addr())
	for _, r := range s.EVPN.Reflectors {
		fmt.Fprintf(b, " neighbor %[1]s remote-as %[2]d\n neighbor %[1]s update-source %[3]s\n neighbor %[1]s timers connect 1\n",
			r.Address, s.EVPN.AS, end.VTEP.Addr())
	}
	b.WriteString(" address-family l2vpn evpn\n")
	for _, r := range s.EVPN.Reflectors {
		fmt.Fprintf(b, "  neighbor %s activate\n", r.Address)
	}
	// A lab moves instances to and fro faster than FRR believes (five times in 180 s).
	b.WriteString("  advertise-all-vni\n  no dup-addr-detection\n exit-address-family\n")
	return b.String()
}

// reflectorConfig returns the bgpd.conf of a route reflector. Who comes from its AS is a client.
func reflectorConfig(s *overlay.Spec, r overlay.Reflector) string {
	b := routerConfig(s, r.Address)
	fmt.Fprintf(b, " neighbor clients peer-group\n neighbor clients remote-as %d\n bgp listen range 0.0.0.0/0 peer-group clients\n", s.EVPN.AS)
	if r.Dials.IsValid() {
		fmt.Fprintf(b, " neighbor %[1]s peer-group clients\n neighbor %[1]s timers connect 1\n", r.Dials)
	}
	b.WriteString(" address-family l2vpn evpn\n  neighbor clients activate\n  neighbor clients route-reflector-client\n exit-address-family\n")
	return b.String()
}

// vtep is the switch that SetUpNode makes of the node it runs in.
type vtep struct {
	spec *overlay.Spec
	host overlay.Host
}

// addBridges makes a bridge with a VXLAN device for each network, and puts the ports of its
// instances into it. What else there is to a MAC than where it was seen, its addresses, is told:
// the bridge has no address by which it could come to know them.
func (v vtep) addBridges(ctx context.Context) error {
	batch, bindings := fmt.Sprintf("addr add %s dev lo\n", v.host.VTEP), ""
	for _, n := range toldNetworks(v.spec, v.host.Name) {
		batch += vxlanBridge(n, v.host.VTEP.Addr(), vxlanPort)
		for _, i := range v.spec.On(v.host.Name) {
			if i.Network == n.Name {
				batch += fmt.Sprintf("link set %[1]s addrgenmode none\nlink set %[1]s master %[2]s\n", i.Port, bridgeOf(n))
				bindings += addressesOf(n, i)
			}
		}
	}
	if err := run(ctx, []byte(batch), "ip", "-batch", "-"); err != nil {
		return err
	}
	for _, i := range v.spec.On(v.host.Name) {
		if err := awaitForwarding(ctx, i.Port); err != nil {
			return err
		}
	}
	return run(ctx, []byte(bindings), "ip", "-batch", "-")
}

func (v vtep) speak(ctx context.Context) error { return startFRR(ctx, vtepConfig(v.spec, v.host)) }

// toldNetworks returns the networks that EVPN tells of on a tunnel end.
func toldNetworks(s *overlay.Spec, end string) []overlay.Network {
	vlans := s.LocalVLANs(end)
	var told []overlay.Network
	for _, n := range s.Networks {
		if n.Encap == overlay.VXLAN && vlans[n.Name] != 0 {
			told = append(told, n)
		}
	}
	return told
}

// UDP ports of VXLAN.
const (
	vxlanPort  = 4789 // RFC 7348, section 5
	shadowPort = 4790 // of devices which carry nothing, beside an Open vSwitch that has the other
)

func bridgeOf(n overlay.Network) string { return fmt.Sprintf("evpn%d", n.Segmentation) }

// vxlanBridge returns commands of ip-batch that make a bridge and a VXLAN device in it, as FRR
// wants them: where others are is learned by EVPN alone. What the bridge learns at its own ports
// stays for 1,000 hours, whoever keeps silent meanwhile; FRR would withdraw its route.
func vxlanBridge(n overlay.Network, vtep netip.Addr, port int) string {
	return fmt.Sprintf(`link add %[1]s type bridge ageing_time 360000000 mcast_snooping 0
link add vni%[2]d mtu %[5]d type vxlan id %[2]d local %[3]s dstport %[4]d nolearning
link set vni%[2]d addrgenmode none
link set vni%[2]d master %[1]s
link set vni%[2]d type bridge_slave learning off
link set %[1]s addrgenmode none
link set vni%[2]d up
link set %[1]s up
`, bridgeOf(n), n.Segmentation, vtep, port, guestMTU)
}

// addressesOf returns commands of ip-batch that bind an instance's addresses to its MAC; link-local
// ones are no matter of a routing protocol.
func addressesOf(n overlay.Network, i overlay.Instance) string {
	var b strings.Builder
	for _, ip := range i.IP.All() {
		fmt.Fprintf(&b, "neigh replace %s lladdr %s dev %s nud permanent\n", ip, i.MAC, bridgeOf(n))
	}
	return b.String()
}

// speak has FRR tell of the hypervisor's instances. FRR reads them off a kernel's bridge, and Open
// vSwitch has none: so a shadow of each network, which carries no packet, holds what such a bridge
// would have learned. The speaker is thus the same as a switch's, sequence numbers of MACs that
// move included, and what it tells changes as its kernel's tables do.
func (hv hypervisor) speak(ctx context.Context) error {
	if hv.spec.EVPN == nil {
		return nil
	}
	batch := ""
	for _, n := range toldNetworks(hv.spec, hv.host.Name) {
		batch += vxlanBridge(n, hv.host.VTEP.Addr(), shadowPort)
		batch += fmt.Sprintf(`link add %[1]s type veth peer name %[2]s
link set %[1]s addrgenmode none
link set %[2]s addrgenmode none
link set %[1]s master %[3]s
link set %[2]s up
link set %[1]s up
`, shadowTap(n), "end-"+shadowTap(n), bridgeOf(n))
	}
	if err := run(ctx, []byte(batch), "ip", "-batch", "-"); err != nil {
		return err
	}
	for _, n := range toldNetworks(hv.spec, hv.host.Name) {
		if err := awaitForwarding(ctx, shadowTap(n)); err != nil {
			return err
		}
	}
	for _, i := range hv.spec.On(hv.host.Name) {
		for _, s := range tellSteps(hv.spec, i) {
			if err := run(ctx, []byte(s.stdin), s.argv[0], s.argv[1:]...); err != nil {
				return err
			}
		}
	}
	return startFRR(ctx, vtepConfig(hv.spec, hv.host))
}

// awaitForwarding returns when a port of a bridge forwards, before which it takes no entry. The
// kernel can be a second late to note that a link is up.
func awaitForwarding(ctx context.Context, port string) error {
	ctx, cancel := context.WithTimeout(ctx, gatewayWait)
	defer cancel()
	const forwarding = "3" // linux/if_bridge.h, BR_STATE_FORWARDING
	for {
		state, err := os.ReadFile("/sys/class/net/" + port + "/brport/state")
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(state)) == forwarding {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("port %s does not forward: %w", port, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// shadowTap stands for all taps of a network.
func shadowTap(n overlay.Network) string { return fmt.Sprintf("taps%d", n.Segmentation) }

// tellSteps have the speaker of an instance's hypervisor tell of it. They may be done twice.
func tellSteps(s *overlay.Spec, i overlay.Instance) []step {
	n, _ := s.Network(i.Network)
	if s.EVPN == nil || n.Encap != overlay.VXLAN {
		return nil
	}
	return []step{
		// Dynamic, as what was learned is: a static one would be a sticky MAC (RFC 7432, section 15.2).
		{where: i.Host, argv: []string{"bridge", "fdb", "replace", i.MAC.String(), "dev", shadowTap(n), "master", "dynamic"}},
		{where: i.Host, stdin: addressesOf(n, i), argv: []string{"ip", "-batch", "-"}},
	}
}

// untellSteps have it withdraw what tellSteps told. They may be done twice.
func untellSteps(s *overlay.Spec, i overlay.Instance) []step {
	n, _ := s.Network(i.Network)
	if s.EVPN == nil || n.Encap != overlay.VXLAN {
		return nil
	}
	script := "true"
	for _, ip := range i.IP.All() {
		script += fmt.Sprintf("; ip neigh del %s dev %s 2>/dev/null", ip, bridgeOf(n))
	}
	// Not where FRR itself put it, because another told it: that one is at the VXLAN device.
	script += fmt.Sprintf("; bridge fdb del %s dev %s master 2>/dev/null; true", i.MAC, shadowTap(n))
	return []step{{where: i.Host, argv: []string{"sh", "-c", script}}}
}

// bareMetal is an instance that is a node of its own.
type bareMetal struct {
	network  overlay.Network
	instance overlay.Instance
}

// bareMetalPort is the interface of a bare-metal instance; its eth0 is the management network's.
const bareMetalPort = "eth1"

// addAddresses does what addInstances does for a guest.
func (m bareMetal) addAddresses(ctx context.Context) error {
	err := runAll(ctx, [][]string{
		{"sysctl", "-q", "-w", "net.ipv6.conf." + bareMetalPort + ".accept_ra=0"},
		{"ethtool", "-K", bareMetalPort, "tx", "off"},
	})
	if err != nil {
		return err
	}
	batch := fmt.Sprintf("link set %[1]s address %[2]s mtu %[3]d\nlink set %[1]s addrgenmode none\n", bareMetalPort, m.instance.MAC, guestMTU)
	return run(ctx, []byte(batch+guestAddresses(m.network, m.instance, bareMetalPort)), "ip", "-batch", "-")
}
