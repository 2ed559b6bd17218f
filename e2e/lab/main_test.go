package lab

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain gives the tests a parent directory of their own for labs, below /run as in real
// life, and makes the test binary one that can raise labs.
func TestMain(m *testing.M) {
	Reexec()
	if len(os.Args) == 4 && os.Args[1] == "lab" && os.Args[2] == "raise" {
		raiseForTest(os.Args[3])
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of e2e/lab raise real labs: run them as root")
		return 1
	}
	dir, err := os.MkdirTemp("/run", "dyetrace-lab-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Setenv(ParentEnv, dir)
	defer takeDown()
	return m.Run()
}

// takeDown takes down what a failed test left up.
func takeDown() {
	names, err := List()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	for _, name := range names {
		if err := Down(context.Background(), name); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// raiseForTest is a process that raises a bare lab and can be killed at any moment.
func raiseForTest(name string) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if _, err := Up(ctx, Options{Name: name, Bare: true, Log: os.Stdout}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
