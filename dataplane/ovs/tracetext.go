package ovs

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/flows"
)

// What ofproto/trace prints (Open vSwitch 3.1, ofproto-dpif-trace.c), cut short:
//
//	bridge("br-int")
//	----------------
//	 0. in_port=tapa, priority 100, cookie 0x1234       a flow that it met, and
//	    ct(table=72,zone=5)                             its actions, indented
//	    drop                                            (of this clone; no flow's action)
//	     -> A clone of the packet is forked to recirculate. …
//
//	Final flow: …
//	Datapath actions: ct(zone=5),recirc(0x1)
//
//	recirc(0x1) - resume conntrack with ct_state=new|trk
//
//	bridge("br-int")
//	----------------
//	    thaw
//	        Resuming from table 72
//	72. ct_state=+new+trk,ip, priority 80
//	    output:"patch-tun"
//
//	bridge("br-tun")
//	----------------
//	 0. No match.
//	    drop
//	…
//	Datapath actions: drop
//
// Where it goes is in the datapath's actions, and only there: they know what became
// of NORMAL, of split horizon, of ports that are down. Which flow dropped it is in
// the tree.

// step is one flow that the packet met, or a table's having none.
type step struct {
	indent  int
	bridge  string
	flow    flows.Flow
	reason  string
	actions []string
	pass    int  // how often the packet was recirculated before
	failed  bool // reason is about an output
	beneath bool // of a bridge that has a tunnel's packets
}

// exit is one way by which the packet leaves the host. Remote is empty where that is
// no tunnel.
type exit struct {
	port   string
	remote string
	id     uint32
	reason string
}

// level is a bridge in the tree, for what is indented at least as much.
type level struct {
	indent  int
	bridge  string
	beneath bool // it has a tunnel's packets
}

// tree reads the text line by line.
type tree struct {
	bridges []level
	stack   []*step // the flow that a line belongs to, and those around it
	steps   []*step // those that are not ours
	resume  []string
	thawing string // the bridge that a recirculation goes on in
	pass    int    // recirculations
	beneath bool   // the bridge that comes next has a tunnel's packets
	aside   bool   // what is said of a tunnel is about a mirror's

	copies  map[string]bool // ports that our hook sends to
	output  string          // port of the last output action
	outputs map[string]bool // ports that the bridges' flows name in one
	mirrors map[string]bool // remote addresses of tunnels that mirrors copy to
	tunnels []exit          // tunnels as the tree names them
	tunID   uint32          // as last written
	exits   []exit
	seen    bool // some datapath actions
	punted  bool // to the slow path or the controller
}

var (
	bridgeLine = regexp.MustCompile(`^bridge\("(.*)"\)$`)
	flowLine   = regexp.MustCompile(`^(\d+)\. (.*)$`)
	flowText   = regexp.MustCompile(`^(?:(.*), )?priority (\d+)(?:, cookie (0x[0-9a-f]+))?$`)
	tunnelling = regexp.MustCompile(`^tunneling to (\S+) via `)
	tunIDSet   = regexp.MustCompile(`^(?:load|set_field):(0x[0-9a-f]+|\d+)->(?:NXM_NX_TUN_ID\[\]|OXM_OF_TUNNEL_ID\[\]|tun_id|tunnel_id)$`)
	pushTo     = regexp.MustCompile(`ipv[46]\(src=[^,]*,dst=([^,)]+)`)
	pushKey    = regexp.MustCompile(`\b(?:key|vni)=(0x[0-9a-f]+)`)
	setTo      = regexp.MustCompile(`\b(?:dst|ipv6_dst)=([^,)]+)`)
	setKey     = regexp.MustCompile(`\btun_id=(0x[0-9a-f]+)`)
	tunnelPort = regexp.MustCompile(`_sys(?:_\d+)?$`)
)

// backward is what the switch says of an output to where the packet came from (ofproto-dpif-xlate.c).
const backward = "skipping output to input port"

// neighbourMiss begins what is said of a tunnel whose next hop's MAC is not known yet.
const neighbourMiss = "neighbor cache miss"

