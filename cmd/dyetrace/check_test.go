package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

const runID = "2k7vq0m3x9ab"

// pairOf is a result of one verdict, with a sample expected on hv1 and one on hv2.
func pairOf(v dyetracev1.Verdict) *dyetracev1.PairResult {
	point := func(host string) *dyetracev1.Sample {
		return &dyetracev1.Sample{Point: &dyetracev1.Point{Host: host, Bridge: "br-int", Kind: dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE}}
	}
	return &dyetracev1.PairResult{
		Src: &dyetracev1.InstanceRef{Name: "blue-1", Network: "blue"}, Dst: &dyetracev1.InstanceRef{Name: "blue-2", Network: "blue"},
		Verdict: v, Samples: []*dyetracev1.Sample{point("hv1"), point("hv2")},
	}
}

// ending is a script whose runs end at once with one pair of this verdict, of total.
func ending(v dyetracev1.Verdict, state dyetracev1.RunState, total uint32) *script {
	counts := &dyetracev1.Counts{}
	switch v {
	case dyetracev1.Verdict_VERDICT_HEALTHY:
		counts.Healthy = 1
	case dyetracev1.Verdict_VERDICT_FAULTY:
		counts.Faulty = 1
	case dyetracev1.Verdict_VERDICT_SILENT:
		counts.Silent = 1
	case dyetracev1.Verdict_VERDICT_POLICY:
		counts.Policy = 1
	case dyetracev1.Verdict_VERDICT_UNKNOWN:
		counts.Unknown = 1
	}
	began := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	run := func(state dyetracev1.RunState) *dyetracev1.Run {
		return &dyetracev1.Run{Id: runID, State: state, Total: total, Counts: counts, Verdict: v,
			Scope:   &dyetracev1.Scope{Scope: &dyetracev1.Scope_All{All: true}},
			Started: timestamppb.New(began), Ended: timestamppb.New(began.Add(time.Second))}
	}
	return &script{
		start: func(*dyetracev1.StartRunRequest) (*dyetracev1.Run, error) {
			return run(dyetracev1.RunState_RUN_STATE_RUNNING), nil
		},
		watch: func(_ context.Context, stream *connect.ServerStream[dyetracev1.WatchRunResponse]) error {
			return errors.Join(
				stream.Send(runEvent(run(dyetracev1.RunState_RUN_STATE_RUNNING))),
				stream.Send(&dyetracev1.WatchRunResponse{Event: &dyetracev1.WatchRunResponse_Pair{Pair: pairOf(v)}}),
				stream.Send(runEvent(run(state))),
			)
		},
		hosts: []*dyetracev1.Host{{Name: "hv1", Connected: true}, {Name: "hv2", Connected: true}},
		runs:  []*dyetracev1.Run{run(state)},
	}
}

func runEvent(r *dyetracev1.Run) *dyetracev1.WatchRunResponse {
	return &dyetracev1.WatchRunResponse{Event: &dyetracev1.WatchRunResponse_Run{Run: r}}
}

func TestCheckExitCodes(t *testing.T) {
	t.Parallel()
	const done = dyetracev1.RunState_RUN_STATE_DONE
	gone := ending(dyetracev1.Verdict_VERDICT_UNKNOWN, done, 1)
	gone.hosts[1].Connected = false
	tests := []struct {
		name   string
		script *script
		code   int
		stderr []string
	}{
		{"healthy", ending(dyetracev1.Verdict_VERDICT_HEALTHY, done, 1), 0, nil},
		{"faulty", ending(dyetracev1.Verdict_VERDICT_FAULTY, done, 1), 1, nil},
		{"silent", ending(dyetracev1.Verdict_VERDICT_SILENT, done, 1), 1, nil},
		{"policy", ending(dyetracev1.Verdict_VERDICT_POLICY, done, 1), 1, nil},
		{"unknown", ending(dyetracev1.Verdict_VERDICT_UNKNOWN, done, 1), 3, nil},
		{"agent gone", gone, 4, []string{"the agent of hv2 is not connected"}},
		{"cut short", ending(dyetracev1.Verdict_VERDICT_HEALTHY, done, 2), 3, []string{"1 of 2 pairs judged"}},
		{"cancelled by another", ending(dyetracev1.Verdict_VERDICT_HEALTHY, dyetracev1.RunState_RUN_STATE_CANCELLED, 1), 3, []string{"cancelled"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.serve(tt.script)
			r := s.dyetrace("check", "--all")
			r.want(t, tt.code, tt.stderr...)
			if !strings.Contains(r.stdout, runID) {
				t.Errorf("standard output does not name the run:\n%s", r.stdout)
			}
		})
	}
}

