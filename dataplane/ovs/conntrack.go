package ovs

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

// Flows may do one thing with a packet of a connection, another with the first of one, and another yet
// with one that belongs to none. ofproto/trace asks no table of connections: it takes what it is told
// (--ct-next). So what it is told is looked up, zone by zone as the packet comes to them.

// maxConnections is how many connections a table may have for it to be listed: ovs-vswitchd's main thread
// does it, some microseconds each.
const maxConnections = 20_000

// kernelCount has how many connections the kernel's table has: that of who reads it, which is ovs-vswitchd's, since
// dye ports are there, too.
const kernelCount = "/proc/sys/net/netfilter/nf_conntrack_count"

// lately is within how many seconds a flow must have been met for it to be the one that an answer met which was lost
// just now.
const lately = 30

// States of a packet, as --ct-next takes them.
const (
	ctNew    = "trk,new"
	ctEst    = "trk,est"
	ctReply  = "trk,est,rpl"
	ctNobody = "trk,inv" // of no connection, and none that may begin one
)

// standing is how a packet stands to the connections of a zone.
type standing uint8

const (
	untold   standing = iota // the table could not be read, or cannot tell
	stranger                 // it is of none
	sender                   // it goes the way of the first packet of one
	answerer                 // it goes the other way
)

// connections are those of the zones that were listed.
type connections struct {
	listed bool
	// kernel says that the table is the kernel's: it forgets a connection as soon as a RST answers it (nf_conntrack_tcp_packet of
	// nf_conntrack_proto_tcp.c). Both keep one whose answer they took for invalid.
	kernel bool
	lines  []string
}

// connections lists the connections of a switch's datapaths; that of a table too large is none.
func (s *Switch) connections(ctx context.Context) connections {
	c := connections{}
	count, err := s.appctl(ctx, "dpctl/ct-get-nconns")
	if err != nil && strings.Contains(err.Error(), "not supported") {
		var text []byte
		text, err = os.ReadFile(kernelCount)
		count, c.kernel = string(text), true
	}
	if !fewConnections(count, err) {
		return c
	}
	text, err := s.appctl(ctx, "dpctl/dump-conntrack")
	if err != nil {
		return c
	}
	c.listed, c.lines = true, strings.Split(text, "\n")
	return c
}

// fewConnections says that a table has no more than may be listed.
func fewConnections(count string, err error) bool {
	n, convErr := strconv.Atoi(strings.TrimSpace(count))
	return err == nil && convErr == nil && n <= maxConnections
}

var (
	ctTuple    = regexp.MustCompile(`(orig|reply)=\(src=([^,]+),dst=([^,]+)(?:,sport=(\d+),dport=(\d+))?`)
	ctZone     = regexp.MustCompile(`,zone=(\d+)`)
	ctState    = regexp.MustCompile(`state=(\w+)`)
	ctAction   = regexp.MustCompile(`\bct\(([^()]*(?:\([^()]*\)[^()]*)*)\),recirc\((0x[0-9a-f]+)\)`)
	ctActZone  = regexp.MustCompile(`(?:^|,)zone=(\d+)`)
	ctResuming = regexp.MustCompile(`^recirc\((0x[0-9a-f]+)\) - resume conntrack`)
)

