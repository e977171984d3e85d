package gatewayapi

import (
	"regexp"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Calls of gRPC are requests for /SERVICE/METHOD: a GRPCRoute is an HTTPRoute in
// other words.

func (t *translator) readGRPCRoute(r *route, spec *gatewayv1.GRPCRouteSpec) {
	r.hosts = spec.Hostnames
	for i := range spec.Rules {
		in := &spec.Rules[i]
		x := requests{name: in.Name, filters: httpFilters(in.Filters)}
		for _, b := range in.BackendRefs {
			x.backends = append(x.backends, gatewayv1.HTTPBackendRef{BackendRef: b.BackendRef, Filters: httpFilters(b.Filters)})
		}
		for _, m := range orAny(in.Matches) {
			x.matches = append(x.matches, call(&m))
		}
		t.readRule(r, i, &x)
	}
}

// call translates a match of calls. The rank is by the length of the service's
// name, then of the method's.
func call(in *gatewayv1.GRPCRouteMatch) matching {
	out := matching{match: &networking.HTTPMatchRequest{}}
	if m := in.Method; m != nil {
		service, method := deref(m.Service, ""), deref(m.Method, "")
		out.rank.length = len(service) + len(method)
		switch {
		case deref(m.Type, gatewayv1.GRPCMethodMatchExact) == gatewayv1.GRPCMethodMatchRegularExpression:
			out.rank.path = pathRegex
			out.match.Uri = regex("/" + anyOr(service) + "/" + anyOr(method))
		case service != "" && method != "":
			out.rank.path = pathExact
			out.match.Uri = exact("/" + service + "/" + method)
		case service != "":
			out.match.Uri = &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: "/" + service}}
		case method != "":
			out.rank.path = pathRegex
			out.match.Uri = regex("/[^/]+/" + regexp.QuoteMeta(method))
		}
	}
	for _, h := range in.Headers {
		addMatch(&out.match.Headers, strings.ToLower(string(h.Name)), h.Value, deref(h.Type, gatewayv1.GRPCHeaderMatchExact) == gatewayv1.GRPCHeaderMatchRegularExpression)
	}
	out.rank.headers = len(out.match.Headers)
	return out
}

// anyOr is an expression for one segment.
func anyOr(re string) string {
	if re == "" {
		return "[^/]+"
	}
	return "(?:" + re + ")"
}

// httpFilters writes filters of calls as those of requests.
func httpFilters(in []gatewayv1.GRPCRouteFilter) []gatewayv1.HTTPRouteFilter {
	var out []gatewayv1.HTTPRouteFilter
	for _, f := range in {
		out = append(out, gatewayv1.HTTPRouteFilter{Type: gatewayv1.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier,
			ResponseHeaderModifier: f.ResponseHeaderModifier, RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef})
	}
	return out
}
