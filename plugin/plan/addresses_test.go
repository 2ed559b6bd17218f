package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/stain"
)

// mixed has every way of not having an address: blue and green are routed in both versions, red
// in IPv4 only.
const mixed = `
networks:
  - {name: blue, cidr: [10.0.1.0/24, "fd00:1::/64"], gateway: {ip: [10.0.1.1, "fe80::1"], mac: "fa:16:3e:00:01:01"}, router: r1}
  - {name: green, cidr: [10.0.2.0/24, "fd00:2::/64"], gateway: {ip: [10.0.2.1, "fd00:2::1"], mac: "fa:16:3e:00:02:01"}, router: r1}
  - {name: red, cidr: [10.0.3.0/24, "fd00:3::/64"], gateway: {ip: 10.0.3.1, mac: "fa:16:3e:00:03:01"}, router: r1}
  - {name: old, cidr: 10.0.4.0/24}
  - {name: odd, cidr: [10.0.5.0/24, "fd00:5::/64"]}
instances:
  - {name: both, network: blue, mac: "fa:16:3e:00:00:01", ip: [10.0.1.11, "fd00:1::11"], host: hv1}
  - {name: four, network: blue, mac: "fa:16:3e:00:00:02", ip: 10.0.1.12, host: hv1}
  - {name: six, network: blue, mac: "fa:16:3e:00:00:03", ip: "fd00:1::13", host: hv1}
  - {name: link, network: blue, mac: "fa:16:3e:00:00:04", ip: [10.0.1.14, "fe80::14"], host: hv1}
  - {name: far, network: green, mac: "fa:16:3e:00:00:05", ip: [10.0.2.11, "fd00:2::11"], host: hv1}
  - {name: stuck, network: red, mac: "fa:16:3e:00:00:06", ip: [10.0.3.11, "fd00:3::11"], host: hv1}
  - {name: old-1, network: old, mac: "fa:16:3e:00:00:07", ip: 10.0.4.11, host: hv2}
  - {name: old-2, network: old, mac: "fa:16:3e:00:00:08", ip: 10.0.4.12, host: hv2}
  - {name: odd-1, network: odd, mac: "fa:16:3e:00:00:09", ip: 10.0.5.11, host: hv3}
  - {name: odd-2, network: odd, mac: "fa:16:3e:00:00:0a", ip: "fd00:5::12", host: hv3}
`

func TestVersions(t *testing.T) {
	t.Parallel()
	snap := readMap(t, []byte(mixed), nil)
	tests := []struct {
		scope string
		pairs int
		text  string // of the error
	}{
		{scope: "both six", pairs: 1},
		{scope: "both four ip=4", pairs: 1},
		{scope: "both six ip=6", pairs: 1},
		{scope: "both far ip=6", pairs: 1},
		{scope: "host hv1", pairs: 5*4 + 2*2}, // five by IPv4; six with both and far
		{scope: "host hv1 ip=4", pairs: 5 * 4},
		{scope: "host hv1 ip=6", pairs: 2 * 3}, // both, six, far
		{scope: "network old ip=4", pairs: 2},

		{scope: "both four ip=6", text: "scope.pair.dst: blue/four has no IPv6 address (ip_version 6)"},
		{scope: "four both ip=6", text: "scope.pair.src: blue/four has no IPv6 address (ip_version 6)"},
		{scope: "six both ip=4", text: "scope.pair.src: blue/six has no IPv4 address (ip_version 4)"},
		{scope: "both link ip=6", text: "scope.pair.dst: blue/link has only link-local IPv6 addresses, and blue/both has none of those (ip_version 6)"},
		{scope: "link both ip=6", text: "scope.pair.src: blue/link has only link-local IPv6 addresses, and blue/both has none of those (ip_version 6)"},
		{scope: "far link ip=6", text: "scope.pair.dst: blue/link has only link-local IPv6 addresses, which are not routed (ip_version 6)"},
		{scope: "far stuck ip=6", text: "scope.pair: green/far → red/stuck: no path between them: the gateway of network red has no IPv6 address (ip_version 6)"},
		{scope: "four six", text: "scope.pair: blue/four → blue/six: no path between them: blue/six has no IPv4 address; blue/four has no IPv6 address"},
		{scope: "six stuck", text: "scope.pair: blue/six → red/stuck: no path between them: blue/six has no IPv4 address; the gateway of network red has no IPv6 address"},
		{scope: "network old ip=6", text: "scope.network: network old has no two instances that should reach each other over IPv6 (ip_version 6): no path between them"},
		{scope: "host hv2 ip=6", text: "scope.host: host hv2 has no two instances that should reach each other over IPv6 (ip_version 6): no path between them"},
		{scope: "network odd", text: "scope.network: network odd has no two instances that should reach each other and have addresses of one IP version: no path between them"},
	}
	for _, tt := range tests {
		scope, opts := readScope(strings.Fields(tt.scope))
		pairs, err := Pairs(snap, scope, opts)
		switch {
		case tt.text == "" && (err != nil || len(pairs) != tt.pairs):
			t.Errorf("Pairs(%s): %d pairs, %v; want %d", tt.scope, len(pairs), err, tt.pairs)
		case tt.text != "" && (err == nil || err.Error() != tt.text):
			t.Errorf("Pairs(%s): %v\nwant %s", tt.scope, err, tt.text)
		case tt.text != "" && errors.Is(err, ErrNoPath) != strings.Contains(tt.text, ErrNoPath.Error()):
			t.Errorf("Pairs(%s): %v wraps ErrNoPath: %v", tt.scope, err, errors.Is(err, ErrNoPath))
		}
	}

	both, _ := snap.Resolve("both")
	four, _ := snap.Resolve("four")
	_, err := Of(snap, Pair{both, four}, Options{Version: inventory.IPv6})
	if want := "blue/both → blue/four: blue/four has no IPv6 address (ip_version 6)"; err == nil || err.Error() != want {
		t.Errorf("Of: %v, want %s", err, want)
	}
	const want = "options.ip_version: 5 (want 4, 6, or 0 for either)"
	if _, err := Of(snap, Pair{both, four}, Options{Version: 5}); err == nil || err.Error() != want {
		t.Errorf("Of over IPv5: %v, want %s", err, want)
	}
	if _, err := Pairs(snap, Scope{Kind: All}, Options{Version: 5}); err == nil || err.Error() != want {
		t.Errorf("Pairs over IPv5: %v, want %s", err, want)
	}
}

