package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dyetrace/dyetrace/e2e/lab"
)

// labView is a lab, as `lab list -o json` has it.
type labView struct {
	Name     string       `json:"name"`
	Up       bool         `json:"up"`
	Problem  string       `json:"problem,omitempty"` // why it is not up
	Bare     bool         `json:"bare"`
	Topology string       `json:"topology"`
	Seconds  float64      `json:"seconds"` // that raising it took
	Dir      string       `json:"dir"`
	Broken   []lab.Broken `json:"broken"`
}

func newLabView(name string) (labView, *lab.Lab) {
	v := labView{Name: name, Broken: []lab.Broken{}}
	l, err := lab.Open(name)
	if err != nil {
		v.Problem = err.Error()
		return v, nil
	}
	v.Up, v.Bare, v.Topology, v.Seconds, v.Dir = true, l.Bare(), l.Topology().Name, l.Took().Seconds(), l.Dir()
	if err := l.Alive(); err != nil {
		v.Up, v.Problem = false, err.Error()
	}
	broken, err := l.Broken()
	if err != nil {
		v.Problem = err.Error()
	}
	v.Broken = append(v.Broken, broken...)
	return v, l
}

func newLabListCmd() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the labs of this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := lab.List()
			if err != nil {
				return err
			}
			views := []labView{}
			for _, name := range names {
				v, _ := newLabView(name)
				views = append(views, v)
			}
			return out.print(cmd, views, func() error {
				t := newTable(cmd, "name", "up", "bare", "raised in", "broken", "problem")
				for _, v := range views {
					t.AppendRow([]any{v.Name, v.Up, v.Bare, fmt.Sprintf("%.1fs", v.Seconds), len(v.Broken), dash(v.Problem)})
				}
				t.Render()
				return nil
			})
		},
	}
	out.flags(cmd)
	return cmd
}

// labDetails is a lab with all it consists of, as `lab inspect -o json` has it.
type labDetails struct {
	labView
	Nodes     []lab.NodeInfo `json:"nodes"`
	Instances []labInstance  `json:"instances"`
	Truth     lab.Truth      `json:"truth"` // what all breaks in force do together to tcp over IPv4
}

type labInstance struct {
	Name    string       `json:"name"`
	Network string       `json:"network"`
	IP      string       `json:"ip"`  // the first of them
	IPs     []netip.Addr `json:"ips"` // IPv4 before IPv6
	MAC     string       `json:"mac"`
	Host    string       `json:"host"`
	Tap     string       `json:"tap"`
}

func newLabInspectCmd() *cobra.Command {
	var (
		name labName
		out  output
	)
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "Show a lab's nodes, instances and breaks",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := name.open()
			if err != nil {
				return err
			}
			v := labDetails{Nodes: l.Nodes()}
			v.labView, _ = newLabView(l.Name())
			for _, i := range l.Overlay().Instances {
				ips := i.IP.All()
				v.Instances = append(v.Instances, labInstance{i.Name, i.Network, ips[0].String(), ips, i.MAC.String(), i.Host, i.Tap()})
			}
			if v.Truth, err = l.Truth(lab.TCP4); err != nil {
				return err
			}
			return out.print(cmd, v, func() error { return labDetailsTable(cmd, v) })
		},
	}
	name.flags(cmd)
	out.flags(cmd)
	return cmd
}

func labDetailsTable(cmd *cobra.Command, v labDetails) error {
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "lab %s, topology %s, in %s\n\n", v.Name, v.Topology, v.Dir)
	nodes := newTable(cmd, "node", "pid", "management", "image")
	for _, n := range v.Nodes {
		nodes.AppendRow([]any{n.Name, n.PID, n.Address, n.Image})
	}
	nodes.Render()
	fmt.Fprintln(w)
	instances := newTable(cmd, "instance", "network", "ip", "mac", "host", "tap")
	for _, i := range v.Instances {
		var ips []string
		for _, ip := range i.IPs {
			ips = append(ips, ip.String())
		}
		instances.AppendRow([]any{i.Name, i.Network, strings.Join(ips, ", "), i.MAC, i.Host, i.Tap})
	}
	instances.Render()
	for _, b := range v.Broken {
		fmt.Fprintf(w, "\nbroken: %s %s", b.Kind, b.Target)
	}
	fmt.Fprintln(w)
	printTruth(w, v.Truth)
	return nil
}
