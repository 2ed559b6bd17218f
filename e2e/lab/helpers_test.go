package lab

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

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
	space, err := l.guestNamespace(i)
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
		family, address := socketAddress(at)
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		g.fd = fd
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, address); err != nil {
			return err
		}
		return unix.Listen(fd, 1)
	})
	if err != nil {
		t.Fatalf("listen in %s: %v", instance, err)
	}
	t.Cleanup(func() { g.close(); unix.Close(g.fd) })
	return g
}

// close ends an accept that waits, which closing the socket would not.
func (g guestListener) close() { _ = unix.Shutdown(g.fd, unix.SHUT_RDWR) }

func socketAddress(at netip.AddrPort) (family int, address unix.Sockaddr) {
	if at.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}

// dialIn connects from inside of a guest: the socket is made on the thread that is there.
func dialIn(l *Lab, instance string, to netip.AddrPort, patience time.Duration) (conn net.Conn, err error) {
	err = inGuest(l, instance, func() error {
		conn, err = net.DialTimeout("tcp", to.String(), patience)
		return err
	})
	return conn, err
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
