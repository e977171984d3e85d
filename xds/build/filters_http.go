package build

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	grpcstatsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	grpcwebv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_web/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	mongov3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/mongo_proxy/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const (
	hcmName      = "envoy.filters.network.http_connection_manager"
	tcpProxyName = "envoy.filters.network.tcp_proxy"
	mongoName    = "envoy.filters.network.mongo_proxy"
	faultName    = "envoy.filters.http.fault"
	routerName   = "envoy.filters.http.router"

	// serverHeader is what an inbound proxy calls itself in responses.
	serverHeader = "istio-envoy"
)

// filters makes the network and HTTP filters of one listener's chains.
type filters struct {
	in  Inputs
	v   View
	dir Direction
	// port is what the listener is for: a port of services or, inbound, of the
	// workload; 0 if it is for all.
	port uint16
	// istio: the proxy has Istio's filters.
	istio bool
	// own are the sections of the proxy's own configuration that are in force.
	own *meshconfig.ProxyConfig
	// stats are the configurations of filters that keep Istio's metrics.
	stats        []proto.Message
	plugins      []*wasmPlugin
	logs         []*accesslogv3.AccessLog
	listenerLogs []*accesslogv3.AccessLog
}

func newFilters(in Inputs, v View, dir Direction, port uint16) (*filters, error) {
	f := &filters{in: in, v: v, dir: dir, port: port, istio: v.Dialect == mesh.DialectIstio, own: v.Tuning.config()}
	if f.istio {
		f.stats, f.plugins = istioStats(in, v, dir), plugins(in, v)
	}
	var err error
	if f.logs, err = accessLogs(in, v, dir); err != nil {
		return nil, err
	}
	if !in.Catalog.Settings.Mesh.GetDisableEnvoyListenerLog() {
		f.listenerLogs = unrouted(f.logs)
	}
	return f, nil
}

// networkFilter packs one network filter.
func networkFilter(name string, config proto.Message) (*listenerv3.Filter, error) {
	a, err := toAny(config)
	if err != nil {
		return nil, err
	}
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: a}}, nil
}

// tcp makes a chain that passes bytes to an upstream. p is the protocol of the
// port, which may have a filter that counts what it understands.
func (f *filters) tcp(upstream string, p mesh.Protocol) ([]*listenerv3.Filter, error) {
	return f.tcpCounted(upstream, upstream, p)
}

// tcpCounted is [filters.tcp], with the name under which connections are counted.
func (f *filters) tcpCounted(upstream, stat string, p mesh.Protocol) ([]*listenerv3.Filter, error) {
	return f.tcpFilters(&tcpproxyv3.TcpProxy{
		StatPrefix:       stat,
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: upstream},
		AccessLog:        f.logs,
		IdleTimeout:      f.idle(),
	}, p)
}

// idle is how long connections may be idle, nil for Envoy's default.
func (f *filters) idle() *durationpb.Duration {
	if !f.v.Tuning.idles {
		return nil
	}
	return duration(f.v.Tuning.idle)
}

// blackHole makes a chain that drops connections, without a word in the log.
func (f *filters) blackHole() ([]*listenerv3.Filter, error) {
	return f.tcpFilters(&tcpproxyv3.TcpProxy{
		StatPrefix:       UpstreamBlackHole,
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: UpstreamBlackHole},
	}, mesh.ProtocolTCP)
}

