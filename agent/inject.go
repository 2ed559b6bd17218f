package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/packetio"
	"github.com/dyetrace/dyetrace/stain"
)

const (
	// One sendmmsg(2) takes 64 frames: more did not send faster when measured.
	injectBatch = 64
	// Columns of one Inject; the controller splits larger ones.
	maxInject = 65536
)

// entry is where probes of one instance enter.
type entry struct {
	bridge *bridge
	port   *packetio.Port
	ofport uint16
	fail   *dyetracev1.InjectFailure // why none can
}

// inject sends the probes that the controller asked for and tells which left.
func (a *Agent) inject(ctx context.Context, req *dyetracev1.Inject) {
	if err := checkInject(req); err != nil {
		a.refuseInject(ctx, req, err)
		return
	}
	run := a.runs.get(req.Run)
	if run == nil {
		a.say(ctx, injected(failAll(req, "the run is not known on this host, or has expired")))
		return
	}
	entries := a.entries(req.Ports)
	own := rate.NewLimiter(rate.Inf, injectBatch)
	if req.Rate > 0 {
		own = rate.NewLimiter(rate.Limit(req.Rate), injectBatch)
	}
	for from := 0; from < len(req.Index); from += injectBatch {
		to := min(from+injectBatch, len(req.Index))
		if own.WaitN(ctx, to-from) != nil || a.pace.WaitN(ctx, to-from) != nil {
			return // the session ended; the controller knows
		}
		a.say(ctx, injected(a.injectBatch(run, req, entries, from, to)))
	}
}

func (a *Agent) refuseInject(ctx context.Context, req *dyetracev1.Inject, err error) {
	a.log.Warn("inject refused", "run", req.Run, "err", err)
	a.say(ctx, injected(failAll(req, err.Error())))
}

// checkInject refuses columns that do not fit each other; the error names the column.
func checkInject(req *dyetracev1.Inject) error {
	n := len(req.Index)
	if n > maxInject {
		return fmt.Errorf("index: %d probes in one request (want at most %d)", n, maxInject)
	}
	for _, c := range []struct {
		name string
		have int
		want int
	}{
		{"port", len(req.Port), n},
		{"src_mac", len(req.SrcMac), n},
		{"dst_mac", len(req.DstMac), n},
		{"src_ip", len(req.SrcIp), 16 * n},
		{"dst_ip", len(req.DstIp), 16 * n},
		{"ttl", len(req.Ttl), n},
	} {
		if c.have != c.want {
			return fmt.Errorf("%s: %d entries or bytes for %d probes (want %d)", c.name, c.have, n, c.want)
		}
	}
	for i, p := range req.Port {
		if int(p) >= len(req.Ports) {
			return fmt.Errorf("port[%d]: %d of %d ports", i, p, len(req.Ports))
		}
	}
	return nil
}

// entries finds the ports by which probes are to enter, as they are now.
func (a *Agent) entries(refs []*dyetracev1.PortRef) []entry {
	snap := a.sw.Snapshot()
	out := make([]entry, len(refs))
	for i, ref := range refs {
		out[i] = a.entry(snap, ref)
	}
	return out
}

func (a *Agent) entry(snap dataplane.Snapshot, ref *dyetracev1.PortRef) entry {
	fail := func(absent bool, format string, args ...any) entry {
		return entry{fail: &dyetracev1.InjectFailure{Reason: fmt.Sprintf(format, args...), PortAbsent: absent}}
	}
	found, ok := snap.Bridge(ref.Bridge)
	if !ok {
		return fail(true, "bridge %s is not on host %s", ref.Bridge, a.cfg.Host)
	}
	port, ok := found.Port(ref.Port)
	if !ok {
		return fail(true, "port %s is not on bridge %s of host %s", ref.Port, ref.Bridge, a.cfg.Host)
	}
	if port.OFPort == 0 {
		return fail(port.Error != "", "port %s on bridge %s of host %s has no OpenFlow number: %s",
			ref.Port, ref.Bridge, a.cfg.Host, cmp.Or(port.Error, "Open vSwitch has not opened it yet"))
	}
	b, _, err := a.hooks.live(ref.Bridge, a.cfg.Host)
	if err != nil {
		return fail(false, "%v", err)
	}
	dye := b.port.Load()
	if dye == nil {
		return fail(false, "the dye port of bridge %s of host %s is closed", ref.Bridge, a.cfg.Host)
	}
	return entry{bridge: b, port: dye, ofport: port.OFPort}
}

