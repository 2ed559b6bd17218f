package dataplane

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"pgregory.net/rapid"

	"github.com/dyetrace/dyetrace/flows"
)

// readHost reads a host, a port a line: bridge, name, type, then peer=… or
// id=…; or "managed".
func readHost(t testing.TB, text string) Snapshot {
	t.Helper()
	var s Snapshot
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if line == "managed\n" {
			s.Managed = true
			continue
		}
		if len(words) < 3 {
			t.Fatalf("line %q: want bridge, name, type", line)
		}
		p := Port{Name: words[1], Type: words[2]}
		if p.Type == "system" {
			p.Type = ""
		}
		for _, w := range words[3:] {
			switch key, value, _ := strings.Cut(w, "="); key {
			case "peer":
				p.Peer = value
			case "id":
				p.IfaceID = value
			case "mac":
				p.MAC = value
			case "dye":
				p.Dye = true
			default:
				t.Fatalf("line %q: %q", line, w)
			}
		}
		i := slices.IndexFunc(s.Bridges, func(b Bridge) bool { return b.Name == words[0] })
		if i < 0 {
			i = len(s.Bridges)
			s.Bridges = append(s.Bridges, Bridge{Name: words[0]})
		}
		s.Bridges[i].Ports = append(s.Bridges[i].Ports, p)
	}
	return s
}

func describe(s Snapshot) string {
	var b strings.Builder
	for _, br := range s.Bridges {
		for _, p := range br.Ports {
			if p.Role != flows.Other {
				fmt.Fprintf(&b, "%s %s %v\n", br.Name, p.Name, p.Role)
			}
		}
		if up := br.UplinkBridge(); up != "" {
			fmt.Fprintf(&b, "%s reaches tunnels by %s\n", br.Name, up)
		}
	}
	fmt.Fprintf(&b, "hook %s\n", strings.Join(Hookable(s), " "))
	return b.String()
}

// TestClassify has a file for each kind of cloud; each has hosts, and what is to be
// made of their ports (those of role other are not listed).
func TestClassify(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no hosts in testdata: %v", err)
	}
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil || len(a.Files) == 0 || len(a.Files)%2 != 0 {
			t.Fatalf("%s: %d files, %v; want hosts, each with its roles", name, len(a.Files), err)
		}
		for pair := range slices.Chunk(a.Files, 2) {
			s := readHost(t, string(pair[0].Data))
			Classify(&s)
			if diff := cmp.Diff(string(pair[1].Data), describe(s)); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", filepath.Base(name), pair[0].Name, diff)
			}
			again := readHost(t, string(pair[0].Data))
			Classify(&again)
			Classify(&again)
			if diff := cmp.Diff(s, again); diff != "" {
				t.Errorf("%s: classifying again changes roles:\n%s", pair[0].Name, diff)
			}
		}
	}
}

// TestClassifyHolds draws hosts at random, rings of patch ports included.
func TestClassifyHolds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var s Snapshot
		n := rapid.IntRange(1, 5).Draw(t, "bridges")
		for i := range n {
			b := Bridge{Name: fmt.Sprint("b", i)}
			for j := range rapid.IntRange(0, 3).Draw(t, "ports") {
				p := Port{Name: fmt.Sprint("p", i, j), Type: rapid.SampledFrom([]string{"", "internal", "gre"}).Draw(t, "type")}
				if rapid.Bool().Draw(t, "marked") {
					p.IfaceID = p.Name
				}
				b.Ports = append(b.Ports, p)
			}
			s.Bridges = append(s.Bridges, b)
		}
		for k := range rapid.IntRange(0, 6).Draw(t, "patches") {
			from, to := rapid.IntRange(0, n-1).Draw(t, "from"), rapid.IntRange(0, n-1).Draw(t, "to")
			x, y := fmt.Sprint("x", k), fmt.Sprint("y", k)
			s.Bridges[from].Ports = append(s.Bridges[from].Ports, Port{Name: x, Type: "patch", Peer: y})
			s.Bridges[to].Ports = append(s.Bridges[to].Ports, Port{Name: y, Type: "patch", Peer: x})
		}
		Classify(&s)
		hookable := Hookable(s)
		for _, b := range s.Bridges {
			hasAny := false
			for _, p := range b.Ports {
				switch p.Role {
				case flows.Tunnel:
					if !p.IsTunnel() {
						t.Fatalf("%+v is a tunnel", p)
					}
				case flows.Uplink, flows.Downlink:
					if p.Type != "patch" || p.PeerBridge == "" {
						t.Fatalf("%+v is an %v", p, p.Role)
					}
				case flows.Instance:
					if p.IsTunnel() || p.Type == "patch" {
						t.Fatalf("%+v is an instance", p)
					}
				}
				hasAny = hasAny || p.Role != flows.Other
			}
			if hasAny != slices.Contains(hookable, b.Name) {
				t.Fatalf("%s: roles %v, hookable %v", b.Name, hasAny, hookable)
			}
			// A bridge with tunnels is on the way, and never looks for others.
			if slices.ContainsFunc(b.Ports, Port.IsTunnel) && (!hasAny || b.UplinkBridge() != "") {
				t.Fatalf("%s has tunnels: roles %v, uplink %q", b.Name, hasAny, b.UplinkBridge())
			}
		}
	})
}

func TestFind(t *testing.T) {
	t.Parallel()
	s := Snapshot{Bridges: []Bridge{{Name: "br0", Protocols: []string{"OpenFlow13"}, Ports: []Port{{Name: "a", OFPort: 1}, {Name: "b"}}}}}
	b, ok := s.Bridge("br0")
	if _, none := s.Bridge("br1"); !ok || none {
		t.Errorf("Bridge(br0) %v, Bridge(br1) %v; want true, false", ok, none)
	}
	if p, ok := b.Port("b"); !ok || p.Name != "b" {
		t.Errorf("Port(b) = %+v, %v", p, ok)
	}
	if p, ok := b.ByOFPort(1); !ok || p.Name != "a" {
		t.Errorf("ByOFPort(1) = %+v, %v", p, ok)
	}
	if p, ok := b.ByOFPort(0); ok {
		t.Errorf("ByOFPort(0) = %+v, want none", p)
	}
	if !b.Speaks("OpenFlow13") || b.Speaks("OpenFlow10") || !(Bridge{}).Speaks("OpenFlow10") {
		t.Error("Speaks: want only OpenFlow13, and all where there is no restriction")
	}
}

func BenchmarkClassify(b *testing.B) {
	for _, marked := range []bool{true, false} {
		b.Run(fmt.Sprintf("marked=%v", marked), func(b *testing.B) {
			var text strings.Builder
			for i := range 1000 {
				fmt.Fprintf(&text, "br-int tap%d system", i)
				if marked {
					fmt.Fprintf(&text, " id=%d", i)
				}
				text.WriteString("\n")
			}
			text.WriteString("br-int patch-tun patch peer=patch-int\nbr-tun patch-int patch peer=patch-tun\nbr-tun gre gre\n")
			s := readHost(b, text.String())
			for b.Loop() {
				Classify(&s)
			}
		})
	}
}
