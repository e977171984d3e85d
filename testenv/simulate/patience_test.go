package simulate

import (
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	require.NoError(t, err)
	return a
}

func TestPatience(t *testing.T) {
	t.Parallel()
	route := func(whole, try *durationpb.Duration) *Answer {
		return &Answer{Action: &routev3.RouteAction{Timeout: whole, RetryPolicy: &routev3.RetryPolicy{PerTryTimeout: try}}}
	}
	require.Equal(t, 15*time.Second, route(nil, nil).Patience())
	require.Equal(t, time.Duration(0), route(durationpb.New(0), nil).Patience(), "for ever")
	require.Equal(t, time.Second, route(durationpb.New(0), durationpb.New(time.Second)).Patience())
	require.Equal(t, time.Second, route(durationpb.New(time.Second), durationpb.New(time.Minute)).Patience())
}

// TestSecures: which transport socket an endpoint gets, and which HTTP.
func TestSecures(t *testing.T) {
	t.Parallel()
	socket := func(sni string) *corev3.TransportSocket {
		return &corev3.TransportSocket{ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed(t, &tlsv3.UpstreamTlsContext{Sni: sni})}}
	}
	mode, err := structpb.NewStruct(map[string]any{"tlsMode": "istio"})
	require.NoError(t, err)
	endpoint := func(addr string, m *structpb.Struct) *endpointv3.LbEndpoint {
		return &endpointv3.LbEndpoint{Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{matchKey: m}},
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
				SocketAddress: &corev3.SocketAddress{Address: addr, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 80}}}}}}}
	}
	two := &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}}}}
	p, err := NewProxy(&clusterv3.Cluster{Name: "u", TransportSocket: socket("own"),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(t, two)},
		TransportSocketMatches: []*clusterv3.Cluster_TransportSocketMatch{{Match: mode, TransportSocket: socket("mesh")},
			{Match: &structpb.Struct{Fields: map[string]*structpb.Value{"other": structpb.NewBoolValue(true)}}, TransportSocket: socket("other")}},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{
			endpoint("10.0.0.1", mode), endpoint("10.0.0.2", nil)}}}}},
		&clusterv3.Cluster{Name: "plain"})
	require.NoError(t, err)
	for at, want := range map[string]string{"10.0.0.1:80": "mesh", "10.0.0.2:80": "own"} {
		got, err := p.Secures("u", at)
		require.NoError(t, err)
		require.Equal(t, want, got.GetSni(), at)
	}
	got, err := p.Secures("plain", "10.0.0.1:80")
	require.NoError(t, err)
	require.Nil(t, got)
	_, err = p.Secures("nothing", "10.0.0.1:80")
	require.Error(t, err)
	for name, want := range map[string]bool{"u": true, "plain": false} {
		is, err := p.HTTP2(name, true)
		require.NoError(t, err)
		require.Equal(t, want, is, name)
	}
}
