package report

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// word turns the name of an enum's value into the word of docs/api.md: VERDICT_HEALTHY into
// healthy. The zero value becomes none.
func word(name, prefix, none string) string {
	w := strings.TrimPrefix(name, prefix)
	if w == "UNSPECIFIED" {
		return none
	}
	return strings.ReplaceAll(strings.ToLower(w), "_", "-")
}

// Verdict returns healthy, faulty, silent, policy, unknown, or pending where there is none yet.
func Verdict(v dyetracev1.Verdict) string { return word(v.String(), "VERDICT_", "pending") }

// State returns running, done, interrupted or cancelled.
func State(s dyetracev1.RunState) string { return word(s.String(), "RUN_STATE_", "unknown") }

// Kind returns from-instance, from-tunnel, to-instance or to-tunnel.
func Kind(k dyetracev1.PointKind) string { return word(k.String(), "POINT_KIND_", "unknown") }

// CauseKind returns a kind of cause, such as flow or stale-vtep; nothing where there is none.
func CauseKind(k dyetracev1.CauseKind) string { return word(k.String(), "CAUSE_KIND_", "") }

// FindingKind returns a kind of finding, such as host-network.
func FindingKind(k dyetracev1.FindingKind) string { return word(k.String(), "FINDING_KIND_", "") }

// Hook returns live, absent or refused.
func Hook(s dyetracev1.HookState) string { return word(s.String(), "HOOK_STATE_", "unknown") }

// Direction returns forward or reply.
func Direction(d dyetracev1.Direction) string { return word(d.String(), "DIRECTION_", "") }

// Scheme returns tcp or icmp, or none where there is none.
func Scheme(s dyetracev1.Scheme, none string) string { return word(s.String(), "SCHEME_", none) }

// IPVersion returns auto, 4 or 6.
func IPVersion(v dyetracev1.IPVersion) string { return word(v.String(), "IP_VERSION_", Auto) }

// Auto stands for what is found out pair by pair, in flags and in JSON.
const Auto = "auto"

// Scope writes a scope as the flags of check that ask for it.
func Scope(s *dyetracev1.Scope) string {
	switch x := s.GetScope().(type) {
	case *dyetracev1.Scope_All:
		return "--all"
	case *dyetracev1.Scope_Pair:
		return x.Pair.GetSrc() + " " + x.Pair.GetDst()
	case *dyetracev1.Scope_Network:
		return "--network " + x.Network
	case *dyetracev1.Scope_Host:
		return "--host " + x.Host
	}
	return ""
}

// Time returns a time in RFC 3339, or nil where there is none.
func Time(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	at := t.AsTime()
	return &at
}

// duration writes nanoseconds as a person would: three digits are enough to compare hops.
func duration(ns int64) string {
	switch d := time.Duration(ns); {
	case d < 0:
		return "-" + duration(-ns)
	case d == 0:
		return "0"
	case d < time.Microsecond:
		return fmt.Sprintf("%d ns", ns)
	case d < time.Millisecond:
		return fmt.Sprintf("%.0f µs", float64(ns)/1e3)
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(ns)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(ns)/1e6)
	default:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
}
