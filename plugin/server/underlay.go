package server

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/verdict"
)

const (
	// underlayTimeout bounds what a user may wait for: 64 rounds, and the search for a size.
	underlayTimeout = 15 * time.Second
	// Bounds of the contract (ProbeUnderlayRequest); the least is what IPv6 takes, the most what UDP
	// carries.
	maxSourcePorts, maxRepeats = 128, 64
	minPacket, maxPacket       = 129, 65_000
)

func (s service) ProbeUnderlay(ctx context.Context, req *connect.Request[dyetracev1.ProbeUnderlayRequest]) (*connect.Response[dyetracev1.ProbeUnderlayResponse], error) {
	need, err := s.exchange(req.Msg)
	if err != nil {
		return nil, err
	}
	m := need.Proto(rand.Uint64()|1, s.Stain.TOS)
	if tos := req.Msg.GetTos(); tos != 0 {
		m.Tos, m.TosExact = tos, true
	}
	if n := req.Msg.GetSourcePorts(); n != 0 {
		m.SourcePorts = n
	}
	if n := req.Msg.GetRepeats(); n != 0 {
		m.Repeats = n
	}
	ctx, cancel := context.WithTimeout(ctx, underlayTimeout)
	defer cancel()
	if end, ok := ctx.Deadline(); ok { // a quarter is for the way, and for what the other host saw
		m.WithinMs = uint32(max(1, (3 * time.Until(end) / 4).Milliseconds()))
	}
	r, err := s.Fleet.ProbeUnderlay(ctx, need.From, m)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	var recall *dyetracev1.UnderlayReport
	if r.GetError() == "" && !verdict.Whole(r, len(m.GetSizes())) {
		src, _ := netip.ParseAddr(r.GetSrcIp())
		// Without its answer the way there is not told from the way back, and that is said.
		recall, _ = s.Fleet.ProbeUnderlay(ctx, need.To, verdict.RecallProto(need, m.GetSession(), src))
	}
	u := verdict.UnderlayFromProto(need, m, r, recall, 0)
	return connect.NewResponse(&dyetracev1.ProbeUnderlayResponse{Check: u.Proto()}), nil
}

// exchange reads what a request asks for.
func (s service) exchange(m *dyetracev1.ProbeUnderlayRequest) (*verdict.NeedUnderlay, error) {
	snap := s.Book.Snapshot()
	var ends [2]plan.End
	var ips [2]netip.Addr
	for i, f := range []struct{ field, host, ip string }{{"src", m.GetSrcHost(), m.GetSrcIp()}, {"dst", m.GetDstHost(), m.GetDstIp()}} {
		h, ok := snap.Host(f.host)
		switch {
		case !ok:
			return nil, invalid("%s_host: no agent has reported host %q (dyetrace hosts lists them)", f.field, f.host)
		case !h.Connected:
			return nil, connect.NewError(connect.CodeUnavailable, errors.New("the agent of "+f.host+" is not connected"))
		}
		if f.ip != "" {
			var err error
			if ips[i], err = netip.ParseAddr(f.ip); err != nil {
				return nil, invalid("%s_ip: %q, want a tunnel address of %s", f.field, f.ip, f.host)
			}
		}
		ends[i] = plan.End{Host: h.Name, VTEPs: h.VTEPs(), Tunnels: h.Tunnels(), Echo: h.Echo(), MTU: largestMTU(h)}
	}
	switch {
	case m.GetSrcHost() == m.GetDstHost():
		return nil, invalid("dst_host: the same as src_host, want another")
	case m.GetTos() > 255:
		return nil, invalid("tos: %d, want at most 255", m.GetTos())
	case m.GetSize() != 0 && (m.GetSize() < minPacket || m.GetSize() > maxPacket):
		return nil, invalid("size: %d, want %d to %d, or 0 for what the tunnels need", m.GetSize(), minPacket, maxPacket)
	case m.GetSourcePorts() > maxSourcePorts:
		return nil, invalid("source_ports: %d, want at most %d", m.GetSourcePorts(), maxSourcePorts)
	case m.GetRepeats() > maxRepeats:
		return nil, invalid("repeats: %d, want at most %d", m.GetRepeats(), maxRepeats)
	}
	need, why := verdict.BetweenHosts(&ends[0], &ends[1], ips[0], ips[1], m.GetTunnel())
	if need == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New(why))
	}
	if m.GetSize() != 0 {
		need.Large = int(m.GetSize())
	}
	return need, nil
}

// largestMTU is that of the host's instances; 0 where none is known.
func largestMTU(h inventory.Host) int {
	most := uint32(0)
	for _, n := range h.MTUs {
		most = max(most, n)
	}
	return int(most)
}