// readTrace finds the outcome in what ofproto/trace --names printed for a packet that
// enters a bridge by inPort.
func readTrace(text string, snap dataplane.Snapshot, bridge string, inPort uint16) (Trace, error) {
	t := tree{copies: make(map[string]bool), outputs: make(map[string]bool), mirrors: make(map[string]bool)}
	for _, b := range snap.Bridges {
		for _, p := range b.Ports {
			if p.Dye {
				t.copies[p.Name] = true
			}
			if p.IsTunnel() && b.Mirrored(p.Name) {
				t.mirrors[p.RemoteIP] = true
			}
		}
	}
	for line := range strings.Lines(text) {
		t.line(strings.TrimRight(line, "\n"))
	}
	if !t.seen {
		return Trace{}, fmt.Errorf("ofproto/trace printed no datapath actions: %.200q", text)
	}
	if err := t.unmirror(snap); err != nil {
		return Trace{}, err
	}
	t.nameTunnels(snap)
	return t.outcome(snap, bridge, inPort)
}

func (t *tree) line(line string) {
	text := strings.TrimLeft(line, " ")
	indent := len(line) - len(text)
	switch {
	case text == "", strings.HasPrefix(text, "---"), strings.HasPrefix(text, "==="),
		text == "thaw", strings.HasPrefix(text, "Resuming from table"),
		strings.HasPrefix(text, "Flow: "), strings.HasPrefix(text, "Final flow: "), strings.HasPrefix(text, "Megaflow: "):
	case strings.HasPrefix(text, "Datapath actions: "):
		t.seen = true
		t.datapath(strings.TrimPrefix(text, "Datapath actions: "))
	case strings.HasPrefix(line, "recirc("):
		t.bridges, t.stack, t.beneath = nil, nil, false
		t.pass++
		if len(t.resume) > 0 {
			t.thawing, t.resume = t.resume[0], t.resume[1:]
		}
	case bridgeLine.MatchString(text):
		t.enter(indent, bridgeLine.FindStringSubmatch(text)[1])
	case flowLine.MatchString(text):
		m := flowLine.FindStringSubmatch(text)
		t.meet(indent-max(0, 2-len(m[1])), m[1], m[2]) // tables are printed as %2d
	case len(t.bridges) > 0:
		t.inFlow(indent, text)
	}
}

// enter begins a bridge. After a recirculation, Open vSwitch 3.1 names the bridge by
// which the packet came to the host, not the one that goes on: that one is known
// from where it was forked.
func (t *tree) enter(indent int, bridge string) {
	if t.thawing != "" {
		bridge, t.thawing = t.thawing, ""
	}
	t.leave(indent)
	l := level{indent, bridge, t.beneath}
	if n := len(t.bridges); n > 0 {
		l.beneath = l.beneath || t.bridges[n-1].beneath
	}
	t.beneath = false
	t.bridges = append(t.bridges, l)
}

// leave ends the bridges that are indented at least as much.
func (t *tree) leave(indent int) {
	for n := len(t.bridges); n > 0 && t.bridges[n-1].indent >= indent; n-- {
		t.bridges = t.bridges[:n-1]
	}
}

// meet adds a flow, or a table without one.
func (t *tree) meet(indent int, table, text string) {
	for n := len(t.bridges); n > 1 && t.bridges[n-1].indent > indent; n-- {
		t.bridges = t.bridges[:n-1]
	}
	if len(t.bridges) == 0 {
		return
	}
	t.unwind(indent)
	at := t.bridges[len(t.bridges)-1]
	s := &step{indent: indent, bridge: at.bridge, pass: t.pass, beneath: at.beneath}
	number, _ := strconv.ParseUint(table, 10, 8)
	s.flow.Table = uint8(number)
	if m := flowText.FindStringSubmatch(text); m != nil {
		priority, _ := strconv.ParseUint(m[2], 10, 16)
		s.flow.Match, s.flow.Priority = m[1], uint16(priority)
		s.flow.Cookie, _ = strconv.ParseUint(m[3], 0, 64)
	} else {
		s.reason = fmt.Sprintf("table %d of %s: %s", number, s.bridge, strings.ToLower(strings.TrimSuffix(text, ".")))
	}
	t.stack = append(t.stack, s)
	if !t.ours() {
		t.steps = append(t.steps, s)
	}
}

// unwind leaves the flows that are indented at least as much.
func (t *tree) unwind(indent int) {
	for n := len(t.stack); n > 0 && t.stack[n-1].indent >= indent; n-- {
		t.stack = t.stack[:n-1]
	}
}

// ours tells whether a line is about our hook's doing, not the bridge's.
func (t *tree) ours() bool { return len(t.stack) > 0 && t.stack[len(t.stack)-1].flow.Ours() }

