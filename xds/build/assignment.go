package build

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// TypeAssignment is the xDS type of what an upstream dials (EDS).
const TypeAssignment = typePrefix + "envoy.config.endpoint.v3.ClusterLoadAssignment"

// Keys of an endpoint's metadata.
const (
	metadataSocketMatch = "envoy.transport_socket_match"
	metadataIstio       = "istio"
	metadataTLSMode     = "tlsMode"
	metadataWorkload    = "workload"
	// tlsModeIstio marks endpoints that terminate mesh mTLS.
	tlsModeIstio = "istio"
)

// Assignments makes the assignments of upstreams (EDS): the addresses that
// [Select] chose, by locality, with their weights.
//
// An assignment is made for every service port that the view sees, also for
// ports whose upstream does not ask for one (headless services, on sidecars),
// and for the SNI-DNAT form of the name whoever asks: which upstreams a proxy
// has is the business of [Upstreams]. So an assignment depends on little and is
// shared by many.
type Assignments struct{}

var (
	_ Generator = Assignments{}
	_ Encoder   = Assignments{}
)

// TypeURL implements [Generator].
func (Assignments) TypeURL() string { return TypeAssignment }

// List implements [Generator]: assignments are asked for by name.
func (Assignments) List(Inputs, View) []string { return nil }

// ListView implements [Generator].
func (Assignments) ListView(View) View { return View{} }

// Project implements [Generator].
func (Assignments) Project(in Inputs, v View, name string) View {
	id, ok := outboundName(name)
	if !ok {
		return View{}
	}
	p := narrow(in, v, id.Host, id.Port)
	at, ok := findServed(in, v, id.Host, id.Port)
	if !ok {
		return p
	}
	if v.Dialect == mesh.DialectGRPC {
		p.Dialect = v.Dialect
	}
	return withSelection(in, v, p, id, at)
}

// withSelection adds to a projection everything that the choice of endpoints
// depends on.
func withSelection(in Inputs, v, p View, id UpstreamID, at served) View {
	p.Network, p.NetworkView = v.Network, v.NetworkView
	p.IPv4, p.IPv6 = families(v)
	policy, _ := trafficPolicy(in, v, at, id.Subset)
	looks := localityPreference(in, at, policy).looksAt(v)
	p.Locality, p.Labels, p.Node, p.Cluster = looks.Locality, p.Labels.And(looks.Labels), looks.Node, looks.Cluster
	nodeLocal := at.service.Lead.NodeLocal
	if nodeLocal || clusterLocal(in.Catalog.Settings, id.Host) {
		p.Cluster = v.Cluster
	}
	if nodeLocal {
		p.Node = v.Node
	}
	return p
}

// Build implements [Generator].
func (Assignments) Build(in Inputs, v View, name string) (proto.Message, error) {
	p := chosen(in, v, name)
	if p == nil {
		return nil, nil
	}
	a := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	for i := range p.groups {
		a.Endpoints = append(a.Endpoints, p.locality(&p.groups[i]))
	}
	return a, nil
}

// Affected implements [Generator].
func (Assignments) Affected(in Inputs, v View, c *registry.Change) Affected {
	c, all := sidecarAffected(in, v, c)
	if all || c.Scope&(registry.ScopeSettings|registry.ScopeNetworks|registry.ScopeWeights) != 0 {
		return Affected{All: true}
	}
	var out Affected
	for k, s := range c.Services {
		if s.Aspects.Has(registry.AspectDefinition | registry.AspectEndpoints) {
			out.Names = changedNames(in, out.Names, k.Hostname, s)
		}
	}
	out.Names = ruleNames(in, out.Names, c)
	slices.Sort(out.Names)
	out.Names = slices.Compact(out.Names)
	return out
}

// outboundName reads the name of an assignment in either form.
func outboundName(name string) (UpstreamID, bool) {
	id, ok := parseAnyName(name)
	return id, ok && id.Direction == DirectionOutbound && id.Host != ""
}

