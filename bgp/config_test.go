package bgp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	api "github.com/osrg/gobgp/v3/api"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/bgp/wire"
)

const everything = `
bgp:
  router_id: 10.0.0.9
  as: 4200000000
  listen: ":179"
  peers:
  - address: 10.0.0.1
    port: 1790
    as: 64512
    local_as: 64513
    source: 10.0.0.9
    passive: true
    md5: secret
    gtsm: 1
    hold_time: 30s
    families: [evpn, vpnv4, vpnv6]
    rts: ["64512:100", "4200000000:7", "10.0.0.1:5"]
    max_routes: 1000
    next_hops: [known, 10.1.0.0/16, "fd00::1"]
    encapsulation: mpls
  - address: 2001:db8::1
    as: 64512
  networks:
  - vni: 1001
    rts: ["64512:1001", "10.0.0.1:1001"]
    rds: ["10.0.0.1:5"]
  - vni: 1002
    rts: ["64512:1002"]
`

func read(t *testing.T, text string) Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dyetrace.yml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	k := koanf.New(".")
	if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
		t.Fatal(err)
	}
	var c Config
	if err := k.UnmarshalWithConf("bgp", &c, koanf.UnmarshalConf{Tag: "koanf"}); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConfig(t *testing.T) {
	c := read(t, everything)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	p := c.Peers[0].withDefaults(c.AS)
	got := p.feedOptions([]netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")})
	want := rib.PeerOptions{
		Families:  []wire.Family{25<<8 | 70, 1<<8 | 128, 2<<8 | 128},
		RTs:       []wire.RouteTarget{0x0002_fc00_0000_0064, 0x0202_0000_fc00_0064, 0x0202_fa56_ea00_0007, 0x0102_0a00_0001_0005},
		MaxRoutes: 1000, Default: wire.EncapMPLS,
		NextHops: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::1/128")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("feed options\n%#v, want\n%#v", got, want)
	}
	if p := c.Peers[1].withDefaults(c.AS); p.Port != 179 || p.LocalAS != 4200000000 || p.HoldTime != 90*time.Second || p.MaxRoutes != DefaultMaxRoutes || !reflect.DeepEqual(p.Families, []string{"evpn"}) {
		t.Errorf("defaults: %+v", p)
	}
	if s := fmt.Sprintf("%v %+v %#v", p, p, p); strings.Contains(s, "secret") {
		t.Errorf("a key was printed: %s", s)
	}
	if got, want := c.Mapping(nil).Targets, map[wire.RouteTarget]uint32{
		0x0002_fc00_0000_03e9: 1001, 0x0202_0000_fc00_03e9: 1001, 0x0102_0a00_0001_03e9: 1001, 0x0002_fc00_0000_03ea: 1002, 0x0202_0000_fc00_03ea: 1002,
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("targets %v, want %v", got, want)
	}
	if got, want := c.Mapping(nil).RDs, map[wire.RD]uint32{0x0001_0a00_0001_0005: 1001}; !reflect.DeepEqual(got, want) {
		t.Errorf("route distinguishers %v, want %v", got, want)
	}
	named := Config{Networks: []Network{{Name: "blue", RDs: []string{"64512:1"}, RTs: []string{"64512:7"}}, {Name: "gone", RDs: []string{"64512:2"}}}}
	mapped := named.Mapping(func(name string) uint32 { return map[string]uint32{"blue": 7}[name] })
	if want := (rib.Networks{
		Targets: map[wire.RouteTarget]uint32{0x0002_fc00_0000_0007: 7, 0x0202_0000_fc00_0007: 7},
		RDs:     map[wire.RD]uint32{0x0000_fc00_0000_0001: 7, 0x0002_0000_fc00_0001: 7},
	}); !reflect.DeepEqual(mapped, want) {
		t.Errorf("by name %v, want %v", mapped, want)
	}
	// Nobody known is not anybody.
	only := Peer{NextHops: []string{"known"}}
	if o := only.withDefaults(1).feedOptions(nil); len(o.NextHops) != 1 || o.NextHops[0].Contains(netip.MustParseAddr("10.0.0.1")) {
		t.Errorf("next hops where no VTEP is known: %v", o.NextHops)
	}
}

func TestValidate(t *testing.T) {
	tests := []struct{ old, new, want string }{
		{"router_id: 10.0.0.9", "router_id: fd00::1", `bgp.router_id: "fd00::1" (want an IPv4 address`},
		{"as: 4200000000", "as: 4300000000", "bgp.as: 4300000000 (want a number from 1"},
		{`":179"`, "nowhere", `bgp.listen: "nowhere": no HOST:PORT`},
		{`":179"`, `"host:179"`, `host "host" is no IP address`},
		{`":179"`, `""`, "bgp.peers[0].passive: true, but bgp.listen is empty"},
		{"address: 10.0.0.1", "address: spine-1", `bgp.peers[0].address: "spine-1" (want the IP address`},
		{"2001:db8::1", "::ffff:10.0.0.1", "bgp.peers[1].address: 10.0.0.1 is that of bgp.peers[0]"},
		{"port: 1790", "port: 179000", "bgp.peers[0].port: 179000"},
		{"as: 64512", "as: 0", "bgp.peers[0].as: 0"},
		{"local_as: 64513", "local_as: -1", "bgp.peers[0].local_as: -1"},
		{"source: 10.0.0.9", "source: fd00::9", `bgp.peers[0].source: "fd00::9" (want an address of this host, of the same IP version`},
		{"md5: secret", "md5: " + strings.Repeat("x", 81), "bgp.peers[0].md5: 81 bytes (want at most 80)"},
		{"gtsm: 1", "gtsm: 255", "bgp.peers[0].gtsm: 255"},
		{"hold_time: 30s", "hold_time: 2s", "bgp.peers[0].hold_time: 2s"},
		{"hold_time: 30s", "hold_time: 3500ms", "want whole seconds"},
		{"vpnv6]", "ipv4]", `bgp.peers[0].families[2]: "ipv4" (want evpn, vpnv4 or vpnv6)`},
		{"vpnv6]", "evpn]", "bgp.peers[0].families[2]: evpn is there already"},
		{"64512:100", "64512", `bgp.peers[0].rts[0]: "64512": no colon`},
		{"4200000000:7", "4200000000:70000", "70000 has more than the 16 bits"},
		{"10.0.0.1:5", "10.0.0.1:70000", "70000 has more than the 16 bits"},
		{"max_routes: 1000", "max_routes: -1", "bgp.peers[0].max_routes: -1"},
		{"10.1.0.0/16", "10.1.0.0/33", `bgp.peers[0].next_hops[1]: "10.1.0.0/33"`},
		{"vni: 1001", "vni: 16777216", "bgp.networks[0].vni: 16777216 (want a number from 1 to 16777215"},
		{"vni: 1001", "vni: 1002", "bgp.networks[1].vni: 1002 is that of bgp.networks[0]"},
		{`["64512:1002"]`, "[]", "bgp.networks[1].rts: empty"},
		{"vni: 1001", "vni: 1001\n    name: blue", `bgp.networks[0].vni: 1001 beside name "blue"`},
		{`rts: ["64512:1002"]`, `rds: ["10.0.0.1:5"]`, "bgp.networks[1].rds[0]: 10.0.0.1:5 is bgp.networks[0].rds[0]"},
		{`["10.0.0.1:5"]`, `["10.0.0.1"]`, `bgp.networks[0].rds[0]: "10.0.0.1": no colon (want a route distinguisher`},
		{`["64512:1002"]`, `["64512"]`, `bgp.networks[1].rts[0]: "64512": no colon`},
		{`["64512:1002"]`, `["64512:1001"]`, "bgp.networks[1].rts[0]: 64512:1001 is bgp.networks[0].rts[0]"},
		{"encapsulation: mpls", "encapsulation: gre", `bgp.peers[0].encapsulation: "gre" (want vxlan or mpls)`},
	}
	for _, tt := range tests {
		text := strings.Replace(everything, tt.old, tt.new, 1)
		if text == everything {
			t.Fatalf("%q is not in the text", tt.old)
		}
		if err := read(t, text).Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.new, err, tt.want)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	r := prometheus.NewPedanticRegistry()
	c := read(t, everything)
	s, err := New(c, Options{Learn: (&library{}).learn, Metrics: r})
	if err != nil {
		t.Fatal(err)
	}
	series := func() map[string]int {
		all, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		n := map[string]int{}
		for _, f := range all {
			n[f.GetName()] = len(f.GetMetric())
		}
		return n
	}
	for _, name := range []string{"state", "since_seconds", "routes", "end_of_rib_families", "updates_total", "malformed_total", "flaps_total", "failures_total", "panics_total"} {
		if n := series()["dyetrace_bgp_peer_"+name]; n != 2 {
			t.Errorf("%s: %d series, want one for each of 2 peers", name, n)
		}
	}
	if err := s.Reconfigure(c.Peers[:1]); err != nil {
		t.Fatal(err)
	}
	if n := series()["dyetrace_bgp_peer_state"]; n != 1 {
		t.Errorf("%d series after a peer was removed, want 1", n)
	}
}

// An address that cannot be had is found at once, by its key, and what listens goes on to.
func TestListen(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	taken, err := net.Listen("tcp", net.JoinHostPort(ours, "1179"))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	inUse := func(err error) bool {
		return errors.Is(err, syscall.EADDRINUSE) && strings.HasPrefix(err.Error(), "bgp.listen: ")
	}
	s, err := New(Config{RouterID: ours, AS: 65000, Listen: taken.Addr().String()}, Options{Learn: (&library{}).learn})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context()); !inUse(err) {
		t.Errorf("Listen on %s: %v", taken.Addr(), err)
	}
	if err := s.Run(t.Context()); !inUse(err) {
		t.Errorf("Run on %s: %v", taken.Addr(), err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true}, Peer{Address: peer(2), AS: 65001, Passive: true, MD5: "key"})
	caps := slices.Concat(capEVPN, cap65001)
	r := dialRaw(t, peer(1), ours)
	r.establish(caps...)
	w.established(peer(1))
	for _, to := range []string{taken.Addr().String(), "192.0.2.1:179"} { // that of somebody, and nobody's
		if err := w.s.Relisten(to); err == nil || !strings.HasPrefix(err.Error(), "bgp.listen: ") {
			t.Errorf("Relisten on %s: %v", to, err)
		}
	}
	taken.Close()
	if err := w.s.Relisten(taken.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if _, err := net.DialTimeout("tcp", net.JoinHostPort(ours, "179"), patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the old address: %v, want a refusal", err)
	}
	// A peer with a key comes in by the new one.
	g := startGoBGP(t, peer(2), "10.98.0.2", 65001)
	g.macRoutes(0, 1)
	g.peer(ours, 65000, func(p *api.Peer) {
		p.Conf.AuthPassword = "key"
		p.Transport.RemotePort = 1179
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: 255}
	})
	w.routes(peer(2), 1)
	// All addresses of the port, of which one is ours already, and that one alone again.
	for _, to := range []string{"0.0.0.0:1179", net.JoinHostPort(ours, "1179")} {
		if err := w.s.Relisten(to); err != nil {
			t.Fatalf("Relisten on %s: %v", to, err)
		}
		c, err := net.DialTimeout("tcp", net.JoinHostPort(ours, "1179"), patience)
		if err != nil {
			t.Fatalf("after Relisten on %s: %v", to, err)
		}
		c.Close()
	}
	if s := w.status(peer(1)); s.State != Established || s.Flaps != 0 {
		t.Errorf("a session of before: %+v", s)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(openBody(65001, 90, cap65001...))
	f.Add(openBody(65001, 90))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, ok := parseOpen(b)
		if !ok || o.fourAS {
			return
		}
		// What is added is found again, and nothing else changes.
		with, ok := withFourOctetAS(b, o)
		if !ok {
			return
		}
		o.fourAS = true
		if got, ok := parseOpen(with); !ok || got != o {
			t.Errorf("% x: %+v, %v, want %+v", with, got, ok, o)
		}
	})
}