// tcpFilters makes the filters of a chain that ends in a TCP proxy, right before
// which some may stand.
func (f *filters) tcpFilters(t *tcpproxyv3.TcpProxy, protocol mesh.Protocol, before ...*listenerv3.Filter) ([]*listenerv3.Filter, error) {
	out, err := f.prelude()
	if err != nil {
		return nil, err
	}
	out = append(out, f.networkPlugins()...)
	for _, config := range f.stats {
		s, err := networkFilter(statsName, config)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	if protocol == mesh.ProtocolMongo {
		m, err := networkFilter(mongoName, &mongov3.MongoProxy{StatPrefix: t.GetStatPrefix()})
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	p, err := networkFilter(tcpProxyName, t)
	if err != nil {
		return nil, err
	}
	return append(append(out, before...), p), nil
}

// prelude is what every inbound chain of an Istio proxy begins with.
func (f *filters) prelude() ([]*listenerv3.Filter, error) {
	if !f.istio || f.dir != DirectionInbound {
		return nil, nil
	}
	x, err := networkFilter(metadataExchangeName, tcpMetadataExchange())
	return []*listenerv3.Filter{x}, err
}

// http makes a chain that routes requests. The caller gives the name for
// statistics and where the routes come from; p is the protocol of the port as
// far as it is one for all that is served there.
func (f *filters) http(stat string, routes *hcmv3.HttpConnectionManager, p mesh.Protocol) ([]*listenerv3.Filter, error) {
	out, err := f.prelude()
	if err != nil {
		return nil, err
	}
	out = append(out, f.networkPlugins()...)
	spans, ids, err := tracing(f.in, f.v, f.dir)
	if err != nil {
		return nil, err
	}
	h := &hcmv3.HttpConnectionManager{
		StatPrefix:         stat,
		RouteSpecifier:     routes.RouteSpecifier,
		HttpFilters:        f.httpFilters(p, routes.GetRds().GetRouteConfigName()),
		AccessLog:          f.logs,
		Tracing:            spans,
		UpgradeConfigs:     []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		UseRemoteAddress:   boolean(false),
		StreamIdleTimeout:  duration(0),
		Proxy_100Continue:  true,
		RequestIdExtension: ids,
	}
	if f.dir == DirectionInbound && p.IsHTTP2() {
		h.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{}
	}
	if p == mesh.ProtocolHTTPProxy {
		http1Options(h).AllowAbsoluteUrl = boolean(true)
	}
	normalizePath(h, f.in.Catalog.Settings.Mesh)
	if f.dir == DirectionInbound {
		h.ServerName = serverHeader
	}
	if f.v.Kind == mesh.ProxyRouter {
		f.atEdge(h)
	}
	f.tune(h)
	n, err := networkFilter(hcmName, h)
	if err != nil {
		return nil, err
	}
	return append(out, n), nil
}

// byRDS takes routes from a route configuration by name.
func byRDS(name string) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{
		Rds: &hcmv3.Rds{ConfigSource: adsSource(), RouteConfigName: name},
	}}
}

// inline takes routes from the listener itself.
func inline(r *routev3.RouteConfiguration) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: r}}
}

// httpFilters lists the HTTP filters in the order in which requests pass them;
// routes is the name of the route configuration, "" if it is the listener's own.
func (f *filters) httpFilters(p mesh.Protocol, routes string) []*hcmv3.HttpFilter {
	var out []*hcmv3.HttpFilter
	if f.istio {
		inMesh := f.own.GetProxyHeaders().GetMetadataExchangeHeaders().GetMode() == meshconfig.ProxyConfig_ProxyHeaders_IN_MESH
		out = append(out, httpFilter(metadataExchangeName, httpMetadataExchange(f.dir, inMesh)))
	}
	out = append(out, f.httpPlugins()...)
	if p == mesh.ProtocolGRPCWeb {
		out = append(out, httpFilter("envoy.filters.http.grpc_web", &grpcwebv3.GrpcWeb{}))
	}
	out = append(out, httpFilter("envoy.filters.http.grpc_stats", &grpcstatsv3.FilterConfig{
		EmitFilterState:        true,
		PerMethodStatSpecifier: &grpcstatsv3.FilterConfig_StatsForAllMethods{StatsForAllMethods: boolean(false)},
	}))
	if f.istio && f.dir == DirectionOutbound {
		out = append(out, httpFilter(alpnName, alpnOverride()))
	}
	out = append(out, httpFilter(faultName, &faultv3.HTTPFault{}), httpFilter("envoy.filters.http.cors", &corsv3.Cors{}))
	for _, config := range f.stats {
		out = append(out, httpFilter(statsName, config))
	}
	out = append(out, f.lookupFilters(routes)...)
	quiet := f.own.GetProxyHeaders().GetEnvoyDebugHeaders().GetDisabled().GetValue()
	return append(out, httpFilter(routerName, &routerv3.Router{SuppressEnvoyHeaders: quiet}))
}

func httpFilter(name string, config proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: mustAny(config)}}
}

// requestID makes the IDs of requests. decides says that whether a request is
// traced can be told from its ID.
func requestID(decides bool) *hcmv3.RequestIDExtension {
	return &hcmv3.RequestIDExtension{TypedConfig: mustAny(&uuidv3.UuidRequestIdConfig{UseRequestIdForTraceSampling: boolean(decides)})}
}

// normalizePath brings request paths into one form before anything decides by
// them, as MeshConfig.pathNormalization says.
func normalizePath(h *hcmv3.HttpConnectionManager, m *meshconfig.MeshConfig) {
	h.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_KEEP_UNCHANGED
	switch m.GetPathNormalization().GetNormalization() {
	case meshconfig.MeshConfig_ProxyPathNormalization_NONE:
		return
	case meshconfig.MeshConfig_ProxyPathNormalization_MERGE_SLASHES:
		h.MergeSlashes = true
	case meshconfig.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES:
		h.MergeSlashes = true
		h.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD
	}
	h.NormalizePath = boolean(true)
}
