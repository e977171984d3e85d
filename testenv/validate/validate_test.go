package validate

import (
	"testing"

	typev1 "github.com/cncf/xds/go/udpa/type/v1"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	lookupv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	dnscachev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	httplookupv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	snilookupv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func pack(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return a
}

func address(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}
}

func filter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(m)}}
}

func tcp(upstream string) *listenerv3.Filter {
	return filter("tcp", &tcpproxyv3.TcpProxy{StatPrefix: "x", ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: upstream}})
}

func httpFilter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(m)}}
}

func hcm(route string, filters ...*hcmv3.HttpFilter) *listenerv3.Filter {
	return filter("http", &hcmv3.HttpConnectionManager{StatPrefix: "x", HttpFilters: filters,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: route, ConfigSource: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}}}})
}

func chain(m *listenerv3.FilterChainMatch, filters ...*listenerv3.Filter) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{FilterChainMatch: m, Filters: filters}
}

func inspector(m proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: "i", ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(m)}}
}

// goodListener is a listener that everybody takes.
func goodListener(edit func(*listenerv3.Listener)) *listenerv3.Listener {
	l := &listenerv3.Listener{Name: "l", Address: address("0.0.0.0", 80),
		ListenerFilters: []*listenerv3.ListenerFilter{inspector(&tlsinspectorv3.TlsInspector{}), inspector(&httpinspectorv3.HttpInspector{})},
		FilterChains: []*listenerv3.FilterChain{
			chain(&listenerv3.FilterChainMatch{ServerNames: []string{"a.example", "*.b.example"}, ApplicationProtocols: []string{"h2", "istio"}}, tcp("up")),
			chain(&listenerv3.FilterChainMatch{ServerNames: []string{"a.example"}, ApplicationProtocols: []string{"http/1.1"}}, tcp("up")),
			chain(&listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.1"}},
				hcm("80", httpFilter("fault", &faultv3.HTTPFault{}), httpFilter("router", &routerv3.Router{}))),
		}}
	if edit != nil {
		edit(l)
	}
	return l
}

func routes(hosts ...*routev3.VirtualHost) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: "80", VirtualHosts: hosts}
}

func host(name string, domains ...string) *routev3.VirtualHost {
	return &routev3.VirtualHost{Name: name, Domains: domains, Routes: []*routev3.Route{route("up")}}
}

func route(upstream string) *routev3.Route {
	return &routev3.Route{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: upstream}}}}
}

func assignment(groups ...*endpointv3.LocalityLbEndpoints) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{ClusterName: "up", Endpoints: groups}
}

func group(zone string, priority uint32, hosts ...string) *endpointv3.LocalityLbEndpoints {
	g := &endpointv3.LocalityLbEndpoints{Locality: &corev3.Locality{Region: "r", Zone: zone}, Priority: priority}
	for _, h := range hosts {
		g.LbEndpoints = append(g.LbEndpoints, &endpointv3.LbEndpoint{LoadBalancingWeight: wrapperspb.UInt32(1),
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(h, 80)}}})
	}
	return g
}

func upstream(kind clusterv3.Cluster_DiscoveryType, edit func(*clusterv3.Cluster)) *clusterv3.Cluster {
	u := &clusterv3.Cluster{Name: "up", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: kind}}
	if kind == clusterv3.Cluster_EDS {
		u.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{ServiceName: "up", EdsConfig: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}}
	}
	if edit != nil {
		edit(u)
	}
	return u
}

func TestGoodResourcesPass(t *testing.T) {
	require.NoError(t, All(
		goodListener(nil),
		routes(host("a", "a.example", "*.b.example"), host("b", "*")),
		assignment(group("a", 0, "10.0.0.1"), group("a", 1, "10.0.0.1")),
		upstream(clusterv3.Cluster_EDS, nil),
		upstream(clusterv3.Cluster_ORIGINAL_DST, func(u *clusterv3.Cluster) { u.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED }),
	))
	l := goodListener(nil)
	require.NoError(t, Resource(pack(l).TypeUrl, pack(l)))
}

func regex(s string) *routev3.RouteConfiguration {
	r := routes(host("a", "a"))
	r.VirtualHosts[0].Routes[0].Match.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: s}}
	return r
}

func rewrite(pattern, substitution string) *routev3.RouteConfiguration {
	r := routes(host("a", "a"))
	r.VirtualHosts[0].Routes[0].GetRoute().RegexRewrite = &matcherv3.RegexMatchAndSubstitute{
		Pattern: &matcherv3.RegexMatcher{Regex: pattern}, Substitution: substitution}
	return r
}

