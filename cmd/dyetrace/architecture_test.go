package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

var updatePicture = flag.Bool("update", false, "redraw the picture in docs/ARCHITECTURE.md")

const module = "github.com/dyetrace/dyetrace"

// goPackage is what this test needs of `go list -json`.
type goPackage struct {
	ImportPath, Dir string
	Imports         []string
	GoFiles         []string
	TestGoFiles     []string
	XTestGoFiles    []string
	name            string
	own             []string // imports of this module, by short name
	external        bool     // imports something outside of the standard library
}

// listPackages returns all packages of the module, those that import most first: each stands
// above all that it imports.
func listPackages(t *testing.T) []*goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles,TestGoFiles,XTestGoFiles", module+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pkgs []*goPackage
	for dec := json.NewDecoder(out); ; {
		p := new(goPackage)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		p.shorten()
		pkgs = append(pkgs, p)
	}
	if err := cmd.Wait(); err != nil || len(pkgs) == 0 {
		t.Fatalf("go list: %d packages, %v", len(pkgs), err)
	}
	return layered(t, pkgs)
}

func (p *goPackage) shorten() {
	p.name = strings.TrimPrefix(p.ImportPath, module+"/")
	for _, path := range p.Imports {
		if name, own := strings.CutPrefix(path, module+"/"); own {
			p.own = append(p.own, name)
		} else if first, _, _ := strings.Cut(path, "/"); strings.Contains(first, ".") {
			p.external = true
		}
	}
	slices.Sort(p.own)
}

// layered sorts packages by the longest chain of imports below them.
func layered(t *testing.T, pkgs []*goPackage) []*goPackage {
	byName := make(map[string]*goPackage)
	for _, p := range pkgs {
		byName[p.name] = p
	}
	depth := make(map[string]int)
	var measure func(name string) int
	measure = func(name string) int {
		if d, ok := depth[name]; ok {
			return d
		}
		p := byName[name]
		if p == nil {
			t.Fatalf("%s is imported and not listed", name)
		}
		d := 0
		for _, below := range p.own {
			d = max(d, 1+measure(below))
		}
		depth[name] = d
		return d
	}
	slices.SortFunc(pkgs, func(a, b *goPackage) int {
		return cmp.Or(measure(b.name)-measure(a.name), cmp.Compare(a.name, b.name))
	})
	return pkgs
}

// joinAPI makes one package, api, of the generated ones: the picture is of what people write.
func joinAPI(pkgs []*goPackage) []*goPackage {
	join := func(name string) string {
		if under(name, "api") {
			return "api"
		}
		return name
	}
	var joined []*goPackage
	for _, p := range pkgs {
		p.name = join(p.name)
		for i, to := range p.own {
			p.own[i] = join(to)
		}
		p.own = slices.DeleteFunc(slices.Compact(p.own), func(to string) bool { return to == p.name })
		if p.name != "api" || !slices.ContainsFunc(joined, func(q *goPackage) bool { return q.name == "api" }) {
			joined = append(joined, p)
		}
	}
	// The one that came first stood above the other; both stand above nothing.
	slices.SortStableFunc(joined, func(a, b *goPackage) int {
		return cmp.Compare(min(len(b.own), 1), min(len(a.own), 1))
	})
	return joined
}

// connected leaves out what neither imports nor is imported: packages of tests alone.
func connected(pkgs []*goPackage) []*goPackage {
	imported := make(map[string]bool)
	for _, p := range pkgs {
		for _, to := range p.own {
			imported[to] = true
		}
	}
	return slices.DeleteFunc(pkgs, func(p *goPackage) bool { return len(p.own) == 0 && !imported[p.name] })
}

const (
	pictureBegin = "```imports\n"
	pictureEnd   = "```\n"
)

