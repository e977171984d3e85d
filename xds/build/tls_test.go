package build

import (
	"testing"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/stretchr/testify/require"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// TestMeshTLSOfMeshConfig: what workloads accept of one another is MeshConfig's to
// say; tlsDefaults are for other TLS.
func TestMeshTLSOfMeshConfig(t *testing.T) {
	params := func(m *meshconfig.MeshConfig) *tlsv3.TlsParameters {
		socket, err := meshTLS(&registry.Catalog{Settings: mesh.Settings{Mesh: m}}, mesh.DialectIstio, false)
		require.NoError(t, err)
		c := &tlsv3.DownstreamTlsContext{}
		require.NoError(t, socket.GetTypedConfig().UnmarshalTo(c))
		return c.GetCommonTlsContext().GetTlsParams()
	}
	plain := params(&meshconfig.MeshConfig{TlsDefaults: &meshconfig.MeshConfig_TLSConfig{MinProtocolVersion: meshconfig.MeshConfig_TLSConfig_TLSV1_3, CipherSuites: []string{"AES128-SHA"}}})
	require.Equal(t, tlsv3.TlsParameters_TLSv1_2, plain.GetTlsMinimumProtocolVersion())
	require.Len(t, plain.GetCipherSuites(), 6)
	strict := params(&meshconfig.MeshConfig{MeshMTLS: &meshconfig.MeshConfig_TLSConfig{MinProtocolVersion: meshconfig.MeshConfig_TLSConfig_TLSV1_3,
		CipherSuites: []string{"AES256-GCM-SHA384", "no such"}, EcdhCurves: []string{"P-256"}}})
	require.Equal(t, tlsv3.TlsParameters_TLSv1_3, strict.GetTlsMinimumProtocolVersion())
	require.Equal(t, []string{"AES256-GCM-SHA384"}, strict.GetCipherSuites())
	require.Empty(t, strict.GetEcdhCurves(), "curves are not for mesh mTLS")
}

// TestGatewayTLSOfMeshConfig: a server's own words come first, and mesh mTLS takes
// neither.
func TestGatewayTLSOfMeshConfig(t *testing.T) {
	defaults := &meshconfig.MeshConfig_TLSConfig{MinProtocolVersion: meshconfig.MeshConfig_TLSConfig_TLSV1_3, CipherSuites: []string{"AES128-SHA"}, EcdhCurves: []string{"P-256", "P-512"}}
	own := func(m networking.ServerTLSSettings_TLSmode) *networking.ServerTLSSettings {
		return &networking.ServerTLSSettings{Mode: m, MinProtocolVersion: networking.ServerTLSSettings_TLSV1_2, CipherSuites: []string{"no such", "AES256-SHA", "AES256-SHA"}}
	}
	for name, c := range map[string]struct {
		defaults *meshconfig.MeshConfig_TLSConfig
		server   *networking.ServerTLSSettings
		min      tlsv3.TlsParameters_TlsProtocol
		ciphers  []string
		curves   []string
	}{
		"nothing said":  {server: &networking.ServerTLSSettings{Mode: networking.ServerTLSSettings_SIMPLE}},
		"the defaults":  {defaults, &networking.ServerTLSSettings{Mode: networking.ServerTLSSettings_OPTIONAL_MUTUAL}, tlsv3.TlsParameters_TLSv1_3, []string{"AES128-SHA"}, []string{"P-256"}},
		"the server's":  {defaults, own(networking.ServerTLSSettings_MUTUAL), tlsv3.TlsParameters_TLSv1_2, []string{"AES256-SHA"}, []string{"P-256"}},
		"mesh mTLS":     {defaults: defaults, server: own(networking.ServerTLSSettings_ISTIO_MUTUAL)},
		"auto defaults": {defaults: &meshconfig.MeshConfig_TLSConfig{}, server: &networking.ServerTLSSettings{Mode: networking.ServerTLSSettings_SIMPLE}},
	} {
		f := &filters{in: Inputs{Catalog: &registry.Catalog{Settings: mesh.Settings{Mesh: &meshconfig.MeshConfig{TlsDefaults: c.defaults}}}}}
		socket, err := serverSocket(f, &gatewayServer{spec: &networking.Server{Tls: c.server}, kind: serverHTTPS})
		require.NoError(t, err)
		d := &tlsv3.DownstreamTlsContext{}
		require.NoError(t, socket.GetTypedConfig().UnmarshalTo(d))
		p := d.GetCommonTlsContext().GetTlsParams()
		require.Equal(t, c.min, p.GetTlsMinimumProtocolVersion(), name)
		require.Equal(t, c.ciphers, p.GetCipherSuites(), name)
		require.Equal(t, c.curves, p.GetEcdhCurves(), name)
	}
}
