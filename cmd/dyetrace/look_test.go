package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/doctor"
	"github.com/dyetrace/dyetrace/pki"
)

// fleet is a script with two hosts, of which one is gone, and three instances.
func fleet() *script {
	return &script{
		hosts: []*dyetracev1.Host{
			{Name: "hv1", Connected: true, Expected: true, Version: "1.0", OvsVersion: "3.1.0", Bridges: []*dyetracev1.Bridge{
				{Name: "br-int", DatapathType: "netdev", State: dyetracev1.HookState_HOOK_STATE_LIVE, DyePort: "dye-br-int", DyeOfport: 9, Table: 200, Mark: "reg10[31]",
					Kinds: []dyetracev1.PointKind{dyetracev1.PointKind_POINT_KIND_FROM_INSTANCE}},
				{Name: "br-vm", State: dyetracev1.HookState_HOOK_STATE_ABSENT, Reason: "not installed yet",
					Absent: []*dyetracev1.AbsentPoint{{Kind: dyetracev1.PointKind_POINT_KIND_TO_INSTANCE, Reason: "no BPF here"}}},
				{Name: "br-ex", State: dyetracev1.HookState_HOOK_STATE_REFUSED, Reason: "no free bit"},
			}, Endpoints: []*dyetracev1.Endpoint{
				{Bridge: "br-int", Port: "tap-web"},
				{Bridge: "br-int", Port: "vhu-1", Unsampled: "a port of type dpdkvhostuser"}, {Bridge: "br-int", Port: "vhu-2", Unsampled: "a port of type dpdkvhostuser"},
				{Bridge: "br-int", Port: "vhu-3", Unsampled: "a port of type dpdkvhostuser"}, {Bridge: "br-int", Port: "vhu-4", Unsampled: "a port of type dpdkvhostuser"},
				{Bridge: "br-int", Port: "tap-gone", Unsampled: "no such device"}, {Bridge: "br-vm", Port: "tap-old"},
			}},
			{Name: "hv2", Expected: true},
		},
		instances: []*dyetracev1.Instance{
			{Name: "web", Network: "blue", Ip: "10.0.1.11", Ips: []string{"10.0.1.11", "fd00:1::11"}, Host: "hv1", Endpoint: &dyetracev1.Endpoint{Bridge: "br-int", Port: "tap-web", LinkState: "up"}},
			{Name: "web", Network: "red", Ip: "10.0.1.11", Host: "hv2"},
			{Name: "db", Network: "blue", Ip: "10.0.1.12", Host: "hv1"},
		},
	}
}

func TestLists(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(fleet())
	for verb, want := range map[string][]string{
		"hosts": {"hv1", "connected", "1/3", "never seen", "\n\ndelivery (to-instance) is not seen at\n" +
			"  hv1/br-int vhu-1, vhu-2, vhu-3 and 1 more: a port of type dpdkvhostuser\n" +
			"  hv1/br-int tap-gone: no such device\n" +
			"  hv1/br-vm tap-old: no BPF here\n"},
		"instances": {"tap-web", "not found", "  10.0.1.11, fd00:1::11  ", "  10.0.1.12  "},
		"hooks":     {"dye-br-int (9)", "reg10[31]", "refused", "no free bit"},
	} {
		for _, format := range []string{"table", "json", "yaml"} {
			r := s.dyetrace(verb, "-o", format)
			r.want(t, 0)
			if format == "json" && !json.Valid([]byte(r.stdout)) {
				t.Errorf("%s: not JSON:\n%s", verb, r.stdout)
			}
			for _, w := range want {
				if format == "table" && !strings.Contains(r.stdout, w) {
					t.Errorf("%s: %q is not in it:\n%s", verb, w, r.stdout)
				}
			}
		}
	}
}

