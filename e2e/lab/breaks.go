package lab

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// Causes that a break can have.
const (
	CauseFlow     = "flow"       // a flow drops or misses
	CausePolicy   = "policy"     // a security rule denies
	CauseTunnel   = "tunnel"     // a tunnel is set up wrong
	CauseStale    = "stale-vtep" // a flow sends to a host where the instance is not
	CauseUnderlay = "underlay"   // the fabric does not deliver
	CausePort     = "port"       // a port is not on its bridge
	CauseGuest    = "guest"      // delivered, but the guest does not take it
	CauseNone     = "none"       // unusual, but nothing is lost

	CauseMisdirected = "misdirected"       // a flow sends to another port than it should
	CauseLoss        = "loss"              // some are lost, some pass
	CauseTwice       = "twice"             // some come twice, none is lost
	CauseMember      = "underlay-member"   // one of several ways through the fabric does not deliver
	CauseProtocol    = "underlay-protocol" // the fabric does not deliver what is in a tunnel, and all else
	CauseMTU         = "path-mtu"          // the fabric does not deliver large packets
)

// BreakKind is a way to break the lab.
type BreakKind struct {
	Name    string `json:"kind"`
	Help    string `json:"help"`
	Form    string `json:"form"`    // of its target: INSTANCE, HOST, HOST:NETWORK, …
	Default string `json:"default"` // target, in a lab of the topology
	// Topology is the one that has the default target.
	Topology string `json:"topology"`
	Cause    string `json:"cause"`

	// dies tells in which segment a packet dies: the declared truth. For kinds of CauseLoss, loses
	// tells in which it may.
	dies  func(t target, l leg) segment
	loses func(t target, l leg) segment
	// maybe tells which packets may die besides, on the wire: by something in them that nobody chose.
	maybe func(t target, l leg) bool
	// large tells which packets would die on the wire if they were as large as guests may send, and
	// are not as they are.
	large func(t target, l leg) bool
	// twoWays: the fabric must have two ways from the first host.
	twoWays bool
	// at and edit are for those that change flows: on which host and bridge, and how.
	at   func(t target) (host, bridge string)
	edit func(t target, p overlay.Ports, flows []flow) []flow
	// apply and heal are for all others: commands that may be run twice.
	apply, heal func(w workshop, t target) []step
	// changed is what of hosts it changes besides the flows that edit does; nil is nothing.
	changed func(w workshop, t target) Change

	// moves says that the break moves the target's instance to its first host, which follows has
	// all hypervisors know or not; such breaks are done by turnMove.
	moves   bool
	follows func(t target, host string) bool
	tells   bool // the speakers tell of the move

	// anywhere says that it works whatever the network controller is; else it is for the controller
	// of the topology that has the default target.
	anywhere bool

	needsRouter bool // the target's network must have one
	forgets     bool // connections are forgotten, as Neutron does when a rule changes
}

// outcome returns what becomes of a probe that a break of this kind kills.
func (k *BreakKind) outcome() string {
	switch k.Cause {
	case CausePolicy:
		return Policy
	case CauseGuest:
		return Silent
	}
	return Faulty
}

// breakage is a kind with its target.
type breakage struct {
	kind   *BreakKind
	target target
}

func (b breakage) dies(l leg) segment {
	if b.kind.dies == nil {
		return unharmed
	}
	return b.kind.dies(b.target, l)
}

func (b breakage) loses(l leg) segment {
	if b.kind.loses == nil {
		return unharmed
	}
	return b.kind.loses(b.target, l)
}

// target is what a break is aimed at. A form fills the fields that it names, in order.
type target struct {
	spec      *overlay.Spec
	text      string
	hosts     []overlay.Host
	networks  []overlay.Network
	instances []overlay.Instance
	encap     string
	perMille  int // of PERCENT; 0 where how many depends on how many there are
}

func (t target) host() string               { return t.hosts[0].Name }
func (t target) other() string              { return t.hosts[1].Name }
func (t target) network() overlay.Network   { return t.networks[0] }
func (t target) instance() overlay.Instance { return t.instances[0] }
func (t target) src() overlay.Instance      { return t.instances[0] }
func (t target) dst() overlay.Instance      { return t.instances[1] }
func (t target) between(l leg) bool         { return t.oneWay(l) || t.oneWay(leg{from: l.to, to: l.from}) }
func (t target) oneWay(l leg) bool          { return l.from.Host == t.host() && l.to.Host == t.other() }
func (t target) sends(l leg) bool           { return l.crosses() && l.from.Host == t.host() }
func (t target) leavesRack(l leg) bool {
	from, _ := t.spec.Host(l.from.Host)
	to, _ := t.spec.Host(l.to.Host)
	rack := t.hosts[0].VTEP.Masked()
	return rack.Contains(from.VTEP.Addr()) && !rack.Contains(to.VTEP.Addr())
}
func (t target) receives(l leg) bool { return l.crosses() && l.to.Host == t.host() }