// TestImportPicture wants the picture in docs/ARCHITECTURE.md to be what go list says.
func TestImportPicture(t *testing.T) {
	t.Parallel()
	pkgs := listPackages(t)
	width := 0
	pkgs = connected(joinAPI(pkgs))
	for _, p := range pkgs {
		width = max(width, len(p.name))
	}
	var picture strings.Builder
	for _, p := range pkgs {
		line := p.name
		if len(p.own) > 0 {
			line = fmt.Sprintf("%-*s ─▶ %s", width, p.name, strings.Join(p.own, ", "))
		}
		picture.WriteString(line + "\n")
	}
	path := filepath.Join("..", "..", "docs", "ARCHITECTURE.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(text), pictureBegin)
	drawn, after, ok2 := strings.Cut(rest, pictureEnd)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no block %q", path, pictureBegin)
	}
	if *updatePicture {
		redrawn := before + pictureBegin + picture.String() + pictureEnd + after
		if err := os.WriteFile(path, []byte(redrawn), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := gocmp.Diff(picture.String(), drawn); diff != "" {
		t.Errorf("%s does not match the imports; redraw it with\n\tgo test ./cmd/dyetrace -run TestImportPicture -update\n(-imports +drawn):\n%s", path, diff)
	}
}

// TestImportRules wants the rules of docs/ARCHITECTURE.md kept, whatever the picture says.
func TestImportRules(t *testing.T) {
	t.Parallel()
	// What a package may import of this module; those that are not here are free.
	only := map[string][]string{
		"stain":                {},
		"flows":                {"stain"},
		"pki":                  {},
		"bgp":                  {"bgp/rib", "bgp/wire"},
		"bgp/wire":             {"stain"},
		"bgp/rib":              {"bgp/slab", "bgp/wire", "stain"},
		"bgp/slab":             {},
		"plugin/verdict":       {"api/dyetrace/v1", "flows", "plugin/inventory", "plugin/plan", "plugin/sequential", "plugin/verdict/infer", "stain"},
		"plugin/sequential":    {},
		"plugin/verdict/infer": {},
		"plugin/pace":          {"plugin/plan"},
		"plugin/plan":          {"api/dyetrace/v1", "flows", "plugin/inventory", "stain"},
		"e2e":                  {},
	}
	// What only the outside may do: these think, and do no I/O.
	pure := []string{"stain", "flows", "bgp/wire", "bgp/rib", "plugin/verdict", "plugin/plan", "plugin/sequential", "plugin/verdict/infer", "plugin/pace"}
	io := []string{"net", "os", "os/exec", "net/http", "database/sql", "syscall", "golang.org/x/sys/unix"}
	forbidden := func(from, to string) bool {
		agent := func(s string) bool { return under(s, "agent") || under(s, "dataplane") }
		return agent(from) && under(to, "plugin") || under(from, "plugin") && agent(to) ||
			!under(from, "cmd") && under(to, "cmd") || // nobody imports what wires
			under(to, "plugin") && under(from, "api") || under(to, "agent") && under(from, "api")
	}
	for _, p := range listPackages(t) {
		allowed, restricted := only[p.name]
		for _, to := range p.own {
			if restricted && !slices.Contains(allowed, to) {
				t.Errorf("%s imports %s; it may import %v", p.name, to, allowed)
			}
			if forbidden(p.name, to) {
				t.Errorf("%s imports %s; it must not", p.name, to)
			}
		}
		if p.name == "stain" && p.external {
			t.Errorf("stain imports more than the standard library: %v", p.Imports)
		}
		for _, path := range p.Imports {
			if slices.Contains(pure, p.name) && slices.Contains(io, path) {
				t.Errorf("%s imports %s; it is pure, and does no I/O", p.name, path)
			}
		}
	}
}

func under(name, folder string) bool { return name == folder || strings.HasPrefix(name, folder+"/") }

// TestPackageDocs wants a doc.go in every package, which begins as it should. Generated packages
// have their words in the .proto files.
func TestPackageDocs(t *testing.T) {
	t.Parallel()
	for _, p := range listPackages(t) {
		if under(p.name, "api") {
			continue
		}
		files := slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles)
		if !slices.Contains(files, "doc.go") {
			t.Errorf("%s has no doc.go", p.name)
			continue
		}
		text, err := os.ReadFile(filepath.Join(p.Dir, "doc.go"))
		if err != nil {
			t.Fatal(err)
		}
		base := p.name[strings.LastIndexByte(p.name, '/')+1:]
		if !strings.HasPrefix(string(text), "// Package "+base+" ") && !strings.HasPrefix(string(text), "// Command "+base+" ") {
			t.Errorf("%s: doc.go does not begin with what %s is", p.name, base)
		}
	}
}
