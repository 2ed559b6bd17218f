package flows

import (
	"cmp"
	"slices"
	"strings"
)

// condition is what a match says of one field. Where that is no number for us,
// mask is zero, and text has all that follows the name.
type condition struct {
	name        string
	value, mask bits128
	text        string
}

func (c condition) String() string {
	_, width := fieldName(c.name)
	switch {
	case c.mask.zero():
		return c.name + c.text
	case c.mask == ones(width):
		return c.name + "=" + c.value.String()
	}
	return c.name + "=" + c.value.String() + "/" + c.mask.String()
}

// parseMatch returns the conditions of a match in one order and one spelling,
// whatever those of the text are. Nothing is an error: what it does not know it
// leaves alone.
func parseMatch(match string) []condition {
	var conds []condition
	for _, item := range splitList(match) {
		if p, ok := protocols[strings.ToLower(item)]; ok {
			conds = append(conds, number("dl_type", uint64(p.etherType)))
			if p.ipProto != 0 {
				conds = append(conds, number("nw_proto", uint64(p.ipProto)))
			}
			continue
		}
		if c, all := parseCondition(item); !all {
			conds = append(conds, c)
		}
	}
	slices.SortStableFunc(conds, func(a, b condition) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.String(), b.String()))
	})
	return slices.Compact(conds)
}

func number(name string, value uint64) condition {
	return condition{name: name, value: bits128{lo: value}, mask: ones(widths[name])}
}

// parseCondition reads NAME=VALUE or NAME=VALUE/MASK; all says that every packet
// meets it.
func parseCondition(item string) (c condition, all bool) {
	name, text, _ := strings.Cut(item, "=")
	if lower := strings.ToLower(name); lower == "ip_dscp" || lower == "nw_tos_shifted" {
		if v, mask, ok := parseMasked(text, 6); ok {
			return condition{name: "nw_tos", value: v.shl(2), mask: mask.shl(2)}, mask.zero()
		}
	}
	text = item[len(name):]
	name, width := fieldName(name)
	value, mask, ok := parseMasked(strings.TrimPrefix(text, "="), width)
	if !ok || width == 0 {
		return condition{name: name, text: text}, false
	}
	if name == "nw_tos" { // its two ECN bits are not compared, ovs-fields(7)
		value, mask = value.and(bits128{lo: 0xfc}), mask.and(bits128{lo: 0xfc})
	}
	return condition{name: name, value: value, mask: mask}, mask.zero()
}

// canonicalMatch returns the one spelling of a match: two texts that
// ovs-ofctl(8) takes for the same match have the same.
func canonicalMatch(match string) string {
	conds := parseMatch(match)
	texts := make([]string, len(conds))
	for i, c := range conds {
		texts[i] = c.String()
	}
	return strings.Join(texts, ",")
}

// overlap tells whether some packet may fit both matches. Where it cannot tell,
// it says yes.
func overlap(a, b []condition) bool {
	for _, x := range a {
		for _, y := range b {
			if x.name == y.name && !x.value.xor(y.value).and(x.mask).and(y.mask).zero() {
				return false
			}
		}
	}
	return true
}

// matchReads adds to s the register bits that a match looks at.
func matchReads(s *bitset, match string) {
	for _, item := range splitList(match) {
		name, text, _ := strings.Cut(item, "=")
		name, width := fieldName(name)
		_, mask, ok := parseMasked(text, width)
		if !ok {
			mask = ones(width)
		}
		s.add(name, mask)
	}
}
