package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/stain"
)

// TTL that probes start with, the hop limit in IPv6, as Linux guests do
// (net.ipv4.ip_default_ttl, net.ipv6.conf.*.hop_limit).
const TTL = 64

// maxChain bounds how many bridges lie between an instance and its tunnels. Two are usual;
// the bound only keeps a loop of patches from looping us.
const maxChain = 4

// Direction of travel; the numbers are the contract's.
type Direction uint8

// Directions.
const (
	Forward Direction = iota + 1
	// Reply is the guest's answer.
	Reply
)

func (d Direction) String() string {
	switch d {
	case Forward:
		return "forward"
	case Reply:
		return "reply"
	}
	return "unknown"
}

// Path is the way that a pair's probe should take, there and back; there only in no-touch.
type Path struct {
	Pair Pair
	// From and To are where source and destination are attached.
	From, To End
	// Inject is where the probe enters, as if the source had sent it there.
	Inject Inject
	// Blocked says why nothing can, or may, be injected; nil where it can.
	Blocked *Blocked

	// What the probe is as the source would send it. DstMAC is the destination's, or the
	// gateway's of the source's network where a router lies between.
	SrcMAC, DstMAC stain.MAC
	// Src and Dst are of one IP version, and link-local both or neither.
	Src, Dst netip.Addr
	// TTL is the hop limit in IPv6.
	TTL uint8

	// Points are in the order of passage, the answer's after the probe's.
	Points []Expected
	// NoTouch says that no guest may see the probe: the points are those of the way there, and
	// the last is to-instance at the destination. Where that is not sampled the path is Blocked.
	NoTouch bool
	// Back is the way back in no-touch, a path of its own between the same addresses, with
	// forward points only and without a Back; nil otherwise.
	Back *Path
	// VTEPs says whose a tunnel address is. Shared between paths, never changed.
	VTEPs map[netip.Addr]string
	// Now is Options.Now.
	Now time.Time
}

// End is where an instance is attached.
type End struct {
	Host string
	// Bridge and Port are empty where they are not known.
	Bridge, Port string
	// OFPort is the port's OpenFlow number, 0 where it is not known.
	OFPort uint32
	// LinkDown is true where Open vSwitch sees no carrier on the port.
	LinkDown bool
	// Unsampled says why there is no point to-instance at its port, though its bridge has it.
	Unsampled string
	// Absent says that the host's agent has no port for the instance, in words; a fact about
	// the host. Empty where there is one, or where no agent could tell.
	Absent string
	// Blind says why we cannot tell where the instance is attached: no agent reports the host
	// now, or which of its ports is the instance's is not clear. Empty otherwise.
	Blind string
	// Gap says that the bridge of the instance has no patch to the host's tunnels, in words.
	Gap string
	// VTEPs are the host's own tunnel addresses, Tunnels its tunnel ports, as far as known.
	// Both are shared and never changed.
	VTEPs   []netip.Addr
	Tunnels []inventory.Tunnel
	// Echo is where the host answers underlay probes; nil where its agent does not tell.
	Echo *inventory.Echo
	// MTU of the instance's port, 0 where it is not known.
	MTU int
	// Confirmed says that an agent which is connected reports the instance's port on the host, and
	// none a port that fits on a host where Learned has it instead.
	Confirmed bool
	// Learned is what routes say of the instance, Disagree where that is not what the inventory
	// says, in words; empty otherwise.
	Learned  Learned
	Disagree string
}

// Inject names the port where probes enter.
type Inject struct {
	Host, Bridge, Port string
}

// Blocked is why a pair cannot be probed.
type Blocked struct {
	Reason string
	By     Obstacle
}

// Absent says that the source has no port: a fact about the host, and so a fault of the network.
// Otherwise it is we who cannot.
func (b *Blocked) Absent() bool { return b.By == ByPort }

// Obstacle is the sort of what keeps a pair from being probed.
type Obstacle uint8

