package e2e

import (
	"slices"
	"strings"
	"testing"
)

// finding is what failed pairs have in common.
type finding struct {
	Kind, Summary, Host, Network string
	PeerHost                     string `json:"peer_host"`
	Hosts                        []string
	Instance                     *struct{ Name string }
	Alternatives                 []string
	Pairs                        []struct{ Src, Dst string }
}

// TestInCommon breaks a lab in several ways, and wants each to be named as the one thing that it is,
// before all pairs, and nothing else.
func TestInCommon(t *testing.T) {
	t.Parallel()
	l := up(t)
	for _, tt := range []struct {
		breaks []string
		want   []string // kinds and what they are of, what explains most first
	}{
		{[]string{"underlay-down"}, []string{"host hv2"}},
		{[]string{"rack-down"}, []string{"rack hv1,hv2 or the rack of hv3, hv4"}}, // there are two, and each fails the other
		{[]string{"rack-down", "guest-firewall"}, []string{"rack hv1,hv2 or the rack of hv3, hv4", "guest green-2"}},
		{[]string{"tunnel-remote"}, []string{"tunnel-network hv1 hv3 blue"}},
		{[]string{"tap-off", "underlay-acl"}, []string{"port green-3", "tunnel hv1 hv4"}},
		{[]string{"wrong-vni", "guest-firewall", "flow-shadowed"}, []string{"host-network hv4 green", "flow hv3", "guest green-2"}},
		{[]string{"security-rule", "patch-gone"}, []string{"host hv4", "security-rules blue-4"}}, // the latter shows on its own host only
	} {
		for _, b := range tt.breaks {
			l.must("lab", "break", b)
		}
		c := l.check(1, "--all")
		var got []string
		explained := 0
		for _, f := range c.Findings {
			explained += len(f.Pairs)
			text := f.Kind
			for _, of := range []string{f.Host, f.PeerHost, f.Network, strings.Join(f.Hosts, ",")} {
				if of != "" {
					text += " " + of
				}
			}
			if f.Instance != nil {
				text += " " + f.Instance.Name
			}
			if f.Kind == "rack" {
				text += " or " + strings.Join(f.Alternatives, " or ")
			}
			got = append(got, text)
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(tt.want))
		if !slices.Equal(got, want) {
			t.Errorf("%v: in common %q; want %q", tt.breaks, got, want)
		}
		if bad := c.Counts["faulty"] + c.Counts["silent"] + c.Counts["policy"]; explained != bad {
			t.Errorf("%v: %d pairs are explained, of %d that are not healthy", tt.breaks, explained, bad)
		}
		l.must("lab", "heal", "all")
	}
}
