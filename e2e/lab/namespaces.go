package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// hubName is the hidden node that has the management network's bridge.
const hubName = "mgmt-hub"

// namespaces makes nodes of namespaces of this machine, each held by an init (init.go).
type namespaces struct{}

func (namespaces) name() string { return Namespaces }

// raised is an init that was started here and still hangs on its pipe.
type raised struct {
	process
	pipe io.WriteCloser
}

// release lets the init outlive this process.
func (r raised) release() error {
	_, err := r.pipe.Write([]byte{releaseByte})
	return errors.Join(err, r.pipe.Close())
}

// startInit starts the init of a node and returns when its namespaces are made.
func (l *Lab) startInit(ctx context.Context, node string, binds []bind) (raised, error) {
	config, pipe, err := os.Pipe()
	if err != nil {
		return raised{}, err
	}
	ready, answer, err := os.Pipe()
	if err != nil {
		config.Close()
		pipe.Close()
		return raised{}, err
	}
	defer ready.Close()

	cmd := exec.Command(l.binary, "lab", "init", l.dir, node)
	cmd.Dir = "/"
	cmd.Env = nodeEnv(nil)
	cmd.ExtraFiles = []*os.File{config, answer} // initConfigFD, initReadyFD
	cmd.SysProcAttr = initAttributes()
	err = cmd.Start()
	config.Close()
	answer.Close()
	if err != nil {
		pipe.Close()
		return raised{}, fmt.Errorf("start its init: %w", err)
	}
	go cmd.Wait() // or it stays a zombie for as long as we run
	p, err := identify(node, cmd.Process.Pid)
	if err != nil {
		pipe.Close()
		return raised{}, fmt.Errorf("its init ended at once: %w", err)
	}
	r := raised{process: p, pipe: pipe}
	if err := r.configure(ctx, ready, initConfig{Hostname: node, Binds: binds}); err != nil {
		pipe.Close() // which ends it
		return raised{}, err
	}
	return r, nil
}

func (r raised) configure(ctx context.Context, ready *os.File, cfg initConfig) error {
	line, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	if _, err := r.pipe.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("its init: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		ready.SetReadDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := io.ReadAll(ready)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("its init: %w", err)
	case string(said) != readyWord:
		return fmt.Errorf("its init: %s", orElse(string(said), "ended without a word"))
	}
	return nil
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// initHold are the inits of a lab under way, each on its pipe.
type initHold struct{ inits []raised }

func (h *initHold) release() error {
	for _, r := range h.inits {
		if err := r.release(); err != nil {
			return fmt.Errorf("%s: release: %w", r.Node, err)
		}
	}
	return nil
}

func (h *initHold) drop() {
	for _, r := range h.inits {
		r.pipe.Close()
	}
}

// missing looks for the programs that nodes run on the machine's own files, and names the Debian
// packages of those that are not there.
func (namespaces) missing(l *Lab) error {
	needs := []struct{ program, pkg string }{
		{"ovs-vswitchd", "openvswitch-switch"}, {"ovs-vsctl", "openvswitch-switch"},
		{"ip", "iproute2"}, {"ethtool", "ethtool"}, {"nft", "nftables"},
		{"ping", "iputils-ping"}, {"sysctl", "procps"},
	}
	if l.Overlay().EVPN != nil {
		for _, program := range []string{frrDaemons + "/zebra", frrDaemons + "/bgpd", "vtysh"} {
			needs = append(needs, struct{ program, pkg string }{program, "frr"})
		}
	}
	errs := []error{l.checkOVN()}
	for _, n := range needs {
		errs = append(errs, lookFor(n.program, n.pkg))
	}
	return errors.Join(errs...)
}

// raise starts an init for each node, and one for the hub, makes the links inside of them, and
// runs the topology's commands.
func (namespaces) raise(ctx context.Context, l *Lab, say func(string, ...any)) (hold, error) {
	h := new(initHold)
	say("nodes: %d in namespaces", len(l.topology.Nodes()))
	if err := l.startInits(ctx, h); err != nil {
		return h, err
	}
	say("fabric: %d links", len(l.topology.Body.Links))
	if err := l.wire(); err != nil {
		return h, err
	}
	say("overlay: %d hypervisors, %d instances", len(l.Overlay().Hosts), len(l.Overlay().Instances))
	return h, all(ctx, l.topology.Nodes(), l.runExecs)
}

// startInits starts all inits, and has h hold those that it started, also when it fails.
func (l *Lab) startInits(ctx context.Context, h *initHold) error {
	return all(ctx, append(l.topology.Nodes(), hubName), func(ctx context.Context, name string) error {
		binds, err := l.binds(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		r, err := l.startInit(ctx, name, binds)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		h.inits = append(h.inits, r)
		l.state.Nodes = append(l.state.Nodes, r.process)
		return l.state.write(l.dir)
	})
}

func (l *Lab) runExecs(ctx context.Context, node string) error {
	for _, command := range l.topology.Body.Nodes[node].Exec {
		if _, err := l.Exec(ctx, node, strings.Fields(command)...); err != nil {
			return err
		}
	}
	return nil
}

func (namespaces) remains(_ context.Context, dir string) (int, error) {
	found, err := inits(dir)
	return len(found), err
}

func (namespaces) end(ctx context.Context, l *Lab, recorded []process) error {
	found, err := inits(l.dir)
	if err != nil {
		return err
	}
	for _, p := range recorded {
		if !slices.Contains(found, p) && p.alive() {
			found = append(found, p)
		}
	}
	var group errgroup.Group
	for _, p := range found {
		group.Go(func() error { return p.kill(ctx) })
	}
	return group.Wait()
}

// binds returns what a node sees of the host's files: what its topology says, the binary, and
// the state directory in its place, which the node's own /run would hide.
func (l *Lab) binds(node string) ([]bind, error) {
	binds := []bind{{Source: l.binary, Target: toolsDir + "/bin/dyetrace", ReadOnly: true}}
	if underTmpfs(l.dir) {
		binds = append(binds, bind{Source: l.dir, Target: l.dir})
	}
	for _, text := range l.topology.Body.Nodes[node].Binds {
		b, err := parseBind(text, filepath.Join(l.dir, "topology"))
		if err != nil {
			return nil, err
		}
		binds = append(binds, b)
	}
	return binds, nil
}
