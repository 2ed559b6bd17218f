package agent

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/ovn"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/stain"
)

const (
	// ofproto/trace runs in ovs-vswitchd's main thread: two at a time keep a
	// large run's explanations from starving the switch.
	maxExplain     = 64
	parallelTraces = 2
	explainTimeout = 10 * time.Second // at most what the controller waits, which may be less
)

// explain answers what this host's flows do with a packet.
func (a *Agent) explain(ctx context.Context, req *dyetracev1.Explain) {
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	by := namesBy(req, time.Now())
	asked, err := a.traceRequest(req)
	if err == nil {
		asked.Geneve, err = a.geneveOption(ctx, req.Bridge, asked, by)
	}
	var ex *dyetracev1.Explanation
	if err == nil {
		ex, err = a.explained(ctx, req, asked, by)
	}
	if err != nil {
		a.say(ctx, explanationError(req.Id, err))
		return
	}
	a.say(ctx, &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Explanation{Explanation: ex}})
}

// explained is what the flows do with a packet, with OVN's name of the one that drops it.
func (a *Agent) explained(ctx context.Context, req *dyetracev1.Explain, asked ovs.TraceRequest, by time.Time) (*dyetracev1.Explanation, error) {
	ex, drop, err := a.traced(ctx, req, asked)
	if err == nil && drop != nil && !a.name(ctx, ex, *drop, by) {
		ex = a.again(ctx, req, asked, ex, *drop, by)
	}
	return ex, err
}

// traced has the switch trace a packet when its turn has come. drop is the flow that drops it, if OVN may have a name for that.
func (a *Agent) traced(ctx context.Context, req *dyetracev1.Explain, asked ovs.TraceRequest) (ex *dyetracev1.Explanation, drop *ovn.Flow, err error) {
	done, err := a.turn(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer done()
	trace, err := a.sw.Trace(ctx, req.Bridge, asked)
	if err != nil {
		return nil, nil, err
	}
	ex = explanation(req.Id, trace)
	ex.LogicalCommand = logicalCommand(a.sw.Snapshot(), req, asked, trace)
	if trace.Outcome == ovs.Dropped {
		drop = a.own(ctx, ex, trace)
	}
	return ex, drop, nil
}

// again traces a packet once more that was dropped by a flow whose row OVN's southbound database has no more. Either OVN has
// made the row anew and the host follows: the new answer counts. Or ovn-controller has not taken the flow away: whether what
// it does is still meant, nobody can tell.
func (a *Agent) again(ctx context.Context, req *dyetracev1.Explain, asked ovs.TraceRequest, ex *dyetracev1.Explanation, gone ovn.Flow, by time.Time) *dyetracev1.Explanation {
	next, drop, err := a.traced(ctx, req, asked)
	switch {
	case err != nil:
		ex.Unnamed = fmt.Sprintf("%s; tracing it once more: %v", rowGone, err)
		return ex
	case drop != nil && drop.Cookie == gone.Cookie && drop.Table == gone.Table && drop.Priority == gone.Priority:
		next.Unnamed = rowGone
	case drop != nil && !a.name(ctx, next, *drop, by):
		next.Unnamed = rowGone
	}
	return next
}

// turn waits until the switch may be asked; done lets the next one ask it.
func (a *Agent) turn(ctx context.Context) (done func(), err error) {
	select {
	case a.traces <- struct{}{}:
		return func() { <-a.traces }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func explanation(id uint64, t ovs.Trace) *dyetracev1.Explanation {
	ex := &dyetracev1.Explanation{
		Id: id, Outcome: dyetracev1.Outcome(t.Outcome), Command: t.Command,
		Port: t.Port, TunnelRemote: t.TunnelRemote, TunnelId: t.TunnelID, Reason: t.Reason,
	}
	for _, e := range t.Exits {
		ex.Exits = append(ex.Exits, &dyetracev1.Exit{Port: e.Port, TunnelRemote: e.Remote, TunnelId: e.TunnelID, Reason: e.Reason})
	}
	switch t.Outcome {
	case ovs.Delivered:
		ex.Port = strings.Join(t.Ports, ",")
	case ovs.Dropped:
		f := t.Flow.Flow
		ex.Flow = &dyetracev1.FlowRef{
			Bridge: t.Flow.Bridge, Table: uint32(f.Table), Priority: uint32(f.Priority),
			Match: f.Match, Actions: f.Actions, Cookie: f.Cookie,
		}
	}
	return ex
}

// traceRequest is the packet that the controller described, as the switch is asked about it.
func (a *Agent) traceRequest(req *dyetracev1.Explain) (ovs.TraceRequest, error) {
	in := uint16(req.InPort)
	if req.Port != "" {
		found, ok := a.sw.Snapshot().Bridge(req.Bridge)
		if !ok {
			return ovs.TraceRequest{}, fmt.Errorf("explain: bridge: %q is not on host %s", req.Bridge, a.cfg.Host)
		}
		port, ok := found.Port(req.Port)
		if !ok {
			return ovs.TraceRequest{}, fmt.Errorf("explain: port: %q is not on bridge %s of host %s", req.Port, req.Bridge, a.cfg.Host)
		}
		in = port.OFPort
	}
	if len(req.SrcIp) != 16 || len(req.DstIp) != 16 {
		return ovs.TraceRequest{}, fmt.Errorf("explain: src_ip, dst_ip: %d and %d bytes (want 16 each)", len(req.SrcIp), len(req.DstIp))
	}
	t := ovs.TraceRequest{
		InPort: in,
		SrcMAC: stain.MACFromUint64(req.SrcMac), DstMAC: stain.MACFromUint64(req.DstMac),
		Src: addrAt(req.SrcIp, 0), Dst: addrAt(req.DstIp, 0), TTL: uint8(req.Ttl),
		TunID: req.TunId, Reply: req.Reply, Scheme: schemeOf(req.Scheme), Flags: uint8(req.TcpFlags), Stain: a.hooks.currentStain(),
	}
	if req.TunSrc != 0 {
		t.TunSrc, t.TunDst = ipv4(req.TunSrc), ipv4(req.TunDst)
	}
	for _, a := range []struct {
		name string
		have []byte
		to   *netip.Addr
	}{{"tun_src_ip", req.TunSrcIp, &t.TunSrc}, {"tun_dst_ip", req.TunDstIp, &t.TunDst}} {
		switch len(a.have) {
		case 0:
		case 16:
			*a.to = addrAt(a.have, 0)
		default:
			return ovs.TraceRequest{}, fmt.Errorf("explain: %s: %d bytes (want 16, or none)", a.name, len(a.have))
		}
	}
	return t, nil
}

func ipv4(v uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, v)))
}

func explanationError(id uint64, err error) *dyetracev1.SessionRequest {
	return &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Explanation{
		Explanation: &dyetracev1.Explanation{Id: id, Error: err.Error()},
	}}
}
