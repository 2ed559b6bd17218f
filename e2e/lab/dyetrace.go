package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

const (
	controllerNode = "controller"
	controllerPort = 7443
)

// liveWait bounds the wait for live hooks on every host.
var liveWait = Patience(30 * time.Second)

// tlsFiles is the tls section of all three configuration files.
type tlsFiles struct {
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

func (l *Lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *Lab) tls(name string) tlsFiles {
	return tlsFiles{CA: l.path("pki/ca.crt"), Cert: l.path("pki/" + name + ".crt"), Key: l.path("pki/" + name + ".key")}
}

// ContextFile returns the path of the file that tells the command line how to reach this lab's
// controller (DYETRACE_CONTEXT).
func (l *Lab) ContextFile() string { return l.path("context.yaml") }

// InventoryFile returns the path of the controller's inventory. A bare lab has it, too.
func (l *Lab) InventoryFile() string { return l.path("instances.yaml") }

// LogFile returns the path of the log of a daemon of the lab: serve on the controller's node,
// agent on a hypervisor.
func (l *Lab) LogFile(node, daemon string) string {
	return l.path("log/" + node + "-" + daemon + ".log")
}

// startDyetrace makes certificates and configurations, starts controller and agents, and
// returns when all hooks are live.
func (l *Lab) startDyetrace(ctx context.Context, say func(string, ...any)) error {
	node, ok := l.topology.Body.Nodes[controllerNode]
	if !ok {
		return fmt.Errorf("topology %s: has no node %q: only --bare works", l.topology.Name, controllerNode)
	}
	say("certificates: %s", l.path("pki"))
	if err := l.issueCertificates(ctx, node.MgmtIP); err != nil {
		return err
	}
	address := net.JoinHostPort(node.MgmtIP.String(), fmt.Sprint(controllerPort))
	if err := l.writeConfigs(address); err != nil {
		return err
	}
	say("dyetrace: controller on %s, an agent on each of %d hosts", address, len(l.Overlay().Hosts))
	// The first daemon to end, while we wait for all to be live, is the reason that they never
	// will be.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := l.startDaemon(controllerNode, "serve", cancel); err != nil {
		return err
	}
	for _, h := range l.Overlay().Hosts {
		if err := l.startDaemon(h.Name, "agent", cancel); err != nil {
			return err
		}
	}
	err := l.awaitLive(ctx)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return fmt.Errorf("not all hosts became live (logs: %s): %w", l.path("log"), err)
	}
	return nil
}

