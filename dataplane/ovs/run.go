package ovs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A command takes milliseconds, and some tenths of a second on a bridge with
// 100,000 flows; one that takes longer than this waits for a switch that hangs.
const commandTimeout = 10 * time.Second

// openFlowVersions are all that Open vSwitch 3.1 has. A bridge may be restricted to
// any of them, and ovs-ofctl, unless told otherwise, does not speak each.
const openFlowVersions = "OpenFlow10,OpenFlow11,OpenFlow12,OpenFlow13,OpenFlow14,OpenFlow15"

// run runs one of Open vSwitch's programs and returns what it printed. The error
// has what it had to say, and nothing of what it was told to do: see the callers.
func (s *Switch) run(ctx context.Context, stdin io.Reader, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = stdin
	// ovs-ofctl and ovs-appctl look there for BRIDGE.mgmt and for pidfiles (ovs-ofctl(8)).
	cmd.Env = append(os.Environ(), "OVS_RUNDIR="+s.opts.RunDir, "LC_ALL=C")
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch {
	case err == nil:
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", name, context.Cause(ctx))
	}
	if said := strings.TrimSpace(stderr.String()); said != "" {
		if tooOld(said) {
			err = fmt.Errorf("%w, %w", ErrUnsupported, err)
		}
		return nil, fmt.Errorf("%s (%w)", strings.ReplaceAll(said, "\n", "; "), err)
	}
	return nil, fmt.Errorf("%s: %w", name, err)
}

// tooOld tells from what a program said that it does not know what it was asked for.
func tooOld(said string) bool {
	return strings.Contains(said, "unrecognized option") || strings.Contains(said, "unknown command")
}

// ofctl runs ovs-ofctl in whatever version of OpenFlow the bridge speaks.
func (s *Switch) ofctl(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	return s.run(ctx, stdin, "ovs-ofctl", append([]string{"-O", openFlowVersions}, args...)...)
}

// switchd identifies the running ovs-vswitchd by its process number and the time at
// which it started (proc(5), stat, field 22), so that a number used again is not
// taken for the same process. Empty where there is none.
func (s *Switch) switchd() string {
	text, err := os.ReadFile(filepath.Join(s.opts.RunDir, "ovs-vswitchd.pid"))
	if err != nil {
		return ""
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return ""
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name, field 2, is in parentheses and may have any character.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const started = 22 - 3 // the first of fields is number 3, the state
	if len(fields) <= started || fields[0] == "Z" {
		return ""
	}
	return fmt.Sprintf("%d@%s", pid, fields[started])
}
