package multicluster

import "github.com/prometheus/client_golang/prometheus"

// metrics counts events. What can be read from the state at any time is left to
// the collector, so a cluster that left leaves no series behind.
type metrics struct {
	timeouts     *prometheus.CounterVec
	secretEvents *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		timeouts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "remote_cluster_sync_timeouts_total",
			Help: "Times that a remote cluster was not read within the timeout after a kubeconfig for it was added or changed.",
		}, []string{"cluster"}),
		secretEvents: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "remote_cluster_secret_events_total",
			Help: "Remote secrets, or kubeconfig files, that were added, updated or deleted.",
		}, []string{"event"}),
	}
}

// Names of gauges; istiod's where the meaning is the same.
const (
	metricManaged = "istiod_managed_clusters"
	metricSync    = "istiod_remote_cluster_sync_status"
	metricStale   = "isthmus_cluster_stale_seconds"
	metricWeight  = "isthmus_cluster_weight_percent"
)

// collector exports the manager's state.
type collector struct{ m *Manager }

func (c collector) descs() (managed, sync, stale, weight *prometheus.Desc) {
	return prometheus.NewDesc(metricManaged, "Clusters of the mesh.", []string{"cluster_type"}, nil),
		prometheus.NewDesc(metricSync, "1 for the sync status that a remote cluster has, 0 for the others.",
			[]string{"cluster", "cluster_type", "status"}, nil),
		prometheus.NewDesc(metricStale, "How long what is known of a cluster may have been out of date; 0 if it is up to date.",
			[]string{"cluster"}, nil),
		prometheus.NewDesc(metricWeight, "How much of its share of the traffic a cluster gets: 0 is drained. Clusters that nothing gives a weight have no series.",
			[]string{"cluster"}, nil)
}

// Describe implements prometheus.Collector.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	managed, sync, stale, weight := c.descs()
	to <- managed
	to <- sync
	to <- stale
	to <- weight
	c.m.metrics.timeouts.Describe(to)
	c.m.metrics.secretEvents.Describe(to)
}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	managed, sync, stale, weight := c.descs()
	clusters := c.m.Clusters()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(managed, 1, "local")
	remotes := 0
	for _, s := range clusters {
		gauge(stale, s.StaleFor.Seconds(), string(s.ID))
		if s.Weight != nil {
			gauge(weight, float64(s.Weight.Percent), string(s.ID))
		}
		if s.Primary {
			continue
		}
		for _, status := range syncStatuses() {
			v := 0.0
			if s.SyncStatus == status {
				v = 1
			}
			gauge(sync, v, string(s.ID), "remote", string(status))
		}
		if s.Health != HealthRefused {
			remotes++
		}
	}
	gauge(managed, float64(remotes), "remote")
	c.m.metrics.timeouts.Collect(to)
	c.m.metrics.secretEvents.Collect(to)
}
