package build

import (
	"slices"
	"strings"
	"sync"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
	"github.com/isthmus-mesh/isthmus/registry/gatewayapi"
)

// BackendTLSPolicies of the Gateway API say how routers speak TLS to a service.
// That holds whatever DestinationRules say of it: a rule that somebody has, in
// whichever namespace, must not turn TLS into plain text. So they are no rules
// among others but are put on top of the one that is in force.

// backendTLS is what policies say of one service.
type backendTLS struct {
	origin *mesh.Object
	spec   *networking.DestinationRule
	// over are the rules that they are put on top of (nil is none) ->
	// *destinationRule: always the same one for the same rule.
	over sync.Map
}

// backendIndex is the policies by the service that they are about.
type backendIndex map[mesh.ServiceKey]*backendTLS

func backendPolicies(in Inputs) backendIndex {
	return registry.Derived(in.Catalog, mesh.KindDestinationRule, func(all []*mesh.Object) backendIndex {
		x := backendIndex{}
		for _, o := range all {
			if spec, ok := o.Spec.(*networking.DestinationRule); ok && isBackendTLS(o) {
				x[mesh.ServiceKey{Namespace: o.Key.Namespace, Hostname: mesh.Hostname(spec.GetHost())}] = &backendTLS{origin: o, spec: spec}
			}
		}
		return x
	})
}

// isBackendTLS reports whether a DestinationRule is one that was derived from
// BackendTLSPolicies.
func isBackendTLS(o *mesh.Object) bool {
	_, ok := o.Value.(*gatewayapi.BackendTLS)
	return ok
}

// withBackend puts what policies say of a service on top of the rule that is in
// force, nil if there is none.
func withBackend(in Inputs, v View, k mesh.ServiceKey, r *destinationRule) *destinationRule {
	if v.Kind != mesh.ProxyRouter {
		return r
	}
	b := backendPolicies(in)[k]
	if b == nil || !slices.Contains(b.spec.GetExportTo(), v.Namespace) {
		return r
	}
	if have, ok := b.over.Load(r); ok {
		return have.(*destinationRule)
	}
	out := &destinationRule{origin: b.origin, host: k.Hostname, backend: b.spec.GetTrafficPolicy()}
	if r != nil {
		*out = *r
		out.backend = b.spec.GetTrafficPolicy()
	}
	have, _ := b.over.LoadOrStore(r, out)
	return have.(*destinationRule)
}

// aboutBackend reports whether any policy is about a host: then it matters
// whether a proxy is a router.
func aboutBackend(in Inputs, host mesh.Hostname) bool {
	x := backendPolicies(in)
	return len(x) > 0 && slices.ContainsFunc(in.Catalog.Host(host), func(s *mesh.Service) bool { return x[s.Key] != nil })
}

// secured is a policy with the TLS that a BackendTLSPolicy wants at a port.
func secured(p, backend *networking.TrafficPolicy, port uint16) *networking.TrafficPolicy {
	at, _ := atPort(backend, port)
	if at.GetTls() == nil {
		return p
	}
	out := &networking.TrafficPolicy{Tls: at.GetTls()}
	if p != nil {
		out = &networking.TrafficPolicy{LoadBalancer: p.LoadBalancer, ConnectionPool: p.ConnectionPool, OutlierDetection: p.OutlierDetection,
			Tls: at.GetTls(), Tunnel: p.Tunnel, ProxyProtocol: p.ProxyProtocol, RetryBudget: p.RetryBudget}
	}
	return out
}

// nobody accepts no certificate at all: it wants one with a digest that none
// has. Unlike roots that never come it holds nothing up.
func nobody() *tlsv3.CertificateValidationContext {
	return &tlsv3.CertificateValidationContext{VerifyCertificateHash: []string{strings.Repeat("00", sha256Size)}}
}

// sha256Size is the size of a certificate's digest, in bytes.
const sha256Size = 32

// untrusted makes what a router asks of its clients a question: those whose
// certificates are not good are let in as well.
func untrusted(c *tlsv3.CertificateValidationContext) *tlsv3.CertificateValidationContext {
	c.TrustChainVerification = tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
	return c
}
