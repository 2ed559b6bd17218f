package bgp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/jwhited/corebgp"
	"golang.org/x/sys/unix"
)

// dialTimeout is a little more than three SYNs take (1 s, 2 s, 4 s; tcp(7)).
const dialTimeout = 10 * time.Second

// on runs f on the descriptor of a socket.
func on(c syscall.RawConn, f func(fd int) error) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) { err = f(int(fd)) }), err)
}

// setTTL lets a socket send with the TTL that GTSM of a peer wants to see (RFC 5082, section 3),
// and, with hops, take only what came with the TTL of so close a sender. A socket that still connects
// must not be so choosy: listeners, GoBGP's for one, send their SYN-ACK with the TTL of all.
func setTTL(c syscall.RawConn, v6 bool, hops int) error {
	level, ttl, least := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_MINTTL
	if v6 {
		level, ttl, least = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_MINHOPCOUNT
	}
	return on(c, func(fd int) error {
		if err := unix.SetsockoptInt(fd, level, ttl, 255); err != nil || hops == 0 {
			return failed(err, "set TTL 255")
		}
		return failed(unix.SetsockoptInt(fd, level, least, 256-hops), "set least TTL %d", 256-hops)
	})
}

// setMD5 sets the key for a peer; an empty one removes it, there or not. A listener of both IP versions
// knows IPv4 peers by their mapped addresses.
func setMD5(c syscall.RawConn, peer netip.Addr, key Secret) error {
	return on(c, func(fd int) error {
		err := corebgp.SetTCPMD5Signature(fd, peer.WithZone(""), uint8(peer.BitLen()), string(key))
		if key == "" && errors.Is(err, unix.ENOENT) {
			return nil
		}
		return failed(err, "set TCP MD5 key")
	})
}

func failed(err error, format string, args ...any) error {
	if err != nil {
		return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
	}
	return nil
}

// dial connects to a peer.
func dial(ctx context.Context, p Peer) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, Control: func(_, _ string, c syscall.RawConn) error {
		if p.MD5 != "" {
			if err := setMD5(c, p.addr(), p.MD5); err != nil {
				return err
			}
		}
		if p.GTSM == 0 {
			return nil
		}
		return setTTL(c, p.addr().Is6(), 0)
	}}
	if s := p.source(); s.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(s, 0))
	}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(p.Address, strconv.Itoa(p.Port)))
	if err != nil {
		return nil, err
	}
	if err := admit(c.(*net.TCPConn), p); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// listen opens a listener whose SYN-ACKs pass the GTSM of peers: a TTL that is set on a connection
// later comes too late for those.
func listen(ctx context.Context, addr string) (*net.TCPListener, error) {
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		if network == "tcp6" {
			if err := setTTL(c, true, 0); err != nil {
				return err
			}
		}
		return setTTL(c, false, 0)
	}}
	// Go's listeners speak Multipath TCP by default, and such a one may take no MD5 key: GoBGP's does
	// not on Linux, until GODEBUG=multipathtcp=0.
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// admit prepares a connection for what its peer is configured to be.
func admit(c *net.TCPConn, p Peer) error {
	if p.GTSM == 0 {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	local := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	return setTTL(raw, local.Is6(), p.GTSM)
}
