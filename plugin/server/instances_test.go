package server

import (
	"slices"
	"testing"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
)

// TestListInstancesAddresses: all addresses are told, IPv4 before IPv6 whatever the file's order.
func TestListInstancesAddresses(t *testing.T) {
	t.Parallel()
	f, err := inventory.Parse("inventory.yaml", []byte(`
networks: [{name: blue, cidr: [10.0.1.0/24, "fd00:1::/64"]}]
instances:
  - {name: both, network: blue, mac: "fa:16:3e:00:00:01", ip: ["fe80::11", "fd00:1::11", 10.0.1.11]}
  - {name: four, network: blue, mac: "fa:16:3e:00:00:02", ip: 10.0.1.12}
  - {name: six, network: blue, mac: "fa:16:3e:00:00:03", ip: "fe80::13"}
`))
	if err != nil {
		t.Fatal(err)
	}
	book := inventory.NewBook()
	book.SetFile(f)
	res, err := service{Config: Config{Book: book}}.ListInstances(t.Context(), connect.NewRequest(&dyetracev1.ListInstancesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"both": {"10.0.1.11", "fe80::11", "fd00:1::11"}, "four": {"10.0.1.12"}, "six": {"fe80::13"}}
	for _, in := range res.Msg.GetInstances() {
		if ips := want[in.GetName()]; !slices.Equal(in.GetIps(), ips) || in.GetIp() != ips[0] {
			t.Errorf("%s has ip %s, ips %v; want %v", in.GetName(), in.GetIp(), in.GetIps(), ips)
		}
	}
	if len(res.Msg.GetInstances()) != len(want) {
		t.Errorf("%d instances, want %d", len(res.Msg.GetInstances()), len(want))
	}
}
