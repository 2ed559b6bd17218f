package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
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

// labView is a lab, as `lab list -o json` has it.
type labView struct {
	Name     string       `json:"name"`
	Up       bool         `json:"up"`
	Problem  string       `json:"problem,omitempty"` // why it is not up
	Bare     bool         `json:"bare"`
	Topology string       `json:"topology"`
	Seconds  float64      `json:"seconds"` // that raising it took
	Dir      string       `json:"dir"`
	Broken   []lab.Broken `json:"broken"`
}

func newLabView(name string) (labView, *lab.Lab) {
	v := labView{Name: name, Broken: []lab.Broken{}}
	l, err := lab.Open(name)
	if err != nil {
		v.Problem = err.Error()
		return v, nil
	}
	v.Up, v.Bare, v.Topology, v.Seconds, v.Dir = true, l.Bare(), l.Topology().Name, l.Took().Seconds(), l.Dir()
	if err := l.Alive(); err != nil {
		v.Up, v.Problem = false, err.Error()
	}
	broken, err := l.Broken()
	if err != nil {
		v.Problem = err.Error()
	}
	v.Broken = append(v.Broken, broken...)
	return v, l
}

func newLabListCmd() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the labs of this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := lab.List()
			if err != nil {
				return err
			}
			views := []labView{}
			for _, name := range names {
				v, _ := newLabView(name)
				views = append(views, v)
			}
			return out.print(cmd, views, func() error {
				t := newTable(cmd, "name", "up", "bare", "raised in", "broken", "problem")
				for _, v := range views {
					t.AppendRow([]any{v.Name, v.Up, v.Bare, fmt.Sprintf("%.1fs", v.Seconds), len(v.Broken), dash(v.Problem)})
				}
				t.Render()
				return nil
			})
		},
	}
	out.flags(cmd)
	return cmd
}

// labDetails is a lab with all it consists of, as `lab inspect -o json` has it.
type labDetails struct {
	labView
	Nodes     []lab.NodeInfo `json:"nodes"`
	Instances []labInstance  `json:"instances"`
	Truth     lab.Truth      `json:"truth"` // what all breaks in force do together to tcp over IPv4
}

type labInstance struct {
	Name    string       `json:"name"`
	Network string       `json:"network"`
	IP      string       `json:"ip"`  // the first of them
	IPs     []netip.Addr `json:"ips"` // IPv4 before IPv6
	MAC     string       `json:"mac"`
	Host    string       `json:"host"`
	Tap     string       `json:"tap"`
}

func newLabInspectCmd() *cobra.Command {
	var (
		name labName
		out  output
	)
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "Show a lab's nodes, instances and breaks",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := name.open()
			if err != nil {
				return err
			}
			v := labDetails{Nodes: l.Nodes()}
			v.labView, _ = newLabView(l.Name())
			for _, i := range l.Overlay().Instances {
				ips := i.IP.All()
				v.Instances = append(v.Instances, labInstance{i.Name, i.Network, ips[0].String(), ips, i.MAC.String(), i.Host, i.Tap()})
			}
			if v.Truth, err = l.Truth(lab.TCP4); err != nil {
				return err
			}
			return out.print(cmd, v, func() error { return labDetailsTable(cmd, v) })
		},
	}
	name.flags(cmd)
	out.flags(cmd)
	return cmd
}

func labDetailsTable(cmd *cobra.Command, v labDetails) error {
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "lab %s, topology %s, in %s\n\n", v.Name, v.Topology, v.Dir)
	nodes := newTable(cmd, "node", "pid", "management", "image")
	for _, n := range v.Nodes {
		nodes.AppendRow([]any{n.Name, n.PID, n.Address, n.Image})
	}
	nodes.Render()
	fmt.Fprintln(w)
	instances := newTable(cmd, "instance", "network", "ip", "mac", "host", "tap")
	for _, i := range v.Instances {
		var ips []string
		for _, ip := range i.IPs {
			ips = append(ips, ip.String())
		}
		instances.AppendRow([]any{i.Name, i.Network, strings.Join(ips, ", "), i.MAC, i.Host, i.Tap})
	}
	instances.Render()
	for _, b := range v.Broken {
		fmt.Fprintf(w, "\nbroken: %s %s", b.Kind, b.Target)
	}
	fmt.Fprintln(w)
	printTruth(w, v.Truth)
	return nil
}

