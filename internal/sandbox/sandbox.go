package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inside tells the process in the sandbox from the one outside.
const inside = "DYETRACE_TEST_SANDBOX"

// Run is to be called by TestMain, with os.Exit around it. It runs the test binary
// again, with the same arguments, in new namespaces, and there the tests. /run is
// empty there, and lo is up. Needs root.
func Run(m *testing.M) int {
	if os.Getenv(inside) == "" {
		return outer()
	}
	if err := furnish(); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 1
	}
	return m.Run()
}

func outer() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "sandbox: these tests make network namespaces and run Open vSwitch: run them as root")
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The one inside gets what the terminal sends as well, and must not outlive us.
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "sandbox:", err)
	return 1
}

func furnish() error {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// Command runs a program, fails the test if it fails, and returns what it printed; of a list that was cut short, the next one.
func Command(t testing.TB, name string, args ...string) string {
	t.Helper()
	for {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		if !bytes.Contains(out, []byte(interrupted)) {
			return string(out)
		}
	}
}

// interrupted is what ip(8) and tc(8) say of a list that may not be whole, since something changed while the kernel told it (NLM_F_DUMP_INTR
// of linux/netlink.h).
const interrupted = "Dump was interrupted and may be inconsistent"

// Version is the last word of the first line that a program of Open vSwitch says of itself, such as "3.1.0".
func Version(cmd *exec.Cmd) (string, error) {
	out, err := cmd.Output()
	line, _, _ := strings.Cut(string(out), "\n")
	words := strings.Fields(line)
	if err == nil && len(words) == 0 {
		err = errors.New("no version")
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return words[len(words)-1], nil
}

// Within calls fn on a thread that is in a network namespace meanwhile, and fails the test with the error that it returns. The
// thread does not end by that: with it would all processes that it has begun with Pdeathsig, for other tests as well (prctl(2)).
func Within(t testing.TB, namespace string, fn func() error) {
	t.Helper()
	if err := within(namespace, fn); err != nil {
		t.Fatal(err)
	}
}

func within(namespace string, fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := netns.GetFromName(namespace)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", namespace, err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		return fmt.Errorf("network namespace %s: %w", namespace, err)
	}
	defer func() { // even if fn ends the test
		if err := netns.Set(home); err != nil {
			panic(err) // no test could go on by this thread
		}
	}()
	return fn()
}
