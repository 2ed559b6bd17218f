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
			{"blue", netip.MustParsePrefix("10.0.1.0/24"), netip.MustParseAddr("10.0.1.1"), mac(t, "fa:16:3e:00:01:01"), "r1", 1001},
			{"green", netip.MustParsePrefix("10.0.2.0/24"), netip.MustParseAddr("10.0.2.1"), mac(t, "fa:16:3e:00:02:01"), "r1", 1002},
			{Name: "red", CIDR: netip.MustParsePrefix("10.0.1.0/24")},
		},
		Instances: []Instance{
			{"blue-1", "blue", mac(t, "fa:16:3e:00:00:01"), netip.MustParseAddr("10.0.1.11"), "hv1", "tap-blue-1", path},
			{"green-1", "green", mac(t, "fa:16:3e:00:00:02"), netip.MustParseAddr("10.0.2.11"), "hv1", "", path},
			{"red-1", "red", mac(t, "fa:16:3e:00:00:01"), netip.MustParseAddr("10.0.1.11"), "", "", path},
		},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Errorf("Load(%s): -want +got\n%s", path, d)
	}

	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for _, key := range []string{"networks", "name", "cidr", "gateway", "ip", "mac", "router", "segmentation_id", "instances", "network", "host", "port"} {
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
			if !ok || !nw.CIDR.Contains(in.IP) || in.IP == nw.GatewayIP || in.MAC == (stain.MAC{}) {
				t.Fatalf("taken: %+v in %+v", in, nw)
			}
			for _, ref := range []string{in.Ref(), in.Network + "/" + in.IP.String()} {
				if got, err := snap.Resolve(ref); err != nil || got != in {
					t.Fatalf("Resolve(%q) = %+v, %v; want %+v", ref, got, err, in)
				}
			}
		}
	})
}
