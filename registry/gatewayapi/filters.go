package gatewayapi

import (
	"net/http"
	"regexp"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

const wholePercent = 100

// applyFilters translates the filters of a rule.
func (t *translator) applyFilters(r *route, x *rule, filters []gatewayv1.HTTPRouteFilter) {
	for i := range filters {
		f := &filters[i]
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			headersOf(x.http).Request = headerOperations(f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			headersOf(x.http).Response = headerOperations(f.ResponseHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
			x.redirect(r, f.RequestRedirect)
		case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
			x.rewrite(r, f.URLRewrite)
		case f.Type == gatewayv1.HTTPRouteFilterRequestMirror && f.RequestMirror != nil:
			t.mirror(r, x.http, f.RequestMirror)
		case f.Type == gatewayv1.HTTPRouteFilterCORS && f.CORS != nil:
			x.http.CorsPolicy = cors(f.CORS)
		case f.Type == gatewayv1.HTTPRouteFilterExtensionRef && f.ExtensionRef != nil:
			r.unresolved(gatewayv1.RouteReasonInvalidKind, "filter %s is a %s; there are no filters of one's own", f.ExtensionRef.Name, f.ExtensionRef.Kind)
			fails(x.http)
			return
		default:
			r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "filter %s is not known, or empty", f.Type)
		}
	}
	if x.http.Redirect != nil && x.http.Rewrite != nil {
		r.unaccepted(gatewayv1.RouteReasonIncompatibleFilters, "a rule redirects or rewrites, not both")
	}
}

// backendHeaders translates the filters of a backend. Of those only the ones for
// headers can be.
func backendHeaders(r *route, filters []gatewayv1.HTTPRouteFilter) *networking.Headers {
	if len(filters) == 0 {
		return nil
	}
	out := &networking.Headers{}
	for _, f := range filters {
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			out.Request = headerOperations(f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			out.Response = headerOperations(f.ResponseHeaderModifier)
		default:
			r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "filter %s is not known at a backend; those for headers are", f.Type)
		}
	}
	return out
}

func headersOf(h *networking.HTTPRoute) *networking.Headers {
	if h.Headers == nil {
		h.Headers = &networking.Headers{}
	}
	return h.Headers
}

func headerOperations(f *gatewayv1.HTTPHeaderFilter) *networking.Headers_HeaderOperations {
	out := &networking.Headers_HeaderOperations{Remove: f.Remove}
	values := func(list []gatewayv1.HTTPHeader) map[string]string {
		var m map[string]string
		for _, h := range list {
			if m == nil {
				m = map[string]string{}
			}
			if _, twice := m[string(h.Name)]; !twice {
				m[string(h.Name)] = h.Value
			}
		}
		return m
	}
	out.Set, out.Add = values(f.Set), values(f.Add)
	return out
}

// prefix is the path prefix that the rule matches, "" if it matches otherwise.
func (x *rule) prefix() string { return x.http.GetMatch()[0].GetUri().GetPrefix() }

// redirect translates a redirect. Without a scheme the port stays that of the
// listener; with one it is the scheme's own.
func (x *rule) redirect(r *route, f *gatewayv1.HTTPRequestRedirectFilter) {
	out := &networking.HTTPRedirect{Authority: string(deref(f.Hostname, "")), Scheme: strings.ToLower(deref(f.Scheme, "")),
		RedirectCode: uint32(deref(f.StatusCode, http.StatusFound))}
	switch {
	case f.Port != nil:
		out.RedirectPort = &networking.HTTPRedirect_Port{Port: uint32(*f.Port)}
	case out.Scheme == "":
		out.RedirectPort = &networking.HTTPRedirect_DerivePort{DerivePort: networking.HTTPRedirect_FROM_REQUEST_PORT}
	case out.Scheme == "https":
		out.RedirectPort = &networking.HTTPRedirect_Port{Port: 443}
	default:
		out.RedirectPort = &networking.HTTPRedirect_Port{Port: 80}
	}
	if p := f.Path; p != nil {
		switch {
		case p.Type == gatewayv1.FullPathHTTPPathModifier && p.ReplaceFullPath != nil:
			out.Uri = *p.ReplaceFullPath
		case p.Type == gatewayv1.PrefixMatchHTTPPathModifier && p.ReplacePrefixMatch != nil && x.prefix() != "":
			out.PrefixRewrite = absolute(*p.ReplacePrefixMatch)
			x.extra.RedirectFrom = x.prefix()
		default:
			r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "a redirect replaces the path by %s, which this rule cannot", p.Type)
		}
	}
	x.http.Redirect = out
}

