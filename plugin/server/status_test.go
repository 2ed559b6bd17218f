package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/inventory"
	"github.com/dyetrace/dyetrace/plugin/run"
	"github.com/dyetrace/dyetrace/plugin/store"
)

// file returns networks on routers ("" is none), with so many instances each.
func file(t *testing.T, networks ...any) inventory.File {
	t.Helper()
	var nets, instances strings.Builder
	for i := 0; i < len(networks); i += 2 {
		fmt.Fprintf(&nets, "  - {name: n%d, cidr: 10.%d.0.0/16", i, i)
		if r := networks[i].(string); r != "" {
			fmt.Fprintf(&nets, ", router: %s, gateway: {ip: 10.%d.0.1, mac: \"fa:16:3e:ff:00:%02x\"}", r, i, i)
		}
		nets.WriteString("}\n")
		for k := range networks[i+1].(int) {
			fmt.Fprintf(&instances, "  - {name: i%d, network: n%d, ip: 10.%d.1.%d, mac: \"fa:16:3e:00:%02x:%02x\"}\n", k, i, i, k+1, i, k)
		}
	}
	f, err := inventory.Parse("inventory.yaml", []byte("networks:\n"+nets.String()+"instances:\n"+instances.String()))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestHomeless(t *testing.T) {
	t.Parallel()
	snap := inventory.NewSnapshot(file(t, "", maxHomeless+7), inventory.Host{Name: "hv1", Connected: true})
	lines := homeless(snap)
	if len(lines) != maxHomeless+1 || lines[maxHomeless] != "and 7 more instances without a port" {
		t.Errorf("%d lines, the last: %q", len(lines), lines[len(lines)-1])
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	live := []*dyetracev1.Bridge{{Name: "br-int", State: dyetracev1.HookState_HOOK_STATE_LIVE}}
	for _, tt := range []struct {
		name           string
		session, known bool // there is one; the agent has told of its host in it
		want           int
	}{
		{"connected, and told", true, true, 1},
		{"connected anew, nothing told yet", true, false, 0},
		{"gone: what it said last", false, false, 1},
	} {
		h := &dyetracev1.Host{Name: "hv1", Connected: tt.session}
		describe(h, inventory.Host{Name: "hv1", Connected: tt.known, Bridges: live})
		if len(h.Bridges) != tt.want || tt.want == 0 && unready(h) == nil {
			t.Errorf("%s: %d bridges (want %d), unready: %v", tt.name, len(h.Bridges), tt.want, unready(h))
		}
	}
}

func TestUnready(t *testing.T) {
	t.Parallel()
	live := &dyetracev1.Bridge{Name: "br-int", State: dyetracev1.HookState_HOOK_STATE_LIVE}
	tests := []struct {
		host *dyetracev1.Host
		want string
	}{
		{&dyetracev1.Host{Name: "hv1"}, "hv1: its agent has not connected"},
		{&dyetracev1.Host{Name: "hv1", Connected: true}, "hv1: its agent reports no bridge that could be hooked"},
		{&dyetracev1.Host{Name: "hv1", Connected: true, Bridges: []*dyetracev1.Bridge{live}}, ""},
		{&dyetracev1.Host{Name: "hv1", Connected: true, Bridges: []*dyetracev1.Bridge{
			live, {Name: "br-tun", State: dyetracev1.HookState_HOOK_STATE_ABSENT, Reason: "being restored"}, {Name: "br-x"},
		}}, "hv1/br-tun: hook absent: being restored|hv1/br-x: hook absent"},
	}
	for _, tt := range tests {
		if got := strings.Join(unready(tt.host), "|"); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.host, got, tt.want)
		}
	}
}

func TestCoded(t *testing.T) {
	t.Parallel()
	if coded(nil) != nil {
		t.Error("no error has a code")
	}
	for err, want := range map[error]connect.Code{
		run.ErrScope:             connect.CodeInvalidArgument,
		run.ErrBusy:              connect.CodeResourceExhausted,
		run.ErrClosing:           connect.CodeUnavailable,
		run.ErrEnded:             connect.CodeFailedPrecondition,
		store.ErrNotFound:        connect.CodeNotFound,
		store.ErrAmbiguous:       connect.CodeInvalidArgument,
		store.ErrState:           connect.CodeFailedPrecondition,
		context.Canceled:         connect.CodeCanceled,
		context.DeadlineExceeded: connect.CodeDeadlineExceeded,
		errors.New("disk full"):  connect.CodeInternal,
	} {
		wrapped := coded(fmt.Errorf("run abc: %w", err))
		if got := connect.CodeOf(wrapped); got != want || !errors.Is(wrapped, err) {
			t.Errorf("%v: code %v, want %v", err, got, want)
		}
	}
}
