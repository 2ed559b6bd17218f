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

func newPeersCmd() *cobra.Command {
	var (
		ctl controller
		out output
	)
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "List the controller's BGP peers, and why one has no session",
		Long: `Peers prints, for each BGP peer of the controller's configuration, the state of its session and since
when, how many routes it taught, for which families it told all that it knows (end of RIB; before,
a route that is not there says nothing), and how often sessions ended (flaps) or did not come about
(failures). Below, it says why the last session of a peer ended or could not begin.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			peers := []report.Peer{}
			err := ctl.ask(cmd, func(ctx context.Context, s *session) error {
				res, err := s.ListPeers(ctx, connect.NewRequest(&dyetracev1.ListPeersRequest{}))
				if err != nil {
					return err
				}
				for _, p := range res.Msg.GetPeers() {
					peers = append(peers, report.NewPeer(p))
				}
				return nil
			})
			if err != nil {
				return err
			}
			return out.print(cmd, peers, func() error { return peersTable(cmd, peers) })
		},
	}
	ctl.flags(cmd)
	ctl.timeoutFlag(cmd)
	out.flags(cmd)
	return cmd
}

func peersTable(cmd *cobra.Command, peers []report.Peer) error {
	now := time.Now()
	t := newTable(cmd, "peer", "as", "state", "since", "routes", "families", "end of rib", "updates", "malformed", "flaps", "failures")
	for _, p := range peers {
		families := strings.Join(p.Families, " ")
		if len(p.MissingFamilies) > 0 {
			families += " (not " + strings.Join(p.MissingFamilies, " ") + ")"
		}
		end := strings.Join(p.EndOfRIB, " ")
		if p.Restarting != nil {
			end = "restarting"
		}
		t.AppendRow([]any{p.Address, p.AS, p.State, ago(p.Since, now), p.Routes, dash(strings.TrimSpace(families)), dash(end),
			p.Updates, p.Malformed, p.Flaps, p.Failures})
	}
	t.Render()
	heading := "\n"
	for _, p := range peers {
		if p.LastError == "" {
			continue
		}
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s%s, %s: %s\n", heading, p.Address, ago(p.LastErrorAt, now), p.LastError); err != nil {
			return err
		}
		heading = ""
	}
	return nil
}