// Obstacles.
const (
	ByPort      Obstacle = iota + 1 // the source has none
	ByInventory                     // where an instance is, is not known
	ByAgent                         // not connected
	ByHook                          // the source's bridge has none
	ByDelivery                      // in no-touch: nothing sees it
)

// Expected is a sampling point that should see the packet, and what it should see.
type Expected struct {
	Host      string
	Bridge    string
	Kind      stain.Kind
	Direction Direction
	// TTL is what it should have there. An answer is taken to start with 64.
	TTL uint8
	// SrcMAC and DstMAC are the packet's there, as far as distributed routing says.
	SrcMAC, DstMAC stain.MAC
	// TunID is the tunnel key of the network that it travels in; 0 where the inventory does
	// not tell.
	TunID uint32
	// OFPort is the port by which the packet leaves, of a point to-instance; 0 where it is not
	// known, and of all others. Seen leaving by another port, it was not delivered.
	OFPort uint32
	// Absent says why the point does not exist, in words: the packet should pass there, but no
	// hook samples it. Such a point is never missed, and only tells where the way goes.
	Absent string
}

func (e Expected) String() string { return e.Host + "/" + e.Bridge + " " + e.Kind.String() }

// Index returns which point of the path this is; ok is false where it is none.
func (p *Path) Index(host, bridge string, kind stain.Kind, d Direction) (i int, ok bool) {
	for i := range p.Points {
		e := &p.Points[i]
		if e.Kind == kind && e.Direction == d && e.Bridge == bridge && e.Host == host {
			return i, true
		}
	}
	return -1, false
}

