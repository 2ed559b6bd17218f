package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Sentinels that callers branch on.
var (
	ErrNotFound = errors.New("no such lab")         // there is no lab of that name
	ErrExists   = errors.New("is up already")       // lab up of a lab that stands
	ErrBusy     = errors.New("another command has") // another process holds the lab's lock
)

const (
	defaultParent = "/run/dyetrace/labs"
	// ParentEnv names the environment variable that overrides where labs keep their state.
	ParentEnv = "DYETRACE_LAB_DIR"
)

const nameRule = "1 to 32 lower-case letters, digits and dashes, a letter or digit first"

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// Dir returns the state directory of a lab, whether it is there or not.
func Dir(name string) (string, error) {
	if !nameRE.MatchString(name) {
		return "", fmt.Errorf("lab: name %q: want %s", name, nameRule)
	}
	parent := os.Getenv(ParentEnv)
	if parent == "" {
		parent = defaultParent
	}
	abs, err := filepath.Abs(parent)
	if err != nil {
		return "", fmt.Errorf("lab: %s: %w", ParentEnv, err)
	}
	return filepath.Join(abs, name), nil
}

// state is what a lab's state.json holds.
type state struct {
	Name     string
	Topology string
	Runner   string // what nodes are made of
	Bare     bool
	Ready    bool    // the whole lab stood once
	Seconds  float64 // how long raising it took
	Nodes    []process
	Broken   []Broken
}

// process is a node's first one. A pid alone is no identity: it is used again after its process ended.
type process struct {
	Node  string
	PID   int
	Start uint64 // clock ticks after boot, proc(5) /proc/pid/stat field 22
}

// Broken is a break in force.
type Broken struct {
	Kind   string `json:"kind"`
	Target string `json:"target"`
}

func statePath(dir string) string { return filepath.Join(dir, "state.json") }

func readState(dir string) (*state, error) {
	text, err := os.ReadFile(statePath(dir))
	if err != nil {
		return nil, err
	}
	s := new(state)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("%s: %w", statePath(dir), err)
	}
	return s, nil
}

// write replaces state.json in one step, so that no reader sees half of it.
func (s *state) write(dir string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := statePath(dir) + ".new"
	if err := os.WriteFile(tmp, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, statePath(dir))
}

// dirLock is the lock on a lab: a lock on its directory, which ends with the process.
type dirLock struct{ f *os.File }

func (l dirLock) release() { l.f.Close() }

// lock waits for the lab's lock until ctx ends. The error wraps ErrNotFound if there is no
// such lab, ErrBusy if ctx ended first.
func lock(ctx context.Context, dir string) (dirLock, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		l, err := tryLock(dir)
		if !errors.Is(err, ErrBusy) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return dirLock{}, err
		case <-time.After(wait):
		}
	}
}

func tryLock(dir string) (dirLock, error) {
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return dirLock{}, ErrNotFound
	}
	if err != nil {
		return dirLock{}, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return dirLock{}, fmt.Errorf("%w %s in hand", ErrBusy, dir)
		}
		return dirLock{}, fmt.Errorf("lock %s: %w", dir, err)
	}
	// The directory may have been removed, or made anew, while we waited.
	held, errHeld := f.Stat()
	there, errThere := os.Stat(dir)
	if errHeld != nil || errThere != nil || !os.SameFile(held, there) {
		f.Close()
		return dirLock{}, ErrNotFound
	}
	return dirLock{f}, nil
}

// identify returns the process that has a pid now.
func identify(node string, pid int) (process, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// The second field, a name in parentheses, may hold anything: count from its end.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const state, start = 0, 22 - 3 // proc(5) counts from 1, and the third field is now the first
	if len(fields) <= start {
		return process{}, fmt.Errorf("/proc/%d/stat: %d fields after the name", pid, len(fields))
	}
	if fields[state] == "Z" || fields[state] == "X" {
		return process{}, os.ErrProcessDone
	}
	ticks, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("/proc/%d/stat: start time: %w", pid, err)
	}
	return process{Node: node, PID: pid, Start: ticks}, nil
}

// alive reports whether the very process still runs.
func (p process) alive() bool {
	now, err := identify(p.Node, p.PID)
	return err == nil && now == p
}

// kill ends the process, and with it everything in the namespaces it holds, and returns when
// they are gone. That it is gone already is no error.
func (p process) kill(ctx context.Context) error {
	return p.withPidfd(unix.SIGKILL, func(fd int) error {
		for {
			// A pidfd becomes readable when the process has ended, for a pid namespace's first
			// process: when all others in it have (pidfd_open(2), pid_namespaces(7)).
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
			if n > 0 {
				return nil
			}
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("node %s: wait for its end: %w", p.Node, err)
			}
			if ctx.Err() != nil {
				return fmt.Errorf("node %s: process %d does not end: %w", p.Node, p.PID, ctx.Err())
			}
		}
	})
}

// signal sends a signal to the very process. That it is gone is no error.
func (p process) signal(s unix.Signal) error {
	return p.withPidfd(s, func(int) error { return nil })
}

// withPidfd sends a signal to the very process, and goes on with a pidfd of it. That it is gone is no
// error, and there is nothing to go on with.
func (p process) withPidfd(s unix.Signal, then func(fd int) error) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("node %s: pidfd: %w", p.Node, err)
	}
	defer unix.Close(fd)
	if !p.alive() { // asked with the pidfd open: from here on it cannot be another
		return nil
	}
	if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("node %s: %v: %w", p.Node, s, err)
	}
	return then(fd)
}

// inits returns all inits of a lab that run: those that say so themselves by their arguments,
// whatever became of state.json.
func inits(dir string) ([]process, error) {
	return processes(func(args []string) (node string, ok bool) {
		if len(args) != 4 || !slices.Equal(args[:3], []string{"lab", "init", dir}) {
			return "", false
		}
		return args[3], true
	})
}

// processesWith returns the processes of a node that have these arguments.
func processesWith(node string, args ...string) ([]process, error) {
	return processes(func(have []string) (string, bool) { return node, slices.Equal(have, args) })
}

// processes returns the processes whose arguments, without the program's name, say that they are
// what is looked for.
func processes(is func(args []string) (node string, ok bool)) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // it ended meanwhile
		}
		args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
		node, ok := is(args[1:])
		if !ok {
			continue
		}
		if p, err := identify(node, pid); err == nil {
			found = append(found, p)
		}
	}
	return found, nil
}
