package build

import (
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	detectorsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/resource_detectors/v3"
	samplersv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/tracers/opentelemetry/samplers/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

// collectorTimeout bounds a call of a collector if its provider does not.
const collectorTimeout = 5 * time.Second

// tracer is what a provider makes of a connection manager's tracing section.
type tracer struct {
	driver       *tracev3.Tracing_Http
	childSpans   *wrapperspb.BoolValue
	maxTagLength uint32
	// sampler says that the tracer decides itself what is sampled.
	sampler bool
}

// providerTracer makes the tracer of a provider; nil if the provider takes no
// spans, is one that proxies no longer know (Lightstep, OpenCensus, Stackdriver),
// or cannot be reached by the view's proxies.
func providerTracer(in Inputs, v View, p *meshconfig.MeshConfig_ExtensionProvider) (*tracer, error) {
	upstream, host, ok := providerUpstream(in, v, p)
	if !ok {
		return nil, nil
	}
	out := &tracer{}
	var name string
	var config proto.Message
	switch x := p.GetProvider().(type) {
	case *meshconfig.MeshConfig_ExtensionProvider_Zipkin:
		name, config = "envoy.tracers.zipkin", zipkin(x.Zipkin, upstream, string(host))
		out.maxTagLength = x.Zipkin.GetMaxTagLength()
	case *meshconfig.MeshConfig_ExtensionProvider_Datadog:
		name, config = "envoy.tracers.datadog", &tracev3.DatadogConfig{
			CollectorCluster: upstream, ServiceName: spanService(v), CollectorHostname: string(host)}
		out.maxTagLength = x.Datadog.GetMaxTagLength()
	case *meshconfig.MeshConfig_ExtensionProvider_Skywalking:
		name, config = "envoy.tracers.skywalking", skywalking(x.Skywalking, upstream, string(host))
		out.childSpans = boolean(true)
	case *meshconfig.MeshConfig_ExtensionProvider_Opentelemetry:
		otel, err := openTelemetry(in, v, x.Opentelemetry, upstream, string(host))
		if err != nil {
			return nil, err
		}
		name, config, out.sampler = "envoy.tracers.opentelemetry", otel, otel.Sampler != nil
		out.maxTagLength = x.Opentelemetry.GetMaxTagLength()
	default:
		return nil, nil
	}
	a, err := toAny(config)
	if err != nil {
		return nil, err
	}
	out.driver = &tracev3.Tracing_Http{Name: name, ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: a}}
	return out, nil
}

// spanService is the name under which a proxy's spans are kept, that by which
// its agent calls it too.
func spanService(v View) string {
	name := v.Inbound.Spec().CanonicalName
	if name == "" {
		name = "istio-proxy"
	}
	return name + "." + v.Namespace
}

// zipkin is configured by fields that proxies of all versions read; a timeout or
// headers need those of newer ones.
func zipkin(z *meshconfig.MeshConfig_ExtensionProvider_ZipkinTracingProvider, upstream, host string) proto.Message {
	path := z.GetPath()
	if path == "" {
		path = "/api/v2/spans"
	}
	out := &tracev3.ZipkinConfig{
		CollectorEndpointVersion: tracev3.ZipkinConfig_HTTP_JSON,
		TraceId_128Bit:           !z.GetEnable_64BitTraceId(),
		SharedSpanContext:        boolean(false),
	}
	if z.GetTraceContextOption() == meshconfig.MeshConfig_ExtensionProvider_ZipkinTracingProvider_USE_B3_WITH_W3C_PROPAGATION {
		out.TraceContextOption = tracev3.ZipkinConfig_USE_B3_WITH_W3C_PROPAGATION
	}
	if z.GetTimeout() == nil && len(z.GetHeaders()) == 0 {
		out.CollectorCluster, out.CollectorEndpoint, out.CollectorHostname = upstream, path, host
		return out
	}
	out.CollectorService = httpService("http://"+host+path, upstream, z.GetTimeout(), z.GetHeaders())
	return out
}

func skywalking(s *meshconfig.MeshConfig_ExtensionProvider_SkyWalkingTracingProvider, upstream, host string) proto.Message {
	out := &tracev3.SkyWalkingConfig{GrpcService: grpcService(upstream, host)}
	if t := s.GetAccessToken(); t != "" {
		out.ClientConfig = &tracev3.ClientConfig{BackendTokenSpecifier: &tracev3.ClientConfig_BackendToken{BackendToken: t}}
	}
	return out
}

