package lab

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// Kinds of sampling point: how a packet came to the bridge.
const (
	FromInstance = "from-instance" // br-int, from a tap
	ToTunnel     = "to-tunnel"     // br-tun, from patch-int
	FromTunnel   = "from-tunnel"   // from a tunnel; br-int, from patch-tun
)

// Ways of a packet of a probe.
const (
	Request = "request" // from source to destination
	Answer  = "answer"  // what the destination's kernel says to it
)

// Schemes by which a probe is made.
const (
	TCP  = "tcp"  // a SYN to port 11, where guests do not listen
	ICMP = "icmp" // an echo request
)

// Schemes returns all schemes.
func Schemes() []string { return []string{TCP, ICMP} }

// ProbedPort is the TCP port, at both ends, of a probe of scheme TCP.
const ProbedPort = 11

// Traffic is of what sort a probe is; what becomes of it may depend on both.
type Traffic struct {
	Scheme string          `json:"scheme"`
	IP     overlay.Version `json:"ip"`
}

// TCP4 is the traffic of which is told where nobody asks for another.
var TCP4 = Traffic{TCP, overlay.V4}

// NewTraffic returns the traffic of a scheme over an IP version, if there are both.
func NewTraffic(scheme string, version int) (Traffic, error) {
	t := Traffic{scheme, overlay.Version(version)}
	if !slices.Contains(Schemes(), scheme) {
		return t, fmt.Errorf("scheme %q: want one of %s", scheme, strings.Join(Schemes(), ", "))
	}
	if !slices.Contains(overlay.Versions(), t.IP) {
		return t, fmt.Errorf("IP version %d: want 4 or 6", version)
	}
	return t, nil
}

// String returns, say, "tcp over IPv4".
func (t Traffic) String() string { return fmt.Sprintf("%s over IPv%d", t.Scheme, t.IP) }

// Outcomes of a probe.
const (
	Healthy = "healthy"
	Faulty  = "faulty" // the network, or a port, loses it
	Policy  = "policy" // a security rule denies it
	Silent  = "silent" // the guest got it, and did not answer
)

// Point is a place that a packet passes: it enters this bridge, and none of the bridge's own
// flows has touched it yet.
type Point struct {
	Host   string `json:"host"`
	Bridge string `json:"bridge"`
	Kind   string `json:"kind"`
	Way    string `json:"way"`
}

// Fate is what becomes of a probe of any source in Src to any destination in Dst.
type Fate struct {
	Src          []string `json:"src"`
	Dst          []string `json:"dst"`
	LastSeen     *Point   `json:"last_seen"` // nil if no point sees it
	FirstMissing Point    `json:"first_missing"`
	Outcome      string   `json:"outcome"` // Faulty, Policy or Silent
}

// Reach is a set of pairs: each source with each destination.
type Reach struct {
	Src []string `json:"src"`
	Dst []string `json:"dst"`
}

// Truth is what a break, or several, do to probes of one sort that enter at the source's tap.
// Pairs that have the IP version and are named nowhere are healthy. It follows from where each
// break declares that packets die, and from nothing else.
type Truth struct {
	Traffic
	Causes []string `json:"causes"` // one for each break
	Fates  []Fate   `json:"fates"`
	// Unseen pairs fail for the guests, while every sampling point sees probes pass: the
	// answer dies on its last way, between the source's br-int, or the switch before it, and the
	// source.
	Unseen []Reach `json:"unseen"`
	// Losses are pairs of which a share of the probes die, of those that nothing kills for certain.
	Losses []Loss `json:"losses"`
	// Maybe are pairs of which nobody knows whether they are hit: it is told by something in their
	// packets that nobody chose. If they are, these die there: a pair has one for each way.
	Maybe []Fate `json:"maybe"`
	// Large are pairs whose packets die there if they are as large as guests may send.
	Large []Fate `json:"large"`
	// Changes are what was done to the lab, in the order of Causes; none of a lab that is not up.
	Changes []Change `json:"changes"`
}

// Loss is a fate that some probes of its pairs have.
type Loss struct {
	Fate
	// PerMille of the probes, by chance; 0 where it depends on how many there are.
	PerMille int `json:"per_mille"`
}

// segment is a part of a packet's way from one instance to another.
type segment int

const (
	unharmed    segment = iota
	atEntry             // there is no port to enter by
	inSwitch            // between the sender's br-int and its br-tun, or the other instance of the host
	onWire              // between the sender's br-tun and the receiver's
	atIngress           // between the receiver's br-tun and its br-int
	atDelivery          // between the receiver's br-int and the guest
	withinGuest         // in the guest, which got it
)

