package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dyetrace/dyetrace/e2e/lab"
)

// labBreakView is one break, as `lab break -o json` has it.
type labBreakView struct {
	lab.BreakKind
	Target string    `json:"target"`
	Truth  lab.Truth `json:"truth"`
	// At is when the lab began to break: nothing of it was in force before.
	At time.Time `json:"at"`
}

func newLabBreakCmd() *cobra.Command {
	var (
		name labName
		out  output
	)
	cmd := &cobra.Command{
		Use:   "break [KIND [TARGET]]",
		Short: "Break a lab, and say what is true from then on; without arguments, list the ways to",
		Long: `Break breaks the lab in one way and prints what that does to probes: for which pairs, which
sampling point is the last to see them, and which the first to miss them. That is the lab's own word;
no verdict of Dyetrace's goes into it. It is about probes of scheme tcp over IPv4; 'dyetrace lab truth'
tells of others. Kinds with cause none lose nothing, but could mislead a probe. With no arguments it
lists all ways, and breaks nothing.`,
		Example: `  dyetrace lab break
  dyetrace lab break drop-flow
  dyetrace lab break drop-flow green-4:blue-1 -o json`,
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: completeBreak,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listBreaks(cmd, out)
			}
			l, err := name.open()
			if err != nil {
				return err
			}
			target := strings.Join(args[1:], "")
			truth, err := l.TruthOf(lab.TCP4, args[0], target)
			if err != nil {
				return usage(err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), labBusyWait)
			defer cancel()
			broken, err := l.Break(ctx, args[0], target)
			if err != nil {
				return err
			}
			v := labBreakView{Target: broken.Target, Truth: truth, At: l.BrokeAt().UTC()}
			for _, k := range lab.BreakKinds() {
				if k.Name == broken.Kind {
					v.BreakKind = k
				}
			}
			return out.print(cmd, v, func() error {
				fmt.Fprintf(cmd.OutOrStdout(), "broken: %s %s: %s\n", v.Name, v.Target, v.Help)
				printTruth(cmd.OutOrStdout(), truth)
				return nil
			})
		},
	}
	name.flags(cmd)
	out.flags(cmd)
	return cmd
}

func listBreaks(cmd *cobra.Command, out output) error {
	kinds := lab.BreakKinds()
	return out.print(cmd, kinds, func() error {
		t := newTable(cmd, "kind", "target", "such as", "topology", "cause", "what happens")
		for _, k := range kinds {
			t.AppendRow([]any{k.Name, k.Form, k.Default, k.Topology, k.Cause, k.Help})
		}
		t.Render()
		return nil
	})
}

