package build

import (
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

const (
	// systemRoots stands for the roots of the proxy's operating system.
	systemRoots = "system"
	// caSuffix follows the name of a credential where its roots are meant.
	caSuffix = "-cacert"
	// proxySocketName is the transport socket that writes a PROXY header.
	proxySocketName = "envoy.transport_sockets.upstream_proxy_protocol"
)

// tlsDisabled reports whether a policy takes mesh mTLS off an upstream: it asks
// for plain text or for TLS of another kind. Then nothing behind a gateway can
// be reached.
func tlsDisabled(p *networking.TrafficPolicy) bool {
	return p.GetTls() != nil && p.GetTls().GetMode() != networking.ClientTLSSettings_ISTIO_MUTUAL
}

// ownTLS reports whether a policy asks for TLS that is not the mesh's.
func ownTLS(p *networking.TrafficPolicy) bool {
	m := p.GetTls().GetMode()
	return m == networking.ClientTLSSettings_SIMPLE || m == networking.ClientTLSSettings_MUTUAL
}

// secureByRule makes the upstream speak TLS to all its endpoints as a rule says.
func (d *draft) secureByRule(in Inputs, v View, x *upstreamRule, tls *networking.ClientTLSSettings) error {
	var context *tlsv3.UpstreamTlsContext
	switch tls.GetMode() {
	case networking.ClientTLSSettings_ISTIO_MUTUAL:
		name, accept, err := meshNames(in, x, tls)
		if err != nil {
			return err
		}
		context = d.meshTLS(v.Dialect, x, name, accept)
	case networking.ClientTLSSettings_SIMPLE, networking.ClientTLSSettings_MUTUAL:
		if secretElsewhere(v, x) {
			return nil
		}
		var err error
		if context, err = d.originate(in, x, tls); err != nil {
			return err
		}
	default:
		return nil
	}
	var err error
	d.TransportSocket, err = mtlsSocket(context)
	return err
}

// meshNames are the server name and the peers of mesh mTLS, where a rule may
// name others.
func meshNames(in Inputs, x *upstreamRule, tls *networking.ClientTLSSettings) (string, *tlsv3.CertificateValidationContext, error) {
	accept := acceptPeers(in, x.service)
	if names := tls.GetSubjectAltNames(); len(names) > 0 {
		accept = acceptNames(names)
	}
	if n := tls.GetSni(); n != "" {
		return n, accept, checkServerName(x, n)
	}
	name, err := serverName(x.served, x.subset)
	return name, accept, err
}

func checkServerName(x *upstreamRule, name string) error {
	if len(name) > maxServerName {
		return fmt.Errorf("%s: tls.sni is longer than %d bytes; shorten it", x.rule.origin.Origin, maxServerName)
	}
	return nil
}

// secretElsewhere reports whether a rule names a secret that its proxies are not
// to ask for: those are for gateways and for workloads that the rule selects.
// The others send plain text, as they do to a gateway that originates TLS.
func secretElsewhere(v View, x *upstreamRule) bool {
	name := x.policy.GetTls().GetCredentialName()
	return ownTLS(x.policy) && name != "" && !strings.HasPrefix(name, gatewayapi.RootsScheme) && !strings.HasPrefix(name, gatewayapi.NoRootsScheme) &&
		v.Kind != mesh.ProxyRouter && !x.rule.selective
}

// originate is TLS to something that is no peer of the mesh.
func (d *draft) originate(in Inputs, x *upstreamRule, tls *networking.ClientTLSSettings) (*tlsv3.UpstreamTlsContext, error) {
	if err := checkServerName(x, tls.GetSni()); err != nil {
		return nil, err
	}
	common := &tlsv3.CommonTlsContext{TlsParams: usualTLS()}
	if s := in.Catalog.Settings.Mesh.GetTlsDefaults(); s != nil {
		common.TlsParams.EcdhCurves, common.TlsParams.CipherSuites = mesh.KnownCurves(s.GetEcdhCurves()), mesh.KnownCipherSuites(s.GetCipherSuites())
	}
	if d.speaksHTTP2() {
		common.AlpnProtocols = []string{"h2"}
	}
	if err := identify(common, x, tls); err != nil {
		return nil, err
	}
	verify(common, x, tls)
	d.followHost(tls)
	return &tlsv3.UpstreamTlsContext{Sni: tls.GetSni(), CommonTlsContext: common}, nil
}

// identify gives the client its certificate, of mode MUTUAL.
func identify(common *tlsv3.CommonTlsContext, x *upstreamRule, tls *networking.ClientTLSSettings) error {
	if tls.GetMode() != networking.ClientTLSSettings_MUTUAL {
		return nil
	}
	secret := credentialSecret(tls.GetCredentialName(), "")
	if tls.GetCredentialName() == "" {
		if tls.GetClientCertificate() == "" || tls.GetPrivateKey() == "" {
			return fmt.Errorf("%s: tls mode MUTUAL has no certificate; set clientCertificate and privateKey, or credentialName", x.rule.origin.Origin)
		}
		secret = fileSecret("file-cert:" + tls.GetClientCertificate() + "~" + tls.GetPrivateKey())
	}
	common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{secret}
	return nil
}

// verify says which servers are accepted.
func verify(common *tlsv3.CommonTlsContext, x *upstreamRule, tls *networking.ClientTLSSettings) {
	if tls.GetInsecureSkipVerify().GetValue() {
		if tls.GetCredentialName() == "" {
			common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{}
		}
		return
	}
	names := tls.GetSubjectAltNames()
	if len(names) == 0 && x.declared() {
		names = x.service.Lead.Identities
	}
	if strings.HasPrefix(tls.GetCredentialName(), gatewayapi.NoRootsScheme) {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: nobody()}
		return
	}
	accept := acceptNames(names)
	roots := credentialSecret(tls.GetCredentialName(), caSuffix)
	if tls.GetCredentialName() == "" {
		path := tls.GetCaCertificates()
		if path == "" {
			path = systemRoots
		}
		roots = fileSecret("file-root:" + path)
		if crl := tls.GetCaCrl(); crl != "" {
			accept.Crl = &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: crl}}
		}
	}
	common.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: accept, ValidationContextSdsSecretConfig: roots,
		},
	}
}

