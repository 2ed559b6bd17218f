package agent

import (
	"slices"
	"testing"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/flows"
)

// What a hook is told of a bridge's ports: not which are instances', so that a tap which
// comes or goes is no reason to read the bridge anew, but that there are any.
func TestFlowPorts(t *testing.T) {
	t.Parallel()
	const dye = 9
	tap := dataplane.Port{Name: "tap1", OFPort: 7, Role: flows.Instance}
	found := dataplane.Bridge{Ports: []dataplane.Port{
		{Name: "dye", OFPort: dye, Dye: true}, {Name: "none", Role: flows.Tunnel}, {Name: "pending", Role: flows.Instance},
		{Name: "vx", OFPort: 5, Role: flows.Tunnel}, {Name: "down", OFPort: 3, Role: flows.Downlink},
	}}
	rest := []flows.Port{{Name: "down", OFPort: 3, Role: flows.Downlink}, {Name: "vx", OFPort: 5, Role: flows.Tunnel}}
	if got := flowPorts(found, dye); !slices.Equal(got, rest) {
		t.Errorf("without instances: %v, want %v", got, rest)
	}
	found.Ports = append(found.Ports, tap)
	want := append([]flows.Port{{Role: flows.Instance}}, rest...)
	if got := flowPorts(found, dye); !slices.Equal(got, want) {
		t.Errorf("with an instance: %v, want %v", got, want)
	}
	found.Ports = append(found.Ports, dataplane.Port{Name: "tap2", OFPort: 8, Role: flows.Instance})
	if got := flowPorts(found, dye); !slices.Equal(got, want) {
		t.Errorf("with another: %v, want %v", got, want)
	}
}
