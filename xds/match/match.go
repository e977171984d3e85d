// Package match knows Envoy's rules for requests: which virtual host and which
// route of a route configuration take one, and why another does not. It is used
// to explain routes and to simulate proxies; it makes no configuration.
package match

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// Request is one HTTP request.
type Request struct {
	Method string // GET if empty
	// Host is the authority, which may have a port.
	Host string
	// Path may have a query.
	Path string
	// Headers by name in lower case.
	Headers map[string]string
	HTTP2   bool
}

// VirtualHost chooses a virtual host: an exact domain, then the longest suffix
// wildcard ("*.example.com"), then the longest prefix wildcard ("example.*"),
// then "*".
//
// Source: the field VirtualHost.domains in Envoy's documentation.
func VirtualHost(c *routev3.RouteConfiguration, host string) *routev3.VirtualHost {
	host = strings.ToLower(host)
	if c.GetIgnorePortInHostMatching() {
		if h, _, err := net.SplitHostPort(host); err == nil {
			if strings.Contains(h, ":") {
				h = "[" + h + "]"
			}
			host = h
		}
	}
	var found *routev3.VirtualHost
	rank := -1
	for _, vh := range c.GetVirtualHosts() {
		for _, d := range vh.GetDomains() {
			if r := domainRank(strings.ToLower(d), host); r > rank {
				rank, found = r, vh
			}
		}
	}
	return found
}

func domainRank(domain, host string) int {
	const exact, suffix, prefix = 3 << 16, 2 << 16, 1 << 16
	switch {
	case domain == "*":
		return 0
	case domain == host:
		return exact
	case strings.HasPrefix(domain, "*"):
		if rest := domain[1:]; len(host) > len(rest) && strings.HasSuffix(host, rest) {
			return suffix + len(domain)
		}
	case strings.HasSuffix(domain, "*"):
		if rest := domain[:len(domain)-1]; len(host) > len(rest) && strings.HasPrefix(host, rest) {
			return prefix + len(domain)
		}
	}
	return -1
}

// Route evaluates a route's match; fractions count as always. why says what of a
// request does not match, "" if all does. An error means that the match has what
// is not known here.
func Route(m *routev3.RouteMatch, r *Request) (why string, err error) {
	path, query, _ := strings.Cut(r.Path, "?")
	ok, err := matchPath(m, path)
	if !ok || err != nil {
		return "the path is not " + pathText(m), err
	}
	for _, h := range m.GetHeaders() {
		if ok, err := matchHeader(h, r); !ok || err != nil {
			return "header " + h.GetName() + " does not match", err
		}
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", fmt.Errorf("read query %q: %w", query, err)
	}
	for _, q := range m.GetQueryParameters() {
		if ok, err := matchQuery(q, values); !ok || err != nil {
			return "query parameter " + q.GetName() + " does not match", err
		}
	}
	if m.GetGrpc() != nil && !strings.HasPrefix(r.Headers["content-type"], "application/grpc") {
		return "the request is not gRPC", nil
	}
	return "", nil
}

func pathText(m *routev3.RouteMatch) string {
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		return p.Prefix + "*"
	case *routev3.RouteMatch_Path:
		return p.Path
	case *routev3.RouteMatch_PathSeparatedPrefix:
		return p.PathSeparatedPrefix + " or below"
	case *routev3.RouteMatch_SafeRegex:
		return "matched by " + p.SafeRegex.GetRegex()
	}
	return "of a form that is known"
}

func matchPath(m *routev3.RouteMatch, path string) (bool, error) {
	insensitive := m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	fold := func(s string) string {
		if insensitive {
			return strings.ToLower(s)
		}
		return s
	}
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		return strings.HasPrefix(fold(path), fold(p.Prefix)), nil
	case *routev3.RouteMatch_Path:
		return fold(path) == fold(p.Path), nil
	case *routev3.RouteMatch_PathSeparatedPrefix:
		rest, ok := strings.CutPrefix(fold(path), fold(p.PathSeparatedPrefix))
		return ok && (rest == "" || rest[0] == '/'), nil
	case *routev3.RouteMatch_SafeRegex:
		return fullMatch(p.SafeRegex.GetRegex(), path)
	case nil:
		return true, nil
	}
	return false, fmt.Errorf("a path of type %T is not known here", m.GetPathSpecifier())
}

func fullMatch(regex, s string) (bool, error) {
	re, err := regexp.Compile("^(?:" + regex + ")$")
	if err != nil {
		return false, fmt.Errorf("compile %q: %w", regex, err)
	}
	return re.MatchString(s), nil
}

// Header is the value of a header or pseudo-header, and whether there is one.
func (r *Request) Header(name string) (string, bool) {
	switch strings.ToLower(name) {
	case ":authority", "host":
		return r.Host, r.Host != ""
	case ":method":
		if r.Method == "" {
			return "GET", true
		}
		return r.Method, true
	case ":path":
		return r.Path, true
	case ":scheme":
		if s, ok := r.Headers[":scheme"]; ok {
			return s, true
		}
		return "http", true
	}
	v, ok := r.Headers[strings.ToLower(name)]
	return v, ok
}

func matchHeader(m *routev3.HeaderMatcher, r *Request) (bool, error) {
	v, has := r.Header(m.GetName())
	if !has && m.GetTreatMissingHeaderAsEmpty() {
		has = true
	}
	ok := has
	var err error
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case nil:
	case *routev3.HeaderMatcher_PresentMatch:
		ok = has == s.PresentMatch
	case *routev3.HeaderMatcher_RangeMatch:
		n, perr := strconv.ParseInt(v, 10, 64)
		ok = has && perr == nil && n >= s.RangeMatch.GetStart() && n < s.RangeMatch.GetEnd()
	case *routev3.HeaderMatcher_StringMatch:
		if ok = has; has {
			ok, err = matchText(s.StringMatch, v)
		}
	default:
		return false, fmt.Errorf("a header matcher of type %T is not known here", s)
	}
	if !has && m.GetHeaderMatchSpecifier() != nil && m.GetInvertMatch() {
		if _, present := m.GetHeaderMatchSpecifier().(*routev3.HeaderMatcher_PresentMatch); !present {
			return true, err
		}
	}
	return ok != m.GetInvertMatch(), err
}

func matchQuery(m *routev3.QueryParameterMatcher, values url.Values) (bool, error) {
	list, has := values[m.GetName()]
	switch s := m.GetQueryParameterMatchSpecifier().(type) {
	case nil:
		return has, nil
	case *routev3.QueryParameterMatcher_PresentMatch:
		return has == s.PresentMatch, nil
	case *routev3.QueryParameterMatcher_StringMatch:
		if !has {
			return false, nil
		}
		return matchText(s.StringMatch, list[0])
	}
	return false, fmt.Errorf("a query matcher of type %T is not known here", m.GetQueryParameterMatchSpecifier())
}

func matchText(m *matcherv3.StringMatcher, s string) (bool, error) {
	fold := func(x string) string {
		if m.GetIgnoreCase() {
			return strings.ToLower(x)
		}
		return x
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return fold(s) == fold(p.Exact), nil
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(fold(s), fold(p.Prefix)), nil
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(fold(s), fold(p.Suffix)), nil
	case *matcherv3.StringMatcher_Contains:
		return strings.Contains(fold(s), fold(p.Contains)), nil
	case *matcherv3.StringMatcher_SafeRegex:
		return fullMatch(p.SafeRegex.GetRegex(), s)
	}
	return false, fmt.Errorf("a string matcher of type %T is not known here", m.GetMatchPattern())
}
