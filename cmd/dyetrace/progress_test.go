package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// openPTY returns both ends of a pseudo-terminal (pty(7)).
func openPTY(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return master, terminal
}

// On a terminal there is progress, which is wiped, and there are colours unless NO_COLOR is set.
// In a pipe there is neither; all other tests have pipes.
func TestTerminal(t *testing.T) {
	t.Parallel()
	for _, noColor := range []bool{false, true} {
		t.Run(fmt.Sprintf("NO_COLOR %v", noColor), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.serve(ending(dyetracev1.Verdict_VERDICT_HEALTHY, dyetracev1.RunState_RUN_STATE_DONE, 1))
			master, terminal := openPTY(t)
			cmd := s.command("check", "--all")
			if noColor {
				cmd.Env = append(cmd.Env, "NO_COLOR=1")
			}
			cmd.Stdout, cmd.Stderr = terminal, terminal
			if err := cmd.Run(); err != nil {
				t.Fatal(err)
			}
			terminal.Close()
			// The kernel has kept what was written; reading ends with EIO, as nobody has the
			// terminal open any more.
			seen, _ := io.ReadAll(master)
			out := string(seen)
			wiped := strings.LastIndex(out, "\r\x1b[K")
			if !strings.Contains(out, "/1 pairs, ") || wiped < 0 || strings.Contains(out[wiped:], "/1 pairs, ") {
				t.Errorf("no progress, or it was not wiped: %q", out)
			}
			if colored := strings.Contains(out, "\x1b[1m"); colored == noColor {
				t.Errorf("colours: %v; want %v: %q", colored, !noColor, out)
			}
		})
	}
}
