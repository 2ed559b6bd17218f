package plan

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/stain"
)

// table is Routes as a section of a map says: "1001 fa:16:3e:00:01:13" → what is learned of it.
type table struct {
	known   map[string]Learned
	missing LearnedState
	asked   []string
}

func (r *table) MAC(vni uint32, mac stain.MAC) Learned  { return r.find(vni, mac) }
func (r *table) IP(vni uint32, addr netip.Addr) Learned { return r.find(vni, addr) }
func (r *table) find(vni uint32, address fmt.Stringer) Learned {
	key := fmt.Sprintf("%d %s", vni, address)
	r.asked = append(r.asked, key)
	if l, ok := r.known[key]; ok {
		return l
	}
	return Learned{State: r.missing}
}

// readRoutes reads, if there is a section routes,
//
//	now 2026-03-01T10:47:03+01:00
//	incomplete
//	1001 fa:16:3e:00:01:13 at=10.1.2.4,10.1.2.5 since=2026-03-01T10:42:03+01:00 seq=3 sticky stale
//	1001 10.0.1.14 refused
//	1001 10.0.1.15 at=10.1.2.9 in=10.0.1.0/24
func readRoutes(t testing.TB, ar *txtar.Archive) (Routes, time.Time) {
	t.Helper()
	at := slices.IndexFunc(ar.Files, func(f txtar.File) bool { return f.Name == "routes" })
	if at < 0 {
		return nil, time.Time{}
	}
	r := &table{known: map[string]Learned{}, missing: Absent}
	var now time.Time
	for line := range bytes.Lines(ar.Files[at].Data) {
		switch f := strings.Fields(string(line)); {
		case len(f) == 0:
		case f[0] == "now":
			now = readTime(t, f[1])
		case f[0] == "incomplete":
			r.missing = NotKnown
		default:
			r.known[f[0]+" "+f[1]] = readLearned(t, f[2:])
		}
	}
	return r, now
}

func readLearned(t testing.TB, words []string) Learned {
	t.Helper()
	l := Learned{State: Present}
	for _, word := range words {
		switch key, value, _ := strings.Cut(word, "="); key {
		case "at":
			for a := range strings.SplitSeq(value, ",") {
				l.VTEPs = append(l.VTEPs, netip.MustParseAddr(a))
			}
		case "since":
			l.Since = readTime(t, value)
		case "in":
			l.Prefix = netip.MustParsePrefix(value)
		case "seq":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			l.Sequence = uint32(n)
		case "sticky":
			l.Sticky = true
		case "stale":
			l.Stale = true
		case "refused":
			l.State = NotKnown
		default:
			t.Fatalf("routes: cannot read %q", word)
		}
	}
	return l
}

