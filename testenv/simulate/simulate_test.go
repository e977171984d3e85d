package simulate

import (
	"net/netip"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func chain(name string, m *listenerv3.FilterChainMatch) *listenerv3.FilterChain {
	config, err := anypb.New(&tcpproxyv3.TcpProxy{ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: name}})
	if err != nil {
		panic(err)
	}
	return &listenerv3.FilterChain{Name: name, FilterChainMatch: m, Filters: []*listenerv3.Filter{{
		Name: "tcp", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config}}}}
}

func cidr(prefix string, n uint32) []*corev3.CidrRange {
	return []*corev3.CidrRange{{AddressPrefix: prefix, PrefixLen: wrapperspb.UInt32(n)}}
}

func TestFilterChains(t *testing.T) {
	l := &listenerv3.Listener{
		Name:            "l",
		ListenerFilters: []*listenerv3.ListenerFilter{{Name: tlsInspector}, {Name: httpInspector}},
		FilterChains: []*listenerv3.FilterChain{
			chain("port", &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(9000)}),
			chain("net", &listenerv3.FilterChainMatch{PrefixRanges: cidr("10.0.0.0", 8)}),
			chain("subnet", &listenerv3.FilterChainMatch{PrefixRanges: cidr("10.1.0.0", 16), TransportProtocol: "tls"}),
			chain("exact", &listenerv3.FilterChainMatch{ServerNames: []string{"a.example.com"}}),
			chain("wild", &listenerv3.FilterChainMatch{ServerNames: []string{"*.example.com"}}),
			chain("alpn", &listenerv3.FilterChainMatch{ServerNames: []string{"*.example.com"}, ApplicationProtocols: []string{"h2"}}),
			chain("http", &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.1"}}),
		},
		DefaultFilterChain: chain("default", nil),
	}
	to := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	for want, c := range map[string]Connection{
		"port":    {To: to("10.1.0.1:9000"), SNI: "a.example.com"},
		"net":     {To: to("10.2.0.1:80")},
		"subnet":  {To: to("10.1.0.1:80"), TLS: true},
		"exact":   {To: to("1.1.1.1:443"), SNI: "A.example.com", ALPN: []string{"h2"}},
		"wild":    {To: to("1.1.1.1:443"), SNI: "b.example.com"},
		"alpn":    {To: to("1.1.1.1:443"), SNI: "b.example.com", ALPN: []string{"h2"}},
		"http":    {To: to("1.1.1.1:80"), Request: &Request{}},
		"default": {To: to("1.1.1.1:80")},
	} {
		require.Equal(t, want, matchChain(l, seen(l, c)).GetName())
	}
	// Plain text to the subnet: the longer prefix won before the transport was
	// looked at, and lost chains do not come back.
	require.Equal(t, "default", matchChain(l, seen(l, Connection{To: to("10.1.0.1:80")})).GetName())
}

func TestListeners(t *testing.T) {
	at := func(name, addr string, port uint32, bound bool) *listenerv3.Listener {
		return &listenerv3.Listener{Name: name, BindToPort: wrapperspb.Bool(bound), FilterChains: []*listenerv3.FilterChain{chain(name, nil)},
			Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: addr,
				PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}}
	}
	rest := at("virtualOutbound", "0.0.0.0", 15001, true)
	rest.UseOriginalDst = wrapperspb.Bool(true)
	p, err := NewProxy(at("vip", "10.0.0.1", 80, false), at("wild", "0.0.0.0", 80, false), rest, at("virtualInbound", "0.0.0.0", 15006, true), at("own", "0.0.0.0", 443, true))
	require.NoError(t, err)
	for want, c := range map[string]Connection{
		"vip":             {To: netip.MustParseAddrPort("10.0.0.1:80")},
		"wild":            {To: netip.MustParseAddrPort("10.0.0.2:80")},
		"virtualOutbound": {To: netip.MustParseAddrPort("10.0.0.1:81")},
		"virtualInbound":  {To: netip.MustParseAddrPort("10.0.0.1:80"), Inbound: true},
		"own":             {To: netip.MustParseAddrPort("10.0.0.1:443"), Direct: true},
	} {
		a, err := p.Ask(c)
		require.NoError(t, err)
		require.Equal(t, want, a.Listener)
		require.Equal(t, want, a.Upstream())
	}
	a, err := p.Ask(Connection{To: netip.MustParseAddrPort("10.0.0.1:80"), Direct: true})
	require.NoError(t, err)
	require.NotEmpty(t, a.Dropped)
	_, err = NewProxy(&wrapperspb.BoolValue{})
	require.Error(t, err)
}

