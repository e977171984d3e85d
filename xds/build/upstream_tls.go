package build

import (
	"fmt"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawbufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const rawBufferName = "envoy.transport_sockets.raw_buffer"

// secure makes the upstream speak TLS as a rule says, or mesh mTLS by itself if
// none says anything. In the latter case each endpoint says by its metadata
// whether it terminates mTLS, and gets plain text if not. The original
// destination has no metadata: there it is mTLS only if every endpoint of the
// port terminates it. With MeshConfig.enableAutoMtls off nothing is done by
// itself, nor for hosts outside the mesh.
func (d *draft) secure(in Inputs, v View, x *upstreamRule) error {
	if tls := x.policy.GetTls(); tls != nil {
		return d.secureByRule(in, v, x, tls)
	}
	original := d.GetType() == clusterv3.Cluster_ORIGINAL_DST
	if !autoMTLS(in) || x.service.Lead.MeshExternal || original && !allMTLS(in.Endpoints.Endpoints(x.service.Key), x.port.Name) {
		return nil
	}
	name, err := serverName(x.served, x.subset)
	if err != nil {
		return err
	}
	socket, err := mtlsSocket(d.meshTLS(v.Dialect, x, name, acceptPeers(in, x.service)))
	if err != nil {
		return err
	}
	if original {
		d.TransportSocket = socket
		return nil
	}
	d.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{{
		Name:            "tlsMode-istio",
		Match:           structOf(map[string]*structpb.Value{metadataTLSMode: stringValue(tlsModeIstio)}),
		TransportSocket: socket,
	}, {
		Name:            "tlsMode-disabled",
		Match:           &structpb.Struct{},
		TransportSocket: rawSocket(),
	}}
	return nil
}

// meshTLS is the client's side of mesh mTLS.
func (d *draft) meshTLS(dialect mesh.Dialect, x *upstreamRule, name string, accept *tlsv3.CertificateValidationContext) *tlsv3.UpstreamTlsContext {
	return &tlsv3.UpstreamTlsContext{
		Sni: name,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			AlpnProtocols:                  peerProtocols(dialect, x.port.Protocol, d.speaksHTTP2()),
			TlsParams:                      usualTLS(),
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{agentSecret(agentIdentity)},
			ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
					DefaultValidationContext:         accept,
					ValidationContextSdsSecretConfig: agentSecret(agentRoots),
				},
			},
		},
	}
}

func usualTLS() *tlsv3.TlsParameters {
	return &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
	}
}

func rawSocket() *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: rawBufferName,
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: mustAny(&rawbufferv3.RawBuffer{})}}
}

// maxServerName is how long a server name may be in TLS, in bytes. Proxies
// reject an upstream with a longer one, and all upstreams beside it.
const maxServerName = 255

// serverName is the server name under which peers and gateways are asked for a
// service port.
func serverName(at served, subset string) (string, error) {
	name := SNIName(at.port.Number, subset, at.service.Key.Hostname)
	if len(name) > maxServerName {
		return "", fmt.Errorf("%s: server name %s is longer than %d bytes; shorten the host name", at.service.Lead.Origin, name, maxServerName)
	}
	return name, nil
}

func mtlsSocket(context proto.Message) (*corev3.TransportSocket, error) {
	config, err := toAny(context)
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{Name: tlsSocketName, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: config}}, nil
}

// peerProtocols are the application protocols that a proxy offers to peers, by
// which their filter chains tell HTTP from opaque TCP. Istio's proxies offer
// those for TCP here and have a filter that puts others in their place for each
// HTTP request; a plain Envoy has no such filter, nor the preamble of
// istio-peer-exchange, so it offers what fits the port.
func peerProtocols(d mesh.Dialect, p mesh.Protocol, http2 bool) []string {
	switch {
	case d == mesh.DialectIstio && http2:
		return []string{"istio-peer-exchange", "istio", "h2"}
	case d == mesh.DialectIstio:
		return []string{"istio-peer-exchange", "istio"}
	case http2:
		return []string{"istio-h2", "istio", "h2"}
	case p.IsHTTP():
		return []string{"istio-http/1.1", "istio", "http/1.1"}
	}
	return []string{"istio"}
}

// acceptPeers accepts exactly the identities behind a service. None are known
// of a service without endpoints: then any peer that the roots vouch for would
// do, but there is none to dial.
func acceptPeers(in Inputs, s *mesh.Service) *tlsv3.CertificateValidationContext {
	return acceptNames(peers(in, s))
}

// acceptNames accepts certificates with one of the names; with none of them any
// that the roots vouch for.
func acceptNames(names []string) *tlsv3.CertificateValidationContext {
	out := &tlsv3.CertificateValidationContext{}
	for _, n := range names {
		m := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: n}}
		out.MatchSubjectAltNames = append(out.MatchSubjectAltNames, m) //nolint:staticcheck // the field that all versions read
	}
	return out
}

// peers lists the identities behind a service in all clusters, and those that
// its definitions name, in every trust domain that is an alias of the mesh's.
func peers(in Inputs, s *mesh.Service) []string {
	aliases := in.Catalog.Settings.Mesh.GetTrustDomainAliases()
	var out []string
	add := func(id mesh.Identity) {
		out = append(out, id.SPIFFE())
		for _, domain := range aliases {
			id.TrustDomain = domain
			out = append(out, id.SPIFFE())
		}
	}
	for _, id := range in.Endpoints.Endpoints(s.Key).Identities() {
		add(id)
	}
	for _, c := range s.Clusters {
		for _, name := range s.In[c].Identities {
			if id, err := mesh.ParseIdentity(name); err == nil {
				add(id)
			} else {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
