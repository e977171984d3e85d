package xds

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the engine's. Names that istiod has are used where the meaning is
// the same.
type metrics struct {
	connected        *prometheus.GaugeVec
	pushes           *prometheus.CounterVec
	convergence      prometheus.Histogram
	pushTime         prometheus.Histogram
	debounce         prometheus.Histogram
	dispatch         prometheus.Histogram
	triggers         *prometheus.CounterVec
	configSize       *prometheus.HistogramVec
	rejects          *prometheus.CounterVec
	rejectsOf        map[string]prometheus.Counter
	internalErrors   prometheus.Counter
	buildErrors      *prometheus.CounterVec
	expiredNonce     *prometheus.CounterVec
	writeTimeout     prometheus.Counter
	refusedStreams   *prometheus.CounterVec
	builds           *prometheus.CounterVec
	views, resources prometheus.GaugeFunc
	resourceBytes    prometheus.GaugeFunc
}

// latencyBuckets reach from a tenth of a millisecond to half a minute, seconds.
func latencyBuckets() []float64 {
	return []float64{.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
}

func newMetrics(r prometheus.Registerer, g *graph) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	seconds := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: latencyBuckets()})
	}
	gauge := func(name, help string, f func() float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	m := &metrics{
		connected:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "pilot_xds", Help: "Proxies connected, by their Istio version."}, []string{"version"}),
		pushes:      counter("pilot_xds_pushes", "Responses sent, by type.", "type"),
		convergence: seconds("pilot_proxy_convergence_time", "Seconds from a change reaching the store to a proxy accepting it."),
		pushTime:    seconds("pilot_xds_push_time", "Seconds to hand one response to the transport."),
		debounce:    seconds("pilot_debounce_time", "Seconds that a change waited for others to join it."),
		dispatch:    seconds("isthmus_xds_dispatch_seconds", "Seconds to work a change into resources and streams."),
		triggers:    counter("pilot_push_triggers", "Changes worked in, by what they were.", "type"),
		configSize: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "pilot_xds_config_size_bytes", Help: "Size of responses, by type.",
			Buckets: []float64{1, 10_000, 1_000_000, 4_000_000, 10_000_000, 40_000_000}}, []string{"type"}),
		rejects:        counter("pilot_total_xds_rejects", "Responses that proxies rejected, by type.", "type"),
		rejectsOf:      map[string]prometheus.Counter{},
		internalErrors: prometheus.NewCounter(prometheus.CounterOpts{Name: "pilot_total_xds_internal_errors", Help: "Panics caught while building or sending."}),
		buildErrors:    counter("isthmus_xds_build_errors_total", "Resources that could not be built and kept their last good content, by type.", "type"),
		expiredNonce:   counter("pilot_xds_expired_nonce", "Requests that answer a response other than the last, by type.", "type"),
		writeTimeout:   prometheus.NewCounter(prometheus.CounterOpts{Name: "pilot_xds_write_timeout", Help: "Streams closed because the proxy did not take what was pending."}),
		refusedStreams: counter("isthmus_xds_refused_streams_total", "Streams refused, by reason.", "reason"),
		builds:         counter("isthmus_xds_builds_total", "Resources built, by type.", "type"),
	}
	for _, t := range []string{"cds", "eds", "lds", "rds"} {
		m.rejectsOf[t] = prometheus.NewCounter(prometheus.CounterOpts{Name: "pilot_xds_" + t + "_reject", Help: "Responses of type " + t + " that proxies rejected."})
	}
	m.views = gauge("isthmus_xds_views", "Distinct views of connected proxies.", func() float64 { return float64(g.counts().views) })
	m.resources = gauge("isthmus_xds_resources", "Resources alive in the cache.", func() float64 { return float64(g.counts().resources) })
	m.resourceBytes = gauge("isthmus_xds_resource_bytes", "Bytes of encoded resources alive in the cache.", func() float64 { return float64(g.counts().bytes) })
	if r != nil {
		r.MustRegister(m.connected, m.pushes, m.convergence, m.pushTime, m.debounce, m.dispatch, m.triggers, m.configSize, m.rejects,
			m.internalErrors, m.buildErrors, m.expiredNonce, m.writeTimeout, m.refusedStreams, m.builds, m.views, m.resources, m.resourceBytes)
		for _, c := range m.rejectsOf {
			r.MustRegister(c)
		}
	}
	return m
}

// counts are sizes of the graph.
type counts struct{ views, groups, facets, resources, bytes int }

func (g *graph) counts() counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := counts{views: len(g.views)}
	for i := range g.kinds {
		c.groups += len(g.groups[i])
		for _, s := range g.slots[i] {
			c.facets += len(s.facets)
			for _, e := range s.entries {
				if r := e.current.Load(); r.exists() {
					c.resources++
					c.bytes += len(r.Body)
				}
			}
		}
	}
	return c
}
