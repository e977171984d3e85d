package build

import (
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// patchRoutes applies a view's patches to a route configuration.
func patchRoutes(in Inputs, v View, r *routev3.RouteConfiguration) *routev3.RouteConfiguration {
	p := newPatcher(in, v, networking.EnvoyFilter_SIDECAR_OUTBOUND, "routes "+r.GetName())
	if !p.routing() {
		return r
	}
	return p.routes(r, v.Inbound.Spec().Opened)
}

// routePatches are the kinds of patches that change routes.
func routePatches() []networking.EnvoyFilter_ApplyTo {
	return []networking.EnvoyFilter_ApplyTo{networking.EnvoyFilter_ROUTE_CONFIGURATION, networking.EnvoyFilter_VIRTUAL_HOST, networking.EnvoyFilter_HTTP_ROUTE}
}

// routing reports whether any patch changes routes.
func (p *patcher) routing() bool {
	return slices.ContainsFunc(p.list, func(x *patch) bool { return slices.Contains(routePatches(), x.applyTo) })
}

// routes returns a route configuration with the patches that are about it applied.
func (p *patcher) routes(r *routev3.RouteConfiguration, opened map[uint16]uint16) *routev3.RouteConfiguration {
	name := r.GetName()
	about := func(to networking.EnvoyFilter_ApplyTo) []*patch {
		return slices.DeleteFunc(p.having(to), func(x *patch) bool { return !x.onRoutes(name, opened) })
	}
	r = proto.CloneOf(r)
	for _, x := range about(networking.EnvoyFilter_ROUTE_CONFIGURATION) {
		if x.op == networking.EnvoyFilter_Patch_MERGE {
			r, _ = applied(p, x, r, func(next *routev3.RouteConfiguration) error {
				err := merge(next, x.value, x.replaces)
				next.Name = name // by which it is asked for
				return err
			})
		}
	}
	hosts := about(networking.EnvoyFilter_VIRTUAL_HOST)
	for _, x := range hosts {
		switch x.op {
		case networking.EnvoyFilter_Patch_REMOVE:
			r.VirtualHosts = slices.DeleteFunc(r.VirtualHosts, x.onHost)
		case networking.EnvoyFilter_Patch_MERGE:
			for i, h := range r.VirtualHosts {
				if x.onHost(h) {
					r.VirtualHosts[i], _ = applied(p, x, h, func(next *routev3.VirtualHost) error { return merge(next, x.value, x.replaces) })
				}
			}
		case networking.EnvoyFilter_Patch_REPLACE:
			for i, h := range r.VirtualHosts {
				if next, ok := valueOf[*routev3.VirtualHost](p, x); ok && x.match.GetRouteConfiguration().GetVhost() != nil && x.onHost(h) {
					r.VirtualHosts[i] = next
				}
			}
		}
	}
	p.hostRoutes(r, about(networking.EnvoyFilter_HTTP_ROUTE))
	for _, x := range hosts {
		if x.op == networking.EnvoyFilter_Patch_ADD {
			if h, ok := valueOf[*routev3.VirtualHost](p, x); ok {
				r.VirtualHosts = append(r.VirtualHosts, h)
			}
		}
	}
	distinctDomains(r)
	return r
}

// hostRoutes patches the routes of every virtual host.
func (p *patcher) hostRoutes(r *routev3.RouteConfiguration, patches []*patch) {
	if len(patches) == 0 {
		return
	}
	l := &listPatch[*routev3.Route]{
		p:     p,
		names: (*patch).namesRoute,
		is:    func(x *patch, e *routev3.Route) bool { return x.onRoute(e) },
		place: func(list []*routev3.Route, _ *patch, _ *routev3.Route) int { return len(list) },
		check: func([]*routev3.Route) error { return nil },
	}
	for _, h := range r.VirtualHosts {
		h.Routes = l.run(h.Routes, slices.DeleteFunc(slices.Clone(patches), func(x *patch) bool { return !x.onHost(h) }))
	}
}

// distinctDomains leaves each domain and each name to the first virtual host that
// has it: patches may have given one to several, which proxies refuse as a whole.
func distinctDomains(r *routev3.RouteConfiguration) {
	domains, names := map[string]bool{}, map[string]bool{}
	var hosts []*routev3.VirtualHost
	for _, h := range r.VirtualHosts {
		h.Domains = slices.DeleteFunc(h.Domains, func(d string) bool {
			was := domains[d]
			domains[d] = true
			return was
		})
		if len(h.Domains) == 0 || names[h.GetName()] {
			continue
		}
		names[h.GetName()] = true
		hosts = append(hosts, h)
	}
	r.VirtualHosts = hosts
}
