package build

import (
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// A DestinationRule may bind the requests of a client to one endpoint by a hash.
// The upstream then has a hash ring or table; what of a request is hashed is said
// by the routes that lead there.

// destinationHash says what of requests to an upstream is hashed, nil for nothing.
func destinationHash(in Inputs, v View, to UpstreamID) *routev3.RouteAction_HashPolicy {
	if len(destinationRules(in)) == 0 {
		return nil
	}
	found, ok := findServed(in, v, to.Host, to.Port)
	if !ok {
		return nil
	}
	policy, _ := trafficPolicy(in, v, found, to.Subset)
	return hashPolicy(policy.GetLoadBalancer().GetConsistentHash())
}

// hashPolicy translates what is hashed.
func hashPolicy(h *networking.LoadBalancerSettings_ConsistentHashLB) *routev3.RouteAction_HashPolicy {
	switch k := h.GetHashKey().(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
			Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: k.HttpHeaderName},
		}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		c := &routev3.RouteAction_HashPolicy_Cookie{Name: k.HttpCookie.GetName(), Path: k.HttpCookie.GetPath()}
		if ttl := k.HttpCookie.GetTtl(); measurable(ttl) {
			c.Ttl = ttl
		}
		for _, a := range k.HttpCookie.GetAttributes() {
			c.Attributes = append(c.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.GetName(), Value: a.GetValue()})
		}
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{Cookie: c}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		if !k.UseSourceIp {
			return nil
		}
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
		}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: k.HttpQueryParameterName},
		}}
	}
	return nil
}

// hashesOf reports whether any rule of anybody about a host hashes requests.
func hashesOf(in Inputs, host mesh.Hostname) bool {
	found := false
	for _, space := range destinationRules(in) {
		space.each(host, func(h *ruleHost) {
			for _, r := range h.rules {
				found = found || hashes(r.spec)
			}
		})
	}
	return found
}

func hashes(r *networking.DestinationRule) bool {
	of := func(p *networking.TrafficPolicy) bool {
		if p.GetLoadBalancer().GetConsistentHash() != nil {
			return true
		}
		for _, l := range p.GetPortLevelSettings() {
			if l.GetLoadBalancer().GetConsistentHash() != nil {
				return true
			}
		}
		return false
	}
	if of(r.GetTrafficPolicy()) {
		return true
	}
	for _, s := range r.GetSubsets() {
		if of(s.GetTrafficPolicy()) {
			return true
		}
	}
	return false
}
