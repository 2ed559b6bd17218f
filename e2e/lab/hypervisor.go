package lab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

const (
	// OverlayPath is where a topology file mounts the overlay in a hypervisor.
	OverlayPath = toolsDir + "/overlay.yaml"

	physical = "br-phy" // the bridge with the uplink and the VTEP

	// guestMTU leaves room for the larger of GRE and VXLAN on a 1500-byte underlay: outer IPv4, UDP
	// and VXLAN headers and the inner Ethernet header take 50 bytes. geneveMTU also has room for
	// OVN's option, 8 bytes (ovn-architecture(7), Tunnel Encapsulations).
	guestMTU  = 1450
	geneveMTU = 1442
)

// gatewayWait bounds the wait for the rack's router, which may still be starting: a container of
// eleven on a busy machine came 24 s after the first.
var gatewayWait = Patience(time.Minute)

// hypervisor is the host that SetUpNode makes of the node it runs in.
type hypervisor struct {
	spec *overlay.Spec
	host overlay.Host
}

// SetUpNode makes of the node, or container, that it runs in what the overlay says of it, each
// called once, on a fresh node. overlayFile holds the overlay; name is the one by which it knows
// this node, the hostname if empty.
//
//   - A hypervisor: Open vSwitch at its default paths with br-phy and the bridges of the network
//     controller, an instance in a network namespace for each that the overlay places here, and the
//     network controller's flows. With OVN, ovn-controller makes these; where there is EVPN, FRR
//     tells of its instances.
//   - OVN's central node: its databases and ovn-northd, with the logical network.
//   - A switch: a Linux bridge and a VXLAN device for each network, joined and told of by FRR.
//   - A reflector: FRR, which passes on what the others tell.
//   - A bare-metal instance: its addresses, on eth1.
func SetUpNode(ctx context.Context, overlayFile, name string) error {
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return fmt.Errorf("lab node: %w", err)
		}
	}
	f, err := os.Open(overlayFile)
	if err != nil {
		return fmt.Errorf("lab node: %w", err)
	}
	defer f.Close()
	spec, err := overlay.Parse(f)
	if err != nil {
		return fmt.Errorf("lab node: %s: %w", overlayFile, err)
	}
	steps := stepsOf(spec, name)
	if steps == nil {
		return fmt.Errorf("lab node: %s: it says nothing of %q", overlayFile, name)
	}
	for _, step := range steps {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("lab node %s: %s: %w", name, step.name, err)
		}
	}
	return nil
}

// setUpStep is a part of what SetUpNode does.
type setUpStep struct {
	name string
	do   func(context.Context) error
}

// stepsOf returns how to make a node, nil if the overlay does not say what it is.
func stepsOf(spec *overlay.Spec, name string) []setUpStep {
	if h, ok := spec.Host(name); ok {
		hv := hypervisor{spec, h}
		return []setUpStep{
			{"Open vSwitch", hv.startSwitch},
			{"instances", hv.addInstances},
			{"bridges", hv.addBridges},
			{"underlay", hv.joinUnderlay},
			{"flows", func(ctx context.Context) error { return hv.control().program(ctx) }},
			{"routes", hv.speak},
		}
	}
	if sw, ok := spec.Switch(name); ok {
		v := vtep{spec, sw}
		return []setUpStep{{"bridges", v.addBridges}, {"routes", v.speak}}
	}
	if i, ok := spec.Instance(name); ok && spec.Bare(i) {
		n, _ := spec.Network(i.Network)
		return []setUpStep{{"addresses", bareMetal{n, i}.addAddresses}}
	}
	if spec.OVN != nil && spec.OVN.Central == name {
		return ovnCentral{spec}.steps()
	}
	if spec.EVPN != nil {
		for _, r := range spec.EVPN.Reflectors {
			if r.Name == name {
				return []setUpStep{{"routes", func(ctx context.Context) error { return startFRR(ctx, reflectorConfig(spec, r)) }}}
			}
		}
	}
	return nil
}

func (hv hypervisor) startSwitch(ctx context.Context) error {
	const db, log = "/etc/openvswitch/conf.db", "/var/log/openvswitch/"
	banner, err := output(ctx, nil, "ovs-vswitchd", "--version") // ovs-vswitchd (Open vSwitch) 3.1.0
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(banner), "\n")
	version := first[strings.LastIndexByte(first, ' ')+1:]
	return runAll(ctx, [][]string{
		{"ovsdb-tool", "create", db, "/usr/share/openvswitch/vswitch.ovsschema"},
		// Both make it themselves, and the version comes into the database, only when started by their Debian scripts.
		{"mkdir", "-p", "/run/openvswitch"},
		{"ovsdb-server", db, "--remote=punix:/run/openvswitch/db.sock", "--detach", "--no-chdir", "--pidfile",
			"--log-file=" + log + "ovsdb-server.log", "-vconsole:off"},
		{"ovs-vsctl", "--no-wait", "init", "--", "set", "Open_vSwitch", ".", "ovs_version=" + version,
			"external_ids:hostname=" + hv.host.Name, "external_ids:system-id=" + hv.host.Name},
		{"ovs-vswitchd", "--detach", "--no-chdir", "--pidfile",
			"--log-file=" + log + "ovs-vswitchd.log", "-vconsole:off"},
	})
}