// leg is one packet's way: a request, or the answer to one.
type leg struct {
	Traffic
	from, to overlay.Instance
	answer   bool
	// Bare-metal instances are behind a switch, where there are no points.
	fromBare, toBare bool
	// single says that hypervisors have the tunnels on br-int, and no other bridge.
	single bool
}

// crosses reports whether the leg leaves its host.
func (l leg) crosses() bool { return l.from.Host != l.to.Host }

// earliest returns the first segment in which one of the breaks kills the leg, and what that
// makes of the probe.
func (l leg) earliest(breaks []breakage) (first segment, outcome string) {
	outcome = Healthy
	for _, b := range breaks {
		if s := b.dies(l); s != unharmed && (first == unharmed || s < first) {
			first, outcome = s, b.kind.outcome()
		}
	}
	return first, outcome
}

// passage is a point on a leg's way.
type passage struct {
	Point
	after segment // it is passed unless the packet dies in this segment, or before
}

// passages returns the points that the leg passes, in order. A switch has none.
func (l leg) passages() []passage {
	way := Request
	if l.answer {
		way = Answer
	}
	point := func(i overlay.Instance, bridge, kind string, after segment) passage {
		return passage{Point{i.Host, bridge, kind, way}, after}
	}
	var passages []passage
	if !l.fromBare {
		passages = append(passages, point(l.from, overlay.Integration, FromInstance, atEntry))
		if l.crosses() && !l.single {
			passages = append(passages, point(l.from, overlay.Tunnel, ToTunnel, inSwitch))
		}
	}
	switch {
	case l.toBare || !l.crosses():
	case l.single:
		passages = append(passages, point(l.to, overlay.Integration, FromTunnel, onWire))
	default:
		passages = append(passages,
			point(l.to, overlay.Tunnel, FromTunnel, onWire),
			point(l.to, overlay.Integration, FromTunnel, atIngress))
	}
	return passages
}

// points returns the leg's points, and how many of them it passes if it dies in s.
func (l leg) points(s segment) (points []Point, passed int) {
	for _, p := range l.passages() {
		points = append(points, p.Point)
		if s == unharmed || s > p.after {
			passed++
		}
	}
	return points, passed
}

// ending is what becomes of the probe of one pair.
type ending struct {
	last    *Point
	missing *Point // nil: no point misses it
	outcome string
}

// legs returns the two ways of a pair's probe.
func legs(s *overlay.Spec, t Traffic, p overlay.Pair) (request, answer leg) {
	single := s.TunnelBridge() == overlay.Integration
	request = leg{t, p.Src, p.Dst, false, s.Bare(p.Src), s.Bare(p.Dst), single}
	answer = leg{t, p.Dst, p.Src, true, request.toBare, request.fromBare, single}
	return request, answer
}

// probe walks a probe of a pair through the lab: the request, then the answer.
func probe(s *overlay.Spec, t Traffic, p overlay.Pair, breaks []breakage) ending {
	request, answer := legs(s, t, p)
	died, outcome := request.earliest(breaks)
	path, passed := request.points(died)
	if died != unharmed {
		back, _ := answer.points(unharmed)
		path = append(path, back...)
	} else {
		died, outcome = answer.earliest(breaks)
		back, more := answer.points(died)
		path, passed = append(path, back...), passed+more
	}
	o := ending{outcome: outcome}
	if died == unharmed {
		return o
	}
	if passed > 0 {
		o.last = &path[passed-1]
	}
	if passed < len(path) {
		o.missing = &path[passed]
	}
	return o
}

// truthOf works out what breaks do together to every pair that would reach each other, wherever
// they move instances to.
func truthOf(s *overlay.Spec, traffic Traffic, breaks []breakage) Truth {
	t := Truth{Traffic: traffic, Causes: []string{}, Fates: []Fate{}, Unseen: []Reach{}, Losses: []Loss{}, Maybe: []Fate{}, Large: []Fate{}, Changes: []Change{}}
	for _, b := range breaks {
		t.Causes = append(t.Causes, b.kind.Cause)
	}
	s = placed(s, breaks)
	for _, p := range s.PairsOver(traffic.IP) {
		o := probe(s, traffic, p, breaks)
		switch {
		case o.missing != nil:
			t.Fates = addFate(t.Fates, p, o)
		case o.outcome != Healthy:
			t.Unseen = addReach(t.Unseen, p)
		default:
			t.Losses = append(t.Losses, losses(s, traffic, p, breaks)...)
		}
		for _, b := range breaks {
			t.Maybe = addEach(t.Maybe, s, traffic, p, b.kind.maybe, b.target)
			t.Large = addEach(t.Large, s, traffic, p, b.kind.large, b.target)
		}
	}
	t.Fates, t.Unseen = mergeFates(t.Fates), mergeReaches(t.Unseen)
	t.Maybe, t.Large = mergeFates(t.Maybe), mergeFates(t.Large)
	return t
}

