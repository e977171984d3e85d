package gatewayapi

import (
	"regexp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// The resource definitions refuse most of what proxies would. Folders have no
// definitions, and not everything can be said in one: whatever a proxy would
// refuse a whole configuration for is refused here, route by route.

// maxRegex bounds expressions, in bytes.
const maxRegex = 1024

// checkRule refuses a route with a rule that a proxy would not take.
func checkRule(r *route, out *networking.HTTPRoute) {
	for _, m := range out.GetMatch() {
		checkMatch(r, "path", m.GetUri())
		if p := m.GetUri().GetPrefix() + m.GetUri().GetExact(); p != "" && (!strings.HasPrefix(p, "/") || !printable(p)) {
			r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "path %q does not begin with a slash, or is not printable", p)
		}
		checkMatch(r, "method", m.GetMethod())
		for name, is := range m.GetHeaders() {
			checkHeader(r, name, "")
			checkMatch(r, "header "+name, is)
		}
		for name, is := range m.GetQueryParams() {
			if !printable(name) || name == "" {
				r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "query parameter %q is not printable", name)
			}
			checkMatch(r, "query parameter "+name, is)
		}
	}
	checkHeaders(r, out.GetHeaders())
	for _, d := range out.GetRoute() {
		checkHeaders(r, d.GetHeaders())
	}
	checkTarget(r, out.GetRedirect(), out.GetRewrite())
}

// checkTarget checks where a redirect or a rewrite leads.
func checkTarget(r *route, to *networking.HTTPRedirect, rw *networking.HTTPRewrite) {
	for _, h := range []string{to.GetAuthority(), rw.GetAuthority()} {
		if h != "" && !validHost(h) {
			r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "hostname %q is not one", h)
		}
	}
	for _, p := range []string{to.GetUri(), to.GetPrefixRewrite(), rw.GetUriRegexRewrite().GetRewrite(), to.GetScheme()} {
		if !printable(p) {
			r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "%q is not printable", p)
		}
	}
	if len(rw.GetUriRegexRewrite().GetMatch()) > maxRegex {
		r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "a prefix that is rewritten is longer than %d bytes", maxRegex)
	}
	if to == nil {
		return
	}
	if !slices.Contains([]uint32{301, 302, 303, 307, 308}, to.GetRedirectCode()) {
		r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "status %d is not that of a redirect", to.GetRedirectCode())
	}
	if p, ok := to.GetRedirectPort().(*networking.HTTPRedirect_Port); ok && (p.Port == 0 || p.Port > 65535) {
		r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "%d is not a port", p.Port)
	}
	if s := to.GetScheme(); s != "" && s != "http" && s != "https" {
		r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "scheme %q is neither http nor https", s)
	}
}

func checkMatch(r *route, what string, is *networking.StringMatch) {
	if !printable(is.GetExact()) {
		r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "%s: %q is not printable", what, is.GetExact())
	}
	re, ok := is.GetMatchType().(*networking.StringMatch_Regex)
	if !ok {
		return
	}
	if len(re.Regex) > maxRegex {
		r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "%s: the expression is longer than %d bytes", what, maxRegex)
	} else if _, err := regexp.Compile(re.Regex); err != nil || re.Regex == "" {
		r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "%s: %q is not a regular expression", what, re.Regex)
	}
}

func checkHeaders(r *route, h *networking.Headers) {
	for _, o := range []*networking.Headers_HeaderOperations{h.GetRequest(), h.GetResponse()} {
		for _, m := range []map[string]string{o.GetSet(), o.GetAdd()} {
			for name, value := range m {
				checkHeader(r, name, value)
			}
		}
		for _, name := range o.GetRemove() {
			checkHeader(r, name, "")
		}
	}
}

func checkHeader(r *route, name, value string) {
	if len(validation.IsHTTPHeaderName(name)) > 0 {
		r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "%q is not the name of a header", name)
	}
	if !printable(value) {
		r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "header %s has a value that is not printable", name)
	}
}

// printable reports whether a text has no control characters.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f }) && strings.ToValidUTF8(s, "") == s
}

// validHost reports whether a host name is one, or a wildcard for some.
func validHost(h string) bool {
	h = strings.ToLower(h)
	return len(validation.IsDNS1123Subdomain(h)) == 0 || len(validation.IsWildcardDNS1123Subdomain(h)) == 0
}

// checkHosts refuses a route for hosts that are none.
func checkHosts(r *route) {
	for _, h := range r.hosts {
		if !validHost(string(h)) {
			r.unaccepted(gatewayv1.RouteReasonUnsupportedValue, "hostname %q is not one", h)
		}
	}
}