// inFlow takes an action of a flow, or a remark on one.
func (t *tree) inFlow(indent int, text string) {
	detail, isDetail := strings.CutPrefix(text, "-> ")
	warning, isWarning := strings.CutPrefix(text, ">> ")
	if failure, ok := strings.CutPrefix(text, ">>>> "); ok {
		warning, isWarning = strings.TrimSuffix(failure, " <<<<"), true
	}
	if isDetail || isWarning {
		indent-- // one more than the action that it is about
	} else {
		t.leave(indent)
	}
	t.unwind(indent)
	if len(t.stack) == 0 {
		return
	}
	s := t.stack[len(t.stack)-1]
	switch {
	case isDetail:
		t.detail(s, detail)
	case isWarning:
		s.warn(warning)
	default:
		t.action(s, text)
	}
}

// warn takes what the switch could not do. Of several on one flow, one on an output stays.
func (s *step) warn(text string) {
	output := len(s.actions) > 0 && outputs(s.actions[len(s.actions)-1])
	if !strings.Contains(text, "suppressing side effects") && (output || !s.failed) {
		s.reason, s.failed = text, output
	}
}

// outputs tells whether an action sends the packet to ports.
func outputs(action string) bool {
	name, _, _ := strings.Cut(action, ":")
	switch name {
	case "output", "NORMAL", "FLOOD", "ALL", "IN_PORT", "LOCAL", "enqueue", "group", "bundle":
		return true
	}
	return strings.HasPrefix(action, "output(") || strings.HasPrefix(action, "bundle(")
}

func (t *tree) detail(s *step, text string) {
	switch m := tunnelling.FindStringSubmatch(text); {
	case strings.Contains(text, "forked to recirculate"):
		t.resume = append(t.resume, s.bridge)
	case text == "output to kernel tunnel":
		t.tunnels = append(t.tunnels, exit{port: t.output})
	case m != nil && t.mirrors[m[1]]:
		t.beneath, t.aside = true, true
	case m != nil:
		t.beneath, t.aside = true, false
		t.tunnels = append(t.tunnels, exit{port: t.output, remote: m[1]})
	case strings.HasPrefix(text, neighbourMiss) && t.aside:
		t.beneath = false
	case strings.HasPrefix(text, neighbourMiss) && len(t.tunnels) > 0:
		// The flows did their part; the switch asks for the next hop's MAC and
		// the next packet will find it.
		e := t.tunnels[len(t.tunnels)-1]
		t.exits = append(t.exits, exit{remote: e.remote, id: t.tunID, reason: text})
		t.beneath = false
	}
}

func (t *tree) action(s *step, text string) {
	if name, ok := strings.CutPrefix(text, "output:"); ok {
		t.output = unquote(name)
		if s.flow.Ours() {
			t.copies[t.output] = true
		} else {
			t.outputs[t.output] = true
		}
	}
	t.beneath = false
	if m := tunIDSet.FindStringSubmatch(text); m != nil {
		t.tunID = parseKey(m[1])
	}
	// After ct() the tree has what it executes, and a drop of the clone that was forked.
	if n := len(s.actions); n > 0 && strings.HasPrefix(s.actions[n-1], "ct(") && (text == "drop" || strings.Contains(s.actions[n-1], text)) {
		return
	}
	s.actions = append(s.actions, text)
}

// datapath takes a list of the datapath's actions (odp-util.c).
func (t *tree) datapath(list string) {
	var remote exit // of the last set(tunnel(…)), kernel datapath
	for _, action := range splitActions(list) {
		name, args, call := strings.Cut(action, "(")
		switch {
		case !call && tunnelPort.MatchString(action):
			t.exits = append(t.exits, exit{port: action, remote: remote.remote, id: remote.id})
		case !call:
			if action != "drop" && action != "pop_vlan" && action != "ct_clear" && action != "pop_eth" && !t.copies[action] {
				t.exits = append(t.exits, exit{port: action})
			}
		case name == "tnl_push":
			// What follows, up to the end of the list, is the underlay's.
			port, _, _ := strings.Cut(strings.TrimPrefix(args, "tnl_port("), ")")
			t.exits = append(t.exits, exit{port: port, remote: capture(pushTo, args), id: parseKey(capture(pushKey, args))})
			return
		case name == "set" && strings.HasPrefix(args, "tunnel("):
			remote = exit{remote: capture(setTo, args), id: parseKey(capture(setKey, args))}
		case name == "userspace":
			t.punted = true
		case name == "clone", name == "sample", name == "actions", name == "check_pkt_len", name == "gt", name == "le":
			t.datapath(strings.TrimSuffix(args, ")"))
		}
	}
}

