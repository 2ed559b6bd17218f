package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// File descriptors that an init is born with.
const (
	initConfigFD = 3 // reads its initConfig from here, then the byte that lets it outlive the raiser
	initReadyFD  = 4 // writes "ready", or what went wrong, and closes it
)

// tmpfsDirs are the directories that every node has to itself; FRR keeps what it would say of a
// crash in the last. Those of ovnDirs it has where the host has them: with OVN installed.
var (
	tmpfsDirs = []string{"/run", "/etc/openvswitch", "/var/lib/openvswitch", "/var/log/openvswitch", "/var/tmp"}
	ovnDirs   = []string{ovnDB, ovnLog}
)

// toolsDir is where a node finds what the lab gives it; its bin is first in PATH.
const toolsDir = "/run/dyetrace-lab"

// bind is a file or directory of the host's that a node sees elsewhere.
type bind struct {
	Source, Target string
	ReadOnly       bool
}

// initConfig is what an init needs to know, sent as one line of JSON.
type initConfig struct {
	Hostname string
	Binds    []bind
}

// runInit makes the namespaces that it was started in a node, and holds them until it is
// killed or, before it is released, the process that raises the lab ends. It is process 1
// there, so it reaps what others leave behind.
func runInit(ctx context.Context) error {
	if os.Getpid() != 1 {
		return errors.New("lab init: is the first process of a node, started by lab up; not to be called by hand")
	}
	in, ready := os.NewFile(initConfigFD, "config"), os.NewFile(initReadyFD, "ready")
	dec := json.NewDecoder(in)
	var cfg initConfig
	if err := dec.Decode(&cfg); err != nil {
		return fmt.Errorf("lab init: configuration: %w", err)
	}
	if err := makeNode(cfg); err != nil {
		fmt.Fprint(ready, err)
		return err
	}
	fmt.Fprint(ready, readyWord)
	ready.Close()

	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		awaitRelease(io.MultiReader(dec.Buffered(), in))
	}()
	for {
		select {
		case <-children:
			reap()
		case <-gone:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

const readyWord = "ready"

// awaitRelease returns when the raiser is gone without having released this node, else never.
func awaitRelease(in io.Reader) {
	b := make([]byte, 1)
	for {
		n, err := in.Read(b)
		if n == 1 && b[0] == releaseByte {
			select {}
		}
		if err != nil {
			return
		}
	}
}

const releaseByte = '!'

func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid <= 0 || err != nil {
			return
		}
	}
}

// makeNode sets up the mounts, the name and the loopback of the namespaces it runs in.
func makeNode(cfg initConfig) error {
	if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts: make private: %w", err)
	}
	// The sources may lie below what is about to be covered: open them first.
	sources := make([]*os.File, len(cfg.Binds))
	for i, b := range cfg.Binds {
		f, err := os.OpenFile(b.Source, unix.O_PATH, 0)
		if err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		defer f.Close()
		sources[i] = f
	}
	for _, dir := range slices.Concat(tmpfsDirs, ovnDirs) {
		err := mountTmpfs(dir)
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(ovnDirs, dir) {
			continue
		}
		if err != nil {
			return err
		}
	}
	for i, b := range cfg.Binds {
		if err := bindFrom(sources[i], b); err != nil {
			return err
		}
	}
	// Last, because the sources are mounted by way of the old /proc. The new ones show the
	// node's own processes and network.
	for _, m := range []string{"proc", "sysfs"} {
		target := map[string]string{"proc": "/proc", "sysfs": "/sys"}[m]
		if err := unix.Mount(m, target, m, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	return quietNetwork()
}

func mountTmpfs(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("%w (Open vSwitch is not installed? Debian: openvswitch-switch)", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

func bindFrom(source *os.File, b bind) error {
	info, err := source.Stat()
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if info.IsDir() {
		err = os.MkdirAll(b.Target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(b.Target), 0o755); err == nil {
		err = os.WriteFile(b.Target, nil, 0o644)
	}
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", source.Fd()), b.Target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", b.Source, b.Target, err)
	}
	if b.ReadOnly {
		if err := unix.Mount("", b.Target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("bind %s on %s: read-only: %w", b.Source, b.Target, err)
		}
	}
	return nil
}

// quietSysctls, below net, keep IPv6 usable but silent on interfaces that nobody gave an address:
// no link-local address of its own, hence no neighbour discovery, no MLD, no router solicitation.
var quietSysctls = map[string]string{
	"ipv6/conf/default/addr_gen_mode": "1",
	"ipv6/conf/default/accept_ra":     "0",
}

func quietNetwork() error {
	for key, value := range quietSysctls {
		err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6 is quiet as it is
			return fmt.Errorf("sysctl %s: %w", strings.ReplaceAll(key, "/", "."), err)
		}
	}
	return nil
}

// initAttributes are the namespaces of a node. Setsid keeps a Ctrl-C meant for the raiser away
// from it.
func initAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
}
