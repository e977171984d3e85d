package build

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	networking "istio.io/api/networking/v1alpha3"
)

// usualErrors is how many errors in a row eject an endpoint if a rule does not say.
const usualErrors = 5

// grpcUpstream makes an upstream for a gRPC client, of the fields that gRPC's
// own xDS client takes: no socket matches, no SDS, no TLS parameters, of the
// circuit breakers the number of requests, of outlier detection what it counts
// itself, and a load balancing policy that all versions know. A client speaks
// mTLS to all endpoints of an upstream or to none, so it is mTLS as soon as one
// endpoint of the service terminates it; the assignment then leaves the others
// out ([VerdictMixedTLS]).
func grpcUpstream(in Inputs, v View, id UpstreamID) (*clusterv3.Cluster, error) {
	x, ok := findUpstream(in, v, id)
	if !ok {
		return nil, nil
	}
	name := id.String()
	d := &draft{Cluster: newUpstream(in, name, name)}
	assigned(d.Cluster)
	if resolves(x.service) {
		if p := planFor(in, v, id, x.served); p.first() {
			d.EdsClusterConfig = nil
			lookedUp(d.Cluster, clusterv3.Cluster_LOGICAL_DNS, p) // the only kind of lookup that gRPC knows
		}
	}
	d.CircuitBreakers, d.CommonLbConfig = noLimits(), &clusterv3.Cluster_CommonLbConfig{}
	limit(&d.CircuitBreakers.Thresholds[0].MaxRequests, x.policy.GetConnectionPool().GetHttp().GetHttp2MaxRequests())
	d.grpcBalancer(x.policy.GetLoadBalancer())
	d.applyOutliers(x.policy.GetOutlierDetection())
	d.CommonLbConfig, d.http = nil, nil
	d.grpcOutliers(x.policy.GetOutlierDetection())
	tls := x.policy.GetTls()
	switch {
	case tls == nil && (!autoMTLS(in) || !anyMTLS(in.Endpoints.Endpoints(x.service.Key))),
		tls != nil && tls.GetMode() == networking.ClientTLSSettings_DISABLE:
		return d.finish(), nil
	}
	name, accept, err := meshNames(in, x, tls)
	if err != nil {
		return nil, err
	}
	d.TransportSocket, err = mtlsSocket(grpcTLS(name, accept, tls))
	return d.finish(), err
}

// grpcBalancer sets the load balancing policy: what a rule asks for if all
// versions of gRPC know it.
func (d *draft) grpcBalancer(lb *networking.LoadBalancerSettings) {
	d.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	if h := lb.GetConsistentHash(); h != nil && h.GetMaglev() == nil {
		d.applyHash(h)
	}
}

// grpcOutliers makes of a number of errors in a row, which gRPC does not count,
// what it does count: that share of the requests of an interval that fails, once
// there are as many requests. The share is gRPC's own default, 85%.
func (d *draft) grpcOutliers(o *networking.OutlierDetection) {
	if o == nil {
		return
	}
	errors := uint32(usualErrors)
	if e := o.GetConsecutive_5XxErrors(); e != nil {
		errors = e.GetValue()
	}
	if e := o.GetConsecutiveGatewayErrors().GetValue(); e > 0 && (errors == 0 || e < errors) {
		errors = e
	}
	out := d.OutlierDetection
	out.Consecutive_5Xx, out.EnforcingConsecutive_5Xx = nil, nil
	out.ConsecutiveGatewayFailure, out.EnforcingConsecutiveGatewayFailure = nil, nil
	if errors > 0 {
		out.EnforcingFailurePercentage, out.FailurePercentageMinimumHosts, out.FailurePercentageRequestVolume = u32(always), u32(1), u32(errors)
	}
}

// grpcTLS is mTLS, or what comes nearest to the TLS that a rule asks for: a gRPC
// client cannot be told of files and secrets, but takes its own certificate and
// roots, from where its bootstrap has them.
func grpcTLS(name string, accept *tlsv3.CertificateValidationContext, tls *networking.ClientTLSSettings) *tlsv3.UpstreamTlsContext {
	provider := func(name string) *tlsv3.CertificateProviderPluginInstance {
		return &tlsv3.CertificateProviderPluginInstance{InstanceName: grpcProvider, CertificateName: name}
	}
	accept.CaCertificateProviderInstance = provider(agentRoots)
	out := &tlsv3.UpstreamTlsContext{
		// Clients that take no name from here cannot pass a gateway.
		Sni: name,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: accept},
		},
	}
	if tls.GetMode() != networking.ClientTLSSettings_SIMPLE {
		out.CommonTlsContext.TlsCertificateProviderInstance = provider(agentIdentity)
	}
	return out
}