// losses returns where probes of a pair may die, in the order of their way.
func losses(s *overlay.Spec, t Traffic, p overlay.Pair, breaks []breakage) []Loss {
	request, answer := legs(s, t, p)
	there, _ := request.points(unharmed)
	back, _ := answer.points(unharmed)
	path := append(slices.Clone(there), back...)
	var all []Loss
	for _, l := range []leg{request, answer} {
		for _, b := range breaks {
			in := b.loses(l)
			if in == unharmed {
				continue
			}
			_, passed := l.points(in)
			if l.answer {
				passed += len(there)
			}
			if passed == 0 || passed == len(path) {
				continue // where no point tells
			}
			all = append(all, Loss{Fate{[]string{p.Src.Name}, []string{p.Dst.Name}, &path[passed-1], path[passed], Faulty}, b.target.perMille})
		}
	}
	return all
}

// addEach adds where packets of a pair die between the hosts, there and back, if they are hit.
func addEach(fates []Fate, s *overlay.Spec, traffic Traffic, p overlay.Pair, hits func(target, leg) bool, t target) []Fate {
	if hits == nil {
		return fates
	}
	request, answer := legs(s, traffic, p)
	there, _ := request.points(unharmed)
	back, _ := answer.points(unharmed)
	path := append(slices.Clone(there), back...)
	for _, l := range []leg{request, answer} {
		if !hits(t, l) {
			continue
		}
		_, passed := l.points(onWire)
		if l.answer {
			passed += len(there)
		}
		if passed > 0 && passed < len(path) {
			fates = addFate(fates, p, ending{&path[passed-1], &path[passed], Faulty})
		}
	}
	return fates
}

// addFate adds a pair to the fates, one for each source.
func addFate(fates []Fate, p overlay.Pair, o ending) []Fate {
	fate := Fate{[]string{p.Src.Name}, []string{p.Dst.Name}, o.last, *o.missing, o.outcome}
	for i, f := range fates {
		if f.Src[0] == p.Src.Name && sameEnd(f, fate) {
			if slices.Contains(f.Dst, p.Dst.Name) {
				return fates // by two breaks
			}
			fates[i].Dst = append(f.Dst, p.Dst.Name)
			return fates
		}
	}
	return append(fates, fate)
}

func sameEnd(a, b Fate) bool {
	return a.Outcome == b.Outcome && a.FirstMissing == b.FirstMissing && (a.LastSeen == nil) == (b.LastSeen == nil) &&
		(a.LastSeen == nil || *a.LastSeen == *b.LastSeen)
}

// mergeFates joins those that differ in the source only.
func mergeFates(fates []Fate) []Fate {
	merged := []Fate{}
	for _, f := range fates {
		i := slices.IndexFunc(merged, func(m Fate) bool { return sameEnd(m, f) && slices.Equal(m.Dst, f.Dst) })
		if i < 0 {
			merged = append(merged, f)
		} else {
			merged[i].Src = append(merged[i].Src, f.Src...)
		}
	}
	return merged
}

func addReach(reaches []Reach, p overlay.Pair) []Reach {
	for i, r := range reaches {
		if r.Src[0] == p.Src.Name {
			if slices.Contains(r.Dst, p.Dst.Name) {
				return reaches
			}
			reaches[i].Dst = append(r.Dst, p.Dst.Name)
			return reaches
		}
	}
	return append(reaches, Reach{[]string{p.Src.Name}, []string{p.Dst.Name}})
}

func mergeReaches(reaches []Reach) []Reach {
	merged := []Reach{}
	for _, r := range reaches {
		i := slices.IndexFunc(merged, func(m Reach) bool { return slices.Equal(m.Dst, r.Dst) })
		if i < 0 {
			merged = append(merged, r)
		} else {
			merged[i].Src = append(merged[i].Src, r.Src...)
		}
	}
	return merged
}

// Failing returns whether guests of a pair, by name, get no answer from each other.
func (t Truth) Failing(src, dst string) bool {
	has := func(s, d []string) bool { return slices.Contains(s, src) && slices.Contains(d, dst) }
	return slices.ContainsFunc(t.Fates, func(f Fate) bool { return has(f.Src, f.Dst) }) ||
		slices.ContainsFunc(t.Unseen, func(r Reach) bool { return has(r.Src, r.Dst) })
}

// Maybes returns whether nobody knows if guests of a pair get an answer from each other.
func (t Truth) Maybes(src, dst string) bool {
	return slices.ContainsFunc(t.Maybe, func(f Fate) bool { return slices.Contains(f.Src, src) && slices.Contains(f.Dst, dst) })
}