func openTelemetry(in Inputs, v View, o *meshconfig.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider, upstream, host string) (*tracev3.OpenTelemetryConfig, error) {
	out := &tracev3.OpenTelemetryConfig{ServiceName: spanService(v)}
	if h := o.GetHttp(); h != nil {
		out.HttpService = httpService(joinPath(host, h.GetPath()), upstream, h.GetTimeout(), h.GetHeaders())
	} else {
		out.GrpcService = grpcService(upstream, host)
		out.GrpcService.Timeout = o.GetGrpc().GetTimeout()
		for _, h := range o.GetGrpc().GetInitialMetadata() {
			if h.GetName() != "" && h.GetValue() != "" {
				out.GrpcService.InitialMetadata = append(out.GrpcService.InitialMetadata, &corev3.HeaderValue{Key: h.GetName(), Value: h.GetValue()})
			}
		}
	}
	if d := o.GetResourceDetectors(); d != nil {
		if d.GetEnvironment() != nil {
			out.ResourceDetectors = append(out.ResourceDetectors, &corev3.TypedExtensionConfig{
				Name: "envoy.tracers.opentelemetry.resource_detectors.environment", TypedConfig: mustAny(&detectorsv3.EnvironmentResourceDetectorConfig{})})
		}
		if d.GetDynatrace() != nil {
			out.ResourceDetectors = append(out.ResourceDetectors, &corev3.TypedExtensionConfig{
				Name: "envoy.tracers.opentelemetry.resource_detectors.dynatrace", TypedConfig: mustAny(&detectorsv3.DynatraceResourceDetectorConfig{})})
		}
	}
	var err error
	if s := o.GetDynatraceSampler(); s != nil {
		out.Sampler, err = dynatraceSampler(in, v, o, s, out.HttpService)
	}
	return out, err
}

// dynatraceSampler asks Dynatrace what to sample: at a server of its own, or at
// the one that takes the spans. Without a server there is no sampler.
func dynatraceSampler(in Inputs, v View, o *meshconfig.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider,
	s *meshconfig.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider_DynatraceSampler, exporter *corev3.HttpService,
) (*corev3.TypedExtensionConfig, error) {
	config := &samplersv3.DynatraceSamplerConfig{Tenant: s.GetTenant(), ClusterId: s.GetClusterId(), RootSpansPerMinute: s.GetRootSpansPerMinute()}
	switch api := s.GetHttpService(); {
	case api != nil:
		at := &meshconfig.MeshConfig_ExtensionProvider{Provider: &meshconfig.MeshConfig_ExtensionProvider_Zipkin{
			Zipkin: &meshconfig.MeshConfig_ExtensionProvider_ZipkinTracingProvider{Service: api.GetService(), Port: api.GetPort()}}}
		upstream, host, ok := providerUpstream(in, v, at)
		if !ok {
			return nil, nil
		}
		config.HttpService = httpService(joinPath(string(host), api.GetHttp().GetPath()), upstream, api.GetHttp().GetTimeout(), api.GetHttp().GetHeaders())
	case exporter != nil:
		_, name, qualified := strings.Cut(o.GetService(), "/")
		if !qualified {
			name = o.GetService()
		}
		config.HttpService = proto.CloneOf(exporter)
		config.HttpService.HttpUri.Uri = joinPath(name, "api/v2/samplingConfiguration")
	default:
		return nil, nil
	}
	a, err := toAny(config)
	if err != nil {
		return nil, err
	}
	return &corev3.TypedExtensionConfig{Name: "envoy.tracers.opentelemetry.samplers.dynatrace", TypedConfig: a}, nil
}

func joinPath(host, path string) string {
	if path = strings.TrimPrefix(path, "/"); path == "" {
		return host
	}
	return host + "/" + path
}

// httpService is a server that proxies call themselves.
func httpService(uri, upstream string, timeout *durationpb.Duration, headers []*meshconfig.MeshConfig_ExtensionProvider_HttpHeader) *corev3.HttpService {
	if timeout.CheckValid() != nil || timeout.AsDuration() <= 0 {
		timeout = duration(collectorTimeout)
	}
	out := &corev3.HttpService{HttpUri: &corev3.HttpUri{
		Uri: uri, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: upstream}, Timeout: timeout,
	}}
	for _, h := range headers {
		if h.GetName() == "" || h.GetValue() == "" { // one from an environment is not known here
			continue
		}
		out.RequestHeadersToAdd = append(out.RequestHeadersToAdd, &corev3.HeaderValueOption{
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			Header:       &corev3.HeaderValue{Key: h.GetName(), Value: h.GetValue()},
		})
	}
	return out
}
