package agent

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/dyetrace/dyetrace/stain"
)

// openProbe is a probe that left and is not known to be answered.
type openProbe struct {
	run    uint64
	index  uint32
	bridge *bridge
	ofport uint16
	probe  stain.Probe
}

const (
	// maxSettle is the longest that a probe is open here. Controllers ask for a second by default, and 20 s at the most.
	maxSettle = time.Minute
	// maxOpen bounds the probes whose time is not up, answered or not: what an agent sends in 13 s at its default rate. From
	// one host a controller has some tens under way.
	maxOpen = 1 << 18
)

type probeKey struct {
	run   uint64
	index uint32
}

// openProbes are the probes that nobody answered yet. Each is withdrawn when the controller
// says so, or when its time is up, whether or not the run and its controller are still there:
// what half-open connections do to the probes after them is told in package stain.
type openProbes struct {
	log *slog.Logger

	mu     sync.Mutex
	probes map[probeKey]openProbe
	timers map[*time.Timer]struct{}
	timed  int // probes that timers are about, answered or not
	closed bool
}

func newOpenProbes(log *slog.Logger) *openProbes {
	return &openProbes{log: log, probes: make(map[probeKey]openProbe), timers: make(map[*time.Timer]struct{})}
}

// add takes note of probes that are about to leave, to be withdrawn after settle, or maxSettle if that is less. Where it
// has no room for them it says why they may not leave.
func (o *openProbes) add(probes []openProbe, settle time.Duration) error {
	keys := make([]probeKey, len(probes))
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	if o.timed+len(probes) > maxOpen {
		return fmt.Errorf("%d probes of this host wait to be withdrawn, no more are sent", o.timed)
	}
	o.timed += len(probes)
	for i, p := range probes {
		keys[i] = probeKey{p.run, p.index}
		o.probes[keys[i]] = p
	}
	var timer *time.Timer
	timer = time.AfterFunc(min(settle, maxSettle), func() {
		o.mu.Lock()
		delete(o.timers, timer)
		o.timed -= len(keys)
		due := o.take(keys)
		o.mu.Unlock()
		o.withdraw(due)
	})
	o.timers[timer] = struct{}{}
	return nil
}

// answered says that an answer left by the bridge where the probe entered, and so
// passed all connection tracking on its way. To have come as far as the bridge is not
// enough: one that this very bridge dropped leaves a connection half-open. Where
// to-instance is not sampled every probe is withdrawn, which harms none.
func (o *openProbes) answered(run uint64, index uint32, b *bridge) {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := probeKey{run, index}
	if p, ok := o.probes[key]; ok && p.bridge == b {
		delete(o.probes, key)
	}
}

// end withdraws probes of a run, those of them that are open.
func (o *openProbes) end(run uint64, indexes []uint32) {
	keys := make([]probeKey, len(indexes))
	for i, index := range indexes {
		keys[i] = probeKey{run, index}
	}
	o.mu.Lock()
	due := o.take(keys)
	o.mu.Unlock()
	o.withdraw(due)
}

// take removes and returns those of keys that are open. Caller holds mu.
func (o *openProbes) take(keys []probeKey) []openProbe {
	var due []openProbe
	for _, key := range keys {
		if p, ok := o.probes[key]; ok {
			due = append(due, p)
			delete(o.probes, key)
		}
	}
	return due
}

// close withdraws all that is open, now.
func (o *openProbes) close() {
	o.mu.Lock()
	o.closed = true
	for timer := range o.timers {
		timer.Stop()
	}
	var due []openProbe
	for key, p := range o.probes {
		due = append(due, p)
		delete(o.probes, key)
	}
	o.mu.Unlock()
	o.withdraw(due)
}

// withdraw sends the RST that ends each probe's connection.
func (o *openProbes) withdraw(due []openProbe) {
	for _, p := range due {
		if p.probe.Scheme != stain.TCP {
			continue // nothing keeps an echo half-open
		}
		port := p.bridge.port.Load()
		if port == nil {
			continue // the hook is gone; conntrack's timeout must do
		}
		p.probe.Close = true
		frame, err := p.bridge.stain.AppendFrame(nil, p.ofport, p.probe)
		if err == nil {
			_, err = port.Send([][]byte{frame})
		}
		if err != nil {
			o.log.Warn("a probe could not be withdrawn; connection tracking keeps it for a while", "run", p.run, "index", p.index, "err", err)
		}
	}
}
