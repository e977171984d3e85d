package build

import (
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// upstreamRule is what an outbound upstream is made from: a service port, a
// subset ("" for all of it), and what a DestinationRule says of them.
type upstreamRule struct {
	served
	subset string
	policy *networking.TrafficPolicy
	rule   *destinationRule
}

// findUpstream finds what the view's upstream of that name is made from.
func findUpstream(in Inputs, v View, id UpstreamID) (*upstreamRule, bool) {
	x := find(in, v, id.Host, id.Port)
	if x.service == nil || !x.rule.hasSubset(id.Subset) {
		return nil, false
	}
	return &upstreamRule{x.served, id.Subset, inMesh(in, x.rule.policyFor(id.Port, id.Subset)), x.rule}, true
}

// declared reports whether the service is one that users declare, with the names
// in the certificates of its servers.
func (x *upstreamRule) declared() bool { return x.service.Lead.FromEntry() }

// draft begins the upstream with what all outbound ones have.
func (x *upstreamRule) draft(in Inputs, v View, id UpstreamID) *draft {
	name := id.String()
	d := &draft{Cluster: newUpstream(in, name, upstreamStat(in, x.served, id, name))}
	d.CommonLbConfig = neverPanic()
	d.CircuitBreakers = noLimits()
	d.Metadata = serviceMetadata(string(x.service.Key.Hostname), x.service.Lead.Name, x.service.Key.Namespace)
	if x.rule != nil {
		nameOrigin(d.Cluster, x.rule.origin)
	}
	if x.subset != "" {
		d.Metadata.FilterMetadata[metadataIstio].Fields[metadataSubset] = stringValue(x.subset)
	}
	if ownTLS(x.policy) && !id.SNI {
		// Tells the filter that sets Istio's application protocols to let be.
		d.Metadata.FilterMetadata[metadataIstio].Fields[metadataALPN] = stringValue("false")
	}
	d.Filters = peerExchange(v.Dialect)
	return d
}

// Keys of an upstream's metadata.
const (
	metadataSubset = "subset"
	metadataALPN   = "alpn_override"
)

// nameOrigin makes an upstream name an object that it was made from.
func nameOrigin(u *clusterv3.Cluster, o *mesh.Object) {
	istio := u.Metadata.FilterMetadata[metadataIstio]
	if istio.Fields == nil {
		istio.Fields = map[string]*structpb.Value{}
	}
	istio.Fields[metadataConfig] = stringValue(originPath(o.Key.Kind, ObjectName{o.Key.Namespace, o.Key.Name}))
}

// applyPolicy sets everything of a policy but for TLS, once it is known how the
// upstream finds its endpoints.
func (d *draft) applyPolicy(in Inputs, x *upstreamRule) {
	pool := x.policy.GetConnectionPool()
	d.applyPool(in, pool, x.policy.GetRetryBudget())
	if upgrades(in, x.port.Protocol, pool.GetHttp()) {
		d.http2Only()
	}
	d.applyHTTP2(pool.GetHttp())
	d.applyOutliers(x.policy.GetOutlierDetection())
	if _, custom := d.ClusterDiscoveryType.(*clusterv3.Cluster_ClusterType); custom || d.GetType() == clusterv3.Cluster_ORIGINAL_DST {
		d.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
		return
	}
	d.applyBalancer(x.policy.GetLoadBalancer())
	weighted(in, x.served, x.policy, d.Cluster)
}

// names appends the name of an upstream and those of its subsets.
func (r *destinationRule) names(out []string, id UpstreamID) []string {
	out = append(out, id.String())
	if r == nil {
		return out
	}
	for _, s := range r.subsets {
		id.Subset = s.GetName()
		out = append(out, id.String())
	}
	return out
}

// ruleNames appends the names of all outbound upstreams that changed
// DestinationRules may concern: of every service that such a rule is or was
// about, and with whatever subset some rule gives it, as the next rule in line
// may come into force.
func ruleNames(in Inputs, out []string, c *registry.Change) []string {
	eachRuled(in, c, func(s *mesh.Service, subsets []string) {
		for _, p := range servedPorts(s) {
			out = upstreamNames(out, s.Key.Hostname, p.Number, subsets)
		}
	})
	return out
}

// servingRuled appends the names of the inbound upstreams that changed rules may
// concern. A number that a target port's name stands for is known from the
// endpoints; one that they learn of later is named then.
func servingRuled(in Inputs, out []string, c *registry.Change) []string {
	eachRuled(in, c, func(s *mesh.Service, _ []string) { out = servingNames(in, out, s) })
	if len(destinationRules(in)) == 0 {
		return out
	}
	for _, s := range c.Services {
		if s.Aspects.Has(registry.AspectEndpoints) && s.After != nil && namesTargets(s.After) {
			before := endpointNames(nil, s.EndpointsBefore)
			for _, n := range endpointNames(nil, s.EndpointsAfter) {
				if !slices.Contains(before, n) {
					out = append(out, n)
				}
			}
		}
	}
	return out
}

// namesTargets reports whether a service has ports whose number on the workload
// is known by name only.
func namesTargets(s *mesh.Service) bool {
	return slices.ContainsFunc(s.Clusters, func(id mesh.ClusterID) bool {
		return slices.ContainsFunc(s.In[id].Ports, func(p mesh.Port) bool { return p.TargetName != "" })
	})
}

// eachRuled calls f for every service that a changed DestinationRule is or was
// about, with the names of all subsets that it may have or had.
func eachRuled(in Inputs, c *registry.Change, f func(s *mesh.Service, subsets []string)) {
	for k, o := range c.Objects {
		if k.Kind != mesh.KindDestinationRule {
			continue
		}
		for _, x := range []*mesh.Object{o.Before, o.After} {
			if x == nil {
				continue
			}
			spec, ok := x.Spec.(*networking.DestinationRule)
			if !ok {
				continue
			}
			var own []string
			for _, s := range spec.GetSubsets() {
				own = append(own, s.GetName())
			}
			eachHost(in, fullHost(spec.GetHost(), k.Namespace), func(s *mesh.Service) {
				f(s, slices.Concat(ruleSubsets(in, s.Key.Hostname), own))
			})
		}
	}
}

// eachHost calls f for the services that a host name or a pattern is about.
func eachHost(in Inputs, host mesh.Hostname, f func(*mesh.Service)) {
	for _, s := range in.Catalog.Host(host) {
		f(s)
	}
	if host == "" || host[0] != '*' {
		return
	}
	for s := range in.Catalog.Services() {
		if _, ok := hostRank(string(host), s.Key.Hostname); ok && s.Key.Hostname != host {
			f(s)
		}
	}
}
