package serve

import (
	"os"
	"path/filepath"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/stretchr/testify/require"

	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/xds"
	"github.com/isthmus-mesh/isthmus/xds/build"
)

const somePolicies = `
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: auth, namespace: shop}
spec: {url: "oci://registry.example.com/auth:1"}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: patches, namespace: shop}
spec:
  configPatches:
  - applyTo: LISTENER
    match: {listener: {name: 0.0.0.0_80}}
    patch: {operation: MERGE, value: {per_connection_buffer_limit_bytes: 4096}}
  - applyTo: HTTP_FILTER
    match: {listener: {portNumber: 80, filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}}}}
    patch: {operation: REMOVE}
`

// TestRow43PoisonPatch: a patch that would cost proxies their listeners is left
// out by name; its neighbour, and everything else, is served. What plugins are is
// told by their names, and shown by the dump.
func TestRow43PoisonPatch(t *testing.T) {
	r := runWith(t, func(s *Settings) {
		require.NoError(t, os.WriteFile(filepath.Join(s.Files, "east", "policies.yaml"), []byte(somePolicies), 0o600))
	})
	resp := r.proxy(xds.TypeLDS)
	found := false
	for _, a := range resp.GetResources() {
		l := &listenerv3.Listener{}
		require.NoError(t, a.UnmarshalTo(l))
		if l.GetName() == "0.0.0.0_80" {
			found = true
			require.Equal(t, uint32(4096), l.GetPerConnectionBufferLimitBytes().GetValue())
			require.Contains(t, l.String(), "shop.auth")
			require.Contains(t, l.String(), "envoy.filters.http.router")
		}
	}
	require.True(t, found)

	var problems []registry.Problem
	r.page("/debug/problems", &problems)
	require.Len(t, problems, 1)
	require.Equal(t, "patches", problems[0].Object.Name)
	require.Equal(t, "spec.configPatches[1]", problems[0].Field)
	require.Contains(t, r.page("/metrics", nil), "isthmus_parts_left_out 1")

	resp, err := r.stream("sidecar~10.1.0.12~web-1.shop~shop.svc.cluster.local", build.TypeExtension,
		map[string]any{"CLUSTER_ID": "east", "NAMESPACE": "shop", "ISTIO_VERSION": "1.30.0"}, "shop.auth")
	require.NoError(t, err)
	require.Len(t, resp.GetResources(), 1)
	e := &corev3.TypedExtensionConfig{}
	require.NoError(t, resp.GetResources()[0].UnmarshalTo(e))
	require.Contains(t, e.String(), "oci://registry.example.com/auth:1")
	require.Contains(t, r.page("/debug/config_dump?proxyID=web-1.shop", nil), "EcdsConfigDump")
	require.Contains(t, r.page("/debug/syncz", nil), "extensionconfig_sent")
}