// Hosts returns the hosts whose agents take part: those that have a point.
func (p *Path) Hosts() []string {
	var hosts []string
	for i := range p.Points {
		if h := p.Points[i].Host; !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// Of returns the path of a pair. Where something is missing it says so in the path (Blocked,
// End.Absent, End.Blind): that is a finding, not an error. The error is for a pair that has no
// path by the inventory, or no addresses of the IP version asked for; it wraps ErrNoPath or
// inventory.ErrUnknown where it is one of those.
func Of(snap *inventory.Snapshot, pair Pair, opts Options) (Path, error) {
	if err := opts.check(); err != nil {
		return Path{}, err
	}
	if !Joined(snap, pair.Src.Network, pair.Dst.Network) {
		return Path{}, fmt.Errorf("%s: %w: %s", pair, ErrNoPath, apart(snap, pair.Src.Network, pair.Dst.Network))
	}
	srcNet, ok := snap.Network(pair.Src.Network)
	if !ok {
		return Path{}, fmt.Errorf("%s: network %q: %w", pair, pair.Src.Network, inventory.ErrUnknown)
	}
	dstNet, _ := snap.Network(pair.Dst.Network)
	src, dst, ok := addresses(pair, srcNet, dstNet, opts.Version)
	if !ok {
		_, err := refuse(pair, srcNet, dstNet, opts.Version)
		return Path{}, fmt.Errorf("%s: %w", pair, err)
	}

	there := way{pair, srcNet, dstNet, src, dst, locate(snap, pair.Src), locate(snap, pair.Dst)}
	there.compare(snap, opts)
	back := there.back()
	if opts.NoTouch {
		p, b := there.untouched(), back.untouched()
		p.VTEPs, b.VTEPs = snap.VTEPs(), snap.VTEPs()
		p.Now, b.Now = opts.Now, opts.Now
		p.Back = &b
		return p, nil
	}
	p := there.path(there.points(Forward), back.points(Reply))
	p.VTEPs, p.Now = snap.VTEPs(), opts.Now
	return p, nil
}

// way is a pair with all that its path is made of.
type way struct {
	pair           Pair
	srcNet, dstNet inventory.Network
	src, dst       netip.Addr
	from, to       site
}

// back is the way of who answers.
func (w *way) back() way {
	return way{Pair{w.pair.Dst, w.pair.Src}, w.dstNet, w.srcNet, w.dst, w.src, w.to, w.from}
}

func (w *way) leg(d Direction) leg {
	return leg{d, TTL, w.pair.Src, w.pair.Dst, w.srcNet, w.dstNet}
}

// path is the path with these points.
func (w *way) path(points ...[]Expected) Path {
	return Path{
		Pair: w.pair, From: w.from.End, To: w.to.End,
		Inject: Inject{w.from.Host, w.from.Bridge, w.from.Port}, Blocked: w.from.blocked(),
		SrcMAC: w.pair.Src.MAC, DstMAC: w.leg(Forward).sent().dstMAC,
		Src: w.src, Dst: w.dst, TTL: TTL,
		Points: slices.Concat(points...),
	}
}

// points are those of the way, in one direction.
func (w *way) points(d Direction) []Expected {
	l := w.leg(d)
	if w.from.Host == w.to.Host {
		return l.within(w.from, w.to)
	}
	return append(l.out(w.from), l.in(w.to)...)
}

// untouched is the path of a probe that no guest may see. What is not sampled on its way to a
// guest is not stopped there either, so nothing may be sent where that point does not exist.
func (w *way) untouched() Path {
	p := w.path(w.points(Forward))
	p.NoTouch = true
	if why := w.to.undelivered(); p.Blocked == nil && why != "" {
		at := w.pair.Dst.Ref()
		if w.to.Port != "" {
			at = w.to.Port
		}
		if w.to.Host != "" {
			at += " of " + w.to.Host
		}
		p.Blocked = &Blocked{fmt.Sprintf("no-touch: to-instance is not sampled at %s: %s", at, why), ByDelivery}
		if !w.to.connected {
			p.Blocked.By = ByAgent
		}
	}
	return p
}

// site is an end with the bridges between the instance and its tunnels.
type site struct {
	End
	connected bool
	chain     []*dyetracev1.Bridge // chain[0] is the instance's
}

func locate(snap *inventory.Snapshot, in inventory.Instance) site {
	ep, err := snap.Endpoint(in)
	s := site{End: End{Host: in.Host, Port: in.Port}}
	if err == nil {
		s.End = End{Host: ep.Host, Bridge: ep.Bridge, Port: ep.Port, OFPort: ep.OFPort, LinkDown: ep.LinkState == "down", Unsampled: ep.Unsampled, MTU: ep.MTU}
	}
	h, known := snap.Host(s.Host)
	s.connected = h.Connected
	s.Confirmed = err == nil && s.connected && fits(ep, in)
	s.VTEPs, s.Tunnels, s.Echo = h.VTEPs(), h.Tunnels(), h.Echo()
	switch {
	case in.Host == "" && err != nil:
		s.Blind = err.Error() // it may be on a host that has no agent
	case !known:
		s.Blind = fmt.Sprintf("no agent has reported host %s", s.Host)
	case errors.Is(err, inventory.ErrNoEndpoint) && s.connected:
		s.Absent, s.Blind = absence(snap, in, h)
	case errors.Is(err, inventory.ErrNoEndpoint):
		s.Blind = fmt.Sprintf("the agent of %s is not connected", s.Host)
	case err != nil:
		s.Blind = err.Error()
	}
	if s.Bridge == "" {
		s.Bridge = usualBridge(h)
	}
	s.chain, s.Gap = chain(h, s.Bridge)
	return s
}

// fits says that nothing tells a port from the instance's. One that was found by its name may be
// another guest's by now: hypervisors use the names of taps again.
func fits(ep inventory.Endpoint, in inventory.Instance) bool {
	if ep.IfaceID == in.Ref() || ep.MAC == "" {
		return true
	}
	mac, err := stain.ParseMAC(ep.MAC)
	return err == nil && mac == in.MAC
}

// absence words that an instance has no port on its host. Where another host has a port with
// the instance's iface-id, it is the inventory that is wrong, not the network: moved says so.
// A MAC elsewhere is no proof, since another tenant may use the same.
func absence(snap *inventory.Snapshot, in inventory.Instance, h inventory.Host) (absent, moved string) {
	bridge := usualBridge(h)
	if bridge == "" {
		bridge = "any bridge"
	}
	absent = fmt.Sprintf("no port for %s (%s) on %s of %s", in.Name, in.MAC, bridge, in.Host)
	if in.Port != "" {
		absent = fmt.Sprintf("%s is not on %s of %s", in.Port, bridge, in.Host)
	}
	for _, ep := range snap.Sightings(in) {
		if ep.Host != in.Host && (ep.IfaceID == in.Ref() || ep.IfaceID == in.Name) {
			return "", fmt.Sprintf("%s says that %s is on %s, but it is %s of %s", in.Source, in.Name, in.Host, ep.Port, ep.Host)
		}
	}
	return absent, ""
}

// usualBridge is where the host attaches instances: the one bridge that has endpoints, or has
// an uplink to the tunnels, or samples what comes from instances; empty where that is not one.
func usualBridge(h inventory.Host) string {
	var used, joined, able []string
	for _, e := range h.Endpoints {
		if !slices.Contains(used, e.GetBridge()) {
			used = append(used, e.GetBridge())
		}
	}
	for _, b := range h.Bridges {
		if slices.Contains(b.GetKinds(), dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE) {
			able = append(able, b.GetName())
			if b.GetUplinkBridge() != "" {
				joined = append(joined, b.GetName())
			}
		}
	}
	for _, found := range [][]string{used, joined, able} {
		if len(found) == 1 {
			return found[0]
		}
	}
	return ""
}

// chain follows a bridge's uplinks to the tunnels. Where they end short of any tunnel, while
// one other bridge of the host has tunnels, that one is where they ought to lead: gap says so.
func chain(h inventory.Host, bridge string) (c []*dyetracev1.Bridge, gap string) {
	b, ok := h.Bridge(bridge)
	for ; ok && len(c) < maxChain && !slices.Contains(c, b); b, ok = h.Bridge(b.GetUplinkBridge()) {
		c = append(c, b)
	}
	if len(c) == 0 || len(c[len(c)-1].GetTunnels()) > 0 {
		return c, ""
	}
	var tunnels []*dyetracev1.Bridge
	for _, b := range h.Bridges {
		if len(b.GetTunnels()) > 0 && !slices.Contains(c, b) {
			tunnels = append(tunnels, b)
		}
	}
	if len(tunnels) != 1 {
		return c, ""
	}
	gap = fmt.Sprintf("%s of %s has no patch port to %s, where the tunnels are", c[len(c)-1].GetName(), h.Name, tunnels[0].GetName())
	return append(c, tunnels[0]), gap
}

// blocked says why the site cannot inject; nil if it can.
func (s site) blocked() *Blocked {
	switch {
	case s.Absent != "":
		return &Blocked{s.Absent, ByPort}
	case s.Blind != "":
		if s.Host != "" && !s.connected {
			return &Blocked{s.Blind, ByAgent}
		}
		return &Blocked{s.Blind, ByInventory}
	case !s.connected:
		return &Blocked{fmt.Sprintf("the agent of %s is not connected", s.Host), ByAgent}
	case len(s.chain) == 0:
		return &Blocked{fmt.Sprintf("%s of %s is on %s, which has no hook", s.Port, s.Host, s.Bridge), ByHook}
	}
	if why := lacks(s.chain[0], stain.FromInstance); why != "" {
		return &Blocked{fmt.Sprintf("%s/%s: %s", s.Host, s.Bridge, why), ByHook}
	}
	return nil
}

// undelivered says why there is no point to-instance at the site, known to be at the instance's
// port, with an agent to watch it; empty if there is.
func (s site) undelivered() string {
	switch {
	case s.Absent != "":
		return s.Absent
	case s.Blind != "":
		return s.Blind
	case !s.connected:
		return fmt.Sprintf("the agent of %s is not connected", s.Host)
	case s.Unsampled != "":
		return s.Unsampled
	case len(s.chain) == 0:
		return s.Bridge + " has no hook"
	}
	return lacks(s.chain[0], stain.ToInstance)
}

// lacks says why a bridge has no point of that kind; empty if it has. A hook that was refused
// samples nothing; one that is being restored counts, and the audit tells whether it was in time.
func lacks(b *dyetracev1.Bridge, k stain.Kind) string {
	kind := dyetracev1.PointKind(k)
	switch b.GetState() {
	case dyetracev1.HookState_HOOK_STATE_REFUSED:
		return "no hook: " + b.GetReason()
	case dyetracev1.HookState_HOOK_STATE_ABSENT:
		if len(b.GetKinds()) == 0 { // never was there, so that it is not known what it will see
			return "no hook yet: " + b.GetReason()
		}
	}
	for _, a := range b.GetAbsent() {
		if a.GetKind() == kind {
			return a.GetReason()
		}
	}
	if !slices.Contains(b.GetKinds(), kind) {
		return fmt.Sprintf("its hook does not sample %s", k)
	}
	return ""
}

// leg is one direction: who sends to whom, through which networks.
type leg struct {
	direction    Direction
	ttl          uint8
	src, dst     inventory.Instance
	srcNet, dNet inventory.Network
}

// look is what a packet looks like somewhere.
type look struct {
	srcMAC, dstMAC stain.MAC
	ttl            uint8
	tunID          uint32
}

// sent is the packet as the sender sends it.
func (l leg) sent() look {
	dst := l.dst.MAC
	if l.srcNet.Name != l.dNet.Name {
		dst = l.srcNet.GatewayMAC
	}
	return look{l.src.MAC, dst, l.ttl, l.srcNet.SegmentationID}
}

// routed is the packet once the sender's bridge has passed it on.
func (l leg) routed() look {
	if l.srcNet.Name == l.dNet.Name {
		return l.sent()
	}
	return look{l.dNet.GatewayMAC, l.dst.MAC, l.ttl - 1, l.dNet.SegmentationID}
}

func (l leg) point(s site, b *dyetracev1.Bridge, k stain.Kind, v look) Expected {
	return Expected{
		Host: s.Host, Bridge: b.GetName(), Kind: k, Direction: l.direction,
		TTL: v.ttl, SrcMAC: v.srcMAC, DstMAC: v.dstMAC, TunID: v.tunID,
		Absent: lacks(b, k),
	}
}

// out is the way from the sender up to its tunnels.
func (l leg) out(s site) []Expected {
	ps := make([]Expected, 0, 2*len(s.chain)+2) // and the way in
	for i, b := range s.chain {
		if i == 0 {
			ps = append(ps, l.point(s, b, stain.FromInstance, l.sent()))
		} else {
			ps = append(ps, l.point(s, b, stain.ToTunnel, l.routed()))
		}
	}
	return ps
}

// in is the way from the tunnels down to the receiver. A host without tunnels, on a VLAN of
// the underlay, has no such points.
func (l leg) in(s site) []Expected {
	ps := make([]Expected, 0, len(s.chain)+1)
	for _, b := range slices.Backward(s.chain) {
		pt := l.point(s, b, stain.FromTunnel, l.routed())
		if len(s.chain) > 1 || len(b.GetTunnels()) > 0 || pt.Absent == "" {
			ps = append(ps, pt)
		}
	}
	return append(ps, l.deliver(s)...)
}

// within is the way between two instances of one host.
func (l leg) within(from, to site) []Expected {
	var ps []Expected
	if len(from.chain) > 0 {
		ps = append(ps, l.point(from, from.chain[0], stain.FromInstance, l.sent()))
	}
	return append(ps, l.deliver(to)...)
}

// deliver is the last step, which only some switches can show.
func (l leg) deliver(s site) []Expected {
	if len(s.chain) == 0 || lacks(s.chain[0], stain.ToInstance) != "" || s.Unsampled != "" {
		return nil
	}
	at := l.point(s, s.chain[0], stain.ToInstance, l.routed())
	at.OFPort = s.OFPort
	return []Expected{at}
}
