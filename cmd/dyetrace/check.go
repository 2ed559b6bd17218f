package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/report"
)

// grace is what the controller gets beyond the run's own timeout to judge, store and answer.
const grace = 10 * time.Second

func newCheckCmd() *cobra.Command {
	var c check
	cmd := &cobra.Command{
		Use:   "check {SRC DST | --network NETWORK | --host HOST | --all}",
		Short: "Probe pairs of instances and say where and why they do not connect",
		Long:  checkHelp,
		Example: `  dyetrace check blue-1 green-4
  dyetrace check red/10.0.1.11 red-2 -o json
  dyetrace check --network blue --timeout 10s
  dyetrace check blue-1 blue-3 --ip 6 --scheme icmp
  dyetrace check --host hv3 --no-touch
  dyetrace check blue-1 blue-3 --loss --max-loss 5
  dyetrace check --all --continuous
  dyetrace check --all -v`,
		Args: checkArgs,
		RunE: c.run,
	}
	c.ctl.flags(cmd)
	c.out.flags(cmd)
	f := cmd.Flags()
	f.BoolVar(&c.all, "all", false, "every ordered pair that has a path")
	f.StringVar(&c.network, "network", "", "all ordered pairs with an end in `NETWORK`")
	f.StringVar(&c.host, "host", "", "all ordered pairs with an end on `HOST`")
	f.DurationVar(&c.timeout, "timeout", 0, "end the run after this `TIME`, such as 10s; pairs not judged by then are unknown (default: the controller's)")
	c.probe.flags(cmd)
	c.show.flags(cmd)
	cmd.ValidArgsFunction = c.ctl.complete(2, listInstances)
	must(cmd.RegisterFlagCompletionFunc("network", c.ctl.complete(0, listNetworks)))
	must(cmd.RegisterFlagCompletionFunc("host", c.ctl.complete(0, listHosts)))
	return cmd
}

const checkHelp = `Check sends a stained packet from SRC to DST, sees it at every switch on the way there and
back, and prints a verdict. SRC and DST are instances, written NAME, NETWORK/NAME, NETWORK/ADDRESS,
or ADDRESS where only one network has it.

How to probe; scheme and IP version are found out for each pair unless given:
  --scheme auto  for most: tcp, and icmp for pairs that are not healthy by it; the answer says
                 which one it was, and why
  --scheme tcp   to hold security rules and guests to TCP: a SYN to port 11, which the guest's
                 kernel answers whether or not anybody listens
  --scheme icmp  where port 11 is denied or dropped but ping is allowed: an echo request
  --ip 4, 6      where guests have both, and one of them is in doubt; by itself, IPv4 is taken
                 where both ends have it, else IPv6
  --no-touch     where guests must not see a probe: it is dropped where it would leave the switch
                 for the guest, and the way back is checked by a probe of its own. It needs ports
                 where delivery is seen (dyetrace hosts), and cannot tell whether guests answer
  --mtu          where large packets may be lost though small ones pass: packets as large as the
                 instances' ports allow are sent by UDP between the tunnel addresses of each two
                 hosts on the way, once, there and back. A pair between hosts where they are lost
                 is faulty; where that cannot be tried, unknown. With --continuous every 30 s

Loss that is not total: a pair whose first probe arrives is healthy, and takes no other. If the first
is lost more follow: four in a row are a hard fault (where 1 % is lost, chance once in 10⁸ pairs);
if some arrive, a sequential test tells whether the share is too much: 20 % or more is faulty, found
in 9 of 10 such pairs that are looked at, 2 % or less is healthy. That takes 23 more probes if all of
them arrive, 90 at the most: 1 to 5 s at the default pace of 20 a second per instance.
  --loss         to measure each pair, though its first probe arrives: how much it loses, with an
                 interval, and how long packets take, by part of their way. 1 % or more is faulty,
                 0.1 % or less healthy: 521 probes (26 s) where nothing is lost, some 1030 (52 s)
                 at 1 %, 3600 (3 min) at the most. A false alarm once in a million
  --max-loss P   to call P percent too much, and a tenth of it allowed; the number of probes grows as
                 P shrinks, in proportion

Continuous: with --continuous a run goes on until it is interrupted, cancelled (dyetrace run ID
--cancel) or --timeout is up. Pairs are probed in turn, as fast as the pace allows; one whose probe is
lost is probed and explained at once. Each change of a verdict, or of its cause, is printed: a line on
a terminal and in a pipe, with -o json an object a line. Loss is measured all the time, by all pairs
together that share a part of their way: --max-loss is 1 there. --rate slows it down.

Verdicts: healthy; faulty (lost on the way, with the place and the cause); silent (delivered, the
guest did not answer); policy (dropped by a security rule); unknown (we could not see well enough).

Exit codes: 0 all pairs are healthy; 1 one is faulty, silent or policy; 2 the question makes no
sense; 3 none of these, but one is unknown; 4 the controller, or an agent that was needed, is not
reachable; 130 interrupted, which cancels the run. A continuous run whose time is up counts by the
verdicts at its end.`

