package ovs

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/dyetrace/dyetrace/flows"
)

// Watch is a flow monitor of one bridge: ovs-ofctl(8), monitor, "watch:". It sees the changes of
// all tables, since every one may be the first that reads the mark. That costs some 2 µs of
// ovs-vswitchd's time a change and 5 µs of ovs-ofctl's (measured, 20,000 changes/s).
type Watch struct {
	bridge string
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	pipe   io.Closer

	rpc     sync.Mutex // one request at a time
	control net.Conn   // to ovs-ofctl; nil before it listens
	answers *json.Decoder

	mu       sync.Mutex
	barriers []chan struct{} // closed one after the other, as the replies come by
	err      error           // why there will be no more
}

// watchVersions are the versions of OpenFlow to watch by: what all else goes by; and, for a switch
// that has flow monitors only as the extension that they began as, those before 1.3, or, like that of
// Open vSwitch 2.15, the very first.
var watchVersions = []string{openFlowVersions, "OpenFlow10,OpenFlow11,OpenFlow12", "OpenFlow10"}

// ErrUnwatched says that the switch cannot tell of changes: it is too old, or the bridge is
// restricted to versions of OpenFlow in which it does not.
var ErrUnwatched = errors.New("no flow monitor")

// Watch begins to watch a bridge's flows; every change after it has returned is told by Follow.
// The error wraps ErrUnwatched where trying again cannot help until somebody changes something.
func (s *Switch) Watch(ctx context.Context, bridge string) (*Watch, error) {
	var refused error
	for _, versions := range watchVersions {
		w, err := s.watch(ctx, bridge, versions)
		if err == nil || !errors.Is(err, ErrUnwatched) {
			return w, err
		}
		refused = err
	}
	return nil, refused
}

func (s *Switch) watch(ctx context.Context, bridge, versions string) (_ *Watch, err error) {
	dir, err := os.MkdirTemp("", "dyetrace-") // for a short path, closed to others
	if err != nil {
		return nil, fmt.Errorf("ovs: bridge %s: watching: %w", bridge, err)
	}
	defer os.RemoveAll(dir) // once connected, nobody needs the name
	socket := filepath.Join(dir, "ctl")
	w := &Watch{bridge: bridge}
	w.cmd = exec.CommandContext(ctx, "ovs-ofctl", "-O", versions, "--no-names", "--unixctl="+socket, "monitor", bridge, "watch:!initial")
	w.cmd.Env = append(os.Environ(), "OVS_RUNDIR="+s.opts.RunDir, "LC_ALL=C")
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	w.cmd.WaitDelay = time.Second
	r, wr, err := os.Pipe()
	if err == nil {
		// The first reply goes to stdout, all that follows to stderr.
		w.cmd.Stdout, w.cmd.Stderr = wr, wr
		w.pipe = r
		w.lines = bufio.NewScanner(r)
		w.lines.Buffer(make([]byte, 64<<10), maxLine)
		err = w.cmd.Start()
		wr.Close()
		if err != nil {
			r.Close()
		}
	}
	if err == nil {
		err = w.begin(ctx, socket)
	}
	if err != nil {
		return nil, fmt.Errorf("ovs: bridge %s: watching: %w", bridge, err)
	}
	return w, nil
}

// maxLine is more than the longest flow: an OpenFlow message has at most 64 KiB, and no byte of it
// takes more than some characters in print.
const maxLine = 1 << 20

// begin reads up to the reply that says that the monitor is there, and connects to ovs-ofctl.
func (w *Watch) begin(ctx context.Context, socket string) error {
	var said []string
	for len(said) < 10 && w.lines.Scan() {
		line := strings.TrimSpace(w.lines.Text())
		if !strings.Contains(line, "FLOW_MONITOR reply") {
			said = append(said, line)
			if hasNoMonitor(line) {
				break // and ovs-ofctl would wait for more
			}
			continue
		}
		if err := w.connect(ctx, socket); err != nil {
			return errors.Join(err, w.end())
		}
		return nil
	}
	err := w.end()
	text := strings.Join(said, "; ")
	if hasNoMonitor(text) {
		return fmt.Errorf("%w: %s", ErrUnwatched, text)
	}
	return fmt.Errorf("%s: %w", text, err)
}

