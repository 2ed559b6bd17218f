package e2e

import (
	"slices"
	"strings"
	"testing"
)

// TestMTUOfGeneve has the spine of a lab with OVN drop what is large of what one rack sends the other: Geneve's
// packets, and what agents send to try that. All pairs between the racks are told, and no other.
func TestMTUOfGeneve(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "ovn")
	l.check(0, "--all", "--mtu")
	l.node("spine1", "nft", "add table ip narrow; add chain ip narrow c { type filter hook forward priority 0; }; "+
		"add rule ip narrow c ip saddr 10.255.2.0/24 ip length > 1400 drop")
	l.check(0, "--all") // small packets pass
	told := 0
	for _, p := range l.check(1, "--all", "--mtu").Pairs {
		hosts := []string{}
		for _, s := range p.Samples {
			if !slices.Contains(hosts, s.Host) {
				hosts = append(hosts, s.Host)
			}
		}
		crosses := slices.Contains(hosts, "hv3") && len(hosts) > 1
		switch {
		case !crosses && p.Verdict != "healthy":
			t.Errorf("%v, by %v: large packets of this pair pass", p, hosts)
		case crosses && (p.Verdict != "faulty" || p.CauseKind != "path-mtu" || p.Host != "hv3" || !strings.Contains(p.Cause, "up to 1400 bytes pass")):
			t.Errorf("%v, by %v: want its path MTU, 1400 bytes, from hv3", p, hosts)
		case crosses:
			told++
		}
	}
	if told == 0 {
		t.Error("no pair crosses the racks")
	}
	l.node("spine1", "nft", "delete", "table", "ip", "narrow")
	l.check(0, "--all", "--mtu")
}
