package simulate

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

// matchHost chooses a virtual host: an exact domain, then the longest suffix
// wildcard ("*.example.com"), then the longest prefix wildcard ("example.*"),
// then "*".
//
// Source: the field VirtualHost.domains in Envoy's documentation.
func matchHost(c *routev3.RouteConfiguration, host string) *routev3.VirtualHost {
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

// matches evaluates a route's match; fractions count as always.
func matches(m *routev3.RouteMatch, r *Request) (bool, error) {
	path, query, _ := strings.Cut(r.Path, "?")
	ok, err := matchPath(m, path)
	if !ok || err != nil {
		return false, err
	}
	for _, h := range m.GetHeaders() {
		if ok, err := matchHeader(h, r); !ok || err != nil {
			return false, err
		}
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return false, fmt.Errorf("read query %q: %w", query, err)
	}
	for _, q := range m.GetQueryParameters() {
		if ok, err := matchQuery(q, values); !ok || err != nil {
			return false, err
		}
	}
	if m.GetGrpc() != nil && !strings.HasPrefix(r.Headers["content-type"], "application/grpc") {
		return false, nil
	}
	return true, nil
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

// header is the value of a header or pseudo-header.
func (r *Request) header(name string) (string, bool) {
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
	v, has := r.header(m.GetName())
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

// location is where a redirect sends the client.
func location(a *routev3.RedirectAction, m *routev3.RouteMatch, r *Request) string {
	scheme, _ := r.header(":scheme")
	host := r.Host
	if a.GetHttpsRedirect() {
		scheme = "https"
	}
	if s := a.GetSchemeRedirect(); s != "" {
		scheme = s
	}
	if h := a.GetHostRedirect(); h != "" {
		host = h
	}
	if p := a.GetPortRedirect(); p != 0 {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = net.JoinHostPort(host, strconv.Itoa(int(p)))
	}
	path, query, hasQuery := strings.Cut(r.Path, "?")
	switch p := a.GetPathRewriteSpecifier().(type) {
	case *routev3.RedirectAction_PathRedirect:
		path, hasQuery = p.PathRedirect, hasQuery && !strings.Contains(p.PathRedirect, "?")
	case *routev3.RedirectAction_PrefixRewrite:
		path = p.PrefixRewrite + path[len(prefixOf(m)):]
	}
	if hasQuery && !a.GetStripQuery() {
		path += "?" + query
	}
	return scheme + "://" + host + path
}

func prefixOf(m *routev3.RouteMatch) string {
	if p := m.GetPathSeparatedPrefix(); p != "" {
		return p
	}
	if p := m.GetPath(); p != "" {
		return p
	}
	return m.GetPrefix()
}

// Rewritten is the path under which an upstream gets a request that a route took.
func Rewritten(a *Answer, r *Request) (string, error) {
	path, query, hasQuery := strings.Cut(r.Path, "?")
	switch {
	case a.Action.GetPrefixRewrite() != "":
		path = a.Action.GetPrefixRewrite() + path[len(prefixOf(a.Matched.GetMatch())):]
	case a.Action.GetRegexRewrite() != nil:
		re, err := regexp.Compile(a.Action.GetRegexRewrite().GetPattern().GetRegex())
		if err != nil {
			return "", fmt.Errorf("compile rewrite of %s: %w", a.Route, err)
		}
		path = re.ReplaceAllString(path, groups(a.Action.GetRegexRewrite().GetSubstitution()))
	}
	if hasQuery {
		path += "?" + query
	}
	return path, nil
}

// groups turns RE2's \1 into Go's ${1}.
func groups(s string) string { return regexp.MustCompile(`\\(\d)`).ReplaceAllString(s, "$${$1}") }