// splitActions splits a list at the commas that are in no parentheses. Items of
// check_pkt_len and sample are KEY=VALUE or KEY(…): the former come out as they are
// and are taken for no port, since no port's name has a "=".
func splitActions(list string) []string {
	var items []string
	depth, start := 0, 0
	for i := range len(list) {
		switch list[i] {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			if depth == 0 {
				items = append(items, list[start:i])
				start = i + 1
			}
		}
	}
	items = append(items, list[start:])
	return slices.DeleteFunc(items, func(s string) bool { return s == "" || !strings.Contains(s, "(") && strings.Contains(s, "=") })
}

func capture(re *regexp.Regexp, text string) string {
	if m := re.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}

// parseKey returns the low 32 bits of a tunnel's key, 0 if there is none.
func parseKey(text string) uint32 {
	n, _ := strconv.ParseUint(text, 0, 64)
	return uint32(n)
}

// nameTunnels replaces the datapath's names of tunnels (gre_sys), of which there is
// one for all of a type, by the names of the ports: those that the tree outputs to
// are in the same order; where NORMAL did, type and remote address tell.
func (t *tree) nameTunnels(snap dataplane.Snapshot) {
	rest := t.tunnels
	for i, e := range t.exits {
		if e.remote == "" {
			continue
		}
		n := slices.IndexFunc(rest, func(c exit) bool {
			p, _ := findPort(snap, c.port)
			return c.remote == e.remote || c.remote == "" && (p.RemoteIP == e.remote || p.RemoteIP == "flow")
		})
		if n >= 0 {
			t.exits[i].port, rest = rest[n].port, slices.Delete(slices.Clone(rest), n, n+1)
			continue
		}
		for _, b := range snap.Bridges {
			for _, p := range b.Ports {
				if p.IsTunnel() && p.RemoteIP == e.remote && e.of(p) {
					t.exits[i].port = p.Name
				}
			}
		}
	}
}

