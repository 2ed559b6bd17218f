package agent

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/flows"
)

// TestExplanation has all told that the switch said: every way out, and why there is none.
func TestExplanation(t *testing.T) {
	t.Parallel()
	const miss = "neighbor cache miss for 192.0.2.9"
	tests := []struct {
		trace ovs.Trace
		want  *dyetracev1.Explanation
	}{
		{ovs.Trace{
			Outcome: ovs.Tunnelled, Port: "gre-9", Ports: []string{"gre-9", "tap-b", "gre-2"}, TunnelRemote: "192.0.2.9", TunnelID: 1001, Reason: miss,
			Exits: []ovs.Exit{{Port: "gre-9", Remote: "192.0.2.9", TunnelID: 1001, Reason: miss}, {Port: "tap-b"}, {Port: "gre-2", Remote: "192.0.2.2", TunnelID: 1001}},
		}, &dyetracev1.Explanation{
			Id: 7, Outcome: dyetracev1.Outcome_OUTCOME_TUNNELLED, Port: "gre-9", TunnelRemote: "192.0.2.9", TunnelId: 1001, Reason: miss,
			Exits: []*dyetracev1.Exit{{Port: "gre-9", TunnelRemote: "192.0.2.9", TunnelId: 1001, Reason: miss}, {Port: "tap-b"}, {Port: "gre-2", TunnelRemote: "192.0.2.2", TunnelId: 1001}},
		}},
		{ovs.Trace{
			Outcome: ovs.Delivered, Port: "tap-b", Ports: []string{"br-int", "tap-b"}, Exits: []ovs.Exit{{Port: "br-int"}, {Port: "tap-b"}},
		}, &dyetracev1.Explanation{
			Id: 7, Outcome: dyetracev1.Outcome_OUTCOME_DELIVERED, Port: "br-int,tap-b", Exits: []*dyetracev1.Exit{{Port: "br-int"}, {Port: "tap-b"}},
		}},
		{ovs.Trace{
			Outcome: ovs.Dropped, Reason: "Nonexistent output port",
			Flow: ovs.FlowRef{Bridge: "br-int", Flow: flows.Flow{Table: 82, Priority: 77, Match: "tcp", Actions: "output:9", Cookie: 5}},
		}, &dyetracev1.Explanation{
			Id: 7, Outcome: dyetracev1.Outcome_OUTCOME_DROPPED, Reason: "Nonexistent output port",
			Flow: &dyetracev1.FlowRef{Bridge: "br-int", Table: 82, Priority: 77, Match: "tcp", Actions: "output:9", Cookie: 5},
		}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, explanation(7, tt.trace), protocmp.Transform()); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}