// of says how a packet stands to the connections of a zone. An echo request begins one, whatever others
// there are between its addresses; a SYN does, unless it is sent into one that is established: what a
// probe before it left behind is half-open or closed.
func (c connections) of(r *TraceRequest, zone int) standing {
	switch {
	case !c.listed:
		return untold
	case !r.Reply && r.Scheme == stain.ICMP:
		return stranger
	}
	src, dst := r.Src.Unmap(), r.Dst.Unmap()
	for _, line := range c.lines {
		if !strings.HasPrefix(line, ctProtocol(r)+",") || zoneOf(line) != zone {
			continue
		}
		for _, m := range ctTuple.FindAllStringSubmatch(line, -1) {
			a, _ := netip.ParseAddr(m[2])
			b, _ := netip.ParseAddr(m[3])
			port := strconv.Itoa(int(r.Stain.Port))
			if a != src || b != dst || r.Scheme == stain.TCP && (m[4] != port || m[5] != port) {
				continue
			}
			state := ctState.FindStringSubmatch(line)
			switch {
			case !r.Reply && (state == nil || state[1] != "ESTABLISHED"):
				continue
			case r.Reply && state != nil && state[1] == "SYN_SENT":
				return untold // it has not come yet, or was invalid
			case r.Reply && r.Scheme == stain.ICMP && m[1] == "orig":
				continue // begun by an echo request of who answers now, and no matter of this answer
			case m[1] == "reply":
				return answerer
			}
			return sender
		}
	}
	if c.kernel && r.Reply && r.Scheme == stain.TCP {
		return untold // it may have been one
	}
	return stranger
}

func ctProtocol(r *TraceRequest) string {
	switch {
	case r.Scheme == stain.TCP:
		return "tcp"
	case r.Src.Unmap().Is6():
		return "icmpv6"
	}
	return "icmp"
}

