package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/agent"
)

// Paths are where Open vSwitch keeps its sockets.
type Paths struct {
	DB     string // of ovsdb-server's socket
	RunDir string
}

// Agent returns the checks of a host that is to run an agent.
func Agent(p Paths) []Check {
	const group = "agent"
	return []Check{
		{group, "privileges", "run it as root, or with CAP_NET_RAW and CAP_NET_ADMIN (deploy/systemd has a unit)", privileges},
		{group, "tools", "apt-get install openvswitch-switch", tools("ovs-vsctl", "ovs-ofctl", "ovs-appctl")},
		{group, "database", "start Open vSwitch (systemctl start openvswitch-switch), or give ovsdb in the agent's configuration", dialable(p.DB)},
		{group, "switch", "start ovs-vswitchd, or give ovs_rundir in the agent's configuration", func(ctx context.Context) (string, error) { return switchVersion(ctx, p) }},
		{group, "bridges", "", func(ctx context.Context) (string, error) { return bridges(ctx, p) }},
		{group, "datapath", "", func(ctx context.Context) (string, error) { return datapath(ctx, p) }},
		{group, "packet sockets", "a kernel with CONFIG_PACKET, and CAP_NET_RAW", packetSocket},
		{group, "underlay port", "set underlay_port in the agents' configuration to one that is free on all hosts, and open it in firewalls", underlayPort},
	}
}

// underlayPort says whether the agents' default UDP port can be bound.
func underlayPort(ctx context.Context) (string, error) {
	conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp", fmt.Sprintf(":%d", agent.DefaultUnderlayPort))
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Sprintf("UDP %d is in use: by the agent, if it runs", agent.DefaultUnderlayPort), nil
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("UDP %d can be bound; other hosts' tunnel addresses must reach it", agent.DefaultUnderlayPort), conn.Close()
}

// Lab returns the checks of a machine that is to hold labs.
func Lab() []Check {
	const group = "lab"
	return []Check{
		{group, "root", "run it as root (sudo)", root},
		{group, "tools", "make setup, or apt-get install openvswitch-switch iproute2 ethtool nftables util-linux",
			tools("ovsdb-server", "ovs-vswitchd", "ovsdb-tool", "ovs-vsctl", "ovs-ofctl", "ovs-appctl", "ip", "ethtool", "nft", "nsenter")},
		{group, "OVN", "", toolsOf("ovn", "ovn-central ovn-host", "ovn-northd", "ovn-nbctl", "ovn-sbctl", "ovn-controller")},
		{group, "FRR", "", toolsOf("evpn", "frr", "/usr/lib/frr/zebra", "/usr/lib/frr/bgpd", "vtysh")}, // Debian has its daemons outside of PATH
		{group, "namespaces", "a machine, or a container with CAP_SYS_ADMIN, that may make network, mount, pid and uts namespaces", namespaces},
		{group, "veth", "a kernel with CONFIG_VETH", veth},
		{group, "tun", "a kernel with CONFIG_TUN; in a container also the device /dev/net/tun", tun},
		{group, "memory", "1 GB of free memory for the default lab", memory},
	}
}

func root(context.Context) (string, error) {
	if uid := os.Getuid(); uid != 0 {
		return "", fmt.Errorf("user id %d", uid)
	}
	return "user id 0", nil
}

// Bits of the capability sets in /proc/PID/status, by capabilities(7).
var wantCaps = []struct {
	bit  uint
	name string
}{{unix.CAP_NET_RAW, "CAP_NET_RAW"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}}

func privileges(context.Context) (string, error) {
	caps, err := effectiveCaps()
	if err != nil {
		return "", err
	}
	var have, missing []string
	for _, c := range wantCaps {
		if caps&(1<<c.bit) != 0 {
			have = append(have, c.name)
		} else {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("%s missing", strings.Join(missing, " and "))
	}
	return strings.Join(have, ", "), nil
}

func effectiveCaps() (uint64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	return 0, errors.New("/proc/self/status: no line CapEff")
}

func tools(names ...string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		var missing []string
		for _, name := range names {
			if _, err := exec.LookPath(name); err != nil {
				missing = append(missing, name)
			}
		}
		if len(missing) > 0 {
			return "", fmt.Errorf("%s not found in PATH", strings.Join(missing, ", "))
		}
		return strings.Join(names, ", "), nil
	}
}

// toolsOf looks for what one topology alone needs.
func toolsOf(topology, packages string, names ...string) func(context.Context) (string, error) {
	look := tools(names...)
	return func(ctx context.Context) (string, error) {
		found, err := look(ctx)
		if err != nil {
			return "", warn("for topology "+topology+": make setup, or apt-get install "+packages, "%v", err)
		}
		return found, nil
	}
}

