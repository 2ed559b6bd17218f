package inventory

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/stain"
)

// What may keep an instance from having an endpoint. Only the second is a fact about the
// network; the others are things that we do not know.
var (
	// ErrNoAgent says that no agent of the instance's host has ever reported.
	ErrNoAgent = errors.New("no agent has reported")
	// ErrNoEndpoint says that an agent reported and none of its ports is the instance's.
	ErrNoEndpoint = errors.New("not attached")
	// ErrAmbiguous says that more than one port, or instance, fits.
	ErrAmbiguous = errors.New("more than one fits")
	// ErrUnknown says that nothing in the inventory bears the name.
	ErrUnknown = errors.New("not in the inventory")
)

// Host is what is known of one host. The messages are shared between snapshots: nobody
// changes them.
type Host struct {
	Name string
	// Connected is false where the agent is gone; bridges and endpoints are its last word then.
	Connected bool
	Bridges   []*dyetracev1.Bridge
	Endpoints []*dyetracev1.Endpoint
	// MTUs are of the endpoints' ports, in their order, 0 where not told; empty if of none.
	MTUs []uint32
	// Underlay is where it answers underlay probes; nil where its agent is too old to tell.
	Underlay *dyetracev1.UnderlayEcho

	// Read from the above once, when the host enters a snapshot.
	tunnels []Tunnel
	vteps   []netip.Addr
	echo    *Echo
}

// Echo is where a host answers underlay probes.
type Echo struct {
	// Port is 0 where its configuration switches them off.
	Port uint16
	At   []netip.Addr
	// Problems are the tunnel addresses where it cannot, each with its reason.
	Problems []string
	// Streams says that its agent knows streams of underlay probes.
	Streams bool
}

// Echo returns where the host answers underlay probes; nil where its agent is too old to. It is
// shared and must not be changed.
func (h Host) Echo() *Echo { return h.echo }

func echoOf(m *dyetracev1.UnderlayEcho) *Echo {
	if m == nil {
		return nil
	}
	e := &Echo{Port: uint16(m.GetPort()), Problems: m.GetProblems(), Streams: m.GetStreams()}
	for _, text := range m.GetAddresses() {
		if a, err := netip.ParseAddr(text); err == nil {
			e.At = append(e.At, a)
		}
	}
	return e
}

// Bridge returns the bridge of that name.
func (h Host) Bridge(name string) (*dyetracev1.Bridge, bool) {
	for _, b := range h.Bridges {
		if b.GetName() == name {
			return b, true
		}
	}
	return nil, false
}

// Tunnels returns the tunnel ports of all bridges, in their order. The slice is shared.
func (h Host) Tunnels() []Tunnel { return h.tunnels }

// VTEPs returns the host's own tunnel addresses, in the order of its tunnels. It is empty
// where Open vSwitch leaves the choice to the kernel (no options:local_ip). The slice is shared.
func (h Host) VTEPs() []netip.Addr { return h.vteps }

// Tunnel is one tunnel port of a host.
type Tunnel struct {
	Bridge, Port string
	OFPort       uint32
	// Type is "gre", "vxlan" or "geneve".
	Type string
	// Local and Remote are zero where not set; a tunnel without Remote takes packets from
	// anywhere and is steered by flows (remote_ip=flow).
	Local, Remote netip.Addr
	// ToS is options:tos as it is set, empty where it is not or the agent does not tell.
	ToS string
	// Fragments is whether its packets may be fragmented on the way, as far as the agent tells.
	Fragments Told
}

// Told is what an agent says of something, if it does.
type Told uint8

// What it may say.
const (
	NotTold Told = iota
	No
	Yes
)

func told(b *bool) Told {
	switch {
	case b == nil:
		return NotTold
	case *b:
		return Yes
	}
	return No
}