// check is what was asked of the verb.
type check struct {
	ctl           controller
	out           output
	probe         probeFlags
	show          textFlags
	all           bool
	network, host string
	timeout       time.Duration
}

// run starts a run, and follows it to its end.
func (c *check) run(cmd *cobra.Command, args []string) error {
	if c.timeout < 0 || (c.timeout > 0 && c.timeout < time.Millisecond) {
		return usage(fmt.Errorf("--timeout: %v; want 1ms or more", c.timeout))
	}
	s, err := c.ctl.dial(cmd)
	if err != nil {
		return err
	}
	defer s.close()
	ctx, cancel := bounded(cmd.Context(), c.timeout)
	defer cancel()
	started, err := s.StartRun(ctx, connect.NewRequest(&dyetracev1.StartRunRequest{
		Scope: scopeOf(args, c.network, c.host), TimeoutMs: uint32(c.timeout.Milliseconds()), Options: c.probe.options(),
	}))
	if err != nil {
		return s.explain(err)
	}
	run := started.Msg.GetRun()
	if err := heard(run, c.probe.options()); err != nil {
		return &exitError{exitUsage, fmt.Errorf("%w\n%w", err, endRun(cmd, s, run.GetId()))}
	}
	if c.probe.continuous {
		return followContinuous(ctx, cmd, s, run, c.out, c.show)
	}
	return follow(ctx, cmd, s, run, c.out, c.show)
}

// textFlags say how much of a check to print for people.
type textFlags struct {
	verbose bool
	paths   int
}

func (t *textFlags) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&t.verbose, "verbose", "v", false, "list healthy pairs too, draw every path, and tell all changes of a continuous run")
	cmd.Flags().IntVar(&t.paths, "paths", report.DefaultPaths, "draw the paths of at most this `NUMBER` of pairs, and count the others")
}

// checkArgs wants exactly one scope.
func checkArgs(cmd *cobra.Command, args []string) error {
	var given []string
	for _, name := range []string{"all", "network", "host"} {
		if cmd.Flags().Changed(name) {
			given = append(given, "--"+name)
		}
	}
	switch {
	case len(given) > 1:
		return fmt.Errorf("%s and %s exclude each other; want one scope", given[0], given[1])
	case len(given) == 1 && len(args) > 0:
		return fmt.Errorf("%s and instances exclude each other; want one scope", given[0])
	case len(given) == 1:
		return nil
	case len(args) == 0:
		return errors.New("what to check is missing; want SRC DST, --network NETWORK, --host HOST or --all")
	case len(args) == 1:
		return fmt.Errorf("DST is missing; want two instances, %s and another", args[0])
	case len(args) > 2:
		return fmt.Errorf("%d instances given; want two, SRC and DST", len(args))
	}
	return nil
}

// scopeOf returns the scope that accepted arguments ask for.
func scopeOf(args []string, network, host string) *dyetracev1.Scope {
	switch {
	case len(args) == 2:
		return &dyetracev1.Scope{Scope: &dyetracev1.Scope_Pair{Pair: &dyetracev1.PairScope{Src: args[0], Dst: args[1]}}}
	case network != "":
		return &dyetracev1.Scope{Scope: &dyetracev1.Scope_Network{Network: network}}
	case host != "":
		return &dyetracev1.Scope{Scope: &dyetracev1.Scope_Host{Host: host}}
	}
	return &dyetracev1.Scope{Scope: &dyetracev1.Scope_All{All: true}}
}

// bounded returns a context that ends some time after the run must have ended. Without a timeout
// the controller's own bound on the run holds.
func bounded(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, timeout+grace)
}

// follow watches a run to its end, prints it, and returns its verdict as an error for the exit
// code. When ctx is interrupted it cancels the run.
func follow(ctx context.Context, cmd *cobra.Command, s *session, run *dyetracev1.Run, out output, show textFlags) error {
	progress := newProgress(cmd)
	run, pairs, err := watch(ctx, s, run, progress)
	progress.end()
	if cmd.Context().Err() != nil {
		return cancelRun(cmd, s, run.GetId())
	}
	if err != nil {
		err = s.explain(err)
		return &exitError{exitCode(err), fmt.Errorf("%w\nverdicts so far: dyetrace run %s", err, run.GetId())}
	}
	return printCheck(ctx, cmd, s, report.NewCheck(run, pairs), out, show)
}