// networkMeant is the network that is named, else the instance's.
func (t target) networkMeant() overlay.Network {
	if len(t.networks) > 0 {
		return t.network()
	}
	n, _ := t.spec.Network(t.instance().Network)
	return n
}

// request reports whether the leg is a request to the target instance.
func (t target) request(l leg) bool { return !l.answer && l.to == t.instance() }

// diesIf returns in if the packet is hit, else unharmed.
func diesIf(hit bool, in segment) segment {
	if hit {
		return in
	}
	return unharmed
}

// BreakKinds returns all ways to break a lab.
func BreakKinds() []BreakKind {
	kinds := slices.Clone(allBreakKinds)
	for i := range kinds {
		if kinds[i].Topology == "" {
			kinds[i].Topology = DefaultName
		}
	}
	return kinds
}

// ErrBadBreak says that there is no such kind of break, or that it cannot have such a target.
var ErrBadBreak = errors.New("bad break")

func findKind(name string) (*BreakKind, error) {
	var names []string
	for i := range allBreakKinds {
		if allBreakKinds[i].Name == name {
			return &allBreakKinds[i], nil
		}
		names = append(names, allBreakKinds[i].Name)
	}
	return nil, fmt.Errorf("%w: kind %q: want one of %s", ErrBadBreak, name, strings.Join(names, ", "))
}

// aim reads a target in the kind's form. An empty text is the default. The error wraps
// ErrBadBreak.
func (k *BreakKind) aim(s *overlay.Spec, text string) (target, error) {
	if text == "" {
		text = k.Default
	}
	t := target{spec: s, text: text}
	if err := k.suits(s); err != nil {
		return t, err
	}
	forms, parts := strings.Split(k.Form, ":"), strings.Split(text, ":")
	err := fmt.Errorf("%d parts", len(parts))
	if len(parts) == len(forms) {
		err = nil
		for i, form := range forms {
			err = errors.Join(err, t.take(s, form, parts[i]))
		}
		if err == nil {
			err = t.validate(k)
		}
	}
	if err != nil {
		return t, fmt.Errorf("%w: %s: target %q: %w; want %s, such as %s", ErrBadBreak, k.Name, text, err, k.Form, k.Default)
	}
	return t, nil
}

// withOVN is the topology whose network controller is OVN.
const withOVN = "ovn"

// suits returns why a lab cannot be broken so.
func (k *BreakKind) suits(s *overlay.Spec) error {
	switch needs := k.Topology == withOVN; {
	case k.anywhere || needs == (s.OVN != nil):
		return nil
	case needs:
		return fmt.Errorf("%w: %s: is for labs whose network controller is OVN, such as of topology %s", ErrBadBreak, k.Name, withOVN)
	}
	return fmt.Errorf("%w: %s: is not for labs whose network controller is OVN", ErrBadBreak, k.Name)
}

// validate returns why the target, all of whose parts exist, makes no sense for a kind.
func (t target) validate(k *BreakKind) error {
	reaches := func(network string) bool { return t.spec.LocalVLANs(t.host())[network] != 0 }
	if k.moves {
		return t.validateMove()
	}
	switch {
	case len(t.hosts) == 2 && t.host() == t.other():
		return errors.New("the two hosts are one")
	case len(t.instances) == 2 && t.src() == t.dst():
		return errors.New("the two instances are one")
	case len(t.instances) == 2 && !t.spec.Joined(t.src().Network, t.dst().Network):
		return errors.New("the two do not reach each other anyway")
	case len(t.hosts) == 1 && len(t.networks) == 1 && !reaches(t.network().Name):
		return errors.New("the host does not have the network")
	case k.needsRouter && t.networkMeant().Router == "":
		return errors.New("the network has no router")
	case len(t.hosts) == 1 && len(t.instances) == 1 && (t.instance().Host == t.host() || !reaches(t.instance().Network)):
		return errors.New("the host has no tunnel to the instance")
	}
	return nil
}

func (t *target) take(s *overlay.Spec, form, name string) error {
	ok := false
	switch form {
	case "HOST":
		var h overlay.Host
		h, ok = s.Host(name)
		t.hosts = append(t.hosts, h)
	case "NETWORK":
		var n overlay.Network
		n, ok = s.Network(name)
		t.networks = append(t.networks, n)
	case "ENCAP":
		t.encap, ok = name, name == overlay.GRE || name == overlay.VXLAN
	case "PERCENT":
		share, err := strconv.ParseFloat(name, 64)
		t.perMille = int(math.Round(share * 10))
		ok = err == nil && t.perMille > 0 && t.perMille < 1000
	default: // INSTANCE, SRC, DST
		var i overlay.Instance
		i, ok = s.Instance(name)
		t.instances = append(t.instances, i)
	}
	if !ok {
		return fmt.Errorf("there is no %s %q", strings.ToLower(form), name)
	}
	return nil
}

// encapOf returns how a leg crosses: routing is done on the sender's host, so by the
// receiver's network.
func (t target) encapOf(l leg) string {
	n, _ := t.spec.Network(l.to.Network)
	return n.Encap
}
