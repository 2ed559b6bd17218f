package doctor

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Result of one check. "Could not tell" is a result like the others.
type Result string

// Results, from best to worst.
const (
	OK      Result = "ok"
	Skipped Result = "skipped" // does not apply here
	Warn    Result = "warn"    // works, with less
	Fail    Result = "fail"
)

// Finding is what one check found.
type Finding struct {
	Group  string `json:"group"`
	Check  string `json:"check"`
	Result Result `json:"result"`
	Detail string `json:"detail"`
	// Fix says what to do; empty where nothing is needed.
	Fix string `json:"fix"`
}

// Check is one thing to look at. Look returns the detail to show; what to do is in Fix, unless
// the error brings its own.
type Check struct {
	Group, Name string
	Fix         string
	Look        func(ctx context.Context) (detail string, err error)
}

// checkTimeout bounds each check: a switch that does not answer within it is stuck.
const checkTimeout = 5 * time.Second

// finding is an error that says more than "fail".
type finding struct {
	result Result
	fix    string
	err    error
}

func (f *finding) Error() string { return f.err.Error() }
func (f *finding) Unwrap() error { return f.err }

func warn(fix, format string, args ...any) error {
	return &finding{Warn, fix, fmt.Errorf(format, args...)}
}

func skip(format string, args ...any) error {
	return &finding{Skipped, "", fmt.Errorf(format, args...)}
}

// Run makes all checks, one after the other, and returns a finding for each.
func Run(ctx context.Context, checks []Check) []Finding {
	findings := make([]Finding, 0, len(checks))
	for _, c := range checks {
		cctx, cancel := context.WithTimeout(ctx, checkTimeout)
		detail, err := c.Look(cctx)
		cancel()
		f := Finding{Group: c.Group, Check: c.Name, Result: OK, Detail: detail}
		if err != nil {
			f.Result, f.Detail, f.Fix = Fail, err.Error(), c.Fix
			var more *finding
			if errors.As(err, &more) {
				f.Result, f.Fix = more.result, more.fix
			}
		}
		findings = append(findings, f)
	}
	return findings
}

// output runs a command and returns what it printed; the error has its last line of complaint.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			lines := strings.Split(strings.TrimSpace(string(exit.Stderr)), "\n")
			if last := lines[len(lines)-1]; last != "" {
				return "", fmt.Errorf("%s: %w: %s", name, err, last)
			}
		}
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}
