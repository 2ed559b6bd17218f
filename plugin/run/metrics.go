package run

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/dyetrace/dyetrace/plugin/fleet"
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
	exchanges    prometheus.Counter
	samples      *prometheus.CounterVec
	write        prometheus.Histogram

	// of continuous runs
	patrols, exams, suspicions, lost prometheus.Counter
	hurried                          prometheus.Counter
	datagrams, silences              *prometheus.CounterVec
	transitions                      *prometheus.CounterVec
	named, rtt                       prometheus.Histogram
	stages                           *prometheus.HistogramVec
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
		exchanges:    counter("underlay_exchanges_total", "Exchanges of UDP packets between two hosts asked for."),
		samples: vec("samples_total", "fate",
			"Samples by what became of them: used, duplicate, stray (off the way), late (pair judged), rejected (of no probe sent, or other addresses)."),
		patrols:    counter("patrols_total", "Patrols of continuous runs that took over: another key, or another plan."),
		exams:      counter("examinations_total", "Examinations by continuous runs: pairs judged anew, all that were suspect together."),
		suspicions: counter("suspicions_total", "Probes of continuous runs lost while their pair was examined."),
		hurried:    counter("hurried_total", "Changes of flows, tunnels and routes for which pairs of continuous runs were probed out of turn."),
		datagrams: vec("stream_datagrams_total", "fate", "Datagrams of streams between hosts' tunnel addresses, for continuous runs, by what became of them: "+
			"passed, lost_there, lost_back, unclear (nothing is claimed: a fault of ours, or several in a row)."),
		silences: vec("silences_total", "became", "Streams between hosts' tunnel addresses that had been answered and had no answer any more, by what became of that: "+
			"examined (the pairs between the two hosts), over (answered again before their turn came: a link that comes and goes)."),
		lost:        counter("lost_total", "Probes of continuous runs that were lost between healthy pairs."),
		transitions: vec("transitions_total", "verdict", "Changes of a verdict or its cause in continuous runs, by the verdict that is new."),
		named: f.NewHistogram(prometheus.HistogramOpts{
			Namespace: "dyetrace", Subsystem: "run", Name: "named_seconds", Help: "Time from the first probe that was lost, or packet between its hosts that was not answered, as it was sent, to the verdict with its cause, in continuous runs.",
			Buckets: []float64{0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10},
		}),
		stages: f.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "dyetrace", Subsystem: "run", Name: "examination_seconds", Help: "Time that examinations of continuous runs took, by stage: " +
				"suspecting (from the first probe lost, or packet not answered, as it was sent), refresh (of the hosts' state), preparing, probing, closing (audits), explaining.",
			Buckets: []float64{0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5},
		}, []string{"stage"}),
		rtt: f.NewHistogram(prometheus.HistogramOpts{
			Namespace: "dyetrace", Subsystem: "run", Name: "rtt_seconds", Help: "Round trips of continuous runs, by the clock of the source's host.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 12), // 0.1 ms to 0.2 s
		}),
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

// streamed counts what became of datagrams from one source port.
func (m *metrics) streamed(p fleet.PortCount) {
	for fate, n := range map[string]int{"passed": p.Passed, "lost_there": p.There, "lost_back": p.Back, "unclear": p.Unclear} {
		if n > 0 {
			m.datagrams.WithLabelValues(fate).Add(float64(n))
		}
	}
}
