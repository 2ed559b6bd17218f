package fleet

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	agents   prometheus.Gauge
	sessions prometheus.Counter
	refused  prometheus.Counter
	ended    *prometheus.CounterVec
	samples  prometheus.Counter
	rejected *prometheus.CounterVec
	dropped  prometheus.Counter
	unasked  prometheus.Counter
}

func newMetrics(r prometheus.Registerer, queued func() float64) *metrics {
	f := promauto.With(r)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Namespace: "dyetrace", Subsystem: "fleet", Name: name, Help: help})
	}
	vec := func(name, help string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Namespace: "dyetrace", Subsystem: "fleet", Name: name, Help: help}, []string{"reason"})
	}
	m := &metrics{
		agents: f.NewGauge(prometheus.GaugeOpts{
			Namespace: "dyetrace", Subsystem: "fleet", Name: "agents", Help: "Agents that have a session."}),
		sessions: counter("sessions_total", "Sessions begun."),
		refused:  counter("refused_total", "Agents refused: protocol too new, or certificate of another host."),
		ended:    vec("sessions_ended_total", "Sessions ended, by reason: left, silent, slow, replaced, closing."),
		samples:  counter("samples_total", "Samples that came well-formed, of a known run."),
		rejected: vec("samples_rejected_total", "Samples rejected, by what is wrong: run (not known), late (run is over), columns, index, bridge, kind."),
		dropped:  counter("samples_dropped_total", "Samples dropped because their run did not take them in time, or was over."),
		unasked:  counter("messages_unasked_total", "Messages dropped that answer nothing."),
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "dyetrace", Subsystem: "fleet", Name: "send_queue_length",
		Help: "Messages in the longest of the agents' send queues, at most 256.",
	}, queued)
	return m
}
