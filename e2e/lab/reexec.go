package lab

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// RunInit is the hidden command "lab init DIR NODE", by which Up starts the first process of a
// node. It blocks until the node is to end. The arguments are for the reader of a process
// list, and for Down to find it.
func RunInit(ctx context.Context) error { return runInit(ctx) }

// Reexec makes any program, a test's too, one that can raise labs: called first in main, it
// returns at once in an ordinary start. If the program was started as a node's init, to set up
// a hypervisor or to open a guest's port, it does that, and exits.
func Reexec() {
	if len(os.Args) < 3 || os.Args[1] != "lab" {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	var err error
	switch os.Args[2] {
	case "init":
		err = RunInit(ctx)
	case "node":
		err = SetUpNode(ctx, OverlayPath, "")
	case "listen":
		if len(os.Args) != 5 {
			return
		}
		err = Listen(os.Args[3], os.Args[4])
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
