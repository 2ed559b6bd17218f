package plan

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/stain"
)

var update = flag.Bool("update", false, "rewrite the paths and pairs of testdata/*.txtar")

// TestPaths reads a map of the network and compares the paths through it: each testdata/*.txtar
// has the inventory (instances.yml), what agents report (hosts), the scope, and the paths; some
// have routes as well.
func TestPaths(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata/*.txtar: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			snap := readMap(t, section(t, ar, "instances.yml"), section(t, ar, "hosts"))
			routes, now := readRoutes(t, ar)
			got := draw(t, snap, strings.Fields(string(section(t, ar, "scope"))), routes, now)
			if *update {
				for i := range ar.Files {
					if ar.Files[i].Name == "paths" {
						ar.Files[i].Data = []byte(got)
					}
				}
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(string(section(t, ar, "paths")), got); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

func section(t testing.TB, ar *txtar.Archive, name string) []byte {
	t.Helper()
	for _, f := range ar.Files {
		if f.Name == name {
			return f.Data
		}
	}
	t.Fatalf("no section %s", name)
	return nil
}

// readMap reads hosts as
//
//	hv1 connected
//	  br-int live uplink=br-tun kinds=from-instance,from-tunnel
//	    port tap-a fa:16:3e:00:00:01 iface-id up
//	  br-tun refused=no_free_mark kinds=from-tunnel,to-tunnel
//	    tunnel gre-1 10.1.1.1 10.1.1.2
//
// with - for a MAC or an iface-id that nobody set, and after the link's state, if to-instance is
// not sampled at the port, the reason.
func readMap(t testing.TB, instances, hosts []byte) *inventory.Snapshot {
	t.Helper()
	file, err := inventory.Parse("instances.yml", instances)
	if err != nil {
		t.Fatal(err)
	}
	var all []inventory.Host
	for line := range bytes.Lines(hosts) {
		f := strings.Fields(string(line))
		switch indent := len(line) - len(bytes.TrimLeft(line, " ")); {
		case len(f) == 0:
		case indent == 0:
			all = append(all, inventory.Host{Name: f[0], Connected: f[1] == "connected"})
		case indent == 2:
			h := &all[len(all)-1]
			h.Bridges = append(h.Bridges, readBridge(t, f))
		case f[0] == "port":
			h := &all[len(all)-1]
			unsampled := ""
			if len(f) > 5 {
				unsampled = strings.ReplaceAll(f[5], "_", " ")
			}
			h.Endpoints = append(h.Endpoints, &dyetracev1.Endpoint{
				Unsampled: unsampled,
				Bridge:    h.Bridges[len(h.Bridges)-1].Name, Port: f[1],
				Mac: strings.Trim(f[2], "-"), IfaceId: strings.Trim(f[3], "-"), LinkState: f[4],
			})
		case f[0] == "tunnel":
			b := all[len(all)-1].Bridges[len(all[len(all)-1].Bridges)-1]
			b.Tunnels = append(b.Tunnels, &dyetracev1.Tunnel{Port: f[1], Ofport: uint32(len(b.Tunnels) + 1), Type: "gre", LocalIp: f[2], RemoteIp: f[3]})
		default:
			t.Fatalf("hosts: cannot read %q", line)
		}
	}
	return inventory.NewSnapshot(file, all...)
}

func readBridge(t testing.TB, f []string) *dyetracev1.Bridge {
	t.Helper()
	b := &dyetracev1.Bridge{Name: f[0]}
	for _, word := range f[1:] {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "live":
			b.State = dyetracev1.HookState_HOOK_STATE_LIVE
		case "absent":
			b.State = dyetracev1.HookState_HOOK_STATE_ABSENT
		case "refused":
			b.State, b.Reason = dyetracev1.HookState_HOOK_STATE_REFUSED, strings.ReplaceAll(value, "_", " ")
		case "uplink":
			b.UplinkBridge = value
		case "kinds":
			for name := range strings.SplitSeq(value, ",") {
				k := slices.IndexFunc(kinds, func(k stain.Kind) bool { return k.String() == name })
				if k < 0 {
					t.Fatalf("hosts: no kind %q", name)
				}
				b.Kinds = append(b.Kinds, dyetracev1.PointKind(kinds[k]))
			}
		default:
			t.Fatalf("hosts: cannot read %q", word)
		}
	}
	return b
}

var kinds = []stain.Kind{stain.FromInstance, stain.FromTunnel, stain.ToInstance, stain.ToTunnel}

// readScope reads "all", "network N", "host H" or "SRC DST", and after that "ip=4", "ip=6" and
// "no-touch".
func readScope(words []string) (Scope, Options) {
	var opts Options
	var rest []string
	for _, word := range words {
		switch word {
		case "ip=4":
			opts.Version = inventory.IPv4
		case "ip=6":
			opts.Version = inventory.IPv6
		case "no-touch":
			opts.NoTouch = true
		default:
			rest = append(rest, word)
		}
	}
	switch rest[0] {
	case "all":
		return Scope{Kind: All}, opts
	case "network":
		return Scope{Kind: OfNetwork, Network: rest[1]}, opts
	case "host":
		return Scope{Kind: OfHost, Host: rest[1]}, opts
	}
	return Scope{Kind: OnePair, Src: rest[0], Dst: rest[1]}, opts
}

func draw(t testing.TB, snap *inventory.Snapshot, words []string, routes Routes, now time.Time) string {
	t.Helper()
	scope, opts := readScope(words)
	opts.Routes, opts.Now = routes, now
	pairs, err := Pairs(snap, scope, opts)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, pair := range pairs {
		p, err := Of(snap, pair, opts)
		if err != nil {
			t.Fatal(err)
		}
		drawPath(&b, &p)
		if p.Back != nil {
			b.WriteString("  and the way back, ")
			drawPath(&b, p.Back)
		}
	}
	return b.String()
}

func drawPath(b *strings.Builder, p *Path) {
	fmt.Fprintf(b, "%s\n", p.Pair)
	if p.Blocked != nil {
		fmt.Fprintf(b, "  blocked (absent %v): %s\n", p.Blocked.Absent(), p.Blocked.Reason)
	} else {
		fmt.Fprintf(b, "  inject %s/%s/%s  %s → %s  %s → %s  ttl %d\n", p.Inject.Host, p.Inject.Bridge, p.Inject.Port, p.SrcMAC, p.DstMAC, p.Src, p.Dst, p.TTL)
	}
	for _, end := range []End{p.From, p.To} {
		for _, s := range []string{end.Absent, end.Blind, end.Gap} {
			if s != "" {
				fmt.Fprintf(b, "  %s: %s\n", end.Host, s)
			}
		}
		if end.LinkDown {
			fmt.Fprintf(b, "  %s: %s has no link\n", end.Host, end.Port)
		}
		if s := p.EVPN(&end); s != "" {
			fmt.Fprintf(b, "  %s: EVPN: %s (%s, confirmed %v)\n", end.Host, s, end.Learned.State, end.Confirmed)
		} else if end.Learned.State != NotAsked {
			fmt.Fprintf(b, "  %s: EVPN: %s\n", end.Host, end.Learned.State)
		}
	}
	for _, s := range p.Disagree() {
		fmt.Fprintf(b, "  ≠ %s\n", s)
	}
	for i, e := range p.Points {
		arrow := "▶"
		if e.Direction == Reply {
			arrow = "◀"
		}
		fmt.Fprintf(b, "  %s %-26s ttl %d  key %d  %s → %s", arrow, e, e.TTL, e.TunID, e.SrcMAC, e.DstMAC)
		if e.Absent != "" {
			fmt.Fprintf(b, "  (%s)", e.Absent)
		}
		b.WriteByte('\n')
		if j, ok := p.Index(e.Host, e.Bridge, e.Kind, e.Direction); !ok || j != i {
			fmt.Fprintf(b, "  Index of point %d is %d\n", i, j) // no two points are one
		}
	}
}

// cloud is the default lab's: 4 blue and 4 green on one router, 2 red alone with blue's addresses.
func cloud(t testing.TB) *inventory.Snapshot {
	t.Helper()
	text := `
networks:
  - {name: blue, cidr: 10.0.1.0/24, gateway: {ip: 10.0.1.1, mac: "fa:16:3e:00:01:01"}, router: r1}
  - {name: green, cidr: 10.0.2.0/24, gateway: {ip: 10.0.2.1, mac: "fa:16:3e:00:02:01"}, router: r1}
  - {name: red, cidr: 10.0.1.0/24}
  - {name: gray, cidr: 10.0.3.0/24, gateway: {ip: 10.0.3.1, mac: "fa:16:3e:00:03:01"}, router: r2}
  - {name: lone, cidr: 10.0.4.0/24}
instances:
  - {name: lone-1, network: lone, mac: "fa:16:3e:00:04:11", ip: 10.0.4.11, host: hv5}
  - {name: gray-1, network: gray, mac: "fa:16:3e:00:03:11", ip: 10.0.3.11, host: hv5}
`
	for i, host := range []string{"hv1", "hv1", "hv3", "hv4"} {
		text += fmt.Sprintf("  - {name: blue-%d, network: blue, mac: \"fa:16:3e:00:01:1%[1]d\", ip: 10.0.1.1%[1]d, host: %s}\n", i+1, host)
	}
	for i, host := range []string{"hv1", "hv2", "hv3", "hv4"} {
		text += fmt.Sprintf("  - {name: green-%d, network: green, mac: \"fa:16:3e:00:02:1%[1]d\", ip: 10.0.2.1%[1]d, host: %s}\n", i+1, host)
	}
	for i, host := range []string{"hv2", "hv3"} {
		text += fmt.Sprintf("  - {name: red-%d, network: red, mac: \"fa:16:3e:00:01:1%[1]d\", ip: 10.0.1.1%[1]d, host: %s}\n", i+1, host)
	}
	return readMap(t, []byte(text), []byte("hv6 connected\n"))
}

func TestPairs(t *testing.T) {
	t.Parallel()
	snap := cloud(t)
	tests := []struct {
		scope string
		pairs int
		err   error
		text  string
	}{
		{scope: "all", pairs: 58},
		{scope: "network blue", pairs: 4*3 + 2*4*4},
		{scope: "network red", pairs: 2},
		{scope: "host hv1", pairs: 3*2 + 2*3*5}, // three of blue and green among themselves, and with the five others
		{scope: "host hv2", pairs: 2*7 + 2},
		{scope: "blue-1 blue-2", pairs: 1},
		{scope: "blue/10.0.1.11 green/10.0.2.14", pairs: 1},
		{scope: "network pink", err: inventory.ErrUnknown, text: `scope.network: "pink": not in the inventory`},
		{scope: "network lone", err: ErrNoPath, text: "scope.network: network lone has no two instances that should reach each other: no path between them"},
		{scope: "host hv9", err: inventory.ErrUnknown, text: `scope.host: "hv9": not in the inventory`},
		{scope: "host hv6", err: ErrNoPath, text: "scope.host: host hv6 has no two instances that should reach each other: no path between them"},
		{scope: "blue-1 blue-9", err: inventory.ErrUnknown, text: `scope.pair.dst: instance "blue-9": not in the inventory (want NAME, NETWORK/NAME or NETWORK/ADDRESS)`},
		{scope: "10.0.1.11 blue-2", err: inventory.ErrAmbiguous, text: `scope.pair.src: instance "10.0.1.11": more than one fits (want one of blue/blue-1, red/red-1)`},
		{scope: "blue-1 blue/10.0.1.11", text: "scope.pair.dst: blue/blue-1 is the source itself (want another instance)"},
		{scope: "blue-1 red-1", err: ErrNoPath, text: "scope.pair: blue/blue-1 → red/red-1: no path between them: network red has no router"},
		{scope: "red-1 blue-1", err: ErrNoPath, text: "scope.pair: red/red-1 → blue/blue-1: no path between them: network red has no router"},
		{scope: "blue-1 gray-1", err: ErrNoPath, text: "scope.pair: blue/blue-1 → gray/gray-1: no path between them: network blue is on router r1, gray on r2"},
	}
	for _, tt := range tests {
		scope, opts := readScope(strings.Fields(tt.scope))
		pairs, err := Pairs(snap, scope, opts)
		if tt.text != "" {
			if err == nil || err.Error() != tt.text || tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("Pairs(%s): %v\nwant %s (%v)", tt.scope, err, tt.text, tt.err)
			}
			continue
		}
		if err != nil || len(pairs) != tt.pairs {
			t.Errorf("Pairs(%s): %d pairs, %v; want %d", tt.scope, len(pairs), err, tt.pairs)
		}
		seen := map[string]bool{}
		for _, p := range pairs {
			if seen[p.String()] || p.Src.Ref() == p.Dst.Ref() || !Joined(snap, p.Src.Network, p.Dst.Network) {
				t.Errorf("Pairs(%s): %s does not belong here", tt.scope, p)
			}
			seen[p.String()] = true
		}
	}
	if _, err := Pairs(inventory.NewSnapshot(inventory.File{}), Scope{Kind: All}, Options{}); !errors.Is(err, ErrNoPath) {
		t.Errorf("Pairs of nothing: %v", err)
	}
	if _, err := Pairs(snap, Scope{}, Options{}); err == nil {
		t.Error("Pairs of no scope: no error")
	}
}

func TestScopeFromProto(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   *dyetracev1.Scope
		want Scope
		err  string
	}{
		{in: &dyetracev1.Scope{Scope: &dyetracev1.Scope_All{All: true}}, want: Scope{Kind: All}},
		{in: &dyetracev1.Scope{Scope: &dyetracev1.Scope_Pair{Pair: &dyetracev1.PairScope{Src: "a", Dst: "b"}}}, want: Scope{Kind: OnePair, Src: "a", Dst: "b"}},
		{in: &dyetracev1.Scope{Scope: &dyetracev1.Scope_Network{Network: "n"}}, want: Scope{Kind: OfNetwork, Network: "n"}},
		{in: &dyetracev1.Scope{Scope: &dyetracev1.Scope_Host{Host: "h"}}, want: Scope{Kind: OfHost, Host: "h"}},
		{in: &dyetracev1.Scope{Scope: &dyetracev1.Scope_All{}}, err: "scope.all: false (want true, or another scope)"},
		{in: &dyetracev1.Scope{}, err: "scope: none given (want all, pair, network or host)"},
		{err: "scope: none given (want all, pair, network or host)"},
	}
	for _, tt := range tests {
		got, err := ScopeFromProto(tt.in)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
			t.Errorf("ScopeFromProto(%v) = %+v, %v; want %+v, %q", tt.in, got, err, tt.want, tt.err)
		}
	}
}

func TestOfRefusesStrangers(t *testing.T) {
	t.Parallel()
	snap := cloud(t)
	blue, _ := snap.Resolve("blue-1")
	red, _ := snap.Resolve("red-1")
	if _, err := Of(snap, Pair{blue, red}, Options{}); !errors.Is(err, ErrNoPath) {
		t.Errorf("Of(blue, red): %v, want ErrNoPath", err)
	}
	gone := blue
	gone.Network = "pink"
	if _, err := Of(snap, Pair{gone, gone}, Options{}); !errors.Is(err, inventory.ErrUnknown) {
		t.Errorf("Of(pink, pink): %v, want ErrUnknown", err)
	}
}

func BenchmarkOf(b *testing.B) {
	ar, err := txtar.ParseFile("testdata/two_bridges.txtar")
	if err != nil {
		b.Fatal(err)
	}
	snap := readMap(b, section(b, ar, "instances.yml"), section(b, ar, "hosts"))
	pairs, err := Pairs(snap, Scope{Kind: All}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := Of(snap, pairs[i%len(pairs)], Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// labHosts makes hv1 and hv2, which sample all there is; each line of ports is a host's number
// and the MAC address of a port of its br-int.
func labHosts(ports string) []inventory.Host {
	hosts := make([]inventory.Host, 2)
	for i := range hosts {
		b := &dyetracev1.Bridge{Name: "br-int", State: dyetracev1.HookState_HOOK_STATE_LIVE}
		for _, k := range []stain.Kind{stain.FromInstance, stain.FromTunnel, stain.ToInstance} {
			b.Kinds = append(b.Kinds, dyetracev1.PointKind(k))
		}
		hosts[i] = inventory.Host{Name: fmt.Sprintf("hv%d", i+1), Connected: true, Bridges: []*dyetracev1.Bridge{b}}
	}
	for line := range strings.Lines(ports) {
		f := strings.Fields(line)
		h := &hosts[f[0][0]-'1']
		h.Endpoints = append(h.Endpoints, &dyetracev1.Endpoint{Bridge: "br-int", Port: "tap" + f[1], Mac: f[1], LinkState: "up"})
	}
	return hosts
}