// labBreakView is one break, as `lab break -o json` has it.
type labBreakView struct {
	lab.BreakKind
	Target string    `json:"target"`
	Truth  lab.Truth `json:"truth"`
	// At is when the lab began to break: nothing of it was in force before.
	At time.Time `json:"at"`
}

func newLabBreakCmd() *cobra.Command {
	var (
		name labName
		out  output
	)
	cmd := &cobra.Command{
		Use:   "break [KIND [TARGET]]",
		Short: "Break a lab, and say what is true from then on; without arguments, list the ways to",
		Long: `Break breaks the lab in one way and prints what that does to probes: for which pairs, which
sampling point is the last to see them, and which the first to miss them. That is the lab's own word;
no verdict of Dyetrace's goes into it. It is about probes of scheme tcp over IPv4; 'dyetrace lab truth'
tells of others. Kinds with cause none lose nothing, but could mislead a probe. With no arguments it
lists all ways, and breaks nothing.`,
		Example: `  dyetrace lab break
  dyetrace lab break drop-flow
  dyetrace lab break drop-flow green-4:blue-1 -o json`,
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: completeBreak,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listBreaks(cmd, out)
			}
			l, err := name.open()
			if err != nil {
				return err
			}
			target := strings.Join(args[1:], "")
			truth, err := l.TruthOf(lab.TCP4, args[0], target)
			if err != nil {
				return usage(err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), labBusyWait)
			defer cancel()
			broken, err := l.Break(ctx, args[0], target)
			if err != nil {
				return err
			}
			v := labBreakView{Target: broken.Target, Truth: truth, At: l.BrokeAt().UTC()}
			for _, k := range lab.BreakKinds() {
				if k.Name == broken.Kind {
					v.BreakKind = k
				}
			}
			return out.print(cmd, v, func() error {
				fmt.Fprintf(cmd.OutOrStdout(), "broken: %s %s: %s\n", v.Name, v.Target, v.Help)
				printTruth(cmd.OutOrStdout(), truth)
				return nil
			})
		},
	}
	name.flags(cmd)
	out.flags(cmd)
	return cmd
}

func listBreaks(cmd *cobra.Command, out output) error {
	kinds := lab.BreakKinds()
	return out.print(cmd, kinds, func() error {
		t := newTable(cmd, "kind", "target", "such as", "topology", "cause", "what happens")
		for _, k := range kinds {
			t.AppendRow([]any{k.Name, k.Form, k.Default, k.Topology, k.Cause, k.Help})
		}
		t.Render()
		return nil
	})
}

