package build

import (
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	originalsrcv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_src/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

const (
	// connectTimeout bounds the TLS handshake of an accepted connection.
	connectTimeout = 15 * time.Second
	// outboundTraffic and inboundTraffic label listeners.
	outboundTraffic = corev3.TrafficDirection_OUTBOUND
	inboundTraffic  = corev3.TrafficDirection_INBOUND

	// inspectorReadSize is how much of a connection the TLS inspector reads at
	// first, in bytes: a ClientHello usually fits.
	inspectorReadSize = 512
	// tproxyMark is the mark of packets that carry the original source address;
	// the agent's iptables rules know it.
	tproxyMark = 1337
)

// Application protocols by which filter chains are told apart. Functions, not
// variables, so that nobody can change them.

// meshProtocols are all protocols that only mesh peers offer.
func meshProtocols() []string {
	return []string{"istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"}
}

// meshHTTPProtocols are offered by peers that know they speak HTTP.
func meshHTTPProtocols() []string { return []string{"istio-http/1.0", "istio-http/1.1", "istio-h2"} }

// meshTCPProtocols are offered by peers that pass bytes on.
func meshTCPProtocols() []string { return []string{"istio-peer-exchange", "istio"} }

// plainHTTPProtocols are what the HTTP inspector finds in plain text.
func plainHTTPProtocols() []string { return []string{"http/1.1", "h2c"} }

// Values of FilterChainMatch.transport_protocol.
const (
	transportPlain = "raw_buffer"
	transportTLS   = "tls"
)

// listenerFilter packs one listener filter.
func listenerFilter(name string, config proto.Message, disabled *listenerv3.ListenerFilterChainMatchPredicate) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{
		Name:           name,
		ConfigType:     &listenerv3.ListenerFilter_TypedConfig{TypedConfig: mustAny(config)},
		FilterDisabled: disabled,
	}
}

func originalDst() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.original_dst", &originaldstv3.OriginalDst{}, nil)
}

func originalSrc() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.original_src", &originalsrcv3.OriginalSrc{Mark: tproxyMark}, nil)
}

func tlsInspector(disabled *listenerv3.ListenerFilterChainMatchPredicate) *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.tls_inspector",
		&tlsinspectorv3.TlsInspector{InitialReadBufferSize: u32(inspectorReadSize)}, disabled)
}

func httpInspector(disabled *listenerv3.ListenerFilterChainMatchPredicate) *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.http_inspector", &httpinspectorv3.HttpInspector{}, disabled)
}

// onPorts matches connections to any of the ports; nil for none.
func onPorts(ports []uint16) *listenerv3.ListenerFilterChainMatchPredicate {
	ports = slices.Compact(slices.Sorted(slices.Values(ports)))
	rules := make([]*listenerv3.ListenerFilterChainMatchPredicate, 0, len(ports))
	for _, p := range ports {
		rules = append(rules, &listenerv3.ListenerFilterChainMatchPredicate{
			Rule: &listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange{
				DestinationPortRange: &typev3.Int32Range{Start: int32(p), End: int32(p) + 1},
			},
		})
	}
	switch len(rules) {
	case 0:
		return nil
	case 1:
		return rules[0]
	}
	return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_OrMatch{
		OrMatch: &listenerv3.ListenerFilterChainMatchPredicate_MatchSet{Rules: rules},
	}}
}

// notOnPorts matches connections to any other than the ports.
func notOnPorts(ports []uint16) *listenerv3.ListenerFilterChainMatchPredicate {
	return &listenerv3.ListenerFilterChainMatchPredicate{Rule: &listenerv3.ListenerFilterChainMatchPredicate_NotMatch{NotMatch: onPorts(ports)}}
}

// secondWildcard is the IPv6 wildcard of a proxy that has both families, in
// addition to [wildcard].
func secondWildcard(v View, port uint16) []*listenerv3.AdditionalAddress {
	if !v.IPv4 || !v.IPv6 {
		return nil
	}
	return []*listenerv3.AdditionalAddress{{Address: socketAddress("::", port)}}
}

// detectionTimeout is how long a listener waits for a client to speak first,
// before it treats the connection as not sniffable. 0, the default, waits for
// ever.
func detectionTimeout(c *registry.Catalog) *durationpb.Duration {
	if t := c.Settings.Mesh.GetProtocolDetectionTimeout(); t != nil && t.CheckValid() == nil && t.AsDuration() >= 0 {
		return duration(t.AsDuration())
	}
	return duration(0)
}

// registryOnly reports whether proxies may talk to nothing but what the mesh
// knows: by the Sidecar if it says so, else by MeshConfig.
func registryOnly(in Inputs, v View) bool {
	if s := sidecarOf(in, v); s != nil && s.spec.GetOutboundTrafficPolicy() != nil {
		return s.spec.GetOutboundTrafficPolicy().GetMode() == networking.OutboundTrafficPolicy_REGISTRY_ONLY
	}
	p := in.Catalog.Settings.Mesh.GetOutboundTrafficPolicy()
	return p != nil && p.GetMode() == meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY
}

// istioDialect is the dialect of an Envoy, with or without Istio's filters,
// where the two are configured alike.
func istioDialect(d mesh.Dialect) mesh.Dialect {
	if d == mesh.DialectEnvoy {
		return mesh.DialectIstio
	}
	return d
}

// captured is the interception mode as far as outbound listeners are concerned:
// how intercepted traffic was brought makes no difference to them.
func captured(i mesh.Interception) mesh.Interception {
	if i == mesh.InterceptNone {
		return i
	}
	return mesh.InterceptRedirect
}
