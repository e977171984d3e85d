package gatewayapi

import (
	"regexp"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Calls of gRPC are requests for /SERVICE/METHOD: a GRPCRoute is an HTTPRoute in
// other words.

func (t *translator) readGRPCRoute(r *route, value any) bool {
	spec, ok := value.(*gatewayv1.GRPCRouteSpec)
	if !ok || !t.mine(r.object.Key.Namespace, &spec.CommonRouteSpec) {
		return false
	}
	r.common, r.hosts = &spec.CommonRouteSpec, spec.Hostnames
	for i := range spec.Rules {
		t.readGRPCRule(r, i, &spec.Rules[i])
	}
	return true
}

func (t *translator) readGRPCRule(r *route, i int, in *gatewayv1.GRPCRouteRule) {
	matches := in.Matches
	if len(matches) == 0 {
		matches = []gatewayv1.GRPCRouteMatch{{}}
	}
	refs := make([]gatewayv1.HTTPBackendRef, len(in.BackendRefs))
	for j, b := range in.BackendRefs {
		refs[j] = gatewayv1.HTTPBackendRef{BackendRef: b.BackendRef, Filters: httpFilters(b.Filters)}
	}
	filters := httpFilters(in.Filters)
	to := t.httpDestinations(r, refs)
	for _, m := range matches {
		x := &rule{route: r.object, index: len(r.rules), extra: Rule{Origin: r.object.Key},
			http: &networking.HTTPRoute{Name: ruleName(r, i, in.Name)}}
		x.http.Match = []*networking.HTTPMatchRequest{x.call(&m)}
		t.applyFilters(r, x, filters)
		to.set(x.http)
		r.rules = append(r.rules, x)
	}
}

// call translates a match of calls. The rank is by the length of the service's
// name, then of the method's.
func (x *rule) call(in *gatewayv1.GRPCRouteMatch) *networking.HTTPMatchRequest {
	out := &networking.HTTPMatchRequest{}
	if m := in.Method; m != nil {
		service, method := deref(m.Service, ""), deref(m.Method, "")
		x.rank.length = len(service) + len(method)
		switch deref(m.Type, gatewayv1.GRPCMethodMatchExact) {
		case gatewayv1.GRPCMethodMatchRegularExpression:
			x.rank.path = pathRegex
			out.Uri = regex("/" + anyOr(service) + "/" + anyOr(method))
		default:
			switch {
			case service != "" && method != "":
				x.rank.path = pathExact
				out.Uri = exact("/" + service + "/" + method)
			case service != "":
				out.Uri = &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: "/" + service}}
			case method != "":
				x.rank.path = pathRegex
				out.Uri = regex("/[^/]+/" + regexp.QuoteMeta(method))
			}
		}
	}
	for _, h := range in.Headers {
		addMatch(&out.Headers, strings.ToLower(string(h.Name)), h.Value, deref(h.Type, gatewayv1.GRPCHeaderMatchExact) == gatewayv1.GRPCHeaderMatchRegularExpression)
	}
	x.rank.headers = len(out.Headers)
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
