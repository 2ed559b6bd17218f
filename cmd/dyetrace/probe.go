package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/report"
)

// probeFlags say how pairs are probed; the zero value finds everything out.
type probeFlags struct {
	scheme  scheme
	ip      ipVersion
	noTouch bool
	loss    bool
	maxLoss percent

	continuous bool
	rate       float64
	mtu        bool
}

func (p *probeFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Var(&p.scheme, "scheme", "`SCHEME` of the probes: auto (tcp first, icmp where that is not healthy), tcp or icmp")
	f.Var(&p.ip, "ip", "`VERSION` of IP to probe with: auto (4 where both ends have it, else 6), 4 or 6")
	f.BoolVar(&p.noTouch, "no-touch", false, "let no guest see a probe: drop it where it would leave the switch, and check the way back by a probe of its own")
	f.BoolVar(&p.loss, "loss", false, "measure what each pair loses and how long packets take, though its first probe arrives")
	f.Var(&p.maxLoss, "max-loss", "call a pair faulty that loses this `PERCENT` of probes, and healthy one that loses a tenth of it (default 20, with --loss 1)")
	f.BoolVar(&p.continuous, "continuous", false, "go on until interrupted, or --timeout is up, and print each change of a verdict or its cause")
	f.Float64Var(&p.rate, "rate", 0, "with --continuous: let an instance take part in this `NUMBER` of probes a second, at most the controller's own bound")
	must(cmd.RegisterFlagCompletionFunc("rate", cobra.NoFileCompletions))
	must(cmd.RegisterFlagCompletionFunc("max-loss", cobra.NoFileCompletions))
	f.BoolVar(&p.mtu, "mtu", false, "also try packets as large as the instances' MTU allows between the hosts on the way; pairs whose large packets are lost are faulty")
	must(cmd.RegisterFlagCompletionFunc("scheme", cobra.FixedCompletions([]cobra.Completion{
		cobra.CompletionWithDesc("auto", "tcp, and icmp for pairs that are not healthy by it"),
		cobra.CompletionWithDesc("tcp", "a SYN to port 11"),
		cobra.CompletionWithDesc("icmp", "an echo request"),
	}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("ip", cobra.FixedCompletions([]cobra.Completion{
		cobra.CompletionWithDesc("auto", "IPv4 where both ends have it, else IPv6"),
		cobra.CompletionWithDesc("4", "IPv4"),
		cobra.CompletionWithDesc("6", "IPv6"),
	}, cobra.ShellCompDirectiveNoFileComp)))
}

// options returns what is to be asked of the controller.
func (p *probeFlags) options() *dyetracev1.ProbeOptions {
	return &dyetracev1.ProbeOptions{
		Scheme: dyetracev1.Scheme(p.scheme), IpVersion: dyetracev1.IPVersion(p.ip), NoTouch: p.noTouch,
		Loss: p.loss, MaxLoss: float64(p.maxLoss), Continuous: p.continuous, Rate: p.rate, Mtu: p.mtu,
	}
}

// heard returns an error if a run is not probed as was asked. A controller from before there were
// options passes over those that it does not know.
func heard(run *dyetracev1.Run, asked *dyetracev1.ProbeOptions) error {
	want := report.NewOptions(asked)
	if report.NewOptions(run.GetOptions()) == want {
		return nil
	}
	return fmt.Errorf("%s: the controller is too old for it, and began to probe without; want a newer one (dyetrace status shows its version)", want)
}

// percent is a share, written in percent, with or without the sign; the zero value is none.
type percent float64

func (p *percent) String() string {
	if *p == 0 {
		return ""
	}
	return report.Percent(float64(*p))
}

func (p *percent) Set(word string) error {
	n, err := strconv.ParseFloat(strings.TrimSuffix(word, "%"), 64)
	if err != nil || !(n >= 0.1 && n <= 90) {
		return fmt.Errorf("%q is no share; want a number of percent from 0.1 to 90, such as 1", word)
	}
	*p = percent(n / 100)
	return nil
}

func (*percent) Type() string { return "PERCENT" }

// scheme is auto, tcp or icmp; the zero value is auto.
type scheme dyetracev1.Scheme

func (s *scheme) String() string { return report.Scheme(dyetracev1.Scheme(*s), report.Auto) }

func (s *scheme) Set(word string) error {
	for n := range dyetracev1.Scheme_name {
		if word == report.Scheme(dyetracev1.Scheme(n), report.Auto) {
			*s = scheme(n)
			return nil
		}
	}
	return fmt.Errorf("scheme %q is unknown; want auto, tcp or icmp", word)
}

func (*scheme) Type() string { return "SCHEME" }

// ipVersion is auto, 4 or 6; the zero value is auto.
type ipVersion dyetracev1.IPVersion

func (v *ipVersion) String() string { return report.IPVersion(dyetracev1.IPVersion(*v)) }

func (v *ipVersion) Set(word string) error {
	for n := range dyetracev1.IPVersion_name {
		if word == report.IPVersion(dyetracev1.IPVersion(n)) {
			*v = ipVersion(n)
			return nil
		}
	}
	return fmt.Errorf("IP version %q is unknown; want auto, 4 or 6", word)
}

func (*ipVersion) Type() string { return "VERSION" }
