package build

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/isthmus-mesh/isthmus/mesh"
	"github.com/isthmus-mesh/isthmus/xds/match"
)

// RouteExplanation tells which rule takes a request, and why others do not.
type RouteExplanation struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	// Configuration and VirtualHost are what the request falls into.
	Configuration string `json:"configuration"`
	VirtualHost   string `json:"virtualHost,omitempty"`
	// Routes are tried in order, up to the one that takes the request.
	Routes []ExplainedRoute `json:"routes"`
	// Action says what becomes of the request.
	Action string `json:"action"`
	// Upstreams share the requests.
	Upstreams []ExplainedShare `json:"upstreams,omitempty"`
	// Lost are VirtualServices with hosts that the request's host belongs to, none
	// of whose routes are tried.
	Lost []ExplainedRule `json:"lost,omitempty"`
}

// ExplainedRoute is one route and what became of it.
type ExplainedRoute struct {
	Name string `json:"name,omitempty"`
	// Rule is the VirtualService that it comes from, NAMESPACE/NAME; "" for the
	// route that a service has without any.
	Rule string `json:"rule,omitempty"`
	// Match says what it takes.
	Match string `json:"match"`
	Taken bool   `json:"taken"`
	// Reason says why it does not take the request.
	Reason string `json:"reason,omitempty"`
}

// ExplainedShare is an upstream with its percentage of requests, 0 to 100.
type ExplainedShare struct {
	Upstream string  `json:"upstream"`
	Percent  float64 `json:"percent"`
}

// ExplainedRule is a VirtualService and why it has no part.
type ExplainedRule struct {
	Rule   string `json:"rule"`
	Reason string `json:"reason"`
}

// ExplainRoute tells where a request of a proxy with the view goes that is meant
// for a port. It reads the routes that the proxy is sent. nil if the proxy does
// not route requests to the host and port.
func ExplainRoute(in Inputs, v View, r match.Request, port uint16) (*RouteExplanation, error) {
	r.Method, r.Path = cmp.Or(r.Method, "GET"), cmp.Or(r.Path, "/")
	name, routes, err := routesFor(in, v, mesh.Hostname(r.Host), port)
	if routes == nil || err != nil {
		return nil, err
	}
	x := &RouteExplanation{Method: r.Method, Path: r.Path, Configuration: name, Routes: []ExplainedRoute{}}
	tried := map[string]struct{}{}
	if h := match.VirtualHost(routes, r.Host); h == nil {
		x.Action = "404: no virtual host is for " + r.Host
	} else {
		x.VirtualHost = h.GetName()
		if err := x.try(h, &r, tried); err != nil {
			return nil, err
		}
	}
	x.Lost = lostRules(in, v, mesh.Hostname(r.Host), tried)
	return x, nil
}

// routesFor finds the route configuration that requests for a host and port go
// through: for a router that of a server on the port, the one with the host if
// several open TLS there.
func routesFor(in Inputs, v View, host mesh.Hostname, port uint16) (string, *routev3.RouteConfiguration, error) {
	var names []string
	switch {
	case v.Dialect == mesh.DialectGRPC:
		names = []string{UpstreamName(DirectionOutbound, port, "", host)}
	case v.Kind == mesh.ProxyRouter:
		for _, p := range routerPorts(in, v) {
			for _, s := range p.servers {
				if (s.number == port || s.listen == port) && (s.kind == serverHTTP || s.serves(host)) && s.routeName() != "" {
					names = append(names, s.routeName())
				}
			}
		}
	default:
		names = []string{strconv.Itoa(int(port)), sniffedRoute(host, port)}
	}
	for _, n := range names {
		if r, err := buildRoutes(in, v, n); r != nil || err != nil {
			return n, r, err
		}
	}
	return "", nil, nil
}

// serves reports whether connections for a server name come to the server.
func (x *gatewayServer) serves(host mesh.Hostname) bool {
	return len(x.names) == 0 || slices.ContainsFunc(x.names, func(n string) bool { return covers(mesh.Hostname(n), host) })
}

// try goes through the routes of a virtual host.
func (x *RouteExplanation) try(h *routev3.VirtualHost, r *match.Request, tried map[string]struct{}) error {
	if h.GetRequireTls() == routev3.VirtualHost_ALL {
		x.Action = "301: plain HTTP is redirected to HTTPS (httpsRedirect)"
		return nil
	}
	x.Action = "404: no route takes the request"
	for _, route := range h.GetRoutes() {
		rule := ruleOf(route)
		tried[rule] = struct{}{}
		why, err := match.Route(route.GetMatch(), r)
		if err != nil {
			return fmt.Errorf("explain route %s of %s: %w", route.GetName(), h.GetName(), err)
		}
		x.Routes = append(x.Routes, ExplainedRoute{Name: route.GetName(), Rule: rule, Match: matchText(route.GetMatch()), Taken: why == "", Reason: why})
		if why == "" {
			x.act(route)
			return nil
		}
	}
	return nil
}

