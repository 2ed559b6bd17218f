package ovs

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/dyetrace/dyetrace/flows"
)

// The datapath remembers what flows do with packets, and counts by itself. A sweep (a revalidator's, in
// Open vSwitch's words) brings both together: flows' counters get what was counted, and what flows that
// have changed would do otherwise is forgotten. One begins every half second (dataplane.Snapshot.SweepEvery),
// and whenever a bridge's flows change.

const (
	// A sweep is had out of turn only where the last took no longer than one part in so many of the time
	// from one to the next: 50 ms as a rule, which is what 10,000 megaflows and more take, and for who has
	// changed flows (Urgent) 125 ms. From half of that time on, Open vSwitch no longer looks at all megaflows
	// after a change of flows, but drops those that are seldom used (should_revalidate of
	// ofproto-dpif-upcall.c), which must not happen for our sake.
	sweepPart       = 10
	sweepPartUrgent = 4
	// sweepShare is how many milliseconds of each second may go into sweeps out of turn: a twentieth of a
	// processor. sweepBurst may come at once: a few readings of the counters where sweeps take long, and
	// a hundred where they take least, which is what is said of 1 ms and less. Urgent has its own whatever
	// was had, two for each change of flows, which made one anyway; it owes as much again at most.
	sweepShare = 50
	sweepBurst = 400
	sweepLeast = 2 * time.Millisecond
	// nudgeFirst is how long ovs-vswitchd may take to say that a sweep has ended before it is asked
	// something else; then it is so again, or half of the time until then, up to nudgeMost.
	nudgeFirst = 2 * time.Millisecond
	nudgeMost  = 64 * time.Millisecond
)

// sweepEvery reads other_config:max-revalidator as ovs-vswitchd does, which takes nothing below 100 ms and
// then keeps what it had: the least is the safe guess.
func sweepEvery(config string) time.Duration {
	const usual, least = 500, 100
	ms, err := strconv.ParseUint(config, 10, 31)
	if err != nil {
		ms = usual
	}
	return time.Duration(max(ms, least)) * time.Millisecond
}

// ErrUncounted says that the switch never tells when its flows' counters are up to date: it has datapaths
// of two sorts, and then does not know which one it is asked about.
var ErrUncounted = errors.New("counters cannot be waited for")

// Settle returns when the datapath does as the flows say that were there when it was called, and the
// flows' counters have all that passed until then: once a sweep has ended that began after the call.
// bridge is any that has a flow of ours: where sweeps are short, one is had at once, by a request to
// delete a flow of ours that is nowhere. Else it takes up to a second.
func (s *Switch) Settle(ctx context.Context, bridge string) error {
	if err := s.settle(ctx, bridge); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("ovs: waiting for the datapath: %w", err)
	}
	return nil
}

func (s *Switch) settle(ctx context.Context, bridge string) error {
	asks, err := s.control(ctx)
	if err != nil {
		return err
	}
	defer asks.close()
	out, err := s.mayKick(ctx, asks)
	if err != nil {
		return err
	}
	// A sweep goes by what flows said when it began, which ovs-vswitchd's main loop tells the revalidators one
	// turn after it has changed them and said so. A turn serves who has connected before it: what is
	// asked by a connection made after this answer is asked after they were told.
	waits, err := s.control(ctx)
	if err != nil {
		return err
	}
	defer waits.close()
	// A sweep that is under way may have passed by what came since, so the first to end may be that
	// one; the second has begun after it (revalidator/wait of ovs-vswitchd(8), which is answered when
	// the next one ends).
	if err := s.sweep(ctx, bridge, out, asks, waits); err != nil {
		return err
	}
	if out, err = s.mayKick(ctx, asks); err != nil {
		return err
	}
	return s.sweep(ctx, bridge, out, asks, waits)
}

// pace says how soon Settle is to have its sweeps. The zero value is as soon as few were had of late.
type pace int

const (
	patient pace = iota + 1
	urgent
)

type paceKey struct{}

// Patient returns a context in which Settle has no sweep made out of turn.
func Patient(ctx context.Context) context.Context { return context.WithValue(ctx, paceKey{}, patient) }

// IsPatient says that a context is from Patient.
func IsPatient(ctx context.Context) bool { return paceOf(ctx) == patient }

