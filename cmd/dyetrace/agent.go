package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/dyetrace/dyetrace/agent"
)

const agentConfig = "/etc/dyetrace/agent.yaml"

func newAgentCmd() *cobra.Command {
	var (
		log      logging
		path     string
		override agent.Config
	)
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of this host",
		Long: `Agent installs hooks on this host's Open vSwitch bridges, injects probes and reports samples to
the controller. It needs Open vSwitch's sockets and CAP_NET_RAW; it takes its hooks and ports off
the bridges when it ends. Flags override the configuration file.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.logger(cmd)
			if err != nil {
				return err
			}
			cfg, err := loadAgentConfig(cmd, path, override)
			if err != nil {
				return usage(err)
			}
			return runAgent(cmd.Context(), cfg, logger)
		},
	}
	f := cmd.Flags()
	f.StringVar(&path, "config", agentConfig, "configuration `FILE`")
	f.StringVar(&override.Host, "host", "", "`NAME` of this host, as in its certificate")
	f.StringVar(&override.Controller, "controller", "", "controller, `https://HOST:PORT`")
	f.StringVar(&override.ServerName, "server-name", "", "`NAME` that the controller's certificate must bear")
	f.StringVar(&override.TLS.CA, "ca", "", "PEM `FILE` of the CAs to trust")
	f.StringVar(&override.TLS.Cert, "cert", "", "PEM `FILE` of the agent's certificate")
	f.StringVar(&override.TLS.Key, "key", "", "PEM `FILE` of the agent's private key")
	f.StringSliceVar(&override.Bridges, "bridge", nil, "hook only this `BRIDGE`; can be repeated")
	f.StringVar(&override.Metrics, "metrics", "", "serve Prometheus metrics on `HOST:PORT`")
	log.flags(cmd)
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	return cmd
}

// loadAgentConfig reads the file, if there is one or one was asked for, and puts flags over it.
func loadAgentConfig(cmd *cobra.Command, path string, over agent.Config) (agent.Config, error) {
	cfg, err := agent.LoadConfig(path)
	if errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("config") {
		cfg, err = agent.DefaultConfig(), nil
	}
	if err != nil {
		return agent.Config{}, err
	}
	for _, x := range []struct{ to, from *string }{
		{&cfg.Host, &over.Host},
		{&cfg.Controller, &over.Controller},
		{&cfg.ServerName, &over.ServerName},
		{&cfg.TLS.CA, &over.TLS.CA},
		{&cfg.TLS.Cert, &over.TLS.Cert},
		{&cfg.TLS.Key, &over.TLS.Key},
		{&cfg.Metrics, &over.Metrics},
	} {
		if *x.from != "" {
			*x.to = *x.from
		}
	}
	if len(over.Bridges) > 0 {
		cfg.Bridges = over.Bridges
	}
	return cfg, cfg.Validate()
}

// runAgent runs an agent, and its metrics where they are wanted, until ctx ends or one fails.
func runAgent(ctx context.Context, cfg agent.Config, log *slog.Logger) error {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a, err := agent.New(ctx, cfg, buildVersion(), reg, log)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if cfg.Metrics != "" {
		ln, err := net.Listen("tcp", cfg.Metrics)
		if err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
		g.Go(func() error { return serveMetrics(ctx, ln, reg) })
	}
	g.Go(func() error { return a.Run(ctx) })
	return g.Wait()
}

// serveMetrics answers /metrics until ctx ends.
func serveMetrics(ctx context.Context, ln net.Listener, reg *prometheus.Registry) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	// Scrapes are short; who holds a connection without asking for anything is not a scraper.
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
