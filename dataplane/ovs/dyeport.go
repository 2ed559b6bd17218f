package ovs

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/digitalocean/go-openvswitch/ovs"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"github.com/vishvananda/netlink"

	"github.com/dyetrace/dyetrace/dataplane"
)

// Why a bridge can have no dye port.
var (
	// ErrNoBridge says that there is no bridge of that name.
	ErrNoBridge = errors.New("no such bridge")
	// ErrTaken says that the name of the dye port is that of a port which is not ours.
	ErrTaken = errors.New("a port of that name is not ours")
)

// DyePort is a dye port that is ready. If two values differ, what was made for the one
// is of no use for the other: sockets (IfIndex), flows (OFPort).
type DyePort struct {
	Name string
	// OFPort is its OpenFlow number.
	OFPort uint16
	// IfIndex is the device's.
	IfIndex int
}

// dyeState is what a dye port was when its no-flood flag was last set: if any of it
// differs, the flag may be gone.
type dyeState struct {
	id      string // of the interface
	ofport  uint16
	switchd string
}

// dyeTimeout bounds how long ovs-vswitchd may take to make or remove a port. It
// takes some milliseconds, and seconds while it starts on a large host.
const dyeTimeout = 15 * time.Second

// DyePortName returns the name of the dye port of a bridge: dye-BRIDGE, or, where
// that is more than the 15 bytes that a device's name may have, dye and eight
// digits of a hash of it.
func DyePortName(bridge string) string {
	if name := "dye-" + bridge; len(name) < 16 { // IFNAMSIZ, with a NUL
		return name
	}
	h := fnv.New32a()
	h.Write([]byte(bridge))
	return fmt.Sprintf("dye-%08x", h.Sum32())
}

// EnsureDyePort makes the dye port of a bridge if it is not there, and ready if it is
// not: an internal port with our mark, no-flood, its device up, without ARP, IPv6
// and multicast. If all is as it should be it only looks, which is cheap while Run
// runs. The error wraps ErrNoBridge or ErrTaken where it is one of these.
func (s *Switch) EnsureDyePort(ctx context.Context, bridge string) (DyePort, error) {
	port, err := s.ensureDyePort(ctx, bridge)
	if err != nil {
		return DyePort{}, fmt.Errorf("ovs: bridge %s: dye port: %w", bridge, err)
	}
	return port, nil
}

func (s *Switch) ensureDyePort(ctx context.Context, bridge string) (DyePort, error) {
	ctx, cancel := context.WithTimeout(ctx, dyeTimeout)
	defer cancel()
	name := DyePortName(bridge)
	var b dataplane.Bridge
	if s.fresh.Load() {
		b, _ = s.Snapshot().Bridge(bridge)
	}
	port, _ := b.Port(name)
	if !port.Dye || port.OFPort == 0 {
		var err error
		if b, err = s.makeDyePort(ctx, bridge, name); err != nil {
			return DyePort{}, err
		}
		port, _ = b.Port(name)
	}
	index, err := s.quiet(name)
	if err != nil {
		return DyePort{}, err
	}
	now := dyeState{id: port.ID, ofport: port.OFPort, switchd: s.switchd()}
	s.dye.Lock()
	defer s.dye.Unlock()
	if s.dye.kept[bridge] != now {
		if err := s.noFlood(ctx, b, name); err != nil {
			return DyePort{}, err
		}
		s.dye.kept[bridge] = now
	}
	return DyePort{Name: name, OFPort: port.OFPort, IfIndex: index}, nil
}

