package resolve

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics says how old the answers are. Ages are computed when they are asked
// for, so that they also grow while nothing happens.
type metrics struct {
	now   func() time.Time
	total *prometheus.CounterVec
	age   *prometheus.Desc

	mu   sync.Mutex
	good map[string]time.Time // by host: the last whole answer, or the first question
}

func newMetrics(now func() time.Time) *metrics {
	return &metrics{
		now: now,
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "isthmus_gateway_lookups_total",
			Help: "Questions for the addresses of a gateway's host name, by result."}, []string{"result"}),
		age: prometheus.NewDesc("isthmus_gateway_host_age_seconds",
			"Time since the host name of a gateway was last resolved, or first asked for.", []string{"host"}, nil),
		good: map[string]time.Time{},
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if err := r.Register(m.total); err != nil {
		return err
	}
	return r.Register(m)
}

func (m *metrics) asked(host string, ok bool) {
	result := "error"
	if ok {
		result = "ok"
	}
	m.total.WithLabelValues(result).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, had := m.good[host]; ok || !had {
		m.good[host] = m.now()
	}
}

func (m *metrics) forget(host string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.good, host)
}

// Describe implements [prometheus.Collector].
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.age }

// Collect implements [prometheus.Collector].
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for host, at := range m.good {
		ch <- prometheus.MustNewConstMetric(m.age, prometheus.GaugeValue, m.now().Sub(at).Seconds(), host)
	}
}
