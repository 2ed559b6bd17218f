package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/underlay"
	"github.com/dyetrace/dyetrace/flows"
)

const (
	// maxUnderlay bounds the requests taken, parallelUnderlay those that are made at a time: each
	// has up to 128 sockets, and sends bursts of up to 200 kB.
	maxUnderlay      = 64
	parallelUnderlay = 4
	// maxWeight is more than that of the largest datagram (underlay.Weight).
	maxWeight = 64
	// recallPatience is how long what came is waited for to be read before it is told of. The controller
	// waits a little longer for the answer.
	recallPatience = 800 * time.Millisecond
	// lookAgain is after how long the kernel is asked anew where it would send from to a tunnel's
	// other end. Routes change without a word to Open vSwitch; 2,000 tunnels take some 10 ms.
	lookAgain = 30 * time.Second
)

// echo is the host's part in underlay probes.
type echo struct {
	responder *underlay.Responder // nil: switched off
	streams   *underlay.Streams
	slots     chan struct{}
	pace      *rate.Limiter // of exchanges
	sent      atomic.Uint64

	setting sync.Mutex // held while streams are set, and with them what is to be tried again; taken before mu
	mu      sync.Mutex
	key     *underlay.Key
	tunnels []tunnelEnds
	looked  time.Time
	at      []netip.Addr               // of this host, by the last look
	asked   *dyetracev1.StreamUnderlay // of which some could not be had; nil for none
	tried   time.Time
}

// tunnelEnds are a tunnel port's name and addresses; zero where it has none.
type tunnelEnds struct {
	port          string
	local, remote netip.Addr
	tos           string // dataplane.Port.ToS
	fragments     bool
}

// outer is the ToS of the tunnel's packets, whose own one is inner (ovs-vswitchd.conf.db(5),
// options:tos). The ECN bits are none of ours.
func (t tunnelEnds) outer(inner uint8) uint8 {
	if t.tos == "inherit" {
		return inner &^ 3
	}
	fixed, _ := strconv.ParseUint(t.tos, 0, 8) // what Open vSwitch does not understand either is 0
	return uint8(fixed) &^ 3
}

// newEcho returns the part of a host that answers at a port, and sends so many packets a second in streams, and as many in exchanges.
func newEcho(port, most int, log *slog.Logger) *echo {
	e := &echo{slots: make(chan struct{}, parallelUnderlay), streams: underlay.NewStreams(float64(most)),
		pace: rate.NewLimiter(rate.Limit(most), max(most, maxWeight))}
	if port != 0 {
		e.responder = underlay.NewResponder(uint16(port), log)
	}
	return e
}

func (e *echo) close() {
	if e.responder != nil {
		e.responder.Close()
	}
}

// setKey takes the key of a controller that has welcomed us. One that gives none knows of no
// underlay probes: then nobody is answered who was not before.
func (e *echo) setKey(key []byte) {
	if len(key) != underlay.KeySize || e.responder == nil {
		return
	}
	k := underlay.Key(key)
	e.responder.SetKey(k)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.key = &k
}

// follow has the responder listen where the host's tunnels now end.
func (e *echo) follow(snap dataplane.Snapshot, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ends := endsOf(snap)
	if !slices.Equal(ends, e.tunnels) || now.Sub(e.looked) > lookAgain {
		e.tunnels, e.looked, e.at = ends, now, localEnds(ends)
	}
	if e.responder != nil && e.key != nil {
		e.responder.Listen(e.at) // where it failed before it may not now
	}
}

func endsOf(snap dataplane.Snapshot) []tunnelEnds {
	var ends []tunnelEnds
	for _, b := range snap.Bridges {
		for _, p := range b.Ports {
			if !p.IsTunnel() {
				continue
			}
			local, _ := netip.ParseAddr(p.LocalIP) // the zero Addr for none, or "flow"
			remote, _ := netip.ParseAddr(p.RemoteIP)
			ends = append(ends, tunnelEnds{p.Name, local.Unmap(), remote.Unmap(), p.ToS, p.Fragments})
		}
	}
	return ends
}

// localEnds are the addresses of this host: those that ports name, and where one does not, the one
// from which the kernel would send to the other end.
func localEnds(ends []tunnelEnds) []netip.Addr {
	set := map[netip.Addr]bool{}
	for _, t := range ends {
		switch {
		case t.local.IsValid():
			set[t.local] = true
		case t.remote.IsValid():
			if a, err := underlay.SourceFor(t.remote); err == nil { // else there is no way there now
				set[a] = true
			}
		}
	}
	var at []netip.Addr
	for a := range set {
		at = append(at, a)
	}
	slices.SortFunc(at, netip.Addr.Compare)
	return at
}