func zoneOf(line string) int {
	m := ctZone.FindStringSubmatch(line)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// ctZones returns the zones in which what ofproto/trace printed asks for the packet's state, in the order in
// which it takes --ct-next.
func ctZones(text string) (zones []int) {
	of := map[string]int{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if actions, ok := strings.CutPrefix(line, "Datapath actions: "); ok {
			for _, m := range ctAction.FindAllStringSubmatch(actions, -1) {
				zone := 0
				if z := ctActZone.FindStringSubmatch(m[1]); z != nil {
					zone, _ = strconv.Atoi(z[1])
				}
				of[m[2]] = zone
			}
		}
		if m := ctResuming.FindStringSubmatch(line); m != nil {
			zones = append(zones, of[m[1]])
		}
	}
	return zones
}

// assumed is the state of a packet where no table of connections tells.
func (r *TraceRequest) assumed() string {
	if r.Reply {
		return ctReply
	}
	return ctNew
}

// met are the states of a packet where what ofproto/trace printed asked for them: those that it was told, and what is
// assumed from there on.
func (r *TraceRequest) met(text string, told []string) []string {
	n := len(ctZones(text))
	states := slices.Clone(told[:min(n, len(told))])
	for len(states) < n {
		states = append(states, r.assumed())
	}
	return states
}

// state is that of a packet by how it stands to the connections of a zone, and alternative the one that it may as
// well have had; empty if that is sure, or a guess like any other.
func (r *TraceRequest) state(s standing) (state, alternative string) {
	switch {
	case s == answerer:
		return ctReply, ""
	case s == sender:
		return ctEst, ""
	case r.Reply:
		return ctReply, ctNobody // who is a stranger may have been one: everybody is forgotten after a while
	}
	return r.assumed(), ""
}

// traced is what ofproto/trace printed, and by which states.
type traced struct {
	text   string
	states []string
	others []doubt // of each state
}

// doubt is which state a packet may have had instead, empty if none. guessed says that no table speaks for that.
type doubt struct {
	state   string
	guessed bool
}

// walk traces a packet with the states that it has in the zones that it comes to; what is assumed of
// states stands for those that follow.
func (s *Switch) walk(ctx context.Context, bridge, flow string, req *TraceRequest) (t traced, err error) {
	var known connections
	for range maxRecirculations {
		if t.text, err = s.traceOnce(ctx, bridge, flow, req, t.states); err != nil {
			return t, err
		}
		zones := ctZones(t.text)
		if len(zones) <= len(t.states) {
			return t, nil
		}
		if len(t.states) == 0 {
			known = s.connections(ctx)
		}
		same := true
		for _, zone := range zones[len(t.states):min(len(zones), maxRecirculations)] {
			standing := known.of(req, zone)
			state, other := req.state(standing)
			t.states, t.others = append(t.states, state), append(t.others, doubt{other, standing == untold})
			if state != req.assumed() {
				same = false // what follows may be other zones
				break
			}
		}
		if same {
			return t, nil
		}
	}
	return t, nil
}

// otherwise traces a packet with each state that it may have had instead. It is asked about because it was lost: what
// would have dropped it, if that may be, did. Where nothing speaks for that state, the flow must have been met of late.
func (s *Switch) otherwise(ctx context.Context, bridge, flow string, req *TraceRequest, t *traced) (Trace, bool) {
	for i, d := range t.others {
		if d.state == "" {
			continue
		}
		states := append(slices.Clone(t.states[:i]), d.state) // the rest hangs on it
		text, err := s.traceOnce(ctx, bridge, flow, req, states)
		if err != nil {
			return Trace{}, false
		}
		tr, err := readTrace(text, s.Snapshot(), bridge, req.InPort)
		if err != nil || tr.Outcome != Dropped || d.guessed && !s.met(ctx, tr.Flow.Bridge, invalidFlow(text, tr.Flow.Flow)) {
			continue
		}
		tr.Command, tr.States = s.command(traceArgs(bridge, flow, req, states)), req.met(text, states)
		return tr, true
	}
	return Trace{}, false
}

// invalidFlow is the flow by which a packet of no connection left the way of others, in what ofproto/trace printed:
// the last that matches such packets only, else the one that dropped it.
func invalidFlow(text string, last flows.Flow) flows.Flow {
	for line := range strings.Lines(text) {
		m := flowLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		f := flowText.FindStringSubmatch(m[2])
		if f == nil || !strings.Contains(f[1], "+inv") {
			continue
		}
		table, _ := strconv.ParseUint(m[1], 10, 8)
		priority, _ := strconv.ParseUint(f[2], 10, 16)
		last = flows.Flow{Table: uint8(table), Priority: uint16(priority), Match: f[1]}
		last.Cookie, _ = strconv.ParseUint(f[3], 0, 64)
	}
	return last
}

var idleAge = regexp.MustCompile(`\bidle_age=(\d+)`)

// met says that a packet has met a flow lately. Which is told by OpenFlow 1.5 only.
func (s *Switch) met(ctx context.Context, bridge string, f flows.Flow) bool {
	if f.Match == "" {
		return false // it takes whatever nothing else does, of whomever
	}
	out, err := s.run(ctx, nil, "ovs-ofctl", "-O", "OpenFlow15", "--names", "dump-flows", bridge,
		fmt.Sprintf("table=%d,cookie=%#x/-1,%s", f.Table, f.Cookie, f.Match))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(out)) {
		list, err := flows.ParseDump(line)
		age := idleAge.FindStringSubmatch(line)
		if err != nil || len(list) != 1 || list[0].Priority != f.Priority || list[0].Packets == 0 || age == nil {
			continue
		}
		if n, err := strconv.Atoi(age[1]); err == nil && n <= lately {
			return true
		}
	}
	return false
}

// traceOnce runs ofproto/trace with these states, and those that are assumed for what follows.
func (s *Switch) traceOnce(ctx context.Context, bridge, flow string, req *TraceRequest, states []string) (string, error) {
	args := traceArgs(bridge, flow, req, states)
	text, err := s.appctl(ctx, args[0], args[1:]...)
	if err != nil && strings.Contains(err.Error(), "--names: unknown option") {
		err = fmt.Errorf("ofproto/trace without --names (Open vSwitch %s) tells no ports: %w", s.Snapshot().OVSVersion, ErrUnsupported)
	}
	return text, err
}

// traceArgs are those of ofproto/trace. What is assumed of a request's states it assumes by itself.
func traceArgs(bridge, flow string, req *TraceRequest, states []string) []string {
	args := []string{"ofproto/trace", "--names", bridge, flow}
	last := len(states)
	if !req.Reply {
		for last > 0 && states[last-1] == ctNew {
			last--
		}
		states = states[:last]
	}
	for _, state := range states {
		args = append(args, "--ct-next", state)
	}
	if req.Reply {
		for range maxRecirculations - len(states) {
			args = append(args, "--ct-next", ctReply)
		}
	}
	return args
}
