package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"

	"github.com/dyetrace/dyetrace/bgp/rib"
)

const frrPlain = `
 neighbor NEIGHBOUR remote-as OURS
 neighbor NEIGHBOUR update-source SELF
 neighbor NEIGHBOUR timers connect 1
 EXTRA
 address-family l2vpn evpn
  neighbor NEIGHBOUR activate
  FAMILY
 exit-address-family`

// frrConf is a bgpd.conf of a route reflector between a GoBGP that has routes, if there is one, and us:
// what an EVPN fabric has on its spines. extra and family are lines of our neighbour.
func frrConf(self, id, source, ours string, as, ourAS int64, extra, family string) string {
	r := strings.NewReplacer("NEIGHBOUR", ours, "OURS", fmt.Sprint(ourAS), "SELF", self, "EXTRA", strings.ReplaceAll(extra, "NEIGHBOUR", ours),
		"FAMILY", strings.ReplaceAll(family, "NEIGHBOUR", ours))
	conf := fmt.Sprintf(`router bgp %d
 bgp router-id %s
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
`, as, id)
	if source != "" {
		conf += fmt.Sprintf(` neighbor %[1]s remote-as %[2]d
 neighbor %[1]s passive
 neighbor %[1]s update-source %[3]s
 address-family l2vpn evpn
  neighbor %[1]s activate
  neighbor %[1]s route-reflector-client
 exit-address-family
`, source, as, self)
	}
	return conf + r.Replace(frrPlain)
}

// kase is a way to configure both ends. Each runs against FRR and against GoBGP.
type kase struct {
	name      string
	as, ourAS int64 // 65000 each if 0
	ours      func(*Peer)
	frr       string // lines of "router bgp", NEIGHBOUR is us
	gobgp     func(*api.Peer)
	fails     []string // words of our last error, by which there is no session
	then      func(*testing.T, *world, string)
	wantCaps  []string
}

func passive(p *Peer) { p.Passive = true }

var cases = []kase{
	{name: "iBGP"},
	{name: "eBGP", as: 65001, frr: "neighbor NEIGHBOUR ebgp-multihop 3", gobgp: multihop},
	{name: "four-octet AS", as: 4200000001, frr: "neighbor NEIGHBOUR ebgp-multihop 3", gobgp: multihop, wantCaps: []string{"four-octet-as"}},
	{name: "four-octet AS, ours", as: 65001, ourAS: 4200000002, frr: "neighbor NEIGHBOUR ebgp-multihop 3", gobgp: multihop},
	{name: "we are passive", ours: passive},
	{name: "the peer is passive", frr: "neighbor NEIGHBOUR passive", gobgp: func(p *api.Peer) { p.Transport.PassiveMode = true }},
	{name: "MD5, dialed", ours: func(p *Peer) { p.MD5 = "right" }, frr: "neighbor NEIGHBOUR password right\n neighbor NEIGHBOUR passive",
		gobgp: func(p *api.Peer) { p.Conf.AuthPassword = "right"; p.Transport.PassiveMode = true }},
	{name: "MD5, taken in", ours: func(p *Peer) { p.MD5 = "right"; p.Passive = true }, frr: "neighbor NEIGHBOUR password right",
		gobgp: func(p *api.Peer) { p.Conf.AuthPassword = "right" }},
	{name: "GTSM, dialed", as: 65001, ours: func(p *Peer) { p.GTSM = 1 }, frr: "neighbor NEIGHBOUR ttl-security hops 1\n neighbor NEIGHBOUR passive",
		gobgp: func(p *api.Peer) {
			p.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255}
			p.Transport.PassiveMode = true
		}},
	{name: "GTSM, taken in", as: 65001, ours: func(p *Peer) { p.GTSM = 1; p.Passive = true }, frr: "neighbor NEIGHBOUR ttl-security hops 1",
		gobgp: func(p *api.Peer) { p.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255} }},
	{name: "hold time of ours", ours: func(p *Peer) { p.HoldTime = shortHold }, then: outlives},
	{name: "hold time of the peer", frr: "neighbor NEIGHBOUR timers 2 6", gobgp: func(p *api.Peer) { p.Timers.Config.HoldTime = 6; p.Timers.Config.KeepaliveInterval = 2 }, then: outlives},
	{name: "AS mismatch", as: 65001, ours: func(p *Peer) { p.AS = 65009 }, frr: "neighbor NEIGHBOUR ebgp-multihop 3", gobgp: multihop,
		fails: []string{"its AS is 65001 (want 65009)"}},
	{name: "family mismatch", ours: func(p *Peer) { p.Families = []string{"vpnv4"} }, fails: []string{"offers [evpn] (want one of [vpnv4])"}},
	{name: "a family too many", ours: func(p *Peer) { p.Families = []string{"evpn", "vpnv6"} }, then: func(t *testing.T, w *world, peer string) {
		if s := w.status(peer); !slices.Equal(s.Families, []string{"evpn"}) || !slices.Equal(s.Missing, []string{"vpnv6"}) {
			t.Errorf("families %v, missing %v", s.Families, s.Missing)
		}
	}},
	{name: "prefix limit", ours: func(p *Peer) { p.MaxRoutes = 2 }, fails: []string{rib.ErrLimit.Error()}},
	{name: "route refresh", then: func(t *testing.T, w *world, peer string) {
		b := w.lib.of(peer)
		b.mu.Lock()
		clear(b.routes) // as a table that did not want them
		b.mu.Unlock()
		if err := w.s.Refresh(t.Context(), netip.MustParseAddr(peer)); err != nil {
			t.Fatal(err)
		}
		w.routes(peer, routesTold)
		if n := w.status(peer).Flaps; n != 0 {
			t.Errorf("%d flaps for a refresh", n)
		}
	}},
	{name: "what is learned changes", then: func(t *testing.T, w *world, peer string) {
		cfg := w.s.peers[netip.MustParseAddr(peer)].want
		cfg.RTs = []string{"64512:100"}
		if err := w.s.Reconfigure([]Peer{cfg}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the feed hears of it", func() bool { return w.lib.of(peer).heard("options") })
		if s := w.status(peer); s.Flaps != 0 || s.State != Established {
			t.Errorf("the session did not go on: %+v", s)
		}
	}},
}

