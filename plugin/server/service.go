package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/run"
	"github.com/dyetrace/dyetrace/plugin/store"
)

const (
	// maxTimeout bounds what a user may ask of a run: a day, after which nobody waits for it.
	maxTimeout = 24 * time.Hour
	// listDefault and listMost are those of the contract (ListRunsRequest.limit).
	listDefault, listMost = 50, 1000
)

// service implements the ControllerService.
type service struct {
	Config
	closing <-chan struct{}
}

// coded gives an error of the packages below the code that users' clients go by.
func coded(err error) error {
	if err == nil {
		return nil
	}
	code := connect.CodeInternal
	for _, c := range []struct {
		is   error
		code connect.Code
	}{
		{run.ErrScope, connect.CodeInvalidArgument},
		{run.ErrBusy, connect.CodeResourceExhausted},
		{run.ErrClosing, connect.CodeUnavailable},
		{run.ErrEnded, connect.CodeFailedPrecondition},
		{store.ErrNotFound, connect.CodeNotFound},
		{store.ErrAmbiguous, connect.CodeInvalidArgument},
		{store.ErrState, connect.CodeFailedPrecondition},
		{context.Canceled, connect.CodeCanceled},
		{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
	} {
		if errors.Is(err, c.is) {
			code = c.code
			break
		}
	}
	return connect.NewError(code, err)
}

func invalid(format string, args ...any) error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}

// checkID refuses what is no id before the store is asked.
func checkID(id string) error {
	if id == "" {
		return invalid("id: empty, want the id of a run or its beginning")
	}
	return nil
}

// checkOptions refuses numbers that have no name here: to take them for zero would probe otherwise
// than was asked.
func checkOptions(o *dyetracev1.ProbeOptions) error {
	if _, ok := dyetracev1.Scheme_name[int32(o.GetScheme())]; !ok {
		return invalid("options.scheme: %d is unknown, want SCHEME_TCP, SCHEME_ICMP, or 0 for auto", o.GetScheme())
	}
	if _, ok := dyetracev1.IPVersion_name[int32(o.GetIpVersion())]; !ok {
		return invalid("options.ip_version: %d is unknown, want IP_VERSION_4, IP_VERSION_6, or 0 for IPv4 where both ends have it", o.GetIpVersion())
	}
	if p := o.GetMaxLoss(); p != 0 && !(p >= run.MinLoss && p <= run.MaxLoss) { // NaN is neither
		return invalid("options.max_loss: %g, want a share from %g to %g, or 0 for the default", p, run.MinLoss, run.MaxLoss)
	}
	switch {
	case o.GetRate() < 0 || math.IsNaN(o.GetRate()) || math.IsInf(o.GetRate(), 0):
		return invalid("options.rate: %g, want probes per second, or 0 for the controller's own bound", o.GetRate())
	case o.GetRate() != 0 && !o.GetContinuous():
		return invalid("options.rate: %g, want 0 in a run that is not continuous", o.GetRate())
	case o.GetContinuous() && o.GetLoss():
		return invalid("options.loss: a continuous run measures loss all the time, want one of the two")
	case o.GetContinuous() && o.GetNoTouch():
		return invalid("options.no_touch: continuous runs cannot, want one of the two")
	}
	return nil
}

func (s service) StartRun(ctx context.Context, req *connect.Request[dyetracev1.StartRunRequest]) (*connect.Response[dyetracev1.StartRunResponse], error) {
	timeout := time.Duration(req.Msg.GetTimeoutMs()) * time.Millisecond
	if timeout > maxTimeout {
		return nil, invalid("timeout_ms: %d, want at most %d (a day), or 0 for the default", req.Msg.GetTimeoutMs(), maxTimeout.Milliseconds())
	}
	if err := checkOptions(req.Msg.GetOptions()); err != nil {
		return nil, err
	}
	r, err := s.Runner.Start(ctx, req.Msg.GetScope(), req.Msg.GetOptions(), timeout)
	if err != nil {
		return nil, coded(err)
	}
	return connect.NewResponse(&dyetracev1.StartRunResponse{Run: r}), nil
}

func (s service) WatchRun(ctx context.Context, req *connect.Request[dyetracev1.WatchRunRequest], stream *connect.ServerStream[dyetracev1.WatchRunResponse]) error {
	if err := checkID(req.Msg.GetId()); err != nil {
		return err
	}
	return coded(s.Runner.Watch(ctx, req.Msg.GetId(), func(m *dyetracev1.WatchRunResponse) error {
		return patiently(ctx, func() error { return stream.Send(m) })
	}))
}

func (s service) GetRun(ctx context.Context, req *connect.Request[dyetracev1.GetRunRequest]) (*connect.Response[dyetracev1.GetRunResponse], error) {
	if err := checkID(req.Msg.GetId()); err != nil {
		return nil, err
	}
	r, pairs, err := s.Runner.Get(ctx, req.Msg.GetId())
	if err != nil {
		return nil, coded(err)
	}
	return connect.NewResponse(&dyetracev1.GetRunResponse{Run: r, Pairs: pairs}), nil
}

