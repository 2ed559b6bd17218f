package verdict

import (
	"testing"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// kindless says what is wrong with the kind of a result's cause; empty if nothing is. Every cause has
// one, and what is ours makes no verdict on the network.
func kindless(r *Result) string {
	switch ours := r.Kind >= CauseAgent; {
	case (r.Cause == "") != (r.Kind == 0):
		return "a cause and its kind come together"
	case r.Verdict != Healthy && r.Kind == 0:
		return "no kind"
	case ours && r.Verdict != Healthy && r.Verdict != Unknown:
		return "a fault of ours is no verdict"
	case (r.Kind == CauseSecurityRule) != (r.Verdict == PolicyDrop):
		return "a security rule is policy, and nothing else is"
	case r.Verdict == Silent && r.Kind != CauseGuestSilent && r.Kind != CauseGuestDown:
		return "not of a guest"
	}
	return ""
}

// TestCauseKinds: the numbers are the contract's, and no kind of the contract is missing here.
func TestCauseKinds(t *testing.T) {
	t.Parallel()
	kinds := map[CauseKind]string{
		CauseFlow: "flow", CauseMisdirected: "misdirected", CauseSwitch: "switch", CausePort: "port",
		CauseSecurityRule: "security-rule", CauseStaleVTEP: "stale-vtep", CauseTunnel: "tunnel", CauseVNI: "vni",
		CauseBetweenHosts: "between-hosts", CauseUnderlay: "underlay", CauseUnderlayMember: "underlay-member",
		CausePathMTU: "path-mtu", CauseEntrypoint: "entrypoint", CauseLoss: "loss", CauseLoop: "loop",
		CauseDuplicate: "duplicate", CauseGuestSilent: "guest-silent", CauseGuestDown: "guest-down",
		CauseImpostor: "impostor",
		CauseAgent:    "agent", CauseHook: "hook", CauseSamples: "samples", CauseInjection: "injection",
		CauseUnseen: "unseen", CauseUnexplained: "unexplained", CauseInventory: "inventory", CauseConntrack: "conntrack",
	}
	for n := range dyetracev1.CauseKind_name {
		if k := CauseKind(n); n != 0 && kinds[k] == "" {
			t.Errorf("%d (%s) is not known here", n, k)
		}
	}
	for k, want := range kinds {
		if k.String() != want {
			t.Errorf("%d is %q in the contract; want %q", k, k, want)
		}
	}
	if s := CauseKind(0).String(); s != "" {
		t.Errorf("none is %q", s)
	}
}
