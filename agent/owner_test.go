package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/dataplane"
	"github.com/dyetrace/dyetrace/dataplane/ovs"
)

// hearsay is a switch of which is known what a test says.
type hearsay struct {
	Switch
	snap   dataplane.Snapshot
	geneve error
}

func (h *hearsay) Snapshot() dataplane.Snapshot { return h.snap }

func (h *hearsay) GeneveOption(context.Context, string, ovs.TraceRequest) (uint32, error) {
	return 0, h.geneve
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