func completeBreak(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var words []string
	for _, k := range lab.BreakKinds() {
		switch {
		case len(args) == 0:
			words = append(words, k.Name+"\t"+k.Help)
		case len(args) == 1 && args[0] == k.Name:
			words = append(words, k.Default)
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

func newLabTruthCmd() *cobra.Command {
	var (
		name    labName
		out     output
		scheme  string
		version int
		try     bool
	)
	cmd := &cobra.Command{
		Use:   "truth [KIND [TARGET]]",
		Short: "Say what all breaks in force do to probes, or what one would do",
		Long: `Truth says what all breaks in force do together to probes of a scheme over an IP version: for which
pairs, which sampling point is the last to see them, which the first to miss them, and what the probe
comes to. Pairs that have the version and are not named are healthy. With a kind of break it says what
that alone would do, and breaks nothing.

With --try it has the guests send each other packets of that sort, without a stain, and names the pairs
that fare otherwise than the truth on all breaks in force says. It exits with 1 if there are any.`,
		Example: `  dyetrace lab truth --scheme icmp
  dyetrace lab truth --scheme icmp --try
  dyetrace lab truth security-rule-port green-1 --ip 6 -o json`,
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: completeBreak,
		RunE: func(cmd *cobra.Command, args []string) error {
			traffic, err := lab.NewTraffic(scheme, version)
			if err != nil {
				return usage(err)
			}
			l, err := name.open()
			if err != nil {
				return err
			}
			if try {
				return tryTruth(cmd, l, traffic, args, out)
			}
			var truth lab.Truth
			if len(args) == 0 {
				truth, err = l.Truth(traffic)
			} else if truth, err = l.TruthOf(traffic, args[0], strings.Join(args[1:], "")); err != nil {
				err = usage(err)
			}
			if err != nil {
				return err
			}
			return out.print(cmd, truth, func() error {
				printTruth(cmd.OutOrStdout(), truth)
				return nil
			})
		},
	}
	name.flags(cmd)
	out.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&scheme, "scheme", lab.TCP4.Scheme, "`SCHEME` of the probes: "+strings.Join(lab.Schemes(), ", "))
	f.IntVar(&version, "ip", int(lab.TCP4.IP), "IP `VERSION` of the probes: 4, 6")
	f.BoolVar(&try, "try", false, "hold it against packets that the guests send each other, and name the pairs that differ")
	must(cmd.RegisterFlagCompletionFunc("scheme", cobra.FixedCompletions(lab.Schemes(), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("ip", cobra.FixedCompletions([]string{"4", "6"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// tryTruth holds the truth on all breaks in force against what guests meet.
func tryTruth(cmd *cobra.Command, l *lab.Lab, traffic lab.Traffic, args []string, out output) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("--try is of all breaks in force; want no KIND, not %q", args[0]))
	}
	wrong, err := l.Try(cmd.Context(), traffic)
	if err != nil {
		return err
	}
	err = out.print(cmd, append([]lab.Mistaken{}, wrong...), func() error {
		for _, w := range wrong {
			fmt.Fprintln(cmd.OutOrStdout(), w)
		}
		if len(wrong) == 0 {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: guests meet what the truth says\n", traffic)
		}
		return nil
	})
	if err == nil && len(wrong) > 0 {
		err = &exitError{code: exitFailed}
	}
	return err
}

func printTruth(w io.Writer, t lab.Truth) {
	if len(t.Fates)+len(t.Unseen) == 0 {
		fmt.Fprintf(w, "%s: every pair is whole\n", t.Traffic)
		return
	}
	fmt.Fprintf(w, "%s:\n", t.Traffic)
	point := func(p *lab.Point) string {
		if p == nil {
			return "nowhere"
		}
		return fmt.Sprintf("%s %s %s (%s)", p.Host, p.Bridge, p.Kind, p.Way)
	}
	for _, f := range t.Fates {
		fmt.Fprintf(w, "  %s → %s: %s\n    last seen      %s\n    first missing  %s\n",
			strings.Join(f.Src, ", "), strings.Join(f.Dst, ", "), f.Outcome, point(f.LastSeen), point(&f.FirstMissing))
	}
	for _, r := range t.Unseen {
		fmt.Fprintf(w, "  %s → %s\n    seen everywhere; the answer dies between the last switch and the guest\n",
			strings.Join(r.Src, ", "), strings.Join(r.Dst, ", "))
	}
}

func newLabHealCmd() *cobra.Command {
	var (
		name labName
		out  output
	)
	cmd := &cobra.Command{
		Use:   "heal [KIND | all]",
		Short: "Undo all breaks, or those of one kind",
		Args:  cobra.MaximumNArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			kinds, directive := completeBreak(cmd, args, word)
			return append(kinds, "all"), directive
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := name.open()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), labBusyWait)
			defer cancel()
			healed, err := l.Heal(ctx, strings.Join(args, ""))
			if errors.Is(err, lab.ErrBadBreak) {
				return usage(err)
			}
			if err != nil {
				return err
			}
			return out.print(cmd, append([]lab.Broken{}, healed...), func() error {
				for _, b := range healed {
					fmt.Fprintf(cmd.OutOrStdout(), "healed: %s %s\n", b.Kind, b.Target)
				}
				if len(healed) == 0 {
					fmt.Fprintln(cmd.OutOrStdout(), "nothing to heal")
				}
				return nil
			})
		},
	}
	name.flags(cmd)
	out.flags(cmd)
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
