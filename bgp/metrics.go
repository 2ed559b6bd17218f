package bgp

import "github.com/prometheus/client_golang/prometheus"

// collector reads the status of peers when asked, so that a removed peer leaves no series behind.
type collector struct {
	peers func() []Status
	descs []metric
}

type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(Status) float64
}

// newMetrics registers what there is to count, and returns the counter of refused connections. r may
// be nil.
func newMetrics(r prometheus.Registerer, peers func() []Status) prometheus.Counter {
	refused := prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "dyetrace", Subsystem: "bgp", Name: "refused_total",
		Help: "Connections refused: of no peer, to another address than its source, or one too many.",
	})
	if r == nil {
		return refused
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	one := func(kind prometheus.ValueType, name, help string, value func(Status) float64) metric {
		return metric{prometheus.NewDesc("dyetrace_bgp_peer_"+name, help, []string{"peer"}, nil), kind, value}
	}
	c := &collector{peers, []metric{
		one(gauge, "state", "0 Idle, 1 Connect, 2 Active, 3 OpenSent, 4 OpenConfirm, 5 Established.",
			func(s Status) float64 { return float64(s.State) }),
		one(gauge, "since_seconds", "Unix time when the state began.",
			func(s Status) float64 { return float64(s.Since.UnixNano()) / 1e9 }),
		one(gauge, "routes", "Routes learned, stale ones included.",
			func(s Status) float64 { return float64(s.Routes) }),
		one(gauge, "end_of_rib_families", "Families of which the peer told all in this session.",
			func(s Status) float64 { return float64(len(s.EndOfRIB)) }),
		one(counter, "updates_total", "UPDATEs received.",
			func(s Status) float64 { return float64(s.Updates) }),
		one(counter, "malformed_total", "UPDATEs that were malformed and taken for withdraws.",
			func(s Status) float64 { return float64(s.Withdrawn) }),
		one(counter, "flaps_total", "Sessions that were established and ended.",
			func(s Status) float64 { return float64(s.Flaps) }),
		one(counter, "failures_total", "Connections that did not come about, or ended before they were sessions.",
			func(s Status) float64 { return float64(s.Failures) }),
		one(counter, "panics_total", "Faults of ours that ended a session.",
			func(s Status) float64 { return float64(s.Panics) }),
	}}
	r.MustRegister(refused, c)
	return refused
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.descs {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.peers() {
		for _, m := range c.descs {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(s), s.Address)
		}
	}
}