// addInstances makes each guest: a namespace with an eth0, the other end its tap. Offloads are
// off, because the userspace datapath would forward the empty checksums that veth leaves.
func (hv hypervisor) addInstances(ctx context.Context) error {
	for _, i := range hv.spec.On(hv.host.Name) {
		for _, s := range guestSteps(hv.spec, i) {
			if err := run(ctx, []byte(s.stdin), s.argv[0], s.argv[1:]...); err != nil {
				return fmt.Errorf("%s: %w", i.Name, err)
			}
		}
	}
	return nil
}

// guestSteps make a guest on its host. Each may be done twice.
func guestSteps(spec *overlay.Spec, i overlay.Instance) []step {
	n, _ := spec.Network(i.Network)
	// One command, since each costs a namespace of mounts.
	const setUp = "sysctl -q -w net.ipv6.conf.eth0.accept_ra=0 && ethtool -K eth0 tx off && ip -batch -"
	mtu := guestMTU
	if n.Encap == overlay.Geneve {
		mtu = geneveMTU
	}
	outside := fmt.Sprintf("link add %s mtu %d type veth peer name eth0 mtu %d address %s netns %s\nlink set %s up\n",
		i.Tap(), mtu, mtu, i.MAC, i.Name, i.Tap())
	inside := "link set lo up\nlink set eth0 addrgenmode none\n" + guestAddresses(n, i, "eth0") + guestNeighbours(spec, n, "eth0")
	in := func(stdin string, argv ...string) step { return step{i.Host, stdin, argv} }
	return []step{
		in("", "sh", "-c", "[ -e /run/netns/"+i.Name+" ] || ip netns add "+i.Name),
		in(outside, "sh", "-c", "[ -e /sys/class/net/"+i.Tap()+" ] || ip -batch -"),
		in(inside, "ip", "netns", "exec", i.Name, "sh", "-c", setUp),
	}
}

// guestAddresses returns commands of ip-batch that bring a guest's interface up with its
// addresses and routes, however many of these it has already. No address waits for duplicates to
// be detected: the controller gave them all, and one that is tentative could not be used yet.
func guestAddresses(n overlay.Network, i overlay.Instance, dev string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "link set %s up\n", dev)
	for _, v := range overlay.Versions() {
		for _, ip := range i.Addresses(v) {
			prefix := netip.PrefixFrom(ip, n.CIDR.Of(v).Bits())
			switch {
			case v == overlay.V4:
				fmt.Fprintf(&b, "addr replace %s dev %s\n", prefix, dev)
			case ip.IsLinkLocalUnicast():
				fmt.Fprintf(&b, "addr replace %s/64 dev %s scope link nodad\n", ip, dev)
			default:
				fmt.Fprintf(&b, "addr replace %s dev %s nodad\n", prefix, dev)
			}
		}
		if n.Gateway != nil && n.Has(v) {
			fmt.Fprintf(&b, "route replace default via %s dev %s\n", n.Gateway.IP.Of(v), dev)
		}
	}
	return b.String()
}

// guestNeighbours returns commands of ip-batch that tell a guest its gateway's MAC where nobody would
// answer: the kernel's datapath cannot write the option of neighbour advertisements that has it.
func guestNeighbours(spec *overlay.Spec, n overlay.Network, dev string) string {
	if spec.Answers(overlay.V6) || n.Gateway == nil || !n.Has(overlay.V6) {
		return ""
	}
	return fmt.Sprintf("neigh replace %s lladdr %s dev %s nud permanent\n", n.Gateway.IP.V6, n.Gateway.MAC, dev)
}

// control is the network controller of a lab: a way to put an overlay in place on a hypervisor.
type control interface {
	// plug adds its bridges to a transaction, with the ports of the hypervisor's instances.
	plug(tx *transaction)
	// program returns when its flows are there. The underlay stands by then. Afterwards portsFile
	// has the numbers of ports.
	program(ctx context.Context) error
}

func (hv hypervisor) control() control {
	if hv.spec.OVN != nil {
		return ovnControl{hv}
	}
	return flowControl{hv}
}

// addBridges makes all bridges and ports in one transaction, and returns once ovs-vswitchd has
// carried it out.
func (hv hypervisor) addBridges(ctx context.Context) error {
	tx := newTransaction()
	tx.add("--may-exist", "add-br", physical)
	tx.add("set", "Bridge", physical, hv.datapath(), "fail_mode=standalone", "other_config:hwaddr="+quote(hv.host.UplinkMAC().String()))
	tx.add("add-port", physical, hv.host.Uplink)
	hv.control().plug(tx)
	return run(ctx, nil, "ovs-vsctl", tx.args...)
}

