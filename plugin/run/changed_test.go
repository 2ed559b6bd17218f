package run

import (
	"testing"

	"github.com/dyetrace/dyetrace/plugin/plan"
)

// How much a flow's match concerns a pair that goes from hv1 to hv2 and back: by how many of its fields it names that
// pair, and not at all if one names somebody else.
func TestConcerns(t *testing.T) {
	t.Parallel()
	_, paths := pathsOf(t, site(t, 3), plan.Scope{Kind: plan.OnePair, Src: "i0", Dst: "i1"})
	p := &paths[0]
	ports := portsOf([]*plan.Path{p})
	ports[endKey{"hv1", "br-int", 99}] = true // somebody else's
	keyed := *p
	keyed.Points = append([]plan.Expected(nil), p.Points...)
	for i := range keyed.Points {
		keyed.Points[i].TunID = 1002
	}
	for _, tt := range []struct {
		match, host string
		names       bool
		want        int
	}{
		{"", "hv1", false, 0},
		{"ip", "hv1", false, 0},
		{"dl_vlan=3", "hv1", false, 0},
		{"dl_dst=fa:16:3e:00:00:01", "hv1", true, 1},
		{"dl_dst=fa:16:3e:00:00:02", "hv1", true, 0},
		{"dl_dst=01:00:00:00:00:00/01:00:00:00:00:00", "hv1", false, 0},
		{"ip,nw_src=10.0.1.1,nw_dst=10.0.1.2", "hv1", true, 2},
		{"ip,nw_src=10.0.1.2,nw_dst=10.0.1.1", "hv1", true, 2}, // its answer
		{"ip,nw_src=10.0.1.1,nw_dst=10.0.1.3", "hv1", true, 0},
		{"ip,nw_dst=10.0.0.0/16", "hv1", true, 1},
		{"in_port=10", "hv1", true, 1},
		{"in_port=99,dl_dst=fa:16:3e:00:00:01", "hv1", true, 0},
		{"in_port=5", "hv1", true, 1}, // a port that all share
		{"tun_id=0x3ea", "hv2", true, 1},
		{"tun_id=0x3eb", "hv2", true, 0},
		{"tun_id=0x3ea/0xffff", "hv2", false, 0},
		{"tun_id=0x3ea,dl_dst=fa:16:3e:00:00:01", "hv2", true, 2},
		{"tun_id=0x3ea", "hv3", true, 0},
	} {
		m := readMatch(tt.match)
		if m.names() != tt.names {
			t.Errorf("%s: names somebody: %t, want %t", tt.match, m.names(), tt.names)
		}
		if got := m.concerns(&keyed, tt.host, "br-int", ports); got != tt.want {
			t.Errorf("%s at %s: concerns it by %d, want %d", tt.match, tt.host, got, tt.want)
		}
	}
	if m := readMatch("tun_id=0x3eb"); m.concerns(p, "hv2", "br-int", ports) != 1 {
		t.Error("a tunnel's key may be that of a network whose key is not known, and concerns it not")
	}
}