func multihop(p *api.Peer) { p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: 3} }

// shortHold is a hold time that a test can outlive, and a machine that is busy for seconds as well.
const shortHold = 6 * time.Second

// outlives waits for two hold times; a session without keepalives of either side would not live.
func outlives(t *testing.T, w *world, peer string) {
	if h := w.status(peer).HoldTime; h != shortHold {
		t.Errorf("hold time %v, want %v", h, shortHold)
	}
	eventually(t, "two hold times of session", func() bool {
		return w.status(peer).Uptime(time.Now()) > 2*shortHold+time.Second || w.status(peer).Flaps > 0
	})
	if n := w.status(peer).Flaps; n != 0 {
		t.Errorf("%d flaps", n)
	}
}

const routesTold = 5

func (k kase) run(t *testing.T, w *world, peer string, learned func() int) {
	if k.fails != nil {
		w.fails(peer, k.fails...)
		eventually(t, "no route", func() bool { return w.lib.of(peer).Routes() == 0 })
		return
	}
	w.established(peer)
	w.routes(peer, routesTold)
	eventually(t, "all told", func() bool { return w.status(peer).Updates > 0 })
	if caps := w.status(peer).Capabilities; !slices.Contains(caps, "evpn") {
		t.Errorf("capabilities %v, want evpn among them", caps)
	}
	for _, c := range k.wantCaps {
		if !slices.Contains(w.status(peer).Capabilities, c) {
			t.Errorf("capabilities %v, want %s among them", w.status(peer).Capabilities, c)
		}
	}
	if k.then != nil {
		k.then(t, w, peer)
	}
	if n := learned(); n != 0 {
		t.Errorf("the peer learned %d routes of us", n)
	}
}

func (k kase) world(t *testing.T, ours, peer string) *world {
	cfg := Peer{Address: peer, AS: k.as}
	if k.ours != nil {
		k.ours(&cfg)
	}
	return speak(t, ours, k.ourAS, cfg)
}

func (k kase) withDefaults() kase {
	if k.as == 0 {
		k.as = 65000
	}
	if k.ourAS == 0 {
		k.ourAS = 65000
	}
	return k
}

func TestFRR(t *testing.T) {
	for _, k := range cases {
		k = k.withDefaults()
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			ours, peer := place(t)
			g := startGoBGP(t, peer(2), peer(2), uint32(k.as))
			g.macRoutes(0, routesTold)
			f := startFRR(t, peer(1), frrConf(peer(1), peer(1), peer(2), ours, k.as, k.ourAS, k.frr, rrClient(k)))
			g.peer(peer(1), uint32(k.as), nil)
			w := k.world(t, ours, peer(1))
			k.run(t, w, peer(1), func() int { return f.learned(ours) })
		})
	}
}

// rrClient makes us a client where we are of the same AS: a route reflector.
func rrClient(k kase) string {
	if k.as == k.ourAS {
		return "neighbor NEIGHBOUR route-reflector-client"
	}
	return ""
}

