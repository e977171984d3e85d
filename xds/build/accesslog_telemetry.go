package build

import (
	"maps"
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	telemetry "istio.io/api/telemetry/v1alpha1"
)

// ownLogs stands for the logs that MeshConfig sets up without naming a provider.
const ownLogs = ""

// accessLogs lists the logs of one side's requests and connections, ordered by
// provider. If none of the providers that are wanted is there, MeshConfig's own
// logs stand in.
func accessLogs(in Inputs, v View, d Direction) ([]*accesslogv3.AccessLog, error) {
	wanted := mergeLogs(in, v, workloadMode(d))
	var out []*accesslogv3.AccessLog
	known := false
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		logs, err := logsOf(in, v, name)
		if err != nil {
			return nil, err
		}
		known = known || len(logs) > 0
		if rule := wanted[name]; !rule.off {
			for _, l := range logs {
				l.Filter = expressionFilter(rule.expression)
				out = append(out, l)
			}
		}
	}
	if !known {
		return logsOf(in, v, ownLogs)
	}
	return out, nil
}

// logsOf makes the logs of a provider, or MeshConfig's own.
func logsOf(in Inputs, v View, name string) ([]*accesslogv3.AccessLog, error) {
	var out []*accesslogv3.AccessLog
	add := func(l *accesslogv3.AccessLog, err error) error {
		if l != nil {
			out = append(out, l)
		}
		return err
	}
	if name != ownLogs {
		p := provider(in, name)
		if p == nil {
			return nil, nil
		}
		err := add(providerLog(in, v, p))
		return out, err
	}
	m := in.Catalog.Settings.Mesh
	if err := add(accessLog(m)); err != nil {
		return nil, err
	}
	if m.GetEnableEnvoyAccessLogService() {
		if err := add(logServiceLog()); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// logRule is what is to become of one provider's log.
type logRule struct {
	off        bool
	expression string // "" logs everything
}

// mergeLogs merges what the Telemetries say of one side's logs, by provider.
// Providers that a lower level names stand for those of the levels above it.
func mergeLogs(in Inputs, v View, side telemetry.WorkloadMode) map[string]logRule {
	parents := in.Catalog.Settings.Mesh.GetDefaultProviders().GetAccessLogging()
	if len(parents) == 0 {
		parents = []string{ownLogs}
	}
	inScope := parents
	var levels [][]*telemetry.AccessLogging
	for _, t := range telemetries(in, v) {
		if len(t.GetAccessLogging()) == 0 {
			continue
		}
		levels = append(levels, t.GetAccessLogging())
		var names []string
		for _, l := range t.GetAccessLogging() {
			if onSide(l.GetMatch().GetMode(), side) {
				names = append(names, providerNames(l.GetProviders())...)
			}
		}
		if len(names) > 0 {
			inScope = names
		}
	}
	out := map[string]logRule{}
	if len(levels) == 0 {
		for _, p := range parents {
			out[p] = logRule{}
		}
		return out
	}
	for _, l := range slices.Concat(levels...) {
		if names := providerNames(l.GetProviders()); len(names) > 0 {
			parents = names
		}
		if !onSide(l.GetMatch().GetMode(), side) {
			continue
		}
		for _, p := range parents {
			if slices.Contains(inScope, p) {
				out[p] = logRule{off: l.GetDisabled().GetValue(), expression: l.GetFilter().GetExpression()}
			}
		}
	}
	return out
}

// expressionFilter logs what an expression (CEL) is true for; nil logs everything.
func expressionFilter(expression string) *accesslogv3.AccessLogFilter {
	if expression == "" {
		return nil
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
		ExtensionFilter: &accesslogv3.ExtensionFilter{
			Name: "envoy.access_loggers.extension_filters.cel",
			ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{
				TypedConfig: mustAny(&celv3.ExpressionFilter{Expression: expression}),
			},
		},
	}}
}
