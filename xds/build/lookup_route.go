package build

import (
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httplookupv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/mesh"
)

// holdLookups makes the routes of a virtual host that lead to a wildcard look the
// names up, and holds them to it. Routes are shared: those that differ are copied.
func holdLookups(in Inputs, v View, h *routev3.VirtualHost) *routev3.VirtualHost {
	if v.Dialect == mesh.DialectGRPC {
		return h
	}
	shared := true
	for i, r := range h.Routes {
		to := lookupTargets(in, v, r.GetRoute())
		if len(to) == 0 {
			continue
		}
		if shared {
			h.Routes, shared = slices.Clone(h.Routes), false
		}
		h.Routes[i] = heldRoute(r, to)
		for _, at := range to {
			put(&h.TypedPerFilterConfig, lookupFilter(string(at.service.Key.Hostname)), mustAny(&httplookupv3.PerRouteConfig{}))
		}
	}
	return h
}

// lookupTargets lists the wildcards that a route may lead to.
func lookupTargets(in Inputs, v View, a *routev3.RouteAction) []served {
	var out []served
	add := func(upstream string) {
		id, ok := ParseUpstreamName(upstream)
		if !ok || !isWild(id.Host) { // as nearly always
			return
		}
		if at, ok := findServed(in, v, id.Host, id.Port); ok && byRequest(at.service) && !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	add(a.GetCluster())
	for _, w := range a.GetWeightedClusters().GetClusters() {
		add(w.GetName())
	}
	return out
}

// heldRoute takes requests only for names within all the wildcards that it may
// lead to. One that gives requests another host looks that up, if it is within
// them: then it does not matter what the client asked for.
func heldRoute(r *routev3.Route, to []served) *routev3.Route {
	out := proto.CloneOf(r)
	if host := r.GetRoute().GetHostRewriteLiteral(); host != "" && !slices.ContainsFunc(to, func(at served) bool { return !at.mayAsk(host) }) {
		for _, at := range to {
			put(&out.TypedPerFilterConfig, lookupFilter(string(at.service.Key.Hostname)), mustAny(&httplookupv3.PerRouteConfig{
				HostRewriteSpecifier: &httplookupv3.PerRouteConfig_HostRewriteLiteral{HostRewriteLiteral: host}}))
		}
		return out
	}
	for _, at := range to {
		out.Match.Headers = append(out.Match.Headers, &routev3.HeaderMatcher{Name: headerAuthority,
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: regexMatcher(at.askable())}}}})
	}
	return out
}

// askable is the pattern of the Host headers that may be looked up for a
// wildcard: its names, without a port or with one of the service's own.
func (at served) askable() string {
	ports := strconv.Itoa(int(at.port.Number))
	if t := at.port.TargetPort; t != 0 && t != at.port.Number {
		ports += "|" + strconv.Itoa(int(t))
	}
	return `(?i)[^:/@]+` + regexp.QuoteMeta(strings.TrimPrefix(string(at.service.Key.Hostname), "*")) + `\.?(:(` + ports + `))?`
}

// mayAsk reports whether a host, as it stands in a Host header, is within the
// wildcard and on a port of the service.
func (at served) mayAsk(host string) bool {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = host, ""
	}
	n, ok := parsePort(port)
	return withinWildcard(name, at.service.Key.Hostname) && (port == "" || ok && (n == at.port.Number || n == at.port.TargetPort))
}

// withinWildcard reports whether a name, which may be a wildcard itself, is
// within a wildcard.
func withinWildcard(name string, wildcard mesh.Hostname) bool {
	return len(name) >= len(wildcard) && covers(wildcard, mesh.Hostname(strings.ToLower(name)))
}
