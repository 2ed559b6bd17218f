package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/report"
	"github.com/dyetrace/dyetrace/stain"
)

// routeFlags choose routes, or changes of them.
type routeFlags struct {
	vni           uint32
	mac, ip, vtep string
	limit         uint32
	history       string
	watch         bool
}

func newRoutesCmd() *cobra.Command {
	var (
		ctl controller
		out output
		ask routeFlags
	)
	cmd := &cobra.Command{
		Use:   "routes",
		Short: "List the routes that BGP peers taught, where an address was, and how routes change",
		Long: `Routes prints where the fabric's routing protocol says that addresses are: the EVPN and VPN
routes that BGP peers taught the controller. With --vni and an address it says first where the
address is, all routes weighed together: present, absent (every peer told all that it knows, and
nobody has it), or unknown (the route may be yet to come, or one for it was refused).

--history prints where one address was, and since when it is where it is. --watch prints changes as
they happen, with -o json an object a line, until it is interrupted.`,
		Example: `  dyetrace routes --vni 1001
  dyetrace routes --vni 1001 --mac fa:16:3e:00:01:0b
  dyetrace routes --history 10.0.1.11 --vni 1001
  dyetrace routes --watch --vtep 10.255.2.14`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := ask.check(cmd); err != nil {
				return usage(err)
			}
			switch {
			case ask.history != "":
				return routeHistory(cmd, &ctl, out, ask)
			case ask.watch:
				return watchRoutes(cmd, &ctl, out, ask)
			}
			return listRoutes(cmd, &ctl, out, ask)
		},
	}
	ctl.flags(cmd)
	ctl.timeoutFlag(cmd)
	out.flags(cmd)
	ask.flags(cmd, &ctl)
	return cmd
}

func (r *routeFlags) flags(cmd *cobra.Command, ctl *controller) {
	f := cmd.Flags()
	f.Uint32Var(&r.vni, "vni", 0, "only those of the network with this `VNI`")
	f.StringVar(&r.mac, "mac", "", "only those for this `MAC` address")
	f.StringVar(&r.ip, "ip", "", "only those whose prefix holds this `ADDRESS`")
	f.StringVar(&r.vtep, "vtep", "", "only those that lead to the tunnel endpoint `ADDRESS`")
	f.Uint32Var(&r.limit, "limit", 1000, "at most this `NUMBER` of routes, up to 100000")
	f.StringVar(&r.history, "history", "", "where this MAC or IP `ADDRESS` was")
	f.BoolVar(&r.watch, "watch", false, "print changes as they happen, until interrupted")
	for _, name := range []string{"mac", "ip", "vtep", "limit", "watch"} {
		cmd.MarkFlagsMutuallyExclusive("history", name)
	}
	cmd.MarkFlagsMutuallyExclusive("watch", "limit")
	must(cmd.RegisterFlagCompletionFunc("vni", ctl.complete(0, listVNIs)))
	must(cmd.RegisterFlagCompletionFunc("mac", ctl.complete(0, listMACs)))
	must(cmd.RegisterFlagCompletionFunc("ip", ctl.complete(0, listIPs)))
	must(cmd.RegisterFlagCompletionFunc("vtep", ctl.complete(0, listVTEPs)))
	must(cmd.RegisterFlagCompletionFunc("history", ctl.complete(0, listAddresses)))
	must(cmd.RegisterFlagCompletionFunc("limit", cobra.NoFileCompletions))
}

// check says which flag is wrong; what the controller says names fields.
func (r *routeFlags) check(cmd *cobra.Command) error {
	given := cmd.Flags().Changed
	if given("vni") && (r.vni == 0 || r.vni >= 1<<24) {
		return fmt.Errorf("--vni: %d; want 1 to %d", r.vni, 1<<24-1)
	}
	if r.limit < 1 || r.limit > 100_000 {
		return fmt.Errorf("--limit: %d; want 1 to 100000", r.limit)
	}
	if m, err := stain.ParseMAC(r.mac); given("mac") && (err != nil || m == stain.MAC{}) {
		return fmt.Errorf("--mac: %q; want an address such as fa:16:3e:00:01:0b", r.mac)
	}
	if a, err := netip.ParseAddr(r.ip); given("ip") && (err != nil || a.Zone() != "") {
		return fmt.Errorf("--ip: %q; want an address such as 10.0.1.11", r.ip)
	}
	if a, err := netip.ParseAddr(r.vtep); given("vtep") && (err != nil || a.Zone() != "") {
		return fmt.Errorf("--vtep: %q; want the tunnel address of a host, such as 10.255.2.14", r.vtep)
	}
	if _, _, ok := r.past(); given("history") && !ok {
		return fmt.Errorf("--history: %q; want a MAC or IP address, or a prefix", r.history)
	}
	return nil
}

// past returns the address whose history is asked for, by its kind.
func (r *routeFlags) past() (mac, ip string, ok bool) {
	if m, err := stain.ParseMAC(r.history); err == nil {
		return r.history, "", m != stain.MAC{}
	}
	a, err := netip.ParseAddr(r.history)
	if _, prefix := netip.ParsePrefix(r.history); err != nil && prefix != nil {
		return "", "", false
	}
	return "", r.history, a.Zone() == ""
}

