package build

import (
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networkingv1 "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// passthroughServer is one port of a router on which TLS is passed on by its
// server name, unopened: a server of a Gateway with mode AUTO_PASSTHROUGH.
type passthroughServer struct {
	// port is where the router's pods listen.
	port uint16
	// namespace is the Gateway's, which "." in a host stands for.
	namespace string
	hosts     []string
}

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
// oldest Gateway first.
func passthroughServers(in Inputs, v View) []passthroughServer {
	if v.Kind != mesh.ProxyRouter || v.Dialect == mesh.DialectGRPC {
		return nil
	}
	gateways := in.Catalog.Objects(mesh.KindGateway)
	if len(gateways) == 0 {
		return nil
	}
	var out []passthroughServer
	spec := v.Inbound.Spec()
	for _, o := range gateways {
		g, ok := o.Spec.(*networkingv1.Gateway)
		if !ok || !selects(g.GetSelector(), spec.Labels) {
			continue
		}
		for _, s := range g.GetServers() {
			number := s.GetPort().GetNumber()
			if s.GetTls().GetMode() != networkingv1.ServerTLSSettings_AUTO_PASSTHROUGH || number == 0 || number > 65535 {
				continue
			}
			port := uint16(number)
			if opened, ok := spec.Opened[port]; ok {
				port = opened
			}
			out = append(out, passthroughServer{port: port, namespace: o.Key.Namespace, hosts: s.GetHosts()})
		}
	}
	return out
}

// serves reports whether one of the server's hosts names the service. A host is
// HOST or NAMESPACE/HOST, where HOST may begin with "*." or be "*" and
// NAMESPACE may be "*" or ".".
func (p passthroughServer) serves(s *mesh.Service) bool {
	return slices.ContainsFunc(p.hosts, func(h string) bool {
		if ns, host, ok := strings.Cut(h, "/"); ok {
			if ns == "." {
				ns = p.namespace
			}
			if ns != "*" && ns != s.Key.Namespace {
				return false
			}
			h = host
		}
		_, ok := hostRank(strings.ToLower(h), s.Key.Hostname)
		return ok
	})
}

// passesAnything reports whether any service port is passed on at a port: if
// not, there is no listener.
func passesAnything(in Inputs, v View, port uint16) bool {
	servers := serversAt(in, v, port)
	for s := range in.Catalog.Services() {
		if len(passthroughPorts(in, v, s)) > 0 && slices.ContainsFunc(servers, func(p passthroughServer) bool { return p.serves(s) }) {
			return true
		}
	}
	return false
}

func serversAt(in Inputs, v View, port uint16) []passthroughServer {
	return slices.DeleteFunc(passthroughServers(in, v), func(s passthroughServer) bool { return s.port != port })
}

// passthroughChains makes the chains of one passthrough port: for every service
// port that its servers' hosts name, and each subset of it, one by server name and
// by the protocols that only mesh peers offer, so that nothing but mesh mTLS gets
// in. The stream is passed to the SNI-DNAT upstream unopened.
func passthroughChains(f *filters, port uint16) ([]*listenerv3.FilterChain, error) {
	servers := serversAt(f.in, f.v, port)
	var chains []*listenerv3.FilterChain
	for _, s := range f.in.Catalog.SortedServices() {
		if !slices.ContainsFunc(servers, func(p passthroughServer) bool { return p.serves(s) }) {
			continue
		}
		rule := ruleFor(f.in, f.v, s)
		for _, p := range passthroughPorts(f.in, f.v, s) {
			for _, sni := range rule.names(nil, UpstreamID{Direction: DirectionOutbound, Port: p.Number, Host: s.Key.Hostname, SNI: true}) {
				chain, err := passthroughChain(f, sni)
				if err != nil {
					return nil, err
				}
				chains = append(chains, chain)
			}
		}
	}
	return chains, nil
}

func passthroughChain(f *filters, sni string) (*listenerv3.FilterChain, error) {
	tcp, err := f.tcp(sni, mesh.ProtocolTLS) // which it is, whatever is within
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
