package overlay

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the golden flows in testdata")

// TestFlows computes the flows of a host from the specification and the port numbers of a
// file, and compares them with those that the file holds.
func TestFlows(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			part := make(map[string]*txtar.File)
			for i := range archive.Files {
				part[archive.Files[i].Name] = &archive.Files[i]
			}
			spec, err := Parse(strings.NewReader(string(part["overlay.yaml"].Data)))
			if err != nil {
				t.Fatal(err)
			}
			var on struct {
				Host string
				Ports
			}
			if err := json.Unmarshal(part["ports.json"].Data, &on); err != nil {
				t.Fatal(err)
			}
			for name, got := range map[string]string{
				Integration: spec.IntegrationFlows(on.Host, on.Ports),
				Tunnel:      spec.TunnelFlows(on.Host, on.Ports),
			} {
				if diff := cmp.Diff(string(part[name].Data), got); diff != "" && !*update {
					t.Errorf("%s (-want +got, -update rewrites):\n%s", name, diff)
				}
				part[name].Data = []byte(got)
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// good is a specification with nothing wrong; tests of refusals replace a part of it.
const good = `
underlay: 192.0.2.0/24
hosts:
  - {name: hv1, uplink: eth1, vtep: 192.0.2.1/25, gateway: 192.0.2.126}
  - {name: hv2, uplink: eth1, vtep: 192.0.2.129/25, gateway: 192.0.2.254}
networks:
  - {name: blue, cidr: 10.0.1.0/24, gateway: {ip: 10.0.1.1, mac: "fa:16:3e:00:01:01"}, router: r1, encap: gre, segmentation_id: 1001}
  - {name: red, cidr: 10.0.1.0/24, encap: vxlan, segmentation_id: 1001}
instances:
  - {name: blue-1, network: blue, mac: "fa:16:3e:00:01:0b", ip: 10.0.1.11, host: hv1}
  - {name: blue-2, network: blue, mac: "fa:16:3e:00:01:0c", ip: 10.0.1.12, host: hv2}
  - {name: red-1, network: red, mac: "fa:16:3e:00:01:0b", ip: 10.0.1.11, host: hv2}
`

const ovnAnd = "ovn: {central: central, address: 203.0.113.9}\n"

const evpnAnd = "evpn: {as: 65000, reflectors: [{name: spine, address: 192.0.2.250}]}\n"

// TestParseBare refuses bare-metal instances that no switch could serve.
func TestParseBare(t *testing.T) {
	for instance, want := range map[string]string{
		"network: red, host: leaf, port: eth1":  "",
		"network: red, host: leaf":              "instances: metal: port: want",
		"network: blue, host: leaf, port: eth1": "instances: metal: host: leaf is a switch: want a network of encap vxlan and with no router",
	} {
		text := strings.Replace(good, "hosts:", evpnAnd+"switches: [{name: leaf, vtep: 192.0.2.200/32}]\nhosts:", 1) +
			`  - {name: metal, mac: "02:00:00:00:00:01", ip: 10.0.1.99, ` + instance + "}\n"
		switch _, err := Parse(strings.NewReader(text)); {
		case want == "" && err != nil:
			t.Errorf("%s: %v", instance, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", instance, err, want)
		}
	}
}

func TestParse(t *testing.T) {
	tests := []struct{ old, new, want string }{
		{"", "", ""},
		{"underlay: 192.0.2.0/24", "underlay: 2001:db8::/32", "underlay: want an IPv4 prefix"},
		{"name: hv2", "name: hv1", "hosts: hv1 is there twice"},
		{"uplink: eth1, vtep: 192.0.2.1/", "vtep: 192.0.2.1/", "hosts: hv1: uplink: want"},
		{"192.0.2.129/25", "198.51.100.1/25", "hosts: hv2: vtep: want an address with prefix length inside 192.0.2.0/24"},
		{"192.0.2.129/25", "192.0.2.1/25", "vtep: 192.0.2.1 is there twice"},
		{"gateway: 192.0.2.254", "gateway: 192.0.2.1", "hosts: hv2: gateway: want an address inside 192.0.2.128/25"},
		{"name: red, cidr: 10.0.1.0/24", "name: red, cidr: 10.0.1.1/24", "networks: red: cidr: 10.0.1.1/24: want a prefix with no host bits"},
		{"encap: vxlan", "encap: stt", `networks: red: encap: "stt": want gre or vxlan`},
		{"encap: vxlan", "encap: gre", "segmentation_id: gre 1001 is there twice"},
		{"vxlan, segmentation_id: 1001", "vxlan, segmentation_id: 16777216", "networks: red: segmentation_id: 16777216: want 1 to 16777215"},
		{", router: r1", "", "networks: blue: want both gateway and router, or neither"},
		{"ip: 10.0.1.1,", "ip: 10.0.2.1,", "networks: blue: gateway: ip: want an address inside 10.0.1.0/24"},
		{"name: blue-2, network: blue", "name: blue-2, network: blu", `instances: blue-2: network: there is no "blu"`},
		{"ip: 10.0.1.12", "ip: 10.0.2.12", "instances: blue-2: ip: want an address inside 10.0.1.0/24"},
		{"ip: 10.0.1.12", "ip: 10.0.1.11", "address: blue 10.0.1.11 is there twice"},
		{"fa:16:3e:00:01:0c", "fa:16:3e:00:01:0b", "address: blue fa:16:3e:00:01:0b is there twice"},
		{"fa:16:3e:00:01:0c", "ff:16:3e:00:01:0c", "instances: blue-2: mac: ff:16:3e:00:01:0c: want a unicast address"},
		{"fa:16:3e:00:01:0c", "fa:16:3e", "is not an Ethernet address"},
		{"fa:16:3e:00:01:0c", "fa:16:3e:00:01:01", "instances: blue-2: ip, mac: the gateway has it"},
		{"10.0.1.12, host: hv2", "10.0.1.12, host: hv3", `instances: blue-2: host: there is no "hv3"`},
		{"red, cidr: 10.0.1.0/24", "red, cidr: []", "networks: red: cidr: want an IPv4 prefix, an IPv6 prefix, or a list of both"},
		{"red, cidr: 10.0.1.0/24", "red, cidr: [10.0.1.0/24, 10.0.2.0/24]", "10.0.2.0/24: want at most one prefix of each version"},
		{"red, cidr: 10.0.1.0/24", `red, cidr: [10.0.1.0/24, "fd00:3::/64"]`, "instances: red-1: ip: want an address inside fd00:3::/64"},
		{"10.0.1.12, host: hv2", `[10.0.1.12, "fd00:1::12"], host: hv2`, "instances: blue-2: ip: fd00:1::12: the network has no IPv6 prefix"},
		{"10.0.1.12, host: hv2", `[10.0.1.12, 10.0.1.13], host: hv2`, "10.0.1.13: want at most one address of each version"},
		{"10.0.1.12, host: hv2", `"::ffff:10.0.1.12", host: hv2`, "::ffff:10.0.1.12: want an IPv4 or an IPv6 address, with no zone"},
		{"underlay:", "overlay: x\nunderlay:", "field overlay not found"},
		{"hosts:", ovnAnd + "hosts:", `networks: blue: encap: "gre": want geneve`},
		{"hosts:", "ovn: {central: central}\nhosts:", "ovn: address: want one outside of"},
		{"hosts:", "ovn: {central: central, address: 192.0.2.9}\nhosts:", "ovn: address: want one outside of"},
		{"hosts:", "ovn: {address: 203.0.113.9}\nhosts:", "ovn: central: want the name of the node"},
		{"hosts:", ovnAnd + evpnAnd + "hosts:", "ovn: want either it or evpn"},
		{"hosts:", "switches: [{name: leaf, vtep: 192.0.2.200/32}]\nhosts:", "evpn: want it, or no switches"},
		{"hosts:", evpnAnd + "switches: [{name: hv1, vtep: 192.0.2.200/32}]\nhosts:", "hosts: hv1 is there twice"},
		{"hosts:", evpnAnd + "switches: [{name: leaf, vtep: 192.0.2.1/32}]\nhosts:", "vtep: 192.0.2.1 is there twice"},
		{"hosts:", evpnAnd + "switches: [{name: leaf, vtep: 198.51.100.1/32}]\nhosts:", "switches: leaf: vtep: want an address"},
		{"hosts:", "evpn: {as: 0}\nhosts:", "evpn: as: want"},
		{"hosts:", "evpn: {as: 65000}\nhosts:", "evpn: reflectors: want at least one"},
		{"hosts:", "evpn: {as: 65000, reflectors: [{name: s, address: 198.51.100.1}]}\nhosts:", "evpn: reflectors: want a name and an address inside 192.0.2.0/24"},
		{"ip: 10.0.1.12, host: hv2", "ip: 10.0.1.12, host: hv2, port: eth1", "instances: blue-2: port: want"},
	}
	for _, tt := range tests {
		if !strings.Contains(good, tt.old) {
			t.Errorf("%q is not in the specification", tt.old)
		}
		_, err := Parse(strings.NewReader(strings.Replace(good, tt.old, tt.new, 1)))
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("Parse: %v", err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%q for %q: %v, want %q", tt.new, tt.old, err, tt.want)
		}
	}
}

func parseGood(t *testing.T) *Spec {
	t.Helper()
	s, err := Parse(strings.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNames(t *testing.T) {
	s := parseGood(t)
	const most = 15 // IFNAMSIZ less the final zero
	seen := make(map[string]bool)
	for _, i := range s.Instances {
		if seen[i.Tap()] || len(i.Tap()) > most || !strings.HasPrefix(i.PortID(), strings.TrimPrefix(i.Tap(), "tap")) {
			t.Errorf("%s: tap %s of port %s", i.Name, i.Tap(), i.PortID())
		}
		seen[i.Tap()] = true
	}
	if name := TunnelName(VXLAN, s.Hosts[1]); name != "vxlan-c0000281" || len(name) > most {
		t.Errorf("tunnel to 192.0.2.129: %s", name)
	}
	if a, b := Cookie("hv1", Integration), Cookie("hv1", Tunnel); a == b || a == Cookie("hv2", Integration) {
		t.Errorf("cookies %#x and %#x are not told apart", a, b)
	}
	if a, b := RouterMAC("hv1"), RouterMAC("hv2"); a == b {
		t.Errorf("two hosts share the router MAC %s", a)
	}
}

func TestPairs(t *testing.T) {
	s := parseGood(t)
	var got []string
	for _, p := range s.Pairs() {
		got = append(got, fmt.Sprintf("%s %s %v", p.Src.Name, p.Dst.Name, p.Routed()))
	}
	if diff := cmp.Diff([]string{"blue-1 blue-2 false", "blue-2 blue-1 false"}, got); diff != "" {
		t.Errorf("pairs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]uint16{"blue": 1, "red": 2}, s.LocalVLANs("hv2")); diff != "" {
		t.Errorf("VLANs of hv2 (-want +got):\n%s", diff)
	}
}

func TestInventory(t *testing.T) {
	text, err := parseGood(t).Inventory()
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"192.0.2", "vxlan", "gre", "underlay"} {
		if strings.Contains(string(text), secret) {
			t.Errorf("the inventory tells of %q:\n%s", secret, text)
		}
	}
	if !strings.Contains(string(text), "mac: fa:16:3e:00:01:0b") {
		t.Errorf("the inventory has no MAC in its usual form:\n%s", text)
	}
}
