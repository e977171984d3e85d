package build

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/xds"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

func exactly(s string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: s}}
}

func withHeader(name string) []*networking.HTTPMatchRequest {
	return []*networking.HTTPMatchRequest{{Headers: map[string]*networking.StringMatch{name: exactly("1")}}}
}

func toSubset(name string, weight int32) *networking.HTTPRouteDestination {
	return &networking.HTTPRouteDestination{Destination: &networking.Destination{Host: "web", Subset: name}, Weight: weight}
}

// grpcRulesOfWeb are rules of all kinds that gRPC clients keep.
func grpcRulesOfWeb() *networking.VirtualService {
	return &networking.VirtualService{Hosts: []string{"web"}, Http: []*networking.HTTPRoute{
		{Match: []*networking.HTTPMatchRequest{{Method: exactly("GET")}, {QueryParams: map[string]*networking.StringMatch{"q": {}}}, {Authority: exactly("other")}},
			DirectResponse: &networking.HTTPDirectResponse{Status: 500}}, // no call matches
		{Match: withHeader("x-broken"), Fault: &networking.HTTPFaultInjection{Abort: &networking.HTTPFaultInjection_Abort{
			ErrorType: &networking.HTTPFaultInjection_Abort_GrpcStatus{GrpcStatus: "PERMISSION_DENIED"}, Percentage: &networking.Percent{Value: 100}}},
			Route: []*networking.HTTPRouteDestination{toSubset("v1", 0)}},
		{Match: withHeader("x-slow"), Timeout: durationpb.New(50 * time.Millisecond), Route: []*networking.HTTPRouteDestination{toSubset("v1", 0)}},
		{Match: withHeader("x-flaky"), Retries: &networking.HTTPRetry{Attempts: 2, RetryOn: "5xx,unavailable", Backoff: durationpb.New(time.Millisecond)},
			Route: []*networking.HTTPRouteDestination{toSubset("v1", 0)}},
		{Match: []*networking.HTTPMatchRequest{{Headers: map[string]*networking.StringMatch{"x-canary": {}},
			WithoutHeaders: map[string]*networking.StringMatch{"x-canary": exactly("0"), "x-other": exactly("1")}}},
			Route: []*networking.HTTPRouteDestination{toSubset("v2", 0)}},
		{Rewrite: &networking.HTTPRewrite{Authority: "ignored"}, Headers: &networking.Headers{Request: &networking.Headers_HeaderOperations{Set: map[string]string{"x": "y"}}},
			Mirror: &networking.Destination{Host: "web"}, CorsPolicy: &networking.CorsPolicy{},
			Route: []*networking.HTTPRouteDestination{toSubset("v1", 75), toSubset("v2", 25)}},
	}}
}

// backend is a health service; calls with x-slow hang, and of those with x-flaky
// every other one fails.
func grpcBackend(t *testing.T) (at string) {
	t.Helper()
	var flaky atomic.Int32
	l := listen(t)
	s := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		switch {
		case len(md.Get("x-slow")) > 0:
			<-ctx.Done()
			return nil, ctx.Err()
		case len(md.Get("x-flaky")) > 0 && flaky.Add(1)%2 == 1:
			return nil, status.Error(codes.Unavailable, "flaky")
		}
		return next(ctx, req)
	}))
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Stop(); wg.Wait() })
	return l.Addr().String()
}

func handmade(name, at string) map[string]proto.Message {
	a := netip.MustParseAddrPort(at)
	return map[string]proto.Message{
		TypeUpstream + name: &clusterv3.Cluster{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: adsSource(), ServiceName: name}},
		TypeAssignment + name: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			Locality: &corev3.Locality{Region: "r"}, LoadBalancingWeight: wrapperspb.UInt32(1), LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: addrAddress(a.Addr(), a.Port())}}}}}}},
	}
}

// TestGRPCClientFollowsRules: gRPC's own xDS client takes what we make of a
// VirtualService, and does as it says.
func TestGRPCClientFollowsRules(t *testing.T) {
	l := labShop(&meshconfig.MeshConfig{})
	l.objects(labVirtualService("shop", "web", 2020, grpcRulesOfWeb()))
	s := &ads{lab: l, extra: map[string]proto.Message{}, view: View{Kind: mesh.ProxySidecar, Dialect: mesh.DialectGRPC, Namespace: "shop", Domain: DefaultDomain}}
	v1, v2 := grpcBackend(t), grpcBackend(t)
	for subset, at := range map[string]string{"v1": v1, "v2": v2} {
		for k, m := range handmade(UpstreamName(DirectionOutbound, 9000, subset, "web.shop.svc.cluster.local"), at) {
			s.extra[k] = m
		}
	}
	resolver, err := xds.NewXDSResolverWithConfigForTesting(serveADS(t, s, t.TempDir()))
	require.NoError(t, err)
	conn, err := grpc.NewClient("xds:///web:9000", grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	call := func(header ...string) (string, error) {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), header...), 20*time.Second)
		defer cancel()
		var p grpcpeer.Peer
		_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true), grpc.Peer(&p))
		if err != nil {
			return "", err
		}
		return p.Addr.String(), nil
	}
	counts := map[string]int{}
	for range 400 {
		at, err := call()
		require.NoError(t, err, "refused: %v", s.refused())
		counts[at]++
	}
	require.InDelta(t, 300, counts[v1], 60, "three of four calls: %v", counts) // seven standard deviations
	for range 20 {
		at, err := call("x-canary", "1")
		require.NoError(t, err)
		require.Equal(t, v2, at)
	}
	_, err = call("x-broken", "1")
	require.Equal(t, codes.PermissionDenied, status.Code(err))
	_, err = call("x-slow", "1")
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	at, err := call("x-flaky", "1")
	require.NoError(t, err, "a retry")
	require.Equal(t, v1, at)
	require.Empty(t, s.refused())
}

// TestGRPCRulesOfACall: what no call matches is left out, and a header that must
// not have a value may also be missing.
func TestGRPCRulesOfACall(t *testing.T) {
	l := labShop(&meshconfig.MeshConfig{})
	l.objects(labVirtualService("shop", "web", 2020, grpcRulesOfWeb()))
	v := View{Kind: mesh.ProxySidecar, Dialect: mesh.DialectGRPC, Namespace: "shop", Domain: DefaultDomain}
	m, err := Routes{}.Build(l.in(), v, "outbound|9000||web.shop.svc.cluster.local")
	require.NoError(t, err)
	routes := m.(*routev3.RouteConfiguration).GetVirtualHosts()[0].GetRoutes()
	require.Len(t, routes, 8, "one for each of three rules, four for two headers, one for the rest")
	require.Nil(t, routes[0].GetRoute().GetRetryPolicy(), "gRPC's own")
	require.Equal(t, "unavailable", routes[2].GetRoute().GetRetryPolicy().GetRetryOn())
	require.Equal(t, 50*time.Millisecond, routes[1].GetRoute().GetMaxStreamDuration().GetMaxStreamDuration().AsDuration())
	last := routes[7]
	require.Empty(t, last.GetRequestHeadersToAdd())
	require.Empty(t, last.GetTypedPerFilterConfig())
	require.Nil(t, last.GetRoute().GetHostRewriteSpecifier())
	require.Empty(t, last.GetRoute().GetRequestMirrorPolicies())
}
