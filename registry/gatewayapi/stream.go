package gatewayapi

import (
	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// streamRule is a rule of a route for connections.
type streamRule struct {
	route *mesh.Object
	to    []*networking.RouteDestination
	// hosts are the server names it is for, empty for all.
	hosts []string
	tls   bool
	port  uint32
}

// at is the rule for one server name; "" for all.
func (s *streamRule) at(host string) *streamRule {
	out := *s
	if s.tls && host != "" {
		out.hosts = []string{host}
	}
	return &out
}

func (s *streamRule) onPort(port uint32) *streamRule {
	out := *s
	out.port = port
	return &out
}

func (t *translator) readTLSRoute(r *route, value any) bool {
	spec, ok := value.(*gatewayv1.TLSRouteSpec)
	if !ok || !t.mine(r.object.Key.Namespace, &spec.CommonRouteSpec) {
		return false
	}
	r.common, r.hosts = &spec.CommonRouteSpec, spec.Hostnames
	for i := range spec.Rules {
		x := &streamRule{route: r.object, to: t.streamDestinations(r, spec.Rules[i].BackendRefs), tls: true}
		for _, h := range spec.Hostnames {
			x.hosts = append(x.hosts, string(h))
		}
		r.streams = append(r.streams, x)
	}
	return true
}

func (t *translator) readTCPRoute(r *route, value any) bool {
	spec, ok := value.(*gatewayv1.TCPRouteSpec)
	if !ok || !t.mine(r.object.Key.Namespace, &spec.CommonRouteSpec) {
		return false
	}
	r.common = &spec.CommonRouteSpec
	for i := range spec.Rules {
		r.streams = append(r.streams, &streamRule{route: r.object, to: t.streamDestinations(r, spec.Rules[i].BackendRefs)})
	}
	return true
}

// asTLS is the rule in a VirtualService that looks at server names.
func (s *streamRule) asTLS(host string) *networking.TLSRoute {
	hosts := s.hosts
	if len(hosts) == 0 {
		hosts = []string{host}
	}
	return &networking.TLSRoute{Match: []*networking.TLSMatchAttributes{{SniHosts: hosts, Port: s.port}}, Route: s.to}
}

// asTCP is the rule in a VirtualService for whatever is sent.
func (s *streamRule) asTCP() *networking.TCPRoute {
	out := &networking.TCPRoute{Route: s.to}
	if s.port != 0 {
		out.Match = []*networking.L4MatchAttributes{{Port: s.port}}
	}
	return out
}
