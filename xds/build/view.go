package build

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// DefaultDomain is the cluster domain of a proxy that names none.
const DefaultDomain = "cluster.local"

// DeriveView reduces a proxy to what its configuration depends on. w is the
// proxy's workload as the registry knows it, nil if it does not (yet): what the
// proxy says of itself then stands in. What the proxy sets expressly (network,
// locality, node) wins over what the registry says.
//
// The result depends on the catalog and on the endpoints of the services in the
// proxy's namespace: [ViewConcerned] tells when to derive it again.
func DeriveView(in Inputs, p *mesh.Proxy, w *mesh.Workload) View {
	v := View{
		Kind:        p.Kind,
		Dialect:     p.Dialect,
		Cluster:     p.Cluster,
		Network:     proxyNetwork(in.Catalog, p, w),
		NetworkView: networkView(p.NetworkView),
		Namespace:   p.Namespace,
		Domain:      clusterDomain(p.DNSDomain),
		Locality:    p.Locality,
		Node:        p.NodeName,
		Tracer:      MakeTracer(p.ProxyConfig["tracing"]),
		DNSCapture:  p.DNSCapture,
		Tuning:      deriveTuning(in, p),
	}
	if w != nil {
		if v.Locality.IsZero() {
			v.Locality = w.Locality
		}
		v.Node = cmp.Or(v.Node, w.Node)
	}
	for _, a := range p.Addresses {
		if a = a.Unmap(); a.Is4() {
			v.IPv4 = true
		} else if a.Is6() {
			v.IPv6 = true
		}
	}
	if v.Kind == mesh.ProxySidecar && v.Dialect != mesh.DialectGRPC {
		v.Interception = cmp.Or(p.Interception, mesh.InterceptRedirect)
	}
	selectPolicies(in, p, w, &v)
	spec := inboundSpec(in, p, w)
	if s := sidecarOf(in, v); s != nil && len(s.spec.GetIngress()) > 0 && v.Dialect != mesh.DialectGRPC {
		spec.Targets = ingressTargets(s, v, p, spec.Targets)
	}
	v.Inbound = MakeInbound(spec)
	v.Tuning.httpProxy = httpProxyPort(in, p, v)
	return v
}

// ViewConcerned reports whether a change may alter the view of a proxy, so
// that [DeriveView] has to be asked again.
func ViewConcerned(p *mesh.Proxy, c *registry.Change) bool {
	if c.Scope&^registry.ScopeWeights != 0 || policiesConcern(c) {
		return true
	}
	for _, a := range p.Addresses {
		if _, ok := c.Workloads[registry.WorkloadKey{Cluster: p.Cluster, Addr: a}]; ok {
			return true
		}
	}
	for k, s := range c.Services {
		if k.Namespace != p.Namespace {
			continue
		}
		if s.Aspects.Has(registry.AspectDefinition) || s.Aspects.Has(registry.AspectEndpoints) && endpointsDecide(s.After, p.Cluster) {
			return true
		}
	}
	return false
}

// endpointsDecide reports whether the endpoints of a service tell which of its
// target ports a workload in the cluster serves: without a selector nothing
// else does, and a named target port may be known from there alone.
func endpointsDecide(s *mesh.Service, id mesh.ClusterID) bool {
	d := definitionIn(s, id)
	return d != nil && (len(d.Selector) == 0 || slices.ContainsFunc(d.Ports, func(p mesh.Port) bool { return p.TargetName != "" }))
}

// definitionIn is what holds for a service in a cluster; nil if nothing does.
func definitionIn(s *mesh.Service, id mesh.ClusterID) *mesh.Definition {
	switch {
	case s == nil:
		return nil
	case s.Lead.FromEntry():
		return s.Lead
	}
	return s.In[id]
}

// proxyNetwork says where a proxy is, by the rules that hold for endpoints: its
// own word, its workload's label, its cluster's network, meshNetworks by
// cluster, then by address.
func proxyNetwork(c *registry.Catalog, p *mesh.Proxy, w *mesh.Workload) mesh.NetworkID {
	if p.Network != "" {
		return p.Network
	}
	if w != nil && w.NetworkLabel != "" {
		return w.NetworkLabel
	}
	if k, ok := c.Cluster(p.Cluster); ok && k.Network != "" {
		return k.Network
	}
	return configuredNetwork(c.Settings.Networks, p)
}

func configuredNetwork(n *meshconfig.MeshNetworks, p *mesh.Proxy) mesh.NetworkID {
	var found mesh.NetworkID
	bits := -1
	for _, name := range slices.Sorted(maps.Keys(n.GetNetworks())) {
		for _, e := range n.Networks[name].GetEndpoints() {
			if r := e.GetFromRegistry(); r != "" && r == string(p.Cluster) {
				return mesh.NetworkID(name)
			}
			prefix, err := netip.ParsePrefix(e.GetFromCidr())
			if err == nil && prefix.Bits() > bits && len(p.Addresses) > 0 && prefix.Masked().Contains(p.Addresses[0].Unmap()) {
				found, bits = mesh.NetworkID(name), prefix.Bits()
			}
		}
	}
	return found
}

