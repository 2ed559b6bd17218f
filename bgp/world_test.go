package bgp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	gobgp "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/internal/sandbox"
	"github.com/dyetrace/dyetrace/internal/teacher"
)

// patience is far more than anything here takes with both cores busy.
const patience = 40 * time.Second

var (
	places   atomic.Int32
	loopback = sync.OnceFunc(func() {
		// Each address of a prefix on lo is local (ip-address(8)), so each test has a net.
		if out, err := exec.Command("ip", "address", "add", "10.99.0.0/16", "dev", "lo").CombinedOutput(); err != nil {
			panic(fmt.Sprintf("ip address add: %v: %s", err, out))
		}
		// FRR makes a directory there for each process, and leaves it; this namespace takes all with it.
		if out, err := exec.Command("mount", "-t", "tmpfs", "tmpfs", "/var/tmp").CombinedOutput(); err != nil {
			panic(fmt.Sprintf("mount: %v: %s", err, out))
		}
	})
)

// place returns the addresses of a test: ours, and that of the peers.
func place(t *testing.T) (ours string, peer func(i int) string) {
	t.Helper()
	loopback()
	n := places.Add(1)
	return fmt.Sprintf("10.99.%d.250", n), func(i int) string { return fmt.Sprintf("10.99.%d.%d", n, i) }
}

// place6 is place for IPv6.
func place6(t *testing.T) (ours, peer string) {
	t.Helper()
	n := places.Add(1)
	ours, peer = fmt.Sprintf("fd99:%x::250", n), fmt.Sprintf("fd99:%x::1", n)
	for _, a := range []string{ours, peer} {
		sandbox.Command(t, "ip", "-6", "address", "add", a+"/128", "dev", "lo", "nodad")
	}
	return ours, peer
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

// book is a feed that keeps routes as GoBGP reads them, and what it was told.
type book struct {
	mu     sync.Mutex
	routes map[string]bool // whether stale
	told   []string
	o      rib.PeerOptions
	bodies [][]byte
	// update, if it is set, is asked before an UPDATE is taken, and read while it is read.
	update func(body []byte) error
	read   func(body []byte)
}

func (b *book) say(s string) { b.told = append(b.told, s) }

func (b *book) Up(_ time.Time, kept bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.say(fmt.Sprintf("up kept=%v", kept))
	if !kept {
		b.sweep()
	}
}

func (b *book) sweep() {
	for k, stale := range b.routes {
		if stale {
			delete(b.routes, k)
		}
	}
}

func (b *book) Read(a *rib.Ahead, body []byte) {
	b.mu.Lock()
	read := b.read
	b.mu.Unlock()
	if read != nil {
		read(body)
	}
	a.Body = body
}

func (b *book) Take(a *rib.Ahead, _ time.Time) error {
	body := a.Body
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.update != nil {
		if err := b.update(body); err != nil {
			return err
		}
	}
	b.bodies = append(b.bodies, slices.Clone(body))
	if _, ok := parseEndOfRIB(body); ok {
		b.say("end of RIB")
		b.sweep()
		return nil
	}
	m := gobgp.NewBGPUpdateMessage(nil, nil, nil).Body.(*gobgp.BGPUpdate)
	if err := m.DecodeFromBytes(body); err != nil {
		return fmt.Errorf("%w: %w", rib.ErrReset, err)
	}
	for _, a := range m.PathAttributes {
		switch a := a.(type) {
		case *gobgp.PathAttributeMpReachNLRI:
			for _, n := range a.Value {
				b.routes[n.String()] = false
			}
		case *gobgp.PathAttributeMpUnreachNLRI:
			for _, n := range a.Value {
				delete(b.routes, n.String())
			}
		}
	}
	if b.o.MaxRoutes > 0 && len(b.routes) > b.o.MaxRoutes {
		return rib.ErrLimit
	}
	return nil
}

func (b *book) Down(_ time.Time, graceful bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.say(fmt.Sprintf("down graceful=%v", graceful))
	if !graceful {
		clear(b.routes)
	}
	for k := range b.routes {
		b.routes[k] = true
	}
}

func (b *book) Sweep(time.Time)  { b.mu.Lock(); defer b.mu.Unlock(); b.say("sweep"); b.sweep() }
func (b *book) Settle(time.Time) { b.mu.Lock(); defer b.mu.Unlock(); b.say("settle") }
func (b *book) Close(time.Time)  { b.mu.Lock(); defer b.mu.Unlock(); b.say("close") }
func (b *book) Routes() int      { b.mu.Lock(); defer b.mu.Unlock(); return len(b.routes) }

func (b *book) SetOptions(o rib.PeerOptions, _ time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.say("options")
	b.o = o
	return true
}

func (b *book) heard(what string) bool { return b.count(what) > 0 }

func (b *book) count(what string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.told {
		if s == what {
			n++
		}
	}
	return n
}

// library has a book a peer.
type library struct {
	mu    sync.Mutex
	books map[string]*book
}

func (l *library) learn(peer string, o rib.PeerOptions) Feed { b := l.of(peer); b.o = o; return b }

func (l *library) of(peer string) *book {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.books == nil {
		l.books = map[string]*book{}
	}
	if l.books[peer] == nil {
		l.books[peer] = &book{routes: map[string]bool{}}
	}
	return l.books[peer]
}

// world is a speaker under test, with the waits of production cut short.
type world struct {
	t    *testing.T
	s    *Speaker
	lib  *library
	ours string
	stop func()
}

var brief = waits{least: 50 * time.Millisecond, most: time.Second, hold: 300 * time.Millisecond, stale: 2 * time.Second, quiet: 500 * time.Millisecond}

func speak(t *testing.T, ours string, as int64, peers ...Peer) *world {
	t.Helper()
	return speakWith(t, &library{}, ours, as, peers...)
}

func speakWith(t *testing.T, lib *library, ours string, as int64, peers ...Peer) *world {
	t.Helper()
	w := speakInto(t, lib.learn, ours, as, peers...)
	w.lib = lib
	return w
}

// speakInto is speakWith for any feeds.
func speakInto(t *testing.T, learn Learn, ours string, as int64, peers ...Peer) *world {
	t.Helper()
	for i := range peers {
		if peers[i].Source == "" {
			peers[i].Source = ours
		}
	}
	id := ours
	if strings.Contains(id, ":") {
		id = "10.98.0.250"
	}
	s, err := New(Config{RouterID: id, AS: as, Listen: net.JoinHostPort(ours, "179"), Peers: peers}, Options{Learn: learn})
	if err != nil {
		t.Fatal(err)
	}
	s.waits = brief
	for _, p := range s.peers {
		p.waits = brief
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	w := &world{t: t, s: s, ours: ours}
	w.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Errorf("Run goes on %v after its context", patience)
		}
	})
	t.Cleanup(w.stop)
	select {
	case <-s.Ready():
	case <-time.After(patience):
		t.Fatal("not ready")
	}
	return w
}

