package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// counter hands out numbers.
type counter struct{ n atomic.Int64 }

func (c *counter) next() int64 { return c.n.Add(1) }

var labs counter

// playRole is what this binary does inside a guest: `listen ADDR` accepts
// connections and holds them; `dial ADDR N` opens N, says so, and holds them
// until its standard input ends; `capture INTERFACE` counts stained frames until then. Others are told
// of where they are.
func playRole(role string, args []string) int {
	var err error
	switch role {
	case "listen":
		err = listen(args[0])
	case "dial":
		err = dial(args)
	case "deafen":
		err = deafen(args)
	case "capture":
		err = capture(args)
	case "flood":
		err = flood(args[0])
	case "slow":
		err = slow(args)
	case "chat":
		err = chat(args[0])
	default:
		err = fmt.Errorf("role %q: want listen, dial, deafen, capture, flood, slow or chat", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func listen(addr string) error {
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	ended := make(chan error, 2)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				ended <- err // one that has no file left for a connection would only fail again
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		ended <- err
	}()
	return errors.Join(<-ended, l.Close())
}

func dial(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	conns := make([]net.Conn, 0, n)
	for len(conns) < n {
		c, err := net.DialTimeout("tcp4", args[0], patient(5*time.Second))
		if err != nil {
			return fmt.Errorf("connection %d: %w", len(conns)+1, err)
		}
		conns = append(conns, c)
		// One byte each way: the connection is established in both directions.
		if _, err := c.Write([]byte{1}); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			return fmt.Errorf("connection %d: %w", len(conns), err)
		}
	}
	fmt.Println("connected", n)
	_, err = io.Copy(io.Discard, os.Stdin)
	for _, c := range conns {
		err = errors.Join(err, c.Close())
	}
	return err
}