// message is what the controller is told of it.
func (e *echo) message() *dyetracev1.UnderlayEcho {
	m := &dyetracev1.UnderlayEcho{}
	if e.responder == nil {
		return m
	}
	m.Port, m.Streams, m.StreamRate = uint32(e.responder.Port()), true, underlay.MaxStreamRate
	at, problems := e.responder.Addresses()
	for _, a := range at {
		m.Addresses = append(m.Addresses, a.String())
	}
	for _, err := range problems {
		m.Problems = append(m.Problems, err.Error())
	}
	return m
}

func (e *echo) count(c *dyetracev1.AgentCounters) {
	c.UnderlaySent = e.sent.Load()
	s := e.streams.Counters()
	c.UnderlayStreamed, c.UnderlayUnclear, c.UnderlaySilences = s.Sent, s.Unclear, s.Silences
	if e.responder != nil {
		n := e.responder.Counters()
		c.UnderlayAnswered, c.UnderlayRefused, c.UnderlayLimited = n.Answered, n.Refused, n.Limited
	}
}

func (e *echo) metrics() []prometheus.Collector {
	counter := func(name, help string, of func(*dyetracev1.AgentCounters) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "dyetrace", Subsystem: "agent", Name: name, Help: help},
			func() float64 {
				var c dyetracev1.AgentCounters
				e.count(&c)
				return float64(of(&c))
			})
	}
	return []prometheus.Collector{
		counter("underlay_sent_total", "Datagrams sent to other agents' tunnel addresses.", (*dyetracev1.AgentCounters).GetUnderlaySent),
		counter("underlay_answered_total", "Other agents' datagrams answered.", (*dyetracev1.AgentCounters).GetUnderlayAnswered),
		counter("underlay_refused_total", "Datagrams dropped because they were not authentic.", (*dyetracev1.AgentCounters).GetUnderlayRefused),
		counter("underlay_limited_total", "Datagrams not answered because of the rate.", (*dyetracev1.AgentCounters).GetUnderlayLimited),
		counter("underlay_streamed_total", "Datagrams sent in streams to other agents' tunnel addresses, for continuous runs.", (*dyetracev1.AgentCounters).GetUnderlayStreamed),
		counter("underlay_unclear_total", "Datagrams of streams of which nothing is claimed: a fault of ours, or several in a row were lost.", (*dyetracev1.AgentCounters).GetUnderlayUnclear),
		counter("underlay_silences_total", "Streams to other agents' tunnel addresses that had been answered and had no answer any more, and were told of.", (*dyetracev1.AgentCounters).GetUnderlaySilences),
	}
}

// state describes the host as it is now.
func (a *Agent) state() *dyetracev1.HostState {
	snap := a.sw.Snapshot()
	a.echo.follow(snap, time.Now())
	a.streamAgain(time.Now())
	state := a.hooks.state()
	state.Underlay = a.echo.message()
	state.EndpointMtu = mtus(snap, state.Endpoints)
	return state
}

// mtus are of the endpoints' ports, in their order.
func mtus(snap dataplane.Snapshot, endpoints []*dyetracev1.Endpoint) []uint32 {
	type place struct{ bridge, port string }
	of := map[place]int{}
	for _, b := range snap.Bridges {
		for _, p := range b.Ports {
			if p.Role == flows.Instance {
				of[place{b.Name, p.Name}] = p.MTU
			}
		}
	}
	list := make([]uint32, len(endpoints))
	for i, e := range endpoints {
		list[i] = uint32(of[place{e.Bridge, e.Port}])
	}
	return list
}

// probeUnderlay answers what UDP does between a tunnel address of this host and one of another, or
// what of another host's exchange came here.
func (a *Agent) probeUnderlay(ctx context.Context, req *dyetracev1.ProbeUnderlay) {
	within := underlay.MaxExchange
	if n := req.WithinMs; n > 0 {
		within = min(within, time.Duration(n)*time.Millisecond)
	}
	timed, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	m, err := a.exchange(timed, req, within/2)
	if err != nil {
		a.say(ctx, underlayError(req.Id, err))
		return
	}
	m.Id = req.Id
	a.say(ctx, &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_UnderlayReport{UnderlayReport: m}})
}

// errUnderlayBusy says that an exchange was not begun, for want of room.
var errUnderlayBusy = errors.New("other exchanges of this host take its time")

func underlayError(id uint64, err error) *dyetracev1.SessionRequest {
	return &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_UnderlayReport{
		UnderlayReport: &dyetracev1.UnderlayReport{Id: id, Error: err.Error(), Busy: errors.Is(err, errUnderlayBusy)},
	}}
}

