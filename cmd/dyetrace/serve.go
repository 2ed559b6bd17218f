package main

import (
	"github.com/spf13/cobra"

	"github.com/dyetrace/dyetrace/plugin"
)

const serveConfig = "/etc/dyetrace/controller.yaml"

func newServeCmd() *cobra.Command {
	var (
		log      logging
		path     string
		override plugin.Config
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the controller",
		Long: `Serve listens for agents and users on one port, over TLS with certificates on both sides, plans
and runs checks and keeps their verdicts. SIGHUP reads inventory files and BGP peers again. Flags override
the configuration file.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.logger(cmd)
			if err != nil {
				return err
			}
			cfg, err := loadServeConfig(path, override)
			if err != nil {
				return usage(err)
			}
			cfg.Version = buildVersion()
			c, err := plugin.New(cmd.Context(), cfg, logger)
			if err != nil {
				// A certificate, an inventory, an address, a database: what cannot be used
				// is something that the configuration names.
				return usage(err)
			}
			return c.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&path, "config", serveConfig, "configuration `FILE`")
	f.StringVar(&override.Listen, "listen", "", "listen for users and agents on `HOST:PORT`")
	f.StringVar(&override.Socket, "socket", "", "listen for users on the unix socket `PATH` too")
	f.StringVar(&override.Store, "store", "", "database `FILE` of runs and verdicts")
	f.StringSliceVar(&override.Inventory, "inventory", nil, "inventory `FILE`; can be repeated")
	f.StringVar(&override.Metrics, "metrics", "", "serve Prometheus metrics on `HOST:PORT`")
	log.flags(cmd)
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	must(cmd.MarkFlagFilename("inventory", "yaml", "yml"))
	return cmd
}

// loadServeConfig reads the file and puts flags over it.
func loadServeConfig(path string, over plugin.Config) (plugin.Config, error) {
	cfg, err := plugin.LoadConfig(path)
	if err != nil {
		return plugin.Config{}, err
	}
	for _, x := range []struct{ to, from *string }{
		{&cfg.Listen, &over.Listen}, {&cfg.Socket, &over.Socket}, {&cfg.Store, &over.Store}, {&cfg.Metrics, &over.Metrics},
	} {
		if *x.from != "" {
			*x.to = *x.from
		}
	}
	if len(over.Inventory) > 0 {
		cfg.Inventory = over.Inventory
	}
	return cfg, cfg.Validate()
}
