package build

import (
	"cmp"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	stats "istio.io/api/envoy/extensions/stats"
	meshconfig "istio.io/api/mesh/v1alpha1"
	telemetry "istio.io/api/telemetry/v1alpha1"
)

// metricsOf is what one provider is told of one side's metrics.
type metricsOf struct {
	off       bool
	interval  *durationpb.Duration
	overrides map[string]*metricOverride // by metric
}

type metricOverride struct {
	disabled bool
	tags     map[string]*telemetry.MetricsOverrides_TagOverride
}

// istioStats makes the configurations of the filters that keep Istio's standard
// metrics on one side: one per Prometheus provider that is not switched off.
func istioStats(in Inputs, v View, d Direction) []proto.Message {
	var out []proto.Message
	byProvider := mergeMetrics(in, v, workloadMode(d))
	for _, name := range slices.Sorted(maps.Keys(byProvider)) {
		m := byProvider[name]
		if _, ok := provider(in, name).GetProvider().(*meshconfig.MeshConfig_ExtensionProvider_Prometheus); !ok && name != prometheusProvider || m.off {
			continue
		}
		out = append(out, m.config(d))
	}
	return out
}

// prometheusProvider is there without being configured.
const prometheusProvider = "prometheus"

// mergeMetrics merges what the Telemetries say of one side's metrics, by
// provider. Providers that a lower level names stand for those of the levels
// above it; of overrides the last wins.
func mergeMetrics(in Inputs, v View, side telemetry.WorkloadMode) map[string]*metricsOf {
	parents := in.Catalog.Settings.Mesh.GetDefaultProviders().GetMetrics()
	var all []*telemetry.Metrics
	for _, t := range telemetries(in, v) {
		all = append(all, t.GetMetrics()...)
	}
	out := map[string]*metricsOf{}
	if len(all) == 0 {
		for _, p := range parents {
			out[p] = &metricsOf{}
		}
		return out
	}
	inScope := parents
	for _, m := range all {
		if names := providerNames(m.GetProviders()); len(names) > 0 {
			inScope = names
		}
	}
	for _, m := range all {
		if names := providerNames(m.GetProviders()); len(names) > 0 {
			parents = names
		}
		for _, p := range parents {
			if !slices.Contains(inScope, p) {
				continue
			}
			if out[p] == nil {
				out[p] = &metricsOf{overrides: map[string]*metricOverride{}}
			}
			out[p].apply(m, side)
		}
	}
	return out
}

func (m *metricsOf) apply(t *telemetry.Metrics, side telemetry.WorkloadMode) {
	if i := t.GetReportingInterval(); i.CheckValid() == nil && i.AsDuration() > 0 {
		m.interval = i
	}
	for _, o := range t.GetOverrides() {
		if !onSide(o.GetMatch().GetMode(), side) {
			continue
		}
		names, every := metricNames(o.GetMatch())
		if every && o.GetDisabled().GetValue() {
			m.off = true
			continue
		}
		m.off = false // all off above, some on again here
		for _, n := range names {
			x := m.overrides[n]
			if x == nil {
				x = &metricOverride{tags: map[string]*telemetry.MetricsOverrides_TagOverride{}}
				m.overrides[n] = x
			}
			if o.GetDisabled() != nil {
				x.disabled = o.GetDisabled().GetValue()
			}
			maps.Copy(x.tags, o.GetTagOverrides())
		}
	}
}

// config renders what a stats filter is told. A server takes its own name, not
// the Host header, for the destination where it knows none.
func (m *metricsOf) config(d Direction) proto.Message {
	c := &stats.PluginConfig{DisableHostHeaderFallback: d == DirectionInbound, TcpReportingDuration: m.interval}
	for _, name := range slices.Sorted(maps.Keys(m.overrides)) {
		o := m.overrides[name]
		x := &stats.MetricConfig{Name: cmp.Or(prometheusNames()[name], name), Drop: o.disabled}
		for _, tag := range slices.Sorted(maps.Keys(o.tags)) {
			if t := o.tags[tag]; t.GetOperation() == telemetry.MetricsOverrides_TagOverride_REMOVE {
				x.TagsToRemove = append(x.TagsToRemove, tag)
				continue
			}
			if x.Dimensions == nil {
				x.Dimensions = map[string]string{}
			}
			x.Dimensions[tag] = o.tags[tag].GetValue()
		}
		c.Metrics = append(c.Metrics, x)
	}
	return c
}

// metricNames lists the metrics that an override is about, and reports whether
// that is all of them.
func metricNames(m *telemetry.MetricSelector) (names []string, every bool) {
	switch x := m.GetMetricMatch().(type) {
	case *telemetry.MetricSelector_CustomMetric:
		return []string{x.CustomMetric}, false
	case *telemetry.MetricSelector_Metric:
		if x.Metric != telemetry.MetricSelector_ALL_METRICS {
			return []string{x.Metric.String()}, false
		}
	}
	return slices.Sorted(maps.Keys(prometheusNames())), true
}

// prometheusNames maps Istio's metrics to what the stats filter calls them.
func prometheusNames() map[string]string {
	return map[string]string{
		"REQUEST_COUNT":          "requests_total",
		"REQUEST_DURATION":       "request_duration_milliseconds",
		"REQUEST_SIZE":           "request_bytes",
		"RESPONSE_SIZE":          "response_bytes",
		"TCP_OPENED_CONNECTIONS": "tcp_connections_opened_total",
		"TCP_CLOSED_CONNECTIONS": "tcp_connections_closed_total",
		"TCP_SENT_BYTES":         "tcp_sent_bytes_total",
		"TCP_RECEIVED_BYTES":     "tcp_received_bytes_total",
		"GRPC_REQUEST_MESSAGES":  "request_messages_total",
		"GRPC_RESPONSE_MESSAGES": "response_messages_total",
	}
}
