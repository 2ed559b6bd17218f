package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/report"
	"github.com/dyetrace/dyetrace/internal/teacher"
)

// patience is far more than anything here takes with both cores busy.
const patience = 40 * time.Second

func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

// controllerOf is a real controller of a site, as a process.
type controllerOf struct {
	*site
	config, inventory string
	cmd               *exec.Cmd
}

// configure writes the configuration with this group bgp.
func (c *controllerOf) configure(bgp string) {
	c.t.Helper()
	text := fmt.Sprintf("listen: \"\"\nsocket: %s\ntls: {ca: %[2]s/ca.crt, cert: %[2]s/controller.crt, key: %[2]s/controller.key}\nstore: %[2]s/runs.db\ninventory: [%s]\n%s",
		c.socket(), c.dir, c.inventory, bgp)
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func newController(t *testing.T, bgp string) *controllerOf {
	t.Helper()
	s := newSite(t)
	c := &controllerOf{site: s, config: filepath.Join(s.dir, "controller.yaml"), inventory: filepath.Join(s.dir, "inventory.yaml")}
	err := os.WriteFile(c.inventory, []byte(`networks: [{name: blue, cidr: 10.0.1.0/24, segmentation_id: 1001}]
instances: [{name: blue-1, network: blue, mac: "fa:16:3e:00:01:0b", ip: 10.0.1.11}]
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	c.configure(bgp)
	return c
}

// start serves until the test ends, or stop.
func (c *controllerOf) start() {
	c.t.Helper()
	c.cmd = c.command("serve", "--config", c.config)
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			c.cmd.Process.Kill()
			c.cmd.Wait()
		}
		if c.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			c.t.Logf("controller:\n%s", text)
		}
	})
}

func (c *controllerOf) stop() {
	c.t.Helper()
	c.cmd.Process.Signal(syscall.SIGTERM)
	if err := c.cmd.Wait(); err != nil {
		c.t.Errorf("controller: %v", err)
	}
}

// asked runs a verb with -o json, and reads what it prints; it is false unless that worked.
func (c *controllerOf) asked(v any, args ...string) bool {
	r := c.dyetrace(append(args, "-o", "json")...)
	return r.code == 0 && json.Unmarshal([]byte(r.stdout), v) == nil
}

// watching is a verb that goes on.
type watching struct {
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	stderr *bufio.Scanner
}

func (c *controllerOf) watch(args ...string) *watching {
	c.t.Helper()
	w := &watching{cmd: c.command(append([]string{"routes", "--watch"}, args...)...)}
	stdout, err := w.cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	stderr, err := w.cmd.StderrPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if w.cmd.ProcessState == nil {
			w.cmd.Process.Kill()
			w.cmd.Wait()
		}
	})
	w.lines, w.stderr = bufio.NewScanner(stdout), bufio.NewScanner(stderr)
	if !w.stderr.Scan() || w.stderr.Text() != "watching; interrupt to end" {
		c.t.Fatalf("watch: %q", w.stderr.Text())
	}
	return w
}

// place returns addresses of loopback that no other test process uses at the time.
func place() (ours, peer string) {
	pid := os.Getpid()
	net := fmt.Sprintf("127.%d.%d.", 64+pid>>8&63, pid&255)
	return net + "250", net + "1"
}

// A teacher tells where an instance is, moves it, and takes it back; the verbs say so, each time.
func TestRoutes(t *testing.T) {
	t.Parallel()
	ours, addr := place()
	g := teacher.Start(t, addr, 0, "10.0.0.1", 64512)
	g.Peer(ours, 64512, teacher.Listens)
	const mac = "fa:16:3e:00:01:0b"
	here := teacher.MAC{RD: "10.255.2.13", VNI: 1001, MAC: mac, IP: "10.0.1.11", NextHop: "10.255.2.13"}
	there := here
	there.RD, there.NextHop, there.Sequence = "10.255.2.14", "10.255.2.14", 1
	g.Tell(here.Path(t))

	group := fmt.Sprintf("bgp:\n  router_id: 10.0.0.9\n  as: 64512\n  peers:\n    - {address: %s, port: %d, as: 64512, source: %s}\n", addr, g.Port, ours)
	c := newController(t, group)
	c.start()

	var peers []report.Peer
	eventually(t, "a session, and all told", func() bool {
		return c.asked(&peers, "peers") && len(peers) == 1 && peers[0].State == "established" && slices.Equal(peers[0].EndOfRIB, []string{"evpn"})
	})
	if p := peers[0]; p.Address != addr || p.Routes != 1 || p.RouterID != "10.0.0.1" || !slices.Contains(p.Capabilities, "evpn") {
		t.Errorf("peer %+v", p)
	}
	if r := c.dyetrace("peers"); !strings.Contains(r.stdout, addr+"  64512  established  ") {
		t.Errorf("peers: %s%s", r.stdout, r.stderr)
	}
	if r := c.dyetrace("status"); !strings.Contains(r.stdout, "BGP peers   1 of 1 established") {
		t.Errorf("status: %s%s", r.stdout, r.stderr)
	}

	var routes report.Routes
	if !c.asked(&routes, "routes", "--ip", "10.0.1.11", "--vni", "1001", "--vtep", "10.255.2.13") || len(routes.Routes) != 1 || !routes.Complete {
		t.Fatalf("routes: %+v", routes)
	}
	r := routes.Routes[0]
	if r.Kind != "mac" || r.MAC != mac || r.Prefix != "10.0.1.11/32" || r.VTEP.Address != "10.255.2.13" || !slices.Equal(r.VNIs, []uint32{1001}) ||
		r.Encapsulation != "vxlan" || r.RD != "10.255.2.13:100" || r.Peer != addr || !slices.Equal(r.RouteTargets, []string{"64512:1001"}) {
		t.Errorf("route %+v", r)
	}
	if !c.asked(&routes, "routes", "--vtep", "10.255.2.99") || len(routes.Routes) != 0 {
		t.Errorf("routes to nobody: %+v", routes)
	}
	answer := func(want string) {
		t.Helper()
		r := c.dyetrace("routes", "--vni", "1001", "--mac", mac)
		if r.code != 0 || !strings.Contains(r.stdout, mac+" in vni 1001: "+want) {
			t.Errorf("%s%s\nwant %q", r.stdout, r.stderr, want)
		}
	}
	answer("present at 10.255.2.13 since ")

	// Who is on a segment is listed, too.
	on := teacher.Segment{RD: "10.255.2.13", ESI: [9]byte{0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99}, VNI: 1001, NextHop: "10.255.2.13"}
	g.Tell(on.Path(t))
	on.Whole = true
	g.Tell(on.Path(t))
	eventually(t, "both routes of a segment", func() bool {
		return c.asked(&routes, "routes", "--vtep", "10.255.2.13") && len(routes.Routes) == 3
	})
	const esi = "00:11:22:33:44:55:66:77:88:99"
	list := c.dyetrace("routes", "--vtep", "10.255.2.13").stdout
	for _, want := range [][]string{{"64512:1001", "segment", "-", esi, "10.255.2.13", "0", "whole"}, {"1001", "segment", "-", esi, "10.255.2.13", "0", "-"}} {
		if !slices.ContainsFunc(strings.Split(list, "\n"), func(line string) bool {
			words := strings.Fields(line)
			return len(words) > len(want) && slices.Equal(words[:len(want)], want)
		}) {
			t.Errorf("no line %q in\n%s", want, list)
		}
	}

	// And by what a prefix goes that names a gateway.
	g.Tell(teacher.Prefix{
		RD: "10.255.2.15", VNI: 5000, Prefix: netip.MustParsePrefix("10.9.0.0/16"), Gateway: netip.MustParseAddr("10.0.0.7"), NextHop: "10.255.2.15",
	}.Path(t))
	eventually(t, "the prefix", func() bool {
		return c.asked(&routes, "routes", "--vtep", "10.255.2.15") && len(routes.Routes) == 1
	})
	if got := routes.Routes[0]; got.GatewayIP != "10.0.0.7" || got.Prefix != "10.9.0.0/16" || got.Marks() != "by 10.0.0.7" {
		t.Errorf("a prefix by a gateway: %+v", got)
	}

	w := c.watch("--mac", mac, "-o", "json")
	change := func(from, to string, seq uint32) {
		t.Helper()
		var got report.Change
		if !w.lines.Scan() || json.Unmarshal(w.lines.Bytes(), &got) != nil {
			t.Fatalf("watch: %q, %v", w.lines.Text(), w.lines.Err())
		}
		if got.MAC != mac || got.VNI != 1001 || got.From.String() != from || got.To.String() != to || got.Sequence != seq {
			t.Errorf("change %+v; want from %s to %s, sequence %d", got, from, to, seq)
		}
	}
	g.Tell(there.Path(t))
	change("10.255.2.13", "10.255.2.14", 1)
	answer("present at 10.255.2.14 since ")
	g.Withdraw(here.Path(t)) // of the old place, which changes nothing
	g.Withdraw(there.Path(t))
	change("10.255.2.14", "nowhere", 0)
	answer("absent")
	for _, address := range []string{mac, "10.0.1.11", "10.0.1.11/32"} {
		var h report.History
		if !c.asked(&h, "routes", "--history", address) || len(h.Stays) != 2 || h.Stays[0].VTEPs.String() != "10.255.2.13" ||
			h.Stays[1].VTEPs.String() != "10.255.2.14" || h.Stays[1].Sequence != 1 || h.Stays[0].To == nil || h.Stays[1].To == nil ||
			!h.Stays[0].To.Equal(*h.Stays[1].From) {
			t.Errorf("history of %s: %+v", address, h)
		}
	}
	if r := c.dyetrace("routes", "--history", mac, "--vni", "1001"); !strings.Contains(r.stdout, "vni 1001  ") || strings.Count(r.stdout, "\n") != 3 {
		t.Errorf("history:\n%s%s", r.stdout, r.stderr)
	}

	w.cmd.Process.Signal(os.Interrupt)
	w.cmd.Wait()
	if code := w.cmd.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("an interrupted watch exits %d", code)
	}
	c.reload(group, g, addr, answer)
}

// reload gives the controller a second peer, which is nobody.
func (c *controllerOf) reload(group string, g *teacher.Teacher, addr string, answer func(string)) {
	t := c.t
	var peers []report.Peer
	c.configure(group + fmt.Sprintf("    - {address: %s, port: %d, as: 64512}\n", strings.TrimSuffix(addr, "1")+"2", g.Port))
	c.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "a second peer that fails", func() bool { return c.asked(&peers, "peers") && len(peers) == 2 && peers[1].LastError != "" })
	if p := peers[0]; p.State != "established" || p.Flaps != 0 {
		t.Errorf("the peer that did not change lost its session: %+v", p)
	}
	answer("unknown") // it may be known to the other one
	r := c.dyetrace("status")
	r.want(t, 0)
	if !strings.Contains(r.stdout, "BGP peers   1 of 2 established") || !strings.Contains(r.stdout, "BGP peer "+peers[1].Address+": ") {
		t.Errorf("status:\n%s", r.stdout)
	}
	// A configuration that is broken changes nothing.
	c.configure(strings.ReplaceAll(group, "address", "adress"))
	c.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "the log names the key", func() bool {
		text, err := os.ReadFile(filepath.Join(c.dir, "log"))
		return err == nil && strings.Contains(string(text), "bgp.peers[0].adress: unknown key")
	})
	// Nor does one that asks for a port that somebody has.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c.configure(strings.Replace(group, "  peers:", fmt.Sprintf("  listen: %s\n  peers:", taken.Addr()), 1))
	c.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "the log names bgp.listen", func() bool {
		text, err := os.ReadFile(filepath.Join(c.dir, "log"))
		return err == nil && strings.Contains(string(text), "bgp.listen: listen tcp "+taken.Addr().String())
	})
	if !c.asked(&peers, "peers") || len(peers) != 2 {
		t.Errorf("peers after a broken configuration: %+v", peers)
	}
	// A watch does not keep the controller from ending, and says why it ends.
	w := c.watch()
	c.stop()
	if !w.stderr.Scan() || !strings.Contains(w.stderr.Text(), "shutting down") {
		t.Errorf("a watch whose controller ends says %q", w.stderr.Text())
	}
	w.cmd.Wait()
	if code := w.cmd.ProcessState.ExitCode(); code != exitUnreachable {
		t.Errorf("a watch whose controller ends exits %d", code)
	}
}

// What a control node of Tungsten Fabric says byte by byte, the verbs show: by the VNI that its route
// targets are mapped to, with labels of MPLS.
func TestTungstenRoutes(t *testing.T) {
	t.Parallel()
	ours, addr := place()
	ours, addr = strings.TrimSuffix(ours, "250")+"251", addr+"1"
	c := newController(t, fmt.Sprintf("bgp:\n  router_id: 10.0.0.9\n  as: 64512\n  networks: [{vni: 1001, rts: [\"64512:8000001\"]}]\n"+
		"  peers:\n    - {address: %s, port: %d, as: 64512, source: %s, families: [evpn, vpnv4]}\n", addr, teacher.StartTungsten(t, addr), ours))
	c.start()
	var routes report.Routes
	eventually(t, "two routes of the network", func() bool {
		return c.asked(&routes, "routes", "--vni", "1001") && len(routes.Routes) == 2
	})
	for _, r := range routes.Routes {
		if !slices.Equal(r.VNIs, []uint32{1001}) || !slices.Contains(r.RouteTargets, "64512:8000001") || !strings.Contains(r.Encapsulation, "mpls-udp") || r.Label != map[string]uint32{"mac": 17, "vpn": 18}[r.Kind] {
			t.Errorf("route %+v", r)
		}
	}
	for address, want := range map[string]string{
		"--mac fa:16:3e:00:01:11": "fa:16:3e:00:01:11 in vni 1001: present at 10.1.0.1 since ",
		"--ip 10.0.1.12":          "10.0.1.12 in vni 1001: present at 10.1.0.2 since ",
	} {
		r := c.dyetrace(append([]string{"routes", "--vni", "1001"}, strings.Fields(address)...)...)
		if r.code != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("%s: %s%s\nwant %q", address, r.stdout, r.stderr, want)
		}
	}
	c.stop()
}

func TestBadBGP(t *testing.T) {
	t.Parallel()
	c := newController(t, "bgp: {router_id: 10.0.0.9, as: 64512, peers: [{address: 10.0.0.1, as: 64512, md5: hush, hold_time: 1s}]}\n")
	r := c.dyetrace("serve", "--config", c.config)
	r.want(t, 2, "bgp.peers[0].hold_time: 1s (want whole seconds from 3s")
	if strings.Contains(r.stderr, "hush") {
		t.Errorf("the key is shown:\n%s", r.stderr)
	}
}

// A controller without BGP says so, and what to do.
func TestNoBGP(t *testing.T) {
	t.Parallel()
	c := newController(t, "")
	c.start()
	eventually(t, "the controller answers", func() bool { return c.dyetrace("runs").code == 0 })
	for _, args := range [][]string{{"routes"}, {"peers"}, {"routes", "--watch"}, {"routes", "--history", "10.0.0.1"}} {
		c.dyetrace(args...).want(t, 2, "no routes are learned", "group bgp")
	}
	if r := c.dyetrace("status"); strings.Contains(r.stdout, "BGP") {
		t.Errorf("status:\n%s", r.stdout)
	}
	c.stop()
}

func TestRoutesUsage(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, tt := range []struct{ args, want string }{
		{"--vni 0", "--vni: 0; want 1 to 16777215"},
		{"--vni 16777216", "--vni: 16777216; want"},
		{"--mac 10.0.0.1", `--mac: "10.0.0.1"; want`},
		{"--mac 00:00:00:00:00:00", "--mac: "},
		{"--ip 10.0.0.0/24", `--ip: "10.0.0.0/24"; want`},
		{"--vtep hv1", `--vtep: "hv1"; want`},
		{"--limit 0", "--limit: 0; want 1 to 100000"},
		{"--history hv1", `--history: "hv1"; want a MAC or IP address`},
		{"--history 10.0.0.1 --watch", "history watch"},
	} {
		s.dyetrace(append([]string{"routes"}, strings.Fields(tt.args)...)...).want(t, 2, tt.want)
	}
}

// A controller from before there were routes.
func TestControllerWithoutRoutes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(&script{status: func() (*dyetracev1.GetStatusResponse, error) { return &dyetracev1.GetStatusResponse{}, nil }})
	for _, args := range [][]string{{"routes"}, {"peers"}, {"routes", "--watch"}} {
		s.dyetrace(args...).want(t, 2, "is too old for this")
	}
}
