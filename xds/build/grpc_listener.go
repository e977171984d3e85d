package build

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/registry"
)

const (
	// grpcServerPrefix begins the name under which a gRPC server asks for its
	// listener; ADDRESS:PORT follows. It is the template in the bootstrap that
	// Istio's agent writes.
	grpcServerPrefix = "xds.istio.io/grpc/lds/inbound/"
	// grpcProvider is the certificate provider in that bootstrap.
	grpcProvider = "default"
)

// grpcListener makes what a gRPC client or server asks for by name.
func grpcListener(in Inputs, v View, name string) (*listenerv3.Listener, error) {
	if addr, ok := serverAddress(name); ok {
		return grpcServerListener(name, addr)
	}
	s, port := grpcTarget(in, v, name)
	if s == nil {
		return nil, nil
	}
	api, err := toAny(&hcmv3.HttpConnectionManager{
		StatPrefix:     name,
		RouteSpecifier: byRDS(UpstreamName(DirectionOutbound, port, "", s.Key.Hostname)).RouteSpecifier,
		HttpFilters:    []*hcmv3.HttpFilter{httpFilter(faultName, &faultv3.HTTPFault{}), httpFilter(routerName, &routerv3.Router{})},
	})
	if err != nil {
		return nil, err
	}
	return &listenerv3.Listener{Name: name, ApiListener: &listenerv3.ApiListener{ApiListener: api}}, nil
}

// grpcTarget finds the service and port that a client means by HOST:PORT. The
// host may be short, as it may be in DNS; a full name goes first.
func grpcTarget(in Inputs, v View, name string) (*mesh.Service, uint16) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 {
		return nil, 0
	}
	port, ok := parsePort(name[i+1:])
	if !ok {
		return nil, 0
	}
	host := strings.TrimSuffix(strings.ToLower(name[:i]), ".")
	for _, h := range fullHosts(host, v.Namespace, v.Domain) {
		if found, ok := findServed(in, v, h, port); ok {
			return found.service, port
		}
	}
	return nil, 0
}

// fullHosts lists what a resolver in the namespace would take a host name for:
// the reverse of [hostDomains].
func fullHosts(host, namespace, domain string) []mesh.Hostname {
	out := []mesh.Hostname{mesh.Hostname(host)}
	switch {
	case strings.HasSuffix(host, ".svc"):
		out = append(out, mesh.Hostname(host+"."+domain))
	case strings.Contains(host, "."):
		out = append(out, mesh.Hostname(host+".svc."+domain))
	default:
		out = append(out, mesh.Hostname(host+"."+namespace+".svc."+domain))
	}
	return out
}

// grpcListenersAffected lists every name under which a client may ask for the
// ports of the changed services.
func grpcListenersAffected(v View, c *registry.Change) []string {
	names := map[string]struct{}{}
	for _, ch := range c.Services {
		if !ch.Aspects.Has(registry.AspectDefinition) {
			continue
		}
		for _, s := range []*mesh.Service{ch.Before, ch.After} {
			if s == nil {
				continue
			}
			for _, host := range hostDomains(nil, string(s.Key.Hostname), v.Namespace, v.Domain) {
				for _, p := range s.Ports {
					names[sniffedRoute(mesh.Hostname(host), p.Number)] = struct{}{}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// serverAddress reads the address from the name of a server's listener.
func serverAddress(name string) (netip.AddrPort, bool) {
	rest, ok := strings.CutPrefix(name, grpcServerPrefix)
	if !ok {
		return netip.AddrPort{}, false
	}
	a, err := netip.ParseAddrPort(rest)
	return a, err == nil && a.Port() != 0 && a.Addr().Zone() == "" && a.String() == rest
}

// grpcServerListener makes a gRPC server's listener. It takes mesh mTLS only: a
// gRPC server cannot tell TLS from plain text on one port. The address is the
// one that the server asked for, which it compares with its own.
func grpcServerListener(name string, at netip.AddrPort) (*listenerv3.Listener, error) {
	routes := &routev3.RouteConfiguration{
		Name: UpstreamName(DirectionInbound, at.Port(), "", ""),
		VirtualHosts: []*routev3.VirtualHost{{
			Name: "any", Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_NonForwardingAction{NonForwardingAction: &routev3.NonForwardingAction{}},
			}},
		}},
	}
	hcm, err := networkFilter(hcmName, &hcmv3.HttpConnectionManager{
		StatPrefix:     routes.Name,
		RouteSpecifier: inline(routes).RouteSpecifier,
		HttpFilters:    []*hcmv3.HttpFilter{httpFilter(routerName, &routerv3.Router{})},
	})
	if err != nil {
		return nil, err
	}
	return &listenerv3.Listener{
		Name:             name,
		Address:          socketAddress(at.Addr().String(), at.Port()),
		TrafficDirection: inboundTraffic,
		FilterChains: []*listenerv3.FilterChain{{
			Name: "inbound", Filters: []*listenerv3.Filter{hcm}, TransportSocket: grpcServerTLS(),
		}},
	}, nil
}

// grpcServerTLS takes the workload's certificate and the mesh's roots from the
// agent. gRPC servers cannot check peers' names here; whom a server talks to is
// the business of its own authorization.
func grpcServerTLS() *corev3.TransportSocket {
	provider := func(name string) *tlsv3.CertificateProviderPluginInstance {
		return &tlsv3.CertificateProviderPluginInstance{InstanceName: grpcProvider, CertificateName: name}
	}
	return &corev3.TransportSocket{Name: tlsSocketName, ConfigType: &corev3.TransportSocket_TypedConfig{
		TypedConfig: mustAny(&tlsv3.DownstreamTlsContext{
			RequireClientCertificate: boolean(true),
			CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsCertificateProviderInstance: provider(agentIdentity),
				ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{
					ValidationContext: &tlsv3.CertificateValidationContext{CaCertificateProviderInstance: provider(agentRoots)},
				},
			},
		}),
	}}
}
