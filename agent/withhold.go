package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/dyetrace/dyetrace/dataplane/tap"
)

const (
	// 20 MB of kernel memory where they are all in use, none before.
	maxWithheld = 1 << 18
	// After the end of a run, packets of its last probes can be on their way still:
	// what withdraws a probe leaves when that has settled, in a fraction of a second.
	withholdLinger = 10 * time.Second
	// Looking all leases through takes some 10 ms where there are maxWithheld.
	lapseEvery = 5 * time.Second
)

// lease is for how long a probe is withheld.
type lease struct {
	run   uint64
	until int64 // CLOCK_MONOTONIC, ns
}

// withhold has probes of a run kept from guests for a while, from now on: all of
// them, or none if there is an error. It wraps tap.ErrFull where there is no room.
func (t *taps) withhold(run uint64, now int64, d time.Duration, probes []tap.Probe) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sampler == nil {
		return fmt.Errorf("withhold: to-instance is not sampled: %s", t.why)
	}
	until := now + int64(d)
	err := t.sampler.Withhold(until, probes...)
	if errors.Is(err, tap.ErrFull) {
		t.lapse(now, 0) // makes room
		err = t.sampler.Withhold(until, probes...)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("withhold: %w", err), t.restore(probes))
	}
	for _, p := range probes {
		t.withheld[p] = lease{run, until}
	}
	return nil
}

// restore puts the leases of probes back to what they were. Caller holds mu.
func (t *taps) restore(probes []tap.Probe) error {
	var errs []error
	for _, p := range probes {
		if old, ok := t.withheld[p]; ok {
			errs = append(errs, t.sampler.Withhold(old.until, p))
		} else {
			errs = append(errs, t.sampler.Release(p))
		}
	}
	return errors.Join(errs...)
}

// renew registers all leases with a new sampler. Caller holds mu.
func (t *taps) renew(s *tap.Sampler) error {
	for p, l := range t.withheld {
		if err := s.Withhold(l.until, p); err != nil {
			return err
		}
	}
	return nil
}

// finish ends the leases of a run, as soon as nothing of it can be on its way.
func (t *taps) finish(run uint64, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, l := range t.withheld {
		if l.run == run {
			l.until = min(l.until, now+int64(withholdLinger))
			t.withheld[p] = l
		}
	}
}

// lapse gives up the leases that are over, unless it did so less than every ago.
// Caller holds mu; there is a sampler.
func (t *taps) lapse(now int64, every time.Duration) {
	if now-t.lapsed < int64(every) {
		return
	}
	t.lapsed = now
	for p, l := range t.withheld {
		if l.until > now {
			continue
		}
		if err := t.sampler.Release(p); err != nil {
			t.log.Warn("releasing withheld probes", "err", err)
			return
		}
		delete(t.withheld, p)
	}
}

// countWithheld counts the leases that are not given up.
func (t *taps) countWithheld() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.withheld)
}

// hold sees to it that the program is on ports that are known to have it, since others
// can take it off, and tells whether all of them have it. That one had lost it is for keep
// to tell.
func (t *taps) hold(ports []portKey) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sampler == nil {
		return false
	}
	for _, p := range ports {
		at, known := t.ports[p.port]
		before := t.sampler.Attachments()
		if !known || at.bridge.name != p.bridge || t.sampler.Attach(p.port) != nil {
			return false
		}
		if t.sampler.Attachments() != before {
			t.regained[at.bridge] = true
		}
	}
	return true
}

// unsampled tells why to-instance is not sampled at a port; empty if it is.
func (t *taps) unsampled(p portKey) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sampler == nil {
		return t.why
	}
	if at, ok := t.ports[p.port]; ok && at.bridge.name == p.bridge {
		return ""
	}
	return "the program is not on it"
}
