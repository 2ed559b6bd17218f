package tap

import (
	"errors"
	"fmt"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ethernet returns the index of a device, ErrUnsupported if its frames have no
// Ethernet header, as those of tun devices.
func ethernet(ifname string) (ifindex int, err error) {
	l, err := netlink.LinkByName(ifname)
	if err != nil {
		return 0, err
	}
	if kind := l.Attrs().EncapType; kind != "ether" {
		return 0, fmt.Errorf("%w: its link type is %s, want ether", ErrUnsupported, kind)
	}
	return l.Attrs().Index, nil
}

// tcx is a program attached by a link of its own, which ends with its descriptor.
type tcx struct{ link.Link }

func holdTCX(ifindex int, p *ebpf.Program) (hold, error) {
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: p, Attach: ebpf.AttachTCXEgress,
		// Seen shall mean that it got past all others.
		Anchor: link.Tail(),
	})
	if err != nil {
		return nil, fmt.Errorf("tcx: %w", err)
	}
	return tcx{l}, nil
}

func (t tcx) alive() (bool, error) {
	info, err := t.Info()
	if err != nil {
		return false, fmt.Errorf("tcx: %w", err)
	}
	return info.TCX().Ifindex != 0, nil // 0: the device is gone, and took it off
}

// release does not leave it to the last descriptor: a child of ours that has not come
// to exec(2) yet holds one, too.
func (t tcx) release() error {
	if err := t.Detach(); err != nil { // none where the device is gone
		return fmt.Errorf("tcx: %w", err)
	}
	return t.Close()
}

// The place of our filter in a clsact qdisc, and its name, by which it is known to be
// ours. The last priority there is, so that all others have had their say.
const (
	filterName     = "dyetrace/to-instance"
	filterHandle   = 1
	filterPriority = 0xffff
)

// clsact is a program attached as a filter of a clsact qdisc (tc-bpf(8)).
type clsact struct {
	ifindex int
	program uint32 // its id
	// qdisc is whether we made the qdisc, and have to remove it if nobody else has
	// come to use it.
	qdisc bool
}

func holdClsact(ifindex int, p *ebpf.Program) (hold, error) {
	info, err := p.Info()
	if err != nil {
		return nil, err
	}
	id, ok := info.ID()
	if !ok {
		return nil, fmt.Errorf("%w: the program has no id", ErrUnsupported)
	}
	c := clsact{ifindex: ifindex, program: uint32(id)}
	switch err := netlink.QdiscAdd(clsactQdisc(ifindex)); {
	case err == nil:
		c.qdisc = true
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return nil, fmt.Errorf("%w: neither tcx nor clsact: %w", ErrUnsupported, err)
	case !errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("clsact: %w", err)
	}
	if err := c.place(p); err != nil {
		return nil, errors.Join(fmt.Errorf("clsact: %w", err), c.removeQdisc())
	}
	return c, nil
}

// place adds our filter. One that an agent left which was killed is replaced by it,
// so that no packet goes unseen or is seen twice.
func (c clsact) place(p *ebpf.Program) error {
	filters, err := filters(c.ifindex, netlink.HANDLE_MIN_EGRESS)
	if err != nil {
		return err
	}
	for _, f := range filters {
		if a := f.Attrs(); a.Priority == filterPriority && !ours(f) {
			return fmt.Errorf("%s at priority %d: %w", f.Type(), a.Priority, ErrForeign)
		}
	}
	return netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: c.ifindex, Parent: netlink.HANDLE_MIN_EGRESS,
			Handle: filterHandle, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: p.FD(), Name: filterName, DirectAction: true,
	})
}

func (c clsact) alive() (bool, error) {
	filters, err := filters(c.ifindex, netlink.HANDLE_MIN_EGRESS)
	if err != nil {
		return false, fmt.Errorf("clsact: %w", err)
	}
	for _, f := range filters {
		if ours(f) && f.(*netlink.BpfFilter).Id == int(c.program) {
			return true, nil
		}
	}
	return false, nil
}

func (c clsact) release() error {
	return errors.Join(removeLeftovers(c.ifindex), c.removeQdisc())
}

// removeQdisc removes the qdisc if we made it and it is empty.
func (c clsact) removeQdisc() error {
	if !c.qdisc {
		return nil
	}
	for _, hook := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		switch left, err := filters(c.ifindex, hook); {
		case err != nil:
			return fmt.Errorf("clsact: %w", err)
		case len(left) > 0:
			return nil
		}
	}
	if err := netlink.QdiscDel(clsactQdisc(c.ifindex)); err != nil && !gone(err) {
		return fmt.Errorf("clsact: %w", err)
	}
	return nil
}

func clsactQdisc(ifindex int) netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	}
}

// RemoveLeftovers takes off the device of that name what an agent may have left there that was killed. That nothing is there,
// or no such device, is no error. No Sampler may be attached to it.
func RemoveLeftovers(ifname string) error {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil
	}
	if err := removeLeftovers(ifi.Index); err != nil {
		return fmt.Errorf("tap: %s: %w", ifname, err)
	}
	return nil
}

// removeLeftovers removes our filter, whichever process added it.
func removeLeftovers(ifindex int) error {
	left, err := filters(ifindex, netlink.HANDLE_MIN_EGRESS)
	if err != nil {
		return fmt.Errorf("clsact: %w", err)
	}
	for _, f := range left {
		if !ours(f) {
			continue
		}
		if err := netlink.FilterDel(f); err != nil && !gone(err) {
			return fmt.Errorf("clsact: %w", err)
		}
	}
	return nil
}

// filters returns the filters at one hook of a device; none where there is no clsact
// qdisc or no device.
func filters(ifindex int, hook uint32) ([]netlink.Filter, error) {
	l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	list, err := netlink.FilterList(l, hook)
	if gone(err) {
		return nil, nil
	}
	return list, err
}

func ours(f netlink.Filter) bool {
	b, ok := f.(*netlink.BpfFilter)
	return ok && b.Name == filterName
}

// gone tells whether err says that what was asked for is not there: the filter, the
// device, or (EINVAL) the clsact qdisc.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}
