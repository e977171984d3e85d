package build

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const (
	// credentialPrefix names a Secret beside the router; the server of secrets
	// looks there.
	credentialPrefix = "kubernetes://"
	// rootsSuffix marks the roots that belong to a credential.
	rootsSuffix = "-cacert"
	// Certificates in files are served by the agent under these names.
	filePrefix     = "file-cert:"
	fileRootPrefix = "file-root:"
)

// serverSocket makes the socket of a server that opens TLS.
func serverSocket(f *filters, x *gatewayServer) (*corev3.TransportSocket, error) {
	t := x.spec.GetTls()
	if t.GetMode() == networking.ServerTLSSettings_ISTIO_MUTUAL {
		return meshServerSocket(x)
	}
	common := &tlsv3.CommonTlsContext{TlsParams: serverParams(f.in, t)}
	if x.kind == serverHTTPS {
		common.AlpnProtocols = []string{"h2", "http/1.1"}
	}
	common.TlsCertificateSdsSecretConfigs = certificates(t)
	client := wrapperspb.Bool(false)
	if m := t.GetMode(); m == networking.ServerTLSSettings_MUTUAL || m == networking.ServerTLSSettings_OPTIONAL_MUTUAL {
		client = wrapperspb.Bool(m == networking.ServerTLSSettings_MUTUAL)
		accept := acceptClients(t)
		if x.untrusted {
			untrusted(accept.CombinedValidationContext.DefaultValidationContext)
		}
		common.ValidationContextType = accept
	}
	config, err := toAny(&tlsv3.DownstreamTlsContext{CommonTlsContext: common, RequireClientCertificate: client})
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{Name: tlsSocketName, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: config}}, nil
}

// meshServerSocket opens mesh mTLS: the router's own certificate, clients with
// one of the mesh, of the names that the server lists if it lists any. As in
// Istio, versions and ciphers are the proxy's own; the server's do not count.
func meshServerSocket(x *gatewayServer) (*corev3.TransportSocket, error) {
	t := x.spec.GetTls()
	accept := &tlsv3.CertificateValidationContext{MatchSubjectAltNames: subjectMatchers(t.GetSubjectAltNames())} //nolint:staticcheck // what Istio's proxies of all versions read
	alpn := []string{"h2", "http/1.1"}
	if x.kind == serverTLS {
		alpn = []string{"istio-peer-exchange", "h2", "http/1.1"}
	}
	config, err := toAny(&tlsv3.DownstreamTlsContext{
		RequireClientCertificate: wrapperspb.Bool(true),
		CommonTlsContext: &tlsv3.CommonTlsContext{
			AlpnProtocols:                  alpn,
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{agentSecret(agentIdentity)},
			ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
					DefaultValidationContext: accept, ValidationContextSdsSecretConfig: agentSecret(agentRoots),
				},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{Name: tlsSocketName, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: config}}, nil
}

// certificates lists where a server's own certificates come from.
func certificates(t *networking.ServerTLSSettings) []*tlsv3.SdsSecretConfig {
	names := t.GetCredentialNames()
	if t.GetCredentialName() != "" {
		names = []string{t.GetCredentialName()}
	}
	if len(names) > 0 {
		out := make([]*tlsv3.SdsSecretConfig, len(names))
		for i, n := range names {
			out[i] = controlPlaneSecret(credential(n))
		}
		return out
	}
	if files := t.GetTlsCertificates(); len(files) > 0 {
		out := make([]*tlsv3.SdsSecretConfig, len(files))
		for i, c := range files {
			out[i] = agentSecret(fileCertificate(c.GetServerCertificate(), c.GetPrivateKey()))
		}
		return out
	}
	return []*tlsv3.SdsSecretConfig{agentSecret(fileCertificate(t.GetServerCertificate(), t.GetPrivateKey()))}
}

func fileCertificate(cert, key string) string { return filePrefix + cert + "~" + key }

// credential is the name under which a Secret is asked for: a name alone is that
// of one beside the router.
func credential(name string) string {
	for _, p := range []string{credentialPrefix, "kubernetes-gateway://", "configmap://", "builtin://", "sds://", "invalid://"} {
		if len(name) >= len(p) && name[:len(p)] == p {
			return name
		}
	}
	return credentialPrefix + name
}

// acceptClients says whose certificates a server takes: those under its roots,
// and among these the names, keys and hashes that it lists.
func acceptClients(t *networking.ServerTLSSettings) *tlsv3.CommonTlsContext_CombinedValidationContext {
	roots := agentSecret(fileRootPrefix + t.GetCaCertificates())
	switch {
	case t.GetCaCertCredentialName() != "":
		roots = controlPlaneSecret(credential(t.GetCaCertCredentialName()))
	case t.GetCredentialName() != "":
		roots = controlPlaneSecret(credential(t.GetCredentialName()) + rootsSuffix)
	case len(t.GetCredentialNames()) > 0:
		roots = controlPlaneSecret(credential(t.GetCredentialNames()[0]) + rootsSuffix)
	}
	return &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: &tlsv3.CertificateValidationContext{
				MatchSubjectAltNames:  subjectMatchers(t.GetSubjectAltNames()), //nolint:staticcheck // as above
				VerifyCertificateSpki: t.GetVerifyCertificateSpki(),
				VerifyCertificateHash: t.GetVerifyCertificateHash(),
			},
			ValidationContextSdsSecretConfig: roots,
		},
	}
}