// rewrite translates a change of the path or host of requests.
func (x *rule) rewrite(r *route, f *gatewayv1.HTTPURLRewriteFilter) {
	out := &networking.HTTPRewrite{Authority: string(deref(f.Hostname, ""))}
	if p := f.Path; p != nil {
		switch {
		case p.Type == gatewayv1.FullPathHTTPPathModifier && p.ReplaceFullPath != nil:
			out.UriRegexRewrite = &networking.RegexRewrite{Match: "^/.*", Rewrite: escapeRewrite(absolute(*p.ReplaceFullPath))}
		case p.Type == gatewayv1.PrefixMatchHTTPPathModifier && p.ReplacePrefixMatch != nil && x.prefix() != "":
			out.UriRegexRewrite = prefixRewrite(x.prefix(), *p.ReplacePrefixMatch)
		default:
			r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "a rewrite replaces the path by %s, which this rule cannot", p.Type)
		}
	}
	x.http.Rewrite = out
}

// RedirectPath is the rewrite of the path of a redirect that replaces a prefix;
// nil if an expression is not needed for it.
func (r Rule) RedirectPath(to string) *networking.RegexRewrite {
	if r.RedirectFrom == "" {
		return nil
	}
	return prefixRewrite(r.RedirectFrom, to)
}

// prefixRewrite replaces a prefix that is whole segments of a path. Whether
// either ends with a slash makes no difference: there is one between what
// replaces the prefix and what follows it, and none if nothing does, except that
// a path never becomes empty.
func prefixRewrite(from, to string) *networking.RegexRewrite {
	from, to = strings.TrimSuffix(from, "/"), strings.TrimSuffix(absolute(to), "/")
	if to == "" {
		return &networking.RegexRewrite{Match: "^" + regexp.QuoteMeta(from) + "(/*)(.*)", Rewrite: `/\2`}
	}
	if from == "" {
		return &networking.RegexRewrite{Match: "^(/.*)", Rewrite: escapeRewrite(to) + `\1`}
	}
	return &networking.RegexRewrite{Match: "^" + regexp.QuoteMeta(from) + "(/.*)?", Rewrite: escapeRewrite(to) + `\1`}
}

func absolute(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/" + path
}

// escapeRewrite keeps a text from being read as a reference to a group.
func escapeRewrite(s string) string { return strings.ReplaceAll(s, `\`, `\\`) }

// mirror copies requests, or a share of them, to a backend. One that cannot be
// used gets none.
func (t *translator) mirror(r *route, out *networking.HTTPRoute, f *gatewayv1.HTTPRequestMirrorFilter) {
	d, ok := t.backend(r, &f.BackendRef)
	if !ok {
		return
	}
	m := &networking.HTTPMirrorPolicy{Destination: d}
	switch {
	case f.Percent != nil:
		m.Percentage = &networking.Percent{Value: min(wholePercent, max(0, float64(*f.Percent)))}
	case f.Fraction != nil:
		of := max(1, deref(f.Fraction.Denominator, wholePercent))
		m.Percentage = &networking.Percent{Value: min(wholePercent, wholePercent*float64(max(0, f.Fraction.Numerator))/float64(of))}
	}
	out.Mirrors = append(out.Mirrors, m)
}

// cors translates who else's pages may use the route.
func cors(f *gatewayv1.HTTPCORSFilter) *networking.CorsPolicy {
	out := &networking.CorsPolicy{}
	for _, o := range f.AllowOrigins {
		switch s := string(o); {
		case s == "*":
			out.AllowOrigins = append(out.AllowOrigins, regex(".*"))
		case strings.Contains(s, "*"):
			out.AllowOrigins = append(out.AllowOrigins, regex(strings.ReplaceAll(regexp.QuoteMeta(s), `\*`, ".*")))
		default:
			out.AllowOrigins = append(out.AllowOrigins, exact(s))
		}
	}
	for _, m := range f.AllowMethods {
		out.AllowMethods = append(out.AllowMethods, string(m))
	}
	for _, h := range f.AllowHeaders {
		out.AllowHeaders = append(out.AllowHeaders, string(h))
	}
	for _, h := range f.ExposeHeaders {
		out.ExposeHeaders = append(out.ExposeHeaders, string(h))
	}
	if f.AllowCredentials != nil {
		out.AllowCredentials = wrapperspb.Bool(*f.AllowCredentials)
	}
	if f.MaxAge > 0 {
		out.MaxAge = &durationpb.Duration{Seconds: int64(f.MaxAge)}
	}
	return out
}