func tunnels(bridges []*dyetracev1.Bridge) (all []Tunnel, vteps []netip.Addr) {
	for _, b := range bridges {
		for _, t := range b.GetTunnels() {
			local, _ := netip.ParseAddr(t.GetLocalIp()) // empty and "flow" are no address
			remote, _ := netip.ParseAddr(t.GetRemoteIp())
			all = append(all, Tunnel{
				Bridge: b.GetName(), Port: t.GetPort(), OFPort: t.GetOfport(), Type: t.GetType(), Local: local, Remote: remote,
				ToS: t.GetTos(), Fragments: told(t.MayFragment),
			})
			if local.IsValid() && !slices.Contains(vteps, local) {
				vteps = append(vteps, local)
			}
		}
	}
	return all, vteps
}

// Endpoint is the port of a bridge where an instance is attached.
type Endpoint struct {
	Host   string
	Bridge string
	Port   string
	OFPort uint32
	MAC    string
	// IfaceID is external_ids:iface-id.
	IfaceID string
	// LinkState is "up" or "down" as Open vSwitch sees it; empty where not told.
	LinkState string
	// Unsampled says why to-instance is not sampled at this port, though it is on its bridge.
	Unsampled string
	// MTU of the port, bytes of IP packet; 0 where not told.
	MTU int
}

// Snapshot is one state of the inventory. It never changes; slices that it returns are
// shared and must not be changed either.
type Snapshot struct {
	*index
	hosts map[string]*hostIndex
	vteps map[netip.Addr]string
}

// index is what files say, shared by all snapshots until a file changes.
type index struct {
	file     File
	networks map[string]Network
	byRef    map[string]int
	byName   map[string][]int
	byAddr   map[netip.Addr][]int
}

// hostIndex is one host with its endpoints by what they are looked up by.
type hostIndex struct {
	Host
	byPort, byIfaceID, byMAC map[string][]*dyetracev1.Endpoint
	mtu                      map[*dyetracev1.Endpoint]int
}

func newIndex(f File) *index {
	x := &index{
		file:     f,
		networks: make(map[string]Network, len(f.Networks)),
		byRef:    make(map[string]int, len(f.Instances)),
		byName:   make(map[string][]int, len(f.Instances)),
		byAddr:   make(map[netip.Addr][]int, len(f.Instances)),
	}
	for _, n := range f.Networks {
		x.networks[n.Name] = n
	}
	for i, in := range f.Instances {
		x.byRef[in.Ref()] = i
		x.byName[in.Name] = append(x.byName[in.Name], i)
		for _, a := range in.IPs {
			x.byAddr[a] = append(x.byAddr[a], i)
		}
	}
	return x
}

// Racks returns the racks of hosts, by name, as far as the files tell.
func (s *Snapshot) Racks() map[string]string { return s.file.Racks }

func newHostIndex(h Host) *hostIndex {
	h.tunnels, h.vteps = tunnels(h.Bridges)
	h.echo = echoOf(h.Underlay)
	x := &hostIndex{
		Host:      h,
		byPort:    make(map[string][]*dyetracev1.Endpoint, len(h.Endpoints)),
		byIfaceID: make(map[string][]*dyetracev1.Endpoint, len(h.Endpoints)),
		byMAC:     make(map[string][]*dyetracev1.Endpoint, len(h.Endpoints)),
		mtu:       make(map[*dyetracev1.Endpoint]int, len(h.MTUs)),
	}
	for i, e := range h.Endpoints {
		if i < len(h.MTUs) {
			x.mtu[e] = int(h.MTUs[i])
		}
		x.byPort[e.GetPort()] = append(x.byPort[e.GetPort()], e)
		if id := e.GetIfaceId(); id != "" {
			x.byIfaceID[id] = append(x.byIfaceID[id], e)
		}
		if m, err := stain.ParseMAC(e.GetMac()); err == nil {
			x.byMAC[m.String()] = append(x.byMAC[m.String()], e)
		}
	}
	return x
}

