package run

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/dyetrace/dyetrace/stain"
)

type metrics struct {
	active       prometheus.Gauge
	watchers     prometheus.Gauge
	runs         *prometheus.CounterVec
	verdicts     *prometheus.CounterVec
	probes       map[stain.Scheme]prometheus.Counter
	arms         *prometheus.CounterVec
	explanations prometheus.Counter
	samples      *prometheus.CounterVec
	write        prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Namespace: "dyetrace", Subsystem: "run", Name: name, Help: help})
	}
	vec := func(name, label, help string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Namespace: "dyetrace", Subsystem: "run", Name: name, Help: help}, []string{label})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Namespace: "dyetrace", Subsystem: "run", Name: name, Help: help})
	}
	schemes := vec("probes_total", "scheme", "Probes that agents were asked to send, by scheme.")
	probes := map[stain.Scheme]prometheus.Counter{}
	for _, s := range []stain.Scheme{stain.TCP, stain.ICMP} {
		probes[s] = schemes.WithLabelValues(s.String())
	}
	return &metrics{
		active:   gauge("active", "Runs under way."),
		watchers: gauge("watchers", "Watchers of runs under way."),
		runs:     vec("runs_total", "state", "Runs ended, by state: done, cancelled, interrupted."),
		verdicts: vec("verdicts_total", "verdict", "Verdicts stored."),
		probes:   probes,
		arms: vec("arms_total", "answer", "What agents were asked to put in place before probes were sent (no-touch; answers without the "+
			"stain's ToS), by answer: in_place, refused (no answer in time included)."),
		explanations: counter("explanations_total", "Explanations asked for."),
		samples: vec("samples_total", "fate",
			"Samples by what became of them: used, duplicate, stray (off the way), late (pair judged), rejected (of no probe sent, or other addresses)."),
		write: f.NewHistogram(prometheus.HistogramOpts{
			Namespace: "dyetrace", Subsystem: "run", Name: "store_write_seconds", Help: "Time to write a batch of verdicts.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8), // 0.5 ms, an fsync, to 8 s
		}),
	}
}

// count counts what became of samples.
func (m *metrics) count(fates [spent + 1]int, late int) {
	for label, n := range map[string]int{
		"used": fates[used] + fates[completed], "duplicate": fates[doubled], "stray": fates[stray],
		"rejected": fates[forged], "late": late + fates[spent],
	} {
		if n > 0 {
			m.samples.WithLabelValues(label).Add(float64(n))
		}
	}
}
