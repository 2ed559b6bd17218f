package plugin

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/bgp/wire"
	"github.com/dyetrace/dyetrace/internal/teacher"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

// learning returns a world whose controller has a teacher, and the controller's address of their
// session: one of loopback that no other test process uses at the time.
func learning(t *testing.T, n int, change func(*bgp.Peer), more ...bgp.Peer) (*world, *teacher.Teacher) {
	t.Helper()
	pid := os.Getpid()
	net := fmt.Sprintf("127.%d.%d.", 128+pid>>8&63, pid&255)
	ours, addr := net+fmt.Sprint(200+n), net+fmt.Sprint(n)
	g := teacher.Start(t, addr, 0, "10.0.0.1", 64512)
	g.Peer(ours, 64512, teacher.Listens)
	p := bgp.Peer{Address: addr, Port: g.Port, AS: 64512, Source: ours}
	if change != nil {
		change(&p)
	}
	w := newWorld(t, func(c *Config) {
		c.BGP = &bgp.Config{RouterID: "10.0.0.9", AS: 64512, Peers: append([]bgp.Peer{p}, more...)}
		c.Metrics = "127.0.0.1:0"
	})
	w.start()
	return w, g
}

var (
	blue1 = stain.MAC{0xfa, 0x16, 0x3e, 0, 1, 0x11}
	blue2 = stain.MAC{0xfa, 0x16, 0x3e, 0, 1, 0x12}
)

// told waits until the first peer told all.
func (w *world) told() {
	w.t.Helper()
	eventually(w.t, "an End-of-RIB", func() bool { return len(w.controller.speaker.Peers()[0].EndOfRIB) == 1 })
}