// Lists without entries are [] for scripts, not null.
func TestEmptyLists(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(&script{})
	for _, verb := range []string{"hosts", "instances", "hooks", "runs"} {
		if r := s.dyetrace(verb, "-o", "json"); r.stdout != "[]\n" {
			t.Errorf("%s: %q, %s; want []", verb, r.stdout, r.stderr)
		}
	}
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	h := fleet()
	h.runs = []*dyetracev1.Run{{Id: runID, State: dyetracev1.RunState_RUN_STATE_DONE}}
	s.serve(h)
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"check", ""}, []string{"blue/web", "red/web", "db"}},
		{[]string{"check", "db", ""}, []string{"blue/web", "red/web", "db"}},
		{[]string{"check", "--scheme", ""}, []string{"auto", "tcp", "icmp"}},
		{[]string{"check", "--ip", ""}, []string{"auto", "4", "6"}},
		{[]string{"check", "--network", ""}, []string{"blue", "red"}},
		{[]string{"check", "--host", ""}, []string{"hv1", "hv2"}},
		{[]string{"run", ""}, []string{runID}},
		{[]string{"hosts", "-o", ""}, []string{"table", "json", "yaml"}},
	} {
		r := s.dyetrace(append([]string{"__complete"}, tt.args...)...)
		var words []string
		for line := range strings.Lines(r.stdout) {
			word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			if !strings.HasPrefix(word, ":") {
				words = append(words, word)
			}
		}
		if strings.Join(words, " ") != strings.Join(tt.want, " ") {
			t.Errorf("complete %v: %v; want %v", tt.args, words, tt.want)
		}
	}
}

// What a list says in JSON is there also where nothing is to be said.
func TestListsInJSON(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(fleet())
	for verb, want := range map[string]string{
		"hosts":     `[["","a port of type dpdkvhostuser","a port of type dpdkvhostuser","a port of type dpdkvhostuser","a port of type dpdkvhostuser","no such device",""],[]]`,
		"instances": `[["10.0.1.11","fd00:1::11"],["10.0.1.11"],["10.0.1.12"]]`,
	} {
		r := s.dyetrace(verb, "-o", "json")
		r.want(t, 0)
		var list []struct {
			IPs       []string
			Endpoints []struct{ Unsampled *string }
		}
		if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
			t.Fatal(err)
		}
		got := make([][]string, len(list))
		for i, e := range list {
			got[i] = append([]string{}, e.IPs...)
			for _, ep := range e.Endpoints {
				if ep.Unsampled == nil {
					t.Fatalf("%s: unsampled is missing:\n%s", verb, r.stdout)
				}
				got[i] = append(got[i], *ep.Unsampled)
			}
		}
		if text, err := json.Marshal(got); err != nil || string(text) != want {
			t.Errorf("%s: %s, %v; want %s", verb, text, err, want)
		}
	}
}

func TestStatusWaits(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var asked atomic.Int32
	h := &script{status: func() (*dyetracev1.GetStatusResponse, error) {
		res := &dyetracev1.GetStatusResponse{HostsExpected: 2, HostsReady: 2}
		switch asked.Add(1) {
		case 1:
			return nil, connect.NewError(connect.CodeUnavailable, errors.New("starting"))
		case 2, 3:
			res.HostsReady, res.Problems = 1, []string{"hv2: no agent"}
		}
		return res, nil
	}}
	// The program begins before anybody listens.
	cmd := s.command("status", "--wait", "50s")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.serve(h)
	if err := cmd.Wait(); err != nil || asked.Load() != 4 {
		t.Errorf("%v after %d questions; want success after 4\n%s", err, asked.Load(), out.String())
	}
}

func TestStatusNotReady(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serve(&script{status: func() (*dyetracev1.GetStatusResponse, error) {
		return &dyetracev1.GetStatusResponse{HostsExpected: 2, HostsReady: 1, Problems: []string{"hv2: no agent"}}, nil
	}})
	for _, args := range [][]string{{"status"}, {"status", "--wait", "120ms"}} {
		r := s.dyetrace(args...)
		r.want(t, 4, "1 of 2 hosts are ready")
		if !strings.Contains(r.stdout, "hv2: no agent") {
			t.Errorf("%v: the problem is not named:\n%s", args, r.stdout)
		}
	}
}

