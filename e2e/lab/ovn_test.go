package lab

import (
	"fmt"
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// TestOVN raises the lab whose network controller is OVN.
func TestOVN(t *testing.T) {
	t.Parallel()
	l := upAs(t, "ovn", withOVN)
	t.Logf("up after %v", l.Took())
	t.Run("pairs", func(t *testing.T) {
		for _, v := range overlay.Versions() {
			if n := len(l.Overlay().PairsOver(v)); n != 44 {
				t.Errorf("%d pairs over IPv%d, want 44", n, v)
			}
			checkPairs(t, l, v)
		}
	})
	t.Run("isolation", func(t *testing.T) { testIsolation(t, l, 28) })
	t.Run("tcp", func(t *testing.T) { testTCP(t, l) })
	t.Run("addresses", func(t *testing.T) { testAddresses(t, l) })
	t.Run("inventory", func(t *testing.T) { testLogicalPorts(t, l) })
	t.Run("control", func(t *testing.T) { testOVNControls(t, l) })
}

// testLogicalPorts compares where OVN has each instance with where the overlay has it.
func testLogicalPorts(t *testing.T, l *Lab) {
	for _, i := range l.Overlay().Instances {
		out, err := l.Exec(t.Context(), l.Overlay().OVN.Central, "ovn-sbctl", "--bare", "--columns=chassis", "find", "Port_Binding",
			"logical_port="+i.PortID())
		if err != nil {
			t.Fatal(err)
		}
		host, err := l.Exec(t.Context(), l.Overlay().OVN.Central, "ovn-sbctl", "get", "Chassis", strings.TrimSpace(string(out)), "name")
		if err != nil || strings.TrimSpace(string(host)) != i.Host {
			t.Errorf("%s: OVN has it on %s (%v), want %s", i.Name, host, err, i.Host)
		}
	}
	for _, n := range l.Overlay().Networks {
		out, err := l.Exec(t.Context(), l.Overlay().OVN.Central, "ovn-sbctl", "--bare", "--columns=tunnel_key", "find", "Datapath_Binding",
			"external_ids:name="+n.Name)
		if err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(n.Segmentation) {
			t.Errorf("network %s: tunnel key %s, %v, want %d", n.Name, out, err, n.Segmentation)
		}
	}
}

// testOVNControls checks that all flows are OVN's own doing: none is left with nobody to have it.
func testOVNControls(t *testing.T, l *Lab) {
	// That all pairs answer does not say that all flows are there.
	if _, err := l.Exec(t.Context(), l.Overlay().OVN.Central, "ovn-nbctl", "--timeout=30", "--wait=hv", "sync"); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Overlay().Hosts {
		count := func() int {
			out, err := l.Exec(t.Context(), h.Name, "ovs-ofctl", "--no-stats", "dump-flows", overlay.Integration)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Count(string(out), "actions=")
		}
		n := count()
		if n < 500 {
			t.Errorf("%s: %d flows on %s, want OVN's 500 and more", h.Name, n, overlay.Integration)
		}
		if _, err := l.Exec(t.Context(), h.Name, "ovs-ofctl", "del-flows", overlay.Integration); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Exec(t.Context(), h.Name, "ovn-appctl", "-t", "ovn-controller", "exit"); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "ovn-controller of "+h.Name+" to end", func() bool {
			_, err := l.Exec(t.Context(), h.Name, "test", "!", "-e", ovnRun+"/ovn-controller.pid")
			return err == nil
		})
		if _, err := l.Exec(t.Context(), h.Name, controllerCommand()...); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the flows of "+h.Name, func() bool { return count() == n })
	}
	for _, v := range overlay.Versions() {
		checkPairs(t, l, v)
	}
}

// TestOVNBreaks breaks and heals it in every way that needs OVN.
func TestOVNBreaks(t *testing.T) {
	t.Parallel()
	testBreaks(t, upAs(t, "ovn-breaks", withOVN))
}
