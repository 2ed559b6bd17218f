package underlay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// option is one setsockopt(2) of an int.
type option struct {
	level, name, value int
	text               string
}

// common are the options of all our sockets. No packet is fragmented, and the size is not bounded by
// what the kernel remembers of the path (IP_PMTUDISC_PROBE of ip(7)): we want to see for ourselves.
func common(ip netip.Addr) []option {
	if ip.Is4() {
		return []option{
			{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE, "IP_MTU_DISCOVER"},
			{unix.IPPROTO_IP, unix.IP_RECVTOS, 1, "IP_RECVTOS"},
			{unix.IPPROTO_IP, unix.IP_RECVTTL, 1, "IP_RECVTTL"},
		}
	}
	return []option{
		{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"},
		{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE, "IPV6_MTU_DISCOVER"},
		{unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1, "IPV6_DONTFRAG"},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1, "IPV6_RECVTCLASS"},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1, "IPV6_RECVHOPLIMIT"},
	}
}

// asking are the options of sockets that ask: errors are told (IP_RECVERR of ip(7)), and all that is
// sent bears a ToS.
func asking(ip netip.Addr, tos uint8) []option {
	if ip.Is4() {
		return append(common(ip),
			option{unix.IPPROTO_IP, unix.IP_RECVERR, 1, "IP_RECVERR"},
			option{unix.IPPROTO_IP, unix.IP_TOS, int(tos), "IP_TOS"})
	}
	return append(common(ip),
		option{unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1, "IPV6_RECVERR"},
		option{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(tos), "IPV6_TCLASS"})
}

// open returns a UDP socket bound to an address, which does not block.
func open(at netip.AddrPort, options []option) (fd int, err error) {
	family := unix.AF_INET6
	if at.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("%s: %w", o.text, err)
		}
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind to UDP %s: %w", at, err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// addrPort is the zero value for what is no internet address.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// localOf returns what a socket is bound to.
func localOf(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("getsockname: %w", err)
	}
	return addrPort(sa), nil
}

// SourceFor returns the address from which the kernel would send to dst; it sends nothing.
func SourceFor(dst netip.Addr) (netip.Addr, error) {
	any := netip.IPv6Unspecified()
	if dst.Is4() {
		any = netip.IPv4Unspecified()
	}
	fd, err := open(netip.AddrPortFrom(any, 0), nil)
	if err != nil {
		return netip.Addr{}, err
	}
	defer unix.Close(fd)
	// Any port will do: connecting a UDP socket only looks the route up (udp(7)).
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(dst, 9))); err != nil {
		return netip.Addr{}, fmt.Errorf("no way to %s: %w", dst, err)
	}
	at, err := localOf(fd)
	return at.Addr(), err
}

// marks reads ToS and TTL, or traffic class and hop limit, of a packet that came.
func marks(oob []byte) (tos, ttl uint8) {
	controls(oob, func(h unix.Cmsghdr, data []byte) {
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) > 0:
			tos = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			tos = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TTL && len(data) >= 4,
			h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_HOPLIMIT && len(data) >= 4:
			ttl = uint8(binary.NativeEndian.Uint32(data))
		}
	})
	return tos, ttl
}

// overflows reads how many datagrams a socket had no room for until this one came (SO_RXQ_OVFL of
// socket(7)); without the message it is none yet.
func overflows(oob []byte) (n uint32) {
	controls(oob, func(h unix.Cmsghdr, data []byte) {
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && len(data) >= 4 {
			n = binary.NativeEndian.Uint32(data)
		}
	})
	return n
}

// overflowed is the same number as it is now (SO_MEMINFO, since Linux 4.12; net/core/sock.c).
func overflowed(fd int) uint32 {
	var mem [9]uint32 // SK_MEMINFO_VARS of linux/sock_diag.h, of which the last is SK_MEMINFO_DROPS
	size := uint32(unsafe.Sizeof(mem))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&mem)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 || size < uint32(unsafe.Sizeof(mem)) {
		return 0
	}
	return mem[8]
}

