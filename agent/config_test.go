package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dyetrace/dyetrace/pki"
)

func TestReferenceHoldsTheDefaults(t *testing.T) {
	got, err := LoadConfig("reference.yml")
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Host = "hv1"
	want.Controller = "https://controller.example:7443"
	want.TLS = pki.Files{CA: "/etc/dyetrace/ca.crt", Cert: "/etc/dyetrace/hv1.crt", Key: "/etc/dyetrace/hv1.key"}
	want.Bridges = []string{}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reference.yml against the defaults (-want +got):\n%s", diff)
	}
}

func TestLoadConfigRefuses(t *testing.T) {
	const good = "host: hv1\ncontroller: https://c:7443\ntls: {ca: a, cert: b, key: c}\n"
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"no YAML", "host: [", []string{"yaml"}},
		{"unknown key", good + "hots: hv2\n", []string{"hots"}},
		{"wrong type", good + "rate: fast\n", []string{"rate"}},
		{"no host", "controller: https://c:7443\nhost: ''\ntls: {ca: a, cert: b, key: c}\n", []string{"host"}},
		{"plain http", strings.Replace(good, "https", "http", 1), []string{"controller", "https://HOST:PORT"}},
		{"port 0", strings.Replace(good, "7443", "0", 1), []string{"controller", "port 1 to 65535"}},
		{"no port", strings.Replace(good, ":7443", "", 1), []string{"controller", "HOST:PORT"}},
		{"no tls", "host: hv1\ncontroller: https://c:7443\n", []string{"tls", "no unauthenticated mode"}},
		{"short lease", good + "lease: 1s\n", []string{"lease", "10s"}},
		{"broken lease", good + "lease: 10500ms\n", []string{"lease", "whole seconds"}},
		{"rate 0", good + "rate: 0\n", []string{"rate", "1 to"}},
		{"underlay rate 0", good + "underlay_rate: 0\n", []string{"underlay_rate: 0", "1 to 1000000", "underlay_port: 0"}},
		{"underlay rate", good + "underlay_rate: 1000001\n", []string{"underlay_rate: 1000001"}},
		{"nameless bridge", good + "bridges: ['']\n", []string{"bridges[0]"}},
		{"all at once", "controller: x\nlease: 1s\n", []string{"controller", "tls", "lease"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "agent.yml")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := LoadConfig(path)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range append(tt.want, path) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error does not name %q: %v", w, err)
				}
			}
		})
	}
}