// Urgent returns a context in which Settle has sweeps made out of turn though many were of late; others
// have fewer after that. It is for who has changed flows.
func Urgent(ctx context.Context) context.Context { return context.WithValue(ctx, paceKey{}, urgent) }

func paceOf(ctx context.Context) pace {
	p, _ := ctx.Value(paceKey{}).(pace)
	return p
}

// sweep waits for the end of the next sweep, which it has begin out of turn if it may.
func (s *Switch) sweep(ctx context.Context, bridge string, out bool, asks, waits *control) error {
	if err := waits.ask("revalidator/wait"); err != nil {
		return err
	}
	if out {
		// ovs-vswitchd looks for what it was asked by now at the end of the turn in which it takes a change of
		// flows, and tells the revalidators in the turn after that: what they begin then has not ended before it
		// knows who waits. (If it is held up there, the sweep is one that comes by itself.)
		if err := s.kick(ctx, bridge); err != nil {
			return err
		}
	}
	nudging, stop := context.WithCancel(ctx)
	var nudger sync.WaitGroup
	nudger.Go(func() { nudge(nudging, asks) })
	_, err := waits.answer()
	stop()
	nudger.Wait()
	if err != nil && strings.Contains(err.Error(), "multiple udpifs") {
		err = fmt.Errorf("%w: %w", ErrUncounted, err)
	}
	return err
}

// nudge keeps ovs-vswitchd's main loop awake until ctx ends. It looks for ends of sweeps at one place to
// answer those who wait, and at a later one to know what it has seen; what ends between the two is
// answered in its next turn, and nothing wakes it for that (udpif_run and run of ofproto-dpif.c): one of
// ten answers came half a second late, with the next sweep.
func nudge(ctx context.Context, c *control) {
	begun := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(time.Since(begun)/2, nudgeFirst), nudgeMost)):
		}
		if err := c.ask("version"); err != nil {
			return // who waits learns of it by himself
		}
		if _, err := c.answer(); err != nil {
			return
		}
	}
}

// kick has a sweep begin. Any change of a bridge's flows does, and one that changes none does too.
func (s *Switch) kick(ctx context.Context, bridge string) error {
	if err := s.deleteNowhere(ctx, bridge); !errors.Is(err, errOtherOpenFlow) {
		return err
	}
	nowhere := fmt.Sprintf("cookie=%#x/-1,table=0,priority=1,in_port=65534,dl_type=0xffff", flows.Cookie)
	_, err := s.ofctl(ctx, nil, "--strict", "del-flows", bridge, nowhere)
	return err
}

var dumpDuration = regexp.MustCompile(`(?m)^\s*dump duration : (\d+)ms$`)

// mayKick says that a sweep is to be had out of turn: the last ones of all datapaths were short, and few
// were had out of turn of late.
func (s *Switch) mayKick(ctx context.Context, c *control) (bool, error) {
	if err := c.ask("upcall/show"); err != nil {
		return false, err
	}
	text, err := c.answer()
	if err != nil {
		return false, err
	}
	all, longest := dumpDuration.FindAllStringSubmatch(text, -1), sweepLeast
	for _, m := range all {
		ms, err := strconv.Atoi(m[1])
		if err != nil {
			return false, fmt.Errorf("upcall/show: %w", err)
		}
		longest = max(longest, time.Duration(ms)*time.Millisecond)
	}
	if len(all) == 0 {
		return false, nil
	}
	return s.sweeps.may(paceOf(ctx), time.Now(), longest, s.Snapshot().SweepEvery), nil
}

// sweeps bounds sweeps out of turn.
type sweeps struct{ share *rate.Limiter }

func newSweeps() sweeps { return sweeps{rate.NewLimiter(sweepShare, sweepBurst)} }

// may says that another sweep may be had out of turn, where the last took so long and the next comes by
// itself in so long at most; it is counted then.
func (s sweeps) may(p pace, now time.Time, last, every time.Duration) bool {
	cost := int(last / time.Millisecond)
	switch p {
	case patient:
		return false
	case urgent:
		soon := last <= every/sweepPartUrgent
		if soon && s.share.TokensAt(now) > -sweepBurst {
			s.share.ReserveN(now, cost)
		}
		return soon
	}
	return last <= every/sweepPart && s.share.AllowN(now, cost)
}
