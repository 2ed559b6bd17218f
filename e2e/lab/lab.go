package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// DefaultName is the name of a lab, and its topology, where none is given.
const DefaultName = "racks"

// Options says how to raise a lab. The zero value raises racks with controller and agents.
type Options struct {
	Name     string    // DefaultName if empty
	Topology string    // one of Topologies; DefaultName if empty
	Runner   string    // what nodes are made of, one of Runners; $DYETRACE_LAB_RUNNER if empty, or else namespaces
	Datapath string    // of hypervisors, overlay.Netdev or overlay.System; $DYETRACE_LAB_DATAPATH if empty, or else the topology's
	Bare     bool      // the network only, neither controller nor agents
	Binary   string    // answers to "lab init" and so on, see Reexec; os.Executable if empty
	Log      io.Writer // a line for each step; nil for none
}

// Lab is a lab that stands, or is being raised. Its methods may be called concurrently.
type Lab struct {
	dir      string
	binary   string
	runner   runner
	topology *Topology
	base     *overlay.Spec // as the topology has it, and the datapath that was asked for

	topologyDatapath string // as the topology has it

	// spec is base with instances where breaks moved them to.
	spec atomic.Pointer[overlay.Spec]

	mu    sync.Mutex // guards state
	state *state

	brokeAt time.Time // see BrokeAt
}

// Name returns the lab's name.
func (l *Lab) Name() string { return l.state.Name }

// Dir returns the lab's state directory.
func (l *Lab) Dir() string { return l.dir }

// Overlay returns what the lab's overlay consists of; not to be changed. Instances are where
// breaks moved them to, as far as this Lab was told or, by Broken or Truth, looked.
func (l *Lab) Overlay() *overlay.Spec { return l.spec.Load() }

// Topology returns the lab's topology; not to be changed.
func (l *Lab) Topology() *Topology { return l.topology }

// Took returns how long raising the lab took.
func (l *Lab) Took() time.Duration { return time.Duration(l.state.Seconds * float64(time.Second)) }

// Datapath returns what the hypervisors' Open vSwitch forwards by, overlay.Netdev or overlay.System.
func (l *Lab) Datapath() string { return l.base.DatapathType() }

// Runner returns what the lab's nodes are made of, one of Runners.
func (l *Lab) Runner() string { return l.runner.name() }

// Bare reports whether the lab has the network only, neither controller nor agents.
func (l *Lab) Bare() bool { return l.state.Bare }

// NodeInfo is one node of a lab.
type NodeInfo struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"` // its first process, as the host sees it
	Address string `json:"address"`
	Image   string `json:"image"` // with containerlab; a namespace runs on the host's files
}

// Nodes returns the nodes of the lab's topology, by name.
func (l *Lab) Nodes() []NodeInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	var nodes []NodeInfo
	for _, name := range l.topology.Nodes() {
		spec := l.topology.Body.Nodes[name]
		info := NodeInfo{Name: name, Address: spec.MgmtIP.String(), Image: spec.Image}
		if i := slices.IndexFunc(l.state.Nodes, func(p process) bool { return p.Node == name }); i >= 0 {
			info.PID = l.state.Nodes[i].PID
		}
		nodes = append(nodes, info)
	}
	return nodes
}

