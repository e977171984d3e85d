package gatewayapi

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

const (
	// defaultAttempts and defaultRetryOn are how requests are sent again if a rule
	// says how, but not how often or when.
	defaultAttempts = 2
	defaultRetryOn  = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
)

func (t *translator) readHTTPRoute(r *route, spec *gatewayv1.HTTPRouteSpec) {
	r.hosts = spec.Hostnames
	for i := range spec.Rules {
		in := &spec.Rules[i]
		x := requests{name: in.Name, filters: in.Filters, backends: in.BackendRefs, timeouts: in.Timeouts, retry: in.Retry}
		for _, m := range orAny(in.Matches) {
			x.matches = append(x.matches, r.match(&m))
		}
		t.readRule(r, i, &x)
	}
}

// orAny stands in for no match: one that everything does.
func orAny[T any](matches []T) []T {
	if len(matches) == 0 {
		return make([]T, 1)
	}
	return matches
}

func ruleName(r *route, i int, own *gatewayv1.SectionName) string {
	name := fmt.Sprintf("%s.%s.%d", r.object.Key.Namespace, r.object.Key.Name, i)
	if own != nil {
		name += "." + string(*own)
	}
	return name
}

// setTimeouts translates timeouts and retries. Timeouts of single attempts take
// the form of retries: without any the route's own is bounded instead.
func setTimeouts(r *route, out *networking.HTTPRoute, in *gatewayv1.HTTPRouteTimeouts, retry *gatewayv1.HTTPRouteRetry) {
	if retry != nil {
		out.Retries = &networking.HTTPRetry{Attempts: int32(max(0, min(deref(retry.Attempts, defaultAttempts), 1000))), RetryOn: defaultRetryOn}
		for _, c := range retry.Codes {
			out.Retries.RetryOn += fmt.Sprintf(",%d", c)
		}
		if retry.Backoff != nil {
			out.Retries.Backoff = r.duration(*retry.Backoff)
		}
	}
	if in == nil {
		return
	}
	if in.Request != nil {
		out.Timeout = r.duration(*in.Request)
	}
	if in.BackendRequest == nil {
		return
	}
	d := r.duration(*in.BackendRequest)
	if d.AsDuration() == 0 {
		return
	}
	if out.Retries == nil {
		out.Retries = &networking.HTTPRetry{Attempts: defaultAttempts, RetryOn: defaultRetryOn}
	}
	out.Retries.PerTryTimeout = d
	if out.Retries.Attempts == 0 && (out.Timeout.AsDuration() == 0 || d.AsDuration() < out.Timeout.AsDuration()) {
		out.Timeout = d
	}
}

// duration reads a duration; what is none counts as none.
func (r *route) duration(d gatewayv1.Duration) *durationpb.Duration {
	x, err := time.ParseDuration(string(d))
	if err != nil || x < 0 {
		r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "%q is not a duration", d)
		return nil
	}
	return durationpb.New(x)
}

// match translates a match; without a match if it cannot be.
func (r *route) match(in *gatewayv1.HTTPRouteMatch) matching {
	out := matching{match: &networking.HTTPMatchRequest{}}
	kind, value := gatewayv1.PathMatchPathPrefix, "/"
	if in.Path != nil {
		kind, value = deref(in.Path.Type, kind), deref(in.Path.Value, value)
	}
	switch kind {
	case gatewayv1.PathMatchPathPrefix:
		if value != "/" {
			value = strings.TrimSuffix(value, "/")
		}
		out.match.Uri = &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: value}}
		out.rank.path = pathPrefix
	case gatewayv1.PathMatchExact:
		out.match.Uri = exact(value)
		out.rank.path = pathExact
	case gatewayv1.PathMatchRegularExpression:
		out.match.Uri = regex(value)
		out.rank.path = pathRegex
	default:
		r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "paths cannot be matched by %s", kind)
		return matching{}
	}
	out.rank.length = len(value)
	if in.Method != nil {
		out.match.Method = exact(string(*in.Method))
		out.rank.method = true
	}
	for _, h := range in.Headers {
		addMatch(&out.match.Headers, strings.ToLower(string(h.Name)), h.Value, deref(h.Type, gatewayv1.HeaderMatchExact) == gatewayv1.HeaderMatchRegularExpression)
	}
	for _, p := range in.QueryParams {
		addMatch(&out.match.QueryParams, string(p.Name), p.Value, deref(p.Type, gatewayv1.QueryParamMatchExact) == gatewayv1.QueryParamMatchRegularExpression)
	}
	out.rank.headers, out.rank.params = len(out.match.Headers), len(out.match.QueryParams)
	return out
}

// addMatch adds a condition; of several on one name the first counts.
func addMatch(to *map[string]*networking.StringMatch, name, value string, isRegex bool) {
	if *to == nil {
		*to = map[string]*networking.StringMatch{}
	}
	if _, twice := (*to)[name]; twice {
		return
	}
	if isRegex {
		(*to)[name] = regex(value)
	} else {
		(*to)[name] = exact(value)
	}
}

func exact(s string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: s}}
}

func regex(s string) *networking.StringMatch {
	return &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: s}}
}

// fails makes a rule answer that it cannot do what it should.
func fails(out *networking.HTTPRoute) {
	out.Route, out.Redirect, out.Rewrite, out.Mirrors, out.Retries, out.Timeout = nil, nil, nil, nil, nil, nil
	out.DirectResponse = &networking.HTTPDirectResponse{Status: http.StatusInternalServerError}
}
