package build

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/testenv/validate"
)

const backendUpstream = "outbound|443||web.shop.svc.cluster.local"

// labBackend is a Gateway in edge that leads to a Service in shop, about which
// there is a BackendTLSPolicy with the validation.
func labBackend(t *testing.T, v gatewayv1.BackendTLSPolicyValidation, more ...*mesh.Object) *lab {
	t.Helper()
	l := newLab(&meshconfig.MeshConfig{})
	l.services("c1", labPods(labService("web", "shop", labPorts(labPort("https", 443, mesh.ProtocolHTTPS), labPort("http", 80, mesh.ProtocolHTTP)), nil), "c1", "", "10.1.0.1"))
	port, shop, edge := gatewayv1.PortNumber(443), gatewayv1.Namespace("shop"), gatewayv1.Namespace("edge")
	all := gatewayv1.NamespacesFromAll
	objects := append(more, &mesh.Object{
		Key: mesh.ObjectKey{Kind: mesh.KindGatewayAPIGateway, Namespace: "edge", Name: "gw"},
		Value: &gatewayv1.GatewaySpec{GatewayClassName: "istio", Listeners: []gatewayv1.Listener{{Name: "http", Port: 80, Protocol: gatewayv1.HTTPProtocolType,
			AllowedRoutes: &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: &all}}}}},
	}, &mesh.Object{
		Key: mesh.ObjectKey{Kind: mesh.KindHTTPRoute, Namespace: "shop", Name: "r"},
		Value: &gatewayv1.HTTPRouteSpec{CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{{Namespace: &edge, Name: "gw"}}},
			Rules: []gatewayv1.HTTPRouteRule{{BackendRefs: []gatewayv1.HTTPBackendRef{{BackendRef: gatewayv1.BackendRef{
				BackendObjectReference: gatewayv1.BackendObjectReference{Namespace: &shop, Name: "web", Port: &port}}}}}}},
	}, &mesh.Object{
		Key: mesh.ObjectKey{Kind: mesh.KindBackendTLSPolicy, Namespace: "shop", Name: "p"},
		Value: &gatewayv1.BackendTLSPolicySpec{Validation: v, TargetRefs: []gatewayv1.LocalPolicyTargetReferenceWithSectionName{{
			LocalPolicyTargetReference: gatewayv1.LocalPolicyTargetReference{Kind: "Service", Name: "web"}}}},
	})
	for _, o := range objects {
		l.sinks["c1"].Apply(registry.Update{Objects: []registry.ObjectState{{Key: o.Key, Object: o}}})
	}
	return l
}

func labMaps(names ...string) gatewayv1.BackendTLSPolicyValidation {
	out := gatewayv1.BackendTLSPolicyValidation{Hostname: "web.test"}
	for _, n := range names {
		out.CACertificateRefs = append(out.CACertificateRefs, gatewayv1.LocalObjectReference{Kind: "ConfigMap", Name: gatewayv1.ObjectName(n)})
	}
	return out
}

// labDialled is how the upstream is secured for a view: nil if by no TLS of its
// own to all its endpoints. The view is asked for as the cache does.
func labDialled(t *testing.T, l *lab, v View) (*clusterv3.Cluster, *tlsv3.UpstreamTlsContext) {
	t.Helper()
	p := Upstreams{}.Project(l.in(), v, backendUpstream)
	m, err := Upstreams{}.Build(l.in(), p, backendUpstream)
	require.NoError(t, err)
	require.NoError(t, validate.Message(m))
	u := m.(*clusterv3.Cluster)
	if u.GetTransportSocket() == nil {
		return u, nil
	}
	var out tlsv3.UpstreamTlsContext
	require.NoError(t, u.GetTransportSocket().GetTypedConfig().UnmarshalTo(&out))
	return u, &out
}

func labEdge(namespace string) View {
	v := labRouter(map[string]string{"gateway.networking.k8s.io/gateway-name": "gw"})
	v.Namespace = namespace
	return v
}

// TestBackendTLS: a policy holds for the routers that lead to its Service,
// whatever DestinationRules say, and leaves everything else of these in force.
func TestBackendTLS(t *testing.T) {
	t.Parallel()
	rule := func(ns string) *mesh.Object {
		return &mesh.Object{Key: mesh.ObjectKey{Kind: mesh.KindDestinationRule, Namespace: ns, Name: "mine"}, Spec: &networking.DestinationRule{
			Host: "web.shop.svc.cluster.local", TrafficPolicy: &networking.TrafficPolicy{
				Tls:            &networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_DISABLE},
				ConnectionPool: &networking.ConnectionPoolSettings{Tcp: &networking.ConnectionPoolSettings_TCPSettings{MaxConnections: 7}}}}}
	}
	for name, more := range map[string][]*mesh.Object{
		"alone": nil, "beside a rule of the service's": {rule("shop")}, "beside a rule of the routers'": {rule("edge")},
	} {
		t.Run(name, func(t *testing.T) {
			l := labBackend(t, labMaps("a", "b"), more...)
			u, tls := labDialled(t, l, labEdge("edge"))
			require.Equal(t, "web.test", tls.GetSni())
			c := tls.GetCommonTlsContext().GetCombinedValidationContext()
			require.Equal(t, "configmap://shop/a,shop/b-cacert", c.GetValidationContextSdsSecretConfig().GetName())
			require.NotNil(t, c.GetValidationContextSdsSecretConfig().GetSdsConfig().GetAds())
			require.Equal(t, "web.test", c.GetDefaultValidationContext().GetMatchSubjectAltNames()[0].GetExact()) //nolint:staticcheck // what proxies are given
			if len(more) > 0 {
				require.Equal(t, uint32(7), u.GetCircuitBreakers().GetThresholds()[0].GetMaxConnections().GetValue())
			}
			for _, other := range []View{labEdge("other"), labSidecar(func(v *View) { v.Namespace = "edge" })} {
				_, tls := labDialled(t, l, other)
				require.Nil(t, tls, "%v", other)
			}
		})
	}
}

// TestBackendTLSFailsClosed: a policy without roots that can be used is TLS all
// the same, with nobody whom it trusts.
func TestBackendTLSFailsClosed(t *testing.T) {
	t.Parallel()
	odd := gatewayv1.BackendTLSPolicyValidation{Hostname: "web.test", CACertificateRefs: []gatewayv1.LocalObjectReference{{Group: "example.com", Kind: "Vault", Name: "a"}}}
	_, tls := labDialled(t, labBackend(t, odd), labEdge("edge"))
	v := tls.GetCommonTlsContext().GetValidationContext()
	require.Len(t, v.GetVerifyCertificateHash(), 1)
	require.Regexp(t, "^0{64}$", v.GetVerifyCertificateHash()[0])
	require.Nil(t, v.GetTrustedCa())
}
