package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// routeView is a route as `routes -o json` has it, as far as this test reads it.
type routeView struct {
	MAC  string `json:"mac"`
	VTEP struct {
		Address string `json:"address"`
	} `json:"vtep"`
}

// TestRoutes has real FRR reflect the routes of hypervisors and of bare metal behind an FRR VTEP,
// and moves an instance: with its route left behind, and with a tunnel left behind.
func TestRoutes(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "evpn")
	var peers []struct {
		State string `json:"state"`
	}
	if err := json.Unmarshal([]byte(l.must("peers", "-o", "json")), &peers); err != nil {
		t.Fatal(err)
	}
	if len(peers) != 2 || peers[0].State != "established" || peers[1].State != "established" {
		t.Errorf("peers: %+v (want two, established)", peers)
	}
	const moving, leaf = "fa:16:3e:00:09:0b", "10.255.3.1"
	at := func(mac string) []string {
		var found struct {
			Routes []routeView `json:"routes"`
		}
		if err := json.Unmarshal([]byte(l.must("routes", "--mac", mac, "-o", "json")), &found); err != nil {
			t.Fatal(err)
		}
		var vteps []string
		for _, r := range found.Routes {
			vteps = append(vteps, r.VTEP.Address)
		}
		return vteps
	}
	if vteps := at("02:00:00:00:09:15"); len(vteps) == 0 || vteps[0] != leaf {
		t.Errorf("bare metal is at %v (want %s)", vteps, leaf)
	}
	healthy := func() {
		t.Helper()
		for _, p := range l.check(4, "--network", "web").Pairs {
			metal := strings.HasPrefix(p.Src, "metal") // no agent is there that would send
			if want := map[bool]string{false: "healthy", true: "unknown"}[metal]; p.Verdict != want || strings.Contains(p.Cause, "EVPN") {
				t.Errorf("%v (want %s, and routes that agree)", p, want)
			}
		}
	}
	healthy()
	for _, tt := range []struct {
		kind string
		want []string // parts of the cause of a pair that is lost
	}{
		{"moved-stale-tunnel", []string{"stale VTEP: hv3 sends it to 10.255.1.11 (hv1), but web-1 is on hv2 (10.255.1.12)", "EVPN says 10.255.1.12 (hv2)"}},
		{"moved-withheld", []string{"stale VTEP: hv3 sends it to 10.255.1.11 (hv1)", "EVPN still says (10.255.1.11 (hv1)", "the route is stale"}},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			l := l.with(t)
			l.must("lab", "break", tt.kind)
			defer l.must("lab", "heal", tt.kind)
			for _, args := range [][]string{{"web-5", "web-1"}, {"web-6", "web-1"}} {
				p := l.check(1, args...).Pairs[0]
				if p.Verdict != "faulty" || p.Host != "hv3" {
					t.Errorf("%v (want faulty, hv3)", p)
				}
				for _, part := range tt.want {
					if !strings.Contains(p.Cause, part) {
						t.Errorf("%v: want %q in the cause", p, part)
					}
				}
			}
			if p := l.check(0, "web-3", "web-1").Pairs[0]; p.Verdict != "healthy" { // they are on one host now
				t.Errorf("%v (want healthy)", p)
			}
		})
	}
	eventually(t, "route of the one that moved back", time.Minute, func() bool {
		vteps := at(moving)
		return len(vteps) > 0 && vteps[0] == "10.255.1.11"
	})
	if history := l.must("routes", "--history", moving); !strings.Contains(history, "10.255.1.12 (hv2)") || !strings.Contains(history, "now") {
		t.Errorf("history does not tell of hv2:\n%s", history)
	}
	healthy()
}
