package run

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/store"
	"github.com/dyetrace/dyetrace/stain"
)

// oneRoute has one instance somewhere, and all others nowhere.
type oneRoute struct {
	mac  stain.MAC
	vtep string
	// since when; what is asked later is asked of another table.
	since time.Time
}

func (r oneRoute) MAC(vni uint32, mac stain.MAC) plan.Learned {
	if vni != 101 || mac != r.mac {
		return plan.Learned{State: plan.NotKnown}
	}
	return plan.Learned{State: plan.Present, VTEPs: []netip.Addr{netip.MustParseAddr(r.vtep)}, Since: r.since}
}

func (oneRoute) IP(uint32, netip.Addr) plan.Learned { return plan.Learned{State: plan.NotKnown} }

// TestRoutes: each run is planned by the routes of its time, and their
// ages are told by the clock. Whatever they say, what came back is healthy.
func TestRoutes(t *testing.T) {
	t.Parallel()
	snap := routedSite(t)
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	i1, err := snap.Resolve("i1")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var now plan.Routes
	set := func(r plan.Routes) { mu.Lock(); now = r; mu.Unlock() }
	cfg := Config{
		Timeout: time.Minute, Settle: 250 * time.Millisecond, AnswerTimeout: 5 * time.Second, PerInstanceRate: 1e6, PerInstanceBurst: 1e6,
		MaxActive: 8, MaxPairs: 100, Store: s, Book: oneBook{snap}, Log: slog.New(slog.DiscardHandler),
		Fleet:  fleet.New(fleet.Config{Log: slog.New(slog.DiscardHandler)}), // without agents
		Routes: func() plan.Routes { mu.Lock(); defer mu.Unlock(); return now },
	}
	tests := []struct {
		name   string
		routes plan.Routes
		want   string // in the cause
	}{
		{"nobody to ask", nil, ""},
		{"as the inventory says", oneRoute{i1.MAC, "10.1.0.2", time.Now().Add(-time.Hour)}, ""},
		{"elsewhere", oneRoute{i1.MAC, "10.1.0.4", time.Now().Add(-3*time.Hour - time.Minute)}, ", 3h ago"},
		{"elsewhere by now", oneRoute{i1.MAC, "10.1.0.3", time.Now().Add(-50*time.Hour - time.Minute)}, ", 2d ago"},
	}
	r := New(cfg)
	r.begin = wholeCast(t, snap)
	for _, tt := range tests {
		set(tt.routes)
		got := causes(t, r, &dyetracev1.Scope{Scope: &dyetracev1.Scope_Pair{Pair: &dyetracev1.PairScope{Src: "i0", Dst: "i1"}}})
		if len(got) != 1 || (got[0] == "") != (tt.want == "") || !strings.HasSuffix(got[0], tt.want) ||
			tt.want != "" && !strings.HasPrefix(got[0], "i1: inventory says hv2 (10.1.0.2), EVPN says "+tt.routes.(oneRoute).vtep+" (hv") {
			t.Errorf("%s: causes %q, want one that ends in %q", tt.name, got, tt.want)
		}
	}
	cfg.Routes = nil
	r = New(cfg)
	r.begin = wholeCast(t, snap)
	if got := causes(t, r, &dyetracev1.Scope{Scope: &dyetracev1.Scope_All{All: true}}); len(got) != 2 || got[0]+got[1] != "" {
		t.Errorf("without routes: causes %q", got)
	}
}

// routedSite is a site of two instances whose network has a number.
func routedSite(t *testing.T) *inventory.Snapshot {
	t.Helper()
	plain := site(t, 2)
	text := "networks:\n  - {name: blue, cidr: 10.0.0.0/16, segmentation_id: 101}\ninstances:\n"
	for _, in := range plain.Instances() {
		text += "  - {name: " + in.Name + ", network: blue, ip: " + in.IPs[0].String() + ", mac: \"" + in.MAC.String() + "\", host: " + in.Host + ", port: " + in.Port + "}\n"
	}
	f, err := inventory.Parse("inventory.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return inventory.NewSnapshot(f, plain.Hosts()...)
}

// wholeCast plays agents that see every probe between i0 and i1, whichever pairs a run has of them.
func wholeCast(t *testing.T, snap *inventory.Snapshot) func(fleet.Spec) agents {
	t.Helper()
	_, both := pathsOf(t, snap, allPairs)
	_, one := pathsOf(t, snap, plan.Scope{Kind: plan.OnePair, Src: "i0", Dst: "i1"})
	return func(spec fleet.Spec) agents {
		paths := both
		if c := newCastOf(one, options{}); spec.Total == uint32(hardAttempts*len(c.tracks)) {
			paths = one
		}
		return newCastOf(paths, options{}).begin(spec)
	}
}

// causes runs a scope to its end, wants all pairs healthy, and returns their causes.
func causes(t *testing.T, r *Runner, scope *dyetracev1.Scope) []string {
	t.Helper()
	run, err := r.Start(t.Context(), scope, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	err = r.Watch(t.Context(), run.Id, func(m *dyetracev1.WatchRunResponse) error {
		if p := m.GetPair(); p != nil {
			if p.Verdict != dyetracev1.Verdict_VERDICT_HEALTHY {
				t.Errorf("%s → %s: %v, %s", p.Src.GetName(), p.Dst.GetName(), p.Verdict, p.Cause)
			}
			texts = append(texts, p.Cause)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}
