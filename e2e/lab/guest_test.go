package lab

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/e2e/lab/overlay"
)

// testGuests breaks guests in ways that lose nothing, and looks at what they answer to a SYN with
// a ToS: by default a reset with the same.
func testGuests(t *testing.T, l *Lab) {
	const tos, flagsOfReset, flagsOfSYN = 0x48, 0x14, 0x12
	src, _ := l.Overlay().Instance("amber-1")
	dst, _ := l.Overlay().Instance("amber-2")
	p := overlay.Pair{Src: src, Dst: dst}
	for _, tt := range []struct {
		kinds []string
		flags byte
		tos   int
	}{
		{nil, flagsOfReset, tos},
		{[]string{"tos-cleared"}, flagsOfReset, 0},
		{[]string{"port-open"}, flagsOfSYN, 0}, // its own, not the SYN's (net.ipv4.tcp_reflect_tos is off)
		{[]string{"port-open", "tos-cleared"}, flagsOfSYN, 0},
	} {
		for _, kind := range tt.kinds {
			if _, err := l.Break(t.Context(), kind, dst.Name); err != nil {
				t.Fatal(err)
			}
		}
		for _, v := range overlay.Versions() {
			flags, got := answerTo(t, l, v, p, tos)
			if flags&0x17 != tt.flags || got != tt.tos {
				t.Errorf("%v, IPv%d: flags %#x, ToS %#x, want %#x and %#x", tt.kinds, v, flags, got, tt.flags, tt.tos)
			}
		}
		if _, err := l.Heal(t.Context(), "all"); err != nil {
			t.Fatal(err)
		}
	}
}

// answerTo sends SYNs until one is answered, and returns the answer's flags and ToS.
func answerTo(t *testing.T, l *Lab, v overlay.Version, p overlay.Pair, tos int) (flags byte, answered int) {
	t.Helper()
	conn, err := rawTCP(l, v, p.Src)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := stampToS(conn, v, tos); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), healPatience)
	defer cancel()
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for ctx.Err() == nil {
		seq := rand.Uint32()
		if _, err := conn.WriteTo(synSegment(v, p, seq), &net.IPAddr{IP: p.Dst.IP.Of(v).AsSlice()}); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(echoEvery))
		for {
			n, oobn, _, _, err := conn.ReadMsgIP(buf, oob)
			if err != nil {
				break
			}
			segment := buf[:n]
			if v == overlay.V4 {
				answered = int(buf[1])
				_, segment = cutHeader(segment)
			} else {
				answered = controlValue(oob[:oobn], unix.IPV6_TCLASS)
			}
			if len(segment) >= 20 && binary.BigEndian.Uint32(segment[8:]) == seq+1 {
				return segment[13], answered
			}
		}
	}
	t.Fatalf("%s to %s over IPv%d: no SYN is answered", p.Src.Name, p.Dst.Name, v)
	return 0, 0
}

// stampToS has a socket send packets with a ToS, or traffic class, and tell that of what it gets.
func stampToS(conn *net.IPConn, v overlay.Version, tos int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var errSet error
	err = raw.Control(func(fd uintptr) {
		if v == overlay.V4 {
			errSet = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos)
			return
		}
		if errSet = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos); errSet == nil {
			errSet = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		}
	})
	if err != nil {
		return err
	}
	return errSet
}
