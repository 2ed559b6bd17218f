package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/api/dyetrace/v1/dyetracev1connect"
	"github.com/dyetrace/dyetrace/internal/teacher"
	"github.com/dyetrace/dyetrace/pki"
)

// beDyetrace makes the test binary the program itself, so that tests run it as a process of its
// own: with exit codes, signals and streams as users have them.
const beDyetrace = "DYETRACE_TEST_MAIN"

func TestMain(m *testing.M) {
	teacher.Main()
	if os.Getenv(beDyetrace) != "" {
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// script is a controller that answers as a test wants it to, over real TLS and HTTP/2. What a
// real controller answers is for e2e; this is for answers that cannot be had there at will.
type script struct {
	dyetracev1connect.UnimplementedControllerServiceHandler
	start     func(*dyetracev1.StartRunRequest) (*dyetracev1.Run, error)
	watch     func(context.Context, *connect.ServerStream[dyetracev1.WatchRunResponse]) error
	status    func() (*dyetracev1.GetStatusResponse, error)
	hosts     []*dyetracev1.Host
	instances []*dyetracev1.Instance
	runs      []*dyetracev1.Run
	cancelled atomic.Value // id of the run
	resumed   atomic.Value
}

func (s *script) StartRun(_ context.Context, req *connect.Request[dyetracev1.StartRunRequest]) (*connect.Response[dyetracev1.StartRunResponse], error) {
	run, err := s.start(req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&dyetracev1.StartRunResponse{Run: run}), nil
}

func (s *script) WatchRun(ctx context.Context, _ *connect.Request[dyetracev1.WatchRunRequest], stream *connect.ServerStream[dyetracev1.WatchRunResponse]) error {
	return s.watch(ctx, stream)
}

func (s *script) CancelRun(_ context.Context, req *connect.Request[dyetracev1.CancelRunRequest]) (*connect.Response[dyetracev1.CancelRunResponse], error) {
	s.cancelled.Store(req.Msg.GetId())
	return connect.NewResponse(&dyetracev1.CancelRunResponse{}), nil
}

func (s *script) ResumeRun(_ context.Context, req *connect.Request[dyetracev1.ResumeRunRequest]) (*connect.Response[dyetracev1.ResumeRunResponse], error) {
	s.resumed.Store(req.Msg.GetId())
	return connect.NewResponse(&dyetracev1.ResumeRunResponse{Run: &dyetracev1.Run{Id: req.Msg.GetId()}}), nil
}

func (s *script) GetRun(_ context.Context, req *connect.Request[dyetracev1.GetRunRequest]) (*connect.Response[dyetracev1.GetRunResponse], error) {
	for _, r := range s.runs {
		if r.GetId() == req.Msg.GetId() {
			return connect.NewResponse(&dyetracev1.GetRunResponse{Run: r}), nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("run: no run "+req.Msg.GetId()))
}

func (s *script) ListRuns(context.Context, *connect.Request[dyetracev1.ListRunsRequest]) (*connect.Response[dyetracev1.ListRunsResponse], error) {
	return connect.NewResponse(&dyetracev1.ListRunsResponse{Runs: s.runs}), nil
}

func (s *script) ListHosts(context.Context, *connect.Request[dyetracev1.ListHostsRequest]) (*connect.Response[dyetracev1.ListHostsResponse], error) {
	return connect.NewResponse(&dyetracev1.ListHostsResponse{Hosts: s.hosts}), nil
}

func (s *script) ListInstances(context.Context, *connect.Request[dyetracev1.ListInstancesRequest]) (*connect.Response[dyetracev1.ListInstancesResponse], error) {
	return connect.NewResponse(&dyetracev1.ListInstancesResponse{Instances: s.instances}), nil
}

func (s *script) GetStatus(context.Context, *connect.Request[dyetracev1.GetStatusRequest]) (*connect.Response[dyetracev1.GetStatusResponse], error) {
	res, err := s.status()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// site is a directory with certificates and a context file, where a controller can listen.
type site struct {
	t   *testing.T
	dir string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	ca, err := pki.CreateCA(s.dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []pki.Request{{Role: pki.RoleController, Name: "controller"}, {Role: pki.RoleUser, Name: "ann"}} {
		if _, err := ca.Issue(r, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	text := "server: unix://" + s.socket() + "\ntls: {ca: ca.crt, cert: ann.crt, key: ann.key}\n"
	if err := os.WriteFile(s.context(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) context() string { return filepath.Join(s.dir, "context.yaml") }
func (s *site) socket() string  { return filepath.Join(s.dir, "api.sock") }

// serve lets a scripted controller listen until the test ends, or stop is called.
func (s *site) serve(h *script) (stop func()) {
	s.t.Helper()
	tlsConfig, err := pki.ServerTLS(pki.Files{
		CA: filepath.Join(s.dir, "ca.crt"), Cert: filepath.Join(s.dir, "controller.crt"), Key: filepath.Join(s.dir, "controller.key"),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ln, err := net.Listen("unix", s.socket())
	if err != nil {
		s.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(dyetracev1connect.NewControllerServiceHandler(h))
	srv := &http.Server{Handler: mux, TLSConfig: tlsConfig}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(ln, "", "") }()
	stop = func() { srv.Close() }
	s.t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			s.t.Errorf("scripted controller: %v", err)
		}
	})
	return stop
}

// command is the program as a process, which uses the site.
func (s *site) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	s.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = []string{beDyetrace + "=1", "DYETRACE_CONTEXT=" + s.context(), "PATH=" + os.Getenv("PATH"), "TERM=xterm"}
	return cmd
}

// result is what the program said.
type result struct {
	stdout, stderr string
	code           int
}

func (s *site) dyetrace(args ...string) result {
	s.t.Helper()
	cmd := s.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// want checks the exit code, and that the program said these words on standard error.
func (r result) want(t *testing.T, code int, stderr ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d; want %d\n%s%s", r.code, code, r.stdout, r.stderr)
	}
	for _, word := range stderr {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("standard error does not say %q:\n%s", word, r.stderr)
		}
	}
	if len(stderr) == 0 && r.stderr != "" {
		t.Errorf("standard error is not empty:\n%s", r.stderr)
	}
}
