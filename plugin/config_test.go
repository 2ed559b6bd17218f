package plugin

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
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
	want.Run.PerInstanceRate = 2.5
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