// NewSnapshot returns the snapshot of a file and hosts as they are.
func NewSnapshot(f File, hosts ...Host) *Snapshot {
	m := make(map[string]*hostIndex, len(hosts))
	for _, h := range hosts {
		m[h.Name] = newHostIndex(h)
	}
	return newSnapshot(newIndex(f), m)
}

func newSnapshot(x *index, hosts map[string]*hostIndex) *Snapshot {
	s := &Snapshot{index: x, hosts: hosts, vteps: make(map[netip.Addr]string, len(hosts))}
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		for _, a := range hosts[name].VTEPs() {
			if _, taken := s.vteps[a]; !taken {
				s.vteps[a] = name
			}
		}
	}
	return s
}

// Networks returns all networks, in the order of the files.
func (s *Snapshot) Networks() []Network { return s.file.Networks }

// Instances returns all instances, in the order of the files.
func (s *Snapshot) Instances() []Instance { return s.file.Instances }

// Network returns the network of that name.
func (s *Snapshot) Network(name string) (Network, bool) {
	n, ok := s.networks[name]
	return n, ok
}

// Host returns the host of that name. ok is false where no agent ever reported it, whether
// or not an instance is said to be there.
func (s *Snapshot) Host(name string) (h Host, ok bool) {
	x, ok := s.hosts[name]
	if !ok {
		return Host{Name: name}, false
	}
	return x.Host, true
}

// Hosts returns all hosts that agents reported, by name.
func (s *Snapshot) Hosts() []Host {
	hosts := make([]Host, 0, len(s.hosts))
	for _, name := range slices.Sorted(maps.Keys(s.hosts)) {
		hosts = append(hosts, s.hosts[name].Host)
	}
	return hosts
}

