package admission

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count reviews, under the names that dashboards of Istio know.
type metrics struct {
	passed, failed, httpErrors *prometheus.CounterVec
}

// newMetrics makes the counters; several handlers may share a registerer.
func newMetrics(r prometheus.Registerer) metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		if r == nil {
			return c
		}
		var there prometheus.AlreadyRegisteredError
		if err := r.Register(c); errors.As(err, &there) {
			if old, ok := there.ExistingCollector.(*prometheus.CounterVec); ok {
				return old
			}
		}
		return c
	}
	return metrics{
		passed:     counter("galley_validation_passed", "Objects that were found valid.", "group", "version", "resource"),
		failed:     counter("galley_validation_failed", "Objects that were refused.", "group", "version", "resource", "reason"),
		httpErrors: counter("galley_validation_http_error", "Requests that were no reviews.", "status"),
	}
}
