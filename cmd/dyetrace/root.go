package main

import (
	"github.com/spf13/cobra"
)

// newRootCmd returns the command with all verbs. started becomes true once cobra has accepted the
// arguments and flags of a verb: errors before that are the user's.
func newRootCmd(started *bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dyetrace",
		Short: "Prove that overlay networks connect, or say where and why they do not",
		Long: `Dyetrace stains one packet, sends it down the very path that a tenant's packet takes,
sees it at every switch that it passes, and says where it died and why.`,
		Example: `  dyetrace check --all
  dyetrace check blue-1 blue-3 -o json
  dyetrace check --host hv3
  dyetrace status --wait 30s`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	cmd.AddGroup(
		&cobra.Group{ID: "check", Title: "Checking:"},
		&cobra.Group{ID: "look", Title: "Looking:"},
		&cobra.Group{ID: "daemon", Title: "Running Dyetrace:"},
	)
	group := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			cmd.AddCommand(c)
		}
	}
	group("check", newCheckCmd(), newRunCmd(), newRunsCmd())
	group("look", newStatusCmd(), newHostsCmd(), newInstancesCmd(), newHooksCmd(), newUnderlayCmd(), newRoutesCmd(), newPeersCmd(), newDoctorCmd())
	group("daemon", newServeCmd(), newAgentCmd(), newPKICmd(), newLabCmd())
	cmd.AddCommand(newVersionCmd())
	noteStart(cmd, started)
	return cmd
}

// noteStart makes every verb set started when it begins. A pre-run hook would come before cobra
// looks at required and exclusive flags.
func noteStart(cmd *cobra.Command, started *bool) {
	if runE := cmd.RunE; runE != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*started = true
			return runE(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		noteStart(sub, started)
	}
}