func edited(edit func(*listenerv3.Listener)) proto.Message { return goodListener(edit) }

func withUnknown(m proto.Message) proto.Message {
	m.ProtoReflect().SetUnknown([]byte{0xf8, 0xff, 0x07, 0x01})
	return m
}

func socket(c *tlsv3.CommonTlsContext) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{
		TypedConfig: pack(&tlsv3.UpstreamTlsContext{CommonTlsContext: c})}}
}

// TestBadResourcesAreRefused: one example of everything that is looked for. Each
// differs from a good one in one place only.
func TestBadResourcesAreRefused(t *testing.T) {
	router := httpFilter("router", &routerv3.Router{})
	fault := httpFilter("fault", &faultv3.HTTPFault{})
	chains := func(c ...*listenerv3.FilterChain) func(*listenerv3.Listener) {
		return func(l *listenerv3.Listener) { l.FilterChains = c }
	}
	to80 := &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(80)}
	for name, tc := range map[string]struct {
		m    proto.Message
		want string
	}{
		"constraint":              {routes(&routev3.VirtualHost{Domains: []string{"a"}}), "VirtualHost.Name"},
		"constraint inside Any":   {edited(chains(chain(nil, filter("tcp", &tcpproxyv3.TcpProxy{ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: "up"}})))), "TcpProxy.StatPrefix"},
		"constraint two Any deep": {edited(chains(chain(nil, hcm("80", httpFilter("fault", &faultv3.HTTPFault{MaxActiveFaults: wrapperspb.UInt32(1), Delay: nil, ResponseRateLimit: nil, Abort: &faultv3.FaultAbort{}}), router)))), "FaultAbort"},
		"unknown type": {edited(func(l *listenerv3.Listener) {
			l.FilterChains[0].Filters[0].GetTypedConfig().TypeUrl = "type.googleapis.com/no.such.Type"
		}), `unknown type "type.googleapis.com/no.such.Type"`},
		"foreign type URL": {edited(func(l *listenerv3.Listener) { l.FilterChains[0].Filters[0].GetTypedConfig().TypeUrl = "example.com/x" }), "does not begin with"},
		"garbage in Any":   {edited(func(l *listenerv3.Listener) { l.FilterChains[0].Filters[0].GetTypedConfig().Value = []byte{0xff} }), "does not decode"},
		"unknown field":    {withUnknown(routes(host("a", "a"))), "fields that envoy.config.route.v3.RouteConfiguration does not have"},
		"unknown field in Any": {edited(func(l *listenerv3.Listener) {
			a := l.FilterChains[0].Filters[0].GetTypedConfig()
			a.Value = append(a.Value, 0xf8, 0xff, 0x07, 0x01)
		}), "fields that envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy does not have"},
		"deprecated field": {upstream(clusterv3.Cluster_STATIC, func(u *clusterv3.Cluster) {
			u.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{} //nolint:staticcheck // the point of the test
		}), "field envoy.config.cluster.v3.Cluster.http2_protocol_options is deprecated"},
		"typed struct of unknown type": {edited(chains(chain(nil, filter("x", &typev1.TypedStruct{TypeUrl: "type.googleapis.com/no.such.Type"}), tcp("up")))), "unknown type"},
		"typed struct with a wrong field": {edited(chains(chain(nil, filter("x", &typev1.TypedStruct{
			TypeUrl: tcpProxyURL, Value: &structpb.Struct{Fields: map[string]*structpb.Value{"nope": structpb.NewBoolValue(true)}}}), tcp("up")))), "nope"},
		"typed struct that breaks a constraint": {edited(chains(chain(nil, filter("x", &typev1.TypedStruct{TypeUrl: tcpProxyURL, Value: &structpb.Struct{}}), tcp("up")))), "TcpProxy.StatPrefix"},

		"bad regex":                {regex("(a"), "not a regular expression"},
		"regex with lookahead":     {regex("a(?=b)"), "not a regular expression"},
		"bad substitution":         {rewrite("a(b)", `\2`), "the pattern has 1 groups"},
		"virtual host twice":       {routes(host("a", "a"), host("a", "b")), `virtual host "a" twice`},
		"domain twice":             {routes(host("a", "x.example"), host("b", "X.example")), `domain "x.example" in virtual hosts "a" and "b"`},
		"domain twice in one host": {routes(host("a", "x", "x")), `domain "x" in virtual hosts "a" and "a"`},
		"wildcard in the middle":   {routes(host("a", "a.*.example")), "a wildcard stands at the beginning or at the end"},
		"split of nothing": {routes(&routev3.VirtualHost{Name: "a", Domains: []string{"a"}, Routes: []*routev3.Route{{Match: route("").Match,
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{
				Clusters: []*routev3.WeightedCluster_ClusterWeight{{Name: "up", Weight: wrapperspb.UInt32(0)}}}}}}}}}), "weights add up to 0"},

		"no address":                {edited(func(l *listenerv3.Listener) { l.Address = nil }), "no address"},
		"no chains":                 {edited(chains()), "no filter chains"},
		"no filters":                {edited(chains(chain(nil))), "has no filters"},
		"equal chains":              {edited(chains(chain(to80, tcp("a")), chain(to80, tcp("b")))), "match the same: port 80"},
		"overlapping chains":        {edited(chains(chain(&listenerv3.FilterChainMatch{ServerNames: []string{"a", "b"}}, tcp("a")), chain(&listenerv3.FilterChainMatch{ServerNames: []string{"b", "c"}}, tcp("b")))), "server name b"},
		"value twice in a chain":    {edited(chains(chain(&listenerv3.FilterChainMatch{ServerNames: []string{"a", "a"}}, tcp("a")))), "matches the same twice"},
		"address suffix":            {edited(chains(chain(&listenerv3.FilterChainMatch{AddressSuffix: "x"}, tcp("a")))), "does not implement"},
		"partial wildcard":          {edited(chains(chain(&listenerv3.FilterChainMatch{ServerNames: []string{"a*.example"}}, tcp("a")))), "only a leading"},
		"no tls_inspector":          {edited(func(l *listenerv3.Listener) { l.ListenerFilters = l.ListenerFilters[1:] }), "there is no tls_inspector"},
		"no http_inspector":         {edited(func(l *listenerv3.Listener) { l.ListenerFilters = l.ListenerFilters[:1] }), "there is no http_inspector"},
		"chain without end":         {edited(chains(chain(nil, tcp("a"), tcp("b")))), "the HTTP connection manager or the TCP proxy is last"},
		"default chain without end": {edited(func(l *listenerv3.Listener) { l.DefaultFilterChain = chain(nil) }), "has no filters"},
		"router not last":           {edited(chains(chain(nil, hcm("80", router, fault)))), "the router, and only it, is last"},
		"no HTTP filters":           {edited(chains(chain(nil, hcm("80")))), "no HTTP filters"},

		"priority gap":                  {assignment(group("a", 0, "10.0.0.1"), group("a", 2, "10.0.0.2")), "priority 2 without priority 1"},
		"EDS without config":            {upstream(clusterv3.Cluster_EDS, func(u *clusterv3.Cluster) { u.EdsClusterConfig = nil }), "eds_cluster_config"},
		"EDS with endpoints":            {upstream(clusterv3.Cluster_EDS, func(u *clusterv3.Cluster) { u.LoadAssignment = assignment() }), "with load_assignment"},
		"original destination balanced": {upstream(clusterv3.Cluster_ORIGINAL_DST, nil), "go together"},
		"logical DNS of two":            {upstream(clusterv3.Cluster_LOGICAL_DNS, func(u *clusterv3.Cluster) { u.LoadAssignment = assignment(group("a", 0, "a.example", "b.example")) }), "exactly one endpoint"},
		"socket match twice": {upstream(clusterv3.Cluster_STATIC, func(u *clusterv3.Cluster) {
			m := &clusterv3.Cluster_TransportSocketMatch{Name: "m", TransportSocket: socket(&tlsv3.CommonTlsContext{})}
			u.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{m, m}
		}), `transport socket match "m" twice`},
	} {
		t.Run(name, func(t *testing.T) { require.ErrorContains(t, Message(tc.m), tc.want) })
	}
}

