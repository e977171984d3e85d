package build

import (
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	stats "istio.io/api/envoy/extensions/stats"
	extensions "istio.io/api/extensions/v1alpha1"
	meshconfig "istio.io/api/mesh/v1alpha1"
	telemetry "istio.io/api/telemetry/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// telemetryLab is ruleLab with a MeshConfig and Telemetries of namespace shop, both
// as JSON, and the view of a proxy there.
func telemetryLab(t *testing.T, settings string, specs ...string) (*lab, View) {
	t.Helper()
	l := ruleLab(func(m *meshconfig.MeshConfig) {
		require.NoError(t, protojson.Unmarshal([]byte(settings), m))
		m.RootNamespace = mixRoot
	})
	for i, spec := range specs {
		x := &telemetry.Telemetry{}
		require.NoError(t, protojson.Unmarshal([]byte(spec), x))
		k := mesh.ObjectKey{Kind: mesh.KindTelemetry, Namespace: []string{mixRoot, "shop"}[i], Name: "t"}
		l.objects(registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: spec, Spec: x}})
	}
	return l, DeriveView(l.in(), labProxy(), nil)
}

func logNames(t *testing.T, l *lab, v View, d Direction) string {
	t.Helper()
	logs, err := accessLogs(l.in(), v, d)
	require.NoError(t, err)
	var out []string
	for _, x := range logs {
		name := strings.TrimPrefix(x.GetName(), "envoy.access_loggers.")
		if x.GetFilter() != nil {
			name += " if"
		}
		out = append(out, name)
	}
	return strings.Join(out, ", ")
}

// TestAccessLogsOfTelemetries: which logs are kept on each side.
func TestAccessLogsOfTelemetries(t *testing.T) {
	const own = `"accessLogFile":"/dev/stdout"`
	const providers = `"extensionProviders":[{"name":"envoy","envoyFileAccessLog":{"path":"/dev/stdout"}},
		{"name":"als","envoyHttpAls":{"service":"web.shop.svc.cluster.local","port":80}},{"name":"gone","envoyTcpAls":{"service":"gone","port":80}},
		{"name":"bad-port","envoyTcpAls":{"service":"web.shop.svc.cluster.local","port":81}}]`
	const envoy = `"defaultProviders":{"accessLogging":["envoy"]}`
	for _, x := range []struct {
		settings, root, own, in, out string
	}{
		{`{}`, `{}`, `{}`, "", ""},
		{`{` + own + `}`, `{}`, `{}`, "file", "file"},
		{`{` + own + `,"enableEnvoyAccessLogService":true}`, `{}`, `{}`, "file, http_grpc", "file, http_grpc"},
		{`{` + own + `}`, `{"accessLogging":[{"disabled":true}]}`, `{}`, "", ""},
		{`{` + own + `}`, `{"accessLogging":[{"match":{"mode":"CLIENT"},"disabled":true}]}`, `{}`, "file", ""},
		{`{` + own + `}`, `{"accessLogging":[{"disabled":true}]}`, `{"accessLogging":[{"disabled":false,"filter":{"expression":"true"}}]}`, "file if", "file if"},
		{`{` + own + `,` + providers + `}`, `{"accessLogging":[{"providers":[{"name":"als"}]}]}`, `{}`, "http_grpc", "http_grpc"},
		{`{` + own + `,` + providers + `}`, `{"accessLogging":[{"providers":[{"name":"gone"},{"name":"bad-port"}]}]}`, `{}`, "file", "file"},
		{`{` + envoy + `,` + providers + `}`, `{}`, `{}`, "file", "file"},
		{`{` + envoy + `,` + providers + `}`, `{"accessLogging":[{"providers":[{"name":"als"}]}]}`, `{"accessLogging":[{"disabled":true}]}`, "", ""},
		{`{` + envoy + `,` + providers + `}`, `{"accessLogging":[{"providers":[{"name":"als"}]}]}`, `{"accessLogging":[{"providers":[{"name":"envoy"}]}]}`, "file", "file"},
		{`{` + envoy + `,` + providers + `}`, `{"accessLogging":[{"match":{"mode":"SERVER"},"providers":[{"name":"als"},{"name":"envoy"}]}]}`, `{}`, "http_grpc, file", ""},
	} {
		l, v := telemetryLab(t, x.settings, x.root, x.own)
		require.Equal(t, x.in, logNames(t, l, v, DirectionInbound), "%+v", x)
		require.Equal(t, x.out, logNames(t, l, v, DirectionOutbound), "%+v", x)
	}
}

