package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// binary is the program under test, built once, unless $DYETRACE_E2E_BINARY names one: where tests
// run that were built elsewhere, there is no Go.
var binary string

const binaryEnv = "DYETRACE_E2E_BINARY"

// role makes this very test binary a tool inside a guest (conns_test.go).
const roleEnv = "DYETRACE_E2E_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(playRole(role, os.Args[1:]))
	}
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "e2e: root is needed, to make network namespaces and switches in them")
		return 1
	}
	dir, err := os.MkdirTemp("", "dyetrace-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if binary = os.Getenv(binaryEnv); binary != "" {
		return runSwept(m)
	}
	binary = filepath.Join(dir, "dyetrace")
	build := exec.Command("go", "build", "-o", binary, "../cmd/dyetrace")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building dyetrace: %v\n%s", err, out)
		return 1
	}
	return runSwept(m)
}

// runSwept runs the tests once the labs of those that were killed are down, and takes its own down if it is interrupted.
func runSwept(m *testing.M) int {
	sweep(func(pid int) bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		return errors.Is(err, fs.ErrNotExist)
	})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, unix.SIGTERM)
	go func() {
		s := <-signals
		fmt.Fprintf(os.Stderr, "e2e: %v: labs are taken down\n", s)
		sweep(func(pid int) bool { return pid == os.Getpid() })
		os.Exit(1)
	}()
	return m.Run()
}

// sweep takes down the labs of test processes.
func sweep(of func(pid int) bool) {
	dirs, _ := filepath.Glob(stateDir("e2e-*")) // its one error is of a bad pattern
	for _, dir := range dirs {
		var pid int
		name := filepath.Base(dir)
		if n, _ := fmt.Sscanf(name, "e2e-%d-", &pid); n != 1 || !of(pid) {
			continue
		}
		if out, err := exec.Command(binary, "lab", "down", "--lab", name).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "lab %s, of a test that has ended: %v\n%s", name, err, out)
		}
	}
}

// result is what a command said.
type result struct {
	stdout, stderr string
	code           int
}

// lab is a lab of its own.
type lab struct {
	t    testing.TB
	name string
}

// up raises a lab under a name of its own and takes it down with the test.
func up(t testing.TB, args ...string) *lab {
	t.Helper()
	l := &lab{t: t, name: fmt.Sprintf("e2e-%d-%d", os.Getpid(), labs.next())}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("lab %s:\n%s", l.name, l.logs())
		}
		if r := l.dyetrace("lab", "down"); r.code != 0 {
			t.Errorf("lab down: exit %d\n%s%s", r.code, r.stdout, r.stderr)
		}
	})
	if r := l.dyetrace(append([]string{"lab", "up"}, args...)...); r.code != 0 {
		t.Fatalf("lab up: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	return l
}

// with is the same lab in the hands of another test.
func (l *lab) with(t testing.TB) *lab { return &lab{t: t, name: l.name} }

// dyetrace runs the binary against this lab.
func (l *lab) dyetrace(args ...string) result {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient(5*time.Minute))
	defer cancel()
	return l.start(ctx, args...)
}

func (l *lab) start(ctx context.Context, args ...string) result {
	l.t.Helper()
	args = slices.Clone(args)
	switch args[0] {
	case "serve", "agent", "pki", "chekc":
	case "lab":
		args = slices.Insert(args, 2, "--lab", l.name)
	default:
		args = slices.Insert(args, 1, "--lab", l.name)
	}
	cmd := exec.CommandContext(ctx, binary, args...)
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		l.t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return result{out.String(), errb.String(), cmd.ProcessState.ExitCode()}
}

