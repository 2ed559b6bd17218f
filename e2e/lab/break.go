package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// workshop is what a break may ask of the lab it is in.
type workshop struct {
	topology *Topology
	known    map[string]overlay.Ports // by host
}

func (w workshop) ports(host string) overlay.Ports { return w.known[host] }

// peer returns the other end of a link.
func (w workshop) peer(node, iface string) (peer, peerIface string) {
	for _, l := range w.topology.Body.Links {
		for i, e := range l.Endpoints {
			if e == node+":"+iface {
				peer, peerIface, _ = strings.Cut(l.Endpoints[1-i], ":")
			}
		}
	}
	return peer, peerIface
}

// TruthOf returns what a break does to traffic, without doing it. An empty target is the kind's
// default.
func (l *Lab) TruthOf(t Traffic, kind, target string) (Truth, error) {
	b, err := l.breakage(Broken{kind, target})
	if err != nil {
		return Truth{}, err
	}
	truth := truthOf(l.base, t, []breakage{b})
	truth.Changes, err = l.changes([]breakage{b})
	return truth, err
}

// Truth returns what all breaks in force do together to traffic.
func (l *Lab) Truth(t Traffic) (Truth, error) {
	broken, err := l.Broken()
	if err != nil {
		return Truth{}, err
	}
	all, err := l.breakages(broken)
	if err != nil {
		return Truth{}, err
	}
	truth := truthOf(l.base, t, all)
	truth.Changes, err = l.changes(all)
	return truth, err
}

// Broken returns the breaks in force, the oldest first.
func (l *Lab) Broken() ([]Broken, error) {
	s, err := readState(l.dir)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", l.state.Name, err)
	}
	return s.Broken, l.place(s.Broken)
}

// place notes where breaks in force, maybe another process's, moved instances to.
func (l *Lab) place(broken []Broken) error {
	list, err := l.breakages(broken)
	if err == nil {
		l.spec.Store(placed(l.base, list))
	}
	return err
}

// Break breaks the lab and returns what was broken. An empty target is the kind's default. A
// break that is in force already stays so. If it fails, what it did is undone.
func (l *Lab) Break(ctx context.Context, kind, target string) (Broken, error) {
	b, err := l.breakage(Broken{kind, target})
	if err != nil {
		return Broken{}, err
	}
	broken := Broken{b.kind.Name, b.target.text}
	err = l.change(ctx, func(active []Broken, set func([]Broken) error) error {
		if slices.Contains(active, broken) {
			return nil
		}
		if err := l.goTogether(b, active); err != nil {
			return err
		}
		// Noted first: what was interrupted half way can still be healed.
		if err := set(append(slices.Clone(active), broken)); err != nil {
			return err
		}
		err := l.turn(ctx, b, active, true)
		if err != nil {
			undo := context.WithoutCancel(ctx)
			err = errors.Join(err, l.turn(undo, b, active, false), set(active))
		}
		return err
	})
	if err != nil {
		return Broken{}, fmt.Errorf("lab %s: break %s %s: %w", l.state.Name, kind, b.target.text, err)
	}
	return broken, nil
}

// BrokeAt returns when the last Break or Heal of this Lab had worked out what to do and began to do
// it: nothing of it can have been in force before. Like these, it is for one goroutine at a time.
func (l *Lab) BrokeAt() time.Time { return l.brokeAt }

// Heal undoes all breaks of a kind, or all there are if kind is empty or "all", and returns
// which. That there are none is no error.
func (l *Lab) Heal(ctx context.Context, kind string) ([]Broken, error) {
	if kind != "" && kind != "all" {
		if _, err := findKind(kind); err != nil {
			return nil, err
		}
	}
	var healed []Broken
	err := l.change(ctx, func(active []Broken, set func([]Broken) error) error {
		for _, broken := range slices.Backward(slices.Clone(active)) {
			if kind != "" && kind != "all" && broken.Kind != kind {
				continue
			}
			b, err := l.breakage(broken)
			if err != nil {
				return err
			}
			rest := slices.DeleteFunc(slices.Clone(active), func(o Broken) bool { return o == broken })
			if err := l.turn(ctx, b, rest, false); err != nil {
				return fmt.Errorf("%s %s: %w", broken.Kind, broken.Target, err)
			}
			if err := set(rest); err != nil {
				return err
			}
			active, healed = rest, append(healed, broken)
		}
		return nil
	})
	if err != nil {
		return healed, fmt.Errorf("lab %s: heal: %w", l.state.Name, err)
	}
	return healed, nil
}

// change calls do with the breaks in force and a function that records others, while nobody
// else changes them.
func (l *Lab) change(ctx context.Context, do func(active []Broken, set func([]Broken) error) error) error {
	held, err := lock(ctx, l.dir)
	if err != nil {
		return err
	}
	defer held.release()
	s, err := readState(l.dir)
	if err != nil {
		return err
	}
	if err := l.place(s.Broken); err != nil {
		return err
	}
	return do(s.Broken, func(broken []Broken) error {
		s.Broken = broken
		return s.write(l.dir)
	})
}

