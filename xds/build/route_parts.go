package build

import (
	"fmt"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httplookupv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isthmus-mesh/isthmus/mesh"
)

const (
	// maxDirectResponse bounds bodies of direct responses, in bytes.
	maxDirectResponse = 1 << 20
	// blockedStatus answers requests to hosts outside the mesh where only known
	// ones are allowed.
	blockedStatus = 502

	defaultRoute = "default"
	allowAny     = "allow_any"
	blockAll     = "block_all"
)

func routeConfiguration(name string, hosts []*routev3.VirtualHost) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name:                           name,
		VirtualHosts:                   hosts,
		ValidateClusters:               boolean(false), // an upstream may come after its route
		MaxDirectResponseBodySizeBytes: u32(maxDirectResponse),
		IgnorePortInHostMatching:       true,
	}
}

// routeBuilder makes the virtual hosts of one route configuration, which share
// their constant parts. The parts are never changed after they are made.
type routeBuilder struct {
	routeScope
	rules      *boundRules
	translated map[*virtualService][]*routev3.Route
	everything *routev3.RouteMatch
	retry      *routev3.RetryPolicy
	zero       *durationpb.Duration
}

func newRouteBuilder(in Inputs, v View, port uint16) *routeBuilder {
	return &routeBuilder{
		routeScope: routeScope{in: in, v: v, gateway: meshGateway, port: port},
		rules:      ruleTables(in).bound[meshGateway],
		translated: map[*virtualService][]*routev3.Route{},
		everything: everyRequest(),
		zero:       duration(0),
		retry:      retryPolicy(in.Catalog.Settings.Mesh.GetDefaultHttpRetryPolicy(), false),
	}
}

// rulesOf translates a VirtualService once.
func (b *routeBuilder) rulesOf(vs *virtualService) ([]*routev3.Route, error) {
	if r, ok := b.translated[vs]; ok {
		return r, nil
	}
	r, err := translateHTTP(&b.routeScope, vs)
	if err != nil {
		return nil, fmt.Errorf("translate %s: %w", vs.object.Origin, err)
	}
	b.translated[vs] = r
	return r, nil
}

// routesOf makes the routes of a service: those of the first of its
// VirtualServices that says anything here, else one that takes everything to it.
func (b *routeBuilder) routesOf(host mesh.Hostname) ([]*routev3.Route, error) {
	for _, vs := range b.rules.forHost(b.in, b.v, host) {
		if r, err := b.rulesOf(vs); len(r) > 0 || err != nil {
			return r, err
		}
	}
	return []*routev3.Route{b.straight(host)}, nil
}

// straight is the route that takes everything to a service.
func (b *routeBuilder) straight(host mesh.Hostname) *routev3.Route {
	upstream := UpstreamID{Direction: DirectionOutbound, Port: b.port, Host: host}
	a := &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: upstream.String()},
		Timeout:          b.zero,
		MaxGrpcTimeout:   b.zero, //nolint:staticcheck // what Istio's proxies of all versions read
		RetryPolicy:      b.retry,
	}
	if h := destinationHash(b.in, b.v, upstream); h != nil {
		a.HashPolicy = []*routev3.RouteAction_HashPolicy{h}
	}
	return &routev3.Route{
		Name:      defaultRoute,
		Match:     b.everything,
		Decorator: &routev3.Decorator{Operation: sniffedRoute(host, b.port) + "/*"},
		Action:    &routev3.Route_Route{Route: a},
	}
}

// virtualHost has the routes of a service's port for some domains; nil if no
// domain is left for it.
func (b *routeBuilder) virtualHost(host mesh.Hostname, domains []string) (*routev3.VirtualHost, error) {
	if len(domains) == 0 {
		return nil, nil
	}
	routes, err := b.routesOf(host)
	return holdLookups(b.in, b.v, routedHost(b.v, host, b.port, domains, routes)), err
}

func routedHost(v View, host mesh.Hostname, port uint16, domains []string, routes []*routev3.Route) *routev3.VirtualHost {
	return &routev3.VirtualHost{Name: sniffedRoute(host, port), Domains: domains, IncludeRequestAttemptCount: !v.Tuning.routes.uncounted, Routes: routes}
}

// catchAll is the virtual host for hosts that the mesh does not know: they are
// dialled as if there were no proxy, looked up if the mesh says so, or refused if
// it allows only what it knows.
func catchAll(in Inputs, v View) *routev3.VirtualHost {
	everything := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
	if registryOnly(in, v) {
		return &routev3.VirtualHost{
			Name: blockAll, Domains: []string{"*"}, IncludeRequestAttemptCount: !v.Tuning.routes.uncounted,
			Routes: []*routev3.Route{{Name: blockAll, Match: everything, Action: &routev3.Route_DirectResponse{
				DirectResponse: &routev3.DirectResponseAction{Status: blockedStatus},
			}}},
		}
	}
	to := elsewhere(in, v)
	if looksUpAny(in, v) {
		to = UpstreamAnyLookup
	}
	out := &routev3.VirtualHost{
		Name: allowAny, Domains: []string{"*"}, IncludeRequestAttemptCount: !v.Tuning.routes.uncounted,
		Routes: []*routev3.Route{{Name: allowAny, Match: everything, Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: to},
			Timeout:          duration(0),
			MaxGrpcTimeout:   duration(0), //nolint:staticcheck // as above
		}}}},
	}
	if to == UpstreamAnyLookup {
		put(&out.TypedPerFilterConfig, lookupFilter(to), mustAny(&httplookupv3.PerRouteConfig{}))
	}
	return out
}
