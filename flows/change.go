package flows

import (
	"fmt"
	"slices"
	"strings"
)

// Event is what became of a flow.
type Event uint8

const (
	Added Event = iota + 1
	// Modified also stands for a flow that was added in the place of another.
	Modified
	Deleted
)

var eventNames = map[string]Event{"ADDED": Added, "MODIFIED": Modified, "DELETED": Deleted}

// Change is one change of a bridge's flows, as a flow monitor tells it (ovs-ofctl(8), monitor,
// "watch:").
type Change struct {
	Event Event
	// Flow as it is from now on, or as it was if it was deleted. Monitors do not tell its
	// priority: it is 0 whatever it was.
	Flow Flow
}

// ParseChange reads a line of what ovs-ofctl monitor prints of a flow monitor, with numbers for
// ports and tables (--no-names). ok is false for lines that tell of no change: headers and
// whatever else comes by the same connection. A line that does and cannot be read is an error,
// since a change that was overlooked might be the hook's end.
func ParseChange(line string) (c Change, ok bool, err error) {
	line = strings.TrimSpace(line)
	rest, found := strings.CutPrefix(line, "event=")
	if !found {
		return Change{}, false, nil
	}
	word, rest, _ := strings.Cut(rest, " ")
	event, known := eventNames[word]
	if !known {
		switch word {
		case "ABBREV": // a change by this very connection, which makes none
			return Change{}, false, nil
		case "PAUSED", "RESUMED": // OpenFlow 1.4 and later; before, they are messages of their own
			return Change{}, false, nil
		}
		return Change{}, false, fmt.Errorf("flow change: event %q in %q", word, line)
	}
	head, actions, _ := cutActions(rest)
	// Unlike those of a dump, the items in front of the match have no commas behind them.
	var items []string
	for item := range strings.FieldsSeq(head) {
		if !strings.HasPrefix(item, "reason=") {
			items = append(items, item)
		}
	}
	f, err := parseFlow(strings.Join(items, ","))
	if err != nil {
		return Change{}, false, fmt.Errorf("flow change: %w in %q", err, line)
	}
	f.Priority, f.Actions = 0, strings.TrimSpace(actions)
	return Change{Event: event, Flow: f}, true, nil
}

// Disturbance is what a change is to a hook, from harmless to grave.
type Disturbance uint8

const (
	// Harmless changes are none of the hook's business, or its own doing.
	Harmless Disturbance = iota
	// Doubtful ones may be in the hook's way: only all the flows of the bridge can tell.
	Doubtful
	// Taken says that a foreign flow reads the mark or uses a table of the hook: from now on
	// a stained packet may fare otherwise than a tenant's.
	Taken
	// Wiped says that a flow of the hook is gone.
	Wiped
)

var disturbanceNames = [...]string{"harmless", "doubtful", "taken", "wiped"}

// String returns the name of the disturbance.
func (d Disturbance) String() string {
	if int(d) < len(disturbanceNames) {
		return disturbanceNames[d]
	}
	return fmt.Sprintf("disturbance(%d)", uint8(d))
}

// Guard knows a hook well enough to tell what changes of its bridge are to it.
type Guard struct {
	hook  Hook
	flows map[guarded]bool
	entry [][]condition // what the hook takes of table 0, or may take by other answers
}

// guarded is what a flow monitor tells of a flow's place.
type guarded struct {
	table uint8
	match string // canonical
}

// Guard returns a guard of the hook as it is now.
func (h Hook) Guard() *Guard {
	g := &Guard{hook: h, flows: make(map[guarded]bool)}
	for _, f := range h.Flows() {
		g.flows[guarded{f.Table, canonicalMatch(f.Match)}] = true
		if f.Table == 0 {
			g.entry = append(g.entry, parseMatch(f.Match))
		}
	}
	for _, match := range answersAt("", h.Stain, "") {
		g.entry = append(g.entry, parseMatch(match))
	}
	return g
}

// Judge says what a change is to the hook. It is no secret to it whose change it was: that one of
// our flows was added or modified is our own doing, and so is the end of one that the hook does
// not have.
func (g *Guard) Judge(c Change) Disturbance {
	f := c.Flow
	switch {
	case f.Ours() && c.Event == Deleted && g.flows[guarded{f.Table, canonicalMatch(f.Match)}]:
		return Wiped
	case f.Ours() || c.Event == Deleted:
		return Harmless
	}
	var e effects
	e.flow(f)
	switch {
	case e.reads.has(g.hook.Mark), e.tables[g.hook.Table], g.hook.Reply != 0 && e.tables[g.hook.Reply]:
		return Taken
	case e.groups: // what is in the buckets is told to nobody
		return Doubtful
	case f.Table == 0:
		match := parseMatch(f.Match)
		if slices.ContainsFunc(g.entry, func(ours []condition) bool { return overlap(match, ours) }) {
			return Doubtful // it depends on its priority
		}
	}
	return Harmless
}