// One object, nothing beside it, and the same in YAML.
func TestCheckFormats(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(ending(dyetracev1.Verdict_VERDICT_FAULTY, dyetracev1.RunState_RUN_STATE_DONE, 1))
	var fromJSON, fromYAML any
	r := s.dyetrace("check", "--all", "-o", "json")
	r.want(t, 1)
	if err := json.Unmarshal([]byte(r.stdout), &fromJSON); err != nil {
		t.Fatalf("not one JSON value: %v\n%s", err, r.stdout)
	}
	y := s.dyetrace("check", "--all", "-o", "yaml")
	y.want(t, 1)
	// As JSON numbers, to be compared.
	var node any
	if err := yaml.Unmarshal([]byte(y.stdout), &node); err != nil {
		t.Fatalf("not YAML: %v\n%s", err, y.stdout)
	}
	text, err := json.Marshal(stringTimes(node))
	if err == nil {
		err = json.Unmarshal(text, &fromYAML)
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fromJSON, fromYAML); diff != "" {
		t.Errorf("JSON and YAML differ:\n%s", diff)
	}
	for _, key := range []string{"run", "verdict", "counts", "pairs"} {
		if _, ok := fromJSON.(map[string]any)[key]; !ok {
			t.Errorf("key %q is missing:\n%s", key, r.stdout)
		}
	}
	if strings.ContainsAny(y.stdout, "{}") {
		t.Errorf("YAML in flow style:\n%s", y.stdout)
	}
}

// stringTimes undoes that YAML has a type for times.
func stringTimes(v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			x[k] = stringTimes(e)
		}
	case []any:
		for i, e := range x {
			x[i] = stringTimes(e)
		}
	case time.Time:
		return x.UTC().Format(time.RFC3339Nano)
	}
	return v
}

func TestScopes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--all"}, "all:true"},
		{[]string{"red/10.0.1.11", "blue-1"}, `pair:{src:"red/10.0.1.11" dst:"blue-1"}`},
		{[]string{"--network", "blue"}, `network:"blue"`},
		{[]string{"--host", "hv1", "--timeout", "1500ms"}, `host:"hv1"`},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			asked := make(chan *dyetracev1.StartRunRequest, 1)
			s.serve(&script{start: func(r *dyetracev1.StartRunRequest) (*dyetracev1.Run, error) {
				asked <- r
				return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("scope.host: hv1 is unknown"))
			}})
			s.dyetrace(append([]string{"check"}, tt.args...)...).want(t, 2, "dyetrace: scope.host: hv1 is unknown\n")
			req := <-asked
			// The text form of protobuf varies in spaces, on purpose.
			if got := strings.ReplaceAll(req.GetScope().String(), "  ", " "); got != tt.want {
				t.Errorf("scope %s; want %s", got, tt.want)
			}
			if want := uint32(1500); len(tt.args) == 4 && req.GetTimeoutMs() != want {
				t.Errorf("timeout %d ms; want %d", req.GetTimeoutMs(), want)
			}
		})
	}
}

func TestProbeFlags(t *testing.T) {
	t.Parallel()
	const tcp, icmp = dyetracev1.Scheme_SCHEME_TCP, dyetracev1.Scheme_SCHEME_ICMP
	for _, tt := range []struct {
		flags string
		want  *dyetracev1.ProbeOptions
		shown string // as the run's options
	}{
		{"", &dyetracev1.ProbeOptions{}, "done)"},
		{"--scheme auto --ip auto", &dyetracev1.ProbeOptions{}, "done)"},
		{"--scheme tcp --ip 4", &dyetracev1.ProbeOptions{Scheme: tcp, IpVersion: dyetracev1.IPVersion_IP_VERSION_4}, "done, --scheme tcp --ip 4)"},
		{"--scheme icmp", &dyetracev1.ProbeOptions{Scheme: icmp}, "done, --scheme icmp)"},
		{"--loss --max-loss 0.5", &dyetracev1.ProbeOptions{Loss: true, MaxLoss: 0.005}, "done, --loss --max-loss 0.5)"},
		{"--rate 0.5", &dyetracev1.ProbeOptions{Rate: 0.5}, "done, --rate 0.5)"},
		{"--max-loss 5", &dyetracev1.ProbeOptions{MaxLoss: 0.05}, "done, --max-loss 5)"},
		{"--max-loss 1.25", &dyetracev1.ProbeOptions{MaxLoss: 0.0125}, "done, --max-loss 1.25)"},
		{"--ip 6 --no-touch", &dyetracev1.ProbeOptions{IpVersion: dyetracev1.IPVersion_IP_VERSION_6, NoTouch: true}, "done, --ip 6 --no-touch)"},
	} {
		t.Run("check "+tt.flags, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			h := ending(dyetracev1.Verdict_VERDICT_HEALTHY, dyetracev1.RunState_RUN_STATE_DONE, 1)
			var asked atomic.Pointer[dyetracev1.ProbeOptions]
			h.start = func(r *dyetracev1.StartRunRequest) (*dyetracev1.Run, error) {
				asked.Store(r.GetOptions())
				h.runs[0].Options = r.GetOptions()
				return h.runs[0], nil
			}
			h.watch = func(_ context.Context, stream *connect.ServerStream[dyetracev1.WatchRunResponse]) error {
				return stream.Send(runEvent(h.runs[0]))
			}
			s.serve(h)
			r := s.dyetrace(append([]string{"check", "--all"}, strings.Fields(tt.flags)...)...)
			r.want(t, 0)
			if got := asked.Load(); !proto.Equal(got, tt.want) {
				t.Errorf("options %v; want %v", got, tt.want)
			}
			if !strings.Contains(r.stdout, tt.shown) {
				t.Errorf("%q is not in it:\n%s", tt.shown, r.stdout)
			}
			// Whoever finds the run later sees how it was asked for.
			r = s.dyetrace("runs")
			r.want(t, 0)
			scope := strings.TrimSpace("--all " + strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(tt.shown, "done"), ", "), ")"))
			if !strings.Contains(r.stdout, "  "+scope+"  done") {
				t.Errorf("runs: %q is not in it:\n%s", scope, r.stdout)
			}
		})
	}
}

