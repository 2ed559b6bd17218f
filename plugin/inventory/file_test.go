package inventory

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/dyetrace/dyetrace/stain"
)

var update = flag.Bool("update", false, "rewrite testdata/*.want")

func mac(t testing.TB, s string) stain.MAC {
	t.Helper()
	m, err := stain.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func addrs(texts ...string) []netip.Addr {
	var as []netip.Addr
	for _, text := range texts {
		as = append(as, netip.MustParseAddr(text))
	}
	return as
}

func prefixes(texts ...string) []netip.Prefix {
	var cs []netip.Prefix
	for _, text := range texts {
		cs = append(cs, netip.MustParsePrefix(text))
	}
	return cs
}

// TestReference holds reference.yml to what the parser takes: every key is there, and explained.
func TestReference(t *testing.T) {
	t.Parallel()
	const path = "reference.yml"
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := File{
		Paths: []string{path},
		Networks: []Network{
			{"blue", prefixes("10.0.1.0/24", "fd00:1::/64"), addrs("10.0.1.1", "fd00:1::1", "fe80::f816:3eff:fe00:101"), mac(t, "fa:16:3e:00:01:01"), "r1", 1001},
			{"green", prefixes("10.0.2.0/24"), addrs("10.0.2.1"), mac(t, "fa:16:3e:00:02:01"), "r1", 1002},
			{Name: "red", CIDRs: prefixes("10.0.1.0/24")},
			{Name: "gold", CIDRs: prefixes("fd00:4::/64")},
		},
		Instances: []Instance{
			{"blue-1", "blue", mac(t, "fa:16:3e:00:00:01"), addrs("10.0.1.11", "fd00:1::11", "fe80::f816:3eff:fe00:1"), "hv1", "tap-blue-1", path},
			{"green-1", "green", mac(t, "fa:16:3e:00:00:02"), addrs("10.0.2.11"), "hv1", "", path},
			{"red-1", "red", mac(t, "fa:16:3e:00:00:01"), addrs("10.0.1.11"), "", "", path},
			{"gold-1", "gold", mac(t, "fa:16:3e:00:00:04"), addrs("fe80::f816:3eff:fe00:4"), "", "", path},
		},
		Racks: map[string]string{"hv1": "leaf-1", "hv2": "leaf-1"},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Errorf("Load(%s): -want +got\n%s", path, d)
	}

	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for _, key := range []string{"networks", "name", "cidr", "gateway", "ip", "mac", "router", "segmentation_id", "instances", "network", "host", "port", "hosts", "rack"} {
		is := regexp.MustCompile(`^[ -]*` + key + `:`)
		if i := slices.IndexFunc(lines, is.MatchString); i < 0 {
			t.Errorf("%s does not show key %s", path, key)
		}
	}
}

// TestRefused loads every broken file; the whole text of the error is in the .want beside it.
func TestRefused(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.bad.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata/*.bad.yml: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			f, err := Load(file)
			if err == nil {
				t.Fatalf("taken: %+v", f)
			}
			var p *Problem
			if !errors.As(err, &p) || p.File != file || p.Line == 0 {
				t.Errorf("error does not say where: %#v", err)
			}
			golden := strings.TrimSuffix(file, ".yml") + ".want"
			got := strings.ReplaceAll(err.Error(), "testdata/", "") + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

func TestLoadSeveral(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	networks := write("networks.yml", "networks: [{name: blue, cidr: 10.0.1.0/24}]\n")
	one := write("one.yml", "instances: [{name: a, network: blue, mac: 'fa:16:3e:00:00:01', ip: 10.0.1.11}]\n")
	two := write("two.yml", "\ninstances: [{name: b, network: blue, mac: 'fa:16:3e:00:00:02', ip: 10.0.1.11}]\n")

	f, err := Load(one, networks) // the network may come after who uses it
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Networks) != 1 || len(f.Instances) != 1 || f.Instances[0].Source != one {
		t.Errorf("Load = %+v", f)
	}
	_, err = Load(networks, one, two)
	want := two + ":2: instances[0].ip: 10.0.1.11 in network blue is taken already, at " + one + ":1"
	if err == nil || err.Error() != want {
		t.Errorf("Load = %v\nwant %s", err, want)
	}
	if _, err := Load(one, filepath.Join(dir, "none.yml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of a missing file = %v", err)
	}
	if _, err := Load(); err == nil {
		t.Error("Load of nothing: no error")
	}
}

// TestDualStack reads lists in any order and holds Addr and Routes to what is said of them.
func TestDualStack(t *testing.T) {
	t.Parallel()
	f, err := Load("testdata/dual_stack.yml")
	if err != nil {
		t.Fatal(err)
	}
	snap := NewSnapshot(f)
	networks := []struct {
		name      string
		cidrs     []netip.Prefix
		gateway   []netip.Addr
		four, six bool
	}{
		{"blue", prefixes("10.0.1.0/24", "10.0.3.0/24", "fd00:1::/64"), addrs("10.0.1.1", "fd00:1::", "fe80::1"), true, true},
		{"green", prefixes("10.0.2.0/24", "fd00:2::/64"), addrs("fe80::1"), false, true},
		{"gold", prefixes("fd00:4::/64"), nil, false, false},
		{"link", prefixes("fe80::/64"), nil, false, false},
	}
	for _, tt := range networks {
		n, _ := snap.Network(tt.name)
		if !slices.Equal(n.CIDRs, tt.cidrs) || !slices.Equal(n.GatewayIPs, tt.gateway) || n.Routes(IPv4) != tt.four || n.Routes(IPv6) != tt.six || n.Routes(AnyIP) != (tt.four || tt.six) {
			t.Errorf("network %+v\nwant %+v", n, tt)
		}
	}
	none := netip.Addr{}
	instances := []struct {
		ref            string
		ips            []netip.Addr
		any, four, six netip.Addr
	}{
		{"blue/b1", addrs("10.0.1.12", "10.0.1.11", "fe80::11", "fd00:1::12", "fd00:1::11"), addrs("10.0.1.12")[0], addrs("10.0.1.12")[0], addrs("fd00:1::12")[0]},
		{"green/g1", addrs("10.0.2.11"), addrs("10.0.2.11")[0], addrs("10.0.2.11")[0], none},
		{"gold/o1", addrs("fe80::11", "fd00:4::ff:11"), addrs("fd00:4::ff:11")[0], none, addrs("fd00:4::ff:11")[0]},
		{"gold/o2", addrs("fe80::12", "fe80::13"), addrs("fe80::12")[0], none, addrs("fe80::12")[0]},
		{"link/l1", addrs("fe80::11"), addrs("fe80::11")[0], none, addrs("fe80::11")[0]},
	}
	for _, tt := range instances {
		in, err := snap.Resolve(tt.ref)
		if err != nil || !slices.Equal(in.IPs, tt.ips) || in.Addr(AnyIP) != tt.any || in.Addr(IPv4) != tt.four || in.Addr(IPv6) != tt.six {
			t.Errorf("%+v, %v\nwant %+v", in, err, tt)
		}
		for _, a := range tt.ips { // every address names it
			if got, err := snap.Resolve(in.Network + "/" + a.String()); err != nil || got.Ref() != tt.ref {
				t.Errorf("Resolve(%s/%s) = %s, %v; want %s", in.Network, a, got.Ref(), err, tt.ref)
			}
		}
	}
	if _, err := snap.Resolve("fe80::11"); !errors.Is(err, ErrAmbiguous) { // one on every link
		t.Errorf("Resolve(fe80::11): %v, want ErrAmbiguous", err)
	}
	if got, err := snap.Resolve("fd00:1::11"); err != nil || got.Ref() != "blue/b1" {
		t.Errorf("Resolve(fd00:1::11) = %s, %v; want blue/b1", got.Ref(), err)
	}
}

// FuzzParse: what is taken is sound, whatever the bytes; what is refused says where.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yml")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range append(files, "reference.yml") {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse("f", data)
		if err != nil {
			var p *Problem
			if !errors.As(err, &p) || p.Line == 0 {
				t.Fatalf("error does not say where: %v", err)
			}
			return
		}
		snap := NewSnapshot(file)
		for _, in := range file.Instances {
			nw, ok := snap.Network(in.Network)
			if !ok || len(in.IPs) == 0 || in.MAC == (stain.MAC{}) {
				t.Fatalf("taken: %+v in %+v", in, nw)
			}
			refs := []string{in.Ref()}
			for i, a := range in.IPs {
				inside := slices.ContainsFunc(nw.CIDRs, func(c netip.Prefix) bool { return c.Contains(a) })
				if !inside && !LinkLocal(a) || slices.Contains(nw.GatewayIPs, a) || a.Zone() != "" || a.Is4In6() ||
					i > 0 && a.Is4() && in.IPs[i-1].Is6() {
					t.Fatalf("taken: %s of %+v in %+v", a, in, nw)
				}
				refs = append(refs, in.Network+"/"+a.String())
			}
			for _, ref := range refs {
				if got, err := snap.Resolve(ref); err != nil || got.Ref() != in.Ref() {
					t.Fatalf("Resolve(%q) = %+v, %v; want %+v", ref, got, err, in)
				}
			}
		}
	})
}
