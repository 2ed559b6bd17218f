package ovs

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dyetrace/dyetrace/dataplane"
)

// Where Debian, RHEL and OVN-Kubernetes have it; others choose by Options.
const (
	DefaultRunDir = "/run/openvswitch"
	DefaultDB     = "unix:" + DefaultRunDir + "/db.sock"
)

// Options say where the switch is.
type Options struct {
	// DB is the database's address, "unix:PATH" or "tcp:HOST:PORT". Empty is
	// "unix:RunDir/db.sock".
	DB string
	// RunDir has the control sockets and the pidfile of ovs-vswitchd. Empty is
	// DefaultRunDir.
	RunDir string
	// Log takes what Run has to say and, at level debug, each change of the host before it is
	// made; nil is nobody.
	Log *slog.Logger
}

func (o Options) withDefaults() (Options, error) {
	if o.RunDir == "" {
		o.RunDir = DefaultRunDir
	}
	if !filepath.IsAbs(o.RunDir) {
		return o, fmt.Errorf("RunDir %q: want an absolute path", o.RunDir)
	}
	if o.DB == "" {
		o.DB = "unix:" + o.RunDir + "/db.sock"
	}
	if u, err := url.Parse(o.DB); err != nil || u.Scheme != "unix" && u.Scheme != "tcp" {
		return o, fmt.Errorf("DB %q: want unix:PATH or tcp:HOST:PORT", o.DB)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Switch is one host's Open vSwitch. Its methods may be called from any goroutine.
type Switch struct {
	opts    Options
	first   *database // connected by Open, for Run to go on with
	last    atomic.Pointer[dataplane.Snapshot]
	fresh   atomic.Bool // last is what the database has, give or take a notice
	changed chan struct{}
	syncs   chan chan error // calls of Sync, for Run to answer
	sweeps  sweeps
	kept    bridgesKept

	dye struct {
		sync.Mutex
		kept map[string]dyeState // by bridge
	}
}

// changing says what is about to be changed, of a bridge or a device.
func (s *Switch) changing(of, what string) {
	s.opts.Log.Debug("changing the host", "of", of, "what", what)
}

// Open connects to the switch's database. The error says which path or address did
// not answer.
func Open(ctx context.Context, o Options) (*Switch, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("ovs: %w", err)
	}
	s := &Switch{opts: o, changed: make(chan struct{}, 1), syncs: make(chan chan error), sweeps: newSweeps()}
	s.dye.kept = make(map[string]dyeState)
	s.kept.bridges = make(map[string]*bridgeKept)
	if s.first, err = dial(ctx, o.DB); err != nil {
		return nil, fmt.Errorf("ovs: %w", err)
	}
	if err := s.refresh(ctx, s.first); err != nil {
		s.first.close()
		return nil, fmt.Errorf("ovs: %w", err)
	}
	return s, nil
}

// Snapshot returns what is known of the switch. The caller must not change it.
func (s *Switch) Snapshot() dataplane.Snapshot { return *s.last.Load() }

// Changed returns the channel that has a value once Snapshot returns something new.
// Changes are coalesced: one value may stand for several. Nobody closes it.
func (s *Switch) Changed() <-chan struct{} { return s.changed }

// Sync returns once Snapshot has all that was committed to the database before the
// call: ovsdb-server answers no request before it has sent the notices of what was
// committed until then. It needs Run to run, and waits for the database if that is
// away.
func (s *Switch) Sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dbTimeout)
	defer cancel()
	done := make(chan error, 1)
	var err error
	select {
	case s.syncs <- done:
		select {
		case err = <-done:
		case <-ctx.Done():
			err = ctx.Err()
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("ovs: sync: %w", err)
	}
	return nil
}

// How often Run looks for another ovs-vswitchd, of which the database says nothing:
// half the time in which a hook should be back. It reads two small files.
const lookEvery = 500 * time.Millisecond

// How often Run asks a silent database whether it is there (OVSDB, RFC 7047, 4.1.11,
// wants clients to do so), and how long it waits for that and any other answer.
const (
	echoEvery = 5 * time.Second
	dbTimeout = 10 * time.Second
)

// Run keeps Snapshot up to date until ctx is done, and then returns nil. It must be
// called once. While the database is away it tries again, at first after 0.1 s, at
// last every 5 s.
func (s *Switch) Run(ctx context.Context) error {
	defer s.kept.close()
	db := s.first
	for {
		if db != nil {
			err := s.follow(ctx, db)
			s.fresh.Store(false)
			db.close()
			if ctx.Err() != nil {
				return nil
			}
			s.opts.Log.Warn("lost the Open vSwitch database", "db", s.opts.DB, "err", err)
		}
		if db = s.redial(ctx); db == nil {
			return nil
		}
		s.opts.Log.Info("connected to the Open vSwitch database", "db", s.opts.DB)
	}
}

// redial connects again; it returns nil only if ctx is done.
func (s *Switch) redial(ctx context.Context) *database {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		try, cancel := context.WithTimeout(ctx, dbTimeout)
		db, err := dial(try, s.opts.DB)
		cancel()
		if err == nil {
			return db
		}
		s.opts.Log.Debug("connecting to the Open vSwitch database", "err", err)
		s.update(func(snap *dataplane.Snapshot) { snap.Switchd = s.switchd() })
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
}

// follow refreshes the snapshot whenever the database says so, until ctx is done or
// db is lost.
func (s *Switch) follow(ctx context.Context, db *database) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	echo := time.NewTicker(echoEvery)
	defer echo.Stop()
	if err := s.refresh(ctx, db); err != nil {
		return err
	}
	s.fresh.Store(true)
	if db != s.first {
		s.update(func(snap *dataplane.Snapshot) { snap.Database++ })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-db.alive.Done():
			return errGone
		case <-db.changed:
			if err := s.refresh(ctx, db); err != nil {
				return err
			}
		case done := <-s.syncs:
			err := db.echo(ctx)
			if err == nil {
				err = s.refresh(ctx, db)
			}
			done <- err
			if err != nil {
				return err
			}
		case <-look.C:
			s.update(func(snap *dataplane.Snapshot) { snap.Switchd = s.switchd() })
		case <-echo.C:
			if err := db.echo(ctx); err != nil {
				return err
			}
		}
	}
}

func (s *Switch) refresh(ctx context.Context, db *database) error {
	next, err := db.snapshot(ctx)
	if err != nil {
		return err
	}
	next.Switchd = s.switchd()
	if old := s.last.Load(); old != nil {
		next.Database = old.Database
	}
	s.store(next)
	s.kept.only(func(bridge string) bool { _, there := next.Bridge(bridge); return there })
	return nil
}

// update changes a copy of the snapshot; its bridges are shared with the old one.
func (s *Switch) update(change func(*dataplane.Snapshot)) {
	next := s.Snapshot()
	change(&next)
	s.store(next)
}

// store replaces the snapshot. Only Open and Run do.
func (s *Switch) store(next dataplane.Snapshot) {
	if old := s.last.Load(); old != nil && reflect.DeepEqual(*old, next) {
		return
	}
	s.last.Store(&next)
	select {
	case s.changed <- struct{}{}:
	default: // one is waiting already, and whoever takes it sees this one, too
	}
}
