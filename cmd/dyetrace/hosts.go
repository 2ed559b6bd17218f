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

func newHostsCmd() *cobra.Command {
	var (
		ctl controller
		out output
	)
	cmd := &cobra.Command{
		Use:   "hosts",
		Short: "List hosts, their agents and what these counted",
		Long: `Hosts prints, for each host, its agent, how many of its bridges have a live hook, how many ports
of instances it has, and what the agent counted since its start. Below, it names the ports where
delivery to the guest (to-instance) is not seen, and says why: there the guest's answer stands in
for it, and checks with --no-touch cannot be had.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hosts, err := fetchHosts(cmd, &ctl)
			if err != nil {
				return err
			}
			return out.print(cmd, hosts, func() error { return hostsTable(cmd, hosts) })
		},
	}
	ctl.flags(cmd)
	ctl.timeoutFlag(cmd)
	out.flags(cmd)
	return cmd
}

func fetchHosts(cmd *cobra.Command, ctl *controller) ([]report.Host, error) {
	hosts := []report.Host{}
	err := ctl.ask(cmd, func(ctx context.Context, s *session) error {
		res, err := s.ListHosts(ctx, connect.NewRequest(&dyetracev1.ListHostsRequest{}))
		if err != nil {
			return err
		}
		for _, h := range res.Msg.GetHosts() {
			hosts = append(hosts, report.NewHost(h))
		}
		return nil
	})
	return hosts, err
}

func hostsTable(cmd *cobra.Command, hosts []report.Host) error {
	t := newTable(cmd, "host", "agent", "version", "ovs", "hooks", "ports", "injected", "samples", "rejected", "lost", "repairs", "last seen")
	for _, h := range hosts {
		live, hooked := 0, 0
		for _, b := range h.Bridges {
			hooked++
			if b.Hook == "live" {
				live++
			}
		}
		c := h.Counters
		t.AppendRow([]any{h.Name, agentWords(h), dash(h.Version), dash(h.OVSVersion), fmt.Sprintf("%d/%d", live, hooked),
			len(h.Endpoints), c.Injected, c.Samples, c.Rejected, c.Lost, c.HookRepairs, ago(h.LastSeen, time.Now())})
	}
	t.Render()
	return unsampledList(cmd, hosts)
}

// unsampledList names the ports where delivery is not seen, and says why: it is there that
// no-touch cannot be had.
func unsampledList(cmd *cobra.Command, hosts []report.Host) error {
	heading := "\ndelivery (to-instance) is not seen at\n"
	for _, h := range hosts {
		for _, u := range h.Unsampled() {
			// Names of three tell what kind of ports they are.
			ports := strings.Join(u.Ports[:min(len(u.Ports), 3)], ", ")
			if more := len(u.Ports) - 3; more > 0 {
				ports += fmt.Sprintf(" and %d more", more)
			}
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s  %s/%s %s: %s\n", heading, h.Name, u.Bridge, ports, u.Reason); err != nil {
				return err
			}
			heading = ""
		}
	}
	return nil
}

func agentWords(h report.Host) string {
	switch {
	case h.Connected && h.Expected:
		return "connected"
	case h.Connected:
		return "connected, not in the inventory"
	case h.LastSeen == nil:
		return "never seen"
	}
	return "gone"
}

// ago writes how long before now t was.
func ago(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	d := now.Sub(*t)
	switch {
	case d < 0:
		return "now"
	case d < 10*time.Second:
		return d.Round(100*time.Millisecond).String() + " ago"
	case d < 24*time.Hour:
		return d.Round(time.Second).String() + " ago"
	}
	return t.Local().Format("2006-01-02 15:04")
}

// hookView is one bridge's hook, as `hooks -o json` has it: the bridge with its host.
type hookView struct {
	Host      string `json:"host"`
	Connected bool   `json:"connected"`
	report.Bridge
}

func newHooksCmd() *cobra.Command {
	var (
		ctl controller
		out output
	)
	cmd := &cobra.Command{
		Use:   "hooks",
		Short: "List bridges and the hooks on them",
		Long: `Hooks prints, for each bridge, whether its hook is live, the OpenFlow table that holds it, the
bit by which hooked packets are marked, the dye port, how often the hook was found missing or changed
and was restored (gaps) since the agent's start, and how often that was somebody else's doing
(wipes). A hook that others keep deleting is left alone for a while; the reason says so. A bridge
that cannot be watched is marked with "audited": there a wiped hook is noticed within seconds, or
when somebody probes.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hosts, err := fetchHosts(cmd, &ctl)
			if err != nil {
				return err
			}
			hooks := []hookView{}
			for _, h := range hosts {
				for _, b := range h.Bridges {
					hooks = append(hooks, hookView{h.Name, h.Connected, b})
				}
			}
			return out.print(cmd, hooks, func() error { return hooksTable(cmd, hooks) })
		},
	}
	ctl.flags(cmd)
	ctl.timeoutFlag(cmd)
	out.flags(cmd)
	return cmd
}

func hooksTable(cmd *cobra.Command, hooks []hookView) error {
	t := newTable(cmd, "host", "bridge", "datapath", "hook", "table", "mark", "dye port", "sampling points", "gaps", "wipes", "lost", "why")
	for _, h := range hooks {
		hook := h.Hook
		if !h.Connected {
			hook += " when last seen"
		}
		if h.Hook == "live" && !h.Watched {
			hook += ", audited"
		}
		dye := dash(h.DyePort)
		if h.DyeOFPort != 0 {
			dye = fmt.Sprintf("%s (%d)", h.DyePort, h.DyeOFPort)
		}
		table := "-"
		if h.Table != 0 {
			table = fmt.Sprint(h.Table)
		}
		t.AppendRow([]any{h.Host, h.Name, h.DatapathType, hook, table, dash(h.Mark), dye,
			dash(strings.Join(h.Kinds, " ")), h.Gaps, h.Wipes, h.Lost, h.Reason})
	}
	t.Render()
	return nil
}
