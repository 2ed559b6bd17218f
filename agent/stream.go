package agent

import (
	"errors"
	"fmt"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/underlay"
)

// stream has the host send these streams and no others; nil is none. It returns what is to be told of those
// that cannot be.
func (a *Agent) stream(m *dyetracev1.StreamUnderlay) (failed []*dyetracev1.UnderlayCounts) {
	a.echo.setting.Lock()
	defer a.echo.setting.Unlock()
	return a.setStreams(m)
}

// setStreams does the work of stream. Whoever calls it holds setting.
func (a *Agent) setStreams(m *dyetracev1.StreamUnderlay) (failed []*dyetracev1.UnderlayCounts) {
	e := a.echo
	e.mu.Lock()
	key := e.key
	var targets []underlay.Target
	for _, t := range m.GetTargets() {
		targets = append(targets, e.target(t))
	}
	e.mu.Unlock()
	if key == nil || e.responder == nil {
		key, targets = &underlay.Key{}, nil
	}
	if len(m.GetTargets()) > 0 && len(targets) == 0 {
		err := fmt.Sprintf("%s sends no underlay probes: they are switched off (underlay_port: 0), or it has no key yet", a.cfg.Host)
		for i := range m.Targets {
			failed = append(failed, &dyetracev1.UnderlayCounts{Set: m.Set, Target: uint32(i), Error: err})
		}
	}
	err := e.streams.Set(*key, m.GetSet(), targets, float64(m.GetExtra()))
	var bad *underlay.TargetError
	for _, err := range joined(err) {
		if errors.As(err, &bad) {
			failed = append(failed, &dyetracev1.UnderlayCounts{Set: m.Set, Target: uint32(bad.Target), Error: "stream underlay: " + err.Error()})
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked, e.tried = nil, time.Now()
	if len(failed) > 0 {
		e.asked = m
	}
	return failed
}

// streamAgain tries again what could not be had before: an address may be there by now. Streams that go are not
// touched.
func (a *Agent) streamAgain(now time.Time) {
	if m := a.echo.due(now); m != nil {
		a.tryAgain(m)
	}
}

// due is what was asked for and could not be had in full, if it is time to try it again; else nil.
func (e *echo) due(now time.Time) *dyetracev1.StreamUnderlay {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now.Sub(e.tried) < lookAgain {
		return nil
	}
	return e.asked
}

// tryAgain tries again what was due, unless other streams have been asked for since: the controller passes over what it is told of
// an older set, and does not ask for the newer one again.
func (a *Agent) tryAgain(m *dyetracev1.StreamUnderlay) {
	e := a.echo
	e.setting.Lock()
	defer e.setting.Unlock()
	e.mu.Lock()
	outdated := e.asked != m
	e.mu.Unlock()
	if !outdated {
		a.setStreams(m) // why it cannot be has been told
	}
}

// joined are the errors in one that errors.Join made.
func joined(err error) []error {
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		return list.Unwrap()
	}
	return nil
}

// target reads one of the contract's. Whoever calls it holds mu.
func (e *echo) target(m *dyetracev1.UnderlayTarget) underlay.Target {
	t := underlay.Target{
		Src: addr16(m.GetSrcIp()), Dst: addr16(m.GetDstIp()), Port: uint16(m.GetPort()), Size: int(m.GetSize()),
		Rate: float64(m.GetRateMilli()) / 1000, Suspect: float64(m.GetSuspectRateMilli()) / 1000,
	}
	tunnel, err := e.tunnel(m.GetTunnel(), t.Src, t.Dst)
	if err != nil { // it is gone, which the controller is about to hear
		tunnel, _ = e.tunnel("", t.Src, t.Dst)
	}
	if !t.Src.IsValid() {
		t.Src = tunnel.local
	}
	t.ToS = tunnel.outer(uint8(m.GetTos()))
	return t
}

// streamed tells the controller what became of a stream's datagrams, if there is room.
func (a *Agent) streamed(r underlay.StreamReport) {
	m := &dyetracev1.UnderlayCounts{Set: r.Set, Target: uint32(r.Target), SrcIp: r.Src.String(),
		Silent: uint32(r.Silent), SilentNs: uint64(r.SilentFor.Nanoseconds())}
	for i, c := range r.Counts {
		m.SourcePorts = append(m.SourcePorts, uint32(r.SourcePorts[i]))
		m.Passed, m.LostBack = append(m.Passed, c.Passed), append(m.LostBack, c.Back)
		m.LostThere, m.Unclear = append(m.LostThere, c.There), append(m.Unclear, c.Unclear)
	}
	a.outbox.offer(&dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_UnderlayCounts{UnderlayCounts: m}})
}
