package lab

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// Change is what a break did to the lab: what is to be put right.
type Change struct {
	// Host is where that is; empty where it is on no hypervisor, or on several.
	Host string `json:"host"`
	// Bridge has the flows of the next two; empty where none were changed.
	Bridge string `json:"bridge"`
	// Port is the port of the host that was taken away, is down, or leads elsewhere.
	Port string `json:"port"`
	// Flows are new, or do otherwise than before; Gone were taken away.
	Flows []ChangedFlow `json:"flows"`
	Gone  []ChangedFlow `json:"gone"`
	// Instead is the guest that gets what is for another.
	Instead string `json:"instead"`
}

// ChangedFlow says which flow of a bridge it is, with the names of ports as Open vSwitch writes it.
type ChangedFlow struct {
	Table    int    `json:"table"`
	Priority int    `json:"priority"`
	Match    string `json:"match"`
}

func changedFlows(flows []flow) []ChangedFlow {
	all := []ChangedFlow{}
	for _, f := range flows {
		all = append(all, ChangedFlow{f.Table, f.Priority, f.Match})
	}
	return all
}

// changes returns what breaks do, each by itself, and nothing of a lab that is not up, where nobody has flows.
func (l *Lab) changes(list []breakage) ([]Change, error) {
	all := []Change{}
	if len(l.state.Nodes) == 0 {
		return all, nil
	}
	w, err := l.workshop()
	if err != nil {
		return nil, err
	}
	for _, b := range list {
		var c Change
		if b.kind.changed != nil {
			c = b.kind.changed(w, b.target)
		}
		if b.kind.edit != nil {
			c.Host, c.Bridge = b.kind.at(b.target)
			base, err := l.controllerFlows(c.Host, c.Bridge)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", b.kind.Name, err)
			}
			c.Flows, c.Gone = difference(base, edited(base, []breakage{b}, w, c.Host, c.Bridge))
		}
		taps := l.taps(c, w)
		c.Flows, c.Gone = named(c.Flows, taps), named(c.Gone, taps)
		all = append(all, c)
	}
	return all, nil
}

// taps are the names of instances' ports where flows were changed, by number.
func (l *Lab) taps(c Change, w workshop) map[string]string {
	names := make(map[string]string)
	if c.Bridge == overlay.Integration {
		for _, i := range l.base.On(c.Host) {
			names[fmt.Sprintf("in_port=%d", w.ports(c.Host).Taps[i.Name])] = fmt.Sprintf("in_port=%q", i.Tap())
		}
	}
	return names
}

// named has the ports of matches by their names.
func named(flows []ChangedFlow, names map[string]string) []ChangedFlow {
	all := []ChangedFlow{}
	for _, f := range flows {
		parts := strings.Split(f.Match, ",")
		for i, p := range parts {
			parts[i] = cmp.Or(names[p], p)
		}
		f.Match = strings.Join(parts, ",")
		all = append(all, f)
	}
	return all
}

// difference returns the flows of to that from has not, or not so, and those of from that to has not.
func difference(from, to []flow) (changed, gone []ChangedFlow) {
	had, has := make(map[string]flow), make(map[string]bool)
	for _, f := range from {
		had[f.key()] = f
	}
	for _, f := range to {
		has[f.key()] = true
		if old, ok := had[f.key()]; !ok || old != f {
			changed = append(changed, changedFlows([]flow{f})...)
		}
	}
	for _, f := range from {
		if !has[f.key()] {
			gone = append(gone, changedFlows([]flow{f})...)
		}
	}
	return changed, gone
}

// atTap: the instance's port, and what is behind it.
func atTap(_ workshop, t target) Change {
	return Change{Host: t.instance().Host, Port: t.instance().Tap()}
}