// TestSeveralPrefixes: of several addresses, those that the guests themselves would use.
func TestSeveralPrefixes(t *testing.T) {
	t.Parallel()
	snap := readMap(t, []byte(`
networks:
  - {name: n, cidr: [10.0.1.0/24, 10.0.2.0/24, "fd00:1::/64", "fd00:2::/64"], gateway: {ip: [10.0.2.1, "fd00:2::1"], mac: "fa:16:3e:00:01:01"}, router: r1}
  - {name: m, cidr: [10.0.8.0/24, "fd00:8::/64", "fd00:9::/64"], gateway: {ip: [10.0.8.1, "fe80::1"], mac: "fa:16:3e:00:02:01"}, router: r1}
instances:
  - {name: a, network: n, mac: "fa:16:3e:00:00:01", ip: [10.0.1.11, 10.0.2.11, "fd00:1::11", "fd00:2::11"]}
  - {name: b, network: n, mac: "fa:16:3e:00:00:02", ip: [10.0.2.12, "fd00:2::12", "fe80::12"]}
  - {name: c, network: n, mac: "fa:16:3e:00:00:03", ip: [10.0.1.13, "fd00:1::13", "fe80::13"]}
  - {name: d, network: m, mac: "fa:16:3e:00:00:04", ip: [10.0.8.11, "fd00:9::11", "fd00:8::11"]}
`), nil)
	tests := []struct {
		src, dst string
		v        inventory.IPVersion
		want     string
	}{
		{"a", "b", inventory.IPv4, "10.0.2.11 10.0.2.12"},   // one prefix, though not the first
		{"a", "c", inventory.IPv4, "10.0.1.11 10.0.1.13"},   // one prefix
		{"b", "c", inventory.IPv4, "10.0.2.12 10.0.1.13"},   // none in common
		{"a", "d", inventory.IPv4, "10.0.2.11 10.0.8.11"},   // by the gateway's prefix
		{"a", "b", inventory.IPv6, "fd00:2::11 fd00:2::12"}, // one prefix
		{"b", "c", inventory.IPv6, "fe80::12 fe80::13"},     // link-local both
		{"d", "a", inventory.IPv6, "fd00:9::11 fd00:2::11"}, // a link-local gateway serves all prefixes
		{"c", "d", inventory.IPv6, "fd00:1::13 fd00:9::11"}, // not by the gateway's prefix: it has no other
		{"a", "b", inventory.AnyIP, "10.0.2.11 10.0.2.12"},  // IPv4 first
		{"d", "b", inventory.AnyIP, "10.0.8.11 10.0.2.12"},  // IPv4 first
		{"d", "c", inventory.AnyIP, "10.0.8.11 10.0.1.13"},  // IPv4 first
		{"b", "a", inventory.IPv6, "fd00:2::12 fd00:2::11"}, // the other way
		{"c", "b", inventory.IPv6, "fe80::13 fe80::12"},     // the other way
		{"a", "d", inventory.IPv6, "fd00:2::11 fd00:9::11"}, // the other way
	}
	for _, tt := range tests {
		src, _ := snap.Resolve(tt.src)
		dst, _ := snap.Resolve(tt.dst)
		p, err := Of(snap, Pair{src, dst}, Options{Version: tt.v})
		if got := fmt.Sprint(p.Src, " ", p.Dst); err != nil || got != tt.want {
			t.Errorf("%s → %s over %s: %s, %v; want %s", tt.src, tt.dst, tt.v, got, err, tt.want)
		}
	}
}

