package verdict

import (
	"encoding/binary"
	"net/netip"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
)

// CountOf is where counts have the pairs with a verdict; nil for what is none.
func CountOf(c *dyetracev1.Counts, v dyetracev1.Verdict) *uint32 {
	switch v {
	case dyetracev1.Verdict_VERDICT_HEALTHY:
		return &c.Healthy
	case dyetracev1.Verdict_VERDICT_FAULTY:
		return &c.Faulty
	case dyetracev1.Verdict_VERDICT_SILENT:
		return &c.Silent
	case dyetracev1.Verdict_VERDICT_POLICY:
		return &c.Policy
	case dyetracev1.Verdict_VERDICT_UNKNOWN:
		return &c.Unknown
	}
	return nil
}

// Proto returns the result as users get it.
func (r *Result) Proto(pair plan.Pair) *dyetracev1.PairResult {
	m := &dyetracev1.PairResult{
		Src:     &dyetracev1.InstanceRef{Name: pair.Src.Name, Network: pair.Src.Network},
		Dst:     &dyetracev1.InstanceRef{Name: pair.Dst.Name, Network: pair.Dst.Network},
		Verdict: dyetracev1.Verdict(r.Verdict),
		Segment: r.Segment.proto(),
		Loss:    r.Loss.Proto(),
		Host:    r.Host,
		Cause:   r.Cause,
		RttNs:   r.RTTNs,
		Samples: make([]*dyetracev1.Sample, len(r.Samples)),
		Probes:  uint32(r.Probes),
		Flow:    r.Flow.proto(),
		Command: r.Command, CommandHost: r.CommandHost, LogicalCommand: r.LogicalCommand,
		TraceCommand: r.Trace, TraceHost: r.TraceHost,

		Duplicates: uint32(r.Duplicates),

		Scheme: dyetracev1.Scheme(r.Scheme), SchemeReason: r.SchemeReason, NoTouch: r.NoTouch,
		SrcIp: text(r.Src), DstIp: text(r.Dst), CauseKind: dyetracev1.CauseKind(r.Kind),
		Underlay: r.Underlay.Proto(),
	}
	for i := range r.Samples {
		m.Samples[i] = r.Samples[i].proto()
	}
	for i := range r.Latencies {
		m.Latencies = append(m.Latencies, r.Latencies[i].proto())
	}
	return m
}

// proto returns the segment as users get it; nil for none.
func (s *Segment) proto() *dyetracev1.Segment {
	if s == nil {
		return nil
	}
	m := &dyetracev1.Segment{To: point(&s.To), Direction: dyetracev1.Direction(s.To.Direction)}
	if s.From != nil {
		m.From = point(s.From)
		m.Direction = dyetracev1.Direction(s.From.Direction)
	}
	return m
}

// text is an address as it is written; empty for none.
func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func point(e *plan.Expected) *dyetracev1.Point {
	return &dyetracev1.Point{Host: e.Host, Bridge: e.Bridge, Kind: dyetracev1.PointKind(e.Kind)}
}

func (a *Aligned) proto() *dyetracev1.Sample {
	m := &dyetracev1.Sample{Point: point(&a.Expected), Seen: a.Seen, AtNs: a.AtNs, Direction: dyetracev1.Direction(a.Direction)}
	if a.Seen {
		m.Ttl, m.TunId = uint32(a.Sample.TTL), a.Sample.TunID
		if a.Sample.TunSrc.IsValid() {
			m.TunSrc = a.Sample.TunSrc.String()
		}
	}
	return m
}

func (f *Flow) proto() *dyetracev1.FlowRef {
	if f == nil {
		return nil
	}
	return &dyetracev1.FlowRef{
		Bridge: f.Bridge, Table: f.Table, Priority: f.Priority, Match: f.Match, Actions: f.Actions, Cookie: f.Cookie,
		Owner: f.Owner, Stage: f.Stage, LogicalFlow: f.Logical, Acl: f.ACL,
	}
}

// Proto returns the question as agents get it, under an id of the caller's.
func (n *NeedExplain) Proto(id uint64) *dyetracev1.Explain {
	m := &dyetracev1.Explain{
		Id: id, Bridge: n.Bridge, Port: n.Port, InPort: n.InPort,
		SrcMac: n.SrcMAC.Uint64(), DstMac: n.DstMAC.Uint64(),
		SrcIp: as16(n.Src), DstIp: as16(n.Dst), Ttl: uint32(n.TTL),
		TunId: n.TunID, TunSrc: as32(n.TunSrc), TunDst: as32(n.TunDst), Reply: n.Reply,
		Scheme: dyetracev1.Scheme(n.Scheme), TcpFlags: uint32(n.Flags),
	}
	if n.TunSrc.Is6() {
		m.TunSrcIp, m.TunDstIp = as16(n.TunSrc), as16(n.TunDst)
	}
	return m
}

// as16 is an address as the contract has it: IPv4 mapped into IPv6 (RFC 4291, section 2.5.5.2).
func as16(a netip.Addr) []byte {
	if !a.IsValid() {
		return nil
	}
	b := a.As16()
	return b[:]
}

// as32 is an IPv4 address, big endian; 0 for none.
func as32(a netip.Addr) uint32 {
	if !a.Is4() {
		return 0
	}
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// Addr4 returns the address of the contract's big-endian number, such as Samples.tun_src; the
// zero Addr for 0.
func Addr4(v uint32) netip.Addr {
	if v == 0 {
		return netip.Addr{}
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}

// ExplanationFromProto reads an agent's answer to the question that asked about point. An
// answer without outcome or error is one with an error: silence must not decide.
func ExplanationFromProto(m *dyetracev1.Explanation, point int) *Explanation {
	x := &Explanation{
		Point: point, Error: m.GetError(), Outcome: Outcome(m.GetOutcome()), Port: m.GetPort(),
		TunnelRemote: m.GetTunnelRemote(), TunnelID: m.GetTunnelId(), Command: m.GetCommand(),
		Unnamed: m.GetUnnamed(), LogicalCommand: m.GetLogicalCommand(), Reason: m.GetReason(),
	}
	for _, e := range m.GetExits() {
		x.Exits = append(x.Exits, Exit{Port: e.GetPort(), Remote: e.GetTunnelRemote(), TunnelID: e.GetTunnelId(), Reason: e.GetReason()})
	}
	if f := m.GetFlow(); f != nil {
		x.Flow = &Flow{
			Bridge: f.GetBridge(), Table: f.GetTable(), Priority: f.GetPriority(), Match: f.GetMatch(), Actions: f.GetActions(), Cookie: f.GetCookie(),
			Owner: f.GetOwner(), Stage: f.GetStage(), Logical: f.GetLogicalFlow(), ACL: f.GetAcl(),
		}
	}
	if x.Error == "" && (x.Outcome < Delivered || x.Outcome > Dropped) {
		x.Error = "the agent names no outcome"
	}
	return x
}

// AuditFromProto reads one audit.
func AuditFromProto(m *dyetracev1.HookWindow) *Audit {
	return &Audit{
		Live: m.GetLive(), Reason: m.GetReason(), Epoch: m.GetEpoch(), Lost: m.GetLost(),
		Counts: countsFromProto(m.GetCounts()), Uncounted: m.GetUncounted(),
	}
}