// TestGRPCRefusesMore: what Envoy takes and gRPC does not.
func TestGRPCRefusesMore(t *testing.T) {
	sds := []*tlsv3.SdsSecretConfig{{Name: "default"}}
	for name, tc := range map[string]struct {
		m    proto.Message
		want string
	}{
		"address twice":    {assignment(group("a", 0, "10.0.0.1"), group("b", 0, "10.0.0.1")), "address 10.0.0.1:80 twice"},
		"locality twice":   {assignment(group("a", 0, "10.0.0.1"), group("a", 0, "10.0.0.2")), "locality 0/r/a/ twice"},
		"listener filters": {goodListener(nil), "listener_filters"},
		"HTTP filter twice": {goodListener(func(l *listenerv3.Listener) {
			fault := httpFilter("fault", &faultv3.HTTPFault{})
			l.FilterChains[2].Filters[0] = hcm("80", fault, fault, httpFilter("router", &routerv3.Router{}))
		}), `HTTP filter "fault" twice`},
		"SDS": {upstream(clusterv3.Cluster_STATIC, func(u *clusterv3.Cluster) {
			u.TransportSocket = socket(&tlsv3.CommonTlsContext{TlsCertificateSdsSecretConfigs: sds})
		}), "certificates by SDS"},
		"socket matches": {upstream(clusterv3.Cluster_STATIC, func(u *clusterv3.Cluster) {
			u.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{{Name: "m", TransportSocket: socket(&tlsv3.CommonTlsContext{})}}
		}), "transport_socket_matches"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, Message(tc.m), "Envoy takes it")
			require.ErrorContains(t, Options{GRPC: true}.Message(tc.m), tc.want)
		})
	}
}

