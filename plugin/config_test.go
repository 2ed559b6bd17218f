package plugin

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"

	"github.com/dyetrace/dyetrace/bgp"
)

// TestReference parses the file that explains all keys: it has all of them, and its values are the
// defaults, but for those that it says are not.
func TestReference(t *testing.T) {
	t.Parallel()
	cfg, err := LoadConfig("reference.yml")
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.TLS, want.Socket, want.Metrics, want.Inventory = cfg.TLS, cfg.Socket, cfg.Metrics, cfg.Inventory
	want.BGP, want.Path = cfg.BGP, "reference.yml"
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("reference.yml differs from the defaults (-default +reference):\n%s", diff)
	}
	k := koanf.New(".")
	if err := k.Load(file.Provider("reference.yml"), yaml.Parser()); err != nil {
		t.Fatal(err)
	}
	for key := range keys {
		if !slices.Contains(k.Keys(), key) {
			t.Errorf("reference.yml does not explain %s", key)
		}
	}
	explained := map[string]bool{}
	for _, p := range k.Get("bgp.peers").([]any) {
		for key := range p.(map[string]any) {
			explained[key] = true
		}
	}
	typ := reflect.TypeFor[bgp.Peer]()
	for i := range typ.NumField() {
		key := typ.Field(i).Tag.Get("koanf")
		if _, known := peerKeys[key]; !known || !explained[key] {
			t.Errorf("key %q of bgp.peers: known %v, explained in reference.yml %v", key, known, explained[key])
		}
	}
	if n := typ.NumField(); len(peerKeys) != n {
		t.Errorf("%d keys of bgp.peers, %d fields", len(peerKeys), n)
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "c.yml")
	if err := os.WriteFile(path, []byte("tls: {ca: a, cert: b, key: c}\nmetrics:\nrun: {per_instance_rate: 2.5}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.TLS.CA, want.TLS.Cert, want.TLS.Key = "a", "b", "c"
	want.Run.PerInstanceRate, want.Path = 2.5, path
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestBadConfigs loads files that must be refused. The first line of each says what the error
// says.
func TestBadConfigs(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("testdata/*.bad.yml")
	if err != nil || len(paths) < 20 {
		t.Fatalf("%d files, %v; where are they?", len(paths), err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(text), "\n")
		want, ok := strings.CutPrefix(first, "# want: ")
		if !ok {
			t.Errorf("%s: no \"# want: \" in the first line", path)
			continue
		}
		_, err = LoadConfig(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v\nwant an error that says %q", path, err, want)
		}
	}
	if _, err := LoadConfig("testdata/absent.yml"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// TestPeers: what is written is what the speaker gets, and no error shows a key of TCP's signatures.
func TestPeers(t *testing.T) {
	t.Parallel()
	load := func(peers string) (Config, error) {
		path := filepath.Join(t.TempDir(), "c.yml")
		text := "tls: {ca: a, cert: b, key: c}\nbgp:\n  router_id: 10.0.0.9\n  as: 4200000000\n  listen: \":179\"\n  peers: " + peers
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return LoadConfig(path)
	}
	cfg, err := load(`
  - {address: 10.0.0.1, as: 64512, md5: hush, hold_time: 30s, families: [evpn, vpnv4], rts: ["64512:100"], next_hops: [known]}
  - {address: "2001:db8::1", port: 1790, as: 64512, local_as: 64513, passive: true, gtsm: 1, max_routes: 5, encapsulation: mpls}`)
	if err != nil {
		t.Fatal(err)
	}
	want := &bgp.Config{RouterID: "10.0.0.9", AS: 4200000000, Listen: ":179", Peers: []bgp.Peer{
		{Address: "10.0.0.1", AS: 64512, MD5: "hush", HoldTime: 30 * time.Second, Families: []string{"evpn", "vpnv4"}, RTs: []string{"64512:100"}, NextHops: []string{"known"}},
		{Address: "2001:db8::1", Port: 1790, AS: 64512, LocalAS: 64513, Passive: true, GTSM: 1, MaxRoutes: 5, Encapsulation: "mpls"},
	}}
	if diff := cmp.Diff(want, cfg.BGP); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	cfg, err = load("[]\n  networks: [{vni: 101, rts: [\"64512:100\", \"10.0.0.1:7\"]}]")
	if want := []bgp.Network{{VNI: 101, RTs: []string{"64512:100", "10.0.0.1:7"}}}; err != nil || !cmp.Equal(cfg.BGP.Networks, want) {
		t.Errorf("networks: %+v, %v", cfg.BGP, err)
	}
	for networks, want := range map[string]string{
		"101":                    "bgp.networks: a int (want a list of networks with their route targets)",
		"[{vni: blue, rts: []}]": "bgp.networks[0].vni: blue (want a number from 1 to 16777215)",
		"[{nome: blue}]":         "bgp.networks[0].nome: unknown key (want one of name, rds, rts, vni)",
		"[{vni: 1, rts: [1.5]}]": "bgp.networks[0].rts: [1.5] (want a list of route targets in quotes",
		"[{vni: 1}]":             "bgp.networks[0].rts: empty",
		"[{vni: 0, rts: [a]}]":   "bgp.networks[0].vni: 0 (want a number from 1 to 16777215",
	} {
		if _, err := load("[]\n  networks: " + networks); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("networks: %s: %v; want %q", networks, err, want)
		}
	}
	for _, peers := range []string{
		"{md5: hush7}", "hush7", "[hush7]", "[{md5: [hush7]}]", "[{address: 1, as: 64512, md5: {a: hush7}}]", "[{address: 10.0.0.1, md5: hush7}]",
		"[{address: 10.0.0.1, as: 1, md5: hush7" + strings.Repeat("7", 80) + "}]",
	} {
		switch _, err := load(peers); {
		case err == nil:
			t.Errorf("peers: %s: taken", peers)
		case strings.Contains(err.Error(), "hush7") || !strings.Contains(err.Error(), "bgp.peers"):
			t.Errorf("peers: %s: %v; want an error with the key, without the secret", peers, err)
		}
	}
}
