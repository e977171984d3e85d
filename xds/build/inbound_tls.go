package build

import (
	"cmp"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

const (
	tlsSocketName = "envoy.transport_sockets.tls"
	// The agent beside a proxy serves certificates under these names, at the
	// upstream of the proxy's bootstrap configuration.
	agentUpstream = "sds-grpc"
	agentIdentity = "default"
	agentRoots    = "ROOTCA"
)

// meshTLS makes the socket that terminates mesh mTLS: the workload's own
// certificate, peers with a certificate of the mesh's trust domain or one of its
// aliases. exchange is for chains that pass bytes on, where Istio's peers tell
// about one another in a preamble if both sides offer it.
func meshTLS(c *registry.Catalog, d mesh.Dialect, exchange bool) (*corev3.TransportSocket, error) {
	alpn := []string{"h2", "http/1.1"}
	if exchange && d == mesh.DialectIstio {
		alpn = append([]string{"istio-peer-exchange"}, alpn...)
	}
	config, err := toAny(&tlsv3.DownstreamTlsContext{
		RequireClientCertificate: boolean(true),
		CommonTlsContext: &tlsv3.CommonTlsContext{
			AlpnProtocols:                  alpn,
			TlsParams:                      meshParams(c.Settings.Mesh.GetMeshMTLS()),
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{agentSecret(agentIdentity)},
			ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
					DefaultValidationContext:         trustedPeers(c),
					ValidationContextSdsSecretConfig: agentSecret(agentRoots),
				},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{Name: tlsSocketName, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: config}}, nil
}

// trustedPeers accepts the identities of the mesh. The field is the one that
// Istio's proxies of all versions read; its successor means the same.
func trustedPeers(c *registry.Catalog) *tlsv3.CertificateValidationContext {
	domains := append([]string{cmp.Or(c.TrustDomain(), mesh.DefaultTrustDomain)}, c.Settings.Mesh.GetTrustDomainAliases()...)
	out := &tlsv3.CertificateValidationContext{}
	for _, d := range domains {
		m := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "spiffe://" + d + "/"}}
		out.MatchSubjectAltNames = append(out.MatchSubjectAltNames, m) //nolint:staticcheck // see above
	}
	return out
}

// meshParams are what MeshConfig's meshMTLS names, or TLS 1.2 and later with
// forward-secret ciphers first. The last two are for old peers.
func meshParams(t *meshconfig.MeshConfig_TLSConfig) *tlsv3.TlsParameters {
	out := &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		CipherSuites:              mesh.KnownCipherSuites(t.GetCipherSuites()),
	}
	if t.GetMinProtocolVersion() == meshconfig.MeshConfig_TLSConfig_TLSV1_3 {
		out.TlsMinimumProtocolVersion = tlsv3.TlsParameters_TLSv1_3
	}
	if len(out.CipherSuites) == 0 {
		out.CipherSuites = []string{
			"ECDHE-ECDSA-AES256-GCM-SHA384",
			"ECDHE-RSA-AES256-GCM-SHA384",
			"ECDHE-ECDSA-AES128-GCM-SHA256",
			"ECDHE-RSA-AES128-GCM-SHA256",
			"AES256-GCM-SHA384",
			"AES128-GCM-SHA256",
		}
	}
	return out
}

// agentSecret asks the agent for a certificate or for roots, and waits for them.
func agentSecret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: agentUpstream},
			}}},
		}},
		InitialFetchTimeout: duration(0),
		ResourceApiVersion:  corev3.ApiVersion_V3,
	}}
}
