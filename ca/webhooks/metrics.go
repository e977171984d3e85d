package webhooks

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// Metrics counts what the patchers of all clusters do, under istiod's names.
type Metrics struct{ attempts, retries, failures *prometheus.CounterVec }

// Reasons of failures.
const (
	failedConflict  = "conflict"
	failedForbidden = "forbidden"
	failedOther     = "error"
)

// NewMetrics registers the counters; a nil registerer counts for nobody.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"cluster", "name"}, labels...))
	}
	m := &Metrics{
		attempts: vec("webhook_patch_attempts_total", "Times that a webhook configuration was written to."),
		retries:  vec("webhook_patch_retries_total", "Times that writing to a webhook configuration is tried again."),
		failures: vec("webhook_patch_failures_total", "Times that writing to a webhook configuration failed.", "reason"),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.attempts, m.retries, m.failures} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of webhooks: %w", err)
		}
	}
	return m, nil
}

// Forget drops the series of a cluster that has left.
func (m *Metrics) Forget(cluster mesh.ClusterID) {
	of := prometheus.Labels{"cluster": string(cluster)}
	for _, v := range []*prometheus.CounterVec{m.attempts, m.retries, m.failures} {
		v.DeletePartialMatch(of)
	}
}
