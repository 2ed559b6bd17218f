package ovs

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/dyetrace/dyetrace/stain"
)

// Flows may do one thing with a packet of a connection, another with the first of one, and another yet
// with one that belongs to none. ofproto/trace asks no table of connections: it takes what it is told
// (--ct-next). So what it is told is looked up, zone by zone as the packet comes to them.

// maxConnections is how many connections a table may have for it to be listed: ovs-vswitchd's main thread
// does it, some microseconds each.
const maxConnections = 20_000

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
	unlisted standing = iota // the table could not be read
	stranger                 // it is of none
	sender                   // it goes the way of the first packet of one
	answerer                 // it goes the other way
)

// connections are those of the zones that were listed.
type connections struct {
	listed bool
	lines  []string
}

// connections lists the connections of a switch's datapaths; that of a table too large is none.
func (s *Switch) connections(ctx context.Context) connections {
	count, err := s.appctl(ctx, "dpctl/ct-get-nconns")
	if n, convErr := strconv.Atoi(strings.TrimSpace(count)); err != nil || convErr != nil || n > maxConnections {
		return connections{} // the kernel's table does not say how many it has
	}
	text, err := s.appctl(ctx, "dpctl/dump-conntrack")
	if err != nil {
		return connections{}
	}
	return connections{true, strings.Split(text, "\n")}
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
		return unlisted
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
			case r.Reply && r.Scheme == stain.ICMP && m[1] == "orig":
				continue // begun by an echo request of who answers now, and no matter of this answer
			case m[1] == "reply":
				return answerer
			}
			return sender
		}
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

// state is that of a packet by how it stands to the connections of a zone; sure is false where it may as
// well be another, which alternative is.
func (r *TraceRequest) state(s standing) (state, alternative string) {
	switch {
	case s == answerer:
		return ctReply, ""
	case s == sender:
		return ctEst, ""
	case s == stranger && r.Reply:
		// It may have been one: the kernel forgets a connection as soon as a RST answers it
		// (nf_conntrack_tcp_packet of nf_conntrack_proto_tcp.c), and everybody after a while.
		return ctReply, ctNobody
	}
	return r.assumed(), ""
}

// traced is what ofproto/trace printed, and by which states.
type traced struct {
	text   string
	states []string
	others []string // where a state may be another one: which
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
			state, other := req.state(known.of(req, zone))
			t.states, t.others = append(t.states, state), append(t.others, other)
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

// doubted returns the states that a packet may have had as well, nil if there are no others.
func (t *traced) doubted() []string {
	if !slices.ContainsFunc(t.others, func(o string) bool { return o != "" }) {
		return nil
	}
	states := slices.Clone(t.states)
	for i, o := range t.others {
		if o != "" {
			states[i] = o
			return states[:i+1] // the rest hangs on it
		}
	}
	return states
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