// drawInventory makes networks of any mix of versions, prefixes and gateways, and instances of
// any mix of addresses, each attached to one of two hosts that sample all there is.
func drawInventory(t *rapid.T) *inventory.Snapshot {
	networks := rapid.IntRange(1, 4).Draw(t, "networks")
	some := func(label string, of ...string) []string {
		picked := slices.DeleteFunc(of, func(string) bool { return !rapid.Bool().Draw(t, label) })
		return rapid.Permutation(picked).Draw(t, label)
	}
	var nets, instances, ports strings.Builder
	count := 0
	for n := range networks {
		cidrs := some("cidr", fmt.Sprintf("10.%d.1.0/24", n), fmt.Sprintf("10.%d.2.0/24", n), fmt.Sprintf("'fd00:%d:1::/64'", n), fmt.Sprintf("'fd00:%d:2::/64'", n))
		if len(cidrs) == 0 {
			cidrs = []string{fmt.Sprintf("'fd00:%d:3::/64'", n)} // for link-local addresses only
		}
		address := func(i int) []string {
			as := []string{fmt.Sprintf("'fe80::%d'", i)}
			for _, c := range cidrs {
				if strings.Contains(c, ":3:") {
					continue
				}
				prefix := strings.Trim(c, "'")
				if net, v4 := strings.CutSuffix(prefix, ".0/24"); v4 {
					as = append(as, fmt.Sprintf("%s.%d", net, i))
				} else {
					as = append(as, fmt.Sprintf("'%s%d'", strings.TrimSuffix(prefix, "/64"), i))
				}
			}
			return as
		}
		fmt.Fprintf(&nets, "  - {name: n%d, cidr: [%s]", n, strings.Join(cidrs, ", "))
		if rapid.Bool().Draw(t, "routed") {
			var gateway []string
			taken := map[string]bool{}
			for _, a := range some("gateway", address(1)...) {
				slot := fmt.Sprint(strings.Contains(a, "fe80"), strings.Contains(a, ":"))
				if !taken[slot] {
					gateway, taken[slot] = append(gateway, a), true
				}
			}
			if len(gateway) == 0 {
				gateway = []string{"'fe80::1'"}
			}
			fmt.Fprintf(&nets, ", router: r%d, gateway: {ip: [%s], mac: 'fa:16:3e:ff:00:%02x'}", rapid.IntRange(1, 2).Draw(t, "router"), strings.Join(gateway, ", "), n+1)
		}
		nets.WriteString("}\n")
		for i := range rapid.IntRange(0, 4).Draw(t, "instances") {
			ips := some("ip", address(11+i)...)
			if len(ips) == 0 {
				ips = address(11 + i)[:1]
			}
			count++
			fmt.Fprintf(&instances, "  - {name: i%d, network: n%d, mac: 'fa:16:3e:00:00:%02x', ip: [%s], host: hv%d}\n", i, n, count, strings.Join(ips, ", "), count%2+1)
			fmt.Fprintf(&ports, "%d fa:16:3e:00:00:%02x\n", count%2+1, count)
		}
	}
	f, err := inventory.Parse("inventory.yml", []byte("networks:\n"+nets.String()+"instances:\n"+instances.String()))
	if err != nil {
		t.Fatalf("%v\n%s%s", err, &nets, &instances)
	}
	return inventory.NewSnapshot(f, labHosts(ports.String())...)
}

