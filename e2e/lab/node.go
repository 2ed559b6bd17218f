package lab

import (
	"context"
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
	"golang.org/x/sys/unix"
)

// nodeEnv is the environment of a command in a node: little, and the same on every host.
func nodeEnv(extra map[string]string) []string {
	env := []string{
		"PATH=" + filepath.Join(toolsDir, "bin") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8",
	}
	if term := os.Getenv("TERM"); term != "" {
		env = append(env, "TERM="+term)
	}
	for key, value := range extra {
		env = append(env, key+"="+value)
	}
	slices.Sort(env)
	return env
}

// Command prepares a command that runs in a node, or in an instance (its network, its
// hypervisor's files). When ctx ends, the command and its children are killed. The error wraps
// ErrNoPlace if where names neither.
func (l *Lab) Command(ctx context.Context, where string, argv ...string) (*exec.Cmd, error) {
	if len(argv) == 0 {
		return nil, errors.New("lab: want a command to run")
	}
	node := where
	if i, ok := l.Overlay().Instance(where); ok && !l.Overlay().Bare(i) {
		node = i.Host
		argv = append([]string{"ip", "netns", "exec", where}, argv...)
	}
	p, err := l.node(node)
	if err != nil {
		return nil, err
	}
	args := append([]string{"--target", fmt.Sprint(p.PID), "--mount", "--uts", "--ipc", "--net", "--pid", "--"}, argv...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = nodeEnv(l.topology.Body.Nodes[node].Env)
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd, nil
}

// ErrNoPlace says that a name is neither a node's nor an instance's.
var ErrNoPlace = errors.New("no such node or instance")

// node returns the live init of a node.
func (l *Lab) node(name string) (process, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.state.Nodes, func(p process) bool { return p.Node == name })
	if i < 0 {
		return process{}, fmt.Errorf("%s: %w", name, ErrNoPlace)
	}
	if p := l.state.Nodes[i]; p.alive() {
		return p, nil
	}
	return process{}, fmt.Errorf("node %s is dead: run lab down", name)
}

// Exec runs a command in a node or an instance and returns what it wrote to its standard
// output. The error holds the last of its standard error; it wraps *exec.ExitError if the
// command itself failed.
func (l *Lab) Exec(ctx context.Context, where string, argv ...string) ([]byte, error) {
	return l.exec(ctx, nil, where, argv...)
}

func (l *Lab) exec(ctx context.Context, stdin io.Reader, where string, argv ...string) ([]byte, error) {
	cmd, err := l.Command(ctx, where, argv...)
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd.Stdin, cmd.Stderr = stdin, &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s: %s: %w%s", where, strings.Join(argv, " "), err, lastWords(stderr.String()))
	}
	return out, nil
}

// lastWords returns the end of a command's complaint, to hang on an error.
func lastWords(stderr string) string {
	const most = 2000 // bytes: enough for a tool's own message, short enough for a terminal
	stderr = strings.TrimSpace(stderr)
	if stderr == "" {
		return ""
	}
	return ": " + stderr[max(0, len(stderr)-most):]
}

// all runs f for every name at the same time. It returns when all have ended: the first error,
// which also cancels the others' context; or, if ctx ended, only that.
func all(ctx context.Context, names []string, f func(ctx context.Context, name string) error) error {
	group, inner := errgroup.WithContext(ctx)
	for _, name := range names {
		group.Go(func() error { return f(inner, name) })
	}
	err := group.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