// controls calls f for each control message; what is cut off is left out.
func controls(oob []byte, f func(h unix.Cmsghdr, data []byte)) {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return
		}
		f(h, data)
		oob = rest
	}
}

// withToS is the control message that has one packet sent with a ToS.
func withToS(ip netip.Addr, tos uint8) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	if ip.Is4() {
		h.Level, h.Type = unix.IPPROTO_IP, unix.IP_TOS
	}
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(tos))
	return b
}

// headers is what IP and UDP take of a packet.
func headers(ip netip.Addr) int {
	if ip.Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// MinSize is of the smallest packet that there is to dst, bytes of IP packet.
func MinSize(dst netip.Addr) int { return headers(dst) + HeaderSize }

// Refusal is one sort of what came back instead of answers.
type Refusal struct {
	// From says so; the zero Addr is this host itself.
	From netip.Addr
	// Type and Code of ICMP, or ICMPv6; Errno where this host refused to send.
	Type, Code uint8
	Errno      syscall.Errno
	// MTU is the largest packet that passes, as it says; 0 where it says none.
	MTU int
	// Size of the first packet that was refused, 0 where it cannot be told; Count of all.
	Size, Count int
}

// String is in the words of RFC 792 and RFC 4443.
func (r Refusal) String() string {
	if r.Errno != 0 {
		return r.Errno.Error()
	}
	type kind struct {
		six        bool
		kind, code uint8
	}
	six := r.From.Is6()
	text, ok := map[kind]string{
		{false, 3, 0}: "network unreachable", {false, 3, 1}: "host unreachable", {false, 3, 2}: "protocol unreachable",
		{false, 3, 3}: "port unreachable", {false, 3, 4}: "fragmentation needed", {false, 3, 9}: "network prohibited",
		{false, 3, 10}: "host prohibited", {false, 3, 13}: "prohibited by a filter", {false, 11, 0}: "TTL exceeded",
		{true, 1, 0}: "no route", {true, 1, 1}: "prohibited by a filter", {true, 1, 3}: "address unreachable",
		{true, 1, 4}: "port unreachable", {true, 1, 5}: "source address refused", {true, 1, 6}: "route rejected",
		{true, 2, 0}: "packet too big", {true, 3, 0}: "hop limit exceeded",
	}[kind{six, r.Type, r.Code}]
	if !ok {
		text = fmt.Sprintf("ICMP type %d, code %d", r.Type, r.Code)
	}
	return text
}

// refusalOf reads what the error queue says of one packet.
func refusalOf(oob []byte) (Refusal, bool) {
	r, found := Refusal{Count: 1}, false
	controls(oob, func(h unix.Cmsghdr, data []byte) {
		v4 := h.Level == unix.IPPROTO_IP && h.Type == unix.IP_RECVERR
		v6 := h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_RECVERR
		const size = int(unsafe.Sizeof(unix.SockExtendedErr{}))
		if !v4 && !v6 || len(data) < size {
			return
		}
		found = true
		e := unix.SockExtendedErr{
			Errno: binary.NativeEndian.Uint32(data), Origin: data[4], Type: data[5], Code: data[6],
			Info: binary.NativeEndian.Uint32(data[8:]),
		}
		if e.Errno == uint32(unix.EMSGSIZE) {
			r.MTU = int(e.Info)
		}
		if e.Origin == unix.SO_EE_ORIGIN_LOCAL {
			r.Errno = syscall.Errno(e.Errno)
			return
		}
		r.Type, r.Code, r.From = e.Type, e.Code, offender(data[size:])
	})
	return r, found
}

// offender reads the sockaddr behind a SockExtendedErr (SO_EE_OFFENDER of ip(7)).
func offender(b []byte) netip.Addr {
	if len(b) < 2 {
		return netip.Addr{}
	}
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET && len(b) >= 8:
		return netip.AddrFrom4([4]byte(b[4:8]))
	case family == unix.AF_INET6 && len(b) >= 24:
		return netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	}
	return netip.Addr{}
}
