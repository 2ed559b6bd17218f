package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// flowControl has the overlay in place by the flows that package overlay computes, on two bridges.
type flowControl struct{ hypervisor }

// plug makes br-int and br-tun, named and annotated as Neutron has them, with all tunnels.
func (c flowControl) plug(tx *transaction) {
	for _, br := range []string{overlay.Integration, overlay.Tunnel} {
		tx.bridge(br, c.datapath())
	}
	tx.patch(overlay.Integration, overlay.PatchTun, overlay.PatchInt)
	tx.patch(overlay.Tunnel, overlay.PatchInt, overlay.PatchTun)
	for _, t := range c.spec.Tunnels(c.host.Name) {
		tx.add("add-port", overlay.Tunnel, t.Port(), "--", "set", "Interface", t.Port(), "type="+t.Encap,
			"options:df_default=true", "options:in_key=flow", "options:out_key=flow",
			"options:local_ip="+c.host.VTEP.Addr().String(), "options:remote_ip="+t.VTEP.Addr().String())
	}
	vlans := c.spec.LocalVLANs(c.host.Name)
	for _, i := range c.spec.On(c.host.Name) {
		tx.tap(i, vlans[i.Network])
	}
}

// flowsFile is where a hypervisor keeps the flows that the controller installed on a bridge:
// "ovs-ofctl diff-flows BRIDGE FILE" tells what changed since, and breaks start from it.
func flowsFile(bridge string) string { return filepath.Join(toolsDir, bridge+".flows") }

// portsFile is where a hypervisor keeps the port numbers that those flows use, as JSON.
const portsFile = toolsDir + "/ports.json"

// program asks for the port numbers and installs each bridge's flows in one bundle.
func (c flowControl) program(ctx context.Context) error {
	ports, err := c.notePorts(ctx)
	if err != nil {
		return err
	}
	for bridge, flows := range map[string]string{
		overlay.Integration: c.spec.IntegrationFlows(c.host.Name, ports),
		overlay.Tunnel:      c.spec.TunnelFlows(c.host.Name, ports),
	} {
		file := flowsFile(bridge)
		if err := os.WriteFile(file, []byte(flows), 0o644); err != nil {
			return err
		}
		if err := run(ctx, nil, "ovs-ofctl", "--bundle", "add-flows", bridge, file); err != nil {
			return err
		}
	}
	return nil
}

// notePorts asks for the port numbers and keeps them in portsFile.
func (hv hypervisor) notePorts(ctx context.Context) (overlay.Ports, error) {
	ports, err := hv.ports(ctx)
	if err != nil {
		return ports, err
	}
	text, err := json.Marshal(ports)
	if err != nil {
		return ports, err
	}
	return ports, os.WriteFile(portsFile, text, 0o644)
}

func (hv hypervisor) ports(ctx context.Context) (overlay.Ports, error) {
	out, err := output(ctx, nil, "ovs-vsctl", "--timeout=30", "--bare", "--no-headings", "--format=csv",
		"--columns=name,ofport", "list", "Interface")
	if err != nil {
		return overlay.Ports{}, err
	}
	numbers := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		name, number, _ := strings.Cut(strings.TrimSpace(line), ",")
		numbers[name] = number
	}
	var failed error
	number := func(name string) int {
		n, err := strconv.Atoi(numbers[name])
		if err != nil || n < 1 {
			failed = fmt.Errorf("interface %s: ofport %q: Open vSwitch could not open it", name, numbers[name])
		}
		return n
	}
	p := overlay.Ports{Taps: make(map[string]int), Tunnels: make(map[string]int)}
	number(hv.host.Uplink)
	if hv.spec.TunnelBridge() == overlay.Tunnel {
		p.PatchTun, p.PatchInt = number(overlay.PatchTun), number(overlay.PatchInt)
	}
	for _, i := range hv.spec.On(hv.host.Name) {
		p.Taps[i.Name] = number(i.Tap())
	}
	for _, t := range hv.spec.Tunnels(hv.host.Name) {
		p.Tunnels[t.Port()] = number(t.Port())
	}
	return p, failed
}
