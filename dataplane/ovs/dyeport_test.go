package ovs

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/internal/sandbox"
)

func TestDyePortName(t *testing.T) {
	t.Parallel()
	tests := []struct{ bridge, want string }{
		{"br-int", "dye-br-int"},
		{"br-elevenchr", "dye-1ed57afc"},
		{"br-eleven12", "dye-br-eleven12"},
	}
	for _, tt := range tests {
		if got := DyePortName(tt.bridge); got != tt.want || len(got) > 15 {
			t.Errorf("DyePortName(%q) = %q, want %q, at most 15 bytes", tt.bridge, got, tt.want)
		}
	}
}

func TestEnsureDyePort(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	first, err := s.EnsureDyePort(t.Context(), bridge)
	if err != nil {
		t.Fatal(err)
	}
	// The second time by the snapshot, and once more by the database.
	awaitPort(t, s, bridge, first.Name, func(p dataplane.Port) bool { return p.OFPort == first.OFPort && p.Dye })
	start := time.Now()
	second, err := s.EnsureDyePort(t.Context(), bridge)
	if err != nil || second != first {
		t.Errorf("second EnsureDyePort = %+v, %v; want %+v", second, err, first)
	}
	t.Logf("looking at a dye port that is ready takes %v", time.Since(start))
	idle, err := Open(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer idle.first.close()
	if third, err := idle.EnsureDyePort(t.Context(), bridge); err != nil || third != first {
		t.Errorf("EnsureDyePort by another one, not running = %+v, %v; want %+v", third, err, first)
	}
	link, err := netlink.LinkByName(first.Name)
	if err != nil {
		t.Fatal(err)
	}
	a := link.Attrs()
	if a.Index != first.IfIndex || a.Flags&net.FlagUp == 0 || a.RawFlags&iffNoARP == 0 || a.Flags&net.FlagMulticast != 0 {
		t.Errorf("device: index %d, flags %v; want %d, up, no ARP, no multicast", a.Index, a.Flags, first.IfIndex)
	}
	if addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL); err != nil || len(addrs) != 0 {
		t.Errorf("addresses %v, %v; want none", addrs, err)
	}
	if text, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + first.Name + "/disable_ipv6"); err != nil || strings.TrimSpace(string(text)) != "1" {
		t.Errorf("disable_ipv6 = %q, %v; want 1", text, err)
	}
	wantNoFlood(t, bridge, first.Name)
	for _, table := range []string{"port", "interface"} {
		if got := vsctl(t, "get", table, first.Name, "external_ids"); got != "{dyetrace=dye}" {
			t.Errorf("external_ids of the %s are %s", table, got)
		}
	}
}

// TestDyePortIsMadeReadyAgain undoes, by hand, what EnsureDyePort did.
func TestDyePortIsMadeReadyAgain(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	first, err := s.EnsureDyePort(t.Context(), bridge)
	if err != nil {
		t.Fatal(err)
	}
	awaitPort(t, s, bridge, first.Name, hasOFPort)
	sandbox.Command(t, "ip", "link", "set", first.Name, "down", "arp", "on")
	if again, err := s.EnsureDyePort(t.Context(), bridge); err != nil || again != first {
		t.Errorf("EnsureDyePort of a device that is down = %+v, %v; want %+v", again, err, first)
	}
	if link, err := netlink.LinkByName(first.Name); err != nil || link.Attrs().Flags&net.FlagUp == 0 || link.Attrs().RawFlags&iffNoARP == 0 {
		t.Errorf("device is %+v, %v; want up, no ARP", link, err)
	}
	vsctl(t, "del-port", bridge, first.Name)
	await(t, s, "no dye port", func(snap dataplane.Snapshot) bool {
		b, _ := snap.Bridge(bridge)
		_, found := b.Port(first.Name)
		return !found
	})
	again, err := s.EnsureDyePort(t.Context(), bridge)
	if err != nil || again.Name != first.Name || again.IfIndex == first.IfIndex {
		t.Errorf("EnsureDyePort after somebody deleted it = %+v, %v; want another device than %+v", again, err, first)
	}
	wantNoFlood(t, bridge, first.Name)
}

