package build

import (
	"fmt"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// TypeUpstream is the xDS type of upstreams (CDS).
const TypeUpstream = typePrefix + "envoy.config.cluster.v3.Cluster"

const (
	// defaultDialTimeout bounds connecting to an endpoint if MeshConfig does not.
	defaultDialTimeout = 10 * time.Second
	// unlimited switches a limit of a circuit breaker off.
	unlimited = 1<<32 - 1
)

// Upstreams makes upstreams (CDS):
//
//   - outbound|PORT||HOST for every service port that the view sees; sidecars
//     dial the original destination of a headless service, all others get its
//     endpoints;
//   - for sidecars inbound|PORT|| for every port that the workload serves, and
//     those that pass traffic on to where it was going;
//   - for routers that an AUTO_PASSTHROUGH server makes east-west gateways
//     outbound_.PORT_._.HOST, which pass mTLS on unopened;
//   - AllowAnyDynamicDNSCluster for sidecars if the mesh looks up unknown hosts;
//   - BlackHoleCluster for all but gRPC clients.
type Upstreams struct{}

var _ Generator = Upstreams{}

// TypeURL implements [Generator].
func (Upstreams) TypeURL() string { return TypeUpstream }

// List implements [Generator].
func (Upstreams) List(in Inputs, v View) []string {
	return patchedNames(in, v, networking.EnvoyFilter_CLUSTER, ownUpstreamNames(in, v))
}

func ownUpstreamNames(in Inputs, v View) []string {
	var out []string
	passes := ServesPassthrough(in, v)
	for s := range in.Catalog.Services() {
		if !sees(in, v, s) {
			continue
		}
		rule := ruleFor(in, v, s)
		for _, p := range servedPorts(s) {
			if _, ok := serves(in, v, s, p.Number); ok {
				out = rule.names(out, UpstreamID{Direction: DirectionOutbound, Port: p.Number, Host: s.Key.Hostname})
			}
		}
		if !passes {
			continue
		}
		for _, p := range passthroughPorts(in, v, s) {
			if _, ok := serves(in, v, s, p.Number); ok {
				out = rule.names(out, UpstreamID{Direction: DirectionOutbound, Port: p.Number, Host: s.Key.Hostname, SNI: true})
			}
		}
	}
	if v.Dialect != mesh.DialectGRPC {
		out = append(out, UpstreamBlackHole)
		if v.Kind != mesh.ProxyRouter {
			out = append(out, UpstreamPassthrough, UpstreamInboundPassthrough)
			out = append(out, inboundNames(v)...)
			if looksUpAny(in, v) {
				out = append(out, UpstreamAnyLookup)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out) // one host may be defined by several namespaces
}

// ListView implements [Generator].
func (Upstreams) ListView(v View) View {
	out := View{Namespace: v.Namespace, Sidecar: v.Sidecar, Labels: v.Labels, Patches: v.Patches}
	switch {
	case v.Dialect == mesh.DialectGRPC:
		out.Dialect = v.Dialect
	case v.Kind == mesh.ProxyRouter:
		out.Kind, out.Inbound = v.Kind, v.Inbound
	default:
		out.Inbound = portsOnly(v)
	}
	return out
}

// Project implements [Generator].
func (Upstreams) Project(in Inputs, v View, name string) View {
	p := projectUpstream(in, v, name)
	if name != UpstreamBlackHole {
		p.Tuning = v.Tuning.dialling()
	}
	p.Patches = projectPatches(in, v, name, []networking.EnvoyFilter_ApplyTo{networking.EnvoyFilter_CLUSTER})
	return p
}

func projectUpstream(in Inputs, v View, name string) View {
	switch name {
	case UpstreamBlackHole, UpstreamPassthrough, UpstreamInboundPassthrough:
		return projectStatic(v, name)
	case UpstreamAnyLookup:
		return projectAnyLookup(in, v)
	}
	id, ok := parseAnyName(name)
	switch {
	case !ok:
		return View{}
	case id.SNI:
		return projectSNI(in, v, id)
	case id.Direction == DirectionInbound:
		return projectInbound(in, v, id.Port)
	}
	return projectOutbound(in, v, id)
}

// Build implements [Generator].
func (Upstreams) Build(in Inputs, v View, name string) (proto.Message, error) {
	u, err := buildUpstream(in, v, name)
	if err != nil {
		return nil, fmt.Errorf("build upstream %s: %w", name, err)
	}
	if u == nil {
		if u, _ = added[*clusterv3.Cluster](in, v, networking.EnvoyFilter_CLUSTER, name); u == nil {
			return nil, nil // not a nil pointer within the interface
		}
		return u, nil
	}
	if u = patchUpstream(in, v, u); u == nil {
		return nil, nil
	}
	return u, nil
}

func buildUpstream(in Inputs, v View, name string) (*clusterv3.Cluster, error) {
	switch name {
	case UpstreamBlackHole, UpstreamPassthrough, UpstreamInboundPassthrough:
		return staticUpstream(in, v, name), nil
	case UpstreamAnyLookup:
		return anyLookup(in, v)
	}
	id, ok := parseAnyName(name)
	switch {
	case !ok:
		return nil, nil
	case id.SNI:
		return sniUpstream(in, v, id), nil
	case id.Direction == DirectionInbound:
		return inboundUpstream(in, v, id), nil
	case v.Dialect == mesh.DialectGRPC:
		return grpcUpstream(in, v, id)
	}
	return outboundUpstream(in, v, id)
}

// Affected implements [Generator].
func (Upstreams) Affected(in Inputs, v View, c *registry.Change) Affected {
	c, all := sidecarAffected(in, v, c)
	if all || patchesChanged(v, c) || c.Scope&registry.ScopeSettings != 0 {
		return Affected{All: true}
	}
	if v.Kind == mesh.ProxyRouter {
		for k := range c.Objects {
			if k.Kind == mesh.KindGateway {
				return Affected{All: true}
			}
		}
	}
	var out Affected
	for k, s := range c.Services {
		if s.Aspects.Has(registry.AspectDefinition|registry.AspectIdentities) || securityChanged(in, v, k.Hostname, s) || resolves(s.After) {
			out.Names = changedNames(in, out.Names, k.Hostname, s)
		}
	}
	if c.Scope.Has(registry.ScopeNetworks) { // endpoints that stand in the upstream may be reached another way
		for s := range in.Catalog.Services() {
			if resolves(s) {
				out.Names = changedNames(in, out.Names, s.Key.Hostname, registry.ServiceChange{After: s})
			}
		}
	}
	out.Names = ruleNames(in, out.Names, c)
	if v.Kind == mesh.ProxySidecar && v.Dialect != mesh.DialectGRPC {
		out.Names = servingRuled(in, out.Names, c)
	}
	slices.Sort(out.Names)
	out.Names = slices.Compact(out.Names)
	return out
}

// securityChanged reports whether endpoints changed in a way by which upstreams
// that speak mTLS to all of them or to none turn from one to the other.
func securityChanged(in Inputs, v View, host mesh.Hostname, s registry.ServiceChange) bool {
	if !s.Aspects.Has(registry.AspectEndpoints) {
		return false
	}
	if v.Dialect == mesh.DialectGRPC && anyMTLS(s.EndpointsBefore) != anyMTLS(s.EndpointsAfter) {
		return true
	}
	if s.After == nil || !dialsOriginal(s.After) && !mayPassThrough(in, host) {
		return false
	}
	return slices.ContainsFunc(s.After.Ports, func(p mesh.Port) bool {
		return allMTLS(s.EndpointsBefore, p.Name) != allMTLS(s.EndpointsAfter, p.Name)
	})
}

// dialsOriginal reports whether sidecars dial the original destination for a
// service: one that is headless in every cluster, or a ServiceEntry without
// resolution.
func dialsOriginal(s *mesh.Service) bool {
	return headless(s, "") || s.Lead.FromEntry() && s.Lead.Headless()
}

// resolves reports whether proxies look up a service's endpoints by name: then
// they stand in the upstream itself.
func resolves(s *mesh.Service) bool { return s != nil && s.Lead.Resolution.ByName() }

func projectOutbound(in Inputs, v View, id UpstreamID) View {
	p := narrow(in, v, id.Host, id.Port)
	x, ok := findUpstream(in, v, id)
	if !ok {
		return p
	}
	p.Dialect = v.Dialect
	if resolves(x.service) {
		p = withSelection(in, v, p, id, x.served)
	}
	if byRequest(x.service) {
		p.IPv4, p.IPv6 = families(v)
	}
	if v.Kind == mesh.ProxyRouter && v.Dialect != mesh.DialectGRPC &&
		(x.port.Protocol == mesh.ProtocolAuto || dialsOriginal(x.service) || secretElsewhere(View{}, x)) {
		p.Kind = v.Kind
	}
	return p
}

func outboundUpstream(in Inputs, v View, id UpstreamID) (*clusterv3.Cluster, error) {
	x, ok := findUpstream(in, v, id)
	if !ok {
		return nil, nil
	}
	d := x.draft(in, v, id)
	switch {
	case x.port.Protocol.IsHTTP2():
		d.http2Only()
	case x.port.Protocol == mesh.ProtocolAuto && v.Kind != mesh.ProxyRouter:
		d.likeDownstream()
	}
	if x.service.Lead.MeshExternal {
		markExternal(d.Cluster)
	}
	if byRequest(x.service) {
		return lookupUpstream(in, v, d, x)
	}
	switch {
	case passesThrough(x.policy), dialsOriginal(x.service) && v.Kind != mesh.ProxyRouter:
		d.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
	case resolves(x.service):
		resolved(in, v, d.Cluster, x.service.Lead.Resolution, planFor(in, v, id, x.served))
	default:
		assigned(d.Cluster)
	}
	d.applyPolicy(in, x)
	if err := d.secure(in, v, x); err != nil {
		return nil, err
	}
	if err := d.announce(x.policy.GetProxyProtocol()); err != nil {
		return nil, err
	}
	d.tune(v.Tuning.dial, x.port.Protocol)
	return d.finish(), nil
}

// newUpstream makes what all upstreams have. stat is the name that it is counted
// under.
func newUpstream(in Inputs, name, stat string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name,
		// The semicolon marks the end of the name for Istio's statistics.
		AltStatName:    stat + ";",
		ConnectTimeout: dialTimeout(in),
	}
}

// dialTimeout is MeshConfig.connectTimeout. Envoy takes none that is not positive.
func dialTimeout(in Inputs) *durationpb.Duration {
	if d := in.Catalog.Settings.Mesh.GetConnectTimeout(); d.AsDuration() > 0 {
		return d
	}
	return duration(defaultDialTimeout)
}

// assigned makes an upstream ask for its assignment, by its own name.
func assigned(u *clusterv3.Cluster) {
	u.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	u.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: adsSource(), ServiceName: u.Name}
}

// neverPanic keeps requests from endpoints that are known to be unhealthy, also
// when all are.
func neverPanic() *clusterv3.Cluster_CommonLbConfig {
	return &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}}
}

// noLimits lifts Envoy's default limits of connections and requests.
func noLimits() *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections: u32(unlimited), MaxPendingRequests: u32(unlimited), MaxRequests: u32(unlimited), MaxRetries: u32(unlimited),
	}}}
}

// serviceMetadata tells telemetry which services an upstream stands for, given
// as triples of host, name and namespace.
func serviceMetadata(triples ...string) *corev3.Metadata {
	var services []*structpb.Value
	for t := range slices.Chunk(triples, 3) {
		services = append(services, structValue(map[string]*structpb.Value{
			"host": stringValue(t[0]), "name": stringValue(t[1]), "namespace": stringValue(t[2]),
		}))
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		metadataIstio: structOf(map[string]*structpb.Value{"services": listValue(services...)}),
	}}
}

// peerExchange is the filter by which Istio's proxies tell their peers on plain
// TCP connections about themselves.
func peerExchange(d mesh.Dialect) []*clusterv3.Filter {
	if d != mesh.DialectIstio {
		return nil
	}
	return []*clusterv3.Filter{{Name: metadataExchangeName, TypedConfig: mustAny(tcpMetadataExchange())}}
}
