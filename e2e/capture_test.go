package e2e

import (
	endian "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// capture counts the frames on a guest's interface that are, or look like, a probe of any
// scheme or an answer to one, until its standard input ends. It is written for this test,
// by RFC 791, 8200 and 9293, and shares nothing with what makes probes.
func capture(args []string) error {
	if len(args) != 1 {
		return errors.New("want an interface")
	}
	ifi, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	all := uint16(unix.ETH_P_ALL)
	network := all<<8 | all>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(network))
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network, Ifindex: ifi.Index}); err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		return err
	}
	fmt.Println("capturing")
	ended := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(ended) }()
	seen := 0
	for frame := make([]byte, 2048); ; {
		n, _, err := unix.Recvfrom(fd, frame, 0)
		switch {
		case err == nil:
			if stained(frame[:n]) {
				seen++
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EAGAIN):
			return fmt.Errorf("packet socket: %w", err)
		}
		select {
		case <-ended: // and the socket was found empty since
			stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
			if err != nil {
				return err
			}
			fmt.Println("stained", seen, "dropped", stats.Drops)
			return nil
		default:
		}
	}
}

// stained tells a frame with the lab's ToS, or with TCP port 11 at both ends.
func stained(frame []byte) bool {
	const tos, port = 0x5c, 11
	if len(frame) < 14 {
		return false
	}
	ip := frame[14:]
	var proto byte
	var rest []byte
	switch etherType := endian.BigEndian.Uint16(frame[12:]); {
	case etherType == 0x0800 && len(ip) >= 20:
		if ip[1]&0xfc == tos {
			return true
		}
		proto, rest = ip[9], ip[min(len(ip), int(ip[0]&15)*4):]
	case etherType == 0x86dd && len(ip) >= 40:
		if (ip[0]<<4|ip[1]>>4)&0xfc == tos {
			return true
		}
		proto, rest = ip[6], ip[40:]
	}
	return proto == 6 && len(rest) >= 4 && endian.BigEndian.Uint16(rest) == port && endian.BigEndian.Uint16(rest[2:]) == port
}

// captures counts stained frames in guests; end returns how many each saw.
func (l *lab) captures(guests []string) (end func() map[string]int) {
	l.t.Helper()
	type running struct {
		cmd *exec.Cmd
		in  io.Closer
		out *lines
	}
	all := make(map[string]running)
	for _, guest := range guests {
		cmd := exec.Command(binary, "lab", "exec", "--lab", l.name, guest, "--", "env", roleEnv+"=capture", l.self(), "eth0")
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			l.t.Fatal(err)
		}
		out := &lines{first: make(chan struct{})}
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			l.t.Fatal(err)
		}
		all[guest] = running{cmd, in, out}
	}
	var once sync.Once
	counts := make(map[string]int)
	end = func() map[string]int {
		once.Do(func() {
			for guest, r := range all {
				r.in.Close()
				if err := r.cmd.Wait(); err != nil {
					l.t.Errorf("capture in %s: %v", guest, err)
				}
				var seen, dropped int
				if _, err := fmt.Sscanf(r.out.last(), "stained %d dropped %d", &seen, &dropped); err != nil || dropped != 0 {
					l.t.Errorf("capture in %s: said %q, %v (want a count, and none dropped)", guest, r.out.last(), err)
				}
				counts[guest] = seen
			}
		})
		return counts
	}
	l.t.Cleanup(func() { end() })
	for guest, r := range all {
		select {
		case <-r.out.first:
		case <-time.After(patient(30 * time.Second)):
			l.t.Fatalf("capture in %s does not begin", guest)
		}
	}
	return end
}

// lines is the output of a command, line by line.
type lines struct {
	mu    sync.Mutex
	text  strings.Builder
	first chan struct{} // closed with the first line
}

func (w *lines) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.text.Len() == 0 && len(b) > 0 {
		close(w.first)
	}
	return w.text.Write(b)
}

func (w *lines) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := strings.Split(strings.TrimSpace(w.text.String()), "\n")
	return all[len(all)-1]
}

// TestNoTouch sends over 20,000 probes between 104 guests that must see none of them.
func TestNoTouch(t *testing.T) {
	t.Parallel()
	const pairs = 104 * 103
	l := up(t, "--topology", "scale")
	guests := l.guests()
	if len(guests) != 104 {
		t.Fatalf("%d guests (want 104)", len(guests))
	}
	end := l.captures(guests)
	c := l.check(0, "--all", "--no-touch", "--scheme", "tcp", "--timeout", "240s") // the pace takes 41 s, beside other labs more
	if c.Counts["healthy"] != pairs {
		t.Errorf("%v (want %d healthy)", c.Counts, pairs)
	}
	probes := 0
	for _, p := range c.Pairs {
		probes += p.Probes
		ways := map[string]bool{}
		for _, s := range p.Samples {
			if !s.Seen {
				t.Fatalf("%v: %s/%s %s not seen", p, s.Host, s.Bridge, s.Kind)
			}
			if s.Kind == "to-instance" {
				ways[s.Direction] = true
			}
		}
		if !p.NoTouch || !ways["forward"] || !ways["reply"] {
			t.Fatalf("%v: no_touch %v, delivery seen %v (want it in both directions)", p, p.NoTouch, ways)
		}
	}
	if probes < 2*pairs {
		t.Errorf("%d probes for %d pairs (want one each way at the least)", probes, pairs)
	}
	for guest, n := range end() {
		if n != 0 {
			t.Errorf("%s saw %d of the %d probes", guest, n, probes)
		}
	}
	// The capture sees what there is to be seen.
	src, dst := c.Pairs[0].Src, c.Pairs[0].Dst
	end = l.captures([]string{src, dst})
	l.check(0, src, dst, "--scheme", "tcp")
	l.check(0, src, dst, "--scheme", "icmp")
	for guest, want := range map[string]int{src: 2, dst: 4} {
		if n := end()[guest]; n < want {
			t.Errorf("%s saw %d frames of two ordinary probes and their answers (want %d)", guest, n, want)
		}
	}
}

// guests returns the names of all instances of the lab, sorted.
func (l *lab) guests() []string {
	l.t.Helper()
	var all []struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal([]byte(l.must("instances", "-o", "json")), &all); err != nil {
		l.t.Fatal(err)
	}
	var names []string
	for _, in := range all {
		names = append(names, in.Name)
	}
	slices.Sort(names)
	return names
}