func listRoutes(cmd *cobra.Command, ctl *controller, out output, r routeFlags) error {
	var routes report.Routes
	err := ctl.ask(cmd, func(ctx context.Context, s *session) error {
		res, err := s.ListRoutes(ctx, connect.NewRequest(&dyetracev1.ListRoutesRequest{
			Vni: r.vni, Mac: r.mac, Ip: r.ip, Vtep: r.vtep, Limit: r.limit,
		}))
		if err == nil {
			routes = report.NewRoutes(res.Msg)
		}
		return err
	})
	if err != nil {
		return err
	}
	if more := routes.Total - uint64(len(routes.Routes)); more > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%d more routes; choose by --vni, --mac, --ip or --vtep, or raise --limit\n", more)
	}
	return out.print(cmd, routes, func() error { return routesTable(cmd, r, routes) })
}

func routesTable(cmd *cobra.Command, r routeFlags, routes report.Routes) error {
	w := cmd.OutOrStdout()
	if a := routes.Answer; a != nil {
		address := r.mac
		if address == "" {
			address = r.ip
		}
		fmt.Fprintf(w, "%s in vni %d: %s\n", address, r.vni, answerWords(*a))
		if len(routes.Routes) > 0 {
			fmt.Fprintln(w)
		}
	}
	now := time.Now()
	t := newTable(cmd, "network", "kind", "mac", "address", "vtep", "seq", "marks", "since", "rd", "peer")
	for _, r := range routes.Routes {
		vtep := "-"
		if r.VTEP != nil {
			vtep = r.VTEP.String()
		}
		t.AppendRow([]any{dash(r.Networks()), r.Kind, dash(r.MAC), dash(r.Address()), vtep, r.Sequence, dash(r.Marks()),
			ago(r.Since, now), r.RD, r.Peer})
	}
	if len(routes.Routes) > 0 || routes.Answer == nil {
		t.Render()
	}
	if !routes.Complete {
		_, err := fmt.Fprintln(cmd.ErrOrStderr(), "what is not here is not absent: not every peer told all that it knows (dyetrace peers)")
		return err
	}
	return nil
}

func answerWords(a report.Answer) string {
	if a.State != "present" {
		return a.State
	}
	words := a.State + " at " + a.VTEPs.String()
	if a.Since != nil {
		words += fmt.Sprintf(" since %s, %s", a.Since.Local().Format(time.DateTime), ago(a.Since, time.Now()))
	}
	if a.Sequence > 0 {
		words += ", sequence " + strconv.FormatUint(uint64(a.Sequence), 10)
	}
	if a.Sticky {
		words += ", sticky"
	}
	if a.Stale {
		words += ", stale: its peer restarted and has not said so again"
	}
	return words
}

func routeHistory(cmd *cobra.Command, ctl *controller, out output, r routeFlags) error {
	var history report.History
	err := ctl.ask(cmd, func(ctx context.Context, s *session) error {
		mac, ip, _ := r.past()
		res, err := s.RouteHistory(ctx, connect.NewRequest(&dyetracev1.RouteHistoryRequest{Vni: r.vni, Mac: mac, Ip: ip}))
		if err == nil {
			history = report.NewHistory(res.Msg)
		}
		return err
	})
	if err != nil {
		return err
	}
	return out.print(cmd, history, func() error {
		t := newTable(cmd, "network", "from", "to", "vtep", "seq", "marks")
		for _, s := range history.Stays {
			to, marks := "now", "-"
			if s.To != nil {
				to = moment(*s.To)
			}
			if s.Sticky {
				marks = "sticky"
			}
			t.AppendRow([]any{s.Network(), moment(*s.From), to, s.VTEPs.String(), s.Sequence, marks})
		}
		t.Render()
		if from := history.RememberedFrom; from != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "what ended before %s may be forgotten\n", moment(*from))
		}
		return nil
	})
}

// moment writes a time as exactly as moves need it.
func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05.000") }

func watchRoutes(cmd *cobra.Command, ctl *controller, out output, r routeFlags) error {
	s, err := ctl.dial(cmd)
	if err != nil {
		return err
	}
	defer s.close()
	stream, err := s.WatchRoutes(cmd.Context(), connect.NewRequest(&dyetracev1.WatchRoutesRequest{Vni: r.vni, Mac: r.mac, Ip: r.ip, Vtep: r.vtep}))
	if err != nil {
		return s.explain(err)
	}
	defer stream.Close()
	for begun := false; stream.Receive(); {
		m := stream.Msg()
		if !begun {
			begun = true
			fmt.Fprintln(cmd.ErrOrStderr(), "watching; interrupt to end")
		}
		if n := m.GetMissed(); n > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "%d changes came too fast to be told\n", n)
		}
		if m.GetChange() == nil {
			continue
		}
		if err := printChange(cmd, out, report.NewChange(m.GetChange())); err != nil {
			return err
		}
	}
	if cmd.Context().Err() != nil {
		return &exitError{code: exitInterrupted}
	}
	if err := stream.Err(); err != nil {
		return s.explain(err)
	}
	return &exitError{exitUnreachable, errors.New("the controller ended the watch")}
}

// printChange writes one line, or one document of YAML.
func printChange(cmd *cobra.Command, out output, c report.Change) error {
	w := cmd.OutOrStdout()
	switch out.format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return enc.Encode(c)
	case "yaml":
		if _, err := fmt.Fprintln(w, "---"); err != nil {
			return err
		}
		return out.print(cmd, c, nil)
	}
	_, err := fmt.Fprintf(w, "%s  %s  %s  %s → %s  seq %d\n", moment(*c.At), c.Network(), c.Address(), c.From, c.To, c.Sequence)
	return err
}