// Alive returns an error that names the nodes which are dead, or nil.
func (l *Lab) Alive() error {
	l.mu.Lock()
	names := l.topology.Nodes()
	for _, p := range l.state.Nodes {
		if !slices.Contains(names, p.Node) {
			names = append(names, p.Node) // one that the runner has besides
		}
	}
	l.mu.Unlock()
	var errs []error
	for _, name := range names {
		_, err := l.node(name)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Up raises a lab and returns when every pair of instances that should reach each other does
// and, unless it is bare, the controller has live hooks on every host. If it fails, or ctx
// ends before, nothing of the lab is left. The error wraps ErrExists if the lab stands
// already; what an earlier, interrupted Up left of it is cleared away.
func Up(ctx context.Context, opts Options) (*Lab, error) {
	l, err := prepare(&opts)
	if err != nil {
		return nil, err
	}
	held, err := l.claim(ctx)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", opts.Name, err)
	}
	defer held.release()
	if err := l.raise(ctx, opts); err != nil {
		err = fmt.Errorf("lab %s: %w", opts.Name, err)
		// ctx may be what ended it, and clearing up must not.
		if left := l.clear(context.WithoutCancel(ctx)); left != nil {
			err = errors.Join(err, fmt.Errorf("lab %s: clear up: %w", opts.Name, left))
		}
		return nil, err
	}
	return l, nil
}

// Open returns a lab that stands. The error wraps ErrNotFound if there is none of that name.
func Open(name string) (*Lab, error) {
	dir, err := Dir(name)
	if err != nil {
		return nil, err
	}
	s, err := readState(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lab %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	if !s.Ready {
		return nil, fmt.Errorf("lab %s: is not up: it is being raised, or was interrupted (then: lab down)", name)
	}
	l := &Lab{dir: dir, runner: runnersOf(s)[0], state: s}
	if err := l.load(os.DirFS(filepath.Join(dir, "topology")), s.Topology); err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	if err := l.place(s.Broken); err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	return l, nil
}

// List returns the names of the labs that there are, standing or not.
func List() ([]string, error) {
	dir, err := Dir(DefaultName)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	var names []string
	for _, e := range entries {
		if _, err := os.Stat(statePath(filepath.Join(filepath.Dir(dir), e.Name()))); err == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Down takes a lab down, whatever state it is in, and returns when nothing of it is left. That
// there is no such lab is no error. The error wraps ErrBusy if another command has the lab in
// hand until ctx ends.
func Down(ctx context.Context, name string) error {
	dir, err := Dir(name)
	if err != nil {
		return err
	}
	l := &Lab{dir: dir, state: &state{Name: name}}
	return l.Down(ctx)
}

// Down is Down for this lab.
func (l *Lab) Down(ctx context.Context) error {
	held, err := lock(ctx, l.dir)
	switch {
	case errors.Is(err, ErrNotFound):
		// Its directory is gone, but its nodes need not be.
		err = l.clear(ctx)
	case err == nil:
		defer held.release()
		err = l.clear(ctx)
	}
	if err != nil {
		return fmt.Errorf("lab %s: down: %w", l.state.Name, err)
	}
	return nil
}

// clear ends all nodes and removes the state directory.
func (l *Lab) clear(ctx context.Context) error {
	recorded := l.state.Nodes
	s, err := readState(l.dir)
	if err == nil {
		recorded = s.Nodes
	}
	for _, r := range runnersOf(s) {
		if err := r.end(ctx, l, recorded); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(l.dir); err != nil {
		return err
	}
	// What Up made above it goes with the last lab. That it is not empty is fine.
	if parent := filepath.Dir(l.dir); parent == defaultParent {
		_ = os.Remove(parent)
		_ = os.Remove(filepath.Dir(parent))
	}
	return nil
}

// prepare checks what can be checked before anything is raised.
func prepare(opts *Options) (*Lab, error) {
	if opts.Name == "" {
		opts.Name = DefaultName
	}
	if opts.Topology == "" {
		opts.Topology = DefaultName
	}
	if opts.Log == nil {
		opts.Log = io.Discard
	}
	if !slices.Contains(Topologies(), opts.Topology) {
		return nil, fmt.Errorf("lab: topology %q: want one of %s", opts.Topology, strings.Join(Topologies(), ", "))
	}
	dir, err := Dir(opts.Name)
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("lab: needs root: it makes network and mount namespaces, and runs Open vSwitch in them")
	}
	r, err := runnerOf(opts.Runner)
	if err != nil {
		return nil, err
	}
	if opts.Binary == "" {
		if opts.Binary, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
	}
	if opts.Binary, err = filepath.Abs(opts.Binary); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	l := &Lab{dir: dir, binary: opts.Binary, runner: r, state: &state{
		Name: opts.Name, Topology: opts.Topology, Runner: r.name(), Bare: opts.Bare,
	}}
	files, err := fs.Sub(topologies, path.Join("topologies", opts.Topology))
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := l.load(files, opts.Topology); err != nil {
		return nil, err
	}
	l.topologyDatapath = l.base.Datapath
	if l.base.Datapath, err = datapathOf(opts.Datapath, l.base.Datapath); err != nil {
		return nil, err
	}
	// By it commands are run in nodes, whatever these are made of.
	return l, errors.Join(lookFor("nsenter", "util-linux"), r.missing(l))
}

// lookFor returns an error that names the Debian package of a program that is not there.
func lookFor(program, pkg string) error {
	if _, err := exec.LookPath(program); err != nil {
		return fmt.Errorf("lab: %s: not found; Debian package %s", program, pkg)
	}
	return nil
}

// load reads topology and overlay.
func (l *Lab) load(files fs.FS, name string) error {
	text, err := fs.ReadFile(files, name+".clab.yml")
	if err != nil {
		return err
	}
	if l.topology, err = ParseTopology(text); err != nil {
		return err
	}
	f, err := files.Open("overlay.yaml")
	if err != nil {
		return err
	}
	defer f.Close()
	l.base, err = overlay.Parse(f)
	l.spec.Store(l.base)
	return err
}

// claim makes the state directory and takes its lock.
func (l *Lab) claim(ctx context.Context) (dirLock, error) {
	for {
		if err := os.MkdirAll(l.dir, 0o755); err != nil {
			return dirLock{}, err
		}
		held, err := tryLock(l.dir)
		if errors.Is(err, ErrNotFound) && ctx.Err() == nil {
			continue // removed by a lab down between the two
		}
		if err != nil {
			return dirLock{}, err
		}
		old, err := readState(l.dir)
		if err == nil && old.Ready && len(old.Nodes) > 0 && !slices.ContainsFunc(old.Nodes, func(p process) bool { return !p.alive() }) {
			held.release()
			return dirLock{}, ErrExists
		}
		found, err := l.runner.remains(ctx, l.dir)
		entries, errDir := os.ReadDir(l.dir)
		if err := errors.Join(err, errDir); err != nil {
			held.release()
			return dirLock{}, err
		}
		if found == 0 && len(entries) == 0 {
			return held, nil
		}
		err = l.clear(ctx) // remains of an earlier one
		held.release()
		if err != nil {
			return dirLock{}, err
		}
	}
}

// raise raises the lab in a claimed directory.
func (l *Lab) raise(ctx context.Context, opts Options) error {
	began := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(opts.Log, "%6.2fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	if err := l.writeFiles(); err != nil {
		return err
	}
	hold, err := l.runner.raise(ctx, l, say)
	if hold != nil {
		defer hold.drop()
	}
	if err != nil {
		return err
	}
	asked, err := l.awaitOverlay(ctx)
	if err != nil {
		return err
	}
	pairs := len(l.Overlay().PairsOver(overlay.V4)) + len(l.Overlay().PairsOver(overlay.V6))
	say("overlay: %d of %d pairs asked, over IPv4 and IPv6, all answer a ping", asked, pairs)
	if l.Overlay().EVPN != nil {
		if err := l.awaitRoutes(ctx, l.base); err != nil {
			return err
		}
		say("routes: %d reflectors know where all %d instances are", len(l.Overlay().EVPN.Reflectors), len(l.Overlay().Instances))
	}
	if !opts.Bare {
		if err := l.startDyetrace(ctx, say); err != nil {
			return err
		}
	}
	if err := hold.release(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Ready, l.state.Seconds = true, time.Since(began).Seconds()
	if err := l.state.write(l.dir); err != nil {
		return err
	}
	say("lab %s is up", opts.Name)
	return ctx.Err()
}

// writeFiles puts topology, overlay and inventory into the state directory.
func (l *Lab) writeFiles() error {
	if err := l.state.write(l.dir); err != nil {
		return err
	}
	files, err := fs.Sub(topologies, path.Join("topologies", l.state.Topology))
	if err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(l.dir, "topology"), files); err != nil {
		return err
	}
	if err := l.writeDatapath(l.topologyDatapath); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(l.dir, "log"), 0o755); err != nil {
		return err
	}
	inventory, err := l.Overlay().Inventory()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, "instances.yaml"), inventory, 0o644)
}

// awaitOverlay returns when pairs that should reach each other do, over each version that they
// have, and how many it asked.
func (l *Lab) awaitOverlay(ctx context.Context) (asked int, err error) {
	patience := Patience(5 * time.Second) // measured: 0.1 s
	if l.Overlay().EVPN != nil {
		patience += routesWait
	}
	var echoes [2][]Echo
	group, inner := errgroup.WithContext(ctx)
	for n, v := range overlay.Versions() {
		group.Go(func() (err error) {
			echoes[n], err = l.Echo(inner, v, someOf(l.Overlay().PairsOver(v), len(l.Overlay().Instances)), patience)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	var silent []string
	for n, v := range overlay.Versions() {
		asked += len(echoes[n])
		for _, e := range echoes[n] {
			if !e.Answered {
				silent = append(silent, fmt.Sprintf("%s to %s (IPv%d)", e.Src.Name, e.Dst.Name, v))
			}
		}
	}
	const most = 5 // to name; who needs all of them asks each
	switch n := len(silent); {
	case n > most:
		silent = append(silent[:most], fmt.Sprintf("and %d more", n-most))
		fallthrough
	case n > 0:
		return 0, fmt.Errorf("overlay: %d of %d pairs get no answer to a ping: %s", n, asked, strings.Join(silent, ", "))
	}
	return asked, nil
}

// someOf returns pairs to ask before a lab is called up: all of them, or, where there are so many
// that asking all at once would be a flood, a few of each instance.
func someOf(pairs []overlay.Pair, instances int) []overlay.Pair {
	const many = 500
	if len(pairs) <= many {
		return pairs
	}
	step := len(pairs) / (2 * instances)
	some := make([]overlay.Pair, 0, 2*instances)
	for i := 0; i < len(pairs); i += max(step, 1) {
		some = append(some, pairs[i])
	}
	return some
}
