package server

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/plugin/run"
	"github.com/dyetrace/dyetrace/stain"
)

const (
	// routesDefault and routesMost are those of the contract (ListRoutesRequest.limit).
	routesDefault, routesMost = 1000, 100_000
	// maxVNI is that of 24 bits (RFC 7348, section 5).
	maxVNI = 1<<24 - 1
	// watchBuffer is how many changes wait for a watcher: a rack that restarts, with some to spare.
	// Each takes about 200 bytes.
	watchBuffer = 1 << 14
	// ctxEvery is after how many routes a walk asks whether it is still wanted: 1 ms or so.
	ctxEvery = 1 << 12
)

// errNoBGP is for callers who ask for what is not configured.
func errNoBGP() error {
	return connect.NewError(connect.CodeFailedPrecondition,
		errors.New("no routes are learned: the controller's configuration has no group bgp (docs/routes.md)"))
}

// routeFilter reads what a request asks for; the error names the field.
func routeFilter(vni uint32, mac, ip, vtep string) (f rib.Filter, err error) {
	if vni > maxVNI {
		return f, invalid("vni: %d, want 1 to %d, or 0 for any", vni, maxVNI)
	}
	f.Network = rib.VNI(vni)
	if mac != "" {
		if f.MAC, err = stain.ParseMAC(mac); err != nil || f.MAC == (stain.MAC{}) {
			return f, invalid("mac: %q, want an address such as fa:16:3e:00:01:0b", mac)
		}
	}
	if ip != "" {
		if f.IP, err = netip.ParseAddr(ip); err != nil || f.IP.Zone() != "" {
			return f, invalid("ip: %q, want an address such as 10.0.1.11", ip)
		}
		f.IP = f.IP.Unmap()
	}
	if vtep != "" {
		if f.VTEP, err = netip.ParseAddr(vtep); err != nil || f.VTEP.Zone() != "" {
			return f, invalid("vtep: %q, want the tunnel address of a host, such as 10.255.2.14", vtep)
		}
		f.VTEP = f.VTEP.Unmap()
	}
	return f, nil
}

func (s service) ListRoutes(ctx context.Context, req *connect.Request[dyetracev1.ListRoutesRequest]) (*connect.Response[dyetracev1.ListRoutesResponse], error) {
	if s.Routes == nil {
		return nil, errNoBGP()
	}
	m := req.Msg
	filter, err := routeFilter(m.GetVni(), m.GetMac(), m.GetIp(), m.GetVtep())
	if err != nil {
		return nil, err
	}
	limit := int(m.GetLimit())
	switch {
	case limit == 0:
		limit = routesDefault
	case limit > routesMost:
		return nil, invalid("limit: %d, want at most %d", limit, routesMost)
	}
	snap, owners := s.Routes.Snapshot(), s.Book.Snapshot().VTEPs()
	routes, total, err := firstRoutes(ctx, snap, filter, limit)
	if err != nil {
		return nil, coded(err)
	}
	res := &dyetracev1.ListRoutesResponse{Total: total, Complete: snap.Whole()}
	for _, r := range routes {
		res.Routes = append(res.Routes, routeProto(r, owners))
	}
	switch {
	case m.GetVni() != 0 && m.GetMac() != "":
		res.Answer = answerProto(snap.MAC(m.GetVni(), filter.MAC), res.Complete, owners)
	case m.GetVni() != 0 && m.GetIp() != "":
		res.Answer = answerProto(snap.IP(filter.Network, filter.IP), res.Complete, owners)
	}
	return connect.NewResponse(res), nil
}

// firstRoutes returns the first routes that fit, and how many there are. It holds no more than
// twice the limit at a time.
func firstRoutes(ctx context.Context, snap *rib.Snapshot, f rib.Filter, limit int) (first []rib.Route, total uint64, err error) {
	cut := func(to int) {
		slices.SortFunc(first, compareRoutes)
		first = first[:min(len(first), to)]
	}
	for r := range snap.Routes(f) {
		if total++; total%ctxEvery == 0 && ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		if first = append(first, r); len(first) == 2*limit {
			cut(limit)
		}
	}
	cut(limit)
	return first, total, nil
}

func compareRoutes(a, b rib.Route) int {
	return cmp.Or(
		slices.Compare(a.Networks, b.Networks), cmp.Compare(a.MAC.Uint64(), b.MAC.Uint64()),
		a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()),
		a.Addr.Compare(b.Addr), slices.Compare(a.RDs, b.RDs), cmp.Compare(a.Peer, b.Peer),
		cmp.Compare(a.Kind, b.Kind), bytes.Compare(a.ESI[:], b.ESI[:]), cmp.Compare(a.Tag, b.Tag),
	)
}

var routeKinds = map[wire.Kind]dyetracev1.RouteKind{
	wire.KindSegment:   dyetracev1.RouteKind_ROUTE_KIND_SEGMENT,
	wire.KindMAC:       dyetracev1.RouteKind_ROUTE_KIND_MAC,
	wire.KindMulticast: dyetracev1.RouteKind_ROUTE_KIND_MULTICAST,
	wire.KindPrefix:    dyetracev1.RouteKind_ROUTE_KIND_PREFIX,
	wire.KindVPN:       dyetracev1.RouteKind_ROUTE_KIND_VPN,
}