// unmirror takes away what mirrors copied, which is no way that the packet goes. The error says that
// what is a copy, and what is not, cannot be told.
func (t *tree) unmirror(snap dataplane.Snapshot) error {
	seen := make(map[string]bool)
	for _, s := range t.steps {
		seen[s.bridge] = seen[s.bridge] || !s.beneath
	}
	for _, b := range snap.Bridges {
		if !seen[b.Name] {
			continue
		}
		for _, m := range b.Mirrors {
			if m.VLAN != 0 {
				return fmt.Errorf("mirror %q of %s floods copies in VLAN %d: which way the packet itself goes cannot be told from them", m.Name, b.Name, m.VLAN)
			}
			for _, name := range m.Ports {
				if err := t.unmirrorPort(snap, b, m, name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (t *tree) unmirrorPort(snap dataplane.Snapshot, b dataplane.Bridge, m dataplane.Mirror, name string) error {
	p, _ := b.Port(name)
	rest := slices.DeleteFunc(slices.Clone(t.exits), func(e exit) bool {
		if p.IsTunnel() {
			return e.remote == p.RemoteIP && e.of(p)
		}
		return e.remote == "" && e.port == name
	})
	switch {
	case p.Type == "patch":
		return fmt.Errorf("mirror %q of %s sends copies to another bridge by %s: which way the packet itself goes cannot be told from them", m.Name, b.Name, name)
	case len(rest) < len(t.exits) && (t.outputs[name] || twin(snap, p)):
		return fmt.Errorf("mirror %q of %s sends copies by %s, where flows send packets, too: whether this one went there cannot be told", m.Name, b.Name, name)
	}
	t.exits = rest
	return nil
}

// twin tells whether another port leads into the same tunnel as a mirror's.
func twin(snap dataplane.Snapshot, p dataplane.Port) bool {
	for _, b := range snap.Bridges {
		for _, q := range b.Ports {
			if q.IsTunnel() && q.Type == p.Type && q.RemoteIP == p.RemoteIP && !b.Mirrored(q.Name) {
				return true
			}
		}
	}
	return false
}

// of tells whether the datapath's name of a tunnel is that of the type of a port.
func (e exit) of(p dataplane.Port) bool {
	return strings.HasPrefix(e.port, p.Type[:min(5, len(p.Type))])
}

func findPort(snap dataplane.Snapshot, name string) (dataplane.Port, bool) {
	for _, b := range snap.Bridges {
		if p, ok := b.Port(name); ok {
			return p, true
		}
	}
	return dataplane.Port{}, false
}

// outcome decides between several exits, and finds the flow where there is none.
func (t *tree) outcome(snap dataplane.Snapshot, bridge string, inPort uint16) (Trace, error) {
	if len(t.exits) == 0 {
		return t.dropped()
	}
	var tr Trace
	for _, e := range t.exits {
		tr.Ports = append(tr.Ports, e.port)
		if x := (Exit{e.port, e.remote, e.id, e.reason}); !slices.Contains(tr.Exits, x) {
			tr.Exits = append(tr.Exits, x)
		}
	}
	b, _ := snap.Bridge(bridge)
	in, _ := b.ByOFPort(inPort)
	// A flooded packet of an instance's is on its way to a tunnel, if to any; one
	// that came from the tunnels' side is on its way to an instance.
	inward := in.Role == flows.Tunnel || in.Role == flows.Uplink
	best := slices.MaxFunc(t.exits, func(a, b exit) int { return rank(a, snap, inward) - rank(b, snap, inward) })
	tr.Outcome, tr.Port, tr.Reason = Delivered, best.port, best.reason
	if best.remote != "" {
		tr.Outcome, tr.TunnelRemote, tr.TunnelID = Tunnelled, best.remote, best.id
	}
	return tr, nil
}

func rank(e exit, snap dataplane.Snapshot, inward bool) int {
	p, _ := findPort(snap, e.port)
	switch {
	case e.remote != "" && !inward:
		return 3
	case p.Role == flows.Instance:
		return 2
	case e.remote != "":
		return 1
	}
	return 0
}

func (t *tree) dropped() (Trace, error) {
	s := t.decisive()
	if s == nil {
		return Trace{}, errors.New("ofproto/trace dropped it without a flow")
	}
	f := s.flow
	f.Actions = strings.Join(s.actions, ",")
	if f.Actions == "" {
		f.Actions = "drop"
	}
	reason := s.reason
	if reason == "" && t.punted {
		reason = "handed to the controller"
	}
	return Trace{Outcome: Dropped, Flow: FlowRef{Bridge: s.bridge, Flow: f}, Before: t.before(s), Reason: reason}, nil
}

// before returns the flows with a cookie that the packet met on a step's bridge before that.
func (t *tree) before(of *step) (list []flows.Flow) {
	for _, s := range t.steps {
		if s == of {
			break
		}
		if s.bridge == of.bridge && s.flow.Cookie != 0 {
			list = append(list, s.flow)
		}
	}
	return list
}

// Tables of the Neutron agent's Open vSwitch firewall in which nothing is decided
// (neutron/plugins/ml2/drivers/openvswitch/agent/common/constants.py, ACCEPTED_INGRESS_TRAFFIC_TABLE
// and DROPPED_TRAFFIC_TABLE): what was delivered, or denied, before is logged there and ends. In other
// tables a flow of priority 0 that drops says that there is none for the packet, and that is why.
const (
	accepted = 92
	denied   = 93
)

// decisive returns the step that a packet was dropped for: the last whose output failed; else the
// last, or what sent it to a table that only ends it. nil if there is none.
func (t *tree) decisive() *step {
	n := len(t.steps)
	if n == 0 {
		return nil
	}
	last := t.steps[n-1]
	if last.ends() {
		last = t.sentBy(last)
	}
	for i := n - 1; i >= 0; i-- {
		// A flood leaves out where it came from, as it should.
		if s := t.steps[i]; s.failed && (s.reason != backward || s == last) {
			return s
		}
	}
	return last
}

// ends tells whether a step only ends what was decided before.
func (s *step) ends() bool {
	return (s.flow.Table == accepted || s.flow.Table == denied) && s.reason == "" && s.flow.Match == "" && s.flow.Priority == 0 &&
		slices.Equal(s.actions, []string{"drop"})
}

// sentBy returns the step that resubmitted to the last one, which is itself if none did.
func (t *tree) sentBy(last *step) *step {
	to := fmt.Sprintf("resubmit(,%d)", last.flow.Table)
	for i := len(t.steps) - 2; i >= 0; i-- {
		s := t.steps[i]
		if s.bridge != last.bridge || s.pass != last.pass {
			break
		}
		if slices.Contains(s.actions, to) {
			return s
		}
	}
	return last
}
