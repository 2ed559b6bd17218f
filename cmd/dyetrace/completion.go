package main

import (
	"context"
	"slices"
	"strconv"
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

// listMACs returns the MAC addresses of instances.
func listMACs(ctx context.Context, s *session) ([]cobra.Completion, error) {
	return listOfInstances(ctx, s, func(i report.Instance) []string { return []string{i.MAC} })
}

// listIPs returns the IP addresses of instances.
func listIPs(ctx context.Context, s *session) ([]cobra.Completion, error) {
	return listOfInstances(ctx, s, func(i report.Instance) []string { return i.IPs })
}

// listAddresses returns both.
func listAddresses(ctx context.Context, s *session) ([]cobra.Completion, error) {
	return listOfInstances(ctx, s, func(i report.Instance) []string { return append([]string{i.MAC}, i.IPs...) })
}

func listOfInstances(ctx context.Context, s *session, pick func(report.Instance) []string) ([]cobra.Completion, error) {
	res, err := s.ListInstances(ctx, connect.NewRequest(&dyetracev1.ListInstancesRequest{}))
	if err != nil {
		return nil, err
	}
	var words []cobra.Completion
	for _, m := range res.Msg.Instances {
		i := report.NewInstance(m)
		for _, w := range pick(i) {
			words = append(words, cobra.CompletionWithDesc(w, i.Network+"/"+i.Name))
		}
	}
	return words, nil
}

// listVTEPs returns the tunnel addresses of hosts.
func listVTEPs(ctx context.Context, s *session) ([]cobra.Completion, error) {
	res, err := s.ListHosts(ctx, connect.NewRequest(&dyetracev1.ListHostsRequest{}))
	if err != nil {
		return nil, err
	}
	var words []cobra.Completion
	for _, h := range res.Msg.Hosts {
		for _, b := range h.Bridges {
			for _, t := range b.Tunnels {
				w := cobra.CompletionWithDesc(t.LocalIp, h.Name)
				if t.LocalIp != "" && !slices.Contains(words, w) {
					words = append(words, w)
				}
			}
		}
	}
	return words, nil
}

// listVNIs returns the VNIs that routes are in, of as many routes as come in one answer.
func listVNIs(ctx context.Context, s *session) ([]cobra.Completion, error) {
	res, err := s.ListRoutes(ctx, connect.NewRequest(&dyetracev1.ListRoutesRequest{}))
	if err != nil {
		return nil, err
	}
	var words []cobra.Completion
	for _, r := range res.Msg.Routes {
		for _, vni := range r.Vnis {
			if w := strconv.FormatUint(uint64(vni), 10); !slices.Contains(words, w) {
				words = append(words, w)
			}
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
