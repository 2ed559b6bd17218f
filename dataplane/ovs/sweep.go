package ovs

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/dyetrace/dyetrace/flows"
)

// The datapath remembers what flows do with packets, and counts by itself. A sweep (a revalidator's, in
// Open vSwitch's words) brings both together: flows' counters get what was counted, and what flows that
// have changed would do otherwise is forgotten. One begins every half second (other_config:max-revalidator
// of ovs-vswitchd.conf.db(5)), and whenever a bridge's flows change.

const (
	// kickedSweep is how long a sweep may take for another to be had out of turn: one of all megaflows
	// takes so long on a switch with some 10,000. From twice this on, half of max-revalidator, Open
	// vSwitch no longer looks at all of them after a change of flows, but drops those that are seldom
	// used (should_revalidate of ofproto-dpif-upcall.c), which must not happen for our sake.
	kickedSweep = 50 * time.Millisecond
	// sweepShare is how many milliseconds of each second may go into sweeps out of turn: a twentieth of a
	// processor. sweepBurst may come at once: a few readings of the counters where sweeps take long, and
	// a hundred where they take least, which is what is said of 1 ms and less.
	sweepShare = 50
	sweepBurst = 400
	sweepLeast = 2 * time.Millisecond
)

// ErrUncounted says that the switch never tells when its flows' counters are up to date: it has datapaths
// of two sorts, and then does not know which one it is asked about.
var ErrUncounted = errors.New("counters cannot be waited for")

// newSweeps bounds the milliseconds that go into sweeps out of turn.
func newSweeps() *rate.Limiter { return rate.NewLimiter(sweepShare, sweepBurst) }

// Settle returns when the datapath does as the flows say that were there when it was called, and the
// flows' counters have all that passed until then: once a sweep has ended that began after the call.
// bridge is any that has a flow of ours: where sweeps are short, one is had at once, by a request to
// delete a flow of ours that is nowhere. Else it takes up to a second.
func (s *Switch) Settle(ctx context.Context, bridge string) error {
	// A sweep that is under way may have passed by what came since, so the first to end may be that
	// one; the second has begun after it (revalidator/wait of ovs-vswitchd(8), which is answered when
	// the next one ends).
	for range 2 {
		if err := s.sweep(ctx, bridge); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("ovs: waiting for the datapath: %w", err)
		}
	}
	return nil
}

type patientKey struct{}

// Patient returns a context in which Settle has no sweep made out of turn.
func Patient(ctx context.Context) context.Context { return context.WithValue(ctx, patientKey{}, true) }

// IsPatient says that a context is from Patient.
func IsPatient(ctx context.Context) bool { return ctx.Value(patientKey{}) != nil }

// sweep waits for the end of the next sweep.
func (s *Switch) sweep(ctx context.Context, bridge string) error {
	c, err := s.control(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	out := !IsPatient(ctx) && s.mayKick(ctx)
	if err := c.ask("revalidator/wait"); err != nil {
		return err
	}
	if out {
		// What has been waited for is known to ovs-vswitchd once it answers something that it was asked
		// later: it goes through its connections in the order in which they came.
		if _, err := s.appctl(ctx, "version"); err != nil {
			return err
		}
		if err := s.kick(ctx, bridge); err != nil {
			return err
		}
	}
	if _, err = c.answer(); err != nil && strings.Contains(err.Error(), "multiple udpifs") {
		err = fmt.Errorf("%w: %w", ErrUncounted, err)
	}
	return err
}

// kick has a sweep begin. Any change of a bridge's flows does, and one that changes none does too.
func (s *Switch) kick(ctx context.Context, bridge string) error {
	nowhere := fmt.Sprintf("cookie=%#x/-1,table=0,priority=1,in_port=65534,dl_type=0xffff", flows.Cookie)
	_, err := s.ofctl(ctx, nil, "--strict", "del-flows", bridge, nowhere)
	return err
}

var dumpDuration = regexp.MustCompile(`(?m)^\s*dump duration : (\d+)ms$`)

// mayKick says that the last sweeps of all datapaths were short, and that few were had out of turn of late;
// false where that is not known.
func (s *Switch) mayKick(ctx context.Context) bool {
	text, err := s.appctl(ctx, "upcall/show")
	if err != nil {
		return false
	}
	all, longest := dumpDuration.FindAllStringSubmatch(text, -1), sweepLeast
	for _, m := range all {
		ms, err := strconv.Atoi(m[1])
		if err != nil {
			return false
		}
		longest = max(longest, time.Duration(ms)*time.Millisecond)
	}
	return len(all) > 0 && longest <= kickedSweep && s.sweeps.AllowN(time.Now(), int(longest/time.Millisecond))
}
