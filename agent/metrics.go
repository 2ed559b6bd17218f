package agent

import "github.com/prometheus/client_golang/prometheus"

// metrics are an agent's own; constructed with a nil registry they count all the same.
type metrics struct {
	injected, samples, rejected, lost, reconnects, refused prometheus.Counter
	connected                                              prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, h *hooks, e *echo) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "dyetrace", Subsystem: "agent", Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.GaugeOpts {
		return prometheus.GaugeOpts{Namespace: "dyetrace", Subsystem: "agent", Name: name, Help: help}
	}
	m := &metrics{
		injected:   counter("probes_injected_total", "Probes handed to a dye port."),
		samples:    counter("samples_total", "Samples that belonged to a run under way."),
		rejected:   counter("samples_rejected_total", "Copies of stained packets that belonged to no run: tenants', forged, or late."),
		lost:       counter("samples_lost_total", "Samples lost by a full queue or the cap; what they belonged to becomes unknown."),
		reconnects: counter("reconnects_total", "Attempts to reach the controller after the first."),
		refused:    counter("arms_refused_total", "Requests to arm ports or to withhold probes that were refused."),
		connected:  prometheus.NewGauge(gauge("connected", "1 while there is a session with the controller.")),
	}
	if reg != nil {
		reg.MustRegister(
			prometheus.NewCounterFunc(prometheus.CounterOpts(gauge("hook_wipes_total", "Times that flows of a hook were deleted, or its mark or table taken, by somebody else.")),
				func() float64 { return h.sum(func(b *bridge, s *bridgeState) float64 { return float64(s.wipes) }) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts(gauge("hook_gaps_total", "Times that a hook which was live was found missing or changed.")),
				func() float64 { return h.sum(func(b *bridge, s *bridgeState) float64 { return float64(s.gaps) }) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts(gauge("copies_unread_total", "Copies that hooks counted and that never came out of a dye port: lost between the switch and us.")),
				func() float64 {
					return h.sum(func(b *bridge, _ *bridgeState) float64 { return float64(b.counts.missing.Load()) })
				}),
			prometheus.NewGaugeFunc(gauge("hooks_held", "Hooks that are left alone for a while because somebody else keeps deleting them."),
				func() float64 { return h.sum(func(b *bridge, s *bridgeState) float64 { return count(s.held > 0) }) }),
			prometheus.NewGaugeFunc(gauge("bridges_watched", "Bridges whose flows are watched; of others, audits see to the hooks."),
				func() float64 {
					return h.sum(func(b *bridge, s *bridgeState) float64 { return count(b.watched.Load() != nil) })
				}))
		reg.MustRegister(m.injected, m.samples, m.rejected, m.lost, m.reconnects, m.refused, m.connected,
			prometheus.NewGaugeFunc(gauge("armed_ports", "Ports where TCP answers are known by their ports alone; they cost megaflows."),
				func() float64 { return float64(h.countAnswers()) }),
			prometheus.NewGaugeFunc(gauge("withheld_probes", "Probes that no guest may see, until their run and then their lease ends."),
				func() float64 { return float64(h.taps.countWithheld()) }))
		reg.MustRegister(e.metrics()...)
	}
	return m
}

// sum adds up something of all bridges.
func (h *hooks) sum(of func(*bridge, *bridgeState) float64) (n float64) {
	for _, b := range h.all() {
		n += of(b, b.state.Load())
	}
	return n
}

func count(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