func TestActions(t *testing.T) {
	p := &Proxy{}
	ask := func(r *routev3.Route, path string) *Answer {
		r.Match = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/a"}}
		out := &Answer{}
		require.NoError(t, p.Route(out, &routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{{Domains: []string{"*"}, Routes: []*routev3.Route{r}}}},
			&Request{Host: "h:80", Path: path}))
		return out
	}
	moved := ask(&routev3.Route{Action: &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{
		SchemeRewriteSpecifier: &routev3.RedirectAction_HttpsRedirect{HttpsRedirect: true}, HostRedirect: "x", PortRedirect: 8443,
		PathRewriteSpecifier: &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: "/b"}}}}, "/a/c?q=1")
	require.Equal(t, "https://x:8443/b/c?q=1", moved.Location)
	require.Equal(t, uint32(301), moved.Status)
	split := ask(&routev3.Route{Action: &routev3.Route_Route{Route: &routev3.RouteAction{
		PrefixRewrite: "/z",
		ClusterSpecifier: &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: []*routev3.WeightedCluster_ClusterWeight{
			{Name: "v1", Weight: wrapperspb.UInt32(3)}, {Name: "v2", Weight: wrapperspb.UInt32(1)}}}}}}}, "/a/x")
	require.Equal(t, []Share{{"v1", 75}, {"v2", 25}}, split.Upstreams)
	path, err := Rewritten(split, &Request{Path: "/a/x"})
	require.NoError(t, err)
	require.Equal(t, "/z/x", path)
	require.Equal(t, uint32(404), ask(&routev3.Route{}, "/b").Status)
}

func TestBalance(t *testing.T) {
	ep := func(addr string, w uint32, up bool) *endpointv3.LbEndpoint {
		h := corev3.HealthStatus_HEALTHY
		if !up {
			h = corev3.HealthStatus_UNHEALTHY
		}
		return &endpointv3.LbEndpoint{HealthStatus: h, LoadBalancingWeight: wrapperspb.UInt32(w), HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: addr, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 1}}}}}}}
	}
	group := func(priority, w uint32, e ...*endpointv3.LbEndpoint) *endpointv3.LocalityLbEndpoints {
		return &endpointv3.LocalityLbEndpoints{Priority: priority, LoadBalancingWeight: wrapperspb.UInt32(w), LbEndpoints: e}
	}
	balance := func(byLocality bool, groups ...*endpointv3.LocalityLbEndpoints) []Share {
		u := &clusterv3.Cluster{Name: "u", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}}
		if byLocality {
			u.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{LocalityConfigSpecifier: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
				LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{}}}
		}
		p, err := NewProxy(u, &endpointv3.ClusterLoadAssignment{ClusterName: "u", Endpoints: groups})
		require.NoError(t, err)
		out, err := p.Endpoints("u")
		require.NoError(t, err)
		return out
	}
	a, b, c := ep("1.1.1.1", 1, true), ep("1.1.1.2", 3, true), ep("1.1.1.3", 1, true)
	require.Equal(t, []Share{{"1.1.1.2:1", 75}, {"1.1.1.1:1", 25}}, balance(false, group(0, 4, a, b), group(1, 1, c)), "the first priority is healthy")
	require.Equal(t, []Share{{"1.1.1.3:1", 100}}, balance(false, group(0, 1, ep("1.1.1.1", 1, false)), group(1, 1, c)), "the first priority is not")
	half := balance(false, group(0, 2, a, ep("1.1.1.9", 1, false)), group(1, 1, c))
	require.InDelta(t, 70, half[0].Percent, 1e-9, "half of a level takes 1.4 times its share")
	require.InDelta(t, 30, half[1].Percent, 1e-9)
	require.Equal(t, []Share{{"1.1.1.3:1", 90}, {"1.1.1.1:1", 10}}, balance(true, group(0, 10, a), group(0, 90, c)), "localities by weight")
	require.Equal(t, []Share{{"1.1.1.1:1", 50}, {"1.1.1.3:1", 50}}, balance(false, group(0, 10, a), group(0, 90, c)), "or not")
	require.Empty(t, balance(false, group(0, 1, ep("1.1.1.1", 1, false))))
	_, err := (&Proxy{}).Endpoints("u")
	require.Error(t, err)
}
