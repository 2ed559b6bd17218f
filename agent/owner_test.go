package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
	"github.com/dyetrace/dyetrace/flows"
)

// hearsay is a switch of which is known what a test says.
type hearsay struct {
	Switch
	snap   dataplane.Snapshot
	geneve error
	traces []ovs.Trace // what the next ones find
}

func (h *hearsay) Snapshot() dataplane.Snapshot { return h.snap }

func (h *hearsay) GeneveOption(context.Context, string, ovs.TraceRequest) (uint32, error) {
	return 0, h.geneve
}

func (h *hearsay) Trace(context.Context, string, ovs.TraceRequest) (ovs.Trace, error) {
	if len(h.traces) == 0 {
		return ovs.Trace{}, errors.New("too many traces")
	}
	tr := h.traces[0]
	h.traces = h.traces[1:]
	return tr, nil
}

// southboundOf answers as a southbound database with one datapath and logical flows with these cookies, for one test.
func southboundOf(t *testing.T, cookies ...uint32) dataplane.Southbound {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	serve := func(c net.Conn) {
		defer c.Close()
		for in := json.NewDecoder(c); ; {
			var m struct {
				ID     int
				Params []json.RawMessage
			}
			if in.Decode(&m) != nil {
				return
			}
			result := []any{}
			for _, p := range m.Params[1:] {
				var op struct{ Table string }
				_ = json.Unmarshal(p, &op) // ours
				rows := []any{}
				switch op.Table {
				case "Datapath_Binding":
					rows = append(rows, map[string]any{"_uuid": []string{"uuid", "d"}})
				case "Logical_Flow":
					for _, cookie := range cookies {
						rows = append(rows, map[string]any{"_uuid": []string{"uuid", fmt.Sprintf("%08x-0000", cookie)},
							"external_ids": []any{"map", [][]string{{"stage-name", "ls_out_acl"}, {"stage-hint", "0a1b2c3d"}}}})
					}
				}
				result = append(result, map[string]any{"rows": rows})
			}
			if json.NewEncoder(c).Encode(map[string]any{"id": m.ID, "error": nil, "result": result}) != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return dataplane.Southbound{Address: "tcp:" + l.Addr().String()}
}

// TestRowGone has a flow drop a packet whose row OVN has no more: the packet is traced once more.
func TestRowGone(t *testing.T) {
	t.Parallel()
	const known, gone, other = 0x11111111, 0x22222222, 0x33333333
	dropBy := func(cookie uint64, match string) ovs.Trace {
		return ovs.Trace{Outcome: ovs.Dropped, Flow: ovs.FlowRef{Bridge: "br-int",
			Flow: flows.Flow{Cookie: cookie, Table: 46, Priority: 3000, Match: match, Actions: "drop"}}}
	}
	const match = "ip,reg15=0x68,metadata=0x7"
	for _, tt := range []struct {
		name, want string
		traces     []ovs.Trace
	}{
		{"a row", "ovn ls_out_acl", []ovs.Trace{dropBy(known, match)}},
		{"made anew", "ovn ls_out_acl", []ovs.Trace{dropBy(gone, match), dropBy(known, match)}},
		{"stale", "ovn " + rowGone, []ovs.Trace{dropBy(gone, match), dropBy(gone, match)}},
		{"another one that is stale", "ovn " + rowGone, []ovs.Trace{dropBy(gone, match), dropBy(other, match)}},
		{"passes now", "passes", []ovs.Trace{dropBy(gone, match), {Outcome: ovs.Delivered, Port: "tap", Ports: []string{"tap"}}}},
		{"no answer", "ovn " + rowGone + "; tracing it once more: too many traces", []ovs.Trace{dropBy(gone, match)}},
		{"of no datapath: made by hand", "nobody's ", []ovs.Trace{dropBy(gone, "ip,in_port=5")}},
	} {
		sw := &hearsay{snap: dataplane.Snapshot{Southbound: southboundOf(t, known)}, traces: tt.traces}
		a := &Agent{sw: sw, traces: make(chan struct{}, 1), names: make(chan struct{}, 1)}
		req, until := &dyetracev1.Explain{Bridge: "br-int"}, time.Now().Add(10*time.Second)
		ex, err := a.explained(t.Context(), req, ovs.TraceRequest{}, until)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got := "passes"
		if f := ex.Flow; f != nil {
			got = map[dyetracev1.FlowOwner]string{dyetracev1.FlowOwner_FLOW_OWNER_OVN: "ovn "}[f.Owner]
			if got == "" {
				got = "nobody's "
			}
			got += f.Stage + ex.Unnamed
		}
		if got != tt.want || len(sw.traces) != 0 {
			t.Errorf("%s: %s, %d traces left (want %s)", tt.name, got, len(sw.traces), tt.want)
		}
	}
}

// TestKeyUnknown: a packet of which nobody can tell for which logical port it is, is not traced.
func TestKeyUnknown(t *testing.T) {
	t.Parallel()
	sw := &hearsay{snap: dataplane.Snapshot{Southbound: dataplane.Southbound{Address: "tcp:127.0.0.1:1"}}}
	a := &Agent{sw: sw, traces: make(chan struct{}, 1), names: make(chan struct{}, 1)}
	until := time.Now().Add(10 * time.Second)
	for _, tt := range []struct {
		name  string
		err   error
		tunID uint32
		want  string
	}{
		{"no option", nil, 7, ""},
		{"the switch cannot be asked", errors.New("no flows"), 7, "no flows"},
		{"neither can the database", ovs.ErrNoKey, 7, "southbound database"},
		{"no key", ovs.ErrNoKey, 0, ovs.ErrNoKey.Error()},
	} {
		sw.geneve = tt.err
		_, err := a.geneveOption(t.Context(), "br-int", ovs.TraceRequest{TunID: tt.tunID}, until)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v (want %q)", tt.name, err, tt.want)
		}
	}
}