// chosen is what the named upstream dials, nil if the view has none of that name.
func chosen(in Inputs, v View, name string) *plan {
	id, ok := outboundName(name)
	if !ok {
		return nil
	}
	x, ok := findUpstream(in, v, id)
	switch {
	case !ok || resolves(x.service) && v.Dialect != mesh.DialectGRPC:
		return nil // what is resolved stands in the upstream
	case resolves(x.service):
		return &plan{} // gRPC asks only where there is nothing to resolve
	}
	return planFor(in, v, id, x.served)
}

// planFor is what an upstream of a service port dials.
func planFor(in Inputs, v View, id UpstreamID, at served) *plan {
	s := newSelector(in, v, at, id.Subset, id.SNI)
	return s.plan(in.Endpoints.Endpoints(at.service.Key).Port(at.port.Name))
}

func (p *plan) locality(g *planned) *endpointv3.LocalityLbEndpoints {
	l := g.locality
	out := &endpointv3.LocalityLbEndpoints{
		Priority:            g.priority,
		Locality:            &corev3.Locality{Region: l.Region, Zone: l.Zone, SubZone: l.SubZone},
		LoadBalancingWeight: u32(g.weight()),
		LbEndpoints:         make([]*endpointv3.LbEndpoint, len(g.picks)),
	}
	for i, x := range g.picks {
		e := p.entry(x)
		out.LbEndpoints[i] = lbEndpoint(&e)
	}
	return out
}

func lbEndpoint(e *Entry) *endpointv3.LbEndpoint {
	metadata := map[string]*structpb.Struct{
		metadataIstio: structOf(map[string]*structpb.Value{metadataWorkload: stringValue(e.peer().String())}),
	}
	if e.mtls() {
		metadata[metadataSocketMatch] = structOf(map[string]*structpb.Value{metadataTLSMode: stringValue(tlsModeIstio)})
	}
	return &endpointv3.LbEndpoint{
		HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
			Address: e.address(),
		}},
		HealthStatus:        e.health(),
		Metadata:            &corev3.Metadata{FilterMetadata: metadata},
		LoadBalancingWeight: u32(e.Weight),
	}
}

// mtls reports whether the entry is dialled with mesh mTLS. Nothing else gets
// through a gateway.
func (e *Entry) mtls() bool { return e.Gateway != nil || e.Endpoint.Workload.MTLS && !e.plain }

// health is the entry's health as proxies are told it. An endpoint that is not
// ready is sent all the same, so that proxies know of it before it gets ready;
// of a gateway nothing is known.
func (e *Entry) health() corev3.HealthStatus {
	if e.Gateway != nil {
		return corev3.HealthStatus_UNKNOWN
	}
	switch e.Endpoint.Health {
	case mesh.HealthReady:
		return corev3.HealthStatus_HEALTHY
	case mesh.HealthNotReady:
		return corev3.HealthStatus_UNHEALTHY
	case mesh.HealthDraining:
		return corev3.HealthStatus_DRAINING
	}
	return corev3.HealthStatus_UNKNOWN
}

// peer is what proxies put into their telemetry about whom they talk to.
type peer struct {
	workload, namespace, name, revision string
	cluster                             mesh.ClusterID
}

// latestRevision is what [mesh.CanonicalRevision] says if nothing is known.
const latestRevision = "latest"

// peer is who is behind the entry. Behind a gateway nothing but the cluster is
// known, and of a bare address neither.
func (e *Entry) peer() peer {
	if e.Gateway != nil {
		return peer{cluster: e.Gateway.Cluster}
	}
	w := e.Endpoint.Workload
	if w.Kind == "" {
		return peer{cluster: w.Cluster}
	}
	p := peer{w.WorkloadName, w.Namespace, mesh.CanonicalName(w.Labels, w.WorkloadName), mesh.CanonicalRevision(w.Labels), w.Cluster}
	if p.revision == latestRevision {
		p.revision = ""
	}
	return p
}

// String renders WORKLOAD;NAMESPACE;NAME;REVISION;CLUSTER, the form in which
// Istio's proxies read it.
func (p peer) String() string {
	return p.workload + ";" + p.namespace + ";" + p.name + ";" + p.revision + ";" + string(p.cluster)
}
