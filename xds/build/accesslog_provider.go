package build

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	otellogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	withoutqueryv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/req_without_query/v3"
	otlpv1 "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
)

const (
	httpGRPCLogName = "envoy.access_loggers.http_grpc"
	tcpGRPCLogName  = "envoy.tcp_grpc_access_log"
	otelLogName     = "envoy.access_loggers.open_telemetry"

	// builtinLogProvider is there without being configured; it logs in the format
	// that MeshConfig sets.
	builtinLogProvider = "envoy"
	stdout             = "/dev/stdout"

	// logServiceUpstream is in a proxy's bootstrap configuration if MeshConfig asks
	// for enableEnvoyAccessLogService.
	logServiceUpstream = "envoy_accesslog_service"

	withoutQuery = "%REQ_WITHOUT_QUERY"
)

// peersToLog names the state in which the metadata exchange filter leaves who
// the two ends of a connection are.
func peersToLog() []string { return []string{"upstream_peer", "downstream_peer"} }

// formerPeersToLog adds the names of proxies before 1.24.
func formerPeersToLog() []string {
	return append(peersToLog(), "wasm.upstream_peer", "wasm.upstream_peer_id", "wasm.downstream_peer", "wasm.downstream_peer_id")
}

// providerLog makes the access log of a provider; nil if the provider keeps none
// or the view's proxies cannot reach it.
func providerLog(in Inputs, v View, p *meshconfig.MeshConfig_ExtensionProvider) (*accesslogv3.AccessLog, error) {
	if x, ok := p.GetProvider().(*meshconfig.MeshConfig_ExtensionProvider_EnvoyFileAccessLog); ok {
		f := x.EnvoyFileAccessLog
		path := cmp.Or(f.GetPath(), stdout)
		if p.GetName() == builtinLogProvider && f.GetLogFormat() == nil && !f.GetOmitEmptyValues() {
			return fileLog(path, logFormat(in.Catalog.Settings.Mesh))
		}
		return fileLog(path, providerFormat(f))
	}
	upstream, host, ok := providerUpstream(in, v, p)
	if !ok {
		return nil, nil
	}
	switch x := p.GetProvider().(type) {
	case *meshconfig.MeshConfig_ExtensionProvider_EnvoyHttpAls:
		return namedLog(httpGRPCLogName, httpServiceLog(x.EnvoyHttpAls, upstream, string(host)))
	case *meshconfig.MeshConfig_ExtensionProvider_EnvoyTcpAls:
		a := x.EnvoyTcpAls
		return namedLog(tcpGRPCLogName, &grpclogv3.TcpGrpcAccessLogConfig{
			CommonConfig: grpcLog(cmp.Or(a.GetLogName(), "tcp_envoy_accesslog"), upstream, string(host), a.GetFilterStateObjectsToLog()),
		})
	case *meshconfig.MeshConfig_ExtensionProvider_EnvoyOtelAls:
		return namedLog(otelLogName, otelLog(x.EnvoyOtelAls, upstream, string(host)))
	}
	return nil, nil
}

// providerFormat is the format of a file as its provider says.
func providerFormat(f *meshconfig.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider) *corev3.SubstitutionFormatString {
	out := textFormat(f.GetLogFormat().GetText())
	if labels, ok := f.GetLogFormat().GetLogFormat().(*meshconfig.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider_LogFormat_Labels); ok {
		fields := labels.Labels
		if len(fields.GetFields()) == 0 {
			fields = defaultJSON()
		}
		out = jsonFormat(fields)
	}
	out.OmitEmptyValues = f.GetOmitEmptyValues()
	return out
}

func httpServiceLog(a *meshconfig.MeshConfig_ExtensionProvider_EnvoyHttpGrpcV3LogProvider, upstream, host string) proto.Message {
	return &grpclogv3.HttpGrpcAccessLogConfig{
		CommonConfig:                    grpcLog(cmp.Or(a.GetLogName(), "http_envoy_accesslog"), upstream, host, a.GetFilterStateObjectsToLog()),
		AdditionalRequestHeadersToLog:   a.GetAdditionalRequestHeadersToLog(),
		AdditionalResponseHeadersToLog:  a.GetAdditionalResponseHeadersToLog(),
		AdditionalResponseTrailersToLog: a.GetAdditionalResponseTrailersToLog(),
	}
}

