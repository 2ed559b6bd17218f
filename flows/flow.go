package flows

import (
	"fmt"
	"strings"
)

// Cookie marks a flow as ours, under CookieMask; the package documentation draws
// it. Cookie/CookieMask is what ovs-ofctl(8) wants after "cookie=".
const (
	Cookie     uint64 = 0x44796554_00000000 // "DyeT"
	CookieMask uint64 = 0xffffffff_00000000
)

// Flow is one OpenFlow flow.
type Flow struct {
	// Table is the number of its table, 0 to 254.
	Table uint8
	// Priority decides where several flows of a table match: the highest does.
	Priority uint16
	// Match has the fields as ovs-ofctl prints them, separated by commas, without
	// table and priority; empty matches all.
	Match string
	// Actions as ovs-ofctl prints them; "drop" where there are none.
	Actions string
	Cookie  uint64
	// HardTimeout is the time in seconds, from when it was last added or
	// modified, after which it goes away; 0 is never.
	HardTimeout uint16
	// Packets is how many have matched, as read from a bridge; 0 in flows to be.
	Packets uint64
}

// Ours tells whether the flow has our cookie.
func (f Flow) Ours() bool { return f.Cookie&CookieMask == Cookie }

// String returns the flow as a line of ovs-ofctl dump-flows, without the
// statistics that are not in a Flow. ParseDump reads it.
func (f Flow) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cookie=%#x, table=%d, ", f.Cookie, f.Table)
	if f.Packets != 0 {
		fmt.Fprintf(&b, "n_packets=%d, ", f.Packets)
	}
	if f.HardTimeout != 0 {
		fmt.Fprintf(&b, "hard_timeout=%d, ", f.HardTimeout)
	}
	fmt.Fprintf(&b, "priority=%d", f.Priority)
	if f.Match != "" {
		b.WriteString("," + f.Match)
	}
	return b.String() + " actions=" + f.Actions
}

// Format returns flows a line each, as ovs-ofctl dump-flows does.
func Format(flows []Flow) string {
	var b strings.Builder
	for _, f := range flows {
		b.WriteString(" " + f.String() + "\n")
	}
	return b.String()
}

// AddLine returns the line of an ovs-ofctl(8) bundle that adds the flow, or
// replaces the one of the same table, priority and match, whoever owns it: see
// Diff, which looks first.
func (f Flow) AddLine() string {
	timeout := ""
	if f.HardTimeout != 0 {
		timeout = fmt.Sprintf("hard_timeout=%d,", f.HardTimeout)
	}
	return fmt.Sprintf("flow add cookie=%#x,%s%s,actions=%s", f.Cookie, timeout, f.place(), f.Actions)
}

// DeleteLine returns the line of a bundle that deletes the flow, if the one in
// its place has our cookie. Where there is none, or a foreign one, it does
// nothing.
func (f Flow) DeleteLine() string {
	return fmt.Sprintf("flow delete_strict cookie=%#x/%#x,%s", Cookie, CookieMask, f.place())
}

// RenewLine returns the line of a bundle that starts the flow's hard timeout
// anew and keeps its counters. Where the flow has gone, or one with another
// cookie is in its place, it does nothing: unlike AddLine, it hides no gap.
// (Measured with OVS 3.1.)
func (f Flow) RenewLine() string {
	return fmt.Sprintf("flow modify_strict cookie=%#x/-1,%s,actions=%s", f.Cookie, f.place(), f.Actions)
}

// place returns what identifies a flow on its bridge.
func (f Flow) place() string {
	s := fmt.Sprintf("table=%d,priority=%d", f.Table, f.Priority)
	if f.Match != "" {
		s += "," + f.Match
	}
	return s
}