func readTime(t testing.TB, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestLearn: by MAC first, by IP only where that says nothing, and nobody is asked about a network
// of which no number is known.
func TestLearn(t *testing.T) {
	t.Parallel()
	const mac, ip4, ip6 = "7 fa:16:3e:00:00:01", "7 10.0.0.1", "7 fd00::1"
	here := Learned{State: Present, VTEPs: []netip.Addr{netip.MustParseAddr("10.1.1.1")}}
	there := Learned{State: Present, VTEPs: []netip.Addr{netip.MustParseAddr("10.1.1.2")}}
	router := Learned{State: Present, VTEPs: []netip.Addr{netip.MustParseAddr("10.1.1.9")}, Prefix: netip.MustParsePrefix("10.0.0.0/16")}
	router6 := Learned{State: Present, VTEPs: []netip.Addr{netip.MustParseAddr("10.1.1.8")}, Prefix: netip.MustParsePrefix("fd00::/64")}
	tests := []struct {
		name    string
		vni     uint32
		known   map[string]Learned
		missing LearnedState
		want    Learned
		asked   []string
	}{
		{"by MAC", 7, map[string]Learned{mac: here, ip4: there}, Absent, here, []string{mac}},
		{"by IP", 7, map[string]Learned{ip4: there}, Absent, there, []string{mac, ip4}},
		{"by the other IP", 7, map[string]Learned{ip6: there}, Absent, there, []string{mac, ip4, ip6}},
		{"by IP, the MAC's route was refused", 7, map[string]Learned{mac: {State: NotKnown}, ip4: there}, Absent, there, []string{mac, ip4}},
		{"by a prefix", 7, map[string]Learned{ip4: router}, Absent, router, []string{mac, ip4, ip6}},
		{"by the other prefix", 7, map[string]Learned{ip6: router6}, Absent, router6, []string{mac, ip4, ip6}},
		{"by the first prefix", 7, map[string]Learned{ip4: router, ip6: router6}, Absent, router, []string{mac, ip4, ip6}},
		{"by MAC, not by a prefix", 7, map[string]Learned{mac: here, ip4: router}, Absent, here, []string{mac}},
		{"by the other IP, not by a prefix", 7, map[string]Learned{ip4: router, ip6: there}, Absent, there, []string{mac, ip4, ip6}},
		{"a prefix, and the MAC's route was refused", 7, map[string]Learned{mac: {State: NotKnown}, ip4: router}, Absent, Learned{State: NotKnown}, []string{mac, ip4, ip6}},
		{"a prefix, and the other IP's route was refused", 7, map[string]Learned{ip4: router, ip6: {State: NotKnown}}, Absent, Learned{State: NotKnown}, []string{mac, ip4, ip6}},
		{"nowhere", 7, nil, Absent, Learned{State: Absent}, []string{mac, ip4, ip6}},
		{"no MAC, and the IP's route was refused", 7, map[string]Learned{ip4: {State: NotKnown}}, Absent, Learned{State: NotKnown}, []string{mac, ip4, ip6}},
		{"not known", 7, nil, NotKnown, Learned{State: NotKnown}, []string{mac, ip4, ip6}},
		{"not asked", 7, nil, NotAsked, Learned{}, []string{mac}},
		{"no segmentation_id", 0, map[string]Learned{mac: here}, Absent, Learned{}, nil},
	}
	for _, tt := range tests {
		r := &table{known: tt.known, missing: tt.missing}
		in := inventory.Instance{MAC: stain.MAC{0xfa, 0x16, 0x3e, 0, 0, 1}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
		got := learn(in, inventory.Network{SegmentationID: tt.vni}, r)
		if got.State != tt.want.State || !slices.Equal(got.VTEPs, tt.want.VTEPs) || got.Prefix != tt.want.Prefix || !slices.Equal(r.asked, tt.asked) {
			t.Errorf("%s: %+v, asked %v; want %+v, asked %v", tt.name, got, r.asked, tt.want, tt.asked)
		}
	}
	if got := learn(inventory.Instance{}, inventory.Network{SegmentationID: 7}, nil); got.State != NotAsked {
		t.Errorf("nobody to ask: %+v", got)
	}
}

// TestContradicted: an old route beside the right one is a contradiction, another switch of the same
// Ethernet segment is none.
func TestContradicted(t *testing.T) {
	t.Parallel()
	a, b, c := netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("10.1.1.2"), netip.MustParseAddr("10.1.1.3")
	owners := map[netip.Addr]string{a: "tor1", b: "tor2", c: "tor3"}
	for _, tt := range []struct {
		at      []netip.Addr
		segment bool
		want    bool
	}{
		{[]netip.Addr{a}, false, false},
		{[]netip.Addr{a, b}, false, true},
		{[]netip.Addr{a, b}, true, false},
		{[]netip.Addr{b}, true, true},
		{[]netip.Addr{b, c}, true, true},
	} {
		for _, own := range [][]netip.Addr{nil, {a}} {
			e := End{Host: "tor1", VTEPs: own, Learned: Learned{State: Present, VTEPs: tt.at, Segment: tt.segment}}
			if got := e.Contradicted(owners); got != tt.want {
				t.Errorf("%v, on one segment %t: %t", tt.at, tt.segment, got)
			}
		}
	}
}

func TestWords(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 10, 47, 3, 0, time.FixedZone("", 3600))
	owners := map[netip.Addr]string{netip.MustParseAddr("10.1.2.4"): "hv4"}
	tests := []struct {
		at    string
		ago   time.Duration
		stale bool
		want  string
	}{
		{"10.1.2.4", 5 * time.Minute, false, "10.1.2.4 (hv4) since 10:42:03, 5m ago"},
		{"10.1.2.4,10.9.9.9", 59 * time.Second, false, "10.1.2.4 (hv4) and 10.9.9.9 since 10:46:04, 59s ago"},
		{"10.9.9.9", 90 * time.Minute, true, "10.9.9.9 since 09:17:03, 1h ago, not confirmed since its peer restarted"},
		{"10.9.9.9", 30 * time.Hour, false, "10.9.9.9 since 2026-02-28 04:47:03, 30h ago"},
		{"10.9.9.9", 80 * time.Hour, false, "10.9.9.9 since 2026-02-26 02:47:03, 3d ago"},
		{"10.9.9.9", -time.Minute, false, "10.9.9.9 since 10:48:03, 0s ago"},
	}
	for _, tt := range tests {
		l := readLearned(t, []string{"at=" + tt.at})
		l.Since, l.Stale = now.Add(-tt.ago).UTC(), tt.stale
		if got := l.words(owners, now); got != tt.want {
			t.Errorf("%s, %v: %q, want %q", tt.at, tt.ago, got, tt.want)
		}
	}
	if l := readLearned(t, []string{"at=10.1.2.4", "in=10.0.1.0/24"}); l.words(owners, now) != "10.0.1.0/24 at 10.1.2.4 (hv4)" {
		t.Errorf("by a prefix: %q", l.words(owners, now))
	}
	l := readLearned(t, []string{"at=10.9.9.9"})
	if got := l.words(owners, now); got != "10.9.9.9" {
		t.Errorf("since nobody knows when: %q", got)
	}
}

// BenchmarkOfRoutes is BenchmarkOf in a cloud of 500 hosts, where routes agree with the inventory
// about all instances, and about none.
func BenchmarkOfRoutes(b *testing.B) {
	const hosts = 500
	var text, all strings.Builder
	text.WriteString("networks:\n  - {name: blue, cidr: 10.0.0.0/16, segmentation_id: 7}\ninstances:\n")
	right, wrong := &table{known: map[string]Learned{}}, &table{known: map[string]Learned{}}
	for i := range hosts {
		mac, next := fmt.Sprintf("fa:16:3e:00:%02x:%02x", i>>8, i&255), (i+1)%hosts
		fmt.Fprintf(&text, "  - {name: i%d, network: blue, ip: 10.0.%d.%d, mac: %q, host: hv%d}\n", i, 1+(i>>8), i&255, mac, i)
		fmt.Fprintf(&all, "hv%d connected\n  br-int live kinds=from-instance,from-tunnel\n    port tap%d %s - up\n    tunnel vxlan0 10.9.%d.%d flow\n", i, i, mac, i>>8, i&255)
		right.known["7 "+mac] = readLearned(b, []string{fmt.Sprintf("at=10.9.%d.%d", i>>8, i&255), "since=2026-03-01T10:42:03Z"})
		wrong.known["7 "+mac] = readLearned(b, []string{fmt.Sprintf("at=10.9.%d.%d", next>>8, next&255), "since=2026-03-01T10:42:03Z"})
	}
	snap := readMap(b, []byte(text.String()), []byte(all.String()))
	pairs, err := Pairs(snap, Scope{Kind: OfHost, Host: "hv1"}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	for name, r := range map[string]*table{"agree": right, "disagree": wrong} {
		opts := Options{Routes: r, Now: readTime(b, "2026-03-01T10:47:03Z")}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				r.asked = r.asked[:0]
				p, err := Of(snap, pairs[i%len(pairs)], opts)
				if err != nil || (len(p.Disagree()) == 2) != (name == "disagree") {
					b.Fatalf("%v, %q", err, p.Disagree())
				}
			}
		})
	}
}
