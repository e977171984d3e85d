package build

import (
	"testing"

	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// TestTuningDerived: what a proxy sends stands for MeshConfig's defaults, section by
// section only where agents may be too old to know one; what is not understood is
// as if it were not there.
func TestTuningDerived(t *testing.T) {
	defaults := &meshconfig.ProxyConfig{
		GatewayTopology:    &meshconfig.Topology{NumTrustedProxies: 2},
		ProxyHeaders:       &meshconfig.ProxyConfig_ProxyHeaders{ForwardedClientCert: meshconfig.ForwardClientCertDetails_SANITIZE},
		ConnectionSettings: &meshconfig.ProxyConfig_ConnectionSettings{HttpMergeSlashes: boolean(true)},
	}
	l := newLab(&meshconfig.MeshConfig{DefaultConfig: defaults})
	for _, c := range []struct {
		name    string
		sent    map[string]any
		trusted uint32
		headers bool
		slashes bool
	}{
		{"nothing sent", nil, 2, true, true},
		{"sent without sections", map[string]any{"concurrency": 2}, 0, false, true},
		{"own topology", map[string]any{"gatewayTopology": map[string]any{"numTrustedProxies": 5}}, 5, false, true},
		{"own connections", map[string]any{"connectionSettings": map[string]any{}}, 0, false, false},
		{"nonsense", map[string]any{"gatewayTopology": "x", "proxyHeaders": []any{1}, "connectionSettings": map[string]any{"new": 1}}, 0, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := deriveTuning(l.in(), &mesh.Proxy{Kind: mesh.ProxyRouter, ProxyConfig: c.sent})
			require.Equal(t, c.trusted, got.config().GetGatewayTopology().GetNumTrustedProxies())
			require.Equal(t, c.headers, got.config().GetProxyHeaders() != nil)
			require.Equal(t, c.slashes, got.config().GetConnectionSettings().GetHttpMergeSlashes().GetValue())
		})
	}
	require.Nil(t, deriveTuning(l.in(), &mesh.Proxy{Kind: mesh.ProxySidecar}).config().GetGatewayTopology(), "is for routers")
	require.Zero(t, deriveTuning(l.in(), &mesh.Proxy{Dialect: mesh.DialectGRPC}))
}