// TestTracingOfTelemetries: what decides how requests are traced.
func TestTracingOfTelemetries(t *testing.T) {
	const zipkin = `"extensionProviders":[{"name":"zipkin","zipkin":{"service":"web.shop.svc.cluster.local","port":80}},
		{"name":"datadog","datadog":{"service":"web.shop.svc.cluster.local","port":80}},{"name":"sw","skywalking":{"service":"web.shop.svc.cluster.local","port":80,"accessToken":"t"}},
		{"name":"old","lightstep":{"service":"web.shop.svc.cluster.local","port":80,"accessToken":"t"}},
		{"name":"dt","opentelemetry":{"service":"web.shop.svc.cluster.local","port":80,"http":{"path":"/v1","timeout":"1s"},"dynatraceSampler":{"tenant":"a","clusterId":1}}}]`
	const byDefault = `"defaultProviders":{"tracing":["zipkin"]}`
	for _, x := range []struct {
		settings, root, own string
		driver              string // "" if nothing is traced
		random              float64
	}{
		{`{"enableTracing":true}`, `{}`, `{}`, "", 0},
		{`{"enableTracing":true,"defaultConfig":{"tracing":{}}}`, `{}`, `{}`, "bootstrap", 1},
		{`{"enableTracing":true,"defaultConfig":{"tracing":{"sampling":30}}}`, `{}`, `{}`, "bootstrap", 30},
		{`{"enableTracing":true,"defaultConfig":{"tracing":{"sampling":300}}}`, `{}`, `{}`, "bootstrap", 1},
		{`{"enableTracing":true,` + byDefault + `,` + zipkin + `}`, `{}`, `{}`, "zipkin", 1},
		{`{` + zipkin + `}`, `{"tracing":[{"providers":[{"name":"datadog"}],"randomSamplingPercentage":0}]}`, `{}`, "datadog", 0},
		{`{` + zipkin + `}`, `{"tracing":[{"providers":[{"name":"zipkin"}],"randomSamplingPercentage":9}]}`, `{"tracing":[{"providers":[{"name":"sw"}]}]}`, "skywalking", 9},
		{`{` + zipkin + `}`, `{"tracing":[{"providers":[{"name":"dt"}],"randomSamplingPercentage":9}]}`, `{}`, "opentelemetry", 100},
		{`{` + zipkin + `}`, `{"tracing":[{"providers":[{"name":"old"}]}]}`, `{}`, "", 0},
		{`{` + zipkin + `}`, `{"tracing":[{"providers":[{"name":"missing"}]}]}`, `{}`, "", 0},
		{`{` + byDefault + `,` + zipkin + `}`, `{"tracing":[{"disableSpanReporting":true}]}`, `{}`, "", 0},
		{`{` + byDefault + `,` + zipkin + `}`, `{"tracing":[{"match":{"mode":"SERVER"},"disableSpanReporting":true}]}`, `{}`, "zipkin", 1},
		{`{` + byDefault + `,` + zipkin + `}`, `{"tracing":[{"disableSpanReporting":true}]}`, `{"tracing":[{"disableSpanReporting":false}]}`, "zipkin", 1},
	} {
		l, v := telemetryLab(t, x.settings, x.root, x.own)
		s, _, err := tracing(l.in(), v, DirectionOutbound)
		require.NoError(t, err)
		require.Equal(t, x.driver == "", s == nil, "%+v", x)
		if s == nil {
			continue
		}
		if x.driver == "bootstrap" {
			require.Nil(t, s.Provider)
		} else {
			require.Equal(t, "envoy.tracers."+x.driver, s.GetProvider().GetName(), "%+v", x)
		}
		require.InDelta(t, x.random, s.GetRandomSampling().GetValue(), 0, "%+v", x)
		require.NoError(t, acceptable(&hcmv3.HttpConnectionManager{Tracing: s, StatPrefix: "x", RouteSpecifier: byRDS("x").RouteSpecifier}), "%+v", x)
	}
}

// TestSamplingOfTheProcess: what the process is told counts where nothing else
// says what is sampled.
func TestSamplingOfTheProcess(t *testing.T) {
	for settings, want := range map[string]float64{
		`{"enableTracing":true,"defaultConfig":{"tracing":{}}}`:              0.5,
		`{"enableTracing":true,"defaultConfig":{"tracing":{"sampling":30}}}`: 30,
	} {
		l, v := telemetryLab(t, settings)
		half := 0.5
		to := l.in().Catalog.Settings
		to.TraceSampling = &half
		l.store.SetSettings(to)
		s, _, err := tracing(l.in(), v, DirectionOutbound)
		require.NoError(t, err)
		require.InDelta(t, want, s.GetRandomSampling().GetValue(), 0, settings)
	}
}

