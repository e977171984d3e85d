package webhook

import "github.com/prometheus/client_golang/prometheus"

// metrics have istiod's names. requests = success + failure + skip.
type metrics struct {
	requests, successes, failures, skips prometheus.Counter
	seconds                              prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		requests:  counter("sidecar_injection_requests_total", "Admission reviews received."),
		successes: counter("sidecar_injection_success_total", "Pods injected."),
		failures:  counter("sidecar_injection_failure_total", "Reviews refused or not answered."),
		skips:     counter("sidecar_injection_skip_total", "Pods that are not to be injected."),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sidecar_injection_time_seconds",
			Help: "Time to answer a review.", Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.successes, m.failures, m.skips, m.seconds} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
