package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/report"
)

// statusEvery is how often --wait asks again: a question costs the controller microseconds, and
// scripts wait for the answer.
const statusEvery = 50 * time.Millisecond

func newStatusCmd() *cobra.Command {
	var (
		ctl  controller
		out  output
		wait time.Duration
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell whether controller and agents are ready, and what keeps them from it",
		Long: `Status exits 0 if every host that the inventory names has an agent with live hooks, else 4.
BGP peers without a session are problems that it names, and do not keep hosts from being ready.
With --wait it waits for that, also for a controller that is not up yet.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := waitStatus(cmd, &ctl, wait)
			if err != nil {
				return err
			}
			if err := out.print(cmd, status, func() error { return statusTable(cmd, status) }); err != nil {
				return err
			}
			if !status.Ready {
				return &exitError{exitUnreachable, fmt.Errorf("%d of %d hosts are ready", status.HostsReady, status.HostsExpected)}
			}
			return nil
		},
	}
	ctl.flags(cmd)
	ctl.timeoutFlag(cmd)
	out.flags(cmd)
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait for up to this `TIME` until all is ready")
	return cmd
}

// waitStatus asks until all is ready or wait is over, at least once; it returns the last answer.
func waitStatus(cmd *cobra.Command, ctl *controller, wait time.Duration) (report.Status, error) {
	deadline := time.Now().Add(wait)
	for {
		var status report.Status
		err := ctl.ask(cmd, func(ctx context.Context, s *session) error {
			res, err := s.GetStatus(ctx, connect.NewRequest(&dyetracev1.GetStatusRequest{}))
			if err == nil {
				status = report.NewStatus(res.Msg)
			}
			return err
		})
		// Other input would be needed, not time.
		hopeless := err != nil && exitCode(err) != exitUnreachable
		if hopeless || (err == nil && status.Ready) || time.Now().After(deadline) {
			return status, err
		}
		select {
		case <-cmd.Context().Done():
			return status, cmd.Context().Err()
		case <-time.After(statusEvery):
		}
	}
}

func statusTable(cmd *cobra.Command, s report.Status) error {
	w := cmd.OutOrStdout()
	started := "-"
	if s.Started != nil {
		started = s.Started.Local().Format("2006-01-02 15:04:05")
	}
	fmt.Fprintf(w, "controller  %s, since %s\n", s.Version, started)
	fmt.Fprintf(w, "stain       ToS 0x%02x, port %d\n", s.Stain.TOS, s.Stain.Port)
	fmt.Fprintf(w, "hosts       %d of %d ready\n", s.HostsReady, s.HostsExpected)
	fmt.Fprintf(w, "instances   %d, %d pairs\n", s.Instances, s.Pairs)
	_, err := fmt.Fprintf(w, "runs        %d under way\n", s.RunsActive)
	if s.Peers > 0 {
		_, err = fmt.Fprintf(w, "BGP peers   %d of %d established\n", s.PeersEstablished, s.Peers)
	}
	if len(s.Problems) > 0 {
		_, err = fmt.Fprintf(w, "problems    %s\n", strings.Join(s.Problems, "\n            "))
	}
	return err
}