func routeProto(r rib.Route, owners map[netip.Addr]string) *dyetracev1.Route {
	m := &dyetracev1.Route{
		Kind: routeKinds[r.Kind], Encapsulation: r.Encaps.String(), Label: r.Label, L3Label: r.L3Label,
		EthernetTag: r.Tag, Rd: r.RDs[0].String(), Sequence: r.Seq, Sticky: r.Sticky, Gateway: r.Gateway,
		Stale: r.Stale, Refused: r.Refused, Peer: r.Peer, Since: timestamppb.New(r.Since), SingleActive: r.Single,
	}
	for _, n := range r.Networks {
		if vni, target := networkProto(n); target == "" {
			m.Vnis = append(m.Vnis, vni)
		}
	}
	for _, rt := range r.Targets {
		m.RouteTargets = append(m.RouteTargets, rt.String())
	}
	if r.Kind == wire.KindMAC {
		m.Mac = r.MAC.String()
	}
	if r.Prefix.IsValid() {
		m.Prefix = r.Prefix.String()
	}
	if r.Addr.IsValid() {
		m.Vtep = &dyetracev1.RouteVTEP{Address: r.Addr.String(), Host: owners[r.Addr]}
	}
	if r.ESI != (wire.ESI{}) {
		m.Esi = r.ESI.String()
	}
	if r.GatewayIP.IsValid() {
		m.GatewayIp = r.GatewayIP.String()
	}
	return m
}

// networkProto returns the VNI of a network, or the route target.
func networkProto(n rib.Network) (vni uint32, target string) {
	if n <= math.MaxUint32 {
		return uint32(n), ""
	}
	return 0, wire.RouteTarget(n).String()
}

func vtepsProto(addrs []netip.Addr, owners map[netip.Addr]string) []*dyetracev1.RouteVTEP {
	var all []*dyetracev1.RouteVTEP
	for _, a := range addrs {
		all = append(all, &dyetracev1.RouteVTEP{Address: a.String(), Host: owners[a]})
	}
	return all
}

// answerProto takes an absence for one only if nobody is left who may know better.
func answerProto(l rib.Lookup, whole bool, owners map[netip.Addr]string) *dyetracev1.RouteAnswer {
	switch {
	case l.State == rib.Absent && whole:
		return &dyetracev1.RouteAnswer{State: dyetracev1.RouteState_ROUTE_STATE_ABSENT}
	case l.State != rib.Present:
		return &dyetracev1.RouteAnswer{State: dyetracev1.RouteState_ROUTE_STATE_UNKNOWN}
	}
	m := &dyetracev1.RouteAnswer{
		State: dyetracev1.RouteState_ROUTE_STATE_PRESENT, Since: timestamppb.New(l.Since),
		Sequence: l.Seq, Sticky: l.Sticky, Gateway: l.Gateway, Stale: l.Stale,
	}
	var addrs []netip.Addr
	for _, v := range l.VTEPs {
		addrs = append(addrs, v.Addr)
	}
	m.Vteps = vtepsProto(slices.Compact(addrs), owners)
	if l.Prefix.IsValid() {
		m.Prefix = l.Prefix.String()
	}
	return m
}

func (s service) RouteHistory(ctx context.Context, req *connect.Request[dyetracev1.RouteHistoryRequest]) (*connect.Response[dyetracev1.RouteHistoryResponse], error) {
	if s.Routes == nil {
		return nil, errNoBGP()
	}
	m := req.Msg
	if (m.GetMac() == "") == (m.GetIp() == "") {
		return nil, invalid("mac: %q, ip: %q, want one of both", m.GetMac(), m.GetIp())
	}
	prefix, err := netip.ParsePrefix(m.GetIp())
	ip := m.GetIp()
	if err == nil {
		ip = prefix.Addr().String()
	}
	filter, err := routeFilter(m.GetVni(), m.GetMac(), ip, "")
	if err != nil {
		return nil, err
	}
	if !prefix.IsValid() && filter.IP.IsValid() {
		prefix = netip.PrefixFrom(filter.IP, filter.IP.BitLen())
	}
	networks, err := s.networks(ctx, filter)
	if err != nil {
		return nil, coded(err)
	}
	res := &dyetracev1.RouteHistoryResponse{}
	owners := s.Book.Snapshot().VTEPs()
	for _, n := range networks {
		vni, target := networkProto(n)
		var stays []rib.Stay
		switch {
		case prefix.IsValid():
			stays = s.Routes.HistoryIP(n, prefix.Masked())
		case target == "": // the table has histories of MAC addresses by VNI alone
			stays = s.Routes.History(vni, filter.MAC)
		}
		for _, stay := range stays {
			p := &dyetracev1.RouteStay{
				Vni: vni, RouteTarget: target, Vteps: vtepsProto(stay.VTEPs, owners), Sequence: stay.Seq, Sticky: stay.Sticky,
				From: timestamppb.New(stay.From),
			}
			if !stay.To.IsZero() {
				p.To = timestamppb.New(stay.To)
			}
			res.Stays = append(res.Stays, p)
		}
	}
	if from := s.Routes.HistoryFrom(); !from.IsZero() {
		res.RememberedFrom = timestamppb.New(from)
	}
	return connect.NewResponse(res), nil
}