// makeDyePort adds the port to the database, unless it is there, waits until
// ovs-vswitchd gave it a number, and returns the bridge as it is then.
func (s *Switch) makeDyePort(ctx context.Context, bridge, name string) (dataplane.Bridge, error) {
	var b dataplane.Bridge
	db, err := dial(ctx, s.opts.DB)
	if err != nil {
		return b, err
	}
	defer db.close()
	t, err := db.read(ctx)
	if err != nil {
		return b, err
	}
	row, found := t.bridge(bridge)
	if !found {
		return b, ErrNoBridge
	}
	_, found, err = t.dyePort(row, name)
	if err != nil {
		return b, err
	}
	config := t.root.NextConfig
	if !found {
		s.changing(bridge, "adding the dye port")
		if config, err = db.addDyePort(ctx, t.root, row, name); err != nil {
			return b, fmt.Errorf("adding %s: %w", name, err)
		}
	}
	err = db.await(ctx, func(t tables) (bool, error) {
		b, _ = t.snapshot().Bridge(bridge)
		port, _ := b.Port(name)
		if port.Error != "" && t.root.CurConfig >= config {
			return false, fmt.Errorf("%s: Open vSwitch says: %s", name, port.Error)
		}
		return port.OFPort != 0, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("waiting for ovs-vswitchd to give %s a number: %w", name, err)
	}
	return b, err
}

func (t tables) bridge(name string) (bridgeRow, bool) {
	for _, id := range t.root.Bridges {
		if b := t.bridges[id]; b.Name == name {
			return b, true
		}
	}
	return bridgeRow{}, false
}

// dyePort returns the port of that name if it is ours and on bridge b. The error
// wraps ErrTaken if it is anything else.
func (t tables) dyePort(b bridgeRow, name string) (portRow, bool, error) {
	for _, p := range t.ports {
		if p.Name != name {
			continue
		}
		if p.ExternalIDs[ownerKey] != ownerValue {
			return p, true, fmt.Errorf("%s: %w", name, ErrTaken)
		}
		for _, id := range b.Ports {
			if id == p.UUID {
				return p, true, nil
			}
		}
		return p, true, fmt.Errorf("%s: %w, but another bridge's", name, ErrTaken)
	}
	return portRow{}, false, nil
}

// deadVLAN is the VLAN that the dye port is in: none that a packet can be in (IEEE
// 802.1Q reserves 0xfff), so that the action NORMAL never sends one there. What hooks
// send with output does not ask for VLANs. Neutron keeps its unbound ports in it, too.
const deadVLAN = 4095

func (db *database) addDyePort(ctx context.Context, root rootRow, b bridgeRow, name string) (config int, err error) {
	owner := map[string]string{ownerKey: ownerValue}
	i := interfaceRow{UUID: "dye_interface", Name: name, Type: "internal", ExternalIDs: owner}
	vlan := deadVLAN
	p := portRow{UUID: "dye_port", Name: name, Interfaces: []string{i.UUID}, Tag: &vlan, ExternalIDs: owner}
	var ops []ovsdb.Operation
	for _, row := range []model.Model{&i, &p} {
		op, err := db.client.Create(row)
		if err != nil {
			return 0, err
		}
		ops = append(ops, op...)
	}
	op, err := db.client.Where(&b).Mutate(&b, model.Mutation{
		Field: &b.Ports, Mutator: ovsdb.MutateOperationInsert, Value: []string{p.UUID},
	})
	if err != nil {
		return 0, err
	}
	return db.transact(ctx, root, append(ops, op...))
}

// noFlood keeps the port out of the actions NORMAL and FLOOD (ovs-ofctl(8), mod-port).
// The flag is one of OpenFlow 1.0 and of no later version: ovs-ofctl, asked to set it
// by another one, does nothing and reports success. On a bridge that does not speak
// 1.0 there remains the VLAN, which FLOOD does not ask for: what it floods then also
// comes to the dye port, where the filter on the socket drops it.
func (s *Switch) noFlood(ctx context.Context, b dataplane.Bridge, name string) error {
	const version = "OpenFlow10"
	if !b.Speaks(version) {
		s.opts.Log.Info("the dye port cannot be no-flood", "bridge", b.Name, "protocols", b.Protocols, "want", version)
		return nil
	}
	// ModPort leaves out what ovs.Protocols sets, so the version is added here.
	s.changing(b.Name, "dye port: no-flood")
	c := ovs.New(ovs.Exec(func(name string, args ...string) ([]byte, error) {
		return s.run(ctx, nil, name, append([]string{"-O", version}, args...)...)
	}))
	if err := c.OpenFlow.ModPort(b.Name, name, ovs.PortActionNoFlood); err != nil {
		return fmt.Errorf("%s: no-flood: %w", name, err)
	}
	return nil
}

// quiet sets a device up, so that the kernel itself never says a word on it, and
// returns its index.
func (s *Switch) quiet(name string) (int, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("device %s: %w", name, err)
	}
	a := link.Attrs()
	if a.Flags&net.FlagUp != 0 && a.RawFlags&iffNoARP != 0 && a.Flags&net.FlagMulticast == 0 {
		return a.Index, nil
	}
	// Before it is up: a device that comes up with IPv6 sends at once.
	s.changing(name, "device: IPv6 off")
	path := "/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6"
	if err := os.WriteFile(path, []byte("1"), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("device %s: IPv6 off: %w", name, err)
	}
	for _, step := range []struct {
		what string
		do   func(netlink.Link) error
	}{
		{"ARP off", netlink.LinkSetARPOff},
		{"multicast off", netlink.LinkSetMulticastOff},
		{"up", netlink.LinkSetUp},
	} {
		s.changing(name, "device: "+step.what)
		if err := step.do(link); err != nil {
			return 0, fmt.Errorf("device %s: %s: %w", name, step.what, err)
		}
	}
	return a.Index, nil
}

