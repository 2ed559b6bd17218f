package fleet

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
)

// crew is a fleet whose agents say nothing by themselves.
func crew(names ...string) (*Fleet, map[string]*session) {
	f := New(Config{Log: slog.New(slog.DiscardHandler), Book: inventory.NewBook()})
	all := map[string]*session{}
	for _, name := range names {
		s := &session{fleet: f, host: name, queue: make(chan *dyetracev1.SessionResponse, queueLength), end: func(error) {}}
		f.admit(s)
		all[name] = s
	}
	return f, all
}

// told is the last StreamUnderlay that waits for an agent; nil for none.
func (s *session) told() (m *dyetracev1.StreamUnderlay) {
	for {
		select {
		case r := <-s.queue:
			m = r.GetStreamUnderlay()
		default:
			return m
		}
	}
}

func streamTo(from, to string) StreamTarget {
	return StreamTarget{From: from, To: to, Dst: netip.MustParseAddr("10.0.0." + to[2:]), Port: 7443, Size: 128}
}

// Runs that want the same have one stream; each is told what became of it, by its own numbers.
func TestStreamShared(t *testing.T) {
	f, agents := crew("hv1", "hv2")
	f.hosts["hv1"].known.echo = &dyetracev1.UnderlayEcho{StreamRate: 2000}
	one, two := f.Stream(2000), f.Stream(2000)
	like := streamTo("hv1", "hv2")
	like.Tunnel = "vxlan-2"
	one.Set([]StreamTarget{like})
	if m := agents["hv1"].told(); len(m.GetTargets()) != 1 || m.Targets[0].Tunnel != "vxlan-2" {
		t.Errorf("hv1 was told %v, want packets like those of a tunnel", m)
	}
	one.Set([]StreamTarget{streamTo("hv1", "hv2")})
	first := agents["hv1"].told()
	if len(first.GetTargets()) != 1 || first.Targets[0].RateMilli != 200_000 || first.Targets[0].SuspectRateMilli != 2_000_000 || first.Extra != 1800 {
		t.Fatalf("hv1 was told %v", first)
	}
	two.Set([]StreamTarget{streamTo("hv2", "hv1"), streamTo("hv1", "hv2")})
	if m := agents["hv2"].told(); len(m.GetTargets()) != 1 || m.Targets[0].SuspectRateMilli != 1_000_000 {
		t.Errorf("hv2, whose agent tells no bound, was told %v", m)
	}
	f.setState(agents["hv2"], &dyetracev1.HostState{Underlay: &dyetracev1.UnderlayEcho{StreamRate: 1500}})
	if m := agents["hv2"].told(); len(m.GetTargets()) != 1 || m.Targets[0].SuspectRateMilli != 1_500_000 {
		t.Errorf("hv2, whose agent tells another bound by now, was told %v", m)
	}
	if m := agents["hv1"].told(); m != nil {
		t.Errorf("hv1 was told again: %v", m)
	}
	report := func(host string, m *dyetracev1.UnderlayCounts) bool { return f.streams.counted(host, m) }
	good := &dyetracev1.UnderlayCounts{Set: first.Set, SrcIp: "10.0.0.1", SourcePorts: []uint32{7, 8}, Passed: []uint32{1, 2},
		LostBack: []uint32{3, 4}, LostThere: []uint32{5, 6}, Unclear: []uint32{7, 8}}
	if !report("hv1", good) {
		t.Error("a report that was asked for is refused")
	}
	want := []PortCount{{7, 1, 3, 5, 7}, {8, 2, 4, 6, 8}}
	for number, s := range []*Streaming{one, two} {
		select {
		case <-s.Wake():
		default:
			t.Errorf("run %d is not woken", number)
		}
		if got := s.Take(); len(got) != 1 || got[0].Target != number || !slices.Equal(got[0].Ports, want) {
			t.Errorf("run %d: %+v", number, got)
		}
		if got := s.Take(); len(got) != 0 {
			t.Errorf("run %d is told twice: %+v", number, got)
		}
	}
	quiet := &dyetracev1.UnderlayCounts{Set: first.Set, Silent: 9, SilentNs: uint64(50 * time.Millisecond)}
	if !report("hv1", quiet) {
		t.Error("a report of silence, and nothing else, is refused")
	}
	if got := one.Take(); len(got) != 1 || got[0].Silent != 9 || got[0].SilentFor != 50*time.Millisecond || len(got[0].Ports) != 0 {
		t.Errorf("of silence: %+v", got)
	}
	quiet.SilentNs = 1 << 63
	report("hv1", quiet)
	if got := one.Take(); len(got) != 1 || got[0].SilentFor != maxSilence {
		t.Errorf("of silence for ever: %+v", got)
	}
	two.Take()
	for name, m := range map[string]*dyetracev1.UnderlayCounts{
		"a set that was never":      {Set: first.Set + 100},
		"a target that is not":      {Set: first.Set, Target: 9},
		"columns of other lengths":  {Set: first.Set, SourcePorts: []uint32{7}},
		"more columns than may be":  {Set: first.Set, SourcePorts: make([]uint32, 129), Passed: make([]uint32, 129), LostBack: make([]uint32, 129), LostThere: make([]uint32, 129), Unclear: make([]uint32, 129)},
		"of a host that sends none": good,
	} {
		host := "hv1"
		if m == good {
			host = "hv3"
		}
		if report(host, m) {
			t.Errorf("%s is taken", name)
		}
	}
	two.Close()
	if m := agents["hv2"].told(); m == nil || len(m.Targets) != 0 {
		t.Errorf("hv2, of which nobody wants anything, was told %v", m)
	}
	if m := agents["hv1"].told(); m != nil {
		t.Errorf("hv1 was told again: %v", m)
	}
	one.Close()
	if m := agents["hv1"].told(); m == nil || len(m.Targets) != 0 {
		t.Errorf("hv1, of which nobody wants anything, was told %v", m)
	}
}

