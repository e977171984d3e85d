package build

import (
	"cmp"
	"net"
	"slices"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// forever, in seconds, is the longest time that Envoy can count: the one
// destination of an inbound upstream is never forgotten.
const forever = 9223372035

// inboundNames lists the upstreams of the workload's own ports.
func inboundNames(v View) []string {
	var out []string
	for _, p := range inboundPorts(v) {
		out = append(out, UpstreamName(DirectionInbound, p, "", ""))
	}
	return out
}

// inboundPorts lists the ports of the workload that the proxy serves. Without
// interception these are the ones that a Sidecar has it bind: the workload binds
// the others itself.
func inboundPorts(v View) []uint16 {
	var out []uint16
	for _, t := range v.Inbound.Spec().Targets { // ordered by target port
		if v.Interception == mesh.InterceptNone && t.Bind == "" {
			continue
		}
		if len(out) == 0 || out[len(out)-1] != t.Target {
			out = append(out, t.Target)
		}
	}
	return out
}

// portsOnly reduces a workload's own side to the numbers of its ports, and the
// services there if patches may remove what serves them.
func portsOnly(v View) Inbound {
	var s InboundSpec
	hosts := v.Patches.unserves()
	for _, p := range inboundPorts(v) {
		if !hosts {
			s.Targets = append(s.Targets, InboundTarget{Target: p})
			continue
		}
		for _, t := range targetsAt(v, p) {
			s.Targets = append(s.Targets, InboundTarget{Target: p, Hostname: t.Hostname})
		}
	}
	if len(s.Targets) == 0 {
		return Inbound{}
	}
	return MakeInbound(s)
}

// targetsAt lists the service ports that a port of the workload serves.
func targetsAt(v View, port uint16) []InboundTarget {
	if v.Dialect == mesh.DialectGRPC || v.Kind == mesh.ProxyRouter {
		return nil
	}
	return slices.DeleteFunc(v.Inbound.Spec().Targets, func(t InboundTarget) bool {
		return t.Target != port || v.Interception == mesh.InterceptNone && t.Bind == ""
	})
}

func projectInbound(in Inputs, v View, port uint16) View {
	targets := targetsAt(v, port)
	if len(targets) == 0 {
		return View{}
	}
	p := View{IPv4: v.IPv4, IPv6: v.IPv6, Inbound: MakeInbound(InboundSpec{Targets: targets})}
	if ingressPool(in, v, port) != nil {
		p.Sidecar = v.Sidecar
	}
	if inboundRule(in, "", targets[0]) != inboundRule(in, v.Namespace, targets[0]) {
		p.Namespace = v.Namespace
	}
	return p
}

// inboundPool is the connection pool in force for a port of the workload, and
// the rule that has a say in it: workloads are guarded by what limits their
// clients. What the Sidecar sets goes first. Rules that select clients do not
// count.
func inboundPool(in Inputs, v View, t InboundTarget) (*networking.ConnectionPoolSettings, *destinationRule) {
	pool := ingressPool(in, v, t.Target)
	rule := inboundRule(in, v.Namespace, t)
	if rule != nil && rule.policy == nil {
		rule = nil
	}
	if pool == nil {
		pool = inMesh(in, rule.policyFor(t.Port, "")).GetConnectionPool()
	}
	return pool, rule
}

// inboundRule is the rule that workloads of a namespace find about a service of
// their own, nil if there is none or the port belongs to no service.
func inboundRule(in Inputs, namespace string, t InboundTarget) *destinationRule {
	if t.Hostname == t.Name+"."+t.Namespace {
		return nil // a port that only the Sidecar knows
	}
	return ruleAbout(in, View{Namespace: namespace}, mesh.ServiceKey{Namespace: t.Namespace, Hostname: mesh.Hostname(t.Hostname)})
}

// servingNames appends the names of the upstreams of workloads that serve a
// service: of every number that its ports have on some workload.
func servingNames(in Inputs, out []string, s *mesh.Service) []string {
	for _, id := range s.Clusters {
		for _, p := range s.In[id].Ports {
			out = append(out, UpstreamName(DirectionInbound, cmp.Or(p.TargetPort, p.Number), "", ""))
		}
	}
	return endpointNames(out, in.Endpoints.Endpoints(s.Key))
}

// endpointNames appends the names of the upstreams of the ports of endpoints.
func endpointNames(out []string, set *registry.EndpointSet) []string {
	var seen []uint16 // few: one or two for each port
	for e := range set.All() {
		if !slices.Contains(seen, e.Port) {
			seen = append(seen, e.Port)
			out = append(out, UpstreamName(DirectionInbound, e.Port, "", ""))
		}
	}
	return out
}

// dialledInbound is where the workload is dialled for one of its ports, "" for
// where the client meant to go: what its Sidecar says, else what MeshConfig says
// of the ports of services.
func dialledInbound(in Inputs, v View, t InboundTarget) string {
	if t.Sidecar != "" || in.Catalog.Settings.Mesh.GetInboundTrafficPolicy().GetMode() != meshconfig.MeshConfig_InboundTrafficPolicy_LOCALHOST {
		return t.Endpoint
	}
	return net.JoinHostPort(loopback(v), strconv.Itoa(int(t.Target)))
}

// inboundUpstream makes the upstream of one port of the workload. The first
// service port that it serves decides the protocol.
func inboundUpstream(in Inputs, v View, id UpstreamID) *clusterv3.Cluster {
	targets := targetsAt(v, id.Port)
	if len(targets) == 0 || id.Host != "" {
		return nil
	}
	u := &draft{Cluster: newUpstream(in, id.String(), inboundStat(in, targets[0]))}
	u.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
	u.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
	u.CleanupInterval = &durationpb.Duration{Seconds: forever}
	u.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{}
	u.CircuitBreakers = noLimits()
	u.UpstreamBindConfig = inboundSource(v)
	switch p := mesh.Protocol(targets[0].Protocol); {
	case p.IsHTTP2():
		u.http2Only()
	case p == mesh.ProtocolAuto:
		u.likeDownstream()
	}
	if at := dialledInbound(in, v, targets[0]); at != "" {
		toEndpoint(u.Cluster, at)
	}
	var services []string
	for i, t := range targets {
		if !slices.ContainsFunc(targets[:i], func(o InboundTarget) bool { return o.Hostname == t.Hostname && o.Namespace == t.Namespace }) {
			services = append(services, t.Hostname, t.Name, t.Namespace)
		}
	}
	u.Metadata = serviceMetadata(services...)
	pool, rule := inboundPool(in, v, targets[0])
	u.applyPool(in, pool, nil)
	u.applyHTTP2(pool.GetHttp())
	if rule != nil {
		nameOrigin(u.Cluster, rule.origin)
	}
	u.tune(v.Tuning.dial, mesh.Protocol(targets[0].Protocol))
	return u.finish()
}
