package gatewayapi_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// TestInfrastructure: a Gateway's status follows what is known of its routers, and
// they are looked for under the name that they are made with.
func TestInfrastructure(t *testing.T) {
	t.Parallel()
	f := newFixture()
	f.read(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: edge}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: between, namespace: edge}
spec:
  gatewayClassName: istio-east-west
  listeners: [{name: tls, port: 15443, protocol: TLS, tls: {mode: Passthrough, options: {gateway.istio.io/listener-protocol: auto-passthrough}}}]
---
apiVersion: v1
kind: Service
metadata: {name: gw-istio, namespace: edge}
spec: {ports: [{name: http, port: 80}], externalIPs: [192.0.2.1]}`)
	condition := func(known gatewayapi.Infrastructure, kind gatewayv1.GatewayConditionType) metav1.Condition {
		in := f.input()
		in.Infrastructure = func(n gatewayapi.Name) gatewayapi.Infrastructure {
			if n.Name == "gw" {
				return known
			}
			return gatewayapi.Infrastructure{}
		}
		s := gatewayapi.Translate(in).Statuses[mesh.ObjectKey{Kind: mesh.KindGatewayAPIGateway, Namespace: "edge", Name: "gw"}]
		return *meta.FindStatusCondition(s.Gateway.Conditions, string(kind))
	}
	require.Equal(t, "Programmed", condition(gatewayapi.Infrastructure{}, gatewayv1.GatewayConditionProgrammed).Reason)
	waiting := gatewayapi.Infrastructure{Reason: "Pending", Message: "no pod yet"}
	require.Equal(t, metav1.ConditionFalse, condition(waiting, gatewayv1.GatewayConditionProgrammed).Status)
	require.Equal(t, "no pod yet", condition(waiting, gatewayv1.GatewayConditionProgrammed).Message)
	require.Equal(t, metav1.ConditionTrue, condition(waiting, gatewayv1.GatewayConditionAccepted).Status)
	bad := gatewayapi.Infrastructure{Parameters: "hostNetwork is refused"}
	require.Equal(t, "InvalidParameters", condition(bad, gatewayv1.GatewayConditionAccepted).Reason)
	require.Equal(t, "hostNetwork is refused", condition(bad, gatewayv1.GatewayConditionAccepted).Message)
	require.Equal(t, "Invalid", condition(bad, gatewayv1.GatewayConditionProgrammed).Reason)
	asked := gatewayapi.Translate(f.input()).Asked
	require.Contains(t, asked, gatewayapi.Name{Namespace: "edge", Name: "between"})
}

// TestMakesRouters: which Gateways get routers of their own.
func TestMakesRouters(t *testing.T) {
	t.Parallel()
	f := newFixture()
	f.read(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: mine}
spec: {controllerName: istio.io/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: istio-remote}
spec: {controllerName: example.com/other}`)
	controller := func(class string) string { return gatewayapi.ControllerOf(f.input().Objects, class) }
	require.Equal(t, gatewayapi.Controller, controller("istio"))
	require.Equal(t, gatewayapi.Controller, controller("mine"))
	require.Equal(t, "example.com/other", controller("istio-remote"), "an object decides about its name")
	require.Empty(t, controller("unknown"))
	address := func(kind gatewayv1.AddressType) []gatewayv1.GatewaySpecAddress {
		return []gatewayv1.GatewaySpecAddress{{Type: &kind, Value: "x"}}
	}
	makes := func(class string, a ...gatewayv1.GatewaySpecAddress) bool {
		return gatewayapi.MakesRouters(controller(class), &gatewayv1.GatewaySpec{Addresses: a})
	}
	require.True(t, makes("istio"))
	require.True(t, makes("istio-east-west"))
	require.True(t, makes("istio", address(gatewayv1.IPAddressType)...))
	require.False(t, makes("istio", address(gatewayv1.HostnameAddressType)...))
	require.False(t, makes("istio", address(gatewayv1.NamedAddressType)...))
	require.False(t, makes("istio-remote"))
	require.False(t, makes("unknown"))
	require.False(t, gatewayapi.MakesRouters("istio.io/unmanaged-gateway", &gatewayv1.GatewaySpec{}))
}