// hasNoMonitor tells from what ovs-ofctl said that the switch has no such request, or it no words for
// one in that version of OpenFlow, or that the two have no version in common.
func hasNoMonitor(text string) bool {
	for _, sign := range []string{"OFPBRC_", "OFPBMC_", "OFPMOFC_", "not support", "none of the usable flow formats", "version negotiation failed"} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return tooOld(text)
}

// connect connects to ovs-ofctl's control socket, which it makes after the monitor.
func (w *Watch) connect(ctx context.Context, socket string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var d net.Dialer
	for {
		if w.control, err = d.DialContext(ctx, "unix", socket); err == nil {
			w.answers = json.NewDecoder(w.control)
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Millisecond):
		}
	}
}

// Follow calls each for every change, in order, until the watch ends: with ctx of Watch, or with
// the connection. paused is called where flows that came and went may be left out: while too much
// of what it told was not taken yet, the switch tells of nothing but of the end of flows that it
// has told of; then, of all that came meanwhile and is still there. Follow must be called once;
// what it returns is why it ended, never nil.
func (w *Watch) Follow(each func(flows.Change), paused func()) error {
	var err error
	for err == nil && w.lines.Scan() {
		line := w.lines.Text()
		var c flows.Change
		var ok bool
		if c, ok, err = flows.ParseChange(line); ok {
			each(c)
			continue
		}
		switch {
		case strings.Contains(line, "FLOW_MONITOR_PAUSED"), strings.Contains(line, "event=PAUSED"):
			paused()
		case strings.Contains(line, "BARRIER_REPLY"):
			w.pass()
		}
	}
	if err == nil {
		err = w.lines.Err()
	}
	if err == nil {
		err = io.EOF
	}
	_ = w.end() // it was killed, or said why
	err = fmt.Errorf("ovs: bridge %s: watching: %w", w.bridge, err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	for _, b := range w.barriers {
		close(b)
	}
	w.barriers = nil
	return err
}

func (w *Watch) pass() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.barriers) > 0 {
		close(w.barriers[0])
		w.barriers = w.barriers[1:]
	}
}

// Barrier returns once Follow has told of all changes that were made before it was called: the
// switch answers a barrier on the monitor's connection after what it had to say before
// (ovs-ofctl(8), ofctl/barrier). Follow must be running. A barrier that fails ends the watch.
func (w *Watch) Barrier(ctx context.Context) error {
	reached := make(chan struct{})
	err := w.barrier(ctx, reached)
	if err == nil {
		select {
		case <-reached:
			w.mu.Lock()
			err = w.err
			w.mu.Unlock()
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		w.Stop() // its reply would be taken for the next one's
		return fmt.Errorf("ovs: bridge %s: barrier: %w", w.bridge, err)
	}
	return nil
}

// barrier has ovs-ofctl send a barrier; reached is closed when its reply came by, or none will.
func (w *Watch) barrier(ctx context.Context, reached chan struct{}) error {
	w.rpc.Lock()
	defer w.rpc.Unlock()
	w.mu.Lock()
	err := w.err
	if err == nil {
		w.barriers = append(w.barriers, reached)
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, w.Stop)()
	// JSON-RPC 1.0, as ovs-appctl(8) speaks it.
	if _, err := io.WriteString(w.control, `{"id":0,"method":"ofctl/barrier","params":[]}`); err != nil {
		return err
	}
	var answer struct {
		Error any `json:"error"`
	}
	if err := w.answers.Decode(&answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return fmt.Errorf("ovs-ofctl says: %v", answer.Error)
	}
	return nil
}

// Stop ends the watch, and Follow with it.
func (w *Watch) Stop() { _ = w.cmd.Process.Kill() } // it may have ended by itself

// end waits for ovs-ofctl and gives everything back.
func (w *Watch) end() error {
	w.Stop()
	err := w.cmd.Wait()
	if w.control != nil {
		w.control.Close()
	}
	w.pipe.Close()
	return err
}