// networks returns where to look for the history of an address: the network asked for, else all
// that the inventory names and those where it is now.
func (s service) networks(ctx context.Context, f rib.Filter) ([]rib.Network, error) {
	if f.Network != 0 {
		return []rib.Network{f.Network}, nil
	}
	var all []rib.Network
	for _, n := range s.Book.Snapshot().Networks() {
		if n.SegmentationID != 0 {
			all = append(all, rib.VNI(n.SegmentationID))
		}
	}
	for r := range s.Routes.Snapshot().Routes(f) {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		all = append(all, r.Networks...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func (s service) WatchRoutes(ctx context.Context, req *connect.Request[dyetracev1.WatchRoutesRequest], stream *connect.ServerStream[dyetracev1.WatchRoutesResponse]) error {
	if s.Routes == nil {
		return errNoBGP()
	}
	m := req.Msg
	filter, err := routeFilter(m.GetVni(), m.GetMac(), m.GetIp(), m.GetVtep())
	if err != nil {
		return err
	}
	w := s.Routes.Watch(watchBuffer)
	defer w.Close()
	send := func(m *dyetracev1.WatchRoutesResponse) error {
		return patiently(ctx, func() error { return stream.Send(m) })
	}
	if err := send(&dyetracev1.WatchRoutesResponse{}); err != nil {
		return coded(err)
	}
	var told uint64
	for {
		var c rib.Change
		select {
		case <-ctx.Done():
			return coded(ctx.Err())
		case <-s.closing:
			return coded(run.ErrClosing)
		case c = <-w.C:
		}
		missed := w.Dropped()
		fits := changeFits(&filter, &c)
		if !fits && missed == told {
			continue
		}
		res := &dyetracev1.WatchRoutesResponse{Missed: missed - told}
		if told = missed; fits {
			res.Change = changeProto(&c, s.Book.Snapshot().VTEPs())
		}
		if err := send(res); err != nil {
			return coded(err)
		}
	}
}

func changeFits(f *rib.Filter, c *rib.Change) bool {
	return (f.Network == 0 || f.Network == c.Network) && (f.MAC == (stain.MAC{}) || f.MAC == c.MAC) &&
		(!f.IP.IsValid() || c.Prefix.Contains(f.IP)) &&
		(!f.VTEP.IsValid() || slices.Contains(c.From, f.VTEP) || slices.Contains(c.To, f.VTEP))
}

func changeProto(c *rib.Change, owners map[netip.Addr]string) *dyetracev1.RouteChange {
	m := &dyetracev1.RouteChange{
		At: timestamppb.New(c.At), From: vtepsProto(c.From, owners), To: vtepsProto(c.To, owners), Sequence: c.Seq,
	}
	m.Vni, m.RouteTarget = networkProto(c.Network)
	if c.Prefix.IsValid() {
		m.Prefix = c.Prefix.String()
	} else {
		m.Mac = c.MAC.String()
	}
	return m
}

func (s service) ListPeers(context.Context, *connect.Request[dyetracev1.ListPeersRequest]) (*connect.Response[dyetracev1.ListPeersResponse], error) {
	if s.Speaker == nil {
		return nil, errNoBGP()
	}
	res := &dyetracev1.ListPeersResponse{Complete: s.Routes.Snapshot().Whole()}
	for _, p := range s.Speaker.Peers() {
		res.Peers = append(res.Peers, peerProto(p))
	}
	return connect.NewResponse(res), nil
}

func peerProto(p bgp.Status) *dyetracev1.Peer {
	m := &dyetracev1.Peer{
		Address: p.Address, As: p.AS, LocalAs: p.LocalAS, Since: timeProto(p.Since),
		State:      dyetracev1.PeerState(p.State) + 1, // in the same order, behind the one that is unspecified
		HoldTimeMs: uint32(p.HoldTime.Milliseconds()), Capabilities: p.Capabilities, Families: p.Families, MissingFamilies: p.Missing,
		EndOfRib: p.EndOfRIB, Restarting: timeProto(p.Restarting), Routes: uint64(p.Routes),
		Updates: p.Updates, Malformed: p.Withdrawn, Flaps: p.Flaps, Failures: p.Failures, Panics: p.Panics,
		LastUpdate: timeProto(p.LastUpdate), LastErrorAt: timeProto(p.LastErrorAt),
	}
	if p.RouterID.IsValid() {
		m.RouterId = p.RouterID.String()
	}
	if p.LastError != nil {
		m.LastError = fmt.Sprint(p.LastError)
	}
	return m
}

// timeProto returns nil for a time that never was.
func timeProto(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
