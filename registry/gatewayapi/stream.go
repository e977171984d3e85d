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
}

// placed is such a rule where it counts: for one server name ("" for those of the
// rule), on one port (0 for all).
type placed struct {
	rule *streamRule
	host string
	port uint32
}

func (t *translator) readTLSRoute(r *route, spec *gatewayv1.TLSRouteSpec) {
	r.hosts = spec.Hostnames
	for i := range spec.Rules {
		x := &streamRule{route: r.object, to: t.streamDestinations(r, spec.Rules[i].BackendRefs), tls: true}
		for _, h := range spec.Hostnames {
			x.hosts = append(x.hosts, string(h))
		}
		r.streams = append(r.streams, x)
	}
}

func (t *translator) readTCPRoute(r *route, spec *gatewayv1.TCPRouteSpec) {
	for i := range spec.Rules {
		r.streams = append(r.streams, &streamRule{route: r.object, to: t.streamDestinations(r, spec.Rules[i].BackendRefs)})
	}
}

// asTLS is the rule in a VirtualService that looks at server names; otherwise are
// those of a rule that has none.
func (p placed) asTLS(otherwise string) *networking.TLSRoute {
	hosts := p.rule.hosts
	switch {
	case p.rule.tls && p.host != "":
		hosts = []string{p.host}
	case len(hosts) == 0:
		hosts = []string{otherwise}
	}
	return &networking.TLSRoute{Match: []*networking.TLSMatchAttributes{{SniHosts: hosts, Port: p.port}}, Route: p.rule.to}
}

// asTCP is the rule in a VirtualService for whatever is sent.
func (p placed) asTCP() *networking.TCPRoute {
	out := &networking.TCPRoute{Route: p.rule.to}
	if p.port != 0 {
		out.Match = []*networking.L4MatchAttributes{{Port: p.port}}
	}
	return out
}
