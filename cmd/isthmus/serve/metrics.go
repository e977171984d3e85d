package serve

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// registerMetrics adds what is said of the process as a whole, under istiod's
// names, which dashboards know.
func (c *Control) registerMetrics() {
	started := time.Now()
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "pilot_info", Help: "1, with the version of the control plane.",
		ConstLabels: prometheus.Labels{"version": c.build.Version}})
	info.Set(1)
	c.metrics.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		info,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "istiod_uptime_seconds", Help: "Time since the control plane was started, in seconds."},
			func() float64 { return time.Since(started).Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "pilot_services", Help: "Services of the mesh."},
			func() float64 { return float64(c.store.Catalog().Len()) }),
	)
}