// A controller from before there were options does not know what it passes over: a guest that was
// not to be touched would be.
func TestOldController(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	h := ending(dyetracev1.Verdict_VERDICT_HEALTHY, dyetracev1.RunState_RUN_STATE_DONE, 1)
	s.serve(h)
	r := s.dyetrace("check", "--all", "--no-touch")
	r.want(t, 2, "--no-touch: the controller is too old", "run "+runID+" cancelled")
	if r.stdout != "" {
		t.Errorf("standard output is not empty:\n%s", r.stdout)
	}
	if id := h.cancelled.Load(); id != runID {
		t.Errorf("cancelled run %v; want %s", id, runID)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	s := newSite(t) // where nobody listens: none of these may even ask
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"chekc"}, []string{`unknown command "chekc"`}},
		{[]string{"check"}, []string{"--all", "SRC DST"}},
		{[]string{"check", "blue-1"}, []string{"DST is missing"}},
		{[]string{"check", "a", "b", "c"}, []string{"3 instances"}},
		{[]string{"check", "--all", "--host", "h"}, []string{"--all and --host"}},
		{[]string{"check", "--all", "a", "b"}, []string{"--all and instances"}},
		{[]string{"check", "--all", "--timeout", "soon"}, []string{"timeout", "soon"}},
		{[]string{"check", "--all", "--timeout", "-1s"}, []string{"--timeout", "1ms or more"}},
		{[]string{"check", "--all", "-o", "xml"}, []string{"xml", "table, json or yaml"}},
		{[]string{"check", "--all", "--scheme", "udp"}, []string{"--scheme", `"udp"`, "auto, tcp or icmp"}},
		{[]string{"check", "--all", "--ip", "5"}, []string{"--ip", `"5"`, "auto, 4 or 6"}},
		{[]string{"check", "--all", "--no-touch=perhaps"}, []string{"--no-touch", "perhaps"}},
		{[]string{"run"}, []string{"accepts 1 arg"}},
		{[]string{"run", "x", "--resume", "--cancel"}, []string{"resume", "cancel"}},
		{[]string{"runs", "--limit", "0"}, []string{"--limit", "1 to 1000"}},
		{[]string{"status", "now"}, []string{"now"}},
		{[]string{"pki", "issue", "--dir", s.dir, "--role", "user"}, []string{"name"}},
		{[]string{"pki", "issue", "--dir", s.dir, "--role", "king", "--name", "x"}, []string{"king", "controller, agent or user"}},
		{[]string{"pki", "issue", "--dir", s.dir, "--role", "user", "--name", "x", "--days", "0"}, []string{"--days"}},
		{[]string{"pki", "issue", "--dir", s.dir, "--role", "user", "--name", "ann"}, []string{"ann.key", "--renew"}},
		{[]string{"pki", "init", "--dir", s.dir}, []string{"ca.crt", "exists already"}},
		{[]string{"pki", "issue", "--dir", s.dir + "/none", "--role", "user", "--name", "x"}, []string{"dyetrace pki init"}},
		{[]string{"doctor", "plumber"}, []string{"plumber"}},
		{[]string{"agent", "--log-level", "loud"}, []string{"--log-level", "loud"}},
		{[]string{"hosts", "--server", "http://x"}, []string{"https://HOST:PORT"}},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			r := s.dyetrace(tt.args...)
			r.want(t, 2, tt.want...)
			if r.stdout != "" {
				t.Errorf("standard output is not empty:\n%s", r.stdout)
			}
		})
	}
}

