package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/dyetrace/dyetrace/e2e/lab"
)

// labBusyWait is how long a verb waits for another that has the same lab in hand: as long as
// raising one takes at most on a slow machine.
var labBusyWait = lab.Patience(30 * time.Second)

// labName is the --lab flag of one verb.
type labName struct{ name string }

func (n *labName) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&n.name, "lab", lab.DefaultName, "`NAME` of the lab")
	must(cmd.RegisterFlagCompletionFunc("lab", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		names, err := lab.List()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}))
}

func (n *labName) open() (*lab.Lab, error) {
	l, err := lab.Open(n.name)
	if errors.Is(err, lab.ErrNotFound) {
		return nil, usage(fmt.Errorf("%w; 'dyetrace lab up' raises it", err))
	}
	return l, err
}

func newLabCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Raise a small cloud on this machine, and break it",
		Long: `Lab raises a fabric, hypervisors with Open vSwitch and an overlay, and instances with kernels
of their own, all in namespaces of this machine, with a controller and agents on top.
It needs root, and touches nothing of the host outside of /run/dyetrace/labs ($DYETRACE_LAB_DIR).`,
		Example: `  dyetrace lab up
  dyetrace check --all
  dyetrace lab break tunnel-remote
  dyetrace check blue-1 blue-3
  dyetrace lab heal all
  dyetrace lab down`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newLabUpCmd(), newLabDownCmd(), newLabListCmd(), newLabInspectCmd(),
		newLabBreakCmd(), newLabTruthCmd(), newLabHealCmd(), newLabExecCmd(), newLabInitCmd(), newLabNodeCmd(), newLabListenCmd())
	return cmd
}

func newLabUpCmd() *cobra.Command {
	var (
		name labName
		opts lab.Options
	)
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Raise a lab",
		Long: `Up raises a lab, and returns when all its pairs answer a ping and all its agents have live hooks.
If it fails or is interrupted, nothing is left. Labs with other names can be up beside it, with the
same addresses inside.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.Name, opts.Log = name.name, cmd.ErrOrStderr()
			_, err := lab.Up(cmd.Context(), opts)
			if errors.Is(err, lab.ErrExists) {
				return usage(fmt.Errorf("%w; 'dyetrace lab down' takes it down", err))
			}
			return err
		},
	}
	name.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&opts.Topology, "topology", lab.DefaultName, "`TOPOLOGY`: "+strings.Join(lab.Topologies(), ", "))
	f.StringVar(&opts.Runner, "runner", "", "`RUNNER` that makes the nodes: "+strings.Join(lab.Runners(), ", ")+" (default: $"+lab.RunnerEnv+", else "+lab.Runners()[0]+")")
	f.StringVar(&opts.Datapath, "datapath", "", "`DATAPATH` of the hypervisors' Open vSwitch: "+strings.Join(lab.Datapaths(), ", ")+" (default: $"+lab.DatapathEnv+", else "+lab.Datapaths()[0]+")")
	f.BoolVar(&opts.Bare, "bare", false, "the network only, neither controller nor agents")
	must(cmd.RegisterFlagCompletionFunc("topology", cobra.FixedCompletions(lab.Topologies(), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("datapath", cobra.FixedCompletions(lab.Datapaths(), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("runner", cobra.FixedCompletions(lab.Runners(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func newLabDownCmd() *cobra.Command {
	var (
		name labName
		all  bool
	)
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Take a lab down, whatever state it is in",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names := []string{name.name}
			if all {
				var err error
				if names, err = lab.List(); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), labBusyWait)
			defer cancel()
			var errs []error
			for _, n := range names {
				errs = append(errs, lab.Down(ctx, n))
			}
			return errors.Join(errs...)
		},
	}
	name.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "all labs")
	cmd.MarkFlagsMutuallyExclusive("all", "lab")
	return cmd
}

func newLabExecCmd() *cobra.Command {
	var name labName
	cmd := &cobra.Command{
		Use:   "exec WHERE [--] COMMAND [ARG...]",
		Short: "Run a command in a node or an instance",
		Example: `  dyetrace lab exec blue-1 ping -c 3 10.0.2.12
  dyetrace lab exec hv1 ovs-vsctl show`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: completePlace,
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := name.open()
			if err != nil {
				return err
			}
			where, argv := args[0], args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			c, err := l.Command(cmd.Context(), where, argv...)
			if errors.Is(err, lab.ErrNoPlace) {
				return usage(err)
			}
			if err == nil {
				err = c.Err // nsenter is not there
			}
			if err != nil {
				return fmt.Errorf("lab exec: %w", err)
			}
			// In our place: terminal, signals and exit code are the command's own.
			if err := os.Chdir("/"); err != nil {
				return fmt.Errorf("lab exec: %w", err)
			}
			return fmt.Errorf("lab exec: %s: %w", c.Path, syscall.Exec(c.Path, c.Args, c.Env))
		},
	}
	name.flags(cmd)
	cmd.Flags().SetInterspersed(false) // what follows WHERE is the command's
	return cmd
}

func completePlace(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	l, err := lab.Open(cmd.Flag("lab").Value.String())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	words := l.Topology().Nodes()
	for _, i := range l.Overlay().Instances {
		words = append(words, i.Name)
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// newLabInitCmd is how lab up starts a node's first process.
func newLabInitCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "init DIR NODE",
		Short:  "Be the first process of a node",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE:   func(cmd *cobra.Command, _ []string) error { return lab.RunInit(cmd.Context()) },
	}
}

// newLabListenCmd is how lab break opens a guest's port.
func newLabListenCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "listen VERB INSTANCE",
		Short:  "Open or close a TCP port in the guest that this runs in",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE:   func(_ *cobra.Command, args []string) error { return lab.Listen(args[0], args[1]) },
	}
}

// newLabNodeCmd is what a topology file has a hypervisor run.
func newLabNodeCmd() *cobra.Command {
	var overlay, host string
	cmd := &cobra.Command{
		Use:    "node",
		Short:  "Make a hypervisor of the node, or container, that this runs in",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.SetUpNode(cmd.Context(), overlay, host)
		},
	}
	cmd.Flags().StringVar(&overlay, "overlay", lab.OverlayPath, "`FILE` that describes the overlay")
	cmd.Flags().StringVar(&host, "host", "", "`NAME` of this host in the overlay (default: the hostname)")
	return cmd
}