func dialable(socket string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return "", err
		}
		return socket, conn.Close()
	}
}

// vsctl asks the database that an agent would use.
func (p Paths) vsctl(ctx context.Context, args ...string) (string, error) {
	return output(ctx, "ovs-vsctl", append([]string{"--db=unix:" + p.DB, "--timeout=4"}, args...)...)
}

// switchVersion asks ovs-vswitchd itself: the database may speak of one that is gone.
func switchVersion(ctx context.Context, p Paths) (string, error) {
	pid, err := os.ReadFile(filepath.Join(p.RunDir, "ovs-vswitchd.pid"))
	if err != nil {
		return "", err
	}
	target := filepath.Join(p.RunDir, "ovs-vswitchd."+strings.TrimSpace(string(pid))+".ctl")
	version, err := output(ctx, "ovs-appctl", "--timeout=4", "-t", target, "version")
	if err != nil {
		return "", err
	}
	// By what it says of a bridge that there is not, and not by its version.
	said, _ := exec.CommandContext(ctx, "ovs-appctl", "--timeout=4", "-t", target, "ofproto/trace", "--names", "no-such-bridge", "in_port=1").CombinedOutput()
	if strings.Contains(string(said), "--names: unknown option") {
		version += "; its ofproto/trace has no --names, so the causes of faults are not told"
	}
	return version, nil
}

func bridges(ctx context.Context, p Paths) (string, error) {
	out, err := p.vsctl(ctx, "list-br")
	if err != nil {
		return "", err
	}
	names := strings.Fields(out)
	if len(names) == 0 {
		return "", warn("nothing: an agent waits until there is one", "no bridge yet")
	}
	for _, name := range names {
		socket := filepath.Join(p.RunDir, name+".mgmt")
		if _, err := dialable(socket)(ctx); err != nil {
			return "", fmt.Errorf("bridge %s: %w", name, err)
		}
	}
	return strings.Join(names, ", "), nil
}

func datapath(ctx context.Context, p Paths) (string, error) {
	out, err := p.vsctl(ctx, "get", "Open_vSwitch", ".", "datapath_types")
	if err != nil {
		return "", err
	}
	types := strings.FieldsFunc(out, func(r rune) bool { return strings.ContainsRune(`[]", `, r) })
	slices.Sort(types)
	// What the kernel's datapath is spoken to by: it may be built in, and then is no module.
	if _, err := netlink.GenlFamilyGet("ovs_datapath"); err != nil {
		return strings.Join(types, ", ") + "; not in this kernel, so netdev it is", nil
	}
	return strings.Join(types, ", ") + "; in this kernel", nil
}

// packetSocket opens what samples are read from: AF_PACKET with a TPACKET_V3 ring.
func packetSocket(context.Context) (string, error) {
	// Protocol 0 receives nothing (packet(7)): this disturbs nobody.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("socket AF_PACKET: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return "", fmt.Errorf("TPACKET_V3: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return "", fmt.Errorf("PACKET_QDISC_BYPASS: %w", err)
	}
	return "AF_PACKET, TPACKET_V3, PACKET_QDISC_BYPASS", nil
}

func namespaces(ctx context.Context) (string, error) {
	if _, err := output(ctx, "unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true"); err != nil {
		return "", err
	}
	return "network, mount, pid, uts", nil
}

// veth makes a pair in a network namespace that ends with the command.
func veth(ctx context.Context) (string, error) {
	if _, err := output(ctx, "unshare", "--net", "ip", "link", "add", "name", "veth0", "type", "veth", "peer", "name", "veth1"); err != nil {
		return "", err
	}
	return "made one, in a namespace of its own", nil
}

// tun opens the device that the userspace datapath's internal ports are; without TUNSETIFF no
// interface comes of it.
func tun(context.Context) (string, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	return "/dev/net/tun", f.Close()
}

// labMemory is what the default lab's switches, daemons and guests take, with room to spare.
const labMemory = 1 << 30

func memory(context.Context) (string, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "MemAvailable:" {
			continue
		}
		kib, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			return "", fmt.Errorf("/proc/meminfo: %w", err)
		}
		if kib<<10 < labMemory {
			return "", warn("free some memory: the default lab takes up to 1 GB", "%d MB available", kib>>10)
		}
		return fmt.Sprintf("%d MB available", kib>>10), nil
	}
	return "", skip("the kernel does not say (no MemAvailable)")
}
