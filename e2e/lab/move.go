package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// placed returns the overlay with instances where breaks moved them to.
func placed(base *overlay.Spec, breaks []breakage) *overlay.Spec {
	for _, b := range breaks {
		if b.kind.moves {
			base = base.Moved(b.target.instance().Name, b.target.host())
		}
	}
	return base
}

// validateMove returns why an instance cannot be moved like that.
func (t target) validateMove() error {
	old, moved := t.instance().Host, t.spec.Moved(t.instance().Name, t.host())
	reaches := func(host string) bool { return t.spec.LocalVLANs(host)[t.instance().Network] != 0 }
	switch {
	case t.spec.EVPN == nil:
		return errors.New("the lab has no routes that would tell of it; the topology evpn has")
	case t.spec.Bare(t.instance()):
		return errors.New("the instance is bare metal")
	case t.host() == old:
		return errors.New("the instance is there")
	case len(t.hosts) == 2 && (t.other() == old || t.other() == t.host()):
		return errors.New("want a third host, neither the old nor the new one")
	case slices.ContainsFunc(t.hosts, func(h overlay.Host) bool { return !reaches(h.Name) }):
		return errors.New("a host does not have the network")
	}
	for _, host := range []string{old, t.host()} {
		if !maps.Equal(t.spec.LocalVLANs(host), moved.LocalVLANs(host)) {
			return fmt.Errorf("%s would number its networks anew", host)
		}
	}
	return nil
}

// goTogether returns why a break cannot be added to those in force: flows, and the truth, of an
// instance that moves are others than those that a break of it would change.
func (l *Lab) goTogether(b breakage, active []Broken) error {
	list, err := l.breakages(active)
	if err != nil {
		return err
	}
	if len(list) > 0 && (b.kind.moves || slices.ContainsFunc(list, func(o breakage) bool { return o.kind.moves })) {
		return fmt.Errorf("%w: %s is in force: an instance moves alone; heal first", ErrBadBreak, active[len(active)-1].Kind)
	}
	return nil
}

// turnMove moves the target's instance to its new host, or back.
func (l *Lab) turnMove(ctx context.Context, w workshop, b breakage, on bool) error {
	t := b.target
	after, told := l.base, l.base
	if on {
		after = placed(l.base, []breakage{b})
		if b.kind.tells {
			told = after
		}
	}
	now, _ := after.Instance(t.instance().Name)
	steps := append(l.leave(t, on), l.arrive(w, now)...)
	flows, err := l.moveFlows(w, b, on)
	if err != nil {
		return err
	}
	steps = append(steps, flows...)
	if b.kind.tells {
		// Told anew before it is withdrawn, as a live migration does; RFC 7432, section 15, has the
		// former host withdraw because of it.
		steps = append(append(steps, tellSteps(l.base, now)...), untellSteps(l.base, elsewhere(t, on))...)
	}
	if err := l.walk(ctx, steps); err != nil {
		return err
	}
	l.spec.Store(after)
	if err := l.awaitRoutes(ctx, told); err != nil {
		return err
	}
	end, _ := told.Instance(now.Name)
	at, _ := told.End(end.Host)
	return l.writeInventory(ctx, now, at)
}

// elsewhere returns the target's instance where it is no longer: on its old host if it moves on,
// else on its new one.
func elsewhere(t target, on bool) overlay.Instance {
	i := t.instance()
	if !on {
		i.Host = t.host()
	}
	return i
}

// leave takes the instance off the host where it is no longer.
func (l *Lab) leave(t target, on bool) []step {
	i := elsewhere(t, on)
	script := fmt.Sprintf("[ ! -e /sys/class/net/%[1]s ] || ip link del %[1]s; [ ! -e /run/netns/%[2]s ] || ip netns del %[2]s", i.Tap(), i.Name)
	return []step{
		vsctl(i.Host, "--if-exists", "del-port", overlay.Integration, i.Tap()),
		{where: i.Host, argv: []string{"sh", "-e", "-c", script}},
	}
}

// arrive makes the instance on its host, with the port number that flows will know.
func (l *Lab) arrive(w workshop, i overlay.Instance) []step {
	tx := newTransaction()
	tx.tap(i, l.base.LocalVLANs(i.Host)[i.Network])
	return append(guestSteps(l.base, i), samePort(i.Host, i.Tap(), w.portsWith(i).Taps[i.Name], tx)...)
}

// movedPort is the number of a port of an instance that moved to a host; Open vSwitch counts from 1.
const movedPort = 1000

// portsWith returns the ports of an instance's host, that of the instance included.
func (w workshop) portsWith(i overlay.Instance) overlay.Ports {
	p := w.ports(i.Host)
	p.Taps = maps.Clone(p.Taps)
	if p.Taps[i.Name] == 0 {
		p.Taps[i.Name] = movedPort
	}
	return p
}

// moveFlows turns every hypervisor's flows into what it has after a move, or into the
// controller's again, and has it forget whence the instance's frames came before.
func (l *Lab) moveFlows(w workshop, b breakage, on bool) ([]step, error) {
	moved := placed(l.base, []breakage{b})
	i, _ := moved.Instance(b.target.instance().Name)
	var steps []step
	for _, h := range l.base.Hosts {
		for _, bridge := range []string{overlay.Integration, overlay.Tunnel} {
			base, err := l.controllerFlows(h.Name, bridge)
			if err != nil {
				return nil, err
			}
			from, to := base, base
			if b.kind.follows(b.target, h.Name) {
				if to, err = flowsAfter(moved, w, b, h.Name, bridge, i); err != nil {
					return nil, err
				}
			}
			if !on {
				from, to = to, base
			}
			steps = append(steps, step{h.Name, bundle(from, to), []string{"ovs-ofctl", "bundle", bridge, "-"}})
		}
		learned := fmt.Sprintf("table=20,priority=1,vlan_tci=%#06x/0x0fff,dl_dst=%s", l.base.LocalVLANs(h.Name)[i.Network], i.MAC)
		steps = append(steps, step{where: h.Name, argv: []string{"ovs-ofctl", "--strict", "del-flows", overlay.Tunnel, learned}})
	}
	return steps, nil
}

// flowsAfter returns what a bridge of a hypervisor that knows of a move holds. If nobody tells
// where to, the old host knows only that the instance left.
func flowsAfter(moved *overlay.Spec, w workshop, b breakage, host, bridge string, i overlay.Instance) ([]flow, error) {
	ports := w.ports(host)
	if host == i.Host {
		ports = w.portsWith(i)
	}
	text := moved.TunnelFlows(host, ports)
	if bridge == overlay.Integration {
		text = moved.IntegrationFlows(host, ports)
	}
	flows, err := parseFlows(text)
	if err != nil || b.kind.tells || host == i.Host || bridge == overlay.Integration {
		return flows, err
	}
	return slices.DeleteFunc(flows, func(f flow) bool {
		return f.Table == 20 && f.field("dl_dst") == i.MAC.String() ||
			f.Table == 21 && slices.ContainsFunc(i.IP.All(), func(a netip.Addr) bool {
				return f.field("arp_tpa") == a.String() || f.field("nd_target") == a.String()
			}) || f.Table == 21 && f.field("nd_target") == i.MAC.LinkLocal().String()
	}), nil
}
