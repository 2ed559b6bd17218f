package bench

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/bgp"
	"github.com/dyetrace/dyetrace/bgp/rib"
)

// clock is one that all processes of the machine share, in nanoseconds.
func clock() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// learnerConfig is a speaker with all on that costs: route targets, next hops of all VTEPs, limits.
func learnerConfig(addr string, peers []string, f fabric) (c bgp.Config, vteps []netip.Prefix) {
	c = bgp.Config{RouterID: addr, AS: localAS, Listen: addr + ":179"}
	for _, p := range peers {
		peer := bgp.Peer{Address: p, AS: localAS, Passive: true, Source: addr, NextHops: []string{"known"}, MaxRoutes: 2 * f.routes()}
		for i := range vnis {
			peer.RTs = append(peer.RTs, fmt.Sprintf("64512:%d", 10000+i))
		}
		c.Peers = append(c.Peers, peer)
	}
	for i := range f.vteps {
		vteps = append(vteps, netip.PrefixFrom(f.vtep(i), 32))
	}
	return c, vteps
}

// learn is the process under test: "VTEPS HOSTS ADDRESS PEER…". Asked on standard input, it answers
// on standard output, a line each:
//
//	wait N   clock when that many routes are kept
//	read     lookups from here on, by one reader that takes a snapshot each 100 ms
//	stop     how many there were, and how many found what is right
func learn(args string) error {
	var f fabric
	words := strings.Fields(args)
	if _, err := fmt.Sscan(strings.Join(words[:2], " "), &f.vteps, &f.hosts); err != nil {
		return err
	}
	table := rib.New(rib.Options{})
	var feeds []bgp.Feed
	into := bgp.LearnInto(table)
	c, vteps := learnerConfig(words[2], words[3:], f)
	s, err := bgp.New(c, bgp.Options{VTEPs: vteps, Learn: func(peer string, o rib.PeerOptions) bgp.Feed {
		feed := into(peer, o)
		feeds = append(feeds, feed)
		return feed
	}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-failed:
		return err
	}
	var r *reader
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch verb, arg, _ := strings.Cut(in.Text(), " "); verb {
		case "wait":
			n, _ := strconv.Atoi(arg)
			fmt.Println(await(feeds, n))
		case "read":
			r = read(table, f)
			fmt.Println("ok")
		case "stop":
			r.stop()
			fmt.Println(r.lookups.Load(), r.found.Load())
		}
	}
	cancel()
	return <-failed
}

func await(feeds []bgp.Feed, n int) int64 {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		have := 0
		for _, f := range feeds {
			have += f.Routes()
		}
		if have == n {
			return clock()
		}
	}
	return 0
}

// reader looks up hosts at random for as long as it is let.
type reader struct {
	lookups, found atomic.Uint64
	end            atomic.Bool
	done           sync.WaitGroup
}

func read(t *rib.Table, f fabric) *reader {
	r := &reader{}
	r.done.Go(func() {
		for !r.end.Load() {
			s := t.Snapshot()
			for until := time.Now().Add(100 * time.Millisecond); time.Now().Before(until); {
				var found uint64
				for range 64 {
					host := rand.IntN(f.vteps * f.hosts)
					l := s.MAC(f.vni(host), f.mac(host))
					if l.State == rib.Present && len(l.VTEPs) == 1 && l.VTEPs[0].Addr == f.vtep(host/f.hosts) && l.Seq == f.seq(host) {
						found++
					}
				}
				r.found.Add(found)
				r.lookups.Add(64)
			}
		}
	})
	return r
}

func (r *reader) stop() { r.end.Store(true); r.done.Wait() }

// dyetrace is ours, in a process of its own.
type dyetrace struct {
	t   *testing.T
	cmd *exec.Cmd
	in  *bufio.Writer
	out *bufio.Scanner
}

func startDyetrace(t *testing.T, addr string, peers []string, f fabric) learner {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %s %s", learnerEnv, f.vteps, f.hosts, addr, strings.Join(peers, " ")))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d := &dyetrace{t: t, cmd: cmd, in: bufio.NewWriter(in), out: bufio.NewScanner(out)}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("learner: %v", err)
		}
	})
	return d
}

func (d *dyetrace) ask(format string, args ...any) string {
	d.t.Helper()
	fmt.Fprintf(d.in, format+"\n", args...)
	if err := d.in.Flush(); err != nil {
		d.t.Fatal(err)
	}
	if !d.out.Scan() {
		d.t.Fatalf("no answer to %q: %v", fmt.Sprintf(format, args...), d.out.Err())
	}
	return d.out.Text()
}

func (d *dyetrace) pid() int { return d.cmd.Process.Pid }

func (d *dyetrace) wait(n int) int64 {
	d.t.Helper()
	at, err := strconv.ParseInt(d.ask("wait %d", n), 10, 64)
	if err != nil || at == 0 {
		d.t.Fatalf("never %d routes: %v", n, err)
	}
	return at
}

func (d *dyetrace) read() (stop func() (lookups, found int)) {
	d.ask("read")
	return func() (lookups, found int) {
		if _, err := fmt.Sscan(d.ask("stop"), &lookups, &found); err != nil {
			d.t.Fatal(err)
		}
		return lookups, found
	}
}