// injectBatch sends the probes from..to, those of one bridge after another in the
// order asked for.
func (a *Agent) injectBatch(run *activeRun, req *dyetracev1.Inject, entries []entry, from, to int) *dyetracev1.Injected {
	res := &dyetracev1.Injected{Run: req.Run}
	st := a.hooks.currentStain()
	settle := time.Duration(req.SettleMs) * time.Millisecond
	var out outgoing
	for i := from; i < to; i++ {
		e := entries[req.Port[i]]
		if e.fail != nil {
			res.Failures = append(res.Failures, &dyetracev1.InjectFailure{
				Index: req.Index[i], Reason: e.fail.Reason, PortAbsent: e.fail.PortAbsent})
			continue
		}
		p := probe(run, req, i)
		if p.Scheme == stain.TCP && a.fragile(e.bridge) {
			res.Failures = append(res.Failures, &dyetracev1.InjectFailure{Index: req.Index[i], Reason: fragile})
			continue
		}
		frame, err := st.AppendFrame(nil, e.ofport, p)
		if err != nil {
			res.Failures = append(res.Failures, &dyetracev1.InjectFailure{Index: req.Index[i], Reason: err.Error()})
			continue
		}
		if out.port != e.port {
			a.send(res, &out, settle)
			out.port = e.port
		}
		out.frames = append(out.frames, frame)
		out.probes = append(out.probes, openProbe{run: req.Run, index: req.Index[i], bridge: e.bridge, ofport: e.ofport, probe: p})
	}
	a.send(res, &out, settle)
	return res
}

// outgoing is frames for one dye port, and the probes in them.
type outgoing struct {
	port   *packetio.Port
	frames [][]byte
	probes []openProbe
}

// send hands frames to their dye port, notes what became of each, and empties out.
func (a *Agent) send(res *dyetracev1.Injected, out *outgoing, settle time.Duration) {
	if len(out.frames) == 0 {
		return
	}
	if settle > 0 {
		if err := a.open.add(out.probes, settle); err != nil { // before they leave: an answer can be back before Send is
			failed(res, out.probes, err.Error())
			*out = outgoing{}
			return
		}
	}
	at := a.now()
	sent, err := out.port.Send(out.frames)
	a.metrics.injected.Add(float64(sent))
	a.injectedCount.Add(uint64(sent))
	for _, p := range out.probes[:sent] {
		res.Index = append(res.Index, p.index)
		res.AtNs = append(res.AtNs, uint64(at))
	}
	reason := "the dye port took no more frames"
	if err != nil {
		reason = "dye port: " + err.Error()
	}
	failed(res, out.probes[sent:], reason)
	*out = outgoing{}
}

// failed notes probes that did not leave.
func failed(res *dyetracev1.Injected, probes []openProbe, reason string) {
	for _, p := range probes {
		res.Failures = append(res.Failures, &dyetracev1.InjectFailure{Index: p.index, Reason: reason})
	}
}

func probe(run *activeRun, req *dyetracev1.Inject, i int) stain.Probe {
	return stain.Probe{
		Scheme: schemeOf(req.Scheme),
		SrcMAC: stain.MACFromUint64(req.SrcMac[i]),
		DstMAC: stain.MACFromUint64(req.DstMac[i]),
		Src:    addrAt(req.SrcIp, i),
		Dst:    addrAt(req.DstIp, i),
		TTL:    req.Ttl[i],
		Token:  run.tokens.At(req.Index[i]),
	}
}

// schemeOf reads a scheme of the contract; one that is not given is tcp.
func schemeOf(s dyetracev1.Scheme) stain.Scheme {
	if s == dyetracev1.Scheme_SCHEME_UNSPECIFIED {
		return stain.TCP
	}
	return stain.Scheme(s)
}

func addrAt(column []byte, i int) netip.Addr {
	return netip.AddrFrom16([16]byte(column[16*i : 16*i+16])).Unmap()
}

func failAll(req *dyetracev1.Inject, reason string) *dyetracev1.Injected {
	res := &dyetracev1.Injected{Run: req.Run}
	for _, index := range req.Index {
		res.Failures = append(res.Failures, &dyetracev1.InjectFailure{Index: index, Reason: reason})
	}
	return res
}

func injected(m *dyetracev1.Injected) *dyetracev1.SessionRequest {
	return &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Injected{Injected: m}}
}

// fragile is why no probe by TCP is sent on a bridge.
const fragile = "probes by TCP could end its ovs-vswitchd, icmp is safe (docs/ovn.md)"

// fragile says that a probe by TCP may end ovs-vswitchd: see flows.CommitsNAT. The kernel's datapath
// has another connection tracking. 3.3 keeps one entry for both directions; 3.5.0 does not abort (tried),
// 3.1.0 does, and 2.15.0 loses such connections.
func (a *Agent) fragile(b *bridge) bool {
	if !b.nat.Load() {
		return false
	}
	snap := a.sw.Snapshot()
	found, _ := snap.Bridge(b.name)
	var major, minor int
	if n, _ := fmt.Sscanf(snap.OVSVersion, "%d.%d", &major, &minor); n == 2 && (major > 3 || major == 3 && minor >= 3) {
		return false
	}
	return found.DatapathType == "netdev"
}
