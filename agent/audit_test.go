package agent

import (
	"context"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/dyetrace/dyetrace/dataplane/ovs"
)

// BenchmarkAudit is how long an audit takes before a run and after one, beside the least that the switch can be asked by
// way of the watch, a barrier, and beside one start of ovs-ofctl that reads the hook's flows.
func BenchmarkAudit(b *testing.B) {
	h := newHost(b).keep()
	h.await("the watch", func() bool { return h.hooked().watched.Load() != nil })
	ctx := ovs.Urgent(b.Context()) // audits are not so many in a second
	for _, bench := range []struct {
		name  string
		after bool
	}{{"before", false}, {"after", true}} {
		b.Run(bench.name, func(b *testing.B) {
			took := make(map[string][]time.Duration)
			timed := func(what string, f func(context.Context) error) {
				begun := time.Now()
				if err := f(ctx); err != nil {
					b.Fatal(err)
				}
				took[what] = append(took[what], time.Since(begun))
			}
			for b.Loop() {
				time.Sleep(10 * time.Millisecond) // two sweeps begin 5 ms apart at least
				timed("audit", func(ctx context.Context) error { h.a.hooks.audit(ctx, bench.after); return nil })
				timed("barrier", h.hooked().watched.Load().Barrier)
				timed("ovs-ofctl", func(ctx context.Context) error {
					return exec.CommandContext(ctx, "ovs-ofctl", "dump-flows", h.bridge, "cookie=0x4479655400000000/0xffffffff00000000").Run()
				})
			}
			median := make(map[string]float64)
			for what, all := range took {
				slices.Sort(all)
				median[what] = float64(all[len(all)/2])
				b.ReportMetric(median[what]/1e6, what+"-p50-ms")
			}
			b.ReportMetric(median["audit"]/median["barrier"], "audit/barrier")
			b.ReportMetric(median["audit"]/median["ovs-ofctl"], "audit/ovs-ofctl")
			b.ReportMetric(0, "ns/op")
		})
	}
}