// TestOwnTracer: a proxy's own tracing section goes before MeshConfig's default.
func TestOwnTracer(t *testing.T) {
	l, _ := telemetryLab(t, `{"enableTracing":true,"defaultConfig":{"tracing":{"sampling":30,"maxPathTagLength":5}}}`)
	v := DeriveView(l.in(), labProxy(func(p *mesh.Proxy) {
		p.ProxyConfig = map[string]any{"tracing": map[string]any{"sampling": 60.0, "newField": 1, "enableIstioTags": false,
			"customTags": map[string]any{"a": map[string]any{"environment": map[string]any{"name": "E"}}, "empty": map[string]any{}}}}
	}), nil)
	s, _, err := tracing(l.in(), v, DirectionInbound)
	require.NoError(t, err)
	require.InDelta(t, 60.0, s.GetRandomSampling().GetValue(), 0)
	require.Nil(t, s.GetMaxPathTagLength())
	require.Len(t, s.GetCustomTags(), 1)
	require.Equal(t, "E", s.GetCustomTags()[0].GetEnvironment().GetName())
	require.NotNil(t, MakeTracer("nonsense").config(), "that there is one counts")
	require.Nil(t, MakeTracer(nil).config())
}

// TestZipkinOfAllVersions: the fields that all proxies read, unless it takes others.
func TestZipkinOfAllVersions(t *testing.T) {
	z := &meshconfig.MeshConfig_ExtensionProvider_ZipkinTracingProvider{}
	old := zipkin(z, "u", "h").(*tracev3.ZipkinConfig)
	require.Equal(t, "u", old.GetCollectorCluster())
	require.Equal(t, "/api/v2/spans", old.GetCollectorEndpoint())
	require.Nil(t, old.GetCollectorService())
	require.True(t, old.GetTraceId_128Bit())
	z.Path, z.Headers = "/p", []*meshconfig.MeshConfig_ExtensionProvider_HttpHeader{
		{Name: "k", HeaderValue: &meshconfig.MeshConfig_ExtensionProvider_HttpHeader_Value{Value: "v"}}, {Name: "from environment"}}
	next := zipkin(z, "u", "h").(*tracev3.ZipkinConfig)
	require.Empty(t, next.GetCollectorCluster())
	require.Equal(t, "http://h/p", next.GetCollectorService().GetHttpUri().GetUri())
	require.Len(t, next.GetCollectorService().GetRequestHeadersToAdd(), 1)
	require.Equal(t, collectorTimeout, next.GetCollectorService().GetHttpUri().GetTimeout().AsDuration())
}

// TestMetricsOfTelemetries: which metrics are kept on each side, and how.
func TestMetricsOfTelemetries(t *testing.T) {
	const prometheus = `{"defaultProviders":{"metrics":["prometheus"]},"extensionProviders":[{"name":"more","prometheus":{}},{"name":"log","envoyFileAccessLog":{}}]}`
	for _, x := range []struct{ settings, root, own, in, out string }{
		{`{}`, `{}`, `{}`, "", ""},
		{prometheus, `{}`, `{}`, `{"disableHostHeaderFallback":true}`, `{}`},
		{prometheus, `{"metrics":[{"overrides":[{"disabled":true}]}]}`, `{}`, "", ""},
		{prometheus, `{"metrics":[{"overrides":[{"match":{"mode":"CLIENT"},"disabled":true}]}]}`, `{}`, `{"disableHostHeaderFallback":true}`, ""},
		{prometheus, `{"metrics":[{"overrides":[{"disabled":true}]}]}`, `{"metrics":[{"overrides":[{"match":{"metric":"REQUEST_COUNT","mode":"CLIENT"},"disabled":false}]}]}`,
			"", `{"metrics":[{"name":"requests_total"}]}`},
		{prometheus, `{"metrics":[{"providers":[{"name":"log"}]}]}`, `{}`, "", ""},
		{prometheus, `{"metrics":[{"providers":[{"name":"more"}],"reportingInterval":"3s"}]}`,
			`{"metrics":[{"overrides":[{"match":{"customMetric":"mine","mode":"CLIENT"},"tagOverrides":{"a":{"value":"1"},"b":{"operation":"REMOVE"}}}]}]}`,
			`{"disableHostHeaderFallback":true,"tcpReportingDuration":"3s"}`,
			`{"tcpReportingDuration":"3s","metrics":[{"name":"mine","dimensions":{"a":"1"},"tagsToRemove":["b"]}]}`},
	} {
		l, v := telemetryLab(t, x.settings, x.root, x.own)
		for d, want := range map[Direction]string{DirectionInbound: x.in, DirectionOutbound: x.out} {
			got := istioStats(l.in(), v, d)
			if want == "" {
				require.Empty(t, got, "%+v", x)
				continue
			}
			c := &stats.PluginConfig{}
			require.NoError(t, protojson.Unmarshal([]byte(want), c))
			require.Len(t, got, 1)
			require.True(t, proto.Equal(c, got[0]), "%+v\n%v", x, got[0])
		}
	}
}

