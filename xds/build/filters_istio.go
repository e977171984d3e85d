package build

import (
	udpatypev1 "github.com/cncf/xds/go/udpa/type/v1"
	"google.golang.org/protobuf/types/known/structpb"
	alpnv2 "istio.io/api/envoy/config/filter/http/alpn/v2alpha1"

	"google.golang.org/protobuf/proto"
)

// What Istio's proxy has beyond an upstream Envoy. Types that no Go module
// publishes are sent as a TypedStruct: the type's URL with its fields by name.

const (
	metadataExchangeName = "istio.metadata_exchange"
	statsName            = "istio.stats"
	alpnName             = "istio.alpn"

	tcpMetadataExchangeURL  = typePrefix + "envoy.tcp.metadataexchange.config.MetadataExchange"
	httpMetadataExchangeURL = typePrefix + "io.istio.http.peer_metadata.Config"
)

func typedStruct(url string, fields map[string]*structpb.Value) proto.Message {
	return &udpatypev1.TypedStruct{TypeUrl: url, Value: structOf(fields)}
}

// tcpMetadataExchange tells the peers of a connection about one another, in a
// preamble that both agree on by ALPN.
func tcpMetadataExchange() proto.Message {
	return typedStruct(tcpMetadataExchangeURL, map[string]*structpb.Value{
		"enable_discovery": structpb.NewBoolValue(true),
		"protocol":         stringValue("istio-peer-exchange"),
	})
}

// httpMetadataExchange does so for HTTP, in headers. inMesh keeps them from
// servers outside the mesh.
func httpMetadataExchange(d Direction, inMesh bool) proto.Message {
	headers := structValue(map[string]*structpb.Value{"istio_headers": structValue(nil)})
	told := headers
	if inMesh && d == DirectionOutbound {
		told = structValue(map[string]*structpb.Value{"istio_headers": structValue(map[string]*structpb.Value{
			"skip_external_clusters": structpb.NewBoolValue(true)})})
	}
	workloads := structValue(map[string]*structpb.Value{"workload_discovery": structValue(nil)})
	side := "upstream"
	if d == DirectionInbound {
		side = "downstream"
	}
	return typedStruct(httpMetadataExchangeURL, map[string]*structpb.Value{
		side + "_discovery":   listValue(headers, workloads),
		side + "_propagation": listValue(told),
	})
}

// alpnOverride makes an HTTP request to a mesh peer offer protocols by which
// the peer's filter chains can tell HTTP from opaque TCP.
func alpnOverride() proto.Message {
	override := func(p alpnv2.FilterConfig_Protocol, protocols ...string) *alpnv2.FilterConfig_AlpnOverride {
		return &alpnv2.FilterConfig_AlpnOverride{UpstreamProtocol: p, AlpnOverride: protocols}
	}
	return &alpnv2.FilterConfig{AlpnOverride: []*alpnv2.FilterConfig_AlpnOverride{
		override(alpnv2.FilterConfig_HTTP10, "istio-http/1.0", "istio", "http/1.0"),
		override(alpnv2.FilterConfig_HTTP11, "istio-http/1.1", "istio", "http/1.1"),
		override(alpnv2.FilterConfig_HTTP2, "istio-h2", "istio", "h2"),
	}}
}