func networkView(ids []mesh.NetworkID) string {
	if len(ids) == 0 {
		return ""
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(ids)))
	out := make([]string, len(sorted))
	for i, n := range sorted {
		out[i] = string(n)
	}
	return strings.Join(out, ",")
}

// clusterDomain reads the cluster domain from a proxy's DNS domain,
// NAMESPACE.svc.DOMAIN.
func clusterDomain(dns string) string {
	if _, d, ok := strings.Cut(dns, ".svc."); ok {
		return cmp.Or(strings.TrimSuffix(d, "."), DefaultDomain)
	}
	return DefaultDomain
}

func inboundSpec(in Inputs, p *mesh.Proxy, w *mesh.Workload) InboundSpec {
	labels, workload := p.Labels, p.WorkloadName
	if w != nil {
		labels, workload = w.Labels, cmp.Or(workload, w.WorkloadName)
	}
	s := InboundSpec{
		CanonicalName:     mesh.CanonicalName(labels, workload),
		CanonicalRevision: mesh.CanonicalRevision(labels),
		MeshID:            p.MeshID,
		StatusPort:        metadataPort(p.Metadata, "ENVOY_STATUS_PORT"),
		PrometheusPort:    metadataPort(p.Metadata, "ENVOY_PROMETHEUS_PORT"),
	}
	targets := serviceTargets(in, p, w, labels)
	if p.Kind != mesh.ProxyRouter {
		s.Targets = targets
		return s
	}
	s.Labels = labels
	for _, t := range targets {
		if _, ok := s.Opened[t.Port]; ok || t.Port == t.Target {
			continue
		}
		if s.Opened == nil {
			s.Opened = map[uint16]uint16{}
		}
		s.Opened[t.Port] = t.Target
	}
	return s
}

// metadataPort reads a port that an agent sends as a number or as text; 0 if
// it is neither.
func metadataPort(m map[string]any, key string) uint16 {
	n, err := strconv.ParseUint(metadataScalar(m, key), 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// target is an inbound target with what decides its rank.
type target struct {
	InboundTarget
	service *mesh.Definition
}

// serviceTargets lists the service ports that a workload serves: those of the
// services in its namespace that its own cluster's definition selects it for,
// or whose hand-made endpoints include its address.
func serviceTargets(in Inputs, p *mesh.Proxy, w *mesh.Workload, labels map[string]string) []InboundTarget {
	var all []target
	for _, s := range in.Catalog.InNamespace(p.Namespace) {
		d := definitionIn(s, p.Cluster)
		if d == nil || d.Resolution == mesh.ResolutionAlias || s.Key.Hostname.InClusterSet() { // that one is there by its own name
			continue
		}
		selected := len(d.Selector) > 0 && selects(d.Selector, labels)
		if len(d.Selector) > 0 && !selected {
			continue
		}
		for _, port := range d.Ports {
			if port.Protocol == mesh.ProtocolUDP {
				continue
			}
			for _, number := range targetPorts(in, s.Key, p, w, port, selected) {
				all = append(all, target{service: d, InboundTarget: InboundTarget{
					Hostname: string(s.Key.Hostname), Name: d.Name, Namespace: s.Key.Namespace,
					PortName: port.Name, Port: port.Number, Target: number, Protocol: string(port.Protocol),
				}})
			}
		}
	}
	slices.SortFunc(all, func(a, b target) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), a.service.Created.Compare(b.service.Created),
			cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.Port, b.Port), cmp.Compare(a.PortName, b.PortName))
	})
	var out []InboundTarget
	for _, t := range all {
		out = append(out, t.InboundTarget)
	}
	return out
}

// targetPorts resolves a service port to numbers on the workload.
func targetPorts(in Inputs, k mesh.ServiceKey, p *mesh.Proxy, w *mesh.Workload, port mesh.Port, selected bool) []uint16 {
	if selected {
		if port.TargetName == "" {
			return []uint16{cmp.Or(port.TargetPort, port.Number)}
		}
		if w != nil && w.ContainerPorts[port.TargetName] != 0 {
			return []uint16{w.ContainerPorts[port.TargetName]}
		}
		if n := p.ContainerPorts[port.TargetName]; n != 0 {
			return []uint16{n}
		}
	}
	var out []uint16
	for _, e := range in.Endpoints.Endpoints(k).Port(port.Name) {
		if e.Workload.Cluster == p.Cluster && slices.Contains(p.Addresses, e.Addr) && !slices.Contains(out, e.Port) {
			out = append(out, e.Port)
		}
	}
	return out
}

// selects reports whether labels have everything that a selector asks for.
func selects(selector, labels map[string]string) bool {
	for k, want := range selector {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	return true
}
