package main

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/report"
)

// completionTimeout is what a person at a shell waits for a tab without wondering.
const completionTimeout = 2 * time.Second

// lister returns words to complete with, each followed by a tab and its meaning.
type lister func(ctx context.Context, s *session) ([]cobra.Completion, error)

// complete makes a completion of what a controller knows. Errors mean no suggestions: a shell
// has no place to show them.
func (c *controller) complete(maxArgs int, list lister) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if maxArgs > 0 && len(args) >= maxArgs {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c.timeout = completionTimeout
		var words []cobra.Completion
		err := c.ask(cmd, func(ctx context.Context, s *session) (err error) {
			words, err = list(ctx, s)
			return err
		})
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

func listInstances(ctx context.Context, s *session) ([]cobra.Completion, error) {
	res, err := s.ListInstances(ctx, connect.NewRequest(&dyetracev1.ListInstancesRequest{}))
	if err != nil {
		return nil, err
	}
	count := make(map[string]int)
	for _, i := range res.Msg.Instances {
		count[i.Name]++
	}
	var words []cobra.Completion
	for _, i := range res.Msg.Instances {
		name := i.Name
		if count[name] > 1 {
			name = i.Network + "/" + i.Name
		}
		words = append(words, cobra.CompletionWithDesc(name, strings.Join(report.NewInstance(i).IPs, ", ")+" on "+i.Host))
	}
	return words, nil
}

func listNetworks(ctx context.Context, s *session) ([]cobra.Completion, error) {
	res, err := s.ListInstances(ctx, connect.NewRequest(&dyetracev1.ListInstancesRequest{}))
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool)
	var words []cobra.Completion
	for _, i := range res.Msg.Instances {
		if !seen[i.Network] {
			seen[i.Network] = true
			words = append(words, i.Network)
		}
	}
	return words, nil
}

func listHosts(ctx context.Context, s *session) ([]cobra.Completion, error) {
	res, err := s.ListHosts(ctx, connect.NewRequest(&dyetracev1.ListHostsRequest{}))
	if err != nil {
		return nil, err
	}
	var words []cobra.Completion
	for _, h := range res.Msg.Hosts {
		words = append(words, h.Name)
	}
	return words, nil
}

func listRuns(ctx context.Context, s *session) ([]cobra.Completion, error) {
	res, err := s.ListRuns(ctx, connect.NewRequest(&dyetracev1.ListRunsRequest{}))
	if err != nil {
		return nil, err
	}
	var words []cobra.Completion
	for _, r := range res.Msg.Runs {
		words = append(words, cobra.CompletionWithDesc(r.Id, report.NewRun(r).Asked()+", "+report.State(r.State)))
	}
	return words, nil
}
