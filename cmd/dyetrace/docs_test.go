package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/dyetrace/dyetrace/agent"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/access"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/report"
	"github.com/dyetrace/dyetrace/plugin"
	"github.com/dyetrace/dyetrace/plugin/inventory"
)

const top = "../.." // of the checkout

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestSampleConfigs wants the samples that docs/install.md installs to be taken by what reads them.
func TestSampleConfigs(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(top, "deploy", "config")
	if _, err := plugin.LoadConfig(filepath.Join(dir, "controller.yaml")); err != nil {
		t.Error(err)
	}
	if _, err := agent.LoadConfig(filepath.Join(dir, "agent.yaml")); err != nil {
		t.Error(err)
	}
	if _, err := inventory.Load(filepath.Join(dir, "inventory.yaml")); err != nil {
		t.Error(err)
	}
	if _, err := access.Resolve(access.Options{File: filepath.Join(dir, "context.yaml")}); err != nil {
		t.Error(err)
	}
}

// TestVerbsAreDocumented wants each verb in docs/cli.md, and with words of its own in --help.
func TestVerbsAreDocumented(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/cli.md")
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			if sub.Hidden || sub.Name() == "help" {
				continue
			}
			if sub.Short == "" {
				t.Errorf("%s: --help says nothing", sub.CommandPath())
			}
			if !regexp.MustCompile(`\b` + sub.Name() + `\b`).MatchString(page) {
				t.Errorf("%s is not in docs/cli.md", sub.CommandPath())
			}
			walk(sub)
		}
	}
	walk(newRootCmd(new(bool)))
}

// TestFieldsAreDocumented wants each field of `check -o json` in docs/api.md.
func TestFieldsAreDocumented(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/api.md")
	seen := make(map[reflect.Type]bool)
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ.PkgPath() == "time" || seen[typ] {
			return
		}
		seen[typ] = true
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" && !f.Anonymous {
				t.Errorf("%v: field %s has no name in JSON", typ, f.Name)
			}
			if name != "" && !strings.Contains(page, "`"+name+"`") {
				t.Errorf("%v: field %q is not in docs/api.md", typ, name)
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[report.Check]())
}

var link = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)

// TestLinks wants links between pages to lead somewhere.
func TestLinks(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	if err != nil || len(pages) < 5 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	more, err := filepath.Glob(filepath.Join(top, "*.md"))
	if err != nil || len(more) < 4 {
		t.Fatalf("%d pages at the root, %v", len(more), err)
	}
	for _, page := range append(pages, more...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: link to %s: %v", page, m[1], err)
			}
		}
	}
}
