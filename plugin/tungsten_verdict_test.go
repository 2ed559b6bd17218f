package plugin

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/internal/teacher"
	"github.com/dyetrace/dyetrace/pki"
)

// TestTungstenVerdict: what a control node says byte by byte comes to be in a verdict. hv1 sends what is for
// blue-2 to hv4; that it is at hv2, an inet-vpn route says, with an MPLS label and a route target that is
// mapped to blue's VNI. With the route target mapped to another VNI nobody says so.
func TestTungstenVerdict(t *testing.T) {
	t.Parallel()
	const pair = "blue/blue-1 → blue/blue-2"
	for i, tt := range []struct {
		name string
		vni  int64
		want string
	}{
		{"its VNI", 101, "stale VTEP: hv1 sends it to 10.1.0.4 (hv4), but blue-2 is on hv2 (10.1.0.2), and EVPN says 10.1.0.2 (hv2) since "},
		{"another VNI", 109, "hv1 sends it to 10.1.0.4 (hv4), but blue-2 is on hv2 (10.1.0.2): stale or wrong tunnel"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr := fmt.Sprintf("127.%d.%d.%d", 128+os.Getpid()>>8&63, os.Getpid()&255, 78+i)
			port := teacher.StartTungsten(t, addr)
			w := newWorld(t, func(c *Config) {
				c.BGP = &bgp.Config{
					RouterID: "10.0.0.9", AS: 64512, Networks: []bgp.Network{{VNI: tt.vni, RTs: []string{"64512:8000001"}}},
					Peers: []bgp.Peer{{Address: addr, Port: port, AS: 64512, Families: []string{"evpn", "vpnv4"}}},
				}
			})
			w.start()
			w.rule(at(pair, 2, gone))
			for _, host := range labHosts {
				a := w.agent(host)
				a.onExplain = func(*dyetracev1.Explain) *dyetracev1.Explanation {
					return &dyetracev1.Explanation{Outcome: dyetracev1.Outcome_OUTCOME_TUNNELLED, TunnelRemote: "10.1.0.4", TunnelId: 101, Port: "gre0"}
				}
				a.dial(w.cert(pki.RoleAgent, host))
			}
			w.ready(4)
			eventually(t, "three routes", func() bool { return w.controller.table.Snapshot().Len() == 3 })
			p := w.check(onePair("blue-1", "blue-2"), 20*time.Second).pairs[pair]
			if p == nil {
				t.Fatal("no verdict")
			}
			t.Logf("%v: %s", p.Verdict, p.Cause)
			if p.Verdict != dyetracev1.Verdict_VERDICT_FAULTY || !strings.HasPrefix(p.Cause, tt.want) {
				t.Errorf("%v, %q; want %q", p.Verdict, p.Cause, tt.want)
			}
		})
	}
}
