package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/tap"
	"github.com/dyetrace/dyetrace/flows"
)

const (
	// Each armed port of a bridge costs it some flows, and makes Open vSwitch look at
	// the TCP ports of answers that come in by it: more instances than that on one
	// host need not be probed anew at once.
	maxAnswers = flows.MaxAnswers
	// A run that withholds for longer arms again. No one else ends what a
	// controller that is gone has asked for.
	maxWithhold = time.Hour
)

// portKey names a port of a bridge.
type portKey struct{ bridge, port string }

// arm puts in place what the controller asked for, all of it or nothing, and answers
// when it is there.
func (a *Agent) arm(ctx context.Context, req *dyetracev1.Arm) {
	a.sayArmed(ctx, req, a.tryArm(ctx, req))
}

// sayArmed answers req: with err, if it is not nil.
func (a *Agent) sayArmed(ctx context.Context, req *dyetracev1.Arm, err error) {
	m := &dyetracev1.Armed{Run: req.Run, Id: req.Id}
	if err != nil {
		m.Error = err.Error()
		a.metrics.refused.Inc()
		a.log.Warn("arm refused", "run", req.Run, "err", err)
	}
	a.say(ctx, &dyetracev1.SessionRequest{Message: &dyetracev1.SessionRequest_Armed{Armed: m}})
}

func (a *Agent) tryArm(ctx context.Context, req *dyetracev1.Arm) error {
	if err := checkArm(req); err != nil {
		return err
	}
	run := a.runs.get(req.Run)
	if run == nil {
		return fmt.Errorf("run %d is not known on this host, or has expired", req.Run)
	}
	probes, err := withheldProbes(run, req)
	if err != nil {
		return err
	}
	ports, err := a.instancePorts("answers", req.Answers)
	if err != nil {
		return err
	}
	for i, name := range req.Expect {
		if _, ok := a.sw.Snapshot().Bridge(name); !ok {
			return fmt.Errorf("expect[%d]: bridge %s is not on host %s", i, name, a.cfg.Host)
		}
		ports = append(ports, portKey{name, echoes})
	}
	at, err := a.instancePorts("withhold_at", req.WithholdAt)
	if err != nil {
		return err
	}
	if err := a.runs.arm(run, ports, time.Now()); err != nil {
		return err
	}
	if len(ports) > 0 || !a.hooks.taps.hold(at) {
		a.hooks.reconcile(ctx) // until the datapath does so; samples a port that came just now, too
	}
	err = errors.Join(a.answering(req.Answers), a.expecting(req.Expect), a.sampled(at))
	if err == nil && len(probes) > 0 {
		err = a.hooks.taps.withhold(run.id, monotonic(), time.Duration(req.WithholdMs)*time.Millisecond, probes)
	}
	if err != nil && len(ports) > 0 {
		a.runs.disarm(run, ports)
		a.hooks.reconcile(ctx)
	}
	return err
}

// checkArm refuses columns that do not fit each other; the error names the column.
func checkArm(req *dyetracev1.Arm) error {
	n := len(req.Withhold)
	most := uint32(maxWithhold / time.Millisecond)
	switch {
	case n > maxInject:
		return fmt.Errorf("withhold: %d probes in one request (want at most %d)", n, maxInject)
	case len(req.WithholdDst) != 16*n:
		return fmt.Errorf("withhold_dst: %d bytes for %d probes (want %d)", len(req.WithholdDst), n, 16*n)
	case n > 0 && (req.WithholdMs == 0 || req.WithholdMs > most):
		return fmt.Errorf("withhold_ms: %d (want 1 to %d)", req.WithholdMs, most)
	case len(req.WithholdAt) > maxInject:
		return fmt.Errorf("withhold_at: %d ports in one request (want at most %d)", len(req.WithholdAt), maxInject)
	case len(req.Expect) > maxInject:
		return fmt.Errorf("expect: %d bridges in one request (want at most %d)", len(req.Expect), maxInject)
	case len(req.Answers) > maxInject:
		return fmt.Errorf("answers: %d ports in one request (want at most %d)", len(req.Answers), maxInject)
	}
	return nil
}

