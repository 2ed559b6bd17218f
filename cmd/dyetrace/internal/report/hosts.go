package report

import (
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// Host is one host and its agent.
type Host struct {
	Name       string     `json:"name"`
	Connected  bool       `json:"connected"`
	Expected   bool       `json:"expected"`
	Version    string     `json:"version"`
	OVSVersion string     `json:"ovs_version"`
	LastSeen   *time.Time `json:"last_seen"`
	Bridges    []Bridge   `json:"bridges"`
	Endpoints  []Endpoint `json:"endpoints"`
	Counters   Counters   `json:"counters"`
}

// Bridge is one bridge and our hook on it.
type Bridge struct {
	Name         string        `json:"name"`
	DatapathType string        `json:"datapath_type"`
	Hook         string        `json:"hook"`
	Reason       string        `json:"reason"`
	Kinds        []string      `json:"kinds"`
	UplinkBridge string        `json:"uplink_bridge"`
	Tunnels      []Tunnel      `json:"tunnels"`
	DyePort      string        `json:"dye_port"`
	DyeOFPort    uint32        `json:"dye_ofport"`
	Table        uint32        `json:"table"`
	Mark         string        `json:"mark"`
	Epoch        uint64        `json:"epoch"`
	Lost         uint64        `json:"lost"`
	Gaps         uint64        `json:"gaps"`
	Watched      bool          `json:"watched"`
	Wipes        uint64        `json:"wipes"`
	HeldMs       uint32        `json:"held_ms"`
	Absent       []AbsentPoint `json:"absent"`
}

// AbsentPoint is a sampling point that a bridge does not offer.
type AbsentPoint struct {
	Kind   string `json:"kind"`
	Reason string `json:"reason"`
}

// Tunnel is a tunnel port.
type Tunnel struct {
	Port     string `json:"port"`
	OFPort   uint32 `json:"ofport"`
	Type     string `json:"type"`
	RemoteIP string `json:"remote_ip"`
	LocalIP  string `json:"local_ip"`
}

// Endpoint is the port of a bridge where an instance is attached.
type Endpoint struct {
	Bridge    string `json:"bridge"`
	Port      string `json:"port"`
	OFPort    uint32 `json:"ofport"`
	MAC       string `json:"mac"`
	IfaceID   string `json:"iface_id"`
	LinkState string `json:"link_state"`
	// Unsampled says why to-instance is not sampled at this port; empty where it is.
	Unsampled string `json:"unsampled"`
}

// Counters count since the agent's start.
type Counters struct {
	Injected    uint64 `json:"injected"`
	Samples     uint64 `json:"samples"`
	Rejected    uint64 `json:"rejected"`
	Lost        uint64 `json:"lost"`
	HookRepairs uint64 `json:"hook_repairs"`
	HookWipes   uint64 `json:"hook_wipes"`
	// Unread are copies that hooks counted and that never came to the agent.
	Unread uint64 `json:"unread"`
}

// Instance is one instance, and where it is attached; Endpoint is nil where nobody knows. IP is the
// first of IPs.
type Instance struct {
	Name     string    `json:"name"`
	Network  string    `json:"network"`
	IP       string    `json:"ip"`
	IPs      []string  `json:"ips"`
	MAC      string    `json:"mac"`
	Host     string    `json:"host"`
	Endpoint *Endpoint `json:"endpoint"`
	Source   string    `json:"source"`
}

// Status is how the controller and its fleet stand.
type Status struct {
	Version string     `json:"version"`
	Started *time.Time `json:"started"`
	Ready   bool       `json:"ready"`
	// Stain is how probes are marked.
	Stain         Stain  `json:"stain"`
	HostsExpected uint32 `json:"hosts_expected"`
	HostsReady    uint32 `json:"hosts_ready"`
	Instances     uint32 `json:"instances"`
	Pairs         uint32 `json:"pairs"`
	RunsActive    uint32 `json:"runs_active"`
	// Peers are BGP peers; none where no BGP is configured.
	Peers            uint32   `json:"peers"`
	PeersEstablished uint32   `json:"peers_established"`
	Problems         []string `json:"problems"`
}

// Stain is the marks by which a probe is recognised.
type Stain struct {
	TOS  uint32 `json:"tos"`
	Port uint32 `json:"port"`
}

// NewHost returns the view of a host.
func NewHost(h *dyetracev1.Host) Host {
	c := h.GetCounters()
	v := Host{
		Name: h.GetName(), Connected: h.GetConnected(), Expected: h.GetExpected(),
		Version: h.GetVersion(), OVSVersion: h.GetOvsVersion(), LastSeen: Time(h.GetLastSeen()),
		Bridges: []Bridge{}, Endpoints: []Endpoint{},
		Counters: Counters{c.GetInjected(), c.GetSamples(), c.GetRejected(), c.GetLost(), c.GetHookRepairs(), c.GetHookWipes(), c.GetUnread()},
	}
	for _, b := range h.GetBridges() {
		v.Bridges = append(v.Bridges, newBridge(b))
	}
	for _, e := range h.GetEndpoints() {
		v.Endpoints = append(v.Endpoints, *newEndpoint(e))
	}
	return v
}

func newBridge(b *dyetracev1.Bridge) Bridge {
	v := Bridge{
		Name: b.GetName(), DatapathType: b.GetDatapathType(), Hook: Hook(b.GetState()), Reason: b.GetReason(),
		Kinds: []string{}, UplinkBridge: b.GetUplinkBridge(), Tunnels: []Tunnel{},
		DyePort: b.GetDyePort(), DyeOFPort: b.GetDyeOfport(), Table: b.GetTable(), Mark: b.GetMark(),
		Epoch: b.GetEpoch(), Lost: b.GetLost(), Gaps: b.GetGaps(),
		Watched: b.GetWatched(), Wipes: b.GetWipes(), HeldMs: b.GetHeldMs(), Absent: []AbsentPoint{},
	}
	for _, k := range b.GetKinds() {
		v.Kinds = append(v.Kinds, Kind(k))
	}
	for _, t := range b.GetTunnels() {
		v.Tunnels = append(v.Tunnels, Tunnel{t.GetPort(), t.GetOfport(), t.GetType(), t.GetRemoteIp(), t.GetLocalIp()})
	}
	for _, a := range b.GetAbsent() {
		v.Absent = append(v.Absent, AbsentPoint{Kind(a.GetKind()), a.GetReason()})
	}
	return v
}

func newEndpoint(e *dyetracev1.Endpoint) *Endpoint {
	if e == nil {
		return nil
	}
	return &Endpoint{e.GetBridge(), e.GetPort(), e.GetOfport(), e.GetMac(), e.GetIfaceId(), e.GetLinkState(), e.GetUnsampled()}
}

// NewInstance returns the view of an instance.
func NewInstance(i *dyetracev1.Instance) Instance {
	return Instance{i.GetName(), i.GetNetwork(), i.GetIp(), addresses(i), i.GetMac(), i.GetHost(), newEndpoint(i.GetEndpoint()), i.GetSource()}
}

// addresses returns all addresses of an instance. A controller that knows only one each has no ips.
func addresses(i *dyetracev1.Instance) []string {
	ips := append([]string{}, i.GetIps()...)
	if len(ips) == 0 && i.GetIp() != "" {
		ips = append(ips, i.GetIp())
	}
	return ips
}

// Unsampled are ports of one bridge where delivery is not seen, all for the same reason.
type Unsampled struct {
	Bridge string
	Ports  []string
	Reason string
}

// Unsampled returns the ports of a host where delivery to the guest is not seen, by bridge and
// reason in the order of the ports: one by one, or all of a bridge that has no such point.
func (h Host) Unsampled() []Unsampled {
	absent := make(map[string]string)
	for _, b := range h.Bridges {
		for _, a := range b.Absent {
			if a.Kind == Kind(dyetracev1.PointKind_POINT_KIND_TO_INSTANCE) {
				absent[b.Name] = a.Reason
			}
		}
	}
	var all []Unsampled
	for _, e := range h.Endpoints {
		why := e.Unsampled
		if why == "" {
			why = absent[e.Bridge]
		}
		if why == "" {
			continue
		}
		i := slices.IndexFunc(all, func(u Unsampled) bool { return u.Bridge == e.Bridge && u.Reason == why })
		if i < 0 {
			i = len(all)
			all = append(all, Unsampled{Bridge: e.Bridge, Reason: why})
		}
		all[i].Ports = append(all[i].Ports, e.Port)
	}
	return all
}

// NewStatus returns the view of a status.
func NewStatus(s *dyetracev1.GetStatusResponse) Status {
	v := Status{
		Version: s.GetVersion(), Started: Time(s.GetStarted()),
		Ready:         s.GetHostsReady() >= s.GetHostsExpected(),
		Stain:         Stain{TOS: s.GetStain().GetTos(), Port: s.GetStain().GetPort()},
		HostsExpected: s.GetHostsExpected(), HostsReady: s.GetHostsReady(),
		Instances: s.GetInstances(), Pairs: s.GetPairs(), RunsActive: s.GetRunsActive(),
		Peers: s.GetPeers(), PeersEstablished: s.GetPeersEstablished(),
		Problems: []string{},
	}
	v.Problems = append(v.Problems, s.GetProblems()...)
	return v
}