// datapath is what all bridges are of, as a setting of theirs.
func (hv hypervisor) datapath() string { return "datapath_type=" + hv.spec.DatapathType() }

// transaction collects the commands of one call of ovs-vsctl.
type transaction struct{ args []string }

func newTransaction() *transaction { return &transaction{[]string{"--timeout=30"}} }

func (tx *transaction) add(command ...string) {
	tx.args = append(append(tx.args, "--"), command...)
}

// bridge adds a bridge that has the flows of its controller and no others.
func (tx *transaction) bridge(name, datapath string) {
	tx.add("--may-exist", "add-br", name)
	tx.add("set", "Bridge", name, datapath, "fail_mode=secure")
}

func (tx *transaction) patch(bridge, port, peer string) {
	tx.add("--may-exist", "add-port", bridge, port, "--", "set", "Interface", port, "type=patch", "options:peer="+peer)
}

// tap plugs an instance in, into a local VLAN if it is not 0.
func (tx *transaction) tap(i overlay.Instance, vlan uint16) {
	port := []string{"--may-exist", "add-port", overlay.Integration, i.Tap()}
	if vlan != 0 {
		port = append(port, fmt.Sprintf("tag=%d", vlan))
	}
	tx.add(append(port, "--", "set", "Interface", i.Tap(),
		"external_ids:iface-id="+i.PortID(), "external_ids:attached-mac="+quote(i.MAC.String()),
		"external_ids:iface-status=active", "external_ids:vm-uuid="+i.VMID())...)
}

// quote keeps a colon from being taken for syntax (ovs-vsctl(8), database values).
func quote(s string) string { return strconv.Quote(s) }

// joinUnderlay gives br-phy the VTEP and waits until the rack's router answers. The uplink's
// own kernel interface must stay silent: Open vSwitch owns what arrives there.
func (hv hypervisor) joinUnderlay(ctx context.Context) error {
	gateway := hv.host.Gateway.String()
	batch := fmt.Sprintf("link set %[1]s arp off\naddr add %[2]s dev %[3]s\nlink set %[3]s up\nroute add %[4]s via %[5]s\n",
		hv.host.Uplink, hv.host.VTEP, physical, hv.spec.Underlay, gateway)
	err := runAll(ctx, [][]string{
		{"sysctl", "-q", "-w", "net.ipv4.conf.all.arp_ignore=1"},
		{"ethtool", "-K", hv.host.Uplink, "tx", "off"},
	})
	if err != nil {
		return err
	}
	if err := run(ctx, []byte(batch), "ip", "-batch", "-"); err != nil {
		return err
	}
	if err := awaitGateway(ctx, gateway); err != nil {
		return err
	}
	return hv.knowNeighbours(ctx)
}

// awaitGateway returns when a router answers a ping. One that is told that a host cannot be reached, as
// it is by its own kernel while nobody answers ARP, gives up at once, whatever its deadline (ping(8), -w).
func awaitGateway(ctx context.Context, gateway string) error {
	ctx, cancel := context.WithTimeout(ctx, gatewayWait)
	defer cancel()
	for {
		err := run(ctx, nil, "ping", "-q", "-c", "1", "-i", "0.1", "-w", "5", gateway)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the gateway does not answer: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// knowNeighbours tells Open vSwitch the MACs of the VTEPs in its own rack, and to keep what it
// knows for the longest time it can, in seconds. Left to itself it drops the first packet of a
// tunnel while it asks by ARP, after 15 idle minutes again.
func (hv hypervisor) knowNeighbours(ctx context.Context) error {
	if hv.spec.InKernel() {
		return nil // which finds the way, and holds packets meanwhile
	}
	steps := [][]string{{"ovs-appctl", "tnl/neigh/aging", "3600"}}
	for _, o := range hv.spec.Hosts {
		if o.Name != hv.host.Name && hv.host.VTEP.Contains(o.VTEP.Addr()) {
			steps = append(steps, []string{"ovs-appctl", "tnl/neigh/set", physical,
				o.VTEP.Addr().String(), o.UplinkMAC().String()})
		}
	}
	return runAll(ctx, steps)
}

func runAll(ctx context.Context, commands [][]string) error {
	for _, c := range commands {
		if err := run(ctx, nil, c[0], c[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func run(ctx context.Context, stdin []byte, name string, args ...string) error {
	_, err := output(ctx, stdin, name, args...)
	return err
}

func output(ctx context.Context, stdin []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s %s: %w%s", name, strings.Join(args, " "), err, lastWords(stderr.String()))
	}
	return out, nil
}
