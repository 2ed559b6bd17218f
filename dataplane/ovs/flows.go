package ovs

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/dyetrace/dyetrace/flows"
)

// DumpFlows returns all flows of a bridge, whoever owns them.
func (s *Switch) DumpFlows(ctx context.Context, bridge string) ([]flows.Flow, error) {
	return s.dump(ctx, bridge)
}

// DumpOurs returns the flows of a bridge that have our cookie. The switch does the
// choosing, so it is cheap on a bridge with many flows.
func (s *Switch) DumpOurs(ctx context.Context, bridge string) ([]flows.Flow, error) {
	list, err := s.askOurs(ctx, bridge)
	if err == nil {
		return list, nil
	}
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("ovs: bridge %s: flows: %w", bridge, err)
	}
	if !errors.Is(err, errOtherOpenFlow) {
		s.opts.Log.Debug("flows are had by ovs-ofctl", "bridge", bridge, "err", err)
	}
	return s.dumpOurs(ctx, bridge)
}

// dumpOurs has ovs-ofctl do it.
func (s *Switch) dumpOurs(ctx context.Context, bridge string) ([]flows.Flow, error) {
	return s.dump(ctx, bridge, fmt.Sprintf("cookie=%#x/%#x", flows.Cookie, flows.CookieMask))
}

func (s *Switch) dump(ctx context.Context, bridge string, filter ...string) ([]flows.Flow, error) {
	args := append([]string{"--no-names", "dump-flows", bridge}, filter...)
	out, err := s.ofctl(ctx, nil, args...)
	if err != nil {
		return nil, fmt.Errorf("ovs: bridge %s: flows: %w", bridge, err)
	}
	list, err := flows.ParseDump(string(out))
	if err != nil {
		return nil, fmt.Errorf("ovs: bridge %s: %w", bridge, err)
	}
	return list, nil
}

// DumpGroups returns the groups of a bridge, a line each, as flows.Bridge wants
// them: not nil, also where there are none.
func (s *Switch) DumpGroups(ctx context.Context, bridge string) ([]string, error) {
	if none, err := s.hasNoGroups(ctx, bridge); err == nil && none {
		return []string{}, nil
	} else if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("ovs: bridge %s: groups: %w", bridge, err)
	}
	out, err := s.ofctl(ctx, nil, "--no-names", "dump-groups", bridge)
	if err != nil {
		return nil, fmt.Errorf("ovs: bridge %s: groups: %w", bridge, err)
	}
	groups := []string{}
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "group_id=") {
			groups = append(groups, line)
		}
	}
	return groups, nil
}

// ErrUnsupported says that the switch cannot do what a hook's flows want of it: it, or ovs-ofctl, is too
// old, or the bridge is restricted to versions of OpenFlow that have no bundles.
var ErrUnsupported = errors.New("not supported by this switch")

// Apply adds and deletes flows on a bridge, all of them or, if it returns an error,
// none: an OpenFlow bundle (ovs-ofctl(8), --bundle). A flow of add replaces the one
// in its place, so look first (flows.Diff); one of del that is not there, or is not
// ours, is left as it is. The error wraps ErrUnsupported if the switch, asked for each of
// them alone, takes some and refuses others, which it names.
func (s *Switch) Apply(ctx context.Context, bridge string, add, del []flows.Flow) error {
	for _, f := range add {
		if !f.Ours() {
			return fmt.Errorf("ovs: bridge %s: adding %v: cookie %#x is not ours", bridge, f, f.Cookie)
		}
	}
	lines := make([]string, 0, len(add)+len(del))
	for _, f := range del {
		lines = append(lines, f.DeleteLine())
	}
	for _, f := range add {
		lines = append(lines, f.AddLine())
	}
	s.changing(bridge, fmt.Sprintf("%d flows added, %d deleted", len(add), len(del)))
	err := s.bundle(ctx, bridge, lines)
	if err != nil && !errors.Is(err, ErrUnsupported) && ctx.Err() == nil {
		err = s.refused(ctx, bridge, add, err)
	}
	return err
}

// refused finds out which of the flows it is that a switch does not take, if it is not all: each is
// added, at a priority that no flow of ours has, and deleted in one bundle.
func (s *Switch) refused(ctx context.Context, bridge string, add []flows.Flow, cause error) error {
	taken := false
	var whys []string
	first, count := make(map[string]flows.Flow), make(map[string]int)
	for _, f := range add {
		probe := f
		probe.Priority = probePriority
		err := s.bundle(ctx, bridge, []string{probe.AddLine(), probe.DeleteLine()})
		if err == nil {
			taken = true
			continue
		}
		why := saidWhy(err)
		if count[why]++; count[why] == 1 {
			whys, first[why] = append(whys, why), f
		}
	}
	if !taken || len(whys) == 0 {
		return cause // it cannot be reached, or could not for a moment
	}
	for i, why := range whys {
		f := first[why]
		text := fmt.Sprintf("%s: table=%d,%s actions=%s", why, f.Table, f.Match, f.Actions)
		if n := count[why] - 1; n > 0 {
			text += fmt.Sprintf(" (and %d flows more)", n)
		}
		whys[i] = text
	}
	return fmt.Errorf("ovs: bridge %s: %w: %s", bridge, ErrUnsupported, strings.Join(whys, "; "))
}

var openFlowError = regexp.MustCompile(`\bError (\w+) for`)

// saidWhy returns the error of OpenFlow's that a switch answered with, or what ovs-ofctl said instead.
func saidWhy(err error) string {
	if m := openFlowError.FindStringSubmatch(err.Error()); m != nil {
		return m[1]
	}
	return errors.Unwrap(err).Error()
}

// probePriority is that of no flow of a hook (flows, Priorities of the hook's flows).
const probePriority = 2

// Renew starts the hard timeouts of our flows anew. A flow that has gone stays
// gone: audits must see it.
func (s *Switch) Renew(ctx context.Context, bridge string, ours []flows.Flow) error {
	lines := make([]string, 0, len(ours))
	for _, f := range ours {
		lines = append(lines, f.RenewLine())
	}
	s.changing(bridge, fmt.Sprintf("lease of %d flows renewed", len(ours)))
	return s.bundle(ctx, bridge, lines)
}

// bundleVersions are those that have bundles (1.3 by an extension of the ONF's).
var bundleVersions = []string{"OpenFlow13", "OpenFlow14", "OpenFlow15"}

func (s *Switch) bundle(ctx context.Context, bridge string, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	text := strings.Join(lines, "\n") + "\n"
	if _, err := s.ofctl(ctx, strings.NewReader(text), "bundle", bridge, "-"); err != nil {
		if b, found := s.Snapshot().Bridge(bridge); found && !slices.ContainsFunc(bundleVersions, b.Speaks) {
			return fmt.Errorf("ovs: bridge %s: protocols %v: want OpenFlow13 or later, which have bundles: %w: %w", bridge, b.Protocols, ErrUnsupported, err)
		}
		if noBundles(err.Error()) {
			return fmt.Errorf("ovs: bridge %s: bundles of flows: %w: %s", bridge, ErrUnsupported, saidWhy(err))
		}
		return fmt.Errorf("ovs: bridge %s: bundle of %d flows: %w", bridge, len(lines), err)
	}
	return nil
}

// noBundles tells from what ovs-ofctl said that the switch has no bundles in the version of OpenFlow that
// both speak: up to 2.5 it has them in 1.4 only, which is off unless the bridge's protocols name it.
func noBundles(said string) bool {
	return strings.Contains(said, "BUNDLE_CONTROL") && strings.Contains(said, "OFPBRC_BAD_")
}
