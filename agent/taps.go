package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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
	// regained are bridges with a port that the program was put back on since keep looked:
	// for a while it was not sampled.
	regained map[*bridge]bool

	// What opens a sampler again that failed.
	stain  *stain.Stain // nil before open, after close, and where the kernel cannot
	opened time.Time
	again  time.Time // not before
	wait   time.Duration

	withheld map[tap.Probe]lease
	lapsed   int64 // when leases were last looked through

	// known is ports for the receive loop; replaced as a whole.
	known    atomic.Pointer[map[string]tapped]
	lost     atomic.Uint64 // of samplers closed since
	handed   atomic.Uint64 // of this sampler's samples, to the controller
	receiver sync.WaitGroup
}

// tapped is a device with the program on it.
type tapped struct {
	bridge *bridge
	ofport uint16
}

// newTaps returns taps without a sampler: open makes it.
func newTaps(log *slog.Logger) *taps {
	return &taps{log: log, why: noSampler, withheld: make(map[tap.Probe]lease), regained: make(map[*bridge]bool)}
}

const noSampler = "not installed yet"

// A sampler that failed is opened again after tapRetry, and each time that it fails
// anew after twice as long, up to tapRetryMost; one that held out for so long had no
// part in the failures before it. Each opening loads a program, some 10 ms.
const (
	tapRetry     = time.Second
	tapRetryMost = time.Minute
)

// open replaces the sampler by one for a stain.
func (t *taps) open(st stain.Stain) {
	t.close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stain, t.wait = &st, tapRetry
	t.start(time.Now())
}

// start opens a sampler for the stain. Caller holds mu.
func (t *taps) start(now time.Time) {
	sampler, err := tap.Open(tap.Options{Stain: *t.stain, Withheld: maxWithheld})
	if err == nil {
		if err = t.renew(sampler); err != nil {
			err = errors.Join(err, sampler.Close())
		}
	}
	if err != nil {
		t.why = err.Error()
		t.later(now)
		if errors.Is(err, tap.ErrUnsupported) {
			t.stain = nil // nor will it be in a minute
		}
		t.log.Warn("delivery to instances is not sampled; their answers stand in for it", "err", err)
		return
	}
	t.sampler, t.why, t.opened = sampler, "", now
	t.handed.Store(0)
	t.ports = make(map[string]tapped)
	t.known.Store(&map[string]tapped{})
	t.receiver.Go(func() { t.receive(sampler) })
}

// later says when to try again. Caller holds mu.
func (t *taps) later(now time.Time) {
	t.again = now.Add(t.wait)
	t.wait = min(2*t.wait, tapRetryMost)
}

// close takes the programs off all ports.
func (t *taps) close() {
	t.mu.Lock()
	sampler := t.sampler
	t.sampler, t.ports, t.why, t.stain = nil, nil, noSampler, nil
	clear(t.withheld)
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
// unsampled has the ports that are the exceptions, each with the reason. A sampler
// that failed is opened again when its time has come; to notice that is left to the
// epoch, which rises with changed and with absent.
func (t *taps) keep(b *bridge, found dataplane.Bridge, now time.Time) (changed bool, absent string, unsampled map[string]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sampler == nil && t.stain != nil && !now.Before(t.again) {
		t.start(now)
	}
	if t.sampler == nil {
		return false, t.why, nil
	}
	t.lapse(monotonic(), lapseEvery)
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
	changed = t.sampler.Attachments() != before || t.regained[b]
	delete(t.regained, b)
	return changed, "", unsampled
}

// leave takes the program off all ports of a bridge.
func (t *taps) leave(b *bridge) { t.keep(b, dataplane.Bridge{}, time.Time{}) }

// publish shows ports to the receive loop. Caller holds mu.
func (t *taps) publish() {
	known := maps.Clone(t.ports)
	t.known.Store(&known)
}

// receive hands samples to the sink until the sampler is closed.
func (t *taps) receive(sampler *tap.Sampler) {
	var gathers []*gather
	for {
		read := uint64(0)
		err := sampler.Receive(func(seen tap.Seen) {
			read++
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
		t.handed.Add(read)
		if err != nil {
			if !errors.Is(err, tap.ErrClosed) {
				t.fail(sampler, err)
			}
			return
		}
	}
}

// fail gives the point up where the ring cannot be read: declared, it would take
// every delivery for a loss. keep tries again, later. Until then guests see what was
// to be withheld, if it is on its way; no more is taken.
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
	now := time.Now()
	if now.Sub(t.opened) >= tapRetryMost {
		t.wait = tapRetry
	}
	t.later(now)
}

// retire keeps the count of what a closed sampler lost.
func (t *taps) retire(sampler *tap.Sampler) {
	if stats, err := sampler.Stats(); err == nil { // once closed, it has them at hand
		t.lost.Add(stats.Lost)
	}
}

// Samples are in the ring as soon as they are taken, and are read as soon as a processor is free for
// it. tapPatience is how long an audit waits for that: a host that needs longer could not hold up its
// heartbeats either.
const tapPatience = time.Second

// catchUp returns when all that was sampled before it was called is on its way to the controller: else
// an audit would overtake it, and what is late be taken for lost. What took too long counts as lost.
func (t *taps) catchUp(ctx context.Context) {
	t.mu.Lock()
	sampler := t.sampler
	t.mu.Unlock()
	if sampler == nil {
		return
	}
	stats, err := sampler.Stats()
	for end := time.Now().Add(tapPatience); err == nil && t.handed.Load() < stats.Received; time.Sleep(countLook) {
		if ctx.Err() != nil || time.Now().After(end) {
			err = fmt.Errorf("%d of %d samples are read after %v", t.handed.Load(), stats.Received, tapPatience)
		}
	}
	if err != nil {
		t.log.Warn("samples of deliveries are late", "err", err)
		t.lost.Add(1)
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