func completeBreak(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var words []string
	for _, k := range lab.BreakKinds() {
		switch {
		case len(args) == 0:
			words = append(words, k.Name+"\t"+k.Help)
		case len(args) == 1 && args[0] == k.Name:
			words = append(words, k.Default)
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

func newLabTruthCmd() *cobra.Command {
	var (
		name    labName
		out     output
		scheme  string
		version int
		try     bool
	)
	cmd := &cobra.Command{
		Use:   "truth [KIND [TARGET]]",
		Short: "Say what all breaks in force do to probes, or what one would do",
		Long: `Truth says what all breaks in force do together to probes of a scheme over an IP version: for which
pairs, which sampling point is the last to see them, which the first to miss them, and what the probe
comes to. Pairs that have the version and are not named are healthy. With a kind of break it says what
that alone would do, and breaks nothing. With -o json it also says what each break changed: the host, the
port, and the flows that are new or gone.

With --try it has the guests send each other packets of that sort, without a stain, and names the pairs
that fare otherwise than the truth on all breaks in force says. It exits with 1 if there are any.`,
		Example: `  dyetrace lab truth --scheme icmp
  dyetrace lab truth --scheme icmp --try
  dyetrace lab truth security-rule-port green-1 --ip 6 -o json`,
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: completeBreak,
		RunE: func(cmd *cobra.Command, args []string) error {
			traffic, err := lab.NewTraffic(scheme, version)
			if err != nil {
				return usage(err)
			}
			l, err := name.open()
			if err != nil {
				return err
			}
			if try {
				return tryTruth(cmd, l, traffic, args, out)
			}
			var truth lab.Truth
			if len(args) == 0 {
				truth, err = l.Truth(traffic)
			} else if truth, err = l.TruthOf(traffic, args[0], strings.Join(args[1:], "")); err != nil {
				err = usage(err)
			}
			if err != nil {
				return err
			}
			return out.print(cmd, truth, func() error {
				printTruth(cmd.OutOrStdout(), truth)
				return nil
			})
		},
	}
	name.flags(cmd)
	out.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&scheme, "scheme", lab.TCP4.Scheme, "`SCHEME` of the probes: "+strings.Join(lab.Schemes(), ", "))
	f.IntVar(&version, "ip", int(lab.TCP4.IP), "IP `VERSION` of the probes: 4, 6")
	f.BoolVar(&try, "try", false, "hold it against packets that the guests send each other, and name the pairs that differ")
	must(cmd.RegisterFlagCompletionFunc("scheme", cobra.FixedCompletions(lab.Schemes(), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("ip", cobra.FixedCompletions([]string{"4", "6"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// tryTruth holds the truth on all breaks in force against what guests meet.
func tryTruth(cmd *cobra.Command, l *lab.Lab, traffic lab.Traffic, args []string, out output) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("--try is of all breaks in force; want no KIND, not %q", args[0]))
	}
	wrong, err := l.Try(cmd.Context(), traffic)
	if err != nil {
		return err
	}
	err = out.print(cmd, append([]lab.Mistaken{}, wrong...), func() error {
		for _, w := range wrong {
			fmt.Fprintln(cmd.OutOrStdout(), w)
		}
		if len(wrong) == 0 {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: guests meet what the truth says\n", traffic)
		}
		return nil
	})
	if err == nil && len(wrong) > 0 {
		err = &exitError{code: exitFailed}
	}
	return err
}

func printTruth(w io.Writer, t lab.Truth) {
	if len(t.Fates)+len(t.Unseen)+len(t.Losses)+len(t.Maybe)+len(t.Large) == 0 {
		fmt.Fprintf(w, "%s: every pair is whole\n", t.Traffic)
		return
	}
	fmt.Fprintf(w, "%s:\n", t.Traffic)
	for _, f := range t.Fates {
		printFate(w, f, f.Outcome)
	}
	printReaches(w, t.Unseen, "seen everywhere; the answer dies between the last switch and the guest")
	for _, l := range t.Losses {
		share := fmt.Sprintf("%g %% of its probes, by chance", float64(l.PerMille)/10)
		if l.PerMille == 0 {
			share = "some of its probes, the more the more packets there are"
		}
		printFate(w, l.Fate, l.Outcome+", "+share)
	}
	for _, f := range t.Maybe {
		printFate(w, f, "maybe; nobody chose what in a packet tells whether it is hit")
	}
	for _, f := range t.Large {
		printFate(w, f, "probes pass; packets as large as guests may send do not")
	}
}

// printFate says of which pairs what dies, and where.
func printFate(w io.Writer, f lab.Fate, what string) {
	point := func(p *lab.Point) string {
		if p == nil {
			return "nowhere"
		}
		return fmt.Sprintf("%s %s %s (%s)", p.Host, p.Bridge, p.Kind, p.Way)
	}
	fmt.Fprintf(w, "  %s → %s: %s\n    last seen      %s\n    first missing  %s\n",
		strings.Join(f.Src, ", "), strings.Join(f.Dst, ", "), what, point(f.LastSeen), point(&f.FirstMissing))
}

func printReaches(w io.Writer, all []lab.Reach, what string) {
	for _, r := range all {
		fmt.Fprintf(w, "  %s → %s\n    %s\n", strings.Join(r.Src, ", "), strings.Join(r.Dst, ", "), what)
	}
}

func newLabHealCmd() *cobra.Command {
	var (
		name labName
		out  output
	)
	cmd := &cobra.Command{
		Use:   "heal [KIND | all]",
		Short: "Undo all breaks, or those of one kind",
		Args:  cobra.MaximumNArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			kinds, directive := completeBreak(cmd, args, word)
			return append(kinds, "all"), directive
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := name.open()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), labBusyWait)
			defer cancel()
			healed, err := l.Heal(ctx, strings.Join(args, ""))
			if errors.Is(err, lab.ErrBadBreak) {
				return usage(err)
			}
			if err != nil {
				return err
			}
			return out.print(cmd, append([]lab.Broken{}, healed...), func() error {
				for _, b := range healed {
					fmt.Fprintf(cmd.OutOrStdout(), "healed: %s %s\n", b.Kind, b.Target)
				}
				if len(healed) == 0 {
					fmt.Fprintln(cmd.OutOrStdout(), "nothing to heal")
				}
				return nil
			})
		},
	}
	name.flags(cmd)
	out.flags(cmd)
	return cmd
}
