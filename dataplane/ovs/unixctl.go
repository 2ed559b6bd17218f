package ovs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"
)

// control is a connection to ovs-vswitchd's control socket, as ovs-appctl(8) makes one: JSON-RPC 1.0,
// one request after the other. A start of ovs-appctl is 5 ms of a processor, and 50 ms of anybody's time
// where many wait for one.
type control struct {
	conn    net.Conn
	answers *json.Decoder
	stop    func() bool
}

// control connects. The connection is of use until ctx ends, or commandTimeout is over.
func (s *Switch) control(ctx context.Context) (*control, error) {
	path, err := s.target()
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(commandTimeout)
	if at, ok := ctx.Deadline(); ok && at.Before(end) {
		end = at
	}
	_ = conn.SetDeadline(end) // it cannot fail on a socket that is open
	c := &control{conn: conn, answers: json.NewDecoder(conn)}
	c.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return c, nil
}

func (c *control) close() {
	c.stop()
	c.conn.Close()
}

// ask sends a request, and does not wait for its answer.
func (c *control) ask(method string, args ...string) error {
	if args == nil {
		args = []string{}
	}
	text, err := json.Marshal(map[string]any{"id": 0, "method": method, "params": args})
	if err == nil {
		_, err = c.conn.Write(text)
	}
	return err
}

// answer waits for what ovs-vswitchd has to say to the request before.
func (c *control) answer() (string, error) {
	var m struct {
		Result, Error any
	}
	if err := c.answers.Decode(&m); err != nil {
		return "", err
	}
	if m.Error != nil {
		return "", errors.New(strings.TrimSpace(fmt.Sprint(m.Error)))
	}
	text, _ := m.Result.(string)
	return text, nil
}

// appctl asks ovs-vswitchd one thing.
func (s *Switch) appctl(ctx context.Context, method string, args ...string) (text string, err error) {
	c, err := s.control(ctx)
	if err == nil {
		defer c.close()
		if err = c.ask(method, args...); err == nil {
			text, err = c.answer()
		}
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return text, err
}

// target returns the control socket of ovs-vswitchd, which has its process number
// in its name (ovs-appctl(8)).
func (s *Switch) target() (string, error) {
	pid, _, found := strings.Cut(s.switchd(), "@")
	if !found {
		return "", fmt.Errorf("ovs-vswitchd is not running: %s/ovs-vswitchd.pid names no process", s.opts.RunDir)
	}
	return filepath.Join(s.opts.RunDir, "ovs-vswitchd."+pid+".ctl"), nil
}