// Time does not mend a missing certificate.
func TestStatusDoesNotWaitInVain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if err := os.Remove(filepath.Join(s.dir, "ann.crt")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.dyetrace("status", "--wait", "50s").want(t, 2, "tls.cert", "ann.crt")
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestDoctorClient(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	look := func(code int, want ...doctor.Result) {
		t.Helper()
		r := s.dyetrace("doctor", "client", "-o", "json")
		r.want(t, code)
		var findings []doctor.Finding
		if err := json.Unmarshal([]byte(r.stdout), &findings); err != nil {
			t.Fatal(err)
		}
		for i, f := range findings {
			if len(findings) != len(want) || f.Result != want[i] {
				t.Errorf("finding %d: %+v; want %v", i, f, want)
			}
			if (f.Result == doctor.Fail || f.Result == doctor.Warn) != (f.Fix != "") {
				t.Errorf("%s is %s, and what to do is %q", f.Check, f.Result, f.Fix)
			}
		}
	}
	look(1, doctor.OK, doctor.OK, doctor.Fail, doctor.Skipped, doctor.Skipped) // nobody listens
	var ready, peers atomic.Uint32
	ready.Store(1)
	s.serve(&script{status: func() (*dyetracev1.GetStatusResponse, error) {
		return &dyetracev1.GetStatusResponse{
			HostsExpected: 2, HostsReady: ready.Load(), Problems: []string{"hv2: no agent"},
			Peers: 2 * peers.Load(), PeersEstablished: peers.Load(),
		}, nil
	}})
	look(1, doctor.OK, doctor.OK, doctor.OK, doctor.Fail, doctor.Skipped) // an agent is missing
	ready.Store(2)
	look(0, doctor.OK, doctor.OK, doctor.OK, doctor.OK, doctor.Skipped)
	peers.Store(1)
	look(0, doctor.OK, doctor.OK, doctor.OK, doctor.OK, doctor.Warn) // one of two
	ca, err := pki.OpenCA(s.dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issue := func(role string, days int) {
		t.Helper()
		if _, err := ca.Issue(pki.Request{Role: role, Name: "ann", Days: days, Renew: true}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	issue(pki.RoleUser, 3)
	look(0, doctor.OK, doctor.Warn, doctor.OK, doctor.OK, doctor.Warn)
	issue(pki.RoleAgent, 100)
	look(1, doctor.OK, doctor.Fail, doctor.OK, doctor.OK, doctor.Warn)
}

// The machine that runs these tests has what labs need: make setup sees to it.
func TestDoctorLab(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.dyetrace("doctor", "lab")
	r.want(t, 0)
	for _, want := range []string{"namespaces  ok", "FRR         ok      /usr/lib/frr/zebra, /usr/lib/frr/bgpd, vtysh"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("doctor lab does not say %q:\n%s", want, r.stdout)
		}
	}
}

func TestDoctorAgentWithoutSwitch(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.dyetrace("doctor", "agent", "--ovsdb", filepath.Join(s.dir, "db.sock"), "--ovs-rundir", s.dir)
	r.want(t, 1)
	for _, want := range []string{"database", "fail", "start ovs-vswitchd"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("%q is missing:\n%s", want, r.stdout)
		}
	}
}

func TestPKI(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := filepath.Join(s.dir, "pki")
	r := s.dyetrace("pki", "init", "--dir", dir, "--quiet")
	r.want(t, 0)
	if r.stdout != "" {
		t.Errorf("--quiet printed %q", r.stdout)
	}
	s.dyetrace("pki", "issue", "--dir", dir, "--role", "controller", "--name", "controller", "--san", "192.0.2.1", "--san", "dye.example.net").want(t, 0)
	r = s.dyetrace("pki", "show", filepath.Join(dir, "ca.crt"), filepath.Join(dir, "controller.crt"))
	r.want(t, 0)
	for _, want := range []string{"Dyetrace CA", "  controller dye.example.net 192.0.2.1  "} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("%q is not in\n%s", want, r.stdout)
		}
	}
}
