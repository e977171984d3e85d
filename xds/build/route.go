package build

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// TypeRoute is the xDS type of route configurations.
const TypeRoute = typePrefix + "envoy.config.route.v3.RouteConfiguration"

// Routes makes route configurations (RDS), which are asked for by the names
// that listeners give:
//
//   - PORT: all services with HTTP on the port, told apart by host;
//   - http_proxy: all services of all ports (see httpproxy.go);
//   - HOST:PORT: one service's port whose protocol is sniffed;
//   - for gRPC outbound|PORT||HOST.
//
// Two services may lay claim to one domain: clusters with overlapping service
// ranges, one host defined in two namespaces, an alias that is called like a
// service. A host's own name goes before addresses and short names, an address
// in the proxy's own cluster before one elsewhere, then the older service
// wins, then the key (for one host in two namespaces: the proxy's namespace
// first).
type Routes struct{}

var _ Generator = Routes{}

// TypeURL implements [Generator].
func (Routes) TypeURL() string { return TypeRoute }

// List implements [Generator]: routes are asked for by name.
func (Routes) List(Inputs, View) []string { return nil }

// ListView implements [Generator].
func (Routes) ListView(View) View { return View{} }

// Project implements [Generator].
func (Routes) Project(in Inputs, v View, name string) View {
	p := projectRoutes(in, v, name)
	p.Tuning = v.Tuning.routing()
	p.Patches = projectPatches(in, v, name, routePatches())
	return p
}

func projectRoutes(in Inputs, v View, name string) View {
	p := View{Kind: v.Kind, Dialect: istioDialect(v.Dialect), Namespace: v.Namespace, Sidecar: v.Sidecar}
	if v.Kind == mesh.ProxyRouter && v.Dialect != mesh.DialectGRPC {
		p.Labels, p.Inbound = v.Labels, v.Inbound
		return p
	}
	if port, ok := parsePort(name); ok && v.Dialect != mesh.DialectGRPC {
		p.Domain, p.Cluster = v.Domain, v.Cluster
		p.DNSCapture = v.DNSCapture && autoAddressed(in, port)
		p.Labels = v.Labels.Only(routeLabels(in, v, aboutPort(in, port, true)))
	} else if name == routeHTTPProxy && v.Dialect != mesh.DialectGRPC {
		projectHTTPProxy(in, v, &p)
	} else if host, ok := routeHost(v, name); ok {
		p.Labels = v.Labels.Only(routeLabels(in, v, aboutHost(host)))
	}
	return p
}

// Build implements [Generator].
func (Routes) Build(in Inputs, v View, name string) (proto.Message, error) {
	r, err := buildRoutes(in, v, name)
	if r == nil || err != nil {
		return nil, err // a nil pointer must not become a non-nil message
	}
	return patchRoutes(in, v, r), nil
}

func buildRoutes(in Inputs, v View, name string) (*routev3.RouteConfiguration, error) {
	if v.Dialect == mesh.DialectGRPC {
		return grpcRoutes(in, v, name)
	}
	if v.Kind == mesh.ProxyRouter {
		return routerRoutes(in, v, name)
	}
	if v.Kind != mesh.ProxySidecar {
		return nil, nil
	}
	if port, ok := parsePort(name); ok {
		return portRoutes(in, v, name, port)
	}
	if name == routeHTTPProxy {
		return httpProxyRoutes(in, v)
	}
	host, number, _ := strings.Cut(name, ":")
	if port, ok := parsePort(number); ok {
		return sniffedRoutes(in, v, name, mesh.Hostname(host), port)
	}
	return nil, nil
}

// routeHost is the host that a route configuration is about alone.
func routeHost(v View, name string) (mesh.Hostname, bool) {
	if v.Dialect == mesh.DialectGRPC {
		id, ok := ParseUpstreamName(name)
		return id.Host, ok
	}
	host, _, ok := strings.Cut(name, ":")
	return mesh.Hostname(host), ok
}