// withheldProbes reads the columns of the probes that no guest may see.
func withheldProbes(run *activeRun, req *dyetracev1.Arm) ([]tap.Probe, error) {
	probes := make([]tap.Probe, len(req.Withhold))
	for i, index := range req.Withhold {
		probes[i] = tap.Probe{Token: run.tokens.At(index), Dst: addrAt(req.WithholdDst, i)}
		if _, ok := run.tokens.Index(probes[i].Token); !ok {
			return nil, fmt.Errorf("withhold[%d]: %d is no probe of run %d (want one below its total)", i, index, run.id)
		}
		if d := probes[i].Dst; d.IsUnspecified() || d.IsMulticast() {
			return nil, fmt.Errorf("withhold_dst[%d]: %v (want the address of one instance)", i, d)
		}
	}
	return probes, nil
}

// instancePorts checks that ports are there and instances'; the error names the column.
func (a *Agent) instancePorts(column string, refs []*dyetracev1.PortRef) ([]portKey, error) {
	snap := a.sw.Snapshot()
	keys := make([]portKey, len(refs))
	for i, ref := range refs {
		if _, err := a.instancePort(snap, ref); err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", column, i, err)
		}
		keys[i] = portKey{ref.Bridge, ref.Port}
	}
	return keys, nil
}

func (a *Agent) instancePort(snap dataplane.Snapshot, ref *dyetracev1.PortRef) (dataplane.Port, error) {
	found, ok := snap.Bridge(ref.Bridge)
	if !ok {
		return dataplane.Port{}, fmt.Errorf("bridge %s is not on host %s", ref.Bridge, a.cfg.Host)
	}
	port, ok := found.Port(ref.Port)
	switch {
	case !ok:
		return port, fmt.Errorf("port %s is not on bridge %s of host %s", ref.Port, ref.Bridge, a.cfg.Host)
	case port.Role != flows.Instance || port.Dye:
		return port, fmt.Errorf("port %s on bridge %s of host %s is no instance's", ref.Port, ref.Bridge, a.cfg.Host)
	case port.OFPort == 0:
		return port, fmt.Errorf("port %s on bridge %s of host %s has no OpenFlow number", ref.Port, ref.Bridge, a.cfg.Host)
	}
	return port, nil
}

// answering checks that the ports' answers are known by their ports alone, by now.
func (a *Agent) answering(refs []*dyetracev1.PortRef) error {
	snap := a.sw.Snapshot()
	for i, ref := range refs {
		port, err := a.instancePort(snap, ref)
		if err == nil {
			err = a.armedAt(ref.Bridge, port)
		}
		if err != nil {
			return fmt.Errorf("answers[%d]: %w", i, err)
		}
	}
	return nil
}

// expecting checks that bridges expect the replies to echoes, by now.
func (a *Agent) expecting(bridges []string) error {
	for i, name := range bridges {
		_, s, err := a.hooks.live(name, a.cfg.Host)
		if err == nil && !s.expect {
			err = fmt.Errorf("bridge %s of host %s expects no replies: the run ended meanwhile", name, a.cfg.Host)
		}
		if err != nil {
			return fmt.Errorf("expect[%d]: %w", i, err)
		}
	}
	return nil
}

func (a *Agent) armedAt(bridge string, port dataplane.Port) error {
	_, s, err := a.hooks.live(bridge, a.cfg.Host)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(s.unarmed, func(u unarmed) bool { return u.port == port.OFPort }); i >= 0 {
		return fmt.Errorf("port %s on bridge %s of host %s cannot be armed: %w", port.Name, bridge, a.cfg.Host, s.unarmed[i].why)
	}
	if !slices.Contains(s.answers, port.OFPort) {
		err = fmt.Errorf("port %s on bridge %s of host %s is not armed: it changed, or the run ended, meanwhile", port.Name, bridge, a.cfg.Host)
	}
	return err
}

// sampled checks that to-instance is sampled at ports: withheld probes would reach
// the guest else.
func (a *Agent) sampled(ports []portKey) error {
	for i, p := range ports {
		why := a.hooks.taps.unsampled(p)
		if why == "" {
			continue
		}
		if b := a.hooks.get(p.bridge); b != nil {
			why = cmp.Or(b.state.Load().unsampled[p.port], why)
		}
		return fmt.Errorf("withhold_at[%d]: to-instance is not sampled at port %s of bridge %s of host %s: %s", i, p.port, p.bridge, a.cfg.Host, why)
	}
	return nil
}