// watch collects a run's verdicts until it ends, of a continuous run the last on each pair. The run
// returned is its last known state.
func watch(ctx context.Context, s *session, run *dyetracev1.Run, progress *progress) (*dyetracev1.Run, []*dyetracev1.PairResult, error) {
	stream, err := s.WatchRun(ctx, connect.NewRequest(&dyetracev1.WatchRunRequest{Id: run.GetId()}))
	if err != nil {
		return run, nil, err
	}
	defer stream.Close()
	pairs := make([]*dyetracev1.PairResult, 0, run.GetTotal())
	standing := map[string]int{} // of a continuous run: where in pairs each is
	ended := false
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *dyetracev1.WatchRunResponse_Run:
			run = e.Run
			ended = run.GetState() != dyetracev1.RunState_RUN_STATE_RUNNING
		case *dyetracev1.WatchRunResponse_Pair:
			key := pairKey(e.Pair)
			if i, ok := standing[key]; ok && run.GetOptions().GetContinuous() {
				progress.remove(pairs[i].GetVerdict())
				pairs[i] = e.Pair
			} else {
				standing[key] = len(pairs)
				pairs = append(pairs, e.Pair)
			}
			progress.add(e.Pair.GetVerdict())
		}
		progress.show(run.GetTotal())
	}
	if err := stream.Err(); err != nil {
		return run, pairs, err
	}
	if !ended {
		return run, pairs, connect.NewError(connect.CodeUnavailable, errors.New("it ended the answer before the run had ended"))
	}
	return run, pairs, nil
}

// cancelRun ends a run on behalf of a user who does not wait any longer.
func cancelRun(cmd *cobra.Command, s *session, id string) error {
	return &exitError{exitInterrupted, fmt.Errorf("interrupted; %w", endRun(cmd, s, id))}
}

// endRun cancels a run, and returns what became of it, to be part of an error.
func endRun(cmd *cobra.Command, s *session, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), requestTimeout)
	defer cancel()
	if _, err := s.CancelRun(ctx, connect.NewRequest(&dyetracev1.CancelRunRequest{Id: id})); err != nil {
		return fmt.Errorf("run %s goes on, it could not be cancelled: %w", id, s.explain(err))
	}
	return fmt.Errorf("run %s cancelled", id)
}

// printCheck prints a run with its pairs; the error holds the exit code that goes with it.
func printCheck(ctx context.Context, cmd *cobra.Command, s *session, c report.Check, out output, show textFlags) error {
	err := out.print(cmd, c, func() error {
		w := cmd.OutOrStdout()
		return c.Text(w, report.TextOptions{Color: colors(w), Verbose: show.verbose, Paths: show.paths})
	})
	if err != nil {
		return err
	}
	return concluded(ctx, s, c)
}

// concluded returns the exit code that goes with a run, as an error.
func concluded(ctx context.Context, s *session, c report.Check) error {
	switch c.Verdict {
	case "faulty", "silent", "policy":
		return &exitError{code: exitFailed}
	case "healthy":
		if c.State == "done" && c.Counts.Judged() == c.Total {
			return nil
		}
		return &exitError{exitInconclusive, fmt.Errorf("run %s is %s, with %d of %d pairs judged", c.Run.Run, c.State, c.Counts.Judged(), c.Total)}
	}
	return inconclusive(ctx, s, c)
}

// inconclusive tells a run that saw badly from one that could not look: where a host of a pair
// without a clear verdict has no agent, that is what to mend.
func inconclusive(ctx context.Context, s *session, c report.Check) error {
	hosts, err := s.ListHosts(ctx, connect.NewRequest(&dyetracev1.ListHostsRequest{}))
	if err != nil {
		return s.explain(err)
	}
	gone := make(map[string]bool)
	for _, h := range hosts.Msg.GetHosts() {
		gone[h.GetName()] = !h.GetConnected()
	}
	for _, p := range c.Pairs {
		if p.Verdict != "unknown" {
			continue
		}
		hosts := []string{p.Host}
		for _, sample := range p.Samples {
			hosts = append(hosts, sample.Host)
		}
		for _, h := range hosts {
			if gone[h] {
				return &exitError{exitUnreachable, fmt.Errorf("the agent of %s is not connected", h)}
			}
		}
	}
	return &exitError{code: exitInconclusive}
}