// Affected implements [Generator].
func (Routes) Affected(in Inputs, v View, c *registry.Change) Affected {
	c, all := sidecarAffected(in, v, c)
	if all || patchesChanged(v, c) || c.Scope&registry.ScopeSettings != 0 {
		return Affected{All: true}
	}
	if v.Kind == mesh.ProxyRouter && v.Dialect != mesh.DialectGRPC {
		return routerRoutesAffected(in, c)
	}
	names := map[string]struct{}{}
	for _, ch := range c.Services {
		if !ch.Aspects.Has(registry.AspectDefinition) {
			continue
		}
		for _, s := range []*mesh.Service{ch.Before, ch.After} {
			if s != nil {
				routesOf(in, v, s, names)
				unruledPorts(in, v, s, names)
			}
		}
	}
	leadingToChanged(in, c, func(vs *virtualService) { routesOfRules(in, v, vs, names) })
	rulesChanged(in, v, c, names)
	if len(names) > 0 && v.Kind == mesh.ProxySidecar && v.Dialect != mesh.DialectGRPC {
		names[routeHTTPProxy] = struct{}{} // has a part in all of them
	}
	return Affected{Names: slices.Sorted(maps.Keys(names))}
}

// routesOf collects the names of the route configurations that a service is in,
// or an alias lends its name to.
func routesOf(in Inputs, v View, s *mesh.Service, names map[string]struct{}) {
	// What a host stands for depends on everything that is called so.
	for _, a := range append([]*mesh.Service{s}, in.Catalog.Host(s.Key.Hostname)...) {
		portRoutesOf(v, a, names)
		if a.Lead.Resolution != mesh.ResolutionAlias {
			continue
		}
		if target, ok := aliasTarget(in.Catalog, a); ok {
			for _, t := range in.Catalog.Host(target) {
				portRoutesOf(v, t, names)
			}
		}
	}
}

func portRoutesOf(v View, s *mesh.Service, names map[string]struct{}) {
	for _, p := range s.Ports {
		switch {
		case v.Dialect == mesh.DialectGRPC:
			names[UpstreamName(DirectionOutbound, p.Number, "", s.Key.Hostname)] = struct{}{}
		case p.Protocol.IsHTTP():
			names[strconv.Itoa(int(p.Number))] = struct{}{}
		case p.Protocol == mesh.ProtocolAuto:
			names[sniffedRoute(s.Key.Hostname, p.Number)] = struct{}{}
		}
	}
}

// portRoutes makes the route configuration of an HTTP port; nil if nobody
// speaks HTTP there and no listener of a Sidecar asks for it.
func portRoutes(in Inputs, v View, name string, port uint16) (*routev3.RouteConfiguration, error) {
	services := httpServices(in, v, port)
	if len(services) == 0 && !slices.Contains(boundRoutes(in, v), port) {
		return nil, nil
	}
	hosts, taken, err := newRouteBuilder(in, v, port).hosts(services, aliases(in, v))
	if err != nil {
		return nil, err
	}
	if _, ok := taken["*"]; !ok { // a service or a rule may stand for every host itself
		hosts = append(hosts, catchAll(in, v))
	}
	return routeConfiguration(name, hosts), nil
}

// hosts makes the virtual hosts of services and of rules on a port, and tells
// which domains they have.
func (b *routeBuilder) hosts(services []*mesh.Service, also map[mesh.Hostname][]*mesh.Service) ([]*routev3.VirtualHost, domainSet, error) {
	in, v := b.in, b.v
	ruled, err := b.ruledHosts(services, also)
	if err != nil {
		return nil, nil, err
	}
	taken := allot(v, services, ruled, also)
	hosts := make([]*routev3.VirtualHost, 0, len(services)+len(ruled)+1)
	for _, s := range services {
		h, err := b.virtualHost(s.Key.Hostname, ownDomains(v, s, also, taken))
		if err != nil {
			return nil, nil, err
		}
		if h != nil {
			hosts = append(hosts, h)
		}
	}
	for i := range ruled {
		if h := ruled[i].virtualHost(v, b.port, taken); h != nil {
			hosts = append(hosts, holdLookups(in, v, h))
		}
	}
	return hosts, taken, nil
}