// turn takes a slot as soon as there is one; who waits for longer than patience is not served.
func (e *echo) turn(ctx context.Context, patience time.Duration) error {
	select {
	case e.slots <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case e.slots <- struct{}{}:
		return nil
	case <-timer.C:
		return fmt.Errorf("%d are being made, none of which ended within %v: %w", parallelUnderlay, patience, errUnderlayBusy)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// exchange makes one, or tells of another host's. One that has to wait for others for longer than patience is not begun.
func (a *Agent) exchange(ctx context.Context, req *dyetracev1.ProbeUnderlay, patience time.Duration) (*dyetracev1.UnderlayReport, error) {
	e := a.echo
	src, dst := addr16(req.SrcIp), addr16(req.DstIp)
	switch {
	case !dst.IsValid():
		return nil, fmt.Errorf("probe underlay: dst_ip: %d bytes (want 16)", len(req.DstIp))
	case e.responder == nil:
		return nil, fmt.Errorf("underlay probes are switched off on %s (underlay_port: 0)", a.cfg.Host)
	case req.Recall:
		if err := e.responder.CaughtUp(dst, recallPatience); err != nil {
			return nil, err
		}
		return e.recall(req.Session, src, dst), nil
	}
	e.mu.Lock()
	key := e.key
	t, err := e.tunnel(req.Tunnel, src, dst)
	e.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("probe underlay: %w", err)
	}
	if !src.IsValid() {
		src = t.local
	}
	tos := uint8(req.Tos)
	if !req.TosExact {
		tos = t.outer(tos)
	}
	if key == nil {
		return nil, fmt.Errorf("%s has no key for underlay probes yet", a.cfg.Host)
	}
	if err := e.turn(ctx, patience); err != nil {
		return nil, fmt.Errorf("probe underlay on %s: %w", a.cfg.Host, err)
	}
	defer func() { <-e.slots }()
	x := underlay.Exchange{
		Src: src, Dst: dst, Port: uint16(req.Port), ToS: tos, SourcePorts: int(req.SourcePorts), Repeats: int(req.Repeats),
		Wait: time.Duration(req.WaitMs) * time.Millisecond, FindMTU: req.FindMtu, Session: req.Session, Pace: e.pace,
	}
	for _, s := range req.Sizes {
		x.Sizes = append(x.Sizes, int(s))
	}
	r, err := underlay.Probe(ctx, *key, x)
	e.sent.Add(uint64(r.Sent))
	if err != nil {
		return nil, fmt.Errorf("probe underlay: %w", err)
	}
	m := reportMessage(r, dst)
	m.MayFragment, m.Tos = t.fragments, uint32(tos)
	return m, nil
}

// tunnel is the one by that port, or if none is named the first between two addresses, or from any to dst if src is not
// given; one without a remote address, which flows steer, is second best, and where there is none it is the zero value.
// One that is named must lead there: what another does to its packets tells nothing of it.
func (e *echo) tunnel(port string, src, dst netip.Addr) (best tunnelEnds, err error) {
	found := port == ""
	for _, t := range e.tunnels {
		if port != "" && t.port != port {
			continue
		}
		switch fits := !src.IsValid() || !t.local.IsValid() || t.local == src; {
		case fits && t.remote == dst:
			return t, nil
		case fits && !t.remote.IsValid() && (!t.local.IsValid() || t.local.Is4() == dst.Is4()):
			best, found = t, true
		}
	}
	if !found {
		return best, fmt.Errorf("no tunnel port %s leads to %s (any more)", port, dst)
	}
	return best, nil
}

func (e *echo) recall(session uint64, asker, at netip.Addr) *dyetracev1.UnderlayReport {
	m := &dyetracev1.UnderlayReport{Listening: true}
	if err := e.responder.Problem(at); err != nil {
		m.Listening, m.Problem = false, err.Error()
	}
	r := e.responder.Recall(session, asker, at, time.Now())
	m.Seen, m.Limited = r.Seen, r.Limited
	if r.FromOthers >= 0 {
		m.FromOthersNs = uint64(r.FromOthers.Nanoseconds()) + 1
	}
	if r.FromAsker >= 0 {
		m.FromAskerNs = uint64(r.FromAsker.Nanoseconds()) + 1
	}
	return m
}

func reportMessage(r underlay.Report, dst netip.Addr) *dyetracev1.UnderlayReport {
	m := &dyetracev1.UnderlayReport{SrcIp: r.Src.String(), DstIp: dst.String(), Passes: uint32(r.Passes), TosSeen: uint32(r.ToSSeen)}
	for _, p := range r.SourcePorts {
		m.SourcePorts = append(m.SourcePorts, uint32(p))
	}
	for _, c := range r.Cells {
		m.Sent = append(m.Sent, uint32(c.Sent))
		m.Answered = append(m.Answered, uint32(c.Answered))
		m.RttNs = append(m.RttNs, uint64(c.RTT.Nanoseconds()))
	}
	for _, x := range r.Refusals {
		u := &dyetracev1.UnderlayError{
			Type: uint32(x.Type), Code: uint32(x.Code), Mtu: uint32(x.MTU), Text: x.String(), Count: uint32(x.Count), Size: uint32(x.Size),
		}
		if x.From.IsValid() {
			u.From = x.From.String()
		}
		m.Errors = append(m.Errors, u)
	}
	return m
}

// addr16 reads an address of the contract's; the zero Addr for none.
func addr16(b []byte) netip.Addr {
	if len(b) != 16 {
		return netip.Addr{}
	}
	return addrAt(b, 0)
}