// ExpectedHosts returns the names of hosts that files mention, sorted.
func (s *Snapshot) ExpectedHosts() []string {
	names := map[string]bool{}
	for _, in := range s.file.Instances {
		if in.Host != "" {
			names[in.Host] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// VTEPs returns which host each known tunnel address belongs to. The map is shared and must
// not be changed.
func (s *Snapshot) VTEPs() map[netip.Addr]string { return s.vteps }

// Resolve finds the instance that NAME, NETWORK/NAME, NETWORK/ADDRESS or a bare address
// stands for; any of an instance's addresses will do. A bare name or address must be of one
// network only. The error wraps ErrUnknown or ErrAmbiguous.
func (s *Snapshot) Resolve(ref string) (Instance, error) {
	if network, rest, ok := strings.Cut(ref, "/"); ok {
		return s.resolveIn(network, rest, ref)
	}
	found := s.byName[ref]
	if a, err := netip.ParseAddr(ref); err == nil {
		found = s.byAddr[a]
	}
	switch len(found) {
	case 0:
		return Instance{}, fmt.Errorf("instance %q: %w (want NAME, NETWORK/NAME or NETWORK/ADDRESS)", ref, ErrUnknown)
	case 1:
		return s.file.Instances[found[0]], nil
	}
	refs := make([]string, len(found))
	for i, f := range found {
		refs[i] = s.file.Instances[f].Ref()
	}
	return Instance{}, fmt.Errorf("instance %q: %w (want one of %s)", ref, ErrAmbiguous, list(refs))
}

func (s *Snapshot) resolveIn(network, rest, ref string) (Instance, error) {
	if _, ok := s.networks[network]; !ok {
		return Instance{}, fmt.Errorf("instance %q: network %q: %w (want one of %s)", ref, network, ErrUnknown, list(sorted(s.networks)))
	}
	if a, err := netip.ParseAddr(rest); err == nil {
		for _, i := range s.byAddr[a] { // addresses are unique within a network
			if s.file.Instances[i].Network == network {
				return s.file.Instances[i], nil
			}
		}
	} else if i, ok := s.byRef[ref]; ok {
		return s.file.Instances[i], nil
	}
	return Instance{}, fmt.Errorf("instance %q: network %s has no %q: %w", ref, network, rest, ErrUnknown)
}

// Endpoint finds the port of an instance: by its port's name where the file gives one, else
// by external_ids:iface-id being NETWORK/NAME or NAME, else by MAC. It looks on the host that
// the file gives, else on all. The error wraps ErrNoAgent, ErrNoEndpoint or ErrAmbiguous.
func (s *Snapshot) Endpoint(in Instance) (Endpoint, error) {
	if in.Host != "" {
		h, ok := s.hosts[in.Host]
		if !ok {
			return Endpoint{}, fmt.Errorf("%s: host %s: %w", in.Ref(), in.Host, ErrNoAgent)
		}
		found := h.find(in)
		switch {
		case len(found) > 1:
			return Endpoint{}, fmt.Errorf("%s: ports %s: %w (say port: in %s)", in.Ref(), portNames(found), ErrAmbiguous, in.Source)
		case len(found) == 0 && in.Port != "":
			return Endpoint{}, fmt.Errorf("%s: host %s has no port %s: %w", in.Ref(), in.Host, in.Port, ErrNoEndpoint)
		case len(found) == 0:
			return Endpoint{}, fmt.Errorf("%s: no port of host %s has %s or its iface-id: %w", in.Ref(), in.Host, in.MAC, ErrNoEndpoint)
		}
		return found[0], nil
	}
	if len(s.hosts) == 0 {
		return Endpoint{}, fmt.Errorf("%s: any host: %w", in.Ref(), ErrNoAgent)
	}
	switch found := s.Sightings(in); len(found) {
	case 0:
		return Endpoint{}, fmt.Errorf("%s: no port of any host has %s or its iface-id: %w", in.Ref(), in.MAC, ErrNoEndpoint)
	case 1:
		return found[0], nil
	default:
		return Endpoint{}, fmt.Errorf("%s: ports %s: %w (say host: in %s)", in.Ref(), portNames(found), ErrAmbiguous, in.Source)
	}
}

// Sightings returns every port, on any host, that could be the instance's, by name of host.
// More than one, or one that is not on the instance's host, tells of a move or of an address
// that is used twice.
func (s *Snapshot) Sightings(in Instance) []Endpoint {
	var all []Endpoint
	for _, name := range slices.Sorted(maps.Keys(s.hosts)) {
		all = append(all, s.hosts[name].find(in)...)
	}
	return all
}

// find returns the ports that fit best: the first way of telling that yields any decides.
func (h *hostIndex) find(in Instance) []Endpoint {
	if in.Port != "" && in.Host == h.Name {
		return h.endpoints(h.byPort[in.Port])
	}
	if found := h.byIfaceID[in.Ref()]; len(found) > 0 {
		return h.endpoints(found)
	}
	if found := h.byIfaceID[in.Name]; len(found) == 1 && (found[0].GetMac() == "" || sameMAC(found[0], in.MAC)) {
		return h.endpoints(found)
	}
	return h.endpoints(h.byMAC[in.MAC.String()])
}

func sameMAC(e *dyetracev1.Endpoint, m stain.MAC) bool {
	got, err := stain.ParseMAC(e.GetMac())
	return err == nil && got == m
}

func (h *hostIndex) endpoints(found []*dyetracev1.Endpoint) []Endpoint {
	out := make([]Endpoint, len(found))
	for i, e := range found {
		out[i] = Endpoint{
			Host: h.Name, Bridge: e.GetBridge(), Port: e.GetPort(), OFPort: e.GetOfport(),
			MAC: e.GetMac(), IfaceID: e.GetIfaceId(), LinkState: e.GetLinkState(), Unsampled: e.GetUnsampled(),
			MTU: h.mtu[e],
		}
	}
	return out
}

func portNames(found []Endpoint) string {
	names := make([]string, len(found))
	for i, e := range found {
		names[i] = e.Host + "/" + e.Port
	}
	return list(names)
}