// An agent that comes again is told again.
func TestStreamResent(t *testing.T) {
	f, agents := crew("hv1")
	s := f.Stream(1000)
	s.Set([]StreamTarget{streamTo("hv1", "hv2"), streamTo("hv3", "hv1")})
	before := agents["hv1"].told()
	again := &session{fleet: f, host: "hv1", queue: make(chan *dyetracev1.SessionResponse, queueLength), end: func(error) {}}
	f.admit(again)
	if m := again.told(); m == nil || m.Set != before.Set || len(m.Targets) != 1 {
		t.Errorf("told %v, then %v", before, m)
	}
	late := &session{fleet: f, host: "hv3", queue: make(chan *dyetracev1.SessionResponse, queueLength), end: func(error) {}}
	f.admit(late)
	if m := late.told(); m == nil || len(m.Targets) != 1 {
		t.Errorf("one that came late was told %v", m)
	}
}

// Neither sends a host more than it may, nor has one to answer more, however many hosts there are.
func TestStreamBudget(t *testing.T) {
	f, agents := crew("hv1", "hv2")
	const budget = 2000
	var all []StreamTarget
	for i := range 50 { // hv1 to 50 others
		all = append(all, StreamTarget{From: "hv1", To: "to", Dst: netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), Port: 1, Size: 128})
		all[i].To += string(rune('a' + i))
	}
	for i := range 100 { // hundred others to hv9
		all = append(all, StreamTarget{From: "from" + string(rune('a'+i)), To: "hv9", Dst: netip.MustParseAddr("10.0.0.9"), Port: 1, Size: 128})
	}
	all = append(all, streamTo("hv2", "hv9"))
	f.Stream(budget).Set(all)
	m := agents["hv1"].told()
	sum := float64(m.Extra)
	for _, x := range m.Targets {
		sum += float64(x.RateMilli) / 1000
	}
	if len(m.Targets) != 50 || sum > budget+1 || sum < 0.99*budget {
		t.Errorf("hv1 sends %g a second at the most to %d, may %d", sum, len(m.Targets), budget)
	}
	m = agents["hv2"].told()
	if got := float64(m.Targets[0].RateMilli) * 101 / 1000; got > budget/2+1 {
		t.Errorf("hv9 answers %g a second while nothing is lost, want half of %d", got, budget)
	}
	if got := float64(m.Targets[0].SuspectRateMilli) * 101 / 1000; got > answered+1 {
		t.Errorf("hv9 answers %g a second if all are suspect, want %d at the most", got, answered)
	}
}
