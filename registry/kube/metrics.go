package kube

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// metrics are shared by all sources that have one registerer.
type metrics struct {
	events  *prometheus.CounterVec
	pending *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	return &metrics{
		events: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pilot_k8s_reg_events",
			Help: "Objects read from API servers, by kind and by what happened (add, update, delete, list).",
		}, []string{"type", "event"})),
		pending: register(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pilot_k8s_endpoints_pending_pod",
			Help: "Endpoints that are not served yet because their pod is not known, by cluster.",
		}, []string{"cluster"})),
	}
}

// register registers a collector, or returns the one of that name that is there.
func register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	if r == nil {
		return c
	}
	var there prometheus.AlreadyRegisteredError
	if err := r.Register(c); errors.As(err, &there) {
		if old, ok := there.ExistingCollector.(C); ok {
			return old
		}
	}
	return c
}

func (m *metrics) count(kind, event string) { m.events.WithLabelValues(kind, event).Inc() }

func (m *metrics) setPending(c mesh.ClusterID, n int) {
	m.pending.WithLabelValues(string(c)).Set(float64(n))
}

func (m *metrics) forget(c mesh.ClusterID) { m.pending.DeleteLabelValues(string(c)) }
