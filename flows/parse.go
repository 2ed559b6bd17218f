package flows

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// defaultPriority is what ovs-ofctl leaves out when it prints (OFP_DEFAULT_PRIORITY).
const defaultPriority = 32768

// ParseDump reads what ovs-ofctl dump-flows prints of a bridge, with numbers for
// ports and tables (--no-names), with or without statistics, in any version of
// OpenFlow. Matches and actions are kept as text, so those that we do not know
// are no error. Empty lines and the header ("NXST_FLOW reply (xid=0x4):") are
// skipped; any other line that is not a flow is an error, since a flow that was
// overlooked might read the mark.
func ParseDump(text string) ([]Flow, error) {
	var flows []Flow
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		head, actions, found := cutActions(line)
		if !found {
			if line == "" || strings.Contains(line, " reply (") {
				continue
			}
			return nil, fmt.Errorf("flow dump, line %d: no actions in %q", n, line)
		}
		f, err := parseFlow(head)
		if err != nil {
			return nil, fmt.Errorf("flow dump, line %d: %w", n, err)
		}
		f.Actions = strings.TrimSpace(actions)
		if f.Actions == "" {
			return nil, fmt.Errorf("flow dump, line %d: empty actions, want drop", n)
		}
		flows = append(flows, f)
	}
	return flows, nil
}

func cutActions(line string) (head, actions string, found bool) {
	if rest, ok := strings.CutPrefix(line, "actions="); ok {
		return "", rest, true
	}
	return strings.Cut(line, " actions=")
}

// parseFlow reads what stands before a flow's actions.
func parseFlow(head string) (Flow, error) {
	f := Flow{Priority: defaultPriority}
	var match []string
	for _, item := range splitList(strings.TrimSuffix(head, ",")) { // no match leaves its comma
		item, flagged := cutFlags(item)
		if item == "" && flagged {
			continue
		}
		name, value, _ := strings.Cut(item, "=")
		var err error
		switch name {
		case "cookie":
			f.Cookie, err = strconv.ParseUint(value, 0, 64)
		case "table":
			f.Table, err = parseUint[uint8](value)
		case "priority":
			f.Priority, err = parseUint[uint16](value)
		case "hard_timeout":
			f.HardTimeout, err = parseUint[uint16](value)
		case "n_packets":
			f.Packets, err = strconv.ParseUint(value, 10, 64)
		case "duration", "n_bytes", "idle_timeout", "idle_age", "hard_age", "importance":
		case "":
			err = errors.New("want a name")
		default:
			match = append(match, item)
		}
		if err != nil {
			return Flow{}, fmt.Errorf("%q: %w", item, err)
		}
	}
	f.Match = strings.Join(match, ",")
	return f, nil
}

// cutFlags removes the flags of a flow, which ovs-ofctl prints in front of what
// comes next, with no commas between.
func cutFlags(item string) (rest string, flagged bool) {
	for {
		word, rest, _ := strings.Cut(item, " ")
		switch word {
		case "send_flow_rem", "check_overlap", "reset_counts", "no_packet_counts", "no_byte_counts":
			item, flagged = strings.TrimSpace(rest), true
		default:
			return item, flagged
		}
	}
}

func parseUint[T uint8 | uint16](s string) (T, error) {
	v, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		return 0, err
	}
	if uint64(T(v)) != v {
		return 0, fmt.Errorf("want at most %d", ^T(0))
	}
	return T(v), nil
}

// splitList splits at commas (and the spaces after them) that are in no
// parentheses, brackets or quotes. What is unbalanced ends with the text.
func splitList(s string) []string {
	if strings.TrimSpace(s) == "" {
		return nil
	}
	var items []string
	depth, start, quoted := 0, 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '(' || c == '[' || c == '{':
			depth++
		case c == ')' || c == ']' || c == '}':
			depth = max(depth-1, 0)
		case c == ',' && depth == 0:
			items = append(items, strings.TrimSpace(s[start:i]))
			start = i + 1
		}
	}
	return append(items, strings.TrimSpace(s[start:]))
}
