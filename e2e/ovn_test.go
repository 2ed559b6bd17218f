package e2e

import (
	"slices"
	"testing"
)

// ovnPairs are the pairs of the lab with OVN over each IP version.
const ovnPairs = 44

// TestOVN checks a lab whose network controller is OVN in every way that there is.
func TestOVN(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn")
	for _, args := range [][]string{
		{"--all"}, {"--all", "--ip", "6"},
		{"--all", "--scheme", "tcp"}, {"--all", "--scheme", "tcp", "--ip", "6"},
		{"--all", "--scheme", "icmp"}, {"--all", "--scheme", "icmp", "--ip", "6"},
		{"--all", "--no-touch"}, {"--all", "--no-touch", "--ip", "6"},
	} {
		checkOVNHealthy(t, l.check(0, args...))
	}
}

// checkOVNHealthy wants every pair to be healthy, and seen at every point.
func checkOVNHealthy(t *testing.T, c check) {
	t.Helper()
	if c.Counts["healthy"] != ovnPairs || len(c.Pairs) != ovnPairs {
		t.Errorf("counts %v, %d pairs (want %d healthy)", c.Counts, len(c.Pairs), ovnPairs)
	}
	for _, p := range c.Pairs {
		if p.Verdict != "healthy" {
			t.Errorf("%v (want healthy)", p)
		}
		if i := slices.IndexFunc(p.Samples, func(s sample) bool { return !s.Seen }); i >= 0 {
			t.Errorf("%v: point %d not seen", p, i)
		}
	}
}
