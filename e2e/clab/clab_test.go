package clab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/e2e/lab"
)

// The environment that e2e/clab/run makes.
var (
	binary       = os.Getenv("DYETRACE_E2E_BINARY")
	containerlab = os.Getenv(lab.ContainerlabEnv)
)

func needContainers(t *testing.T) {
	t.Helper()
	if os.Getenv(lab.RunnerEnv) != lab.Containerlab {
		t.Skip("make e2e-clab runs this test: it needs a Docker Engine, and takes minutes")
	}
	if binary == "" || containerlab == "" {
		t.Fatalf("DYETRACE_E2E_BINARY and %s must be set", lab.ContainerlabEnv)
	}
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 3*time.Minute) // in cleanups, too
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// dockers returns what Docker has: containers and networks, by name.
func dockers(t *testing.T) []string {
	t.Helper()
	all := strings.Fields(command(t, "docker", "ps", "--all", "--format", "{{.Names}}"))
	all = append(all, strings.Fields(command(t, "docker", "network", "ls", "--format", "{{.Name}}"))...)
	slices.Sort(all)
	return all
}

// links returns the names of this network namespace's links.
func links(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestPlainContainerlab deploys every topology that ships, as it is, by hand; a guest reaches another
// over the overlay; and containerlab destroys it.
func TestPlainContainerlab(t *testing.T) {
	needContainers(t)
	pings := map[string][]string{ // topology: node, guest, address
		"racks": {"hv1", "blue-1", "10.0.1.13"},
		"six":   {"hv1", "gold-1", "fd00:8::12"},
		"ovn":   {"hv1", "front-1", "10.0.1.14"},
		"evpn":  {"hv3", "web-5", "10.0.9.21"}, // bare metal
		"scale": nil,                           // racks, with more guests
	}
	for _, topology := range lab.Topologies() {
		t.Run(topology, func(t *testing.T) {
			ping, known := pings[topology]
			if !known {
				t.Fatalf("name two guests of topology %s that reach each other", topology)
			}
			if ping == nil {
				t.Skip("it has no other nodes than racks")
			}
			before, beforeLinks := dockers(t), links(t)
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(filepath.Join("../lab/topologies", topology))); err != nil {
				t.Fatal(err)
			}
			t.Setenv("CLAB_LABDIR_BASE", dir)
			file := filepath.Join(dir, topology+".clab.yml")
			t.Cleanup(func() {
				command(t, containerlab, "destroy", "--cleanup", "--topo", file)
				if after, afterLinks := dockers(t), links(t); !slices.Equal(before, after) || !slices.Equal(beforeLinks, afterLinks) {
					t.Errorf("left behind: %v, links %v; there were %v, links %v", after, afterLinks, before, beforeLinks)
				}
			})
			said := command(t, containerlab, "deploy", "--max-workers", "20", "--topo", file)
			if strings.Contains(said, "level=error") {
				t.Fatalf("containerlab deploy:\n%s", said)
			}
			command(t, "docker", "exec", fmt.Sprintf("clab-%s-%s", topology, ping[0]),
				"ip", "netns", "exec", ping[1], "ping", "-q", "-c", "1", "-i", "0.2", "-w", "30", ping[2])
		})
	}
}

// TestThreeCommands types the first three commands of each page of docs/labs as they stand, in a
// fresh clone, where containerlab is a program of PATH: the third one shows a healthy verdict.
func TestThreeCommands(t *testing.T) {
	needContainers(t)
	pages, err := filepath.Glob("../../docs/labs/*.md")
	if err != nil || len(pages) < 5 {
		t.Fatalf("%d pages in docs/labs: %v", len(pages), err)
	}
	clone, bin := filepath.Join(t.TempDir(), "dyetrace"), t.TempDir()
	// An archive, since git clones no repository of another user's, as root is with sudo.
	command(t, "sh", "-c", `mkdir "$1" && git -C ../.. -c safe.directory='*' archive HEAD | tar -x -C "$1"`, "-", clone)
	// The root of a base image is made once a machine, and is no part of a checkout.
	cached, err := filepath.Abs("../../.cache/clab")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(clone, ".cache"), 0o755), os.Symlink(cached, filepath.Join(clone, ".cache/clab"))); err != nil {
		t.Fatal(err)
	}
	wrapper := fmt.Sprintf("#!/bin/sh\nexec %s \"$@\"\n", containerlab)
	if err := os.WriteFile(filepath.Join(bin, "containerlab"), []byte(wrapper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, variable := range []string{lab.RunnerEnv, lab.ContainerlabEnv} {
		t.Setenv(variable, "")
	}
	t.Chdir(clone)
	for _, page := range pages {
		if filepath.Base(page) == "README.md" {
			continue
		}
		t.Run(filepath.Base(page), func(t *testing.T) { testThreeCommands(t, filepath.Join("docs/labs", filepath.Base(page))) })
	}
}

func testThreeCommands(t *testing.T, page string) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "```console\n")
	if !found {
		t.Fatalf("%s: no commands", page)
	}
	block, _, _ := strings.Cut(rest, "```")
	var said string
	typed := 0
	for line := range strings.Lines(block) {
		typing, is := strings.CutPrefix(line, "# ")
		if !is || typed == 3 {
			continue
		}
		if typed++; strings.Contains(typing, " lab up ") {
			t.Cleanup(func() { command(t, "bin/dyetrace", "lab", "down") })
		}
		said = command(t, "bash", "-c", typing)
	}
	if !strings.Contains(said, "1 healthy") || !strings.Contains(said, "✓") {
		t.Errorf("%s: the third command says no healthy verdict:\n%s", page, said)
	}
}

// raise starts `lab up` of a bare lab and returns when it has said something.
func raise(t *testing.T, name, until string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(binary, "lab", "up", "--bare", "--topology", "six", "--lab", name)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for !strings.Contains(lines.Text(), until) {
		if !lines.Scan() {
			t.Fatalf("lab up ended before it said %q", until)
		}
	}
	go func() {
		for lines.Scan() {
		}
	}()
	return cmd
}

// TestInterrupted ends `lab up` in the middle: after SIGTERM nothing is left; what a SIGKILL leaves,
// `lab down` ends.
func TestInterrupted(t *testing.T) {
	needContainers(t)
	before := dockers(t)
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		name := fmt.Sprintf("e2e-%d-%d", os.Getpid(), signal) // by which the next run knows it, if this one is killed
		cmd := raise(t, name, "nodes:")
		deadline := time.Now().Add(time.Minute)
		for !strings.Contains(strings.Join(dockers(t), " "), "clab-"+name+"-") {
			if time.Now().After(deadline) {
				t.Fatalf("%s: no container appears", name)
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if signal == unix.SIGKILL {
			command(t, binary, "lab", "down", "--lab", name)
		}
		if after := dockers(t); !slices.Equal(before, after) {
			t.Errorf("%s: left behind: %v; there were %v", name, after, before)
		}
		dir, err := lab.Dir(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: state directory: %v, want it gone", name, err)
		}
	}
}