func (w *world) status(peer string) Status {
	for _, s := range w.s.Peers() {
		if s.Address == peer {
			return s
		}
	}
	return Status{}
}

func (w *world) established(peer string) {
	w.t.Helper()
	defer func() {
		if w.t.Failed() {
			w.t.Logf("%+v", w.status(peer))
		}
	}()
	eventually(w.t, peer+" established", func() bool { return w.status(peer).State == Established })
}

func (w *world) routes(peer string, n int) {
	w.t.Helper()
	defer func() {
		if w.t.Failed() {
			w.t.Logf("%+v", w.status(peer))
		}
	}()
	eventually(w.t, fmt.Sprintf("%d routes of %s", n, peer), func() bool { return w.lib.of(peer).Routes() == n })
}

// fails waits until the last error of a peer says all of words.
func (w *world) fails(peer string, words ...string) {
	w.t.Helper()
	var last error
	defer func() {
		if w.t.Failed() {
			w.t.Logf("last error: %v", last)
		}
	}()
	eventually(w.t, fmt.Sprintf("%s fails with %q", peer, words), func() bool {
		if e := w.status(peer).LastError; e != nil {
			last = e
		}
		return last != nil && !slices.ContainsFunc(words, func(s string) bool { return !strings.Contains(strings.ToLower(last.Error()), strings.ToLower(s)) })
	})
}

// frr is a bgpd of FRR without zebra, with a directory of its own.
type frr struct {
	t         *testing.T
	addr, dir string
	conf      string
	cmd       *exec.Cmd
}

func startFRR(t *testing.T, addr, conf string) *frr {
	t.Helper()
	f := &frr{t: t, addr: addr, dir: t.TempDir(), conf: conf}
	f.start()
	t.Cleanup(f.kill)
	return f
}