// iffNoARP is IFF_NOARP of netdevice(7).
const iffNoARP = 0x80

// RemoveDyePort removes the dye port of a bridge and returns once its device has
// gone. Where there is no such port, or no such bridge, there is nothing to do. The
// error wraps ErrTaken if the port of that name is not ours; it stays then.
func (s *Switch) RemoveDyePort(ctx context.Context, bridge string) error {
	s.dye.Lock()
	delete(s.dye.kept, bridge)
	s.dye.Unlock()
	ctx, cancel := context.WithTimeout(ctx, dyeTimeout)
	defer cancel()
	if err := s.removeDyePort(ctx, bridge); err != nil {
		return fmt.Errorf("ovs: bridge %s: removing the dye port: %w", bridge, err)
	}
	return nil
}

func (s *Switch) removeDyePort(ctx context.Context, bridge string) error {
	db, err := dial(ctx, s.opts.DB)
	if err != nil {
		return err
	}
	defer db.close()
	t, err := db.read(ctx)
	if err != nil {
		return err
	}
	b, found := t.bridge(bridge)
	if !found {
		return nil
	}
	p, found, err := t.dyePort(b, DyePortName(bridge))
	if err != nil || !found {
		return err
	}
	// A port, and its interface, are gone when no bridge refers to them: they are
	// no root tables (ovs-vswitchd.conf.db(5)).
	ops, err := db.client.Where(&b).Mutate(&b, model.Mutation{
		Field: &b.Ports, Mutator: ovsdb.MutateOperationDelete, Value: []string{p.UUID},
	})
	if err != nil {
		return err
	}
	s.changing(bridge, "removing the dye port")
	config, err := db.transact(ctx, t.root, ops)
	if err != nil {
		return err
	}
	if s.switchd() == "" {
		s.changing(p.Name, "removing the device")
		return removeTap(p.Name) // Open vSwitch made it persistent, and will not know of it
	}
	return db.await(ctx, func(t tables) (bool, error) { return t.root.CurConfig >= config, nil })
}

// removeTap deletes the device of an internal port of the netdev datapath.
func removeTap(name string) error {
	link, err := netlink.LinkByName(name)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
		return nil
	case err != nil:
		return fmt.Errorf("device %s: %w", name, err)
	case link.Type() != "tuntap" && link.Type() != "tun":
		return nil // the kernel datapath's: it goes with the datapath's port
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("device %s: deleting: %w", name, err)
	}
	return nil
}
