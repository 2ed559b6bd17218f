package lab

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// flow is a flow of the network controller's in parts. Two are one if table, priority and
// match agree.
type flow struct {
	Cookie          string
	Table, Priority int
	Match, Actions  string
}

// parseFlows reads what package overlay writes.
func parseFlows(text string) ([]flow, error) {
	var flows []flow
	for line := range strings.Lines(text) {
		f, err := parseFlow(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		flows = append(flows, f)
	}
	return flows, nil
}

func parseFlow(line string) (flow, error) {
	var f flow
	head, actions, ok := strings.Cut(line, ",actions=")
	parts := strings.SplitN(head, ",", 4)
	if !ok || len(parts) < 3 {
		return f, fmt.Errorf("flow %q: want cookie=,table=,priority=,MATCH,actions=", line)
	}
	f.Actions = actions
	if len(parts) == 4 {
		f.Match = parts[3]
	}
	var err error
	f.Cookie, ok = strings.CutPrefix(parts[0], "cookie=")
	if !ok {
		err = fmt.Errorf("flow %q: want a cookie first", line)
	}
	number := func(text, name string) int {
		value, found := strings.CutPrefix(text, name+"=")
		n, bad := strconv.Atoi(value)
		if err == nil && (!found || bad != nil) {
			err = fmt.Errorf("flow %q: want %s=NUMBER", line, name)
		}
		return n
	}
	f.Table, f.Priority = number(parts[1], "table"), number(parts[2], "priority")
	return f, err
}

func (f flow) key() string {
	match := f.Match
	if match != "" {
		match = "," + match
	}
	return fmt.Sprintf("table=%d,priority=%d%s", f.Table, f.Priority, match)
}

func (f flow) String() string {
	return fmt.Sprintf("cookie=%s,%s,actions=%s", f.Cookie, f.key(), f.Actions)
}

// field returns the value of a field of the match, "" if the match does not have it.
func (f flow) field(name string) string {
	for part := range strings.SplitSeq(f.Match, ",") {
		if value, ok := strings.CutPrefix(part, name+"="); ok {
			return value
		}
	}
	return ""
}

// names reports whether the match has a name without a value, such as a protocol's.
func (f flow) names(name string) bool {
	return slices.Contains(strings.Split(f.Match, ","), name)
}

// bundle returns the lines that turn a bridge that holds from into one that holds to, for
// ovs-ofctl(8) bundle. Flows of others stay as they are.
func bundle(from, to []flow) string {
	have, want := make(map[string]flow), make(map[string]bool)
	for _, f := range from {
		have[f.key()] = f
	}
	var b strings.Builder
	for _, f := range to {
		want[f.key()] = true
		if old, ok := have[f.key()]; !ok || old != f {
			fmt.Fprintf(&b, "flow add %s\n", f)
		}
	}
	for _, f := range from {
		if !want[f.key()] {
			fmt.Fprintf(&b, "flow delete_strict cookie=%s/-1,%s\n", f.Cookie, f.key())
		}
	}
	return b.String()
}
