package plugin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/bgp/rib"
	"github.com/dyetrace/dyetrace/pki"
	"github.com/dyetrace/dyetrace/plugin/fleet"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/run"
	"github.com/dyetrace/dyetrace/plugin/server"
	"github.com/dyetrace/dyetrace/plugin/store"
)

// Serve runs a controller until ctx is done. Everything that can be wrong with cfg is found out
// before the first connection is accepted. SIGHUP makes it read the inventory files again, and the
// BGP peers of the configuration.
func Serve(ctx context.Context, cfg Config, log *slog.Logger) error {
	c, err := New(ctx, cfg, log)
	switch {
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	return c.Run(ctx)
}

// Controller is a controller that listens, and does not serve yet.
type Controller struct {
	cfg     Config
	log     *slog.Logger
	tls     *tls.Config
	book    *inventory.Book
	store   *store.Store
	fleet   *fleet.Fleet
	runner  *run.Runner
	server  *server.Server
	metrics *prometheus.Registry

	// Both are nil where no BGP is configured.
	table   *rib.Table
	speaker *bgp.Speaker
	// named is bgp.networks, and mapping held while the table learns what they are.
	named   atomic.Pointer[[]bgp.Network]
	mapping sync.Mutex

	api     []net.Listener
	scrapes net.Listener // nil where no metrics are wanted
}

// New opens all that a controller needs. Run must be called, even with a ctx that is done, to
// close it again.
func New(ctx context.Context, cfg Config, log *slog.Logger) (*Controller, error) {
	c := &Controller{cfg: cfg, log: log, book: inventory.NewBook(), metrics: prometheus.NewRegistry()}
	if err := c.open(ctx); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *Controller) open(ctx context.Context) (err error) {
	cfg := c.cfg
	c.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if c.tls, err = pki.ServerTLS(cfg.TLS); err != nil {
		return err
	}
	if len(cfg.Inventory) > 0 {
		f, err := inventory.Load(cfg.Inventory...)
		if err != nil {
			return err
		}
		c.book.SetFile(f)
	}
	if c.store, err = store.Open(ctx, cfg.Store); err != nil {
		return err
	}
	c.fleet = fleet.New(fleet.Config{
		Stain: cfg.stain(), Heartbeat: cfg.Heartbeat, Version: cfg.Version,
		Book: c.book, Log: c.log, Metrics: c.metrics,
	})
	if cfg.BGP != nil {
		c.named.Store(&cfg.BGP.Networks)
		c.table = rib.New(rib.Options{Networks: mapping(cfg.BGP.Networks, c.book.Snapshot())})
		c.speaker, err = bgp.New(*cfg.BGP, bgp.Options{
			Learn: bgp.LearnInto(c.table), VTEPs: vteps(c.book.Snapshot()), Log: c.log.With("part", "bgp"), Metrics: c.metrics,
		})
		if err != nil {
			return err
		}
	}
	c.runner = run.New(run.Config{
		Timeout: cfg.Run.Timeout, Settle: cfg.Run.Settle, Patience: cfg.Run.Patience, AnswerTimeout: cfg.Run.AnswerTimeout,
		PerInstanceRate: cfg.Run.PerInstanceRate, PerInstanceBurst: cfg.Run.PerInstanceBurst,
		MaxActive: cfg.Run.MaxActive, MaxPairs: cfg.Run.MaxPairs, ToS: cfg.stain().TOS, UnderlayRate: cfg.Run.UnderlayRate,
		Store: c.store, Fleet: c.fleet, Book: c.book, Routes: c.routes, Log: c.log, Metrics: c.metrics,
	})
	c.server = server.New(server.Config{
		Runner: c.runner, Fleet: c.fleet, Book: c.book, Routes: c.table, Speaker: c.speaker,
		Stain: cfg.stain(), Version: cfg.Version, Started: time.Now(), Log: c.log,
	})
	return c.listen(ctx)
}

func (c *Controller) listen(ctx context.Context) error {
	if c.cfg.Listen != "" {
		l, err := net.Listen("tcp", c.cfg.Listen)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		c.api = append(c.api, l)
	}
	if c.cfg.Socket != "" {
		l, err := listenUnix(c.cfg.Socket)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		c.api = append(c.api, l)
	}
	if c.cfg.Metrics != "" {
		l, err := net.Listen("tcp", c.cfg.Metrics)
		if err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
		c.scrapes = l
	}
	if c.speaker != nil {
		return c.speaker.Listen(ctx)
	}
	return nil
}

// listenUnix listens on a unix socket. One that a process left behind when it was killed is
// removed; the store's lock says that no other controller of this database lives, and one of
// another database would answer.
func listenUnix(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if conn, derr := net.Dial("unix", path); derr == nil {
			conn.Close()
			return nil, fmt.Errorf("%s: another process listens there", path)
		}
		if fi, serr := os.Lstat(path); serr != nil || fi.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s: something that is no socket is there", path)
		}
		if rerr := os.Remove(path); rerr != nil {
			return nil, rerr
		}
		l, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Addr returns the address of the port that users and agents connect to; nil where there is only a
// socket.
func (c *Controller) Addr() net.Addr {
	if c.cfg.Listen == "" {
		return nil
	}
	return c.api[0].Addr()
}

// Run serves until ctx is done, and closes the controller. Runs under way are interrupted, and can
// be resumed by the next one.
func (c *Controller) Run(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // before anybody can know that we run, and send one
	defer signal.Stop(hup)
	for _, l := range c.api {
		c.log.Info("listening", "addr", l.Addr().String(), "version", c.cfg.Version)
	}
	g, ctx := errgroup.WithContext(ctx)
	// Runs end before the server does: their watchers are told, and their agents.
	ended, end := context.WithCancel(context.Background())
	defer end()
	g.Go(func() error {
		defer end()
		return c.runner.Run(ctx)
	})
	g.Go(func() error {
		return c.server.Run(ended, c.tls, c.api...)
	})
	g.Go(func() error { return c.fleet.Acquaint(ctx) })
	g.Go(func() error {
		c.reload(ctx, hup)
		return nil
	})
	if c.scrapes != nil {
		g.Go(func() error { return c.scrape(ctx) })
	}
	if c.speaker != nil {
		g.Go(func() error { return c.speaker.Run(ctx) })
		g.Go(func() error {
			c.follow(ctx)
			return nil
		})
	}
	return errors.Join(g.Wait(), c.close())
}

func (c *Controller) close() error {
	var errs []error
	for _, l := range append(c.api, c.scrapes) {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if c.speaker != nil {
		errs = append(errs, c.speaker.Close())
	}
	if c.store != nil {
		errs = append(errs, c.store.Close())
	}
	return errors.Join(errs...)
}

// reload reads inventory files and peers again at each SIGHUP, until ctx is done.
func (c *Controller) reload(ctx context.Context, hup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		c.reloadInventory()
		if c.cfg.Path != "" {
			c.reloadPeers()
		}
	}
}

func (c *Controller) reloadInventory() {
	if len(c.cfg.Inventory) == 0 {
		c.log.Info("SIGHUP: no inventory files are configured")
		return
	}
	f, err := inventory.Load(c.cfg.Inventory...)
	if err != nil {
		c.log.Error("inventory stays as it was", "err", err)
		return
	}
	c.book.SetFile(f)
	c.log.Info("inventory read again", "networks", len(f.Networks), "instances", len(f.Instances))
}

// scrape serves metrics until ctx is done.
func (c *Controller) scrape(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.metrics, promhttp.HandlerOpts{Registry: c.metrics}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if _, err := c.runner.List(r.Context(), "", 1); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	// A scrape is short; who holds a connection and asks nothing is no scraper.
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(c.scrapes); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