func (s service) ListRuns(ctx context.Context, req *connect.Request[dyetracev1.ListRunsRequest]) (*connect.Response[dyetracev1.ListRunsResponse], error) {
	limit := int(req.Msg.GetLimit())
	switch {
	case limit == 0:
		limit = listDefault
	case limit > listMost:
		return nil, invalid("limit: %d, want at most %d", limit, listMost)
	}
	runs, err := s.Runner.List(ctx, req.Msg.GetBefore(), limit)
	if err != nil {
		return nil, coded(err)
	}
	return connect.NewResponse(&dyetracev1.ListRunsResponse{Runs: runs}), nil
}

func (s service) ResumeRun(ctx context.Context, req *connect.Request[dyetracev1.ResumeRunRequest]) (*connect.Response[dyetracev1.ResumeRunResponse], error) {
	if err := checkID(req.Msg.GetId()); err != nil {
		return nil, err
	}
	r, err := s.Runner.Resume(ctx, req.Msg.GetId())
	if err != nil {
		return nil, coded(err)
	}
	return connect.NewResponse(&dyetracev1.ResumeRunResponse{Run: r}), nil
}

func (s service) CancelRun(ctx context.Context, req *connect.Request[dyetracev1.CancelRunRequest]) (*connect.Response[dyetracev1.CancelRunResponse], error) {
	if err := checkID(req.Msg.GetId()); err != nil {
		return nil, err
	}
	r, err := s.Runner.Cancel(ctx, req.Msg.GetId())
	if err != nil {
		return nil, coded(err)
	}
	return connect.NewResponse(&dyetracev1.CancelRunResponse{Run: r}), nil
}

func (s service) ListHosts(context.Context, *connect.Request[dyetracev1.ListHostsRequest]) (*connect.Response[dyetracev1.ListHostsResponse], error) {
	return connect.NewResponse(&dyetracev1.ListHostsResponse{Hosts: s.hosts()}), nil
}

func (s service) ListInstances(_ context.Context, req *connect.Request[dyetracev1.ListInstancesRequest]) (*connect.Response[dyetracev1.ListInstancesResponse], error) {
	snap := s.Book.Snapshot()
	network := req.Msg.GetNetwork()
	if _, ok := snap.Network(network); network != "" && !ok {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("network: %q is not in the inventory", network))
	}
	res := &dyetracev1.ListInstancesResponse{}
	for _, in := range snap.Instances() {
		if network != "" && in.Network != network {
			continue
		}
		m := &dyetracev1.Instance{
			Name: in.Name, Network: in.Network, Mac: in.MAC.String(), Host: in.Host, Source: in.Source,
		}
		for _, a := range in.IPs {
			m.Ips = append(m.Ips, a.String())
		}
		m.Ip = m.Ips[0] // the inventory takes no instance without
		if ep, err := snap.Endpoint(in); err == nil {
			m.Host = ep.Host
			m.Endpoint = &dyetracev1.Endpoint{
				Bridge: ep.Bridge, Port: ep.Port, Ofport: ep.OFPort, Mac: ep.MAC, IfaceId: ep.IfaceID, LinkState: ep.LinkState, Unsampled: ep.Unsampled,
			}
		}
		res.Instances = append(res.Instances, m)
	}
	return connect.NewResponse(res), nil
}

func (s service) GetStatus(context.Context, *connect.Request[dyetracev1.GetStatusRequest]) (*connect.Response[dyetracev1.GetStatusResponse], error) {
	snap := s.Book.Snapshot()
	hosts := s.hosts()
	res := &dyetracev1.GetStatusResponse{
		Version: s.Version, Started: timestamppb.New(s.Started), Stain: fleet.StainProto(s.Stain),
		Instances: uint32(len(snap.Instances())), Pairs: uint32(plan.Count(snap)), RunsActive: uint32(s.Runner.Active()),
	}
	for _, h := range hosts {
		if !h.GetExpected() && !h.GetConnected() {
			continue // it was here once, and nobody misses it
		}
		res.HostsExpected++
		why := unready(h)
		if len(why) == 0 {
			res.HostsReady++
		}
		res.Problems = append(res.Problems, why...)
	}
	res.Problems = append(res.Problems, homeless(snap)...)
	res.Problems = append(res.Problems, s.Fleet.Problems()...)
	if s.Speaker != nil {
		for _, p := range s.Speaker.Peers() {
			res.Peers++
			if p.State == bgp.Established {
				res.PeersEstablished++
				continue
			}
			res.Problems = append(res.Problems, down(p, time.Now()))
		}
	}
	return connect.NewResponse(res), nil
}