func TestGoBGP(t *testing.T) {
	for _, k := range cases {
		k = k.withDefaults()
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			ours, peer := place(t)
			g := startGoBGP(t, peer(1), peer(1), uint32(k.as))
			g.macRoutes(0, routesTold)
			g.peer(ours, uint32(k.ourAS), k.gobgp)
			w := k.world(t, ours, peer(1))
			k.run(t, w, peer(1), g.learned)
		})
	}
}

// With a wrong key nothing comes through: no error of TCP either, only silence.
func TestWrongMD5(t *testing.T) {
	for _, key := range []Secret{"wrong", ""} {
		t.Run(fmt.Sprintf("key %q", string(key)), func(t *testing.T) {
			t.Parallel()
			ours, peer := place(t)
			conf := func(key string) string {
				return frrConf(peer(1), peer(1), "", ours, 65000, 65000, "neighbor NEIGHBOUR password "+key, "")
			}
			startFRR(t, peer(1), conf("right"))
			startFRR(t, peer(2), frrConf(peer(2), peer(2), "", ours, 65000, 65000, "neighbor NEIGHBOUR password right", ""))
			w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65000, MD5: key}, Peer{Address: peer(2), AS: 65000, MD5: "right"})
			w.established(peer(2))
			w.fails(peer(1), "cannot connect", "timeout")
			if s := w.status(peer(1)); s.State == Established || s.RouterID.IsValid() {
				t.Errorf("a session with a wrong key: %+v", s)
			}
			// And with the right one there is a session at once: the listener learns it too.
			if err := w.s.Reconfigure([]Peer{
				{Address: peer(1), AS: 65000, MD5: "right", Source: ours}, {Address: peer(2), AS: 65000, MD5: "right", Source: ours},
			}); err != nil {
				t.Fatal(err)
			}
			w.established(peer(1))
			if n := w.status(peer(2)).Flaps; n != 0 {
				t.Errorf("%d flaps of the other peer", n)
			}
		})
	}
}

func TestIPv6Transport(t *testing.T) {
	t.Parallel()
	ours, peer := place6(t)
	g := startGoBGP(t, peer, "10.98.0.1", 65000)
	g.macRoutes(0, routesTold)
	g.peer(ours, 65000, func(p *api.Peer) { p.Conf.AuthPassword = "six" })
	w := speak(t, ours, 65000, Peer{Address: peer, AS: 65000, MD5: "six", Passive: true})
	w.established(peer)
	w.routes(peer, routesTold)
}

// A bgpd that is killed and comes back: without graceful restart its routes are gone meanwhile.
func TestSessionLoss(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	g := startGoBGP(t, peer(2), peer(2), 65000)
	g.macRoutes(0, routesTold)
	f := startFRR(t, peer(1), frrConf(peer(1), peer(1), peer(2), ours, 65000, 65000, "", "neighbor NEIGHBOUR route-reflector-client"))
	g.peer(peer(1), 65000, nil)
	w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65000})
	w.routes(peer(1), routesTold)
	f.kill()
	w.routes(peer(1), 0)
	f.start()
	w.routes(peer(1), routesTold)
	if s := w.status(peer(1)); s.Flaps != 1 {
		t.Errorf("%d flaps, want 1", s.Flaps)
	}
	if w.lib.of(peer(1)).heard("down graceful=true") {
		t.Error("routes outlived a peer that did not ask for it")
	}
}

// We help a bgpd that restarts gracefully: its routes stay, stale, until it said all again.
func TestGracefulRestart(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	g := startGoBGP(t, peer(2), peer(2), 65000)
	g.macRoutes(0, routesTold)
	conf := strings.Replace(frrConf(peer(1), peer(1), peer(2), ours, 65000, 65000, "", "neighbor NEIGHBOUR route-reflector-client"),
		" no bgp default", " bgp graceful-restart\n bgp graceful-restart restart-time 30\n bgp graceful-restart preserve-fw-state\n no bgp default", 1)
	f := startFRR(t, peer(1), conf)
	g.peer(peer(1), 65000, nil)
	w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65000})
	w.routes(peer(1), routesTold)
	b := w.lib.of(peer(1))
	eventually(t, "an End-of-RIB", func() bool { return b.heard("end of RIB") })
	f.kill()
	eventually(t, "a graceful end", func() bool { return b.heard("down graceful=true") })
	if n := b.Routes(); n != routesTold {
		t.Errorf("%d routes while the peer restarts, want %d", n, routesTold)
	}
	if w.status(peer(1)).Restarting.IsZero() {
		t.Error("the status does not tell of a restart")
	}
	f.start()
	eventually(t, "a new session", func() bool { return b.heard("up kept=true") })
	w.routes(peer(1), routesTold)
}