func TestRefusedByController(t *testing.T) {
	t.Parallel()
	for code, want := range map[connect.Code]int{
		connect.CodeInvalidArgument: 2, connect.CodeNotFound: 2, connect.CodeFailedPrecondition: 2,
		connect.CodeUnavailable: 4, connect.CodePermissionDenied: 4, connect.CodeUnauthenticated: 4,
		connect.CodeInternal: 3, connect.CodeResourceExhausted: 3,
	} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.serve(&script{start: func(*dyetracev1.StartRunRequest) (*dyetracev1.Run, error) {
				return nil, connect.NewError(code, errors.New("the controller's words"))
			}})
			s.dyetrace("check", "--all").want(t, want, "the controller's words")
		})
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, args := range [][]string{{"check", "--all"}, {"hosts"}, {"status"}, {"run", runID}} {
		r := s.dyetrace(args...)
		r.want(t, 4, "is not reachable", s.socket())
		if r.stdout != "" {
			t.Errorf("%v: standard output is not empty:\n%s", args, r.stdout)
		}
	}
}

// A controller that dies in mid-run must not look like a verdict.
func TestControllerDiesInMidRun(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	h := ending(dyetracev1.Verdict_VERDICT_HEALTHY, dyetracev1.RunState_RUN_STATE_DONE, 1)
	sent := make(chan struct{})
	h.watch = func(ctx context.Context, stream *connect.ServerStream[dyetracev1.WatchRunResponse]) error {
		err := stream.Send(&dyetracev1.WatchRunResponse{Event: &dyetracev1.WatchRunResponse_Pair{Pair: pairOf(dyetracev1.Verdict_VERDICT_HEALTHY)}})
		close(sent)
		<-ctx.Done()
		return err
	}
	stop := s.serve(h)
	go func() {
		<-sent
		stop()
	}()
	r := s.dyetrace("check", "--all", "-o", "json")
	r.want(t, 4, "dyetrace run "+runID)
	if r.stdout != "" {
		t.Errorf("standard output is not empty:\n%s", r.stdout)
	}
}

// A stream that ends in good order, but before the run has.
func TestStreamEndsBeforeRun(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	h := ending(dyetracev1.Verdict_VERDICT_HEALTHY, dyetracev1.RunState_RUN_STATE_RUNNING, 1)
	s.serve(h)
	s.dyetrace("check", "--all").want(t, 4, "before the run had ended")
}

func TestInterruptCancels(t *testing.T) {
	t.Parallel()
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			h := ending(dyetracev1.Verdict_VERDICT_HEALTHY, dyetracev1.RunState_RUN_STATE_DONE, 2)
			watching := make(chan struct{})
			h.watch = func(ctx context.Context, stream *connect.ServerStream[dyetracev1.WatchRunResponse]) error {
				err := stream.Send(runEvent(h.runs[0]))
				close(watching)
				<-ctx.Done()
				return err
			}
			s.serve(h)
			cmd := s.command("check", "--all")
			var stderr strings.Builder
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-watching
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // its exit code is looked at
			result{stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}.want(t, 130, "run "+runID+" cancelled")
			if id := h.cancelled.Load(); id != runID {
				t.Errorf("cancelled run %v; want %s", id, runID)
			}
		})
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	h := ending(dyetracev1.Verdict_VERDICT_FAULTY, dyetracev1.RunState_RUN_STATE_DONE, 1)
	s.serve(h)
	s.dyetrace("run", runID).want(t, 1)
	s.dyetrace("run", "none").want(t, 2, "no run none")
	s.dyetrace("run", runID, "--wait").want(t, 1)
	s.dyetrace("run", runID, "--resume").want(t, 1)
	if id := h.resumed.Load(); id != runID {
		t.Errorf("resumed %v; want %s", id, runID)
	}
	s.dyetrace("run", runID, "--cancel").want(t, 0)
	if id := h.cancelled.Load(); id != runID {
		t.Errorf("cancelled %v; want %s", id, runID)
	}
	r := s.dyetrace("runs")
	r.want(t, 0)
	if !strings.Contains(r.stdout, runID) || !strings.Contains(r.stdout, "--all") {
		t.Errorf("runs:\n%s", r.stdout)
	}
}
