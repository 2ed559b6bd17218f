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

func newUnderlayCmd() *cobra.Command {
	var (
		ctl     controller
		out     output
		verbose bool
		ask     dyetracev1.ProbeUnderlayRequest
	)
	cmd := &cobra.Command{
		Use:   "underlay HOST HOST",
		Short: "Try the network under the tunnels between two hosts: loss by source port, round trip, path MTU",
		Long: `Underlay has the first host's agent send UDP packets from its tunnel address to that of the second, whose
agent sends each back: small ones, and some as large as the tunnels' packets are, none to be fragmented,
from many source ports, by which routers choose among equal-cost paths. The second host says which came,
so that a loss on the way there is told from one on the way back. If large ones are lost, it looks for the
largest that passes.

It tries what the tunnels need of the network and not the tunnels: GRE may be dropped where UDP passes.
Firewalls must let UDP pass to the agents' port (underlay_port, 7443) between tunnel addresses.

Exit codes: 0 nothing was lost; 1 something was; 2 the question makes no sense; 3 nothing was found out;
4 the controller, or one of the two agents, is not reachable.`,
		Example: `  dyetrace underlay hv1 hv3
  dyetrace underlay hv1 hv3 --size 9000 -v
  dyetrace underlay hv3 hv1 --repeats 64 -o json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%d hosts given; want two, the one that sends and the one that answers", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ask.SrcHost, ask.DstHost = args[0], args[1]
			var u *report.Underlay
			err := ctl.ask(cmd, func(ctx context.Context, s *session) error {
				res, err := s.ProbeUnderlay(ctx, connect.NewRequest(&ask))
				if err == nil {
					u = report.NewUnderlay(res.Msg.GetCheck())
				}
				return err
			})
			if err != nil {
				return err
			}
			if err := out.print(cmd, u, func() error { return u.Text(cmd.OutOrStdout(), verbose) }); err != nil {
				return err
			}
			switch {
			case u.Error != "":
				return &exitError{exitInconclusive, errors.New(u.Error)}
			case u.Lost():
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
	ctl.flags(cmd)
	ctl.timeoutFlag(cmd)
	out.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&ask.SrcIp, "src-ip", "", "tunnel `ADDRESS` of the first host (default: the one of the tunnel)")
	f.StringVar(&ask.DstIp, "dst-ip", "", "tunnel `ADDRESS` of the second host (default: its first)")
	f.StringVar(&ask.Tunnel, "tunnel", "", "tunnel `PORT` of the first host whose packets to be like (default: the one that adds most to a packet)")
	f.Uint32Var(&ask.Size, "size", 0, "`BYTES` of the large IP packets (default: what the instances' MTU makes of the largest tunnel)")
	f.Uint32Var(&ask.SourcePorts, "ports", 0, "`NUMBER` of source ports, at most 128 (default 32)")
	f.Uint32Var(&ask.Repeats, "repeats", 0, "send the small packets so `MANY` times from each port, at most 64 (default 4)")
	f.Uint32Var(&ask.Tos, "tos", 0, "`TOS` of the packets, 1 to 255 (default: what the tunnel makes of a probe's)")
	f.BoolVarP(&verbose, "verbose", "v", false, "show source ports that lost nothing too")
	cmd.ValidArgsFunction = ctl.complete(2, listHosts)
	return cmd
}