// TestRoutesForPlans: what plans get to see of routes, and when they see that there is none.
func TestRoutesForPlans(t *testing.T) {
	t.Parallel()
	w, g := learning(t, 1, nil)
	mac := teacher.MAC{RD: "10.1.0.1", VNI: 101, MAC: blue1.String(), IP: "10.0.1.11", NextHop: "10.1.0.1", Sequence: 3}
	second := mac
	second.RD, second.NextHop = "10.1.0.2", "10.1.0.2"
	g.Tell(mac.Path(t))
	g.Tell(second.Path(t))
	w.told()
	eventually(t, "both routes", func() bool { return w.controller.table.Snapshot().Len() == 2 })
	r := w.controller.routes()
	ip := netip.MustParseAddr("10.0.1.11")
	for what, l := range map[string]plan.Learned{"MAC": r.MAC(101, blue1), "IP": r.IP(101, ip)} {
		if l.State != plan.Present || !slices.Equal(l.VTEPs, []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")}) ||
			l.Sequence != 3 || l.Since.IsZero() || l.Sticky || l.Stale {
			t.Errorf("%s: %+v", what, l)
		}
	}
	for what, l := range map[string]plan.Learned{
		"another MAC": r.MAC(101, blue2), "another VNI": r.MAC(102, blue1), "another IP": r.IP(101, netip.MustParseAddr("10.0.1.12")),
	} {
		if l.State != plan.Absent {
			t.Errorf("%s: %+v; want it to be absent", what, l)
		}
	}
	if m, i := r.MAC(0, blue1), r.IP(0, ip); m.State != plan.NotAsked || i.State != plan.NotAsked {
		t.Errorf("a network without VNI: %v, %v", m, i)
	}
}

func TestNoRoutesForPlans(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.start()
	if r := w.controller.routes(); r != nil {
		t.Errorf("a controller without BGP has routes: %v", r)
	}
}

// TestAbsentNeedsAll: a peer that is down, and one that leaves out routes, may know better.
func TestAbsentNeedsAll(t *testing.T) {
	t.Parallel()
	down, _ := learning(t, 2, nil, bgp.Peer{Address: "127.255.0.1", Port: 1, AS: 64512})
	filtered, _ := learning(t, 3, func(p *bgp.Peer) { p.RTs = []string{"64512:101"} })
	for what, w := range map[string]*world{"a peer is down": down, "route targets": filtered} {
		w.told()
		if l := w.controller.routes().MAC(101, blue2); l.State != plan.NotKnown {
			t.Errorf("%s: %v", what, l.State)
		}
	}
}

// TestKnownVTEPs: a peer that may name what agents report is believed once they did.
func TestKnownVTEPs(t *testing.T) {
	t.Parallel()
	w, g := learning(t, 4, func(p *bgp.Peer) { p.NextHops = []string{"known", "10.77.0.0/16"} })
	for i, hop := range []string{"10.1.0.2", "10.66.0.2", "10.77.0.2"} {
		m := stain.MAC{2, 0, 0, 0, 0, byte(i)}
		g.Tell(teacher.MAC{RD: hop, VNI: 101, MAC: m.String(), NextHop: hop}.Path(t))
	}
	w.told()
	eventually(t, "three routes", func() bool { return w.controller.table.Snapshot().Len() == 3 })
	states := func() (s []plan.LearnedState) {
		r := w.controller.routes()
		for i := range 3 {
			s = append(s, r.MAC(101, stain.MAC{2, 0, 0, 0, 0, byte(i)}).State)
		}
		return s
	}
	if got := states(); !slices.Equal(got, []plan.LearnedState{plan.NotKnown, plan.NotKnown, plan.Present}) {
		t.Errorf("before any agent: %v", got)
	}
	w.agents4()
	eventually(t, "hv2's address is believed", func() bool {
		return slices.Equal(states(), []plan.LearnedState{plan.Present, plan.NotKnown, plan.Present})
	})
	if f := w.controller.speaker.Peers()[0].Flaps; f != 0 {
		t.Errorf("%d flaps", f)
	}
	// Whose they are is known, too.
	res, err := w.user().ListRoutes(t.Context(), connect.NewRequest(&dyetracev1.ListRoutesRequest{Vni: 101, Limit: 2}))
	if err != nil {
		t.Fatal(err)
	}
	if m := res.Msg; m.Total != 3 || len(m.Routes) != 2 || m.Routes[0].Vtep.GetHost() != "hv2" || m.Routes[0].Refused || !m.Routes[1].Refused {
		t.Errorf("routes %v", m)
	}
	// And what it all comes to can be scraped.
	scrape, err := http.Get("http://" + w.controller.scrapes.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer scrape.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	text, err := io.ReadAll(scrape.Body)
	for _, want := range []string{"state", "routes"} {
		line := fmt.Sprintf("dyetrace_bgp_peer_%s{peer=%q} %d\n", want, g.Addr, map[string]int{"state": 5, "routes": 3}[want])
		if err != nil || !strings.Contains(string(text), line) {
			t.Errorf("no line %q in the metrics (%v)", line, err)
		}
	}
}

// TestBadRouteRequests: errors name the field.
func TestBadRouteRequests(t *testing.T) {
	t.Parallel()
	w, _ := learning(t, 5, nil)
	user := w.user()
	list := func(m *dyetracev1.ListRoutesRequest) error {
		_, err := user.ListRoutes(t.Context(), connect.NewRequest(m))
		return err
	}
	history := func(m *dyetracev1.RouteHistoryRequest) error {
		_, err := user.RouteHistory(t.Context(), connect.NewRequest(m))
		return err
	}
	for want, err := range map[string]error{
		"vni: 16777216, want":                    list(&dyetracev1.ListRoutesRequest{Vni: 1 << 24}),
		`mac: "fa:16", want`:                     list(&dyetracev1.ListRoutesRequest{Mac: "fa:16"}),
		`ip: "10.0.0.0/8", want`:                 list(&dyetracev1.ListRoutesRequest{Ip: "10.0.0.0/8"}),
		`vtep: "hv1", want`:                      list(&dyetracev1.ListRoutesRequest{Vtep: "hv1"}),
		"limit: 100001, want":                    list(&dyetracev1.ListRoutesRequest{Limit: 100_001}),
		`mac: "", ip: "", want one of both`:      history(&dyetracev1.RouteHistoryRequest{}),
		`mac: "a", ip: "b", want one of both`:    history(&dyetracev1.RouteHistoryRequest{Mac: "a", Ip: "b"}),
		`ip: "10.0.0.0/99", want`:                history(&dyetracev1.RouteHistoryRequest{Ip: "10.0.0.0/99"}),
		`mac: "00:00:00:00:00:00", want an addr`: history(&dyetracev1.RouteHistoryRequest{Mac: "00:00:00:00:00:00"}),
	} {
		if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}

// TestSegmentForPlans: a MAC on an Ethernet segment is at all switches that are on it, by right.
func TestSegmentForPlans(t *testing.T) {
	t.Parallel()
	table := rib.New(rib.Options{})
	feed := table.Peer("rr1", rib.PeerOptions{})
	now := time.Now()
	feed.Up(now, false)
	const esi, vxlan = "00112233445566778899", "030c 0000 0000 0008"
	for i, hop := range []string{"01", "02"} {
		routes := "01 19 00010a0100" + hop + "0005" + esi + "ffffffff 000000" + "01 19 00010a0100" + hop + "0005" + esi + "00000000 000065"
		if i == 0 {
			routes += "02 21 00010a0100" + hop + "0005" + esi + "00000000 30 fa163e000111 00 000065"
		}
		b, err := hex.DecodeString(teacher.TungstenUpdate("0019 46 04 0a0100"+hop+"00"+routes, teacher.TungstenTarget, vxlan))
		if err == nil {
			err = feed.Update(b, now)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s := table.Snapshot()
	l := learned{s, s.Whole()}.MAC(101, blue1)
	if l.State != plan.Present || !l.Segment || !slices.Equal(l.VTEPs, []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")}) {
		t.Errorf("%+v", l)
	}
}

// TestPrefixForPlans: routes for more than the one address are an answer once no longer one can be
// missing, and only where there is none.
func TestPrefixForPlans(t *testing.T) {
	t.Parallel()
	table := rib.New(rib.Options{Networks: bgp.Config{Networks: []bgp.Network{{VNI: 101, RTs: []string{"64512:8000001"}}}}.Mapping(nil)})
	feed := table.Peer("rr1", rib.PeerOptions{Families: []wire.Family{wire.VPNv4}})
	now := time.Now()
	feed.Up(now, false)
	asks := func(want plan.LearnedState, prefix, vtep string) {
		t.Helper()
		s := table.Snapshot()
		got := learned{s, s.Whole()}.IP(101, netip.MustParseAddr("10.0.1.12"))
		var at []netip.Addr
		if vtep != "" {
			at = []netip.Addr{netip.MustParseAddr(vtep)}
		}
		var in netip.Prefix
		if prefix != "" {
			in = netip.MustParsePrefix(prefix)
		}
		if got.State != want || got.Prefix != in || !slices.Equal(got.VTEPs, at) {
			t.Errorf("%+v; want %v, %s at %s", got, want, prefix, vtep)
		}
	}
	tell := func(body string) {
		t.Helper()
		b, err := hex.DecodeString(body)
		if err == nil {
			err = feed.Update(b, now)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const hop = "0001 80 0c 0000000000000000 0a0100"
	tell(teacher.TungstenUpdate(hop+"09 00"+"60 000121 00010a0100020006 0a", teacher.TungstenTarget)) // 10.0.0.0/8
	asks(plan.NotKnown, "", "")
	tell("00000006" + "800f03" + "000180") // End-of-RIB
	asks(plan.Present, "10.0.0.0/8", "10.1.0.9")
	tell(teacher.TungstenUpdate(hop+"08 00"+"70 000121 00010a0100020006 0a0001", teacher.TungstenTarget)) // 10.0.1.0/24
	asks(plan.Present, "10.0.1.0/24", "10.1.0.8")
	tell(teacher.TungstenUpdate(hop+"02 00"+"78 000121 00010a0100020006 0a00010c", teacher.TungstenTarget)) // 10.0.1.12/32
	asks(plan.Present, "", "10.1.0.2")
	feed.Down(now, true)
	asks(plan.Present, "", "10.1.0.2") // stale, and still for it alone
}

// TestGatewayForPlans: a prefix that goes by a gateway's address is where that address is by its MAC route, as
// far as plans see, and not known while nobody tells that one.
func TestGatewayForPlans(t *testing.T) {
	t.Parallel()
	w, g := learning(t, 6, nil)
	prefix, gateway := netip.MustParsePrefix("10.9.0.0/16"), netip.MustParseAddr("10.0.0.7")
	g.Tell(teacher.Prefix{RD: "10.1.0.9", VNI: 5000, Prefix: prefix, Gateway: gateway, NextHop: "10.1.0.9"}.Path(t))
	w.told()
	eventually(t, "the prefix", func() bool { return w.controller.table.Snapshot().Len() == 1 })
	behind := netip.MustParseAddr("10.9.1.1")
	if l := w.controller.routes().IP(5000, behind); l.State != plan.NotKnown {
		t.Errorf("before its gateway is known: %+v", l)
	}
	for i, hop := range []string{"10.1.0.1", "10.1.0.2"} {
		g.Tell(teacher.MAC{RD: hop, VNI: 100, L3VNI: 5000, MAC: "02:00:00:00:00:07", IP: gateway.String(), NextHop: hop, Sequence: uint32(i)}.Path(t))
		var l plan.Learned
		eventually(t, "the prefix at "+hop, func() bool {
			l = w.controller.routes().IP(5000, behind)
			return l.State == plan.Present && slices.Equal(l.VTEPs, []netip.Addr{netip.MustParseAddr(hop)})
		})
		if l.Prefix != prefix {
			t.Errorf("%+v; want %v", l, prefix)
		}
	}
}
