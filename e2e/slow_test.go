package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// delayed is a packet on its way, and when it may go on.
type delayed struct {
	packet []byte
	at     time.Time
}

// slow is a role: `slow MS DEVICE…` has all IP packets that come in by the devices wait for so long, in
// their order, until its standard input ends; none is lost. What comes in is seen by a packet socket, kept
// from the kernel by nftables (whose ingress hook comes after those), and given to it by a TUN device when
// its time has come. netem would do, where the kernel has it.
func slow(args []string) (err error) {
	if len(args) < 2 {
		return errors.New("want milliseconds and devices")
	}
	ms, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	tun, err := openTun("slow0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(tun)) }()
	queue := make(chan delayed, 65536) // two seconds of what a lab's probes and samples are
	failed := make(chan error, 8)
	var sockets []int
	rules := "table netdev slow {\n"
	for _, name := range args[1:] {
		dev, err := net.InterfaceByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fd, err := packetSocket(dev.Index)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		sockets = append(sockets, fd)
		rules += fmt.Sprintf(" chain %[1]s {\n  type filter hook ingress device %[1]s priority -10\n  icmpv6 type 133-137 accept\n  meta protocol { ip, ip6 } drop\n }\n", name)
	}
	if err := nftables(rules + "}\n"); err != nil {
		return err
	}
	for _, fd := range sockets {
		go func() { failed <- takeIn(fd, time.Duration(ms)*time.Millisecond, queue) }()
	}
	empty := make(chan struct{})
	go func() { failed <- letGo(tun, queue, empty) }()
	fmt.Println("slow")
	ended := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(ended) }()
	select {
	case err := <-failed:
		return errors.Join(err, nftables("delete table netdev slow\n"))
	case <-ended:
	}
	// None is lost that is on its way: connection tracking would remember what it was to end.
	err = nftables("delete table netdev slow\n")
	queue <- delayed{}
	select {
	case more := <-failed:
		return errors.Join(err, more)
	case <-empty:
		return err
	}
}

// openTun makes a TUN device by which packets come in as by any other.
func openTun(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err == nil {
		var out []byte
		out, err = exec.Command("sh", "-e", "-c", "ip link set "+name+" up\n"+
			"for c in all "+name+"; do echo 0 > /proc/sys/net/ipv4/conf/$c/rp_filter; done").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", name, err)
	}
	return fd, nil
}

// packetSocket sees what comes in by a device: IP packets without their link header.
func packetSocket(index int) (int, error) {
	all := uint16(unix.ETH_P_ALL)
	network := all<<8 | all>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(network))
	if err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network, Ifindex: index})
}

func takeIn(fd int, d time.Duration, queue chan<- delayed) error {
	for buf := make([]byte, 65536); ; {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		v4, v6 := uint16(unix.ETH_P_IP), uint16(unix.ETH_P_IPV6)
		switch {
		case !ok || link.Pkttype == unix.PACKET_OUTGOING || n < 20:
			continue
		case link.Protocol != v4<<8|v4>>8 && link.Protocol != v6<<8|v6>>8:
			continue
		case buf[0]>>4 == 6 && n > 40 && buf[6] == unix.IPPROTO_ICMPV6 && buf[40] >= 133 && buf[40] <= 137:
			continue // neighbour discovery is of the link (RFC 4861): it was let pass
		}
		queue <- delayed{append([]byte(nil), buf[:n]...), time.Now().Add(d)}
	}
}

// letGo gives packets to the kernel when they are due, and closes empty when it comes to one that is none.
func letGo(tun int, queue <-chan delayed, empty chan<- struct{}) error {
	for p := range queue {
		if p.packet == nil {
			close(empty)
			break
		}
		time.Sleep(time.Until(p.at))
		if _, err := unix.Write(tun, p.packet); err != nil {
			return fmt.Errorf("tun: %w", err)
		}
	}
	select {} // what comes in twice now, by the socket and by itself, goes nowhere
}

func nftables(rules string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// slowGuest has a guest hear everything late, slowRacks all that goes from one rack to the other, each way.
func (l *lab) slowGuest(guest string, d time.Duration) (stop func()) {
	return l.tool(guest, "slow", "slow", strconv.Itoa(int(d.Milliseconds())), "eth0")
}

func (l *lab) slowRacks(d time.Duration) (stop func()) {
	ms := strconv.Itoa(int(d.Milliseconds()))
	one := l.tool("leaf1", "slow", "slow", ms, "eth1", "eth4")
	two := l.tool("leaf2", "slow", "slow", ms, "eth1", "eth4")
	return func() { one(); two() }
}

// TestSlow: a way that takes long, whole as it is, is never called faulty. Connection tracking on it must
// not be made to drop an answer by what the agents do with a probe whose answer is late. The guest that
// answers late is one that listens, too: conntrack judges a SYN-ACK by more than it does a RST.
func TestSlow(t *testing.T) {
	t.Parallel()
	l := up(t)
	l.must("lab", "break", "port-open", "blue-4") // and blue-3 does not listen
	for _, late := range []time.Duration{130 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond} {
		for _, where := range []string{"guests", "racks"} {
			l.trySlow(t, late, where)
		}
	}
}

// trySlow checks pairs on slow ways.
func (l *lab) trySlow(t *testing.T, late time.Duration, where string) {
	t.Helper()
	trips := time.Duration(1)
	if where == "guests" {
		defer l.slowGuest("blue-3", late)()
		defer l.slowGuest("blue-4", late)()
	} else {
		trips = 2
		defer l.slowRacks(late)()
	}
	for _, scheme := range []string{"tcp", "icmp", "auto"} {
		for _, to := range []string{"blue-3", "blue-4"} {
			c := l.check(anyCode, "blue-1", to, "--scheme", scheme)
			name := fmt.Sprintf("%s %v, %s to %s", where, late, scheme, to)
			for _, p := range c.Pairs {
				t.Logf("%s: %s after %d probes, round trip %v: %s", name, p.Verdict, p.Probes, time.Duration(p.RTT), p.Cause)
				switch {
				case p.Verdict == "unknown" && scheme == "tcp" && to == "blue-4" && trips*late >= 600*time.Millisecond:
					// Who listens says SYN-ACK again after a second (RFC 6298, section 2.1), before it hears that nobody
					// wants the connection; and conntrack takes the next one for a forgery.
				case p.Verdict != "healthy":
					t.Errorf("%s: %v; want healthy", name, p)
				case time.Duration(p.RTT) < trips*late:
					t.Errorf("%s: a round trip of %v; want %v at the least", name, time.Duration(p.RTT), trips*late)
				}
			}
		}
	}
}