// controlPlaneSecret asks us for a certificate or for roots.
func controlPlaneSecret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}}
}

func subjectMatchers(names []string) []*matcherv3.StringMatcher {
	var out []*matcherv3.StringMatcher
	for _, n := range names {
		out = append(out, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: n}})
	}
	return out
}

// serverParams are the versions and ciphers that a server names, with
// MeshConfig's where it names none; nil if neither does.
func serverParams(in Inputs, t *networking.ServerTLSSettings) *tlsv3.TlsParameters {
	p := &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: serverVersion(t.GetMinProtocolVersion()),
		TlsMaximumProtocolVersion: serverVersion(t.GetMaxProtocolVersion()),
	}
	d := in.Catalog.Settings.Mesh.GetTlsDefaults()
	if p.TlsMinimumProtocolVersion == tlsv3.TlsParameters_TLS_AUTO {
		p.TlsMinimumProtocolVersion = leastVersion(d.GetMinProtocolVersion())
	}
	p.CipherSuites, p.EcdhCurves = mesh.KnownCipherSuites(t.GetCipherSuites()), mesh.KnownCurves(d.GetEcdhCurves())
	if len(p.CipherSuites) == 0 {
		p.CipherSuites = mesh.KnownCipherSuites(d.GetCipherSuites())
	}
	if p.TlsMinimumProtocolVersion == 0 && p.TlsMaximumProtocolVersion == 0 && len(p.CipherSuites)+len(p.EcdhCurves) == 0 {
		return nil
	}
	return p
}

func leastVersion(p meshconfig.MeshConfig_TLSConfig_TLSProtocol) tlsv3.TlsParameters_TlsProtocol {
	switch p {
	case meshconfig.MeshConfig_TLSConfig_TLSV1_2:
		return tlsv3.TlsParameters_TLSv1_2
	case meshconfig.MeshConfig_TLSConfig_TLSV1_3:
		return tlsv3.TlsParameters_TLSv1_3
	}
	return tlsv3.TlsParameters_TLS_AUTO
}

func serverVersion(p networking.ServerTLSSettings_TLSProtocol) tlsv3.TlsParameters_TlsProtocol {
	switch p {
	case networking.ServerTLSSettings_TLSV1_0:
		return tlsv3.TlsParameters_TLSv1_0
	case networking.ServerTLSSettings_TLSV1_1:
		return tlsv3.TlsParameters_TLSv1_1
	case networking.ServerTLSSettings_TLSV1_2:
		return tlsv3.TlsParameters_TLSv1_2
	case networking.ServerTLSSettings_TLSV1_3:
		return tlsv3.TlsParameters_TLSv1_3
	}
	return tlsv3.TlsParameters_TLS_AUTO
}
