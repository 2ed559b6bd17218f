package main

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/report"
)

func newRunsCmd() *cobra.Command {
	var (
		ctl    controller
		out    output
		limit  uint32
		before string
	)
	cmd := &cobra.Command{
		Use:   "runs",
		Short: "List runs, newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 1000 {
				return usage(fmt.Errorf("--limit: %d; want 1 to 1000", limit))
			}
			runs := []report.Run{}
			err := ctl.ask(cmd, func(ctx context.Context, s *session) error {
				res, err := s.ListRuns(ctx, connect.NewRequest(&dyetracev1.ListRunsRequest{Limit: limit, Before: before}))
				if err != nil {
					return err
				}
				for _, r := range res.Msg.GetRuns() {
					runs = append(runs, report.NewRun(r))
				}
				return nil
			})
			if err != nil {
				return err
			}
			return out.print(cmd, runs, func() error { return runsTable(cmd, runs) })
		},
	}
	ctl.flags(cmd)
	ctl.timeoutFlag(cmd)
	out.flags(cmd)
	cmd.Flags().Uint32Var(&limit, "limit", 50, "at most this `NUMBER` of runs, up to 1000")
	cmd.Flags().StringVar(&before, "before", "", "only runs older than run `ID`, for the next page")
	must(cmd.RegisterFlagCompletionFunc("before", ctl.complete(0, listRuns)))
	return cmd
}

func runsTable(cmd *cobra.Command, runs []report.Run) error {
	t := newTable(cmd, "run", "started", "scope", "state", "verdict", "pairs", "healthy", "faulty", "silent", "policy", "unknown")
	for _, r := range runs {
		started := "-"
		if r.Started != nil {
			started = r.Started.Local().Format("2006-01-02 15:04:05")
		}
		c := r.Counts
		t.AppendRow([]any{r.Run, started, r.Asked(), r.State, r.Verdict, r.Total, c.Healthy, c.Faulty, c.Silent, c.Policy, c.Unknown})
	}
	t.Render()
	return nil
}

func newRunCmd() *cobra.Command {
	var (
		ctl    controller
		out    output
		resume bool
		cancel bool
		wait   bool
		show   textFlags
	)
	cmd := &cobra.Command{
		Use:   "run ID",
		Short: "Show a run, go on with it, or cancel it",
		Long: `Run prints a run as check does, as far as it has got. Enough of ID to be unique will do.
A run that the controller's end interrupted is gone on with by --resume: verdicts that had fallen
stay, only the other pairs are probed.

Of a continuous run that goes on it shows how long packets took in the last 10 minutes, by part of
their way: of pairs that are drawn, with -v the round trip of healthy ones, with -o json of all.

Exit codes are those of check, for the run shown. --cancel exits 0 once the run is cancelled.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := ctl.dial(cmd)
			if err != nil {
				return err
			}
			defer s.close()
			switch id := args[0]; {
			case resume:
				return resumeRun(cmd, s, id, out, show)
			case cancel:
				return ctl.ask(cmd, func(ctx context.Context, s *session) error {
					_, err := s.CancelRun(ctx, connect.NewRequest(&dyetracev1.CancelRunRequest{Id: id}))
					return err
				})
			case wait:
				return waitRun(cmd, s, id, out, show)
			default:
				return showRun(cmd, &ctl, s, id, out, show)
			}
		},
	}
	ctl.flags(cmd)
	ctl.timeoutFlag(cmd)
	out.flags(cmd)
	f := cmd.Flags()
	f.BoolVar(&resume, "resume", false, "go on with a run that was interrupted, and wait for its end")
	f.BoolVar(&cancel, "cancel", false, "end a run that is under way")
	f.BoolVar(&wait, "wait", false, "wait for the end of a run that is under way; interrupting does not cancel it")
	show.flags(cmd)
	cmd.MarkFlagsMutuallyExclusive("resume", "cancel", "wait")
	cmd.ValidArgsFunction = ctl.complete(1, listRuns)
	return cmd
}

func showRun(cmd *cobra.Command, ctl *controller, s *session, id string, out output, show textFlags) error {
	var check report.Check
	err := ctl.ask(cmd, func(ctx context.Context, s *session) error {
		res, err := s.GetRun(ctx, connect.NewRequest(&dyetracev1.GetRunRequest{Id: id}))
		if err == nil {
			check = report.NewCheck(res.Msg.GetRun(), res.Msg.GetPairs())
		}
		return err
	})
	if err != nil {
		return err
	}
	return printCheck(cmd.Context(), cmd, s, check, out, show)
}

func resumeRun(cmd *cobra.Command, s *session, id string, out output, show textFlags) error {
	res, err := s.ResumeRun(cmd.Context(), connect.NewRequest(&dyetracev1.ResumeRunRequest{Id: id}))
	if err != nil {
		return s.explain(err)
	}
	if res.Msg.GetRun().GetOptions().GetContinuous() {
		return followContinuous(cmd.Context(), cmd, s, res.Msg.GetRun(), out, show)
	}
	return follow(cmd.Context(), cmd, s, res.Msg.GetRun(), out, show)
}

func waitRun(cmd *cobra.Command, s *session, id string, out output, show textFlags) error {
	progress := newProgress(cmd)
	run, pairs, err := watch(cmd.Context(), s, &dyetracev1.Run{Id: id}, progress)
	progress.end()
	if cmd.Context().Err() != nil {
		return &exitError{exitInterrupted, errors.New("interrupted; the run goes on")}
	}
	if err != nil {
		return s.explain(err)
	}
	return printCheck(cmd.Context(), cmd, s, report.NewCheck(run, pairs), out, show)
}