// A peer that promised to be back, and is not, in its time.
func TestRestartTime(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true})
	r := dialRaw(t, peer(1), ours)
	r.establish(slices.Concat(capEVPN, cap65001, []byte{64, 6, 0, 1, 0, 25, 70, 0x80})...)
	r.send(typeUpdate, evpnUpdate)
	w.routes(peer(1), 1)
	r.Close()
	b := w.lib.of(peer(1))
	eventually(t, "a sweep", func() bool { return b.heard("sweep") })
	w.routes(peer(1), 0)
	if !b.heard("down graceful=true") {
		t.Error("routes were gone before the time was over")
	}
}

// A peer that restarted opens a new connection while we know nothing of the death of the old one
// (RFC 4724, section 5).
func TestNewConnection(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65001, Passive: true})
	caps := slices.Concat(capEVPN, cap65001, []byte{64, 6, 0, 60, 0, 25, 70, 0x80})
	r := dialRaw(t, peer(1), ours)
	r.establish(caps...)
	r.send(typeUpdate, evpnUpdate)
	w.routes(peer(1), 1)
	again := dialRaw(t, peer(1), ours)
	again.establish(caps...)
	b := w.lib.of(peer(1))
	eventually(t, "a second session", func() bool { return b.heard("up kept=true") })
	if b.Routes() != 1 || !b.heard("down graceful=true") {
		t.Errorf("%d routes after %v", b.Routes(), b.told)
	}
	if k, _ := r.next(); k == 0 {
		return
	}
	if got := r.until(0); got != nil {
		t.Errorf("the old connection goes on")
	}
}

// Peers come, go and change; the others' sessions do not notice.
func TestReconfigure(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	var cfgs []Peer
	var peers []*gobgpd
	for i := 1; i <= 4; i++ {
		g := startGoBGP(t, peer(i), peer(i), 65000)
		g.macRoutes(10*i, i)
		g.peer(ours, 65000, nil)
		peers = append(peers, g)
		cfgs = append(cfgs, Peer{Address: peer(i), AS: 65000, Source: ours})
	}
	w := speak(t, ours, 65000, cfgs[:3]...)
	for i := 1; i <= 3; i++ {
		w.established(peer(i))
		w.routes(peer(i), i)
	}
	since := w.status(peer(1)).Since
	cfgs[2].HoldTime = 30 * time.Second
	if err := w.s.Reconfigure([]Peer{cfgs[0], cfgs[2], cfgs[3]}); err != nil {
		t.Fatal(err)
	}
	if !w.lib.of(peer(2)).heard("close") || w.lib.of(peer(2)).Routes() != 0 {
		t.Errorf("a removed peer: %v", w.lib.of(peer(2)).told)
	}
	w.routes(peer(3), 3)
	w.routes(peer(4), 4)
	w.established(peer(3))
	if h := w.status(peer(3)).HoldTime; h != 30*time.Second {
		t.Errorf("hold time %v, want 30s", h)
	}
	if got := w.status(peer(1)).Since; got != since {
		t.Errorf("the session of a peer that did not change began %v, again", got.Sub(since))
	}
	if err := w.s.Reconfigure([]Peer{{Address: "nonsense", AS: 65000}}); err == nil || !strings.Contains(err.Error(), "bgp.peers[0].address") {
		t.Errorf("Reconfigure with nonsense: %v", err)
	}
	if n := len(w.s.Peers()); n != 3 {
		t.Errorf("%d peers after nonsense, want 3", n)
	}
	for _, g := range peers {
		if n := g.learned(); n != 0 {
			t.Errorf("%s learned %d routes of us", g.addr, n)
		}
	}
}

// A peer without End-of-RIB is taken for settled after a quiet time, not before.
func TestSettle(t *testing.T) {
	t.Parallel()
	ours, peer := place(t)
	g := startGoBGP(t, peer(1), peer(1), 65000)
	g.macRoutes(0, routesTold)
	g.peer(ours, 65000, nil)
	w := speak(t, ours, 65000, Peer{Address: peer(1), AS: 65000})
	w.routes(peer(1), routesTold)
	eventually(t, "settled", func() bool { return w.lib.of(peer(1)).heard("settle") })
	if d := time.Since(w.status(peer(1)).Since); d < brief.quiet {
		t.Errorf("settled after %v, before %v", d, brief.quiet)
	}
}