// followHost asks for the server by the host that each request names if the rule
// does not name one, and accepts no other unless the rule names whom to accept.
func (d *draft) followHost(tls *networking.ClientTLSSettings) {
	if tls.GetSni() != "" {
		return
	}
	d.options().UpstreamHttpProtocolOptions = &corev3.UpstreamHttpProtocolOptions{
		AutoSni:           true,
		AutoSanValidation: len(tls.GetSubjectAltNames()) == 0 && !tls.GetInsecureSkipVerify().GetValue(),
	}
}

// credentialSecret asks for a secret of the user's over the stream to the
// control plane. A name says where it is; one that does not is a Kubernetes
// Secret. builtin:// is what the agent has.
func credentialSecret(name, suffix string) *tlsv3.SdsSecretConfig {
	if name == "builtin://" {
		if suffix == "" {
			return agentSecret(agentIdentity)
		}
		return agentSecret(agentRoots)
	}
	if !strings.Contains(name, "://") {
		name = "kubernetes://" + name
	}
	return &tlsv3.SdsSecretConfig{Name: name + suffix, SdsConfig: &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}}
}

// fileSecret asks the agent for what is in files beside the proxy. It may take
// as long as Envoy waits by itself: a file may never come.
func fileSecret(name string) *tlsv3.SdsSecretConfig {
	s := agentSecret(name)
	s.SdsConfig.InitialFetchTimeout = nil
	return s
}

// announce puts a PROXY header in front of every connection, inside of which any
// TLS goes on as before.
func (d *draft) announce(p *networking.TrafficPolicy_ProxyProtocol) error {
	if p == nil {
		return nil
	}
	version := corev3.ProxyProtocolConfig_V1
	if p.GetVersion() == networking.TrafficPolicy_ProxyProtocol_V2 {
		version = corev3.ProxyProtocolConfig_V2
	}
	wrap := func(to **corev3.TransportSocket) error {
		config, err := toAny(&proxyv3.ProxyProtocolUpstreamTransport{Config: &corev3.ProxyProtocolConfig{Version: version}, TransportSocket: *to})
		if err != nil {
			return err
		}
		*to = &corev3.TransportSocket{Name: proxySocketName, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: config}}
		return nil
	}
	for _, m := range d.TransportSocketMatches {
		if err := wrap(&m.TransportSocket); err != nil {
			return err
		}
	}
	if len(d.TransportSocketMatches) > 0 {
		return nil
	}
	if d.TransportSocket == nil {
		d.TransportSocket = rawSocket()
	}
	return wrap(&d.TransportSocket)
}
