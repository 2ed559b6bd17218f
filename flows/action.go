package flows

import (
	"slices"
	"strconv"
	"strings"
)

// effects is what the actions of foreign flows do to that which a hook needs.
type effects struct {
	reads, writes bitset
	tables        [256]bool // that flows go to or learn into
	groups        bool      // some bucket of a group does more
}

// actions adds the effects of a list of actions. Only what is known to do no
// more than to write counts as a write; every other register that is named, in
// whatever way, counts as read.
func (e *effects) actions(list string) {
	for _, action := range splitList(list) {
		name, args := cutAction(action)
		switch name {
		case "load", "set_field":
			e.assign(args)
		case "move":
			from, to, _ := strings.Cut(args, "->")
			e.read(from)
			e.write(to)
		case "pop":
			e.write(args)
		case "clone", "write_actions", "apply_actions":
			e.actions(args)
		case "ct":
			e.ct(args)
		case "group":
			e.groups = true
		default:
			e.read(action)
		}
	}
}

// cutAction returns the name of an action, in lower case, and what is in its
// parentheses or behind its colon.
func cutAction(action string) (name, args string) {
	i := strings.IndexAny(action, ":(")
	if i < 0 {
		return strings.ToLower(action), ""
	}
	name, args = strings.ToLower(action[:i]), action[i+1:]
	if action[i] == '(' {
		args = strings.TrimSuffix(args, ")")
	}
	return name, args
}

// assign adds VALUE->FIELD, the arguments of load and set_field.
func (e *effects) assign(args string) {
	value, field, found := strings.Cut(args, "->")
	if !found {
		e.read(args)
		return
	}
	e.read(value) // a number; should it ever be a field, it is read
	e.write(field)
}

// ct adds ct(…): the actions of exec(…) are a list of their own, and the zone
// may come from a register.
func (e *effects) ct(args string) {
	for _, arg := range splitList(args) {
		if name, inner := cutAction(arg); name == "exec" {
			e.actions(inner)
		} else {
			e.read(arg)
		}
	}
}

func (e *effects) write(field string) {
	if !e.writes.addReference(field) {
		e.read(field)
	}
}

// read adds every register named anywhere in text: the bits in the brackets
// behind its name, or all.
func (e *effects) read(text string) {
	for i := 0; i < len(text); {
		if !isWord(text[i]) {
			i++
			continue
		}
		end := i
		for end < len(text) && isWord(text[end]) {
			end++
		}
		word := text[i:end]
		if end < len(text) && text[end] == '[' {
			if n := strings.IndexByte(text[end:], ']'); n >= 0 && e.reads.addReference(text[i:end+n+1]) {
				i = end + n + 1
				continue
			}
		}
		e.reads.addReference(word)
		i = end
	}
}

func isWord(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// goesTo adds every table that actions name: resubmit(PORT,TABLE…),
// goto_table:TABLE, and table=TABLE in ct, learn and others, at whatever depth.
func (e *effects) goesTo(actions string) {
	for _, form := range []string{"resubmit(", "goto_table:", "table="} {
		for rest := actions; ; {
			_, after, found := strings.Cut(rest, form)
			if !found {
				break
			}
			rest = after
			if form == "resubmit(" {
				_, after, _ = strings.Cut(after, ",")
			}
			end := strings.IndexFunc(after, func(r rune) bool { return r < '0' || r > '9' })
			if end < 0 {
				end = len(after)
			}
			if n, err := strconv.ParseUint(after[:end], 10, 8); err == nil {
				e.tables[n] = true
			}
		}
	}
}

// group adds a line of ovs-ofctl dump-groups: the buckets' lists of actions, and
// the fields by which a bucket is selected.
func (e *effects) group(line string) {
	head, rest, found := strings.Cut(line, "bucket=")
	e.read(head)
	for found {
		var bucket string
		bucket, rest, found = strings.Cut(rest, "bucket=")
		options, list, ok := strings.Cut(bucket, "actions=")
		e.read(options)
		if ok {
			e.actions(strings.TrimSuffix(strings.TrimSpace(list), ","))
		}
	}
	e.goesTo(line)
}

// canonicalActions returns one spelling of a list of actions: Open vSwitch
// prints as load, before OpenFlow 1.5, what it prints as set_field from then on.
func canonicalActions(list string) string {
	items := splitList(list)
	for i, action := range items {
		name, args := cutAction(action)
		switch name {
		case "load":
			items[i] = canonicalLoad(action, args)
		case "set_field":
			items[i] = canonicalSetField(action, args)
		case "clone":
			items[i] = "clone(" + canonicalActions(args) + ")"
		case "learn":
			items[i] = "learn(" + canonicalLearn(args) + ")"
		}
	}
	return strings.Join(items, ",")
}

// canonicalLearn sorts what a learned flow is and matches, and keeps the order of what
// it does.
func canonicalLearn(args string) string {
	var matches, loads []string
	for _, arg := range splitList(args) {
		switch name, inner := cutAction(arg); name {
		case "load":
			loads = append(loads, canonicalLoad(arg, inner))
		case "set_field", "output":
			loads = append(loads, arg)
		default:
			c, _ := parseCondition(arg)
			matches = append(matches, c.String())
		}
	}
	slices.Sort(matches)
	return strings.Join(append(matches, loads...), ",")
}

func canonicalLoad(action, args string) string {
	text, field, _ := strings.Cut(args, "->")
	value, ok := parseNumber(text)
	r, known := parseReference(field)
	if !ok || !known || !value.outside(r.to-r.from+1).zero() {
		return action
	}
	return assignment(r.name, value.shl(r.from), r.mask())
}

func canonicalSetField(action, args string) string {
	text, field, _ := strings.Cut(args, "->")
	r, known := parseReference(field)
	_, width := fieldName(r.name)
	value, mask, ok := parseMasked(text, width)
	if !known || !ok || r.mask() != ones(width) {
		return action
	}
	return assignment(r.name, value, mask)
}

func assignment(name string, value, mask bits128) string {
	return "set_field:" + value.String() + "/" + mask.String() + "->" + name
}
