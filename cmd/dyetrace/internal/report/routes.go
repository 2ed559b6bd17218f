package report

import (
	"strconv"
	"strings"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// Routes is what `routes -o json` prints: routes that BGP peers taught the controller.
type Routes struct {
	Routes []Route `json:"routes"`
	// Total is how many fit, of which Routes may be the first.
	Total uint64 `json:"total"`
	// Complete: a route that is not there is taught by nobody.
	Complete bool `json:"complete"`
	// Answer is where the address is; nil unless a VNI and an address were asked for.
	Answer *Answer `json:"answer"`
}

// Route is one route of one peer.
type Route struct {
	// Kind is mac, multicast, prefix, vpn or segment.
	Kind         string   `json:"kind"`
	VNIs         []uint32 `json:"vnis"`
	RouteTargets []string `json:"route_targets"`
	MAC          string   `json:"mac"`
	Prefix       string   `json:"prefix"`
	// VTEP is nil where the next hop cannot be believed.
	VTEP          *VTEP  `json:"vtep"`
	Encapsulation string `json:"encapsulation"`
	Label         uint32 `json:"label"`
	L3Label       uint32 `json:"l3_label"`
	EthernetTag   uint32 `json:"ethernet_tag"`
	RD            string `json:"rd"`
	ESI           string `json:"esi"`
	Sequence      uint32 `json:"sequence"`
	Sticky        bool   `json:"sticky"`
	Gateway       bool   `json:"gateway"`
	Stale         bool   `json:"stale"`
	Refused       bool   `json:"refused"`
	// SingleActive: one VTEP at a time forwards for the Ethernet segment ESI.
	SingleActive bool `json:"single_active"`
	// GatewayIP is the address that a prefix goes by, in place of VTEP; empty: none.
	GatewayIP string     `json:"gateway_ip"`
	Peer      string     `json:"peer"`
	Since     *time.Time `json:"since"`
}

// VTEP is a tunnel endpoint, and whose it is; Host is empty where no agent reports it.
type VTEP struct {
	Address string `json:"address"`
	Host    string `json:"host"`
}

func (v VTEP) String() string {
	if v.Host == "" {
		return v.Address
	}
	return v.Address + " (" + v.Host + ")"
}

// VTEPs are where an address is; several are ECMP.
type VTEPs []VTEP

// String joins them; none is nowhere.
func (vs VTEPs) String() string {
	if len(vs) == 0 {
		return "nowhere"
	}
	words := make([]string, len(vs))
	for i, v := range vs {
		words[i] = v.String()
	}
	return strings.Join(words, ", ")
}

// Answer is where an address is, all routes weighed together.
type Answer struct {
	// State is present, absent or unknown.
	State    string     `json:"state"`
	VTEPs    VTEPs      `json:"vteps"`
	Since    *time.Time `json:"since"`
	Sequence uint32     `json:"sequence"`
	Sticky   bool       `json:"sticky"`
	Gateway  bool       `json:"gateway"`
	Stale    bool       `json:"stale"`
	Prefix   string     `json:"prefix"`
}

// History is what `routes --history -o json` prints: where an address was.
type History struct {
	Stays []Stay `json:"stays"`
	// RememberedFrom is when the newest stay that was forgotten ended; nil: none was.
	RememberedFrom *time.Time `json:"remembered_from"`
}

// Stay says where an address was for a time; To is nil where it is there still.
type Stay struct {
	VNI         uint32     `json:"vni"`
	RouteTarget string     `json:"route_target"`
	VTEPs       VTEPs      `json:"vteps"`
	Sequence    uint32     `json:"sequence"`
	Sticky      bool       `json:"sticky"`
	From        *time.Time `json:"from"`
	To          *time.Time `json:"to"`
}

// Network names the network that the address was in.
func (s Stay) Network() string { return network(s.VNI, s.RouteTarget) }

// Change says that an address is elsewhere from now on, as `routes --watch -o json` prints it, an
// object a line.
type Change struct {
	At          *time.Time `json:"at"`
	VNI         uint32     `json:"vni"`
	RouteTarget string     `json:"route_target"`
	MAC         string     `json:"mac"`
	Prefix      string     `json:"prefix"`
	From        VTEPs      `json:"from"`
	To          VTEPs      `json:"to"`
	Sequence    uint32     `json:"sequence"`
}

// Network names the network that the address is in.
func (c Change) Network() string { return network(c.VNI, c.RouteTarget) }

// Peer is one BGP peer of the controller.
type Peer struct {
	Address string `json:"address"`
	AS      uint32 `json:"as"`
	LocalAS uint32 `json:"local_as"`
	// State is idle, connect, active, open-sent, open-confirm or established.
	State    string     `json:"state"`
	Since    *time.Time `json:"since"`
	RouterID string     `json:"router_id"`
	// HoldTime is in nanoseconds.
	HoldTime        int64      `json:"hold_time_ns"`
	Capabilities    []string   `json:"capabilities"`
	Families        []string   `json:"families"`
	MissingFamilies []string   `json:"missing_families"`
	EndOfRIB        []string   `json:"end_of_rib"`
	Restarting      *time.Time `json:"restarting"`
	Routes          uint64     `json:"routes"`
	Updates         uint64     `json:"updates"`
	Malformed       uint64     `json:"malformed"`
	Flaps           uint64     `json:"flaps"`
	Failures        uint64     `json:"failures"`
	Panics          uint64     `json:"panics"`
	LastUpdate      *time.Time `json:"last_update"`
	LastError       string     `json:"last_error"`
	LastErrorAt     *time.Time `json:"last_error_at"`
}

// NewRoutes returns the view of routes.
func NewRoutes(r *dyetracev1.ListRoutesResponse) Routes {
	v := Routes{Routes: []Route{}, Total: r.GetTotal(), Complete: r.GetComplete()}
	for _, m := range r.GetRoutes() {
		v.Routes = append(v.Routes, newRoute(m))
	}
	if a := r.GetAnswer(); a != nil {
		v.Answer = &Answer{
			State: word(a.GetState().String(), "ROUTE_STATE_", "unknown"), VTEPs: newVTEPs(a.GetVteps()), Since: Time(a.GetSince()),
			Sequence: a.GetSequence(), Sticky: a.GetSticky(), Gateway: a.GetGateway(), Stale: a.GetStale(), Prefix: a.GetPrefix(),
		}
	}
	return v
}

func newRoute(m *dyetracev1.Route) Route {
	v := Route{
		Kind: word(m.GetKind().String(), "ROUTE_KIND_", "unknown"),
		VNIs: append([]uint32{}, m.GetVnis()...), RouteTargets: append([]string{}, m.GetRouteTargets()...),
		MAC: m.GetMac(), Prefix: m.GetPrefix(), Encapsulation: m.GetEncapsulation(), Label: m.GetLabel(), L3Label: m.GetL3Label(),
		EthernetTag: m.GetEthernetTag(), RD: m.GetRd(), ESI: m.GetEsi(), Sequence: m.GetSequence(), Sticky: m.GetSticky(),
		Gateway: m.GetGateway(), Stale: m.GetStale(), Refused: m.GetRefused(), SingleActive: m.GetSingleActive(), GatewayIP: m.GetGatewayIp(), Peer: m.GetPeer(), Since: Time(m.GetSince()),
	}
	if t := m.GetVtep(); t != nil {
		v.VTEP = &VTEP{t.GetAddress(), t.GetHost()}
	}
	return v
}

func newVTEPs(ms []*dyetracev1.RouteVTEP) VTEPs {
	vs := make(VTEPs, 0, len(ms))
	for _, m := range ms {
		vs = append(vs, VTEP{m.GetAddress(), m.GetHost()})
	}
	return vs
}

// Networks names the networks that a route is in: VNIs, else its route targets.
func (r Route) Networks() string {
	if len(r.VNIs) == 0 {
		return strings.Join(r.RouteTargets, " ")
	}
	words := make([]string, len(r.VNIs))
	for i, n := range r.VNIs {
		words[i] = strconv.FormatUint(uint64(n), 10)
	}
	return strings.Join(words, " ")
}

// Address is the prefix as people write it: an instance's address has no length. Of a segment it is
// its identifier.
func (r Route) Address() string {
	if r.Kind == kindSegment {
		return r.ESI
	}
	return address(r.Prefix)
}

const (
	kindSegment = "segment"
	// wholeSegment is the Ethernet tag of a route that is not about one network on its segment (RFC
	// 7432, section 8.2.1).
	wholeSegment = 1<<32 - 1
)

// Address is the MAC address, or the prefix as people write it.
func (c Change) Address() string {
	if c.MAC != "" {
		return c.MAC
	}
	return address(c.Prefix)
}

func address(prefix string) string {
	if a, ok := strings.CutSuffix(prefix, "/128"); ok {
		return a
	}
	if a, ok := strings.CutSuffix(prefix, "/32"); ok && !strings.Contains(a, ":") {
		return a
	}
	return prefix
}

// Marks are what is special about a route, in words.
func (r Route) Marks() string {
	var words []string
	for _, x := range []struct {
		is   bool
		word string
	}{{r.Sticky, "sticky"}, {r.Gateway, "gateway"}, {r.Stale, "stale"}, {r.Refused, "refused"}, {r.SingleActive, "single-active"},
		{r.Kind == kindSegment && r.EthernetTag == wholeSegment, "whole"}} {
		if x.is {
			words = append(words, x.word)
		}
	}
	if r.GatewayIP != "" {
		words = append(words, "by "+r.GatewayIP)
	}
	return strings.Join(words, " ")
}

func network(vni uint32, target string) string {
	if target != "" {
		return "target " + target
	}
	return "vni " + strconv.FormatUint(uint64(vni), 10)
}

// NewHistory returns the view of a history.
func NewHistory(r *dyetracev1.RouteHistoryResponse) History {
	v := History{Stays: []Stay{}, RememberedFrom: Time(r.GetRememberedFrom())}
	for _, s := range r.GetStays() {
		v.Stays = append(v.Stays, Stay{
			VNI: s.GetVni(), RouteTarget: s.GetRouteTarget(), VTEPs: newVTEPs(s.GetVteps()), Sequence: s.GetSequence(),
			Sticky: s.GetSticky(), From: Time(s.GetFrom()), To: Time(s.GetTo()),
		})
	}
	return v
}

// NewChange returns the view of a change.
func NewChange(c *dyetracev1.RouteChange) Change {
	return Change{
		At: Time(c.GetAt()), VNI: c.GetVni(), RouteTarget: c.GetRouteTarget(), MAC: c.GetMac(), Prefix: c.GetPrefix(),
		From: newVTEPs(c.GetFrom()), To: newVTEPs(c.GetTo()), Sequence: c.GetSequence(),
	}
}

// NewPeer returns the view of a peer.
func NewPeer(p *dyetracev1.Peer) Peer {
	list := func(s []string) []string { return append([]string{}, s...) }
	return Peer{
		Address: p.GetAddress(), AS: p.GetAs(), LocalAS: p.GetLocalAs(), State: word(p.GetState().String(), "PEER_STATE_", "unknown"),
		Since: Time(p.GetSince()), RouterID: p.GetRouterId(), HoldTime: int64(p.GetHoldTimeMs()) * int64(time.Millisecond),
		Capabilities: list(p.GetCapabilities()), Families: list(p.GetFamilies()), MissingFamilies: list(p.GetMissingFamilies()),
		EndOfRIB: list(p.GetEndOfRib()), Restarting: Time(p.GetRestarting()), Routes: p.GetRoutes(), Updates: p.GetUpdates(),
		Malformed: p.GetMalformed(), Flaps: p.GetFlaps(), Failures: p.GetFailures(), Panics: p.GetPanics(),
		LastUpdate: Time(p.GetLastUpdate()), LastError: p.GetLastError(), LastErrorAt: Time(p.GetLastErrorAt()),
	}
}