func TestResourceMustBeOfItsType(t *testing.T) {
	a := pack(routes(host("a", "a")))
	require.NoError(t, Resource(a.TypeUrl, a))
	require.ErrorContains(t, Resource("type.googleapis.com/envoy.config.listener.v3.Listener", a), "resource is a")
	require.ErrorContains(t, Resource("x", &anypb.Any{TypeUrl: "x"}), "does not decode")
}

func TestProblemsSayWhere(t *testing.T) {
	r := regex("(")
	r.VirtualHosts = append(r.VirtualHosts, host("a", "b"))
	err := Message(r)
	require.ErrorContains(t, err, "RouteConfiguration 80: virtual host \"a\" twice\n")
	require.ErrorContains(t, err, "RouteConfiguration 80: virtual_hosts[0].routes[0].match.safe_regex: not a regular expression")
	var p Problem
	require.ErrorAs(t, err, &p)
	require.Equal(t, "RouteConfiguration 80", p.Resource)
}

// TestIstioTypesAreKnown: the exceptions are for types that really are unknown.
func TestIstioTypesAreKnown(t *testing.T) {
	for url := range structTypes() {
		_, err := messageType(url)
		require.Error(t, err, "%s can be resolved now: take it off the list", url)
		l := goodListener(func(l *listenerv3.Listener) {
			l.FilterChains[0].Filters = append([]*listenerv3.Filter{filter("x", &typev1.TypedStruct{TypeUrl: url})}, l.FilterChains[0].Filters...)
		})
		require.NoError(t, Message(l))
	}
}

func TestSnapshotFindsDanglingReferences(t *testing.T) {
	full := func() *Snapshot {
		s := &Snapshot{}
		require.NoError(t, s.Add(goodListener(nil), routes(host("a", "*")), upstream(clusterv3.Cluster_EDS, nil), assignment(group("a", 0, "10.0.0.1"))))
		return s
	}
	require.NoError(t, full().Check())
	for name, tc := range map[string]struct {
		edit func(*Snapshot)
		want []string
	}{
		"route":      {func(s *Snapshot) { delete(s.routes, "80") }, []string{`Listener l: `, `route configuration "80" is not there`}},
		"upstream":   {func(s *Snapshot) { delete(s.upstreams, "up") }, []string{`Listener l: `, `RouteConfiguration 80: `, `upstream "up" is not there`}},
		"assignment": {func(s *Snapshot) { delete(s.assignments, "up") }, []string{`Cluster up: assignment "up" is not there`}},
		"two listeners on one address": {func(s *Snapshot) {
			l := goodListener(func(l *listenerv3.Listener) {
				l.Name, l.Address = "other", address("10.0.0.1", 80)
				l.AdditionalAddresses = []*listenerv3.AdditionalAddress{{Address: address("0.0.0.0", 80)}}
			})
			require.NoError(t, s.Add(l))
		}, []string{"Listeners: l and other both have address 0.0.0.0:80"}},
		"a bad resource": {func(s *Snapshot) { require.NoError(t, s.AddAny(pack(routes(host("a", "a"), host("b", "a"))))) }, []string{"domain"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := full()
			tc.edit(s)
			for _, want := range tc.want {
				require.ErrorContains(t, s.Check(), want)
			}
		})
	}
	s := full()
	s.Bootstrap = []string{"up"}
	delete(s.upstreams, "up")
	require.NoError(t, s.Check(), "the proxy has the upstream from its bootstrap configuration")
	require.ErrorContains(t, s.Add(&corev3.Node{}), "not a resource")
	require.Equal(t, []string{"80"}, RouteNames(goodListener(nil)))
}

