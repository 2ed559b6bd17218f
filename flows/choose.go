package flows

import (
	"errors"
	"fmt"
	"slices"

	"github.com/dyetrace/dyetrace/stain"
)

// Why a bridge can have no hook.
var (
	// ErrNoMark says that foreign flows read every bit that could be the mark, or
	// that it cannot be told which they read.
	ErrNoMark = errors.New("no bit is free for the mark")
	// ErrNoTable says that foreign flows leave less than the two tables that a hook has.
	ErrNoTable = errors.New("no table is free for the hook")
	// ErrShadowed says that a foreign flow in table 0 would take packets that the
	// hook must have.
	ErrShadowed = errors.New("shadowed by a foreign flow")
	// ErrReplaced says that a controller replaces all flows of the bridge time and again.
	ErrReplaced = errors.New("all its flows are replaced time and again by ovn-kubernetes, so there is no place for a hook")
)

// Bridge is what Choose must know of a bridge.
type Bridge struct {
	Name string
	// Flows are all that are on the bridge, ours included.
	Flows []Flow
	// Groups are the lines of ovs-ofctl dump-groups. Actions in their buckets count
	// as those of flows do, so they are needed where a flow uses a group; nil says
	// that they were not read.
	Groups []string
	// Ports and Answers as the hook shall have them.
	Ports   []Port
	Answers []uint16
	// Dye is the OpenFlow number of the dye port, 0 where there is none yet.
	Dye uint16
	// Stain that the hook is for; the zero Stain stands for any.
	Stain stain.Stain
}

// Tables that a hook may be in, the last one first: pipelines grow from 0 (Neutron
// has reached 94, Antrea 110 in its older numbering), and 254 is Open vSwitch's own.
const (
	firstTable = 200
	lastTable  = 253
)

const deadVLAN = 4095

// ovnKubernetes is the cookie of the flows that ovn-kubernetes has on the gateway bridge, br-ex or
// breth0 (DefaultOpenFlowCookie in its go-controller). It replaces all that is there every 15 s
// (ovs-ofctl --bundle replace-flows), and whenever a service or a node changes.
const ovnKubernetes = 0xdeff105

// markRegisters are the registers in which to look for a mark, each from bit 31
// down. reg10 first: Neutron and Antrea leave it alone, and in OVN it has flags,
// handed out from bit 0 and each read alone, while reg11 to reg15 are read whole
// as soon as there is a port. Then from the highest, since people who write
// flows by hand begin with reg0. Within a register from the top, since fields and
// flags both grow from the bottom.
var markRegisters = [registers]int{10, 15, 14, 13, 12, 11, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}

// Choose finds the hook's place by reading the foreign flows of b. What keep has
// stays, each of table, reply table and mark for itself, as long as it is good; keep
// may be nil. It returns an error that wraps ErrShadowed, ErrReplaced, ErrNoMark or ErrNoTable.
func Choose(b Bridge, keep *Place) (Place, error) {
	if keep == nil {
		keep = &Place{}
	}
	p, err := choose(b, *keep)
	if err != nil {
		return Place{}, fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	return p, nil
}

// Rivals are the foreign flows of a bridge that may be in the way of a hook at table 0, depending on its answers.
func Rivals(have []Flow) (rivals []Flow) {
	for _, f := range have {
		if !f.Ours() && rival(f) {
			rivals = append(rivals, f)
		}
	}
	return rivals
}

func rival(f Flow) bool { return f.Table == 0 && f.Priority >= dyeingPriority }

// Shadowed is all that Choose has to say of a hook that stays where it is, with other answers: an error that wraps
// ErrShadowed, or nil. Of the bridge's flows it needs the Rivals.
func (b Bridge) Shadowed() error {
	for _, f := range b.Flows {
		if f.Ours() {
			continue
		}
		if err := b.shadow(f); err != nil {
			return fmt.Errorf("bridge %s: %w", b.Name, err)
		}
	}
	return nil
}

func choose(b Bridge, keep Place) (p Place, err error) {
	var e effects
	for _, f := range b.Flows {
		if f.Ours() {
			continue
		}
		if f.Cookie == ovnKubernetes {
			return Place{}, ErrReplaced
		}
		if err := b.shadow(f); err != nil {
			return Place{}, err
		}
		e.flow(f)
		if e.groups && b.Groups == nil {
			return Place{}, fmt.Errorf("%w: groups were not read, and are used by %v", ErrNoMark, f)
		}
	}
	for _, g := range b.Groups {
		e.group(g)
	}
	if p.Mark, err = e.mark(keep.Mark); err != nil {
		return Place{}, err
	}
	if p.Table, err = e.table(keep.Table); err != nil {
		return Place{}, err
	}
	e.tables[p.Table] = true
	if p.Reply, err = e.table(keep.Reply); err != nil {
		return Place{}, err
	}
	return p, nil
}

func (e *effects) flow(f Flow) {
	e.tables[f.Table] = true
	matchReads(&e.reads, f.Match)
	e.actions(f.Actions)
	e.goesTo(f.Actions)
}

// shadow refuses a foreign flow of table 0 whose priority is not below that of a
// flow of ours which some packet would match as well: which of two flows of one
// priority is taken, OpenFlow leaves open. Flows for VLAN 4095 are no matter:
// IEEE 802.1Q reserves that number, so no probe bears it, and Neutron drops it
// first of all, since it is the VLAN of its dead ports.
func (b Bridge) shadow(f Flow) error {
	if !rival(f) {
		return nil
	}
	match := parseMatch(f.Match)
	if slices.Contains(match, number("dl_vlan", deadVLAN)) {
		return nil
	}
	var needed []string
	if f.Priority == enterPriority {
		needed = stained(b.Stain, "")
	}
	if b.Dye != 0 && f.Priority >= guardPriority {
		needed = append(needed, inPort(b.Dye))
	}
	if slices.Contains(kinds(b.Ports, b.Dye), stain.FromInstance) {
		needed = append(needed, replies("")...)
	}
	needed = append(needed, answers(b.Answers, b.Stain, "", func(uint16) bool { return true })...)
	if slices.ContainsFunc(needed, func(n string) bool { return overlap(match, parseMatch(n)) }) {
		return fmt.Errorf("%w: %v", ErrShadowed, f)
	}
	return nil
}

// mark returns the best bit that nothing reads: keep's, else one that nothing
// writes, else one that is written only.
func (e *effects) mark(keep Mark) (Mark, error) {
	if keep.valid() && !e.reads.has(keep) {
		return keep, nil
	}
	written := Mark{}
	for _, r := range markRegisters {
		for bit := 31; bit >= 0; bit-- {
			m := Mark{Field: register{1, r}.name(), Bit: uint8(bit)}
			switch {
			case e.reads.has(m):
			case !e.writes.has(m):
				return m, nil
			case written == Mark{}:
				written = m
			}
		}
	}
	if written == (Mark{}) {
		return Mark{}, fmt.Errorf("%w: foreign flows read all of reg0 to reg15", ErrNoMark)
	}
	return written, nil
}

// usable tells whether a hook may have a table.
func usable(table uint8) bool { return table >= firstTable && table <= lastTable }

func (e *effects) table(keep uint8) (uint8, error) {
	if usable(keep) && !e.tables[keep] {
		return keep, nil
	}
	for t := lastTable; t >= firstTable; t-- {
		if !e.tables[t] {
			return uint8(t), nil
		}
	}
	return 0, fmt.Errorf("%w: of %d to %d, foreign flows leave less than two", ErrNoTable, firstTable, lastTable)
}