// TestRemoveDyePort also runs without Run, as an agent does that is being stopped.
func TestRemoveDyePort(t *testing.T) {
	t.Parallel()
	s := open(t)
	bridge := addBridge(t)
	before := vsctl(t, "show")
	port, err := s.EnsureDyePort(t.Context(), bridge)
	if err != nil {
		t.Fatal(err)
	}
	idle, err := Open(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer idle.first.close()
	for range 2 {
		if err := idle.RemoveDyePort(t.Context(), bridge); err != nil {
			t.Fatal(err)
		}
		if _, err := netlink.LinkByName(port.Name); !errors.As(err, &netlink.LinkNotFoundError{}) {
			t.Errorf("after RemoveDyePort: device %s: %v, want that it is gone", port.Name, err)
		}
		if rows := vsctl(t, "--columns=_uuid", "find", "interface", "name="+port.Name); rows != "" {
			t.Errorf("left in the database: %s", rows)
		}
	}
	// Other tests' bridges are there, too.
	if section(before, bridge) != section(vsctl(t, "show"), bridge) {
		t.Errorf("ovs-vsctl show differs:\n%s\nbefore:\n%s", vsctl(t, "show"), before)
	}
	if err := idle.RemoveDyePort(t.Context(), "nosuchbridge"); err != nil {
		t.Errorf("RemoveDyePort of no bridge = %v", err)
	}
}

// section returns what ovs-vsctl show prints of one bridge.
func section(show, bridge string) string {
	_, rest, _ := strings.Cut(show, "Bridge "+bridge+"\n")
	text, _, _ := strings.Cut(rest, "    Bridge ")
	text, _, _ = strings.Cut(text, "    ovs_version:")
	return text
}

func TestDyePortRefused(t *testing.T) {
	t.Parallel()
	s := open(t)
	if _, err := s.EnsureDyePort(t.Context(), "nosuchbridge"); !errors.Is(err, ErrNoBridge) {
		t.Errorf("EnsureDyePort = %v, want ErrNoBridge", err)
	}
	bridge := addBridge(t)
	name := DyePortName(bridge)
	vsctl(t, "add-port", bridge, name, "--", "set", "interface", name, "type=internal")
	awaitPort(t, s, bridge, name, hasOFPort)
	if _, err := s.EnsureDyePort(t.Context(), bridge); !errors.Is(err, ErrTaken) {
		t.Errorf("EnsureDyePort = %v, want ErrTaken", err)
	}
	if err := s.RemoveDyePort(t.Context(), bridge); !errors.Is(err, ErrTaken) {
		t.Errorf("RemoveDyePort = %v, want ErrTaken", err)
	}
	if got := vsctl(t, "port-to-br", name); got != bridge {
		t.Errorf("the foreign port is on %q now", got)
	}
}

// TestFloodsSpareTheDyePort floods a bridge in both ways that there are: an internal
// port that is not a dye port gets the packets, the dye port gets none. A bridge that
// does not speak OpenFlow 1.0 has no flag against FLOOD.
func TestFloodsSpareTheDyePort(t *testing.T) {
	t.Parallel()
	tests := []struct {
		protocols string
		actions   []string
	}{
		{"[]", []string{"NORMAL", "FLOOD"}},
		{"OpenFlow13,OpenFlow15", []string{"NORMAL"}},
	}
	for _, tt := range tests {
		t.Run(tt.protocols, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			bridge := addBridge(t)
			vsctl(t, "set", "bridge", bridge, "protocols="+tt.protocols)
			other := "o" + bridge
			vsctl(t, "add-port", bridge, other, "--", "set", "interface", other, "type=internal")
			sandbox.Command(t, "ip", "link", "set", other, "up")
			port, err := s.EnsureDyePort(t.Context(), bridge)
			if err != nil {
				t.Fatal(err)
			}
			sent := func(name string) int {
				_, rest, _ := strings.Cut(ofctl(t, "dump-ports", bridge, name), "tx pkts=")
				text, _, _ := strings.Cut(rest, ",")
				n, err := strconv.Atoi(text)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			poll(t, "the other port to be up", func() bool {
				return strings.Contains(portOf(ofctl(t, "show", bridge), other), "LIVE")
			})
			const arp = "ffffffffffff02000000000108060001080006040001020000000001c0000201000000000000c0000202"
			before := sent(other)
			for _, action := range tt.actions {
				ofctl(t, "packet-out", bridge, "in_port=CONTROLLER,packet="+arp+",actions="+action)
			}
			poll(t, "the other port to get all", func() bool { return sent(other) >= before+len(tt.actions) })
			if got := sent(port.Name); got != 0 {
				t.Errorf("%d packets went to the dye port, want 0", got)
			}
		})
	}
}