// httpServices lists the services with HTTP on a port, by key.
func httpServices(in Inputs, v View, port uint16) []*mesh.Service {
	all := in.Catalog.OnPort(port)
	out := make([]*mesh.Service, 0, len(all))
	for _, s := range all {
		if speaks(in, v, s, port) {
			out = append(out, s)
		}
	}
	return out
}

// allot gives each domain that more than one service might claim to one.
func allot(v View, services []*mesh.Service, ruled []ruledHost, also map[mesh.Hostname][]*mesh.Service) domainSet {
	taken := make(domainSet, 6*len(services))
	for _, s := range services { // hosts are distinct
		taken.take(string(s.Key.Hostname), s)
	}
	for i := range ruled {
		for _, d := range ruled[i].domains {
			taken.take(d, &ruled[i])
		}
	}
	ranked := services
	if !slices.IsSortedFunc(services, older) {
		ranked = slices.SortedFunc(slices.Values(services), older)
	}
	for own := true; ; own = false { // addresses of the proxy's own cluster first
		for _, s := range ranked {
			if len(ownAddresses(s, v.Cluster)) > 0 != own {
				continue
			}
			for _, a := range addresses(v, s) {
				taken.take(vipDomain(a), s)
			}
		}
		if !own {
			break
		}
	}
	var names []string
	for _, s := range ranked {
		names = serviceNames(names[:0], v, s)
		for _, n := range names {
			taken.take(n, s)
		}
	}
	if len(also) > 0 {
		for _, s := range ranked {
			for _, a := range also[s.Key.Hostname] {
				names = hostDomains(names[:0], string(a.Key.Hostname), v.Namespace, v.Domain)
				for _, n := range names {
					taken.take(n, s)
				}
			}
		}
	}
	return taken
}

// serviceNames appends the names of a service; a headless one also answers to
// those of its pods.
func serviceNames(out []string, v View, s *mesh.Service) []string {
	from := len(out)
	out = hostDomains(out, string(s.Key.Hostname), v.Namespace, v.Domain)
	if s.Lead.Headless() && !s.Lead.FromEntry() && !strings.HasPrefix(out[from], "*") {
		for _, n := range out[from:] {
			out = append(out, "*."+n)
		}
	}
	return out
}

// ownDomains lists the domains that were allotted to a service: its names,
// those of its aliases, its addresses.
func ownDomains(v View, s *mesh.Service, also map[mesh.Hostname][]*mesh.Service, taken domainSet) []string {
	addrs := addresses(v, s)
	out := serviceNames(make([]string, 0, 5+len(addrs)), v, s)
	for _, a := range also[s.Key.Hostname] {
		out = hostDomains(out, string(a.Key.Hostname), v.Namespace, v.Domain)
	}
	for _, a := range addrs {
		out = append(out, vipDomain(a))
	}
	kept := out[:0]
	for _, d := range out {
		if taken[d] == s {
			kept = append(kept, d)
			taken[d] = nil // given once
		}
	}
	return kept
}

// sniffedRoutes makes the route configuration of one service's port: the
// listener has told the service apart already, so every host is meant for it.
func sniffedRoutes(in Inputs, v View, name string, host mesh.Hostname, port uint16) (*routev3.RouteConfiguration, error) {
	found, ok := findServed(in, v, host, port)
	if !ok || found.port.Protocol != mesh.ProtocolAuto {
		return nil, nil
	}
	h, err := newRouteBuilder(in, v, port).virtualHost(host, []string{"*"})
	if err != nil {
		return nil, err
	}
	return routeConfiguration(name, []*routev3.VirtualHost{h}), nil
}