// must runs the binary and wants it to exit 0; it returns its standard output.
func (l *lab) must(args ...string) string {
	l.t.Helper()
	r := l.dyetrace(args...)
	if r.code != 0 {
		l.t.Fatalf("dyetrace %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// node runs a command inside a node of the lab, guest inside a guest.
func (l *lab) node(node string, argv ...string) string {
	l.t.Helper()
	return l.must(append([]string{"lab", "exec", node, "--"}, argv...)...)
}

// logs returns the ends of the lab's logs.
func (l *lab) logs() string {
	var b strings.Builder
	files, _ := filepath.Glob(filepath.Join(stateDir(l.name), "log", "*"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		fmt.Fprintf(&b, "== %s\n%s\n", filepath.Base(f), strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
	return b.String()
}

// log returns the whole of one of the lab's logs.
func (l *lab) log(name string) string {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join(stateDir(l.name), "log", name+".log"))
	if err != nil {
		l.t.Fatal(err)
	}
	return string(text)
}

// datapath is what labs' hypervisors forward by, netdev or system, unless a lab is raised with another one.
func datapath() string { return cmp.Or(os.Getenv("DYETRACE_LAB_DATAPATH"), "netdev") }

func stateDir(name string) string {
	parent := os.Getenv("DYETRACE_LAB_DIR")
	if parent == "" {
		parent = "/run/dyetrace/labs"
	}
	return filepath.Join(parent, name)
}

// check is what `check -o json` prints.
type check struct {
	Run      string         `json:"run"`
	State    string         `json:"state"`
	Verdict  string         `json:"verdict"`
	Counts   map[string]int `json:"counts"`
	Pairs    []pair         `json:"pairs"`
	Findings []finding      `json:"findings"`
	// Transitions are of a continuous run.
	Transitions []pair `json:"transitions"`
}

type pair struct {
	Src            string   `json:"src"`
	SrcNetwork     string   `json:"src_network"`
	Dst            string   `json:"dst"`
	DstNetwork     string   `json:"dst_network"`
	Verdict        string   `json:"verdict"`
	Segment        *string  `json:"segment"`
	Host           string   `json:"host"`
	Cause          string   `json:"cause"`
	CauseKind      string   `json:"cause_kind"`
	RTT            int64    `json:"rtt_ns"`
	Duplicates     int      `json:"duplicates"`
	Samples        []sample `json:"samples"`
	Probes         int      `json:"probes"`
	Scheme         string   `json:"scheme"`
	Reason         string   `json:"scheme_reason"`
	SrcIP          string   `json:"src_ip"`
	DstIP          string   `json:"dst_ip"`
	NoTouch        bool     `json:"no_touch"`
	Command        string   `json:"command"`
	CommandHost    string   `json:"command_host"`
	LogicalCommand string   `json:"logical_command"`
	Before         string   `json:"before"`
	Since          string   `json:"since"`
	Changes        int      `json:"changes"`

	Loss      *loss     `json:"loss"`
	Latencies []latency `json:"latencies"`
	Flow      *flowRef  `json:"flow"`
}

// flowRef is the flow that a verdict names.
type flowRef struct {
	Bridge, Match        string
	Table, Priority      int
	Cookie, Owner, Stage string
	LogicalFlow          *struct{ UUID, Datapath, Match string } `json:"logical_flow"`
	ACL                  *struct{ Hint, Name, Direction string }
}

type sample struct {
	Host      string `json:"host"`
	Bridge    string `json:"bridge"`
	Kind      string `json:"kind"`
	Direction string `json:"direction"`
	Seen      bool   `json:"seen"`
	At        int64  `json:"at_ns"`
	TTL       int    `json:"ttl"`
}

func (p pair) String() string {
	segment := "-"
	if p.Segment != nil {
		segment = *p.Segment
	}
	return fmt.Sprintf("%s → %s: %s, segment %s, host %s: %s: %s", p.Src, p.Dst, p.Verdict, segment, p.Host, p.CauseKind, p.Cause)
}

// anyCode is an exit code that a test does not mind.
const anyCode = -1

// check runs `check ARGS -o json` and wants this exit code.
func (l *lab) check(code int, args ...string) check {
	l.t.Helper()
	r := l.dyetrace(append(append([]string{"check"}, args...), "-o", "json")...)
	var c check
	if err := json.Unmarshal([]byte(r.stdout), &c); err != nil {
		l.t.Fatalf("check %v: exit %d, output is not one JSON object: %v\n%s%s", args, r.code, err, r.stdout, r.stderr)
	}
	if r.code != code && code != anyCode {
		for _, p := range c.Pairs {
			if p.Verdict != "healthy" {
				l.t.Logf("%v", p)
			}
		}
		l.t.Errorf("check %v: exit %d (want %d), %v\n%s", args, r.code, code, c.Counts, r.stderr)
	}
	return c
}

// patient returns how long to wait where d is enough on an ordinary machine; labs' own waits go by the
// same variable.
func patient(d time.Duration) time.Duration {
	if factor, err := strconv.ParseFloat(os.Getenv("DYETRACE_LAB_PATIENCE"), 64); err == nil && factor >= 1 && factor <= 1000 {
		return time.Duration(float64(d) * factor)
	}
	return d
}

// eventually polls until ok says so, for things that daemons do by themselves.
func eventually(t testing.TB, what string, within time.Duration, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patient(within))
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, within)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
