package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/tap"
	"github.com/dyetrace/dyetrace/flows"
	"github.com/dyetrace/dyetrace/stain"
)

// taps keeps the sampling point to-instance at the instances' ports: one program and
// one ring for all bridges of the host. Where it cannot be had, it says why.
type taps struct {
	log  *slog.Logger
	sink func(g *gather, seen *stain.Copy, atNs int64)
	done func(g *gather)

	mu      sync.Mutex
	sampler *tap.Sampler
	why     string            // there is no sampler
	ports   map[string]tapped // by device

	// known is ports for the receive loop; replaced as a whole.
	known    atomic.Pointer[map[string]tapped]
	lost     atomic.Uint64 // of samplers closed since
	receiver sync.WaitGroup
}

// tapped is a device with the program on it.
type tapped struct {
	bridge *bridge
	ofport uint16
}

// newTaps returns taps without a sampler: open makes it.
func newTaps(log *slog.Logger) *taps { return &taps{log: log, why: noSampler} }

const noSampler = "not installed yet"

// open replaces the sampler by one for a stain.
func (t *taps) open(st stain.Stain) {
	t.close()
	t.mu.Lock()
	defer t.mu.Unlock()
	sampler, err := tap.Open(tap.Options{Stain: st})
	if err != nil {
		t.why = err.Error()
		t.log.Warn("delivery to instances is not sampled; their answers stand in for it", "err", err)
		return
	}
	t.sampler, t.why = sampler, ""
	t.ports = make(map[string]tapped)
	t.known.Store(&map[string]tapped{})
	t.receiver.Go(func() { t.receive(sampler) })
}

// close takes the programs off all ports.
func (t *taps) close() {
	t.mu.Lock()
	sampler := t.sampler
	t.sampler, t.ports, t.why = nil, nil, noSampler
	t.mu.Unlock()
	if sampler == nil {
		return
	}
	if err := sampler.Close(); err != nil {
		t.log.Warn("closing the tap sampler", "err", err)
	}
	t.receiver.Wait()
	t.retire(sampler)
}

// keep puts the program on the ports of a bridge's instances, where it is not yet,
// and takes it off ports that left. changed says that some port was without it;
// absent says why the point does not exist on this bridge, and is empty if it does;
// unsampled has the ports that are the exceptions, each with the reason.
func (t *taps) keep(b *bridge, found dataplane.Bridge) (changed bool, absent string, unsampled map[string]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sampler == nil {
		return false, t.why, nil
	}
	before := t.sampler.Attachments()
	unsampled = make(map[string]string)
	here := make(map[string]bool)
	for _, p := range found.Ports {
		if p.Role != flows.Instance || p.OFPort == 0 {
			continue
		}
		if p.Type != "" {
			unsampled[p.Name] = fmt.Sprintf("a port of type %s: its packets do not pass the kernel's egress", p.Type)
			continue
		}
		if err := t.sampler.Attach(p.Name); err != nil {
			unsampled[p.Name] = err.Error()
			continue
		}
		here[p.Name] = true
		t.ports[p.Name] = tapped{b, p.OFPort}
	}
	for name, at := range t.ports {
		if at.bridge == b && !here[name] {
			delete(t.ports, name)
			if err := t.sampler.Detach(name); err != nil {
				t.log.Warn("leaving a port", "port", name, "err", err)
			}
		}
	}
	t.publish()
	return t.sampler.Attachments() != before, "", unsampled
}

// leave takes the program off all ports of a bridge.
func (t *taps) leave(b *bridge) { t.keep(b, dataplane.Bridge{}) }

// publish shows ports to the receive loop. Caller holds mu.
func (t *taps) publish() {
	known := make(map[string]tapped, len(t.ports))
	for name, at := range t.ports {
		known[name] = at
	}
	t.known.Store(&known)
}

// receive hands samples to the sink until the sampler is closed.
func (t *taps) receive(sampler *tap.Sampler) {
	var gathers []*gather
	for {
		err := sampler.Receive(func(seen tap.Seen) {
			at, ok := (*t.known.Load())[seen.Device]
			if !ok {
				return // detached since
			}
			i := slices.IndexFunc(gathers, func(g *gather) bool { return g.bridge == at.bridge })
			if i < 0 {
				gathers = append(gathers, &gather{bridge: at.bridge})
				i = len(gathers) - 1
			}
			c := seen.Copy()
			c.InPort = at.ofport
			t.sink(gathers[i], &c, seen.At)
		})
		for _, g := range gathers {
			t.done(g)
		}
		if err != nil {
			if !errors.Is(err, tap.ErrClosed) {
				t.fail(sampler, err)
			}
			return
		}
	}
}

// fail gives the point up where the ring cannot be read: declared, it would take
// every delivery for a loss. The next setStain tries again.
func (t *taps) fail(sampler *tap.Sampler, err error) {
	t.log.Error("delivery to instances is no longer sampled", "err", err)
	if err := sampler.Close(); err != nil {
		t.log.Warn("closing the tap sampler", "err", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sampler != sampler {
		return // close had it already
	}
	t.retire(sampler)
	t.lost.Add(1) // what was in the ring: runs under way see that something is missing
	t.sampler, t.ports, t.why = nil, nil, err.Error()
}

// retire keeps the count of what a closed sampler lost.
func (t *taps) retire(sampler *tap.Sampler) {
	if stats, err := sampler.Stats(); err == nil { // once closed, it has them at hand
		t.lost.Add(stats.Lost)
	}
}

// lostSamples counts the samples that found no room in the ring, and each time that
// this could not be found out.
func (t *taps) lostSamples() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.lost.Load()
	if t.sampler != nil {
		stats, err := t.sampler.Stats()
		if err != nil {
			t.log.Warn("counting what the tap sampler lost", "err", err)
			return t.lost.Add(1)
		}
		n += stats.Lost
	}
	return n
}
