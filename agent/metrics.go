package agent

import "github.com/prometheus/client_golang/prometheus"

// metrics are an agent's own; constructed with a nil registry they count all the same.
type metrics struct {
	injected, samples, rejected, lost, reconnects prometheus.Counter
	connected                                     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "dyetrace", Subsystem: "agent", Name: name, Help: help})
	}
	m := &metrics{
		injected:   counter("probes_injected_total", "Probes handed to a dye port."),
		samples:    counter("samples_total", "Samples that belonged to a run under way."),
		rejected:   counter("samples_rejected_total", "Copies of stained packets that belonged to no run: tenants', forged, or late."),
		lost:       counter("samples_lost_total", "Samples lost by a full queue or the cap; what they belonged to becomes unknown."),
		reconnects: counter("reconnects_total", "Attempts to reach the controller after the first."),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "dyetrace", Subsystem: "agent",
			Name: "connected", Help: "1 while there is a session with the controller."}),
	}
	if reg != nil {
		reg.MustRegister(m.injected, m.samples, m.rejected, m.lost, m.reconnects, m.connected)
	}
	return m
}
