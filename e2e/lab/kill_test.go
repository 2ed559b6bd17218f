package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stages are moments of a bare Up: what it says, or what runs in its nodes.
var stages = []struct {
	name string
	line string // of its log
	runs string // a program, besides
}{
	{name: "nodes", line: "nodes:"},
	{name: "links", line: "fabric:"},
	{name: "hypervisors", line: "overlay:"},
	{name: "switches", line: "overlay:", runs: "ovs-vswitchd"},
}

// raiseUntil starts a process that raises a lab, and returns when it has come to a stage.
func raiseUntil(t *testing.T, name string, stage int) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "lab", "raise", name)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for !strings.Contains(lines.Text(), stages[stage].line) {
		if !lines.Scan() {
			t.Fatalf("it ended before it said %q", stages[stage].line)
		}
	}
	go io.Copy(io.Discard, out)
	waitFor(t, stages[stage].runs, func() bool {
		return stages[stage].runs == "" || slices.ContainsFunc(processesOf(t, stateDir(t, name)), func(pid string) bool {
			comm, _ := os.ReadFile("/proc/" + pid + "/comm")
			return strings.TrimSpace(string(comm)) == stages[stage].runs
		})
	})
	return cmd
}

func stateDir(t *testing.T, name string) string {
	t.Helper()
	dir, err := Dir(name)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestKilled kills the raising process without warning: all nodes must end by themselves, and
// what is left of the lab must be no obstacle to the next.
func TestKilled(t *testing.T) {
	for stage := range stages {
		t.Run(stages[stage].name, func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("killed-%d", stage)
			dir := stateDir(t, name)
			cmd := raiseUntil(t, name, stage)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			waitFor(t, "the end of all nodes", func() bool { return len(processesOf(t, dir)) == 0 })
			if _, err := Open(name); err == nil {
				t.Error("Open of an interrupted lab succeeded")
			}
			if stage == len(stages)-1 { // one is enough: raising is what takes time
				up(t, name)
				return
			}
			if err := Down(t.Context(), name); err != nil {
				t.Error(err)
			}
			checkNothingLeft(t, dir)
		})
	}
}

// TestInterrupted stops the raising process by the signals that people and services send: it
// must take down what it raised before it ends.
func TestInterrupted(t *testing.T) {
	for stage, signal := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGINT, unix.SIGTERM} {
		t.Run(stages[stage].name, func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("interrupted-%d", stage)
			cmd := raiseUntil(t, name, stage)
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("it ended with %v, want exit status 1", err)
			}
			checkNothingLeft(t, stateDir(t, name))
		})
	}
}

// TestHalfDead takes down, and raises anew, labs that lost a node or their state.
func TestHalfDead(t *testing.T) {
	t.Parallel()
	l, err := Up(t.Context(), Options{Name: "half-dead", Bare: true})
	if err != nil {
		t.Fatal(err)
	}
	hv, err := l.node("hv1")
	if err != nil {
		t.Fatal(err)
	}
	if err := hv.kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Alive(); err == nil || !strings.Contains(err.Error(), "hv1") {
		t.Errorf("Alive = %v, want an error that names hv1", err)
	}
	if _, err := l.Exec(t.Context(), "hv1", "true"); err == nil || !strings.Contains(err.Error(), "lab down") {
		t.Errorf("Exec in a dead node: %v, want advice", err)
	}
	l = up(t, "half-dead") // over the remains
	checkTruth(t, l)
	if err := os.RemoveAll(l.Dir()); err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), "half-dead"); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, l.Dir())
	if err := Down(t.Context(), "half-dead"); err != nil {
		t.Errorf("Down twice: %v", err)
	}
}

// TestStranger checks that a pid which now belongs to another process is left alone.
func TestStranger(t *testing.T) {
	t.Parallel()
	stranger := exec.Command("sleep", "1000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = stranger.Wait(); close(ended) }()
	now, err := identify("hv1", stranger.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	before := now
	before.Start--
	if before.alive() || !now.alive() {
		t.Errorf("alive: of another start time %v, of its own %v, want false and true", before.alive(), now.alive())
	}
	dir := stateDir(t, "stranger")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := (&state{Name: "stranger", Nodes: []process{before}}).write(dir); err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), "stranger"); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
		t.Error("Down killed a stranger")
	default:
	}
	if err := now.kill(t.Context()); err != nil {
		t.Error(err)
	}
	<-ended
}

// TestBusy checks that commands on one lab wait for each other, and say so when they give up.
func TestBusy(t *testing.T) {
	t.Parallel()
	dir := stateDir(t, "busy")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	held, err := tryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Down(ctx, "busy"); !errors.Is(err, ErrBusy) {
		t.Errorf("Down of a lab in hand: %v, want %v", err, ErrBusy)
	}
	if _, err := Up(t.Context(), Options{Name: "busy", Bare: true}); !errors.Is(err, ErrBusy) {
		t.Errorf("Up of a lab in hand: %v, want %v", err, ErrBusy)
	}
	done := make(chan error)
	go func() { done <- Down(t.Context(), "busy") }()
	held.release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, dir)
}

// TestDaemonDies raises a whole lab with a binary whose controller gives up at once: Up must
// say so, with its last words, and not wait until agents that nobody answers give up, too.
func TestDaemonDies(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "dyetrace")
	script := fmt.Sprintf("#!/bin/sh\ncase $1 in\nlab) exec %s \"$@\" ;;\nserve) echo out of luck >&2; exit 3 ;;\n"+
		"agent | status) exec sleep 1000 ;;\nesac\n", self)
	if err := os.WriteFile(binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = Up(t.Context(), Options{Name: "dies", Binary: binary})
	for _, want := range []string{"controller: dyetrace serve ended: exit status 3", "out of luck"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Up: %v, want %q", err, want)
		}
	}
	checkNothingLeft(t, stateDir(t, "dies"))
}
