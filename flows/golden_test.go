package flows

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/stain"
	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the expected parts of testdata/*.txtar")

// golden is one testdata/*.txtar: a bridge, and the hook for it.
//
//	-- flows --    what another controller has put there, as ovs-ofctl prints it
//	-- groups --   its groups; may be missing
//	-- tlv --      its map of tunnel options, as ovs-ofctl(8) add-tlv-map has it; may be missing
//	-- ports --    NAME OFPORT ROLE; a dye port has role dye
//	-- answers --  OFPORT of instances whose answers are to be dyed; may be missing
//	-- keep --     table, reply table and mark of a hook before; may be missing
//	-- choice --   expected: tables, mark and kinds, or the error
//	-- hook --     expected: the hook's flows
//	-- refused --  expected, where the section is there: of each register the highest bit that
//	               could be the mark, and the first flow that reads the one above it
type golden struct {
	file    string
	archive *txtar.Archive
	bridge  Bridge
	keep    *Place
}

func loadGoldens(t testing.TB) []*golden {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata/*.txtar: %v", err)
	}
	var goldens []*golden
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		g := &golden{file: file, archive: archive}
		if err := g.load(); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		goldens = append(goldens, g)
	}
	return goldens
}

func (g *golden) section(name string) string {
	for _, f := range g.archive.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

func (g *golden) load() (err error) {
	g.bridge = Bridge{Name: strings.TrimSuffix(filepath.Base(g.file), ".txtar"), Stain: stain.Default()}
	if g.bridge.Flows, err = ParseDump(g.section("flows")); err != nil {
		return err
	}
	if len(g.bridge.Flows) == 0 {
		return fmt.Errorf("no flows")
	}
	for line := range strings.Lines(g.section("groups")) {
		g.bridge.Groups = append(g.bridge.Groups, strings.TrimSpace(line))
	}
	for line := range strings.Lines(g.section("ports")) {
		var name, role string
		var ofport uint16
		if _, err := fmt.Sscan(line, &name, &ofport, &role); err != nil {
			return fmt.Errorf("ports: %q: %w", line, err)
		}
		if role == "dye" {
			g.bridge.Dye, role = ofport, "other"
		}
		i := slices.Index(roleNames[:], role)
		if i < 0 {
			return fmt.Errorf("ports: %q: no such role", line)
		}
		g.bridge.Ports = append(g.bridge.Ports, Port{Name: name, OFPort: ofport, Role: Role(i)})
	}
	for word := range strings.FieldsSeq(g.section("answers")) {
		n, err := parseUint[uint16](word)
		if err != nil {
			return fmt.Errorf("answers: %q: %w", word, err)
		}
		g.bridge.Answers = append(g.bridge.Answers, n)
	}
	if text := strings.TrimSpace(g.section("keep")); text != "" {
		g.keep = new(Place)
		var mark string
		if _, err := fmt.Sscan(text, &g.keep.Table, &g.keep.Reply, &mark); err != nil {
			return fmt.Errorf("keep: %q: %w, want such as 253 252 reg10[31]", text, err)
		}
		if _, err := fmt.Sscanf(strings.NewReplacer("[", " ", "]", "").Replace(mark), "%s %d", &g.keep.Mark.Field, &g.keep.Mark.Bit); err != nil {
			return fmt.Errorf("keep: mark %q: %w", mark, err)
		}
	}
	return nil
}

// putOn makes a bridge what the file says of it.
func (g *golden) putOn(t testing.TB, br bridge) {
	t.Helper()
	if tlv := strings.TrimSpace(g.section("tlv")); tlv != "" {
		br.sw.must(t, "ovs-ofctl", "add-tlv-map", br.name, tlv)
	}
	br.addForeign(t, g.bridge.Flows, g.bridge.Groups)
}

// hook computes what the file expects. choice is what stands in the file.
func (g *golden) hook() (h Hook, choice string, err error) {
	h = Hook{Stain: g.bridge.Stain, Dye: g.bridge.Dye, Ports: g.bridge.Ports, Answers: g.bridge.Answers, Expect: true, Lease: 60}
	if h.Place, err = Choose(g.bridge, g.keep); err != nil {
		return h, err.Error() + "\n", err
	}
	return h, fmt.Sprintf("tables %d and %d, mark %v, kinds %v\n", h.Table, h.Reply, h.Mark, h.Kinds()), nil
}

// expect sets or compares a section.
func (g *golden) expect(t *testing.T, name, got string) {
	t.Helper()
	if !*update {
		if diff := gocmp.Diff(g.section(name), got); diff != "" {
			t.Errorf("%s: %s (-want +got; -update rewrites):\n%s", g.file, name, diff)
		}
		return
	}
	i := slices.IndexFunc(g.archive.Files, func(f txtar.File) bool { return f.Name == name })
	if i < 0 {
		g.archive.Files = append(g.archive.Files, txtar.File{Name: name})
		i = len(g.archive.Files) - 1
	}
	g.archive.Files[i].Data = []byte(got)
	if err := os.WriteFile(g.file, txtar.Format(g.archive), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestGolden(t *testing.T) {
	for _, g := range loadGoldens(t) {
		h, choice, err := g.hook()
		g.expect(t, "choice", choice)
		if err != nil {
			g.expect(t, "hook", "")
			continue
		}
		g.expect(t, "hook", Format(h.Flows()))
		if slices.ContainsFunc(g.archive.Files, func(f txtar.File) bool { return f.Name == "refused" }) {
			g.expect(t, "refused", g.refused())
		}
		// The next agent finds what this one left, and keeps it.
		on := g.bridge
		on.Flows = append(slices.Clone(on.Flows), h.Flows()...)
		found, ok := Installed(on.Flows)
		place, err := Choose(on, &found)
		if !ok || err != nil || h.replies() != (found.Reply == h.Reply) || found.Reply != 0 && place != h.Place {
			t.Errorf("%s: with its hook on it: Installed = %v, %v; Choose = %v, %v", g.file, found, ok, place, err)
		}
	}
}

// refused says of each register what bit of it could be the mark, and which flow reads the bit above.
func (g *golden) refused() string {
	var b strings.Builder
	each := make([]effects, len(g.bridge.Flows))
	for i, f := range g.bridge.Flows {
		each[i].flow(f)
	}
	for _, r := range markRegisters {
		bit, reader := 31, ""
		for ; bit >= 0; bit-- {
			m := Mark{Field: register{1, r}.name(), Bit: uint8(bit)}
			i := slices.IndexFunc(each, func(e effects) bool { return e.reads.has(m) })
			if i < 0 {
				break
			}
			if reader == "" {
				reader = fmt.Sprintf("bit 31 is read by table %d, %s", g.bridge.Flows[i].Table, g.bridge.Flows[i].Match)
			}
		}
		free := fmt.Sprintf("bit %d is free", bit)
		if bit < 0 {
			free = "no bit is free"
		}
		fmt.Fprintf(&b, "reg%d: %s", r, free)
		if reader != "" {
			fmt.Fprintf(&b, "; %s", reader)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// sorted returns flows in an order of their own.
func sorted(flows []Flow) []Flow {
	return slices.SortedFunc(slices.Values(flows), func(a, b Flow) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), -cmp.Compare(a.Priority, b.Priority),
			strings.Compare(a.Match, b.Match), strings.Compare(a.Actions, b.Actions))
	})
}

// TestGoldenEcho holds every golden file against a real Open vSwitch: it must
// accept the foreign flows and the hook, and print them as the file has them.
func TestGoldenEcho(t *testing.T) {
	t.Parallel()
	sw := newSwitch(t)
	for _, g := range loadGoldens(t) {
		t.Run(g.bridge.Name, func(t *testing.T) {
			t.Parallel()
			br := sw.newBridge(t)
			g.putOn(t, br)
			echo := br.dump(t, "OpenFlow13")
			g.expect(t, "flows", Format(sorted(echo)))
			if len(echo) != len(g.bridge.Flows) {
				t.Errorf("%d flows in the file, %d on the bridge", len(g.bridge.Flows), len(echo))
			}
			h, _, err := g.hook()
			if err != nil {
				return // a bridge that is refused; the file says why
			}
			br.bundle(t, h.Flows(), Flow.AddLine)
			for _, version := range []string{"OpenFlow10", "OpenFlow13", "OpenFlow14", "OpenFlow15"} {
				add, del, err := Diff(br.dump(t, version), h.Flows())
				if len(add) > 0 || len(del) > 0 || err != nil {
					t.Errorf("%s: Diff = +%s -%s, %v", version, Format(add), Format(del), err)
				}
			}
			ours := slices.DeleteFunc(br.dump(t, "OpenFlow13"), func(f Flow) bool { return !f.Ours() })
			if diff := gocmp.Diff(sorted(h.Flows()), sorted(ours)); diff != "" {
				t.Errorf("Open vSwitch prints it otherwise (-want +got):\n%s", diff)
			}
			// Removal leaves what was there, to the letter.
			br.bundle(t, ours, Flow.DeleteLine)
			if diff := gocmp.Diff(sorted(echo), sorted(br.dump(t, "OpenFlow13"))); diff != "" {
				t.Errorf("after removal (-before +after):\n%s", diff)
			}
		})
	}
}
