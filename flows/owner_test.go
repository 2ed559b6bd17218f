package flows

import (
	"path/filepath"
	"testing"

	"golang.org/x/tools/txtar"
)

// TestOwnerOf finds the owner of flows of real dumps, and of such as are nobody's on these bridges.
func TestOwnerOf(t *testing.T) {
	tests := []struct {
		file string
		ovn  bool
		most Owner // of all flows with a cookie but those of a Traceflow or a human
	}{
		{"ovn-23.03", true, OwnerOVN},
		{"ovn", true, OwnerOVN},
		{"neutron-br-int", false, OwnerNeutron},
		{"neutron-br-tun", false, OwnerNeutron},
		{"antrea", false, OwnerAntrea},
		{"normal", false, OwnerUnknown},
		{"icmp", false, OwnerUnknown},
	}
	for _, tt := range tests {
		all := dumpOf(t, tt.file)
		counts := make(map[Owner]int)
		for _, f := range all {
			if f.Cookie != 0 {
				counts[OwnerOf(f, all, tt.ovn)]++
				if o, known := OwnerByCookie(f, tt.ovn); known != (tt.most == OwnerOVN) || known && o != tt.most {
					t.Errorf("%s: by its cookie %v: %v, %v's", tt.file, f, known, o)
				}
			}
		}
		total := 0
		for _, n := range counts {
			total += n
		}
		if counts[tt.most] != total {
			t.Errorf("%s: %v (want all %d to be %v's)", tt.file, counts, total, tt.most)
		}
		for name, f := range map[string]Flow{
			"a cookie of 64 bits that only one flow has": {Cookie: 0x5ca1ab1e0badf00d, Table: 0, Priority: 1000, Match: "ip,nw_dst=192.0.2.1", Actions: "drop"},
			"no cookie": {Table: 0, Priority: 1000, Match: "ip,nw_dst=192.0.2.1", Actions: "drop"},
		} {
			if got := OwnerOf(f, append(all, f), tt.ovn); got != OwnerUnknown {
				t.Errorf("%s: %s: %v's (want nobody's)", tt.file, name, got)
			}
			if o, known := OwnerByCookie(f, tt.ovn); known != (f.Cookie == 0) || o != OwnerUnknown {
				t.Errorf("%s: %s, by itself: %v, %v's", tt.file, name, known, o)
			}
		}
		ours := Flow{Cookie: Cookie | 0x200, Table: 0, Priority: guardPriority, Match: "in_port=9", Actions: "drop"}
		if got := OwnerOf(ours, append(all, ours), tt.ovn); got != OwnerDyetrace {
			t.Errorf("%s: our own flow: %v's", tt.file, got)
		}
	}
	// What ends a table of OVN's has no cookie; a table that OVN shares with others is another matter.
	all := dumpOf(t, "ovn-23.03")
	if got := OwnerOf(Flow{Table: 40, Actions: "drop"}, all, true); got != OwnerOVN {
		t.Errorf("the end of OVN's table 40: %v's", got)
	}
	if got := OwnerOf(Flow{Table: 0, Actions: "drop"}, all, true); got != OwnerUnknown {
		t.Errorf("the end of table 0: %v's", got)
	}
}

func dumpOf(t *testing.T, name string) []Flow {
	t.Helper()
	archive, err := txtar.ParseFile(filepath.Join("testdata", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range archive.Files {
		if f.Name == "flows" {
			flows, err := ParseDump(string(f.Data))
			if err != nil || len(flows) == 0 {
				t.Fatalf("%s: %d flows, %v", name, len(flows), err)
			}
			return flows
		}
	}
	t.Fatalf("%s: no flows", name)
	return nil
}