func (x *RouteExplanation) act(route *routev3.Route) {
	switch a := route.GetAction().(type) {
	case *routev3.Route_DirectResponse:
		x.Action = fmt.Sprintf("%d: the proxy answers itself", a.DirectResponse.GetStatus())
	case *routev3.Route_Redirect:
		x.Action = "redirected"
	case *routev3.Route_Route:
		x.Action = "sent on"
		for _, m := range a.Route.GetRequestMirrorPolicies() {
			x.Action += ", and a copy to " + m.GetCluster()
		}
		if t := a.Route.GetTimeout().AsDuration(); t > 0 {
			x.Action += fmt.Sprintf(", timeout %s", t)
		}
		if n := a.Route.GetRetryPolicy().GetNumRetries().GetValue(); n > 0 {
			x.Action += fmt.Sprintf(", up to %d retries", n)
		}
		x.Upstreams = shares(a.Route)
	}
	if f := route.GetTypedPerFilterConfig()[faultName]; f != nil {
		x.Action += ", with injected faults"
	}
}

func shares(a *routev3.RouteAction) []ExplainedShare {
	w := a.GetWeightedClusters().GetClusters()
	if len(w) == 0 {
		return []ExplainedShare{{a.GetCluster(), 100}}
	}
	var total float64
	for _, c := range w {
		total += float64(c.GetWeight().GetValue())
	}
	var out []ExplainedShare
	for _, c := range w {
		out = append(out, ExplainedShare{c.GetName(), 100 * float64(c.GetWeight().GetValue()) / total})
	}
	return out
}

// ruleOf is the VirtualService that a route names as its origin.
func ruleOf(r *routev3.Route) string {
	path := r.GetMetadata().GetFilterMetadata()[metadataIstio].GetFields()[metadataConfig].GetStringValue()
	parts := strings.Split(path, "/")
	if len(parts) < 4 {
		return ""
	}
	return parts[len(parts)-3] + "/" + parts[len(parts)-1]
}

// matchText tells in short what a route takes.
func matchText(m *routev3.RouteMatch) string {
	parts := []string{"any path"}
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		if p.Prefix != "/" {
			parts[0] = "path " + p.Prefix + "*"
		}
	case *routev3.RouteMatch_Path:
		parts[0] = "path " + p.Path
	case *routev3.RouteMatch_PathSeparatedPrefix:
		parts[0] = "path " + p.PathSeparatedPrefix + " and below"
	case *routev3.RouteMatch_SafeRegex:
		parts[0] = "path by " + p.SafeRegex.GetRegex()
	}
	for _, h := range m.GetHeaders() {
		parts = append(parts, "header "+h.GetName())
	}
	for _, q := range m.GetQueryParameters() {
		parts = append(parts, "query "+q.GetName())
	}
	return strings.Join(parts, ", ")
}

// lostRules lists the VirtualServices for a host of which no route was tried,
// with the reason.
func lostRules(in Inputs, v View, host mesh.Hostname, tried map[string]struct{}) []ExplainedRule {
	var out []ExplainedRule
	all := slices.SortedFunc(maps.Values(ruleTables(in).byName), func(a, b *virtualService) int { return a.order - b.order })
	for _, vs := range all {
		if _, ok := tried[vs.name.String()]; ok || !slices.ContainsFunc(vs.hosts, func(h mesh.Hostname) bool { return covers(h, host) }) {
			continue
		}
		out = append(out, ExplainedRule{vs.name.String(), lostReason(in, v, vs, host)})
	}
	return out
}

func lostReason(in Inputs, v View, vs *virtualService, host mesh.Hostname) string {
	switch {
	case !vs.bindsTo(in, v):
		if v.Kind == mesh.ProxyRouter {
			return "it is bound to " + strings.Join(vs.gateways, ", ") + ", none of which selects this router for the host"
		}
		return "it is bound to gateways only (" + strings.Join(vs.gateways, ", ") + "); add mesh to spec.gateways for sidecars"
	case exportRank(in, v.Namespace, vs) == ruleHidden:
		return fmt.Sprintf("it is not exported to namespace %s (exportTo %s)", v.Namespace, cmp.Or(strings.Join(vs.exportTo, ", "), "of MeshConfig"))
	case ruleRankOf(in, v, vs) == ruleHidden:
		return "the Sidecar " + v.Sidecar.String() + " does not import its hosts"
	case len(vs.http) == 0:
		return "it has no rules for HTTP"
	case !slices.Contains(vs.hosts, host):
		return "another has a more specific host, or the host is served before wildcards are looked at"
	}
	return "another one for the same host is nearer (exported to this namespace only) or older, or none of its rules can hold here (port, gateways, source labels)"
}

// bindsTo reports whether a VirtualService is for proxies of the view's kind.
func (vs *virtualService) bindsTo(in Inputs, v View) bool {
	if v.Kind != mesh.ProxyRouter {
		return slices.Contains(vs.gateways, meshGateway)
	}
	for _, p := range routerPorts(in, v) {
		for _, s := range p.servers {
			if slices.Contains(vs.gateways, s.bound) && len(s.common(vs)) > 0 {
				return true
			}
		}
	}
	return false
}