// TestSnapshotFollowsLookups: upstreams that dial what a filter looked up.
func TestSnapshotFollowsLookups(t *testing.T) {
	cache := func(family clusterv3.Cluster_DnsLookupFamily) *dnscachev3.DnsCacheConfig {
		return &dnscachev3.DnsCacheConfig{Name: "cache", DnsLookupFamily: family}
	}
	v4, v6 := clusterv3.Cluster_V4_ONLY, clusterv3.Cluster_V6_ONLY
	dials := func(edit func(*clusterv3.Cluster)) *clusterv3.Cluster {
		u := &clusterv3.Cluster{Name: "up", LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED, ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{
			ClusterType: &clusterv3.Cluster_CustomClusterType{Name: "x", TypedConfig: pack(&lookupv3.ClusterConfig{
				ClusterImplementationSpecifier: &lookupv3.ClusterConfig_DnsCacheConfig{DnsCacheConfig: cache(v4)}})}}}
		if edit != nil {
			edit(u)
		}
		return u
	}
	looks := func(family clusterv3.Cluster_DnsLookupFamily, disabled bool) *hcmv3.HttpFilter {
		f := httpFilter("look", &httplookupv3.FilterConfig{ImplementationSpecifier: &httplookupv3.FilterConfig_DnsCacheConfig{DnsCacheConfig: cache(family)}})
		f.Disabled = disabled
		return f
	}
	sni := filter("sni", &snilookupv3.FilterConfig{DnsCacheConfig: cache(v4), PortSpecifier: &snilookupv3.FilterConfig_PortValue{PortValue: 443}})
	listener := func(c *listenerv3.FilterChain) *listenerv3.Listener {
		return &listenerv3.Listener{Name: "l", Address: address("0.0.0.0", 80), FilterChains: []*listenerv3.FilterChain{c},
			ListenerFilters: []*listenerv3.ListenerFilter{inspector(&tlsinspectorv3.TlsInspector{})}}
	}
	web := func(filters ...*hcmv3.HttpFilter) *listenerv3.Listener {
		return listener(chain(nil, hcm("80", append(filters, httpFilter("router", &routerv3.Router{}))...)))
	}
	on := host("a", "*")
	on.TypedPerFilterConfig = map[string]*anypb.Any{"look": pack(&httplookupv3.PerRouteConfig{})}
	named := &listenerv3.FilterChainMatch{ServerNames: []string{"*.example"}}
	strict := func(u *clusterv3.Cluster) {
		u.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptionsName: pack(&httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{}}}})}
	}
	for name, tc := range map[string]struct {
		upstream *clusterv3.Cluster
		listener *listenerv3.Listener
		host     *routev3.VirtualHost
		want     string
	}{
		"on by itself":          {dials(nil), web(looks(v4, false)), host("a", "*"), ""},
		"on by the host":        {dials(nil), web(looks(v4, true)), on, ""},
		"off":                   {dials(nil), web(looks(v4, true)), host("a", "*"), "no filter that is on"},
		"no filter":             {dials(nil), web(), host("a", "*"), "no filter that is on"},
		"other settings":        {dials(nil), web(looks(v6, false)), host("a", "*"), `DNS cache "cache" has other settings elsewhere`},
		"by server name":        {dials(nil), listener(chain(named, sni, tcp("up"))), nil, ""},
		"any server name":       {dials(nil), listener(chain(nil, sni, tcp("up"))), nil, "looks up any server name"},
		"no server name":        {dials(nil), listener(chain(named, tcp("up"))), nil, `the server name is looked up into ""`},
		"looked up for nothing": {upstream(clusterv3.Cluster_STATIC, nil), listener(chain(named, sni, tcp("up"))), nil, `takes what it dials from DNS cache ""`},
		"who is not verified":   {dials(strict), web(looks(v4, false)), host("a", "*"), "allow_insecure_cluster_options"},
		"another balancer":      {dials(func(u *clusterv3.Cluster) { u.LbPolicy = 0 }), web(looks(v4, false)), host("a", "*"), "go together"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Snapshot{}
			require.NoError(t, s.Add(tc.upstream, tc.listener))
			if tc.host != nil {
				require.NoError(t, s.Add(routes(tc.host)))
			}
			if tc.want == "" {
				require.NoError(t, s.Check())
			} else {
				require.ErrorContains(t, s.Check(), tc.want)
			}
		})
	}
}
