package build

import (
	"slices"
	"strconv"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

// routerRoutes makes the route configuration of a router's servers with the
// name: a virtual host for each host that a VirtualService binds, with the routes
// of all of them, the oldest first; nil if no server has the name.
func routerRoutes(in Inputs, v View, name string) (*routev3.RouteConfiguration, error) {
	b := &routerBuilder{in: in, v: v, hosts: map[mesh.Hostname]*routev3.VirtualHost{}}
	found := false
	var port uint16
	for _, p := range routerPorts(in, v) {
		for _, s := range p.servers {
			if s.routeName() != name {
				continue
			}
			found, port = true, s.number
			if err := b.serve(s); err != nil {
				return nil, err
			}
		}
	}
	if !found {
		return nil, nil
	}
	if len(b.order) == 0 {
		b.order = []*routev3.VirtualHost{{Name: "blackhole:" + strconv.Itoa(int(port)), Domains: []string{"*"}}}
	}
	for _, h := range b.order {
		catchAllsLast(h)
		holdLookups(in, v, h)
	}
	return routeConfiguration(name, b.order), nil
}

type routerBuilder struct {
	in    Inputs
	v     View
	hosts map[mesh.Hostname]*routev3.VirtualHost
	order []*routev3.VirtualHost
}

// serve adds the hosts of one server. A server that redirects to HTTPS does so
// for all its hosts, also for those that nobody binds.
func (b *routerBuilder) serve(s *gatewayServer) error {
	scope := &routeScope{in: b.in, v: b.v, gateway: s.bound, port: s.number, tls: s.kind == serverHTTPS}
	for _, vs := range virtualServicesFor(b.in, b.v, s.bound) {
		common := s.common(vs)
		if len(common) == 0 {
			continue
		}
		routes, err := translateHTTP(scope, vs)
		if err != nil {
			return err
		}
		if len(routes) == 0 {
			continue
		}
		for _, h := range common {
			vh := b.host(h, s.number)
			vh.Routes = append(vh.Routes, routes...)
			if s.redirects() {
				vh.RequireTls = routev3.VirtualHost_ALL
			}
		}
	}
	if s.redirects() {
		for _, h := range s.hosts {
			b.host(h.host, s.number).RequireTls = routev3.VirtualHost_ALL
		}
	}
	return nil
}

// host returns the virtual host of a host, making it if need be.
func (b *routerBuilder) host(h mesh.Hostname, port uint16) *routev3.VirtualHost {
	if vh := b.hosts[h]; vh != nil {
		return vh
	}
	vh := &routev3.VirtualHost{Name: string(h) + ":" + strconv.Itoa(int(port)), Domains: []string{hostDomain(h)}, IncludeRequestAttemptCount: !b.v.Tuning.routes.uncounted}
	b.hosts[h] = vh
	b.order = append(b.order, vh)
	return vh
}

// catchAllsLast moves routes that take every request behind the others, which
// they would hide: several VirtualServices may have routes for one host.
func catchAllsLast(h *routev3.VirtualHost) {
	var some, all []*routev3.Route
	for _, r := range h.Routes {
		if catchesAll(r) {
			all = append(all, r)
		} else {
			some = append(some, r)
		}
	}
	h.Routes = slices.Concat(some, all)
}

// routerRoutesAffected tells which route configurations of a router a change may
// concern: all, if it is about any rule for routers or a service that one leads to.
func routerRoutesAffected(in Inputs, c *registry.Change) Affected {
	if aboutRouters(c) {
		return Affected{All: true}
	}
	for k, s := range c.Services {
		if s.Aspects.Has(registry.AspectDefinition) && len(ruleTables(in).leading[k.Hostname]) > 0 {
			return Affected{All: true}
		}
	}
	return Affected{}
}