// awaitLive returns when all is ready; where there are switches, which nobody ever hears of, when
// all hypervisors are, and the sessions with the reflectors stand.
func (l *Lab) awaitLive(ctx context.Context) error {
	if len(l.base.Switches) == 0 {
		return l.tool(ctx, "status", "--wait", liveWait.String())
	}
	ctx, cancel := context.WithTimeout(ctx, liveWait)
	defer cancel()
	for {
		var status struct {
			HostsReady int `json:"hosts_ready"`
		}
		// It exits with an error for as long as a host is missing.
		out, err := l.answer(ctx, "status", "-o", "json")
		if bad := json.Unmarshal(out, &status); bad == nil && status.HostsReady == len(l.base.Hosts) {
			var heard heardRoutes
			if heard, err = l.heard(ctx); err == nil && heard.Complete {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// heardRoutes is what the controller says of the routes that it learned.
type heardRoutes struct {
	Complete bool // every peer has told all
	Routes   []struct{ VTEP struct{ Address string } }
}

// heard asks the controller for routes, by flags of "dyetrace routes".
func (l *Lab) heard(ctx context.Context, flags ...string) (heard heardRoutes, err error) {
	out, err := l.answer(ctx, append([]string{"routes", "-o", "json"}, flags...)...)
	if err != nil {
		return heard, err
	}
	if err := json.Unmarshal(out, &heard); err != nil {
		return heard, fmt.Errorf("dyetrace routes: %w", err)
	}
	return heard, nil
}

func (l *Lab) issueCertificates(ctx context.Context, controller netip.Addr) error {
	issue := func(args ...string) []string {
		return append([]string{"pki", "issue", "--dir", l.path("pki")}, args...)
	}
	commands := [][]string{
		{"pki", "init", "--dir", l.path("pki"), "--quiet"},
		issue("--role", "controller", "--name", controllerNode, "--san", controller.String(), "--san", controllerNode),
		issue("--role", "user", "--name", "lab"),
	}
	for _, h := range l.Overlay().Hosts {
		commands = append(commands, issue("--role", "agent", "--name", h.Name))
	}
	for _, c := range commands {
		if err := l.tool(ctx, c...); err != nil {
			return err
		}
	}
	return nil
}

// writeInventory writes where instances are now and, unless the lab is bare, returns when the
// controller has read it, knows the port of the one that moved, and has it by its routes at the
// tunnel end that is told.
func (l *Lab) writeInventory(ctx context.Context, moved overlay.Instance, told overlay.Host) error {
	text, err := l.Overlay().Inventory()
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.InventoryFile(), text, 0o644); err != nil || l.Bare() {
		return err
	}
	controllers, err := processesWith(controllerNode, "serve", "--config", l.path(controllerNode+".yaml"))
	if err != nil {
		return err
	}
	for _, p := range controllers {
		if err := p.signal(unix.SIGHUP); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, liveWait)
	defer cancel()
	for {
		ok, err := l.controllerKnows(ctx, moved)
		if ok {
			ok, err = l.controllerHears(ctx, moved, told)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the controller does not learn that %s is on %s: %w", moved.Name, moved.Host, errors.Join(ctx.Err(), err))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (l *Lab) controllerKnows(ctx context.Context, moved overlay.Instance) (bool, error) {
	out, err := l.answer(ctx, "instances", "-o", "json")
	if err != nil {
		return false, err
	}
	var instances []struct {
		Name, Network, Host string
		Endpoint            *struct{}
	}
	if err := json.Unmarshal(out, &instances); err != nil {
		return false, fmt.Errorf("dyetrace instances: %w", err)
	}
	for _, i := range instances {
		if i.Name == moved.Name && i.Network == moved.Network && i.Host == moved.Host && i.Endpoint != nil {
			return true, nil
		}
	}
	return false, nil
}

func (l *Lab) controllerHears(ctx context.Context, moved overlay.Instance, told overlay.Host) (bool, error) {
	heard, err := l.heard(ctx, "--mac", moved.MAC.String())
	for _, r := range heard.Routes {
		if r.VTEP.Address != told.VTEP.Addr().String() {
			return false, fmt.Errorf("dyetrace routes: %s is at %s", moved.Name, r.VTEP.Address)
		}
	}
	return err == nil && len(heard.Routes) > 0, err
}

// tool runs the binary on the host, as a user of this lab would.
func (l *Lab) tool(ctx context.Context, args ...string) error {
	_, err := l.answer(ctx, args...)
	return err
}

// answer is tool for what it writes to its standard output, whether it fails or not.
func (l *Lab) answer(ctx context.Context, args ...string) ([]byte, error) {
	binary := l.binary
	if binary == "" { // a lab that another process raised
		var err error
		if binary, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	var stdout, both bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), "DYETRACE_CONTEXT="+l.ContextFile())
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&stdout, &both), &both
	if err := cmd.Run(); err != nil {
		return stdout.Bytes(), fmt.Errorf("dyetrace %s: %w%s", strings.Join(args, " "), err, lastWords(both.String()))
	}
	return stdout.Bytes(), nil
}

// writeConfigs writes what the controller, the agents and the command line read.
func (l *Lab) writeConfigs(address string) error {
	socket := l.path("api.sock")
	files := map[string]any{
		l.path(controllerNode + ".yaml"): struct {
			Listen, Socket string
			TLS            tlsFiles
			Store          string
			Inventory      []string
			Slow           slowSection `yaml:",inline"`
			BGP            *bgpSection `yaml:"bgp,omitempty"`
		}{address, socket, l.tls(controllerNode), l.path("controller.db"), []string{l.InventoryFile()}, slow(), l.bgp()},
		l.ContextFile(): struct {
			Server     string
			ServerName string `yaml:"server_name"`
			TLS        tlsFiles
		}{"unix://" + socket, controllerNode, l.tls("lab")},
	}
	for _, h := range l.Overlay().Hosts {
		files[l.path(h.Name+".yaml")] = struct {
			Host, Controller string
			TLS              tlsFiles
		}{h.Name, "https://" + address, l.tls(h.Name)}
	}
	for name, content := range files {
		text, err := yaml.Marshal(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// slowSection is what the controller's configuration has on a machine that is slow.
type slowSection struct {
	Heartbeat time.Duration `yaml:"heartbeat,omitempty"`
	Run       *runSection   `yaml:"run,omitempty"`
}

type runSection struct {
	Timeout       time.Duration
	Settle        time.Duration
	Patience      time.Duration
	AnswerTimeout time.Duration `yaml:"answer_timeout"`
	UnderlayRate  int           `yaml:"underlay_rate"`
}

// slow returns the defaults, with patience, as far as the controller's bounds go; nothing on an ordinary
// machine. A host that asks three others all the time does so 600 times a second.
func slow() slowSection {
	if patience == 1 {
		return slowSection{}
	}
	return slowSection{
		Heartbeat: min(Patience(time.Second), time.Minute),
		Run: &runSection{
			Timeout:       Patience(30 * time.Second),
			Settle:        min(Patience(250*time.Millisecond), 10*time.Second),
			Patience:      min(Patience(750*time.Millisecond), 10*time.Second),
			AnswerTimeout: min(Patience(5*time.Second), 10*time.Second),
			UnderlayRate:  max(int(600/patience), 20),
		},
	}
}

// bgpSection is the bgp section of the controller's configuration.
type bgpSection struct {
	RouterID netip.Addr `yaml:"router_id"`
	AS       uint32     `yaml:"as"`
	Listen   string     `yaml:"listen,omitempty"`
	Peers    []bgpPeer  `yaml:"peers"`
}

type bgpPeer struct {
	Address netip.Addr `yaml:"address"`
	AS      uint32     `yaml:"as"`
	Passive bool       `yaml:"passive,omitempty"`
}

// bgp returns what has the controller learn from the reflectors, over the management network; nil
// where there are none.
func (l *Lab) bgp() *bgpSection {
	if l.Overlay().EVPN == nil {
		return nil
	}
	own := l.topology.Body.Nodes[controllerNode].MgmtIP
	section := &bgpSection{RouterID: own, AS: l.Overlay().EVPN.AS}
	for _, r := range l.Overlay().EVPN.Reflectors {
		peer := bgpPeer{l.topology.Body.Nodes[r.Name].MgmtIP, l.Overlay().EVPN.AS, r.Dials == own}
		if peer.Passive {
			section.Listen = net.JoinHostPort(own.String(), "179")
		}
		section.Peers = append(section.Peers, peer)
	}
	return section
}

// startDaemon starts "dyetrace DAEMON --config STATE/NODE.yaml" in a node. It ends with the
// node. Should it end before, died is called with the last of its log.
func (l *Lab) startDaemon(node, daemon string, died func(error)) error {
	log, err := os.Create(l.LogFile(node, daemon))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd, err := l.Command(context.Background(), node, "dyetrace", daemon, "--config", l.path(node+".yaml"))
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // a Ctrl-C is for the raiser
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %s: %w", node, daemon, err)
	}
	go func() {
		err := cmd.Wait()
		text, _ := os.ReadFile(log.Name())
		died(fmt.Errorf("%s: dyetrace %s ended: %v%s", node, daemon, err, lastWords(string(text))))
	}()
	return nil
}
