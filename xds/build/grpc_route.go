package build

import (
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// grpcRoutes makes the route configuration that a gRPC client's listener names:
// everything goes to the service's upstream. The listener was asked for by host,
// so every authority is meant for it. gRPC refuses much of what Envoy takes in a
// route, so there is nothing else in it: retries are by gRPC's own rules.
func grpcRoutes(in Inputs, v View, name string) *routev3.RouteConfiguration {
	id, ok := ParseUpstreamName(name)
	if !ok || id.Direction != DirectionOutbound || id.Subset != "" {
		return nil
	}
	if _, ok := findServed(in, v, id.Host, id.Port); !ok {
		return nil
	}
	return &routev3.RouteConfiguration{
		Name: name,
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    sniffedRoute(id.Host, id.Port),
			Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Name:  defaultRoute,
				Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: ""}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name},
				}},
			}},
		}},
	}
}
