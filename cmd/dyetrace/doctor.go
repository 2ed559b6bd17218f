package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"

	"github.com/spf13/cobra"

	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/access"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/doctor"
)

// Where Debian's and everybody else's packages of Open vSwitch have their sockets.
const ovsRunDir = "/run/openvswitch"

func newDoctorCmd() *cobra.Command {
	var (
		ctl   controller
		out   output
		paths doctor.Paths
	)
	cmd := &cobra.Command{
		Use:   "doctor [agent] [lab] [client]",
		Short: "Look whether this machine has what an agent, a lab or a user needs",
		Long: `Doctor makes the checks of a host that runs an agent, of a machine that holds labs, and of one
from which Dyetrace is used. Without arguments it makes those that seem to be meant: agent where
Open vSwitch runs, lab where its programs are or where root asks, client where a controller is
known. It exits 1 if a check fails, and says what to do.`,
		ValidArgs: []string{"agent", "lab", "client"},
		Args:      cobra.OnlyValidArgs,
		RunE: func(cmd *cobra.Command, groups []string) error {
			resolve := func() (access.Context, error) { return access.Resolve(ctl.options) }
			if len(groups) == 0 {
				groups = guessGroups(paths, resolve)
			}
			var checks []doctor.Check
			if slices.Contains(groups, "agent") {
				checks = append(checks, doctor.Agent(paths)...)
			}
			if slices.Contains(groups, "lab") {
				checks = append(checks, doctor.Lab()...)
			}
			if slices.Contains(groups, "client") {
				checks = append(checks, doctor.Client(resolve)...)
			}
			findings := doctor.Run(cmd.Context(), checks)
			if err := out.print(cmd, findings, func() error { return findingsTable(cmd, findings) }); err != nil {
				return err
			}
			if slices.ContainsFunc(findings, func(f doctor.Finding) bool { return f.Result == doctor.Fail }) {
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
	ctl.flags(cmd)
	out.flags(cmd)
	cmd.Flags().StringVar(&paths.DB, "ovsdb", ovsRunDir+"/db.sock", "`SOCKET` of ovsdb-server")
	cmd.Flags().StringVar(&paths.RunDir, "ovs-rundir", ovsRunDir, "`DIRECTORY` of ovs-vswitchd's sockets")
	return cmd
}

// guessGroups returns the groups of checks that make sense on this machine; none makes it client.
func guessGroups(paths doctor.Paths, resolve func() (access.Context, error)) []string {
	var groups []string
	if _, err := os.Stat(paths.DB); err == nil {
		groups = append(groups, "agent")
	}
	if _, err := exec.LookPath("ovs-vswitchd"); err == nil || os.Getuid() == 0 {
		groups = append(groups, "lab")
	}
	if _, err := resolve(); !errors.Is(err, access.ErrNoContext) || len(groups) == 0 {
		groups = append(groups, "client")
	}
	return groups
}

func findingsTable(cmd *cobra.Command, findings []doctor.Finding) error {
	t := newTable(cmd, "for", "check", "result", "detail")
	for _, f := range findings {
		t.AppendRow([]any{f.Group, f.Check, f.Result, f.Detail})
	}
	t.Render()
	for _, f := range findings {
		if f.Fix == "" {
			continue
		}
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "\n%s, %s: %s\n", f.Group, f.Check, f.Fix); err != nil {
			return err
		}
	}
	return nil
}
