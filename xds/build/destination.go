package build

import (
	"slices"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// A DestinationRule says how a service is dialled. Which one is in force depends
// on the client: rules of its own namespace go first, then those that the
// service's namespace exports to it, then those that the root namespace does.
// Within a namespace only rules count that the client may see and whose workload
// selector it matches; of those the one for the most specific host, and of those
// for one host the ones with a workload selector before the ones without. Several
// objects that are left are one rule: the subsets of all, each from the oldest
// object that has one of its name, and the traffic policy of the oldest object
// that has one.
//
// A client in the root namespace does not look there first, except for what
// nobody else can see: rules there are meant for the whole mesh, and a service's
// own are nearer to the point.

// destinationRule is a rule as the clients see it to whom the same objects
// apply. It is immutable, and clients of one catalog that get the same rule get
// the same pointer.
type destinationRule struct {
	// origin is the oldest object of those that make the rule: resources that it
	// has a part in name it.
	origin  *mesh.Object
	host    mesh.Hostname
	policy  *networking.TrafficPolicy
	subsets []*networking.Subset
	// selective says that the rule is only for workloads that it selects.
	selective bool
	// backend is what BackendTLSPolicies say, nil if none does.
	backend *networking.TrafficPolicy
}

// subset returns the named subset, nil if there is none.
func (r *destinationRule) subset(name string) *networking.Subset {
	if r == nil || name == "" {
		return nil
	}
	for _, s := range r.subsets {
		if s.GetName() == name {
			return s
		}
	}
	return nil
}

// hasSubset reports whether an upstream for the subset exists: "" is the whole
// service.
func (r *destinationRule) hasSubset(name string) bool { return name == "" || r.subset(name) != nil }

// ruleFor returns the rule that is in force between a view's proxies and a
// service, nil if there is none.
func ruleFor(in Inputs, v View, s *mesh.Service) *destinationRule { return ruleAbout(in, v, s.Key) }

// ruleAbout is [ruleFor] for a service that need not be there.
func ruleAbout(in Inputs, v View, k mesh.ServiceKey) *destinationRule {
	return withBackend(in, v, k, writtenRule(in, v, k))
}

// writtenRule is the rule of the DestinationRules that users write.
func writtenRule(in Inputs, v View, k mesh.ServiceKey) *destinationRule {
	x := destinationRules(in)
	if len(x) == 0 {
		return nil
	}
	c := newRuleClient(in, v)
	root := in.Catalog.RootNamespace()
	if r := x[v.Namespace].find(k.Hostname, &c, v.Namespace == root); r != nil {
		return r
	}
	if k.Namespace != v.Namespace || v.Namespace == root {
		if r := x[k.Namespace].find(k.Hostname, &c, false); r != nil {
			return r
		}
	}
	if k.Namespace == root {
		return nil
	}
	return x[root].find(k.Hostname, &c, false)
}

// trafficPolicy returns the policy in force for a service port or for one of its
// subsets ("" is the whole service), with the rule that it comes from. Both are
// nil if there is none. The policy has no port-level settings left: they are
// worked in. It is shared and must not be changed.
func trafficPolicy(in Inputs, v View, at served, subset string) (*networking.TrafficPolicy, *destinationRule) {
	r := ruleFor(in, v, at.service)
	return inMesh(in, r.policyFor(at.port.Number, subset)), r
}

// inMesh fills in MeshConfig's default policy where a policy, which may be nil,
// has no connection pool or outlier detection of its own.
func inMesh(in Inputs, p *networking.TrafficPolicy) *networking.TrafficPolicy {
	base := in.Catalog.Settings.Mesh.GetDefaultTrafficPolicy()
	pool, outliers := p.GetConnectionPool(), p.GetOutlierDetection()
	if pool == nil {
		pool = base.GetConnectionPool()
	}
	if outliers == nil {
		outliers = base.GetOutlierDetection()
	}
	if pool == p.GetConnectionPool() && outliers == p.GetOutlierDetection() {
		return p
	}
	out := &networking.TrafficPolicy{LoadBalancer: p.GetLoadBalancer(), Tls: p.GetTls(), PortLevelSettings: p.GetPortLevelSettings(),
		Tunnel: p.GetTunnel(), ProxyProtocol: p.GetProxyProtocol(), RetryBudget: p.GetRetryBudget()}
	out.ConnectionPool, out.OutlierDetection = pool, outliers
	return out
}

// policyFor works out the policy of a port and subset. Settings of a port stand
// in for those of all ports, also where they say nothing. A subset's override
// the service's one by one; those of a subset's port altogether, but for what a
// port cannot say.
func (r *destinationRule) policyFor(port uint16, subset string) *networking.TrafficPolicy {
	switch {
	case r == nil:
		return nil
	case r.backend != nil:
		written := *r
		written.backend = nil
		return secured(written.policyFor(port, subset), r.backend, port)
	}
	whole, _ := atPort(r.policy, port)
	sub := r.subset(subset).GetTrafficPolicy()
	if sub == nil {
		return whole
	}
	part, ported := atPort(sub, port)
	if whole == nil {
		return part
	}
	out := &networking.TrafficPolicy{LoadBalancer: whole.LoadBalancer, ConnectionPool: whole.ConnectionPool,
		OutlierDetection: whole.OutlierDetection, Tls: whole.Tls,
		Tunnel: whole.Tunnel, ProxyProtocol: whole.ProxyProtocol, RetryBudget: whole.RetryBudget}
	override(&out.LoadBalancer, part.LoadBalancer, ported)
	override(&out.ConnectionPool, part.ConnectionPool, ported)
	override(&out.OutlierDetection, part.OutlierDetection, ported)
	override(&out.Tls, part.Tls, ported)
	override(&out.Tunnel, part.Tunnel, false)
	override(&out.ProxyProtocol, part.ProxyProtocol, false)
	override(&out.RetryBudget, part.RetryBudget, false)
	return out
}

func override[T any](to **T, by *T, always bool) {
	if by != nil || always {
		*to = by
	}
}

// atPort returns the settings of a port if there are any, else the policy.
func atPort(p *networking.TrafficPolicy, port uint16) (*networking.TrafficPolicy, bool) {
	for _, l := range p.GetPortLevelSettings() {
		if l.GetPort() != nil && l.GetPort().GetNumber() == uint32(port) {
			return &networking.TrafficPolicy{LoadBalancer: l.GetLoadBalancer(), ConnectionPool: l.GetConnectionPool(),
				OutlierDetection: l.GetOutlierDetection(), Tls: l.GetTls()}, true
		}
	}
	return p, false
}

// ruleSubsets lists the names of all subsets that rules of any namespace give a
// host, for whomever, sorted.
func ruleSubsets(in Inputs, host mesh.Hostname) []string {
	var out []string
	for _, space := range destinationRules(in) {
		space.each(host, func(h *ruleHost) {
			for _, o := range h.rules {
				for _, s := range o.spec.GetSubsets() {
					out = append(out, s.GetName())
				}
			}
		})
	}
	slices.Sort(out)
	return slices.Compact(out)
}