func (f *frr) start() {
	f.t.Helper()
	conf := filepath.Join(f.dir, "bgpd.conf")
	text := "log file " + filepath.Join(f.dir, "log") + "\n" + f.conf + "\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
	f.cmd = exec.Command("/usr/lib/frr/bgpd", "-Z", "-S", "-f", conf, "-i", filepath.Join(f.dir, "pid"), "-z", filepath.Join(f.dir, "zserv"),
		"--vty_socket", f.dir, "-P", "0", "-l", f.addr, "-p", "179")
	f.cmd.Dir = f.dir
	out, _ := os.OpenFile(filepath.Join(f.dir, "out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	f.cmd.Stdout, f.cmd.Stderr = out, out
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := f.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	out.Close()
	eventually(f.t, "bgpd answers", func() bool { _, err := f.try("show version"); return err == nil })
}

// kill takes bgpd down without a farewell: the kernel closes its connections.
func (f *frr) kill() {
	if f.cmd.Process != nil {
		f.cmd.Process.Kill()
		f.cmd.Wait()
	}
	if f.t.Failed() {
		for _, name := range []string{"out", "log"} {
			text, _ := os.ReadFile(filepath.Join(f.dir, name))
			f.t.Logf("bgpd %s:\n%s", name, text)
		}
	}
}

func (f *frr) try(cmds ...string) (string, error) {
	args := []string{"--vty_socket", f.dir, "-d", "bgpd"}
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("vtysh", args...).CombinedOutput()
	return string(out), err
}

func (f *frr) vty(cmds ...string) string {
	f.t.Helper()
	out, err := f.try(cmds...)
	if err != nil {
		f.t.Fatalf("vtysh %q: %v: %s", cmds, err, out)
	}
	return out
}

// learned is how many routes bgpd has from a neighbour.
func (f *frr) learned(neighbour string) int {
	f.t.Helper()
	var all map[string]struct {
		AddressFamilyInfo map[string]struct {
			AcceptedPrefixCounter int
		}
	}
	out := f.vty("show bgp neighbors " + neighbour + " json")
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		f.t.Fatalf("%v in %s", err, out)
	}
	n, families := 0, 0
	for _, a := range all[neighbour].AddressFamilyInfo {
		families++
		n += a.AcceptedPrefixCounter
	}
	if families == 0 {
		f.t.Fatalf("no families in %s", out)
	}
	return n
}

// gobgpd is a GoBGP server, in a process of its own.
type gobgpd struct {
	*teacher.Teacher
	t    *testing.T
	addr string
}

func startGoBGP(t *testing.T, addr, id string, as uint32) *gobgpd {
	t.Helper()
	return &gobgpd{teacher.Start(t, addr, 179, id, as), t, addr}
}

// peer adds one; change may be nil.
func (g *gobgpd) peer(addr string, as uint32, change func(*api.Peer)) {
	g.t.Helper()
	g.Peer(addr, as, change)
}

// macRoutes tells n type-2 routes, of the router's own address, from number first on.
func (g *gobgpd) macRoutes(first, n int) {
	g.t.Helper()
	for i := first; i < first+n; i++ {
		g.Tell(g.macRoute(i))
	}
}

func (g *gobgpd) macRoute(i int) *api.Path {
	mac := fmt.Sprintf("02:00:00:%02x:%02x:%02x", i>>16&255, i>>8&255, i&255)
	return teacher.MAC{RD: "10.0.0.1", VNI: 100, MAC: mac, NextHop: g.nextHop()}.Path(g.t)
}

func (g *gobgpd) nextHop() string {
	if strings.Contains(g.addr, ":") {
		return "10.0.0.1"
	}
	return g.addr
}

// learned is how many routes GoBGP has from its peers.
func (g *gobgpd) learned() (n int) {
	g.t.Helper()
	seen := 0
	peers, err := g.ListPeer(context.Background(), &api.ListPeerRequest{EnableAdvertised: true})
	for err == nil {
		var r *api.ListPeerResponse
		if r, err = peers.Recv(); err != nil {
			break
		}
		for _, a := range r.Peer.AfiSafis {
			seen++
			n += int(a.State.GetReceived())
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err != nil || seen == 0 {
		g.t.Fatalf("ListPeer: %v, %d families", err, seen)
	}
	return n
}
