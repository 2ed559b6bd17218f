package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dyetrace/dyetrace/pki"
)

func newPKICmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "Make certificates for controller, agents and users",
		Long: `A small certificate authority for labs and small sites: a directory with ca.crt, ca.key and what
was issued. Sites with a CA of their own can use that; docs/certificates.md says what a certificate
must hold.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPKIInitCmd(), newPKIIssueCmd(), newPKIShowCmd())
	return cmd
}

func newPKIInitCmd() *cobra.Command {
	var (
		dir   string
		quiet bool
	)
	cmd := &cobra.Command{
		Use:     "init",
		Short:   "Make a certificate authority; never overwrites one",
		Example: "  dyetrace pki init --dir /etc/dyetrace/pki",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ca, err := pki.CreateCA(dir, time.Now())
			if err != nil {
				return usage(err)
			}
			if quiet {
				return nil
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s, valid to %s\nKeep %s to yourself: who has it can be anybody.\n",
				filepath.Join(dir, "ca.crt"), ca.Certificate().NotAfter.Format(time.DateOnly), filepath.Join(dir, "ca.key"))
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`DIRECTORY` of the CA (required)")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	must(cmd.MarkFlagRequired("dir"))
	must(cmd.MarkFlagDirname("dir"))
	return cmd
}

func newPKIIssueCmd() *cobra.Command {
	var (
		dir   string
		quiet bool
		req   pki.Request
	)
	cmd := &cobra.Command{
		Use:   "issue",
		Short: "Issue a certificate: NAME.crt and NAME.key in the CA's directory",
		Example: `  dyetrace pki issue --dir D --role controller --name controller --san 192.0.2.1 --san dye.example.net
  dyetrace pki issue --dir D --role agent --name hv1
  dyetrace pki issue --dir D --role user --name ann --days 90`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("days") && req.Days < 1 {
				return usage(fmt.Errorf("--days: %d; want 1 or more", req.Days))
			}
			ca, err := pki.OpenCA(dir, time.Now())
			if err != nil {
				return usage(err)
			}
			files, err := ca.Issue(req, time.Now())
			if errors.Is(err, pki.ErrExists) {
				return usage(fmt.Errorf("%w (--renew)", err))
			} else if err != nil {
				return usage(err)
			}
			if quiet {
				return nil
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n%s\n", files.Cert, files.Key)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "`DIRECTORY` of the CA (required)")
	f.StringVar(&req.Role, "role", "", "`ROLE`: controller, agent or user (required)")
	f.StringVar(&req.Name, "name", "", "`NAME` of the controller, the agent's host or the user (required)")
	f.StringArrayVar(&req.SANs, "san", nil, "`HOST` name or IP address by which a controller is dialled; can be repeated")
	f.IntVar(&req.Days, "days", pki.DefaultDays, "`DAYS` of validity")
	f.BoolVar(&req.Renew, "renew", false, "replace a certificate and its key that are there already")
	f.BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	for _, name := range []string{"dir", "role", "name"} {
		must(cmd.MarkFlagRequired(name))
	}
	must(cmd.MarkFlagDirname("dir"))
	must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(
		[]string{pki.RoleController, pki.RoleAgent, pki.RoleUser}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// certificateView is one certificate, as `pki show -o json` has it.
type certificateView struct {
	File      string    `json:"file"`
	Role      string    `json:"role"`
	Name      string    `json:"name"`
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Hosts     []string  `json:"hosts"`
}

func newPKIShowCmd() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:     "show FILE.crt...",
		Short:   "Show whose certificates these are, and until when",
		Example: "  dyetrace pki show /etc/dyetrace/pki/*.crt",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			views := []certificateView{}
			for _, path := range args {
				cert, err := pki.ReadCertificate(path)
				if err != nil {
					return usage(err)
				}
				views = append(views, newCertificateView(path, cert))
			}
			return out.print(cmd, views, func() error { return certificatesTable(cmd, views) })
		},
	}
	out.flags(cmd)
	return cmd
}

func newCertificateView(path string, cert *x509.Certificate) certificateView {
	v := certificateView{
		File: path, Issuer: cert.Issuer.String(), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
		Hosts: append([]string{}, cert.DNSNames...),
	}
	for _, ip := range cert.IPAddresses {
		v.Hosts = append(v.Hosts, ip.String())
	}
	if role, name, err := pki.Identity(cert); err == nil {
		v.Role, v.Name = role, name
	} else if cert.IsCA {
		v.Role, v.Name = "ca", cert.Subject.CommonName
	}
	return v
}

func certificatesTable(cmd *cobra.Command, views []certificateView) error {
	t := newTable(cmd, "file", "role", "name", "hosts", "valid to", "issuer")
	for _, v := range views {
		until := v.NotAfter.Format(time.DateOnly)
		if time.Now().After(v.NotAfter) {
			until += " (expired)"
		}
		t.AppendRow([]any{v.File, dash(v.Role), dash(v.Name), dash(strings.Join(v.Hosts, " ")), until, v.Issuer})
	}
	t.Render()
	return nil
}
