package lab

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// guestListener is a TCP socket that listens inside of a guest.
type guestListener struct {
	t  *testing.T
	fd int
}

// inGuest runs do on a thread in an instance's network namespace.
func inGuest(l *Lab, instance string, do func() error) error {
	i, ok := l.Overlay().Instance(instance)
	if !ok {
		return fmt.Errorf("no instance %s", instance)
	}
	node, err := l.node(i.Host)
	if err != nil {
		return err
	}
	space, err := os.Open(filepath.Join("/proc", strconv.Itoa(node.PID), "root/run/netns", instance))
	if err != nil {
		return err
	}
	defer space.Close()
	return inNamespace(int(space.Fd()), do)
}

func listenIn(t *testing.T, l *Lab, instance string, at netip.AddrPort) guestListener {
	t.Helper()
	g := guestListener{t: t, fd: -1}
	err := inGuest(l, instance, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		g.fd = fd
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
			return err
		}
		return unix.Listen(fd, 1)
	})
	if err != nil {
		t.Fatalf("listen in %s: %v", instance, err)
	}
	// Shutdown, because closing does not wake an accept that waits.
	t.Cleanup(func() { _ = unix.Shutdown(g.fd, unix.SHUT_RDWR); unix.Close(g.fd) })
	return g
}

// serveOnce accepts one connection and returns all that comes by it.
func (g guestListener) serveOnce() string {
	fd, _, err := unix.Accept4(g.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		g.t.Error(err)
		return ""
	}
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		g.t.Error(err)
	}
	return string(text)
}