func (l *Lab) breakage(b Broken) (breakage, error) {
	kind, err := findKind(b.Kind)
	if err != nil {
		return breakage{}, err
	}
	t, err := kind.aim(l.base, b.Target)
	if err != nil || !kind.twoWays {
		return breakage{kind, t}, err
	}
	w := workshop{topology: l.topology} // of a lab that need not be up
	leaf, _ := w.peer(t.host(), t.hosts[0].Uplink)
	if spine, _ := w.peer(leaf, secondUplink); spine == "" {
		err = fmt.Errorf("%w: %s: %s has but one way to the other racks", ErrBadBreak, kind.Name, leaf)
	}
	return breakage{kind, t}, err
}

func (l *Lab) breakages(broken []Broken) ([]breakage, error) {
	var list []breakage
	for _, b := range broken {
		one, err := l.breakage(b)
		if err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	return list, nil
}

// turn puts a break in force, or out of it, while others are.
func (l *Lab) turn(ctx context.Context, b breakage, others []Broken, on bool) error {
	w, err := l.workshop()
	if err != nil {
		return err
	}
	switch {
	case b.kind.moves:
		return l.turnMove(ctx, w, b, on)
	case b.kind.edit != nil:
		return l.turnFlows(ctx, w, b, others, on)
	}
	steps := b.kind.heal
	if on {
		steps = b.kind.apply
	}
	return l.walk(ctx, steps(w, b.target))
}

// walk runs commands in order, and then has every hypervisor that they touched settle.
func (l *Lab) walk(ctx context.Context, steps []step) error {
	touched := make(map[string]bool)
	l.brokeAt = time.Now()
	for _, s := range steps {
		if _, err := l.exec(ctx, strings.NewReader(s.stdin), s.where, s.argv...); err != nil {
			return err
		}
		touched[s.where] = true
	}
	if o := l.Overlay().OVN; o != nil && touched[o.Central] {
		for _, h := range l.Overlay().Hosts {
			touched[h.Name] = true // what OVN is told changes flows anywhere
		}
	}
	for where := range maps.Keys(touched) {
		if err := l.settle(ctx, where); err != nil {
			return err
		}
	}
	return nil
}

// turnFlows does so for a break of flows. What the bridge should hold is the controller's
// flows with all breaks in force applied to them, in one order whatever the order they came
// in; so breaks that touch the same flow can be healed in any order.
func (l *Lab) turnFlows(ctx context.Context, w workshop, b breakage, others []Broken, on bool) error {
	host, bridge := b.kind.at(b.target)
	base, err := l.controllerFlows(host, bridge)
	if err != nil {
		return err
	}
	list, err := l.breakages(others)
	if err != nil {
		return err
	}
	without := edited(base, list, w, host, bridge)
	with := edited(base, append(list, b), w, host, bridge)
	from, to := with, without
	if on {
		from, to = without, with
	}
	l.brokeAt = time.Now()
	if _, err := l.exec(ctx, strings.NewReader(bundle(from, to)), host, "ovs-ofctl", "bundle", bridge, "-"); err != nil {
		return err
	}
	if b.kind.forgets {
		zone := fmt.Sprintf("zone=%d", l.base.LocalVLANs(host)[b.target.instance().Network])
		if _, err := l.Exec(ctx, host, "ovs-appctl", "dpctl/flush-conntrack", zone); err != nil {
			return err
		}
	}
	return l.settle(ctx, host)
}

// edited returns a bridge's flows with breaks applied.
func edited(base []flow, list []breakage, w workshop, host, bridge string) []flow {
	slices.SortStableFunc(list, func(a, b breakage) int {
		return strings.Compare(a.kind.Name+" "+a.target.text, b.kind.Name+" "+b.target.text)
	})
	flows := slices.Clone(base)
	for _, b := range list {
		if b.kind.edit == nil {
			continue
		}
		if h, br := b.kind.at(b.target); h == host && br == bridge {
			flows = b.kind.edit(b.target, w.ports(host), flows)
		}
	}
	return flows
}

// settle makes a hypervisor's datapath do at once what its flows say: it throws away what is
// cached. Left to itself it would get there within half a second (measured with
// revalidator/wait; it is the default of max-revalidator).
func (l *Lab) settle(ctx context.Context, where string) error {
	if _, ok := l.Overlay().Host(where); !ok {
		return nil
	}
	_, err := l.Exec(ctx, where, "ovs-appctl", "revalidator/purge")
	return err
}

// controllerFlows reads what the controller installed on a bridge.
func (l *Lab) controllerFlows(host, bridge string) ([]flow, error) {
	text, err := l.readIn(host, flowsFile(bridge))
	if err != nil {
		return nil, err
	}
	return parseFlows(string(text))
}

func (l *Lab) workshop() (workshop, error) {
	w := workshop{topology: l.topology, known: make(map[string]overlay.Ports)}
	for _, h := range l.Overlay().Hosts {
		text, err := l.readIn(h.Name, portsFile)
		if err != nil {
			return w, err
		}
		var p overlay.Ports
		if err := json.Unmarshal(text, &p); err != nil {
			return w, fmt.Errorf("%s: %s: %w", h.Name, portsFile, err)
		}
		w.known[h.Name] = p
	}
	return w, nil
}

// readIn reads a file as a node sees it.
func (l *Lab) readIn(node, name string) ([]byte, error) {
	p, err := l.node(node)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(p.PID), "root", name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	return text, nil
}
