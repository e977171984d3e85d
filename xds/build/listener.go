package build

import (
	"maps"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// TypeListener is the xDS type of listeners.
const TypeListener = typePrefix + "envoy.config.listener.v3.Listener"

// Names of the listeners that intercepted traffic arrives at.
const (
	ListenerVirtualOutbound = "virtualOutbound"
	ListenerVirtualInbound  = "virtualInbound"
)

// Listeners makes listeners (LDS):
//
//   - for sidecars the two virtual listeners that intercepted traffic is
//     redirected to, and those that tell outbound traffic apart by its original
//     destination (see ports.go); none of these but the virtual ones bind a port;
//   - for routers one per port of the Gateways that select them;
//   - for gRPC an API listener per service port and a server listener per port
//     that a server asks for. gRPC asks by name only.
//
// A sidecar without interception (NONE) has no virtual listeners: the listeners
// of its ports bind them on the loopback address, except those that the workload
// itself or its agent serves. What does not speak HTTP or TLS there goes to one
// service, as nothing tells it from others. A Sidecar may have ports of the
// workload bound, too.
type Listeners struct{}

var _ Generator = Listeners{}

// TypeURL implements [Generator].
func (Listeners) TypeURL() string { return TypeListener }

// List implements [Generator].
func (Listeners) List(in Inputs, v View) []string {
	return patchedNames(in, v, networking.EnvoyFilter_LISTENER, listenerNames(in, v))
}

func listenerNames(in Inputs, v View) []string {
	switch {
	case v.Dialect == mesh.DialectGRPC:
		return nil
	case v.Kind == mesh.ProxyRouter:
		return routerNames(in, v)
	case v.Kind == mesh.ProxySidecar:
		return sidecarNames(in, v)
	}
	return nil
}

func sidecarNames(in Inputs, v View) []string {
	names := map[string]struct{}{}
	if n := httpProxyName(v); n != "" {
		names[n] = struct{}{}
	}
	for _, n := range ingressListeners(v) {
		names[n] = struct{}{}
	}
	if v.Interception == mesh.InterceptNone {
		spec := v.Inbound.Spec()
		for port := range wildcardPorts(in, v) {
			if loopbackFree(in, v, spec, port) {
				names[listenerName(loopback(v), port)] = struct{}{}
			}
		}
		for _, n := range boundListeners(in, v) {
			names[n] = struct{}{}
		}
		return slices.Sorted(maps.Keys(names))
	}
	names[ListenerVirtualOutbound], names[ListenerVirtualInbound] = struct{}{}, struct{}{}
	for port := range wildcardPorts(in, v) {
		if !reserved(in, port) {
			names[listenerName(wildcard(v), port)] = struct{}{}
		}
	}
	for at, c := range claims(in, v) {
		if !speaks(in, v, c.service, at.port) && hasFamily(v, at.addr) {
			names[listenerName(at.addr.String(), at.port)] = struct{}{}
		}
	}
	for _, n := range boundListeners(in, v) {
		names[n] = struct{}{}
	}
	return slices.Sorted(maps.Keys(names))
}

// wildcardPorts collects the ports with a listener for all addresses.
func wildcardPorts(in Inputs, v View) map[uint16]struct{} {
	out := map[uint16]struct{}{}
	seen := map[uint16]struct{}{}
	for s := range in.Catalog.Services() {
		for _, p := range s.Ports {
			if _, again := seen[p.Number]; again {
				continue
			}
			seen[p.Number] = struct{}{}
			if at := sharePort(in, v, p.Number); at.http || at.streams() {
				out[p.Number] = struct{}{}
			}
		}
	}
	return out
}

// ListView implements [Generator].
func (Listeners) ListView(v View) View {
	switch {
	case v.Dialect == mesh.DialectGRPC:
		return View{Kind: v.Kind, Dialect: v.Dialect}
	case v.Kind == mesh.ProxyRouter:
		return View{Kind: v.Kind, Namespace: v.Namespace, Labels: v.Labels, IPv4: v.IPv4, IPv6: v.IPv6, Inbound: v.Inbound, Patches: v.Patches, Tuning: v.Tuning.binding()}
	}
	p := View{Kind: v.Kind, Cluster: v.Cluster, Network: v.Network, NetworkView: v.NetworkView, Namespace: v.Namespace,
		Sidecar: v.Sidecar, IPv4: v.IPv4, IPv6: v.IPv6, Interception: captured(v.Interception), DNSCapture: v.DNSCapture, Patches: v.Patches, Tuning: v.Tuning.binding()}
	if p.Interception == mesh.InterceptNone || len(ingressListeners(v)) > 0 {
		p.Inbound = v.Inbound // whose ports are not to be taken, or are bound
	}
	return p
}

// Project implements [Generator].
func (Listeners) Project(in Inputs, v View, name string) View {
	p := projectListener(in, v, name)
	if v.Dialect == mesh.DialectGRPC {
		return p
	}
	p.Patches = projectPatches(in, v, name, listenerPatches(name))
	p.Plugins, p.Telemetry, p.Tuning = v.Plugins, v.Telemetry, v.Tuning.listening()
	if !isHTTPProxy(v, name) {
		p.Tuning.httpProxy = 0
	}
	if needsProviders(in, v) { // whether the proxy knows them
		p.Namespace, p.Sidecar = v.Namespace, v.Sidecar
	}
	if traced(in, v) { // spans name the workload
		p.Tracer, p.Cluster, p.Namespace = v.Tracer, v.Cluster, v.Namespace
		if p.Inbound == (Inbound{}) {
			p.Inbound = spanned(v)
		}
	}
	return p
}

func projectListener(in Inputs, v View, name string) View {
	p := View{Kind: v.Kind, Dialect: v.Dialect}
	switch {
	case v.Dialect == mesh.DialectGRPC:
		if _, ok := serverAddress(name); !ok {
			p.Namespace, p.Domain, p.Sidecar = v.Namespace, v.Domain, v.Sidecar
		}
		return p
	case v.Kind == mesh.ProxyRouter:
		p.Namespace, p.Labels, p.IPv4, p.IPv6, p.Inbound = v.Namespace, v.Labels, v.IPv4, v.IPv6, v.Inbound
		return p
	case isHTTPProxy(v, name):
		p.IPv4, p.IPv6, p.Namespace, p.Sidecar = v.IPv4, v.IPv6, v.Namespace, v.Sidecar
		return p
	case name == ListenerVirtualOutbound:
		p.IPv4, p.IPv6, p.Interception = v.IPv4, v.IPv6, v.Interception
		p.Sidecar = policySidecar(in, v)
		return p
	case name == ListenerVirtualInbound:
		p.IPv4, p.IPv6, p.Interception, p.Inbound = v.IPv4, v.IPv6, v.Interception, v.Inbound
	default:
		at, ok := parseListenerName(name)
		if _, bound := ingressListener(v, at); ok && bound {
			p.IPv4, p.IPv6, p.Interception, p.Inbound = v.IPv4, v.IPv6, v.Interception, v.Inbound
			return p
		}
		p.Namespace, p.Sidecar = v.Namespace, v.Sidecar
		p.IPv4, p.IPv6, p.Interception = v.IPv4, v.IPv6, captured(v.Interception)
		if p.Interception == mesh.InterceptNone {
			p.Inbound = v.Inbound
		}
		p.DNSCapture = ok && v.DNSCapture && autoAddressed(in, at.port)
		if ok {
			p.Labels = v.Labels.Only(streamLabels(in, v, at.port))
		}
		switch anyone := withoutNamespace(v); {
		case !ok:
		case !at.addr.IsUnspecified() && !at.addr.IsLoopback():
			p.Cluster, p.Network, p.NetworkView = v.Cluster, v.Network, v.NetworkView
		case boundEgress(in, v, at) != nil:
		case len(lookupNames(in, v, at.port))+len(lookupNames(in, anyone, at.port)) > 0: // of services that not all may see
		case sameForAll(in, v, anyone, at.port):
			// All see HTTP there, and the listener names no service.
			if p.Sidecar = policySidecar(in, v); p.Sidecar == (ObjectName{}) {
				p.Namespace = ""
			}
			p.Labels = Labels{}
		}
	}
	return p
}

// withoutNamespace is a view of the same kind to which nothing is hidden.
func withoutNamespace(v View) View {
	v.Namespace, v.Sidecar = "", ObjectName{}
	return v
}

// policySidecar keeps the Sidecar if it decides what becomes of traffic to where
// the mesh knows nothing.
func policySidecar(in Inputs, v View) ObjectName {
	if s := sidecarOf(in, v); s != nil && s.spec.GetOutboundTrafficPolicy() != nil {
		return v.Sidecar
	}
	return ObjectName{}
}

// Build implements [Generator].
func (Listeners) Build(in Inputs, v View, name string) (proto.Message, error) {
	l, err := buildListener(in, v, name)
	if err != nil {
		return nil, err
	}
	if l == nil {
		l, _ = added[*listenerv3.Listener](in, v, networking.EnvoyFilter_LISTENER, name)
	} else {
		if v.Dialect != mesh.DialectGRPC {
			tuneListener(v, l)
		}
		l = patchListener(in, v, l)
	}
	if l == nil {
		return nil, nil // a nil *Listener must not become a non-nil message
	}
	return l, nil
}

func buildListener(in Inputs, v View, name string) (*listenerv3.Listener, error) {
	if v.Dialect == mesh.DialectGRPC {
		return grpcListener(in, v, name)
	}
	if isHTTPProxy(v, name) {
		return httpProxyListener(in, v)
	}
	at, isAddress := parseListenerName(name)
	if isAddress && v.Kind == mesh.ProxySidecar {
		if t, ok := ingressListener(v, at); ok {
			return boundInbound(in, v, t)
		}
		if e := boundEgress(in, v, at); e != nil {
			return boundListener(in, v, e, at)
		}
	}
	switch v.Kind {
	case mesh.ProxyRouter:
		return routerListener(in, v, name)
	case mesh.ProxySidecar:
		switch {
		case v.Interception == mesh.InterceptNone:
			if isAddress && at.addr.String() == loopback(v) && loopbackFree(in, v, v.Inbound.Spec(), at.port) {
				return wildcardListener(in, v, at.port)
			}
		case name == ListenerVirtualOutbound:
			return virtualOutbound(in, v)
		case name == ListenerVirtualInbound:
			return virtualInbound(in, v)
		case isAddress && at.addr.IsUnspecified():
			if at.addr.String() == wildcard(v) && !reserved(in, at.port) {
				return wildcardListener(in, v, at.port)
			}
		case isAddress && hasFamily(v, at.addr):
			return addressListener(in, v, at)
		}
	}
	return nil, nil
}

// Affected implements [Generator].
func (Listeners) Affected(in Inputs, v View, c *registry.Change) Affected {
	c, all := sidecarAffected(in, v, c)
	if all || patchesChanged(v, c) || telemetryChanged(v, c) || providersChanged(in, c) || c.Scope&registry.ScopeSettings != 0 {
		return Affected{All: true}
	}
	switch {
	case v.Dialect == mesh.DialectGRPC:
		return Affected{Names: grpcListenersAffected(v, c)}
	case v.Kind == mesh.ProxyRouter:
		return routerAffected(in, v, c)
	case v.Kind == mesh.ProxySidecar:
		if lookupsChanged(in, c) || v.Tuning.httpProxy != 0 && wildcardsChanged(in, c) {
			return Affected{All: true}
		}
		c = streamsChanged(in, c)
		names := map[string]struct{}{}
		for _, n := range boundListeners(in, v) {
			names[n] = struct{}{}
		}
		for k, s := range c.Services {
			listenersOf(v, s, names)
			if s.Aspects.Has(registry.AspectDefinition) { // what a host stands for depends on all that define it
				for _, other := range in.Catalog.Host(k.Hostname) {
					set := in.Endpoints.Endpoints(other.Key)
					listenersOf(v, registry.ServiceChange{Aspects: s.Aspects, After: other, EndpointsAfter: set}, names)
				}
			}
		}
		return Affected{Names: slices.Sorted(maps.Keys(names))}
	}
	return Affected{}
}

// listenersOf collects the names of the listeners that a change of one service
// may concern.
func listenersOf(v View, s registry.ServiceChange, names map[string]struct{}) {
	redefined := s.Aspects.Has(registry.AspectDefinition)
	for _, svc := range []*mesh.Service{s.Before, s.After} {
		if svc == nil {
			continue
		}
		for _, p := range svc.Ports {
			if redefined {
				names[listenerName(wildcard(v), p.Number)] = struct{}{}
				names[listenerName(loopback(v), p.Number)] = struct{}{}
				for _, a := range slices.Concat(svc.Addresses(v.Cluster), svc.Lead.AutoAddresses) {
					names[listenerName(a.String(), p.Number)] = struct{}{}
				}
			}
			if headless(svc, v.Cluster) && !p.Protocol.IsHTTP() && (redefined || s.Aspects.Has(registry.AspectEndpoints)) {
				for _, a := range movedPods(s, p.Name, redefined) {
					names[listenerName(a.String(), p.Number)] = struct{}{}
				}
			}
		}
	}
}
