package main

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/report"
)

func newInstancesCmd() *cobra.Command {
	var (
		ctl     controller
		out     output
		network string
	)
	cmd := &cobra.Command{
		Use:   "instances",
		Short: "List instances and the ports where they are attached",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("network") && network == "" {
				return usage(errors.New("--network: empty; want a network's name"))
			}
			instances := []report.Instance{}
			err := ctl.ask(cmd, func(ctx context.Context, s *session) error {
				res, err := s.ListInstances(ctx, connect.NewRequest(&dyetracev1.ListInstancesRequest{Network: network}))
				if err != nil {
					return err
				}
				for _, i := range res.Msg.GetInstances() {
					instances = append(instances, report.NewInstance(i))
				}
				return nil
			})
			if err != nil {
				return err
			}
			return out.print(cmd, instances, func() error { return instancesTable(cmd, instances) })
		},
	}
	ctl.flags(cmd)
	ctl.timeoutFlag(cmd)
	out.flags(cmd)
	cmd.Flags().StringVar(&network, "network", "", "only those of `NETWORK`")
	must(cmd.RegisterFlagCompletionFunc("network", ctl.complete(0, listNetworks)))
	return cmd
}

func instancesTable(cmd *cobra.Command, instances []report.Instance) error {
	t := newTable(cmd, "network", "instance", "addresses", "mac", "host", "bridge", "port", "link", "source")
	for _, i := range instances {
		bridge, port, link := "-", "not found", "-"
		if e := i.Endpoint; e != nil {
			bridge, port, link = e.Bridge, e.Port, dash(e.LinkState)
		}
		t.AppendRow([]any{i.Network, i.Name, strings.Join(i.IPs, ", "), i.MAC, i.Host, bridge, port, link, i.Source})
	}
	t.Render()
	return nil
}
