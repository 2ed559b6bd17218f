package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	// The first signal cancels, and every verb cleans up after itself; the second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	started := false
	root := newRootCmd(&started)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitPass
	}
	if !started {
		err = usage(fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath()))
	}
	var silent *exitError
	if !errors.As(err, &silent) || silent.err != nil {
		fmt.Fprintf(os.Stderr, "dyetrace: %v\n", err)
	}
	return exitCode(err)
}