// TestProvidersComeAndGo: when the service of a provider appears, all listeners
// that may send to it are made anew.
func TestProvidersComeAndGo(t *testing.T) {
	l, v := telemetryLab(t, `{"defaultProviders":{"accessLogging":["als"]},"extensionProviders":[{"name":"als","envoyHttpAls":{"service":"tools/log.tools.svc.cluster.local","port":9999}}]}`)
	require.Empty(t, managerOf(t, l.in(), v, "0.0.0.0_80").GetAccessLog())
	l.services("c1", labService("log", "tools", labPorts(labPort("grpc", 9999, mesh.ProtocolGRPC)), []string{"10.96.0.77"}))
	require.True(t, Listeners{}.Affected(l.in(), v, &l.last).All)
	require.Len(t, managerOf(t, l.in(), v, "0.0.0.0_80").GetAccessLog(), 1)
	l.services("c1", labService("other", "tools", labPorts(labPort("grpc", 9998, mesh.ProtocolGRPC)), []string{"10.96.0.78"}))
	require.False(t, Listeners{}.Affected(l.in(), v, &l.last).All)
	v.Sidecar, v.Namespace = ObjectName{}, "elsewhere"
	require.Len(t, managerOf(t, l.in(), v, "0.0.0.0_80").GetAccessLog(), 1, "it is visible everywhere")
}

func pluginObject(t *testing.T, ns, name, spec string) registry.ObjectState {
	x := &extensions.WasmPlugin{}
	require.NoError(t, protojson.Unmarshal([]byte(spec), x))
	k := mesh.ObjectKey{Kind: mesh.KindWasmPlugin, Namespace: ns, Name: name}
	return registry.ObjectState{Key: k, Object: &mesh.Object{Key: k, Version: spec, Spec: x}}
}

// TestPluginsAreDiscovered: what is changed of a plugin is told by ECDS under the
// same name; where it stands changes with the object too. Only Istio's proxies,
// which have an agent to fetch modules, get plugins.
func TestPluginsAreDiscovered(t *testing.T) {
	l := ruleLab()
	l.objects(pluginObject(t, "shop", "p", `{"url":"oci://a"}`), pluginObject(t, "shop", "server", `{"url":"oci://b","match":[{"mode":"SERVER","ports":[{"number":8080}]}]}`),
		pluginObject(t, "shop", "edge", `{"url":"oci://c","targetRefs":[{"group":"gateway.networking.k8s.io","kind":"Gateway","name":"g"}]}`))
	v := DeriveView(l.in(), labProxy(), nil)
	require.Equal(t, "shop.p grpc_stats istio.alpn fault cors router", strings.TrimPrefix(filterNames(managerOf(t, l.in(), v, "0.0.0.0_80")), "istio.metadata_exchange "))
	url := func() string {
		m, err := Extensions{}.Build(l.in(), v, "shop.p")
		require.NoError(t, err)
		w, err := m.(*corev3.TypedExtensionConfig).GetTypedConfig().UnmarshalNew()
		require.NoError(t, err)
		text, err := protojson.Marshal(w)
		require.NoError(t, err)
		return string(text)
	}
	require.Contains(t, url(), "oci://a")
	l.objects(pluginObject(t, "shop", "p", `{"url":"oci://next"}`))
	require.Equal(t, Affected{Names: []string{"shop.p"}}, Extensions{}.Affected(l.in(), v, &l.last))
	require.Contains(t, url(), "oci://next")
	l.objects(pluginObject(t, "elsewhere", "p", `{"url":"oci://next"}`))
	require.Empty(t, Extensions{}.Affected(l.in(), v, &l.last).Names)

	plain := DeriveView(l.in(), labProxy(func(p *mesh.Proxy) { p.Dialect = mesh.DialectEnvoy }), nil)
	require.Equal(t, ObjectNames{}, plain.Plugins)
	edge := DeriveView(l.in(), labProxy(func(p *mesh.Proxy) { p.Kind, p.Labels = mesh.ProxyRouter, map[string]string{labelGatewayName: "g"} }), nil)
	require.True(t, edge.Plugins.Has(ObjectName{"shop", "edge"}))
	require.False(t, v.Plugins.Has(ObjectName{"shop", "edge"}))

	f := &filters{in: l.in(), v: v, dir: DirectionInbound, plugins: plugins(l.in(), v)}
	ports := func(port uint16) string {
		f.port = port
		var out []string
		for _, h := range f.httpPlugins() {
			out = append(out, h.GetName())
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	require.Equal(t, "shop.p shop.server", ports(8080))
	require.Equal(t, "shop.p", ports(80))
	require.Equal(t, "shop.p shop.server", ports(0), "what is for all ports has those of all")
}