// TestAddressesProperty: whatever the inventory, the pairs of a scope are those that have a path,
// Count counts them, and every path is between two addresses that can meet.
func TestAddressesProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		snap := drawInventory(t)
		opts := Options{
			Version: rapid.SampledFrom([]inventory.IPVersion{inventory.AnyIP, inventory.IPv4, inventory.IPv6}).Draw(t, "version"),
			NoTouch: rapid.Bool().Draw(t, "no-touch"),
		}
		planned := map[string]bool{}
		pairs, err := Pairs(snap, Scope{Kind: All}, opts)
		if (err == nil) != (len(pairs) > 0) || err != nil && !errors.Is(err, ErrNoPath) {
			t.Fatalf("Pairs: %d pairs, %v", len(pairs), err)
		}
		for _, p := range pairs {
			planned[p.String()] = true
		}
		if opts.Version == inventory.AnyIP && Count(snap) != len(pairs) {
			t.Fatalf("Count = %d, want %d", Count(snap), len(pairs))
		}
		for _, src := range snap.Instances() {
			for _, dst := range snap.Instances() {
				if src.Ref() == dst.Ref() {
					continue
				}
				pair := Pair{src, dst}
				p, err := Of(snap, pair, opts)
				_, one := Pairs(snap, Scope{Kind: OnePair, Src: src.Ref(), Dst: dst.Ref()}, opts)
				if (err == nil) != planned[pair.String()] || (err == nil) != (one == nil) {
					t.Fatalf("%s: planned %v, of one pair: %v, path: %v", pair, planned[pair.String()], one, err)
				}
				if err == nil {
					checkPath(t, snap, &p, opts)
				}
			}
		}
	})
}

func checkPath(t *rapid.T, snap *inventory.Snapshot, p *Path, opts Options) {
	t.Helper()
	owns := func(in inventory.Instance, a netip.Addr) bool { return slices.Contains(in.IPs, a) }
	routed := p.Pair.Src.Network != p.Pair.Dst.Network
	switch {
	case !owns(p.Pair.Src, p.Src) || !owns(p.Pair.Dst, p.Dst):
		t.Fatalf("%s: %s → %s are not theirs", p.Pair, p.Src, p.Dst)
	case p.Src.Is4() != p.Dst.Is4() || !opts.Version.Is(p.Src):
		t.Fatalf("%s: %s → %s, asked for %s", p.Pair, p.Src, p.Dst, opts.Version)
	case inventory.LinkLocal(p.Src) != inventory.LinkLocal(p.Dst) || routed && inventory.LinkLocal(p.Src):
		t.Fatalf("%s: %s → %s do not reach each other", p.Pair, p.Src, p.Dst)
	}
	if routed {
		n, _ := snap.Network(p.Pair.Src.Network)
		m, _ := snap.Network(p.Pair.Dst.Network)
		if v4 := p.Src.Is4(); v4 && !(n.Routes(inventory.IPv4) && m.Routes(inventory.IPv4)) || !v4 && !(n.Routes(inventory.IPv6) && m.Routes(inventory.IPv6)) {
			t.Fatalf("%s: %s → %s are not routed", p.Pair, p.Src, p.Dst)
		}
	}
	if opts.Version == inventory.AnyIP && !p.Src.Is4() { // only where IPv4 cannot be
		if q, err := Of(snap, p.Pair, Options{Version: inventory.IPv4}); err == nil {
			t.Fatalf("%s: %s → %s, though %s → %s can be", p.Pair, p.Src, p.Dst, q.Src, q.Dst)
		}
	}
	if !opts.NoTouch {
		if p.NoTouch || p.Back != nil || p.Points[len(p.Points)-1].Direction != Reply {
			t.Fatalf("%s: %+v", p.Pair, p)
		}
		return
	}
	checkUntouched(t, snap, p, opts)
}

// checkUntouched: both ways end at to-instance of the destination, the path there is the first
// part of the ordinary one, and the way back is between the same addresses.
func checkUntouched(t *rapid.T, snap *inventory.Snapshot, p *Path, opts Options) {
	t.Helper()
	if p.Back == nil || p.Back.Back != nil || p.Back.Src != p.Dst || p.Back.Dst != p.Src || p.Back.Pair.String() != (Pair{p.Pair.Dst, p.Pair.Src}).String() {
		t.Fatalf("%s: the way back is %+v", p.Pair, p.Back)
	}
	for _, q := range []*Path{p, p.Back} {
		last := q.Points[len(q.Points)-1]
		if !q.NoTouch || q.Blocked != nil || last.Kind != stain.ToInstance || last.Host != q.To.Host || last.Bridge != q.To.Bridge || q.To.Port == "" || last.Absent != "" {
			t.Fatalf("%s: %+v", q.Pair, q)
		}
		for _, e := range q.Points {
			if e.Direction != Forward {
				t.Fatalf("%s: a point of the answer: %+v", q.Pair, e)
			}
		}
	}
	whole, err := Of(snap, p.Pair, Options{Version: opts.Version})
	if err != nil {
		t.Fatal(err)
	}
	there := slices.DeleteFunc(whole.Points, func(e Expected) bool { return e.Direction != Forward })
	if d := cmp.Diff(there, p.Points, cmpopts.EquateComparable(stain.MAC{})); d != "" {
		t.Fatalf("%s: -ordinary +no-touch\n%s", p.Pair, d)
	}
}
