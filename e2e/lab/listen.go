package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Verbs of the hidden command "lab listen VERB INSTANCE".
const (
	listenOpen  = "open"
	listenClose = "close"
	listenServe = "serve" // by which open starts what stays behind
)

// File descriptors that a listener is born with.
const (
	listenLockFD   = 3
	listenSocketFD = 4
)

// Listen is the hidden command "lab listen VERB INSTANCE", run in the instance's network
// namespace and its hypervisor's others. Open returns when TCP port 11 is open, in IPv4 and IPv6,
// and leaves a process behind that accepts connections and closes them; close ends it. Both may
// be done twice.
//
// That process holds a lock on a file with its pid for as long as it runs, so that a pid which
// somebody else got since is never taken for its own.
func Listen(verb, instance string) error {
	var err error
	switch verb {
	case listenOpen:
		err = openPort(instance)
	case listenClose:
		err = closePort(instance)
	case listenServe:
		err = servePort()
	default:
		err = fmt.Errorf("verb %q: want %s or %s", verb, listenOpen, listenClose)
	}
	if err != nil {
		return fmt.Errorf("lab listen: %s: %w", instance, err)
	}
	return nil
}

func listenFile(instance string) string {
	return filepath.Join(toolsDir, "listen-"+instance+".pid")
}

func openPort(instance string) error {
	lock, err := os.OpenFile(listenFile(instance), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil // it is open
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	// With no address, it is one socket for both versions.
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", ":"+strconv.Itoa(ProbedPort))
	if err != nil {
		return err
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	defer socket.Close()
	cmd := exec.Command("/proc/self/exe", "lab", "listen", listenServe, instance)
	cmd.Args[0] = os.Args[0]                  // for the reader of a process list
	cmd.ExtraFiles = []*os.File{lock, socket} // listenLockFD, listenSocketFD
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := writePID(lock, cmd.Process.Pid); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	return nil
}

func writePID(f *os.File, pid int) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(pid)), 0)
	return err
}

// servePort accepts connections, and closes them, until it is killed.
func servePort() error {
	lock := os.NewFile(listenLockFD, "lock")
	defer lock.Close() // it is held for as long as this runs
	socket := os.NewFile(listenSocketFD, "socket")
	l, err := net.FileListener(socket)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		conn.Close()
	}
}

func closePort(instance string) error {
	lock, err := os.Open(listenFile(instance))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = killHolder(lock)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", lock.Name(), err)
	}
	return os.Remove(lock.Name())
}

// killHolder ends the process that holds a lock, and returns when the lock is ours.
func killHolder(lock *os.File) error {
	text, err := io.ReadAll(lock)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		return fmt.Errorf("pid: %w", err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %d: %w", pid, err)
	}
	for {
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
