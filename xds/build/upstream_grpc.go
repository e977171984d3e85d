package build

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// grpcUpstream makes an upstream for a gRPC client, of the fields that gRPC's
// own xDS client takes: no socket matches, no SDS, no TLS parameters, and a
// load balancing policy that all versions know. A client speaks mTLS to all
// endpoints of an upstream or to none, so it is mTLS as soon as one endpoint of
// the service terminates it; the assignment then leaves the others out
// ([VerdictMixedTLS]).
func grpcUpstream(in Inputs, v View, id UpstreamID) (*clusterv3.Cluster, error) {
	at, ok := findServed(in, v, id.Host, id.Port)
	if !ok {
		return nil, nil
	}
	u := newUpstream(in, id.String())
	assigned(u)
	u.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	u.CircuitBreakers = noLimits()
	if !autoMTLS(in) || !anyMTLS(in.Endpoints.Endpoints(at.service.Key)) {
		return u, nil
	}
	name, err := serverName(at)
	if err != nil {
		return nil, err
	}
	u.TransportSocket, err = mtlsSocket(grpcTLS(in, at, name))
	return u, err
}

func grpcTLS(in Inputs, at served, name string) *tlsv3.UpstreamTlsContext {
	provider := func(name string) *tlsv3.CertificateProviderPluginInstance {
		return &tlsv3.CertificateProviderPluginInstance{InstanceName: grpcProvider, CertificateName: name}
	}
	accept := acceptPeers(in, at.service)
	accept.CaCertificateProviderInstance = provider(agentRoots)
	return &tlsv3.UpstreamTlsContext{
		// Clients that take no name from here cannot pass a gateway.
		Sni: name,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsCertificateProviderInstance: provider(agentIdentity),
			ValidationContextType:          &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: accept},
		},
	}
}