func grpcLog(name, upstream, host string, state []string) *grpclogv3.CommonGrpcAccessLogConfig {
	if len(state) == 0 {
		state = peersToLog()
	}
	return &grpclogv3.CommonGrpcAccessLogConfig{
		LogName:                 name,
		GrpcService:             grpcService(upstream, host),
		TransportApiVersion:     corev3.ApiVersion_V3,
		FilterStateObjectsToLog: state,
	}
}

// grpcService is a server that proxies call themselves.
func grpcService(upstream, host string) *corev3.GrpcService {
	return &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
		EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: upstream, Authority: host},
	}}
}

func otelLog(a *meshconfig.MeshConfig_ExtensionProvider_EnvoyOpenTelemetryLogProvider, upstream, host string) proto.Message {
	text, labels := cmp.Or(a.GetLogFormat().GetText(), defaultTextFormat), a.GetLogFormat().GetLabels().GetFields()
	out := &otellogv3.OpenTelemetryAccessLogConfig{
		//nolint:staticcheck // the fields that replace it are unknown to older proxies
		CommonConfig:         grpcLog(cmp.Or(a.GetLogName(), "otel_envoy_accesslog"), upstream, host, formerPeersToLog()),
		DisableBuiltinLabels: true,
		Body:                 &otlpv1.AnyValue{Value: &otlpv1.AnyValue_StringValue{StringValue: text}},
		Formatters:           formatters(strings.Contains(text, withoutQuery) || fieldsContain(labels, withoutQuery)),
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if out.Attributes == nil {
			out.Attributes = &otlpv1.KeyValueList{}
		}
		out.Attributes.Values = append(out.Attributes.Values, &otlpv1.KeyValue{Key: k,
			Value: &otlpv1.AnyValue{Value: &otlpv1.AnyValue_StringValue{StringValue: labels[k].GetStringValue()}}})
	}
	return out
}

// logServiceLog makes the log for the service in the bootstrap configuration,
// which MeshConfig's enableEnvoyAccessLogService asks for.
func logServiceLog() (*accesslogv3.AccessLog, error) {
	return namedLog(httpGRPCLogName, &grpclogv3.HttpGrpcAccessLogConfig{
		CommonConfig: grpcLog("http_envoy_accesslog", logServiceUpstream, "", nil),
	})
}

func fileLog(path string, format *corev3.SubstitutionFormatString) (*accesslogv3.AccessLog, error) {
	return namedLog(fileLogName, &filelogv3.FileAccessLog{
		Path: path, AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: format},
	})
}

func namedLog(name string, config proto.Message) (*accesslogv3.AccessLog, error) {
	a, err := toAny(config)
	if err != nil {
		return nil, err
	}
	return &accesslogv3.AccessLog{Name: name, ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: a}}, nil
}

// textFormat is a format for lines of text, the default one for "".
func textFormat(text string) *corev3.SubstitutionFormatString {
	if text == "" {
		text = defaultTextFormat
	} else if text[len(text)-1] != '\n' {
		text += "\n"
	}
	return &corev3.SubstitutionFormatString{
		Format: &corev3.SubstitutionFormatString_TextFormatSource{
			TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}},
		},
		Formatters: formatters(strings.Contains(text, withoutQuery)),
	}
}

func jsonFormat(fields *structpb.Struct) *corev3.SubstitutionFormatString {
	return &corev3.SubstitutionFormatString{
		Format:            &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: fields},
		JsonFormatOptions: &corev3.JsonFormatOptions{},
		Formatters:        formatters(fieldsContain(fields.GetFields(), withoutQuery)),
	}
}

func defaultJSON() *structpb.Struct {
	out := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for k, v := range defaultJSONFields() {
		out.Fields[k] = stringValue(v)
	}
	return out
}

func fieldsContain(fields map[string]*structpb.Value, text string) bool {
	for _, v := range fields {
		if strings.Contains(v.GetStringValue(), text) {
			return true
		}
	}
	return false
}

// formatters are what a format needs beyond what proxies know by themselves.
func formatters(query bool) []*corev3.TypedExtensionConfig {
	if !query {
		return nil
	}
	return []*corev3.TypedExtensionConfig{{Name: "envoy.formatter.req_without_query", TypedConfig: mustAny(&withoutqueryv3.ReqWithoutQuery{})}}
}
