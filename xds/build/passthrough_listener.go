package build

import (
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// ServesPassthrough reports whether the view is that of a router that at least
// one Gateway makes an east-west gateway: one with an AUTO_PASSTHROUGH server
// whose selector matches the router's labels. Such a router has an SNI-DNAT
// upstream for every port of every service inside the mesh that it sees, as
// Istio's have, also of those that none of its servers names.
func ServesPassthrough(in Inputs, v View) bool {
	return len(passthroughServers(in, v)) > 0
}

// passthroughPorts lists the ports of a service that an east-west gateway has
// upstreams for: TCP ports of services inside the mesh that the view may see. Of
// these it serves the ones that a host of one of its servers names.
func passthroughPorts(in Inputs, v View, s *mesh.Service) []mesh.Port {
	if s.Lead.MeshExternal || !sees(in, v, s) || strings.Contains(string(s.Key.Hostname), "*") {
		return nil // nobody asks for a pattern by server name
	}
	return slices.DeleteFunc(servedPorts(s), func(p mesh.Port) bool {
		_, ok := serves(in, v, s, p.Number)
		return !ok
	})
}

// passthroughServers lists the view's AUTO_PASSTHROUGH servers, those of the
// oldest Gateway first, also those of ports that other servers took: what a
// router has upstreams for does not depend on who has which port.
func passthroughServers(in Inputs, v View) []*gatewayServer {
	return slices.DeleteFunc(routerServers(in, v), func(x *gatewayServer) bool { return x.kind != serverAutoPassthrough })
}

// passes reports whether one of the server's hosts names the service.
func (x *gatewayServer) passes(s *mesh.Service) bool {
	return slices.ContainsFunc(x.hosts, func(h serverHost) bool {
		return (h.namespace == "" || h.namespace == s.Key.Namespace) && covers(h.host, s.Key.Hostname)
	})
}

// passesAnything reports whether any service port is passed on at a port: if
// not, there is no listener.
func passesAnything(in Inputs, v View, port uint16) bool {
	servers := serversAt(in, v, port)
	for s := range in.Catalog.Services() {
		if len(passthroughPorts(in, v, s)) > 0 && slices.ContainsFunc(servers, func(x *gatewayServer) bool { return x.passes(s) }) {
			return true
		}
	}
	return false
}

func serversAt(in Inputs, v View, port uint16) []*gatewayServer {
	return slices.DeleteFunc(passthroughServers(in, v), func(x *gatewayServer) bool { return x.listen != port })
}

// passthroughChains makes the chains of one passthrough port: for every service
// port that its servers' hosts name, and each subset of it, one by server name and
// by the protocols that only mesh peers offer, so that nothing but mesh mTLS gets
// in. The stream is passed to the SNI-DNAT upstream unopened.
func passthroughChains(f *filters, port uint16) ([]*listenerv3.FilterChain, error) {
	servers := serversAt(f.in, f.v, port)
	var chains []*listenerv3.FilterChain
	for _, s := range f.in.Catalog.SortedServices() {
		if !slices.ContainsFunc(servers, func(x *gatewayServer) bool { return x.passes(s) }) {
			continue
		}
		rule := ruleFor(f.in, f.v, s)
		for _, p := range passthroughPorts(f.in, f.v, s) {
			for _, sni := range rule.names(nil, UpstreamID{Direction: DirectionOutbound, Port: p.Number, Host: s.Key.Hostname, SNI: true}) {
				chain, err := passthroughChain(f, sni, sniStat(f.in, served{s, p}, sni))
				if err != nil {
					return nil, err
				}
				chains = append(chains, chain)
			}
		}
	}
	return chains, nil
}

// sniStat is the name under which an SNI-DNAT upstream of a service port and its
// connections are counted.
func sniStat(in Inputs, at served, sni string) string {
	id, ok := parseAnyName(sni)
	if !ok {
		return sni
	}
	return upstreamStat(in, at, id, sni)
}

func passthroughChain(f *filters, sni, stat string) (*listenerv3.FilterChain, error) {
	tcp, err := f.tcpCounted(sni, stat, mesh.ProtocolTLS) // which it is, whatever is within
	if err != nil {
		return nil, err
	}
	return &listenerv3.FilterChain{
		FilterChainMatch: &listenerv3.FilterChainMatch{
			ServerNames:          []string{sni},
			ApplicationProtocols: meshProtocols(),
		},
		Filters:                       tcp,
		TransportSocketConnectTimeout: duration(connectTimeout),
	}, nil
}
